//! Who waits for whom: the order of queued calls, lane by lane.
//!
//! A call is in the line of every lane that it touches, in order of its sequence. It may move when
//! it is first in all of them. A call over every lane is a *barrier*: it may move when nothing older is
//! left, and nothing younger moves before it.
//!
//! Some calls that are still in line no longer hold up what is behind them (they were applied, and
//! only their removal is not synced yet); the questions here take a predicate that says which.
//!
//! A line may be 50,000 calls long, so no question about one lane walks along it: places are found by bisection,
//! and beside each line are the calls in it that set its whole value, and how many make its value unknowable.
//!
//! **A million lanes with one call each are the usual large queue.** So which lanes a call touches is not kept here
//! a second time: whoever has the calls answers that (`LanesOf`), with the same answer for as long as the call is in
//! line. The line of a lane with one call, which touches no other, is that call's sequence, in a table that hashes by
//! the call's lane.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use hashbrown::HashTable;

use crate::{
    seqs::SeqSet,
    units::{LaneId, Lanes},
};

/// Who knows which lanes the calls in line touch.
pub(crate) trait LanesOf {
    /// The lanes of a call that is in line.
    fn lanes_of(&self, seq: u64) -> Option<&Lanes>;
}

/// The lines of all occupied lanes. A lane without a line is free.
#[derive(Debug, Default)]
pub(crate) struct LaneMap {
    /// Lanes with one call, which touches no other lane.
    alone: HashTable<Alone>,
    hasher: RandomState,
    /// All others.
    lines: HashMap<LaneId, Long>,
    barriers: BTreeSet<u64>,
    members: SeqSet,
    /// Members of which nobody knows what they do to the value.
    opaque: BTreeSet<u64>,
}

/// The line of a lane with one call: its sequence, and in the lower two bits what is known of it.
#[derive(Clone, Copy, Debug)]
struct Alone(u64);

/// It sets the whole value.
const WHOLE: u64 = 1;
const OPAQUE: u64 = 2;

impl Alone {
    fn of(seq: u64) -> Self {
        Self(seq << 2)
    }

    fn seq(self) -> u64 {
        self.0 >> 2
    }

    fn is(self, flag: u64) -> bool {
        self.0 & flag > 0
    }

    fn set(&mut self, flag: u64, is_set: bool) {
        self.0 = if is_set { self.0 | flag } else { self.0 & !flag };
    }
}

/// The line of a lane with several calls, or with one that touches others, or one that was. Sequences rise.
#[derive(Debug, Default)]
struct Long {
    members: VecDeque<u64>,
    /// Those that set the whole value.
    wholes: VecDeque<u64>,
    /// How many are opaque.
    opaque: u32,
}

impl Long {
    fn of(alone: Alone) -> Self {
        let mut wholes = VecDeque::new();
        wholes.extend(alone.is(WHOLE).then_some(alone.seq()));
        let opaque = u32::from(alone.is(OPAQUE));
        Self { members: VecDeque::from([alone.seq()]), wholes, opaque }
    }

    /// Takes `seq` out. Whether nothing is left.
    fn take_out(&mut self, seq: u64, opaque: bool) -> bool {
        take_out(&mut self.members, seq);
        take_out(&mut self.wholes, seq);
        self.opaque -= u32::from(opaque);
        self.members.is_empty()
    }
}

/// Takes `seq` out of a rising list.
fn take_out(list: &mut VecDeque<u64>, seq: u64) {
    if list.front() == Some(&seq) {
        list.pop_front();
    } else if let Ok(at) = list.binary_search(&seq) {
        list.remove(at);
    }
}

/// Puts `seq` into a rising list.
fn put_in(list: &mut VecDeque<u64>, seq: u64) {
    match list.back() {
        Some(newest) if *newest >= seq => {
            if let Err(at) = list.binary_search(&seq) {
                list.insert(at, seq);
            }
        }
        _ => list.push_back(seq),
    }
}

/// One lane's line.
#[derive(Clone, Copy)]
enum Line<'a> {
    Alone(Alone),
    Long(&'a Long),
}

impl<'a> Line<'a> {
    /// Its members from `seq` on.
    fn from(self, seq: u64) -> impl Iterator<Item = u64> + 'a {
        let (one, long) = match self {
            Self::Alone(it) => (Some(it.seq()).filter(|only| *only >= seq), None),
            Self::Long(long) => (None, Some(long)),
        };
        let long = long.map(|long| {
            let at = long.members.partition_point(|member| *member < seq);
            long.members.range(at..).copied()
        });
        one.into_iter().chain(long.into_iter().flatten())
    }

    /// Its members before `seq`.
    fn before(self, seq: u64) -> impl Iterator<Item = u64> + 'a {
        self.from(0).take_while(move |older| *older < seq)
    }

    /// Its members that set the whole value, newest first.
    fn wholes(self) -> impl Iterator<Item = u64> + 'a {
        let (one, long) = match self {
            Self::Alone(it) => (it.is(WHOLE).then_some(it.seq()), None),
            Self::Long(long) => (None, Some(long.wholes.iter().rev().copied())),
        };
        one.into_iter().chain(long.into_iter().flatten())
    }

    fn has_opaque(self) -> bool {
        match self {
            Self::Alone(it) => it.is(OPAQUE),
            Self::Long(long) => long.opaque > 0,
        }
    }
}

impl LaneMap {
    /// Makes room for so many lanes with one call each.
    pub(crate) fn expect(&mut self, calls: usize, all: &impl LanesOf) {
        let Self { alone, hasher, .. } = self;
        alone.reserve(calls, |it| hash_of(hasher, *it, all));
    }

    /// Puts `seq` into its lines, in the position of its sequence. Nothing happens to one that is there.
    pub(crate) fn enter(&mut self, seq: u64, calls: &impl LanesOf) {
        let Some(lanes) = calls.lanes_of(seq) else { return };
        if lanes.is_all() {
            self.barriers.insert(seq);
        }
        for lane in lanes.as_slice() {
            self.put_in(*lane, seq, calls);
        }
        self.members.insert(seq);
    }

    fn put_in(&mut self, lane: LaneId, seq: u64, calls: &impl LanesOf) {
        if let Some(long) = self.lines.get_mut(&lane) {
            put_in(&mut long.members, seq);
            return;
        }
        let hash = self.hasher.hash_one(lane);
        if let Ok(found) = self.alone.find_entry(hash, |it| is_of(lane, *it, calls)) {
            if found.get().seq() != seq {
                let mut long = Long::of(found.remove().0);
                put_in(&mut long.members, seq);
                self.lines.insert(lane, long);
            }
            return;
        }
        if matches!(calls.lanes_of(seq), Some(Lanes::One(_))) {
            let Self { alone, hasher, .. } = self;
            alone.insert_unique(hash, Alone::of(seq), |it| hash_of(hasher, *it, calls));
            return;
        }
        self.lines.insert(lane, Long { members: VecDeque::from([seq]), ..Long::default() });
    }

    /// Takes `seq` out of its lines. Returns who may have become first.
    pub(crate) fn leave(&mut self, seq: u64, calls: &impl LanesOf) -> Vec<u64> {
        let candidates = self.behind(seq, calls);
        let Some(lanes) = self.standing_lanes(seq, calls) else { return Vec::new() };
        self.members.remove(seq);
        self.barriers.remove(&seq);
        let opaque = self.opaque.remove(&seq);
        for lane in lanes.as_slice() {
            if let Some(long) = self.lines.get_mut(lane) {
                if long.take_out(seq, opaque) {
                    self.lines.remove(lane);
                }
            } else if let Ok(found) =
                self.alone.find_entry(self.hasher.hash_one(lane), |it| it.seq() == seq)
            {
                found.remove();
            }
        }
        candidates
    }

    fn line(&self, lane: LaneId, calls: &impl LanesOf) -> Option<Line<'_>> {
        if let Some(long) = self.lines.get(&lane) {
            return Some(Line::Long(long));
        }
        if self.alone.is_empty() {
            return None;
        }
        let alone = self.alone.find(self.hasher.hash_one(lane), |it| is_of(lane, *it, calls))?;
        Some(Line::Alone(*alone))
    }

    /// The lines of `lanes` that there are.
    fn lines<'a>(
        &'a self,
        lanes: &'a Lanes,
        calls: &'a impl LanesOf,
    ) -> impl Iterator<Item = Line<'a>> {
        lanes.as_slice().iter().filter_map(|lane| self.line(*lane, calls))
    }

    /// The lanes of `seq`, if it is in line.
    fn standing_lanes<'c>(&self, seq: u64, calls: &'c impl LanesOf) -> Option<&'c Lanes> {
        self.stands(seq).then(|| calls.lanes_of(seq)).flatten()
    }

    /// Who could move next once `seq` holds up nobody.
    pub(crate) fn behind(&self, seq: u64, calls: &impl LanesOf) -> Vec<u64> {
        let Some(lanes) = self.standing_lanes(seq, calls) else { return Vec::new() };
        if lanes.is_all() {
            let next = self.barriers.range(seq + 1..).next().copied();
            let all = self.members.iter_from(seq + 1);
            return all.take_while(|member| next.is_none_or(|it| *member <= it)).collect();
        }
        let mut next: Vec<u64> =
            self.lines(lanes, calls).filter_map(|line| line.from(seq + 1).next()).collect();
        next.extend(self.barriers.range(seq..).next());
        next.sort_unstable();
        next.dedup();
        next
    }

    /// Whether `seq` is first in all its lines, not counting those that `passed` says hold up nobody.
    pub(crate) fn is_first(
        &self,
        seq: u64,
        calls: &impl LanesOf,
        passed: impl Fn(u64) -> bool,
    ) -> bool {
        let Some(lanes) = self.standing_lanes(seq, calls) else { return false };
        if lanes.is_all() {
            return self.members.iter().take_while(|older| *older < seq).all(passed);
        }
        self.barriers.range(..seq).all(|barrier| passed(*barrier))
            && self.lines(lanes, calls).all(|line| line.before(seq).all(&passed))
    }

    /// Whether anything is in the line of any of `lanes`, or of every lane.
    pub(crate) fn is_occupied(&self, lanes: &Lanes, calls: &impl LanesOf) -> bool {
        if lanes.is_all() {
            return !self.members.is_empty();
        }
        !self.barriers.is_empty() || self.lines(lanes, calls).next().is_some()
    }

    /// The line of `lane` from `seq` on; `None` if a barrier is in it, whose effect on the lane nobody knows.
    pub(crate) fn line_from<'a, C: LanesOf>(
        &'a self,
        lane: LaneId,
        seq: u64,
        calls: &C,
    ) -> Option<impl Iterator<Item = u64> + use<'a, C>> {
        let found = self.barriers.is_empty().then(|| self.line(lane, calls))?;
        Some(found.into_iter().flat_map(move |line| line.from(seq)))
    }

    /// `seq` sets the whole value of its lane, or no longer does. It is there.
    pub(crate) fn set_whole(&mut self, seq: u64, whole: bool, calls: &impl LanesOf) {
        let Some(Lanes::One(lane)) = self.standing_lanes(seq, calls) else { return };
        match self.lines.get_mut(lane) {
            Some(long) if whole => put_in(&mut long.wholes, seq),
            Some(long) => take_out(&mut long.wholes, seq),
            None => self.set_alone(*lane, seq, WHOLE, whole),
        }
    }

    fn set_alone(&mut self, lane: LaneId, seq: u64, flag: u64, is_set: bool) {
        if let Some(it) = self.alone.find_mut(self.hasher.hash_one(lane), |it| it.seq() == seq) {
            it.set(flag, is_set);
        }
    }

    /// The members of `lane` that set its whole value, newest first.
    pub(crate) fn wholes<'a, C: LanesOf>(
        &'a self,
        lane: LaneId,
        calls: &C,
    ) -> impl Iterator<Item = u64> + use<'a, C> {
        self.line(lane, calls).into_iter().flat_map(Line::wholes)
    }

    /// Nobody knows what `seq` does to the value of its lanes, or that is known again. It is there.
    pub(crate) fn set_opaque(&mut self, seq: u64, opaque: bool, calls: &impl LanesOf) {
        let Some(lanes) = self.standing_lanes(seq, calls) else { return };
        let changed = if opaque { self.opaque.insert(seq) } else { self.opaque.remove(&seq) };
        if !changed {
            return;
        }
        for lane in lanes.as_slice() {
            match self.lines.get_mut(lane) {
                Some(long) if opaque => long.opaque += 1,
                Some(long) => long.opaque -= 1,
                None => self.set_alone(*lane, seq, OPAQUE, opaque),
            }
        }
    }

    /// Whether nobody can know the value of `lane`: a barrier or an opaque member is in it.
    pub(crate) fn is_unknowable(&self, lane: LaneId, calls: &impl LanesOf) -> bool {
        !self.barriers.is_empty()
            || !self.opaque.is_empty() && self.line(lane, calls).is_some_and(Line::has_opaque)
    }

    /// The oldest call over every lane.
    pub(crate) fn first_barrier(&self) -> Option<u64> {
        self.barriers.first().copied()
    }

    /// The members behind `seq` in any of its lanes, in order.
    pub(crate) fn following(&self, seq: u64, calls: &impl LanesOf) -> Vec<u64> {
        let Some(lanes) = self.standing_lanes(seq, calls) else { return Vec::new() };
        if lanes.is_all() {
            return self.members.iter_from(seq + 1).collect();
        }
        let own = self.lines(lanes, calls).flat_map(|line| line.from(seq + 1));
        let mut behind: Vec<u64> = own.chain(self.barriers.range(seq..).copied()).collect();
        behind.sort_unstable();
        behind.dedup();
        behind
    }

    /// The members before `seq` in any of its lanes, in order.
    pub(crate) fn before(&self, seq: u64, calls: &impl LanesOf) -> Vec<u64> {
        let Some(lanes) = self.standing_lanes(seq, calls) else { return Vec::new() };
        if lanes.is_all() {
            return self.members.iter().take_while(|older| *older < seq).collect();
        }
        let own = self.lines(lanes, calls).flat_map(|line| line.before(seq));
        let mut before: Vec<u64> = own.chain(self.barriers.range(..seq).copied()).collect();
        before.sort_unstable();
        before.dedup();
        before
    }

    /// Whether `seq` is in its lines.
    pub(crate) fn stands(&self, seq: u64) -> bool {
        self.members.contains(seq)
    }

    /// Calls that are anywhere, those without a lane included: a barrier waits for them, too.
    pub(crate) fn standing(&self) -> usize {
        self.members.len()
    }

    /// The sequences of these, ascending.
    pub(crate) fn places(&self) -> impl Iterator<Item = u64> {
        self.members.iter()
    }

    /// Occupied lanes; a barrier counts as one.
    pub(crate) fn occupied(&self) -> usize {
        self.alone.len() + self.lines.len() + self.barriers.len()
    }
}

/// The hash of the lane with that line.
fn hash_of(hasher: &RandomState, alone: Alone, calls: &impl LanesOf) -> u64 {
    match calls.lanes_of(alone.seq()) {
        Some(Lanes::One(lane)) => hasher.hash_one(*lane),
        other => {
            debug_assert!(false, "{} is alone in {other:?}", alone.seq());
            0
        }
    }
}

/// Whether that is the line of `lane`.
fn is_of(lane: LaneId, alone: Alone, calls: &impl LanesOf) -> bool {
    calls.lanes_of(alone.seq()) == Some(&Lanes::One(lane))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn lanes(list: &[u64]) -> Lanes {
        Lanes::new(list.iter().map(|lane| LaneId(*lane)))
    }

    impl LanesOf for BTreeMap<u64, Lanes> {
        fn lanes_of(&self, seq: u64) -> Option<&Lanes> {
            self.get(&seq)
        }
    }

    /// A map, and the lanes of those who are in it.
    #[derive(Default)]
    struct Lines {
        map: LaneMap,
        calls: BTreeMap<u64, Lanes>,
    }

    impl Lines {
        fn enter(&mut self, seq: u64, lanes: Lanes) {
            self.calls.insert(seq, lanes);
            self.map.enter(seq, &self.calls);
        }

        fn leave(&mut self, seq: u64) -> Vec<u64> {
            let next = self.map.leave(seq, &self.calls);
            self.calls.remove(&seq);
            next
        }

        fn is_first(&self, seq: u64, passed: impl Fn(u64) -> bool) -> bool {
            self.map.is_first(seq, &self.calls, passed)
        }

        fn is_occupied(&self, lanes: &Lanes) -> bool {
            self.map.is_occupied(lanes, &self.calls)
        }

        fn line_from(&self, lane: LaneId, seq: u64) -> Option<Vec<u64>> {
            self.map.line_from(lane, seq, &self.calls).map(Iterator::collect)
        }
    }

    fn nobody(_: u64) -> bool {
        false
    }

    #[test]
    fn calls_of_a_lane_move_one_after_the_other_and_lanes_beside_each_other() {
        let mut map = Lines::default();
        map.enter(1, lanes(&[7]));
        map.enter(2, lanes(&[7]));
        map.enter(3, lanes(&[8]));
        assert!(map.is_first(1, nobody) && !map.is_first(2, nobody) && map.is_first(3, nobody));
        assert!(map.is_first(2, |seq| seq == 1));
        assert_eq!(map.leave(1), [2]);
        assert!(map.is_first(2, nobody));
        assert!(map.is_occupied(&lanes(&[7, 9])) && !map.is_occupied(&lanes(&[9])));
        map.leave(2);
        assert!(!map.is_occupied(&lanes(&[7])));
    }

    #[test]
    fn a_call_over_two_lanes_waits_for_both() {
        let mut map = Lines::default();
        map.enter(1, lanes(&[1]));
        map.enter(2, lanes(&[2]));
        map.enter(3, lanes(&[1, 2]));
        assert_eq!(map.leave(1), [3]);
        assert!(!map.is_first(3, nobody));
        assert_eq!(map.leave(2), [3]);
        assert!(map.is_first(3, nobody));
    }

    #[test]
    fn a_barrier_waits_for_all_and_holds_up_all() {
        let mut map = Lines::default();
        map.enter(1, lanes(&[1]));
        map.enter(2, Lanes::All);
        map.enter(3, lanes(&[3]));
        assert!(!map.is_first(2, nobody) && !map.is_first(3, nobody));
        assert!(map.is_occupied(&lanes(&[99])));
        assert!(map.line_from(LaneId(1), 0).is_none());
        assert_eq!(map.leave(1), [2]);
        assert!(map.is_first(2, nobody));
        assert_eq!(map.leave(2), [3]);
        assert!(map.is_first(3, nobody));
        assert_eq!(map.line_from(LaneId(3), 0), Some(vec![3]));
    }

    /// The same by looking at all pairs of calls.
    #[derive(Default)]
    struct Plain(BTreeMap<u64, Lanes>);

    impl Plain {
        fn meet(one: &Lanes, other: &Lanes) -> bool {
            one.is_all()
                || other.is_all()
                || one.as_slice().iter().any(|lane| other.as_slice().contains(lane))
        }

        fn meeting(&self, seq: u64, is_there: impl Fn(u64) -> bool) -> Vec<u64> {
            let Some(own) = self.0.get(&seq) else { return Vec::new() };
            let all = self.0.iter().filter(|(it, lanes)| is_there(**it) && Self::meet(own, lanes));
            all.map(|(it, _)| *it).collect()
        }

        fn has_barrier(&self) -> bool {
            self.0.values().any(Lanes::is_all)
        }

        fn line(&self, lane: LaneId) -> Vec<u64> {
            let members = self.0.iter().filter(|(_, lanes)| lanes.as_slice().contains(&lane));
            members.map(|(seq, _)| *seq).collect()
        }

        /// Of those that meet it, the first of each lane, and all up to a barrier.
        fn behind(&self, seq: u64) -> Vec<u64> {
            let following = self.meeting(seq, |it| it > seq);
            let Some(own) = self.0.get(&seq) else { return following };
            let barrier = following.iter().copied().find(|it| self.0[it].is_all());
            if own.is_all() {
                return following
                    .into_iter()
                    .filter(|it| barrier.is_none_or(|at| *it <= at))
                    .collect();
            }
            let first = |lane: &LaneId| self.line(*lane).into_iter().find(|it| *it > seq);
            let mut behind: Vec<u64> =
                own.as_slice().iter().filter_map(first).chain(barrier).collect();
            behind.sort_unstable();
            behind.dedup();
            behind
        }
    }

    #[track_caller]
    fn compare(map: &Lines, plain: &Plain) {
        let occupied: BTreeSet<LaneId> =
            plain.0.values().flat_map(|lanes| lanes.as_slice().to_vec()).collect();
        let barriers = plain.0.values().filter(|lanes| lanes.is_all()).count();
        assert_eq!(map.map.standing(), plain.0.len());
        assert_eq!(map.map.occupied(), occupied.len() + barriers);
        assert_eq!(map.is_occupied(&Lanes::All), !plain.0.is_empty());
        for lane in (0..7).map(LaneId) {
            let line = plain.line(lane);
            let is_occupied = plain.has_barrier() || !line.is_empty();
            assert_eq!(map.is_occupied(&Lanes::One(lane)), is_occupied);
            assert_eq!(map.is_occupied(&Lanes::new([lane, LaneId(99)].into_iter())), is_occupied);
            for from in 0..10 {
                let rest = line.iter().copied().filter(|it| *it >= from).collect();
                let found = map.line_from(lane, from);
                assert_eq!(found, (!plain.has_barrier()).then_some(rest));
            }
        }
        for seq in 0..10 {
            assert_eq!(map.map.stands(seq), plain.0.contains_key(&seq));
            assert_eq!(map.map.before(seq, &map.calls), plain.meeting(seq, |it| it < seq));
            assert_eq!(map.map.following(seq, &map.calls), plain.meeting(seq, |it| it > seq));
            assert_eq!(map.map.behind(seq, &map.calls), plain.behind(seq));
            let some: [fn(u64) -> bool; 3] = [nobody, |it| it % 2 == 0, |it| it < 4];
            for passed in some {
                let is_first =
                    map.map.stands(seq) && map.map.before(seq, &map.calls).into_iter().all(passed);
                assert_eq!(map.is_first(seq, passed), is_first, "{seq}");
            }
        }
    }

    fn any_lanes() -> impl Strategy<Value = Lanes> {
        let few = prop::collection::vec(0_u64..6, 0..4);
        prop::option::weighted(0.85, few).prop_map(|it| it.map_or(Lanes::All, |it| lanes(&it)))
    }

    proptest! {
        /// Whoever enters, leaves, changes its lines or comes back: the lines are those of all pairs.
        #[test]
        fn the_lines_are_what_looking_at_all_pairs_says(
            steps in prop::collection::vec((0_u64..10, 0..8, any_lanes()), 0..60),
        ) {
            let (mut map, mut plain) = (Lines::default(), Plain::default());
            let (mut wholes, mut opaque) = (BTreeSet::new(), BTreeSet::new());
            for (seq, verb, lanes) in steps {
                if verb < 2 {
                    wholes.remove(&seq);
                    opaque.remove(&seq);
                }
                match verb {
                    0 => {
                        assert_eq!(map.leave(seq), plain.behind(seq));
                        plain.0.remove(&seq);
                    }
                    1 => {
                        map.leave(seq);
                        map.enter(seq, lanes.clone());
                        plain.0.insert(seq, lanes);
                    }
                    4 | 5 => {
                        map.map.set_whole(seq, verb == 4, &map.calls);
                        wholes.remove(&seq);
                        let is_one = matches!(plain.0.get(&seq), Some(Lanes::One(_)));
                        wholes.extend((verb == 4 && is_one).then_some(seq));
                    }
                    6 | 7 => {
                        map.map.set_opaque(seq, verb == 6, &map.calls);
                        opaque.remove(&seq);
                        opaque.extend((verb == 6 && plain.0.contains_key(&seq)).then_some(seq));
                    }
                    2 if !plain.0.contains_key(&seq) => {
                        map.enter(seq, lanes.clone());
                        plain.0.insert(seq, lanes);
                    }
                    // It is there already, or not there at all.
                    _ => map.map.enter(seq, &map.calls),
                }
                compare(&map, &plain);
                for lane in (0..7).map(LaneId) {
                    let line = plain.line(lane);
                    let found: Vec<u64> = map.map.wholes(lane, &map.calls).collect();
                    let expected = line.iter().rev().copied().filter(|it| wholes.contains(it));
                    assert_eq!(found, expected.collect::<Vec<_>>());
                    let unknowable = plain.has_barrier() || line.iter().any(|it| opaque.contains(it));
                    assert_eq!(map.map.is_unknowable(lane, &map.calls), unknowable);
                }
            }
        }

        /// However calls enter, whoever is first leaves, and all leave in lane order.
        #[test]
        fn everyone_gets_a_turn_in_order(
            calls in proptest::collection::vec(
                proptest::option::weighted(0.9, proptest::collection::vec(0u64..6, 1..4)), 1..60),
        ) {
            let mut map = Lines::default();
            let all: Vec<Lanes> = calls
                .iter()
                .map(|call| call.as_ref().map_or(Lanes::All, |list| lanes(list)))
                .collect();
            for (seq, call) in (1_u64..).zip(&all) {
                map.enter(seq, call.clone());
            }
            let mut movable: BTreeSet<u64> =
                (1..=all.len() as u64).filter(|seq| map.is_first(*seq, nobody)).collect();
            let mut gone = Vec::new();
            while let Some(seq) = movable.pop_last() {
                gone.push(seq);
                for next in map.leave(seq) {
                    if map.is_first(next, nobody) {
                        movable.insert(next);
                    }
                }
            }
            prop_assert_eq!(gone.len(), all.len());
            prop_assert_eq!(map.map.occupied(), 0);
            let of = |seq: u64| &all[usize::try_from(seq).unwrap() - 1];
            for (index, later) in gone.iter().enumerate() {
                for earlier in &gone[..index] {
                    let meet = of(*later).is_all()
                        || of(*earlier).is_all()
                        || of(*later).as_slice().iter().any(|lane| of(*earlier).as_slice().contains(lane));
                    prop_assert!(!meet || earlier < later, "{} left before {}", earlier, later);
                }
            }
        }
    }
}
