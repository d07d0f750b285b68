//! Exemplars: the trace of a call that an observation was made of.
//!
//! A trace id is kept as its 32 digits and nothing else, so that no text of a caller's reaches the page
//! and nothing is allocated for it. Where a call has none, not even the clock is read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder},
    metrics::exemplar::HistogramWithExemplars,
};

use crate::clock::Clock;

/// Digits of a trace id.
const DIGITS: usize = 32;

/// A trace id: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceId([u8; DIGITS]);

impl TraceId {
    /// The trace id of a W3C `traceparent` (version-traceid-parentid-flags).
    fn of(traceparent: &str) -> Option<Self> {
        let digits = traceparent.split('-').nth(1)?.as_bytes().try_into().ok()?;
        let id = Self(digits);
        id.0.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')).then_some(id)
    }
}

impl EncodeLabelSet for TraceId {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        let text = str::from_utf8(&self.0).unwrap_or_default();
        [("trace_id", text)].encode(encoder)
    }
}

/// Which call an observation was made of, and when.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    id: TraceId,
    at: SystemTime,
}

impl Traced {
    /// The call of this `traceparent`, now; `None` where it has none.
    pub fn of(traceparent: Option<&str>, clock: Clock) -> Option<Self> {
        let id = TraceId::of(traceparent?)?;
        Some(Self { id, at: UNIX_EPOCH + Duration::from_millis(clock.unix().get()) })
    }
}

/// A histogram whose buckets remember the trace of their newest observation.
pub(super) type TracedHistogram = HistogramWithExemplars<TraceId>;

/// Counts `took`.
pub(super) fn observe(histogram: &TracedHistogram, took: Duration, traced: Option<Traced>) {
    let (id, at) = (traced.map(|it| it.id), traced.map(|it| it.at));
    histogram.observe(took.as_secs_f64(), id, at);
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_a_well_formed_trace_id_is_kept() {
        let id = TraceId::of(GOOD).unwrap();
        assert_eq!(&id.0, b"4bf92f3577b34da6a3ce929d0e0e4736");
        for bad in [
            "",
            "00",
            "00-4bf92f35-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\"-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceId::of(bad), None, "{bad}");
        }
    }
}
