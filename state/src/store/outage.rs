//! What the committing thread does when the disk fails it.
//!
//! ```text
//!            no space, failed sync, sled error or panic
//! serving ─────────────────────────────────────────────▶ down (closed) ──open, each second──▶ serving
//! ```
//!
//! The handle that failed is closed at once: it is no evidence of what the disk holds. An open then does what it does
//! at a start: it reads the raw log, proves what is live by the digest that the mark holds (which is that of the last
//! acknowledged commit), and, after a failed sync, writes it into new files. An error that has passed by then heals so
//! without a restart; one that has not leaves everything as it is, and the next second tries again.
//!
//! While down, every command is refused as definitely not stored, and so are those that wait when an open has succeeded;
//! only the group that failed has an unknown outcome. Back in service, `Reopened` carries what the store holds: that is
//! the truth about the failed group as well.
//!
//! **Nothing passes what failed.** If two calls are to be removed, and the removal of the first fails, that of the
//! second must not be committed before it is sent again: after a crash the older of two writes to a key would be
//! replayed, and the newer would not. So whatever waits is refused before `Reopened` is emitted, and what the listener sends
//! in answer, on the committing thread, goes before what others have sent by then.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    apply::Failure,
    command::Command,
    committer::{Committer, Outage},
    error::{Finding, StoreError},
    history,
    open::{self, Ready},
    rebuild,
    settings::StoreEvent,
    space,
    tree::Sled,
};

impl Committer {
    /// Ends a group that was not committed, and takes the store out of service.
    pub(super) fn fail(&mut self, failure: Failure) {
        // What the disk has taken and failed to keep may say as well that there is no room; then a sync fails, too.
        let failure = match failure {
            Failure::Full(detail) => match self.sync() {
                Ok(()) => Failure::Full(detail),
                Err(error) => Failure::Untrusted(format!("{detail}; sync_data failed: {error}")),
            },
            Failure::Untrusted(detail) => Failure::Untrusted(detail),
        };
        let (reason, error, is_untrusted): (Arc<str>, _, _) = match failure {
            Failure::Full(detail) => {
                let reason: Arc<str> = format!("the disk is full: {detail}").into();
                let error = StoreError::Failed { unknown: true, detail: Arc::clone(&reason) };
                (reason, error, false)
            }
            Failure::Untrusted(detail) => {
                let reason: Arc<str> = detail.into();
                let error = StoreError::SyncFailed { detail: Arc::clone(&reason) };
                (reason, error, true)
            }
        };
        tracing::error!(store = %self.shared.settings.dir.display(), %reason, "the store is down");
        self.shared.set_refusing(Some(reason.to_string()));
        self.applier.group.clear();
        for (ticket, result) in self.applier.group.tickets.drain(..) {
            ticket.complete(result.and(Err(error.clone())));
        }
        let emitted = reason.to_string();
        self.outage = Some(Outage { reason, is_untrusted });
        self.refuse_unfinished();
        self.tried_at = self.now();
        if is_untrusted {
            rebuild::suspect(&self.shared.settings.dir);
        } else {
            space::drop_ballast(&self.shared.settings.dir);
            self.has_ballast = false;
        }
        self.stop_compaction();
        // The error is sticky: only a new handle writes again.
        let db = self.shared.db.write().take();
        rebuild::close(&self.shared.settings.dir, db);
        self.shared.emit(StoreEvent::Refusing { reason: emitted });
        if is_untrusted {
            self.recover();
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.settings.faults.sync().and_then(|()| self.log.sync_data())
    }

    /// Answers a command while the store is down: definitely not stored.
    pub(super) fn refuse(&mut self, command: Command) {
        let detail =
            self.outage.as_ref().map_or_else(|| "down".into(), |it| Arc::clone(&it.reason));
        if matches!(command, Command::Close) {
            self.closing = true;
        }
        let Some(record) = command.refuse(&detail) else { return };
        self.held_history.push_back(record);
        if self.held_history.len() as u64 > history::KEPT {
            self.held_history.pop_front();
        }
    }

    /// Not begun, or begun and without a header: none of these is stored.
    fn refuse_unfinished(&mut self) {
        for command in std::mem::take(&mut self.unfinished) {
            self.refuse(command);
        }
    }

    /// What waits by now is refused; what those who hear of that send next finds a store that serves.
    fn refuse_waiting(&mut self) {
        let waiting: Vec<Command> = self.commands.try_iter().collect();
        for command in waiting {
            self.refuse(command);
        }
    }

    /// Tries to get the store back into service.
    pub(super) fn recover(&mut self) {
        let Some(outage) = self.outage.clone() else { return };
        match open::open(&self.shared.settings) {
            Ok(mut ready) => {
                // An event of its own says that it was rebuilt.
                ready.findings.retain(|finding| *finding != Finding::RebuildFinished);
                if outage.is_untrusted {
                    let lost: Vec<Finding> =
                        ready.findings.iter().filter(|it| it.is_damage()).cloned().collect();
                    let reason = outage.reason.to_string();
                    self.shared.emit(StoreEvent::Rebuilt { reason, lost });
                }
                self.adopt(ready);
                self.resume();
            }
            Err(error) => tracing::warn!(%error, "the store stays down"),
        }
    }

    /// The files are whole and the handle is gone: out of service until an open succeeds.
    pub(super) fn go_down(&mut self, reason: Arc<str>) {
        self.shared.set_refusing(Some(reason.to_string()));
        self.shared.emit(StoreEvent::Refusing { reason: reason.to_string() });
        self.outage = Some(Outage { reason, is_untrusted: false });
        self.refuse_unfinished();
    }

    /// Works on the handle of a store that was opened again.
    pub(super) fn adopt(&mut self, ready: Ready) {
        let Ready {
            db,
            log,
            mark,
            head,
            ledger,
            live_bytes,
            calls,
            findings,
            garbage,
            history_next,
            ..
        } = ready;
        *self.shared.db.write() = Some(Sled::new(db, ledger.packs.places.clone()));
        self.log = log;
        self.mark = mark;
        self.applier.head = head;
        self.applier.ledger = ledger;
        self.applier.live_bytes = live_bytes;
        self.applier.garbage = garbage;
        // What was put of them is garbage here.
        self.applier.uploads.clear();
        self.applier.history_next = history_next;
        self.is_untold = true;
        self.shared.commits.store(head.commit, Relaxed);
        self.shared.last_seq.store(head.last_seq, Relaxed);
        self.shared.add_findings(&findings);
        self.reopened = Some((calls, findings));
    }

    /// Back in service: says so, with what the store holds.
    fn resume(&mut self) {
        self.refuse_waiting();
        self.outage = None;
        self.applier.group.refusal = None;
        self.has_ballast = space::make_ballast(&self.shared.settings);
        self.shared.set_refusing(None);
        self.unfinished.extend(self.held_history.drain(..).map(Command::History));
        tracing::warn!(store = %self.shared.settings.dir.display(), "the store serves again");
        self.report_reopened(true);
    }

    /// Says what the last open found. What the store holds is reported `always`, or if it is less
    /// than before.
    pub(super) fn report_reopened(&mut self, always: bool) {
        let Some((calls, findings)) = self.reopened.take() else { return };
        let damaged = findings.iter().any(Finding::is_damage);
        if !findings.is_empty() {
            self.shared.emit(StoreEvent::Found { findings });
        }
        if always || damaged {
            let answers = self.shared.emit_reopened(calls);
            self.unfinished.extend(answers);
        }
    }
}
