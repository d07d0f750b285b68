//! What is known of the sessions of clients: whether what one asks has the answer that anybody would get.
//!
//! A session keeps temporary tables, settings and a current database at the server. Stock clients have one without asking
//! for it and put nothing into it, so most are *clean*: what they read may be cached for all.
//!
//! ```text
//!            first seen                            SET, USE, CREATE TEMPORARY, or what was not understood
//!   ─▶ is it certain that it began just now? ─┬─ yes ─▶ Clean ──────────────┬─▶ Dirty: live only
//!                                             └─ no ──▶ Own ────────────────┘
//! ```
//! *Own* is a session that may have begun before this run of fusebox, which does not know what was put into it: what it
//! reads is cached for itself. A session that was silent for its time (`session_timeout`, 60 s unless it says otherwise)
//! is over at the server, so one that is first seen later than that after the start, or again after such a silence, is a
//! new one.
//!
//! 100,000 are remembered, by a keyed hash of their names. When there are more, those that are over are forgotten, and
//! then all: from there on it is as after a start.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::kinds::clickhouse::protocol::door_read::{Session, USUAL_TIMEOUT};

const SESSIONS_MAX: usize = 100_000;
/// How long one lasts at most: a server allows no more unless it is configured to.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);
/// What lies between the end of a session here and at the server.
const MARGIN: Duration = Duration::from_secs(5);

/// The sessions of a backend's clients.
#[derive(Debug)]
pub(crate) struct Sessions {
    known: Mutex<Known>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Known {
    /// Since when every session is known that was used.
    since: Instant,
    sessions: HashMap<u64, (Session, Instant)>,
}

impl Sessions {
    /// None is known.
    pub(crate) fn new() -> Self {
        let known = Known { since: Instant::now(), sessions: HashMap::new() };
        Self { known: Mutex::new(known), hasher: RandomState::new() }
    }

    /// A request names a session, and after which silence that ends.
    pub(crate) fn named(&self, named: Option<(String, Duration)>) -> Option<(String, Session)> {
        let (id, timeout) = named?;
        let session = self.used(&id, timeout, Instant::now());
        Some((id, session))
    }

    fn used(&self, id: &str, timeout: Duration, now: Instant) -> Session {
        let ends = now + timeout.min(LONGEST_TIMEOUT) + MARGIN;
        let id = self.hasher.hash_one(id);
        let known = &mut *self.known.lock();
        if let Some((session, until)) = known.sessions.get_mut(&id) {
            if *until <= now {
                *session = Session::Clean;
            }
            *until = ends.max(*until);
            return *session;
        }
        if known.sessions.len() >= SESSIONS_MAX {
            known.sessions.retain(|_, (_, until)| *until > now);
            if known.sessions.len() >= SESSIONS_MAX {
                known.sessions.clear();
                known.since = now;
            }
        }
        let longest = timeout.max(USUAL_TIMEOUT).min(LONGEST_TIMEOUT) + MARGIN;
        let is_new = now.saturating_duration_since(known.since) > longest;
        let session = if is_new { Session::Clean } else { Session::Own };
        known.sessions.insert(id, (session, ends));
        session
    }

    /// Something may have been put into the session `id`.
    pub(crate) fn dirties(&self, id: &str) {
        if let Some((session, _)) = self.known.lock().sessions.get_mut(&self.hasher.hash_one(id)) {
            *session = Session::Dirty;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_session_is_clean_if_it_began_under_our_eyes_and_nothing_was_put_into_it() {
        let (sessions, start) = (Sessions::new(), Instant::now());
        let used = |id, after| sessions.used(id, USUAL_TIMEOUT, start + after);
        assert_eq!(used("old", MINUTE / 2), Session::Own);
        assert_eq!(used("old", MINUTE), Session::Own);
        assert_eq!(used("new", 2 * MINUTE), Session::Clean);
        sessions.dirties("new");
        assert_eq!(used("new", 2 * MINUTE + MINUTE / 2), Session::Dirty);
        // It was silent for so long that the server has ended it.
        assert_eq!(used("new", 5 * MINUTE), Session::Clean);
        assert_eq!(used("old", 5 * MINUTE), Session::Clean);
        // A longer one may have begun earlier.
        let long = |id| sessions.used(id, 30 * MINUTE, start + 5 * MINUTE);
        assert_eq!(long("long"), Session::Own);
        assert_eq!(used("long", 20 * MINUTE), Session::Own);
        sessions.dirties("nobody");
        assert_eq!(used("nobody", 6 * MINUTE), Session::Clean);
    }

    #[test]
    fn more_than_are_remembered_is_as_after_a_start() {
        let (sessions, start) = (Sessions::new(), Instant::now());
        let used = |id: &str, after| sessions.used(id, USUAL_TIMEOUT, start + after);
        for number in 0..SESSIONS_MAX {
            used(&number.to_string(), 2 * MINUTE);
        }
        assert_eq!(used("0", 2 * MINUTE), Session::Clean);
        assert_eq!(used("one more", 2 * MINUTE), Session::Own);
        assert_eq!(used("0", 2 * MINUTE), Session::Own);
    }
}
