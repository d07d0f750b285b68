//! Looking at a store offline, without changing anything in it.
//!
//! sled writes when it opens, so a store is never opened where it lies: its log is scanned raw for
//! our envelopes, and where there is room the folder is copied and the copy opened. A store that a
//! daemon has open may be checked, too: a copy taken meanwhile is a crash-consistent prefix.

mod raw;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock, statvfs};
use sled::Db;

pub use self::raw::{RawCounts, RepairSummary, repair};
use super::{
    Counts, Finding, StoredCall,
    mark::{self, Reading},
    open::{count_entries, open_sled},
    queue,
    record::Head,
    scan::{self, ScanFailure, Scanned, guarded},
};

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckVerdict {
    /// Everything that should be there is, and reads.
    Whole,
    /// There is no store, or one that never held anything.
    Empty,
    /// Something that was acknowledged may be lost: see the findings.
    Damaged,
    /// A newer version wrote it; only that version can judge it.
    NewerFormat,
}

/// What a check found. Sizes are in bytes.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CheckReport {
    /// The result in a word.
    pub verdict: CheckVerdict,
    /// Whether a daemon has the store open.
    pub live: bool,
    /// Size of sled's log.
    pub log_bytes: u64,
    /// Commit number that the mark asks for.
    pub marked_commit: Option<u64>,
    /// Commit number that the store has: of the opened copy, else the highest in the raw log.
    pub commit: Option<u64>,
    /// What the raw log holds, removed values included.
    pub raw: RawCounts,
    /// What the opened copy holds; absent where it was not opened.
    pub counts: Option<Counts>,
    /// Why no copy was opened, if none was.
    pub not_opened: Option<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Stores that were set aside, by folder name, for `repair`.
    pub set_aside: Vec<String>,
}

/// A call read offline, with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedCall {
    /// The call.
    pub call: StoredCall,
    /// Its body, checksum verified.
    pub body: Bytes,
    /// What is known of its state.
    pub state: ExportedState,
}

/// What is known of the state of an exported call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportedState {
    /// It waits for replay.
    Pending,
    /// It was put on the wire; the outcome is not known.
    Sending,
    /// It is a dead letter.
    Dead,
    /// It was found in a raw log and may have been delivered or removed long ago.
    Salvaged,
}

/// What an export wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExportSummary {
    /// Calls handed over.
    pub calls: u64,
    /// Records that are damaged and were left out.
    pub bad: u64,
}

/// Why an export or a repair did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is no store in that folder.
    #[error("{0} holds no store")]
    NoStore(PathBuf),
    /// The copy does not fit: name another temporary folder.
    #[error("copying the store needs {needed} bytes, {free} are free in {path}")]
    NoRoom {
        /// The temporary folder.
        path: PathBuf,
        /// Bytes free there.
        free: u64,
        /// Bytes needed there.
        needed: u64,
    },
    /// The copy does not open: `repair` reads the raw log.
    #[error("the store does not open: {0}")]
    DoesNotOpen(String),
    /// A newer version wrote it.
    #[error("the store has format {0}, which this version does not know")]
    NewerFormat(u16),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Checks the store in `dir` without writing into it. `tmp` takes a copy where it has room for one;
/// it is deleted again. `progress` hears bytes scanned and bytes in all.
pub fn check(dir: &Path, tmp: &Path, progress: &mut dyn FnMut(u64, u64)) -> CheckReport {
    // The mark comes first: a store that lives moves on, and is never behind an older mark.
    let marked = mark::read(dir).unwrap_or(Reading::Damaged);
    let log = dir.join("db/db");
    let raw = raw::count(&log, progress);
    let mut report = CheckReport {
        verdict: CheckVerdict::Whole,
        live: is_live(dir),
        log_bytes: fs::metadata(&log).map_or(0, |log| log.len()),
        marked_commit: None,
        commit: raw.as_ref().ok().and_then(|(_, head)| head.map(|head| head.commit)),
        raw: raw.as_ref().map(|(counts, _)| *counts).unwrap_or_default(),
        counts: None,
        not_opened: None,
        findings: look_around(dir),
        set_aside: set_aside(dir),
    };
    let there_is_a_log = log.try_exists().unwrap_or(true);
    if !there_is_a_log && marked == Reading::Absent {
        report.verdict = CheckVerdict::Empty;
        return report;
    }
    let mut head = raw.ok().and_then(|(_, head)| head);
    let mut newer = matches!(marked, Reading::Newer(_)) || report.raw.newer > 0;
    if there_is_a_log {
        match open_copy(dir, tmp, report.live) {
            Ok(copy) => {
                head = copy.scanned.head;
                report.commit = head.map(|head| head.commit);
                report.counts = Some(copy.scanned.counts);
                report.findings.extend(copy.scanned.findings.iter().cloned());
            }
            Err(error @ (CheckError::NoRoom { .. } | CheckError::Io(_))) => {
                report.not_opened = Some(error.to_string());
            }
            Err(CheckError::NewerFormat(_)) => newer = true,
            Err(error) => {
                report.not_opened = Some(error.to_string());
                report.findings.push(Finding::Unreadable { detail: error.to_string() });
            }
        }
    }
    compare(&mut report, marked, head);
    report.verdict = judge(&report, newer);
    report
}

/// Compares what the store holds with what its mark asks for.
fn compare(report: &mut CheckReport, marked: Reading, head: Option<Head>) {
    let found = head.unwrap_or_default();
    match marked {
        Reading::At(marked) => {
            report.marked_commit = Some(marked.commit);
            if found.commit < marked.commit || found.last_seq < marked.last_seq {
                report.findings.push(Finding::TailLost {
                    commits: marked.commit.saturating_sub(found.commit),
                    sequences: marked.last_seq.saturating_sub(found.last_seq),
                    kept: None,
                });
            }
        }
        Reading::Newer(_) => {}
        Reading::Absent | Reading::Damaged => {
            if head.is_some() {
                let detail = format!("the mark is {marked:?}").to_lowercase();
                report.findings.push(Finding::MarkLost { detail });
            }
        }
    }
}

fn judge(report: &CheckReport, newer: bool) -> CheckVerdict {
    let held_nothing = report
        .counts
        .is_some_and(|counts| counts == Counts { facts: counts.facts, ..Counts::default() });
    if newer {
        CheckVerdict::NewerFormat
    } else if report.findings.iter().any(Finding::is_damage) {
        CheckVerdict::Damaged
    } else if held_nothing && report.raw.calls == 0 {
        CheckVerdict::Empty
    } else {
        CheckVerdict::Whole
    }
}

/// Hands every pending and dead call of the store in `dir` to `each`, ascending by sequence, from a
/// copy in `tmp`.
///
/// # Errors
/// See [`CheckError`]; nothing was handed over then.
pub fn export(
    dir: &Path,
    tmp: &Path,
    each: &mut dyn FnMut(ExportedCall),
) -> Result<ExportSummary, CheckError> {
    if !dir.join("db/db").try_exists()? {
        return Err(CheckError::NoStore(dir.to_owned()));
    }
    let copy = open_copy(dir, tmp, is_live(dir))?;
    let mut summary = ExportSummary { calls: 0, bad: copy.scanned.counts.bad };
    for call in &copy.scanned.calls {
        let body = guarded(|| queue::read_body(&copy.db, call.seq));
        let Ok(Ok(body)) = body else {
            summary.bad += 1;
            continue;
        };
        let state = match (&call.dead, call.first_sent_at) {
            (Some(_), _) => ExportedState::Dead,
            (None, Some(_)) => ExportedState::Sending,
            (None, None) => ExportedState::Pending,
        };
        summary.calls += 1;
        each(ExportedCall { call: call.clone(), body, state });
    }
    Ok(summary)
}

/// Whether a daemon holds the store's lock. Ours is gone at once, and an open has a moment's
/// patience.
fn is_live(dir: &Path) -> bool {
    fs::File::open(dir.join("lock"))
        .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}

/// What lies about: blob files and leftovers of an interrupted open.
fn look_around(dir: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let blobs = count_entries(&dir.join("db/blobs"));
    if blobs > 0 {
        findings.push(Finding::BlobFiles { count: blobs });
    }
    for name in names(&dir.join("db")) {
        if name.starts_with("snap.") && name.ends_with(".generating") {
            findings.push(Finding::LeftoverSnapshot { name });
        }
    }
    findings
}

fn set_aside(dir: &Path) -> Vec<String> {
    let kept = ["db.damaged-", "db.failed-sync-", "db.replaced-"];
    let is_kept = |name: &String| kept.iter().any(|prefix| name.starts_with(prefix));
    names(dir).into_iter().filter(is_kept).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// A store's copy, opened and scanned. Deleted when dropped.
struct Copy {
    db: Db,
    scanned: Scanned,
    _folder: TemporaryFolder,
}

struct TemporaryFolder(PathBuf);

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a temporary copy is left behind");
        }
    }
}

/// Copies the store and opens the copy. One that lives may move under the copying hand, so it gets
/// a second and a third try.
fn open_copy(dir: &Path, tmp: &Path, live: bool) -> Result<Copy, CheckError> {
    let tries = if live { 3 } else { 1 };
    let mut last = CheckError::NoStore(dir.to_owned());
    for _ in 0..tries {
        match try_copy(dir, tmp) {
            Ok(copy) => return Ok(copy),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn try_copy(dir: &Path, tmp: &Path) -> Result<Copy, CheckError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let from = dir.join("db");
    let needed = folder_size(&from)?.saturating_add(8 * 1024 * 1024);
    let stat = statvfs(tmp).map_err(io::Error::from)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed {
        return Err(CheckError::NoRoom { path: tmp.to_owned(), free, needed });
    }
    let number = NUMBER.fetch_add(1, Relaxed);
    let to = tmp.join(format!("fusebox-check-{}-{number}", std::process::id()));
    fs::create_dir_all(&to)?;
    let folder = TemporaryFolder(to.clone());
    copy_folder(&from, &to)?;
    let broken = match open_and_scan(&to) {
        Ok((db, scanned)) => return Ok(Copy { db, scanned, _folder: folder }),
        Err(error @ CheckError::NewerFormat(_)) => return Err(error),
        Err(error) => error,
    };
    // As a daemon would: the snapshot is dispensable.
    let snapshots: Vec<_> =
        names(&to).into_iter().filter(|name| name.starts_with("snap.")).collect();
    if snapshots.is_empty() {
        return Err(broken);
    }
    fs::remove_dir_all(&to)?;
    fs::create_dir_all(&to)?;
    copy_folder(&from, &to)?;
    for name in snapshots {
        match fs::remove_file(to.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let (db, scanned) = open_and_scan(&to)?;
    Ok(Copy { db, scanned, _folder: folder })
}

fn open_and_scan(path: &Path) -> Result<(Db, Scanned), CheckError> {
    let db = open_sled(path)
        .map_err(CheckError::DoesNotOpen)?
        .map_err(|error| CheckError::DoesNotOpen(error.to_string()))?;
    match scan::scan(&db) {
        Ok(scanned) => Ok((db, scanned)),
        Err(ScanFailure::Newer(found)) => Err(CheckError::NewerFormat(found)),
        Err(ScanFailure::Broken(reason)) => {
            drop(guarded(move || drop(db)));
            Err(CheckError::DoesNotOpen(reason))
        }
    }
}

fn folder_size(path: &Path) -> io::Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(path)? {
        size += entry?.metadata()?.len();
    }
    Ok(size)
}

/// Copies files and folders, without what an interrupted open left. A file that goes away meanwhile
/// is passed over: a store that lives renews its snapshots.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy_folder(&entry.path(), &target)?;
        } else if !entry.file_name().to_string_lossy().ends_with(".generating") {
            match fs::copy(entry.path(), &target) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}
