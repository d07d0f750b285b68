//! Opening, which trusts nothing: not the disk, not sled, not the files.
//!
//! In this order: room on the disk, the mark, a rebuild that was cut short, leftovers of sled, sled
//! itself behind `catch_unwind` and without its snapshot where that is damaged, one full scan, and
//! the comparison with the mark. What does not open is renamed and a fresh store started; what is
//! behind its mark is kept and rebuilt. Both are findings, and loud. A newer format stops it all.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use sled::Db;

use super::{
    FACT_TARGET, HEAD_KEY, StoreSettings,
    error::{Finding, OpenError},
    facts,
    mark::{self, Mark, Reading},
    queue::{self, StoredCall},
    rebuild::{self, Keep},
    record::{self, FORMAT, Head, Kind},
    scan::{self, ScanFailure, Scanned, guarded},
    space,
};

/// sled's own cache; its default is 1 GiB.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// A log above this size of which less than a quarter is alive is rebuilt.
const COMPACT_ABOVE_BYTES: u64 = 64 * 1024 * 1024;

/// A store that is ready to serve.
pub(super) struct Ready {
    pub(super) db: Db,
    /// Second handle of the log, whose `sync_data` is what makes a flush durable.
    pub(super) log: File,
    pub(super) mark: Mark,
    pub(super) head: Head,
    pub(super) calls: Vec<StoredCall>,
    pub(super) findings: Vec<Finding>,
    pub(super) garbage: Vec<sled::IVec>,
    pub(super) history_next: u64,
    pub(super) previous_target: Option<String>,
}

/// Opens the store in `settings.dir`, repairing what can be repaired without a guess.
pub(super) fn open(settings: &StoreSettings) -> Result<Ready, OpenError> {
    let dir = &settings.dir;
    require_space(settings)?;
    let marked = mark::read(dir).map_err(at(dir))?;
    if let Reading::Newer(found) = marked {
        return Err(OpenError::NewerFormat { found, known: FORMAT });
    }
    let mut findings = Vec::new();
    if rebuild::finish(settings).map_err(at(dir))? {
        findings.push(Finding::RebuildFinished);
    }
    let (db, scanned) = open_or_set_aside(settings, &mut findings)?;
    let (db, scanned) = rebuild_if_suspect(settings, db, scanned, &mut findings)?;
    let (db, scanned) = compare_with_mark(settings, db, scanned, marked, &mut findings)?;
    let (db, scanned) = compact_if_grown(settings, db, scanned, &mut findings)?;
    let ready = seal(settings, db, scanned, marked, findings).map_err(at(dir))?;
    for finding in &ready.findings {
        if finding.is_damage() {
            tracing::error!(store = %dir.display(), ?finding, "the store is damaged");
        } else {
            tracing::warn!(store = %dir.display(), ?finding, "the store was put in order");
        }
    }
    Ok(ready)
}

/// The error of a file operation on `path`.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> OpenError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            OpenError::DiskFull { free: 0, needed: space::OPEN_BYTES }
        }
        _ => OpenError::Io { path: path.to_owned(), source },
    }
}

/// sled chokes for ever on what an open leaves behind on a full disk, so there must be room.
pub(super) fn require_space(settings: &StoreSettings) -> Result<(), OpenError> {
    let enough = |free: &u64| *free >= space::OPEN_BYTES;
    let mut free = space::free(settings).map_err(at(&settings.dir))?;
    if !enough(&free) && space::drop_ballast(&settings.dir) {
        free = space::free(settings).map_err(at(&settings.dir))?;
    }
    if enough(&free) {
        return Ok(());
    }
    Err(OpenError::DiskFull { free, needed: space::OPEN_BYTES })
}

/// Opens sled with the settings that durability rests on.
pub(super) fn open_sled(path: &Path) -> Result<sled::Result<Db>, String> {
    let config = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(CACHE_BYTES);
    guarded(|| config.open())
}

fn open_or_set_aside(
    settings: &StoreSettings,
    findings: &mut Vec<Finding>,
) -> Result<(Db, Scanned), OpenError> {
    let path = settings.dir.join("db");
    let blobs = tidy(&path, findings).map_err(at(&path))?;
    if blobs > 0 {
        findings.push(Finding::BlobFiles { count: blobs });
    }
    let reason = match try_open(&path) {
        Ok(opened) => return Ok(opened),
        Err(Attempt::Final(error)) => return Err(error),
        Err(Attempt::Broken(reason)) => reason,
    };
    if let Some(moved) = move_snapshots(settings, &path).map_err(at(&path))? {
        match try_open(&path) {
            Ok(opened) => {
                findings.push(Finding::SnapshotSetAside { path: moved });
                return Ok(opened);
            }
            // An open that panicked may have left sled's own lock behind, within this process.
            Err(Attempt::Broken(_) | Attempt::Final(OpenError::Locked { .. })) => {}
            Err(Attempt::Final(error)) => return Err(error),
        }
    }
    let aside = space::aside(settings, "damaged");
    space::rename(&path, &aside).map_err(at(&path))?;
    findings.push(Finding::SetAside { path: aside, reason });
    match try_open(&path) {
        Ok(opened) => Ok(opened),
        Err(Attempt::Final(error)) => Err(error),
        Err(Attempt::Broken(reason)) => {
            Err(OpenError::Io { path, source: io::Error::other(reason) })
        }
    }
}

/// Why an attempt to open failed.
enum Attempt {
    /// The files are damaged.
    Broken(String),
    /// Nothing that setting the files aside would better.
    Final(OpenError),
}

fn try_open(path: &Path) -> Result<(Db, Scanned), Attempt> {
    let mut patience = 100;
    let db = loop {
        match open_sled(path) {
            Ok(Ok(db)) => break db,
            // A background thread of sled may hold a closed store for a moment longer.
            Ok(Err(error)) if is_lock(&error) && patience > 0 => {
                patience -= 1;
                std::thread::park_timeout(Duration::from_millis(10));
            }
            Ok(Err(error)) if is_lock(&error) => {
                return Err(Attempt::Final(OpenError::Locked { path: path.to_owned() }));
            }
            Ok(Err(sled::Error::Io(source))) if !speaks_of_damage(&source) => {
                return Err(Attempt::Final(at(path)(source)));
            }
            Ok(Err(error)) => return Err(Attempt::Broken(error.to_string())),
            Err(panic) => return Err(Attempt::Broken(panic)),
        }
    };
    match scan::scan(&db) {
        Ok(scanned) => Ok((db, scanned)),
        Err(ScanFailure::Newer(found)) => {
            Err(Attempt::Final(OpenError::NewerFormat { found, known: FORMAT }))
        }
        Err(ScanFailure::Broken(reason)) => {
            // Dropping a store that panicked may panic again.
            drop(guarded(move || drop(db)));
            Err(Attempt::Broken(reason))
        }
    }
}

/// Errors of reading where the files point to nowhere, as against errors of the disk.
fn speaks_of_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

fn is_lock(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// Deletes what an interrupted open left; counts blob files.
fn tidy(path: &Path, findings: &mut Vec<Finding>) -> io::Result<u64> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
            findings.push(Finding::LeftoverSnapshot { name });
        }
    }
    Ok(count_entries(&path.join("blobs")))
}

/// Entries of a folder; none where it is missing.
pub(super) fn count_entries(path: &Path) -> u64 {
    fs::read_dir(path).map_or(0, |entries| entries.count() as u64)
}

/// Moves sled's snapshots out of its way; where to, if there were any.
fn move_snapshots(settings: &StoreSettings, path: &Path) -> io::Result<Option<std::path::PathBuf>> {
    let mut moved = None;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            let aside = moved.get_or_insert_with(|| space::aside(settings, "snapshots"));
            fs::create_dir_all(&*aside)?;
            fs::rename(entry.path(), aside.join(entry.file_name()))?;
        }
    }
    Ok(moved)
}

/// A sync failed and the process ended before the rebuild: what was read may not be on the disk.
fn rebuild_if_suspect(
    settings: &StoreSettings,
    db: Db,
    scanned: Scanned,
    findings: &mut Vec<Finding>,
) -> Result<(Db, Scanned), OpenError> {
    if !rebuild::is_suspect(&settings.dir) {
        return Ok((db, scanned));
    }
    let head = scanned.head.unwrap_or_default();
    let rebuilt = rebuild::rebuild(settings, db, head, Keep::As("failed-sync"))?;
    findings.push(Finding::RebuildFinished);
    findings.extend(rebuilt.findings);
    open_or_set_aside(settings, findings)
}

/// A store behind its mark has lost acknowledged commits: it is kept as found, and rebuilt.
fn compare_with_mark(
    settings: &StoreSettings,
    db: Db,
    scanned: Scanned,
    marked: Reading,
    findings: &mut Vec<Finding>,
) -> Result<(Db, Scanned), OpenError> {
    let found = scanned.head.unwrap_or_default();
    let Reading::At(marked) = marked else {
        if found.commit > 0 {
            findings.push(Finding::MarkLost {
                detail: format!("the mark is {marked:?}").to_lowercase(),
            });
        }
        return Ok((db, scanned));
    };
    let was_set_aside = findings.iter().any(|finding| matches!(finding, Finding::SetAside { .. }));
    if was_set_aside || (found.commit >= marked.commit && found.last_seq >= marked.last_seq) {
        return Ok((db, scanned));
    }
    let lost = rebuild::rebuild(settings, db, newer(found, marked), Keep::As("damaged"))?;
    findings.push(Finding::TailLost {
        commits: marked.commit.saturating_sub(found.commit),
        sequences: marked.last_seq.saturating_sub(found.last_seq),
        kept: lost.kept,
    });
    findings.extend(lost.findings);
    open_or_set_aside(settings, findings)
}

fn compact_if_grown(
    settings: &StoreSettings,
    db: Db,
    scanned: Scanned,
    findings: &mut Vec<Finding>,
) -> Result<(Db, Scanned), OpenError> {
    let size = fs::metadata(settings.dir.join("db/db")).map_or(0, |log| log.len());
    let is_grown = size > COMPACT_ABOVE_BYTES && scanned.live_bytes < size / 4;
    // Bad records stay where they are: a rebuild would leave them behind.
    if !is_grown || scanned.counts.bad > 0 {
        return Ok((db, scanned));
    }
    let head = scanned.head.unwrap_or_default();
    let lost = match rebuild::copy(settings, &db, head) {
        Ok(lost) => lost,
        Err(error) => {
            // A large log is no reason not to serve.
            tracing::warn!(%error, "the log has grown and could not be compacted");
            return Ok((db, scanned));
        }
    };
    drop(guarded(move || drop(db)));
    rebuild::swap(settings, Keep::OnlyIfLossy, &lost).map_err(at(&settings.dir))?;
    findings.extend(lost);
    open_or_set_aside(settings, findings)
}

/// Makes head and mark agree, and everything that creation wrote durable.
fn seal(
    settings: &StoreSettings,
    db: Db,
    mut scanned: Scanned,
    marked: Reading,
    mut findings: Vec<Finding>,
) -> io::Result<Ready> {
    let dir = &settings.dir;
    let path = dir.join("db");
    let mut head = scanned.head.unwrap_or_default();
    if let Reading::At(marked) = marked {
        head = newer(head, marked);
    }
    head.last_seq = head.last_seq.max(scanned.calls.last().map_or(0, |call| call.seq));
    // Nor may a new call take the sequence of chunks that wait to be swept.
    let leftovers = scanned.garbage.iter().filter_map(|key| queue::chunk_of(key));
    head.last_seq = leftovers.map(|(seq, _)| seq).fold(head.last_seq, u64::max);
    head.commit += 1;
    if let Some(value) = record::seal(Kind::Head, &head, 24) {
        db.insert(HEAD_KEY, value).map_err(io::Error::from)?;
    }
    if scanned.target.is_none()
        && let Ok(value) = facts::encode(FACT_TARGET, settings.target.as_bytes())
    {
        db.insert(facts::key(FACT_TARGET), value).map_err(io::Error::from)?;
    }
    db.flush().map_err(io::Error::from)?;
    let log = File::open(path.join("db"))?;
    settings.faults.sync()?;
    log.sync_all()?;
    File::open(path.join("conf"))?.sync_all()?;
    space::sync_folder(&path)?;
    let mut mark = Mark::create(dir)?;
    mark.write(head)?;
    mark.sync()?;
    space::sync_folder(dir)?;
    sync_parents(dir)?;
    space::make_ballast(settings);
    findings.append(&mut scanned.findings);
    Ok(Ready {
        db,
        log,
        mark,
        head,
        calls: scanned.calls,
        findings,
        garbage: scanned.garbage,
        history_next: scanned.history_next,
        previous_target: scanned.target.filter(|target| *target != settings.target),
    })
}

/// Syncs what the store's folder may have been made in: the parent must be, what lies above may
/// belong to others.
fn sync_parents(dir: &Path) -> io::Result<()> {
    let mut parents = dir.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
    parents.next().map_or(Ok(()), space::sync_folder)?;
    for above in parents.take(2) {
        if let Err(error) = space::sync_folder(above) {
            tracing::debug!(path = %above.display(), %error, "could not sync a folder");
        }
    }
    Ok(())
}

/// The higher of both in each field.
pub(super) fn newer(a: Head, b: Head) -> Head {
    Head { commit: a.commit.max(b.commit), last_seq: a.last_seq.max(b.last_seq) }
}
