//! Faults that tests inject where a disk would fail.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// Makes flushes and syncs fail, and the disk look fuller than it is. The default injects nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults(Option<Arc<Plan>>);

#[derive(Debug, Default)]
struct Plan {
    flush_in: AtomicU64,
    sync_in: AtomicU64,
    free_is_faked: AtomicBool,
    free: AtomicU64,
}

impl Faults {
    /// Faults that the methods below arm; clones share them.
    pub fn armed() -> Self {
        Self(Some(Arc::default()))
    }

    /// Lets the `nth` flush from now (1 is the next) fail for lack of space; 0 disarms.
    pub fn fail_flush(&self, nth: u64) {
        if let Some(plan) = &self.0 {
            plan.flush_in.store(nth, Relaxed);
        }
    }

    /// Lets the `nth` sync of the log from now (1 is the next) fail with EIO; 0 disarms.
    pub fn fail_sync(&self, nth: u64) {
        if let Some(plan) = &self.0 {
            plan.sync_in.store(nth, Relaxed);
        }
    }

    /// Whether a flush or sync is still to fail.
    pub fn is_armed(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|plan| plan.flush_in.load(Relaxed) > 0 || plan.sync_in.load(Relaxed) > 0)
    }

    /// Lets the disk appear to have `free` bytes free; `None` tells the truth again.
    pub fn fake_free_space(&self, free: Option<u64>) {
        if let Some(plan) = &self.0 {
            plan.free.store(free.unwrap_or_default(), Relaxed);
            plan.free_is_faked.store(free.is_some(), Relaxed);
        }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        match &self.0 {
            Some(plan) if due(&plan.flush_in) => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        match &self.0 {
            Some(plan) if due(&plan.sync_in) => Err(io::Error::other("injected EIO")),
            _ => Ok(()),
        }
    }

    pub(super) fn free_space(&self) -> Option<u64> {
        let plan = self.0.as_ref()?;
        plan.free_is_faked.load(Relaxed).then(|| plan.free.load(Relaxed))
    }
}

/// Counts down; true on the step from 1 to 0.
fn due(counter: &AtomicU64) -> bool {
    counter.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) == Ok(1)
}
