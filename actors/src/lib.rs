//! Who acts and when.
//!
//! ```text
//!   Fusebox --start--> health --+--> backend (one each)       doors call Backend handles,
//!                               +--> recovery --> replay      which borrow what the actors own
//! ```
//!
//! Everything a call needs is in [`BackendShared`](backend_shared::BackendShared); the actors own it and outlive no
//! guarantee: what must survive an actor is in the circuit, the queue and its store. Nothing here knows sockets,
//! configuration files or a backend's protocol.

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use ractor::{Actor, ActorRef, rpc::CallResult};
use tokio::{sync::watch, task::JoinSet};

pub mod alert;
mod audience;
mod audit;
pub mod backend;
pub mod backend_entry;
mod backend_handle;
pub mod backend_shared;
pub mod call;
mod call_path;
mod chaos;
pub mod circuit;
pub mod clock;
mod compaction;
pub mod connector;
mod dependencies;
mod error_code;
pub mod event;
mod explain;
mod failures;
mod ground;
pub mod health;
mod history;
pub mod import;
mod kept_cache;
mod lenient;
mod limits;
pub mod metrics;
pub mod passage;
mod pieces;
mod prediction;
pub mod queue;
mod recent;
pub mod recovery;
mod refusal;
mod roster;
mod scrape;
pub mod settings;
mod show;
pub mod simulation;
mod start;
mod struck;
pub mod system;
mod times;
pub mod trace;
pub mod view;

use alert::Alert;
pub use audience::Open;
pub use audit::AUDIT;
use backend_entry::BackendEntry;
use backend_handle::{ADMIN_PATIENCE, failed};
pub use backend_handle::{AdminError, Backend};
pub use call::{AckLevel, Call, CallError, CallErrorKind, CallOptions, Priority, Reply, Source};
pub use call_path::{
    Admission, AnswerCopy, Fills, Instead, Onward, OtherWay, Outcome, PlainAccess, PlainPlan,
    Settled, Ticket,
};
use circuit::Circuit;
pub use clock::Clock;
use connector::SharedConnector;
pub use event::{Event, EventBus, EventKind, KeyChange, Past, PastQuery};
use ground::Ground;
use health::{HealthActor, HealthArgs, HealthBoard, HealthMessage};
use metrics::Metrics;
pub use passage::outstanding::Outstanding;
use recovery::RecoveryMessage;
pub use refusal::Barred;
use roster::Roster;
pub use settings::{
    BackendSettings, DeadLetterPolicy, PingSettings, SystemSettings, WriteFallback,
};
pub use start::BackendSpec;
use system::SystemFlags;
use trace::TraceSink;

/// What a graceful stop leaves for queueing and closing when it abandons attempts.
const CUT_RESERVE: Duration = Duration::from_secs(5);
/// How long a stop waits for connectors to be closed.
const CLOSING_MAX: Duration = Duration::from_secs(1);
/// Health has looked around within this time, or is not alive.
const HEARTBEAT_MAX: Duration = Duration::from_secs(10);

/// The daemon's core could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An actor did not start. A store that does not open stops nobody: its backend alone is refused what
    /// would be queued, until it opens.
    #[error("{0}")]
    Other(String),
}

/// The daemon's core. Cheap to clone.
#[derive(Clone)]
pub struct Fusebox(Arc<Core>);

struct Core {
    entries: Arc<Roster>,
    backends: Vec<Arc<Backend>>,
    settings: ArcSwap<SystemSettings>,
    bus: EventBus,
    flags: SystemFlags,
    metrics: Metrics,
    clock: Clock,
    ground: Ground,
    board: Arc<HealthBoard>,
    health: ActorRef<HealthMessage>,
    recovery: Arc<ArcSwapOption<ActorRef<RecoveryMessage>>>,
    failed: watch::Receiver<Option<String>>,
    stray_stores: Vec<String>,
    sink: Option<Arc<dyn TraceSink>>,
}

impl Fusebox {
    /// Opens the stores, starts the actors, begins to replay. Returns when every queue is recovered, is large and
    /// being opened in the background ([`Fusebox::is_ready`]), or its store was tried in vain: that one is tried again
    /// in the background. What calls record of themselves goes into `sink`.
    ///
    /// # Errors
    /// [`StartError`] for what stops the whole daemon; a single backend's trouble does not.
    pub async fn start(
        settings: SystemSettings,
        backends: Vec<BackendSpec>,
        sink: Option<Arc<dyn TraceSink>>,
    ) -> Result<Self, StartError> {
        Self::start_with(settings, backends, Clock::system(), sink).await
    }

    /// [`Fusebox::start`] by another clock.
    ///
    /// # Errors
    /// As [`Fusebox::start`].
    pub async fn start_with(
        settings: SystemSettings,
        backends: Vec<BackendSpec>,
        clock: Clock,
        sink: Option<Arc<dyn TraceSink>>,
    ) -> Result<Self, StartError> {
        Self::start_on(Ground::machine(clock), settings, backends, sink).await
    }

    /// [`Fusebox::start`] on another ground.
    pub(crate) async fn start_on(
        ground: Ground,
        settings: SystemSettings,
        backends: Vec<BackendSpec>,
        sink: Option<Arc<dyn TraceSink>>,
    ) -> Result<Self, StartError> {
        let (clock, dir) = (ground.clock, settings.state_dir.clone());
        let bus = if ground.is_machine() {
            ground.run(move || EventBus::open(&dir)).await.unwrap_or_default()
        } else {
            EventBus::default()
        };
        let (flags, metrics) = (SystemFlags::default(), Metrics::new(clock));
        let mut entries = Vec::with_capacity(backends.len());
        for spec in backends {
            let shared = start::lend(spec, &metrics, &ground, &bus, &flags, sink.clone());
            let shared = Arc::new(shared);
            if let Some(told) = &settings.copied {
                start::hold_copied(&shared, told);
            }
            start::open(&shared, &settings.state_dir).await;
            entries.push(BackendEntry::new(shared));
        }
        tell_daemon(&bus, clock, "started");
        let entries = Arc::new(Roster::new(entries));
        let stray_stores = start::stray_stores(&settings.state_dir, &entries);
        let board = Arc::new(HealthBoard::new(clock.now()));
        let recovery = Arc::new(ArcSwapOption::empty());
        let args = HealthArgs {
            entries: Arc::clone(&entries),
            bus: bus.clone(),
            flags: flags.clone(),
            board: Arc::clone(&board),
            pings: settings.pings,
            recovery: Arc::clone(&recovery),
            clock,
            has_cron: ground.is_machine(),
        };
        let (health, ended) = Actor::spawn(None, HealthActor, args).await.map_err(|error| {
            StartError::Other(format!("the health actor did not start: {error}"))
        })?;
        let failed = watch_health(ended, flags.clone());
        let backends = entries
            .iter()
            .map(|entry| {
                let (entries, health) = (Arc::clone(&entries), health.clone());
                Arc::new(Backend { entry: entry.clone(), entries, health })
            })
            .collect();
        Ok(Self(Arc::new(Core {
            entries,
            backends,
            settings: ArcSwap::from_pointee(settings),
            bus,
            flags,
            metrics,
            clock,
            ground,
            board,
            health,
            recovery,
            failed,
            stray_stores,
            sink,
        })))
    }

    /// The backend of that name.
    pub fn backend(&self, name: &str) -> Option<Arc<Backend>> {
        self.0.backends.iter().find(|backend| backend.name() == name).cloned()
    }

    /// Every backend, in the order of the configuration.
    pub fn backends(&self) -> Vec<Arc<Backend>> {
        self.0.backends.clone()
    }

    /// GET /health.
    pub fn health(&self) -> view::HealthView {
        let found = self.0.board.found.read().clone();
        let entries = &self.0.entries;
        view::HealthView {
            state: found.state.into(),
            operational_percent: found.assessment.operational_percent,
            reasons: found.assessment.reasons,
            backends: entries
                .iter()
                .map(|entry| (entry.shared.circuit.name.clone(), entry.shared.health_view(entries)))
                .collect(),
        }
    }

    /// GET /health/resilience.
    pub fn resilience(&self) -> view::ResilienceView {
        let found = self.0.board.found.read().clone();
        let entries = &self.0.entries;
        let mut recovery = view::RecoveryView::default();
        for entry in entries.iter() {
            let metrics = &entry.shared.circuit.metrics;
            recovery.succeeded += metrics.recovered.get();
            recovery.failed += metrics.relapsed.get();
            recovery.replayed += metrics.replayed.get();
        }
        recovery.attempts = recovery.succeeded + recovery.failed;
        view::ResilienceView {
            version: env!("CARGO_PKG_VERSION").into(),
            at: self.0.clock.unix(),
            uptime_seconds: self.0.clock.uptime().as_secs(),
            state: found.state.into(),
            since: self.0.clock.to_unix(found.since),
            reasons: found.assessment.reasons,
            operational_percent: found.assessment.operational_percent,
            active_fallbacks: entries
                .iter()
                .filter(|entry| !entry.shared.circuit.breaker.is_operational())
                .map(|entry| entry.shared.circuit.name.clone())
                .collect(),
            settings_left_out: Vec::new(),
            alert_command_fails: None,
            stray_stores: self.0.stray_stores.clone(),
            traces: self.0.sink.as_ref().map(|sink| sink.counts()),
            recovery,
            root_causes: dependencies::root_causes(entries, self.0.clock),
            doors: Vec::new(),
            backends: entries
                .iter()
                .map(|entry| (entry.shared.circuit.name.clone(), entry.shared.view(entries)))
                .collect(),
        }
    }

    /// GET /v1/dependencies.
    pub fn dependencies(&self) -> view::DependenciesView {
        dependencies::view(&self.0.entries, self.0.clock)
    }

    /// Whether the actors' own loop runs: health has looked around within the last few seconds.
    pub fn is_alive(&self) -> bool {
        self.0.clock.now().since(self.0.board.heartbeat()) < HEARTBEAT_MAX
    }

    /// Whether stores are recovered and it is not draining.
    pub fn is_ready(&self) -> bool {
        let is_opening = |entry: &BackendEntry| entry.shared.circuit.holds().opening;
        !self.0.flags.is_draining() && !self.0.entries.iter().any(is_opening)
    }

    /// What happens from now on.
    pub fn events(&self) -> &EventBus {
        &self.0.bus
    }

    /// Forces a recovery attempt of `backend`, or of every open one, dependencies first. Returns the
    /// names of those that went half-open.
    ///
    /// # Errors
    /// [`AdminError::NotFound`] for an unknown backend; [`AdminError::Failed`] if recovery does not
    /// answer.
    pub async fn recover(&self, backend: Option<&str>) -> Result<Vec<String>, AdminError> {
        let only = match backend {
            None => None,
            Some(name) => {
                let backend = self.backend(name);
                let backend =
                    backend.ok_or_else(|| AdminError::NotFound(format!("no backend {name}")))?;
                Some(backend.entry.clone())
            }
        };
        let recovery = self.0.recovery.load_full();
        let recovery = recovery.ok_or_else(|| failed("the recovery actor is not running"))?;
        let make = |reply| RecoveryMessage::Recover { only, reply };
        match recovery.call(make, Some(ADMIN_PATIENCE)).await {
            Ok(CallResult::Success(names)) => Ok(names),
            _ => Err(failed("the recovery actor did not answer")),
        }
    }

    /// The state directory is a copy, or has one: nothing is replayed until [`Fusebox::accept_clone`]. Operators
    /// see this text.
    pub fn hold_copied(&self, told: &str) {
        for entry in self.0.entries.iter() {
            start::hold_copied(&entry.shared, told);
        }
    }

    /// An operator says that this directory may replay.
    pub fn accept_clone(&self) {
        for entry in self.0.entries.iter() {
            entry.shared.circuit.hold(|holds| holds.copied = false);
            entry.shared.queue.alert(Alert::Copied, None);
            entry.shared.queue.work.notify_one();
        }
    }

    /// Takes new settings, whole or not at all: those of the whole; `exchanged` backends, with other connectors; and the
    /// settings of `retuned` ones, whose connectors and connections stay. A changed target while calls wait refuses
    /// everything. A backend that is not among them stays as it is; none can be added. One change follows another: callers
    /// see to that.
    ///
    /// # Errors
    /// [`AdminError`] says what prevents it; nothing was changed.
    pub async fn reload(
        &self,
        settings: SystemSettings,
        exchanged: Vec<BackendSpec>,
        retuned: Vec<BackendSettings>,
    ) -> Result<(), AdminError> {
        let mut all = Vec::new();
        for spec in exchanged {
            let backend = self.known(&spec.settings.name)?;
            backend.may_configure()?;
            backend.may_retarget(&spec.connector.target())?;
            all.push((backend, spec));
        }
        let retuned = self.may_retune(retuned)?;
        for (backend, spec) in all {
            backend.reconfigure(spec).await;
        }
        self.settle(settings, retuned);
        Ok(())
    }

    /// Takes new settings of the core: those of the whole, and of these backends. Connectors and connections stay.
    ///
    /// # Errors
    /// [`AdminError`] says what prevents it; nothing was changed.
    pub fn retune(
        &self,
        settings: SystemSettings,
        backends: Vec<BackendSettings>,
    ) -> Result<(), AdminError> {
        let backends = self.may_retune(backends)?;
        self.settle(settings, backends);
        Ok(())
    }

    fn may_retune(
        &self,
        backends: Vec<BackendSettings>,
    ) -> Result<Vec<(Arc<Backend>, BackendSettings)>, AdminError> {
        let known = backends.into_iter().map(|settings| {
            let backend = self.known(&settings.name)?;
            backend.may_configure()?;
            Ok((backend, settings))
        });
        known.collect()
    }

    fn known(&self, name: &str) -> Result<Arc<Backend>, AdminError> {
        self.backend(name).ok_or_else(|| {
            AdminError::Conflict(format!(
                "backends cannot be added without a restart: {name:?} is new"
            ))
        })
    }

    /// Puts settings in effect, and what follows from those of all backends together.
    fn settle(&self, settings: SystemSettings, backends: Vec<(Arc<Backend>, BackendSettings)>) {
        for (backend, settings) in backends {
            backend.configure(settings);
        }
        self.0.entries.redraw();
        drop(self.0.health.send_message(HealthMessage::SetPings(settings.pings)));
        self.0.settings.store(Arc::new(settings));
    }

    /// Counts a change of settings at run time by its result: `applied`, `refused` or `reverted`. Without a backend it
    /// is one of the settings of the whole.
    pub fn count_config_change(&self, backend: Option<&str>, result: &'static str) {
        self.0.metrics.config_changed(backend, result);
    }

    /// How many settings are changed at run time.
    pub fn set_config_overrides(&self, backend: Option<&str>, count: usize) {
        self.0.metrics.set_config_overrides(backend, count);
    }

    /// How many changes of settings at run time cannot be read, and are not in effect.
    pub fn set_config_left_out(&self, count: usize) {
        self.0.metrics.set_config_left_out(count);
    }

    /// The page of metrics, of a daemon without wire doors.
    pub fn metrics(&self, format: metrics::Format) -> String {
        self.metrics_with(format, &[])
    }

    /// The page of metrics, with what these doors show.
    pub fn metrics_with(&self, format: metrics::Format, doors: &[view::DoorStatus]) -> String {
        self.0.metrics.page(format, |metrics| {
            metrics.set_doors(doors);
            let (state, percent) = {
                let found = self.0.board.found.read();
                (found.state, found.assessment.operational_percent)
            };
            metrics.set_system(state, percent);
            dependencies::set_gauges(&self.0.entries, metrics);
            metrics.set_spans(self.0.sink.as_ref().map(|sink| sink.counts()).unwrap_or_default());
            self.0.entries.iter().for_each(|entry| entry.shared.read_gauges());
        })
    }

    /// Stops: no new calls, finishes or queues what is in flight for at most `grace`, syncs, closes.
    pub async fn shutdown(&self, grace: Duration) {
        self.0.flags.drain();
        let clock = self.0.clock;
        let start = clock.now();
        let cut_at = grace.saturating_sub(CUT_RESERVE).max(grace / 2);
        let mut poll = tokio::time::interval(Duration::from_millis(20));
        while self.under_way() > 0 && clock.now().since(start) < grace {
            poll.tick().await;
            if clock.now().since(start) >= cut_at {
                self.0.flags.cut();
            }
        }
        self.0.health.stop(None);
        self.close_connectors().await;
        self.close_stores().await;
        tell_daemon(&self.0.bus, clock, "stopped");
        let bus = self.0.bus.clone();
        drop(self.0.ground.run(move || bus.close()).await);
    }

    /// How much a stop waits for: calls, and not only their attempts, as one between two attempts or being queued is not
    /// over; and until attempts are given up, whatever else is on the wire, such as an answer that a client still reads.
    fn under_way(&self) -> u32 {
        let is_cut = self.0.flags.is_cut();
        let of_one = |circuit: &Circuit| {
            let on_the_wire = if is_cut { 0 } else { circuit.bulkhead.in_flight() };
            circuit.calls_under_way().max(on_the_wire)
        };
        self.0.entries.iter().map(|entry| of_one(&entry.shared.circuit)).sum()
    }

    /// Closes all connectors at once. One that hangs keeps no store from being closed.
    async fn close_connectors(&self) {
        let mut closing = JoinSet::new();
        for entry in self.0.entries.iter() {
            let connector = SharedConnector::clone(&entry.shared.connector.load());
            closing.spawn(async move { connector.close().await });
        }
        let closed = async { while closing.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSING_MAX, closed).await.is_err() {
            tracing::warn!("a connector was not closed in time");
        }
    }

    /// Writes down what outlives the daemon, of all backends at once: a disk that hangs holds up its own backends alone.
    async fn close_stores(&self) {
        let close = |entry: &BackendEntry| {
            let shared = Arc::clone(&entry.shared);
            self.0.ground.run(move || {
                kept_cache::save(&shared);
                shared.cache.load().shelf().into_iter().for_each(|shelf| shelf.close());
                shared.remember(|_| ());
                if let Ok(store) = shared.queue.store() {
                    store.close();
                }
            })
        };
        let closing: Vec<_> = self.0.entries.iter().map(close).collect();
        for (entry, closed) in self.0.entries.iter().zip(closing) {
            if let Err(error) = closed.await {
                tracing::error!(backend = entry.shared.circuit.name, %error, "closing failed");
            }
        }
    }

    /// Resolves when the core can no longer do its work (health itself died): the process must exit.
    pub async fn failed(&self) -> String {
        let mut failed = self.0.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

fn tell_daemon(bus: &EventBus, clock: Clock, phase: &'static str) {
    let kind = EventKind::Daemon { phase, version: env!("CARGO_PKG_VERSION") };
    bus.publish(clock.unix(), None, kind);
}

/// Tells when health ends although nobody stopped it.
fn watch_health(
    ended: tokio::task::JoinHandle<()>,
    flags: SystemFlags,
) -> watch::Receiver<Option<String>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let why = match ended.await {
            Ok(()) => "the health actor stopped".to_owned(),
            Err(error) => format!("the health actor died: {error}"),
        };
        if flags.is_draining() {
            // Keeps the channel open: a stop that was asked for is no failure.
            std::future::pending::<()>().await;
        }
        sender.send_replace(Some(why));
    });
    receiver
}

#[cfg(test)]
mod tests;
