//! The system state as calls read it: one byte, written by health alone.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use fusebox_state::system::SystemState;
use tokio::sync::watch;

/// What every call must know of the system. Cheap to clone.
#[derive(Clone)]
pub struct SystemFlags(Arc<Flags>);

struct Flags {
    state: AtomicU8,
    draining: AtomicBool,
    cut: watch::Sender<bool>,
}

impl Default for SystemFlags {
    fn default() -> Self {
        Self(Arc::new(Flags {
            state: AtomicU8::new(0),
            draining: AtomicBool::new(false),
            cut: watch::channel(false).0,
        }))
    }
}

impl SystemFlags {
    /// The system state that holds.
    pub fn state(&self) -> SystemState {
        match self.0.state.load(Ordering::Acquire) {
            0 => SystemState::Healthy,
            1 => SystemState::Degraded,
            2 => SystemState::Critical,
            _ => SystemState::Emergency,
        }
    }

    /// Sets the system state. Health alone does.
    pub(crate) fn set_state(&self, state: SystemState) {
        self.0.state.store(state.severity(), Ordering::Release);
    }

    /// Whether the daemon is stopping.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// The daemon is stopping: no readiness, no replay.
    pub(crate) fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Ends the attempts under way as abandoned, so that what may be sent again is queued in time.
    pub(crate) fn cut(&self) {
        self.0.cut.send_replace(true);
    }

    /// Whether attempts are to be abandoned.
    pub(crate) fn is_cut(&self) -> bool {
        *self.0.cut.borrow()
    }

    /// Resolves when attempts are to be abandoned.
    pub(crate) async fn cut_off(&self) {
        let mut cut = self.0.cut.subscribe();
        // The sender lives as long as this.
        drop(cut.wait_for(|cut| *cut).await);
    }
}
