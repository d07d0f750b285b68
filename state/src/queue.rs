//! The queue's index in memory: which calls wait, in which order they may be replayed, and what a new
//! one must know. The calls themselves are in the [store](crate::store).
//!
//! ```text
//!  admit                committed              take                 applied           removed
//! -------> COMMITTING -----------> WAITING ------------> SENDING ------------> REMOVING -------> gone
//!              |                      ^  ^ due             |
//!              | append failed        |  +---- BACKING_OFF |  bury
//!              v                      +------- (retry) <---+------> DEAD --(requeue: a new call)-->
//!            gone
//! ```
//!
//! **Occupied.** A lane is occupied from [`QueueIndex::admit`] until [`QueueIndex::removed`] of its last
//! call: a call in COMMITTING already holds its place, and one in REMOVING still does, because a crash
//! would bring it back.
//!
//! **Order.** One call per lane is on the wire at a time. An absolute call may follow one in REMOVING
//! (were that to come back, so would this one, behind it); any other waits until it is gone. One that an operator
//! discards comes back alone if the store refuses its removal: it is SENDING meanwhile, and nothing follows it.
//!
//! **What may be sent again** is [`WriteState`]'s to say, which every call has. A call that replay has given up
//! on and that cannot become a dead letter yet keeps its *verdict*, and is not sent again meanwhile.
//!
//! **Residues** ([`Traits::due`]) are what is left to do of a call that was applied, in its place in the line.
//! Calls that were accepted before a residue is due pass it while it waits; it may move when none of these is left
//! in its lanes. Calls that were accepted later wait for it. Residues do not wait for each other: each looks only
//! for its own time.
//!
//! **After a crash** the index is rebuilt from the store: what was COMMITTING is there or not and was
//! not acknowledged; SENDING and REMOVING come back as WAITING, in doubt if their sending was noted.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
};

use hashbrown::HashTable;

use crate::{
    dense::Dense,
    lane::{LaneMap, LanesOf},
    store::{TokenKind, Traits},
    units::{ByteCount, Lanes, Moment, OpId, UnixMillis},
    words::Words,
    write::{End, Known, WriteState},
};

mod arriving;
mod dead;
mod entry;
mod figures;
mod folds;
mod kept;
mod left;
mod letters;
mod order;
mod ready;
mod room;
mod sentenced;
mod stuck;
mod turn;

pub use entry::{Details, Entry, Noted, Phase};
pub use folds::{InLane, NextWrite, Reading};
pub use kept::Held;
pub use turn::Turn;

/// Share of the limit at which low-priority writes are shed, in percent.
const SHED_PERCENT: f64 = 85.0;
/// A call above this part of the byte limit may be refused without the queue being full.
const OVERSIZED_PART: u64 = 20;
/// Share of the limit below which a full queue takes writes again, in percent.
const RESUME_PERCENT: f64 = 80.0;

/// A queue's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Calls; at least 1.
    pub items: u32,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Dead letters; at least 1.
    pub dead_items: u32,
    /// Bytes of dead letters.
    pub dead_bytes: u64,
}

/// Calls that were sent as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Their sequences, ascending.
    pub members: Vec<u64>,
    /// Their token.
    pub token: OpId,
    /// One of them is missing, so that they cannot be sent again as they were.
    pub broken: bool,
    /// How many of them are dead letters.
    dead: u32,
}

/// Why a call is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue is at its limit, or was and is not yet below 80 % of it.
    #[error("the queue is full: {calls} of {limit} calls, {} of {}", ByteCount(*.bytes), ByteCount(*.limit_bytes))]
    Full {
        /// Calls that wait.
        calls: u64,
        /// The limit.
        limit: u64,
        /// Bytes of their bodies.
        bytes: u64,
        /// The limit of bytes.
        limit_bytes: u64,
    },
    /// The queue is at least 85 % full and the call is of low priority.
    #[error("the queue is at least 85 % full, and writes of low priority are refused")]
    Shed,
    /// The op id is here with another body.
    #[error("the op_id was used with another body")]
    Conflict,
    /// The op id is here with this body.
    #[error("the op_id is already in use")]
    Known {
        /// Its sequence.
        seq: u64,
        /// Whether it is a dead letter.
        dead: bool,
    },
}

/// The index. Owned by one lock; every method is a short step.
#[derive(Debug)]
pub struct QueueIndex {
    limits: QueueLimits,
    calls: Calls,
    lanes: LaneMap,
    /// The sequence of each name. The names themselves are with the calls.
    by_op: HashTable<u64>,
    hasher: RandomState,
    ready: ready::Ready,
    backing_off: BTreeSet<(Moment, u64)>,
    groups: BTreeMap<u64, Group>,
    /// Calls that are left to do of others; see the module's page.
    residues: left::Residues,
    /// Calls with a verdict, for which there was no room among the dead letters.
    sentenced: sentenced::Sentenced,
    /// What has come of calls that arrive in pieces.
    arriving: arriving::Arriving,
    folds: kept::Folds,
    next_seq: u64,
    bytes: u64,
    dead_bytes: u64,
    /// Dead letters that count with another of their group.
    dead_in_groups: usize,
    full: bool,
}

/// Everything that may be in a lane.
#[derive(Debug, Default)]
struct Calls {
    entries: Dense<Entry>,
    dead: letters::DeadLetters,
    /// Places taken for live writes in doubt, which may yet become calls, and those of dead letters that are being
    /// requeued.
    claims: BTreeMap<u64, Lanes>,
}

impl Calls {
    fn get(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(seq).or_else(|| self.dead.get(&seq))
    }
}

impl LanesOf for Calls {
    fn lanes_of(&self, seq: u64) -> Option<&Lanes> {
        self.get(seq).map(|entry| &entry.header.lanes).or_else(|| self.claims.get(&seq))
    }
}

impl QueueIndex {
    /// An empty index whose next sequence follows `last_seq`.
    pub fn new(limits: QueueLimits, last_seq: u64) -> Self {
        Self {
            limits,
            calls: Calls::default(),
            lanes: LaneMap::default(),
            by_op: HashTable::new(),
            hasher: RandomState::new(),
            ready: ready::Ready::default(),
            backing_off: BTreeSet::new(),
            groups: BTreeMap::new(),
            residues: left::Residues::default(),
            sentenced: sentenced::Sentenced::default(),
            arriving: arriving::Arriving::default(),
            folds: kept::Folds::default(),
            next_seq: last_seq + 1,
            bytes: 0,
            dead_bytes: 0,
            dead_in_groups: 0,
            full: false,
        }
    }

    /// Makes room for `calls` that are about to be taken back: tables that grow look at each of their calls again.
    pub fn expect(&mut self, calls: usize) {
        let Self { by_op, hasher, calls: all, lanes, .. } = self;
        by_op.reserve(calls, |seq| hasher.hash_one(all.get(*seq).map(|entry| entry.header.op_id)));
        lanes.expect(calls, all);
    }

    /// Takes back a call that the store holds, in rising order of sequence. `holds_lane` is for dead
    /// letters of a backend that wants them to block their lanes.
    pub fn restore(&mut self, seq: u64, entry: Entry, dead: bool, holds_lane: bool) {
        self.next_seq = self.next_seq.max(seq + 1);
        let op_id = entry.header.op_id;
        let mut entry = Entry { phase: Phase::Waiting, from_earlier_run: true, ..entry };
        if dead {
            self.dead_bytes += entry.size();
            entry.details_mut().written_since = true;
            self.calls.dead.insert(seq, entry);
            if holds_lane {
                self.lanes.enter(seq, &self.calls);
                self.lanes.set_opaque(seq, true, &self.calls);
            }
            self.name(op_id, seq);
            return;
        }
        self.bytes += entry.size();
        self.calls.entries.insert(seq, entry);
        self.line_up(seq);
        self.name(op_id, seq);
        self.consider(seq);
    }

    /// Takes a place in `lanes` for a live write whose outcome is unknown, so that nothing new passes it
    /// before it is known whether it is sent again. End it with [`QueueIndex::unclaim`] or by
    /// [admitting](QueueIndex::admit) the write to that place. Also says whether calls are before it:
    /// those came while it was on the wire, and are or will be acknowledged.
    pub fn claim(&mut self, lanes: &Lanes) -> (u64, bool) {
        let seq = self.next_seq;
        let behind_calls = self.stands_behind_calls(seq, lanes);
        self.next_seq += 1;
        self.calls.claims.insert(seq, lanes.clone());
        self.lanes.enter(seq, &self.calls);
        (seq, behind_calls)
    }

    /// Whether calls, and not mere claims, are in any of `lanes` before the place `seq`.
    pub fn stands_behind_calls(&self, seq: u64, lanes: &Lanes) -> bool {
        let is_call = |it: u64| it < seq && !self.calls.claims.contains_key(&it);
        let line = |lane: &crate::units::LaneId| self.lanes.line_from(*lane, 0, &self.calls);
        lanes.is_all() && self.calls.entries.range(..seq).next().is_some()
            || lanes
                .as_slice()
                .iter()
                .any(|lane| line(lane).is_none_or(|mut line| line.any(is_call)))
    }

    /// Gives up a place that was claimed and not used. Returns the lanes in which it was.
    pub fn unclaim(&mut self, seq: u64) -> Option<Lanes> {
        self.arriving.remove(seq);
        self.calls.claims.contains_key(&seq).then(|| self.step_out(seq));
        self.calls.claims.remove(&seq)
    }

    /// Gives a new call its place, the claimed one if it has one. Hand it to the committer while still under the lock,
    /// so that the order of commits is the order of sequences.
    ///
    /// # Errors
    /// [`Refusal`] says why not; nothing changed.
    pub fn admit(
        &mut self,
        entry: Entry,
        low_priority: bool,
        claim: Option<u64>,
    ) -> Result<u64, Refusal> {
        if let Some(refusal) = self.known(entry.header.op_id, entry.header.digest) {
            return Err(refusal);
        }
        let bytes = entry.size();
        if let Err(refusal) = self.room(claim, bytes) {
            // One oversized call does not close the queue to all others.
            self.full |= self.taken(claim).0 >= u64::from(self.limits.items)
                || bytes <= self.limits.bytes / OVERSIZED_PART;
            return Err(refusal);
        }
        if low_priority && self.fill_without(claim) >= SHED_PERCENT {
            return Err(Refusal::Shed);
        }
        let claimed = claim.filter(|seq| self.calls.claims.contains_key(seq));
        let seq = claimed.unwrap_or(self.next_seq);
        self.note_written(&entry.header.lanes);
        let op_id = entry.header.op_id;
        self.bytes += bytes;
        self.calls.entries.insert(seq, Entry { phase: Phase::Committing, ..entry });
        self.arriving.remove(seq);
        self.calls.claims.remove(&seq);
        self.line_up(seq);
        if claimed.is_some() {
            self.changed(seq);
        } else {
            self.next_seq += 1;
        }
        self.name(op_id, seq);
        Ok(seq)
    }

    /// What is known under an op id, if that is anything.
    pub fn known(&self, op_id: OpId, digest: u64) -> Option<Refusal> {
        let seq = self.named(op_id)?;
        let dead = self.calls.dead.contains_key(&seq);
        let entry = self.get(seq)?;
        Some(if entry.header.digest == digest {
            Refusal::Known { seq, dead }
        } else {
            Refusal::Conflict
        })
    }

    /// The append of `seq` is synced.
    pub fn committed(&mut self, seq: u64) {
        if let Some(entry) = self.calls.entries.get(seq)
            && entry.phase == Phase::Committing
        {
            let lanes = entry.header.lanes.clone();
            self.touched(seq, &lanes);
            self.becomes(seq, Phase::Waiting);
        }
    }

    /// Takes the oldest call that may go on the wire at `now`. `None` if nothing may.
    pub fn take(&mut self, now: Moment) -> Option<u64> {
        self.wake_due(now);
        loop {
            let seq = self.ready.first()?;
            if self.may_move(seq) {
                self.becomes(seq, Phase::Sending);
                return Some(seq);
            }
            self.unready(seq);
        }
    }

    /// `seq` did not go on the wire after all: it is as if it had not been taken.
    pub fn put_back(&mut self, seq: u64) {
        if let Some(entry) = self.calls.entries.get_mut(seq)
            && entry.phase == Phase::Sending
        {
            if entry.state.known() == Known::OnWire {
                // It did go on the wire, and nobody heard how that ended.
                entry.state.end(End::Unknown);
            }
            self.becomes(seq, Phase::Waiting);
        }
    }

    /// Keeps `seq`, which waits, from being taken until it is [put back](QueueIndex::put_back), replaced or gone.
    pub fn hold(&mut self, seq: u64) {
        let waits = |entry: &Entry| matches!(entry.phase, Phase::Waiting | Phase::BackingOff);
        if self.calls.entries.get(seq).is_some_and(waits) {
            self.becomes(seq, Phase::Sending);
        }
    }

    /// `seq` was applied, or may have been discarded, and is removed until the store says that it is gone.
    pub fn applied(&mut self, seq: u64) {
        self.becomes(seq, Phase::Removing);
    }

    /// `seq` was applied, and something is left to do of it, which takes its place: `bytes` large, in `lanes`,
    /// due then. It waits from now on.
    pub fn became_residue(&mut self, seq: u64, lanes: Lanes, due: UnixMillis, bytes: u64) {
        // While it has the traits that it was ready with.
        self.unready(seq);
        let Some(entry) = self.calls.entries.get_mut(seq) else { return };
        self.bytes -= entry.size();
        entry.resize(bytes);
        self.bytes += entry.size();
        entry.from_earlier_run = false;
        entry.header.traits = Traits::residue(due);
        entry.header.token = TokenKind::Absolute;
        entry.state = WriteState::fresh(TokenKind::Absolute.repeat());
        self.sentenced.remove(seq);
        entry.begins_again();
        if let Some(details) = &mut entry.details {
            (details.noted, details.verdict) = (None, None);
        }
        let before = entry.header.lanes.clone();
        self.residues.remove(seq, &before);
        self.residues.insert(seq, &lanes);
        self.lanes.set_whole(seq, false, &self.calls);
        self.touched(seq, &before);
        if before != lanes {
            self.touched(seq, &lanes);
            let free = self.held_up_by(seq);
            self.lanes.leave(seq, &self.calls);
            if let Some(entry) = self.calls.entries.get_mut(seq) {
                entry.header.lanes = lanes;
            }
            self.lanes.enter(seq, &self.calls);
            self.consider_all(free);
        }
        self.becomes(seq, Phase::Waiting);
        self.changed(seq);
    }

    /// The durable writes behind `seq` in its lanes, in order.
    pub fn following(&self, seq: u64) -> Vec<u64> {
        let durable = |member: &u64| {
            self.calls
                .entries
                .get(*member)
                .is_some_and(|entry| !matches!(entry.phase, Phase::Committing | Phase::Removing))
        };
        self.lanes.following(seq, &self.calls).into_iter().filter(durable).collect()
    }

    /// The removal of `seq` is synced (or its append failed, or it was discarded): it is gone. Returns its lanes.
    pub fn removed(&mut self, seq: u64) -> Option<Lanes> {
        let entry = self.calls.get(seq)?;
        let (op_id, until, group) =
            (entry.header.op_id, entry.backs_off_until(), entry.details().group);
        let lanes = entry.header.lanes.clone();
        self.unready(seq);
        self.sentenced.remove(seq);
        if let Some(until) = until {
            self.backing_off.remove(&(until, seq));
        }
        self.unname(op_id, seq);
        self.touched(seq, &lanes);
        self.step_out(seq);
        if let Some(entry) = self.calls.entries.remove(seq) {
            self.bytes -= entry.size();
        } else if let Some(entry) = self.calls.dead.remove(seq) {
            self.dead_bytes -= entry.size();
            self.count_out(&entry);
        }
        self.leave_group(seq, group);
        Some(lanes)
    }

    /// `seq` is to be tried again at `until`.
    pub fn retry(&mut self, seq: u64, until: Moment, error: impl Into<Words>) {
        let Some(attempts) = self.calls.entries.get(seq).map(Entry::attempts) else { return };
        self.becomes(seq, Phase::BackingOff);
        if let Some(entry) = self.calls.entries.get_mut(seq) {
            let details = entry.details_mut();
            (details.attempts, details.until) = (attempts, until);
            details.last_error = Some(error.into());
            self.backing_off.insert((until, seq));
        }
    }

    /// Forgets every backoff: replay may try everything now.
    pub fn retry_all(&mut self) {
        for (_, seq) in std::mem::take(&mut self.backing_off) {
            self.becomes(seq, Phase::Waiting);
        }
    }

    /// Whether a write to `lanes` must queue behind others.
    pub fn is_occupied(&self, lanes: &Lanes) -> bool {
        self.lanes.is_occupied(lanes, &self.calls)
    }

    /// A call or dead letter by sequence.
    pub fn get(&self, seq: u64) -> Option<&Entry> {
        self.calls.get(seq)
    }

    /// A waiting call, to note what became of an attempt.
    pub fn get_mut(&mut self, seq: u64) -> Option<&mut Entry> {
        self.calls.entries.get_mut(seq)
    }

    /// The sequence of an op id, and whether it is a dead letter.
    pub fn find(&self, op_id: OpId) -> Option<(u64, bool)> {
        let seq = self.named(op_id)?;
        Some((seq, self.calls.dead.contains_key(&seq)))
    }

    /// Waiting calls, or dead letters, after a sequence, in order.
    pub fn page(&self, dead: bool, after: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let next = after.saturating_add(1);
        let (dead, calls) = if dead {
            (Some(self.calls.dead.range(next..)), None)
        } else {
            (None, Some(self.calls.entries.range(next..)))
        };
        let dead = dead.into_iter().flatten().map(|(seq, entry)| (*seq, entry));
        dead.chain(calls.into_iter().flatten())
    }

    fn wake_due(&mut self, now: Moment) {
        while let Some((until, seq)) = self.backing_off.first().copied() {
            if until > now {
                return;
            }
            self.backing_off.remove(&(until, seq));
            self.becomes(seq, Phase::Waiting);
        }
    }

    /// The call `seq`, which is here, goes by that name from now on.
    fn name(&mut self, op_id: OpId, seq: u64) {
        self.named(op_id).into_iter().for_each(|former| self.unname(op_id, former));
        let Self { by_op, hasher, calls, .. } = self;
        let hash = |seq: &u64| hasher.hash_one(calls.get(*seq).map(|entry| entry.header.op_id));
        by_op.insert_unique(hasher.hash_one(Some(op_id)), seq, hash);
    }

    /// The call that goes by that name.
    fn named(&self, op_id: OpId) -> Option<u64> {
        let is_it = |seq: &u64| self.get(*seq).is_some_and(|entry| entry.header.op_id == op_id);
        self.by_op.find(self.hasher.hash_one(Some(op_id)), is_it).copied()
    }

    /// The call `seq` does not go by that name any more.
    fn unname(&mut self, op_id: OpId, seq: u64) {
        let hash = self.hasher.hash_one(Some(op_id));
        if let Ok(found) = self.by_op.find_entry(hash, |it| *it == seq) {
            found.remove();
        }
    }
}

#[cfg(test)]
mod tests;
