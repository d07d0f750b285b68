//! How much memory there is for this process: its control group's limit, or else the machine's.
//!
//! Groups are nested, and the smallest limit on the way up is the one that kills: `memory.max` and `memory.high` with
//! version 2, `memory.limit_in_bytes` with version 1. In a container the group's own path is often not visible; what
//! is mounted then is the container's group, so the way up ends there in either case. Whatever cannot be read limits
//! nothing.
//!
//! The machine is asked by a system call: under the shipped systemd unit `/proc` shows processes alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::sysinfo::sysinfo;

/// What is assumed if nothing can be read.
const UNKNOWN: u64 = 1 << 30;

/// The memory that this process may use, in bytes.
pub(super) fn available() -> u64 {
    available_of(machine(), Path::new("/"))
}

/// The same of a machine with so much memory, and with the files of the system below `root`.
fn available_of(machine: Option<u64>, root: &Path) -> u64 {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| group_limit(root, line));
    limits.chain(machine).min().unwrap_or(UNKNOWN)
}

/// The smallest limit of the group that a line of `/proc/self/cgroup` names, and of those above it.
fn group_limit(root: &Path, line: &str) -> Option<u64> {
    // `0::/path` is version 2; `4:memory:/path` is version 1's controller of memory.
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let (mount, files): (_, &[&str]) = match controllers {
        "" => (root.join("sys/fs/cgroup"), &["memory.max", "memory.high"]),
        names if names.split(',').any(|name| name == "memory") => {
            (root.join("sys/fs/cgroup/memory"), &["memory.limit_in_bytes"])
        }
        _ => return None,
    };
    let group: PathBuf = mount.join(path.trim_start_matches('/'));
    let upwards = group.ancestors().take_while(|folder| folder.starts_with(&mount));
    let files = upwards.flat_map(|folder| files.iter().map(move |file| folder.join(file)));
    // "max", and what is not there, is no limit. Version 1 writes a number larger than any machine for none.
    files.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

fn machine() -> Option<u64> {
    sysinfo().ok().map(|machine| machine.ram_total())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the machine, in bytes.
    const ALL: u64 = 4 << 20;

    /// A system of these files, and what is available there.
    #[track_caller]
    fn gives(files: &[(&str, &str)], expected: u64) {
        gives_of(Some(ALL), files, expected);
    }

    #[track_caller]
    fn gives_of(machine: Option<u64>, files: &[(&str, &str)], expected: u64) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(available_of(machine, root.path()), expected, "{files:?}");
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let group = ("proc/self/cgroup", "1:name=systemd:/a\n0::/a/b.service\n");
        let own = "sys/fs/cgroup/a/b.service";
        gives(&[group], ALL);
        gives(&[group, (&format!("{own}/memory.max"), "1048576\n")], 1 << 20);
        gives(&[group, (&format!("{own}/memory.max"), "max\n")], ALL);
        gives(
            &[
                group,
                (&format!("{own}/memory.max"), "1048576\n"),
                (&format!("{own}/memory.high"), "524288\n"),
                ("sys/fs/cgroup/a/memory.max", "700000\n"),
                ("sys/fs/memory.max", "1\n"),
            ],
            512 << 10,
        );
        gives(&[group, ("sys/fs/cgroup/a/memory.max", "65536\n")], 64 << 10);
    }

    #[test]
    fn version_1_and_containers_are_understood() {
        let group = ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/\n");
        let limit = "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes";
        gives(&[group, (limit, "2097152\n")], 2 << 20);
        gives(&[group, (limit, "9223372036854771712\n")], ALL);
        // The path is the host's, and what is mounted is the container's.
        gives(&[group, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n")], 1 << 20);
    }

    #[test]
    fn what_cannot_be_read_limits_nothing() {
        gives(&[], ALL);
        gives_of(None, &[], UNKNOWN);
        gives_of(None, &[("proc/self/cgroup", "nonsense\n0::\n")], UNKNOWN);
    }

    #[test]
    fn the_machines_memory_is_known_without_any_file_below_proc() {
        let shown = fs::read_to_string("/proc/meminfo").unwrap();
        let total = shown.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
        let kib: u64 = total.trim().trim_end_matches(" kB").parse().unwrap();
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(available_of(machine(), nothing.path()), kib << 10);
    }
}
