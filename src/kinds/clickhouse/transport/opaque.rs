//! A client's own request on the wire, and the server's own answer.
//!
//! ```text
//!  closed? ─▶ (writes) fence ─▶ wire ─▶ head ─┬─ not an error, or one that blames the caller ─▶ an answer, piece by piece
//!                                             └─ an error that says the server is unwell ─▶ a failure, with the answer
//! ```
//! A head with status 200 may have left before the exception: then its number is a header, or it is the body. Such an
//! answer is a failure. So an INSERT with a token is answered only when the body has ended, and of any other write whose
//! answer has a body it is not said that it was applied.
//!
//! An error of a repetition says nothing of the sending before it. So it is a failure, whoever it blames, and it is not
//! handed on.
//!
//! The bytes of body and headers go both ways as they are: only what belongs to a connection, and who we are, is ours.
//! What an answer says of the backend is read by the same table as every other ([`outcome`]). The answer is handed on
//! from its head; behind that, the same table reads its end.
//!
//! A read that is not read to its end is killed, a write is in doubt; both by the id that the client gave it, or by one
//! that is added to its parameters.
//!
//! An INSERT that may be queued has a token, so that replay does not repeat what this did ([`protected`]). To any other
//! request, no more is added than the headers of its trace and, if it has none, a query id: as a header if it is not
//! certain that the server takes it for a query.
//!
//! [`protected`]: super::protected
//!
//! [`outcome`]: crate::kinds::clickhouse::protocol::outcome

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{
    Aboard, Attempt, AttemptError, Attempted, ErrorCode, OwnCode, Upload,
};
use fusebox_state::{ErrorClass, OpId, Verdict};
use http_body_util::BodyExt;
use hyper::{
    Method, Request, Uri,
    body::Body as _,
    header::{CONTENT_ENCODING, HeaderName, HeaderValue},
};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{
    asking,
    bounds::{GRACE, ambiguous, commutes, is_whole, neutral_unless, waits},
    doubt::note,
    endings::Name,
    exchange::{self, Bounds, Exchanged},
    fence::Place,
    http::{self, Failed},
    protected::{Before, Protected},
    reading::{ReadId, Reading},
    request,
    rest::{Behind, Guard, Rest},
    sessions::InSession,
    shared::Shared,
    writing::{Departure, Writing, raise_soon},
};
use crate::{
    kinds::clickhouse::protocol::{
        door_read::QUERY_ID,
        http_form::{self, AnswerHead, HttpRequest},
        opaque,
        outcome::{self, Asked, Exception, Marks, Writing as Writes, handed_on},
    },
    net::{
        http1::{Body, Rows},
        percent,
    },
};

/// What of an error's body is looked at before it is handed on. What is longer is not an error of a server's.
const ERROR_MAX: usize = 64 * 1024;

/// A request as it is sent.
struct Sending {
    /// And whether the head of its answer may be long.
    request: (Request<Body>, bool),
    asked: Asked,
    bounds: Bounds,
    /// Nobody reads its body: if there is no query the server answers and closes, in the middle of the body if that
    /// is long. That it breaks off says nothing of the server.
    is_unread: bool,
    /// Another sending may have been applied.
    repeats: bool,
    /// Knows what becomes of the answer.
    aboard: Aboard,
}

/// Carries one attempt of a client's own request.
pub(super) async fn carried(
    shared: &Arc<Shared>,
    attempt: Attempt<'_>,
    request: HttpRequest,
    until: Instant,
) -> Result<Attempted, Failed> {
    let in_session = opaque::session(&request);
    let is_dirty =
        |(id, timeout, _): &(String, Duration, bool)| shared.sessions.is_dirty(id, *timeout);
    let is_dirty = in_session.as_ref().is_some_and(is_dirty);
    let session = in_session
        .as_ref()
        .and_then(|(id, timeout, puts)| shared.sessions.enter(id, *timeout, *puts));
    if let Some(session) = &session
        && !session.is_kept(until).await
    {
        return Err(not_kept());
    }
    let query = request.head.query_id.clone().map(Name::Query);
    let names: Vec<Name> =
        query.into_iter().chain(in_session.map(|(id, ..)| Name::Session(id))).collect();
    if !are_free(shared, &names, until).await {
        return Err(not_over());
    }
    if attempt.write {
        return write(shared, attempt, request, (session, is_dirty), until).await;
    }
    // A server would give it such an id, and nothing of it outlives this run.
    let given = request.head.query_id.clone().unwrap_or_else(uuid);
    let reading = Reading::new(shared, ReadId::Given(given), attempt.board()).under(names);
    let sending = sending(shared, &attempt, (request, is_dirty), reading.id(), None)?;
    let mut guard = Some(Guard::read(reading, session));
    let mut ended = exchanged(shared, sending, &mut guard).await;
    if let Some(guard) = guard.as_mut().filter(|_| ended.known) {
        guard.ended();
    }
    if let Err(error) = &mut ended.attempted.result {
        error.doubt = None;
    }
    Ok(ended.attempted)
}

/// It is not known to the next run that something is in the session: nothing was sent.
fn not_kept() -> Failed {
    let message = "the change of its session cannot be saved: the disk does not answer";
    Failed::not_executed(ErrorCode::OfKind("session_not_kept"), message, Verdict::Neutral)
}

/// Waits until no abandoned request has one of these names; returns false if that is not so by `until`. What became of a
/// write that another connector has left in doubt, nobody but who waits for it asks.
async fn are_free(shared: &Arc<Shared>, names: &[Name], until: Instant) -> bool {
    if shared.endings.are_over(names) {
        return true;
    }
    if shared.fence.keeps_names() {
        raise_soon(shared);
    }
    timeout_at(until, shared.endings.over(names)).await.is_ok()
}

/// An abandoned request has the same name, and the server takes no second.
fn not_over() -> Failed {
    let message = "an abandoned request with the same query_id or session has not ended yet";
    Failed::not_executed(ErrorCode::OfKind("read_not_over"), message, Verdict::Neutral)
}

async fn write(
    shared: &Arc<Shared>,
    attempt: Attempt<'_>,
    request: HttpRequest,
    (session, is_dirty): (Option<InSession>, bool),
    until: Instant,
) -> Result<Attempted, Failed> {
    let (whole, commutes) = (is_whole(shared, attempt.timeout), commutes(&attempt));
    let neutral = |failed| neutral_unless(whole, failed);
    let protected = Protected::of(shared, &attempt, &request).await.map_err(neutral)?;
    if attempt.doubt.is_some() && protected.is_none() {
        return Err(ambiguous("it has no token"));
    }
    let patience = until.min(Instant::now() + attempt.fence_patience);
    asking::pass(shared, || attempt.board(), waits(&attempt), patience).await.map_err(neutral)?;
    let given = request.head.query_id.clone();
    let mut noted = None;
    if let Some(protected) = &protected {
        let known = protected.known(shared, &attempt, given.is_none(), until).await;
        match known.map_err(neutral)? {
            Before::Noted(what) => noted = what,
            Before::Ended(ended) => return Ok(ended),
        }
    }
    let token = protected.as_ref().map(Protected::token);
    let place = shared.fence.enter_under(shared.fence.id_of(token), given.clone(), commutes);
    let id = given.as_deref().unwrap_or_else(|| place.id());
    let sending = match sending(shared, &attempt, (request, is_dirty), id, protected.as_ref()) {
        Ok(sending) => sending,
        Err(failed) => {
            let mut place = place;
            place.ended();
            return Err(failed);
        }
    };
    let elsewhere = sending.asked.elsewhere.clone();
    let (streamed, departure) = (sending.bounds.progress.is_some(), Departure::of(shared, &place));
    shared.tables.sending(token, place.id());
    let (sender, receiver) = oneshot::channel();
    let (own, aboard) = (Arc::clone(shared), attempt.board());
    tokio::spawn(async move {
        let ended = on_the_wire(&own, sending, (token, place, session), aboard).await;
        if let Err(unheard) = sender.send(ended) {
            read_out(unheard).await;
        }
    });
    let ended = if streamed {
        // Its time is counted from piece to piece, by the exchange.
        receiver.await.ok()
    } else {
        let patience = if whole { until + GRACE } else { until };
        timeout_at(patience, receiver).await.ok().and_then(Result::ok)
    };
    drop(departure);
    let mut ended = ended.unwrap_or_else(|| {
        let message = format!("no answer within {:?}", attempt.timeout);
        let error = AttemptError::own(ErrorClass::Unknown, OwnCode::Timeout, message);
        Attempted::failed(elsewhere.silence(whole), error)
    });
    if let (Err(error), Some(noted)) = (&mut ended.result, noted) {
        note(error, noted);
    }
    if let (Ok(reply), Some(protected)) = (&ended.result, &protected) {
        protected.arrived(shared, &attempt, reply, until).await?;
    }
    Ok(ended)
}

/// A write's way over the wire, up to the head of its answer.
async fn on_the_wire(
    shared: &Arc<Shared>,
    sending: Sending,
    (token, place, session): (Option<OpId>, Place, Option<InSession>),
    aboard: Aboard,
) -> Attempted {
    let id = place.id().to_owned();
    // The connector is closed only once it is known what becomes of its place.
    let _under_way = shared.http.under_way();
    let mut guard = Some(Guard::write(Writing::new(shared, place), session));
    let Exchanged { attempted, known } = exchanged(shared, sending, &mut guard).await;
    aboard.ended(attempted.verdict);
    if attempted.result.as_ref().err().is_none_or(|error| error.doubt.is_none()) {
        shared.tables.settled(token, &id);
    }
    if let Some(guard) = guard.as_mut().filter(|_| known) {
        guard.ended();
    }
    attempted
}

/// Reads an answer that nobody waits for, so that it is known to have ended.
async fn read_out(attempted: Attempted) {
    let Some(mut rest) = attempted.rest else { return };
    let mut read = 0;
    while let Some(Ok(piece)) = rest.next().await {
        read += piece.len();
        if read > ERROR_MAX {
            return;
        }
    }
}

/// What is sent; something may be in the request's session if `is_dirty`, such as settings.
fn sending(
    shared: &Shared,
    attempt: &Attempt<'_>,
    (request, is_dirty): (HttpRequest, bool),
    id: &str,
    protected: Option<&Protected>,
) -> Result<Sending, Failed> {
    let own =
        if protected.is_none() { opaque::own_words(&request) } else { opaque::OwnWords::default() };
    let HttpRequest { head, body } = request;
    let upload = attempt.upload.and_then(Upload::take);
    let progress = upload.as_ref().map(|_| Arc::new(Mutex::new(Instant::now())));
    let body = if body.is_empty() { Vec::new() } else { vec![body] };
    let mut made = Request::new(http::body_of(body, upload.zip(progress.clone())));
    let is_unread = progress.is_some() && !head.is_query;
    let given = head.query_id.is_some();
    let own_id = (head.is_query && !given).then_some(("query_id", id));
    // A path of the server's configuration may be one of queries as well. It keeps its address.
    let own_header = (!head.is_query && !given).then(|| HeaderValue::from_str(id).ok()).flatten();
    let more = protected.iter().flat_map(|it| it.pairs());
    let target = with(head.target, own_id.into_iter().chain(more));
    let uri: Uri = target.parse().map_err(|_| malformed("the path"))?;
    *made.uri_mut() = uri;
    *made.method_mut() =
        Method::from_bytes(head.method.as_bytes()).map_err(|_| malformed("the method"))?;
    for (name, value) in &head.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| malformed("a header"))?;
        let value = HeaderValue::from_bytes(&http_form::bytes_of(value));
        made.headers_mut().append(name, value.map_err(|_| malformed("a header"))?);
    }
    if let Some(id) = own_header {
        made.headers_mut().insert(QUERY_ID, id);
    }
    for (name, value) in attempt.trace.iter().flat_map(request::headers) {
        made.headers_mut().insert(HeaderName::from_static(name), value);
    }
    // A write has the backend's whole `timeout`, whatever its caller's deadline is.
    let whole = is_whole(shared, attempt.timeout);
    let limit = if attempt.write { shared.settings.timeout } else { attempt.timeout };
    let says = whole || attempt.write && progress.is_none();
    let opaque::OwnWords { settings, elsewhere, has_long_head, in_parts } = own;
    let writes = if in_parts { Writes::Parts } else { Writes::Statement };
    let writing = attempt.write.then_some(writes);
    let asked = Asked { own: settings, whole, writing, summary: false, elsewhere };
    let asked = protected.map_or(asked, |protected| protected.asked(whole));
    // An upload takes as long as its sender likes.
    let has_long_head = has_long_head
        || is_dirty
        || progress.is_some()
        || opaque::asks_for_progress(&head.parameters);
    let bounds = Bounds { limit, progress, had_time: says, elsewhere: asked.elsewhere.clone() };
    let (repeats, aboard) = (attempt.doubt.is_some(), attempt.board());
    let request = (made, has_long_head);
    Ok(Sending { request, asked, bounds, is_unread, repeats, aboard })
}

/// A random UUID of version 4.
fn uuid() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let text = format!("{bits:032x}");
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// The target with more parameters.
fn with<'a>(mut target: String, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    for (name, value) in pairs {
        target.push(if target.contains('?') { '&' } else { '?' });
        target.push_str(name);
        target.push('=');
        percent::encode(value, &mut target);
    }
    target
}

fn malformed(what: &str) -> Failed {
    let message = format!("{what} of the request cannot be sent on");
    let error =
        AttemptError::own(ErrorClass::Rejected, ErrorCode::OfKind("malformed_request"), message);
    Failed { error, verdict: Verdict::Success }
}

/// Sends and returns once it is known what the answer is. `guard` is taken by an answer that goes on.
async fn exchanged(shared: &Arc<Shared>, sending: Sending, guard: &mut Option<Guard>) -> Exchanged {
    let Sending { request, asked, bounds, is_unread, repeats, aboard } = sending;
    // However little time its caller has, an answer that has begun may pause for as long as any.
    let idle = shared.settings.timeout;
    let answered = answered(shared, (request, aboard), (asked, repeats), idle, guard);
    let mut ended = exchange::bounded(shared, bounds, answered).await;
    if is_unread && !ended.known {
        ended.attempted.verdict = Verdict::Neutral;
    }
    ended
}

async fn answered(
    shared: &Arc<Shared>,
    ((request, has_long_head), aboard): ((Request<Body>, bool), Aboard),
    (asked, repeats): (Asked, bool),
    idle: Duration,
    guard: &mut Option<Guard>,
) -> Exchanged {
    let response = shared.http.forward(request, has_long_head).await;
    shared.http.note(&response).await;
    let response = match response {
        Ok(response) => response,
        Err(failed) => {
            // Who answers next may be another server.
            shared.forget_server();
            return Exchanged::lost(failed);
        }
    };
    let response = match exchange::taken_away(aboard.fate(), response).await {
        Ok(response) => response,
        Err(lost) => return lost,
    };
    drop(aboard);
    let (parts, mut body) = response.into_parts();
    let headers = &parts.headers;
    let fields = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let head = AnswerHead::new(parts.status.as_u16(), fields);
    let (code, after) = (http::exception_code(headers), http::retry_after(headers));
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let in_frames = asked.own.iter().any(|name| name == "compress");
    let is_packed = in_frames || headers.contains_key(CONTENT_ENCODING);
    let tag = header("x-clickhouse-exception-tag");
    let marks = Marks::of(tag, header("x-clickhouse-format"), is_packed);
    let is_error = head.status >= 400 || code.is_some();
    // An insert of rows has none in its answer: what comes is an exception.
    let is_insert = matches!(asked.writing, Some(Writes::Rows { .. }));
    let wanted = match asked.writing {
        _ if is_error || is_insert => ERROR_MAX + 1,
        // Whether there is anything.
        Some(_) => 1,
        None => 0,
    };
    let (beginning, is_whole) = match begun(&mut body, wanted).await {
        Ok(begun) => begun,
        Err(error) => return Exchanged::lost(http::broken(&error)),
    };
    if is_whole && (is_error || is_insert && !beginning.is_empty()) {
        return failed(shared, (&head, beginning.freeze()), (code, after), &asked, repeats).await;
    }
    describe(shared);
    let mut attempted = Attempted::answered(http_form::answer(&head, &beginning));
    if is_whole {
        return Exchanged::known(attempted);
    }
    let window = BytesMut::from(tail_of(&beginning));
    let behind = Behind { window, marks, asked, idle, guard: guard.take() };
    attempted.rest = Some(Box::new(Rest::new(&shared.http, body, behind)));
    Exchanged::known(attempted)
}

/// The beginning of a body, up to the piece with which it has as many bytes as are wanted; and whether that is all of it.
/// Read to its end, its connection is free again.
async fn begun(body: &mut Rows, wanted: usize) -> Result<(BytesMut, bool), hyper::Error> {
    let mut beginning = BytesMut::new();
    while body.is_end_stream() || beginning.len() < wanted {
        let Some(frame) = body.frame().await else { return Ok((beginning, true)) };
        beginning.extend_from_slice(&frame?.into_data().unwrap_or_default());
    }
    Ok((beginning, false))
}

/// What an answer with an exception is: the caller's, or a failure.
async fn failed(
    shared: &Arc<Shared>,
    (head, body): (&AnswerHead<'_>, Bytes),
    (code, after): (Option<u32>, Option<Duration>),
    asked: &Asked,
    repeats: bool,
) -> Exchanged {
    let answer = http_form::answer(head, &body);
    let coding = head.header("content-encoding");
    let exception = Exception::of_body(code, coding, &body);
    let summary = head.header("x-clickhouse-summary");
    let handed_on = summary.and_then(|it| handed_on(it, asked.summary));
    let is_late = head.status < 400;
    let came = outcome::Came { late: is_late, handed_on };
    let mut ended = exception.ends(head.status, after, asked, came);
    if ended.verdict == Verdict::Success && !is_late && !repeats {
        return Exchanged::known(Attempted::answered(answer));
    }
    if let Err(error) = &mut ended.result {
        error.reply = Some(answer).filter(|_| !repeats);
        let failed: Result<(), Failed> =
            Err(Failed { error: error.clone(), verdict: ended.verdict });
        shared.http.note(&failed).await;
    }
    Exchanged::known(ended)
}

fn tail_of(bytes: &[u8]) -> &[u8] {
    bytes.get(bytes.len().saturating_sub(outcome::WINDOW)..).unwrap_or_default()
}

/// Asks the server who it is, in the background, if nobody has: errors name its version, and what is queued the
/// database that it takes.
fn describe(shared: &Arc<Shared>) {
    if shared.servers.known().is_some() && shared.usual_database.is_certain() {
        return;
    }
    if shared.is_describing.swap(true, Ordering::AcqRel) {
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let time = shared.settings.timeout;
        if let Err(failed) = asking::server(&shared, || Aboard::NOBODY, time).await {
            tracing::debug!(error = %failed.error, "the server does not describe itself");
        }
        let question = "SELECT currentDatabase() FORMAT TabSeparatedRaw".to_owned();
        let usual = match shared.http.ask_in(None, question, time).await {
            Ok(answer) => Some(answer.trim_end_matches('\n').to_owned()),
            // There is none; it is not asked for again and again.
            Err(failed) if failed.error.class == ErrorClass::BlockedObject => Some(String::new()),
            Err(_) => None,
        };
        let is_new = usual.is_some_and(|usual| shared.usual_database.told(usual));
        shared.is_describing.store(false, Ordering::Release);
        if is_new {
            spawn_blocking(move || shared.usual_database.keep());
        }
    });
}

#[cfg(test)]
mod tests;
