//! Calls that share a value.

use super::{removals::commits_of, *};

fn open_packed(dir: &Path) -> Opened {
    Store::open(StoreSettings { packed: true, ..settings(dir) }).unwrap()
}

fn open_plain(dir: &Path) -> Opened {
    Store::open(StoreSettings { packed: false, ..settings(dir) }).unwrap()
}

/// Appends calls that go into one commit.
fn append_at_once(store: &Store, seqs: impl Iterator<Item = u64>, length: usize) {
    let commits = commits_of(store, |store, sender| {
        for seq in seqs {
            let sender = sender.clone();
            let done: Done = Box::new(move |result| {
                result.unwrap();
                sender.send(()).unwrap();
            });
            store.append(call(seq, &body(seq, length)), done);
        }
    });
    assert_eq!(commits, 1);
}

/// How many keys with that prefix, and something under them, a closed store has.
fn count(dir: &Path, prefix: u8) -> usize {
    contents(dir).iter().filter(|(key, value)| key[0] == prefix && !value.is_empty()).count()
}

#[test]
fn small_calls_of_one_commit_share_values_and_are_removed_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_packed(dir.path());
    append_at_once(&opened.store, 1..=50, 200);
    wait(|done| opened.store.remove(vec![1, 7, 50], done)).unwrap();
    assert_eq!(opened.store.body(7), Err(StoreError::NotFound { seq: 7 }));
    assert_eq!(opened.store.body(8).unwrap(), body(8, 200));
    drop(opened);
    let packs = count(dir.path(), keys::PACKS);
    assert!((4..=6).contains(&packs), "{packs}");
    assert_eq!(count(dir.path(), keys::CALLS), 0);

    let opened = open_packed(dir.path());
    let left: Vec<u64> = (2..50).filter(|seq| *seq != 7).collect();
    assert_eq!((seqs(&opened), opened.findings.len()), (left.clone(), 0));
    for seq in &left {
        assert_eq!(opened.store.body(*seq).unwrap(), body(*seq, 200));
    }
    wait(|done| opened.store.remove(left, done)).unwrap();
    drop(opened);
    assert_eq!(count(dir.path(), keys::PACKS), 0, "a pack goes with its last call");
    assert_eq!(seqs(&open_packed(dir.path())), [0; 0]);
}

#[test]
fn a_packed_call_takes_notes_and_marks_and_is_replaced_and_requeued() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_packed(dir.path());
    let store = &opened.store;
    append_at_once(store, 1..=5, 50);
    wait(|done| store.note_sending(2, &noted(9), done)).unwrap();
    wait(|done| store.bury(3, mark(DeadReason::Rejected), done)).unwrap();
    wait(|done| store.requeue(3, 6, false, done)).unwrap();
    wait(|done| store.bury(4, mark(DeadReason::Rejected), done)).unwrap();
    wait(|done| store.revive(&[4], done)).unwrap();
    let traits = Traits::residue(UnixMillis::new(9));
    let residue = call_with(5, traits, b"what is left");
    wait(|done| store.replace(&residue, done)).unwrap();
    let holds = |store: &Store| {
        let shown = |seq| store.call(seq).unwrap();
        assert_eq!(shown(2).first_sent_at, Some(UnixMillis::new(9)));
        assert_eq!(shown(4).dead, None);
        assert_eq!(store.body(5).unwrap(), &b"what is left"[..]);
        assert_eq!(store.body(6).unwrap(), body(3, 50));
        assert_eq!(store.body(3), Err(StoreError::NotFound { seq: 3 }));
    };
    holds(store);
    drop(opened);
    let opened = open_packed(dir.path());
    holds(&opened.store);
    drop(opened);
    // The other setting reads it, too, and a compaction writes it without packs.
    let opened = open_plain(dir.path());
    assert_eq!((seqs(&opened), opened.findings.len()), (vec![1, 2, 4, 5, 6], 0));
    assert_eq!(opened.store.body(5).unwrap(), &b"what is left"[..]);
    wait(|done| opened.store.compact(done)).unwrap();
    assert_eq!(opened.store.body(1).unwrap(), body(1, 50));
    drop(opened);
    assert_eq!(count(dir.path(), keys::PACKS), 0);
    let opened = open_plain(dir.path());
    assert_eq!((seqs(&opened), opened.findings.len()), (vec![1, 2, 4, 5, 6], 0));
    assert!(!mark::read(&dir.path().join("store")).unwrap().head().unwrap().packed);
}

#[test]
fn earlier_versions_refuse_a_store_with_packs_and_a_downgrade_takes_them_out() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_packed(dir.path());
    append_at_once(&opened.store, 1..=20, 100);
    wait(|done| opened.store.remove(vec![2], done)).unwrap();
    drop(opened);
    let mark = fs::read(dir.path().join("store/mark")).unwrap();
    assert_eq!(mark[4..6], record::PACKED.to_le_bytes(), "by the mark");
    let head = contents(dir.path())[keys::HEAD_KEY].clone();
    assert_eq!(record::peel(&head).unwrap().format, record::PACKED, "and by the log");
    assert_eq!(downgrade(&settings(dir.path())).unwrap().calls, 19);
    assert_eq!(count(dir.path(), keys::PACKS), 0);
    let opened = open(dir.path());
    assert_eq!(opened.calls.len(), 19);
    assert_eq!(opened.store.body(20).unwrap(), body(20, 100));
}

#[test]
fn several_are_read_as_each_is_alone() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_packed(dir.path());
    let store = &opened.store;
    append_at_once(store, 1..=40, 200);
    append(store, 41, &body(41, 30_000));
    append_at_once(store, 2_000..=2_020, 200);
    wait(|done| store.remove(vec![3, 20, 2_001], done)).unwrap();
    let residue = call_with(5, Traits::residue(UnixMillis::new(9)), b"what is left");
    wait(|done| store.replace(&residue, done)).unwrap();
    let reads = |store: &Store| {
        let missing = [3, 20, 2_001, 9_999];
        let asked = [4, 3, 5, 1, 41, 2_000, 2_001, 2_020, 20, 21, 9_999, 2];
        let read = store.bodies(&asked);
        assert_eq!(read, asked.map(|seq| store.body(seq)));
        for (seq, read) in asked.into_iter().zip(read) {
            let expected: Bytes = match seq {
                5 => Bytes::from("what is left"),
                41 => body(41, 30_000).into(),
                _ => body(seq, 200).into(),
            };
            let is_there = !missing.contains(&seq);
            assert_eq!(read, is_there.then_some(expected).ok_or(StoreError::NotFound { seq }));
        }
    };
    reads(store);
    drop(opened);
    reads(&open_packed(dir.path()).store);
}

/// The removal of a group that was applied was cut short behind its record: its calls in packs are gone, the others are
/// not.
#[test]
fn what_is_left_of_a_group_without_its_first_call_does_not_come_back() {
    for is_rebuilt in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let opened = open_packed(dir.path());
        append_at_once(&opened.store, 1..=2, 50);
        append(&opened.store, 3, &body(3, 9_000));
        let members = vec![1, 2, 3];
        let group = GroupNote { token: OpId::from_u128(7), members, applied: true };
        let note = Note { group: Some(group), ..noted(9) };
        wait(|done| opened.store.note_sending(1, &note, done)).unwrap();
        drop(opened);
        let commit = next_commit(dir.path());
        tamper(dir.path(), |db| record_gone(db, &[1, 2, 3], commit));
        let settings = StoreSettings { packed: true, ..settings(dir.path()) };
        killed_once_open(&settings);
        if is_rebuilt {
            rebuild::suspect(&settings.dir);
        }
        let opened = Store::open(settings).unwrap();
        assert_eq!(seqs(&opened), [0; 0], "{is_rebuilt}");
        let is_damaged = opened.findings.iter().any(Finding::is_damage);
        assert!(!is_damaged, "{is_rebuilt}: {:?}", opened.findings);
    }
}

/// sled shows a removal record that is older than the one in the raw log: nothing removed comes back.
#[test]
fn a_removal_record_that_sled_has_lost_brings_no_call_back() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open_packed(dir.path());
    append_at_once(&opened.store, 1..=20, 100);
    wait(|done| opened.store.remove(vec![5, 6], done)).unwrap();
    drop(opened);
    tamper(dir.path(), |db| drop(db.remove(keys::key(keys::GONE, 0)).unwrap()));
    let opened = open_packed(dir.path());
    let left: Vec<u64> = (1..=20).filter(|seq| ![5, 6].contains(seq)).collect();
    assert_eq!(seqs(&opened), left);
    assert!(matches!(opened.findings[..], [Finding::Healed { .. }]), "{:?}", opened.findings);
}

#[test]
fn keys_are_made_ahead_once_and_the_first_are_never_filled() {
    let dir = tempfile::tempdir().unwrap();
    let mut next = 1;
    for _ in 0..5 {
        let opened = open_packed(dir.path());
        let before = next;
        for _ in 0..40 {
            append_at_once(&opened.store, next..next + 24, 300);
            next += 24;
        }
        wait(|done| opened.store.remove((before..next - 24).collect(), done)).unwrap();
    }
    let keys: Vec<(u64, bool)> = contents(dir.path())
        .iter()
        .filter(|(key, _)| key[0] == keys::PACKS)
        .map(|(key, value)| (keys::number_of(key).unwrap(), !value.is_empty()))
        .collect();
    let filled: Vec<u64> = keys.iter().filter(|(_, filled)| *filled).map(|(at, _)| *at).collect();
    let (first, last) = (filled[0], filled[filled.len() - 1]);
    let ahead = keys.iter().filter(|(at, _)| *at > last).count();
    assert!((17..=100).contains(&ahead), "{ahead} keys are there for the next packs");
    let fence: Vec<u64> = keys.iter().map(|(at, _)| *at).take_while(|at| *at < first).collect();
    assert_eq!(fence, (0..16).collect::<Vec<u64>>());
    assert_eq!(keys.len(), fence.len() + filled.len() + ahead, "none was passed over");
}
