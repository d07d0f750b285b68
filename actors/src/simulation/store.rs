//! The stores of a simulation: in memory, each with a task that commits, and a disk that fails at times.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fusebox_state::store::{
    OpenError, StoreEvent, StoreSettings,
    memory::{MemoryCommitter, MemoryDisk},
};
use tokio::sync::Notify;

use super::{
    Shared, ms,
    world::{BACKENDS, World},
};
use crate::ground::{OpenedStore, OpensStores};

/// What fails.
const FAILURE: &str = "the simulated disk failed a sync";

/// A store's disk.
#[derive(Default)]
pub(super) struct Disk {
    durable: MemoryDisk,
    /// What becomes of the next group: 0 it is committed, 1 the sync fails and it is lost, 2 it is kept all the same.
    next: AtomicU8,
    /// Until when the store stays down after that, in milliseconds of the world.
    down_until: AtomicU64,
    /// How often it is still refused to open.
    refuses: AtomicU8,
}

impl Disk {
    /// The next sync fails, and the store is down until then.
    pub(super) fn fails(&self, is_kept: bool, until: u64) {
        self.down_until.store(until, Relaxed);
        self.next.store(if is_kept { 2 } else { 1 }, Relaxed);
    }

    /// The store does not open so many times.
    pub(super) fn refuses(&self, times: u8) {
        self.refuses.store(times, Relaxed);
    }

    /// All is well with it.
    pub(super) fn heals(&self) {
        self.next.store(0, Relaxed);
        self.down_until.store(0, Relaxed);
        self.refuses.store(0, Relaxed);
    }
}

/// Opens the stores of a world.
pub(super) struct Stores(pub(super) Shared);

impl OpensStores for Stores {
    fn open(&self, backend: &str, settings: StoreSettings) -> Result<OpenedStore, OpenError> {
        let at = BACKENDS.iter().position(|name| *name == backend).unwrap_or_default();
        let world = &self.0;
        let failed = |error: String| OpenError::Io {
            path: backend.into(),
            source: std::io::Error::other(error),
        };
        let Some(disk) = world.disks.get(at) else { return Err(failed("no such disk".into())) };
        if disk.refuses.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            world.note(|| format!("the store of {backend} does not open"));
            return Err(OpenError::DiskFull { free: 0, needed: 1 });
        }
        let sent = Arc::new(Notify::new());
        let wake = Arc::clone(&sent);
        let opened = disk.durable.open_waking(&settings.target, move || wake.notify_one());
        let opened = opened.map_err(|error| failed(error.to_string()))?;
        world.note(|| format!("the store of {backend} opens with {} calls", opened.calls.len()));
        let committing =
            Committing { world: Arc::clone(world), at, committer: opened.committer, settings };
        tokio::spawn(committing.run(sent));
        Ok(OpenedStore {
            store: opened.store,
            calls: opened.calls,
            last_seq: opened.last_seq,
            findings: Vec::new(),
            previous_target: None,
        })
    }
}

/// What the committing thread is on the machine.
struct Committing {
    world: Shared,
    at: usize,
    committer: MemoryCommitter,
    settings: StoreSettings,
}

impl Committing {
    async fn run(mut self, sent: Arc<Notify>) {
        loop {
            sent.notified().await;
            tokio::time::sleep(self.takes()).await;
            let Some(disk) = self.world.disks.get(self.at) else { return };
            let (next, until) = (disk.next.swap(0, Relaxed), disk.down_until.load(Relaxed));
            if next == 0 {
                // One group after another, each with its own sync.
                while self.committer.step() {
                    tokio::time::sleep(ms(1)).await;
                }
            } else {
                self.goes_down(next == 2, until, &sent).await;
            }
        }
    }

    /// How long a sync takes.
    fn takes(&self) -> Duration {
        let mut rng = self.world.rng();
        if rng.u8(..50) == 0 { ms(rng.u64(20..800)) } else { ms(rng.u64(1..4)) }
    }

    async fn goes_down(&mut self, is_kept: bool, until: u64, sent: &Notify) {
        let told = self.committer.fail(is_kept, FAILURE);
        self.tell(told);
        while self.world.now() < until {
            let left = ms(until.saturating_sub(self.world.now()));
            tokio::select! {
                biased;
                () = sent.notified() => drop(self.committer.step()),
                () = tokio::time::sleep(left) => {}
            }
        }
        match self.committer.reopen() {
            Ok(Some(told)) => self.tell(told),
            Ok(None) => {}
            Err(error) => self.world.broken(format!("a store does not open again: {error}")),
        }
        sent.notify_one();
    }

    fn tell(&self, event: StoreEvent) {
        let name = BACKENDS.get(self.at).unwrap_or(&"");
        match &event {
            StoreEvent::Reopened { calls } => {
                self.world.note(|| {
                    format!("the store of {name} serves again with {} calls", calls.len())
                });
            }
            _ => self.world.note(|| format!("the store of {name} is down")),
        }
        (self.settings.on_event)(event);
    }
}

impl World {
    /// All disks are well.
    pub(super) fn heal_disks(&self) {
        self.disks.iter().for_each(Disk::heals);
    }
}
