//! What becomes of a write in doubt: by a proof, or beside its error.

use fusebox_actors::connector::{AttemptError, Attempted, ErrorCode, OwnCode};
use fusebox_state::{ErrorClass, Verdict};

use super::{
    bounds::ambiguous,
    http::Failed,
    tokens::{Noted, Proof},
};
use crate::kinds::clickhouse::protocol::{target::Target, wire};

/// How a write ended, by what is known of its earlier sendings; `None` if it is to be sent again.
pub(super) fn by_proof(
    proof: Proof,
    (database, table): &Target,
) -> Result<Option<Attempted>, Failed> {
    match proof {
        Proof::Recognisable | Proof::NotExecuted => Ok(None),
        Proof::Applied => Ok(Some(Attempted::recognised(wire::reply("", b"")))),
        Proof::NoTable => {
            let message = format!("there is no table {database}.{table} (UNKNOWN_TABLE)");
            let error =
                AttemptError::own(ErrorClass::BlockedObject, ErrorCode::OfKind("60"), message);
            Err(Failed { error, verdict: Verdict::Success })
        }
        Proof::Lacks(why) => Err(ambiguous(&why)),
    }
}

/// Beside an error in doubt goes what a proof will need. If there can be none, nothing is tried.
pub(super) fn note(error: &mut AttemptError, noted: Noted) {
    if error.doubt.is_none() {
        return;
    }
    error.doubt = Some(noted.evidence);
    if let (ErrorClass::Unknown, Some(lacks)) = (error.class, noted.lacks) {
        error.class = ErrorClass::Ambiguous;
        error.unclassified = false;
        error.message =
            error.message.within(|why| format!("{why}; it cannot be repeated: {lacks}"));
    }
}

/// The server took the repetition and does not have its rows.
pub(super) fn lost((database, table): &Target) -> Failed {
    let message = format!(
        "the server remembers the insert, but {database}.{table} has no rows of it: the server was killed in between"
    );
    let error = AttemptError::own(ErrorClass::Unknown, OwnCode::Reset, message);
    Failed { error, verdict: Verdict::Neutral }
}

/// The server took the repetition and does not have its rows; what its views feed may have them.
pub(super) fn in_views_alone((database, table): &Target) -> Failed {
    ambiguous(&format!(
        "the server remembers the insert, but {database}.{table} has no rows of it: the server was killed in between; \
         tables that views feed may have the rows"
    ))
}

/// The server took the repetition; then it did not say whether it has its rows.
pub(super) fn unanswered(failed: &Failed) -> Failed {
    let message = format!(
        "the server accepted it again, but did not say afterwards whether its rows are stored: {}",
        failed.error
    );
    let error = AttemptError::own(ErrorClass::Unknown, OwnCode::Reset, message);
    Failed { error, verdict: failed.verdict }
}
