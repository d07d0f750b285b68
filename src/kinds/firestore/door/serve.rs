//! One connection of a client, from its first byte to its end.
//!
//! The limits against floods are HTTP/2's own: so many streams at once, so much of headers, and an end for clients that
//! open and reset streams faster than they are taken. What is here unread of requests is bounded by their windows: see
//! [`windows`](super::windows).

use std::{convert::Infallible, pin::pin, sync::Arc};

use hyper::{
    Request, Response, Version,
    body::Incoming,
    header::CONTENT_TYPE,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::time::timeout;

use super::{answer::Body, busy::Busy, call, core::Core, counters::Closed, preface::Socket, rest};
use crate::ingress::{door::DoorStream, peer::Who};

/// Streams at once over a client's connection.
const STREAMS_MAX: u32 = 1_000;
/// What is read of headers at all: what is above [`METADATA_MAX`](super::metadata::METADATA_MAX) gets an error. Of
/// HTTP/1.1 it is also what is here unread of a body.
const HEADERS_READ: u32 = 64 << 10;
/// Streams that were reset before they were taken.
const RESETS_MAX: usize = 50;
/// Streams that the client made the door reset.
const FAULTS_MAX: usize = 200;
/// What of an answer waits for the socket.
const SEND_BUFFER: usize = 64 << 10;

/// Serves a client until it leaves.
pub(super) async fn serve(core: Arc<Core>, stream: DoorStream, who: Option<Who>) {
    core.counters.came();
    let why = served(&core, stream, who).await;
    core.counters.went(why);
}

async fn served(core: &Arc<Core>, stream: DoorStream, who: Option<Who>) -> Closed {
    let is_tcp = matches!(stream, DoorStream::Tcp(_));
    let mut socket = Socket::new(stream, Arc::clone(core));
    let is_http2 = tokio::select! {
        begun = timeout(core.settings.partial_max, socket.is_http2()) => match begun {
            Ok(Ok(Some(is_http2))) => is_http2,
            Ok(_) => return Closed::Client,
            Err(_) => return Closed::Idle,
        },
        () = core.stop.cancelled() => return Closed::Stop,
    };
    let busy = Arc::<Busy>::default();
    let service = service_fn(|request| {
        let (core, busy) = (Arc::clone(core), Arc::clone(&busy));
        async move {
            let working = busy.begin();
            let response = Box::pin(answered(core, &busy, who, is_tcp, request)).await;
            // Until its last byte the connection is not idle.
            Ok::<_, Infallible>(response.map(|body| body.with(working)))
        }
    });
    let io = TokioIo::new(socket);
    let idle = busy.idle(core.settings.idle_timeout);
    let ended = if is_http2 {
        let (windows, _taken) = core.windows();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .keep_alive_interval(core.settings.keep_alive)
            .keep_alive_timeout(core.settings.keep_alive)
            .initial_stream_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADERS_READ)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .max_local_error_reset_streams(FAULTS_MAX)
            .max_send_buf_size(SEND_BUFFER);
        until_it_ends(builder.serve_connection(io, service), core, idle).await
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_buf_size(HEADERS_READ as usize)
            .header_read_timeout(core.settings.partial_max);
        until_it_ends(builder.serve_connection(io, service), core, idle).await
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(why) => return why,
    };
    match ended {
        Err(error) if error.is_timeout() => Closed::Idle,
        Err(error) if error.is_parse() || is_fault(&error) => {
            tracing::debug!(%error, "a client of a door broke the protocol");
            Closed::Protocol
        }
        Ok(()) | Err(_) => Closed::Client,
    }
}

/// Whether the door ended the connection for what the client did.
fn is_fault(error: &hyper::Error) -> bool {
    use std::error::Error as _;
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| error.is_go_away() && error.is_library())
}

async fn answered(
    core: Arc<Core>,
    busy: &Arc<Busy>,
    who: Option<Who>,
    is_tcp: bool,
    request: Request<Incoming>,
) -> Response<Body> {
    let kind = request.headers().get(CONTENT_TYPE).map(hyper::header::HeaderValue::as_bytes);
    let is_grpc = kind.is_some_and(|kind| kind.starts_with(b"application/grpc"));
    if is_grpc && request.version() == Version::HTTP_2 {
        call::answered(core, busy, who, request).await
    } else {
        rest::answered(core, who, is_tcp, request).await
    }
}

/// Serves a connection to its end, or until the door stops or it has been idle for too long: then it finishes what
/// runs.
async fn until_it_ends<C: GracefulConnection>(
    connection: C,
    core: &Core,
    idle: impl Future<Output = ()>,
) -> Result<Result<(), C::Error>, Closed> {
    let mut connection = pin!(connection);
    let why = tokio::select! {
        ended = connection.as_mut() => return Ok(ended),
        () = core.stop.cancelled() => Closed::Stop,
        () = idle => Closed::Idle,
    };
    connection.as_mut().graceful_shutdown();
    drop(connection.await);
    Err(why)
}
