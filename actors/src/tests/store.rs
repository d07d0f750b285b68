//! A store that refuses or does not open, and dead letters that have no room: what is reported, what goes on, and
//! what is as it was before.

use std::os::unix::fs::PermissionsExt;

use fusebox_state::{breaker::BreakerMemory, queue::Phase, store::Finding};

use super::*;
use crate::backend_shared::BREAKER_FACT;

/// Puts `body`, which the backend refuses, among the dead letters.
async fn bury(world: &World, body: &str) {
    let before = world.backend().view().queue.dead_letters;
    world.backend().set_offline(true).await.unwrap();
    world.call(body).await.unwrap();
    world.backend().set_offline(false).await.unwrap();
    world.until("it is dead", |it| it.backend().view().queue.dead_letters > before).await;
}

fn alert_of_full(world: &World) -> bool {
    world
        .backend()
        .view()
        .alerts
        .iter()
        .any(|alert| alert.said().starts_with("the dead letters are full"))
}

async fn first_dead(world: &World) -> OpId {
    world.backend().queue_page(true, None, 1).await.calls[0].op_id
}

#[tokio::test]
async fn a_requeue_that_the_store_refuses_leaves_its_lane_held() {
    let policy = DeadLetterPolicy::Block;
    let world =
        World::start(vec![BackendSettings { dead_letter_policy: policy, ..settings("one") }]).await;
    bury(&world, "BAD a").await;
    assert_eq!(world.call("SET a 1").await.unwrap().source, Source::Queued);
    let queue = &world.fusebox.0.entries[0].shared.queue;
    queue.store().unwrap().close();
    assert!(world.backend().requeue(first_dead(&world).await, true, false).await.is_err());
    assert_eq!(world.backend().view().queue.dead_letters, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let index = queue.index();
    let (_, behind) = index.page(false, 0).next().unwrap();
    assert_eq!(
        (behind.attempts(), behind.phase),
        (0, Phase::Waiting),
        "what stands behind it waits"
    );
}

#[tokio::test]
async fn a_requeue_of_a_dead_letter_that_blocks_lets_go_of_its_lane() {
    let policy = DeadLetterPolicy::Block;
    let world =
        World::start(vec![BackendSettings { dead_letter_policy: policy, ..settings("one") }]).await;
    bury(&world, "BAD a").await;
    assert_eq!(world.call("SET a 1").await.unwrap().source, Source::Queued);
    world.backend().requeue(first_dead(&world).await, true, false).await.unwrap();
    world.until("what stood behind it moves on", |it| it.server().get("a").is_some()).await;
}

#[tokio::test]
async fn calls_that_were_sent_as_one_stay_dead_where_the_store_refuses_their_requeue() {
    let world = World::one().await;
    world.server().gathers.store(50, Ordering::Relaxed);
    world.server().set(Mode::Deaf);
    world.backend().set_offline(true).await.unwrap();
    for number in 0..20 {
        world.call_with(&format!("PUT t {number}"), durable()).await.unwrap();
    }
    world.backend().set_offline(false).await.unwrap();
    world.until("they are sent", |world| world.server().applied.lock().len() == 20).await;
    world.server().tokenless.store(true, Ordering::Relaxed);
    world.server().set(Mode::Up);
    world.until("they are dead", |it| it.backend().view().queue.dead_letters == 1).await;
    world.fusebox.0.entries[0].shared.queue.store().unwrap().close();
    assert!(world.backend().requeue(first_dead(&world).await, true, false).await.is_err());
    let queue = world.backend().view().queue;
    assert_eq!((queue.dead_letters, queue.calls), (1, 0));
}

#[tokio::test]
async fn full_dead_letters_are_told_for_as_long_as_they_are_full() {
    let queue = QueueLimits { dead_items: 1, ..settings("one").queue };
    let one = || vec![BackendSettings { queue, ..settings("one") }];
    let world = World::start(one()).await;
    bury(&world, "BAD a").await;
    assert!(alert_of_full(&world), "the next one would have no room");
    world.backend().set_offline(true).await.unwrap();
    world.call("BAD b").await.unwrap();
    world.backend().set_offline(false).await.unwrap();
    world
        .until("it has a verdict", |world| {
            let backend = world.backend();
            let index = backend.entry.shared.queue.index();
            index.page(false, 0).any(|(_, entry)| entry.details().verdict.is_some())
        })
        .await;
    // The same after a restart, which knows of no event.
    let world = world.restart(one()).await;
    world.until("it is told again", alert_of_full).await;
    // Discarded though it waits for room, it makes none.
    let waiting = world.backend().queue_page(false, None, 1).await.calls[0].op_id;
    world.backend().set_offline(true).await.unwrap();
    world.backend().discard(waiting).await.unwrap();
    assert!(alert_of_full(&world));
    world.backend().discard(first_dead(&world).await).await.unwrap();
    world.until("there is room again", |world| !alert_of_full(world)).await;
    world.backend().set_offline(false).await.unwrap();
    // Room that a call moves into at once is none; what is replayed later makes room without an order.
    bury(&world, "BAD c").await;
    world.until("it is full once more", alert_of_full).await;
    world.backend().requeue(first_dead(&world).await, true, false).await.unwrap();
    world.until("it is dead again", |it| it.backend().view().queue.dead_letters == 1).await;
    world.until("and full", alert_of_full).await;
}

#[tokio::test]
async fn harmless_findings_raise_no_alert() {
    let world = World::one().await;
    let mut events = world.fusebox.events().subscribe();
    let queue = &world.fusebox.0.entries[0].shared.queue;
    queue.on_store_event(StoreEvent::Found { findings: vec![Finding::RebuildFinished] });
    assert!(world.backend().view().alerts.is_empty() && events.try_recv().is_err());
    let lost = Finding::Unreadable { detail: "a leaf".into() };
    queue.on_store_event(StoreEvent::Found { findings: vec![lost] });
    assert_eq!(world.backend().view().alerts.len(), 1);
    assert!(matches!(events.try_recv().unwrap().kind, EventKind::Alert { .. }));
}

/// Two backends that were stopped, the first with `body` in its queue.
async fn stopped(body: Option<&str>) -> World {
    let world = World::start(vec![settings("one"), settings("two")]).await;
    if let Some(body) = body {
        world.backend().set_offline(true).await.unwrap();
        world.call(body).await.unwrap();
    }
    world.fusebox.shutdown(Duration::ZERO).await;
    world
}

#[tokio::test]
async fn a_connector_that_hangs_keeps_no_store_open() {
    let both = || vec![settings("one"), settings("two")];
    let world = World::start(both()).await;
    for server in &world.servers {
        server.closing.store(60_000, Ordering::Relaxed);
    }
    let stopped = tokio::time::timeout(PATIENCE, world.fusebox.shutdown(Duration::ZERO)).await;
    stopped.expect("it stops");
    let fusebox = start(world.dir.path(), both(), &world.servers).await;
    for backend in fusebox.backends() {
        assert!(backend.is_stored(), "{} was not closed", backend.name());
    }
}

#[tokio::test]
async fn a_stop_gives_up_an_answer_that_is_still_read_in_time_to_close_its_store() {
    let world = World::one().await;
    let bulkhead = &world.fusebox.0.entries[0].shared.circuit.bulkhead;
    // As an answer has it that its client does not read.
    let _place = bulkhead.try_enter(7).unwrap();
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let grace = 3 * crate::CUT_RESERVE;
    world.fusebox.shutdown(grace).await;
    let took = begun.elapsed();
    assert!(took + crate::CUT_RESERVE / 2 < grace, "it took {took:?} of {grace:?}");
}

#[tokio::test]
async fn a_store_that_does_not_open_is_refused_alone_and_heals() {
    let world = stopped(Some("SET a 1")).await;
    let place = world.dir.path().join("backends");
    // What is in the way of the folder is in the way of whatever the store does first.
    std::fs::rename(place.join("one"), place.join("aside")).unwrap();
    std::fs::write(place.join("one"), "no folder").unwrap();
    let fusebox =
        start(world.dir.path(), vec![settings("one"), settings("two")], &world.servers).await;
    let world = World { fusebox, ..world };
    let refused = world.call("SET a 2").await.unwrap_err();
    assert_eq!((refused.kind, &*refused.code), (CallErrorKind::Full, "store_refuses"));
    assert_eq!(&*world.call("GET a").await.unwrap_err().code, "store_closed");
    let other = world.fusebox.backends()[1].clone();
    let live = call(&other, "SET b 1", CallOptions::default()).await.unwrap();
    assert_eq!(live.source, Source::Live);
    assert!(world.backend().view().alerts[0].said().starts_with("the store does not open"));
    assert!(world.backend().view().queue.store_refuses.is_some());
    world
        .until("it is a critical condition", |it| {
            it.fusebox.health().state.known() > Some(SystemState::Degraded)
        })
        .await;

    std::fs::remove_file(place.join("one")).unwrap();
    std::fs::rename(place.join("aside"), place.join("one")).unwrap();
    world.until("it is open", |world| world.backend().view().alerts.is_empty()).await;
    // It was offline when it was stopped, and its store says so.
    assert!(world.backend().view().offline);
    assert_eq!(value(&world.call("GET a").await.unwrap()), "1");
    world.backend().set_offline(false).await.unwrap();
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("1"));
}

#[tokio::test]
async fn what_a_store_remembers_that_opens_late_comes_second_to_what_was_seen_and_ordered_since() {
    let world = stopped(Some("SET a 1")).await;
    let place = world.dir.path().join("backends");
    std::fs::rename(place.join("one"), place.join("aside")).unwrap();
    std::fs::write(place.join("one"), "no folder").unwrap();
    world.server().set(Mode::Down);
    let both = || vec![settings("one"), settings("two")];
    let fusebox = start(world.dir.path(), both(), &world.servers).await;
    let world = World { fusebox, ..world };
    let not_remembered = world.backend().set_offline(false).await.unwrap_err();
    assert!(not_remembered.to_string().contains("a restart will undo it"), "{not_remembered}");
    world.breaker_is("OPEN").await;
    let mut events = world.fusebox.events().subscribe();

    std::fs::remove_file(place.join("one")).unwrap();
    std::fs::rename(place.join("aside"), place.join("one")).unwrap();
    world.until("it is open", |world| world.backend().is_stored()).await;
    // It was offline when it was stopped, and its breaker was closed.
    assert!(!world.backend().view().offline);
    let mut was = None;
    while let Ok(event) = events.try_recv() {
        if let EventKind::Transition { transition } = event.kind {
            assert_eq!(transition.from, was.unwrap_or(transition.from), "{transition:?}");
            was = Some(transition.to);
        }
    }
    assert_ne!(world.backend().view().breaker.state.to_string(), "CLOSED");
    world.server().set(Mode::Up);
    world.drained().await;
    let world = world.restart(both()).await;
    assert!(!world.backend().view().offline, "the order is remembered now");
}

#[tokio::test]
async fn a_large_store_is_opened_behind_the_doors_and_calls_wait_until_it_is_open() {
    let body = format!("SET a {}", "x".repeat(1 << 20));
    let both = || {
        let one = settings("one");
        let queue = QueueLimits { bytes: 64 << 20, ..one.queue };
        vec![BackendSettings { queue, ..one }, settings("two")]
    };
    let world = stopped(Some("SET a 1")).await.restart(both()).await;
    for _ in 0..40 {
        let deadline = Some(Duration::from_secs(60));
        world.call_with(&body, CallOptions { deadline, ..CallOptions::default() }).await.unwrap();
    }
    let world = world.restart(both()).await;
    let refuses = || world.backend().view().queue.store_refuses;
    assert!(refuses().unwrap().contains("MiB is being opened"), "{:?}", refuses());
    let view = world.backend().view();
    assert!(view.opening && !view.offline && !view.operational && !world.fusebox.is_ready());
    let health = world.fusebox.health();
    assert!(health.backends["one"].opening && !health.backends["one"].offline);
    let metrics = world.fusebox.metrics(Format::Prometheus);
    for (metric, value) in [("opening", 1), ("offline", 0)] {
        let line = format!("fusebox_backend_{metric}{{backend=\"one\"}} {value}");
        assert!(metrics.contains(&line), "{line}");
    }
    assert_eq!(world.fusebox.dependencies().nodes[0].state, "OPENING");
    // That is one condition of the system's state, and not a store in trouble besides a backend that is down.
    let told = crate::health::condition(&world.fusebox.0.entries[0].shared);
    assert_eq!((&*told.cause, told.store_trouble), ("its queue is being opened", None));
    let story = format!("{:?}", world.backend().explain().story);
    assert!(story.contains("is large and is still being opened"), "{story}");
    let soon =
        || CallOptions { deadline: Some(Duration::from_millis(1)), ..CallOptions::default() };
    let at_once = |line| world.call_with(line, soon());
    assert_eq!(at_once("GET b").await.unwrap_err().kind, CallErrorKind::Unavailable);
    assert_eq!(at_once("SET b 1").await.unwrap_err().kind, CallErrorKind::Full);
    let shared = &world.fusebox.0.entries[0].shared;
    // Only as many wait as may.
    let floods = |place: u32| if place < 896 { 7 } else { place - 796 };
    let places: Vec<_> = (0..).map_while(|place| shared.queue.may_wait(floods(place))).collect();
    assert_eq!(places.len(), 1_024);
    assert_eq!(world.call("SET b 1").await.unwrap_err().kind, CallErrorKind::Full);
    drop(places);
    let later = |line: &'static str| {
        let backend = world.backend();
        let deadline = Some(Duration::from_secs(60));
        let patient = CallOptions { deadline, ..CallOptions::default() };
        tokio::spawn(async move { call(&backend, line, patient).await })
    };
    let (read, write) = (later("GET a"), later("SET c 3"));
    let backend = world.backend();
    let opened = tokio::spawn(async move { backend.wait_opened(0, Duration::from_secs(60)).await });
    // What has an answer of its own does not wait.
    let options = CallOptions { has_stand_in: true, ..CallOptions::default() };
    let stands_in = world.call_with("GET b", options).await;
    assert_eq!(stands_in.unwrap_err().kind, CallErrorKind::Unavailable);
    let other = world.fusebox.backends()[1].clone();
    let reply = call(&other, "SET a 2", CallOptions::default()).await.unwrap();
    assert_eq!(reply.source, Source::Live);
    // An order that cannot be remembered yet.
    drop(world.backend().force(false, "meanwhile".into(), None).await);
    world.until("it is open", |world| world.backend().view().queue.store_refuses.is_none()).await;
    // It was offline when it was stopped.
    let write = write.await.unwrap().unwrap();
    assert_eq!((write.source, write.ack), (Source::Queued, Some(AckLevel::Durable)));
    let is_opened = opened.await.unwrap();
    assert!(is_opened && !world.backend().wait_opened(0, Duration::from_secs(60)).await);
    let read = read.await.unwrap().unwrap();
    assert_eq!((read.source, value(&read).len()), (Source::Queued, 1 << 20));
    assert_eq!(world.backend().view().queue.calls, 42);
    let forced = |world: &World| {
        let open = world.fusebox.0.entries[0].shared.queue.store().unwrap();
        BreakerMemory::decode(&open.fact(BREAKER_FACT)?)?.force
    };
    world.until("the order is remembered", |world| forced(world).is_some()).await;
    let holds = || world.fusebox.0.entries[0].shared.circuit.holds();
    world.until("it is ready", |world| world.fusebox.is_ready()).await;
    assert!(holds().operator, "what an operator ordered before");
    let view = world.backend().view();
    assert!(view.offline && !view.opening);
    world.backend().set_offline(false).await.unwrap();
    world.drained().await;
}

#[tokio::test]
async fn a_store_that_holds_nothing_and_does_not_open_keeps_no_live_call_back() {
    let world = stopped(None).await;
    let place = world.dir.path().join("backends/one");
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    // Nothing can be locked here.
    std::fs::create_dir(place.join("lock")).unwrap();
    let fusebox =
        start(world.dir.path(), vec![settings("one"), settings("two")], &world.servers).await;
    let world = World { fusebox, ..world };
    assert!(world.backend().view().queue.store_refuses.is_some());
    assert_eq!(world.call("SET a 1").await.unwrap().source, Source::Live);
    assert_eq!(value(&world.call("GET a").await.unwrap()), "1");
    world.server().set(Mode::Down);
    let refused = world.call("SET a 2").await.unwrap_err();
    assert_eq!(refused.kind, CallErrorKind::Full, "what would queue");
    world.server().set(Mode::Up);
    std::fs::remove_dir(place.join("lock")).unwrap();
    world.until("it is open", |world| world.backend().view().queue.store_refuses.is_none()).await;
    world.breaker_is("CLOSED").await;
    assert!(world.call("SET a 3").await.unwrap().ack.is_some());
}

#[tokio::test]
async fn a_run_whose_store_did_not_open_leaves_the_cache_of_earlier_ones() {
    let elsewhere = tempfile::tempdir().unwrap();
    let cached = || {
        let cache_dir = Some(elsewhere.path().to_owned());
        vec![BackendSettings { cache_dir, ..settings("one") }]
    };
    let world = World::start(cached()).await;
    world.call("SET a 1").await.unwrap();
    assert_eq!(value(&world.call("GET a").await.unwrap()), "1");
    world.fusebox.shutdown(Duration::ZERO).await;
    let place = world.dir.path().join("backends");
    std::fs::rename(place.join("one"), place.join("aside")).unwrap();
    std::fs::write(place.join("one"), "no folder").unwrap();
    let fusebox = start(world.dir.path(), cached(), &world.servers).await;
    let world = World { fusebox, ..world };
    assert!(world.backend().view().queue.store_refuses.is_some());
    world.fusebox.shutdown(Duration::ZERO).await;
    std::fs::remove_file(place.join("one")).unwrap();
    std::fs::rename(place.join("aside"), place.join("one")).unwrap();
    world.server().set(Mode::Down);
    let fusebox = start(world.dir.path(), cached(), &world.servers).await;
    let world = World { fusebox, ..world };
    let answer = world.call("GET a").await.unwrap();
    assert_eq!((value(&answer), answer.source), ("1", Source::Stale));
}

#[tokio::test]
async fn a_stores_folder_is_private_wherever_it_is_and_somebody_elses_is_left_alone() {
    let elsewhere = tempfile::tempdir().unwrap();
    let dir = elsewhere.path().join("deep").join("queue");
    let settings = || vec![BackendSettings { queue_dir: Some(dir.clone()), ..settings("one") }];
    let world = World::start(settings()).await;
    let mode = || std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777;
    let open = || std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(mode(), 0o700);
    open();
    let world = world.restart(settings()).await;
    assert_eq!(mode(), 0o700, "an earlier release made it 0755");
    open();
    std::fs::write(dir.join("somebody's"), "").unwrap();
    let _world = world.restart(settings()).await;
    assert_eq!(mode(), 0o755);
}

#[tokio::test]
async fn what_waits_behind_a_dead_letter_goes_on_once_dead_letters_do_not_block() {
    let policy = DeadLetterPolicy::Block;
    let world =
        World::start(vec![BackendSettings { dead_letter_policy: policy, ..settings("one") }]).await;
    bury(&world, "BAD a").await;
    assert_eq!(world.call("SET a 1").await.unwrap().source, Source::Queued);
    assert_eq!(world.server().get("a"), None);
    world.backend().configure(settings("one"));
    world.until("it is applied", |it| it.server().get("a").is_some()).await;
    assert_eq!(world.backend().view().queue.dead_letters, 1, "and nothing became of the other");
}

#[tokio::test]
async fn what_replay_has_on_the_wire_is_heard_before_the_daemon_stops() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    world.call_with("SET a 1", durable()).await.unwrap();
    world.server().set(Mode::Slow);
    world.backend().set_offline(false).await.unwrap();
    // It is applied at once, and answered later.
    world.until("it is on the wire", |world| world.server().get("a").is_some()).await;
    assert_eq!(world.backend().view().queue.calls, 1);
    world.fusebox.shutdown(PATIENCE).await;
    let index = world.fusebox.0.entries[0].shared.queue.index();
    assert!(index.is_empty(), "it was applied, and is known to be");
}
