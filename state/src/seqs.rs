//! Sets of sequences, kept in blocks of bits: waiting calls are close together.

use std::{cmp::Ordering, collections::BTreeMap};

/// Sequences per block.
const BLOCK: u64 = 1024;

/// The bits of a block, the first sequence in the lowest bit of the first word.
pub(crate) type Bits = [u64; 16];

/// The block of a sequence.
pub(crate) fn block_of(seq: u64) -> u64 {
    seq / BLOCK
}

/// The first sequence of a block.
pub(crate) fn first_of(block: u64) -> u64 {
    block.saturating_mul(BLOCK)
}

/// A set of sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SeqSet {
    blocks: BTreeMap<u64, Bits>,
    len: usize,
}

fn count(bits: &Bits) -> usize {
    bits.iter().map(|word| word.count_ones() as usize).sum()
}

impl SeqSet {
    /// Whether `seq` was not in it before.
    pub(crate) fn insert(&mut self, seq: u64) -> bool {
        let (block, word, bit) = place(seq);
        let Some(word) = self.blocks.entry(block).or_default().get_mut(word) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        self.len += usize::from(is_new);
        is_new
    }

    /// Whether `seq` was in it.
    pub(crate) fn remove(&mut self, seq: u64) -> bool {
        let (block, at, bit) = place(seq);
        let Some(bits) = self.blocks.get_mut(&block) else { return false };
        let Some(word) = bits.get_mut(at) else { return false };
        let was_there = *word & bit != 0;
        *word &= !bit;
        self.len -= usize::from(was_there);
        if bits.iter().all(|word| *word == 0) {
            self.blocks.remove(&block);
        }
        was_there
    }

    pub(crate) fn contains(&self, seq: u64) -> bool {
        let (block, at, bit) = place(seq);
        self.blocks.get(&block).and_then(|bits| bits.get(at)).is_some_and(|word| word & bit != 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn remove_all<'a>(&mut self, seqs: impl IntoIterator<Item = &'a u64>) {
        for seq in seqs {
            self.remove(*seq);
        }
    }

    /// The lowest of them.
    pub(crate) fn first(&self) -> Option<u64> {
        self.iter().next()
    }

    /// All of them, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> {
        self.iter_from(0)
    }

    /// Those from `seq` on, ascending.
    pub(crate) fn iter_from(&self, seq: u64) -> impl Iterator<Item = u64> {
        let (from, at, bit) = place(seq);
        self.blocks.range(from..).flat_map(move |(block, bits)| {
            let first = first_of(*block);
            let words = (0_u64..).zip(bits).map(move |(index, word)| {
                let before = match usize::try_from(index).unwrap_or_default().cmp(&at) {
                    _ if *block > from => 0,
                    Ordering::Less => u64::MAX,
                    Ordering::Equal => bit - 1,
                    Ordering::Greater => 0,
                };
                (first + index * 64, word & !before)
            });
            words.flat_map(|(first, word)| ones(word).map(move |bit| first + bit))
        })
    }

    /// The bits of one block.
    pub(crate) fn bits(&self, block: u64) -> Bits {
        self.blocks.get(&block).copied().unwrap_or_default()
    }

    /// Takes over the bits of one block.
    pub(crate) fn set_bits(&mut self, block: u64, bits: Bits) {
        let is_empty = count(&bits) == 0;
        let before =
            if is_empty { self.blocks.remove(&block) } else { self.blocks.insert(block, bits) };
        self.len = self.len + count(&bits) - before.as_ref().map_or(0, count);
    }

    /// Forgets whole blocks below `block`; returns which.
    pub(crate) fn drop_below(&mut self, block: u64) -> Vec<u64> {
        let kept = self.blocks.split_off(&block);
        let dropped = std::mem::replace(&mut self.blocks, kept);
        self.len -= dropped.values().map(count).sum::<usize>();
        dropped.into_keys().collect()
    }
}

impl Extend<u64> for SeqSet {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, seqs: I) {
        for seq in seqs {
            self.insert(seq);
        }
    }
}

impl FromIterator<u64> for SeqSet {
    fn from_iter<I: IntoIterator<Item = u64>>(seqs: I) -> Self {
        let mut set = Self::default();
        set.extend(seqs);
        set
    }
}

/// The positions of the bits that are set, ascending.
fn ones(mut word: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| u64::from(word.trailing_zeros()))?;
        word &= word - 1;
        Some(bit)
    })
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
        fn it_is_a_set(
            steps in prop::collection::vec((any::<bool>(), 0..5_000_u64), 0..300),
            from in 0..5_100_u64,
        ) {
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
            prop_assert!(set.iter_from(from).eq(model.range(from..).copied()));
            prop_assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
            let mut other = SeqSet::default();
            for block in 0..5 {
                other.set_bits(block, set.bits(block));
            }
            prop_assert_eq!(&other, &set);
            set.drop_below(2);
            prop_assert!(set.iter().eq(model.range(2_048..).copied()));
            model = model.split_off(&2_048);
            while let Some(first) = model.pop_first() {
                prop_assert_eq!(set.first(), Some(first));
                set.remove(first);
            }
            prop_assert_eq!((set.first(), set.is_empty()), (None, true));
        }
    }
}
