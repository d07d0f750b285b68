//! A backend that never answers: how soon that is noticed, what its callers lose until then, and how soon its return
//! is noticed.
//!
//! `FUSEBOX_TEST_FROZEN=all`, or a kind's name, measures each kind, or that one, stopped, behind a network that
//! swallows what is sent, and behind one that has gone, with callers of three kinds of patience, and prints a table.

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
    /// What is sent to it is lost; connections are there, and new ones are made.
    Swallowed,
    /// As if its network were gone: nothing is answered, also nobody who tries to connect.
    Gone,
}

/// What was measured.
struct Found {
    /// From the freeze to OPEN.
    open: Duration,
    /// What callers waited in vain until then, together; also those that wait yet.
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
    let callers: Vec<_> = (0..CALLERS).map(|_| Caller::default()).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (number, caller) in callers.iter().enumerate() {
            let (client, over) = (daemon.client(), &over);
            let first = (number + 1) * 1_000_000;
            scope.spawn(move || caller.call_on(&client, kind, first, patience, over));
        }
        let begin = Instant::now();
        match how {
            How::Stopped => server.freeze(),
            How::Swallowed => relay.hold_client_bytes(),
            How::Gone => relay.lose_everything(),
        }
        daemon.wait_for_breaker(kind, "OPEN", LONG);
        let open = begin.elapsed();
        let lost = callers.iter().map(|caller| caller.lost_since(begin)).sum();
        over.store(true, Ordering::Relaxed);
        let back = Instant::now();
        match how {
            How::Stopped => server.thaw(),
            How::Swallowed => relay.release(),
            How::Gone => {
                relay.accept_again();
                relay.release();
            }
        }
        daemon.wait_for_breaker(kind, "CLOSED", 3 * LONG);
        Found { open, lost, closed: back.elapsed() }
    })
}

/// A caller's time.
#[derive(Default)]
struct Caller(Mutex<Times>);

#[derive(Default)]
struct Times {
    /// Since when it waits for an answer.
    waits: Option<Instant>,
    /// From when until when it waited for answers that were no use.
    failed: Vec<(Instant, Instant)>,
}

impl Caller {
    /// Reads until it is over, each time something else, from the `number`-th on.
    fn call_on(
        &self,
        client: &Client,
        kind: &str,
        mut number: usize,
        patience: Option<&str>,
        over: &AtomicBool,
    ) {
        while !over.load(Ordering::Relaxed) {
            number += 1;
            let began = Instant::now();
            self.0.lock().waits = Some(began);
            let reply = client.call(kind, read(kind, number, patience));
            let mut times = self.0.lock();
            times.waits = None;
            if reply.source() != "live" {
                times.failed.push((began, Instant::now()));
            }
        }
    }

    /// What it waited in vain from `begin` until now.
    fn lost_since(&self, begin: Instant) -> Duration {
        let times = self.0.lock();
        let waits = times.waits.map(|since| (since, Instant::now()));
        let all = times.failed.iter().copied().chain(waits);
        all.map(|(from, until)| until.saturating_duration_since(from.max(begin))).sum()
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
    let wanted = std::env::var("FUSEBOX_TEST_FROZEN").unwrap_or_default();
    if wanted.is_empty() {
        // A row or two, so that what prints the table runs each time.
        for how in [How::Swallowed, How::Gone] {
            let found = measure("redis", how, None, "1s");
            assert!(found.open < Duration::from_secs(5 + 2), "{how:?}: {:?}", found.open);
            // Nobody had an answer, and all are waiting or have an error.
            assert!(found.lost > found.open * 3, "{how:?}: {:?}", found.lost);
        }
        return;
    }
    println!("| backend | how | deadline | to OPEN | lost until then | return to CLOSED |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let bad = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (kind, threshold, open_for) in
            [("clickhouse", 3, "2m"), ("firestore", 8, "1m"), ("redis", 5, "30s")]
                .into_iter()
                .filter(|(kind, ..)| wanted == "all" || wanted == *kind)
        {
            let bad = &bad;
            scope.spawn(move || rows(kind, threshold, open_for, bad));
        }
    });
    assert_eq!(bad.into_inner(), Vec::<String>::new());
}

/// Prints the rows of one kind, and adds what is too late to `bad`.
fn rows(kind: &'static str, threshold: u64, open_for: &'static str, bad: &Mutex<Vec<String>>) {
    for how in [How::Stopped, How::Gone, How::Swallowed] {
        for patience in [Some("300ms"), Some("1s"), None] {
            let found = measure(kind, how, patience, open_for);
            let [open, lost, closed] =
                [found.open, found.lost, found.closed].map(|time| time.as_secs_f64());
            let waits = patience.unwrap_or("none");
            let row = format!(
                "| {kind} | {how:?} | {waits} | {open:.1} s | {lost:.1} s | {closed:.1} s |"
            );
            println!("{row}");
            let most = if patience.is_some() { 5 } else { threshold + 2 };
            let recovery = humantime::parse_duration(open_for).expect("a duration");
            let late = found.closed > recovery + Duration::from_secs(3);
            if late || found.open > Duration::from_secs(most) {
                bad.lock().push(row);
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
