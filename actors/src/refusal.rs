//! Why a connector does not carry a call, and why an attempt has no result.

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use fusebox_state::{ErrorClass, Words, dependencies::Fault, words::with_code};

use crate::error_code::{ErrorCode, OwnCode, known_code};

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

/// Why an attempt is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barred {
    /// The breaker is open.
    Open,
    /// The backend is offline.
    Offline,
    /// The bulkhead is full.
    Full,
}

impl Barred {
    /// The word that callers see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "breaker_open",
            Self::Offline => "offline",
            Self::Full => "bulkhead_full",
        }
    }
}

/// Why an attempt has no result.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.words())]
pub struct AttemptError {
    /// What may be done next.
    pub class: ErrorClass,
    /// `None`: it is proven that this attempt wrote nothing. `Some`: it may have written something, whatever
    /// the class (a statement that is refused in the middle of its rows); with what a later proof must know,
    /// empty for nothing.
    pub doubt: Option<Bytes>,
    /// What went wrong, in a word: the backend's own code (`WRONGTYPE`) or one of fusebox's.
    pub code: ErrorCode,
    /// What happened, and the backend's own words.
    pub message: Words,
    /// The error in wire form if the backend sent one, for doors that speak its protocol.
    pub reply: Option<Bytes>,
    /// Whether the code is of no known class; replay gives up after 20 of these.
    pub unclassified: bool,
    /// How long the backend asks to be left alone.
    pub retry_after: Option<Duration>,
    /// What it says about the origin of the fault.
    pub fault: Fault,
}

/// Shows what everybody may see: neither the words nor the reply of the server.
impl fmt::Debug for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttemptError")
            .field("class", &self.class)
            .field("in_doubt", &self.doubt.is_some())
            .field("words", &self.words())
            .finish_non_exhaustive()
    }
}

impl AttemptError {
    /// Whether it ended with this code.
    pub fn is(&self, code: OwnCode) -> bool {
        self.code == ErrorCode::Own(code)
    }

    /// Whether the backend has not answered: neither with an error nor with more than may be held.
    pub(crate) fn is_unanswered(&self) -> bool {
        let is_too_large = self.is(OwnCode::HeadTooLarge) || self.is(OwnCode::ResultTooLarge);
        self.reply.is_none() && matches!(self.code, ErrorCode::Own(_)) && !is_too_large
    }

    /// Its code if that cannot be a caller's data: one that fusebox knows, or a number.
    pub fn known_code(&self) -> Cow<'static, str> {
        known_code(self.code.clone().into())
    }

    /// Code and words, for everybody and whole.
    pub fn words(&self) -> Words {
        let code = self.known_code();
        let said = format!("{code}: {}", self.message.said());
        if *code == *self.code.as_str() && self.message.whole() == self.message.said() {
            return Words::ours(said);
        }
        Words::quoting(said, with_code(self.code.as_str(), self.message.whole()))
    }

    /// An error of fusebox's own, without words from the server. In doubt if its class is unknown or
    /// ambiguous. One that the backend has answered with blames the backend, unless it [says more](Self::blaming).
    pub fn own(class: ErrorClass, code: impl Into<ErrorCode>, message: impl Into<Words>) -> Self {
        let in_doubt = matches!(class, ErrorClass::Unknown | ErrorClass::Ambiguous);
        let fault = match class {
            ErrorClass::Rejected
            | ErrorClass::Conflict
            | ErrorClass::BlockedServer
            | ErrorClass::BlockedObject => Fault::Backend,
            ErrorClass::NotExecuted | ErrorClass::Unknown | ErrorClass::Ambiguous => Fault::Unclear,
        };
        Self {
            class,
            doubt: in_doubt.then(Bytes::new),
            code: code.into(),
            message: message.into(),
            reply: None,
            unclassified: false,
            retry_after: None,
            fault,
        }
    }

    /// The same, with this origin of the fault.
    #[must_use]
    pub fn blaming(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_words_nor_code_of_a_server_are_shown_to_everybody() {
        let of = |code: ErrorCode| AttemptError {
            message: Words::quoting(ErrorClass::Rejected.said(), "card=4111 is taken"),
            ..AttemptError::own(ErrorClass::Rejected, code, "y")
        };
        for (code, known) in [
            (ErrorCode::OfKind("WRONGTYPE"), "WRONGTYPE"),
            (ErrorCode::Server("241".into()), "241"),
            (ErrorCode::Server("http_503".into()), "http_503"),
            (ErrorCode::Server("4111111111111111".into()), "unknown_code"),
            (ErrorCode::Server("SMITH".into()), "unknown_code"),
        ] {
            let error = of(code.clone());
            assert_eq!(error.to_string(), format!("{known}: the backend refuses it"));
            assert!(!format!("{error:?}").contains("card="), "{error:?}");
            assert_eq!(error.words().whole(), format!("{code}: card=4111 is taken"));
        }
        let redis = AttemptError {
            message: Words::quoting(ErrorClass::BlockedServer.said(), "NOREPLICAS Not enough"),
            ..of(ErrorCode::OfKind("NOREPLICAS"))
        };
        assert_eq!(redis.words().whole(), "NOREPLICAS Not enough", "its code is said once");
        let own = AttemptError::own(ErrorClass::NotExecuted, OwnCode::Connect, "nobody listens");
        assert_eq!(
            (own.to_string(), own.words().whole()),
            ("connect: nobody listens".into(), "connect: nobody listens")
        );
    }
}
