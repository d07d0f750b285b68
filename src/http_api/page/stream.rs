//! GET /health/stream: what the status page shows, as it changes.
//!
//! A listener is told `hello` (what it may do), `history` (the newest transitions, and those
//! with which the outages that go on began) and `state` (the
//! whole of `/health/resilience`) at once; from then on `state` whenever something of it changed, at
//! most once a second and at least every five, and each event of `/v1/events` that tells nothing of
//! callers. The view is made once for all listeners. What errors say may quote a caller's keys or data:
//! of the errors before a transition only time and code are told here.

use std::{
    collections::VecDeque,
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, extract,
    http::{HeaderMap, HeaderValue, header},
    response::sse::Event as Sse,
    response::{IntoResponse, Response, Sse as SseResponse},
};
use fusebox_actors::{Clock, Event, EventKind};
use fusebox_state::{
    UnixMillis,
    breaker::{State, TransitionRecord},
};
use futures_util::stream;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, Interval, MissedTickBehavior, interval},
};

use crate::{
    daemon::Daemon,
    http_api::{Doors, admit::host_matches, http::Connected, problem::Problem},
    ingress::{
        gate::{Part, Pooled},
        peer::{Caller, Who},
    },
};

/// Between two looks at the state.
const LOOK: Duration = Duration::from_secs(1);
/// A view serves all who look within this time. A little less than [`LOOK`], or every second look of
/// a listener would find the one before.
const FRESH: Duration = Duration::from_millis(900);
/// The longest silence.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Transitions told at the beginning.
const HISTORY: usize = 50;
/// As many as a store keeps: where the beginning of an outage is looked for.
const ALL: usize = 1_000;
/// Members that change by the passing of time alone.
const CLOCKWORK: [&str; 12] = [
    "at",
    "uptime_seconds",
    "oldest_age_ms",
    "since",
    "open_until",
    "until",
    "next_ping_at",
    "recent",
    "drain_seconds",
    "full_seconds",
    "enqueued_per_second",
    "replayed_per_second",
];

/// What all listeners share.
pub(crate) struct Board {
    /// When the doors opened: tells one run of the daemon from another.
    started: UnixMillis,
    newest: Mutex<Option<Arc<Shown>>>,
}

/// The state as it is sent.
struct Shown {
    made: Instant,
    json: String,
    /// Tells whether anything but the time has changed.
    essence: u64,
}

impl Default for Board {
    fn default() -> Self {
        Self { started: Clock::system().unix(), newest: Mutex::default() }
    }
}

impl Board {
    /// The state, made anew where the last one is not fresh.
    fn look(&self, daemon: &Daemon) -> Arc<Shown> {
        let mut newest = self.newest.lock();
        if let Some(shown) = newest.as_ref()
            && shown.made.elapsed() < FRESH
        {
            return Arc::clone(shown);
        }
        let shown = Arc::new(Shown::of(daemon, self.started));
        *newest = Some(Arc::clone(&shown));
        shown
    }
}

impl Shown {
    fn of(daemon: &Daemon, started: UnixMillis) -> Self {
        let mut value = serde_json::to_value(daemon.resilience()).unwrap_or_default();
        without_words(&mut value);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("at".into(), json!(Clock::system().unix()));
            fields.insert("started".into(), json!(started));
        }
        let mut hash = DefaultHasher::new();
        essence(&value, &mut hash);
        Self { made: Instant::now(), json: value.to_string(), essence: hash.finish() }
    }
}

/// Leaves of each remembered error its time and its code: what it says may quote a caller.
fn without_words(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_array_mut().filter(|_| name == "last_errors") {
                    Some(errors) => errors.iter_mut().for_each(only_time_and_code),
                    None => without_words(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(without_words),
        _ => {}
    }
}

fn only_time_and_code(error: &mut Value) {
    if let Some(fields) = error.as_object_mut() {
        fields.retain(|name, _| matches!(name.as_str(), "at" | "code"));
    }
}

fn essence(value: &Value, hash: &mut impl Hasher) {
    match value {
        Value::Object(fields) => {
            let lasting = fields.iter().filter(|(name, _)| !CLOCKWORK.contains(&name.as_str()));
            for (name, value) in lasting {
                name.hash(hash);
                essence(value, hash);
            }
        }
        Value::Array(values) => {
            values.len().hash(hash);
            for value in values {
                essence(value, hash);
            }
        }
        plain => plain.to_string().hash(hash),
    }
}

/// What anybody may be told of an event; `None` for one that is about callers or in words that may
/// quote them.
fn open_to_all(event: &Event) -> Option<(String, Value)> {
    let mut value = match &event.kind {
        EventKind::Transition { .. }
        | EventKind::SystemState { .. }
        | EventKind::Offline { .. }
        | EventKind::Replay { .. }
        | EventKind::Fallback { .. } => serde_json::to_value(event).ok()?,
        EventKind::DeadLetter { .. } => json!({
            "id": event.id, "at": event.at, "backend": event.backend, "event": "dead_letter",
        }),
        _ => return None,
    };
    without_words(&mut value);
    let word = value.get("event")?.as_str()?.to_owned();
    Some((word, value))
}

struct Listener {
    doors: Arc<Doors>,
    first: VecDeque<Sse>,
    events: broadcast::Receiver<Event>,
    stopping: watch::Receiver<bool>,
    looks: Interval,
    /// What was sent last, and when.
    sent: Option<(u64, Instant)>,
    _place: Part,
}

/// GET /health/stream
pub(crate) async fn follow(
    extract::State(doors): extract::State<Arc<Doors>>,
    Extension(connected): Extension<Connected>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let rights = rights(&doors, connected.caller, who, &headers)?;
    // Before the history is read: what happens meanwhile may be told twice, but not never.
    let events = doors.daemon.fusebox.events().subscribe();
    let hello = json!({
        "version": env!("CARGO_PKG_VERSION"), "page": doors.page_version, "rights": rights,
    });
    let history = history(&doors);
    let event = |name: &str, value: &Value| Sse::default().event(name).data(value.to_string());
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let listener = Listener {
        first: VecDeque::from([event("hello", &hello), event("history", &history)]),
        events,
        stopping: doors.daemon.stopping(),
        looks,
        sent: None,
        _place: connected.account.take(Pooled::Pages, 1)?,
        doors,
    };
    let events = stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((Ok::<_, Infallible>(event), listener))
    });
    let mut response = SseResponse::new(events).into_response();
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    Ok(response)
}

/// The newest transitions of all backends, newest last, and with which each outage began that goes on:
/// a backend that is probed in vain for hours has pushed that out of the newest.
fn history(doors: &Doors) -> Value {
    let (mut transitions, mut began) = (Vec::new(), Vec::new());
    for backend in doors.daemon.fusebox.backends() {
        let told = |record: TransitionRecord| (record.at, shown(backend.name(), &record));
        transitions.extend(backend.transitions(HISTORY).into_iter().map(told));
        if backend.view().breaker.state.known() != Some(State::Closed) {
            let all = backend.transitions(ALL);
            let first =
                all.into_iter().rev().find(|record| record.transition.from == State::Closed);
            began.extend(first.map(|record| shown(backend.name(), &record)));
        }
    }
    transitions.sort_by_key(|(at, _)| *at);
    let surplus = transitions.len().saturating_sub(HISTORY);
    let transitions: Vec<Value> = transitions.drain(surplus..).map(|(_, value)| value).collect();
    json!({ "transitions": transitions, "began": began })
}

fn shown(backend: &str, record: &TransitionRecord) -> Value {
    let mut value = serde_json::to_value(record).unwrap_or_default();
    without_words(&mut value);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("backend".into(), json!(backend));
    }
    value
}

/// How whoever listens may give orders: as they are, with a token, or not at all.
///
/// # Errors
/// 403 for a page that was rebound to this address.
fn rights(
    doors: &Doors,
    caller: Caller,
    who: Who,
    headers: &HeaderMap,
) -> Result<&'static str, Problem> {
    let config = doors.daemon.config.load();
    match (caller, &config.http) {
        (Caller::Network, Some(http)) => {
            host_matches(headers, http)?;
            Ok(if http.token.is_some() && !http.is_exposed() { "token" } else { "none" })
        }
        _ => Ok(if who.admin { "admin" } else { "none" }),
    }
}

impl Listener {
    /// The next event; `None` when the daemon stops.
    async fn next(&mut self) -> Option<Sse> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        loop {
            let heard = tokio::select! {
                _ = self.stopping.wait_for(|stopping| *stopping) => return None,
                received = self.events.recv() => Some(received),
                _ = self.looks.tick() => None,
            };
            let told = match heard {
                None => self.state(),
                Some(Ok(event)) => open_to_all(&event).map(|(word, value)| {
                    Sse::default().id(event.id.to_string()).event(word).data(value.to_string())
                }),
                // The state tells what the missed ones led to.
                Some(Err(broadcast::error::RecvError::Lagged(_))) => None,
                Some(Err(broadcast::error::RecvError::Closed)) => return None,
            };
            if told.is_some() {
                return told;
            }
        }
    }

    /// The state, where it is news or the last is long ago.
    fn state(&mut self) -> Option<Sse> {
        let now = Instant::now();
        let shown = self.doors.board.look(&self.doors.daemon);
        let silent = self.sent.is_some_and(|(essence, at)| {
            essence == shown.essence && now.duration_since(at) < HEARTBEAT
        });
        if silent {
            return None;
        }
        self.sent = Some((shown.essence, now));
        Some(Sse::default().event("state").data(&shown.json))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(value: &Value) -> u64 {
        let mut hash = DefaultHasher::new();
        essence(value, &mut hash);
        hash.finish()
    }

    #[test]
    fn the_passing_of_time_is_no_news() {
        let state = |calls: u64, up: u64| {
            json!({ "at": up, "uptime_seconds": up,
                "backends": { "a": { "queue": { "calls": calls, "oldest_age_ms": up } } } })
        };
        assert_eq!(sum(&state(1, 1)), sum(&state(1, 2)));
        assert_ne!(sum(&state(1, 1)), sum(&state(2, 1)));
        assert_ne!(sum(&json!([["a"], []])), sum(&json!([[], ["a"]])));
        assert_ne!(sum(&json!({ "alerts": [] })), sum(&json!({ "alerts": ["x"] })));
    }

    #[test]
    fn what_errors_say_is_left_out_at_any_depth() {
        let error = json!({ "at": "t", "code": "c", "message": "key user:1", "trace_id": "x" });
        let mut value = json!({ "backends": { "a": { "breaker": { "last_transition": {
            "reason": "burst", "last_errors": [error.clone()] } } } }, "transitions": [
            { "last_errors": [error] }] });
        without_words(&mut value);
        let text = value.to_string();
        assert!(!text.contains("user:1") && !text.contains("trace_id"), "{text}");
        assert!(text.contains("\"code\":\"c\"") && text.contains("burst"), "{text}");
    }

    #[test]
    fn events_about_callers_are_told_without_them_or_not_at_all() {
        let told = |kind| {
            let event = Event { id: 1, at: UnixMillis::new(2), backend: Some("a".into()), kind };
            open_to_all(&event).map(|(word, value)| (word, value.to_string()))
        };
        let (word, text) =
            told(EventKind::DeadLetter { op_id: "01J".into(), reason: "user:1".into() }).unwrap();
        assert_eq!(word, "dead_letter");
        assert!(!text.contains("user:1") && !text.contains("01J"), "{text}");
        assert!(told(EventKind::Alert { message: "user:1".into() }).is_none());
        assert!(told(EventKind::Actor { message: "user:1".into() }).is_none());
        let (word, text) = told(EventKind::Offline { offline: true }).unwrap();
        assert_eq!(word, "offline");
        assert!(text.contains("\"offline\":true"), "{text}");
    }
}
