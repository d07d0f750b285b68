//! What the bare disk does: appends of 4 KiB, each synced.

use std::{
    fs::File,
    io::{self, Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

/// Bytes of one append.
const PAGE: usize = 4_096;
/// Appends after which the file is begun again: a daemon beside this needs the disk, too.
const PAGES_MAX: usize = 4_096;
/// A sync of a disk with moving parts, or with a cache that is emptied, is not faster.
const UNLIKELY: Duration = Duration::from_micros(20);

/// How long syncs take.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Syncs {
    /// How many were measured.
    pub(crate) count: usize,
    /// Half of them are faster.
    #[serde(serialize_with = "micros", rename = "median_us")]
    pub(crate) median: Duration,
    /// One in a hundred is slower.
    #[serde(serialize_with = "micros", rename = "p99_us")]
    pub(crate) worst_of_hundred: Duration,
}

fn micros<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// The space that is left in `folder`, in bytes.
///
/// # Errors
/// What the file system says.
pub(super) fn free(folder: &Path) -> io::Result<u64> {
    let found = nix::sys::statvfs::statvfs(folder)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// Appends and syncs for `time`, at least once.
///
/// # Errors
/// What the file system says.
pub(super) fn measure(file: &Path, time: Duration) -> io::Result<Syncs> {
    let mut file = File::create(file)?;
    let (start, page) = (Instant::now(), [7_u8; PAGE]);
    let mut taken = Vec::new();
    loop {
        if taken.len() % PAGES_MAX == 0 {
            file.set_len(0)?;
            file.rewind()?;
        }
        let begun = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        taken.push(begun.elapsed());
        if start.elapsed() >= time {
            break;
        }
    }
    taken.sort_unstable();
    let at = |share: usize| {
        let place = (taken.len() * share / 100).min(taken.len() - 1);
        taken.get(place).copied().unwrap_or_default()
    };
    Ok(Syncs { count: taken.len(), median: at(50), worst_of_hundred: at(99) })
}

/// What should be known of the place.
pub(super) fn notes(folder: &Path, syncs: &Syncs) -> Vec<String> {
    let mut notes = Vec::new();
    let in_memory = nix::sys::statfs::statfs(folder)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
    if in_memory {
        notes.push(
            "this file system is in memory: nothing in it survives a restart of the machine"
                .to_owned(),
        );
    } else if syncs.median < UNLIKELY {
        notes.push(
            "syncs are faster than a disk can be: something below answers before the data is safe, so a power failure \
             may lose data"
                .to_owned(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_in_order_and_a_file_system_in_memory_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let syncs = measure(&dir.path().join("syncs"), Duration::from_millis(20)).unwrap();
        assert!(syncs.count > 0 && syncs.median <= syncs.worst_of_hundred, "{syncs:?}");
        let fast = Syncs { median: Duration::from_micros(3), ..syncs };
        let told = notes(dir.path(), &fast).join("\n");
        assert!(told.contains("in memory") || told.contains("faster than a disk"), "{told}");
        assert!(measure(&dir.path().join("no/such"), Duration::ZERO).is_err());
    }
}
