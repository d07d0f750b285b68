//! What the calls of one backend borrow. The actors own it, and it outlives each incarnation of them.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
};

use arc_swap::ArcSwap;
use fusebox_state::{Lanes, cache::Cache, flight::Flights};
use parking_lot::Mutex;

use crate::{
    alert::Alert,
    circuit::Circuit,
    clock::Clock,
    connector::{Connector, SharedConnector},
    passage::Passage,
    queue::Queue,
    system::SystemFlags,
    trace::Tracer,
};

/// The fact under which the breaker's memory is stored.
pub(crate) const BREAKER_FACT: &str = "breaker";

/// What a call needs of its backend; shared by all its calls.
pub struct BackendShared {
    /// Breaker, bulkhead, budget, counters, settings.
    pub circuit: Arc<Circuit>,
    /// The durable queue.
    pub queue: Arc<Queue>,
    /// The live writes under way.
    pub flights: Arc<Flights>,
    /// The fallback cache.
    pub cache: ArcSwap<Cache>,
    /// Holds the entries of the cache that outlast the daemon even if the others do not.
    pub(crate) start_up_file: OnceLock<PathBuf>,
    /// What an earlier run kept of the cache was taken back: until then nothing is written over it.
    pub(crate) kept_is_loaded: AtomicBool,
    /// Held while what is cached is written down.
    pub(crate) saving: Mutex<()>,
    /// Held while the breaker's memory is read and handed to the store.
    pub(crate) remembering: Mutex<()>,
    /// [`Cache::outlasting`] when that file was written.
    pub(crate) start_up_saved: AtomicU64,
    /// The connector.
    pub connector: ArcSwap<SharedConnector>,
    /// The system state.
    pub system: SystemFlags,
    /// Records calls.
    pub tracer: Tracer,
}

impl BackendShared {
    pub(crate) fn clock(&self) -> Clock {
        self.circuit.clock
    }

    /// Whether the backend has another address than that of `connector`.
    pub(crate) fn has_moved(&self, connector: &SharedConnector) -> bool {
        let current = SharedConnector::clone(&self.connector.load());
        !Arc::ptr_eq(&current, connector) && current.target() != connector.target()
    }

    /// Whether queued calls can be replayed at this moment.
    pub fn replay_can_run(&self) -> bool {
        self.circuit.replay_barred().is_none() && !self.system.is_draining()
    }

    /// An empty queue belongs to no address: that calls waited for another one is over.
    pub(crate) fn take_target_where_empty(&self) {
        let holds = self.circuit.holds();
        if !holds.retarget || holds.exchange {
            return;
        }
        let mut connector = None;
        let target = || {
            let current = connector.insert(SharedConnector::clone(&self.connector.load()));
            current.target()
        };
        self.queue.retarget_if_empty(target);
        // None was asked for if something waits.
        let Some(connector) = connector else { return };
        // Another change may have begun, or ended, meanwhile: that one says what is held.
        self.circuit.hold(|holds| holds.retarget &= holds.exchange || self.has_moved(&connector));
        if !self.circuit.holds().retarget {
            self.queue.alert(Alert::Retarget, None);
        }
    }

    /// Writes the breaker's memory; `then` runs once it is synced, or with the reason why it cannot be.
    pub(crate) fn remember(&self, then: impl FnOnce(Result<(), String>) + Send + 'static) {
        // Whoever comes later has read later, and so writes over what is older.
        let _later = self.remembering.lock();
        let store = match self.queue.store() {
            Ok(store) => store,
            Err(error) => return then(Err(error.to_string())),
        };
        let circuit = &self.circuit;
        let mut memory = circuit.breaker.memory(circuit.clock.now(), circuit.clock.unix());
        memory.offline = circuit.holds().operator;
        store.put_fact(
            BREAKER_FACT,
            memory.encode(),
            Box::new(move |result| then(result.map_err(|error| error.to_string()))),
        );
    }

    /// Drops what is cached of `lanes`, before a write to them is sent and when it ends.
    pub(crate) fn invalidate_lanes(&self, lanes: &Lanes) {
        let cache = self.cache.load();
        if lanes.is_all() && self.connector.load().caches_by_lane() {
            cache.invalidate_all();
        }
        for lane in lanes.as_slice() {
            cache.invalidate(*lane);
        }
    }

    /// A write to `lanes` goes on without anybody who waits for it: what is cached of them goes, and what reads
    /// answer until it is over is not kept.
    pub(crate) fn bar_fills(&self, lanes: &Lanes) {
        // First the bar: a read that did not find it began before the lanes are invalidated, which voids its fill.
        let timeout = self.circuit.settings.load().timeout;
        self.cache.load().bar(lanes, self.clock().now().plus(timeout.saturating_mul(2)));
        self.invalidate_lanes(lanes);
    }

    /// Nobody waits any more for a write of `passage` to `lanes`, which may be on the wire yet. To be called before its
    /// caller hears that its outcome is unknown.
    pub(crate) fn leave(&self, connector: &dyn Connector, passage: &Passage, lanes: &Lanes) {
        if connector.bars_what_is_left() {
            passage.leaves(self.flights.leave(lanes));
        }
    }
}
