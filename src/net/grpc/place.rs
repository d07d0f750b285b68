//! Places on a connection, and how many of them are taken.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The places on one connection.
#[derive(Debug, Default)]
pub(super) struct Places(Arc<AtomicUsize>);

impl Places {
    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Takes one more, and says how many are taken with it.
    pub(super) fn take(&self) -> (Place, usize) {
        let taken = self.0.fetch_add(1, Relaxed) + 1;
        (Place(Arc::clone(&self.0)), taken)
    }
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
