//! Opens sockets for the HTTP client.
//!
//! Whatever ends a connection resets it (linger 0): what the server has not been sent by then dies with it,
//! so that an abandoned write does not leave for it later. That is half of the [fence](crate::kinds::clickhouse::transport::fence).

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt;
use hyper_util::rt::TokioIo;

use super::dial::{Dial, Stream};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

pub(crate) use super::dial::DialError;

/// The longest that connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Connects to one server.
pub(crate) struct Dialer {
    settings: Arc<ClickHouseSettings>,
    open: Arc<AtomicUsize>,
}

impl Dialer {
    /// Connects when it is asked to.
    pub(crate) fn new(settings: Arc<ClickHouseSettings>) -> Self {
        Self { settings, open: Arc::default() }
    }

    /// Its connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connects.
    pub(crate) async fn dial(&self) -> Result<Socket, DialError> {
        let url = &self.settings.url;
        let limit = CONNECT_MAX.min(self.settings.timeout / 2);
        let dial = Dial {
            address: url.to_string(),
            host: &url.host,
            port: url.port,
            tls: url.tls,
            ca_file: self.settings.ca_file.as_deref(),
            protocols: &[],
            resets: true,
        };
        let overdue = |_| {
            let late = io::Error::new(io::ErrorKind::TimedOut, format!("not within {limit:?}"));
            DialError::Connect(url.to_string(), late)
        };
        let stream = tokio::time::timeout(limit, dial.connect()).await.map_err(overdue)??;
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
