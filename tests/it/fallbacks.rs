//! What answers when the backend does not: the cache, nil if it says nothing, the queue, and a clear
//! refusal for the rest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::thread;
use std::time::Duration;

use nix::unistd::Uid;
use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon};
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::poll::Stop;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);
/// A group that no user database knows.
const CLIENTS: u32 = 2_000;

/// Keeps calls from the backend without an outage of it.
fn force_open(daemon: &Client) {
    daemon.order("/admin/circuit-breaker/redis/force-open");
}

fn read(daemon: &Client, command: &str) -> (u16, String, Value) {
    let words: Vec<&str> = command.split(' ').collect();
    let reply = daemon.redis(&words);
    (reply.status, reply.source().to_owned(), reply.value().clone())
}

#[test]
fn an_outage_is_answered_from_memory_with_the_values_age() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["MSET", "a", "1", "b", "2"]).assert_live();
    daemon.redis(&["HSET", "h", "f", "v"]).assert_live();
    for command in ["GET a", "MGET a b none", "HGETALL h", "STRLEN a"] {
        assert_eq!(read(&daemon, command).1, "live", "{command}");
    }
    begin_outage(&mut redis, &daemon);
    let cached = |command, value: Value| {
        assert_eq!(read(&daemon, command), (200, "cache".into(), value), "{command}");
    };
    cached("GET a", json!("1"));
    cached("get b", json!("2"));
    cached("MGET b a", json!(["2", "1"]));
    cached("GET none", Value::Null);
    cached("HGETALL h", json!({ "f": "v" }));
    cached("STRLEN a", json!(1));
    daemon.wait_until("the value ages", LONG, |daemon| {
        let reply = daemon.redis(&["GET", "a"]);
        reply.body["age_ms"].as_u64() >= Some(100)
    });
    let reply = daemon.redis(&["GET", "a"]);
    assert!(!reply.body["warnings"].as_array().unwrap().is_empty(), "{}", reply.body);
    let mixed = daemon.redis(&["MGET", "a", "unknown"]);
    assert_eq!((mixed.source(), mixed.value()), ("bypass", &json!(["1", null])));
}

#[test]
fn past_its_ttl_a_value_is_stale_and_past_max_stale_it_is_gone() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url())
        .set("backends.redis.cache.ttl", "1s")
        .set("backends.redis.cache.max_stale", "3s")
        .start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    force_open(&daemon);
    assert_eq!(read(&daemon, "GET k"), (200, "cache".into(), json!("v")));
    daemon.wait_until("it is stale", LONG, |daemon| {
        let reply = daemon.redis(&["GET", "k"]);
        let age = reply.body["age_ms"].as_u64().unwrap();
        assert_eq!(reply.source(), if age <= 1_000 { "cache" } else { "stale" }, "{}", reply.body);
        reply.source() == "stale"
    });
    let pickier = daemon.redis_with(&["GET", "k"], json!({ "max_stale": "500ms" }));
    assert_eq!(pickier.source(), "bypass", "{}", pickier.body);
    daemon.wait_until("it is gone", LONG, |daemon| {
        let reply = daemon.redis(&["GET", "k"]);
        let age = reply.body["age_ms"].as_u64().unwrap();
        assert!(age < 3_100, "older than max_stale: {}", reply.body);
        reply.source() == "bypass"
    });
}

#[test]
fn the_persistent_cache_survives_the_daemon_and_what_it_brings_back_is_stale() {
    let mut redis = RedisServer::start();
    let caches = tempfile::tempdir().unwrap();
    let folder = caches.path().join("made/by/the/daemon");
    let mut daemon =
        operated(&redis.url()).env("REDIS_FALLBACK_CACHE_DIR", folder.to_str().unwrap()).start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    begin_outage(&mut redis, &daemon);
    assert!(daemon.terminate().success());
    daemon.restart();
    let reply = daemon.redis(&["GET", "k"]);
    reply.assert_value("v");
    assert_eq!(reply.source(), "stale", "{}", reply.body);
    daemon.kill_9();
    daemon.restart();
    assert_eq!(read(&daemon, "GET k"), (200, "stale".into(), json!("v")));

    // Fresh again once it was read live again.
    redis.restart();
    recover(&daemon);
    daemon.redis(&["GET", "k"]).assert_live();
    begin_outage(&mut redis, &daemon);
    assert_eq!(read(&daemon, "GET k"), (200, "cache".into(), json!("v")));

    // A damaged snapshot is a cold cache and no more.
    assert!(daemon.terminate().success());
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "nothing temporary is left: {files:?}");
    let mut bytes = fs::read(&files[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&files[0], bytes).unwrap();
    daemon.restart();
    assert_eq!(read(&daemon, "GET k"), (200, "bypass".into(), Value::Null));
}

#[test]
fn a_value_overwritten_before_a_stop_does_not_come_back_with_the_cache() {
    let redis = RedisServer::start();
    let caches = tempfile::tempdir().unwrap();
    let mut daemon = operated(&redis.url())
        .set("backends.redis.cache.dir", caches.path().to_str().unwrap())
        .start();
    daemon.redis(&["SET", "k", "old"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    assert!(daemon.terminate().success());
    daemon.restart();
    daemon.redis(&["SET", "k", "new"]).assert_live();
    force_open(&daemon);
    assert_eq!(read(&daemon, "GET k").1, "bypass");
    assert!(daemon.terminate().success());
    daemon.restart();
    assert_eq!(read(&daemon, "GET k"), (200, "bypass".into(), Value::Null));
}

#[test]
fn what_one_user_was_answered_is_not_answered_to_another() {
    let redis = RedisServer::start();
    let caches = tempfile::tempdir().unwrap();
    let mut daemon = operated(&redis.url())
        .set("backends.redis.cache.dir", caches.path().to_str().unwrap())
        .start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    assert!(daemon.terminate().success());
    let url = redis.url().replace("redis://", "redis://ada:secret@");
    daemon.set("backends.redis.url", url);
    daemon.restart();
    force_open(&daemon);
    assert_eq!(read(&daemon, "GET k"), (200, "bypass".into(), Value::Null));
}

#[test]
fn a_miss_answers_nil_only_where_a_nil_says_nothing() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["PING"]).assert_live();
    force_open(&daemon);
    for (command, value) in [
        ("GET k", Value::Null),
        ("MGET k l", json!([null, null])),
        ("HGET h f", Value::Null),
        ("HMGET h f g", json!([null, null])),
        ("HGETALL h", json!({})),
    ] {
        assert_eq!(read(&daemon, command), (200, "bypass".into(), value), "{command}");
    }
    for command in ["SISMEMBER s a", "LLEN l", "EXISTS k", "TTL k", "DBSIZE", "SMEMBERS s"] {
        let reply = daemon.redis(&command.split(' ').collect::<Vec<_>>());
        assert_eq!(
            (reply.status, reply.body["code"].as_str()),
            (503, Some("breaker_open")),
            "{command}: {}",
            reply.body
        );
        assert!(reply.body["retry_after_ms"].as_u64() >= Some(1_000), "{}", reply.body);
    }
}

#[test]
fn where_a_miss_is_an_error_nothing_is_answered_nil() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("backends.redis.on_miss", "error").start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    force_open(&daemon);
    assert_eq!(read(&daemon, "GET k"), (200, "cache".into(), json!("v")));
    for command in ["GET l", "MGET k l", "HGET h f", "HMGET h f", "HGETALL h"] {
        assert_eq!(read(&daemon, command).0, 503, "{command}");
    }
}

#[test]
fn writes_are_queued_as_far_as_their_reply_and_effect_are_known() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["RPUSH", "list", "0"]).assert_live();
    daemon.redis(&["SET", "gone", "x"]).assert_live();
    begin_outage(&mut redis, &daemon);
    let mut queued = 0;
    for (command, value) in [
        ("SET a 1", json!("OK")),
        ("SETEX b 1000 2", json!("OK")),
        ("MSET c 3 d 4", json!("OK")),
        ("DEL gone", Value::Null),
        ("EXPIRE a 1000", Value::Null),
        ("HSET h f v", Value::Null),
        ("SADD s m", Value::Null),
    ] {
        let reply = daemon.redis(&command.split(' ').collect::<Vec<_>>());
        reply.assert_queued();
        assert_eq!(reply.value(), &value, "{command}");
        queued += 1;
    }
    let unknown = ["INCR n", "LPUSH list 1", "SET a 2 NX", "APPEND a x", "GETSET a 2", "RPOP list"];
    for command in unknown {
        let words: Vec<&str> = command.split(' ').collect();
        let refused = daemon.redis(&words);
        assert_eq!(refused.status, 503, "{command}: {}", refused.body);
        assert!(refused.body["detail"].as_str().unwrap().contains("min_ack"), "{}", refused.body);
    }
    for command in ["INCR n", "INCR n", "LPUSH list 1"] {
        let words: Vec<&str> = command.split(' ').collect();
        let reply = daemon.redis_with(&words, json!({ "min_ack": "durable" }));
        reply.assert_queued();
        assert_eq!(reply.value(), &Value::Null, "{command}");
        queued += 1;
    }
    assert_eq!(daemon.queued("redis", "pending"), queued);
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(
        redis.query::<Vec<String>>(&["MGET", "a", "b", "c", "d", "n"]),
        ["1", "2", "3", "4", "2"]
    );
    assert_eq!(redis.get("gone"), None);
    assert_eq!(redis.query::<Vec<String>>(&["LRANGE", "list", "0", "-1"]), ["1", "0"]);
    assert_eq!(redis.query::<String>(&["HGET", "h", "f"]), "v");
    assert!(redis.query::<bool>(&["SISMEMBER", "s", "m"]));
    assert!(redis.query::<i64>(&["TTL", "a"]) > 900);
    daemon.wait_until("no marker is left", LONG, |_| {
        redis.query::<Vec<String>>(&["KEYS", "fusebox:*"]).is_empty()
    });
}

#[test]
fn what_may_touch_anything_is_never_queued() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    begin_outage(&mut redis, &daemon);
    for words in [
        vec!["EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", "k"],
        vec!["FLUSHALL"],
        vec!["FLUSHDB"],
        vec!["SWAPDB", "0", "1"],
        vec!["PUBLISH", "c", "m"],
    ] {
        for options in [json!({}), json!({ "min_ack": "durable" })] {
            let reply = daemon.redis_with(&words, options);
            assert_eq!(reply.status, 503, "{words:?}: {}", reply.body);
        }
    }
    assert_eq!(daemon.queued("redis", "pending"), 0);
}

#[test]
fn what_may_touch_anything_waits_until_no_write_is_queued() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    begin_outage(&mut redis, &daemon);
    for key in 0..50 {
        daemon.redis(&["SET", &format!("k{key}"), "v"]).assert_queued();
    }
    redis.restart();
    let (status, body) = daemon.post("/admin/resilience/force-recovery", Value::Null);
    assert_eq!(status, 200, "{body}");
    daemon.wait_until("it is flushed", LONG, |daemon| {
        let reply = daemon.redis(&["FLUSHALL"]);
        assert!(matches!(reply.status, 200 | 503), "{}", reply.body);
        reply.status == 200
    });
    assert_eq!(redis.query::<i64>(&["DBSIZE"]), 0, "a queued write came after the flush");
    assert_eq!(daemon.queued("redis", "pending"), 0);
}

#[test]
fn what_needs_a_connection_of_its_own_is_refused_with_the_reason() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    for (words, reason) in [
        (vec!["SELECT", "1"], "SELECT is refused: the database is set in the configuration"),
        (vec!["MULTI"], "MULTI is refused: transactions need a connection of their own"),
        (vec!["SUBSCRIBE", "c"], "SUBSCRIBE is refused: a subscription needs a connection"),
        (
            vec!["BLPOP", "l", "0"],
            "BLPOP is refused: it blocks a connection that all callers share",
        ),
        (vec!["CLIENT", "REPLY", "OFF"], "CLIENT REPLY is refused: it changes the connection"),
    ] {
        let reply = daemon.redis(&words);
        assert_eq!(
            (reply.status, reply.body["code"].as_str()),
            (422, Some("unsupported_command")),
            "{}",
            reply.body
        );
        assert!(reply.body["detail"].as_str().unwrap().starts_with(reason), "{}", reply.body);
    }
    daemon.redis(&["PING"]).assert_live();
}

#[test]
fn administration_is_for_the_daemons_own_user_and_not_for_a_client() {
    assert!(Uid::effective().is_root(), "this test needs root: it becomes another user");
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("client_group", CLIENTS.to_string()).start();
    daemon.redis(&["CONFIG", "GET", "maxmemory"]).assert_value(json!({ "maxmemory": "0" }));

    // The binary and the socket, out of everybody's reach.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(daemon.folder(), open).unwrap();
    let copy = daemon.folder().join("fusebox");
    fs::copy(crate::support::daemon::FUSEBOX, &copy).unwrap();
    let as_nobody = |group: u32, arguments: &[&str]| {
        let mut command = std::process::Command::new(&copy);
        command.args(arguments).env("FUSEBOX_SOCKET", daemon.socket());
        let output = command.uid(65_534).gid(group).output().expect("fusebox runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = as_nobody(CLIENTS, &["call", "redis", "--", "SET", "k", "v"]);
    assert_eq!((code, redis.get("k").as_deref()), (Some(0), Some("v")), "{said}");
    for words in [
        ["call", "redis", "--", "CONFIG", "GET", "maxmemory"],
        ["call", "redis", "--", "DEBUG", "SLEEP", "0"],
        ["call", "redis", "--", "ACL", "SETUSER", "x"],
    ] {
        let (code, said) = as_nobody(CLIENTS, &words);
        assert_eq!(code, Some(1), "{words:?}: {said}");
        assert!(said.contains("needs admin rights"), "{words:?}: {said}");
    }
    let (code, said) = as_nobody(CLIENTS, &["offline", "redis"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("has no admin rights"), "{said}");
    // One who is in no group of ours does not even get in.
    let (code, said) = as_nobody(12_345, &["call", "redis", "--", "GET", "k"]);
    assert_ne!(code, Some(0), "{said}");
    assert_eq!(daemon.status("redis")["offline"], json!(false));
}

#[test]
fn a_queued_expiry_keeps_counting_while_it_waits() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    for key in ["short", "short_expire", "long_expire"] {
        daemon.redis(&["SET", key, "old"]).assert_live();
    }
    begin_outage(&mut redis, &daemon);
    daemon.redis(&["SET", "long", "v", "PX", "60000"]).assert_queued();
    daemon.redis(&["SETEX", "setex", "60", "v"]).assert_queued();
    daemon.redis(&["EXPIRE", "long_expire", "60"]).assert_queued();
    daemon.redis(&["SET", "short", "new", "PX", "1000"]).assert_queued();
    daemon.redis(&["EXPIRE", "short_expire", "1"]).assert_queued();
    daemon.redis(&["GET", "short"]).assert_value("new");
    daemon.wait_until("the short one expires", LONG, |daemon| {
        let read = daemon.redis(&["GET", "short"]);
        assert_eq!(read.source(), "queued", "{}", read.body);
        read.value().is_null()
    });
    daemon.wait_until("they are older than a second", LONG, |daemon| {
        let (_, page) = daemon.get("/v1/backends/redis/queue");
        let calls = page["calls"].as_array().unwrap();
        calls.iter().all(|call| call["age_ms"].as_u64().unwrap() > 1_100)
    });
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    for key in ["long", "setex", "long_expire"] {
        let left: i64 = redis.query(&["PTTL", key]);
        assert!((50_000..=58_900).contains(&left), "{key} lives for {left} ms");
    }
    assert_eq!(redis.get("short"), None, "neither the new value nor the old");
    assert_eq!(redis.get("short_expire"), None);
}

#[test]
fn a_value_overwritten_through_fusebox_is_never_answered_from_the_cache() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let stop = Stop::default();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (reader, stopped) = (daemon.client(), stop.watch());
            thread::spawn(move || {
                while !stopped.is_set() {
                    reader.redis(&["GET", "k"]);
                    reader.redis(&["MGET", "k", "other"]);
                }
            })
        })
        .collect();
    for value in 0..60 {
        let value = value.to_string();
        daemon.redis(&["SET", "k", &value]).assert_live();
        force_open(&daemon);
        let read = daemon.redis(&["GET", "k"]);
        let is = (read.source(), read.value());
        let wanted = json!(value);
        assert!(
            is == ("bypass", &Value::Null) || is == ("cache", &wanted),
            "{value}: {}",
            read.body
        );
        daemon.order("/admin/circuit-breaker/redis/reset");
    }
    drop(stop);
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn a_value_is_not_answered_from_the_cache_while_a_write_of_it_is_under_way() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "k", "old"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    redis.freeze();
    let caller = daemon.client();
    let write = thread::spawn(move || caller.try_redis(&["SET", "k", "new"], Value::Null));
    daemon.wait_until("it is on the wire", LONG, |daemon| {
        daemon.get("/v1/backends/redis").1["calls"]["in_flight"] == json!(1)
    });
    force_open(&daemon);
    let read = daemon.redis(&["GET", "k"]);
    assert_ne!(read.value(), &json!("old"), "{}", read.body);
    redis.thaw();
    write.join().unwrap().expect("an answer").assert_acknowledged();
}

#[test]
fn a_value_that_waits_to_be_replaced_is_not_cached_by_a_read_of_several_keys() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["MSET", "locked", "old", "free", "f"]).assert_live();
    begin_outage(&mut redis, &daemon);
    daemon.redis(&["SET", "locked", "new"]).assert_queued();
    redis.restart();
    let rules = ["ACL", "SETUSER", "default", "resetkeys", "~free*", "%R~*"];
    let _done: String = redis.query(&rules);
    recover(&daemon);
    let read = daemon.redis(&["MGET", "locked", "free"]);
    assert_eq!((read.source(), read.value()), ("live", &json!(["new", "f"])), "{}", read.body);
    let _done: String = redis.query(&["ACL", "SETUSER", "default", "allkeys"]);
    daemon.order("/admin/backends/redis/queue/replay");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("locked").as_deref(), Some("new"));
    force_open(&daemon);
    let read = daemon.redis(&["GET", "locked"]);
    assert_ne!(read.value(), &json!("old"), "{}", read.body);
}

#[test]
fn min_ack_applied_never_leaves_a_write_in_the_queue() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("backends.redis.timeout", "300ms").start();
    let applied = |deadline: &str| json!({ "min_ack": "applied", "deadline": deadline });
    daemon.redis_with(&["SET", "k", "1"], applied("2s")).assert_live();
    begin_outage(&mut redis, &daemon);
    let refused = daemon.redis_with(&["SET", "k", "2"], applied("2s"));
    assert_eq!(refused.status, 503, "{}", refused.body);
    // Behind a lane that is occupied, too.
    daemon.redis(&["SET", "k", "3"]).assert_queued();
    let refused = daemon.redis_with(&["SET", "k", "4"], applied("2s"));
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(daemon.queued("redis", "pending"), 1);
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("3"));

    // Nor when nothing is known of what became of it.
    redis.freeze();
    let unknown = daemon.redis_with(&["SET", "k", "5"], applied("2s"));
    assert_eq!(
        (unknown.status, &unknown.body["outcome_unknown"]),
        (504, &json!(true)),
        "{}",
        unknown.body
    );
    assert_eq!(daemon.queued("redis", "pending"), 0);
    redis.thaw();
}

#[test]
fn binary_keys_and_values_come_back_as_they_were_from_every_source() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let bytes = json!({ "base64": "AP8NCiQxDQo=" });
    let call = |command: Value| daemon.call("redis", json!({ "command": command }));
    call(json!(["SET", "live", bytes])).assert_live();
    call(json!(["GET", "live"])).assert_value(bytes.clone());
    begin_outage(&mut redis, &daemon);
    let cached = call(json!(["GET", "live"]));
    assert_eq!((cached.source(), cached.value()), ("cache", &bytes));
    call(json!(["SET", bytes, bytes])).assert_queued();
    let queued = call(json!(["GET", bytes]));
    assert_eq!((queued.source(), queued.value()), ("queued", &bytes));
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    let live = call(json!(["GET", bytes]));
    assert_eq!((live.source(), live.value()), ("live", &bytes));
}

#[test]
fn a_known_op_id_answers_with_its_calls_state_and_another_body_is_a_conflict() {
    let mut redis = RedisServer::start();
    let daemon: Daemon = operated(&redis.url()).start();
    begin_outage(&mut redis, &daemon);
    let options = json!({ "op_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "min_ack": "durable" });
    let first = daemon.redis_with(&["INCR", "n"], options.clone());
    first.assert_queued();
    assert_eq!(first.body["op_id"], options["op_id"]);
    daemon.redis_with(&["INCR", "n"], options.clone()).assert_queued();
    assert_eq!(daemon.queued("redis", "pending"), 1);
    let other = daemon.redis_with(&["INCR", "m"], options);
    assert_eq!(other.status, 409, "{}", other.body);
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("n").as_deref(), Some("1"));
}
