//! The persisted queue after a crash, looked at without a daemon and then with one: what is whole is
//! reported as whole, damage is found, said loudly, and never stops the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::outage::operated;
use crate::support::poll::{Stop, eventually};
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);

/// Every file below `folder` with a digest of what it holds.
fn digests(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(digests(&path));
            found.insert(path, 0);
        } else {
            let mut hasher = DefaultHasher::new();
            hasher.write(&fs::read(&path).expect("a file"));
            found.insert(path, hasher.finish());
        }
    }
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `fusebox queue …` on the daemon's state directory and fails the test if that changes anything.
#[track_caller]
fn offline(daemon: &Daemon, arguments: &[&str]) -> Output {
    let before = digests(&daemon.state_dir());
    let dir = daemon.state_dir();
    let output = daemon
        .cli(&["queue", "--state-dir", dir.to_str().unwrap()])
        .args(arguments)
        .env_remove("FUSEBOX_SOCKET")
        .output()
        .expect("fusebox runs");
    assert_eq!(digests(&dir), before, "{arguments:?} changes something");
    output
}

/// The verdict on the backend `redis`, and the exit code that goes with it.
#[track_caller]
fn check(daemon: &Daemon) -> (Value, Option<i32>) {
    let output = offline(daemon, &["check", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let said = offline(daemon, &["check"]);
    assert_eq!(said.status.code(), output.status.code());
    let verdict = report["backends"]["redis"]["verdict"].as_str().expect("a verdict");
    assert!(text(&said.stdout).contains(verdict), "{said:?}");
    (report["backends"]["redis"].clone(), output.status.code())
}

fn lines(output: &Output) -> Vec<Value> {
    let text = text(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

/// A daemon that was killed while it wrote, and the writes that it had acknowledged.
fn killed_in_mid_write(redis: &RedisServer) -> (Daemon, BTreeSet<String>) {
    let mut daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    let stop = Stop::default();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (caller, stopped) = (daemon.client(), stop.watch());
            thread::spawn(move || {
                let mut acknowledged = Vec::new();
                // Small calls and some that are stored in chunks.
                for (number, size) in (0..).zip([10, 2_000, 100, 9_000].into_iter().cycle()) {
                    let (key, value) = (format!("k{writer}:{number}"), "v".repeat(size));
                    match caller.try_redis(&["SET", &key, &value], Value::Null) {
                        Ok(reply) => {
                            reply.assert_queued();
                            acknowledged.push(key);
                        }
                        Err(_) => break,
                    }
                    if stopped.is_set() {
                        break;
                    }
                }
                acknowledged
            })
        })
        .collect();
    eventually("enough are queued", LONG, || daemon.queued("redis", "pending") > 200);
    daemon.kill_9();
    drop(stop);
    let acknowledged = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    (daemon, acknowledged)
}

#[test]
fn a_store_killed_in_mid_write_is_whole_and_exports_every_acknowledged_call() {
    let redis = RedisServer::start();
    let (mut daemon, acknowledged) = killed_in_mid_write(&redis);
    let (report, code) = check(&daemon);
    assert_eq!((&report["verdict"], code), (&json!("whole"), Some(0)), "{report}");
    assert_eq!(report["findings"], json!([]));
    let pending = report["counts"]["pending"].as_u64().unwrap();
    assert!(pending >= acknowledged.len() as u64, "{report}");

    let exported = offline(&daemon, &["export"]);
    assert_eq!(exported.status.code(), Some(0), "{}", text(&exported.stderr));
    let calls = lines(&exported);
    assert_eq!(calls.len() as u64, pending);
    let keys: BTreeSet<String> =
        calls.iter().map(|call| call["call"][1].as_str().unwrap().to_owned()).collect();
    assert_eq!(acknowledged.difference(&keys).next(), None, "an acknowledged write is missing");
    for call in &calls {
        assert_eq!((&call["backend"], &call["state"]), (&json!("redis"), &json!("pending")));
        assert_eq!(call["call"][0], "SET");
        assert_eq!(call["op_id"].as_str().map(str::len), Some(26));
    }

    daemon.restart();
    assert_eq!(daemon.queued("redis", "pending"), pending);
    let (_, view) = daemon.get("/v1/backends/redis");
    assert_eq!(view["alerts"], json!([]), "nothing is wrong with it");
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.query::<u64>(&["DBSIZE"]), pending);
}

#[test]
fn a_store_that_a_daemon_has_open_can_be_looked_at() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    for key in ["a", "b"] {
        daemon.redis(&["SET", key, "v"]).assert_queued();
    }
    let (report, code) = check(&daemon);
    assert_eq!((&report["verdict"], code), (&json!("whole"), Some(0)), "{report}");
    assert_eq!((&report["live"], &report["counts"]["pending"]), (&json!(true), &json!(2)));
    assert_eq!(lines(&offline(&daemon, &["export"])).len(), 2);
    assert_eq!(lines(&offline(&daemon, &["export", "--backend", "redis"])).len(), 2);
}

#[test]
fn an_export_tells_dead_letters_from_calls_that_wait() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let _pushed: i64 = redis.query(&["RPUSH", "list", "x"]);
    redis.kill_9();
    daemon.redis(&["HSET", "list", "f", "v"]).assert_queued();
    redis.restart();
    daemon.order("/admin/resilience/force-recovery");
    eventually("it is a dead letter", LONG, || daemon.queued("redis", "dead") == 1);
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    let calls = lines(&offline(&daemon, &["export"]));
    let states: Vec<&str> = calls.iter().map(|call| call["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["dead", "pending"]);
    assert!(calls[0]["dead"]["why"].as_str().unwrap().contains("WRONGTYPE"), "{}", calls[0]);
}

/// sled's log.
fn log_file(daemon: &Daemon) -> PathBuf {
    daemon.state_dir().join("backends/redis/db/db")
}

/// Does `damage` to the log of a store whose daemon was killed, which leaves calls in it or not; then
/// checks the store, starts the daemon on it, and looks at what it says and does.
#[track_caller]
fn damaged(leaves_calls: bool, damage: impl FnOnce(&Path)) {
    let redis = RedisServer::start();
    let (mut daemon, acknowledged) = killed_in_mid_write(&redis);
    damage(&log_file(&daemon));
    let (report, code) = check(&daemon);
    assert_eq!((&report["verdict"], code), (&json!("damaged"), Some(5)), "{report}");
    assert_ne!(report["findings"], json!([]));

    daemon.restart();
    let (_, view) = daemon.get("/v1/backends/redis");
    let alerts = view["alerts"].to_string();
    assert!(alerts.contains("damaged"), "it is said loudly: {alerts}");
    let status = text(&daemon.fusebox(&["status"]).stdout);
    assert!(status.contains("the store was found damaged"), "{status}");
    let waiting = daemon.queued("redis", "pending");
    assert!(waiting <= acknowledged.len() as u64 + 4, "nothing comes out of nowhere: {waiting}");

    // It serves: live, in an outage, and over the next crash.
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    daemon.wait_until("the damage alone makes it CRITICAL", LONG, |daemon| {
        daemon.get("/health").1["state"] == "CRITICAL"
    });
    daemon.redis(&["SET", "live", "v"]).assert_live();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "after", "v"]).assert_queued();
    daemon.kill_9();
    let (report, code) = check(&daemon);
    assert_eq!((&report["verdict"], code), (&json!("whole"), Some(0)), "{report}");
    let aside: Vec<String> = report["set_aside"]
        .as_array()
        .unwrap()
        .iter()
        .map(|folder| folder.as_str().unwrap().to_owned())
        .collect();
    daemon.restart();
    daemon.redis(&["GET", "after"]).assert_value("v");

    // What was there before is beside it, and can be read as far as it is whole.
    assert_eq!(aside.len(), 1, "the damaged store is kept: {report}");
    let folder = daemon.state_dir().join("backends/redis").join(&aside[0]);
    let before = digests(&folder);
    let repaired = daemon.cli(&["queue", "repair", folder.to_str().unwrap()]).output().unwrap();
    assert_eq!(digests(&folder), before, "repair changes nothing");
    assert!(matches!(repaired.status.code(), Some(0 | 5)), "{}", text(&repaired.stderr));
    let salvaged = lines(&repaired);
    assert_eq!(!salvaged.is_empty(), leaves_calls, "{}", text(&repaired.stderr));
    let all = offline(&daemon, &["repair"]);
    assert_eq!(all.status.code(), repaired.status.code());
    let of_all = lines(&all);
    assert_eq!(of_all.len(), salvaged.len());
    assert!(of_all.iter().all(|call| call["backend"] == "redis"), "{of_all:?}");
    for call in &salvaged {
        assert!(call["call"][1].as_str().unwrap().starts_with('k'), "{call}");
        assert_eq!(call["state"], "salvaged");
    }
}

#[test]
fn a_truncated_log_is_found_and_the_daemon_serves_on() {
    damaged(true, |log| {
        let file = File::options().write(true).open(log).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length / 2).unwrap();
    });
}

#[test]
fn flipped_bits_are_found_and_the_daemon_serves_on() {
    // Much of the log is dead, and one place may well be: a bit in every page, but for the first quarter.
    damaged(true, |log| {
        let mut bytes = fs::read(log).unwrap();
        let intact = bytes.len() / 4;
        for byte in bytes.iter_mut().skip(intact).step_by(4_096) {
            *byte ^= 0x55;
        }
        fs::write(log, bytes).unwrap();
    });
}

#[test]
fn an_empty_log_is_found_and_the_daemon_serves_on() {
    damaged(false, |log| drop(File::create(log).unwrap()));
}

#[test]
fn a_store_without_its_log_is_found() {
    let redis = RedisServer::start();
    let (mut daemon, _) = killed_in_mid_write(&redis);
    fs::remove_dir_all(log_file(&daemon).parent().unwrap()).unwrap();
    let (report, code) = check(&daemon);
    assert_eq!((&report["verdict"], code), (&json!("damaged"), Some(5)), "{report}");
    daemon.restart();
    let (_, view) = daemon.get("/v1/backends/redis");
    assert!(view["alerts"].to_string().contains("damaged"), "{}", view["alerts"]);
}

#[test]
fn a_directory_without_stores_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let output = daemon
        .cli(&["queue", "check", "--state-dir", folder.path().to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("cannot read"), "{output:?}");
    // A store of a backend that has never been written to.
    let (report, code) = check(&daemon);
    assert!(matches!(report["verdict"].as_str(), Some("whole" | "empty")), "{report}");
    assert_eq!(code, Some(0));
}
