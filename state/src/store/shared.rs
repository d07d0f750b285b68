//! What handles of a store and its committing thread share.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    thread,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{FlockOperation, flock};

use super::{
    error::{Finding, OpenError},
    guard::caught,
    settings::{StoreEvent, StoreSettings},
    space::at,
    tree::Sled,
};
use crate::target::Target;

/// What handles and the committing thread share.
pub(super) struct Shared {
    pub(super) settings: StoreSettings,
    /// `None` while the store is closed or being swapped. A guard is held for as long as a handle is
    /// used, so that taking it out makes it the last one.
    pub(super) db: RwLock<Option<Sled>>,
    pub(super) target: Arc<RwLock<Target>>,
    pub(super) refusing: Mutex<Option<String>>,
    pub(super) findings: Mutex<Vec<Finding>>,
    pub(super) commits: AtomicU64,
    pub(super) last_seq: AtomicU64,
    pub(super) lock: Mutex<Option<File>>,
}

impl Shared {
    pub(super) fn emit(&self, event: StoreEvent) {
        let on_event = Arc::clone(&self.settings.on_event);
        if let Err(panic) = caught(move || on_event(event)) {
            tracing::error!(panic, "a listener of the store panicked");
        }
    }

    pub(super) fn set_refusing(&self, reason: Option<String>) {
        *self.refusing.lock() = reason;
    }

    pub(super) fn add_findings(&self, findings: &[Finding]) {
        self.findings.lock().extend_from_slice(findings);
    }
}

/// Locks the folder. A moment's patience: whoever closes a store may not be quite done.
pub(super) fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(at(&path))?;
    for _ in 0..20 {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(file);
        }
        thread::park_timeout(Duration::from_millis(10));
    }
    Err(OpenError::Locked { path: dir.to_owned() })
}
