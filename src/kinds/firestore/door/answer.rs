//! What goes back to a client: the server's answer as it comes, or words of the door's own.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::Stream;
use hyper::{
    HeaderMap, Response,
    body::{Frame, Incoming, SizeHint},
    header::{HeaderName, HeaderValue},
};
use tokio::{sync::OwnedSemaphorePermit, time::Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    busy::Working,
    class::{Class, Method, Shape},
    core::Core,
    exchange::Coming,
    following::Following,
    framing,
    outcome::status_of,
    pool::{Line, REPLACED},
    telling::Told,
};

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// An answer of HTTP/1.1 broke off.
#[derive(Debug, thiserror::Error)]
#[error("the server's answer is incomplete")]
pub(super) struct Broken;

/// The body of an answer.
pub(super) struct Body {
    kind: Kind,
    /// The connection is busy while it lives.
    _working: Option<Working>,
}

enum Kind {
    Whole(Bytes),
    /// Of gRPC: no message, and a status.
    Status(Option<HeaderMap>),
    /// Of gRPC: messages of the door's own, and a status.
    Made {
        messages: Bytes,
        trailers: Option<HeaderMap>,
        _share: Option<OwnedSemaphorePermit>,
    },
    Relayed(Box<Relayed>),
    /// Of gRPC: whatever comes.
    Frames(Pin<Box<dyn Stream<Item = Frame<Bytes>> + Send>>),
    Plain(Box<Plain>),
}

/// An answer of gRPC.
pub(super) struct Relayed {
    pub(super) core: Arc<Core>,
    pub(super) method: Method,
    /// What is here.
    pub(super) first: Option<Frame<Bytes>>,
    /// What is to come.
    pub(super) rest: Option<Coming>,
    /// What learns of it.
    pub(super) following: Option<Following>,
    /// When the client does not wait any longer.
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    /// The door stops, and an answer that lasts does not hold it up.
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _share: OwnedSemaphorePermit,
}

/// An answer of HTTP/1.1.
pub(super) struct Plain {
    pub(super) body: Incoming,
    /// The connection that it comes over, which is free behind it.
    pub(super) line: Option<Line>,
    pub(super) _share: OwnedSemaphorePermit,
}

impl Body {
    pub(super) fn of(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Whole(bytes.into()), _working: None }
    }

    pub(super) fn status(trailers: HeaderMap) -> Self {
        Self { kind: Kind::Status(Some(trailers)), _working: None }
    }

    /// Messages as they go over the wire, and `OK`.
    pub(super) fn made(
        messages: Bytes,
        trailers: HeaderMap,
        share: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let kind = Kind::Made { messages, trailers: Some(trailers), _share: share };
        Self { kind, _working: None }
    }

    pub(super) fn relayed(relayed: Relayed) -> Self {
        Self { kind: Kind::Relayed(Box::new(relayed)), _working: None }
    }

    /// Of gRPC: the frames as they come, with trailers at their end.
    pub(super) fn frames(frames: impl Stream<Item = Frame<Bytes>> + Send + 'static) -> Self {
        Self { kind: Kind::Frames(Box::pin(frames)), _working: None }
    }

    pub(super) fn plain(plain: Plain) -> Self {
        Self { kind: Kind::Plain(Box::new(plain)), _working: None }
    }

    pub(super) fn with(self, working: Working) -> Self {
        Self { _working: Some(working), ..self }
    }
}

impl Told {
    /// As an answer without a message. Its headers go first: what Google's client for Node streams it tries three times
    /// over if an error comes without them.
    pub(super) fn grpc(&self) -> Response<Body> {
        let mut response = Response::new(Body::status(self.trailers()));
        *response.headers_mut() = Self::headers();
        response
    }
}

impl Told {
    /// `OK` instead, and an empty message: there is nothing to do any more.
    pub(super) fn nothing_to_do() -> Response<Body> {
        let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
        let empty = framing::framed(&[Bytes::new()]);
        let mut response = Response::new(Body::made(empty, trailers, None));
        *response.headers_mut() = Self::headers();
        response
    }
}

impl Relayed {
    pub(super) fn new(
        core: &Arc<Core>,
        method: Method,
        (first, rest): (Option<Frame<Bytes>>, Option<Coming>),
        following: Option<Following>,
        deadline: Option<tokio::time::Instant>,
        share: OwnedSemaphorePermit,
    ) -> Self {
        let stop =
            (method.shape == Shape::Lasting).then(|| Box::pin(core.stop.clone().cancelled_owned()));
        let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        Self {
            core: Arc::clone(core),
            method,
            first,
            rest,
            following,
            deadline,
            stop,
            _share: share,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let next = ready!(self.poll_next(cx));
        if let (Some(frame), Some(following)) = (&next, &mut self.following) {
            following.passes(frame);
        }
        Poll::Ready(next)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let Some(coming) = &mut self.rest else { return Poll::Ready(None) };
        let told = match hyper::body::Body::poll_frame(Pin::new(&mut coming.answer), cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(streamed), Some(data)) = (&mut coming.streamed, frame.data_ref()) {
                    streamed.passes(data.clone());
                    streamed.is_read(false);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    if let Some(streamed) = coming.streamed.take() {
                        streamed.ends(status_of(trailers));
                    }
                    self.rest = None;
                }
                return Poll::Ready(Some(frame));
            }
            Poll::Ready(end) => coming.ended.lock().take().unwrap_or_else(|| {
                let error = end.and_then(Result::err);
                if let Some(streamed) = &coming.streamed {
                    streamed.breaks(error.as_ref());
                }
                let why =
                    if error.is_none() { "the answer has no status" } else { "the stream broke" };
                Told::lost(self.core.backend.name(), why)
            }),
            Poll::Pending => {
                if let Some(streamed) = &coming.streamed {
                    streamed.is_read(true);
                }
                let mut stop = self.stop.as_mut();
                let mut deadline = self.deadline.as_mut();
                if stop.as_mut().is_some_and(|stop| stop.as_mut().poll(cx).is_ready()) {
                    Told::stopping()
                } else if deadline.as_mut().is_some_and(|at| at.as_mut().poll(cx).is_ready()) {
                    Told::late(self.core.backend.name())
                } else if coming.is_over(cx) {
                    Told::lost(self.core.backend.name(), REPLACED)
                } else {
                    return Poll::Pending;
                }
            }
        };
        let may_write = if let Some(streamed) = &coming.streamed {
            streamed.stops()
        } else {
            let is_known = coming.has_status || self.method.shape == Shape::Lasting;
            self.method.class == Class::Write && !is_known
        };
        let told = if may_write { self.core.perhaps_executed(told) } else { told };
        self.rest = None;
        let trailers: HeaderMap = told.trailers();
        Poll::Ready(Some(Frame::trailers(trailers)))
    }
}

impl Plain {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let next = ready!(hyper::body::Body::poll_frame(Pin::new(&mut self.body), cx));
        match next {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Err(_)) => {
                self.line = None;
                Poll::Ready(Some(Err(Broken)))
            }
            None => {
                if let Some(line) = self.line.take() {
                    line.give_back();
                }
                Poll::Ready(None)
            }
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.get_mut().kind {
            Kind::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Made { messages, .. } if !messages.is_empty() => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(messages)))))
            }
            Kind::Status(trailers) | Kind::Made { trailers, .. } => {
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Kind::Relayed(relayed) => relayed.poll(cx).map(|frame| frame.map(Ok)),
            Kind::Frames(frames) => frames.as_mut().poll_next(cx).map(|frame| frame.map(Ok)),
            Kind::Plain(plain) => plain.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Made { messages, trailers, .. } => messages.is_empty() && trailers.is_none(),
            Kind::Status(trailers) => trailers.is_none(),
            Kind::Relayed(relayed) => relayed.first.is_none() && relayed.rest.is_none(),
            Kind::Frames(_) => false,
            Kind::Plain(plain) => hyper::body::Body::is_end_stream(&plain.body),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Relayed(_) | Kind::Frames(_) | Kind::Status(_) | Kind::Made { .. } => {
                SizeHint::default()
            }
            Kind::Plain(plain) => hyper::body::Body::size_hint(&plain.body),
        }
    }
}
