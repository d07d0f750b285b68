//! The seams between an attempt, its outcome and what is sent next: nothing is applied twice, nothing is reported that
//! is not so, and what never left leaves no trace.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::redis::RedisServer;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(30);
const TABLE: &str = "CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id";

fn clickhouse(url: &str) -> Builder {
    Builder::default()
        .set("backends.clickhouse.url", url)
        .set("backends.clickhouse.timeout", "3s")
        .set("backends.clickhouse.breaker.recovery_timeout", "300ms")
}

fn insert(daemon: &Client, id: u64) -> u16 {
    let call = json!({
        "query": "INSERT INTO t FORMAT JSONEachRow",
        "data": format!("{{\"id\":{id}}}\n"),
        "options": { "min_ack": "durable" },
    });
    daemon.call("clickhouse", call).status
}

fn rows(server: &ClickHouse) -> u64 {
    server.query("SELECT count() FROM t FORMAT TabSeparated").trim().parse().unwrap()
}

#[test]
fn inserts_that_never_left_are_applied_once_after_a_restart_though_nothing_protects_them() {
    for engine in [Engine::Old, Engine::Current] {
        let mut server = ClickHouse::start(engine);
        server.query(TABLE);
        let mut daemon = clickhouse(&server.url()).start();
        server.kill_9();
        for id in 0..20 {
            assert_eq!(insert(&daemon, id), 202, "{engine:?}");
        }
        // Replay has tried, and was refused the connection.
        daemon.wait_until("replay has tried", LONG, |daemon| {
            let (_, page) = daemon.get("/v1/backends/clickhouse/queue");
            let calls = page["calls"].as_array().cloned().unwrap_or_default();
            calls.iter().any(|call| !call["last_error"].is_null())
        });
        daemon.kill_9();
        daemon.restart();
        server.restart();
        daemon.wait_until_drained("clickhouse", LONG);
        assert_eq!((rows(&server), daemon.queued("clickhouse", "dead")), (20, 0), "{engine:?}");
    }
}

#[test]
fn what_was_refused_in_an_outage_leaves_the_cache_as_it_was() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    for key in ["a", "b"] {
        daemon.redis(&["SET", key, "1"]).assert_live();
        daemon.redis(&["GET", key]).assert_live();
    }
    // Up, a script touches the keys that it declares, and no others.
    daemon.redis(&["EVAL", "return 1", "0"]).assert_live();
    daemon.redis(&["EVAL", "return redis.call('INCR', KEYS[1])", "1", "b"]).assert_live();
    begin_outage(&mut redis, &daemon);
    for (command, status) in
        [("EVAL return 0", 503), ("SELEC 1", 422), ("INCR a", 503), ("EVAL x 1 a", 503)]
    {
        let words: Vec<&str> = match command {
            "EVAL return 0" => vec!["EVAL", "return 1", "0"],
            other => other.split(' ').collect(),
        };
        assert_eq!(daemon.redis(&words).status, status, "{command}");
    }
    let read = daemon.redis(&["GET", "a"]);
    assert_eq!((read.source(), read.value()), ("cache", &json!("1")), "{}", read.body);
    assert_eq!(daemon.redis(&["GET", "b"]).source(), "bypass", "the script touched it");
}

#[test]
fn an_op_id_that_was_used_for_another_call_is_a_conflict() {
    let redis = RedisServer::start();
    let daemon = Daemon::with_redis(&redis.url()).start();
    let op_id = json!({ "op_id": "01J00000000000000000000001" });
    daemon.redis_with(&["INCR", "n"], op_id.clone()).assert_value(1);
    daemon.redis_with(&["INCR", "n"], op_id.clone()).assert_value(1);
    let other = daemon.redis_with(&["INCR", "m"], op_id);
    assert_eq!((other.status, &other.body["code"]), (409, &json!("op_id_conflict")));
    assert_eq!((redis.get("n").as_deref(), redis.get("m")), (Some("1"), None));
}

/// Sends `command` while the first answer to it is lost.
fn with_the_answer_lost(command: &[&str], options: Value) -> (Value, RedisServer) {
    let redis = RedisServer::start();
    for setup in [&["SET", "lock", "me"][..], &["SADD", "seen", "id0"], &["RPUSH", "list", "head"]]
    {
        drop(redis.query::<redis::Value>(setup));
    }
    let relay = Relay::start(redis.port());
    let daemon = Daemon::with_redis(&format!("redis://127.0.0.1:{}", relay.port()))
        .set("backends.redis.timeout", "1s")
        .set("backends.redis.breaker.failure_threshold", 50)
        .start();
    daemon.redis(&["SET", "warm", "1"]).assert_live();
    let before = redis.times_called(&command.first().unwrap().to_ascii_lowercase());
    relay.lose_answers_to(command.first().unwrap());
    let client = daemon.client();
    let words: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
    let call = std::thread::spawn(move || {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        client.redis_with(&words, options).body
    });
    let name = command.first().unwrap().to_ascii_lowercase();
    daemon.wait_until("the server has acted", LONG, |_| redis.times_called(&name) > before);
    relay.release();
    (call.join().unwrap(), redis)
}

#[test]
fn a_repetition_is_not_told_as_the_first() {
    for command in [&["DEL", "lock"][..], &["SADD", "seen", "id1"], &["HSET", "h", "f", "v"]] {
        let (body, _redis) = with_the_answer_lost(command, json!({}));
        assert_eq!(
            (&body["ack"], &body["reply_lost"]),
            (&json!("applied"), &json!(true)),
            "{body}"
        );
        assert!(body["warnings"].to_string().contains("reply_lost"), "{body}");
    }
}

#[test]
fn a_reply_that_the_marker_keeps_is_the_reply() {
    let durable = || json!({ "min_ack": "durable" });
    for (command, value) in [
        (&["SET", "mutex", "me", "NX", "PX", "30000"][..], json!("OK")),
        (&["GETDEL", "lock"], json!("me")),
        (&["LPOP", "list"], json!("head")),
        (&["INCR", "counter"], json!(1)),
    ] {
        let (body, _redis) = with_the_answer_lost(command, durable());
        assert_eq!(
            (&body["ack"], &body["value"]),
            (&json!("applied"), &value),
            "{command:?}: {body}"
        );
        assert_eq!(body["reply_lost"], Value::Null, "{command:?}: {body}");
    }
}

#[test]
fn what_can_never_be_replayed_is_never_acknowledged() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let values: Vec<String> = (0..8_001).map(|n| n.to_string()).collect();
    let mut words = vec!["LPUSH", "l"];
    words.extend(values.iter().map(String::as_str));
    let durable = || json!({ "min_ack": "durable" });
    let live = daemon.redis_with(&words, durable());
    begin_outage(&mut redis, &daemon);
    let outage = daemon.redis_with(&words, durable());
    assert!(outage.status == 503 || outage.status == 422, "{}", outage.body);
    assert_eq!(daemon.queued("redis", "pending"), 0);
    redis.restart();
    recover(&daemon);
    let length: u64 = redis.query(&["LLEN", "l"]);
    assert_eq!(length, if live.status == 200 { 8_001 } else { 0 }, "{}", live.body);
}

#[test]
fn an_account_that_may_not_write_markers_changes_nothing() {
    let redis = RedisServer::start();
    drop(redis.query::<redis::Value>(&[
        "ACL",
        "SETUSER",
        "small",
        "on",
        ">secret",
        "~*",
        "&*",
        "+@read",
        "+@connection",
        "+eval",
        "+incr",
        "+client",
        "+command",
        "+info",
        "+config|get",
    ]));
    let url = format!("redis://small:secret@127.0.0.1:{}", redis.port());
    let daemon = Daemon::with_redis(&url).start();
    let durable = || json!({ "min_ack": "durable" });
    let refused = daemon.redis_with(&["INCR", "n"], durable());
    assert!(refused.status == 422, "{}", refused.body);
    assert_eq!(redis.get("n"), None, "it said that it was refused");
    assert_eq!(refused.body["outcome_unknown"], Value::Null, "{}", refused.body);
}
