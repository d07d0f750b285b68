//! Every metric of fusebox, declared in `families`; `docs/prometheus/README.md` has a table of them.
//!
//! Counters and histograms are counted when things happen; gauges are read from what calls borrow when
//! they are scraped (`scrape`). Nothing on the way of a call waits for a scrape: its counters are resolved
//! once, when its backend is made. No label takes a value from a caller, so that the number of series
//! depends on the configuration alone. A trace id is an exemplar, never a label, and there is one per
//! bucket at most.
//!
//! There are no `_created` series: a counter's reset shows in its value, and the start in
//! `process_start_time_seconds`.

use std::{sync::Arc, time::Duration};

use fusebox_state::{
    Verdict,
    breaker::{Reason, State, Transition},
    chaos,
    dependencies::Shared,
    predict::{Opening, Scored},
    system::SystemState,
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::{
    call::Source,
    clock::Clock,
    times::Times,
    view::{DoorStatus, TracesView},
};

mod doors;
mod exemplar;
mod families;
mod gauges;
mod text;

use exemplar::{TracedHistogram, observe};
use families::{
    CallLabels, CauseLabels, EventLabels, Families, ImpairedLabels, KindLabels, OneBackend,
    OutcomeLabels, ResultLabels, SpanLabels, SystemLabels, TransitionLabels,
};
pub(crate) use gauges::BREAKER_STATES;
use gauges::BackendGauges;

pub use doors::DoorOverhead;
pub use exemplar::Exemplar;
pub use text::Format;

/// The transitions that come without an operator. They are counted from 0, so that the first of each is
/// seen as an increase.
const TRANSITIONS: [(State, State, Reason); 12] = [
    (State::Closed, State::Open, Reason::FailureRate),
    (State::Closed, State::Open, Reason::Burst),
    (State::Closed, State::Open, Reason::PingsFailed),
    (State::Closed, State::Open, Reason::SlowCalls),
    (State::Open, State::HalfOpen, Reason::RecoveryTimeout),
    (State::Open, State::HalfOpen, Reason::ForcedRecovery),
    (State::Open, State::HalfOpen, Reason::PingsAnswered),
    (State::Open, State::HalfOpen, Reason::DependencyReturned),
    (State::HalfOpen, State::Open, Reason::ProbeFailed),
    (State::HalfOpen, State::Open, Reason::ProbeSlow),
    (State::HalfOpen, State::Open, Reason::ProbeTimeout),
    (State::HalfOpen, State::Closed, Reason::ProbesSucceeded),
];

const SYSTEM_STATES: [SystemState; 4] =
    [SystemState::Healthy, SystemState::Degraded, SystemState::Critical, SystemState::Emergency];

/// The metrics of the daemon. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

impl Metrics {
    /// All metrics, at 0.
    pub fn new(clock: Clock) -> Self {
        let inner = Families::new();
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
        inner.doors.declare(to);
        *inner.registry.lock() = registry;
        let metrics = Self(Arc::new(inner));
        metrics.count_config_from_zero("");
        metrics
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

    /// Shows the changes of settings at run time from 0 on, so that the first of each is seen as an increase.
    fn count_config_from_zero(&self, backend: &str) {
        let backend = || backend.to_owned();
        for result in ["applied", "refused", "reverted"] {
            let labels = ResultLabels { backend: backend(), result };
            drop(self.0.config_changes.get_or_create(&labels));
        }
        drop(self.0.config_overrides.get_or_create(&OneBackend { backend: backend() }));
    }

    /// Counts a change of settings at run time.
    pub(crate) fn config_changed(&self, backend: Option<&str>, result: &'static str) {
        let backend = backend.unwrap_or_default().to_owned();
        self.0.config_changes.get_or_create(&ResultLabels { backend, result }).inc();
    }

    /// Sets how many settings are changed at run time.
    pub(crate) fn set_config_overrides(&self, backend: Option<&str>, count: usize) {
        let labels = OneBackend { backend: backend.unwrap_or_default().to_owned() };
        self.0
            .config_overrides
            .get_or_create(&labels)
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets how many saved changes of settings are not in effect.
    pub(crate) fn set_config_left_out(&self, count: usize) {
        self.0.config_left_out.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets which parts of this host fail, and by whom each backend is impaired, if it is.
    pub(crate) fn set_causes<'a>(
        &self,
        fails: impl Fn(Shared) -> bool,
        impaired: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) {
        for shared in Shared::ALL {
            let labels = CauseLabels { cause: shared.as_str() };
            self.0.host_causes.get_or_create(&labels).set(i64::from(fails(shared)));
        }
        self.0.impaired.clear();
        for (backend, by) in impaired {
            let impaired_by = by.unwrap_or_default().to_owned();
            let labels = ImpairedLabels { backend: backend.to_owned(), impaired_by };
            self.0.impaired.get_or_create(&labels).set(i64::from(by.is_some()));
        }
    }

    /// Sets the metrics of wire doors.
    pub(crate) fn set_doors(&self, doors: &[DoorStatus]) {
        for door in doors {
            self.0.doors.set(door);
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
        self.count_config_from_zero(name);
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
            slow: self.0.slow.get_or_create_owned(&one),
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
            hits: result(&self.0.predictions, "hit"),
            false_alarms: result(&self.0.predictions, "false_alarm"),
            missed: result(&self.0.predictions, "missed"),
            unpredictable: result(&self.0.predictions, "unpredictable"),
            recovered: result(&self.0.recoveries, "succeeded"),
            relapsed: result(&self.0.recoveries, "failed"),
            attempt_seconds: self.0.attempt_seconds.get_or_create_owned(&one),
            ack_seconds: self.0.ack_seconds.get_or_create_owned(&one),
            replay_seconds: self.0.replay_seconds.get_or_create_owned(&one),
            wait_seconds: self.0.wait_seconds.get_or_create_owned(&one),
            chaos: chaos::Kind::ALL.map(|kind| {
                let labels = KindLabels { backend: backend(), kind: kind.as_str() };
                self.0.chaos_injected.get_or_create_owned(&labels)
            }),
            gauges: BackendGauges::new(&self.0, name),
            transitions: Counter::default(),
            times: Times::default(),
        }
    }
}

impl BackendMetrics {
    /// Where a door puts its own times.
    pub(crate) fn door_overhead(&self, address: &str) -> DoorOverhead {
        self.all.0.doors.overhead(address)
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
    /// Attempts of callers that were slow.
    pub slow: Counter,
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
    hits: Counter,
    false_alarms: Counter,
    missed: Counter,
    unpredictable: Counter,
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
    /// Attempts that a fault on purpose has struck, in the order of [`chaos::Kind::ALL`].
    pub(crate) chaos: [Counter; chaos::Kind::ALL.len()],
    /// What a scrape sets.
    pub(crate) gauges: BackendGauges,
    /// Response times, for the views.
    pub(crate) times: Times,
}

impl BackendMetrics {
    /// Counts a call by the source of its answer; `None` is an error.
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

    /// Counts what became of alarms and openings.
    pub(crate) fn scored(&self, scored: Scored) {
        if scored.false_alarm {
            self.false_alarms.inc();
        }
        let opening = scored.opening.map(|opening| match opening {
            Opening::Hit(_) => &self.hits,
            Opening::Missed => &self.missed,
            Opening::Unpredictable => &self.unpredictable,
        });
        opening.map(Counter::inc);
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
