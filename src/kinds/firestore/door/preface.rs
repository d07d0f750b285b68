//! What a client speaks, by the first bytes that it sends, and the socket that gives them again.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::core::Core;
use crate::ingress::door::DoorStream;

/// What a client of HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's socket, whose bytes are counted.
pub(super) struct Socket {
    stream: DoorStream,
    core: Arc<Core>,
    /// What was read already.
    begun: Vec<u8>,
    /// How much of that was given.
    given: usize,
}

impl Socket {
    pub(super) fn new(stream: DoorStream, core: Arc<Core>) -> Self {
        Self { stream, core, begun: Vec::new(), given: 0 }
    }

    /// Whether the client speaks HTTP/2; `None` if it left before that was known.
    pub(super) async fn is_http2(&mut self) -> io::Result<Option<bool>> {
        let mut begun = Vec::with_capacity(PREFACE.len());
        while PREFACE.starts_with(&begun) && begun.len() < PREFACE.len() {
            let mut piece = [0; PREFACE.len()];
            let most = PREFACE.len() - begun.len();
            let read = self.read(piece.get_mut(..most).unwrap_or_default()).await?;
            if read == 0 {
                return Ok(None);
            }
            begun.extend(piece.iter().take(read));
        }
        let is_http2 = begun == PREFACE;
        self.begun = begun;
        Ok(Some(is_http2))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = this.begun.get(this.given..).unwrap_or_default();
        if !left.is_empty() {
            let (now, _) = left.split_at(left.len().min(buffer.remaining()));
            buffer.put_slice(now);
            this.given += now.len();
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(match &mut this.stream {
            DoorStream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            DoorStream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
        })?;
        this.core.counters.read(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(match &mut this.stream {
            DoorStream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            DoorStream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        })?;
        this.core.counters.written(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            DoorStream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            DoorStream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            DoorStream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            DoorStream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
