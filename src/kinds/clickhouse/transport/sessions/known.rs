//! What is known of the sessions, in memory.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::kinds::clickhouse::{
    protocol::door_read::USUAL_TIMEOUT,
    transport::session_file::{Found, SessionFile},
};

pub(super) const SESSIONS_MAX: usize = 100_000;
pub(super) const RECORDS_MAX: usize = 2 * SESSIONS_MAX;
/// How long one lasts of which nothing more is known: a server allows no more unless it is configured to.
pub(super) const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);
/// More than that is not counted; the file cannot say more either.
const COUNTED_MAX: Duration = Duration::from_secs(0xffff_ffff);
/// The time between the end of a session here and at the server.
pub(super) const MARGIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Known {
    /// Under which ids are hashed, so that nobody can prepare one whose hash is another's.
    pub(super) seed: u64,
    /// Since when every session is known that something was put into; `None` if it always was.
    pub(super) since: Option<Instant>,
    pub(super) dirty: HashMap<u128, Dirty>,
    /// Records that are to be written; `None` if nothing is kept.
    pub(super) outbox: Option<Outbox>,
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) records: Vec<(u128, Duration)>,
    /// The number of the last of them.
    pub(super) last: u64,
    /// The file is to be rewritten.
    pub(super) is_anew: bool,
    /// Somebody writes, and looks here again.
    pub(super) is_written: bool,
    /// That the file cannot be written was logged.
    pub(super) is_told: bool,
}

/// A session that something was put into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirty {
    /// After which silence it ends.
    pub(super) lasts: Duration,
    pub(super) until: Instant,
    /// Requests of it that are under way.
    pub(super) requests: u32,
    /// The number of its record.
    pub(super) record: u64,
}

impl Dirty {
    fn is_over(&self, now: Instant) -> bool {
        self.requests == 0 && self.until <= now
    }
}

impl Known {
    /// None is known, there is none, and none is kept.
    pub(super) fn empty() -> Self {
        Self { seed: fastrand::u64(..), since: None, dirty: HashMap::new(), outbox: None }
    }

    pub(super) fn read(file: &SessionFile, is_expected: bool, now: Instant) -> Self {
        let mut known = Self::empty();
        let why = match file.read() {
            Ok(Some(found)) => {
                known.seed = found.seed;
                let of =
                    |lasts| Dirty { lasts, until: now + lasts + MARGIN, requests: 0, record: 0 };
                known.dirty = found
                    .sessions
                    .into_iter()
                    .map(|(id, lasts)| (id, of(bounded(lasts))))
                    .collect();
                if found.is_whole {
                    return known;
                }
                "it is incomplete".to_owned()
            }
            Ok(None) if !is_expected => return known,
            Ok(None) => "it is missing".to_owned(),
            Err(why) => why,
        };
        known.since = Some(now);
        tracing::warn!(
            file = %file.path().display(),
            why,
            "the file of sessions does not show which sessions were changed before the start: sessions that may be \
             older are treated as changed until they end"
        );
        known
    }

    pub(super) fn hashed(&self, id: &str) -> u128 {
        xxh3_128_with_seed(id.as_bytes(), self.seed)
    }

    /// A request names the session: whether something is in it.
    pub(super) fn is_dirty(&mut self, id: u128, timeout: Duration, now: Instant) -> bool {
        if let Some(dirty) = self.dirty.get(&id) {
            let is_over = dirty.is_over(now);
            if is_over {
                self.dirty.remove(&id);
                self.note(id, Duration::ZERO);
            } else {
                self.put(id, timeout, now);
            }
            return !is_over;
        }
        let longest = bounded(timeout.max(USUAL_TIMEOUT)) + MARGIN;
        let may_be_older =
            self.since.is_some_and(|since| now.saturating_duration_since(since) <= longest);
        if may_be_older {
            self.put(id, timeout, now);
        }
        may_be_older
    }

    /// Something is in the session, and it is used.
    pub(super) fn put(&mut self, id: u128, timeout: Duration, now: Instant) {
        let lasts = bounded(timeout).max(Duration::from_secs(1));
        let until = now + lasts + MARGIN;
        if let Some(dirty) = self.dirty.get_mut(&id) {
            // A server may keep to what the first request of the session named.
            dirty.until = dirty.until.max(now + lasts.max(dirty.lasts) + MARGIN);
            if dirty.lasts < lasts {
                dirty.lasts = lasts;
                let record = self.note(id, lasts);
                if let Some(dirty) = self.dirty.get_mut(&id) {
                    dirty.record = record;
                }
            }
            return;
        }
        if self.dirty.len() >= SESSIONS_MAX {
            self.dirty.retain(|_, dirty| !dirty.is_over(now));
            if self.dirty.len() >= SESSIONS_MAX {
                self.dirty.retain(|_, dirty| dirty.requests > 0);
                self.since = Some(now);
                if let Some(outbox) = &mut self.outbox {
                    outbox.is_anew = true;
                }
            }
        }
        let record = self.note(id, lasts);
        self.dirty.insert(id, Dirty { lasts, until, requests: 0, record });
    }

    /// What was changed of one session is to be written. Returns the number of that record.
    pub(super) fn note(&mut self, id: u128, lasts: Duration) -> u64 {
        let Some(outbox) = &mut self.outbox else { return 0 };
        if outbox.records.len() >= RECORDS_MAX {
            // The disk hangs.
            outbox.is_anew = true;
            outbox.records.clear();
        }
        outbox.records.push((id, lasts));
        outbox.last += 1;
        outbox.last
    }

    /// All that a file is to say.
    pub(super) fn found(&self, now: Instant) -> Found {
        let is_whole = self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) > LONGEST_TIMEOUT + MARGIN);
        let alive = self.dirty.iter().filter(|(_, dirty)| !dirty.is_over(now));
        let sessions = alive.map(|(id, dirty)| (*id, dirty.lasts)).collect();
        Found { seed: self.seed, is_whole, sessions }
    }
}

fn bounded(timeout: Duration) -> Duration {
    timeout.min(COUNTED_MAX)
}
