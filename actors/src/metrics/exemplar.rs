//! Exemplars: the trace of a call that an observation was made of.
//!
//! A trace id is kept as a number and nothing else, so that no text of a caller's reaches the page and
//! nothing is allocated for it. If nobody follows a call's trace, not even the clock is read: an
//! exemplar that leads to no trace is worse than none.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder},
    metrics::exemplar::HistogramWithExemplars,
};

use crate::clock::Clock;

/// A trace id; 32 hexadecimal digits on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceId(u128);

impl EncodeLabelSet for TraceId {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        [("trace_id", format!("{:032x}", self.0))].encode(encoder)
    }
}

/// Which call an observation was made of, and when.
#[derive(Clone, Copy, Debug)]
pub struct Exemplar {
    id: TraceId,
    at: SystemTime,
}

impl Exemplar {
    /// A call of this trace, now; `None` if nobody follows it.
    pub fn of(trace_id: Option<u128>, clock: Clock) -> Option<Self> {
        let id = TraceId(trace_id?);
        Some(Self { id, at: UNIX_EPOCH + Duration::from_millis(clock.unix().get()) })
    }
}

/// A histogram whose buckets remember the trace of their newest observation.
pub(super) type TracedHistogram = HistogramWithExemplars<TraceId>;

/// Counts `took`.
pub(super) fn observe(histogram: &TracedHistogram, took: Duration, exemplar: Option<Exemplar>) {
    let (id, at) = (exemplar.map(|it| it.id), exemplar.map(|it| it.at));
    histogram.observe(took.as_secs_f64(), id, at);
}
