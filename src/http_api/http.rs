//! The accept loop: bounded connections, each with a slow peer's patience and a caller's name.

use std::{
    convert::Infallible, future::Future, io, panic::AssertUnwindSafe, sync::Arc, time::Duration,
};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tower::Service;

use super::problem::Problem;
use crate::{
    ingress::{
        paced::{Pace, Paced},
        peer::{Caller, Policy},
    },
    net::same_task::attended,
};

/// Connections at once, over all listeners.
const CONNECTIONS: usize = 1_024;
/// Connections above that which are told so at once; more are closed unanswered.
const TOLD: usize = 64;
/// How long a connection may lie idle between requests.
const IDLE: Duration = Duration::from_secs(60);
/// Largest head of a request, in bytes.
const HEAD_MAX: usize = 16 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 100;
/// Pause after an accept that failed for want of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(100);

const FULL: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/problem+json\r\ncontent-length: 141\r\n\r\n\
    {\"type\":\"urn:fusebox:problem:door_full\",\"title\":\"Too Many Requests\",\"status\":429,\
    \"detail\":\"too many connections are open\",\"code\":\"door_full\"}";

/// What all listeners share.
pub(crate) struct Server {
    router: Router,
    policy: Policy,
    connections: Arc<Semaphore>,
    told: Arc<Semaphore>,
}

/// A listener of either family.
pub(crate) enum Listener {
    /// The command socket.
    Unix(UnixListener),
    /// The optional TCP listener.
    Tcp(TcpListener),
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(listener) => Ok(Accepted::Unix(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream))
            }
        }
    }
}

impl Server {
    /// A server of `router`.
    pub(crate) fn new(router: Router, policy: Policy) -> Arc<Self> {
        Arc::new(Self {
            router,
            policy,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            told: Arc::new(Semaphore::new(TOLD)),
        })
    }

    /// Serves until `stopping`, then lets what is in flight finish.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: Listener,
        mut stopping: watch::Receiver<bool>,
    ) {
        let graceful = GracefulShutdown::new();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            match accepted {
                Ok(accepted) => {
                    failing = false;
                    self.start(accepted, &graceful);
                }
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "cannot accept connections for now");
                    }
                    failing = true;
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
        drop(listener);
        graceful.shutdown().await;
    }

    fn start(self: &Arc<Self>, accepted: Accepted, graceful: &GracefulShutdown) {
        let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else {
            return self.refuse(accepted);
        };
        let server = Arc::clone(self);
        let watcher = graceful.watcher();
        drop(tokio::spawn(async move {
            match accepted {
                Accepted::Unix(stream) => {
                    let Ok(caller) = server.policy.local(&stream) else { return };
                    server.connection(stream, caller, watcher, place).await;
                }
                Accepted::Tcp(stream) => {
                    server.connection(stream, Caller::Network, watcher, place).await;
                }
            }
        }));
    }

    /// Says that it is full, within a second, or nothing where too many are being told so already.
    fn refuse(&self, accepted: Accepted) {
        let Ok(place) = Arc::clone(&self.told).try_acquire_owned() else { return };
        drop(tokio::spawn(async move {
            let telling = async {
                match accepted {
                    Accepted::Unix(mut stream) => stream.write_all(FULL).await,
                    Accepted::Tcp(mut stream) => stream.write_all(FULL).await,
                }
            };
            // Whoever does not listen is not told.
            drop(tokio::time::timeout(Duration::from_secs(1), telling).await);
            drop(place);
        }));
    }

    async fn connection<S>(
        &self,
        stream: S,
        caller: Caller,
        watcher: Watcher,
        _place: OwnedSemaphorePermit,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let pace = Pace::default();
        let router = self.router.clone();
        let io = TokioIo::new(Paced::new(stream, pace.clone()));
        let service = service_fn(move |mut request: Request<Incoming>| {
            pace.busy(true);
            request.extensions_mut().insert(caller);
            let answer = router.clone().call(request);
            let pace = pace.clone();
            async move {
                let response = answered(answer).await;
                pace.busy(false);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_headers(HEADERS_MAX)
            .max_header_size(HEAD_MAX)
            .serve_connection(io, service);
        if let Err(error) = attended(watcher.watch(connection)).await {
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// The router's response. A handler that panics costs its caller an answer and nobody else anything.
async fn answered(answer: impl Future<Output = Result<Response, Infallible>>) -> Response {
    match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            let detail = "a fault in fusebox itself; its log says more";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail).into_response()
        }
    }
}

/// Whether an accept failed for the peer's sake: then the next one may well succeed at once.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_for() {
        let response = answered(async { panic!("a fault") }).await;
        assert_eq!(response.status(), 500);
    }

    #[test]
    fn the_canned_answer_announces_its_length() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
