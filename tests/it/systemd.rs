//! The units and the configuration that are shipped, as systemd and the daemon read them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::daemon::FUSEBOX;
use crate::support::proc::require;

const UNITS: [&str; 2] = ["fusebox.service", "fusebox.socket"];

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

/// The units in a folder of their own, with the binary under test in the place of the installed one.
fn units() -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = UNITS.map(|name| {
        let unit = fs::read_to_string(shipped(name)).expect("a unit is shipped");
        let file = folder.path().join(name);
        fs::write(&file, unit.replace("/usr/bin/fusebox", FUSEBOX)).expect("a copy of the unit");
        file
    });
    (folder, files.into())
}

fn analyze(arguments: &[&str], units: &[PathBuf]) -> Output {
    let mut command = Command::new(require("systemd-analyze", "systemd"));
    command.args(arguments).args(units).env("SYSTEMD_COLORS", "0");
    command.output().expect("systemd-analyze runs")
}

fn text(output: &Output) -> String {
    let bytes = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(bytes).expect("text")
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let (_folder, units) = units();
    let verified = analyze(&["verify", "--man=no", "--recursive-errors=no"], &units);
    assert_eq!((text(&verified).as_str(), verified.status.success()), ("", true));
}

#[test]
fn systemd_would_tell_of_a_misspelt_key() {
    let (_folder, units) = units();
    let service = fs::read_to_string(&units[0]).unwrap().replace("WatchdogSec", "WatchdogSecs");
    fs::write(&units[0], service).unwrap();
    let verified = analyze(&["verify", "--man=no", "--recursive-errors=no"], &units);
    assert!(text(&verified).contains("WatchdogSecs"), "{}", text(&verified));
}

#[test]
fn the_sandbox_leaves_an_exposure_of_at_most_one_and_a_half() {
    let (_folder, units) = units();
    let judged =
        analyze(&["security", "--offline=yes", "--threshold=15", "--no-pager"], &units[..1]);
    assert!(judged.status.success(), "{}", text(&judged));
    assert!(text(&judged).contains("Overall exposure level"), "{}", text(&judged));
}

#[test]
fn the_shipped_configuration_is_valid() {
    let checked = Command::new(FUSEBOX)
        .args(["check", "--config"])
        .arg(shipped("fusebox.toml"))
        .output()
        .expect("fusebox runs");
    assert!(checked.status.success(), "{}", text(&checked));
    assert!(text(&checked).contains("127.0.0.1:6379"), "it prints the effective configuration");
}

#[test]
fn the_user_and_its_folder_are_declared_as_the_units_use_them() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let run = |program: &str, arguments: &[&str], file: &str| {
        let mut command = Command::new(require(program, "systemd"));
        command.arg(format!("--root={}", root.path().display())).args(arguments);
        let output = command.arg(shipped(file)).output().expect("it runs");
        assert!(output.status.success(), "{program}: {}", text(&output));
    };
    fs::create_dir(root.path().join("etc")).unwrap();
    run("systemd-sysusers", &[], "fusebox.sysusers");
    let users = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    let groups = fs::read_to_string(root.path().join("etc/group")).unwrap();
    assert!(users.starts_with("fusebox:") && groups.starts_with("fusebox:"), "{users}{groups}");
    run("systemd-tmpfiles", &["--create"], "fusebox.tmpfiles");
    assert!(root.path().join("run/fusebox").is_dir());
}
