//! Why a connector does not carry a call, and why an attempt has no result.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use fusebox_state::ErrorClass;

/// A request that the connector will not carry at all, before anything was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// A word for programs, such as `unknown_command` or `unsupported_command`.
    pub code: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
    /// Malformed (400) rather than refused (422).
    pub malformed: bool,
}

/// A code of fusebox's own that decides what is done next. Callers see its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnCode {
    /// The connector is closed; the attempt did not reach the wire.
    Closed,
    /// No answer came in time.
    Timeout,
}

impl OwnCode {
    /// The word that callers see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Timeout => "timeout",
        }
    }
}

/// Why an attempt has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct AttemptError {
    /// What may be done next.
    pub class: ErrorClass,
    /// `None`: it is proven that this attempt wrote nothing. `Some`: it may have written something, whatever
    /// the class (a statement that is refused in the middle of its rows); with what a later proof must know,
    /// empty for nothing.
    pub doubt: Option<Bytes>,
    /// The backend's own code (`WRONGTYPE`) or one of fusebox's (`connect`, `timeout`, `reset`).
    pub code: Cow<'static, str>,
    /// The backend's own words, or what happened.
    pub message: String,
    /// The error in wire form where the backend sent one, for doors that speak its protocol.
    pub reply: Option<Bytes>,
    /// Whether the code is of no known class; replay gives up after 20 of these.
    pub unclassified: bool,
    /// How long the backend asks to be left alone.
    pub retry_after: Option<Duration>,
}

impl AttemptError {
    /// Whether it ended with this code.
    pub fn is(&self, code: OwnCode) -> bool {
        self.code == code.as_str()
    }

    /// An error of fusebox's own, without words from the server. In doubt where its class is unknown or
    /// ambiguous.
    pub fn own(class: ErrorClass, code: &'static str, message: impl Into<String>) -> Self {
        let in_doubt = matches!(class, ErrorClass::Unknown | ErrorClass::Ambiguous);
        Self {
            class,
            doubt: in_doubt.then(Bytes::new),
            code: code.into(),
            message: message.into(),
            reply: None,
            unclassified: false,
            retry_after: None,
        }
    }
}
