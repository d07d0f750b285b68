//! GET /v1/events: what happens from now on, as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Query, State},
    response::Sse as SseResponse,
    response::sse::{Event as Sse, KeepAlive, KeepAliveStream},
};
use fusebox_actors::Event;
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{broadcast, watch};

use super::{
    api::Api,
    http::Connected,
    problem::{Checked, Problem},
};
use crate::ingress::gate::{Part, Pooled};

/// What events are wanted.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    /// Those of this backend, and of the whole system; all if it is not said.
    backend: Option<String>,
}

struct Listener {
    events: broadcast::Receiver<Event>,
    stopping: watch::Receiver<bool>,
    backend: Option<String>,
    _place: Part,
}

/// GET /v1/events
pub(crate) async fn follow(
    State(api): State<Arc<Api>>,
    Extension(connected): Extension<Connected>,
    Checked(Query(filter)): Checked<Query<Filter>>,
) -> Result<SseResponse<KeepAliveStream<impl Stream<Item = Result<Sse, Infallible>>>>, Problem> {
    if let Some(name) = &filter.backend {
        api.backend(name)?;
    }
    let listener = Listener {
        events: api.daemon.fusebox.events().subscribe(),
        stopping: api.daemon.stopping(),
        backend: filter.backend,
        _place: connected.account.take(Pooled::Listeners, 1)?,
    };
    let events = stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((Ok(event), listener))
    });
    let alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(SseResponse::new(events).keep_alive(alive))
}

impl Listener {
    /// The next event that is wanted; `None` when the daemon stops.
    async fn next(&mut self) -> Option<Sse> {
        loop {
            let received = tokio::select! {
                received = self.events.recv() => received,
                _ = self.stopping.wait_for(|stopping| *stopping) => return None,
            };
            match received {
                Ok(event) if self.wants(&event) => return Some(shown(&event)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let text = json!({ "event": "missed", "events": missed }).to_string();
                    return Some(Sse::default().event("missed").data(text));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    fn wants(&self, event: &Event) -> bool {
        self.backend.is_none() || event.backend.is_none() || self.backend == event.backend
    }
}

/// The event with its number as id and its word as name.
fn shown(event: &Event) -> Sse {
    let json = serde_json::to_value(event).unwrap_or_default();
    let word = json.get("event").and_then(serde_json::Value::as_str).unwrap_or("event");
    Sse::default().id(event.id.to_string()).event(word).data(json.to_string())
}

#[cfg(test)]
mod tests {
    use fusebox_actors::{EventBus, EventKind};
    use fusebox_state::UnixMillis;

    use super::*;
    use crate::ingress::gate::{Gate, testing::user};

    #[tokio::test]
    async fn a_listener_hears_its_backend_and_the_whole_until_the_daemon_stops() {
        let bus = EventBus::default();
        let (stop, stopping) = watch::channel(false);
        let place = Gate::new(1).account(user(1)).take(Pooled::Listeners, 1).unwrap();
        let mut listener = Listener {
            events: bus.subscribe(),
            stopping,
            backend: Some("a".into()),
            _place: place,
        };
        let alert = |message: &'static str| EventKind::Alert { message: message.into() };
        bus.publish(UnixMillis::new(1), Some("b"), alert("not ours"));
        bus.publish(UnixMillis::new(2), Some("a"), alert("ours"));
        bus.publish(UnixMillis::new(3), None, alert("everybody's"));
        let text = |event: Option<Sse>| format!("{event:?}");
        assert!(text(listener.next().await).contains("ours"));
        assert!(text(listener.next().await).contains("everybody's"));
        for _ in 0..1_025 {
            bus.publish(UnixMillis::new(4), None, alert("many"));
        }
        assert!(text(listener.next().await).contains("missed"));
        while !listener.events.is_empty() {
            assert!(listener.next().await.is_some());
        }
        stop.send(true).unwrap();
        assert!(listener.next().await.is_none());
    }
}
