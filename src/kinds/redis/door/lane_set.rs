//! The lanes of several commands.

use fusebox_state::{LaneId, Lanes};

/// More lanes than these are all lanes.
const LANES_MAX: usize = 64;

/// The lanes of several commands together.
pub(super) struct LaneSet {
    /// `None` for all.
    lanes: Option<Vec<LaneId>>,
}

impl Default for LaneSet {
    fn default() -> Self {
        Self { lanes: Some(Vec::new()) }
    }
}

impl LaneSet {
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.as_ref().is_some_and(Vec::is_empty)
    }

    pub(super) fn add(&mut self, lanes: &Lanes) {
        let Some(known) = &mut self.lanes else { return };
        known.extend_from_slice(lanes.as_slice());
        if lanes.is_all() || known.len() > LANES_MAX {
            self.lanes = None;
        }
    }

    /// These and others.
    pub(super) fn with(&self, others: &Self) -> Lanes {
        match (&self.lanes, &others.lanes) {
            (Some(lanes), Some(others)) => Lanes::new(lanes.iter().chain(others).copied()),
            _ => Lanes::All,
        }
    }
}
