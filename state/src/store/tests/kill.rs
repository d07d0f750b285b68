//! `kill -9` in the middle of writing: everything acknowledged is there afterwards.

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use super::*;
use crate::store::check::export;

const CHILD: &str = "FUSEBOX_STORE_KILL_CHILD";

fn content(seq: u64) -> Vec<u8> {
    body(seq, if seq.is_multiple_of(7) { 30_000 } else { 150 })
}

/// The process that is killed: appends for ever, removes every fifth, prints what is acknowledged.
#[test]
fn child_that_appends_until_it_is_killed() {
    let Some(dir) = env::var_os(CHILD) else { return };
    let opened = open(Path::new(&dir));
    let printed = Arc::new(Mutex::new(std::io::stdout()));
    let tell = move |what: String, result: Result<(), StoreError>| {
        result.unwrap();
        let mut out = printed.lock();
        writeln!(out, "{what}").and_then(|()| out.flush()).unwrap();
    };
    for seq in opened.last_seq + 1.. {
        let told = tell.clone();
        let done: Done = Box::new(move |result| told(format!("kept {seq}"), result));
        opened.store.append(call(seq, &content(seq)), done);
        if seq % 5 == 0 {
            let (told, gone) = (tell.clone(), seq - 2);
            let done: Done = Box::new(move |result| told(format!("gone {gone}"), result));
            opened.store.remove(vec![gone], done);
            wait(|done| opened.store.note_sending(seq, &noted(1), done)).unwrap();
        }
    }
}

#[test]
fn every_acknowledged_call_survives_twenty_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = BTreeSet::new();
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..20 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "store::tests::kill::child_that_appends_until_it_is_killed"])
            .args(["--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: std::io::Result<String>| {
            // libtest prints around our lines, and the last one may be cut short.
            let line = line.unwrap_or_default();
            let mut words = line.rsplit("... ").next().unwrap_or_default().split(' ');
            let what = words.next().unwrap_or_default().to_owned();
            let Some(Ok(seq)) = words.next().map(str::parse::<u64>) else { return false };
            match what.as_str() {
                "kept" => kept.insert(seq),
                "gone" => kept.remove(&seq),
                _ => false,
            }
        };
        let mut left = random.usize(1..400);
        for line in lines.by_ref() {
            left -= usize::from(note(line));
            if left == 0 {
                break;
            }
        }
        child.kill().unwrap();
        for line in lines {
            note(line);
        }
        child.wait().unwrap();

        let mut exported = BTreeSet::new();
        export(&dir.path().join("store"), &mut |_, _| {}, &mut |it| {
            exported.insert(it.call.seq);
        })
        .unwrap();
        let opened = open(dir.path());
        assert!(!opened.findings.iter().any(Finding::is_damage), "{:?}", opened.findings);
        let found: BTreeSet<_> = opened.calls.iter().map(|call| call.seq).collect();
        let unforeseen: Vec<_> = found.difference(&exported).collect();
        assert!(unforeseen.is_empty(), "round {round}: an export leaves out {unforeseen:?}");
        // A removal that was cut short may be in the log and not be provable.
        let removed = exported.difference(&found).all(|seq| (seq + 2) % 5 == 0);
        assert!(removed, "round {round}: {exported:?} exported, {found:?} found");
        for seq in &kept {
            // The removal of one may have been committed and not yet reported.
            let removed_untold = (seq + 2) % 5 == 0;
            assert!(found.contains(seq) || removed_untold, "round {round}: {seq} is lost");
        }
        for seq in &found {
            assert_eq!(opened.store.body(*seq).unwrap(), content(*seq));
        }
        kept.retain(|seq| found.contains(seq));
    }
    assert!(kept.len() > 500, "the children got to work: {}", kept.len());
}
