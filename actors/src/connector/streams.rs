//! The port behind which a backend's live queries are.

use std::sync::Arc;

use bytes::Bytes;

use crate::{pieces::Answer, refusal::Refused};

/// Whether a backend may be spoken to at this moment: neither offline nor its breaker open.
pub type Gate = Arc<dyn Fn() -> bool + Send + Sync>;

/// An event of a live query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEvent {
    /// `snapshot`, `change` or `stale`.
    pub event: &'static str,
    /// A JSON object.
    pub data: Bytes,
}

/// What a follower of a live query waits on.
pub trait Follow: Send + Sync {
    /// The next event; `None` if the stream has ended.
    fn next(&mut self) -> Answer<'_, Option<StreamEvent>>;
}

/// Live queries: each survives an outage, keeping its last snapshot, and goes on afterwards.
pub trait Streams: Send + Sync {
    /// Opens one, or finds the one that is open on the same query. Returns its id. `gate` is asked
    /// before it connects.
    ///
    /// # Errors
    /// The query cannot be followed.
    fn open(&self, query: Bytes, gate: Gate) -> Result<String, Refused>;

    /// Follows one; begins with its snapshot. `None` if there is none of that id.
    fn follow(&self, id: &str) -> Option<Box<dyn Follow>>;
}
