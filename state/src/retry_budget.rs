//! A token bucket that all retries of a backend share, so that an outage is not met by a storm.
//!
//! Each first attempt deposits a fifth of a token and each second ten; a retry takes a whole one. The
//! bucket holds at most what ten seconds deposit (after Finagle's `RetryBudget`).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::units::Moment;

/// Thousandths of a token that a first attempt deposits.
const DEPOSIT: i64 = 200;
/// Thousandths of a token that a millisecond deposits.
const PER_MILLI: i64 = 10;
/// Thousandths of a token that a retry takes.
const PRICE: i64 = 1_000;
/// The most that the bucket holds: ten seconds' deposit.
const MAX: i64 = 10_000 * PER_MILLI;

/// The budget. Shared by every thread.
pub struct RetryBudget {
    balance: AtomicI64,
    refilled_at: AtomicU64,
}

impl RetryBudget {
    /// A full budget at `now`.
    pub fn new(now: Moment) -> Self {
        Self { balance: AtomicI64::new(MAX), refilled_at: AtomicU64::new(now.as_millis()) }
    }

    /// Counts a first attempt. May overfill by a few deposits that race; the next retry trims it.
    #[inline]
    pub fn deposit(&self) {
        if self.balance.load(Ordering::Relaxed) < MAX {
            self.balance.fetch_add(DEPOSIT, Ordering::Relaxed);
        }
    }

    /// Takes a token for a retry at `now`, or `false` if there is none: then the call ends with the
    /// error that it has.
    pub fn withdraw(&self, now: Moment) -> bool {
        let then = self.refilled_at.swap(now.as_millis(), Ordering::AcqRel);
        let elapsed = i64::try_from(now.as_millis().saturating_sub(then)).unwrap_or(i64::MAX);
        let refill = elapsed.saturating_mul(PER_MILLI).min(MAX);
        self.balance
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |balance| {
                let filled = balance.saturating_add(refill).min(MAX);
                Some(if filled >= PRICE { filled - PRICE } else { filled })
            })
            .is_ok_and(|before| before.saturating_add(refill).min(MAX) >= PRICE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_dry_and_refills_by_time_and_by_first_attempts() {
        let at = Moment::from_millis;
        let budget = RetryBudget::new(at(0));
        assert_eq!((0..200).filter(|_| budget.withdraw(at(0))).count(), 100);
        assert_eq!((0..200).filter(|_| budget.withdraw(at(1_000))).count(), 10);
        (0..50).for_each(|_| budget.deposit());
        assert_eq!((0..200).filter(|_| budget.withdraw(at(1_000))).count(), 10);
    }
}
