//! An outage of Redis that begins and ends when the test says so.

use std::time::Duration;

use serde_json::json;

use super::daemon::{Builder, Client, Daemon};
use super::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);

/// A daemon whose breaker opens at the first failure and, by itself, stays open for the whole test, so
/// that an outage begins and ends when the test says so.
pub(crate) fn operated(url: &str) -> Builder {
    Daemon::with_redis(url)
        .set("health.interval", "1h")
        .set("backends.redis.breaker.failure_threshold", 1)
        .set("backends.redis.breaker.failure_rate", 0.0)
        .set("backends.redis.breaker.recovery_timeout", "4m")
}

/// Kills Redis and opens the breaker.
#[track_caller]
pub(crate) fn begin_outage(redis: &mut RedisServer, daemon: &Client) {
    redis.kill_9();
    daemon.redis(&["GET", "absent"]);
    daemon.wait_for_breaker("redis", "OPEN", LONG);
}

/// Lets the daemon find out that Redis is back.
#[track_caller]
pub(crate) fn recover(daemon: &Client) {
    let (status, body) =
        daemon.post("/admin/resilience/force-recovery", json!({ "backend": "redis" }));
    assert_eq!(status, 200, "{body}");
    daemon.wait_for_breaker("redis", "CLOSED", LONG);
}
