//! What the core runs on: its clocks, the threads that may block, the stores. Decisions are made above it, so that a
//! [simulation](crate::simulation) runs the same actors on another ground.
//!
//! | | the machine | a simulation |
//! |---|---|---|
//! | clocks | the machine's | tokio's paused one; a wall clock that it sets |
//! | work that may block | tokio's threads for it | a task, after a time that chance decides |
//! | stores | sled, with a committing thread each | in memory, with a committing task each |
//! | files of caches, journal of events | in the state directory | none |
//! | cron jobs | tokio-cron-scheduler | none: no guarantee rests on them |
//!
//! Chance is `fastrand`'s generator of the thread, on both.

use std::{fmt, sync::Arc, time::Duration};

use fusebox_state::{
    Target,
    store::{CallStore, Finding, FoundCall, OpenError, Opened, Store, StoreSettings},
};
use tokio::task::JoinHandle;

use crate::clock::Clock;

/// The longest that work takes in a simulation that may block, in milliseconds.
const WORK_MAX: u64 = 3;

/// A store that was opened, whichever it is; see [`Opened`].
pub(crate) struct OpenedStore {
    pub(crate) store: Arc<dyn CallStore>,
    pub(crate) calls: Vec<FoundCall>,
    pub(crate) last_seq: u64,
    pub(crate) findings: Vec<Finding>,
    pub(crate) previous_target: Option<Target>,
}

impl From<Opened> for OpenedStore {
    fn from(opened: Opened) -> Self {
        let Opened { store, calls, last_seq, findings, previous_target } = opened;
        Self { store: Arc::new(store), calls, last_seq, findings, previous_target }
    }
}

/// Opens the stores of a simulation.
pub(crate) trait OpensStores: Send + Sync {
    /// Opens the store of the backend of that name.
    ///
    /// # Errors
    /// The store's own.
    fn open(&self, backend: &str, settings: StoreSettings) -> Result<OpenedStore, OpenError>;
}

/// See the [module](self). Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) clock: Clock,
    simulated: Option<Arc<dyn OpensStores>>,
}

impl fmt::Debug for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_simulated = self.simulated.is_some();
        f.debug_struct("Ground").field("is_simulated", &is_simulated).finish_non_exhaustive()
    }
}

impl Ground {
    /// The machine, by this clock.
    pub(crate) fn machine(clock: Clock) -> Self {
        Self { clock, simulated: None }
    }

    /// A simulation with these stores.
    pub(crate) fn simulated(clock: Clock, stores: Arc<dyn OpensStores>) -> Self {
        Self { clock, simulated: Some(stores) }
    }

    /// Whether there are files and cron jobs.
    pub(crate) fn is_machine(&self) -> bool {
        self.simulated.is_none()
    }

    /// Does `work`, which may block, beside the runtime's tasks. It goes on even if nobody waits for it; if it
    /// panics, whoever waits learns that.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        if self.is_machine() {
            return tokio::task::spawn_blocking(work);
        }
        let takes = Duration::from_millis(fastrand::u64(..=WORK_MAX));
        tokio::spawn(async move {
            tokio::time::sleep(takes).await;
            work()
        })
    }

    /// Opens the store of a backend. May block.
    ///
    /// # Errors
    /// The store's own.
    pub(crate) fn open_store(
        &self,
        backend: &str,
        settings: StoreSettings,
    ) -> Result<OpenedStore, OpenError> {
        match &self.simulated {
            None => Store::open(settings).map(OpenedStore::from),
            Some(stores) => stores.open(backend, settings),
        }
    }
}
