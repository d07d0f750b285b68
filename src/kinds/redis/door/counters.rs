//! What a door counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fusebox_actors::Source;

/// Counts of a door, since it was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Commands that clients have sent.
    commands: AtomicU64,
    /// Of these: answered from the cache, within its time to live, and older.
    cached: AtomicU64,
    stale: AtomicU64,
    /// Of these: queued, or answered by what is queued.
    queued: AtomicU64,
    /// Of these: told that they were not executed, or what the server said of them.
    refused: AtomicU64,
    /// Connections that are open, and that were.
    connections: AtomicU64,
    accepted: AtomicU64,
    /// Connections that were closed because their clients did not read.
    slow_readers: AtomicU64,
    /// Credentials that were nobody's.
    wrong_secrets: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) commands: u64,
    pub(crate) cached: u64,
    pub(crate) stale: u64,
    pub(crate) queued: u64,
    pub(crate) refused: u64,
    pub(crate) connections: u64,
    pub(crate) accepted: u64,
    pub(crate) slow_readers: u64,
    pub(crate) wrong_secrets: u64,
}

impl Counters {
    pub(super) fn command(&self) {
        self.commands.fetch_add(1, Relaxed);
    }

    pub(super) fn answered(&self, source: Source) {
        match source {
            Source::Cache => self.cached.fetch_add(1, Relaxed),
            Source::Stale => self.stale.fetch_add(1, Relaxed),
            Source::Queued => self.queued.fetch_add(1, Relaxed),
            Source::Live | Source::Empty | Source::Bypass => 0,
        };
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(super) fn came(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(super) fn went(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    pub(super) fn slow_reader(&self) {
        self.slow_readers.fetch_add(1, Relaxed);
    }

    pub(super) fn wrong_secret(&self) {
        self.wrong_secrets.fetch_add(1, Relaxed);
    }

    /// What was counted so far.
    pub(crate) fn counted(&self) -> Counted {
        let of = |count: &AtomicU64| count.load(Relaxed);
        Counted {
            commands: of(&self.commands),
            cached: of(&self.cached),
            stale: of(&self.stale),
            queued: of(&self.queued),
            refused: of(&self.refused),
            connections: of(&self.connections),
            accepted: of(&self.accepted),
            slow_readers: of(&self.slow_readers),
            wrong_secrets: of(&self.wrong_secrets),
        }
    }
}
