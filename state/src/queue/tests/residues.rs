//! What is left to do of a write, and who comes before it.

use super::{
    turns::{accepted, many, turn},
    *,
};

#[test]
fn a_residue_lets_what_was_accepted_before_it_is_due_pass_and_holds_up_the_rest() {
    let mut index = many();
    let carrier = accepted(&mut index, 1, 1, 0);
    let (early, late) = (accepted(&mut index, 2, 1, 500), accepted(&mut index, 3, 1, 900));
    assert_eq!(turn(&mut index).unwrap().seqs, [carrier]);
    index.became_residue(carrier, Lanes::One(LaneId(1)), UnixMillis::new(800), 40);
    assert_eq!(index.bytes(), 240);
    assert_eq!(turn(&mut index).unwrap().seqs, [early], "accepted before it is due");
    assert_eq!(turn(&mut index), None);
    index.applied(early);
    assert_eq!(
        turn(&mut index),
        None,
        "a crash would bring it back, to a key that is gone by then"
    );
    index.removed(early);
    assert_eq!(turn(&mut index).unwrap().seqs, [carrier], "nothing is left before it");
    assert_eq!(turn(&mut index), None);
    index.applied(carrier);
    assert_eq!(turn(&mut index).unwrap().seqs, [late]);
}

#[test]
fn a_residue_waits_for_what_comes_before_it_is_due_and_may_move_to_other_lanes() {
    let mut index = many();
    let carrier = accepted(&mut index, 1, 1, 0);
    assert_eq!(turn(&mut index).unwrap().seqs, [carrier]);
    index.became_residue(carrier, Lanes::One(LaneId(1)), UnixMillis::new(800), 40);
    let new = index
        .admit(entry_with((2, 1, true), |it| it.accepted_at = UnixMillis::new(700)), false, None)
        .unwrap();
    assert_eq!(turn(&mut index), None, "one that it must let pass is being stored");
    index.committed(new);
    assert_eq!(turn(&mut index).unwrap().seqs, [new]);
    assert_eq!(index.residues_in(&Lanes::One(LaneId(1))), [carrier]);
    index.became_residue(carrier, Lanes::One(LaneId(2)), UnixMillis::new(800), 40);
    assert_eq!(index.residues_in(&Lanes::One(LaneId(1))), [0; 0]);
    assert!(index.is_occupied(&Lanes::One(LaneId(2))));
    assert_eq!(turn(&mut index).unwrap().seqs, [carrier]);
    index.applied(carrier);
    index.removed(carrier);
    assert!(!index.is_occupied(&Lanes::One(LaneId(2))));
    assert_eq!(index.residues_in(&Lanes::All), [0; 0]);
    assert!(index.residues.is_empty(), "nothing is kept of it");
}

/// They go on the wire one after the other: each is applied and removed before the next is taken.
#[track_caller]
fn go(index: &mut QueueIndex, seqs: &[u64]) {
    for seq in seqs {
        assert_eq!(index.take(at(0)), Some(*seq));
        assert_eq!(index.take(at(0)), None, "beside {seq}");
        index.applied(*seq);
        index.removed(*seq);
    }
}

/// A residue of lane 1 that is due at 800 and may move.
fn free_residue(index: &mut QueueIndex) -> u64 {
    let carrier = accepted(index, 1, 1, 0);
    assert_eq!(index.take(at(0)), Some(carrier));
    index.became_residue(carrier, Lanes::One(LaneId(1)), UnixMillis::new(800), 40);
    carrier
}

#[test]
fn a_residue_that_could_move_waits_for_whatever_comes_before_it_after_all() {
    // What the store brings back behind it.
    let mut index = many();
    let due = Traits::residue(UnixMillis::new(800));
    index.restore(5, entry_with((1, 1, true), |it| it.traits = due), false, false);
    index.restore(
        6,
        entry_with((2, 1, false), |it| it.accepted_at = UnixMillis::new(500)),
        false,
        false,
    );
    go(&mut index, &[6, 5]);

    // A live write in doubt.
    let mut index = many();
    let residue = free_residue(&mut index);
    let (claim, _) = index.claim(&Lanes::One(LaneId(1)));
    assert_eq!(index.take(at(0)), None);
    index.unclaim(claim);
    assert_eq!(index.take(at(0)), Some(residue));

    // A dead letter that is asked for again.
    let mut index = many();
    let dead = accepted(&mut index, 9, 1, 500);
    index.buried(dead, "rejected", false);
    let residue = free_residue(&mut index);
    let again = index.requeue(dead, true).unwrap();
    assert_eq!(index.take(at(0)), None);
    index.committed(again);
    go(&mut index, &[again, residue]);
}

#[test]
fn a_residue_is_tried_again_though_a_dead_letter_holds_its_lane_behind_it() {
    let mut index = many();
    let residue = free_residue(&mut index);
    assert_eq!(index.take(at(0)), Some(residue));
    let early = accepted(&mut index, 2, 1, 500);
    index.retry(residue, at(10), "down");
    assert_eq!(index.take(at(0)), Some(early));
    index.buried(early, "rejected", true);
    assert_eq!(index.take(at(10)), Some(residue));
}

#[test]
fn a_residue_moves_once_what_it_waited_for_is_a_dead_letter_that_holds_its_lane() {
    let mut index = many();
    let (carrier, early) = (accepted(&mut index, 1, 1, 0), accepted(&mut index, 2, 1, 500));
    assert_eq!(index.take(at(0)), Some(carrier));
    index.became_residue(carrier, Lanes::One(LaneId(1)), UnixMillis::new(800), 40);
    assert_eq!(index.take(at(0)), Some(early));
    index.buried(early, "WRONGTYPE", true);
    assert_eq!(index.take(at(0)), Some(carrier));
}

#[test]
fn a_residue_moves_though_the_requeue_of_a_dead_letter_behind_it_was_not_stored() {
    let mut index = many();
    let residue = free_residue(&mut index);
    let early = accepted(&mut index, 2, 1, 500);
    assert_eq!(index.take(at(0)), Some(early));
    index.buried(early, "WRONGTYPE", true);
    let old = index.get(early).unwrap().clone();
    let new = index.requeue(early, false).unwrap();
    assert_eq!(index.take(at(0)), None, "it may be stored");
    index.removed(new);
    index.not_requeued(early, old);
    assert_eq!(index.take(at(0)), Some(residue));
}

#[test]
fn a_residue_moves_once_a_claim_behind_it_is_a_call_that_comes_after_it() {
    let mut index = many();
    let residue = free_residue(&mut index);
    let (claim, _) = index.claim(&Lanes::One(LaneId(1)));
    assert_eq!(index.take(at(0)), None);
    let late = entry_with((2, 1, true), |it| it.accepted_at = UnixMillis::new(900));
    assert_eq!(index.admit(late, false, Some(claim)), Ok(claim));
    assert_eq!(index.take(at(0)), Some(residue));
}

#[test]
fn a_residue_that_was_a_dead_letter_lets_others_pass_as_before() {
    let mut index = many();
    let residue = free_residue(&mut index);
    assert_eq!(index.take(at(0)), Some(residue));
    index.buried(residue, "refused", false);
    let again = index.requeue(residue, false).unwrap();
    index.committed(again);
    let (early, late) = (accepted(&mut index, 2, 1, 500), accepted(&mut index, 3, 1, 900));
    assert_eq!(index.residues_in(&Lanes::One(LaneId(1))), [again]);
    go(&mut index, &[early, again, late]);
}

#[test]
fn a_residue_and_a_requeued_call_do_not_wait_for_each_other() {
    let mut index = many();
    let dead = accepted(&mut index, 9, 1, 500);
    index.buried(dead, "rejected", false);
    let residue = free_residue(&mut index);
    let late = accepted(&mut index, 2, 1, 900);
    let again = index.requeue(dead, true).unwrap();
    index.committed(again);
    go(&mut index, &[residue, late, again]);
}

#[test]
fn residues_do_not_wait_for_each_other() {
    let mut index = many();
    let residue = free_residue(&mut index);
    let longer = accepted(&mut index, 2, 1, 500);
    assert_eq!(index.take(at(0)), Some(longer));
    let late = accepted(&mut index, 3, 1, 900);
    index.became_residue(longer, Lanes::One(LaneId(1)), UnixMillis::new(5_000), 40);
    go(&mut index, &[residue, late, longer]);

    // Not even if the one was accepted after the other is due.
    let mut index = many();
    for (seq, accepted_at, due) in [(5, 0, 800), (6, 900, 5_000)] {
        let due = Traits::residue(UnixMillis::new(due));
        let entry = entry_with((seq, 1, true), |it| {
            (it.traits, it.accepted_at) = (due, UnixMillis::new(accepted_at));
        });
        index.restore(seq, entry, false, false);
    }
    assert_eq!((index.take(at(0)), index.take(at(0))), (Some(5), Some(6)));
}

#[test]
fn who_waits_for_a_residue_moves_once_that_moves_to_other_lanes() {
    let mut index = many();
    let carrier = free_residue(&mut index);
    let late = accepted(&mut index, 2, 1, 900);
    index.became_residue(carrier, Lanes::One(LaneId(2)), UnixMillis::new(800), 40);
    assert_eq!((index.take(at(0)), index.take(at(0))), (Some(carrier), Some(late)));
}

#[test]
fn who_may_pass_a_residue_does_so_while_that_backs_off() {
    let mut index = many();
    let carrier = free_residue(&mut index);
    assert_eq!(index.take(at(0)), Some(carrier));
    let early = accepted(&mut index, 2, 1, 500);
    assert_eq!(index.take(at(0)), None, "it is on the wire");
    index.retry(carrier, at(10), "down");
    assert_eq!(index.take(at(0)), Some(early));
    assert_eq!(index.take(at(20)), None);
}

/// What the model below does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Accepted then, in that lane.
    Accept(u64, u64),
    Commit,
    Claim(u64),
    Unclaim,
    /// A claim is used, by a call that was accepted then.
    Use(u64),
    Take,
    Apply,
    /// It leaves a residue, due then, in that lane.
    Leave(u64, u64),
    Retry,
    PutBack,
    Remove,
    /// It becomes a dead letter that holds its lane.
    Bury,
    Discard,
    Requeue,
    /// The requeue is stored, or is not going to be.
    Requeued(bool),
    Wait,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let (time, lane) = (0u64..4, 0u64..2);
    prop_oneof![
        3 => (time.clone(), lane.clone()).prop_map(|(time, lane)| Step::Accept(time, lane)),
        3 => Just(Step::Commit),
        1 => lane.clone().prop_map(Step::Claim),
        1 => Just(Step::Unclaim),
        1 => time.clone().prop_map(Step::Use),
        4 => Just(Step::Take),
        2 => Just(Step::Apply),
        2 => (time, lane).prop_map(|(time, lane)| Step::Leave(time, lane)),
        1 => Just(Step::Retry),
        1 => Just(Step::PutBack),
        2 => Just(Step::Remove),
        1 => Just(Step::Bury),
        1 => Just(Step::Discard),
        1 => Just(Step::Requeue),
        1 => any::<bool>().prop_map(Step::Requeued),
        1 => Just(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

/// A requeue on its way: the dead letter, its new place, and what it was.
type Requeuing = (u64, u64, Entry);

/// An index as a restart leaves it, with the requeues undone.
fn restarted(index: &QueueIndex, requeuing: &[Requeuing]) -> QueueIndex {
    let mut again = QueueIndex::new(index.limits(), index.last_seq());
    let calls = index.page(false, 0).filter(|(_, entry)| entry.phase != Phase::Committing);
    let calls = calls.map(|(seq, entry)| (seq, entry.clone(), false));
    let dead = index.page(true, 0).map(|(seq, entry)| (seq, entry.clone(), true));
    let undone = requeuing.iter().map(|(old, _, entry)| (*old, entry.clone(), true));
    let mut held: Vec<(u64, Entry, bool)> = calls.chain(dead).chain(undone).collect();
    held.sort_by_key(|(seq, ..)| *seq);
    for (seq, entry, is_dead) in held {
        again.restore(seq, entry, is_dead, true);
    }
    again
}

/// The calls that may move and are not known to: nobody would ever take them.
fn forgotten(index: &QueueIndex) -> Vec<u64> {
    let seqs = index.page(false, 0).map(|(seq, _)| seq);
    seqs.filter(|seq| index.may_move(*seq) && !index.ready.contains(*seq)).collect()
}

proptest! {
    /// Whatever happens: what is taken comes after nothing that is before it, what may move is known to, and everything
    /// ends.
    #[test]
    fn a_residue_comes_after_what_was_accepted_before_it_was_due(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut index = QueueIndex::new(QueueLimits { items: 1_000, bytes: 1 << 40, ..LIMITS }, 0);
        let (mut now, mut op) = (0, 0);
        let (mut committing, mut claims) = (Vec::new(), Vec::new());
        let (mut sending, mut removing) = (Vec::new(), Vec::new());
        let (mut dead, mut requeuing) = (Vec::new(), Vec::<Requeuing>::new());
        for step in steps {
            match step {
                Step::Accept(time, lane) => {
                    op += 1;
                    let accepted_at = UnixMillis::new(time);
                    let entry = entry_with((op, lane, op % 2 == 0), |it| it.accepted_at = accepted_at);
                    committing.push(index.admit(entry, false, None).unwrap());
                }
                Step::Use(time) => if let Some((claim, lane)) = claims.pop() {
                    op += 1;
                    let accepted_at = UnixMillis::new(time);
                    let entry = entry_with((op, lane, op % 2 == 0), |it| it.accepted_at = accepted_at);
                    committing.push(index.admit(entry, false, Some(claim)).unwrap());
                },
                Step::Commit => if let Some(seq) = committing.pop() { index.committed(seq); },
                Step::Claim(lane) => claims.push((index.claim(&Lanes::One(LaneId(lane))).0, lane)),
                Step::Unclaim => if let Some((seq, _)) = claims.pop() { index.unclaim(seq); },
                Step::Take => if let Some(seq) = index.take(at(now)) {
                    let taken = index.get(seq).unwrap();
                    let in_lane = |entry: &Entry| entry.header.lanes == taken.header.lanes;
                    let behind_dead = index.page(true, 0).any(|(other, it)| other < seq && in_lane(it));
                    prop_assert!(!behind_dead, "{}", seq);
                    for (other, entry) in index.page(false, 0).filter(|(_, it)| in_lane(it)) {
                        let before = other < seq && match entry.header.traits.due() {
                            Some(due) => taken.header.traits.due().is_none() && taken.header.accepted_at >= due,
                            None => true,
                        };
                        let gone = entry.phase == Phase::Removing
                            && taken.is_absolute() && taken.header.traits.due().is_none();
                        prop_assert!(!before || gone, "{} before {}", seq, other);
                    }
                    if let Some(due) = taken.header.traits.due() {
                        let next = index.page(false, seq)
                            .find(|(_, it)| in_lane(it) && it.header.traits.due().is_none());
                        prop_assert!(next.is_none_or(|(_, it)| it.header.accepted_at >= due));
                        let claim = |(other, lane): &(u64, u64)| {
                            Lanes::One(LaneId(*lane)) == taken.header.lanes
                                && next.is_none_or(|(next, _)| *other < next)
                        };
                        prop_assert!(!claims.iter().any(claim));
                    }
                    sending.push(seq);
                },
                Step::Apply => if let Some(seq) = sending.pop() {
                    index.applied(seq);
                    removing.push(seq);
                },
                Step::Leave(due, lane) => if let Some(seq) = sending.pop() {
                    index.became_residue(seq, Lanes::One(LaneId(lane)), UnixMillis::new(due), 40);
                },
                Step::Retry => if let Some(seq) = sending.pop() { index.retry(seq, at(now + 5), "x"); },
                Step::PutBack => if let Some(seq) = sending.pop() { index.put_back(seq); },
                Step::Remove => for seq in removing.drain(..) { index.removed(seq); },
                Step::Bury => if let Some(seq) = sending.pop() {
                    index.buried(seq, "x", true);
                    dead.push(seq);
                },
                Step::Discard => if let Some(seq) = dead.pop() { index.removed(seq); },
                Step::Requeue => if let Some(old) = dead.pop() {
                    let entry = index.get(old).unwrap().clone();
                    requeuing.push((old, index.requeue(old, false).unwrap(), entry));
                },
                Step::Requeued(stored) => if let Some((old, new, entry)) = requeuing.pop() {
                    if stored {
                        index.committed(new);
                        index.unclaim(old);
                    } else {
                        index.removed(new);
                        index.not_requeued(old, entry);
                        dead.push(old);
                    }
                },
                Step::Wait => now += 10,
                Step::Restart => {
                    index = restarted(&index, &requeuing);
                    for list in [&mut committing, &mut sending, &mut removing] { list.clear(); }
                    claims.clear();
                    dead.extend(requeuing.drain(..).map(|(old, ..)| old));
                }
            }
            prop_assert_eq!(forgotten(&index), Vec::<u64>::new());
        }
        for seq in committing { index.committed(seq); }
        for (seq, _) in claims { index.unclaim(seq); }
        for (old, new, _) in requeuing {
            index.committed(new);
            index.unclaim(old);
        }
        for seq in dead { index.removed(seq); }
        for seq in sending { index.put_back(seq); }
        for seq in removing { index.removed(seq); }
        for _ in 0..1_000 {
            now += 10;
            if let Some(seq) = index.take(at(now)) {
                index.applied(seq);
                index.removed(seq);
            }
        }
        prop_assert!(index.is_empty() && index.occupied_lanes() == 0, "{:?}", index);
    }
}
