//! Why a connector does not carry a call, and why an attempt has no result.

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use fusebox_state::{ErrorClass, Words};

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
    /// Something old may still land in its lanes; the attempt did not reach the wire.
    Fence,
}

impl OwnCode {
    /// The word that callers see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Fence => "fence",
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
    /// The backend's own code (`WRONGTYPE`) or one of fusebox's (`connect`, `timeout`, `reset`). Borrowed where
    /// fusebox knows it; an owned one came from the server, as anything may ([`AttemptError::known_code`]).
    pub code: Cow<'static, str>,
    /// What happened, and the backend's own words.
    pub message: Words,
    /// The error in wire form where the backend sent one, for doors that speak its protocol.
    pub reply: Option<Bytes>,
    /// Whether the code is of no known class; replay gives up after 20 of these.
    pub unclassified: bool,
    /// How long the backend asks to be left alone.
    pub retry_after: Option<Duration>,
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
        self.code == code.as_str()
    }

    /// Its code where that cannot be a caller's data: one that fusebox knows, or a number.
    pub fn known_code(&self) -> Cow<'static, str> {
        known_code(self.code.clone())
    }

    /// Code and words, for everybody and whole.
    pub fn words(&self) -> Words {
        let code = self.known_code();
        let said = format!("{code}: {}", self.message.said());
        if code == self.code && self.message.whole() == self.message.said() {
            return Words::ours(said);
        }
        Words::quoting(said, format!("{}: {}", self.code, self.message.whole()))
    }

    /// An error of fusebox's own, without words from the server. In doubt where its class is unknown or
    /// ambiguous.
    pub fn own(class: ErrorClass, code: &'static str, message: impl Into<Words>) -> Self {
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

/// The code where it cannot be a caller's data: one that fusebox knows, or a number.
pub(crate) fn known_code(code: Cow<'static, str>) -> Cow<'static, str> {
    let number = |code: &str| {
        let digits = code.strip_prefix("http_").unwrap_or(code);
        (1..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    match code {
        Cow::Borrowed(known) => Cow::Borrowed(known),
        Cow::Owned(code) if number(&code) => Cow::Owned(code),
        Cow::Owned(_) => Cow::Borrowed("unknown_code"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_words_nor_code_of_a_server_are_shown_to_everybody() {
        let of = |code: Cow<'static, str>| AttemptError {
            message: Words::quoting(ErrorClass::Rejected.said(), "card=4111 is taken"),
            code,
            ..AttemptError::own(ErrorClass::Rejected, "x", "y")
        };
        for (code, known) in [
            (Cow::Borrowed("WRONGTYPE"), "WRONGTYPE"),
            (Cow::Owned("241".to_owned()), "241"),
            (Cow::Owned("http_503".to_owned()), "http_503"),
            (Cow::Owned("4111111111111111".to_owned()), "unknown_code"),
            (Cow::Owned("SMITH".to_owned()), "unknown_code"),
        ] {
            let error = of(code.clone());
            assert_eq!(error.to_string(), format!("{known}: the backend refuses it"));
            assert!(!format!("{error:?}").contains("card="), "{error:?}");
            assert_eq!(error.words().whole(), format!("{code}: card=4111 is taken"));
        }
        let own = AttemptError::own(ErrorClass::NotExecuted, "connect", "nobody listens");
        assert_eq!(
            (own.to_string(), own.words().whole()),
            ("connect: nobody listens".into(), "connect: nobody listens")
        );
    }
}
