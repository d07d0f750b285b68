//! A limit on what is in flight at once.
//!
//! Those who hold places share them by the rule of [`crate::shares`]: whoever has some may take one more if it then has at
//! most seven times as many as are left. So whoever holds none finds a place, and one caller that sends calls which
//! hang bars nobody else. Fewer than sixteen places are not shared: there one more place matters more.
//!
//! Holders are counted by hash. Two with the same hash count as one: then the second may find the rest of the first's
//! share taken, as if it held the places itself.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::shares::is_within_share;

/// How many holders have a count of their own, but for that of `u32::MAX`.
const HOLDERS: u16 = 256;
/// The holder of `u32::MAX`, which is nobody's user id, shares its count with no other.
const OWN: u16 = HOLDERS;
/// Fewer places than these are not shared.
const SHARED_FROM: u32 = 16;

/// Counts what is in flight against a limit. Nothing waits for a place: a call that finds none is
/// rejected at once and falls back.
pub struct Bulkhead {
    in_flight: AtomicU32,
    max: AtomicU32,
    held: Box<[AtomicU32]>,
}

/// A place in the bulkhead; given back when dropped.
#[must_use]
pub struct Place<'a> {
    bulkhead: &'a Bulkhead,
    holder: Holder,
}

/// A place that outlives its guard: who has one calls [`Bulkhead::leave`] once.
#[must_use]
pub struct Kept(Holder);

/// The hash of a holder, or the one behind all hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder(u16);

impl Holder {
    fn of(who: u32) -> Self {
        // The upper bits of a product by the golden ratio spread neighbours (Knuth, 6.4).
        let hash = who.wrapping_mul(0x9E37_79B1).to_be_bytes()[0];
        Self(if who == u32::MAX { OWN } else { hash.into() })
    }
}

impl Place<'_> {
    /// Keeps the place beyond this guard.
    pub fn keep(self) -> Kept {
        let kept = Kept(self.holder);
        std::mem::forget(self);
        kept
    }
}

impl Bulkhead {
    /// A bulkhead with `max` places.
    pub fn new(max: u32) -> Self {
        let held = (0..=HOLDERS).map(|_| AtomicU32::new(0)).collect();
        Self { in_flight: AtomicU32::new(0), max: AtomicU32::new(max), held }
    }

    /// Changes the number of places; what is in flight stays.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Takes a place for `who`, such as a user id; `None` if all are taken, or all of its share.
    #[inline]
    pub fn try_enter(&self, who: u32) -> Option<Place<'_>> {
        let holder = Holder::of(who);
        let max = self.max();
        let had = self.held_by(holder).fetch_add(1, Ordering::AcqRel);
        // Counted only if it is taken: a flood of refused takes looks like nothing to others.
        let taken = self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
            let free = max.checked_sub(taken.checked_add(1)?)?;
            let fits = max < SHARED_FROM || is_within_share(had.into(), 1, free.into());
            fits.then_some(taken + 1)
        });
        if taken.is_err() {
            self.held_by(holder).fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Place { bulkhead: self, holder })
    }

    /// Gives back a place, for `kept`.
    pub fn leave(&self, kept: Kept) {
        let Kept(holder) = kept;
        self.give_back(holder);
    }

    fn give_back(&self, holder: Holder) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.held_by(holder).fetch_sub(1, Ordering::AcqRel);
    }

    #[expect(clippy::indexing_slicing, reason = "a holder is a byte, or the one behind them")]
    fn held_by(&self, holder: Holder) -> &AtomicU32 {
        &self.held[usize::from(holder.0)]
    }

    /// Places taken now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// All places.
    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.bulkhead.give_back(self.holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_refused_until_one_is_given_back() {
        let bulkhead = Bulkhead::new(2);
        let first = bulkhead.try_enter(1).expect("the first of two places");
        let second = bulkhead.try_enter(1).expect("the second of two places");
        assert!(bulkhead.try_enter(1).is_none() && bulkhead.try_enter(2).is_none());
        drop(first);
        assert!(bulkhead.try_enter(1).is_some());
        drop(second);
        assert_eq!(bulkhead.in_flight(), 0);
    }

    fn take_all(bulkhead: &Bulkhead, who: u32) -> Vec<Place<'_>> {
        std::iter::from_fn(|| bulkhead.try_enter(who)).collect()
    }

    #[test]
    fn whoever_holds_none_finds_a_place() {
        for (max, first, second) in [(15, 15, 0), (16, 14, 1), (64, 56, 7), (256, 224, 28)] {
            let bulkhead = Bulkhead::new(max);
            let one = take_all(&bulkhead, 1_000);
            let other = take_all(&bulkhead, 1_001);
            assert_eq!((one.len(), other.len()), (first, second), "of {max}");
            drop(one);
            assert_eq!(bulkhead.in_flight() as usize, second);
        }
    }

    #[test]
    fn the_holder_that_is_nobodys_user_id_has_its_count_to_itself() {
        let bulkhead = Bulkhead::new(16);
        let users: Vec<_> = (0..15).filter_map(|uid| bulkhead.try_enter(uid)).collect();
        assert_eq!(users.len(), 15);
        // These have the hash that the last of all numbers would have.
        assert_eq!(Holder::of(376), Holder::of(986));
        assert_ne!(Holder::of(376), Holder::of(u32::MAX));
        assert!(bulkhead.try_enter(u32::MAX).is_some());
    }

    #[test]
    fn what_is_kept_is_given_back_to_its_holder() {
        let bulkhead = Bulkhead::new(16);
        let kept: Vec<Kept> = take_all(&bulkhead, 1).into_iter().map(Place::keep).collect();
        assert!(bulkhead.try_enter(1).is_none());
        for kept in kept {
            bulkhead.leave(kept);
        }
        assert_eq!((bulkhead.in_flight(), take_all(&bulkhead, 1).len()), (0, 14));
    }
}
