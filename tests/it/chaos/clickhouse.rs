//! What faults do to ClickHouse, through the JSON API and through the door.

use serde_json::json;

use super::{LONG, always, clear, hits};
use crate::clickhouse_door::World;
use crate::support::poll::eventually;

/// One table, and a breaker that faults do not open.
fn world() -> World {
    World::with(|server, daemon| {
        server.query(
            "CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id \
             SETTINGS non_replicated_deduplication_window = 1000",
        );
        daemon
            .set("backends.clickhouse.critical", false)
            .set("backends.clickhouse.breaker.failure_threshold", 100_000)
    })
}

fn insert(world: &World, id: u64) -> (u16, serde_json::Value) {
    let call = json!({
        "query": "INSERT INTO t FORMAT JSONEachRow", "data": format!("{{\"id\":{id}}}\n"),
        "options": { "min_ack": "durable" },
    });
    let reply = world.daemon.call("clickhouse", call);
    (reply.status, reply.body)
}

fn rows(world: &World) -> String {
    world.server.query("SELECT count(), uniqExact(id) FROM t").trim().to_owned()
}

#[test]
fn each_kind_strikes_inserts_of_json_calls_and_none_is_lost_or_doubled() {
    let world = world();
    let kinds = ["error", "reset_before", "stale_connection", "timeout", "reset_after"];
    for (id, kind) in (1..).zip(kinds) {
        always(&world.daemon, "clickhouse", json!({ "kind": kind, "class": "write" }));
        let (status, body) = insert(&world, id);
        assert!(matches!(status, 200 | 202), "{kind}: {status} {body}");
        assert!(hits(&world.daemon, "clickhouse") > 0, "{kind}");
        clear(&world.daemon, "clickhouse");
        world.daemon.wait_until_drained("clickhouse", LONG);
        eventually("it is there, and once", LONG, || rows(&world) == format!("{id}\t{id}"));
        assert_eq!(world.daemon.queued("clickhouse", "dead"), 0, "{kind}");
    }
    always(&world.daemon, "clickhouse", json!({ "kind": "reject" }));
    let (status, body) = insert(&world, 99);
    assert_eq!((status, &body["code"]), (422, &json!("62")), "{body}");
}

#[test]
fn each_kind_strikes_what_comes_through_the_door() {
    let world = world();
    assert_eq!(world.query("SELECT 41 + 1").0, 200);
    always(&world.daemon, "clickhouse", json!({ "kind": "error", "code": "241" }));
    let (status, answer) = world.query("SELECT 7");
    assert!(status >= 500 && answer.contains("Code: 241"), "{answer}");
    always(&world.daemon, "clickhouse", json!({ "kind": "reject", "code": "62" }));
    let (status, answer) = world.query("SELECT 8");
    assert!(status >= 400 && answer.contains("Code: 62"), "{answer}");
    clear(&world.daemon, "clickhouse");
    assert_eq!(world.query("INSERT INTO default.t VALUES (1)").0, 200);
    assert_eq!(rows(&world), "1\t1");
    for (id, kind) in [(2, "timeout"), (3, "reset_after")] {
        always(&world.daemon, "clickhouse", json!({ "kind": kind, "class": "write" }));
        let (status, answer) = world.query(&format!("INSERT INTO default.t VALUES ({id})"));
        assert!(status >= 500, "{kind}: {answer}");
        clear(&world.daemon, "clickhouse");
        eventually("it is applied, and once", LONG, || rows(&world) == format!("{id}\t{id}"));
    }
    always(&world.daemon, "clickhouse", json!({ "kind": "latency", "latency": "300ms" }));
    let began = std::time::Instant::now();
    assert_eq!(world.query("SELECT 9").0, 200);
    assert!(began.elapsed() >= std::time::Duration::from_millis(300));
}
