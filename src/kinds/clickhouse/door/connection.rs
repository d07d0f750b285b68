//! One connection, from its first request to its end.

use std::{convert::Infallible, error::Error, io, panic::AssertUnwindSafe, pin::pin, sync::Arc};

use futures_util::FutureExt;
use hyper::{
    Request,
    body::Incoming,
    header::{CONNECTION, EXPECT, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Duration, sleep},
};

use super::{
    answer::{BrokenOff, Sent},
    counters::Closed,
    flushes::Flushes,
    framing::{HEAD_MAX, Strict},
    service::Service,
    visitor::Visitor,
};
use crate::{
    ingress::paced::{Pace, Paced},
    net::linger::lent,
};

/// Most headers of a request. Hyper takes memory for more of them from the heap, for each request.
const HEADERS_MAX: usize = 100;
/// How long a client may leave an answer unread: as long as the server lets it.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// How long the next request may be on its way when the daemon stops.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long the door promises at most to keep an idle connection. It is kept for longer.
const KEPT: Duration = Duration::from_secs(30);

/// Serves a connection to its end.
pub(super) async fn serve(
    service: &Arc<Service>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    visitor: Visitor,
) -> Closed {
    let pace = Pace::default();
    let paced = Paced::patient(stream, pace.clone(), WRITE_TIME);
    let flushes = Flushes::default();
    let io = TokioIo::new(Strict::new(paced, flushes.clone()));
    let (own, visitor) = (Arc::clone(service), Arc::new(visitor));
    let idle = service.settings.idle_timeout;
    let kept = format!("timeout={}", idle.map_or(KEPT, |idle| idle.min(KEPT)).as_secs());
    let kept = HeaderValue::from_str(&kept).ok();
    let handler = service_fn(move |request: Request<Incoming>| {
        let busy = pace.busy();
        let expects = request.headers().contains_key(EXPECT);
        let request = request.map(|body| lent(body, expects, &pace));
        let (service, visitor, kept) = (Arc::clone(&own), Arc::clone(&visitor), kept.clone());
        let sent = Sent::new(busy, flushes.clone());
        async move {
            let answered = AssertUnwindSafe(service.answer(&visitor, request, sent));
            let mut response = answered.catch_unwind().await.unwrap_or_else(|_| service.at_fault());
            let headers = response.headers_mut();
            if *service.stopping.borrow() {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            } else if let Some(kept) = kept {
                headers.insert(HeaderName::from_static("keep-alive"), kept);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_MAX)
        .serve_connection(io, handler);
    let serving = async {
        let mut connection = pin!(connection);
        tokio::select! {
            ended = &mut connection => ended,
            () = goodbye(service.stopping.clone()) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    match serving.await {
        Ok(()) if *service.stopping.borrow() => Closed::Stop,
        Ok(()) => Closed::Client,
        Err(error) => {
            tracing::debug!(%error, "a connection of a door ended");
            why(&error)
        }
    }
}

/// Why a connection ended that ended with an error.
fn why(error: &hyper::Error) -> Closed {
    if error.is_parse() {
        return Closed::Protocol;
    }
    if error.is_timeout() {
        return Closed::Idle;
    }
    let mut cause = error.source();
    while let Some(this) = cause {
        if this.is::<BrokenOff>() {
            return Closed::Upstream;
        }
        let kind = this.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(io::ErrorKind::TimedOut) {
            return Closed::SlowReader;
        }
        cause = this.source();
    }
    Closed::Client
}

/// Resolves when the daemon has been stopping for [`GOODBYE`].
async fn goodbye(mut stopping: watch::Receiver<bool>) {
    // An error is that nobody is left who could stop.
    let _stopping = stopping.wait_for(|stopping| *stopping).await.is_ok();
    sleep(GOODBYE).await;
}
