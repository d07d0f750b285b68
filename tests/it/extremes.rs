//! The least and the greatest value that each setting may have, of a real daemon.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::support::{daemon::Daemon, redis::RedisServer};

/// More than any test here takes.
const LONG: Duration = Duration::from_secs(30);

/// A setting and its bounds, as they are written.
struct Bounded {
    path: String,
    least: Value,
    most: Value,
}

/// All settings that have bounds, of one backend of each kind.
fn bounded(schema: &Value, path: &str, found: &mut Vec<Bounded>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let bound = |word: &str| field.get(word).or_else(|| field.get(format!("x-{word}")));
        if let (Some(least), Some(most)) = (bound("minimum"), bound("maximum")) {
            found.push(Bounded { path, least: least.clone(), most: most.clone() });
        } else {
            bounded(field, &path, found);
        }
    }
}

fn all_bounded(daemon: &Daemon) -> Vec<Bounded> {
    let schema = daemon.fusebox(&["config", "schema"]);
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    let mut found = Vec::new();
    bounded(&schema, "", &mut found);
    assert!(found.len() > 80, "{}", found.len());
    found
}

fn as_toml(value: &Value) -> toml::Value {
    toml::Value::try_from(value).unwrap()
}

#[test]
fn each_extreme_alone_is_taken_or_refused_by_name() {
    let redis = RedisServer::start();
    let daemon = Daemon::with_redis(&redis.url()).start();
    let (file, dir) = (daemon.folder().join("one.toml"), daemon.folder().join("elsewhere"));
    let [at, dir] = [file.to_str().unwrap(), dir.to_str().unwrap()];
    for Bounded { path, least, most } in all_bounded(&daemon) {
        for extreme in [least, most] {
            let line = format!("{path} = {}\n", as_toml(&extreme));
            fs::write(&file, &line).unwrap();
            let check = daemon.fusebox(&["check", "--json", "--config", at, "--state-dir", dir]);
            let report: Value = serde_json::from_slice(&check.stdout).unwrap();
            let section = path.rsplit_once('.').map_or("", |(section, _)| section);
            for problem in report["problems"].as_array().unwrap() {
                let text = problem.as_str().unwrap();
                assert!(text.starts_with(section), "{line}{text}");
            }
        }
    }
}

#[test]
fn a_daemon_whose_settings_are_all_as_far_as_they_go_serves() {
    let mut redis = RedisServer::start();
    let found = all_bounded(&Daemon::with_redis(&redis.url()).start());
    // The disk has no room for this, and nothing would be queued.
    let is_left_out = |path: &str| path.ends_with("queue.disk_floor");
    for is_most in [true, false] {
        let mut builder = Daemon::with_redis(&redis.url());
        for Bounded { path, least, most } in &found {
            let is_of_redis = !path.starts_with("backends.") || path.starts_with("backends.redis.");
            if is_of_redis && !is_left_out(path) {
                builder = builder.set(path, as_toml(if is_most { most } else { least }));
            }
        }
        // Nothing answers within a millisecond on a busy machine.
        let daemon = builder.set("backends.redis.timeout", "1day").start();
        daemon.redis(&["SET", "k", "v"]).assert_acknowledged();
        daemon.wait_until_drained("redis", LONG);
        daemon.redis(&["GET", "k"]).assert_value("v");
        redis.kill_9();
        let later = json!({ "deadline": "2s" });
        daemon.try_redis(&["GET", "k"], later.clone()).unwrap();
        daemon.try_redis(&["SET", "k", "w"], later).unwrap();
        redis.restart();
        daemon.order("/admin/resilience/force-recovery");
        daemon.wait_until("it is reached again", LONG, |daemon| {
            daemon.try_redis(&["PING"], json!({})).is_ok_and(|reply| reply.status == 200)
        });
        assert!(!daemon.log_text().contains("panicked"), "{}", daemon.log_text());
    }
}
