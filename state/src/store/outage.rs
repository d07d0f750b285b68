//! What the committing thread does when the disk fails it.
//!
//! ```text
//!            no space                     reopened
//! serving ───────────▶ Full (closed) ───────────────▶ serving
//!    │   failed sync, sled error or panic     rebuilt and reopened
//!    └──────────▶ Untrusted (open for reading) ──────────────▶ serving
//! ```
//!
//! While down, every command is refused as definitely not stored; only the group that failed has an
//! unknown outcome. Back in service, `Reopened` carries what the store holds: that is the truth about
//! the failed group as well.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    StoreEvent,
    command::Command,
    committer::{Committer, Failure},
    error::{Finding, OpenError, StoreError},
    history,
    open::{self, Ready},
    rebuild::{self, Keep},
    scan::guarded,
    space,
};

/// Why the store is down.
#[derive(Clone, Debug)]
pub(super) enum Outage {
    /// The disk is full; the store is closed.
    Full { reason: Arc<str> },
    /// The files prove nothing any more; the handle still reads, until the copy is made.
    Untrusted { reason: Arc<str>, copied: Option<Vec<Finding>> },
}

impl Outage {
    fn reason(&self) -> &Arc<str> {
        match self {
            Self::Full { reason } | Self::Untrusted { reason, .. } => reason,
        }
    }
}

impl Committer {
    /// Ends a group that was not committed, and takes the store out of service.
    pub(super) fn fail(&mut self, failure: Failure) {
        let (outage, error) = match failure {
            Failure::Full(detail) => {
                let reason: Arc<str> = format!("the disk is full: {detail}").into();
                let error = StoreError::Failed { unknown: true, detail: Arc::clone(&reason) };
                (Outage::Full { reason }, error)
            }
            Failure::Untrusted(detail) => {
                let reason: Arc<str> = detail.into();
                let error = StoreError::SyncFailed { detail: Arc::clone(&reason) };
                (Outage::Untrusted { reason, copied: None }, error)
            }
        };
        let reason = outage.reason().to_string();
        tracing::error!(store = %self.shared.settings.dir.display(), reason, "the store is down");
        self.shared.set_refusing(Some(reason.clone()));
        self.group.spent = 0;
        self.group.dirty = false;
        for (ticket, result) in self.group.tickets.drain(..) {
            ticket.complete(result.and(Err(error.clone())));
        }
        let is_full = matches!(outage, Outage::Full { .. });
        self.outage = Some(outage);
        // Not begun, or begun and without a header: none of these is stored.
        for command in std::mem::take(&mut self.unfinished) {
            self.refuse(command);
        }
        self.tried_at = self.now();
        if is_full {
            // The error is sticky: only a new handle writes again. Reading stops with the old one.
            let db = self.shared.db.write().take();
            drop(guarded(move || drop(db)));
            space::drop_ballast(&self.shared.settings.dir);
            self.has_ballast = false;
        } else {
            rebuild::suspect(&self.shared.settings.dir);
        }
        self.shared.emit(StoreEvent::Refusing { reason });
        if !is_full {
            self.recover();
        }
    }

    /// Answers a command while the store is down: definitely not stored.
    pub(super) fn refuse(&mut self, command: Command) {
        let detail =
            self.outage.as_ref().map_or_else(|| "down".into(), |it| Arc::clone(it.reason()));
        match command {
            Command::Close => self.closing = true,
            Command::History(record) => {
                self.held_history.push_back(record);
                if self.held_history.len() as u64 > history::KEPT {
                    self.held_history.pop_front();
                }
            }
            other => {
                // A removal over several groups may have been committed in part.
                let unknown = matches!(other, Command::Remove { from: 1.., .. });
                if let Some(ticket) = other.into_ticket() {
                    ticket.complete(Err(StoreError::Failed { unknown, detail }));
                }
            }
        }
    }

    /// Tries to get the store back into service.
    pub(super) fn recover(&mut self) {
        let Some(mut outage) = self.outage.take() else { return };
        let result = match &mut outage {
            Outage::Full { .. } => self.reopen(),
            Outage::Untrusted { copied, .. } => self.rebuild(copied),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "the store stays down");
            self.outage = Some(outage);
            return;
        }
        if let Outage::Untrusted { reason, copied } = outage {
            let lost = copied.unwrap_or_default();
            self.shared.emit(StoreEvent::Rebuilt { reason: reason.to_string(), lost });
        }
        self.resume();
    }

    fn reopen(&mut self) -> Result<(), OpenError> {
        let ready = open::open(&self.shared.settings)?;
        self.adopt(ready);
        Ok(())
    }

    /// Copies what the old handle still reads, swaps the copy in and opens it. What was `copied` in
    /// an earlier try is not copied again: it waits as `db.ready`, which an open swaps in as well.
    fn rebuild(&mut self, copied: &mut Option<Vec<Finding>>) -> Result<(), OpenError> {
        let settings = &self.shared.settings;
        if copied.is_none() {
            let handle = self.shared.db.read();
            // A store without a handle has been swapped already.
            let findings = handle.as_ref().map(|db| rebuild::copy(settings, db, self.head));
            drop(handle);
            let Some(findings) = findings.transpose()? else { return self.reopen() };
            let old = self.shared.db.write().take();
            drop(guarded(move || drop(old)));
            let lost = copied.insert(findings);
            rebuild::swap(settings, Keep::As("failed-sync"), lost)
                .map_err(open::at(&settings.dir))?;
        }
        self.reopen()
    }

    /// Replaces the store by a rebuilt one while in service.
    pub(super) fn compact(&mut self) {
        let Some(Command::Compact { ticket }) = self.unfinished.pop_front() else { return };
        let settings = &self.shared.settings;
        let handle = self.shared.db.read();
        let copied = handle.as_ref().map(|db| rebuild::copy(settings, db, self.head));
        drop(handle);
        let findings = match copied {
            Some(Ok(findings)) => findings,
            // The store is as it was and serves on.
            Some(Err(error)) => {
                let detail = error.to_string().into();
                ticket.complete(Err(StoreError::Failed { unknown: false, detail }));
                return;
            }
            None => return,
        };
        let old = self.shared.db.write().take();
        drop(guarded(move || drop(old)));
        let swapped =
            rebuild::swap(settings, Keep::OnlyIfLossy, &findings).map_err(open::at(&settings.dir));
        match swapped.and_then(|_| open::open(settings)) {
            Ok(ready) => {
                self.adopt(ready);
                self.shared
                    .emit(StoreEvent::Rebuilt { reason: "compacted".into(), lost: findings });
                self.report_reopened(false);
                ticket.complete(Ok(()));
            }
            Err(error) => {
                // The files are whole, the handle is gone: what a full disk needs, too.
                let reason: Arc<str> = error.to_string().into();
                self.shared.set_refusing(Some(reason.to_string()));
                self.shared.emit(StoreEvent::Refusing { reason: reason.to_string() });
                self.outage = Some(Outage::Full { reason: Arc::clone(&reason) });
                ticket.complete(Err(StoreError::Failed { unknown: false, detail: reason }));
            }
        }
    }

    /// Works on the handle of a store that was opened anew.
    fn adopt(&mut self, ready: Ready) {
        let Ready { db, log, mark, head, calls, findings, garbage, history_next, .. } = ready;
        *self.shared.db.write() = Some(db);
        self.log = log;
        self.mark = mark;
        self.head = head;
        self.garbage = garbage;
        // What was put of them is garbage here.
        self.uploads.clear();
        self.history_next = history_next;
        self.shared.commits.store(head.commit, Relaxed);
        self.shared.last_seq.store(head.last_seq, Relaxed);
        self.shared.add_findings(&findings);
        self.reopened = Some((calls, findings));
    }

    /// Back in service: says so, with what the store holds.
    fn resume(&mut self) {
        self.outage = None;
        self.group.refusal = None;
        self.has_ballast = space::make_ballast(&self.shared.settings);
        self.shared.set_refusing(None);
        self.unfinished.extend(self.held_history.drain(..).map(Command::History));
        tracing::warn!(store = %self.shared.settings.dir.display(), "the store serves again");
        self.report_reopened(true);
    }

    /// Says what the last open found. What the store holds is told `always`, or where it is less
    /// than before.
    fn report_reopened(&mut self, always: bool) {
        let Some((calls, findings)) = self.reopened.take() else { return };
        let damaged = findings.iter().any(Finding::is_damage);
        if !findings.is_empty() {
            self.shared.emit(StoreEvent::Found { findings });
        }
        if always || damaged {
            self.shared.emit(StoreEvent::Reopened { calls });
        }
    }
}
