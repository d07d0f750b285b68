//! Dead letters: how calls become some, and how they come back.

use super::{Entry, Phase, QueueIndex};
use crate::{
    store::DeadReason,
    units::Lanes,
    words::Words,
    write::{End, Known},
};

impl QueueIndex {
    /// `seq` became a dead letter. It goes on holding its lane if `holds_lane`: for as long as its
    /// mark is not synced, a crash would bring it back as a call that waits.
    pub fn buried(&mut self, seq: u64, reason: impl Into<Words>, holds_lane: bool) {
        let Some(mut entry) = self.entries.remove(seq) else { return };
        self.ready.remove(&seq);
        if let Phase::BackingOff { until } = entry.phase {
            self.backing_off.remove(&(until, seq));
        }
        self.bytes -= entry.bytes;
        self.dead_bytes += entry.bytes;
        entry.verdict = None;
        if entry.state.known() == Known::OnWire {
            entry.state.end(End::Unknown);
        }
        self.sentenced.remove(&seq);
        self.count_in(&entry);
        entry.last_error = Some(Box::new(reason.into()));
        // What is behind it will be written once it is out of the way.
        entry.written_since = !self.lanes.behind(seq).is_empty();
        self.touched(seq, &entry.header.lanes);
        self.dead.insert(seq, entry);
        if holds_lane {
            self.lanes.set_opaque(seq, true);
        } else {
            self.step_out(seq);
        }
    }

    /// Replay has given up on `seq`, and there is no room for it among the dead letters: it keeps its lane, and
    /// is not sent again.
    pub fn sentence(&mut self, seq: u64, reason: DeadReason, detail: impl Into<Words>) {
        if let Some(entry) = self.entries.get_mut(seq) {
            entry.verdict = Some(Box::new((reason, detail.into())));
            self.sentenced.insert(seq);
        }
    }

    /// The mark of the dead letter `seq` is synced: it no longer holds its lane, nor does its place if it is being
    /// requeued: that it may not be stored changes nothing.
    pub fn release(&mut self, seq: u64) {
        if self.dead.contains_key(&seq) || self.claims.remove(&seq) {
            self.step_out(seq);
        }
    }

    /// Gives a dead letter a place at the tail of its lanes; hand the requeue to the committer under
    /// the same lock. The new call is COMMITTING, and keeps its doubt unless that is to be forgotten. For one of a
    /// group see [`QueueIndex::revive`]. A place that the dead letter held in its lanes is claimed until the end of
    /// the requeue is known: then [unclaim](QueueIndex::unclaim) it, or [take it back](QueueIndex::not_requeued).
    pub fn requeue(&mut self, seq: u64, forget_doubt: bool) -> Option<u64> {
        let mut entry = self.dead.remove(&seq)?;
        self.unname(entry.header.op_id, seq);
        entry.state.asked_again();
        if forget_doubt {
            entry.state.cleared();
            entry.noted = None;
        }
        self.dead_bytes -= entry.bytes;
        if self.lanes.stands(seq) {
            self.lanes.set_opaque(seq, false);
            self.claims.insert(seq);
        }
        let new = self.next_seq;
        self.next_seq += 1;
        self.bytes += entry.bytes;
        let op_id = entry.header.op_id;
        self.lanes.enter(new, entry.header.lanes.clone());
        self.lanes.set_whole(new, entry.header.traits.whole);
        let fresh = Entry {
            phase: Phase::Committing,
            attempts: 0,
            unclassified: 0,
            backoff_ms: 0,
            ..entry
        };
        self.entries.insert(new, fresh);
        self.name(op_id, new);
        Some(new)
    }

    /// The requeue of the dead letter `seq` was not stored, and its new place is given up: it is what it was,
    /// `entry`, and goes on holding its lane if it held it.
    pub fn not_requeued(&mut self, seq: u64, entry: Entry) {
        self.claims.remove(&seq);
        self.lanes.set_opaque(seq, true);
        self.dead_bytes += entry.bytes;
        let op_id = entry.header.op_id;
        self.dead.insert(seq, entry);
        self.name(op_id, seq);
    }

    /// Something is written to `lanes`: dead letters there can no longer be requeued unthinkingly.
    pub fn note_written(&mut self, lanes: &Lanes) {
        for entry in self.dead.values_mut().filter(|entry| !entry.written_since) {
            entry.written_since |= entry.header.lanes.meets(lanes);
        }
    }
}
