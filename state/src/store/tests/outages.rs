//! Disks that fill up or fail while the store serves.

use super::*;

#[track_caller]
fn next(events: &mpsc::Receiver<StoreEvent>) -> StoreEvent {
    events.recv_timeout(PATIENCE).expect("no event came")
}

fn held(calls: &[FoundCall]) -> Vec<u64> {
    calls.iter().map(|call| call.seq).collect()
}

#[test]
fn a_failed_sync_ends_in_a_rebuild_with_everything_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, faults, events) = open_with_faults(dir.path());
    let store = &opened.store;
    for seq in 1..=30 {
        append(store, seq, &body(seq, if seq % 10 == 0 { 30_000 } else { 200 }));
    }
    wait(|done| store.bury(4, mark(DeadReason::Rejected), done)).unwrap();
    wait(|done| store.note_sending(5, &noted(9), done)).unwrap();
    wait(|done| store.put_fact("breaker", b"open".to_vec(), done)).unwrap();
    wait(|done| store.remove(vec![1], done)).unwrap();
    faults.fail_sync(1);
    let failed = wait(|done| store.append(call(31, b"unknown"), done)).unwrap_err();
    assert!(matches!(failed, StoreError::SyncFailed { .. }) && failed.outcome_unknown());

    assert!(matches!(next(&events), StoreEvent::Refusing { .. }));
    assert!(matches!(next(&events), StoreEvent::Rebuilt { lost, .. } if lost.is_empty()));
    let StoreEvent::Reopened { calls } = next(&events) else { panic!() };
    assert_eq!(held(&calls), (2..=31).collect::<Vec<_>>(), "the truth about the failed one, too");
    append(store, 32, b"served again");
    assert_eq!(store.status().refusing, None);
    assert_eq!(store.body(10).unwrap(), body(10, 30_000));
    let kept = std::fs::read_dir(dir.path().join("store"))
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with("db."));
    assert!(!kept, "nothing was lost");
    drop(opened);

    let again = open(dir.path());
    assert_eq!((seqs(&again), again.findings.len()), ((2..=32).collect(), 0));
    assert_eq!(again.calls[2].marks().dead.as_deref(), Some(&mark(DeadReason::Rejected)));
    assert_eq!(again.calls[3].marks().first_sent_at, Some(UnixMillis::new(9)));
    assert_eq!(again.store.fact("breaker").unwrap(), b"open");
}

#[test]
fn nothing_is_acknowledged_while_syncs_fail() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, faults, events) = open_with_faults(dir.path());
    let store = &opened.store;
    append(store, 1, b"one");
    // The group, the rebuild's own sync and the one that seals the reopened store.
    for nth in 1..=6 {
        faults.fail_sync(nth);
        let mut seq = nth * 100;
        while faults.is_armed() {
            seq += 1;
            drop(wait(|done| store.append(call(seq, b"perhaps"), done)));
        }
        while store.status().refusing.is_some() {
            events.recv_timeout(PATIENCE).unwrap();
        }
        append(store, nth * 100 + 99, b"served again");
        assert_eq!(store.body(1).unwrap(), &b"one"[..]);
    }
}

#[test]
fn an_error_that_says_nothing_of_what_was_written_makes_no_store_suspect() {
    use rustix::io::Errno;
    let dir = tempfile::tempdir().unwrap();
    let refusals = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::ACCESS,
        Errno::PERM,
        Errno::ROFS,
        Errno::NOSPC,
        Errno::DQUOT,
    ];
    let is_suspect_after = |errno: Errno, is_kept: bool| {
        let sync = || if is_kept { Ok(()) } else { Err(std::io::Error::from(Errno::IO)) };
        rebuild::suspect_after(dir.path(), &errno.into(), sync);
        let is_suspect = rebuild::is_suspect(dir.path());
        rebuild::trust(dir.path()).unwrap();
        is_suspect
    };
    for errno in refusals {
        let found = [true, false].map(|is_kept| is_suspect_after(errno, is_kept));
        assert_eq!(found, [false, true], "{errno}");
    }
    assert!(is_suspect_after(Errno::IO, true));
}

/// A disk may say that it is full when it writes what it had taken long before.
#[test]
fn a_full_disk_that_has_not_kept_what_it_had_taken_ends_in_a_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, faults, events) = open_with_faults(dir.path());
    append(&opened.store, 1, b"one");
    faults.fail_flush(1);
    faults.fail_sync(1);
    let failed = wait(|done| opened.store.append(call(2, b"unknown"), done)).unwrap_err();
    assert!(matches!(failed, StoreError::SyncFailed { .. }), "{failed:?}");
    assert!(matches!(next(&events), StoreEvent::Refusing { .. }));
    assert!(matches!(next(&events), StoreEvent::Rebuilt { lost, .. } if lost.is_empty()));
    assert!(matches!(next(&events), StoreEvent::Reopened { .. }));
    append(&opened.store, 3, b"served again");
}

#[test]
fn a_disk_that_is_full_while_a_store_opens_is_asked_what_it_has_kept() {
    use std::os::unix::fs::MetadataExt;

    for is_lost in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path());
        append(&opened.store, 1, b"one");
        append(&opened.store, 2, b"two");
        drop(opened);
        let inode = || fs::metadata(dir.path().join("store/db/db")).unwrap().ino();
        let (before, faults) = (inode(), Faults::armed());
        faults.fail_flush(1);
        faults.fail_sync(u64::from(is_lost));
        let settings = StoreSettings { faults: faults.clone(), ..settings(dir.path()) };
        let refused = Store::open(settings.clone());
        assert!(matches!(refused, Err(OpenError::DiskFull { .. })), "{refused:?}");
        assert!(!faults.is_armed());
        assert_eq!(rebuild::is_suspect(&settings.dir), is_lost);
        let opened = Store::open(settings).unwrap();
        let told = if is_lost { vec![Finding::RebuildFinished] } else { vec![] };
        assert_eq!((seqs(&opened), &opened.findings), (vec![1, 2], &told));
        assert_eq!(inode() != before, is_lost, "what may be lost is in new files");
    }
}

#[test]
fn a_sync_that_fails_while_a_store_opens_is_as_final_as_any() {
    use std::os::unix::fs::MetadataExt;

    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    append(&opened.store, 1, b"one");
    append(&opened.store, 2, b"two");
    drop(opened);
    let inode = || std::fs::metadata(dir.path().join("store/db/db")).unwrap().ino();
    let (before, faults) = (inode(), Faults::armed());
    faults.fail_sync(1);
    let settings = StoreSettings { faults, ..settings(dir.path()) };
    let refused = Store::open(settings.clone());
    assert!(matches!(refused, Err(OpenError::Io { .. })), "{refused:?}");
    let opened = Store::open(settings).unwrap();
    assert_eq!(opened.findings, [Finding::RebuildFinished]);
    assert_eq!(seqs(&opened), [1, 2]);
    assert_ne!(inode(), before, "what the kernel took for written is in new files");
    drop(opened);
    assert_eq!(open(dir.path()).findings, []);
}

#[test]
fn whatever_panics_on_the_committing_thread_ends_in_an_open() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, events) = mpsc::channel();
    let (sender, panics) = (Mutex::new(sender), Arc::new(AtomicU64::new(0)));
    let armed = Arc::clone(&panics);
    let settings = StoreSettings {
        on_event: Arc::new(move |event| drop(sender.lock().send(event))),
        unix_now: Arc::new(move || {
            assert_ne!(armed.swap(0, Relaxed), 1, "a clock that panics");
            UnixMillis::new(1_790_000_000_000)
        }),
        ..settings(dir.path())
    };
    let opened = Store::open(settings).unwrap();
    let store = &opened.store;
    append(store, 1, b"one");
    panics.store(1, Relaxed);
    // It is refused if it panics before this one is committed.
    let second = wait(|done| store.append(call(2, b"whenever it panics"), done));
    assert!(matches!(next(&events), StoreEvent::Refusing { .. }));
    assert!(matches!(next(&events), StoreEvent::Rebuilt { lost, .. } if lost.is_empty()));
    let StoreEvent::Reopened { calls } = next(&events) else { panic!() };
    assert!(matches!(held(&calls)[..], [1] | [1, 2]), "{calls:?}");
    append(store, 3, b"served again");
    drop(opened);
    let seqs = seqs(&open(dir.path()));
    match second {
        Ok(()) => assert_eq!(seqs, [1, 2, 3]),
        Err(error) if error.outcome_unknown() => assert!(matches!(seqs[..], [1, 3] | [1, 2, 3])),
        Err(_) => assert_eq!(seqs, [1, 3]),
    }
}

#[test]
fn a_process_that_ends_between_a_failed_sync_and_the_rebuild_leaves_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, faults, events) = open_with_faults(dir.path());
    append(&opened.store, 1, b"one");
    faults.fake_free_space(Some(1_000));
    faults.fail_sync(1);
    wait(|done| opened.store.put_fact("x", vec![], done)).unwrap_err();
    assert!(matches!(next(&events), StoreEvent::Refusing { .. }));
    assert!(opened.store.body(1).is_err(), "a handle that failed is no evidence");
    drop(opened);
    let again = open(dir.path());
    assert_eq!((seqs(&again), &again.findings[..]), (vec![1], &[Finding::RebuildFinished][..]));
    drop(again);
    assert_eq!(open(dir.path()).findings, []);
}

#[test]
fn a_full_disk_refuses_then_reopens_and_serves() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, faults, events) = open_with_faults(dir.path());
    let store = &opened.store;
    append(store, 1, &body(1, 50_000));
    faults.fake_free_space(Some(1_000_000));
    faults.fail_flush(1);
    let failed = wait(|done| store.append(call(2, b"unknown"), done)).unwrap_err();
    assert!(matches!(failed, StoreError::Failed { unknown: true, .. }), "{failed:?}");
    assert!(matches!(next(&events), StoreEvent::Refusing { .. }));
    assert!(!dir.path().join("store/ballast").try_exists().unwrap(), "the ballast is given up");

    let refused = wait(|done| store.append(call(3, b"refused"), done)).unwrap_err();
    assert!(matches!(refused, StoreError::Failed { unknown: false, .. }));
    assert!(!refused.outcome_unknown());
    assert!(wait(|done| store.remove(vec![1], done)).is_err());
    assert!(matches!(store.call(1), Err(StoreError::Failed { .. })));
    assert!(store.status().refusing.unwrap().contains("full"));
    store.add_history(b"kept until there is room".to_vec());

    faults.fake_free_space(None);
    let StoreEvent::Reopened { calls } = next(&events) else { panic!() };
    assert_eq!(calls[0].seq, 1);
    append(store, 4, b"served again");
    assert_eq!(store.status().refusing, None);
    assert_eq!(store.body(1).unwrap(), body(1, 50_000));
    assert_eq!(store.history(9), [b"kept until there is room"]);
    assert!(dir.path().join("store/ballast").try_exists().unwrap());
    drop(opened);
    let again = open(dir.path());
    assert!(seqs(&again).contains(&4) && !seqs(&again).contains(&3));
    assert_eq!(again.findings, []);
}

#[test]
fn what_was_acknowledged_among_failing_syncs_and_many_callers_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, faults, events) = open_with_faults(dir.path());
    let store = &opened.store;
    let next = AtomicU64::new(1);
    let acknowledged = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let (acknowledged, next, faults) = (&acknowledged, &next, &faults);
            scope.spawn(move || {
                for round in 0..60 {
                    if caller == 0 && round % 10 == 5 {
                        faults.fail_sync(2);
                    }
                    let seq = next.fetch_add(1, Relaxed);
                    let content = body(seq, if seq.is_multiple_of(9) { 20_000 } else { 200 });
                    if wait(|done| store.append(call(seq, &content), done)).is_ok() {
                        match store.body(seq) {
                            Ok(read) => assert_eq!(read, content, "reads see what is stored"),
                            Err(StoreError::Failed { .. }) => {}
                            Err(error) => panic!("{seq}: {error}"),
                        }
                        acknowledged.lock().push(seq);
                    }
                }
            });
        }
    });
    let rebuilt = events.try_iter().filter(|it| matches!(it, StoreEvent::Rebuilt { .. })).count();
    assert!(rebuilt >= 3, "{rebuilt}");
    drop(opened);
    let again = open(dir.path());
    assert_eq!(again.findings, []);
    let acknowledged = acknowledged.into_inner();
    assert!(acknowledged.len() > 300, "{}", acknowledged.len());
    for seq in acknowledged {
        assert!(again.store.call(seq).is_ok(), "{seq} is lost");
    }
}

#[test]
fn an_append_over_several_groups_is_all_or_nothing_when_one_fails() {
    for nth in 1..=5 {
        let dir = tempfile::tempdir().unwrap();
        let (opened, faults, events) = open_with_faults(dir.path());
        faults.fail_sync(nth);
        let large = body(nth, 500_000);
        let failed = wait(|done| opened.store.append(call(1, &large), done)).unwrap_err();
        while !matches!(next(&events), StoreEvent::Reopened { .. }) {}
        let kept = opened.store.body(1);
        if failed.outcome_unknown() {
            assert!(matches!(&kept, Ok(body) if *body == large) || kept.is_err());
        } else {
            assert_eq!(kept, Err(StoreError::NotFound { seq: 1 }), "said not to be stored");
        }
        append(&opened.store, 2, &large);
        drop(opened);
        assert_eq!(open(dir.path()).findings, []);
    }
}

#[test]
fn below_the_floor_appends_are_refused_and_removals_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::armed();
    let (sender, events) = mpsc::channel();
    let sender = Mutex::new(sender);
    let settings = StoreSettings {
        disk_floor: 64 << 20,
        faults: faults.clone(),
        on_event: Arc::new(move |event| drop(sender.lock().send(event))),
        ..settings(dir.path())
    };
    let opened = Store::open(settings).unwrap();
    let store = &opened.store;
    append(store, 1, b"one");
    append(store, 2, b"two");
    faults.fake_free_space(Some(10 << 20));
    let refused = wait(|done| store.append(call(3, b"three"), done));
    assert_eq!(refused, Err(StoreError::DiskFloor { free: 10 << 20, floor: 64 << 20 }));
    assert!(matches!(next(&events), StoreEvent::Refusing { .. }));
    wait(|done| store.note_sending(1, &noted(1), done)).unwrap();
    wait(|done| store.bury(1, mark(DeadReason::Expired), done)).unwrap();
    wait(|done| store.remove(vec![2], done)).unwrap();
    let refused = wait(|done| store.requeue(1, 4, false, done));
    assert!(matches!(refused, Err(StoreError::DiskFloor { .. })), "a requeue is an append");
    faults.fake_free_space(Some(1 << 30));
    assert_eq!(next(&events), StoreEvent::Accepting);
    append(store, 5, b"five");
    drop(opened);
    assert_eq!(seqs(&open(dir.path())), [1, 5]);
}

#[test]
fn a_full_disk_is_not_opened_and_gives_up_the_ballast_first() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let faults = Faults::armed();
    faults.fake_free_space(Some(100_000));
    let settings = StoreSettings { faults: faults.clone(), ..settings(dir.path()) };
    let refused = Store::open(settings.clone());
    assert!(matches!(refused, Err(OpenError::DiskFull { free: 100_000, .. })), "{refused:?}");
    assert!(!dir.path().join("store/ballast").try_exists().unwrap());
    faults.fake_free_space(None);
    Store::open(settings).unwrap();
}

#[test]
fn compacting_gives_back_what_is_dead_and_keeps_what_lives() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, _, events) = open_with_faults(dir.path());
    let store = &opened.store;
    for seq in 1..=60 {
        append(store, seq, &body(seq, 100_000));
    }
    wait(|done| store.remove((1..=58).collect(), done)).unwrap();
    let before = store.status().disk_bytes;
    wait(|done| store.compact(done)).unwrap();
    assert!(matches!(next(&events), StoreEvent::Rebuilt { lost, .. } if lost.is_empty()));
    assert!(store.status().disk_bytes < before / 2, "{before} to {}", store.status().disk_bytes);
    append(store, 61, b"served on");
    assert_eq!(store.body(59).unwrap(), body(59, 100_000));
    drop(opened);
    let again = open(dir.path());
    assert_eq!((seqs(&again), again.findings.len()), (vec![59, 60, 61], 0));
}

/// Callers who are refused never leave the store idle.
#[test]
fn a_log_that_keeps_the_disk_full_is_compacted_under_callers_who_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (faults, clock) = (Faults::armed(), AtomicU64::new(1_790_000_000_000));
    let (sender, events) = mpsc::channel();
    let settings = StoreSettings {
        disk_floor: 64 << 20,
        unix_now: Arc::new(move || UnixMillis::new(clock.fetch_add(20, Relaxed))),
        on_event: Arc::new(move |event| drop(sender.send(event))),
        faults: faults.clone(),
        ..settings(dir.path())
    };
    let opened = Store::open(settings).unwrap();
    let store = &opened.store;
    for seq in 1..=80 {
        append(store, seq, &body(seq, 100_000));
    }
    faults.fake_free_space(Some(32 << 20));
    wait(|done| store.remove((1..=80).collect(), done)).unwrap();
    let is_compacted = (0..10_000).any(|_| {
        let refused = wait(|done| store.append(call(81, b"more"), done));
        assert!(matches!(refused, Err(StoreError::DiskFloor { .. })), "{refused:?}");
        let event = events.recv_timeout(Duration::from_millis(1));
        matches!(event, Ok(StoreEvent::Rebuilt { .. }))
    });
    assert!(is_compacted, "it is not compacted");
    assert!(store.status().disk_bytes < 2 << 20, "{}", store.status().disk_bytes);
}

#[test]
fn a_copy_that_the_disk_lies_about_does_not_take_the_stores_place() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, faults, _events) = open_with_faults(dir.path());
    let store = &opened.store;
    for seq in 1..=40 {
        append(store, seq, &body(seq, 1_000));
    }
    faults.lie_about_a_copy(1);
    let refused = wait(|done| store.compact(done)).unwrap_err();
    assert!(!refused.outcome_unknown(), "{refused}");
    append(store, 41, b"served on");
    wait(|done| store.compact(done)).unwrap();
    // The rebuild after a failed sync reads its copy back as well, and is tried again.
    faults.lie_about_a_copy(1);
    faults.fail_sync(1);
    wait(|done| store.append(call(42, b"unknown"), done)).unwrap_err();
    while store.status().refusing.is_some() {
        std::thread::yield_now();
    }
    assert!(!faults.is_armed());
    append(store, 43, b"served again");
    drop(opened);
    let again = open(dir.path());
    assert_eq!((seqs(&again), again.findings.len()), ((1..=43).collect(), 0));
    assert_eq!(again.store.body(1).unwrap(), body(1, 1_000));
}

/// The copy has the name by which the next start knows it, and the folder's sync fails.
#[test]
fn a_copy_that_was_not_swapped_in_never_replaces_a_store_that_went_on() {
    // With one fault the name is taken back. With two it is not, so that an open swaps the copy in after all.
    for faulty in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let (opened, faults, _events) = open_with_faults(dir.path());
        let store = &opened.store;
        for seq in 1..=40 {
            append(store, seq, &body(seq, 1_000));
        }
        faults.fail_promises(faulty);
        let refused = wait(|done| store.compact(done)).unwrap_err();
        assert!(!refused.outcome_unknown() && !faults.is_armed(), "{faulty}: {refused}");
        while store.status().refusing.is_some() {
            std::thread::yield_now();
        }
        assert!(!dir.path().join("store/db.ready").try_exists().unwrap(), "{faulty}");
        append(store, 41, b"served on");
        drop(opened);
        let again = open(dir.path());
        assert_eq!((seqs(&again), again.findings.len()), ((1..=41).collect(), 0), "{faulty}");
        assert_eq!(again.store.body(1).unwrap(), body(1, 1_000));
    }
}

#[test]
fn an_open_serves_from_a_grown_log_only_if_no_copy_of_it_may_replace_it() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    for seq in 1..=100 {
        append(&opened.store, seq, &body(seq, 60_000));
    }
    wait(|done| opened.store.remove((1..=99).collect(), done)).unwrap();
    drop(opened);
    let (ready, faults) = (dir.path().join("store/db.ready"), Faults::armed());
    // An eighth of it is two megabytes.
    faults.fake_free_space(Some(16 << 20));
    let settings = StoreSettings { faults: faults.clone(), ..settings(dir.path()) };
    faults.fail_promises(1);
    let opened = Store::open(settings.clone()).unwrap();
    assert_eq!((seqs(&opened), opened.findings.len()), (vec![100], 0));
    assert!(!faults.is_armed() && !ready.try_exists().unwrap());
    // While it serves it is not to be compacted.
    faults.fake_free_space(None);
    append(&opened.store, 101, b"served");
    drop(opened);
    faults.fake_free_space(Some(16 << 20));
    faults.fail_promises(2);
    let refused = Store::open(settings.clone());
    assert!(matches!(refused, Err(OpenError::Io { .. })), "{refused:?}");
    assert!(!faults.is_armed() && ready.try_exists().unwrap());
    let opened = Store::open(settings).unwrap();
    assert_eq!(opened.findings, [Finding::RebuildFinished]);
    assert_eq!(seqs(&opened), [100, 101]);
    assert!(!ready.try_exists().unwrap());
}

#[test]
fn a_grown_log_is_compacted_by_an_open() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    for seq in 1..=18 {
        opened.store.append(call(seq, &body(seq, 4 << 20)), Box::new(drop));
    }
    wait(|done| opened.store.remove((1..=17).collect(), done)).unwrap();
    let before = opened.store.status().disk_bytes;
    drop(opened);
    assert!(before > 64 << 20);
    let faults = Faults::armed();
    faults.fail_flush(1);
    let settings = StoreSettings { faults, ..settings(dir.path()) };
    let uncompacted = Store::open(settings).unwrap();
    assert_eq!(seqs(&uncompacted), [18], "a log that cannot be compacted serves nevertheless");
    drop(uncompacted);
    let again = open(dir.path());
    assert!(again.store.status().disk_bytes < before / 4);
    assert_eq!((seqs(&again), again.findings.len()), (vec![18], 0));
    assert_eq!(again.store.body(18).unwrap(), body(18, 4 << 20));
}

#[test]
fn a_drained_log_gives_its_space_back_while_the_store_serves() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, faults, events) = open_with_faults(dir.path());
    let store = &opened.store;
    // An eighth of what is free is two megabytes.
    faults.fake_free_space(Some(16 << 20));
    for seq in 1..=100 {
        append(store, seq, &body(seq, 60_000));
    }
    let grown = store.status().disk_bytes;
    assert!(grown > 6_000_000, "{grown}");
    wait(|done| store.remove((1..=99).collect(), done)).unwrap();
    let mut seq = 200;
    loop {
        // Callers do not stop meanwhile.
        append(store, seq, &body(seq, 500));
        wait(|done| store.remove(vec![seq - 1], done)).unwrap();
        seq += 1;
        let is_compacted = |event| {
            matches!(event, StoreEvent::Rebuilt { reason, lost }
                if reason == "compacted" && lost.is_empty())
        };
        if events.try_iter().any(is_compacted) {
            break;
        }
        std::thread::yield_now();
    }
    let left = store.status().disk_bytes;
    assert!(left < grown / 3, "{left} of {grown}");
    assert_eq!(store.body(100).unwrap(), body(100, 60_000));
    append(store, seq, b"after it");
    drop(opened);
    let again = open(dir.path());
    assert_eq!((seqs(&again), again.findings.len()), (vec![100, seq - 1, seq], 0));
}

#[test]
fn a_log_may_grow_further_while_its_store_is_busy() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::armed();
    let settings = StoreSettings { faults: faults.clone(), ..settings(dir.path()) };
    // MiB of the log, of what lives, and free; whether it is compacted when idle, and when busy.
    for (log, live, free, when_idle, when_busy) in [
        (60, 1, 8_000, false, false),
        (100, 30, 8_000, false, false),
        (100, 20, 8_000, true, false),
        (100, 7, 8_000, true, false),
        (100, 5, 8_000, true, true),
        // Above an eighth of what is free.
        (100, 20, 700, true, true),
        (100, 30, 700, false, false),
        (60, 12, 700, false, false),
        (60, 12, 400, true, true),
    ] {
        faults.fake_free_space(Some(free * MIB));
        let (log, live) = (log * MIB, live * MIB);
        let found =
            (compact::is_grown(&settings, log, live), compact::is_overgrown(&settings, log, live));
        assert_eq!(found, (when_idle, when_busy), "{log} {live} {free}");
    }
}

#[test]
fn an_upload_goes_on_over_a_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let store = &opened.store;
    append(store, 1, b"one");
    let whole = body(5, 2 * PIECE_BYTES + 100);
    let mut stored = StoredBody::default();
    let pieces: Vec<&[u8]> = whole.chunks(PIECE_BYTES).collect();
    for (at, piece) in pieces.iter().enumerate() {
        let index = stored.add(piece);
        wait(|done| store.put_piece(2, index, Bytes::copy_from_slice(piece), done)).unwrap();
        append(store, 10 + at as u64, b"passes it");
        wait(|done| store.remove(vec![10 + at as u64], done)).unwrap();
        if at == 0 {
            wait(|done| store.remove(vec![1], done)).unwrap();
            wait(|done| store.compact(done)).unwrap();
        }
    }
    wait(|done| store.append_stored(call(2, b""), stored, done)).unwrap();
    assert_eq!(store.body(2).unwrap(), whole);
    drop(opened);
    let again = open(dir.path());
    assert_eq!((seqs(&again), again.findings.len()), (vec![2], 0));
    assert_eq!(again.store.body(2).unwrap(), whole);
}

#[test]
fn a_log_that_stays_large_is_compacted_once_and_opens() {
    let dir = tempfile::tempdir().unwrap();
    let plain = StoreSettings { packed: false, ..settings(dir.path()) };
    let opened = Store::open(plain.clone()).unwrap();
    // Several of them at once go into a commit, and sled's log is many times what they take.
    for seq in 1..=4_000 {
        opened.store.append(call(seq, b""), Box::new(|result| result.unwrap()));
    }
    wait(|done| opened.store.put_fact("last", vec![], done)).unwrap();
    drop(opened);
    let faults = Faults::armed();
    faults.fake_free_space(Some(17 << 20));
    let settings = StoreSettings { faults, ..plain };
    for _ in 0..2 {
        let opened = Store::open(settings.clone()).unwrap();
        assert_eq!((opened.calls.len(), opened.findings.len()), (4_000, 0));
        let log = opened.store.status().disk_bytes;
        let bytes = |call: &FoundCall| opened.store.call(call.seq).unwrap().bytes;
        let live: u64 = opened.calls.iter().map(bytes).sum();
        assert!(log > 4 * live && log > 2_500_000, "it is as large as before: {log} of {live}");
    }
}
