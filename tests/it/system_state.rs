//! The state of the whole system, from three backends of which one is critical.

use std::cell::RefCell;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Builder, Client, Daemon, FUSEBOX, Reply};
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);

/// `redis` and `feed`, without which the system is DEGRADED, and `sessions`, without which it is
/// CRITICAL.
struct System {
    redis: RedisServer,
    sessions: RedisServer,
    feed: RedisServer,
}

impl System {
    fn start() -> Self {
        Self {
            redis: RedisServer::start(),
            sessions: RedisServer::start(),
            feed: RedisServer::start(),
        }
    }

    fn builder(&self) -> Builder {
        let mut builder = Daemon::with_redis(&self.redis.url())
            .set("health.interval", "1h")
            .set("backends.sessions.kind", "redis")
            .set("backends.sessions.url", self.sessions.url())
            .set("backends.sessions.critical", true)
            .set("backends.feed.kind", "redis")
            .set("backends.feed.url", self.feed.url());
        for name in ["redis", "sessions", "feed"] {
            let breaker = format!("backends.{name}.breaker");
            builder = builder
                .set(&format!("{breaker}.failure_threshold"), 1)
                .set(&format!("{breaker}.failure_rate"), 0.0)
                .set(&format!("{breaker}.recovery_timeout"), "4m");
        }
        builder
    }
}

fn call(daemon: &Client, backend: &str, command: &[&str]) -> Reply {
    daemon.call(backend, json!({ "command": command }))
}

fn force_open(daemon: &Client, backend: &str) {
    daemon.order(&format!("/admin/circuit-breaker/{backend}/force-open"));
}

fn reset(daemon: &Client, backend: &str) {
    daemon.order(&format!("/admin/circuit-breaker/{backend}/reset"));
}

#[track_caller]
fn wait_for_state(daemon: &Client, state: &str) {
    daemon.wait_until(&format!("the system is {state}"), LONG, |daemon| {
        daemon.get("/health").1["state"] == state
    });
}

/// Waits until health has seen at least so many percent operational, and fails the test if that has
/// changed the state.
#[track_caller]
fn assert_held(daemon: &Client, state: &str, percent: f64) {
    daemon.wait_until("it is seen to be better", LONG, |daemon| {
        let (_, health) = daemon.get("/health");
        assert_eq!(health["state"], state, "better is not believed at once: {health}");
        health["operational_percent"].as_f64() >= Some(percent)
    });
}

/// The state as every place tells it.
#[track_caller]
fn assert_state(daemon: &Daemon, state: &str, exit_code: i32, status: u16) {
    wait_for_state(daemon, state);
    let (answered, health) = daemon.get("/health");
    assert_eq!((answered, &health["state"]), (status, &json!(state)), "{health}");
    assert_eq!(health["reasons"] == json!([]), state == "HEALTHY", "{health}");
    let cli = daemon.fusebox(&["status", "--exit-code"]);
    assert_eq!(cli.status.code(), Some(exit_code), "{cli:?}");
    assert!(String::from_utf8_lossy(&cli.stdout).contains(state), "{cli:?}");
    assert_eq!(daemon.fusebox(&["status"]).status.code(), Some(0), "only where it is asked for");
    let marked = daemon.metric("system_state", &[("state", state)]);
    assert_eq!(format!("{marked}"), "1", "the metric of {state}");
    assert_eq!(daemon.get("/health/ready").0, 200, "whatever its backends do");
}

#[test]
fn every_state_has_its_exit_code_and_worse_is_immediate_and_better_is_held() {
    let system = System::start();
    let daemon = system.builder().start();
    assert_state(&daemon, "HEALTHY", 0, 200);
    assert_eq!(daemon.get("/health").1["operational_percent"], json!(100.0));
    force_open(&daemon, "redis");
    assert_state(&daemon, "DEGRADED", 1, 200);
    force_open(&daemon, "sessions");
    assert_state(&daemon, "EMERGENCY", 3, 503);
    let reasons = daemon.get("/health").1["reasons"].to_string();
    assert!(reasons.contains("critical backend sessions is down (OPEN, forced)"), "{reasons}");
    reset(&daemon, "redis");
    let begun = Instant::now();
    assert_held(&daemon, "EMERGENCY", 66.0);
    assert_state(&daemon, "CRITICAL", 2, 503);
    assert!(begun.elapsed() > Duration::from_millis(4_500), "held for {:?}", begun.elapsed());
    reset(&daemon, "sessions");
    assert_state(&daemon, "HEALTHY", 0, 200);
}

#[test]
fn an_emergency_is_read_only_while_replay_goes_on_and_ends_by_itself() {
    let mut system = System::start();
    let daemon = system.builder().start();
    call(&daemon, "feed", &["SET", "old", "v"]).assert_live();
    system.redis.kill_9();
    system.sessions.kill_9();
    for backend in ["redis", "sessions"] {
        call(&daemon, backend, &["SET", "k", "v"]).assert_queued();
    }
    wait_for_state(&daemon, "EMERGENCY");

    call(&daemon, "feed", &["GET", "old"]).assert_live();
    let write = call(&daemon, "feed", &["SET", "new", "v"]);
    write.assert_queued();
    let refused = call(&daemon, "feed", &["INCR", "n"]);
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (503, &json!("read_only")),
        "{}",
        refused.body
    );
    assert_eq!(system.feed.get("n"), None);
    daemon.wait_until("it is replayed though no write is let through", LONG, |_| {
        system.feed.get("new").is_some()
    });
    assert_eq!(daemon.get("/health").1["state"], "EMERGENCY");

    system.redis.restart();
    system.sessions.restart();
    let (status, body) = daemon.post("/admin/resilience/force-recovery", Value::Null);
    assert_eq!(status, 200, "{body}");
    wait_for_state(&daemon, "HEALTHY");
    for backend in ["redis", "sessions"] {
        daemon.wait_until_drained(backend, LONG);
    }
    assert_eq!(system.redis.get("k").as_deref(), Some("v"));
    assert_eq!(system.sessions.get("k").as_deref(), Some("v"));
    call(&daemon, "feed", &["SET", "new", "w"]).assert_live();
}

#[test]
fn an_emergency_is_left_without_an_operator() {
    let mut system = System::start();
    let daemon = system
        .builder()
        .set("health.interval", "200ms")
        .set("backends.redis.breaker.recovery_timeout", "500ms")
        .set("backends.sessions.breaker.recovery_timeout", "500ms")
        .start();
    system.redis.kill_9();
    system.sessions.kill_9();
    wait_for_state(&daemon, "EMERGENCY");
    system.redis.restart();
    system.sessions.restart();
    wait_for_state(&daemon, "HEALTHY");
}

#[test]
fn low_priority_gets_no_live_attempt_in_critical() {
    let system = System::start();
    let daemon = system.builder().start();
    call(&daemon, "feed", &["SET", "k", "v"]).assert_live();
    call(&daemon, "feed", &["GET", "k"]).assert_live();
    force_open(&daemon, "sessions");
    wait_for_state(&daemon, "CRITICAL");
    let low = |command: &[&str]| {
        let call = json!({ "command": command, "options": { "priority": "low" } });
        daemon.call("feed", call)
    };
    let cached = low(&["GET", "k"]);
    assert_eq!((cached.source(), cached.value()), ("cache", &json!("v")), "{}", cached.body);
    assert_eq!(low(&["GET", "unknown"]).source(), "bypass");
    for command in [vec!["LLEN", "l"], vec!["INCR", "n"]] {
        let shed = low(&command);
        assert_eq!((shed.status, &shed.body["code"]), (503, &json!("shed")), "{}", shed.body);
    }
    assert_eq!(system.feed.times_called("llen") + system.feed.times_called("incr"), 0);
    call(&daemon, "feed", &["LLEN", "l"]).assert_live();
    call(&daemon, "feed", &["INCR", "n"]).assert_live();
}

#[test]
fn a_flapping_backend_does_not_make_the_system_flap() {
    let system = System::start();
    let daemon = system.builder().start();
    let events = daemon.events();
    for _ in 0..8 {
        force_open(&daemon, "redis");
        wait_for_state(&daemon, "DEGRADED");
        reset(&daemon, "redis");
        assert_held(&daemon, "DEGRADED", 100.0);
    }
    let changes = RefCell::new(Vec::new());
    events.next("it is healthy in the end", LONG, |event| {
        if event.kind == "system_state" {
            changes.borrow_mut().push(event.data["to"].clone());
        }
        event.kind == "system_state" && event.data["to"] == "HEALTHY"
    });
    assert_eq!(*changes.borrow(), ["DEGRADED", "HEALTHY"]);
}

#[test]
fn dependencies_that_lead_back_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fusebox.toml");
    let text = "[backends.redis]\ndepends_on = ['b']\n\
                [backends.b]\nkind = 'redis'\ndepends_on = ['c']\n\
                [backends.c]\nkind = 'redis'\ndepends_on = ['b']\n";
    fs::write(&file, text).unwrap();
    for command in ["check", "run"] {
        let output = Command::new(FUSEBOX)
            .arg(command)
            .arg("--config")
            .arg(&file)
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command}: {said}");
        let wanted = "depends_on must not form a cycle: b -> c -> b";
        assert!(said.contains(wanted), "{command}: {said}");
    }
    assert!(!folder.path().join("state").try_exists().unwrap(), "nothing was made");
}

#[test]
fn a_forced_recovery_takes_dependencies_first() {
    let mut system = System::start();
    let daemon = system
        .builder()
        .set("backends.redis.depends_on", vec!["feed"])
        .set("backends.feed.depends_on", vec!["sessions"])
        .start();
    for server in [&mut system.redis, &mut system.sessions, &mut system.feed] {
        server.kill_9();
    }
    for backend in ["redis", "sessions", "feed"] {
        call(&daemon, backend, &["GET", "k"]);
        daemon.wait_for_breaker(backend, "OPEN", LONG);
    }
    for server in [&mut system.redis, &mut system.sessions, &mut system.feed] {
        server.restart();
    }
    let events = daemon.events();
    let order = daemon.order("/admin/resilience/force-recovery");
    assert_eq!(order["half_open"], json!(["sessions", "feed", "redis"]));
    for backend in ["sessions", "feed", "redis"] {
        let half_open = events.next("the next goes half-open", LONG, |event| {
            event.kind == "transition" && event.data["to"] == "HALF_OPEN"
        });
        assert_eq!(half_open.data["backend"], backend);
    }
    for backend in ["redis", "sessions", "feed"] {
        daemon.wait_for_breaker(backend, "CLOSED", LONG);
    }
}

#[test]
fn one_root_cause_is_named_once() {
    let system = System::start();
    let daemon = system
        .builder()
        .set("backends.redis.depends_on", vec!["feed", "sessions"])
        .set("backends.feed.depends_on", vec!["sessions"])
        .start();
    let impaired = |backend: &str| daemon.status(backend)["impaired_by"].clone();
    assert_eq!(impaired("redis"), json!([]));
    force_open(&daemon, "feed");
    assert_eq!(impaired("redis"), json!(["feed"]));
    force_open(&daemon, "sessions");
    assert_eq!(impaired("redis"), json!(["sessions"]), "feed is down for its sake");
    assert_eq!(impaired("feed"), json!(["sessions"]));
    assert_eq!(impaired("sessions"), json!([]));
    let shown = daemon.fusebox(&["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("redis: impaired by sessions\n"), "{shown}");
    reset(&daemon, "sessions");
    assert_eq!(impaired("redis"), json!(["feed"]));
}
