//! `fusebox selftest`, with its real process and real kills.

use std::{io, process::Command};

use serde_json::Value;

use crate::support::daemon::FUSEBOX;

fn selftest(state_dir: &str, arguments: &[&str]) -> io::Result<(Option<i32>, String)> {
    let output = Command::new(FUSEBOX)
        .args(["selftest", "--state-dir", state_dir])
        .args(arguments)
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn what_is_acknowledged_here_survives_its_kills_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("state");
    let (code, said) = selftest(dir.to_str().unwrap(), &["--time", "3s", "--json"]).unwrap();
    assert_eq!(code, Some(0), "{said}");
    let verdict: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(verdict["passed"], true);
    for (what, least) in [("kills", 2), ("acknowledged", 50), ("commits", 10)] {
        assert!(verdict["kills"][what].as_u64().unwrap() >= least, "{what}: {verdict}");
    }
    assert!(verdict["disk"]["median_us"].as_u64() <= verdict["disk"]["p99_us"].as_u64());
    assert!(verdict["sentence"].as_str().unwrap().starts_with("Acknowledged writes survive here"));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn a_place_that_cannot_be_written_and_a_wrong_time_are_told() {
    let (code, said) = selftest("/proc/nowhere", &["--time", "1s"]).unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot make /proc/nowhere"), "{said}");
    let (code, said) = selftest("/tmp", &["--time", "1ms"]).unwrap();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--time must be from 1s to 1day, got 1ms"), "{said}");
}
