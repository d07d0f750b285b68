//! Rebuild, the one repair: read everything readable, write a new, synced store, swap by rename.
//!
//! It serves a failed sync (the kernel marks the lost pages clean, so the old files prove nothing),
//! a store behind its mark, a format upgrade, and a log that has grown (sled's never shrinks while
//! open). The steps, and what a crash after each leaves:
//!
//! 1. the new store is written to `db.partial`, flushed and synced in small groups: the old store is
//!    untouched; the next open deletes `db.partial`;
//! 2. `db.partial` becomes `db.ready`, a promise that it is whole and synced: the next open goes on
//!    at step 3 (nothing was acknowledged in between);
//! 3. `db` becomes `db.<why>-<unix ms>`, or `db.discard` where nothing is worth keeping;
//! 4. `db.ready` becomes `db`: done; the next open deletes `db.discard`.
//!
//! A process that dies between a failed sync and step 3 leaves a file `suspect`: the next open
//! rebuilds before it serves, because what it reads may be in the kernel's cache alone.
//!
//! Records that do not decode are not carried over: they stay in the copy that is kept.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use sled::Db;

use super::{
    GROUP_BYTES, HEAD_KEY, StoreSettings, dead_letters,
    error::{Finding, OpenError},
    facts, history, note,
    open::{at, open_sled, require_space},
    queue,
    record::{self, Head, Kind, Unreadable},
    scan::{bad_record, guarded},
    space,
};

/// Name of the note that a sync has failed.
const SUSPECT: &str = "suspect";

/// What becomes of the old store.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep {
    /// It is kept under this name.
    As(&'static str),
    /// It is deleted, unless something in it was not carried over.
    OnlyIfLossy,
}

/// What a rebuild did.
#[derive(Debug)]
pub(super) struct Rebuilt {
    /// What was not carried over.
    pub(super) findings: Vec<Finding>,
    /// Where the old store lies now.
    pub(super) kept: Option<PathBuf>,
}

/// Copies `source` and puts the copy in its place; `db` must be opened anew afterwards.
///
/// `source` must be the last handle of the store.
pub(super) fn rebuild(
    settings: &StoreSettings,
    source: Db,
    head: Head,
    keep: Keep,
) -> Result<Rebuilt, OpenError> {
    let findings = copy(settings, &source, head)?;
    // sled flushes when dropped; what that does to the old files does not matter any more.
    drop(guarded(move || drop(source)));
    let kept = swap(settings, keep, &findings).map_err(at(&settings.dir))?;
    Ok(Rebuilt { findings, kept })
}

/// Steps 1 and 2: writes what is readable in `source` to `db.ready`. `source` may go on serving
/// reads meanwhile.
pub(super) fn copy(
    settings: &StoreSettings,
    source: &Db,
    head: Head,
) -> Result<Vec<Finding>, OpenError> {
    require_space(settings)?;
    let partial = settings.dir.join("db.partial");
    let result = guarded(|| write_partial(settings, source, head, &partial))
        .unwrap_or_else(|panic| Err(io::Error::other(panic)));
    match result {
        Ok(findings) => {
            let ready = settings.dir.join("db.ready");
            space::rename(&partial, &ready).map_err(at(&partial))?;
            Ok(findings)
        }
        Err(error) => {
            drop(fs::remove_dir_all(&partial));
            Err(at(&partial)(error))
        }
    }
}

fn write_partial(
    settings: &StoreSettings,
    source: &Db,
    head: Head,
    partial: &Path,
) -> io::Result<Vec<Finding>> {
    remove_folder(partial)?;
    let target = open_sled(partial).map_err(io::Error::other)?.map_err(io::Error::from)?;
    let mut copy =
        Copy { settings, source, log: File::open(partial.join("db"))?, target, unsynced: 0 };
    let mut findings = Vec::new();
    let classes = [
        queue::CHUNKS,
        dead_letters::PREFIX,
        facts::PREFIX,
        queue::CALLS,
        queue::SENDING,
        history::PREFIX,
    ];
    for prefix in classes {
        match guarded(|| copy.class(prefix)) {
            Ok(result) => findings.extend(result?),
            Err(panic) => findings.push(unreadable(prefix, &panic)),
        }
    }
    if let Some(value) = record::seal(Kind::Head, &head, 24) {
        copy.target.insert(HEAD_KEY, value).map_err(io::Error::from)?;
    }
    copy.sync()?;
    let Copy { target, log, .. } = copy;
    drop(target);
    log.sync_all()?;
    File::open(partial.join("conf"))?.sync_all()?;
    space::sync_folder(partial)?;
    Ok(findings)
}

struct Copy<'a> {
    settings: &'a StoreSettings,
    source: &'a Db,
    target: Db,
    log: File,
    unsynced: usize,
}

impl Copy<'_> {
    /// Copies all values of one prefix; what cannot be read or does not decode is a finding.
    fn class(&mut self, prefix: u8) -> io::Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for item in self.source.scan_prefix([prefix]) {
            let (key, value) = match item {
                Ok(pair) => pair,
                Err(error) => {
                    findings.push(unreadable(prefix, &error.to_string()));
                    break;
                }
            };
            match record::peel(&value) {
                Ok(_) if self.is_orphan(prefix, &key, &value)? => {}
                Ok(_) => {
                    self.unsynced += key.len() + value.len();
                    self.target.insert(key, value).map_err(io::Error::from)?;
                }
                Err(Unreadable::Newer { found }) => {
                    return Err(io::Error::other(format!("a value has format {found}")));
                }
                Err(why) => findings.push(bad_record(&key, &why.to_string())),
            }
            if self.unsynced >= GROUP_BYTES {
                self.sync()?;
            }
        }
        Ok(findings)
    }

    /// Whether a chunk or mark belongs to no call. The note of a group belongs to all its calls.
    fn is_orphan(&self, prefix: u8, key: &[u8], value: &[u8]) -> io::Result<bool> {
        let seq = match prefix {
            queue::SENDING if self.has_members(key, value)? => return Ok(false),
            queue::CHUNKS => queue::chunk_of(key).map(|(seq, _)| seq),
            queue::SENDING | dead_letters::PREFIX => queue::number_of(key),
            _ => return Ok(false),
        };
        let Some(seq) = seq else { return Ok(true) };
        let has_header = self.source.contains_key(queue::key(queue::CALLS, seq));
        has_header.map(|has| !has).map_err(io::Error::from)
    }

    fn has_members(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        let note = queue::number_of(key).and_then(|seq| note::decode(seq, value).ok());
        let Some(group) = note.and_then(|note| note.group) else { return Ok(false) };
        for member in group.members {
            let is_there = self.source.contains_key(queue::key(queue::CALLS, member));
            if is_there.map_err(io::Error::from)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// At most about 100 KB are ever in flight: more would not survive a power cut in order.
    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        self.settings.faults.flush()?;
        self.target.flush().map_err(io::Error::from)?;
        self.settings.faults.sync()?;
        self.log.sync_data()
    }
}

fn unreadable(prefix: u8, why: &str) -> Finding {
    Finding::Unreadable { detail: format!("values under '{}': {why}", char::from(prefix)) }
}

/// Steps 3 and 4. The old store must be closed.
pub(super) fn swap(
    settings: &StoreSettings,
    keep: Keep,
    findings: &[Finding],
) -> io::Result<Option<PathBuf>> {
    let dir = &settings.dir;
    let (aside, kept) = match keep {
        Keep::OnlyIfLossy if findings.is_empty() => (dir.join("db.discard"), false),
        Keep::OnlyIfLossy => (space::aside(settings, "damaged"), true),
        Keep::As(why) => (space::aside(settings, why), true),
    };
    space::rename(&dir.join("db"), &aside)?;
    space::rename(&dir.join("db.ready"), &dir.join("db"))?;
    trust(dir)?;
    if kept {
        return Ok(Some(aside));
    }
    remove_folder(&aside)?;
    Ok(None)
}

/// Goes on where a crash interrupted a rebuild; whether one was finished.
pub(super) fn finish(settings: &StoreSettings) -> io::Result<bool> {
    let dir = &settings.dir;
    remove_folder(&dir.join("db.partial"))?;
    let ready = dir.join("db.ready");
    let is_ready = ready.try_exists()?;
    if is_ready {
        if dir.join("db").try_exists()? {
            space::rename(&dir.join("db"), &space::aside(settings, "replaced"))?;
        }
        space::rename(&ready, &dir.join("db"))?;
        trust(dir)?;
    }
    remove_folder(&dir.join("db.discard"))?;
    Ok(is_ready)
}

/// Notes that the files prove nothing until they are rebuilt. Best effort: the disk has just failed.
pub(super) fn suspect(dir: &Path) {
    let noted = File::create(dir.join(SUSPECT)).and_then(|_| space::sync_folder(dir));
    if let Err(error) = noted {
        tracing::warn!(%error, "could not note that the store must be rebuilt");
    }
}

/// Whether an earlier process noted that.
pub(super) fn is_suspect(dir: &Path) -> bool {
    dir.join(SUSPECT).try_exists().unwrap_or(true)
}

fn trust(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(SUSPECT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => space::sync_folder(dir),
    }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
