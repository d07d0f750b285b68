//! Giving up on a call, and what an operator may do with what was given up on.

use std::sync::{Arc, atomic::Ordering};

use fusebox_state::{
    queue::Phase,
    store::{DeadMark, DeadReason, StoreError},
};
use tokio::sync::oneshot;

use super::Queue;
use crate::event::EventKind;

impl Queue {
    /// Gives up on `seq` and keeps it with its reason. Where dead letters are full it goes back to
    /// wait, which blocks its lane, and `false` is returned.
    pub fn bury(self: &Arc<Self>, seq: u64, reason: DeadReason, detail: &str) -> bool {
        if self.store().is_err() {
            return false;
        }
        let ordered = self.order.lock();
        let mut index = self.index.lock();
        let Some(entry) = index.get(seq) else { return true };
        let (bytes, attempts, op_id) = (entry.bytes, entry.attempts, entry.op_id);
        if index.dead_full(bytes) {
            return false;
        }
        let said = format!("{}: {detail}", reason_word(reason));
        // Until the mark is synced; after that only where the settings say so.
        index.buried(seq, &said, true);
        self.count(&index);
        drop(index);
        let mark = DeadMark { reason, detail: detail.to_owned(), at: self.clock.unix(), attempts };
        self.bury_in_order(seq, mark);
        drop(ordered);
        self.metrics.dead.inc();
        tracing::warn!(backend = self.name, %op_id, reason = said, "a queued call is a dead letter");
        self.publish(EventKind::DeadLetter { op_id: op_id.to_string(), reason: said.clone() });
        if let Some(fate) = self.fates.lock().remove(&seq) {
            drop(fate.send(Err(said)));
        }
        self.freed.notify_waiters();
        self.work.notify_one();
        true
    }

    /// Marks a dead letter in the store, under the order lock. Its lane moves on once that is synced.
    pub(super) fn bury_in_order(self: &Arc<Self>, seq: u64, mark: DeadMark) {
        let Ok(store) = self.store() else { return };
        let (this, again) = (Arc::clone(self), mark.clone());
        store.bury(
            seq,
            mark,
            Box::new(move |result| match result {
                Ok(()) | Err(StoreError::NotFound { .. }) => this.marked(seq),
                // Marked again once the store is open again.
                Err(error) => {
                    tracing::error!(backend = this.name, seq, %error, "a dead letter is not marked");
                    this.unmarked.lock().insert(seq, again);
                }
            }),
        );
    }

    fn marked(&self, seq: u64) {
        if self.dead_blocks.load(Ordering::Relaxed) {
            return;
        }
        let mut index = self.index.lock();
        index.release(seq);
        self.count(&index);
        drop(index);
        self.freed.notify_waiters();
        self.work.notify_one();
    }

    /// Puts a dead letter back at the tail of its lanes; resolves once that is synced.
    pub fn requeue(
        self: &Arc<Self>,
        seq: u64,
    ) -> Option<oneshot::Receiver<Result<(), StoreError>>> {
        let store = self.store().ok()?;
        let (sender, synced) = oneshot::channel();
        let ordered = self.order.lock();
        let (new, old) = {
            let mut index = self.index.lock();
            let old = index.get(seq)?.clone();
            let new = index.requeue(seq)?;
            self.count(&index);
            (new, old)
        };
        let this = Arc::clone(self);
        store.requeue(
            seq,
            new,
            Box::new(move |result| {
                this.appended(new, &result);
                if result.is_ok() {
                    this.metrics.requeued.inc();
                }
                let gone = matches!(result, Err(StoreError::NotFound { .. }));
                if !gone && result.as_ref().is_err_and(|error| !error.outcome_unknown()) {
                    // It was not stored: the dead letter is where it was.
                    let holds = this.dead_blocks.load(Ordering::Relaxed);
                    let mut index = this.index.lock();
                    index.restore(seq, old, true, holds);
                    this.count(&index);
                }
                drop(sender.send(result));
            }),
        );
        drop(ordered);
        Some(synced)
    }

    /// Discards a call or dead letter that is not on the wire; resolves once that is synced. `None`
    /// where it is on the wire or gone.
    pub fn discard(self: &Arc<Self>, seq: u64) -> Option<oneshot::Receiver<()>> {
        let (sender, synced) = oneshot::channel();
        let ordered = self.order.lock();
        let mut index = self.index.lock();
        let busy = match index.get_mut(seq) {
            Some(entry) if matches!(entry.phase, Phase::Waiting | Phase::BackingOff { .. }) => {
                false
            }
            Some(_) => true,
            None => index.get(seq).is_none(),
        };
        if busy {
            return None;
        }
        index.applied(seq);
        drop(index);
        let discarded = self.metrics.discarded.clone();
        self.remove_in_order(seq, move || {
            discarded.inc();
            // Who asked may have left.
            sender.send(()).ok();
        });
        drop(ordered);
        Some(synced)
    }
}

/// The word of the API for a reason.
pub(super) fn reason_word(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Rejected => "rejected",
        DeadReason::Expired => "expired",
        DeadReason::Ambiguous => "ambiguous",
        DeadReason::Undecodable => "undecodable",
        DeadReason::GaveUp => "gave_up",
    }
}
