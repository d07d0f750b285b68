//! Programs that the tests need, signals, and what strace saw.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::poll::eventually;

/// Finds `program`, or fails the test with the command that installs it.
#[track_caller]
pub(crate) fn require(program: &str, packages: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| {
            panic!("this test needs {program}: apt-get install {packages} (tests/setup does it)")
        })
}

/// The Python that has what `tests/support/requirements.txt` names.
#[track_caller]
pub(crate) fn venv_python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    assert!(
        python.try_exists().unwrap_or(false),
        "there is no {}: run tests/setup",
        python.display()
    );
    python
}

/// Sends `signal` to a child that has not been waited for, so that its id is still its own.
#[track_caller]
pub(crate) fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    signal::kill(pid, signal).expect("the child is there to be signalled");
}

/// Stops a child, and waits until each of its threads has stopped: the signal comes to them later than it is sent.
#[track_caller]
pub(crate) fn freeze(child: &Child) {
    send(child, Signal::SIGSTOP);
    let tasks = format!("/proc/{}/task", child.id());
    let is_stopped = |task: std::io::Result<fs::DirEntry>| {
        let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
        // What ends meanwhile does nothing any more.
        stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|it| it.starts_with('T')))
    };
    eventually("all its threads have stopped", Duration::from_secs(10), || {
        fs::read_dir(&tasks).expect("its threads").all(is_stopped)
    });
}

/// The arguments with which strace starts a program and notes its syncs in `log`.
///
/// `-D` makes the traced program the caller's own child, so that its process id is the one to
/// signal. strace writes a line before it lets the traced thread go on: what an answer promises
/// can be looked up once the answer is here.
pub(crate) fn strace_arguments(log: &Path) -> Vec<String> {
    let log = log.to_str().expect("temporary paths are UTF-8");
    let list = "-D -f -qq -y -s 0 -e trace=fsync,fdatasync,sync_file_range -o";
    list.split(' ').chain([log, "--"]).map(str::to_owned).collect()
}

/// The arguments with which strace makes the `nth` `fdatasync` of `file` by a thread fail with EIO; `-D`
/// as above.
pub(crate) fn failing_sync(file: &Path, nth: usize, log: &Path) -> Vec<String> {
    let text = |path: &Path| path.to_str().expect("temporary paths are UTF-8").to_owned();
    let list = "-D -f -qq -y -s 0 -e trace=fdatasync -e";
    let inject = format!("inject=fdatasync:error=EIO:when={nth}");
    let list = list.split(' ').map(str::to_owned);
    list.chain([inject, "-P".into(), text(file), "-o".into(), text(log), "--".into()]).collect()
}

/// The arguments with which strace does `what` to a program's system calls on `file`; `-D` as above.
pub(crate) fn injected(file: &Path, what: &str, log: &Path) -> Vec<String> {
    let text = |path: &Path| path.to_str().expect("temporary paths are UTF-8").to_owned();
    let list = "-D -f -qq -y -s 0 -e".split(' ').map(str::to_owned);
    let inject = format!("inject={what}");
    list.chain([inject, "-P".into(), text(file), "-o".into(), text(log), "--".into()]).collect()
}

/// The files whose `fsync` or `fdatasync` has returned without an error, in order, from strace's log.
pub(crate) fn synced_files(log: &Path) -> Vec<PathBuf> {
    let mut begun = HashMap::new();
    let mut synced = Vec::new();
    for line in fs::read_to_string(log).expect("strace's log").lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if call.starts_with("fsync(") || call.starts_with("fdatasync(") {
            begun.insert(thread, path_between_brackets(call));
        } else if !call.starts_with("<... fsync resumed>")
            && !call.starts_with("<... fdatasync resumed>")
        {
            continue;
        }
        if call.ends_with("= 0")
            && let Some(path) = begun.remove(thread)
        {
            synced.push(path);
        }
    }
    synced
}

/// `/d/f` of `fsync(3</d/f>) = 0`.
fn path_between_brackets(call: &str) -> PathBuf {
    let path = call.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    path.map(|(path, _)| path.into()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    use super::{require, strace_arguments, synced_files};

    #[test]
    fn strace_notes_a_sync_by_the_file_it_was_for() {
        let folder = tempfile::tempdir().unwrap();
        let (log, file) = (folder.path().join("log"), folder.path().join("db"));
        fs::write(&file, "x").unwrap();
        let sync = Command::new(require("strace", "strace"))
            .args(strace_arguments(&log))
            .args(["sync", "--data"])
            .arg(&file)
            .status();
        assert!(sync.unwrap().success());
        assert_eq!(synced_files(&log), [file]);
    }

    #[test]
    fn a_sync_that_another_thread_interrupts_is_still_told() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let lines = "\
10 fdatasync(3</s/db> <unfinished ...>
11 fsync(4</s/mark>) = 0
11 fsync(4</s/bad>) = -1 EIO (Input/output error)
12 sync_file_range(3</s/db>, 0, 0, SYNC_FILE_RANGE_WRITE) = 0
10 <... fdatasync resumed>) = 0
";
        fs::write(&log, lines).unwrap();
        assert_eq!(synced_files(&log), ["/s/mark", "/s/db"].map(PathBuf::from));
    }
}
