//! Calls as they lie in the store: their keys, their header, their chunks.
//!
//! A call is one value under `q`+sequence where header and body fit [`VALUE_MAX`] bytes; else its
//! body lies in chunks under `c`+sequence+index, which are written *before* the header. So a header
//! is the proof that the whole call was written, and chunks without one belong to a call that was
//! never acknowledged (or whose removal was cut short): the next open sweeps them.

use super::{
    dead_letters::{self, DeadMark},
    error::StoreError,
    ledger::Says,
    note::{self, Note},
    record::{
        self, CHUNK_BODY, CallRecord, ChunkRecord, Draft, Kind, StoredLanes, Unreadable, VALUE_MAX,
    },
    tree::Tree,
    upload::StoredBody,
};
use crate::units::{LaneId, Lanes, OpId, UnixMillis};
use bytes::Bytes;

/// Prefix of the chunks.
pub(super) const CHUNKS: u8 = b'c';
/// Prefix of the headers.
pub(super) const CALLS: u8 = b'q';
/// Prefix of the notes of sending.
pub(super) const SENDING: u8 = b's';
/// Longest label kept, in bytes; what is longer is cut.
pub(super) const LABEL_MAX: usize = 256;
/// Longest namespace and traceparent, in bytes.
const TEXT_MAX: usize = 256;
/// Longest target, in bytes.
pub(super) const TARGET_MAX: usize = 512;

/// What lets a backend recognise a write that it has applied already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// The write needs none: it leaves the same state however often it is applied.
    Absolute,
    /// Every attempt bears a token (a marker, a deduplication token).
    Marker,
    /// Nothing recognises it: after a crash while it was sent, it is ambiguous.
    None,
    /// A marker under a name that the caller brought: it stays, so that a repetition is recognised.
    OwnMarker,
}

impl TokenKind {
    const fn to_u8(self) -> u8 {
        match self {
            Self::Absolute => 0,
            Self::Marker => 1,
            Self::None => 2,
            Self::OwnMarker => 3,
        }
    }

    const fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Absolute),
            1 => Some(Self::Marker),
            2 => Some(Self::None),
            3 => Some(Self::OwnMarker),
            _ => None,
        }
    }
}

/// What replay must know of a call besides its token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// It sets the whole value of its only lane.
    pub whole: bool,
    /// What is sent depends on what stands behind it in its lanes.
    pub timed: bool,
    /// Calls of the same number may be sent as one; its upper two bits are not kept.
    pub gather: Option<u64>,
    /// It is what is left to do of a call that was applied, and is due then.
    pub due: Option<UnixMillis>,
}

/// The bits of a number that [`Traits`] keeps.
const TRAIT_BITS: u64 = u64::MAX >> 2;
const GATHER: u64 = 1;
const DUE: u64 = 2;

impl Traits {
    /// As one number: what it is in the upper two bits. `None` for a call that is nothing special.
    fn to_number(self) -> Option<u64> {
        let tagged = |tag: u64, number: u64| Some(tag << 62 | number & TRAIT_BITS);
        match self {
            Self { due: Some(due), .. } => tagged(DUE, due.get()),
            Self { gather: Some(gather), .. } => tagged(GATHER, gather),
            Self { whole: false, timed: false, .. } => None,
            Self { whole, timed, .. } => tagged(0, u64::from(whole) | u64::from(timed) << 1),
        }
    }

    fn from_number(number: Option<u64>) -> Self {
        let Some(number) = number else { return Self::default() };
        let value = number & TRAIT_BITS;
        match number >> 62 {
            GATHER => Self { gather: Some(value), ..Self::default() },
            DUE => Self { due: Some(UnixMillis::new(value)), ..Self::default() },
            _ => Self { whole: value & 1 > 0, timed: value & 2 > 0, ..Self::default() },
        }
    }

    /// A number by which calls are gathered, as it comes back from the store.
    pub fn gather_number(number: u64) -> u64 {
        number & TRAIT_BITS
    }
}

/// Whether a header with these traits took the place of another.
pub(super) fn is_residue(traits: Option<u64>) -> bool {
    Traits::from_number(traits).due.is_some()
}

/// The group that a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredGroup {
    /// The sequence of its first call.
    pub id: u64,
    /// The token that its calls bear.
    pub token: OpId,
    /// A member is missing: it cannot be sent again as it was.
    pub broken: bool,
}

/// A call on its way into the store.
#[derive(Clone, Debug)]
pub struct NewCall {
    /// Its place in the queue: above every sequence given out before, see `Opened::last_seq`.
    pub seq: u64,
    /// Its name for ever.
    pub op_id: OpId,
    /// Digest of the body as the caller sent it: tells a repetition from another call of the same
    /// `op_id`.
    pub digest: u64,
    /// User id of the program that sent it.
    pub uid: u32,
    /// Part of its lane and cache keys; empty for now. At most 256 bytes.
    pub namespace: String,
    /// The lanes that it touches.
    pub lanes: Lanes,
    /// For people (`SET user:7`); cut at 256 bytes.
    pub label: String,
    /// What lets the backend recognise it.
    pub token: TokenKind,
    /// What else replay must know of it.
    pub traits: Traits,
    /// When it was acknowledged to be in hand.
    pub accepted_at: UnixMillis,
    /// The W3C trace context that it came with; one above 256 bytes is dropped.
    pub traceparent: Option<String>,
    /// What is noted of its sending already: it is never found without that.
    pub note: Option<Note>,
    /// What is sent, opaque to the store.
    pub body: Bytes,
}

/// A call that lies in the store, without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCall {
    /// Its place in the queue.
    pub seq: u64,
    /// Its name for ever.
    pub op_id: OpId,
    /// Digest of the body as the caller sent it.
    pub digest: u64,
    /// User id of the program that sent it.
    pub uid: u32,
    /// Part of its lane and cache keys.
    pub namespace: String,
    /// The lanes that it touches.
    pub lanes: Lanes,
    /// For people.
    pub label: String,
    /// The backend's identity when it was accepted.
    pub target: String,
    /// What lets the backend recognise it.
    pub token: TokenKind,
    /// What else replay must know of it.
    pub traits: Traits,
    /// When it was acknowledged to be in hand.
    pub accepted_at: UnixMillis,
    /// The trace context that it came with.
    pub traceparent: Option<String>,
    /// Length of its body in bytes.
    pub body_len: u64,
    /// CRC-32 of its body.
    pub body_crc: u32,
    /// Chunks that its body lies in; 0 where it lies beside the header.
    pub chunks: u32,
    /// Bytes that it takes in the store, envelopes included: what a queue's limit in bytes counts.
    pub bytes: u64,
    /// When it was first put on the wire, where that was noted.
    pub first_sent_at: Option<UnixMillis>,
    /// What was noted beside that for a later proof.
    pub evidence: Bytes,
    /// The calls that it was sent with as one.
    pub group: Option<StoredGroup>,
    /// Set where it is a dead letter.
    pub dead: Option<DeadMark>,
}

impl StoredCall {
    /// It bears this note. Where the note itself is damaged (a default one), it was sent some time since it was
    /// accepted.
    pub(super) fn noted(&mut self, note: &Note) {
        let known = note.first_sent_at > UnixMillis::default();
        self.first_sent_at = Some(if known { note.first_sent_at } else { self.accepted_at });
        self.evidence = note.evidence.clone();
        self.group = note.group.as_ref().map(|group| StoredGroup {
            id: group.members.first().copied().unwrap_or(self.seq),
            token: group.token,
            broken: false,
        });
    }
}

/// A prefix with a number, big-endian, so that keys sort as the numbers do.
pub(super) fn key(prefix: u8, number: u64) -> [u8; 9] {
    joined([prefix].into_iter().chain(number.to_be_bytes()))
}

/// The key of a chunk.
pub(super) fn chunk_key(seq: u64, index: u32) -> [u8; 13] {
    joined(key(CHUNKS, seq).into_iter().chain(index.to_be_bytes()))
}

fn joined<const N: usize>(parts: impl Iterator<Item = u8>) -> [u8; N] {
    let mut key = [0; N];
    key.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    key
}

/// The number in a key that [`key`] made.
pub(super) fn number_of(key: &[u8]) -> Option<u64> {
    let (_, number) = key.split_first()?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

/// Sequence and index in a key that [`chunk_key`] made.
pub(super) fn chunk_of(key: &[u8]) -> Option<(u64, u32)> {
    let (head, index) = key.split_last_chunk::<4>()?;
    Some((number_of(head)?, u32::from_be_bytes(*index)))
}

/// A call ready to be written: the value for its header, and the body where it goes into chunks.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) seq: u64,
    pub(super) header: Draft,
    pub(super) says: Says,
    pub(super) chunked: Option<Bytes>,
}

/// What the header of a call with these traits says to the ledger.
pub(super) fn says(traits: &Traits) -> Says {
    if traits.due.is_some() { Says::Residue } else { Says::Itself }
}

/// What a value says to the ledger.
pub(super) fn says_of(key: &[u8], value: &[u8]) -> Says {
    if record::is_void(value) {
        return Says::Nothing;
    }
    let call = number_of(key).filter(|_| key.first() == Some(&CALLS));
    match call.and_then(|seq| decode_call(seq, value).ok()) {
        Some((call, _)) => says(&call.traits),
        None => Says::Itself,
    }
}

/// Encodes a call that the backend `target` is to get.
pub(super) fn encode(call: &NewCall, target: &str) -> Result<Encoded, StoreError> {
    seal_call(record_of(call, target)?, &call.body)
}

/// Encodes the header of a call whose body lies in chunks already.
pub(super) fn encode_stored(
    call: &NewCall,
    body: StoredBody,
    target: &str,
) -> Result<Draft, StoreError> {
    let too_large =
        || StoreError::TooLarge { what: "call", bytes: body.len, limit: u64::from(u32::MAX) };
    let record = CallRecord {
        body_len: body.len,
        body_crc: body.crc,
        chunks: body.chunks().ok_or_else(too_large)?,
        inline: &[],
        ..record_of(call, target)?
    };
    record::seal(Kind::Call, &record, 256).ok_or_else(too_large)
}

fn record_of<'a>(call: &'a NewCall, target: &'a str) -> Result<CallRecord<'a>, StoreError> {
    within("namespace", call.namespace.len(), TEXT_MAX)?;
    Ok(CallRecord {
        seq: call.seq,
        op_id: call.op_id.to_u128(),
        digest: call.digest,
        uid: call.uid,
        namespace: &call.namespace,
        lanes: to_stored(&call.lanes),
        label: cut(&call.label, LABEL_MAX),
        target,
        token: call.token.to_u8(),
        traits: call.traits.to_number(),
        accepted_at: call.accepted_at.get(),
        expires_at: None,
        traceparent: call.traceparent.as_deref().filter(|text| text.len() <= TEXT_MAX),
        body_len: call.body.len() as u64,
        body_crc: crc32fast::hash(&call.body),
        chunks: 0,
        inline: &call.body,
    })
}

/// Encodes a stored call anew under another sequence: an operator's requeue. Its marks stay behind.
pub(super) fn encode_again(
    call: &StoredCall,
    seq: u64,
    target: &str,
    body: &Bytes,
) -> Result<Encoded, StoreError> {
    let record = CallRecord {
        seq,
        op_id: call.op_id.to_u128(),
        digest: call.digest,
        uid: call.uid,
        namespace: &call.namespace,
        lanes: to_stored(&call.lanes),
        label: &call.label,
        target,
        token: call.token.to_u8(),
        traits: call.traits.to_number(),
        accepted_at: call.accepted_at.get(),
        expires_at: None,
        traceparent: call.traceparent.as_deref(),
        body_len: call.body_len,
        body_crc: call.body_crc,
        chunks: 0,
        inline: body,
    };
    seal_call(record, body)
}

fn seal_call(mut record: CallRecord<'_>, body: &Bytes) -> Result<Encoded, StoreError> {
    let seq = record.seq;
    let says = if is_residue(record.traits) { Says::Residue } else { Says::Itself };
    if body.len() < VALUE_MAX
        && let Some(header) = record::seal(Kind::Call, &record, 160 + body.len())
    {
        return Ok(Encoded { seq, header, says, chunked: None });
    }
    let too_large = || StoreError::TooLarge {
        what: "call",
        bytes: body.len() as u64,
        limit: u64::from(u32::MAX),
    };
    record.chunks = u32::try_from(body.len().div_ceil(CHUNK_BODY)).map_err(|_| too_large())?;
    record.inline = &[];
    let header = record::seal(Kind::Call, &record, 256).ok_or_else(too_large)?;
    Ok(Encoded { seq, header, says, chunked: Some(body.clone()) })
}

/// The value of chunk `index` of a body; `None` behind its end.
pub(super) fn chunk_value(seq: u64, index: u32, body: &[u8]) -> Option<Draft> {
    piece_value(seq, 0, index, body)
}

/// The value of chunk `index` of a piece whose first is chunk `first` of the body; `None` behind its end.
pub(super) fn piece_value(seq: u64, first: u32, index: u32, piece: &[u8]) -> Option<Draft> {
    let data = piece.chunks(CHUNK_BODY).nth(index as usize)?;
    let record = ChunkRecord { seq, index: first + index, data };
    record::seal(Kind::Chunk, &record, data.len() + 24)
}

/// Refuses `bytes` above `limit`.
pub(super) fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), StoreError> {
    if bytes <= limit {
        return Ok(());
    }
    Err(StoreError::TooLarge { what, bytes: bytes as u64, limit: limit as u64 })
}

/// The longest start of `text` that has at most `limit` bytes.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

fn to_stored(lanes: &Lanes) -> StoredLanes {
    match lanes {
        Lanes::One(lane) => StoredLanes::One(lane.0),
        Lanes::Many(many) => StoredLanes::Many(many.iter().map(|lane| lane.0).collect()),
        Lanes::All => StoredLanes::All,
    }
}

/// Decodes a header; `seq` is what its key says. Chunks and marks are not looked at.
pub(super) fn decode_call(
    seq: u64,
    value: &[u8],
) -> Result<(StoredCall, CallRecord<'_>), Unreadable> {
    let record: CallRecord<'_> = record::open(Kind::Call, value)?;
    if record.seq != seq {
        return Err(Unreadable::Damaged("holds another sequence than its key says"));
    }
    let token =
        TokenKind::from_u8(record.token).ok_or(Unreadable::Damaged("token kind is unknown"))?;
    let lanes = match &record.lanes {
        StoredLanes::One(lane) => Lanes::One(LaneId(*lane)),
        StoredLanes::Many(many) => Lanes::new(many.iter().map(|lane| LaneId(*lane))),
        StoredLanes::All => Lanes::All,
    };
    let overhead = (record::OVERHEAD as u64 + 18) * u64::from(record.chunks);
    let outside = if record.chunks == 0 { 0 } else { record.body_len };
    let call = StoredCall {
        seq,
        op_id: OpId::from_u128(record.op_id),
        digest: record.digest,
        uid: record.uid,
        namespace: record.namespace.to_owned(),
        lanes,
        label: record.label.to_owned(),
        target: record.target.to_owned(),
        token,
        traits: Traits::from_number(record.traits),
        accepted_at: UnixMillis::new(record.accepted_at),
        traceparent: record.traceparent.map(str::to_owned),
        body_len: record.body_len,
        body_crc: record.body_crc,
        chunks: record.chunks,
        bytes: value.len() as u64 + outside + overhead,
        first_sent_at: None,
        evidence: Bytes::new(),
        group: None,
        dead: None,
    };
    Ok((call, record))
}

/// Reads a call and its marks.
pub(super) fn read_call(db: &impl Tree, seq: u64) -> Result<StoredCall, StoreError> {
    let value = db.get(&key(CALLS, seq)).map_err(StoreError::read)?;
    let value = value.ok_or(StoreError::NotFound { seq })?;
    let (mut call, _) = decode_call(seq, &value).map_err(|why| StoreError::damaged(seq, &why))?;
    if let Some(note) = mark_under(db, key(SENDING, seq))? {
        call.noted(&note::decode(seq, &note).unwrap_or_default());
    }
    if let Some(mark) = mark_under(db, key(dead_letters::PREFIX, seq))? {
        call.dead = Some(dead_letters::decode_or_undecodable(seq, &mark));
    }
    Ok(call)
}

/// The note or mark under a key, if there is one that is not taken back.
fn mark_under(db: &impl Tree, key: [u8; 9]) -> Result<Option<sled::IVec>, StoreError> {
    let value = db.get(&key).map_err(StoreError::read)?;
    Ok(value.filter(|value| !record::is_void(value)))
}

/// Reads a call's body, whole and with its checksum verified.
pub(super) fn read_body(db: &impl Tree, seq: u64) -> Result<Bytes, StoreError> {
    let value = db.get(&key(CALLS, seq)).map_err(StoreError::read)?;
    let value = value.ok_or(StoreError::NotFound { seq })?;
    let (_, header) = decode_call(seq, &value).map_err(|why| StoreError::damaged(seq, &why))?;
    let mut body = Vec::from(header.inline);
    for index in 0..header.chunks {
        read_chunk(db, seq, index, header.chunks, |data| body.extend_from_slice(data))?;
    }
    if body.len() as u64 != header.body_len || crc32fast::hash(&body) != header.body_crc {
        return Err(StoreError::Damaged { seq, detail: "checksum of the body is wrong".into() });
    }
    Ok(body.into())
}

/// Hands chunk `index` of `chunks` to `take`.
pub(super) fn read_chunk(
    db: &impl Tree,
    seq: u64,
    index: u32,
    chunks: u32,
    take: impl FnOnce(&[u8]),
) -> Result<(), StoreError> {
    let chunk = db.get(&chunk_key(seq, index)).map_err(StoreError::read)?;
    let chunk = chunk.ok_or_else(|| StoreError::Damaged {
        seq,
        detail: format!("chunk {index} of {chunks} is missing"),
    })?;
    let data = decode_chunk(seq, index, &chunk).map_err(|why| StoreError::damaged(seq, &why))?;
    take(data);
    Ok(())
}

/// The piece of a body in a chunk's value.
pub(super) fn decode_chunk(seq: u64, index: u32, value: &[u8]) -> Result<&[u8], Unreadable> {
    let record: ChunkRecord<'_> = record::open(Kind::Chunk, value)?;
    if (record.seq, record.index) == (seq, index) {
        Ok(record.data)
    } else {
        Err(Unreadable::Damaged("holds another sequence than its key says"))
    }
}
