//! Opens sockets for the HTTP client.
//!
//! Whatever ends a connection resets it (linger 0): what the server has not been sent by then dies with it,
//! so that an abandoned write does not leave for it later. That is half of the [fence](super::fence).

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
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::settings::ClickHouseSettings;
use crate::connectors::tls::{self, TlsError};

/// The longest that connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A connected socket of any kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// Nobody answers there.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error),
    /// Somebody answers, whom TLS does not let pass.
    #[error("TLS with {0} failed: {1}")]
    Tls(String, String),
}

/// Connects to one server.
pub(super) struct Dialer {
    settings: Arc<ClickHouseSettings>,
    open: Arc<AtomicUsize>,
}

impl Dialer {
    /// Connects when it is asked to.
    pub(super) fn new(settings: Arc<ClickHouseSettings>) -> Self {
        Self { settings, open: Arc::default() }
    }

    /// Its connections that are open.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connects.
    pub(super) async fn dial(&self) -> Result<Socket, DialError> {
        let url = &self.settings.url;
        let failed = |error| DialError::Connect(url.to_string(), error);
        let limit = CONNECT_MAX.min(self.settings.timeout / 2);
        let connected = async {
            let stream = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            stream.set_zero_linger().map_err(failed)?;
            if !url.tls {
                return Ok(Box::new(stream) as Box<dyn Stream>);
            }
            let ca_file = self.settings.ca_file.as_deref();
            match tls::secured(stream, &url.host, ca_file, &[]).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Stream>),
                Err(TlsError::Tls(why)) => Err(DialError::Tls(url.to_string(), why)),
                Err(TlsError::Io(error)) => Err(failed(error)),
            }
        };
        let overdue =
            |_| failed(io::Error::new(io::ErrorKind::TimedOut, format!("not within {limit:?}")));
        let stream = tokio::time::timeout(limit, connected).await.map_err(overdue)??;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Socket { stream: TokioIo::new(stream), open: Arc::clone(&self.open) })
    }
}

/// A connection, counted for as long as it is open.
pub(super) struct Socket {
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
