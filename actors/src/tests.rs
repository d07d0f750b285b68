//! The actors over a scripted backend and a real store in a temporary folder. The committing thread
//! runs by the machine's clock, so these tests use short real times and poll with a deadline.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use fusebox_state::{
    OpId, Ratio, UnixMillis,
    backoff::RetrySettings,
    breaker::{BreakerSettings, Reason, SlowCalls, State},
    cache::CacheSettings,
    queue::QueueLimits,
    store::StoreEvent,
    system::SystemState,
};

use crate::{
    AckLevel, Backend, BackendSettings, BackendSpec, Call, CallError, CallErrorKind, CallOptions,
    Clock, DeadLetterPolicy, EventBus, EventKind, Fusebox, PingSettings, Priority, Reply, Source,
    SystemSettings, WriteFallback,
};

use crate::{ground::Ground, metrics::Format, queue::Queue, trace::CallTrace};

mod changes;
mod chaos;
mod dependencies;
mod kinds;
mod lanes;
mod limits;
mod places;
mod scripted;
mod store;
mod suspicion;
mod ticket;
mod trace;
mod write_state;

use scripted::{Mode, Scripted};

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn settings(name: &str) -> BackendSettings {
    let ms = Duration::from_millis;
    BackendSettings {
        name: name.into(),
        kind: "scripted",
        critical: false,
        depends_on: Vec::new(),
        depends_on_optional: Vec::new(),
        timeout: ms(100),
        breaker: BreakerSettings {
            failure_threshold: 3,
            failure_rate: Ratio::new(0.5).unwrap(),
            recovery_timeout: ms(100),
            recovery_timeout_max: ms(1_000),
            success_threshold: 2,
            window: Duration::from_secs(6),
            auto_recovery: true,
            attempt_timeout: ms(100),
            jitter: Ratio::new(0.0).unwrap(),
            slow: SlowCalls::default(),
        },
        retry: RetrySettings { attempts: 2, base: ms(1), cap: ms(10) },
        in_flight_max: 64,
        cache: CacheSettings {
            items: 100,
            bytes: 1 << 20,
            ttl: Duration::from_secs(300),
            max_stale: Duration::from_secs(300),
            entry_max: 16 << 20,
            disk_bytes: 0,
        },
        answer_after: ms(50),
        cache_dir: None,
        queue: QueueLimits { items: 1_000, bytes: 1 << 20, dead_items: 10, dead_bytes: 1 << 20 },
        disk_floor: 0,
        queue_packed: false,
        queue_dir: None,
        write_fallback: WriteFallback::Queue,
        dead_letter_policy: DeadLetterPolicy::Continue,
    }
}

struct World {
    dir: tempfile::TempDir,
    fusebox: Fusebox,
    servers: Vec<Arc<Scripted>>,
}

impl World {
    async fn start(backends: Vec<BackendSettings>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let servers: Vec<_> = backends.iter().map(|_| Scripted::new()).collect();
        let fusebox = start(dir.path(), backends, &servers).await;
        Self { dir, fusebox, servers }
    }

    async fn one() -> Self {
        Self::start(vec![settings("one")]).await
    }

    /// Stops the core and starts another one over the same folder and servers.
    async fn restart(self, backends: Vec<BackendSettings>) -> Self {
        self.fusebox.shutdown(Duration::from_secs(1)).await;
        let fusebox = start(self.dir.path(), backends, &self.servers).await;
        Self { fusebox, ..self }
    }

    fn backend(&self) -> Arc<Backend> {
        self.fusebox.backends()[0].clone()
    }

    fn server(&self) -> &Scripted {
        &self.servers[0]
    }

    async fn call(&self, body: &str) -> Result<Reply, CallError> {
        self.call_with(body, CallOptions::default()).await
    }

    async fn call_with(&self, body: &str, options: CallOptions) -> Result<Reply, CallError> {
        call(&self.backend(), body, options).await
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        until(what.to_owned(), move || holds(self))
    }

    async fn drained(&self) {
        self.until("the queue is drained", |world| world.backend().view().queue.calls == 0).await;
    }

    async fn breaker_is(&self, state: &str) {
        self.until(state, |world| world.backend().view().breaker.state.to_string() == state).await;
    }
}

/// The machine's clock, for tests that measure.
#[expect(clippy::disallowed_methods, reason = "they measure real time")]
fn instant() -> std::time::Instant {
    std::time::Instant::now()
}

async fn start(dir: &Path, backends: Vec<BackendSettings>, servers: &[Arc<Scripted>]) -> Fusebox {
    start_pinging(dir, PingSettings::every(Duration::from_millis(50)), backends, servers).await
}

async fn start_pinging(
    dir: &Path,
    pings: PingSettings,
    backends: Vec<BackendSettings>,
    servers: &[Arc<Scripted>],
) -> Fusebox {
    let system =
        SystemSettings { state_dir: dir.to_owned(), pings, instance: "test".into(), copied: None };
    let specs = backends
        .into_iter()
        .zip(servers)
        .map(|(settings, server)| BackendSpec { settings, connector: server.clone() })
        .collect();
    Fusebox::start(system, specs, None).await.unwrap()
}

async fn call(backend: &Backend, body: &str, options: CallOptions) -> Result<Reply, CallError> {
    call_of(0, backend, body, options).await
}

async fn call_of(
    uid: u32,
    backend: &Backend,
    body: &str,
    options: CallOptions,
) -> Result<Reply, CallError> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    backend
        .call(Call {
            body,
            options,
            uid,
            admin: false,
            trace: CallTrace::new("/call"),
            streams: false,
            upload: None,
        })
        .await
}

async fn until(what: String, holds: impl Fn() -> bool) {
    let poll = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, poll).await.is_ok(), "waited in vain until {what}");
}

fn value(reply: &Reply) -> &str {
    std::str::from_utf8(reply.value.as_ref().unwrap()).unwrap()
}

fn durable() -> CallOptions {
    CallOptions { min_ack: Some(AckLevel::Durable), ..CallOptions::default() }
}

#[tokio::test]
async fn a_healthy_backend_answers_live() {
    let world = World::one().await;
    let reply = world.call("SET a 1").await.unwrap();
    assert_eq!(
        (reply.source, reply.ack, value(&reply)),
        (Source::Live, Some(AckLevel::Applied), "OK")
    );
    let reply = world.call("GET a").await.unwrap();
    assert_eq!((reply.source, reply.ack, value(&reply)), (Source::Live, None, "1"));
    assert_eq!(world.call("NO").await.unwrap_err().kind, CallErrorKind::Malformed);
}

#[tokio::test]
async fn an_outage_is_not_felt_and_the_queue_is_drained_in_order() {
    let world = World::one().await;
    world.call("SET kept 1").await.unwrap();
    world.call("GET kept").await.unwrap();
    world.server().set(Mode::Down);
    for value in 0..20 {
        let reply = world.call(&format!("SET a {value}")).await.unwrap();
        assert_eq!((reply.source, reply.ack), (Source::Queued, Some(AckLevel::Durable)));
    }
    let reply = world.call("GET a").await.unwrap();
    assert_eq!((reply.source, value(&reply)), (Source::Queued, "19"));
    assert_eq!(world.call("GET kept").await.unwrap().source, Source::Cache);
    let reply = world.call("GET never").await.unwrap();
    assert_eq!((reply.source, value(&reply)), (Source::Bypass, "nil"));
    world.server().set(Mode::Up);
    world.drained().await;
    let order: Vec<_> = (0..20).map(|value| format!("SET a {value}")).collect();
    assert_eq!(world.server().applied.lock()[1..], order);
    assert_eq!(world.server().get("a").as_deref(), Some("19"));
}

#[tokio::test]
async fn a_write_behind_queued_ones_waits_for_its_turn_and_other_lanes_do_not() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    for value in 0..50 {
        world.call(&format!("SET a {value}")).await.unwrap();
    }
    world.server().set(Mode::Up);
    world.breaker_is("CLOSED").await;
    assert_eq!(world.call("SET b 1").await.unwrap().source, Source::Live);
    let reply = world.call("SET a last").await.unwrap();
    assert!(reply.ack.is_some());
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("last"));
}

#[tokio::test]
async fn what_is_not_known_in_an_outage_needs_consent_and_is_applied_once() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    let refused = world.call("INCR n").await.unwrap_err();
    assert_eq!(refused.kind, CallErrorKind::Unavailable);
    let reply = world.call_with("INCR n", durable()).await.unwrap();
    assert_eq!((reply.source, reply.value), (Source::Queued, None));
    // The backend applies it and loses the answer: replay must not apply it again.
    world.server().set(Mode::Deaf);
    world.until("it was applied", |world| world.server().get("n").is_some()).await;
    world.server().set(Mode::Up);
    world.drained().await;
    assert_eq!(world.server().get("n").as_deref(), Some("1"));
    let refused = world.call("FLUSH").await;
    assert!(refused.is_ok(), "all lanes are free again");
}

#[tokio::test]
async fn an_unknown_outcome_is_queued_where_it_may_be_and_said_where_not() {
    let world = World::one().await;
    world.server().set(Mode::Silent);
    let reply = world.call("SET a 1").await.unwrap();
    assert_eq!(reply.source, Source::Queued);
    let unknown = world.call("INCR n").await.unwrap_err();
    if unknown.kind == CallErrorKind::TimedOut {
        assert!(unknown.outcome_unknown && unknown.op_id.is_some());
    }
    world.server().set(Mode::Up);
    world.drained().await;
}

#[tokio::test]
async fn queue_breaker_and_force_survive_a_restart() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    world.call("SET a 1").await.unwrap();
    world.backend().force(true, "by hand".into(), None).await.unwrap();
    let world = world.restart(vec![settings("one")]).await;
    let view = world.backend().view();
    assert_eq!((view.queue.calls, view.breaker.state.known()), (1, Some(State::Open)));
    assert_eq!(view.breaker.forced.unwrap().reason, "by hand");
    world.server().set(Mode::Up);
    assert_eq!(world.call("SET b 1").await.unwrap().source, Source::Queued);
    world.backend().release().await.unwrap();
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("1"));
}

#[tokio::test]
async fn offline_holds_everything_and_survives_a_restart() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    assert_eq!(world.call("SET a 1").await.unwrap().source, Source::Queued);
    let world = world.restart(vec![settings("one")]).await;
    assert!(world.backend().view().offline);
    let pings = world.server().pings.load(Ordering::Relaxed);
    assert_eq!(world.call("SET a 2").await.unwrap().source, Source::Queued);
    assert_eq!(world.server().pings.load(Ordering::Relaxed), pings);
    world.backend().set_offline(false).await.unwrap();
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("2"));
}

#[tokio::test]
async fn a_dead_idle_backend_is_found_out_by_pings() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    let last = |world: &World| world.backend().view().breaker.last_transition;
    world.until("it is told", |world| last(world).is_some()).await;
    let first = world.backend().transitions(10).remove(0);
    assert_eq!(first.transition.reason.as_str(), "pings_failed");
}

#[tokio::test]
async fn an_actor_that_panics_is_started_again_and_nothing_is_lost() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    world.call("SET a 1").await.unwrap();
    world.backend().panic_for_test();
    world.until("it is started again", |world| world.backend().view().restarts == 1).await;
    let asked = world.backend().set_offline(false).await;
    assert!(asked.is_ok(), "{asked:?}");
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_restart_storm_marks_one_backend_down_and_leaves_the_others() {
    let world = World::start(vec![settings("one"), settings("two")]).await;
    for restarts in 0..6 {
        world.until("it runs", |world| world.backend().view().restarts == restarts.min(5)).await;
        world.backend().panic_for_test();
    }
    world.until("it is given up on", |world| world.backend().view().offline).await;
    assert_eq!(world.call("SET a 1").await.unwrap().source, Source::Queued);
    let other = world.fusebox.backend("two").unwrap();
    assert_eq!(call(&other, "SET a 1", CallOptions::default()).await.unwrap().source, Source::Live);
    world.backend().set_offline(false).await.unwrap();
    world.drained().await;
}

#[tokio::test]
async fn a_blocked_server_pauses_replay_and_buries_nothing() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    world.call("SET a 1").await.unwrap();
    world.server().set(Mode::Blocked);
    world
        .until("an error says so", |world| {
            let view = world.backend().view();
            view.breaker.state.to_string() == "OPEN" && view.queue.calls == 1
        })
        .await;
    world.server().set(Mode::Up);
    world.backend().reset().await.unwrap();
    world.backend().replay().ok();
    world.drained().await;
    assert_eq!(world.backend().view().queue.dead_letters, 0);
}

#[tokio::test]
async fn a_rejected_call_becomes_a_dead_letter_and_can_be_discarded() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    world.call("BAD a").await.unwrap();
    world.call("SET a 1").await.unwrap();
    world.server().set(Mode::Up);
    world.drained().await;
    let page = world.backend().queue_page(true, None, 10).await;
    assert_eq!((page.total, &*page.calls[0].state), (1, "dead"));
    let op_id = page.calls[0].op_id;
    assert!(
        world.backend().requeue(op_id, false, false).await.is_err(),
        "its lane was written since"
    );
    world.backend().requeue(op_id, true, false).await.unwrap();
    world.until("it is dead again", |world| world.backend().view().queue.dead_letters == 1).await;
    world.backend().discard(op_id).await.unwrap();
    assert_eq!(world.backend().queue_page(true, None, 10).await.total, 0);
}

#[tokio::test]
async fn an_op_id_is_recognised_while_it_is_in_the_store() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    let op_id = OpId::new(UnixMillis::new(1), 1);
    let options = || CallOptions { op_id: Some(op_id), ..CallOptions::default() };
    assert_eq!(world.call_with("SET a 1", options()).await.unwrap().op_id, Some(op_id));
    assert_eq!(world.call_with("SET a 1", options()).await.unwrap().source, Source::Queued);
    let conflict = world.call_with("SET a 2", options()).await.unwrap_err();
    assert_eq!(conflict.kind, CallErrorKind::Conflict);
    assert_eq!(world.backend().view().queue.calls, 1);
}

#[tokio::test]
async fn a_full_queue_refuses_and_keeps_what_it_has() {
    let limits = QueueLimits { items: 10, ..settings("one").queue };
    let world = World::start(vec![BackendSettings { queue: limits, ..settings("one") }]).await;
    world.backend().set_offline(true).await.unwrap();
    for number in 0..10 {
        world.call(&format!("SET k{number} 1")).await.unwrap();
    }
    let refused = world.call("SET more 1").await.unwrap_err();
    assert_eq!((refused.kind, &*refused.code), (CallErrorKind::Full, "queue_full"));
    world.backend().set_offline(false).await.unwrap();
    world.drained().await;
    assert_eq!(world.server().applied.lock().len(), 10);
}

#[tokio::test]
async fn the_system_state_follows_and_emergency_is_read_only_but_replays() {
    let critical = |name| BackendSettings { critical: true, ..settings(name) };
    let world = World::start(vec![settings("one"), critical("two"), critical("three")]).await;
    let state = |world: &World| world.fusebox.health().state.known().unwrap();
    world.until("healthy", |world| state(world) == SystemState::Healthy).await;
    world.servers[1].set(Mode::Down);
    world.until("critical", |world| state(world) == SystemState::Critical).await;
    let low = CallOptions { priority: Priority::Low, ..CallOptions::default() };
    let attempts = world.server().attempts.load(Ordering::Relaxed);
    let shed = world.call_with("GET a", low).await.unwrap();
    assert_eq!(shed.source, Source::Bypass);
    assert_eq!(world.server().attempts.load(Ordering::Relaxed), attempts);
    world.servers[2].set(Mode::Down);
    world.until("emergency", |world| state(world) == SystemState::Emergency).await;
    let reply = world.call("SET a 1").await.unwrap();
    assert_eq!((reply.source, reply.ack), (Source::Queued, Some(AckLevel::Durable)));
    assert_eq!(world.call("INCR n").await.unwrap_err().kind, CallErrorKind::Unavailable);
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("1"));
    assert_eq!(world.call("GET a").await.unwrap().source, Source::Live);
    world.servers[1].set(Mode::Up);
    world.servers[2].set(Mode::Up);
    world.until("healthy again", |world| state(world) == SystemState::Healthy).await;
}

#[tokio::test]
async fn recovery_takes_dependencies_first() {
    let on = |name, on: &[&str]| BackendSettings {
        depends_on: on.iter().map(|it| (*it).to_owned()).collect(),
        breaker: BreakerSettings { auto_recovery: false, ..settings(name).breaker },
        ..settings(name)
    };
    let world =
        World::start(vec![on("one", &["three"]), on("two", &[]), on("three", &["two"])]).await;
    for server in &world.servers {
        server.set(Mode::Down);
    }
    let open = |world: &World| {
        world.fusebox.health().backends.values().all(|it| it.breaker.known() == Some(State::Open))
    };
    world.until("all are open", open).await;
    assert_eq!(world.fusebox.health().backends["one"].impaired_by, ["two"]);
    let order = world.fusebox.recover(None).await.unwrap();
    assert_eq!(order, ["two", "three", "one"]);
}

#[tokio::test]
async fn a_caller_that_leaves_gives_its_place_back_when_its_attempt_has_ended() {
    let world = World::one().await;
    for _ in 0..100 {
        world.server().set(Mode::Slow);
        let backend = world.backend();
        let left = call(&backend, "GET a", CallOptions::default());
        assert!(tokio::time::timeout(Duration::from_micros(1), left).await.is_err());
        world.server().set(Mode::Up);
        world.call("GET a").await.unwrap();
        world.until("one place is left", |world| world.backend().view().calls.in_flight < 56).await;
    }
    world.until("all are free", |world| world.backend().view().calls.in_flight == 0).await;
    assert_eq!(world.backend().view().breaker.window_failures, 0);
}

#[tokio::test]
async fn events_tell_what_happened() {
    let world = World::one().await;
    let mut events = world.fusebox.events().subscribe();
    world.backend().force(true, "why not".into(), None).await.unwrap();
    let told = async {
        loop {
            if let EventKind::Transition { transition } = events.recv().await.unwrap().kind {
                return transition;
            }
        }
    };
    let transition = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(transition.note.as_deref(), Some("why not"));
    world.until("it is in the history", |world| world.backend().transitions(10).len() == 1).await;
    assert!(world.backend().explain().story.iter().any(|line| line.said().contains("forced open")));
    let page = world.fusebox.metrics(Format::OpenMetrics);
    assert!(page.contains(r#"fusebox_breaker_state{backend="one",state="OPEN"} 1"#), "{page}");
}

/// Keeps the committing thread of the first backend's store busy until the sender is dropped.
fn hold_committer(world: &World) -> std::sync::mpsc::Sender<()> {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let queue = &world.fusebox.0.entries[0].shared.queue;
    let (begin, reached) = std::sync::mpsc::channel();
    let hold = Box::new(move |_| {
        begin.send(()).ok();
        released.recv().ok();
    });
    queue.store().unwrap().put_fact("hold", vec![1], hold);
    reached.recv().unwrap();
    release
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_while_the_store_is_reopened_stays_in_the_queue() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    let release = hold_committer(&world);
    let backend = world.backend();
    let write =
        tokio::spawn(async move { call(&backend, "SET a 1", CallOptions::default()).await });
    world.until("it is on its way", |world| world.backend().view().queue.calls == 1).await;
    // The store tells what it held when it was opened: that append was not there yet.
    let queue = &world.fusebox.0.entries[0].shared.queue;
    queue.on_store_event(StoreEvent::Reopened { calls: Vec::new() });
    drop(release);
    let reply = write.await.unwrap().unwrap();
    assert_eq!(reply.ack, Some(AckLevel::Durable));
    assert_eq!(world.backend().view().queue.calls, 1, "acknowledged, so it waits");
    world.backend().set_offline(false).await.unwrap();
    world.until("it was applied", |world| world.server().get("a").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_is_not_durable_before_the_first_is_stored() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    let options = |deadline| CallOptions {
        op_id: Some(OpId::new(UnixMillis::new(1), 1)),
        deadline: Some(Duration::from_millis(deadline)),
        ..CallOptions::default()
    };
    let release = hold_committer(&world);
    let (backend, patient) = (world.backend(), options(10_000));
    let first = tokio::spawn(async move { call(&backend, "SET a 1", patient).await });
    world.until("it is on its way", |world| world.backend().view().queue.calls == 1).await;
    let repeat = world.call_with("SET a 1", options(50)).await.unwrap_err();
    assert!(repeat.outcome_unknown, "{repeat:?}");
    drop(release);
    assert_eq!(first.await.unwrap().unwrap().ack, Some(AckLevel::Durable));
    let repeat = world.call_with("SET a 1", options(10_000)).await.unwrap();
    assert_eq!((repeat.ack, world.backend().view().queue.calls), (Some(AckLevel::Durable), 1));
}

#[tokio::test]
async fn a_breaker_that_opens_after_its_actor_panicked_closes_again() {
    // Of five, one may be open without the system changing its state, which would tell the actor.
    let names = ["one", "two", "three", "four", "five"];
    let world = World::start(names.map(settings).into()).await;
    world.backend().panic_for_test();
    world.until("it is started again", |world| world.backend().view().restarts == 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.server().set(Mode::Down);
    world.breaker_is("OPEN").await;
    world.server().set(Mode::Up);
    world.breaker_is("CLOSED").await;
}

#[tokio::test]
async fn a_breaker_that_was_open_when_a_hold_ends_closes_again() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    world.breaker_is("OPEN").await;
    let circuit = &world.fusebox.0.entries[0].shared.circuit;
    circuit.hold(|holds| holds.retarget = true);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    world.server().set(Mode::Up);
    circuit.hold(|holds| holds.retarget = false);
    world.breaker_is("CLOSED").await;
}

#[tokio::test]
async fn a_call_on_the_wire_when_recovery_is_started_again_is_sent_again() {
    let slow = BackendSettings { timeout: Duration::from_secs(60), ..settings("one") };
    let world = World::start(vec![slow]).await;
    world.backend().set_offline(true).await.unwrap();
    world.call("SET a 1").await.unwrap();
    world.server().set(Mode::Silent);
    world.backend().set_offline(false).await.unwrap();
    world.until("it is sent", |world| world.server().attempts.load(Ordering::Relaxed) == 1).await;
    world.server().set(Mode::Up);
    world.fusebox.0.recovery.load_full().unwrap().kill();
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("1"));
}

#[tokio::test]
async fn replay_rests_while_there_is_no_place() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    world.call("SET a 1").await.unwrap();
    let circuit = Arc::clone(&world.fusebox.0.entries[0].shared.circuit);
    let places: Vec<_> = (0..64).map(|uid| circuit.bulkhead.try_enter(uid).unwrap()).collect();
    world.backend().set_offline(false).await.unwrap();
    // User and system time of this process, in hundredths of a second.
    let spent = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = spent();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(spent() - before < 50, "{} hundredths of a second", spent() - before);
    drop(places);
    world.drained().await;
}

#[tokio::test]
async fn what_is_cut_off_by_a_stop_is_queued() {
    let slow = BackendSettings {
        timeout: Duration::from_secs(60),
        retry: RetrySettings { attempts: 3, base: Duration::from_secs(30), cap: PATIENCE * 3 },
        ..settings("one")
    };
    let world = World::start(vec![slow]).await;
    world.server().set(Mode::Silent);
    let backend = world.backend();
    let write =
        tokio::spawn(async move { call(&backend, "SET a 1", CallOptions::default()).await });
    world.until("it is sent", |world| world.server().attempts.load(Ordering::Relaxed) == 1).await;
    world.fusebox.shutdown(Duration::from_millis(200)).await;
    let reply = tokio::time::timeout(PATIENCE, write).await.unwrap().unwrap().unwrap();
    assert_eq!((reply.source, reply.ack), (Source::Queued, Some(AckLevel::Durable)));
}

#[tokio::test]
async fn a_refusal_after_an_unknown_outcome_leaves_it_unknown() {
    let world = World::one().await;
    world.server().set(Mode::Silent);
    let backend = world.backend();
    let patient = CallOptions { deadline: Some(Duration::from_secs(10)), ..CallOptions::default() };
    let write = tokio::spawn(async move { call(&backend, "BAD a", patient).await });
    world.until("it is sent", |world| world.server().attempts.load(Ordering::Relaxed) == 1).await;
    world.server().set(Mode::Up);
    let refused = write.await.unwrap().unwrap_err();
    assert_eq!(refused.kind, CallErrorKind::Refused);
    assert!(refused.outcome_unknown, "{refused:?}");
}

#[tokio::test]
async fn what_was_tried_live_with_its_token_is_noted_as_sent() {
    let world = World::one().await;
    world.server().set(Mode::Silent);
    let backend = world.backend();
    let patient = CallOptions { deadline: Some(PATIENCE), ..durable() };
    let write = tokio::spawn(async move { call(&backend, "INCR n", patient).await });
    world.until("it is sent", |world| world.server().attempts.load(Ordering::Relaxed) == 1).await;
    world.backend().set_offline(true).await.unwrap();
    let reply = write.await.unwrap().unwrap();
    assert_eq!(reply.source, Source::Queued);
    let world = world.restart(vec![settings("one")]).await;
    let queue = &world.fusebox.0.entries[0].shared.queue;
    let entry = queue.index().page(false, 0).next().map(|(_, entry)| entry.clone()).unwrap();
    assert_eq!(
        entry.details().noted.as_ref().map(|noted| noted.at),
        Some(entry.header.accepted_at)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_replay_back_holds_before_the_store_is_there() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    world.call("SET a 1").await.unwrap();
    world.fusebox.shutdown(Duration::ZERO).await;
    let member = &world.fusebox.0.entries[0].shared;
    let bus = EventBus::default();
    let queue = Queue::new(
        &settings("one"),
        Arc::clone(&member.circuit.metrics),
        Ground::machine(Clock::system()),
        bus,
    );
    let dir = world.dir.path().join("backends/one");
    let mut told = None;
    let opened = queue.open(dir, &"another".into(), 0, |_, previous| {
        told = Some((queue.store().is_err(), previous.cloned()));
    });
    assert!(opened.is_ok() && queue.store().is_ok());
    assert_eq!(told, Some((true, Some("scripted".into()))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_waits_until_its_dead_letter_is_marked() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    world.call("BAD a").await.unwrap();
    let release = hold_committer(&world);
    world.fusebox.0.entries[0].shared.circuit.hold(|holds| holds.operator = false);
    world.until("it is dead", |world| world.backend().view().queue.dead_letters == 1).await;
    // A crash at this moment would bring it back, to be sent after what is written now.
    let patient = CallOptions { deadline: Some(PATIENCE), ..CallOptions::default() };
    let backend = world.backend();
    let write = tokio::spawn(async move { call(&backend, "SET a 1", patient).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.server().get("a"), None);
    drop(release);
    assert!(write.await.unwrap().is_ok());
    world.until("it was applied", |world| world.server().get("a").is_some()).await;
}

#[tokio::test]
async fn a_ping_that_panics_is_not_the_last_one() {
    let world = World::one().await;
    let pings = |world: &World| world.server().pings.load(Ordering::Relaxed);
    world.server().set(Mode::Panicking);
    let before = pings(&world);
    world.until("it panicked", |world| pings(world) > before).await;
    world.server().set(Mode::Up);
    let before = pings(&world);
    world.until("it is pinged again", |world| pings(world) > before + 2).await;
}

#[tokio::test]
async fn a_write_of_unknown_outcome_does_not_come_back_over_a_newer_one() {
    let world = World::start(vec![BackendSettings {
        retry: RetrySettings {
            attempts: 3,
            base: Duration::from_millis(150),
            cap: Duration::from_secs(1),
        },
        ..settings("one")
    }])
    .await;
    // The older write is applied and its answer lost; then the backend is well again.
    world.server().set(Mode::Deaf);
    let backend = world.backend();
    let older =
        tokio::spawn(async move { call(&backend, "SET a 1", CallOptions::default()).await });
    world.until("it was applied", |world| world.server().get("a").is_some()).await;
    world.server().set(Mode::Up);
    // A newer one is sent before the older one is given up, and is acknowledged.
    let newer = world.call("SET a 2").await.unwrap();
    assert!(newer.ack.is_some());
    let older = older.await.unwrap();
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("2"), "{older:?}");
    if let Err(error) = older {
        assert!(error.outcome_unknown && error.kind == CallErrorKind::TimedOut);
    }
}

#[tokio::test]
async fn a_newer_write_waits_behind_an_older_one_that_is_sent_again() {
    let world = World::start(vec![BackendSettings {
        retry: RetrySettings {
            attempts: 3,
            base: Duration::from_secs(2),
            cap: Duration::from_secs(2),
        },
        ..settings("one")
    }])
    .await;
    world.server().set(Mode::Deaf);
    let backend = world.backend();
    let older =
        tokio::spawn(async move { call(&backend, "SET a 1", CallOptions::default()).await });
    world.until("its lane is occupied", |world| world.backend().view().queue.lanes == 1).await;
    world.server().set(Mode::Up);
    let newer = world.call("SET a 2").await.unwrap();
    assert!(newer.ack.is_some());
    assert!(older.await.unwrap().is_ok());
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("2"));
    assert_eq!(world.backend().view().queue.lanes, 0);
}

#[tokio::test]
async fn a_store_without_a_backend_is_told() {
    let world = World::start(vec![settings("one"), settings("two")]).await;
    assert!(world.fusebox.resilience().stray_stores.is_empty());
    let world = world.restart(vec![settings("one")]).await;
    assert_eq!(world.fusebox.resilience().stray_stores, ["two"]);
}

#[tokio::test]
async fn a_page_goes_on_though_the_call_that_it_follows_is_gone() {
    let world = World::one().await;
    world.backend().set_offline(true).await.unwrap();
    for number in 0..6_u64 {
        let op_id = Some(OpId::new(UnixMillis::new(number + 1), number.into()));
        let options = CallOptions { op_id, ..CallOptions::default() };
        world.call_with(&format!("SET k{number} 1"), options).await.unwrap();
    }
    let first = world.backend().queue_page(false, None, 2).await;
    let after = first.next;
    world.backend().discard(first.calls[1].op_id).await.unwrap();
    let rest = world.backend().queue_page(false, after, 10).await;
    let lanes: Vec<_> = rest.calls.iter().map(|call| call.lane.as_str()).collect();
    assert_eq!((lanes, rest.next), (vec!["k2", "k3", "k4", "k5"], None));
    // One that has a later name than those behind it: callers choose them.
    let late = world.backend().queue_page(false, after, 1).await.next;
    let op_id = Some(OpId::new(UnixMillis::new(1_000), 1));
    world.call_with("SET k6 1", CallOptions { op_id, ..CallOptions::default() }).await.unwrap();
    let op_id = Some(OpId::new(UnixMillis::new(7), 7));
    world.call_with("SET k7 1", CallOptions { op_id, ..CallOptions::default() }).await.unwrap();
    let page = world.backend().queue_page(false, late, 4).await;
    assert_eq!(page.calls[3].lane, "k6");
    world.backend().discard(page.calls[3].op_id).await.unwrap();
    let rest = world.backend().queue_page(false, page.next, 4).await;
    let lanes: Vec<_> = rest.calls.iter().map(|call| call.lane.as_str()).collect();
    assert_eq!(lanes, ["k7"]);
}

#[tokio::test]
async fn a_page_of_dead_letters_goes_on_though_its_calls_were_requeued() {
    let world = World::one().await;
    world.server().set(Mode::Down);
    for lane in ["a", "b", "c", "d", "e"] {
        world.call(&format!("BAD {lane}")).await.unwrap();
    }
    world.server().set(Mode::Up);
    world.until("all are dead", |world| world.backend().view().queue.dead_letters == 5).await;
    // What is requeued waits: it does not become a dead letter a second time.
    world.backend().set_offline(true).await.unwrap();
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = world.backend().queue_page(true, after, 2).await;
        for call in &page.calls {
            world.backend().requeue(call.op_id, false, false).await.unwrap();
            let name = call.op_id;
            assert_eq!(world.backend().place_of(true, name), None, "it is no dead letter now");
            assert!(world.backend().place_of(false, name).is_some());
        }
        pages.push(page.calls.len());
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [2, 2, 1]);
    let queue = world.backend().view().queue;
    assert_eq!((queue.calls, queue.dead_letters), (5, 0));
}

#[tokio::test]
async fn a_repetition_under_the_callers_own_name_is_applied_once_also_after_replay() {
    let world = World::one().await;
    let op_id = Some(OpId::new(UnixMillis::new(1), 7));
    let options = || CallOptions { op_id, ..durable() };
    world.server().set(Mode::Down);
    assert_eq!(world.call_with("INCR n", options()).await.unwrap().source, Source::Queued);
    world.server().set(Mode::Up);
    world.drained().await;
    world.breaker_is("CLOSED").await;
    world.call_with("INCR n", options()).await.unwrap();
    assert_eq!(world.server().get("n").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_write_over_all_lanes_does_not_come_back_over_a_newer_one_of_one_lane() {
    let retry = RetrySettings {
        attempts: 3,
        base: Duration::from_millis(400),
        cap: Duration::from_secs(1),
    };
    let world = World::start(vec![BackendSettings { retry, ..settings("one") }]).await;
    world.server().set(Mode::Deaf);
    let backend = world.backend();
    let older = tokio::spawn(async move { call(&backend, "MALL 1", CallOptions::default()).await });
    world.until("it was applied", |world| world.server().get("a").is_some()).await;
    world.server().set(Mode::Slow);
    let newer = world.call("SET a 2").await.unwrap();
    assert!(newer.ack.is_some());
    world.server().set(Mode::Up);
    let older = older.await.unwrap();
    world.drained().await;
    assert_eq!(world.server().get("a").as_deref(), Some("2"), "{older:?}");
}

#[tokio::test]
async fn what_is_queued_while_a_reload_changes_the_address_goes_nowhere_by_itself() {
    let world = World::one().await;
    world.server().closing.store(100, Ordering::Relaxed);
    let other = Scripted::new();
    *other.name.lock() = "other".into();
    world.server().set(Mode::Down);
    let backend = world.backend();
    let during = tokio::spawn(async move {
        until("the address is being changed".into(), || {
            backend.entry.shared.circuit.holds().exchange
        })
        .await;
        call(&backend, "SET a old", CallOptions::default()).await
    });
    let system = SystemSettings {
        state_dir: world.dir.path().to_owned(),
        pings: PingSettings::every(Duration::from_millis(50)),
        instance: "test".into(),
        copied: None,
    };
    let spec = BackendSpec { settings: settings("one"), connector: other.clone() };
    world.fusebox.reload(system, vec![spec], Vec::new()).await.unwrap();
    let during = during.await.unwrap();
    if during.is_ok() {
        let asks = |world: &World, calls: u64| {
            let view = world.backend().view();
            assert!(view.offline && view.queue.calls == calls, "they wait for an operator");
            assert!(view.alerts.iter().any(|alert| alert.said().contains("accept-retarget")));
        };
        asks(&world, 1);
        assert_eq!(world.call("SET b new").await.unwrap().source, Source::Queued);
        // The change is undone.
        world.server().set(Mode::Up);
        let world = world.restart(vec![settings("one")]).await;
        asks(&world, 2);
        assert_eq!(world.server().get("b"), None, "it was meant for the new server");
    }
    assert_eq!(other.get("a"), None, "it was meant for the other server");
}

#[tokio::test]
async fn a_queue_that_gets_shorter_says_when_it_will_be_empty() {
    let world = World::one().await;
    world.backend().force(true, "by hand".into(), None).await.unwrap();
    for value in 0..40 {
        world.call(&format!("SET a {value}")).await.unwrap();
    }
    let queue = |world: &World| world.backend().view().queue;
    assert_eq!(queue(&world).drain_seconds, None, "it is paused");
    // One at a time, 12 a second.
    world.server().set(Mode::Slow);
    world.backend().release().await.unwrap();
    world.until("there is an estimate", |world| queue(world).drain_seconds.is_some()).await;
    let view = queue(&world);
    let (left, estimate) =
        (f64::from(u32::try_from(view.calls).unwrap()) / 12.5, view.drain_seconds);
    let estimate = estimate.unwrap();
    assert!(estimate > left * 0.4 && estimate < left * 2.5, "{estimate} s for {left} s");
    world.drained().await;
    assert_eq!(queue(&world).drain_seconds, None, "nothing waits");
    let recent = world.backend().view().recent;
    assert_eq!((recent.calls, recent.by_source["queued"]), (40, 40));
    assert!((60.0..130.0).contains(&recent.response_ms.p50), "80 ms each: {recent:?}");
}

#[tokio::test]
async fn short_drains_in_a_row_are_told_of_once() {
    let world = World::one().await;
    let mut events = world.fusebox.events().subscribe();
    // Whatever is written meanwhile is queued and replayed at once.
    world.fusebox.0.flags.set_state(SystemState::Emergency);
    for value in 0..20 {
        world.call(&format!("SET a {value}")).await.unwrap();
        world.drained().await;
    }
    // A pause is published at once, and what comes after it.
    world.backend().force(true, "by hand".into(), None).await.unwrap();
    world.call("SET a last").await.unwrap();
    let paused = |world: &World| world.backend().view().queue.replay_paused.is_some();
    world.until("replay has noticed", paused).await;
    world.backend().release().await.unwrap();
    world.drained().await;
    let (mut told, mut released, mut over) = (Vec::new(), false, false);
    while !over {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        match event.kind {
            EventKind::Replay { phase, .. } => {
                over = released && phase.as_str() == "drained";
                told.push(phase.as_str());
            }
            EventKind::Transition { transition } => {
                released |= transition.reason == Reason::Released;
            }
            _ => {}
        }
    }
    assert_eq!(told, ["started", "drained", "started", "drained"]);
}
