//! What the daemon logs: a line a fact, whatever callers make of it; not too much of the same; as loud as it is
//! asked to be.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon};
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);
const FORGED: &str = "x\n2026-01-01T00:00:00.000000Z  INFO forged=1 \u{1b}[2J\u{1b}]0;t\u{7}\r\u{9b}31m\u{2028}y\u{202e}z";

/// Has callers say terrible things wherever their words may reach the log.
fn provoke(daemon: &Daemon, redis: &RedisServer) {
    let long = format!("{FORGED}{}", "k".repeat(1 << 20));
    for text in [FORGED, &long] {
        daemon.redis(&["SET", text, text]);
        daemon.redis(&["GET", text]);
        daemon.redis(&["INCR", text]);
        daemon.redis(&[text, "a"]);
        daemon.redis_with(&["SET", "k", "v"], json!({ "op_id": text }));
        daemon.call("redis", json!({ "command": [text], "options": { "priority": text } }));
        let offline = format!("/admin/backends/{}/offline", "%0aforged%1b%5b2J");
        daemon.post(&offline, Value::Null);
        daemon.post("/admin/backends/redis/offline", Value::Null);
        daemon.redis_with(&["INCR", text], json!({ "min_ack": "durable" }));
        daemon.post("/admin/backends/redis/online", Value::Null);
    }
    let replayed = |daemon: &Client| daemon.queued("redis", "pending") == 0;
    daemon.wait_until("all is replayed or buried", LONG, replayed);
    // A key that is closed to the daemon is in an alert.
    daemon.order("/admin/backends/redis/offline");
    daemon.redis(&["SET", FORGED, "v"]).assert_queued();
    let allow = |keys| redis.query::<String>(&["ACL", "SETUSER", "default", "resetkeys", keys]);
    allow("~another");
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until("an alert says so", LONG, |daemon| {
        let (_, view) = daemon.get("/v1/backends/redis");
        view["alerts"].to_string().contains("replay of x\\n2026-01-01")
    });
    allow("~*");
    daemon.order("/admin/backends/redis/queue/replay");
    daemon.wait_until("it is replayed", LONG, replayed);
    let (status, _) =
        daemon.post("/admin/circuit-breaker/redis/force-open", json!({ "reason": FORGED }));
    assert_eq!(status, 200);
    let path = "/admin/circuit-breaker/redis/release";
    daemon.order(path);
    daemon.post("/admin/circuit-breaker/redis/force-open", json!({ "reason": "r".repeat(1_024) }));
    daemon.order(path);
}

#[track_caller]
fn assert_clean(line: &str) {
    assert!(line.len() < 16 << 10, "{} bytes: {}", line.len(), &line[..200]);
    let is_order = |letter: char| {
        letter.is_control() || matches!(letter, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!line.contains(is_order), "{line:?}");
}

#[test]
fn whatever_callers_say_is_a_clean_line() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).env("RUST_LOG", "debug,fusebox=trace").start();
    provoke(&daemon, &redis);
    let log = daemon.log_text();
    for line in log.lines() {
        assert_clean(line);
        let stamped = line.as_bytes().get(4) == Some(&b'-') && line.contains("Z ");
        assert!(stamped && !line.starts_with("2026-01-01"), "{line:?}");
    }
    let alert = log.lines().find(|line| line.contains("replay of x\\n2026-01-01T00:00:00"));
    assert!(alert.is_some(), "{log}");
    // What was said is there, and harmless.
    let told = log.lines().find(|line| line.contains("the breaker changed its state"));
    let told = told.expect("it is logged");
    assert!(told.contains("\\n2026-01-01T00:00:00.000000Z  INFO forged=1 "), "{told}");
    assert!(told.contains("note="), "{told}");
}

#[test]
fn whatever_callers_say_is_an_object_in_json() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url())
        .env("RUST_LOG", "debug,fusebox=trace")
        .arguments(&["--log-format", "json"])
        .start();
    provoke(&daemon, &redis);
    let log = daemon.log_text();
    let mut notes = Vec::new();
    for line in log.lines() {
        assert_clean(line);
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        assert!(event["level"].is_string() && event["timestamp"].is_string(), "{line}");
        notes.extend(event["note"].as_str().map(str::to_owned));
    }
    let said = |note: &String| note.contains("forged=1 ") && note.contains("\n2026-01-01");
    assert!(notes.iter().any(said), "read back, it is what was said: {notes:?}");
}

#[test]
fn the_journal_is_told_priorities_and_only_the_journal() {
    let redis = RedisServer::start();
    // There are only lines if the journal does not listen.
    let mut daemon = operated(&redis.url())
        .env("RUST_LOG", "debug")
        .env("FUSEBOX_TEST_HOOKS", "1")
        .env("FUSEBOX_TEST_JOURNAL", "/nowhere")
        .start();
    let file = fs::metadata(daemon.log()).unwrap();
    let inherited = format!("{}:{}", file.dev(), file.ino() + 1);
    for (stream, marked) in [(format!("{}:{}", file.dev(), file.ino()), true), (inherited, false)] {
        eventually("it is ready", LONG, || daemon.log_text().contains(" INFO ready "));
        let before = daemon.log_text().len();
        daemon.set_env("JOURNAL_STREAM", &stream);
        daemon.restart();
        daemon.order("/admin/circuit-breaker/redis/force-open");
        daemon.order("/admin/circuit-breaker/redis/reset");
        let log = daemon.log_text().split_off(before);
        let has = |mark: &str, part: &str| {
            log.lines().any(|line| line.starts_with(mark) && line.contains(part))
        };
        assert_eq!(has("<4> WARN ", "to=\"OPEN\""), marked, "an outage begins: {log}");
        assert_eq!(has("<6> INFO ", "to=\"CLOSED\""), marked, "and ends: {log}");
        assert_eq!(has("<4> WARN ", "fallbacks answer instead of the backend"), marked, "{log}");
        assert_eq!(has("<6> INFO ", "fallbacks no longer answer"), marked, "{log}");
        assert_eq!(has("<7>DEBUG ", ""), marked, "{log}");
        assert_eq!(has("20", ""), !marked, "the journal stamps lines itself: {log}");
    }
}

#[test]
fn a_journal_that_listens_gets_the_fields_of_each_event() {
    let (redis, folder) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let socket = folder.path().join("socket");
    let journal = UnixDatagram::bind(&socket).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut daemon = operated(&redis.url())
        .env("FUSEBOX_TEST_HOOKS", "1")
        .env("FUSEBOX_TEST_JOURNAL", socket.to_str().unwrap())
        .start();
    let file = fs::metadata(daemon.log()).unwrap();
    // Its doors answer a moment before that line is written.
    eventually("it is ready", LONG, || daemon.log_text().contains(" INFO ready "));
    let before = daemon.log_text().len();
    daemon.set_env("JOURNAL_STREAM", &format!("{}:{}", file.dev(), file.ino()));
    daemon.restart();
    daemon.order("/admin/circuit-breaker/redis/force-open");
    let mut bytes = vec![0; 1 << 17];
    let mut events = std::iter::from_fn(|| {
        let read = journal.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..read]).into_owned())
    });
    let event = events.find(|event| event.contains("the breaker changed its state"));
    let event = event.expect("the journal was told");
    for field in ["PRIORITY=4\n", "SYSLOG_IDENTIFIER=fusebox\n", "FUSEBOX_BACKEND=redis\n"] {
        assert!(event.contains(field), "{field}: {event}");
    }
    assert!(event.contains("MESSAGE=the breaker changed its state backend=\"redis\""), "{event}");
    assert_eq!(daemon.log_text().split_off(before), "", "it is told once");
}

#[test]
fn what_repeats_is_counted_and_told_in_one_line() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url())
        .env("FUSEBOX_TEST_HOOKS", "1")
        .env("FUSEBOX_TEST_LOG_WINDOW", "3s")
        .start();
    for _ in 0..40 {
        daemon.order("/admin/circuit-breaker/redis/force-open");
        daemon.order("/admin/circuit-breaker/redis/reset");
    }
    let rest = |line: &&str| line.contains("more like") && line.contains("the breaker changed");
    eventually("the rest is told", LONG, || {
        daemon.log_text().lines().filter(rest).map(how_many).sum::<usize>() > 0
    });
    // Windows may have ended meanwhile: all in all every change was written or counted.
    let told = |log: &str| {
        let written = log.lines().filter(|line| line.contains(" the breaker changed its state"));
        (written.count(), log.lines().filter(rest).map(how_many).sum::<usize>())
    };
    eventually("every one is accounted for", LONG, || {
        let (written, more) = told(&daemon.log_text());
        written + more == 80
    });
    let log = daemon.log_text();
    let (written, _) = told(&log);
    assert!(written < 80 && written % 10 == 0, "{written} of 80: {log}");
    let line = log.lines().find(rest).unwrap();
    assert!(line.contains(" in the last 3 s about=\"redis\""), "{line}");
    // The events tell them all.
    let (_, history) = daemon.get("/v1/history?limit=1000");
    let events = history["events"].as_array().unwrap().iter();
    assert_eq!(events.filter(|event| event["event"] == "transition").count(), 80);
}

#[test]
fn the_warnings_of_a_start_are_told_whole_however_many_there_are() {
    let redis = RedisServer::start();
    let mut builder = Daemon::with_redis(&redis.url());
    let names: Vec<String> = (0..25).map(|n| format!("FUSEBOX_NO_SUCH_{n}")).collect();
    for name in &names {
        builder = builder.env(name, "1");
    }
    let daemon = builder.start();
    let log = daemon.log_text();
    for name in &names {
        assert!(log.contains(&format!("{name} is set, but names no setting")), "{name}\n{log}");
    }
}

/// The number in `… and 30 more like …`.
fn how_many(line: &str) -> usize {
    let (before, _) = line.split_once(" more like").expect("a count");
    before.rsplit(' ').next().expect("a word").parse().expect("a number")
}

#[test]
fn the_log_is_as_loud_as_it_is_asked_to_be() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let says = |line: &str| {
        let output = daemon.fusebox(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let usual = says("log-level");
    assert!(usual.starts_with("info,"), "{usual}");
    // What the store does is debug.
    let act = || daemon.order("/admin/circuit-breaker/redis/reset");
    let debugs = || daemon.log_text().matches("DEBUG ").count();
    act();
    assert_eq!(debugs(), 0);
    assert_eq!(says("log-level debug,fusebox=trace"), "debug,fusebox=trace\n");
    eventually("it is louder", LONG, || {
        act();
        debugs() > 0
    });
    assert_eq!(daemon.get("/admin/log").1["filter"], "debug,fusebox=trace");
    assert_eq!(says("log-level --usual"), usual);
    let before = debugs();
    act();
    assert_eq!(debugs(), before);

    // For a while, and a later change outlives the end of an earlier one.
    assert_eq!(says("log-level debug --for 1s"), "debug\n");
    eventually("it is as usual again", LONG, || says("log-level") == usual);
    assert_eq!(says("log-level trace --for 1s"), "trace\n");
    assert_eq!(says("log-level warn"), "warn\n");
    let until = Instant::now() + Duration::from_secs(2);
    eventually("the end of the first has passed", LONG, || Instant::now() > until);
    assert_eq!(says("log-level"), "warn\n");

    for (filter, part) in [
        ("fusebox=loud", "\"fusebox=loud\" is not part of a filter"),
        ("info,debgu", "\"debgu\" is not a level"),
    ] {
        let refused = daemon.fusebox(&["log-level", filter]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(says("log-level"), "warn\n", "a refused filter changes nothing");
}

#[test]
fn a_variable_that_is_no_filter_is_told_and_not_obeyed() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).env("RUST_LOG", "fusebox=loud").start();
    eventually("it is told, and the usual is written", LONG, || {
        let log = daemon.log_text();
        log.contains("WARN RUST_LOG is ignored: \"fusebox=loud\" is not part")
            && log.contains("INFO ready")
    });
}

#[test]
fn an_outage_of_what_is_critical_is_an_error_and_its_end_is_none() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("backends.redis.critical", true).start();
    begin_outage(&mut redis, &daemon);
    let has = |parts: [&str; 2]| {
        daemon.log_text().lines().any(|line| parts.iter().all(|part| line.contains(part)))
    };
    eventually("it is told", LONG, || {
        has(["ERROR the system changed its state", "to=\"CRITICAL\""])
    });
    assert!(has(["WARN the breaker changed its state", "to=\"OPEN\""]));
    redis.restart();
    recover(&daemon);
    eventually("its end is told", LONG, || {
        has(["INFO the system changed its state", "to=\"HEALTHY\""])
    });
    assert!(has(["INFO the breaker changed its state", "to=\"CLOSED\""]));
    let after = daemon.log_text();
    let after = after.split("to=\"CLOSED\"").nth(1).unwrap();
    assert!(!after.contains("WARN") && !after.contains("ERROR"), "{after}");
}

#[test]
fn a_reload_is_told_with_who_wanted_it_and_what_came_of_it() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let told = |daemon: &Daemon, event: &Value| {
        let (_, history) = daemon.get("/v1/history?limit=1000");
        let events = history["events"].as_array().unwrap().clone();
        events.iter().any(|it| {
            event.as_object().unwrap().iter().all(|(key, value)| it[key.as_str()] == *value)
        })
    };
    daemon.set("backends.redis.breaker.failure_threshold", 7);
    daemon.set("health.interval", "2h");
    let said = daemon.fusebox(&["config", "reload"]).stdout;
    assert_eq!(
        String::from_utf8_lossy(&said),
        "changed: backends.redis.breaker.failure_threshold, health.interval\n"
    );
    let user = format!("user {}", nix::unistd::Uid::effective());
    let changed = ["backends.redis.breaker.failure_threshold", "health.interval"];
    assert!(told(&daemon, &json!({ "event": "reload", "by": user, "changed": changed })));
    let line =
        format!("the configuration was reloaded by=\"{user}\" changed=\"{}\"", changed.join(", "));
    assert!(daemon.log_text().contains(&line), "{}", daemon.log_text());

    daemon.set("backends.redis.timeout", "soon");
    let refused = daemon.fusebox(&["config", "reload"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("both are told", LONG, || {
        let log = daemon.log_text();
        let lines =
            log.lines().filter(|it| it.contains("ERROR not reloaded: the old settings stay"));
        let lines: Vec<&str> = lines.filter(|it| it.contains("backends.redis.timeout")).collect();
        lines.len() == 2 && lines[1].contains("by=\"SIGHUP\"")
    });
    let (_, history) = daemon.get("/v1/history?limit=1000");
    let last = history["events"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["event"], &last["by"]), (&json!("reload"), &json!("SIGHUP")), "{last}");
    assert!(last["refused"].as_str().unwrap().contains("backends.redis.timeout"), "{last}");
    let said = daemon.fusebox(&["events", "--limit", "1"]);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("a reload by SIGHUP was refused: "), "{said}");
}

#[test]
fn no_part_of_a_password_is_told_when_a_reload_refuses_its_address() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    for url in ["redis://app:hunter2?x@db:6379", "redis://app:6380?hunter2@db:6379"] {
        daemon.set("backends.redis.url", url);
        let refused = daemon.fusebox(&["config", "reload"]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("percent-encoded") && !said.contains("hunter2"), "{said}");
    }
    let (_, history) = daemon.get("/v1/history?limit=1000");
    daemon.terminate();
    let journal = fs::read_to_string(daemon.state_dir().join("events.jsonl")).unwrap();
    for told in [history.to_string(), daemon.log_text(), journal] {
        assert!(told.contains("percent-encoded") && !told.contains("hunter2"), "{told}");
    }
}

/// Who has used an administrative command is in the log: each time, and without what the command said.
#[test]
fn each_administrative_command_is_logged_with_its_caller() {
    let redis = RedisServer::start();
    let daemon = Daemon::with_redis(&redis.url()).start();
    let socket = daemon.socket().with_file_name("redis.sock");
    let client = redis::Client::open(format!("unix://{}", socket.display())).expect("an address");
    let mut client = client.get_connection().expect("a connection");
    for _ in 0..25 {
        let set = ["SET", "maxmemory-samples", "7"];
        redis::cmd("CONFIG").arg(&set).exec(&mut client).expect("an admin may");
    }
    let mut transaction = redis::pipe();
    transaction.atomic().cmd("CONFIG").arg(&["SET", "maxmemory-samples", "6"]);
    transaction.cmd("GET").arg("k").exec(&mut client).expect("an admin may");
    let mut pipeline = redis::pipe();
    pipeline.cmd("GET").arg("k").cmd("CONFIG").arg(&["SET", "maxmemory-samples", "5"]);
    pipeline.exec(&mut client).expect("an admin may");
    daemon.redis(&["MIGRATE", "127.0.0.1", "1", "session:alice", "0", "10"]);
    redis::cmd("SET").arg(&["CONFIG", "v"]).exec(&mut client).expect("it is no such command");
    let log = daemon.log_text();
    let lines = |of: &str| log.lines().filter(|line| line.contains(of)).count();
    assert_eq!(lines("an administrative command"), 27, "not one is left out: {log}");
    let by = format!("command=\"CONFIG SET\" by=\"user {}\"", nix::unistd::Uid::effective());
    assert_eq!(lines(&by), 27, "{log}");
    assert_eq!(lines("an administrative call"), 1, "{log}");
    assert_eq!(lines("operation=\"MIGRATE\""), 1, "{log}");
    assert_eq!(lines("session:alice"), 0, "{log}");
    assert_eq!(lines("maxmemory-samples"), 0, "{log}");
}
