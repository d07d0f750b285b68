//! What sled may ruin is kept until it has opened whole.
//!
//! When sled opens a log and cannot *read* a part of it, it takes the part for torn: it zeroes segments and cuts the
//! file, and says nothing. One EIO at that moment would cost every call. So sled works on a log of which there is a
//! copy, and whatever is read of the log meanwhile is read from the copy.
//!
//! ```text
//! db/db ──copy──▶ db.before/db ─▶ sled opens db ─┬─ as planned ───────▶ db.before removed, and that made durable
//!                                                └─ not as planned ───▶ rebuilt from db.before
//! ```
//!
//! A large log is copied while it is looked at, under another name (`db.copying`): it is `db.before` once the look has found
//! the log whole, and is removed otherwise.
//!
//! The copy is not synced: it is for a disk that fails, and a power cut alone leaves `db` whole. An open that finds
//! `db.before` goes by it only if `db` is no longer whole and the copy is: nothing was acknowledged since it was made.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
};

use super::{
    settings::StoreSettings,
    space::{self, remove_folder},
};

/// The path of the copy.
pub(super) fn folder(dir: &Path) -> PathBuf {
    dir.join("db.before")
}

/// A copy of a log that was made while it was looked at. Dropped, it is removed.
pub(super) struct Copied(PathBuf);

impl Copied {
    fn path(dir: &Path) -> PathBuf {
        dir.join("db.copying")
    }

    /// It is what sled may ruin the log behind. Nothing is left under its own name.
    pub(super) fn keep(self, dir: &Path) -> io::Result<PathBuf> {
        let folder = folder(dir);
        remove_folder(&folder)?;
        fs::rename(&self.0, &folder)?;
        Ok(folder)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        if let Err(error) = remove_folder(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "could not remove a copy of the log");
        }
    }
}

/// Runs `look`, and copies the log of `db` meanwhile if it has that many bytes and the disk has room. A copy that
/// fails is none.
pub(super) fn while_copied<T>(
    settings: &StoreSettings,
    db: &Path,
    from_bytes: u64,
    look: impl FnOnce() -> T,
) -> io::Result<(T, Option<Copied>)> {
    let path = Copied::path(&settings.dir);
    remove_folder(&path)?;
    let log = db.join("db");
    let is_large = fs::metadata(&log).is_ok_and(|it| it.is_file() && it.len() >= from_bytes);
    if !is_large || !has_room(settings, &log)? {
        return Ok((look(), None));
    }
    fs::create_dir(&path)?;
    let copied = Copied(path.clone());
    let (seen, result) = thread::scope(|scope| {
        let copy = || fs::copy(&log, path.join("db"));
        let copy = thread::Builder::new().name("log-copy".into()).spawn_scoped(scope, copy);
        let seen = look();
        let result = copy
            .and_then(|copy| copy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        (seen, result)
    });
    if let Err(error) = result {
        tracing::debug!(%error, "the log was not copied while it was checked");
        return Ok((seen, None));
    }
    Ok((seen, Some(copied)))
}

fn has_room(settings: &StoreSettings, log: &Path) -> io::Result<bool> {
    let bytes = fs::metadata(log)?.len();
    let room = space::free(settings)?;
    let has_room = room >= bytes.saturating_add(2 * space::OPEN_BYTES);
    if !has_room {
        tracing::warn!(bytes, room, "no room for a copy of the log while it is opened");
    }
    Ok(has_room)
}

/// Copies the log of `db`. `None` if the disk has no room for that: sled must then do without.
pub(super) fn copy_log(settings: &StoreSettings, db: &Path) -> io::Result<Option<PathBuf>> {
    let folder = folder(&settings.dir);
    remove_folder(&folder)?;
    let log = db.join("db");
    if !has_room(settings, &log)? {
        return Ok(None);
    }
    fs::create_dir(&folder)?;
    fs::copy(&log, folder.join("db"))?;
    Ok(Some(folder))
}

/// Copies a whole store, for sled to open instead of it.
pub(super) fn copy_store(from: &Path, to: &Path) -> io::Result<()> {
    remove_folder(to)?;
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The store is whole: the copy goes, for good, before anything is acknowledged.
pub(super) fn drop_copy(dir: &Path) -> io::Result<()> {
    let folder = folder(dir);
    if folder.try_exists()? {
        remove_folder(&folder)?;
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{store::Faults, units::UnixMillis};

    fn settings(dir: &Path) -> StoreSettings {
        StoreSettings {
            dir: dir.to_owned(),
            target: "redis://localhost:6379/0".into(),
            disk_floor: 0,
            unix_now: Arc::new(|| UnixMillis::new(1)),
            on_event: Arc::new(|_| {}),
            packed: false,
            faults: Faults::default(),
        }
    }

    #[test]
    fn a_copy_is_kept_if_it_is_of_use_and_removed_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, db) = (settings(dir.path()), dir.path().join("db"));
        fs::create_dir(&db).unwrap();
        fs::write(db.join("db"), "a log").unwrap();
        // What an earlier process left is not taken for a copy.
        fs::create_dir(dir.path().join("db.copying")).unwrap();
        let is_there = || dir.path().join("db.copying").try_exists().unwrap();
        let (seen, small) = while_copied(&settings, &db, 6, || 7).unwrap();
        assert!(small.is_none() && !is_there());
        assert_eq!(seen, 7);
        let (seen, unused) = while_copied(&settings, &db, 5, || 8).unwrap();
        assert_eq!(fs::read(dir.path().join("db.copying/db")).unwrap(), b"a log");
        assert_eq!(seen, 8);
        drop(unused);
        assert!(!is_there());
        let (_, copied) = while_copied(&settings, &db, 5, || 9).unwrap();
        let kept = copied.unwrap().keep(dir.path()).unwrap();
        assert_eq!(kept, folder(dir.path()));
        assert_eq!(fs::read(kept.join("db")).unwrap(), b"a log");
        assert!(!is_there());
    }
}
