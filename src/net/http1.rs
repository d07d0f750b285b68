//! Connections to one server, and exchanges upon them.
//!
//! ```text
//!  take: idle and still open, or dialled ──▶ Line ── request ──▶ head ──▶ Rows ── read to the end ──▶ idle
//!                ▲                             │ error                      │ dropped, or broken
//!                └──── nothing was sent ───────┤                            ▼
//!                                              └────────────────────────▶ closed
//! ```
//! **One task.** hyper's connection is a future beside the request's own. In a task of its own, its socket would be
//! closed some time after its exchange was given up, and the fence needs it closed at once. So whoever waits for an
//! answer polls the connection itself ([`Line::turn`]).
//!
//! **Who owns what.** A [`Line`] belongs to one exchange at a time. The exchange that is dropped drops it,
//! which resets the connection ([`super::http1_dial`]); only an answer that was read to its end, on a connection
//! that is then ready for another request, gives it back.
//!
//! **Which thread.** The runtime on which a connection was dialled sees what arrives on it. So an exchange takes an idle
//! connection of its own runtime, and dials another one if there is none: the daemon's own and that of a door are two.
//!
//! **Idle connections** are polled by nobody. One is polled once before it is used, and not used if the
//! server has closed it, or if it has been idle for [`IDLE_MAX`]: servers close theirs after 3 s and more,
//! and a write that meets the closing is of unknown outcome. If hyper gives a request back that was meant
//! for a used connection, nothing of it was sent, and another connection carries it.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::connector::AttemptError;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    client::conn::{
        TrySendError,
        http1::{self, Connection, SendRequest},
    },
};
use parking_lot::Mutex;
use tokio::{
    runtime::{self, Handle},
    time::{Instant, sleep_until},
};

use super::http1_dial::{DialError, Dialer, Socket};

/// How long an idle connection is kept.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// What hyper reads at once at most.
const READ_MAX: usize = 256 * 1024;

/// The body of a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, AttemptError>;

/// Why there is no response.
#[derive(Debug)]
pub(crate) enum Lost {
    /// There is no connection: nothing was sent.
    Dial(DialError),
    /// It broke: something may have been sent.
    Broken(hyper::Error),
}

/// The connections to one server.
pub(crate) struct Pool {
    dialer: Dialer,
    idle: Mutex<Idle>,
    heads: Option<Heads>,
}

/// How large the head of an answer may be. A connection may read as much at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// In bytes.
    pub(crate) bytes: usize,
    /// Headers in it.
    pub(crate) headers: usize,
}

/// Connections that nobody uses, the one that was used last at the end.
#[derive(Default)]
struct Idle {
    lines: Vec<(Instant, Box<Line>)>,
    /// Whether a task waits to close those that are idle for too long.
    swept: bool,
    closed: bool,
}

impl Pool {
    /// Dials when a connection is first needed.
    pub(crate) fn new(dialer: Dialer) -> Arc<Self> {
        Arc::new(Self { dialer, idle: Mutex::default(), heads: None })
    }

    /// The same for answers whose heads may be as large as [`Heads`] says.
    pub(crate) fn with_heads(dialer: Dialer, heads: Heads) -> Arc<Self> {
        Arc::new(Self { dialer, idle: Mutex::default(), heads: Some(heads) })
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> usize {
        self.idle.lock().lines.retain_mut(|(_, line)| line.is_free());
        self.dialer.open()
    }

    /// Closes what is idle.
    pub(crate) fn give_up_idle(&self) {
        self.idle.lock().lines.clear();
    }

    /// Closes what is idle, and keeps no connection from here on.
    pub(crate) fn close(&self) {
        let mut idle = self.idle.lock();
        idle.closed = true;
        idle.lines.clear();
    }

    /// Sees to it that there is a connection: one that is idle and still open, or a new one.
    pub(crate) async fn connect(self: &Arc<Self>) -> Result<(), Lost> {
        let line = match self.take() {
            Some(line) => line,
            None => self.dialled().await?,
        };
        self.keep(line);
        Ok(())
    }

    async fn dialled(&self) -> Result<Box<Line>, Lost> {
        let socket = self.dialer.dial().await.map_err(Lost::Dial)?;
        Ok(Box::new(Line::new(socket, self.heads).await.map_err(Lost::Broken)?))
    }

    /// Sends a request and returns once the head of its response is here.
    pub(crate) async fn send(
        self: &Arc<Self>,
        mut request: Request<Body>,
    ) -> Result<Response<Rows>, Lost> {
        loop {
            let idle = self.take();
            let is_used = idle.is_some();
            let mut line = match idle {
                Some(line) => line,
                None => self.dialled().await?,
            };
            let mut failed = match line.carry(request).await {
                Ok(response) => {
                    let line = Mutex::new(Some(line));
                    return Ok(response.map(|body| Rows { body, line, home: Arc::clone(self) }));
                }
                Err(failed) => failed,
            };
            match failed.take_message() {
                Some(unsent) if is_used => request = unsent,
                _ => return Err(Lost::Broken(failed.into_error())),
            }
        }
    }

    /// The idle connection of this runtime that was used last, if it is still open.
    fn take(&self) -> Option<Box<Line>> {
        let here = Handle::current().id();
        loop {
            let (since, mut line) = {
                let lines = &mut self.idle.lock().lines;
                let last = lines.iter().rposition(|(_, line)| line.runtime == here)?;
                lines.remove(last)
            };
            if since.elapsed() < IDLE_MAX && line.is_free() {
                return Some(line);
            }
        }
    }

    /// Keeps a connection that is ready for another request, and closes any other.
    fn keep(self: &Arc<Self>, mut line: Box<Line>) {
        if !line.is_free() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.closed {
            return;
        }
        idle.lines.push((Instant::now(), line));
        if !std::mem::replace(&mut idle.swept, true) {
            drop(tokio::spawn(sweep(Arc::downgrade(self))));
        }
    }
}

/// Closes connections that are idle for too long, until there are none.
async fn sweep(pool: Weak<Pool>) {
    let mut due = Instant::now() + IDLE_MAX;
    loop {
        sleep_until(due).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.lock();
        idle.lines.retain(|(since, _)| since.elapsed() < IDLE_MAX);
        let Some((oldest, _)) = idle.lines.first() else {
            idle.swept = false;
            return;
        };
        due = *oldest + IDLE_MAX;
    }
}

/// A connection, and what its requests are handed to.
struct Line {
    /// The runtime on which it was dialled.
    runtime: runtime::Id,
    sender: SendRequest<Body>,
    /// None once it has ended.
    connection: Option<Connection<Socket, Body>>,
}

impl Line {
    async fn new(socket: Socket, heads: Option<Heads>) -> hyper::Result<Self> {
        let mut builder = http1::Builder::new();
        match heads {
            Some(Heads { bytes, headers }) => builder.max_buf_size(bytes).max_headers(headers),
            None => builder.max_buf_size(READ_MAX),
        };
        let (sender, connection) = builder.handshake(socket).await?;
        let runtime = Handle::current().id();
        Ok(Self { runtime, sender, connection: Some(connection) })
    }

    async fn carry(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        let mut response = pin!(self.sender.try_send_request(request));
        poll_fn(|cx| self.turn(cx, |cx| response.as_mut().poll(cx))).await
    }

    /// Polls the connection, and then what waits for it by `wanted`. Where the one wakes the other, the runtime polls both
    /// again.
    fn turn<T>(
        &mut self,
        cx: &mut Context<'_>,
        wanted: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        advance(&mut self.connection, cx);
        wanted(cx)
    }

    /// Whether it is open and ready for a request. Of use only between exchanges.
    fn is_free(&mut self) -> bool {
        advance(&mut self.connection, &mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }
}

/// Polls a connection. One that has ended is dropped, so that what waits for it is notified.
fn advance(connection: &mut Option<Connection<Socket, Body>>, cx: &mut Context<'_>) {
    if connection.as_mut().is_some_and(|connection| Pin::new(connection).poll(cx).is_ready()) {
        *connection = None;
    }
}

/// The body of an answer, with the connection on which it comes.
pub(crate) struct Rows {
    body: Incoming,
    /// Never locked: it lends the value to one thread at a time, which a connection demands.
    line: Mutex<Option<Box<Line>>>,
    home: Arc<Pool>,
}

impl hyper::body::Body for Rows {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { body, line, home } = self.get_mut();
        let slot = line.get_mut();
        let Some(line) = slot else { return Poll::Ready(None) };
        let frame = ready!(line.turn(cx, |cx| Pin::new(&mut *body).poll_frame(cx)));
        match &frame {
            Some(Ok(_)) => {}
            Some(Err(_)) => *slot = None,
            None => {
                if let Some(line) = slot.take() {
                    home.keep(line);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };

    use super::*;
    use crate::net::{
        test_port::own_address,
        testing::{PATIENCE, server, until},
    };

    const SHORT: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    /// A server that the test plays itself, and the pool of connections to it.
    async fn played() -> (TcpListener, Arc<Pool>) {
        let listener = TcpListener::bind(own_address()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, Pool::new(Dialer::new(server(port))))
    }

    fn request(body: Body) -> Request<Body> {
        Request::post("/").header("host", "h").body(body).unwrap()
    }

    fn short() -> Request<Body> {
        request(Full::new("SELECT 1".into()).map_err(|never| match never {}).boxed_unsync())
    }

    /// Reads from `stream` until `end` has come. Returns all of it.
    async fn read_to(stream: &mut TcpStream, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut text)).await;
            assert_ne!(read.unwrap().unwrap(), 0, "{}", String::from_utf8_lossy(&text));
        }
        String::from_utf8(text).unwrap()
    }

    async fn answered(pool: &Arc<Pool>) {
        let response = pool.send(short()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }

    /// Answers one request on `stream`, and has the pool read the answer to its end.
    async fn exchange(pool: &Arc<Pool>, stream: &mut TcpStream) {
        let server = async {
            read_to(stream, "SELECT 1").await;
            stream.write_all(SHORT).await.unwrap();
        };
        tokio::join!(answered(pool), server);
    }

    /// The first exchange, on a connection that is dialled for it.
    async fn begun(listener: &TcpListener, pool: &Arc<Pool>) -> TcpStream {
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_to(&mut stream, "SELECT 1").await;
            stream.write_all(SHORT).await.unwrap();
            stream
        };
        tokio::join!(answered(pool), server).1
    }

    #[tokio::test]
    async fn an_answer_that_was_read_to_its_end_gives_its_connection_back() {
        let (listener, pool) = played().await;
        let mut stream = begun(&listener, &pool).await;
        for _ in 0..3 {
            exchange(&pool, &mut stream).await;
        }
        assert_eq!((pool.connections(), pool.idle.lock().lines.len()), (1, 1));
    }

    #[tokio::test]
    async fn an_idle_connection_that_the_server_closed_is_not_used() {
        let (listener, pool) = played().await;
        drop(begun(&listener, &pool).await);
        until("it is seen", || pool.connections() == 0).await;
        // Nor if nobody looked in between: long enough for the closing to arrive.
        drop(begun(&listener, &pool).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(begun(&listener, &pool).await);
    }

    #[tokio::test]
    async fn an_exchange_takes_no_connection_of_another_runtime() {
        let (listener, pool) = played().await;
        let mut own = begun(&listener, &pool).await;
        let there = Arc::clone(&pool);
        let elsewhere = tokio::task::spawn_blocking(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(answered(&there));
            assert_eq!(there.connections(), 2);
        });
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_to(&mut stream, "SELECT 1").await;
            stream.write_all(SHORT).await.unwrap();
            stream
        };
        let (ended, _stream) = tokio::join!(elsewhere, server);
        ended.unwrap();
        exchange(&pool, &mut own).await;
        assert_eq!(pool.connections(), 1, "that of a runtime that has ended is closed");
    }

    #[tokio::test]
    async fn a_connection_that_was_idle_for_too_long_is_closed() {
        let (listener, pool) = played().await;
        let mut stream = begun(&listener, &pool).await;
        until("it is swept", || pool.dialer.open() == 0).await;
        assert!(stream.read(&mut [0]).await.is_err(), "it was reset");
        // One that nobody has swept yet is not used either.
        let old = begun(&listener, &pool).await;
        pool.idle.lock().lines[0].0 -= IDLE_MAX;
        drop(begun(&listener, &pool).await);
        drop(old);
    }

    #[tokio::test]
    async fn a_request_that_was_not_sent_goes_on_another_connection_and_one_that_was_does_not() {
        let (listener, pool) = played().await;
        let stream = begun(&listener, &pool).await;
        let (_, mut line) = pool.idle.lock().lines.pop().unwrap();
        drop(stream);
        // The closing is met only when the request is about to be sent.
        line.connection = None;
        let mut failed = line.carry(short()).await.unwrap_err();
        assert!(failed.take_message().is_some(), "nothing was sent");
        // It was sent, and the connection broke.
        let mut stream = begun(&listener, &pool).await;
        let server = async move { drop(read_to(&mut stream, "SELECT 1").await) };
        let (lost, ()) = tokio::join!(pool.send(short()), server);
        assert!(matches!(lost, Err(Lost::Broken(_))), "it is not sent again");
        assert_eq!(pool.connections(), 0);
    }

    #[tokio::test]
    async fn where_nobody_answers_nothing_is_sent() {
        let (listener, pool) = played().await;
        drop(listener);
        assert!(matches!(pool.send(short()).await, Err(Lost::Dial(DialError::Connect(..)))));
        assert_eq!(pool.connections(), 0);
    }

    #[tokio::test]
    async fn an_answer_that_is_dropped_closes_its_connection() {
        let (listener, pool) = played().await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_to(&mut stream, "SELECT 1").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok").await.unwrap();
            stream
        };
        let (response, mut stream) = tokio::join!(pool.send(short()), server);
        let mut rows = response.unwrap().into_body();
        assert_eq!(rows.frame().await.unwrap().unwrap().into_data().unwrap(), "ok");
        drop(rows);
        assert_eq!(pool.connections(), 0);
        assert!(stream.read(&mut [0]).await.is_err(), "it was reset");
        // So does a request that is dropped before its answer has begun.
        let sent = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_to(&mut stream, "SELECT 1").await;
        };
        tokio::select! {
            _ = pool.send(short()) => panic!("nobody answered"),
            () = sent => {}
        }
        assert_eq!(pool.connections(), 0);
    }

    #[tokio::test]
    async fn an_upload_is_sent_while_its_answer_comes() {
        let (listener, pool) = played().await;
        let (pieces, mut rest) = mpsc::channel::<Bytes>(1);
        let body = futures_util::stream::poll_fn(move |cx| rest.poll_recv(cx));
        let body = StreamBody::new(futures_util::StreamExt::map(body, |piece| {
            Ok::<_, AttemptError>(Frame::data(piece))
        }));
        pieces.send("one".into()).await.unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_to(&mut stream, "one\r\n").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no").await.unwrap();
            stream
        };
        let (response, mut stream) =
            tokio::join!(pool.send(request(BodyExt::boxed_unsync(body))), server);
        let mut rows = response.unwrap().into_body();
        assert_eq!(rows.frame().await.unwrap().unwrap().into_data().unwrap(), "o");
        pieces.send("two".into()).await.unwrap();
        drop(pieces);
        let server = async {
            read_to(&mut stream, "two\r\n0\r\n\r\n").await;
            stream.write_all(b"k").await.unwrap();
        };
        let (end, ()) = tokio::join!(rows.collect(), server);
        assert_eq!(end.unwrap().to_bytes(), "k");
        assert_eq!(pool.idle.lock().lines.len(), 1);
    }

    #[tokio::test]
    async fn a_pool_that_is_closed_keeps_nothing() {
        let (listener, pool) = played().await;
        let _idle = begun(&listener, &pool).await;
        pool.close();
        assert_eq!(pool.connections(), 0);
        drop(begun(&listener, &pool).await);
        assert_eq!(pool.connections(), 0);
    }
}
