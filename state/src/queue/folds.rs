//! What readers have made of the lanes: the value that a lane's queued writes come to, kept so that no reader has to
//! read all of them again.
//!
//! A *fold* covers the durable writes of its lane from `base` to `upto`. What it holds is the caller's: the index
//! keeps it, says what must be folded next, and forgets it when it is no longer what those writes come to.
//!
//! ```text
//!            begin_fold                       folded
//!  (none) ------------> reading base..=upto -----------> held for base..=upto --begin_fold--> reading the next ...
//!     ^                        |                               |
//!     +------------------------+------ touched: a write of base..=upto came, went or is another one
//! ```
//! **What is before `base` does not matter**: `base` is a write that sets the whole value, or one after which
//! what is known depends on nothing before it; it is 0 if there is none. So a lane that is replayed keeps its fold
//! until `base` itself is gone, and one that is written again and again moves it along.
//!
//! Writes enter behind `upto`; if one enters in between (a live write in doubt that kept its place, a dead letter
//! that is revived) it becomes durable there, and that touches the fold. A fold goes with the last write that it
//! covers, so an empty lane has none.
//!
//! **Bounds.** The folds together hold at most 8 MiB as their callers weigh them, and what is larger than
//! that is not kept; those that were added to longest ago go first. Each costs at least 256 bytes.

use super::{
    Phase, QueueIndex,
    kept::{BYTES_MAX, BYTES_MIN, Fold, Held},
};
use crate::units::{LaneId, Lanes, UnixMillis};

/// A queued write that is to be folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextWrite {
    /// Its sequence.
    pub seq: u64,
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// When it is due, if it is a residue.
    pub due: Option<UnixMillis>,
}

/// What must be folded next.
pub struct Reading {
    lane: LaneId,
    ticket: u64,
    base: u64,
    /// What the writes before come to; `None` to begin with nothing known.
    pub held: Option<Held>,
    /// The writes, oldest first; at least one.
    pub writes: Vec<NextWrite>,
}

/// What waits in a lane.
pub enum InLane {
    /// No durable write.
    Nothing,
    /// A barrier or a dead letter that holds the lane makes its value unknowable.
    Unknowable,
    /// Writes that come to this.
    Folded(Held),
    /// Writes that are not all folded: see [`QueueIndex::begin_fold`].
    Unfolded,
}

impl QueueIndex {
    /// What waits in `lane`. A fold that is not `usable` counts for nothing.
    pub fn in_lane(&self, lane: LaneId, usable: impl Fn(&Held) -> bool) -> InLane {
        if self.lanes.is_unknowable(lane, &self.calls) {
            return InLane::Unknowable;
        }
        let (fold, from) = self.standing_fold(lane, usable);
        if self.durable_from(lane, from).next().is_some() {
            return InLane::Unfolded;
        }
        fold.and_then(|fold| fold.held.clone()).map_or(InLane::Nothing, InLane::Folded)
    }

    /// The durable writes of `lane` that a read must know, folded or not: from the last one that sets the whole value,
    /// or else all. `None` if there are more than `most`, or nobody knows which there are.
    pub fn writes_of(&self, lane: LaneId, most: usize) -> Option<Vec<NextWrite>> {
        if self.lanes.is_unknowable(lane, &self.calls) {
            return None;
        }
        let whole = self.lanes.wholes(lane, &self.calls).find(|seq| self.is_durable(*seq));
        let writes = self.durable_from(lane, whole.unwrap_or(0));
        let writes: Vec<NextWrite> = writes.take(most.saturating_add(1)).collect();
        (writes.len() <= most).then_some(writes)
    }

    /// The next writes of `lane` that are not folded, at most `most`; give what they come to back by
    /// [`QueueIndex::folded`]. Who begins another reading meanwhile takes this one's place. `None` if
    /// [`QueueIndex::in_lane`] has the answer.
    pub fn begin_fold(
        &mut self,
        lane: LaneId,
        most: usize,
        usable: impl Fn(&Held) -> bool,
    ) -> Option<Reading> {
        if self.lanes.is_unknowable(lane, &self.calls) {
            return None;
        }
        let (going_on, from) = self.standing_fold(lane, usable);
        let writes: Vec<NextWrite> = self.durable_from(lane, from).take(most).collect();
        let held = going_on.and_then(|fold| fold.held.clone());
        let last = writes.last()?;
        let base = going_on.map_or(from, |fold| fold.base);
        // Changes from here on are noticed, also those of what is only being read.
        let bytes = going_on.map_or(BYTES_MIN, |fold| fold.bytes);
        let fold = Fold { base, upto: last.seq, ticket: 0, held: None, bytes };
        let ticket = self.folds.keep(lane, fold);
        Some(Reading { lane, ticket, base, held, writes })
    }

    /// The fold of `lane` that can be gone on with, if there is one, and the point from which there are writes to be
    /// read: behind it, or else from the last durable write that sets the whole value (what is before that is of no
    /// use), or from the first one.
    fn standing_fold(&self, lane: LaneId, usable: impl Fn(&Held) -> bool) -> (Option<&Fold>, u64) {
        let fold = self.folds.lanes.get(&lane);
        let fold = fold.filter(|fold| fold.held.as_ref().is_some_and(usable));
        let whole = self.lanes.wholes(lane, &self.calls).find(|seq| self.is_durable(*seq));
        let fold = fold.filter(|fold| whole.is_none_or(|whole| whole <= fold.upto));
        let from = fold.map_or_else(|| whole.unwrap_or(0), |fold| fold.upto + 1);
        (fold, from)
    }

    /// What was to be read is folded: it comes to `held`, which weighs `bytes`. From `base` on, if that is known,
    /// it hangs on nothing before. Not kept if the lane has changed meanwhile.
    pub fn folded(&mut self, reading: &Reading, base: Option<u64>, held: Held, bytes: u64) {
        let Some(fold) = self.folds.lanes.get(&reading.lane) else { return };
        if fold.ticket != reading.ticket {
            return;
        }
        if bytes > BYTES_MAX - BYTES_MIN {
            self.folds.forget(reading.lane);
            return;
        }
        let (base, upto) = (base.unwrap_or(reading.base), fold.upto);
        let fold = Fold { base, upto, ticket: 0, held: Some(held), bytes: bytes + BYTES_MIN };
        self.folds.keep(reading.lane, fold);
    }

    /// `seq` came into `lanes`, left them, or is another write now: folds that cover its place are over.
    pub(super) fn touched(&mut self, seq: u64, lanes: &Lanes) {
        if self.folds.lanes.is_empty() {
            return;
        }
        for lane in lanes.as_slice() {
            let covers = |fold: &Fold| (fold.base..=fold.upto).contains(&seq);
            if self.folds.lanes.get(lane).is_some_and(covers) {
                self.folds.forget(*lane);
            }
        }
    }

    /// The body of `seq` may have changed and changed back.
    pub fn was_rewritten(&mut self, seq: u64) {
        if let Some(lanes) = self.calls.entries.get(seq).map(|entry| entry.header.lanes.clone()) {
            self.touched(seq, &lanes);
        }
    }

    /// Bytes of all folds.
    pub fn fold_bytes(&self) -> u64 {
        self.folds.bytes
    }

    fn is_durable(&self, seq: u64) -> bool {
        self.calls.entries.get(seq).is_some_and(|entry| entry.phase != Phase::Committing)
    }

    /// The durable writes of `lane` from `from` on.
    fn durable_from(&self, lane: LaneId, from: u64) -> impl Iterator<Item = NextWrite> + '_ {
        let members = self.lanes.line_from(lane, from, &self.calls).into_iter().flatten();
        members.filter_map(|seq| {
            let entry = self.calls.entries.get(seq)?;
            (entry.phase != Phase::Committing).then_some(NextWrite {
                seq,
                accepted_at: entry.header.accepted_at,
                due: entry.header.traits.due(),
            })
        })
    }
}
