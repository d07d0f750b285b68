//! What a backend shows at a scrape, read from what calls borrow. Nothing here asks an actor, walks a
//! collection or waits for more than a short lock; of the file system one size is asked.

use std::sync::atomic::Ordering;

use fusebox_state::{predict, store::CallStore};
use prometheus_client::metrics::gauge::Gauge;

use crate::{backend_shared::BackendShared, metrics::BREAKER_STATES};

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn flag(gauge: &Gauge, value: bool) {
    gauge.set(i64::from(value));
}

impl BackendShared {
    /// Sets the gauges of this backend.
    pub(crate) fn read_gauges(&self) {
        let gauges = &self.circuit.metrics.gauges;
        let (circuit, breaker) = (&self.circuit, &self.circuit.breaker);
        let (state, holds) = (breaker.state().0, circuit.holds());
        for (gauge, of) in gauges.breaker_state.iter().zip(BREAKER_STATES) {
            flag(gauge, of == state);
        }
        flag(&gauges.breaker_forced, breaker.forced_since().is_some());
        gauges.breaker_slow.set(breaker.snapshot(circuit.clock.now()).counts.slow_rate());
        flag(&gauges.offline, holds.is_offline());
        flag(&gauges.opening, holds.opening);
        flag(&gauges.fallbacks_active, !breaker.is_operational());
        set(&gauges.in_flight, circuit.bulkhead.in_flight().into());
        set(&gauges.in_flight_limit, circuit.bulkhead.max().into());
        let would_be = self.would_be();
        set(&gauges.would_be_read, would_be.read.unwrap_or(0).into());
        set(&gauges.would_be_write, would_be.write.unwrap_or(0).into());
        let predicted = circuit.forecast.state(circuit.clock.now());
        for (gauge, of) in gauges.prediction_state.iter().zip(predict::State::ALL) {
            flag(gauge, of == predicted);
        }
        let restarts = circuit.restarts.load(Ordering::Relaxed).into();
        gauges.restarts.inner().store(restarts, Ordering::Relaxed);
        let cache = self.cache.load();
        let (entries, bytes, ..) = cache.stats();
        set(&gauges.cache_file_bytes, cache.shelf().map_or(0, |shelf| shelf.used()));
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
        let active = self.queue.alert_subjects();
        gauges.chaos_active.set(i64::from(self.circuit.chaos.armed().is_some()));
        for (alert, gauge) in &gauges.alerts {
            flag(gauge, active.contains(alert));
        }
    }
}
