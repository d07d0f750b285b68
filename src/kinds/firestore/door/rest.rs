//! Requests of HTTP that are not gRPC: Firestore's REST, and what an emulator offers to test harnesses.
//!
//! They are passed on over HTTP/1.1, each over a connection that nobody else uses meanwhile, under the same breaker,
//! bulkhead, fence and deadline as calls of gRPC. The request is held whole before it is sent; the answer is handed on
//! as it comes, and its status settles the call.
//!
//! A browser would send such requests for any page. So what comes over TCP without a credential of its own must name
//! this host as one that nobody else can be, and come from a page of that host or from none.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::OwnCode;
use fusebox_state::{ErrorClass, LaneId, Lanes, Verdict, dependencies::Fault};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN},
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::{
    answer::{Body, Plain},
    blame::Blame,
    class::{self, Method, Names, RestPath},
    core::Core,
    counters::Family,
    exchange::{Held, Waiting, comes_back, departs},
    framing::MESSAGE_MAX,
    lanes::Touched,
    metadata::{check_metadata, strip},
    pool::{Line, REPLACED, Upstream},
    telling::Told,
    who::Principal,
};
use crate::{
    ingress::peer::Who,
    kinds::firestore::{
        protocol::{
            named::database_of,
            outcome::{self, Behalf, Cause, Failed},
        },
        transport::fence,
    },
    net::{
        dial::{Dial, DialError},
        percent,
    },
};

const HTTP1: &[&str] = &["http/1.1"];
/// The deadline of a request at Google's front end, in seconds.
const SERVER_TIMEOUT: &str = "x-server-timeout";
/// The headers by which a server may take a request for one with another verb.
const OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
/// How much longer than its time an attempt is waited for.
const GRACE: Duration = Duration::from_millis(100);

/// Answers a request.
pub(super) async fn answered(
    core: Arc<Core>,
    who: Option<Who>,
    is_tcp: bool,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.uri().path() == "/" && matches!(request.method().as_str(), "GET" | "HEAD") {
        core.counters.local(Family::Rest, None);
        return Response::new(Body::of("Ok\n"));
    }
    match carried(&core, who, is_tcp, request).await {
        Ok(response) => {
            core.counters.live(Family::Rest);
            response
        }
        Err(told) => {
            core.counters.local(Family::Rest, told.why);
            told.json().map(Body::of)
        }
    }
}

/// Refuses what asks the server to take it for a request with another verb: by its own one it is judged here.
fn check_verb(headers: &HeaderMap, query: &str) -> Result<(), Told> {
    let refused = |name: &str| {
        Told::malformed(&format!("{name} is not allowed here: the method itself must be sent"))
    };
    if let Some(name) = OVERRIDES.iter().find(|name| headers.contains_key(**name)) {
        return Err(refused(name));
    }
    for param in query.split('&') {
        // What cannot be decoded the server may take for anything.
        let said = percent::decoded(param);
        let said = said.ok_or_else(|| Told::malformed("the query is not valid"))?;
        let said = said.to_ascii_lowercase();
        let (name, value) = said.split_once('=').unwrap_or((said.as_str(), ""));
        let is_override = name == "$httpmethod"
            || name == "$httpheaders" && OVERRIDES.iter().any(|name| value.contains(name));
        if is_override {
            return Err(refused(name));
        }
    }
    Ok(())
}

/// Whether a page of somewhere else may have sent it.
fn is_foreign(headers: &HeaderMap, host: Option<&str>) -> bool {
    let host = host.unwrap_or_default();
    let Some(origin) = headers.get(ORIGIN) else { return !is_this_host(host) };
    let origin = origin.to_str().unwrap_or_default();
    let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    from != Some(host) || !is_this_host(host)
}

/// Whether a `Host` is this one under a name that nobody else can have.
fn is_this_host(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let name = name.map_or(host, |(name, _)| name);
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || ip.is_ok()
}

async fn carried(
    core: &Arc<Core>,
    who: Option<Who>,
    is_tcp: bool,
    request: Request<Incoming>,
) -> Result<Response<Body>, Told> {
    let arrived = Instant::now();
    check_metadata(request.headers())?;
    check_verb(request.headers(), request.uri().query().unwrap_or_default())?;
    let by = core.principal(who, request.headers()).await.map_err(|_| Told::nobody())?;
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(hyper::http::uri::Authority::as_str));
    let is_known = by.own.is_some() || who.is_none();
    if is_tcp && !is_known && is_foreign(request.headers(), host) {
        return Err(Told::denied("web pages of another origin may not send this request"));
    }
    let (head, body) = request.into_parts();
    let (verb, path) = (head.method.as_str(), RestPath::of(head.uri.path()));
    let method = class::of_rest(verb, &path);
    let caller = core.caller(who, &head.headers);
    // What is held of it is so until the server has answered.
    let (body, _room) = read(core, body).await?;
    let method = method.rest_looked_into(verb, &path, &body);
    let share = core.share(method).await?;
    let upstream = core.upstream().map_err(|why| Told::fault(&why))?;
    let touched = touched(&upstream, method, verb, path.said());
    Core::allows(&by, method)?;
    core.may_ask(&core.scope(&upstream, &by), &head, &body)?;
    let sent = core.plain(&upstream, &by, method, head, body).await?;

    let timeout = core.backend.timeout();
    let patience = core.settings.deadline.map_or(timeout, |time| time.min(timeout));
    let until = Instant::now() + patience;
    let entered = core.enter(&upstream, method, &touched, until, &caller).await?;
    let (of, is_own) = (Arc::clone(core), by.own.is_some());
    let mut waiting = Waiting::new(core, entered, |held, pass| {
        Box::pin(send(of, upstream, method, sent, is_own, held, pass))
    });
    let until = match core.settings.deadline {
        Some(time) => (arrived + time).min(Instant::now() + timeout + GRACE),
        None => Instant::now() + timeout + GRACE,
    };
    let (response, line) = match waiting.answered(until).await {
        Some(ended) => ended?,
        None => return Err(waiting.late(method)),
    };
    let mut response =
        response.map(|body| Body::plain(Plain { body, line: Some(line), _share: share }));
    strip(response.headers_mut());
    Ok(response)
}

/// The body, whole, and the room that it has in the door.
async fn read(core: &Core, body: Incoming) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Told> {
    let reading = async {
        let mut body = Limited::new(body, usize::try_from(MESSAGE_MAX).unwrap_or(usize::MAX));
        let (mut whole, mut room) = (BytesMut::new(), None);
        while let Some(frame) = body.frame().await {
            let unread = |_| Told::too_large("the body is incomplete, or larger than 10 MiB");
            if let Ok(data) = frame.map_err(unread)?.into_data() {
                core.hold_at_least(&mut room, whole.len().saturating_add(data.len())).await?;
                whole.extend_from_slice(&data);
            }
        }
        Ok((whole.freeze(), room))
    };
    // A request of HTTP says how long it is, or ends: what does neither in time is given up.
    let read = tokio::time::timeout(core.settings.partial_max, reading).await;
    read.map_err(|_| Told::malformed("no more data of the request arrived"))?
}

/// What a request is about, by what its path says.
fn touched(upstream: &Upstream, method: Method, verb: &str, path: Option<&str>) -> Touched {
    let path = path.unwrap_or_default();
    let name = path.strip_prefix("/v1/").or_else(|| path.strip_prefix("/emulator/v1/"));
    let name = name.unwrap_or_default();
    let client = &upstream.connector.shared.client;
    let document = client.known_root().and_then(|root| {
        let below = root.path(name);
        let names_one = method.names == Names::Name
            || matches!(verb, "PATCH" | "DELETE") && below.len() < name.len();
        (names_one && path.starts_with("/v1/") && !below.contains(':')).then_some(below)
    });
    let lanes = match (document, method.names) {
        (Some(path), _) => Lanes::One(LaneId::of(upstream.connector.namespace(), path.as_bytes())),
        (None, Names::None) => Lanes::None,
        (None, _) => Lanes::All,
    };
    let database = name.split_once("/documents").map_or(name, |(database, _)| database);
    Touched { lanes, transaction: false, database: database_of(database).map(str::to_owned) }
}

impl Core {
    /// The request as it goes on.
    async fn plain(
        &self,
        upstream: &Upstream,
        by: &Principal,
        method: Method,
        head: hyper::http::request::Parts,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Told> {
        let client = &upstream.connector.shared.client;
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = head.method;
        *request.uri_mut() = path.parse().map_err(|_| Told::malformed("the path is not valid"))?;
        let mut headers = head.headers;
        strip(&mut headers);
        headers.remove("te");
        headers.remove("expect");
        headers.remove("content-length");
        headers.insert(AUTHORIZATION, self.credential(upstream, by).await?);
        if method.is_timed() {
            // What the fence counts on: a write that arrived is not applied later.
            headers.insert(SERVER_TIMEOUT, whole_seconds(self.backend.timeout()).into());
        }
        let authority = HeaderValue::try_from(client.settings.url.authority());
        headers.insert(
            HOST,
            authority.map_err(|_| Told::fault("the url cannot be sent in a header"))?,
        );
        *request.headers_mut() = headers;
        Ok(request)
    }
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// How long a request asks Google's front end to wait, if it says so.
fn asked_time(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(SERVER_TIMEOUT)?.to_str().ok()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

type PlainAnswer = (Response<Incoming>, Line);

/// Sends a request, and settles it.
async fn send(
    core: Arc<Core>,
    upstream: Arc<Upstream>,
    method: Method,
    request: Request<Full<Bytes>>,
    caller: bool,
    held: Held,
    pass: Option<fence::Pass>,
) -> Result<PlainAnswer, Told> {
    let timeout = core.backend.timeout();
    let (mut is_sent, client) = (false, Arc::clone(&upstream.connector.shared.client));
    let behalf = Behalf { caller, transaction: false };
    let blame = Blame::of(&upstream, method, asked_time(request.headers()), timeout);
    let sending = over_a_line(&upstream, request, &held, &mut is_sent);
    let failed = match timeout_at(Instant::now() + timeout, sending).await {
        Ok(Ok(answer)) => {
            let status = super::outcome::of_http(answer.0.status());
            let failed = match status.code() {
                tonic::Code::Ok => None,
                _ => Some(blame.judges(client.failed(&status, behalf).await)),
            };
            if let Some(pass) = pass
                && failed.as_ref().is_none_or(|failed| failed.error.doubt.is_none())
            {
                pass.answered();
            }
            core.settle(&held, failed);
            return Ok(answer);
        }
        Ok(Err(failed)) => blame.judges(*failed),
        Err(_) => blame.judges_silence(super::outcome::given_up(is_sent, timeout)),
    };
    if let Some(pass) = pass
        && failed.error.doubt.is_none()
    {
        pass.answered();
    }
    let error = failed.error.clone();
    core.settle(&held, Some(failed));
    Err(core.failed(method, &error))
}

/// Sends a request over a connection that is free, or a new one.
async fn over_a_line(
    upstream: &Arc<Upstream>,
    request: Request<Full<Bytes>>,
    held: &Held,
    is_sent: &mut bool,
) -> Result<PlainAnswer, Box<Failed>> {
    let mut request = request;
    loop {
        let idle = upstream.idle();
        let (mut sender, is_new) = match idle {
            Some(sender) if sender.is_closed() => continue,
            Some(sender) => (sender, false),
            None => (dialled(upstream).await?, true),
        };
        if upstream.is_over() {
            let (verdict, class) = (Verdict::Neutral, ErrorClass::NotExecuted);
            return Err(Box::new(Failed::own(verdict, class, OwnCode::Closed, REPLACED)));
        }
        if !departs(held) {
            let message = "the client closed the connection";
            let (verdict, class) = (Verdict::Neutral, ErrorClass::NotExecuted);
            return Err(Box::new(Failed::own(verdict, class, OwnCode::Closed, message)));
        }
        *is_sent = true;
        match sender.try_send_request(request).await {
            Ok(response) => {
                return Ok((response, Line::new(sender, upstream)));
            }
            Err(mut error) => match error.take_message() {
                // Given back: nothing of it was sent.
                Some(again) if !is_new => {
                    *is_sent = false;
                    comes_back(held);
                    request = again;
                }
                given_back => {
                    let cause = if given_back.is_some() {
                        Cause::NotSent(Fault::Unclear)
                    } else {
                        Cause::Connection
                    };
                    let status = tonic::Status::unavailable("the connection broke");
                    return Err(Box::new(outcome::of(&status, cause, Behalf::default())));
                }
            },
        }
    }
}

async fn dialled(upstream: &Upstream) -> Result<SendRequest<Full<Bytes>>, Box<Failed>> {
    let server = upstream.connector.shared.client.settings.server();
    let dial = Dial {
        address: server.address.clone(),
        host: &server.host,
        port: server.port,
        tls: server.tls,
        ca_file: server.ca_file.as_deref(),
        protocols: HTTP1,
        resets: true,
    };
    let failed = |cause, why: String| {
        let status = tonic::Status::unavailable(why);
        Box::new(outcome::of(&status, cause, Behalf::default()))
    };
    let stream = dial.connect().await.map_err(|error| match error {
        DialError::Tls(..) => failed(Cause::Tls(error.to_string()), String::new()),
        DialError::Connect(..) => failed(Cause::NotSent(error.fault()), error.to_string()),
    })?;
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) =
        shaken.map_err(|error| failed(Cause::NotSent(Fault::Unclear), error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection of HTTP/1.1 ended");
        }
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;

    #[test]
    fn a_request_has_no_other_verb_than_its_own() {
        let is_refused = |header: Option<&'static str>, query: &str| {
            let header = header.map(HeaderName::from_static);
            let headers = header.map(|name| (name, HeaderValue::from_static("DELETE")));
            check_verb(&HeaderMap::from_iter(headers), query).is_err()
        };
        assert!(OVERRIDES.iter().all(|name| is_refused(Some(*name), "")));
        for query in [
            "$httpMethod=DELETE",
            "a=b&%24httpmethod=PATCH",
            "$httpMethod",
            "$httpHeaders=X-HTTP-Method-Override%3ADELETE%0D%0A",
            "$httpHeaders=X-HTTP-Method-Override%3ADELETE%0D%0AX%3A%ff",
            "a=b&$httpHeaders=X-HTTP-Method-Override%3ADELETE%0D%0AX%3A%zz",
        ] {
            assert!(is_refused(None, query), "{query}");
        }
        for query in ["", "mask=c&mask=$httpMethod", "$httpHeaders=Content-Type%3Atext%2Fplain"] {
            assert!(!is_refused(Some("content-type"), query), "{query}");
        }
    }

    #[test]
    fn a_page_of_elsewhere_is_told_from_programs_and_from_pages_of_this_host() {
        for (host, origin, expected) in [
            ("127.0.0.1:8080", None, false),
            ("localhost:8080", None, false),
            ("[::1]:8080", None, false),
            ("127.0.0.1:8080", Some("http://127.0.0.1:8080"), false),
            ("127.0.0.1:8080", Some("http://evil.example"), true),
            ("127.0.0.1:8080", Some("null"), true),
            // Rebound: the same origin by a name that anybody can have.
            ("evil.example:8080", None, true),
            ("evil.example:8080", Some("http://evil.example:8080"), true),
            ("", None, true),
        ] {
            let named = origin.map(|text| (ORIGIN, HeaderValue::from_static(text)));
            let headers = HeaderMap::from_iter(named);
            assert_eq!(is_foreign(&headers, Some(host)), expected, "{host} {origin:?}");
        }
    }
}
