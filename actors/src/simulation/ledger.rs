//! What callers learnt about their writes, compared with what the backends applied.
//!
//! Every beginning, end and application has a number of one order. A write that began after another's call had ended is
//! *newer* than that one: nothing newer is applied before it, and no read that saw the newer one acknowledged may see
//! it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fusebox_state::OpId;

use super::{
    body::{Body, Word},
    scene::BACKENDS,
};
use crate::Source;

/// Writes of whole values that are kept for each key: more do not overlap.
const WHOLES: usize = 16;

/// How a call ended for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Applied,
    Durable,
    NotExecuted,
    Unknown,
    DeadLetter,
}

#[derive(Debug)]
struct Write {
    body: Body,
    backend: usize,
    began: u64,
    /// `None` while its call is under way, and once an operator has it sent again.
    ended: Option<u64>,
    end: Option<End>,
    /// Its name, if it was queued.
    op_id: Option<OpId>,
    applied: u32,
}

/// What is known of a key.
#[derive(Default)]
struct Key {
    /// The latest beginning among the writes that were applied, and whose that was.
    applied: (u64, u64),
    /// The last that were applied and set the key's whole value: what is absolute and older need not be applied.
    wholes: VecDeque<u64>,
    /// The latest beginning among those that were acknowledged.
    acknowledged: (u64, u64),
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Ledger {
    writes: BTreeMap<u64, Write>,
    keys: BTreeMap<(usize, u8), Key>,
    /// Writes of each backend that were acknowledged as durable and were not seen applied.
    owed: [BTreeMap<u64, OpId>; BACKENDS.len()],
    running: BTreeSet<u64>,
    /// The beginnings of writes that became dead letters: the lane goes on as if these had not been.
    dead: BTreeSet<u64>,
    /// What was applied, or read, behind something newer, by the beginning of that and its name if it is queued.
    behind: Vec<(u64, String, usize, Option<OpId>)>,
    /// What was applied before and after something newer, with that one and how often it had been applied. A crash
    /// takes removals back that were not synced: of absolute writes all are sent again then, in their order.
    again: Vec<(u64, u32, String)>,
    reading: u64,
    /// Calls that had ended when it was last asked whether it is idle.
    ended_before: u64,
    moment: u64,
    pub(super) calls: u64,
    pub(super) acknowledged: u64,
    pub(super) applied: u64,
}

impl Ledger {
    fn next(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// A number that no write has.
    pub(super) fn new_id(&mut self) -> u64 {
        self.next()
    }

    /// A write's call begins, or begins again under its old name.
    pub(super) fn begins(&mut self, backend: usize, body: Body) {
        let began = self.next();
        self.running.insert(body.id);
        let new = Write { body, backend, began, ended: None, end: None, op_id: None, applied: 0 };
        let write = self.writes.entry(body.id).or_insert(new);
        write.ended = None;
    }

    /// Its call ended. An error says what should not be.
    pub(super) fn ends(&mut self, id: u64, end: End, op_id: Option<OpId>) -> Result<(), String> {
        let now = self.next();
        self.calls += 1;
        self.running.remove(&id);
        let Some(write) = self.writes.get_mut(&id) else { return Ok(()) };
        write.ended = Some(now);
        write.end = Some(end);
        write.op_id = op_id.filter(|_| end == End::Durable);
        let (began, applied, place) = (write.began, write.applied, (write.backend, write.body.key));
        let (body, ordered) = (write.body, write.body.word != Word::Row);
        if end == End::NotExecuted && applied > 0 {
            return Err(format!(
                "{body:?} was applied although its caller's answer was that it was not executed"
            ));
        }
        if !matches!(end, End::Applied | End::Durable) {
            return Ok(());
        }
        self.acknowledged += 1;
        let key = self.keys.entry(place).or_default();
        if ordered && body.word != Word::Bad {
            key.acknowledged = key.acknowledged.max((began, id));
        }
        let is_there = applied > 0 || self.is_replaced(id);
        match (end, op_id) {
            (End::Applied, _) if !is_there => {
                Err(format!("{body:?} was acknowledged as applied and was not"))
            }
            (End::Durable, None) => {
                Err(format!("{body:?} was acknowledged as durable without a name"))
            }
            (End::Durable, Some(op_id)) if !is_there => {
                if let Some(owed) = self.owed.get_mut(place.0) {
                    owed.insert(id, op_id);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A call that reads ended.
    pub(super) fn read_ended(&mut self) {
        self.calls += 1;
        self.reading -= 1;
    }

    /// The daemon ended: so did every call.
    pub(super) fn daemon_ended(&mut self) {
        let now = self.next();
        self.reading = 0;
        for id in std::mem::take(&mut self.running) {
            if let Some(write) = self.writes.get_mut(&id) {
                (write.ended, write.end) = (Some(now), Some(End::Unknown));
            }
        }
    }

    /// A backend applied a write.
    pub(super) fn applied(&mut self, backend: usize, body: Body) -> Result<(), String> {
        let now = self.next();
        self.applied += 1;
        let place = (backend, body.key);
        let Some(write) = self.writes.get_mut(&body.id) else {
            return Err(format!("{body:?} was applied, but no caller had sent it"));
        };
        write.applied += 1;
        let (began, ended, end, times) = (write.began, write.ended, write.end, write.applied);
        if let Some(owed) = self.owed.get_mut(backend) {
            owed.remove(&body.id);
        }
        if times > 1 && !body.word.is_absolute() {
            return Err(format!("{body:?} was applied {times} times"));
        }
        if end == Some(End::NotExecuted) && ended.is_some() {
            return Err(format!(
                "{body:?} was applied although its caller's answer had been that it was not executed"
            ));
        }
        if body.word == Word::Row {
            return Ok(());
        }
        let key = self.keys.entry(place).or_default();
        let (latest, newer) = key.applied;
        key.applied = key.applied.max((began, body.id));
        if body.word == Word::All {
            key.wholes.push_back(body.id);
            if key.wholes.len() > WHOLES {
                key.wholes.pop_front();
            }
        }
        if ended.is_some_and(|ended| ended < latest) {
            let what = format!(
                "{body:?}, whose call ended at {ended:?}, was applied at {now} behind a write of its lane that began \
                 at {latest}"
            );
            if times > 1 {
                let times = self.writes.get(&newer).map_or(0, |newer| newer.applied);
                self.again.push((newer, times, what));
            } else {
                let name = self.writes.get(&newer).and_then(|newer| newer.op_id);
                self.behind.push((latest, what, backend, name));
            }
        }
        Ok(())
    }

    /// What a read of `key` that begins now must see: the latest write that was acknowledged, by its beginning.
    pub(super) fn read_begins(&mut self, backend: usize, key: u8) -> (u64, u64) {
        self.reading += 1;
        self.keys.get(&(backend, key)).map_or((0, 0), |key| key.acknowledged)
    }

    /// A read that was to see what began at `latest` saw the write `seen`, or none if that is 0.
    pub(super) fn read(
        &mut self,
        (backend, key): (usize, u8),
        (latest, newer): (u64, u64),
        seen: u64,
        source: Source,
    ) {
        let ended = match self.writes.get(&seen) {
            Some(write) => write.ended.unwrap_or(u64::MAX),
            None => 0,
        };
        if ended < latest {
            let what = format!(
                "a read of key {key} of backend {backend} saw write {seen} (source {source}), and a newer one, which \
                 began at {latest}, was acknowledged before"
            );
            let name = self.writes.get(&newer).and_then(|newer| newer.op_id);
            self.behind.push((latest, what, backend, name));
        }
    }

    /// The writes of `backend` that a queue must hold, by their names.
    pub(super) fn owed(&self, backend: usize) -> impl Iterator<Item = (u64, OpId)> {
        let owed = self.owed.get(backend).into_iter().flatten();
        owed.map(|(id, op_id)| (*id, *op_id))
    }

    /// A write that a queue does not hold: whether another one represents it.
    pub(super) fn settle_owed(&mut self, id: u64) -> Result<(), String> {
        let Some(write) = self.writes.get(&id) else { return Ok(()) };
        let (backend, body) = (write.backend, write.body);
        if !self.is_replaced(id) {
            return Err(format!(
                "{body:?} was acknowledged and is lost: it is not applied, not queued and not a dead letter"
            ));
        }
        if let Some(owed) = self.owed.get_mut(backend) {
            owed.remove(&id);
        }
        Ok(())
    }

    /// Whether a write that sets the whole value was applied in its place: one that is not older.
    fn is_replaced(&self, id: u64) -> bool {
        let Some(Write { body, backend, began, .. }) = self.writes.get(&id) else { return false };
        let key = self.keys.get(&(*backend, body.key)).filter(|_| body.word.is_absolute());
        let ended = |whole: &u64| {
            self.writes.get(whole).is_some_and(|it| it.ended.is_none_or(|ended| ended >= *began))
        };
        key.is_some_and(|key| key.wholes.iter().any(ended))
    }

    /// A call of that body became a dead letter, or an operator has it sent again, behind what came meanwhile.
    pub(super) fn unsettled(&mut self, backend: usize, id: u64, again: bool) {
        if let Some(write) = self.writes.get_mut(&id) {
            self.keys.entry((backend, write.body.key)).or_default().acknowledged = (0, 0);
            self.dead.insert(write.began);
            if again {
                (write.ended, write.end) = (None, Some(End::DeadLetter));
            }
        }
    }

    /// What was applied out of order, once it is known what became a dead letter: by what was reported, or by what the
    /// queue of the backend holds, which cannot tell while its store is down.
    pub(super) fn in_order(&mut self, is_dead: impl Fn(usize, OpId) -> bool) -> Result<(), String> {
        for (newer, what, backend, name) in std::mem::take(&mut self.behind) {
            let is_dead =
                self.dead.contains(&newer) || name.is_some_and(|name| is_dead(backend, name));
            if !is_dead {
                return Err(what);
            }
        }
        Ok(())
    }

    /// At the end: what was applied again was so with all that is newer.
    pub(super) fn ended_in_order(&self) -> Result<(), String> {
        let is_last = |newer: &u64, times: u32| {
            let write = self.writes.get(newer);
            write.is_none_or(|it| it.applied > times || self.dead.contains(&it.began))
                || self.is_replaced(*newer)
        };
        let wrong = self.again.iter().find(|(newer, times, _)| !is_last(newer, *times));
        wrong.map_or(Ok(()), |(_, _, what)| Err(format!("{what}; it was the last")))
    }

    /// Whether nothing was asked for since this was asked last, nor is.
    pub(super) fn is_idle(&mut self) -> bool {
        let ended = self.calls;
        std::mem::replace(&mut self.ended_before, ended) == ended
            && self.reading == 0
            && self.running.is_empty()
    }
}
