//! Queues that leave their daemon: drained without one, exported and imported into another one.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::outage::{begin_outage, operated};
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn durable(daemon: &Client, command: &[&str]) -> String {
    let reply = daemon.redis_with(command, json!({ "min_ack": "durable" }));
    reply.assert_queued();
    reply.body["op_id"].as_str().unwrap().to_owned()
}

fn drain(daemon: &Daemon, dir: &Path, more: &[&str]) -> Output {
    let mut command = daemon.cli(&["queue", "drain", "--json", "--state-dir"]);
    command.arg(dir).arg("--config").arg(daemon.configuration()).args(more);
    command.output().expect("fusebox runs")
}

fn json_of(output: &Output) -> Value {
    serde_json::from_str(&out(output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn an_orphaned_directory_is_drained_without_doors() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let dir = daemon.state_dir();
    let refused = drain(&daemon, &dir, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).contains("runs on the state directory"), "{}", err(&refused));
    daemon.order("/admin/backends/redis/offline");
    for key in 0..200 {
        daemon.redis(&["SET", &format!("k{key}"), "v"]).assert_queued();
    }
    durable(&daemon, &["INCR", "n"]);
    daemon.kill_9();
    let drained = drain(&daemon, &dir, &[]);
    assert_eq!(drained.status.code(), Some(0), "{drained:?}");
    let told = json_of(&drained);
    assert_eq!(
        (&told["backends"]["redis"]["waiting"], &told["without_backend"]),
        (&json!(0), &json!([]))
    );
    assert_eq!((redis.get("k199").as_deref(), redis.get("n").as_deref()), (Some("v"), Some("1")));
    assert!(!daemon.is_up(), "nobody listens");
    let again = drain(&daemon, &dir, &[]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert_eq!(redis.get("n").as_deref(), Some("1"));
}

#[test]
fn what_a_drain_leaves_is_named() {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let dir = daemon.state_dir();
    daemon.redis(&["SET", "text", "no number"]).assert_live();
    daemon.order("/admin/backends/redis/offline");
    let op_id = durable(&daemon, &["INCR", "text"]);
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    daemon.kill_9();
    fs::create_dir(dir.join("backends/gone")).unwrap();
    let left = drain(&daemon, &dir, &[]);
    assert_eq!(left.status.code(), Some(1), "{left:?}");
    let told = json_of(&left);
    let dead = &told["backends"]["redis"]["dead"];
    assert_eq!(
        (&dead[0]["op_id"], dead.as_array().map(Vec::len)),
        (&json!(op_id), Some(1)),
        "{told}"
    );
    assert!(dead[0]["why"].to_string().contains("rejected"), "{told}");
    assert_eq!(told["without_backend"], json!(["gone"]));
    assert_eq!(redis.get("k").as_deref(), Some("v"));

    // A backend that does not come: what waits, waits on.
    daemon.restart();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", "w"]).assert_queued();
    daemon.kill_9();
    redis.kill_9();
    let left = drain(&daemon, &dir, &["--patience", "1s", "--backend", "redis"]);
    assert_eq!(
        (left.status.code(), &json_of(&left)["backends"]["redis"]["waiting"]),
        (Some(1), &json!(1))
    );
    let absent = drain(&daemon, &daemon.folder().join("absent"), &[]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(err(&absent).contains("there are no stores in"), "{}", err(&absent));
}

#[test]
fn nothing_that_the_dead_daemon_was_ordered_or_had_found_holds_a_drain_back() {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let dir = daemon.state_dir();
    let drained = |daemon: &Daemon, redis: &RedisServer, key: &str| {
        let drained = drain(daemon, &dir, &["--patience", "20s"]);
        assert_eq!(drained.status.code(), Some(0), "{drained:?}");
        let told = &json_of(&drained)["backends"]["redis"];
        assert_eq!((&told["waiting"], &told["dead"]), (&json!(0), &json!([])), "{told}");
        assert_eq!(redis.get(key).as_deref(), Some("v"));
    };
    daemon.order("/admin/circuit-breaker/redis/force-open");
    daemon.redis(&["SET", "forced", "v"]).assert_queued();
    assert!(daemon.terminate().success());
    drained(&daemon, &redis, "forced");

    // Its breaker would stay open for minutes.
    daemon.restart();
    begin_outage(&mut redis, &daemon);
    daemon.redis(&["SET", "outage", "v"]).assert_queued();
    assert!(daemon.terminate().success());
    redis.restart();
    drained(&daemon, &redis, "outage");
}

#[test]
fn a_large_store_is_waited_for_before_what_holds_it_back_is_lifted() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let mut daemon = operated(&old.url()).start();
    let dir = daemon.state_dir();
    daemon.order("/admin/backends/redis/offline");
    let value = "v".repeat(1 << 20);
    for key in 0..40 {
        daemon.redis(&["SET", &format!("k{key}"), &value]).assert_queued();
    }
    daemon.kill_9();
    let log = fs::metadata(dir.join("backends/redis/db/db")).unwrap().len();
    assert!(log > 32 << 20, "it opens behind the start: {log}");
    daemon.set("backends.redis.url", new.url());
    let drained = drain(&daemon, &dir, &["--accept-retarget", "--patience", "20s"]);
    assert_eq!(drained.status.code(), Some(0), "{drained:?}");
    assert!(err(&drained).contains("the waiting calls go to"), "{}", err(&drained));
    assert_eq!((new.get("k39").map(|it| it.len()), old.get("k39")), (Some(1 << 20), None));
}

#[test]
fn a_copy_is_drained_only_where_an_operator_says_that_it_may_be() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    daemon.kill_9();
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("copy");
    copy(&daemon.state_dir(), &dir);
    let refused = drain(&daemon, &dir, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).contains("is a copy") && err(&refused).contains("--accept-clone"));
    assert_eq!(redis.get("k"), None);
    assert_eq!(drain(&daemon, &dir, &["--accept-clone"]).status.code(), Some(0));
    assert_eq!(redis.get("k").as_deref(), Some("v"));
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// Runs the command line on a state directory.
fn offline(daemon: &Daemon, arguments: &[&str], dir: &Path) -> Output {
    let mut command = daemon.cli(arguments);
    command.arg("--state-dir").arg(dir).arg("--config").arg(daemon.configuration());
    command.output().expect("fusebox runs")
}

#[test]
fn a_store_in_a_folder_of_its_own_is_drained_and_is_no_part_of_a_copy() {
    let redis = RedisServer::start();
    let place = tempfile::tempdir().unwrap();
    let (store, backup) = (place.path().join("store"), place.path().join("backup"));
    let (saved, other) = (place.path().join("saved"), place.path().join("other"));
    let builder = operated(&redis.url()).set("backends.redis.queue.dir", store.to_str().unwrap());
    let mut daemon = builder.start();
    let dir = daemon.state_dir();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", "saved"]).assert_queued();
    daemon.kill_9();
    for (from, to) in [(&dir, &backup), (&dir, &other), (&store, &saved)] {
        copy(from, to);
    }
    daemon.restart();
    daemon.redis(&["SET", "k", "live"]).assert_queued();

    // The daemon runs, and its store is not the copy's.
    for command in ["check", "export", "downgrade", "repair"] {
        let run = offline(&daemon, &["queue", command], &backup);
        assert_eq!(run.status.code(), Some(1), "{command}: {run:?}");
        let why = format!("redis: its store was in {} when", store.display());
        assert!(err(&run).contains(&why), "{command}: {}", err(&run));
        assert!(!out(&run).contains("redis"), "{command}: {}", out(&run));
    }
    fs::create_dir_all(backup.join("backends")).unwrap();
    copy(&saved, &backup.join("backends/redis"));
    let exported = offline(&daemon, &["queue", "export"], &backup);
    assert_eq!(exported.status.code(), Some(0), "{exported:?}");
    assert_eq!(out(&exported).lines().count(), 1);
    assert!(out(&exported).contains(r#"["SET","k","saved"]"#), "{}", out(&exported));

    daemon.kill_9();
    // A copy that was accepted has no store of the original either, whether the configuration names one or not.
    let plain = operated(&redis.url()).start();
    for host in [&daemon, &plain, &daemon] {
        let left = drain(host, &other, &["--accept-clone"]);
        assert_eq!(left.status.code(), Some(1), "{left:?}");
        let told = json_of(&left);
        assert_eq!(
            (&told["missing"][0]["backend"], &told["backends"]),
            (&json!("redis"), &json!({})),
            "{told}"
        );
        assert_eq!(redis.get("k"), None);
    }
    drop(plain);

    // From here on the configuration says of which directory it is.
    daemon.set("state_dir", dir.to_str().unwrap());
    let checked = offline(&daemon, &["queue", "check", "--json"], &dir);
    let report = json_of(&checked);
    assert_eq!((checked.status.code(), &report["missing"]), (Some(0), &json!([])), "{report}");
    assert_eq!(report["backends"]["redis"]["counts"]["pending"], json!(2), "{report}");
    let drained = drain(&daemon, &dir, &[]);
    assert_eq!(drained.status.code(), Some(0), "{drained:?}");
    let told = json_of(&drained);
    assert_eq!(
        (&told["backends"]["redis"]["waiting"], &told["missing"]),
        (&json!(0), &json!([])),
        "{told}"
    );
    assert_eq!(redis.get("k").as_deref(), Some("live"));
    let left = drain(&daemon, &other, &["--accept-clone"]);
    assert_eq!(left.status.code(), Some(1), "{left:?}");
    assert_eq!(json_of(&left)["missing"][0]["backend"], json!("redis"));

    // Its folder is not mounted.
    fs::rename(&store, place.path().join("away")).unwrap();
    let left = drain(&daemon, &dir, &[]);
    assert_eq!(left.status.code(), Some(1), "{left:?}");
    assert!(json_of(&left)["missing"][0]["why"].to_string().contains("is missing"), "{left:?}");
    assert!(!store.try_exists().unwrap(), "it is not made");
}

#[test]
fn a_line_that_is_too_large_holds_back_only_what_would_overtake_it() {
    let redis = RedisServer::start();
    let mut old = operated(&redis.url()).start();
    old.order("/admin/backends/redis/offline");
    let large = "v".repeat(3 << 19);
    for (key, value) in [("a", large.as_str()), ("b", "1"), ("a", "2")] {
        old.redis(&["SET", key, value]).assert_queued();
    }
    old.kill_9();
    old.set("calls.bytes", "1MiB");
    let dir = old.state_dir();
    let exported = offline(&old, &["queue", "export"], &dir);
    assert_eq!(exported.status.code(), Some(0), "{}", err(&exported));
    assert!(err(&exported).contains("redis: 1 calls are large"), "{}", err(&exported));
    let lines = out(&exported);
    assert!(lines.len() < large.len() * 4 / 3 + 10_000, "{}", lines.len());

    let mut new = operated(&redis.url()).set("calls.bytes", "1MiB").start();
    new.order("/admin/backends/redis/offline");
    let held = import(&new, &lines, &["--force"]);
    assert_eq!(held.status.code(), Some(1), "{held:?}");
    let told = json_of(&held);
    assert_eq!(told["counts"]["imported"], json!(1), "{told}");
    let refused = told["refused"].as_array().unwrap();
    let refused: Vec<(&Value, &str)> =
        refused.iter().map(|line| (&line["line"], line["why"].as_str().unwrap())).collect();
    let [(first, too_large), (last, behind)] = refused[..] else { panic!("{told}") };
    assert_eq!((first, last), (&json!(1), &json!(3)));
    assert!(too_large.contains("calls.bytes") && behind.contains("line 1"), "{told}");

    assert!(too_large.contains("import only the lines that are named here"), "{too_large}");

    // What was imported is replayed, and its key is written again, before the rest comes.
    new.order("/admin/backends/redis/online");
    new.wait_until_drained("redis", LONG);
    assert_eq!((redis.get("a"), redis.get("b").as_deref()), (None, Some("1")));
    new.redis(&["SET", "b", "newer"]).assert_live();
    new.set("calls.bytes", "16MiB");
    let reloaded = new.fusebox(&["config", "reload"]);
    assert!(reloaded.status.success(), "{}", err(&reloaded));
    let all: Vec<&str> = lines.lines().collect();
    let rest = import(&new, &[all[0], all[2]].join("\n"), &["--force"]);
    assert_eq!(rest.status.code(), Some(0), "{}", err(&rest));
    let counts = &json_of(&rest)["counts"];
    assert_eq!((&counts["known"], &counts["imported"]), (&json!(0), &json!(2)), "{counts}");
    new.wait_until_drained("redis", LONG);
    assert_eq!((redis.get("a").as_deref(), redis.get("b").as_deref()), (Some("2"), Some("newer")));
}

fn export(daemon: &Daemon) -> String {
    let mut command = daemon.cli(&["queue", "export", "--state-dir"]);
    let exported = command.arg(daemon.state_dir()).output().unwrap();
    assert!(exported.status.success(), "{exported:?}");
    out(&exported)
}

fn import(daemon: &Daemon, lines: &str, more: &[&str]) -> Output {
    let mut arguments = vec!["queue", "import", "-", "--json"];
    arguments.extend_from_slice(more);
    daemon.fusebox_with_stdin(&arguments, lines)
}

fn nimble(redis: &RedisServer) -> Builder {
    operated(&redis.url()).set("backends.redis.timeout", "500ms")
}

#[test]
fn a_queue_is_imported_as_it_was_exported_with_its_doubt_and_its_dead_letters() {
    let redis = RedisServer::start();
    let mut old = nimble(&redis).start();
    old.redis(&["SET", "text", "no number"]).assert_live();
    let dead = {
        old.order("/admin/backends/redis/offline");
        let dead = durable(&old, &["INCR", "text"]);
        old.order("/admin/backends/redis/online");
        old.wait_until("it is dead", LONG, |daemon| daemon.queued("redis", "dead") == 1);
        dead
    };
    // Sent, and applied once the server goes on, though nobody heard of it.
    redis.freeze();
    let doubted = durable(&old, &["INCR", "once"]);
    old.order("/admin/backends/redis/offline");
    old.kill_9();
    redis.thaw();
    old.restart();
    let fresh = durable(&old, &["INCR", "n"]);
    old.redis(&["SET", "k", "1"]).assert_queued();
    old.redis(&["SET", "k", "2"]).assert_queued();
    old.kill_9();
    let lines = export(&old);
    assert_eq!(lines.lines().count(), 5);
    assert!(lines.contains("\"sending\"") && lines.contains("\"dead\""), "{lines}");

    let mut new = nimble(&redis).start();
    new.order("/admin/backends/redis/offline");
    let held = import(&new, &lines, &[]);
    assert_eq!(held.status.code(), Some(1));
    let told = json_of(&held);
    assert_eq!(
        (&told["counts"]["wants_force"], &told["counts"]["imported"]),
        (&json!(5), &json!(0))
    );
    assert_eq!(told["lanes_written"][0]["line"], json!(1), "{told}");
    let taken = import(&new, &lines, &["--force"]);
    assert_eq!(taken.status.code(), Some(0), "{taken:?}");
    let counts = &json_of(&taken)["counts"];
    assert_eq!(
        (&counts["imported"], &counts["in_doubt"], &counts["dead"], &counts["salvaged"]),
        (&json!(4), &json!(1), &json!(1), &json!(0)),
        "{counts}"
    );
    let again = json_of(&import(&new, &lines, &["--force"]));
    assert_eq!((&again["counts"]["known"], &again["counts"]["imported"]), (&json!(5), &json!(0)));

    // What was acknowledged survives a crash as it was.
    new.kill_9();
    new.restart();
    assert_eq!((new.queued("redis", "pending"), new.queued("redis", "dead")), (4, 1));
    for (op_id, in_doubt) in [(&doubted, true), (&fresh, false)] {
        let (status, call) = new.get(&format!("/v1/backends/redis/queue/{op_id}"));
        assert_eq!((status, &call["in_doubt"]), (200, &json!(in_doubt)), "{call}");
    }
    let (_, call) = new.get(&format!("/v1/backends/redis/queue/{dead}"));
    assert_eq!(call["state"], json!("dead"));
    assert!(call["last_error"].to_string().contains("rejected"), "{call}");
    new.order("/admin/backends/redis/online");
    new.wait_until("nothing waits", LONG, |daemon| daemon.queued("redis", "pending") == 0);
    assert_eq!(redis.get("once").as_deref(), Some("1"), "its marker says that it was applied");
    assert_eq!((redis.get("n").as_deref(), redis.get("k").as_deref()), (Some("1"), Some("2")));
    assert_eq!(new.queued("redis", "dead"), 1);
}

#[test]
fn a_line_that_is_not_understood_is_named_and_nothing_is_taken() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    for key in ["a", "b", "c"] {
        daemon.redis(&["SET", key, "v"]).assert_queued();
    }
    daemon.kill_9();
    let lines = export(&daemon);
    let fresh = operated(&redis.url()).start();
    fresh.order("/admin/backends/redis/offline");
    let (first, last) = lines.trim_end().rsplit_once('\n').unwrap();
    let spoilt = format!("{first}\n{}\n", last.replace("\"uid\":", "\"uid\":\"x\",\"was\":"));
    let refused = import(&fresh, &spoilt, &["--force"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).contains("nothing was imported; line 3, uid: "), "{}", err(&refused));
    assert_eq!(fresh.queued("redis", "pending"), 0);

    // Another address, and another backend.
    let elsewhere = lines.replace("/0\"", "/1\"");
    let refused = import(&fresh, &elsewhere, &["--force"]);
    assert!(err(&refused).contains("line 1, target: "), "{}", err(&refused));
    let other = lines.replace("\"backend\":\"redis\"", "\"backend\":\"other\"");
    assert_eq!(import(&fresh, &other, &["--force"]).status.code(), Some(2), "no such backend");
    assert_eq!(import(&fresh, &elsewhere, &["--force", "--retarget"]).status.code(), Some(0));
    assert_eq!(fresh.queued("redis", "pending"), 3);
}

#[test]
fn what_was_salvaged_is_told_as_such() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "gone", "v"]).assert_live();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    daemon.kill_9();
    let mut repair = daemon.cli(&["queue", "repair"]);
    let repaired = repair.arg(daemon.state_dir().join("backends/redis/db")).output().unwrap();
    assert!(out(&repaired).contains("\"salvaged\""), "{repaired:?}");
    let fresh = operated(&redis.url()).start();
    fresh.order("/admin/backends/redis/offline");
    let told = json_of(&import(&fresh, &out(&repaired), &["--force"]));
    assert_eq!((&told["counts"]["salvaged"], &told["counts"]["imported"]), (&json!(1), &json!(1)));
    let said = fresh.fusebox_with_stdin(&["queue", "import", "-", "--force"], &out(&repaired));
    assert!(out(&said).contains("1 were already there"), "{said:?}");
    fresh.order("/admin/backends/redis/online");
    fresh.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("v"));
}

#[test]
fn a_requeue_from_a_file_is_an_import_whatever_the_kind() {
    let made = || Builder::default().set("backends.clickhouse.url", "http://127.0.0.1:1").start();
    let mut old = made();
    old.order("/admin/backends/clickhouse/offline");
    let insert = json!({
        "query": "INSERT INTO t FORMAT JSONEachRow", "data": "{\"id\":1}",
        "options": { "min_ack": "durable" },
    });
    old.call("clickhouse", insert).assert_queued();
    old.kill_9();
    let lines = export(&old);
    let new = made();
    new.order("/admin/backends/clickhouse/offline");
    let said = new.fusebox_with_stdin(&["queue", "requeue", "--from", "-"], &lines);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert!(out(&said).starts_with("1 calls wait (0 of them may have been applied)"), "{said:?}");
    let again = new.fusebox_with_stdin(&["queue", "import", "-"], &lines);
    assert!(out(&again).contains("1 were already there"), "{again:?}");
    assert_eq!(new.queued("clickhouse", "pending"), 1);
}

#[test]
fn calls_for_another_database_are_moved_by_an_import_and_keep_their_order() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", "k", "old"]).assert_queued();
    daemon.kill_9();
    let lines = export(&daemon);
    assert_eq!(lines.lines().count(), 1, "{lines}");
    daemon.set("backends.redis.url", format!("{}/3", redis.url()));
    daemon.restart();
    let refused = daemon.fusebox(&["backend", "accept-retarget", "redis"]);
    assert!(!refused.status.success());
    let why = err(&refused);
    assert!(why.contains("another database") && why.contains("--retarget"), "{why}");
    let op_id =
        serde_json::from_str::<Value>(&lines).unwrap()["op_id"].as_str().unwrap().to_owned();
    let discarded = daemon.fusebox(&["queue", "discard", &op_id]);
    assert!(discarded.status.success(), "{}", err(&discarded));
    daemon.order("/admin/backends/redis/offline");
    let imported = import(&daemon, &lines, &["--retarget", "--force"]);
    assert!(imported.status.success(), "{}", err(&imported));
    // It waits in the lane that writes to the new database have.
    daemon.redis(&["SET", "k", "new"]).assert_queued();
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    let value: Option<String> = redis::cmd("GET").arg("k").query(&mut database(&redis, 3)).unwrap();
    assert_eq!(value.as_deref(), Some("new"));
}

fn database(redis: &RedisServer, number: u32) -> redis::Connection {
    let client = redis::Client::open(format!("{}/{number}", redis.url())).expect("an address");
    client.get_connection().expect("a connection")
}
