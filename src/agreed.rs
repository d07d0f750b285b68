//! What server, command line and traces agree on.

use fusebox_actors::CallErrorKind;

/// The code of a problem: no backend has that name.
pub(crate) const NO_SUCH_BACKEND: &str = "no_such_backend";

/// The HTTP status of a call that was not answered.
pub(crate) const fn status_of(kind: CallErrorKind) -> u16 {
    match kind {
        CallErrorKind::Malformed => 400,
        CallErrorKind::Forbidden => 403,
        CallErrorKind::Conflict => 409,
        CallErrorKind::Refused => 422,
        CallErrorKind::Unavailable => 503,
        CallErrorKind::TimedOut => 504,
        CallErrorKind::Full => 507,
    }
}

/// A trace's id as it is shown: 32 hexadecimal digits.
pub(crate) fn trace_id(id: u128) -> String {
    format!("{id:032x}")
}
