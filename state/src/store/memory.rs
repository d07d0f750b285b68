//! A store in memory, for simulations: the same commands, groups, head and records as on the disk, without files.
//!
//! What was committed lies in a [`MemoryDisk`], which outlives the store. Whoever opens it gets the store and its
//! *committer*, which commits a group when it is told to ([`MemoryCommitter::step`]), so that a simulation, or a task of
//! its own, decides when. Dropping both without a step is a crash: what was not committed is gone.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
};

use parking_lot::{Mutex, RwLock};
use sled::IVec;

use super::{
    CallStore, StoreError,
    apply::{Applier, Group},
    call_store::Backed,
    calls::StoredCall,
    command::Command,
    head::{self, AnyHead},
    keys::FACT_TARGET,
    scan::{self, ScanFailure},
    settings::StoreStatus,
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

impl Tree for Mutex<BTreeMap<Vec<u8>, IVec>> {
    fn get(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        Ok(self.lock().get(key).cloned())
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> sled::Result<Option<IVec>> {
        Ok(self.lock().insert(key.to_vec(), value.into()))
    }

    fn remove(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        Ok(self.lock().remove(key))
    }

    fn keys(&self, prefix: &[u8]) -> sled::Result<Vec<IVec>> {
        let map = self.lock();
        let from = map.range(prefix.to_vec()..).map(|(key, _)| key);
        Ok(from
            .take_while(|key| key.starts_with(prefix))
            .map(|key| key.as_slice().into())
            .collect())
    }
}

struct Shared {
    /// What was written, committed or not.
    map: Mutex<BTreeMap<Vec<u8>, IVec>>,
    waiting: Mutex<VecDeque<Command>>,
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
    pub calls: Vec<StoredCall>,
    /// The highest sequence ever given out.
    pub last_seq: u64,
}

impl MemoryDisk {
    /// Opens what was committed. New calls bear `target`.
    ///
    /// # Errors
    /// `Failed` if what lies there is not what a store has written.
    pub fn open(&self, target: &Target) -> Result<OpenedMemory, StoreError> {
        let map = self.0.lock().clone();
        let values = map.iter().map(|(key, value)| Ok((key.clone(), value.to_vec())));
        let scanned = scan::scan_values(values).map_err(|error| {
            let detail = match error {
                ScanFailure::Newer(found) => format!("format {found} is newer"),
                ScanFailure::Broken(why) => why,
            };
            StoreError::Failed { unknown: false, detail: detail.into() }
        })?;
        let head = match scanned.head {
            Some(AnyHead::Vouching(head)) => head,
            _ => head::Head { floor: 1, ..head::Head::default() },
        };
        let target = Arc::new(RwLock::new(target.clone()));
        let shared = Arc::new(Shared {
            map: Mutex::new(map),
            waiting: Mutex::default(),
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
            uploads: std::collections::BTreeSet::new(),
            garbage: scanned.garbage,
            target,
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
}

impl MemoryCommitter {
    /// Commits one group, if anything waits; whether anything did.
    pub fn step(&mut self) -> bool {
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
        if self.applier.group.dirty
            && let Ok(head) = self.applier.finish_group(&self.shared.map)
        {
            self.applier.head = head;
            self.disk.0.lock().clone_from(&self.shared.map.lock());
            self.shared.commits.store(head.commit, Relaxed);
            self.shared.last_seq.store(head.last_seq, Relaxed);
        }
        self.applier.group.clear();
        for (ticket, result) in std::mem::take(&mut self.applier.group.tickets) {
            ticket.complete(result);
        }
        waited
    }

    /// Commits until nothing waits.
    pub fn settle(&mut self) {
        while self.step() {}
    }
}

impl Backed for MemoryStore {
    type Map = Mutex<BTreeMap<Vec<u8>, IVec>>;

    fn send(&self, command: Command) {
        // One that is dropped says `Closed`.
        if !*self.0.is_closed.lock() {
            self.0.waiting.lock().push_back(command);
        }
    }

    fn target(&self) -> &RwLock<Target> {
        &self.0.target
    }

    fn read<T>(
        &self,
        what: impl FnOnce(&Self::Map) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        what(&self.0.map)
    }

    fn state(&self) -> StoreStatus {
        StoreStatus {
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
