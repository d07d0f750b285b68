//! A write whose reply is lost answers what it answered, and one whose marker is refused changes nothing.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, Reply};
use crate::support::outage::operated;
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(20);

fn durable() -> Value {
    json!({ "min_ack": "durable", "deadline": "10s" })
}

/// The reply to `words`, the first answer to which is lost.
fn first_reply_lost(words: &'static [&'static str], before: &[&str], done: &str) -> Reply {
    let redis = RedisServer::start();
    let relay = Relay::start(redis.port());
    let daemon = Daemon::with_redis(&format!("redis://127.0.0.1:{}", relay.port()))
        .set("backends.redis.timeout", "1s")
        .set("backends.redis.breaker.recovery_timeout", "200ms")
        .start();
    if !before.is_empty() {
        daemon.redis(before).assert_live();
    }
    relay.lose_answers_to(words[1]);
    let caller = daemon.client();
    let call = thread::spawn(move || caller.redis_with(words, durable()));
    let reached = || redis.query::<String>(&["EVAL", done, "0"]) == "yes";
    eventually("Redis has done it", LONG, reached);
    relay.release();
    call.join().unwrap()
}

#[test]
fn who_got_the_lock_is_told_so_though_the_first_reply_was_lost() {
    let reply = first_reply_lost(
        &["SET", "lock", "me", "NX", "PX", "30000"],
        &[],
        "return redis.call('GET', 'lock') and 'yes' or 'no'",
    );
    reply.assert_value("OK");
}

#[test]
fn what_was_taken_out_is_not_lost_with_the_reply() {
    let reply = first_reply_lost(
        &["LPOP", "jobs"],
        &["RPUSH", "jobs", "one", "two"],
        "return redis.call('LLEN', 'jobs') == 1 and 'yes' or 'no'",
    );
    reply.assert_value("one");
}

#[test]
fn a_counter_beyond_what_a_script_can_hold_is_answered_exactly() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "n", "9007199254740992"]).assert_live();
    let reply = daemon.redis_with(&["INCR", "n"], durable());
    reply.assert_value(9_007_199_254_740_993_u64);
    assert_eq!(redis.get("n").as_deref(), Some("9007199254740993"));
}

#[test]
fn an_account_that_may_not_set_markers_changes_nothing() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["PING"]).assert_live();
    let _done: String = redis.query(&["ACL", "SETUSER", "default", "-set"]);
    for _ in 0..3 {
        let refused = daemon.redis_with(&["INCR", "n"], durable());
        assert_eq!(refused.status, 422, "{}", refused.body);
        assert_ne!(refused.body["outcome_unknown"], json!(true), "{}", refused.body);
    }
    assert_eq!(redis.get("n"), None);
    assert_eq!(daemon.queued("redis", "pending"), 0);
}
