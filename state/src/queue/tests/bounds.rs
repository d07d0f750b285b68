//! Limits at their very edge, and what each step leaves behind in counters, lines and names.

use super::*;
use crate::words::Words;

fn sized(op: u64, lane: u64, bytes: u32) -> Entry {
    Entry { bytes, ..entry(op, lane, true) }
}

fn admit(index: &mut QueueIndex, entry: Entry) -> Option<u64> {
    let seq = index.admit(entry, false, None).ok()?;
    index.committed(seq);
    Some(seq)
}

#[test]
fn what_fits_exactly_is_taken_and_not_a_byte_or_a_call_more() {
    let mut index = index();
    assert_eq!((index.bytes(), index.fill_percent(), index.is_empty()), (0, 0.0, true));
    assert!(admit(&mut index, sized(1, 1, 4_000)).is_some() && !index.is_full());
    assert_eq!((index.bytes(), index.fill_percent(), index.is_empty()), (4_000, 40.0, false));
    assert!(admit(&mut index, sized(2, 2, 6_001)).is_none(), "a byte too much");
    assert!(admit(&mut index, sized(3, 3, 6_000)).is_some() && index.is_full());
    assert_eq!((index.bytes(), index.len(), index.fill_percent()), (10_000, 2, 100.0));
    index.set_limits(QueueLimits { items: 3, bytes: 20_000, ..LIMITS });
    assert!(!index.is_full());
    assert!(admit(&mut index, sized(4, 4, 1)).is_some() && index.is_full(), "three of three calls");
    assert!(admit(&mut index, sized(5, 5, 1)).is_none());
    assert_eq!(index.limits().items, 3);
}

#[test]
fn what_arrives_counts_as_if_it_was_queued_until_it_is_or_is_given_up() {
    let mut index = index();
    let lanes = Lanes::One(LaneId(1));
    let (first, second) = (index.claim(&lanes).0, index.claim(&lanes).0);
    assert_eq!(index.arrives(first, 4_000), Ok(()));
    assert_eq!(index.arrives(second, 4_000), Ok(()));
    assert_eq!(index.arrives(first, 6_000), Ok(()), "two thousand more of it");
    let full = Refusal::Full { calls: 1, limit: 10, bytes: 6_000, limit_bytes: 10_000 };
    assert_eq!(index.arrives(second, 4_001), Err(full), "beside the other");
    assert_eq!((index.is_full(), index.fill_percent()), (true, 100.0));
    assert_eq!((index.len(), index.bytes()), (0, 0), "nothing waits yet");
    assert!(admit(&mut index, sized(3, 3, 1)).is_none());
    index.unclaim(second);
    assert_eq!(index.admit(sized(1, 1, 6_000), false, Some(first)), Ok(first));
    assert_eq!(index.unclaim(first), None);
    assert_eq!((index.len(), index.bytes(), index.fill_percent()), (1, 6_000, 60.0));

    let mut index = QueueIndex::new(QueueLimits { items: 1, ..LIMITS }, 0);
    let (first, second) = (index.claim(&lanes).0, index.claim(&lanes).0);
    assert!(index.arrives(first, 0).is_ok() && index.arrives(first, 5).is_ok());
    assert!(index.arrives(second, 0).is_err(), "one of one call");
}

#[test]
fn only_a_call_above_a_twentieth_of_the_limit_is_refused_without_closing_the_queue() {
    for (bytes, closes) in [(500, true), (501, false)] {
        let mut index = index();
        admit(&mut index, sized(1, 1, 9_600)).unwrap();
        assert!(admit(&mut index, sized(2, 2, bytes)).is_none());
        assert_eq!(index.is_full(), closes, "{bytes}");
        assert_eq!(admit(&mut index, sized(3, 3, 100)).is_none(), closes, "{bytes}");
    }
}

#[test]
fn what_was_full_takes_writes_again_below_eighty_percent_and_says_so() {
    let mut index = index();
    let (large, small) = (sized(1, 1, 1_600), sized(2, 2, 8_400));
    admit(&mut index, large).unwrap();
    admit(&mut index, small).unwrap();
    assert!(admit(&mut index, sized(3, 3, 1)).is_none() && index.is_full());
    index.removed(1);
    assert!(index.is_full(), "84 %");
    index.set_limits(QueueLimits { bytes: 10_500, ..LIMITS });
    assert!(index.is_full(), "80 %");
    assert!(admit(&mut index, sized(4, 4, 1)).is_none());
    index.set_limits(QueueLimits { bytes: 10_501, ..LIMITS });
    assert!(!index.is_full(), "below");
    assert!(admit(&mut index, sized(4, 4, 1)).is_some());
}

#[test]
fn low_priority_is_shed_from_eighty_five_percent_and_not_before() {
    let mut index = index();
    admit(&mut index, sized(1, 1, 8_499)).unwrap();
    let seq = index.admit(sized(2, 2, 1), true, None).unwrap();
    assert_eq!(index.bytes(), 8_500);
    assert_eq!(index.admit(sized(3, 3, 1), true, None), Err(Refusal::Shed));
    index.removed(seq);
    assert!(index.admit(sized(3, 3, 1), true, None).is_ok());
}

#[test]
fn dead_letters_have_room_up_to_their_limits() {
    let mut index = index();
    let seq = admit(&mut index, sized(1, 1, 4_000)).unwrap();
    index.buried(seq, "rejected", false);
    assert_eq!((index.dead(), index.bytes(), index.len()), ((1, 4_000), 0, 0));
    assert!(!index.dead_full(6_000) && index.dead_full(6_001));
    let again = index.requeue(seq, false).unwrap();
    assert_eq!((index.dead(), index.bytes()), ((0, 0), 4_000));
    assert!(index.dead_full(10_001) && !index.dead_full(10_000));
    index.removed(again);
    assert_eq!((index.dead(), index.bytes(), index.is_empty()), ((0, 0), 0, true));
}

#[test]
fn a_call_above_four_gibibytes_counts_for_all_that_it_has_and_the_others_take_no_more_for_it() {
    let mut index =
        QueueIndex::new(QueueLimits { bytes: 10 << 30, dead_bytes: 10 << 30, ..LIMITS }, 0);
    let huge = |op| {
        let Entry { header, object, state, .. } = entry(op, op, true);
        Entry::new(header, object, state, false, 6 << 30)
    };
    let seq = admit(&mut index, huge(1)).unwrap();
    assert_eq!(index.bytes(), 6 << 30);
    assert!(admit(&mut index, huge(2)).is_none(), "twelve of ten");
    index.buried(seq, "rejected", false);
    assert_eq!((index.dead(), index.bytes()), ((1, 6 << 30), 0));
    let again = index.requeue(seq, false).unwrap();
    assert_eq!((index.dead(), index.bytes()), ((0, 0), 6 << 30));
    index.became_residue(again, Lanes::One(LaneId(1)), UnixMillis::new(9), 40);
    assert_eq!(index.bytes(), 40);
    index.removed(again);
    assert_eq!((index.bytes(), size_of::<Entry>()), (0, 88));
}

#[test]
fn sequences_go_on_above_whatever_was_seen() {
    let mut index = index();
    assert_eq!(index.last_seq(), 0);
    let early = entry_with((1, 1, true), |it| it.accepted_at = UnixMillis::new(9));
    index.restore(41, early, false, false);
    assert_eq!((index.last_seq(), index.oldest()), (41, Some(UnixMillis::new(9))));
    index.restore(43, entry(2, 2, true), true, false);
    assert_eq!((index.last_seq(), index.dead(), index.bytes()), (43, (1, 100), 100));
    index.follow(42);
    assert_eq!(index.last_seq(), 43);
    index.follow(50);
    assert_eq!(push(&mut index, 3, 3, true), 51);
    let (claim, _) = index.claim(&Lanes::One(LaneId(4)));
    assert_eq!((claim, index.last_seq(), index.standing(), index.occupied_lanes()), (52, 52, 3, 3));
    let waiting = |after| index.page(false, after).map(|(seq, _)| seq).collect::<Vec<_>>();
    assert_eq!((waiting(0), waiting(40), waiting(41)), (vec![41, 51], vec![41, 51], vec![51]));
    assert_eq!(index.page(true, 42).map(|(seq, _)| seq).collect::<Vec<_>>(), [43]);
    assert_eq!(index.page(true, 43).count(), 0);
}

#[test]
fn what_is_held_is_not_taken_until_it_is_put_back_as_it_was() {
    let mut index = index();
    let (waits, backs_off) = (push(&mut index, 1, 1, true), push(&mut index, 2, 2, true));
    index.hold(waits);
    assert_eq!(index.take(at(0)), Some(backs_off));
    index.retry(backs_off, at(5), "down");
    index.hold(backs_off);
    assert_eq!((index.next_due(), index.take(at(9)), index.has_ready()), (None, None, false));
    for (seq, attempts) in [(waits, 0), (backs_off, 1)] {
        index.put_back(seq);
        assert_eq!(index.get(seq).unwrap().attempts(), attempts);
        assert!(index.has_ready());
        assert_eq!(index.take(at(9)), Some(seq));
        assert_eq!(index.get(seq).unwrap().attempts(), attempts + 1);
        index.hold(seq);
        index.applied(seq);
        index.hold(seq);
        index.put_back(seq);
        assert_eq!(index.get(seq).unwrap().phase, Phase::Removing);
        index.committed(seq);
        assert_eq!(index.get(seq).unwrap().phase, Phase::Removing);
    }
}

#[test]
fn what_was_on_the_wire_when_it_is_put_back_or_buried_is_in_doubt() {
    for is_sent in [true, false] {
        let mut index = index();
        let (first, second) = (push(&mut index, 1, 1, true), push(&mut index, 2, 2, true));
        for seq in [first, second] {
            assert_eq!(index.take(at(0)), Some(seq));
            if is_sent {
                index.get_mut(seq).unwrap().state.sent();
            }
        }
        index.put_back(first);
        assert_eq!(index.get(first).unwrap().state.is_in_doubt(), is_sent);
        index.buried(second, "gave up", false);
        let dead = index.get(second).unwrap();
        assert_eq!(
            (dead.state.is_in_doubt(), dead.details().last_error.as_ref().map(Words::whole)),
            (is_sent, Some("gave up"))
        );
        assert!(index.get_mut(second).is_none());
        let again = index.requeue(second, true).unwrap();
        assert!(!index.get(again).unwrap().state.is_in_doubt(), "it was to be forgotten");
    }
}

#[test]
fn what_is_asked_for_again_is_tried_as_if_for_the_first_time() {
    for is_group in [false, true] {
        let mut index = index();
        let seq = push(&mut index, 1, 1, false);
        assert_eq!(index.take(at(0)), Some(seq));
        let entry = index.get_mut(seq).unwrap();
        let details = entry.details_mut();
        (details.unclassified, details.backoff_ms) = (3, 500);
        assert_eq!((entry.attempts(), entry.phase), (1, Phase::Sending));
        if is_group {
            index.form_group(vec![seq], OpId::from_u128(9), false);
        }
        index.buried(seq, "rejected", false);
        let again = if is_group {
            index.revive(seq).unwrap()[0]
        } else {
            index.requeue(seq, false).unwrap()
        };
        let entry = index.get(again).unwrap();
        let details = entry.details();
        assert_eq!((entry.attempts(), details.unclassified, details.backoff_ms), (0, 0, 0));
        assert_eq!(entry.phase, Phase::Committing);
    }
}

#[test]
fn a_backoff_ends_with_whatever_else_becomes_of_the_call() {
    let mut index = index();
    let seqs: Vec<u64> = (1..=4).map(|op| push(&mut index, op, op, true)).collect();
    for (seq, until) in seqs.iter().zip([10, 20, 30, 40]) {
        assert_eq!(index.take(at(0)), Some(*seq));
        index.retry(*seq, at(until), "down");
        let last_error = &index.get(*seq).unwrap().details().last_error;
        assert_eq!(last_error.as_ref().map(Words::whole), Some("down"));
    }
    index.buried(seqs[0], "rejected", false);
    assert_eq!(index.next_due(), Some(at(20)));
    index.removed(seqs[1]);
    assert_eq!(index.next_due(), Some(at(30)));
    assert_eq!(index.take(at(30)), Some(seqs[2]));
    assert_eq!((index.take(at(39)), index.next_due()), (None, Some(at(40))));
    index.retry_all();
    assert_eq!((index.take(at(39)), index.next_due()), (Some(seqs[3]), None));
}

#[test]
fn a_claim_over_every_lane_stands_behind_calls_but_not_behind_claims() {
    let mut index = index();
    let (first, behind) = index.claim(&Lanes::All);
    assert!(!behind);
    index.unclaim(first);
    assert_eq!(index.standing(), 0);
    let seq = push(&mut index, 1, 1, true);
    assert!(index.claim(&Lanes::All).1);
    assert!(index.claim(&Lanes::One(LaneId(7))).1, "behind what is over every lane");
    index.removed(seq);
}

#[test]
fn the_mark_of_a_dead_letter_lets_go_of_its_lane() {
    let mut index = index();
    let (dead, behind) = (push(&mut index, 1, 1, true), push(&mut index, 2, 1, true));
    assert_eq!(index.take(at(0)), Some(dead));
    index.release(dead);
    assert_eq!(index.take(at(0)), None, "it is no dead letter");
    index.buried(dead, "rejected", true);
    assert!(index.is_occupied(&Lanes::One(LaneId(1))) && index.take(at(0)).is_none());
    index.release(dead);
    assert_eq!(index.take(at(0)), Some(behind));
}

#[test]
fn a_name_is_that_of_the_newest_call_that_bears_it() {
    let mut index = index();
    let name = OpId::from_u128(1);
    let dead = push(&mut index, 1, 1, true);
    index.buried(dead, "rejected", false);
    assert_eq!(index.find(name), Some((dead, true)));
    assert_eq!(index.known(name, 1), Some(Refusal::Known { seq: dead, dead: true }));
    assert_eq!(index.known(name, 2), Some(Refusal::Conflict));
    assert_eq!(index.known(OpId::from_u128(9), 1), None);
    let entry = index.get(dead).unwrap().clone();
    let again = index.requeue(dead, false).unwrap();
    assert_eq!(index.find(name), Some((again, false)));
    index.removed(again);
    assert_eq!((index.find(name), index.get(again).is_none()), (None, true));
    index.not_requeued(dead, entry);
    assert_eq!((index.find(name), index.dead()), (Some((dead, true)), (1, 100)));
}

#[test]
fn who_follows_durably_leaves_out_what_is_not_stored_or_being_removed() {
    let mut index = index();
    let first = push(&mut index, 1, 1, true);
    let second = push(&mut index, 2, 1, true);
    let third = push(&mut index, 3, 1, true);
    let fourth = Entry { phase: Phase::Waiting, ..entry(4, 1, true) };
    let fourth = index.admit(fourth, false, None).unwrap();
    assert_eq!(index.get(fourth).unwrap().phase, Phase::Committing, "whatever it was");
    assert_eq!(index.following(first), [second, third]);
    index.committed(fourth);
    index.applied(second);
    assert_eq!(index.following(first), [third, fourth]);
    assert_eq!(index.following(third), [fourth]);
    assert_eq!(index.writes(LaneId(1)), Some(vec![first, second, third, fourth]));
}

#[test]
fn what_is_sentenced_blocks_until_it_is_gone() {
    let mut index = QueueIndex::new(QueueLimits { dead_items: 5, ..LIMITS }, 0);
    let dead = admit(&mut index, sized(2, 2, 4_001)).unwrap();
    index.buried(dead, "rejected", false);
    let waits = admit(&mut index, sized(1, 1, 6_000)).unwrap();
    assert!(!index.dead_letters_block());
    index.sentence(waits, DeadReason::Rejected, "no");
    assert!(index.dead_letters_block());
    assert!(index.get(waits).unwrap().details().verdict.is_some());
    index.removed(waits);
    assert!(!index.dead_letters_block());
    index.sentence(waits, DeadReason::Rejected, "it is gone");
    assert!(!index.dead_letters_block());
}

#[test]
fn calls_that_were_sent_as_one_need_room_for_all_of_them() {
    let mut index = index();
    let seqs: Vec<u64> =
        (1..=3).map(|op| admit(&mut index, sized(op, op, 3_000)).unwrap()).collect();
    index.form_group(seqs.clone(), OpId::from_u128(9), false);
    index.sentence(seqs[1], DeadReason::Ambiguous, "nobody knows");
    assert!(!index.dead_letters_block(), "9,000 of 10,000");
    index.set_limits(QueueLimits { dead_bytes: 8_999, ..LIMITS });
    assert!(index.dead_letters_block());
    assert!(index.get(seqs[0]).unwrap().details().verdict.is_some(), "the first has the verdict");
    assert!(index.get(seqs[1]).unwrap().details().verdict.is_none());
}
