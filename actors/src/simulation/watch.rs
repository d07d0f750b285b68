//! What is looked at after every step.

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering::Relaxed};

use fusebox_state::{
    breaker::{Reason, State, Transition},
    system::SystemState,
};
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

use super::{body::Body, scene::BACKENDS, world::Shared};
use crate::{Backend, Event, EventKind, Fusebox, backend_shared::BackendShared};

/// How late a worse system state may be seen, in milliseconds: health looks around each second.
const WORSE_WITHIN: u64 = 2_100;
/// The same of a better one, which is to hold for five seconds before.
const BETTER_WITHIN: u64 = 7_100;
/// The steps from one look at all that the queues hold to the next.
const QUEUES_EVERY: u64 = 10;
/// After how long nothing is held any more if nothing is asked for, in milliseconds.
const GIVEN_BACK_WITHIN: u64 = 8_000;

/// See the [module](self).
pub(super) struct Watch {
    world: Shared,
    fusebox: Fusebox,
    backends: Vec<Arc<Backend>>,
    events: Receiver<Event>,
    /// The latest state of each breaker.
    went_to: BTreeMap<String, State>,
    /// The system state that follows from the backends, and since when nothing changed.
    expected: (SystemState, u64),
    /// Since when something is held though nothing is asked for and nothing waits.
    held_since: u64,
}

impl Watch {
    pub(super) fn new(world: &Shared, fusebox: &Fusebox) -> Self {
        Self {
            world: Arc::clone(world),
            fusebox: fusebox.clone(),
            backends: fusebox.backends(),
            events: fusebox.events().subscribe(),
            went_to: BTreeMap::new(),
            expected: (SystemState::Healthy, world.now()),
            held_since: world.now(),
        }
    }

    /// Looks at everything.
    pub(super) fn look(&mut self) {
        self.world.arrive();
        let changed = self.hear();
        let is_dead = |at: usize, name| {
            let index = self.backends.get(at).map(|backend| shared(backend).queue.index());
            index.and_then(|index| index.find(name)).is_some_and(|(_, is_dead)| is_dead)
        };
        let in_order = self.world.ledger.lock().in_order(is_dead);
        self.world.check(in_order);
        if self.world.step.load(Relaxed).is_multiple_of(QUEUES_EVERY) {
            self.look_at_queues();
        }
        self.look_at_system(changed);
        self.look_at_idleness();
    }

    /// Takes the events since the last look; whether there was one that a system state may follow from.
    fn hear(&mut self) -> bool {
        let mut changed = false;
        loop {
            match self.events.try_recv() {
                Ok(event) => {
                    changed |= !matches!(event.kind, EventKind::Replay { .. });
                    self.heard(event);
                }
                Err(TryRecvError::Lagged(_)) => changed = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return changed,
            }
        }
    }

    fn heard(&mut self, event: Event) {
        let name = event.backend.unwrap_or_default();
        let (at, tally) = (event.at.get(), &self.world.tally);
        match event.kind {
            EventKind::Transition { transition } => {
                tally.transitions.fetch_add(1, Relaxed);
                let Transition { from, to, reason, .. } = &transition;
                self.world
                    .note(|| format!("{name}: {from} to {to}, {} (at {at})", reason.as_str()));
                self.check_transition(&name, &transition);
                self.went_to.insert(name, transition.to);
            }
            EventKind::SystemState { from, to, .. } => {
                tally.states.fetch_add(1, Relaxed);
                self.world.note(|| format!("the system: {from} to {to} (at {at})"));
            }
            EventKind::DeadLetter { op_id, reason } => {
                tally.dead_letters.fetch_add(1, Relaxed);
                self.world.note(|| format!("{name}: a dead letter, {}", reason.said()));
                self.buried(&name, &op_id);
            }
            EventKind::Alert { message } => {
                self.world.note(|| format!("{name}: {}", message.said()));
            }
            EventKind::Actor { message } => self.world.note(|| format!("{name}: {message}")),
            _ => {}
        }
    }

    fn check_transition(&self, name: &str, transition: &Transition) {
        let Transition { from, to, reason, .. } = transition;
        if let Some(last) = self.went_to.get(name).filter(|last| *last != from) {
            self.world
                .broken(format!("the breaker of {name} went from {from} to {to}, and was {last}"));
        }
        let orders = [
            Reason::ForcedOpen,
            Reason::ForcedClosed,
            Reason::Released,
            Reason::ForceExpired,
            Reason::Reset,
        ];
        let is_legal = matches!(
            (from, to),
            (State::Closed, State::Open)
                | (State::Open, State::HalfOpen)
                | (State::HalfOpen, State::Closed | State::Open)
        );
        if !is_legal && !orders.contains(reason) {
            let why = reason.as_str();
            self.world.broken(format!("the breaker of {name} went from {from} to {to} by {why}"));
        }
    }

    /// A call became a dead letter: its key may hold something older than was acknowledged.
    fn buried(&self, name: &str, op_id: &str) {
        let Some(at) = BACKENDS.iter().position(|it| *it == name) else { return };
        let (Some(backend), Ok(op_id)) = (self.backends.get(at), op_id.parse()) else { return };
        let shared = shared(backend);
        let seq = shared.queue.index().find(op_id).map(|(seq, _)| seq);
        let body = seq.and_then(|seq| shared.queue.store().ok()?.body(seq).ok());
        if let Some(body) = body.and_then(|body| Body::decode(&body)) {
            self.world.ledger.lock().unsettled(at, body.id, false);
        }
    }

    /// Looks at all that the queues hold.
    pub(super) fn look_at_queues(&self) {
        for (at, backend) in self.backends.iter().enumerate() {
            self.look_at_queue(at, backend);
        }
    }

    fn look_at_queue(&self, at: usize, backend: &Backend) {
        let queue = &shared(backend).queue;
        let name = backend.name();
        let index = queue.index();
        let (calls, bytes) = index
            .page(false, 0)
            .fold((0_u64, 0), |(calls, bytes), (_, entry)| (calls + 1, bytes + entry.size()));
        // Calls that were sent as one are one dead letter.
        let dead_bytes: u64 = index.page(true, 0).map(|(_, entry)| entry.size()).sum();
        let counted = (index.len() as u64, index.bytes(), index.dead().1);
        let waiting = queue.waiting();
        if counted != (calls, bytes, dead_bytes) || waiting != calls {
            self.world.broken(format!(
                "the queue of {name} holds {calls} calls of {bytes} bytes and {dead_bytes} bytes of dead letters, and \
                 counts {counted:?}, {waiting} waiting"
            ));
        }
        if queue.store().is_err() {
            // What it held is not known yet.
            return;
        }
        let mut ledger = self.world.ledger.lock();
        let gone: Vec<_> =
            ledger.owed(at).filter(|(_, op_id)| index.find(*op_id).is_none()).collect();
        let settled: Vec<_> = gone.into_iter().map(|(id, _)| ledger.settle_owed(id)).collect();
        drop((ledger, index));
        for settled in settled {
            self.world.check(settled);
        }
    }

    /// What SPEC §9 makes of the backends as they are.
    fn assessed(&self) -> SystemState {
        let all = self.backends.len();
        let (mut up, mut conditions, mut ordinary_down) = (0, 0, false);
        let (mut fills, mut refuses) = (false, false);
        for backend in &self.backends {
            let shared = shared(backend);
            let is_critical = shared.circuit.settings.load().critical;
            let is_up = shared.circuit.breaker.state() == (State::Closed, false);
            let index = shared.queue.index();
            up += usize::from(is_up);
            conditions += usize::from(is_critical && !is_up);
            ordinary_down |= !is_critical && !is_up;
            conditions += usize::from(is_up && (index.is_full() || index.dead_full(1)));
            fills |= index.fill_percent() >= 70.0;
            drop(index);
            refuses |= shared.queue.refuses().is_some() || shared.queue.damage().is_some();
        }
        conditions += usize::from(up * 2 < all && ordinary_down) + usize::from(refuses);
        match conditions {
            0 if up * 5 < all * 4 || fills => SystemState::Degraded,
            0 => SystemState::Healthy,
            1 => SystemState::Critical,
            _ => SystemState::Emergency,
        }
    }

    fn look_at_system(&mut self, changed: bool) {
        let (now, assessed) = (self.world.now(), self.assessed());
        if changed || assessed != self.expected.0 {
            self.expected = (assessed, now);
            return;
        }
        let is = self.fusebox.0.flags.state();
        let held = now.saturating_sub(self.expected.1);
        let within = if assessed > is { WORSE_WITHIN } else { BETTER_WITHIN };
        if assessed != is && held > within {
            self.world.broken(format!(
                "the system state is {is}, but from the state of its backends it should have been {assessed} for \
                 {held} ms"
            ));
        }
    }

    fn look_at_idleness(&mut self) {
        let now = self.world.now();
        let is_idle = self.world.ledger.lock().is_idle() && self.is_drained();
        match self.held().filter(|_| is_idle) {
            Some(what) if now.saturating_sub(self.held_since) > GIVEN_BACK_WITHIN => {
                self.world.broken(what);
            }
            Some(_) => {}
            None => self.held_since = now,
        }
    }

    /// Nothing is asked for: so nothing is held.
    pub(super) fn all_is_given_back(&self) {
        if let Some(what) = self.held() {
            self.world.broken(what);
        }
    }

    /// What is held, as if nothing was asked for.
    fn held(&self) -> Option<String> {
        self.backends.iter().find_map(|backend| {
            let circuit = &shared(backend).circuit;
            let (places, calls) = (circuit.bulkhead.in_flight(), circuit.calls_under_way());
            let attempts = circuit.outstanding().attempts;
            let in_lanes = shared(backend).queue.index().places();
            let is_held = places > 0 || calls > 0 || attempts > 0 || !in_lanes.is_empty();
            is_held.then(|| {
                format!(
                    "nobody calls {}, but {places} places, {calls} calls and {attempts} attempts are still held, and \
                     in lanes {in_lanes:?}",
                    backend.name()
                )
            })
        })
    }

    /// Whether nothing waits, for its turn or for its store: a dead letter holds its lane until it is marked there.
    pub(super) fn is_drained(&self) -> bool {
        let is_empty = |it: &Arc<Backend>| {
            let queue = &shared(it).queue;
            let serves = queue.store().is_ok_and(|store| store.status().refusing.is_none());
            serves && queue.index().is_empty()
        };
        self.backends.iter().all(is_empty)
    }

    /// What is left to do, in words.
    pub(super) fn left(&self) -> String {
        let each = self.backends.iter().map(|backend| {
            let shared = shared(backend);
            let (state, offline) = shared.circuit.breaker.state();
            let paused = shared.queue.paused().unwrap_or("nothing");
            format!(
                "{}: {state}, offline {offline}, {} calls wait (held up by {paused}), alerts {:?}",
                backend.name(),
                shared.queue.waiting(),
                shared.queue.alerts()
            )
        });
        let each: Vec<String> = each.collect();
        format!("{}; the system is {}", each.join("; "), self.fusebox.0.flags.state())
    }
}

fn shared(backend: &Backend) -> &BackendShared {
    &backend.entry.shared
}
