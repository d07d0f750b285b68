//! Checks, exports and repairs, which change nothing.

use std::fs;

use super::*;
use crate::store::check::{
    CheckError, CheckReport, CheckVerdict, ExportedCall, ExportedState, check, export, repair,
};
use crate::store::raw::Raw;

/// Every file below a folder, with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.insert(path.clone(), vec![]);
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// A store with three pending calls, one of them sent and one large, a dead one and a removed one.
fn filled(dir: &Path) -> Store {
    let store = open(dir).store;
    for seq in 1..=5 {
        append(&store, seq, &content(seq));
    }
    wait(|done| store.note_sending(1, &noted(3), done)).unwrap();
    wait(|done| store.bury(4, mark(DeadReason::Rejected), done)).unwrap();
    wait(|done| store.remove(vec![5], done)).unwrap();
    store
}

fn content(seq: u64) -> Vec<u8> {
    body(seq, if seq.is_multiple_of(2) { 50_000 } else { 100 })
}

#[track_caller]
fn checked(dir: &Path) -> CheckReport {
    let before = files(&dir.join("store"));
    let mut last = (0, 0);
    let report = check(&dir.join("store"), &mut |done, total| last = (done, total));
    assert!(before == files(&dir.join("store")), "a check writes nothing");
    assert_eq!(last.0, last.1);
    report
}

#[test]
fn a_whole_store_is_counted_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).close();
    let report = checked(dir.path());
    assert_eq!((report.verdict, report.live), (CheckVerdict::Whole, false), "{report:?}");
    let counts = report.counts.unwrap();
    assert_eq!((counts.pending, counts.sending, counts.dead, counts.bad), (3, 1, 1, 0));
    assert_eq!(counts.chunks, 26);
    assert!(report.raw.calls >= 4 && report.raw.chunks >= 26);
    assert_eq!(report.commit, report.marked_commit);
}

#[test]
fn a_store_in_use_is_checked_beside_its_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    let report = checked(dir.path());
    assert_eq!((report.verdict, report.live), (CheckVerdict::Whole, true), "{report:?}");
    append(&store, 6, b"the daemon goes on");
}

#[test]
fn an_empty_store_and_none_at_all_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = check(&dir.path().join("none"), &mut |_, _| {});
    assert_eq!(nothing.verdict, CheckVerdict::Empty);
    open(dir.path()).store.close();
    assert_eq!(checked(dir.path()).verdict, CheckVerdict::Empty);
}

/// Something that happens to a closed store.
type Damage = (&'static str, fn(&Path));

#[test]
fn damage_of_every_kind_is_found() {
    let log = "store/db/db";
    let kinds: [Damage; 6] = [
        ("a truncated log", |dir| {
            let bytes = fs::read(dir.join("store/db/db")).unwrap();
            fs::write(dir.join("store/db/db"), &bytes[..bytes.len() / 4]).unwrap();
        }),
        ("an empty log", |dir| fs::write(dir.join("store/db/db"), b"").unwrap()),
        ("a missing log", |dir| fs::remove_dir_all(dir.join("store/db")).unwrap()),
        ("a blob file", |dir| fs::write(dir.join("store/db/blobs/1"), b"x").unwrap()),
        ("a missing mark", |dir| fs::remove_file(dir.join("store/mark")).unwrap()),
        ("a damaged record", |dir| {
            let value = contents(dir).remove(&keys::key(b'q', 1)[..]).unwrap();
            let mut bytes = fs::read(dir.join("store/db/db")).unwrap();
            let places: Vec<_> = memchr::memmem::find_iter(&bytes, &value).collect();
            for at in places {
                bytes[at + 30] ^= 4;
            }
            fs::write(dir.join("store/db/db"), bytes).unwrap();
        }),
    ];
    for (name, damage) in kinds {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).close();
        assert!(dir.path().join(log).is_file());
        damage(dir.path());
        let report = checked(dir.path());
        assert_eq!(report.verdict, CheckVerdict::Damaged, "{name}: {report:?}");
    }
}

#[test]
fn a_newer_format_is_told_and_not_called_damage() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).close();
    tamper(dir.path(), |db| {
        db.insert(keys::key(b'q', 9), record::seal_as_newer(b"future")).unwrap();
    });
    assert_eq!(checked(dir.path()).verdict, CheckVerdict::NewerFormat);
}

#[test]
fn an_export_holds_every_waiting_call_with_its_body() {
    let dir = tempfile::tempdir().unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    let kept: Vec<_> = (1..=4).map(|seq| store.call(seq).unwrap()).collect();
    store.close();
    let before = files(&dir.path().join("store"));
    let mut exported = Vec::new();
    let summary =
        export(&dir.path().join("store"), &mut |_, _| {}, &mut |call| exported.push(call)).unwrap();
    assert!(before == files(&dir.path().join("store")));
    assert_eq!((summary.calls, summary.bad), (4, 0));
    let states = [
        ExportedState::Sending,
        ExportedState::Pending,
        ExportedState::Pending,
        ExportedState::Dead,
    ];
    for ((exported, kept), state) in exported.iter().zip(kept).zip(states) {
        let body = content(kept.seq).into();
        assert!(*exported == ExportedCall { call: kept, body, state });
    }
    let none = export(tmp.path(), &mut |_, _| {}, &mut |_| {});
    assert!(matches!(none, Err(CheckError::NoStore(_))));
}

#[test]
fn what_is_left_to_do_of_a_call_is_exported_behind_what_comes_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).store;
    for seq in 1..=7 {
        append(&store, seq, b"a write");
    }
    // 1, 4 and 7 are in one lane, and 2 and 5 in another.
    for (seq, due) in [(1, 5), (2, 100)] {
        let due = Traits::residue(UnixMillis::new(1_790_000_000_000 + due));
        wait(|done| store.replace(&call_with(seq, due, b"what is left"), done)).unwrap();
    }
    store.close();
    let mut exported = Vec::new();
    export(&dir.path().join("store"), &mut |_, _| {}, &mut |it| exported.push(it.call.seq))
        .unwrap();
    assert_eq!(exported, [3, 4, 5, 6, 1, 7, 2]);
}

#[test]
fn a_repair_finds_the_calls_of_a_store_that_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).close();
    let log = dir.path().join("store/db/db");
    // What sled needs is destroyed: the header of the first segment.
    let mut bytes = fs::read(&log).unwrap();
    bytes[..40].fill(0xEE);
    fs::write(&log, bytes).unwrap();
    let mut found = BTreeMap::new();
    let summary = repair(&dir.path().join("store/db"), &mut |_, _| {}, &mut |call| {
        assert_eq!(call.state, ExportedState::Salvaged);
        assert!(found.insert(call.call.seq, call).is_none(), "each once");
    })
    .unwrap();
    assert!(summary.calls >= 4, "{summary:?}");
    for seq in 1..=4 {
        assert!(found[&seq].body == content(seq), "sequence {seq}");
    }
    assert_eq!(found[&4].call.dead.as_deref(), Some(&mark(DeadReason::Rejected)));
}

#[test]
fn values_on_the_border_of_two_windows_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).store;
    let large = body(1, 5 << 20);
    append(&store, 1, &large);
    store.close();
    let mut found = Vec::new();
    repair(&dir.path().join("store/db"), &mut |_, _| {}, &mut |call| found.push(call)).unwrap();
    assert!(matches!(&found[..], [only] if only.body == large));
}

#[test]
fn a_commit_that_was_cut_short_is_counted_as_the_next_start_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).close();
    let (log, mark) = (dir.path().join("store/db/db"), dir.path().join("store/mark"));
    let marked = fs::read(&mark).unwrap();
    let store = open(dir.path()).store;
    for seq in 6..=8 {
        append(&store, seq, b"small");
    }
    let mut written = fs::read(&log).unwrap();
    store.close();
    // As a crash leaves it that comes after the last call was written and before its head was.
    let last = *Raw::read(log.parent().unwrap(), &mut |_, _| {})
        .unwrap()
        .heads
        .keys()
        .next_back()
        .unwrap();
    let is_head = |at: &usize| {
        let value = record::peel(&written[*at..]);
        value.is_ok_and(|it| it.commit == last && it.kind == record::Kind::Head)
    };
    let head = memchr::memmem::find_iter(&written, &record::MAGIC).find(is_head).unwrap();
    written[head..].fill(0);
    fs::write(&log, written).unwrap();
    fs::write(&mark, marked).unwrap();

    let report = checked(dir.path());
    assert_eq!(report.verdict, CheckVerdict::Whole, "{report:?}");
    assert!(report.commit < Some(last), "its head is gone: {report:?}");
    let mut exported = vec![];
    export(&dir.path().join("store"), &mut |_, _| {}, &mut |it| exported.push(it.call.seq))
        .unwrap();
    let opened = open(dir.path());
    assert_eq!(seqs(&opened), exported);
    assert_eq!(exported, [1, 2, 3, 4, 6, 7, 8]);
    assert_eq!(report.counts.unwrap().pending, 6);
}
