//! The residues, and their positions.

use std::collections::BTreeSet;

use crate::units::{LaneId, Lanes};

/// Calls that are left to do of others; see the page of [`queue`](super).
#[derive(Clone, Debug, Default)]
pub(super) struct Residues {
    all: BTreeSet<u64>,
    in_lanes: BTreeSet<(LaneId, u64)>,
    /// Those of every lane.
    barriers: BTreeSet<u64>,
}

impl Residues {
    pub(super) fn insert(&mut self, seq: u64, lanes: &Lanes) {
        self.all.insert(seq);
        if lanes.is_all() {
            self.barriers.insert(seq);
        }
        self.in_lanes.extend(lanes.as_slice().iter().map(|lane| (*lane, seq)));
    }

    /// Takes `seq` out, which was in `lanes`.
    pub(super) fn remove(&mut self, seq: u64, lanes: &Lanes) {
        if !self.all.remove(&seq) {
            return;
        }
        self.barriers.remove(&seq);
        for lane in lanes.as_slice() {
            self.in_lanes.remove(&(*lane, seq));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn contains(&self, seq: u64) -> bool {
        self.all.contains(&seq)
    }

    /// Those in any of `lanes`, in order. Costs what it finds.
    pub(super) fn meeting(&self, lanes: &Lanes) -> BTreeSet<u64> {
        if lanes.is_all() {
            return self.all.clone();
        }
        let own = lanes.as_slice().iter().flat_map(|lane| {
            self.in_lanes.range((*lane, 0)..=(*lane, u64::MAX)).map(|(_, seq)| *seq)
        });
        own.chain(self.barriers.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_in_its_lanes_and_nowhere_else() {
        let of = |lanes: &[u64]| Lanes::new(lanes.iter().map(|lane| LaneId(*lane)));
        let mut residues = Residues::default();
        residues.insert(1, &of(&[1]));
        residues.insert(2, &of(&[1, 2]));
        residues.insert(3, &Lanes::All);
        residues.insert(4, &of(&[9]));
        assert!((1..=4).all(|seq| residues.contains(seq)) && !residues.contains(5));
        let found = |residues: &Residues, lanes: &Lanes| -> Vec<u64> {
            residues.meeting(lanes).into_iter().collect()
        };
        assert_eq!(found(&residues, &of(&[1])), [1, 2, 3]);
        assert_eq!(found(&residues, &of(&[2, 9])), [2, 3, 4]);
        assert_eq!(found(&residues, &of(&[5])), [3]);
        assert_eq!(found(&residues, &Lanes::All), [1, 2, 3, 4]);
        residues.remove(2, &of(&[1, 2]));
        residues.remove(3, &Lanes::All);
        residues.remove(7, &of(&[1]));
        assert!(residues.contains(1) && !residues.contains(2) && !residues.contains(3));
        assert_eq!((found(&residues, &of(&[1])), found(&residues, &of(&[2]))), (vec![1], vec![]));
        residues.remove(1, &of(&[1]));
        residues.remove(4, &of(&[9]));
        assert!(residues.is_empty() && residues.in_lanes.is_empty());
    }
}
