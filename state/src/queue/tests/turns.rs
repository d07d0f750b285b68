//! Groups, and the last write of a lane.

use super::*;

/// An insert that may go with others; it has no lane.
fn row(index: &mut QueueIndex, op: u64) -> u64 {
    put(index, row_entry(op))
}

fn row_entry(op: u64) -> Entry {
    entry_with((op, 0, false), |it| {
        it.traits = Traits::gathered(1);
        it.lanes = Lanes::new([]);
    })
}

/// A write of the whole value of `lane`, accepted then.
fn whole(index: &mut QueueIndex, op: u64, lane: u64, accepted: u64) -> u64 {
    let entry = entry_with((op, lane, true), |it| {
        it.traits = Traits::of(true, false);
        it.accepted_at = UnixMillis::new(accepted);
    });
    put(index, entry)
}

pub(super) fn accepted(index: &mut QueueIndex, op: u64, lane: u64, at: u64) -> u64 {
    put(index, entry_with((op, lane, true), |it| it.accepted_at = UnixMillis::new(at)))
}

fn put(index: &mut QueueIndex, entry: Entry) -> u64 {
    let seq = index.admit(entry, false, None).unwrap();
    index.committed(seq);
    seq
}

pub(super) fn turn(index: &mut QueueIndex) -> Option<Turn> {
    let seq = index.take(at(0))?;
    Some(index.turn(seq, 4, 1_000))
}

pub(super) fn many() -> QueueIndex {
    QueueIndex::new(QueueLimits { items: 100, bytes: 100_000, ..LIMITS }, 0)
}

#[test]
fn calls_that_may_go_together_do_and_no_others() {
    let mut index = many();
    let (a, b) = (row(&mut index, 1), row(&mut index, 2));
    let other = push(&mut index, 3, 3, false);
    let named = put(&mut index, Entry { own_name: true, ..row_entry(4) });
    let mut doubted = row_entry(5);
    doubted.state = WriteState::restored(Repeat::Token, true);
    let doubted = put(&mut index, doubted);
    let c = row(&mut index, 6);
    assert_eq!(turn(&mut index).unwrap().seqs, [a, b, c]);
    for alone in [other, named, doubted] {
        assert_eq!(turn(&mut index).unwrap().seqs, [alone]);
    }
    assert_eq!(turn(&mut index), None);
}

#[test]
fn a_group_keeps_to_its_limits_and_is_halved_until_one_is_alone() {
    let mut index = many();
    let rows: Vec<u64> = (0..9).map(|op| row(&mut index, op)).collect();
    let first = turn(&mut index).unwrap();
    assert_eq!(first.seqs, rows[..4], "four at most");
    let mut sizes = Vec::new();
    let mut seqs = first.seqs;
    while seqs.len() > 1 {
        sizes.push(seqs.len());
        index.form_group(seqs.clone(), OpId::from_u128(9), false);
        index.dissolve_group(seqs[0], true);
        for seq in &seqs {
            index.put_back(*seq);
        }
        seqs = turn(&mut index).unwrap().seqs;
    }
    assert_eq!((sizes, seqs), (vec![4, 2], vec![rows[0]]));
    // Nine of 100 bytes: ten fit.
    assert_eq!(index.get(rows[8]).unwrap().details().group_max, u32::MAX);
}

#[test]
fn calls_go_together_up_to_a_limit_of_bytes_and_smaller_ones_fill_what_is_left() {
    let together = |bytes| {
        let mut index = many();
        for (op, bytes) in (1..).zip([100, 150, 100, 50]) {
            put(&mut index, Entry { bytes, ..row_entry(op) });
        }
        let seq = index.take(at(0)).unwrap();
        index.turn(seq, 4, bytes).seqs
    };
    assert_eq!(together(50), [1], "one goes however large it is");
    assert_eq!(together(249), [1, 3]);
    assert_eq!(together(250), [1, 2]);
    assert_eq!(together(399), [1, 2, 3]);
    assert_eq!(together(400), [1, 2, 3, 4]);
}

#[test]
fn nobody_goes_into_a_group_larger_than_it_may() {
    let together = |most: [u32; 4]| {
        let mut index = many();
        for (op, group_max) in (1..).zip(most) {
            let mut entry = row_entry(op);
            entry.details_mut().group_max = group_max;
            put(&mut index, entry);
        }
        turn(&mut index).unwrap().seqs
    };
    assert_eq!(together([9, 9, 9, 9]), [1, 2, 3, 4]);
    assert_eq!(together([3, 9, 9, 9]), [1, 2, 3]);
    assert_eq!(together([1, 9, 9, 9]), [1]);
    assert_eq!(together([9, 2, 9, 9]), [1, 2], "nobody joins the second");
    assert_eq!(together([9, 9, 2, 9]), [1, 2, 4], "the third joins no two");
}

#[test]
fn dead_letters_that_were_sent_as_one_count_as_one_until_the_last_is_gone() {
    let grouped = || {
        let mut index = many();
        for seq in 1..=4 {
            index.restore(seq, row_entry(seq), true, false);
        }
        assert_eq!(index.dead(), (4, 400));
        index.form_group(vec![1, 2, 3], OpId::from_u128(9), false);
        assert_eq!(index.dead(), (2, 400));
        index
    };
    let mut index = grouped();
    for (seq, left, members) in [(2, (2, 300), vec![1, 3]), (1, (2, 200), vec![3])] {
        index.removed(seq);
        assert_eq!(index.dead(), left);
        let group = index.group(1).unwrap();
        assert_eq!((&group.members, group.token), (&members, OpId::from_u128(9)));
    }
    index.removed(3);
    assert_eq!((index.dead(), index.group(1)), ((1, 100), None));
    let mut index = grouped();
    assert_eq!(index.revive(1), Some(vec![1, 2, 3]));
    assert_eq!((index.dead(), index.bytes(), index.len()), ((1, 100), 300, 3));
}

#[test]
fn a_group_is_sent_again_as_itself_and_is_one_dead_letter() {
    let mut index = many();
    let rows: Vec<u64> = (0..4).map(|op| row(&mut index, op)).collect();
    let sent = turn(&mut index).unwrap().seqs;
    index.form_group(sent.clone(), OpId::from_u128(9), false);
    for seq in &sent {
        let entry = index.get_mut(*seq).unwrap();
        entry.state.sent();
        entry.state.end(End::Unknown);
        index.retry(*seq, at(0), "timeout");
    }
    let more = row(&mut index, 7);
    let again = turn(&mut index).unwrap();
    assert_eq!((again.seqs, again.again), (rows.clone(), true), "and nothing new with it");
    assert_eq!(turn(&mut index).unwrap().seqs, [more]);
    for seq in &rows {
        index.buried(*seq, "ambiguous", false);
    }
    assert_eq!(index.dead(), (1, 400));
    assert!(!index.dead_full(1), "four calls, one dead letter of two");
    assert_eq!(index.revive(rows[0]), Some(rows.clone()));
    assert!(turn(&mut index).is_none(), "not before it is stored");
    for seq in &rows {
        index.committed(*seq);
    }
    assert_eq!(index.dead(), (0, 0));
    let revived = turn(&mut index).unwrap();
    assert_eq!((revived.seqs, revived.again), (rows.clone(), true));
    for seq in &rows {
        index.applied(*seq);
        index.removed(*seq);
    }
    assert_eq!(index.group(rows[0]), None);
    assert_eq!(index.len(), 1);
}

#[test]
fn calls_that_were_sent_as_one_and_find_no_room_wait_for_the_first_of_them() {
    let mut index = many();
    let rows: Vec<u64> = (0..3).map(|op| row(&mut index, op)).collect();
    assert_eq!(turn(&mut index).unwrap().seqs, rows);
    index.form_group(rows.clone(), OpId::from_u128(9), false);
    index.sentence(rows[0], DeadReason::Ambiguous, "nobody knows");
    index.retry(rows[0], at(10), "nobody knows");
    let phases: Vec<Phase> = rows.iter().map(|seq| index.get(*seq).unwrap().phase).collect();
    assert_eq!(phases, [Phase::BackingOff, Phase::Waiting, Phase::Waiting], "none is on the wire");
    assert_eq!(index.take(at(9)), None);
    assert_eq!((index.take(at(10)), index.take(at(10))), (Some(rows[0]), None));
    assert!(index.get(rows[0]).unwrap().details().verdict.is_some());
    index.put_back(rows[0]);
    index.removed(rows[0]);
    assert_eq!(index.take(at(10)), Some(rows[1]), "it is the first now");
}

#[test]
fn only_the_last_write_of_a_lane_that_sets_its_whole_value_is_sent() {
    let mut index = many();
    let (a, b) = (whole(&mut index, 1, 1, 0), push(&mut index, 2, 1, true));
    let (c, d) = (whole(&mut index, 3, 1, 0), push(&mut index, 4, 1, true));
    let first = turn(&mut index).unwrap();
    assert_eq!((first.seqs, first.overtaken), (vec![c], vec![a, b]));
    for seq in [a, b, c] {
        let entry = index.get(seq).unwrap();
        assert_eq!((entry.phase, entry.attempts()), (Phase::Sending, 1));
    }
    assert_eq!(turn(&mut index), None, "the lane is busy");
    // It was not applied after all: the line is what it was.
    index.put_back(c);
    index.put_back(b);
    index.retry(a, at(0), "refused");
    let again = turn(&mut index).unwrap();
    assert_eq!((again.seqs, again.overtaken), (vec![c], vec![a, b]));
    for seq in [a, b, c] {
        index.applied(seq);
    }
    assert_eq!(turn(&mut index).unwrap().seqs, [d]);
}

#[test]
fn one_with_a_verdict_is_not_sent_in_the_place_of_others() {
    let mut index = many();
    let (a, b) = (whole(&mut index, 1, 1, 0), whole(&mut index, 2, 1, 0));
    assert_eq!(turn(&mut index).unwrap().seqs, [b]);
    index.sentence(b, DeadReason::Rejected, "refused");
    index.put_back(b);
    index.put_back(a);
    let first = turn(&mut index).unwrap();
    assert_eq!((first.seqs, first.overtaken), (vec![a], vec![]));
}

#[test]
fn one_write_overtakes_1_024_at_most() {
    let mut index = QueueIndex::new(QueueLimits { items: 2_000, bytes: 1 << 40, ..LIMITS }, 0);
    for op in 1..=1_100 {
        whole(&mut index, op, 1, 0);
    }
    let first = turn(&mut index).unwrap();
    assert_eq!((first.seqs, first.overtaken), (vec![1_025], (1..=1_024).collect()));
}

#[test]
fn a_write_that_matters_is_never_skipped() {
    type Change = fn(&mut Entry);
    let changes: [(&str, Change); 3] = [
        ("not absolute", |entry| entry.state = WriteState::fresh(Repeat::Token)),
        ("a name of its own", |entry| entry.own_name = true),
        ("another lane", |entry| entry.header.lanes = Lanes::new([LaneId(1), LaneId(2)])),
    ];
    for (what, change) in changes {
        let mut index = many();
        let a = whole(&mut index, 1, 1, 0);
        let mut between = entry(2, 1, true);
        change(&mut between);
        put(&mut index, between);
        whole(&mut index, 3, 1, 0);
        assert_eq!(turn(&mut index).unwrap().seqs, [a], "{what}");
    }
    let mut index = many();
    let a = whole(&mut index, 1, 1, 0);
    let pending = index.admit(entry(2, 1, true), false, None).unwrap();
    whole(&mut index, 3, 1, 0);
    assert_eq!(turn(&mut index).unwrap().seqs, [a], "one before it is not durable yet");
    index.committed(pending);
}

#[test]
fn a_group_waits_again_once_however_often_it_is_asked_to() {
    let mut index = many();
    let rows: Vec<u64> = (0..3).map(|op| row(&mut index, op)).collect();
    index.form_group(rows.clone(), OpId::from_u128(9), false);
    assert_eq!(index.revive(rows[0]), None, "it waits");
    for seq in &rows {
        index.buried(*seq, "ambiguous", false);
    }
    assert_eq!(index.revive(rows[0]), Some(rows.clone()));
    assert_eq!(index.revive(rows[0]), None, "that is being stored");
    for seq in &rows {
        index.committed(*seq);
    }
    assert_eq!(index.revive(rows[0]), None);
    assert_eq!((index.dead(), index.len()), ((0, 0), 3));
}

#[test]
fn a_call_that_could_move_waits_for_a_group_that_takes_its_old_place() {
    let mut index = many();
    let (first, behind) = (push(&mut index, 1, 1, false), push(&mut index, 2, 1, false));
    index.form_group(vec![first], OpId::from_u128(7), false);
    index.buried(first, "rejected", false);
    assert_eq!(index.revive(first), Some(vec![first]));
    assert_eq!(index.take(at(0)), None, "it is being stored");
    index.committed(first);
    assert_eq!(index.take(at(0)), Some(first));
    index.applied(first);
    index.removed(first);
    assert_eq!(index.take(at(0)), Some(behind));
}
