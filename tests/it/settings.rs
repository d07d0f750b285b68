//! Settings that are changed at run time, of a real daemon.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    daemon::{Builder, Daemon},
    poll::{Stop, eventually},
    redis::RedisServer,
};

const LONG: Duration = Duration::from_secs(30);
const SECTION: &str = "/admin/backends/redis/config";
const THRESHOLD: &str = "breaker.failure_threshold";

/// A daemon that makes no connection of its own accord.
fn quiet(redis: &RedisServer) -> Builder {
    Daemon::with_redis(&redis.url()).set("health.interval", "1h")
}

/// The settings of Redis's section.
fn shown(daemon: &Daemon) -> Value {
    let (status, shown) = daemon.get(SECTION);
    assert_eq!(status, 200, "{shown}");
    shown
}

fn threshold(daemon: &Daemon) -> Value {
    let shown = shown(daemon);
    shown.pointer("/effective/breaker/failure_threshold").cloned().unwrap_or_default()
}

fn patch(daemon: &Daemon, how: &str, patch: Value) -> (u16, Value) {
    daemon.patch(&format!("{SECTION}{how}"), patch)
}

/// A metric that is a whole number.
fn count(daemon: &Daemon, name: &str, labels: &[(&str, &str)]) -> String {
    daemon.metric(name, labels).to_string()
}

/// The numbers of the connections that Redis has of the daemon.
fn connections(redis: &RedisServer) -> Vec<String> {
    let list: String = redis.query(&["CLIENT", "LIST"]);
    let ours = list.lines().filter(|line| line.contains("name=fusebox"));
    let mut ids: Vec<String> =
        ours.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    ids.sort();
    ids
}

#[test]
fn a_change_is_in_effect_at_once_and_told_everywhere() {
    let redis = RedisServer::start();
    let daemon = quiet(&redis).start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    let before = shown(&daemon);
    assert_eq!(before["sources"][THRESHOLD], "default");
    assert_eq!(before["overrides"], json!({}));
    assert!(before["locked"].as_array().unwrap().contains(&json!("url")));
    let (links, events) = (connections(&redis), daemon.events());

    let (status, answer) = patch(&daemon, "", json!({"breaker": {"failure_threshold": 7}}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["changed"], json!([{"key": THRESHOLD, "from": 5, "to": 7}]));
    assert_ne!(answer["revision"], before["revision"]);
    assert_eq!(answer["sources"][THRESHOLD], "runtime");
    assert_eq!(daemon.get("/v1/backends/redis").1["breaker"]["failure_threshold"], 7);
    let told = events.next("the change is told", LONG, |event| event.kind == "settings");
    assert_eq!(told.data["settings"][0]["key"], format!("backends.redis.{THRESHOLD}"));
    assert!(told.data["by"].as_str().unwrap().starts_with("user "), "{told:?}");
    let of_redis = [("backend", "redis")];
    let overrides = || count(&daemon, "config_overrides", &of_redis);
    assert_eq!(overrides(), "1");
    let applied = [("backend", "redis"), ("result", "applied")];
    assert_eq!(count(&daemon, "config_changes_total", &applied), "1");
    // Nothing was reconnected, and nothing emptied.
    assert_eq!(connections(&redis), links);
    assert!(daemon.get("/v1/backends/redis").1["cache"]["entries"].as_u64().unwrap() > 0);

    let stale = before["revision"].as_str().unwrap();
    let (status, problem) = daemon.patch_at(SECTION, stale, json!({"retry": {"attempts": 2}}));
    assert_eq!((status, problem["code"].as_str()), (412, Some("stale_revision")), "{problem}");
    let now = answer["revision"].as_str().unwrap();
    assert_eq!(daemon.patch_at(SECTION, now, json!({"retry": {"attempts": 2}})).0, 200);
    assert_eq!(daemon.patch_at(SECTION, "*", json!({"retry": {"attempts": 2}})).0, 200);

    let (status, answer) = patch(&daemon, "?dry_run=true", json!({"breaker": null, "retry": null}));
    assert_eq!((status, answer["changed"].as_array().map(Vec::len)), (200, Some(2)), "{answer}");
    assert_eq!(threshold(&daemon), 7);
    patch(&daemon, "", json!({"breaker": null, "retry": null}));
    assert_eq!((threshold(&daemon), overrides()), (json!(5), "0".to_owned()));
    assert_eq!(shown(&daemon)["revision"], before["revision"]);

    // And settings of the whole.
    let (status, answer) = daemon.patch("/admin/config", json!({"health": {"interval": "7s"}}));
    assert_eq!((status, &answer["changed"][0]["to"]), (200, &json!("7s")), "{answer}");
}

#[test]
fn a_change_that_is_refused_changes_nothing() {
    let redis = RedisServer::start();
    let daemon = quiet(&redis).env("FUSEBOX_BACKENDS__REDIS__BREAKER__WINDOW", "30s").start();
    let before = shown(&daemon);
    for (wrong, status, code, part) in [
        (
            json!({"breaker": {"failure_threshold": 0}}),
            422,
            "invalid_settings",
            "must be at least 1, got 0",
        ),
        (
            json!({"breaker": {"failure_treshold": 3}}),
            422,
            "invalid_settings",
            "the nearest is backends.redis.breaker.failure_threshold",
        ),
        (
            json!({"breaker": {"recovery_timeout": "soon"}}),
            422,
            "invalid_settings",
            "backends.redis.breaker.recovery_timeout",
        ),
        (
            json!({"breaker": {"recovery_timeout": "9m"}, "cache": {"ttl": "2m", "max_stale": "1m"}}),
            422,
            "invalid_settings",
            "max_stale must be at least ttl (2m), got 1m",
        ),
        (json!({"url": "redis://127.0.0.1:1"}), 409, "locked", "backends.redis.url"),
        (
            json!({"breaker": {"window": "9s"}}),
            409,
            "overridden",
            "FUSEBOX_BACKENDS__REDIS__BREAKER__WINDOW",
        ),
        (json!({"breaker": {"recovery_timeout": "10ms"}}), 409, "unsafe", "at least 1s"),
        (json!([1]), 422, "invalid_settings", "must be an object"),
        (
            json!({"cache": {"ttl": "2years"}}),
            422,
            "invalid_settings",
            "backends.redis.cache.ttl must be at most 1year, got 2years",
        ),
    ] {
        let (got, problem) = patch(&daemon, "?persist=true", wrong.clone());
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{wrong}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(part), "{wrong}: {problem}");
    }
    for time in ["0s", "2years"] {
        let (status, problem) =
            patch(&daemon, &format!("?for={time}"), json!({"retry": {"attempts": 2}}));
        let told = format!("for must be more than 0s and at most 365days, got {time}");
        assert_eq!((status, problem["detail"].as_str()), (400, Some(told.as_str())), "{problem}");
    }
    assert_eq!(patch(&daemon, "?fro=9s", json!({"retry": {"attempts": 2}})).0, 400);
    assert_eq!(daemon.patch("/admin/backends/nosuch/config", json!({})).0, 404);
    assert_eq!(shown(&daemon), before);
    assert!(!daemon.state_dir().join("settings.json").try_exists().unwrap());
    let refused = [("backend", "redis"), ("result", "refused")];
    assert_eq!(count(&daemon, "config_changes_total", &refused), "9");
}

#[test]
fn what_waits_is_not_beyond_a_limit_without_force() {
    let mut redis = RedisServer::start();
    let daemon = quiet(&redis).start();
    redis.kill_9();
    for n in 0..5 {
        daemon.redis(&["SET", &format!("k{n}"), "v"]).assert_queued();
    }
    let smaller = json!({"queue": {"items": 3}});
    let (status, problem) = patch(&daemon, "", smaller.clone());
    assert_eq!((status, problem["code"].as_str()), (409, Some("unsafe")), "{problem}");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("at least 5, which the queue holds now, got 3"),
        "{problem}"
    );
    assert_eq!(patch(&daemon, "?force=true", smaller).0, 200);
    // A step back towards what it was is none that needs force.
    assert_eq!(patch(&daemon, "", json!({"queue": {"items": 4}})).0, 200);
    // What waits stays, and no more is taken.
    assert_eq!(daemon.redis(&["SET", "more", "v"]).status, 507);
    assert_eq!(daemon.queued("redis", "pending"), 5);
    redis.restart();
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.query::<u64>(&["DBSIZE"]), 5);
}

#[test]
fn what_a_miss_is_can_be_changed_in_an_outage() {
    let mut redis = RedisServer::start();
    let daemon = quiet(&redis).start();
    redis.kill_9();
    let missed = |key: &str| daemon.redis(&["GET", key]).status;
    assert_eq!(missed("nothing"), 200);
    assert_eq!(patch(&daemon, "", json!({"on_miss": "error"})).0, 200);
    assert_eq!(missed("nothing"), 503);
    let (status, problem) = patch(&daemon, "", json!({"on_miss": "zero"}));
    assert_eq!((status, problem["code"].as_str()), (422, Some("invalid_settings")), "{problem}");
    assert_eq!(patch(&daemon, "", json!({"on_miss": null})).0, 200);
    assert_eq!(missed("nothing"), 200);
}

#[test]
fn what_is_persisted_outlasts_a_kill_and_the_file_wins_if_it_changes() {
    let redis = RedisServer::start();
    let mut daemon = quiet(&redis).set("backends.redis.retry.attempts", 4).start();
    assert_eq!(
        patch(
            &daemon,
            "?persist=true",
            json!({"breaker": {"failure_threshold": 7}, "retry": {"attempts": 5}})
        )
        .0,
        200
    );
    assert_eq!(patch(&daemon, "", json!({"breaker": {"success_threshold": 9}})).0, 200);
    daemon.kill_9();
    daemon.restart();
    let now = shown(&daemon);
    assert_eq!((&now["sources"][THRESHOLD], threshold(&daemon)), (&json!("persisted"), json!(7)));
    assert_eq!(now["effective"]["retry"]["attempts"], 5);
    assert_eq!(now["sources"]["breaker.success_threshold"], "default");
    // `check` has the same.
    let (file, dir) = (daemon.configuration(), daemon.state_dir());
    let [file, dir] = [file.to_str().unwrap(), dir.to_str().unwrap()];
    let check = daemon.fusebox(&["check", "--json", "--config", file, "--state-dir", dir]);
    let check: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(check["config"]["backends"]["redis"]["retry"]["attempts"], 5);

    daemon.set("backends.redis.retry.attempts", 6);
    let reloaded = daemon.fusebox(&["config", "reload"]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    let now = shown(&daemon);
    assert_eq!(
        (&now["effective"]["retry"]["attempts"], &now["sources"]["retry.attempts"]),
        (&json!(6), &json!("file"))
    );
    assert_eq!(threshold(&daemon), 7);
    assert!(daemon.log_text().contains("the file was changed since then"));
    // It does not come back when the file says again what it said.
    daemon.set("backends.redis.retry.attempts", 4);
    daemon.kill_9();
    daemon.restart();
    assert_eq!(shown(&daemon)["effective"]["retry"]["attempts"], 4);
    assert_eq!(threshold(&daemon), 7);

    // Garbage stops no start.
    daemon.kill_9();
    fs::write(daemon.state_dir().join("settings.json"), "{\"version\":1,").unwrap();
    daemon.restart();
    assert_eq!(threshold(&daemon), 5);
    assert!(daemon.log_text().contains("changes at run time are left out"));
    assert_eq!(left_out(&daemon).len(), 1);
}

#[test]
fn a_kill_at_any_point_of_persisting_leaves_the_old_value_or_the_new_one() {
    let redis = RedisServer::start();
    let mut daemon = quiet(&redis).start();
    assert_eq!(
        patch(&daemon, "?persist=true", json!({"breaker": {"failure_threshold": 7}})).0,
        200
    );
    let file = daemon.state_dir().join("settings.json");
    let (next, change) = ("settings.json.next", json!({"breaker": {"failure_threshold": 8}}));
    let path = format!("{SECTION}?persist=true");
    for call in ["openat", "write", "fsync", "/^rename"] {
        daemon.restart_injected(next, &format!("{call}:signal=KILL"));
        let answer = daemon.try_request("PATCH", &path, Some(&change));
        assert!(answer.is_err(), "{call}: killed before it is done");
        daemon.restart();
        assert_eq!(threshold(&daemon), 7, "{call}");
    }
    // The new file is in its place, and its caller was not answered yet.
    daemon.restart_injected(next, "/^rename:delay_exit=5000000");
    let (caller, before) = (daemon.client(), fs::read(&file).unwrap());
    let asks = thread::spawn(move || caller.try_request("PATCH", &path, Some(&change)).is_ok());
    eventually("the file is replaced", LONG, || fs::read(&file).unwrap() != before);
    daemon.kill_9();
    assert!(!asks.join().unwrap());
    daemon.restart();
    assert_eq!(threshold(&daemon), 8);
}

/// The changes that the daemon says that it cannot read.
fn left_out(daemon: &Daemon) -> Vec<String> {
    let (_, view) = daemon.get("/health/resilience");
    let all = view.get("settings_left_out").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(|why| why.as_str().map(str::to_owned)).collect()
}

/// The files of the state directory that were set aside.
fn set_aside(daemon: &Daemon) -> Vec<String> {
    let files = fs::read_dir(daemon.state_dir()).into_iter().flatten().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    names.filter(|name| name.starts_with("settings.json.damaged-")).collect()
}

#[test]
fn a_file_with_settings_of_a_later_release_starts_with_a_warning_and_a_misspelt_one_does_not() {
    let redis = RedisServer::start();
    let mut daemon = quiet(&redis).start();
    // As a later release leaves it, which has one setting more.
    let file = daemon.state_dir().join("settings-known.json");
    let mut known: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    known["version"] = json!("0.999.0");
    known["settings"].as_array_mut().unwrap().push(json!("backends.*.retry.later"));
    let known = known.to_string();
    daemon.kill_9();
    fs::write(&file, &known).unwrap();
    daemon.set("backends.redis.retry.later", 3);
    let check = |daemon: &Daemon, arguments: &[&str]| {
        let (file, dir) = (daemon.configuration(), daemon.state_dir());
        let from = ["check", "--config", file.to_str().unwrap()];
        let of = ["--state-dir", dir.to_str().unwrap()];
        let checked = daemon.fusebox(&[&from[..], &of[..], arguments].concat());
        (checked.status.code(), String::from_utf8_lossy(&checked.stderr).into_owned())
    };
    let warning = "warning: backends.redis.retry.later is a setting of release 0.999.0";
    let (code, said) = check(&daemon, &["--startup"]);
    assert_eq!((code, said.contains(warning)), (Some(0), true), "{said}");
    assert_eq!(check(&daemon, &[]).0, Some(1));
    daemon.restart();
    assert!(daemon.log_text().contains("backends.redis.retry.later is a setting of release"));
    assert_eq!(fs::read_to_string(&file).unwrap(), known, "it stays as the later release left it");
    daemon.set("backends.redis.retry.latr", 3);
    let (code, said) = check(&daemon, &["--startup"]);
    let error = "error: backends.redis.retry.latr is not a setting";
    assert_eq!((code, said.contains(error)), (Some(2), true), "{said}");
}

#[test]
fn a_change_that_cannot_be_read_takes_no_other_with_it_and_is_shown() {
    let redis = RedisServer::start();
    let mut daemon = quiet(&redis).start();
    let both = json!({"breaker": {"failure_threshold": 7}, "retry": {"attempts": 5}});
    assert_eq!(patch(&daemon, "?persist=true", both).0, 200);
    assert_eq!(left_out(&daemon), [""; 0]);
    daemon.kill_9();
    let file = daemon.state_dir().join("settings.json");
    let mut content: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let odd = json!({"path": "backends.redis.cache.ttl", "value": "9m", "by": "user 0", "at": "?"});
    let unknown = json!({"path": "backends.redis.breaker.nosuch", "value": 3, "by": "user 0",
        "at": "2026-01-01T00:00:00Z"});
    content["changes"].as_array_mut().unwrap().insert(1, odd);
    content["changes"].as_array_mut().unwrap().push(unknown);
    fs::write(&file, content.to_string()).unwrap();
    daemon.restart();
    let now = shown(&daemon);
    assert_eq!((threshold(&daemon), &now["effective"]["retry"]["attempts"]), (json!(7), &json!(5)));
    let told = left_out(&daemon);
    let [unreadable, unknown] = told.as_slice() else { panic!("{told:?}") };
    assert!(unreadable.starts_with("backends.redis.cache.ttl in "), "{told:?}");
    assert!(unknown.starts_with("backends.redis.breaker.nosuch, changed at run"), "{told:?}");
    assert_eq!(count(&daemon, "config_left_out", &[]), "2");
    let status = daemon.fusebox(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("a change of settings at run time is not in effect"), "{status}");
    assert!(
        daemon.log_text().contains("changes at run time are left out: backends.redis.cache.ttl")
    );
    // What was there is kept, and the next start has nothing to say.
    let aside = set_aside(&daemon);
    assert_eq!(aside.len(), 1, "{aside:?}");
    let kept = fs::read_to_string(daemon.state_dir().join(&aside[0])).unwrap();
    assert_eq!(kept, content.to_string());
    daemon.kill_9();
    daemon.restart();
    assert_eq!((left_out(&daemon), set_aside(&daemon)), (Vec::new(), aside));
    assert_eq!(count(&daemon, "config_left_out", &[]), "0");
    assert_eq!(threshold(&daemon), 7);
}

#[test]
fn a_change_that_the_core_does_not_take_is_taken_back_also_on_the_disk() {
    let redis = RedisServer::start();
    let mut daemon = quiet(&redis)
        .set("backends.other.kind", "redis")
        .set("backends.other.url", redis.url())
        .env("FUSEBOX_TEST_HOOKS", "1")
        .start();
    let lasting = json!({"retry": {"attempts": 5}});
    assert_eq!(patch(&daemon, "?persist=true", lasting).0, 200);
    let before = fs::read(daemon.state_dir().join("settings.json")).unwrap();
    // Its actor is given up on.
    while daemon.status("redis")["offline"] != json!(true) {
        let restarts = daemon.get("/v1/backends/redis").1["restarts"].clone();
        daemon.order("/admin/backends/redis/panic");
        daemon.wait_until("it is restarted, or given up on", LONG, |daemon| {
            daemon.get("/v1/backends/redis").1["restarts"] != restarts
                || daemon.status("redis")["offline"] == json!(true)
        });
    }
    let both = json!({"backends": {
        "other": {"cache": {"items": 3}, "breaker": {"failure_threshold": 8}},
        "redis": {"breaker": {"failure_threshold": 8}},
    }});
    let (status, problem) = daemon.patch("/admin/config?persist=true", both);
    assert_eq!((status, problem["code"].as_str()), (503, Some("order_failed")), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("nothing was changed") && detail.contains("failed too often"),
        "{detail}"
    );
    assert_eq!(fs::read(daemon.state_dir().join("settings.json")).unwrap(), before);
    let of_other = |daemon: &Daemon| {
        daemon.get("/v1/backends/other").1["breaker"]["failure_threshold"].clone()
    };
    assert_eq!((of_other(&daemon), threshold(&daemon)), (json!(5), json!(5)));
    daemon.kill_9();
    daemon.restart();
    let now = shown(&daemon);
    assert_eq!((of_other(&daemon), threshold(&daemon)), (json!(5), json!(5)));
    assert_eq!(now["effective"]["retry"]["attempts"], 5);
}

#[test]
fn a_reload_of_core_settings_connects_nothing_anew_and_another_address_does() {
    let (redis, other) = (RedisServer::start(), RedisServer::start());
    let mut daemon = quiet(&redis).start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    let links = connections(&redis);
    daemon.set("backends.redis.breaker.failure_threshold", 9);
    assert!(daemon.fusebox(&["config", "reload"]).status.success());
    assert_eq!((threshold(&daemon), connections(&redis)), (json!(9), links));
    daemon.set("backends.redis.queue.disk_floor", "1MiB");
    let refused = daemon.fusebox(&["config", "reload"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("backends.redis.queue.disk_floor changed, which needs a restart"),
        "{said}"
    );
    daemon.set("backends.redis.queue.disk_floor", "64MiB");
    daemon.set("backends.redis.url", other.url());
    assert!(daemon.fusebox(&["config", "reload"]).status.success());
    daemon.redis(&["SET", "k", "w"]).assert_live();
    assert_eq!((redis.get("k").as_deref(), other.get("k").as_deref()), (Some("v"), Some("w")));
}

#[test]
fn a_change_for_a_time_is_taken_back_also_after_a_restart() {
    let redis = RedisServer::start();
    let mut daemon = quiet(&redis).start();
    let events = daemon.events();
    let (status, answer) =
        patch(&daemon, "?for=300ms", json!({"breaker": {"failure_threshold": 7}}));
    assert_eq!(
        (status, answer["overrides"][THRESHOLD]["until"].is_string()),
        (200, true),
        "{answer}"
    );
    let over = events.next("its time is over", LONG, |event| {
        event.kind == "settings" && event.data["why"] == "its time is over"
    });
    assert_eq!(
        over.data["settings"][0],
        json!({"key": format!("backends.redis.{THRESHOLD}"), "from": 7, "to": 5})
    );
    assert_eq!(threshold(&daemon), 5);
    let reverted = [("backend", "redis"), ("result", "reverted")];
    assert_eq!(count(&daemon, "config_changes_total", &reverted), "1");

    assert_eq!(
        patch(&daemon, "?persist=true&for=1s", json!({"breaker": {"failure_threshold": 8}})).0,
        200
    );
    daemon.kill_9();
    daemon.restart();
    daemon.wait_until("the time of the change is over", LONG, |daemon| {
        daemon.get(SECTION).1["effective"]["breaker"]["failure_threshold"] == 5
    });
    assert_eq!(shown(&daemon)["overrides"], json!({}));
}

#[test]
fn a_change_whose_time_is_over_does_not_come_back_from_a_disk_that_could_not_be_written() {
    let redis = RedisServer::start();
    let daemon = quiet(&redis).start();
    let change = json!({"breaker": {"failure_threshold": 7}});
    assert_eq!(patch(&daemon, "?persist=true&for=3s", change).0, 200);
    let file = daemon.state_dir().join("settings.json");
    // Nothing can be written in its place.
    let in_the_way = daemon.state_dir().join("settings.json.next");
    fs::create_dir(&in_the_way).unwrap();
    daemon.wait_until("its time is over", LONG, |_| threshold(&daemon) == 5);
    // As it looks once the clock was set back.
    let mut content: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    content["changes"][0]["at"] = json!("2100-01-01T00:00:00Z");
    content["changes"][0]["until"] = json!("2100-01-01T01:00:00Z");
    fs::write(&file, content.to_string()).unwrap();
    let reload = || assert!(daemon.fusebox(&["config", "reload"]).status.success());
    reload();
    assert_eq!(threshold(&daemon), 5);
    fs::remove_dir(&in_the_way).unwrap();
    reload();
    assert_eq!(threshold(&daemon), 5);
    let content: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(content["changes"], json!([]));
}

/// The file allows no `recovery_timeout` above 5 m: a change for a time does, and what rests on that goes with it.
#[test]
fn a_change_that_does_not_fit_without_one_whose_time_is_over_goes_with_it() {
    let redis = RedisServer::start();
    let daemon = quiet(&redis).set("backends.redis.breaker.recovery_timeout_max", "5m").start();
    let change = |how: &str, key: &str, value: &str| {
        assert_eq!(patch(&daemon, how, json!({"breaker": {key: value}})).0, 200);
    };
    change("?for=400ms", "recovery_timeout_max", "1h");
    change("", "recovery_timeout", "30m");
    daemon.wait_until("both are taken back", LONG, |daemon| {
        daemon.get(SECTION).1["overrides"] == json!({})
    });
    let breaker = shown(&daemon)["effective"]["breaker"].clone();
    assert_eq!(breaker["recovery_timeout_max"], "5m");
    assert!(daemon.log_text().contains("is no longer valid"));
}

#[test]
fn the_command_line_sets_shows_and_takes_back() {
    let redis = RedisServer::start();
    let daemon = quiet(&redis).start();
    let says = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = daemon.fusebox(&arguments);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (code, said) = says("config set redis breaker.failure_threshold=7 cache.ttl=1m --persist");
    assert_eq!(
        (code, said.as_str()),
        (Some(0), "breaker.failure_threshold: 5 -> 7\ncache.ttl: 5m -> 1m\n")
    );
    let (_, said) = says("config set health.interval=9s --dry-run");
    assert_eq!(said, "would change health.interval: 1h -> 9s\n");
    let (_, said) = says("config show --sources");
    let line =
        said.lines().find(|line| line.contains(THRESHOLD) && line.contains("redis")).unwrap();
    assert!(line.contains("persisted") && line.contains("kept over restarts"), "{line}");
    let (code, said) = says("config set redis breaker.failure_threshold=none");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("backends.redis.breaker.failure_threshold"), "{said}");
    let (code, said) = says("config unset redis breaker cache.ttl");
    assert_eq!(
        (code, said.as_str()),
        (Some(0), "breaker.failure_threshold: 7 -> 5\ncache.ttl: 1m -> 5m\n")
    );
    let (code, said) = says("config schema");
    assert_eq!(code, Some(0));
    let schema: Value = serde_json::from_str(&said).unwrap();
    assert!(schema["properties"]["backends"]["properties"]["redis"].is_object());
}

/// `FUSEBOX_TEST_ROUNDS` changes, 300 if it is not set, while callers write and read.
#[test]
fn changes_under_load_fail_no_call_and_connect_nothing_anew() {
    let rounds = std::env::var("FUSEBOX_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let redis = RedisServer::start();
    let daemon = quiet(&redis).start();
    daemon.redis(&["SET", "k0", "v"]).assert_live();
    daemon.redis(&["GET", "k0"]).assert_live();
    let (stop, links, calls) = (Stop::default(), connections(&redis), AtomicU64::new(0));
    thread::scope(|scope| {
        for caller in 0..4 {
            let (client, stopped, calls) = (daemon.client(), stop.watch(), &calls);
            scope.spawn(move || {
                let key = format!("k{caller}");
                while !stopped.is_set() {
                    let value = calls.fetch_add(1, Ordering::Relaxed).to_string();
                    client.redis(&["SET", &key, &value]).assert_live();
                    client.redis(&["GET", &key]).assert_value(value);
                }
            });
        }
        for round in 0..rounds.unwrap_or(300_u32) {
            let value = 5 + round % 20;
            let change = json!({
                "breaker": {"failure_threshold": value, "window": format!("{value}s")},
                "bulkhead": {"in_flight_max": 100 + value},
                "cache": {"items": 1000 + value},
                "retry": {"attempts": 1 + value % 5},
            });
            let (status, answer) = patch(&daemon, "", change);
            assert_eq!(status, 200, "{answer}");
        }
        drop(stop);
    });
    assert_eq!(connections(&redis), links);
    assert_eq!(daemon.transitions("redis", "CLOSED", "OPEN"), 0);
    assert!(calls.load(Ordering::Relaxed) > 100, "{calls:?}");
}
