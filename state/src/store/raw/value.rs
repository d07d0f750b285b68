//! What a raw log consists of.

use crate::store::{
    facts,
    keys::{self, GONE},
};

/// Heads that are kept: the newest.
pub(super) const HEADS_KEPT: usize = 64;

/// The key of a value; in the order of the keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) enum Key {
    Chunk(u64, u32),
    Dead(u64),
    Fact(Box<str>),
    Gone(u64),
    Call(u64),
    Note(u64),
    History(u64),
}

impl Key {
    /// The key in sled.
    pub(in crate::store) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Chunk(seq, index) => keys::chunk_key(*seq, *index).to_vec(),
            Self::Dead(seq) => keys::key(keys::DEAD, *seq).to_vec(),
            Self::Fact(name) => facts::key(name),
            Self::Gone(block) => keys::key(GONE, *block).to_vec(),
            Self::Call(seq) => keys::key(keys::CALLS, *seq).to_vec(),
            Self::Note(seq) => keys::key(keys::SENDING, *seq).to_vec(),
            Self::History(number) => keys::key(keys::HISTORY, *number).to_vec(),
        }
    }

    /// The key that sled has; `None` for the head and for what is not ours.
    pub(in crate::store) fn from_bytes(key: &[u8]) -> Option<Self> {
        let number = keys::number_of(key);
        Some(match *key.first()? {
            keys::CHUNKS => keys::chunk_of(key).map(|(seq, index)| Self::Chunk(seq, index))?,
            keys::DEAD => Self::Dead(number?),
            facts::PREFIX => Self::Fact(facts::name_of(key)?.into()),
            GONE => Self::Gone(number?),
            keys::CALLS => Self::Call(number?),
            keys::SENDING => Self::Note(number?),
            keys::HISTORY => Self::History(number?),
            _ => return None,
        })
    }

    /// The call that it is of.
    pub(in crate::store) fn seq(&self) -> Option<u64> {
        match self {
            Self::Chunk(seq, _) | Self::Dead(seq) | Self::Call(seq) | Self::Note(seq) => Some(*seq),
            Self::Fact(_) | Self::Gone(_) | Self::History(_) => None,
        }
    }
}

/// The place of a value, and what it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Position {
    pub(in crate::store) offset: u64,
    pub(in crate::store) length: u16,
    /// It says that nothing is under its key any more.
    pub(in crate::store) is_void: bool,
    /// A header that took the place of another.
    pub(in crate::store) is_residue: bool,
    /// Chunks of the body of this header.
    pub(in crate::store) chunks: u32,
}

/// A value in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Value {
    pub(in crate::store) key: Key,
    /// The commit that wrote it.
    pub(in crate::store) commit: u64,
    pub(in crate::store) place: Position,
}

impl Value {
    /// Puts values in the order of keys and commits. Of copies of one, of which a log has several, the first stays.
    pub(super) fn arrange(values: &mut Vec<Self>) {
        values.sort_by(|one, other| (&one.key, one.commit).cmp(&(&other.key, other.commit)));
        values.dedup_by(|later, first| (&later.key, later.commit) == (&first.key, first.commit));
    }
}

/// Values in a raw log, superseded and removed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RawCounts {
    /// Call headers.
    pub calls: u64,
    /// Chunks of large bodies.
    pub chunks: u64,
    /// Sending and dead-letter marks, taken back ones included.
    pub marks: u64,
    /// Heads, facts, removal records and history records.
    pub others: u64,
    /// Envelopes whose checksum is wrong. Some are normal: overwritten space of the log.
    pub scarred: u64,
    /// Whole values of a newer version.
    pub newer: u64,
}

impl RawCounts {
    pub(super) fn add(&mut self, more: Self) {
        let Self { calls, chunks, marks, others, scarred, newer } = more;
        self.calls += calls;
        self.chunks += chunks;
        self.marks += marks;
        self.others += others;
        self.scarred += scarred;
        self.newer += newer;
    }
}
