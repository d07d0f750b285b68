//! The envelope that every stored value wears, and the shapes inside it.
//!
//! ```text
//! magic 4 | format u16 | kind u8 | flags u8 | length u32 | crc32 u32 | commit u64 | payload (bincode 2)
//! ```
//!
//! All numbers of the envelope are little-endian. The length is that of commit and payload. `commit` is the
//! number of the commit that wrote the value: a value with a number above the head's belongs to a commit that was
//! never completed. Format 1 had no such number, and is read only to be brought to format 2.
//!
//! The checksum covers everything from the format to the end but itself; bincode has no integrity of its own (819 of
//! 832 single bit flips in a record decoded silently wrong). The envelope's layout is frozen for every format to come,
//! so that a newer format (checksum right, number unknown) is distinguished from a damaged one (checksum wrong).
//! Each payload repeats what its key says, so that a raw scan of the log needs no keys and a value
//! that surfaces under a foreign key is noticed.
//!
//! Bodies are the callers' own bytes, and may look like values: see `mask.rs`.
//!
//! The codec is used nowhere else: this module is all there is to change if it is replaced.

use std::borrow::Cow;

use bincode::{
    BorrowDecode, Decode, Encode,
    config::{Configuration, Limit, LittleEndian, Varint},
};
use memchr::memmem;

use mask::{MASK, combined, mask_for};

pub(super) use mask::MAGIC;

mod mask;

/// Largest value handed to sled: larger ones end in blob files that are never synced.
pub(super) const VALUE_MAX: usize = 4096;
/// Bytes of the envelope before the commit number.
const ENVELOPE: usize = 16;
/// Bytes before the payload.
pub(super) const OVERHEAD: usize = ENVELOPE + 8;
/// The format that this version writes.
pub(super) const FORMAT: u16 = 2;
/// The format of a head whose store may hold packs (`pack.rs`); its values are otherwise those of [`FORMAT`].
pub(super) const PACKED: u16 = 3;
/// The newest format that this version reads.
pub(super) const KNOWN: u16 = PACKED;
/// The first format, whose values have no commit number.
pub(super) const FIRST: u16 = 1;
/// The flag of a payload that is masked: its mask is before it.
const MASKED: u8 = 1;
/// Body bytes in one chunk: with its header (17 bytes at most), the envelope and a mask below [`VALUE_MAX`].
pub(super) const CHUNK_BODY: usize = 4032;
/// What decoding may allocate; without a limit a corrupt length aborts the process.
const DECODE_LIMIT: usize = 16 * 1024;

const CODEC: Configuration<LittleEndian, Varint, Limit<DECODE_LIMIT>> =
    bincode::config::standard().with_limit::<DECODE_LIMIT>();

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Head = 1,
    Call = 2,
    Chunk = 3,
    Sending = 4,
    Dead = 5,
    Fact = 6,
    History = 7,
    Note = 8,
    Gone = 9,
    Void = 10,
}

impl Kind {
    pub(super) fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Head,
            2 => Self::Call,
            3 => Self::Chunk,
            4 => Self::Sending,
            5 => Self::Dead,
            6 => Self::Fact,
            7 => Self::History,
            8 => Self::Note,
            9 => Self::Gone,
            10 => Self::Void,
            _ => return None,
        })
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Call => "call",
            Self::Chunk => "chunk",
            Self::Sending | Self::Note => "note of sending",
            Self::Dead => "dead-letter mark",
            Self::Fact => "fact",
            Self::History => "history",
            Self::Gone => "removal record",
            Self::Void => "taken back mark",
        }
    }
}

/// Why a value was not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Whole, but written by a version that knows more: refuse, touch nothing.
    Newer { found: u16 },
    /// Not what was written.
    Damaged(&'static str),
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Newer { found } => write!(f, "format {found} is newer than {KNOWN}"),
            Self::Damaged(what) => f.write_str(what),
        }
    }
}

/// The lanes of a call as they are stored.
#[derive(Clone, Debug, Encode, Decode)]
pub(super) enum StoredLanes {
    One(u64),
    Many(Vec<u64>),
    All,
}

/// A call's header, with its body if the whole fits one value (`chunks` is 0 then).
#[derive(Clone, Debug, Encode, BorrowDecode)]
pub(super) struct CallRecord<'a> {
    pub(super) seq: u64,
    pub(super) op_id: u128,
    pub(super) digest: u64,
    pub(super) uid: u32,
    /// Part of the format and of no meaning: no release sets it. It is written empty, and passed over when read.
    pub(super) namespace: &'a str,
    pub(super) lanes: StoredLanes,
    pub(super) label: &'a str,
    pub(super) target: &'a str,
    pub(super) token: u8,
    /// See `Traits`; the first release wrote none and passes over them.
    pub(super) traits: Option<u64>,
    pub(super) accepted_at: u64,
    /// Part of the format and of no meaning: no release sets it. It is written as `None`, and passed over when read.
    pub(super) expires_at: Option<u64>,
    pub(super) traceparent: Option<&'a str>,
    pub(super) body_len: u64,
    pub(super) body_crc: u32,
    pub(super) chunks: u32,
    pub(super) inline: &'a [u8],
}

/// A piece of a body; the pieces of sequence `seq` are numbered from 0.
#[derive(Clone, Copy, Debug, Encode, BorrowDecode)]
pub(super) struct ChunkRecord<'a> {
    pub(super) seq: u64,
    pub(super) index: u32,
    pub(super) data: &'a [u8],
}

/// The call is on the wire, or was.
#[derive(Clone, Copy, Debug, Encode, Decode)]
pub(super) struct SendingRecord {
    pub(super) seq: u64,
    pub(super) first_sent_at: u64,
}

/// The same, with what the first release did not know.
#[derive(Clone, Debug, Encode, BorrowDecode)]
pub(super) struct NoteRecord<'a> {
    pub(super) seq: u64,
    pub(super) first_sent_at: u64,
    pub(super) evidence: &'a [u8],
    pub(super) group: Option<GroupRecord>,
}

/// The calls of a group: the first sequence, then the distance of each from the one before.
#[derive(Clone, Debug, Encode, Decode)]
pub(super) struct GroupRecord {
    pub(super) token: u128,
    pub(super) gaps: Vec<u64>,
    pub(super) applied: bool,
}

/// The call is a dead letter.
#[derive(Clone, Copy, Debug, Encode, BorrowDecode)]
pub(super) struct DeadRecord<'a> {
    pub(super) seq: u64,
    pub(super) reason: u8,
    pub(super) detail: &'a str,
    pub(super) at: u64,
    pub(super) attempts: u32,
}

/// A small named value.
#[derive(Clone, Copy, Debug, Encode, BorrowDecode)]
pub(super) struct FactRecord<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a [u8],
}

/// One record of the history ring.
#[derive(Clone, Copy, Debug, Encode, BorrowDecode)]
pub(super) struct HistoryRecord<'a> {
    pub(super) number: u64,
    pub(super) record: &'a [u8],
}

/// Calls of one block that are gone; see `gone.rs`.
#[derive(Clone, Debug, Encode, Decode)]
pub(super) struct GoneRecord {
    pub(super) block: u64,
    pub(super) bits: [u64; 16],
}

/// What was under this key is gone.
#[derive(Clone, Copy, Debug, Encode, BorrowDecode)]
pub(super) struct VoidRecord<'a> {
    pub(super) key: &'a [u8],
}

/// Whether a value says that nothing is under its key any more.
pub(super) fn is_void(value: &[u8]) -> bool {
    peel(value).is_ok_and(|sealed| sealed.kind == Kind::Void)
}

/// The value that takes back what is under `key`.
pub(super) fn void(key: &[u8]) -> Option<Draft> {
    seal(Kind::Void, &VoidRecord { key }, key.len() + 2)
}

/// A value that waits for the number of its commit.
#[derive(Clone, Debug)]
pub(super) struct Draft(Vec<u8>);

impl Draft {
    /// Bytes of the whole value.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value, as that commit writes it.
    pub(super) fn stamp(self, commit: u64) -> Vec<u8> {
        let mut value = self.0;
        if let Some((envelope, rest)) = value.split_first_chunk_mut::<ENVELOPE>()
            && let Some((number, _)) = rest.split_first_chunk_mut::<8>()
            && envelope.get(4..6) != Some(FIRST.to_le_bytes().as_slice())
        {
            *number = commit.to_le_bytes();
        }
        seal_envelope(&mut value);
        value
    }
}

/// Puts `payload` into its envelope; `None` if the whole would exceed [`VALUE_MAX`].
pub(super) fn seal(kind: Kind, payload: &impl Encode, size_hint: usize) -> Option<Draft> {
    let mut value = Vec::with_capacity(OVERHEAD + size_hint);
    value.extend_from_slice(&[0; OVERHEAD]);
    bincode::encode_into_std_write(payload, &mut value, CODEC).ok()?;
    masked(draft(kind, FORMAT, value)?)
}

/// The same value in an envelope of the format of packs, which earlier versions refuse.
pub(super) fn seal_packed(kind: Kind, payload: &impl Encode, size_hint: usize) -> Option<Draft> {
    let Draft(mut value) = seal(kind, payload, size_hint)?;
    let [f0, f1] = PACKED.to_le_bytes();
    value.get_mut(4..6)?.copy_from_slice(&[f0, f1]);
    Some(Draft(value))
}

/// The same payload in another format: brings a value to this format, or back to the first. One that was written when
/// nothing was masked, and has no room for a mask, stays without.
pub(super) fn seal_again(value: &[u8], format: u16) -> Option<Draft> {
    let sealed = peel(value).ok()?;
    let begin = if format == FIRST { ENVELOPE } else { OVERHEAD };
    let mut again = vec![0; begin];
    again.extend_from_slice(&sealed.payload);
    let again = draft(sealed.kind, format, again)?;
    if format == FIRST || again.len() + MASK > VALUE_MAX { Some(again) } else { masked(again) }
}

fn draft(kind: Kind, format: u16, mut value: Vec<u8>) -> Option<Draft> {
    if value.len() > VALUE_MAX {
        return None;
    }
    let length = u32::try_from(value.len().checked_sub(ENVELOPE)?).ok()?;
    let (envelope, _) = value.split_first_chunk_mut::<ENVELOPE>()?;
    let [f0, f1] = format.to_le_bytes();
    let [l0, l1, l2, l3] = length.to_le_bytes();
    let [m0, m1, m2, m3] = MAGIC;
    *envelope = [m0, m1, m2, m3, f0, f1, kind as u8, 0, l0, l1, l2, l3, 0, 0, 0, 0];
    Some(Draft(value))
}

/// The same value with the payload masked, if the magic number is in it. `None` if that makes it too large.
fn masked(plain: Draft) -> Option<Draft> {
    let payload = plain.0.get(OVERHEAD..)?;
    if memmem::find(payload, &MAGIC).is_none() {
        return Some(plain);
    }
    let mask = mask_for(payload)?;
    let mut value = Vec::with_capacity(plain.len() + MASK);
    value.extend_from_slice(plain.0.get(..OVERHEAD)?);
    value.extend_from_slice(&mask);
    value.extend(combined(payload, mask));
    let kind = Kind::from_u8(*value.get(6)?)?;
    let format = u16::from_le_bytes([*value.get(4)?, *value.get(5)?]);
    let Draft(mut value) = draft(kind, format, value)?;
    *value.get_mut(7)? = MASKED;
    Some(Draft(value))
}

/// Writes the checksum over what the envelope and the rest hold.
fn seal_envelope(value: &mut [u8]) {
    let Some((envelope, rest)) = value.split_first_chunk_mut::<ENVELOPE>() else { return };
    let [_, _, _, _, f0, f1, kind, flags, l0, l1, l2, l3, crc @ ..] = envelope;
    let fields = [*f0, *f1, *kind, *flags, *l0, *l1, *l2, *l3];
    *crc = checksum(&fields, rest).to_le_bytes();
}

fn checksum(fields: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(fields);
    hasher.update(payload);
    hasher.finalize()
}

/// A whole envelope at the start of some bytes.
pub(super) struct Sealed<'a> {
    /// What it holds.
    pub(super) kind: Kind,
    /// The format that it was written in.
    pub(super) format: u16,
    /// The commit that wrote it; 0 in the first format.
    pub(super) commit: u64,
    /// The bytes inside, without a mask.
    pub(super) payload: Cow<'a, [u8]>,
    /// Length of the whole.
    pub(super) length: usize,
}

impl Sealed<'_> {
    /// Decodes the whole payload; bytes behind it are damage.
    pub(super) fn read<'s, T: BorrowDecode<'s, ()>>(&'s self) -> Result<T, Unreadable> {
        decode(&self.payload)
    }
}

/// The envelope at the start of `bytes`, which may go on behind it.
pub(super) fn peel(bytes: &[u8]) -> Result<Sealed<'_>, Unreadable> {
    let (envelope, rest) =
        bytes.split_first_chunk::<ENVELOPE>().ok_or(Unreadable::Damaged("too short"))?;
    let [m0, m1, m2, m3, f0, f1, kind, flags, l0, l1, l2, l3, c0, c1, c2, c3] = *envelope;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(Unreadable::Damaged("magic number is wrong"));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > VALUE_MAX - ENVELOPE {
        return Err(Unreadable::Damaged("length is impossible"));
    }
    let payload = rest.get(..length).ok_or(Unreadable::Damaged("shorter than it says"))?;
    let crc = u32::from_le_bytes([c0, c1, c2, c3]);
    if checksum(&[f0, f1, kind, flags, l0, l1, l2, l3], payload) != crc {
        return Err(Unreadable::Damaged("checksum is wrong"));
    }
    let found = u16::from_le_bytes([f0, f1]);
    let length = ENVELOPE + length;
    match (found, flags, Kind::from_u8(kind)) {
        (FIRST, 0, Some(kind)) => {
            Ok(Sealed { kind, format: found, commit: 0, payload: payload.into(), length })
        }
        (FORMAT | PACKED, 0 | MASKED, Some(kind)) => {
            let short = Unreadable::Damaged("too short");
            let (number, payload) = payload.split_first_chunk().ok_or_else(|| short.clone())?;
            let commit = u64::from_le_bytes(*number);
            let payload = if flags == MASKED {
                let (mask, payload) = payload.split_first_chunk().ok_or(short)?;
                combined(payload, *mask).collect::<Vec<u8>>().into()
            } else {
                payload.into()
            };
            Ok(Sealed { kind, format: found, commit, payload, length })
        }
        // Formats, flags and kinds that this version does not know come from a newer one.
        _ => Err(Unreadable::Newer { found }),
    }
}

/// The number that a payload begins with: the sequence of a call's.
pub(super) fn first_number(payload: &[u8]) -> Option<u64> {
    bincode::decode_from_slice::<u64, _>(payload, CODEC).ok().map(|(number, _)| number)
}

fn decode<'a, T: BorrowDecode<'a, ()>>(payload: &'a [u8]) -> Result<T, Unreadable> {
    let (record, used) = bincode::borrow_decode_from_slice::<T, _>(payload, CODEC)
        .map_err(|_| Unreadable::Damaged("payload does not decode"))?;
    if used == payload.len() { Ok(record) } else { Err(Unreadable::Damaged("bytes follow")) }
}

/// The envelope of a value that must be a `kind` and nothing but.
pub(super) fn open(kind: Kind, value: &[u8]) -> Result<Sealed<'_>, Unreadable> {
    let sealed = peel(value)?;
    if sealed.length != value.len() {
        return Err(Unreadable::Damaged("bytes follow"));
    }
    if sealed.kind != kind {
        return Err(Unreadable::Damaged("contains another kind of record than its key says"));
    }
    Ok(sealed)
}

/// Makes the checksum of the value at the start of `bytes` right, if there is a whole one, for the fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn mend_checksum(bytes: &mut [u8]) {
    let length = bytes.get(8..12).and_then(|it| it.try_into().ok()).map(u32::from_le_bytes);
    let end = length.and_then(|length| (length as usize).checked_add(ENVELOPE));
    if let Some(value) = end.and_then(|end| bytes.get_mut(..end)) {
        seal_envelope(value);
    }
}

/// The same value as it was written before payloads were masked.
#[cfg(test)]
pub(super) fn without_mask(value: &[u8]) -> Vec<u8> {
    let sealed = peel(value).unwrap();
    let plain = [&[0; OVERHEAD], &sealed.payload[..]].concat();
    draft(sealed.kind, sealed.format, plain).unwrap().stamp(sealed.commit)
}

/// Stamps an envelope of a format to come, for tests.
#[cfg(test)]
pub(super) fn seal_as_newer(payload: &[u8]) -> Vec<u8> {
    let mut value = vec![0; ENVELOPE];
    value.extend_from_slice(payload);
    let mut value = draft(Kind::Call, KNOWN + 1, value).unwrap().0;
    seal_envelope(&mut value);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let record = ChunkRecord { seq: 7, index: 3, data: b"payload" };
        seal(Kind::Chunk, &record, 64).unwrap().stamp(5)
    }

    #[test]
    fn a_value_comes_back_as_it_was_sealed() {
        let value = sample();
        let sealed = open(Kind::Chunk, &value).unwrap();
        let chunk: ChunkRecord<'_> = sealed.read().unwrap();
        assert_eq!((chunk.seq, chunk.index, chunk.data), (7, 3, &b"payload"[..]));
        assert_eq!(peel(&value).unwrap().commit, 5);
    }

    #[test]
    fn a_value_can_be_brought_to_the_first_format_and_back() {
        let first = seal_again(&sample(), FIRST).unwrap().stamp(0);
        let sealed = peel(&first).unwrap();
        assert_eq!((sealed.format, sealed.commit, sealed.kind), (FIRST, 0, Kind::Chunk));
        assert_eq!(sealed.payload, peel(&sample()).unwrap().payload);
        assert_eq!(seal_again(&first, FORMAT).unwrap().stamp(5), sample());
    }

    #[test]
    fn every_single_bit_flip_is_found() {
        let value = sample();
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let result = open(Kind::Chunk, &flipped).err();
            assert!(matches!(result, Some(Unreadable::Damaged(_))), "bit {bit}: {result:?}");
        }
    }

    #[test]
    fn every_truncation_and_every_trailing_byte_is_found() {
        let value = sample();
        for length in 0..value.len() {
            assert!(open(Kind::Chunk, &value[..length]).is_err());
        }
        let mut longer = value;
        longer.push(0);
        assert!(open(Kind::Chunk, &longer).is_err());
    }

    #[test]
    fn bytes_behind_the_record_within_the_payload_are_refused() {
        let sealed = seal(Kind::Sending, &(SendingRecord { seq: 1, first_sent_at: 2 }, 9u8), 16);
        let value = sealed.unwrap().stamp(1);
        let read = open(Kind::Sending, &value).unwrap().read::<SendingRecord>();
        assert_eq!(read.unwrap_err(), Unreadable::Damaged("bytes follow"));
    }

    #[test]
    fn a_corrupt_length_inside_a_valid_envelope_cannot_abort() {
        // A varint length of u64::MAX for `data`: decoding must refuse it, not allocate.
        let mut payload = vec![1, 0, 253];
        payload.extend_from_slice(&[0xFF; 8]);
        assert!(decode::<ChunkRecord<'_>>(&payload).is_err());
        let mut lanes = vec![1, 253];
        lanes.extend_from_slice(&(u64::MAX / 2).to_le_bytes());
        let result = bincode::decode_from_slice::<StoredLanes, _>(&lanes, CODEC);
        assert!(result.is_err());
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let newer = Unreadable::Newer { found: 4 };
        assert_eq!(newer.to_string(), "format 4 is newer than 3");
        assert_eq!(peel(&seal_as_newer(b"future")).err(), Some(newer));
    }

    #[test]
    fn a_value_may_be_as_large_as_the_limit_and_not_a_byte_larger() {
        let sized = |bytes: usize| {
            let record = ChunkRecord { seq: 7, index: 3, data: &vec![0xAB; bytes] };
            seal(Kind::Chunk, &record, bytes)
        };
        let most = VALUE_MAX - OVERHEAD - 5;
        assert!(sized(most + 1).is_none());
        let draft = sized(most).unwrap();
        assert_eq!(draft.len(), VALUE_MAX);
        let mut value = draft.stamp(1);
        let sealed = open(Kind::Chunk, &value).unwrap();
        assert_eq!(sealed.read::<ChunkRecord<'_>>().unwrap().data.len(), most);
        drop(sealed);
        value.push(0);
        value[8..12].copy_from_slice(&4081_u32.to_le_bytes());
        mend_checksum(&mut value);
        assert_eq!(peel(&value).err(), Some(Unreadable::Damaged("length is impossible")));
    }

    #[test]
    fn every_kind_is_known_by_its_number() {
        for number in 0..=u8::MAX {
            let kind = Kind::from_u8(number);
            assert_eq!(kind.map(|kind| kind as u8), (1..=10).contains(&number).then_some(number));
        }
    }

    #[test]
    fn what_takes_back_a_mark_is_told_from_any_other_value() {
        assert!(is_void(&void(b"a key").unwrap().stamp(1)));
        assert!(!is_void(&sample()) && !is_void(b"a key"));
    }

    #[test]
    fn a_full_chunk_stays_below_the_limit_of_a_value() {
        let data = [0xAB; CHUNK_BODY];
        let record = ChunkRecord { seq: u64::MAX, index: u32::MAX, data: &data };
        assert!(seal(Kind::Chunk, &record, CHUNK_BODY).unwrap().len() <= VALUE_MAX);
    }
}
