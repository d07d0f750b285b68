//! Packs: small calls of one commit that share a value, since sled writes much for each value.
//!
//! # Layout
//! A pack lies under `p` and its number, and holds the values of its calls one behind the other, at most 4,096 bytes
//! in all. Packs are numbered in the order in which they are written:
//!
//! ```text
//! p 40:  | envelope, call 17 | envelope, call 18 | envelope, call 21 | …
//! p 41:  nothing yet
//! ```
//!
//! Each is the whole value that the call would have under a key of its own, with its own checksum. So a reader of the raw
//! log (`raw.rs`) finds the calls of a pack as it finds all others, and needs no word of packs; a flipped bit costs one
//! call; and whatever is written from the raw log (a rebuild, a downgrade, an export) is written without packs. Which
//! call is in which pack is known in memory alone (`places.rs`): an open reads all packs anyway.
//!
//! # Keys made ahead
//! sled keeps up to 16 values in a leaf, and writes the whole leaf again when it splits and after every tenth change
//! (its `node.rs` and `pagecache/constants.rs`). So a value that is written in the order of the keys is written four
//! times. The keys of the next packs are made ahead, with nothing under them: leaves are split while what they hold is
//! tiny, into leaves of nine keys. Nine packs, one change each, then fill a leaf that is never written as a whole. Of
//! packs of 4,000 bytes 1.1 to 1.3 bytes are written for each byte, instead of 4.1 to 4.3. The first keys are never
//! filled: they keep packs out of the leaf of the head, which changes with every commit.
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
//!    one that begins at or below a sequence is the only one that may hold it.
//! 2. A call in a pack is there unless it is below the head's floor, its removal is recorded, or its own key has a
//!    value.
//! 3. A pack goes in the commit in which its last call does, after the removals are recorded.
//! 4. A head whose store may hold packs bears format 3, and so does the mark: earlier versions refuse both.
//! 5. A number is never used twice: what is under a key is the one pack of that number, or nothing.
//!
//! # What a crash leaves
//! | crash | the next open finds |
//! | --- | --- |
//! | before the sync of its commit | the whole pack or nothing of it; what is there is written again under keys of its own |
//! | within a removal | the calls, to be replayed again; or none of those whose removal record was written |
//! | between a removal record and the removal of the pack | a pack without a live call: swept |
//! | within a replacement | the call in the pack, or the one under its own key |
//! | after keys were made ahead | keys with nothing under them: the next packs', or swept if they are below one that is there |

use std::{
    iter,
    ops::{Deref, Range},
};

use sled::IVec;

use super::{
    head::{self, AnyHead},
    keys::{self, CALLS, GONE, HEAD_KEY, PACKS},
    places::Places,
    record::{self, Draft, GoneRecord, Kind, Unreadable, VALUE_MAX},
    tree::Tree,
};
use crate::seqs::{SeqSet, block_of};

/// Keys that are never filled.
const FENCE: u64 = 16;
/// The fewest keys that are there when a pack is written, besides its own: more than a leaf has.
const AHEAD_MIN: u64 = 32;
/// The keys that are there after more were made.
const AHEAD: u64 = 96;

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

/// The packs of a store, as the committing thread knows them.
#[derive(Debug)]
pub(super) struct Packs {
    /// Calls whose value is a pack's.
    calls: SeqSet,
    pub(super) places: Places,
    /// Packs that no call is left in, and keys that no pack will have.
    emptied: Vec<u64>,
    /// The number of the next pack.
    next: u64,
    /// The keys from the next pack's on, below this one, are there.
    ahead: u64,
    /// Keys with nothing under them that a scan has seen.
    empty: SeqSet,
}

impl Default for Packs {
    fn default() -> Self {
        Self {
            calls: SeqSet::default(),
            places: Places::default(),
            emptied: Vec::new(),
            next: FENCE,
            ahead: 0,
            empty: SeqSet::default(),
        }
    }
}

impl Packs {
    /// Whether the call's value is a pack's.
    pub(super) fn holds(&self, seq: u64) -> bool {
        self.calls.contains(seq)
    }

    /// The calls whose values are packs'.
    pub(super) fn calls(&self) -> impl Iterator<Item = u64> {
        self.calls.iter()
    }

    /// The number of the next pack, and the keys that are to be made before it is written.
    pub(super) fn begin(&mut self) -> (u64, Range<u64>) {
        let number = self.next;
        self.next += 1;
        let from = self.ahead;
        if from < self.next + AHEAD_MIN {
            self.ahead = self.next + AHEAD;
        }
        (number, from..self.ahead)
    }

    /// A pack holds these calls, which are there; ascending.
    pub(super) fn put(&mut self, number: u64, seqs: &[u64]) {
        self.next = self.next.max(number + 1);
        self.ahead = self.ahead.max(self.next);
        let Some(first) = seqs.first() else {
            self.emptied.push(number);
            return;
        };
        for seq in seqs {
            self.calls.insert(*seq);
        }
        self.places.put(*first, number, seqs.len() as u64);
    }

    /// A scan has seen a key with nothing under it.
    pub(super) fn is_ahead(&mut self, number: u64) {
        self.ahead = self.ahead.max(number + 1);
        self.empty.insert(number);
    }

    /// The call is not its pack's any more.
    pub(super) fn take(&mut self, seq: u64) {
        if !self.calls.remove(seq) {
            return;
        }
        if let Some(number) = self.places.take(seq) {
            self.emptied.push(number);
        }
    }

    /// Keys that are to be removed.
    pub(super) fn take_emptied(&mut self) -> Vec<IVec> {
        let key = |number| IVec::from(&keys::key(PACKS, number));
        std::mem::take(&mut self.emptied).into_iter().map(key).collect()
    }

    /// A scan has seen all.
    pub(super) fn found(&mut self) {
        let empty = std::mem::take(&mut self.empty);
        if let Some(first) = empty.iter().find(|number| *number >= self.next) {
            self.next = first;
        }
        let passed = empty.iter().filter(|number| (FENCE..self.next).contains(number));
        self.emptied.extend(passed);
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
    let damaged = Unreadable::Damaged("is not a call of a pack");
    if sealed.kind != Kind::Call {
        return Err(damaged);
    }
    let seq = record::first_number(&sealed.payload).ok_or_else(|| damaged.clone())?;
    Ok((seq, bytes.get(..sealed.length).ok_or(damaged)?))
}

/// The value of a call, under its own key or in a pack.
pub(super) fn call_value(db: &impl Tree, seq: u64) -> sled::Result<Option<IVec>> {
    let mut reader = Reader::new(db);
    Ok(reader.value(seq)?.map(|value| match value {
        Value::Own(value) => value,
        Value::Packed(value) => value.into(),
    }))
}

/// Reads calls one after the other. The pack that the last one was in, and what says of removals there, are read once;
/// so a call that is removed while its neighbours are read may still be found.
pub(super) struct Reader<'d, T> {
    pub(super) db: &'d T,
    pack: IVec,
    /// Its number, and where its calls are in it.
    number: Option<u64>,
    calls: Vec<(u64, Range<usize>)>,
    gone: Option<Gone>,
}

/// A call's value.
pub(super) enum Value<'r> {
    Own(IVec),
    Packed(&'r [u8]),
}

impl Deref for Value<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(value) => value,
            Self::Packed(value) => value,
        }
    }
}

impl<'d, T: Tree> Reader<'d, T> {
    pub(super) fn new(db: &'d T) -> Self {
        Self { db, pack: IVec::default(), number: None, calls: Vec::new(), gone: None }
    }

    pub(super) fn value(&mut self, seq: u64) -> sled::Result<Option<Value<'_>>> {
        let key = keys::key(CALLS, seq);
        if let Some(value) = self.db.get(&key)? {
            return Ok(Some(Value::Own(value)));
        }
        if let Some(number) = self.db.pack_of(seq) {
            self.turn_to(number)?;
            let found = self.calls.binary_search_by_key(&seq, |(of, _)| *of).ok();
            if let Some((_, at)) = found.and_then(|found| self.calls.get(found)).cloned()
                && !self.is_gone(seq)?
            {
                return Ok(self.pack.get(at).map(Value::Packed));
            }
        }
        // It may have been given a value of its own meanwhile, and its pack removed.
        Ok(self.db.get(&key)?.map(Value::Own))
    }

    fn turn_to(&mut self, number: u64) -> sled::Result<()> {
        if self.number == Some(number) {
            return Ok(());
        }
        (self.pack, self.number) =
            (self.db.get(&keys::key(PACKS, number))?.unwrap_or_default(), Some(number));
        self.calls.clear();
        let mut from = 0;
        for (seq, value) in entries(&self.pack).flatten() {
            self.calls.push((seq, from..from + value.len()));
            from += value.len();
        }
        Ok(())
    }

    /// Whether a call that a pack still holds was removed.
    fn is_gone(&mut self, seq: u64) -> sled::Result<bool> {
        let block = block_of(seq);
        let gone = match self.gone.take() {
            Some(gone) if gone.block == block => gone,
            _ => Gone::read(self.db, block)?,
        };
        let is_gone = seq < gone.floor || gone.seqs.contains(seq);
        self.gone = Some(gone);
        Ok(is_gone)
    }
}

/// What is gone of a block of sequences.
struct Gone {
    block: u64,
    floor: u64,
    seqs: SeqSet,
}

impl Gone {
    fn read(db: &impl Tree, block: u64) -> sled::Result<Self> {
        let head = db.get(HEAD_KEY)?.and_then(|value| head::decode(&value).ok());
        let floor = match head {
            Some(AnyHead::Vouching(head)) => head.floor,
            _ => 0,
        };
        let mut seqs = SeqSet::default();
        if let Some(value) = db.get(&keys::key(GONE, block))?
            && let Ok(record) =
                record::open(Kind::Gone, &value).and_then(|it| it.read::<GoneRecord>())
        {
            seqs.set_bits(record.block, record.bits);
        }
        Ok(Self { block, floor, seqs })
    }
}
