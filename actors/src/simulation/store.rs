//! The stores of a simulation: in memory, each with a task that commits, and a disk that fails at times.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use fusebox_state::store::{OpenError, StoreEvent, StoreSettings, memory::MemoryCommitter};
use tokio::sync::Notify;

use super::{
    scene::{BACKENDS, ms},
    world::Shared,
};
use crate::ground::{OpenedStore, OpensStores};

/// What fails.
const FAILURE: &str = "the simulated disk failed a sync";

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
