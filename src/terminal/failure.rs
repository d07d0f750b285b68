//! Why a command did not do what it was asked, and the exit code that says so.

use std::{fmt, process::ExitCode};

use serde_json::Value;

use crate::{agreed::NO_SUCH_BACKEND, config::ConfigErrors};

/// The operation failed.
const FAILED: u8 = 1;
/// Usage or configuration.
const USAGE: u8 = 2;
/// No daemon at the socket.
const NO_DAEMON: u8 = 3;
/// Backend unavailable and no fallback.
const UNAVAILABLE: u8 = 4;

/// A problem document, as far as it is shown to people.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Problem {
    detail: Option<String>,
    code: Option<String>,
    outcome_unknown: bool,
    op_id: Option<String>,
}

/// What a command ends with.
pub(crate) type Done = Result<ExitCode, Failure>;

/// A failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    message: String,
}

impl Failure {
    /// The operation failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into() }
    }

    /// It was asked for wrongly.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }

    /// Nobody listens at the socket.
    pub(crate) fn no_daemon(message: impl Into<String>) -> Self {
        Self { code: NO_DAEMON, message: message.into() }
    }

    /// What the daemon's problem means. A 503 of a call is a backend without fallback; one of an order
    /// is an order that failed.
    pub(crate) fn of_problem(status: u16, problem: &Value, call: bool) -> Self {
        let told: Problem = serde_json::from_value(problem.clone()).unwrap_or_default();
        let mut message =
            told.detail.unwrap_or_else(|| "the daemon gives no further detail".to_owned());
        if let Some(code) = told.code.as_ref().filter(|code| call && !message.contains(*code)) {
            message = format!("{code}: {message}");
        }
        if told.outcome_unknown {
            message.push_str("; it may have been applied");
        }
        if let Some(op_id) = told.op_id {
            message.extend([format!(" (op_id {op_id})")]);
        }
        let code = match status {
            503 if call => UNAVAILABLE,
            400 => USAGE,
            404 if told.code.as_deref() == Some(NO_SUCH_BACKEND) => USAGE,
            _ => FAILED,
        };
        Self { code, message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self::usage(errors.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exit_codes_follow_the_status() {
        let problem = json!({ "detail": "the breaker is open", "code": "breaker_open" });
        for (status, call, code) in
            [(503, true, 4), (503, false, 1), (504, true, 1), (400, true, 2), (404, false, 1)]
        {
            assert_eq!(Failure::of_problem(status, &problem, call).code, code, "{status} {call}");
        }
        let unknown = json!({ "detail": "no such", "code": "no_such_backend" });
        assert_eq!(Failure::of_problem(404, &unknown, false).code, 2);
    }

    #[test]
    fn a_message_tells_what_may_have_happened() {
        let problem =
            json!({ "detail": "late", "code": "timeout", "outcome_unknown": true, "op_id": "01J" });
        assert_eq!(
            Failure::of_problem(504, &problem, true).to_string(),
            "timeout: late; it may have been applied (op_id 01J)"
        );
        for status in [400, 409, 413, 422, 503, 507] {
            let problem = json!({ "detail": "refused", "code": "27", "outcome_unknown": true });
            let message = Failure::of_problem(status, &problem, true).to_string();
            assert_eq!(message, "27: refused; it may have been applied", "{status}");
        }
    }
}
