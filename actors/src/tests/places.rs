//! A place, a permit and an outcome belong to what is on the wire, not to who waits for it.

use fusebox_state::breaker::State;

use super::*;
use crate::{
    connector::{AttemptError, OwnCode, Upload},
    pieces::{Answer, Tail},
};

/// A backend with `places` in its bulkhead that is not pinged, retries nothing, and reopens after a minute.
async fn world(places: u32) -> World {
    let mut settings = settings("one");
    settings.in_flight_max = places;
    settings.retry.attempts = 1;
    settings.breaker.recovery_timeout = Duration::from_secs(60);
    settings.breaker.recovery_timeout_max = Duration::from_secs(60);
    World::start(vec![settings]).await
}

/// Calls that hang up after 5 ms, one after the other.
async fn hang_up(world: &World, body: &str, times: usize) {
    for _ in 0..times {
        drop(tokio::time::timeout(Duration::from_millis(5), world.call(body)).await);
    }
}

fn in_flight(world: &World) -> u32 {
    world.backend().entry.shared.circuit.bulkhead.in_flight()
}

fn hasty() -> CallOptions {
    CallOptions { deadline: Some(Duration::from_millis(5)), ..CallOptions::default() }
}

#[tokio::test]
async fn callers_that_hang_up_leave_no_more_on_the_wire_than_there_are_places() {
    let world = world(4).await;
    world.server().set(Mode::Slow);
    let calls = (0..200).map(|_| {
        let backend = world.backend();
        tokio::spawn(async move {
            let call = call(&backend, "GET a", CallOptions::default());
            drop(tokio::time::timeout(Duration::from_millis(5), call).await);
        })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        call.await.unwrap();
    }
    world.until("all have ended", |world| in_flight(world) == 0).await;
    let most = world.server().on_wire.1.load(Ordering::Relaxed);
    assert_eq!(most, 4, "at once on the wire");
}

#[tokio::test]
async fn a_caller_whose_calls_hang_leaves_places_to_others() {
    let world = world(16).await;
    world.server().set(Mode::Deaf);
    let of = |uid: u32| {
        let backend = world.backend();
        async move { call_of(uid, &backend, "GET a", CallOptions::default()).await.unwrap() }
    };
    let hanging: Vec<_> = (0..40).map(|_| tokio::spawn(of(1))).collect();
    world.until("one caller has its share", |world| in_flight(world) == 14).await;
    let refused = of(1).await;
    assert_eq!(refused.source, Source::Bypass);
    assert!(refused.warnings[0].contains("its share of the 16 attempts"), "{:?}", refused.warnings);
    world.server().set(Mode::Up);
    assert_eq!(of(2).await.source, Source::Live);
    for call in hanging {
        call.abort();
    }
}

#[tokio::test]
async fn what_a_caller_left_on_the_wire_is_over_before_anything_newer_is_sent() {
    let on_wire = |world: &World| world.server().on_wire.0.load(Ordering::Relaxed);
    let applied = || CallOptions { min_ack: Some(AckLevel::Applied), ..CallOptions::default() };
    // One that could be queued waits as well: all that follows in its lane would have to be queued, too.
    for (hangs_up, newer) in [(true, applied()), (false, CallOptions::default())] {
        let world = world(64).await;
        world.server().bars.store(true, Ordering::Relaxed);
        world.server().set(Mode::Slow);
        if hangs_up {
            hang_up(&world, "SET a 1", 1).await;
        } else {
            let options = CallOptions { min_ack: Some(AckLevel::Applied), ..hasty() };
            assert!(world.call_with("SET a 1", options).await.unwrap_err().outcome_unknown);
        }
        world.server().set(Mode::Up);
        assert_eq!(world.call_with("SET b 1", applied()).await.unwrap().source, Source::Live);
        assert_eq!(on_wire(&world), 1, "another key need not wait");
        assert_eq!(world.call_with("SET a 2", newer).await.unwrap().source, Source::Live);
        assert_eq!(on_wire(&world), 0, "the older write is over");
    }
}

#[tokio::test]
async fn replay_sends_nothing_beside_what_a_caller_left_on_the_wire() {
    // It gives up before the wire ends.
    let mut settings = settings("one");
    settings.timeout = Duration::from_millis(40);
    settings.retry.attempts = 1;
    let world = World::start(vec![settings]).await;
    world.server().bars.store(true, Ordering::Relaxed);
    world.server().set(Mode::Slow);
    let options = CallOptions { deadline: Some(Duration::from_secs(20)), ..CallOptions::default() };
    let backend = world.backend();
    let call = call(&backend, "SET a 1", options);
    let (queued, ()) = tokio::join!(call, async {
        world.until("it is on the wire", |world| in_flight(world) == 1).await;
        world.server().set(Mode::Up);
    });
    assert_eq!(queued.unwrap().source, Source::Queued);
    world.until("it is replayed", |world| world.server().applied.lock().len() == 2).await;
    let most = world.server().on_wire.1.load(Ordering::Relaxed);
    assert_eq!(most, 1, "at once on the wire");
}

#[tokio::test]
async fn who_awaits_a_place_gets_one_and_no_fallback() {
    let world = world(1).await;
    for (awaits_place, source) in [(false, Source::Bypass), (true, Source::Live)] {
        world.server().set(Mode::Slow);
        let backend = world.backend();
        let first = tokio::spawn(async move { call(&backend, "GET a", hasty()).await });
        world.until("it is on the wire", |world| in_flight(world) == 1).await;
        let options =
            CallOptions { awaits_place, deadline: Some(PATIENCE), ..CallOptions::default() };
        let (second, ()) = tokio::join!(world.call_with("GET b", options), async {
            world.until("it has ended", |world| in_flight(world) == 0).await;
            world.server().set(Mode::Up);
        });
        assert_eq!(second.unwrap().source, source);
        drop(first.await.unwrap());
    }
}

#[tokio::test]
async fn a_late_reply_is_a_success_that_counts_once() {
    let world = world(4).await;
    world.server().set(Mode::Slow);
    hang_up(&world, "GET a", 1).await;
    assert_eq!(world.call_with("GET a", hasty()).await.unwrap().source, Source::Bypass);
    let outstanding = world.backend().entry.shared.circuit.outstanding();
    assert_eq!(outstanding.attempts, 2);
    world.until("both have ended", |world| in_flight(world) == 0).await;
    let view = world.backend().view();
    assert_eq!((view.breaker.window_calls, view.breaker.window_failures), (2, 0));
    assert_eq!(world.backend().entry.shared.circuit.outstanding().attempts, 0);
    // The second was counted as neutral when its deadline passed.
    assert_eq!((view.calls.successes, view.calls.failures), (1, 0));
}

#[tokio::test]
async fn the_breaker_opens_though_every_caller_left() {
    for body in ["GET a", "SET a 1"] {
        let world = world(8).await;
        world.server().set(Mode::Silent);
        hang_up(&world, body, 3).await;
        assert_eq!(world.backend().view().breaker.window_failures, 0);
        world.breaker_is("OPEN").await;
        assert!(in_flight(&world) <= 3);
        world.until("the places are free", |world| in_flight(world) == 0).await;
    }
}

#[tokio::test]
async fn what_was_counted_as_given_up_is_not_counted_again_when_it_ends() {
    let world = world(8).await;
    world.server().set(Mode::Silent);
    hang_up(&world, "GET a", 2).await;
    let circuit = Arc::clone(&world.backend().entry.shared.circuit);
    let error = scripted::fault(fusebox_state::ErrorClass::Unknown, OwnCode::Unanswered);
    assert_eq!(circuit.count_given_up(&error, circuit.clock.now()).new, 2);
    assert_eq!(circuit.count_given_up(&error, circuit.clock.now()).new, 0);
    assert_eq!(world.backend().view().breaker.window_failures, 2);
    world.until("both have ended", |world| in_flight(world) == 0).await;
    assert_eq!(world.backend().view().breaker.window_failures, 2);
}

#[tokio::test]
async fn a_probe_whose_caller_left_stays_out_until_it_has_ended() {
    let world = world(8).await;
    world.server().set(Mode::Silent);
    hang_up(&world, "GET a", 3).await;
    world.breaker_is("OPEN").await;
    world.server().set(Mode::Slow);
    let circuit = Arc::clone(&world.backend().entry.shared.circuit);
    let now = circuit.clock.now();
    circuit.breaker.recover(now).expect("it was open");
    hang_up(&world, "GET a", 2).await;
    assert!(circuit.breaker.try_acquire(now).is_err(), "both probes are out");
    world.until("the late replies close it", |_| circuit.breaker.state().0 == State::Closed).await;
}

/// A piece every 40 ms.
struct Trickle(u32);

impl Tail for Trickle {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(40)).await;
            self.0 = self.0.checked_sub(1)?;
            Some(Ok(Bytes::from_static(b"x")))
        })
    }
}

#[tokio::test]
async fn an_upload_that_flows_is_no_lost_probe() {
    let world = world(8).await;
    let circuit = Arc::clone(&world.backend().entry.shared.circuit);
    world.server().set(Mode::Down);
    for _ in 0..3 {
        drop(world.call("GET a").await);
    }
    world.breaker_is("OPEN").await;
    world.server().set(Mode::Up);
    circuit.breaker.recover(circuit.clock.now()).expect("it was open");
    let began = instant();
    let reply = world
        .backend()
        .call(Call {
            body: Bytes::from_static(b"PUT t "),
            options: CallOptions { deadline: Some(PATIENCE), ..CallOptions::default() },
            uid: 0,
            admin: false,
            trace: CallTrace::new("/call"),
            streams: false,
            upload: Some(Upload::new(Box::new(Trickle(12)))),
        })
        .await
        .unwrap();
    assert_eq!(reply.source, Source::Live);
    assert!(began.elapsed() > Duration::from_millis(400), "four times the time of an attempt");
    assert_ne!(circuit.breaker.state().0, State::Open);
}

/// A body that says when nobody has it any more.
struct Weighed {
    _held: Arc<()>,
}

impl AsRef<[u8]> for Weighed {
    fn as_ref(&self) -> &[u8] {
        b"SET a 1"
    }
}

#[tokio::test]
async fn a_body_weighs_for_as_long_as_it_is_on_the_wire() {
    let world = world(8).await;
    world.server().set(Mode::Slow);
    let weight = Arc::new(());
    let body = Bytes::from_owner(Weighed { _held: Arc::clone(&weight) });
    let backend = world.backend();
    let call = backend.call(Call {
        body,
        options: CallOptions::default(),
        uid: 0,
        admin: false,
        trace: CallTrace::new("/call"),
        streams: false,
        upload: None,
    });
    assert!(tokio::time::timeout(Duration::from_millis(5), call).await.is_err());
    assert!(Arc::strong_count(&weight) > 1, "its caller has left, and it has not");
    world.until("it has ended", |_| Arc::strong_count(&weight) == 1).await;
}

#[tokio::test]
async fn a_write_whose_caller_leaves_before_it_is_sent_leaves_the_cache() {
    let world = world(4).await;
    let entries = |world: &World| world.backend().view().cache.entries;
    world.call("GET a").await.unwrap();
    world.server().set(Mode::Unreachable);
    hang_up(&world, "INCR a", 1).await;
    assert_eq!(entries(&world), 1, "nothing was sent");
    world.server().set(Mode::Silent);
    hang_up(&world, "INCR a", 1).await;
    assert_eq!(entries(&world), 0, "it may be applied");
}

#[tokio::test]
async fn what_has_waited_for_its_place_is_not_sent_in_a_state_that_refuses_it() {
    for (command, priority, state) in [
        ("INCR n", Priority::Normal, SystemState::Emergency),
        ("INCR n", Priority::Low, SystemState::Critical),
        ("GET n", Priority::Low, SystemState::Critical),
    ] {
        let world = world(1).await;
        world.server().set(Mode::Slow);
        let backend = world.backend();
        let first = tokio::spawn(async move { call(&backend, "GET a", hasty()).await });
        world.until("it is on the wire", |world| in_flight(world) == 1).await;
        let deadline = Some(PATIENCE);
        let options =
            CallOptions { awaits_place: true, deadline, priority, ..CallOptions::default() };
        let waits = |world: &World| world.backend().entry.shared.circuit.calls_under_way() == 2;
        let (second, ()) = tokio::join!(world.call_with(command, options), async {
            world.until("it waits", waits).await;
            world.fusebox.0.flags.set_state(state);
        });
        // A write may be queued.
        let is_live = second.as_ref().is_ok_and(|reply| reply.source == Source::Live);
        assert!(!is_live, "{command}: {second:?}");
        assert_eq!(world.server().get("n"), None);
        drop(first.await.unwrap());
    }
}
