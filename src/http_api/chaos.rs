//! Faults on purpose: what an operator sets, sees and ends.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
};
use fusebox_actors::view::ChaosView;
use fusebox_state::{UnixMillis, chaos::Order};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    admin::optional_json,
    api::Api,
    problem::{Checked, Problem},
};
use crate::ingress::peer::Who;

/// The faults on purpose of a backend.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ChaosShown {
    /// Its name.
    backend: String,
    /// The faults; null if none are set.
    chaos: Option<ChaosView>,
}

/// Faults on purpose that were set.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ChaosSet {
    /// The backend.
    backend: String,
    /// When they end.
    until: UnixMillis,
    /// The faults.
    chaos: ChaosView,
}

/// A backend after its faults on purpose were ended.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ChaosCleared {
    /// Its name.
    backend: String,
    /// Whether there were any.
    cleared: bool,
}

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
) -> Result<Json<ChaosShown>, Problem> {
    let (backend, _) = api.backend(&name)?;
    Ok(Json(ChaosShown { chaos: backend.chaos(), backend: name }))
}

/// PUT /admin/backends/{backend}/chaos
pub(crate) async fn set(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<ChaosSet>, Problem> {
    let (backend, _) = api.backend(&name)?;
    allowed(&api, who)?;
    let order: Order = optional_json(body).await?;
    let set = backend.set_chaos(order, who.to_string()).await;
    let chaos = set.map_err(|error| Problem::from(error).of(&name))?;
    Ok(Json(ChaosSet { backend: name, until: chaos.until, chaos }))
}

/// DELETE /admin/backends/{backend}/chaos
pub(crate) async fn clear(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
) -> Result<Json<ChaosCleared>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let cleared = backend.clear_chaos(who.to_string()).await;
    let cleared = cleared.map_err(|error| Problem::from(error).of(&name))?;
    Ok(Json(ChaosCleared { backend: name, cleared }))
}
