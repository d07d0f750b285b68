//! The messages of the recovery actor.

use ractor::RpcReplyPort;

use crate::backend_entry::BackendEntry;

/// A message to recovery.
#[derive(Debug)]
pub enum RecoveryMessage {
    /// Caches are to be swept of what is too old.
    SweepDue,
    /// The sizes of the stores are to be reported.
    ReportDue,
    /// Replay is to look again.
    NudgeDue,
    /// Caches are to be written to their files.
    SnapshotDue,
    /// What programs ask for when they start is to be written to its file.
    StartUpDue,
    /// The replay task of a backend ended.
    ReplayEnded(BackendEntry),
    /// A replay task is to be started again.
    ReplayDue(BackendEntry),
    /// Forces recoveries, dependencies first; answers with the names of those that went half-open.
    Recover {
        /// One backend, or all.
        only: Option<BackendEntry>,
        /// Answered when all were asked.
        reply: RpcReplyPort<Vec<String>>,
    },
}
