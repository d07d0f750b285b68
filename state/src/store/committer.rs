//! The committing thread: the only one that writes to a store.
//!
//! ```text
//! callers ──commands──▶ channel ──▶ group ──insert/remove, head──▶ flush ──▶ sync_data ──▶ mark ──▶ done
//!                                     ▲                                                          │
//!                                     └───────────── what gathered meanwhile ◀──────────────────┘
//! ```
//!
//! A group takes what has gathered while the one before was flushed, without an artificial delay, up
//! to [`GROUP_BYTES`]. The order of the channel is the order of commits, and completions run in it.
//! Nothing is acknowledged before `flush` *and* `sync_data` have returned; the mark follows them, so
//! that it is never ahead.
//!
//! sled's batches and transactions take a lock that all stores of the process share, and
//! `flush_async` deadlocks: plain inserts, removes and `flush` are all that is used here.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::File,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use super::{
    apply::{Applier, Failure, GROUP_BYTES, Group},
    calls::FoundCall,
    command::Command,
    compact::{self, Compaction, LOOK_EVERY},
    error::{Finding, StoreError},
    guard::caught,
    identity,
    mark::Mark,
    open::Ready,
    rebuild,
    settings::StoreEvent,
    shared::Shared,
    space,
    tree::Sled,
    untold,
};

/// How long a written mark may stay unsynced.
const MARK_SYNC_MS: u64 = 100;
/// How often the disk is looked at again while the store is down or has no ballast.
const RETRY: Duration = Duration::from_secs(1);

/// State of the committing thread.
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Receiver<Command>,
    /// What goes before the channel: the rest of a command that spans groups, and what is sent again after an outage.
    pub(super) unfinished: VecDeque<Command>,
    pub(super) applier: Applier,
    pub(super) log: File,
    pub(super) mark: Mark,
    pub(super) mark_synced_at: u64,
    pub(super) compaction: Option<Compaction>,
    /// To wake itself with.
    pub(super) wake: Sender<Command>,
    /// The commit at which the log's size was looked at, and when that was.
    pub(super) looked_at: u64,
    pub(super) looked_when: u64,
    /// Bytes of the log after the last compaction.
    pub(super) compacted_to: u64,
    /// History that waits for the store to be up again.
    pub(super) held_history: VecDeque<Vec<u8>>,
    pub(super) has_ballast: bool,
    pub(super) outage: Option<Outage>,
    pub(super) tried_at: u64,
    /// What an open within an outage found, until it is reported.
    pub(super) reopened: Option<(Vec<FoundCall>, Vec<Finding>)>,
    /// Whether what an open found may not have been reported for certain.
    pub(super) is_untold: bool,
    pub(super) closing: bool,
}

/// Why the store is down.
#[derive(Clone, Debug)]
pub(super) struct Outage {
    pub(super) reason: Arc<str>,
    /// Whether the files had to be rebuilt before they prove anything again.
    pub(super) is_untrusted: bool,
}

impl Committer {
    /// A committer for a store that has just been opened.
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        wake: Sender<Command>,
        ready: Ready,
    ) -> Self {
        let applier = Applier {
            group: Group::default(),
            head: ready.head,
            ledger: ready.ledger,
            live_bytes: ready.live_bytes,
            history_next: ready.history_next,
            uploads: BTreeSet::new(),
            garbage: ready.garbage,
            target: Arc::clone(&shared.target),
            packs: shared.settings.packed,
            changed: None,
        };
        let mut committer = Self {
            shared,
            applier,
            commands,
            unfinished: VecDeque::new(),
            log: ready.log,
            mark: ready.mark,
            mark_synced_at: 0,
            compaction: None,
            wake,
            looked_at: 0,
            looked_when: 0,
            compacted_to: 0,
            held_history: VecDeque::new(),
            has_ballast: false,
            outage: None,
            tried_at: 0,
            reopened: None,
            is_untold: true,
            closing: false,
        };
        committer.has_ballast = space::make_ballast(&committer.shared.settings);
        committer
    }

    /// Serves until the store is closed or its last handle dropped.
    pub(super) fn run(mut self) {
        while !self.is_over() {
            // Whatever panics, this thread goes on, with a store that was opened again.
            if let Err(panic) = caught(|| self.step()) {
                self.fail(Failure::Untrusted(panic));
            }
        }
        self.stop_compaction();
        if let Err(error) = self.mark.sync() {
            tracing::warn!(%error, "could not sync the mark");
        }
        if self.is_untold && self.outage.is_none() {
            untold::told(&self.shared.settings.dir);
        }
        // Closing flushes once more.
        let (dir, db) = (&self.shared.settings.dir, self.shared.db.write().take());
        rebuild::close(dir, db);
        if self.outage.is_none()
            && let Err(error) = identity::renew(&dir.join("db"))
        {
            tracing::debug!(%error, "the store keeps the identity that it had");
        }
        drop(self.shared.lock.lock().take());
    }

    fn is_over(&self) -> bool {
        self.closing && (self.outage.is_some() || self.unfinished.is_empty())
    }

    fn step(&mut self) {
        if self.outage.is_some() {
            self.wait_out();
        } else if self.unfinished.is_empty() && self.applier.garbage.is_empty() {
            self.wait();
        } else {
            self.commit();
        }
    }

    /// Waits for a command; meanwhile syncs the mark and makes the ballast again.
    fn wait(&mut self) {
        let first = if self.mark.is_dirty() {
            self.commands.recv_timeout(Duration::from_millis(MARK_SYNC_MS))
        } else if self.has_ballast
            && self.applier.group.refusal.is_none()
            && self.looked_at == self.applier.head.commit
        {
            self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            self.commands.recv_timeout(RETRY)
        };
        match first {
            Ok(command) => {
                self.unfinished.push_back(command);
                self.commit();
            }
            Err(RecvTimeoutError::Timeout) => {
                self.sync_mark();
                self.measure_space();
                if self.looked_at != self.applier.head.commit {
                    self.compact_if(compact::is_grown);
                }
            }
            Err(RecvTimeoutError::Disconnected) => self.closing = true,
        }
    }

    /// The next command: what is unfinished, then what has gathered.
    pub(super) fn next(&mut self) -> Option<Command> {
        let command = match self.unfinished.pop_front() {
            Some(command) => command,
            // What was sent after the close is answered when the channel is dropped.
            None if self.closing => return None,
            None => self.commands.try_recv().ok()?,
        };
        if matches!(command, Command::Close) {
            self.closing = true;
            return None;
        }
        Some(command)
    }

    /// Commits one group.
    fn commit(&mut self) {
        self.measure_space();
        let shared = Arc::clone(&self.shared);
        let handle = shared.db.read();
        let result = match &*handle {
            Some(db) => caught(|| self.write_group(db))
                .unwrap_or_else(|panic| Err(Failure::Untrusted(panic))),
            None => Err(Failure::Untrusted("the store has no handle".into())),
        };
        drop(handle);
        match result {
            Ok(()) => self.complete(),
            Err(failure) => self.fail(failure),
        }
        match self.unfinished.pop_front() {
            Some(Command::Compacted) => self.finish_compaction(),
            // What is dead already is swept first.
            Some(Command::Compact { ticket }) if self.applier.garbage.is_empty() => {
                self.begin_compaction(vec![ticket]);
            }
            Some(other) => self.unfinished.push_front(other),
            None => {}
        }
        if self.is_to_be_looked_at() && self.applier.garbage.is_empty() {
            self.compact_if(compact::is_overgrown);
        }
    }

    /// Whether the log's size is due although the store is not idle. While appends are refused for lack of space it is
    /// each second, as the log may be what takes the space, and those who are refused may never leave the store idle.
    fn is_to_be_looked_at(&self) -> bool {
        let commits = self.applier.head.commit.saturating_sub(self.looked_at);
        let is_refusing = self.applier.group.refusal.is_some();
        commits >= LOOK_EVERY
            || commits > 0
                && is_refusing
                && u128::from(self.now().abs_diff(self.looked_when)) >= RETRY.as_millis()
    }

    fn write_group(&mut self, db: &Sled) -> Result<(), Failure> {
        while self.applier.group.spent < GROUP_BYTES {
            let Some(command) = self.next() else { break };
            if let Some(rest) = self.applier.apply(db, command)? {
                self.unfinished.push_front(rest);
                break;
            }
        }
        self.applier.sweep();
        if !self.applier.group.dirty {
            return Ok(());
        }
        let head = self.applier.finish_group(db)?;
        self.make_durable(db)?;
        self.applier.head = head;
        if let Err(error) = self.mark.write(&self.applier.head) {
            tracing::warn!(%error, "could not write the mark");
        }
        Ok(())
    }

    /// `flush` hands everything to the kernel, `sync_data` has the disk keep it.
    fn make_durable(&mut self, db: &Sled) -> Result<(), Failure> {
        let faults = &self.shared.settings.faults;
        faults.flush().map_err(|error| Failure::from(sled::Error::Io(error)))?;
        db.flush()?;
        faults
            .sync()
            .and_then(|()| self.log.sync_data())
            .map_err(|error| Failure::Untrusted(format!("sync_data failed: {error}")))
    }

    /// Reports a durable group to its callers, in order.
    fn complete(&mut self) {
        self.shared.commits.store(self.applier.head.commit, Relaxed);
        self.shared.last_seq.store(self.applier.head.last_seq, Relaxed);
        self.applier.group.clear();
        // Whoever asks for something has what the open found.
        if self.is_untold && !self.applier.group.tickets.is_empty() {
            self.is_untold = false;
            untold::told(&self.shared.settings.dir);
        }
        for (ticket, result) in self.applier.group.tickets.drain(..) {
            ticket.complete(result);
        }
        let now = self.now();
        if now.abs_diff(self.mark_synced_at) >= MARK_SYNC_MS {
            self.sync_mark();
        }
    }

    fn sync_mark(&mut self) {
        self.mark_synced_at = self.now();
        if let Err(error) = self.mark.sync() {
            tracing::warn!(%error, "could not sync the mark");
        }
    }

    /// Decides whether appends are taken, and makes the ballast again if there is room.
    fn measure_space(&mut self) {
        let settings = &self.shared.settings;
        let refusal = match space::free(settings) {
            Ok(free) if free < settings.disk_floor => {
                Some(StoreError::DiskFloor { free, floor: settings.disk_floor })
            }
            _ => None,
        };
        if refusal.is_none() && !self.has_ballast {
            self.has_ballast = space::make_ballast(settings);
        }
        if refusal.is_some() != self.applier.group.refusal.is_some() {
            self.shared.set_refusing(refusal.as_ref().map(ToString::to_string));
            self.shared.emit(match &refusal {
                Some(reason) => StoreEvent::Refusing { reason: reason.to_string() },
                None => StoreEvent::Accepting,
            });
        }
        self.applier.group.refusal = refusal;
    }

    pub(super) fn now(&self) -> u64 {
        (self.shared.settings.unix_now)().get()
    }

    /// While the store is down: answers commands with a refusal, and retries each second.
    fn wait_out(&mut self) {
        let due = self.now().abs_diff(self.tried_at) >= 1_000;
        let command =
            if due { Err(RecvTimeoutError::Timeout) } else { self.commands.recv_timeout(RETRY) };
        match command {
            Ok(command) => self.refuse(command),
            Err(RecvTimeoutError::Timeout) => {
                self.tried_at = self.now();
                self.recover();
            }
            Err(RecvTimeoutError::Disconnected) => self.closing = true,
        }
    }
}
