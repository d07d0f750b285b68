//! The units and the configuration that are shipped, as systemd and the daemon read them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::daemon::FUSEBOX;
use crate::support::poll::eventually;
use crate::support::proc::require;

const UNITS: [&str; 3] = ["fusebox.service", "fusebox.socket", "fusebox-redis.socket"];

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
fn no_number_of_failures_ends_in_a_socket_that_nobody_listens_on() {
    let unit = |name: &str| fs::read_to_string(shipped(name)).unwrap();
    assert!(unit(UNITS[0]).contains("\nStartLimitIntervalSec=0\n"));
    assert!(unit(UNITS[1]).contains("\nTriggerLimitIntervalSec=0\n"));
    assert!(unit(UNITS[2]).contains("\nTriggerLimitIntervalSec=0\n"));
    // A reload says whether it was refused, and needs no other package.
    assert!(unit(UNITS[0]).contains("\nExecReload=/usr/bin/fusebox config reload\n"));
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
fn a_socket_that_was_handed_over_is_named_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let log = fs::File::create(at("log")).unwrap();
    let process = Command::new(require("systemd-socket-activate", "systemd"))
        .arg(format!("--listen={}", at("handed.sock").display()))
        .args(["--fdname=fusebox", FUSEBOX, "run", "--config", "/dev/null", "--state-dir"])
        .arg(at("state"))
        .stderr(log)
        .spawn()
        .expect("it starts");
    let process = Killed(process);
    eventually("the daemon was started, and is ready", Duration::from_secs(20), || {
        drop(UnixStream::connect(at("handed.sock")));
        fs::read_to_string(at("log")).unwrap().contains(" ready ")
    });
    drop(process);
    let log = fs::read_to_string(at("log")).unwrap();
    let ready = log.lines().find(|line| line.contains(" ready ")).unwrap();
    assert!(ready.contains(&format!("socket={}", at("handed.sock").display())), "{ready}");
}

/// Kills its process when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().expect("it is ours to kill");
        self.0.wait().expect("it can be waited for");
    }
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
    run("systemd-sysusers", &[], "sysusers.d/fusebox.conf");
    let users = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    let groups = fs::read_to_string(root.path().join("etc/group")).unwrap();
    assert!(users.starts_with("fusebox:") && groups.starts_with("fusebox:"), "{users}{groups}");
    // A configuration that only root may read, as many copy it: the daemon could not start.
    let configuration = root.path().join("etc/fusebox/fusebox.toml");
    fs::create_dir(root.path().join("etc/fusebox")).unwrap();
    fs::write(&configuration, "").unwrap();
    fs::set_permissions(&configuration, fs::Permissions::from_mode(0o600)).unwrap();
    run("systemd-tmpfiles", &["--create"], "tmpfiles.d/fusebox.conf");
    assert!(root.path().join("run/fusebox").is_dir());
    let (file, group) = (fs::metadata(&configuration).unwrap(), groups.split(':').nth(2).unwrap());
    assert_eq!(
        (file.mode() & 0o777, file.uid(), file.gid().to_string().as_str()),
        (0o640, 0, group)
    );
}
