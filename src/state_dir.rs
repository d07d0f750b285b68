//! The state directory: private to the daemon, locked by it, and where its name is kept.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use anyhow::{Context, bail};
use fusebox_state::store::journal;

/// The lock's file. It stays when the daemon ends; what counts is the lock on it.
const LOCK: &str = "lock";
/// The file of the daemon's name.
const INSTANCE: &str = "instance";

/// All that a daemon keeps here.
const OURS: &[&str] = &[LOCK, INSTANCE, "backends", journal::NEWER, journal::OLDER];

/// The directory, locked for as long as this lives.
pub(crate) struct StateDir {
    /// The daemon's name on its connections, kept over restarts.
    pub(crate) instance: String,
    _lock: File,
}

impl StateDir {
    /// Makes the directory where it is missing, keeps others out, locks it, and reads or makes the name.
    ///
    /// # Errors
    /// Another daemon holds the lock, or the directory cannot be used.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make the state directory {shown}"))?;
        let lock = lock(path)?;
        keep_others_out(path);
        let instance =
            instance(path).with_context(|| format!("cannot keep the daemon's name in {shown}"))?;
        Ok(Self { instance, _lock: lock })
    }
}

fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            drop(file.take(32).read_to_string(&mut holder));
            let holder = holder.trim();
            let who =
                if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
            bail!("another fusebox daemon{who} runs on the state directory {}", dir.display());
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    // For people who look; nothing depends on it.
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        tracing::debug!(%error, "cannot write the process's number into the lock");
    }
    Ok(file)
}

/// Takes group and others their rights on a directory that holds nothing but state. A directory with
/// other things in it is somebody's: there a warning is all.
fn keep_others_out(dir: &Path) {
    if !std::fs::metadata(dir).is_ok_and(|dir| dir.mode() & 0o077 != 0) {
        return;
    }
    let only_ours = std::fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|e| OURS.iter().any(|name| e.file_name() == *name)))
    });
    let done = only_ours && std::fs::set_permissions(dir, Permissions::from_mode(0o700)).is_ok();
    if !done {
        tracing::warn!(
            path = %dir.display(),
            "the state directory is open to others and holds what callers wrote; make it mode 0700"
        );
    }
}

fn instance(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join(INSTANCE);
    match std::fs::read_to_string(&path) {
        Ok(text) if ulid::Ulid::from_string(text.trim()).is_ok() => {
            return Ok(text.trim().to_owned());
        }
        Ok(_) => tracing::warn!(path = %path.display(), "not a name: a new one is made"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let name = new_name();
    let next = dir.join("instance.next");
    let mut file = File::create(&next)?;
    writeln!(file, "{name}")?;
    file.sync_all()?;
    std::fs::rename(&next, &path)?;
    File::open(dir)?.sync_all()?;
    Ok(name)
}

/// A name that no other daemon, and no other run, has.
pub(crate) fn new_name() -> String {
    let millis = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    ulid::Ulid::from_parts(millis, fastrand::u128(..)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_gets_one_clear_error_and_the_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep").join("state");
        let first = StateDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let error = StateDir::open(&path).map(|_| ()).unwrap_err().to_string();
        let expected = format!("(process {}) runs on the state directory", std::process::id());
        assert!(error.contains(&expected), "{error}");
        let name = first.instance.clone();
        drop(first);
        assert_eq!(StateDir::open(&path).unwrap().instance, name);
        std::fs::write(path.join(INSTANCE), "rubbish").unwrap();
        assert_ne!(StateDir::open(&path).unwrap().instance, name);
    }

    #[test]
    fn an_open_directory_is_closed_only_where_all_in_it_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let mode = || std::fs::metadata(dir.path()).unwrap().mode() & 0o777;
        std::fs::write(dir.path().join("somebody's"), "").unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        drop(StateDir::open(dir.path()).unwrap());
        assert_eq!(mode(), 0o755);
        std::fs::remove_file(dir.path().join("somebody's")).unwrap();
        drop(StateDir::open(dir.path()).unwrap());
        assert_eq!(mode(), 0o700);
    }
}
