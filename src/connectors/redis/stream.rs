//! Opens the socket: TCP, TLS or Unix.

use std::{io, path::Path, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::settings::{Endpoint, RedisSettings, TlsSettings};

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
        Some(tls) => secured(stream, host, settings, tls).await,
    }
}

async fn secured(
    stream: TcpStream,
    host: &str,
    settings: &RedisSettings,
    tls: &TlsSettings,
) -> Result<Box<dyn Stream>, OpenError> {
    let failed = |error: String| OpenError::Tls(settings.endpoint.clone(), error);
    let ca_file = tls.ca_file.clone();
    // Read anew at each connect: authorities are exchanged too, and connects are rare.
    let config = tokio::task::spawn_blocking(move || config(ca_file.as_deref()))
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(failed)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| failed(format!("{host:?} is no name that a certificate can bear")))?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) if is_tls(&error) => Err(failed(error.to_string())),
        Err(error) => Err(OpenError::Connect(settings.endpoint.clone(), error)),
    }
}

/// Whether it is TLS itself that failed, not the connection under it.
fn is_tls(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some()
}

fn config(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    // What cannot be read of the system's store is passed over: a missing root refuses, never admits.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        let unreadable = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let certificates =
            CertificateDer::pem_file_iter(file).map_err(|error| unreadable(&error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| unreadable(&error))?;
            roots.add(certificate).map_err(|error| unreadable(&error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
