//! One call's writes as they go into a commit, with its marker; and the call's own answer out of it.
//!
//! **The marker** of a call that is not absolute is the document `fusebox_markers/<op_id>`, made (not merely
//! written) right before the call's own writes in the same commit. It has two fields:
//!
//! | field | type | what for |
//! | --- | --- | --- |
//! | `digest` | text, 16 hexadecimal digits (a client in JavaScript loses digits of a large integer) | the call as its caller sent it: another call under the same op_id is a conflict. A marker without it is of an earlier version, and is of any call |
//! | `expires_at` | timestamp | seven days after it was sent; a TTL policy on it removes markers that were left behind |

use std::time::Duration;

use bytes::Bytes;
use fusebox_actors::connector::{Attempt, Attempted, OwnCode};
use fusebox_state::{ErrorClass, Lanes, OpId, UnixMillis, Verdict};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Document, Precondition, Write, WriteResult, precondition::ConditionType, value::ValueType,
    write::Operation,
};
use prost::Message;
use prost_types::Timestamp;

use super::{
    names::Root,
    outcome::{Behalf, Failed},
    plan,
    value::{self, Fields},
    wire::{self, Answer, Call, Commit, Committed, Op, Reply},
};

/// The collection of the markers.
const MARKERS: &str = "fusebox_markers";
const DIGEST: &str = "digest";
const EXPIRES_AT: &str = "expires_at";
/// How long a marker proves anything.
const MARKER_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What a write has around it in its commit, in bytes, at most.
const WRITE_FRAME: usize = 6;

/// The path of a token's marker.
pub(crate) fn marker(token: OpId) -> String {
    format!("{MARKERS}/{token}")
}

/// A call's writes.
pub(crate) struct Cargo {
    pub(crate) lanes: Lanes,
    pub(crate) token: Option<OpId>,
    pub(crate) caller: String,
    pub(crate) transaction: Bytes,
    digest: u64,
    expires_at: UnixMillis,
    /// Answered with an array of results.
    many: bool,
    /// As the queue has them, until they are loaded.
    writes: Vec<Write>,
    has_transforms: bool,
}

impl Cargo {
    /// The writes of an attempt.
    ///
    /// # Errors
    /// Its body is none of this kind's; or an earlier attempt may have been applied, and the server would not
    /// recognise it.
    pub(crate) fn of(attempt: &Attempt<'_>) -> Result<Self, Failed> {
        let wrong = |why: String| {
            Failed::own(Verdict::Neutral, ErrorClass::Rejected, OwnCode::MalformedCall, why)
        };
        let call: Call =
            wire::decode(attempt.body).map_err(|why| wrong(format!("the call {why}")))?;
        let Some(Op::Commit(Commit { writes, many })) = call.op else {
            return Err(wrong("the call is not a write".to_owned()));
        };
        check_doubt(attempt, &writes)?;
        Ok(Self {
            lanes: attempt.lanes.clone(),
            token: attempt.token,
            caller: call.token,
            transaction: call.transaction,
            digest: attempt.digest,
            expires_at: attempt.now.plus(MARKER_LIFE),
            many,
            has_transforms: writes.iter().any(|write| !write.update_transforms.is_empty()),
            writes,
        })
    }

    /// How many writes it is in a commit, with its marker.
    pub(crate) fn writes(&self) -> usize {
        self.writes.len() + usize::from(self.token.is_some())
    }

    /// The number of its first lane, which says over which connection it goes.
    pub(crate) fn lane(&self) -> u64 {
        number(&self.lanes)
    }

    /// On whose behalf it is sent.
    pub(crate) fn behalf(&self) -> Behalf {
        Behalf { caller: !self.caller.is_empty(), transaction: !self.transaction.is_empty() }
    }

    /// Its writes as they are sent.
    pub(crate) fn loaded(&self, root: &Root) -> Loaded {
        let marker = self.token.map(|token| {
            let digest = ValueType::StringValue(format!("{:016x}", self.digest));
            let expires_at = ValueType::TimestampValue(value::time(self.expires_at));
            let fields = [(DIGEST, digest), (EXPIRES_AT, expires_at)];
            let fields: Fields =
                fields.into_iter().map(|(name, it)| (name.to_owned(), value::value(it))).collect();
            let document =
                Document { name: root.name(&marker(token)), fields, ..Document::default() };
            Write {
                operation: Some(Operation::Update(document)),
                current_document: Some(Precondition {
                    condition_type: Some(ConditionType::Exists(false)),
                }),
                ..Write::default()
            }
        });
        let own = self.writes.iter().cloned().map(|mut write| {
            root.complete_write(&mut write);
            write
        });
        let writes: Vec<Write> = marker.into_iter().chain(own).collect();
        let bytes = writes.iter().map(|write| write.encoded_len() + WRITE_FRAME).sum();
        Loaded { writes, bytes }
    }

    /// Its own results out of its commit's.
    pub(crate) fn take(
        &self,
        results: &mut impl Iterator<Item = WriteResult>,
        time: Option<Timestamp>,
    ) -> Attempted {
        if self.token.is_some() {
            results.next();
        }
        Attempted::answered(self.reply(results.take(self.writes.len()).collect(), time))
    }

    fn reply(&self, results: Vec<WriteResult>, time: Option<Timestamp>) -> Bytes {
        Reply::encoded(if self.many {
            Answer::Committed(Committed { results, time })
        } else {
            let mut result = results.into_iter().next().unwrap_or_default();
            result.update_time = result.update_time.or(time);
            Answer::Written(result)
        })
    }

    /// How it ends, given that its marker is there: applied by an attempt whose answer nobody heard, or
    /// refused, because the marker is another call's. When it was applied is known, so the reply is complete
    /// but for what transforms made.
    pub(crate) fn recognised(&self, mark: &Mark) -> Attempted {
        if mark.digest.is_some_and(|digest| digest != self.digest) {
            let token = self.token.map(|token| token.to_string()).unwrap_or_default();
            let message = format!("the op_id {token} belongs to another call, which was applied");
            let class = ErrorClass::Conflict;
            return Failed::own(Verdict::Success, class, OwnCode::OpIdConflict, message).ended();
        }
        let result = WriteResult { update_time: Some(mark.time), ..WriteResult::default() };
        let reply = self.reply(vec![result; self.writes.len()], Some(mark.time));
        if self.has_transforms { Attempted::recognised(reply) } else { Attempted::answered(reply) }
    }
}

/// How large the message is that carries these writes alone, in bytes, at most.
pub(crate) fn message_size(writes: Vec<Write>, root: &Root) -> usize {
    let each = writes.into_iter().map(|mut write| {
        root.complete_write(&mut write);
        write.encoded_len() + WRITE_FRAME
    });
    each.sum::<usize>() + root.database.len() + WRITE_FRAME
}

/// A call's writes as they are sent.
pub(crate) struct Loaded {
    pub(crate) writes: Vec<Write>,
    /// What they add to a commit, in bytes.
    pub(crate) bytes: usize,
}

/// What a marker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// When its call was applied.
    pub(crate) time: Timestamp,
    /// Of which call it is; `None` for one of an earlier version.
    digest: Option<u64>,
}

impl Mark {
    /// What the document of a marker says.
    pub(crate) fn of(document: &Document) -> Self {
        let digest = document.fields.get(DIGEST).and_then(|value| match &value.value_type {
            Some(ValueType::StringValue(digest)) => u64::from_str_radix(digest, 16).ok(),
            _ => None,
        });
        Self { time: document.update_time.unwrap_or_default(), digest }
    }
}

/// A write that is not absolute and may have been applied is sent again only if its marker would tell.
fn check_doubt(attempt: &Attempt<'_>, writes: &[Write]) -> Result<(), Failed> {
    let Some(doubt) = &attempt.doubt else { return Ok(()) };
    // What refuses its repetition may be repeated, too: an earlier release has queued such without a marker.
    if writes.iter().all(plan::is_absolute) {
        return Ok(());
    }
    let why = if attempt.token.is_none() {
        "it has no marker"
    } else if attempt.now.since(doubt.since) >= MARKER_LIFE {
        "it was first sent more than 7 days ago, and its marker may be gone"
    } else {
        return Ok(());
    };
    let message = format!("an earlier attempt may have been applied, and {why}");
    let mut failed =
        Failed::own(Verdict::Neutral, ErrorClass::Ambiguous, OwnCode::Ambiguous, message);
    // Nothing of this attempt was sent.
    failed.error.doubt = None;
    Err(failed)
}

/// The number of the first of these lanes.
pub(crate) fn number(lanes: &Lanes) -> u64 {
    if lanes.is_all() { 0 } else { lanes.as_slice().first().map_or(0, |lane| lane.0) }
}
