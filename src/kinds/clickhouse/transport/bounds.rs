//! What bounds an attempt: its time, and what it waits for.

use std::time::Duration;

use fusebox_actors::connector::{Attempt, AttemptError, OwnCode};
use fusebox_state::{ErrorClass, Verdict};

use super::{fence::Waits, http::Failed, shared::Shared};

/// How much longer than its full time a caller waits, so that the exchange itself says what became of it.
pub(super) const GRACE: Duration = Duration::from_millis(25);

/// Whether it may begin.
///
/// # Errors
/// The connector is closed.
pub(super) fn check_open(shared: &Shared) -> Result<(), Failed> {
    if shared.http.is_closed() {
        return Err(Failed::closed());
    }
    Ok(())
}

/// Whether that is the backend's whole `timeout`.
pub(super) fn is_whole(shared: &Shared, time: Duration) -> bool {
    time + GRACE >= shared.settings.timeout
}

/// Whether inserts may overtake it, and it them.
pub(super) fn commutes(attempt: &Attempt<'_>) -> bool {
    !attempt.lanes.is_all() && attempt.lanes.as_slice().is_empty()
}

/// What an attempt waits for at the fence.
pub(super) fn waits(attempt: &Attempt<'_>) -> Waits {
    match (commutes(attempt), attempt.doubt) {
        (true, None) => Waits::First,
        (true, Some(_)) => Waits::Repetition,
        (false, _) => Waits::Any,
    }
}

/// A deadline shorter than the backend's own says nothing of the backend.
pub(super) fn neutral_unless(whole: bool, mut failed: Failed) -> Failed {
    if !whole && failed.error.is(OwnCode::Timeout) {
        failed.verdict = Verdict::Neutral;
    }
    failed
}

/// It may have been applied already, and `why` it cannot be sent again.
pub(super) fn ambiguous(why: &str) -> Failed {
    let message = format!("it may have been applied already, and cannot be repeated: {why}");
    let error = AttemptError::own(ErrorClass::Ambiguous, OwnCode::Ambiguous, message);
    Failed { error, verdict: Verdict::Neutral }
}
