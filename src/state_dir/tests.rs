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
    assert!(again.accept_clone(&|_| true).unwrap() && !again.accept_clone(&|_| true).unwrap());
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
        assert!(again.accept_clone(&|_| true).unwrap());
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
                let timeouts = [("db".to_owned(), begin)].into_iter();
                // At a start, or in a reload.
                if longer % 2 == 0 {
                    state.begin_with_timeouts(timeouts);
                } else {
                    state.change_timeouts(timeouts).unwrap();
                }
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

fn store_settings(dir: &Path) -> fusebox_state::store::StoreSettings {
    fusebox_state::store::StoreSettings {
        dir: dir.to_owned(),
        target: "redis h:1/0".into(),
        disk_floor: 0,
        unix_now: std::sync::Arc::new(|| fusebox_state::UnixMillis::new(1_790_000_000_000)),
        on_event: std::sync::Arc::new(|_| {}),
        packed: false,
        faults: fusebox_state::store::Faults::default(),
    }
}

/// A store at `dir` with one call in it, which sets a key to `value`.
pub(crate) fn store_with_a_call(dir: &Path, value: &str) {
    use fusebox_state::{
        LaneId, Lanes, OpId, UnixMillis,
        store::{CallHeader, CallStore, NewCall, Store, TokenKind, Traits},
    };
    let store = Store::open(store_settings(dir)).unwrap().store;
    let call = NewCall {
        seq: 1,
        header: CallHeader {
            op_id: OpId::from_u128(7),
            digest: 1,
            uid: 1_000,
            lanes: Lanes::One(LaneId(1)),
            token: TokenKind::Absolute,
            traits: Traits::default(),
            accepted_at: UnixMillis::new(1_790_000_000_000),
        },
        target: "redis h:1/0".into(),
        label: "k".into(),
        note: None,
        traceparent: None,
        body: format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{value}\r\n", value.len()).into(),
    };
    let (done, wait) = std::sync::mpsc::channel();
    store.append(call, Box::new(move |result| done.send(result.is_ok()).unwrap()));
    assert!(wait.recv().unwrap());
    store.close();
}

/// What `cp -a` makes of whatever is in a directory, in one that is there.
fn copy_into(from: &Path, to: &Path) {
    let from = from.join(".");
    let copied = std::process::Command::new("cp").arg("-a").args([&from, to]).status().unwrap();
    assert!(copied.success());
}

/// A run that uses the store of `a` in that folder, and its alert that replay is paused.
fn run_with(dir: &Path, folder: Option<&Path>) -> (StateDir, Option<String>) {
    let store = [("a".to_owned(), folder.map(Path::to_owned))];
    let state = StateDir::open(dir).unwrap();
    state.look_for_stores(&store);
    let paused = state.copied();
    state.remember_stores(store.into_iter());
    (state, paused)
}

#[test]
fn a_backup_that_is_restored_in_the_same_place_is_a_copy_until_it_is_accepted() {
    for how in ["whole", "store", "over the files"] {
        for has_calls in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (state, backup) = (dir.path().join("state"), dir.path().join("backup"));
            let store = state.join("backends/a");
            store_with_a_call(&store, "v");
            if !has_calls {
                std::fs::remove_dir_all(store.join("db")).unwrap();
                std::fs::remove_file(store.join("mark")).unwrap();
                reopen(&store);
            }
            assert_eq!(run_with(&state, None).1, None);
            std::fs::create_dir(&backup).unwrap();
            copy_into(&state, &backup);
            assert_eq!(run_with(&state, None).1, None, "it was only copied from");
            // It goes on, and whoever restores leaves the folders as they are, or the files, too.
            reopen(&store);
            let emptied = match how {
                "whole" => vec![&state],
                "store" => vec![&store],
                _ => Vec::new(),
            };
            for emptied in emptied {
                for entry in std::fs::read_dir(emptied).unwrap() {
                    let path = entry.unwrap().path();
                    let is_folder = path.is_dir();
                    let remove =
                        if is_folder { std::fs::remove_dir_all } else { std::fs::remove_file };
                    remove(path).unwrap();
                }
            }
            if how == "store" {
                copy_into(&backup.join("backends/a"), &store);
            } else {
                copy_into(&backup, &state);
            }
            let (run, paused) = run_with(&state, None);
            if !has_calls {
                assert_eq!(paused, None, "nothing would be replayed");
                continue;
            }
            assert!(paused.unwrap().contains("is a copy, such as a restored backup"), "{how}");
            drop(run);
            let (run, paused) = run_with(&state, None);
            assert!(paused.is_some(), "until an operator says so");
            assert!(run.accept_clone(&|_| true).unwrap());
            drop(run);
            assert_eq!(run_with(&state, None).1, None);
        }
    }
}

/// A run opens the store in `dir`, or makes it, and ends in good order.
fn reopen(dir: &Path) {
    use fusebox_state::store::CallStore;
    let opened = fusebox_state::store::Store::open(store_settings(dir)).unwrap();
    opened.store.close();
}

#[test]
fn another_store_in_the_place_of_the_one_before_is_not_replayed_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let (state, mount, volume) =
        (dir.path().join("state"), dir.path().join("mount"), dir.path().join("volume"));
    store_with_a_call(&mount, "old");
    assert_eq!(run_with(&state, Some(&mount)).1, None);
    // The volume is not mounted: a new store is begun below it, and writes are acknowledged.
    std::fs::rename(&mount, &volume).unwrap();
    let (run, paused) = run_with(&state, Some(&mount));
    assert!(paused.is_none() && run.lost().contains_key("a"));
    drop(run);
    store_with_a_call(&mount, "newer");
    std::fs::rename(&mount, dir.path().join("hidden")).unwrap();
    std::fs::rename(&volume, &mount).unwrap();
    let (run, paused) = run_with(&state, Some(&mount));
    let paused = paused.unwrap();
    assert!(paused.contains("is not the one that a had before"), "{paused}");
    assert!(run.accept_clone(&|_| true).unwrap());
    drop(run);
    assert_eq!(run_with(&state, Some(&mount)).1, None, "once");
    // So is a store of a release that gave stores no names.
    std::fs::remove_file(mount.join(identity::NAME)).unwrap();
    assert!(run_with(&state, Some(&mount)).1.is_some());
}

#[test]
fn a_folder_that_is_reached_by_another_path_is_the_same() {
    for is_noted in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let [state, real, link] = ["state", "real", "link"].map(|name| dir.path().join(name));
        store_with_a_call(&real, "v");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let (run, paused) = run_with(&state, Some(&real));
        assert_eq!(paused, None);
        if !is_noted {
            run.change(|kept| kept.origin.names.clear());
        }
        drop(run);
        let (run, paused) = run_with(&state, Some(&link));
        assert!(paused.is_none() && run.lost().is_empty(), "{paused:?} {:?}", run.lost());
        let kept = run.kept.lock();
        assert!(kept.origin.left.values().all(BTreeSet::is_empty), "{:?}", kept.origin.left);
    }
}

#[test]
fn a_store_that_is_left_behind_is_named_and_does_not_come_back_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let [state, right, wrong] = ["state", "right", "wrong"].map(|name| dir.path().join(name));
    store_with_a_call(&right, "old");
    assert_eq!(run_with(&state, Some(&right)).1, None);
    // Somebody mistypes the folder, and corrects it later.
    store_with_a_call(&wrong, "newer");
    for (is, was) in [(&wrong, &right), (&right, &wrong)] {
        let (run, paused) = run_with(&state, Some(is));
        let lost = run.lost()["a"].clone();
        assert!(
            lost.contains(&format!("calls may wait in its store in {}", was.display())),
            "{lost}"
        );
        let paused = paused.unwrap();
        assert!(
            paused.contains(&format!("the store in {} is not the one", is.display())),
            "{paused}"
        );
        let found = stores::find(&state, None).unwrap();
        assert!(found.all().iter().any(|store| store.dir == *was), "{found:?}");
        assert!(run.accept_clone(&|_| true).unwrap() && run.accept_loss("a").unwrap());
        drop(run);
        let (run, paused) = run_with(&state, Some(is));
        assert!(paused.is_none() && run.lost().is_empty(), "it is accepted");
    }
}

#[test]
fn a_longer_timeout_that_cannot_be_noted_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let of = |seconds| [("db".to_owned(), Duration::from_secs(seconds))].into_iter();
    state.begin_with_timeouts(of(10));
    let next = dir.path().join("origin.next");
    std::fs::create_dir(&next).unwrap();
    assert!(state.change_timeouts(of(120)).is_err());
    assert!(state.change_timeouts(of(5)).is_ok(), "a shorter one need not be noted");
    std::fs::remove_dir(&next).unwrap();
    assert!(state.change_timeouts(of(60)).is_ok());
    drop(state);
    let again = StateDir::open(dir.path()).unwrap();
    assert_eq!(again.begin_with_timeouts(of(1))["db"], Duration::from_secs(60));
}

#[test]
fn doubts_are_shown_together_and_taken_for_those_that_were_meant() {
    let dir = tempfile::tempdir().unwrap();
    let (state, backup) = (dir.path().join("state"), dir.path().join("backup"));
    let stores = ["a", "b"].map(|name| (name.to_owned(), None));
    let store = |name: &str| state.join("backends").join(name);
    for name in ["a", "b"] {
        store_with_a_call(&store(name), "v");
        copy_into(&store(name), &make(&backup.join(name)));
        std::fs::remove_dir_all(store(name)).unwrap();
        copy_into(&backup.join(name), &make(&store(name)));
    }
    let run = StateDir::open(&state).unwrap();
    run.look_for_stores(&stores);
    let told = run.copied().unwrap();
    assert!(["a", "b"].iter().all(|name| told.contains(store(name).to_str().unwrap())), "{told}");
    assert!(run.accept_clone(&|name| name == "a").unwrap());
    let told = run.copied().unwrap();
    assert!(!told.contains(store("a").to_str().unwrap()), "{told}");
    assert_eq!(run.doubts(&|name| name == "a"), None);
    // One that cannot be made its own keeps no other back.
    std::fs::remove_dir_all(store("b")).unwrap();
    std::fs::write(store("b"), "no folder").unwrap();
    assert!(run.accept_clone(&|_| true).unwrap());
    assert_eq!(run.copied(), None);
}

fn make(dir: &Path) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    dir.to_owned()
}
