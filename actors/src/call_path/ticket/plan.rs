//! What a door asks of a plain call, and the answers to that.

use std::time::Duration;

use bytes::Bytes;
use fusebox_state::{LaneId, Lanes, Moment, Verdict, chaos::Strike};

use crate::{
    call::{Priority, Source},
    refusal::{AttemptError, Barred},
    trace::CallTrace,
};

/// A call that can be carried without waiting, as its door has read it. One that needs admin rights is none.
#[derive(Debug)]
pub struct PlainPlan<'a> {
    /// The lanes that it touches.
    pub lanes: &'a Lanes,
    /// Read or write.
    pub access: PlainAccess<'a>,
    /// How much it matters.
    pub priority: Priority,
    /// The operation in the backend's own word, for its record.
    pub operation: &'static str,
    /// Its trace.
    pub trace: CallTrace,
    /// Who calls: whoever has places of the bulkhead leaves some to others.
    pub uid: u32,
    /// Whether faults on purpose may strike it: it must be able to [take the other way](OtherWay::Struck).
    pub may_be_struck: bool,
}

/// What a plain call does.
#[derive(Clone, Copy, Debug)]
pub enum PlainAccess<'a> {
    /// Reads.
    Read {
        /// Whether the read is of keys: then it waits for queued writes of its lanes.
        keyed: bool,
        /// The one cache entry that answers it, if it is cached: its lane and the canonical read.
        slot: Option<(LaneId, &'a [u8])>,
        /// The oldest value from the cache that it takes; `None` is the cache's `max_stale`.
        max_stale: Option<Duration>,
    },
    /// Writes without a token or a name of its caller's own.
    Write {
        /// Leaves the same state however often it is applied.
        absolute: bool,
    },
}

/// An answer instead of the backend's.
#[derive(Clone, Debug)]
pub struct Instead {
    /// [`Source::Cache`] or [`Source::Stale`].
    pub source: Source,
    /// The reply.
    pub value: Bytes,
    /// How old it is.
    pub age: Duration,
    /// Why the backend was not asked.
    pub why: Barred,
}

/// Why a plain call must take the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherWay {
    /// Queued writes are in its lanes, or nobody knows whether some do.
    Lanes,
    /// The breaker or an operator lets nothing through, and the cache does not answer: it is to be queued or refused.
    Barred(Barred),
    /// The bulkhead is full: a door that can hold its client back may ask again instead.
    Full,
    /// The state of the system sheds it, or queues it.
    Shed,
    /// A fault on purpose strikes it: pass that on to `call` ([`CallOptions::struck`](crate::CallOptions)).
    Struck(Strike),
}

impl OtherWay {
    /// Why the backend is not asked, for callers that cannot take another way.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Lanes => "earlier writes to the same lanes wait in the queue",
            Self::Barred(Barred::Open) => "the breaker is open",
            Self::Barred(Barred::Offline) => "the backend is offline",
            Self::Barred(Barred::Full) | Self::Full => "too many attempts are in flight",
            Self::Shed => {
                "the system is CRITICAL or EMERGENCY: this call is not sent to the backend"
            }
            Self::Struck(_) => "a fault on purpose (chaos) affects it",
        }
    }
}

/// How a ticket's attempt ended.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// The backend answered.
    Answered {
        /// What is to be cached: the canonical read of the plan's slot and the reply. `None` if the reply is not
        /// cacheable.
        cached: Option<(&'a [u8], &'a [u8])>,
        /// When the value is known to end.
        until: Option<Moment>,
    },
    /// It has no answer, or one that refuses the call.
    Failed {
        /// What that says about the backend.
        verdict: Verdict,
        /// Why.
        error: AttemptError,
    },
}
