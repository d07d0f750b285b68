//! The calls that a scan has found. They come in rising order but for those that are in packs.

use crate::{seqs::SeqSet, store::calls::FoundCall};

/// See the [module](self). A million calls are here for a moment: one vector takes half of the memory that a map and the
/// vector made of it would.
#[derive(Default)]
pub(super) struct Held {
    calls: Vec<FoundCall>,
    /// A call came behind one of a higher sequence.
    is_mixed: bool,
    removed: SeqSet,
}

impl Held {
    /// Adds a call. One that came earlier with its sequence is replaced once they are [in order](Self::arrange).
    pub(super) fn push(&mut self, call: FoundCall) {
        self.is_mixed |= self.calls.last().is_some_and(|last| last.seq >= call.seq);
        self.calls.push(call);
    }

    /// Puts the calls in order; to be called before any is looked for.
    pub(super) fn arrange(&mut self) {
        if !std::mem::take(&mut self.is_mixed) {
            return;
        }
        // Stable: of two with a sequence the later one stays.
        self.calls.sort_by_key(|call| call.seq);
        self.calls.dedup_by(|later, earlier| {
            let is_same = later.seq == earlier.seq;
            if is_same {
                std::mem::swap(later, earlier);
            }
            is_same
        });
    }

    fn index_of(&self, seq: u64) -> Option<usize> {
        debug_assert!(!self.is_mixed, "the calls are in order");
        let index = self.calls.binary_search_by_key(&seq, |call| call.seq).ok()?;
        (!self.removed.contains(seq)).then_some(index)
    }

    pub(super) fn get(&self, seq: u64) -> Option<&FoundCall> {
        self.calls.get(self.index_of(seq)?)
    }

    pub(super) fn get_mut(&mut self, seq: u64) -> Option<&mut FoundCall> {
        let index = self.index_of(seq)?;
        self.calls.get_mut(index)
    }

    /// Takes a call out; returns it as it was.
    pub(super) fn remove(&mut self, seq: u64) -> Option<&FoundCall> {
        let index = self.index_of(seq)?;
        self.removed.insert(seq);
        self.calls.get(index)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &FoundCall> {
        self.calls.iter().filter(|call| !self.removed.contains(call.seq))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut FoundCall> {
        let removed = &self.removed;
        self.calls.iter_mut().filter(|call| !removed.contains(call.seq))
    }

    /// Those that are left, in rising order.
    pub(super) fn into_vec(mut self) -> Vec<FoundCall> {
        if !self.removed.is_empty() {
            self.calls.retain(|call| !self.removed.contains(call.seq));
        }
        self.calls
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        store::{CallHeader, TokenKind, Traits},
        units::{LaneId, Lanes, OpId, UnixMillis},
    };

    fn stored(seq: u64, body_len: u64) -> FoundCall {
        let header = CallHeader {
            op_id: OpId::from_u128(1),
            digest: 0,
            uid: 0,
            lanes: Lanes::One(LaneId(1)),
            token: TokenKind::Absolute,
            traits: Traits::default(),
            accepted_at: UnixMillis::default(),
        };
        FoundCall::new((seq, header), 0, (body_len, 0), "redis://localhost:6379/0".into())
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(
            found in prop::collection::vec((0_u64..40, 0_u64..1_000), 0..60),
            removed in prop::collection::vec(0_u64..40, 0..10),
        ) {
            let (mut held, mut plain) = (Held::default(), BTreeMap::new());
            for (seq, bytes) in found {
                held.push(stored(seq, bytes));
                plain.insert(seq, bytes);
            }
            held.arrange();
            for seq in removed {
                prop_assert_eq!(held.remove(seq).map(|call| call.body_len), plain.remove(&seq));
            }
            for seq in 0..40 {
                prop_assert_eq!(held.get(seq).map(|call| call.body_len), plain.get(&seq).copied());
                if let Some(call) = held.get_mut(seq) {
                    call.body_len += 1;
                }
            }
            held.values_mut().for_each(|call| call.body_len += 1);
            for bytes in plain.values_mut() {
                // Through each of both ways.
                *bytes += 2;
            }
            let expected: Vec<_> = plain.into_iter().collect();
            let pairs = |call: &FoundCall| (call.seq, call.body_len);
            prop_assert_eq!(held.values().map(pairs).collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(held.into_vec().iter().map(pairs).collect::<Vec<_>>(), expected);
        }
    }
}
