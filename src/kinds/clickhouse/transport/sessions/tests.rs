use std::path::Path;

use super::{known::SESSIONS_MAX, *};
use crate::kinds::clickhouse::protocol::door_read::USUAL_TIMEOUT;

const MINUTE: Duration = Duration::from_secs(60);

fn place(dir: &Path, is_expected: bool) -> SessionsPlace {
    SessionsPlace { file: dir.join("sessions/one"), is_expected }
}

/// A request puts something into a session, and is over at once.
fn dirtied(sessions: &Arc<Sessions>, id: &str, timeout: Duration, now: Instant) {
    drop(sessions.entered(id, timeout, true, now));
}

fn open(dir: &Path) -> Arc<Sessions> {
    Sessions::open(Some(&place(dir, true)))
}

#[test]
fn a_session_is_clean_until_something_is_put_into_it_and_again_when_it_is_over() {
    let (sessions, start) = (Sessions::open(None), Instant::now());
    let used = |id, after| sessions.used(id, USUAL_TIMEOUT, start + after);
    assert!(!used("s", Duration::ZERO));
    dirtied(&sessions, "s", USUAL_TIMEOUT, start);
    assert!(used("s", MINUTE) && !used("t", MINUTE));
    assert!(used("s", 2 * MINUTE), "each use lengthens it");
    assert!(!used("s", 4 * MINUTE), "the server has ended it");
    // The longest time that a request named counts, from each request on.
    dirtied(&sessions, "s", USUAL_TIMEOUT, start);
    assert!(sessions.used("s", 100 * MINUTE, start));
    assert!(used("s", 99 * MINUTE) && used("s", 198 * MINUTE) && !used("s", 299 * MINUTE));
    dirtied(&sessions, "s", Duration::MAX, start);
    assert!(used("s", 1_000_000 * MINUTE));
}

#[test]
fn a_dirty_session_is_known_after_a_restart_for_its_whole_time() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = Sessions::open(Some(&place(dir.path(), false)));
    for (id, timeout) in [("s", USUAL_TIMEOUT), ("long", 30 * MINUTE), ("over", USUAL_TIMEOUT)] {
        dirtied(&sessions, id, timeout, Instant::now());
    }
    assert!(sessions.is_dirty("s", 2 * MINUTE));
    assert!(!sessions.used("over", USUAL_TIMEOUT, Instant::now() + 2 * MINUTE));
    // A connector that takes the place of another shares what is known.
    assert!(Arc::ptr_eq(&sessions, &open(dir.path())));
    drop(sessions);
    let (sessions, start) = (open(dir.path()), Instant::now());
    let used = |id, after| sessions.used(id, USUAL_TIMEOUT, start + after);
    assert!(used("long", 29 * MINUTE) && used("s", 2 * MINUTE));
    assert!(!used("over", Duration::ZERO) && !used("clean", Duration::ZERO));
    assert!(!used("s", 5 * MINUTE));
}

#[test]
fn what_may_be_older_than_a_file_that_says_nothing_is_dirty_until_it_is_over() {
    let damages: [fn(&Path); 3] = [
        |file| std::fs::write(file, "rubbish").unwrap(),
        |file| std::fs::remove_file(file).unwrap(),
        |file| {
            std::fs::remove_file(file).unwrap();
            std::fs::create_dir_all(file.join("a folder")).unwrap();
        },
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        drop(Sessions::open(Some(&place(dir.path(), false))));
        damage(&dir.path().join("sessions/one"));
        let (sessions, start) = (open(dir.path()), Instant::now());
        let used = |id, after| sessions.used(id, USUAL_TIMEOUT, start + after);
        assert!(used("old", MINUTE / 2), "it may have begun before");
        assert!(used("old", MINUTE + MINUTE / 4), "and goes on");
        assert!(!used("new", MINUTE + MINUTE / 4), "this one would be over");
        assert!(sessions.used("long", 30 * MINUTE, start + 20 * MINUTE));
        assert!(!used("old", 10 * MINUTE));
        drop(sessions);
        // A restart before an hour has passed knows no more than the one before.
        assert!(open(dir.path()).is_dirty("another", USUAL_TIMEOUT));
    }
}

#[test]
fn a_file_that_says_nothing_is_whole_again_in_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    let (sessions, start) = (open(dir.path()), Instant::now());
    dirtied(&sessions, "s", USUAL_TIMEOUT, start + 61 * MINUTE);
    drop(sessions);
    let sessions = open(dir.path());
    assert!(sessions.is_dirty("s", USUAL_TIMEOUT) && !sessions.is_dirty("t", USUAL_TIMEOUT));
}

#[test]
fn what_cannot_be_written_down_leaves_no_file_that_seems_to_name_all() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = Sessions::open(Some(&place(dir.path(), false)));
    dirtied(&sessions, "s", USUAL_TIMEOUT, Instant::now());
    // It has no room to be rewritten, and a record more than it may have.
    std::fs::create_dir(dir.path().join("sessions/one.next")).unwrap();
    dirtied(&sessions, "t", USUAL_TIMEOUT, Instant::now() + 2 * LONGEST_TIMEOUT);
    assert!(sessions.is_dirty("t", USUAL_TIMEOUT));
    drop(sessions);
    assert_eq!(std::fs::read(dir.path().join("sessions/one")).unwrap(), b"");
    std::fs::remove_dir(dir.path().join("sessions/one.next")).unwrap();
    assert!(open(dir.path()).is_dirty("any", USUAL_TIMEOUT));
}

#[test]
fn more_than_are_remembered_is_as_a_file_that_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = Sessions::open(Some(&place(dir.path(), false)));
    let start = Instant::now();
    for number in 0..SESSIONS_MAX {
        dirtied(&sessions, &number.to_string(), USUAL_TIMEOUT, start);
    }
    assert!(!sessions.used("clean", USUAL_TIMEOUT, start));
    dirtied(&sessions, "one more", USUAL_TIMEOUT, start);
    for id in ["0", "clean", "one more"] {
        assert!(sessions.used(id, USUAL_TIMEOUT, start), "{id}");
    }
    drop(sessions);
    assert!(open(dir.path()).is_dirty("any", USUAL_TIMEOUT));
}

#[test]
fn a_session_is_not_over_before_its_last_request_is() {
    let (sessions, start) = (Sessions::open(None), Instant::now());
    let used = |after| sessions.used("s", USUAL_TIMEOUT, start + after);
    let mut long = sessions.entered("s", USUAL_TIMEOUT, true, start).unwrap();
    long.sent();
    assert!(used(10 * MINUTE), "it is under way");
    let second = sessions.entered("s", USUAL_TIMEOUT, false, start + 10 * MINUTE);
    assert!(second.is_some() && sessions.enter("clean", USUAL_TIMEOUT, false).is_none());
    drop(second);
    long.ended();
    drop(long);
    assert!(used(11 * MINUTE), "the time begins at its end");
    assert!(!used(13 * MINUTE));
    // Nobody knows when the server is done with one that was given up.
    let mut lost = sessions.entered("s", USUAL_TIMEOUT, true, start).unwrap();
    lost.sent();
    drop(lost);
    assert!(used(50 * MINUTE) && !used(125 * MINUTE));
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_only_who_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = Sessions::open(Some(&place(dir.path(), false)));
    // The next writing waits until somebody reads.
    let pipe = dir.path().join("sessions/one.next");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let later = Instant::now() + 2 * LONGEST_TIMEOUT;
    let first = sessions.entered("first", USUAL_TIMEOUT, true, later).unwrap();
    let soon = || Instant::now() + Duration::from_millis(100);
    assert!(!first.is_kept(soon()).await);
    let second = sessions.entered("second", USUAL_TIMEOUT, true, later).unwrap();
    assert!(sessions.is_dirty("second", USUAL_TIMEOUT), "nobody waits to know it");
    assert!(!second.is_kept(soon()).await);
    assert!(sessions.enter("clean", USUAL_TIMEOUT, false).is_none());
    let reading = tokio::task::spawn_blocking(move || std::fs::File::open(&pipe).unwrap());
    let patience = Instant::now() + MINUTE;
    assert!(first.is_kept(patience).await && second.is_kept(patience).await);
    drop(reading.await.unwrap());
}
