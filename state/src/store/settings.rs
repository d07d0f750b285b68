//! What a store is given when it opens, and what it reports.

use std::{fmt, path::PathBuf, sync::Arc};

use super::{
    calls::FoundCall,
    error::{Finding, StoreError},
    faults::Faults,
};
use crate::{target::Target, units::UnixMillis};

/// How a command ends; runs on the committing thread, so it must be quick and must not wait.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What a store needs to know.
#[derive(Clone)]
pub struct StoreSettings {
    /// The store's own folder; made if it is missing.
    pub dir: PathBuf,
    /// Identity of the backend; at most 512 bytes.
    pub target: Target,
    /// Free bytes of the file system below which appends are refused.
    pub disk_floor: u64,
    /// The wall clock, for names and the mark's age.
    pub unix_now: Arc<dyn Fn() -> UnixMillis + Send + Sync>,
    /// Hears what nobody asked for; runs on the committing thread, so it must not wait.
    pub on_event: Arc<dyn Fn(StoreEvent) + Send + Sync>,
    /// Whether small calls that are committed together share values, which earlier releases cannot read.
    pub packed: bool,
    /// Faults that tests inject; none by default.
    pub faults: Faults,
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSettings")
            .field("dir", &self.dir)
            .field("target", &self.target)
            .field("disk_floor", &self.disk_floor)
            .finish_non_exhaustive()
    }
}

/// What the store reports unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// Appends, or all commands, are refused from now on.
    Refusing {
        /// Why, for people.
        reason: String,
    },
    /// There is room above the floor again: appends are taken. The store was open all the time.
    Accepting,
    /// The store serves again after an outage. `calls` is what it holds, ascending by sequence, dead
    /// letters included: the truth about every command that ended with an unknown outcome. What was sent during the
    /// outage was refused. What the listener sends while it hears of this is committed before what others send by
    /// then, so that it can send again what failed.
    Reopened {
        /// Every whole call.
        calls: Vec<FoundCall>,
    },
    /// The store was rebuilt into new files.
    Rebuilt {
        /// What made it necessary.
        reason: String,
        /// What could not be carried over.
        lost: Vec<Finding>,
    },
    /// Something was found wrong while reopening; precedes `Reopened`.
    Found {
        /// What.
        findings: Vec<Finding>,
    },
}

/// A store's state, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoreStatus {
    /// Why appends or all commands are refused, if they are.
    pub refusing: Option<String>,
    /// Size of sled's log in bytes.
    pub disk_bytes: u64,
    /// Number of the last commit.
    pub commits: u64,
    /// Highest sequence that was committed.
    pub last_seq: u64,
    /// Everything found wrong since the store was opened.
    pub findings: Vec<Finding>,
}
