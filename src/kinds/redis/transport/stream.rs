//! Opens the socket: TCP, TLS or Unix.

use tokio::net::UnixStream;

use crate::{
    kinds::redis::settings::{Endpoint, RedisSettings},
    net::{
        dial::{Dial, DialError, Stream},
        local::LocalStream,
    },
};

/// Connects. Whatever ends a TCP connection resets it: what the peer has not been sent by then dies
/// with it, also if it is the daemon that dies.
pub(crate) async fn open(settings: &RedisSettings) -> Result<Box<dyn Stream>, DialError> {
    let address = settings.endpoint.to_string();
    match &settings.endpoint {
        Endpoint::Unix(path) => {
            let failed = |error| DialError::connect(address, error);
            let connected = UnixStream::connect(path).await.and_then(UnixStream::into_std);
            Ok(Box::new(connected.and_then(LocalStream::new).map_err(failed)?))
        }
        Endpoint::Tcp { host, port } => {
            let dial = Dial {
                address,
                host,
                port: *port,
                tls: settings.tls.is_some(),
                ca_file: settings.tls.as_ref().and_then(|tls| tls.ca_file.as_deref()),
                protocols: &[],
                resets: true,
            };
            dial.connect().await
        }
    }
}
