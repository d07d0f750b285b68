//! The ClickHouse door with stock clients, which know nothing of it but its address.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::poll::eventually;
use crate::support::port::Port;
use crate::support::proc::venv_python;

const LONG: Duration = Duration::from_secs(30);

/// A daemon with a door on loopback before a server, whose breaker opens at the first failure.
struct World {
    server: ClickHouse,
    daemon: Daemon,
    port: Port,
}

impl World {
    fn start() -> Self {
        let (server, port) = (ClickHouse::start(Engine::Current), Port::lease());
        let mut door = toml::Table::new();
        for (key, value) in [("backend", "clickhouse"), ("auth", "open")] {
            door.insert(key.into(), value.into());
        }
        door.insert("listen".into(), port.address().to_string().into());
        let daemon = Builder::default()
            .set("backends.clickhouse.url", server.url())
            .set("backends.clickhouse.timeout", "2s")
            .set("backends.clickhouse.retry.attempts", 1)
            .set("backends.clickhouse.breaker.failure_threshold", 1)
            .set("backends.clickhouse.breaker.failure_rate", 0.0)
            .set("backends.clickhouse.breaker.recovery_timeout", "4m")
            .set("health.interval", "1h")
            .set("doors", vec![toml::Value::Table(door)])
            .start();
        Self { server, daemon, port }
    }

    /// Runs a stock client in a phase of its program.
    #[track_caller]
    fn run(&self, client: &str, phase: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(client);
        let is_python = script.extension().is_some_and(|it| it == "py");
        let mut program =
            if is_python { Command::new(venv_python()) } else { Command::new("node") };
        let port = self.port.number().to_string();
        let output = program.arg(script).args([&port, phase]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{client} {phase}: {said}\n{}", self.daemon.log_text());
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{client} {phase}");
    }

    /// The status of a query through the door, and the answer.
    fn query(&self, query: &str) -> (u16, String) {
        self.try_query(query).unwrap_or_else(|error| (0, error.to_string()))
    }

    /// HTTP/1.0, so that the answer ends with the connection.
    fn try_query(&self, query: &str) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.port.address())?;
        stream.set_read_timeout(Some(LONG))?;
        write!(stream, "POST / HTTP/1.0\r\nContent-Length: {}\r\n\r\n{query}", query.len())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
    }

    fn recover(&self) {
        let daemon: &Client = &self.daemon;
        let asked = serde_json::json!({ "backend": "clickhouse" });
        let (status, body) = daemon.post("/admin/resilience/force-recovery", asked);
        assert_eq!(status, 200, "{body}");
        daemon.wait_for_breaker("clickhouse", "CLOSED", LONG);
    }
}

/// Uses a client while the server is up, through an outage in which it starts anew, and afterwards; then the daemon is
/// killed.
fn through_an_outage(client: &str) {
    let mut world = World::start();
    world.run(client, "live");
    world.server.kill_9();
    eventually("the breaker opens", LONG, || {
        world.query("SELECT 1");
        world.daemon.breaker("clickhouse") == "OPEN"
    });
    world.run(client, "outage");
    world.server.restart();
    world.recover();
    world.run(client, "after");
    world.daemon.restart();
    world.run(client, "after");
    assert!(world.daemon.metric("door_commands_total", &[("source", "live")]) >= 10.0);
}

#[test]
fn clickhouse_connect_works_through_an_outage() {
    through_an_outage("clickhouse_client.py");
}

#[test]
fn the_node_client_works_through_an_outage() {
    through_an_outage("clickhouse_client.mjs");
}

#[test]
fn a_frozen_server_costs_a_caller_its_timeout_and_the_next_one_nothing() {
    let world = World::start();
    assert_eq!(world.query("SELECT 1"), (200, "1\n".into()));
    world.server.freeze();
    let began = Instant::now();
    let (status, told) = world.query("SELECT 1");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(status >= 500 && told.contains("fusebox: clickhouse: "), "{status} {told}");
    eventually("the breaker is open", LONG, || world.daemon.breaker("clickhouse") == "OPEN");
    for client in ["clickhouse_client.py", "clickhouse_client.mjs"] {
        world.run(client, "outage");
    }
    world.server.thaw();
    world.recover();
    assert_eq!(world.query("SELECT 2"), (200, "2\n".into()));
}
