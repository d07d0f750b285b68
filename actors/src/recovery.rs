//! The recovery actor: drives replay, runs the background maintenance, forces recoveries.
//!
//! ```text
//!  cron (tokio-cron-scheduler) --cast--> SweepDue, ReportDue, NudgeDue
//!  timer -----------------------------> SnapshotDue
//!  operator --------------------------> Recover
//!  replay task (one per backend) --ends--> ReplayEnded --> started again
//! ```
//!
//! **The one rule that a maintainer might break:** no guarantee rests on cron. It follows the wall
//! clock, does not guard against overlap and forgets a stalled repeated job; here a job only casts a
//! message, and what it brings about would happen without it, only later.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use fusebox_state::{
    Target, UnixMillis,
    cache::{CachedRead, Value},
    shelf::{Shelf, ShelfSettings},
    store::cache_file::{self, CacheEntry},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_cron_scheduler::JobScheduler;

use crate::{
    backend::{BackendMessage, answer},
    backend_entry::BackendEntry,
    backend_shared::BackendShared,
    connector::SharedConnector,
    event::EventBus,
    system::SystemFlags,
};

mod jobs;
mod message;
pub(crate) mod replay;

pub use message::RecoveryMessage;

/// How often a cache is written to its file.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(30);
/// When a replay task that ended is started again.
const REPLAY_AGAIN: Duration = Duration::from_secs(1);

/// The actor.
pub struct RecoveryActor;

/// What it starts from.
pub struct RecoveryArgs {
    /// The backends, in the order of the configuration.
    pub entries: Arc<[BackendEntry]>,
    /// Where events go.
    pub bus: EventBus,
    /// The system state.
    pub flags: SystemFlags,
}

/// Its own.
pub struct RecoveryState {
    args: RecoveryArgs,
    scheduler: Option<JobScheduler>,
    /// The replay of each backend.
    replays: Vec<(BackendEntry, AbortHandle)>,
}

impl Drop for RecoveryState {
    fn drop(&mut self) {
        for (_, replay) in &self.replays {
            replay.abort();
        }
    }
}

impl Actor for RecoveryActor {
    type Msg = RecoveryMessage;
    type State = RecoveryState;
    type Arguments = RecoveryArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<RecoveryMessage>,
        args: RecoveryArgs,
    ) -> Result<RecoveryState, ActorProcessingErr> {
        let scheduler = match jobs::schedule(&myself).await {
            Ok(scheduler) => Some(scheduler),
            Err(error) => {
                tracing::error!(%error, "maintenance jobs are not scheduled");
                None
            }
        };
        let entries = Arc::clone(&args.entries);
        let mut state = RecoveryState { args, scheduler, replays: Vec::new() };
        for entry in entries.iter() {
            state.replay_due(&myself, entry.clone());
        }
        drop(myself.send_interval(SNAPSHOT_EVERY, || RecoveryMessage::SnapshotDue));
        Ok(state)
    }

    async fn post_stop(
        &self,
        _: ActorRef<RecoveryMessage>,
        state: &mut RecoveryState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(mut scheduler) = state.scheduler.take() {
            scheduler.shutdown().await?;
        }
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<RecoveryMessage>,
        message: RecoveryMessage,
        state: &mut RecoveryState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RecoveryMessage::SweepDue => state.sweep_due(),
            RecoveryMessage::ReportDue => state.report_due(),
            RecoveryMessage::NudgeDue => state.nudge_due(),
            RecoveryMessage::SnapshotDue => state.snapshot_due(),
            RecoveryMessage::ReplayEnded(entry) => {
                drop(myself.send_after(REPLAY_AGAIN, move || RecoveryMessage::ReplayDue(entry)));
            }
            RecoveryMessage::ReplayDue(entry) => state.replay_due(&myself, entry),
            RecoveryMessage::Recover { only, reply } => state.recover(only, reply),
        }
        Ok(())
    }
}

impl RecoveryState {
    fn sweep_due(&self) {
        for entry in self.args.entries.iter() {
            let shared = &entry.shared;
            let dropped = shared.cache.load().sweep(shared.circuit.clock.now());
            if dropped > 0 {
                tracing::debug!(backend = shared.circuit.name, dropped, "swept the cache");
            }
        }
    }

    fn report_due(&self) {
        for entry in self.args.entries.iter() {
            let queue = &entry.shared.queue;
            let Ok(store) = queue.store() else { continue };
            let status = store.status();
            let (waiting, dead) = (queue.waiting(), queue.index().dead().0);
            tracing::info!(
                backend = entry.shared.circuit.name,
                disk_bytes = status.disk_bytes,
                commits = status.commits,
                waiting,
                dead,
                "size of the store"
            );
        }
    }

    fn nudge_due(&self) {
        for entry in self.args.entries.iter() {
            entry.shared.queue.work.notify_one();
        }
    }

    fn snapshot_due(&self) {
        for entry in self.args.entries.iter() {
            let shared = Arc::clone(&entry.shared);
            tokio::task::spawn_blocking(move || save_cache(&shared));
        }
    }

    fn replay_due(&mut self, myself: &ActorRef<RecoveryMessage>, entry: BackendEntry) {
        let shared = Arc::clone(&entry.shared);
        let (bus, flags) = (self.args.bus.clone(), self.args.flags.clone());
        let replay: JoinHandle<()> = tokio::spawn(replay::run(shared, bus, flags));
        self.replays.retain(|(other, _)| !other.is(&entry.shared));
        self.replays.push((entry.clone(), replay.abort_handle()));
        let myself = myself.clone();
        tokio::spawn(async move {
            match replay.await {
                Err(error) if error.is_panic() => {
                    let name = entry.name();
                    tracing::error!(backend = name, %error, "replay panicked and is started again");
                    drop(myself.send_message(RecoveryMessage::ReplayEnded(entry)));
                }
                // It was stopped with the actor, or the daemon is stopping.
                Ok(()) | Err(_) => {}
            }
        });
    }

    /// Asks the backends to go half-open, each after those that it depends on; waits for none of them
    /// to recover.
    fn recover(&self, only: Option<BackendEntry>, reply: RpcReplyPort<Vec<String>>) {
        let order = match only {
            Some(entry) => vec![entry],
            None => dependencies_first(&self.args.entries),
        };
        tokio::spawn(async move {
            let mut recovered = Vec::new();
            for entry in order {
                let Some(actor) = entry.actor.load_full() else { continue };
                let timeout = Some(Duration::from_secs(5));
                if let Ok(ractor::rpc::CallResult::Success(true)) =
                    actor.call(BackendMessage::Recover, timeout).await
                {
                    recovered.push(entry.shared.circuit.name.clone());
                }
            }
            answer(reply, recovered);
        });
    }
}

/// The backends, each after those that it depends on. The configuration refuses cycles.
pub(crate) fn dependencies_first(entries: &[BackendEntry]) -> Vec<BackendEntry> {
    let mut placed = BTreeSet::new();
    let mut order: Vec<BackendEntry> = Vec::with_capacity(entries.len());
    while order.len() < entries.len() {
        let before = order.len();
        for entry in entries {
            let settings = entry.shared.circuit.settings.load();
            let ready = settings.depends_on.iter().all(|name| placed.contains(name));
            if ready && placed.insert(settings.name.clone()) {
                order.push(entry.clone());
            }
        }
        if order.len() == before {
            // A cycle, which cannot be: take the rest as it comes rather than loop.
            let rest = entries.iter().filter(|it| !placed.contains(&it.shared.circuit.name));
            order.extend(rest.cloned().collect::<Vec<_>>());
        }
    }
    order
}

fn target(shared: &BackendShared) -> Target {
    SharedConnector::clone(&shared.connector.load()).target()
}

/// Gives a backend's cache a place on the disk for large replies.
pub(crate) fn shelve(shared: &BackendShared, state_dir: &Path) {
    let settings = shared.circuit.settings.load();
    let dir = match &settings.cache_dir {
        Some(dir) => dir.join(format!("{}.results", settings.name)),
        None => state_dir.join("results").join(&settings.name),
    };
    shared.cache.load().set_shelf(Arc::new(Shelf::new(ShelfSettings {
        dir,
        lasts: settings.cache_dir.is_some(),
        bytes: settings.cache.disk_bytes,
        floor: settings.disk_floor,
    })));
}

/// Writes the cache's snapshot. Blocks.
pub(crate) fn save_cache(shared: &BackendShared) {
    let settings = shared.circuit.settings.load();
    let Some(dir) = &settings.cache_dir else { return };
    let clock = shared.circuit.clock;
    let entries: Vec<_> = shared
        .cache
        .load()
        .entries()
        .into_iter()
        .filter_map(|(lane, read)| {
            // What lies in a file is there already.
            let value = read.value.in_memory()?;
            let at = clock.to_unix(read.stored_at);
            let until = read.until.map(|until| clock.to_unix(until));
            Some(CacheEntry { lane, key: read.key, value, at, until, outlasts: read.outlasts })
        })
        .collect();
    let file = dir.join(format!("{}.cache", settings.name));
    if let Err(error) = cache_file::save(&file, &target(shared), entries) {
        tracing::warn!(backend = settings.name, %error, "the cache's snapshot was not written");
    }
}

/// Takes back the cache's snapshot of an earlier run. Blocks.
pub(crate) fn load_cache(shared: &BackendShared) {
    let clock = shared.circuit.clock;
    let cache = shared.cache.load_full();
    let restored = |lane, key, value, at, until: Option<UnixMillis>| {
        let (now, unix) = (clock.now(), clock.unix());
        let stored_at = now.minus(unix.since(at));
        let until = until.map(|until| now.plus(until.since(unix)));
        (lane, CachedRead { key, value, stored_at, restored: true, until, outlasts: false })
    };
    if let Some(shelf) = cache.shelf() {
        let entries = shelf.restore(&target(shared));
        cache.restore(entries.into_iter().map(|(label, file)| {
            restored(label.lane, label.key, Value::File(file), label.at, label.until)
        }));
    }
    let settings = shared.circuit.settings.load();
    let Some(dir) = &settings.cache_dir else { return };
    let file = dir.join(format!("{}.cache", settings.name));
    match cache_file::load(&file, &target(shared)) {
        Ok(entries) => cache.restore(entries.into_iter().map(|entry| {
            let CacheEntry { lane, key, value, at, until, outlasts } = entry;
            let (lane, read) = restored(lane, key, Value::Memory(value), at, until);
            (lane, CachedRead { outlasts, ..read })
        })),
        Err(error) => {
            tracing::warn!(backend = settings.name, %error, "the cache's snapshot was not read");
        }
    }
}
