//! Orders of operators.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State},
};
use fusebox_actors::{AdminError, view::BackendView};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    api::Api,
    encoding::NotDecoded,
    problem::{Checked, Problem},
};
use crate::{ingress::peer::Who, traces::TestResult};

/// The largest body of an order, in bytes.
const ORDER_MAX: usize = 64 << 10;
/// The longest reason that is kept.
const REASON_MAX: usize = 1_024;

/// The JSON of `body`, or the default if it is empty.
///
/// # Errors
/// 413 above 64 KiB, 400 if it is malformed, naming the key and the place.
pub(crate) async fn optional_json<T: DeserializeOwned + Default>(body: Body) -> Result<T, Problem> {
    let read =
        tokio::time::timeout(Duration::from_secs(5), Limited::new(body, ORDER_MAX).collect());
    let body = match read.await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(Problem::too_large(ORDER_MAX as u64));
        }
        Ok(Err(error)) => {
            let why = NotDecoded::in_error(&*error);
            return Err(Problem::malformed(
                why.unwrap_or_else(|| "the body ended too early".to_owned()),
            ));
        }
        Err(_) => return Err(Problem::malformed("the body did not arrive within 5 seconds")),
    };
    if body.is_empty() {
        return Ok(T::default());
    }
    let mut json = serde_json::Deserializer::from_slice(&body);
    let read = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let key = error.path().to_string();
        let why = error.into_inner();
        Problem::malformed(if key == "." { why.to_string() } else { format!("{key}: {why}") })
    })?;
    json.end().map_err(|error| Problem::malformed(error.to_string()))?;
    Ok(read)
}

/// `{"reason":"…","for":"10m"}`
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Force {
    reason: Option<String>,
    #[serde(rename = "for", with = "humantime_serde")]
    lasting: Option<Duration>,
}

impl Force {
    async fn read(body: Body) -> Result<Self, Problem> {
        let read: Self = optional_json(body).await?;
        if read.reason.as_ref().is_some_and(|reason| reason.len() > REASON_MAX) {
            return Err(Problem::malformed(format!("reason must be at most {REASON_MAX} bytes")));
        }
        Ok(read)
    }
}

/// Reads the order that ends a forced state, or what a breaker remembers: its reason is logged, and how long it is to
/// last means nothing.
async fn ends(name: &str, order: &str, who: Who, body: Body) -> Result<(), Problem> {
    let Force { reason, .. } = Force::read(body).await.map_err(|problem| problem.of(name))?;
    if let Some(reason) = reason {
        tracing::info!(backend = name, order, %who, reason, "the reason of an order");
    }
    Ok(())
}

async fn force(
    api: &Api,
    name: &str,
    who: Who,
    body: Body,
    open: bool,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(name)?;
    let Force { reason, lasting } = Force::read(body).await.map_err(|problem| problem.of(name))?;
    let reason = reason.unwrap_or_else(|| format!("by {who}"));
    backend.force(open, reason, lasting).await.map_err(|error| Problem::from(error).of(name))?;
    breaker(api, name)
}

/// The answer to an order about a breaker: what it is now.
fn breaker(api: &Api, name: &str) -> Result<Json<Value>, Problem> {
    Ok(Json(json!({ "backend": name, "breaker": api.backend(name)?.0.view().breaker })))
}

/// POST /admin/circuit-breaker/{backend}/force-open
pub(crate) async fn force_open(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    force(&api, &name, who, body, true).await
}

/// POST /admin/circuit-breaker/{backend}/force-close
pub(crate) async fn force_close(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    force(&api, &name, who, body, false).await
}

/// POST /admin/circuit-breaker/{backend}/release
pub(crate) async fn release(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(&name)?;
    // What cannot be released is answered before its body.
    if backend.view().breaker.forced.is_some() {
        ends(&name, "release", who, body).await?;
    }
    let done = backend.release().await;
    done.map_err(|error| Problem::from(error).of(&name))?;
    breaker(&api, &name)
}

/// POST /admin/circuit-breaker/{backend}/reset
pub(crate) async fn reset(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(&name)?;
    ends(&name, "reset", who, body).await?;
    let done = backend.reset().await;
    done.map_err(|error| Problem::from(error).of(&name))?;
    breaker(&api, &name)
}

/// `{"backend":"redis"}`
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Recovery {
    backend: Option<String>,
}

/// POST /admin/resilience/force-recovery
pub(crate) async fn force_recovery(
    State(api): State<Arc<Api>>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Recovery { backend } = optional_json(body).await?;
    if let Some(name) = &backend {
        api.backend(name)?;
    }
    let tried = api.daemon.fusebox.recover(backend.as_deref()).await?;
    // What an operator's order holds does not recover by another one: it is named, and what releases it.
    let all = api.daemon.fusebox.backends();
    let wanted = all.iter().filter(|it| backend.as_deref().is_none_or(|name| name == it.name()));
    let held: Vec<Value> = wanted.filter_map(|it| held(&it.view())).collect();
    Ok(Json(json!({ "half_open": tried, "held": held })))
}

/// A backend that is held by an operator's order, by which, and what ends that.
fn held(view: &BackendView) -> Option<Value> {
    let name = &view.name;
    let (by, release) = match &view.breaker.forced {
        _ if view.offline => ("offline".to_owned(), format!("fusebox online {name}")),
        Some(force) => {
            (format!("forced {}", force.state), format!("fusebox breaker {name} release"))
        }
        None => return None,
    };
    Some(json!({ "backend": name, "by": by, "release": release }))
}

/// POST /admin/backends/{backend}/offline
pub(crate) async fn offline(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Value>, Problem> {
    set_offline(&api, &name, true).await
}

/// POST /admin/backends/{backend}/online
pub(crate) async fn online(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Value>, Problem> {
    set_offline(&api, &name, false).await
}

async fn set_offline(api: &Api, name: &str, offline: bool) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(name)?;
    backend.set_offline(offline).await.map_err(|error| Problem::from(error).of(name))?;
    Ok(Json(json!({ "backend": name, "offline": offline })))
}

/// POST /admin/backends/{backend}/accept-retarget
pub(crate) async fn accept_retarget(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(&name)?;
    backend.accept_retarget().await.map_err(|error| Problem::from(error).of(&name))?;
    Ok(Json(json!({ "backend": name, "target": backend.view().target })))
}

/// POST /admin/backends/{backend}/accept-loss
pub(crate) async fn accept_loss(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Value>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let accepted = api.daemon.accept_loss(&backend).await;
    accepted.map_err(|error| Problem::from(error).of(&name))?;
    Ok(Json(json!({ "backend": name, "accepted": true })))
}

/// POST /admin/backends/accept-clone
pub(crate) async fn accept_clone(State(api): State<Arc<Api>>) -> Result<Json<Value>, Problem> {
    api.daemon.accept_clone().await?;
    Ok(Json(json!({ "accepted": true })))
}

/// POST /admin/config/reload
pub(crate) async fn reload(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
) -> Result<Json<Value>, Problem> {
    let changed = api.daemon.reload(&who.to_string()).await.map_err(AdminError::Conflict)?;
    Ok(Json(json!({ "changed": changed })))
}

/// POST /admin/trace-test
pub(crate) async fn trace_test(State(api): State<Arc<Api>>) -> Result<Json<TestResult>, Problem> {
    let off = || {
        AdminError::Conflict(
            "traces are off: in the daemon's environment, OTEL_EXPORTER_OTLP_ENDPOINT names no usable collector"
                .to_owned(),
        )
    };
    let traces = api.daemon.traces.as_ref().ok_or_else(off)?;
    Ok(Json(traces.test().await))
}

/// `{"filter":"debug,fusebox=trace","for":"10m"}`
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogFilter {
    filter: Option<String>,
    #[serde(rename = "for", with = "humantime_serde")]
    lasting: Option<Duration>,
}

/// GET /admin/log
pub(crate) async fn log() -> Json<Value> {
    let (filter, usual) = crate::telemetry::filter();
    Json(json!({ "filter": filter, "usual": usual }))
}

/// PUT /admin/log; without a filter the usual one.
pub(crate) async fn set_log(body: Body) -> Result<Json<Value>, Problem> {
    let LogFilter { filter, lasting } = optional_json(body).await?;
    let filter = filter.unwrap_or_else(|| crate::telemetry::filter().1);
    crate::telemetry::set_filter(&filter, lasting)
        .map_err(|why| Problem::malformed(format!("filter: {why}")))?;
    Ok(log().await)
}

/// `?thread=`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Panics {
    thread: Option<String>,
}

/// POST /admin/backends/{backend}/panic: a test hook. The backend's actor panics, or a thread of that name.
pub(crate) async fn panic(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Checked(Query(Panics { thread })): Checked<Query<Panics>>,
) -> Result<Json<Value>, Problem> {
    let backend = api.backend(&name)?.0;
    match thread {
        None => backend.panic_for_test(),
        Some(thread) => drop(std::thread::Builder::new().name(thread).spawn(panic_for_test)),
    }
    Ok(Json(json!({ "backend": name })))
}

#[expect(clippy::panic, reason = "tests of the panic hook need a thread that panics")]
fn panic_for_test() {
    panic!("told to panic by a test");
}
