//! How several holders share something bounded, so that none of them starves another.
//!
//! A [`Pool`] has a number of units: places, connections, bytes. A [`Holding`] is what one holder has of one pool.
//! One rule decides who may take more:
//!
//! - What a holder would have after taking must be at most seven times what would then be left free.
//! - A holder that has nothing yet may take what fits.
//!
//! A single holder therefore gets seven eighths, and an eighth stays free for those that have nothing. The next one
//! gets seven eighths of that eighth, and so on: however many holders take what they can, whoever has nothing finds
//! something. A holder that has more than its share gives nothing up, but takes nothing more until it has less.
//!
//! Taking and giving back are a few atomic operations each. They lock, allocate and look up nothing. Two takes of one
//! holder at the same time may both be refused what one of them could have had; that is never another holder's loss.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many times the free units a holder may have.
const TIMES_FREE: u64 = 7;

/// Whether a holder that has `had` units may take `units` more, if `free` are left free then: the rule.
pub(crate) fn is_within_share(had: u64, units: u64, free: u64) -> bool {
    had == 0 || had + units <= TIMES_FREE * free
}

/// Something bounded that holders share.
#[derive(Debug)]
pub struct Pool {
    units: AtomicU64,
    used: AtomicU64,
}

/// What one holder has of one pool.
#[derive(Debug, Default)]
pub struct Holding(AtomicU64);

impl Pool {
    /// A pool of so many units.
    pub fn new(units: u64) -> Self {
        Self { units: AtomicU64::new(units), used: AtomicU64::new(0) }
    }

    /// Changes the number of units. What is taken stays taken.
    pub fn set_units(&self, units: u64) {
        self.units.store(units, Ordering::Relaxed);
    }

    /// All units.
    pub fn units(&self) -> u64 {
        self.units.load(Ordering::Relaxed)
    }

    /// Units taken now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `units` more for a holder; `false` if that is more than its share, and then nothing is taken.
    #[must_use]
    pub fn try_take(&self, holding: &Holding, units: u64) -> bool {
        let had = holding.0.fetch_add(units, Ordering::AcqRel);
        let all = self.units();
        // Counted as used only if it is taken: a flood of refused takes looks like nothing to others.
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            let used = used.checked_add(units)?;
            let free = all.checked_sub(used)?;
            is_within_share(had, units, free).then_some(used)
        });
        if taken.is_err() {
            holding.0.fetch_sub(units, Ordering::AcqRel);
        }
        taken.is_ok()
    }

    /// Takes `units` more for a holder, whether or not there are so many: for what is there already and can only be
    /// counted. Others are refused until it is given back.
    pub fn take(&self, holding: &Holding, units: u64) {
        holding.0.fetch_add(units, Ordering::AcqRel);
        self.used.fetch_add(units, Ordering::AcqRel);
    }

    /// Gives back what was taken for that holder.
    pub fn give_back(&self, holding: &Holding, units: u64) {
        holding.0.fetch_sub(units, Ordering::AcqRel);
        self.used.fetch_sub(units, Ordering::AcqRel);
    }
}

impl Holding {
    /// What the holder has.
    pub fn units(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take_all(pool: &Pool, holding: &Holding) -> u64 {
        (0..=pool.units()).take_while(|_| pool.try_take(holding, 1)).count() as u64
    }

    #[test]
    fn an_eighth_is_kept_free_for_who_has_nothing() {
        let pool = Pool::new(1_024);
        let holders: Vec<Holding> = (0..5).map(|_| Holding::default()).collect();
        let taken: Vec<u64> = holders.iter().map(|holding| take_all(&pool, holding)).collect();
        assert_eq!(taken, [896, 112, 14, 1, 1]);
        assert_eq!(pool.used(), 1_024);
    }

    #[test]
    fn a_holder_over_its_share_takes_nothing_more_until_it_has_less() {
        let pool = Pool::new(80);
        let (first, second) = (Holding::default(), Holding::default());
        assert_eq!(take_all(&pool, &first), 70);
        assert!(pool.try_take(&second, 8));
        pool.give_back(&first, 1);
        assert!(!pool.try_take(&first, 1), "seven times the three free units are 21");
        assert!(pool.try_take(&second, 1));
        pool.give_back(&first, 50);
        assert!(pool.try_take(&first, 1));
    }

    #[test]
    fn what_fits_goes_to_who_has_nothing_however_large() {
        let pool = Pool::new(100);
        let holding = Holding::default();
        assert!(!pool.try_take(&holding, 101));
        assert!(pool.try_take(&holding, 100));
        assert!(!pool.try_take(&Holding::default(), 1));
        pool.give_back(&holding, 100);
        assert_eq!((pool.used(), holding.units()), (0, 0));
    }

    #[test]
    fn what_is_only_counted_keeps_others_out() {
        let pool = Pool::new(10);
        let (first, second) = (Holding::default(), Holding::default());
        pool.take(&first, 12);
        assert!(!pool.try_take(&second, 1));
        pool.set_units(20);
        assert!(pool.try_take(&second, 1));
    }

    proptest! {
        /// Whatever holders take and give back: never more than there is, and the pool knows the sum.
        #[test]
        fn a_pool_never_gives_more_than_it_has(
            units in 1_u64..200,
            steps in prop::collection::vec((0_usize..4, 0_u64..40, any::<bool>()), 1..200),
        ) {
            let pool = Pool::new(units);
            let holders: [Holding; 4] = Default::default();
            for (holder, amount, gives) in steps {
                let holding = &holders[holder];
                if gives {
                    pool.give_back(holding, amount.min(holding.units()));
                } else {
                    let had = holding.units();
                    let taken = pool.try_take(holding, amount);
                    let free = units - pool.used();
                    if taken && had > 0 {
                        prop_assert!(holding.units() <= TIMES_FREE * free);
                    }
                }
                prop_assert_eq!(pool.used(), holders.iter().map(Holding::units).sum::<u64>());
                prop_assert!(pool.used() <= units);
            }
        }
    }
}
