//! Calls as they are in the store: their keys, their header, their chunks.
//!
//! A call is one value under `q`+sequence if header and body fit [`VALUE_MAX`] bytes; else its
//! body is in chunks under `c`+sequence+index, which are written *before* the header. So a header
//! is the proof that the whole call was written, and chunks without one belong to a call that was
//! never acknowledged (or whose removal was cut short): the next open sweeps them.

use super::{
    calls::{
        CallHeader, FoundCall, NewCall, StoredBody, StoredCall, TokenKind, Traits, is_residue,
    },
    dead_letters,
    error::StoreError,
    keys::{self, CALLS, SENDING, chunk_key, cut, key, number_of},
    ledger::Says,
    note,
    pack::{self, Reader},
    record::{
        self, CHUNK_BODY, CallRecord, ChunkRecord, Draft, Kind, Sealed, StoredLanes, Unreadable,
        VALUE_MAX,
    },
    tree::Tree,
};
use crate::{
    target::Target,
    trace::SpanRef,
    units::{LaneId, Lanes, OpId, UnixMillis, object_of},
};
use bytes::Bytes;

/// Longest label kept, in bytes; what is longer is cut.
pub(super) const LABEL_MAX: usize = 256;
/// Longest traceparent, in bytes.
const TRACEPARENT_MAX: usize = 256;
/// Longest target, in bytes.
pub(super) const TARGET_MAX: usize = 512;

/// A call ready to be written: the value for its header, and the body if it goes into chunks.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) seq: u64,
    pub(super) header: Draft,
    pub(super) says: Says,
    pub(super) chunked: Option<Bytes>,
}

/// What the header of a call with these traits says to the ledger.
pub(super) fn says(traits: Traits) -> Says {
    if traits.due().is_some() { Says::Residue } else { Says::Itself }
}

/// What a value says to the ledger.
pub(super) fn says_of(key: &[u8], value: &[u8]) -> Says {
    if record::is_void(value) {
        return Says::Nothing;
    }
    let call = number_of(key).filter(|_| key.first() == Some(&CALLS));
    match call.and_then(|seq| decode_call(seq, value).ok()) {
        Some(call) => says(call.header.traits),
        None => Says::Itself,
    }
}

/// Encodes a call.
pub(super) fn encode(call: &NewCall) -> Result<Encoded, StoreError> {
    seal_call(record_of(call), &call.body)
}

/// Encodes the header of a call whose body is in chunks already.
pub(super) fn encode_stored(call: &NewCall, body: StoredBody) -> Result<Draft, StoreError> {
    let too_large =
        || StoreError::TooLarge { what: "call", bytes: body.len, limit: u64::from(u32::MAX) };
    let record = CallRecord {
        body_len: body.len,
        body_crc: body.crc,
        chunks: body.chunks().ok_or_else(too_large)?,
        inline: &[],
        ..record_of(call)
    };
    record::seal(Kind::Call, &record, 256).ok_or_else(too_large)
}

fn record_of(call: &NewCall) -> CallRecord<'_> {
    let traceparent = call.traceparent.as_deref().filter(|text| text.len() <= TRACEPARENT_MAX);
    CallRecord {
        body_len: call.body.len() as u64,
        body_crc: crc32fast::hash(&call.body),
        inline: &call.body,
        traceparent,
        ..header_record(call.seq, &call.header, &call.label, &call.target)
    }
}

/// Encodes a stored call again under another sequence: an operator's requeue. Its marks stay behind.
pub(super) fn encode_again(
    call: &StoredCall,
    seq: u64,
    target: &Target,
    body: &Bytes,
) -> Result<Encoded, StoreError> {
    let record = CallRecord {
        body_len: call.body_len,
        body_crc: call.body_crc,
        inline: body,
        traceparent: call.traceparent.as_deref(),
        ..header_record(seq, &call.header, &call.label, target)
    };
    seal_call(record, body)
}

/// The record of a call without its body.
fn header_record<'a>(
    seq: u64,
    header: &CallHeader,
    label: &'a str,
    target: &'a Target,
) -> CallRecord<'a> {
    CallRecord {
        seq,
        op_id: header.op_id.to_u128(),
        digest: header.digest,
        uid: header.uid,
        namespace: "",
        lanes: to_stored(&header.lanes),
        label: cut(label, LABEL_MAX),
        target: target.as_str(),
        token: header.token.to_u8(),
        traits: header.traits.to_number(),
        accepted_at: header.accepted_at.get(),
        expires_at: None,
        traceparent: None,
        body_len: 0,
        body_crc: 0,
        chunks: 0,
        inline: &[],
    }
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

fn to_stored(lanes: &Lanes) -> StoredLanes {
    match lanes {
        Lanes::One(lane) => StoredLanes::One(lane.0),
        Lanes::None | Lanes::Many(_) => {
            StoredLanes::Many(lanes.as_slice().iter().map(|lane| lane.0).collect())
        }
        Lanes::All => StoredLanes::All,
    }
}

/// Decodes a call; `seq` is what its key says. Chunks and marks are not looked at.
pub(super) fn decode_call(seq: u64, value: &[u8]) -> Result<StoredCall, Unreadable> {
    let sealed = record::open(Kind::Call, value)?;
    stored(&header(seq, &sealed)?, value.len())
}

/// The call in a record, in a value of so many `bytes`.
pub(super) fn stored(record: &CallRecord<'_>, bytes: usize) -> Result<StoredCall, Unreadable> {
    let overhead = (record::OVERHEAD as u64 + 18) * u64::from(record.chunks);
    let outside = if record.chunks == 0 { 0 } else { record.body_len };
    Ok(StoredCall {
        seq: record.seq,
        header: header_of(record)?,
        label: record.label.into(),
        target: record.target.into(),
        traceparent: record.traceparent.map(str::to_owned),
        body_len: record.body_len,
        body_crc: record.body_crc,
        chunks: record.chunks,
        bytes: bytes as u64 + outside + overhead,
        first_sent_at: None,
        evidence: Bytes::new(),
        group: None,
        dead: None,
    })
}

/// In how many chunks a call's body is; `None` if its header cannot be read.
pub(super) fn chunks_of(seq: u64, value: &[u8]) -> Option<u32> {
    let sealed = record::open(Kind::Call, value).ok()?;
    header(seq, &sealed).ok().map(|record| record.chunks)
}

/// The header of a call; `seq` is what its key says.
pub(super) fn header<'s>(seq: u64, sealed: &'s Sealed<'_>) -> Result<CallRecord<'s>, Unreadable> {
    let record: CallRecord<'_> = sealed.read()?;
    if record.seq == seq {
        Ok(record)
    } else {
        Err(Unreadable::Damaged("contains another sequence than its key says"))
    }
}

/// The part of a body that is in the value of its header, and what the header says of the whole.
pub(super) struct Inline {
    pub(super) len: u64,
    pub(super) crc: u32,
}

/// The call as an open keeps it: a target that is equal to the `last` one shares its text, and a trace context is kept
/// only of a call that was recorded.
pub(super) fn decode_found(
    seq: u64,
    value: &[u8],
    last: &mut Target,
) -> Result<(FoundCall, Inline), Unreadable> {
    let sealed = record::open(Kind::Call, value)?;
    let record = header(seq, &sealed)?;
    if record.target != last.as_str() {
        *last = record.target.into();
    }
    let (of, body) = ((seq, header_of(&record)?), (record.body_len, record.chunks));
    let mut call = FoundCall::new(of, object_of(record.label), body, last.clone());
    let is_recorded = |text: &&str| SpanRef::parse(text).is_some_and(|span| span.sampled);
    if let Some(traceparent) = record.traceparent.filter(is_recorded) {
        call.marks_mut().traceparent = Some(traceparent.into());
    }
    Ok((call, Inline { len: record.inline.len() as u64, crc: record.body_crc }))
}

fn header_of(record: &CallRecord<'_>) -> Result<CallHeader, Unreadable> {
    let token =
        TokenKind::from_u8(record.token).ok_or(Unreadable::Damaged("token kind is unknown"))?;
    let lanes = match &record.lanes {
        StoredLanes::One(lane) => Lanes::One(LaneId(*lane)),
        StoredLanes::Many(many) => Lanes::new(many.iter().map(|lane| LaneId(*lane))),
        StoredLanes::All => Lanes::All,
    };
    Ok(CallHeader {
        op_id: OpId::from_u128(record.op_id),
        digest: record.digest,
        uid: record.uid,
        lanes,
        token,
        traits: Traits::from_number(record.traits),
        accepted_at: UnixMillis::new(record.accepted_at),
    })
}

/// Reads a call and its marks.
pub(super) fn read_call(db: &impl Tree, seq: u64) -> Result<StoredCall, StoreError> {
    let value = pack::call_value(db, seq).map_err(StoreError::read)?;
    let value = value.ok_or(StoreError::NotFound { seq })?;
    let mut call = decode_call(seq, &value).map_err(|why| StoreError::damaged(seq, &why))?;
    if let Some(note) = mark_under(db, key(SENDING, seq))? {
        call.noted(&note::decode(seq, &note).unwrap_or_default());
    }
    if let Some(mark) = mark_under(db, key(keys::DEAD, seq))? {
        call.dead = Some(Box::new(dead_letters::decode_or_undecodable(seq, &mark)));
    }
    Ok(call)
}

/// The note or mark under a key, if there is one that is not taken back.
fn mark_under(db: &impl Tree, key: [u8; 9]) -> Result<Option<sled::IVec>, StoreError> {
    let value = db.get(&key).map_err(StoreError::read)?;
    Ok(value.filter(|value| !record::is_void(value)))
}

/// Reads a call's body, whole and with its checksum verified.
pub(super) fn read_body<T: Tree>(
    reader: &mut Reader<'_, T>,
    seq: u64,
) -> Result<Bytes, StoreError> {
    let db = reader.db;
    let value = reader.value(seq).map_err(StoreError::read)?;
    let value = value.ok_or(StoreError::NotFound { seq })?;
    let damaged = |why| StoreError::damaged(seq, &why);
    let sealed = record::open(Kind::Call, &value).map_err(damaged)?;
    let header = header(seq, &sealed).map_err(damaged)?;
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
    with_chunk(seq, index, &chunk, take).map_err(|why| StoreError::damaged(seq, &why))
}

/// Hands the piece of a body in a chunk's value to `take`.
pub(super) fn with_chunk<R>(
    seq: u64,
    index: u32,
    value: &[u8],
    take: impl FnOnce(&[u8]) -> R,
) -> Result<R, Unreadable> {
    let sealed = record::open(Kind::Chunk, value)?;
    let record: ChunkRecord<'_> = sealed.read()?;
    if (record.seq, record.index) == (seq, index) {
        Ok(take(record.data))
    } else {
        Err(Unreadable::Damaged("contains another sequence than its key says"))
    }
}
