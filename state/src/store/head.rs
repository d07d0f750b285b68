//! The head: one record, rewritten by every commit, that vouches for all that the store holds.
//!
//! Besides the commit number and the last sequence it has, for each class of live records, their count and the
//! sum of a hash of each: a digest that knows no order, so that it is kept up by adding and subtracting, and whose
//! difference to what was found names what is missing, if that is little. The mark holds a copy.
//!
//! | class | what is hashed | what is live |
//! | --- | --- | --- |
//! | calls | the sequence | every header that is not removed, dead letters included |
//! | residues | the sequence | headers that took the place of another of their sequence |
//! | notes | the sequence | notes of sending that are not taken back, beside a live call |
//! | dead | the sequence | dead-letter marks that are not taken back, beside a live call |
//! | facts | the name and the commit that wrote it | every fact |
//!
//! Chunks need no digest: a header says how many its body has, and holds their checksum. History is kept as far as
//! it can be read.

use bincode::{Decode, Encode};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::record::{self, FIRST, Kind, PACKED, Unreadable};

/// A count and a sum of hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Sum {
    pub(super) count: u64,
    pub(super) sum: u64,
}

impl Sum {
    pub(super) fn add(&mut self, hash: u64) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash);
    }

    pub(super) fn take(&mut self, hash: u64) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash);
    }
}

/// A class of records that a digest is kept of, by sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Calls = 1,
    Residues = 2,
    Notes = 3,
    Dead = 4,
}

impl Class {
    /// The hash of one record.
    pub(super) fn hash(self, seq: u64) -> u64 {
        xxh3_64_with_seed(&seq.to_le_bytes(), self as u64)
    }
}

/// The hash of a fact.
pub(super) fn fact_hash(name: &str, commit: u64) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), commit)
}

/// What the head says of each class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Digests {
    pub(super) calls: Sum,
    pub(super) residues: Sum,
    pub(super) notes: Sum,
    pub(super) dead: Sum,
    pub(super) facts: Sum,
}

impl Digests {
    pub(super) fn of_mut(&mut self, class: Class) -> &mut Sum {
        match class {
            Class::Calls => &mut self.calls,
            Class::Residues => &mut self.residues,
            Class::Notes => &mut self.notes,
            Class::Dead => &mut self.dead,
        }
    }
}

/// The head of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Number of the commit.
    pub(super) commit: u64,
    /// The highest sequence ever given out.
    pub(super) last_seq: u64,
    /// Every call below this sequence is gone.
    pub(super) floor: u64,
    /// What is live.
    pub(super) digests: Digests,
    /// The store may hold packs (`pack.rs`): it is said by the format of the head's envelope.
    pub(super) packed: bool,
}

/// A head as it is stored.
#[derive(Clone, Copy, Debug, Encode, Decode)]
struct HeadRecord {
    commit: u64,
    last_seq: u64,
    floor: u64,
    digests: Digests,
}

/// The head that the first format wrote: it vouched for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct FirstHead {
    pub(super) commit: u64,
    pub(super) last_seq: u64,
}

/// A head, as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnyHead {
    /// Of the first format.
    First(FirstHead),
    /// Of this format.
    Vouching(Head),
}

/// The value of the head.
pub(super) fn encode(head: &Head) -> Option<Vec<u8>> {
    let Head { commit, last_seq, floor, digests, packed } = *head;
    let record = HeadRecord { commit, last_seq, floor, digests };
    let seal = if packed { record::seal_packed } else { record::seal };
    seal(Kind::Head, &record, 96).map(|draft| draft.stamp(commit))
}

/// The head in a value.
pub(super) fn decode(value: &[u8]) -> Result<AnyHead, Unreadable> {
    let sealed = record::peel(value)?;
    if sealed.kind != Kind::Head {
        return Err(Unreadable::Damaged("contains another kind of record than its key says"));
    }
    if sealed.format == FIRST {
        return sealed.read().map(AnyHead::First);
    }
    let HeadRecord { commit, last_seq, floor, digests } = sealed.read()?;
    let packed = sealed.format == PACKED;
    Ok(AnyHead::Vouching(Head { commit, last_seq, floor, digests, packed }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_and_its_sums_know_no_order() {
        let mut a = Sum::default();
        let mut b = Sum::default();
        for seq in [3, 1, 2] {
            a.add(Class::Calls.hash(seq));
        }
        for seq in [2, 9, 3, 1] {
            b.add(Class::Calls.hash(seq));
        }
        b.take(Class::Calls.hash(9));
        assert_eq!(a, b);
        let digests = Digests { calls: a, ..Digests::default() };
        for packed in [false, true] {
            let head = Head { commit: u64::MAX, last_seq: 9, floor: 1, digests, packed };
            let value = encode(&head).unwrap();
            assert_eq!(decode(&value).unwrap(), AnyHead::Vouching(head));
            assert_eq!(record::peel(&value).unwrap().format, if packed { 3 } else { 2 });
        }
    }

    #[test]
    fn classes_hash_the_same_sequence_differently() {
        let all = [Class::Calls, Class::Residues, Class::Notes, Class::Dead].map(|it| it.hash(7));
        assert!(all.iter().enumerate().all(|(at, hash)| !all[..at].contains(hash)));
        assert_ne!(fact_hash("a", 1), fact_hash("a", 2));
    }
}
