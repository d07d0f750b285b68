//! Stores that a crash, a disk or a person has damaged, and what opening them does.

use std::{fs, os::unix::fs::FileExt};

use super::*;
use crate::store::check::{CheckError, CheckVerdict, check};

/// A closed store with calls 1 to `calls`, every third of them chunked.
fn filled(dir: &Path, calls: u64) {
    let opened = open(dir);
    for seq in 1..=calls {
        append(&opened.store, seq, &content(seq));
    }
}

fn content(seq: u64) -> Vec<u8> {
    body(seq, if seq.is_multiple_of(3) { 9_000 } else { 300 })
}

fn log(dir: &Path) -> PathBuf {
    dir.join("store/db/db")
}

/// Names in the store's folder that start with `prefix`.
fn named(dir: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(dir.join("store")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// The store serves: it takes a call above every sequence before, and has it after a reopen.
#[track_caller]
fn serves(dir: &Path) {
    let opened = open(dir);
    let seq = opened.last_seq + 1;
    append(&opened.store, seq, b"after the damage");
    drop(opened);
    let opened = open(dir);
    assert_eq!(opened.store.body(seq).unwrap(), &b"after the damage"[..]);
    let damage: Vec<_> = opened.findings.iter().filter(|finding| finding.is_damage()).collect();
    assert!(damage.is_empty(), "damage is reported once: {damage:?}");
}

#[test]
fn chunks_and_marks_without_a_header_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3);
    tamper(dir.path(), |db| {
        for index in [0, 1, 5] {
            let value = queue::chunk_value(9, 0, b"piece").unwrap().stamp(1);
            db.insert(keys::chunk_key(9, index), value).unwrap();
        }
        db.insert(keys::key(b's', 9), note::encode(9, &noted(1)).unwrap().stamp(1)).unwrap();
        let mark = dead_letters::encode(9, &mark(DeadReason::Expired)).unwrap().stamp(1);
        db.insert(keys::key(b'd', 9), mark).unwrap();
    });
    let opened = open(dir.path());
    assert_eq!((seqs(&opened), opened.findings.len()), (vec![1, 2, 3], 0));
    assert_eq!(opened.last_seq, 9, "what is swept must not be a new call's");
    append(&opened.store, 10, b"a commit");
    drop(opened);
    let nine = 9_u64.to_be_bytes();
    assert!(contents(dir.path()).keys().all(|key| !key[1..].starts_with(&nine)));
}

/// What a commit has left that was cut short, the calls that wait then, and the last sequence.
type Torn = (fn(&Db, u64), &'static [u64], u64);

#[test]
fn what_an_open_vouches_for_is_proven_by_the_next_one_though_nothing_was_swept_in_between() {
    let torn: [Torn; 3] = [
        // Within a removal: the call is gone, and what was beside it is not.
        (
            |db, commit| {
                record_gone(db, &[1], commit);
                db.remove(keys::key(b'q', 1)).unwrap();
            },
            &[2],
            2,
        ),
        (
            |db, commit| {
                record_gone(db, &[1], commit);
                db.remove(keys::key(b'q', 1)).unwrap();
                db.remove(keys::key(b's', 1)).unwrap();
            },
            &[2],
            2,
        ),
        // Before the header of a call that keeps its note.
        (
            |db, commit| {
                let note = note::encode(3, &noted(9)).unwrap().stamp(commit);
                db.insert(keys::key(b's', 3), note).unwrap();
            },
            &[1, 2],
            3,
        ),
    ];
    for (round, (tear, left, last_seq)) in torn.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 2);
        let opened = open(dir.path());
        wait(|done| opened.store.note_sending(1, &noted(9), done)).unwrap();
        wait(|done| opened.store.bury(1, mark(DeadReason::Rejected), done)).unwrap();
        drop(opened);
        let commit = next_commit(dir.path());
        tamper(dir.path(), |db| tear(db, commit));
        killed_once_open(&settings(dir.path()));
        let opened = open(dir.path());
        assert_eq!(opened.findings, [], "{round}");
        assert_eq!((seqs(&opened), opened.last_seq), (left.to_vec(), last_seq), "{round}");
        drop(opened);
        serves(dir.path());
    }
}

/// What an open lost.
fn lost(opened: &Opened) -> Option<&Finding> {
    opened.findings.iter().find(|finding| matches!(finding, Finding::Lost { .. }))
}

#[test]
fn what_is_lost_is_named_told_once_and_kept_and_the_rest_serves() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 6);
    let opened = open(dir.path());
    wait(|done| opened.store.bury(4, mark(DeadReason::Rejected), done)).unwrap();
    wait(|done| opened.store.note_sending(5, &noted(9), done)).unwrap();
    drop(opened);
    let values = contents(dir.path());
    let keys = [
        keys::key(b'q', 1).to_vec(),
        keys::chunk_key(3, 1).to_vec(),
        keys::key(b'd', 4).to_vec(),
        keys::key(b's', 5).to_vec(),
    ];
    for key in keys {
        flip_everywhere(dir.path(), &values[&key]);
    }
    let opened = open(dir.path());
    assert_eq!(seqs(&opened), [2, 4, 5, 6]);
    let Some(Finding::Lost { calls, notes, dead, facts: false, kept: Some(kept) }) = lost(&opened)
    else {
        panic!("{:?}", opened.findings)
    };
    assert_eq!((&calls[..], &notes[..], &dead[..]), (&[1, 3][..], &[5][..], &[4][..]));
    assert!(kept.join("db").is_file());
    let dead = opened.calls[1].marks().dead.as_ref().unwrap();
    assert_eq!(dead.reason, DeadReason::Undecodable, "it does not come back to life");
    assert_eq!(
        opened.calls[2].marks().first_sent_at,
        Some(opened.calls[2].header.accepted_at),
        "in doubt"
    );
    assert!(matches!(opened.store.body(1), Err(StoreError::NotFound { seq: 1 })));
    for seq in [2, 6] {
        assert_eq!(opened.store.body(seq).unwrap(), content(seq));
    }
    drop(opened);
    serves(dir.path());
}

#[test]
fn what_sled_shows_otherwise_than_the_raw_log_is_healed() {
    let changes: [fn(&Db); 4] = [
        |db| drop(db.insert(keys::key(b'q', 1), b"garbage").unwrap()),
        |db| drop(db.remove(keys::key(b'q', 2)).unwrap()),
        |db| drop(db.remove(keys::chunk_key(6, 2)).unwrap()),
        |db| {
            let other = db.get(keys::key(b'q', 2)).unwrap().unwrap();
            db.insert(keys::key(b'q', 8), other).unwrap();
        },
    ];
    for (round, change) in changes.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 6);
        tamper(dir.path(), change);
        let opened = open(dir.path());
        assert!(
            matches!(opened.findings[..], [Finding::Healed { .. }]),
            "{round}: {:?}",
            opened.findings
        );
        assert_eq!(seqs(&opened), [1, 2, 3, 4, 5, 6], "{round}");
        for seq in 1..=6 {
            assert_eq!(opened.store.body(seq).unwrap(), content(seq), "{round}");
        }
        drop(opened);
        serves(dir.path());
    }
}

#[test]
fn a_newer_format_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3);
    tamper(dir.path(), |db| {
        db.insert(keys::key(b'q', 2), record::seal_as_newer(b"future")).unwrap();
    });
    let before = contents(dir.path());
    for _ in 0..2 {
        let refused = Store::open(settings(dir.path()));
        assert!(matches!(refused, Err(OpenError::NewerFormat { found: 4, known: 3 })));
    }
    assert!(before == contents(dir.path()));
    assert_eq!(named(dir.path(), "db."), [""; 0]);
}

/// The mark alone is enough: a newer store is refused before its log is read, also if every value in it could be.
#[test]
fn a_newer_mark_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3);
    let store = dir.path().join("store");
    let mut bytes = fs::read(store.join("mark")).unwrap();
    bytes[4..6].copy_from_slice(&4_u16.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    fs::write(store.join("mark"), &bytes).unwrap();
    // What a rebuild by that version has begun is its own to finish.
    fs::create_dir(store.join("db.partial")).unwrap();
    let before = fs::read(log(dir.path())).unwrap();
    let refused = Store::open(settings(dir.path()));
    assert!(matches!(refused, Err(OpenError::NewerFormat { found: 4, known: 3 })));
    let refused = downgrade(&settings(dir.path()));
    assert!(matches!(refused, Err(CheckError::NewerFormat(4))), "{refused:?}");
    let report = check(&store, &mut |_, _| {});
    assert_eq!(report.verdict, CheckVerdict::NewerFormat);
    assert_eq!(fs::read(store.join("mark")).unwrap(), bytes);
    assert!(fs::read(log(dir.path())).unwrap() == before);
    assert_eq!(named(dir.path(), "db."), ["db.partial"]);
}

#[test]
fn a_store_behind_its_mark_has_lost_its_tail_and_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 5);
    let store = dir.path().join("store");
    let mut ahead = super::mark::read(&store).unwrap().head().unwrap();
    for seq in 6..=9 {
        ahead.digests.calls.add(head::Class::Calls.hash(seq));
    }
    ahead = head::Head { commit: ahead.commit + 7, last_seq: 9, ..ahead };
    super::mark::Mark::create(&store).unwrap().write(&ahead).unwrap();
    let opened = open(dir.path());
    let Some(Finding::Lost { calls, kept: Some(kept), .. }) = lost(&opened) else {
        panic!("{:?}", opened.findings)
    };
    assert_eq!(calls[..], [6, 7, 8, 9]);
    assert!(kept.join("db").is_file());
    assert_eq!((seqs(&opened), opened.last_seq), (vec![1, 2, 3, 4, 5], 9));
    assert_eq!(opened.store.body(3).unwrap(), content(3));
    drop(opened);
    serves(dir.path());
}

#[test]
fn a_copy_that_is_older_than_its_mark_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 5);
    let old = fs::read(log(dir.path())).unwrap();
    let opened = open(dir.path());
    for seq in 6..=40 {
        append(&opened.store, seq, &content(seq));
    }
    drop(opened);
    for entry in fs::read_dir(dir.path().join("store/db")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }
    fs::write(log(dir.path()), old).unwrap();
    let opened = open(dir.path());
    let Some(Finding::Lost { calls, .. }) = lost(&opened) else { panic!("{:?}", opened.findings) };
    assert!(calls.iter().copied().eq(6..=40), "{calls:?}");
    assert_eq!(opened.last_seq, 40, "no sequence is given out twice");
    drop(opened);
    serves(dir.path());
}

#[test]
fn an_empty_log_beside_a_mark_is_a_lost_tail_and_not_a_fresh_store() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 5);
    fs::write(log(dir.path()), b"").unwrap();
    let opened = open(dir.path());
    assert!(opened.findings.iter().any(Finding::is_damage), "{:?}", opened.findings);
    assert_eq!((seqs(&opened), opened.last_seq), (vec![], 5));
    drop(opened);
    serves(dir.path());
}

#[test]
fn an_empty_log_without_a_mark_is_set_aside_and_no_first_start() {
    let damages: [fn(&Path); 2] =
        [|log| fs::write(log, b"").unwrap(), |log| fs::remove_file(log).unwrap()];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 2);
        let store = dir.path().join("store");
        fs::remove_file(store.join("mark")).unwrap();
        damage(&log(dir.path()));
        assert_eq!(check(&store, &mut |_, _| {}).verdict, CheckVerdict::Damaged);
        let opened = open(dir.path());
        assert!(matches!(opened.findings[..], [Finding::SetAside { .. }]), "{:?}", opened.findings);
        assert_eq!(named(dir.path(), "db.damaged-").len(), 1);
        drop(opened);
        serves(dir.path());
    }
}

#[test]
fn a_missing_log_beside_a_mark_is_a_lost_tail() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 5);
    fs::remove_dir_all(dir.path().join("store/db")).unwrap();
    let opened = open(dir.path());
    let Some(Finding::Lost { calls, .. }) = lost(&opened) else { panic!("{:?}", opened.findings) };
    assert_eq!(calls[..], [1, 2, 3, 4, 5]);
    drop(opened);
    serves(dir.path());
}

#[test]
fn a_truncated_log_is_never_opened_in_silence() {
    for cut in [100, 5_000, 60_000, 200_000, 500_000] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 60);
        let length = fs::metadata(log(dir.path())).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(log(dir.path())).unwrap();
        file.set_len(length.saturating_sub(cut)).unwrap();
        drop(file);
        let opened = open(dir.path());
        let whole = seqs(&opened) == (1..=60).collect::<Vec<_>>();
        assert!(
            whole || opened.findings.iter().any(Finding::is_damage),
            "{cut} bytes cut: {} calls, {:?}",
            opened.calls.len(),
            opened.findings
        );
        assert_eq!(opened.last_seq, 60);
        drop(opened);
        serves(dir.path());
    }
}

#[test]
fn a_garbage_log_is_set_aside_and_a_fresh_store_serves() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 30);
    let length = fs::metadata(log(dir.path())).unwrap().len();
    fs::write(log(dir.path()), body(99, usize::try_from(length).unwrap())).unwrap();
    let opened = open(dir.path());
    assert!(opened.findings.iter().any(Finding::is_damage), "{:?}", opened.findings);
    assert_eq!((opened.calls.len(), opened.last_seq), (0, 30));
    assert_eq!(named(dir.path(), "db.damaged-").len(), 1);
    drop(opened);
    serves(dir.path());
}

#[test]
fn a_store_that_was_set_aside_stays_however_full_the_disk_is() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 5);
    let faults = Faults::armed();
    faults.fake_free_space(Some(3 << 20));
    let settings = StoreSettings { faults, ..settings(dir.path()) };
    let mut kept = Vec::new();
    for round in 1..=3 {
        kept.push(body(round, 3_000_000));
        fs::write(log(dir.path()), kept.last().unwrap()).unwrap();
        drop(Store::open(settings.clone()).unwrap());
        let asides = named(dir.path(), "db.damaged-");
        let read = |name: &String| fs::read(dir.path().join("store").join(name).join("db"));
        let logs: Vec<_> = asides.iter().map(|name| read(name).unwrap()).collect();
        assert_eq!(logs.len(), kept.len(), "{asides:?}");
        assert!(kept.iter().all(|log| logs.contains(log)), "{round}");
    }
}

#[test]
fn flipped_bits_in_the_log_never_lose_a_call_in_silence() {
    let mut random = fastrand::Rng::with_seed(11);
    for round in 0..24 {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 40);
        let file = fs::OpenOptions::new().read(true).write(true).open(log(dir.path())).unwrap();
        let at = random.u64(..file.metadata().unwrap().len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << random.u8(..8)], at).unwrap();
        drop(file);
        let opened = open(dir.path());
        for call in &opened.calls {
            assert_eq!(opened.store.body(call.seq).unwrap(), content(call.seq));
        }
        assert!(
            opened.calls.len() == 40 || opened.findings.iter().any(Finding::is_damage),
            "round {round}, byte {at}: {} calls, {:?}",
            opened.calls.len(),
            opened.findings
        );
    }
}

#[test]
fn a_snapshot_cut_short_is_deleted_and_a_damaged_one_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 5);
    fs::write(dir.path().join("store/db/snap.0000.generating"), b"").unwrap();
    let opened = open(dir.path());
    assert!(matches!(opened.findings[..], [Finding::LeftoverSnapshot { .. }]));
    assert_eq!(seqs(&opened), [1, 2, 3, 4, 5]);
    drop(opened);

    let snapshots: Vec<_> = fs::read_dir(dir.path().join("store/db"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."))
        .collect();
    assert!(!snapshots.is_empty(), "an open writes a snapshot");
    for snapshot in snapshots {
        fs::write(snapshot, b"damaged").unwrap();
    }
    let opened = open(dir.path());
    assert!(matches!(opened.findings[..], [Finding::Healed { .. }]), "{:?}", opened.findings);
    assert_eq!(seqs(&opened), [1, 2, 3, 4, 5]);
    drop(opened);
    serves(dir.path());
}

#[test]
fn a_lost_mark_is_told() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 2);
    for damage in [None, Some(b"garbage")] {
        let mark = dir.path().join("store/mark");
        match damage {
            None => fs::remove_file(mark).unwrap(),
            Some(bytes) => fs::write(mark, bytes).unwrap(),
        }
        let opened = open(dir.path());
        assert!(matches!(opened.findings[..], [Finding::MarkLost { .. }]));
        assert_eq!(seqs(&opened), [1, 2]);
    }
    assert_eq!(open(dir.path()).findings, []);
}

#[test]
fn blob_files_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 2);
    fs::write(dir.path().join("store/db/blobs/123"), b"blob").unwrap();
    let opened = open(dir.path());
    assert_eq!(opened.findings, [Finding::BlobFiles { count: 1 }]);
}

/// A rebuild of a closed store that has come as far as `db.ready`.
fn rebuilt(dir: &Path) {
    let store = dir.join("store");
    let marked = super::mark::read(&store).unwrap();
    match open::look(&store.join("db"), marked, &mut |_, _| {}).unwrap() {
        open::Look::Planned(raw, plan) => {
            rebuild::from_plan(&settings(dir), &raw, &plan).unwrap();
        }
        _ => panic!("a whole store has a plan"),
    }
}

#[test]
fn a_rebuild_cut_short_is_dropped_or_finished() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 5);
    let store = dir.path().join("store");
    fs::create_dir(store.join("db.partial")).unwrap();
    fs::write(store.join("db.partial/db"), b"half").unwrap();
    assert_eq!(seqs(&open(dir.path())), [1, 2, 3, 4, 5]);
    assert!(!store.join("db.partial").try_exists().unwrap());

    // Written and promised, and the swap not begun; then the old one away, the new one not there.
    for old_is_there in [true, false] {
        rebuilt(dir.path());
        if !old_is_there {
            fs::rename(store.join("db"), store.join("db.discard")).unwrap();
        }
        let opened = open(dir.path());
        assert_eq!(opened.findings, [Finding::RebuildFinished]);
        assert_eq!(seqs(&opened), [1, 2, 3, 4, 5]);
        drop(opened);
        assert_eq!(named(dir.path(), "db.ready"), [""; 0]);
        assert_eq!(named(dir.path(), "db.discard"), [""; 0]);
    }
    serves(dir.path());
}

#[test]
fn a_finished_copy_that_is_not_whole_replaces_nothing() {
    let damages: [fn(&Path); 3] = [
        |ready| fs::write(ready.join("db"), b"").unwrap(),
        |ready| fs::write(ready.join("db"), vec![7; 900_000]).unwrap(),
        |ready| {
            fs::remove_dir_all(ready).unwrap();
            fs::write(ready, b"a file").unwrap();
        },
    ];
    for (round, damage) in damages.into_iter().enumerate() {
        for old_is_there in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            filled(dir.path(), 5);
            rebuilt(dir.path());
            let store = dir.path().join("store");
            if !old_is_there {
                fs::rename(store.join("db"), store.join("db.discard")).unwrap();
            }
            damage(&store.join("db.ready"));
            let opened = open(dir.path());
            assert_eq!(opened.findings, [], "{round}");
            assert_eq!(seqs(&opened), [1, 2, 3, 4, 5], "{round}, {old_is_there}");
            drop(opened);
            serves(dir.path());
        }
    }
}

#[test]
fn a_finished_copy_of_an_earlier_state_replaces_nothing() {
    let damages: [fn(&Path); 3] = [
        |_| {},
        |mark| fs::remove_file(mark).unwrap(),
        |mark| fs::write(mark, b"garbage").unwrap(),
    ];
    for (round, damage) in damages.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let (store, copy) = (dir.path().join("store"), dir.path().join("copy"));
        filled(dir.path(), 5);
        rebuilt(dir.path());
        fs::rename(store.join("db.ready"), &copy).unwrap();
        let opened = open(dir.path());
        append(&opened.store, 6, &content(6));
        wait(|done| opened.store.remove(vec![1], done)).unwrap();
        drop(opened);
        fs::rename(&copy, store.join("db.ready")).unwrap();
        damage(&store.join("mark"));
        let opened = open(dir.path());
        assert_eq!(seqs(&opened), [2, 3, 4, 5, 6], "{round}");
        assert!(!opened.findings.contains(&Finding::RebuildFinished), "{round}");
        drop(opened);
        assert_eq!(named(dir.path(), "db.ready"), [""; 0]);
        serves(dir.path());
    }
}

#[test]
fn a_store_goes_to_the_first_format_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 6);
    let opened = open(dir.path());
    wait(|done| opened.store.bury(4, mark(DeadReason::Rejected), done)).unwrap();
    wait(|done| opened.store.note_sending(5, &noted(9), done)).unwrap();
    wait(|done| opened.store.note_sending(6, &noted(9), done)).unwrap();
    wait(|done| opened.store.take_back_note(6, done)).unwrap();
    wait(|done| opened.store.remove(vec![1], done)).unwrap();
    drop(opened);
    assert_eq!(downgrade(&settings(dir.path())).unwrap().calls, 5);
    for value in contents(dir.path()).values() {
        assert_eq!(record::peel(value).unwrap().format, record::FIRST);
    }
    let opened = open(dir.path());
    assert_eq!(opened.findings, [Finding::Upgraded]);
    assert_eq!((seqs(&opened), opened.last_seq), (vec![2, 3, 4, 5, 6], 6));
    assert_eq!(opened.calls[2].marks().dead.as_deref(), Some(&mark(DeadReason::Rejected)));
    assert_eq!(opened.calls[3].marks().first_sent_at, Some(UnixMillis::new(9)));
    assert_eq!(opened.calls[4].marks().first_sent_at, None);
    for seq in 2..=6 {
        assert_eq!(opened.store.body(seq).unwrap(), content(seq));
    }
    drop(opened);
    serves(dir.path());
}

#[test]
fn a_store_of_the_first_format_that_is_behind_its_mark_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 6);
    downgrade(&settings(dir.path())).unwrap();
    let ahead = head::FirstHead { commit: 1_000, last_seq: 9 };
    fs::write(dir.path().join("store/mark"), super::mark::encode_first(ahead)).unwrap();
    let opened = open(dir.path());
    assert!(matches!(opened.findings[..], [Finding::SetAside { .. }]), "{:?}", opened.findings);
    assert_eq!((seqs(&opened), opened.last_seq), (vec![], 9));
    drop(opened);
    serves(dir.path());
}

#[test]
fn a_downgrade_that_was_cut_short_is_done_again() {
    // Between its two renames; and after them, with the mark still the old one.
    for after_both in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 6);
        let store = dir.path().join("store");
        let mark = fs::read(store.join("mark")).unwrap();
        if after_both {
            downgrade(&settings(dir.path())).unwrap();
            fs::write(store.join("mark"), mark).unwrap();
        } else {
            fs::rename(store.join("db"), store.join("db.discard")).unwrap();
        }
        downgrade(&settings(dir.path())).unwrap();
        let marked = super::mark::read(&store).unwrap();
        assert!(matches!(marked, super::mark::Reading::First(_)), "{after_both}: {marked:?}");
        let opened = open(dir.path());
        assert_eq!((seqs(&opened), opened.last_seq), ((1..=6).collect(), 6), "{after_both}");
        assert_eq!(opened.findings, [Finding::Upgraded], "{after_both}");
    }
}
