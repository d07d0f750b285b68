//! What the store holds, as the committing thread knows it: from this the head is written.
//!
//! Every value that is written or removed passes through here, so that the head's digests, the removal records and
//! the floor cannot forget one.
//!
//! What is beside a call counts with it: a note or a mark that is there without its call, as a commit leaves it that was
//! cut short, is in no digest. So a head never vouches for what the plan of a raw log (`plan.rs`) does not count.
//!
//! # Removal records
//! A log keeps what was removed until the space is used again. So that a reader of the raw log can tell the removed
//! from the waiting, a bit in a record of its own (key `g`, one for each 1,024 sequences) says that a call is gone. It
//! is written in the commit of the removal, *before* the removal itself: whoever finds the removal finds the record.
//! Records below the floor say nothing new and are dropped; a rebuild, which leaves nothing removed behind, drops
//! them all.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    facts,
    head::{Class, Digests, Head, fact_hash},
    keys::{self, GONE},
    pack::Packs,
    record::{self, GoneRecord, Kind},
};
use crate::seqs::{SeqSet, block_of, first_of};

/// Bytes of a removal record, with its key.
pub(super) const GONE_BYTES: usize = 192;

/// What a value says to the ledger, besides what its key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// A header that took the place of another.
    Residue,
    /// A mark that is taken back.
    Nothing,
    /// What its key says.
    Itself,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Ledger {
    live: SeqSet,
    residues: SeqSet,
    notes: SeqSet,
    dead: SeqSet,
    facts: BTreeMap<Box<[u8]>, u64>,
    gone: SeqSet,
    pub(super) packs: Packs,
    /// The store may hold packs.
    pub(super) may_pack: bool,
    /// Calls beside which a note or a mark was written, be it one that takes another back.
    marked: SeqSet,
    digests: Digests,
    /// Blocks whose removal record is to be written with this commit.
    touched: BTreeSet<u64>,
}

impl Ledger {
    /// `key` was written by `commit`.
    pub(super) fn written(&mut self, key: &[u8], says: Says, commit: u64) {
        let Some(prefix) = key.first() else { return };
        let number = keys::number_of(key);
        match (*prefix, number) {
            (keys::CALLS, Some(seq)) => {
                self.packs.take(seq);
                self.set(Class::Calls, seq, true);
                self.set(Class::Residues, seq, says == Says::Residue);
                if self.gone.remove(seq) {
                    self.touched.insert(block_of(seq));
                }
            }
            (keys::SENDING, Some(seq)) => {
                self.marked.insert(seq);
                self.set(Class::Notes, seq, says == Says::Itself);
            }
            (keys::DEAD, Some(seq)) => {
                self.marked.insert(seq);
                self.set(Class::Dead, seq, says == Says::Itself);
            }
            (facts::PREFIX, _) => {
                let Some(name) = facts::name_of(key) else { return };
                if let Some(before) = self.facts.remove(key) {
                    self.digests.facts.take(fact_hash(name, before));
                }
                if says != Says::Nothing {
                    self.facts.insert(key.into(), commit);
                    self.digests.facts.add(fact_hash(name, commit));
                }
            }
            _ => {}
        }
    }

    /// `key` is removed.
    pub(super) fn removed(&mut self, key: &[u8]) {
        match (key.first().copied(), keys::number_of(key)) {
            (Some(keys::CALLS), Some(seq)) => {
                self.packs.take(seq);
                self.set(Class::Calls, seq, false);
                self.set(Class::Residues, seq, false);
                self.bury(seq);
            }
            (Some(keys::SENDING), Some(seq)) => self.set(Class::Notes, seq, false),
            (Some(keys::DEAD), Some(seq)) => self.set(Class::Dead, seq, false),
            _ => {}
        }
    }

    fn set(&mut self, class: Class, seq: u64, present: bool) {
        let set = match class {
            Class::Calls => &mut self.live,
            Class::Residues => &mut self.residues,
            Class::Notes => &mut self.notes,
            Class::Dead => &mut self.dead,
        };
        let changed = if present { set.insert(seq) } else { set.remove(seq) };
        if !changed {
            return;
        }
        if class == Class::Calls {
            self.count(Class::Calls, seq, present);
            let beside = [
                (Class::Residues, self.residues.contains(seq)),
                (Class::Notes, self.notes.contains(seq)),
                (Class::Dead, self.dead.contains(seq)),
            ];
            for (class, _) in beside.into_iter().filter(|(_, is_there)| *is_there) {
                self.count(class, seq, present);
            }
        } else if self.live.contains(seq) {
            self.count(class, seq, present);
        }
    }

    /// Counts a record in its digest, or no more.
    fn count(&mut self, class: Class, seq: u64, present: bool) {
        let (digest, hash) = (self.digests.of_mut(class), class.hash(seq));
        if present {
            digest.add(hash);
        } else {
            digest.take(hash);
        }
    }

    /// Whether a note or a mark may be stored beside the call; forgets that.
    pub(super) fn takes_marks(&mut self, seq: u64) -> bool {
        self.marked.remove(seq)
    }

    fn bury(&mut self, seq: u64) {
        if self.gone.insert(seq) {
            self.touched.insert(block_of(seq));
        }
    }

    /// Whether the call is there.
    pub(super) fn is_live(&self, seq: u64) -> bool {
        self.live.contains(seq)
    }

    /// Whether the mark or note of this key is there and not taken back.
    pub(super) fn holds(&self, key: &[u8]) -> bool {
        match (key.first().copied(), keys::number_of(key)) {
            (Some(keys::SENDING), Some(seq)) => self.notes.contains(seq),
            (Some(keys::DEAD), Some(seq)) => self.dead.contains(seq),
            _ => false,
        }
    }

    /// Whether the removal of the call is recorded.
    pub(super) fn is_gone(&self, seq: u64) -> bool {
        self.gone.contains(seq)
    }

    /// What a removal record says.
    pub(super) fn recorded(&mut self, record: &GoneRecord) {
        self.gone.set_bits(record.block, record.bits);
    }

    /// A call that was never completed is gone, as far as a reader of the raw log is concerned.
    pub(super) fn never_was(&mut self, seq: u64) {
        if !self.live.contains(seq) {
            self.bury(seq);
        }
    }

    /// Everything between a call and the floor that it is below, and that is not there, is gone: the records that
    /// said so were dropped.
    pub(super) fn lower_floor(&mut self, seq: u64, floor: u64) {
        for above in seq.saturating_add(1)..floor {
            self.never_was(above);
        }
        for below in first_of(block_of(seq))..seq {
            self.never_was(below);
        }
    }

    /// The removal record of a block is to be written with this commit.
    pub(super) fn touch(&mut self, block: u64) {
        self.touched.insert(block);
    }

    /// Removal records that are to be written with this commit: keys and values.
    pub(super) fn take_touched(&mut self, commit: u64) -> Vec<([u8; 9], Vec<u8>)> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        let value = |block| {
            let value = record::seal(
                Kind::Gone,
                &GoneRecord { block, bits: self.gone.bits(block) },
                GONE_BYTES,
            )?;
            Some((keys::key(GONE, block), value.stamp(commit)))
        };
        touched.filter_map(value).collect()
    }

    /// Whether writing `seq` off would touch a block that nothing has touched yet.
    pub(super) fn touches_anew(&self, seq: u64) -> bool {
        !self.touched.contains(&block_of(seq))
    }

    /// Blocks whose removal records a floor makes meaningless; they are forgotten here.
    pub(super) fn drop_below(&mut self, floor: u64) -> Vec<u64> {
        self.gone.drop_below(block_of(floor))
    }

    /// The head of a commit. `arriving` is the lowest sequence whose body arrives.
    pub(super) fn head(&self, commit: u64, last_seq: u64, arriving: Option<u64>) -> Head {
        let lowest = self.live.first().into_iter().chain(arriving).min();
        let floor = lowest.unwrap_or_else(|| last_seq.saturating_add(1));
        Head { commit, last_seq, floor, digests: self.digests, packed: self.may_pack }
    }

    pub(super) fn digests(&self) -> Digests {
        self.digests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beside_a_call_counts_with_it_whichever_comes_first() {
        let [call, note, dead] =
            [keys::CALLS, keys::SENDING, keys::DEAD].map(|prefix| keys::key(prefix, 7));
        let mut ledger = Ledger::default();
        ledger.written(&note, Says::Itself, 1);
        ledger.written(&dead, Says::Itself, 1);
        assert_eq!(ledger.digests(), Digests::default(), "they lack their call");
        ledger.written(&call, Says::Residue, 1);
        let Digests { calls, residues, notes, dead: marks, .. } = ledger.digests();
        assert_eq!([calls, residues, notes, marks].map(|sum| sum.count), [1; 4]);
        ledger.removed(&call);
        assert_eq!(ledger.digests(), Digests::default());
        ledger.removed(&note);
        ledger.written(&dead, Says::Nothing, 2);
        assert_eq!(ledger.digests(), Digests::default());
    }
}
