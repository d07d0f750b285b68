//! Response times, counted in [buckets](fusebox_state::times).

use std::sync::atomic::{AtomicU64, Ordering};

use fusebox_state::times::{BUCKETS, bucket_of, millis_of, percentile};

use crate::view::PercentilesView;

/// Response times since the start, in buckets. Counted without a lock, so that an attempt pays one addition.
pub(crate) struct Times([AtomicU64; BUCKETS]);

/// A reading of [`Times`].
pub(crate) use fusebox_state::times::Counts;

impl Default for Times {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl Times {
    /// Counts an attempt.
    pub(crate) fn record(&self, micros: u64) {
        if let Some(bucket) = self.0.get(bucket_of(micros)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts since they were last taken.
    pub(crate) fn take(&self) -> Counts {
        std::array::from_fn(|bucket| {
            self.0.get(bucket).map_or(0, |it| it.swap(0, Ordering::Relaxed))
        })
    }

    /// Percentiles of all attempts, in milliseconds.
    pub(crate) fn since_start(&self) -> PercentilesView {
        percentiles(&[0; BUCKETS], &self.read())
    }

    /// The counts now.
    pub(crate) fn read(&self) -> Box<Counts> {
        let mut counts = Box::new([0; BUCKETS]);
        for (count, bucket) in counts.iter_mut().zip(&self.0) {
            *count = bucket.load(Ordering::Relaxed);
        }
        counts
    }
}

/// Percentiles in milliseconds of what was counted between two readings.
pub(crate) fn percentiles(then: &Counts, now: &Counts) -> PercentilesView {
    let mut counts = [0; BUCKETS];
    for (count, (now, then)) in counts.iter_mut().zip(now.iter().zip(then)) {
        *count = now.saturating_sub(*then);
    }
    let Some(last) = counts.iter().rposition(|count| *count > 0) else {
        return PercentilesView::default();
    };
    let at = |share| percentile(&counts, share).unwrap_or(0.0);
    PercentilesView { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: millis_of(last, true) }
}

#[expect(clippy::cast_precision_loss, reason = "counts and bytes for people")]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}

pub(crate) fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_a_tenth() {
        let times = Times::default();
        let before = times.read();
        for micros in 1..=10_000 {
            times.record(micros);
        }
        let found = percentiles(&before, &times.read());
        for (found, wanted) in [(found.p50, 5.0), (found.p90, 9.0), (found.p99, 9.9)] {
            assert!((found / wanted - 1.0).abs() < 0.13, "{found} {wanted}");
        }
        assert!(found.max >= 10.0 && found.max < 12.5, "{found:?}");
        assert_eq!(times.since_start().p99.to_bits(), found.p99.to_bits());
        times.record(0);
        times.record(u64::MAX);
        assert_eq!(percentiles(&before, &before).p99.to_bits(), 0);
    }
}
