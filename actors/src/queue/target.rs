//! Whom the calls are for.
//!
//! Each call has the target of the connector that planned it, and goes nowhere else by itself. The store has one of its
//! own, which says for whom it is being filled. A start that finds another one there, or a call that is for another one,
//! asks an operator, whose answer is a fact: up to which sequence calls of other targets may go to the present one. A dead
//! letter up to there that is requeued later gets the present target with its new sequence; any other keeps its own.

use std::sync::{Arc, atomic::Ordering};

use fusebox_state::{
    Target,
    store::{CallStore, StoreError},
};
use tokio::sync::oneshot;

use super::{AppendError, Queue};

/// The fact that says up to which sequence calls of other targets may go to the present one.
const ACCEPTED_FACT: &str = "accepted";

impl Queue {
    /// Records that the store is filled for another target from now on, if no calls or dead letters are left. Whether it
    /// did. Which `target` that is is asked under the order lock: of two that do this at once, the later one records the
    /// later target.
    pub(crate) fn retarget_if_empty(&self, target: impl FnOnce() -> Target) -> bool {
        let Ok(store) = self.store() else { return false };
        let ordered = self.order.lock();
        let is_empty = {
            let index = self.index.lock();
            index.is_empty() && index.dead().0 == 0
        };
        if is_empty {
            // If this fails the next start finds an empty queue and tries again.
            store.set_target(&target(), Box::new(|_| ()));
        }
        drop(ordered);
        is_empty
    }

    /// Records that whatever is in the queue may go to another target, for which the store is filled from now on; resolves
    /// once that is synced. Which `target` that is is asked under the order lock: no call gets its place between the last
    /// one that is accepted and what is recorded.
    ///
    /// # Errors
    /// [`AppendError::NoStore`] if it is not open.
    pub(crate) fn accept_target(
        self: &Arc<Self>,
        target: impl FnOnce() -> Target,
    ) -> Result<oneshot::Receiver<Result<(), StoreError>>, AppendError> {
        let store = self.store()?;
        let (sender, synced) = oneshot::channel();
        let ordered = self.order.lock();
        let (target, last_seq) = (target(), self.index.lock().last_seq());
        // Before the target itself: a crash in between leaves the question open.
        store.put_fact(ACCEPTED_FACT, accepted(last_seq, &target), Box::new(|_| ()));
        // What is requeued from here on is behind it in the log.
        let before = self.accepted.swap(last_seq, Ordering::AcqRel);
        let this = Arc::clone(self);
        store.set_target(
            &target,
            Box::new(move |result| {
                if result.is_err() {
                    let (now, then) = (Ordering::AcqRel, Ordering::Acquire);
                    this.accepted.compare_exchange(last_seq, before, now, then).ok();
                }
                drop(sender.send(result));
            }),
        );
        drop(ordered);
        Ok(synced)
    }
}

/// Up to which sequence calls of other targets may go to `target`.
pub(super) fn accepted_up_to(store: &dyn CallStore, target: &Target) -> u64 {
    let fact = store.fact(ACCEPTED_FACT);
    fact.filter(|fact| *fact == accepted(seq_of(fact), target)).map_or(0, |fact| seq_of(&fact))
}

/// The value of [`ACCEPTED_FACT`].
fn accepted(last_seq: u64, target: &Target) -> Vec<u8> {
    [&last_seq.to_be_bytes(), target.as_str().as_bytes()].concat()
}

fn seq_of(accepted: &[u8]) -> u64 {
    accepted.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
