//! Opens the socket: TCP, TLS or Unix.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use super::settings::{Endpoint, RedisSettings, TlsSettings};
use crate::connectors::tls::{self, TlsError};

/// A connected socket of any kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// Nobody answers there.
    #[error("cannot connect to {0}: {1}")]
    Connect(Endpoint, io::Error),
    /// Somebody answers, whom TLS does not let pass.
    #[error("TLS with {0} failed: {1}")]
    Tls(Endpoint, String),
}

/// Connects. Whatever ends a TCP connection resets it: what the peer has not been sent by then dies
/// with it, also where it is the daemon that dies.
pub(super) async fn open(settings: &RedisSettings) -> Result<Box<dyn Stream>, OpenError> {
    let failed = |error| OpenError::Connect(settings.endpoint.clone(), error);
    let (host, port) = match &settings.endpoint {
        Endpoint::Unix(path) => {
            return Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?));
        }
        Endpoint::Tcp { host, port } => (host, *port),
    };
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    stream.set_zero_linger().map_err(failed)?;
    match &settings.tls {
        None => Ok(Box::new(stream)),
        Some(tls) => Ok(Box::new(secured(stream, host, settings, tls).await?)),
    }
}

async fn secured(
    stream: TcpStream,
    host: &str,
    settings: &RedisSettings,
    tls: &TlsSettings,
) -> Result<TlsStream<TcpStream>, OpenError> {
    tls::secured(stream, host, tls.ca_file.as_deref(), &[]).await.map_err(|error| match error {
        TlsError::Tls(why) => OpenError::Tls(settings.endpoint.clone(), why),
        TlsError::Io(error) => OpenError::Connect(settings.endpoint.clone(), error),
    })
}
