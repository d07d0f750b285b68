//! A store in memory, for simulations: the same commands, groups, head and records as on the disk, without files.
//!
//! What was committed is in a [`MemoryDisk`], which outlives the store. Whoever opens it gets the store and its
//! *committer*, which commits a group when it is asked to ([`MemoryCommitter::step`]), so that a simulation, or a task
//! of its own, decides when. Dropping both without a step is a crash: what was not committed is gone.
//!
//! ```text
//!            a group fails ([`MemoryCommitter::fail`])
//! serving ─────────────────────────────────────────────▶ down: steps refuse ──reopen──▶ serving
//! ```
//! As on the disk, only the group that failed has an unknown outcome, what an open finds then is the truth about it, and
//! whatever was sent before is refused. The caller of [`MemoryCommitter::reopen`] tells that truth before anybody sends
//! anything, so that nothing has to be put in order.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
};

use parking_lot::{Mutex, RwLock};
use sled::IVec;

use super::{
    CallStore, StoreError,
    apply::{Applier, Group},
    call_store::Backed,
    calls::FoundCall,
    command::Command,
    head::{self, AnyHead},
    keys::FACT_TARGET,
    scan::{self, ScanFailure, Scanned},
    settings::{StoreEvent, StoreStatus},
    tree::Tree,
};
use crate::target::Target;

/// What was committed.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<BTreeMap<Vec<u8>, IVec>>>);

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk").field("values", &self.0.lock().len()).finish()
    }
}

/// What was written, committed or not.
pub(super) struct Written(Mutex<Values>);

struct Values {
    map: BTreeMap<Vec<u8>, IVec>,
    /// The keys that were written since the last commit.
    touched: BTreeSet<Vec<u8>>,
}

impl Written {
    fn new(map: BTreeMap<Vec<u8>, IVec>) -> Self {
        Self(Mutex::new(Values { map, touched: BTreeSet::new() }))
    }

    /// The disk has what is written.
    fn commit(&self, disk: &MemoryDisk) {
        let (mut values, mut disk) = (self.0.lock(), disk.0.lock());
        for key in std::mem::take(&mut values.touched) {
            match values.map.get(&key) {
                Some(value) => disk.insert(key, value.clone()),
                None => disk.remove(&key),
            };
        }
    }

    /// What is written is what the disk has.
    fn revert(&self, disk: &MemoryDisk) {
        let mut values = self.0.lock();
        values.touched.clear();
        values.map.clone_from(&disk.0.lock());
    }
}

impl Tree for Written {
    fn get(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        Ok(self.0.lock().map.get(key).cloned())
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> sled::Result<Option<IVec>> {
        let mut values = self.0.lock();
        values.touched.insert(key.to_vec());
        Ok(values.map.insert(key.to_vec(), value.into()))
    }

    fn remove(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        let mut values = self.0.lock();
        values.touched.insert(key.to_vec());
        Ok(values.map.remove(key))
    }

    /// It is written without packs.
    fn pack_of(&self, _: u64) -> Option<u64> {
        None
    }

    fn keys(&self, prefix: &[u8]) -> sled::Result<Vec<IVec>> {
        let values = self.0.lock();
        let from = values.map.range(prefix.to_vec()..).map(|(key, _)| key);
        Ok(from
            .take_while(|key| key.starts_with(prefix))
            .map(|key| key.as_slice().into())
            .collect())
    }
}

struct Shared {
    map: Written,
    waiting: Mutex<VecDeque<Command>>,
    /// Runs when a command was sent.
    wake: Box<dyn Fn() + Send + Sync>,
    /// Why commands are refused, while they are.
    refusing: Mutex<Option<String>>,
    target: Arc<RwLock<Target>>,
    commits: AtomicU64,
    last_seq: AtomicU64,
    is_closed: Mutex<bool>,
}

/// A store in memory; see the [module](self).
#[derive(Clone)]
pub struct MemoryStore(Arc<Shared>);

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

/// Commits what was sent to a [`MemoryStore`].
pub struct MemoryCommitter {
    shared: Arc<Shared>,
    disk: MemoryDisk,
    applier: Applier,
}

impl fmt::Debug for MemoryCommitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCommitter")
            .field("commit", &self.applier.head.commit)
            .finish_non_exhaustive()
    }
}

/// A store in memory that has just been opened.
#[derive(Debug)]
pub struct OpenedMemory {
    /// The store.
    pub store: Arc<dyn CallStore>,
    /// What commits for it.
    pub committer: MemoryCommitter,
    /// Every whole call, ascending by sequence, dead letters included.
    pub calls: Vec<FoundCall>,
    /// The highest sequence ever given out.
    pub last_seq: u64,
}

impl MemoryDisk {
    /// Opens what was committed, to be filled for `target`.
    ///
    /// # Errors
    /// `Failed` if what is there is not what a store has written.
    pub fn open(&self, target: &Target) -> Result<OpenedMemory, StoreError> {
        self.open_waking(target, || ())
    }

    /// The same, and `wake` runs whenever there is something to commit.
    ///
    /// # Errors
    /// As [`MemoryDisk::open`].
    pub fn open_waking(
        &self,
        target: &Target,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Result<OpenedMemory, StoreError> {
        let scanned = self.scan()?;
        let head = head_of(&scanned);
        let target = Arc::new(RwLock::new(target.clone()));
        let shared = Arc::new(Shared {
            map: Written::new(self.0.lock().clone()),
            waiting: Mutex::default(),
            wake: Box::new(wake),
            refusing: Mutex::default(),
            target: Arc::clone(&target),
            commits: AtomicU64::new(head.commit),
            last_seq: AtomicU64::new(head.last_seq),
            is_closed: Mutex::new(false),
        });
        let applier = Applier {
            group: Group::default(),
            head,
            ledger: scanned.ledger,
            live_bytes: scanned.live_bytes,
            history_next: scanned.history_next,
            uploads: BTreeSet::new(),
            garbage: scanned.garbage,
            target,
            packs: false,
            changed: None,
        };
        let store = MemoryStore(Arc::clone(&shared));
        if scanned.target.is_none() {
            let target = store.0.target.read().as_str().as_bytes().to_vec();
            store.put_fact(FACT_TARGET, target, Box::new(|_| ()));
        }
        let (calls, disk) = (scanned.calls, self.clone());
        let committer = MemoryCommitter { shared, disk, applier };
        let last_seq = calls.last().map_or(0, |call| call.seq).max(head.last_seq);
        Ok(OpenedMemory { store: Arc::new(store), committer, calls, last_seq })
    }

    fn scan(&self) -> Result<Scanned, StoreError> {
        let map = self.0.lock();
        let values = map.iter().map(|(key, value)| Ok((key.clone(), value.to_vec())));
        scan::scan_values(values).map_err(|error| {
            let detail = match error {
                ScanFailure::Newer(found) => format!("format {found} is newer"),
                ScanFailure::Broken(why) => why,
            };
            StoreError::Failed { unknown: false, detail: detail.into() }
        })
    }
}

fn head_of(scanned: &Scanned) -> head::Head {
    match scanned.head {
        Some(AnyHead::Vouching(head)) => head,
        _ => head::Head { floor: 1, ..head::Head::default() },
    }
}

impl MemoryCommitter {
    /// Commits one group, if anything waits; whether anything did. While the store is down, what waits is refused.
    pub fn step(&mut self) -> bool {
        if self.shared.refusing.lock().is_some() {
            return self.refuse();
        }
        let waited = self.write_group();
        if self.applier.group.dirty && self.finish_group() {
            let head = &self.applier.head;
            self.shared.commits.store(head.commit, Relaxed);
            self.shared.last_seq.store(head.last_seq, Relaxed);
        }
        self.applier.group.clear();
        for (ticket, result) in std::mem::take(&mut self.applier.group.tickets) {
            ticket.complete(result);
        }
        waited
    }

    /// The disk fails at the next group: it holds what was to be committed, or not, as `is_kept` says, and the store
    /// only knows that it does not know. It is down from then on. Returns what it tells.
    pub fn fail(&mut self, is_kept: bool, detail: &str) -> StoreEvent {
        self.write_group();
        let is_finished = self.applier.group.dirty && is_kept && self.finish_group();
        if !is_finished {
            self.shared.map.revert(&self.disk);
        }
        *self.shared.refusing.lock() = Some(detail.to_owned());
        self.applier.group.clear();
        let error = StoreError::SyncFailed { detail: detail.into() };
        for (ticket, result) in std::mem::take(&mut self.applier.group.tickets) {
            ticket.complete(result.and(Err(error.clone())));
        }
        StoreEvent::Refusing { reason: detail.to_owned() }
    }

    /// Serves again, by what the disk holds. Returns what it tells; `None` if it was not down.
    ///
    /// # Errors
    /// As [`MemoryDisk::open`]: then it stays down.
    pub fn reopen(&mut self) -> Result<Option<StoreEvent>, StoreError> {
        if self.shared.refusing.lock().is_none() {
            return Ok(None);
        }
        self.refuse();
        let scanned = self.disk.scan()?;
        self.shared.map.revert(&self.disk);
        let applier = &mut self.applier;
        applier.head = head_of(&scanned);
        applier.ledger = scanned.ledger;
        applier.live_bytes = scanned.live_bytes;
        applier.history_next = scanned.history_next;
        applier.uploads.clear();
        applier.garbage = scanned.garbage;
        *self.shared.refusing.lock() = None;
        Ok(Some(StoreEvent::Reopened { calls: scanned.calls }))
    }

    /// Commits until nothing waits.
    pub fn settle(&mut self) {
        while self.step() {}
    }

    /// Writes a group's commands, and what is dead as it has room; whether anything waited.
    fn write_group(&mut self) -> bool {
        let mut waited = false;
        while self.applier.group.spent < super::apply::GROUP_BYTES {
            let Some(command) = self.shared.waiting.lock().pop_front() else { break };
            waited = true;
            // There are no files to compact.
            if let Command::Compact { ticket } = command {
                self.applier.settle(ticket, Ok(()));
                continue;
            }
            match self.applier.apply(&self.shared.map, command) {
                Ok(Some(rest)) => {
                    self.shared.waiting.lock().push_front(rest);
                    break;
                }
                Ok(None) => {}
                // A map in memory does not fail.
                Err(_) => break,
            }
        }
        waited |= !self.applier.garbage.is_empty();
        self.applier.sweep();
        waited
    }

    /// Whether the disk has the group now.
    fn finish_group(&mut self) -> bool {
        let Ok(head) = self.applier.finish_group(&self.shared.map) else { return false };
        self.applier.head = head;
        self.shared.map.commit(&self.disk);
        true
    }

    /// Ends what waits as definitely not stored, but for a removal that is committed in part, and for history, which
    /// waits on.
    fn refuse(&mut self) -> bool {
        let waiting = std::mem::take(&mut *self.shared.waiting.lock());
        let any = !waiting.is_empty();
        let detail: Arc<str> = self.shared.refusing.lock().clone().unwrap_or_default().into();
        let mut history = VecDeque::new();
        for command in waiting {
            history.extend(command.refuse(&detail).map(Command::History));
        }
        history.extend(self.shared.waiting.lock().drain(..));
        *self.shared.waiting.lock() = history;
        any
    }
}

impl Backed for MemoryStore {
    type Map = Written;

    fn send(&self, command: Command) {
        // One that is dropped says `Closed`.
        if !*self.0.is_closed.lock() {
            self.0.waiting.lock().push_back(command);
            (self.0.wake)();
        }
    }

    fn target(&self) -> &RwLock<Target> {
        &self.0.target
    }

    fn read<T>(
        &self,
        what: impl FnOnce(&Self::Map) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.0.refusing.lock().is_some() {
            return Err(StoreError::Failed { unknown: false, detail: "the store is down".into() });
        }
        what(&self.0.map)
    }

    fn state(&self) -> StoreStatus {
        StoreStatus {
            refusing: self.0.refusing.lock().clone(),
            commits: self.0.commits.load(Relaxed),
            last_seq: self.0.last_seq.load(Relaxed),
            ..StoreStatus::default()
        }
    }

    /// What waits is still committed by the next steps.
    fn end(&self) {
        *self.0.is_closed.lock() = true;
    }
}
