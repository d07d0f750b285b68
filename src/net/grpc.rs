//! A gRPC channel: one HTTP/2 connection that is dialled when it is first needed and again after it broke.
//!
//! ```text
//!            there ──────────────────┐
//!  request ─▶ being dialled: wait ───┼─▶ stream: head, message and end in one write ─▶ answer, trailers
//!            none: dial, and tell ───┘       │ refused before the server acted      │ it broke
//!            all who wait                    ▼                                      ▼
//!                                        `NotSent`                            of unknown outcome
//! ```
//! tonic has a channel of its own, which is not used here: it puts a queue with a task, hyper's dispatcher and
//! a task for each body between a caller and the connection, and writes head, message and end of a request
//! one after the other, each of which wakes the server.
//!
//! **Tasks.** The connection is driven by one ([`line`]), which ends with it, and which runs on the channel's
//! [home](Home). A request is carried by its caller's own task; dropped, its stream is reset.
//!
//! **A connection that broke** is noticed by its task, and by whoever finds it unusable before anything is
//! sent: that one dials again, once.
//!
//! **A request that must not land later** is sent over a channel that [resets](Channel::new), and is
//! [followed](Channel::followed): its [`Carrier`] knows which connection took it, if any did, and closes that
//! one. What else it carried ends as [`ResetForAnother`].

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, poll_immediate},
};
use h2::{
    Reason, RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request, Response, Uri,
    body::Frame,
    header::{HeaderValue, USER_AGENT},
    http::{
        request::Parts,
        uri::{Authority, InvalidUri, PathAndQuery, Scheme},
    },
};
use parking_lot::Mutex;
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};
use tonic::{Status, body::Body};

mod line;
pub(crate) mod place;
pub(crate) mod pool;

use super::{
    dial::{Dial, DialError, Stream},
    endpoint::Server,
};
use line::{Awaited, Carried, Line};
use place::Place;

/// What gRPC is spoken in.
const HTTP2: &[&str] = &["h2"];
/// How much a server may send of one answer before it is read, and of all together.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
pub(crate) const WINDOWS: Windows =
    Windows { stream: STREAM_WINDOW, connection: CONNECTION_WINDOW };
/// How often a request looks for a usable connection.
const TRIES: usize = 2;

const USER_AGENT_VALUE: HeaderValue =
    HeaderValue::from_static(concat!("fusebox/", env!("CARGO_PKG_VERSION")));

/// How much a server may send before it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    /// Of one answer, in bytes.
    pub(crate) stream: u32,
    /// Of all answers of a connection together.
    pub(crate) connection: u32,
}

/// Nothing of a request was acted upon: the source of the status that says so.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NotSent {
    /// There is no connection.
    #[error(transparent)]
    Dial(Arc<DialError>),
    /// It was unusable already, or the server refused the stream.
    #[error("{0}")]
    Refused(String),
}

impl NotSent {
    fn status(self) -> Status {
        let mut status = Status::unavailable("there is no connection");
        status.set_source(Arc::new(self));
        status
    }
}

/// Another request was given up, and the connection closed for its sake: the source of the status that says so.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection was reset because another write on it was not answered in time")]
pub(crate) struct ResetForAnother;

/// The runtime that drives connections, whoever dials them. By default it is that of whoever dials: then nobody on
/// another runtime may dial, because a connection ends with its runtime.
#[derive(Clone, Default)]
pub(crate) struct Home(Option<Handle>);

impl Home {
    /// The runtime that there is here, if there is one.
    pub(crate) fn current() -> Self {
        Self(Handle::try_current().ok())
    }

    /// Runs a task there.
    pub(crate) fn spawn<T>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T>
    where
        T: Send + 'static,
    {
        match &self.0 {
            Some(runtime) => runtime.spawn(task),
            None => tokio::spawn(task),
        }
    }
}

/// See the [module](self). Clones share the connection.
#[derive(Clone)]
pub(crate) struct Channel {
    inner: Arc<Inner>,
    carrier: Option<Carrier>,
}

/// Which connection took a request.
#[derive(Clone, Default)]
pub(crate) struct Carrier(Arc<OnceLock<Line>>);

impl Carrier {
    /// Closes the connection that took the request, and returns once it is closed. False if none took it:
    /// then nothing of it was sent. The request itself must have been dropped before.
    pub(crate) async fn reset(self) -> bool {
        let Some(line) = self.0.get() else { return false };
        line.reset().await;
        true
    }
}

struct Inner {
    server: Server,
    /// Whether closing the connection discards what was not sent yet.
    resets: bool,
    windows: Windows,
    home: Home,
    scheme: Scheme,
    authority: Authority,
    state: Mutex<State>,
}

enum State {
    None,
    Dialling(Shared<BoxFuture<'static, Result<Connection, NotSent>>>),
    Open(Connection),
}

#[derive(Clone)]
struct Connection {
    sender: SendRequest<Bytes>,
    line: Line,
}

impl Channel {
    /// A channel to `server`, whose connection is driven at `home`. Nothing is sent yet. With `resets`, closing its
    /// connection discards what was not sent.
    ///
    /// # Errors
    /// The server's name is none.
    pub(crate) fn new(server: Server, resets: bool, home: Home) -> Result<Self, InvalidUri> {
        Self::with_windows(server, resets, WINDOWS, home)
    }

    /// The same with other windows.
    ///
    /// # Errors
    /// The server's name is none.
    pub(crate) fn with_windows(
        server: Server,
        resets: bool,
        windows: Windows,
        home: Home,
    ) -> Result<Self, InvalidUri> {
        let inner = Inner {
            scheme: if server.tls { Scheme::HTTPS } else { Scheme::HTTP },
            authority: server.address.parse()?,
            server,
            resets,
            windows,
            home,
            state: Mutex::new(State::None),
        };
        Ok(Self { inner: Arc::new(inner), carrier: None })
    }

    /// The same channel for one request, and what will know which connection took it.
    pub(crate) fn followed(&self) -> (Self, Carrier) {
        let carrier = Carrier::default();
        (Self { inner: Arc::clone(&self.inner), carrier: Some(carrier.clone()) }, carrier)
    }

    /// Connects if there is no connection.
    ///
    /// # Errors
    /// There is none available.
    pub(crate) async fn connect(&self) -> Result<(), Status> {
        self.ready().await.map(drop)
    }

    /// Begins to close the connection. The next request dials again.
    pub(crate) fn reset(&self) {
        if let State::Open(connection) = &*self.inner.state.lock() {
            connection.line.begin_reset();
        }
    }

    /// Sends a request and returns once the head of its answer is here.
    async fn exchange(self, request: Request<Body>) -> Result<Response<Answer>, Status> {
        exchange(request, self.ready(), self.carrier.as_ref(), None).await
    }

    /// A connection that takes a request now, dialled if there is none.
    async fn ready(&self) -> Result<Ready, Status> {
        let mut unusable = None;
        for _ in 0..TRIES {
            let Connection { sender, line } = self.connection().await.map_err(NotSent::status)?;
            if line.was_reset() {
                self.inner.forget(&line);
                continue;
            }
            let carried = line.carried();
            match sender.ready().await {
                Ok(sender) => {
                    let (inner, connection) =
                        (Arc::clone(&self.inner), Connection { sender, line });
                    return Ok(Ready { inner, connection });
                }
                Err(error) => {
                    unusable = Some(error.to_string());
                    self.inner.forget(&line);
                }
            }
            drop(carried);
        }
        let why = unusable.unwrap_or_else(|| "the connection is being reset".to_owned());
        Err(NotSent::Refused(why).status())
    }

    async fn connection(&self) -> Result<Connection, NotSent> {
        let dialling = {
            let mut state = self.inner.state.lock();
            match &*state {
                State::Open(connection) => return Ok(connection.clone()),
                State::Dialling(dialling) if dialling.peek().is_none() => dialling.clone(),
                // One that has ended and is still here was cut short: by a panic, or by the runtime's end.
                State::Dialling(_) | State::None => {
                    // A task of its own: it goes on when whoever wanted it has gone.
                    let task = self.inner.home.spawn(self.clone().dialled());
                    let ended = task.map(|ended| {
                        ended.unwrap_or_else(|error| Err(NotSent::Refused(error.to_string())))
                    });
                    let dialling = ended.boxed().shared();
                    *state = State::Dialling(dialling.clone());
                    dialling
                }
            }
        };
        dialling.await
    }

    /// A task of the channel's home: what it begins stays there.
    async fn dialled(self) -> Result<Connection, NotSent> {
        let dialled = self.dial().await;
        *self.inner.state.lock() = match &dialled {
            Ok(connection) => State::Open(connection.clone()),
            Err(_) => State::None,
        };
        dialled
    }

    async fn dial(&self) -> Result<Connection, NotSent> {
        let server = &self.inner.server;
        let line = Line::new();
        let connecting = async {
            let socket = socket(server, self.inner.resets).await;
            let socket = socket.map_err(|error| NotSent::Dial(Arc::new(error)))?;
            let mut builder = Builder::new();
            builder
                .enable_push(false)
                .initial_window_size(self.inner.windows.stream)
                .initial_connection_window_size(self.inner.windows.connection);
            let hello = builder.handshake::<_, Bytes>(line.listening(socket)).await;
            hello.map_err(|error| NotSent::Refused(error.to_string()))
        };
        let late = || NotSent::Refused(format!("no connection within {:?}", server.connect_time));
        let connected = timeout(server.connect_time, connecting).await;
        let (sender, connection) = connected.map_err(|_| late())??;
        let (inner, driven) = (Arc::downgrade(&self.inner), line.clone());
        drop(tokio::spawn(async move {
            driven.drive(connection).await;
            // A strong reference would keep the connection open.
            if let Some(inner) = inner.upgrade() {
                inner.forget(&driven);
            }
        }));
        Ok(Connection { sender, line })
    }

    /// Whether there is a connection.
    pub(crate) fn is_open(&self) -> bool {
        matches!(&*self.inner.state.lock(), State::Open(_))
    }
}

impl Inner {
    /// The next request dials again, unless somebody did so already.
    fn forget(&self, unusable: &Line) {
        let mut state = self.state.lock();
        if matches!(&*state, State::Open(open) if open.line.is(unusable)) {
            *state = State::None;
        }
    }
}

/// A connection that takes a request now, and the server that it leads to.
pub(crate) struct Ready {
    inner: Arc<Inner>,
    connection: Connection,
}

impl Ready {
    /// Begins a request of these headers to this server, whatever authority they name. Its body is to be sent over
    /// the [stream](Opened::stream), its end too. `by` will know that this connection took it.
    ///
    /// # Errors
    /// Nothing was sent.
    pub(crate) fn open(self, mut parts: Parts, by: Option<&Carrier>) -> Result<Opened, Status> {
        let Self { inner, connection: Connection { mut sender, line } } = self;
        let path = parts.uri.into_parts().path_and_query;
        let mut uri = hyper::http::uri::Parts::default();
        uri.scheme = Some(inner.scheme.clone());
        uri.authority = Some(inner.authority.clone());
        uri.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        parts.uri = Uri::from_parts(uri).map_err(|error| Status::internal(error.to_string()))?;

        if let Some(carrier) = by {
            drop(carrier.0.set(line.clone()));
        }
        let (carried, awaited) = (line.carried(), line.awaited());
        let refused = |error: h2::Error| NotSent::Refused(error.to_string()).status();
        let (response, stream) =
            sender.send_request(Request::from_parts(parts, ()), false).map_err(refused)?;
        Ok(Opened { head: Head { response, line, carried, awaited }, stream })
    }

    /// How many requests the server takes at once over this connection.
    fn streams_max(&self) -> usize {
        self.connection.sender.current_max_send_streams()
    }
}

/// Sends a request over the connection that is `ready` for it, and returns once the head of its answer is here. It has
/// its `place` until its answer has ended.
async fn exchange(
    request: Request<Body>,
    ready: impl Future<Output = Result<Ready, Status>> + Send,
    carrier: Option<&Carrier>,
    place: Option<Place>,
) -> Result<Response<Answer>, Status> {
    let (mut parts, mut body) = request.into_parts();
    let message = next_message(&mut body).await.transpose()?.unwrap_or_default();
    let more = match poll_immediate(next_message(&mut body)).await {
        Some(None) => None,
        Some(Some(second)) => Some((body, Some(second?))),
        None => Some((body, None)),
    };
    parts.headers.insert(USER_AGENT, USER_AGENT_VALUE);
    let Opened { mut head, mut stream } = ready.await?.open(parts, carrier)?;
    // The connection's task writes both in one go.
    stream.send_data(message, more.is_none()).map_err(|error| lost(error, &head.line))?;
    let mut pump: Pump = more.map(|(body, second)| pump(body, stream, second).boxed());
    let answered = poll_fn(|cx| {
        advance(&mut pump, cx);
        Pin::new(&mut head.response).poll(cx)
    });
    let response = answered.await;
    Ok(head.answered_with(response)?.map(|answer| Answer { pump, _place: place, ..answer }))
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Answer>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Answer>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().exchange(request))
    }
}

async fn socket(server: &Server, resets: bool) -> Result<Box<dyn Stream>, DialError> {
    let Server { address, host, port, tls, ca_file, .. } = server;
    let dial = Dial {
        address: address.clone(),
        host,
        port: *port,
        tls: *tls,
        ca_file: ca_file.as_deref(),
        protocols: HTTP2,
        resets,
    };
    dial.connect().await
}

/// A request that was begun.
pub(crate) struct Opened {
    /// What will be its answer.
    pub(crate) head: Head,
    /// Receives its body.
    pub(crate) stream: SendStream<Bytes>,
}

/// The head of an answer that is awaited. Dropped, it gives the answer up.
pub(crate) struct Head {
    response: ResponseFuture,
    line: Line,
    carried: Carried,
    awaited: Awaited,
}

impl Head {
    /// The head, once it is here.
    ///
    /// # Errors
    /// There is no answer; the status has a [`NotSent`] as its source if nothing was acted upon.
    pub(crate) async fn answered(mut self) -> Result<Response<Answer>, Status> {
        let response = (&mut self.response).await;
        self.answered_with(response)
    }

    fn answered_with(
        self,
        response: Result<Response<RecvStream>, h2::Error>,
    ) -> Result<Response<Answer>, Status> {
        let Self { line, carried, awaited, .. } = self;
        let response = response.map_err(|error| {
            // The server says that it has acted upon earlier requests at most.
            if error.is_go_away() && error.is_remote() {
                return NotSent::Refused(error.to_string()).status();
            }
            lost(error, &line)
        })?;
        awaited.answered();
        let answer = |stream| Answer { stream, pump: None, line, _carried: carried, _place: None };
        Ok(response.map(answer))
    }
}

/// The next message of a request, encoded.
async fn next_message(body: &mut Body) -> Option<Result<Bytes, Status>> {
    loop {
        match body.frame().await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(status) => return Some(Err(status)),
        }
    }
}

/// Sends the further messages of a request as they come. They are few and small: Firestore's streams
/// listen.
async fn pump(mut body: Body, mut stream: SendStream<Bytes>, mut second: Option<Bytes>) {
    loop {
        let next = match second.take() {
            Some(second) => Some(Ok(second)),
            None => next_message(&mut body).await,
        };
        let sent = match next {
            Some(Ok(message)) => stream.send_data(message, false),
            Some(Err(_)) => return stream.send_reset(Reason::CANCEL),
            None => return drop(stream.send_data(Bytes::new(), true)),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// What sends the rest of a request; none if all is sent.
type Pump = Option<BoxFuture<'static, ()>>;

fn advance(pump: &mut Pump, cx: &mut Context<'_>) {
    if pump.as_mut().is_some_and(|pump| pump.as_mut().poll(cx).is_ready()) {
        *pump = None;
    }
}

/// The body of an answer.
pub(crate) struct Answer {
    stream: RecvStream,
    pump: Pump,
    line: Line,
    _carried: Carried,
    _place: Option<Place>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { stream, pump, line, .. } = self.get_mut();
        let lost = |error| lost(error, line);
        advance(pump, cx);
        if let Some(data) = ready!(stream.poll_data(cx)) {
            let data = data.map_err(lost).and_then(|data| {
                stream.flow_control().release_capacity(data.len()).map_err(lost)?;
                Ok(Frame::data(data))
            });
            return Poll::Ready(Some(data));
        }
        let trailers: Result<Option<HeaderMap>, h2::Error> = ready!(stream.poll_trailers(cx));
        Poll::Ready(trailers.map_err(lost).transpose().map(|it| it.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// A request's stream broke. What the server did is not known, unless it refused the stream.
fn lost(error: h2::Error, line: &Line) -> Status {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => return NotSent::Refused(error.to_string()).status(),
        _ if line.was_reset() => {
            let mut status = Status::unavailable("the connection was closed");
            status.set_source(Arc::new(ResetForAnother));
            return status;
        }
        Some(Reason::CANCEL) => return Status::cancelled(error.to_string()),
        _ => {}
    }
    let mut status = Status::unavailable("the connection broke");
    status.set_source(Arc::new(error));
    status
}

#[cfg(test)]
mod tests;
