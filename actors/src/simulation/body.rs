//! Calls of a simulation in wire form: `WORD key id`.
//!
//! | word | what it is |
//! |---|---|
//! | `GET k` | a keyed read: the number of the write that `k` holds |
//! | `SET k n` | absolute |
//! | `ALL k n` | absolute, and the whole value of `k`: of several that wait only the last is sent |
//! | `ADD k n` | not absolute: applied twice it would show |
//! | `ROW - n` | an insert: it commutes, and is gathered |
//! | `BAD k n` | what the backend refuses for good |

use bytes::Bytes;
use fusebox_state::LaneId;

/// The first word of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Get,
    Set,
    All,
    Add,
    Row,
    Bad,
}

impl Word {
    const EACH: [(Self, &'static str); 6] = [
        (Self::Get, "GET"),
        (Self::Set, "SET"),
        (Self::All, "ALL"),
        (Self::Add, "ADD"),
        (Self::Row, "ROW"),
        (Self::Bad, "BAD"),
    ];

    pub(super) fn as_str(self) -> &'static str {
        Self::EACH.iter().find(|(word, _)| *word == self).map_or("", |(_, text)| text)
    }

    /// Whether it leaves the same state however often it is applied.
    pub(super) fn is_absolute(self) -> bool {
        matches!(self, Self::Set | Self::All | Self::Bad)
    }
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) word: Word,
    pub(super) key: u8,
    /// The number of the write; 0 for a read.
    pub(super) id: u64,
}

impl Body {
    pub(super) fn encode(self) -> Bytes {
        format!("{} {} {}", self.word.as_str(), self.key, self.id).into()
    }

    /// `None` if it is not a call.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(bytes).ok()?.split(' ');
        let word = parts.next()?;
        let (word, _) = *Word::EACH.iter().find(|(_, text)| *text == word)?;
        Some(Self { word, key: parts.next()?.parse().ok()?, id: parts.next()?.parse().ok()? })
    }

    pub(super) fn lane(self) -> LaneId {
        LaneId::of(b"", &[self.key])
    }
}
