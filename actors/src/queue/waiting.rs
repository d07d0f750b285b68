//! Waiting for lanes, and for what is being stored.

use std::{sync::atomic::Ordering, time::Duration};

use fusebox_state::{Lanes, bulkhead::Place, queue::Phase};

use super::Queue;

impl Queue {
    /// Leave to wait for a lane; `None` if as many wait as may, or as many calls of `who`.
    pub(crate) fn may_wait(&self, who: u32) -> Option<Place<'_>> {
        self.waiters.try_enter(who)
    }

    /// Waits until `lanes` are free, for at most `patience`, and no longer than `moves` says that they move; returns
    /// whether they are free.
    pub(crate) async fn wait_free(
        &self,
        lanes: &Lanes,
        patience: Duration,
        moves: impl Fn() -> bool,
    ) -> bool {
        let free = async {
            loop {
                let freed = self.freed.of(lanes, &self.index.lock()).notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if !self.is_occupied(lanes) {
                    return true;
                }
                if !moves() {
                    return false;
                }
                freed.await;
            }
        };
        tokio::time::timeout(patience, free).await.unwrap_or(false)
    }

    /// Whether a pause of replay, or a lane that does not move, holds up the calls that wait for `lanes`.
    pub(crate) fn is_held_up(&self, lanes: &Lanes) -> bool {
        if self.paused.lock().is_some() {
            return true;
        }
        let holds = self.dead_blocks.load(Ordering::Relaxed);
        self.index.lock().is_stuck(lanes, holds)
    }

    /// Tells who waits for `lanes` that they have come to a stop.
    pub(crate) fn lanes_stopped(&self, lanes: &Lanes) {
        self.freed.stopped(lanes);
    }

    /// Waits until `seq` is stored, for at most `patience`; returns whether it is.
    pub(crate) async fn wait_stored(&self, seq: u64, patience: Duration) -> bool {
        let stored = async {
            loop {
                let stored = self.stored.notified();
                tokio::pin!(stored);
                stored.as_mut().enable();
                match self.index.lock().get(seq).map(|entry| entry.phase) {
                    Some(Phase::Committing) => {}
                    phase => return phase.is_some(),
                }
                stored.await;
            }
        };
        tokio::time::timeout(patience, stored).await.unwrap_or(false)
    }
}
