//! The circuit breaker of one backend.
//!
//! ```text
//!                failures trip it, or pings fail
//!      +--------+ ---------------------------------> +------+
//!      | CLOSED |                                    | OPEN | <-+
//!      +--------+ <---+                              +------+   |
//!                     | success_threshold                |      | a probe fails, or never reports
//!                     | successes in a row   its time is |      | (the next wait doubles)
//!                     |                          over,   v      |
//!                     |         or by order, or +-----------+  |
//!                     +---------- pings return   | HALF_OPEN | -+
//!                                                +-----------+
//! ```
//!
//! **Return.** Doubled open times protect a backend that is sick: one that answers, and fails. A backend whose
//! pings failed and that answers `success_threshold` of them in a row has come back: it goes half-open as soon as
//! the first `recovery_timeout` has passed. A failed probe takes that proof away until a ping fails again.
//!
//! **Slow calls.** An attempt that took longer than [`SlowCalls::after`] is slow, however it ended. How many of the
//! window's calls were is always known. If [`SlowCalls::rate`] is above 0, `failure_threshold` slow calls trip it once
//! they are that share of all, and a probe that is slow has failed: a backend that is too slow to be of use is left
//! alone before its callers' timeouts find out. The two tests are resilience4j's, whose slow calls count among all
//! likewise.
//!
//! Two orders of an operator override this machine: a *force* (open or closed, with a reason and
//! perhaps an expiry), and *offline*, which outranks it. They change the effective state and leave the
//! one underneath as it is; the window goes on recording.
//!
//! **Hot path.** One atomic word carries what a call needs to know: the effective state, the offline
//! bit and the *epoch*, which every change of the effective state raises. A permit remembers its
//! epoch, and an outcome whose epoch is over changes nothing. In CLOSED a permit costs one load, and a
//! success one more and one addition to the window. Everything else is behind one short lock.
//!
//! **Invariants.** The word is only written under the lock. `HALF_OPEN` never has more probes out than
//! `success_threshold`. A permit is always settled: what is dropped without an outcome is neutral.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    outcome::{Outcome, Verdict},
    units::{Moment, Ratio, millis},
    window::{Horizon, Window},
};

mod memory;
mod open_time;
mod snapshot;
#[cfg(test)]
mod tests;
mod transition;

pub use memory::{BreakerMemory, ForceMemory};
pub use snapshot::{Force, Rejected, Snapshot};
pub use transition::{ErrorRecord, Reason, State, Transition, TransitionRecord};

/// Errors that a transition remembers.
const ERRORS_KEPT: usize = 5;
/// The rate at which a shorter horizon trips.
pub const BURST_RATE: f64 = 0.8;

/// When a breaker trips and how it recovers.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerSettings {
    /// Failures in the window (and failed pings in a row) that trip it; at least 1.
    pub failure_threshold: u32,
    /// Failures among the calls of the window that trip it; 0 turns this test off.
    pub failure_rate: Ratio,
    /// How long it stays open the first time.
    pub recovery_timeout: Duration,
    /// The longest that it stays open; at least `recovery_timeout`.
    pub recovery_timeout_max: Duration,
    /// Probes at once, and successes in a row that close it; at least 1.
    pub success_threshold: u32,
    /// Length of the window; at least 60 ms.
    pub window: Duration,
    /// Whether it leaves OPEN by itself.
    pub auto_recovery: bool,
    /// The longest that an attempt takes; a probe that is out twice as long is given up.
    pub attempt_timeout: Duration,
    /// The share of an open time that is random from the second time on: waits are in
    /// `[(1 - jitter) d, d]`.
    pub jitter: Ratio,
    /// Which calls are slow, and whether these trip it.
    pub slow: SlowCalls,
}

/// Which calls are slow, and whether these trip a breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowCalls {
    /// A call that took longer is slow; whole milliseconds.
    pub after: Duration,
    /// Slow calls among the calls of the window that trip it; 0 turns this test off.
    pub rate: Ratio,
}

impl Default for SlowCalls {
    /// No call is slow.
    fn default() -> Self {
        Self { after: Duration::MAX, rate: Ratio::ZERO }
    }
}

/// Leave for one attempt. Settle it with [`Breaker::record`]; dropping it is neutral.
#[must_use]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    epoch: u32,
    /// The probe's number in `HALF_OPEN`, 0 in CLOSED.
    probe: u32,
}

/// A permit that outlives its guard: hand it back with [`Breaker::regain`], once.
#[derive(Debug)]
#[must_use]
pub struct KeptPermit {
    epoch: u32,
    probe: u32,
}

impl Permit<'_> {
    /// Keeps the permit beyond this guard.
    #[inline]
    pub fn keep(self) -> KeptPermit {
        let kept = KeptPermit { epoch: self.epoch, probe: self.probe };
        std::mem::forget(self);
        kept
    }

    /// Whether this attempt is a trial of a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.probe != 0
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.probe != 0 {
            self.breaker.return_probe(self.epoch, self.probe);
        }
    }
}

enum Underlying {
    Closed {
        since: Moment,
    },
    Open {
        /// When it opened, or when this run took it up as open.
        since: Moment,
        until: Moment,
        /// The chance in its open time.
        draw: u64,
        /// An earlier run has opened it, and nobody knows when: its end is only ever brought forward.
        is_restored: bool,
    },
    HalfOpen {
        successes: u32,
        probes: Vec<(u32, Moment)>,
        /// Out of turn, by an operator's order or because what its backend depends on is back: a failure does not
        /// count as a failed recovery.
        ordered: bool,
    },
}

impl Underlying {
    fn state(&self) -> State {
        match self {
            Self::Closed { .. } => State::Closed,
            Self::Open { .. } => State::Open,
            Self::HalfOpen { .. } => State::HalfOpen,
        }
    }
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts, each with its own end")]
struct Cold {
    settings: BreakerSettings,
    underlying: Underlying,
    /// Since when the effective state holds.
    since: Moment,
    force: Option<Force>,
    /// An operator has forced, released or reset it in this run.
    is_ordered: bool,
    offline: bool,
    exponent: u32,
    pings_failed: u32,
    /// Pings answered in a row since one failed; `None` if none failed since it closed, or since a probe
    /// failed.
    returned: Option<u32>,
    next_probe: u32,
    /// The system is CRITICAL: every open time is at most the first one.
    is_capped: bool,
    /// What is to be remembered has changed, and no transition says so.
    is_unremembered: bool,
    errors: VecDeque<ErrorRecord>,
    random: fastrand::Rng,
}

/// The breaker. Shared by every call; see the module's page.
pub struct Breaker {
    word: AtomicU64,
    window: Window,
    /// [`SlowCalls::after`] in milliseconds.
    slow_after: AtomicU64,
    cold: Mutex<Cold>,
}

const OFFLINE: u64 = 4;
/// The bits of the word that hold calls up: those of the state, which are 0 for CLOSED, and [`OFFLINE`].
const HELD_UP: u64 = 0b111;

impl Breaker {
    /// A closed breaker; `seed` feeds its jitter.
    pub fn new(settings: BreakerSettings, seed: u64, now: Moment) -> Self {
        Self {
            word: AtomicU64::new(0),
            window: Window::new(settings.window),
            slow_after: AtomicU64::new(millis(settings.slow.after)),
            cold: Mutex::new(Cold {
                settings,
                underlying: Underlying::Closed { since: now },
                since: now,
                force: None,
                is_ordered: false,
                offline: false,
                exponent: 0,
                pings_failed: 0,
                returned: None,
                next_probe: 1,
                is_capped: false,
                is_unremembered: false,
                errors: VecDeque::with_capacity(ERRORS_KEPT),
                random: fastrand::Rng::with_seed(seed),
            }),
        }
    }

    /// Asks for leave for one attempt.
    ///
    /// # Errors
    /// [`Rejected`] if the attempt must not be made; never counts against the backend.
    #[inline]
    pub fn try_acquire(&self, now: Moment) -> Result<Permit<'_>, Rejected> {
        let word = self.word.load(Ordering::Acquire);
        if flows(word) {
            return Ok(Permit { breaker: self, epoch: epoch(word), probe: 0 });
        }
        self.try_acquire_cold(now)
    }

    #[cold]
    fn try_acquire_cold(&self, now: Moment) -> Result<Permit<'_>, Rejected> {
        let word = self.word.load(Ordering::Acquire);
        if word & OFFLINE != 0 {
            return Err(Rejected::Offline);
        }
        if State::of(word) == State::Open {
            return Err(Rejected::Open);
        }
        let mut cold = self.cold.lock();
        let word = self.word.load(Ordering::Acquire);
        if flows(word) {
            return Ok(Permit { breaker: self, epoch: epoch(word), probe: 0 });
        }
        let number = cold.next_probe;
        let most = cold.settings.success_threshold as usize;
        match &mut cold.underlying {
            Underlying::HalfOpen { probes, .. }
                if State::of(word) == State::HalfOpen && probes.len() < most =>
            {
                probes.push((number, now));
                cold.next_probe = number.wrapping_add(1).max(1);
                Ok(Permit { breaker: self, epoch: epoch(word), probe: number })
            }
            _ => Err(Rejected::Open),
        }
    }

    /// The probe that holds `kept` goes on, so that it is not lost: its time begins again.
    pub fn prolong(&self, kept: &KeptPermit, now: Moment) {
        let mut cold = self.cold.lock();
        if kept.epoch != epoch(self.word.load(Ordering::Relaxed)) {
            return;
        }
        if let Underlying::HalfOpen { probes, .. } = &mut cold.underlying {
            for (_, since) in probes.iter_mut().filter(|(probe, _)| *probe == kept.probe) {
                *since = now;
            }
        }
    }

    /// Whether a call that took so long is slow.
    #[inline]
    pub fn is_slow(&self, took: Duration) -> bool {
        millis(took) > self.slow_after.load(Ordering::Relaxed)
    }

    /// The guard of a permit that was kept.
    #[inline]
    pub fn regain(&self, kept: KeptPermit) -> Permit<'_> {
        Permit { breaker: self, epoch: kept.epoch, probe: kept.probe }
    }

    /// Settles `permit` with what its attempt said of the backend. A transition that it caused is
    /// returned to be published; nothing else publishes it. It is boxed because it is rare and large: the usual
    /// answer is one word.
    #[inline]
    pub fn record(
        &self,
        permit: Permit<'_>,
        outcome: Outcome,
        now: Moment,
    ) -> Option<Box<Transition>> {
        if permit.probe == 0 && outcome == Outcome::SUCCESS {
            if permit.epoch == epoch(self.word.load(Ordering::Relaxed)) {
                self.window.success(now);
            }
            return None;
        }
        self.record_cold(permit, outcome, now).map(Box::new)
    }

    #[cold]
    fn record_cold(&self, permit: Permit<'_>, outcome: Outcome, now: Moment) -> Option<Transition> {
        let Outcome { verdict, slow } = outcome;
        if verdict == Verdict::Neutral {
            return None;
        }
        let (number, of) = (permit.probe, permit.epoch);
        std::mem::forget(permit);
        let mut cold = self.cold.lock();
        if of != epoch(self.word.load(Ordering::Relaxed)) {
            return None;
        }
        if number == 0 {
            match verdict {
                Verdict::Success => self.window.success(now),
                _ => self.window.failure(now),
            }
            if slow {
                self.window.slow(now);
            }
            return self.evaluate(&mut cold, now);
        }
        let most = cold.settings.success_threshold;
        let slow = slow && cold.settings.slow.rate.get() > 0.0;
        let Underlying::HalfOpen { successes, probes, .. } = &mut cold.underlying else {
            return None;
        };
        probes.retain(|(probe, _)| *probe != number);
        if verdict == Verdict::Failure {
            return Some(self.reopen(&mut cold, Reason::ProbeFailed, now));
        }
        if slow {
            return Some(self.reopen(&mut cold, Reason::ProbeSlow, now));
        }
        *successes += 1;
        (*successes >= most).then(|| self.close(&mut cold, Reason::ProbesSucceeded, None, now))
    }

    /// Remembers an error for the next transition and for `explain`; call it before
    /// [`Breaker::record`].
    pub fn note_error(&self, error: ErrorRecord) {
        let errors = &mut self.cold.lock().errors;
        if errors.len() == ERRORS_KEPT {
            errors.pop_front();
        }
        errors.push_back(error);
    }

    /// Counts a ping outside the window. Enough failed ones in a row trip a closed breaker, so that a
    /// dead, idle backend is known before a caller pays for it; enough answered ones after a failed one end an
    /// open time early. `given_up` attempts, which began after the last answer and which their callers gave up, count
    /// with the pings from the second failed one on: how well things went before, which the window weighs, says nothing
    /// of a backend that answers nobody any more.
    pub fn record_ping(&self, answered: bool, given_up: u32, now: Moment) -> Option<Transition> {
        let mut cold = self.cold.lock();
        if answered {
            cold.pings_failed = 0;
            cold.returned = cold.returned.map(|count| count.saturating_add(1));
            return self.end_open_time(&mut cold, now);
        }
        cold.pings_failed = cold.pings_failed.saturating_add(1);
        cold.returned = Some(0);
        let given_up = if cold.pings_failed > 1 { given_up } else { 0 };
        let unanswered = cold.pings_failed.saturating_add(given_up);
        let trips = unanswered >= cold.settings.failure_threshold
            && matches!(cold.underlying, Underlying::Closed { .. })
            && cold.force.is_none()
            && !cold.offline;
        trips.then(|| self.open(&mut cold, Reason::PingsFailed, Horizon::Whole, now))
    }

    /// Does what time has made due: ends an open time, a force or a lost probe, forgets an exponent.
    pub fn tick(&self, now: Moment) -> Option<Transition> {
        let mut cold = self.cold.lock();
        if cold.force.as_ref().and_then(|force| force.until).is_some_and(|until| until <= now) {
            return Some(self.lift(&mut cold, Reason::ForceExpired, now));
        }
        if cold.force.is_some() || cold.offline {
            return None;
        }
        let patience = cold.settings.attempt_timeout * 2;
        match &cold.underlying {
            Underlying::Closed { since } => {
                if cold.exponent > 0 && now >= since.plus(cold.settings.window * 2) {
                    (cold.exponent, cold.is_unremembered) = (0, true);
                }
                None
            }
            Underlying::Open { .. } => self.end_open_time(&mut cold, now),
            Underlying::HalfOpen { probes, .. } => {
                let lost = probes.iter().any(|(_, since)| since.plus(patience) <= now);
                lost.then(|| self.reopen(&mut cold, Reason::ProbeTimeout, now))
            }
        }
    }

    /// When [`Breaker::tick`] next has something to do.
    pub fn next_tick(&self) -> Option<Moment> {
        let cold = self.cold.lock();
        let force_ends = cold.force.as_ref().and_then(|force| force.until);
        if cold.force.is_some() || cold.offline {
            return force_ends;
        }
        match &cold.underlying {
            Underlying::Closed { since } => {
                (cold.exponent > 0).then(|| since.plus(cold.settings.window * 2))
            }
            Underlying::Open { since, until, .. } => {
                let end = if cold.has_returned() { cold.early(*since, *until) } else { *until };
                cold.settings.auto_recovery.then_some(end)
            }
            Underlying::HalfOpen { probes, .. } => {
                let patience = cold.settings.attempt_timeout * 2;
                probes.iter().map(|(_, since)| since.plus(patience)).min()
            }
        }
    }

    /// Forces it open or closed, until `until` or a release.
    pub fn force(
        &self,
        open: bool,
        reason: String,
        until: Option<Moment>,
        now: Moment,
    ) -> Transition {
        let mut cold = self.cold.lock();
        let why = if open { Reason::ForcedOpen } else { Reason::ForcedClosed };
        let note = Some(reason.clone());
        cold.is_ordered = true;
        cold.force = Some(Force { open, reason, since: now, until });
        self.enter(&mut cold, why, Horizon::Whole, note, now)
    }

    /// Lifts a force: from forced open into `HALF_OPEN`, from forced closed into the state underneath,
    /// which is OPEN if the window of that time would have tripped it. `None` without a force.
    pub fn release(&self, now: Moment) -> Option<Transition> {
        let mut cold = self.cold.lock();
        cold.is_ordered = true;
        cold.force.is_some().then(|| self.lift(&mut cold, Reason::Released, now))
    }

    /// Closes it, lifts a force, and forgets the window, the exponent and the failed pings.
    pub fn reset(&self, now: Moment) -> Transition {
        let mut cold = self.cold.lock();
        cold.is_ordered = true;
        cold.force = None;
        cold.exponent = 0;
        cold.errors.clear();
        self.close(&mut cold, Reason::Reset, None, now)
    }

    /// Leaves OPEN for `HALF_OPEN` now. `None` if it is not open, is forced or offline.
    pub fn recover(&self, now: Moment) -> Option<Transition> {
        let mut cold = self.cold.lock();
        let open = matches!(cold.underlying, Underlying::Open { .. });
        (open && cold.force.is_none() && !cold.offline)
            .then(|| self.half_open(&mut cold, Reason::ForcedRecovery, None, now))
    }

    /// What its backend depends on is back: leaves OPEN for `HALF_OPEN` now. `None` if it is not open, is forced or
    /// offline, or does not leave OPEN by itself.
    pub fn dependency_returned(&self, now: Moment) -> Option<Transition> {
        let mut cold = self.cold.lock();
        let open = matches!(cold.underlying, Underlying::Open { .. });
        let may = cold.settings.auto_recovery && cold.force.is_none() && !cold.offline;
        (open && may).then(|| self.half_open(&mut cold, Reason::DependencyReturned, None, now))
    }

    /// Takes the backend offline, or back; returns whether that changed anything.
    pub fn set_offline(&self, offline: bool) -> bool {
        let mut cold = self.cold.lock();
        let changed = cold.offline != offline;
        cold.offline = offline;
        let word = self.word.load(Ordering::Relaxed);
        let word = if offline { word | OFFLINE } else { word & !OFFLINE };
        self.word.store(word, Ordering::Release);
        changed
    }

    /// The effective state and whether it is offline, for who needs no more.
    pub fn state(&self) -> (State, bool) {
        let word = self.word.load(Ordering::Acquire);
        (State::of(word), word & OFFLINE != 0)
    }

    /// Effectively CLOSED and not offline.
    pub fn is_operational(&self) -> bool {
        flows(self.word.load(Ordering::Acquire))
    }

    /// Whether it is open and pings tell whether its backend has returned.
    pub fn awaits_return(&self) -> bool {
        let cold = self.cold.lock();
        matches!(cold.underlying, Underlying::Open { .. }) && cold.returned.is_some()
    }

    /// When it entered OPEN, or was forced open; `None` if its effective state is another.
    pub fn opened_at(&self) -> Option<Moment> {
        let cold = self.cold.lock();
        (cold.effective() == State::Open).then_some(cold.since)
    }

    /// Since when it is forced, if it is.
    pub fn forced_since(&self) -> Option<Moment> {
        self.cold.lock().force.as_ref().map(|force| force.since)
    }

    /// What it looks like now.
    pub fn snapshot(&self, now: Moment) -> Snapshot {
        let cold = self.cold.lock();
        Snapshot {
            state: cold.effective(),
            underlying: cold.underlying.state(),
            forced: cold.force.clone(),
            offline: cold.offline,
            since: cold.since,
            open_until: match &cold.underlying {
                Underlying::Open { until, .. } if cold.settings.auto_recovery => Some(*until),
                _ => None,
            },
            exponent: cold.exponent,
            counts: self.window.counts(Horizon::Whole, now),
            pings_failed: cold.pings_failed,
            last_errors: cold.errors.iter().cloned().collect(),
        }
    }

    fn return_probe(&self, of: u32, number: u32) {
        let mut cold = self.cold.lock();
        if of != epoch(self.word.load(Ordering::Relaxed)) {
            return;
        }
        if let Underlying::HalfOpen { probes, .. } = &mut cold.underlying {
            probes.retain(|(probe, _)| *probe != number);
        }
    }

    /// Whether the window trips, and over which horizon.
    fn tripping(&self, cold: &Cold, now: Moment) -> Option<(Reason, Horizon)> {
        let threshold = u64::from(cold.settings.failure_threshold);
        let whole = self.window.counts(Horizon::Whole, now);
        let rate = cold.settings.failure_rate.get();
        if whole.failures >= threshold && (rate == 0.0 || whole.failure_rate() >= rate) {
            return Some((Reason::FailureRate, Horizon::Whole));
        }
        let slow_rate = cold.settings.slow.rate.get();
        if slow_rate > 0.0 && whole.slow >= threshold && whole.slow_rate() >= slow_rate {
            return Some((Reason::SlowCalls, Horizon::Whole));
        }
        [Horizon::Sixth, Horizon::Thirtieth].into_iter().find_map(|horizon| {
            let counts = self.window.counts(horizon, now);
            let trips = counts.failures >= threshold
                && counts.calls() >= 2 * threshold
                && counts.failure_rate() >= BURST_RATE;
            trips.then_some((Reason::Burst, horizon))
        })
    }

    fn evaluate(&self, cold: &mut Cold, now: Moment) -> Option<Transition> {
        if cold.force.is_some() || !matches!(cold.underlying, Underlying::Closed { .. }) {
            return None;
        }
        let (reason, horizon) = self.tripping(cold, now)?;
        Some(self.open(cold, reason, horizon, now))
    }

    fn open(&self, cold: &mut Cold, reason: Reason, horizon: Horizon, now: Moment) -> Transition {
        let draw = cold.random.u64(..);
        let until = now.plus(cold.open_time(draw));
        cold.underlying = Underlying::Open { since: now, until, draw, is_restored: false };
        self.enter(cold, reason, horizon, None, now)
    }

    fn reopen(&self, cold: &mut Cold, reason: Reason, now: Moment) -> Transition {
        if !matches!(cold.underlying, Underlying::HalfOpen { ordered: true, .. }) {
            cold.exponent = cold.exponent.saturating_add(1);
        }
        if cold.pings_failed == 0 {
            cold.returned = None;
        }
        self.open(cold, reason, Horizon::Whole, now)
    }

    /// Goes half-open if its open time is over, or its backend has returned.
    fn end_open_time(&self, cold: &mut Cold, now: Moment) -> Option<Transition> {
        let Underlying::Open { since, until, .. } = &cold.underlying else { return None };
        let reason = if *until <= now {
            Reason::RecoveryTimeout
        } else if cold.early(*since, *until) <= now && cold.has_returned() {
            Reason::PingsAnswered
        } else {
            return None;
        };
        let may = cold.settings.auto_recovery && cold.force.is_none() && !cold.offline;
        may.then(|| self.half_open(cold, reason, None, now))
    }

    fn half_open(
        &self,
        cold: &mut Cold,
        reason: Reason,
        note: Option<String>,
        now: Moment,
    ) -> Transition {
        let ordered = matches!(reason, Reason::ForcedRecovery | Reason::DependencyReturned);
        cold.underlying = Underlying::HalfOpen { successes: 0, probes: Vec::new(), ordered };
        self.enter(cold, reason, Horizon::Whole, note, now)
    }

    fn close(
        &self,
        cold: &mut Cold,
        reason: Reason,
        note: Option<String>,
        now: Moment,
    ) -> Transition {
        cold.underlying = Underlying::Closed { since: now };
        (cold.pings_failed, cold.returned) = (0, None);
        let transition = self.enter(cold, reason, Horizon::Whole, note, now);
        self.window.clear();
        transition
    }

    fn lift(&self, cold: &mut Cold, reason: Reason, now: Moment) -> Transition {
        let force = cold.force.take();
        let note = force.as_ref().map(|force| force.reason.clone());
        if force.is_some_and(|force| force.open) {
            return self.half_open(cold, reason, note, now);
        }
        if matches!(cold.underlying, Underlying::Closed { .. })
            && let Some((_, horizon)) = self.tripping(cold, now)
        {
            return self.open(cold, reason, horizon, now);
        }
        self.enter(cold, reason, Horizon::Whole, note, now)
    }

    /// The only function that changes the effective state: raises the epoch and returns what happened. That voids all
    /// permits: no probe reports any more, and none is waited for.
    fn enter(
        &self,
        cold: &mut Cold,
        reason: Reason,
        horizon: Horizon,
        note: Option<String>,
        now: Moment,
    ) -> Transition {
        let word = self.word.load(Ordering::Relaxed);
        let (from, to) = (State::of(word), cold.effective());
        let raised = u64::from(epoch(word).wrapping_add(1)) << 32;
        self.word.store(raised | (word & OFFLINE) | to.bits(), Ordering::Release);
        cold.since = now;
        if let Underlying::HalfOpen { probes, .. } = &mut cold.underlying {
            probes.clear();
        }
        let counts = self.window.counts(horizon, now);
        Transition {
            from,
            to,
            reason,
            horizon,
            calls: counts.calls(),
            failures: counts.failures,
            failure_rate: counts.failure_rate(),
            failure_threshold: cold.settings.failure_threshold,
            failure_rate_threshold: cold.settings.failure_rate.get(),
            slow: counts.slow,
            slow_rate_threshold: cold.settings.slow.rate.get(),
            open_for_ms: match &cold.underlying {
                Underlying::Open { until, .. }
                    if cold.settings.auto_recovery && cold.force.is_none() =>
                {
                    Some(millis(until.since(now)))
                }
                _ => None,
            },
            exponent: cold.exponent,
            note,
            last_errors: cold.errors.iter().cloned().collect(),
        }
    }
}

impl Cold {
    /// Whether enough pings were answered after a failed one.
    fn has_returned(&self) -> bool {
        self.returned.is_some_and(|count| count >= self.settings.success_threshold)
    }

    fn effective(&self) -> State {
        match &self.force {
            Some(force) if force.open => State::Open,
            Some(_) => State::Closed,
            None => self.underlying.state(),
        }
    }
}

/// Whether calls flow: it is effectively CLOSED and not offline.
#[inline]
fn flows(word: u64) -> bool {
    word & HELD_UP == 0
}

#[inline]
fn epoch(word: u64) -> u32 {
    (word >> 32) as u32
}
