//! The demo, as a first-time reader runs it: in a pipe it ends with its proof.

use std::process::Command;

use crate::support::daemon::FUSEBOX;

/// Runs the demo for `seconds` with a folder of its own for temporary files. Returns its output, after
/// checking that it left nothing there.
fn demo(seconds: &str, seed: &str) -> String {
    let folder = tempfile::Builder::new().prefix("fusebox-").tempdir().expect("a folder");
    let output = Command::new(FUSEBOX)
        .args(["demo", "--seconds", seconds, "--seed", seed])
        .env("TMPDIR", folder.path())
        // What is set for a real daemon does not reach the demo's.
        .env("FUSEBOX_SOCKET", "/nonexistent/fusebox.sock")
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .env("CLICKHOUSE_URL", "http://127.0.0.1:1")
        .env("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
        .output()
        .expect("fusebox starts");
    let said = String::from_utf8(output.stdout).expect("text");
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    let left: Vec<_> = folder.path().read_dir().expect("the folder").collect();
    assert!(left.is_empty(), "it left {left:?}");
    said
}

/// The figures beside `name` in the table of figures: of Redis, ClickHouse and Firestore.
#[track_caller]
fn figures(said: &str, name: &str) -> [u64; 3] {
    let line = said.lines().find_map(|line| line.trim_start().strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no figures {name:?} in\n{said}"));
    let figures: Vec<u64> = line
        .split_whitespace()
        .map(|figure| figure.replace(',', "").parse())
        .collect::<Result<_, _>>()
        .unwrap_or_else(|_| panic!("{name}: {line:?} are no figures"));
    figures.try_into().unwrap_or_else(|_| panic!("{name}: {line:?} are not three figures"))
}

#[test]
fn the_demo_ends_with_its_proof() {
    let said = demo("6", "1");
    let last = said.trim_end().lines().last().expect("a last line");
    assert!(last.starts_with("PROVEN: every acknowledged write to all three backends"), "{said}");
    for phase in 1..=5 {
        let heading = format!("{phase}  ");
        assert!(said.lines().any(|line| line.starts_with(&heading)), "no phase {phase}\n{said}");
    }
    for seen in [
        "state HEALTHY: redis CLOSED, clickhouse CLOSED, firestore CLOSED",
        "the system is DEGRADED (was HEALTHY)",
        "the system is CRITICAL (was DEGRADED)",
        "the system is EMERGENCY (was CRITICAL)",
        "the system is HEALTHY (was ",
        "killed process",
    ] {
        assert!(said.contains(seen), "no {seen:?} in\n{said}");
    }
    assert!(!said.contains('\x1b'), "no colours in a pipe\n{said}");
    for promise in ["lost", "applied twice", "out of order", "refused but applied", "dead letters"]
    {
        assert_eq!(figures(&said, promise), [0; 3], "{promise}\n{said}");
    }
    for done in ["acknowledged as applied", "of these before the daemon was killed", "replayed"] {
        assert!(figures(&said, done).iter().all(|figure| *figure > 0), "{done}\n{said}");
    }
    let again = figures(&said, "sent again, without effect");
    assert!(again.iter().sum::<u64>() > 0, "no answer was lost: this run shows little\n{said}");
}

#[test]
fn callers_of_each_kind_are_told_what_they_get() {
    let said = demo("3", "2");
    for (call, told) in [
        ("redis      SET demo:guest 1 ", "live, \"OK\""),
        ("redis      SET demo:guest 2 ", "queued, \"OK\", durable"),
        (
            "redis      INCR demo:visits ",
            "fusebox: redis: the breaker is open; its reply is not known until it is applied",
        ),
        ("redis      INCR demo:visits, min_ack durable ", "202 queued"),
        ("clickhouse SELECT count() AS visits ", "live, [{\"visits\":"),
        ("clickhouse SELECT count() AS visits ", "stale, [{\"visits\":"),
        ("clickhouse SELECT sum(id) AS ids ", "Code: 210. DB::NetException: fusebox: clickhouse: "),
        ("clickhouse SELECT sum(id) AS ids, priority low ", "200 empty, []"),
        ("clickhouse INSERT INTO visits ", "queued, durable"),
        ("clickhouse INSERT INTO visits, min_ack applied ", "503 "),
        ("firestore  set demo/guest {\"value\":2} ", "queued, durable"),
        ("firestore  get demo/guest ", "queued, {\"value\":2}"),
    ] {
        let is_it = |line: &str| {
            line.split_once(call).is_some_and(|(_, rest)| rest.contains(&format!("-> {told}")))
        };
        assert!(said.lines().any(is_it), "no {call}-> {told} in\n{said}");
    }
}
