//! What adaptive limits on a backend's attempts would be, of reads and of writes. They limit nothing.
//!
//! An attempt that ends adds to a few counters, and waits for nobody. Once a second health takes what they came to
//! and follows the limits by it ([`WouldBe`]).

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use fusebox_state::{
    Moment,
    limit::{LIGHT, Rule, Seen, WouldBe},
};
use parking_lot::Mutex;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Limits {
    reads: Class,
    writes: Class,
}

#[derive(Default)]
struct Class {
    calls: AtomicU64,
    micros: AtomicU64,
    light: AtomicU64,
    light_micros: AtomicU64,
    overloaded: AtomicU64,
    /// The limit; 0 while it is not known.
    limit: AtomicU32,
    followed: Mutex<(WouldBe, Moment)>,
}

impl Limits {
    fn of(&self, write: bool) -> &Class {
        if write { &self.writes } else { &self.reads }
    }

    /// An attempt was answered after `took`; when it began there were `in_flight`, itself included.
    #[inline]
    pub(crate) fn answered(&self, write: bool, took: Duration, in_flight: u32) {
        let class = self.of(write);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        class.calls.fetch_add(1, Ordering::Relaxed);
        class.micros.fetch_add(micros, Ordering::Relaxed);
        if in_flight <= LIGHT {
            class.light.fetch_add(1, Ordering::Relaxed);
            class.light_micros.fetch_add(micros, Ordering::Relaxed);
        }
    }

    /// The backend has answered an attempt that it has too much to do.
    pub(crate) fn overloaded(&self, write: bool, in_flight: u32) {
        let class = self.of(write);
        let limit = class.limit.load(Ordering::Relaxed);
        if limit == 0 || in_flight <= limit {
            class.overloaded.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Follows the limits by what happened since the last look; to be called about every second.
    pub(crate) fn look(&self, rule: Rule, now: Moment) {
        for class in [&self.reads, &self.writes] {
            class.look(rule, now);
        }
    }

    /// The limit of a class; `None` while there was too little traffic to tell.
    pub(crate) fn would_be(&self, write: bool) -> Option<u32> {
        Some(self.of(write).limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }
}

impl Class {
    fn look(&self, rule: Rule, now: Moment) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        let mut followed = self.followed.lock();
        let (would_be, looked) = &mut *followed;
        let seen = Seen {
            span: now.since(*looked),
            calls: take(&self.calls),
            time: Duration::from_micros(take(&self.micros)),
            light: take(&self.light),
            light_time: Duration::from_micros(take(&self.light_micros)),
            overloaded: take(&self.overloaded),
        };
        *looked = now;
        would_be.look(rule, &seen);
        self.limit.store(would_be.limit().unwrap_or(0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_have_limits_of_their_own() {
        let (limits, at) = (Limits::default(), Moment::from_millis);
        limits.look(Rule::Gradient, at(1_000));
        for second in 2..40 {
            for _ in 0..400 {
                limits.answered(false, Duration::from_millis(10), LIGHT);
            }
            for _ in 0..1_600 {
                limits.answered(false, Duration::from_millis(40), 64);
            }
            limits.look(Rule::Gradient, at(second * 1_000));
        }
        let reads = limits.would_be(false).unwrap();
        assert!((16..=30).contains(&reads), "{reads}");
        assert_eq!(limits.would_be(true), None, "nobody writes");
    }

    #[test]
    fn only_what_would_have_been_sent_tells_of_overload() {
        let (limits, at) = (Limits::default(), Moment::from_millis);
        limits.look(Rule::Aimd, at(1_000));
        for second in 2..60 {
            for in_flight in 1..=64 {
                if in_flight > 16 {
                    limits.overloaded(true, in_flight);
                } else {
                    limits.answered(true, Duration::from_secs(1), in_flight);
                }
            }
            limits.look(Rule::Aimd, at(second * 1_000));
        }
        let writes = limits.would_be(true).unwrap();
        assert!((14..=17).contains(&writes), "{writes}");
    }
}
