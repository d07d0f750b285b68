//! The state directory: for its owner alone, and distinguished from its copies; and stores that are gone, do not open,
//! or are copied with it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon};
use crate::support::outage::operated;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);

fn alerts(client: &Client, backend: &str) -> String {
    client.get(&format!("/v1/backends/{backend}")).1["alerts"].to_string()
}

/// Every entry below `dir` that somebody else may use, with its mode.
fn open_to_others(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries = vec![folder.clone()];
        entries.extend(fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()));
        for path in entries {
            let meta = fs::symlink_metadata(&path).unwrap();
            let mode = meta.permissions().mode() & 0o7777;
            let wanted = if meta.is_dir() { 0o700 } else { 0o600 };
            if mode != wanted && !meta.file_type().is_socket() {
                found.push(format!("{} {mode:o}", path.display()));
            }
            if meta.is_dir() && path != folder {
                folders.push(path);
            }
        }
    }
    found
}

#[test]
fn whatever_the_daemon_keeps_is_for_its_owner_alone() {
    let redis = RedisServer::start();
    let place = tempfile::tempdir().unwrap();
    let (queue, cache) = (place.path().join("deep/queue"), place.path().join("cache"));
    let mut daemon = operated(&redis.url())
        .set("backends.redis.cache.dir", cache.to_str().unwrap())
        .set("backends.firestore.url", "http://127.0.0.1:1")
        .set("backends.firestore.project", "p")
        .env("FIRESTORE_QUEUE_FILE", queue.to_str().unwrap())
        .start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", &"v".repeat(20_000)]).assert_queued();
    let socket = fs::metadata(daemon.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(socket, 0o660);
    // What is written by a stop, and what a start makes of what is there.
    assert!(daemon.terminate().success());
    daemon.restart();
    assert!(
        cache.join("redis.cache").try_exists().unwrap() && queue.join("db").try_exists().unwrap()
    );
    for dir in [daemon.state_dir(), place.path().join("deep"), cache] {
        assert_eq!(open_to_others(&dir), Vec::<String>::new());
    }
}

#[test]
fn a_name_that_is_none_is_set_aside_and_the_daemon_starts() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    let file = daemon.state_dir().join("instance");
    for garbage in [&b""[..], b"\xff\x00\xfe rubbish"] {
        daemon.kill_9();
        fs::write(&file, garbage).unwrap();
        daemon.restart();
        assert_eq!(fs::read_to_string(&file).unwrap().trim().len(), 26);
    }
    assert!(daemon.log_text().contains("a file of the state directory is damaged"));
    let names = fs::read_dir(daemon.state_dir()).unwrap();
    let kept = names.filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("instance.damaged-")
    });
    assert_eq!(kept.count(), 2);
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("v"));
}

#[test]
fn a_store_that_does_not_open_stops_no_other_and_heals_without_a_restart() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url())
        .set("backends.other.kind", "redis")
        .set("backends.other.url", redis.url())
        .start();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", "1"]).assert_queued();
    daemon.kill_9();
    // A folder in place of a file: the file system refuses.
    let lock = daemon.state_dir().join("backends/redis/lock");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    daemon.restart();
    let other = daemon.call("other", json!({ "command": ["SET", "o", "1"] }));
    other.assert_live();
    let refused = daemon.redis(&["SET", "k", "2"]);
    assert_eq!((refused.status, &refused.body["code"]), (507, &json!("store_refuses")));
    let read = daemon.redis(&["GET", "k"]);
    assert_eq!((read.status, &read.body["code"]), (503, &json!("store_closed")), "{}", read.body);
    assert!(alerts(&daemon, "redis").contains("the store does not open"));
    daemon.wait_until("it is critical", LONG, |daemon| {
        let (status, health) = daemon.get("/health");
        status == 503 && health["reasons"].to_string().contains("the store of redis refuses writes")
    });
    fs::remove_dir(&lock).unwrap();
    daemon.wait_until("it opens", LONG, |daemon| alerts(daemon, "redis") == "[]");
    daemon.redis(&["GET", "k"]).assert_value("1");
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("1"));
}

#[test]
fn stores_that_are_gone_are_told_until_an_operator_knows() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    assert_eq!(alerts(&daemon, "redis"), "[]", "a first start");
    // A backend that is new in the configuration has never had a store.
    daemon.set("backends.other.kind", "redis");
    daemon.set("backends.other.url", redis.url());
    daemon.restart();
    assert_eq!(alerts(&daemon, "redis") + &alerts(&daemon, "other"), "[][]");
    daemon.kill_9();
    fs::remove_dir_all(daemon.state_dir().join("backends")).unwrap();
    daemon.restart();
    let told =
        |daemon: &Daemon, backend: &str| alerts(daemon, backend).contains("the store is gone");
    assert!(told(&daemon, "redis") && told(&daemon, "other"));
    daemon.wait_until("it is critical", LONG, |daemon| {
        daemon.get("/health").1["reasons"].to_string().contains("is gone")
    });
    let said = daemon.fusebox(&["backend", "accept-loss", "other"]);
    assert!(said.status.success(), "{said:?}");
    assert_eq!(daemon.fusebox(&["backend", "accept-loss", "other"]).status.code(), Some(1));
    daemon.restart();
    assert!(told(&daemon, "redis") && !told(&daemon, "other"), "until somebody says so");
    daemon.order("/admin/backends/redis/accept-loss");
    daemon.restart();
    assert_eq!(alerts(&daemon, "redis"), "[]");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(copied.success());
}

fn instance(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.state_dir().join("instance")).unwrap().trim().to_owned()
}

/// The names of fusebox's connections to `redis`.
fn names(redis: &RedisServer) -> Vec<String> {
    let list: String = redis.query(&["CLIENT", "LIST"]);
    let name = |line: &str| {
        line.split(' ').find_map(|it| it.strip_prefix("name=fusebox:").map(str::to_owned))
    };
    list.lines().filter_map(name).collect()
}

/// How many connections the server has taken, those of this test's own queries excluded.
fn connections(redis: &RedisServer, queries: &mut u64) -> u64 {
    *queries += 1;
    let info: String = redis.query(&["INFO", "stats"]);
    let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.unwrap().trim().parse::<u64>().unwrap() - *queries
}

/// Fails the test if any of `daemons` loses a connection while they all work.
#[track_caller]
fn assert_peace(redis: &RedisServer, daemons: &[&Daemon]) {
    let work = || {
        for (number, daemon) in daemons.iter().enumerate() {
            daemon.redis(&["SET", &format!("peace{number}"), "v"]);
            daemon.redis(&["GET", &format!("peace{number}")]);
        }
    };
    work();
    let mut queries = 0;
    let before = connections(redis, &mut queries);
    (0..100).for_each(|_| work());
    assert_eq!(connections(redis, &mut queries), before, "a connection was killed");
}

#[test]
fn a_copied_state_directory_takes_a_new_name_and_replays_once_it_is_accepted() {
    let redis = RedisServer::start();
    let mut original = operated(&redis.url()).start();
    original.order("/admin/backends/redis/offline");
    original.redis(&["SET", "k", "queued"]).assert_queued();
    assert!(original.terminate().success());
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("copy");
    copy(&original.state_dir(), &dir);
    original.restart();
    original.order("/admin/backends/redis/online");
    original.wait_until_drained("redis", LONG);
    original.redis(&["SET", "k", "newer"]).assert_live();

    let mut clone = operated(&redis.url()).state_dir(&dir).start();
    clone.order("/admin/backends/redis/online");
    assert_ne!(instance(&clone), instance(&original));
    assert!(alerts(&clone, "redis").contains("this state directory is a copy"));
    clone.redis(&["SET", "free", "v"]).assert_live();
    let live = names(&redis);
    assert!(live.iter().any(|name| name.starts_with(&instance(&clone))), "{live:?}");
    assert!(
        !live.iter().any(|name| name.starts_with(&instance(&original))),
        "killed once: {live:?}"
    );
    assert_peace(&redis, &[&original, &clone]);
    assert_eq!(alerts(&original, "redis"), "[]");
    // Nor is it killed by the connector that a reload makes.
    clone.set("backends.redis.timeout", "6s");
    let reloaded = clone.order("/admin/config/reload");
    assert!(reloaded.to_string().contains("backends.redis.timeout"), "{reloaded}");
    assert_peace(&redis, &[&original, &clone]);

    // It replays nothing, whoever asks and however often it starts.
    clone.restart();
    let (status, said) = clone.post("/admin/backends/redis/queue/replay", Value::Null);
    assert_eq!(status, 409, "{said}");
    let paused = clone.get("/v1/backends/redis").1["queue"]["replay_paused"].to_string();
    assert!(paused.contains("is a copy"), "{paused}");
    assert_eq!(clone.queued("redis", "pending"), 1);
    assert_eq!(redis.get("k").as_deref(), Some("newer"));
    assert_peace(&redis, &[&original, &clone]);

    let said = clone.fusebox(&["backend", "accept-clone"]);
    assert!(said.status.success(), "{said:?}");
    clone.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("queued"), "as an operator wanted it");
    assert_eq!(alerts(&clone, "redis"), "[]");
    assert_eq!(clone.fusebox(&["backend", "accept-clone"]).status.code(), Some(1));
    clone.restart();
    assert_eq!(alerts(&clone, "redis"), "[]");
}

/// The state directory itself stays, as it does if systemd has made it.
#[test]
fn a_backup_restored_into_the_same_directory_replays_nothing_over_newer_writes() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", "queued"]).assert_queued();
    assert!(daemon.terminate().success());
    let (dir, place) = (daemon.state_dir(), tempfile::tempdir().unwrap());
    let backup = place.path().join("backup");
    copy(&dir, &backup);
    daemon.restart();
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    daemon.redis(&["SET", "k", "newer"]).assert_live();
    daemon.kill_9();
    let backends = dir.join("backends");
    fs::remove_dir_all(backends.join("redis")).unwrap();
    copy(&backup.join("backends/redis"), &backends);

    let mut drain = daemon.cli(&["queue", "drain", "--state-dir"]);
    drain.arg(&dir).arg("--config").arg(daemon.configuration());
    let drained = drain.output().expect("fusebox runs");
    assert_eq!(drained.status.code(), Some(1), "{drained:?}");
    assert!(String::from_utf8_lossy(&drained.stderr).contains("--accept-clone"), "{drained:?}");
    assert_eq!(redis.get("k").as_deref(), Some("newer"));

    daemon.restart();
    assert!(alerts(&daemon, "redis").contains("is a copy, such as a restored backup"));
    daemon.order("/admin/backends/redis/online");
    let (status, said) = daemon.post("/admin/backends/redis/queue/replay", Value::Null);
    assert_eq!(status, 409, "{said}");
    assert_eq!(redis.get("k").as_deref(), Some("newer"));
    assert!(daemon.fusebox(&["backend", "accept-clone"]).status.success());
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("queued"), "as an operator wanted it");
    daemon.restart();
    assert_eq!(alerts(&daemon, "redis"), "[]");
}

#[test]
fn a_first_run_that_ends_at_once_leaves_it_to_the_next_to_kill_what_has_the_old_name() {
    let redis = RedisServer::start();
    let mut original = operated(&redis.url()).start();
    assert!(original.terminate().success());
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("copy");
    copy(&original.state_dir(), &dir);
    original.restart();
    original.redis(&["SET", "k", "v"]).assert_live();
    let has_old_name = || names(&redis).iter().any(|name| name.starts_with(&instance(&original)));
    assert!(has_old_name());
    // A drain finds out that it is a copy, and refuses it.
    let mut drain = original.cli(&["queue", "drain", "--state-dir"]);
    drain.arg(&dir).arg("--config").arg(original.configuration());
    let refused = drain.output().expect("fusebox runs");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--accept-clone"), "{refused:?}");
    assert!(has_old_name());

    let clone = operated(&redis.url()).state_dir(&dir).start();
    clone.redis(&["SET", "k", "w"]).assert_live();
    assert!(!has_old_name(), "{:?}", names(&redis));
    assert_peace(&redis, &[&original, &clone]);
}

#[test]
fn an_order_is_carried_out_whole_though_its_client_leaves() {
    let redis = RedisServer::start();
    let mut original = operated(&redis.url()).start();
    assert!(original.terminate().success());
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("copy");
    copy(&original.state_dir(), &dir);
    let clone = operated(&redis.url()).state_dir(&dir).start();
    assert!(alerts(&clone, "redis").contains("this state directory is a copy"));
    let mut leaving = UnixStream::connect(clone.socket()).unwrap();
    let order = "POST /admin/backends/accept-clone HTTP/1.1\r\nHost: localhost\r\n\r\n";
    leaving.write_all(order.as_bytes()).unwrap();
    drop(leaving);
    clone.wait_until("the alert has ended", LONG, |clone| alerts(clone, "redis") == "[]");
}

#[test]
fn a_directory_that_is_moved_is_no_copy() {
    let redis = RedisServer::start();
    let place = tempfile::tempdir().unwrap();
    let (here, there) = (place.path().join("here"), place.path().join("there"));
    let mut daemon = operated(&redis.url()).state_dir(&here).start();
    let name = instance(&daemon);
    assert!(daemon.terminate().success());
    fs::rename(&here, &there).unwrap();
    let moved = operated(&redis.url()).state_dir(&there).start();
    assert_eq!((instance(&moved), alerts(&moved, "redis")), (name, "[]".to_owned()));
}

#[test]
fn two_daemons_of_one_name_end_their_war_and_one_at_least_stands_back() {
    let redis = RedisServer::start();
    let mut first = operated(&redis.url()).start();
    assert!(first.terminate().success());
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("copy");
    copy(&first.state_dir(), &dir);
    // As a release left it that knew of no copies; a volume that is cloned by blocks looks the same.
    fs::remove_file(dir.join("origin")).unwrap();
    first.restart();
    let mut second = operated(&redis.url()).state_dir(&dir).start();
    assert_eq!(instance(&first), instance(&second));
    let stands_back =
        |daemon: &Client| alerts(daemon, "redis").contains("has the same instance name");
    let (one, two) = (first.client(), second.client());
    one.wait_until("one of them finds the other out", LONG, |_| {
        for client in [&one, &two] {
            client.redis(&["SET", "k", "v"]);
        }
        stands_back(&one) || stands_back(&two)
    });
    one.wait_until("they have two names", LONG, |_| instance(&first) != instance(&second));
    // What is left of the old name is killed by the first fence of the new one.
    one.wait_until("writes go live with both", LONG, |_| {
        [&one, &two].iter().all(|client| client.redis(&["SET", "k", "v"]).status == 200)
    });
    assert_peace(&redis, &[&first, &second]);

    let late = if stands_back(&one) { &mut first } else { &mut second };
    late.order("/admin/backends/redis/offline");
    late.redis(&["SET", "late", "v"]).assert_queued();
    late.order("/admin/backends/redis/online");
    assert_eq!(late.post("/admin/backends/redis/queue/replay", Value::Null).0, 409);
    late.restart();
    assert!(stands_back(late), "also after a restart");
    assert_eq!((late.queued("redis", "pending"), redis.get("late")), (1, None));
    late.order("/admin/backends/accept-clone");
    late.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("late").as_deref(), Some("v"));
}
