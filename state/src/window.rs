//! A sliding time window of outcomes in self-expiring buckets, cheap enough for every call.
//!
//! The window is cut into 60 buckets of equal width. A bucket's counter carries the number of the
//! interval that it belongs to (its *epoch*), so an idle window empties without a timer: a counter with an
//! older epoch than the reader looks for counts nothing.
//!
//! ```text
//! counter (one atomic word):  epoch : 32 | count : 32
//! window = STRIPES x 64 slots x { successes, failures, slow };  slot = epoch mod 64
//! ```
//!
//! As many threads as there are stripes but one hold stripes of their own, which they give back when they end; all
//! others share the last one. A reader sums the stripes, which only a failure does. A success on a stripe of one's own
//! is a plain load and store: nobody else adds to it, and an atomic addition would cost more than everything else on a
//! call's way through the breaker (4.8 ns against 2 in `benches/breaker.rs`). What may be miscounted is harmless
//! for a rate: an addition that races with the bucket's turn to a new epoch, and successes of the
//! running bucket that a concurrent [`Window::clear`] meant to forget, or [`Window::resize`] to move. Failures are
//! always counted by atomic addition.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::units::{Moment, millis};

/// Buckets that the window is read over.
const BUCKETS: u32 = 60;
/// Slots of the ring: the next power of two, so that a slot is found by a mask.
const SLOTS: usize = 64;
/// Stripes: the last one is shared by all threads that found no other one free.
const STRIPES: usize = 8;
/// The bits of a counter that count.
const COUNT: u64 = u32::MAX as u64;

/// How far back a reading goes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Horizon {
    /// The whole window.
    Whole,
    /// A sixth of it.
    Sixth,
    /// A thirtieth of it.
    Thirtieth,
}

impl Horizon {
    const fn buckets(self) -> u32 {
        match self {
            Self::Whole => BUCKETS,
            Self::Sixth => BUCKETS / 6,
            Self::Thirtieth => BUCKETS / 30,
        }
    }
}

/// What a horizon holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Successes.
    pub successes: u64,
    /// Failures.
    pub failures: u64,
    /// Those of both that were slow.
    pub slow: u64,
}

impl Counts {
    /// Successes and failures together.
    pub fn calls(self) -> u64 {
        self.successes + self.failures
    }

    /// Failures among the calls, 0 if there were none.
    pub fn failure_rate(self) -> f64 {
        self.share(self.failures)
    }

    /// Slow ones among the calls, 0 if there were none.
    pub fn slow_rate(self) -> f64 {
        self.share(self.slow)
    }

    fn share(self, of: u64) -> f64 {
        match self.calls() {
            0 => 0.0,
            #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
            calls => of as f64 / calls as f64,
        }
    }
}

#[derive(Default)]
struct Slot {
    successes: AtomicU64,
    failures: AtomicU64,
    slow: AtomicU64,
}

/// One of a slot's counters.
type What = fn(&Slot) -> &AtomicU64;

/// All of them.
const COUNTERS: [What; 3] = [|slot| &slot.successes, |slot| &slot.failures, |slot| &slot.slow];

/// What a bucket held while the window is given another length.
struct Held {
    /// When the youngest of these outcomes can have been.
    youngest: Moment,
    what: What,
    count: u64,
}

/// One thread's share, on cache lines of its own.
#[repr(align(128))]
struct Stripe([Slot; SLOTS]);

/// The window. Shared by every thread; nothing in it locks.
pub struct Window {
    /// 2^64 / bucket width in milliseconds, rounded up: a division by multiplication, exact for
    /// moments below 2^64 / width.
    reciprocal: AtomicU64,
    /// The bucket width in milliseconds.
    width: AtomicU64,
    stripes: Box<[Stripe; STRIPES]>,
}

impl Window {
    /// A window of `length`, at least 60 ms: shorter ones are taken as that.
    pub fn new(length: Duration) -> Self {
        Self {
            reciprocal: AtomicU64::new(reciprocal(length)),
            width: AtomicU64::new(width(length)),
            stripes: Box::new(std::array::from_fn(|_| {
                Stripe(std::array::from_fn(|_| Slot::default()))
            })),
        }
    }

    /// Gives it another length. What it holds and is within that stays; the outcomes of one bucket are taken for as
    /// young as they can be. Only one thread may do this at a time.
    pub fn resize(&self, length: Duration, now: Moment) {
        let held = self.empty(now);
        self.width.store(width(length), Ordering::Relaxed);
        self.reciprocal.store(reciprocal(length), Ordering::Relaxed);
        let last = self.epoch(now);
        for Held { youngest, what, count } in held {
            let epoch = self.epoch(youngest);
            if last.wrapping_sub(epoch) < BUCKETS
                && let Some(slot) = self.slot(STRIPES - 1, epoch)
            {
                add(what(slot), epoch, count);
            }
        }
    }

    /// Takes out what the window up to `now` holds, and forgets all else.
    fn empty(&self, now: Moment) -> Vec<Held> {
        let (last, width) = (self.epoch(now), self.width.load(Ordering::Relaxed));
        let mut held = Vec::new();
        for slot in self.stripes.iter().flat_map(|stripe| &stripe.0) {
            for what in COUNTERS {
                let word = what(slot).swap(0, Ordering::Relaxed);
                let (age, count) = (last.wrapping_sub((word >> 32) as u32), word & COUNT);
                if age >= BUCKETS || count == 0 {
                    continue;
                }
                let end = (now.as_millis() / width + 1).saturating_sub(age.into()) * width;
                let youngest = Moment::from_millis(end.saturating_sub(1)).min(now);
                held.push(Held { youngest, what, count });
            }
        }
        held
    }

    /// Counts a success at `now`.
    #[inline]
    pub fn success(&self, now: Moment) {
        let (epoch, stripe) = (self.epoch(now), stripe());
        let Some(slot) = self.slot(stripe, epoch) else { return };
        let seen = slot.successes.load(Ordering::Relaxed);
        if stripe < STRIPES - 1 && (seen >> 32) == u64::from(epoch) {
            slot.successes.store(seen + 1, Ordering::Relaxed);
        } else {
            count(&slot.successes, epoch);
        }
    }

    /// Counts a failure at `now`.
    pub fn failure(&self, now: Moment) {
        let epoch = self.epoch(now);
        if let Some(slot) = self.slot(stripe(), epoch) {
            count(&slot.failures, epoch);
        }
    }

    /// Counts that a success or a failure at `now` was slow.
    pub fn slow(&self, now: Moment) {
        let epoch = self.epoch(now);
        if let Some(slot) = self.slot(stripe(), epoch) {
            count(&slot.slow, epoch);
        }
    }

    /// What `horizon` up to `now` holds.
    pub fn counts(&self, horizon: Horizon, now: Moment) -> Counts {
        let last = self.epoch(now);
        let mut counts = Counts::default();
        for stripe in self.stripes.iter() {
            for slot in &stripe.0 {
                counts.successes += read(&slot.successes, last, horizon);
                counts.failures += read(&slot.failures, last, horizon);
                counts.slow += read(&slot.slow, last, horizon);
            }
        }
        counts
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for slot in self.stripes.iter().flat_map(|stripe| &stripe.0) {
            for what in COUNTERS {
                what(slot).store(0, Ordering::Relaxed);
            }
        }
    }

    /// The number of the interval of `now`; epochs start at 1, so that an untouched counter
    /// belongs to none.
    #[inline]
    fn epoch(&self, now: Moment) -> u32 {
        let reciprocal = self.reciprocal.load(Ordering::Relaxed);
        let product = u128::from(now.as_millis()) * u128::from(reciprocal);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "epochs wrap after 136 years of seconds"
        )]
        let interval =
            if reciprocal == u64::MAX { now.as_millis() as u32 } else { (product >> 64) as u32 };
        interval.wrapping_add(1)
    }

    #[inline]
    fn slot(&self, stripe: usize, epoch: u32) -> Option<&Slot> {
        self.stripes.get(stripe & (STRIPES - 1))?.0.get(epoch as usize & (SLOTS - 1))
    }
}

/// The bucket width in milliseconds of a window of that length.
fn width(length: Duration) -> u64 {
    (millis(length) / u64::from(BUCKETS)).max(1)
}

/// 2^64 / bucket width, rounded up; `u64::MAX` means a width of one millisecond.
fn reciprocal(length: Duration) -> u64 {
    (u64::MAX / width(length)).saturating_add(1)
}

/// Adds one to a counter of `epoch`, turning it over from an older one.
#[cold]
fn count(counter: &AtomicU64, epoch: u32) {
    let seen = counter.load(Ordering::Relaxed);
    if (seen >> 32) == u64::from(epoch) {
        counter.fetch_add(1, Ordering::Relaxed);
    } else {
        turn(counter, seen, epoch);
    }
}

fn turn(counter: &AtomicU64, mut seen: u64, epoch: u32) {
    let fresh = (u64::from(epoch) << 32) | 1;
    while (seen >> 32) != u64::from(epoch) {
        match counter.compare_exchange_weak(seen, fresh, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Adds many to a counter of `epoch`.
fn add(counter: &AtomicU64, epoch: u32, more: u64) {
    let sum = |word: u64| {
        let held = if (word >> 32) == u64::from(epoch) { word & COUNT } else { 0 };
        Some((u64::from(epoch) << 32) | (held + more).min(COUNT))
    };
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).ok();
}

fn read(counter: &AtomicU64, last: u32, horizon: Horizon) -> u64 {
    let word = counter.load(Ordering::Relaxed);
    let age = last.wrapping_sub((word >> 32) as u32);
    if age < horizon.buckets() { word & COUNT } else { 0 }
}

/// Stripes that no thread holds. The last one is nobody's: all threads share it that found none free.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A thread's hold on a stripe, which it gives back when it ends.
struct Lease(usize);

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    static LEASE: Lease = Lease::take();
}

impl Lease {
    fn take() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let given_back = FREE.lock().pop();
        Self(given_back.unwrap_or_else(|| NEXT.fetch_add(1, Ordering::Relaxed).min(STRIPES - 1)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What this thread still counts while it ends goes to the shared one.
        MINE.set(STRIPES - 1);
        if self.0 < STRIPES - 1 {
            FREE.lock().push(self.0);
        }
    }
}

/// This thread's stripe.
#[inline]
fn stripe() -> usize {
    let mine = MINE.get();
    if mine < STRIPES { mine } else { first_stripe() }
}

#[cold]
fn first_stripe() -> usize {
    let mine = LEASE.try_with(|lease| lease.0).unwrap_or(STRIPES - 1);
    MINE.set(mine);
    mine
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn outcomes_leave_each_horizon_as_they_age() {
        let window = Window::new(Duration::from_secs(60));
        window.failure(at(0));
        window.success(at(500));
        assert_eq!(window.counts(Horizon::Thirtieth, at(1_999)).calls(), 2);
        assert_eq!(window.counts(Horizon::Thirtieth, at(2_000)).calls(), 0);
        assert_eq!(window.counts(Horizon::Sixth, at(9_999)).calls(), 2);
        assert_eq!(window.counts(Horizon::Sixth, at(10_000)).calls(), 0);
        assert_eq!(window.counts(Horizon::Whole, at(59_999)).calls(), 2);
        assert_eq!(window.counts(Horizon::Whole, at(60_000)).calls(), 0);
    }

    #[test]
    fn threads_are_summed() {
        let window = Window::new(Duration::from_secs(60));
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| (0..1_000).for_each(|_| window.success(at(10))));
            }
        });
        assert_eq!(window.counts(Horizon::Whole, at(20)).successes, 12_000);
    }

    /// Other tests' threads hold stripes too, so that not each thread here need get one; but those that ended must not
    /// have kept theirs.
    #[test]
    fn a_thread_that_ends_gives_its_stripe_back() {
        let own = |_| std::thread::spawn(|| stripe() < STRIPES - 1).join().unwrap();
        let held = (0..1_000).map(own).filter(|own| *own).count();
        assert!(held > STRIPES, "{held}");
    }

    #[test]
    fn another_length_keeps_what_is_within_it() {
        let window = Window::new(Duration::from_secs(60));
        (0..30).for_each(|second| window.failure(at(second * 1_000)));
        window.success(at(29_500));
        window.slow(at(29_500));
        let counts = |window: &Window, now| {
            let counts = window.counts(Horizon::Whole, at(now));
            [counts.successes, counts.failures, counts.slow]
        };
        window.resize(Duration::from_secs(600), at(30_000));
        assert_eq!(counts(&window, 30_000), [1, 30, 1]);
        window.resize(Duration::from_secs(6), at(30_000));
        // Their bucket, of ten seconds, ended just now.
        assert_eq!(counts(&window, 30_000), [1, 10, 1]);
        assert_eq!(counts(&window, 35_899), [1, 10, 1]);
        assert_eq!(counts(&window, 35_900), [0, 0, 0]);
        window.failure(at(36_000));
        window.resize(Duration::from_secs(60), at(96_000));
        assert_eq!(counts(&window, 96_000), [0, 0, 0], "what had left the old one is gone");
    }

    proptest! {
        #[test]
        fn another_length_loses_nothing_that_is_within_both_and_keeps_nothing_that_is_in_neither(
            (from, to) in (60u64..600_000, 60u64..600_000),
            steps in proptest::collection::vec(0u64..20_000, 1..100),
            wait in 0u64..100_000,
        ) {
            let window = Window::new(Duration::from_millis(from));
            let (mut now, mut list) = (0, Vec::new());
            for step in steps {
                now += step;
                window.failure(at(now));
                list.push(now);
            }
            now += wait;
            window.resize(Duration::from_millis(to), at(now));
            let within = |length: u64| list.iter().filter(|then| now - **then < length).count();
            let (widths, shorter) = (from / 60 + to / 60 + 2, from.min(to));
            // The running bucket need not be over, and a length need not be a multiple of sixty.
            let least = within((shorter - shorter / 60).saturating_sub(60));
            let failures = window.counts(Horizon::Whole, at(now)).failures;
            let counted = usize::try_from(failures).unwrap();
            prop_assert!(counted >= least, "{counted} of {least}");
            prop_assert!(counted <= within(shorter + widths), "{counted}");
        }

        #[test]
        fn it_counts_what_a_list_of_outcomes_counts(
            length in prop_oneof![Just(60u64), Just(600), Just(6_000), Just(60_000), Just(3_600_000)],
            steps in proptest::collection::vec((0u64..5_000, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let window = Window::new(Duration::from_millis(length));
            let width = length / 60;
            let mut list: Vec<(u64, bool, bool)> = Vec::new();
            let mut now = 0;
            for (step, ok, slow) in steps {
                now += step;
                if ok { window.success(at(now)) } else { window.failure(at(now)) }
                if slow { window.slow(at(now)) }
                list.push((now, ok, slow));
                for (horizon, buckets) in
                    [(Horizon::Whole, 60), (Horizon::Sixth, 10), (Horizon::Thirtieth, 2)]
                {
                    let held = |is_wanted: fn(bool, bool) -> bool| {
                        list.iter()
                            .filter(|(then, ok, slow)| {
                                is_wanted(*ok, *slow) && now / width - then / width < buckets
                            })
                            .count() as u64
                    };
                    let counts = window.counts(horizon, at(now));
                    prop_assert_eq!(counts.successes, held(|ok, _| ok));
                    prop_assert_eq!(counts.failures, held(|ok, _| !ok));
                    prop_assert_eq!(counts.slow, held(|_, slow| slow));
                }
            }
        }
    }
}
