//! Who waits for a lane, and how they are woken.
//!
//! A lane has few waiters and a queue many lanes, so waiters are grouped by lane, in a fixed number of places: what
//! happens in one lane does not wake those who wait for another. They are woken when the lane is free, and when it has
//! come to a stop; and look for themselves then.

use fusebox_state::{LaneId, Lanes, queue::QueueIndex};
use tokio::sync::Notify;

/// The most calls that wait for lanes of one queue at a time.
pub(super) const WAITING_MAX: u32 = 1_024;
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

    /// The place at which a call waits for `lanes`: that of the first one that is occupied.
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

    /// `lanes` have stopped moving.
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
