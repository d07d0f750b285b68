//! The declarations of all metrics: names, help, labels, buckets.

use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{doors::DoorFamilies, exemplar::TracedHistogram};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OneBackend {
    pub(super) backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallLabels {
    pub(super) backend: String,
    pub(super) class: &'static str,
    pub(super) source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ClassLabels {
    pub(super) backend: String,
    pub(super) class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    pub(super) backend: String,
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabels {
    pub(super) backend: String,
    pub(super) result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EventLabels {
    pub(super) backend: String,
    pub(super) event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabels {
    pub(super) backend: String,
    pub(super) state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AlertLabels {
    pub(super) backend: String,
    pub(super) alert: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabels {
    pub(super) backend: String,
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SystemLabels {
    pub(super) state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SpanLabels {
    pub(super) result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TransitionLabels {
    pub(super) backend: String,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ImpairedLabels {
    pub(super) backend: String,
    pub(super) impaired_by: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CauseLabels {
    pub(super) cause: &'static str,
}

/// A gauge of anything that is not a whole number.
pub(super) type FloatGauge = Gauge<f64, AtomicU64>;

/// Upper bounds of the buckets for what takes from a tenth of a millisecond to a minute.
const DURATIONS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];

/// Upper bounds of the buckets for how long calls wait in a queue: a tenth of a second to a week.
const WAITS: [f64; 13] = [
    0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0, 604_800.0,
];

/// Every metric, by its labels.
pub(super) struct Families {
    /// Locked while a page is made: of two scrapes at once neither sees the other's half-set gauges.
    pub(super) registry: Mutex<Registry>,
    pub(super) calls: Family<CallLabels, Counter>,
    pub(super) attempts: Family<OutcomeLabels, Counter>,
    pub(super) slow: Family<OneBackend, Counter>,
    pub(super) retries: Family<ResultLabels, Counter>,
    pub(super) cache_requests: Family<ResultLabels, Counter>,
    pub(super) queue_operations: Family<EventLabels, Counter>,
    pub(super) recoveries: Family<ResultLabels, Counter>,
    pub(super) transitions: Family<TransitionLabels, Counter>,
    pub(super) restarts: Family<OneBackend, Counter>,
    pub(super) attempt_seconds: Family<OneBackend, TracedHistogram>,
    pub(super) ack_seconds: Family<OneBackend, TracedHistogram>,
    pub(super) replay_seconds: Family<OneBackend, Histogram>,
    pub(super) wait_seconds: Family<OneBackend, Histogram>,
    pub(super) breaker_state: Family<StateLabels, Gauge>,
    pub(super) breaker_forced: Family<OneBackend, Gauge>,
    pub(super) breaker_slow: Family<OneBackend, FloatGauge>,
    pub(super) offline: Family<OneBackend, Gauge>,
    pub(super) opening: Family<OneBackend, Gauge>,
    pub(super) fallbacks_active: Family<OneBackend, Gauge>,
    pub(super) in_flight: Family<OneBackend, Gauge>,
    pub(super) in_flight_limit: Family<OneBackend, Gauge>,
    pub(super) would_be: Family<ClassLabels, Gauge>,
    pub(super) cache_entries: Family<OneBackend, Gauge>,
    pub(super) cache_bytes: Family<OneBackend, Gauge>,
    pub(super) cache_file_bytes: Family<OneBackend, Gauge>,
    pub(super) queue_calls: Family<StateLabels, Gauge>,
    pub(super) queue_bytes: Family<OneBackend, Gauge>,
    pub(super) queue_limit_calls: Family<OneBackend, Gauge>,
    pub(super) queue_limit_bytes: Family<OneBackend, Gauge>,
    pub(super) queue_fill: Family<OneBackend, FloatGauge>,
    pub(super) queue_oldest: Family<OneBackend, FloatGauge>,
    pub(super) replay_paused: Family<OneBackend, Gauge>,
    pub(super) store_refusing: Family<OneBackend, Gauge>,
    pub(super) store_bytes: Family<OneBackend, Gauge>,
    pub(super) alerts: Family<AlertLabels, Gauge>,
    pub(super) chaos_active: Family<OneBackend, Gauge>,
    pub(super) chaos_injected: Family<KindLabels, Counter>,
    pub(super) predictions: Family<ResultLabels, Counter>,
    pub(super) prediction_state: Family<StateLabels, Gauge>,
    pub(super) system_state: Family<SystemLabels, Gauge>,
    pub(super) impaired: Family<ImpairedLabels, Gauge>,
    pub(super) host_causes: Family<CauseLabels, Gauge>,
    pub(super) spans: Family<SpanLabels, Counter>,
    pub(super) config_changes: Family<ResultLabels, Counter>,
    pub(super) config_overrides: Family<OneBackend, Gauge>,
    pub(super) config_left_out: Gauge,
    pub(super) doors: DoorFamilies,
    pub(super) operational: FloatGauge,
    pub(super) started: FloatGauge,
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

impl Families {
    pub(super) fn new() -> Self {
        Self {
            registry: Mutex::default(),
            calls: Family::default(),
            attempts: Family::default(),
            slow: Family::default(),
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
            breaker_slow: Family::default(),
            offline: Family::default(),
            opening: Family::default(),
            fallbacks_active: Family::default(),
            in_flight: Family::default(),
            in_flight_limit: Family::default(),
            would_be: Family::default(),
            cache_entries: Family::default(),
            cache_bytes: Family::default(),
            cache_file_bytes: Family::default(),
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
            chaos_active: Family::default(),
            chaos_injected: Family::default(),
            predictions: Family::default(),
            prediction_state: Family::default(),
            system_state: Family::default(),
            impaired: Family::default(),
            host_causes: Family::default(),
            spans: Family::default(),
            config_changes: Family::default(),
            config_overrides: Family::default(),
            config_left_out: Gauge::default(),
            doors: DoorFamilies::default(),
            operational: FloatGauge::default(),
            started: FloatGauge::default(),
        }
    }

    /// Declares the metrics of the system and of calls. prometheus-client appends `_total` to counters.
    pub(super) fn declare_calls(&self, to: &mut Registry) {
        to.register("system_state", "1 for the state of the system", self.system_state.clone());
        to.register("spans", "Spans of traces by what happened to them", self.spans.clone());
        let help = "Changes of settings at run time; without the label backend, of settings of the whole daemon";
        to.register("config_changes", help, self.config_changes.clone());
        let help =
            "Settings that are changed at run time; without the label backend, of the whole daemon";
        to.register("config_overrides", help, self.config_overrides.clone());
        let help = "Saved changes of settings that are not in effect";
        to.register("config_left_out", help, self.config_left_out.clone());
        let help = "Operational backends among the enabled ones, in percent";
        to.register("operational_percent", help, self.operational.clone());
        to.register("calls", "Calls by class and source of the answer", self.calls.clone());
        let help = "Attempts on the wire by outcome, and those rejected before it";
        to.register("attempts", help, self.attempts.clone());
        let help = "Time from sending an attempt, live or of replay, to its outcome";
        to.register("attempt_duration_seconds", help, self.attempt_seconds.clone());
        let help = "Attempts of callers that took longer than breaker.slow_call_duration";
        to.register("slow_attempts", help, self.slow.clone());
        let help = "Attempts on the wire at this moment";
        to.register("attempts_in_flight", help, self.in_flight.clone());
        let help = "The most attempts on the wire at once";
        to.register("attempts_in_flight_limit", help, self.in_flight_limit.clone());
        let help = "What an adaptive limit would be, 0 while that is not known; it limits nothing";
        to.register("attempts_in_flight_limit_would_be", help, self.would_be.clone());
        let help = "Retries made, and those that the budget suppressed";
        to.register("retries", help, self.retries.clone());
        let help = "Look-ups in the fallback cache by result";
        to.register("cache_requests", help, self.cache_requests.clone());
        to.register("cache_entries", "Entries of the fallback cache", self.cache_entries.clone());
        let help = "Bytes of the fallback cache in memory";
        to.register("cache_bytes", help, self.cache_bytes.clone());
        let help = "Bytes of the fallback cache in files";
        to.register("cache_file_bytes", help, self.cache_file_bytes.clone());
        let help = "1 while fallbacks answer: the breaker is not closed, or the backend is offline";
        to.register("fallbacks_active", help, self.fallbacks_active.clone());
    }

    /// Declares the metrics of breakers and actors.
    pub(super) fn declare_breakers(&self, to: &mut Registry) {
        let help = "1 for the breaker's effective state";
        to.register("breaker_state", help, self.breaker_state.clone());
        let help = "1 while an operator forces the breaker open or closed";
        to.register("breaker_forced", help, self.breaker_forced.clone());
        let help =
            "Share of the calls in the breaker's window that were slow, 0 if there were none";
        to.register("breaker_slow_call_ratio", help, self.breaker_slow.clone());
        let help = "Changes of the breaker's state by reason";
        to.register("breaker_transitions", help, self.transitions.clone());
        let help = "1 while the backend is offline, because an operator took it offline or must decide first";
        to.register("backend_offline", help, self.offline.clone());
        let help = "1 while the backend takes no calls because its large queue is being opened after a start";
        to.register("backend_opening", help, self.opening.clone());
        let help = "1 while the backend is down because of a root cause; of several, only the first is shown";
        to.register("backend_impaired", help, self.impaired.clone());
        let help = "1 while a part of this host is the likely cause of what is down";
        to.register("host_cause", help, self.host_causes.clone());
        let help = "Recovery attempts by result";
        to.register("recovery_attempts", help, self.recoveries.clone());
        let help = "Restarts of the backend's actor after a panic";
        to.register("actor_restarts", help, self.restarts.clone());
        let help = "1 while an operator must act, by the reason";
        to.register("alert_active", help, self.alerts.clone());
        let help = "1 while faults on purpose are set for the backend";
        to.register("chaos_active", help, self.chaos_active.clone());
        let help = "Attempts that a fault on purpose affected, by kind of fault";
        to.register("chaos_injected", help, self.chaos_injected.clone());
        let help = "1 for the state of the backend's failure prediction";
        to.register("prediction_state", help, self.prediction_state.clone());
        let help = "Alarms and openings of the breaker, by whether the prediction was right";
        to.register("prediction", help, self.predictions.clone());
    }

    /// Declares the metrics of queues, stores and replay.
    pub(super) fn declare_queues(&self, to: &mut Registry) {
        to.register("queue_calls", "Queued calls by state", self.queue_calls.clone());
        to.register("queue_bytes", "Bytes of the calls that wait", self.queue_bytes.clone());
        let help = "The most calls that the queue holds";
        to.register("queue_limit_calls", help, self.queue_limit_calls.clone());
        let help = "The most bytes that the queue holds";
        to.register("queue_limit_bytes", help, self.queue_limit_bytes.clone());
        let help =
            "Share of the queue's limits in use, the larger of calls and bytes; 1 refuses writes";
        to.register("queue_fill_ratio", help, self.queue_fill.clone());
        let help = "Time since the oldest waiting call was accepted, 0 if none waits";
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
