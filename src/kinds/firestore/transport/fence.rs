//! The fence: nothing enters a lane while an abandoned write could still land in it.
//!
//! A commit that was sent and not answered may be in a dead network and reach the server after a newer
//! one was acknowledged; it would undo it. Firestore knows no way to kill it. But its connection can be
//! reset, so that what has not left this host, or is on the way in something that heeds the reset, never
//! arrives. What did arrive has its deadline, which the server counts from the arrival. So an abandoned
//! commit's lanes are in doubt until its connection is closed, and for the deadline and five seconds more
//! (the span that clocks and a slow commit may take) after that; or until its answer comes after all.
//!
//! ```text
//!            sent                  nobody waits for it            not answered in time: the
//!   (none) ───────▶ under way ──────────────────────▶ in doubt ───connection is closed──▶ in doubt, with an end
//!                     │ its answer          its answer │                                      │ deadline + 5 s
//!                     └───────────▶ (none) ◀───────────┴──────────────────────────────────────┘
//! ```
//! **A stream that writes** (`Write`) enters with each of its messages, as if it were a call. It has no deadline at the
//! server, and neither has a call whose answer may be more than one message.
//!
//! **Who resets:** the task that carries the commit, when the backend's `timeout` has passed, never when a
//! caller leaves ([`Carrier::reset`](crate::net::grpc::Carrier::reset)); it drops its [`Pass`] once the socket is
//! closed. If no connection took the commit, nothing was sent, and it counts as answered; at once if its caller leaves
//! before that ([`Wait::unsent`]). A commit that an error left unknown (the connection broke, a proxy gave up) ends in
//! the same way, without another reset.
//!
//! **What remains:** something between that takes a connection's bytes, outlives its reset and delivers them
//! later than `timeout` and 5 s. A call that is not absolute is safe even then, by its marker.
//!
//! **Who waits for it:** an attempt, for its whole time or as long as its patience with the fence lasts; and if that
//! is less, not at all if it is known not to suffice. So a write that may be queued is queued at once, its caller
//! answered, and the queue waits instead.
//!
//! There is one fence for all connectors of a target within a process: a reload makes a new connector, and
//! what the old one sent is still under way. Of what an earlier *run* sent nothing is known here, so if
//! there may have been one nothing at all is written for the backend's `timeout` and 5 s after the start: the
//! end of that process closed its connections in the same way.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fusebox_state::{Lanes, Target};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// How long after its deadline a commit could still be applied.
pub(crate) const MARGIN: Duration = Duration::from_secs(5);

static FENCES: LazyLock<Mutex<HashMap<Target, Arc<Fence>>>> = LazyLock::new(Mutex::default);

/// See the [module](self).
pub(crate) struct Fence {
    /// Nothing is written before this.
    quiet_until: Option<Instant>,
    state: Mutex<State>,
    /// How many are in doubt: none, as a rule, and then no lane is looked at.
    doubts: AtomicUsize,
    changed: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    writes: HashMap<u64, Entry>,
}

struct Entry {
    lanes: Lanes,
    /// How many [`Wait`]s there are.
    waits: usize,
    in_doubt: bool,
    /// When it can no longer land; `None` while its connection may still carry it.
    until: Option<Instant>,
}

impl Fence {
    /// The fence of `target`. If it is the first of this process it is quiet for that long.
    pub(crate) fn of(target: &Target, quiet: Option<Duration>) -> Arc<Self> {
        let mut fences = FENCES.lock();
        let fence = fences.entry(target.clone());
        Arc::clone(fence.or_insert_with(|| {
            Arc::new(Self {
                quiet_until: quiet.map(|quiet| Instant::now() + quiet),
                state: Mutex::default(),
                doubts: AtomicUsize::new(0),
                changed: Notify::new(),
            })
        }))
    }

    /// Waits until nothing old can land in `lanes`; false if that is not so before `deadline`.
    pub(crate) async fn pass(&self, lanes: &Lanes, deadline: Instant) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let Some(until) = self.in_doubt_until(lanes) else { return true };
            let wake = until.min(deadline);
            if timeout_at(wake, changed).await.is_err() && Instant::now() >= deadline {
                return self.in_doubt_until(lanes).is_none();
            }
        }
    }

    /// Until when at least an old write could land in `lanes`; `None` for not at all.
    pub(crate) fn in_doubt_until(&self, lanes: &Lanes) -> Option<Instant> {
        let now = Instant::now();
        let quiet = self.quiet_until.filter(|until| *until > now);
        if self.doubts.load(Ordering::Acquire) == 0 {
            return quiet;
        }
        let mut state = self.state.lock();
        state.writes.retain(|_, entry| {
            let over = entry.in_doubt && entry.until.is_some_and(|until| until <= now);
            if over {
                self.doubts.fetch_sub(1, Ordering::AcqRel);
            }
            !over
        });
        let entries = state.writes.values();
        let doubtful = entries.filter(|entry| entry.in_doubt && entry.lanes.meets(lanes));
        let until = |entry: &Entry| entry.until.unwrap_or(now + MARGIN);
        doubtful.map(until).chain(quiet).max()
    }

    /// A write to `lanes` goes out, which the server drops `limit` after it arrived.
    pub(crate) fn enter(self: &Arc<Self>, lanes: Lanes, limit: Duration) -> (Wait, Pass) {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        state.writes.insert(id, Entry { lanes, waits: 1, in_doubt: false, until: None });
        let pass = Pass { fence: Arc::clone(self), id, limit, answered: false };
        (Wait { fence: Arc::clone(self), id }, pass)
    }

    /// One more waits for it.
    fn waits(self: &Arc<Self>, id: u64) -> Wait {
        if let Some(entry) = self.state.lock().writes.get_mut(&id) {
            entry.waits += 1;
        }
        Wait { fence: Arc::clone(self), id }
    }

    /// One waits for it no more.
    fn leaves(&self, id: u64) {
        let mut state = self.state.lock();
        let Some(entry) = state.writes.get_mut(&id) else { return };
        entry.waits = entry.waits.saturating_sub(1);
        let is_left = entry.waits == 0;
        drop(state);
        if is_left {
            self.doubt(id, None);
        }
    }

    /// Nobody waits for it any more; or, with `until`, it has ended.
    fn doubt(&self, id: u64, until: Option<Instant>) {
        if let Some(entry) = self.state.lock().writes.get_mut(&id) {
            entry.until = until.or(entry.until);
            if !entry.in_doubt {
                entry.in_doubt = true;
                self.doubts.fetch_add(1, Ordering::AcqRel);
            }
        }
        self.changed.notify_waiters();
    }

    fn answered(&self, id: u64) {
        let gone = self.state.lock().writes.remove(&id);
        if gone.is_some_and(|entry| entry.in_doubt) {
            self.doubts.fetch_sub(1, Ordering::AcqRel);
        }
        self.changed.notify_waiters();
    }
}

/// Somebody waits for a write's answer. If all are dropped before the write has ended, the write is abandoned.
pub(crate) struct Wait {
    fence: Arc<Fence>,
    id: u64,
}

impl Wait {
    /// Nothing of the write was sent, and nothing will be: it cannot land.
    pub(crate) fn unsent(self) {
        self.fence.answered(self.id);
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.fence.leaves(self.id);
    }
}

/// A write on its way. Dropped without an answer, it could still land: until then no longer than `limit` and
/// [`MARGIN`]. Whoever drops it so has closed its connection.
pub(crate) struct Pass {
    fence: Arc<Fence>,
    id: u64,
    limit: Duration,
    answered: bool,
}

impl Pass {
    /// Somebody else waits for it, too.
    pub(crate) fn wait(&self) -> Wait {
        self.fence.waits(self.id)
    }

    /// It has been applied or it has not: it will not land any more.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.answered {
            self.fence.answered(self.id);
        } else {
            self.fence.doubt(self.id, Some(Instant::now() + self.limit + MARGIN));
        }
    }
}

#[cfg(test)]
mod tests {
    use fusebox_state::LaneId;

    use super::*;

    fn lanes(ids: &[u64]) -> Lanes {
        Lanes::new(ids.iter().map(|id| LaneId(*id)))
    }

    fn soon(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_begins_when_the_connection_is_closed() {
        let fence = Fence::of(&"abandoned".into(), None);
        let limit = Duration::from_secs(10);
        let (wait, pass) = fence.enter(lanes(&[1]), limit);
        assert!(fence.pass(&lanes(&[1]), soon(0)).await, "it is under way and waited for");
        let other = pass.wait();
        drop(wait);
        assert!(fence.pass(&lanes(&[1]), soon(0)).await, "somebody waits for it still");
        drop(other);
        assert!(!fence.pass(&lanes(&[1, 2]), soon(600_000)).await, "its connection may carry it");
        assert!(fence.pass(&lanes(&[2]), soon(0)).await, "other lanes are free");
        let closed = Instant::now();
        drop(pass);
        assert!(!fence.pass(&lanes(&[1]), soon(14_900)).await);
        assert!(fence.pass(&lanes(&[1]), soon(60_000)).await);
        assert_eq!(closed.elapsed().as_secs(), 15);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_learns_that_the_end_is_known() {
        let fence = Fence::of(&"learns".into(), None);
        let (wait, pass) = fence.enter(lanes(&[1]), Duration::from_secs(1));
        drop(wait);
        let waiter = {
            let fence = Arc::clone(&fence);
            tokio::spawn(async move { fence.pass(&lanes(&[1]), soon(600_000)).await })
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        let closed = Instant::now();
        drop(pass);
        assert!(waiter.await.unwrap());
        assert_eq!(closed.elapsed().as_secs(), 6);
    }

    #[tokio::test]
    async fn a_late_answer_frees_the_lanes() {
        let fence = Fence::of(&"late".into(), None);
        let limit = Duration::from_secs(60);
        let (wait, pass) = fence.enter(lanes(&[1]), limit);
        drop(wait);
        let waiter = tokio::spawn({
            let fence = Arc::clone(&fence);
            async move { fence.pass(&lanes(&[1]), soon(30_000)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        pass.answered();
        assert!(waiter.await.unwrap());
        let (wait, pass) = fence.enter(Lanes::All, limit);
        pass.answered();
        drop(wait);
        assert!(fence.in_doubt_until(&lanes(&[1])).is_none(), "an answer in time leaves no doubt");
    }

    #[tokio::test]
    async fn what_was_never_sent_holds_up_nobody() {
        let fence = Fence::of(&"unsent".into(), None);
        let (wait, pass) = fence.enter(lanes(&[1]), Duration::from_secs(60));
        wait.unsent();
        assert!(fence.in_doubt_until(&lanes(&[1])).is_none(), "its connection is still dialled");
        drop(pass);
        assert!(fence.in_doubt_until(&lanes(&[1])).is_none());
    }

    #[tokio::test]
    async fn after_a_start_it_is_quiet_once() {
        let start = Instant::now();
        let quiet = Duration::from_millis(200);
        let fence = Fence::of(&"quiet".into(), Some(quiet));
        assert!(!fence.pass(&lanes(&[1]), soon(20)).await);
        assert!(fence.pass(&lanes(&[1]), soon(10_000)).await);
        assert!(start.elapsed() >= quiet);
        let again = Fence::of(&"quiet".into(), Some(quiet * 1_000));
        assert!(again.pass(&lanes(&[1]), soon(0)).await, "a reload does not begin it anew");
    }
}
