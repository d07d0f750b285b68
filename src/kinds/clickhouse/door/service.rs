//! One request: who sends it, what it becomes, what is answered.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::{
    Backend, Call, CallError, CallOptions, Reply, Source,
    trace::{AtDoor, lasting_name},
};
use hyper::{
    HeaderMap, Method, Request, Response,
    header::{CONTENT_TYPE, HeaderValue},
    http::request::Parts,
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::sleep};

use super::{
    answer::{self, Body, Sent},
    body::{self, Taken},
    counters::{Counters, Refused},
    credentials::{Guest, Shown, Stranger, clickhouse_of},
    pages,
    request::{self, Parameters},
    telling::Told,
    visitor::Visitor,
};
use crate::{
    config::DoorSettings,
    ingress::seldom::Seldom,
    kinds::{
        clickhouse::protocol::{
            decoded::PACKED_MOST, door_insert, door_read::QUERY_ID, opaque, stated,
        },
        options::CallOptionsJson,
    },
    net::{linger::Lent, trace_headers},
};

/// How long who shows wrong credentials waits for the answer.
const PENALTY: Duration = Duration::from_secs(1);
/// Servers pass over it: then the first parameter has another name there.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// The longest id of a query: it is a part of statements by which the query is found again.
const QUERY_ID_MAX: usize = 4 << 10;
/// What is said to a page.
const FOREIGN: &str = "web pages of another origin may not send this request";

/// What the connections of a door share.
pub(super) struct Service {
    pub(super) settings: Arc<DoorSettings>,
    /// The door's address, as it is named in traces and errors.
    address: &'static str,
    backend: Arc<Backend>,
    pub(super) counters: Arc<Counters>,
    pub(super) stopping: watch::Receiver<bool>,
    /// The server's version, which errors name, also when the server has gone.
    version: Mutex<Option<String>>,
    /// That credentials are nobody's.
    wrong_told: Seldom,
}

impl Service {
    /// A door of `backend`.
    pub(super) fn new(
        settings: Arc<DoorSettings>,
        backend: Arc<Backend>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let (counters, version, wrong_told) = (Arc::default(), Mutex::default(), Seldom::new());
        let address = lasting_name(&settings.listen.to_string());
        Self { settings, address, backend, counters, stopping, version, wrong_told }
    }

    /// Answers a request. `sent` is held until the answer has gone.
    pub(super) async fn answer(
        &self,
        visitor: &Visitor,
        request: Request<Option<Lent>>,
        sent: Sent,
    ) -> Response<Body> {
        let (parts, body) = request.into_parts();
        match self.answered(visitor, parts, body, sent).await {
            Ok(response) => response,
            Err(told) => self.told(&told),
        }
    }

    /// What fusebox itself says.
    pub(super) fn told(&self, told: &Told) -> Response<Body> {
        self.counters.refused(told.counts);
        let response = told.response(self.version().as_deref());
        self.counters.written(response.body().len());
        response.map(answer::whole)
    }

    async fn answered(
        &self,
        visitor: &Visitor,
        parts: Parts,
        body: Option<Lent>,
        sent: Sent,
    ) -> Result<Response<Body>, Told> {
        let query = parts.uri.query().unwrap_or_default();
        if query.starts_with(BYTE_ORDER_MARK) {
            return Err(Told::malformed("the query string begins with a byte order mark"));
        }
        let parameters = Parameters::of(query);
        if matches!(parts.method, Method::CONNECT | Method::TRACE) {
            return Err(Told::malformed("this method is not supported here"));
        }
        if is_ping(&parts) && (self.backend.gate()() || self.backend.caches_something()) {
            self.counters.answered_here();
            return Ok(pong());
        }
        let shown = Shown::of(&parts.headers, &parameters);
        // Only of these a page has the rights: it knows no secret.
        let is_by_socket = visitor.who.is_some() && !shown.is_something();
        if is_by_socket && pages::is_foreign(&parts.headers, visitor.is_local) {
            return Err(Told::forbidden(FOREIGN));
        }
        let guest = self.guest(visitor, &shown).await?;
        let options = self.options(&parts.headers)?;
        let taken = body::take(body, &visitor.account, &self.counters).await;
        let mut taken = taken.map_err(|fault| Told::fault(&fault))?;
        let made = |taken: &Taken| {
            let body = (taken.beginning.clone(), taken.is_whole());
            request::of(&parts, &parameters, body, guest.reads_only)
        };
        let mut request = made(&taken);
        if guest.reads_only && !opaque::only_reads(&request) {
            let text = "this caller may only read, and fusebox does not recognise the statement as a query";
            return Err(Told::forbidden(text));
        }
        if is_by_socket
            && pages::may_be_foreign(&parts.method, &parts.headers)
            && !opaque::only_reads(&request)
        {
            return Err(Told::forbidden(FOREIGN));
        }
        if stated::is_to_be_found(&request) {
            let held = taken.hold(PACKED_MOST, &visitor.account, &self.counters).await;
            held.map_err(|fault| Told::fault(&fault))?;
            request = made(&taken);
        }
        if !taken.is_whole()
            && self.backend.lets_queue(options.min_ack)
            && door_insert::is_wanted_whole(&request)
        {
            let waited =
                taken.wait_for(door_insert::BODY_MAX, &visitor.account, &self.counters).await;
            waited.map_err(|fault| Told::fault(&fault))?;
            request = made(&taken);
        }
        let query_id = request.head.query_id.as_deref().unwrap_or_default();
        if query_id.starts_with("fusebox:") {
            return Err(Told::malformed(
                "a query_id that begins with fusebox: is reserved for fusebox",
            ));
        }
        if query_id.len() > QUERY_ID_MAX {
            return Err(Told::malformed(format!(
                "a query_id may have at most {QUERY_ID_MAX} bytes, got {}",
                query_id.len()
            )));
        }
        let body = Taken::weighed(&visitor.account, request.to_bytes());
        let body = body.map_err(|full| Told::fault(&body::Fault::Full(full)))?;
        let query_id = request.head.query_id.take();
        drop(request);
        let upload = taken.upload(&self.counters);
        let at = AtDoor { address: self.address, ahead: 0 };
        let trace = trace_headers::of(&parts.headers, at);
        let trace_id = crate::agreed::trace_id(trace.parent.trace_id);
        let (uid, admin) = (guest.who.uid, guest.who.admin);
        let call = Call { body, options, uid, admin, trace, streams: true, upload };
        match Box::pin(self.backend.call(call)).await {
            Ok(reply) => self.live(reply, query_id, &trace_id, sent),
            Err(error) => Ok(self.failed(&error, &trace_id)),
        }
    }

    fn live(
        &self,
        reply: Reply,
        query_id: Option<String>,
        trace_id: &str,
        sent: Sent,
    ) -> Result<Response<Body>, Told> {
        let is_copy = matches!(reply.source, Source::Cache | Source::Stale);
        let id = query_id.as_deref().filter(|_| is_copy).map(str::to_owned);
        let reply = answer::of_write(reply, query_id);
        self.counters.answered(reply.source);
        if self.version.lock().is_none() {
            self.version();
        }
        let response = answer::of_reply(reply, trace_id, &self.counters, sent);
        let mut response = response.ok_or_else(Told::internal)?;
        // The query that was copied had another id.
        if let Some(id) = id.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok()) {
            response.headers_mut().insert(QUERY_ID, id);
        }
        Ok(response)
    }

    /// The server's own answer to the last attempt if there was one, and else what fusebox says of it.
    fn failed(&self, error: &CallError, trace_id: &str) -> Response<Body> {
        let answers = [&error.reply, &error.last_answer].into_iter().flatten();
        let mut answers = answers.filter_map(|answer| answer::of_error(answer, trace_id));
        if let Some(response) = answers.next() {
            self.counters.answered(Source::Live);
            self.counters.written(response.body().len());
            return response.map(answer::whole);
        }
        let told = Told::of_call(self.backend.name(), error);
        let mut response = self.told(&told);
        if let Ok(value) = HeaderValue::from_str(trace_id) {
            response.headers_mut().insert("x-fusebox-trace-id", value);
        }
        if let Some(op_id) = error.op_id.filter(|_| error.outcome_unknown)
            && let Ok(value) = HeaderValue::from_str(&op_id.to_string())
        {
            response.headers_mut().insert("x-fusebox-op-id", value);
        }
        response
    }

    /// Who sends a request. `/ping` needs no credentials.
    async fn guest(&self, visitor: &Visitor, shown: &Shown) -> Result<Guest, Told> {
        let connector = clickhouse_of(self.backend.connector());
        let Some(connector) = connector else { return Err(Told::internal()) };
        let found = shown.who(visitor.who, &self.settings.callers, connector.settings()).await;
        let stranger = match found {
            Ok(guest) => return Ok(guest),
            Err(stranger) => stranger,
        };
        self.counters.wrong_secret();
        if stranger == Stranger::Wrong {
            if let Some(times) = self.wrong_told.again() {
                tracing::warn!(door = %self.settings.listen, times, "no caller has these credentials");
            }
            sleep(PENALTY).await;
        }
        Err(Told::stranger(stranger, shown.user()))
    }

    /// What is asked of a call: by its own headers, and by the door's settings if it has none.
    fn options(&self, headers: &HeaderMap) -> Result<CallOptions, Told> {
        let options = CallOptionsJson::from_headers(headers).and_then(CallOptionsJson::checked);
        let mut options = options.map_err(Told::malformed)?;
        let settings = &self.settings;
        options.deadline = options.deadline.or(settings.deadline);
        options.min_ack = options.min_ack.or(settings.min_ack);
        if !headers.contains_key("x-fusebox-priority") {
            options.priority = settings.priority;
        }
        Ok(options)
    }

    fn version(&self) -> Option<String> {
        let mut version = self.version.lock();
        if let Some(known) = self.backend.connector().status().server_version {
            *version = Some(known);
        }
        version.clone()
    }

    /// A fault in fusebox itself cost a client its answer.
    pub(super) fn at_fault(&self) -> Response<Body> {
        self.counters.refused(Refused::Unknown);
        Told::internal().response(None).map(answer::whole)
    }
}

/// Whether a request asks if the server lives.
fn is_ping(parts: &Parts) -> bool {
    matches!(parts.method, Method::GET | Method::HEAD) && parts.uri.path() == "/ping"
}

/// What the server says to that.
fn pong() -> Response<Body> {
    let mut response = Response::new(answer::whole(Bytes::from_static(b"Ok.\n")));
    let html = HeaderValue::from_static("text/html; charset=UTF-8");
    response.headers_mut().insert(CONTENT_TYPE, html);
    response
}
