//! Which sessions of clients something was put into.
//!
//! A session keeps temporary tables, settings and a current database at the server. Stock clients have one without
//! asking for it and put nothing into it, so most are *clean*: what they read may be cached for all, and their inserts
//! may be queued. One that something was put into is *dirty*: live only.
//!
//! ```text
//!             SET, USE, CREATE TEMPORARY, or what was not understood
//!   Clean ──────────────────────────────────────────────────────────▶ Dirty
//!     ▲                                                                 │
//!     └──────── silent for its time: it is over at the server ──────────┘
//! ```
//! That time is the request's `session_timeout`, 60 s unless it says otherwise. It is counted from the end of the last
//! request, as the server does; while one is under way ([`InSession`]) the session is not over. If its end was not
//! seen, the session counts as dirty for an hour: nobody knows when the server was done with it.
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
//! 5. Nobody holds the lock of what is known while a disk is waited for. Records are written in their order on a thread
//!    that may block, one thread at a time. Whoever sends something in a dirty session waits until its record is
//!    written ([`InSession::is_kept`]), and nobody else does.
//!
//! The file is rewritten at the start, when there are 200,000 records in it, and once an hour if anything is added:
//! without the sessions that are over.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout_at},
};

use self::known::{Known, LONGEST_TIMEOUT, MARGIN, Outbox, RECORDS_MAX};
use super::session_file::SessionFile;
use crate::kinds::clickhouse::settings::SessionsPlace;

mod known;

/// Those that are in use.
static OPEN: Mutex<BTreeMap<PathBuf, Weak<Sessions>>> = Mutex::new(BTreeMap::new());

/// The sessions of a backend's clients.
#[derive(Debug)]
pub(crate) struct Sessions {
    known: Mutex<Known>,
    /// Locked by whoever writes, before what is known is.
    file: Mutex<Option<SessionFile>>,
    /// The number of the last record that was written.
    written: watch::Sender<u64>,
}

impl Sessions {
    /// The sessions that the file at `place` names; without a place none, and none is kept. Reads and writes the file.
    pub(crate) fn open(place: Option<&SessionsPlace>) -> Arc<Self> {
        let now = Instant::now();
        let Some(place) = place else { return Arc::new(Self::new(Known::empty(), None)) };
        let mut open = OPEN.lock();
        if let Some(sessions) = open.get(&place.file).and_then(Weak::upgrade) {
            return sessions;
        }
        let file = SessionFile::new(place.file.clone());
        let mut known = Known::read(&file, place.is_expected, now);
        known.outbox = Some(Outbox { is_anew: true, ..Outbox::default() });
        let sessions = Arc::new(Self::new(known, Some(file)));
        sessions.write(now);
        open.retain(|_, sessions| sessions.strong_count() > 0);
        open.insert(place.file.clone(), Arc::downgrade(&sessions));
        sessions
    }

    fn new(known: Known, file: Option<SessionFile>) -> Self {
        Self { known: Mutex::new(known), file: Mutex::new(file), written: watch::Sender::new(0) }
    }

    /// A request names the session `id`, which ends after a silence of `timeout`: whether something is in it.
    pub(crate) fn is_dirty(self: &Arc<Self>, id: &str, timeout: Duration) -> bool {
        self.used(id, timeout, Instant::now())
    }

    fn used(self: &Arc<Self>, id: &str, timeout: Duration, now: Instant) -> bool {
        let is_dirty = {
            let known = &mut *self.known.lock();
            known.is_dirty(known.hashed(id), timeout, now)
        };
        self.writes(now);
        is_dirty
    }

    /// A request in the session `id` is about to be sent; `puts` says whether it may put something into it. `None` if
    /// nothing is in it.
    pub(crate) fn enter(
        self: &Arc<Self>,
        id: &str,
        timeout: Duration,
        puts: bool,
    ) -> Option<InSession> {
        self.entered(id, timeout, puts, Instant::now())
    }

    fn entered(
        self: &Arc<Self>,
        id: &str,
        timeout: Duration,
        puts: bool,
        now: Instant,
    ) -> Option<InSession> {
        let entered = {
            let known = &mut *self.known.lock();
            let id = known.hashed(id);
            if puts {
                known.put(id, timeout, now);
            }
            let dirty = known.dirty.get_mut(&id);
            dirty.map(|dirty| {
                dirty.requests += 1;
                let (sessions, record) = (Arc::clone(self), dirty.record);
                InSession { sessions, id, record, is_over: true }
            })
        };
        self.writes(now);
        entered
    }

    fn left(&self, id: u128, is_over: bool, now: Instant) {
        let known = &mut *self.known.lock();
        let Some(dirty) = known.dirty.get_mut(&id) else { return };
        dirty.requests = dirty.requests.saturating_sub(1);
        let lasts = if is_over { dirty.lasts } else { dirty.lasts.max(LONGEST_TIMEOUT) };
        dirty.until = dirty.until.max(now + lasts + MARGIN);
    }

    /// Has somebody write what is to be written.
    fn writes(self: &Arc<Self>, now: Instant) {
        {
            let known = &mut *self.known.lock();
            let Some(outbox) = &mut known.outbox else { return };
            if outbox.is_written || outbox.records.is_empty() && !outbox.is_anew {
                return;
            }
            outbox.is_written = true;
        }
        let sessions = Arc::clone(self);
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || sessions.write(now))),
            Err(_) => sessions.write(now),
        }
    }

    /// Writes until there is nothing to be written.
    fn write(&self, now: Instant) {
        let mut file = self.file.lock();
        let Some(file) = &mut *file else { return };
        loop {
            let is_due = file.is_due(now, RECORDS_MAX, LONGEST_TIMEOUT);
            let (records, last, anew) = {
                let known = &mut *self.known.lock();
                let Some(outbox) = &mut known.outbox else { return };
                if outbox.records.is_empty() && !outbox.is_anew {
                    outbox.is_written = false;
                    return;
                }
                let is_anew = std::mem::take(&mut outbox.is_anew) || is_due;
                let (records, last) = (std::mem::take(&mut outbox.records), outbox.last);
                (records, last, is_anew.then(|| known.found(now)))
            };
            let done = match anew {
                Some(found) => file.rewrite(&found, now),
                None => file.add(&records),
            };
            if let Err(error) = done {
                self.not_written(file, &error);
            }
            self.written.send_replace(last);
        }
    }

    /// What cannot be written leaves a file that says nothing.
    fn not_written(&self, file: &mut SessionFile, error: &std::io::Error) {
        let voided = file.void();
        let known = &mut *self.known.lock();
        let Some(outbox) = &mut known.outbox else { return };
        if std::mem::replace(&mut outbox.is_told, true) {
            return;
        }
        let follows = if voided.is_ok() {
            "after a restart, older sessions are treated as changed"
        } else {
            "it cannot be emptied either, so remove it before the daemon is restarted"
        };
        let file = file.path().display();
        tracing::error!(%file, %error, "the file of sessions cannot be written: {follows}");
    }
}

/// A request in a session that something is in, or is about to be.
#[derive(Debug)]
pub(crate) struct InSession {
    sessions: Arc<Sessions>,
    id: u128,
    /// The number of the session's record.
    record: u64,
    /// The server has ended the request, or never got it.
    is_over: bool,
}

impl InSession {
    /// Waits until the next run would know of the session; returns false if that is not so by `until`.
    pub(crate) async fn is_kept(&self, until: Instant) -> bool {
        let mut written = self.sessions.written.subscribe();
        let kept = written.wait_for(|written| *written >= self.record);
        timeout_at(until, kept).await.is_ok()
    }

    /// The request is sent.
    pub(crate) fn sent(&mut self) {
        self.is_over = false;
    }

    /// The server has ended it, or never got it.
    pub(crate) fn ended(&mut self) {
        self.is_over = true;
    }
}

impl Drop for InSession {
    fn drop(&mut self) {
        self.sessions.left(self.id, self.is_over, Instant::now());
    }
}

#[cfg(test)]
mod tests;
