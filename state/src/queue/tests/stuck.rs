//! Who waits for a lane that does not move.

use super::*;

fn stuck(index: &QueueIndex, lane: u64) -> bool {
    index.is_stuck(&Lanes::One(LaneId(lane)), false)
}

#[test]
fn a_lane_whose_head_backs_off_is_stuck_and_no_other() {
    let mut index = index();
    let (first, _) = (push(&mut index, 1, 1, true), push(&mut index, 2, 1, true));
    assert!(!stuck(&index, 1), "it may be sent at once");
    assert_eq!(index.take(at(0)), Some(first));
    assert!(!stuck(&index, 1), "it is on the wire");
    index.retry(first, at(1_000), "OOM");
    assert!(stuck(&index, 1) && !stuck(&index, 2));
    assert!(index.is_stuck(&Lanes::new([LaneId(1), LaneId(2)]), false));
    assert!(index.is_stuck(&Lanes::All, false));
    assert_eq!(index.take(at(1_000)), Some(first));
    index.applied(first);
    assert!(!stuck(&index, 1), "the next one may go");
}

#[test]
fn what_waits_for_a_stuck_lane_is_stuck_in_its_other_lanes() {
    let mut index = index();
    let first = push(&mut index, 1, 1, true);
    let both = entry_with((2, 0, true), |it| it.lanes = Lanes::new([LaneId(1), LaneId(2)]));
    let both = index.admit(both, false, None).unwrap();
    index.committed(both);
    assert!(!stuck(&index, 2));
    assert_eq!(index.take(at(0)), Some(first));
    index.retry(first, at(1_000), "OOM");
    assert!(stuck(&index, 2) && !stuck(&index, 3));
    let barrier =
        index.admit(entry_with((3, 0, true), |it| it.lanes = Lanes::All), false, None).unwrap();
    index.committed(barrier);
    assert!(stuck(&index, 3), "all wait for the barrier, and that for all");
}

#[test]
fn a_head_is_followed_through_the_lanes_that_hold_it_up() {
    let limits = QueueLimits { items: 1_000, bytes: 1 << 30, dead_items: 10, dead_bytes: 1 << 30 };
    let mut index = QueueIndex::new(limits, 0);
    let first = push(&mut index, 1, 1, true);
    for lane in 1..=300 {
        let lanes = Lanes::new([LaneId(lane), LaneId(lane + 1)]);
        let both = entry_with((10 + lane, 0, true), |it| it.lanes = lanes);
        let both = index.admit(both, false, None).unwrap();
        index.committed(both);
    }
    assert!([1, 6, 301].iter().all(|lane| !stuck(&index, *lane)));
    assert_eq!(index.take(at(0)), Some(first));
    index.retry(first, at(1_000), "OOM");
    assert!([1, 6, 256].iter().all(|lane| stuck(&index, *lane)));
    assert!(!stuck(&index, 257), "so far it is not followed");
}

#[test]
fn a_residue_that_lets_others_pass_does_not_hide_that_they_are_stuck() {
    let mut index = index();
    let carrier = push(&mut index, 1, 1, true);
    assert_eq!(index.take(at(0)), Some(carrier));
    index.became_residue(carrier, Lanes::One(LaneId(1)), UnixMillis::new(800), 40);
    let early = push(&mut index, 2, 1, true);
    assert_eq!(index.take(at(0)), Some(early));
    assert!(!stuck(&index, 1));
    index.retry(early, at(1_000), "OOM");
    assert!(stuck(&index, 1));
}

#[test]
fn a_dead_letter_that_holds_its_lane_is_waited_for_only_until_it_is_marked() {
    let mut index = index();
    let first = push(&mut index, 1, 1, true);
    assert_eq!(index.take(at(0)), Some(first));
    index.buried(first, "no", true);
    let lanes = Lanes::One(LaneId(1));
    assert_eq!((index.is_stuck(&lanes, false), index.is_stuck(&lanes, true)), (false, true));
}

#[test]
fn calls_of_many_lanes_are_looked_at_once_each() {
    let mut index = index();
    let lanes = || Lanes::new((1..=60).map(LaneId));
    let wide: Vec<u64> = (1..=8)
        .map(|op| {
            let entry = entry_with((op, 0, true), |it| it.lanes = lanes());
            let seq = index.admit(entry, false, None).unwrap();
            index.committed(seq);
            seq
        })
        .collect();
    assert_eq!(index.take(at(0)), Some(wide[0]));
    index.applied(wide[0]);
    // It is being removed; each of its lanes leads to all others.
    assert!(!index.is_stuck(&lanes(), false));
    index.removed(wide[0]);
    assert_eq!(index.take(at(0)), Some(wide[1]));
    index.retry(wide[1], at(1_000), "OOM");
    assert!(index.is_stuck(&lanes(), false));
}
