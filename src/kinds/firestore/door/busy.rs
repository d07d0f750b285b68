//! Whether a client's connection is in use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::sleep;

use super::core::Core;
use crate::ingress::parking;

/// What a connection's requests have in common.
#[derive(Default)]
pub(super) struct Busy {
    requests: AtomicUsize,
    /// How many there have been.
    count: AtomicU64,
    /// Requests that wait for the backend.
    parked: AtomicUsize,
}

impl Busy {
    /// A request comes.
    pub(super) fn begin(self: &Arc<Self>) -> Working {
        self.requests.fetch_add(1, Relaxed);
        self.count.fetch_add(1, Relaxed);
        Working(Arc::clone(self))
    }

    /// A request waits for the backend: as long as one does, its connection is counted as parked.
    pub(super) fn park(self: &Arc<Self>, core: &Arc<Core>) -> Parked {
        if self.parked.fetch_add(1, Relaxed) == 0 {
            core.counters.parked();
        }
        let counted = core.counters.park();
        Parked { busy: Arc::clone(self), core: Arc::clone(core), _counted: counted }
    }

    /// Resolves once nothing was asked for so long; never if nothing is said of it.
    pub(super) async fn idle(&self, most: Option<Duration>) {
        let Some(most) = most else { return std::future::pending().await };
        loop {
            let before = self.count.load(Relaxed);
            sleep(most).await;
            if self.requests.load(Relaxed) == 0 && self.count.load(Relaxed) == before {
                return;
            }
        }
    }
}

/// A request of the connection is under way.
pub(super) struct Working(Arc<Busy>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

/// A request of the connection waits for the backend.
pub(super) struct Parked {
    busy: Arc<Busy>,
    core: Arc<Core>,
    /// It is counted among those that wait.
    _counted: parking::Parked,
}

impl Drop for Parked {
    fn drop(&mut self) {
        if self.busy.parked.fetch_sub(1, Relaxed) == 1 {
            self.core.counters.not_parked();
        }
    }
}
