//! Opens sockets for the gRPC channel, which makes a new one when the last broke.

use std::io;

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::settings::FirestoreSettings;
use crate::connectors::tls::{self, TlsError};

/// What gRPC is spoken in.
const HTTP2: &[&str] = &["h2"];

/// A connected socket of any kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

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

/// Connects to the server of `settings`.
pub(super) async fn dial(
    settings: FirestoreSettings,
) -> Result<TokioIo<Box<dyn Stream>>, DialError> {
    let FirestoreSettings { url, ca_file, .. } = settings;
    let failed = |error| DialError::Connect(url.authority(), error);
    let stream = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    if !url.tls {
        return Ok(TokioIo::new(Box::new(stream)));
    }
    match tls::secured(stream, &url.host, ca_file.as_deref(), HTTP2).await {
        Ok(stream) => Ok(TokioIo::new(Box::new(stream))),
        Err(TlsError::Tls(why)) => Err(DialError::Tls(url.authority(), why)),
        Err(TlsError::Io(error)) => Err(failed(error)),
    }
}
