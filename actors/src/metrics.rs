//! Every metric of fusebox, declared in this one place; `docs/prometheus/README.md` has a table of them.
//!
//! Counters and histograms are counted where things happen; gauges are read from what calls borrow when
//! they are scraped (`gauges`). Nothing on the way of a call waits for a scrape: its counters are resolved
//! once, when its backend is made. No label takes a value from a caller, so that the number of series
//! depends on the configuration alone. A trace id is an exemplar, never a label, and there is one per
//! bucket at most.
//!
//! There are no `_created` series: a counter's reset shows in its value, and the start in
//! `process_start_time_seconds`.

use std::{sync::Arc, sync::atomic::AtomicU64, time::Duration};

use fusebox_state::{
    Verdict,
    breaker::{Reason, State, Transition},
    system::SystemState,
};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::{call::Source, clock::Clock, recent::Times, view::TracesView};

mod exemplar;
mod gauges;
mod text;

use exemplar::{TracedHistogram, observe};
use gauges::BackendGauges;

pub use exemplar::Exemplar;
pub use text::Format;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OneBackend {
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    backend: String,
    class: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    backend: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    backend: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    backend: String,
    event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    backend: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AlertLabels {
    backend: String,
    alert: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SystemLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpanLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabels {
    backend: String,
    from: &'static str,
    to: &'static str,
    reason: &'static str,
}

/// A gauge of anything that is not a whole number.
type FloatGauge = Gauge<f64, AtomicU64>;

/// Upper bounds of the buckets for what takes from a tenth of a millisecond to a minute.
const DURATIONS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];

/// Upper bounds of the buckets for how long calls wait in a queue: a tenth of a second to a week.
const WAITS: [f64; 13] = [
    0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0, 604_800.0,
];

/// The transitions that come without an operator. They are counted from 0, so that the first of each is
/// seen as an increase.
const TRANSITIONS: [(State, State, Reason); 8] = [
    (State::Closed, State::Open, Reason::FailureRate),
    (State::Closed, State::Open, Reason::Burst),
    (State::Closed, State::Open, Reason::PingsFailed),
    (State::Open, State::HalfOpen, Reason::RecoveryTimeout),
    (State::Open, State::HalfOpen, Reason::ForcedRecovery),
    (State::HalfOpen, State::Open, Reason::ProbeFailed),
    (State::HalfOpen, State::Open, Reason::ProbeTimeout),
    (State::HalfOpen, State::Closed, Reason::ProbesSucceeded),
];

const SYSTEM_STATES: [SystemState; 4] =
    [SystemState::Healthy, SystemState::Degraded, SystemState::Critical, SystemState::Emergency];

/// The metrics of the daemon. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    /// Locked while a page is made: of two scrapes at once neither sees the other's half-set gauges.
    registry: Mutex<Registry>,
    calls: Family<CallLabels, Counter>,
    attempts: Family<OutcomeLabels, Counter>,
    retries: Family<ResultLabels, Counter>,
    cache_requests: Family<ResultLabels, Counter>,
    queue_operations: Family<EventLabels, Counter>,
    recoveries: Family<ResultLabels, Counter>,
    transitions: Family<TransitionLabels, Counter>,
    restarts: Family<OneBackend, Counter>,
    attempt_seconds: Family<OneBackend, TracedHistogram>,
    ack_seconds: Family<OneBackend, TracedHistogram>,
    replay_seconds: Family<OneBackend, Histogram>,
    wait_seconds: Family<OneBackend, Histogram>,
    breaker_state: Family<StateLabels, Gauge>,
    breaker_forced: Family<OneBackend, Gauge>,
    offline: Family<OneBackend, Gauge>,
    fallbacks_active: Family<OneBackend, Gauge>,
    in_flight: Family<OneBackend, Gauge>,
    in_flight_limit: Family<OneBackend, Gauge>,
    cache_entries: Family<OneBackend, Gauge>,
    cache_bytes: Family<OneBackend, Gauge>,
    queue_calls: Family<StateLabels, Gauge>,
    queue_bytes: Family<OneBackend, Gauge>,
    queue_limit_calls: Family<OneBackend, Gauge>,
    queue_limit_bytes: Family<OneBackend, Gauge>,
    queue_fill: Family<OneBackend, FloatGauge>,
    queue_oldest: Family<OneBackend, FloatGauge>,
    replay_paused: Family<OneBackend, Gauge>,
    store_refusing: Family<OneBackend, Gauge>,
    store_bytes: Family<OneBackend, Gauge>,
    alerts: Family<AlertLabels, Gauge>,
    system_state: Family<SystemLabels, Gauge>,
    spans: Family<SpanLabels, Counter>,
    operational: FloatGauge,
    started: FloatGauge,
}

fn traced_durations() -> TracedHistogram {
    TracedHistogram::new(DURATIONS.into_iter())
}

fn durations() -> Histogram {
    Histogram::new(DURATIONS)
}

fn waits() -> Histogram {
    Histogram::new(WAITS)
}

impl Inner {
    fn new() -> Self {
        Self {
            registry: Mutex::default(),
            calls: Family::default(),
            attempts: Family::default(),
            retries: Family::default(),
            cache_requests: Family::default(),
            queue_operations: Family::default(),
            recoveries: Family::default(),
            transitions: Family::default(),
            restarts: Family::default(),
            attempt_seconds: Family::new_with_constructor(traced_durations),
            ack_seconds: Family::new_with_constructor(traced_durations),
            replay_seconds: Family::new_with_constructor(durations),
            wait_seconds: Family::new_with_constructor(waits),
            breaker_state: Family::default(),
            breaker_forced: Family::default(),
            offline: Family::default(),
            fallbacks_active: Family::default(),
            in_flight: Family::default(),
            in_flight_limit: Family::default(),
            cache_entries: Family::default(),
            cache_bytes: Family::default(),
            queue_calls: Family::default(),
            queue_bytes: Family::default(),
            queue_limit_calls: Family::default(),
            queue_limit_bytes: Family::default(),
            queue_fill: Family::default(),
            queue_oldest: Family::default(),
            replay_paused: Family::default(),
            store_refusing: Family::default(),
            store_bytes: Family::default(),
            alerts: Family::default(),
            system_state: Family::default(),
            spans: Family::default(),
            operational: FloatGauge::default(),
            started: FloatGauge::default(),
        }
    }

    /// Declares the metrics of the system and of calls. prometheus-client appends `_total` to counters.
    fn declare_calls(&self, to: &mut Registry) {
        to.register("system_state", "1 for the state of the system", self.system_state.clone());
        to.register("spans", "Spans of traces by what became of them", self.spans.clone());
        let help = "Operational backends among the enabled ones, in percent";
        to.register("operational_percent", help, self.operational.clone());
        to.register("calls", "Calls by class and source of the answer", self.calls.clone());
        let help = "Attempts on the wire by outcome, and those rejected before it";
        to.register("attempts", help, self.attempts.clone());
        let help = "Time from sending an attempt, live or of replay, to its outcome";
        to.register("attempt_duration_seconds", help, self.attempt_seconds.clone());
        let help = "Attempts on the wire at this moment";
        to.register("attempts_in_flight", help, self.in_flight.clone());
        let help = "The most attempts on the wire at once";
        to.register("attempts_in_flight_limit", help, self.in_flight_limit.clone());
        let help = "Retries made, and those that the budget suppressed";
        to.register("retries", help, self.retries.clone());
        let help = "Look-ups in the fallback cache by result";
        to.register("cache_requests", help, self.cache_requests.clone());
        to.register("cache_entries", "Entries of the fallback cache", self.cache_entries.clone());
        to.register("cache_bytes", "Bytes of the fallback cache", self.cache_bytes.clone());
        let help = "1 while fallbacks answer: the breaker is not closed, or the backend is offline";
        to.register("fallbacks_active", help, self.fallbacks_active.clone());
    }

    /// Declares the metrics of breakers and actors.
    fn declare_breakers(&self, to: &mut Registry) {
        let help = "1 for the breaker's effective state";
        to.register("breaker_state", help, self.breaker_state.clone());
        let help = "1 while an operator's order holds the breaker open or closed";
        to.register("breaker_forced", help, self.breaker_forced.clone());
        let help = "Changes of the breaker's state by reason";
        to.register("breaker_transitions", help, self.transitions.clone());
        let help =
            "1 while the backend is offline: by order, or because an operator must decide first";
        to.register("backend_offline", help, self.offline.clone());
        let help = "Recovery attempts by result";
        to.register("recovery_attempts", help, self.recoveries.clone());
        let help = "Restarts of the backend's actor after a panic";
        to.register("actor_restarts", help, self.restarts.clone());
        let help = "1 while an operator must act, by what it is about";
        to.register("alert_active", help, self.alerts.clone());
    }

    /// Declares the metrics of queues, stores and replay.
    fn declare_queues(&self, to: &mut Registry) {
        to.register("queue_calls", "Queued calls by state", self.queue_calls.clone());
        to.register("queue_bytes", "Bytes of the calls that wait", self.queue_bytes.clone());
        let help = "The most calls that the queue holds";
        to.register("queue_limit_calls", help, self.queue_limit_calls.clone());
        let help = "The most bytes that the queue holds";
        to.register("queue_limit_bytes", help, self.queue_limit_bytes.clone());
        let help =
            "Share of the queue's limits in use, the larger of calls and bytes; 1 refuses writes";
        to.register("queue_fill_ratio", help, self.queue_fill.clone());
        let help = "Time since the oldest waiting call was accepted, 0 where none waits";
        to.register("queue_oldest_age_seconds", help, self.queue_oldest.clone());
        let help = "What happened to queued calls";
        to.register("queue_operations", help, self.queue_operations.clone());
        let help = "How long a replayed call had waited since it was accepted";
        to.register("queue_wait_seconds", help, self.wait_seconds.clone());
        let help = "Time from handing a write to the committing thread to its sync";
        to.register("durable_ack_seconds", help, self.ack_seconds.clone());
        let help = "Time of one replayed batch, of one call or more: reading, sending, its outcome";
        to.register("replay_batch_seconds", help, self.replay_seconds.clone());
        let help = "1 while calls wait and none may be sent";
        to.register("replay_paused", help, self.replay_paused.clone());
        let help = "1 while the backend's store takes no writes";
        to.register("store_refusing", help, self.store_refusing.clone());
        let help = "Bytes of the backend's store on the disk";
        to.register("store_disk_bytes", help, self.store_bytes.clone());
    }
}

impl Metrics {
    /// All metrics, at 0.
    pub fn new(clock: Clock) -> Self {
        let inner = Inner::new();
        let mut registry = Registry::default();
        let help = "Start of the process, in seconds since 1970";
        registry.register("process_start_time_seconds", help, inner.started.clone());
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of this millennium")]
        inner.started.set(clock.unix().get() as f64 / 1_000.0);
        let to = registry.sub_registry_with_prefix("fusebox");
        to.register("build", "The version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        inner.declare_calls(to);
        inner.declare_breakers(to);
        inner.declare_queues(to);
        *inner.registry.lock() = registry;
        Self(Arc::new(inner))
    }

    /// The page. `read` sets the gauges.
    pub(crate) fn page(&self, format: Format, read: impl FnOnce(&Self)) -> String {
        let registry = self.0.registry.lock();
        read(self);
        let mut page = String::new();
        // Writing to a string does not fail.
        encode(&mut page, &registry).ok();
        drop(registry);
        match format {
            Format::OpenMetrics => page,
            Format::Prometheus => text::to_prometheus(&page),
        }
    }

    /// Counts what became of spans.
    pub(crate) fn set_spans(&self, counts: TracesView) {
        let TracesView { exported, dropped, failed } = counts;
        for (result, count) in [("exported", exported), ("dropped", dropped), ("failed", failed)] {
            let counter = self.0.spans.get_or_create(&SpanLabels { result });
            counter.inner().store(count, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Sets the gauges of the system.
    pub(crate) fn set_system(&self, now: SystemState, operational_percent: f64) {
        for state in SYSTEM_STATES {
            let labels = SystemLabels { state: state.as_str() };
            self.0.system_state.get_or_create(&labels).set(i64::from(state == now));
        }
        self.0.operational.set(operational_percent);
    }

    /// The counters of one backend, resolved once.
    pub fn backend(&self, name: &str) -> BackendMetrics {
        let backend = || name.to_owned();
        let calls = |class, source| {
            self.0.calls.get_or_create_owned(&CallLabels { backend: backend(), class, source })
        };
        let by_source = |class| SOURCES.map(|source| calls(class, source));
        let outcome = |outcome| {
            self.0.attempts.get_or_create_owned(&OutcomeLabels { backend: backend(), outcome })
        };
        let result = |family: &Family<ResultLabels, Counter>, result| {
            family.get_or_create_owned(&ResultLabels { backend: backend(), result })
        };
        let queue = |event| {
            self.0.queue_operations.get_or_create_owned(&EventLabels { backend: backend(), event })
        };
        for (from, to, reason) in TRANSITIONS {
            let labels = transition_labels(name, from, to, reason);
            drop(self.0.transitions.get_or_create(&labels));
        }
        let one = OneBackend { backend: backend() };
        BackendMetrics {
            name: name.to_owned(),
            all: self.clone(),
            reads: by_source("read"),
            writes: by_source("write"),
            success: outcome("success"),
            failure: outcome("failure"),
            neutral: outcome("neutral"),
            rejected: outcome("rejected"),
            retried: result(&self.0.retries, "retried"),
            retry_suppressed: result(&self.0.retries, "budget"),
            cache_hit: result(&self.0.cache_requests, "hit"),
            cache_miss: result(&self.0.cache_requests, "miss"),
            enqueued: queue("enqueued"),
            replayed: queue("replayed"),
            dead: queue("dead"),
            refused: queue("refused"),
            requeued: queue("requeued"),
            discarded: queue("discarded"),
            recovered: result(&self.0.recoveries, "succeeded"),
            relapsed: result(&self.0.recoveries, "failed"),
            attempt_seconds: self.0.attempt_seconds.get_or_create_owned(&one),
            ack_seconds: self.0.ack_seconds.get_or_create_owned(&one),
            replay_seconds: self.0.replay_seconds.get_or_create_owned(&one),
            wait_seconds: self.0.wait_seconds.get_or_create_owned(&one),
            gauges: BackendGauges::new(&self.0, name),
            transitions: Counter::default(),
            times: Times::default(),
        }
    }
}

/// Sources of an answer as label values; the last one is for calls without an answer.
pub const SOURCES: [&str; 7] = ["live", "cache", "stale", "queued", "empty", "bypass", "error"];

/// The counters of one backend.
pub struct BackendMetrics {
    name: String,
    all: Metrics,
    reads: [Counter; 7],
    writes: [Counter; 7],
    /// Attempts that succeeded.
    pub success: Counter,
    /// Attempts that failed.
    pub failure: Counter,
    /// Attempts that say nothing of the backend.
    pub neutral: Counter,
    /// Attempts rejected before the wire.
    pub rejected: Counter,
    /// Retries made.
    pub retried: Counter,
    /// Retries that the budget suppressed.
    pub retry_suppressed: Counter,
    /// Look-ups that the cache answered.
    pub cache_hit: Counter,
    /// Look-ups that it did not.
    pub cache_miss: Counter,
    /// Calls made durable.
    pub enqueued: Counter,
    /// Queued calls applied.
    pub replayed: Counter,
    /// Queued calls that became dead letters.
    pub dead: Counter,
    /// Writes that would have been queued, and were refused: the queue is full, sheds, or its store takes
    /// none.
    pub refused: Counter,
    /// Dead letters put back to wait; they count as enqueued too.
    pub requeued: Counter,
    /// Calls and dead letters that an operator discarded.
    pub discarded: Counter,
    /// Recoveries that closed the breaker.
    pub recovered: Counter,
    /// Recoveries that reopened it.
    pub relapsed: Counter,
    /// Transitions since the start.
    pub transitions: Counter,
    attempt_seconds: TracedHistogram,
    ack_seconds: TracedHistogram,
    replay_seconds: Histogram,
    wait_seconds: Histogram,
    gauges: BackendGauges,
    /// Response times, for the views.
    pub(crate) times: Times,
}

impl BackendMetrics {
    /// Counts a call by where its answer came from; `None` is an error.
    pub fn call(&self, write: bool, source: Option<Source>) {
        let counters = if write { &self.writes } else { &self.reads };
        let label = source.map_or("error", Source::as_str);
        for (counter, name) in counters.iter().zip(SOURCES) {
            if name == label {
                counter.inc();
            }
        }
    }

    /// Calls by source, reads and writes together.
    pub fn by_source(&self) -> impl Iterator<Item = (&'static str, u64)> {
        SOURCES
            .into_iter()
            .zip(self.reads.iter().zip(&self.writes))
            .map(|(name, (read, write))| (name, read.get() + write.get()))
    }

    /// Counts an attempt.
    pub fn attempt(&self, verdict: Verdict, took: Duration, exemplar: Option<Exemplar>) {
        match verdict {
            Verdict::Success => self.success.inc(),
            Verdict::Failure => self.failure.inc(),
            Verdict::Neutral => self.neutral.inc(),
        };
        observe(&self.attempt_seconds, took, exemplar);
        self.times.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts a durable acknowledgement.
    pub fn acknowledged(&self, took: Duration, exemplar: Option<Exemplar>) {
        observe(&self.ack_seconds, took, exemplar);
    }

    /// Counts a batch of replay, however it ended.
    pub fn batch_replayed(&self, took: Duration) {
        self.replay_seconds.observe(took.as_secs_f64());
    }

    /// Counts a call that replay brought to its backend `waited` after it was accepted.
    pub fn call_replayed(&self, waited: Duration) {
        self.wait_seconds.observe(waited.as_secs_f64());
    }

    /// Counts a transition.
    pub fn transition(&self, told: &Transition) {
        self.transitions.inc();
        let labels = transition_labels(&self.name, told.from, told.to, told.reason);
        self.all.0.transitions.get_or_create(&labels).inc();
    }
}

fn transition_labels(name: &str, from: State, to: State, reason: Reason) -> TransitionLabels {
    TransitionLabels {
        backend: name.to_owned(),
        from: from.as_str(),
        to: to.as_str(),
        reason: reason.as_str(),
    }
}
