//! Waiting without sleeping through it: the only place in which a test lets time pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks: short beside everything that is waited for, long beside one request.
const PAUSE: Duration = Duration::from_millis(5);

/// Ends what watches it when it is dropped, also by a failed test: a thread that goes on until it is asked
/// to stop must not outlive the reason for it.
#[derive(Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

/// A thread's view of a [`Stop`].
pub(crate) struct Watch(Arc<AtomicBool>);

impl Stop {
    /// A view for one more thread.
    pub(crate) fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.0))
    }
}

impl Watch {
    /// Whether to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks `probe` until it has an answer, and fails the test when `deadline` passes without one.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, deadline: Duration, probe: impl FnMut() -> Option<T>) -> T {
    look_for(deadline, probe).unwrap_or_else(|| panic!("{what}: not within {deadline:?}"))
}

/// Asks `probe` until it has an answer or `deadline` passes.
pub(crate) fn look_for<T>(deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= until {
            return None;
        }
        thread::park_timeout(PAUSE);
    }
}

/// Waits until `condition` holds, and fails the test when `deadline` passes first.
#[track_caller]
pub(crate) fn eventually(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, deadline, || condition().then_some(()));
}

/// Fails the test unless `condition` holds now and at every look for as long as `span`.
#[track_caller]
pub(crate) fn stays(what: &str, span: Duration, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + span;
    while Instant::now() < until {
        assert!(condition(), "{what}: no longer");
        thread::park_timeout(PAUSE);
    }
}
