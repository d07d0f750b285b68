//! All three kinds at once: which system state an outage of each and of several makes, and what a caller gets
//! from those that are up.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::firestore::{Emulator, Firestore};
use crate::support::redis::RedisServer;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(60);

struct World {
    clickhouse: ClickHouse,
    /// Keeps its documents in memory, so that its outage is the relay's.
    _firestore: Firestore,
    relay: Relay,
    redis: RedisServer,
    daemon: Daemon,
}

impl World {
    fn start() -> Self {
        let clickhouse = ClickHouse::start(Engine::Current);
        clickhouse.query(
            "CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id \
             SETTINGS non_replicated_deduplication_window = 1000",
        );
        let firestore = Firestore::start(Emulator::Npm);
        let relay = Relay::start(firestore.port());
        let redis = RedisServer::start();
        let mut builder = Builder::default().set("health.interval", "200ms");
        for (name, url) in [
            ("clickhouse", clickhouse.url()),
            ("firestore", format!("http://127.0.0.1:{}", relay.port())),
            ("redis", redis.url()),
        ] {
            builder = builder
                .set(&format!("backends.{name}.url"), url)
                .set(&format!("backends.{name}.timeout"), "3s")
                .set(&format!("backends.{name}.breaker.failure_threshold"), 2)
                .set(&format!("backends.{name}.breaker.recovery_timeout"), "300ms")
                .set(&format!("backends.{name}.breaker.recovery_timeout_max"), "600ms");
        }
        Self { clickhouse, _firestore: firestore, relay, redis, daemon: builder.start() }
    }

    fn stop_firestore(&self) {
        self.relay.refuse();
        self.relay.drop_connections();
    }

    #[track_caller]
    fn becomes(&self, state: &str) {
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
