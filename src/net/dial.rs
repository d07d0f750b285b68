//! A connected socket, plain or under TLS.

use std::{io, path::Path};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::tls::{self, TlsError};

/// A connected socket of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody answers there.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error),
    /// Somebody answers, whom TLS does not let pass.
    #[error("TLS with {0} failed: {1}")]
    Tls(String, String),
}

/// What a connection is to be.
pub(crate) struct Dial<'a> {
    /// The server for people.
    pub(crate) address: String,
    /// Its host, which a certificate must be for.
    pub(crate) host: &'a str,
    /// Its port.
    pub(crate) port: u16,
    /// Whether it speaks TLS.
    pub(crate) tls: bool,
    /// Authorities in place of the system's.
    pub(crate) ca_file: Option<&'a Path>,
    /// What is to be spoken over TLS; empty for whatever the server speaks.
    pub(crate) protocols: &'static [&'static str],
    /// Whether closing it resets it, so that nothing that was written lands later.
    pub(crate) resets: bool,
}

impl Dial<'_> {
    /// Connects.
    pub(crate) async fn connect(self) -> Result<Box<dyn Stream>, DialError> {
        let Self { address, host, port, tls, ca_file, protocols, resets } = self;
        let failed = |error| DialError::Connect(address.clone(), error);
        let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        if resets {
            stream.set_zero_linger().map_err(failed)?;
        }
        if !tls {
            return Ok(Box::new(stream));
        }
        match tls::secured(stream, host, ca_file, protocols).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(TlsError::Tls(why)) => Err(DialError::Tls(address, why)),
            Err(TlsError::Io(error)) => Err(failed(error)),
        }
    }
}
