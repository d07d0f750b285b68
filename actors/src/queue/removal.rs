//! Calls leave the queue: what was applied, and what is discarded.

use std::sync::Arc;

use fusebox_state::store::StoreError;

use super::{Applied, Queue};

impl Queue {
    /// `seq` was applied: tells who waits for it and removes it. Without `applied` nobody knows its reply. `then`
    /// runs once the removal is synced.
    pub fn applied(
        self: &Arc<Self>,
        seq: u64,
        applied: Option<Applied>,
        then: impl FnOnce() + Send + 'static,
    ) {
        self.applied_together(vec![(seq, applied)], then);
    }

    /// The same of several, which are removed in this order.
    pub(crate) fn applied_together(
        self: &Arc<Self>,
        applied: Vec<(u64, Option<Applied>)>,
        then: impl FnOnce() + Send + 'static,
    ) {
        if applied.is_empty() {
            return;
        }
        let seqs: Vec<u64> = applied.iter().map(|(seq, _)| *seq).collect();
        self.metrics.replayed.inc_by(seqs.len() as u64);
        {
            let mut fates = self.fates.lock();
            for (seq, applied) in applied {
                if let (Some(fate), Some(applied)) = (fates.remove(&seq), applied) {
                    drop(fate.send(Ok(applied)));
                }
            }
        }
        let ordered = self.order.lock();
        {
            let mut index = self.index.lock();
            for seq in &seqs {
                index.applied(*seq);
            }
        }
        self.remove_in_order(seqs, move |result| {
            if result.is_ok() {
                then();
            }
        });
        drop(ordered);
        self.work.notify_one();
    }

    /// Takes calls or dead letters out for good, under the order lock. `then` hears how that has ended: after a failure
    /// the store tells what it holds, and what is REMOVING is removed again.
    pub(super) fn remove_in_order(
        self: &Arc<Self>,
        seqs: Vec<u64>,
        then: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) {
        let Ok(store) = self.store() else { return };
        let (this, gone) = (Arc::clone(self), seqs.clone());
        store.remove(
            seqs,
            Box::new(move |result| {
                if result.is_ok() {
                    this.forget(&gone);
                }
                then(result);
            }),
        );
    }

    /// They are out of the store, and go from the index.
    fn forget(&self, seqs: &[u64]) {
        let mut index = self.index.lock();
        for seq in seqs {
            if let Some(lanes) = index.removed(*seq) {
                self.freed.left(&lanes, &index);
            }
        }
        self.count(&index);
        drop(index);
        let mut fates = self.fates.lock();
        for seq in seqs {
            drop(fates.remove(seq));
        }
        drop(fates);
        self.work.notify_one();
    }
}
