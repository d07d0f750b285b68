//! A Listen that survives an outage.
//!
//! ```text
//!            open                         the stream breaks
//!  waiting ───────▶ open: messages pass ───────────────────▶ broken: the client's stream is open, and silent
//!    │ ▲                       ▲                                │      │ ▲
//!    └─┘ no server             └────────────────────────────────┘      └─┘ no server
//!                                open, then RESET if need be
//! ```
//! One without a target is answered with headers, and asks the server nothing before it has one.
//!
//! *Waiting* and *broken* differ in that a waiting one has no headers yet: its client's call has not begun. Both sleep
//! until the backend is asked again, and open a stream with backoff, through the same admission as every call: a
//! place in the bulkhead is held until its headers are here. The client's connection is counted as parked meanwhile.
//!
//! What a target goes on from is said in [`targets`](crate::kinds::firestore::protocol::targets).
//!
//! # What ends what
//! | | waiting | open | broken |
//! | --- | --- | --- | --- |
//! | lost, or the server's `UNAVAILABLE` | waits | broken | broken |
//! | a reload: what opens it again asks the server that there is now | waits | broken | broken |
//! | no headers in time, which says nothing of the backend | waits | | broken |
//! | what is not a message, the first five times in a row | | broken | |
//! | the server's `INTERNAL`, `CANCELLED` | the client gets it | broken | broken |
//! | any other status of the server | the client gets it | the client gets it | the client gets it |
//! | one that may be for a token of ours | | broken, without tokens | the same |
//! | the door may not ask: the breaker, shed, no place | waits | | broken |
//! | the client's time, or the daemon stops | the client gets it | the client gets it | the client gets it |
//! | the client ends its request | the server gets that later | the server gets that | `OK` |
//!
//! # Invariants
//! 1. Only whole messages are handed on, so that what follows a break is never in the middle of one. One that is longer
//!    than a stream's share takes room of its own while it is put together.
//! 2. A message is handed on after [`Targets`] has taken it, and in the order in which it came.
//! 3. What is kept for a client, it has room for: [`Core::hold`].
//! 4. Of a Listen whose messages cannot be read nothing is known, so a break ends it with `UNAVAILABLE`.
//! 5. It has no task: it lives in the answer's body, and ends with it. So a crash leaves nothing, and a client that
//!    leaves takes all of it along.

mod hearing;
mod open;
mod opening;
mod shut;

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use hyper::{
    HeaderMap, Response,
    body::Frame,
    header::{CONTENT_TYPE, HeaderValue},
    http::request::Parts,
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

use self::{
    open::{Came, Open},
    shut::Shut,
};
use super::{
    answer::{Body, GRPC_STATUS, Relayed},
    busy::{Busy, Parked},
    carrying::Carrying,
    core::Core,
    exchange::Answered,
    framing::{self, take_first},
    metadata::strip,
    reading::Begun,
    requests::{Asked, Requests},
    telling::{GRPC, Told},
};
use crate::kinds::firestore::{
    live_queries::Pace,
    protocol::targets::{TARGETS_MAX, Targets, TooMuch},
};

/// See the [module](self).
pub(super) struct Listening {
    core: Arc<Core>,
    busy: Arc<Busy>,
    carrying: Carrying,
    head: Parts,
    requests: Requests,
    targets: Targets,
    /// The room that the targets take.
    room: Option<OwnedSemaphorePermit>,
    open: Option<Open>,
    /// What the client is to be sent.
    out: VecDeque<Frame<Bytes>>,
    has_ended: bool,
    has_headers: bool,
    parked: Option<Parked>,
    pace: Pace,
    failures: u32,
    /// How often in a row the server has said what is not a message.
    faults: u32,
    /// The backend is not asked: whatever `again` says, nothing is tried before it is.
    is_barred: bool,
    again: Pin<Box<Sleep>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Option<Pin<Box<Sleep>>>,
    share: Option<OwnedSemaphorePermit>,
}

/// What happens to a Listen.
enum Event {
    Server(Came),
    Asked(Option<Result<Asked, Told>>),
    /// The backend is asked again.
    Unbarred,
    Again,
    End(Told),
}

/// Answers a Listen whose first message can be read; gives it back otherwise.
pub(super) async fn answered(
    core: &Arc<Core>,
    busy: &Arc<Busy>,
    carrying: Carrying,
    head: Parts,
    begun: Begun,
    share: OwnedSemaphorePermit,
) -> Result<Response<Body>, Told> {
    let (mut targets, mut told) = (Targets::default(), Vec::new());
    let mut messages = begun.messages();
    while let Some((_, message)) = take_first(&mut messages) {
        match message {
            Some(message) => told.extend(targets.asks(&message, false).map_err(too_much)?),
            None => targets.cannot_be_read(),
        }
    }
    let is_plain = !targets.is_opaque();
    let rest = match begun.rest.map(Arc::try_unwrap) {
        Some(Ok(rest)) if is_plain => Some(rest.into_inner()),
        None if is_plain => None,
        rest => {
            let rest = rest.map(|rest| rest.map_or_else(|shared| shared, Arc::new));
            let begun = Begun { rest, ..begun };
            return carrying.answered(core, head, begun, share).await.map(|(response, _)| response);
        }
    };
    drop(begun.held);
    let deadline = carrying.time.and_then(|time| carrying.arrived.checked_add(time));
    let mut listening = Listening {
        core: Arc::clone(core),
        busy: Arc::clone(busy),
        carrying,
        head,
        requests: rest.unwrap_or_else(Requests::none),
        targets,
        room: None,
        open: None,
        out: VecDeque::new(),
        has_ended: false,
        has_headers: false,
        parked: None,
        pace: Pace::default(),
        failures: 0,
        faults: 0,
        is_barred: false,
        again: Box::pin(sleep_until(Instant::now())),
        stop: Box::pin(core.stop.clone().cancelled_owned()),
        deadline: deadline.map(|at| Box::pin(sleep_until(at))),
        share: Some(share),
    };
    listening.tells(told);
    listening.keep().await?;
    listening.begun().await
}

fn too_much(TooMuch(bytes): TooMuch) -> Told {
    Told::too_large(format_args!(
        "the targets have {bytes} bytes: at most {TARGETS_MAX} are allowed"
    ))
}

impl Listening {
    /// The answer, once it has begun.
    async fn begun(mut self) -> Result<Response<Body>, Told> {
        loop {
            if self.targets.is_empty() {
                // There is nothing to ask the server yet, which may say nothing before it is asked something.
                return Ok(self.response(HeaderMap::from_iter([(CONTENT_TYPE, GRPC)])));
            }
            let event = self.happens().await;
            let shut = match event {
                Event::Again => match self.opens().await {
                    Ok(head) => return Ok(self.response(head)),
                    Err(shut) => shut,
                },
                Event::Asked(Some(Ok((framed, message)))) => {
                    self.asks(framed, message).await?;
                    continue;
                }
                Event::Unbarred => {
                    self.waits();
                    continue;
                }
                Event::Asked(Some(Err(told))) | Event::End(told) => return Err(told),
                Event::Asked(None) | Event::Server(_) => continue,
            };
            match shut {
                Shut::Again => self.waits(),
                Shut::Told(told) => return Err(told),
                Shut::Said(answered) => {
                    let Answered { head, first, rest, .. } = *answered;
                    let method = self.carrying.method;
                    let Some(share) = self.share.take() else {
                        return Err(Told::fault("a Listen has no share"));
                    };
                    let relayed =
                        Relayed::new(&self.core, method, (first, rest), None, None, share);
                    let mut response = Response::new(Body::relayed(relayed));
                    *response.status_mut() = head.status;
                    *response.headers_mut() = head.headers;
                    strip(response.headers_mut());
                    return Ok(response);
                }
            }
        }
    }

    fn response(mut self, headers: HeaderMap) -> Response<Body> {
        self.has_headers = true;
        let until = self.carrying.asked.and_then(|time| self.carrying.arrived.checked_add(time));
        self.deadline = until.map(|at| Box::pin(sleep_until(at)));
        let mut response = Response::new(Body::frames(self.frames()));
        *response.headers_mut() = headers;
        strip(response.headers_mut());
        response
    }

    fn frames(self) -> impl Stream<Item = Frame<Bytes>> + Send + use<> {
        stream::unfold(self, |mut listening| async move {
            let next = listening.next().await?;
            Some((next, listening))
        })
    }

    /// What the client is sent next.
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        loop {
            if let Some(frame) = self.out.pop_front() {
                return Some(frame);
            }
            if self.has_ended {
                return None;
            }
            match self.happens().await {
                Event::Server(Came::Frame(frame)) => self.hears(frame).await,
                Event::Server(Came::Sent) => {}
                Event::Asked(Some(Ok((framed, message)))) => {
                    if let Err(told) = self.asks(framed, message).await {
                        self.ends(&told);
                    }
                }
                Event::Asked(Some(Err(told))) | Event::End(told) => self.ends(&told),
                Event::Asked(None) => match &mut self.open {
                    Some(open) => open.end(),
                    None => self.ends_well(),
                },
                Event::Unbarred => self.waits(),
                Event::Again => match self.opens().await {
                    Ok(_) => {}
                    Err(Shut::Again) => self.waits(),
                    Err(Shut::Told(told)) => self.ends(&told),
                    Err(Shut::Said(answered)) => {
                        let mut said = answered.head.headers;
                        said.remove(CONTENT_TYPE);
                        strip(&mut said);
                        self.end(said);
                    }
                },
            }
        }
    }

    /// Waits for what happens next.
    async fn happens(&mut self) -> Event {
        let Self { open, requests, again, stop, deadline, core, targets, has_headers, .. } = self;
        let is_barred = self.is_barred;
        let late = async {
            match deadline {
                Some(deadline) => deadline.await,
                None => std::future::pending().await,
            }
        };
        let name = core.backend.name();
        let is_shut = open.is_none();
        // A client that has said all wants nothing that has to be begun again.
        let has_more = match open {
            Some(open) => open.takes_more() && !requests.has_ended(),
            None => *has_headers || !requests.has_ended(),
        };
        let is_due = is_shut && !targets.is_empty();
        let answers = async {
            match open {
                Some(open) => open.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            asked = requests.next(core), if has_more => Event::Asked(asked),
            came = answers => Event::Server(came),
            () = stop => Event::End(Told::stopping()),
            () = late => Event::End(Told::late(name)),
            () = core.backend.until_asked(), if is_due && is_barred => Event::Unbarred,
            () = again, if is_due && !is_barred => Event::Again,
        }
    }

    /// Takes a request of the client.
    async fn asks(&mut self, framed: Bytes, message: Option<Bytes>) -> Result<(), Told> {
        let is_open = self.open.is_some();
        let Carrying { scope, method, .. } = &self.carrying;
        self.core.may_send(scope, *method, message.as_deref())?;
        match message {
            Some(message) => {
                let answer = self.targets.asks(&message, is_open).map_err(too_much)?;
                self.tells(answer);
            }
            None => self.targets.cannot_be_read(),
        }
        match &mut self.open {
            Some(open) => open.send(framed),
            None if self.targets.is_opaque() => return Err(self.lost()),
            None => {}
        }
        self.keep().await
    }

    /// Takes the room that the targets need.
    async fn keep(&mut self) -> Result<(), Told> {
        self.core.hold_at_least(&mut self.room, self.targets.size()).await
    }

    fn passes(&mut self, messages: Bytes) {
        if !messages.is_empty() {
            self.out.push_back(Frame::data(messages));
        }
    }

    fn tells(&mut self, messages: impl IntoIterator<Item = Bytes>) {
        for message in messages {
            self.passes(framing::framed(&[message]));
        }
    }

    fn lost(&self) -> Told {
        Told::lost(self.core.backend.name(), "the stream broke")
    }

    /// Waits before it tries again.
    fn waits(&mut self) {
        if self.parked.is_none() && !self.targets.is_empty() {
            self.parked = Some(self.busy.park(&self.core));
        }
        let was_barred = std::mem::replace(&mut self.is_barred, self.core.is_barred());
        let wait = if was_barred {
            // They do not all come at once.
            self.pace.gate_shut.mul_f64(fastrand::f64())
        } else {
            self.failures = self.failures.saturating_add(1);
            self.pace.backoff(self.failures - 1)
        };
        self.again.as_mut().reset(Instant::now() + wait);
    }

    fn ends(&mut self, told: &Told) {
        self.end(told.trailers());
    }

    fn ends_well(&mut self) {
        self.end(HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]));
    }

    fn end(&mut self, trailers: HeaderMap) {
        (self.open, self.parked, self.has_ended) = (None, None, true);
        self.out.push_back(Frame::trailers(trailers));
    }
}
