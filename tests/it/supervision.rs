//! An actor that panics: what it owned is still there, nobody in flight goes without an answer, and one
//! backend's trouble is not the others'.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::outage::operated;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);

fn hooked(url: &str) -> Builder {
    operated(url).env("FUSEBOX_TEST_HOOKS", "1")
}

fn panic(daemon: &Client) {
    daemon.order("/admin/backends/redis/panic");
}

fn view(daemon: &Client) -> Value {
    daemon.get("/v1/backends/redis").1
}

fn restarts(daemon: &Client) -> u64 {
    view(daemon)["restarts"].as_u64().expect("a count of restarts")
}

#[test]
fn the_test_hook_is_not_there_unless_asked_for() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    assert_eq!(daemon.post("/admin/backends/redis/panic", Value::Null).0, 404);
}

#[test]
fn a_restarted_actor_finds_queue_breaker_and_force_as_they_were() {
    let redis = RedisServer::start();
    let daemon = hooked(&redis.url()).start();
    let (status, body) =
        daemon.post("/admin/circuit-breaker/redis/force-open", json!({ "reason": "maintenance" }));
    assert_eq!(status, 200, "{body}");
    for value in ["1", "2", "3"] {
        daemon.redis(&["SET", "k", value]).assert_queued();
    }
    panic(&daemon);
    daemon.wait_until("its actor is restarted", LONG, |daemon| restarts(daemon) == 1);
    assert_eq!(daemon.queued("redis", "pending"), 3);
    let breaker = &view(&daemon)["breaker"];
    assert_eq!(
        (&breaker["state"], &breaker["forced"]["reason"]),
        (&json!("OPEN"), &json!("maintenance"))
    );
    daemon.redis(&["GET", "k"]).assert_value("3");

    daemon.wait_until("orders are taken again", LONG, |daemon| {
        daemon.post("/admin/circuit-breaker/redis/release", Value::Null).0 == 200
    });
    daemon.wait_for_breaker("redis", "CLOSED", LONG);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("3"));
}

#[test]
fn a_transition_that_comes_while_the_actor_is_down_is_still_told() {
    let mut redis = RedisServer::start();
    let daemon = hooked(&redis.url()).start();
    daemon.redis(&["PING"]).assert_live();
    let events = daemon.events();
    redis.kill_9();
    panic(&daemon);
    daemon.redis(&["GET", "k"]);
    assert_eq!(daemon.breaker("redis"), "OPEN");
    events.next("the transition is told", LONG, |event| {
        event.kind == "transition" && event.data["to"] == "OPEN"
    });
    daemon.wait_until("it is in the history", LONG, |daemon| {
        let (_, body) = daemon.get("/v1/backends/redis/transitions");
        body["transitions"].as_array().is_some_and(|all| all.iter().any(|it| it["to"] == "OPEN"))
    });
}

#[test]
fn calls_in_flight_are_answered_though_their_actor_dies() {
    let redis = RedisServer::start();
    let daemon = hooked(&redis.url()).start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    redis.freeze();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let caller = daemon.client();
            thread::spawn(move || caller.try_redis(&["GET", "k"], json!({ "deadline": "10s" })))
        })
        .collect();
    daemon.wait_until("they are on the wire", LONG, |daemon| {
        view(daemon)["calls"]["in_flight"] == json!(8)
    });
    panic(&daemon);
    daemon.wait_until("its actor is restarted", LONG, |daemon| restarts(daemon) == 1);
    redis.thaw();
    for caller in callers {
        let reply = caller.join().unwrap().expect("an answer");
        reply.assert_live();
        reply.assert_value("v");
    }
}

#[test]
fn a_backend_whose_actor_keeps_failing_goes_offline_alone_until_it_is_brought_back() {
    let (redis, other) = (RedisServer::start(), RedisServer::start());
    let daemon: Daemon = hooked(&redis.url())
        .set("backends.other.kind", "redis")
        .set("backends.other.url", other.url())
        .start();
    daemon.redis(&["SET", "k", "0"]).assert_live();
    for panics in 1_u64..=5 {
        panic(&daemon);
        daemon.wait_until("its actor is restarted", LONG, |daemon| restarts(daemon) == panics);
        assert_eq!(daemon.status("redis")["offline"], json!(false), "after {panics} panics");
    }
    panic(&daemon);
    daemon.wait_until("it is given up on", LONG, |daemon| {
        daemon.status("redis")["offline"] == json!(true)
    });
    let alerts = view(&daemon)["alerts"].to_string();
    assert!(alerts.contains("fusebox online redis"), "{alerts}");
    daemon.redis(&["SET", "k", "1"]).assert_queued();
    let reply = daemon.call("other", json!({ "command": ["SET", "k", "v"] }));
    reply.assert_live();
    let status = daemon.fusebox(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("OFFLINE"), "{status:?}");

    let online = daemon.fusebox(&["online", "redis"]);
    assert!(online.status.success(), "{online:?}");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("1"));
    assert_eq!(view(&daemon)["alerts"], json!([]));
    daemon.redis(&["SET", "k", "2"]).assert_live();
    panic(&daemon);
    daemon.wait_until("it is restarted as before", LONG, |daemon| restarts(daemon) == 7);
}

#[test]
fn a_panic_of_one_of_sleds_threads_ends_the_process_and_what_was_acknowledged_is_there_after_the_start()
 {
    let redis = RedisServer::start();
    let mut daemon = hooked(&redis.url()).start();
    daemon.post("/admin/circuit-breaker/redis/force-open", json!({ "reason": "maintenance" }));
    daemon.redis(&["SET", "k", "1"]).assert_queued();
    let panic_in = |daemon: &Client, thread: &str| {
        let path = format!("/admin/backends/redis/panic?thread={thread}");
        // It may be gone before it has answered.
        drop(daemon.try_request("POST", &path, None));
    };
    panic_in(&daemon, "some-other");
    daemon.wait_until("it is told", LONG, |_| daemon.log_text().contains("some-other"));
    assert!(daemon.is_up());
    panic_in(&daemon, "sled-io-7");
    daemon.wait_until("the process has ended", LONG, |daemon| !daemon.is_up());
    let log = daemon.log_text();
    assert!(log.contains("panicked: told to panic") && log.contains("sled-io-7"), "{log}");
    daemon.restart();
    assert_eq!(daemon.queued("redis", "pending"), 1);
    daemon.redis(&["SET", "k", "2"]).assert_queued();
}
