//! The command line against a running daemon, and without one.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, FUSEBOX};
use crate::support::outage::{begin_outage, operated};
use crate::support::poll::eventually;
use crate::support::proc::require;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command prints, if it succeeds.
#[track_caller]
fn says(daemon: &Daemon, line: &str) -> String {
    let output = daemon.fusebox(&line.split(' ').collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(0), "{line}: {}", err(&output));
    out(&output)
}

/// How a command fails: its exit code and what it says.
#[track_caller]
fn fails(daemon: &Daemon, line: &str, code: i32) -> String {
    let output = daemon.fusebox(&line.split(' ').collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
    err(&output)
}

#[track_caller]
fn json_lines(daemon: &Daemon, line: &str) -> Vec<Value> {
    let said = says(daemon, line);
    said.lines()
        .map(|text| serde_json::from_str(text).unwrap_or_else(|e| panic!("{line}: {e}: {text}")))
        .collect()
}

#[test]
fn every_order_and_every_question_is_answered() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    assert_eq!(says(&daemon, "call redis -- SET k v"), "OK\n");
    assert_eq!(says(&daemon, "breaker redis force-open --reason x"), "redis is OPEN\n");
    assert_eq!(says(&daemon, "call redis --min-ack durable -- INCR n"), "\n");
    assert!(says(&daemon, "status").contains("redis    redis  OPEN (forced)  "));
    assert!(
        says(&daemon, "explain redis").contains("It is forced open until it is released: \"x\".")
    );
    let listed = says(&daemon, "queue ls");
    assert!(listed.starts_with("OP_ID") && listed.contains(" pending  n "), "{listed}");
    let op_id = listed.lines().nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let shown: Value =
        serde_json::from_str(&says(&daemon, &format!("queue show {op_id}"))).unwrap();
    assert_eq!((&shown["op_id"], &shown["call"]), (&json!(op_id), &json!(["INCR", "n"])));
    assert!(fails(&daemon, "queue replay redis", 1).contains("the breaker is open"));
    assert!(fails(&daemon, &format!("queue requeue {op_id}"), 1).contains("already waits"));
    assert_eq!(says(&daemon, &format!("queue discard {op_id}")), format!("{op_id} is discarded\n"));
    assert_eq!(says(&daemon, "queue ls"), "none\n");
    assert_eq!(says(&daemon, "queue replay redis"), "0 calls wait\n");
    // Probes may have closed it before it is answered.
    let for_a_time = fails(&daemon, "breaker redis release --for 10m", 2);
    assert!(for_a_time.contains("takes no --for"), "{for_a_time}");
    let released = says(&daemon, "breaker redis release --reason over");
    assert!(
        matches!(released.as_str(), "redis is HALF_OPEN\n" | "redis is CLOSED\n"),
        "{released}"
    );
    daemon.wait_for_breaker("redis", "CLOSED", LONG);
    assert_eq!(says(&daemon, "recover"), "no breaker was open\n");
    assert_eq!(says(&daemon, "recover redis"), "no breaker was open\n");
    assert_eq!(says(&daemon, "breaker redis force-close"), "redis is CLOSED\n");
    assert_eq!(says(&daemon, "breaker redis reset --reason again"), "redis is CLOSED\n");
    for (order, reason) in [("release", "over"), ("reset", "again")] {
        let logged = std::fs::read_to_string(daemon.log()).unwrap();
        let line = logged.lines().find(|line| line.contains(reason) && line.contains(order));
        assert!(line.is_some_and(|line| line.contains("the reason of an order")), "{logged}");
    }
    assert_eq!(says(&daemon, "offline redis"), "redis is offline\n");
    assert_eq!(says(&daemon, "online redis"), "redis is online\n");
    let history = says(&daemon, "events --limit 100");
    assert!(
        history.contains("CLOSED -> OPEN") && history.contains("HALF_OPEN -> CLOSED"),
        "{history}"
    );
    let shown: toml::Table = says(&daemon, "config show").parse().unwrap();
    assert_eq!(shown["backends"]["redis"]["url"].as_str(), Some(redis.url().as_str()));
}

#[test]
fn a_recovery_names_what_an_order_holds_and_what_releases_it() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    says(&daemon, "breaker redis force-open");
    for recover in ["recover", "recover redis"] {
        let said = fails(&daemon, recover, 1);
        assert_eq!(
            said,
            "redis is forced open, and a recovery cannot change that: run `fusebox breaker redis release`\n"
        );
    }
    says(&daemon, "breaker redis reset");
    says(&daemon, "offline redis");
    let said = fails(&daemon, "recover", 1);
    assert_eq!(
        said,
        "redis is offline, and a recovery cannot change that: run `fusebox online redis`\n"
    );
    says(&daemon, "online redis");
    daemon.wait_for_breaker("redis", "CLOSED", LONG);
    assert_eq!(says(&daemon, "recover"), "no breaker was open\n");
}

#[test]
fn the_queues_of_several_backends_are_asked_for_without_naming_one() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url())
        .set("backends.other.kind", "redis")
        .set("backends.other.url", format!("{}/1", redis.url()))
        .start();
    let queue = |backend: &str, command: [&str; 2]| {
        daemon.order(&format!("/admin/backends/{backend}/offline"));
        let options = json!({ "min_ack": "durable" });
        let reply = daemon.call(backend, json!({ "command": command, "options": options }));
        reply.assert_queued();
        reply.body["op_id"].as_str().unwrap().to_owned()
    };
    let (one, two) = (queue("redis", ["INCR", "n"]), queue("other", ["INCR", "m"]));
    let listed = says(&daemon, "queue ls");
    assert!(listed.starts_with("BACKEND  OP_ID "), "{listed}");
    assert!(listed.contains(&format!("redis    {one}")), "{listed}");
    assert!(listed.contains(&format!("other    {two}")), "{listed}");
    let page: Value = serde_json::from_str(&says(&daemon, "queue ls --json")).unwrap();
    assert_eq!((&page["total"], page["calls"].as_array().map(Vec::len)), (&json!(2), Some(2)));
    let listed = says(&daemon, "queue ls other");
    assert!(listed.starts_with("OP_ID ") && !listed.contains(&one), "{listed}");
    for op_id in [&one, &two] {
        assert!(says(&daemon, &format!("queue show {op_id}")).contains(op_id.as_str()));
        assert!(fails(&daemon, &format!("queue requeue {op_id}"), 1).contains("already waits"));
    }
    // What cannot be replayed is reported, and the rest is replayed.
    let replay = daemon.fusebox(&["queue", "replay"]);
    assert_eq!(replay.status.code(), Some(1), "{replay:?}");
    assert!(err(&replay).contains("redis: ") && err(&replay).contains("other: "), "{replay:?}");
    says(&daemon, "online redis");
    let replay = daemon.fusebox(&["queue", "replay"]);
    assert!(out(&replay).contains("redis: ") && err(&replay).contains("other: "), "{replay:?}");
    let said = says(&daemon, &format!("queue discard {two}"));
    assert_eq!(said, format!("{two} is discarded\n"));
    let absent = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let said = fails(&daemon, &format!("queue discard {absent}"), 1);
    assert!(said.contains("the queues of other, redis have no call or dead letter"), "{said}");
}

#[test]
fn a_new_address_of_an_empty_queue_warns_of_nothing() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let mut daemon = operated(&old.url()).start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    daemon.set("backends.redis.url", new.url());
    says(&daemon, "config reload");
    daemon.redis(&["SET", "k", "v"]).assert_live();
    assert_eq!(new.get("k").as_deref(), Some("v"));
    let log = daemon.log_text();
    assert!(!log.contains("calls wait for") && !log.contains("retarget"), "{log}");
    assert!(!says(&daemon, "events --limit 1000").contains("calls wait for"));
}

/// `text` with each number as `#`, without its decimals.
fn without_numbers(text: &str) -> String {
    let mut masked = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let in_number = masked.ends_with('#');
        let goes_on = letters.peek().is_some_and(char::is_ascii_digit);
        match letter {
            '0'..='9' if in_number => {}
            '0'..='9' => masked.push('#'),
            '.' if in_number && goes_on => {}
            _ => masked.push(letter),
        }
    }
    masked
}

#[test]
fn an_explanation_tells_what_happened_since_when_and_what_comes_next() {
    let mut redis = RedisServer::start();
    let mut daemon = Daemon::with_redis(&redis.url())
        .set("health.interval", "1h")
        .set("backends.redis.breaker.recovery_timeout", "4m")
        .set("tracing.jaeger_url", "http://jaeger:16686/")
        .start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    let peace = says(&daemon, "explain redis");
    assert_eq!(
        without_numbers(&peace),
        "redis  CLOSED
  The breaker of redis has been CLOSED since #-#-#T#:#:#Z, for # s.
  # of # calls failed within the last # min; it would trip at # failures that are at least # % of the calls.
  The next ping is in # min # s.
  # call was answered in the last # s: # live.

window of # s: # call, # failures (rate #); trips at # failures and a rate of #
"
    );
    redis.kill_9();
    let failing: Vec<_> = (0..5).map(|_| daemon.redis(&["LLEN", "l"])).collect();
    daemon.wait_for_breaker("redis", "OPEN", LONG);
    daemon.redis(&["SET", "k", "w"]).assert_queued();
    let outage = says(&daemon, "explain redis");
    let story: Vec<&str> = outage.lines().take_while(|line| !line.is_empty()).collect();
    // A ping may be on its way.
    let is_ping = |line: &&&str| line.contains("The next ping is in ");
    let lasting: Vec<&str> = story.iter().filter(|line| !is_ping(line)).copied().collect();
    // The first error may have been the end of the old connection.
    let told = without_numbers(&lasting.join("\n")).replace("# \u{d7} reset, ", "");
    assert_eq!(
        told,
        "redis  OPEN
  The breaker of redis has been OPEN since #-#-#T#:#:#Z, for # s.
  It opened because # of # calls failed within # min (# %; it trips at # failures and # % in this time).
  The last # errors before the outage: # \u{d7} connect.
  The last error, at #-#-#T#:#:#Z, # s ago, was connect: cannot connect to #:#: Connection refused (os error #).
  It becomes half-open at #-#-#T#:#:#Z, in # min # s, and then lets # probes through; if they all succeed, it closes.
  # write waits in its queue, the oldest for # s.
  Replay does not send it: the breaker is open.
  # calls were answered in the last # s: # with an error, # live, # queued."
    );
    for part in [
        "because 5 of 6 calls failed within 1 min (83 %; it trips at 5 failures and 50 % in this time)",
        "The last 5 errors before the outage: ",
        "in 3 min 5",
        "lets 3 probes through",
        "1 write waits",
        "7 calls were answered in the last ",
        ": 5 with an error, 1 live, 1 queued.",
        "\nwhat you can do\n  `fusebox recover redis` tries a recovery now.\n",
    ] {
        assert!(outage.contains(part), "{part}: {outage}");
    }

    let traces: Vec<&str> =
        failing.iter().map(|reply| reply.body["trace_id"].as_str().unwrap()).collect();
    let told: Value = serde_json::from_str(&says(&daemon, "explain redis --json")).unwrap();
    for line in lasting.iter().skip(1).map(|line| without_numbers(line.trim())) {
        let sentences = told["story"].as_array().unwrap().iter();
        let mut sentences = sentences.map(|said| without_numbers(said.as_str().unwrap()));
        assert!(sentences.any(|said| said == line), "{line}: {told}");
    }
    let since = told["breaker"]["since"].clone();
    daemon.kill_9();
    daemon.restart();
    // What led to the outage and when it began outlive the daemon.
    let told: Value = serde_json::from_str(&says(&daemon, "explain redis --json")).unwrap();
    assert_eq!(told["breaker"]["since"], since);
    let text = says(&daemon, "explain redis");
    assert!(text.contains("because 5 of 6 calls failed within 1 min"), "{text}");
    for (trace, shown) in traces.iter().zip(told["traces"].as_array().unwrap()) {
        let url = format!("http://jaeger:16686/trace/{trace}");
        assert_eq!(shown, &json!({ "trace_id": trace, "url": url }));
        assert!(text.contains(&url), "{text}");
    }
    assert_eq!(told["traces"].as_array().unwrap().len(), 5);

    says(&daemon, "breaker redis force-open --reason drill --for 10m");
    let forced = says(&daemon, "explain redis");
    for part in [
        "An operator forced it open.",
        ", for another 9 min 5",
        ": \"drill\".",
        "`fusebox breaker redis release` ends the forced state.",
        "The outage began at ",
        "ago: it opened because 5 of 6",
    ] {
        assert!(forced.contains(part), "{part}: {forced}");
    }
    says(&daemon, "offline redis");
    let offline = says(&daemon, "explain redis");
    assert!(offline.contains("`fusebox online redis` takes it online again."), "{offline}");
}

#[test]
fn json_is_json_an_object_a_line() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    says(&daemon, "breaker redis force-open");
    says(&daemon, "call redis -- SET k v");
    let one = |line: &str| {
        let mut lines = json_lines(&daemon, line);
        assert_eq!(lines.len(), 1, "{line}");
        lines.remove(0)
    };
    assert_eq!(one("status --json")["backends"]["redis"]["queue"]["calls"], 1);
    assert_eq!(one("explain redis --json")["backend"], "redis");
    assert_eq!(one("call redis --json -- GET k")["source"], "queued");
    assert_eq!(one("queue ls --json")["total"], 1);
    assert_eq!(one("config show --json")["backends"]["redis"]["kind"], "redis");
    let events = json_lines(&daemon, "events --json");
    for kind in ["daemon", "fallback", "transition", "system_state"] {
        assert!(events.iter().any(|event| event["event"] == kind), "{kind}: {events:?}");
    }
    let config = daemon.configuration();
    let checked = one(&format!("check --json --config {}", config.display()));
    assert_eq!((&checked["ok"], &checked["problems"]), (&json!(true), &json!([])));
    // A refused call is shown as JSON too, and by its exit code.
    let refused = daemon.fusebox(&["call", "redis", "--json", "--", "LLEN", "l"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let problem: Value = serde_json::from_str(&out(&refused)).unwrap();
    assert_eq!((&problem["status"], &problem["code"]), (&json!(503), &json!("breaker_open")));
}

#[test]
fn events_are_followed_as_they_happen() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut following = daemon
        .cli(&["events", "--follow", "--backend", "redis", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = following.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut heard, mut buffer) = (String::new(), [0; 4096]);
        while !heard.contains("\"to\":\"OPEN\"") {
            let read = stdout.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "it ended: {heard}");
            heard.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    });
    // It may not listen yet when the first change happens.
    eventually("it hears of a change", LONG, || {
        says(&daemon, "breaker redis force-open");
        says(&daemon, "breaker redis reset");
        reader.is_finished()
    });
    reader.join().unwrap();
    following.kill().unwrap();
    following.wait().unwrap();
}

#[test]
fn exit_codes_tell_what_kind_of_failure_it_was() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    says(&daemon, "call redis -- SET k v");
    for (line, code, part) in [
        ("call redis -- LLEN k", 1, "WRONGTYPE"),
        ("call redis -- SELECT 1", 1, "unsupported_command"),
        ("breaker redis release", 1, "is not forced"),
        ("queue show 01ARZ3NDEKTSV4RRFFQ69G5FAV", 1, "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        ("backend accept-retarget redis", 1, "no calls of redis wait for another address"),
        ("call nosuch -- GET k", 2, "there is no backend \"nosuch\"; there are: redis"),
        ("offline nosuch", 2, "there is no backend"),
        ("recover nosuch", 2, "nosuch"),
        ("call redis -- GET", 2, "GET takes 1 argument, got 0"),
        ("call redis -- NOSUCH", 1, "NOSUCH"),
        ("breaker redis ajar", 2, "ajar"),
        ("breaker redis reset --for 1m", 2, "takes no --for"),
        ("queue show nonsense", 2, "nonsense"),
        ("frobnicate", 2, "frobnicate"),
        ("call redis --deadline soon -- GET k", 2, "soon"),
    ] {
        let said = fails(&daemon, line, code);
        assert!(said.contains(part), "{line}: {said}");
    }
    says(&daemon, "breaker redis force-open");
    assert!(fails(&daemon, "call redis -- LLEN l", 4).contains("breaker_open"));
    assert_eq!(says(&daemon, "call redis -- GET k"), "\n", "bypass is an answer");
    daemon.kill_9();
    for line in ["status", "call redis -- GET k", "queue ls", "config show", "recover", "events"] {
        assert!(fails(&daemon, line, 3).contains("no daemon at"), "{line}");
    }
}

#[test]
fn a_call_prints_in_a_pipe_what_redis_cli_would() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    says(&daemon, "call redis -- RPUSH list a b c");
    assert_eq!(says(&daemon, "call redis -- GET absent"), "\n");
    assert_eq!(says(&daemon, "call redis -- LRANGE list 0 -1"), "a\nb\nc\n");
    assert_eq!(says(&daemon, "call redis -- LRANGE absent 0 -1"), "");
    assert_eq!(says(&daemon, "call redis -- LLEN list"), "3\n");
    let binary = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff, b'\r', b'\n', 1]);
    let set = daemon
        .cli(&["call", "redis", "--", "SET", "bin"])
        .arg::<std::ffi::OsString>(binary)
        .output();
    assert_eq!(out(&set.unwrap()), "OK\n");
    let read = daemon.fusebox(&["call", "redis", "--", "GET", "bin"]);
    assert_eq!(read.stdout, b"\xff\r\n\x01\n");

    // A reader that has enough is not an error, whatever is left to say.
    let many: Vec<String> = (0..20_000).map(|item| format!("item {item}")).collect();
    let mut push = vec!["RPUSH", "long"];
    push.extend(many.iter().map(String::as_str));
    daemon.redis(&push).assert_live();
    let mut printing = daemon
        .cli(&["call", "redis", "--", "LRANGE", "long", "0", "-1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 7];
    printing.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let ended = printing.wait_with_output().unwrap();
    assert_eq!((&first, err(&ended)), (b"item 0\n", String::new()));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn completions_and_the_man_page_are_what_their_readers_take() {
    let run = |arguments: &[&str]| {
        let output = Command::new(FUSEBOX).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let script = run(&["completions", "bash"]);
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(&script).unwrap();
    assert!(bash.wait().unwrap().success());
    assert!(String::from_utf8(script).unwrap().contains("force-open"));

    let page = run(&["man"]);
    let mut man = Command::new(require("man", "man-db"))
        .args(["--warnings", "-l", "-"])
        .env("MANWIDTH", "100")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    man.stdin.take().unwrap().write_all(&page).unwrap();
    let rendered = man.wait_with_output().unwrap();
    assert!(rendered.status.success(), "{}", err(&rendered));
    assert_eq!(err(&rendered), "");
    for word in ["SYNOPSIS", "--state-dir", "Exit codes"] {
        let text = out(&rendered).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn a_password_is_printed_nowhere() {
    const SECRET: &str = "s3cr3t-w0rd";
    let mut redis = RedisServer::start();
    redis.require_password(SECRET);
    let url = redis.url().replace("redis://", &format!("redis://:{SECRET}@"));
    let daemon = operated(&url).env("RUST_LOG", "trace").start();
    daemon.redis(&["PING"]).assert_live();
    redis.query::<String>(&["CONFIG", "SET", "requirepass", "another"]);
    begin_outage(&mut redis, &daemon);
    let config = daemon.configuration();
    let mut told = daemon.log_text();
    assert!(told.len() > 1_000, "the log is there to be looked at");
    for line in [
        "config show",
        "config show --json",
        &format!("check --config {}", config.display()),
        &format!("check --json --config {}", config.display()),
        "status",
        "status --json",
        "explain redis",
        "events",
    ] {
        let output = daemon.fusebox(&line.split(' ').collect::<Vec<_>>());
        told.push_str(&out(&output));
        told.push_str(&err(&output));
    }
    for path in ["/health/resilience", "/metrics", "/admin/config", "/admin/backends/redis/config"]
    {
        told.push_str(&daemon.get(path).1.to_string());
    }
    assert!(told.contains(":***@127.0.0.1"), "masked, not left out");
    let line = told.lines().find(|line| line.contains(SECRET));
    assert_eq!(line, None);
}

#[test]
fn a_force_with_an_end_expires_by_itself() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let said = says(&daemon, "breaker redis force-open --reason x --for 1s");
    assert_eq!(said, "redis is OPEN\n");
    let (_, view) = daemon.get("/v1/backends/redis");
    let forced = &view["breaker"]["forced"];
    assert_eq!((&forced["state"], &forced["reason"]), (&json!("open"), &json!("x")));
    assert!(!forced["until"].is_null());
    assert_eq!(daemon.redis(&["LLEN", "l"]).status, 503);
    daemon.wait_for_breaker("redis", "CLOSED", LONG);
    daemon.redis(&["LLEN", "l"]).assert_live();
    let (_, view) = daemon.get("/v1/backends/redis");
    assert_eq!(view["breaker"]["forced"], Value::Null);
}

#[test]
fn orders_survive_a_restart() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    says(&daemon, "offline redis");
    says(&daemon, "breaker redis force-close --reason drill");
    daemon.kill_9();
    daemon.restart();
    let status = daemon.status("redis");
    assert_eq!(status["offline"], json!(true), "{status}");
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    says(&daemon, "online redis");
    let (_, view) = daemon.get("/v1/backends/redis");
    assert_eq!(view["breaker"]["forced"]["reason"], "drill");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("v"));
    assert_eq!(redis.times_called("set"), 1);
}

#[test]
fn calls_for_another_address_wait_until_an_operator_lets_them_go() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let mut daemon = operated(&old.url()).start();
    says(&daemon, "offline redis");
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    assert!(daemon.terminate().success());
    daemon.set("backends.redis.url", new.url());
    daemon.restart();
    says(&daemon, "online redis");
    assert_eq!(
        daemon.status("redis")["offline"],
        json!(true),
        "the operator's online is not enough"
    );
    let (_, view) = daemon.get("/v1/backends/redis");
    let alerts = view["alerts"].as_array().unwrap();
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    let alert = alerts[0].as_str().unwrap();
    assert!(
        alert.contains(&old.port().to_string()) && alert.contains("accept-retarget"),
        "{alert}"
    );
    assert!(says(&daemon, "status").contains("OFFLINE"));
    assert_eq!(new.get("k"), None);

    let said = says(&daemon, "backend accept-retarget redis");
    assert!(said.contains(&new.port().to_string()), "{said}");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!((new.get("k").as_deref(), old.get("k")), (Some("v"), None));
    assert_eq!(daemon.get("/v1/backends/redis").1["alerts"], json!([]));
    // Remembered: the next start asks nothing.
    daemon.restart();
    daemon.redis(&["SET", "k", "w"]).assert_live();
}

#[test]
fn an_empty_queue_lets_the_address_change() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let mut daemon = operated(&old.url()).start();
    says(&daemon, "offline redis");
    let queued = daemon.redis(&["SET", "k", "v"]);
    queued.assert_queued();
    daemon.kill_9();
    daemon.set("backends.redis.url", new.url());
    daemon.restart();
    says(&daemon, "online redis");
    let op_id = queued.body["op_id"].as_str().unwrap();
    says(&daemon, &format!("queue discard {op_id}"));
    daemon.wait_until("it is not held any more", LONG, |daemon| {
        daemon.status("redis")["offline"] == json!(false)
    });
    daemon.redis(&["SET", "k", "w"]).assert_live();
    assert_eq!(new.get("k").as_deref(), Some("w"));
    assert_eq!(daemon.get("/v1/backends/redis").1["alerts"], json!([]));
}

#[test]
fn a_reload_applies_thresholds_and_refuses_an_address_that_calls_wait_for() {
    let (mut old, new) = (RedisServer::start(), RedisServer::start());
    let mut daemon = operated(&old.url()).start();
    let threshold = |daemon: &Daemon| {
        let (_, config) = daemon.get("/admin/backends/redis/config");
        config["effective"]["breaker"]["failure_threshold"].as_u64().unwrap()
    };
    assert_eq!(says(&daemon, "config reload"), "nothing changed\n");
    daemon.set("backends.redis.breaker.failure_threshold", 3);
    daemon.set("backends.redis.retry.attempts", 1);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_until("it is applied", LONG, |_| threshold(&daemon) == 3);
    old.kill_9();
    for _ in 0..2 {
        daemon.redis(&["GET", "k"]);
    }
    assert_eq!(daemon.breaker("redis"), "CLOSED", "two failures are not enough now");
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    daemon.wait_for_breaker("redis", "OPEN", LONG);

    daemon.set("backends.redis.url", new.url());
    daemon.set("backends.redis.breaker.failure_threshold", 9);
    let refused = fails(&daemon, "config reload", 1);
    assert!(refused.contains("wait for") && refused.contains(&old.port().to_string()), "{refused}");
    let refusals = || daemon.log_text().matches("not reloaded").count();
    let before = refusals();
    daemon.signal(Signal::SIGHUP);
    eventually("the refusal is logged", LONG, || refusals() > before);
    assert_eq!(threshold(&daemon), 3, "refused whole");
    let (_, config) = daemon.get("/admin/backends/redis/config");
    assert_eq!(config["effective"]["url"], old.url());

    // Once nothing waits it may change.
    daemon.set("backends.redis.url", old.url());
    old.restart();
    says(&daemon, "recover redis");
    daemon.wait_until_drained("redis", LONG);
    daemon.set("backends.redis.url", new.url());
    let changed = "changed: backends.redis.breaker.failure_threshold, backends.redis.url\n";
    assert_eq!(says(&daemon, "config reload"), changed);
    daemon.redis(&["SET", "k", "w"]).assert_live();
    assert_eq!((new.get("k").as_deref(), old.get("k").as_deref()), (Some("w"), Some("v")));

    // A file that does not read changes nothing and is reported.
    fs::write(daemon.configuration(), "[backends.redis]\nurll = 'x'\n").unwrap();
    let refused = fails(&daemon, "config reload", 1);
    assert!(refused.contains("the nearest is backends.redis.url"), "{refused}");
    daemon.redis(&["GET", "k"]).assert_live();
}

#[test]
fn what_another_address_had_cached_is_not_answered() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let caches = tempfile::tempdir().unwrap();
    let mut daemon = operated(&old.url())
        .set("backends.redis.cache.dir", caches.path().to_str().unwrap())
        .start();
    let source = |daemon: &Daemon| daemon.redis(&["GET", "k"]).source().to_owned();
    daemon.redis(&["SET", "k", "old"]).assert_live();
    assert_eq!(source(&daemon), "live");
    says(&daemon, "breaker redis force-open");
    assert_eq!(source(&daemon), "cache");
    // Nor from the snapshot of an earlier run.
    assert!(daemon.terminate().success());
    daemon.set("backends.redis.url", new.url());
    daemon.restart();
    assert_eq!(source(&daemon), "bypass");
    daemon.kill_9();
    daemon.set("backends.redis.url", old.url());
    daemon.restart();
    assert_eq!(source(&daemon), "stale");
    daemon.set("backends.redis.url", new.url());
    says(&daemon, "config reload");
    assert_eq!(source(&daemon), "bypass");
}

#[test]
fn a_check_says_all_that_is_wrong_and_startup_only_what_stops_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fusebox.toml");
    let check = |text: &str, arguments: &[&str]| {
        fs::write(&file, text).unwrap();
        let state = folder.path().join("state");
        let output = Command::new(FUSEBOX)
            .arg("check")
            .args(arguments)
            .arg("--config")
            .arg(&file)
            .arg("--state-dir")
            .arg(state)
            .env("FUSEBOX_NO_SUCH", "1")
            .output()
            .unwrap();
        (output.status.code(), out(&output), err(&output))
    };
    let (code, _, said) = check("", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("warning: FUSEBOX_NO_SUCH is set, but names no setting: ignored"),
        "{said}"
    );
    assert_eq!(check("", &["--startup"]).0, Some(0));
    let wrong = "[backends.redis]\ntimeout = '0s'\non_miss = 'zero'\n";
    for arguments in [&[][..], &["--startup"]] {
        let (code, _, said) = check(wrong, arguments);
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains("error: backends.redis.timeout must be at least 1ms, got 0s"),
            "{said}"
        );
        assert!(
            said.contains("error: backends.redis.on_miss must be \"nil\" or \"error\""),
            "{said}"
        );
    }
    let (code, told, _) = check(wrong, &["--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["ok"]), (Some(2), &json!(false)));
}
