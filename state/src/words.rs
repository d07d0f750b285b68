//! What an error says, to whom.
//!
//! A server's error may quote the data that it is about: a key, a row, another user's card number. So what an
//! error says has two forms. What is *said* is in fusebox's own words, and everybody may see it. The *whole*
//! holds the server's words, and only two may see those: an admin, and the caller whose own call it was.
//!
//! **The one rule that a maintainer might break:** both travel in this one type, and whatever shows it without
//! being asked for more ([`Display`](fmt::Display), `Debug`, `Serialize`) shows what is said. So a new listing,
//! event, span or line of the log cannot tell the rest by accident. It takes [`Words::whole`] or
//! [`Words::open`], which are called only if it is known who asks. A text of unknown origin is all the server's.

use std::{borrow::Cow, fmt};

/// Replaces words of unknown origin.
const FOREIGN: &str = "the server's words, which only admins see";
/// Between the two forms if they are kept as one text.
const BETWEEN: char = '\u{1f}';

/// What an error says: in our words for everybody, and whole for admins.
#[derive(Clone, PartialEq, Eq)]
pub struct Words {
    said: Cow<'static, str>,
    /// `None` if there is no more than what is said.
    whole: Option<Box<str>>,
    open: bool,
}

impl Words {
    /// Words of our own, which quote nobody.
    pub fn ours(said: impl Into<Cow<'static, str>>) -> Self {
        Self { said: said.into(), whole: None, open: false }
    }

    /// Our words, and those of a server.
    pub fn quoting(said: impl Into<Cow<'static, str>>, whole: impl Into<Box<str>>) -> Self {
        Self { said: said.into(), whole: Some(whole.into()), open: false }
    }

    /// A text of unknown origin: it may quote a server.
    pub fn foreign(whole: impl Into<Box<str>>) -> Self {
        Self::quoting(FOREIGN, whole)
    }

    /// What everybody may see.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// All of it: for an admin, or for the caller whose own call it was.
    pub fn whole(&self) -> &str {
        self.whole.as_deref().unwrap_or(&self.said)
    }

    /// The same within other words of our own, in both forms.
    #[must_use]
    pub fn within(&self, frame: impl Fn(&str) -> String) -> Self {
        let whole = self.whole.as_deref().map(|whole| frame(whole).into_boxed_str());
        Self { said: frame(&self.said).into(), whole, open: self.open }
    }

    /// The same without the server's words.
    #[must_use]
    pub fn closed(&self) -> Self {
        Self { whole: None, open: false, ..self.clone() }
    }

    /// Shows an admin all of it from now on.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// The same with each form cut to `letters`.
    #[must_use]
    pub fn cut(&self, letters: usize) -> Self {
        self.within(|text| text.chars().take(letters).collect())
    }

    /// Both forms as one text, to be kept in files that only the daemon's own user reads.
    pub fn to_kept(&self) -> String {
        format!("{}{BETWEEN}{}", self.said, self.whole.as_deref().unwrap_or_default())
    }

    /// What [`Words::to_kept`] made. A text of an earlier release was kept whole.
    pub fn from_kept(text: &str) -> Self {
        match text.split_once(BETWEEN) {
            Some((said, "")) => Self::ours(said.to_owned()),
            Some((said, whole)) => Self::quoting(said.to_owned(), whole),
            None => Self::foreign(text),
        }
    }
}

/// A code and a text. Some servers begin their errors with the code: it is said once then.
pub fn with_code(code: &str, text: &str) -> String {
    let begins_with_it =
        text.strip_prefix(code).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    if begins_with_it { text.to_owned() } else { format!("{code}: {text}") }
}

impl From<&Self> for Words {
    fn from(words: &Self) -> Self {
        words.clone()
    }
}

impl From<&'static str> for Words {
    fn from(said: &'static str) -> Self {
        Self::ours(said)
    }
}

impl From<String> for Words {
    fn from(said: String) -> Self {
        Self::ours(said)
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.said, f)
    }
}

impl serde::Serialize for Words {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.open { self.whole() } else { &self.said })
    }
}

/// A text that was written by anybody is foreign.
impl<'de> serde::Deserialize<'de> for Words {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_are_shown_to_nobody_who_does_not_ask_for_them() {
        let mut words = Words::quoting("the backend refuses it", "card=4111");
        let shown = |words: &Words| {
            format!("{words} {words:?} {}", serde_json::to_string(words).unwrap_or_default())
        };
        assert!(!shown(&words).contains("4111"), "{}", shown(&words));
        let framed = words.within(|text| format!("rejected: {text}"));
        assert_eq!(framed.said(), "rejected: the backend refuses it");
        assert_eq!(framed.whole(), "rejected: card=4111");
        assert!(!shown(&framed).contains("4111"));
        assert_eq!((words.cut(4).said(), words.cut(4).whole()), ("the ", "card"));
        words.open();
        assert_eq!(serde_json::to_string(&words).unwrap(), "\"card=4111\"");
        assert!(!format!("{words} {words:?}").contains("4111"), "the log is never an admin");
        words = words.closed();
        assert!(!shown(&words).contains("4111") && !words.whole().contains("4111"));
    }

    #[test]
    fn both_forms_are_kept_and_a_text_of_unknown_origin_is_the_servers() {
        for words in [Words::ours("ours"), Words::quoting("ours", "theirs"), Words::ours("")] {
            assert_eq!(Words::from_kept(&words.to_kept()), words);
        }
        let earlier = Words::from_kept("WRONGTYPE card=4111");
        assert_eq!((earlier.said(), earlier.whole()), (FOREIGN, "WRONGTYPE card=4111"));
        let read: Words = serde_json::from_str("\"card=4111\"").unwrap();
        assert_eq!((read.said(), read.whole()), (FOREIGN, "card=4111"));
    }
}
