//! A stop and a reload in the middle of things.

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
        assert!(said == "changed: redis\n" || timeout == 0, "{reloaded:?}");
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
