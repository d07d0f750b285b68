//! What is noted of calls on their way: that they are sent, that they were applied, what is left of them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use fusebox_state::{
    Lanes, OpId, UnixMillis,
    queue::{Entry, Noted},
    store::{CallHeader, GroupNote, NewCall, Note, StoreError, StoredCall, TokenKind, Traits},
};
use tokio::sync::oneshot;

use super::{Applied, Queue, opening::applied_note, within_limit};
use crate::connector::Residue;

impl Queue {
    /// Notes that calls are about to be sent, as one if they are several, under `token`; resolves once that is
    /// synced.
    pub(crate) fn note_sending(
        self: &Arc<Self>,
        seqs: &[u64],
        token: OpId,
        evidence: Bytes,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        let (sender, synced) = oneshot::channel();
        let (Ok(store), Some(first)) = (self.store(), seqs.first().copied()) else { return synced };
        let (at, this, members) = (self.clock.unix(), Arc::clone(self), seqs.to_vec());
        let evidence = within_limit(evidence);
        let group = (members.len() > 1).then(|| GroupNote {
            token,
            members: members.clone(),
            applied: false,
        });
        let note = Note { first_sent_at: at, evidence: evidence.clone(), group };
        let done = Box::new(move |result: Result<(), StoreError>| {
            if result.is_ok() {
                let mut index = this.index.lock();
                for seq in &members {
                    if let Some(entry) = index.get_mut(*seq) {
                        let evidence = evidence.clone();
                        entry.details_mut().noted = Some(Noted { at, evidence });
                    }
                }
                if members.len() > 1 {
                    index.form_group(members, token, false);
                }
            }
            drop(sender.send(result));
        });
        let ordered = self.order.lock();
        store.note_sending(first, &note, done);
        drop(ordered);
        synced
    }

    /// Takes the note of a call, or of the group that begins with it, back: nothing of it was written. A group is
    /// dissolved, and `halved` if it was the calls' own fault.
    pub(crate) fn take_back_note(&self, seq: u64, halved: bool) {
        let Ok(store) = self.store() else { return };
        let ordered = self.order.lock();
        {
            let mut index = self.index.lock();
            let members = index.group(seq).map_or_else(|| vec![seq], |it| it.members.clone());
            index.dissolve_group(seq, halved);
            for member in members {
                if let Some(entry) = index.get_mut(member) {
                    entry.details_mut().noted = None;
                }
            }
        }
        // Not synced before the next sending is noted, which it precedes. If it is lost, because the store is down, that
        // newer note says the same to the next open, for the calls of a group too.
        store.take_back_note(seq, Box::new(|_| ()));
        drop(ordered);
    }

    /// A group was applied: tells who waits for its calls and removes them. What a crash leaves of them after the
    /// note is removed by the next open.
    pub(crate) fn group_applied(self: &Arc<Self>, seqs: &[u64], reply: &Bytes) {
        for seq in seqs {
            self.metrics.replayed.inc();
            if let Some(fate) = self.fates.lock().remove(seq) {
                drop(fate.send(Ok(Applied { reply: reply.clone(), lost: false })));
            }
        }
        let ordered = self.order.lock();
        {
            let mut index = self.index.lock();
            for seq in seqs {
                index.applied(*seq);
            }
        }
        self.remove_group_in_order(seqs, |_| ());
        drop(ordered);
        self.work.notify_one();
    }

    /// Takes the calls of a group out for good, under the order lock. `then` hears how that has ended: with the note that
    /// goes before the removal, the next open removes them, so a removal without that note alone is refused for certain.
    pub(super) fn remove_group_in_order(
        self: &Arc<Self>,
        seqs: &[u64],
        then: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) {
        let (Ok(store), Some(first)) = (self.store(), seqs.first().copied()) else { return };
        let is_noted = Arc::new(AtomicBool::new(false));
        let note = applied_note(&self.index.lock(), first);
        if let Some(note) = note {
            let is_noted = Arc::clone(&is_noted);
            let done = move |result: Result<(), StoreError>| {
                let is_refused = result.is_err_and(|error| !error.outcome_unknown());
                is_noted.store(!is_refused, Ordering::Release);
            };
            store.note_sending(first, &note, Box::new(done));
        }
        // The one beside which the note is stored goes last.
        let first_last: Vec<u64> = seqs.iter().skip(1).copied().chain([first]).collect();
        self.remove_in_order(first_last, move |result| {
            then(result.map_err(|error| {
                if is_noted.load(Ordering::Acquire) {
                    StoreError::Failed { unknown: true, detail: error.to_string().into() }
                } else {
                    error
                }
            }));
        });
    }

    /// `seq` was applied, and `residue` is left to do of it: takes its place in the store and in the line.
    /// Once that is synced, `then` is called.
    pub(crate) fn replace(
        self: &Arc<Self>,
        seq: u64,
        residue: Residue,
        applied: Option<Applied>,
        then: impl FnOnce() + Send + 'static,
    ) {
        let fate = self.fates.lock().remove(&seq);
        if let (Some(fate), Some(applied)) = (fate, applied) {
            drop(fate.send(Ok(applied)));
        }
        let Ok(store) = self.store() else { return };
        let ordered = self.order.lock();
        let Residue { body, lanes, due } = residue;
        // It was read to be sent.
        let Ok(stored) = store.call(seq) else {
            // So it cannot be replaced either: it waits as it was; applied again it leaves the same.
            self.index.lock().put_back(seq);
            self.work.notify_one();
            return;
        };
        let call = {
            let mut index = self.index.lock();
            // What replaces it can be read before that is synced: nobody takes it until then.
            index.hold(seq);
            let Some(entry) = index.get(seq) else { return };
            residue_call(stored, entry, body, &lanes, due)
        };
        let bytes = call.body.len() as u64;
        let this = Arc::clone(self);
        store.replace(
            &call,
            Box::new(move |result| {
                let mut index = this.index.lock();
                let before = index.get(seq).map(|entry| entry.header.lanes.clone());
                if result.is_ok() {
                    index.became_residue(seq, lanes, due, bytes);
                } else {
                    // It waits as it was; applied again it leaves the same.
                    index.was_rewritten(seq);
                    index.put_back(seq);
                }
                if let Some(before) = before {
                    this.freed.left(&before, &index);
                }
                this.count(&index);
                drop(index);
                this.work.notify_one();
                if result.is_ok() {
                    then();
                }
            }),
        );
        drop(ordered);
    }
}

fn residue_call(
    stored: StoredCall,
    entry: &Entry,
    body: Bytes,
    lanes: &Lanes,
    due: UnixMillis,
) -> NewCall {
    NewCall {
        seq: stored.seq,
        header: CallHeader {
            lanes: lanes.clone(),
            token: TokenKind::Absolute,
            traits: Traits::residue(due),
            ..entry.header.clone()
        },
        target: stored.target,
        label: stored.label,
        traceparent: entry.details().origin.map(|span| span.to_string()),
        note: None,
        body,
    }
}
