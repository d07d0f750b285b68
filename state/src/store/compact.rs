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
//! the last time. It is looked at when the store falls idle, every thousand commits, and each second while appends are
//! refused for lack of space. While the store is busy it has to be above sixteen times what lives, or above an eighth of
//! the free disk: a queue that is being drained has less to copy later.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::Sender,
    },
    thread::{self, JoinHandle},
};

use sled::IVec;

use super::{
    apply::Changed,
    command::{Command, Ticket},
    guard::{Held, guarded},
    keys::{self, CALLS, GONE, HEAD_KEY, PACKS},
    pack, queue,
    raw::SEGMENT,
    rebuild::Writer,
    record::{self, Kind, Unreadable},
    settings::StoreSettings,
    space,
    tree::{Sled, Tree},
};

/// A log above this size, of which less than a quarter lives, is rebuilt.
const COMPACT_ABOVE_BYTES: u64 = 64 * 1024 * 1024;
/// Keys that may be left for the committing thread.
const LEFT_MAX: usize = 64;
/// Rounds of catching up; a store that is written faster than it is copied is swapped with what is left then.
const ROUNDS_MAX: usize = 8;
/// Commits after which the log's size is looked at.
pub(super) const LOOK_EVERY: u64 = 1_000;

/// Whether a log is worth a rebuild: above four times what lives, and above 64 MiB or an eighth of the free disk.
pub(super) fn is_grown(settings: &StoreSettings, log: u64, live: u64) -> bool {
    // Below a few segments there is nothing to win.
    let least = COMPACT_ABOVE_BYTES.min(eighth(settings)).max(4 * SEGMENT as u64);
    log > least && log / 4 > live
}

/// Whether it is worth one while callers keep the store busy. What lives has to be copied, and mostly becomes less when
/// a queue is drained: so only above sixteen times of it, or an eighth of the free disk.
pub(super) fn is_overgrown(settings: &StoreSettings, log: u64, live: u64) -> bool {
    is_grown(settings, log, live) && (log / 16 > live || log > eighth(settings))
}

fn eighth(settings: &StoreSettings) -> u64 {
    space::free(settings).map_or(u64::MAX, |free| free / 8)
}

/// A compaction under way.
pub(super) struct Compaction {
    pub(super) changed: Changed,
    stop: Arc<AtomicBool>,
    /// The thread has nothing left to do but to end.
    pub(super) done: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Writer>>,
    /// Who asked for it.
    pub(super) tickets: Vec<Ticket>,
}

impl Compaction {
    pub(super) fn start(writer: Writer, source: Sled, wake: Sender<Command>) -> io::Result<Self> {
        let (changed, stop) = (Changed::default(), Arc::<AtomicBool>::default());
        let done = Arc::<AtomicBool>::default();
        let ended = Arc::clone(&done);
        let source = Held::new(source);
        let copy = Copy { source, changed: Arc::clone(&changed), stop: Arc::clone(&stop) };
        let thread = thread::Builder::new().name("compaction".into()).spawn(move || {
            let copied = guarded(move || copy.run(writer));
            ended.store(true, Relaxed);
            // An error means that the store is closed.
            drop(wake.send(Command::Compacted));
            copied.unwrap_or_else(|panic| Err(io::Error::other(panic)))
        })?;
        Ok(Self { changed, stop, done, thread, tickets: Vec::new() })
    }

    /// Stops it and waits until the thread has let go of the store.
    pub(super) fn stop(self) -> (io::Result<Writer>, Vec<Ticket>) {
        self.stop.store(true, Relaxed);
        self.end()
    }

    pub(super) fn end(self) -> (io::Result<Writer>, Vec<Ticket>) {
        let panicked = |_| Err(io::Error::other("the compacting thread panicked"));
        (self.thread.join().unwrap_or_else(panicked), self.tickets)
    }
}

struct Copy {
    source: Held<Sled>,
    changed: Changed,
    stop: Arc<AtomicBool>,
}

impl Copy {
    fn run(self, mut writer: Writer) -> io::Result<Writer> {
        for item in self.source.get()?.iter() {
            let (key, value) = item.map_err(io::Error::from)?;
            let source = self.source.get()?;
            if key.first() == Some(&PACKS) {
                for entry in pack::entries(&value) {
                    let (seq, _) = entry.map_err(|why| unreadable(&key, &why))?;
                    copy(&mut writer, source, &keys::key(CALLS, seq))?;
                }
            } else {
                put(&mut writer, &key, Some(&value))?;
            }
            self.go_on()?;
        }
        for _ in 0..ROUNDS_MAX {
            if self.changed.lock().len() <= LEFT_MAX {
                break;
            }
            let changed = std::mem::take(&mut *self.changed.lock());
            for key in changed {
                copy(&mut writer, self.source.get()?, &key)?;
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

/// Copies what is stored under a key now, be it in a pack: the copy has none.
pub(super) fn copy(writer: &mut Writer, source: &Sled, key: &[u8]) -> io::Result<()> {
    let call = keys::number_of(key).filter(|_| key.first() == Some(&CALLS));
    let value = match call {
        Some(seq) => pack::call_value(source, seq),
        None => source.get(key),
    };
    put(writer, key, value.map_err(io::Error::from)?.as_ref())
}

fn unreadable(key: &[u8], why: &Unreadable) -> io::Error {
    io::Error::other(format!("{key:?}: {why}"))
}

/// Copies one value, or its absence. The head is the new store's own, and so are its removal records.
fn put(writer: &mut Writer, key: &[u8], value: Option<&IVec>) -> io::Result<()> {
    if key == HEAD_KEY || matches!(key.first(), Some(&(GONE | PACKS))) {
        return Ok(());
    }
    let Some(value) = value else { return writer.remove(key) };
    let sealed = record::peel(value).map_err(|why| unreadable(key, &why))?;
    // Nothing is left to take back.
    if sealed.kind == Kind::Void && !writer.holds(key)? {
        return Ok(());
    }
    let (says, commit) = (queue::says_of(key, value), sealed.commit);
    writer.insert(key, value.to_vec(), says, commit)
}
