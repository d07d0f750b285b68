//! What went wrong with an attempt, in one word.
//!
//! Callers, metrics and events get the word. What is done next is decided by the variant and by the
//! [class](fusebox_state::ErrorClass), never by the word. The words are part of the interface: one that was published
//! does not change.

use std::{borrow::Cow, fmt};

/// A code of fusebox's own with which an attempt of any kind may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnCode {
    /// It is unknown whether an earlier attempt was applied.
    Ambiguous,
    /// The calls before it in its batch used up the time.
    Batch,
    /// The caller's body did not arrive whole.
    BodyBrokenOff,
    /// A fault on purpose.
    Chaos,
    /// The connector is closed; the attempt did not reach the wire.
    Closed,
    /// There is no connection.
    Connect,
    /// There are no credentials, or none that can be used.
    Credentials,
    /// An earlier write could still land.
    Fence,
    /// It cannot be sent with others as one.
    Group,
    /// The head of the answer is larger than may be held.
    HeadTooLarge,
    /// The call does not decode.
    MalformedCall,
    /// Its name belongs to another call that was applied.
    OpIdConflict,
    /// The connection ended before the answer came.
    Reset,
    /// The answer is larger than may be held.
    ResultTooLarge,
    /// Fusebox is stopping.
    Stopping,
    /// The store does not give the call.
    Store,
    /// No answer came in time.
    Timeout,
    /// TLS was refused, by either side.
    Tls,
    /// The message is larger than the backend takes.
    TooLarge,
    /// Its caller had left, and no answer came.
    Unanswered,
    /// The stored call does not decode.
    Undecodable,
}

impl OwnCode {
    /// The word that callers see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ambiguous => "ambiguous",
            Self::Batch => "batch",
            Self::BodyBrokenOff => "body_broken_off",
            Self::Chaos => "chaos",
            Self::Closed => "closed",
            Self::Connect => "connect",
            Self::Credentials => "credentials",
            Self::Fence => "fence",
            Self::Group => "group",
            Self::HeadTooLarge => "head_too_large",
            Self::MalformedCall => "malformed_call",
            Self::OpIdConflict => "op_id_conflict",
            Self::Reset => "reset",
            Self::ResultTooLarge => "result_too_large",
            Self::Stopping => "stopping",
            Self::Store => "store",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::TooLarge => "too_large",
            Self::Unanswered => "unanswered",
            Self::Undecodable => "undecodable",
        }
    }
}

/// Why an attempt has no result, in one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// Fusebox's own, of any kind of backend.
    Own(OwnCode),
    /// A word that one kind of backend knows: its servers' (`WRONGTYPE`), or fusebox's own for what only that kind
    /// has (`marker_expired`). Only that kind decides by it, and has an enum for that.
    OfKind(&'static str),
    /// A word or number that a server sent: it may be anything, a caller's data too.
    Server(Box<str>),
}

impl ErrorCode {
    /// The word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Own(code) => code.as_str(),
            Self::OfKind(word) => word,
            Self::Server(word) => word,
        }
    }
}

impl From<OwnCode> for ErrorCode {
    fn from(code: OwnCode) -> Self {
        Self::Own(code)
    }
}

/// The word, owned if it came from the server.
impl From<ErrorCode> for Cow<'static, str> {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Own(code) => Cow::Borrowed(code.as_str()),
            ErrorCode::OfKind(word) => Cow::Borrowed(word),
            ErrorCode::Server(word) => Cow::Owned(word.into_string()),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word if it cannot be a caller's data: one that fusebox knows, or a number.
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
