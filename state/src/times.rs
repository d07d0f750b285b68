//! Response times in buckets of a quarter of a power of two, so that a percentile is right to about a tenth.

/// Four for each power of two of microseconds below 2^32.
pub const BUCKETS: usize = 128;

/// How many calls fell into each bucket.
pub type Counts = [u64; BUCKETS];

/// The bucket of a time in microseconds; 0 counts as 1, and what is too long as the longest.
#[inline]
pub fn bucket_of(micros: u64) -> usize {
    let micros = u32::try_from(micros).unwrap_or(u32::MAX).max(1);
    let octave = micros.ilog2();
    // The two bits below the highest.
    let quarter = ((u64::from(micros) << 2) >> octave) & 3;
    octave as usize * 4 + usize::try_from(quarter).unwrap_or(0)
}

/// Milliseconds in the middle of a bucket, or at its end.
pub fn millis_of(bucket: usize, end: bool) -> f64 {
    let octave = i32::try_from(bucket / 4).unwrap_or(0);
    let quarter = f64::from(u32::try_from(bucket % 4).unwrap_or(0));
    let within = if end { 1.0 } else { 0.5 };
    let millis = 2f64.powi(octave) * (1.0 + (quarter + within) / 4.0) / 1_000.0;
    (millis * 1_000.0).round() / 1_000.0
}

/// The time in milliseconds that this share of the calls did not exceed; `None` if there were no calls.
pub fn percentile(counts: &Counts, share: f64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let (wanted, mut seen) = (all as f64 * share, 0);
    let found = counts.iter().position(|count| {
        seen += count;
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let seen = seen as f64;
        seen >= wanted
    });
    found.map(|bucket| millis_of(bucket, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_right_to_a_tenth() {
        let mut counts = [0; BUCKETS];
        for micros in 1..=10_000 {
            counts[bucket_of(micros)] += 1;
        }
        for (share, wanted) in [(0.5, 5.0), (0.9, 9.0), (0.99, 9.9)] {
            let found = percentile(&counts, share).unwrap();
            assert!((found / wanted - 1.0).abs() < 0.13, "{found} {wanted}");
        }
        assert_eq!(percentile(&[0; BUCKETS], 0.9), None);
    }

    #[test]
    fn every_bucket_holds_what_its_borders_say() {
        for micros in [1, 2, 3, 4, 5, 7, 8, 1_000, 1_023, 1_024, 1_500_000, u32::MAX] {
            let bucket = bucket_of(micros.into());
            let millis = f64::from(micros) / 1_000.0;
            assert!(millis <= millis_of(bucket, true), "{micros}");
            assert!(bucket == 0 || millis >= millis_of(bucket - 1, true) * 0.79, "{micros}");
        }
        assert_eq!(bucket_of(0), bucket_of(1));
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }
}
