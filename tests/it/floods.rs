//! Callers that hang up. What they leave behind on the wire is bounded as it was while they waited, and its outcome
//! reaches the breaker.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::redis_door::door_of;
use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::h2_sink::H2Sink;
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;
/// What the gate lets in at once, in bytes.
const GATE: u64 = 256 * MIB;
/// What the daemon may need above that.
const ABOVE: u64 = 64 * MIB;

/// Sends a request of this path and body, and hangs up after `patience`.
fn hang_up(socket: &Path, path: &str, body: &[u8], patience: Duration) {
    let mut stream = UnixStream::connect(socket).expect("the daemon listens");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // What is refused before its end may be closed before its end.
    if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).is_ok() {
        thread::park_timeout(patience);
    }
}

/// Twenty callers at once that make a call, hang up after `patience` and come again, `times` times.
fn flood(
    daemon: &Daemon,
    backend: &str,
    call: impl Fn(u32) -> Value + Sync,
    times: u32,
    patience: Duration,
) {
    let path = format!("/v1/backends/{backend}/call");
    thread::scope(|scope| {
        for caller in 0..20 {
            let (path, call) = (&path, &call);
            scope.spawn(move || {
                for time in 0..times {
                    let body = call(caller * times + time).to_string();
                    hang_up(daemon.socket(), path, body.as_bytes(), patience);
                }
            });
        }
    });
}

/// The most that `count` says while `flood` lasts and a moment longer.
fn most_while(flood: impl FnOnce() + Send, count: impl Fn() -> u64) -> u64 {
    thread::scope(|scope| {
        let flood = scope.spawn(flood);
        let (mut most, mut since) = (0, None);
        while since.is_none_or(|since: Instant| since.elapsed() < Duration::from_secs(1)) {
            most = most.max(count());
            if flood.is_finished() {
                since.get_or_insert_with(Instant::now);
            }
        }
        most
    })
}

fn narrow(backend: &str, url: &str) -> Builder {
    Builder::default()
        .set(&format!("backends.{backend}.url"), url)
        .set(&format!("backends.{backend}.timeout"), "5s")
        .set(&format!("backends.{backend}.retry.attempts"), 1)
        .set(&format!("backends.{backend}.bulkhead.in_flight_max"), 4)
        .set("health.interval", "1h")
}

#[test]
fn a_clickhouse_is_sent_no_more_inserts_and_reads_than_there_are_places() {
    let server = ClickHouse::start(Engine::Current);
    server.query("CREATE TABLE slow (n UInt8, s UInt8 MATERIALIZED sleep(2)) ENGINE = Null");
    let daemon = narrow("clickhouse", &server.url()).start();
    daemon.call("clickhouse", json!({ "query": "SELECT 1" })).assert_live();
    let options = json!({ "min_ack": "applied" });
    for (query, options) in
        [("INSERT INTO slow (n) VALUES (1)", options), ("SELECT sleep(2)", Value::Null)]
    {
        let mut call = json!({ "query": query });
        if !options.is_null() {
            call["options"] = options;
        }
        let on_the_wire = || {
            let count = "SELECT count() FROM system.processes WHERE query_id LIKE 'fusebox:%' \
                         AND (query LIKE 'INSERT INTO slow%' OR query LIKE 'SELECT sleep%')";
            server.query(count).trim().parse::<u64>().expect("a number")
        };
        // Before an insert the daemon asks what the table is: that takes a little.
        let patience = Duration::from_millis(300);
        let flood = || flood(&daemon, "clickhouse", |_| call.clone(), 10, patience);
        let most = most_while(flood, on_the_wire);
        println!("{most} at once: {query}");
        assert!((1..=4).contains(&most), "{most} at once: {query}");
        daemon.wait_until("all have ended", LONG, |daemon| in_flight(daemon, "clickhouse") < 0.5);
    }
    assert_eq!(daemon.breaker("clickhouse"), "CLOSED");
}

#[test]
fn a_firestore_is_sent_no_more_commits_than_there_are_places() {
    let sink = H2Sink::start();
    let daemon = narrow("firestore", &sink.url())
        .set("backends.firestore.project", "demo")
        .set("backends.firestore.breaker.failure_threshold", 10_000)
        .start();
    let data = json!({ "text": "x".repeat(16 << 10) });
    let call = |number| {
        json!({
            "op": "set", "path": format!("flood/{number}"), "data": data,
            "options": { "min_ack": "applied" },
        })
    };
    let flood = || flood(&daemon, "firestore", call, 10, Duration::from_millis(30));
    let most = most_while(flood, || sink.large_streams());
    println!("{most} commits at once");
    assert!((1..=4).contains(&most), "{most} at once");
}

fn in_flight(daemon: &Client, backend: &str) -> f64 {
    daemon.metric("attempts_in_flight", &[("backend", backend)])
}

/// The memory that the process has, in bytes.
fn resident(daemon: &Daemon) -> u64 {
    let status = PathBuf::from(format!("/proc/{}/status", daemon.id()));
    let status = fs::read_to_string(status).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

#[test]
fn a_frozen_redis_costs_no_more_memory_than_the_gate_lets_in() {
    let redis = RedisServer::start();
    let daemon = Builder::default()
        .set("backends.redis.url", redis.url())
        .set("backends.redis.timeout", "20s")
        .set("health.interval", "1h")
        .set("calls.bytes", "256MiB")
        .start();
    daemon.redis(&["SET", "first", "1"]).assert_live();
    let before = resident(&daemon);
    redis.freeze();
    let mut body = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n", 8 * MIB).into_bytes();
    body.resize(body.len() + (8 << 20), b'x');
    body.extend(b"\r\n");
    let (socket, body) = (daemon.socket().to_owned(), &body);
    let flood = || {
        thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    for _ in 0..8 {
                        let path = "/v1/backends/redis/call/raw";
                        hang_up(&socket, path, body, Duration::from_millis(100));
                    }
                });
            }
        });
    };
    let most = most_while(flood, || resident(&daemon));
    let grown = most.saturating_sub(before);
    println!("{} MiB more, {} MiB at the gate", grown / MIB, GATE / MIB);
    assert!(grown <= GATE + ABOVE, "{} MiB more", grown / MIB);
    redis.thaw();
}

#[test]
fn idle_clients_of_a_redis_door_take_at_most_6_kib_each() {
    const CLIENTS: usize = 8_000;
    // Each has a socket here.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let clients = CLIENTS.min(usize::try_from(most).unwrap() / 2);
    let redis = RedisServer::start();
    let daemon = Builder::default().set("backends.redis.url", redis.url()).start();
    let door = door_of(&daemon);
    let come = |count: usize| -> Vec<UnixStream> {
        let come = |_| {
            let mut client = UnixStream::connect(&door).expect("there is room");
            client.write_all(b"SET k v\r\nGET k\r\n").expect("it is taken");
            let mut said = [0; 12];
            client.read_exact(&mut said).expect("it is answered");
            assert_eq!(&said, b"+OK\r\n$1\r\nv\r\n");
            client
        };
        (0..count).map(come).collect()
    };
    let first = come(100);
    let before = resident(&daemon);
    let all = come(clients);
    let each = resident(&daemon).saturating_sub(before) / clients as u64;
    println!("{each} bytes for each of {clients}");
    assert!(each <= 6 << 10, "{each} bytes for each of {clients}");
    drop((first, all));
}

#[test]
fn the_breaker_opens_though_every_caller_left() {
    let redis = RedisServer::start();
    let server = ClickHouse::start(Engine::Current);
    let sink = H2Sink::start();
    let mut builder = Builder::default()
        .set("health.interval", "1h")
        .set("backends.redis.url", redis.url())
        .set("backends.clickhouse.url", server.url())
        .set("backends.firestore.url", sink.url())
        .set("backends.firestore.project", "demo");
    for backend in ["redis", "clickhouse", "firestore"] {
        builder = builder.set(&format!("backends.{backend}.timeout"), "1s");
    }
    let daemon = builder.start();
    daemon.redis(&["GET", "k"]).assert_live();
    let select = json!({ "query": "SELECT 1" });
    daemon.call("clickhouse", select.clone()).assert_live();
    redis.freeze();
    server.freeze();
    let calls = [
        ("redis", json!({ "command": ["GET", "k"] })),
        ("clickhouse", select),
        ("firestore", json!({ "op": "get", "path": "a/b" })),
    ];
    for (backend, call) in &calls {
        flood(&daemon, backend, |_| call.clone(), 1, Duration::from_millis(50));
    }
    for (backend, _) in &calls {
        daemon.wait_for_breaker(backend, "OPEN", Duration::from_secs(5));
    }
    eventually("nothing is on the wire", LONG, || {
        calls.iter().all(|(backend, _)| in_flight(&daemon, backend) < 0.5)
    });
    redis.thaw();
    server.thaw();
}
