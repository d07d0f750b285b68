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
        .output()
        .expect("fusebox starts");
    let said = String::from_utf8(output.stdout).expect("text");
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    let left: Vec<_> = folder.path().read_dir().expect("the folder").collect();
    assert!(left.is_empty(), "it left {left:?}");
    said
}

/// The figure beside `name` in the table of figures.
#[track_caller]
fn figure(said: &str, name: &str) -> u64 {
    let line = said.lines().find_map(|line| line.trim_start().strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no figure {name:?} in\n{said}"));
    line.trim().replace(',', "").parse().unwrap_or_else(|_| panic!("{name}: {line:?} is no figure"))
}

#[test]
fn the_demo_ends_with_its_proof() {
    let said = demo("6", "1");
    let last = said.trim_end().lines().last().expect("a last line");
    assert!(last.starts_with("PROVEN: every acknowledged write arrived"), "{said}");
    for phase in 1..=5 {
        let heading = format!("{phase}  ");
        assert!(said.lines().any(|line| line.starts_with(&heading)), "no phase {phase}\n{said}");
    }
    for seen in ["state HEALTHY", "state CRITICAL", "breaker OPEN", "killed process"] {
        assert!(said.contains(seen), "no {seen:?} in\n{said}");
    }
    assert!(!said.contains('\x1b'), "no colours in a pipe\n{said}");
    for promise in ["lost", "applied twice", "out of order", "dead letters"] {
        assert_eq!(figure(&said, promise), 0, "{promise}\n{said}");
    }
    for done in ["acknowledged as applied", "of these before the daemon was killed", "replayed"] {
        assert!(figure(&said, done) > 0, "{done}\n{said}");
    }
}
