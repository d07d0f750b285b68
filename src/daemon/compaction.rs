//! Compaction by an operator's order, and what it may delete.

use std::path::PathBuf;

use fusebox_actors::{AdminError, Backend};
use fusebox_state::store::{check::asides, remove_set_aside};

use super::{Daemon, blocking::blocking};
use crate::config::BackendConfig;

/// What a compaction has done.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Compacted {
    /// Bytes of the log before.
    before_bytes: u64,
    /// Bytes of the log now.
    bytes: u64,
    /// The stores that were set aside and are deleted.
    deleted: Vec<String>,
    /// Bytes that these took.
    deleted_bytes: u64,
}

impl Daemon {
    /// Compacts the store of `backend`. With `purge` nothing is left afterwards of what was replayed or discarded
    /// before, neither in the store nor in stores that were set aside, which are deleted. One that is set aside while the
    /// order is carried out stays: no operator can have looked at it.
    ///
    /// # Errors
    /// [`AdminError`] says what could not be done, or stays.
    pub(crate) async fn compact(
        &self,
        backend: &Backend,
        purge: bool,
    ) -> Result<Compacted, AdminError> {
        let dir = self.store_dir(backend.name());
        let (mut deleted, mut deleted_bytes, mut later) = (Vec::new(), 0, Vec::new());
        if purge {
            let dir = dir.clone();
            deleted = blocking(move || Ok(asides(&dir))).await?;
        }
        let (before_bytes, mut bytes) = backend.compact().await?;
        if purge {
            // The first may have begun, and copied, before the call was discarded.
            (_, bytes) = backend.compact().await?;
            let names = deleted.clone();
            let removed = blocking(move || Ok((remove_set_aside(&dir, &names)?, asides(&dir))));
            (deleted_bytes, later) = removed.await?;
        }
        let name = backend.name();
        tracing::info!(
            backend = name,
            before_bytes,
            bytes,
            purge,
            ?deleted,
            "the store was compacted by an operator"
        );
        if !later.is_empty() {
            return Err(AdminError::Conflict(format!(
                "{} was set aside meanwhile, and is not deleted: look at it before you order that",
                later.join(", ")
            )));
        }
        Ok(Compacted { before_bytes, bytes, deleted, deleted_bytes })
    }

    /// The folder of a backend's store.
    fn store_dir(&self, name: &str) -> PathBuf {
        let config = self.config.load();
        let mut stores = config.backends.iter().map(BackendConfig::store);
        let named = stores.find(|(other, _)| other == name).and_then(|(_, dir)| dir);
        named.unwrap_or_else(|| self.state_dir.path().join("backends").join(name))
    }
}
