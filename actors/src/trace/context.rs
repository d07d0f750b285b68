//! The context of a trace: as a call brings it, and as an attempt passes it on.

use std::{borrow::Cow, collections::BTreeSet};

use fusebox_state::SpanRef;
use parking_lot::Mutex;

/// The trace of a call, as its door found it.
#[derive(Clone, Debug)]
pub struct CallTrace {
    /// The caller's span; one that was made up if the caller named none.
    pub parent: SpanRef,
    /// Whether the caller named it.
    pub is_remote: bool,
    /// What else is to be passed on, if there is anything.
    pub propagated: Option<Box<Propagated>>,
    /// The way by which the call came.
    pub route: Route,
}

/// The way by which a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A route of the HTTP API, as its table has it.
    Http(&'static str),
    /// A wire door.
    Door(AtDoor),
}

/// A call that came by a wire door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtDoor {
    /// The door's address; see [`lasting_name`].
    pub address: &'static str,
    /// How many requests came before it in one piece: 0 but for pipelines.
    pub ahead: u32,
}

impl Route {
    /// The address of the door, if it came by one.
    pub fn door(self) -> Option<&'static str> {
        match self {
            Self::Http(_) => None,
            Self::Door(at) => Some(at.address),
        }
    }
}

impl From<&'static str> for Route {
    fn from(path: &'static str) -> Self {
        Self::Http(path)
    }
}

impl From<AtDoor> for Route {
    fn from(at: AtDoor) -> Self {
        Self::Door(at)
    }
}

/// The same name for as long as the process runs, so that a call can carry it without a copy. Meant for the addresses of
/// doors, of which there are as many as the configuration has: each different name is kept once, and never freed.
pub fn lasting_name(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock();
    if let Some(known) = names.get(name) {
        return known;
    }
    let name: &'static str = Box::leak(name.into());
    names.insert(name);
    name
}

/// The call that an attempt was made for, as errors remember it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallOrigin {
    /// The id of its trace.
    pub trace_id: u128,
    /// The address of the door by which it came, if it came by one.
    pub door: Option<&'static str>,
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
        route: Route::Http(""),
    };

    /// A trace that begins here.
    pub fn new(route: impl Into<Route>) -> Self {
        let parent =
            SpanRef { trace_id: fastrand::u128(1..), span_id: fastrand::u64(1..), sampled: false };
        Self { parent, is_remote: false, propagated: None, route: route.into() }
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
