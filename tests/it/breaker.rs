//! When the breaker opens, how long it stays open, and what closes it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::poll::stays;
use crate::support::redis::RedisServer;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(10);

/// A daemon whose pings come once an hour, so that calls alone decide.
fn without_pings(redis: &RedisServer) -> Builder {
    Daemon::with_redis(&redis.url()).set("health.interval", "1h")
}

/// Makes `count` calls that fail at the backend: reads, because a queued write would occupy its lane and
/// keep later ones off the wire.
fn fail(daemon: &Client, count: usize) {
    for _ in 0..count {
        let reply = daemon.redis(&["GET", "absent"]);
        assert_ne!(reply.source(), "live", "{}", reply.body);
    }
}

#[test]
fn opens_at_the_fifth_failure_within_the_window() {
    let mut redis = RedisServer::start();
    let daemon = without_pings(&redis).start();
    daemon.redis(&["GET", "absent"]).assert_live();
    redis.kill_9();
    fail(&daemon, 4);
    assert_eq!(daemon.breaker("redis"), "CLOSED", "a call counts once, however often it is tried");
    fail(&daemon, 1);
    assert_eq!(daemon.breaker("redis"), "OPEN");
    assert_eq!(daemon.transitions("redis", "CLOSED", "OPEN"), 1);
}

#[test]
fn failures_that_have_left_the_window_do_not_count() {
    let mut redis = RedisServer::start();
    let daemon = without_pings(&redis).set("backends.redis.breaker.window", "3s").start();
    daemon.redis(&["GET", "absent"]).assert_live();
    redis.kill_9();
    fail(&daemon, 4);
    stays("the breaker is closed", Duration::from_secs(4), || daemon.breaker("redis") == "CLOSED");
    fail(&daemon, 4);
    assert_eq!(daemon.breaker("redis"), "CLOSED");
    fail(&daemon, 1);
    assert_eq!(daemon.breaker("redis"), "OPEN");
}

#[test]
fn a_few_failures_among_many_successes_do_not_open_it() {
    let redis = RedisServer::start();
    let relay = Relay::start(redis.port());
    let url = format!("redis://127.0.0.1:{}", relay.port());
    let daemon = Daemon::with_redis(&url).set("health.interval", "1h").start();
    for _ in 0..30 {
        daemon.redis(&["GET", "absent"]).assert_live();
    }
    relay.refuse();
    relay.drop_connections();
    fail(&daemon, 6);
    assert_eq!(daemon.breaker("redis"), "CLOSED", "6 of 36 are less than half");
    relay.accept_again();
    // The connection pauses between its attempts; the breaker, closed, stops nobody.
    daemon.wait_until("it is live again", LONG, |daemon| {
        daemon.redis(&["GET", "absent"]).source() == "live"
    });
    assert_eq!(daemon.transitions("redis", "CLOSED", "OPEN"), 0);
}

#[test]
fn half_opens_after_the_recovery_timeout_and_closes_after_three_successes() {
    let mut redis = RedisServer::start();
    let daemon = without_pings(&redis).set("backends.redis.breaker.recovery_timeout", "1s").start();
    redis.kill_9();
    fail(&daemon, 5);
    let opened = Instant::now();
    assert_eq!(daemon.breaker("redis"), "OPEN");
    redis.restart();
    daemon.wait_for_breaker("redis", "CLOSED", LONG);
    // `opened` was read after the fact, hence the tenth of a second.
    assert!(opened.elapsed() >= Duration::from_millis(900), "after {:?}", opened.elapsed());
    let probes = redis.times_called("ping") + redis.times_called("get");
    assert!(probes >= 3, "closed after {probes} probes");
    assert_eq!(daemon.transitions("redis", "OPEN", "HALF_OPEN"), 1);
    assert_eq!(daemon.transitions("redis", "HALF_OPEN", "CLOSED"), 1);
    daemon.redis(&["GET", "absent"]).assert_live();
}

#[test]
fn reopens_when_a_probe_fails_and_waits_longer() {
    let mut redis = RedisServer::start();
    let daemon =
        without_pings(&redis).set("backends.redis.breaker.recovery_timeout", "500ms").start();
    redis.kill_9();
    fail(&daemon, 5);
    let mut opened = Instant::now();
    let mut waits = Vec::new();
    for reopened in 1..=3 {
        daemon.wait_until("a probe fails and reopens it", LONG, |daemon| {
            daemon.transitions("redis", "HALF_OPEN", "OPEN") >= reopened
        });
        waits.push(opened.elapsed());
        opened = Instant::now();
    }
    // 500 ms, then 1 s and 2 s with jitter in their upper halves; a tenth for reading the clock late.
    let least = [400, 400, 900].map(Duration::from_millis);
    assert!(waits.iter().zip(least).all(|(wait, least)| *wait >= least), "{waits:?}");
    assert_eq!(daemon.transitions("redis", "HALF_OPEN", "CLOSED"), 0);
}

#[test]
fn a_reply_that_blames_the_caller_never_counts() {
    let redis = RedisServer::start();
    let daemon = without_pings(&redis).start();
    daemon.redis(&["SET", "text", "x"]).assert_live();
    for _ in 0..20 {
        let refused = daemon.redis(&["LPUSH", "text", "y"]);
        assert_eq!(refused.status, 422, "{}", refused.body);
        assert!(refused.body.to_string().contains("WRONGTYPE"), "{}", refused.body);
        assert_eq!(refused.body["backend"], "redis");
    }
    assert_eq!(daemon.breaker("redis"), "CLOSED");
    daemon.redis(&["GET", "text"]).assert_value("x");
}

#[test]
fn a_dead_idle_backend_is_known_before_a_caller_pays_for_it() {
    let mut redis = RedisServer::start();
    let daemon = Daemon::with_redis(&redis.url())
        .env("HEALTH_CHECK_INTERVAL", "1")
        .env("REDIS_CIRCUIT_BREAKER_THRESHOLD", "2")
        .start();
    let events = daemon.events();
    redis.kill_9();
    events.next("the breaker opens", LONG, |event| {
        let said = event.data.to_string();
        said.contains("redis") && said.to_ascii_uppercase().contains("\"OPEN\"")
    });
    daemon.wait_for_breaker("redis", "OPEN", LONG);
    let status = daemon.status("redis");
    assert_eq!(status["operational"], false, "{status}");
}

#[test]
fn the_seeds_variables_change_the_threshold() {
    let mut redis = RedisServer::start();
    let daemon = without_pings(&redis)
        .set("backends.redis.breaker.failure_threshold", 9)
        .env("REDIS_CIRCUIT_BREAKER_THRESHOLD", "2")
        .start();
    redis.kill_9();
    fail(&daemon, 1);
    assert_eq!(daemon.breaker("redis"), "CLOSED");
    fail(&daemon, 1);
    assert_eq!(daemon.breaker("redis"), "OPEN");
}

#[test]
fn a_fusebox_variable_wins_over_the_seeds() {
    let mut redis = RedisServer::start();
    let daemon = without_pings(&redis)
        .env("REDIS_CIRCUIT_BREAKER_THRESHOLD", "2")
        .env("FUSEBOX_BACKENDS__REDIS__BREAKER__FAILURE_THRESHOLD", "3")
        .start();
    redis.kill_9();
    fail(&daemon, 2);
    assert_eq!(daemon.breaker("redis"), "CLOSED");
    fail(&daemon, 1);
    assert_eq!(daemon.breaker("redis"), "OPEN");
}

#[test]
fn without_auto_recovery_only_an_operator_leaves_open() {
    let mut redis = RedisServer::start();
    let daemon = without_pings(&redis)
        .set("backends.redis.breaker.recovery_timeout", "100ms")
        .env("ENABLE_AUTO_RECOVERY", "false")
        .start();
    redis.kill_9();
    fail(&daemon, 5);
    redis.restart();
    stays("the breaker is open", Duration::from_secs(1), || daemon.breaker("redis") == "OPEN");
    let (status, body) =
        daemon.post("/admin/resilience/force-recovery", json!({ "backend": "redis" }));
    assert_eq!(status, 200, "{body}");
    daemon.wait_for_breaker("redis", "CLOSED", LONG);
}

#[test]
fn an_open_breaker_and_its_deadline_survive_the_daemon() {
    let mut redis = RedisServer::start();
    let mut daemon = without_pings(&redis).start();
    redis.kill_9();
    fail(&daemon, 5);
    assert_eq!(daemon.breaker("redis"), "OPEN");
    redis.restart();
    daemon.kill_9();
    daemon.restart();
    stays("the breaker is open", Duration::from_secs(1), || daemon.breaker("redis") == "OPEN");
    let recovered = daemon.fusebox(&["recover", "redis"]);
    assert!(recovered.status.success(), "{recovered:?}");
    daemon.wait_for_breaker("redis", "CLOSED", LONG);
}

#[test]
fn slow_calls_are_shown_and_open_it_at_a_share_of_their_own() {
    let redis = RedisServer::start();
    let daemon = without_pings(&redis)
        .set("backends.redis.breaker.slow_call_duration", "50ms")
        .set("backends.redis.breaker.slow_call_rate", 0.5)
        .start();
    let fault = json!({ "kind": "latency", "latency": "100ms", "rate": 1.0 });
    let order = json!({ "faults": [fault], "force": true });
    let (status, answer) = daemon.put("/admin/backends/redis/chaos", order);
    assert_eq!(status, 200, "{answer}");
    for _ in 0..4 {
        daemon.redis(&["GET", "absent"]).assert_live();
    }
    assert_eq!(daemon.breaker("redis"), "CLOSED");
    let share = daemon.metric("breaker_slow_call_ratio", &[("backend", "redis")]);
    assert!(share > 0.5 && share <= 1.0, "{share}");
    let said = daemon.fusebox(&["status"]).stdout;
    let said = String::from_utf8_lossy(&said);
    let told = "calls took longer than 50 ms; the breaker opens at 5 slow calls and 50%";
    assert!(said.contains("redis: 4 of ") && said.contains(told), "{said}");
    daemon.redis(&["GET", "absent"]).assert_live();
    daemon.wait_for_breaker("redis", "OPEN", LONG);
    let labels = [("backend", "redis"), ("to", "OPEN"), ("reason", "slow_calls")];
    assert!(daemon.metric("breaker_transitions_total", &labels) > 0.0);
}
