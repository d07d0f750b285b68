//! A connected socket, plain or under TLS.

use std::{io, path::Path, time::Duration};

use fusebox_state::dependencies::{Fault, Shared};
use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
};

use super::tls::{self, TlsError};

/// When nothing has come for so long, the kernel asks whether the server is still there, and then again and again. That
/// it is gone without a word is known after a minute, with as many questions as Linux asks by default (nine).
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));

/// A connected socket of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody answers there.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error, Fault),
    /// Somebody answers, whom TLS does not let pass.
    #[error("TLS with {0} failed: {1}")]
    Tls(String, String),
}

impl DialError {
    /// The system has this against a connection to `address`.
    pub(crate) fn connect(address: String, error: io::Error) -> Self {
        let fault = fault_of(&error);
        Self::Connect(address, error, fault)
    }

    /// What it says about the origin of the fault.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Connect(_, _, fault) => *fault,
            Self::Tls(..) => Fault::Here(Shared::Certificates),
        }
    }
}

/// The origin of the fault by the system's own number.
fn fault_of(error: &io::Error) -> Fault {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN) => {
            Fault::Here(Shared::Network)
        }
        Some(
            Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM | Errno::EADDRNOTAVAIL,
        ) => Fault::Here(Shared::Sockets),
        Some(Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::ENOENT) => Fault::Backend,
        _ => Fault::Unclear,
    }
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
        let failed = |error| DialError::connect(address.clone(), error);
        let nowhere = |error| DialError::Connect(address.clone(), error, Fault::Here(Shared::Dns));
        let found: Vec<_> = lookup_host((host, port)).await.map_err(nowhere)?.collect();
        let stream = TcpStream::connect(&*found).await.map_err(failed)?;
        prepare(&stream, resets).map_err(failed)?;
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

/// Sends without delay, notices that the server is gone without a word, and resets what is closed if it is to.
fn prepare(stream: &TcpStream, resets: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&KEEPALIVE)?;
    if resets { stream.set_zero_linger() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_is_gone_without_a_word_is_noticed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&stream, false).unwrap();
        assert!(SockRef::from(&stream).keepalive().unwrap());
    }

    #[test]
    fn an_error_of_the_system_blames_this_host_or_the_other() {
        let of = |errno: Errno| fault_of(&io::Error::from_raw_os_error(errno as i32));
        for errno in [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::ENETDOWN] {
            assert_eq!(of(errno), Fault::Here(Shared::Network), "{errno}");
        }
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::EADDRNOTAVAIL] {
            assert_eq!(of(errno), Fault::Here(Shared::Sockets), "{errno}");
        }
        assert_eq!(of(Errno::ECONNREFUSED), Fault::Backend);
        assert_eq!(of(Errno::ETIMEDOUT), Fault::Unclear);
    }

    async fn fault(host: &str, port: u16) -> Option<Fault> {
        let dial = Dial {
            address: format!("{host}:{port}"),
            host,
            port,
            tls: false,
            ca_file: None,
            protocols: &[],
            resets: false,
        };
        dial.connect().await.err().map(|error| error.fault())
    }

    #[tokio::test]
    async fn what_is_in_the_way_of_a_connection_is_known() {
        // Nobody connects to many at once: the system finds no way there.
        assert_eq!(fault("224.0.0.1", 9).await, Some(Fault::Here(Shared::Network)));
        assert_eq!(fault("no-such-host.invalid", 9).await, Some(Fault::Here(Shared::Dns)));
        let listener =
            tokio::net::TcpListener::bind(crate::net::test_port::own_address()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!((fault("127.0.0.1", port).await, fault("localhost", port).await), (None, None));
        drop(listener);
        assert_eq!(fault("127.0.0.1", port).await, Some(Fault::Backend));
    }
}
