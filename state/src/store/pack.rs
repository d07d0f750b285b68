//! Packs: small calls of one commit that share a value, since sled writes much for each value.
//!
//! # Layout
//! A pack lies under `p` and the sequence of its first call, and holds the values of its calls one behind the other, at
//! most 4,096 bytes in all:
//!
//! ```text
//! p 17:  | envelope, call 17 | envelope, call 18 | envelope, call 21 | …
//! ```
//!
//! Each is the whole value that the call would have under a key of its own, with its own checksum. So a reader of the raw
//! log (`raw.rs`) finds the calls of a pack as it finds all others, and needs no word of packs; a flipped bit costs one
//! call; and whatever is written from the raw log (a rebuild, a downgrade, an export) is written without packs.
//!
//! # States of a call in a pack
//! ```text
//! packed ──remove──▶ its bit in the removal record (`ledger.rs`)
//!    └────replace, or settled after a crash──▶ a value under its own key, which counts before the pack's
//! ```
//! Notes and marks have keys of their own, as those of any call.
//!
//! # Invariants
//! 1. The sequences of a pack rise, and are above all that were written before it. So packs never overlap: the last
//!    one at or below a sequence is the only one that may hold it.
//! 2. A call in a pack is there unless it is below the head's floor, its removal is recorded, or its own key has a
//!    value.
//! 3. A pack goes in the commit in which its last call does, after the removals are recorded.
//! 4. A head whose store may hold packs bears format 3, and so does the mark: earlier versions refuse both.
//!
//! # What a crash leaves
//! | crash | the next open finds |
//! | --- | --- |
//! | before the sync of its commit | the whole pack or nothing of it; what is there is written again under keys of its own |
//! | within a removal | the calls, to be replayed again; or none of those whose removal record was written |
//! | between a removal record and the removal of the pack | a pack without a live call: swept |
//! | within a replacement | the call in the pack, or the one under its own key |

use std::iter;

use sled::IVec;

use super::{
    head::{self, AnyHead},
    keys::{self, CALLS, GONE, HEAD_KEY, PACKS},
    record::{self, Draft, GoneRecord, Kind, Unreadable, VALUE_MAX},
    seqs::{SeqSet, block_of},
    tree::Tree,
};

/// Calls that the next pack takes.
#[derive(Default)]
pub(super) struct Pack {
    calls: Vec<(u64, Draft)>,
    bytes: usize,
}

impl Pack {
    /// Whether it has room for a value of that many bytes.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        self.bytes + bytes <= VALUE_MAX
    }

    /// Takes a call above all that it holds.
    pub(super) fn add(&mut self, seq: u64, value: Draft) {
        self.bytes += value.len();
        self.calls.push((seq, value));
    }

    /// What it holds; it is empty then.
    pub(super) fn take(&mut self) -> Vec<(u64, Draft)> {
        self.bytes = 0;
        std::mem::take(&mut self.calls)
    }
}

/// The calls of a pack: sequence and value. It ends with the first that cannot be read.
pub(super) fn entries(value: &[u8]) -> impl Iterator<Item = Result<(u64, &[u8]), Unreadable>> {
    let mut rest = value;
    iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = entry(rest);
        let length = entry.as_ref().map_or(rest.len(), |(_, call)| call.len());
        rest = rest.get(length..).unwrap_or_default();
        Some(entry)
    })
}

fn entry(bytes: &[u8]) -> Result<(u64, &[u8]), Unreadable> {
    let sealed = record::peel(bytes)?;
    let damaged = Unreadable::Damaged("is no call of a pack");
    if sealed.kind != Kind::Call {
        return Err(damaged);
    }
    let seq = record::first_number(sealed.payload).ok_or_else(|| damaged.clone())?;
    Ok((seq, bytes.get(..sealed.length).ok_or(damaged)?))
}

/// The value of a call, under its own key or in a pack.
pub(super) fn call_value(db: &impl Tree, seq: u64) -> sled::Result<Option<IVec>> {
    let key = keys::key(CALLS, seq);
    if let Some(value) = db.get(&key)? {
        return Ok(Some(value));
    }
    if let Some((_, pack)) = db.at_or_below(&keys::key(PACKS, seq), PACKS)? {
        let found = entries(&pack).flatten().find(|(of, _)| *of == seq);
        if let Some((_, value)) = found
            && !is_gone(db, seq)?
        {
            return Ok(Some(value.into()));
        }
    }
    // It may have been given a value of its own meanwhile, and its pack removed.
    db.get(&key)
}

/// Whether a call that a pack still holds was removed.
fn is_gone(db: &impl Tree, seq: u64) -> sled::Result<bool> {
    let head = db.get(HEAD_KEY)?.and_then(|value| head::decode(&value).ok());
    if let Some(AnyHead::Vouching(head)) = head
        && seq < head.floor
    {
        return Ok(true);
    }
    let Some(value) = db.get(&keys::key(GONE, block_of(seq)))? else { return Ok(false) };
    let mut gone = SeqSet::default();
    if let Ok(record) = record::open::<GoneRecord>(Kind::Gone, &value) {
        gone.set(&record);
    }
    Ok(gone.contains(seq))
}
