//! A lane that does not move, or that is long, and what that costs others.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{
    daemon::{Client, Daemon},
    outage::operated,
    poll::wait_for,
    port::Port,
    redis::RedisServer,
};

const LONG: Duration = Duration::from_secs(20);
/// More than there are places at the door for calls in flight.
const READERS: usize = 540;

/// Queues `HSET h f v`, which does not say what `h` holds, while the breaker stays closed; then `change` makes the
/// server refuse it.
fn blocked(redis: &RedisServer, change: &[&str]) -> Daemon {
    let daemon = operated(&redis.url()).set("backends.redis.breaker.failure_threshold", 5).start();
    daemon.redis(&["SET", "other", "v"]).assert_live();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["HSET", "h", "f", "v"]).assert_queued();
    let done: String = redis.query(change);
    assert_eq!(done, "OK");
    daemon.order("/admin/backends/redis/online");
    wait_for("replay was refused", LONG, || {
        let (_, page) = daemon.get("/v1/backends/redis/queue");
        (page["calls"][0]["state"] == "retry").then_some(())
    });
    assert_eq!(daemon.breaker("redis"), "CLOSED");
    daemon
}

#[test]
fn readers_of_a_key_that_the_server_has_no_room_for_hold_nobody_up() {
    let redis = RedisServer::start();
    let daemon = blocked(&redis, &["CONFIG", "SET", "maxmemory", "1"]);
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let client = Client::clone(&daemon);
            thread::Builder::new().stack_size(256 << 10).spawn(move || {
                let began = Instant::now();
                let options = json!({ "deadline": "8s" });
                let read = client.try_redis(&["GET", "h"], options).map(|reply| reply.status);
                (read.unwrap_or_default(), began.elapsed())
            })
        })
        .map(Result::unwrap)
        .collect();
    for _ in 0..20 {
        daemon.redis(&["GET", "other"]).assert_live();
    }
    let answers: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    let refused = answers.iter().filter(|(status, _)| *status == 503).count();
    assert!(refused > READERS / 2, "{answers:?}");
    let slowest = answers.iter().map(|(_, took)| *took).max().unwrap();
    assert!(slowest < Duration::from_secs(6), "the last one waited for {slowest:?}");
}

#[test]
fn a_write_behind_others_is_acknowledged_at_once_while_the_server_is_a_replica() {
    let redis = RedisServer::start();
    let nobody = Port::lease();
    let daemon = blocked(&redis, &["REPLICAOF", "127.0.0.1", &nobody.number().to_string()]);
    wait_for("replay is paused", LONG, || {
        daemon.get("/v1/backends/redis").1["queue"]["replay_paused"].is_string().then_some(())
    });
    for _ in 0..3 {
        let began = Instant::now();
        daemon.redis_with(&["HSET", "h", "f", "w"], json!({ "deadline": "8s" })).assert_queued();
        assert!(began.elapsed() < Duration::from_millis(700), "{:?}", began.elapsed());
    }
    let done: String = redis.query(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(done, "OK");
    daemon.order("/admin/backends/redis/queue/replay");
    daemon.wait_until_drained("redis", LONG);
    let value: String = redis.query(&["HGET", "h", "f"]);
    assert_eq!(value, "w");
}

/// The median time of a read of `key`, whatever its answer.
fn median(daemon: &Client, key: &str) -> Duration {
    let mut times: Vec<Duration> = (0..41)
        .map(|_| {
            let began = Instant::now();
            daemon.try_redis(&["GET", key], json!(null)).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[20]
}

#[test]
fn a_read_of_a_long_lane_costs_what_one_of_a_short_lane_does() {
    const LENGTH: usize = 4_000;
    const CLIENTS: usize = 16;
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "short", "v"]).assert_queued();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let daemon: &Client = &daemon;
            scope.spawn(move || {
                for number in (client..LENGTH).step_by(CLIENTS) {
                    let number = number.to_string();
                    daemon.redis(&["SET", "long", &number]).assert_queued();
                    let consent = json!({ "min_ack": "durable" });
                    daemon.redis_with(&["INCR", "count"], consent).assert_queued();
                }
            });
        }
    });
    assert_eq!(daemon.queued("redis", "pending"), 2 * LENGTH as u64 + 1);
    daemon.redis(&["SET", "long", "last"]).assert_queued();
    daemon.redis(&["GET", "long"]).assert_value("last");
    let unknown = daemon.redis(&["GET", "count"]);
    assert_eq!((unknown.status, &unknown.body["code"]), (503, &json!("lane_busy")));
    let (short, long, count) =
        (median(&daemon, "short"), median(&daemon, "long"), median(&daemon, "count"));
    let most = 2 * short + Duration::from_millis(2);
    assert!(long < most && count < most, "{short:?} of one write, {long:?} and {count:?} of many");
}
