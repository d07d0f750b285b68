//! Opens sockets for the HTTP client.
//!
//! Whatever ends a connection resets it (linger 0): what the server has not been sent by then dies with it,
//! so that an abandoned write does not leave for it later. That is half of a fence.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use hyper::rt;
use hyper_util::rt::TokioIo;

use super::{
    dial::{Dial, Stream},
    endpoint::Server,
};

pub(crate) use super::dial::DialError;

/// Connects to one server.
pub(crate) struct Dialer {
    server: Server,
    open: Arc<AtomicUsize>,
}

impl Dialer {
    /// Connects when it is asked to.
    pub(crate) fn new(server: Server) -> Self {
        Self { server, open: Arc::default() }
    }

    /// Its connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connects.
    pub(crate) async fn dial(&self) -> Result<Socket, DialError> {
        let Server { address, host, port, tls, ca_file, connect_time } = &self.server;
        let dial = Dial {
            address: address.clone(),
            host,
            port: *port,
            tls: *tls,
            ca_file: ca_file.as_deref(),
            protocols: &[],
            resets: true,
        };
        let overdue = |_| {
            let why = format!("not within {connect_time:?}");
            DialError::connect(address.clone(), io::Error::new(io::ErrorKind::TimedOut, why))
        };
        let stream =
            tokio::time::timeout(*connect_time, dial.connect()).await.map_err(overdue)??;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Socket { stream: TokioIo::new(stream), open: Arc::clone(&self.open) })
    }
}

/// A connection, counted for as long as it is open.
pub(crate) struct Socket {
    stream: TokioIo<Box<dyn Stream>>,
    open: Arc<AtomicUsize>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl rt::Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
