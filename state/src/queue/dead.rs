//! Dead letters: how calls become some, and how they come back.

use std::collections::BTreeSet;

use super::{Entry, Phase, QueueIndex};
use crate::{
    store::DeadReason,
    units::Lanes,
    words::Words,
    write::{End, Known},
};

impl QueueIndex {
    /// `seq` became a dead letter. It goes on holding its lane if `holds_lane`: for as long as its
    /// mark is not synced, a crash would bring it back as a call that waits. It holds up no residue before it.
    pub fn buried(&mut self, seq: u64, reason: impl Into<Words>, holds_lane: bool) {
        // What is behind it will be written once it is out of the way.
        let written_since = !self.lanes.behind(seq, &self.calls).is_empty();
        self.unready(seq);
        let Some(mut entry) = self.calls.entries.remove(seq) else { return };
        if let Some(until) = entry.backs_off_until() {
            self.backing_off.remove(&(until, seq));
        }
        self.bytes -= entry.size();
        self.dead_bytes += entry.size();
        if entry.state.known() == Known::OnWire {
            entry.state.end(End::Unknown);
        }
        self.sentenced.remove(seq);
        self.count_in(&entry);
        let attempts = entry.attempts();
        entry.phase = Phase::Waiting;
        let details = entry.details_mut();
        (details.verdict, details.attempts) = (None, attempts);
        (details.last_error, details.written_since) = (Some(reason.into()), written_since);
        let group = details.group;
        let lanes = entry.header.lanes.clone();
        self.calls.dead.insert(seq, entry);
        self.touched(seq, &lanes);
        if holds_lane {
            self.lanes.set_opaque(seq, true, &self.calls);
            self.changed(seq);
        } else {
            self.step_out(seq);
        }
        self.consider_leader(group);
    }

    /// Replay has given up on `seq`, and there is no room for it among the dead letters: it keeps its lane, and
    /// is not sent again. With all that were sent with it as one: the first of them has the verdict, and the others,
    /// which go on the wire only with that one, wait again.
    pub fn sentence(&mut self, seq: u64, reason: DeadReason, detail: impl Into<Words>) {
        let all = self.sent_with(seq);
        let size = |seq: &u64| self.get(*seq).map_or(0, Entry::size);
        let bytes: u64 = all.iter().map(size).sum();
        let mut calls = all.into_iter().filter(|it| self.calls.entries.get(*it).is_some());
        let Some(first) = calls.next() else { return };
        let others: Vec<u64> = calls.collect();
        if let Some(entry) = self.calls.entries.get_mut(first) {
            entry.details_mut().verdict = Some((reason, detail.into()));
        }
        self.sentenced.insert(first, bytes);
        for other in others {
            self.put_back(other);
        }
    }

    /// The mark of the dead letter `seq` is synced: it no longer holds its lane, nor does its place if it is being
    /// requeued: that it may not be stored changes nothing.
    pub fn release(&mut self, seq: u64) {
        if self.calls.dead.contains_key(&seq) || self.calls.claims.contains_key(&seq) {
            self.step_out(seq);
            self.calls.claims.remove(&seq);
        }
    }

    /// Dead letters hold no lane any more, but for those of `unmarked`, whose marks are not synced yet.
    pub fn release_dead(&mut self, unmarked: &BTreeSet<u64>) {
        let dead = self.calls.dead.keys().copied();
        let held: Vec<u64> =
            dead.filter(|seq| !unmarked.contains(seq) && self.lanes.stands(*seq)).collect();
        for seq in held {
            self.step_out(seq);
        }
    }

    /// Gives a dead letter a place at the tail of its lanes; hand the requeue to the committer under
    /// the same lock. The new call is COMMITTING, and keeps its doubt unless that is to be forgotten. For one of a
    /// group see [`QueueIndex::revive`]. A place that the dead letter held in its lanes is claimed until the end of
    /// the requeue is known: then [unclaim](QueueIndex::unclaim) it, or [take it back](QueueIndex::not_requeued).
    pub fn requeue(&mut self, seq: u64, forget_doubt: bool) -> Option<u64> {
        let mut entry = self.calls.dead.remove(seq)?;
        self.unname(entry.header.op_id, seq);
        entry.state.asked_again();
        if forget_doubt {
            entry.cleared();
        }
        self.dead_bytes -= entry.size();
        if self.lanes.stands(seq) {
            self.calls.claims.insert(seq, entry.header.lanes.clone());
            self.lanes.set_opaque(seq, false, &self.calls);
        }
        let new = self.next_seq;
        self.next_seq += 1;
        self.bytes += entry.size();
        let op_id = entry.header.op_id;
        entry.begins_again();
        self.calls.entries.insert(new, Entry { phase: Phase::Committing, ..entry });
        self.line_up(new);
        self.name(op_id, new);
        Some(new)
    }

    /// The requeue of the dead letter `seq` was not stored, and its new place is given up: it is what it was,
    /// `entry`, and goes on holding its lane if it held it.
    pub fn not_requeued(&mut self, seq: u64, entry: Entry) {
        self.dead_bytes += entry.size();
        let op_id = entry.header.op_id;
        self.calls.dead.insert(seq, entry);
        self.calls.claims.remove(&seq);
        self.lanes.set_opaque(seq, true, &self.calls);
        self.changed(seq);
        self.name(op_id, seq);
    }

    /// Something is written to `lanes`: dead letters there can no longer be requeued unthinkingly.
    pub fn note_written(&mut self, lanes: &Lanes) {
        self.calls.dead.written(lanes);
    }
}
