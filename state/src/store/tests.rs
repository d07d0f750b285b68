//! The store as its users see it: what it keeps, in which order, and what it says of damage.

mod check;
mod conformance;
#[expect(clippy::pedantic, clippy::disallowed_methods, reason = "it measures")]
mod cost;
mod damage;
#[expect(
    clippy::pedantic,
    clippy::disallowed_methods,
    reason = "a harness, which waits for processes"
)]
mod faulty;
mod flips;
mod forged;
mod kill;
mod model;
mod notes;
mod outages;
mod packs;
#[expect(clippy::pedantic, reason = "a harness, which counts in floats")]
mod power;
mod removals;
mod simulated;
#[expect(clippy::pedantic, reason = "a harness")]
mod syscalls;
mod upload;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use bytes::Bytes;
use sled::Db;

use super::{guard, keys, *};
use crate::units::{LaneId, Lanes, OpId, UnixMillis};

/// A wait that only ends by this bound when the store is broken.
const PATIENCE: Duration = Duration::from_secs(30);

fn settings(dir: &Path) -> StoreSettings {
    StoreSettings {
        dir: dir.join("store"),
        target: "redis://localhost:6379/0".into(),
        disk_floor: 0,
        unix_now: Arc::new(|| UnixMillis::new(1_790_000_000_000)),
        on_event: Arc::new(|_| {}),
        packed: std::env::var_os("FUSEBOX_TEST_PACKED").is_some(),
        faults: Faults::default(),
    }
}

fn open(dir: &Path) -> Opened {
    Store::open(settings(dir)).unwrap()
}

/// A store whose events arrive on a channel and whose faults can be armed.
fn open_with_faults(dir: &Path) -> (Opened, Faults, mpsc::Receiver<StoreEvent>) {
    let (sender, events) = mpsc::channel();
    let sender = Mutex::new(sender);
    let faults = Faults::armed();
    let settings = StoreSettings {
        on_event: Arc::new(move |event| drop(sender.lock().send(event))),
        faults: faults.clone(),
        ..settings(dir)
    };
    (Store::open(settings).unwrap(), faults, events)
}

fn call(seq: u64, body: &[u8]) -> NewCall {
    NewCall {
        seq,
        header: CallHeader {
            op_id: OpId::from_u128(u128::from(seq) << 64 | 7),
            digest: seq.wrapping_mul(31),
            uid: 1000,
            lanes: Lanes::One(LaneId(seq % 3)),
            token: TokenKind::Marker,
            traits: Traits::default(),
            accepted_at: UnixMillis::new(1_790_000_000_000 + seq),
        },
        target: "redis://localhost:6379/0".into(),
        label: format!("SET key:{seq}").into(),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        note: None,
        body: Bytes::copy_from_slice(body),
    }
}

/// A call with these traits.
fn call_with(seq: u64, traits: Traits, body: &[u8]) -> NewCall {
    let mut call = call(seq, body);
    call.header.traits = traits;
    call
}

/// A body that differs with `seed` and does not repeat every few bytes.
fn body(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect()
}

/// A note of a sending at `at` milliseconds.
fn noted(at: u64) -> Note {
    Note { first_sent_at: UnixMillis::new(at), ..Note::default() }
}

fn mark(reason: DeadReason) -> DeadMark {
    DeadMark { reason, detail: "WRONGTYPE".into(), at: UnixMillis::new(5), attempts: 3 }
}

/// Runs a command and waits for its end.
#[track_caller]
fn wait(command: impl FnOnce(Done)) -> Result<(), StoreError> {
    let (sender, receiver) = mpsc::channel();
    command(Box::new(move |result| drop(sender.send(result))));
    receiver.recv_timeout(PATIENCE).expect("the command never ended")
}

#[track_caller]
fn append(store: &Store, seq: u64, bytes: &[u8]) {
    wait(|done| store.append(call(seq, bytes), done)).unwrap();
}

fn seqs(opened: &Opened) -> Vec<u64> {
    opened.calls.iter().map(|call| call.seq).collect()
}

/// A closed store, as sled sees it.
fn bare(dir: &Path) -> Db {
    loop {
        match guard::open_sled(&dir.join("store/db")).unwrap() {
            Ok(db) => return db,
            // sled's own threads may hold a closed store for a moment longer.
            Err(error) => assert!(error.to_string().contains("lock"), "{error}"),
        }
        std::thread::yield_now();
    }
}

/// Every key and value of a closed store.
fn contents(dir: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let db = bare(dir);
    db.iter().map(Result::unwrap).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// Changes a closed store behind its back.
fn tamper(dir: &Path, change: impl FnOnce(&Db)) {
    let db = bare(dir);
    change(&db);
    db.flush().unwrap();
}

/// The number of the next commit of a closed store.
fn next_commit(dir: &Path) -> u64 {
    super::mark::read(&dir.join("store")).unwrap().head().unwrap().commit + 1
}

/// Records that these calls of the first block are gone, which a removal does before it removes anything.
fn record_gone(db: &Db, seqs: &[u64], commit: u64) {
    let bits = seqs.iter().copied().collect::<crate::seqs::SeqSet>().bits(0);
    let record = super::record::GoneRecord { block: 0, bits };
    let value = super::record::seal(super::record::Kind::Gone, &record, 192).unwrap();
    db.insert(keys::key(keys::GONE, 0), value.stamp(commit)).unwrap();
}

/// Opens a store, and is killed behind the first commit, before anything is swept.
fn killed_once_open(settings: &StoreSettings) {
    let ready = open::open(settings).unwrap();
    rebuild::close(&settings.dir, ready.db);
}

/// Flips a bit in every copy of a value that the raw log holds.
fn flip_everywhere(dir: &Path, value: &[u8]) {
    let log = dir.join("store/db/db");
    let mut bytes = fs::read(&log).unwrap();
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, value).collect();
    assert!(!places.is_empty(), "the log holds it");
    for at in places {
        bytes[at + value.len() - 1] ^= 0x10;
    }
    fs::write(&log, bytes).unwrap();
}

#[test]
fn a_time_to_live_in_a_record_is_passed_over() {
    let sent = call(4, b"payload");
    let value = super::queue::encode(&sent).unwrap().header.stamp(1);
    let mut plain = super::queue::decode_call(4, &value).unwrap();
    let sealed = super::record::open(super::record::Kind::Call, &value).unwrap();
    let mut record = super::queue::header(4, &sealed).unwrap();
    record.expires_at = Some(1_800_000_000_000);
    let older = super::record::seal(super::record::Kind::Call, &record, 256).unwrap().stamp(1);
    let read = super::queue::decode_call(4, &older).unwrap();
    plain.bytes = read.bytes;
    assert_eq!(read, plain);
}

#[test]
fn a_call_comes_back_as_it_was_appended() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    assert_eq!((opened.last_seq, opened.calls.len(), opened.findings.len()), (0, 0, 0));
    let sent = call(4, b"payload");
    wait(|done| opened.store.append(sent.clone(), done)).unwrap();
    let kept = opened.store.call(4).unwrap();
    assert_eq!(opened.store.body(4).unwrap(), sent.body);
    opened.store.close();
    drop(opened);

    let again = open(dir.path());
    assert_eq!(again.last_seq, 4);
    assert!(matches!(&again.calls[..], [only] if *only == kept.clone().into()));
    assert_eq!(
        (kept.header.op_id, kept.header.digest, kept.header.uid),
        (sent.header.op_id, sent.header.digest, sent.header.uid)
    );
    assert_eq!(
        (kept.header.lanes, kept.label, kept.header.token),
        (sent.header.lanes, sent.label, sent.header.token)
    );
    assert_eq!(kept.header.accepted_at, sent.header.accepted_at);
    assert_eq!((kept.traceparent, kept.body_len), (sent.traceparent, 7));
    assert_eq!(kept.target.as_str(), "redis://localhost:6379/0");
    assert_eq!((kept.first_sent_at, kept.dead, kept.chunks), (None, None, 0));
    assert_eq!(again.store.body(4).unwrap(), sent.body);
    assert_eq!(again.findings, []);
}

#[test]
fn a_large_body_is_chunked_below_the_limit_of_a_value_and_no_blob_file_appears() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let large = body(1, 1 << 20);
    append(&opened.store, 1, &large);
    for (seq, length) in (2..).zip([0, 1, 3_900, 3_950, 4_032, 4_096, 4_097, 8_192, 98_304]) {
        append(&opened.store, seq, &body(seq, length));
    }
    assert_eq!(opened.store.body(1).unwrap(), large);
    drop(opened);
    for (key, value) in contents(dir.path()) {
        assert!(value.len() <= 4_096, "{key:?}: {}", value.len());
    }
    assert_eq!(space::count_entries(&dir.path().join("store/db/blobs")), 0);

    let again = open(dir.path());
    assert_eq!(again.findings, []);
    assert_eq!(again.store.body(1).unwrap(), large);
    for (seq, length) in (2..).zip([0, 1, 3_900, 3_950, 4_032, 4_096, 4_097, 8_192, 98_304]) {
        assert_eq!(again.store.body(seq).unwrap(), body(seq, length));
    }
    let bytes = again.store.call(1).unwrap().bytes;
    assert!(bytes > 1 << 20 && bytes < (1 << 20) + 32 * 1024, "{bytes}");
}

#[test]
fn completions_run_in_the_order_of_their_commands() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let (sender, receiver) = mpsc::channel();
    for seq in 1..=300 {
        let sender = sender.clone();
        let size = if seq % 50 == 0 { 200_000 } else { 100 };
        let done: Done = Box::new(move |result| sender.send((seq, result)).unwrap());
        opened.store.append(call(seq, &body(seq, size)), done);
    }
    for seq in 1..=300 {
        assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), (seq, Ok(())));
    }
    assert!(opened.store.status().commits > 6, "large bodies span groups");
    drop(opened);
    assert_eq!(seqs(&open(dir.path())), (1..=300).collect::<Vec<_>>());
}

#[test]
fn a_removal_takes_header_chunks_and_marks_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    append(&opened.store, 1, &body(1, 20_000));
    append(&opened.store, 2, b"two");
    wait(|done| opened.store.note_sending(1, &noted(9), done)).unwrap();
    wait(|done| opened.store.bury(1, mark(DeadReason::Rejected), done)).unwrap();
    wait(|done| opened.store.remove(vec![1, 77], done)).unwrap();
    assert_eq!(opened.store.call(1), Err(StoreError::NotFound { seq: 1 }));
    wait(|done| opened.store.remove(vec![2], done)).unwrap();
    drop(opened);
    let left: Vec<u8> = contents(dir.path()).keys().map(|key| key[0]).collect();
    assert_eq!(left, *b"fgh", "the target, the record of the removals, and the head");
    let again = open(dir.path());
    assert_eq!((seqs(&again), again.last_seq), (vec![], 2), "sequences are not given out twice");
}

#[test]
fn marks_survive_and_want_a_call() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    append(&opened.store, 1, b"one");
    append(&opened.store, 2, b"two");
    wait(|done| opened.store.note_sending(1, &noted(9), done)).unwrap();
    wait(|done| opened.store.bury(2, mark(DeadReason::Ambiguous), done)).unwrap();
    let missing = Err(StoreError::NotFound { seq: 3 });
    assert_eq!(wait(|done| opened.store.note_sending(3, &noted(9), done)), missing);
    assert_eq!(wait(|done| opened.store.bury(3, mark(DeadReason::Expired), done)), missing);
    drop(opened);
    let again = open(dir.path());
    assert_eq!(again.calls[0].marks().first_sent_at, Some(UnixMillis::new(9)));
    assert_eq!(again.calls[1].marks().dead.as_deref(), Some(&mark(DeadReason::Ambiguous)));
    assert_eq!(FoundCall::from(again.store.call(2).unwrap()), again.calls[1]);
}

#[test]
fn a_requeue_keeps_the_call_and_its_op_id_under_a_new_sequence() {
    for length in [10, 300_000] {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path());
        let store = &opened.store;
        append(store, 1, &body(1, length));
        wait(|done| store.note_sending(1, &noted(9), done)).unwrap();
        wait(|done| store.bury(1, mark(DeadReason::Rejected), done)).unwrap();
        let old = store.call(1).unwrap();
        wait(|done| store.requeue(1, 2, false, done)).unwrap();
        let missing = Err(StoreError::NotFound { seq: 8 });
        assert_eq!(wait(|done| store.requeue(8, 9, false, done)), missing);
        drop(opened);
        let again = open(dir.path());
        let [new] = &again.calls[..] else { panic!("{:?}", again.calls) };
        assert_eq!(
            (new.seq, new.header.op_id, new.header.digest),
            (2, old.header.op_id, old.header.digest)
        );
        assert_eq!((new.marks().first_sent_at, &new.marks().dead), (None, &None));
        assert_eq!(again.store.body(2).unwrap(), body(1, length));
        drop(again);
        let chunks = contents(dir.path()).keys().filter(|key| key[0] == b'c').count();
        assert_eq!(chunks, if length == 10 { 0 } else { 75 }, "those of the old one are gone");
    }
}

#[test]
fn a_requeue_cut_short_is_finished_by_the_next_open() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    append(&opened.store, 1, b"one");
    wait(|done| opened.store.bury(1, mark(DeadReason::Rejected), done)).unwrap();
    let mut again = call(2, b"one");
    again.header.op_id = opened.store.call(1).unwrap().header.op_id;
    wait(|done| opened.store.append(again, done)).unwrap();
    drop(opened);
    assert_eq!(seqs(&open(dir.path())), [2]);
    let opened = open(dir.path());
    append(&opened.store, 3, b"three");
    drop(opened);
    assert!(!contents(dir.path()).contains_key(&keys::key(b'q', 1)[..]));
}

#[test]
fn facts_are_replaced_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    assert_eq!(opened.store.fact("breaker"), None);
    wait(|done| opened.store.put_fact("breaker", b"open".to_vec(), done)).unwrap();
    wait(|done| opened.store.put_fact("breaker", b"closed".to_vec(), done)).unwrap();
    wait(|done| opened.store.put_fact("break", b"other".to_vec(), done)).unwrap();
    let huge = wait(|done| opened.store.put_fact("huge", vec![0; 5_000], done));
    assert!(matches!(huge, Err(StoreError::TooLarge { .. })));
    drop(opened);
    let again = open(dir.path());
    assert_eq!(again.store.fact("breaker").unwrap(), b"closed");
    assert_eq!(again.store.fact("break").unwrap(), b"other");
}

#[test]
fn the_history_keeps_the_last_thousand_newest_last() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    for number in 0..1_500_u32 {
        opened.store.add_history(number.to_be_bytes().to_vec());
    }
    append(&opened.store, 1, b"rides along");
    assert_eq!(opened.store.history(5_000).len(), 1_000);
    drop(opened);
    let again = open(dir.path());
    let expected: Vec<_> = (1_498..1_500_u32).map(|n| n.to_be_bytes().to_vec()).collect();
    assert_eq!(again.store.history(2), expected);
    again.store.add_history(b"after".to_vec());
    append(&again.store, 2, b"rides along");
    assert_eq!(again.store.history(1), [b"after"]);
    assert_eq!(again.store.history(5_000).len(), 1_000);
}

#[test]
fn another_target_is_told_until_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let other = StoreSettings { target: "redis://other:6379/0".into(), ..settings(dir.path()) };
    drop(Store::open(other.clone()).unwrap());
    let opened = Store::open(other.clone()).unwrap();
    assert_eq!(opened.previous_target, Some("redis://localhost:6379/0".into()));
    wait(|done| opened.store.set_target(&"redis://other:6379/0".into(), done)).unwrap();
    append(&opened.store, 1, b"one");
    let kept = opened.store.call(1).unwrap().target;
    assert_eq!(kept.as_str(), "redis://localhost:6379/0", "the one that it was accepted for");
    drop(opened);
    assert_eq!(Store::open(other).unwrap().previous_target, None);
}

#[test]
fn closing_commits_what_came_before_and_refuses_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let (sender, receiver) = mpsc::channel();
    for seq in 1..=50 {
        let sender = sender.clone();
        let done: Done = Box::new(move |result| sender.send(result).unwrap());
        opened.store.append(call(seq, &body(seq, 50_000)), done);
    }
    opened.store.close();
    assert_eq!(wait(|done| opened.store.append(call(51, b""), done)), Err(StoreError::Closed));
    assert!(receiver.try_iter().take(50).all(|result| result == Ok(())));
    assert!(opened.store.body(1).is_err());
    opened.store.close();
    drop(opened);
    assert_eq!(open(dir.path()).calls.len(), 50);
}

#[test]
fn a_second_open_is_refused_while_the_first_lives() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let second = Store::open(settings(dir.path()));
    assert!(matches!(second, Err(OpenError::Locked { .. })), "{second:?}");
    drop(opened);
    open(dir.path());
}

#[test]
fn a_completion_that_panics_harms_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    opened.store.append(call(1, b"one"), Box::new(|_| panic!("a caller's bug")));
    append(&opened.store, 2, b"two");
}

#[test]
fn a_completion_may_hold_the_last_handle() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).store;
    let (sender, receiver) = mpsc::channel();
    let last = store.clone();
    let done: Done = Box::new(move |result| {
        drop(last);
        sender.send(result).unwrap();
    });
    store.append(call(1, b"one"), done);
    drop(store);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), Ok(()));
    assert_eq!(open(dir.path()).calls.len(), 1);
}

#[test]
fn long_texts_are_cut_or_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let mut long = call(1, b"one");
    long.label = "ü".repeat(300).into();
    long.traceparent = Some("x".repeat(10_000));
    wait(|done| opened.store.append(long, done)).unwrap();
    let kept = opened.store.call(1).unwrap();
    assert_eq!((kept.label.len(), kept.traceparent), (256, None));
    let mut widest = call(3, &body(3, 3_900));
    widest.header.lanes = Lanes::new((0..64).map(|n| LaneId(u64::MAX - n)));
    widest.traceparent = Some("t".repeat(256));
    wait(|done| opened.store.append(widest.clone(), done)).unwrap();
    assert_eq!(opened.store.call(3).unwrap().header, widest.header);
    assert_eq!(opened.store.body(3).unwrap(), widest.body);
}
