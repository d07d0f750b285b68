//! Waiting for a lane, or for the store in which the lanes are.
//!
//! **Who waits holds neither a permit nor a place in the bulkhead.** The calls that wait for the lanes of one backend
//! have a bound of their own; who finds that reached does not wait.
//!
//! A write waits as well for what an earlier caller left on the wire ([`fusebox_state::flight`]): that ends within the
//! backend's `timeout`, but for what is behind a large reply at a door. Reads do not: it was not acknowledged.
//!
//! **Nobody waits for what does not move**: if replay is barred (the breaker OPEN, the backend offline) or paused, or
//! what is first in the lane backs off, the call is answered at once as it would be when its deadline had passed.
//!
//! **While a large store is being opened** nobody knows which lanes are occupied. Every call waits until that is known,
//! within the same bound, and leaves a write the time to be queued.

use std::time::Duration;

use fusebox_state::{Lanes, system::SystemState};

use super::{Context, write::reserve};
use crate::{backend_shared::BackendShared, trace::StepKind};

/// How long a call waits until it looks for itself whether its lanes still move.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl BackendShared {
    /// Waits for a call until the first attempt to open the store has ended, unless it is refused or answered otherwise in
    /// any case. Many begin at once then, so that it also waits for a place.
    pub(super) async fn wait_to_begin(&self, context: &mut Context, is_write: bool) {
        let options = &context.call.options;
        let is_refused = is_write
            && self.system.state() == SystemState::Emergency
            && !self.lets_queue(options.min_ack);
        if options.has_stand_in || is_refused || self.is_shed(context) {
            return;
        }
        let began = self.clock().read();
        let left = context.left(began.moment());
        let who = context.call.uid;
        self.wait_opened(who, left.saturating_sub(reserve(left))).await;
        context.call.options.awaits_place = true;
        context.read_at = self.clock().read();
        context.recorder.step(began, context.read_at, StepKind::Fence);
    }

    /// Waits until the first attempt to open the store has ended, for at most `patience`; returns whether it did so. As
    /// many may wait as for lanes.
    pub(crate) async fn wait_opened(&self, who: u32, patience: Duration) -> bool {
        if !self.circuit.is_opening() {
            return false;
        }
        let Some(_waiting) = self.queue.may_wait(who) else { return false };
        let opened = async {
            loop {
                let changed = self.circuit.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if !self.circuit.is_opening() || self.system.is_draining() {
                    return;
                }
                drop(tokio::time::timeout(LOOK_AGAIN, changed).await);
            }
        };
        drop(tokio::time::timeout(patience, opened).await);
        !self.circuit.is_opening()
    }

    /// Whether `lanes` move, so that it makes sense to wait for them.
    pub(crate) fn lanes_move(&self, lanes: &Lanes) -> bool {
        self.replay_can_run() && !self.queue.is_held_up(lanes)
    }

    /// Waits until `lanes` are free for a write, for at most `patience` and no longer than they move; returns whether
    /// they are free. As many may wait as for any call.
    pub(crate) async fn wait_free(&self, who: u32, lanes: &Lanes, patience: Duration) -> bool {
        let began = self.clock().now();
        // Until then nobody knows what is in them.
        self.wait_opened(who, patience).await;
        let patience = patience.saturating_sub(self.clock().now().since(began));
        let Some(_waiting) = self.queue.may_wait(who) else { return false };
        let freed = async {
            loop {
                if self.wait_to_write(lanes, patience).await {
                    return true;
                }
                if !self.lanes_move(lanes) {
                    return false;
                }
            }
        };
        tokio::time::timeout(patience, freed).await.unwrap_or(false)
    }

    /// Waits until no queued write is in `lanes`, for a while and no longer than they move; returns whether none is.
    pub(super) async fn wait_a_while(&self, lanes: &Lanes, left: Duration) -> bool {
        self.queue.wait_free(lanes, left.min(LOOK_AGAIN), || self.lanes_move(lanes)).await
    }

    /// The same, and until no write that was left on the wire bars `lanes`.
    pub(super) async fn wait_to_write(&self, lanes: &Lanes, left: Duration) -> bool {
        let left = left.min(LOOK_AGAIN);
        let free = async {
            while self.wait_a_while(lanes, left).await {
                if !self.flights.is_barred(lanes) {
                    return true;
                }
                self.landed(lanes).await;
            }
            false
        };
        tokio::time::timeout(left, free).await.unwrap_or(false)
    }

    /// Waits until no write that was left on the wire bars `lanes`.
    async fn landed(&self, lanes: &Lanes) {
        loop {
            let landed = self.circuit.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if !self.flights.is_barred(lanes) {
                return;
            }
            landed.await;
        }
    }

    /// Waits until no write that was left on the wire bars `lanes`, for `patience` at most and no longer than the
    /// backend may be asked and no queued write is there.
    pub(super) async fn wait_landed(&self, who: u32, lanes: &Lanes, patience: Duration) {
        let Some(_waiting) = self.queue.may_wait(who) else { return };
        let landed = async {
            while self.flights.is_barred(lanes)
                && !self.queue.is_occupied(lanes)
                && self.replay_can_run()
            {
                drop(tokio::time::timeout(LOOK_AGAIN, self.landed(lanes)).await);
            }
        };
        drop(tokio::time::timeout(patience, landed).await);
    }
}
