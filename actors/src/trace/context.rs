//! The context of a trace: as a call brings it, and as an attempt passes it on.

use std::borrow::Cow;

use fusebox_state::SpanRef;

/// The trace of a call, as its door found it.
#[derive(Clone, Debug)]
pub struct CallTrace {
    /// The caller's span; one that was made up if the caller named none.
    pub parent: SpanRef,
    /// Whether the caller named it.
    pub is_remote: bool,
    /// What else is to be passed on, if there is anything.
    pub propagated: Option<Box<Propagated>>,
    /// The route by which the call came.
    pub route: &'static str,
}

/// What goes with a trace context and is passed on as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Propagated {
    /// The caller's `tracestate`.
    pub tracestate: Option<String>,
    /// The caller's `baggage`; never recorded.
    pub baggage: Option<String>,
}

impl CallTrace {
    /// Replaces a trace that was taken out.
    pub(crate) const NONE: Self = Self {
        parent: SpanRef { trace_id: 0, span_id: 0, sampled: false },
        is_remote: false,
        propagated: None,
        route: "",
    };

    /// A trace that begins here.
    pub fn new(route: &'static str) -> Self {
        let parent =
            SpanRef { trace_id: fastrand::u128(1..), span_id: fastrand::u64(1..), sampled: false };
        Self { parent, is_remote: false, propagated: None, route }
    }

    /// The baggage that came with it.
    pub(crate) fn baggage(&self) -> Option<&str> {
        self.propagated.as_deref()?.baggage.as_deref()
    }
}

/// What an attempt passes on to its backend.
#[derive(Clone, Copy, Debug)]
pub struct PassedOn<'a> {
    /// The `traceparent`.
    pub span: SpanRef,
    /// The `tracestate`.
    pub tracestate: Option<&'a str>,
    /// The `baggage`.
    pub baggage: Option<&'a str>,
}

impl PassedOn<'_> {
    /// The headers of it: names and values.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
        let traceparent = Some(("traceparent", Cow::Owned(self.span.to_string())));
        let tracestate = self.tracestate.map(|text| ("tracestate", Cow::Borrowed(text)));
        let baggage = self.baggage.map(|text| ("baggage", Cow::Borrowed(text)));
        [traceparent, tracestate, baggage].into_iter().flatten()
    }
}

/// A new span's id.
pub fn new_span_id() -> u64 {
    fastrand::u64(1..)
}
