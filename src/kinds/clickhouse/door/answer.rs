//! An answer on its way to the client: the server's own, and what fusebox says beside it.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use fusebox_actors::{AckLevel, Reply, Source, connector::Tail};
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Frame,
    header::{ACCESS_CONTROL_EXPOSE_HEADERS, CONTENT_LENGTH, HeaderName, HeaderValue},
};

use super::{counters::Counters, flushes::Flushes};
use crate::{
    ingress::paced::Busy,
    kinds::clickhouse::protocol::{
        http_form::{self, AnswerHead, bytes_of},
        wire,
    },
    net::freshness,
};

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, BrokenOff>;

/// The server's answer ended before its end.
#[derive(Debug, thiserror::Error)]
#[error("the server's answer is incomplete")]
pub(super) struct BrokenOff;

/// What an answer holds of its connection until it has gone.
pub(super) struct Sent {
    /// A request is being worked on.
    _busy: Busy,
    /// When what was written has left.
    flushes: Flushes,
}

impl Sent {
    /// What an answer holds while it is on its way.
    pub(super) fn new(busy: Busy, flushes: Flushes) -> Self {
        Self { _busy: busy, flushes }
    }
}

/// Headers that belong to the connection to the server.
const NOT_PASSED_ON: &[&str] =
    &["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
/// The summary of a write that has not been applied yet.
const NOTHING_YET: &str = r#"{"read_rows":"0","read_bytes":"0","written_rows":"0","written_bytes":"0","total_rows_to_read":"0","result_rows":"0","result_bytes":"0","elapsed_ns":"0","memory_usage":"0"}"#;
/// About as many as fusebox adds.
const OWN_COUNT: usize = 8;
/// What fusebox says beside an answer. Pages of other origins may read it if they may read anything.
const OWN: &str = "X-Fusebox-Source,X-Fusebox-Ack,X-Fusebox-Op-Id,X-Fusebox-Age-Ms,X-Fusebox-Attempts,\
                   X-Fusebox-Trace-Id,X-Fusebox-Pending-Writes,X-Fusebox-Warning,Age,Warning";

/// The reply to a write that was queued, or that replay has applied, in the form of the server's answer.
pub(super) fn of_write(reply: Reply, query_id: Option<String>) -> Reply {
    let is_answer = reply.value.as_ref().is_some_and(|it| http_form::is_answer(it));
    if is_answer || reply.ack.is_none() {
        return reply;
    }
    let summary = reply.value.as_ref().map(wire::parts_of).and_then(|(name, it)| {
        (name == wire::SUMMARY).then(|| String::from_utf8_lossy(&it).into_owned())
    });
    let mut headers = vec![
        ("content-type", "text/plain; charset=UTF-8".into()),
        ("x-clickhouse-summary", summary.map_or(NOTHING_YET.into(), Cow::Owned)),
    ];
    headers.extend(
        query_id.as_ref().map(|id| ("x-clickhouse-query-id", http_form::text_of(id.as_bytes()))),
    );
    let answer = http_form::answer(&AnswerHead { status: 200, headers }, b"");
    Reply { value: Some(answer), ..reply }
}

/// The server's answer that `reply` is. `sent` is held until it has gone. `None` if it is of another form.
pub(super) fn of_reply(
    reply: Reply,
    trace_id: &str,
    counters: &Arc<Counters>,
    sent: Sent,
) -> Option<Response<Body>> {
    let value = reply.value.as_ref()?;
    let (head, beginning) = http_form::answer_of(value)?;
    let mut response = response_of(&head)?;
    if response.status().is_success() {
        say(response.headers_mut(), &reply, trace_id);
    } else {
        put(response.headers_mut(), "x-fusebox-source", reply.source.as_str());
        put(response.headers_mut(), "x-fusebox-trace-id", trace_id);
        expose(response.headers_mut());
    }
    let length = response.headers().get(CONTENT_LENGTH).and_then(|it| it.to_str().ok());
    let left = length.and_then(|it| it.parse().ok());
    Some(response.map(|()| body_of(beginning, (reply.rest, left), counters, sent)))
}

/// The server's own error, which it gave to the last attempt.
pub(super) fn of_error(answer: &Bytes, trace_id: &str) -> Option<Response<Bytes>> {
    let (head, body) = http_form::answer_of(answer)?;
    let mut response = response_of(&head)?.map(|()| body);
    put(response.headers_mut(), "x-fusebox-source", Source::Live.as_str());
    put(response.headers_mut(), "x-fusebox-trace-id", trace_id);
    expose(response.headers_mut());
    Some(response)
}

/// An answer that is here whole.
pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn response_of(head: &AnswerHead<'_>) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).ok()?;
    *response.headers_mut() = headers_of(head.headers.iter().map(|(name, it)| (*name, &**it)));
    Some(response)
}

fn headers_of<'a>(fields: impl ExactSizeIterator<Item = (&'a str, &'a str)>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len() + OWN_COUNT);
    for (name, value) in fields.filter(|(name, _)| !NOT_PASSED_ON.contains(name)) {
        // They were read as headers.
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&bytes_of(value))) {
            headers.append(name, value);
        }
    }
    headers
}

/// What fusebox says of an answer.
fn say(headers: &mut HeaderMap, reply: &Reply, trace_id: &str) {
    put(headers, "x-fusebox-source", reply.source.as_str());
    // Behind rows there may be an exception.
    if let Some(ack) = reply.ack.filter(|_| reply.rest.is_none()) {
        let ack = if ack == AckLevel::Durable { "durable" } else { "applied" };
        put(headers, "x-fusebox-ack", ack);
    }
    if let Some(op_id) = reply.op_id {
        put(headers, "x-fusebox-op-id", &op_id.to_string());
    }
    put(headers, "x-fusebox-age-ms", &reply.age.as_millis().to_string());
    put(headers, "x-fusebox-attempts", &reply.attempts.to_string());
    put(headers, "x-fusebox-trace-id", trace_id);
    if reply.pending_writes > 0 {
        put(headers, "x-fusebox-pending-writes", &reply.pending_writes.to_string());
    }
    for warning in &reply.warnings {
        put(headers, "x-fusebox-warning", warning);
    }
    freshness::say(headers, reply);
    expose(headers);
}

fn put(headers: &mut HeaderMap, name: &'static str, text: &str) {
    // What cannot be in a header is left out.
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.append(HeaderName::from_static(name), value);
    }
}

/// Lets pages read what fusebox says, if they may read what the server does.
fn expose(headers: &mut HeaderMap) {
    let exposed = headers.get(ACCESS_CONTROL_EXPOSE_HEADERS).and_then(|value| value.to_str().ok());
    let Some(exposed) = exposed else { return };
    if let Ok(value) = HeaderValue::from_str(&format!("{exposed},{OWN}")) {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, value);
    }
}

/// The pieces of an answer. It ends as the server's did.
///
/// If the server said how long it is (`left`), whoever sends it on asks for nothing once so much has come. So its last
/// piece is handed on only when the end behind it has been seen: an answer that is not read to its end is not cached,
/// and the query is taken for one that still runs.
fn body_of(
    beginning: Bytes,
    (rest, mut left): (Option<Box<dyn Tail>>, Option<u64>),
    counters: &Arc<Counters>,
    sent: Sent,
) -> Body {
    counters.written(beginning.len());
    let Some(rest) = rest else { return whole(beginning) };
    left = left.map(|left| left.saturating_sub(beginning.len() as u64));
    let first = Some(beginning).filter(|it| !it.is_empty());
    let state = (first, Some(rest), left, Arc::clone(counters), sent);
    let frames = stream::unfold(state, |(first, rest, left, counters, sent)| async move {
        if let Some(first) = first {
            return Some((Ok(Frame::data(first)), (None, rest, left, counters, sent)));
        }
        let mut rest = rest?;
        let frame = match rest.next().await {
            Some(Ok(piece)) => {
                counters.written(piece.len());
                let left = left.map(|left| left.saturating_sub(piece.len() as u64));
                // It comes at once.
                let is_last = left == Some(0) && rest.next().await.is_none();
                let rest = Some(rest).filter(|_| !is_last);
                return Some((Ok(Frame::data(piece)), (None, rest, left, counters, sent)));
            }
            None => Ok(rest.end().unwrap_or_default()),
            // What came whole ends here, too: the client reads in its last lines what went wrong.
            Some(Err(_)) => rest.end().ok_or(BrokenOff),
        };
        let frame = match frame {
            Ok(trailers) if trailers.is_empty() => return None,
            Ok(trailers) => {
                let fields = http_form::trailers_of(&trailers);
                let fields = fields.iter().map(|(name, value)| (&**name, &**value));
                Ok(Frame::trailers(headers_of(fields)))
            }
            Err(broken) => {
                // What came before says why.
                sent.flushes.next().await;
                Err(broken)
            }
        };
        Some((frame, (None, None, left, counters, sent)))
    });
    StreamBody::new(frames).boxed_unsync()
}
