//! Every metric of fusebox, declared in this one place.
//!
//! Counters and histograms are counted where things happen; gauges are read from the actors' views
//! when they are scraped. No label takes a value from a caller.

use std::sync::Arc;

use fusebox_state::{Verdict, breaker::Transition};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{
    call::Source,
    recent::Times,
    view::{BackendView, PercentilesView, ResilienceView},
};

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
struct SystemLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabels {
    backend: String,
    from: &'static str,
    to: &'static str,
    reason: &'static str,
}

/// The metrics of the daemon. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    calls: Family<CallLabels, Counter>,
    attempts: Family<OutcomeLabels, Counter>,
    retries: Family<ResultLabels, Counter>,
    cache_requests: Family<ResultLabels, Counter>,
    queue_operations: Family<EventLabels, Counter>,
    recoveries: Family<ResultLabels, Counter>,
    transitions: Family<TransitionLabels, Counter>,
    attempt_seconds: Family<OneBackend, Histogram>,
    ack_seconds: Family<OneBackend, Histogram>,
    breaker_state: Family<StateLabels, Gauge>,
    fallbacks_active: Family<OneBackend, Gauge>,
    cache_entries: Family<OneBackend, Gauge>,
    queue_calls: Family<StateLabels, Gauge>,
    queue_bytes: Family<OneBackend, Gauge>,
    queue_oldest: Family<OneBackend, Gauge<f64, std::sync::atomic::AtomicU64>>,
    system_state: Family<SystemLabels, Gauge>,
    operational: Gauge<f64, std::sync::atomic::AtomicU64>,
}

fn attempt_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 2.5, 14))
}

impl Default for Metrics {
    fn default() -> Self {
        let inner = Inner {
            registry: Mutex::new(Registry::with_prefix("fusebox")),
            calls: Family::default(),
            attempts: Family::default(),
            retries: Family::default(),
            cache_requests: Family::default(),
            queue_operations: Family::default(),
            recoveries: Family::default(),
            transitions: Family::default(),
            attempt_seconds: Family::new_with_constructor(attempt_histogram),
            ack_seconds: Family::new_with_constructor(attempt_histogram),
            breaker_state: Family::default(),
            fallbacks_active: Family::default(),
            cache_entries: Family::default(),
            queue_calls: Family::default(),
            queue_bytes: Family::default(),
            queue_oldest: Family::default(),
            system_state: Family::default(),
            operational: Gauge::default(),
        };
        inner.declare();
        Self(Arc::new(inner))
    }
}

impl Inner {
    /// Names and help texts. prometheus-client appends `_total` to counters.
    fn declare(&self) {
        let mut to = self.registry.lock();
        to.register("calls", "Calls by class and source of the answer", self.calls.clone());
        to.register("attempts", "Attempts on the wire by outcome", self.attempts.clone());
        to.register("retries", "Retries by result", self.retries.clone());
        to.register(
            "cache_requests",
            "Look-ups in the fallback cache",
            self.cache_requests.clone(),
        );
        to.register(
            "queue_operations",
            "What happened to queued calls",
            self.queue_operations.clone(),
        );
        to.register("recovery_attempts", "Recovery attempts by result", self.recoveries.clone());
        to.register(
            "breaker_transitions",
            "Changes of the breaker's state",
            self.transitions.clone(),
        );
        to.register(
            "attempt_duration_seconds",
            "Time from sending an attempt to its outcome",
            self.attempt_seconds.clone(),
        );
        to.register(
            "durable_ack_seconds",
            "Time from handing a write to the committer to its sync",
            self.ack_seconds.clone(),
        );
        to.register(
            "breaker_state",
            "1 for the breaker's effective state",
            self.breaker_state.clone(),
        );
        to.register("fallbacks_active", "1 while fallbacks answer", self.fallbacks_active.clone());
        to.register("cache_entries", "Entries of the fallback cache", self.cache_entries.clone());
        to.register("queue_calls", "Queued calls by state", self.queue_calls.clone());
        to.register("queue_bytes", "Bytes of queued calls", self.queue_bytes.clone());
        to.register(
            "queue_oldest_age_seconds",
            "Age of the oldest queued call",
            self.queue_oldest.clone(),
        );
        to.register("system_state", "1 for the state of the system", self.system_state.clone());
        to.register(
            "operational_percent",
            "Operational backends among the enabled ones",
            self.operational.clone(),
        );
    }

    fn read_gauges(&self, view: &ResilienceView) {
        for state in ["HEALTHY", "DEGRADED", "CRITICAL", "EMERGENCY"] {
            let holds = i64::from(view.state.as_str() == state);
            self.system_state.get_or_create(&SystemLabels { state }).set(holds);
        }
        self.operational.set(view.operational_percent);
        for (name, backend) in &view.backends {
            self.read_backend(name, backend);
        }
    }

    fn read_backend(&self, name: &str, backend: &BackendView) {
        let one = OneBackend { backend: name.to_owned() };
        let of = |state| StateLabels { backend: name.to_owned(), state };
        for state in ["CLOSED", "OPEN", "HALF_OPEN"] {
            let holds = i64::from(backend.breaker.state == state);
            self.breaker_state.get_or_create(&of(state)).set(holds);
        }
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.fallbacks_active.get_or_create(&one).set(i64::from(!backend.operational));
        self.cache_entries.get_or_create(&one).set(gauge(backend.cache.entries));
        self.queue_calls.get_or_create(&of("pending")).set(gauge(backend.queue.calls));
        self.queue_calls.get_or_create(&of("dead")).set(gauge(backend.queue.dead_letters));
        self.queue_bytes.get_or_create(&one).set(gauge(backend.queue.bytes));
        #[expect(clippy::cast_precision_loss, reason = "an age in milliseconds")]
        let oldest = backend.queue.oldest_age_ms as f64 / 1_000.0;
        self.queue_oldest.get_or_create(&one).set(oldest);
    }
}

impl Metrics {
    /// The page, in the text format of `OpenMetrics`.
    pub fn page(&self, view: &ResilienceView) -> String {
        self.0.read_gauges(view);
        let mut page = String::new();
        // Writing to a string does not fail.
        encode(&mut page, &self.0.registry.lock()).ok();
        page
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
            recovered: result(&self.0.recoveries, "succeeded"),
            relapsed: result(&self.0.recoveries, "failed"),
            attempt_seconds: self
                .0
                .attempt_seconds
                .get_or_create_owned(&OneBackend { backend: backend() }),
            ack_seconds: self.0.ack_seconds.get_or_create_owned(&OneBackend { backend: backend() }),
            transitions: Counter::default(),
            response_times: Mutex::new(None),
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
    /// Calls that the queue refused.
    pub refused: Counter,
    /// Recoveries that closed the breaker.
    pub recovered: Counter,
    /// Recoveries that reopened it.
    pub relapsed: Counter,
    /// Transitions since the start.
    pub transitions: Counter,
    attempt_seconds: Histogram,
    /// Durable acknowledgements.
    pub ack_seconds: Histogram,
    response_times: Mutex<Option<hdrhistogram::Histogram<u64>>>,
    /// The same in buckets, for the recent ones.
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
    pub fn attempt(&self, verdict: Verdict, took: std::time::Duration) {
        match verdict {
            Verdict::Success => self.success.inc(),
            Verdict::Failure => self.failure.inc(),
            Verdict::Neutral => self.neutral.inc(),
        };
        self.attempt_seconds.observe(took.as_secs_f64());
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.times.record(micros);
        let mut times = self.response_times.lock();
        // Three digits from a microsecond to an hour: 23 KB, made when first needed.
        if times.is_none() {
            *times = hdrhistogram::Histogram::new_with_bounds(1, 3_600_000_000, 3).ok();
        }
        if let Some(times) = times.as_mut() {
            times.saturating_record(micros);
        }
    }

    /// Response times since the start, in milliseconds.
    pub fn percentiles(&self) -> PercentilesView {
        let times = self.response_times.lock();
        let Some(times) = times.as_ref() else { return PercentilesView::default() };
        #[expect(clippy::cast_precision_loss, reason = "microseconds up to an hour")]
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1_000.0;
        PercentilesView { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }

    /// Counts a transition.
    pub fn transition(&self, told: &Transition) {
        self.transitions.inc();
        let labels = TransitionLabels {
            backend: self.name.clone(),
            from: told.from.as_str(),
            to: told.to.as_str(),
            reason: told.reason.as_str(),
        };
        self.all.0.transitions.get_or_create(&labels).inc();
    }
}
