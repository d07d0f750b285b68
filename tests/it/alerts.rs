//! The operator's command on alerts: run through an outage of a real Redis, while it fails and while it works.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::Client;
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);

/// Puts a script in place of what may run at this moment.
fn write_script(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, path).unwrap();
}

/// What the script was run for: an object each.
fn runs(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Why the command fails, for an admin; null if it does not.
fn failure(daemon: &Client) -> Value {
    daemon.get("/health/resilience").1["alert_command_fails"].clone()
}

#[test]
fn a_command_is_run_when_an_outage_begins_and_when_it_is_over() {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url())
        .env("FUSEBOX_TEST_HOOKS", "1")
        .env("FUSEBOX_TEST_ALERT_PAUSE", "1s")
        .env("SOME_SECRET", "s3cr3t")
        .start();
    let script = daemon.folder().join("alert");
    let (said, tried) = (daemon.folder().join("said"), daemon.folder().join("tried"));
    write_script(&script, &format!("cat >>{}; echo no way >&2; exit 7", tried.display()));
    daemon.set("alerts.after", "0s");
    daemon.set("alerts.command", vec![script.to_str().unwrap().to_owned()]);
    let reloaded = daemon.fusebox(&["config", "reload"]).stdout;
    let reloaded = String::from_utf8_lossy(&reloaded);
    assert!(reloaded.contains("alerts.command"), "{reloaded}");

    begin_outage(&mut redis, &daemon);
    // Each alert is tried again, and its failure is logged once.
    daemon.wait_until("the command has failed more than once for an alert", LONG, |_| {
        let is_open = |run: &&Value| run["alert"] == "FuseboxBreakerOpen";
        runs(&tried).iter().filter(is_open).count() >= 2
    });
    daemon.wait_until("its failure is shown", LONG, |it| failure(it) == "exit status: 7: no way");
    let status = String::from_utf8(daemon.fusebox(&["status"]).stdout).unwrap();
    assert!(status.contains("the alert command fails: exit status: 7: no way"), "{status}");
    let log = daemon.log_text();
    assert_eq!(log.matches("the alert command fails").count(), 1, "{log}");
    assert!(!log.contains("no way"), "what it writes may be a secret: {log}");

    let text = format!("{{ cat; env >>{}.env; }} >>{}", said.display(), said.display());
    write_script(&script, &text);
    let is = |alert: &str, state: &str| {
        runs(&said).iter().any(|run| run["alert"] == alert && run["state"] == state)
    };
    daemon.wait_until("the alerts are said", LONG, |_| {
        is("FuseboxBreakerOpen", "firing") && is("FuseboxCritical", "firing")
    });
    daemon.wait_until("it no longer fails", LONG, |it| failure(it).is_null());
    redis.restart();
    recover(&daemon);
    daemon.wait_until("the alerts are over", LONG, |_| {
        is("FuseboxBreakerOpen", "resolved") && is("FuseboxCritical", "resolved")
    });
    let all = runs(&said);
    let open: Vec<&Value> = all.iter().filter(|run| run["alert"] == "FuseboxBreakerOpen").collect();
    assert_eq!(open.len(), 2, "each once: {all:?}");
    assert_eq!(open[0]["message"], "the breaker of redis is OPEN");
    assert_eq!((&open[0]["severity"], &open[0]["backend"]), (&"warning".into(), &"redis".into()));
    let env = fs::read_to_string(format!("{}.env", said.display())).unwrap();
    assert!(
        env.contains("FUSEBOX_STATE=firing") && env.contains("FUSEBOX_STATE=resolved"),
        "{env}"
    );
    assert!(!env.contains("SECRET") && !env.contains("FUSEBOX_TEST"), "{env}");
}
