//! The TCP listener: its address, who may see what goes over it, and by what token callers are known.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio_rustls::rustls::ServerConfig;

use super::{checker::Checker, raw::RawHttp};
use crate::net::{secret::Secret, tls_server::server_config};

/// The TCP listener.
#[derive(Clone, Debug)]
pub(crate) struct HttpSettings {
    /// Its address.
    pub(crate) listen: SocketAddr,
    /// The token that opens more than health, metrics and the status page there.
    pub(crate) token: Option<Secret>,
    /// Its side of TLS, if it speaks TLS.
    pub(crate) tls: Option<HttpTls>,
}

/// A server's side of TLS.
#[derive(Clone, Debug)]
pub(crate) struct HttpTls {
    /// Its certificates and their key, as they were when the configuration was read.
    pub(crate) config: Arc<ServerConfig>,
}

impl HttpSettings {
    /// Whether others can read what goes over it: it listens beyond loopback, without TLS.
    pub(crate) fn is_exposed(&self) -> bool {
        self.tls.is_none() && !self.listen.ip().to_canonical().is_loopback()
    }
}

pub(super) fn check(raw: RawHttp, checker: &mut Checker) -> Option<HttpSettings> {
    let listen = raw.listen?;
    let token = raw.token_file.as_deref().and_then(|path| {
        Secret::read(path, &mut checker.warnings)
            .map_err(|error| {
                checker.problem("http.token_file", format_args!("is not usable: {error}"));
            })
            .ok()
    });
    let wants_tls = raw.tls.cert_file.is_some() || raw.tls.key_file.is_some();
    let tls = check_tls(raw.tls.cert_file, raw.tls.key_file, checker);
    let Ok(listen) = listen.parse() else {
        let what = format!("must be an address such as 127.0.0.1:9180, got {listen:?}");
        checker.problem("http.listen", what);
        return None;
    };
    let settings = HttpSettings { listen, token, tls };
    if settings.is_exposed() && !raw.plaintext && !wants_tls {
        let what = format!(
            "must be a loopback address, got {listen}: for any other address, set http.tls.cert_file and \
             http.tls.key_file, or set http.plaintext = true, which disables the admin routes there"
        );
        checker.problem("http.listen", what);
    }
    Some(settings)
}

fn check_tls(
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    checker: &mut Checker,
) -> Option<HttpTls> {
    let (cert_file, key_file) = match (cert_file, key_file) {
        (None, None) => return None,
        (Some(cert_file), Some(key_file)) => (cert_file, key_file),
        (Some(_), None) => {
            checker.problem("http.tls.key_file", "must be set if http.tls.cert_file is");
            return None;
        }
        (None, Some(_)) => {
            checker.problem("http.tls.cert_file", "must be set if http.tls.key_file is");
            return None;
        }
    };
    match server_config(&cert_file, &key_file) {
        Ok(config) => Some(HttpTls { config }),
        Err(why) => {
            checker.problem("http.tls", format_args!("is not usable: {why}"));
            None
        }
    }
}
