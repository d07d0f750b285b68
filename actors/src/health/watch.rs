//! The watch for backends that do not answer.
//!
//! **A backend that does not answer** is found out by whatever comes first:
//!
//! ```text
//!   an attempt is overdue ──▶ a ping at once ──▶ unanswered ──▶ what callers gave up since the last answer fails
//!                                  │   ▲                        ──▶ the backend is suspect
//!                                  │   └── each second, while unanswered; `failure_threshold` in a row trip the
//!                                  breaker, │       from the second on together with what callers gave up
//!                                  └──▶ answered, or an attempt was meanwhile: it is slow, not away
//! ```
//! An attempt is overdue when it is unanswered for twice the 99th percentile of the last minute's, 50 ms at least
//! and a second at most. A ping says nothing if an attempt was answered since it was sent.

use std::time::Duration;

use fusebox_state::Moment;
use ractor::ActorRef;

use super::{HealthMessage, HealthState, PATIENCE, Watched, pings::PING_AGAIN};

/// How often health looks whether an attempt is overdue.
const WATCH_EVERY: Duration = Duration::from_millis(250);

impl HealthState {
    /// Pings at once when an attempt is overdue.
    pub(super) fn watch(&mut self, myself: &ActorRef<HealthMessage>) {
        drop(myself.send_after(WATCH_EVERY, || HealthMessage::WatchDue));
        let now = self.args.clock.now();
        let is_overdue = |watched: &&Watched| {
            let circuit = &watched.backend.shared.circuit;
            let due = !watched.pinging && now.since(watched.pinged_at) >= PING_AGAIN;
            let waits = |oldest: Moment| now.since(oldest) >= watched.patience;
            due && circuit.outstanding().oldest.is_some_and(waits)
        };
        let overdue = self.watched.iter().filter(is_overdue);
        let overdue: Vec<_> = overdue.map(|watched| watched.backend.clone()).collect();
        for backend in overdue {
            self.ping_in(myself, &backend, Duration::ZERO);
        }
    }
}

impl Watched {
    /// Learns how long an attempt waits for its answer without being overdue, by the 99th percentile of the last
    /// minute.
    pub(super) fn learn(&mut self, p99: Option<Duration>) {
        self.patience = p99.map_or(PATIENCE.1, |p99| (p99 * 2).clamp(PATIENCE.0, PATIENCE.1));
    }
}
