//! Opening, which trusts nothing: not the disk, not sled, not the files.
//!
//! ```text
//! room, mark ─▶ interrupted rebuild ─▶ look at the raw log ─┬─ exact, structure whole ─▶ sled ─▶ as planned? ─▶ serve
//!                                            ▲              ├─ exact, or losses named ─▶ rebuild ──┐  │ no
//!                                            │              ├─ cannot be proven ─▶ set aside ──────┤  │
//!                                            │              └─ first format ─▶ upgrade ────────────┤  │
//!                                            └─────────────────────────────────────────────────────┴──┘ rebuild
//! ```
//!
//! sled writes when it opens: it zeroes what it takes for torn, and truncates. So the raw log is read first
//! (`raw.rs`), the plan of what is live made and proven (`plan.rs`), and sled opens only a log whose structure is
//! whole. What it shows is compared with the plan. Whatever differs is rebuilt from the log as it was; if a call was
//! lost, the old folder is kept as it was found. A log of which nothing can be proven is set aside untouched, and a
//! fresh store started loudly. A newer format stops it all. An error of the disk is no damage: the open ends, and may
//! be tried again.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use sled::Db;

use super::{
    calls::FoundCall,
    compact::is_grown,
    error::{Finding, OpenError},
    facts,
    guard::{guarded, open_sled},
    head::{AnyHead, FirstHead, Head},
    identity,
    keys::FACT_TARGET,
    ledger::{Ledger, Says},
    mark::{self, Mark, Reading},
    plan::{self, Lost, NoPlan, Plan},
    raw::{Key, LARGE_BYTES, Picked, Raw},
    rebuild,
    record::KNOWN,
    scan::{self, ScanFailure, Scanned},
    settings::StoreSettings,
    settle::Settling,
    shield::{self, Copied},
    space::{self, at},
    tree::Sled,
    untold,
};
use crate::target::Target;

/// Rebuilds and stores set aside in one open; more would be a loop.
const REPAIRS_MAX: usize = 4;

/// A store that is ready to serve.
pub(super) struct Ready {
    pub(super) db: Db,
    /// Second handle of the log, whose `sync_data` is what makes a flush durable.
    pub(super) log: File,
    pub(super) mark: Mark,
    pub(super) head: Head,
    pub(super) ledger: Ledger,
    pub(super) live_bytes: u64,
    pub(super) calls: Vec<FoundCall>,
    pub(super) findings: Vec<Finding>,
    pub(super) garbage: Vec<sled::IVec>,
    pub(super) history_next: u64,
    pub(super) previous_target: Option<Target>,
}

/// What a look at a store's files comes to. Changes nothing.
pub(super) enum Look {
    /// There is nothing, and never was.
    Nothing,
    /// A newer version wrote it.
    Newer(u16),
    /// The first format.
    First(Raw),
    /// What is live is known.
    Planned(Raw, Plan),
    /// Nothing can be proven.
    Unprovable(Raw, String),
}

/// Looks at the store whose log is in `db`.
pub(super) fn look(
    db: &Path,
    marked: Reading,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<Look> {
    let raw = Raw::read(db, progress)?;
    let newer = if let Reading::Newer(found) = marked { Some(found) } else { raw.newer };
    if let Some(found) = newer {
        return Ok(Look::Newer(found));
    }
    if raw.is_empty() {
        match marked {
            Reading::At(head) if head.commit == 0 => return Ok(Look::Nothing),
            // The first start makes the mark durable before it makes the folder.
            Reading::Absent if !db.try_exists()? => return Ok(Look::Nothing),
            Reading::Absent => {
                return Ok(Look::Unprovable(raw, "the log contains no records of fusebox".into()));
            }
            _ => {}
        }
    }
    let was_first = matches!(marked, Reading::First(_));
    if raw.heads.is_empty() && (raw.first.is_some() || was_first) {
        return Ok(Look::First(raw));
    }
    match plan::choose(&raw, marked.head()) {
        Ok(plan) => Ok(Look::Planned(raw, plan)),
        Err(NoPlan::Io(error)) => Err(error),
        Err(NoPlan::Unprovable(why)) => Ok(Look::Unprovable(raw, why)),
    }
}

/// Opens the store in `settings.dir`, repairing what can be repaired without a guess.
pub(super) fn open(settings: &StoreSettings) -> Result<Ready, OpenError> {
    let panicked = |panic| Err(at(&settings.dir)(io::Error::other(panic)));
    guarded(|| open_it(settings)).unwrap_or_else(panicked)
}

fn open_it(settings: &StoreSettings) -> Result<Ready, OpenError> {
    let dir = &settings.dir;
    space::require(settings, space::OPEN_BYTES)?;
    let marked = mark::read(dir).map_err(at(dir))?;
    let mut opening =
        Opening { settings, marked, findings: Vec::new(), distrusted: None, is_compacted: false };
    if let Reading::Newer(found) = marked {
        return Err(OpenError::NewerFormat { found, known: KNOWN });
    }
    rebuild::finish(settings, marked, &mut opening.findings).map_err(at(dir))?;
    for _ in 0..REPAIRS_MAX {
        if let Some(ready) = opening.attempt()? {
            ready.tell(dir);
            return Ok(ready);
        }
    }
    let source = io::Error::other("the rebuilt store does not open");
    Err(OpenError::Io { path: dir.clone(), source })
}

impl Ready {
    fn tell(&self, dir: &Path) {
        for finding in &self.findings {
            if finding.is_damage() {
                tracing::error!(store = %dir.display(), %finding, "the store is damaged");
            } else {
                tracing::warn!(store = %dir.display(), %finding, "the store was repaired");
            }
        }
    }
}

struct Opening<'a> {
    settings: &'a StoreSettings,
    marked: Reading,
    findings: Vec<Finding>,
    /// Why what sled makes of the log is not to be served from.
    distrusted: Option<String>,
    /// It was compacted already: a new log may be as large, on a small disk.
    is_compacted: bool,
}

impl Opening<'_> {
    /// One way through the picture above. `None`: the files were repaired, and are to be looked at again.
    fn attempt(&mut self) -> Result<Option<Ready>, OpenError> {
        let (seen, copied) = self.look()?;
        match seen {
            Look::Newer(found) => Err(OpenError::NewerFormat { found, known: KNOWN }),
            Look::Nothing => self.begin().map(Some),
            Look::First(raw) => self.upgrade(&raw).map(|()| None),
            Look::Unprovable(raw, why) => {
                drop(raw);
                self.set_aside(why).map(|()| None)
            }
            Look::Planned(raw, plan) => self.serve_or_rebuild(raw, plan, copied),
        }
    }

    /// Looks at the log, and copies it meanwhile if it is large. One that an earlier open has spoilt is rebuilt from what
    /// it was before.
    fn look(&mut self) -> Result<(Look, Option<Copied>), OpenError> {
        let db = self.settings.dir.join("db");
        let looking = || look(&db, self.marked, &mut |_, _| {});
        let seen = shield::while_copied(self.settings, &db, LARGE_BYTES, looking);
        let (seen, copied) = seen.map_err(at(&db))?;
        let seen = seen.map_err(at(&db))?;
        let is_whole = |seen: &Look| matches!(seen, Look::Planned(_, plan) if plan.is_exact());
        if is_whole(&seen) {
            return Ok((seen, copied));
        }
        drop(copied);
        let before = shield::folder(&self.settings.dir);
        if !before.try_exists().map_err(at(&before))? {
            return Ok((seen, None));
        }
        let earlier = look(&before, self.marked, &mut |_, _| {}).map_err(at(&before))?;
        let Look::Planned(raw, plan) = &earlier else { return Ok((seen, None)) };
        if !plan.is_exact() {
            return Ok((seen, None));
        }
        self.rebuild(raw, plan, Some("a failed attempt to open it has damaged it".into()))?;
        Ok((look(&db, self.marked, &mut |_, _| {}).map_err(at(&db))?, None))
    }

    fn serve_or_rebuild(
        &mut self,
        mut raw: Raw,
        plan: Plan,
        copied: Option<Copied>,
    ) -> Result<Option<Ready>, OpenError> {
        let dir = &self.settings.dir;
        let path = dir.join("db");
        if matches!(self.marked, Reading::Absent | Reading::Damaged) {
            let detail = format!("the mark is {:?}", self.marked).to_lowercase();
            let told = Finding::MarkLost { detail };
            if !self.findings.contains(&told) {
                self.findings.push(told);
            }
        }
        let why = self.distrusted.take().or_else(|| plan.flaw(&raw));
        let is_grown = !self.is_compacted && is_grown(self.settings, raw.bytes, plan.bytes());
        let is_to_open = plan.is_exact() && !rebuild::is_suspect(dir) && why.is_none();
        // What is rebuilt needs the room of the copy.
        let copied = copied.filter(|_| is_to_open && !is_grown);
        if !plan.is_exact() {
            return self.rebuild(&raw, &plan, None).map(|()| None);
        }
        if rebuild::is_suspect(dir) {
            self.rebuild(&raw, &plan, why)?;
            self.findings.push(Finding::RebuildFinished);
            return Ok(None);
        }
        if let Some(why) = why {
            return self.rebuild(&raw, &plan, Some(why)).map(|()| None);
        }
        let blobs = tidy(&path, &mut self.findings).map_err(at(&path))?;
        let told = Finding::BlobFiles { count: blobs };
        if blobs > 0 && !self.findings.contains(&told) {
            self.findings.push(told);
        }
        if is_grown {
            self.is_compacted = true;
            match rebuild::from_plan(self.settings, &raw, &plan) {
                Ok(()) => {
                    rebuild::swap(self.settings, None).map_err(at(dir))?;
                    return Ok(None);
                }
                // A large log is no reason not to serve, but a copy that may replace it later is.
                Err(error) => {
                    rebuild::take_back(self.settings).map_err(at(dir))?;
                    tracing::warn!(%error, "the log has grown and could not be compacted");
                }
            }
        }
        // sled changes the file when it opens, so that what is read of it is elsewhere then. It is read from the copy
        // from here on; without one, the log is looked at again.
        let copy = match copied {
            Some(copied) => copied.keep(dir).map(Some),
            None => shield::copy_log(self.settings, &path),
        };
        let copy = copy.map_err(at(&path))?;
        if let Some(copy) = &copy {
            raw.read_from(copy).map_err(at(copy))?;
        }
        let why = match try_open(&path, Some(&plan)) {
            Ok((db, log, scanned)) => match scanned.differs.clone() {
                None => return self.seal((db, log), scanned, &raw, &plan).map(Some),
                Some(why) => {
                    rebuild::close(dir, db);
                    why
                }
            },
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Broken(why)) => why,
        };
        if copy.is_some() {
            self.rebuild(&raw, &plan, Some(why))?;
        } else {
            self.distrusted = Some(why);
        }
        Ok(None)
    }

    /// Writes what is live into new files. The old ones are kept if something was lost.
    fn rebuild(&mut self, raw: &Raw, plan: &Plan, why: Option<String>) -> Result<(), OpenError> {
        let dir = &self.settings.dir;
        if plan.is_exact() {
            rebuild::from_plan(self.settings, raw, plan)?;
            rebuild::swap(self.settings, None).map_err(at(dir))?;
            self.findings.extend(why.map(|reason| Finding::Healed { reason }));
            return Ok(());
        }
        let path = dir.join("db");
        let kept = space::aside(self.settings, "damaged");
        let kept = path.try_exists().map_err(at(&path))?.then_some(kept);
        let lost = &plan.lost;
        let mut findings = self.findings.clone();
        findings.push(Finding::Lost {
            calls: lost.calls.iter().copied().collect(),
            notes: lost.notes.iter().copied().collect(),
            dead: lost.dead.iter().copied().collect(),
            facts: lost.facts,
            kept: kept.clone(),
        });
        untold::note(dir, &findings, kept.as_deref()).map_err(at(dir))?;
        rebuild::from_plan(self.settings, raw, plan)?;
        rebuild::swap(self.settings, kept.as_deref()).map_err(at(dir))?;
        self.findings = findings;
        Ok(())
    }

    /// Nothing can be proven of it: it is kept as it was found, and a fresh store begun.
    fn set_aside(&mut self, reason: String) -> Result<(), OpenError> {
        let dir = &self.settings.dir;
        let aside = space::aside(self.settings, "damaged");
        let path = dir.join("db");
        let is_there = path.try_exists().map_err(at(&path))?;
        self.findings.push(Finding::SetAside { path: aside.clone(), reason });
        let moved = is_there.then_some(aside.as_path());
        untold::note(dir, &self.findings, moved).map_err(at(dir))?;
        if is_there {
            space::rename(&path, &aside).map_err(at(&path))?;
        }
        let last_seq = match self.marked {
            Reading::At(head) => head.last_seq,
            Reading::First(head) => head.last_seq,
            _ => 0,
        };
        self.remark(last_seq).map_err(at(dir))
    }

    /// A mark that asks for nothing but the sequences given out.
    fn remark(&mut self, last_seq: u64) -> io::Result<()> {
        let floor = last_seq.saturating_add(1);
        let head = Head { commit: 0, last_seq, floor, ..Head::default() };
        mark::replace(&self.settings.dir, &head)?;
        self.marked = Reading::At(head);
        Ok(())
    }

    /// The first start: the mark is there before the store, so that a start that is cut short is distinguished from a
    /// store that lost its mark.
    fn begin(&mut self) -> Result<Ready, OpenError> {
        let dir = &self.settings.dir;
        let path = dir.join("db");
        space::remove_folder(&path).map_err(at(&path))?;
        // Nothing is left of what a sync may have failed to keep.
        rebuild::trust(dir).map_err(at(dir))?;
        if self.marked == Reading::Absent {
            self.remark(0).map_err(at(dir))?;
        }
        let head = self.marked.head().unwrap_or_default();
        let (db, log, scanned) = match try_open(&path, None) {
            Ok(opened) => opened,
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Broken(why)) => {
                return Err(OpenError::Io { path, source: io::Error::other(why) });
            }
        };
        let plan = Plan { head, values: Picked::default(), lost: Lost::default() };
        let raw = Raw::read(&path, &mut |_, _| {}).map_err(at(&path))?;
        self.seal((db, log), scanned, &raw, &plan)
    }

    /// Brings a store of the first format to this one. Only sled can tell what was removed of it, and only if its
    /// structure is whole.
    fn upgrade(&mut self, raw: &Raw) -> Result<(), OpenError> {
        let path = self.settings.dir.join("db");
        let marked =
            if let Reading::First(head) = self.marked { head } else { FirstHead::default() };
        let head = raw.first.unwrap_or_default();
        if head.commit < marked.commit || head.last_seq < marked.last_seq {
            let missing = marked.commit - head.commit.min(marked.commit);
            return self.set_aside(format!("it is {missing} commits behind its mark"));
        }
        if let Some(scar) = raw.scars.first() {
            return self.set_aside(scar.clone());
        }
        tidy(&path, &mut self.findings).map_err(at(&path))?;
        // The structure is whole, so that whatever sled says against it speaks of the disk, or of sled. It works on a
        // copy, and may spoil that.
        let copy = self.settings.dir.join("db.first");
        space::require(self.settings, space::OPEN_BYTES.saturating_add(raw.bytes))?;
        shield::copy_store(&path, &copy).map_err(at(&copy))?;
        let not_now = |why: String| at(&copy)(io::Error::other(why));
        let (db, _, scanned) = match try_open(&copy, None) {
            Ok(opened) => opened,
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Broken(why)) => return Err(not_now(why)),
        };
        if scanned.head != Some(AnyHead::First(head)) {
            rebuild::close(&self.settings.dir, db);
            return Err(not_now("sled does not return its last commit".into()));
        }
        let is_lossy = scanned.counts.bad > 0;
        let kept = is_lossy.then(|| space::aside(self.settings, "first-format"));
        let mut findings = self.findings.clone();
        findings.extend(scanned.findings.into_iter().filter(Finding::is_damage));
        findings.push(Finding::Upgraded);
        if is_lossy {
            untold::note(&self.settings.dir, &findings, kept.as_deref()).map_err(at(&path))?;
        }
        let written = rebuild::from_first(self.settings, &db, head);
        rebuild::close(&self.settings.dir, db);
        written?;
        let swapped = rebuild::swap(self.settings, kept.as_deref());
        swapped.map_err(at(&self.settings.dir))?;
        space::remove_folder(&copy).map_err(at(&copy))?;
        self.findings = findings;
        // It is as good as the new store's, whose head is above it.
        self.marked = Reading::At(Head { commit: 0, ..Head::default() });
        let highest = marked.last_seq.max(head.last_seq);
        self.remark(highest).map_err(at(&self.settings.dir))
    }

    /// Makes head and mark agree, and everything that creation wrote durable. What a commit that was not completed has
    /// written is written again, or said not to be, under a number of its own: the raw log keeps it.
    fn seal(
        &mut self,
        (db, log): (Db, File),
        mut scanned: Scanned,
        raw: &Raw,
        plan: &Plan,
    ) -> Result<Ready, OpenError> {
        let dir = &self.settings.dir;
        let path = dir.join("db");
        let marked = self.marked.head().unwrap_or_default();
        let commit = raw.highest_commit().max(plan.head.commit).max(marked.commit) + 1;
        let mut last_seq = plan.head.last_seq.max(marked.last_seq);
        last_seq = last_seq.max(scanned.calls.last().map_or(0, |call| call.seq));
        // Nor may a new call take the sequence of one that was never completed, or of what waits to be swept.
        let unsettled = raw.unsettled(plan.head.commit);
        let leftovers = scanned.garbage.iter().filter_map(|key| Key::from_bytes(key)?.seq());
        last_seq = leftovers.chain(unsettled.iter().filter_map(Key::seq)).fold(last_seq, u64::max);
        let sync = || self.settings.faults.sync().and_then(|()| log.sync_all());
        let written = guarded(|| -> io::Result<(Head, Mark)> {
            scanned.ledger.may_pack = self.settings.packed || plan.head.packed;
            let map = Sled::new(db.clone(), scanned.ledger.packs.places.clone());
            let mut settling = Settling { db: &map, ledger: &mut scanned.ledger, commit };
            for key in unsettled {
                settling.settle(&key)?;
            }
            if scanned.target.is_none()
                && let Ok(value) =
                    facts::encode(FACT_TARGET, self.settings.target.as_str().as_bytes())
            {
                settling.insert(&facts::key(FACT_TARGET), value, Says::Itself)?;
            }
            let head = settling.finish(last_seq)?;
            self.settings.faults.flush()?;
            db.flush().map_err(io::Error::from)?;
            // That is final, also if it is said to be for want of room.
            sync().map_err(|error| io::Error::other(format!("sync failed: {error}")))?;
            File::open(path.join("conf"))?.sync_all()?;
            identity::renew(&path)?;
            space::sync_folder(&path)?;
            shield::drop_copy(dir)?;
            mark::replace(dir, &head)?;
            let mark = Mark::create(dir)?;
            sync_parents(dir)?;
            Ok((head, mark))
        });
        let written = written.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let (head, mark) = match written {
            Ok(written) => written,
            Err(error) => {
                // The kernel may have taken for written what is not: another open would read it all the same.
                rebuild::suspect_after(dir, &error, sync);
                rebuild::close(dir, db);
                return Err(at(dir)(error));
            }
        };
        space::make_ballast(self.settings);
        let mut findings = std::mem::take(&mut self.findings);
        findings.append(&mut scanned.findings);
        Ok(Ready {
            db,
            log,
            mark,
            head,
            ledger: scanned.ledger,
            live_bytes: scanned.live_bytes,
            calls: scanned.calls,
            findings,
            garbage: scanned.garbage,
            history_next: scanned.history_next,
            previous_target: scanned.target.filter(|target| *target != self.settings.target),
        })
    }
}

/// Why an attempt to open failed.
enum Attempt {
    /// The files are damaged.
    Broken(String),
    /// Nothing that setting the files aside would better.
    Final(OpenError),
}

/// Also returns the log, to be synced. It was opened before sled wrote to it: if a sync fails, the kernel says so to each
/// who had the file open by then, and to nobody who opens it later; and sled keeps some errors to itself.
fn try_open(path: &Path, plan: Option<&Plan>) -> Result<(Db, File, Scanned), Attempt> {
    let log = File::open(path.join("db")).ok();
    let dir = path.parent().unwrap_or(path);
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
                let sync = || log.as_ref().map_or(Ok(()), File::sync_all);
                rebuild::suspect_after(dir, &source, sync);
                return Err(Attempt::Final(at(path)(source)));
            }
            Ok(Err(error)) => return Err(Attempt::Broken(error.to_string())),
            Err(panic) => return Err(Attempt::Broken(panic)),
        }
    };
    // A new one is empty yet.
    let log = log.map_or_else(|| File::open(path.join("db")), Ok);
    let log = log.map_err(|error| Attempt::Final(at(path)(error)))?;
    let is_large = log.metadata().is_ok_and(|it| it.len() >= LARGE_BYTES);
    match scan::scan(&db, plan, is_large) {
        Ok(scanned) => Ok((db, log, scanned)),
        Err(ScanFailure::Newer(found)) => {
            rebuild::close(dir, db);
            Err(Attempt::Final(OpenError::NewerFormat { found, known: KNOWN }))
        }
        Err(ScanFailure::Broken(reason)) => {
            rebuild::close(dir, db);
            Err(Attempt::Broken(reason))
        }
    }
}

/// Errors of reading because the files point to nowhere, as against errors of the disk.
fn speaks_of_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, NotADirectory, UnexpectedEof};
    matches!(
        error.kind(),
        InvalidData | InvalidInput | UnexpectedEof | IsADirectory | NotADirectory
    )
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
    Ok(space::count_entries(&path.join("blobs")))
}

/// Syncs what the store's folder may have been made in: the parent must be, what is above may
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
