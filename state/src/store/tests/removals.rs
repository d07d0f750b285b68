//! Removals that wait at the committing thread together share commits: a replay that forgets many calls waits for few
//! syncs.

use super::*;

/// Sends `commands` while the committing thread is held, so that all of them wait together. Returns how many commits
/// they took.
pub(super) fn commits_of(store: &Store, commands: impl FnOnce(&Store, &mpsc::Sender<()>)) -> u64 {
    let (held, is_held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    store.put_fact(
        "holds",
        vec![],
        Box::new(move |_| {
            held.send(()).unwrap();
            released.recv_timeout(PATIENCE).unwrap();
        }),
    );
    is_held.recv_timeout(PATIENCE).unwrap();
    let before = store.status().commits;
    let (sender, receiver) = mpsc::channel();
    commands(store, &sender);
    drop(sender);
    release.send(()).unwrap();
    while receiver.recv_timeout(PATIENCE).is_ok() {}
    store.status().commits - before
}

fn remove_each(store: &Store, seqs: impl Iterator<Item = u64>, sender: &mpsc::Sender<()>) {
    for seq in seqs {
        let sender = sender.clone();
        let done: Done = Box::new(move |result| {
            result.unwrap();
            sender.send(()).unwrap();
        });
        store.remove(vec![seq], done);
    }
}

#[test]
fn removals_that_wait_together_are_one_commit_with_one_record_per_block() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let store = &opened.store;
    for seq in 1..=500 {
        store.append(call(seq, &body(seq, 200)), Box::new(|result| result.unwrap()));
    }
    append(store, 501, b"stays");
    let commits = commits_of(store, |store, sender| remove_each(store, 1..=500, sender));
    assert_eq!(commits, 1);
    append(store, 502, b"stays, too");
    drop(opened);
    let records = contents(dir.path()).keys().filter(|key| key[0] == keys::GONE).count();
    assert_eq!(records, 1);
    assert_eq!(seqs(&open(dir.path())), [501, 502]);
}

/// More than one commit may write before a power cut (`GROUP_BYTES`) is spread over several.
#[test]
fn very_many_removals_take_as_few_commits_as_are_safe() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let store = &opened.store;
    let calls = 3_000;
    for seq in 1..=calls {
        store.append(call(seq, b"small"), Box::new(|result| result.unwrap()));
    }
    append(store, calls + 1, b"stays");
    let commits = commits_of(store, |store, sender| remove_each(store, 1..=calls, sender));
    assert!((2..=5).contains(&commits), "{commits}");
    drop(opened);
    assert_eq!(seqs(&open(dir.path())), [calls + 1]);
}
