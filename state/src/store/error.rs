//! What can go wrong, and what was found wrong.

use std::{io, path::PathBuf, sync::Arc};

use super::record::Unreadable;
use crate::units::ByteCount;

/// Why a command did not succeed. Lowercase texts, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Free space is below the floor: definitely not stored. Refuse the write; marks and removals
    /// go on.
    #[error("the disk has {} free, below `queue.disk_floor` of {}", ByteCount(*.free), ByteCount(*.floor))]
    DiskFloor {
        /// Bytes free on the store's file system.
        free: u64,
        /// The configured floor.
        floor: u64,
    },
    /// A write or flush failed, or the store is closed until the disk has room again.
    #[error("{detail}")]
    Failed {
        /// Whether the command may yet turn out to be on the disk. False: definitely not stored.
        unknown: bool,
        /// What happened.
        detail: Arc<str>,
    },
    /// The disk did not take what was written: the outcome is unknown until the store is rebuilt,
    /// which `StoreEvent::Reopened` reports with the calls that it holds.
    #[error("sync failed, the outcome is unknown: {detail}")]
    SyncFailed {
        /// What happened.
        detail: Arc<str>,
    },
    /// The store was closed before the command's turn: definitely not stored.
    #[error("the store is closed")]
    Closed,
    /// There is no such call.
    #[error("no call with sequence {seq} is stored")]
    NotFound {
        /// The sequence asked for.
        seq: u64,
    },
    /// The call's record is not what was written; replaying it would be a guess.
    #[error("the record of sequence {seq} is damaged: {detail}")]
    Damaged {
        /// The sequence asked for.
        seq: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// The value does not fit the store: definitely not stored.
    #[error("{what} of {bytes} bytes is too large: at most {} fit", ByteCount(*.limit))]
    TooLarge {
        /// Which value.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
}

impl StoreError {
    /// Whether the command may have been made durable nevertheless. The caller of a write must then
    /// learn that (507 with `outcome_unknown`).
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::SyncFailed { .. } | Self::Failed { unknown: true, .. })
    }

    pub(super) fn read(error: sled::Error) -> Self {
        Self::Failed { unknown: false, detail: format!("reading the store failed: {error}").into() }
    }

    pub(super) fn damaged(seq: u64, why: &Unreadable) -> Self {
        Self::Damaged { seq, detail: why.to_string() }
    }
}

/// Why a store did not open. Its files are as they were.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another store of this one, has it open.
    #[error("the store in {path} is in use by another process")]
    Locked {
        /// The store's folder.
        path: PathBuf,
    },
    /// Opening on a full disk would poison the store: retry when there is room.
    #[error("the disk has {} free, but opening the store needs {}", ByteCount(*.free), ByteCount(*.needed))]
    DiskFull {
        /// Bytes free, the ballast given up already.
        free: u64,
        /// Bytes that opening wants.
        needed: u64,
    },
    /// A newer version wrote it: install that version. Nothing was touched.
    #[error("the store has format {found}, but this version supports only formats up to {known}")]
    NewerFormat {
        /// The format found.
        found: u16,
        /// The newest format that this version reads.
        known: u16,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Something that was found wrong while a store opened, was rebuilt or was checked.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, bincode::Encode, bincode::Decode)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// The store did not open and was set aside whole; a fresh one was started. Its calls replay
    /// only after an operator has salvaged and requeued them.
    SetAside {
        /// Its present place.
        path: PathBuf,
        /// What opening it said.
        reason: String,
    },
    /// What the head vouches for was not all in the log. Everything else was saved into a new store.
    Lost {
        /// Sequences of the calls that are gone.
        calls: Vec<u64>,
        /// Sequences of calls whose note of sending is gone: they are in doubt.
        notes: Vec<u64>,
        /// Sequences of calls whose dead-letter mark is gone: they are dead letters all the same.
        dead: Vec<u64>,
        /// Whether facts (what an operator has forced, say) are gone or older than they were.
        facts: bool,
        /// The store as it was found; absent if a check found it.
        kept: Option<PathBuf>,
    },
    /// The log was damaged, and everything in it that is live was saved into a new store. Harmless.
    Healed {
        /// What was wrong with it.
        reason: String,
    },
    /// The store was brought from the first format to this one. Harmless.
    Upgraded,
    /// A store that was set aside was deleted for room. Only earlier releases did that; their notes of what is not
    /// reported yet (`untold.rs`) know the findings by their places in this list.
    AsideRemoved {
        /// Its place.
        path: PathBuf,
    },
    /// A record is not what was written. It is not replayed, and kept.
    BadRecord {
        /// The call that it belongs to, if its key says so.
        seq: Option<u64>,
        /// What it should have been.
        kind: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A part of the store could not be read.
    Unreadable {
        /// Which part, and what sled said.
        detail: String,
    },
    /// sled wrote blob files, which are never synced: what refers to them may be lost.
    BlobFiles {
        /// How many.
        count: u64,
    },
    /// The mark is missing or damaged: a lost tail would go unnoticed this once.
    MarkLost {
        /// What is wrong with it.
        detail: String,
    },
    /// An open that was cut short left a file that sled chokes on; it was deleted. Harmless.
    LeftoverSnapshot {
        /// Its name.
        name: String,
    },
    /// A rebuild that a crash had interrupted was finished. Harmless.
    RebuildFinished,
}

impl Finding {
    /// Whether something that was acknowledged may be lost.
    pub fn is_damage(&self) -> bool {
        !matches!(
            self,
            Self::LeftoverSnapshot { .. }
                | Self::Healed { .. }
                | Self::Upgraded
                | Self::AsideRemoved { .. }
                | Self::RebuildFinished
        )
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SetAside { path, reason } => write!(
                f,
                "it did not open ({reason}) and was set aside as {}; a new, empty store was started",
                path.display()
            ),
            Self::Lost { calls, notes, dead, facts, kept } => {
                f.write_str("it was damaged, and lost ")?;
                let mut lost = Vec::new();
                if !calls.is_empty() {
                    lost.push(named("call", calls));
                }
                if !notes.is_empty() {
                    lost.push(format!("the notes that {} had been sent", named("call", notes)));
                }
                if !dead.is_empty() {
                    lost.push(format!("the dead-letter marks of {}", named("call", dead)));
                }
                if *facts {
                    lost.push("facts".to_owned());
                }
                write!(f, "{}; everything else was saved", lost.join(", "))?;
                match kept {
                    Some(path) => {
                        write!(f, "; the damaged files are kept in {}", path.display())
                    }
                    None => Ok(()),
                }
            }
            Self::Healed { reason } => {
                write!(
                    f,
                    "it was damaged ({reason}), but everything was recovered from its log, harmless"
                )
            }
            Self::Upgraded => f.write_str("it was converted to the current format, harmless"),
            Self::AsideRemoved { path } => {
                write!(f, "{} was deleted to make room; newer ones are kept", path.display())
            }
            Self::BadRecord { seq: Some(seq), kind, detail } => {
                write!(f, "the {kind} of sequence {seq} is damaged: {detail}")
            }
            Self::BadRecord { seq: None, kind, detail } => {
                write!(f, "a {kind} is damaged: {detail}")
            }
            Self::Unreadable { detail } => write!(f, "a part cannot be read: {detail}"),
            Self::BlobFiles { count } => write!(f, "{count} blob files, which are never synced"),
            Self::MarkLost { detail } => write!(f, "its mark file is lost: {detail}"),
            Self::LeftoverSnapshot { name } => {
                write!(f, "a leftover file {name} was deleted, harmless")
            }
            Self::RebuildFinished => f.write_str("an interrupted rebuild was finished, harmless"),
        }
    }
}

/// `3 calls (sequences 5, 7 and 9)`; at most ten are named.
fn named(what: &str, seqs: &[u64]) -> String {
    const NAMED: usize = 10;
    let plural = if seqs.len() == 1 { "" } else { "s" };
    let shown: Vec<String> = seqs.iter().take(NAMED).map(u64::to_string).collect();
    let more = if seqs.len() > NAMED { ", …" } else { "" };
    format!("{} {what}{plural} (sequence{plural} {}{more})", seqs.len(), shown.join(", "))
}
