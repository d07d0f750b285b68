//! What kinds of backend other than a keyed store need: writes that commute, batches, tokens that protect
//! nothing, objects that are closed, answers and calls too large to hold.

use fusebox_state::backoff::REPLAY_BASE;

use super::*;
use crate::connector::{AttemptError, OwnCode, Tail, Upload};
use scripted::{Pieces, fault};

async fn queued(world: &World, bodies: impl IntoIterator<Item = String>) {
    for body in bodies {
        // A sync may take long on a busy machine.
        let options = CallOptions { deadline: Some(PATIENCE), ..CallOptions::default() };
        let reply = world.call_with(&body, options).await.unwrap();
        assert_eq!(reply.source, Source::Queued, "{body}");
    }
}

/// As [`durable`], with time enough for a store of pieces on a busy machine.
fn stored_first() -> CallOptions {
    CallOptions { deadline: Some(PATIENCE), ..durable() }
}

async fn upload(
    world: &World,
    head: &str,
    rest: impl Tail + 'static,
    options: CallOptions,
) -> Result<Reply, CallError> {
    let call = Call {
        body: Bytes::copy_from_slice(head.as_bytes()),
        options,
        uid: 0,
        admin: false,
        trace: CallTrace::new("/call"),
        streams: false,
        upload: Some(Upload::new(Box::new(rest))),
    };
    world.backend().call(call).await
}

#[tokio::test]
async fn writes_that_commute_go_straight_through_though_others_wait() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    queued(&world, (0..3).map(|n| format!("PUT table {n}"))).await;
    world.server().closed.lock().push("table".into());
    world.server().set(Mode::Up);
    world.breaker_is("CLOSED").await;
    world.until("it is told", |world| !world.backend().view().alerts.is_empty()).await;
    assert_eq!(world.backend().view().queue.calls, 3);
    let reply = world.call("PUT other 1").await.unwrap();
    assert_eq!((reply.source, reply.ack), (Source::Live, Some(AckLevel::Applied)));
    // A closed object is tried once in a while, not by each of its calls.
    let tried = world.server().attempts.load(Ordering::Relaxed);
    world.call("GET a").await.unwrap();
    assert!(world.server().attempts.load(Ordering::Relaxed) <= tried + 2);
    world.server().closed.lock().clear();
    world.backend().replay().unwrap();
    world.drained().await;
    assert_eq!(world.server().applied.lock().len(), 4);
    world.until("the alert is over", |world| world.backend().view().alerts.is_empty()).await;
}

#[tokio::test]
async fn calls_of_different_lanes_go_together_and_a_bad_one_alone_is_buried() {
    let world = World::one().await;
    world.server().batch_max.store(10, Ordering::Relaxed);
    world.server().set(Mode::Down);
    queued(&world, (0..40).map(|n| format!("SET k{n} {n}"))).await;
    queued(&world, ["BAD poison".to_owned()]).await;
    queued(&world, (40..50).map(|n| format!("SET k{} {n}", n - 40))).await;
    world.server().set(Mode::Up);
    world.drained().await;
    for n in 0..40 {
        let last = if n < 10 { n + 40 } else { n };
        assert_eq!(world.server().get(&format!("k{n}")), Some(last.to_string()));
    }
    assert_eq!(world.backend().view().queue.dead_letters, 1);
    let batches = world.server().batches.lock().clone();
    assert!(batches.contains(&10) && batches.iter().all(|size| *size <= 10), "{batches:?}");
}

#[tokio::test]
async fn the_end_of_an_outage_ends_the_backoffs_of_its_attempts() {
    let mut settings = settings("one");
    settings.breaker.recovery_timeout_max = settings.breaker.recovery_timeout;
    let world = World::start(vec![settings]).await;
    world.server().batch_max.store(10, Ordering::Relaxed);
    world.server().set(Mode::Down);
    queued(&world, (0..100).map(|n| format!("SET k{n} {n}"))).await;
    let batches = |world: &World| world.server().batches.lock().len();
    let tried = batches(&world);
    world.until("probes have failed", |world| batches(world) >= tried + 4).await;
    world.server().set(Mode::Up);
    world.breaker_is("CLOSED").await;
    let clock = Clock::system();
    world.drained().await;
    let took = clock.uptime();
    assert!(took < REPLAY_BASE / 2, "{took:?}, and the shortest backoff is {REPLAY_BASE:?}");
}

#[tokio::test]
async fn calls_that_fail_together_are_tried_again_together() {
    let mut settings = settings("one");
    settings.breaker.failure_threshold = 1_000;
    let world = World::start(vec![settings]).await;
    world.server().batch_max.store(10, Ordering::Relaxed);
    world.backend().set_offline(true).await.unwrap();
    queued(&world, (0..10).map(|n| format!("SET k{n} {n}"))).await;
    world.server().set(Mode::Down);
    world.backend().set_offline(false).await.unwrap();
    world.until("two failed", |world| world.server().batches.lock().len() >= 2).await;
    world.server().set(Mode::Up);
    world.drained().await;
    assert_eq!(*world.server().batches.lock(), [10, 10, 10]);
}

#[tokio::test]
async fn replay_sends_more_at_once_to_a_backend_that_is_far_away_up_to_its_share() {
    let world = World::one().await;
    let in_flight = |world: &World| world.backend().entry.shared.circuit.bulkhead.in_flight();
    world.backend().set_offline(true).await.unwrap();
    queued(&world, (0..400).map(|n| format!("SET k{n} {n}"))).await;
    world.server().set(Mode::Slow);
    world.backend().set_offline(false).await.unwrap();
    let share = settings("one").in_flight_max / 4;
    world.until("its share is used", |world| in_flight(world) >= share).await;
    for _ in 0..100 {
        assert!(in_flight(&world) <= share);
        tokio::task::yield_now().await;
    }
    world.server().set(Mode::Up);
    world.drained().await;
}

#[tokio::test]
async fn a_backend_that_wants_a_pause_gets_one() {
    let world = World::one().await;
    // Before anything waits: replay may have asked already when the server comes back.
    world.server().batch_max.store(0, Ordering::Relaxed);
    world.server().set(Mode::Down);
    queued(&world, ["SET a 1".to_owned()]).await;
    world.server().set(Mode::Up);
    world.breaker_is("CLOSED").await;
    let asked = |world: &World| world.server().asked.load(Ordering::Relaxed);
    let before = asked(&world);
    world.until("it was asked again", |world| asked(world) > before + 2).await;
    assert_eq!(world.server().get("a"), None);
    world.server().batch_max.store(1, Ordering::Relaxed);
    world.drained().await;
}

#[tokio::test]
async fn where_tokens_protect_nothing_what_is_unknown_is_told_and_never_repeated() {
    let world = World::one().await;
    world.server().tokenless.store(true, Ordering::Relaxed);
    world.server().set(Mode::Deaf);
    let unknown = world.call("PUT table live").await.unwrap_err();
    assert_eq!((unknown.kind, unknown.outcome_unknown), (CallErrorKind::TimedOut, true));
    world.server().set(Mode::Down);
    queued(&world, ["PUT table queued".to_owned()]).await;
    // Refused connections leave nothing in doubt, so it is still sent.
    world.until("it was tried", |world| world.server().attempts.load(Ordering::Relaxed) > 3).await;
    world.server().set(Mode::Deaf);
    world.until("it is dead", |world| world.backend().view().queue.dead_letters == 1).await;
    world.server().set(Mode::Up);
    world.drained().await;
    assert_eq!(*world.server().applied.lock(), ["PUT table live", "PUT table queued"]);
}

#[tokio::test]
async fn a_read_that_is_not_critical_is_answered_empty_where_nothing_else_answers() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    assert_eq!(world.call("BIG x").await.unwrap_err().kind, CallErrorKind::Unavailable);
    let low = CallOptions { priority: Priority::Low, ..CallOptions::default() };
    let reply = world.call_with("BIG x", low.clone()).await.unwrap();
    assert_eq!((reply.source, value(&reply)), (Source::Empty, "[]"));
    // What cannot be empty is an error all the same, or what it was before.
    assert_eq!(world.call_with("GET x", low).await.unwrap().source, Source::Bypass);
}

#[tokio::test]
async fn the_rest_of_an_answer_holds_its_place_and_is_cached_once_it_came_whole() {
    let world = World::one().await;
    let mut left = world.call("BIG x").await.unwrap().rest.unwrap();
    assert!(left.next().await.is_some());
    drop(left);
    world.server().set(Mode::Down);
    assert_eq!(world.call("BIG x").await.unwrap_err().kind, CallErrorKind::Unavailable);
    world.server().set(Mode::Up);
    let in_flight = |world: &World| world.backend().entry.shared.circuit.bulkhead.in_flight();
    let reply = world.call("BIG x").await.unwrap();
    let mut rest = reply.rest.unwrap();
    assert_eq!(in_flight(&world), 1);
    let mut pieces = Vec::new();
    while let Some(piece) = rest.next().await {
        pieces.push(piece.unwrap());
    }
    assert_eq!(pieces, ["b", "c"]);
    drop(rest);
    assert_eq!(in_flight(&world), 0);
    world.server().set(Mode::Down);
    let cached = world.call("BIG x").await.unwrap();
    assert_eq!((cached.source, cached.value), (Source::Cache, Some("abc".into())));
}

#[tokio::test]
async fn a_large_call_is_tried_once_and_stored_first_where_it_is_to_be_durable() {
    let world = World::one().await;
    let pieces = || Pieces(vec!["2".into(), "3".into()]);
    let live = upload(&world, "PUT t 1", pieces(), CallOptions::default()).await.unwrap();
    assert_eq!((live.source, world.server().get("t").as_deref()), (Source::Live, Some("123")));
    world.server().set(Mode::Down);
    let refused = upload(&world, "PUT t 4", pieces(), CallOptions::default()).await.unwrap_err();
    assert_eq!((refused.kind, refused.attempts), (CallErrorKind::Unavailable, 1));
    assert!(refused.detail.said().contains("min_ack = durable"), "{}", refused.detail);
    // Two MiB, in pieces that are not the store's own.
    let large = || Pieces(vec![Bytes::from(vec![b'x'; 700_001]); 3]);
    let full = upload(&world, "PUT t ", large(), stored_first()).await.unwrap_err();
    assert_eq!(full.kind, CallErrorKind::Full, "the queue holds 1 MiB");
    let mut roomy = settings("one");
    roomy.queue.bytes = 1 << 30;
    let world = world.restart(vec![roomy]).await;
    let reply = upload(&world, "PUT t ", large(), stored_first()).await.unwrap();
    assert_eq!((reply.source, reply.ack), (Source::Queued, Some(AckLevel::Durable)));
    world.server().set(Mode::Up);
    world.drained().await;
    assert_eq!(world.server().get("t"), Some("x".repeat(2_100_003)));
}

#[tokio::test]
async fn what_has_come_of_large_calls_counts_against_the_limits_of_the_queue() {
    /// So many times 128 KiB, and then nothing more for as long as anybody waits.
    struct Stalls(u32, Arc<std::sync::atomic::AtomicBool>);
    impl Tail for Stalls {
        fn next(&mut self) -> crate::connector::Answer<'_, Option<Result<Bytes, AttemptError>>> {
            Box::pin(async {
                if self.0 == 0 {
                    self.1.store(true, Ordering::Relaxed);
                    std::future::pending::<()>().await;
                }
                self.0 -= 1;
                Some(Ok(Bytes::from(vec![b'x'; 1 << 17])))
            })
        }
    }
    // The queue holds 1 MiB.
    let world = World::one().await;
    world.server().set(Mode::Down);
    let has_stalled = Arc::default();
    let stalls = Stalls(6, Arc::clone(&has_stalled));
    let first = upload(&world, "PUT t ", stalls, stored_first());
    let second = async {
        world.until("the first has stalled", |_| has_stalled.load(Ordering::Relaxed)).await;
        upload(&world, "PUT t ", Stalls(6, Arc::default()), stored_first()).await
    };
    let full = tokio::select! {
        first = first => panic!("it has not come whole: {:?}", first.map(drop)),
        second = second => second.unwrap_err(),
    };
    assert_eq!((full.kind, &*full.code), (CallErrorKind::Full, "queue_full"));
    // Both were given up, and their room with them.
    let six = Pieces(vec![Bytes::from(vec![b'x'; 1 << 17]); 6]);
    let reply = upload(&world, "PUT t ", six, stored_first()).await.unwrap();
    assert_eq!((reply.source, world.backend().view().queue.calls), (Source::Queued, 1));
}

#[tokio::test]
async fn a_large_call_that_breaks_off_leaves_nothing() {
    struct Broken;
    impl Tail for Broken {
        fn next(&mut self) -> crate::connector::Answer<'_, Option<Result<Bytes, AttemptError>>> {
            Box::pin(async {
                Some(Err(fault(fusebox_state::ErrorClass::Rejected, OwnCode::BodyBrokenOff)))
            })
        }
    }
    let world = World::one().await;
    let refused = upload(&world, "PUT t 1", Broken, stored_first()).await.unwrap_err();
    assert_eq!((refused.kind, refused.outcome_unknown), (CallErrorKind::Malformed, false));
    assert_eq!(world.backend().view().queue.calls, 0);
    // A barrier finds every lane free: the place is given back.
    world.call("FLUSH").await.unwrap();
}

#[tokio::test]
async fn what_the_backend_answers_after_the_deadline_is_the_answer() {
    let world = World::one().await;
    let brief =
        || CallOptions { deadline: Some(Duration::from_millis(50)), ..CallOptions::default() };
    let late = Bytes::from_static(b"late");
    world.server().set(Mode::Late);
    let unknown = world.call_with("INCR n", brief()).await.unwrap_err();
    assert_eq!((unknown.kind, unknown.outcome_unknown), (CallErrorKind::TimedOut, true));
    assert_eq!((&*unknown.code, unknown.last_answer.as_deref()), ("LATE", Some(&late)));
    let read = world.call_with("BIG x", brief()).await.unwrap_err();
    assert_eq!((read.kind, read.outcome_unknown), (CallErrorKind::Unavailable, false));
    assert_eq!((&*read.code, read.last_answer.as_deref()), ("LATE", Some(&late)));
    // Nothing is heard of the one, and the other gets no connection.
    for mode in [Mode::Silent, Mode::Unreachable] {
        let world = World::one().await;
        world.server().set(mode);
        let read = world.call_with("BIG x", brief()).await.unwrap_err();
        assert_eq!((read.kind, &*read.code), (CallErrorKind::TimedOut, "deadline"), "{mode:?}");
    }
}
