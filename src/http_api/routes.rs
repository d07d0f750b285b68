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
use fusebox_actors::{
    AdminError,
    view::{BackendView, DependenciesView, ExplainView, HealthView, QueuePage, ResilienceView},
};
use fusebox_state::chaos::Order as ChaosOrder;

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
    route::{Header, Route},
    settings, streams, views,
};
use crate::{
    daemon::{Daemon, compaction::Compacted},
    ingress::{gate::Pooled, peer::Access},
    traces::TestResult,
};

/// A route with its method, its path, who may use it, what answers it, and what it does. What it reads and answers is
/// added to it.
macro_rules! route {
    ($method:ident $path:literal, $access:ident, $handler:path, $summary:literal) => {
        Route::new(stringify!($method), $path, Access::$access, $summary, || $method($handler))
    };
}

/// The revision of the settings that a change is for.
const IF_MATCH: &[Header] = &[Header {
    name: "If-Match",
    note: "A revision of the settings. At another one, nothing is changed. `*` is any revision.",
}];

/// The options of a call that is given in the backend's wire format.
const OPTIONS: &[Header] = &[
    Header { name: "X-Fusebox-Deadline", note: "Give up after this long, such as `2s`." },
    Header {
        name: "X-Fusebox-Max-Stale",
        note: "The greatest age of a cached answer, such as `10m`.",
    },
    Header { name: "X-Fusebox-Priority", note: "`low`, `normal` or `critical`." },
    Header {
        name: "X-Fusebox-Min-Ack",
        note: "What the reply to a write has to promise: `applied` or `durable`.",
    },
    Header { name: "X-Fusebox-Op-Id", note: "The unique name of the call, a ULID." },
    Header {
        name: "X-Fusebox-Query",
        note: "ClickHouse: the query, if the body is data to insert.",
    },
    Header { name: "X-Fusebox-Format", note: "ClickHouse: the format of the answer." },
    Header { name: "X-Fusebox-Database", note: "ClickHouse: the database." },
    Header { name: "X-Fusebox-Op", note: "Firestore: the operation, such as `set`." },
    Header { name: "X-Fusebox-Path", note: "Firestore: the path of the document." },
];

/// What the answer to such a call says besides its value.
const OF_REPLY: &[Header] = &[
    Header {
        name: "X-Fusebox-Source",
        note: "The source of the reply: `live`, `cache`, `stale`, `queued`, `empty` or `bypass`.",
    },
    Header {
        name: "X-Fusebox-Ack",
        note: "What the reply to a write promises: `applied` or `durable`.",
    },
    Header { name: "X-Fusebox-Op-Id", note: "The unique name of a write, a ULID." },
    Header { name: "X-Fusebox-Age-Ms", note: "The age of a cached value, in milliseconds." },
    Header { name: "X-Fusebox-Attempts", note: "How many attempts were made." },
    Header { name: "X-Fusebox-Trace-Id", note: "The trace of the call." },
    Header {
        name: "X-Fusebox-Pending-Writes",
        note: "How many writes wait in the queue of the backend; missing if none waits.",
    },
    Header { name: "X-Fusebox-Null", note: "`true` if there is no value." },
    Header {
        name: "X-Fusebox-Reply-Lost",
        note: "`true` if the write was applied by an attempt whose reply was lost.",
    },
    Header { name: "X-Fusebox-Warning", note: "A warning. There may be several of these headers." },
];

/// All routes.
pub(crate) const ROUTES: &[Route] = &[
    route!(get "/", Public, page::root, "The status page")
        .answers_other("text/plain", "HTML if Accept names it, else text")
        .or(&["text/html"]),
    route!(get "/page/{file}", Public, page::file, "A file of the status page")
        .answers_other("*/*", "the file"),
    route!(get "/health", Public, views::health, "The system's state in short")
        .answers::<HealthView>("")
        .also(503, "the system is CRITICAL or in EMERGENCY"),
    route!(get "/health/live", Public, views::live, "Whether the daemon's own loop runs")
        .answers::<views::Live>("")
        .also(503, "it does not"),
    route!(get "/health/ready", Public, views::ready,
        "Whether the stores are recovered and the daemon is not draining")
    .answers::<views::Ready>("")
    .also(503, "it is not ready"),
    route!(get "/health/resilience", Public, views::resilience,
        "The whole state of the system and of every backend")
    .answers::<ResilienceView>(""),
    route!(get "/health/stream", Public, page::stream::follow,
        "The data of the status page, as it changes")
    .answers_other(
        EVENTS,
        "hello, history, state (ResilienceView), transition, system_state, offline, replay, \
             fallback, dead_letter",
    ),
    route!(get "/metrics", Public, views::metrics, "Metrics")
        .answers_other(
            "text/plain",
            "Prometheus text; OpenMetrics for clients that accept application/openmetrics-text",
        )
        .or(&["application/openmetrics-text"]),
    route!(get "/openapi.json", Client, openapi::document, "This description")
        .answers::<openapi::Document>(""),
    route!(get "/v1/backends", Client, views::backends, "Every backend in full")
        .answers::<views::Backends>(""),
    route!(get "/v1/backends/{backend}", Client, views::backend, "A backend in full")
        .answers::<BackendView>(""),
    route!(get "/v1/backends/{backend}/explain", Client, views::explain,
        "Why its breaker is in its state")
    .answers::<ExplainView>(""),
    route!(get "/v1/backends/{backend}/transitions", Client, views::transitions,
        "Its newest transitions, newest last")
    .query::<views::Limit>()
    .answers::<views::Transitions>(""),
    route!(post "/v1/backends/{backend}/call", Client, calls::call, "Executes a call")
        .reads::<calls::CallJson>("at most 32 MiB")
        .answers::<calls::ReplyJson<'static>>("")
        .also(202, "the call is a write, and is queued"),
    route!(post "/v1/backends/{backend}/call/raw", Client, calls::call_raw,
        "Executes a call that is given in the backend's wire format")
    .headers(OPTIONS)
    .reads_other("*/*", "the call's bytes")
    .answers_other("*/*", "the reply's bytes")
    .with(OF_REPLY)
    .also(202, "the call is a write, and is queued"),
    route!(post "/v1/backends/{backend}/streams", Client, streams::open,
        "Opens a live query, or finds one that is already open for the same query")
    .reads::<streams::QueryJson>("at most 32 MiB")
    .answers::<streams::Opened>(""),
    route!(get "/v1/backends/{backend}/streams/{id}", Client, streams::follow,
        "Follows a live query")
    .answers_other(EVENTS, "snapshot, change, stale"),
    route!(get "/v1/backends/{backend}/queue", Client, queue::page, "A page of the queue")
        .query::<queue::PageQuery>()
        .answers::<QueuePage>(""),
    route!(get "/v1/backends/{backend}/queue/{op_id}", Client, queue::show,
        "A queued call or dead letter")
    .query::<queue::ShowQuery>()
    .answers::<queue::ShownCall>(""),
    route!(get "/v1/dependencies", Client, dependencies::graph,
        "The dependencies of backends, and the root causes of what is down")
    .query::<dependencies::Wanted>()
    .answers::<DependenciesView>("with format=dot, the graph in DOT")
    .or(&["text/vnd.graphviz"]),
    route!(get "/v1/events", Client, events::follow, "New events, from now on")
        .query::<events::Filter>()
        .answers_other(EVENTS, "each event as `/v1/history` has it"),
    route!(get "/v1/history", Client, views::history,
        "The newest events, also of earlier runs, newest last; and the newest transitions")
    .query::<views::Wanted>()
    .answers::<views::History>(""),
    route!(post "/admin/circuit-breaker/{backend}/force-open", Admin, admin::force_open,
        "Forces a breaker open")
    .may_read::<admin::Force>()
    .answers::<admin::BreakerNow>(""),
    route!(post "/admin/circuit-breaker/{backend}/force-close", Admin, admin::force_close,
        "Forces a breaker closed")
    .may_read::<admin::Force>()
    .answers::<admin::BreakerNow>(""),
    route!(post "/admin/circuit-breaker/{backend}/release", Admin, admin::release,
        "Ends a forced state")
    .may_read::<admin::Force>()
    .answers::<admin::BreakerNow>("409 if it is not forced"),
    route!(post "/admin/circuit-breaker/{backend}/reset", Admin, admin::reset,
        "Closes a breaker and resets its window, forced state and exponent")
    .may_read::<admin::Force>()
    .answers::<admin::BreakerNow>(""),
    route!(post "/admin/resilience/force-recovery", Admin, admin::force_recovery,
        "Tries to recover now")
    .may_read::<admin::Recovery>()
    .answers::<admin::Recovering>(""),
    route!(post "/admin/backends/{backend}/offline", Admin, admin::offline,
        "Takes a backend offline")
    .answers::<admin::Switched>(""),
    route!(post "/admin/backends/{backend}/online", Admin, admin::online,
        "Takes a backend online again")
    .answers::<admin::Switched>(""),
    route!(post "/admin/backends/{backend}/accept-retarget", Admin, admin::accept_retarget,
        "Lets calls that wait for the old address go to the new one")
    .answers::<admin::Retargeted>("409 if none waits"),
    route!(post "/admin/backends/{backend}/accept-loss", Admin, admin::accept_loss,
        "Ends the alert that the backend's store was missing at a start")
    .answers::<admin::LossAccepted>("409 if it was not"),
    route!(post "/admin/backends/accept-clone", Admin, admin::accept_clone,
        "Allows replay in a state directory that is a copy or was copied")
    .answers::<admin::CloneAccepted>("409 if it is none"),
    route!(get "/admin/backends/{backend}/config", Admin, settings::show_backend,
        "A backend's settings in effect")
    .answers::<settings::SettingsShown>(""),
    route!(patch "/admin/backends/{backend}/config", Admin, settings::change_backend,
        "Changes a backend's settings at run time")
    .query::<settings::How>()
    .headers(IF_MATCH)
    .reads::<settings::MergePatch>("")
    .answers::<settings::SettingsChanged>(NOT_CHANGED),
    route!(get "/admin/config", Admin, settings::show, "All settings in effect")
        .answers::<settings::SettingsShown>(""),
    route!(patch "/admin/config", Admin, settings::change, "Changes settings at run time")
        .query::<settings::How>()
        .headers(IF_MATCH)
        .reads::<settings::MergePatch>("")
        .answers::<settings::SettingsChanged>(NOT_CHANGED),
    route!(post "/admin/config/reload", Admin, admin::reload,
        "Reads the configuration again, as SIGHUP does")
    .answers::<admin::Reloaded>("409 if it is refused"),
    route!(post "/admin/trace-test", Admin, admin::trace_test, "Sends one trace to the collector")
        .answers::<TestResult>("409 if traces are off"),
    route!(get "/admin/backends/{backend}/chaos", Admin, chaos::show,
        "The faults on purpose that are set, with their hits")
    .answers::<chaos::ChaosShown>(""),
    route!(put "/admin/backends/{backend}/chaos", Admin, chaos::set,
        "Sets faults on purpose, in place of those that are set")
    .reads::<ChaosOrder>("")
    .answers::<chaos::ChaosSet>("409 if they would end at once, 422 naming the key that is wrong"),
    route!(delete "/admin/backends/{backend}/chaos", Admin, chaos::clear, "Ends faults on purpose")
        .answers::<chaos::ChaosCleared>(""),
    route!(get "/admin/log", Admin, admin::log, "The filter of the log, and the usual filter")
        .answers::<admin::LogFilters>(""),
    route!(put "/admin/log", Admin, admin::set_log,
        "Changes the filter of the log, for a time if one is given; without a filter, restores \
         the usual one")
    .may_read::<admin::LogFilter>()
    .answers::<admin::LogFilters>(""),
    route!(post "/admin/backends/{backend}/queue/replay", Admin, queue::replay, "Replays now")
        .answers::<queue::Replaying>(""),
    route!(post "/admin/backends/{backend}/queue/compact", Admin, queue::compact,
        "Writes the contents of the store into new files; with purge, nothing is left of calls \
         that were replayed or discarded before")
    .may_read::<queue::Compact>()
    .answers::<Compacted>(
        "409 if the store is not open, or if one was set aside meanwhile, which stays",
    ),
    route!(post "/admin/backends/{backend}/queue/import", Admin, import::import,
        "Takes the calls of an export or a repair into the queue, at its tail")
    .query::<import::Wanted>()
    .reads_other(
        "application/x-ndjson",
        "the lines of `queue export` or `queue repair`, together at most half of calls.bytes",
    )
    .answers::<import::report::ImportAnswer>("422 if a line is not understood"),
    route!(post "/admin/backends/{backend}/queue/{op_id}/requeue", Admin, queue::requeue,
        "Puts a dead letter back at the tail of its lane")
    .may_read::<queue::Requeue>()
    .answers::<queue::CallNow>(""),
    route!(delete "/admin/backends/{backend}/queue/{op_id}", Admin, queue::discard,
        "Discards a queued call or dead letter for good")
    .answers::<queue::CallNow>(""),
];

/// The media type of server-sent events.
const EVENTS: &str = "text/event-stream";
/// When a change of settings is refused.
const NOT_CHANGED: &str = "409 if the setting is locked, overridden or the value unsafe, 412 at \
    another revision, 422 if a key or a value is wrong";

/// A route for tests that make an actor panic; part of the table only if the environment asks for it.
const TEST_HOOK: Route =
    route!(post "/admin/backends/{backend}/panic", Admin, admin::panic, "A test hook")
        .query::<admin::Panics>()
        .answers::<admin::Panicked>("");

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
