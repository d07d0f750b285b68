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

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::{
    dense::Dense,
    units::{LaneId, Lanes},
};

/// The lines of all occupied lanes. A lane without a line is free.
#[derive(Debug, Default)]
pub struct LaneMap {
    lines: HashMap<LaneId, Line>,
    barriers: BTreeSet<u64>,
    members: Dense<Lanes>,
    /// Members of which nobody knows what they do to the value.
    opaque: BTreeSet<u64>,
}

/// One lane's line. Sequences rise. Of many lanes most have one call, which costs no more than its own place.
#[derive(Debug)]
enum Line {
    One { seq: u64, whole: bool, opaque: bool },
    More(Box<Long>),
}

/// A line of several, or one that was.
#[derive(Debug, Default)]
struct Long {
    members: VecDeque<u64>,
    /// Those that set the whole value.
    wholes: VecDeque<u64>,
    /// How many are opaque.
    opaque: u32,
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

impl Line {
    fn of(seq: u64) -> Self {
        Self::One { seq, whole: false, opaque: false }
    }

    fn put_in(&mut self, seq: u64) {
        match self {
            Self::One { seq: only, .. } if *only == seq => {}
            Self::One { seq: only, whole, opaque } => {
                let (members, mut wholes) = (VecDeque::from([*only]), VecDeque::new());
                wholes.extend(whole.then_some(*only));
                let mut long = Long { members, wholes, opaque: u32::from(*opaque) };
                put_in(&mut long.members, seq);
                *self = Self::More(Box::new(long));
            }
            Self::More(long) => put_in(&mut long.members, seq),
        }
    }

    /// Takes `seq` out. Whether nothing is left.
    fn take_out(&mut self, seq: u64, opaque: bool) -> bool {
        match self {
            Self::One { seq: only, .. } => *only == seq,
            Self::More(long) => {
                take_out(&mut long.members, seq);
                take_out(&mut long.wholes, seq);
                long.opaque -= u32::from(opaque);
                long.members.is_empty()
            }
        }
    }

    fn set_whole(&mut self, seq: u64, is_whole: bool) {
        match self {
            Self::One { seq: only, whole, .. } if *only == seq => *whole = is_whole,
            Self::One { .. } => {}
            Self::More(long) if is_whole => put_in(&mut long.wholes, seq),
            Self::More(long) => take_out(&mut long.wholes, seq),
        }
    }

    /// One of its members is opaque now, or no longer.
    fn set_opaque(&mut self, is_opaque: bool) {
        match self {
            Self::One { opaque, .. } => *opaque = is_opaque,
            Self::More(long) if is_opaque => long.opaque += 1,
            Self::More(long) => long.opaque -= 1,
        }
    }

    fn has_opaque(&self) -> bool {
        match self {
            Self::One { opaque, .. } => *opaque,
            Self::More(long) => long.opaque > 0,
        }
    }

    /// Its members from `seq` on.
    fn from(&self, seq: u64) -> impl Iterator<Item = u64> + '_ {
        let (one, long) = match self {
            Self::One { seq: only, .. } => (Some(*only).filter(|only| *only >= seq), None),
            Self::More(long) => (None, Some(long)),
        };
        let long = long.map(|long| {
            let at = long.members.partition_point(|member| *member < seq);
            long.members.range(at..).copied()
        });
        one.into_iter().chain(long.into_iter().flatten())
    }

    /// Its members before `seq`.
    fn before(&self, seq: u64) -> impl Iterator<Item = u64> + '_ {
        self.from(0).take_while(move |older| *older < seq)
    }

    /// Its members that set the whole value, newest first.
    fn wholes(&self) -> impl Iterator<Item = u64> + '_ {
        let (one, long) = match self {
            Self::One { seq, whole, .. } => (whole.then_some(*seq), None),
            Self::More(long) => (None, Some(long.wholes.iter().rev().copied())),
        };
        one.into_iter().chain(long.into_iter().flatten())
    }
}

impl LaneMap {
    /// Puts `seq` at the end of its lines. Sequences enter in rising order.
    pub fn enter(&mut self, seq: u64, lanes: Lanes) {
        if lanes.is_all() {
            self.barriers.insert(seq);
        }
        for lane in lanes.as_slice() {
            self.put_in(*lane, seq);
        }
        self.members.insert(seq, lanes);
    }

    /// Takes `seq` out of its lines. Returns who may have become first.
    pub fn leave(&mut self, seq: u64) -> Vec<u64> {
        let candidates = self.behind(seq);
        let Some(lanes) = self.members.remove(seq) else { return Vec::new() };
        self.barriers.remove(&seq);
        let opaque = self.opaque.remove(&seq);
        for lane in lanes.as_slice() {
            if self.lines.get_mut(lane).is_some_and(|line| line.take_out(seq, opaque)) {
                self.lines.remove(lane);
            }
        }
        candidates
    }

    /// Who could move next once `seq` holds up nobody.
    pub fn behind(&self, seq: u64) -> Vec<u64> {
        let Some(lanes) = self.members.get(seq) else { return Vec::new() };
        if lanes.is_all() {
            let next = self.barriers.range(seq + 1..).next().copied();
            return self
                .members
                .range(seq + 1..)
                .map(|(member, _)| member)
                .take_while(|member| next.is_none_or(|barrier| *member <= barrier))
                .collect();
        }
        let mut next: Vec<u64> = lanes
            .as_slice()
            .iter()
            .filter_map(|lane| self.lines.get(lane)?.from(seq + 1).next())
            .collect();
        next.extend(self.barriers.range(seq..).next());
        next.sort_unstable();
        next.dedup();
        next
    }

    /// Whether `seq` is first in all its lines, not counting those that `passed` says hold up nobody.
    pub fn is_first(&self, seq: u64, passed: impl Fn(u64) -> bool) -> bool {
        let Some(lanes) = self.members.get(seq) else { return false };
        if lanes.is_all() {
            return self.members.range(..seq).all(|(older, _)| passed(older));
        }
        self.barriers.range(..seq).all(|barrier| passed(*barrier))
            && lanes
                .as_slice()
                .iter()
                .all(|lane| self.lines.get(lane).is_some_and(|line| line.before(seq).all(&passed)))
    }

    /// Whether anything is in the line of any of `lanes`, or of every lane.
    pub fn is_occupied(&self, lanes: &Lanes) -> bool {
        if lanes.is_all() {
            return !self.members.is_empty();
        }
        !self.barriers.is_empty()
            || lanes.as_slice().iter().any(|lane| self.lines.contains_key(lane))
    }

    /// The line of `lane` from `seq` on; `None` if a barrier is in it, whose effect on the lane nobody knows.
    pub fn line_from(&self, lane: LaneId, seq: u64) -> Option<impl Iterator<Item = u64> + '_> {
        let found = self.barriers.is_empty().then(|| self.lines.get(&lane))?;
        Some(found.into_iter().flat_map(move |line| line.from(seq)))
    }

    /// `seq` sets the whole value of its lane, or no longer does. It is there.
    pub fn set_whole(&mut self, seq: u64, whole: bool) {
        let Some(Lanes::One(lane)) = self.members.get(seq) else { return };
        let Some(found) = self.lines.get_mut(lane) else { return };
        found.set_whole(seq, whole);
    }

    /// The members of `lane` that set its whole value, newest first.
    pub fn wholes(&self, lane: LaneId) -> impl Iterator<Item = u64> + '_ {
        self.lines.get(&lane).into_iter().flat_map(Line::wholes)
    }

    /// Nobody knows what `seq` does to the value of its lanes, or that is known again. It is there.
    pub fn set_opaque(&mut self, seq: u64, opaque: bool) {
        let Some(lanes) = self.members.get(seq) else { return };
        let changed = if opaque { self.opaque.insert(seq) } else { self.opaque.remove(&seq) };
        if !changed {
            return;
        }
        for lane in lanes.as_slice() {
            if let Some(line) = self.lines.get_mut(lane) {
                line.set_opaque(opaque);
            }
        }
    }

    /// Whether nobody can know the value of `lane`: a barrier or an opaque member is in it.
    pub fn is_unknowable(&self, lane: LaneId) -> bool {
        !self.barriers.is_empty() || self.lines.get(&lane).is_some_and(Line::has_opaque)
    }

    /// The oldest call over every lane.
    pub fn first_barrier(&self) -> Option<u64> {
        self.barriers.first().copied()
    }

    /// The members behind `seq` in any of its lanes, in order.
    pub fn following(&self, seq: u64) -> Vec<u64> {
        let Some(lanes) = self.members.get(seq) else { return Vec::new() };
        if lanes.is_all() {
            return self.members.range(seq + 1..).map(|(member, _)| member).collect();
        }
        let own = lanes.as_slice().iter().filter_map(|lane| self.lines.get(lane));
        let own = own.flat_map(|line| line.from(seq + 1));
        let mut behind: Vec<u64> = own.chain(self.barriers.range(seq..).copied()).collect();
        behind.sort_unstable();
        behind.dedup();
        behind
    }

    /// The members before `seq` in any of its lanes, in order.
    pub fn before(&self, seq: u64) -> Vec<u64> {
        let Some(lanes) = self.members.get(seq) else { return Vec::new() };
        if lanes.is_all() {
            return self.members.range(..seq).map(|(member, _)| member).collect();
        }
        let own = lanes.as_slice().iter().filter_map(|lane| self.lines.get(lane));
        let own = own.flat_map(|line| line.before(seq));
        let mut before: Vec<u64> = own.chain(self.barriers.range(..seq).copied()).collect();
        before.sort_unstable();
        before.dedup();
        before
    }

    /// Puts `seq` into other lines, in the position of its sequence.
    pub fn change(&mut self, seq: u64, lanes: Lanes) {
        self.leave(seq);
        self.enter_again(seq, Some(lanes));
    }

    /// Puts `seq` back into its lines, in the position of its sequence.
    pub fn enter_again(&mut self, seq: u64, lanes: Option<Lanes>) {
        let Some(lanes) = lanes else { return };
        if lanes.is_all() {
            self.barriers.insert(seq);
        }
        for lane in lanes.as_slice() {
            self.put_in(*lane, seq);
        }
        self.members.insert(seq, lanes);
    }

    fn put_in(&mut self, lane: LaneId, seq: u64) {
        self.lines.entry(lane).and_modify(|line| line.put_in(seq)).or_insert_with(|| Line::of(seq));
    }

    /// The lanes whose lines have `seq`.
    pub fn lanes_of(&self, seq: u64) -> Option<&Lanes> {
        self.members.get(seq)
    }

    /// Whether `seq` is in its lines.
    pub fn stands(&self, seq: u64) -> bool {
        self.members.contains(seq)
    }

    /// Calls that are anywhere, those without a lane included: a barrier waits for them, too.
    pub fn standing(&self) -> usize {
        self.members.len()
    }

    /// The sequences of these, ascending.
    pub fn places(&self) -> impl Iterator<Item = u64> {
        self.members.range(..).map(|(seq, _)| seq)
    }

    /// Occupied lanes; a barrier counts as one.
    pub fn occupied(&self) -> usize {
        self.lines.len() + self.barriers.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn lanes(list: &[u64]) -> Lanes {
        Lanes::new(list.iter().map(|lane| LaneId(*lane)))
    }

    fn nobody(_: u64) -> bool {
        false
    }

    #[test]
    fn calls_of_a_lane_move_one_after_the_other_and_lanes_beside_each_other() {
        let mut map = LaneMap::default();
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
        let mut map = LaneMap::default();
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
        let mut map = LaneMap::default();
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
        assert_eq!(map.line_from(LaneId(3), 0).map(Iterator::collect), Some(vec![3]));
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
    fn compare(map: &LaneMap, plain: &Plain) {
        let occupied: BTreeSet<LaneId> =
            plain.0.values().flat_map(|lanes| lanes.as_slice().to_vec()).collect();
        let barriers = plain.0.values().filter(|lanes| lanes.is_all()).count();
        assert_eq!(map.standing(), plain.0.len());
        assert_eq!(map.occupied(), occupied.len() + barriers);
        assert_eq!(map.is_occupied(&Lanes::All), !plain.0.is_empty());
        for lane in (0..7).map(LaneId) {
            let line = plain.line(lane);
            let is_occupied = plain.has_barrier() || !line.is_empty();
            assert_eq!(map.is_occupied(&Lanes::One(lane)), is_occupied);
            assert_eq!(map.is_occupied(&Lanes::new([lane, LaneId(99)].into_iter())), is_occupied);
            for from in 0..10 {
                let rest = line.iter().copied().filter(|it| *it >= from).collect();
                let found = map.line_from(lane, from).map(Iterator::collect::<Vec<u64>>);
                assert_eq!(found, (!plain.has_barrier()).then_some(rest));
            }
        }
        for seq in 0..10 {
            assert_eq!(map.stands(seq), plain.0.contains_key(&seq));
            assert_eq!(map.before(seq), plain.meeting(seq, |it| it < seq));
            assert_eq!(map.following(seq), plain.meeting(seq, |it| it > seq));
            assert_eq!(map.behind(seq), plain.behind(seq));
            let some: [fn(u64) -> bool; 3] = [nobody, |it| it % 2 == 0, |it| it < 4];
            for passed in some {
                let is_first = map.stands(seq) && map.before(seq).into_iter().all(passed);
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
            steps in prop::collection::vec((0_u64..10, 0..4, any_lanes()), 0..40),
        ) {
            let (mut map, mut plain) = (LaneMap::default(), Plain::default());
            for (seq, verb, lanes) in steps {
                match verb {
                    0 => {
                        assert_eq!(map.leave(seq), plain.behind(seq));
                        plain.0.remove(&seq);
                    }
                    1 => {
                        map.change(seq, lanes.clone());
                        plain.0.insert(seq, lanes);
                    }
                    2 if !plain.0.contains_key(&seq) => {
                        map.enter_again(seq, Some(lanes.clone()));
                        plain.0.insert(seq, lanes);
                    }
                    3 if plain.0.last_key_value().is_none_or(|(last, _)| *last < seq) => {
                        map.enter(seq, lanes.clone());
                        plain.0.insert(seq, lanes);
                    }
                    _ => map.enter_again(seq, None),
                }
                compare(&map, &plain);
            }
        }

        /// However calls enter, whoever is first leaves, and all leave in lane order.
        #[test]
        fn everyone_gets_a_turn_in_order(
            calls in proptest::collection::vec(
                proptest::option::weighted(0.9, proptest::collection::vec(0u64..6, 1..4)), 1..60),
        ) {
            let mut map = LaneMap::default();
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
            prop_assert_eq!(map.occupied(), 0);
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
