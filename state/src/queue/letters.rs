//! The store of dead letters (see the page of `dead.rs`), which knows those whose lanes were not written since.

use std::{collections::BTreeMap, ops::Deref};

use super::{Entry, left::Residues as InLanes};
use crate::units::Lanes;

/// The dead letters by sequence. They are read as a map, and changed by the methods here alone.
///
/// **Invariant:** `unwritten` names exactly those that are not [`written_since`](super::Details::written_since), in
/// their lanes. So what a write must tell costs what it tells, however many dead letters there are.
#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    all: BTreeMap<u64, Entry>,
    unwritten: InLanes,
}

impl Deref for DeadLetters {
    type Target = BTreeMap<u64, Entry>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl DeadLetters {
    pub(super) fn insert(&mut self, seq: u64, entry: Entry) {
        // In the place of one that was in other lanes.
        self.remove(seq);
        if !entry.details().written_since {
            self.unwritten.insert(seq, &entry.header.lanes);
        }
        self.all.insert(seq, entry);
    }

    pub(super) fn remove(&mut self, seq: u64) -> Option<Entry> {
        let entry = self.all.remove(&seq)?;
        self.unwritten.remove(seq, &entry.header.lanes);
        Some(entry)
    }

    /// `seq` was sent as one with the group `id`. Whether it is here.
    pub(super) fn join_group(&mut self, seq: u64, id: u64) -> bool {
        let Some(entry) = self.all.get_mut(&seq) else { return false };
        entry.details_mut().group = Some(id);
        true
    }

    /// Something is written to `lanes`.
    pub(super) fn written(&mut self, lanes: &Lanes) {
        if self.unwritten.is_empty() {
            return;
        }
        for seq in self.unwritten.meeting(lanes) {
            if let Some(entry) = self.all.get_mut(&seq) {
                entry.details_mut().written_since = true;
                self.unwritten.remove(seq, &entry.header.lanes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        store::{CallHeader, TokenKind, Traits},
        units::{LaneId, OpId, UnixMillis, object_of},
        write::WriteState,
    };

    fn letter(lanes: Lanes, written_since: bool) -> Entry {
        let header = CallHeader {
            op_id: OpId::from_u128(1),
            digest: 1,
            uid: 0,
            lanes,
            token: TokenKind::Absolute,
            traits: Traits::default(),
            accepted_at: UnixMillis::new(0),
        };
        let state = WriteState::fresh(header.token.repeat());
        let mut entry = Entry::new(header, object_of("k"), state, false, 100);
        entry.details_mut().written_since = written_since;
        entry
    }

    fn any_lanes() -> impl Strategy<Value = Lanes> {
        let few = prop::collection::vec((0_u64..6).prop_map(LaneId), 0..4);
        prop::option::weighted(0.85, few).prop_map(|few| few.map_or(Lanes::All, Lanes::new))
    }

    proptest! {
        /// Whatever comes, goes and is written: those are named that a walk along all of them would name, and only those
        /// that were not named yet are looked for.
        #[test]
        fn a_write_tells_whom_a_walk_along_all_of_them_would_tell(
            steps in prop::collection::vec((0_u64..12, 0..5, any_lanes(), any::<bool>()), 0..80),
        ) {
            let mut letters = DeadLetters::default();
            let mut plain: BTreeMap<u64, (Lanes, bool)> = BTreeMap::new();
            for (seq, verb, lanes, written) in steps {
                match verb {
                    0 | 1 => {
                        letters.insert(seq, letter(lanes.clone(), written));
                        plain.insert(seq, (lanes, written));
                    }
                    2 => {
                        let gone = letters.remove(seq).map(|entry| entry.details().written_since);
                        prop_assert_eq!(gone, plain.remove(&seq).map(|(_, written)| written));
                    }
                    3 => {
                        prop_assert_eq!(letters.join_group(seq, 1), plain.contains_key(&seq));
                    }
                    _ => {
                        letters.written(&lanes);
                        for (own, written) in plain.values_mut() {
                            *written |= own.meets(&lanes);
                        }
                    }
                }
                for seq in 0..12 {
                    let found = letters.get(&seq).map(|entry| entry.details().written_since);
                    prop_assert_eq!(found, plain.get(&seq).map(|(_, written)| *written));
                    prop_assert_eq!(letters.unwritten.contains(seq), found == Some(false));
                }
            }
        }
    }
}
