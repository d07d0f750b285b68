//! Failure prediction before a real Redis: one that fails gradually, and one that is killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::callers::while_calling;
use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(60);
const CALLERS: u32 = 4;
/// So many that a breaker has the calls that it opens by within seconds.
const READERS: u32 = 16;
const PAUSE: Duration = Duration::from_millis(50);

/// Callers read keys that are not there, so that nothing but the server answers them.
fn while_reading(daemon: &Daemon, meanwhile: impl FnOnce()) {
    let client = daemon.client();
    let call = |_, number| {
        drop(client.redis(&["GET", &format!("none{number}")]));
        thread::park_timeout(PAUSE);
    };
    while_calling(READERS, call, meanwhile);
}

fn daemon(redis: &RedisServer, timeout: &str) -> Daemon {
    Daemon::with_redis(&redis.url())
        .set("backends.redis.timeout", timeout)
        .set("backends.redis.retry.attempts", 1)
        .set("backends.redis.breaker.window", "20s")
        .start()
}

fn prediction(client: &Client) -> Value {
    client.get("/v1/backends/redis").1["prediction"].take()
}

fn is_busy(client: &Client) -> bool {
    prediction(client)["state"] != "too_little_traffic" && prediction(client)["state"] != "off"
}

#[test]
fn a_server_that_stands_still_for_longer_and_longer_is_at_risk_before_its_breaker_opens() {
    let redis = RedisServer::start();
    let daemon = daemon(&redis, "300ms");
    while_reading(&daemon, || {
        daemon.wait_until("there is traffic", LONG, is_busy);
        assert_eq!(prediction(&daemon)["hits"], 0);
        // Short of the timeout until the alarm was looked at, however long that takes; then past it.
        let is_seen = AtomicBool::new(false);
        let stand_still = |_, time: u64| {
            let most = if is_seen.load(Ordering::Relaxed) { 1_000 } else { 250 };
            redis.freeze();
            thread::park_timeout(Duration::from_millis((20 + 7 * time).min(most)));
            redis.thaw();
            thread::park_timeout(Duration::from_millis(10));
        };
        while_calling(1, stand_still, || {
            daemon.wait_until("it is at risk", LONG, |client| {
                let (_, status) = client.get("/v1/backends/redis");
                assert_eq!(status["breaker"]["state"], "CLOSED", "{}", status["prediction"]);
                status["prediction"]["state"] == "at_risk"
            });
            let told = prediction(&daemon);
            assert!(told["because"].as_str().is_some_and(|why| why.contains(" of ")), "{told}");
            let story = daemon.fusebox(&["explain", "redis"]);
            let story = String::from_utf8_lossy(&story.stdout).into_owned();
            assert!(story.contains("It is at risk: "), "{story}");
            let status = daemon.fusebox(&["status"]);
            let status = String::from_utf8_lossy(&status.stdout).into_owned();
            assert!(status.contains("redis: at risk: "), "{status}");
            let of = [("backend", "redis"), ("state", "at_risk")];
            assert_eq!(daemon.metric("prediction_state", &of).to_bits(), 1f64.to_bits());
            is_seen.store(true, Ordering::Relaxed);
            daemon.wait_for_breaker("redis", "OPEN", LONG);
            let is_hit = |client: &Client| prediction(client)["hits"] == 1;
            daemon.wait_until("the alarm was right", LONG, is_hit);
            let told = prediction(&daemon);
            assert_eq!((&told["false_alarms"], &told["missed"]), (&0.into(), &0.into()), "{told}");
            assert_eq!(
                (&told["unpredictable"], &told["state"]),
                (&0.into(), &"off".into()),
                "{told}"
            );
            let of = [("backend", "redis"), ("result", "hit")];
            assert_eq!(daemon.metric("prediction_total", &of).to_bits(), 1f64.to_bits());
        });
    });
}

#[test]
fn that_a_server_is_killed_could_not_be_foreseen_and_an_order_is_not_scored() {
    let mut redis = RedisServer::start();
    let daemon = daemon(&redis, "5s");
    while_reading(&daemon, || {
        daemon.wait_until("there is traffic", LONG, is_busy);
        daemon.fusebox(&["breaker", "redis", "force-open"]);
        daemon.wait_for_breaker("redis", "OPEN", LONG);
        daemon.wait_until("nothing is predicted", LONG, |it| prediction(it)["state"] == "off");
        daemon.fusebox(&["breaker", "redis", "release"]);
        daemon.wait_for_breaker("redis", "CLOSED", LONG);
        daemon.wait_until("there is traffic again", LONG, is_busy);
        assert_eq!(prediction(&daemon)["unpredictable"], 0, "an order");
        redis.kill_9();
        daemon.wait_for_breaker("redis", "OPEN", LONG);
        let is_scored = |client: &Client| prediction(client)["unpredictable"] == 1;
        daemon.wait_until("it was unpredictable", LONG, is_scored);
        let told = prediction(&daemon);
        assert_eq!((&told["hits"], &told["missed"]), (&0.into(), &0.into()), "{told}");
        assert_eq!(told["false_alarms"], 0, "{told}");
    });
}

#[test]
fn a_prediction_goes_by_the_settings_of_the_moment() {
    let server = ClickHouse::start(Engine::Old);
    let mut daemon = Builder::default()
        .set("backends.clickhouse.url", server.url())
        .set("backends.clickhouse.timeout", "10s")
        .start();
    let state = |client: &Client| {
        let (_, status) = client.get("/v1/backends/clickhouse");
        status["prediction"]["state"].as_str().unwrap_or_default().to_owned()
    };
    let client = daemon.client();
    let call = |caller, number| {
        let query = format!("SELECT {caller}, {number}, sleep(0.3)");
        drop(client.call("clickhouse", json!({ "query": query })));
    };
    while_calling(CALLERS, call, || {
        daemon.wait_until("no limit is near", LONG, |client| state(client) == "ok");
        daemon.set("backends.clickhouse.timeout", "500ms");
        assert!(daemon.fusebox(&["config", "reload"]).status.success());
        daemon.wait_until("it is near", LONG, |client| state(client) == "at_risk");
        let (_, told) = daemon.get("/v1/backends/clickhouse");
        let because = told["prediction"]["because"].as_str().unwrap_or_default();
        assert!(because.contains(" of a timeout of 500 ms"), "{because}");
        daemon.set("backends.clickhouse.timeout", "10s");
        assert!(daemon.fusebox(&["config", "reload"]).status.success());
        daemon.wait_until("it is near no more", LONG, |client| state(client) == "ok");
    });
}
