//! Whose turn it is.
//!
//! That is decided when a call is taken. The set of ready calls holds all that may move, and maybe some that no
//! longer may, because another took a place before them: those leave the set when they are about to be taken, and
//! come back when what holds them up is gone.
//!
//! **The one rule that a maintainer might break:** a call that may move and is not in the set waits for ever. So
//! whatever may let others move ends in one of three methods, which look for them:
//!
//! | what happens at a place | method |
//! |---|---|
//! | a call has another [`Phase`] | [`QueueIndex::becomes`] |
//! | a claim becomes a call, a call a residue or a dead letter, a dead letter a call | [`QueueIndex::changed`] |
//! | nothing is there any more | [`QueueIndex::step_out`] |
//!
//! What takes a new place holds others up, and lets nobody move.

use super::{Phase, QueueIndex};
use crate::{
    lane::LanesOf,
    units::{Lanes, UnixMillis},
};

impl QueueIndex {
    /// Marks `seq` as ready if it may move.
    pub(super) fn consider(&mut self, seq: u64) {
        if self.may_move(seq)
            && let Some(entry) = self.calls.entries.get(seq)
        {
            self.ready.insert(seq, entry.header.traits);
        }
    }

    /// `seq` is not ready.
    pub(super) fn unready(&mut self, seq: u64) {
        let entry = self.calls.entries.get(seq);
        let traits = entry.map(|entry| entry.header.traits).unwrap_or_default();
        self.ready.remove(seq, traits);
    }

    /// `seq`, which is among the calls that wait, takes its place in its lines, if it is not there already.
    pub(super) fn line_up(&mut self, seq: u64) {
        let Some(entry) = self.calls.entries.get(seq) else { return };
        let traits = entry.header.traits;
        if traits.due().is_some() {
            self.residues.insert(seq, &entry.header.lanes);
        }
        self.lanes.enter(seq, &self.calls);
        self.lanes.set_whole(seq, traits.is_whole(), &self.calls);
    }

    /// `seq` is in this phase from now on. What is being removed lets absolute calls pass, and a residue that waits
    /// lets those pass that were accepted before it is due.
    pub(super) fn becomes(&mut self, seq: u64, phase: Phase) {
        self.unready(seq);
        let Some(entry) = self.calls.entries.get_mut(seq) else { return };
        if let Some(until) = entry.backs_off_until() {
            self.backing_off.remove(&(until, seq));
        }
        entry.phase = phase;
        self.consider(seq);
        let lets_pass = match phase {
            Phase::Removing => true,
            Phase::Waiting | Phase::BackingOff => self.residues.contains(seq),
            Phase::Committing | Phase::Sending => false,
        };
        if lets_pass {
            self.consider_all(self.next_of(seq));
        }
    }

    /// What is at the place `seq` is of another kind from now on.
    pub(super) fn changed(&mut self, seq: u64) {
        self.consider(seq);
        self.consider_all(self.held_up_by(seq));
    }

    pub(super) fn consider_all(&mut self, seqs: Vec<u64>) {
        for seq in seqs {
            self.consider(seq);
        }
    }

    /// Whether `seq` waits, and for nobody.
    pub(super) fn may_move(&self, seq: u64) -> bool {
        let Some(entry) = self.calls.entries.get(seq) else { return false };
        if entry.phase != Phase::Waiting || !self.leads(seq, entry) {
            return false;
        }
        let (absolute, accepted_at) = (entry.is_absolute(), entry.header.accepted_at);
        let own_due = entry.header.traits.due();
        let passed = |older: u64| {
            self.calls.entries.get(older).is_some_and(|entry| match entry.header.traits.due() {
                Some(_) if own_due.is_some() => true,
                Some(due) if accepted_at < due => {
                    matches!(entry.phase, Phase::Waiting | Phase::BackingOff)
                        || absolute && entry.phase == Phase::Removing
                }
                _ => absolute && own_due.is_none() && entry.phase == Phase::Removing,
            })
        };
        self.lanes.is_first(seq, &self.calls, passed)
            && own_due.is_none_or(|due| self.is_due(seq, due))
    }

    /// Whether nothing is left in the lanes of the residue `seq` that comes before it: nothing that was accepted
    /// before it is due and is not behind a call that waits for it (clocks are set back, and dead letters
    /// are requeued). What is removed counts until that is synced: after a crash it would be sent again, to a key
    /// whose deadline has been set already.
    fn is_due(&self, seq: u64, due: UnixMillis) -> bool {
        for member in self.lanes.following(seq, &self.calls) {
            match self.calls.entries.get(member) {
                Some(entry) if entry.header.traits.due().is_some() => {}
                Some(entry) => return entry.header.accepted_at >= due,
                // A place that a live write in doubt holds: that is accepted already.
                None if self.calls.claims.contains_key(&member) => return false,
                // A dead letter that holds its lanes.
                None => {}
            }
        }
        true
    }

    /// Who may be able to move once `seq` lets them pass: the next, or all behind it if the next is a residue, which
    /// lets others pass, or `seq` is one.
    pub(super) fn next_of(&self, seq: u64) -> Vec<u64> {
        let next = self.lanes.behind(seq, &self.calls);
        if next.iter().chain([&seq]).any(|it| self.residues.contains(*it)) {
            self.lanes.following(seq, &self.calls)
        } else {
            next
        }
    }

    /// The calls that may be able to move once `seq` is gone: also the residues before it, which let it pass.
    pub(super) fn held_up_by(&self, seq: u64) -> Vec<u64> {
        let mut held_up = self.next_of(seq);
        if !self.residues.is_empty() {
            let before = self.lanes.before(seq, &self.calls);
            held_up.extend(before.into_iter().filter(|older| self.residues.contains(*older)));
        }
        held_up
    }

    /// `seq` leaves its lines.
    pub(super) fn step_out(&mut self, seq: u64) {
        let free = self.held_up_by(seq);
        if let Some(lanes) = self.calls.lanes_of(seq) {
            self.residues.remove(seq, lanes);
        }
        self.lanes.leave(seq, &self.calls);
        self.consider_all(free);
    }

    /// The residues that wait in any of `lanes`.
    pub fn residues_in(&self, lanes: &Lanes) -> Vec<u64> {
        let waits = |seq: &u64| {
            self.calls.entries.get(*seq).is_some_and(|entry| entry.phase != Phase::Removing)
        };
        self.residues.meeting(lanes).into_iter().filter(waits).collect()
    }
}
