//! What a backend shows at a scrape, read from what calls borrow. Nothing here asks an actor, walks a
//! collection or waits for more than a short lock; of the file system one size is asked.

use std::sync::atomic::{AtomicU64, Ordering};

use fusebox_state::{breaker::State, store::CallStore};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::{AlertLabels, FloatGauge, Inner, OneBackend, StateLabels};
use crate::{handle::Lent, queue::ALERTS};

const BREAKER_STATES: [State; 3] = [State::Closed, State::Open, State::HalfOpen];

/// The gauges of one backend, resolved once.
pub(super) struct BackendGauges {
    breaker_state: [Gauge; 3],
    breaker_forced: Gauge,
    offline: Gauge,
    fallbacks_active: Gauge,
    in_flight: Gauge,
    in_flight_limit: Gauge,
    cache_entries: Gauge,
    cache_bytes: Gauge,
    queue_pending: Gauge,
    queue_dead: Gauge,
    queue_bytes: Gauge,
    queue_limit_calls: Gauge,
    queue_limit_bytes: Gauge,
    queue_fill: FloatGauge,
    queue_oldest: FloatGauge,
    replay_paused: Gauge,
    store_refusing: Gauge,
    store_bytes: Gauge,
    alerts: [(&'static str, Gauge); ALERTS.len()],
    restarts: Counter<u64, AtomicU64>,
}

impl BackendGauges {
    pub(super) fn new(all: &Inner, name: &str) -> Self {
        let one = OneBackend { backend: name.to_owned() };
        let state = |state| StateLabels { backend: name.to_owned(), state };
        let alert = |alert| {
            let labels = AlertLabels { backend: name.to_owned(), alert };
            (alert, all.alerts.get_or_create_owned(&labels))
        };
        Self {
            breaker_state: BREAKER_STATES
                .map(|it| all.breaker_state.get_or_create_owned(&state(it.as_str()))),
            breaker_forced: all.breaker_forced.get_or_create_owned(&one),
            offline: all.offline.get_or_create_owned(&one),
            fallbacks_active: all.fallbacks_active.get_or_create_owned(&one),
            in_flight: all.in_flight.get_or_create_owned(&one),
            in_flight_limit: all.in_flight_limit.get_or_create_owned(&one),
            cache_entries: all.cache_entries.get_or_create_owned(&one),
            cache_bytes: all.cache_bytes.get_or_create_owned(&one),
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
            alerts: ALERTS.map(alert),
            restarts: all.restarts.get_or_create_owned(&one),
        }
    }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn flag(gauge: &Gauge, value: bool) {
    gauge.set(i64::from(value));
}

impl Lent {
    /// Sets the gauges of this backend.
    pub(crate) fn read_gauges(&self) {
        let gauges = &self.circuit.metrics.gauges;
        let (circuit, breaker) = (&self.circuit, &self.circuit.breaker);
        let (state, offline) = breaker.state();
        for (gauge, of) in gauges.breaker_state.iter().zip(BREAKER_STATES) {
            flag(gauge, of == state);
        }
        flag(&gauges.breaker_forced, breaker.forced_since().is_some());
        flag(&gauges.offline, offline);
        flag(&gauges.fallbacks_active, !breaker.is_operational());
        set(&gauges.in_flight, circuit.bulkhead.in_flight().into());
        set(&gauges.in_flight_limit, circuit.bulkhead.max().into());
        let restarts = circuit.restarts.load(Ordering::Relaxed).into();
        gauges.restarts.inner().store(restarts, Ordering::Relaxed);
        let (entries, bytes, ..) = self.cache.load().stats();
        set(&gauges.cache_entries, entries);
        set(&gauges.cache_bytes, bytes);
        self.read_queue_gauges();
    }

    fn read_queue_gauges(&self) {
        let gauges = &self.circuit.metrics.gauges;
        let now = self.circuit.clock.unix();
        {
            let index = self.queue.index();
            let oldest = index.oldest().map_or(0.0, |oldest| now.since(oldest).as_secs_f64());
            gauges.queue_oldest.set(oldest);
            gauges.queue_fill.set(index.fill_percent() / 100.0);
            set(&gauges.queue_pending, index.len() as u64);
            set(&gauges.queue_dead, index.dead().0 as u64);
            set(&gauges.queue_bytes, index.bytes());
            set(&gauges.queue_limit_calls, index.limits().items.into());
            set(&gauges.queue_limit_bytes, index.limits().bytes);
        }
        flag(&gauges.replay_paused, self.queue.paused().is_some());
        let status = self.queue.store().map(CallStore::status).ok();
        flag(&gauges.store_refusing, status.as_ref().is_none_or(|it| it.refusing.is_some()));
        set(&gauges.store_bytes, status.map_or(0, |status| status.disk_bytes));
        let active = self.queue.alert_names();
        for (name, gauge) in &gauges.alerts {
            flag(gauge, active.contains(name));
        }
    }
}
