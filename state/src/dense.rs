//! A map from numbers that are given out one after the other, such as sequences, to what is known of each.
//!
//! Numbers are in runs of sixteen, so that a value costs what it takes itself and a few bytes: a `BTreeMap` that is
//! filled in order keeps its leaves little more than half full. A run with few values left takes the room of all
//! sixteen; it goes with its last value.

use std::{
    collections::BTreeMap,
    ops::{Bound, RangeBounds},
};

const RUN: usize = 16;
const RUN_BITS: u32 = RUN.trailing_zeros();

/// The map.
#[derive(Debug)]
pub(crate) struct Dense<T> {
    /// All runs but the last.
    runs: BTreeMap<u64, Box<Run<T>>>,
    /// The run of the highest numbers; none if there is no value. What was given out last is asked for most, and a million
    /// calls are put back into an index in this order.
    last: Option<(u64, Box<Run<T>>)>,
    len: usize,
}

#[derive(Debug)]
struct Run<T> {
    slots: [Option<T>; RUN],
    used: u8,
}

impl<T> Run<T> {
    fn empty() -> Self {
        Self { slots: [const { None }; RUN], used: 0 }
    }
}

impl<T> Default for Dense<T> {
    fn default() -> Self {
        Self { runs: BTreeMap::new(), last: None, len: 0 }
    }
}

/// The run with `number`, and its slot there.
fn place(number: u64) -> (u64, usize) {
    let slot = number & (RUN as u64 - 1);
    (number >> RUN_BITS, usize::try_from(slot).unwrap_or(0))
}

impl<T> Dense<T> {
    /// Puts `value` under `number`; returns what was there.
    pub(crate) fn insert(&mut self, number: u64, value: T) -> Option<T> {
        let (at, slot) = place(number);
        let run = match &mut self.last {
            Some((last, run)) if at == *last => run,
            Some((last, _)) if at < *last => {
                self.runs.entry(at).or_insert_with(|| Box::new(Run::empty()))
            }
            last => {
                self.runs.extend(last.take());
                &mut last.insert((at, Box::new(Run::empty()))).1
            }
        };
        let before = run.slots.get_mut(slot).and_then(|slot| slot.replace(value));
        if before.is_none() {
            run.used += 1;
            self.len += 1;
        }
        before
    }

    /// Takes out what is under `number`.
    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let (at, slot) = place(number);
        let run = self.run_mut(at)?;
        let value = run.slots.get_mut(slot)?.take()?;
        run.used -= 1;
        let is_empty = run.used == 0;
        self.len -= 1;
        if is_empty && self.runs.remove(&at).is_none() {
            self.last = self.runs.pop_last();
        }
        Some(value)
    }

    fn run(&self, at: u64) -> Option<&Run<T>> {
        let (last, run) = self.last.as_ref()?;
        if at == *last { Some(run) } else { self.runs.get(&at).map(Box::as_ref) }
    }

    fn run_mut(&mut self, at: u64) -> Option<&mut Run<T>> {
        let (last, run) = self.last.as_mut()?;
        if at == *last { Some(run) } else { self.runs.get_mut(&at).map(Box::as_mut) }
    }

    pub(crate) fn get(&self, number: u64) -> Option<&T> {
        let (at, slot) = place(number);
        self.run(at)?.slots.get(slot)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (at, slot) = place(number);
        self.run_mut(at)?.slots.get_mut(slot)?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values of these numbers, in order.
    pub(crate) fn range(&self, numbers: impl RangeBounds<u64>) -> impl Iterator<Item = (u64, &T)> {
        let start = match numbers.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let last = self.last.iter().map(|(at, run)| (at, run));
        let runs = self.runs.range(place(start).0..).chain(last);
        let all = runs.flat_map(|(at, run)| {
            let slots = (0_u64..).zip(&run.slots);
            slots.filter_map(move |(slot, value)| Some((at << RUN_BITS | slot, value.as_ref()?)))
        });
        let end = numbers.end_bound().cloned();
        let is_within = move |number: u64| match end {
            Bound::Included(last) => number <= last,
            Bound::Excluded(behind) => number < behind,
            Bound::Unbounded => true,
        };
        all.skip_while(move |(number, _)| *number < start)
            .take_while(move |(number, _)| is_within(*number))
    }

    /// All values, in the order of their numbers.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.range(..).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_btree_map_holds(
            steps in prop::collection::vec((0_u64..70, any::<bool>()), 0..200),
            (from, upto) in (0_u64..75, 0_u64..75),
        ) {
            let (mut dense, mut plain) = (Dense::default(), BTreeMap::new());
            for (step, (number, is_in)) in steps.into_iter().enumerate() {
                if is_in {
                    assert_eq!(dense.insert(number, step), plain.insert(number, step));
                } else {
                    assert_eq!(dense.remove(number), plain.remove(&number));
                }
                assert_eq!(dense.get(number), plain.get(&number));
                assert_eq!((dense.len(), dense.is_empty()), (plain.len(), plain.is_empty()));
            }
            let all = |range: &BTreeMap<u64, usize>| range.clone().into_iter().collect::<Vec<_>>();
            let found = |range: &mut dyn Iterator<Item = (u64, &usize)>| {
                range.map(|(number, value)| (number, *value)).collect::<Vec<_>>()
            };
            assert_eq!(found(&mut dense.range(..)), all(&plain));
            assert_eq!(found(&mut dense.range(from..)), all(&plain.clone().split_off(&from)));
            let before: BTreeMap<_, _> = plain.range(..upto).map(|(n, v)| (*n, *v)).collect();
            assert_eq!(found(&mut dense.range(..upto)), all(&before));
            let upto: BTreeMap<_, _> = plain.range(..=upto).map(|(n, v)| (*n, *v)).collect();
            assert_eq!(found(&mut dense.range(..=upto.keys().last().copied().unwrap_or(0))), all(&upto));
            for number in plain.keys() {
                *dense.get_mut(*number).unwrap() += 1;
            }
            let more: Vec<usize> = plain.values().map(|value| value + 1).collect();
            assert_eq!(dense.values().copied().collect::<Vec<_>>(), more);
            for number in plain.keys() {
                dense.remove(*number);
            }
            assert!(dense.runs.is_empty() && dense.last.is_none(), "no run is left behind");
        }
    }

    #[test]
    fn the_largest_number_has_its_place() {
        let mut dense = Dense::default();
        dense.insert(u64::MAX, 'z');
        dense.insert(0, 'a');
        assert_eq!(dense.range(..).map(|(number, _)| number).collect::<Vec<_>>(), [0, u64::MAX]);
        assert_eq!(dense.range(1..).count(), 1);
    }
}
