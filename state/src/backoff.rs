//! How long to wait before trying again.
//!
//! Both rules are from Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015):
//! *full jitter* for live calls, which waits uniformly in `[0, min(cap, base * 2^n)]`, and
//! *decorrelated jitter* for replay, which waits uniformly in `[base, min(cap, 3 * previous)]`.

use std::time::Duration;

use crate::units::millis;

/// Retries of live calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    /// Attempts in all, the first included; at least 1.
    pub attempts: u32,
    /// The first backoff's upper bound.
    pub base: Duration,
    /// Every backoff's upper bound.
    pub cap: Duration,
}

/// Full jitter: the wait before retry number `retry` (0 for the first), from a uniform `random` word.
pub fn full_jitter(settings: &RetrySettings, retry: u32, random: u64) -> Duration {
    let grown = millis(settings.base).saturating_mul(1_u64 << retry.min(32));
    let bound = grown.min(millis(settings.cap));
    Duration::from_millis(uniform(0, bound, random))
}

/// The shortest backoff of a queued call.
pub const REPLAY_BASE: Duration = Duration::from_secs(1);
/// The longest backoff of a queued call.
pub const REPLAY_CAP: Duration = Duration::from_secs(60);

/// Decorrelated jitter: the wait of a queued call after one of `previous` (zero before the first).
pub fn decorrelated_jitter(previous: Duration, random: u64) -> Duration {
    let base = millis(REPLAY_BASE);
    let bound = millis(previous).saturating_mul(3).clamp(base, millis(REPLAY_CAP));
    Duration::from_millis(uniform(base, bound, random))
}

/// A number in `low..=high` from a uniform word, by multiplication (Lemire 2019); biased by less than
/// one part in 2^40 for the spans used here.
pub(crate) fn uniform(low: u64, high: u64, random: u64) -> u64 {
    let span = u128::from(high.saturating_sub(low)) + 1;
    let offset = ((u128::from(random) * span) >> 64) as u64;
    low + offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_jitter_doubles_its_bound_up_to_the_cap() {
        let (base, cap) = (Duration::from_millis(50), Duration::from_secs(2));
        let settings = RetrySettings { attempts: 3, base, cap };
        let longest = |retry| full_jitter(&settings, retry, u64::MAX).as_millis();
        assert_eq!([longest(0), longest(1), longest(5), longest(40)], [50, 100, 1_600, 2_000]);
        assert_eq!(full_jitter(&settings, 3, 0), Duration::ZERO);
    }

    #[test]
    fn decorrelated_jitter_grows_from_one_second_to_sixty() {
        let mut wait = Duration::ZERO;
        let mut seen = Vec::new();
        for _ in 0..6 {
            wait = decorrelated_jitter(wait, u64::MAX);
            seen.push(wait.as_secs());
        }
        assert_eq!(seen, [1, 3, 9, 27, 60, 60]);
        assert_eq!(decorrelated_jitter(Duration::from_secs(60), 0), REPLAY_BASE);
    }
}
