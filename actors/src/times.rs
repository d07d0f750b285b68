//! Response times, counted in buckets of a quarter of a power of two, so that a percentile is right to about a
//! tenth.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::view::PercentilesView;

/// Four for each power of two of microseconds below 2^32.
pub(crate) const BUCKETS: usize = 128;

/// Response times since the start, in buckets. Counted without a lock, so that an attempt pays one addition.
pub(crate) struct Times([AtomicU64; BUCKETS]);

/// A reading of [`Times`].
pub(crate) type Counts = [u64; BUCKETS];

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

fn bucket_of(micros: u64) -> usize {
    let micros = u32::try_from(micros).unwrap_or(u32::MAX).max(1);
    let octave = micros.ilog2();
    // The two bits below the highest.
    let quarter = ((u64::from(micros) << 2) >> octave) & 3;
    octave as usize * 4 + usize::try_from(quarter).unwrap_or(0)
}

/// Milliseconds in the middle of a bucket, or at its end.
fn millis_of(bucket: usize, end: bool) -> f64 {
    let octave = i32::try_from(bucket / 4).unwrap_or(0);
    let quarter = f64::from(u32::try_from(bucket % 4).unwrap_or(0));
    let within = if end { 1.0 } else { 0.5 };
    thousandths(2f64.powi(octave) * (1.0 + (quarter + within) / 4.0) / 1_000.0)
}

/// Percentiles in milliseconds of what was counted between two readings.
pub(crate) fn percentiles(then: &Counts, now: &Counts) -> PercentilesView {
    let counts: Vec<u64> =
        now.iter().zip(then).map(|(now, then)| now.saturating_sub(*then)).collect();
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return PercentilesView::default();
    }
    let at = |share: f64| {
        let (wanted, mut seen) = (real(all) * share, 0);
        let found = counts.iter().position(|count| {
            seen += count;
            real(seen) >= wanted
        });
        found.map_or(0.0, |bucket| millis_of(bucket, false))
    };
    let last = counts.iter().rposition(|count| *count > 0);
    let max = last.map_or(0.0, |bucket| millis_of(bucket, true));
    PercentilesView { p50: at(0.5), p90: at(0.9), p99: at(0.99), max }
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

    #[test]
    fn every_bucket_holds_what_its_borders_say() {
        for micros in [1, 2, 3, 4, 5, 7, 8, 1_000, 1_023, 1_024, 1_500_000, u64::from(u32::MAX)] {
            let bucket = bucket_of(micros);
            let millis = real(micros) / 1_000.0;
            assert!(millis <= millis_of(bucket, true), "{micros}");
            assert!(bucket == 0 || millis >= millis_of(bucket - 1, true) * 0.79, "{micros}");
        }
    }
}
