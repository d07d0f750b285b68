//! The attempts that have begun and have not ended: how many, since when, and which their callers gave up.
//!
//! Each has a word in a table: when it began, and what became of it. To begin is to find a free word, to end is to
//! clear it; neither waits for anybody. Who asks reads the whole table, which takes about a microsecond.
//!
//! ```text
//!   0 = free │ (when it began, in milliseconds of the clock, + 1) << 2 │ COUNTED │ GIVEN_UP
//! ```
//! More attempts than there are words go unseen here; they are bounded and counted by the bulkhead all the same.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fusebox_state::{Moment, Verdict};
use parking_lot::Mutex;

/// Words in the table. A multiple of the usual bulkhead, so that a free one is found at once.
const SLOTS: usize = 1_024;
/// How many words are tried.
const TRIES: usize = 64;
/// Its caller has left.
const GIVEN_UP: u64 = 1;
/// It was counted as a failure for that.
const COUNTED: u64 = 2;
const MARKS: u32 = 2;

/// See the [module](self).
pub(crate) struct Outstandings {
    slots: Box<[AtomicU64]>,
    next: AtomicUsize,
    /// When an attempt was last answered, in milliseconds of the clock, + 1.
    answered: AtomicU64,
    /// How many were counted since that answer, which was the last one then.
    counted: Mutex<(u64, u32)>,
}

/// A word in the table.
#[derive(Debug)]
pub(crate) struct Slot(usize);

/// What is outstanding at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Attempts that have begun and have not ended.
    pub attempts: u32,
    /// When the oldest of them began. One that carries a large call begins again with each of its pieces.
    pub oldest: Option<Moment>,
}

/// Attempts that began after the last answer and were given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenUp {
    /// Those that were not counted before.
    pub new: u32,
    /// All of them, also those that have ended without an answer since, as a connection that broke ends them.
    pub all: u32,
}

impl Outstandings {
    pub(crate) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            counted: Mutex::default(),
        }
    }

    /// An attempt begins. `None` if no word was found for it.
    pub(crate) fn begin(&self, now: Moment) -> Option<Slot> {
        let from = self.next.fetch_add(1, Ordering::Relaxed);
        (0..TRIES).map(|at| from.wrapping_add(at) % SLOTS).find_map(|at| {
            let slot = self.slots.get(at)?;
            let free = slot.load(Ordering::Relaxed) == 0;
            let taken = free
                && slot.compare_exchange(0, word(now), Ordering::AcqRel, Ordering::Relaxed).is_ok();
            taken.then_some(Slot(at))
        })
    }

    /// An attempt has ended with `verdict`. Returns what is to be recorded of it: nothing of a failure that was counted
    /// when its caller had given it up.
    pub(crate) fn end(&self, slot: Option<Slot>, verdict: Verdict, now: Moment) -> Verdict {
        if verdict == Verdict::Success {
            self.answered.fetch_max(now.as_millis() + 1, Ordering::Relaxed);
        }
        let word =
            slot.and_then(|Slot(at)| self.slots.get(at)).map(|slot| slot.swap(0, Ordering::AcqRel));
        match verdict {
            Verdict::Failure if word.is_some_and(|word| word & COUNTED != 0) => Verdict::Neutral,
            verdict => verdict,
        }
    }

    /// Its caller has left.
    pub(crate) fn give_up(&self, Slot(at): &Slot) {
        if let Some(slot) = self.slots.get(*at) {
            slot.fetch_or(GIVEN_UP, Ordering::Relaxed);
        }
    }

    /// It moved on: it is as good as one that begins now.
    pub(crate) fn moved(&self, Slot(at): &Slot, now: Moment) {
        if let Some(slot) = self.slots.get(*at) {
            let marks = slot.load(Ordering::Relaxed) & (GIVEN_UP | COUNTED);
            slot.store(word(now) | marks, Ordering::Relaxed);
        }
    }

    /// Whether an attempt was answered at `then` or later.
    pub(crate) fn answered_since(&self, then: Moment) -> bool {
        self.answered.load(Ordering::Relaxed) > then.as_millis()
    }

    /// What is outstanding now.
    pub(crate) fn look(&self) -> Outstanding {
        let mut found = Outstanding::default();
        for word in
            self.slots.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|word| *word != 0)
        {
            let at = Moment::from_millis((word >> MARKS) - 1);
            found.attempts += 1;
            found.oldest = Some(found.oldest.map_or(at, |oldest| oldest.min(at)));
        }
        found
    }

    /// Marks the given-up attempts that began after the last answer and were not counted yet: each of these is to be
    /// counted as a failure now, and is not when it ends. Returns how many they are, and how many with those that are
    /// marked already.
    pub(crate) fn count_given_up(&self) -> GivenUp {
        let answered = self.answered.load(Ordering::Relaxed);
        let mut counted = GivenUp::default();
        for slot in &self.slots {
            let word = slot.load(Ordering::Relaxed);
            if word & (GIVEN_UP | COUNTED) != GIVEN_UP || word >> MARKS <= answered {
                continue;
            }
            // One that ends in this very moment is recorded by its end.
            let marked =
                slot.compare_exchange(word, word | COUNTED, Ordering::AcqRel, Ordering::Relaxed);
            if marked.is_ok() {
                counted.new += 1;
            }
        }
        let mut since = self.counted.lock();
        let before = if since.0 == answered { since.1 } else { 0 };
        counted.all = before + counted.new;
        *since = (answered, counted.all);
        counted
    }
}

fn word(now: Moment) -> u64 {
    (now.as_millis() + 1) << MARKS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn the_oldest_is_known_and_what_was_given_up_counts_once() {
        let all = Outstandings::new();
        let (first, second) = (all.begin(at(0)).unwrap(), all.begin(at(5)).unwrap());
        all.give_up(&first);
        all.give_up(&second);
        assert_eq!(all.look(), Outstanding { attempts: 2, oldest: Some(at(0)) });
        assert_eq!(all.count_given_up(), GivenUp { new: 2, all: 2 });
        assert_eq!(all.count_given_up(), GivenUp { new: 0, all: 2 });
        assert_eq!(all.end(Some(first), Verdict::Failure, at(9)), Verdict::Neutral);
        assert_eq!(all.count_given_up(), GivenUp { new: 0, all: 2 }, "its connection broke");
        assert_eq!(all.end(Some(second), Verdict::Success, at(9)), Verdict::Success);
        assert_eq!(all.look(), Outstanding::default());
        assert_eq!(all.count_given_up(), GivenUp::default(), "one was answered");
    }

    #[test]
    fn what_began_before_the_last_answer_is_no_sign() {
        let all = Outstandings::new();
        let slow = all.begin(at(1)).unwrap();
        let quick = all.begin(at(2));
        all.give_up(&slow);
        all.end(quick, Verdict::Success, at(3));
        assert_eq!(all.count_given_up(), GivenUp::default());
        all.moved(&slow, at(7));
        assert_eq!((all.look().oldest, all.count_given_up().new), (Some(at(7)), 1));
        assert_eq!(all.end(Some(slow), Verdict::Failure, at(9)), Verdict::Neutral);
    }

    #[test]
    fn a_full_table_turns_nobody_away() {
        let all = Outstandings::new();
        let slots: Vec<_> = (0..SLOTS).filter_map(|_| all.begin(at(1))).collect();
        assert_eq!((slots.len(), all.begin(at(1)).is_none()), (SLOTS, true));
        assert_eq!(all.look().attempts, 1_024);
        assert_eq!(all.end(None, Verdict::Failure, at(2)), Verdict::Failure);
        for slot in slots {
            all.end(Some(slot), Verdict::Neutral, at(2));
        }
        assert!(all.begin(at(3)).is_some());
    }
}
