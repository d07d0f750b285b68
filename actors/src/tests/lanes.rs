//! Who waits for a lane, for how long, and what that costs others; and what is read from a lane's queued writes.

use fusebox_state::queue::Phase;

use super::*;
use crate::refusal::Barred;

/// Much longer than anything may take that is answered at once.
const LONG: Duration = Duration::from_secs(10);
const AT_ONCE: Duration = Duration::from_millis(700);

fn patient() -> CallOptions {
    CallOptions { deadline: Some(LONG), ..CallOptions::default() }
}

/// Queues `bodies` while the breaker stays closed.
async fn queue(world: &World, bodies: &[&str]) {
    world.backend().set_offline(true).await.unwrap();
    for body in bodies {
        world.call_with(body, CallOptions { deadline: Some(LONG), ..durable() }).await.unwrap();
    }
    world.backend().set_offline(false).await.unwrap();
}

fn backs_off(world: &World) -> bool {
    let backend = world.backend();
    let index = backend.entry.shared.queue.index();
    index.page(false, 0).any(|(_, entry)| matches!(entry.phase, Phase::BackingOff))
}

#[tokio::test]
async fn who_finds_a_lane_that_does_not_move_is_answered_at_once() {
    let world = World::one().await;
    world.server().closed.lock().push("a".into());
    queue(&world, &["ADD a 1"]).await;
    world.until("the object is closed", backs_off).await;
    assert_eq!(world.backend().view().breaker.state.to_string(), "CLOSED");
    let began = instant();
    let read = world.call_with("GET a", patient()).await.unwrap_err();
    assert_eq!((read.kind, &*read.code), (CallErrorKind::Unavailable, "lane_busy"));
    let refused = world.call_with("INCR a", patient()).await.unwrap_err();
    assert_eq!((refused.kind, &*refused.code), (CallErrorKind::Unavailable, "lane_busy"));
    let queued = world.call_with("ADD a 2", patient()).await.unwrap();
    assert_eq!(queued.ack, Some(AckLevel::Durable));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert_eq!(world.call("GET b").await.unwrap().source, Source::Live);
}

#[tokio::test]
async fn what_its_door_knows_to_be_barred_is_not_tried() {
    let world = World::one().await;
    let backend = world.backend();
    assert_eq!(backend.bars(), None);
    backend.set_offline(true).await.unwrap();
    assert_eq!(backend.bars(), Some(Barred::Offline));
    backend.set_offline(false).await.unwrap();
    backend.force(true, "a test".into(), None).await.unwrap();
    assert_eq!(backend.bars(), Some(Barred::Open));
    backend.release().await.unwrap();
    assert_eq!(backend.bars(), None, "it has closed since");
    let barred = || CallOptions { barred: Some(Barred::Open), ..CallOptions::default() };
    let read = world.call_with("GET b", barred()).await.unwrap();
    assert_eq!((read.source, read.attempts), (Source::Bypass, 0));
    let refused = world.call_with("INCR c", barred()).await.unwrap_err();
    assert_eq!((&*refused.code, refused.attempts), ("breaker_open", 0), "{refused:?}");
    let queued = world.call_with("SET a 1", barred()).await.unwrap();
    assert_eq!((queued.source, queued.attempts), (Source::Queued, 0));
    assert_eq!(queued.warnings, ["queued: the breaker is open"]);
    world.drained().await;
    assert_eq!(*world.server().applied.lock(), ["SET a 1"]);
}

#[tokio::test]
async fn what_was_cached_answers_over_writes_that_leave_it_as_it_is() {
    let world = World::one().await;
    for key in ["a", "b"] {
        world.call(&format!("SET {key} 1")).await.unwrap();
        assert_eq!(world.call(&format!("GET {key}")).await.unwrap().source, Source::Live);
    }
    world.backend().set_offline(true).await.unwrap();
    for body in ["TOUCH a", "TOUCH c"] {
        world.call_with(body, durable()).await.unwrap();
    }
    let read = world.call("GET a").await.unwrap();
    assert_eq!((read.source, read.value.as_deref()), (Source::Cache, Some(&b"1"[..])));
    assert_eq!(world.call("GET c").await.unwrap_err().code, "lane_busy", "it was not cached");
    world.call_with("ADD a 1", durable()).await.unwrap();
    assert_eq!(world.call("GET a").await.unwrap_err().code, "lane_busy", "it is not as before");
}

#[tokio::test]
async fn a_read_that_comes_back_without_an_answer_sees_what_was_queued_meanwhile() {
    let world = World::one().await;
    world.call("SET a 1").await.unwrap();
    assert_eq!(world.call("GET a").await.unwrap().source, Source::Live);
    world.server().set(Mode::Silent);
    let tried = world.server().attempts.load(Ordering::Relaxed);
    let (read, ()) = tokio::join!(world.call("GET a"), async {
        world
            .until("it is sent", |world| world.server().attempts.load(Ordering::Relaxed) > tried)
            .await;
        world.backend().set_offline(true).await.unwrap();
        let written = world.call_with("SET a 2", durable()).await.unwrap();
        assert_eq!(written.ack, Some(AckLevel::Durable));
    });
    let read = read.unwrap();
    assert_eq!((read.source, read.value.as_deref()), (Source::Queued, Some(&b"2"[..])));
}

#[tokio::test]
async fn a_write_behind_others_is_durable_at_once_while_replay_is_paused() {
    let world = World::one().await;
    world.server().set(Mode::ReadOnly);
    queue(&world, &["ADD a 1"]).await;
    let paused = |world: &World| world.backend().view().queue.replay_paused.is_some();
    world.until("replay is paused", paused).await;
    assert_eq!(world.backend().view().breaker.state.to_string(), "CLOSED");
    let began = instant();
    let queued = world.call_with("ADD a 2", patient()).await.unwrap();
    assert_eq!(queued.ack, Some(AckLevel::Durable));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    let began = instant();
    world.call_with("GET a", patient()).await.unwrap_err();
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_waits_for_a_lane_that_stops_is_answered_then() {
    let world = World::one().await;
    world.server().set(Mode::Silent);
    queue(&world, &["ADD a 1"]).await;
    let began = instant();
    let (read, write) =
        tokio::join!(world.call_with("GET a", patient()), world.call_with("ADD a 2", patient()));
    assert_eq!(read.unwrap_err().code, "lane_busy");
    assert_eq!(write.unwrap().ack, Some(AckLevel::Durable));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn only_so_many_wait_for_the_lanes_of_a_backend() {
    let world = World::one().await;
    world.server().set(Mode::Slow);
    queue(&world, &["ADD a 1", "ADD a 2", "ADD a 3", "ADD a 4", "ADD a 5"]).await;
    let queue = Arc::clone(&world.backend().entry.shared.queue);
    let flood: Vec<_> = std::iter::from_fn(|| queue.may_wait(7)).collect();
    assert_eq!(flood.len(), 896, "seven eighths");
    let others: Vec<_> = (100..).map_while(|who| queue.may_wait(who)).collect();
    assert_eq!(others.len(), 128, "whoever has none finds one");
    let refused = world.call_with("GET a", patient()).await.unwrap_err();
    assert!(refused.detail.whole().contains("too many calls already wait"), "{}", refused.detail);
    drop((flood, others));
    assert_eq!(world.call_with("GET a", patient()).await.unwrap().source, Source::Live);
}

#[tokio::test]
async fn a_read_of_queued_writes_sees_each_of_them_as_it_comes_and_goes() {
    let world = World::one().await;
    world.server().wholes.store(true, Ordering::Relaxed);
    world.backend().set_offline(true).await.unwrap();
    let queue = Arc::clone(&world.backend().entry.shared.queue);
    for round in 0..600 {
        world.call(&format!("SET a {round}")).await.unwrap();
        if round % 100 == 0 {
            let read = world.call("GET a").await.unwrap();
            assert_eq!((read.source, value(&read)), (Source::Queued, &*round.to_string()));
        }
    }
    world.call("SET a last").await.unwrap();
    for _ in 0..2 {
        assert_eq!(value(&world.call("GET a").await.unwrap()), "last");
    }
    assert!(queue.index().fold_bytes() > 0);
    let newest = queue.index().page(false, 0).last().map(|(_, entry)| entry.header.op_id).unwrap();
    world.backend().discard(newest).await.unwrap();
    assert_eq!(value(&world.call("GET a").await.unwrap()), "599");
    world.call_with("ADD a x", durable()).await.unwrap();
    assert_eq!(world.call("GET a").await.unwrap_err().code, "lane_busy", "nobody knows it");
    world.backend().set_offline(false).await.unwrap();
    world.drained().await;
    assert_eq!(queue.index().fold_bytes(), 0);
    assert_eq!(value(&world.call("GET a").await.unwrap()), "599x");
}
