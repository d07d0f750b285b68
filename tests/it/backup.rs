//! A copy of a running daemon's state directory, restored: docs/backup.md, step by step.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::outage::operated;
use crate::support::poll::{Stop, stays};
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);

/// Runs the command line on a state directory.
fn offline(daemon: &Daemon, arguments: &[&str], dir: &Path) -> Output {
    let mut command = daemon.cli(arguments);
    command.arg("--state-dir").arg(dir).arg("--config").arg(daemon.configuration());
    command.output().expect("fusebox runs")
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(copied.success());
}

/// The keys that the calls of an export set.
fn keys(export: &Output) -> BTreeSet<String> {
    assert!(export.status.success(), "{export:?}");
    let lines = String::from_utf8_lossy(&export.stdout).into_owned();
    let calls = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    calls.map(|call| call["call"][1].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_copy_of_a_running_daemon_has_all_that_was_acknowledged_and_replays_once_accepted() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    let place = tempfile::tempdir().unwrap();
    let backup = place.path().join("backup");
    let acked = AtomicU32::new(0);
    let stop = Stop::default();
    let wanted = thread::scope(|scope| {
        // Ended by a failed test as well.
        let stop = stop;
        let (client, watch, acked) = (daemon.client(), stop.watch(), &acked);
        scope.spawn(move || {
            for number in 0.. {
                client.redis(&["SET", &format!("k{number}"), "v"]).assert_queued();
                acked.store(number + 1, Ordering::Release);
                if watch.is_set() {
                    break;
                }
            }
        });
        daemon.wait_until("some wait", LONG, |_| acked.load(Ordering::Acquire) >= 100);
        let mut torn = 0;
        let wanted = loop {
            let wanted = acked.load(Ordering::Acquire);
            copy(&daemon.state_dir(), &backup);
            if offline(&daemon, &["queue", "check"], &backup).status.success() {
                break wanted;
            }
            torn += 1;
            assert!(torn < 50, "every copy was torn");
            fs::remove_dir_all(&backup).unwrap();
        };
        println!("{torn} copies were torn, {wanted} calls acknowledged");
        drop(stop);
        wanted
    });
    let in_backup = keys(&offline(&daemon, &["queue", "export"], &backup));
    assert!((0..wanted).all(|key| in_backup.contains(&format!("k{key}"))), "{in_backup:?}");

    // The disk dies, and the copy takes its place.
    daemon.kill_9();
    fs::remove_dir_all(daemon.state_dir()).unwrap();
    copy(&backup, &daemon.state_dir());
    daemon.restart();
    daemon.order("/admin/backends/redis/online");
    let alerts = daemon.get("/v1/backends/redis").1["alerts"].to_string();
    assert!(alerts.contains("this state directory is a copy"), "{alerts}");
    daemon.redis(&["SET", "live", "v"]).assert_live();
    stays("nothing is replayed", Duration::from_millis(500), || redis.get("k0").is_none());
    let accepted = daemon.fusebox(&["backend", "accept-clone"]);
    assert!(accepted.status.success(), "{accepted:?}");
    daemon.wait_until_drained("redis", LONG);
    assert!((0..wanted).all(|key| redis.get(&format!("k{key}")).is_some()));
}
