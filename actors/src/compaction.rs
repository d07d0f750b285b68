//! Compaction by an operator's order.

use tokio::sync::oneshot;

use crate::backend_handle::{AdminError, Backend, failed};

impl Backend {
    /// Writes what the store holds into new files, in which nothing is left of calls that were replayed or discarded
    /// before. Returns the bytes of its log before and after. The store serves meanwhile, but for the open at the end.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] if the store is not open, [`AdminError::Failed`] if it could not: it is as it was.
    pub async fn compact(&self) -> Result<(u64, u64), AdminError> {
        let store = self.entry.shared.queue.store();
        let store = store.map_err(|why| AdminError::Conflict(why.to_string()))?;
        let before = store.status().disk_bytes;
        let (sender, done) = oneshot::channel();
        store.compact(Box::new(move |result| {
            // Who asked may have left.
            sender.send(result).ok();
        }));
        let done = done.await.map_err(|_| failed("the store was closed"))?;
        done.map_err(|error| AdminError::Failed(format!("the log was not compacted: {error}")))?;
        Ok((before, store.status().disk_bytes))
    }
}
