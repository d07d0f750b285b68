//! Ways in for `fuzz/`: each takes any bytes and holds what must hold of them. Tests replay the corpora.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, mpsc},
};

use bytes::Bytes;

use super::{
    CallStore, Note, Store, cache_file,
    calls::{CallHeader, DeadMark, DeadReason, NewCall, TokenKind, Traits},
    dead_letters,
    head::{self, Head},
    journal, mark, note,
    plan::{self, Plan},
    queue,
    raw::{Key, Raw},
    record::{
        self, CallRecord, ChunkRecord, DeadRecord, FactRecord, GoneRecord, HistoryRecord, Kind,
        NoteRecord, SendingRecord, VoidRecord,
    },
    scan,
    settings::StoreSettings,
};
use crate::units::{LaneId, Lanes, OpId, UnixMillis};

/// The names of the targets, which are those of the corpora.
pub const TARGETS: [(&str, fn(&[u8])); 6] = [
    ("record", record),
    ("log", log),
    ("edited_log", edited_log),
    ("mark", mark),
    ("journal", journal),
    ("cache_file", cache_file),
];

/// A folder of this process.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("fusebox-fuzz-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap_or_default();
    folder
}

/// Any bytes as any kind of value.
pub fn record(bytes: &[u8]) {
    let Ok(sealed) = record::peel(bytes) else { return };
    assert!(sealed.length <= bytes.len());
    drop(sealed.read::<CallRecord<'_>>());
    drop(sealed.read::<NoteRecord<'_>>());
    drop(sealed.read::<GoneRecord>());
    let flat = [
        sealed.read::<ChunkRecord<'_>>().is_ok(),
        sealed.read::<SendingRecord>().is_ok(),
        sealed.read::<DeadRecord<'_>>().is_ok(),
        sealed.read::<FactRecord<'_>>().is_ok(),
        sealed.read::<HistoryRecord<'_>>().is_ok(),
        sealed.read::<VoidRecord<'_>>().is_ok(),
        head::decode(bytes).is_ok(),
    ];
    assert!(flat.len() < 8);
    let value = bytes.get(..sealed.length).unwrap_or_default();
    for seq in [0, 1, u64::MAX] {
        if let Ok(call) = queue::decode_call(seq, value) {
            assert_eq!(call.seq, seq);
        }
        if let Ok(note) = note::decode(seq, value) {
            drop(note::encode(seq, &note));
        }
        drop(dead_letters::decode(seq, value));
        drop(queue::with_chunk(seq, 0, value, <[u8]>::len));
    }
    if let Some(again) = record::seal_again(value, sealed.format) {
        let again = again.stamp(sealed.commit);
        let same = record::peel(&again).is_ok_and(|it| it.payload == sealed.payload);
        assert!(same, "sealed again, it is the same");
        let inside = again.get(record::OVERHEAD..).unwrap_or_default();
        let hidden = memchr::memmem::find(inside, &record::MAGIC).is_none();
        assert!(hidden || sealed.format == record::FIRST || again.len() + 2 > record::VALUE_MAX);
    }
}

/// What must hold of an exact plan.
fn holds(plan: &Plan) {
    if plan.is_exact() {
        let mut digests = plan::digests(plan);
        // Earlier releases counted these, too.
        for (seq, _) in plan.notes_alone() {
            digests.notes.add(head::Class::Notes.hash(seq));
        }
        assert_eq!(digests, plan.head.digests, "what is exact is what the head says");
    }
}

fn write_log(bytes: &[u8], name: &str) -> Option<Raw> {
    let folder = folder(name);
    fs::write(folder.join("db"), bytes).ok()?;
    Raw::read(&folder, &mut |_, _| {}).ok()
}

/// Any bytes as a raw log; values in them are made whole, so that the fuzzer need not guess a checksum.
pub fn log(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, &record::MAGIC).collect();
    for at in places {
        if let Some(value) = bytes.get_mut(at..) {
            record::mend_checksum(value);
        }
    }
    let Some(raw) = write_log(&bytes, "log") else { return };
    for seen in raw.heads.values() {
        if let Ok(plan) = plan::plan(&raw, seen.head) {
            holds(&plan);
        }
    }
    if let Ok(plan) = plan::choose(&raw, None) {
        holds(&plan);
        let values = plan.values.iter();
        let values = values.map(|it| Ok((it.key.to_bytes(), raw.load(it.place)?)));
        drop(scan::scan_values(values));
    }
}

/// A closed store, its head and what waits in it.
struct Fixture {
    log: Vec<u8>,
    head: Head,
    live: BTreeSet<u64>,
}

fn fixture() -> Option<&'static Fixture> {
    static FIXTURE: OnceLock<Option<Fixture>> = OnceLock::new();
    FIXTURE.get_or_init(make_fixture).as_ref()
}

fn make_fixture() -> Option<Fixture> {
    let dir = folder("fixture");
    drop(fs::remove_dir_all(&dir));
    let settings = StoreSettings {
        dir: dir.clone(),
        target: "redis://localhost:6379/0".into(),
        disk_floor: 0,
        unix_now: Arc::new(|| UnixMillis::new(1_790_000_000_000)),
        on_event: Arc::new(|_| {}),
        packed: false,
        faults: super::Faults::default(),
    };
    let opened = Store::open(settings).ok()?;
    let store = &opened.store;
    let wait = |command: &dyn Fn(super::Done)| {
        let (sender, receiver) = mpsc::channel();
        command(Box::new(move |result| sender.send(result).unwrap_or_default()));
        receiver.recv().is_ok_and(|result| result.is_ok())
    };
    let mut live = BTreeSet::new();
    for seq in 1..=60_u64 {
        let length = if seq.is_multiple_of(20) { 9_000 } else { 80 };
        let body: Vec<u8> = (0..length).map(|at| (at as u64 * seq) as u8).collect();
        let call = NewCall {
            seq,
            header: CallHeader {
                op_id: OpId::from_u128(u128::from(seq)),
                digest: seq,
                uid: 1000,
                lanes: Lanes::One(LaneId(seq % 3)),
                token: TokenKind::Marker,
                traits: Traits::default(),
                accepted_at: UnixMillis::new(seq),
            },
            target: "redis://localhost:6379/0".into(),
            label: format!("SET key:{seq}").into(),
            traceparent: None,
            note: None,
            body: Bytes::from(body),
        };
        wait(&|done| store.append(call.clone(), done)).then(|| live.insert(seq));
        if seq % 9 == 0 {
            let note = Note { first_sent_at: UnixMillis::new(9), ..Note::default() };
            wait(&|done| store.note_sending(seq, &note, done));
        }
        if seq % 14 == 0 {
            let at = UnixMillis::new(9);
            let mark =
                DeadMark { reason: DeadReason::Rejected, detail: "x".into(), at, attempts: 1 };
            wait(&|done| store.bury(seq, mark.clone(), done));
        }
        if seq % 4 == 0 {
            wait(&|done| store.remove(vec![seq / 4], done)).then(|| live.remove(&(seq / 4)));
        }
    }
    wait(&|done| store.put_fact("breaker", b"open".to_vec(), done));
    store.close();
    drop(opened);
    let mut log = fs::read(dir.join("db/db")).ok()?;
    let used = log.iter().rposition(|byte| *byte != 0)?;
    log.truncate(used + 1);
    Some(Fixture { log, head: mark::read(&dir).ok()?.head()?, live })
}

/// Edits of a real log. Each takes eight bytes: what, at which offset (three bytes), and how much.
pub fn edited_log(bytes: &[u8]) {
    let Some(fixture) = fixture() else { return };
    let mut log = fixture.log.clone();
    for edit in bytes.chunks_exact(8).take(16) {
        let [what, a, b, c, d, e, f, value] = *edit else { continue };
        let length = log.len().max(1);
        let at = u32::from_le_bytes([a, b, c, 0]) as usize % length;
        let count = usize::from(u16::from_le_bytes([d, e])) + 1;
        let end = (at + count).min(log.len());
        match what % 5 {
            0 => log.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << (value % 8)),
            1 => log.get_mut(at..end).into_iter().for_each(|part| part.fill(0)),
            2 => log.get_mut(at..end).into_iter().for_each(|part| part.fill(value)),
            3 => {
                let to = (at + usize::from(f) * 512) % length;
                let part = log.get(at..end).unwrap_or_default().to_vec();
                let there = part.len().min(log.len().saturating_sub(to));
                if let (Some(target), Some(part)) = (log.get_mut(to..to + there), part.get(..there))
                {
                    target.copy_from_slice(part);
                }
            }
            _ => log.truncate(at),
        }
    }
    let Some(raw) = write_log(&log, "edited") else { return };
    let Ok(plan) = plan::choose(&raw, Some(fixture.head)) else { return };
    holds(&plan);
    let calls = plan.values.iter().filter_map(|value| match &value.key {
        Key::Call(seq) => Some(*seq),
        _ => None,
    });
    let mut calls: BTreeSet<u64> = calls.collect();
    assert!(calls.is_subset(&fixture.live), "a removed call is back");
    calls.extend(&plan.lost.calls);
    assert_eq!(calls, fixture.live, "whatever is not there is reported");
}

/// Any bytes as a mark.
pub fn mark(bytes: &[u8]) {
    mark::hold(bytes);
}

/// Any bytes as what an earlier process left of a journal.
pub fn journal(bytes: &[u8]) {
    let dir = folder("journal");
    drop(fs::remove_file(dir.join(journal::OLDER)));
    if fs::write(dir.join(journal::NEWER), bytes).is_err() {
        return;
    }
    let Ok((journal, past)) = journal::Journal::open(&dir, 1 << 20) else { return };
    assert_eq!(past, bytes);
    journal.add(b"next".to_vec());
    let (sender, receiver) = mpsc::channel();
    journal.read(move |lines| sender.send(lines).unwrap_or_default());
    let lines = receiver.recv().unwrap_or_default();
    assert!(lines.starts_with(bytes));
    assert!(lines.ends_with(b"\nnext\n") || lines == b"next\n");
}

/// Any bytes as a cache's snapshot; its checksum is made right.
pub fn cache_file(bytes: &[u8]) {
    let file = folder("cache").join("file");
    let mut bytes = bytes.to_vec();
    if let Some((head, body)) = bytes.split_at_mut_checked(10)
        && let Some(crc) = head.get_mut(6..)
    {
        crc.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    }
    if fs::write(&file, &bytes).is_err() {
        return;
    }
    let Ok(entries) = cache_file::load(&file, &"t".into()) else { return };
    if cache_file::save(&file, &"t".into(), entries.clone()).is_ok() {
        assert_eq!(cache_file::load(&file, &"t".into()).ok(), Some(entries));
    }
}

/// What a corpus begins with.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let Some(fixture) = fixture() else { return Vec::new() };
    let log = &fixture.log;
    let values = || {
        let places = memchr::memmem::find_iter(log, &record::MAGIC);
        places.filter_map(|at| {
            let value = log.get(at..)?;
            let sealed = record::peel(value).ok()?;
            Some((sealed.kind, value.get(..sealed.length)?.to_vec()))
        })
    };
    match target {
        "record" => {
            let mut kinds: BTreeSet<Kind> = BTreeSet::new();
            values().filter(|(kind, _)| kinds.insert(*kind)).map(|it| it.1).collect()
        }
        "log" => {
            let small: Vec<u8> = values().take(40).flat_map(|it| it.1).collect();
            vec![small, log.get(..4_096).unwrap_or_default().to_vec()]
        }
        "edited_log" => (0..5).map(|what| vec![what, 9, 30, 0, 5, 0, 3, 7]).collect(),
        "mark" => vec![mark::sample(&fixture.head)],
        "journal" => vec![b"{\"a\":1}\n{\"b\":2}\n".to_vec(), b"torn".to_vec()],
        "cache_file" => {
            let file = folder("cache").join("seed");
            let entry = cache_file::CacheEntry {
                lane: LaneId(7),
                key: Bytes::from_static(b"GET k"),
                value: Bytes::from_static(b"v"),
                at: UnixMillis::new(9),
                until: Some(UnixMillis::new(10)),
                outlasts: false,
            };
            drop(cache_file::save(&file, &"t".into(), vec![entry]));
            fs::read(&file).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The folder of the corpora.
pub fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpora_are_replayed() {
        for (target, hold) in TARGETS {
            let corpus = corpus(target);
            if std::env::var_os("FUSEBOX_WRITE_CORPUS").is_some() {
                fs::create_dir_all(&corpus).unwrap();
                for (number, seed) in seeds(target).iter().enumerate() {
                    fs::write(corpus.join(format!("seed-{number}")), seed).unwrap();
                }
            }
            let mut count = 0;
            for entry in fs::read_dir(&corpus).unwrap() {
                hold(&fs::read(entry.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "{target} has no corpus");
        }
    }
}
