//! Calls that are stored piece by piece.

use super::*;

/// Puts `body` as pieces of `seq`; returns what its header must say.
fn put(store: &Store, seq: u64, body: &[u8]) -> StoredBody {
    let mut stored = StoredBody::default();
    for piece in body.chunks(PIECE_BYTES) {
        let data = Bytes::copy_from_slice(piece);
        let index = stored.add(piece);
        wait(|done| store.put_piece(seq, index, data, done)).unwrap();
    }
    stored
}

fn pieces(store: &Store, seq: u64) -> Vec<u8> {
    let mut body = Vec::new();
    for index in 0.. {
        let piece = store.piece(seq, index).unwrap();
        if piece.is_empty() {
            break;
        }
        body.extend_from_slice(&piece);
    }
    body
}

#[test]
fn what_was_put_piece_by_piece_is_read_whole_and_in_pieces_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for length in [1, CHUNK, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 17] {
        let dir = dir.path().join(length.to_string());
        let large = body(7, length);
        let opened = open(&dir);
        let stored = put(&opened.store, 5, &large);
        append(&opened.store, 6, b"overtakes it");
        let header = NewCall { body: Bytes::new(), ..call(5, b"") };
        wait(|done| opened.store.append_stored(header, stored, done)).unwrap();
        assert_eq!(opened.store.body(5).unwrap(), large);
        assert_eq!(pieces(&opened.store, 5), large);
        drop(opened);
        let again = open(&dir);
        assert_eq!((seqs(&again), again.findings.len()), (vec![5, 6], 0));
        assert_eq!(pieces(&again.store, 5), large);
        assert_eq!(pieces(&again.store, 6), b"overtakes it");
        wait(|done| again.store.remove(vec![5], done)).unwrap();
        assert!(matches!(again.store.piece(5, 0), Err(StoreError::NotFound { seq: 5 })));
    }
}

#[test]
fn pieces_without_a_header_are_swept_and_their_sequence_is_not_given_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    append(&opened.store, 1, b"whole");
    put(&opened.store, 2, &body(1, 2 * PIECE_BYTES));
    drop(opened);
    let again = open(dir.path());
    assert_eq!((seqs(&again), again.last_seq, again.findings.len()), (vec![1], 2, 0));
    // Given up within a run, they are swept as well.
    let stored = put(&again.store, 3, &body(2, PIECE_BYTES));
    again.store.drop_pieces(3, stored.pieces);
    append(&again.store, 4, b"another");
    again.store.close();
    drop(again);
    let last = open(dir.path());
    assert_eq!(seqs(&last), [1, 4]);
    assert_eq!(last.store.read(|db| Ok(db.scan_prefix([keys::CHUNKS]).count())).unwrap(), 0);
}

#[test]
fn an_upload_does_not_outlive_a_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, faults, _events) = open_with_faults(dir.path());
    let store = &opened.store;
    let stored = put(store, 1, &body(1, 2 * PIECE_BYTES));
    faults.fail_sync(1);
    wait(|done| store.append(call(2, b"unknown"), done)).unwrap_err();
    let again = || wait(|done| store.append(call(3, b"served again"), done));
    while again().is_err() {
        std::thread::yield_now();
    }
    let next = wait(|done| store.put_piece(1, 2, Bytes::from_static(b"more"), done));
    assert!(matches!(next, Err(StoreError::Failed { unknown: false, .. })), "{next:?}");
    let header = wait(|done| store.append_stored(call(1, b""), stored, done));
    assert!(matches!(header, Err(StoreError::Failed { unknown: false, .. })), "{header:?}");
    assert!(matches!(store.body(1), Err(StoreError::NotFound { .. })));
}

const CHUNK: usize = PIECE_BYTES / 16;
