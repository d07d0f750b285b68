//! Pings: when each backend is sent its next one, and what becomes of it.
//!
//! They go from ping to ping at the interval that is set; after one that failed, for as long as an open breaker waits
//! for the backend's return, and while the system is CRITICAL and the backend is down, each second; while the breaker is
//! half-open and no call waits to be its probe, at once. Each runs in a task and reports by message.
//!
//! When the next one is due follows from how the last one ended and from what holds now. Health looks at that again
//! whenever it assesses the system, and sets the timer again if it is another time.

use std::{sync::Arc, time::Duration};

use fusebox_state::{
    Moment, Outcome, Verdict,
    breaker::State as BreakerState,
    chaos::{Class, Seen},
};
use ractor::ActorRef;

use super::{HealthMessage, HealthState, Watched};
use crate::{
    backend_entry::BackendEntry,
    backend_shared::BackendShared,
    circuit::Circuit,
    connector::{Attempted, SharedConnector},
    settings::PingSettings,
};

/// How often a backend that did not answer is pinged.
pub(super) const PING_AGAIN: Duration = Duration::from_secs(1);
/// When a half-open breaker whose probes are all out is tried again.
const PROBE_AGAIN: Duration = Duration::from_millis(100);

impl HealthState {
    pub(super) fn ping_due(
        &mut self,
        myself: &ActorRef<HealthMessage>,
        backend: &BackendEntry,
        generation: u64,
    ) {
        let now = self.args.clock.now();
        let Some(watched) = self.watched(backend) else { return };
        if watched.generation != generation || watched.pinging {
            return;
        }
        watched.pinging = true;
        watched.pinged_at = now;
        backend.shared.circuit.set_next_ping(None);
        let (shared, backend, myself) =
            (Arc::clone(&backend.shared), backend.clone(), myself.clone());
        let timeout = self.args.pings.timeout;
        let ping = tokio::spawn(async move { ping(&shared, timeout).await });
        tokio::spawn(async move {
            // One that panicked was not answered; nobody else would ever ping again.
            let answered = ping.await.unwrap_or(Some(false));
            // Health is gone only when the process is about to be.
            drop(myself.send_message(HealthMessage::Pinged { backend, answered }));
        });
    }

    pub(super) fn pinged(
        &mut self,
        myself: &ActorRef<HealthMessage>,
        backend: &BackendEntry,
        answered: Option<bool>,
    ) {
        let now = self.args.clock.now();
        let Some(watched) = self.watched(backend) else { return };
        (watched.pinging, watched.ended_at, watched.answered) = (false, now, answered);
        let ended = self.watched.iter().find(|watched| watched.backend.is(&backend.shared));
        if let Some(due) = ended.map(|watched| self.next_ping(watched)) {
            self.ping_in(myself, backend, due.since(now));
        }
    }

    /// Takes another interval: timers that run began with it.
    pub(super) fn set_pings(&mut self, myself: &ActorRef<HealthMessage>, pings: PingSettings) {
        self.args.pings = pings;
        self.retime_pings(myself);
    }

    /// Sets the timers again of pings that are due at another time by now.
    pub(super) fn retime_pings(&mut self, myself: &ActorRef<HealthMessage>) {
        let now = self.args.clock.now();
        let waits = self.watched.iter().filter(|watched| !watched.pinging && watched.due > now);
        let another = waits.map(|watched| (watched, self.next_ping(watched)));
        let another = another.filter(|(watched, due)| watched.due != *due);
        let another: Vec<_> =
            another.map(|(watched, due)| (watched.backend.clone(), due.since(now))).collect();
        for (backend, wait) in another {
            self.ping_in(myself, &backend, wait);
        }
    }

    /// When the next ping of a backend is due whose last one has ended.
    fn next_ping(&self, watched: &Watched) -> Moment {
        let breaker = &watched.backend.shared.circuit.breaker;
        let half_open = breaker.state() == (BreakerState::HalfOpen, false);
        let ended = watched.ended_at;
        let usual = ended.plus(self.args.pings.interval);
        // From ping to ping, however long the last one took.
        let again = ended.max(watched.pinged_at.plus(PING_AGAIN)).min(usual);
        match watched.answered {
            Some(true) if half_open => ended,
            Some(true) if breaker.awaits_return() => again,
            Some(true) if self.is_critical() && !breaker.is_operational() => again,
            Some(false) => again,
            None if half_open => ended.plus(PROBE_AGAIN),
            Some(true) | None => usual,
        }
    }

    /// The next ping is sent after `wait`.
    pub(super) fn ping_in(
        &mut self,
        myself: &ActorRef<HealthMessage>,
        backend: &BackendEntry,
        wait: Duration,
    ) {
        let due = self.args.clock.now().plus(wait);
        let Some(watched) = self.watched(backend) else { return };
        watched.generation += 1;
        watched.due = due;
        let generation = watched.generation;
        if !watched.pinging {
            backend.shared.circuit.set_next_ping(Some(due));
        }
        let backend = backend.clone();
        drop(myself.send_after(wait, move || HealthMessage::PingDue { backend, generation }));
    }
}

/// Sends a ping, and lets it meet what strikes it.
async fn pinged(circuit: &Circuit, connector: &SharedConnector, timeout: Duration) -> Attempted {
    let now = circuit.clock.now();
    let seen = || Seen { class: Class::Ping, uid: None, baggage: None };
    let strike = circuit.chaos.strike(now, None, seen);
    match strike.and_then(|strike| circuit.chaos.act(strike, now)) {
        None => connector.ping(timeout).await,
        Some(acting) => acting.ping(connector, timeout).await,
    }
}

/// Pings a backend: as a probe if its breaker is half-open. `None` if no ping was sent.
async fn ping(shared: &BackendShared, timeout: Duration) -> Option<bool> {
    let circuit = &*shared.circuit;
    let (state, offline) = circuit.breaker.state();
    if offline {
        return None;
    }
    let timeout = timeout.min(circuit.settings.load().timeout);
    let sent = circuit.clock.now();
    let connector = SharedConnector::clone(&shared.connector.load());
    if state == BreakerState::HalfOpen {
        let permit = circuit.breaker.try_acquire(circuit.clock.now()).ok()?;
        let ended = pinged(circuit, &connector, timeout).await;
        let now = circuit.clock.now();
        let answered = ended.verdict == Verdict::Success;
        let slow = circuit.breaker.is_slow(now.since(sent));
        let outcome = Outcome { verdict: ended.verdict, slow };
        circuit.settle(permit, outcome, ended.result.as_ref().err(), None, now);
        if answered {
            circuit.ping_answered(now);
        } else {
            circuit.ping_failed(sent);
        }
        return Some(answered);
    }
    let ended = pinged(circuit, &connector, timeout).await;
    let now = circuit.clock.now();
    let answered = ended.verdict == Verdict::Success;
    let mut given_up = 0;
    if answered {
        circuit.ping_answered(now);
    } else if circuit.answered_since(sent) {
        // It is slow, or does not answer this connection: that attempts tell.
        return Some(false);
    } else {
        circuit.ping_failed(sent);
        if let Err(error) = &ended.result {
            circuit.note_ping_error(error);
            given_up = circuit.count_given_up(error, now).all;
        }
    }
    if let Some(transition) = circuit.breaker.record_ping(answered, given_up, now) {
        circuit.publish(transition);
    }
    Some(answered)
}
