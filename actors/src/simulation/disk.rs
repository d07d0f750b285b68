//! The disk of a store, which fails at times.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use fusebox_state::store::memory::MemoryDisk;

/// A store's disk.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) durable: MemoryDisk,
    /// What becomes of the next group: 0 it is committed, 1 the sync fails and it is lost, 2 it is kept all the same.
    pub(super) next: AtomicU8,
    /// Until when the store stays down after that, in milliseconds of the world.
    pub(super) down_until: AtomicU64,
    /// How often it is still refused to open.
    pub(super) refuses: AtomicU8,
}

impl Disk {
    /// The next sync fails, and the store is down until then.
    pub(super) fn fails(&self, is_kept: bool, until: u64) {
        self.down_until.store(until, Relaxed);
        self.next.store(if is_kept { 2 } else { 1 }, Relaxed);
    }

    /// The store does not open so many times.
    pub(super) fn refuses(&self, times: u8) {
        self.refuses.store(times, Relaxed);
    }

    /// All is well with it.
    pub(super) fn heals(&self) {
        self.next.store(0, Relaxed);
        self.down_until.store(0, Relaxed);
        self.refuses.store(0, Relaxed);
    }
}
