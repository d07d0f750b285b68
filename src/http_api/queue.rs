//! The queue: listings for everybody; payloads, what quotes them, and orders for admins.

use std::{str::FromStr, sync::Arc};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State},
};
use fusebox_actors::{Open, view::QueuePage};
use fusebox_state::OpId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    admin::optional_json,
    api::Api,
    problem::{Checked, Count, Problem},
};
use crate::{daemon::compaction::Compacted, ingress::peer::Who};

/// The most calls of one page.
const PAGE_MAX: usize = 1_000;

/// `?state=&after=&limit=`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    state: Option<String>,
    after: Option<String>,
    limit: Option<Count<PAGE_MAX>>,
}

fn op_id(text: &str) -> Result<OpId, Problem> {
    OpId::from_str(text).map_err(|error| Problem::malformed(error.to_string()))
}

/// GET /v1/backends/{backend}/queue
pub(crate) async fn page(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
    Checked(Path(name)): Checked<Path<String>>,
    Checked(Query(query)): Checked<Query<PageQuery>>,
) -> Result<Json<QueuePage>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let dead = match query.state.as_deref() {
        None | Some("pending") => false,
        Some("dead") => true,
        Some(other) => {
            let detail = format!("state must be pending or dead, got {other:?}");
            return Err(Problem::malformed(detail));
        }
    };
    let after = query.after.as_deref().map(op_id).transpose()?;
    let limit = query.limit.map_or(100, Count::get).max(1);
    Ok(Json(backend.queue_page(dead, after, limit).await.shown_to(who.admin)))
}

/// `GET /v1/backends/{backend}/queue/{op_id}`
pub(crate) async fn show(
    State(api): State<Arc<Api>>,
    Checked(Path((name, id))): Checked<Path<(String, String)>>,
    Extension(who): Extension<Who>,
) -> Result<Json<Value>, Problem> {
    let (backend, kind) = api.backend(&name)?;
    let id = op_id(&id)?;
    let Some((view, body)) = backend.queued_call(id).await else {
        let detail = format!("the queue of {name} has no call or dead letter {id}");
        return Err(Problem::not_found("no_such_call", detail).of(&name));
    };
    let mut shown = serde_json::to_value(view.shown_to(who.admin)).map_err(|error| {
        Problem::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    })?;
    if let (true, Some(fields)) = (who.admin, shown.as_object_mut()) {
        fields.insert("call".into(), kind.body_to_json(&body));
    }
    Ok(Json(shown))
}

/// POST /admin/backends/{backend}/queue/replay
pub(crate) async fn replay(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Value>, Problem> {
    let waiting = api.backend(&name)?.0.replay();
    Ok(Json(json!({ "waiting": waiting.map_err(|error| Problem::from(error).of(&name))? })))
}

/// `{"purge":true}`
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Compact {
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

/// `{"force":true,"not_applied":true}`
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Requeue {
    force: bool,
    /// The operator has checked that it was not applied.
    not_applied: bool,
}

/// `POST /admin/backends/{backend}/queue/{op_id}/requeue`
pub(crate) async fn requeue(
    State(api): State<Arc<Api>>,
    Checked(Path((name, id))): Checked<Path<(String, String)>>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let id = op_id(&id)?;
    let Requeue { force, not_applied } = optional_json(body).await?;
    let requeued = backend.requeue(id, force, not_applied).await;
    requeued.map_err(|error| Problem::from(error).of(&name))?;
    if not_applied {
        tracing::info!(backend = name, op_id = %id, "an operator says that it was not applied");
    }
    Ok(Json(json!({ "op_id": id, "state": "pending" })))
}

/// `DELETE /admin/backends/{backend}/queue/{op_id}`
pub(crate) async fn discard(
    State(api): State<Arc<Api>>,
    Checked(Path((name, id))): Checked<Path<(String, String)>>,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let id = op_id(&id)?;
    backend.discard(id).await.map_err(|error| Problem::from(error).of(&name))?;
    tracing::info!(backend = name, op_id = %id, "queued call discarded by an operator");
    Ok(Json(json!({ "op_id": id, "state": "discarded" })))
}
