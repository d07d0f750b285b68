//! How much memory there is for this process: its control group's limit, or else the machine's.
//!
//! Groups are nested, and the smallest limit on the way up is the one that kills: `memory.max` and `memory.high` with
//! version 2, `memory.limit_in_bytes` with version 1. In a container the group's own path is often not visible; what
//! is mounted then is the container's group, so the way up ends there in either case. Whatever cannot be read limits
//! nothing.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What is assumed if nothing can be read.
const UNKNOWN: u64 = 1 << 30;

/// The memory that this process may use, in bytes.
pub(super) fn available() -> u64 {
    available_below(Path::new("/"))
}

/// The same, with the files of the system below `root`.
fn available_below(root: &Path) -> u64 {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| group_limit(root, line));
    limits.chain(machine(root)).min().unwrap_or(UNKNOWN)
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

fn machine(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system of these files, and what is available there.
    #[track_caller]
    fn gives(files: &[(&str, &str)], expected: u64) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(available_below(root.path()), expected, "{files:?}");
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       4096 kB\nMemFree: 1 kB\n");

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let group = ("proc/self/cgroup", "1:name=systemd:/a\n0::/a/b.service\n");
        let own = "sys/fs/cgroup/a/b.service";
        gives(&[MEMINFO, group], 4 << 20);
        gives(&[MEMINFO, group, (&format!("{own}/memory.max"), "1048576\n")], 1 << 20);
        gives(&[MEMINFO, group, (&format!("{own}/memory.max"), "max\n")], 4 << 20);
        gives(
            &[
                MEMINFO,
                group,
                (&format!("{own}/memory.max"), "1048576\n"),
                (&format!("{own}/memory.high"), "524288\n"),
                ("sys/fs/cgroup/a/memory.max", "700000\n"),
                ("sys/fs/memory.max", "1\n"),
            ],
            512 << 10,
        );
        gives(&[MEMINFO, group, ("sys/fs/cgroup/a/memory.max", "65536\n")], 64 << 10);
    }

    #[test]
    fn version_1_and_containers_are_understood() {
        let group = ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/\n");
        let limit = "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes";
        gives(&[MEMINFO, group, (limit, "2097152\n")], 2 << 20);
        gives(&[MEMINFO, group, (limit, "9223372036854771712\n")], 4 << 20);
        // The path is the host's, and what is mounted is the container's.
        gives(
            &[MEMINFO, group, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n")],
            1 << 20,
        );
    }

    #[test]
    fn what_cannot_be_read_limits_nothing() {
        gives(&[], UNKNOWN);
        gives(
            &[("proc/self/cgroup", "nonsense\n0::\n"), ("proc/meminfo", "MemTotal: many")],
            UNKNOWN,
        );
    }
}
