//! A stream that does not let its peer dawdle: a request's head must arrive within five seconds of its
//! first byte, and what is written must be taken within ten.
//!
//! hyper's own timer runs from the end of the last request, so it bounds how long a connection may be
//! idle; one value cannot bound both.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// From the first byte of a request to the end of its head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long a peer may leave unread what is written.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// Whether a request is being worked on; shared between a stream and its service.
#[derive(Clone, Default)]
pub(crate) struct Pace(Arc<AtomicU32>);

/// While this is there, a request is being worked on, or what is left of one is being read.
pub(crate) struct Busy(Pace);

impl Pace {
    /// A head has arrived: what is read from now on is no other one.
    pub(crate) fn busy(&self) -> Busy {
        self.0.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    fn is_busy(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The stream.
pub(crate) struct Paced<S> {
    inner: S,
    pace: Pace,
    head: Option<Pin<Box<Sleep>>>,
    write: Option<Pin<Box<Sleep>>>,
    write_time: Duration,
}

impl<S> Paced<S> {
    /// Paces `inner`.
    pub(crate) fn new(inner: S, pace: Pace) -> Self {
        Self { inner, pace, head: None, write: None, write_time: WRITE_TIME }
    }

    /// The same for a peer that may leave unread what is written for so long.
    pub(crate) fn patient(inner: S, pace: Pace, write_time: Duration) -> Self {
        Self { write_time, ..Self::new(inner, pace) }
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what.to_owned())
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.pace.is_busy() {
            self.head = None;
            return read;
        }
        if read.is_ready() && buf.filled().len() > before && self.head.is_none() {
            self.head = Some(Box::pin(sleep(HEAD_TIME)));
        }
        if let Some(head) = &mut self.head
            && head.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(late("the head of a request did not arrive in time")));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    /// Runs the write timer while `outcome` is pending.
    fn watch<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.write = None;
            return outcome;
        }
        let time = self.write_time;
        let timer = self.write.get_or_insert_with(|| Box::pin(sleep(time)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(late("the peer does not read what is written")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(outcome, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(outcome, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(outcome, cx)
    }
}
