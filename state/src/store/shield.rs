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
//! The copy is not synced: it is for a disk that fails, and a power cut alone leaves `db` whole. An open that finds
//! `db.before` goes by it only if `db` is no longer whole and the copy is: nothing was acknowledged since it was made.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    settings::StoreSettings,
    space::{self, remove_folder},
};

/// The path of the copy.
pub(super) fn folder(dir: &Path) -> PathBuf {
    dir.join("db.before")
}

/// Copies the log of `db`. `None` if the disk has no room for that: sled must then do without.
pub(super) fn copy_log(settings: &StoreSettings, db: &Path) -> io::Result<Option<PathBuf>> {
    let folder = folder(&settings.dir);
    remove_folder(&folder)?;
    let log = db.join("db");
    let bytes = fs::metadata(&log)?.len();
    let room = space::free(settings)?;
    if room < bytes.saturating_add(2 * space::OPEN_BYTES) {
        tracing::warn!(bytes, room, "no room for a copy of the log while it is opened");
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
