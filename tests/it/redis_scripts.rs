//! Scripts lock and invalidate the keys that they declare.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::Client;
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);
const SET: &str = "return redis.call('SET', KEYS[1], ARGV[1])";

/// Leaves a write to `locked` in the queue of a backend that is up.
fn occupy(redis: &mut RedisServer, daemon: &Client) {
    begin_outage(redis, daemon);
    daemon.redis(&["SET", "locked", "1"]).assert_queued();
    redis.restart();
    let _done: String = redis.query(&["ACL", "SETUSER", "default", "resetkeys", "~free*"]);
    recover(daemon);
    assert_eq!(daemon.queued("redis", "pending"), 1);
}

#[test]
fn a_script_waits_for_the_lanes_that_it_declares_and_for_no_other() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    occupy(&mut redis, &daemon);
    daemon.redis(&["EVAL", SET, "1", "free", "v"]).assert_value("OK");
    assert_eq!(redis.get("free").as_deref(), Some("v"));
    daemon.redis(&["EVAL", "return 7", "0"]).assert_value(7);
    let options = json!({ "deadline": "300ms" });
    let waits = daemon.redis_with(&["EVAL", SET, "1", "locked", "v"], options);
    assert_eq!(waits.status, 503, "{}", waits.body);
    let _done: String = redis.query(&["ACL", "SETUSER", "default", "allkeys"]);
    daemon.order("/admin/backends/redis/queue/replay");
    daemon.wait_until_drained("redis", LONG);
    daemon.redis(&["EVAL", SET, "1", "locked", "2"]).assert_value("OK");
    assert_eq!(redis.get("locked").as_deref(), Some("2"));
}

#[test]
fn where_scripts_are_barriers_one_waits_for_every_lane() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("backends.redis.scripts", "barrier").start();
    occupy(&mut redis, &daemon);
    for command in [&["EVAL", SET, "1", "free", "v"][..], &["EVAL", "return 7", "0"]] {
        let waits = daemon.redis_with(command, json!({ "deadline": "300ms" }));
        assert_eq!(waits.status, 503, "{}", waits.body);
    }
    assert_eq!(redis.get("free"), None);
}

#[test]
fn a_script_empties_no_more_of_the_cache_than_it_declares() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["MSET", "a", "1", "b", "2"]).assert_live();
    let source = |key: &str| {
        let read = daemon.redis(&["GET", key]);
        (read.source().to_owned(), read.value().clone())
    };
    assert_eq!((source("a").0, source("b").0), ("live".into(), "live".into()));
    daemon.redis(&["EVAL", SET, "1", "a", "3"]).assert_value("OK");
    begin_outage(&mut redis, &daemon);
    for command in [&["EVAL", "return 1", "0"][..], &["FCALL", "f", "1", "c"]] {
        assert_eq!(daemon.redis(command).status, 503);
    }
    assert_eq!(daemon.redis(&["SELEC", "1"]).status, 422);
    assert_eq!(source("a"), ("bypass".into(), Value::Null), "the script wrote it");
    assert_eq!(source("b"), ("cache".into(), json!("2")));
}

#[test]
fn a_long_push_that_no_script_can_carry_goes_live_and_is_never_queued() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut words = vec!["LPUSH", "l"];
    words.resize(8_003, "v");
    let durable = json!({ "min_ack": "durable" });
    daemon.redis_with(&words, durable.clone()).assert_value(8_001);
    begin_outage(&mut redis, &daemon);
    let refused = daemon.redis_with(&words, durable);
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.body["detail"].as_str().unwrap().contains("7,000 words"), "{}", refused.body);
    assert_eq!(daemon.queued("redis", "pending"), 0);
}
