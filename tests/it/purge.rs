//! `fusebox queue compact --purge`: nothing is left of what was discarded.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::outage::operated;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);
/// Part of each payload that is discarded.
const SECRET: &str = "4111-1111-1111-1111";

/// The files below `dir` that contain the secret.
fn with_secret(dir: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path)
                && bytes.windows(SECRET.len()).any(|it| it == SECRET.as_bytes())
            {
                found.push(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[track_caller]
fn says(daemon: &Daemon, command: &str) -> String {
    let arguments: Vec<&str> = command.split(' ').collect();
    let Output { status, stdout, stderr } = daemon.fusebox(&arguments);
    assert!(status.success(), "{command}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn nothing_is_left_of_what_was_discarded() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let state = daemon.state_dir();
    daemon.order("/admin/backends/redis/offline");
    // One that fits a value of the store, and one in many pieces.
    for text in [SECRET.to_owned(), format!("{SECRET} ").repeat(2_000)] {
        let queued = daemon.redis(&["SET", "card", &text]);
        queued.assert_queued();
        let op_id = queued.body["op_id"].as_str().unwrap().to_owned();
        says(&daemon, &format!("queue discard {op_id}"));
    }
    daemon.redis(&["SET", "kept", "v"]).assert_queued();
    assert_eq!(daemon.queued("redis", "pending"), 1);
    // A store that was set aside, with the same in it.
    let store = state.join("backends/redis");
    let folders = [store.join("db"), store.join("db.damaged-1")];
    assert!(Command::new("cp").arg("-r").args(folders).status().unwrap().success());
    assert_eq!(with_secret(&state), ["backends/redis/db.damaged-1/db", "backends/redis/db/db"]);

    says(&daemon, "queue compact redis");
    assert_eq!(with_secret(&state), ["backends/redis/db.damaged-1/db"], "it may be salvaged");
    let said = says(&daemon, "queue compact --purge");
    assert!(said.contains("redis: deleted db.damaged-1, "), "{said}");
    assert_eq!(with_secret(&state), [""; 0]);

    daemon.restart();
    assert_eq!(with_secret(&state), [""; 0]);
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!((redis.get("kept").as_deref(), redis.get("card")), (Some("v"), None));
}
