//! Pings: when each backend is sent its next one, and what becomes of it.
//!
//! They go from ping to ping at the interval that is set; after one that failed, and for as long as an open breaker
//! waits for the backend's return, each second; while the breaker is half-open and no call waits to be its probe, at
//! once. Each runs in a task and reports by message.

use std::{sync::Arc, time::Duration};

use fusebox_state::{
    Outcome, Verdict,
    breaker::State as BreakerState,
    chaos::{Class, Seen},
};
use ractor::ActorRef;

use super::{HealthMessage, HealthState};
use crate::{
    backend_entry::BackendEntry,
    backend_shared::BackendShared,
    circuit::Circuit,
    connector::{Attempted, SharedConnector},
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
        let (now, interval) = (self.args.clock.now(), self.args.pings.interval);
        let Some(watched) = self.watched(backend) else { return };
        watched.pinging = false;
        let breaker = &backend.shared.circuit.breaker;
        let half_open = breaker.state() == (BreakerState::HalfOpen, false);
        // From ping to ping, however long the last one took.
        let taken = now.since(watched.pinged_at);
        let again = PING_AGAIN.saturating_sub(taken).min(interval);
        let wait = match answered {
            Some(true) if half_open => Duration::ZERO,
            Some(true) if breaker.awaits_return() => again,
            Some(false) => again,
            None if half_open => PROBE_AGAIN,
            Some(true) | None => interval,
        };
        self.ping_in(myself, backend, wait);
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
