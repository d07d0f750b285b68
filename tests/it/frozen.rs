//! A backend that takes what is sent and never answers: how soon that is noticed, what its callers lose until then,
//! and how soon its return is noticed.
//!
//! `FUSEBOX_TEST_FROZEN=all` measures each kind, stopped and behind a network that swallows what is sent, with
//! callers of three kinds of patience, and prints a table.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::firestore::{Emulator, Firestore};
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(60);
/// Callers at once.
const CALLERS: usize = 4;

enum Server {
    ClickHouse(ClickHouse),
    Firestore(Firestore),
    Redis(RedisServer),
}

impl Server {
    fn start(kind: &str) -> Self {
        match kind {
            "clickhouse" => Self::ClickHouse(ClickHouse::start(Engine::Current)),
            "firestore" => Self::Firestore(Firestore::start(Emulator::Npm)),
            _ => Self::Redis(RedisServer::start()),
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::ClickHouse(server) => server.port(),
            Self::Firestore(server) => server.port(),
            Self::Redis(server) => server.port(),
        }
    }

    fn freeze(&self) {
        match self {
            Self::ClickHouse(server) => server.freeze(),
            Self::Firestore(server) => server.freeze(),
            Self::Redis(server) => server.freeze(),
        }
    }

    fn thaw(&self) {
        match self {
            Self::ClickHouse(server) => server.thaw(),
            Self::Firestore(server) => server.thaw(),
            Self::Redis(server) => server.thaw(),
        }
    }
}

/// How a backend stops answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The server's process is stopped.
    Stopped,
    /// What is sent to it is lost.
    Swallowed,
}

/// What was measured.
struct Found {
    /// From the freeze to OPEN.
    open: Duration,
    /// What callers waited in vain until then, together.
    lost: Duration,
    /// From the return to CLOSED.
    closed: Duration,
}

/// A read of something that is not cached.
fn read(kind: &str, number: usize, patience: Option<&str>) -> Value {
    let options = patience.map_or(json!({}), |patience| json!({ "deadline": patience }));
    match kind {
        "clickhouse" => json!({ "query": format!("SELECT {number}"), "options": options }),
        "firestore" => {
            json!({ "op": "get", "path": format!("frozen/{number}"), "options": options })
        }
        _ => json!({ "command": ["GET", format!("k{number}")], "options": options }),
    }
}

/// One backend with the default settings, but for how long its breaker stays open.
fn measure(kind: &'static str, how: How, patience: Option<&'static str>, open_for: &str) -> Found {
    let server = Server::start(kind);
    let relay = Relay::start(server.port());
    let scheme = if kind == "redis" { "redis" } else { "http" };
    let url = format!("{scheme}://127.0.0.1:{}", relay.port());
    let daemon = Builder::default()
        .set("health.timeout", "1s")
        .set(&format!("backends.{kind}.url"), url)
        .set(&format!("backends.{kind}.breaker.recovery_timeout"), open_for)
        .start();
    for number in 0..20 {
        assert_eq!(daemon.call(kind, read(kind, number, None)).status, 200, "{kind}");
    }
    let (over, lost) = (AtomicBool::new(false), Mutex::new(Duration::ZERO));
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (client, over, lost) = (daemon.client(), &over, &lost);
            scope.spawn(move || call_on(&client, kind, caller, patience, over, lost));
        }
        let begin = Instant::now();
        match how {
            How::Stopped => server.freeze(),
            How::Swallowed => relay.hold_client_bytes(),
        }
        daemon.wait_for_breaker(kind, "OPEN", LONG);
        let open = begin.elapsed();
        over.store(true, Ordering::Relaxed);
        let back = Instant::now();
        match how {
            How::Stopped => server.thaw(),
            How::Swallowed => relay.release(),
        }
        daemon.wait_for_breaker(kind, "CLOSED", 3 * LONG);
        Found { open, lost: *lost.lock(), closed: back.elapsed() }
    })
}

/// Reads until it is over, and adds up the time of what failed before.
fn call_on(
    client: &Client,
    kind: &str,
    caller: usize,
    patience: Option<&str>,
    over: &AtomicBool,
    lost: &Mutex<Duration>,
) {
    let mut number = (caller + 1) * 1_000_000;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let began = Instant::now();
        let reply = client.call(kind, read(kind, number, patience));
        if reply.source() != "live" && !over.load(Ordering::Relaxed) {
            *lost.lock() += began.elapsed();
        }
    }
}

#[test]
fn a_frozen_backend_is_open_within_seconds_though_its_callers_are_hasty() {
    thread::scope(|scope| {
        for kind in ["clickhouse", "firestore", "redis"] {
            scope.spawn(move || {
                let found = measure(kind, How::Stopped, Some("300ms"), "1s");
                println!("{kind}: open after {:?}, {:?} lost", found.open, found.lost);
                assert!(found.open < Duration::from_secs(5), "{kind}: {:?}", found.open);
            });
        }
    });
}

#[test]
fn the_table_of_frozen_backends() {
    if std::env::var("FUSEBOX_TEST_FROZEN").as_deref() != Ok("all") {
        // One row, so that what prints the table runs each time.
        let found = measure("redis", How::Swallowed, None, "1s");
        assert!(found.open < Duration::from_secs(5 + 2), "{:?}", found.open);
        return;
    }
    println!("| backend | how | deadline | to OPEN | lost | back to CLOSED |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (kind, threshold, open_for) in
        [("clickhouse", 3, "2m"), ("firestore", 8, "1m"), ("redis", 5, "30s")]
    {
        for how in [How::Stopped, How::Swallowed] {
            for patience in [Some("300ms"), Some("1s"), None] {
                let found = measure(kind, how, patience, open_for);
                let [open, lost, closed] =
                    [found.open, found.lost, found.closed].map(|time| time.as_secs_f64());
                let waits = patience.unwrap_or("none");
                println!(
                    "| {kind} | {how:?} | {waits} | {open:.1} s | {lost:.1} s | {closed:.1} s |"
                );
                let most = if patience.is_some() { 5 } else { threshold + 2 };
                assert!(found.open < Duration::from_secs(most), "{kind} {how:?} {waits}: {open}");
            }
        }
    }
}

#[test]
fn a_cached_key_is_answered_at_once_while_its_server_is_frozen() {
    let redis = RedisServer::start();
    let daemon = Daemon::with_redis(&redis.url())
        .set("health.interval", "1h")
        .set("health.timeout", "1s")
        .start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_value("v");
    redis.freeze();
    let began = Instant::now();
    let read = daemon.redis(&["GET", "k"]);
    assert_eq!((read.source(), read.value()), ("cache", &json!("v")), "{}", read.body);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    redis.thaw();
    eventually("it is live again", LONG, || daemon.redis(&["GET", "k"]).source() == "live");
}
