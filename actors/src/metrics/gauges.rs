//! The gauges of one backend.

use std::sync::atomic::AtomicU64;

use fusebox_state::{breaker::State, predict};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::families::{AlertLabels, ClassLabels, Families, FloatGauge, OneBackend, StateLabels};
use crate::alert::Alert;

/// The states of a breaker, in the order of its gauges.
pub(crate) const BREAKER_STATES: [State; 3] = [State::Closed, State::Open, State::HalfOpen];

/// The gauges of one backend, resolved once.
pub(crate) struct BackendGauges {
    pub(crate) breaker_state: [Gauge; 3],
    pub(crate) breaker_forced: Gauge,
    pub(crate) breaker_slow: FloatGauge,
    pub(crate) offline: Gauge,
    pub(crate) opening: Gauge,
    pub(crate) fallbacks_active: Gauge,
    pub(crate) in_flight: Gauge,
    pub(crate) in_flight_limit: Gauge,
    pub(crate) would_be_read: Gauge,
    pub(crate) would_be_write: Gauge,
    pub(crate) cache_entries: Gauge,
    pub(crate) cache_bytes: Gauge,
    pub(crate) cache_file_bytes: Gauge,
    pub(crate) queue_pending: Gauge,
    pub(crate) queue_dead: Gauge,
    pub(crate) queue_bytes: Gauge,
    pub(crate) queue_limit_calls: Gauge,
    pub(crate) queue_limit_bytes: Gauge,
    pub(crate) queue_fill: FloatGauge,
    pub(crate) queue_oldest: FloatGauge,
    pub(crate) replay_paused: Gauge,
    pub(crate) store_refusing: Gauge,
    pub(crate) store_bytes: Gauge,
    pub(crate) chaos_active: Gauge,
    pub(crate) prediction_state: [Gauge; predict::State::ALL.len()],
    pub(crate) alerts: [(Alert, Gauge); Alert::ALL.len()],
    pub(crate) restarts: Counter<u64, AtomicU64>,
}

impl BackendGauges {
    pub(super) fn new(all: &Families, name: &str) -> Self {
        let one = OneBackend { backend: name.to_owned() };
        let class = |class| ClassLabels { backend: name.to_owned(), class };
        let state = |state| StateLabels { backend: name.to_owned(), state };
        let alert = |alert: Alert| {
            let labels = AlertLabels { backend: name.to_owned(), alert: alert.as_str() };
            (alert, all.alerts.get_or_create_owned(&labels))
        };
        Self {
            breaker_state: BREAKER_STATES
                .map(|it| all.breaker_state.get_or_create_owned(&state(it.as_str()))),
            breaker_forced: all.breaker_forced.get_or_create_owned(&one),
            breaker_slow: all.breaker_slow.get_or_create_owned(&one),
            offline: all.offline.get_or_create_owned(&one),
            opening: all.opening.get_or_create_owned(&one),
            fallbacks_active: all.fallbacks_active.get_or_create_owned(&one),
            in_flight: all.in_flight.get_or_create_owned(&one),
            in_flight_limit: all.in_flight_limit.get_or_create_owned(&one),
            would_be_read: all.would_be.get_or_create_owned(&class("read")),
            would_be_write: all.would_be.get_or_create_owned(&class("write")),
            cache_entries: all.cache_entries.get_or_create_owned(&one),
            cache_bytes: all.cache_bytes.get_or_create_owned(&one),
            cache_file_bytes: all.cache_file_bytes.get_or_create_owned(&one),
            queue_pending: all.queue_calls.get_or_create_owned(&state("pending")),
            queue_dead: all.queue_calls.get_or_create_owned(&state("dead")),
            queue_bytes: all.queue_bytes.get_or_create_owned(&one),
            queue_limit_calls: all.queue_limit_calls.get_or_create_owned(&one),
            queue_limit_bytes: all.queue_limit_bytes.get_or_create_owned(&one),
            queue_fill: all.queue_fill.get_or_create_owned(&one),
            queue_oldest: all.queue_oldest.get_or_create_owned(&one),
            replay_paused: all.replay_paused.get_or_create_owned(&one),
            store_refusing: all.store_refusing.get_or_create_owned(&one),
            store_bytes: all.store_bytes.get_or_create_owned(&one),
            chaos_active: all.chaos_active.get_or_create_owned(&one),
            prediction_state: predict::State::ALL
                .map(|it| all.prediction_state.get_or_create_owned(&state(it.as_str()))),
            alerts: Alert::ALL.map(alert),
            restarts: all.restarts.get_or_create_owned(&one),
        }
    }
}
