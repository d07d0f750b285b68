//! A stop and a reload in the middle of things.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::outage::{operated, recover};
use crate::support::poll::Stop;
use crate::support::redis::RedisServer;

const SETS: u32 = 120;
const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_stop_queues_what_may_be_sent_again_and_tells_the_rest_that_it_is_unknown() {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).set("backends.redis.timeout", "50s").start();
    daemon.redis(&["SET", "k", "old"]).assert_live();
    redis.freeze();
    let send = |command: Vec<String>| {
        let caller = daemon.client();
        thread::spawn(move || {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            caller.try_redis(&words, Value::Null).expect("an answer")
        })
    };
    // So many and so large that making them durable takes its time.
    let large = "v".repeat(20_000);
    let keys: Vec<String> = (0..SETS).map(|key| format!("k{key}")).collect();
    let sets: Vec<_> =
        keys.iter().map(|key| send(vec!["SET".into(), key.clone(), large.clone()])).collect();
    let incr = send(vec!["INCR".into(), "n".into()]);
    let get = send(vec!["GET".into(), "k".into()]);
    daemon.wait_until("they are on the wire", LONG, |daemon| {
        daemon.get("/v1/backends/redis").1["calls"]["in_flight"] == json!(SETS + 2)
    });
    let begun = Instant::now();
    assert!(daemon.terminate().success());
    assert!(begun.elapsed() < Duration::from_secs(27), "it took {:?}", begun.elapsed());
    for set in sets {
        set.join().unwrap().assert_queued();
    }
    let unknown = incr.join().unwrap();
    assert_eq!(
        (unknown.status, &unknown.body["outcome_unknown"]),
        (504, &json!(true)),
        "{}",
        unknown.body
    );
    assert!(unknown.body["op_id"].is_string(), "{}", unknown.body);
    let read = get.join().unwrap();
    assert!(matches!(read.status, 200 | 503 | 504), "{}", read.body);

    redis.restart();
    daemon.restart();
    if daemon.breaker("redis") != "CLOSED" {
        recover(&daemon);
    }
    daemon.wait_until_drained("redis", LONG);
    for key in keys {
        assert_eq!(redis.get(&key).as_deref(), Some(large.as_str()), "{key}");
    }
}

#[test]
fn a_stop_waits_for_writes_that_are_between_two_attempts() {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url())
        .set("backends.redis.breaker.failure_threshold", 1_000)
        .set("backends.redis.retry.base", "2s")
        .set("backends.redis.retry.cap", "2s")
        .start();
    daemon.redis(&["PING"]).assert_live();
    redis.kill_9();
    let callers: Vec<_> = (0..8)
        .map(|key| {
            let (caller, key) = (daemon.client(), format!("k{key}"));
            thread::spawn(move || caller.try_redis(&["SET", &key, "v"], Value::Null))
        })
        .collect();
    daemon.wait_until("all wait for their next attempt", LONG, |daemon| {
        let (_, view) = daemon.get("/v1/backends/redis");
        view["calls"]["failures"].as_u64() >= Some(8) && view["calls"]["in_flight"] == json!(0)
    });
    assert!(daemon.terminate().success());
    for caller in callers {
        caller.join().unwrap().expect("an answer").assert_queued();
    }
    redis.restart();
    daemon.restart();
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.query::<u64>(&["DBSIZE"]), 8);
}

#[test]
fn reloads_under_load_fail_no_call_and_open_no_breaker() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let stop = Stop::default();
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (client, stopped) = (daemon.client(), stop.watch());
            thread::spawn(move || {
                let (key, mut value) = (format!("k{caller}"), 0_u32);
                while !stopped.is_set() {
                    value += 1;
                    let written = value.to_string();
                    client.redis(&["SET", &key, &written]).assert_acknowledged();
                    client.redis(&["GET", &key]).assert_value(written);
                }
                (key, value)
            })
        })
        .collect();
    for timeout in 0..10 {
        daemon.set("backends.redis.timeout", format!("{}s", 5 + timeout % 2 * 3));
        let reloaded = daemon.fusebox(&["config", "reload"]);
        let said = String::from_utf8_lossy(&reloaded.stdout);
        // The usual duration of a slow call follows the timeout.
        let changed =
            "changed: backends.redis.breaker.slow_call_duration, backends.redis.timeout\n";
        assert!(said == changed || timeout == 0, "{reloaded:?}");
        // One reload costs a call one attempt, and a call has three.
        for _ in 0..100 {
            daemon.redis(&["PING"]).assert_live();
        }
    }
    drop(stop);
    let last: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
    assert_eq!(daemon.transitions("redis", "CLOSED", "OPEN"), 0);
    daemon.wait_until_drained("redis", LONG);
    for (key, value) in last {
        assert_eq!(redis.get(&key), Some(value.to_string()));
    }
}

/// A client that keeps its connection and sends its next request without looking whether that is still open.
struct Keeping<'a> {
    socket: &'a Path,
    kept: Option<BufReader<UnixStream>>,
}

impl Keeping<'_> {
    /// Sends a call and returns its status; `None` if nobody listens, so that nothing was sent.
    fn set(&mut self, key: &str) -> io::Result<Option<u16>> {
        let mut stream = match self.kept.take() {
            Some(kept) => kept,
            None => match UnixStream::connect(self.socket) {
                Ok(stream) => BufReader::new(stream),
                Err(_) => return Ok(None),
            },
        };
        let body = format!("{{\"command\":[\"SET\",\"{key}\",\"v\"]}}");
        let head = "POST /v1/backends/redis/call HTTP/1.1\r\nhost: localhost";
        write!(stream.get_mut(), "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (mut length, mut closes) = (0, false);
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line)?;
            let header = line.to_ascii_lowercase();
            closes |= header.trim() == "connection: close";
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        stream.read_exact(&mut vec![0; length])?;
        self.kept = (!closes).then_some(stream);
        Ok(Some(status))
    }
}

#[test]
fn stops_under_load_fail_no_call_of_clients_that_keep_their_connections() {
    const CALLERS: usize = 16;
    const CALLS: usize = 8_000;
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let (stop, done) = (Stop::default(), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (socket, stopped) = (daemon.socket().to_owned(), stop.watch());
            let done = Arc::clone(&done);
            thread::spawn(move || {
                let mut client = Keeping { socket: &socket, kept: None };
                let mut failed = Vec::new();
                while !stopped.is_set() {
                    // Some pause between their calls, as their connections are idle when the daemon stops.
                    if caller % 2 == 0 {
                        thread::park_timeout(Duration::from_millis(fastrand::u64(..40)));
                    }
                    match client.set(&format!("k{caller}")) {
                        Ok(Some(200 | 202)) => {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(None) => thread::park_timeout(Duration::from_millis(5)),
                        Ok(Some(status)) => failed.push(status.to_string()),
                        Err(error) => failed.push(error.to_string()),
                    }
                }
                failed
            })
        })
        .collect();
    let mut restarts = 0;
    while done.load(Ordering::Relaxed) < CALLS {
        let before = done.load(Ordering::Relaxed);
        daemon.wait_until("calls are answered", LONG, |_| {
            done.load(Ordering::Relaxed) > before + CALLS / 8
        });
        assert!(daemon.terminate().success());
        daemon.restart();
        restarts += 1;
    }
    drop(stop);
    let failed: Vec<_> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
    println!(
        "{} calls over {restarts} restarts: {} failed",
        done.load(Ordering::Relaxed),
        failed.len()
    );
    assert_eq!(failed, [""; 0]);
}
