//! Other settings while it runs, and what follows from settings, timers and the system's state.

use fusebox_state::{LaneId, Lanes, breaker::BreakerMemory};
use ractor::ActorStatus;

use super::*;
use crate::{backend_shared::BREAKER_FACT, circuit::Circuit};

const HOUR: Duration = Duration::from_secs(3_600);

fn system(world: &World, interval: Duration) -> SystemSettings {
    SystemSettings {
        state_dir: world.dir.path().to_owned(),
        pings: PingSettings::every(interval),
        instance: "test".into(),
        copied: None,
    }
}

/// Changes settings as a running daemon does.
fn retune(world: &World, backends: Vec<BackendSettings>) {
    world.fusebox.retune(system(world, Duration::from_millis(50)), backends).unwrap();
}

/// A world whose backends are pinged once an hour, after the first ping.
async fn quiet(backends: Vec<BackendSettings>) -> World {
    let dir = tempfile::tempdir().unwrap();
    let servers: Vec<_> = backends.iter().map(|_| Scripted::new()).collect();
    let fusebox = start_pinging(dir.path(), PingSettings::every(HOUR), backends, &servers).await;
    let world = World { dir, fusebox, servers };
    let is_waiting =
        |world: &World| pings(world) > 0 && world.backend().view().next_ping_at.is_some();
    world.until("the first ping is over", is_waiting).await;
    world
}

fn pings(world: &World) -> u32 {
    world.server().pings.load(Ordering::Relaxed)
}

fn circuit(world: &World, at: usize) -> &Circuit {
    &world.fusebox.0.entries[at].shared.circuit
}

/// The same with open times that do not end within a test.
fn patient(settings: BackendSettings) -> BackendSettings {
    let breaker =
        BreakerSettings { recovery_timeout: HOUR, recovery_timeout_max: HOUR, ..settings.breaker };
    BackendSettings { breaker, ..settings }
}

#[tokio::test]
async fn other_dependencies_are_in_effect_at_once() {
    let world = World::start(vec![settings("one"), settings("two")]).await;
    let on_two = BackendSettings { depends_on: vec!["two".into()], ..settings("one") };
    retune(&world, vec![on_two]);
    let edges = world.fusebox.dependencies().edges;
    assert!(edges.iter().any(|it| it.kind == "declared" && (&*it.from, &*it.to) == ("one", "two")));
    world.servers.iter().for_each(|server| server.set(Mode::Down));
    let told = |world: &World| world.fusebox.health().backends["one"].impaired_by == ["two"];
    world.until("it is down for the sake of the other", told).await;
}

#[tokio::test]
async fn what_is_changed_while_an_actor_is_started_again_is_in_effect() {
    let world = World::start(vec![patient(settings("one")), settings("two")]).await;
    world.server().set(Mode::Down);
    world.breaker_is("OPEN").await;
    world.backend().panic_for_test();
    let actor = world.fusebox.0.entries[0].actor.load_full().unwrap();
    let is_gone = || actor.get_status() == ActorStatus::Stopped;
    until("its actor is gone".into(), is_gone).await;
    world.server().set(Mode::Up);
    let specs =
        vec![BackendSpec { settings: settings("two"), connector: world.servers[1].clone() }];
    let system = system(&world, Duration::from_millis(50));
    world.fusebox.reload(system, specs, vec![settings("one")]).await.unwrap();
    // The open time was an hour, and is a tenth of a second.
    world.breaker_is("CLOSED").await;
    world.until("it is started again", |world| world.backend().view().restarts == 1).await;
    assert_eq!(circuit(&world, 0).settings.load().breaker, settings("one").breaker);
}

#[tokio::test]
async fn what_one_backend_does_not_take_changes_none() {
    let world = World::start(vec![settings("one"), settings("two"), settings("three")]).await;
    for restarts in 0..6 {
        world.until("it runs", |world| world.backend().view().restarts == restarts.min(5)).await;
        world.backend().panic_for_test();
    }
    world.until("it is given up on", |world| world.backend().view().offline).await;
    let with = |name| {
        let breaker = BreakerSettings { failure_threshold: 9, ..settings(name).breaker };
        BackendSettings { breaker, ..settings(name) }
    };
    let specs = vec![BackendSpec { settings: with("two"), connector: world.servers[1].clone() }];
    let retuned = vec![with("three"), with("one")];
    let refused = world.fusebox.reload(system(&world, HOUR), specs, retuned).await.unwrap_err();
    assert!(refused.to_string().contains("failed too often"), "{refused}");
    for backend in world.fusebox.backends() {
        assert_eq!(backend.view().breaker.failure_threshold, 3, "{}", backend.name());
    }
    let refused = world.fusebox.retune(system(&world, HOUR), vec![with("three"), with("one")]);
    assert!(refused.is_err());
    assert_eq!(world.fusebox.backends()[2].view().breaker.failure_threshold, 3);
}

#[tokio::test]
async fn another_ping_interval_counts_from_the_last_ping() {
    let world = quiet(vec![settings("one")]).await;
    let before = pings(&world);
    retune(&world, Vec::new());
    world.until("it is pinged again", |world| pings(world) > before + 1).await;
}

#[tokio::test]
async fn what_is_down_is_pinged_each_second_while_the_system_is_critical() {
    let critical = patient(BackendSettings { critical: true, ..settings("one") });
    let world = quiet(vec![critical, settings("two")]).await;
    // Its calls fail, and its pings are answered.
    world.server().set(Mode::ReadOnly);
    for _ in 0..3 {
        world.call("INCR n").await.unwrap_err();
    }
    world.breaker_is("OPEN").await;
    let state = |world: &World| world.fusebox.health().state.known();
    world.until("critical", |world| state(world) == Some(SystemState::Critical)).await;
    let before = pings(&world);
    world.until("it is pinged again and again", |world| pings(world) > before + 2).await;
    assert_eq!(world.servers[1].pings.load(Ordering::Relaxed), 1, "the other one is well");
}

#[tokio::test]
async fn open_times_are_capped_by_what_the_settings_say_while_the_system_is_critical() {
    let critical = |settings| BackendSettings { critical: true, ..settings };
    let breaker = BreakerSettings { recovery_timeout_max: HOUR, ..settings("two").breaker };
    let two = BackendSettings { breaker, ..settings("two") };
    let down = ["one", "three"].map(|name| critical(patient(settings(name))));
    let world = World::start([std::slice::from_ref(&two), &down].concat()).await;
    world.servers[1..].iter().for_each(|server| server.set(Mode::Down));
    let state = |world: &World| world.fusebox.health().state.known();
    // It stays as bad as it is.
    world.until("emergency", |world| state(world) == Some(SystemState::Emergency)).await;
    // As after many failed recoveries, by an actor that has no timer for it yet.
    let (circuit, hour) = (circuit(&world, 0), u64::try_from(HOUR.as_millis()).unwrap());
    let open_until = Some(circuit.clock.unix().get() + hour);
    let memory = BreakerMemory { open_until, ..BreakerMemory::default() };
    circuit.breaker.restore(&memory, circuit.clock.now(), circuit.clock.unix());
    assert_eq!(circuit.breaker.state().0, State::Open);
    retune(&world, vec![critical(two)]);
    let is_closed = |_: &World| circuit.breaker.state().0 == State::Closed;
    world.until("it is closed", is_closed).await;
}

#[tokio::test]
async fn a_forgotten_exponent_does_not_come_back_with_the_next_run() {
    let mut short = settings("one");
    short.breaker.window = Duration::from_millis(300);
    let world = World::start(vec![short]).await;
    let exponent = |world: &World| world.backend().view().breaker.exponent;
    let kept = |world: &World| {
        let store = world.fusebox.0.entries[0].shared.queue.store().unwrap();
        BreakerMemory::decode(&store.fact(BREAKER_FACT)?).map(|memory| memory.exponent)
    };
    world.server().set(Mode::Down);
    world.until("recoveries fail", |world| exponent(world) > 1).await;
    world.server().set(Mode::Up);
    world.breaker_is("CLOSED").await;
    world.until("it is remembered", |world| kept(world) > Some(1)).await;
    world.until("it is forgotten", |world| exponent(world) == 0).await;
    world.until("and on the disk", |world| kept(world) == Some(0)).await;
}

#[tokio::test]
async fn other_settings_of_the_cache_leave_fills_barred() {
    let world = World::one().await;
    world.call("SET a 1").await.unwrap();
    let shared = &world.fusebox.0.entries[0].shared;
    // Its caller has left a write, which may land at any time.
    shared.bar_fills(&Lanes::One(LaneId::of(b"", b"a")));
    let cache = CacheSettings { ttl: HOUR, max_stale: HOUR, ..settings("one").cache };
    retune(&world, vec![BackendSettings { cache, ..settings("one") }]);
    assert_eq!(world.call("GET a").await.unwrap().source, Source::Live);
    assert_eq!(shared.cache.load().entries().len(), 0);
}

#[tokio::test]
async fn other_settings_of_the_cache_keep_what_is_cached_and_two_in_a_row_do_so_too() {
    let world = World::one().await;
    world.call("SET a 1").await.unwrap();
    assert_eq!(world.call("GET a").await.unwrap().source, Source::Live);
    for items in [50, 40] {
        let cache = CacheSettings { items, ..settings("one").cache };
        retune(&world, vec![BackendSettings { cache, ..settings("one") }]);
    }
    let cached = |world: &World| world.fusebox.0.entries[0].shared.cache.load().stats().0;
    world.until("it is taken over", |world| cached(world) == 1).await;
    world.server().set(Mode::Down);
    let answer = world.call("GET a").await.unwrap();
    assert_eq!((value(&answer), answer.source), ("1", Source::Cache));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cached_of_one_server_is_gone_before_another_is_in_its_place() {
    let world = World::one().await;
    world.call("SET a 1").await.unwrap();
    world.call("GET a").await.unwrap();
    let shared = Arc::clone(&world.fusebox.0.entries[0].shared);
    assert_eq!(shared.cache.load().entries().len(), 1);
    let before = shared.connector.load_full();
    let looking = std::thread::spawn(move || {
        while Arc::ptr_eq(&before, &shared.connector.load_full()) {
            std::hint::spin_loop();
        }
        shared.cache.load().entries().len()
    });
    let other = Scripted::new();
    *other.name.lock() = "other".into();
    let spec = BackendSpec { settings: settings("one"), connector: other };
    world.fusebox.reload(system(&world, HOUR), vec![spec], Vec::new()).await.unwrap();
    assert_eq!(looking.join().unwrap(), 0);
}

#[tokio::test]
async fn an_alert_about_closed_objects_lasts_until_all_are_open() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    for body in ["SET a 1", "SET b 1"] {
        world.call(body).await.unwrap();
    }
    *world.server().closed.lock() = vec!["a".into(), "b".into()];
    world.backend().set_offline(false).await.unwrap();
    let tried = |world: &World| world.server().attempts.load(Ordering::Relaxed);
    world.until("both were tried", |world| tried(world) == 2).await;
    let alerts = |world: &World| world.backend().view().alerts;
    world.until("it is told", |world| !alerts(world).is_empty()).await;
    let mut events = world.fusebox.events().subscribe();
    let mut ended = || {
        let mut count = 0;
        while let Ok(event) = events.try_recv() {
            let is_end = |message: &fusebox_state::Words| message.said() == "alert ended: blocked";
            count +=
                u32::from(matches!(&event.kind, EventKind::Alert { message } if is_end(message)));
        }
        count
    };
    let waiting = |world: &World| world.backend().view().queue.calls;
    for (opens, left) in [("a", 1), ("b", 0)] {
        world.server().closed.lock().retain(|closed| closed != opens);
        assert_eq!(ended(), 0, "before {opens} is open");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(16)).await;
        tokio::time::resume();
        world.until("one is applied", |world| waiting(world) == left).await;
    }
    world.until("the alert is over", |world| alerts(world).is_empty()).await;
    assert_eq!(ended(), 1);
}
