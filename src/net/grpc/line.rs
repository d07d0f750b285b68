//! One HTTP/2 connection of a [channel](super): who drives it, whether it says anything, and its end.
//!
//! ```text
//!  open ──▶ ended: the peer closed it · a ping went unanswered · it was reset
//! ```
//! **Silence.** A connection that carries requests is pinged every [`KEEP_ALIVE`]. If a request is given up
//! and nothing at all was read since it began, the connection is pinged at once; if that ping is not answered
//! within [`SUSPECT_ANSWER`], the connection ends and the next request dials again. Servers count pings
//! against abuse, so two such pings are at least [`SUSPECT_EVERY`] apart.
//!
//! **Reset.** [`Line::reset`] closes the socket and returns when it is closed. If the channel asked for
//! resets (linger 0), what was not sent yet is discarded, also by the kernel. Whatever else the connection
//! carried ends with it, and [`Line::was_reset`] says why.

use std::{
    future::pending,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, client::Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::net::dial::Stream;

/// A connection that carries requests is pinged so often.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// One whose ping is unanswered for so long is given up.
pub(super) const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(10);
/// The same for one on which a request was given up unheard.
pub(super) const SUSPECT_ANSWER: Duration = Duration::from_secs(1);
/// The least time between two pings of suspicion.
const SUSPECT_EVERY: Duration = Duration::from_secs(2);

/// See the [module](self). Clones are of the same connection.
#[derive(Clone)]
pub(super) struct Line(Arc<Inner>);

struct Inner {
    /// How many requests it carries.
    requests: AtomicUsize,
    /// How often something was read.
    heard: AtomicU64,
    suspected: Notify,
    reset_wanted: Notify,
    was_reset: AtomicBool,
    ended: watch::Sender<bool>,
}

impl Line {
    /// A connection that nobody drives yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            requests: AtomicUsize::new(0),
            heard: AtomicU64::new(0),
            suspected: Notify::new(),
            reset_wanted: Notify::new(),
            was_reset: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        }))
    }

    /// The socket, whose reads are counted.
    pub(super) fn listening(&self, stream: Box<dyn Stream>) -> Ear {
        Ear { stream, line: self.clone() }
    }

    /// Reads and writes until the connection ends, falls silent or is reset. It is closed afterwards, and
    /// whatever it carried has ended.
    pub(super) async fn drive(&self, mut connection: Connection<Ear, Bytes>) {
        // Also when the task is dropped: whoever waits for the end must not wait for ever.
        let _ended = Ended(self);
        let silence = self.silence(connection.ping_pong());
        tokio::select! {
            ended = &mut connection => if let Err(error) = ended {
                tracing::debug!(%error, "the connection to Firestore ended");
            },
            () = silence => tracing::debug!("the connection to Firestore is silent"),
            () = self.0.reset_wanted.notified() => tracing::debug!("the connection to Firestore is reset"),
        }
        drop(connection);
    }

    /// Closes the connection and returns once it is closed.
    pub(super) async fn reset(&self) {
        let mut ended = self.0.ended.subscribe();
        if !*ended.borrow() {
            self.0.was_reset.store(true, Ordering::Release);
            self.0.reset_wanted.notify_one();
        }
        // The sender is our own: it cannot be gone.
        drop(ended.wait_for(|ended| *ended).await);
    }

    /// Begins to close the connection.
    pub(super) fn begin_reset(&self) {
        self.0.was_reset.store(true, Ordering::Release);
        self.0.reset_wanted.notify_one();
    }

    /// Whether it was closed on this side, for the sake of one of its requests.
    pub(super) fn was_reset(&self) -> bool {
        self.0.was_reset.load(Ordering::Acquire)
    }

    /// Whether both are the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A request that it carries.
    pub(super) fn carried(&self) -> Carried {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        Carried(self.clone())
    }

    /// A request whose answer is waited for.
    pub(super) fn awaited(&self) -> Awaited {
        Awaited { line: self.clone(), heard: self.heard(), answered: false }
    }

    fn heard(&self) -> u64 {
        self.0.heard.load(Ordering::Relaxed)
    }

    /// Returns once a ping is not answered.
    async fn silence(&self, pings: Option<PingPong>) {
        let Some(mut pings) = pings else { return pending().await };
        loop {
            let suspected = timeout(KEEP_ALIVE, self.0.suspected.notified()).await.is_ok();
            if !suspected && self.0.requests.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut answer = pin!(pings.ping(Ping::opaque()));
            let patience = async {
                if !suspected {
                    let rest = KEEP_ALIVE_ANSWER.saturating_sub(SUSPECT_ANSWER);
                    drop(timeout(rest, self.0.suspected.notified()).await);
                }
                sleep(SUSPECT_ANSWER).await;
            };
            tokio::select! {
                answered = &mut answer => if answered.is_err() { return },
                () = patience => return,
            }
            if suspected {
                sleep(SUSPECT_EVERY).await;
            }
        }
    }
}

/// Tells when it is dropped that the connection has ended.
struct Ended<'a>(&'a Line);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.0.ended.send_replace(true);
    }
}

/// A request that its connection carries.
pub(super) struct Carried(Line);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Somebody waits for an answer. Dropped before it came, with nothing read meanwhile, it makes the
/// connection suspect.
pub(super) struct Awaited {
    line: Line,
    heard: u64,
    answered: bool,
}

impl Awaited {
    /// The answer is here.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if !self.answered && self.line.heard() == self.heard {
            self.line.0.suspected.notify_one();
        }
    }
}

/// A socket whose reads are counted.
pub(super) struct Ear {
    stream: Box<dyn Stream>,
    line: Line,
}

impl AsyncRead for Ear {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.line.0.heard.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Ear {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
