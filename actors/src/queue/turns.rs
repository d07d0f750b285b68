//! Whose turn it is to read the queued writes of a lane.

use std::sync::Arc;

use fusebox_state::LaneId;
use tokio::sync::Mutex;

/// Threads that read for readers of one queue.
const READERS: u64 = 4;

/// The turns of those who read queued writes, by lane.
pub(super) struct Folding(Vec<Arc<Mutex<()>>>);

impl Default for Folding {
    fn default() -> Self {
        Self((0..READERS).map(|_| Arc::default()).collect())
    }
}

impl Folding {
    pub(super) fn turn(&self, lane: LaneId) -> Arc<Mutex<()>> {
        let turn = self.0.get(usize::try_from(lane.0 % READERS).unwrap_or_default());
        turn.map_or_else(Arc::default, Arc::clone)
    }
}
