//! Random histories of the store's commands over a map in memory, with crashes that keep any part of the last commit,
//! commits that fail, and values that are lost from the log: what the plan of the raw log says is the truth.

use std::{cell::RefCell, collections::BTreeSet};

use proptest::prelude::*;
use sled::IVec;

use super::*;
use crate::store::{
    apply::{Applier, Group},
    command::Ticket,
    head::Head,
    ledger::Ledger,
    places::Places,
    plan::{self, Plan},
    raw::{Key, Raw, Value},
    scan,
    settle::Settling,
    tree::Tree,
};

#[derive(Clone, Debug)]
enum Op {
    Append { chunks: usize },
    Remove(usize),
    Note(usize),
    TakeBack(usize),
    Bury(usize),
    Revive(usize),
    Requeue(usize),
    Replace(usize),
    Fact(usize),
}

#[derive(Clone, Debug)]
enum End {
    Synced,
    /// The disk kept those of the last commit's values whose bit is set, in any order, and all before.
    Crashed(u64),
    /// As a crash, but the process knows: a failed sync.
    Failed(u64),
    /// sled shows the first of its changes. An open goes on from them, and is killed before it sweeps anything.
    Torn(usize),
    /// After it was synced, this one of the values that the log holds is not what was written.
    Flipped(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => prop_oneof![3 => Just(0_usize), 1 => 1..3_usize].prop_map(|chunks| Op::Append { chunks }),
        3 => any::<usize>().prop_map(Op::Remove),
        2 => any::<usize>().prop_map(Op::Note),
        1 => any::<usize>().prop_map(Op::TakeBack),
        1 => any::<usize>().prop_map(Op::Bury),
        1 => any::<usize>().prop_map(Op::Revive),
        1 => any::<usize>().prop_map(Op::Requeue),
        1 => any::<usize>().prop_map(Op::Replace),
        1 => (0..3_usize).prop_map(Op::Fact),
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        8 => Just(End::Synced),
        2 => any::<u64>().prop_map(End::Crashed),
        1 => Just(End::Crashed(u64::MAX)),
        1 => any::<u64>().prop_map(End::Failed),
        2 => any::<usize>().prop_map(End::Torn),
        2 => any::<usize>().prop_map(End::Flipped),
    ]
}

/// What a call should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kept {
    op: u64,
    residue: bool,
    noted: bool,
    dead: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    calls: BTreeMap<u64, Kept>,
    facts: BTreeMap<String, u64>,
}

/// A key, what was under it, and how long the log was.
type Change = (Vec<u8>, Option<IVec>, usize);

/// A map that remembers every value that was written.
#[derive(Default)]
struct Memory {
    map: RefCell<BTreeMap<Vec<u8>, IVec>>,
    log: RefCell<Vec<Vec<u8>>>,
    /// What was changed since the last sync.
    changes: RefCell<Vec<Change>>,
    places: Places,
}

impl Memory {
    /// Changes what is under a key; returns what was.
    fn change(&self, key: &[u8], logged: usize, value: Option<IVec>) -> Option<IVec> {
        let mut map = self.map.borrow_mut();
        let before = match value {
            Some(value) => map.insert(key.to_vec(), value),
            None => map.remove(key),
        };
        self.changes.borrow_mut().push((key.to_vec(), before.clone(), logged));
        before
    }

    /// Takes back all but the first changes since the last sync.
    fn tear(&self, kept: usize) {
        let mut changes = std::mem::take(&mut *self.changes.borrow_mut());
        let kept = kept % (changes.len() + 1);
        for (key, before, logged) in changes.drain(kept..).rev() {
            self.log.borrow_mut().truncate(logged);
            self.change(&key, logged, before);
        }
        self.changes.borrow_mut().clear();
    }

    fn raw(&self) -> Raw {
        Raw::of(self.log.borrow().clone().into_iter())
    }
}

impl Tree for Memory {
    fn get(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        Ok(self.map.borrow().get(key).cloned())
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> sled::Result<Option<IVec>> {
        let logged = self.log.borrow().len();
        if key.first() == Some(&keys::PACKS) {
            // A reader of the raw log finds each of its calls for itself.
            let calls = pack::entries(&value).map(|call| call.unwrap().1.to_vec());
            self.log.borrow_mut().extend(calls);
        } else {
            self.log.borrow_mut().push(value.clone());
        }
        Ok(self.change(key, logged, Some(value.into())))
    }

    fn remove(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        let logged = self.log.borrow().len();
        Ok(self.change(key, logged, None))
    }

    fn pack_of(&self, seq: u64) -> Option<u64> {
        self.places.of(seq)
    }

    fn keys(&self, prefix: &[u8]) -> sled::Result<Vec<IVec>> {
        let map = self.map.borrow();
        let found = map.keys().filter(|key| key.starts_with(prefix));
        Ok(found.map(|key| IVec::from(key.as_slice())).collect())
    }
}

struct Run {
    memory: Memory,
    applier: Applier,
    /// Values of the log that are synced.
    synced: usize,
    mark: Head,
    acknowledged: Model,
    next: u64,
}

impl Run {
    fn new(packs: bool) -> Self {
        let head = Head { floor: 1, ..Head::default() };
        let ledger = Ledger::default();
        let places = ledger.packs.places.clone();
        let applier = applier(head, ledger, packs);
        Self {
            memory: Memory { places, ..Memory::default() },
            applier,
            synced: 0,
            mark: head,
            acknowledged: Model::default(),
            next: 1,
        }
    }

    /// Whether the command went into the group; one that has to wait for the next is left out.
    fn apply(&mut self, command: Command) -> bool {
        let mut command = Some(command);
        while let Some(next) = command.take() {
            if next.writes_over().any(|key| self.applier.group.written.contains(key.as_slice())) {
                return false;
            }
            // A group that is full goes on: this is about what a commit holds, not how much.
            self.applier.group.spent = 0;
            command = self.applier.apply(&self.memory, next).map_err(|_| ()).unwrap();
        }
        true
    }

    /// Takes one step, with `model` what the store should hold after it.
    fn step(&mut self, op: &Op, model: &mut Model) {
        let pick = |of: usize, wanted: &dyn Fn(&Kept) -> bool| {
            let fit: Vec<u64> =
                model.calls.iter().filter(|(_, kept)| wanted(kept)).map(|(seq, _)| *seq).collect();
            fit.get(of % fit.len().max(1)).copied()
        };
        let ticket = || Ticket::new(Box::new(|_| ()));
        match *op {
            Op::Append { chunks } => {
                let seq = self.next;
                self.next += 1;
                let body = body(seq, if chunks == 0 { 20 } else { 4_000 * chunks + 200 });
                let encoded = queue::encode(&call(seq, &body)).unwrap();
                self.apply(Command::Append {
                    seq,
                    header: encoded.header,
                    says: encoded.says,
                    chunked: encoded.chunked,
                    written: 0,
                    replaces: None,
                    note: None,
                    ticket: ticket(),
                });
                model.calls.insert(seq, Kept { op: seq, ..Kept::default() });
            }
            Op::Remove(of) => {
                let Some(seq) = pick(of, &|_| true) else { return };
                self.apply(Command::Remove { seqs: vec![seq], from: 0, ticket: ticket() });
                model.calls.remove(&seq);
            }
            Op::Note(of) => {
                let Some(seq) = pick(of, &|_| true) else { return };
                let key = keys::key(keys::SENDING, seq);
                let value = note::encode(seq, &noted(7)).unwrap();
                if self.apply(Command::Annotate { seq, key, value, ticket: ticket() }) {
                    model.calls.entry(seq).and_modify(|it| it.noted = true);
                }
            }
            Op::TakeBack(of) => {
                let Some(seq) = pick(of, &|_| true) else { return };
                let keys = vec![keys::key(keys::SENDING, seq)];
                if self.apply(Command::TakeBack { keys, ticket: ticket() }) {
                    model.calls.entry(seq).and_modify(|it| it.noted = false);
                }
            }
            Op::Bury(of) => {
                let Some(seq) = pick(of, &|_| true) else { return };
                let key = keys::key(keys::DEAD, seq);
                let value = dead_letters::encode(seq, &mark(DeadReason::Rejected)).unwrap();
                if self.apply(Command::Annotate { seq, key, value, ticket: ticket() }) {
                    model.calls.entry(seq).and_modify(|it| it.dead = true);
                }
            }
            Op::Revive(of) => {
                let Some(seq) = pick(of, &|kept| kept.dead) else { return };
                let keys = vec![keys::key(keys::DEAD, seq)];
                if self.apply(Command::TakeBack { keys, ticket: ticket() }) {
                    model.calls.entry(seq).and_modify(|it| it.dead = false);
                }
            }
            Op::Requeue(of) => {
                let Some(old) = pick(of, &|kept| kept.dead) else { return };
                let new_seq = self.next;
                self.next += 1;
                let keep_note = old % 2 == 0;
                self.apply(Command::Requeue {
                    old,
                    new_seq,
                    keep_note,
                    keep_target: true,
                    ticket: ticket(),
                });
                let kept = model.calls.remove(&old).unwrap();
                let noted = kept.noted && keep_note;
                model.calls.insert(new_seq, Kept { noted, dead: false, ..kept });
            }
            Op::Replace(of) => {
                let Some(seq) = pick(of, &|kept| !kept.residue) else { return };
                let op = model.calls[&seq].op;
                let traits = Traits::residue(UnixMillis::new(9));
                let mut residue = call_with(seq, traits, b"what is left");
                residue.header.op_id = call(op, b"").header.op_id;
                let encoded = queue::encode(&residue).unwrap();
                let (header, says) = (encoded.header, encoded.says);
                if self.apply(Command::Replace { seq, header, says, ticket: ticket() }) {
                    let residue = Kept { residue: true, noted: false, ..model.calls[&seq] };
                    model.calls.insert(seq, residue);
                }
            }
            Op::Fact(which) => {
                let name = ["breaker", "offline", "target"][which];
                let version = self.applier.head.commit + 1;
                let value = facts::encode(name, &version.to_be_bytes()).unwrap();
                if self.apply(Command::Put { key: facts::key(name), value, ticket: ticket() }) {
                    model.facts.insert(name.into(), version);
                }
            }
        }
    }

    /// Commits what was applied, and has it end so.
    fn commit(&mut self, end: &End, model: Model) {
        assert!(self.applier.group.tickets.iter().all(|(_, result)| result.is_ok()));
        self.applier.group.spent = 0;
        self.applier.sweep();
        if !self.applier.group.dirty {
            return;
        }
        let head = self.applier.finish_group(&self.memory).map_err(|_| ()).unwrap();
        let all = self.memory.log.borrow().len();
        match *end {
            End::Synced | End::Flipped(_) => {
                self.applier.head = head;
                self.mark = head;
                self.synced = all;
                self.memory.changes.borrow_mut().clear();
                self.acknowledged = model;
                self.applier.group = Group::default();
                if let End::Flipped(at) = *end {
                    self.flip(at);
                }
            }
            End::Torn(kept) => {
                self.memory.tear(kept);
                self.reopen(&model);
            }
            End::Crashed(kept) | End::Failed(kept) => {
                let bit = |at: usize| kept & 1 << ((at - self.synced) % 64) != 0;
                let values: Vec<Vec<u8>> = {
                    let log = self.memory.log.borrow();
                    (0..all)
                        .filter(|at| *at < self.synced || bit(*at))
                        .map(|at| log[at].clone())
                        .collect()
                };
                let whole = values.len() == all;
                let raw = Raw::of(values.into_iter());
                let plan = plan::choose(&raw, Some(self.mark)).unwrap();
                assert!(plan.is_exact(), "{:?}", plan.lost);
                let found = shown(&raw, &plan);
                if whole {
                    assert_eq!(found, model, "everything was written");
                } else if found != model {
                    assert_eq!(found, self.acknowledged, "what was acknowledged");
                }
                self.acknowledged = found;
                self.rebuild(&raw, &plan);
            }
        }
    }

    /// Opens what is there, as sled shows it. What the first commit of that vouches for is what the next open finds.
    fn reopen(&mut self, model: &Model) {
        let raw = self.memory.raw();
        let plan = plan::choose(&raw, Some(self.mark)).unwrap();
        assert!(plan.is_exact(), "{:?}", plan.lost);
        let map = self.memory.map.borrow().clone();
        let values = map.into_iter().map(|(key, value)| Ok((key, value.to_vec())));
        let mut scanned = scan::scan_values(values).unwrap();
        self.memory.places = scanned.ledger.packs.places.clone();
        let commit = raw.highest_commit().max(plan.head.commit) + 1;
        let mut settling = Settling { db: &self.memory, ledger: &mut scanned.ledger, commit };
        for key in raw.unsettled(plan.head.commit) {
            settling.settle(&key).unwrap();
        }
        self.mark = settling.finish(self.next - 1).unwrap();
        let raw = self.memory.raw();
        let plan = plan::choose(&raw, Some(self.mark)).unwrap();
        assert!(plan.is_exact(), "{:?}", plan.lost);
        let found = shown(&raw, &plan);
        for call in &scanned.calls {
            let op = u64::try_from(call.header.op_id.to_u128() >> 64).unwrap();
            let residue = call.header.traits.due().is_some();
            let (noted, dead) = (call.marks().first_sent_at.is_some(), call.marks().dead.is_some());
            let kept = Kept { op, residue, noted, dead };
            assert_eq!(found.calls.get(&call.seq), Some(&kept), "{}", call.seq);
        }
        for seq in self.acknowledged.calls.keys().filter(|seq| model.calls.contains_key(*seq)) {
            assert!(found.calls.contains_key(seq), "{seq} is lost");
        }
        self.acknowledged = found;
        self.rebuild(&raw, &plan);
    }

    /// One value of the log is not what was written: it is reported, or it made no difference.
    fn flip(&mut self, at: usize) {
        let mut values = self.memory.log.borrow().clone();
        let lost = values.remove(at % values.len());
        // sled writes many values more than once.
        values.retain(|value| *value != lost);
        let raw = Raw::of(values.into_iter());
        // If there is no plan, that is reported, and the store is set aside.
        let Ok(plan) = plan::choose(&raw, Some(self.mark)) else { return self.restart() };
        let found = shown(&raw, &plan);
        let truth = &self.acknowledged;
        if plan.is_exact() {
            assert_eq!(found, *truth, "lost in silence");
            return;
        }
        for (seq, kept) in &truth.calls {
            let Some(shown) = found.calls.get(seq) else {
                assert!(plan.lost.calls.contains(seq), "{seq} is lost in silence");
                continue;
            };
            assert_eq!((shown.op, shown.residue), (kept.op, kept.residue), "{seq}");
            let noted = shown.noted || plan.lost.notes.contains(seq);
            let dead = shown.dead || plan.lost.dead.contains(seq);
            assert_eq!((noted, dead), (kept.noted, kept.dead), "{seq}");
        }
        assert!(found.calls.keys().all(|seq| truth.calls.contains_key(seq)), "nothing comes back");
        assert!(found.facts == truth.facts || plan.lost.facts, "a fact is lost in silence");
        assert!(plan.lost.calls.len() <= 1, "one value costs one call");
    }

    /// Goes on from new files, as a rebuild makes them.
    fn rebuild(&mut self, raw: &Raw, plan: &Plan) {
        let mut ledger = Ledger::default();
        let memory = Memory { places: ledger.packs.places.clone(), ..Memory::default() };
        for Value { key, commit, place } in plan.values.iter() {
            let (key, value) = (key.to_bytes(), raw.load(*place).unwrap());
            ledger.written(&key, queue::says_of(&key, &value), *commit);
            memory.insert(&key, value).unwrap();
        }
        let commit = plan.head.commit + 1;
        let head = ledger.head(commit, plan.head.last_seq, None);
        memory.insert(keys::HEAD_KEY, head::encode(&head).unwrap()).unwrap();
        // A call of the last commit that was not completed is never given out again.
        self.applier =
            applier(Head { last_seq: self.next - 1, ..head }, ledger, self.applier.packs);
        memory.changes.borrow_mut().clear();
        self.synced = memory.log.borrow().len();
        self.mark = head;
        self.memory = memory;
    }

    fn restart(&mut self) {
        let next = self.next;
        *self = Self::new(self.applier.packs);
        self.next = next;
        self.applier.head.last_seq = next - 1;
        self.applier.head.floor = next;
        self.mark = self.applier.head;
    }
}

fn applier(head: Head, ledger: Ledger, packs: bool) -> Applier {
    Applier {
        group: Group::default(),
        head,
        ledger,
        live_bytes: 0,
        history_next: 0,
        uploads: BTreeSet::new(),
        garbage: Vec::new(),
        target: Arc::new(RwLock::new("t".into())),
        packs,
        changed: None,
    }
}

/// What a plan says that the store holds.
fn shown(raw: &Raw, plan: &Plan) -> Model {
    let mut model = Model::default();
    for Value { key, place, .. } in plan.values.iter() {
        let value = raw.load(*place).unwrap();
        match key {
            Key::Call(seq) => {
                let call = queue::decode_call(*seq, &value).unwrap();
                let op = u64::try_from(call.header.op_id.to_u128() >> 64).unwrap();
                let residue = place.is_residue;
                model.calls.insert(*seq, Kept { op, residue, ..Kept::default() });
            }
            Key::Note(seq) => model.calls.get_mut(seq).unwrap().noted = true,
            Key::Fact(name) => {
                let sealed = record::open(record::Kind::Fact, &value).unwrap();
                let record: record::FactRecord<'_> = sealed.read().unwrap();
                let version = u64::from_be_bytes(record.value.try_into().unwrap());
                model.facts.insert(name.to_string(), version);
            }
            _ => {}
        }
    }
    for value in plan.values.iter() {
        if let Key::Dead(seq) = &value.key {
            model.calls.get_mut(seq).unwrap().dead = true;
        }
    }
    model
}

proptest! {
    #[test]
    fn the_plan_of_the_log_is_the_truth_whatever_a_crash_keeps(
        commits in prop::collection::vec((prop::collection::vec(op(), 1..8), end()), 1..16),
        packs: bool,
    ) {
        let mut run = Run::new(packs);
        for (ops, end) in &commits {
            let mut model = run.acknowledged.clone();
            for op in ops {
                run.step(op, &mut model);
            }
            run.commit(end, model);
        }
    }
}
