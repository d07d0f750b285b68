use super::*;

#[test]
fn a_second_daemon_gets_one_clear_error_and_the_name_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep").join("state");
    let first = StateDir::open(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    let error = StateDir::open(&path).map(|_| ()).unwrap_err().to_string();
    let expected = format!("(process {}) runs on the state directory", std::process::id());
    assert!(error.contains(&expected), "{error}");
    let name = first.instance();
    drop(first);
    assert_eq!(StateDir::open(&path).unwrap().instance(), name);
}

#[test]
fn what_a_killed_run_may_have_left_on_the_wire_has_its_timeout_and_not_the_next_ones() {
    let dir = tempfile::tempdir().unwrap();
    let seconds = Duration::from_secs;
    let begin = |run: &StateDir, timeout| {
        let longest = run.begin_with_timeouts([("db".to_owned(), seconds(timeout))].into_iter());
        longest.get("db").copied()
    };
    let first = StateDir::open(dir.path()).unwrap();
    assert_eq!(begin(&first, 10), Some(seconds(10)));
    // A reload.
    assert_eq!(begin(&first, 60), Some(seconds(60)));
    assert_eq!(begin(&first, 10), Some(seconds(60)));
    drop(first);
    let second = StateDir::open(dir.path()).unwrap();
    assert_eq!(begin(&second, 5), Some(seconds(60)));
    drop(second);
    let third = StateDir::open(dir.path()).unwrap();
    assert_eq!(begin(&third, 7), Some(seconds(60)), "the second was killed early");
    third.forget_earlier_timeouts();
    drop(third);
    assert_eq!(begin(&StateDir::open(dir.path()).unwrap(), 5), Some(seconds(7)));
}

#[test]
fn what_is_no_name_is_set_aside_and_a_new_one_taken() {
    let dir = tempfile::tempdir().unwrap();
    let name = StateDir::open(dir.path()).unwrap().instance();
    let file = dir.path().join(INSTANCE);
    for garbage in [&b"rubbish"[..], b"", b"\xff\xfe\x00"] {
        std::fs::write(&file, garbage).unwrap();
        let again = StateDir::open(dir.path()).unwrap();
        assert_ne!(again.instance(), name);
        assert_eq!(again.copied(), None, "a lost name makes no copy");
        assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), again.instance());
    }
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir_all(file.join("a folder")).unwrap();
    assert!(StateDir::open(dir.path()).is_ok());
    let entries = std::fs::read_dir(dir.path()).unwrap();
    let kept = entries.filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("instance.damaged-")
    });
    assert!(kept.count() >= 1);
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn an_open_directory_is_closed_only_where_all_in_it_is_ours() {
    let dir = tempfile::tempdir().unwrap();
    let mode = || std::fs::metadata(dir.path()).unwrap().mode() & 0o777;
    std::fs::write(dir.path().join("somebody's"), "").unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    drop(StateDir::open(dir.path()).unwrap());
    assert_eq!(mode(), 0o755);
    std::fs::remove_file(dir.path().join("somebody's")).unwrap();
    drop(StateDir::open(dir.path()).unwrap());
    assert_eq!(mode(), 0o700);
}

/// What `cp -a` makes of a directory that holds files alone.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The former names that are still to be killed at `backend`.
fn former(state: &StateDir, backend: &str) -> Vec<String> {
    let names = state.former().into_iter();
    names.filter(|(_, gone)| !gone.contains(backend)).map(|(name, _)| name).collect()
}

#[test]
fn a_copy_takes_a_new_name_and_is_paused_until_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let original = StateDir::open(&first).unwrap();
    copy(&first, &second);
    let clone = StateDir::open(&second).unwrap();
    assert_ne!(clone.instance(), original.instance());
    assert_eq!(former(&clone, "redis"), [original.instance()]);
    assert!(clone.copied().unwrap().contains("is a copy (it is not the folder"));
    let name = clone.instance();
    drop(clone);
    let again = StateDir::open(&second).unwrap();
    assert_eq!(again.instance(), name, "once");
    assert!(again.copied().is_some(), "until an operator says so");
    assert!(again.accept_clone().unwrap() && !again.accept_clone().unwrap());
    drop(again);
    assert_eq!(StateDir::open(&second).unwrap().copied(), None);
    assert_eq!(original.copied(), None);

    // One that is moved is the same; one of an earlier release has no origin, and is not a copy.
    let moved = dir.path().join("moved");
    drop(original);
    std::fs::rename(&first, &moved).unwrap();
    assert_eq!(StateDir::open(&moved).unwrap().copied(), None);
    std::fs::remove_file(moved.join(origin::FILE)).unwrap();
    let third = dir.path().join("third");
    copy(&moved, &third);
    assert_eq!(StateDir::open(&third).unwrap().copied(), None);
}

#[test]
fn what_may_be_a_copy_is_paused_until_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(origin::FILE);
    drop(StateDir::open(dir.path()).unwrap());
    let damages: [fn(&Path); 3] = [
        |file| std::fs::write(file, "rubbish").unwrap(),
        // One bit, in the name of what says that it is paused.
        |file| {
            let text = std::fs::read_to_string(file).unwrap();
            assert!(text.contains("paused"), "{text}");
            std::fs::write(file, text.replace("paused", "paured")).unwrap();
        },
        // It cannot be read.
        |file| {
            std::fs::remove_file(file).unwrap();
            std::fs::create_dir_all(file.join("a folder")).unwrap();
        },
    ];
    for damage in damages {
        let name = StateDir::open(dir.path()).unwrap().instance();
        damage(&file);
        let doubted = StateDir::open(dir.path()).unwrap();
        assert!(doubted.copied().unwrap().starts_with("it cannot be told whether"));
        assert_eq!(former(&doubted, "redis"), [name], "as a copy does");
        let taken = doubted.instance();
        drop(doubted);
        let again = StateDir::open(dir.path()).unwrap();
        assert!(again.copied().is_some(), "until an operator says so");
        assert_eq!(again.instance(), taken);
        assert!(again.accept_clone().unwrap());
        drop(again);
        assert_eq!(StateDir::open(dir.path()).unwrap().copied(), None);
    }
}

#[test]
fn a_former_name_is_to_be_killed_until_that_is_done_at_each_backend() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, third] = ["first", "second", "third"].map(|name| dir.path().join(name));
    let original = StateDir::open(&first).unwrap().instance();
    copy(&first, &second);
    // One that ends at once, and one that is killed when it has reached one of two backends.
    drop(StateDir::open(&second).unwrap());
    let clone = StateDir::open(&second).unwrap();
    assert_eq!(former(&clone, "redis"), std::slice::from_ref(&original));
    clone.former_is_gone("redis", std::slice::from_ref(&original));
    let name = clone.instance();
    drop(clone);
    let again = StateDir::open(&second).unwrap();
    assert!(former(&again, "redis").is_empty(), "once");
    assert_eq!(former(&again, "other"), std::slice::from_ref(&original));
    drop(again);

    // A copy of the copy has two names before its own.
    copy(&second, &third);
    let next = StateDir::open(&third).unwrap();
    assert_eq!(former(&next, "redis"), std::slice::from_ref(&name));
    let mut both = [original, name];
    both.sort();
    assert_eq!(former(&next, "other"), both);
}

#[test]
fn a_new_name_that_is_not_saved_in_its_own_file_is_taken_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let original = StateDir::open(&first).unwrap().instance();
    copy(&first, &second);
    // A file cannot be written there.
    let obstruct = |name: &str| std::fs::create_dir(second.join(name)).unwrap();
    let clear = |name: &str| std::fs::remove_dir(second.join(name)).unwrap();
    obstruct("origin.next");
    let lost = StateDir::open(&second).unwrap();
    assert!(lost.copied().is_some() && lost.instance() != original);
    drop(lost);
    let file = std::fs::read_to_string(second.join(INSTANCE)).unwrap();
    assert_eq!(file.trim(), original, "it is found to be a copy again");
    clear("origin.next");
    obstruct("instance.next");
    let name = StateDir::open(&second).unwrap().instance();
    assert_ne!(name, original);
    for is_obstructed in [true, false] {
        if !is_obstructed {
            clear("instance.next");
        }
        let clone = StateDir::open(&second).unwrap();
        assert_eq!(clone.instance(), name);
        assert_eq!(former(&clone, "redis"), std::slice::from_ref(&original));
        assert!(clone.copied().is_some());
    }
    assert_eq!(std::fs::read_to_string(second.join(INSTANCE)).unwrap().trim(), name);
}

#[test]
fn a_twin_leaves_the_old_name_to_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let first = StateDir::open(dir.path()).unwrap();
    let old = first.instance();
    let name = first.take_new_name(&old);
    assert!(name != old && name == first.instance());
    assert_eq!(first.take_new_name(&old), name, "it is not in use yet");
    assert!(first.copied().unwrap().contains("has the same instance name"));
    drop(first);
    let again = StateDir::open(dir.path()).unwrap();
    assert_eq!((again.instance(), again.copied().is_some()), (name, true));
    assert_eq!(former(&again, "redis"), [old]);
}

#[test]
fn a_timeout_that_begins_while_earlier_ones_are_forgotten_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    for longer in 1..=50 {
        let (begin, start) = (Duration::from_millis(longer), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                state.begin_with_timeouts([("db".to_owned(), begin)].into_iter());
            });
            start.wait();
            state.forget_earlier_timeouts();
        });
        let origin::Read::Found { origin, .. } = origin::read(dir.path()) else {
            panic!("there is no origin")
        };
        assert_eq!(origin.timeouts.get("db"), Some(&longer));
    }
}

#[test]
fn an_order_that_cannot_be_written_down_is_refused_and_no_more_is_said_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let store = [("a".to_owned(), None)];
    state.remember_stores(store.iter().cloned());
    state.look_for_stores(&store);
    // A file cannot be written there.
    let next = dir.path().join("origin.next");
    std::fs::create_dir(&next).unwrap();
    let error = state.accept_loss("a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IsADirectory, "{error}");
    assert!(state.lost().contains_key("a"));
    std::fs::remove_dir(&next).unwrap();
    assert!(state.accept_loss("a").unwrap());
}

#[test]
fn a_store_that_is_gone_is_told_until_it_is_accepted_and_a_new_one_never() {
    let dir = tempfile::tempdir().unwrap();
    let backends: [(String, Option<PathBuf>); 2] =
        [("a".into(), None), ("b".into(), Some(dir.path().join("elsewhere")))];
    let make = |path: &Path| std::fs::create_dir_all(path.join("db")).unwrap();
    let (a, b) = (dir.path().join("backends/a"), dir.path().join("elsewhere"));
    let look = || {
        let state = StateDir::open(dir.path()).unwrap();
        state.look_for_stores(&backends);
        state
    };
    let state = look();
    assert!(state.lost().is_empty(), "a first start");
    make(&a);
    make(&b);
    state.remember_stores(backends.iter().cloned());
    drop(state);
    assert!(look().lost().is_empty());
    std::fs::remove_dir_all(dir.path().join("backends")).unwrap();
    let lost = look().lost();
    assert_eq!(lost.keys().collect::<Vec<_>>(), ["a"]);
    assert!(lost["a"].starts_with("the store is gone: it was in"), "{lost:?}");
    make(&a);
    assert_eq!(look().lost(), lost, "that it was made anew brings nothing back");
    let state = look();
    assert!(state.accept_loss("a").unwrap() && !state.accept_loss("a").unwrap());
    drop(state);
    assert!(look().lost().is_empty());

    // A folder that is emptied but for what was set aside, and one that the settings leave behind.
    std::fs::rename(b.join("db"), b.join("db.damaged-7")).unwrap();
    assert_eq!(look().lost().keys().collect::<Vec<_>>(), ["b"]);
    let state = StateDir::open(dir.path()).unwrap();
    state.look_for_stores(&[("a".into(), Some(dir.path().join("new")))]);
    assert!(state.lost()["a"].starts_with("the store is missing"), "{:?}", state.lost());
    drop(state);
    // What no backend is for is no loss of a backend's.
    let state = look();
    state.accept_loss("b").unwrap();
    state.look_for_stores(&[]);
    state.look_for_stores(&backends[1..]);
    assert!(!state.lost().contains_key("b"), "{:?}", state.lost());
}
