//! What a call records of itself, and the port behind which that becomes spans.
//!
//! ```text
//!  door: the caller's context, or a new one
//!    └─▶ CallRecorder: each step notes when it began and ended, from clock readings that are made anyway
//!          └─▶ end: sampled? worth keeping? ── no ──▶ dropped, nothing was allocated
//!                                           └─ yes ─▶ Traced, plain data ──▶ TraceSink::take, never waits
//! ```
//!
//! **Sampling decides before anything is created**, and nothing is created before the end: spans are made
//! by the sink, elsewhere, from what the call noted. That is why a call that nobody sampled can still be
//! kept when it turns out to be worth it: it failed, was refused, was retried, was answered by a fallback
//! or was queued. Of those at most [`KEPT_MAX`] a second of each backend, so that an outage does not
//! become one of the collector, too.
//!
//! **A queued write** takes the reference of its span into the store, with the flag *sampled* if that
//! span is recorded. Its replay is a trace of its own, whose id is the call's `op_id` (both have 128
//! bits), linked to that span: who knows the name of a write finds its replay, days later, and nothing
//! more has to be stored. Replays of calls that were not recorded are not recorded either.
//!
//! **What is passed on** to the backend is the span of the attempt if it is recorded, and else the
//! caller's own: who does not record is not to be seen in a trace. Baggage is passed on and never recorded.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fusebox_state::{OpId, SpanRef, Target};

use crate::{
    call::Source,
    clock::{Clock, Reading},
};

pub(crate) mod context;
mod record;
mod recorder;

pub use context::{
    AtDoor, CallOrigin, CallTrace, PassedOn, Propagated, Route, lasting_name, new_span_id,
};
use record::steps;
pub use record::{Answered, Failed, Sampling, Step, StepKind, TraceSink, TraceSubject, Traced};
pub use recorder::{CallRecorder, Tried, told};

/// Unsampled calls of one backend that are kept in one second, at most.
pub const KEPT_MAX: u64 = 50;

/// What one backend's calls borrow to record themselves.
pub struct Tracer {
    sink: Option<Arc<dyn TraceSink>>,
    sampling: Sampling,
    clock: Clock,
    /// The second, and how many were kept in it: `second << 16 | count`.
    kept: AtomicU64,
}

impl Tracer {
    /// A tracer into `sink`; without one nothing is recorded.
    pub fn new(sink: Option<Arc<dyn TraceSink>>, clock: Clock) -> Self {
        let none = Sampling { parent_based: false, bound: 0, keeps: false };
        let sampling = sink.as_ref().map_or(none, |sink| sink.sampling());
        Self { sink, sampling, clock, kept: AtomicU64::new(0) }
    }

    /// Begins to record a call.
    #[inline]
    pub fn begin(&self, trace: CallTrace, began: Reading) -> CallRecorder {
        let sampled = self.sampling.samples(&trace);
        let span_id = if sampled { new_span_id() } else { 0 };
        let keeps = sampled || self.sampling.keeps;
        CallRecorder {
            trace,
            began,
            span_id,
            sampled,
            keeps,
            first: None,
            more: Vec::new(),
            chaos: None,
        }
    }

    /// Whether the record of a call that ends is wanted: it was sampled, or is worth it.
    #[inline]
    pub fn wants(&self, recorder: &CallRecorder, source: Option<Source>) -> bool {
        recorder.sampled || (recorder.keeps && is_worth_it(recorder, source) && self.keep())
    }

    /// Hands on the record of a call that [`Tracer::wants`].
    pub fn end(&self, recorder: CallRecorder, of: CallRef<'_>, result: Result<Answered, Failed>) {
        let Some(sink) = self.sink.as_ref() else { return };
        let (ended, unix) = (self.clock.read(), self.clock.unix_nanos());
        let CallTrace { parent, is_remote, route, .. } = recorder.trace;
        let span_id = if recorder.span_id == 0 { new_span_id() } else { recorder.span_id };
        sink.take(Traced {
            backend: of.backend.to_owned(),
            kind: of.kind,
            target: of.target,
            operation: of.operation,
            span: SpanRef { trace_id: parent.trace_id, span_id, sampled: true },
            parent: is_remote.then_some(parent.span_id),
            began_unix: unix.saturating_sub(nanos(ended.since(recorder.began))),
            began: recorder.began,
            ended,
            steps: steps(recorder.first, recorder.more),
            chaos: recorder.chaos,
            what: TraceSubject::Call { route, is_remote, write: of.write, result },
        });
    }

    /// Hands on what was recorded of a replay.
    pub fn replayed(&self, traced: impl FnOnce(u64) -> Traced) {
        if let Some(sink) = self.sink.as_ref() {
            sink.take(traced(self.clock.unix_nanos()));
        }
    }

    /// The span of a write that is about to be queued, to be stored with it. That it is queued makes it
    /// worth keeping, so that is decided here: the flag tells the replay.
    pub fn queued(&self, recorder: &mut CallRecorder) -> SpanRef {
        if !recorder.sampled && recorder.keeps && self.keep() {
            recorder.sampled = true;
            recorder.span_id = new_span_id();
        }
        let parent = recorder.trace.parent;
        if recorder.sampled {
            return SpanRef { span_id: new_span_id(), sampled: true, ..parent };
        }
        // If nothing is recorded here, only the caller's record can be linked to.
        SpanRef { sampled: parent.sampled && !self.is_on(), ..parent }
    }

    /// Whether anything is recorded at all.
    pub fn is_on(&self) -> bool {
        self.sink.is_some()
    }

    /// Whether one more unsampled call may be kept in this second.
    fn keep(&self) -> bool {
        let second = self.clock.uptime().as_secs();
        let next = |kept: u64| match (kept >> 16 == second, kept & 0xffff) {
            (false, _) => Some(second << 16 | 1),
            (true, count) if count < KEPT_MAX => Some(kept + 1),
            (true, _) => None,
        };
        self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// Whose call it is that ends.
#[derive(Clone, Debug)]
pub struct CallRef<'a> {
    /// The backend's name.
    pub backend: &'a str,
    /// Its kind.
    pub kind: &'static str,
    /// Its address, without secrets.
    pub target: Target,
    /// The operation in the backend's own word.
    pub operation: Cow<'static, str>,
    /// Whether the call might change something.
    pub write: bool,
}

/// The quiet majority is answered by the backend at once.
#[inline]
fn is_worth_it(recorder: &CallRecorder, source: Option<Source>) -> bool {
    recorder.first.is_none()
        || !recorder.more.is_empty()
        || recorder.chaos.is_some()
        || source != Some(Source::Live)
}

/// The trace of a queued call's replay: its name, which may not be zero as a trace's id.
pub fn replay_trace_id(op_id: OpId) -> u128 {
    op_id.to_u128().max(1)
}

/// Whole nanoseconds.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_passed_on_where_somebody_follows_it() {
        let clock = Clock::system();
        let tracer = Tracer::new(None, clock);
        let own = tracer.begin(CallTrace::new("/call"), clock.read());
        assert!(own.passed_on(0).is_none());
        let parent = own.trace.parent;
        let sampled = own.passed_on(7).unwrap().span;
        assert_eq!(sampled, SpanRef { span_id: 7, sampled: true, ..parent });
        let remote = CallTrace { is_remote: true, ..CallTrace::new("/call") };
        let parent = remote.parent;
        let remote = tracer.begin(remote, clock.read());
        assert_eq!(remote.passed_on(0).unwrap().span, parent, "as the caller sent it");
        let propagated = Propagated { tracestate: None, baggage: Some("a=b".into()) };
        let loaded =
            CallTrace { propagated: Some(Box::new(propagated)), ..CallTrace::new("/call") };
        let loaded = tracer.begin(loaded, clock.read());
        assert_eq!(loaded.passed_on(0).unwrap().baggage, Some("a=b"));
    }
}
