//! What calls borrow of a backend: its breaker, bulkhead, retry budget, counters and settings.
//!
//! The backend actor owns these: it alone forces and resets, and keeps the timers. Calls touch them without a message,
//! and so does who gives them other settings. A transition that a call causes goes into the *outbox* and the
//! actor is asked to look there, so that nothing is lost while the actor restarts.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use fusebox_state::{
    Moment, Outcome, UnixMillis, Verdict,
    breaker::{Breaker, ErrorRecord, Permit, Rejected, State, Transition},
    bulkhead::Bulkhead,
    retry_budget::RetryBudget,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    chaos::Chaos,
    clock::Clock,
    connector::AttemptError,
    failures::{Failures, Run},
    limits::Limits,
    metrics::BackendMetrics,
    passage::outstanding::{GivenUp, Outstanding, Outstandings},
    prediction::Forecast,
    recent::Recent,
    refusal::Barred,
    settings::BackendSettings,
    trace::CallOrigin,
};

/// So many transitions wait for the actor.
const OUTBOX_MAX: usize = 1_024;

/// What holds a backend back; it is offline if any of these holds but [`Holds::copied`] and
/// [`Holds::ordered`].
#[expect(clippy::struct_excessive_bools, reason = "independent reasons, each with its own end")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// An operator's order; survives a restart.
    pub operator: bool,
    /// An operator has said so, or the contrary, in this run: what an earlier one remembers says nothing.
    pub ordered: bool,
    /// Calls wait for another target.
    pub retarget: bool,
    /// Its connector is being exchanged for one of another target; only within `retarget`.
    pub exchange: bool,
    /// Its actor was given up on.
    pub given_up: bool,
    /// The state directory is a copy, or has one: nothing is replayed, all else goes on.
    pub copied: bool,
    /// Its store is large and is being opened for the first time. Until then nobody knows which lanes are occupied, nor
    /// what an operator ordered before.
    pub opening: bool,
}

impl Holds {
    fn any(self) -> bool {
        self.is_offline() || self.opening
    }

    /// Whether it is held by an order, or until an operator decides: not merely for as long as its store is opened.
    pub(crate) fn is_offline(self) -> bool {
        self.operator || self.retarget || self.given_up
    }
}

/// The circuit of one backend. Outlives its actor's incarnations.
pub struct Circuit {
    /// Its name.
    pub name: String,
    /// The breaker.
    pub breaker: Breaker,
    /// The bulkhead.
    pub bulkhead: Bulkhead,
    /// The budget of retries.
    pub budget: RetryBudget,
    /// The settings in effect.
    pub settings: ArcSwap<BackendSettings>,
    /// Faults on purpose.
    pub chaos: Chaos,
    /// The counters.
    pub metrics: Arc<BackendMetrics>,
    /// The clocks.
    pub clock: Clock,
    /// Woken at every transition and change of hold: whether replay may run may have changed.
    pub changed: Notify,
    /// Woken when a write that was left on the wire has ended: what it barred may be free.
    pub landed: Notify,
    /// Restarts of the actor since the daemon's start.
    pub restarts: AtomicU32,
    /// The last minute.
    pub(crate) recent: Recent,
    failures: Failures,
    /// What adaptive limits would be.
    pub(crate) limits: Limits,
    /// Whether it is about to fail.
    pub(crate) forecast: Forecast,
    /// The attempts that have not ended.
    pub(crate) outstanding: Outstandings,
    calls: AtomicU32,
    outbox: Mutex<VecDeque<(UnixMillis, Transition)>>,
    filled: Notify,
    holds: Mutex<Holds>,
    answered_at: AtomicU64,
    /// When the newest ping was sent if nobody answered it, in milliseconds of the clock, + 1; else 0.
    unanswered: AtomicU64,
    /// Woken when a ping went unanswered.
    suspected: Notify,
    /// In milliseconds of the clock; 0 while a ping is on its way.
    next_ping: AtomicU64,
}

/// A call that has begun; dropped at its end, also if its caller leaves.
pub(crate) struct UnderWay(Arc<Circuit>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Circuit {
    /// A closed circuit.
    pub fn new(settings: BackendSettings, metrics: Arc<BackendMetrics>, clock: Clock) -> Self {
        let now = clock.now();
        Self {
            name: settings.name.clone(),
            breaker: Breaker::new(settings.breaker.clone(), fastrand::u64(..), now),
            bulkhead: Bulkhead::new(settings.in_flight_max),
            budget: RetryBudget::new(now),
            settings: ArcSwap::from_pointee(settings),
            chaos: Chaos::new(metrics.chaos.clone()),
            metrics,
            clock,
            changed: Notify::new(),
            landed: Notify::new(),
            restarts: AtomicU32::new(0),
            recent: Recent::default(),
            failures: Failures::default(),
            limits: Limits::default(),
            forecast: Forecast::default(),
            outstanding: Outstandings::new(),
            calls: AtomicU32::new(0),
            outbox: Mutex::default(),
            filled: Notify::new(),
            holds: Mutex::default(),
            answered_at: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            suspected: Notify::new(),
            next_ping: AtomicU64::new(0),
        }
    }

    /// A call is under way for as long as what is returned lives: on the wire, between two attempts, or
    /// being queued.
    pub(crate) fn call_begins(self: &Arc<Self>) -> UnderWay {
        self.calls.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Calls that have begun and not ended.
    pub(crate) fn calls_under_way(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Settles a permit, tells what it brought about, and returns the transition if there was one. `error`
    /// is remembered for `explain` if the attempt failed.
    pub fn settle(
        &self,
        permit: Permit<'_>,
        outcome: Outcome,
        error: Option<&AttemptError>,
        origin: Option<CallOrigin>,
        now: Moment,
    ) -> Option<(State, State)> {
        if outcome.verdict == Verdict::Failure
            && let Some(error) = error
        {
            self.note(error, origin);
        }
        self.record(permit, outcome, now)
    }

    /// The same for an attempt whose caller had left when it ended.
    pub(crate) fn settle_late(
        &self,
        permit: Permit<'_>,
        outcome: Outcome,
        error: Option<&AttemptError>,
        now: Moment,
    ) {
        if let Some(error) = error {
            self.note(error, None);
        }
        self.record(permit, outcome, now);
    }

    fn record(&self, permit: Permit<'_>, outcome: Outcome, now: Moment) -> Option<(State, State)> {
        if outcome.slow && outcome.verdict != Verdict::Neutral {
            self.metrics.slow.inc();
        }
        let transition = self.breaker.record(permit, outcome, now)?;
        let change = (transition.from, transition.to);
        self.publish(*transition);
        Some(change)
    }

    /// The attempts that have begun and have not ended. Cheap enough to ask every few milliseconds.
    pub fn outstanding(&self) -> Outstanding {
        // Each has a place: if there is none, the table need not be read.
        if self.bulkhead.in_flight() == 0 {
            return Outstanding::default();
        }
        self.outstanding.look()
    }

    /// Counts as a failure each attempt that began after the last answer, is on the wire yet, and was given up by
    /// its caller; once each, however it ends.
    pub fn count_given_up(&self, error: &AttemptError, now: Moment) -> GivenUp {
        let counted = self.outstanding.count_given_up();
        for _ in 0..counted.new {
            let Ok(permit) = self.breaker.try_acquire(now) else { break };
            self.settle(permit, Outcome::FAILURE, Some(error), None, now);
        }
        counted
    }

    /// Remembers why a ping failed.
    pub fn note_ping_error(&self, error: &AttemptError) {
        self.note(error, None);
    }

    fn note(&self, error: &AttemptError, origin: Option<CallOrigin>) {
        self.failures.add(error.fault, self.clock.now(), |then| self.was_heard_since(then));
        self.breaker.note_error(ErrorRecord {
            at: self.clock.unix(),
            code: error.known_code().chars().take(64).collect(),
            message: error.message.cut(256),
            trace_id: origin.map(|origin| format!("{:032x}", origin.trace_id)),
            door: origin.and_then(|origin| origin.door).map(str::to_owned),
        });
    }

    /// Puts a transition into the outbox for the actor, and wakes whom it concerns.
    pub fn publish(&self, transition: Transition) {
        self.metrics.transition(&transition);
        self.forecast.changed(&transition, self.chaos.armed().is_some());
        let mut outbox = self.outbox.lock();
        if outbox.len() >= OUTBOX_MAX {
            // Its actor was given up on: what is newest says most.
            outbox.pop_front();
        }
        outbox.push_back((self.clock.unix(), transition));
        drop(outbox);
        self.filled.notify_one();
        self.changed.notify_waiters();
    }

    /// The transitions that nobody has taken yet, oldest first.
    pub fn drain_outbox(&self) -> Vec<(UnixMillis, Transition)> {
        self.outbox.lock().drain(..).collect()
    }

    /// Resolves when something was put into the outbox.
    pub async fn outbox_filled(&self) {
        self.filled.notified().await;
    }

    /// Changes a hold; returns whether the backend went offline or came back by it.
    pub fn hold(&self, change: impl FnOnce(&mut Holds)) -> bool {
        let mut holds = self.holds.lock();
        change(&mut holds);
        let changed = self.breaker.set_offline(holds.any());
        // The breaker's timers stop while it is offline: its actor must set them again.
        self.filled.notify_one();
        self.changed.notify_waiters();
        changed
    }

    /// Takes other settings, for all that asks for them from now on.
    pub(crate) fn configure(&self, settings: BackendSettings) {
        self.breaker.configure(settings.breaker.clone(), self.clock.now());
        self.bulkhead.set_max(settings.in_flight_max);
        self.settings.store(Arc::new(settings));
        // Its actor sets the breaker's timers again.
        self.filled.notify_one();
    }

    /// Caps its open time, or ends that; see [`Breaker::cap_open_time`].
    pub(crate) fn cap_open_time(&self, is_capped: bool) {
        if self.breaker.cap_open_time(is_capped) {
            self.filled.notify_one();
        }
    }

    /// The holds in effect.
    pub fn holds(&self) -> Holds {
        *self.holds.lock()
    }

    /// Whether its store is being opened for the first time. Takes no lock unless the backend takes no calls.
    pub(crate) fn is_opening(&self) -> bool {
        self.breaker.state().1 && self.holds().opening
    }

    /// Why nothing is let through for now; `None` while something is, a probe at least, and while the store is opened.
    pub(crate) fn bars(&self) -> Option<Barred> {
        match self.breaker.state() {
            (_, true) => (!self.holds().opening).then_some(Barred::Offline),
            (State::Open, false) => Some(Barred::Open),
            (State::Closed | State::HalfOpen, false) => None,
        }
    }

    /// The same in words.
    pub(crate) fn why_barred(&self, barred: Barred) -> String {
        match barred {
            Barred::Open => Rejected::Open.to_string(),
            Barred::Offline if self.holds().opening => {
                "the backend's queue is being opened".to_owned()
            }
            Barred::Offline => Rejected::Offline.to_string(),
            Barred::Full => {
                let (max, taken) = (self.bulkhead.max(), self.bulkhead.in_flight());
                if taken < max {
                    format!("its caller has its share of the {max} attempts that may be in flight")
                } else {
                    format!("{max} attempts are in flight, which is the limit")
                }
            }
        }
    }

    /// Whether calls go to the backend: its breaker is not OPEN, and it is not offline.
    pub fn is_asked(&self) -> bool {
        let (state, offline) = self.breaker.state();
        !offline && state != State::Open
    }

    /// A ping was answered at `now`.
    pub fn ping_answered(&self, now: Moment) {
        self.unanswered.store(0, Ordering::Relaxed);
        self.answered_at.store(now.as_millis(), Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// A ping that was sent at `sent` was not answered.
    pub fn ping_failed(&self, sent: Moment) {
        self.unanswered.store(sent.as_millis() + 1, Ordering::Relaxed);
        self.suspected.notify_waiters();
    }

    /// Whether an attempt was answered since then.
    pub fn answered_since(&self, then: Moment) -> bool {
        self.outstanding.answered_since(then)
    }

    /// Whether anything was heard of it since then: an attempt or a ping was answered.
    fn was_heard_since(&self, then: Moment) -> bool {
        self.answered_since(then) || self.answered_at.load(Ordering::Relaxed) > then.as_millis()
    }

    /// Its failures since it was last heard of.
    pub(crate) fn failing(&self) -> Option<Run> {
        self.failures.now(|then| self.was_heard_since(then))
    }

    /// Notes when the next ping is sent; `None` while one is on its way.
    pub(crate) fn set_next_ping(&self, at: Option<Moment>) {
        self.next_ping.store(at.map_or(0, Moment::as_millis), Ordering::Relaxed);
    }

    /// When the next ping is sent, if none is on its way and it is not offline.
    pub fn next_ping(&self) -> Option<Moment> {
        let at = self.next_ping.load(Ordering::Relaxed);
        (at > 0 && !self.breaker.state().1).then(|| Moment::from_millis(at))
    }

    /// Whether the newest ping went unanswered, and every attempt since it was sent.
    pub fn is_unreachable(&self) -> bool {
        match self.unanswered.load(Ordering::Relaxed) {
            0 => false,
            sent => !self.answered_since(Moment::from_millis(sent - 1)),
        }
    }

    /// Whether there is reason to doubt that the backend answers: it is unreachable, or its breaker is not CLOSED.
    pub fn is_suspect(&self) -> bool {
        !self.breaker.is_operational() || self.is_unreachable()
    }

    /// Resolves once the backend is suspect; from then on it may be, and not be, at any time.
    pub(crate) async fn suspect(&self) {
        loop {
            let told = self.suspected.notified();
            let changed = self.changed.notified();
            if self.is_suspect() {
                return;
            }
            tokio::select! {
                biased;
                () = told => {}
                () = changed => {}
            }
        }
    }

    /// Resolves once no calls go to the backend: see [`is_asked`](Self::is_asked).
    pub(crate) async fn not_asked(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.is_asked() {
                return;
            }
            changed.await;
        }
    }

    /// Why nothing may be replayed now; `None` if it may. `HALF_OPEN` admits a few as probes; a
    /// forced-closed breaker wants a ping answered since.
    pub fn replay_barred(&self) -> Option<&'static str> {
        if self.holds().copied {
            return Some("the state directory, or one of its stores, is a copy: see the alerts");
        }
        match self.breaker.state() {
            (_, true) if self.holds().opening => Some("its queue is being opened"),
            (_, true) => Some("the backend is offline"),
            (State::Open, _) => Some("the breaker is open"),
            (State::HalfOpen, _) => None,
            (State::Closed, _) => {
                let forced = self.breaker.forced_since()?;
                let answered = Moment::from_millis(self.answered_at.load(Ordering::Relaxed));
                (answered < forced)
                    .then_some("the breaker was forced closed, and no ping was answered since")
            }
        }
    }

    /// The deadline of a call that names none.
    pub fn default_deadline(&self) -> Duration {
        let settings = self.settings.load();
        settings.timeout * settings.retry.attempts
    }
}
