//! What fusebox itself says, in the server's form: a status, a number and a line of text.
//!
//! | what happened | status | number |
//! | --- | --- | --- |
//! | not executed: the breaker is open, say | 503 | 210 `NETWORK_ERROR` |
//! | the bulkhead or the door is full | 503 | 202 `TOO_MANY_SIMULTANEOUS_QUERIES` |
//! | it may have been executed, or no answer came in time | 500 | 209 `SOCKET_TIMEOUT` |
//! | nobody is known by these credentials | 403 or 401 | 516 `AUTHENTICATION_FAILED` |
//! | the caller may not do this | 403 | 497 `ACCESS_DENIED` |
//! | the request is not usable | 400 or 408 | 36 `BAD_ARGUMENTS` |
//! | an insert that no server takes was about to be queued | the server's | [the server's](storable) |
//!
//! 504 is never said: proxies send a POST again on it.

use std::time::Duration;

use bytes::Bytes;
use fusebox_actors::{CallError, CallErrorKind};
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};

use super::{body::Fault, counters::Refused, credentials::Stranger};
use crate::kinds::clickhouse::protocol::storable;

/// An error of the server's, as fusebox tells it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) status: StatusCode,
    number: u16,
    /// The class of exception, and the word at the end.
    names: (&'static str, &'static str),
    text: String,
    pub(super) retry_after: Option<Duration>,
    /// The client is asked for credentials.
    asks: bool,
    /// What is counted.
    pub(super) counts: Refused,
}

const PLAIN: &str = "DB::Exception";
const NETWORK: &str = "DB::NetException";

impl Told {
    fn new(status: StatusCode, number: u16, word: &'static str, text: impl Into<String>) -> Self {
        let counts = Refused::Malformed;
        let (names, text) = ((PLAIN, word), text.into());
        Self { status, number, names, text, retry_after: None, asks: false, counts }
    }

    /// A call of `backend` that has no answer.
    pub(super) fn of_call(backend: &str, error: &CallError) -> Self {
        let detail = error.detail.whole();
        let known = |what: &str| format!("{backend}: {detail}; {what}");
        let named = match error.op_id {
            Some(op_id) if error.outcome_unknown => format!(" (op_id {op_id})"),
            _ => String::new(),
        };
        let told = |number, word, text, counts| Self {
            names: (if number == 202 { PLAIN } else { NETWORK }, word),
            counts,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, number, word, text)
        };
        let told = match error.kind {
            CallErrorKind::Unavailable if error.code == "bulkhead_full" => told(
                202,
                "TOO_MANY_SIMULTANEOUS_QUERIES",
                known("not executed"),
                Refused::Unavailable,
            ),
            CallErrorKind::Unavailable | CallErrorKind::Full if !error.outcome_unknown => {
                told(210, "NETWORK_ERROR", known("not executed"), Refused::Unavailable)
            }
            CallErrorKind::Refused if !error.outcome_unknown => Self::as_server(backend, error)
                .unwrap_or_else(|| Self::malformed(format!("{backend}: {detail}"))),
            CallErrorKind::Unavailable
            | CallErrorKind::Full
            | CallErrorKind::TimedOut
            | CallErrorKind::Refused => {
                let what = if error.outcome_unknown {
                    format!("it may have been executed{named}")
                } else {
                    "no answer in time".to_owned()
                };
                let told = told(209, "SOCKET_TIMEOUT", known(&what), Refused::Unknown);
                Self { status: StatusCode::INTERNAL_SERVER_ERROR, ..told }
            }
            CallErrorKind::Forbidden => Self::forbidden(format!("{backend}: {detail}")),
            CallErrorKind::Malformed | CallErrorKind::Conflict => {
                Self::malformed(format!("{backend}: {detail}"))
            }
        };
        Self { retry_after: error.retry_after, ..told }
    }

    /// What no server takes, as the server says it.
    fn as_server(backend: &str, error: &CallError) -> Option<Self> {
        let (number, word, status) = storable::named(&error.code)?;
        let text = format!("{backend}: {}; not executed", error.detail.whole());
        Some(Self::new(StatusCode::from_u16(status).ok()?, number, word, text))
    }

    /// The caller may not do this.
    pub(super) fn forbidden(text: impl Into<String>) -> Self {
        let told = Self::new(StatusCode::FORBIDDEN, 497, "ACCESS_DENIED", text);
        Self { counts: Refused::Forbidden, ..told }
    }

    /// The request is not usable.
    pub(super) fn malformed(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, 36, "BAD_ARGUMENTS", text)
    }

    /// Nobody is known by what `user` shows.
    pub(super) fn stranger(stranger: Stranger, user: &str) -> Self {
        let (status, asks) = match stranger {
            Stranger::Absent => (StatusCode::UNAUTHORIZED, true),
            Stranger::Wrong => (StatusCode::FORBIDDEN, false),
        };
        let user = shortened(user);
        let text = format!(
            "{user}: Authentication failed: password is incorrect, or there is no user with such name"
        );
        let told = Self::new(status, 516, "AUTHENTICATION_FAILED", text);
        Self { asks, counts: Refused::Forbidden, ..told }
    }

    /// The body cannot be read.
    pub(super) fn fault(fault: &Fault) -> Self {
        match fault {
            Fault::Full(full) => {
                let text = format!("{}; not executed", full.0);
                let (status, word) =
                    (StatusCode::SERVICE_UNAVAILABLE, "TOO_MANY_SIMULTANEOUS_QUERIES");
                let retry_after = Some(Duration::from_secs(1));
                let told = Self::new(status, 202, word, text);
                Self { retry_after, counts: Refused::Full, ..told }
            }
            Fault::Slow => {
                let told =
                    Self::malformed("no data of the body arrived for 30 seconds; not executed");
                Self { status: StatusCode::REQUEST_TIMEOUT, ..told }
            }
            Fault::Broken => Self::malformed("the body ended too early; not executed"),
        }
    }

    /// A fault in fusebox itself.
    pub(super) fn internal() -> Self {
        let text = "an internal error of fusebox; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, 1_001, "STD_EXCEPTION", text)
    }

    /// The answer that says it; `version` is the server's, if it is known.
    pub(super) fn response(&self, version: Option<&str>) -> Response<Bytes> {
        let (class, word) = self.names;
        let version = version.map(|version| format!(" (version {version})")).unwrap_or_default();
        let text =
            format!("Code: {}. {class}: fusebox: {}. ({word}){version}\n", self.number, self.text);
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
        headers.insert("x-clickhouse-exception-code", self.number.into());
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, seconds.max(1).into());
        }
        if self.asks {
            let realm = "Basic realm=\"ClickHouse server HTTP API\"";
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(realm));
        }
        response
    }
}

/// A name as it is said again: it is a caller's.
fn shortened(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(told: &Told) -> (u16, String) {
        let response = told.response(Some("26.7.2.1"));
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=UTF-8");
        let text = String::from_utf8(response.body().to_vec()).unwrap();
        let number = response.headers()["x-clickhouse-exception-code"].to_str().unwrap();
        assert!(text.starts_with(&format!("Code: {number}. ")), "{text}");
        (response.status().as_u16(), text)
    }

    fn error(kind: CallErrorKind, code: &'static str, outcome_unknown: bool) -> CallError {
        CallError {
            kind,
            code: code.into(),
            detail: "the breaker is open".into(),
            outcome_unknown,
            op_id: Some(fusebox_state::OpId::from_u128(7)),
            retry_after: Some(Duration::from_millis(1_500)),
            attempts: 0,
            reply: None,
            last_answer: None,
        }
    }

    #[test]
    fn what_has_no_answer_is_told_in_the_servers_form() {
        use CallErrorKind::{Forbidden, Refused, TimedOut, Unavailable};
        let told = |kind, code, unknown| text(&Told::of_call("ch", &error(kind, code, unknown)));
        assert_eq!(
            told(Unavailable, "breaker_open", false),
            (
                503,
                "Code: 210. DB::NetException: fusebox: ch: the breaker is open; not executed. \
                 (NETWORK_ERROR) (version 26.7.2.1)\n"
                    .into()
            )
        );
        assert!(
            told(Unavailable, "bulkhead_full", false).1.starts_with("Code: 202. DB::Exception")
        );
        for (kind, code) in [(TimedOut, "timeout"), (Refused, "dead_letter")] {
            let (status, text) = told(kind, code, true);
            assert_eq!(status, 500);
            assert!(text.starts_with("Code: 209. DB::NetException: fusebox: ch: "), "{text}");
            assert!(text.contains("it may have been executed (op_id 0"), "{text}");
        }
        let (status, text) = told(TimedOut, "deadline", false);
        assert!(status == 500 && text.contains("no answer in time. (SOCKET_TIMEOUT)"), "{text}");
        assert_eq!(told(Forbidden, "admin_only", false).0, 403);
        assert_eq!(told(Refused, "op_id_unsupported", false).0, 400);
        let response = Told::of_call("ch", &error(Unavailable, "x", false)).response(None);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert!(!String::from_utf8_lossy(response.body()).contains("version"));
    }

    #[test]
    fn a_stranger_is_told_what_the_server_tells_it() {
        let wrong = Told::stranger(Stranger::Wrong, "a\nda");
        let (status, said) = text(&wrong);
        assert_eq!(status, 403);
        assert!(said.starts_with("Code: 516. DB::Exception: fusebox: ada: Authentication failed"));
        let absent = Told::stranger(Stranger::Absent, "default").response(None);
        assert_eq!(absent.status(), 401);
        assert!(absent.headers().contains_key(WWW_AUTHENTICATE));
    }
}
