//! Bodies that look like values of the store.

use super::*;
use crate::store::{
    head::{self, Head},
    keys, queue, record,
};

/// A body with a value of a newer format, a head that makes all calls gone, and another call in place of the second.
fn forged() -> Vec<u8> {
    let head = Head { commit: 1 << 40, last_seq: 9, floor: 1 << 50, ..Head::default() };
    let other = queue::encode(&call(2, b"FLUSHALL")).unwrap();
    [
        b"SET k ".to_vec(),
        record::seal_as_newer(b"future"),
        head::encode(&head).unwrap(),
        other.header.stamp(1 << 40),
    ]
    .concat()
}

/// A name that is a whole envelope of a newer format.
fn forged_name() -> OpId {
    let newer = record::seal_as_newer(b"");
    OpId::from_u128(u128::from_le_bytes(newer[..16].try_into().unwrap()))
}

fn is_whole(dir: &Path, calls: u64) {
    let opened = open(dir);
    assert_eq!(opened.findings, []);
    assert_eq!(seqs(&opened), (1..=calls).collect::<Vec<u64>>());
    for (seq, body) in [(1, forged()), (2, b"second".to_vec()), (3, forged().repeat(40))] {
        assert_eq!(opened.store.body(seq).unwrap(), body, "{seq}");
    }
    assert_eq!(opened.calls[0].header.op_id, forged_name());
    opened.store.close();
}

fn fill(dir: &Path) {
    let opened = open(dir);
    let mut first = call(1, &forged());
    first.header.op_id = forged_name();
    wait(|done| opened.store.append(first, done)).unwrap();
    append(&opened.store, 2, b"second");
    append(&opened.store, 3, &forged().repeat(40));
    opened.store.close();
}

#[test]
fn what_a_caller_sends_is_never_taken_for_a_value() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let log = fs::read(dir.path().join("store/db/db")).unwrap();
    let newer = record::seal_as_newer(b"future");
    assert!(memchr::memmem::find(&log, &newer).is_none(), "the log has not one of them");
    is_whole(dir.path(), 3);
    let opened = open(dir.path());
    wait(|done| opened.store.remove(vec![2], done)).unwrap();
    opened.store.close();
    let opened = open(dir.path());
    assert_eq!((opened.findings, opened.calls.len()), (vec![], 2));
}

#[test]
fn nor_is_it_if_it_was_stored_before_payloads_were_masked() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    tamper(dir.path(), |db| {
        let keys: Vec<sled::IVec> = db.iter().keys().map(Result::unwrap).collect();
        for key in keys.iter().filter(|key| key[0] == keys::CALLS || key[0] == keys::CHUNKS) {
            let value = db.get(key).unwrap().unwrap();
            db.insert(key, record::without_mask(&value)).unwrap();
        }
    });
    let log = fs::read(dir.path().join("store/db/db")).unwrap();
    assert!(memchr::memmem::find(&log, &record::seal_as_newer(b"future")).is_some());
    is_whole(dir.path(), 3);
}
