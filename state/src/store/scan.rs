//! The first full scan of an opened store: what it holds, what is bad, what is to be swept; and whether sled shows what
//! the plan of its raw log says.
//!
//! A commit that was not completed may be there in part. Its appends and marks have a number above the head's, and what
//! it removed is named by a removal record of such a number, so that everything else must be as planned.

use std::{collections::HashMap, sync::mpsc, thread};

use sled::{Db, IVec};

use super::{
    calls::{FoundCall, Marks, StoredGroup},
    dead_letters,
    error::Finding,
    facts,
    guard::guarded,
    head::{self, AnyHead},
    keys::{self, FACT_TARGET, GONE, HEAD_KEY},
    ledger::{Ledger, Says},
    note::{self, GroupNote, Note},
    pack,
    plan::Plan,
    queue,
    record::{self, FactRecord, HistoryRecord, Kind, Unreadable},
};
use crate::{seqs::SeqSet, target::Target, units::UnixMillis};

mod held;
mod witness;

use held::Held;
use witness::Witness;

/// Values per class, as a scan found them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Calls that wait, those being sent included.
    pub pending: u64,
    /// Calls with a sending mark, dead letters not counted.
    pub sending: u64,
    /// Dead letters.
    pub dead: u64,
    /// Chunks of large bodies.
    pub chunks: u64,
    /// Facts.
    pub facts: u64,
    /// History records.
    pub history: u64,
    /// Values that are not what was written.
    pub bad: u64,
    /// Leftovers that the next open sweeps: chunks and marks without a call.
    pub leftovers: u64,
}

/// What a store holds.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) head: Option<AnyHead>,
    pub(super) ledger: Ledger,
    /// What sled shows otherwise than the plan says.
    pub(super) differs: Option<String>,
    /// Ascending by sequence, dead letters included.
    pub(super) calls: Vec<FoundCall>,
    pub(super) findings: Vec<Finding>,
    /// Keys that belong to nothing.
    pub(super) garbage: Vec<IVec>,
    pub(super) history_next: u64,
    pub(super) target: Option<Target>,
    /// Bytes of all keys and values.
    pub(super) live_bytes: u64,
    pub(super) counts: Counts,
}

/// Why a scan broke off.
#[derive(Debug)]
pub(super) enum ScanFailure {
    /// A value of a newer version: nothing must be touched.
    Newer(u16),
    /// sled failed, or panicked.
    Broken(String),
}

/// A key is asked for again after so many bytes. sled evicts pages only once 64 accesses of one of its cache's 256 shards
/// have come together (its `lru.rs`), and a scan accesses each page once: it would leave 16,384 pages in memory.
const ASK_AGAIN_BYTES: usize = 2 * 1024;

/// Bytes of values that are handed to the scan at a time, and how many such batches may wait for it.
const BATCH_BYTES: usize = 256 * 1024;
const BATCHES: usize = 4;

/// Keys and values, in sled's order.
type Batch = Vec<(IVec, IVec)>;

/// Reads everything once, and compares it with a plan. sled is read on a thread of its own if `beside`.
pub(super) fn scan(db: &Db, plan: Option<&Plan>, beside: bool) -> Result<Scanned, ScanFailure> {
    guarded(|| {
        let mut scan = Scan { witness: plan.map(Witness::new), ..Scan::default() };
        each_of(db, beside, &mut |batch| {
            for (key, value) in batch {
                scan.found.live_bytes += (key.len() + value.len()) as u64;
                if let Some(witness) = &mut scan.witness {
                    witness.see(&key, &value);
                }
                match scan.visit(&key, &value) {
                    Ok(()) => {}
                    Err(Unreadable::Newer { found }) => return Err(ScanFailure::Newer(found)),
                    Err(why) => scan.bad(&key, &why.to_string()),
                }
            }
            Ok(())
        })?;
        Ok(scan.finish())
    })
    .unwrap_or_else(|panic| Err(ScanFailure::Broken(panic)))
}

/// Gives all that sled shows to `visit`, until that fails. With a thread `beside`, sled reads the next batch meanwhile,
/// which takes longer than the scan does.
fn each_of(
    db: &Db,
    beside: bool,
    visit: &mut dyn FnMut(Batch) -> Result<(), ScanFailure>,
) -> Result<(), ScanFailure> {
    if !beside {
        return read_all(db, visit);
    }
    let (sender, batches) = mpsc::sync_channel(BATCHES);
    let read = move || {
        let unheard = |_| ScanFailure::Broken("the scan has ended".into());
        guarded(|| read_all(db, &mut |batch| sender.send(batch).map_err(unheard)))
            .unwrap_or_else(|panic| Err(ScanFailure::Broken(panic)))
    };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("store-scan".into());
        let Ok(reader) = builder.spawn_scoped(scope, read) else {
            return read_all(db, visit);
        };
        for batch in batches {
            visit(batch)?;
        }
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn read_all(
    db: &Db,
    give: &mut dyn FnMut(Batch) -> Result<(), ScanFailure>,
) -> Result<(), ScanFailure> {
    let broken = |error: sled::Error| ScanFailure::Broken(error.to_string());
    let (mut batch, mut bytes, mut unasked) = (Vec::new(), 0, 0);
    for item in db.iter() {
        let (key, value) = item.map_err(broken)?;
        (bytes, unasked) = (bytes + value.len(), unasked + value.len());
        if unasked >= ASK_AGAIN_BYTES {
            unasked = 0;
            db.contains_key(&key).map_err(broken)?;
        }
        batch.push((key, value));
        if bytes >= BATCH_BYTES {
            bytes = 0;
            give(std::mem::take(&mut batch))?;
        }
    }
    give(batch)
}

/// The chunks of one body, as far as they were seen.
#[derive(Default)]
struct Pieces {
    /// Indices seen, ascending.
    indices: Vec<u32>,
    bytes: u64,
    crc: crc32fast::Hasher,
    broken: bool,
}

/// Reads values of which it is known that they are live, ascending by key.
pub(super) fn scan_values(
    values: impl Iterator<Item = std::io::Result<(Vec<u8>, Vec<u8>)>>,
) -> Result<Scanned, ScanFailure> {
    let mut scan = Scan::default();
    for item in values {
        let (key, value) = item.map_err(|error| ScanFailure::Broken(error.to_string()))?;
        let (key, value) = (IVec::from(key), IVec::from(value));
        match scan.visit(&key, &value) {
            Ok(()) => {}
            Err(Unreadable::Newer { found }) => return Err(ScanFailure::Newer(found)),
            Err(why) => scan.bad(&key, &why.to_string()),
        }
    }
    Ok(scan.finish())
}

#[derive(Default)]
struct Scan<'a> {
    witness: Option<Witness<'a>>,
    found: Scanned,
    calls: Held,
    /// The target of the call that was read last: most share it.
    target: Target,
    /// Every sequence with a header, be it one that does not decode.
    headers: SeqSet,
    pieces: HashMap<u64, Pieces>,
    marks: Vec<(u64, IVec, IVec)>,
    /// Notes of groups: the commit that wrote each, the call that it is beside, and the note.
    groups: Vec<(u64, u64, Note)>,
    /// Calls with a note of their own, and the commit that wrote it.
    noted: Vec<(u64, u64)>,
}

impl Scan<'_> {
    fn visit(&mut self, key: &IVec, value: &IVec) -> Result<(), Unreadable> {
        let unknown = Unreadable::Damaged("nothing is stored under such a key");
        let prefix = *key.first().ok_or_else(|| unknown.clone())?;
        let number = keys::number_of(key).ok_or_else(|| unknown.clone());
        let sealed = record::peel(value);
        let commit = sealed.as_ref().map_or(0, |sealed| sealed.commit);
        let is_void = sealed.is_ok_and(|sealed| sealed.kind == Kind::Void);
        if prefix != keys::CALLS {
            self.found.ledger.written(
                key,
                if is_void { Says::Nothing } else { Says::Itself },
                commit,
            );
        }
        match prefix {
            keys::SENDING | keys::DEAD | facts::PREFIX if is_void => Ok(()),
            GONE => {
                self.found.ledger.recorded(&record::open(Kind::Gone, value)?.read()?);
                Ok(())
            }
            keys::CHUNKS => self.chunk(key, value, &unknown),
            keys::PACKS => self.pack(number?, value),
            keys::CALLS => self.call(number?, value),
            keys::SENDING | keys::DEAD => {
                record::peel(value).map(drop).or_else(only_newer)?;
                self.marks.push((number?, key.clone(), value.clone()));
                Ok(())
            }
            facts::PREFIX => self.fact(key, value),
            keys::HISTORY => {
                let number = number?;
                self.found.history_next = self.found.history_next.max(number.saturating_add(1));
                let sealed = record::open(Kind::History, value)?;
                let record: HistoryRecord<'_> = sealed.read()?;
                self.found.counts.history += 1;
                same(record.number == number)
            }
            _ if key.as_ref() == HEAD_KEY => {
                self.found.head = Some(head::decode(value)?);
                Ok(())
            }
            _ => Err(unknown),
        }
    }

    fn chunk(&mut self, key: &IVec, value: &[u8], unknown: &Unreadable) -> Result<(), Unreadable> {
        let (seq, index) = keys::chunk_of(key).ok_or_else(|| unknown.clone())?;
        self.found.counts.chunks += 1;
        let pieces = self.pieces.entry(seq).or_default();
        pieces.broken |= pieces.indices.len() as u64 != u64::from(index);
        pieces.indices.push(index);
        let read = queue::with_chunk(seq, index, value, |data| {
            pieces.bytes += data.len() as u64;
            pieces.crc.update(data);
        });
        pieces.broken |= read.is_err();
        read.or_else(only_newer)
    }

    fn call(&mut self, seq: u64, value: &[u8]) -> Result<(), Unreadable> {
        self.headers.insert(seq);
        let decoded = queue::decode_found(seq, value, &mut self.target);
        let says =
            decoded.as_ref().map_or(Says::Itself, |(call, _)| queue::says(call.header.traits));
        self.found.ledger.written(&keys::key(keys::CALLS, seq), says, 0);
        let (call, inline) = decoded?;
        let whole = if call.chunks == 0 {
            inline.len == call.body_len
        } else {
            self.pieces.get(&seq).is_some_and(|pieces| {
                !pieces.broken
                    && pieces.indices.len() as u64 == u64::from(call.chunks)
                    && pieces.bytes == call.body_len
                    && pieces.crc.clone().finalize() == inline.crc
            })
        };
        if !whole {
            return Err(Unreadable::Damaged("its body is incomplete or damaged"));
        }
        self.calls.push(call);
        Ok(())
    }

    /// The calls of a pack that are not gone. What is below the floor is, also if its record was dropped.
    fn pack(&mut self, number: u64, value: &[u8]) -> Result<(), Unreadable> {
        if value.is_empty() {
            self.found.ledger.packs.is_ahead(number);
            return Ok(());
        }
        let floor = match self.found.head {
            Some(AnyHead::Vouching(head)) => head.floor,
            _ => 0,
        };
        let mut seqs = Vec::new();
        let mut wrong = None;
        for entry in pack::entries(value) {
            let (seq, value) = match entry {
                Ok(entry) => entry,
                Err(why) => {
                    wrong.get_or_insert(why);
                    break;
                }
            };
            if let Some(witness) = &mut self.witness {
                witness.see_packed(seq, value);
            }
            if seq < floor || self.found.ledger.is_gone(seq) {
                continue;
            }
            seqs.push(seq);
            if let Err(why) = self.call(seq, value) {
                wrong.get_or_insert(why);
            }
        }
        self.found.ledger.packs.put(number, &seqs);
        wrong.map_or(Ok(()), Err)
    }

    fn fact(&mut self, key: &IVec, value: &[u8]) -> Result<(), Unreadable> {
        let sealed = record::open(Kind::Fact, value)?;
        let record: FactRecord<'_> = sealed.read()?;
        same(key.get(1..) == Some(record.name.as_bytes()))?;
        if record.name == FACT_TARGET {
            self.found.target = std::str::from_utf8(record.value).ok().map(Target::from);
        }
        self.found.counts.facts += 1;
        Ok(())
    }

    fn bad(&mut self, key: &[u8], detail: &str) {
        self.found.counts.bad += 1;
        self.found.findings.push(bad_record(key, detail));
    }

    fn finish(mut self) -> Scanned {
        self.calls.arrange();
        let witness = self.witness.take();
        self.found.differs = witness.and_then(|witness| witness.verdict(&self.found.ledger));
        let mut illegible = Vec::new();
        for (seq, key, value) in std::mem::take(&mut self.marks) {
            let is_note = key.first() == Some(&keys::SENDING);
            let note = if is_note { note::decode(seq, &value).ok() } else { None };
            let commit = || record::peel(&value).map_or(0, |sealed| sealed.commit);
            if let Some(note) = note.as_ref().filter(|note| note.group.is_some()) {
                self.groups.push((commit(), seq, note.clone()));
                continue;
            }
            if !self.headers.contains(seq) {
                self.found.garbage.push(key);
                continue;
            }
            let Some(call) = self.calls.get_mut(seq) else { continue };
            let whole = if is_note {
                call.noted(&note.clone().unwrap_or_default());
                // A note that was lost and made again knows nothing, not even a time.
                let knows = note.as_ref().filter(|it| it.first_sent_at > UnixMillis::default());
                match (knows, call.header.traits.gather()) {
                    (Some(_), _) => self.noted.push((seq, commit())),
                    (None, Some(gather)) => illegible.push((seq, gather)),
                    (None, None) => {}
                }
                note.is_some()
            } else {
                let mark = dead_letters::decode_or_undecodable(seq, &value);
                call.marks_mut().dead = Some(Box::new(mark));
                dead_letters::decode(seq, &value).is_some()
            };
            if !whole {
                self.bad(&key, "damaged");
            }
        }
        self.sweep_chunks();
        self.found.ledger.packs.found();
        self.found.garbage.extend(self.found.ledger.packs.take_emptied());
        self.settle_groups();
        for (seq, gather) in illegible {
            self.doubt_all_of(seq, gather);
        }
        self.finish_requeues();
        let mut counts = self.found.counts;
        for call in self.calls.values() {
            let Marks { dead, first_sent_at, .. } = call.marks();
            counts.dead += u64::from(dead.is_some());
            counts.pending += u64::from(dead.is_none());
            counts.sending += u64::from(dead.is_none() && first_sent_at.is_some());
        }
        counts.leftovers = self.found.garbage.len() as u64;
        self.found.counts = counts;
        self.found.calls = self.calls.into_vec();
        self.found
    }

    /// Gives the calls of a group its note, or removes them if it was applied; see `note.rs`.
    ///
    /// A call of a group is noted again, alone or in another group, only once its group was dissolved because it had
    /// written nothing. So a newer note that names one of its calls says that the group's was taken back, though the
    /// store may never have heard of that, as it was down: each of its calls is judged without it.
    fn settle_groups(&mut self) {
        let groups = std::mem::take(&mut self.groups);
        let newest = newest_commits(&groups, std::mem::take(&mut self.noted));
        for (commit, seq, note) in groups {
            let Some(group) = &note.group else { continue };
            let is_newer = |member: &u64| newest.get(member).is_some_and(|other| *other > commit);
            if !group.applied && group.members.iter().any(is_newer) {
                continue;
            }
            let present: Vec<u64> =
                group.members.iter().copied().filter(|it| self.calls.get(*it).is_some()).collect();
            if group.applied || present.is_empty() {
                // What is pushed last is removed first: the note outlives its calls.
                self.found.garbage.push(IVec::from(&keys::key(keys::SENDING, seq)));
                // A note that lacks its own call is in no head: its calls are gone with the next one.
                let is_alone = !self.found.ledger.is_live(seq);
                for member in present {
                    if is_alone {
                        self.found.ledger.removed(&keys::key(keys::CALLS, member));
                    }
                    self.sweep_call(member);
                }
                continue;
            }
            self.join_group(seq, &note, group, &present);
        }
    }

    /// `id` is the call that the note is beside.
    fn join_group(&mut self, id: u64, note: &Note, group: &GroupNote, present: &[u64]) {
        let broken = present.len() < group.members.len();
        // A burial that was cut short is finished: a group is one dead letter.
        let dead = present.iter().find_map(|seq| self.calls.get(*seq)?.marks().dead.clone());
        for seq in present {
            let Some(call) = self.calls.get_mut(*seq) else { continue };
            call.noted(note);
            let marks = call.marks_mut();
            marks.group = Some(Box::new(StoredGroup { id, token: group.token, broken }));
            marks.dead = marks.dead.take().or_else(|| dead.clone());
        }
    }

    /// The note of `seq` cannot be read, and may have been one of a group: whatever could have been sent with it
    /// and has no note of its own is in doubt, too.
    fn doubt_all_of(&mut self, seq: u64, gather: u64) {
        let alike = |call: &&mut FoundCall| call.header.traits.gather() == Some(gather);
        for call in self.calls.values_mut().filter(alike) {
            if call.marks().first_sent_at.is_none() || call.seq == seq {
                call.noted(&Note::default());
                let token = call.header.op_id;
                let group = StoredGroup { id: seq, token, broken: true };
                call.marks_mut().group = Some(Box::new(group));
            }
        }
    }

    /// Takes a call out, with all that belongs to it.
    fn sweep_call(&mut self, seq: u64) {
        let Some(call) = self.calls.remove(seq) else { return };
        let chunks = (0..call.chunks).map(|index| keys::chunk_key(seq, index));
        self.found.garbage.extend(chunks.map(|key| IVec::from(&key)));
        let marks = [keys::DEAD, keys::CALLS];
        self.found.garbage.extend(marks.map(|prefix| IVec::from(&keys::key(prefix, seq))));
    }

    fn sweep_chunks(&mut self) {
        for call in self.calls.values() {
            let seq = call.seq;
            let Some(pieces) = self.pieces.get(&seq).filter(|_| call.chunks == 0) else { continue };
            let keys = pieces.indices.iter().map(|index| keys::chunk_key(seq, *index));
            self.found.garbage.extend(keys.map(|key| IVec::from(&key)));
        }
        for (seq, pieces) in &self.pieces {
            if !self.headers.contains(*seq) {
                self.found.live_bytes = self.found.live_bytes.saturating_sub(pieces.bytes);
                let keys = pieces.indices.iter().map(|index| keys::chunk_key(*seq, *index));
                self.found.garbage.extend(keys.map(|key| IVec::from(&key)));
            }
        }
    }

    /// A crash within a requeue may leave the dead letter beside the call that took its place: the
    /// new one was written first, so the old one goes.
    fn finish_requeues(&mut self) {
        let dead = self.calls.values().filter(|call| call.marks().dead.is_some());
        let mut newest: HashMap<_, _> = dead.map(|call| (call.header.op_id, call.seq)).collect();
        if newest.is_empty() {
            return;
        }
        for call in self.calls.values() {
            if let Some(seq) = newest.get_mut(&call.header.op_id) {
                *seq = call.seq.max(*seq);
            }
        }
        let is_replaced = |call: &&FoundCall| {
            call.marks().dead.is_some() && newest.get(&call.header.op_id) > Some(&call.seq)
        };
        let replaced: Vec<u64> =
            self.calls.values().filter(is_replaced).map(|call| call.seq).collect();
        for seq in replaced {
            self.found.garbage.push(IVec::from(&keys::key(keys::SENDING, seq)));
            self.sweep_call(seq);
        }
    }
}

/// The newest commit that wrote a note of each call, be it one of its own or of a group. Empty if there are no groups.
fn newest_commits(groups: &[(u64, u64, Note)], own: Vec<(u64, u64)>) -> HashMap<u64, u64> {
    let mut newest = HashMap::new();
    if groups.is_empty() {
        return newest;
    }
    let of_groups = groups.iter().flat_map(|(commit, _, note)| {
        let members = note.group.iter().flat_map(|group| &group.members);
        members.map(move |member| (*member, *commit))
    });
    for (seq, commit) in own.into_iter().chain(of_groups) {
        let newest: &mut u64 = newest.entry(seq).or_default();
        *newest = commit.max(*newest);
    }
    newest
}

/// The finding for a value that is not what was written under `key`.
pub(super) fn bad_record(key: &[u8], detail: &str) -> Finding {
    let (kind, is_of_a_call) = match key.first() {
        Some(&keys::CHUNKS) => (Kind::Chunk.name(), true),
        Some(&keys::CALLS) => (Kind::Call.name(), true),
        Some(&keys::SENDING) => (Kind::Sending.name(), true),
        Some(&keys::DEAD) => (Kind::Dead.name(), true),
        Some(&facts::PREFIX) => (Kind::Fact.name(), false),
        Some(&keys::HISTORY) => (Kind::History.name(), false),
        _ if key == HEAD_KEY => (Kind::Head.name(), false),
        _ => ("unknown", false),
    };
    let seq = keys::chunk_of(key).map(|(seq, _)| seq).or_else(|| keys::number_of(key));
    Finding::BadRecord {
        seq: seq.filter(|_| is_of_a_call),
        kind: kind.to_owned(),
        detail: detail.to_owned(),
    }
}

fn same(matches: bool) -> Result<(), Unreadable> {
    matches.then_some(()).ok_or(Unreadable::Damaged("contains another number than its key says"))
}

/// Damage is judged when the call is known; a newer format stops the scan.
fn only_newer(why: Unreadable) -> Result<(), Unreadable> {
    if matches!(why, Unreadable::Newer { .. }) { Err(why) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that come, and in how many batches.
    fn keys(db: &Db, beside: bool) -> (Vec<IVec>, usize) {
        let (mut keys, mut batches) = (Vec::new(), 0);
        each_of(db, beside, &mut |batch| {
            batches += 1;
            keys.extend(batch.into_iter().map(|(key, _)| key));
            Ok(())
        })
        .unwrap();
        (keys, batches)
    }

    #[test]
    fn sled_shows_the_same_to_a_thread_beside() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        for number in 0..3_000_u32 {
            db.insert(number.to_be_bytes(), vec![7; 1_000]).unwrap();
        }
        let (alone, batches) = keys(&db, false);
        assert!(alone.len() == 3_000 && alone.is_sorted() && batches > 2 * BATCHES);
        assert_eq!(keys(&db, true), (alone, batches));
        // Whoever reads hears of the end, too.
        let newer = |_| Err(ScanFailure::Newer(9));
        assert!(matches!(each_of(&db, true, &mut { newer }), Err(ScanFailure::Newer(9))));
    }
}
