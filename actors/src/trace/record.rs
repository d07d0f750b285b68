//! What is recorded, as plain data, and the port that takes it.

use std::{borrow::Cow, time::Duration};

use fusebox_state::{OpId, SpanRef, Target, Verdict, breaker::State};

use super::context::{CallTrace, Route};
use crate::{
    call::{AckLevel, CallError, CallErrorKind, Reply, Source},
    clock::Reading,
    view::TracesView,
};

/// Of the requests of a pipeline, so many are recorded from the start; those behind them only if they turn out to be worth
/// it.
const PIPELINED_MAX: u32 = 16;

/// Takes what was recorded, to make spans of it.
pub trait TraceSink: Send + Sync + 'static {
    /// Which calls are recorded.
    fn sampling(&self) -> Sampling;

    /// Takes a record. Neither waits nor fails: if there is no room for it, it is dropped and counted.
    fn take(&self, traced: Traced);

    /// What became of the spans so far.
    fn counts(&self) -> TracesView;
}

/// Which calls are recorded, as data, so that deciding costs a call next to nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Whether a caller's own decision is followed.
    pub parent_based: bool,
    /// Of the traces that no caller decided about, those are recorded whose lowest 63 bits are below
    /// this: 2^63 is all of them. So it is in OpenTelemetry's own SDK for Rust, so that programs that
    /// share a ratio decide alike.
    pub bound: u64,
    /// Whether calls that turn out to be worth it are kept although they were not sampled.
    pub keeps: bool,
}

impl Sampling {
    /// All traces.
    pub const ALL: u64 = 1 << 63;

    /// Whether a call is recorded from the start.
    #[inline]
    pub fn samples(&self, trace: &CallTrace) -> bool {
        if self.parent_based && trace.is_remote {
            return trace.parent.sampled;
        }
        if matches!(trace.route, Route::Door(at) if at.ahead >= PIPELINED_MAX) {
            return false;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the low bits of the id are meant")]
        let low = trace.parent.trace_id as u64 >> 1;
        low < self.bound
    }
}

/// What was recorded of a call or of a replay.
#[derive(Debug)]
pub struct Traced {
    /// The backend's name.
    pub backend: String,
    /// Its kind.
    pub kind: &'static str,
    /// Its address, without secrets.
    pub target: Target,
    /// The operation in the backend's own word.
    pub operation: Cow<'static, str>,
    /// The span.
    pub span: SpanRef,
    /// What it is a child of.
    pub parent: Option<u64>,
    /// Nanoseconds since the Unix epoch at [`Traced::began`].
    pub began_unix: u64,
    /// When it began.
    pub began: Reading,
    /// When it ended.
    pub ended: Reading,
    /// What it did, in the order of their ends.
    pub steps: Vec<Step>,
    /// What struck one of its attempts on purpose.
    pub chaos: Option<&'static str>,
    /// What it was.
    pub what: TraceSubject,
}

/// A record's subject.
#[derive(Debug)]
pub enum TraceSubject {
    /// A caller's call.
    Call {
        /// The way by which it came.
        route: Route,
        /// Whether the caller named the parent.
        is_remote: bool,
        /// Whether it might change something.
        write: bool,
        /// How it was answered, or why it was not.
        result: Result<Answered, Failed>,
    },
    /// A queued call's way to the backend.
    Replay {
        /// Its name.
        op_id: OpId,
        /// The span that queued it.
        origin: SpanRef,
        /// How long it had waited.
        waited: Duration,
        /// Calls that went on the wire together with it, itself included.
        together: usize,
    },
}

/// How a call was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// Its source.
    pub source: Source,
    /// What was acknowledged.
    pub ack: Option<AckLevel>,
    /// The write's name.
    pub op_id: Option<OpId>,
}

/// Why a call was not answered.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The family.
    pub kind: CallErrorKind,
    /// The code.
    pub code: Cow<'static, str>,
    /// For people, in words that everybody may see.
    pub detail: String,
}

impl From<&Reply> for Answered {
    fn from(Reply { source, ack, op_id, .. }: &Reply) -> Self {
        Self { source: *source, ack: *ack, op_id: *op_id }
    }
}

impl From<&CallError> for Failed {
    fn from(error: &CallError) -> Self {
        let (code, detail) = (error.known_code(), error.detail.said().to_owned());
        Self { kind: error.kind, code, detail }
    }
}

/// A step of a call.
#[derive(Debug)]
pub struct Step {
    /// When it began.
    pub began: Reading,
    /// When it ended.
    pub ended: Reading,
    /// What it was.
    pub kind: StepKind,
}

/// What a step was.
#[derive(Debug)]
pub enum StepKind {
    /// A try on the wire, or one that was not let through.
    Attempt {
        /// Its span.
        span_id: u64,
        /// From 1.
        number: u32,
        /// What it said about the backend; `None` if it was not let through.
        verdict: Option<Verdict>,
        /// Code and words.
        error: Option<Box<(Cow<'static, str>, String)>>,
        /// The transition of the breaker that it brought about.
        transition: Option<(State, State)>,
    },
    /// A pause between two attempts.
    Backoff,
    /// It waited for queued writes of its lanes.
    Fence,
    /// It asked the cache.
    CacheLookup {
        /// Whether everything was there.
        hit: bool,
    },
    /// What answered instead of the backend; `None` if nothing could.
    Fallback(Option<Source>),
    /// It was put into the queue and synced.
    Append {
        /// Its span.
        span_id: u64,
        /// Its name.
        op_id: OpId,
        /// Why it was not queued.
        error: Option<String>,
    },
    /// It waited for its own replay.
    AwaitReplay,
    /// That it would be sent was noted, and synced.
    NoteSending,
}

/// An attempt that succeeded and changed nothing, in few bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstAttempt {
    pub(super) began: Reading,
    pub(super) ended: Reading,
    pub(super) span_id: u64,
}

pub(super) fn steps(first: Option<FirstAttempt>, mut more: Vec<Step>) -> Vec<Step> {
    if let Some(FirstAttempt { began, ended, span_id }) = first {
        let kind = StepKind::Attempt {
            span_id,
            number: 1,
            verdict: Some(Verdict::Success),
            error: None,
            transition: None,
        };
        more.insert(0, Step { began, ended, kind });
    }
    more
}
