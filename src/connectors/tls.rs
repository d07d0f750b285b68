//! TLS over a connected socket.

use std::{io, path::Path, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// TLS itself does not let the peer pass.
    #[error("{0}")]
    Tls(String),
    /// The connection under it broke.
    #[error(transparent)]
    Io(io::Error),
}

/// Speaks TLS with `host` over `stream`, trusting the system's authorities and those of `ca_file`. They
/// are read anew at each connect: authorities are exchanged too, and connects are rare.
pub(super) async fn secured(
    stream: TcpStream,
    host: &str,
    ca_file: Option<&Path>,
) -> Result<TlsStream<TcpStream>, TlsError> {
    let ca_file = ca_file.map(Path::to_owned);
    let config = tokio::task::spawn_blocking(move || config(ca_file.as_deref()))
        .await
        .map_err(|error| TlsError::Tls(error.to_string()))?
        .map_err(TlsError::Tls)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| TlsError::Tls(format!("{host:?} is no name that a certificate can bear")))?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok(stream),
        Err(error) if is_tls(&error) => Err(TlsError::Tls(error.to_string())),
        Err(error) => Err(TlsError::Io(error)),
    }
}

/// Whether it is TLS itself that failed, not the connection under it.
fn is_tls(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some()
}

/// A client's side of TLS that trusts the system's authorities and those of `ca_file`. Reads files: blocks.
///
/// # Errors
/// What is wrong with `ca_file`.
pub(crate) fn config(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
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
