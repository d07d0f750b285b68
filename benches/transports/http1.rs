//! Ways to send a request over HTTP/1 and to read its answer to the end.
//!
//! All have the same sockets (no delay, reset when they are closed), the same buffers and the same bodies.

use std::{fmt::Debug, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode, Uri,
    client::conn::http1::{Builder, Connection, SendRequest},
    header::{HOST, HeaderValue},
};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{self, Connected},
    },
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::net::{
    http1::{Body, Pool},
    http1_dial::{DialError, Dialer, Socket},
    testing::server,
};

/// As `src/net/http1.rs` has them.
const IDLE_MAX: Duration = Duration::from_secs(2);
const READ_MAX: usize = 256 * 1024;

/// A request that is sent again and again.
#[derive(Clone)]
pub(crate) struct Question {
    /// Without its authority, and with it.
    uris: [Uri; 2],
    host: HeaderValue,
    body: Bytes,
}

impl Question {
    pub(crate) fn new(port: u16, path: &str, body: &'static str) -> Self {
        let host = format!("127.0.0.1:{port}");
        let whole = format!("http://{host}{path}").parse().expect("an address");
        Self {
            uris: [path.parse().expect("a path"), whole],
            host: host.parse().expect("a header"),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    fn request(&self, uri: usize) -> Request<Body> {
        let body = Full::new(self.body.clone()).map_err(|never| match never {});
        let mut request = Request::new(body.boxed_unsync());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uris[uri].clone();
        request.headers_mut().insert(HOST, self.host.clone());
        request
    }
}

/// Reads a body to its end. Returns how long it was.
async fn length<B>(status: StatusCode, mut body: B) -> usize
where
    B: hyper::body::Body<Data = Bytes, Error: Debug> + Unpin,
{
    assert_eq!(status, StatusCode::OK);
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.expect("a piece of the body").data_ref().map_or(0, Bytes::len);
    }
    length
}

/// fusebox's own pool.
pub(crate) fn pool(port: u16) -> Arc<Pool> {
    Pool::new(Dialer::new(server(port)))
}

pub(crate) async fn by_pool(pool: Arc<Pool>, question: Question) -> usize {
    let response = pool.send(question.request(0)).await.expect("an answer");
    length(response.status(), response.into_body()).await
}

/// hyper-util's client.
pub(crate) type Legacy = Client<Dials, Body>;

#[derive(Clone)]
pub(crate) struct Dials(Arc<Dialer>);

impl tower::Service<Uri> for Dials {
    type Response = Socket;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Socket, Self::Error>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialer = Arc::clone(&self.0);
        Box::pin(async move { dialer.dial().await })
    }
}

impl connect::Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

pub(crate) fn legacy(port: u16) -> Legacy {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .http1_max_buf_size(READ_MAX)
        .build(Dials(Arc::new(Dialer::new(server(port)))))
}

pub(crate) async fn by_legacy(client: Legacy, question: Question) -> usize {
    let response = client.request(question.request(1)).await.expect("an answer");
    length(response.status(), response.into_body()).await
}

/// What is not in use, and since when. The last comes first, and none that a server may have closed meanwhile.
struct Idle<C>(Mutex<Vec<(Instant, C)>>);

impl<C> Default for Idle<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C> Idle<C> {
    fn take(&self) -> Option<C> {
        let mut idle = self.0.lock();
        let last = idle.pop();
        let last = last.filter(|(since, _)| since.elapsed() < IDLE_MAX);
        if last.is_none() {
            idle.clear();
        }
        last.map(|(_, connection)| connection)
    }

    fn keep(&self, connection: C) {
        self.0.lock().push((Instant::now(), connection));
    }
}

/// A pool of connections, each of which is driven by a task of its own.
pub(crate) struct Spawning {
    dialer: Dialer,
    idle: Idle<SendRequest<Body>>,
}

impl Spawning {
    pub(crate) fn new(port: u16) -> Arc<Self> {
        Arc::new(Self { dialer: Dialer::new(server(port)), idle: Idle::default() })
    }

    pub(crate) async fn ask(self: Arc<Self>, question: Question) -> usize {
        let idle = self.idle.take();
        let mut sender = if let Some(sender) = idle {
            sender
        } else {
            let (sender, connection) = shaken(&self.dialer).await;
            drop(tokio::spawn(connection));
            sender
        };
        sender.ready().await.expect("a connection that is open");
        let response = sender.send_request(question.request(0)).await.expect("an answer");
        let length = length(response.status(), response.into_body()).await;
        self.idle.keep(sender);
        length
    }
}

async fn shaken(dialer: &Dialer) -> (SendRequest<Body>, Connection<Socket, Body>) {
    let socket = dialer.dial().await.expect("a connection");
    Builder::new().max_buf_size(READ_MAX).handshake(socket).await.expect("a connection")
}
