//! Errors as the doors tell them: `application/problem+json` (RFC 9457).

use std::{borrow::Cow, fmt, time::Duration};

use axum::{
    extract::FromRequestParts,
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use fusebox_actors::{AdminError, CallError, CallErrorKind, connector::Refused};
use fusebox_state::OpId;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::{
    agreed::status_of,
    ingress::refusal::{Denied, Full},
};

/// An error with all that a caller may want to know of it. Boxed, so that what is right stays small.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Problem(Box<Told>);

/// An error (RFC 9457).
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(crate) struct Told {
    /// The code as a URN.
    #[serde(rename = "type")]
    kind: String,
    /// The name of the status.
    title: &'static str,
    /// The status.
    status: u16,
    /// What happened, naming the value, and what would be right.
    detail: String,
    /// A stable word for programs.
    code: Cow<'static, str>,
    /// The backend that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    /// When to try again, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// Whether the call may have been applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome_unknown: Option<bool>,
    /// The name of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    op_id: Option<OpId>,
    /// Attempts that were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    /// The trace of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

impl Problem {
    /// A problem of that status.
    pub(crate) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
    ) -> Self {
        let code = code.into();
        Self(Box::new(Told {
            kind: format!("urn:fusebox:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            backend: None,
            retry_after_ms: None,
            outcome_unknown: None,
            op_id: None,
            attempts: None,
            trace_id: None,
        }))
    }

    /// 400: this request is malformed.
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    /// 404.
    pub(crate) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 403.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 500: a fault in fusebox.
    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// 413: more than `limit` bytes.
    pub(crate) fn too_large(limit: u64) -> Self {
        let detail = format!("the body must be at most {}", crate::config::size(limit));
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }

    /// The same, of that backend.
    pub(crate) fn of(mut self, backend: &str) -> Self {
        self.0.backend = Some(backend.to_owned());
        self
    }

    /// The same, with the trace that it belongs to.
    pub(crate) fn traced(mut self, trace_id: String) -> Self {
        self.0.trace_id = Some(trace_id);
        self
    }

    /// The same, saying when to try again.
    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after_ms = Some(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// The same about a call that ended with `other`: what is known of that call is kept.
    pub(crate) fn in_place_of(mut self, other: Self) -> Self {
        let other = *other.0;
        self.0.backend = other.backend;
        self.0.outcome_unknown = other.outcome_unknown;
        self.0.op_id = other.op_id;
        self.0.attempts = other.attempts;
        self.0.trace_id = other.trace_id;
        self
    }

    /// What happened.
    pub(crate) fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The status code.
    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<Full> for Problem {
    fn from(Full(what): Full) -> Self {
        let detail = format!("a limit is reached: {what}");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "door_full", detail)
            .retry_after(Duration::from_secs(1))
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unknown(detail) => Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail),
            Denied::Forbidden(detail) => Self::forbidden(detail),
        }
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        let status = StatusCode::from_u16(status_of(error.kind));
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut problem = Self::new(status, error.code, error.detail.whole());
        // If nothing was sent, saying so is worth as much as saying that it is unknown.
        let may_have_run = matches!(error.kind, CallErrorKind::TimedOut | CallErrorKind::Full);
        problem.0.outcome_unknown =
            (may_have_run || error.outcome_unknown).then_some(error.outcome_unknown);
        problem.0.op_id = error.op_id;
        problem.0.attempts = Some(error.attempts);
        match error.retry_after {
            Some(after) => problem.retry_after(after),
            None => problem,
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let status = if refused.malformed {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::UNPROCESSABLE_ENTITY
        };
        Self::new(status, refused.code, refused.message)
    }
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Invalid(detail) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
            }
            AdminError::NotFound(detail) => Self::not_found("not_found", detail),
            AdminError::Conflict(detail) => Self::new(StatusCode::CONFLICT, "conflict", detail),
            AdminError::Failed(detail) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "order_failed", detail)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if let Some(millis) = self.0.retry_after_ms {
            // The header counts whole seconds; less than one would invite to come at once.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1_000).max(1)));
        }
        response
    }
}

/// An extractor whose refusal is a problem like any other.
pub(crate) struct Checked<E>(pub(crate) E);

impl<S: Send + Sync, E: FromRequestParts<S>> FromRequestParts<S> for Checked<E>
where
    E::Rejection: fmt::Display,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let extracted = E::from_request_parts(parts, state).await;
        extracted.map(Self).map_err(|refusal| {
            let told = refusal.to_string();
            Problem::malformed(
                told.strip_prefix("Failed to deserialize query string: ").unwrap_or(&told),
            )
        })
    }
}

/// A number of things in a query, such as `limit=100`: at most `MOST`, and as many if more are asked for.
#[derive(Clone, Copy)]
pub(crate) struct Count<const MOST: usize>(usize);

impl<const MOST: usize> Count<MOST> {
    /// How many.
    pub(crate) const fn get(self) -> usize {
        self.0
    }
}

impl<const MOST: usize> JsonSchema for Count<MOST> {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0 })
    }
}

impl<'de, const MOST: usize> Deserialize<'de> for Count<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse::<u64>() {
            Ok(count) => Ok(Self(usize::try_from(count).unwrap_or(MOST).min(MOST))),
            Err(_) => Err(D::Error::custom(format!(
                "must be a whole number between 0 and {MOST}, got {text:?}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: CallErrorKind) -> CallError {
        CallError {
            kind,
            code: "word".into(),
            detail: "what".into(),
            outcome_unknown: false,
            op_id: None,
            retry_after: None,
            attempts: 1,
            reply: None,
            last_answer: None,
        }
    }

    #[test]
    fn each_family_of_errors_has_its_status() {
        use CallErrorKind::{Conflict, Forbidden, Full, Malformed, Refused, TimedOut, Unavailable};
        for (kind, status) in [
            (Malformed, 400),
            (Forbidden, 403),
            (Conflict, 409),
            (Refused, 422),
            (Unavailable, 503),
            (TimedOut, 504),
            (Full, 507),
        ] {
            assert_eq!(Problem::from(error(kind)).0.status, status, "{kind:?}");
        }
    }

    #[test]
    fn that_a_call_may_have_been_applied_is_told_with_every_status() {
        use CallErrorKind::{Conflict, Forbidden, Full, Malformed, Refused, TimedOut, Unavailable};
        for kind in [Malformed, Forbidden, Conflict, Refused, Unavailable, TimedOut, Full] {
            let problem = Problem::from(CallError { outcome_unknown: true, ..error(kind) });
            assert_eq!(problem.0.outcome_unknown, Some(true), "{kind:?}");
            let instead = Problem::too_large(1).in_place_of(problem);
            assert_eq!((instead.0.status, instead.0.outcome_unknown), (413, Some(true)));
        }
        assert_eq!(Problem::from(error(Refused)).0.outcome_unknown, None, "it says nothing else");
        assert_eq!(Problem::from(error(TimedOut)).0.outcome_unknown, Some(false));
    }

    #[test]
    fn an_error_becomes_a_problem_with_all_its_fields() {
        let op_id = OpId::from_u128(7);
        let problem = Problem::from(CallError {
            outcome_unknown: true,
            op_id: Some(op_id),
            retry_after: Some(Duration::from_millis(1_200)),
            ..error(CallErrorKind::TimedOut)
        })
        .of("redis");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "type": "urn:fusebox:problem:word", "title": "Gateway Timeout", "status": 504,
                "detail": "what", "code": "word", "backend": "redis", "retry_after_ms": 1200,
                "outcome_unknown": true, "op_id": op_id.to_string(), "attempts": 1,
            })
        );
        let response = problem.into_response();
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }

    #[tokio::test]
    async fn what_cannot_be_extracted_is_a_problem_too() {
        use axum::extract::Query;
        type Wanted = std::collections::HashMap<String, Count<1_000>>;
        let asked = async |query: &str| {
            let request = axum::http::Request::get(format!("/?{query}")).body(()).unwrap();
            let (mut parts, ()) = request.into_parts();
            Checked::<Query<Wanted>>::from_request_parts(&mut parts, &()).await
        };
        for bad in ["many", "-1", "1.5", "", "99999999999999999999"] {
            let Err(problem) = asked(&format!("limit={bad}")).await else { panic!("{bad}") };
            assert_eq!(problem.status(), 400);
            let told = format!("limit: must be a whole number between 0 and 1000, got {bad:?}");
            assert_eq!(problem.0.detail, told);
        }
        for (query, count) in [("limit=7", 7), ("limit=5000", 1_000)] {
            let Ok(Checked(Query(wanted))) = asked(query).await else { panic!("{query}") };
            assert_eq!(wanted["limit"].get(), count);
        }
    }

    #[test]
    fn orders_that_fail_say_how() {
        let status = |error| Problem::from(error).0.status;
        assert_eq!(status(AdminError::NotFound(String::new())), 404);
        assert_eq!(status(AdminError::Conflict(String::new())), 409);
        assert_eq!(status(AdminError::Failed(String::new())), 503);
    }
}
