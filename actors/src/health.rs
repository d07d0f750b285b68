//! The health actor: starts and supervises the others, sends the pings, computes the system state.
//!
//! ```text
//!              +--spawn, restart--> backend (one each) --BackendChanged--+
//!   health ----+--spawn, restart--> recovery                             |
//!     ^  ^     +--PingDue--> task: connector.ping --Pinged--+            |
//!     |  +--------------------------------------------------+------------+
//!     +-- LookDue, every second: heartbeat, system state
//!     +-- WatchDue, four times a second: is an attempt overdue?
//! ```
//!
//! Pings are in `health/pings.rs`, who is down for whose sake is in `health/causes.rs`, and what tells that a backend
//! does not answer in `health/watch.rs`.
//!
//! An actor that panics is restarted with backoff; five restarts within a minute mark its backend down
//! and leave the others running. If health itself dies, the process must exit.
//!
//! **The one rule that a maintainer might break:** a ping runs in a task and reports by message; health
//! never waits for a backend.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fusebox_state::{
    Moment,
    chaos::Faults,
    dependencies::{Causes, Findings},
    system::{Assessment, BackendCondition, HOLD, SystemState, Tracker, assess},
};
use parking_lot::RwLock;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};

use crate::{
    alert::Alert,
    backend::{BackendActor, BackendArgs, BackendChanged, BackendMessage, answer},
    backend_entry::BackendEntry,
    backend_shared::BackendShared,
    clock::Clock,
    event::{EventBus, EventKind},
    recovery::{RecoveryActor, RecoveryArgs, RecoveryMessage},
    roster::Roster,
    settings::PingSettings,
    system::SystemFlags,
};

/// How often health looks around.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The least and the longest that an attempt waits for its answer without being overdue.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Restarts within [`RESTART_WINDOW`] after which an actor is given up on.
const RESTARTS_MAX: usize = 5;
/// When an actor that did not start is started again.
const START_AGAIN: Duration = Duration::from_secs(1);
/// The window over which restarts are counted.
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// The first restart's backoff; doubles up to 32 times that.
const RESTART_BACKOFF: Duration = Duration::from_millis(50);

mod causes;
mod chaos;
mod pings;
mod watch;

/// A message to health.
#[derive(Debug)]
pub enum HealthMessage {
    /// It is time to look around.
    LookDue,
    /// A better system state may have held for long enough.
    HoldOver,
    /// It is time to look for attempts that are overdue.
    WatchDue,
    /// It is time to ping a backend; of an older generation it is ignored.
    PingDue {
        /// The backend.
        backend: BackendEntry,
        /// The generation of its ping timer.
        generation: u64,
    },
    /// A ping ended.
    Pinged {
        /// The backend.
        backend: BackendEntry,
        /// Whether it was answered; `None` if none was sent.
        answered: Option<bool>,
    },
    /// A backend changed.
    Changed(BackendChanged),
    /// A stopped actor is to be started again.
    RestartDue(Child),
    /// An operator wants an actor that was given up on back.
    Revive(BackendEntry),
    /// How backends are pinged changed.
    SetPings(PingSettings),
    /// An operator wants faults on purpose.
    SetChaos {
        /// The backend.
        backend: BackendEntry,
        /// Which.
        faults: Box<Faults>,
        /// Who.
        by: String,
        /// Answered once they are in effect, or with the reason why they cannot be.
        reply: RpcReplyPort<Result<(), String>>,
    },
    /// An operator ends them; answered with whether there were any.
    ClearChaos {
        /// The backend.
        backend: BackendEntry,
        /// Who.
        by: String,
        /// Answered once they have ended.
        reply: RpcReplyPort<bool>,
    },
    /// The time of faults on purpose is over, perhaps.
    ChaosDue,
}

impl From<BackendChanged> for HealthMessage {
    fn from(changed: BackendChanged) -> Self {
        Self::Changed(changed)
    }
}

impl TryFrom<HealthMessage> for BackendChanged {
    type Error = ();

    fn try_from(message: HealthMessage) -> Result<Self, ()> {
        match message {
            HealthMessage::Changed(changed) => Ok(changed),
            _ => Err(()),
        }
    }
}

/// An actor that health supervises.
#[derive(Clone, Debug)]
pub enum Child {
    /// A backend.
    Backend(BackendEntry),
    /// Recovery.
    Recovery,
}

/// What health last found; read by doors.
#[derive(Clone, Debug)]
pub struct Found {
    /// The assessment of the moment.
    pub assessment: Assessment,
    /// The state that holds.
    pub state: SystemState,
    /// Since when.
    pub since: Moment,
}

/// Receives what health finds.
pub struct HealthBoard {
    /// What it last found.
    pub found: RwLock<Found>,
    heartbeat: AtomicU64,
}

impl HealthBoard {
    /// A board on which nothing is amiss.
    pub fn new(now: Moment) -> Self {
        Self {
            found: RwLock::new(Found {
                assessment: assess(&[], &Findings::default()),
                state: SystemState::Healthy,
                since: now,
            }),
            heartbeat: AtomicU64::new(now.as_millis()),
        }
    }

    /// When health last looked around.
    pub fn heartbeat(&self) -> Moment {
        Moment::from_millis(self.heartbeat.load(Ordering::Relaxed))
    }
}

/// The actor.
pub struct HealthActor;

/// What it starts from.
pub struct HealthArgs {
    /// The backends, in the order of the configuration.
    pub entries: Arc<Roster>,
    /// Receives the events.
    pub bus: EventBus,
    /// The system state, which health alone writes.
    pub flags: SystemFlags,
    /// Receives what it finds.
    pub board: Arc<HealthBoard>,
    /// How backends are pinged.
    pub pings: PingSettings,
    /// The recovery actor's reference, kept up to date.
    pub recovery: Arc<arc_swap::ArcSwapOption<ActorRef<RecoveryMessage>>>,
    /// The clocks.
    pub clock: Clock,
    /// Whether maintenance is scheduled.
    pub has_cron: bool,
}

struct Watched {
    backend: BackendEntry,
    /// That of its ping timer.
    generation: u64,
    pinging: bool,
    /// When the last ping was sent, when it ended, and how: see [`HealthMessage::Pinged`].
    pinged_at: Moment,
    ended_at: Moment,
    answered: Option<bool>,
    /// When the next one is sent.
    due: Moment,
    /// How long an attempt waits for its answer without being overdue.
    patience: Duration,
    restarts: VecDeque<Moment>,
}

/// Its own.
pub struct HealthState {
    args: HealthArgs,
    watched: Vec<Watched>,
    recovery_restarts: VecDeque<Moment>,
    tracker: Tracker,
    causes: Causes,
}

impl Actor for HealthActor {
    type Msg = HealthMessage;
    type State = HealthState;
    type Arguments = HealthArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<HealthMessage>,
        args: HealthArgs,
    ) -> Result<HealthState, ActorProcessingErr> {
        let now = args.clock.now();
        let watched = args
            .entries
            .iter()
            .map(|backend| Watched {
                backend: backend.clone(),
                generation: 0,
                pinging: false,
                pinged_at: now,
                ended_at: now,
                answered: None,
                due: now,
                patience: PATIENCE.1,
                restarts: VecDeque::new(),
            })
            .collect();
        let mut state = HealthState {
            args,
            watched,
            recovery_restarts: VecDeque::new(),
            tracker: Tracker::default(),
            causes: Causes::default(),
        };
        let backends = Arc::clone(&state.args.entries);
        for backend in backends.iter() {
            state.start_backend(&myself, backend).await?;
            state.ping_in(&myself, backend, Duration::ZERO);
        }
        state.start_recovery(&myself).await?;
        state.look(&myself);
        state.watch(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<HealthMessage>,
        message: HealthMessage,
        state: &mut HealthState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HealthMessage::LookDue => state.look(&myself),
            HealthMessage::HoldOver | HealthMessage::ChaosDue => state.assess(&myself),
            HealthMessage::WatchDue => state.watch(&myself),
            HealthMessage::PingDue { backend, generation } => {
                state.ping_due(&myself, &backend, generation);
            }
            HealthMessage::Pinged { backend, answered } => {
                state.pinged(&myself, &backend, answered);
            }
            HealthMessage::Changed(changed) => state.changed(&myself, &changed),
            HealthMessage::RestartDue(child) => state.restart(&myself, child).await,
            HealthMessage::Revive(backend) => state.revive(&myself, backend).await,
            HealthMessage::SetPings(pings) => state.set_pings(&myself, pings),
            HealthMessage::SetChaos { backend, faults, by, reply } => {
                answer(reply, state.set_chaos(&myself, &backend, *faults, by));
            }
            HealthMessage::ClearChaos { backend, by, reply } => {
                answer(reply, state.clear_chaos(&myself, &backend, by));
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<HealthMessage>,
        event: SupervisionEvent,
        state: &mut HealthState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                state.stopped(&myself, cell.get_id(), &error.to_string());
            }
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                let reason = reason.unwrap_or_else(|| "it stopped".to_owned());
                state.stopped(&myself, cell.get_id(), &reason);
            }
            _ => {}
        }
        Ok(())
    }
}

/// What got worse is bad news; what got better is its end.
fn tell_change(from: SystemState, to: SystemState, reasons: &str) {
    let (was, is) = (from.as_str(), to.as_str());
    if to < from {
        tracing::info!(from = was, to = is, reasons, "the system changed its state");
    } else if to >= SystemState::Critical {
        tracing::error!(from = was, to = is, reasons, "the system changed its state");
    } else {
        tracing::warn!(from = was, to = is, reasons, "the system changed its state");
    }
}

impl HealthState {
    /// Computes the system state and says that health lives.
    fn look(&mut self, myself: &ActorRef<HealthMessage>) {
        drop(myself.send_after(LOOK_EVERY, || HealthMessage::LookDue));
        for watched in &mut self.watched {
            watched.backend.shared.keep_sample();
            watched.learn(watched.backend.shared.recent_p99());
        }
        self.assess(myself);
    }

    fn assess(&mut self, myself: &ActorRef<HealthMessage>) {
        let now = self.args.clock.now();
        self.args.board.heartbeat.store(now.as_millis(), Ordering::Relaxed);
        let findings = self.find_causes(now);
        let conditions: Vec<_> =
            self.args.entries.iter().map(|entry| condition(&entry.shared)).collect();
        let assessment = assess(&conditions, &findings);
        let change = self.tracker.observe(assessment.state, now);
        let state = self.tracker.state();
        let chaos = self.judge_chaos(state, &conditions, now);
        self.cap_open_times();
        self.retime_pings(myself);
        if let Some(wait) = self.tracker.next_look().map(|at| at.since(now))
            && wait < LOOK_EVERY
        {
            drop(myself.send_after(wait, || HealthMessage::HoldOver));
        }
        {
            let mut found = self.args.board.found.write();
            found.assessment = assessment.clone();
            if assessment.state < state {
                let (held, better) = (state.as_str(), assessment.state.as_str());
                let reason = format!(
                    "the state stays {held} until it would have been {better} for {} s",
                    HOLD.as_secs()
                );
                found.assessment.reasons.push(reason);
            }
            found.assessment.reasons.extend(chaos);
            if change.is_some() {
                found.state = state;
                found.since = now;
            }
        }
        let Some(change) = change else { return };
        self.args.flags.set_state(state);
        let reasons = assessment.reasons;
        tell_change(change.from, state, &reasons.join("; "));
        let kind = EventKind::SystemState { from: change.from, to: state, reasons };
        self.args.bus.publish(self.args.clock.unix(), None, kind);
    }

    /// Whether the system is CRITICAL, or worse: the time for emergency recovery.
    fn is_critical(&self) -> bool {
        self.tracker.state() >= SystemState::Critical
    }

    /// Emergency recovery: while the system is CRITICAL, critical backends stay open no longer than
    /// the first time. Looked at each time, so that no change of a setting is missed.
    fn cap_open_times(&self) {
        for entry in self.args.entries.iter() {
            let circuit = &entry.shared.circuit;
            circuit.cap_open_time(self.is_critical() && circuit.settings.load().critical);
        }
    }

    /// What is kept of a backend.
    fn watched(&mut self, backend: &BackendEntry) -> Option<&mut Watched> {
        self.watched.iter_mut().find(|watched| watched.backend.is(&backend.shared))
    }

    fn changed(&mut self, myself: &ActorRef<HealthMessage>, changed: &BackendChanged) {
        let (_, offline) = changed.backend.circuit.breaker.state();
        let entries = Arc::clone(&self.args.entries);
        if let Some(backend) = entries.iter().find(|entry| entry.is(&changed.backend))
            && (changed.half_open || !offline)
        {
            self.ping_in(myself, backend, Duration::ZERO);
        }
        self.assess(myself);
    }

    async fn start_backend(
        &mut self,
        myself: &ActorRef<HealthMessage>,
        backend: &BackendEntry,
    ) -> Result<(), ActorProcessingErr> {
        let args = BackendArgs {
            shared: Arc::clone(&backend.shared),
            bus: self.args.bus.clone(),
            listener: myself.get_derived(),
        };
        // Without a name: several cores may live in one process, and names are the process's.
        let (actor, _) = Actor::spawn_linked(None, BackendActor, args, myself.get_cell()).await?;
        backend.actor.store(Some(Arc::new(actor)));
        Ok(())
    }

    async fn start_recovery(
        &mut self,
        myself: &ActorRef<HealthMessage>,
    ) -> Result<(), ActorProcessingErr> {
        let args = RecoveryArgs {
            entries: Arc::clone(&self.args.entries),
            bus: self.args.bus.clone(),
            flags: self.args.flags.clone(),
            has_cron: self.args.has_cron,
        };
        let (actor, _) = Actor::spawn_linked(None, RecoveryActor, args, myself.get_cell()).await?;
        self.args.recovery.store(Some(Arc::new(actor)));
        Ok(())
    }

    /// A child stopped: it is started again after a backoff, or given up on.
    fn stopped(&mut self, myself: &ActorRef<HealthMessage>, id: ractor::ActorId, why: &str) {
        if self.args.flags.is_draining() {
            return;
        }
        let is = |actor: &ActorRef<BackendMessage>| actor.get_id() == id;
        let is_one = |it: &&mut Watched| it.backend.actor.load().as_deref().is_some_and(is);
        let watched = self.watched.iter_mut().find(is_one);
        let recovery = self.args.recovery.load().as_deref().is_some_and(|it| it.get_id() == id);
        let (child, restarts) = match watched {
            Some(watched) => (Child::Backend(watched.backend.clone()), &mut watched.restarts),
            None if recovery => (Child::Recovery, &mut self.recovery_restarts),
            None => return,
        };
        let now = self.args.clock.now();
        restarts.retain(|then| now.since(*then) < RESTART_WINDOW);
        let count = restarts.len();
        let name = match &child {
            Child::Backend(backend) if count >= RESTARTS_MAX => {
                self.give_up(myself, backend, why);
                return;
            }
            Child::Backend(backend) => backend.name().to_owned(),
            Child::Recovery => "recovery".to_owned(),
        };
        restarts.push_back(now);
        tracing::error!(actor = name, why, "an actor failed and is restarted");
        self.publish_actor(&name, format!("it failed ({why}) and is restarted"));
        let wait = RESTART_BACKOFF * (1 << count.min(5));
        drop(myself.send_after(wait, move || HealthMessage::RestartDue(child)));
    }

    fn give_up(&mut self, myself: &ActorRef<HealthMessage>, backend: &BackendEntry, why: &str) {
        let name = backend.name();
        backend.actor.store(None);
        backend.shared.circuit.hold(|holds| holds.given_up = true);
        let message = format!(
            "its actor failed {RESTARTS_MAX} times within a minute ({why}) and the backend is marked \
             down: `fusebox online {name}` brings it back"
        );
        tracing::error!(backend = name, message);
        backend.shared.queue.alert(Alert::Actor, Some(message.clone().into()));
        self.publish_actor(name, message);
        self.assess(myself);
    }

    fn publish_actor(&self, name: &str, message: String) {
        let kind = EventKind::Actor { message };
        self.args.bus.publish(self.args.clock.unix(), Some(name), kind);
    }

    async fn restart(&mut self, myself: &ActorRef<HealthMessage>, child: Child) {
        let started = match &child {
            Child::Backend(backend) => {
                backend.shared.circuit.restarts.fetch_add(1, Ordering::Relaxed);
                self.start_backend(myself, backend).await
            }
            Child::Recovery => self.start_recovery(myself).await,
        };
        if let Err(error) = started {
            tracing::error!(?child, %error, "an actor did not start");
            drop(myself.send_after(START_AGAIN, move || HealthMessage::RestartDue(child)));
        }
    }

    async fn revive(&mut self, myself: &ActorRef<HealthMessage>, backend: BackendEntry) {
        if backend.actor.load().is_some() {
            return;
        }
        backend.shared.queue.alert(Alert::Actor, None);
        backend.shared.circuit.hold(|holds| holds.given_up = false);
        if let Some(watched) = self.watched(&backend) {
            watched.restarts.clear();
        }
        self.restart(myself, Child::Backend(backend)).await;
    }
}

/// What the system state needs to know of a backend.
pub(crate) fn condition(shared: &BackendShared) -> BackendCondition {
    let circuit = &shared.circuit;
    let (state, offline) = circuit.breaker.state();
    let forced = circuit.breaker.forced_since().is_some();
    let is_opening = circuit.holds().opening;
    let cause = match (offline, forced) {
        (true, _) if is_opening => "its queue is being opened".to_owned(),
        (true, _) => "offline".to_owned(),
        (false, true) => format!("{}, forced", state.as_str()),
        (false, false) => state.as_str().to_owned(),
    };
    let index = shared.queue.index();
    let (full, queue_percent) = (index.is_full() || index.dead_full(1), index.fill_percent());
    drop(index);
    BackendCondition {
        name: circuit.name.clone(),
        critical: circuit.settings.load().critical,
        operational: circuit.breaker.is_operational(),
        cause,
        full,
        queue_percent,
        store_trouble: shared
            .queue
            .refuses()
            // While it is being opened, it says so already that its backend is down.
            .filter(|_| !is_opening)
            .map(|why| format!("refuses writes: {why}"))
            .or_else(|| shared.queue.damage()),
    }
}
