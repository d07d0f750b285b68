//! Rebuild, the one repair: write what is live into a new, synced store, and swap it in by renaming.
//!
//! It serves a failed sync (the kernel marks the lost pages clean, so the old files prove nothing), a damaged log, a
//! format upgrade, and a log that has grown (sled's never shrinks while open). It reads the raw log, never a handle of
//! sled's: a handle that failed is no evidence of what the disk holds. The steps, and what a crash after each leaves:
//!
//! 1. the new store is written to `db.partial`, synced, read back raw and compared with what it was made from: the old
//!    store is untouched; the next open deletes `db.partial`;
//! 2. `db.partial` becomes `db.ready`: the next open proves that it is whole and a copy of `db` as that is by then, and
//!    goes on at step 3;
//! 3. `db` becomes `db.<why>-<unix ms>` if something in it was not carried over, or else `db.discard`: the next open
//!    goes on at step 4, or takes `db.discard` back if `db.ready` is not whole;
//! 4. `db.ready` becomes `db`: done; the next open deletes `db.discard`.
//!
//! A name never says more than the disk holds: what takes a name is synced before, all of it, and the folder is synced
//! after each renaming, before anything else is done. So a power cut falls between two steps and not among them, also
//! on a file system that does not keep the order of two renamings, and step 4, which deletes the old store, is never
//! there without the ones before.
//!
//! From step 2 on nothing is written to `db` any more. If that step fails it may have been done all the same: whoever
//! goes on with `db` takes the name back first ([`take_back`]), and if that fails, too, only an open goes on. A
//! `db.ready` that is found beside a `db` that has changed since counts for nothing: it lacks what was acknowledged
//! after it was made.
//!
//! What is lost is noted before step 2 (`untold.rs`), with the name that step 3 gives to the old store, so that an open
//! that goes on there keeps it and tells the loss.
//!
//! A failed sync, in service or in an open, leaves a file `suspect` until step 4: each open until then rebuilds before
//! it serves, because what it reads may be in the kernel's cache alone.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sled::Db;

use super::{
    calls::{DeadMark, DeadReason},
    dead_letters,
    error::{Finding, OpenError},
    guard::{self, Held, guarded, open_sled},
    head::{self, Class, Digests, FirstHead, Head},
    identity,
    keys::HEAD_KEY,
    ledger::{Ledger, Says},
    mark::Reading,
    note::{self, Note},
    plan::{self, NoPlan, Plan},
    queue,
    raw::{Key, Raw, Value},
    record::{self, FORMAT, Kind, Unreadable},
    settings::StoreSettings,
    shield,
    space::{self, at, remove_folder},
    untold,
};
use crate::units::UnixMillis;

/// Name of the note that a sync has failed.
const SUSPECT: &str = "suspect";
/// Bytes written between two flushes.
const FLUSH_BYTES: usize = 1 << 20;

/// Steps 1 and 2 for a plan. After an error only an open goes on, or whoever has the name taken back.
pub(super) fn from_plan(settings: &StoreSettings, raw: &Raw, plan: &Plan) -> Result<(), OpenError> {
    let moved = moved(raw, plan).map_err(at(&settings.dir))?;
    write(settings, plan.bytes(), plan.head.commit, plan.head.last_seq, &mut |writer| {
        for Value { key, commit, place } in plan.values.iter() {
            if let Key::Note(seq) = key
                && (moved.contains_key(seq) || !plan.values.contains(&Key::Call(*seq)))
            {
                continue;
            }
            let value = raw.load(*place)?;
            let is_it = record::peel(&value).is_ok_and(|sealed| sealed.commit == *commit);
            if !is_it {
                return Err(io::Error::other(format!("{key:?} has another value than before")));
            }
            let says = if place.is_residue { Says::Residue } else { Says::Itself };
            writer.insert(&key.to_bytes(), value, says, *commit)?;
        }
        for (seq, (commit, note)) in &moved {
            let value = note::encode(*seq, note).map_err(io::Error::other)?.stamp(*commit);
            writer.insert(&Key::Note(*seq).to_bytes(), value, Says::Itself, *commit)?;
        }
        for seq in &plan.lost.notes {
            let note = note::encode(*seq, &Note::default()).map_err(io::Error::other)?;
            let value = note.stamp(plan.head.commit);
            writer.insert(&Key::Note(*seq).to_bytes(), value, Says::Itself, plan.head.commit)?;
        }
        for seq in &plan.lost.dead {
            let value = lost_mark(*seq, settings.unix_now.as_ref()())?.stamp(plan.head.commit);
            writer.insert(&Key::Dead(*seq).to_bytes(), value, Says::Itself, plan.head.commit)?;
        }
        if writer.ledger.digests() == carried(plan, &moved) {
            return Ok(());
        }
        Err(io::Error::other("the rebuilt store differs from the plan"))
    })
}

/// Notes that go beside another call, by that call, each with the commit that wrote it.
type Moved = BTreeMap<u64, (u64, Note)>;

/// The notes of groups whose first call is not there: each goes beside the next of its calls that is left, in place of an
/// older one. A newer one says that the group's was taken back (`Scan::settle_groups`).
fn moved(raw: &Raw, plan: &Plan) -> io::Result<Moved> {
    let mut moved = Moved::new();
    for (seq, Value { commit, place, .. }) in plan.notes_alone() {
        let Ok(note) = note::decode(seq, &raw.load(*place)?) else { continue };
        let mut members = note.group.iter().flat_map(|group| &group.members);
        let is_left = |member: &&u64| plan.values.contains(&Key::Call(**member));
        let Some(next) = members.find(is_left).copied() else { continue };
        // If its own note is lost, it is in doubt with all that may have been sent with it.
        if plan.lost.notes.contains(&next) {
            continue;
        }
        let own = plan.values.get(&Key::Note(next)).map(|own| own.commit);
        let other = moved.get(&next).map(|(commit, _)| *commit);
        if own.max(other).is_none_or(|newest| newest < *commit) {
            moved.insert(next, (*commit, note));
        }
    }
    Ok(moved)
}

/// What a store that is rebuilt by a plan holds: other notes and marks stand for those that are lost.
fn carried(plan: &Plan, moved: &Moved) -> Digests {
    let mut carried = plan::digests(plan);
    let has_none = |seq: &&u64| !plan.values.contains(&Key::Note(**seq));
    for seq in plan.lost.notes.iter().chain(moved.keys().filter(has_none)) {
        carried.notes.add(Class::Notes.hash(*seq));
    }
    for seq in &plan.lost.dead {
        carried.dead.add(Class::Dead.hash(*seq));
    }
    carried
}

fn lost_mark(seq: u64, at: UnixMillis) -> io::Result<record::Draft> {
    let detail = "its dead-letter mark was lost".into();
    let mark = DeadMark { reason: DeadReason::Undecodable, detail, at, attempts: 0 };
    dead_letters::encode(seq, &mark).map_err(io::Error::other)
}

/// Steps 1 and 2 for a store of the first format, which only sled can tell the removed values of.
pub(super) fn from_first(
    settings: &StoreSettings,
    db: &Db,
    head: FirstHead,
) -> Result<(), OpenError> {
    let live =
        guarded(|| db.iter().flatten().map(|(key, value)| (key.len() + value.len()) as u64).sum());
    let live = live.map_err(|panic| at(&settings.dir)(io::Error::other(panic)))?;
    let commit = head.commit + 1;
    write(settings, live, commit, head.last_seq, &mut |writer| {
        for item in db.iter() {
            let (key, value) = item.map_err(io::Error::from)?;
            match record::peel(&value) {
                Ok(sealed) if sealed.kind == Kind::Head => continue,
                Ok(_) => {}
                // It stays in the old store, which is kept for its sake.
                Err(Unreadable::Damaged(_)) => continue,
                Err(why) => return Err(io::Error::other(why.to_string())),
            }
            let says = queue::says_of(&key, &value);
            let too_large = || io::Error::other("a value does not fit the new format");
            let again = record::seal_again(&value, FORMAT).ok_or_else(too_large)?.stamp(commit);
            writer.insert(&key, again, says, commit)?;
        }
        Ok(())
    })
}

fn write(
    settings: &StoreSettings,
    live: u64,
    commit: u64,
    last_seq: u64,
    fill: &mut dyn FnMut(&mut Writer) -> io::Result<()>,
) -> Result<(), OpenError> {
    // The least that it takes: 2.2 to 4.5 times what lives were measured, and two segments. One that runs out of room
    // is given up, and tried again.
    space::require(settings, space::OPEN_BYTES.saturating_add(live.saturating_mul(2)))?;
    let partial = settings.dir.join("db.partial");
    let written = guarded(|| {
        let mut writer = Writer::create(settings)?;
        fill(&mut writer)?;
        writer.end(commit, last_seq, None)
    });
    let written = written.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    match written.and_then(|head| promise(settings, &head)) {
        Ok(()) => Ok(()),
        Err(error) => {
            drop(fs::remove_dir_all(&partial));
            Err(at(&partial)(error))
        }
    }
}

/// The proof of step 1, and step 2: nothing takes the store's place that was not read back. After an error step 2 may
/// have been done: see [`take_back`].
pub(super) fn promise(settings: &StoreSettings, head: &Head) -> io::Result<()> {
    let partial = settings.dir.join("db.partial");
    prove(&partial, head)?;
    space::rename(&partial, &Standing::Ready.folder(&settings.dir))?;
    settings.faults.promise()
}

/// Undoes step 2, for certain, so that the old store may be written to again. After an error a later open may find the
/// new one, so that only an open may go on.
pub(super) fn take_back(settings: &StoreSettings) -> io::Result<()> {
    let partial = settings.dir.join("db.partial");
    let ready = Standing::Ready.folder(&settings.dir);
    // It was not there before, for certain. If it is not there now, step 2 was not done.
    if ready.try_exists()? {
        settings.faults.promise()?;
        remove_folder(&partial)?;
        space::rename(&ready, &partial)?;
    }
    drop(remove_folder(&partial));
    Ok(())
}

/// Reads a new store raw: it must hold what its head says.
fn prove(db: &Path, head: &Head) -> io::Result<()> {
    let raw = Raw::read(db, &mut |_, _| {})?;
    match plan::plan(&raw, *head) {
        Ok(plan) if plan.is_exact() && raw.scars.is_empty() => Ok(()),
        Ok(plan) => {
            Err(io::Error::other(format!("the new store lacks {:?} {:?}", plan.lost, raw.scars)))
        }
        Err(NoPlan::Io(error)) => Err(error),
        Err(NoPlan::Unprovable(why)) => Err(io::Error::other(why)),
    }
}

/// A new store that is being written.
pub(super) struct Writer {
    settings: StoreSettings,
    partial: PathBuf,
    target: Held,
    log: File,
    ledger: Ledger,
    unsynced: usize,
}

impl Writer {
    /// Begins a new store in `db.partial`.
    pub(super) fn create(settings: &StoreSettings) -> io::Result<Self> {
        let partial = settings.dir.join("db.partial");
        remove_folder(&partial)?;
        let target = open_sled(&partial).map_err(io::Error::other)?.map_err(io::Error::from)?;
        // Opened before anything is written: see `open::try_open`.
        let log = File::open(partial.join("db"))?;
        let (settings, target) = (settings.clone(), Held::new(target));
        let ledger = Ledger::default();
        Ok(Self { settings, partial, target, log, ledger, unsynced: 0 })
    }

    /// Writes a value that `commit` wrote.
    pub(super) fn insert(
        &mut self,
        key: &[u8],
        value: Vec<u8>,
        says: Says,
        commit: u64,
    ) -> io::Result<()> {
        self.unsynced += key.len() + value.len();
        self.ledger.written(key, says, commit);
        self.target.get()?.insert(key, value).map_err(io::Error::from)?;
        if self.unsynced >= FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Removes a value that was written and is no more.
    pub(super) fn remove(&mut self, key: &[u8]) -> io::Result<()> {
        if self.target.get()?.remove(key).map_err(io::Error::from)?.is_some() {
            self.ledger.removed(key);
        }
        Ok(())
    }

    /// Whether something is under a key.
    pub(super) fn holds(&self, key: &[u8]) -> io::Result<bool> {
        self.target.get()?.contains_key(key).map_err(io::Error::from)
    }

    pub(super) fn digests(&self) -> Digests {
        self.ledger.digests()
    }

    /// Hands everything to the kernel.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        self.settings.faults.flush()?;
        self.target.flush()
    }

    /// Writes the head of the commit after `commit`, and syncs everything.
    pub(super) fn end(
        mut self,
        commit: u64,
        last_seq: u64,
        arriving: Option<u64>,
    ) -> io::Result<Head> {
        let commit = commit + 1;
        for (key, value) in self.ledger.take_touched(commit) {
            self.target.get()?.insert(key, value).map_err(io::Error::from)?;
        }
        let head = self.ledger.head(commit, last_seq, arriving);
        let value = head::encode(&head).ok_or_else(|| io::Error::other("the head is too large"))?;
        self.target.get()?.insert(HEAD_KEY, value).map_err(io::Error::from)?;
        self.flush()?;
        let Self { settings, partial, target, log, .. } = self;
        target.close()?;
        settings.faults.sync()?;
        log.sync_all()?;
        settings.faults.lie(&partial.join("db"))?;
        File::open(partial.join("conf"))?.sync_all()?;
        identity::carry(&settings.dir, &partial)?;
        space::sync_folder(&partial)?;
        Ok(head)
    }
}

/// Steps 3 and 4. The old store must be closed. It is moved to `aside`, or deleted if nothing in it is of use.
pub(super) fn swap(settings: &StoreSettings, aside: Option<&Path>) -> io::Result<()> {
    let dir = &settings.dir;
    let db = dir.join("db");
    let discard = dir.join("db.discard");
    if db.try_exists()? {
        remove_folder(&discard)?;
        space::rename(&db, aside.unwrap_or(&discard))?;
    }
    space::rename(&dir.join("db.ready"), &db)?;
    trust(dir)?;
    if aside.is_none() {
        remove_folder(&discard)?;
    }
    Ok(())
}

/// The folder of the store that the next open will serve from, after a rebuild that a crash interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// In its place.
    Db,
    /// The new one, proven whole and a copy of the one in its place, waits to be swapped in.
    Ready,
    /// The old one was moved away, and the new one is not whole.
    Discard,
}

impl Standing {
    pub(super) fn folder(self, dir: &Path) -> PathBuf {
        dir.join(match self {
            Self::Db => "db",
            Self::Ready => "db.ready",
            Self::Discard => "db.discard",
        })
    }
}

/// Which of the folders holds the store. Changes nothing.
pub(super) fn standing(dir: &Path, marked: Reading) -> io::Result<Standing> {
    let oldest = match marked {
        Reading::At(head) => head.commit,
        Reading::First(head) => head.commit,
        _ => 0,
    };
    let ready = Standing::Ready.folder(dir);
    let head = if ready.try_exists()? { head_of_whole(&ready)? } else { None };
    let is_away = !dir.join("db").try_exists()?;
    // Only step 3 moves the old one away.
    if let Some(head) = head.filter(|head| head.commit >= oldest)
        && (is_away || is_copy(dir, marked, &head)?)
    {
        return Ok(Standing::Ready);
    }
    let is_discarded = is_away && Standing::Discard.folder(dir).try_exists()?;
    Ok(if is_discarded { Standing::Discard } else { Standing::Db })
}

/// The head of the store in `db` if it is whole.
fn head_of_whole(db: &Path) -> io::Result<Option<Head>> {
    let raw = Raw::read(db, &mut |_, _| {})?;
    let head = raw.heads.values().next_back().map(|seen| seen.head);
    let Some(head) = head.filter(|_| raw.scars.is_empty()) else { return Ok(None) };
    match plan::plan(&raw, head) {
        Ok(plan) => Ok(plan.is_exact().then_some(head)),
        // That it cannot be read now does not say that it is not whole.
        Err(NoPlan::Io(error)) => Err(error),
        Err(NoPlan::Unprovable(_)) => Ok(None),
    }
}

/// Whether a new store with `head` is the copy of the one in its place, as that is now or was before sled opened it.
fn is_copy(dir: &Path, marked: Reading, head: &Head) -> io::Result<bool> {
    for old in [Standing::Db.folder(dir), shield::folder(dir)] {
        if old.try_exists()? && is_copy_of(&old, marked, head)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a rebuild of the store in `db` would end with this commit, this last sequence and these values.
fn is_copy_of(db: &Path, marked: Reading, head: &Head) -> io::Result<bool> {
    let raw = Raw::read(db, &mut |_, _| {})?;
    let was_first = raw.first.is_some() || matches!(marked, Reading::First(_));
    if raw.heads.is_empty() && was_first {
        // One commit is that of its values, the next that of its head.
        let FirstHead { commit, last_seq } = raw.first.unwrap_or_default();
        return Ok((head.commit, head.last_seq) == (commit + 2, last_seq));
    }
    let plan = match plan::choose(&raw, marked.head()) {
        Ok(plan) => plan,
        Err(NoPlan::Io(error)) => return Err(error),
        Err(NoPlan::Unprovable(_)) => return Ok(false),
    };
    let is_next = (head.commit, head.last_seq) == (plan.head.commit + 1, plan.head.last_seq);
    // A copy that was made while it served may have what cannot be read of it any more.
    let carried = carried(&plan, &moved(&raw, &plan)?);
    Ok(is_next && [carried, plan.head.digests].contains(&head.digests))
}

/// Continues a rebuild that a crash interrupted.
pub(super) fn finish(
    settings: &StoreSettings,
    marked: Reading,
    findings: &mut Vec<Finding>,
) -> io::Result<()> {
    let dir = &settings.dir;
    remove_folder(&dir.join("db.partial"))?;
    remove_folder(&dir.join("db.first"))?;
    let (untold, moving) = untold::read(dir)?;
    match standing(dir, marked)? {
        Standing::Ready => {
            swap(settings, moving.as_deref())?;
            findings.extend(untold);
            findings.push(Finding::RebuildFinished);
        }
        Standing::Discard => space::rename(&Standing::Discard.folder(dir), &dir.join("db"))?,
        Standing::Db if moving.is_none() => findings.extend(untold),
        // It did not happen.
        Standing::Db => untold::told(dir),
    }
    let ready = Standing::Ready.folder(dir);
    if ready.try_exists()? {
        tracing::warn!(
            store = %dir.display(),
            "an unfinished copy of the store, or one of an earlier state of it, is deleted"
        );
        // For good, before the store is written to.
        remove_folder(&ready)?;
        space::sync_folder(dir)?;
    }
    remove_folder(&dir.join("db.discard"))
}

/// Closes a handle of the store in `dir`. One that does not close may still write to the files that it has open: the
/// next open writes others.
pub(super) fn close(dir: &Path, handle: impl Send + 'static) {
    if !guard::close(handle) {
        tracing::error!(store = %dir.display(), "sled does not close the store, so the store will be rebuilt");
        suspect(dir);
    }
}

/// Notes that the files prove nothing until they are rebuilt. Best effort: the disk has just failed.
pub(super) fn suspect(dir: &Path) {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join(SUSPECT));
    let noted = file.and_then(|_| space::sync_folder(dir));
    if let Err(error) = noted {
        tracing::warn!(%error, "could not note that the store must be rebuilt");
    }
}

/// Notes that after an error of the disk, unless a write or an open may have been refused with it at once. What the disk
/// has taken and failed to keep may say the same, that there is no room: then `sync` fails, too, which is to sync the log
/// through a handle that was there before anything was written.
pub(super) fn suspect_after(dir: &Path, error: &io::Error, sync: impl FnOnce() -> io::Result<()>) {
    if !space::is_refusal(error) || sync().is_err() {
        suspect(dir);
    }
}

/// Whether an earlier process noted that.
pub(super) fn is_suspect(dir: &Path) -> bool {
    dir.join(SUSPECT).try_exists().unwrap_or(true)
}

/// The files are new ones: what was noted was of others.
pub(super) fn trust(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(SUSPECT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => space::sync_folder(dir),
    }
}
