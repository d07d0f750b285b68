//! The actor of one backend.
//!
//! ```text
//!  calls --(outbox)--> OutboxFilled ---+--> log, event, history, breaker memory --> store
//!  timer ------------> TickDue --------+--> health hears of it
//!  operator ---------> Force, Release, Reset, Recover, SetOffline
//! ```
//!
//! It owns the circuit, the cache and the queue that calls borrow: it alone forces and resets, and keeps the
//! breaker's timers. All of that, settings included, outlives an incarnation of the actor, so a
//! restart reopens nothing and loses nothing; transitions that happen meanwhile are in the outbox.
//!
//! **The one rule that a maintainer might break:** nothing in `handle` waits. What must be synced before
//! an order is answered is waited for in a task.

use std::{fmt, sync::Arc, time::Duration};

use fusebox_state::{
    Moment, UnixMillis,
    breaker::{Reason, State, Transition, TransitionRecord},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef, RpcReplyPort};
use tokio::task::JoinHandle;

use crate::{
    backend_shared::BackendShared,
    event::{EventBus, EventKind},
};

/// How often a half-open breaker is looked at: its probes come and go without a word.
const HALF_OPEN_LOOK: Duration = Duration::from_millis(500);

/// The messages of a backend's actor.
#[derive(Debug)]
pub enum BackendMessage {
    /// There are transitions in the outbox, or what its timers follow has changed.
    OutboxFilled,
    /// Time has made something due.
    TickDue,
    /// Forces the breaker.
    Force {
        /// Open, or else closed.
        open: bool,
        /// Who said why.
        reason: String,
        /// Until when; `None` is until released.
        lasting: Option<Duration>,
        /// Answered once it is remembered, or with why it is not.
        reply: RpcReplyPort<Result<(), String>>,
    },
    /// Lifts a force; answers, once that is remembered, whether there was one.
    Release(RpcReplyPort<Result<bool, String>>),
    /// Closes the breaker and forgets what led to its state; answered once that is remembered.
    Reset(RpcReplyPort<Result<(), String>>),
    /// Goes half-open now; answers whether it did.
    Recover(RpcReplyPort<bool>),
    /// What it depends on is back: goes half-open, unless it may not by itself.
    DependencyReturned,
    /// Goes offline or comes back; answered once that is synced, or why it is not.
    SetOffline {
        /// Offline, or else online.
        offline: bool,
        /// Answered once it is remembered.
        reply: RpcReplyPort<Result<(), String>>,
    },
    /// Panics: a hook for tests of supervision.
    Panic,
}

/// What the actor of a backend tells whoever started it.
#[derive(Clone)]
pub struct BackendChanged {
    /// The backend.
    pub backend: Arc<BackendShared>,
    /// It went half-open: a ping may serve as a probe.
    pub half_open: bool,
}

impl fmt::Debug for BackendChanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendChanged")
            .field("backend", &self.backend.circuit.name)
            .field("half_open", &self.half_open)
            .finish()
    }
}

/// The actor.
pub struct BackendActor;

/// What an incarnation is lent.
pub struct BackendArgs {
    /// What calls borrow.
    pub shared: Arc<BackendShared>,
    /// Receives the events.
    pub bus: EventBus,
    /// Who hears of changes.
    pub listener: DerivedActorRef<BackendChanged>,
}

/// An incarnation's own.
pub struct BackendState {
    args: BackendArgs,
    tick: Option<JoinHandle<Result<(), ractor::MessagingErr<BackendMessage>>>>,
    watch: JoinHandle<()>,
}

impl Drop for BackendState {
    /// Also after a panic: what an incarnation leaves waiting would take the word from the next one.
    fn drop(&mut self) {
        self.watch.abort();
        if let Some(tick) = self.tick.take() {
            tick.abort();
        }
    }
}

impl Actor for BackendActor {
    type Msg = BackendMessage;
    type State = BackendState;
    type Arguments = BackendArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<BackendMessage>,
        args: BackendArgs,
    ) -> Result<BackendState, ActorProcessingErr> {
        let watch = tokio::spawn(pass_on(Arc::clone(&args.shared), myself.clone()));
        let mut state = BackendState { args, tick: None, watch };
        state.catch_up(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<BackendMessage>,
        message: BackendMessage,
        state: &mut BackendState,
    ) -> Result<(), ActorProcessingErr> {
        let now = state.args.shared.circuit.clock.now();
        match message {
            BackendMessage::OutboxFilled => state.drain_outbox(),
            BackendMessage::TickDue => state.tick_due(now),
            BackendMessage::Force { open, reason, lasting, reply } => {
                state.force(open, reason, lasting, now);
                state.drain_outbox();
                state.remember(move |result| answer(reply, result));
            }
            BackendMessage::Release(reply) => {
                let released = state.release(now);
                state.drain_outbox();
                if released {
                    state.remember(move |result| answer(reply, result.map(|()| true)));
                } else {
                    answer(reply, Ok(false));
                }
            }
            BackendMessage::Reset(reply) => {
                state.reset(now);
                state.drain_outbox();
                state.remember(move |result| answer(reply, result));
            }
            // Published before it is answered: the next in a round of recoveries is published later.
            BackendMessage::Recover(reply) => {
                let tried = state.recover(now);
                state.drain_outbox();
                answer(reply, tried);
            }
            BackendMessage::DependencyReturned => state.dependency_returned(now),
            BackendMessage::SetOffline { offline, reply } => state.set_offline(offline, reply),
            BackendMessage::Panic => panic_for_test(),
        }
        state.catch_up(&myself);
        Ok(())
    }
}

impl BackendState {
    /// Does what follows from what calls, settings and time have done to the circuit.
    fn catch_up(&mut self, myself: &ActorRef<BackendMessage>) {
        self.drain_outbox();
        if self.args.shared.circuit.breaker.take_unremembered() {
            self.remember(|_| ());
        }
        self.rearm(myself);
    }

    /// Publishes the contents of the outbox: log, event, history, memory, listener.
    fn drain_outbox(&mut self) {
        let told = self.args.shared.circuit.drain_outbox();
        if told.is_empty() {
            return;
        }
        let half_open = told.last().is_some_and(|(_, last)| last.to == State::HalfOpen);
        for (at, transition) in told {
            self.make_known(at, transition);
        }
        self.remember(|_| ());
        self.changed(half_open);
    }

    fn tick_due(&mut self, now: Moment) {
        let circuit = &self.args.shared.circuit;
        if let Some(transition) = circuit.breaker.tick(now) {
            circuit.publish(transition);
        }
    }

    fn force(&mut self, open: bool, reason: String, lasting: Option<Duration>, now: Moment) {
        let circuit = &self.args.shared.circuit;
        let until = lasting.map(|lasting| now.plus(lasting));
        circuit.publish(circuit.breaker.force(open, reason, until, now));
    }

    fn release(&mut self, now: Moment) -> bool {
        let circuit = &self.args.shared.circuit;
        let transition = circuit.breaker.release(now);
        transition.map(|transition| circuit.publish(transition)).is_some()
    }

    fn reset(&mut self, now: Moment) {
        let circuit = &self.args.shared.circuit;
        circuit.publish(circuit.breaker.reset(now));
    }

    fn recover(&mut self, now: Moment) -> bool {
        let circuit = &self.args.shared.circuit;
        let transition = circuit.breaker.recover(now);
        transition.map(|transition| circuit.publish(transition)).is_some()
    }

    fn dependency_returned(&mut self, now: Moment) {
        let circuit = &self.args.shared.circuit;
        if let Some(transition) = circuit.breaker.dependency_returned(now) {
            circuit.publish(transition);
        }
    }

    fn set_offline(&mut self, offline: bool, reply: RpcReplyPort<Result<(), String>>) {
        let circuit = &self.args.shared.circuit;
        let changed = circuit.hold(|holds| {
            (holds.operator, holds.ordered) = (offline, true);
            holds.given_up &= offline;
        });
        if changed {
            let (backend, at) = (circuit.name.as_str(), circuit.clock.unix());
            if offline {
                tracing::warn!(backend, "an operator took the backend offline");
            } else {
                tracing::info!(backend, "an operator took the backend online");
            }
            self.args.bus.publish(at, Some(backend), EventKind::Offline { offline });
            if circuit.breaker.state().0 == State::Closed {
                self.tell_fallback(at, offline);
            }
        }
        self.remember(move |result| answer(reply, result));
        self.changed(false);
    }

    fn make_known(&self, at: UnixMillis, transition: Transition) {
        let shared = &self.args.shared;
        let metrics = &shared.circuit.metrics;
        // What an operator's order ends is no recovery, and has not failed either.
        match transition.reason {
            Reason::ProbesSucceeded => {
                metrics.recovered.inc();
            }
            Reason::ProbeFailed | Reason::ProbeSlow | Reason::ProbeTimeout => {
                metrics.relapsed.inc();
            }
            _ => {}
        }
        let last_error = transition.last_errors.last().filter(|_| transition.to == State::Open);
        let last_error =
            last_error.map(|error| format!("{}: {}", error.code, error.message.said()));
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    backend = shared.circuit.name,
                    from = transition.from.as_str(),
                    to = transition.to.as_str(),
                    reason = transition.reason.as_str(),
                    failures = transition.failures,
                    calls = transition.calls,
                    note = transition.note,
                    error = last_error,
                    "the breaker changed its state"
                )
            };
        }
        match transition.to {
            State::Open => log!(warn),
            State::HalfOpen | State::Closed => log!(info),
        }
        let crosses = (transition.from == State::Closed) != (transition.to == State::Closed);
        if crosses && !shared.circuit.breaker.state().1 {
            self.tell_fallback(at, transition.to != State::Closed);
        }
        let name = Some(shared.circuit.name.as_str());
        let record = TransitionRecord { at, transition };
        let kept = crate::history::encode(&record);
        if let Ok(store) = shared.queue.store() {
            store.add_history(kept.clone());
        }
        shared.queue.history.add(kept);
        self.args.bus.publish(at, name, EventKind::Transition { transition: record.transition });
    }

    /// Fallbacks begin, or cease, to answer instead of the backend: it is not operational, or is again.
    fn tell_fallback(&self, at: UnixMillis, active: bool) {
        let backend = self.args.shared.circuit.name.as_str();
        if active {
            tracing::warn!(backend, "fallbacks answer instead of the backend");
        } else {
            tracing::info!(backend, "fallbacks no longer answer instead of the backend");
        }
        self.args.bus.publish(at, Some(backend), EventKind::Fallback { active });
    }

    /// Writes the breaker's memory; `then` runs once it is synced, or with the reason why it cannot be.
    fn remember(&self, then: impl FnOnce(Result<(), String>) + Send + 'static) {
        self.args.shared.remember(then);
    }

    fn changed(&self, half_open: bool) {
        let changed = BackendChanged { backend: Arc::clone(&self.args.shared), half_open };
        // The listener is gone only when the process is about to be.
        drop(self.args.listener.send_message(changed));
    }

    fn rearm(&mut self, myself: &ActorRef<BackendMessage>) {
        if let Some(tick) = self.tick.take() {
            tick.abort();
        }
        let circuit = &self.args.shared.circuit;
        let now = circuit.clock.now();
        let half_open = circuit.breaker.state() == (State::HalfOpen, false);
        let look = half_open.then(|| now.plus(HALF_OPEN_LOOK));
        let next = circuit.breaker.next_tick().into_iter().chain(look).min();
        self.tick = next.map(|next| myself.send_after(next.since(now), || BackendMessage::TickDue));
    }
}

/// Tells the actor whenever something was put into the outbox, for as long as it lives.
async fn pass_on(shared: Arc<BackendShared>, actor: ActorRef<BackendMessage>) {
    loop {
        shared.circuit.outbox_filled().await;
        if actor.send_message(BackendMessage::OutboxFilled).is_err() {
            // The next incarnation looks into the outbox when it starts.
            return;
        }
    }
}

/// Answers an order whose sender may have left.
pub(crate) fn answer<T>(reply: RpcReplyPort<T>, value: T) {
    drop(reply.send(value));
}

#[expect(clippy::panic, reason = "tests of supervision need an actor that panics")]
fn panic_for_test() {
    panic!("told to panic by a test");
}
