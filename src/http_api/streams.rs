//! Live queries: opened with a POST, followed as server-sent events.

use std::{borrow::Cow, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::HeaderMap,
    response::Sse as SseResponse,
    response::sse::{Event as Sse, KeepAlive, KeepAliveStream},
};
use fusebox_actors::connector::{Follow, SharedConnector};
use futures_util::{Stream, stream};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use tokio::sync::watch;

use super::{
    api::Api,
    body::{Admitted, JSON_MAX},
    http::Connected,
    problem::{Checked, Problem},
};
use crate::ingress::gate::{Part, Pooled};

/// A live query. Its kind says what it consists of, and reads it.
pub(crate) enum QueryJson {}

impl JsonSchema for QueryJson {
    fn schema_name() -> Cow<'static, str> {
        "LiveQuery".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "The path of a document, or a query, of the backend's kind.",
            "additionalProperties": true,
        })
    }
}

/// A live query that is open.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Opened {
    /// Its name.
    id: String,
    /// The path at which it is followed.
    path: String,
}

struct Follower {
    follow: Box<dyn Follow>,
    stopping: watch::Receiver<bool>,
    /// Keeps the stream's owner alive when a reload exchanges it.
    _connector: SharedConnector,
    _place: Part,
}

/// POST /v1/backends/{backend}/streams
pub(crate) async fn open(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(connected): Extension<Connected>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Opened>, Problem> {
    let (backend, kind) = api.backend(&name)?;
    let mut place = Admitted::new(&connected.account);
    let json = place.read(body, JSON_MAX).await?;
    let malformed = |detail: String| Problem::malformed(detail).of(&name);
    let query = kind.stream_from_json(&json, &headers).map_err(malformed)?;
    let connector = backend.connector();
    let streams = connector.streams().ok_or_else(|| none(&name))?;
    let id =
        streams.open(query, backend.gate()).map_err(|refused| Problem::from(refused).of(&name))?;
    let path = format!("/v1/backends/{name}/streams/{id}");
    Ok(Json(Opened { id, path }))
}

/// GET /v1/backends/{backend}/streams/{id}
pub(crate) async fn follow(
    State(api): State<Arc<Api>>,
    Checked(Path((name, id))): Checked<Path<(String, String)>>,
    Extension(connected): Extension<Connected>,
) -> Result<SseResponse<KeepAliveStream<impl Stream<Item = Result<Sse, Infallible>>>>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let connector = backend.connector();
    let streams = connector.streams().ok_or_else(|| none(&name))?;
    let follow = streams.follow(&id).ok_or_else(|| {
        let detail = format!("there is no stream {id:?}: open it again");
        Problem::not_found("no_such_stream", detail).of(&name)
    })?;
    let follower = Follower {
        follow,
        stopping: api.daemon.stopping(),
        _connector: connector,
        _place: connected.account.take(Pooled::Listeners, 1)?,
    };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = tokio::select! {
            event = follower.follow.next() => event?,
            _ = follower.stopping.wait_for(|stopping| *stopping) => return None,
        };
        let data = String::from_utf8_lossy(&event.data);
        Some((Ok(Sse::default().event(event.event).data(data)), follower))
    });
    let alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(SseResponse::new(events).keep_alive(alive))
}

fn none(backend: &str) -> Problem {
    Problem::not_found("no_streams", "a backend of this kind has no live queries").of(backend)
}
