//! The store of folds (see the page of `folds.rs`): by lane, bounded in bytes.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use crate::units::LaneId;

/// Bytes of all folds of one queue.
pub(super) const BYTES_MAX: u64 = 8 << 20;
/// What a fold weighs beside what it holds.
pub(super) const BYTES_MIN: u64 = 256;

/// What writes come to; only who folds knows what it is.
pub type Held = Arc<dyn Any + Send + Sync>;

/// What is kept of one lane.
pub(super) struct Fold {
    pub(super) base: u64,
    pub(super) upto: u64,
    pub(super) ticket: u64,
    pub(super) held: Option<Held>,
    pub(super) bytes: u64,
}

/// The folds of a queue.
#[derive(Default)]
pub(super) struct Folds {
    pub(super) lanes: HashMap<LaneId, Fold>,
    /// The lanes by when their folds were last begun or added to.
    by_age: BTreeMap<u64, LaneId>,
    tickets: u64,
    pub(super) bytes: u64,
}

impl fmt::Debug for Folds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folds")
            .field("lanes", &self.lanes.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Folds {
    pub(super) fn forget(&mut self, lane: LaneId) -> Option<Fold> {
        let fold = self.lanes.remove(&lane)?;
        self.by_age.remove(&fold.ticket);
        self.bytes -= fold.bytes;
        Some(fold)
    }

    /// Keeps `fold` under a new ticket, and those that were kept longest ago no more if there is too much.
    pub(super) fn keep(&mut self, lane: LaneId, fold: Fold) -> u64 {
        self.forget(lane);
        self.tickets += 1;
        let ticket = self.tickets;
        self.bytes += fold.bytes;
        self.by_age.insert(ticket, lane);
        self.lanes.insert(lane, Fold { ticket, ..fold });
        while self.bytes > BYTES_MAX
            && let Some((_, oldest)) = self.by_age.first_key_value()
        {
            self.forget(*oldest);
        }
        ticket
    }
}
