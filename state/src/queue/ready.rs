//! The calls that may go on the wire, and which of them go together.

use std::collections::BTreeSet;

use crate::{seqs::SeqSet, store::Traits};

/// A set of sequences. What may be sent with a call as one is found without a walk along all of them.
#[derive(Debug, Default)]
pub(super) struct Ready {
    all: SeqSet,
    /// Those that may be sent as one, each behind the number that it has in common with the others
    /// ([`Traits::gather`]). Each call may have a number of its own, so that a number costs no more than a call.
    gathering: BTreeSet<(u64, u64)>,
}

impl Ready {
    pub(super) fn insert(&mut self, seq: u64, traits: Traits) {
        self.all.insert(seq);
        if let Some(number) = traits.gather() {
            self.gathering.insert((number, seq));
        }
    }

    /// Takes `seq` out, which has the traits that it was put in with.
    pub(super) fn remove(&mut self, seq: u64, traits: Traits) {
        self.all.remove(seq);
        if let Some(number) = traits.gather() {
            self.gathering.remove(&(number, seq));
        }
    }

    /// The lowest of them.
    pub(super) fn first(&self) -> Option<u64> {
        self.all.first()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Those that may be sent as one under this number, ascending.
    pub(super) fn gathering(&self, number: u64) -> impl Iterator<Item = u64> {
        self.gathering.range((number, 0)..=(number, u64::MAX)).map(|(_, seq)| *seq)
    }

    #[cfg(test)]
    pub(super) fn contains(&self, seq: u64) -> bool {
        self.all.contains(seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_together_is_found_apart_from_all_others() {
        let [one, two, alone] = [Traits::gathered(1), Traits::gathered(2), Traits::default()];
        let mut ready = Ready::default();
        for (seq, traits) in [(5, one), (2, two), (3, alone), (9, one), (4, two)] {
            ready.insert(seq, traits);
        }
        let of = |ready: &Ready, number| ready.gathering(number).collect::<Vec<_>>();
        assert_eq!((of(&ready, 1), of(&ready, 2), of(&ready, 3)), (vec![5, 9], vec![2, 4], vec![]));
        assert_eq!((ready.first(), ready.contains(3), ready.contains(6)), (Some(2), true, false));
        ready.remove(2, two);
        ready.remove(5, one);
        ready.remove(5, one);
        assert_eq!((ready.first(), of(&ready, 1), of(&ready, 2)), (Some(3), vec![9], vec![4]));
        for (seq, traits) in [(9, one), (4, two), (3, alone)] {
            ready.remove(seq, traits);
        }
        assert!(ready.is_empty() && ready.gathering.is_empty(), "nothing is kept of them");
    }

    #[test]
    fn a_number_of_its_own_costs_a_call_a_few_bytes() {
        let mut ready = Ready::default();
        (0..1_000).for_each(|seq| ready.insert(seq, Traits::gathered(seq)));
        (0..1_000).for_each(|seq| ready.insert(1_000 + seq, Traits::gathered(0)));
        let entry = size_of_val(ready.gathering.first().unwrap());
        assert_eq!((ready.gathering.len(), entry), (2_000, 16));
        assert!(ready.gathering(7).eq([7]) && ready.gathering(0).count() == 1_001);
        assert!(ready.gathering(u64::MAX).next().is_none());
    }
}
