//! When what was written has left.
//!
//! Hyper throws away what it has not written yet as soon as a body fails. The last bytes before an answer broke off are
//! those that say why, so a body that is about to fail waits until they have left.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::Notify;

/// Counts how often a connection has written all that it had; shared with the bodies of its answers.
#[derive(Clone, Default)]
pub(super) struct Flushes(Arc<Counted>);

#[derive(Default)]
struct Counted {
    count: AtomicU64,
    another: Notify,
}

impl Flushes {
    /// All that was to be written has left.
    pub(super) fn flushed(&self) {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        self.0.another.notify_waiters();
    }

    /// Resolves once all has left that was to be written when it was called. A connection that never gets there ends by
    /// its own time.
    pub(super) async fn next(&self) {
        let before = self.0.count.load(Ordering::Acquire);
        loop {
            let another = self.0.another.notified();
            if self.0.count.load(Ordering::Acquire) > before {
                return;
            }
            another.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_waits_hears_of_the_next_flush_and_of_none_before() {
        let flushes = Flushes::default();
        flushes.flushed();
        let mut next = Box::pin(flushes.next());
        assert!(next.as_mut().now_or_never().is_none());
        flushes.flushed();
        next.await;
    }
}
