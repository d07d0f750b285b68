//! Who waits for a lane, and how they are woken.
//!
//! A lane has few waiters and a queue many lanes, so waiters stand by lane, in a fixed number of places: what happens
//! in one lane does not wake those who wait for another. They are woken when the lane is free, and when it has come to
//! a stop; and look for themselves then.

use std::{sync::atomic::Ordering, time::Duration};

use fusebox_state::{
    LaneId, Lanes,
    queue::{Phase, QueueIndex},
};
use tokio::sync::{Notify, SemaphorePermit};

use super::Queue;

/// The most calls that wait for lanes of one queue at a time.
pub(super) const WAITING_MAX: usize = 1_024;
/// Places; lanes are hashes, so their last bits spread evenly.
const PLACES: u64 = 64;

/// The waiters of a queue.
pub(super) struct Freed {
    places: Vec<Notify>,
    /// Those who wait for all lanes, or for none in particular.
    all: Notify,
}

impl Freed {
    pub(super) fn new() -> Self {
        Self { places: (0..PLACES).map(|_| Notify::new()).collect(), all: Notify::new() }
    }

    /// Where one who waits for `lanes` waits: by the first of them that is occupied.
    pub(super) fn of(&self, lanes: &Lanes, index: &QueueIndex) -> &Notify {
        let occupied = |lane: &&LaneId| index.is_occupied(&Lanes::One(**lane));
        let lane = lanes.as_slice().iter().find(occupied);
        lane.and_then(|lane| self.place(*lane)).unwrap_or(&self.all)
    }

    fn place(&self, lane: LaneId) -> Option<&Notify> {
        self.places.get(usize::try_from(lane.0 % PLACES).unwrap_or_default())
    }

    /// Something left `lanes`: wakes who waits for one of them that is free now.
    pub(super) fn left(&self, lanes: &Lanes, index: &QueueIndex) {
        self.wake(lanes, |lane| !index.is_occupied(&Lanes::One(lane)));
    }

    /// What stands in `lanes` has come to a stop.
    pub(super) fn stopped(&self, lanes: &Lanes) {
        self.wake(lanes, |_| true);
    }

    fn wake(&self, lanes: &Lanes, wanted: impl Fn(LaneId) -> bool) {
        if lanes.is_all() {
            return self.everybody();
        }
        for lane in lanes.as_slice().iter().filter(|lane| wanted(**lane)) {
            if let Some(place) = self.place(*lane) {
                place.notify_waiters();
            }
        }
        self.all.notify_waiters();
    }

    /// Wakes all.
    pub(super) fn everybody(&self) {
        self.places.iter().chain([&self.all]).for_each(Notify::notify_waiters);
    }
}

impl Queue {
    /// Leave to wait for a lane; `None` where as many wait as may.
    pub(crate) fn may_wait(&self) -> Option<SemaphorePermit<'_>> {
        self.waiters.try_acquire().ok()
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

    /// Whether a pause of replay, or what stands in `lanes`, holds up who waits for them.
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
