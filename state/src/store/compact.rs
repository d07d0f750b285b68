//! Compaction while running: sled's log never shrinks while it is open, and a drained one can keep a small disk full.
//!
//! ```text
//!            grown                      caught up                         opened
//! serving ─────────▶ copying (thread) ───────────▶ swap (committing thread) ───▶ serving
//!    ▲                    │ stopped, no room, an error
//!    └────────────────────┘
//! ```
//!
//! A thread of its own copies what is live into `db.partial`, while the store serves; the keys that are written or
//! removed meanwhile are noted, and copied again until few are left. The committing thread copies those, writes the
//! head, syncs, swaps the folders as a rebuild does (`rebuild.rs`: a crash at any step leaves one whole store), and opens
//! the new one as any start does, which proves it. Only that open, whose time goes with what is live, keeps callers
//! waiting.
//!
//! A log is worth it above four times what lives and above 64 MiB or an eighth of the free disk, if it has doubled since
//! the last time. It is looked at when the store falls idle, and every thousand commits.

use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::Sender,
    },
    thread::{self, JoinHandle},
};

use parking_lot::Mutex;
use sled::{Db, IVec};

use super::{
    HEAD_KEY, StoreEvent,
    command::{Command, Ticket},
    committer::Committer,
    error::{OpenError, StoreError},
    ledger::GONE,
    open::{self, at},
    queue,
    rebuild::{self, Writer},
    record::{self, Kind},
    scan::guarded,
    space,
};

/// Keys that may be left for the committing thread.
const LEFT_MAX: usize = 64;
/// Rounds of catching up; a store that is written faster than it is copied is swapped with what is left then.
const ROUNDS_MAX: usize = 8;
/// Commits after which the log's size is looked at.
pub(super) const LOOK_EVERY: u64 = 1_000;

/// Keys that changed since they were copied.
pub(super) type Changed = Arc<Mutex<BTreeSet<IVec>>>;

/// A compaction under way.
pub(super) struct Compaction {
    changed: Changed,
    stop: Arc<AtomicBool>,
    /// The thread has nothing left to do but to end.
    done: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Writer>>,
    /// Who asked for it.
    tickets: Vec<Ticket>,
}

impl Compaction {
    fn start(
        writer: Writer,
        source: Db,
        wake: Sender<Command>,
        tickets: Vec<Ticket>,
    ) -> io::Result<Self> {
        let (changed, stop) = (Changed::default(), Arc::<AtomicBool>::default());
        let done = Arc::<AtomicBool>::default();
        let ended = Arc::clone(&done);
        let copy = Copy { source, changed: Arc::clone(&changed), stop: Arc::clone(&stop) };
        let thread = thread::Builder::new().name("compaction".into()).spawn(move || {
            let copied = guarded(move || copy.run(writer));
            ended.store(true, Relaxed);
            // An error means that the store is closed.
            drop(wake.send(Command::Compacted));
            copied.unwrap_or_else(|panic| Err(io::Error::other(panic)))
        })?;
        Ok(Self { changed, stop, done, thread, tickets })
    }

    /// Stops it and waits until the thread has let go of the store.
    fn stop(self) -> (io::Result<Writer>, Vec<Ticket>) {
        self.stop.store(true, Relaxed);
        self.end()
    }

    fn end(self) -> (io::Result<Writer>, Vec<Ticket>) {
        let panicked = |_| Err(io::Error::other("the compacting thread panicked"));
        (self.thread.join().unwrap_or_else(panicked), self.tickets)
    }
}

struct Copy {
    source: Db,
    changed: Changed,
    stop: Arc<AtomicBool>,
}

impl Copy {
    fn run(self, mut writer: Writer) -> io::Result<Writer> {
        for item in self.source.iter() {
            let (key, value) = item.map_err(io::Error::from)?;
            put(&mut writer, &key, Some(&value))?;
            self.go_on()?;
        }
        for _ in 0..ROUNDS_MAX {
            if self.changed.lock().len() <= LEFT_MAX {
                break;
            }
            let changed = std::mem::take(&mut *self.changed.lock());
            for key in changed {
                let value = self.source.get(&key).map_err(io::Error::from)?;
                put(&mut writer, &key, value.as_ref())?;
                self.go_on()?;
            }
        }
        writer.flush()?;
        Ok(writer)
    }

    fn go_on(&self) -> io::Result<()> {
        if self.stop.load(Relaxed) { Err(io::Error::other("it was stopped")) } else { Ok(()) }
    }
}

/// Copies one value, or its absence. The head is the new store's own, and so are its removal records.
fn put(writer: &mut Writer, key: &[u8], value: Option<&IVec>) -> io::Result<()> {
    if key == HEAD_KEY || key.first() == Some(&GONE) {
        return Ok(());
    }
    let Some(value) = value else { return writer.remove(key) };
    let sealed = record::peel(value).map_err(|why| io::Error::other(format!("{key:?}: {why}")))?;
    // Nothing is left to take back.
    if sealed.kind == Kind::Void && !writer.holds(key)? {
        return Ok(());
    }
    let (says, commit) = (queue::says_of(key, value), sealed.commit);
    writer.insert(key, value.to_vec(), says, commit)
}

impl Committer {
    /// Begins a compaction if the log has grown; tells a caller who asked for one.
    pub(super) fn compact_if_grown(&mut self) {
        self.looked_at = self.applier.head.commit;
        let settings = &self.shared.settings;
        let log = self.log.metadata().map_or(0, |log| log.len());
        // A new log may be several times what lives: it is left alone until it has doubled.
        let has_doubled = log / 2 > self.compacted_to;
        if self.compaction.is_none()
            && has_doubled
            && open::is_grown(settings, log, self.applier.live_bytes)
        {
            self.begin_compaction(Vec::new());
        }
    }

    /// Begins a compaction, or joins the one under way.
    pub(super) fn begin_compaction(&mut self, mut tickets: Vec<Ticket>) {
        if let Some(compaction) = &mut self.compaction {
            compaction.tickets.append(&mut tickets);
            return;
        }
        let settings = self.shared.settings.clone();
        let Some(db) = self.shared.db.read().clone() else { return };
        let needed = space::OPEN_BYTES.saturating_add(self.applier.live_bytes.saturating_mul(2));
        let begun = match space::free(&settings) {
            Ok(free) if free < needed => Err(io::ErrorKind::StorageFull.into()),
            Ok(_) => Writer::create(&settings),
            Err(error) => Err(error),
        };
        let begun = begun.map(|writer| Compaction::start(writer, db, self.wake.clone(), tickets));
        match begun.and_then(std::convert::identity) {
            Ok(compaction) => {
                self.applier.changed = Some(Arc::clone(&compaction.changed));
                self.compaction = Some(compaction);
            }
            Err(error) => tracing::warn!(%error, "the log has grown and cannot be compacted now"),
        }
    }

    /// Gives a compaction up, so that nothing else holds the store.
    pub(super) fn stop_compaction(&mut self) {
        self.applier.changed = None;
        let Some(compaction) = self.compaction.take() else { return };
        let (writer, tickets) = compaction.stop();
        drop(writer);
        let partial = self.shared.settings.dir.join("db.partial");
        if let Err(error) = rebuild::remove_folder(&partial) {
            tracing::debug!(%error, "a copy that was given up stays until the next open");
        }
        for ticket in tickets {
            let detail = "the compaction was given up".into();
            ticket.complete(Err(StoreError::Failed { unknown: false, detail }));
        }
    }

    /// The copying thread has ended: what is left is copied, and the new store swapped in.
    pub(super) fn finish_compaction(&mut self) {
        // One that was stopped says so, too, when another may be under way.
        let Some(compaction) = self.compaction.take_if(|it| it.done.load(Relaxed)) else {
            return;
        };
        self.applier.changed = None;
        let left = std::mem::take(&mut *compaction.changed.lock());
        let (writer, tickets) = compaction.end();
        let result = match writer {
            Ok(writer) => self.swap_in(writer, left),
            Err(error) => Err(at(&self.shared.settings.dir)(error)),
        };
        let result = result.map_err(|error| {
            tracing::warn!(%error, "the log was not compacted");
            StoreError::Failed { unknown: false, detail: error.to_string().into() }
        });
        for ticket in tickets {
            ticket.complete(result.clone());
        }
    }

    fn swap_in(&mut self, mut writer: Writer, left: BTreeSet<IVec>) -> Result<(), OpenError> {
        let settings = self.shared.settings.clone();
        let dir = &settings.dir;
        let copied = {
            let handle = self.shared.db.read();
            let Some(db) = handle.as_ref() else { return Ok(()) };
            left.iter().try_for_each(|key| {
                let value = db.get(key).map_err(io::Error::from)?;
                put(&mut writer, key, value.as_ref())
            })
        };
        let written = copied.and_then(|()| {
            let arriving = self.applier.uploads.first().copied();
            if writer.digests() != self.applier.ledger.digests() {
                return Err(io::Error::other("what was copied is not what lives"));
            }
            writer.end(self.applier.head.commit, self.applier.head.last_seq, arriving)
        });
        if let Err(error) = written.and_then(|_| rebuild::promise(dir)) {
            drop(rebuild::remove_folder(&dir.join("db.partial")));
            return Err(at(dir)(error));
        }
        // From here on the new one is the store, whatever happens.
        let old = self.shared.db.write().take();
        drop(guarded(move || drop(old)));
        let opened = rebuild::swap(&settings, None).map_err(at(dir));
        match opened.and_then(|()| open::open(&settings)) {
            Ok(ready) => {
                self.compacted_to = ready.log.metadata().map_or(0, |log| log.len());
                let uploads = std::mem::take(&mut self.applier.uploads);
                self.adopt(ready);
                // Their pieces were copied with the rest.
                self.applier.garbage.retain(|key| {
                    !queue::chunk_of(key).is_some_and(|(seq, _)| uploads.contains(&seq))
                });
                self.applier.uploads = uploads;
                self.shared
                    .emit(StoreEvent::Rebuilt { reason: "compacted".into(), lost: Vec::new() });
                self.report_reopened(false);
                Ok(())
            }
            Err(error) => {
                self.go_down(error.to_string().into());
                Err(error)
            }
        }
    }
}
