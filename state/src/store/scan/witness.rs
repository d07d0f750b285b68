//! Whether sled shows what the plan of the raw log says.

use std::collections::BTreeSet;

use super::super::{
    ledger::Ledger,
    plan::Plan,
    raw::Key,
    record::{self, Kind},
};

/// Compares what sled shows with a plan.
pub(super) struct Witness<'a> {
    plan: &'a Plan,
    /// Which of the plan's values were seen; history counts as seen.
    seen: Vec<bool>,
    /// The plan's next value, which sled shows next, too, if all is well.
    next: usize,
    /// Keys that a commit above the head's has written.
    above: BTreeSet<Key>,
    foreign: Option<Key>,
}

impl<'a> Witness<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        let seen = plan.values.iter().map(|value| matches!(value.key, Key::History(_)));
        Self { plan, seen: seen.collect(), next: 0, above: BTreeSet::new(), foreign: None }
    }

    pub(super) fn see(&mut self, key: &[u8], value: &[u8]) {
        let (Some(key), Ok(sealed)) = (Key::from_bytes(key), record::peel(value)) else { return };
        if sealed.commit > self.plan.head.commit {
            self.above.insert(key);
            return;
        }
        let index = self.index_of(&key);
        match index.and_then(|index| self.plan.values.nth(index)) {
            Some(value) if value.commit == sealed.commit => self.was_seen(index),
            None if self.is_leftover(&key, sealed.kind) => {}
            _ => drop(self.foreign.get_or_insert(key)),
        }
    }

    /// A call of a pack. One that is not planned may be gone, or have a value of its own: that is seen at the end.
    pub(super) fn see_packed(&mut self, seq: u64, value: &[u8]) {
        let Ok(sealed) = record::peel(value) else { return };
        let key = Key::Call(seq);
        if sealed.commit > self.plan.head.commit {
            self.above.insert(key);
            return;
        }
        let index = self.index_of(&key);
        let planned = index.and_then(|index| self.plan.values.nth(index));
        if planned.is_some_and(|it| it.commit == sealed.commit) {
            self.was_seen(index);
        }
    }

    fn index_of(&mut self, key: &Key) -> Option<usize> {
        let is_next = self.plan.values.nth(self.next).is_some_and(|next| next.key == *key);
        let index = if is_next { self.next } else { self.plan.values.index_of(key)? };
        self.next = index + 1;
        Some(index)
    }

    fn was_seen(&mut self, index: Option<usize>) {
        if let Some(seen) = index.and_then(|index| self.seen.get_mut(index)) {
            *seen = true;
        }
    }

    /// What may be there without being live.
    fn is_leftover(&self, key: &Key, kind: Kind) -> bool {
        match key {
            Key::Gone(_) | Key::History(_) => true,
            Key::Chunk(seq, _) => !self.plan.values.contains(&Key::Call(*seq)),
            Key::Note(seq) | Key::Dead(seq) => {
                kind == Kind::Void || !self.plan.values.contains(&Key::Call(*seq))
            }
            Key::Fact(_) => kind == Kind::Void,
            Key::Call(_) => false,
        }
    }

    /// What differs without an explanation.
    pub(super) fn verdict(self, ledger: &Ledger) -> Option<String> {
        if let Some(key) = self.foreign {
            return Some(format!("sled returns {key:?}, which was removed"));
        }
        let is_foreign = |seq: &u64| {
            let key = Key::Call(*seq);
            !self.plan.values.contains(&key) && !self.above.contains(&key)
        };
        if let Some(seq) = ledger.packs.calls().find(is_foreign) {
            return Some(format!("sled returns call {seq}, which was removed"));
        }
        let unseen = self.plan.values.iter().zip(&self.seen).filter(|(_, seen)| !**seen);
        let missing = unseen.map(|(value, _)| &value.key).find(|key| {
            let was_removed = |seq| ledger.is_gone(seq) && !ledger.is_live(seq);
            !key.seq().is_some_and(was_removed) && !self.above.contains(*key)
        });
        missing.map(|key| format!("sled does not return {key:?}"))
    }
}
