//! The accept loop: bounded connections, each with a slow peer's patience and a caller's name.
//!
//! A connection that finds no room is not turned away unheard: it gets one of a few spare places, in which one
//! request is read. Health and orders are answered there, anything else gets 429. So a flood of connections hides
//! neither how the daemon is nor keeps its operators out.
//!
//! When the daemon stops, whoever has connected is still served: the next answer on each connection says
//! `Connection: close`, and what is idle for [`GOODBYE`] from then on is closed. A client that sends its next request
//! on a kept connection just then gets an answer.

use std::{convert::Infallible, future::Future, panic::AssertUnwindSafe, pin::pin, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Duration, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tower::Service;

use super::problem::Problem;
use crate::{
    ingress::{
        gate::{Account, Gate, Holder, Part, Pooled, holder_of},
        listener::{DoorStream, Listener},
        paced::{Pace, Paced},
        peer::{Caller, Policy},
    },
    net::linger::lent,
};

/// How long a connection may be idle between requests.
const IDLE: Duration = Duration::from_secs(60);
/// How long one in a spare place may take to send its request, and to agree on TLS before that.
const SPARE_HEAD_TIME: Duration = Duration::from_secs(1);
/// The longest that any other may take to agree on TLS.
const TLS_TIME: Duration = Duration::from_secs(5);
/// How long a connection may be idle when the daemon stops.
pub(crate) const GOODBYE: Duration = Duration::from_secs(1);
/// How many may have connected without being accepted yet.
const BACKLOG: usize = 1_024;
/// When the daemon stops, nobody is in the backlog if none of it has been heard of for so long.
const LAST_CALL: Duration = Duration::from_millis(10);
/// Largest head of a request, in bytes.
const HEAD_MAX: usize = 16 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 100;
/// The most that is read at once, in bytes: a connection keeps a buffer as large as its largest request, up to this.
const BUFFER_MAX: usize = 32 << 10;

/// What all listeners share.
pub(crate) struct Server {
    router: Router,
    policy: Policy,
    gate: Arc<Gate>,
    /// Turns true when the daemon begins to stop.
    stopping: watch::Receiver<bool>,
    tls: CurrentTls,
}

/// What is spoken on TCP to whoever connects now: TLS of this configuration, or `None` for plaintext.
pub(crate) type CurrentTls = Box<dyn Fn() -> Option<Arc<ServerConfig>> + Send + Sync>;

/// Whose connection a request came by. Every request has it.
#[derive(Clone)]
pub(crate) struct Connected {
    /// Who connected.
    pub(crate) caller: Caller,
    /// What of the daemon they have.
    pub(crate) account: Arc<Account>,
    /// Whether the connection found room only for one request, of health or an order.
    pub(crate) is_spare: bool,
}

/// A connection's place, before it is known who may do what there.
struct Place {
    account: Arc<Account>,
    is_spare: bool,
    stopping: watch::Receiver<bool>,
    part: Part,
    open: mpsc::Sender<()>,
}

/// What a connection has of its listener.
struct Link {
    connected: Connected,
    stopping: watch::Receiver<bool>,
    /// Given back when the connection has ended.
    _part: Part,
    /// Dropped when the connection has ended.
    _open: mpsc::Sender<()>,
}

impl Place {
    fn link(self, caller: Caller) -> Link {
        let Self { account, is_spare, stopping, part, open } = self;
        let connected = Connected { caller, account, is_spare };
        Link { connected, stopping, _part: part, _open: open }
    }
}

impl Server {
    /// A server of `router`, which ends when `stopping` turns true.
    pub(crate) fn new(
        router: Router,
        policy: Policy,
        gate: Arc<Gate>,
        stopping: watch::Receiver<bool>,
        tls: CurrentTls,
    ) -> Arc<Self> {
        Arc::new(Self { router, policy, gate, stopping, tls })
    }

    /// Serves until the daemon stops, then those who have connected, until their connections have ended.
    pub(crate) async fn serve(self: Arc<Self>, listener: Listener) {
        let (open, mut ended) = mpsc::channel(1);
        let stopping = self.stopping.clone();
        listener.accept_until(stopping, |accepted| self.start(accepted, &open)).await;
        // Those in the backlog have connected, too.
        for _ in 0..BACKLOG {
            let Ok(Ok(accepted)) = timeout(LAST_CALL, listener.accept()).await else { break };
            self.start(accepted, &open);
        }
        drop((listener, open));
        let _none: Option<()> = ended.recv().await;
    }

    /// Serves a connection in a task of its own; closes it at once if not even a spare place is left.
    fn start(self: &Arc<Self>, accepted: DoorStream, open: &mpsc::Sender<()>) {
        let server = Arc::clone(self);
        match accepted {
            DoorStream::Unix(stream) => {
                let Ok(caller) = self.policy.local(&stream) else { return };
                let Some(place) = self.place(holder_of(caller), open) else { return };
                let link = place.link(caller);
                drop(tokio::spawn(async move { server.connection(stream, link).await }));
            }
            DoorStream::Tcp(stream) => {
                let Some(place) = self.place(Holder::Network, open) else { return };
                let link = place.link(Caller::Network);
                drop(tokio::spawn(async move { server.network(stream, link).await }));
            }
        }
    }

    fn place(&self, holder: Holder, open: &mpsc::Sender<()>) -> Option<Place> {
        let account = self.gate.account(holder);
        let (part, is_spare) = match account.take(Pooled::Connections, 1) {
            Ok(part) => (part, false),
            Err(_) => (account.take(Pooled::Spare, 1).ok()?, true),
        };
        let stopping = self.stopping.clone();
        Some(Place { account, is_spare, stopping, part, open: open.clone() })
    }

    async fn network(&self, stream: TcpStream, link: Link) {
        let Some(tls) = (self.tls)() else { return self.connection(stream, link).await };
        let time = if link.connected.is_spare { SPARE_HEAD_TIME } else { TLS_TIME };
        match timeout(time, TlsAcceptor::from(tls).accept(stream)).await {
            Ok(Ok(stream)) => self.connection(stream, link).await,
            Ok(Err(error)) => tracing::debug!(%error, "the TLS handshake failed"),
            Err(_) => tracing::debug!("the TLS handshake was not finished in time"),
        }
    }

    async fn connection<S>(&self, stream: S, link: Link)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let pace = Pace::default();
        let io = TokioIo::new(Paced::new(stream, pace.clone()));
        let is_spare = link.connected.is_spare;
        let (router, connected, stopped) =
            (self.router.clone(), link.connected.clone(), link.stopping.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = pace.busy();
            let expects = request.headers().contains_key(header::EXPECT);
            let mut request =
                request.map(|body| lent(body, expects, &pace).map_or_else(Body::empty, Body::new));
            request.extensions_mut().insert(connected.clone());
            let answer = router.clone().call(request);
            let stopped = stopped.clone();
            async move {
                let mut response = answered(answer).await;
                drop(busy);
                if is_spare || *stopped.borrow() {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(if is_spare { SPARE_HEAD_TIME } else { IDLE })
            .max_headers(HEADERS_MAX)
            .max_header_size(HEAD_MAX)
            .max_buf_size(BUFFER_MAX)
            .serve_connection(io, service);
        let serving = async {
            let mut connection = pin!(connection);
            tokio::select! {
                ended = &mut connection => ended,
                () = goodbye(link.stopping.clone()) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        };
        if let Err(error) = serving.await {
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// Resolves when the daemon has been stopping for [`GOODBYE`].
async fn goodbye(mut stopping: watch::Receiver<bool>) {
    // An error is that nobody is left who could stop.
    let _stopping = stopping.wait_for(|stopping| *stopping).await.is_ok();
    sleep(GOODBYE).await;
}

/// The router's response. A handler that panics costs its caller an answer and nobody else anything.
async fn answered(answer: impl Future<Output = Result<Response, Infallible>>) -> Response {
    match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            let detail = "an internal error of fusebox; its log says more";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_for() {
        let response = answered(async { panic!("a fault") }).await;
        assert_eq!(response.status(), 500);
    }
}
