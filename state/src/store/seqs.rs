//! Sets of sequences, kept in blocks of bits: waiting calls are close together.

use std::collections::BTreeMap;

use super::record::GoneRecord;

/// Sequences per block.
const BLOCK: u64 = 1024;

/// The block of a sequence.
pub(super) fn block_of(seq: u64) -> u64 {
    seq / BLOCK
}

/// The first sequence of a block.
pub(super) fn first_of(block: u64) -> u64 {
    block.saturating_mul(BLOCK)
}

/// A set of sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SeqSet(BTreeMap<u64, [u64; 16]>);

impl SeqSet {
    /// Whether `seq` was not in it before.
    pub(super) fn insert(&mut self, seq: u64) -> bool {
        let (block, word, bit) = place(seq);
        let Some(word) = self.0.entry(block).or_default().get_mut(word) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Whether `seq` was in it.
    pub(super) fn remove(&mut self, seq: u64) -> bool {
        let (block, at, bit) = place(seq);
        let Some(bits) = self.0.get_mut(&block) else { return false };
        let Some(word) = bits.get_mut(at) else { return false };
        let was_there = *word & bit != 0;
        *word &= !bit;
        if bits.iter().all(|word| *word == 0) {
            self.0.remove(&block);
        }
        was_there
    }

    pub(super) fn contains(&self, seq: u64) -> bool {
        let (block, at, bit) = place(seq);
        self.0.get(&block).and_then(|bits| bits.get(at)).is_some_and(|word| word & bit != 0)
    }

    /// The lowest of them.
    pub(super) fn first(&self) -> Option<u64> {
        let (block, bits) = self.0.first_key_value()?;
        let (at, word) = bits.iter().enumerate().find(|(_, word)| **word != 0)?;
        Some(first_of(*block) + at as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// All of them, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(|(block, bits)| {
            let first = first_of(*block);
            (0..BLOCK).filter_map(move |at| {
                let (_, word, bit) = place(at);
                bits.get(word).is_some_and(|word| word & bit != 0).then_some(first + at)
            })
        })
    }

    /// The record of one block.
    pub(super) fn record(&self, block: u64) -> GoneRecord {
        GoneRecord { block, bits: self.0.get(&block).copied().unwrap_or_default() }
    }

    /// Takes over what a record says of its block.
    pub(super) fn set(&mut self, record: &GoneRecord) {
        if record.bits.iter().any(|word| *word != 0) {
            self.0.insert(record.block, record.bits);
        } else {
            self.0.remove(&record.block);
        }
    }

    /// Forgets whole blocks below `block`; returns which.
    pub(super) fn drop_below(&mut self, block: u64) -> Vec<u64> {
        let kept = self.0.split_off(&block);
        std::mem::replace(&mut self.0, kept).into_keys().collect()
    }
}

fn place(seq: u64) -> (u64, usize, u64) {
    let within = seq % BLOCK;
    (block_of(seq), usize::try_from(within / 64).unwrap_or_default(), 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0..5_000_u64), 0..300)) {
            let (mut set, mut model) = (SeqSet::default(), BTreeSet::new());
            for (add, seq) in steps {
                if add {
                    prop_assert_eq!(set.insert(seq), model.insert(seq));
                } else {
                    prop_assert_eq!(set.remove(seq), model.remove(&seq));
                }
                prop_assert_eq!(set.contains(seq), model.contains(&seq));
            }
            prop_assert_eq!(set.first(), model.first().copied());
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            let mut other = SeqSet::default();
            for block in 0..5 {
                other.set(&set.record(block));
            }
            prop_assert_eq!(&other, &set);
            set.drop_below(2);
            prop_assert!(set.iter().eq(model.range(2_048..).copied()));
        }
    }
}
