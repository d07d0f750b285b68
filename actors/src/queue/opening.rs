//! The queue and its store: opening, what an outage of the store leaves, and putting the index in step.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak, atomic::Ordering},
};

use fusebox_state::{
    OpId, SpanRef, Target,
    queue::{Entry, Noted, Phase, QueueIndex},
    store::{
        CallStore, Finding, FoundCall, GroupNote, Note, OpenError, StoreEvent, StoreSettings,
        TokenKind,
    },
    write::WriteState,
};

use super::{Queue, dead_letters::said, target::accepted_up_to};
use crate::{alert::Alert, event::EventKind, ground::OpenedStore};

/// Calls whose room is given back at once.
const ROOM_OF: usize = 8_192;

impl Queue {
    /// Opens the store in `dir` and takes back what it holds. Blocks: run it on a thread that may.
    /// `before` gets the store, and the target that waiting calls were accepted for if it is
    /// another one, before anybody can take a call out: what holds replay back must hold by then.
    ///
    /// # Errors
    /// The store's own. The queue stays closed, and may be opened another time.
    pub fn open(
        self: &Arc<Self>,
        dir: std::path::PathBuf,
        target: &Target,
        disk_floor: u64,
        before: impl FnOnce(&dyn CallStore, Option<&Target>),
    ) -> Result<(), OpenError> {
        let this: Weak<Self> = Arc::downgrade(self);
        let clock = self.clock;
        let settings = StoreSettings {
            dir,
            target: target.clone(),
            disk_floor,
            unix_now: Arc::new(move || clock.unix()),
            on_event: Arc::new(move |event| {
                if let Some(queue) = this.upgrade() {
                    queue.on_store_event(event);
                }
            }),
            packed: self.packed,
            faults: fusebox_state::store::Faults::default(),
        };
        match self.ground.open_store(&self.name, settings) {
            Ok(opened) => {
                self.take_over(opened, target, before);
                Ok(())
            }
            Err(error) => {
                self.closed_because(error.to_string());
                Err(error)
            }
        }
    }

    /// Why it is not open, for whoever asks.
    pub(crate) fn closed_because(&self, why: String) {
        *self.closed.lock() = Some(why);
    }

    fn take_over(
        &self,
        opened: OpenedStore,
        target: &Target,
        before: impl FnOnce(&dyn CallStore, Option<&Target>),
    ) {
        // Calls have the target that they were accepted for, also if the store's own is the same.
        let accepted_up_to = accepted_up_to(&*opened.store, target);
        // As long as the question is open, nothing that is requeued goes to the present target.
        let is_answered = opened.previous_target.is_none();
        self.accepted.store(if is_answered { accepted_up_to } else { 0 }, Ordering::Release);
        let stray = |call: &&FoundCall| call.target != *target && call.seq > accepted_up_to;
        let other = opened.calls.iter().find(stray).map(|call| call.target.clone());
        // A large queue takes seconds, in which the index can be asked.
        let limits = self.index.lock().limits();
        let holds_any = !opened.calls.is_empty();
        let mut fresh = QueueIndex::new(limits, opened.last_seq);
        self.restore_all(&mut fresh, opened.calls);
        let mut index = self.index.lock();
        if !holds_any && index.standing() > 0 {
            // Live writes hold places that they claimed while it was not open.
            index.follow(opened.last_seq);
        } else {
            fresh.set_limits(index.limits());
            *index = fresh;
            // The policy may have changed while they were taken back.
            if !self.dead_blocks.load(Ordering::Relaxed) {
                index.release_dead(&self.marking.lock());
            }
        }
        self.count(&index);
        let waits = !index.is_empty() || index.dead().0 > 0;
        drop(index);
        self.tell_findings(&opened.findings);
        let previous = match opened.previous_target.or(other) {
            Some(previous) if waits => Some(previous),
            Some(_) => {
                opened.store.set_target(target, Box::new(|_| ()));
                None
            }
            None => None,
        };
        before(&*opened.store, previous.as_ref());
        self.history.restore(opened.store.history(crate::history::KEPT));
        if self.store.set(opened.store).is_ok() {
            *self.closed.lock() = None;
        }
        self.alert(Alert::Closed, None);
        self.lanes_moved();
    }

    /// Takes calls back, in rising order of sequence, with the groups that they were sent in.
    fn restore_all(&self, index: &mut QueueIndex, mut calls: Vec<FoundCall>) {
        let holds = self.dead_blocks.load(Ordering::Relaxed);
        let mut groups: BTreeMap<u64, (Vec<u64>, OpId, bool)> = BTreeMap::new();
        index.expect(calls.len());
        // The room of a large queue's calls is given back while the index grows.
        calls.reverse();
        while let Some(call) = calls.pop() {
            if calls.len().is_multiple_of(ROOM_OF) {
                calls.shrink_to_fit();
            }
            let (seq, dead) = (call.seq, call.marks().dead.is_some());
            if let Some(group) = &call.marks().group {
                let token = (Vec::new(), group.token, group.broken);
                groups.entry(group.id).or_insert(token).0.push(seq);
            }
            index.restore(seq, entry_of(call), dead, holds);
        }
        for (members, token, broken) in groups.into_values() {
            index.form_group(members, token, broken);
        }
    }

    pub(crate) fn on_store_event(self: &Arc<Self>, event: StoreEvent) {
        match event {
            StoreEvent::Refusing { reason } => {
                self.alert(
                    Alert::Store,
                    Some(format!("the store refuses writes: {reason}").into()),
                );
            }
            StoreEvent::Accepting => self.alert(Alert::Store, None),
            StoreEvent::Rebuilt { reason, lost } => {
                tracing::warn!(backend = self.name, reason, "the store was rebuilt");
                self.tell_findings(&lost);
            }
            StoreEvent::Found { findings } => self.tell_findings(&findings),
            StoreEvent::Reopened { calls } => {
                self.reconcile(calls);
                self.alert(Alert::Store, None);
            }
        }
    }

    /// Puts the index in step with what the store holds; see the module's page. What others sent during an outage was
    /// refused, and what is sent here, on the thread that tells of the end, goes before whatever waits by now. So the
    /// removals that are sent again are committed in their order, and that of no later call before them.
    fn reconcile(self: &Arc<Self>, calls: Vec<FoundCall>) {
        let mut held: BTreeMap<u64, FoundCall> =
            calls.into_iter().map(|call| (call.seq, call)).collect();
        let ordered = self.order.lock();
        let mut again = Vec::new();
        let mut index = self.index.lock();
        let unsent = unsent_notes(&index, &held);
        let known: Vec<(u64, Phase)> =
            index.page(false, 0).map(|(seq, entry)| (seq, entry.phase)).collect();
        let requeued = self.take_doubtful_requeues();
        for (seq, phase) in known {
            let in_doubt = self.in_doubt.lock().remove(&seq);
            match (held.remove(&seq), phase) {
                // Its append, requeue or revival was sent since the store serves again, and is still to be committed.
                (_, Phase::Committing) if !in_doubt => {}
                (Some(_), Phase::Committing) => index.committed(seq),
                (Some(_), Phase::Removing) => again.push(seq),
                (Some(stored), _) => replaced(&mut index, stored),
                (None, Phase::Committing | Phase::Removing) => drop(index.removed(seq)),
                (None, _) => {
                    tracing::error!(
                        backend = self.name,
                        seq,
                        "a queued call is missing from the store"
                    );
                    index.removed(seq);
                }
            }
        }
        // Dead letters that were imported, and were not stored after all.
        let dead: Vec<u64> = index.page(true, 0).map(|(seq, _)| seq).collect();
        for seq in dead {
            if self.in_doubt.lock().remove(&seq) && !held.contains_key(&seq) {
                index.removed(seq);
                self.unmarked.lock().remove(&seq);
                self.marking.lock().remove(&seq);
            }
        }
        for (new, old, entry) in requeued {
            if index.get(new).is_some() {
                index.unclaim(old);
            } else if held.remove(&old).is_some() {
                index.not_requeued(old, entry);
            } else {
                index.unclaim(old);
            }
        }
        // A dead letter that is being requeued is known by its new sequence.
        let unknown = held.into_values();
        let unknown = unknown
            .filter(|it| index.get(it.seq).is_none() && index.find(it.header.op_id).is_none());
        let unknown: Vec<FoundCall> = unknown.collect();
        self.restore_all(&mut index, unknown);
        self.count(&index);
        let notes: Vec<(u64, Note)> =
            again.iter().filter_map(|seq| Some((*seq, applied_note(&index, *seq)?))).collect();
        drop(index);
        if let Ok(store) = self.store() {
            for seq in unsent {
                store.take_back_note(seq, Box::new(|_| ()));
            }
            for (seq, note) in &notes {
                store.note_sending(*seq, note, Box::new(|_| ()));
            }
        }
        // The calls that have the notes of groups go last.
        again.sort_by_key(|seq| notes.iter().any(|(first, _)| first == seq));
        if !again.is_empty() {
            self.remove_in_order(again, |_| ());
        }
        // One that is there no more, or marked after all, loses nothing by it.
        for (seq, mark) in std::mem::take(&mut *self.unmarked.lock()) {
            self.bury_in_order(seq, mark);
        }
        drop(ordered);
        self.lanes_moved();
    }

    /// The requeues whose outcome only the store can tell, as it does now.
    fn take_doubtful_requeues(&self) -> Vec<(u64, u64, Entry)> {
        let in_doubt = self.in_doubt.lock();
        let mut requeuing = self.requeuing.lock();
        let mut doubtful = Vec::new();
        requeuing.retain(|new, (old, entry)| {
            let is_doubtful = in_doubt.contains(new);
            if is_doubtful {
                doubtful.push((*new, *old, entry.clone()));
            }
            !is_doubtful
        });
        doubtful
    }

    fn tell_findings(&self, findings: &[Finding]) {
        for finding in findings {
            if !finding.is_damage() {
                tracing::warn!(backend = self.name, %finding, "the store was repaired");
                continue;
            }
            tracing::error!(backend = self.name, ?finding, "the store was found damaged");
            self.publish(EventKind::Alert { message: format!("the store: {finding}").into() });
        }
        let damage: Vec<String> =
            findings.iter().filter(|found| found.is_damage()).map(ToString::to_string).collect();
        if !damage.is_empty() {
            self.alert(
                Alert::Damage,
                Some(format!("the store was found damaged: {}", damage.join("; ")).into()),
            );
        }
    }
}

/// The calls beside which the store has notes that the index does not know of. It was not heard that they were written,
/// so nothing was sent.
fn unsent_notes(index: &QueueIndex, held: &BTreeMap<u64, FoundCall>) -> BTreeSet<u64> {
    let is_unsent = |call: &&FoundCall| {
        let entry = index.get(call.seq).filter(|_| call.marks().first_sent_at.is_some());
        entry.is_some_and(|entry| entry.details().noted.is_none())
    };
    let beside = |call: &FoundCall| call.marks().group.as_ref().map_or(call.seq, |group| group.id);
    held.values().filter(is_unsent).map(beside).collect()
}

/// If what was to replace a call was written after all, the index has that, too.
fn replaced(index: &mut QueueIndex, stored: FoundCall) {
    let FoundCall { seq, header, body_len, .. } = stored;
    let Some(due) = header.traits.due() else { return };
    let is_other =
        index.get(seq).is_some_and(|entry| entry.header != header || entry.size() != body_len);
    if is_other {
        index.became_residue(seq, header.lanes, due, body_len);
    }
}

/// What is noted beside `seq`, the first call of a group, once the group was applied or is discarded.
pub(super) fn applied_note(index: &QueueIndex, seq: u64) -> Option<Note> {
    let group = index.group(seq)?;
    let noted = index.get(seq)?.details().noted.as_ref()?;
    Some(Note {
        first_sent_at: noted.at,
        evidence: noted.evidence.clone(),
        group: Some(GroupNote {
            token: group.token,
            members: group.members.clone(),
            applied: true,
        }),
    })
}

/// The span that queued a call, if it was recorded.
fn recorded(traceparent: &str) -> Option<SpanRef> {
    SpanRef::parse(traceparent).filter(|span| span.sampled)
}

fn entry_of(mut call: FoundCall) -> Entry {
    let token = call.header.token;
    let marks = call.take_marks();
    let state = WriteState::restored(token.repeat(), marks.first_sent_at.is_some());
    let own_name = token == TokenKind::OwnMarker;
    let mut entry = Entry::new(call.header, call.object, state, own_name, call.body_len);
    if let Some(at) = marks.first_sent_at {
        entry.details_mut().noted = Some(Noted { at, evidence: marks.evidence });
    }
    if let Some(mark) = &marks.dead {
        entry.set_attempts(mark.attempts);
        entry.details_mut().last_error = Some(mark.detail.within(|text| said(mark.reason, text)));
    }
    let origin = marks.traceparent.as_deref().and_then(recorded);
    if origin.is_some() {
        entry.details_mut().origin = origin;
    }
    entry
}
