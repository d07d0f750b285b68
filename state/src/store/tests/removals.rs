//! Removals that wait at the committing thread together share commits: a replay that forgets many calls waits for few
//! syncs. After a failed sync none of them passes another.

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

/// Of two writes to one key, the older must not be there without the newer: a crash would have it replayed alone.
#[test]
fn no_removal_passes_one_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (faults, log) = (Faults::armed(), dir.path().join("store/db/db"));
    let held = Arc::new(Mutex::new(None::<Store>));
    let synced = Arc::new(Mutex::new(Vec::<u8>::new()));
    let (refused, is_refused) = mpsc::channel();
    let (seen, sights) = mpsc::channel();
    let on_event = {
        let (held, synced, log) = (Arc::clone(&held), Arc::clone(&synced), log.clone());
        move |event: StoreEvent| {
            let Some(store) = held.lock().clone() else { return };
            // What a crash would leave once a command has ended.
            let look = || -> Done {
                let (store, seen) = (store.clone(), seen.clone());
                Box::new(move |result| {
                    let there = [1, 2].map(|seq| store.call(seq).is_ok());
                    seen.send((result, there)).unwrap();
                })
            };
            match event {
                StoreEvent::Refusing { .. } => {
                    let refused = refused.clone();
                    store.remove(vec![2], Box::new(move |result| refused.send(result).unwrap()));
                    // What the sync failed to keep is not on the disk.
                    fs::write(&log, &*synced.lock()).unwrap();
                }
                StoreEvent::Reopened { .. } => {
                    // Somebody who has not heard of it yet is quicker.
                    let (other, done) = (store.clone(), look());
                    thread::spawn(move || other.remove(vec![2], done)).join().unwrap();
                    store.append(call(3, b"ends with the first commit"), look());
                    store.append(call(4, &body(4, 200_000)), look());
                    store.remove(vec![1, 2], look());
                }
                _ => {}
            }
        }
    };
    let settings = StoreSettings {
        on_event: Arc::new(on_event),
        faults: faults.clone(),
        ..settings(dir.path())
    };
    let opened = Store::open(settings).unwrap();
    append(&opened.store, 1, b"the older");
    append(&opened.store, 2, b"the newer");
    *synced.lock() = fs::read(&log).unwrap();
    *held.lock() = Some(opened.store.clone());
    faults.fail_sync(1);
    let failed = wait(|done| opened.store.remove(vec![1], done));
    assert!(matches!(failed, Err(StoreError::SyncFailed { .. })), "{failed:?}");
    let refused = is_refused.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(refused, Err(StoreError::Failed { unknown: false, .. })), "{refused:?}");
    let seen: Vec<_> = (0..4).map(|_| sights.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(seen[0], (Ok(()), [true, true]), "{seen:?}");
    assert!(!seen.iter().any(|(_, there)| *there == [true, false]), "{seen:?}");
    assert_eq!(seen[3], (Ok(()), [false, false]), "{seen:?}");
    drop(held.lock().take());
    drop(opened);
    assert_eq!(seqs(&open(dir.path())), [3, 4]);
}
