//! Calls as the store's users know them: on their way in, as they are stored, and as dead letters.

use bytes::Bytes;

use super::{note::Note, record::CHUNK_BODY};
use crate::{
    target::Target,
    units::{Lanes, OpId, UnixMillis},
    words::Words,
    write::Repeat,
};

/// What lets a backend recognise a write that it has applied already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// The write needs none: it leaves the same state however often it is applied.
    Absolute,
    /// Every attempt has a token (a marker, a deduplication token).
    Marker,
    /// Nothing recognises it: after a crash while it was sent, it is ambiguous.
    None,
    /// A marker under a name that the caller brought: it stays, so that a repetition is recognised.
    OwnMarker,
}

impl TokenKind {
    /// The protection of a call that may be repeated so, and has a name that its caller brought (`own_name`) or not.
    pub fn of(repeat: Repeat, own_name: bool) -> Self {
        match (repeat, own_name) {
            (Repeat::Absolute, _) => Self::Absolute,
            (_, true) => Self::OwnMarker,
            (_, false) => Self::Marker,
        }
    }

    /// Whether, and how, a call with it may be repeated.
    pub fn repeat(self) -> Repeat {
        match self {
            Self::Absolute => Repeat::Absolute,
            Self::Marker | Self::OwnMarker => Repeat::Token,
            Self::None => Repeat::Never,
        }
    }

    pub(super) const fn to_u8(self) -> u8 {
        match self {
            Self::Absolute => 0,
            Self::Marker => 1,
            Self::None => 2,
            Self::OwnMarker => 3,
        }
    }

    pub(super) const fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Absolute),
            1 => Some(Self::Marker),
            2 => Some(Self::None),
            3 => Some(Self::OwnMarker),
            _ => None,
        }
    }
}

/// What replay must know of a call besides its token, as one number; see `Traits::to_number`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits(u64);

/// The bits of a number that [`Traits`] keeps.
const TRAIT_BITS: u64 = u64::MAX >> 2;
const WHOLE: u64 = 1;
const TIMED: u64 = 2;
/// What is in the upper two bits.
const PLAIN: u64 = 0;
const GATHER: u64 = 1;
const DUE: u64 = 2;

impl Traits {
    /// A write that sets the whole value of its only lane (`whole`), or of which what is sent depends on what is behind
    /// it in its lanes (`timed`), or neither.
    pub fn of(whole: bool, timed: bool) -> Self {
        Self(if whole { WHOLE } else { 0 } | if timed { TIMED } else { 0 })
    }

    /// Calls of the same `number` may be sent as one; its upper two bits are not kept.
    pub fn gathered(number: u64) -> Self {
        Self(GATHER << 62 | number & TRAIT_BITS)
    }

    /// What is left to do of a call that was applied, at `due`.
    pub fn residue(due: UnixMillis) -> Self {
        Self(DUE << 62 | due.get() & TRAIT_BITS)
    }

    /// Whether it sets the whole value of its only lane.
    pub fn is_whole(self) -> bool {
        self.kind() == PLAIN && self.0 & WHOLE > 0
    }

    /// Whether what is sent depends on what is behind it in its lanes.
    pub fn is_timed(self) -> bool {
        self.kind() == PLAIN && self.0 & TIMED > 0
    }

    /// The number of the calls that it may be sent with as one.
    pub fn gather(self) -> Option<u64> {
        (self.kind() == GATHER).then_some(self.0 & TRAIT_BITS)
    }

    /// When it is due, if it is what is left to do of a call that was applied.
    pub fn due(self) -> Option<UnixMillis> {
        (self.kind() == DUE).then_some(UnixMillis::new(self.0 & TRAIT_BITS))
    }

    fn kind(self) -> u64 {
        self.0 >> 62
    }

    /// As it is stored: what it is in the upper two bits. `None` for a call that is nothing special.
    pub(super) fn to_number(self) -> Option<u64> {
        (self.0 > 0).then_some(self.0)
    }

    pub(super) fn from_number(number: Option<u64>) -> Self {
        Self(number.unwrap_or_default())
    }
}

/// Whether a header with these traits took the place of another.
pub(super) fn is_residue(traits: Option<u64>) -> bool {
    Traits::from_number(traits).due().is_some()
}

/// The group that a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredGroup {
    /// The sequence of its first call.
    pub id: u64,
    /// The token of its calls.
    pub token: OpId,
    /// A member is missing: it cannot be sent again as it was.
    pub broken: bool,
}

/// What is known of a queued call wherever it is: on its way into the store, in the store, and in the queue's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallHeader {
    /// Its name for ever.
    pub op_id: OpId,
    /// Digest of the body as the caller sent it: tells a repetition from another call of the same `op_id`.
    pub digest: u64,
    /// User id of the program that sent it.
    pub uid: u32,
    /// The lanes that it touches.
    pub lanes: Lanes,
    /// What lets the backend recognise it.
    pub token: TokenKind,
    /// What else replay must know of it.
    pub traits: Traits,
    /// When it was acknowledged to be in hand.
    pub accepted_at: UnixMillis,
}

/// A call on its way into the store.
#[derive(Clone, Debug)]
pub struct NewCall {
    /// Its place in the queue: above every sequence given out before, see `Opened::last_seq`.
    pub seq: u64,
    /// What is known of it.
    pub header: CallHeader,
    /// The backend's identity that it was accepted for.
    pub target: Target,
    /// Its lanes for people (`SET user:7`); the store keeps 256 bytes.
    pub label: Box<str>,
    /// The W3C trace context that it came with; one above 256 bytes is dropped.
    pub traceparent: Option<String>,
    /// What is noted of its sending already: it is never found without that.
    pub note: Option<Note>,
    /// What is sent, opaque to the store.
    pub body: Bytes,
}

/// A call in the store, without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCall {
    /// Its place in the queue.
    pub seq: u64,
    /// What is known of it.
    pub header: CallHeader,
    /// Its lanes for people, at most 256 bytes.
    pub label: Box<str>,
    /// The backend's identity when it was accepted.
    pub target: Target,
    /// The trace context that it came with.
    pub traceparent: Option<String>,
    /// Length of its body in bytes.
    pub body_len: u64,
    /// CRC-32 of its body.
    pub body_crc: u32,
    /// Chunks of its body; 0 if it is beside the header.
    pub chunks: u32,
    /// Bytes that it takes in the store, envelopes included: what a queue's limit in bytes counts.
    pub bytes: u64,
    /// When it was first put on the wire, if that was noted.
    pub first_sent_at: Option<UnixMillis>,
    /// What was noted beside that for a later proof.
    pub evidence: Bytes,
    /// The calls that it was sent with as one.
    pub group: Option<Box<StoredGroup>>,
    /// Set if it is a dead letter.
    pub dead: Option<Box<DeadMark>>,
}

impl StoredCall {
    /// It has this note; see [`sending_of`].
    pub(super) fn noted(&mut self, note: &Note) {
        let (at, evidence, group) = sending_of(note, self.seq, self.header.accepted_at);
        (self.first_sent_at, self.evidence, self.group) = (Some(at), evidence, group);
    }

    /// With the marks that a scan found beside it.
    pub(super) fn marked(mut self, found: &FoundCall) -> Self {
        let Marks { traceparent: _, first_sent_at, evidence, group, dead } = found.marks().clone();
        (self.first_sent_at, self.evidence) = (first_sent_at, evidence);
        (self.group, self.dead) = (group, dead);
        self
    }
}

/// What a note says of the call `seq`. If the note itself is damaged (a default one), the call was sent some time since
/// it was accepted.
fn sending_of(
    note: &Note,
    seq: u64,
    accepted_at: UnixMillis,
) -> (UnixMillis, Bytes, Option<Box<StoredGroup>>) {
    let known = note.first_sent_at > UnixMillis::default();
    let group = note.group.as_ref().map(|group| {
        let id = group.members.first().copied().unwrap_or(seq);
        Box::new(StoredGroup { id, token: group.token, broken: false })
    });
    (if known { note.first_sent_at } else { accepted_at }, note.evidence.clone(), group)
}

/// A call as an open finds it: what the index of a queue must know, as small as that can be. There may be a million of
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundCall {
    /// Its place in the queue.
    pub seq: u64,
    /// What is known of it.
    pub header: CallHeader,
    /// The [digest of its label](crate::units::object_of).
    pub object: u32,
    /// Chunks of its body; 0 if it is beside the header.
    pub chunks: u32,
    /// Length of its body in bytes.
    pub body_len: u64,
    /// The backend's identity when it was accepted.
    pub target: Target,
    marks: Option<Box<Marks>>,
}

/// What is beside few calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The trace context that it came with, if it was recorded.
    pub traceparent: Option<Box<str>>,
    /// When it was first put on the wire, if that was noted.
    pub first_sent_at: Option<UnixMillis>,
    /// What was noted beside that for a later proof.
    pub evidence: Bytes,
    /// The calls that it was sent with as one.
    pub group: Option<Box<StoredGroup>>,
    /// Set if it is a dead letter.
    pub dead: Option<Box<DeadMark>>,
}

static NO_MARKS: Marks = Marks {
    traceparent: None,
    first_sent_at: None,
    evidence: Bytes::new(),
    group: None,
    dead: None,
};

impl FoundCall {
    /// A call that nothing is beside.
    pub(super) fn new(
        (seq, header): (u64, CallHeader),
        object: u32,
        (body_len, chunks): (u64, u32),
        target: Target,
    ) -> Self {
        Self { seq, header, object, chunks, body_len, target, marks: None }
    }

    /// What is beside it.
    pub fn marks(&self) -> &Marks {
        self.marks.as_deref().unwrap_or(&NO_MARKS)
    }

    /// The same, to be changed. Takes memory from then on.
    pub(super) fn marks_mut(&mut self) -> &mut Marks {
        self.marks.get_or_insert_default()
    }

    /// What is beside it, taken from it.
    pub fn take_marks(&mut self) -> Marks {
        self.marks.take().map_or_else(Marks::default, |marks| *marks)
    }

    /// It has this note; see [`sending_of`].
    pub(super) fn noted(&mut self, note: &Note) {
        let (at, evidence, group) = sending_of(note, self.seq, self.header.accepted_at);
        let marks = self.marks_mut();
        (marks.first_sent_at, marks.evidence, marks.group) = (Some(at), evidence, group);
    }
}

/// A call that is read says the same.
#[cfg(test)]
impl From<StoredCall> for FoundCall {
    fn from(call: StoredCall) -> Self {
        let StoredCall { seq, header, label, target, traceparent, body_len, .. } = call;
        let StoredCall { chunks, first_sent_at, evidence, group, dead, .. } = call;
        let traceparent = traceparent.map(String::into_boxed_str);
        let marks = Marks { traceparent, first_sent_at, evidence, group, dead };
        let object = crate::units::object_of(&label);
        let mut found = Self::new((seq, header), object, (body_len, chunks), target);
        found.marks = (marks != Marks::default()).then(|| Box::new(marks));
        found
    }
}

/// A body that is in the store already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredBody {
    /// Its length in bytes.
    pub len: u64,
    /// CRC-32 of the whole.
    pub crc: u32,
    /// Its pieces.
    pub pieces: u32,
}

impl StoredBody {
    /// Counts one more piece, and returns its index.
    pub fn add(&mut self, piece: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new_with_initial(self.crc);
        crc.update(piece);
        self.crc = crc.finalize();
        self.len += piece.len() as u64;
        self.pieces += 1;
        self.pieces - 1
    }

    /// Its chunks.
    pub(super) fn chunks(self) -> Option<u32> {
        u32::try_from(self.len.div_ceil(CHUNK_BODY as u64)).ok()
    }
}

/// Why a call became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// The backend refuses it for good.
    Rejected,
    /// Its time was over. No release writes this; a mark that says so is still read.
    Expired,
    /// It may have been applied, and nothing lets the backend say so.
    Ambiguous,
    /// Its record, or its mark, does not decode.
    Undecodable,
    /// Too many replies of no known class.
    GaveUp,
}

impl DeadReason {
    pub(super) const fn to_u8(self) -> u8 {
        match self {
            Self::Rejected => 0,
            Self::Expired => 1,
            Self::Ambiguous => 2,
            Self::Undecodable => 3,
            Self::GaveUp => 4,
        }
    }

    pub(super) const fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Rejected,
            1 => Self::Expired,
            2 => Self::Ambiguous,
            3 => Self::Undecodable,
            4 => Self::GaveUp,
            _ => return None,
        })
    }
}

/// What is kept beside a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeadMark {
    /// Why replay gave up.
    pub reason: DeadReason,
    /// What happened; kept in 2,048 bytes at most.
    pub detail: Words,
    /// When it was buried.
    pub at: UnixMillis,
    /// Attempts made by replay.
    pub attempts: u32,
}
