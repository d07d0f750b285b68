//! Every route: the one table from which the router and `openapi.json` are made.

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, patch, post, put},
};
use fusebox_actors::AdminError;

use super::{
    admin,
    admit::admit,
    api::Api,
    calls, chaos, dependencies, encoding, events,
    http::Connected,
    import, openapi,
    page::{self, board::Board},
    problem::Problem,
    queue,
    route::Route,
    settings, streams, views,
};
use crate::{
    daemon::Daemon,
    ingress::{gate::Pooled, peer::Access},
};

macro_rules! route {
    ($method:literal $path:literal, $access:ident, $summary:literal, $request:tt -> $response:tt, $handler:expr) => {
        Route {
            method: $method,
            path: $path,
            access: Access::$access,
            summary: $summary,
            request: $request,
            response: $response,
            handler: || $handler,
        }
    };
}

const CONFIG: &str = "{\"revision\": text, \"effective\": value, \"sources\": {key: text}, \"overrides\": {key: {\"value\", \
    \"persisted\": flag, \"by\": text, \"at\": text, \"until\": text or null}}, \"locked\": [text]}; the settings in \
    effect, secrets masked; a source is default, file, persisted, runtime or the name of a variable";
const EDIT: &str = "query: persist, for, dry_run, force; header If-Match: a revision; a merge patch (RFC 7396) in the shape of \
    the file, in which null takes a change back";
const EDITED: &str = "{\"changed\": [{\"key\": text, \"from\": value, \"to\": value}], \"dry_run\": flag, \"revision\": text, \
    \"effective\": value, \"sources\": {key: text}, \"overrides\": {key: value}}; 409 if the setting is locked, overridden or \
    the value unsafe, 412 at another revision, 422 if a key or a value is wrong";
const FORCE: &str = "optional JSON {\"reason\": text, \"for\": duration}";
const FORCED: &str = "{\"backend\": name, \"breaker\": BreakerView}";

/// All routes.
pub(crate) const ROUTES: &[Route] = &[
    route!("GET" "/", Public, "The status page",
        "" -> "HTML if Accept names it, else text", get(page::root)),
    route!("GET" "/page/{file}", Public, "A file of the status page", "" -> "the file",
        get(page::file)),
    route!("GET" "/health", Public, "The system's state in short",
        "" -> "HealthView; 503 if CRITICAL or EMERGENCY", get(views::health)),
    route!("GET" "/health/live", Public, "Whether the daemon's own loop runs",
        "" -> "{\"live\": flag}; 503 if not", get(views::live)),
    route!("GET" "/health/ready", Public, "Whether the stores are recovered and the daemon is not draining",
        "" -> "{\"ready\": flag}; 503 if not", get(views::ready)),
    route!("GET" "/health/resilience", Public, "The whole state of the system and of every backend",
        "" -> "ResilienceView", get(views::resilience)),
    route!("GET" "/health/stream", Public, "The data of the status page, as it changes",
        "" -> "server-sent events: hello, history, state (ResilienceView), transition, system_state, offline, replay, fallback, dead_letter",
        get(page::stream::follow)),
    route!("GET" "/metrics", Public, "Metrics",
        "" -> "Prometheus text; OpenMetrics for clients that accept application/openmetrics-text",
        get(views::metrics)),
    route!("GET" "/openapi.json", Client, "This description",
        "" -> "OpenAPI 3.1", get(openapi::document)),
    route!("GET" "/v1/backends", Client, "Every backend in full",
        "" -> "{\"backends\": [BackendView]}", get(views::backends)),
    route!("GET" "/v1/backends/{backend}", Client, "A backend in full",
        "" -> "BackendView", get(views::backend)),
    route!("GET" "/v1/backends/{backend}/explain", Client, "Why its breaker is in its state",
        "" -> "ExplainView", get(views::explain)),
    route!("GET" "/v1/backends/{backend}/transitions", Client, "Its newest transitions, newest last",
        "query: limit" -> "{\"transitions\": [TransitionRecord]}", get(views::transitions)),
    route!("POST" "/v1/backends/{backend}/call", Client, "Executes a call",
        "JSON of the kind, and \"options\"; at most 32 MiB" -> "ReplyJson; 202 if a write is queued",
        post(calls::call)),
    route!("POST" "/v1/backends/{backend}/call/raw", Client, "Executes a call that is given in the backend's wire format",
        "the call's bytes; options in X-Fusebox-Deadline, -Max-Stale, -Priority, -Min-Ack, -Op-Id"
        -> "the reply's bytes; X-Fusebox-Source, -Ack, -Op-Id, -Age-Ms, -Attempts, -Trace-Id, -Reply-Lost, -Warning",
        post(calls::call_raw)),
    route!("POST" "/v1/backends/{backend}/streams", Client, "Opens a live query, or finds one that is already open for the same query",
        "JSON of the kind" -> "{\"id\": text, \"path\": text}", post(streams::open)),
    route!("GET" "/v1/backends/{backend}/streams/{id}", Client, "Follows a live query",
        "" -> "server-sent events: snapshot, change, stale", get(streams::follow)),
    route!("GET" "/v1/backends/{backend}/queue", Client, "A page of the queue",
        "query: state=pending|dead, after, limit" -> "QueuePage", get(queue::page)),
    route!("GET" "/v1/backends/{backend}/queue/{op_id}", Client, "A queued call or dead letter",
        "query: call=true|false" -> "QueuedCallView; for admins with \"call\", or \"call_left_out\" if it is too large; without both if call is false",
        get(queue::show)),
    route!("GET" "/v1/dependencies", Client, "The dependencies of backends, and the root causes of what is down",
        "query: format=json|dot" -> "DependenciesView; the graph in DOT", get(dependencies::graph)),
    route!("GET" "/v1/events", Client, "New events, from now on",
        "query: backend" -> "server-sent events", get(events::follow)),
    route!("GET" "/v1/history", Client,
        "The newest events, also of earlier runs, newest last; and the newest transitions",
        "query: since, backend, limit"
        -> "{\"transitions\": [TransitionRecord], \"events\": [Event], \"more\": flag}",
        get(views::history)),
    Route {
        request: FORCE,
        ..route!("POST" "/admin/circuit-breaker/{backend}/force-open", Admin,
        "Forces a breaker open", "" -> FORCED, post(admin::force_open))
    },
    Route {
        request: FORCE,
        ..route!("POST" "/admin/circuit-breaker/{backend}/force-close", Admin,
        "Forces a breaker closed", "" -> FORCED, post(admin::force_close))
    },
    route!("POST" "/admin/circuit-breaker/{backend}/release", Admin, "Ends a forced state",
        "" -> "{\"backend\": name, \"breaker\": BreakerView}; 409 if it is not forced", post(admin::release)),
    route!("POST" "/admin/circuit-breaker/{backend}/reset", Admin,
        "Closes a breaker and resets its window, forced state and exponent",
        "" -> FORCED, post(admin::reset)),
    route!("POST" "/admin/resilience/force-recovery", Admin, "Tries to recover now",
        "optional JSON {\"backend\": name}"
        -> "{\"half_open\": [name], \"held\": [{\"backend\": name, \"by\": text, \"release\": text}]}", post(admin::force_recovery)),
    route!("POST" "/admin/backends/{backend}/offline", Admin, "Takes a backend offline",
        "" -> "{\"backend\": name, \"offline\": flag}", post(admin::offline)),
    route!("POST" "/admin/backends/{backend}/online", Admin, "Takes a backend online again",
        "" -> "{\"backend\": name, \"offline\": flag}", post(admin::online)),
    route!("POST" "/admin/backends/{backend}/accept-retarget", Admin,
        "Lets calls that wait for the old address go to the new one",
        "" -> "{\"backend\": name, \"target\": text}; 409 if none waits", post(admin::accept_retarget)),
    route!("POST" "/admin/backends/{backend}/accept-loss", Admin,
        "Ends the alert that the backend's store was missing at a start",
        "" -> "{\"backend\": name, \"accepted\": flag}; 409 if it was not", post(admin::accept_loss)),
    route!("POST" "/admin/backends/accept-clone", Admin,
        "Allows replay in a state directory that is a copy or was copied",
        "" -> "{\"accepted\": flag}; 409 if it is none", post(admin::accept_clone)),
    route!("GET" "/admin/backends/{backend}/config", Admin, "A backend's settings in effect",
        "" -> CONFIG, get(settings::show_backend)),
    route!("PATCH" "/admin/backends/{backend}/config", Admin, "Changes a backend's settings at run time",
        EDIT -> EDITED, patch(settings::change_backend)),
    route!("GET" "/admin/config", Admin, "All settings in effect",
        "" -> CONFIG, get(settings::show)),
    route!("PATCH" "/admin/config", Admin, "Changes settings at run time",
        EDIT -> EDITED, patch(settings::change)),
    route!("POST" "/admin/config/reload", Admin, "Reads the configuration again, as SIGHUP does",
        "" -> "{\"changed\": [text]}; 409 if it is refused", post(admin::reload)),
    route!("POST" "/admin/trace-test", Admin, "Sends one trace to the collector",
        "" -> "{\"taken\": flag, \"endpoint\": text, \"protocol\": text, \"trace_id\": text, \"took_ms\": number, \"error\": text}; 409 if traces are off",
        post(admin::trace_test)),
    route!("GET" "/admin/backends/{backend}/chaos", Admin, "The faults on purpose that are set, with their hits",
        "" -> "{\"backend\": name, \"chaos\": ChaosView or null}", get(chaos::show)),
    route!("PUT" "/admin/backends/{backend}/chaos", Admin, "Sets faults on purpose, in place of those that are set",
        "JSON {\"faults\": [{\"kind\": text, \"rate\", \"latency\", \"jitter\", \"code\", \"class\", \"only\"}], \"for\": duration, \"seed\", \"count\", \"reason\": text, \"force\": flag, \"max_active\", \"abort_on\", \"abort_above\"}"
        -> "{\"backend\": name, \"until\": text, \"chaos\": ChaosView}; 409 if they would end at once, 422 naming the key that is wrong",
        put(chaos::set)),
    route!("DELETE" "/admin/backends/{backend}/chaos", Admin, "Ends faults on purpose",
        "" -> "{\"backend\": name, \"cleared\": flag}", delete(chaos::clear)),
    route!("GET" "/admin/log", Admin, "The filter of the log, and the usual filter",
        "" -> "{\"filter\": text, \"usual\": text}", get(admin::log)),
    route!("PUT" "/admin/log", Admin, "Changes the filter of the log, for a time if one is given; without a filter, \
                                       restores the usual one",
        "optional JSON {\"filter\": text, \"for\": duration}" -> "{\"filter\": text, \"usual\": text}", put(admin::set_log)),
    route!("POST" "/admin/backends/{backend}/queue/replay", Admin, "Replays now",
        "" -> "{\"waiting\": number}", post(queue::replay)),
    route!("POST" "/admin/backends/{backend}/queue/compact", Admin,
        "Writes the contents of the store into new files; with purge, nothing is left of calls that were replayed or \
         discarded before",
        "optional JSON {\"purge\": flag}"
        -> "{\"before_bytes\": number, \"bytes\": number, \"deleted\": [text], \"deleted_bytes\": number}; deleted are the stores that were set aside; 409 if the store is not open, or if one was set aside meanwhile, which stays",
        post(queue::compact)),
    route!("POST" "/admin/backends/{backend}/queue/import", Admin,
        "Takes the calls of an export or a repair into the queue, at its tail",
        "query: force, retarget, check, first_line; the lines of `queue export` or `queue repair`, together at most half of calls.bytes"
        -> "{\"backend\": name, \"imported\": number, \"in_doubt\": number, \"dead\": number, \"salvaged\": number, \"known\": number, \"wants_force\": number, \"lanes_written\": [{\"line\": number, \"op_id\": OpId, \"lane\": text}], \"refused\": [{\"line\": number, \"op_id\": OpId, \"why\": text}], \"not_tried\": number}; with check {\"backend\", \"understood\": number, \"body_max\": number}; 422 if a line is not understood",
        post(import::import)),
    route!("POST" "/admin/backends/{backend}/queue/{op_id}/requeue", Admin,
        "Puts a dead letter back at the tail of its lane",
        "optional JSON {\"force\": flag, \"not_applied\": flag}" -> "{\"op_id\": OpId, \"state\": text}", post(queue::requeue)),
    route!("DELETE" "/admin/backends/{backend}/queue/{op_id}", Admin,
        "Discards a queued call or dead letter for good",
        "" -> "{\"op_id\": OpId, \"state\": text}", delete(queue::discard)),
];

/// A route for tests that make an actor panic; part of the table only if the environment asks for it.
const TEST_HOOK: Route = route!("POST" "/admin/backends/{backend}/panic", Admin, "A test hook",
    "" -> "{\"backend\": name}", post(admin::panic));

/// The router of what is asked of `daemon`. Every route is behind [`admit`]; nothing of a body is read before, and what
/// is read is what it was before it was encoded ([`encoding::pass`]).
pub(crate) fn router(daemon: Arc<Daemon>, test_hooks: bool) -> Router {
    let api = Arc::new(Api {
        daemon,
        openapi: openapi::render(ROUTES),
        board: Board::default(),
        page_version: page::version(),
    });
    let hook = test_hooks.then_some(&TEST_HOOK);
    let mut router = Router::new();
    for route in ROUTES.iter().chain(hook) {
        let of_route = (Arc::clone(&api), route.access, route.is_vital());
        let guard = middleware::from_fn_with_state(of_route, guard);
        router = router.route(route.path, (route.handler)().route_layer(guard));
    }
    router.fallback(no_route).method_not_allowed_fallback(wrong_method).with_state(api)
}

async fn guard(
    State((api, access, is_vital)): State<(Arc<Api>, Access, bool)>,
    Extension(connected): Extension<Connected>,
    mut request: Request,
    next: Next,
) -> Response {
    let Connected { caller, is_spare, .. } = connected;
    if is_spare && !is_vital {
        return Problem::from(Pooled::Spare.full()).into_response();
    }
    let admitted = {
        let config = api.daemon.config.load();
        admit(access, caller, request.headers(), config.http.as_ref())
    };
    match admitted {
        Ok(who) => {
            request.extensions_mut().insert(who);
            let is_order = access == Access::Admin && request.method() != Method::GET;
            let answer = encoding::pass(request, next);
            if is_order { whole(answer).await } else { answer.await }
        }
        Err(problem) => {
            tracing::debug!(?caller, path = request.uri().path(), "a request was refused");
            problem.into_response()
        }
    }
}

/// The answer to an order. It is carried out in a task of its own: a client that leaves must not end it half way, when
/// the disk says one thing and memory another.
async fn whole(order: impl Future<Output = Response> + Send + 'static) -> Response {
    tokio::spawn(order).await.unwrap_or_else(|error| {
        Problem::from(AdminError::Failed(error.to_string())).into_response()
    })
}

async fn no_route(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(256).collect();
    Problem::not_found(
        "no_such_route",
        format!("there is no route {path:?}; GET /openapi.json lists all routes"),
    )
}

async fn wrong_method(method: Method, request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(256).collect();
    let detail = format!("{path:?} does not support {method}; GET /openapi.json lists all routes");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", detail)
}
