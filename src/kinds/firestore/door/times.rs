//! Times that the door gives instead of the server's.
//!
//! They are estimates: the host's time, but later than every time that this door has given or seen in an answer of the
//! server. So no document's time goes backwards for its clients while the daemon runs.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicI64, Ordering::Relaxed},
};

use fusebox_state::UnixMillis;
use parking_lot::Mutex;
use prost_types::Timestamp;

use crate::kinds::firestore::protocol::stock::Times;

/// As many documents as are remembered; of twice as many the older ones are forgotten.
const REMEMBERED: usize = 25_000;
const MICROS: i64 = 1_000_000;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Estimates {
    /// The latest time that was given or seen, in microseconds.
    latest: AtomicI64,
    told: Mutex<Told>,
}

/// The times that were given of documents, by their paths. The older half goes when the newer one is full.
#[derive(Default)]
struct Told {
    new: HashMap<String, Timestamp>,
    old: HashMap<String, Timestamp>,
}

/// The estimates of one answer, which is made at this time.
pub(super) struct At<'a> {
    pub(super) estimates: &'a Estimates,
    pub(super) now: UnixMillis,
}

fn micros(time: Timestamp) -> i64 {
    time.seconds.saturating_mul(MICROS).saturating_add(i64::from(time.nanos) / 1_000)
}

fn timestamp(micros: i64) -> Timestamp {
    let nanos = i32::try_from(micros.rem_euclid(MICROS)).unwrap_or_default() * 1_000;
    Timestamp { seconds: micros.div_euclid(MICROS), nanos }
}

/// A time of the wall clock.
pub(super) fn of_unix(at: UnixMillis) -> Timestamp {
    timestamp(i64::try_from(at.get()).unwrap_or(i64::MAX / 1_000).saturating_mul(1_000))
}

impl Estimates {
    /// The server has given this time.
    pub(super) fn saw(&self, time: Timestamp) {
        self.latest.fetch_max(micros(time), Relaxed);
    }

    fn next(&self, now: UnixMillis) -> Timestamp {
        let now = micros(of_unix(now));
        let next = |latest: i64| now.max(latest.saturating_add(1));
        timestamp(next(
            self.latest.fetch_update(Relaxed, Relaxed, |it| Some(next(it))).unwrap_or(now),
        ))
    }
}

impl Times for At<'_> {
    fn now(&mut self) -> Timestamp {
        self.estimates.next(self.now)
    }

    fn written(&mut self, path: &str, accepted_at: Option<Timestamp>) -> Timestamp {
        let told = self.estimates.told.lock();
        let told = told.new.get(path).or_else(|| told.old.get(path)).copied();
        // The time that was given may be of an earlier write: a later one may have come by a way that gives none.
        let latest = told.into_iter().chain(accepted_at).max_by_key(|time| micros(*time));
        latest.unwrap_or_else(|| self.estimates.next(self.now))
    }

    fn saw(&mut self, at: Timestamp) {
        self.estimates.saw(at);
    }

    fn tell(&mut self, path: &str, at: Timestamp) {
        let mut told = self.estimates.told.lock();
        if told.new.len() >= REMEMBERED {
            told.old = std::mem::take(&mut told.new);
        }
        told.new.insert(path.to_owned(), at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_rise_above_what_was_seen_and_are_told_again_for_their_document() {
        let estimates = Estimates::default();
        let mut at = At { estimates: &estimates, now: UnixMillis::new(5_000) };
        assert_eq!(at.now(), Timestamp { seconds: 5, nanos: 0 });
        assert_eq!(at.now(), Timestamp { seconds: 5, nanos: 1_000 });
        let seen = Timestamp { seconds: 9, nanos: 999_999_000 };
        estimates.saw(seen);
        estimates.saw(Timestamp { seconds: 1, nanos: 0 });
        let first = at.now();
        assert_eq!(first, Timestamp { seconds: 10, nanos: 0 });
        at.tell("u/a", first);
        let accepted = Some(Timestamp { seconds: 4, nanos: 0 });
        assert_eq!(at.written("u/a", accepted), first);
        assert_eq!(Some(at.written("u/b", accepted)), accepted);
        let later = Some(Timestamp { seconds: 11, nanos: 0 });
        assert_eq!(Some(at.written("u/a", later)), later, "another write was accepted since");
        for n in 0..3 * REMEMBERED {
            at.tell(&n.to_string(), seen);
        }
        assert_eq!(Some(at.written("u/a", accepted)), accepted, "it is forgotten");
    }
}
