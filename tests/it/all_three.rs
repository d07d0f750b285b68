//! All three kinds at once: which system state an outage of each and of several makes, and what a caller gets
//! from those that are up and from those that are not.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client, Daemon, Reply};
use crate::support::firestore::{Emulator, Firestore};
use crate::support::redis::RedisServer;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(60);

/// A daemon with one backend of each kind.
pub(crate) struct World {
    clickhouse: ClickHouse,
    /// Keeps its documents in memory, so that its outage is the relay's.
    _firestore: Firestore,
    relay: Relay,
    redis: RedisServer,
    pub(crate) daemon: Daemon,
}

impl World {
    /// A world whose outages are noticed, and ended, by the daemon itself.
    fn start() -> Self {
        Self::with(|builder, backend| {
            builder
                .set("health.interval", "200ms")
                .set(&format!("backends.{backend}.breaker.failure_threshold"), 2)
                .set(&format!("backends.{backend}.breaker.recovery_timeout"), "300ms")
                .set(&format!("backends.{backend}.breaker.recovery_timeout_max"), "600ms")
        })
    }

    /// A world of which `set` says more, backend by backend.
    pub(crate) fn with(set: impl Fn(Builder, &str) -> Builder) -> Self {
        let clickhouse = ClickHouse::start(Engine::Current);
        clickhouse.query(
            "CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id \
             SETTINGS non_replicated_deduplication_window = 1000",
        );
        let firestore = Firestore::start(Emulator::Npm);
        let relay = Relay::start(firestore.port());
        let redis = RedisServer::start();
        let mut builder = Builder::default();
        for (name, url) in [
            ("clickhouse", clickhouse.url()),
            ("firestore", format!("http://127.0.0.1:{}", relay.port())),
            ("redis", redis.url()),
        ] {
            builder = builder
                .set(&format!("backends.{name}.url"), url)
                .set(&format!("backends.{name}.timeout"), "3s");
            builder = set(builder, name);
        }
        Self { clickhouse, _firestore: firestore, relay, redis, daemon: builder.start() }
    }

    fn stop_firestore(&self) {
        self.relay.refuse();
        self.relay.drop_connections();
    }

    pub(crate) fn stop(&mut self, backend: &str) {
        match backend {
            "clickhouse" => self.clickhouse.kill_9(),
            "firestore" => self.stop_firestore(),
            _ => self.redis.kill_9(),
        }
    }

    pub(crate) fn start_again(&mut self, backend: &str) {
        match backend {
            "clickhouse" => self.clickhouse.restart(),
            "firestore" => self.relay.accept_again(),
            _ => self.redis.restart(),
        }
    }

    #[track_caller]
    pub(crate) fn becomes(&self, state: &str) {
        self.daemon.wait_until(state, LONG, |daemon| daemon.get("/health").1["state"] == state);
    }
}

fn insert(daemon: &Client, id: u64) -> u16 {
    let call = json!({
        "query": "INSERT INTO t FORMAT JSONEachRow", "data": format!("{{\"id\":{id}}}"),
        "options": { "min_ack": "durable" },
    });
    daemon.call("clickhouse", call).status
}

fn document(daemon: &Client, value: u64) -> u16 {
    let call = json!({ "op": "set", "path": "all/three", "data": { "v": value } });
    daemon.call("firestore", call).status
}

fn key(daemon: &Client, value: u64) -> u16 {
    daemon.redis(&["SET", "k", &value.to_string()]).status
}

/// 200 is applied, 202 queued: of the ClickHouse insert, the Firestore set and the Redis SET.
fn written(daemon: &Client, value: u64) -> [u16; 3] {
    [insert(daemon, value), document(daemon, value), key(daemon, value)]
}

#[test]
fn outages_of_one_of_two_and_of_all_make_the_states_that_they_should() {
    let mut world = World::start();
    world.becomes("HEALTHY");
    assert_eq!(written(&world.daemon, 1), [200, 200, 200]);

    world.redis.kill_9();
    world.becomes("DEGRADED");
    assert_eq!(written(&world.daemon, 2), [200, 200, 202]);

    // Two that are not critical: fewer than half are left.
    world.stop_firestore();
    world.becomes("CRITICAL");
    assert_eq!(written(&world.daemon, 3), [200, 202, 202]);
    let low = json!({ "op": "get", "path": "all/unread", "options": { "priority": "low" } });
    assert_eq!(world.daemon.call("firestore", low).status, 503);

    // All three: the critical one, and fewer than half.
    world.clickhouse.kill_9();
    world.becomes("EMERGENCY");
    assert_eq!(written(&world.daemon, 4), [202, 202, 202]);
    assert_eq!(world.daemon.get("/health").0, 503);

    // Redis alone comes back: its write goes on being queued while the state is read-only, and is replayed.
    world.redis.restart();
    world.daemon.wait_for_breaker("redis", "CLOSED", LONG);
    world
        .daemon
        .wait_until("redis is drained", LONG, |daemon| daemon.queued("redis", "pending") == 0);
    world.becomes("EMERGENCY");
    assert_eq!(world.redis.get("k").as_deref(), Some("4"));
    assert_eq!(world.daemon.redis(&["GET", "k"]).source(), "live", "reads go live");
    assert!(matches!(key(&world.daemon, 5), 200 | 202));

    // ClickHouse, too: one that is not critical is down.
    world.clickhouse.restart();
    world.becomes("DEGRADED");
    world.relay.accept_again();
    world.becomes("HEALTHY");
    for name in ["clickhouse", "firestore", "redis"] {
        world.daemon.wait_until_drained(name, LONG);
    }
    assert_eq!(written(&world.daemon, 6), [200, 200, 200]);
    assert_eq!(
        world.clickhouse.query("SELECT groupArray(id) FROM (SELECT id FROM t ORDER BY id)"),
        "[1,2,3,4,6]"
    );
    assert_eq!(world.redis.get("k").as_deref(), Some("6"));
    let found = world.daemon.call("firestore", json!({ "op": "get", "path": "all/three" }));
    assert_eq!(found.value()["data"]["v"], json!(6), "{}", found.body);
}

/// What a call ends with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    /// 200, from the backend itself; a write was applied.
    Live,
    /// 200, from the cache.
    Cache,
    /// 200, an empty result of the right form.
    Empty,
    /// 200, nil.
    Bypass,
    /// 202, durable.
    Queued,
    /// 503, and nothing was done.
    Refused,
}
use Ends::{Bypass, Cache, Empty, Live, Queued, Refused};

/// Every way in which a backend's state shows: the call of round `n`, and what it ends with if the backend
/// is up, if it is up in an EMERGENCY, and if it is down.
#[rustfmt::skip]
fn calls(n: u64) -> Vec<(&'static str, Value, [Ends; 3])> {
    let durable = json!({ "min_ack": "durable" });
    let low = json!({ "priority": "low" });
    let rows = |id: u64| json!(format!("{{\"id\":{id}}}"));
    let insert = "INSERT INTO t FORMAT JSONEachRow";
    vec![
        ("clickhouse", json!({ "query": "SELECT 42 AS known" }), [Live, Live, Cache]),
        ("clickhouse", json!({ "query": format!("SELECT {n} AS unread") }), [Live, Live, Refused]),
        ("clickhouse", json!({ "query": insert, "data": rows(10 * n) }), [Live, Refused, Refused]),
        ("clickhouse", json!({ "query": insert, "data": rows(10 * n + 1), "options": durable }), [Live, Queued, Queued]),
        ("clickhouse", json!({ "query": format!("INSERT INTO t SELECT {}", 10 * n + 2), "options": durable }), [Live, Refused, Refused]),
        ("firestore", json!({ "op": "get", "path": "all/known" }), [Live, Live, Cache]),
        ("firestore", json!({ "op": "get", "path": format!("all/unread-{n}") }), [Live, Live, Refused]),
        ("firestore", json!({ "op": "set", "path": format!("all/set-{n}"), "data": { "n": n } }), [Live, Queued, Queued]),
        ("firestore", json!({ "op": "create", "path": format!("all/new-{n}"), "data": { "n": n } }), [Live, Refused, Refused]),
        ("firestore", json!({ "op": "create", "path": format!("all/sure-{n}"), "data": { "n": n }, "options": durable }), [Live, Queued, Queued]),
        ("redis", json!({ "command": ["GET", "known"] }), [Live, Live, Cache]),
        ("redis", json!({ "command": ["GET", format!("unread-{n}")] }), [Live, Live, Bypass]),
        ("redis", json!({ "command": ["LLEN", format!("unread-{n}")] }), [Live, Live, Refused]),
        ("redis", json!({ "command": ["SET", format!("set-{n}"), n.to_string()] }), [Live, Queued, Queued]),
        ("redis", json!({ "command": ["INCR", format!("new-{n}")] }), [Live, Refused, Refused]),
        ("redis", json!({ "command": ["INCR", format!("sure-{n}")], "options": durable }), [Live, Queued, Queued]),
        // Last, because it is the one that shows CRITICAL.
        ("clickhouse", json!({ "query": format!("SELECT {n} AS low"), "options": low }), [Live, Empty, Empty]),
    ]
}

/// Every outage there can be: who is down, the state, how many percent are operational, and the status of `/health`.
/// ClickHouse is the critical one. Without it: one condition; with it and another: that fewer than half are
/// left is the second.
type Outage = (&'static [&'static str], &'static str, &'static str, u16);
const OUTAGES: [Outage; 4] = [
    (&["redis"], "DEGRADED", "67", 200),
    (&["firestore"], "DEGRADED", "67", 200),
    (&["clickhouse"], "CRITICAL", "67", 503),
    (&["firestore", "redis"], "CRITICAL", "33", 503),
];
const EMERGENCIES: [Outage; 3] = [
    (&["clickhouse", "redis"], "EMERGENCY", "33", 503),
    (&["clickhouse", "firestore"], "EMERGENCY", "33", 503),
    (&["clickhouse", "firestore", "redis"], "EMERGENCY", "0", 503),
];

#[track_caller]
fn assert_ends(backend: &str, call: &Value, reply: &Reply, ends: Ends) {
    let is_write = reply.ack().is_some();
    let is = (reply.status, reply.source(), reply.ack());
    let wanted = match ends {
        Live if is_write => (200, "live", Some("applied")),
        Live => (200, "live", None),
        Cache => (200, "cache", None),
        Empty => (200, "empty", None),
        Bypass => (200, "bypass", None),
        Queued => (202, "queued", Some("durable")),
        Refused => (503, "no source", None),
    };
    assert_eq!(is, wanted, "{backend} {call}: {}", reply.body);
    assert_ne!(reply.body["outcome_unknown"], json!(true), "{backend} {call}: {}", reply.body);
}

/// What is there of round `n` when all are back: a call that was refused left nothing, every other its own.
fn assert_left(world: &World, n: u64, ends_of: impl Fn(&str, [Ends; 3]) -> Ends) {
    let done = |backend: &str, ends: [Ends; 3]| ends_of(backend, ends) != Refused;
    for (backend, call, ends) in calls(n) {
        let there = done(backend, ends);
        if let Some(path) = call["path"].as_str().filter(|_| call["op"] != "get") {
            let found = world.daemon.call("firestore", json!({ "op": "get", "path": path }));
            found.assert_live();
            let wanted = if there { json!(n) } else { Value::Null };
            assert_eq!(found.value()["data"]["n"], wanted, "{path}");
        } else if let Some(key) = call["command"][1].as_str().filter(|key| *key != "known") {
            let wanted = match call["command"][0].as_str() {
                Some("SET") => Some(n.to_string()),
                Some("INCR") if there => Some("1".to_owned()),
                _ => None,
            };
            assert_eq!(world.redis.get(key), wanted, "{key}");
        }
    }
    let inserts = [(10 * n, 2), (10 * n + 1, 3), (10 * n + 2, 4)];
    let wanted: Vec<u64> = inserts
        .into_iter()
        .filter(|(_, row)| done("clickhouse", calls(n)[*row].2))
        .map(|(id, _)| id)
        .collect();
    let (from, to) = (10 * n, 10 * n + 9);
    let found = world.clickhouse.query(&format!(
        "SELECT groupArray(id) FROM (SELECT id FROM t WHERE id BETWEEN {from} AND {to} ORDER BY id)"
    ));
    assert_eq!(found, json!(wanted).to_string(), "the rows of round {n}");
}

#[test]
fn outages_of_one_and_of_what_is_not_critical_leave_the_rest_as_it_was() {
    through(&OUTAGES);
}

#[test]
fn outages_of_what_is_critical_and_of_more_leave_the_rest_readable() {
    through(&EMERGENCIES);
}

/// One outage after the other: what the system says of itself, what each call ends with, and what is there once
/// those that were down are back.
fn through(outages: &[Outage]) {
    let mut world = World::start();
    for (n, &(down, state, percent, status)) in (1..).zip(outages) {
        world.becomes("HEALTHY");
        let daemon = &world.daemon;
        daemon.redis(&["SET", "known", "v"]).assert_live();
        let set = json!({ "op": "set", "path": "all/known", "data": { "v": 1 } });
        daemon.call("firestore", set).assert_live();
        for (backend, call, _) in
            calls(n).into_iter().filter(|it| it.1.to_string().contains("known"))
        {
            daemon.call(backend, call).assert_live();
        }

        for backend in down {
            world.stop(backend);
        }
        world.daemon.wait_until("all of them are seen to be down", LONG, |daemon| {
            down.iter().all(|backend| daemon.status(backend)["operational"] == json!(false))
        });
        world.becomes(state);
        // The health actor hears of each breaker a moment after it has opened.
        let operational = |health: &Value| {
            let operational = health["operational_percent"].as_f64().unwrap();
            format!("{operational:.0}")
        };
        world.daemon.wait_until("the system knows of all of them", LONG, |daemon| {
            operational(&daemon.get("/health").1) == percent
        });
        let daemon = &world.daemon;
        let assert_state = || {
            let (answered, health) = daemon.get("/health");
            assert_eq!((answered, &health["state"]), (status, &json!(state)), "{down:?}: {health}");
            assert_eq!(operational(&health), percent, "{health}");
            for backend in ["clickhouse", "firestore", "redis"] {
                let is = &health["backends"][backend]["operational"];
                assert_eq!(is, &json!(!down.contains(&backend)), "{down:?}: {health}");
            }
        };
        assert_state();
        let ends_of = |backend: &str, ends: [Ends; 3]| {
            let [up, emergency, is_down] = ends;
            match (down.contains(&backend), state) {
                (true, _) => is_down,
                (false, "EMERGENCY") => emergency,
                (false, _) => up,
            }
        };
        for (backend, call, ends) in calls(n) {
            let mut wanted = ends_of(backend, ends);
            // From CRITICAL on, low priority gets no live attempt.
            if call["options"]["priority"] == "low" && matches!(state, "CRITICAL" | "EMERGENCY") {
                wanted = Empty;
            }
            let reply = daemon.call(backend, call.clone());
            assert_ends(backend, &call, &reply, wanted);
        }
        // What is queued is read back.
        for backend in down.iter().filter(|backend| **backend != "clickhouse") {
            let (get, value) = match *backend {
                "redis" => {
                    (json!({ "command": ["GET", format!("set-{n}")] }), json!(n.to_string()))
                }
                _ => (json!({ "op": "get", "path": format!("all/set-{n}") }), json!(n)),
            };
            let read = daemon.call(backend, get);
            let found = if *backend == "redis" { read.value() } else { &read.value()["data"]["n"] };
            assert_eq!(
                (read.status, read.source(), found),
                (200, "queued", &value),
                "{}",
                read.body
            );
        }
        assert_state();

        for backend in down {
            world.start_again(backend);
        }
        world.becomes("HEALTHY");
        for name in ["clickhouse", "firestore", "redis"] {
            world.daemon.wait_until_drained(name, LONG);
        }
        assert_left(&world, n, ends_of);
        assert_eq!(world.daemon.get("/health").0, 200);
    }
}

/// A recovery that is ordered takes each after those that it depends on, and waits for none: what is still
/// down holds nobody up.
#[test]
fn a_recovery_takes_dependencies_first_and_waits_for_none() {
    let mut world = World::with(|builder, backend| {
        let depends_on: &[&str] = match backend {
            "clickhouse" => &["firestore"],
            "firestore" => &["redis"],
            _ => &[],
        };
        builder
            .set("health.interval", "1h")
            .set(&format!("backends.{backend}.depends_on"), depends_on.to_vec())
            .set(&format!("backends.{backend}.breaker.failure_threshold"), 1)
            .set(&format!("backends.{backend}.breaker.failure_rate"), 0.0)
            .set(&format!("backends.{backend}.breaker.recovery_timeout"), "4m")
    });
    let all = ["redis", "firestore", "clickhouse"];
    for backend in all {
        world.stop(backend);
    }
    let daemon = world.daemon.client();
    insert(&daemon, 1);
    document(&daemon, 1);
    key(&daemon, 1);
    for backend in all {
        daemon.wait_for_breaker(backend, "OPEN", LONG);
    }
    let impaired = |backend: &str| daemon.status(backend)["impaired_by"].clone();
    assert_eq!(
        (impaired("clickhouse"), impaired("firestore")),
        (json!(["redis"]), json!(["redis"]))
    );
    assert_eq!(impaired("redis"), json!([]));

    // All but the one that the others depend on.
    for backend in ["clickhouse", "firestore"] {
        world.start_again(backend);
    }
    let events = daemon.events();
    let order = daemon.order("/admin/resilience/force-recovery");
    assert_eq!(order["half_open"], json!(all));
    for backend in all {
        let half_open = events.next("the next goes half-open", LONG, |event| {
            event.kind == "transition" && event.data["to"] == "HALF_OPEN"
        });
        assert_eq!(half_open.data["backend"], backend);
    }
    for backend in ["firestore", "clickhouse"] {
        daemon.wait_for_breaker(backend, "CLOSED", LONG);
        daemon.wait_until_drained(backend, LONG);
    }
    daemon.wait_for_breaker("redis", "OPEN", LONG);
    // The root cause is named to both, though the one between them is up.
    let both = (impaired("clickhouse"), impaired("firestore"));
    assert_eq!(both, (json!(["redis"]), json!(["redis"])));

    // Both that are down come back: the one that is depended on closes, and the other after it.
    world.stop("firestore");
    daemon.call("firestore", json!({ "op": "get", "path": "all/unread" }));
    daemon.wait_for_breaker("firestore", "OPEN", LONG);
    assert_eq!(impaired("clickhouse"), json!(["redis"]), "firestore is down for its sake");
    for backend in ["redis", "firestore"] {
        world.start_again(backend);
    }
    let order = daemon.order("/admin/resilience/force-recovery");
    assert_eq!(order["half_open"], json!(["redis", "firestore"]));
    for backend in all {
        daemon.wait_for_breaker(backend, "CLOSED", LONG);
        daemon.wait_until_drained(backend, LONG);
        assert_eq!(impaired(backend), json!([]));
    }
    assert_eq!(world.redis.get("k").as_deref(), Some("1"));
}

#[test]
fn with_no_configuration_at_all_the_three_are_there_and_it_serves_and_queues() {
    let daemon = Daemon::with_defaults();
    let (_, health) = daemon.get("/health");
    let names: Vec<&String> = health["backends"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["clickhouse", "firestore", "redis"]);
    assert_eq!(daemon.get("/health/ready").0, 200);
    let queued = daemon.call(
        "firestore",
        json!({ "op": "set", "path": "a/b", "data": {}, "options": { "deadline": "2s" } }),
    );
    // Somebody may run a server of his own at one of the usual addresses.
    assert!(matches!(queued.status, 200 | 202), "{}", queued.body);
    assert_ne!(health["state"], Value::Null);
}
