//! What handles of a store and its committing thread share.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    thread::{self, ThreadId},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{FlockOperation, flock};

use super::{
    calls::FoundCall,
    command::Command,
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
    /// While the store says what it holds: the thread on which it does so, and what its listener has sent there.
    pub(super) answering: Mutex<Option<(ThreadId, Vec<Command>)>>,
}

impl Shared {
    pub(super) fn emit(&self, event: StoreEvent) {
        let on_event = Arc::clone(&self.settings.on_event);
        if let Err(panic) = caught(move || on_event(event)) {
            tracing::error!(panic, "a listener of the store panicked");
        }
    }

    /// Says what the store holds. Returns what the listener has sent meanwhile.
    pub(super) fn emit_reopened(&self, calls: Vec<FoundCall>) -> Vec<Command> {
        *self.answering.lock() = Some((thread::current().id(), Vec::new()));
        self.emit(StoreEvent::Reopened { calls });
        self.answering.lock().take().map(|(_, sent)| sent).unwrap_or_default()
    }

    /// Keeps a command if it is one of those; hands back any other.
    pub(super) fn unless_answering(&self, command: Command) -> Option<Command> {
        match &mut *self.answering.lock() {
            Some((teller, sent)) if *teller == thread::current().id() => {
                sent.push(command);
                None
            }
            _ => Some(command),
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
