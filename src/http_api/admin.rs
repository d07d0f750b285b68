//! Orders of operators.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State},
};
use fusebox_actors::{
    AdminError,
    view::{BackendView, BreakerView},
};
use fusebox_state::Target;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

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

/// An order about a breaker.
#[derive(Default, Deserialize, JsonSchema)]
#[schemars(rename = "BreakerOrder")]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Force {
    /// Why, in at most 1,024 bytes. It is logged.
    reason: Option<String>,
    /// How long a forced state lasts, such as `10m`; until it is released if it is not said. For `release` and `reset`
    /// it means nothing.
    #[serde(rename = "for", with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    lasting: Option<Duration>,
}

/// A breaker after an order.
#[derive(Serialize, JsonSchema)]
pub(crate) struct BreakerNow {
    /// Whose it is.
    backend: String,
    /// What it is now.
    breaker: BreakerView,
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
) -> Result<Json<BreakerNow>, Problem> {
    let (backend, _) = api.backend(name)?;
    let Force { reason, lasting } = Force::read(body).await.map_err(|problem| problem.of(name))?;
    let reason = reason.unwrap_or_else(|| format!("by {who}"));
    backend.force(open, reason, lasting).await.map_err(|error| Problem::from(error).of(name))?;
    breaker(api, name)
}

/// The answer to an order about a breaker: what it is now.
fn breaker(api: &Api, name: &str) -> Result<Json<BreakerNow>, Problem> {
    let breaker = api.backend(name)?.0.view().breaker;
    Ok(Json(BreakerNow { backend: name.to_owned(), breaker }))
}

/// POST /admin/circuit-breaker/{backend}/force-open
pub(crate) async fn force_open(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<BreakerNow>, Problem> {
    force(&api, &name, who, body, true).await
}

/// POST /admin/circuit-breaker/{backend}/force-close
pub(crate) async fn force_close(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<BreakerNow>, Problem> {
    force(&api, &name, who, body, false).await
}

/// POST /admin/circuit-breaker/{backend}/release
pub(crate) async fn release(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    body: Body,
) -> Result<Json<BreakerNow>, Problem> {
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
) -> Result<Json<BreakerNow>, Problem> {
    let (backend, _) = api.backend(&name)?;
    ends(&name, "reset", who, body).await?;
    let done = backend.reset().await;
    done.map_err(|error| Problem::from(error).of(&name))?;
    breaker(&api, &name)
}

/// An order to recover.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Recovery {
    /// The only backend that is meant; all if it is not said.
    backend: Option<String>,
}

/// What an order to recover began.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Recovering {
    /// The backends whose breakers try calls now.
    half_open: Vec<String>,
    /// The backends that an operator's order keeps from recovering.
    held: Vec<Held>,
}

/// A backend that does not recover, because of an operator's order.
#[derive(Serialize, JsonSchema)]
struct Held {
    /// Its name.
    backend: String,
    /// The order: `offline`, or `forced` and the state of the breaker.
    by: String,
    /// The command that ends it.
    release: String,
}

/// POST /admin/resilience/force-recovery
pub(crate) async fn force_recovery(
    State(api): State<Arc<Api>>,
    body: Body,
) -> Result<Json<Recovering>, Problem> {
    let Recovery { backend } = optional_json(body).await?;
    if let Some(name) = &backend {
        api.backend(name)?;
    }
    let half_open = api.daemon.fusebox.recover(backend.as_deref()).await?;
    // What an operator's order holds does not recover by another one: it is named, and what releases it.
    let all = api.daemon.fusebox.backends();
    let wanted = all.iter().filter(|it| backend.as_deref().is_none_or(|name| name == it.name()));
    let held = wanted.filter_map(|it| held(&it.view())).collect();
    Ok(Json(Recovering { half_open, held }))
}

/// A backend that is held by an operator's order, by which, and what ends that.
fn held(view: &BackendView) -> Option<Held> {
    let name = &view.name;
    let (by, release) = match &view.breaker.forced {
        _ if view.offline => ("offline".to_owned(), format!("fusebox online {name}")),
        Some(force) => {
            (format!("forced {}", force.state), format!("fusebox breaker {name} release"))
        }
        None => return None,
    };
    Some(Held { backend: name.clone(), by, release })
}

/// A backend after it was taken offline, or online.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Switched {
    /// Its name.
    backend: String,
    /// Whether it is offline now.
    offline: bool,
}

/// POST /admin/backends/{backend}/offline
pub(crate) async fn offline(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Switched>, Problem> {
    set_offline(&api, &name, true).await
}

/// POST /admin/backends/{backend}/online
pub(crate) async fn online(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Switched>, Problem> {
    set_offline(&api, &name, false).await
}

async fn set_offline(api: &Api, name: &str, offline: bool) -> Result<Json<Switched>, Problem> {
    let (backend, _) = api.backend(name)?;
    backend.set_offline(offline).await.map_err(|error| Problem::from(error).of(name))?;
    Ok(Json(Switched { backend: name.to_owned(), offline }))
}

/// A backend whose queued calls go to a new address.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Retargeted {
    /// Its name.
    backend: String,
    /// The new address.
    target: Target,
}

/// POST /admin/backends/{backend}/accept-retarget
pub(crate) async fn accept_retarget(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<Retargeted>, Problem> {
    let (backend, _) = api.backend(&name)?;
    backend.accept_retarget().await.map_err(|error| Problem::from(error).of(&name))?;
    Ok(Json(Retargeted { backend: name, target: backend.view().target }))
}

/// A backend of whose store it is known that it was missing at a start.
#[derive(Serialize, JsonSchema)]
pub(crate) struct LossAccepted {
    /// Its name.
    backend: String,
    /// Always true.
    accepted: bool,
}

/// POST /admin/backends/{backend}/accept-loss
pub(crate) async fn accept_loss(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<LossAccepted>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let accepted = api.daemon.accept_loss(&backend).await;
    accepted.map_err(|error| Problem::from(error).of(&name))?;
    Ok(Json(LossAccepted { backend: name, accepted: true }))
}

/// A state directory whose calls may be replayed, although it is a copy or was copied.
#[derive(Serialize, JsonSchema)]
pub(crate) struct CloneAccepted {
    /// Always true.
    accepted: bool,
}

/// POST /admin/backends/accept-clone
pub(crate) async fn accept_clone(
    State(api): State<Arc<Api>>,
) -> Result<Json<CloneAccepted>, Problem> {
    api.daemon.accept_clone().await?;
    Ok(Json(CloneAccepted { accepted: true }))
}

/// What reading the configuration again has changed.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Reloaded {
    /// The parts of the configuration that changed, such as a backend.
    changed: Vec<String>,
}

/// POST /admin/config/reload
pub(crate) async fn reload(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
) -> Result<Json<Reloaded>, Problem> {
    let changed = api.daemon.reload(&who.to_string()).await.map_err(AdminError::Conflict)?;
    Ok(Json(Reloaded { changed }))
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

/// An order about what is logged.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogFilter {
    /// What is to be logged, such as `debug,fusebox=trace`; the usual if it is not said.
    filter: Option<String>,
    /// For how long, such as `10m`; until it is changed again if it is not said.
    #[serde(rename = "for", with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    lasting: Option<Duration>,
}

/// What is logged.
#[derive(Serialize, JsonSchema)]
pub(crate) struct LogFilters {
    /// The filter now.
    filter: String,
    /// The filter of the configuration, or of the environment.
    usual: String,
}

/// GET /admin/log
pub(crate) async fn log() -> Json<LogFilters> {
    let (filter, usual) = crate::telemetry::filter();
    Json(LogFilters { filter, usual })
}

/// PUT /admin/log; without a filter the usual one.
pub(crate) async fn set_log(body: Body) -> Result<Json<LogFilters>, Problem> {
    let LogFilter { filter, lasting } = optional_json(body).await?;
    let filter = filter.unwrap_or_else(|| crate::telemetry::filter().1);
    crate::telemetry::set_filter(&filter, lasting)
        .map_err(|why| Problem::malformed(format!("filter: {why}")))?;
    Ok(log().await)
}

/// Who is to panic.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Panics {
    /// A thread of this name; the backend's actor if it is not said.
    thread: Option<String>,
}

/// The answer to the order to panic.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Panicked {
    /// The backend.
    backend: String,
}

/// POST /admin/backends/{backend}/panic: a test hook. The backend's actor panics, or a thread of that name.
pub(crate) async fn panic(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Checked(Query(Panics { thread })): Checked<Query<Panics>>,
) -> Result<Json<Panicked>, Problem> {
    let backend = api.backend(&name)?.0;
    match thread {
        None => backend.panic_for_test(),
        Some(thread) => drop(std::thread::Builder::new().name(thread).spawn(panic_for_test)),
    }
    Ok(Json(Panicked { backend: name }))
}

#[expect(clippy::panic, reason = "tests of the panic hook need a thread that panics")]
fn panic_for_test() {
    panic!("told to panic by a test");
}
