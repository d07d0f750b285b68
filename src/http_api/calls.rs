//! Calls: as JSON, and as bytes with their options in headers.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use fusebox_actors::{
    AckLevel, Backend, Call, CallOptions, Reply, Source, connector::Upload, trace::CallTrace,
};
use fusebox_state::OpId;
use futures_util::{StreamExt, stream};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;

use super::{
    api::Api,
    body::{Admitted, JSON_MAX},
    http::Connected,
    problem::{Checked, Problem},
};
use crate::{
    exact::Outgoing,
    ingress::peer::Who,
    kinds::{self, options::CallOptionsJson, port::Kind},
    net::{freshness, trace_headers},
};

/// A call. The kind of its backend says what it consists of, and reads it.
pub(crate) enum CallJson {}

impl JsonSchema for CallJson {
    fn schema_name() -> Cow<'static, str> {
        "Call".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let calls: Vec<Schema> = kinds::all().map(|kind| kind.call_schema(generator)).collect();
        json_schema!({ "description": "A call, by the kind of its backend.", "anyOf": calls })
    }
}

/// The reply to a JSON call.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Reply")]
pub(crate) struct ReplyJson<'a> {
    /// Who answered.
    source: Source,
    /// What is promised of a write; null for a read.
    ack: Option<AckLevel>,
    /// The backend's answer as JSON; null if there is none yet.
    #[schemars(with = "serde_json::Value")]
    value: Option<Outgoing<'a>>,
    /// The age of a cached answer, in milliseconds; otherwise 0.
    age_ms: u64,
    /// What the caller should know besides.
    warnings: &'a [String],
    /// The name of a write.
    op_id: Option<OpId>,
    /// Whether the write was applied, and its reply was lost.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reply_lost: bool,
    /// Attempts at the backend.
    attempts: u32,
    /// The trace of the call.
    trace_id: &'a str,
    /// The queued writes that the answer to a read contains.
    #[serde(skip_serializing_if = "is_zero")]
    pending_writes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The routes by which calls come.
const JSON_ROUTE: &str = "/v1/backends/{backend}/call";
const RAW_ROUTE: &str = "/v1/backends/{backend}/call/raw";

/// POST /v1/backends/{backend}/call
pub(crate) async fn call(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    Extension(connected): Extension<Connected>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (backend, kind) = api.backend(&name)?;
    let mut place = Admitted::new(&connected.account);
    let json = place.read(body, JSON_MAX).await.map_err(|problem| problem.of(&name))?;
    let malformed = |detail: String| Problem::malformed(detail).of(&name);
    let parsed = kind.call_from_json(&json, &headers).map_err(malformed)?;
    drop(json);
    let options = parsed.options.checked().map_err(malformed)?;
    let trace = trace_headers::of(&headers, JSON_ROUTE);
    let trace_id = crate::agreed::trace_id(trace.parent.trace_id);
    let body = place.counted(parsed.body).map_err(|problem| problem.of(&name))?;
    let call = Asked { body, options, who, trace, streams: false, upload: None };
    let reply = carry(&backend, call, &trace_id).await?;
    Ok(json_reply(&reply, kind, &trace_id, place))
}

/// POST /v1/backends/{backend}/call/raw
pub(crate) async fn call_raw(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Extension(who): Extension<Who>,
    Extension(connected): Extension<Connected>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (backend, kind) = api.backend(&name)?;
    let malformed = |detail: String| Problem::malformed(detail).of(&name);
    let options = CallOptionsJson::from_headers(&headers).and_then(CallOptionsJson::checked);
    let options = options.map_err(malformed)?;
    let mut place = Admitted::new(&connected.account);
    let (held, limit) = (kind.raw_held_max(), kind.raw_call_max());
    let read = if held < limit {
        place.read_head(body, held, limit).await
    } else {
        place.read(body, limit).await.map(|body| (body, None))
    };
    let (body, upload) = read.map_err(|problem| problem.of(&name))?;
    let body = kind.call_from_raw(&headers, body).map_err(malformed)?;
    let body = place.counted(body).map_err(|problem| problem.of(&name))?;
    let trace = trace_headers::of(&headers, RAW_ROUTE);
    let trace_id = crate::agreed::trace_id(trace.parent.trace_id);
    let call = Asked { body, options, who, trace, streams: true, upload };
    let reply = carry(&backend, call, &trace_id).await.map_err(|error| place.blame(error))?;
    Ok(raw_reply(reply, kind, &trace_id, place))
}

/// What a door asks of a backend.
struct Asked {
    body: Bytes,
    options: CallOptions,
    who: Who,
    trace: CallTrace,
    streams: bool,
    upload: Option<Upload>,
}

async fn carry(backend: &Backend, asked: Asked, trace_id: &str) -> Result<Reply, Problem> {
    let Asked { body, options, who, trace, streams, upload } = asked;
    let (uid, admin) = (who.uid, who.admin);
    let call = Call { body, options, uid, admin, trace, streams, upload };
    backend
        .call(call)
        .await
        .map_err(|error| Problem::from(error).of(backend.name()).traced(trace_id.to_owned()))
}

/// 202 if a write waits in the queue, 200 else.
fn status(reply: &Reply) -> StatusCode {
    match (reply.source, reply.ack) {
        (Source::Queued, Some(AckLevel::Durable)) => StatusCode::ACCEPTED,
        _ => StatusCode::OK,
    }
}

fn json_reply(reply: &Reply, kind: &dyn Kind, trace_id: &str, place: Admitted) -> Response {
    let json = ReplyJson {
        source: reply.source,
        ack: reply.ack,
        value: reply.value.as_ref().map(|value| kind.reply_to_json(value)),
        age_ms: age_ms(reply),
        warnings: &reply.warnings,
        op_id: reply.op_id,
        reply_lost: reply.reply_lost,
        attempts: reply.attempts,
        trace_id,
        pending_writes: reply.pending_writes,
    };
    match serde_json::to_vec(&json) {
        Ok(text) => {
            let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            (status(reply), json, place.reply(text.into())).into_response()
        }
        Err(error) => {
            let detail = format!("the reply cannot be written as JSON: {error}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail).into_response()
        }
    }
}

fn age_ms(reply: &Reply) -> u64 {
    u64::try_from(reply.age.as_millis()).unwrap_or(u64::MAX)
}

/// The reply's bytes. What is too large to hold goes on piece by piece.
fn raw_reply(reply: Reply, kind: &dyn Kind, trace_id: &str, place: Admitted) -> Response {
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, text: &str| {
        // What cannot be in a header (a warning may quote a key) is left out.
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.append(HeaderName::from_static(name), value);
        }
    };
    put("x-fusebox-source", reply.source.as_str());
    if let Some(ack) = reply.ack {
        put("x-fusebox-ack", if ack == AckLevel::Durable { "durable" } else { "applied" });
    }
    if let Some(op_id) = reply.op_id {
        put("x-fusebox-op-id", &op_id.to_string());
    }
    put("x-fusebox-age-ms", &age_ms(&reply).to_string());
    put("x-fusebox-attempts", &reply.attempts.to_string());
    put("x-fusebox-trace-id", trace_id);
    if reply.pending_writes > 0 {
        put("x-fusebox-pending-writes", &reply.pending_writes.to_string());
    }
    if reply.value.is_none() {
        put("x-fusebox-null", "true");
    }
    if reply.reply_lost {
        put("x-fusebox-reply-lost", "true");
    }
    for warning in &reply.warnings {
        put("x-fusebox-warning", warning);
    }
    freshness::say(&mut headers, &reply);
    let status = status(&reply);
    let raw = reply.value.map(|value| kind.reply_to_raw(&value));
    let octets = HeaderValue::from_static("application/octet-stream");
    let content_type = raw.as_ref().and_then(|raw| HeaderValue::from_str(&raw.content_type).ok());
    headers.insert(header::CONTENT_TYPE, content_type.unwrap_or(octets));
    let head = raw.map(|raw| raw.body).unwrap_or_default();
    let Some(rest) = reply.rest else {
        return (status, headers, place.reply(head)).into_response();
    };
    // An error after the first byte breaks the chunked body off, so that nobody takes it for whole.
    let pieces = stream::unfold(rest, |mut rest| async move {
        let piece = rest.next().await?;
        Some((piece, rest))
    });
    let body = Body::from_stream(stream::once(async { Ok(head) }).chain(pieces));
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;
    use crate::ingress::gate::{Gate, testing::user};

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn reply() -> Reply {
        Reply {
            source: Source::Queued,
            ack: Some(AckLevel::Durable),
            value: None,
            age: Duration::ZERO,
            warnings: vec!["the queue is 70 % full".into()],
            op_id: Some(OpId::from_u128(7)),
            reply_lost: false,
            attempts: 0,
            pending_writes: 2,
            rest: None,
        }
    }

    fn kind() -> &'static dyn Kind {
        crate::kinds::find("redis").unwrap()
    }

    fn place() -> Admitted {
        Admitted::new(&Gate::new(1 << 20).account(user(1)))
    }

    async fn body(response: Response) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn a_queued_write_is_202_and_tells_all() {
        let kind = crate::kinds::find("redis").unwrap();
        let response = json_reply(&reply(), kind, TRACE, place());
        assert_eq!(response.status(), 202);
        let shown: Value = serde_json::from_slice(&body(response).await).unwrap();
        assert_eq!(
            shown,
            json!({
                "source": "queued", "ack": "durable", "value": null, "age_ms": 0,
                "warnings": ["the queue is 70 % full"], "op_id": OpId::from_u128(7).to_string(),
                "attempts": 0, "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "pending_writes": 2,
            })
        );
    }

    #[tokio::test]
    async fn a_read_from_queued_writes_is_200_and_hides_what_is_not() {
        let kind = crate::kinds::find("redis").unwrap();
        let read = Reply { ack: None, op_id: None, pending_writes: 0, ..reply() };
        let response = json_reply(&read, kind, TRACE, place());
        assert_eq!(response.status(), 200);
        let shown: Value = serde_json::from_slice(&body(response).await).unwrap();
        assert!(shown.get("pending_writes").is_none());
        assert_eq!(shown["op_id"], Value::Null);
    }

    #[tokio::test]
    async fn a_lost_reply_is_told_in_json_and_in_headers() {
        let lost = || Reply { reply_lost: true, ..reply() };
        let response = json_reply(&lost(), kind(), TRACE, place());
        let shown: Value = serde_json::from_slice(&body(response).await).unwrap();
        assert_eq!(shown["reply_lost"], true);
        let response = raw_reply(lost(), kind(), TRACE, place());
        assert_eq!(response.headers()["x-fusebox-reply-lost"], "true");
        let response = raw_reply(reply(), kind(), TRACE, place());
        assert!(response.headers().get("x-fusebox-reply-lost").is_none());
    }

    #[tokio::test]
    async fn a_raw_reply_is_the_bytes_and_its_story_in_headers() {
        let value = Some(Bytes::from("+OK\r\n"));
        let live = Reply { source: Source::Live, ack: Some(AckLevel::Applied), value, ..reply() };
        let response = raw_reply(live, kind(), TRACE, place());
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-fusebox-source"], "live");
        assert_eq!(response.headers()["x-fusebox-ack"], "applied");
        assert_eq!(response.headers()["x-fusebox-age-ms"], "0");
        assert!(response.headers().get("x-fusebox-null").is_none());
        assert_eq!(body(response).await, "+OK\r\n");
        assert!(raw_reply(reply(), kind(), TRACE, place()).headers().get("age").is_none());
        let (value, age) = (Some(Bytes::from("+OK\r\n")), Duration::from_millis(61_900));
        for (source, is_stale) in [(Source::Cache, false), (Source::Stale, true)] {
            let cached = Reply { source, age, value: value.clone(), ..reply() };
            let response = raw_reply(cached, kind(), TRACE, place());
            assert_eq!(response.headers()["age"], "61");
            let warning = response.headers().get("warning").map(|it| it.to_str().unwrap());
            assert_eq!(warning, is_stale.then_some("110 fusebox \"Response is Stale\""));
        }
        let response = raw_reply(reply(), kind(), TRACE, place());
        assert_eq!(
            (response.status().as_u16(), response.headers()["x-fusebox-null"].as_bytes()),
            (202, b"true".as_slice())
        );
    }
}
