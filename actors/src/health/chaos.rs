//! Faults on purpose: who may set them now, and what ends them.
//!
//! Health does this, because it alone sees what the faults of one backend must not come together with: the state of the
//! system, and the faults of another backend. It looks whenever it assesses the system, that is each second and at
//! every transition; an attempt looks at the time for itself.

use fusebox_state::{
    Moment,
    breaker::State,
    chaos::{Conditions, Ending, Faults, judge},
    system::{BackendCondition, SystemState},
};
use ractor::ActorRef;

use super::{HealthMessage, HealthState, condition};
use crate::{backend_entry::BackendEntry, backend_shared::BackendShared, event::EventKind};

impl HealthState {
    /// Sets faults, if nothing prevents it.
    pub(super) fn set_chaos(
        &mut self,
        myself: &ActorRef<HealthMessage>,
        backend: &BackendEntry,
        faults: Faults,
        by: String,
    ) -> Result<(), String> {
        let mut others = self.args.entries.iter().filter(|entry| !entry.is(&backend.shared));
        if let Some(other) = others.find(|it| it.shared.circuit.chaos.armed().is_some())
            && !faults.forced
        {
            return Err(format!(
                "chaos is already set for {}: without `force`, only one backend at a time may have chaos",
                other.name()
            ));
        }
        let (now, circuit) = (self.args.clock.now(), &backend.shared.circuit);
        let found = condition(&backend.shared);
        let found = Conditions {
            state: self.tracker.state(),
            queue_percent: found.queue_percent,
            failed: None,
        };
        if let Some(ending) = judge(&faults, now.plus(faults.lasting), now, &found) {
            return Err(format!("chaos would end at once: {ending}"));
        }
        let kinds: Vec<_> = faults.as_slice().iter().map(|fault| fault.kind.as_str()).collect();
        let (lasting, reason) = (faults.lasting, faults.reason.clone());
        circuit.chaos.set(faults, by.clone(), self.args.clock);
        drop(myself.send_after(lasting, || HealthMessage::ChaosDue));
        let until = circuit.chaos.armed().map(|armed| armed.until()).unwrap_or_default();
        tracing::warn!(backend = backend.name(), by, kinds = kinds.join(", "), %until, "chaos is set");
        self.publish_chaos(&backend.shared, EventKind::ChaosSet { by, until, kinds, reason });
        self.assess(myself);
        Ok(())
    }

    /// Ends faults; whether there were any.
    pub(super) fn clear_chaos(
        &mut self,
        myself: &ActorRef<HealthMessage>,
        backend: &BackendEntry,
        by: String,
    ) -> bool {
        let had = backend.shared.circuit.chaos.clear();
        if had {
            tracing::warn!(backend = backend.name(), by, "chaos is cleared");
            self.publish_chaos(&backend.shared, EventKind::ChaosCleared { by });
            self.assess(myself);
        }
        had
    }

    /// Ends, suspends or goes on with what is set. Returns what the health of the system says of it.
    pub(super) fn judge_chaos(
        &self,
        state: SystemState,
        conditions: &[BackendCondition],
        now: Moment,
    ) -> Vec<String> {
        let mut told = Vec::new();
        for (entry, condition) in self.args.entries.iter().zip(conditions) {
            let circuit = &entry.shared.circuit;
            let Some(armed) = circuit.chaos.armed() else { continue };
            let found = Conditions { state, queue_percent: condition.queue_percent, failed: None };
            if let Some(ending) = armed.ending(now, calls(&entry.shared), found) {
                circuit.chaos.clear();
                self.chaos_ended(&entry.shared, ending);
                continue;
            }
            let why = match circuit.breaker.state() {
                (_, true) if circuit.holds().opening => Some("its queue is being opened"),
                (_, true) => Some("the backend is offline"),
                (State::Closed | State::Open | State::HalfOpen, false) => {
                    (state == SystemState::Emergency).then_some("the system is in EMERGENCY")
                }
            };
            if circuit.chaos.suspend(why) {
                tracing::warn!(backend = entry.name(), why, "chaos is suspended, or has resumed");
                self.publish_chaos(&entry.shared, EventKind::ChaosSuspended { why });
            }
            told.push(armed.told(entry.name()));
        }
        told
    }

    fn chaos_ended(&self, shared: &BackendShared, ending: Ending) {
        let backend = shared.circuit.name.as_str();
        if ending == Ending::Expired {
            tracing::info!(backend, "chaos has ended");
            return self.publish_chaos(shared, EventKind::ChaosEnded);
        }
        let why = ending.to_string();
        tracing::error!(backend, why, "chaos was aborted");
        self.publish_chaos(shared, EventKind::ChaosAborted { why });
    }

    fn publish_chaos(&self, shared: &BackendShared, kind: EventKind) {
        self.args.bus.publish(self.args.clock.unix(), Some(&shared.circuit.name), kind);
    }
}

/// How many calls of a backend have ended, and how many of them without an answer.
fn calls(shared: &BackendShared) -> (u64, u64) {
    let by_source = shared.circuit.metrics.by_source();
    by_source.fold((0, 0), |(calls, failed), (source, count)| {
        (calls + count, if source == "error" { failed + count } else { failed })
    })
}
