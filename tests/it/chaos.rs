//! Faults on purpose, with real servers: each kind through the JSON API and through a door, what ends them, and what no
//! fault may break.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;

mod clickhouse;
mod firestore;
mod proof;

const LONG: Duration = Duration::from_secs(30);

/// A daemon whose breaker stays closed whatever happens, so that a fault alone decides.
fn patient(url: &str) -> Builder {
    Daemon::with_redis(url)
        .set("health.interval", "1h")
        .set("backends.redis.timeout", "1s")
        .set("backends.redis.breaker.failure_threshold", 100_000)
}

#[track_caller]
fn set(daemon: &Client, backend: &str, order: Value) -> Value {
    let (status, answer) = daemon.put(&format!("/admin/backends/{backend}/chaos"), order);
    assert_eq!(status, 200, "{answer}");
    answer
}

/// Sets one fault that strikes everything of its class.
#[track_caller]
fn always(daemon: &Client, backend: &str, mut fault: Value) {
    fault["rate"] = json!(1.0);
    set(daemon, backend, json!({ "faults": [fault], "force": true, "seed": 1 }));
}

#[track_caller]
fn clear(daemon: &Client, backend: &str) {
    let (status, answer) = daemon.delete(&format!("/admin/backends/{backend}/chaos"));
    assert_eq!((status, &answer["cleared"]), (200, &json!(true)), "{answer}");
}

fn chaos_of(daemon: &Client, backend: &str) -> Value {
    daemon.get(&format!("/admin/backends/{backend}/chaos")).1["chaos"].clone()
}

fn hits(daemon: &Client, backend: &str) -> u64 {
    chaos_of(daemon, backend)["faults"][0]["hits"].as_u64().unwrap_or_default()
}

fn door_of(daemon: &Daemon) -> PathBuf {
    daemon.socket().with_file_name("redis.sock")
}

fn client_of(daemon: &Daemon) -> redis::Connection {
    let client = redis::Client::open(format!("unix://{}", door_of(daemon).display()));
    client.expect("an address").get_connection().expect("a connection")
}

#[test]
fn each_kind_strikes_json_calls_of_redis_as_it_says() {
    let redis = RedisServer::start();
    let daemon = patient(&redis.url()).start();
    daemon.redis(&["SET", "n", "0"]).assert_live();
    for kind in ["error", "reset_before", "stale_connection"] {
        always(&daemon, "redis", json!({ "kind": kind, "class": "write" }));
        let before = redis.times_called("set");
        let stored = daemon.redis(&["SET", kind, "1"]);
        stored.assert_queued();
        assert!(hits(&daemon, "redis") > 0, "{kind}");
        clear(&daemon, "redis");
        daemon.wait_until_drained("redis", LONG);
        assert_eq!(
            (redis.get(kind).as_deref(), redis.times_called("set")),
            (Some("1"), before + 1)
        );
    }
    always(&daemon, "redis", json!({ "kind": "reject", "code": "WRONGTYPE" }));
    let refused = daemon.redis(&["GET", "n"]);
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (422, &json!("WRONGTYPE")),
        "{}",
        refused.body
    );
    for (kind, expected) in [("timeout", "1"), ("reset_after", "2")] {
        always(&daemon, "redis", json!({ "kind": kind, "class": "write" }));
        let fences = redis.times_called("client|list");
        let began = Instant::now();
        let unknown = daemon.redis(&["INCR", "n"]);
        assert_eq!(
            (unknown.status, &unknown.body["outcome_unknown"]),
            (504, &json!(true)),
            "{kind}"
        );
        assert_eq!(redis.get("n").as_deref(), Some(expected), "{kind}: applied, and once");
        assert_eq!(began.elapsed() >= Duration::from_secs(1), kind == "timeout", "{kind}");
        clear(&daemon, "redis");
        daemon.redis(&["SET", "next", kind]).assert_live();
        assert_eq!(
            redis.times_called("client|list") > fences,
            kind == "reset_after",
            "{kind}: the fence"
        );
    }
    for kind in ["latency", "slow_drip"] {
        always(&daemon, "redis", json!({ "kind": kind, "latency": "300ms" }));
        let began = Instant::now();
        daemon.redis(&["GET", "n"]).assert_value("2");
        assert!(began.elapsed() >= Duration::from_millis(300), "{kind}");
        clear(&daemon, "redis");
    }
    assert_eq!(daemon.breaker("redis"), "CLOSED");
    for kind in ["error", "timeout", "reset_after", "latency"] {
        assert!(
            daemon.metric("chaos_injected_total", &[("backend", "redis"), ("kind", kind)]) > 0.0
        );
    }
}

#[test]
fn each_kind_strikes_what_comes_through_the_redis_door() {
    let redis = RedisServer::start();
    let daemon = patient(&redis.url()).start();
    let mut client = client_of(&daemon);
    redis::cmd("SET").arg(&["n", "0"]).exec(&mut client).unwrap();
    always(&daemon, "redis", json!({ "kind": "error" }));
    let stored: String = redis::cmd("SET").arg(&["a", "1"]).query(&mut client).unwrap();
    assert_eq!(stored, "OK", "it is queued");
    let error = redis::cmd("INCR").arg("n").exec(&mut client).unwrap_err();
    assert!(error.to_string().contains("chaos") || error.code() == Some("LOADING"), "{error}");
    assert_eq!(redis.get("n").as_deref(), Some("0"), "not executed");
    always(&daemon, "redis", json!({ "kind": "reject", "code": "WRONGTYPE" }));
    let error = redis::cmd("GET").arg("n").exec(&mut client).unwrap_err();
    assert_eq!(error.code(), Some("WRONGTYPE"), "{error}");
    for (kind, expected) in [("timeout", "1"), ("reset_after", "2")] {
        always(&daemon, "redis", json!({ "kind": kind, "class": "write" }));
        let fences = redis.times_called("client|list");
        let error = redis::cmd("INCR").arg("n").exec(&mut client).unwrap_err();
        assert!(error.to_string().contains("UNKNOWN"), "{kind}: {error}");
        assert_eq!(redis.get("n").as_deref(), Some(expected), "{kind}: applied, and once");
        clear(&daemon, "redis");
        eventually("the door goes on", LONG, || {
            redis::cmd("SET").arg(&["next", kind]).exec(&mut client).is_ok()
        });
        let is_fenced = redis.times_called("client|list") > fences;
        assert!(is_fenced || kind == "timeout", "{kind}: the fence");
    }
    always(&daemon, "redis", json!({ "kind": "latency", "latency": "300ms" }));
    let began = Instant::now();
    assert_eq!(redis::cmd("GET").arg("n").query::<String>(&mut client).unwrap(), "2");
    assert!(began.elapsed() >= Duration::from_millis(300));
    // A whole pipeline keeps its order, each command of which is struck.
    let values: Vec<String> = redis::pipe()
        .cmd("SET")
        .arg(&["p", "1"])
        .ignore()
        .cmd("GET")
        .arg("p")
        .cmd("SET")
        .arg(&["p", "2"])
        .ignore()
        .cmd("GET")
        .arg("p")
        .query(&mut client)
        .unwrap();
    assert_eq!(values, ["1", "2"]);
    // What belongs to a connection of its own meets nothing.
    let before = hits(&daemon, "redis");
    let (first, second): (String, String) =
        redis::pipe().atomic().cmd("GET").arg("p").cmd("GET").arg("n").query(&mut client).unwrap();
    assert_eq!((first.as_str(), second.as_str(), hits(&daemon, "redis")), ("2", "2", before));
}

#[test]
fn chaos_is_told_everywhere_and_gone_after_a_kill() {
    let redis = RedisServer::start();
    let mut daemon = patient(&redis.url()).start();
    let order = json!({
        "faults": [{ "kind": "error", "rate": 0.25, "class": "read", "code": "BUSY" }],
        "for": "10m", "seed": 42, "reason": "game day",
    });
    let answer = set(&daemon, "redis", order);
    assert!(answer["until"].is_string(), "{answer}");
    daemon.wait_until("health tells of it", LONG, |daemon| {
        let (_, health) = daemon.get("/health");
        let reasons = health["reasons"].to_string();
        reasons.contains("redis: chaos until")
            && reasons.contains("game day")
            && health["backends"]["redis"]["chaos"] == true
    });
    let status = daemon.fusebox(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("redis: chaos until"));
    let explained = daemon.fusebox(&["explain", "redis"]);
    assert!(
        String::from_utf8_lossy(&explained.stdout).contains("Faults on purpose are set for it")
    );
    let listed = daemon.fusebox(&["chaos", "ls"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("seed 42 (game day)") && listed.contains("BUSY"), "{listed}");
    assert!(daemon.metric("chaos_active", &[("backend", "redis")]) > 0.0);
    assert_eq!(daemon.get("/v1/backends/redis").1["chaos"]["seed"], 42);
    daemon.kill_9();
    daemon.restart();
    assert_eq!(chaos_of(&daemon, "redis"), Value::Null);
    assert!(daemon.metric("chaos_active", &[("backend", "redis")]) < 1.0);
    let past = daemon.fusebox(&["events", "--limit", "50"]);
    assert!(String::from_utf8_lossy(&past.stdout).contains("chaos is set by"));
}

#[test]
fn the_command_line_sets_lists_and_clears_and_is_told_what_is_wrong() {
    let redis = RedisServer::start();
    let daemon = patient(&redis.url()).start();
    let run = |arguments: &[&str]| {
        let output = daemon.fusebox(arguments);
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    assert_eq!(run(&["chaos", "ls"]), (Some(0), "no chaos is set\n".to_owned()));
    let set = ["chaos", "set", "redis", "--kind", "latency", "--rate", "0.5", "--latency", "20ms"];
    let (code, said) = run(&set);
    assert!(code == Some(0) && said.starts_with("redis: chaos until "), "{said}");
    assert_eq!(chaos_of(&daemon, "redis")["faults"][0]["latency"], "20ms");
    assert_eq!(
        run(&["chaos", "clear", "redis"]),
        (Some(0), "redis: chaos is cleared\n".to_owned())
    );
    assert_eq!(
        run(&["chaos", "clear", "redis"]),
        (Some(0), "redis: there was no chaos\n".to_owned())
    );
    let (code, said) = run(&["chaos", "set", "redis", "--kind", "error", "--rate", "0.9"]);
    assert!(
        code == Some(1) && said.contains("faults[0].rate: it must be a share above 0"),
        "{said}"
    );
    let (code, said) =
        run(&["chaos", "set", "redis", "--kind", "error", "--rate", "0.1", "--code", "NOPE"]);
    assert!(
        code == Some(1) && said.contains("\"NOPE\" is not a code with which a redis says"),
        "{said}"
    );
    let (code, said) = run(&["chaos", "set", "nobody", "--kind", "error", "--rate", "0.1"]);
    assert!(code != Some(0) && said.contains("nobody"), "{said}");
}

#[test]
fn an_order_with_a_value_of_the_wrong_type_is_refused_by_its_key() {
    let redis = RedisServer::start();
    let daemon = patient(&redis.url()).start();
    let fault = json!({ "kind": "error", "rate": 0.1 });
    for (order, told) in [
        (
            json!({ "faults": [fault, { "kind": "error", "rate": "half" }] }),
            "faults[1].rate: invalid type: string \"half\"",
        ),
        (
            json!({ "faults": [fault], "max_active": "ten" }),
            "max_active: invalid type: string \"ten\"",
        ),
    ] {
        let (status, answer) = daemon.put("/admin/backends/redis/chaos", order);
        assert_eq!((status, &answer["code"]), (400, &json!("malformed")), "{answer}");
        assert!(answer["detail"].as_str().unwrap_or_default().starts_with(told), "{answer}");
    }
    assert_eq!(chaos_of(&daemon, "redis"), Value::Null);
}

#[test]
fn a_daemon_that_may_not_have_chaos_has_none() {
    let redis = RedisServer::start();
    let daemon = patient(&redis.url()).set("chaos.enabled", false).start();
    let order = json!({ "faults": [{ "kind": "error", "rate": 0.1 }] });
    let (status, answer) = daemon.put("/admin/backends/redis/chaos", order);
    assert_eq!(status, 403, "{answer}");
    assert!(answer["detail"].as_str().unwrap_or_default().contains("chaos.enabled = false"));
}

#[test]
fn it_is_over_within_a_second_of_critical_and_within_its_time() {
    let redis = RedisServer::start();
    // Alone, it is fewer than half of the backends once its breaker opens.
    let daemon = Daemon::with_redis(&redis.url()).set("health.interval", "1h").start();
    let order = json!({ "faults": [{ "kind": "error", "rate": 0.1 }], "for": "2s" });
    set(&daemon, "redis", order.clone());
    let began = Instant::now();
    // The daemon is busy meanwhile.
    while chaos_of(&daemon, "redis") != Value::Null {
        daemon.redis(&["GET", "a"]);
        assert!(began.elapsed() < Duration::from_secs(4), "its time is over");
    }
    set(&daemon, "redis", order);
    let (status, answer) = daemon.post("/admin/circuit-breaker/redis/force-open", Value::Null);
    assert_eq!(status, 200, "{answer}");
    let began = Instant::now();
    daemon.wait_until("it is aborted", LONG, |daemon| chaos_of(daemon, "redis") == Value::Null);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let again = json!({ "faults": [{ "kind": "error", "rate": 0.1 }] });
    let (status, answer) = daemon.put("/admin/backends/redis/chaos", again);
    assert_eq!(status, 409, "{answer}");
    assert!(daemon.log_text().contains("chaos was aborted"));
}
