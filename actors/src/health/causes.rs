//! Who is down for whose sake: what is seen of each backend goes to [`Causes`](fusebox_state::dependencies::Causes),
//! and its findings are stored for the views. A backend whose last dependency has come back is tried at once.
//!
//! That message is lost if the backend's actor is just being restarted: then its own open time ends its outage.

use std::sync::Arc;

use fusebox_state::{
    Moment,
    dependencies::{Down, Findings, Sight},
};

use super::HealthState;
use crate::{backend::BackendMessage, backend_shared::BackendShared};

impl HealthState {
    /// Looks at all backends, and tries what is left over after its cause has gone.
    pub(super) fn find_causes(&mut self, now: Moment) -> Arc<Findings> {
        let roster = &self.args.entries;
        let sights: Vec<Sight> = roster.iter().map(|entry| sight(&entry.shared)).collect();
        let findings = Arc::new(self.causes.observe(&roster.graph(), &sights, now));
        roster.findings.store(Arc::clone(&findings));
        for returned in &findings.returned {
            if let Some(entry) = roster.get(*returned) {
                entry.tell(BackendMessage::DependencyReturned);
            }
        }
        findings
    }
}

fn sight(shared: &BackendShared) -> Sight {
    let circuit = &shared.circuit;
    let failing = circuit.failing();
    let is_down = !circuit.breaker.is_operational();
    Sight {
        down: is_down.then(|| Down {
            opened: circuit.breaker.opened_at(),
            failing: failing.map(|run| run.began),
        }),
        fault: failing.and_then(|run| run.blames),
        store_refuses: shared.queue.refuses().is_some(),
    }
}
