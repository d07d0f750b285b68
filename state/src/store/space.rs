//! Room on the disk, the ballast that is given up when there is none, and folders made durable.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
};

use super::{error::OpenError, settings::StoreSettings};

/// Size of the ballast: what removals and marks are written from when the disk is full.
pub(super) const BALLAST_BYTES: u64 = 8 * 1024 * 1024;
/// Free space that opening wants, ballast given up. An open wrote a snapshot of some kilobytes and
/// less than two segments of 512 KiB; as much as the ballast would make the ballast useless.
pub(super) const OPEN_BYTES: u64 = 2 * 1024 * 1024;

const BALLAST: &str = "ballast";

/// Bytes that we may still write on the file system of the store.
pub(super) fn free(settings: &StoreSettings) -> io::Result<u64> {
    if let Some(free) = settings.faults.free_space() {
        return Ok(free);
    }
    let stat = statvfs(&settings.dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// sled chokes for ever on what an open leaves behind on a full disk, so there must be room first. The ballast is given
/// up for it.
pub(super) fn require(settings: &StoreSettings, needed: u64) -> Result<(), OpenError> {
    let dir = &settings.dir;
    let mut free = free(settings).map_err(at(dir))?;
    if free < needed && drop_ballast(dir) {
        free = self::free(settings).map_err(at(dir))?;
    }
    if free >= needed { Ok(()) } else { Err(OpenError::DiskFull { free, needed }) }
}

/// The folders that were set aside, oldest first. They may hold calls that were acknowledged, so nothing but an
/// operator's order deletes one.
pub(super) fn asides(dir: &Path) -> Vec<PathBuf> {
    let kept =
        ["db.damaged-", "db.failed-sync-", "db.replaced-", "db.first-format-", "db.snapshots-"];
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let prefix = kept.iter().find(|prefix| name.starts_with(**prefix))?;
            Some((name.get(prefix.len()..)?.to_owned(), entry.path()))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Deletes the stores of these names that were set aside in the store's folder `dir`, for good. Returns the bytes that
/// they took. Whoever orders that has looked at them before, so one that was set aside since stays.
///
/// # Errors
/// One could not be deleted; those before it are.
pub fn remove_set_aside(dir: &Path, names: &[String]) -> io::Result<u64> {
    let mut bytes = 0;
    for name in names {
        let path = dir.join(name);
        let size = folder_bytes(&path);
        remove_folder(&path)?;
        bytes += size;
    }
    if !names.is_empty() {
        sync_folder(dir)?;
    }
    Ok(bytes)
}

fn folder_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|it| it.len()).sum()
}

/// Gives the ballast up; whether there was one.
pub(super) fn drop_ballast(dir: &Path) -> bool {
    fs::remove_file(dir.join(BALLAST)).is_ok()
}

/// Makes the ballast again if the disk has room for it above `floor`; whether it is there.
pub(super) fn make_ballast(settings: &StoreSettings) -> bool {
    let path = settings.dir.join(BALLAST);
    if fs::metadata(&path).is_ok_and(|ballast| ballast.len() == BALLAST_BYTES) {
        return true;
    }
    let wanted = settings.disk_floor.saturating_add(BALLAST_BYTES);
    if !free(settings).is_ok_and(|free| free >= wanted) {
        return false;
    }
    match allocate(&path) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "could not create the ballast file");
            drop_ballast(&settings.dir);
            false
        }
    }
}

/// Allocates blocks for real: a sparse file would give nothing back.
fn allocate(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    if fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES).is_err() {
        let block = vec![0; 64 * 1024];
        for _ in 0..BALLAST_BYTES / (64 * 1024) {
            file.write_all(&block)?;
        }
    }
    file.sync_data()
}

/// Entries of a folder; none if it is missing.
pub(super) fn count_entries(path: &Path) -> u64 {
    fs::read_dir(path).map_or(0, |entries| entries.count() as u64)
}

/// Makes what a folder lists durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A name of the form `db.<why>-<unix ms>` in `dir` that is not taken.
pub(super) fn aside(settings: &StoreSettings, why: &str) -> PathBuf {
    let now = (settings.unix_now)().get();
    crate::file::free_path(&settings.dir, &format!("db.{why}-{now}"))
}

/// Renames within the store's folder, durably. After an error it may have been done, for good or not. The folder is
/// opened before, so that only its sync can fail after that.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().map(File::open).transpose()?;
    fs::rename(from, to)?;
    folder.map_or(Ok(()), |folder| folder.sync_all())
}

/// Whether an error says only that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an error may be one of a write or an open that was refused at once, for want of room, memory, descriptors or
/// rights.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{OutOfMemory, PermissionDenied, ReadOnlyFilesystem};
    let has_no_descriptor =
        [Errno::MFILE, Errno::NFILE].map(Some).contains(&Errno::from_io_error(error));
    is_full(error)
        || has_no_descriptor
        || matches!(error.kind(), OutOfMemory | PermissionDenied | ReadOnlyFilesystem)
}

/// The error of a file operation on `path`.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> OpenError {
    move |source| {
        if is_full(&source) {
            OpenError::DiskFull { free: 0, needed: OPEN_BYTES }
        } else {
            OpenError::Io { path: path.to_owned(), source }
        }
    }
}

/// Removes a folder, or a file in its place.
pub(super) fn remove_folder(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(it) if it.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_was_set_aside_since_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let [seen, later] = ["db.damaged-1", "db.damaged-2"].map(|name| dir.path().join(name));
        fs::create_dir(&seen).unwrap();
        fs::write(seen.join("db"), "calls").unwrap();
        fs::create_dir(&later).unwrap();
        assert_eq!(remove_set_aside(dir.path(), &["db.damaged-1".to_owned()]).unwrap(), 5);
        assert_eq!(asides(dir.path()), [later]);
    }
}
