//! TLS over a connected socket.

use std::{io, path::Path, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, CertificateError, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// TLS itself does not let the peer pass.
    #[error("{0}")]
    Tls(String),
    /// The connection under it broke.
    #[error(transparent)]
    Io(io::Error),
}

/// Speaks TLS with `host` over `stream`, and in it one of the `protocols` if any are named. Trusted are
/// the system's authorities or, if there is one, those of `ca_file` in their place. They are read again at
/// each connect: authorities are exchanged too, and connects are rare.
pub(crate) async fn secured(
    stream: TcpStream,
    host: &str,
    ca_file: Option<&Path>,
    protocols: &'static [&'static str],
) -> Result<TlsStream<TcpStream>, TlsError> {
    let ca_file = ca_file.map(Path::to_owned);
    let config = tokio::task::spawn_blocking(move || config(ca_file.as_deref(), protocols))
        .await
        .map_err(|error| TlsError::Tls(error.to_string()))?
        .map_err(TlsError::Tls)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| TlsError::Tls(format!("a certificate cannot have the name {host:?}")))?;
    let stream = match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => stream,
        Err(error) => {
            let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            return Err(match tls {
                Some(tls) => TlsError::Tls(why(tls, host)),
                None => TlsError::Io(error),
            });
        }
    };
    let spoken = stream.get_ref().1.alpn_protocol();
    if !protocols.is_empty() && spoken.is_none() {
        let message = format!("the server does not speak {}", protocols.join(" or "));
        return Err(TlsError::Tls(message));
    }
    Ok(stream)
}

/// What is wrong, in words for who has to put it right.
fn why(error: &rustls::Error, host: &str) -> String {
    let rustls::Error::InvalidCertificate(error) = error else { return error.to_string() };
    match error {
        // The second: an authority with the name of one that is trusted, but is not the same.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is from an authority that fusebox does not trust (see tls.ca_file)"
                .into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet".into()
        }
        CertificateError::NotValidForName => format!("its certificate is not for {host}"),
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!("its certificate is not for {host} but for {}", presented.join(", "))
        }
        other => format!("its certificate is not valid: {other}"),
    }
}

/// A client's side of TLS that trusts the authorities of `ca_file`, or else the system's, and speaks one of
/// `protocols`. Reads files: blocks.
///
/// # Errors
/// What is wrong with `ca_file`.
pub(crate) fn config(ca_file: Option<&Path>, protocols: &[&str]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = ca_file {
        let unusable =
            |error: &dyn std::fmt::Display| format!("tls.ca_file {}: {error}", file.display());
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| unusable(&error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| unusable(&error))?;
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
        if roots.is_empty() {
            return Err(unusable(&"there is no certificate in it"));
        }
    } else {
        // What cannot be read of the system's store is passed over: a missing root refuses, never admits.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(config)
}
