//! What faults do to ClickHouse, through the JSON API and through the door.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use super::{LONG, always, clear, hits};
use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Daemon};
use crate::support::poll::eventually;
use crate::support::port::Port;

struct World {
    server: ClickHouse,
    daemon: Daemon,
    port: Port,
}

impl World {
    fn start() -> Self {
        let (server, port) = (ClickHouse::start(Engine::Current), Port::lease());
        server.query(
            "CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id \
             SETTINGS non_replicated_deduplication_window = 1000",
        );
        let mut door = toml::Table::new();
        for (key, value) in [("backend", "clickhouse"), ("auth", "open")] {
            door.insert(key.into(), value.into());
        }
        door.insert("listen".into(), port.address().to_string().into());
        let daemon = Builder::default()
            .set("backends.clickhouse.url", server.url())
            .set("backends.clickhouse.timeout", "2s")
            // What follows a second unknown outcome is the proof's affair, and not the fault's.
            .set("backends.clickhouse.retry.attempts", 1)
            .set("backends.clickhouse.critical", false)
            .set("backends.clickhouse.breaker.failure_threshold", 100_000)
            .set("health.interval", "1h")
            .set("doors", vec![toml::Value::Table(door)])
            .start();
        Self { server, daemon, port }
    }

    fn insert(&self, id: u64) -> (u16, serde_json::Value) {
        let call = json!({
            "query": "INSERT INTO t FORMAT JSONEachRow", "data": format!("{{\"id\":{id}}}\n"),
            "options": { "min_ack": "durable" },
        });
        let reply = self.daemon.call("clickhouse", call);
        (reply.status, reply.body)
    }

    /// The status and the body of what a client of the door is answered.
    fn ask(&self, query: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.port.address()).expect("the door");
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{query}",
            self.port.address(),
            query.len()
        );
        stream.write_all(request.as_bytes()).expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status =
            answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, answer)
    }

    fn rows(&self) -> String {
        self.server.query("SELECT count(), uniqExact(id) FROM t").trim().to_owned()
    }
}

#[test]
fn each_kind_strikes_inserts_of_json_calls_and_none_is_lost_or_doubled() {
    let world = World::start();
    let kinds = ["error", "reset_before", "stale_connection", "timeout", "reset_after"];
    for (id, kind) in (1..).zip(kinds) {
        always(&world.daemon, "clickhouse", json!({ "kind": kind, "class": "write" }));
        let (status, body) = world.insert(id);
        assert!(matches!(status, 200 | 202), "{kind}: {status} {body}");
        assert!(hits(&world.daemon, "clickhouse") > 0, "{kind}");
        clear(&world.daemon, "clickhouse");
        world.daemon.wait_until_drained("clickhouse", LONG);
        eventually("it is there, and once", LONG, || world.rows() == format!("{id}\t{id}"));
        assert_eq!(world.daemon.queued("clickhouse", "dead"), 0, "{kind}");
    }
    always(&world.daemon, "clickhouse", json!({ "kind": "reject" }));
    let (status, body) = world.insert(99);
    assert_eq!((status, &body["code"]), (422, &json!("62")), "{body}");
}

#[test]
fn each_kind_strikes_what_comes_through_the_door() {
    let world = World::start();
    assert_eq!(world.ask("SELECT 41 + 1").0, 200);
    always(&world.daemon, "clickhouse", json!({ "kind": "error", "code": "241" }));
    let (status, answer) = world.ask("SELECT 7");
    assert!(status >= 500 && answer.contains("Code: 241"), "{answer}");
    always(&world.daemon, "clickhouse", json!({ "kind": "reject", "code": "62" }));
    let (status, answer) = world.ask("SELECT 8");
    assert!(status >= 400 && answer.contains("Code: 62"), "{answer}");
    clear(&world.daemon, "clickhouse");
    assert_eq!(world.ask("INSERT INTO default.t VALUES (1)").0, 200);
    assert_eq!(world.rows(), "1\t1");
    for (id, kind) in [(2, "timeout"), (3, "reset_after")] {
        always(&world.daemon, "clickhouse", json!({ "kind": kind, "class": "write" }));
        let (status, answer) = world.ask(&format!("INSERT INTO default.t VALUES ({id})"));
        assert!(status >= 500, "{kind}: {answer}");
        clear(&world.daemon, "clickhouse");
        assert_eq!(world.rows(), format!("{id}\t{id}"), "{kind}: applied, and once");
    }
    always(&world.daemon, "clickhouse", json!({ "kind": "latency", "latency": "300ms" }));
    let began = std::time::Instant::now();
    assert_eq!(world.ask("SELECT 9").0, 200);
    assert!(began.elapsed() >= std::time::Duration::from_millis(300));
}
