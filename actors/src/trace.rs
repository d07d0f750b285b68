//! What a call records of itself, and the port behind which that becomes spans.
//!
//! ```text
//!  door: the caller's context, or a new one
//!    └─▶ Trail: each step notes when it began and ended, from clock readings that are made anyway
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
//! **A queued write** takes the reference of its span into the store, with the flag *sampled* where that
//! span is recorded. Its replay is a trace of its own, whose id is the call's `op_id` (both have 128
//! bits), linked to that span: who knows the name of a write finds its replay, days later, and nothing
//! more has to be stored. Replays of calls that were not recorded are not recorded either.
//!
//! **What is passed on** to the backend is the span of the attempt where it is recorded, and else the
//! caller's own: who does not record is not to be seen in a trace. Baggage is passed on and never recorded.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fusebox_state::{OpId, SpanRef, Verdict, breaker::State};

use crate::{
    call::{AckLevel, CallError, CallErrorKind, Reply, Source},
    clock::{Clock, Reading},
    connector::{AttemptError, Connector},
    view::TracesView,
};

/// Unsampled calls of one backend that are kept in one second, at most.
pub const KEPT_MAX: u64 = 50;

/// The trace of a call, as its door found it.
#[derive(Clone, Debug)]
pub struct CallTrace {
    /// The caller's span; one that was made up where the caller named none.
    pub parent: SpanRef,
    /// Whether the caller named it.
    pub is_remote: bool,
    /// What else is to be passed on, where there is anything.
    pub luggage: Option<Box<Luggage>>,
    /// The route by which the call came.
    pub route: &'static str,
}

/// What goes with a trace context and is passed on as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Luggage {
    /// The caller's `tracestate`.
    pub tracestate: Option<String>,
    /// The caller's `baggage`; never recorded.
    pub baggage: Option<String>,
}

impl CallTrace {
    /// What stands in the place of a trace that was taken out.
    pub(crate) const NONE: Self = Self {
        parent: SpanRef { trace_id: 0, span_id: 0, sampled: false },
        is_remote: false,
        luggage: None,
        route: "",
    };

    /// A trace that begins here.
    pub fn new(route: &'static str) -> Self {
        let parent =
            SpanRef { trace_id: fastrand::u128(1..), span_id: fastrand::u64(1..), sampled: false };
        Self { parent, is_remote: false, luggage: None, route }
    }
}

/// What an attempt passes on to its backend.
#[derive(Clone, Copy, Debug)]
pub struct PassedOn<'a> {
    /// The `traceparent`.
    pub span: SpanRef,
    /// The `tracestate`.
    pub tracestate: Option<&'a str>,
    /// The `baggage`.
    pub baggage: Option<&'a str>,
}

impl PassedOn<'_> {
    /// The headers of it: names and values.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
        let traceparent = Some(("traceparent", Cow::Owned(self.span.to_string())));
        let tracestate = self.tracestate.map(|text| ("tracestate", Cow::Borrowed(text)));
        let baggage = self.baggage.map(|text| ("baggage", Cow::Borrowed(text)));
        [traceparent, tracestate, baggage].into_iter().flatten()
    }
}

/// Takes what was recorded, to make spans of it.
pub trait TraceSink: Send + Sync + 'static {
    /// Which calls are recorded.
    fn sampling(&self) -> Sampling;

    /// Takes a record. Neither waits nor fails: where there is no room for it, it is dropped and counted.
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
    pub target: String,
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
    /// What it was.
    pub what: What,
}

/// A record's subject.
#[derive(Debug)]
pub enum What {
    /// A caller's call.
    Call {
        /// The route by which it came.
        route: &'static str,
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
    /// From where.
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
    /// For people.
    pub detail: String,
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
        /// What it said about the backend; `None` where it was not let through.
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
    /// What answered in the backend's stead; `None` where nothing could.
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
    pub fn begin(&self, trace: CallTrace, began: Reading) -> Trail {
        let sampled = self.sampling.samples(&trace);
        let span_id = if sampled { new_span_id() } else { 0 };
        let keeps = sampled || self.sampling.keeps;
        Trail { trace, began, span_id, sampled, keeps, first: None, more: Vec::new() }
    }

    /// Whether the record of a call that ends is wanted: it was sampled, or is worth it.
    #[inline]
    pub fn wants(&self, trail: &Trail, result: Result<&Reply, &CallError>) -> bool {
        trail.sampled || (trail.keeps && is_worth_it(trail, result) && self.keep())
    }

    /// Hands on the record of a call that [`Tracer::wants`].
    pub fn end(
        &self,
        trail: Trail,
        connector: &dyn Connector,
        body: &Bytes,
        of: Of<'_>,
        result: Result<&Reply, &CallError>,
    ) {
        let Some(sink) = self.sink.as_ref() else { return };
        let (ended, unix) = (self.clock.read(), self.clock.unix_nanos());
        let result = match result {
            Ok(Reply { source, ack, op_id, .. }) => {
                Ok(Answered { source: *source, ack: *ack, op_id: *op_id })
            }
            Err(CallError { kind, code, detail, .. }) => {
                Err(Failed { kind: *kind, code: code.clone(), detail: detail.clone() })
            }
        };
        let CallTrace { parent, is_remote, route, .. } = trail.trace;
        let span_id = if trail.span_id == 0 { new_span_id() } else { trail.span_id };
        sink.take(Traced {
            backend: of.backend.to_owned(),
            kind: of.kind,
            target: connector.target(),
            operation: connector.operation(body),
            span: SpanRef { trace_id: parent.trace_id, span_id, sampled: true },
            parent: is_remote.then_some(parent.span_id),
            began_unix: unix.saturating_sub(nanos(ended.since(trail.began))),
            began: trail.began,
            ended,
            steps: steps(trail.first, trail.more),
            what: What::Call { route, is_remote, write: of.write, result },
        });
    }

    /// Hands on what was recorded of a replay.
    pub fn replayed(&self, traced: impl FnOnce(u64) -> Traced) {
        if let Some(sink) = self.sink.as_ref() {
            sink.take(traced(self.clock.unix_nanos()));
        }
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
#[derive(Clone, Copy, Debug)]
pub struct Of<'a> {
    /// The backend's name.
    pub backend: &'a str,
    /// Its kind.
    pub kind: &'static str,
    /// Whether the call might change something.
    pub write: bool,
}

/// The quiet majority is answered by the backend at once.
#[inline]
fn is_worth_it(trail: &Trail, result: Result<&Reply, &CallError>) -> bool {
    trail.first.is_none()
        || !trail.more.is_empty()
        || !matches!(result, Ok(Reply { source: Source::Live, .. }))
}

/// The trace of a queued call's replay: its name, which may not be zero as a trace's id.
pub fn replay_trace_id(op_id: OpId) -> u128 {
    op_id.to_u128().max(1)
}

/// A new span's id.
pub fn new_span_id() -> u64 {
    fastrand::u64(1..)
}

/// Whole nanoseconds.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What one call has recorded so far.
#[derive(Debug)]
pub struct Trail {
    trace: CallTrace,
    began: Reading,
    /// Its own span's id; zero as long as nobody needed one.
    span_id: u64,
    sampled: bool,
    /// Whether anything is noted.
    keeps: bool,
    /// The first step where it was an attempt that succeeded, which is all that most calls do.
    first: Option<FirstAttempt>,
    more: Vec<Step>,
}

/// An attempt that succeeded and changed nothing, in few bytes.
#[derive(Clone, Copy, Debug)]
struct FirstAttempt {
    began: Reading,
    ended: Reading,
    span_id: u64,
}

fn steps(first: Option<FirstAttempt>, mut more: Vec<Step>) -> Vec<Step> {
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

impl Trail {
    /// Whether steps are noted at all.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// Notes a step.
    pub fn step(&mut self, began: Reading, ended: Reading, kind: StepKind) {
        if self.keeps {
            self.more.push(Step { began, ended, kind });
        }
    }

    /// Notes an attempt that was let through.
    #[inline]
    pub fn attempt(&mut self, began: Reading, ended: Reading, span_id: u64, attempt: Tried<'_>) {
        let Tried { number, verdict, error, transition } = attempt;
        if !self.keeps {
            return;
        }
        let plain = verdict == Verdict::Success && error.is_none() && transition.is_none();
        if plain && number == 1 && self.more.is_empty() {
            self.first = Some(FirstAttempt { began, ended, span_id });
            return;
        }
        let error = error.map(told);
        let kind = StepKind::Attempt { span_id, number, verdict: Some(verdict), error, transition };
        self.more.push(Step { began, ended, kind });
    }

    /// The trace's id.
    pub fn trace_id(&self) -> u128 {
        self.trace.parent.trace_id
    }

    /// The trace's id where it is known now that it is recorded, here or by the caller.
    pub fn followed(&self) -> Option<u128> {
        let CallTrace { parent, is_remote, .. } = &self.trace;
        (self.sampled || (*is_remote && parent.sampled)).then_some(parent.trace_id)
    }

    /// The id of the next attempt's span; zero where it is not recorded.
    pub fn attempt_span(&self) -> u64 {
        if self.sampled { new_span_id() } else { 0 }
    }

    /// What an attempt passes on whose span is `span_id`. Nothing of a trace that began here and that nobody
    /// follows: no part of it would ever be seen.
    pub fn passed_on(&self, span_id: u64) -> Option<PassedOn<'_>> {
        let CallTrace { parent, luggage, is_remote, .. } = &self.trace;
        if span_id == 0 && !is_remote && luggage.is_none() {
            return None;
        }
        let span =
            if span_id == 0 { *parent } else { SpanRef { span_id, sampled: true, ..*parent } };
        let luggage = luggage.as_deref();
        Some(PassedOn {
            span,
            tracestate: luggage.and_then(|it| it.tracestate.as_deref()),
            baggage: luggage.and_then(|it| it.baggage.as_deref()),
        })
    }

    /// The span of a write that is about to be queued, to be stored with it. That it is queued makes it
    /// worth keeping, so that is decided here: the flag tells the replay.
    pub fn queued(&mut self, tracer: &Tracer) -> SpanRef {
        if !self.sampled && self.keeps && tracer.keep() {
            self.sampled = true;
            self.span_id = new_span_id();
        }
        let parent = self.trace.parent;
        if self.sampled {
            return SpanRef { span_id: new_span_id(), sampled: true, ..parent };
        }
        // Where nothing is recorded here, what the caller records is all that there is to link to.
        SpanRef { sampled: parent.sampled && !tracer.is_on(), ..parent }
    }
}

/// An attempt and how it ended.
#[derive(Clone, Copy, Debug)]
pub struct Tried<'a> {
    /// From 1.
    pub number: u32,
    /// What it said about the backend.
    pub verdict: Verdict,
    /// Why it has no result.
    pub error: Option<&'a AttemptError>,
    /// The transition of the breaker that it brought about.
    pub transition: Option<(State, State)>,
}

/// Code and words of an attempt's error, for a step.
pub fn told(error: &AttemptError) -> Box<(Cow<'static, str>, String)> {
    Box::new((error.code.clone(), error.message.clone()))
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
        let luggage = Luggage { tracestate: None, baggage: Some("a=b".into()) };
        let loaded = CallTrace { luggage: Some(Box::new(luggage)), ..CallTrace::new("/call") };
        let loaded = tracer.begin(loaded, clock.read());
        assert_eq!(loaded.passed_on(0).unwrap().baggage, Some("a=b"));
    }
}
