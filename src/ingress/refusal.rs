//! Why nobody is let in, in the words of no protocol: each door says it in its own.

/// Too much is under way; who comes again in a while may find room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full(pub(crate) &'static str);

/// The caller may not do this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Who it is has to be shown first, by a token.
    Unknown(&'static str),
    /// It is known, or is recognised as somebody else's page, and may not.
    Forbidden(String),
}
