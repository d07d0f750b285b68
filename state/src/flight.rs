//! Live writes under way, lane by lane: what must be known before one of them is sent again.
//!
//! A live write whose outcome is unknown may have been applied. Were it sent again after another write
//! to its lane was acknowledged, the older value would come back over the newer one: `1`, `2`, `1`. So:
//!
//! 1. a live write takes a [`Flight`] *before* it looks whether its lanes are occupied;
//! 2. when its outcome becomes unknown it occupies its lanes (nothing new passes it) and only then
//!    declares itself [in doubt](Flight::doubt);
//! 3. each time before it is sent again, or queued, it looks, and goes on only if it is then [alone](Standing::Alone):
//!    nothing else is in flight on its lanes, and nothing was acknowledged there since it began. If something was, it
//!    is [overtaken](Standing::Overtaken), and its caller must learn that the outcome is unknown.
//!
//! Either a newer write sees the lane occupied, or the older one sees it in flight: each does its own
//! step first and then looks, under the lock of the lane's shard.
//!
//! Lanes are counted exactly. A write over all lanes counts as one in each, and sees those of every lane.
//! Replay and the queue acknowledge here too.
//!
//! **Left on the wire.** A caller may leave before its write has ended: its deadline has passed, or it has hung up.
//! What it sent may still be applied, and later than a newer write that takes another connection. So a write that is
//! left [bars](Flights::is_barred) its lanes until it is answered or its connection is gone: until its [`Leftover`] is
//! dropped. No live write to barred lanes begins, and replay sends nothing there.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use crate::units::{LaneId, Lanes};

const SHARDS: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// Writes whose outcome is still awaited.
    in_flight: u32,
    /// Writes whose outcome is unknown and that may be sent again.
    in_doubt: u32,
    /// Writes on the wire that nobody waits for.
    left: u32,
    /// Writes acknowledged while anybody was here to remember it.
    acknowledged: u64,
}

impl Lane {
    fn is_empty(self) -> bool {
        self.in_flight == 0 && self.in_doubt == 0 && self.left == 0
    }
}

/// The live writes of a backend.
#[derive(Debug, Default)]
pub struct Flights {
    shards: [Mutex<HashMap<LaneId, Lane>>; SHARDS],
    /// Writes over all lanes.
    all: Mutex<Lane>,
    /// Every write, whatever its lanes: what a write over all lanes must look at.
    every: Mutex<Lane>,
    /// How many writes are left on the wire: none, as a rule, and then no lane is looked at.
    left: AtomicUsize,
}

/// The relation of a write in doubt to the others of its lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may be sent again.
    Alone,
    /// Others are in flight: ask again when they have ended.
    Others,
    /// Another was acknowledged since it began: it must not be sent again.
    Overtaken,
}

/// A write on the wire that nobody waits for. Dropped when it can no longer be applied, or has been.
#[derive(Debug)]
pub struct Leftover {
    flights: Arc<Flights>,
    lanes: Lanes,
}

/// A live write under way; ends when dropped.
#[derive(Debug)]
pub struct Flight {
    flights: Arc<Flights>,
    lanes: Lanes,
    /// Acknowledged writes in its lanes when it began.
    seen: u64,
    in_doubt: bool,
}

impl Flights {
    /// A live write to `lanes` begins.
    pub fn begin(self: &Arc<Self>, lanes: &Lanes) -> Flight {
        self.change(lanes, |lane| lane.in_flight += 1);
        Flight {
            flights: Arc::clone(self),
            lanes: lanes.clone(),
            seen: self.sum(lanes).acknowledged,
            in_doubt: false,
        }
    }

    /// The backend acknowledged a write to `lanes` that took no flight, because what occupies its lanes is itself: one
    /// of replay's.
    pub fn acknowledge(&self, lanes: &Lanes) {
        self.every.lock().acknowledged += 1;
        if lanes.is_all() {
            self.all.lock().acknowledged += 1;
        }
        for id in lanes.as_slice() {
            // Without a flight there nobody asks.
            if let Some(shard) = self.shard(*id)
                && let Some(lane) = shard.lock().get_mut(id)
            {
                lane.acknowledged += 1;
            }
        }
    }

    /// Nobody waits any more for a write to `lanes` that is on the wire. To be called before its caller hears that its
    /// outcome is unknown.
    #[must_use]
    pub fn leave(self: &Arc<Self>, lanes: &Lanes) -> Leftover {
        self.change(lanes, |lane| lane.left += 1);
        self.left.fetch_add(1, Ordering::AcqRel);
        Leftover { flights: Arc::clone(self), lanes: lanes.clone() }
    }

    /// Whether a write that was [left](Self::leave) on the wire may still be applied to one of `lanes`.
    pub fn is_barred(&self, lanes: &Lanes) -> bool {
        self.left.load(Ordering::Acquire) != 0 && self.sum(lanes).left != 0
    }

    /// Whether a write over all lanes was left on the wire: every lane is barred.
    pub fn bars_all(&self) -> bool {
        self.left.load(Ordering::Acquire) != 0 && self.all.lock().left != 0
    }

    fn change(&self, lanes: &Lanes, change: impl Fn(&mut Lane)) {
        change(&mut self.every.lock());
        if lanes.is_all() {
            change(&mut self.all.lock());
        }
        for id in lanes.as_slice() {
            let Some(shard) = self.shard(*id) else { continue };
            let mut shard = shard.lock();
            let lane = shard.entry(*id).or_default();
            change(lane);
            if lane.is_empty() {
                shard.remove(id);
            }
        }
    }

    /// All that is known of the lanes, writes over all lanes included.
    fn sum(&self, lanes: &Lanes) -> Lane {
        if lanes.is_all() {
            return *self.every.lock();
        }
        let mut sum = *self.all.lock();
        for id in lanes.as_slice() {
            let lane = self.shard(*id).and_then(|shard| shard.lock().get(id).copied());
            let lane = lane.unwrap_or_default();
            sum.in_flight += lane.in_flight;
            sum.in_doubt += lane.in_doubt;
            sum.left += lane.left;
            sum.acknowledged += lane.acknowledged;
        }
        sum
    }

    fn shard(&self, lane: LaneId) -> Option<&Mutex<HashMap<LaneId, Lane>>> {
        #[expect(clippy::cast_possible_truncation, reason = "the low bits choose the shard")]
        self.shards.get(lane.0 as usize & (SHARDS - 1))
    }
}

impl Flight {
    /// The backend acknowledged it.
    pub fn acknowledge(self) {
        self.flights.change(&self.lanes, |lane| lane.acknowledged += 1);
    }

    /// Its outcome is unknown, and it may be sent again. Its lanes must be occupied already.
    pub fn doubt(&mut self) {
        if !self.in_doubt {
            self.in_doubt = true;
            self.flights.change(&self.lanes, |lane| {
                lane.in_doubt += 1;
                lane.in_flight = lane.in_flight.saturating_sub(1);
            });
        }
    }

    /// A write that its own caller began before it, to `lanes`, was acknowledged since it began: that is no overtaking.
    /// To be called for each once, after it was acknowledged and before this one looks.
    pub fn follows(&mut self, lanes: &Lanes) {
        let shared = match (&self.lanes, lanes) {
            (Lanes::All, _) | (_, Lanes::All) => 1,
            (own, lanes) => {
                own.as_slice().iter().filter(|lane| lanes.as_slice().contains(lane)).count()
            }
        };
        self.seen += shared as u64;
    }

    /// Whether it may be sent again now. Only of meaning in doubt.
    pub fn standing(&self) -> Standing {
        let sum = self.flights.sum(&self.lanes);
        if sum.acknowledged > self.seen {
            Standing::Overtaken
        } else if sum.in_flight > 0 {
            Standing::Others
        } else {
            Standing::Alone
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let in_doubt = self.in_doubt;
        self.flights.change(&self.lanes, |lane| {
            let count = if in_doubt { &mut lane.in_doubt } else { &mut lane.in_flight };
            *count = count.saturating_sub(1);
        });
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        self.flights.change(&self.lanes, |lane| lane.left = lane.left.saturating_sub(1));
        self.flights.left.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(id: u64) -> Lanes {
        Lanes::One(LaneId(id))
    }

    #[test]
    fn a_write_in_doubt_is_overtaken_by_one_acknowledged_since_it_began() {
        let flights = Arc::new(Flights::default());
        let mut older = flights.begin(&lane(1));
        let newer = flights.begin(&lane(1));
        older.doubt();
        assert_eq!(older.standing(), Standing::Others);
        newer.acknowledge();
        assert_eq!(older.standing(), Standing::Overtaken);
    }

    #[test]
    fn what_its_own_caller_began_before_it_does_not_overtake_it() {
        let flights = Arc::new(Flights::default());
        let (mut first, mut second) = (flights.begin(&lane(1)), flights.begin(&lane(1)));
        let other = flights.begin(&lane(1));
        first.doubt();
        second.doubt();
        first.acknowledge();
        assert_eq!(second.standing(), Standing::Overtaken);
        second.follows(&lane(1));
        second.follows(&lane(2));
        assert_eq!(second.standing(), Standing::Others);
        other.acknowledge();
        assert_eq!(second.standing(), Standing::Overtaken);
    }

    #[test]
    fn what_replay_sent_overtakes_those_of_its_lanes() {
        for (lanes, overtaken) in [(lane(1), true), (lane(2), false), (Lanes::All, true)] {
            let flights = Arc::new(Flights::default());
            let (mut one, mut all) = (flights.begin(&lane(1)), flights.begin(&Lanes::All));
            flights.acknowledge(&lanes);
            one.doubt();
            all.doubt();
            let expected = if overtaken { Standing::Overtaken } else { Standing::Alone };
            assert_eq!((one.standing(), all.standing()), (expected, Standing::Overtaken));
            let mut later = flights.begin(&lane(2));
            later.doubt();
            assert_eq!(later.standing(), Standing::Alone);
        }
        let flights = Arc::new(Flights::default());
        flights.acknowledge(&lane(1));
        assert!(flights.shards.iter().all(|shard| shard.lock().is_empty()), "nothing is kept");
    }

    #[test]
    fn it_stands_alone_once_the_others_have_failed() {
        let flights = Arc::new(Flights::default());
        let (mut older, newer) = (flights.begin(&lane(1)), flights.begin(&lane(1)));
        let mut elsewhere = flights.begin(&lane(2));
        older.doubt();
        drop(newer);
        assert_eq!(older.standing(), Standing::Alone);
        elsewhere.doubt();
        assert_eq!(elsewhere.standing(), Standing::Alone);
    }

    #[test]
    fn what_was_acknowledged_before_it_began_does_not_matter() {
        let flights = Arc::new(Flights::default());
        let watcher = flights.begin(&lane(1));
        flights.begin(&lane(1)).acknowledge();
        let mut later = flights.begin(&lane(1));
        later.doubt();
        drop(watcher);
        assert_eq!(later.standing(), Standing::Alone);
    }

    #[test]
    fn two_in_doubt_do_not_wait_for_each_other() {
        let flights = Arc::new(Flights::default());
        let (mut one, mut other) = (flights.begin(&lane(1)), flights.begin(&lane(1)));
        one.doubt();
        other.doubt();
        assert_eq!((one.standing(), other.standing()), (Standing::Alone, Standing::Alone));
        one.acknowledge();
        assert_eq!(other.standing(), Standing::Overtaken);
    }

    #[test]
    fn a_write_over_all_lanes_counts_in_each() {
        let flights = Arc::new(Flights::default());
        let mut one = flights.begin(&lane(1));
        let barrier = flights.begin(&Lanes::All);
        one.doubt();
        assert_eq!(one.standing(), Standing::Others);
        barrier.acknowledge();
        assert_eq!(one.standing(), Standing::Overtaken);
    }

    #[test]
    fn a_write_over_all_lanes_sees_those_of_one() {
        let flights = Arc::new(Flights::default());
        let mut barrier = flights.begin(&Lanes::All);
        let one = flights.begin(&lane(1));
        barrier.doubt();
        assert_eq!(barrier.standing(), Standing::Others);
        one.acknowledge();
        assert_eq!(barrier.standing(), Standing::Overtaken);
    }

    #[test]
    fn what_is_left_on_the_wire_bars_its_lanes_until_it_has_ended() {
        let flights = Arc::new(Flights::default());
        let (one, other) =
            (flights.leave(&lane(1)), flights.leave(&Lanes::new([LaneId(1), LaneId(2)])));
        let barred = || [1, 2, 3].map(|id| flights.is_barred(&lane(id)));
        assert_eq!(barred(), [true, true, false]);
        assert!(flights.is_barred(&Lanes::All));
        drop(other);
        assert_eq!(barred(), [true, false, false]);
        let barrier = flights.leave(&Lanes::All);
        drop(one);
        assert_eq!(barred(), [true, true, true]);
        assert!(flights.bars_all());
        drop(barrier);
        assert!(!flights.bars_all());
        assert_eq!(barred(), [false, false, false]);
        assert!(!flights.is_barred(&Lanes::All));
        assert!(flights.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn nothing_is_kept_of_lanes_that_are_left() {
        let flights = Arc::new(Flights::default());
        for id in 0..1_000 {
            let mut flight = flights.begin(&Lanes::new([LaneId(id), LaneId(id + 1)]));
            if id % 2 == 0 {
                flight.doubt();
            }
            if id % 3 == 0 {
                flight.acknowledge();
            }
        }
        assert!(flights.shards.iter().all(|shard| shard.lock().is_empty()));
    }
}
