//! GET /health/stream: what the status page shows, as it changes.
//!
//! A listener gets `hello` (what it may do), `history` (the newest transitions, and those
//! with which the outages that go on began) and `state` (the
//! whole of `/health/resilience`) at once; from then on `state` whenever something of it changed, at
//! most once a second and at least every five, and each event of `/v1/events` that tells nothing of
//! callers. The view is made once for all listeners. What errors say may quote a caller's keys or data:
//! of the errors before a transition only time and code are sent here.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, extract,
    http::{HeaderMap, HeaderValue, header},
    response::sse::Event as Sse,
    response::{IntoResponse, Response, Sse as SseResponse},
};
use fusebox_actors::{Event, EventKind};
use fusebox_state::breaker::{State, TransitionRecord};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, Interval, MissedTickBehavior, interval},
};

use super::board::without_words;
use crate::{
    http_api::{admit::host_matches, api::Api, http::Connected, problem::Problem},
    ingress::{
        gate::{Part, Pooled},
        peer::{Caller, Who},
    },
};

/// Between two looks at the state.
const LOOK: Duration = Duration::from_secs(1);
/// The longest silence.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Transitions sent at the beginning.
const HISTORY: usize = 50;
/// As many as a store keeps, to find the beginning of an outage.
const ALL: usize = 1_000;
/// What anybody may know of an event; `None` for one that is about callers or in words that may
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
    api: Arc<Api>,
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
    extract::State(api): extract::State<Arc<Api>>,
    Extension(connected): Extension<Connected>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let rights = rights(&api, connected.caller, who, &headers)?;
    // Before the history is read: what happens meanwhile may be sent twice, but not never.
    let events = api.daemon.fusebox.events().subscribe();
    let hello = json!({
        "version": env!("CARGO_PKG_VERSION"), "page": api.page_version, "rights": rights,
    });
    let history = history(&api);
    let event = |name: &str, value: &Value| Sse::default().event(name).data(value.to_string());
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let listener = Listener {
        first: VecDeque::from([event("hello", &hello), event("history", &history)]),
        events,
        stopping: api.daemon.stopping(),
        looks,
        sent: None,
        _place: connected.account.take(Pooled::Pages, 1)?,
        api,
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
fn history(api: &Api) -> Value {
    let (mut transitions, mut began) = (Vec::new(), Vec::new());
    for backend in api.daemon.fusebox.backends() {
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
    api: &Api,
    caller: Caller,
    who: Who,
    headers: &HeaderMap,
) -> Result<&'static str, Problem> {
    let config = api.daemon.config.load();
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

    /// The state, if it is news or the last is long ago.
    fn state(&mut self) -> Option<Sse> {
        let now = Instant::now();
        let shown = self.api.board.look(&self.api.daemon);
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
    use fusebox_state::UnixMillis;

    use super::*;

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
