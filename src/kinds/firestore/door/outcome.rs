//! What the end of a call says of the backend: its status, read from headers or trailers.

use std::time::Duration;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use fusebox_actors::connector::OwnCode;
use fusebox_state::{ErrorClass, Verdict};
use hyper::{HeaderMap, StatusCode};
use tonic::{Code, Status};

use crate::{kinds::firestore::protocol::outcome::Failed, net::percent};

/// Servers leave the padding out, or do not.
const DETAILS: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The status in these headers. `None` if they have none.
pub(super) fn status_of(headers: &HeaderMap) -> Option<Status> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    let message = headers.get("grpc-message").map_or(&b""[..], |value| value.as_bytes());
    let message = String::from_utf8_lossy(message);
    let message = percent::decoded(&message).unwrap_or_else(|| message.into_owned());
    let details = headers.get("grpc-status-details-bin");
    let details = details.and_then(|value| DETAILS.decode(value.as_bytes()).ok());
    Some(Status::with_details(code, message, details.unwrap_or_default().into()))
}

/// What an answer of HTTP says: `Ok` for what is an answer of the call's own.
pub(super) fn of_http(status: StatusCode) -> Status {
    let code = match status {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::CONFLICT => Code::AlreadyExists,
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::INTERNAL_SERVER_ERROR => Code::Internal,
        StatusCode::NOT_IMPLEMENTED => Code::Unimplemented,
        status if status.is_server_error() => Code::Unavailable,
        status if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Ok,
    };
    Status::new(code, format!("HTTP status code {}", status.as_u16()))
}

/// A write of unknown outcome.
pub(super) fn unknown(verdict: Verdict, why: &str) -> Failed {
    Failed::own(verdict, ErrorClass::Unknown, OwnCode::Closed, why.to_owned())
}

/// No answer came within the backend's `timeout`; `sent` is whether anything may have arrived.
pub(super) fn given_up(sent: bool, timeout: Duration) -> Failed {
    let (class, code) = if sent {
        (ErrorClass::Unknown, OwnCode::Timeout)
    } else {
        (ErrorClass::NotExecuted, OwnCode::Connect)
    };
    Failed::own(Verdict::Failure, class, code, format!("no answer within {timeout:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_whatever_its_details_are() {
        let of = |details: &'static str| {
            let headers = [
                ("grpc-status", "5"),
                ("grpc-message", "no%20such"),
                ("grpc-status-details-bin", details),
            ];
            let headers = headers.map(|(name, value)| {
                (name.parse().unwrap(), hyper::header::HeaderValue::from_static(value))
            });
            let status = status_of(&HeaderMap::from_iter(headers)).unwrap();
            (status.code(), status.message().to_owned(), status.details().to_vec())
        };
        for (details, expected) in [("YQ", &b"a"[..]), ("YQ==", b"a"), ("!", b"")] {
            let said = (Code::NotFound, "no such".to_owned(), expected.to_vec());
            assert_eq!(of(details), said, "{details}");
        }
        assert!(status_of(&HeaderMap::new()).is_none());
    }
}
