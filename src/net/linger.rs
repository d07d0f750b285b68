//! What is left of a request's body when nobody reads it any more.
//!
//! An answer may be given before the body is read: 404, 409, 413, 429. A client that sends head and body apart is then
//! still sending. If the connection were closed, that client would get a broken pipe and never read the answer. So
//! the answer goes out at once, and the rest of the body is read and thrown away beside it, for a bounded time and up
//! to a bounded size. What ends within the bounds leaves a connection that can be used again; what goes on beyond
//! them is cut off.
//!
//! A client that waits for `100 Continue` sends no body after another answer: that one is not waited for.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use crate::ingress::paced::{Busy, Pace};

/// The longest that the rest of a body is read.
const TIME: Duration = Duration::from_secs(10);
/// The longest that it may stop.
const PAUSE: Duration = Duration::from_secs(1);
/// The most of it that is read, in bytes.
const SIZE: usize = 64 << 20;

/// A request's body. Dropped before its end, its rest is read in a task of its own.
pub(crate) struct Lent {
    /// `None` once it is dropped.
    body: Option<Incoming>,
    pace: Pace,
    /// Whether the client sends it only when it is asked to, and has not been asked.
    is_held_back: bool,
}

/// The body of a request, if it has any; `expects` says whether its client waits to be asked for it.
pub(crate) fn lent(body: Incoming, expects: bool, pace: &Pace) -> Option<Lent> {
    let is_empty = body.is_end_stream();
    (!is_empty).then(|| Lent { body: Some(body), pace: pace.clone(), is_held_back: expects })
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_held_back = false;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else { return };
        if body.is_end_stream() || self.is_held_back {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn(read_on(body, self.pace.busy())));
        }
    }
}

/// Reads the rest of a body within the bounds.
async fn read_on(mut body: Incoming, _busy: Busy) {
    let end = Instant::now() + TIME;
    let mut left = SIZE;
    while left > 0 {
        let until = end.min(Instant::now() + PAUSE);
        let Ok(Some(Ok(frame))) = timeout_at(until, body.frame()).await else { return };
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
    }
}
