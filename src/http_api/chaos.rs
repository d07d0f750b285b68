//! Faults on purpose: what an operator sets, sees and ends.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
};
use fusebox_state::chaos::Order;
use serde_json::{Value, json};

use super::{
    admin::optional_json,
    api::Api,
    problem::{Checked, Problem},
};
use crate::ingress::peer::Who;

/// Whether faults may be set by `who`.
///
/// # Errors
/// 403, and what would let them.
fn allowed(api: &Api, who: Who) -> Result<(), Problem> {
    match api.daemon.config.load().chaos_enabled {
        Some(false) => Err(Problem::forbidden("chaos.enabled = false is set in the configuration")),
        None if who.by_token => Err(Problem::forbidden(
            "over TCP chaos is set only with chaos.enabled = true in the configuration; the admin socket does not need that",
        )),
        Some(true) | None => Ok(()),
    }
}

/// GET /admin/backends/{backend}/chaos
pub(crate) async fn show(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(&name)?;
    Ok(Json(json!({ "backend": name, "chaos": backend.chaos() })))
}

/// PUT /admin/backends/{backend}/chaos
pub(crate) async fn set(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(&name)?;
    allowed(&api, who)?;
    let order: Order = optional_json(body).await?;
    let set = backend.set_chaos(order, who.to_string()).await;
    let set = set.map_err(|error| Problem::from(error).of(&name))?;
    Ok(Json(json!({ "backend": name, "until": set.until, "chaos": set })))
}

/// DELETE /admin/backends/{backend}/chaos
pub(crate) async fn clear(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let cleared = backend.clear_chaos(who.to_string()).await;
    let cleared = cleared.map_err(|error| Problem::from(error).of(&name))?;
    Ok(Json(json!({ "backend": name, "cleared": cleared })))
}
