//! The requests of a door that wait for the backend, and since when.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The requests that wait. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parking(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    /// Since when, and a number that tells two of the same instant apart.
    since: BTreeSet<(Instant, u64)>,
    next: u64,
}

/// A request that waits until this is dropped.
#[derive(Debug)]
pub(crate) struct Parked {
    parking: Parking,
    of: (Instant, u64),
}

impl Parking {
    /// A request begins to wait.
    pub(crate) fn park(&self) -> Parked {
        let mut waiting = self.0.lock();
        let of = (Instant::now(), waiting.next);
        waiting.next += 1;
        waiting.since.insert(of);
        Parked { parking: self.clone(), of }
    }

    /// How many wait.
    pub(crate) fn count(&self) -> u64 {
        self.0.lock().since.len() as u64
    }

    /// How long the oldest of them has waited.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.0.lock().since.first().map(|(since, _)| since.elapsed())
    }
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.parking.0.lock().since.remove(&self.of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_is_the_one_that_has_waited_for_the_longest() {
        let parking = Parking::default();
        assert_eq!((parking.count(), parking.oldest()), (0, None));
        let first = parking.park();
        tokio::time::advance(Duration::from_secs(5)).await;
        let second = parking.park();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!((parking.count(), parking.oldest()), (2, Some(Duration::from_secs(7))));
        drop(first);
        assert_eq!((parking.count(), parking.oldest()), (1, Some(Duration::from_secs(2))));
        drop(second);
        assert_eq!((parking.count(), parking.oldest()), (0, None));
    }
}
