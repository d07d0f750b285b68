//! Giving up on a call, and what an operator may do with what was given up on.

use std::sync::{Arc, atomic::Ordering};

use fusebox_state::{
    Words,
    queue::Phase,
    store::{DeadMark, DeadReason, StoreError},
};
use tokio::sync::oneshot;

use super::{AppendError, NewWrite, Queue};
use crate::event::EventKind;

/// Why a dead letter is not requeued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotRequeued {
    /// It is none any more, or the store is not open.
    Gone,
    /// Its lanes were written since.
    Written,
}

impl Queue {
    /// Gives up on `seq`, and on all that were sent with it as one, and keeps it with its reason. If the dead
    /// letters are full, `false` is returned: they keep their lanes and wait, and are not sent again.
    pub fn bury(self: &Arc<Self>, seq: u64, reason: DeadReason, detail: &Words) -> bool {
        if self.store().is_err() {
            return false;
        }
        let ordered = self.order.lock();
        let mut index = self.index.lock();
        // One that was sent with others as one may have been given up with these.
        let Some(entry) = index.get_mut(seq) else { return true };
        let (attempts, op_id) = (entry.attempts(), entry.header.op_id);
        let seqs = index.sent_with(seq);
        let bytes = seqs.iter().filter_map(|it| Some(index.get(*it)?.size())).sum();
        if index.dead_full(bytes) {
            index.sentence(seq, reason, detail);
            self.count(&index);
            return false;
        }
        let why = detail.within(|text| said(reason, text));
        // Until the mark is synced; after that only if the settings say so.
        for seq in &seqs {
            index.buried(*seq, &why, true);
        }
        self.count(&index);
        drop(index);
        for seq in &seqs {
            let (detail, at) = (detail.clone(), self.clock.unix());
            self.bury_in_order(*seq, DeadMark { reason, detail, at, attempts });
        }
        drop(ordered);
        self.metrics.dead.inc();
        let calls = seqs.len();
        tracing::warn!(
            backend = self.name,
            %op_id,
            calls,
            reason = %why,
            "a queued call is a dead letter"
        );
        self.publish(EventKind::DeadLetter { op_id: op_id.to_string(), reason: why.closed() });
        // What a server says of several may quote any of them.
        let told = if calls > 1 { why.closed() } else { why };
        for seq in seqs {
            if let Some(fate) = self.fates.lock().remove(&seq) {
                drop(fate.send(Err(told.clone())));
            }
        }
        self.lanes_moved();
        true
    }

    /// Marks a dead letter in the store, under the order lock. Its lane moves on once that is synced.
    pub(super) fn bury_in_order(self: &Arc<Self>, seq: u64, mark: DeadMark) {
        let Ok(store) = self.store() else { return };
        let (this, again) = (Arc::clone(self), mark.clone());
        self.marking.lock().insert(seq);
        store.bury(
            seq,
            mark,
            Box::new(move |result| match result {
                Ok(()) | Err(StoreError::NotFound { .. }) => this.marked(seq),
                // Marked again once the store is open again.
                Err(error) => {
                    tracing::error!(backend = this.name, seq, %error, "a dead letter could not be marked");
                    this.unmarked.lock().insert(seq, again);
                }
            }),
        );
    }

    /// Makes a call durable that is a dead letter already, and never waits in this run; resolves once that is synced.
    /// `is_for_us` as for [`Queue::append`].
    ///
    /// # Errors
    /// [`AppendError`] says why it was not even tried; nothing changed.
    pub(crate) fn append_dead(
        self: &Arc<Self>,
        write: NewWrite,
        mark: DeadMark,
        is_for_us: impl Fn() -> bool,
    ) -> Result<oneshot::Receiver<Result<(), StoreError>>, AppendError> {
        let bytes = write.body.len() as u64;
        if self.index.lock().dead_full(bytes) {
            return Err(AppendError::DeadFull);
        }
        let (sender, marked) = oneshot::channel();
        let why = mark.detail.within(|text| said(mark.reason, text));
        let this = Arc::clone(self);
        self.enter(write, bytes, is_for_us, move |store, call, done| {
            let seq = call.seq;
            {
                let mut index = this.index.lock();
                index.buried(seq, &why, true);
                this.count(&index);
            }
            store.append(call, done);
            let (queue, again) = (Arc::clone(&this), mark.clone());
            this.marking.lock().insert(seq);
            store.bury(
                seq,
                mark,
                Box::new(move |result| {
                    match &result {
                        Ok(()) => queue.marked(seq),
                        // It was not stored either, and is forgotten.
                        Err(StoreError::NotFound { .. }) => drop(queue.marking.lock().remove(&seq)),
                        Err(_) => drop(queue.unmarked.lock().insert(seq, again)),
                    }
                    drop(sender.send(result));
                }),
            );
        })?;
        Ok(marked)
    }

    fn marked(&self, seq: u64) {
        let mut index = self.index.lock();
        // Under the index's lock: whoever changes the policy sees it marked, or is seen here.
        self.marking.lock().remove(&seq);
        if self.dead_blocks.load(Ordering::Relaxed) {
            return;
        }
        index.release(seq);
        self.count(&index);
        drop(index);
        self.lanes_moved();
    }

    /// Puts a dead letter back at the tail of its lanes; resolves once that is synced. It keeps its doubt unless
    /// that is to be forgotten, and the target that it was accepted for unless an operator has accepted the present one.
    /// `force` if it may overwrite what was written to its lanes since.
    ///
    /// # Errors
    /// [`NotRequeued`]; nothing has changed.
    pub(crate) fn requeue(
        self: &Arc<Self>,
        seq: u64,
        force: bool,
        forget_doubt: bool,
    ) -> Result<oneshot::Receiver<Result<(), StoreError>>, NotRequeued> {
        let store = self.store().map_err(|_| NotRequeued::Gone)?;
        let (sender, synced) = oneshot::channel();
        let ordered = self.order.lock();
        let (new, old) = {
            let mut index = self.index.lock();
            let old = index.get(seq).ok_or(NotRequeued::Gone)?.clone();
            if !force && old.details().written_since {
                return Err(NotRequeued::Written);
            }
            if let Some(id) = old.details().group {
                let members = index.revive(id).ok_or(NotRequeued::Gone)?;
                self.count(&index);
                drop(index);
                let (this, why) = (Arc::clone(self), old.details().last_error.clone());
                let revived = Revived { id, members: members.clone(), why, forget_doubt };
                let done = Box::new(move |result: Result<(), StoreError>| {
                    this.revived(&revived, &result);
                    drop(sender.send(result));
                });
                if forget_doubt {
                    store.revive_unsent(&members, id, done);
                } else {
                    store.revive(&members, done);
                }
                return Ok(synced);
            }
            let new = index.requeue(seq, forget_doubt).ok_or(NotRequeued::Gone)?;
            self.count(&index);
            (new, old)
        };
        self.requeuing.lock().insert(new, (seq, old));
        let this = Arc::clone(self);
        let keep_note = !forget_doubt;
        let done = Box::new(move |result: Result<(), StoreError>| {
            this.requeued(new, &result);
            drop(sender.send(result));
        });
        if seq <= self.accepted.load(Ordering::Acquire) {
            store.requeue_here(seq, new, keep_note, done);
        } else {
            store.requeue(seq, new, keep_note, done);
        }
        drop(ordered);
        Ok(synced)
    }

    /// The revival of calls that were sent as one has ended. If its outcome is unknown, they wait once the store is
    /// open again, which holds them either way.
    fn revived(&self, group: &Revived, result: &Result<(), StoreError>) {
        let Revived { id, members, why, forget_doubt } = group;
        let is_unknown = result.as_ref().is_err_and(StoreError::outcome_unknown);
        let holds = self.dead_blocks.load(Ordering::Relaxed);
        let mut index = self.index.lock();
        // As long as the store may refuse that, they are in doubt, and belong together.
        if *forget_doubt && (result.is_ok() || is_unknown) {
            index.dissolve_group(*id, false);
            for seq in members {
                if let Some(entry) = index.get_mut(*seq) {
                    entry.cleared();
                }
            }
        }
        if is_unknown {
            self.in_doubt.lock().extend(members);
            return;
        }
        for seq in members {
            if result.is_ok() {
                index.committed(*seq);
            } else if index.get(*seq).is_some_and(|it| it.phase == Phase::Committing) {
                index.buried(*seq, why.clone().unwrap_or("".into()), holds);
            }
        }
        self.count(&index);
        drop(index);
        if result.is_ok() {
            self.metrics.requeued.inc();
        }
        self.lanes_moved();
    }

    /// The requeue that gave a dead letter the place `new` has ended. If its outcome is unknown, the store tells
    /// it once it is open again.
    fn requeued(&self, new: u64, result: &Result<(), StoreError>) {
        self.appended(new, result);
        if result.as_ref().is_err_and(StoreError::outcome_unknown) {
            return;
        }
        let Some((old, entry)) = self.requeuing.lock().remove(&new) else { return };
        let mut index = self.index.lock();
        match result {
            Ok(()) => {
                self.metrics.requeued.inc();
                index.unclaim(old);
            }
            // The dead letter itself is gone.
            Err(StoreError::NotFound { .. }) => drop(index.unclaim(old)),
            // It was not stored: the dead letter is unchanged.
            Err(_) => index.not_requeued(old, entry),
        }
        self.count(&index);
        drop(index);
        self.lanes_moved();
    }

    /// Discards a call or dead letter that is not on the wire, with all that were sent with it as one; resolves
    /// once that is synced. `None` if it is on the wire or gone. One whose removal the store refuses goes on waiting, so
    /// nothing passes it before the removal is synced.
    pub fn discard(
        self: &Arc<Self>,
        seq: u64,
    ) -> Option<oneshot::Receiver<Result<(), StoreError>>> {
        let (sender, synced) = oneshot::channel();
        let ordered = self.order.lock();
        let mut index = self.index.lock();
        let seqs = index.sent_with(seq);
        let busy = seqs.iter().any(|seq| match index.get_mut(*seq) {
            Some(entry) => !matches!(entry.phase, Phase::Waiting | Phase::BackingOff),
            None => index.get(*seq).is_none(),
        });
        if busy {
            return None;
        }
        for seq in &seqs {
            index.hold(*seq);
        }
        drop(index);
        let (this, held) = (Arc::clone(self), seqs.clone());
        let then = move |result: Result<(), StoreError>| {
            match &result {
                Ok(()) => {
                    this.metrics.discarded.inc();
                }
                Err(error) => this.not_discarded(&held, error),
            }
            // Who asked may have left.
            sender.send(result).ok();
        };
        if seqs.len() > 1 {
            self.remove_group_in_order(&seqs, then);
        } else {
            self.remove_in_order(vec![seq], then);
        }
        drop(ordered);
        Some(synced)
    }

    /// The removal of calls that are held to be discarded has failed. They wait again, but if it is unknown whether they
    /// are gone, the store tells that once it is open again, and those that are left are removed.
    fn not_discarded(&self, seqs: &[u64], error: &StoreError) {
        let mut index = self.index.lock();
        for seq in seqs {
            if error.outcome_unknown() {
                index.applied(*seq);
            } else {
                index.put_back(*seq);
            }
        }
        drop(index);
        self.work.notify_one();
    }
}

/// A group whose dead letters are to wait again.
struct Revived {
    id: u64,
    members: Vec<u64>,
    /// Why they were dead letters.
    why: Option<Words>,
    /// An operator has checked that they were not applied.
    forget_doubt: bool,
}

/// Why a dead letter is one.
pub(super) fn said(reason: DeadReason, detail: &str) -> String {
    format!("{}: {detail}", reason_word(reason))
}

/// The word of the API for a reason.
fn reason_word(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Rejected => "rejected",
        DeadReason::Expired => "expired",
        DeadReason::Ambiguous => "ambiguous",
        DeadReason::Undecodable => "undecodable",
        DeadReason::GaveUp => "gave_up",
    }
}
