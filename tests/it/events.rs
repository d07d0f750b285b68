//! What happened is kept over restarts, in order, and each once.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::poll::Stop;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);

#[track_caller]
fn events(daemon: &Daemon, arguments: &str) -> Vec<Value> {
    let all = format!("events --json {arguments}");
    let output = daemon.fusebox(&all.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "{arguments}: {output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn assert_in_order(events: &[Value]) {
    let ids: Vec<u64> = events.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
}

fn position(events: &[Value], wanted: &Value) -> Option<usize> {
    let fits = |event: &Value| {
        wanted.as_object().unwrap().iter().all(|(key, value)| event[key.as_str()] == *value)
    };
    events.iter().position(fits)
}

#[test]
fn what_happened_before_a_kill_is_there_after_it_in_order_and_once() {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "text", "no number"]).assert_live();
    begin_outage(&mut redis, &daemon);
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    redis.restart();
    redis.query::<String>(&["SET", "text", "no number"]);
    daemon.redis_with(&["INCR", "text"], json!({ "min_ack": "durable" })).assert_queued();
    recover(&daemon);
    daemon.wait_until("all is replayed", LONG, |daemon| daemon.queued("redis", "pending") == 0);
    daemon.wait_until("one is buried", LONG, |daemon| daemon.queued("redis", "dead") == 1);
    daemon.order("/admin/backends/redis/offline");
    daemon.order("/admin/backends/redis/online");
    let told = daemon.events();
    daemon.order("/admin/circuit-breaker/redis/force-open");
    told.next("the last of it", LONG, |event| event.data["reason"] == "forced_open");
    let before = events(&daemon, "--limit 1000");
    daemon.kill_9();
    // A crash in the middle of a line.
    let journal = daemon.state_dir().join("events.jsonl");
    let mut file = std::fs::OpenOptions::new().append(true).open(journal).unwrap();
    file.write_all(b"{\"id\":999999,\"at\":").unwrap();
    daemon.restart();
    daemon.order("/admin/circuit-breaker/redis/reset");

    let after = events(&daemon, "--limit 1000");
    assert_in_order(&after);
    assert_eq!(after[..before.len()], before, "what was there before");
    let next = &after[before.len()..];
    assert!(
        position(next, &json!({ "event": "daemon", "phase": "started" })).is_some(),
        "{next:?}"
    );
    let steps = [
        json!({ "event": "daemon", "phase": "started" }),
        json!({ "event": "fallback", "backend": "redis", "active": true }),
        json!({ "event": "transition", "from": "CLOSED", "to": "OPEN", "reason": "failure_rate" }),
        json!({ "event": "transition", "to": "HALF_OPEN" }),
        json!({ "event": "transition", "to": "CLOSED", "reason": "probes_succeeded" }),
    ];
    let places: Vec<usize> = steps
        .iter()
        .map(|step| position(&before, step).unwrap_or_else(|| panic!("{step} in {before:?}")))
        .collect();
    assert!(places.is_sorted(), "{places:?} in {before:?}");
    for more in [
        json!({ "event": "system_state", "to": "CRITICAL" }),
        json!({ "event": "fallback", "active": false }),
        json!({ "event": "replay", "phase": "started" }),
        json!({ "event": "replay", "phase": "drained" }),
        json!({ "event": "dead_letter", "backend": "redis" }),
        json!({ "event": "offline", "offline": true }),
        json!({ "event": "offline", "offline": false }),
    ] {
        assert!(position(&before, &more).is_some(), "{more} in {before:?}");
    }

    // A part of it, by time and by backend.
    let first = position(&after, &json!({ "event": "offline" })).unwrap();
    let at = after[first]["at"].as_str().unwrap();
    let since = events(&daemon, &format!("--since {at}"));
    assert_eq!(since.last(), after.last());
    assert!(since.len() >= after.len() - first, "{since:?}");
    assert!(since.iter().all(|event| event["at"].as_str().unwrap() >= at), "{since:?}");
    assert_eq!(events(&daemon, "--since 1h --limit 3"), after[after.len() - 3..]);
    assert_eq!(events(&daemon, "--since 1h --backend redis"), after, "there is no other");
    let (status, answer) = daemon.get("/v1/history?since=1h&backend=redis&limit=2");
    assert_eq!((status, &answer["more"]), (200, &json!(true)));
    assert_eq!(answer["events"].as_array().unwrap()[..], after[after.len() - 2..]);
    assert_eq!(answer["transitions"].as_array().unwrap().len(), 2);
    let (status, answer) = daemon.get("/v1/history?since=yesterday");
    assert_eq!(status, 400, "{answer}");
    assert!(answer["detail"].as_str().unwrap().starts_with("since must be a duration"), "{answer}");
    let refused = daemon.fusebox(&["events", "--since", "yesterday"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let refused = daemon.fusebox(&["events", "--backend", "nosuch"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");

    // A stop that was asked for is published, and nothing after it.
    assert!(daemon.terminate().success());
    daemon.restart();
    let after = events(&daemon, "--limit 1000");
    let stopped = position(&after, &json!({ "event": "daemon", "phase": "stopped" })).unwrap();
    assert_eq!(after[stopped + 1]["phase"], "started", "{after:?}");
}

/// `events --follow` with its lines.
struct Following {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Following {
    fn of(daemon: &Daemon, arguments: &[&str]) -> Self {
        let mut command = daemon.cli(&["events", "--follow", "--json"]);
        let mut process = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    #[track_caller]
    fn next(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("it goes on").unwrap()).unwrap()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn following_goes_on_where_the_past_ends_without_a_gap_or_a_repetition() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let stop = Stop::default();
    let (client, watch) = (daemon.client(), stop.watch());
    // Things happen all the time: also while it looks for the past and begins to listen.
    let flapping = std::thread::spawn(move || {
        while !watch.is_set() {
            client.order("/admin/circuit-breaker/redis/force-open");
            client.order("/admin/circuit-breaker/redis/reset");
        }
    });
    for _ in 0..30 {
        let mut following = Following::of(&daemon, &["--since", "1h", "--limit", "20"]);
        let ids: Vec<u64> = (0..40).map(|_| following.next()["id"].as_u64().unwrap()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{ids:?}");
    }
    drop(stop);
    flapping.join().unwrap();

    // Without --since or --limit it begins with now.
    let last = events(&daemon, "--limit 1")[0]["id"].as_u64();
    let mut following = Following::of(&daemon, &[]);
    let begun = Stop::default();
    let (client, watch) = (daemon.client(), begun.watch());
    let flapping = std::thread::spawn(move || {
        while !watch.is_set() {
            client.order("/admin/circuit-breaker/redis/force-open");
            client.order("/admin/circuit-breaker/redis/reset");
        }
    });
    assert!(following.next()["id"].as_u64() > last);
    drop(begun);
    flapping.join().unwrap();
}
