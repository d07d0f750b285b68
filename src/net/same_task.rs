//! Futures within a task that wake one another, polled again in the same task.
//!
//! A part of a task that wakes that task while it is being polled (hyper does so whenever a body is read)
//! sends it to the end of its worker's queue, and the runtime wakes another worker for it: some 50 µs. Here
//! such a part is polled again at once.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// How often what was woken is polled again before the task is woken instead, so that others get on too.
const TURNS_MAX: usize = 8;

/// Polls parts of one task. See the [module](self).
pub(crate) struct Attendant {
    bell: Arc<Bell>,
    waker: Waker,
}

impl Default for Attendant {
    fn default() -> Self {
        let bell = Arc::new(Bell::default());
        Self { waker: Waker::from(Arc::clone(&bell)), bell }
    }
}

impl Attendant {
    /// Calls `poll` until it is ready or has woken nobody. Called within a task's poll, whose context is `cx`.
    pub(crate) fn turn<T>(
        &self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.bell.task.register(cx.waker());
        self.bell.attended.store(true, Ordering::SeqCst);
        let mut polled = Poll::Pending;
        for _ in 0..TURNS_MAX {
            self.bell.rung.store(false, Ordering::SeqCst);
            polled = poll(&mut Context::from_waker(&self.waker));
            if polled.is_ready() || !self.bell.rung.load(Ordering::SeqCst) {
                break;
            }
        }
        self.bell.attended.store(false, Ordering::SeqCst);
        if polled.is_pending() && self.bell.rung.load(Ordering::SeqCst) {
            cx.waker().wake_by_ref();
        }
        polled
    }
}

/// The same as `future`, all of whose parts are attended to together.
pub(crate) async fn attended<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let attendant = Attendant::default();
    poll_fn(|cx| attendant.turn(cx, |cx| future.as_mut().poll(cx))).await
}

/// Wakes a task, unless that is attending to it anyway.
#[derive(Default)]
struct Bell {
    task: AtomicWaker,
    attended: AtomicBool,
    rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order, and the other one in `turn`: one of both sides sees what the other did.
        self.rung.store(true, Ordering::SeqCst);
        if !self.attended.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Polls once what wakes itself so often and is ready then. Returns whether it was, how often it was
    /// polled and how often its task was woken.
    fn polled(restless: usize) -> (bool, usize, usize) {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut polls = 0;
        let future = attended(poll_fn(|cx| {
            polls += 1;
            if polls > restless {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        let polled: Poll<()> = pin!(future).poll(&mut Context::from_waker(&waker));
        (polled.is_ready(), polls, woken.0.load(Ordering::SeqCst))
    }

    #[test]
    fn what_wakes_itself_is_polled_again_and_its_task_is_not_woken() {
        assert_eq!(polled(3), (true, 4, 0));
    }

    #[test]
    fn what_never_rests_lets_others_get_on() {
        assert_eq!(polled(usize::MAX), (false, TURNS_MAX, 1));
    }

    #[tokio::test]
    async fn what_is_woken_from_elsewhere_wakes_its_task() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(attended(receiver));
        tokio::task::yield_now().await;
        sender.send(7).unwrap();
        assert_eq!(task.await.unwrap(), Ok(7));
    }
}
