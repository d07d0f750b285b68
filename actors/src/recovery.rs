//! The recovery actor: drives replay, runs the background maintenance, forces recoveries.
//!
//! ```text
//!  cron (tokio-cron-scheduler) --cast--> SweepDue, ReportDue, NudgeDue
//!  timers ----------------------------> SnapshotDue, StartUpDue
//!  operator --------------------------> Recover
//!  replay task (one per backend) --ends--> ReplayEnded --> started again
//! ```
//!
//! **The one rule that a maintainer might break:** no guarantee rests on cron. It follows the wall
//! clock, does not guard against overlap and forgets a stalled repeated job; here a job only casts a
//! message, and what it brings about would happen without it, only later.

use std::{sync::Arc, time::Duration};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_cron_scheduler::JobScheduler;

use crate::{
    backend::{BackendMessage, answer},
    backend_entry::BackendEntry,
    backend_shared::BackendShared,
    event::EventBus,
    kept_cache,
    roster::Roster,
    system::SystemFlags,
};

mod jobs;
mod message;
pub(crate) mod replay;

pub use message::RecoveryMessage;

/// How often a cache is written to its file.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(30);
/// How often it is looked whether programs ask for something else when they start.
const START_UP_EVERY: Duration = Duration::from_secs(1);
/// When a replay task that ended is started again.
const REPLAY_AGAIN: Duration = Duration::from_secs(1);

/// The actor.
pub struct RecoveryActor;

/// What it starts from.
pub struct RecoveryArgs {
    /// The backends, in the order of the configuration.
    pub entries: Arc<Roster>,
    /// Receives the events.
    pub bus: EventBus,
    /// The system state.
    pub flags: SystemFlags,
    /// Whether maintenance is scheduled; nothing rests on it.
    pub has_cron: bool,
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
        let scheduler = if args.has_cron { scheduled(&myself).await } else { None };
        let entries = Arc::clone(&args.entries);
        let mut state = RecoveryState { args, scheduler, replays: Vec::new() };
        for entry in entries.iter() {
            state.replay_due(&myself, entry.clone());
        }
        drop(myself.send_interval(SNAPSHOT_EVERY, || RecoveryMessage::SnapshotDue));
        drop(myself.send_interval(START_UP_EVERY, || RecoveryMessage::StartUpDue));
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
            RecoveryMessage::SnapshotDue => state.snapshot_due(|shared| {
                // Else what is to be kept is written when it changes.
                shared.circuit.settings.load().cache_dir.is_some()
            }),
            RecoveryMessage::StartUpDue => state.snapshot_due(kept_cache::is_due),
            RecoveryMessage::ReplayEnded(entry) => {
                drop(myself.send_after(REPLAY_AGAIN, move || RecoveryMessage::ReplayDue(entry)));
            }
            RecoveryMessage::ReplayDue(entry) => state.replay_due(&myself, entry),
            RecoveryMessage::Recover { only, reply } => state.recover(only, reply),
        }
        Ok(())
    }
}

/// The scheduler of the maintenance jobs, if it starts.
async fn scheduled(myself: &ActorRef<RecoveryMessage>) -> Option<JobScheduler> {
    let scheduler = jobs::schedule(myself).await;
    scheduler
        .inspect_err(|error| tracing::error!(%error, "maintenance jobs are not scheduled"))
        .ok()
}

impl RecoveryState {
    fn sweep_due(&self) {
        for entry in self.args.entries.iter() {
            let shared = &entry.shared;
            let dropped = shared.cache.load().sweep(shared.circuit.clock.now());
            if dropped > 0 {
                tracing::debug!(
                    backend = shared.circuit.name,
                    dropped,
                    "removed expired entries from the cache"
                );
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

    fn snapshot_due(&self, is_due: impl Fn(&BackendShared) -> bool) {
        for entry in self.args.entries.iter().filter(|entry| is_due(&entry.shared)) {
            let shared = Arc::clone(&entry.shared);
            let ground = shared.queue.ground().clone();
            ground.run(move || kept_cache::save(&shared));
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
                    tracing::error!(backend = name, %error, "replay panicked and is restarted");
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
            None => self.args.entries.dependencies_first(),
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
