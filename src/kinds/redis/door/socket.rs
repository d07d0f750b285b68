//! A client's socket.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::net::local::LocalStream;

/// A client's socket.
pub(crate) enum Socket {
    Unix(LocalStream),
    Tcp(TcpStream),
    /// Nothing is read or sent any more.
    Closed,
}

impl Socket {
    /// The addresses that a TCP client connects from and to.
    pub(super) fn peer(&self) -> Option<(SocketAddr, SocketAddr)> {
        match self {
            Self::Unix(_) | Self::Closed => None,
            Self::Tcp(stream) => Some((stream.peer_addr().ok()?, stream.local_addr().ok()?)),
        }
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }

    /// Reads behind what is in `into`, as far as that has room.
    pub(super) fn poll_read_more(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Unix(stream) => pin!(stream.read_buf(into)).poll(cx),
            Self::Tcp(stream) => pin!(stream.read_buf(into)).poll(cx),
            Self::Closed => Poll::Ready(Ok(0)),
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Closed => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Whether the other end has closed its side, also if there is something to be read before that.
    pub(super) fn has_hung_up(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Unix(stream) => stream.has_hung_up(cx),
            Self::Tcp(stream) => {
                let ready = pin!(stream.ready(Interest::READABLE)).poll(cx);
                matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
            }
            Self::Closed => true,
        }
    }

    /// Closes it at once, also if its client lives on with what it has on the wire.
    pub(super) fn close(&mut self) {
        *self = Self::Closed;
    }

    /// What is not sent yet is dropped, and the other end is notified.
    pub(super) fn reset(&self) {
        if let Self::Tcp(stream) = self
            && let Err(error) = stream.set_zero_linger()
        {
            tracing::debug!(%error, "a connection cannot be reset");
        }
    }
}
