//! Spans, made of what calls and replays recorded.
//!
//! Names and attributes are those of the semantic conventions, if they have one: HTTP for the call as
//! its caller sees it, database clients for attempts, messaging for the queue. Neither keys nor values of
//! a call are ever recorded, nor baggage.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fusebox_actors::{
    AckLevel, CallErrorKind,
    clock::Reading,
    trace::{Answered, AtDoor, Failed, Route, Step, StepKind, TraceSubject, Traced, new_span_id},
};
use fusebox_state::{Target, Verdict};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::agreed::status_of;

/// The trace of every test: known in advance, so that it is found.
pub(super) const TEST_TRACE: u128 = 0xf05e_b0c5_0000_0000_0000_0000_0000_7e57;
/// The longest error text of a span, in characters.
const TEXT_MAX: usize = 256;

/// The spans of a record: its own, then one for each step.
pub(super) fn of(traced: Traced) -> Vec<SpanData> {
    let own = Own::of(&traced);
    let Traced { backend, kind, target, operation, span, steps, began, began_unix, chaos, .. } =
        &traced;
    let place = Place { backend, kind, target, operation };
    let at =
        |reading: Reading| UNIX_EPOCH + Duration::from_nanos(*began_unix) + reading.since(*began);
    let mut spans = Vec::with_capacity(1 + steps.len());
    let chaos = chaos.map(|kind| KeyValue::new("fusebox.chaos", kind));
    let root = Shape {
        id: span.span_id,
        parent: traced.parent.unwrap_or(0),
        is_remote: traced.parent.is_some(),
        name: own.name,
        kind: own.kind,
        attributes: own.attributes.into_iter().chain(chaos).collect(),
        status: own.status,
        links: own.link.into_iter().collect(),
        events: Vec::new(),
    };
    spans.push(root.span(span.trace_id, at(*began), at(traced.ended)));
    for step in steps {
        let shape = place.step(step, span.span_id, at(step.ended));
        spans.push(shape.span(span.trace_id, at(step.began), at(step.ended)));
    }
    spans
}

/// The span by which a collector is tested.
pub(super) fn test() -> SpanData {
    let now = SystemTime::now();
    let shape = Shape {
        name: "fusebox trace-test".into(),
        kind: SpanKind::Internal,
        id: new_span_id(),
        ..Shape::default()
    };
    shape.span(TEST_TRACE, now, now)
}

/// What a span is made of beside its trace and times.
struct Shape {
    id: u64,
    parent: u64,
    is_remote: bool,
    name: Cow<'static, str>,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
    status: Status,
    links: Vec<Link>,
    events: Vec<Event>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            id: 0,
            parent: 0,
            is_remote: false,
            name: Cow::Borrowed(""),
            kind: SpanKind::Internal,
            attributes: Vec::new(),
            status: Status::Unset,
            links: Vec::new(),
            events: Vec::new(),
        }
    }
}

impl Shape {
    fn span(self, trace_id: u128, start_time: SystemTime, end_time: SystemTime) -> SpanData {
        let id = if self.id == 0 { new_span_id() } else { self.id };
        let mut events = SpanEvents::default();
        events.events = self.events;
        let mut links = SpanLinks::default();
        links.links = self.links;
        SpanData {
            span_context: context(trace_id, id, false),
            parent_span_id: SpanId::from(self.parent),
            parent_span_is_remote: self.is_remote,
            span_kind: self.kind,
            name: self.name,
            start_time,
            end_time,
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events,
            links,
            status: self.status,
            instrumentation_scope: InstrumentationScope::builder("fusebox")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        }
    }
}

fn context(trace_id: u128, span_id: u64, is_remote: bool) -> SpanContext {
    SpanContext::new(
        TraceId::from(trace_id),
        SpanId::from(span_id),
        TraceFlags::SAMPLED,
        is_remote,
        TraceState::NONE,
    )
}

/// What a record's own span says.
struct Own {
    name: Cow<'static, str>,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
    status: Status,
    link: Option<Link>,
}

impl Own {
    fn of(traced: &Traced) -> Self {
        match &traced.what {
            TraceSubject::Call { route, write, result, .. } => {
                Self::call(traced, *route, *write, result)
            }
            TraceSubject::Replay { op_id, origin, waited, together } => {
                let mut attributes = vec![
                    KeyValue::new("messaging.system", "fusebox"),
                    KeyValue::new("messaging.operation.name", "replay"),
                    KeyValue::new("messaging.operation.type", "process"),
                    KeyValue::new("messaging.destination.name", traced.backend.clone()),
                    KeyValue::new("messaging.message.id", op_id.to_string()),
                    KeyValue::new("fusebox.waited_ms", integer(waited.as_millis())),
                ];
                if *together > 1 {
                    let count = integer(*together as u128);
                    attributes.push(KeyValue::new("messaging.batch.message_count", count));
                }
                let failed = traced.steps.iter().find_map(|step| match &step.kind {
                    StepKind::Attempt { error, .. } => error.as_deref(),
                    _ => None,
                });
                let status = failed.map_or(Status::Unset, |(code, text)| {
                    attributes.push(KeyValue::new("error.type", code.to_string()));
                    error_status(text)
                });
                let from = context(origin.trace_id, origin.span_id, true);
                let of_append = vec![KeyValue::new("fusebox.link", "append")];
                Self {
                    name: format!("replay {}", traced.backend).into(),
                    kind: SpanKind::Consumer,
                    attributes,
                    status,
                    link: Some(Link::new(from, of_append, 0)),
                }
            }
        }
    }

    fn call(traced: &Traced, route: Route, write: bool, result: &Result<Answered, Failed>) -> Self {
        let (name, way) = match route {
            Route::Http(route) => {
                let method = KeyValue::new("http.request.method", "POST");
                (format!("POST {route}"), [method, KeyValue::new("http.route", route)])
            }
            Route::Door(AtDoor { address, ahead }) => {
                let name = format!("{} {}", traced.kind, traced.operation);
                let ahead = KeyValue::new("fusebox.pipelined", i64::from(ahead));
                (name, [KeyValue::new("fusebox.door", address), ahead])
            }
        };
        let [way, more] = way;
        let mut attributes = vec![
            way,
            more,
            KeyValue::new("fusebox.backend", traced.backend.clone()),
            KeyValue::new("fusebox.operation", traced.operation.clone()),
            KeyValue::new("fusebox.class", if write { "write" } else { "read" }),
        ];
        let (http, status) = match result {
            Ok(Answered { source, ack, op_id }) => {
                attributes.push(KeyValue::new("fusebox.source", source.as_str()));
                let durable = *ack == Some(AckLevel::Durable);
                if ack.is_some() {
                    let word = if durable { "durable" } else { "applied" };
                    attributes.push(KeyValue::new("fusebox.ack", word));
                }
                if let Some(op_id) = op_id {
                    attributes.push(KeyValue::new("fusebox.op_id", op_id.to_string()));
                }
                (if durable { 202 } else { 200 }, Status::Unset)
            }
            Err(Failed { kind, code, detail }) => {
                attributes.push(KeyValue::new("error.type", code.to_string()));
                let http = status_of(*kind);
                // By the conventions of HTTP servers a 4xx is the caller's error, not the span's.
                let status = if http < 500 { Status::Unset } else { error_status(detail) };
                if *kind == CallErrorKind::Refused {
                    attributes.push(KeyValue::new("db.response.status_code", code.to_string()));
                }
                (http, status)
            }
        };
        match route {
            Route::Http(_) => {
                attributes.push(KeyValue::new("http.response.status_code", i64::from(http)));
            }
            Route::Door(_) => {
                attributes.push(KeyValue::new("db.system.name", system_name(traced.kind)));
                attributes.push(KeyValue::new("db.operation.name", traced.operation.clone()));
            }
        }
        Self { name: name.into(), kind: SpanKind::Server, attributes, status, link: None }
    }
}

fn error_status(text: &str) -> Status {
    Status::error(text.chars().take(TEXT_MAX).collect::<String>())
}

fn integer(number: u128) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The place of a record's steps.
struct Place<'a> {
    backend: &'a str,
    kind: &'static str,
    target: &'a Target,
    operation: &'a Cow<'static, str>,
}

impl Place<'_> {
    fn step(&self, step: &Step, parent: u64, ended: SystemTime) -> Shape {
        let plain = |name: &'static str| Shape { name: name.into(), parent, ..Shape::default() };
        match &step.kind {
            StepKind::Attempt { span_id, number, verdict: Some(verdict), error, transition } => {
                let mut shape = self.attempt(*number, *verdict, error.as_deref());
                (shape.id, shape.parent) = (*span_id, parent);
                if let Some((from, to)) = transition {
                    let change = vec![
                        KeyValue::new("fusebox.breaker.from", from.as_str()),
                        KeyValue::new("fusebox.breaker.to", to.as_str()),
                    ];
                    shape.events.push(Event::new("breaker transition", ended, change, 0));
                }
                shape
            }
            StepKind::Attempt { error, .. } => {
                let code = error.as_ref().map_or_else(String::new, |it| it.0.to_string());
                let attributes = vec![KeyValue::new("error.type", code)];
                Shape { attributes, ..plain("not let through") }
            }
            StepKind::Backoff => plain("backoff"),
            StepKind::Fence => plain("wait for queued writes"),
            StepKind::AwaitReplay => plain("wait for replay"),
            StepKind::NoteSending => plain("note sending"),
            StepKind::CacheLookup { hit } => {
                let attributes = vec![KeyValue::new("fusebox.cache.hit", *hit)];
                Shape { attributes, ..plain("cache look-up") }
            }
            StepKind::Fallback(source) => {
                let word = source.map_or("error", fusebox_actors::Source::as_str);
                let attributes = vec![KeyValue::new("fusebox.source", word)];
                Shape { attributes, ..plain("fallback") }
            }
            StepKind::Append { span_id, op_id, error } => Shape {
                id: *span_id,
                parent,
                name: format!("append {}", self.backend).into(),
                kind: SpanKind::Producer,
                attributes: vec![
                    KeyValue::new("messaging.system", "fusebox"),
                    KeyValue::new("messaging.operation.name", "append"),
                    KeyValue::new("messaging.operation.type", "send"),
                    KeyValue::new("messaging.destination.name", self.backend.to_owned()),
                    KeyValue::new("messaging.message.id", op_id.to_string()),
                ],
                status: error.as_deref().map_or(Status::Unset, error_status),
                ..Shape::default()
            },
        }
    }

    fn attempt(
        &self,
        number: u32,
        verdict: Verdict,
        error: Option<&(Cow<'static, str>, String)>,
    ) -> Shape {
        let mut attributes = vec![
            KeyValue::new("db.system.name", system_name(self.kind)),
            KeyValue::new("db.operation.name", self.operation.clone()),
            KeyValue::new("server.address", self.target.host().to_owned()),
            KeyValue::new("fusebox.attempt", i64::from(number)),
            KeyValue::new("fusebox.verdict", verdict_word(verdict)),
        ];
        attributes
            .extend(self.target.port().map(|port| KeyValue::new("server.port", i64::from(port))));
        let namespace = self.target.namespace();
        if !namespace.is_empty() {
            attributes.push(KeyValue::new("db.namespace", namespace.to_owned()));
        }
        let status = error.map_or(Status::Unset, |(code, text)| {
            attributes.push(KeyValue::new("error.type", code.to_string()));
            error_status(text)
        });
        Shape {
            name: format!("{} {}", self.operation, self.backend).into(),
            kind: SpanKind::Client,
            attributes,
            status,
            ..Shape::default()
        }
    }
}

fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Success => "success",
        Verdict::Failure => "failure",
        Verdict::Neutral => "neutral",
    }
}

/// `db.system.name`; the conventions have no name for Firestore, so its product's is formed as theirs are.
fn system_name(kind: &'static str) -> &'static str {
    if kind == "firestore" { "gcp.firestore" } else { kind }
}
