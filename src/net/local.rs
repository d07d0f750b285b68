//! A Unix socket that is woken for what it waits for, and for nothing else.
//!
//! A runtime's own is registered for both directions for good. The kernel then tells it whenever the other end has read
//! something, for there is more room: whoever sleeps is woken for nothing, once for each reply, and the other end pays
//! for that. (TCP tells only who has found no room.) This one is registered for reading; while it waits for room, a
//! copy of its descriptor is registered for writing.
//!
//! ```text
//!             found no room
//!   Reading ─────────────────▶ Reading and writing
//!      ▲     all was written           │
//!      └───────────────────────────────┘
//! ```
//! The runtime registers the ends of pipes so, and asks nothing of them that a socket does not do.
//!
//! # Invariants
//! 1. Who writes asks for room only after the kernel has said that there is none.
//! 2. Whether it waits for room changes nothing for who reads.

use std::{
    io::{self, ErrorKind},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::unix::pipe::{Receiver, Sender},
};

/// See the [module](self).
pub(crate) struct LocalStream {
    reading: Receiver,
    /// A copy of it, while it waits for room.
    writing: Option<Sender>,
}

impl LocalStream {
    /// Registers a socket with the runtime at hand.
    ///
    /// # Errors
    /// The kernel's, if it cannot be registered.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let reading = Receiver::from_owned_fd_unchecked(OwnedFd::from(stream))?;
        Ok(Self { reading, writing: None })
    }

    /// Writes what there is room for.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] if there is no room; else the socket's own.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match SockRef::from(&self.reading).send(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    /// Whether the other end has closed its side, also if there is something to be read before that.
    pub(crate) fn has_hung_up(&self, cx: &mut Context<'_>) -> bool {
        let ready = pin!(self.reading.ready(Interest::READABLE)).poll(cx);
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reading).poll_read(cx, into)
    }
}

impl AsyncWrite for LocalStream {
    /// # Errors
    /// Also the kernel's, if there is no room and no descriptor to wait for it with.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(writing) = &mut self.writing {
                let written = ready!(Pin::new(writing).poll_write(cx, bytes));
                if matches!(written, Ok(count) if count == bytes.len()) {
                    self.writing = None;
                }
                return Poll::Ready(written);
            }
            match self.try_write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let copy = self.reading.as_fd().try_clone_to_owned()?;
                    self.writing = Some(Sender::from_owned_fd_unchecked(copy)?);
                }
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.reading).shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{Read, Write},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        thread,
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        runtime::Builder,
        task::yield_now,
        time::sleep,
    };

    use super::*;

    #[test]
    fn nobody_is_woken_because_the_other_end_reads() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&woken);
        let mut builder = Builder::new_current_thread();
        builder.on_thread_unpark(move || {
            counted.fetch_add(1, SeqCst);
        });
        let runtime = builder.enable_all().build().unwrap();
        let (one, mut other) = UnixStream::pair().unwrap();
        runtime.block_on(async {
            let mut stream = LocalStream::new(one).unwrap();
            let mut fewest = usize::MAX;
            for _ in 0..10 {
                stream.write_all(b"reply").await.unwrap();
                let mut clock = pin!(sleep(Duration::from_millis(3)));
                // It is set, and what has happened by now is heard.
                assert!(poll_fn(|cx| Poll::Ready(clock.as_mut().poll(cx))).await.is_pending());
                yield_now().await;
                let before = woken.load(SeqCst);
                other.read_exact(&mut [0; 5]).unwrap();
                clock.await;
                fewest = fewest.min(woken.load(SeqCst) - before);
            }
            assert!(fewest <= 1, "it is the clock alone that wakes it");
        });
    }

    #[tokio::test]
    async fn who_finds_no_room_goes_on_once_there_is_some_and_reads_meanwhile() {
        const LENGTH: usize = 4 << 20;
        let (one, mut other) = UnixStream::pair().unwrap();
        let (mut reading, mut writing) = tokio::io::split(LocalStream::new(one).unwrap());
        let (told, hears) = tokio::sync::oneshot::channel();
        let peer = thread::spawn(move || {
            other.write_all(b"go").unwrap();
            hears.blocking_recv().unwrap();
            let mut got = vec![0; LENGTH];
            other.read_exact(&mut got).unwrap();
            other.write_all(b"!").unwrap();
            got.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at % 251)
        });
        let sent: Vec<u8> = (0..LENGTH).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let writer = tokio::spawn(async move {
            // It is full soon: nobody reads.
            writing.write_all(&sent).await.unwrap();
            writing
        });
        let mut two = [0; 2];
        reading.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"go");
        told.send(()).unwrap();
        assert_eq!(reading.read_u8().await.unwrap(), b'!');
        let writing = writer.await.unwrap();
        assert!(peer.join().unwrap());
        let stream = reading.unsplit(writing);
        assert!(stream.writing.is_none(), "it does not wait for room any more");
    }
}
