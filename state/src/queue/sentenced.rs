//! Calls with a verdict, for which there was no room among the dead letters.

use std::collections::{BTreeMap, BTreeSet};

/// The bytes for which each of them needs room, together with those that were sent with it as one.
///
/// **Invariant:** `by_size` has exactly what `sizes` has. So the largest costs a look, however many there are.
#[derive(Debug, Default)]
pub(super) struct Sentenced {
    sizes: BTreeMap<u64, u64>,
    by_size: BTreeSet<(u64, u64)>,
}

impl Sentenced {
    pub(super) fn insert(&mut self, seq: u64, bytes: u64) {
        self.remove(seq);
        self.sizes.insert(seq, bytes);
        self.by_size.insert((bytes, seq));
    }

    pub(super) fn remove(&mut self, seq: u64) {
        if let Some(bytes) = self.sizes.remove(&seq) {
            self.by_size.remove(&(bytes, seq));
        }
    }

    /// The bytes of the one that needs most room.
    pub(super) fn largest(&self) -> Option<u64> {
        self.by_size.last().map(|(bytes, _)| *bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_is_the_one_that_a_walk_would_find(
            steps in prop::collection::vec((any::<bool>(), 0_u64..8, 0_u64..5), 0..60),
        ) {
            let (mut sentenced, mut plain) = (Sentenced::default(), BTreeMap::new());
            for (comes, seq, bytes) in steps {
                if comes {
                    sentenced.insert(seq, bytes);
                    plain.insert(seq, bytes);
                } else {
                    sentenced.remove(seq);
                    plain.remove(&seq);
                }
                prop_assert_eq!(sentenced.largest(), plain.values().copied().max());
                prop_assert_eq!(sentenced.by_size.len(), plain.len());
            }
        }
    }
}
