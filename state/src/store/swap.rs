//! The committing thread's part of a compaction: when it begins, and how the copy takes the store's place.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use sled::IVec;

use super::{
    command::Ticket,
    committer::Committer,
    compact::{Compaction, copy},
    error::{OpenError, StoreError},
    guard::guarded,
    keys, open,
    rebuild::{self, Writer},
    settings::{StoreEvent, StoreSettings},
    space::{self, at, remove_folder},
};

impl Committer {
    /// Begins a compaction if the log has grown.
    pub(super) fn compact_if(&mut self, is_grown: fn(&StoreSettings, u64, u64) -> bool) {
        (self.looked_at, self.looked_when) = (self.applier.head.commit, self.now());
        let settings = &self.shared.settings;
        let log = self.log.metadata().map_or(0, |log| log.len());
        // A new log may be several times what lives: it is left alone until it has doubled.
        let has_doubled = log / 2 > self.compacted_to;
        if self.compaction.is_none()
            && has_doubled
            && is_grown(settings, log, self.applier.live_bytes)
        {
            self.begin_compaction(Vec::new());
        }
    }

    /// Begins a compaction, or joins the one under way.
    pub(super) fn begin_compaction(&mut self, mut tickets: Vec<Ticket>) {
        if let Some(compaction) = &mut self.compaction {
            compaction.tickets.append(&mut tickets);
            return;
        }
        let settings = self.shared.settings.clone();
        let needed = space::OPEN_BYTES.saturating_add(self.applier.live_bytes.saturating_mul(2));
        let begun = match space::free(&settings) {
            Ok(free) if free < needed => Err(io::ErrorKind::StorageFull.into()),
            Ok(_) => Writer::create(&settings),
            Err(error) => Err(error),
        };
        let begun = begun.and_then(|writer| {
            let db = self.shared.db.read().clone().ok_or(io::ErrorKind::NotConnected)?;
            Compaction::start(writer, db, self.wake.clone())
        });
        match begun {
            Ok(mut compaction) => {
                compaction.tickets = tickets;
                self.applier.changed = Some(Arc::clone(&compaction.changed));
                self.compaction = Some(compaction);
            }
            Err(error) => {
                tracing::warn!(%error, "the log has grown and cannot be compacted now");
                let detail: Arc<str> = error.to_string().into();
                for ticket in tickets {
                    let detail = Arc::clone(&detail);
                    ticket.complete(Err(StoreError::Failed { unknown: false, detail }));
                }
            }
        }
    }

    /// Gives a compaction up, so that nothing else holds the store.
    pub(super) fn stop_compaction(&mut self) {
        self.applier.changed = None;
        let Some(compaction) = self.compaction.take() else { return };
        let (writer, tickets) = compaction.stop();
        drop(writer);
        let partial = self.shared.settings.dir.join("db.partial");
        if let Err(error) = remove_folder(&partial) {
            tracing::debug!(%error, "an abandoned copy of the store stays until the next start");
        }
        for ticket in tickets {
            let detail = "the compaction was stopped before its end".into();
            ticket.complete(Err(StoreError::Failed { unknown: false, detail }));
        }
    }

    /// The copying thread has ended: what is left is copied, and the new store swapped in.
    pub(super) fn finish_compaction(&mut self) {
        // One that was stopped says so, too, when another may be under way.
        let Some(compaction) = self.compaction.take_if(|it| it.done.load(Relaxed)) else {
            return;
        };
        self.applier.changed = None;
        let left = std::mem::take(&mut *compaction.changed.lock());
        let (writer, tickets) = compaction.end();
        let result = match writer {
            Ok(writer) => self.swap_in(writer, left),
            Err(error) => Err(at(&self.shared.settings.dir)(error)),
        };
        let result = result.map_err(|error| {
            tracing::warn!(%error, "the log was not compacted");
            StoreError::Failed { unknown: false, detail: error.to_string().into() }
        });
        for ticket in tickets {
            ticket.complete(result.clone());
        }
    }

    fn swap_in(&mut self, mut writer: Writer, left: BTreeSet<IVec>) -> Result<(), OpenError> {
        let settings = self.shared.settings.clone();
        let dir = &settings.dir;
        // What panics here leaves the store as it is, and says nothing of it.
        let written = guarded(|| {
            let handle = self.shared.db.read();
            let db = handle.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            for key in &left {
                copy(&mut writer, db, key)?;
            }
            if writer.digests() != self.applier.ledger.digests() {
                return Err(io::Error::other("the copy differs from the store"));
            }
            let arriving = self.applier.uploads.first().copied();
            writer.end(self.applier.head.commit, self.applier.head.last_seq, arriving)
        });
        let written = written.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        if let Err(error) = written.and_then(|head| rebuild::promise(&settings, &head)) {
            let error = at(dir)(error);
            // The old one goes on if nothing can replace it any more. Otherwise an open decides between the two.
            if let Err(why) = rebuild::take_back(&settings) {
                tracing::warn!(%why, "the copy may still replace the store, so the store is opened again");
                let old = self.shared.db.write().take();
                rebuild::close(dir, old);
                self.go_down(error.to_string().into());
            }
            return Err(error);
        }
        // From here on the new one is the store, whatever happens.
        let old = self.shared.db.write().take();
        rebuild::close(dir, old);
        let opened = rebuild::swap(&settings, None).map_err(at(dir));
        match opened.and_then(|()| open::open(&settings)) {
            Ok(ready) => {
                self.compacted_to = ready.log.metadata().map_or(0, |log| log.len());
                let uploads = std::mem::take(&mut self.applier.uploads);
                self.adopt(ready);
                // Their pieces were copied with the rest.
                self.applier.garbage.retain(|key| {
                    !keys::chunk_of(key).is_some_and(|(seq, _)| uploads.contains(&seq))
                });
                self.applier.uploads = uploads;
                self.shared
                    .emit(StoreEvent::Rebuilt { reason: "compacted".into(), lost: Vec::new() });
                self.report_reopened(false);
                Ok(())
            }
            Err(error) => {
                self.go_down(error.to_string().into());
                Err(error)
            }
        }
    }
}
