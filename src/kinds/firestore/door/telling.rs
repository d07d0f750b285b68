//! What the door says itself, in the words of gRPC and of Google's JSON.

use std::time::Duration;

use bytes::Bytes;
use fusebox_actors::{AckLevel, Reply, Source};
use fusebox_state::OpId;
use googleapis_tonic_google_firestore_v1::google::rpc;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use prost::Message;
use serde_json::json;
use tonic::{Code, Status};

use super::{
    counters::Refused,
    framing::{MESSAGE_MAX, TooLong},
};

/// Says what the source of an answer is.
const SOURCE: HeaderName = HeaderName::from_static("x-fusebox-source");
/// The number under which a write of unknown outcome is logged.
const OP_ID: HeaderName = HeaderName::from_static("x-fusebox-op-id");
const LOCAL: HeaderValue = HeaderValue::from_static("local");
/// The type of an answer.
pub(super) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=UTF-8");

/// Before all words of the door's own.
const PREFIX: &str = "fusebox: ";

/// The answer to a client in place of the server's.
#[derive(Clone, Debug)]
pub(super) struct Told {
    code: Code,
    message: String,
    retry: Option<Duration>,
    op_id: Option<OpId>,
    /// Whether it is certain that nothing was executed.
    executed_nothing: bool,
    /// How it is counted.
    pub(super) why: Option<Refused>,
}

impl Told {
    fn new(code: Code, message: impl std::fmt::Display, why: Option<Refused>) -> Self {
        let message = format!("{PREFIX}{message}");
        Self { code, message, retry: None, op_id: None, executed_nothing: false, why }
    }

    /// The backend was not asked. Clients hand that on to their program at once.
    pub(super) fn not_executed(backend: &str, why: &str, retry: Duration) -> Self {
        let seconds = retry.as_secs().max(1);
        let message = format!("{backend} {why}; not executed; retry in {seconds} s");
        let told = Self::new(Code::Unknown, message, Some(Refused::Unavailable));
        Self { retry: Some(retry), executed_nothing: true, ..told }
    }

    /// The backend was asked, and its answer did not come: as for a client that asks it directly.
    pub(super) fn lost(backend: &str, why: &str) -> Self {
        let message = format!("{backend}: {why}");
        Self::new(Code::Unavailable, message, Some(Refused::Unavailable))
    }

    /// There is no connection. The backend is asked again before its breaker opens, and so may clients.
    pub(super) fn no_connection(backend: &str) -> Self {
        Self {
            executed_nothing: true,
            ..Self::lost(backend, "there is no connection; not executed")
        }
    }

    /// Whether it is certain that nothing was executed.
    pub(super) fn executed_nothing(&self) -> bool {
        self.executed_nothing
    }

    /// Whether it says that a write may have been executed.
    pub(super) fn is_unknown_outcome(&self) -> bool {
        self.op_id.is_some()
    }

    /// Its words.
    pub(super) fn what(&self) -> &str {
        self.message.strip_prefix(PREFIX).unwrap_or(&self.message)
    }

    /// The same, with what a program may have overlooked.
    pub(super) fn hinting(self, hint: &str) -> Self {
        Self { message: format!("{}; {hint}", self.message), ..self }
    }

    /// The same in a transaction, which an outage has cut: clients begin it again.
    pub(super) fn in_transaction(self) -> Self {
        if self.executed_nothing { Self { code: Code::Aborted, retry: None, ..self } } else { self }
    }

    /// The queue takes no more. Clients try a write again after a while.
    pub(super) fn queue_full(backend: &str, why: &str, retry: Duration) -> Self {
        let message = format!("{backend}: {why}; not executed");
        let told = Self::new(Code::ResourceExhausted, message, Some(Refused::Unavailable));
        Self { retry: Some(retry), ..told }
    }

    /// The server has refused it, when it was asked on the client's behalf.
    pub(super) fn refused(code: Code, backend: &str, why: &str) -> Self {
        Self::new(code, format!("{backend}: {why}"), None)
    }

    /// No answer in time to what changes nothing.
    pub(super) fn late(backend: &str) -> Self {
        let message = format!("{backend} did not answer in time");
        Self::new(Code::DeadlineExceeded, message, Some(Refused::Unavailable))
    }

    /// A write may have been executed. No client tries such a one again.
    pub(super) fn unknown_outcome(backend: &str, why: &str, op_id: OpId) -> Self {
        let message = format!("{backend}: {why}; the write may have been executed ({op_id})");
        let told = Self::new(Code::DeadlineExceeded, message, Some(Refused::Unavailable));
        Self { op_id: Some(op_id), ..told }
    }

    /// There is no room: nothing was sent.
    pub(super) fn full(what: &str) -> Self {
        let message = format!("{what}; not executed");
        Self::new(Code::Unavailable, message, Some(Refused::NoRoom))
    }

    /// More than may be sent.
    pub(super) fn too_large(what: impl std::fmt::Display) -> Self {
        Self::new(Code::ResourceExhausted, what, Some(Refused::Malformed))
    }

    /// A message that is larger than any that is taken.
    pub(super) fn too_long(TooLong(length): TooLong) -> Self {
        let what = format_args!("a message of {length} bytes: at most {MESSAGE_MAX} are allowed");
        Self::too_large(what)
    }

    /// What came is not a request.
    pub(super) fn malformed(what: &str) -> Self {
        Self::new(Code::InvalidArgument, what, Some(Refused::Malformed))
    }

    /// It is not known who calls.
    pub(super) fn nobody() -> Self {
        let what = "this door requires the secret of one of its callers as a bearer token";
        Self::new(Code::Unauthenticated, what, Some(Refused::Denied))
    }

    /// It is known who calls, and they may not.
    pub(super) fn denied(what: &str) -> Self {
        Self::new(Code::PermissionDenied, what, Some(Refused::Denied))
    }

    /// The daemon stops.
    pub(super) fn stopping() -> Self {
        Self::new(Code::Unavailable, "the daemon is stopping", None)
    }

    /// A fault of the door's own.
    pub(super) fn fault(what: &str) -> Self {
        Self::new(Code::Internal, what, None)
    }

    fn status(&self) -> Status {
        let Some(retry) = self.retry else { return Status::new(self.code, &self.message) };
        let delay = prost_types::Duration::try_from(retry).ok();
        let info = rpc::RetryInfo { retry_delay: delay };
        let detail = prost_types::Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
            value: info.encode_to_vec(),
        };
        let details = rpc::Status {
            code: self.code.into(),
            message: self.message.clone(),
            details: vec![detail],
        };
        Status::with_details(self.code, &self.message, details.encode_to_vec().into())
    }

    /// As the status of one write of a batch.
    pub(super) fn of_one(&self) -> rpc::Status {
        let (code, message) = (self.code.into(), self.message.clone());
        rpc::Status { code, message, details: Vec::new() }
    }

    fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(SOURCE, LOCAL);
        let op_id = self.op_id.map(|op_id| HeaderValue::try_from(op_id.to_string()));
        if let Some(Ok(op_id)) = op_id {
            headers.insert(OP_ID, op_id);
        }
    }

    /// As the trailers of an answer that has begun.
    pub(super) fn trailers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        self.mark(&mut headers);
        if self.status().add_header(&mut headers).is_err() {
            headers.insert("grpc-status", HeaderValue::from(i32::from(self.code)));
        }
        headers
    }

    /// As Google's JSON.
    pub(super) fn json(&self) -> Response<Bytes> {
        let (status, word) = match self.code {
            Code::InvalidArgument => (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT"),
            Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "UNAUTHENTICATED"),
            Code::PermissionDenied => (StatusCode::FORBIDDEN, "PERMISSION_DENIED"),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED"),
            Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED"),
            Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        };
        let error = json!({ "code": status.as_u16(), "message": self.message, "status": word });
        let mut response = Response::new(json!({ "error": error }).to_string().into());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        self.mark(headers);
        headers.insert(CONTENT_TYPE, JSON);
        if let Some(retry) = self.retry {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry.as_secs().max(1)));
        }
        response
    }

    /// The headers of an answer without a message, before its [trailers](Self::trailers).
    pub(super) fn headers() -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, GRPC), (SOURCE, LOCAL)])
    }
}

/// The status that the server gave, by the word that records have for it.
pub(super) fn code_of(word: &str) -> Code {
    match word {
        "INVALID_ARGUMENT" | "invalid_argument" => Code::InvalidArgument,
        "NOT_FOUND" => Code::NotFound,
        "ALREADY_EXISTS" => Code::AlreadyExists,
        "PERMISSION_DENIED" => Code::PermissionDenied,
        "FAILED_PRECONDITION" => Code::FailedPrecondition,
        "OUT_OF_RANGE" | "result_too_large" => Code::OutOfRange,
        "UNIMPLEMENTED" => Code::Unimplemented,
        "DATA_LOSS" => Code::DataLoss,
        "UNAUTHENTICATED" => Code::Unauthenticated,
        "too_large" => Code::ResourceExhausted,
        _ => Code::Unknown,
    }
}

/// What is said of an answer that the door has made itself.
pub(super) struct Said {
    source: Source,
    age: Duration,
    ack: Option<AckLevel>,
    op_id: Option<OpId>,
    pending_writes: u64,
    /// Whether a result in it is not known, or a time in it is a guess.
    pub(super) estimated: bool,
    /// The name of the document that was asked for and that there is not.
    pub(super) missing: Option<String>,
}

impl Said {
    pub(super) fn of(reply: &Reply) -> Self {
        Self {
            source: reply.source,
            age: reply.age,
            ack: reply.ack,
            op_id: reply.op_id,
            pending_writes: reply.pending_writes,
            estimated: false,
            missing: None,
        }
    }

    /// The same of a batch that was answered from there.
    pub(super) fn of_batch(source: Source, estimated: bool) -> Self {
        let ack = Some(match source {
            Source::Queued => AckLevel::Durable,
            _ => AckLevel::Applied,
        });
        let (age, missing) = (Duration::ZERO, None);
        Self { source, age, ack, op_id: None, pending_writes: 0, estimated, missing }
    }

    /// The headers before its messages.
    pub(super) fn headers(&self) -> HeaderMap {
        let source = HeaderValue::from_static(self.source.as_str());
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, GRPC), (SOURCE, source)]);
        if matches!(self.source, Source::Cache | Source::Stale) || !self.age.is_zero() {
            let age = u64::try_from(self.age.as_millis()).unwrap_or(u64::MAX);
            headers.insert("x-fusebox-age-ms", HeaderValue::from(age));
        }
        if let Some(ack) = self.ack {
            let ack = if ack == AckLevel::Durable { "durable" } else { "applied" };
            headers.insert("x-fusebox-ack", HeaderValue::from_static(ack));
        }
        if self.pending_writes > 0 {
            headers.insert("x-fusebox-pending-writes", HeaderValue::from(self.pending_writes));
        }
        if self.estimated {
            headers.insert("x-fusebox-estimated", HeaderValue::from_static("1"));
        }
        headers
    }

    /// The trailers behind them: all is well, but for a document that there is not.
    pub(super) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        let status = match &self.missing {
            None => Status::new(Code::Ok, ""),
            Some(name) => Status::not_found(format!("Document \"{name}\" not found.")),
        };
        if status.add_header(&mut trailers).is_err() {
            trailers.insert("grpc-status", HeaderValue::from(i32::from(status.code())));
        }
        let op_id = self.op_id.map(|op_id| HeaderValue::try_from(op_id.to_string()));
        if let Some(Ok(op_id)) = op_id {
            trailers.insert(OP_ID, op_id);
        }
        trailers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_when_to_try_again_in_words_and_in_details() {
        let told = Told::not_executed("firestore", "is open", Duration::from_secs(42));
        let headers = told.trailers();
        assert_eq!(headers["grpc-status"], "2");
        assert_eq!(headers["x-fusebox-source"], "local");
        let status = told.status();
        assert_eq!(status.message(), "fusebox: firestore is open; not executed; retry in 42 s");
        let details = rpc::Status::decode(status.details()).unwrap().details;
        let info = rpc::RetryInfo::decode(details[0].value.as_slice()).unwrap();
        assert_eq!(info.retry_delay.map(|delay| delay.seconds), Some(42));
        assert_eq!(told.json().headers()["retry-after"], "42");
    }

    #[test]
    fn a_write_of_unknown_outcome_bears_its_number_and_is_never_tried_again() {
        let op_id = OpId::from_u128(7);
        let headers = Told::unknown_outcome("firestore", "it broke", op_id).trailers();
        assert_eq!(headers["grpc-status"], "4");
        assert_eq!(headers["x-fusebox-op-id"], op_id.to_string());
    }
}
