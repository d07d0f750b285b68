//! A call as a door hands it in, and what it gets back.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fusebox_state::{OpId, Target, Words, chaos::Strike};
use tokio::sync::Notify;

use crate::{
    error_code::known_code,
    pieces::{Tail, Upload},
    refusal::{AttemptError, Barred},
    trace::context::CallTrace,
};

/// How much a call matters when something must be shed.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Shed first: from CRITICAL on it gets no live attempt.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Never shed for load.
    Critical,
}

/// What a write's reply promises.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AckLevel {
    /// The backend said so.
    Applied,
    /// Synced to this host's disk; will be replayed.
    Durable,
}

/// What a caller may ask of one call.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// Give up after this long; `None` is the backend's `timeout` × attempts.
    pub deadline: Option<Duration>,
    /// The oldest fallback value that it takes; `None` is the cache's `max_stale`.
    pub max_stale: Option<Duration>,
    /// How much it matters.
    pub priority: Priority,
    /// `Applied` refuses to be left in the queue; `Durable` consents to be queued.
    pub min_ack: Option<AckLevel>,
    /// The caller's own name for the write.
    pub op_id: Option<OpId>,
    /// In which form of its protocol the backend is to reply, by the connector's own number; 0 is the usual one.
    pub dialect: u8,
    /// Signalled once the write has its place in the queue: whatever is called after that is behind it, though it is
    /// not synced yet.
    pub appended: Option<Arc<Notify>>,
    /// A full bulkhead is no reason to be queued or answered otherwise: it waits for a place, for as long as it may
    /// take. For a door that holds its client back meanwhile.
    pub awaits_place: bool,
    /// Its door has an answer of its own if the backend gives none: it does not wait for a store that is being opened.
    pub has_stand_in: bool,
    /// Why the backend lets nothing through, if the door knows that: then the call is not tried, but queued, answered
    /// otherwise or refused. It makes no connection, so that it can run on any runtime.
    pub barred: Option<Barred>,
    /// Its door has logged it, if only an admin may do that.
    pub is_audited: bool,
    /// What strikes its first attempt, if that was decided before.
    pub struck: Option<Strike>,
    /// The target that its body was made for: if the backend has another one by now, it is not carried. `None` if the
    /// body means the same everywhere.
    pub made_for: Option<Target>,
}

/// One request of a program.
#[derive(Debug)]
pub struct Call {
    /// The call in the backend's wire form, as its connector encodes it.
    pub body: Bytes,
    /// What the caller asks of it.
    pub options: CallOptions,
    /// The caller's user id.
    pub uid: u32,
    /// Whether the caller has admin rights.
    pub admin: bool,
    /// Its trace: to be recorded, passed on, and stored with a queued write.
    pub trace: CallTrace,
    /// Whether the door can hand on an answer piece by piece; else a large one is an error.
    pub streams: bool,
    /// What follows `body` if the call is too large to hold: it is tried once and never queued.
    pub upload: Option<Upload>,
}

/// The source of a reply.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The backend.
    Live,
    /// The cache, no older than its `ttl`.
    Cache,
    /// The cache, older than its `ttl` or brought back by a restart.
    Stale,
    /// A write: made durable. A read: computed from queued writes.
    Queued,
    /// The right empty structure, for a non-critical read.
    Empty,
    /// A nil, so that the caller computes the value itself.
    Bypass,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Source {
    /// The word of the API and the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Cache => "cache",
            Self::Stale => "stale",
            Self::Queued => "queued",
            Self::Empty => "empty",
            Self::Bypass => "bypass",
        }
    }
}

/// The answer to a call.
pub struct Reply {
    /// Its source.
    pub source: Source,
    /// What it promises; `None` for a read.
    pub ack: Option<AckLevel>,
    /// The value in the backend's wire form; `None` is null (a queued write whose reply is not known).
    pub value: Option<Bytes>,
    /// How old the value is; zero if it is live.
    pub age: Duration,
    /// What the caller should know.
    pub warnings: Vec<String>,
    /// The name of a write that was queued or had a token.
    pub op_id: Option<OpId>,
    /// Attempts on the wire.
    pub attempts: u32,
    /// Writes of the backend that wait in its queue, if there are any.
    pub pending_writes: u64,
    /// What follows `value` if the answer is too large to hold.
    pub rest: Option<Box<dyn Tail>>,
    /// A write was applied by an attempt whose reply did not arrive: `value` is not that reply.
    pub reply_lost: bool,
}

impl Reply {
    /// The reply with all that follows its beginning at hand.
    ///
    /// # Errors
    /// What ended the answer before its end.
    pub async fn gathered(mut self) -> Result<Self, AttemptError> {
        let Some(mut rest) = self.rest.take() else { return Ok(self) };
        let mut whole = BytesMut::from(self.value.take().unwrap_or_default());
        while let Some(piece) = rest.next().await {
            whole.extend_from_slice(&piece?);
        }
        self.value = Some(whole.freeze());
        Ok(self)
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("source", &self.source)
            .field("ack", &self.ack)
            .field("value", &self.value)
            .field("age", &self.age)
            .field("warnings", &self.warnings)
            .field("op_id", &self.op_id)
            .finish_non_exhaustive()
    }
}

/// The family of a call's error; a door maps it to its own codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallErrorKind {
    /// The request is malformed.
    Malformed,
    /// The caller has no right to this.
    Forbidden,
    /// The `op_id` was used with another body.
    Conflict,
    /// The backend, or its connector, refuses this call for good.
    Refused,
    /// Unavailable and no fallback, shed, or read-only. Not executed.
    Unavailable,
    /// The deadline passed or the connection broke.
    TimedOut,
    /// The queue is full or the store refuses writes.
    Full,
}

/// Why a call has no answer.
#[derive(Clone, thiserror::Error)]
#[error("{detail}")]
pub struct CallError {
    /// The family.
    pub kind: CallErrorKind,
    /// A stable word for programs: `breaker_open`, `queue_full`, `read_only`, `shed`, `lane_busy`,
    /// `timeout`, `store_refuses`, `op_id_conflict` …, or the backend's own code.
    pub code: Cow<'static, str>,
    /// What happened, naming the value, and what would be right. The caller gets it whole.
    pub detail: Words,
    /// Whether the call may have been, or may yet be, applied.
    pub outcome_unknown: bool,
    /// The call's name if it has one.
    pub op_id: Option<OpId>,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
    /// Attempts on the wire.
    pub attempts: u32,
    /// The backend's error in wire form, for doors that speak its protocol.
    pub reply: Option<Box<Bytes>>,
    /// What the backend answered to the last attempt, in wire form, if that was an answer and is not `reply`: it
    /// was overloaded, or does not know us. For doors whose clients are to see what the server says.
    pub last_answer: Option<Box<Bytes>>,
}

/// Shows what everybody may see: neither the words nor the reply of the server.
impl fmt::Debug for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallError")
            .field("kind", &self.kind)
            .field("detail", &self.detail)
            .field("outcome_unknown", &self.outcome_unknown)
            .field("op_id", &self.op_id)
            .finish_non_exhaustive()
    }
}

impl CallError {
    /// Its code if that cannot be a caller's data (see [`crate::connector::AttemptError::known_code`]).
    pub fn known_code(&self) -> Cow<'static, str> {
        known_code(self.code.clone())
    }
}
