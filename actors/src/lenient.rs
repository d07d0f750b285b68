//! A word of which a later release may have more.

use std::fmt;

/// A word that this release knows, or the text of one that it does not. Whoever reads a daemon's view may be older
/// than the daemon.
#[derive(
    Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[schemars(rename = "{T}OrOther")]
#[serde(untagged)]
pub enum Lenient<T> {
    /// One of this release's.
    Known(T),
    /// Another's.
    Other(String),
}

impl<T: Copy> Lenient<T> {
    /// The word, if this release knows it.
    pub fn known(&self) -> Option<T> {
        match self {
            Self::Known(word) => Some(*word),
            Self::Other(_) => None,
        }
    }
}

impl<T> Default for Lenient<T> {
    fn default() -> Self {
        Self::Other(String::new())
    }
}

impl<T> From<T> for Lenient<T> {
    fn from(word: T) -> Self {
        Self::Known(word)
    }
}

impl<T: fmt::Display> fmt::Display for Lenient<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(word) => word.fmt(f),
            Self::Other(text) => text.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use fusebox_state::breaker::State;

    use super::*;

    #[test]
    fn a_word_of_a_later_release_is_shown_as_it_is() {
        let read = |text: &str| serde_json::from_str::<Lenient<State>>(text).unwrap();
        assert_eq!(read("\"HALF_OPEN\""), Lenient::Known(State::HalfOpen));
        let later = read("\"AJAR\"");
        assert_eq!((later.known(), later.to_string()), (None, "AJAR".into()));
        assert_eq!(serde_json::to_string(&later).unwrap(), "\"AJAR\"");
        assert_eq!(read("\"OPEN\"").to_string(), "OPEN");
    }
}
