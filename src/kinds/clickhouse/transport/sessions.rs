//! Which sessions of clients something was put into.
//!
//! A session keeps temporary tables, settings and a current database at the server. Stock clients have one without asking
//! for it and put nothing into it, so most are *clean*: what they read may be cached for all, and their inserts may be
//! queued. One that something was put into is *dirty*: live only.
//!
//! ```text
//!             SET, USE, CREATE TEMPORARY, or what was not understood
//!   Clean ──────────────────────────────────────────────────────────▶ Dirty
//!     ▲                                                                 │
//!     └──────── silent for its time: it is over at the server ──────────┘
//! ```
//! That time is the request's `session_timeout`, 60 s unless it says otherwise.
//!
//! # Invariants
//! 1. A session that is not known is clean. So all dirty ones are known, also those of earlier runs: what becomes dirty
//!    is in the [file](super::session_file) before the statement is sent.
//! 2. If that cannot be said, because the file was damaged or could not be written, or there were more than 100,000
//!    dirty sessions at once, then every session that may have begun before that is dirty: until its time has passed a
//!    session that is first seen is taken for one of these.
//! 3. When the daemon starts, a dirty session has its whole time before it: nobody knows how long it has been silent.
//!    So no clock is compared with that of another run.
//! 4. A file has one keeper in the daemon, whatever becomes of connectors: a new one of the same backend shares it.
//!
//! The file is written anew at the start, when there are 200,000 records in it, and once an hour if anything is added:
//! without the sessions that are over.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::session_file::{Found, SessionFile};
use crate::kinds::clickhouse::{protocol::door_read::USUAL_TIMEOUT, settings::SessionsPlace};

const SESSIONS_MAX: usize = 100_000;
const RECORDS_MAX: usize = 2 * SESSIONS_MAX;
/// How long one lasts at most: a server allows no more unless it is configured to.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);
/// What lies between the end of a session here and at the server.
const MARGIN: Duration = Duration::from_secs(5);

/// Those that are in use.
static OPEN: Mutex<BTreeMap<PathBuf, Weak<Sessions>>> = Mutex::new(BTreeMap::new());

/// The sessions of a backend's clients.
#[derive(Debug)]
pub(crate) struct Sessions {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Under which ids are hashed, so that nobody can prepare one whose hash is another's.
    seed: u64,
    /// Since when every session is known that something was put into; `None` if it always was.
    since: Option<Instant>,
    dirty: HashMap<u128, Dirty>,
    file: Option<SessionFile>,
    /// That the file cannot be written was told.
    is_told: bool,
}

/// A session that something was put into.
#[derive(Clone, Copy, Debug)]
struct Dirty {
    /// After which silence it ends.
    lasts: Duration,
    until: Instant,
}

impl Sessions {
    /// The sessions that the file at `place` names; without a place none, and none is kept.
    pub(crate) fn open(place: Option<&SessionsPlace>) -> Arc<Self> {
        let now = Instant::now();
        let Some(place) = place else { return Arc::new(Self::new(Known::empty(None), now)) };
        let mut open = OPEN.lock();
        if let Some(sessions) = open.get(&place.file).and_then(Weak::upgrade) {
            return sessions;
        }
        let sessions = Arc::new(Self::new(Known::read(place, now), now));
        open.retain(|_, sessions| sessions.strong_count() > 0);
        open.insert(place.file.clone(), Arc::downgrade(&sessions));
        sessions
    }

    fn new(mut known: Known, now: Instant) -> Self {
        known.rewrite(now);
        Self { known: Mutex::new(known) }
    }

    /// A request names the session `id`, which ends after a silence of `timeout`: whether something is in it.
    pub(crate) fn is_dirty(&self, id: &str, timeout: Duration) -> bool {
        self.used(id, timeout, Instant::now())
    }

    fn used(&self, id: &str, timeout: Duration, now: Instant) -> bool {
        let known = &mut *self.known.lock();
        let id = known.hashed(id);
        if let Some(dirty) = known.dirty.get(&id) {
            let is_over = dirty.until <= now;
            if is_over {
                known.dirty.remove(&id);
                known.note(id, Duration::ZERO, now);
            } else {
                known.put(id, timeout, now);
            }
            return !is_over;
        }
        let longest = bounded(timeout.max(USUAL_TIMEOUT)) + MARGIN;
        let may_be_older =
            known.since.is_some_and(|since| now.saturating_duration_since(since) <= longest);
        if may_be_older {
            known.put(id, timeout, now);
        }
        may_be_older
    }

    /// Something may be put into the session `id`, which ends after a silence of `timeout`. To be called before that
    /// is sent.
    pub(crate) fn dirties(&self, id: &str, timeout: Duration) {
        self.dirtied(id, timeout, Instant::now());
    }

    fn dirtied(&self, id: &str, timeout: Duration, now: Instant) {
        let known = &mut *self.known.lock();
        known.put(known.hashed(id), timeout, now);
    }
}

impl Known {
    /// None is known, and there is none.
    fn empty(file: Option<SessionFile>) -> Self {
        Self { seed: fastrand::u64(..), since: None, dirty: HashMap::new(), file, is_told: false }
    }

    fn read(place: &SessionsPlace, now: Instant) -> Self {
        let file = SessionFile::new(place.file.clone());
        let read = file.read();
        let mut known = Self::empty(Some(file));
        let why = match read {
            Ok(Some(found)) => {
                known.seed = found.seed;
                let of = |lasts| Dirty { lasts, until: now + lasts + MARGIN };
                known.dirty = found
                    .sessions
                    .into_iter()
                    .map(|(id, lasts)| (id, of(bounded(lasts))))
                    .collect();
                if found.is_whole {
                    return known;
                }
                "it does not name all".to_owned()
            }
            Ok(None) if !place.is_expected => return known,
            Ok(None) => "it is missing".to_owned(),
            Err(why) => why,
        };
        known.since = Some(now);
        tracing::warn!(
            file = %place.file.display(),
            why,
            "the file of sessions does not say what was put into them before the start: \
             those that may be older are taken for changed until they end"
        );
        known
    }

    fn hashed(&self, id: &str) -> u128 {
        xxh3_128_with_seed(id.as_bytes(), self.seed)
    }

    /// Something is in the session, and it is used.
    fn put(&mut self, id: u128, timeout: Duration, now: Instant) {
        let lasts = bounded(timeout).max(Duration::from_secs(1));
        let until = now + lasts + MARGIN;
        if let Some(dirty) = self.dirty.get_mut(&id) {
            dirty.until = dirty.until.max(until);
            if dirty.lasts < lasts {
                dirty.lasts = lasts;
                self.note(id, lasts, now);
            }
            return;
        }
        if self.dirty.len() >= SESSIONS_MAX {
            self.dirty.retain(|_, dirty| dirty.until > now);
            if self.dirty.len() >= SESSIONS_MAX {
                self.dirty.clear();
                self.since = Some(now);
                self.rewrite(now);
            }
        }
        self.dirty.insert(id, Dirty { lasts, until });
        self.note(id, lasts, now);
    }

    /// Writes down what was changed of one session.
    fn note(&mut self, id: u128, lasts: Duration, now: Instant) {
        let Some(file) = &mut self.file else { return };
        if file.is_due(now, RECORDS_MAX, LONGEST_TIMEOUT) {
            return self.rewrite(now);
        }
        let done = file.add(id, lasts);
        self.written(done);
    }

    fn rewrite(&mut self, now: Instant) {
        let Some(file) = &mut self.file else { return };
        let since = self.since;
        let is_whole = since
            .is_none_or(|since| now.saturating_duration_since(since) > LONGEST_TIMEOUT + MARGIN);
        let alive = self.dirty.iter().filter(|(_, dirty)| dirty.until > now);
        let sessions = alive.map(|(id, dirty)| (*id, dirty.lasts)).collect();
        let done = file.rewrite(&Found { seed: self.seed, is_whole, sessions }, now);
        self.written(done);
    }

    /// What cannot be written leaves a file that says nothing.
    fn written(&mut self, done: std::io::Result<()>) {
        let (Err(error), Some(file)) = (done, &mut self.file) else { return };
        let voided = file.void();
        if std::mem::replace(&mut self.is_told, true) {
            return;
        }
        let follows = if voided.is_ok() {
            "after a restart, sessions that are older are taken for changed"
        } else {
            "it cannot be emptied either, so remove it before the daemon is restarted"
        };
        let file = file.path().display();
        tracing::error!(%file, %error, "the file of sessions cannot be written: {follows}");
    }
}

fn bounded(timeout: Duration) -> Duration {
    timeout.min(LONGEST_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn place(dir: &Path, is_expected: bool) -> SessionsPlace {
        SessionsPlace { file: dir.join("sessions/one"), is_expected }
    }

    fn open(dir: &Path) -> Arc<Sessions> {
        Sessions::open(Some(&place(dir, true)))
    }

    #[test]
    fn a_session_is_clean_until_something_is_put_into_it_and_again_when_it_is_over() {
        let (sessions, start) = (Sessions::open(None), Instant::now());
        let used = |id, after| sessions.used(id, USUAL_TIMEOUT, start + after);
        assert!(!used("s", Duration::ZERO));
        sessions.dirtied("s", USUAL_TIMEOUT, start);
        assert!(used("s", MINUTE) && !used("t", MINUTE));
        assert!(used("s", 2 * MINUTE), "each use lengthens it");
        assert!(!used("s", 4 * MINUTE), "the server has ended it");
        // The longest time that a request named counts, up to an hour.
        sessions.dirtied("s", USUAL_TIMEOUT, start);
        assert!(sessions.used("s", 100 * MINUTE, start));
        assert!(used("s", 50 * MINUTE) && !used("s", 111 * MINUTE));
    }

    #[test]
    fn a_dirty_session_is_known_after_a_restart_for_its_whole_time() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(Some(&place(dir.path(), false)));
        for (id, timeout) in [("s", USUAL_TIMEOUT), ("long", 30 * MINUTE), ("over", USUAL_TIMEOUT)]
        {
            sessions.dirties(id, timeout);
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
        sessions.dirtied("s", USUAL_TIMEOUT, start + 61 * MINUTE);
        drop(sessions);
        let sessions = open(dir.path());
        assert!(sessions.is_dirty("s", USUAL_TIMEOUT) && !sessions.is_dirty("t", USUAL_TIMEOUT));
    }

    #[test]
    fn what_cannot_be_written_down_leaves_no_file_that_seems_to_name_all() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = Sessions::open(Some(&place(dir.path(), false)));
        sessions.dirties("s", USUAL_TIMEOUT);
        // It has no room to be written anew, and a record more than it may have.
        std::fs::create_dir(dir.path().join("sessions/one.next")).unwrap();
        sessions.dirtied("t", USUAL_TIMEOUT, Instant::now() + 2 * LONGEST_TIMEOUT);
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
            sessions.dirtied(&number.to_string(), USUAL_TIMEOUT, start);
        }
        assert!(!sessions.used("clean", USUAL_TIMEOUT, start));
        sessions.dirtied("one more", USUAL_TIMEOUT, start);
        for id in ["0", "clean", "one more"] {
            assert!(sessions.used(id, USUAL_TIMEOUT, start), "{id}");
        }
        drop(sessions);
        assert!(open(dir.path()).is_dirty("any", USUAL_TIMEOUT));
    }
}
