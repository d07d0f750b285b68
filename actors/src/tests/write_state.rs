//! What may be done with a write whose attempts failed: the seams between an attempt, its outcome and what is sent
//! next, live and queued, over restarts.

use fusebox_state::{queue::Phase, store::DeadReason, write::Known};

use super::*;
use crate::connector::Connector;

/// Queues calls while nothing is replayed.
async fn held(world: &World, bodies: impl IntoIterator<Item = String>) -> Vec<OpId> {
    world.backend().set_offline(true).await.unwrap();
    let names = queued(world, bodies).await;
    world.backend().set_offline(false).await.unwrap();
    names
}

async fn queued(world: &World, bodies: impl IntoIterator<Item = String>) -> Vec<OpId> {
    let mut names = Vec::new();
    for body in bodies {
        // A sync may take long on a busy machine.
        let options = CallOptions { deadline: Some(PATIENCE), ..durable() };
        let reply = world.call_with(&body, options).await.unwrap();
        assert_eq!(reply.source, Source::Queued, "{body}");
        names.push(reply.op_id.unwrap());
    }
    names
}

/// How often `body` was applied.
fn times(world: &World, body: &str) -> usize {
    world.server().applied.lock().iter().filter(|applied| *applied == body).count()
}

fn noted(world: &World) -> usize {
    let backend = world.backend();
    let index = backend.entry.shared.queue.index();
    index.page(false, 0).filter(|(_, entry)| entry.details().noted.is_some()).count()
}

#[tokio::test]
async fn what_never_left_is_not_in_doubt_after_a_restart() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    queued(&world, (0..5).map(|n| format!("INCR k{n}"))).await;
    world
        .until("replay has tried", |world| {
            let backend = world.backend();
            let index = backend.entry.shared.queue.index();
            index.page(false, 0).any(|(_, entry)| entry.details().last_error.is_some())
        })
        .await;
    assert_eq!((noted(&world), world.server().prepared.load(Ordering::Relaxed)), (0, 0));
    // Nothing tells repetitions apart: whatever is in doubt would be a dead letter.
    world.server().tokenless.store(true, Ordering::Relaxed);
    let world = world.restart(vec![settings("one")]).await;
    world.server().set(Mode::Up);
    world.drained().await;
    assert_eq!(world.backend().view().queue.dead_letters, 0);
    assert_eq!(world.server().applied.lock().len(), 5);
}

#[tokio::test]
async fn nothing_is_noted_while_nothing_connects() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    queued(&world, ["INCR k".to_owned()]).await;
    world.server().set(Mode::Unreachable);
    let connects = |world: &World| world.server().connecting.load(Ordering::Relaxed) > 0;
    world.until("it connects", connects).await;
    assert_eq!(noted(&world), 0, "a crash at this moment must leave no doubt");
}

#[tokio::test]
async fn a_note_is_taken_back_where_nothing_was_written_unless_an_earlier_attempt_is_in_doubt() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    queued(&world, ["INCR k".to_owned()]).await;
    world.server().set(Mode::Full);
    let prepared = |world: &World| world.server().prepared.load(Ordering::Relaxed);
    world.until("it was refused twice", |world| prepared(world) >= 2).await;
    world.until("the note is taken back", |world| noted(world) == 0).await;
    world.server().set(Mode::Deaf);
    world.until("it is in doubt", |world| times(world, "INCR k") == 1 && noted(world) == 1).await;
    world.server().set(Mode::Full);
    let tried = world.server().evidence.lock().len();
    world.until("it was refused again", |world| world.server().evidence.lock().len() > tried).await;
    assert_eq!(noted(&world), 1, "the doubt stays");
    world.server().set(Mode::Up);
    world.drained().await;
    assert_eq!(times(&world, "INCR k"), 1);
    let evidence = world.server().evidence.lock().clone();
    assert!(evidence.iter().all(|it| it.starts_with(b"prepared")), "{evidence:?}");
    assert!(evidence.windows(2).all(|pair| pair[0] == pair[1]), "of the first: {evidence:?}");
}

#[tokio::test]
async fn an_unprotected_insert_is_never_repeated_though_the_dead_letters_are_full() {
    let mut settings = settings("one");
    settings.queue.dead_items = 1;
    let world = World::start(vec![settings]).await;
    world.server().tokenless.store(true, Ordering::Relaxed);
    world.server().set(Mode::Down);
    queued(&world, ["BAD x".to_owned(), "PUT t 1".to_owned()]).await;
    world.server().set(Mode::Deaf);
    world.until("it was applied", |world| times(world, "PUT t 1") == 1).await;
    world.server().set(Mode::Up);
    world
        .until("it has a verdict and no room", |world| {
            let backend = world.backend();
            let index = backend.entry.shared.queue.index();
            index.page(false, 0).any(|(_, entry)| entry.details().verdict.is_some())
        })
        .await;
    let alerts = world.backend().view().alerts;
    assert!(
        alerts.iter().any(|alert| alert.said().contains("dead letters are full")),
        "{alerts:?}"
    );
    world.breaker_is("CLOSED").await;
    world.backend().replay().unwrap();
    let tried = world.server().attempts.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.server().attempts.load(Ordering::Relaxed), tried, "it has its verdict");
    let view = world.backend().view();
    assert_eq!((view.queue.dead_letters, view.queue.calls), (1, 1));
    let dead = world.backend().queue_page(true, None, 10).await.calls[0].op_id;
    world.backend().discard(dead).await.unwrap();
    world.until("it takes the place", |world| world.backend().view().queue.calls == 0).await;
    assert_eq!(world.backend().view().queue.dead_letters, 1);
    assert_eq!(times(&world, "PUT t 1"), 1);
}

#[tokio::test]
async fn an_error_of_no_class_leaves_doubt() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    queued(&world, ["PUT t 1".to_owned()]).await;
    world.server().tokenless.store(true, Ordering::Relaxed);
    world.server().set(Mode::Strange);
    world.until("it is given up", |world| world.backend().view().queue.dead_letters == 1).await;
    assert_eq!(times(&world, "PUT t 1"), 1);
}

#[tokio::test]
async fn a_refusal_in_the_middle_is_a_refusal_of_unknown_outcome() {
    let world = World::one().await;
    world.server().set(Mode::Half);
    for body in ["PUT t 1", "SET k v", "INCR k"] {
        let error = world.call(body).await.unwrap_err();
        assert_eq!((error.kind, error.outcome_unknown), (CallErrorKind::Refused, true), "{body}");
        assert_eq!(times(&world, body), 1);
    }
    world.server().set(Mode::Down);
    queued(&world, ["PUT t 2".to_owned()]).await;
    world.server().set(Mode::Half);
    world
        .until("it is a dead letter", |world| world.backend().view().queue.dead_letters == 1)
        .await;
    let dead = world.backend().queue_page(true, None, 10).await.calls.remove(0);
    assert!(dead.last_error.unwrap().said().starts_with("rejected"));
    // Requeued, it is still in doubt: what nothing recognises is not sent again.
    world.server().set(Mode::Up);
    world.server().tokenless.store(true, Ordering::Relaxed);
    world.backend().requeue(dead.op_id, true, false).await.unwrap();
    world
        .until("it is one again", |world| {
            let backend = world.backend();
            let index = backend.entry.shared.queue.index();
            index.page(true, 0).next().is_some_and(|(_, entry)| {
                entry.details().last_error.as_ref().unwrap().said().starts_with("ambiguous")
            })
        })
        .await;
    assert_eq!(times(&world, "PUT t 2"), 1);
    // Unless somebody has looked.
    world.server().forget_tokens(vec![dead.op_id]);
    world.backend().requeue(dead.op_id, true, true).await.unwrap();
    world.drained().await;
    assert_eq!(times(&world, "PUT t 2"), 2);
}

#[tokio::test]
async fn the_error_of_a_dead_letter_is_of_unknown_outcome() {
    for (body, mode) in [("PUT t 1", Mode::Half), ("BAD t", Mode::Up)] {
        let world = World::one().await;
        let op_id = Some(OpId::new(UnixMillis::new(1), 1));
        let named = || CallOptions { op_id, ..CallOptions::default() };
        world.backend().set_offline(true).await.unwrap();
        world.call_with(body, named()).await.unwrap();
        world.server().set(mode);
        world.backend().set_offline(false).await.unwrap();
        world
            .until("it is a dead letter", |world| world.backend().view().queue.dead_letters == 1)
            .await;
        let error = world.call_with(body, named()).await.unwrap_err();
        assert_eq!((error.code.as_ref(), error.outcome_unknown), ("dead_letter", true), "{body}");
    }
}

#[tokio::test]
async fn a_queued_write_that_becomes_a_dead_letter_is_of_unknown_outcome_to_its_caller() {
    for (body, mode) in [("SET a 1", Mode::Half), ("BAD a", Mode::Up)] {
        let world = World::one().await;
        world.backend().set_offline(true).await.unwrap();
        world.call("SET a 0").await.unwrap();
        world.server().set(Mode::Slow);
        world.backend().set_offline(false).await.unwrap();
        // The call waits behind this one, which is answered a little later.
        world.until("it was applied", |world| times(world, "SET a 0") == 1).await;
        world.server().set(mode);
        let error = world.call_with(body, durable()).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_ref()), (CallErrorKind::Refused, "dead_letter"));
        assert!(error.outcome_unknown, "{body}");
    }
}

#[tokio::test]
async fn calls_with_one_name_and_one_body_that_fail_together_are_one_call() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    let op_id = Some(OpId::new(UnixMillis::new(1), 1));
    let named = || CallOptions { op_id, ..CallOptions::default() };
    // Neither is queued when the other begins.
    let both =
        tokio::join!(world.call_with("SET a 1", named()), world.call_with("SET a 1", named()));
    for reply in [both.0.unwrap(), both.1.unwrap()] {
        assert_eq!((reply.source, reply.op_id), (Source::Queued, op_id));
    }
    assert_eq!(world.backend().view().queue.calls, 1);
    let other = world.call_with("SET a 2", named()).await.unwrap_err();
    assert_eq!(other.code, "op_id_conflict");
}

#[tokio::test]
async fn a_requeue_keeps_the_doubt_over_a_restart() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    queued(&world, ["PUT t 1".to_owned()]).await;
    world.server().set(Mode::Half);
    world
        .until("it is a dead letter", |world| world.backend().view().queue.dead_letters == 1)
        .await;
    let dead = world.backend().queue_page(true, None, 10).await.calls[0].op_id;
    world.server().set(Mode::Down);
    world.backend().set_offline(true).await.unwrap();
    world.backend().requeue(dead, true, false).await.unwrap();
    let world = world.restart(vec![settings("one")]).await;
    {
        let backend = world.backend();
        let index = backend.entry.shared.queue.index();
        let (_, entry) = index.page(false, 0).next().unwrap();
        assert_eq!(entry.state.known(), Known::InDoubt);
    }
    world.server().set(Mode::Up);
    world.backend().set_offline(false).await.unwrap();
    world.drained().await;
    assert_eq!(times(&world, "PUT t 1"), 1, "its token is recognised");
}

#[tokio::test]
async fn inserts_go_as_one_and_again_as_the_same_one() {
    let world = World::one().await;
    world.server().gathers.store(50, Ordering::Relaxed);
    world.server().set(Mode::Deaf);
    held(&world, (0..100).map(|n| format!("PUT t {n}"))).await;
    world.until("a group is in doubt", |world| !world.server().groups.lock().is_empty()).await;
    let world = world.restart(vec![settings("one")]).await;
    world.server().set(Mode::Up);
    world.drained().await;
    for n in 0..100 {
        assert_eq!(times(&world, &format!("PUT t {n}")), 1, "{n}");
    }
    let groups = world.server().groups.lock().clone();
    assert!(groups.iter().all(|(size, _)| *size == 50), "{groups:?}");
    assert_eq!(world.backend().view().queue.dead_letters, 0);
}

#[tokio::test]
async fn a_group_in_doubt_is_sent_again_as_itself() {
    let world = World::one().await;
    world.server().gathers.store(50, Ordering::Relaxed);
    world.server().set(Mode::Deaf);
    held(&world, (0..20).map(|n| format!("PUT t {n}"))).await;
    world
        .until("its answer is lost", |world| {
            let backend = world.backend();
            let index = backend.entry.shared.queue.index();
            index.page(false, 0).all(|(_, entry)| entry.state.is_in_doubt())
        })
        .await;
    world.server().set(Mode::Up);
    world.drained().await;
    assert_eq!(world.server().applied.lock().len(), 20, "none twice");
    let groups = world.server().groups.lock().clone();
    assert!(groups.len() >= 2 && groups.iter().all(|group| *group == groups[0]), "{groups:?}");
}

#[tokio::test]
async fn a_group_is_halved_towards_the_one_that_is_refused() {
    let world = World::one().await;
    world.server().gathers.store(16, Ordering::Relaxed);
    let bodies = (0..16).map(|n| if n == 11 { "PUT t bad".into() } else { format!("PUT t {n}") });
    held(&world, bodies).await;
    world.drained().await;
    assert_eq!(world.server().applied.lock().len(), 15);
    let dead = world.backend().queue_page(true, None, 10).await;
    assert_eq!((dead.total, dead.calls.len()), (1, 1));
    let sizes: Vec<usize> = world.server().groups.lock().iter().map(|(size, _)| *size).collect();
    assert!(sizes.contains(&16) && sizes.contains(&8) && sizes.len() <= 10, "{sizes:?}");
}

#[tokio::test]
async fn a_group_in_doubt_that_nothing_recognises_is_one_dead_letter_also_after_a_restart() {
    let world = World::one().await;
    world.server().gathers.store(50, Ordering::Relaxed);
    world.server().set(Mode::Deaf);
    let names = held(&world, (0..20).map(|n| format!("PUT t {n}"))).await;
    world.until("it was applied", |world| times(world, "PUT t 19") == 1).await;
    world.server().tokenless.store(true, Ordering::Relaxed);
    world.server().set(Mode::Up);
    let one = |world: &World| world.backend().view().queue.dead_letters == 1;
    world.until("it is given up", one).await;
    let world = world.restart(vec![settings("one")]).await;
    assert_eq!(world.backend().view().queue.dead_letters, 1);
    assert_eq!(world.backend().queue_page(true, None, 100).await.calls.len(), 1);
    // By the name of any of its calls.
    world.backend().requeue(names[7], true, false).await.unwrap();
    world.until("it is given up again", one).await;
    assert_eq!(times(&world, "PUT t 7"), 1);
    world.server().tokenless.store(false, Ordering::Relaxed);
    world.backend().requeue(names[19], true, false).await.unwrap();
    world.drained().await;
    assert_eq!(world.backend().view().queue.dead_letters, 0);
    assert_eq!(world.server().applied.lock().len(), 20, "and nothing twice");
}

#[tokio::test]
async fn a_group_that_is_given_up_unsent_is_given_up_once() {
    let world = World::one().await;
    world.server().gathers.store(50, Ordering::Relaxed);
    world.server().set(Mode::Deaf);
    held(&world, (0..20).map(|n| format!("PUT t {n}"))).await;
    world.until("it was applied", |world| times(world, "PUT t 19") == 1).await;
    {
        let backend = world.backend();
        let mut index = backend.entry.shared.queue.index();
        let seqs: Vec<u64> = index.page(false, 0).map(|(seq, _)| seq).collect();
        for seq in seqs {
            // More than seven days ago.
            index.get_mut(seq).unwrap().details_mut().noted.as_mut().unwrap().at =
                UnixMillis::default();
        }
    }
    world.server().set(Mode::Up);
    world
        .until("it is a dead letter", |world| world.backend().view().queue.dead_letters == 1)
        .await;
    world.until("nothing waits", |world| world.backend().view().queue.calls == 0).await;
    let told = world.backend().entry.shared.circuit.metrics.dead.get();
    assert_eq!(told, 1, "one dead letter, counted once");
    assert_eq!(times(&world, "PUT t 7"), 1);
}

#[tokio::test]
async fn only_the_last_whole_write_of_a_key_is_sent() {
    let world = World::one().await;
    world.server().wholes.store(true, Ordering::Relaxed);
    world.server().set(Mode::Down);
    for n in 0..10 {
        world.call(&format!("SET k {n}")).await.unwrap();
    }
    world.call("SET j 1").await.unwrap();
    world.server().set(Mode::Up);
    world.drained().await;
    assert_eq!(world.server().get("k").as_deref(), Some("9"));
    assert!(times(&world, "SET k 9") == 1 && times(&world, "SET k 5") == 0);
    let world = world.restart(vec![settings("one")]).await;
    assert_eq!(world.backend().view().queue.calls, 0);
}

#[tokio::test]
async fn what_a_write_was_sent_in_place_of_leaves_with_it_if_something_is_left_to_do_of_that() {
    let world = World::one().await;
    world.server().wholes.store(true, Ordering::Relaxed);
    world.server().set(Mode::Down);
    // The last of them is to meet the second alive.
    held(&world, ["SET k a", "KEEP k b", "ADD k w"].map(str::to_owned)).await;
    world.server().set(Mode::Up);
    world.drained().await;
    let world = world.restart(vec![settings("one")]).await;
    assert_eq!(world.backend().view().queue.calls, 0);
    assert_eq!(times(&world, "SET k a"), 0, "{:?}", world.server().applied.lock());
    assert_eq!(world.server().get("k"), None, "its life was over");
}

#[tokio::test]
async fn what_a_write_was_sent_in_place_of_does_not_come_back_over_it_when_it_is_given_up() {
    let world = World::one().await;
    world.server().wholes.store(true, Ordering::Relaxed);
    world.server().set(Mode::Half);
    held(&world, (0..4).map(|n| format!("SET k {n}"))).await;
    world
        .until("all are dead letters", |world| world.backend().view().queue.dead_letters == 4)
        .await;
    assert_eq!(*world.server().applied.lock(), ["SET k 3"]);
    let reasons = |world: &World| {
        let backend = world.backend();
        let store = backend.entry.shared.queue.store().unwrap();
        let index = backend.entry.shared.queue.index();
        let reason = |seq| store.call(seq).unwrap().dead.map(|mark| mark.reason);
        index.page(true, 0).map(|(seq, _)| reason(seq)).collect::<Vec<_>>()
    };
    let [overtaken, rejected] = [DeadReason::Ambiguous, DeadReason::Rejected].map(Some);
    world.until("that is stored", |world| reasons(world).iter().all(Option::is_some)).await;
    assert_eq!(reasons(&world), [overtaken, overtaken, overtaken, rejected]);
    let world = world.restart(vec![settings("one")]).await;
    world.server().set(Mode::Up);
    world.until("it is open", |world| world.backend().view().queue.dead_letters == 4).await;
    world.call("SET k 5").await.unwrap();
    world.drained().await;
    assert_eq!(*world.server().applied.lock(), ["SET k 3", "SET k 5"]);
}

#[tokio::test]
async fn what_an_earlier_run_may_have_sent_is_not_followed_by_what_it_was_sent_in_place_of() {
    for restarts in [false, true] {
        let mut world = World::one().await;
        world.server().wholes.store(true, Ordering::Relaxed);
        world.backend().set_offline(true).await.unwrap();
        queued(&world, ["SET k 0", "SET k 1 refused"].map(str::to_owned)).await;
        if restarts {
            world = world.restart(vec![settings("one")]).await;
        }
        world.backend().set_offline(false).await.unwrap();
        world.drained().await;
        let dead = world.backend().view().queue.dead_letters;
        let expected = if restarts { (2, 0) } else { (1, 1) };
        assert_eq!((dead, times(&world, "SET k 0")), expected, "{restarts}");
    }
}

#[tokio::test]
async fn what_is_left_to_do_of_a_write_is_done_when_its_time_has_come_in_its_lane() {
    // What each is accepted with: all within the 300 ms of the first.
    for (after, ends_as) in [
        (vec!["ADD k w"], None),
        (vec!["ADD k w", "SET k last"], Some("last")),
        (vec!["ADD k w", "MOVE k l"], None),
    ] {
        let world = World::one().await;
        world.server().set(Mode::Down);
        world.backend().set_offline(true).await.unwrap();
        world.call("SET l old").await.unwrap();
        world.call_with("KEEP k v", CallOptions::default()).await.unwrap();
        for body in &after {
            world.call_with(body, durable()).await.unwrap();
        }
        // Accepted when its life was over already.
        tokio::time::sleep(Duration::from_millis(350)).await;
        world.call_with("ADD later x", durable()).await.unwrap();
        let world = world.restart(vec![settings("one")]).await;
        let waiting = 3 + after.len() as u64;
        world.until("it is open", |world| world.backend().view().queue.calls == waiting).await;
        world.server().set(Mode::Up);
        world.backend().set_offline(false).await.unwrap();
        world.drained().await;
        let applied = world.server().applied.lock().clone();
        assert_eq!(world.server().get("k").as_deref(), ends_as, "{after:?}: {applied:?}");
        let moved = after.contains(&"MOVE k l");
        assert_eq!(world.server().get("l").as_deref(), (!moved).then_some("old"), "{after:?}");
        assert_eq!(world.backend().view().queue.dead_letters, 0, "{after:?}");
    }
}

#[tokio::test]
async fn calls_applied_together_are_replayed_if_replay_ends_before_they_are_removed() {
    let world = World::one().await;
    world.server().batch_max.store(10, Ordering::Relaxed);
    world.server().one_batch.store(true, Ordering::Relaxed);
    held(&world, ["KEEP a v", "KEEP k v", "ADD a w", "ADD k w"].map(str::to_owned)).await;
    let waits = |world: &World| {
        let backend = world.backend();
        let index = backend.entry.shared.queue.index();
        index.page(false, 0).all(|(_, entry)| entry.phase == Phase::Waiting)
    };
    let batches = |world: &World| world.server().batches.lock().clone();
    world.until("two residues wait", |world| batches(world) == [2] && waits(world)).await;
    // The next two go together and find them. Replay ends before it is known what the second one changes.
    world.server().residue_panics.store(2, Ordering::Relaxed);
    world.server().batch_max.store(10, Ordering::Relaxed);
    world.drained().await;
    assert_eq!(world.server().residue_panics.load(Ordering::Relaxed), 0, "it panicked");
    assert!(batches(&world).starts_with(&[2, 2, 2]), "they go twice: {:?}", batches(&world));
    assert_eq!(world.backend().view().queue.dead_letters, 0);
}

#[tokio::test]
async fn a_write_accepted_after_the_end_of_a_keys_life_meets_it_dead() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    world.backend().set_offline(true).await.unwrap();
    world.call("KEEP k v").await.unwrap();
    world.call_with("ADD k w", durable()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(350)).await;
    world.call_with("ADD k late", durable()).await.unwrap();
    world.server().set(Mode::Up);
    world.backend().set_offline(false).await.unwrap();
    world.drained().await;
    assert_eq!(world.server().get("k").as_deref(), Some("late"));
}

#[tokio::test]
async fn the_reply_to_a_repetition_is_not_told_as_that_of_the_write() {
    let mut settings = settings("one");
    settings.breaker.failure_threshold = 100;
    let world = World::start(vec![settings]).await;
    for (body, lost) in [("ADD k v", true), ("SET k v", false)] {
        world.server().set(Mode::Deaf);
        let call = world.call(body);
        let (reply, ()) = tokio::join!(call, async {
            world.until("it was applied", |world| times(world, body) == 1).await;
            world.server().set(Mode::Up);
        });
        let reply = reply.unwrap();
        assert_eq!((reply.reply_lost, reply.ack), (lost, Some(AckLevel::Applied)), "{body}");
        assert_eq!(reply.warnings.iter().any(|it| it.starts_with("reply_lost")), lost);
        let first = world.call("ADD other v").await.unwrap();
        assert!(!first.reply_lost);
    }
}

#[tokio::test]
async fn a_marker_stays_if_an_attempt_in_doubt_could_still_meet_it() {
    let mut settings = settings("one");
    settings.breaker.failure_threshold = 100;
    let world = World::start(vec![settings]).await;
    let patient = || CallOptions { deadline: Some(PATIENCE), ..durable() };
    let answered = world.call_with("INCR answered", patient()).await.unwrap();
    assert!(!world.server().recognises(answered.op_id.unwrap()), "no attempt can meet it");
    world.server().set(Mode::Deaf);
    let (live, ()) = tokio::join!(world.call_with("INCR live", patient()), async {
        world.until("it was applied", |world| times(world, "INCR live") == 1).await;
        world.server().set(Mode::Up);
    });
    let live = live.unwrap();
    assert_eq!((live.source, live.attempts), (Source::Live, 2));
    assert!(world.server().recognises(live.op_id.unwrap()));

    let replayed = held(&world, ["INCR replayed".to_owned()]).await[0];
    let forgotten =
        |world: &World| times(world, "INCR replayed") == 1 && !world.server().recognises(replayed);
    world.until("it is forgotten", forgotten).await;
    world.server().set(Mode::Deaf);
    let doubted = held(&world, ["INCR doubted".to_owned()]).await[0];
    world.until("it was applied", |world| times(world, "INCR doubted") == 1).await;
    world.server().set(Mode::Up);
    world.drained().await;
    // What replay forgets of a later call it has forgotten of this one.
    let later = held(&world, ["INCR later".to_owned()]).await[0];
    let forgotten =
        |world: &World| times(world, "INCR later") == 1 && !world.server().recognises(later);
    world.until("it is forgotten", forgotten).await;
    assert!(world.server().recognises(doubted));
    assert_eq!(times(&world, "INCR doubted"), 1);
}

#[tokio::test]
async fn what_was_cached_under_a_write_that_ends_unknown_is_dropped() {
    let world = World::one().await;
    let entries = |world: &World| world.backend().view().cache.entries;
    world.call("SET a 1").await.unwrap();
    world.server().set(Mode::Silent);
    let tried = world.server().attempts.load(Ordering::Relaxed);
    let (written, ()) = tokio::join!(world.call("INCR a"), async {
        world
            .until("it is sent", |world| world.server().attempts.load(Ordering::Relaxed) > tried)
            .await;
        world.server().set(Mode::Up);
        world.call("GET a").await.unwrap();
    });
    let error = written.unwrap_err();
    assert_eq!((error.kind, error.outcome_unknown), (CallErrorKind::TimedOut, true));
    assert_eq!(entries(&world), 0, "it may have been written since the read");
    world.call("GET a").await.unwrap();
    assert_eq!(entries(&world), 0, "it may still land");
}

#[tokio::test]
async fn what_was_never_sent_empties_no_cache() {
    let world = World::one().await;
    world.call("SET a 1").await.unwrap();
    world.call("GET a").await.unwrap();
    let entries = |world: &World| world.backend().view().cache.entries;
    assert_eq!(entries(&world), 1);
    world.server().set(Mode::Down);
    world.backend().set_offline(true).await.unwrap();
    assert!(world.call("FLUSH").await.is_err());
    assert!(world.call("INCR a").await.is_err());
    assert!(world.call("NONSENSE a").await.is_err());
    assert_eq!(entries(&world), 1, "none of these left");
    assert_eq!(world.call("GET a").await.unwrap().source, Source::Cache);
    // Nor does what is queued, until it is sent: the queue answers what it determines.
    world.call("SET a 2").await.unwrap();
    assert_eq!(entries(&world), 1);
    assert_eq!(world.call("GET a").await.unwrap().source, Source::Queued);
    world.server().set(Mode::Up);
    world.backend().set_offline(false).await.unwrap();
    world.until("it is applied", |world| world.backend().view().queue.calls == 0).await;
    assert_eq!(entries(&world), 0);
}

#[tokio::test]
async fn a_write_that_no_server_took_leaves_the_cache() {
    let world = World::one().await;
    for key in ["a", "b"] {
        world.call(&format!("SET {key} 1")).await.unwrap();
        world.call(&format!("GET {key}")).await.unwrap();
    }
    world.server().set(Mode::Down);
    let tried = world.server().attempts.load(Ordering::Relaxed);
    assert!(world.call("INCR a").await.is_err());
    assert!(world.server().attempts.load(Ordering::Relaxed) > tried, "it was tried");
    assert_eq!(world.call("GET a").await.unwrap().source, Source::Cache);
    world.server().set(Mode::Silent);
    assert!(world.call("INCR b").await.is_err());
    world.server().set(Mode::Down);
    let read = world.call("GET b").await.unwrap();
    assert_eq!(read.source, Source::Bypass, "it may have been applied");
}

#[tokio::test]
async fn a_fill_that_began_before_a_reload_is_not_kept() {
    let world = World::one().await;
    world.call("SET a 1").await.unwrap();
    world.server().set(Mode::Slow);
    let tried = world.server().attempts.load(Ordering::Relaxed);
    let read = world.call("GET a");
    let reload = async {
        world
            .until("the read is on the wire", move |world| {
                world.server().attempts.load(Ordering::Relaxed) > tried
            })
            .await;
        let shared = Arc::clone(&world.backend().entry.shared);
        let old =
            shared.cache.swap(Arc::new(fusebox_state::cache::Cache::new(settings("one").cache)));
        drop(old);
    };
    let (read, ()) = tokio::join!(read, reload);
    read.unwrap();
    assert_eq!(world.backend().view().cache.entries, 0);
}

#[tokio::test]
async fn a_write_whose_caller_left_bars_fills_until_it_is_over() {
    let world = World::one().await;
    world.call("SET a 1").await.unwrap();
    world.server().set(Mode::Silent);
    let left = tokio::time::timeout(Duration::from_millis(20), world.call("SET a 2")).await;
    assert!(left.is_err());
    world.server().set(Mode::Up);
    world.call("GET a").await.unwrap();
    assert_eq!(world.backend().view().cache.entries, 0, "it may land at any moment");
    world.call("GET b").await.unwrap();
    assert_eq!(world.backend().view().cache.entries, 1);
}

#[tokio::test]
async fn a_call_is_discarded_with_all_that_it_was_sent_with() {
    let world = World::one().await;
    world.server().gathers.store(50, Ordering::Relaxed);
    world.server().set(Mode::Deaf);
    let names = held(&world, (0..4).map(|n| format!("PUT t {n}"))).await;
    world.until("it was applied", |world| times(world, "PUT t 3") == 1).await;
    world.backend().set_offline(true).await.unwrap();
    world
        .until("none is on the wire", |world| {
            let backend = world.backend();
            let index = backend.entry.shared.queue.index();
            index.page(false, 0).all(|(_, entry)| entry.phase != Phase::Sending)
        })
        .await;
    world.backend().discard(names[2]).await.unwrap();
    let world = world.restart(vec![settings("one")]).await;
    assert_eq!(world.backend().view().queue.calls, 0);
    assert_eq!(world.backend().view().queue.dead_letters, 0);
}

#[tokio::test]
async fn calls_that_were_sent_as_one_and_find_no_room_among_the_dead_letters_can_be_discarded() {
    let mut settings = settings("one");
    settings.queue.dead_items = 1;
    let world = World::start(vec![settings.clone()]).await;
    held(&world, ["BAD x".to_owned()]).await;
    let dead = |world: &World| world.backend().view().queue.dead_letters;
    world.until("there is no more room", |world| dead(world) == 1).await;
    world.server().gathers.store(50, Ordering::Relaxed);
    world.server().set(Mode::Deaf);
    let names = held(&world, (0..4).map(|n| format!("PUT t {n}"))).await;
    world.until("it was applied", |world| times(world, "PUT t 3") == 1).await;
    world.server().tokenless.store(true, Ordering::Relaxed);
    world.server().set(Mode::Up);
    world
        .until("it has a verdict", |world| {
            let backend = world.backend();
            let index = backend.entry.shared.queue.index();
            index.page(false, 0).any(|(_, entry)| entry.details().verdict.is_some())
        })
        .await;
    {
        let backend = world.backend();
        let index = backend.entry.shared.queue.index();
        let is_sent = index.page(false, 0).any(|(_, entry)| entry.phase == Phase::Sending);
        assert!(!is_sent, "none of them is on the wire");
    }
    world.backend().discard(names[2]).await.unwrap();
    let world = world.restart(vec![settings]).await;
    assert_eq!((world.backend().view().queue.calls, dead(&world)), (0, 1));
    assert_eq!(times(&world, "PUT t 2"), 1);
}

#[tokio::test]
async fn a_line_that_fails_again_is_left_alone_for_longer_though_its_last_write_was_sent() {
    let world = World::one().await;
    world.server().wholes.store(true, Ordering::Relaxed);
    world.server().set(Mode::Strange);
    held(&world, ["SET k a", "SET k b"].map(str::to_owned)).await;
    world
        .until("it is left alone for longer than the first time", |world| {
            // It is tried again at once.
            world.backend().replay().ok();
            let backend = world.backend();
            let index = backend.entry.shared.queue.index();
            let head = index.page(false, 0).next();
            head.is_some_and(|(_, head)| head.details().backoff_ms > 1_000)
        })
        .await;
    assert_eq!(times(&world, "SET k a"), 0);
}

#[tokio::test]
async fn an_op_id_that_nothing_would_know_again_is_refused() {
    let world = World::one().await;
    let options = || CallOptions { op_id: Some(OpId::from_u128(7)), ..CallOptions::default() };
    let error = world.call_with("FLUSH", options()).await.unwrap_err();
    assert_eq!((error.kind, &*error.code), (CallErrorKind::Refused, "op_id_unsupported"));
    assert!(!error.outcome_unknown);
    assert_eq!((times(&world, "FLUSH"), error.attempts), (0, 0));
    world.call_with("FLUSH", CallOptions::default()).await.unwrap();
    assert_eq!(times(&world, "FLUSH"), 1);
}
