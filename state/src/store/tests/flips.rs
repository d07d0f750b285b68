//! Single flipped bits, truncations, and files that are deleted, emptied, overwritten or replaced: nothing is lost in
//! silence, nearly everything heals by itself, and a check says what the next start will do.

use std::{env, fs, os::unix::fs::FileExt};

use super::*;
use crate::store::check::{CheckVerdict, check, repair};

/// Flips for each seed; more by `FUSEBOX_TEST_FLIPS`.
fn flips() -> u64 {
    env::var("FUSEBOX_TEST_FLIPS").map_or(25, |count| count.parse().unwrap())
}

fn content(seq: u64) -> Vec<u8> {
    body(seq, if seq.is_multiple_of(50) { 20_000 } else { 150 })
}

/// A killed store with some hundred calls, some of them sent, dead or removed again; returns what waits.
fn template(dir: &Path) -> BTreeMap<u64, (bool, bool)> {
    let opened = open(dir);
    let store = &opened.store;
    let mut live = BTreeMap::new();
    for seq in 1..=600 {
        append(store, seq, &content(seq));
        live.insert(seq, (false, false));
        if seq % 40 == 0 {
            wait(|done| store.note_sending(seq, &noted(seq), done)).unwrap();
            live.insert(seq, (true, false));
        }
        if seq % 70 == 0 {
            wait(|done| store.bury(seq, mark(DeadReason::Rejected), done)).unwrap();
            live.entry(seq).and_modify(|it| it.1 = true);
        }
        if seq % 3 == 0 {
            wait(|done| store.remove(vec![seq / 3], done)).unwrap();
            live.remove(&(seq / 3));
        }
    }
    wait(|done| store.put_fact("breaker", b"open".to_vec(), done)).unwrap();
    live
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What became of a damaged store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Everything is there.
    Whole,
    /// All but what was reported as lost is there, ready to be replayed.
    Healed,
    /// Reported, set aside, and available to a repair.
    SetAside,
}

/// Opens a damaged copy, and holds that nothing is missing in silence.
fn judge(dir: &Path, live: &BTreeMap<u64, (bool, bool)>, what: &str) -> End {
    let report = check(&dir.join("store"), &mut |_, _| {});
    let opened = Store::open(settings(dir)).unwrap_or_else(|error| panic!("{what}: {error}"));
    let damage = opened.findings.iter().any(Finding::is_damage);
    assert_eq!(
        report.verdict == CheckVerdict::Damaged,
        damage,
        "{what}: {report:?} and then {:?}",
        opened.findings
    );
    let healed = |findings: &[Finding]| {
        findings.iter().any(|finding| matches!(finding, Finding::Healed { .. }))
    };
    if healed(&report.findings) {
        assert!(healed(&opened.findings), "{what}: {report:?} and then {:?}", opened.findings);
    }
    assert_eq!(opened.last_seq, 600, "{what}: no sequence is given out twice");
    for call in &opened.calls {
        assert_eq!(opened.store.body(call.seq).unwrap(), content(call.seq), "{what}");
        let (sent, dead) =
            live.get(&call.seq).unwrap_or_else(|| panic!("{what}: {call:?} is back"));
        assert!(call.marks().dead.is_some() == *dead, "{what}: {call:?}");
        assert!(call.marks().first_sent_at.is_some() == *sent, "{what}: {call:?}");
    }
    let found = seqs(&opened);
    let missing: Vec<u64> = live.keys().copied().filter(|seq| !found.contains(seq)).collect();
    let aside = opened.findings.iter().find_map(|finding| match finding {
        Finding::SetAside { path, .. } => Some(path.clone()),
        _ => None,
    });
    let told = opened.findings.iter().find_map(|finding| match finding {
        Finding::Lost { calls, .. } => Some(calls.clone()),
        _ => None,
    });
    drop(opened);
    let again = open(dir);
    assert!(!again.findings.iter().any(Finding::is_damage), "{what}: {:?}", again.findings);
    assert_eq!(seqs(&again), found, "{what}: and again");
    match (aside, told) {
        (None, None) => {
            assert!(missing.is_empty(), "{what}: lost in silence: {missing:?}");
            End::Whole
        }
        (None, Some(told)) => {
            assert_eq!(missing, told, "{what}");
            End::Healed
        }
        (Some(aside), _) => {
            let mut saved = std::collections::BTreeSet::new();
            if aside.join("db").is_file() {
                repair(&aside, &mut |_, _| {}, &mut |call| {
                    saved.insert(call.call.seq);
                })
                .unwrap();
            }
            let lost = live.keys().filter(|seq| !saved.contains(seq)).count();
            assert!(lost <= 1 || !what.contains("bit"), "{what}: {lost} are lost");
            End::SetAside
        }
    }
}

#[test]
fn a_flipped_bit_costs_at_most_the_call_under_it_and_is_told() {
    let base = tempfile::tempdir().unwrap();
    let live = template(base.path());
    let mut ends = BTreeMap::new();
    for seed in 1..=3 {
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..flips() {
            let dir = tempfile::tempdir().unwrap();
            copy(base.path(), dir.path());
            let path = dir.path().join("store/db/db");
            let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let (at, bit) = (random.usize(..used), random.u8(..8));
            file.write_all_at(&[bytes[at] ^ 1 << bit], at as u64).unwrap();
            drop(file);
            let end = judge(dir.path(), &live, &format!("seed {seed}, bit {bit} of byte {at}"));
            *ends.entry(end).or_insert(0) += 1;
        }
    }
    println!("{ends:?}");
    let aside = ends.get(&End::SetAside).copied().unwrap_or_default();
    assert!(aside * 20 <= 3 * flips(), "95 of 100 heal by themselves: {ends:?}");
}

#[test]
fn a_log_cut_anywhere_is_told_and_to_be_had() {
    let base = tempfile::tempdir().unwrap();
    let live = template(base.path());
    let cuts = if env::var("FUSEBOX_TEST_FLIPS").is_ok() { 100 } else { 10 };
    let length = fs::metadata(base.path().join("store/db/db")).unwrap().len();
    let mut ends = BTreeMap::new();
    for cut in 0..cuts {
        let dir = tempfile::tempdir().unwrap();
        copy(base.path(), dir.path());
        let file = fs::OpenOptions::new().write(true).open(dir.path().join("store/db/db")).unwrap();
        file.set_len(length * cut / cuts).unwrap();
        drop(file);
        *ends.entry(judge(dir.path(), &live, &format!("cut {cut}"))).or_insert(0) += 1;
    }
    println!("{ends:?}");
}

/// What becomes of a file that is gone.
type Change = (&'static str, fn(&Path));

#[test]
fn whatever_becomes_of_a_file_ends_in_a_sentence() {
    let base = tempfile::tempdir().unwrap();
    let live = template(base.path());
    let names = ["db", "db/db", "db/conf", "db/blobs", "mark", "lock", "ballast"];
    let changes: [Change; 4] = [
        ("deleted", |_| {}),
        ("emptied", |path| fs::write(path, b"").unwrap()),
        ("garbage", |path| fs::write(path, body(3, 5_000)).unwrap()),
        ("a folder", |path| fs::create_dir(path).unwrap()),
    ];
    for name in names {
        for (change, make) in &changes {
            let dir = tempfile::tempdir().unwrap();
            copy(base.path(), dir.path());
            let path = dir.path().join("store").join(name);
            space::remove_folder(&path).unwrap();
            make(&path);
            let what = format!("{name} {change}");
            if name == "lock" && *change == "a folder" {
                let error = Store::open(settings(dir.path())).unwrap_err().to_string();
                assert!(error.contains("lock"), "{error}");
                continue;
            }
            println!("{what}: {:?}", judge(dir.path(), &live, &what));
        }
    }
}
