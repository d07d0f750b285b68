//! The queue: listings for everybody; payloads, what quotes them, and orders for admins.

use std::{str::FromStr, sync::Arc};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State},
    response::Response,
};
use bytes::Bytes;
use fusebox_actors::{
    Backend, Open,
    view::{Place, QueuedCallView},
};
use fusebox_state::OpId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    admin::optional_json,
    api::Api,
    body::{Admitted, json_response, json_text, listing},
    http::Connected,
    problem::{Checked, Count, Problem},
};
use crate::{config::size, daemon::compaction::Compacted, ingress::peer::Who, kinds::port::Kind};

/// The most calls of one page.
const PAGE_MAX: usize = 1_000;

/// What page is wanted.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    /// Which list; `pending` if it is not said.
    #[schemars(extend("enum" = ["pending", "dead"]))]
    state: Option<String>,
    /// The `next` of another page, or the `op_id` of a call in the list: the page begins behind it.
    after: Option<String>,
    /// The most calls of the page, 1 to 1,000; 100 if it is not said.
    #[schemars(extend("minimum" = 1))]
    limit: Option<Count<PAGE_MAX>>,
}

fn op_id(text: &str) -> Result<OpId, Problem> {
    OpId::from_str(text).map_err(|error| Problem::malformed(error.to_string()))
}

/// The place after which a page begins: the `next` of another page, or a call that is in the same list.
fn place(backend: &Backend, dead: bool, after: &str) -> Result<Place, Problem> {
    // An op_id has 26 characters, and no place has as many.
    if let Some(place) = Some(after).filter(|after| after.len() < 26).and_then(|it| it.parse().ok())
    {
        return Ok(place);
    }
    let op_id = OpId::from_str(after).map_err(|_| {
        let wanted = "after must be the next of another page, or an op_id";
        Problem::malformed(format!("{wanted}, got {after:?}"))
    })?;
    backend.place_of(dead, op_id).ok_or_else(|| {
        let (name, list) = (backend.name(), if dead { "dead letters" } else { "waiting calls" });
        let detail = format!(
            "after: {op_id} is not, or no longer, among the {list} of {name}; the next of a page stays valid"
        );
        Problem::not_found("no_such_call", detail).of(name)
    })
}

/// GET /v1/backends/{backend}/queue
pub(crate) async fn page(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
    Extension(connected): Extension<Connected>,
    Checked(Path(name)): Checked<Path<String>>,
    Checked(Query(query)): Checked<Query<PageQuery>>,
) -> Result<Response, Problem> {
    let (backend, _) = api.backend(&name)?;
    let dead = match query.state.as_deref() {
        None | Some("pending") => false,
        Some("dead") => true,
        Some(other) => {
            let detail = format!("state must be pending or dead, got {other:?}");
            return Err(Problem::malformed(detail));
        }
    };
    let after = query.after.as_deref().map(|after| place(&backend, dead, after)).transpose()?;
    let limit = query.limit.map_or(100, Count::get).max(1);
    let page = backend.queue_page(dead, after, limit).await.shown_to(who.admin);
    listing(&connected.account, &page)
}

/// What is wanted of a call.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShowQuery {
    /// Whether an admin is shown its body; they are if it is not said.
    call: Option<bool>,
}

/// A queued call.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ShownCall {
    #[serde(flatten)]
    view: QueuedCallView,
    /// Its body as JSON; null if it was left out, or cannot be read. For admins who want it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    call: Option<Value>,
    /// Why the body was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    call_left_out: Option<String>,
}

/// `GET /v1/backends/{backend}/queue/{op_id}`
pub(crate) async fn show(
    State(api): State<Arc<Api>>,
    Checked(Path((name, id))): Checked<Path<(String, String)>>,
    Checked(Query(wanted)): Checked<Query<ShowQuery>>,
    Extension(who): Extension<Who>,
    Extension(connected): Extension<Connected>,
) -> Result<Response, Problem> {
    let (backend, kind) = api.backend(&name)?;
    let id = op_id(&id)?;
    let Some(view) = backend.queued_call(id).await else {
        let detail = format!("the queue of {name} has no call or dead letter {id}");
        return Err(Problem::not_found("no_such_call", detail).of(&name));
    };
    let view = view.shown_to(who.admin);
    if !who.admin || wanted.call == Some(false) {
        let shown = ShownCall { view, call: None, call_left_out: None };
        return listing(&connected.account, &shown);
    }
    let room = Admitted::new(&connected.account);
    // The room goes along: who asked may leave while the body is being read.
    let shown = tokio::task::spawn_blocking(move || {
        let sequence = view.sequence;
        with_call(view, kind, room, || backend.queued_body(sequence))
    });
    let shown = shown.await.map_err(|error| Problem::internal(error.to_string()))?;
    shown.map_err(|problem| problem.of(&name))
}

/// The call with its body, which `read` reads once there is room for it. A body for which there can never be room is
/// left out.
fn with_call(
    view: QueuedCallView,
    kind: &dyn Kind,
    mut room: Admitted,
    read: impl FnOnce() -> Option<Bytes>,
) -> Result<Response, Problem> {
    let (bytes, most) = (view.bytes, room.shown_max());
    let call_left_out = (bytes > most).then(|| {
        let (bytes, most) = (size(bytes), size(most));
        format!("the call has {bytes}, and calls of at most {most} are shown")
    });
    let mut call = Value::Null;
    if call_left_out.is_none() {
        room.hold_shown(bytes)?;
        call = read().map_or(Value::Null, |body| kind.body_to_json(&body));
    }
    let text = json_text(&ShownCall { view, call: Some(call), call_left_out })?;
    Ok(json_response(room.reply(text)))
}

/// A replay that begins.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Replaying {
    /// The calls that wait.
    waiting: u64,
}

/// POST /admin/backends/{backend}/queue/replay
pub(crate) async fn replay(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Replaying>, Problem> {
    let waiting = api.backend(&name)?.0.replay();
    let waiting = waiting.map_err(|error| Problem::from(error).of(&name))?;
    Ok(Json(Replaying { waiting }))
}

/// An order to write the store into new files.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Compact {
    /// Whether stores that were set aside are deleted, too.
    purge: bool,
}

/// `POST /admin/backends/{backend}/queue/compact`
pub(crate) async fn compact(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    body: Body,
) -> Result<Json<Compacted>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let Compact { purge } = optional_json(body).await?;
    let compacted = api.daemon.compact(&backend, purge).await;
    Ok(Json(compacted.map_err(|error| Problem::from(error).of(&name))?))
}

/// An order to requeue a dead letter.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Requeue {
    /// Whether it is requeued even if its lane was, or may have been, written since.
    force: bool,
    /// The operator has checked that it was not applied.
    not_applied: bool,
}

/// A call after an order about it.
#[derive(Serialize, JsonSchema)]
pub(crate) struct CallNow {
    /// Its name.
    op_id: OpId,
    /// What it is now.
    state: StateNow,
}

/// What a call is after an order about it.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum StateNow {
    /// It waits at the tail of its lane.
    Pending,
    /// It is gone for good.
    Discarded,
}

/// `POST /admin/backends/{backend}/queue/{op_id}/requeue`
pub(crate) async fn requeue(
    State(api): State<Arc<Api>>,
    Checked(Path((name, id))): Checked<Path<(String, String)>>,
    body: Body,
) -> Result<Json<CallNow>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let id = op_id(&id)?;
    let Requeue { force, not_applied } = optional_json(body).await?;
    let requeued = backend.requeue(id, force, not_applied).await;
    requeued.map_err(|error| Problem::from(error).of(&name))?;
    if not_applied {
        tracing::info!(backend = name, op_id = %id, "an operator says that it was not applied");
    }
    Ok(Json(CallNow { op_id: id, state: StateNow::Pending }))
}

/// `DELETE /admin/backends/{backend}/queue/{op_id}`
pub(crate) async fn discard(
    State(api): State<Arc<Api>>,
    Checked(Path((name, id))): Checked<Path<(String, String)>>,
) -> Result<Json<CallNow>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let id = op_id(&id)?;
    backend.discard(id).await.map_err(|error| Problem::from(error).of(&name))?;
    tracing::info!(backend = name, op_id = %id, "queued call discarded by an operator");
    Ok(Json(CallNow { op_id: id, state: StateNow::Discarded }))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::json;

    use super::*;
    use crate::ingress::gate::{
        Gate, Pooled,
        testing::{bytes_used, user},
    };

    async fn shown(response: Response) -> Value {
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn a_body_is_read_once_there_is_room_for_it_or_is_left_out() {
        // Half of it is room for the largest that is shown.
        let gate = Gate::new(800 << 20);
        let kind = crate::kinds::find("redis").unwrap();
        let body = Bytes::from("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
        let of = |bytes: u64| {
            let view = QueuedCallView { bytes, ..QueuedCallView::default() };
            let room = Admitted::new(&gate.account(user(1)));
            let mut was_read = false;
            let response = with_call(view, kind, room, || {
                was_read = true;
                assert_eq!(bytes_used(&gate), 400 * bytes, "before it is read");
                Some(body.clone())
            });
            (response, was_read)
        };
        let (response, was_read) = of(1 << 20);
        assert!(was_read);
        let told = shown(response.unwrap()).await;
        assert_eq!((&told["call"], &told["bytes"]), (&json!(["GET", "k"]), &json!(1 << 20)));
        assert_eq!(told.get("call_left_out"), None);
        assert_eq!(bytes_used(&gate), 0);

        let (response, was_read) = of((1 << 20) + 1);
        assert!(!was_read);
        let told = shown(response.unwrap()).await;
        assert_eq!((&told["call"], &told["bytes"]), (&Value::Null, &json!((1 << 20) + 1)));
        let why = told["call_left_out"].as_str().unwrap();
        assert!(why.contains("at most 1 MiB are shown"), "{why}");

        let _others = gate.account(user(2)).take(Pooled::Bytes, 600 << 20).unwrap();
        let (response, was_read) = of(1 << 20);
        assert!(!was_read);
        assert_eq!(response.unwrap_err().status(), 429);
    }

    #[test]
    fn no_call_is_shown_that_takes_more_than_half_of_all_room_or_is_larger_than_in_an_export() {
        for (calls_bytes, expected) in
            [(16 << 20, 20_971), (800 << 20, 1 << 20), (1 << 40, 1 << 20)]
        {
            let room = Admitted::new(&Gate::new(calls_bytes).account(user(1)));
            assert_eq!(room.shown_max(), expected, "{calls_bytes}");
        }
    }
}
