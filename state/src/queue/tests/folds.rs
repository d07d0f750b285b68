//! What readers have made of the lanes: the same as if each had read all of it.

use std::sync::Arc;

use super::*;

/// Represents a value: the writes that it hangs on, each with when it is due.
type Value = Vec<(u64, Option<u64>)>;

fn value(held: &Held) -> &Value {
    held.downcast_ref().unwrap()
}

/// Some writes leave the same whatever was there, though nobody said so when they were queued.
fn forgets(seq: u64) -> bool {
    seq.is_multiple_of(5)
}

fn due_of(entry: &Entry) -> Option<u64> {
    entry.header.traits.due().map(UnixMillis::get)
}

/// What all writes of the lane come to; `None` if that is unknowable.
fn in_full(index: &QueueIndex, lane: LaneId) -> Option<Value> {
    let mut held = Value::new();
    for seq in index.writes(lane)? {
        let entry = index.get(seq).unwrap();
        if entry.header.traits.is_whole() || forgets(seq) {
            held.clear();
        }
        held.push((seq, due_of(entry)));
    }
    Some(held)
}

/// What a reader finds who folds `most` writes at a time, and how many it had to read.
fn read(index: &mut QueueIndex, lane: LaneId, most: usize) -> (Option<Value>, usize) {
    let mut reads = 0;
    loop {
        match index.in_lane(lane, |_| true) {
            InLane::Nothing => return (Some(Value::new()), reads),
            InLane::Unknowable => return (None, reads),
            InLane::Folded(held) => return (Some(value(&held).clone()), reads),
            InLane::Unfolded => {
                let reading = index.begin_fold(lane, most, |_| true).unwrap();
                let mut held =
                    reading.held.as_ref().map(|it| value(it).clone()).unwrap_or_default();
                let mut base = None;
                for write in &reading.writes {
                    reads += 1;
                    if index.get(write.seq).unwrap().header.traits.is_whole() || forgets(write.seq)
                    {
                        held.clear();
                        base = Some(write.seq);
                    }
                    held.push((write.seq, write.due.map(UnixMillis::get)));
                }
                index.folded(&reading, base, Arc::new(held), 10);
            }
        }
    }
}

fn add(index: &mut QueueIndex, op: u64, whole: bool) -> u64 {
    let traits = Traits::of(whole, false);
    index.admit(entry_with((op, 1, true), |it| it.traits = traits), false, None).unwrap()
}

fn large() -> QueueIndex {
    let limits =
        QueueLimits { items: 100_000, bytes: 1 << 40, dead_items: 1_000, dead_bytes: 1 << 40 };
    QueueIndex::new(limits, 0)
}

#[test]
fn a_write_is_read_once_and_what_stands_before_a_whole_one_never() {
    let (mut index, lane) = (large(), LaneId(1));
    for op in 1..=1_000 {
        let seq = add(&mut index, op, op == 900);
        index.committed(seq);
    }
    assert_eq!(read(&mut index, lane, 16).1, 101);
    assert_eq!(read(&mut index, lane, 16).1, 0);
    let next = add(&mut index, 1_001, false);
    assert_eq!(read(&mut index, lane, 16).1, 0, "it is not durable");
    index.committed(next);
    assert_eq!(read(&mut index, lane, 16).1, 1);
    // What is replayed before the whole one leaves the fold alone.
    for seq in 1..900 {
        index.removed(seq);
    }
    assert_eq!(read(&mut index, lane, 16).1, 0);
    index.removed(1_000);
    assert!(read(&mut index, lane, 16).1 > 0, "one that was folded is gone");
    for seq in 900..=1_001 {
        index.removed(seq);
    }
    assert_eq!((read(&mut index, lane, 16), index.fold_bytes()), ((Some(vec![]), 0), 0));
}

#[test]
fn a_fold_that_begins_with_a_whole_write_hangs_on_nothing_before_it() {
    let (mut index, lane) = (large(), LaneId(1));
    let before = push(&mut index, 1, 1, true);
    let whole = add(&mut index, 2, true);
    index.committed(whole);
    let reading = index.begin_fold(lane, 9, |_| true).unwrap();
    index.removed(before);
    index.folded(&reading, None, Arc::new(Value::new()), 1);
    assert!(matches!(index.in_lane(lane, |_| true), InLane::Folded(_)));
    index.removed(whole);
    assert!(matches!(index.in_lane(lane, |_| true), InLane::Nothing));
}

#[test]
fn folds_are_bounded_in_bytes() {
    let mut index = large();
    for lane in 1..=20 {
        push(&mut index, lane, lane, true);
        let reading = index.begin_fold(LaneId(lane), 9, |_| true).unwrap();
        let bytes = if lane == 20 { u64::MAX } else { 1 << 20 };
        index.folded(&reading, None, Arc::new(Value::new()), bytes);
        assert!(index.fold_bytes() <= 8 << 20);
    }
    assert!(matches!(index.in_lane(LaneId(20), |_| true), InLane::Unfolded), "too large");
    assert!(matches!(index.in_lane(LaneId(19), |_| true), InLane::Folded(_)));
    assert!(matches!(index.in_lane(LaneId(1), |_| true), InLane::Unfolded), "an old one");
}

#[test]
fn a_fold_that_fills_the_bound_is_kept_and_a_larger_one_takes_no_other_away() {
    let mut index = large();
    push(&mut index, 1, 1, true);
    push(&mut index, 2, 2, true);
    let mut keeps = |lane, bytes| {
        let reading = index.begin_fold(LaneId(lane), 9, |_| true).unwrap();
        index.folded(&reading, None, Arc::new(Value::new()), bytes);
        let is_kept = matches!(index.in_lane(LaneId(lane), |_| true), InLane::Folded(_));
        (is_kept, index.fold_bytes())
    };
    let most = (8 << 20) - 256;
    assert_eq!(keeps(1, 10), (true, 266));
    assert_eq!(keeps(2, most + 1), (false, 266), "the first one stays");
    assert_eq!(keeps(2, most), (true, 8 << 20));
}

#[test]
fn a_write_whose_body_may_be_another_is_read_again() {
    let (mut index, lane) = (large(), LaneId(1));
    let (first, _) = (push(&mut index, 1, 1, true), push(&mut index, 2, 1, true));
    assert_eq!(read(&mut index, lane, 9).1, 2);
    index.was_rewritten(first);
    assert_eq!(read(&mut index, lane, 9).1, 2);
}

#[test]
fn what_changes_while_it_is_read_is_not_kept() {
    let (mut index, lane) = (large(), LaneId(1));
    let (first, _) = (push(&mut index, 1, 1, true), push(&mut index, 2, 1, true));
    let reading = index.begin_fold(lane, 9, |_| true).unwrap();
    index.removed(first);
    index.folded(&reading, None, Arc::new(vec![(9_u64, None::<u64>)]), 1);
    assert_eq!(read(&mut index, lane, 9).0, in_full(&index, lane));
    assert!(matches!(index.in_lane(lane, |_| false), InLane::Unfolded));
    index.begin_fold(lane, 9, |_| false).unwrap();
    assert_eq!(
        read(&mut index, lane, 9),
        (in_full(&index, lane), 1),
        "one of no use is begun anew"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Accept(bool),
    Commit,
    Claim,
    Unclaim,
    Fill,
    Take,
    Remove,
    Residue,
    Bury(bool),
    Release,
    Requeue,
    NotRequeued,
    Discard(usize),
    Barrier,
    Read(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::bool::weighted(0.2).prop_map(Step::Accept),
        6 => Just(Step::Commit),
        1 => Just(Step::Claim),
        1 => Just(Step::Unclaim),
        1 => Just(Step::Fill),
        3 => Just(Step::Take),
        3 => Just(Step::Remove),
        1 => Just(Step::Residue),
        1 => any::<bool>().prop_map(Step::Bury),
        1 => Just(Step::Release),
        1 => Just(Step::Requeue),
        1 => Just(Step::NotRequeued),
        1 => (0_usize..9).prop_map(Step::Discard),
        1 => Just(Step::Barrier),
        5 => (1_usize..4).prop_map(Step::Read),
    ]
}

proptest! {
    /// Whatever happens to a lane, a reader finds what all of its writes come to.
    #[test]
    fn a_reader_finds_what_a_full_reading_would(
        steps in proptest::collection::vec(step(), 1..150),
    ) {
        let (mut index, lane) = (large(), LaneId(1));
        let (mut op, mut barriers) = (0, Vec::new());
        let (mut committing, mut claims) = (std::collections::VecDeque::new(), Vec::new());
        let (mut sending, mut removing, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        let mut requeued: Option<(u64, u64, Entry)> = None;
        for step in steps {
            match step {
                Step::Accept(whole) => {
                    op += 1;
                    committing.push_back(add(&mut index, op, whole));
                }
                Step::Commit => if let Some(seq) = committing.pop_front() { index.committed(seq); },
                Step::Claim => claims.push(index.claim(&Lanes::One(lane)).0),
                Step::Unclaim => if let Some(seq) = claims.pop() { index.unclaim(seq); },
                Step::Fill => if let Some(seq) = claims.pop() {
                    op += 1;
                    index.admit(entry(op, 1, true), false, Some(seq)).unwrap();
                    committing.push_back(seq);
                },
                Step::Take => sending.extend(index.take(at(0))),
                Step::Remove => {
                    for seq in removing.drain(..) { index.removed(seq); }
                    if let Some(seq) = sending.pop() {
                        index.applied(seq);
                        removing.push(seq);
                    }
                }
                Step::Residue => if let Some(seq) = sending.pop() {
                    index.became_residue(seq, Lanes::One(lane), UnixMillis::new(op), 1);
                },
                Step::Bury(holds) => if let Some(seq) = sending.pop() {
                    index.buried(seq, "no", holds);
                    dead.push(seq);
                },
                Step::Release => if let Some(seq) = dead.last() { index.release(*seq); },
                Step::Requeue => if requeued.is_none() && let Some(seq) = dead.pop() {
                    let before = index.get(seq).unwrap().clone();
                    let new = index.requeue(seq, false).unwrap();
                    requeued = Some((seq, new, before));
                },
                Step::NotRequeued => if let Some((seq, new, before)) = requeued.take() {
                    if op % 2 == 0 {
                        index.removed(new);
                        index.not_requeued(seq, before);
                        dead.push(seq);
                    } else {
                        index.unclaim(seq);
                        index.committed(new);
                    }
                },
                Step::Discard(nth) => {
                    let found = index.page(false, 0).nth(nth).map(|(seq, entry)| (seq, entry.phase));
                    if let Some((seq, Phase::Waiting)) = found {
                        index.applied(seq);
                        index.removed(seq);
                    }
                }
                Step::Barrier => if let Some(seq) = barriers.pop() {
                    sending.retain(|it| *it != seq);
                    removing.retain(|it| *it != seq);
                    dead.retain(|it| *it != seq);
                    index.removed(seq);
                } else {
                    op += 1;
                    let entry = entry_with((op, 1, true), |it| it.lanes = Lanes::All);
                    let seq = index.admit(entry, false, None).unwrap();
                    index.committed(seq);
                    barriers.push(seq);
                },
                Step::Read(most) => {
                    let full = in_full(&index, lane);
                    prop_assert_eq!(read(&mut index, lane, most).0, full.clone());
                    prop_assert_eq!(read(&mut index, lane, most), (full, 0), "it is read once");
                }
            }
        }
        for seq in index.page(false, 0).map(|(seq, _)| seq).collect::<Vec<_>>() {
            index.removed(seq);
        }
        prop_assert_eq!(index.fold_bytes(), 0, "an empty lane has no fold");
    }
}
