//! The ClickHouse door with stock clients, which know nothing of it but its address.

use std::fs;
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
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(30);

/// A daemon with a door on loopback before a server, whose breaker opens at the first failure.
pub(crate) struct World {
    pub(crate) server: ClickHouse,
    pub(crate) daemon: Daemon,
    port: Port,
}

impl World {
    fn start() -> Self {
        Self::with(|_, daemon| daemon)
    }

    /// One that queues inserts, and applies those of a table in their order.
    fn queueing() -> Self {
        Self::with(|_, daemon| {
            daemon
                .set("backends.clickhouse.queue.write_fallback", "queue")
                .set("backends.clickhouse.ordered", true)
        })
    }

    /// One of which `set` says more.
    pub(crate) fn with(set: impl FnOnce(&ClickHouse, Builder) -> Builder) -> Self {
        let (server, port) = (ClickHouse::start(Engine::Current), Port::lease());
        let mut door = toml::Table::new();
        for (key, value) in [("backend", "clickhouse"), ("auth", "open")] {
            door.insert(key.into(), value.into());
        }
        door.insert("listen".into(), port.address().to_string().into());
        let builder = Builder::default()
            .set("backends.clickhouse.url", server.url())
            .set("backends.clickhouse.timeout", "2s")
            .set("backends.clickhouse.retry.attempts", 1)
            .set("backends.clickhouse.breaker.failure_threshold", 1)
            .set("backends.clickhouse.breaker.failure_rate", 0.0)
            .set("backends.clickhouse.breaker.recovery_timeout", "4m")
            .set("health.interval", "1h")
            .set("doors", vec![toml::Value::Table(door)]);
        let daemon = set(&server, builder).start();
        Self { server, daemon, port }
    }

    /// The tables of the clients that insert, with the time at which each row came.
    fn tables(&self) {
        for table in ["default.py", "local.py", "local.js"] {
            self.server.query(&format!(
                "CREATE TABLE {table} (n UInt32, s String, at DateTime64(9) DEFAULT now64(9)) \
                 ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 1000"
            ));
        }
    }

    /// Rows of a client's table, how many of them there are once, and whether they came in their order.
    fn found(&self, table: &str) -> (u64, u64, bool) {
        let rows = format!("SELECT n, at FROM {table} ORDER BY at, n");
        let found = self.server.query(&format!(
            "SELECT count(), uniqExact(n), arraySort(groupArray(n)) = groupArray(n) FROM ({rows})"
        ));
        let mut fields = found.split('\t');
        let mut number = || fields.next().and_then(|it| it.parse().ok()).expect("a number");
        (number(), number(), number() == 1)
    }

    /// Takes the server away, and waits until the daemon knows.
    fn loses_its_server(&mut self) {
        self.server.kill_9();
        eventually("the breaker opens", LONG, || {
            self.query("SELECT 1");
            self.daemon.breaker("clickhouse") == "OPEN"
        });
    }

    /// Waits until what clients ask for at their start is on the disk.
    fn keeps_what_clients_start_with(&self) {
        self.keeps("");
    }

    /// Waits until the answers to what clients ask when they start are on the disk, `query` among them.
    fn keeps(&self, query: &str) {
        let file = self.daemon.state_dir().join("start-up/clickhouse.cache");
        eventually("what clients start with is kept", LONG, || {
            let kept = fs::read(&file).map(|kept| String::from_utf8_lossy(&kept).into_owned());
            kept.is_ok_and(|kept| kept.contains(query))
        });
    }

    /// Waits until all is replayed.
    fn drains(&self) {
        self.recover();
        self.daemon.wait_until("nothing waits", LONG, |daemon| {
            daemon.queued("clickhouse", "pending") == 0
        });
        assert_eq!(self.daemon.queued("clickhouse", "dead"), 0);
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
    pub(crate) fn query(&self, query: &str) -> (u16, String) {
        self.try_query(query).unwrap_or_else(|error| (0, error.to_string()))
    }

    /// The same of a query in the session `id`.
    fn query_in(&self, id: &str, query: &str) -> (u16, String) {
        let asked = self.try_query_at(&format!("/?session_id={id}"), query);
        asked.unwrap_or_else(|error| (0, error.to_string()))
    }

    fn try_query(&self, query: &str) -> io::Result<(u16, String)> {
        self.try_query_at("/", query)
    }

    fn try_query_at(&self, target: &str, query: &str) -> io::Result<(u16, String)> {
        let (head, body) = self.try_answer_at(target, query)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or(io::ErrorKind::InvalidData)?, body))
    }

    /// Head and body of an answer. HTTP/1.0, so that it ends with the connection.
    fn try_answer(&self, query: &str) -> io::Result<(String, String)> {
        self.try_answer_at("/", query)
    }

    fn try_answer_at(&self, target: &str, query: &str) -> io::Result<(String, String)> {
        let mut stream = TcpStream::connect(self.port.address())?;
        stream.set_read_timeout(Some(LONG))?;
        let length = query.len();
        write!(stream, "POST {target} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{query}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((head.to_owned(), body.to_owned()))
    }

    fn recover(&self) {
        let daemon: &Client = &self.daemon;
        let asked = serde_json::json!({ "backend": "clickhouse" });
        let (status, body) = daemon.post("/admin/resilience/force-recovery", asked);
        assert_eq!(status, 200, "{body}");
        daemon.wait_for_breaker("clickhouse", "CLOSED", LONG);
    }
}

/// Uses a client while the server is up, through an outage in which it restarts, and afterwards; then the daemon is
/// killed.
fn through_an_outage(client: &str) {
    let mut world = World::start();
    world.run(client, "live");
    world.loses_its_server();
    world.run(client, "outage");
    if client == "clickhouse_client.py" {
        world.run(client, "cached");
        world.keeps_what_clients_start_with();
        world.daemon.restart();
        world.run(client, "starts");
    }
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
    let (status, told) = world.query("SELECT 42");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(status >= 500 && told.contains("fusebox: clickhouse: "), "{status} {told}");
    assert_eq!(world.query("SELECT 1"), (200, "1\n".into()), "that was cached");
    eventually("the breaker is open", LONG, || world.daemon.breaker("clickhouse") == "OPEN");
    for client in ["clickhouse_client.py", "clickhouse_client.mjs"] {
        world.run(client, "outage");
    }
    world.server.thaw();
    world.recover();
    assert_eq!(world.query("SELECT 2"), (200, "2\n".into()));
}

#[test]
fn what_was_put_into_a_session_is_known_after_a_kill_of_the_daemon() {
    const INSERT: &str = "INSERT INTO default.kept VALUES (1)";
    let mut world = World::queueing();
    world.server.query("CREATE TABLE default.kept (n UInt32) ENGINE = MergeTree ORDER BY n");
    for (id, statement) in [("set", "SET max_threads = 1"), ("read", "SELECT 1")] {
        assert_eq!(world.query_in(id, statement).0, 200, "{id}");
    }
    world.keeps_what_clients_start_with();
    world.server.kill_9();
    world.daemon.restart();
    let (status, told) = world.query_in("set", INSERT);
    assert!(status == 503 && told.starts_with("Code: 210."), "{status} {told}");
    assert_eq!(world.query_in("set", "SELECT 1").0, 503);
    for id in ["read", "another"] {
        assert_eq!(world.query_in(id, INSERT), (200, String::new()), "{id}");
        assert_eq!(world.query_in(id, "SELECT 1"), (200, "1\n".into()), "{id}");
    }
    assert_eq!(world.daemon.queued("clickhouse", "pending"), 2);

    // A file that is damaged or gone says nothing of any session, and that is reported.
    let file = world.daemon.state_dir().join("sessions/clickhouse.dirty");
    for (told, rubbish) in [("it is damaged", Some("rubbish")), ("it is missing", None)] {
        world.daemon.kill_9();
        let damaged = rubbish.map_or_else(|| fs::remove_file(&file), |it| fs::write(&file, it));
        damaged.expect("it is ours");
        world.daemon.restart();
        assert_eq!(world.daemon.log_text().matches(told).count(), 1, "{told}");
        for id in ["set", "read", "another"] {
            assert_eq!(world.query_in(id, INSERT).0, 503, "{id}: {told}");
        }
        assert_eq!(world.query(INSERT), (200, String::new()));
    }
    world.server.restart();
    world.drains();
    assert_eq!(world.server.query("SELECT count() FROM default.kept"), "4");
}

#[test]
fn an_insert_that_names_no_database_is_queued_after_a_restart_in_an_outage() {
    let mut world = World::queueing();
    world.server.query("CREATE TABLE local.kept (n UInt32) ENGINE = MergeTree ORDER BY n");
    assert_eq!(world.query("SELECT 1").0, 200);
    eventually("the server's database is kept", LONG, || {
        let kept = world.daemon.state_dir().join("sessions/clickhouse.database");
        kept.try_exists().expect("the folder can be looked at")
    });
    world.server.kill_9();
    world.daemon.restart();
    assert_eq!(world.query("INSERT INTO kept VALUES (1)"), (200, String::new()));
    world.server.restart();
    world.drains();
    assert_eq!(world.server.query("SELECT n FROM local.kept"), "1");
}

/// Bytes of the replies in files.
fn filed(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.map(|file| file.metadata().map_or(0, |it| it.len())).sum()
}

#[test]
fn a_large_result_answers_in_an_outage_and_outlives_the_daemon() {
    let kept = tempfile::tempdir().expect("a folder");
    let folder = kept.path().join("clickhouse.results");
    let mut world = World::with(|_, daemon| {
        daemon
            .set("backends.clickhouse.cache.dir", kept.path().to_str().expect("UTF-8"))
            .set("backends.clickhouse.cache.max_stale", "1h")
    });
    let rows = |count| format!("SELECT repeat('x', 99) FROM numbers({count})");
    let whole = (200, format!("{}\n", "x".repeat(99)).repeat(100_000));
    assert!(world.query(&rows(100_000)) == whole);
    eventually("it is in a file", LONG, || filed(&folder) > 10_000_000);
    assert_eq!(world.query(&rows(200_000)).0, 200, "this one is larger than an entry may be");

    world.server.kill_9();
    for _ in 0..3 {
        assert!(world.query(&rows(100_000)) == whole);
    }
    assert_eq!(world.query(&rows(200_000)).0, 503);
    world.daemon.restart();
    let (head, body) =
        world.try_answer(&rows(100_000)).expect("an answer after a kill of the daemon");
    assert!(head.contains("x-fusebox-source: stale") && body == whole.1, "{head}");
    assert!(world.daemon.metric("door_commands_total", &[("source", "stale")]) > 0.0);

    // What is damaged is broken off and asked for no more.
    let files = fs::read_dir(&folder).expect("the folder");
    let file = files.map(|file| file.expect("a file").path()).next().expect("a file");
    let mut bytes = fs::read(&file).expect("the file");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(&file, bytes).expect("it is written");
    let (status, body) = world.query(&rows(100_000));
    assert!(status == 200 && body.len() < whole.1.len(), "{status}, {} bytes", body.len());
    assert_eq!(world.query(&rows(100_000)).0, 503);
    eventually("its file is gone", LONG, || filed(&folder) == 0);
}

/// What was acknowledged in an outage is in its table once and in its order, though the daemon was killed with it. In
/// each phase a client inserts so many rows.
fn inserts_outlive_server_and_daemon(client: &str, phases: &[&str], tables: &[(&str, u64)]) {
    let mut world = World::queueing();
    world.tables();
    world.run(client, "live");
    for (table, rows) in tables {
        assert_eq!(world.found(table), (*rows, *rows, true), "{table}");
    }
    world.loses_its_server();
    for phase in phases {
        world.run(client, phase);
        assert!(world.daemon.queued("clickhouse", "pending") >= 9);
        if client == "clickhouse_inserts.py" {
            world.keeps("DESCRIBE TABLE");
        }
        world.daemon.restart();
    }
    world.server.restart();
    world.drains();
    for (table, rows) in tables {
        let all = rows * (1 + phases.len() as u64);
        assert_eq!(world.found(table), (all, all, true), "{table}");
    }
}

#[test]
fn what_clickhouse_connect_inserts_outlives_server_and_daemon() {
    let (phases, tables) = (["outage", "restarted"], [("default.py", 18_000), ("local.py", 6_000)]);
    inserts_outlive_server_and_daemon("clickhouse_inserts.py", &phases, &tables);
}

#[test]
fn what_the_node_client_inserts_outlives_server_and_daemon() {
    let (phases, tables) = (["outage", "restarted"], [("local.js", 4_500)]);
    inserts_outlive_server_and_daemon("clickhouse_inserts.mjs", &phases, &tables);
}

#[test]
fn an_insert_that_a_frozen_server_has_got_is_applied_once() {
    let world = World::queueing();
    world.tables();
    world.run("clickhouse_inserts.mjs", "live");
    world.server.freeze();
    // It is on the wire when its time is up.
    let began = Instant::now();
    world.run("clickhouse_inserts.mjs", "one");
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(world.daemon.queued("clickhouse", "pending"), 1);
    world.server.thaw();
    world.drains();
    assert_eq!(world.found("local.js"), (5_000, 5_000, true));
}

#[test]
fn an_insert_whose_answer_is_lost_is_applied_once() {
    let mut relay = None;
    let world = World::with(|server, daemon| {
        let started = Relay::start(server.port());
        let url = format!("http://127.0.0.1:{}", started.port());
        relay = Some(started);
        daemon
            .set("backends.clickhouse.url", url)
            .set("backends.clickhouse.queue.write_fallback", "queue")
    });
    let relay = relay.expect("it was started");
    world.tables();
    world.run("clickhouse_inserts.py", "live");
    relay.lose_answers_to("insert_deduplication_token=");
    world.run("clickhouse_inserts.py", "one");
    eventually("it was applied", LONG, || world.found("local.py").0 == 6_100);
    assert_eq!(world.daemon.queued("clickhouse", "pending"), 1);
    relay.release();
    world.drains();
    assert_eq!(world.found("local.py"), (6_100, 6_100, true));
}

#[test]
fn data_frames_are_read_and_inserted_before_in_and_after_an_outage() {
    let mut world = World::queueing();
    world.run("clickhouse_frames.py", "live");
    world.loses_its_server();
    world.run("clickhouse_frames.py", "outage");
    world.daemon.restart();
    world.server.restart();
    world.drains();
    world.run("clickhouse_frames.py", "after");
}
