//! Why a Listen has no stream to the server.

use tonic::Code;

use crate::kinds::firestore::door::{exchange::Answered, telling::Told};

/// Why there is no stream to the server.
pub(super) enum Shut {
    /// It is tried again.
    Again,
    Told(Told),
    /// The server says so.
    Said(Box<Answered>),
}

/// Whether the server says no more by a code than that it is not there.
pub(super) fn is_transient(code: Code, has_headers: bool) -> bool {
    match code {
        Code::Unavailable => true,
        Code::Internal | Code::Cancelled => has_headers,
        _ => false,
    }
}
