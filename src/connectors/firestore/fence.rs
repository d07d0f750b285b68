//! The fence: nothing enters a lane while an abandoned write could still land in it.
//!
//! A commit that was sent and not answered may lie in a dead network and reach the server after a newer
//! one was acknowledged; it would undo it. Firestore knows no way to kill it. But it bears its deadline,
//! and the server drops what arrives later: so its lanes are in doubt until that deadline and five seconds
//! more (the span that clocks and a slow commit may take), or until its answer comes after all.
//!
//! ```text
//!            sent                     nobody waits for it            its answer, or deadline + 5 s
//!   (none) ────────▶ under way ───────────────────────▶ in doubt ────────────────────────────▶ (none)
//!                        │ its answer                                                            ▲
//!                        └───────────────────────────────────────────────────────────────────────┘
//! ```
//! One fence stands for all connectors of a target within a process: a reload makes a new connector, and
//! what the old one sent is still under way. Of what an earlier *run* sent nothing is known here, so where
//! there may have been one nothing at all is written for the backend's `timeout` and 5 s after the start.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fusebox_state::Lanes;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// How long after its deadline a commit could still be applied.
pub(super) const MARGIN: Duration = Duration::from_secs(5);

static FENCES: LazyLock<Mutex<HashMap<String, Arc<Fence>>>> = LazyLock::new(Mutex::default);

/// See the [module](self).
pub(super) struct Fence {
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
    until: Instant,
    in_doubt: bool,
}

impl Fence {
    /// The fence of `target`. Where it is the first of this process it is quiet for that long.
    pub(super) fn of(target: &str, quiet: Option<Duration>) -> Arc<Self> {
        let mut fences = FENCES.lock();
        let fence = fences.entry(target.to_owned());
        Arc::clone(fence.or_insert_with(|| {
            Arc::new(Self {
                quiet_until: quiet.map(|quiet| Instant::now() + quiet),
                state: Mutex::default(),
                doubts: AtomicUsize::new(0),
                changed: Notify::new(),
            })
        }))
    }

    /// Waits until nothing old can land in `lanes`; false where that is not so before `deadline`.
    pub(super) async fn pass(&self, lanes: &Lanes, deadline: Instant) -> bool {
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

    /// Until when an old write could land in `lanes`, as far as is known now; `None` for not at all.
    pub(super) fn in_doubt_until(&self, lanes: &Lanes) -> Option<Instant> {
        let now = Instant::now();
        let quiet = self.quiet_until.filter(|until| *until > now);
        if self.doubts.load(Ordering::Acquire) == 0 {
            return quiet;
        }
        let mut state = self.state.lock();
        state.writes.retain(|_, entry| {
            let over = entry.in_doubt && entry.until <= now;
            if over {
                self.doubts.fetch_sub(1, Ordering::AcqRel);
            }
            !over
        });
        let entries = state.writes.values();
        let doubtful = entries.filter(|entry| entry.in_doubt && meet(&entry.lanes, lanes));
        doubtful.map(|entry| entry.until).chain(quiet).max()
    }

    /// A write to `lanes` goes out whose deadline at the server is `deadline`.
    pub(super) fn enter(self: &Arc<Self>, lanes: Lanes, deadline: Instant) -> (Wait, Pass) {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        state.writes.insert(id, Entry { lanes, until: deadline + MARGIN, in_doubt: false });
        (
            Wait { fence: Arc::clone(self), id },
            Pass { fence: Arc::clone(self), id, answered: false },
        )
    }

    fn doubt(&self, id: u64) {
        if let Some(entry) = self.state.lock().writes.get_mut(&id)
            && !entry.in_doubt
        {
            entry.in_doubt = true;
            self.doubts.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn answered(&self, id: u64) {
        if self.state.lock().writes.remove(&id).is_some_and(|entry| entry.in_doubt) {
            self.doubts.fetch_sub(1, Ordering::AcqRel);
        }
        self.changed.notify_waiters();
    }
}

fn meet(one: &Lanes, other: &Lanes) -> bool {
    one.is_all()
        || other.is_all()
        || one.as_slice().iter().any(|lane| other.as_slice().contains(lane))
}

/// Somebody waits for a write's answer. Dropped before the write has ended, the write is abandoned.
pub(super) struct Wait {
    fence: Arc<Fence>,
    id: u64,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.fence.doubt(self.id);
    }
}

/// A write on its way. Dropped without an answer, it could still land.
pub(super) struct Pass {
    fence: Arc<Fence>,
    id: u64,
    answered: bool,
}

impl Pass {
    /// It has been applied or it has not: it will not land any more.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.answered {
            self.fence.answered(self.id);
        } else {
            self.fence.doubt(self.id);
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

    /// A deadline whose margin ends in so many milliseconds: the tests run on the real clock.
    fn lands_within(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis) - MARGIN
    }

    fn soon(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[tokio::test]
    async fn a_write_that_nobody_waits_for_holds_its_lanes_until_it_cannot_land() {
        let fence = Fence::of("abandoned", None);
        let start = Instant::now();
        let (wait, pass) = fence.enter(lanes(&[1]), lands_within(300));
        assert!(fence.pass(&lanes(&[1]), soon(0)).await, "it is under way and waited for");
        drop(wait);
        assert!(!fence.pass(&lanes(&[1, 2]), soon(20)).await);
        assert!(fence.pass(&lanes(&[2]), soon(0)).await, "other lanes are free");
        drop(pass);
        assert!(fence.pass(&lanes(&[1]), soon(10_000)).await);
        let took = start.elapsed();
        assert!((300..5_000).contains(&took.as_millis()), "its deadline and the margin: {took:?}");
    }

    #[tokio::test]
    async fn a_late_answer_frees_the_lanes() {
        let fence = Fence::of("late", None);
        let (wait, pass) = fence.enter(lanes(&[1]), soon(60_000));
        drop(wait);
        let waiter = tokio::spawn({
            let fence = Arc::clone(&fence);
            async move { fence.pass(&lanes(&[1]), soon(30_000)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        pass.answered();
        assert!(waiter.await.unwrap());
        let (wait, pass) = fence.enter(Lanes::All, soon(60_000));
        pass.answered();
        drop(wait);
        assert!(fence.in_doubt_until(&lanes(&[1])).is_none(), "an answer in time leaves no doubt");
    }

    #[tokio::test]
    async fn after_a_start_it_is_quiet_once() {
        let start = Instant::now();
        let quiet = Duration::from_millis(200);
        let fence = Fence::of("quiet", Some(quiet));
        assert!(!fence.pass(&lanes(&[1]), soon(20)).await);
        assert!(fence.pass(&lanes(&[1]), soon(10_000)).await);
        assert!(start.elapsed() >= quiet);
        let again = Fence::of("quiet", Some(quiet * 1_000));
        assert!(again.pass(&lanes(&[1]), soon(0)).await, "a reload does not begin it anew");
    }
}
