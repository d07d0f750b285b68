//! The durable store of one backend: its queued calls, dead letters, facts and history.
//!
//! # Promise
//! A command whose completion says `Ok` is on the disk: sled's `flush` *and* `sync_data` on a second
//! handle of its log have returned. (`flush` alone lost everything in real power cuts.)
//!
//! # Layout
//! `<state_dir>/backends/<name>/` holds
//!
//! | name | what |
//! | --- | --- |
//! | `db/` | a sled 0.34 store, default tree only; and its identity (`identity.rs`) |
//! | `name` | the store's name (`identity.rs`) |
//! | `mark` | commit number and last sequence, which `db` must not be behind (`mark.rs`) |
//! | `lock` | locked for as long as the store is open, also while `db` is swapped |
//! | `ballast` | 8 MiB, given up when the disk is full |
//! | `suspect` | a sync has failed: rebuild before serving (`rebuild.rs`) |
//! | `db.partial`, `db.ready`, `db.discard` | a rebuild under way (`rebuild.rs`) |
//! | `db.before`, `db.first` | the log as it was before sled opened it, or a copy that it opens instead (`shield.rs`) |
//! | `untold` | losses that were found and not reported yet (`untold.rs`) |
//! | `db.damaged-…` | stores set aside; only an operator's order deletes them |
//!
//! and within sled, numbers big-endian so that they sort:
//!
//! | key | value |
//! | --- | --- |
//! | `h` | head: commit number and last sequence, written by every commit |
//! | `q` seq | a call's header, with the body if the whole fits 4,096 bytes |
//! | `c` seq index | a chunk of a larger body, written before the header |
//! | `p` seq | calls that were committed together, from this one on, each without a key of its own (`pack.rs`) |
//! | `s` seq | note of sending: the call, or the group whose first call it is, is or was on the wire |
//! | `d` seq | dead-letter mark |
//! | `f` name | a fact |
//! | `t` n | the history ring |
//!
//! # States of a call
//! ```text
//!          append             note_sending             remove
//! (none) ─────────▶ pending ────────────────▶ noted ─────────▶ (none)
//!                    ▲ │  take_back_note        │ │       ▲
//!            replace └─┤◀───────────────────────┘ │       │
//!                      │  bury                    │ bury  │ remove
//!                      └────────────▶ dead ◀──────┘       │
//!                                      │ ├────────────────┘
//!                                      │ └─revive─▶ pending or noted, as it was
//!                                      └─requeue─▶ the same under a new sequence
//! ```
//!
//! # Invariants
//! 1. No value exceeds 4,096 bytes, so `db/blobs/` is empty: blob files are never synced.
//! 2. At most about 64 KiB of values are written between two syncs: more, written back out of order
//!    by a power cut, can leave a store that does not open.
//! 3. One thread writes; the order of its channel is the order of commits and of completions. Only what is sent in
//!    answer to `Reopened` goes before it (`outage.rs`).
//! 4. A header in the store proves that all chunks of its body are.
//! 5. The mark is never ahead of what is synced.
//! 6. After a failed sync nothing is acknowledged until the store is rebuilt into new files.
//! 7. Nothing is deleted that could not be read: it is set aside, and stays there however full the disk is.
//! 8. Nothing is written to `db` while a copy may stand ready to replace it (`rebuild.rs`).
//!
//! # What a crash leaves
//! | crash | the next open finds |
//! | --- | --- |
//! | before the header's insert | chunks without a header: swept. The call was not acknowledged |
//! | before `flush` and `sync_data` returned | the call or nothing of it; it was not acknowledged |
//! | between the sync and the mark | a store ahead of its mark: fine |
//! | within a removal | the call, to be replayed again; or its chunks and marks alone: swept, and in no head until then |
//! | within a burial, a revival, the taking back of a note, a replacement | what was before, or what is after |
//! | within a group's notes and removals | see `note.rs` |
//! | within a requeue | the dead letter, or both: then the new one stays and the old one is swept |
//! | at any step, with calls in packs | see `pack.rs` |
//! | within a rebuild | the old store, or a whole new one whose swap is finished |

mod apply;
pub mod cache_file;
mod call_store;
mod calls;
pub mod check;
mod command;
mod committer;
mod compact;
mod dead_letters;
mod downgrade;
mod error;
mod facts;
mod faults;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
#[expect(
    clippy::pedantic,
    clippy::type_complexity,
    reason = "a way in for fuzzers, which makes anything of any bytes"
)]
pub mod fuzzing;
mod guard;
mod head;
mod history;
pub mod identity;
pub mod journal;
mod keys;
mod ledger;
mod mark;
pub mod memory;
mod note;
mod open;
mod outage;
mod pack;
mod places;
mod plan;
mod queue;
mod raw;
mod rebuild;
mod record;
mod scan;
mod settings;
mod settle;
mod shared;
mod shield;
mod space;
mod swap;
#[cfg(test)]
mod tests;
mod tree;
mod untold;
mod upload;

use std::{
    fmt, fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
};

use parking_lot::{Mutex, RwLock};

use self::{
    call_store::Backed,
    command::Command,
    committer::Committer,
    guard::guarded,
    shared::{Shared, take_lock},
    space::at,
    tree::Sled,
};
use crate::target::Target;

pub use self::{
    call_store::CallStore,
    calls::{
        CallHeader, DeadMark, DeadReason, FoundCall, Marks, NewCall, StoredBody, StoredCall,
        StoredGroup, TokenKind, Traits,
    },
    downgrade::{Downgraded, downgrade},
    error::{Finding, OpenError, StoreError},
    faults::Faults,
    guard::is_guarded,
    note::{EVIDENCE_MAX, GroupNote, MEMBERS_MAX, Note},
    scan::Counts,
    settings::{Done, StoreEvent, StoreSettings, StoreStatus},
    space::remove_set_aside,
    upload::PIECE_BYTES,
};

/// A store that has just been opened, with what it holds.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Every whole call, ascending by sequence, dead letters included.
    pub calls: Vec<FoundCall>,
    /// The highest sequence ever given out: new calls are numbered above it.
    pub last_seq: u64,
    /// What was found wrong or put in order.
    pub findings: Vec<Finding>,
    /// The identity that the store was filled for, if it is not `StoreSettings::target`. It stays
    /// recorded until [`CallStore::set_target`].
    pub previous_target: Option<Target>,
}

struct Handle {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Handle {
    fn close(&self) {
        // An error means that the thread has ended already.
        drop(self.commands.send(Command::Close));
        let Some(thread) = self.thread.lock().take() else { return };
        // A completion may hold the last handle: then the thread ends by itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the committing thread panicked");
        }
    }
}

/// A handle of the store of one backend; cheap to clone. Dropping the last one closes the store and
/// waits for the last commit.
///
/// Commands return at once and end in their completion, exactly once, in the order in which they
/// were sent. Reads are safe on any thread and see what the committing thread has written, synced or
/// not; they wait while the store is swapped by a rebuild.
#[derive(Clone)]
pub struct Store(Arc<Handle>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.0.shared.settings.dir).finish()
    }
}

impl Store {
    /// Opens the store in `settings.dir`, or makes it. Blocks: call it on a blocking thread.
    ///
    /// # Errors
    /// See [`OpenError`]. A damaged store is not an error: it is set aside, a fresh one is started, and
    /// `Opened::findings` says so.
    pub fn open(settings: StoreSettings) -> Result<Opened, OpenError> {
        let dir = settings.dir.clone();
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let lock = take_lock(&dir)?;
        let mut ready = open::open(&settings)?;
        let opened = (std::mem::take(&mut ready.calls), ready.head, ready.previous_target.take());
        let findings = ready.findings.clone();
        let shared = Arc::new(Shared {
            db: RwLock::new(Some(Sled::new(ready.db.clone(), ready.ledger.packs.places.clone()))),
            target: Arc::new(RwLock::new(settings.target.clone())),
            refusing: Mutex::default(),
            findings: Mutex::new(findings.clone()),
            commits: AtomicU64::new(ready.head.commit),
            last_seq: AtomicU64::new(ready.head.last_seq),
            lock: Mutex::new(Some(lock)),
            answering: Mutex::default(),
            settings,
        });
        let (commands, receiver) = mpsc::channel();
        let committer = Committer::new(Arc::clone(&shared), receiver, commands.clone(), ready);
        let thread = thread::Builder::new()
            .name("committer".into())
            .spawn(move || committer.run())
            .map_err(at(&dir))?;
        let (calls, head, previous_target) = opened;
        let inner = Handle { shared, commands, thread: Mutex::new(Some(thread)) };
        Ok(Opened {
            store: Self(Arc::new(inner)),
            calls,
            last_seq: head.last_seq,
            findings,
            previous_target,
        })
    }
}

impl Backed for Store {
    type Map = Sled;

    fn send(&self, command: Command) {
        if let Some(command) = self.0.shared.unless_answering(command) {
            // An error drops the command, whose ticket then says `Closed`.
            drop(self.0.commands.send(command));
        }
    }

    fn target(&self) -> &RwLock<Target> {
        &self.0.shared.target
    }

    fn read<T>(&self, what: impl FnOnce(&Sled) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let handle = self.0.shared.db.read();
        let Some(db) = &*handle else {
            return Err(StoreError::Failed { unknown: false, detail: "the store is down".into() });
        };
        guarded(|| what(db)).unwrap_or_else(|panic| {
            Err(StoreError::Failed { unknown: false, detail: panic.into() })
        })
    }

    /// Asks the file system for a size, nothing more.
    fn state(&self) -> StoreStatus {
        let shared = &self.0.shared;
        StoreStatus {
            refusing: shared.refusing.lock().clone(),
            disk_bytes: fs::metadata(shared.settings.dir.join("db/db")).map_or(0, |log| log.len()),
            commits: shared.commits.load(Relaxed),
            last_seq: shared.last_seq.load(Relaxed),
            findings: shared.findings.lock().clone(),
        }
    }

    /// Commits what was sent before, syncs the mark, closes the files and waits for all that.
    fn end(&self) {
        self.0.close();
    }
}
