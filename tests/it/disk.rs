//! A disk that is full, and one that fails a sync: what was acknowledged stays, what is live stays live,
//! and it heals without a restart.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::unistd::Uid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::daemon::{Client, Reply};
use crate::support::outage::operated;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);

/// A small file system of its own; unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        Self::of("96M")
    }

    fn of(size: &str) -> Self {
        assert!(Uid::effective().is_root(), "this test needs root: it mounts a small tmpfs");
        let folder = tempfile::Builder::new().prefix("fusebox-disk-").tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "fusebox-test"])
            .arg(folder.path())
            .output()
            .expect("mount runs");
        let said = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "this test needs to mount a small tmpfs: {said}");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> std::path::PathBuf {
        self.path().join("filler")
    }

    /// Takes up all space but `left` bytes.
    fn fill(&self, left: u64) {
        let stat =
            Command::new("stat").args(["-f", "-c", "%a %S"]).arg(self.path()).output().unwrap();
        let text = String::from_utf8(stat.stdout).unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>().unwrap());
        let free = numbers.next().unwrap() * numbers.next().unwrap();
        let mut filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        let block = vec![0; 1 << 20];
        let mut wanted = free.saturating_sub(left);
        while wanted > 0 {
            let length = usize::try_from(wanted.min(1 << 20)).unwrap();
            if filler.write_all(&block[..length]).is_err() {
                return;
            }
            wanted -= length as u64;
        }
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A daemon that is being killed may still have it open.
        Command::new("umount").arg("--lazy").arg(self.path()).status().ok();
    }
}

#[track_caller]
fn assert_refused(reply: &Reply) {
    assert_eq!(
        (reply.status, &reply.body["code"]),
        (507, &json!("store_refuses")),
        "{}",
        reply.body
    );
}

fn alerts(client: &Client) -> Value {
    client.get("/v1/backends/redis").1["alerts"].take()
}

/// Makes Redis deny the daemon one key, so that its lane stays occupied while the backend is well.
fn occupy_a_lane(redis: &RedisServer, daemon: &Client) {
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "locked", "1"]).assert_queued();
    let _done: String = redis.query(&["ACL", "SETUSER", "default", "resetkeys", "~free*"]);
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until("it is tried in vain", LONG, |daemon| {
        let (_, page) = daemon.get("/v1/backends/redis/queue");
        page["calls"][0]["attempts"].as_u64() > Some(0)
    });
}

#[test]
fn below_the_floor_queued_writes_are_refused_and_live_ones_are_not_until_there_is_room() {
    let disk = SmallDisk::mount();
    let redis = RedisServer::start();
    let daemon = operated(&redis.url())
        .set("backends.redis.queue.disk_floor", "32MiB")
        .state_dir(&disk.path().join("state"))
        .start();
    occupy_a_lane(&redis, &daemon);
    disk.fill(20 << 20);
    daemon.wait_until("a write to an occupied lane is refused", LONG, |daemon| {
        let reply = daemon.redis(&["SET", "locked", "2"]);
        if reply.status == 202 {
            return false;
        }
        assert_refused(&reply);
        assert_eq!(reply.body["outcome_unknown"], json!(false), "{}", reply.body);
        true
    });
    daemon.redis(&["SET", "free", "1"]).assert_live();
    daemon.redis(&["INCR", "free:n"]).assert_live();
    daemon.wait_until("it is told", LONG, |daemon| {
        let (status, health) = daemon.get("/health");
        status == 503 && health["reasons"].to_string().contains("the store of redis refuses writes")
    });
    assert!(alerts(&daemon).to_string().contains("refuses writes"), "{}", alerts(&daemon));
    daemon.order("/admin/backends/redis/offline");
    assert_refused(&daemon.redis(&["SET", "free", "2"]));

    disk.free();
    daemon.wait_until("it takes writes again", LONG, |daemon| {
        daemon.redis(&["SET", "free", "3"]).status == 202
    });
    daemon.wait_until("the alert is lifted", LONG, |daemon| {
        alerts(daemon) == json!([]) || { !alerts(daemon).to_string().contains("refuses") }
    });
    let _done: String = redis.query(&["ACL", "SETUSER", "default", "allkeys"]);
    daemon.order("/admin/backends/redis/online");
    daemon.order("/admin/backends/redis/queue/replay");
    daemon.wait_until_drained("redis", Duration::from_secs(60));
    assert_eq!(redis.get("free").as_deref(), Some("3"));
}

#[test]
fn a_queue_drains_though_the_disk_is_full_to_the_last_byte() {
    let disk = SmallDisk::mount();
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url())
        .set("backends.redis.queue.disk_floor", "16MiB")
        .state_dir(&disk.path().join("state"))
        .start();
    daemon.order("/admin/backends/redis/offline");
    for key in 0..300 {
        daemon.redis(&["SET", &format!("k{key}"), &"v".repeat(1_000)]).assert_queued();
    }
    disk.fill(0);
    daemon.wait_until("appends are refused", LONG, |daemon| {
        daemon.redis(&["SET", "more", "v"]).status == 507
    });
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.query::<u64>(&["DBSIZE"]), 300);
    daemon.redis(&["SET", "live", "v"]).assert_live();

    // A start on the full disk: up, live, and healed once there is room.
    daemon.restart();
    daemon.wait_until("live writes go through", LONG, |daemon| {
        daemon.redis(&["SET", "live", "w"]).status == 200
    });
    disk.free();
    daemon.order("/admin/backends/redis/offline");
    daemon.wait_until("it takes writes again", LONG, |daemon| {
        daemon.redis(&["SET", "healed", "v"]).status == 202
    });
    daemon.kill_9();
    daemon.restart();
    daemon.redis(&["GET", "healed"]).assert_value("v");
    assert!(!alerts(&daemon).to_string().contains("damaged"), "{}", alerts(&daemon));
}

/// Queues writes until one is refused for lack of space; how many were taken.
fn queue_until_full(daemon: &Client) -> u64 {
    let value = "v".repeat(40_000);
    let mut taken = 0;
    loop {
        let reply = daemon.redis(&["SET", &format!("k{taken}"), &value]);
        if reply.status != 202 {
            assert_refused(&reply);
            return taken;
        }
        taken += 1;
    }
}

#[test]
fn a_disk_of_48_megabytes_that_was_full_takes_as_much_again_once_it_is_drained() {
    for format in [1, 2] {
        let disk = SmallDisk::of("48M");
        let redis = RedisServer::start();
        let daemon = operated(&redis.url())
            .set("backends.redis.queue.disk_floor", "20MiB")
            .set("backends.redis.queue.format", format)
            .state_dir(&disk.path().join("state"))
            .start();
        daemon.order("/admin/backends/redis/offline");
        let first = queue_until_full(&daemon);
        assert!(first > 50, "{first}");
        daemon.order("/admin/backends/redis/online");
        daemon.wait_until_drained("redis", LONG);
        assert_eq!(redis.query::<u64>(&["DBSIZE"]), first);
        daemon.order("/admin/backends/redis/offline");
        let value = "w".repeat(40_000);
        for key in 0..first / 2 {
            daemon.wait_until("it takes as much again", LONG, |daemon| {
                daemon.redis(&["SET", &format!("k{key}"), &value]).status == 202
            });
        }
    }
}

#[test]
fn a_failed_sync_is_told_as_unknown_and_the_store_is_rebuilt() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).fail_sync(12).start();
    daemon.order("/admin/backends/redis/offline");
    let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
    let mut number = 0_u32;
    daemon.wait_until("it fails and serves again", LONG, |daemon| {
        number += 1;
        let reply = daemon.redis(&["SET", &format!("k{number}"), &number.to_string()]);
        match reply.status {
            202 => acknowledged.push(number),
            507 if reply.body["outcome_unknown"] == json!(true) => {
                assert_eq!(reply.body["op_id"].as_str().map(str::len), Some(26));
                unknown.push(number);
            }
            507 => {}
            _ => panic!("{}", reply.body),
        }
        !unknown.is_empty() && acknowledged.last() > unknown.first()
    });
    assert_eq!(unknown.len(), 1, "one caller, one group");
    let log = daemon.log_text();
    assert!(log.contains("the store was rebuilt"), "it is told");

    // What was acknowledged before and after it survives what the failed sync left behind.
    for _ in 0..20 {
        number += 1;
        daemon.redis(&["SET", &format!("k{number}"), &number.to_string()]).assert_queued();
        acknowledged.push(number);
    }
    daemon.kill_9();
    daemon.restart();
    assert!(daemon.queued("redis", "pending") >= acknowledged.len() as u64);
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    for number in acknowledged {
        assert_eq!(redis.get(&format!("k{number}")), Some(number.to_string()), "a write is lost");
    }
}

#[test]
fn a_sync_that_fails_in_the_middle_of_a_drain_loses_nothing_and_repeats_nothing() {
    let redis = RedisServer::start();
    // In the first run it fails while calls are queued, in the second while they are drained.
    let mut daemon = operated(&redis.url()).fail_sync(30).start();
    daemon.order("/admin/backends/redis/offline");
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let caller = daemon.client();
            thread::spawn(move || {
                let (counter, mut acknowledged, mut unknown) = (format!("n{writer}"), 0, 0);
                while acknowledged < 60 {
                    let reply =
                        caller.redis_with(&["INCR", &counter], json!({ "min_ack": "durable" }));
                    match (reply.status, &reply.body["outcome_unknown"]) {
                        (202, _) => acknowledged += 1,
                        (507, Value::Bool(true)) => unknown += 1,
                        (507, _) => {}
                        _ => panic!("{}", reply.body),
                    }
                }
                (counter, acknowledged, unknown)
            })
        })
        .collect();
    let counts: Vec<(String, u64, u64)> =
        writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    assert_ne!(counts.iter().map(|count| count.2).sum::<u64>(), 0, "no sync failed");
    daemon.kill_9();
    let before = daemon.log_text().matches("the store was rebuilt").count();
    daemon.restart();
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(daemon.log_text().matches("the store was rebuilt").count(), before + 1);
    for (counter, acknowledged, unknown) in counts {
        let value: u64 = redis.query(&["GET", &counter]);
        assert!(
            (acknowledged..=acknowledged + unknown).contains(&value),
            "{counter} is {value} after {acknowledged} acknowledged and {unknown} unknown"
        );
    }
}
