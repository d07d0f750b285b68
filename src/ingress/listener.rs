//! Listeners of either family, and the loop that accepts from one.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    time::{sleep, timeout},
};

/// Pause after an accept that failed for want of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(100);
/// How long nothing comes over TCP before the kernel asks whether the peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// How long what a refused peer still sends is read.
const FAREWELL: Duration = Duration::from_secs(1);

/// A listener of either family.
pub(crate) enum Listener {
    /// On a Unix socket.
    Unix(UnixListener),
    /// On TCP.
    Tcp(TcpListener),
}

/// A connection of either family.
pub(crate) enum DoorStream {
    /// Of a process of this host.
    Unix(UnixStream),
    /// Without delay, and with keepalive.
    Tcp(TcpStream),
}

impl DoorStream {
    /// The same connection, registered with the runtime that runs this, and no longer with the one that accepted it.
    ///
    /// # Errors
    /// The system has no descriptors left for it.
    pub(crate) fn moved_here(self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.into_std()?)?),
        })
    }

    /// Tells the peer `words` and closes the connection. What the peer sends is read for up to a second: the kernel
    /// answers unread bytes with a reset, which would overtake the words.
    pub(crate) async fn farewell(self, words: &[u8]) {
        async fn tell(mut stream: impl AsyncRead + AsyncWrite + Unpin, words: &[u8]) {
            let mut unread = [0; 512];
            // A peer that is gone hears nothing.
            if stream.write_all(words).await.is_ok() && stream.shutdown().await.is_ok() {
                while stream.read(&mut unread).await.is_ok_and(|count| count > 0) {}
            }
        }
        let told = async {
            match self {
                Self::Unix(stream) => tell(stream, words).await,
                Self::Tcp(stream) => tell(stream, words).await,
            }
        };
        drop(timeout(FAREWELL, told).await);
    }
}

impl Listener {
    /// The next connection.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) async fn accept(&self) -> io::Result<DoorStream> {
        match self {
            Self::Unix(listener) => Ok(DoorStream::Unix(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // What fails here fails for a peer that is gone, which its first read tells.
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
                drop(stream.set_nodelay(true));
                drop(SockRef::from(&stream).set_tcp_keepalive(&keepalive));
                Ok(DoorStream::Tcp(stream))
            }
        }
    }

    /// Hands each connection to `take` until `stopping` turns true. It waits if there is no room for more, and never
    /// gives up: the daemon would be deaf.
    pub(crate) async fn accept_until(
        &self,
        mut stopping: watch::Receiver<bool>,
        mut take: impl FnMut(DoorStream),
    ) {
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                _ = stopping.wait_for(|stopping| *stopping) => return,
            };
            match accepted {
                Ok(accepted) => {
                    failing = false;
                    take(accepted);
                }
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "cannot accept connections for now");
                    }
                    failing = true;
                    sleep(BACK_OFF).await;
                }
            }
        }
    }
}

/// Whether an accept failed for the peer's sake: then the next one may well succeed at once.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
