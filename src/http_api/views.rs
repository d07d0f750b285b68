//! What can be looked at: health, backends, transitions, metrics, and the page at the root.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use fusebox_actors::{
    Backend, Clock, Event, Open, PastQuery,
    view::{BackendView, ExplainView, ResilienceView},
};
use fusebox_state::{UnixMillis, breaker::TransitionRecord, system::SystemState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    accept,
    api::Api,
    body::listing,
    http::Connected,
    problem::{Checked, Count, Problem},
};
use crate::ingress::{gate::Pooled, peer::Who};

/// The most transitions of one answer.
const HISTORY_MAX: usize = 1_000;
/// The most events of one answer.
const EVENTS_MAX: usize = 10_000;

/// How many transitions are wanted.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Limit {
    /// The most transitions of the answer, at most 1,000; 100 if it is not said.
    limit: Option<Count<HISTORY_MAX>>,
}

/// GET / for whoever does not ask for markup.
pub(crate) fn root(api: &Api) -> String {
    let health = api.daemon.fusebox.health();
    let mut page = format!(
        "fusebox {}\n{} ({:.0} % operational)\n\n",
        env!("CARGO_PKG_VERSION"),
        health.state,
        health.operational_percent
    );
    for (name, backend) in &health.backends {
        page.extend([format!("{name}: {}\n", backend.breaker)]);
    }
    page.push_str(
        "\n/health  /health/live  /health/ready  /health/resilience  /health/stream  /metrics\n",
    );
    page
}

/// GET /health
pub(crate) async fn health(State(api): State<Arc<Api>>) -> Response {
    let health = api.daemon.fusebox.health();
    let status = match health.state.known().unwrap_or_default() {
        SystemState::Healthy | SystemState::Degraded => StatusCode::OK,
        SystemState::Critical | SystemState::Emergency => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(health)).into_response()
}

/// Whether the daemon's own loop runs.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Live {
    /// Whether it does.
    live: bool,
}

/// GET /health/live
pub(crate) async fn live(State(api): State<Arc<Api>>) -> (StatusCode, Json<Live>) {
    let live = api.daemon.fusebox.is_alive();
    (status(live), Json(Live { live }))
}

/// Whether the daemon is ready for calls.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Ready {
    /// Whether the stores are recovered and the daemon is not draining.
    ready: bool,
}

/// GET /health/ready
pub(crate) async fn ready(State(api): State<Arc<Api>>) -> (StatusCode, Json<Ready>) {
    let ready = api.daemon.fusebox.is_ready() && !api.daemon.is_stopping();
    (status(ready), Json(Ready { ready }))
}

fn status(is_well: bool) -> StatusCode {
    if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// GET /health/resilience
pub(crate) async fn resilience(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
) -> Json<ResilienceView> {
    Json(api.daemon.resilience().shown_to(who.admin))
}

/// Every backend.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Backends {
    /// Each of them.
    backends: Vec<BackendView>,
}

/// GET /v1/backends
pub(crate) async fn backends(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
) -> Json<Backends> {
    let backends: Vec<BackendView> =
        api.daemon.fusebox.backends().iter().map(|backend| backend.view()).collect();
    Json(Backends { backends: backends.shown_to(who.admin) })
}

/// GET /v1/backends/{backend}
pub(crate) async fn backend(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<BackendView>, Problem> {
    Ok(Json(api.backend(&name)?.0.view().shown_to(who.admin)))
}

/// GET /v1/backends/{backend}/explain
pub(crate) async fn explain(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<ExplainView>, Problem> {
    let mut view = api.backend(&name)?.0.explain().shown_to(who.admin);
    if let Some(jaeger) = &api.daemon.config.load().jaeger_url {
        for trace in &mut view.traces {
            trace.url = Some(format!("{jaeger}/trace/{}", trace.trace_id));
        }
    }
    Ok(Json(view))
}

/// A transition in a history that spans backends.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "BackendTransition")]
struct Told {
    /// Whose breaker it is.
    backend: String,
    #[serde(flatten)]
    record: TransitionRecord,
}

fn told(name: &str, records: Vec<TransitionRecord>) -> impl Iterator<Item = Told> {
    records.into_iter().map(move |record| Told { backend: name.to_owned(), record })
}

/// Transitions.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Transitions {
    /// Each of them, newest last.
    transitions: Vec<Told>,
}

/// GET /v1/backends/{backend}/transitions
pub(crate) async fn transitions(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
    Extension(connected): Extension<Connected>,
    Checked(Path(name)): Checked<Path<String>>,
    Checked(Query(limit)): Checked<Query<Limit>>,
) -> Result<Response, Problem> {
    let records =
        api.backend(&name)?.0.transitions(limit.limit.map_or(100, Count::get)).shown_to(who.admin);
    let transitions = told(&name, records).collect();
    listing(&connected.account, &Transitions { transitions })
}

/// What part of the history is wanted.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// What happened since this time, or this long ago: `2026-11-23T16:00:00Z` or `2h`.
    since: Option<String>,
    /// What happened to this backend, or to the whole system.
    backend: Option<String>,
    /// The most events of the answer, at most 10,000, and the most transitions, at most 1,000; 100 if it is not said.
    limit: Option<Count<EVENTS_MAX>>,
}

/// What happened.
#[derive(Serialize, JsonSchema)]
pub(crate) struct History {
    /// The newest transitions, newest last.
    transitions: Vec<Told>,
    /// The newest events, newest last.
    #[schemars(with = "Vec<Event>")]
    events: Vec<Value>,
    /// Whether there are earlier events.
    more: bool,
}

/// GET /v1/history
pub(crate) async fn history(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
    Extension(connected): Extension<Connected>,
    Checked(Query(wanted)): Checked<Query<Wanted>>,
) -> Result<Response, Problem> {
    let fusebox = &api.daemon.fusebox;
    let backends = match &wanted.backend {
        Some(name) => vec![api.backend(name)?.0],
        None => fusebox.backends(),
    };
    let since = wanted.since.map(|since| crate::since::parse(&since, Clock::system().unix()));
    let since = since.transpose().map_err(|why| Problem::malformed(format!("since {why}")))?;
    let wanted_limit = wanted.limit.map_or(100, Count::get);
    let limit = wanted_limit.min(HISTORY_MAX);
    // Few are answered at once, and no caller's requests fill the line of those that wait for their turn.
    let place = connected.account.take(Pooled::Listeners, 1)?;
    let past = PastQuery { since, backend: wanted.backend, limit: wanted_limit };
    let answer = fusebox.events().past(past, move |past| {
        let transitions = newest(&backends, limit, since, who.admin);
        let history = History { transitions, events: past.events, more: past.more };
        let answer = listing(&connected.account, &history);
        drop(place);
        answer
    });
    answer.await.ok_or_else(|| Problem::internal("the events could not be read"))?
}

/// The newest `limit` transitions of these backends, newest last.
fn newest(
    backends: &[Arc<Backend>],
    limit: usize,
    since: Option<UnixMillis>,
    admin: bool,
) -> Vec<Told> {
    let mut all: Vec<Told> = backends
        .iter()
        .flat_map(|backend| told(backend.name(), backend.transitions(limit).shown_to(admin)))
        .filter(|told| since.is_none_or(|since| told.record.at >= since))
        .collect();
    all.sort_by_key(|told| told.record.at);
    let surplus = all.len().saturating_sub(limit);
    all.drain(..surplus);
    all
}

/// GET /metrics
pub(crate) async fn metrics(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    let format = accept::metrics_format(&headers);
    let said = [
        (header::CONTENT_TYPE, format.content_type()),
        (header::VARY, "accept"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (said, api.daemon.fusebox.metrics_with(format, &api.daemon.doors())).into_response()
}
