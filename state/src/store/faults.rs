//! Faults that tests inject in place of failures of a disk.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::FileExt,
    path::Path,
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
    lie_in: AtomicU64,
    promises_left: AtomicU64,
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

    /// Lets the disk lie about the `nth` copy from now (1 is the next) that is written to take the store's place: it
    /// has synced all of it, it says, and the beginning is not there; 0 disarms.
    pub fn lie_about_a_copy(&self, nth: u64) {
        if let Some(plan) = &self.0 {
            plan.lie_in.store(nth, Relaxed);
        }
    }

    /// Lets the next `times` of these fail with EIO: giving a copy the name by which the next start knows it, once it has
    /// that name, and taking the name back; 0 disarms.
    pub fn fail_promises(&self, times: u64) {
        if let Some(plan) = &self.0 {
            plan.promises_left.store(times, Relaxed);
        }
    }

    /// Whether a fault is still to come.
    pub fn is_armed(&self) -> bool {
        let Some(plan) = &self.0 else { return false };
        let counters = [&plan.flush_in, &plan.sync_in, &plan.lie_in, &plan.promises_left];
        counters.iter().any(|it| it.load(Relaxed) > 0)
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

    /// Damages a copy that is to be lied about.
    pub(super) fn lie(&self, log: &Path) -> io::Result<()> {
        match &self.0 {
            Some(plan) if due(&plan.lie_in) => {
                let file = OpenOptions::new().write(true).open(log)?;
                file.write_all_at(&[0; 16 * 1024], 0)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn promise(&self) -> io::Result<()> {
        match &self.0 {
            Some(plan) if count_down(&plan.promises_left).is_some() => {
                Err(io::Error::other("injected EIO"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn free_space(&self) -> Option<u64> {
        let plan = self.0.as_ref()?;
        plan.free_is_faked.load(Relaxed).then(|| plan.free.load(Relaxed))
    }
}

/// True on the step from 1 to 0.
fn due(counter: &AtomicU64) -> bool {
    count_down(counter) == Some(1)
}

/// Counts down; what was left before, unless nothing was.
fn count_down(counter: &AtomicU64) -> Option<u64> {
    counter.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).ok()
}
