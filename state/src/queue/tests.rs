use proptest::prelude::*;

use super::*;
use crate::{
    store::{CallHeader, DeadReason},
    units::{LaneId, object_of},
    write::Repeat,
};

mod bounds;
mod folds;
mod long;
mod residues;
mod stuck;
mod turns;

const LIMITS: QueueLimits =
    QueueLimits { items: 10, bytes: 10_000, dead_items: 2, dead_bytes: 10_000 };

fn at(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

fn entry(op: u64, lane: u64, absolute: bool) -> Entry {
    let token = if absolute { TokenKind::Absolute } else { TokenKind::Marker };
    let header = CallHeader {
        op_id: OpId::from_u128(op.into()),
        digest: 1,
        uid: 0,
        lanes: Lanes::One(LaneId(lane)),
        token,
        traits: Traits::default(),
        accepted_at: UnixMillis::new(0),
    };
    Entry::new(header, object_of("k"), WriteState::fresh(token.repeat()), false, 100)
}

/// The same with another header.
fn entry_with(
    (op, lane, absolute): (u64, u64, bool),
    change: impl FnOnce(&mut CallHeader),
) -> Entry {
    let mut entry = entry(op, lane, absolute);
    change(&mut entry.header);
    entry
}

impl QueueIndex {
    /// The durable writes in the line of `lane`, oldest first; `None` if a barrier or a dead letter
    /// that holds the lane makes the lane's value unknowable.
    fn writes(&self, lane: LaneId) -> Option<Vec<u64>> {
        let members = self.lanes.line_from(lane, 0, &self.calls)?.collect::<Vec<u64>>();
        let mut writes = Vec::with_capacity(members.len());
        for seq in members {
            match self.calls.entries.get(seq) {
                Some(entry) if entry.phase == Phase::Committing => {}
                None if self.calls.claims.contains_key(&seq) => {}
                Some(_) => writes.push(seq),
                None => return None,
            }
        }
        Some(writes)
    }
}

fn index() -> QueueIndex {
    QueueIndex::new(LIMITS, 0)
}

fn push(index: &mut QueueIndex, op: u64, lane: u64, absolute: bool) -> u64 {
    let seq = index.admit(entry(op, lane, absolute), false, None).unwrap();
    index.committed(seq);
    seq
}

#[test]
fn a_call_is_replayed_only_once_it_is_durable() {
    let mut index = index();
    let seq = index.admit(entry(1, 1, true), false, None).unwrap();
    assert!(index.is_occupied(&Lanes::One(LaneId(1))));
    assert_eq!(index.take(at(0)), None);
    assert_eq!(index.writes(LaneId(1)), Some(vec![]));
    index.committed(seq);
    assert_eq!(index.writes(LaneId(1)), Some(vec![seq]));
    assert_eq!(index.take(at(0)), Some(seq));
}

#[test]
fn an_absolute_call_follows_an_applied_one_and_any_other_waits_for_its_removal() {
    let mut index = index();
    let (first, second, third) =
        (push(&mut index, 1, 1, true), push(&mut index, 2, 1, true), push(&mut index, 3, 1, false));
    assert_eq!(index.take(at(0)), Some(first));
    assert_eq!(index.take(at(0)), None);
    index.applied(first);
    assert_eq!(index.take(at(0)), Some(second));
    index.applied(second);
    assert_eq!(index.take(at(0)), None, "the third is not absolute");
    index.removed(first);
    assert_eq!(index.take(at(0)), None);
    index.removed(second);
    assert_eq!(index.take(at(0)), Some(third));
    assert!(index.is_occupied(&Lanes::One(LaneId(1))));
    index.applied(third);
    index.removed(third);
    assert!(!index.is_occupied(&Lanes::One(LaneId(1))) && index.is_empty());
}

#[test]
fn a_backoff_holds_its_lane_and_no_other() {
    let mut index = index();
    let (first, second, other) =
        (push(&mut index, 1, 1, true), push(&mut index, 2, 1, true), push(&mut index, 3, 2, true));
    assert_eq!(index.take(at(0)), Some(first));
    index.retry(first, at(1_000), "LOADING");
    assert_eq!(index.take(at(0)), Some(other));
    assert_eq!(index.take(at(999)), None);
    assert_eq!(index.next_due(), Some(at(1_000)));
    assert_eq!(index.take(at(1_000)), Some(first));
    index.applied(first);
    assert_eq!(index.take(at(1_000)), Some(second));
}

#[test]
fn a_dead_letter_frees_its_lane_unless_it_is_to_block_it() {
    for holds in [false, true] {
        let mut index = index();
        let (first, second) = (push(&mut index, 1, 1, true), push(&mut index, 2, 1, true));
        assert_eq!(index.take(at(0)), Some(first));
        index.buried(first, "rejected", holds);
        assert_eq!(index.take(at(0)), (!holds).then_some(second));
        assert_eq!(index.writes(LaneId(1)).is_none(), holds);
        index.removed(first);
        assert_eq!(index.dead(), (0, 0));
        assert_eq!(index.take(at(0)), holds.then_some(second));
    }
}

#[test]
fn a_requeued_call_goes_to_the_tail_under_its_old_name() {
    let mut index = index();
    let first = push(&mut index, 1, 1, true);
    assert_eq!(index.take(at(0)), Some(first));
    index.buried(first, "rejected", false);
    assert!(!index.get(first).unwrap().details().written_since);
    let waits = push(&mut index, 7, 9, true);
    push(&mut index, 8, 9, true);
    assert_eq!(index.take(at(0)), Some(waits));
    index.buried(waits, "rejected", false);
    assert!(index.get(waits).unwrap().details().written_since, "another stood behind it");
    index.removed(waits);
    index.removed(waits + 1);
    let second = push(&mut index, 2, 1, true);
    assert!(index.get(first).unwrap().details().written_since);
    let again = index.requeue(first, false).unwrap();
    index.committed(again);
    assert_eq!(index.find(OpId::from_u128(1)), Some((again, false)));
    assert_eq!(index.take(at(0)), Some(second));
    index.applied(second);
    assert_eq!(index.take(at(0)), Some(again));
}

#[test]
fn it_is_full_at_its_limit_until_eighty_percent_and_sheds_from_eighty_five() {
    let mut index = QueueIndex::new(QueueLimits { items: 20, ..LIMITS }, 0);
    for op in 0..17 {
        push(&mut index, op, op, true);
    }
    assert_eq!(index.admit(entry(90, 90, true), true, None), Err(Refusal::Shed));
    for op in 17..20 {
        push(&mut index, op, op, true);
    }
    assert!(matches!(
        index.admit(entry(91, 91, true), false, None),
        Err(Refusal::Full { calls: 20, limit: 20, .. })
    ));
    for seq in 1..=4 {
        index.removed(seq);
        assert!(index.admit(entry(92, 92, true), false, None).is_err(), "still at 80 % or above");
    }
    index.removed(5);
    assert!(index.admit(entry(93, 93, true), false, None).is_ok());
}

#[test]
fn it_is_full_by_bytes_too() {
    let mut index = index();
    let big = |op| Entry { bytes: 6_000, ..entry(op, 1, true) };
    assert!(index.admit(big(1), false, None).is_ok());
    let refusal = index.admit(big(2), false, None).map_err(|refusal| refusal.to_string());
    assert_eq!(refusal, Err("the queue is full: 1 of 10 calls, 5.9 KiB of 9.8 KiB".to_owned()));
    assert!(index.admit(entry(3, 1, true), false, None).is_ok(), "a small one still fits");
}

#[test]
fn an_op_id_is_known_with_its_body_and_conflicts_with_another() {
    let mut index = index();
    let seq = push(&mut index, 1, 1, true);
    assert_eq!(
        index.admit(entry(1, 1, true), false, None),
        Err(Refusal::Known { seq, dead: false })
    );
    let mut other = entry(1, 1, true);
    other.header.digest = 2;
    assert_eq!(index.admit(other, false, None), Err(Refusal::Conflict));
}

#[test]
fn what_the_store_brings_back_waits_again_and_dead_letters_need_force() {
    let mut index = index();
    index.restore(5, entry(1, 1, true), false, false);
    index.restore(6, entry(2, 2, true), true, false);
    index.restore(7, entry(3, 3, true), true, true);
    assert_eq!(index.take(at(0)), Some(5));
    assert!(index.get(6).unwrap().details().written_since);
    assert!(
        !index.is_occupied(&Lanes::One(LaneId(2))) && index.is_occupied(&Lanes::One(LaneId(3)))
    );
    assert_eq!(index.admit(entry(9, 9, true), false, None), Ok(8));
}

proptest! {
    /// Whatever happens to attempts, every call leaves in its lane's order, and the counters agree.
    #[test]
    fn lanes_stay_in_order_whatever_happens(
        steps in proptest::collection::vec((0u8..6, 0u64..3, any::<bool>()), 1..300),
    ) {
        let mut index = QueueIndex::new(QueueLimits { items: 1_000, bytes: 1 << 40, ..LIMITS }, 0);
        let (mut now, mut op) = (0, 0);
        let (mut sending, mut removing) = (Vec::new(), Vec::new());
        let mut last_applied = std::collections::HashMap::new();
        for (step, lane, absolute) in steps {
            match step {
                0 | 1 => { op += 1; push(&mut index, op, lane, absolute); }
                2 => sending.extend(index.take(at(now))),
                3 => if let Some(seq) = sending.pop() {
                    let entry = index.get(seq).unwrap();
                    let last = last_applied.insert(entry.header.lanes.clone(), seq);
                    prop_assert!(last.is_none_or(|last| last < seq));
                    let older = removing.iter().filter(|older| index.get(**older).unwrap().header.lanes == entry.header.lanes);
                    prop_assert!(entry.is_absolute() || older.count() == 0);
                    index.applied(seq);
                    removing.push(seq);
                },
                4 => if let Some(seq) = sending.pop() { index.retry(seq, at(now + 500), "x"); },
                _ => { now += 300; for seq in removing.drain(..) { index.removed(seq); } }
            }
            let bytes: u64 = index.page(false, 0).map(|(_, entry)| entry.size()).sum();
            prop_assert_eq!(index.bytes(), bytes);
        }
        for _ in 0..2_000 {
            now += 1_000;
            while let Some(seq) = index.take(at(now)) { sending.push(seq); }
            for seq in sending.drain(..) { index.applied(seq); removing.push(seq); }
            for seq in removing.drain(..) { index.removed(seq); }
        }
        prop_assert!(index.is_empty() && index.occupied_lanes() == 0);
    }
}

#[test]
fn what_is_discarded_while_it_backs_off_is_not_sent_again() {
    let mut index = index();
    let seq = push(&mut index, 1, 1, true);
    assert_eq!(index.take(at(0)), Some(seq));
    index.retry(seq, at(10), "down");
    index.applied(seq);
    assert_eq!((index.next_due(), index.take(at(20))), (None, None));
    index.retry_all();
    assert_eq!(index.take(at(20)), None);
    index.removed(seq);
    assert!(index.is_empty() && index.occupied_lanes() == 0);
}

#[test]
fn a_claimed_place_holds_its_lane_until_it_is_used_or_given_up() {
    let mut index = index();
    let (claim, behind) = index.claim(&Lanes::One(LaneId(1)));
    assert!(!behind);
    let (other, behind) = index.claim(&Lanes::One(LaneId(1)));
    assert!(!behind, "another claim is no call");
    index.unclaim(other);
    assert!(index.is_occupied(&Lanes::One(LaneId(1))));
    let newer = push(&mut index, 2, 1, true);
    assert_eq!(index.take(at(0)), None);
    assert_eq!(index.writes(LaneId(1)), Some(vec![newer]));
    let older = index.admit(entry(1, 1, true), false, Some(claim)).unwrap();
    assert_eq!(older, claim);
    index.committed(older);
    assert_eq!(index.take(at(0)), Some(older), "in the order of the claims");
    index.applied(older);
    assert_eq!(index.take(at(0)), Some(newer));

    assert!(index.claim(&Lanes::One(LaneId(1))).1, "a call stands before it");
    let (given_up, _) = index.claim(&Lanes::One(LaneId(3)));
    let waits = push(&mut index, 3, 3, true);
    assert_eq!(index.unclaim(given_up), Some(Lanes::One(LaneId(3))));
    assert_eq!(index.unclaim(given_up), None, "it is given up already");
    assert_eq!(index.take(at(0)), Some(waits));
}

#[test]
fn one_oversized_call_does_not_close_the_queue_to_others() {
    let mut index = index();
    let sized = |op, bytes| Entry { bytes, ..entry(op, 1, true) };
    assert!(index.admit(sized(1, 8_500), false, None).is_ok());
    assert!(matches!(index.admit(sized(2, 2_000), false, None), Err(Refusal::Full { .. })));
    assert!(index.admit(sized(3, 100), false, None).is_ok());
}

/// A dead letter that is being requeued while it holds its lane, with a call behind it.
struct Requeued {
    index: QueueIndex,
    dead: u64,
    behind: u64,
    old: Entry,
    new: u64,
}

fn requeued() -> Requeued {
    let mut index = index();
    let (dead, behind) = (push(&mut index, 1, 1, true), push(&mut index, 2, 1, true));
    assert_eq!(index.take(at(0)), Some(dead));
    index.buried(dead, "rejected", true);
    let old = index.get(dead).unwrap().clone();
    let new = index.requeue(dead, false).unwrap();
    Requeued { index, dead, behind, old, new }
}

#[test]
fn a_dead_letter_that_holds_its_lane_lets_go_once_its_requeue_is_stored() {
    for stored in [true, false] {
        let Requeued { mut index, dead, behind, old, new } = requeued();
        assert_eq!(index.take(at(0)), None, "a crash would bring it back as it was");
        if stored {
            index.committed(new);
            index.unclaim(dead);
            assert_eq!(index.take(at(0)), Some(behind));
        } else {
            index.removed(new);
            index.not_requeued(dead, old);
            assert_eq!((index.take(at(0)), index.dead(), index.len()), (None, (1, 100), 1));
            assert_eq!(index.find(OpId::from_u128(1)), Some((dead, true)));
            index.removed(dead);
            assert_eq!(index.take(at(0)), Some(behind), "discarded");
        }
    }
}

#[test]
fn a_dead_letter_whose_mark_is_synced_while_it_is_requeued_holds_no_lane_afterwards() {
    for stored in [true, false] {
        let Requeued { mut index, dead, behind, old, new } = requeued();
        index.release(dead);
        assert_eq!(index.take(at(0)), Some(behind));
        if stored {
            index.committed(new);
            index.unclaim(dead);
        } else {
            index.removed(new);
            index.not_requeued(dead, old);
        }
        index.removed(behind);
        assert_eq!(index.standing(), usize::from(stored), "{:?}", index.places());
    }
}

#[test]
fn dead_letters_block_while_one_more_has_no_room() {
    let mut index = index();
    assert!(!index.dead_letters_block());
    let large = Entry { bytes: 9_950, ..entry(1, 1, true) };
    let large = index.admit(large, false, None).unwrap();
    index.buried(large, "rejected", false);
    assert!(!index.dead_letters_block(), "a small one has room");
    let waits = push(&mut index, 2, 2, true);
    index.sentence(waits, DeadReason::Rejected, "no");
    assert!(index.dead_letters_block(), "this one has none");
    index.removed(large);
    assert!(!index.dead_letters_block());
    index.buried(waits, "rejected", false);
    let more = push(&mut index, 3, 3, true);
    index.buried(more, "rejected", false);
    assert!(index.dead_letters_block(), "two of two");
    index.removed(more);
    assert!(!index.dead_letters_block());
}
