//! Queued calls that replay has taken out to be sent, and how that ended.

use std::sync::Arc;

use fusebox_state::{queue::Entry, store::StoreError};

use crate::{connector::Attempted, queue::Queue};

/// A call that was taken to be sent.
pub(super) struct Job {
    pub(super) taken: Taken,
    /// The call as it was when it was taken.
    pub(super) entry: Entry,
    /// Calls of its lane in whose place it is sent, oldest first.
    pub(super) overtaken: Vec<Taken>,
    /// It is sent with the others as one.
    pub(super) is_group: bool,
}

impl Job {
    /// The call that is first in its line: the oldest of those in whose place it is sent.
    pub(super) fn head(&self) -> u64 {
        self.overtaken.first().map_or(self.taken.seq, |taken| taken.seq)
    }

    /// It is known what becomes of all that was taken for it.
    pub(super) fn settled(&mut self) {
        self.overtaken.iter_mut().for_each(|taken| taken.settled = true);
        self.taken.settled = true;
    }

    /// All that was taken for it.
    pub(super) fn seqs(&self) -> impl Iterator<Item = u64> {
        self.overtaken.iter().chain([&self.taken]).map(|taken| taken.seq)
    }
}

/// A call that was taken to be sent. It goes back to wait if nobody hears how its attempt ended:
/// the attempt or its task panicked, or recovery was stopped.
pub(super) struct Taken {
    pub(super) queue: Arc<Queue>,
    pub(super) seq: u64,
    pub(super) settled: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.settled {
            self.queue.index().put_back(self.seq);
            self.queue.work.notify_one();
        }
    }
}

/// A queued call that was sent, alone or with others, and how that ended.
pub(super) struct Ended {
    pub(super) job: Job,
    pub(super) result: Result<Attempted, NotSent>,
}

impl Job {
    pub(super) fn ends(self, result: Result<Attempted, NotSent>) -> Ended {
        Ended { job: self, result }
    }
}

/// Why a call did not go on the wire.
#[derive(Clone)]
pub(super) enum NotSent {
    /// No permit or place: it is as if it had not been taken.
    Barred,
    /// The store could not read it or note that it is sent.
    Store(StoreError),
    /// Why it is unknown whether it was applied.
    Ambiguous(&'static str),
}
