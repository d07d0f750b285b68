//! A limit on what is in flight at once.

use std::sync::atomic::{AtomicU32, Ordering};

/// Counts what is in flight against a limit. Nothing waits for a place: a call that finds none is
/// rejected at once and falls back.
pub struct Bulkhead {
    in_flight: AtomicU32,
    max: AtomicU32,
}

/// A place in the bulkhead; given back when dropped.
#[must_use]
pub struct Place<'a>(&'a Bulkhead);

/// A place that outlives its guard: who has one calls [`Bulkhead::leave`] once.
#[must_use]
pub struct Kept(());

impl Place<'_> {
    /// Keeps the place beyond this guard.
    pub fn keep(self) -> Kept {
        std::mem::forget(self);
        Kept(())
    }
}

impl Bulkhead {
    /// A bulkhead with `max` places.
    pub fn new(max: u32) -> Self {
        Self { in_flight: AtomicU32::new(0), max: AtomicU32::new(max) }
    }

    /// Changes the number of places; what is in flight stays.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Takes a place, or `None` if all are taken.
    #[inline]
    pub fn try_enter(&self) -> Option<Place<'_>> {
        self.try_enter_up_to(self.max.load(Ordering::Relaxed))
    }

    /// Takes a place if at most `limit` are taken, whatever the bulkhead's own maximum: how replay
    /// is held to a share of it.
    pub fn try_enter_up_to(&self, limit: u32) -> Option<Place<'_>> {
        let before = self.in_flight.fetch_add(1, Ordering::AcqRel);
        if before < limit {
            return Some(Place(self));
        }
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        None
    }

    /// Gives back a place, for `kept`.
    pub fn leave(&self, kept: Kept) {
        let Kept(()) = kept;
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
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
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_refused_until_one_is_given_back() {
        let bulkhead = Bulkhead::new(2);
        let first = bulkhead.try_enter().expect("the first of two places");
        let second = bulkhead.try_enter().expect("the second of two places");
        assert!(bulkhead.try_enter().is_none());
        drop(first);
        assert!(bulkhead.try_enter().is_some());
        drop(second);
        assert_eq!(bulkhead.in_flight(), 0);
    }

    #[test]
    fn a_share_is_refused_earlier_than_the_whole() {
        let bulkhead = Bulkhead::new(4);
        let place = bulkhead.try_enter_up_to(1).expect("nothing is in flight");
        assert!(bulkhead.try_enter_up_to(1).is_none());
        assert!(bulkhead.try_enter().is_some());
        drop(place);
    }
}
