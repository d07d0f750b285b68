//! One suite for every store: on the disk, and in memory.

use super::*;
use crate::store::memory::{MemoryDisk, OpenedMemory};

/// A store that can be used and opened again.
trait Bench {
    fn store(&self) -> &dyn CallStore;

    /// Has what was sent committed.
    fn settle(&mut self);

    /// Closes the store and opens it again; the calls that it holds, and the last sequence.
    fn reopen(&mut self) -> (Vec<FoundCall>, u64);
}

struct OnDisk {
    dir: tempfile::TempDir,
    opened: Option<Opened>,
}

impl Bench for OnDisk {
    fn store(&self) -> &dyn CallStore {
        &self.opened.as_ref().unwrap().store
    }

    fn settle(&mut self) {}

    fn reopen(&mut self) -> (Vec<FoundCall>, u64) {
        drop(self.opened.take());
        let opened = self.opened.insert(open(self.dir.path()));
        assert_eq!(opened.findings, []);
        (opened.calls.clone(), opened.last_seq)
    }
}

struct InMemory {
    disk: MemoryDisk,
    opened: OpenedMemory,
}

impl Bench for InMemory {
    fn store(&self) -> &dyn CallStore {
        &*self.opened.store
    }

    fn settle(&mut self) {
        self.opened.committer.settle();
    }

    fn reopen(&mut self) -> (Vec<FoundCall>, u64) {
        self.opened = self.disk.open(&"redis://localhost:6379/0".into()).unwrap();
        self.opened.committer.settle();
        (self.opened.calls.clone(), self.opened.last_seq)
    }
}

#[track_caller]
fn run(
    bench: &mut dyn Bench,
    command: impl FnOnce(&dyn CallStore, Done),
) -> Result<(), StoreError> {
    let (sender, receiver) = mpsc::channel();
    command(bench.store(), Box::new(move |result| drop(sender.send(result))));
    bench.settle();
    receiver.recv_timeout(PATIENCE).expect("the command never ended")
}

fn a_call_comes_back(bench: &mut dyn Bench) {
    let large = body(1, 30_000);
    run(bench, |store, done| store.append(call(3, &large), done)).unwrap();
    run(bench, |store, done| store.append(call(5, b"small"), done)).unwrap();
    assert_eq!(bench.store().body(3).unwrap(), large);
    let kept = bench.store().call(5).unwrap();
    assert_eq!((kept.header.op_id, kept.body_len), (call(5, b"").header.op_id, 5));
    let (calls, last_seq) = bench.reopen();
    assert_eq!(calls.iter().map(|call| call.seq).collect::<Vec<_>>(), [3, 5]);
    assert_eq!((last_seq, &calls[1]), (5, &kept.into()));
    assert_eq!(
        bench.store().bodies(&[5, 4, 3]),
        [Ok(Bytes::from("small")), Err(StoreError::NotFound { seq: 4 }), Ok(large.into())]
    );
    run(bench, |store, done| store.remove(vec![3, 5, 9], done)).unwrap();
    assert_eq!(bench.store().call(3), Err(StoreError::NotFound { seq: 3 }));
    let (calls, last_seq) = bench.reopen();
    assert_eq!((calls, last_seq), (vec![], 5), "no sequence is given out twice");
}

fn marks_are_kept_and_taken_back(bench: &mut dyn Bench) {
    for seq in 11..=13 {
        run(bench, |store, done| store.append(call(seq, b"body"), done)).unwrap();
        run(bench, |store, done| store.note_sending(seq, &noted(seq), done)).unwrap();
        run(bench, |store, done| store.bury(seq, mark(DeadReason::Rejected), done)).unwrap();
    }
    let absent = run(bench, |store, done| store.note_sending(99, &noted(1), done));
    assert_eq!(absent, Err(StoreError::NotFound { seq: 99 }));
    let absent = run(bench, |store, done| store.bury(99, mark(DeadReason::Rejected), done));
    assert_eq!(absent, Err(StoreError::NotFound { seq: 99 }));
    run(bench, |store, done| store.take_back_note(11, done)).unwrap();
    run(bench, |store, done| store.revive(&[12], done)).unwrap();
    let check = |calls: &[FoundCall]| {
        let shown: Vec<_> = calls
            .iter()
            .map(|call| {
                (
                    call.seq,
                    call.marks().first_sent_at.map(UnixMillis::get),
                    call.marks().dead.is_some(),
                )
            })
            .collect();
        assert_eq!(shown, [(11, None, true), (12, Some(12), false), (13, Some(13), true)]);
    };
    let now: Vec<_> = (11..=13).map(|seq| bench.store().call(seq).unwrap().into()).collect();
    check(&now);
    check(&bench.reopen().0);
    run(bench, |store, done| store.requeue(13, 14, true, done)).unwrap();
    run(bench, |store, done| store.requeue(11, 15, false, done)).unwrap();
    let gone = run(bench, |store, done| store.requeue(11, 16, false, done));
    assert_eq!(gone, Err(StoreError::NotFound { seq: 11 }));
    let (calls, _) = bench.reopen();
    let shown: Vec<_> = calls
        .iter()
        .map(|call| {
            (
                call.seq,
                call.header.op_id == self::call(call.seq - 1, b"").header.op_id,
                call.marks().dead.is_some(),
            )
        })
        .collect();
    assert_eq!(shown, [(12, false, false), (14, true, false), (15, false, false)]);
    assert_eq!(calls[1].marks().first_sent_at, Some(UnixMillis::new(13)), "it keeps its note");
    assert_eq!(calls[2].marks().first_sent_at, None);
    run(bench, |store, done| store.remove(vec![12, 14, 15], done)).unwrap();
}

fn a_replacement_takes_the_place(bench: &mut dyn Bench) {
    run(bench, |store, done| store.append(call(21, &body(2, 9_000)), done)).unwrap();
    run(bench, |store, done| store.note_sending(21, &noted(1), done)).unwrap();
    let traits = Traits::residue(UnixMillis::new(9));
    let residue = call_with(21, traits, b"what is left");
    run(bench, |store, done| store.replace(&residue, done)).unwrap();
    let absent =
        run(bench, |store, done| store.replace(&NewCall { seq: 22, ..residue.clone() }, done));
    assert_eq!(absent, Err(StoreError::NotFound { seq: 22 }));
    let (calls, _) = bench.reopen();
    assert_eq!((calls[0].header.traits, calls[0].marks().first_sent_at), (traits, None));
    assert_eq!(bench.store().body(21).unwrap(), "what is left");
    run(bench, |store, done| store.remove(vec![21], done)).unwrap();
}

fn a_body_arrives_in_pieces(bench: &mut dyn Bench) {
    let whole = body(7, PIECE_BYTES + 5_000);
    let mut stored = StoredBody::default();
    for piece in whole.chunks(PIECE_BYTES) {
        let index = stored.add(piece);
        let piece = Bytes::copy_from_slice(piece);
        run(bench, |store, done| store.put_piece(31, index, piece, done)).unwrap();
    }
    // Others pass it, and are gone before it is whole.
    run(bench, |store, done| store.append(call(32, b"passes"), done)).unwrap();
    run(bench, |store, done| store.remove(vec![32], done)).unwrap();
    run(bench, |store, done| store.append_stored(call(31, b""), stored, done)).unwrap();
    bench.reopen();
    assert_eq!(bench.store().body(31).unwrap(), whole);
    assert_eq!(bench.store().piece(31, 1).unwrap(), whole[PIECE_BYTES..]);
    run(bench, |store, done| store.remove(vec![31], done)).unwrap();
    let never = run(bench, |store, done| store.append_stored(call(33, b""), stored, done));
    assert!(matches!(never, Err(StoreError::Failed { unknown: false, .. })), "{never:?}");
    let piece = Bytes::from_static(b"given up");
    run(bench, |store, done| store.put_piece(34, 0, piece, done)).unwrap();
    bench.store().drop_pieces(34, 1);
    assert_eq!(bench.reopen().0, []);
}

fn facts_and_history_are_kept(bench: &mut dyn Bench) {
    run(bench, |store, done| store.put_fact("breaker", b"open".to_vec(), done)).unwrap();
    run(bench, |store, done| store.put_fact("breaker", b"closed".to_vec(), done)).unwrap();
    for n in 0..5_u8 {
        bench.store().add_history(vec![n]);
    }
    run(bench, |store, done| store.set_target(&"redis://other:1/0".into(), done)).unwrap();
    bench.reopen();
    assert_eq!(bench.store().fact("breaker").unwrap(), b"closed");
    assert_eq!(bench.store().fact("unknown"), None);
    assert_eq!(bench.store().history(2), [[3], [4]]);
    let long = "x".repeat(600).into();
    let refused = run(bench, |store, done| store.set_target(&long, done));
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
    let refused = run(bench, |store, done| store.put_fact("large", vec![0; 5_000], done));
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
}

/// Several that are sent at once end in their order, also those that write over each other.
fn completions_run_in_order(bench: &mut dyn Bench) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let done = |n: u32| -> Done {
        let told = Arc::clone(&told);
        Box::new(move |result| told.lock().push((n, result.is_ok())))
    };
    let store = bench.store();
    store.append(call(41, b"first"), done(1));
    store.note_sending(41, &noted(1), done(2));
    store.take_back_note(41, done(3));
    store.note_sending(41, &noted(2), done(4));
    store.bury(40, mark(DeadReason::Expired), done(5));
    store.put_fact("f", vec![1], done(6));
    store.put_fact("f", vec![2], done(7));
    run(bench, |store, done| store.append(call(42, b"last"), done)).unwrap();
    let told = told.lock().clone();
    let expected: Vec<_> = (1..=7).map(|n| (n, n != 5)).collect();
    assert_eq!(told, expected);
    let (calls, _) = bench.reopen();
    assert_eq!(calls[0].marks().first_sent_at, Some(UnixMillis::new(2)));
    assert_eq!(bench.store().fact("f").unwrap(), [2]);
    run(bench, |store, done| store.remove(vec![41, 42], done)).unwrap();
}

fn a_closed_store_says_so(bench: &mut dyn Bench) {
    run(bench, |store, done| store.append(call(51, b"before"), done)).unwrap();
    bench.store().close();
    let refused = run(bench, |store, done| store.append(call(52, b"after"), done));
    assert_eq!(refused, Err(StoreError::Closed));
    let (calls, _) = bench.reopen();
    assert_eq!(calls.iter().map(|call| call.seq).collect::<Vec<_>>(), [51]);
}

fn conforms(mut bench: impl Bench) {
    a_call_comes_back(&mut bench);
    marks_are_kept_and_taken_back(&mut bench);
    a_replacement_takes_the_place(&mut bench);
    a_body_arrives_in_pieces(&mut bench);
    facts_and_history_are_kept(&mut bench);
    completions_run_in_order(&mut bench);
    a_closed_store_says_so(&mut bench);
}

#[test]
fn the_store_on_the_disk_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Some(open(dir.path()));
    conforms(OnDisk { dir, opened });
}

#[test]
fn the_store_in_memory_conforms() {
    let disk = MemoryDisk::default();
    let opened = disk.open(&"redis://localhost:6379/0".into()).unwrap();
    conforms(InMemory { disk, opened });
}

#[test]
fn what_a_store_in_memory_has_not_committed_is_gone_with_it() {
    let disk = MemoryDisk::default();
    let mut opened = disk.open(&"t".into()).unwrap();
    let told = Arc::new(Mutex::new(None));
    let heard = Arc::clone(&told);
    opened.store.append(call(1, b"one"), Box::new(|result| result.unwrap()));
    opened.committer.settle();
    opened.store.append(call(2, b"two"), Box::new(move |result| *heard.lock() = Some(result)));
    drop(opened);
    assert_eq!(*told.lock(), Some(Err(StoreError::Closed)));
    let again = disk.open(&"t".into()).unwrap();
    assert_eq!(again.calls.iter().map(|call| call.seq).collect::<Vec<_>>(), [1]);
}
