//! A call on the wire: sent, and settled by how its answer begins.
//!
//! ```text
//!  on the wire ──▶ first byte, or a status: settled, handed on
//!     │ its client leaves, or its time is over
//!     ▼
//!  on the wire, abandoned ──▶ answered, or `timeout` has passed: settled, and its stream is reset
//! ```

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Context,
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::{
    Onward, Outcome, Settled, Source, Ticket,
    connector::{AttemptError, Connector as _, OwnCode},
};
use fusebox_state::{ErrorClass, LaneId, OpId, Verdict};
use h2::SendStream;
use http_body_util::BodyExt;
use hyper::{
    StatusCode,
    body::Frame,
    http::{request, response},
};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use super::{
    blame::Blame,
    class::{Class, Method, Shape},
    core::Core,
    entry::{CalledBy, Entered},
    outcome::{given_up, of_http, status_of, unknown},
    pool::{Over, Took, Upstream},
    pumping::{Pump, Writes},
    reading::Begun,
    scope::Scope,
    streamed::{Streamed, UnderWay},
    telling::Told,
};
use crate::{
    kinds::firestore::{
        connector::FirestoreConnector,
        protocol::outcome::{Behalf, Cause, Failed},
        transport::{cause, fence},
    },
    net::grpc::{Answer, Carrier, place::Place, pool::Lease},
};

/// How often a call is sent that the server has not acted upon.
const TRIES: usize = 2;
/// Why the outcome of a write is not known whose client has no more time.
const LATE: &str = "no answer before the caller's deadline";

/// A call that is to be sent.
pub(super) struct Sending {
    pub(super) core: Arc<Core>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) method: Method,
    /// What its client may name in what it sends later.
    pub(super) scope: Scope,
    pub(super) caller: CalledBy,
    pub(super) head: request::Parts,
    pub(super) begun: Begun,
    pub(super) behalf: Behalf,
    /// How long its client waits, if it says so.
    pub(super) asked: Option<Duration>,
    /// Something else may answer it if the server does not.
    pub(super) goes_on: bool,
    /// What its client sends later is sent by who sends this; see [`Coming::onward`].
    pub(super) by_hand: bool,
}

/// An answer that has begun.
pub(super) struct Answered {
    pub(super) head: response::Parts,
    /// What of its body is here.
    pub(super) first: Option<Frame<Bytes>>,
    /// What is to come; `None` if that was all.
    pub(super) rest: Option<Coming>,
    /// It is a status that leaves room for another answer: the call may be carried on.
    pub(super) onward: Option<Box<Onward>>,
}

/// There is no answer.
pub(super) enum Lost {
    /// The answer to its client.
    Told(Told),
    /// It may be carried on; how its attempt ended.
    Onward(Box<Onward>, AttemptError),
}

impl From<Told> for Lost {
    fn from(told: Told) -> Self {
        Self::Told(told)
    }
}

/// The rest of an answer, and what belongs to it while it lives.
pub(super) struct Coming {
    pub(super) answer: Answer,
    /// Of a stream of writes.
    pub(super) streamed: Option<Streamed>,
    /// Receives the rest of its request, if it is sent by hand.
    pub(super) onward: Option<SendStream<Bytes>>,
    /// What ended it on this side.
    pub(super) ended: Arc<Mutex<Option<Told>>>,
    /// It has a status, so that it is known what became of it.
    pub(super) has_status: bool,
    /// Resolves when its upstream is over, if that ends it.
    pub(super) over: Option<Over>,
    _pump: Option<AbortOnDropHandle<()>>,
    _place: Arc<Place>,
}

impl Coming {
    /// Whether its upstream is over, and everything that was sent is answered: what follows would be of a server that the
    /// backend does not have any more. Wakes when that may be so.
    pub(super) fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(over) = &mut self.over else { return false };
        over.as_mut().poll(cx).is_ready()
            && self.streamed.as_ref().is_none_or(Streamed::stops_if_answered)
    }
}

/// The ticket of a call, which its client's end of it may abandon.
pub(super) type Held = Arc<Mutex<Option<Ticket>>>;

type OnWire<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// A call on the wire for whose answer its client waits. Dropped before it, the call goes on by itself; but what was
/// not sent by then is not sent.
pub(super) struct Waiting<T: Send + 'static, E: Send + 'static> {
    core: Arc<Core>,
    held: Held,
    on_wire: Option<OnWire<T, E>>,
    wait: Option<fence::Wait>,
}

impl<T: Send + 'static, E: Send + 'static> Waiting<T, E> {
    pub(super) fn new(
        core: &Arc<Core>,
        entered: Entered,
        send: impl FnOnce(Held, Option<fence::Pass>) -> OnWire<T, E>,
    ) -> Self {
        let (wait, pass) = entered.fence.unzip();
        let held = Arc::new(Mutex::new(Some(entered.ticket)));
        let on_wire = Some(send(Arc::clone(&held), pass));
        Self { core: Arc::clone(core), held, on_wire, wait }
    }

    /// The answer, once it has begun; `None` if that is not so by then.
    pub(super) async fn answered(&mut self, until: Instant) -> Option<Result<T, E>> {
        let on_wire = self.on_wire.as_mut()?;
        let ended = timeout_at(until, on_wire).await.ok()?;
        self.on_wire = None;
        Some(ended)
    }

    /// What the cache holds of a read that the server does not answer; see [`Ticket::instead`].
    pub(super) fn instead(
        &self,
        (lane, key): &(LaneId, Bytes),
    ) -> Option<(Source, Bytes, Duration)> {
        self.held.lock().as_mut()?.instead((*lane, key), None, |_| true)
    }

    /// What the call goes on with if its client has no more time for the server, and how its attempt has ended for it;
    /// see [`Ticket::part`].
    pub(super) fn part(&self) -> Option<(Box<Onward>, AttemptError)> {
        let mut held = self.held.lock();
        let ticket = held.as_mut()?;
        let error = if ticket.stays() {
            let why = "there was no connection before the caller's deadline";
            AttemptError::own(ErrorClass::NotExecuted, OwnCode::Connect, why)
        } else {
            AttemptError::own(ErrorClass::Unknown, OwnCode::Timeout, LATE)
        };
        Some((ticket.part(error.clone())?, error))
    }

    /// The answer to a client that has no more time.
    pub(super) fn late(&self, method: Method) -> Told {
        let name = self.core.backend.name();
        match method.class {
            Class::Read => Told::late(name),
            Class::Write if self.held.lock().as_ref().is_some_and(Ticket::stays) => {
                Told::no_connection(name)
            }
            Class::Write => self.core.unknown_outcome(LATE),
        }
    }
}

impl<T: Send + 'static, E: Send + 'static> Drop for Waiting<T, E> {
    fn drop(&mut self) {
        let Some(on_wire) = self.on_wire.take() else { return };
        let stays = self.held.lock().as_mut().is_some_and(Ticket::abandon);
        if let Some(wait) = self.wait.take()
            && stays
        {
            wait.unsent();
        }
        self.core.go_on(async move { drop(on_wire.await) });
    }
}

/// Whether a call may be sent now: it was not given up.
pub(super) fn departs(held: &Held) -> bool {
    held.lock().as_ref().is_none_or(Ticket::departs)
}

/// Nothing of a call was acted upon: it is as if it had not been sent.
pub(super) fn comes_back(held: &Held) {
    if let Some(ticket) = &mut *held.lock() {
        ticket.waits();
    }
}

impl Core {
    /// A call has ended, or its answer has begun: nothing follows.
    pub(super) fn settle(&self, held: &Held, failed: Option<Failed>) {
        if let Some(onward) = self.settled(held, failed) {
            self.backend.end(*onward);
        }
    }

    /// The attempt of `ticket` has ended: nothing follows.
    pub(super) fn ends(&self, ticket: Ticket, failed: Option<Failed>) {
        self.settle(&Arc::new(Mutex::new(Some(ticket))), failed);
    }

    /// The same of one that may be carried on, if its client has not left.
    fn settled(&self, held: &Held, failed: Option<Failed>) -> Option<Box<Onward>> {
        let ticket = held.lock().take();
        let outcome = match failed {
            None => Outcome::Answered { cached: None, until: None },
            Some(Failed { verdict, error, .. }) => Outcome::Failed { verdict, error },
        };
        let settled = ticket.map(|ticket| ticket.settle(outcome));
        self.freed.notify_one();
        match settled {
            Some(Settled::GoOn(onward)) => Some(onward),
            Some(Settled::Done) | None => None,
        }
    }

    /// The answer to a call that failed without an answer of the server.
    pub(super) fn failed(&self, method: Method, error: &AttemptError) -> Told {
        let name = self.backend.name();
        let barred = self.is_barred();
        match error.class {
            ErrorClass::Unknown | ErrorClass::Ambiguous if method.class == Class::Write => {
                let why = if error.is(OwnCode::Timeout) {
                    "no answer in time"
                } else {
                    "the connection broke"
                };
                self.unknown_outcome(why)
            }
            _ if barred => Told::not_executed(name, "is open", self.backend.retry_after()),
            ErrorClass::BlockedServer => {
                Told::not_executed(name, "refuses all calls", self.backend.retry_after())
            }
            ErrorClass::NotExecuted => Told::no_connection(name),
            _ if error.is(OwnCode::Timeout) => Told::late(name),
            _ => Told::lost(name, "the connection broke"),
        }
    }

    /// The same of a call that may have written something before it ended so.
    pub(super) fn perhaps_executed(&self, told: Told) -> Told {
        if told.is_unknown_outcome() { told } else { self.unknown_outcome(told.what()) }
    }

    /// A write may have been executed: tells so, and logs it under a number.
    pub(super) fn unknown_outcome(&self, why: &str) -> Told {
        let op_id = OpId::new(self.backend.steady_unix(), fastrand::u128(..));
        let name = self.backend.name();
        tracing::warn!(backend = name, %op_id, why, "a write at a door may have been executed");
        Told::unknown_outcome(name, why, op_id)
    }
}

/// Whether a call that has failed so may be answered otherwise. What blames the call is the answer to it, and so is
/// what the server leaves to its client to do again.
fn may_go_on(failed: &Failed) -> bool {
    match failed.error.class {
        ErrorClass::NotExecuted => failed.status != Some(Code::Aborted),
        ErrorClass::Unknown => !failed.error.unclassified,
        ErrorClass::BlockedServer => true,
        ErrorClass::Rejected
        | ErrorClass::BlockedObject
        | ErrorClass::Ambiguous
        | ErrorClass::Conflict => false,
    }
}

/// What a call has under way that may write message by message; `None` for another one.
///
/// # Errors
/// As many as may are open.
fn under_way(
    core: &Arc<Core>,
    method: Method,
    blame: &Blame,
) -> Result<Option<Arc<UnderWay>>, Told> {
    if method.class == Class::Read || method.shape == Shape::One {
        return Ok(None);
    }
    let place = Arc::clone(&core.alone).try_acquire_owned();
    let place = place.map_err(|_| Told::full("the limit of open streams that write is reached"))?;
    Ok(Some(UnderWay::new(core, blame.clone(), place)))
}

/// It has ended on this side, which says nothing of the server.
fn not_sent(why: &str) -> Failed {
    let class = ErrorClass::NotExecuted;
    Failed::own(Verdict::Neutral, class, OwnCode::Closed, why.to_owned())
}

/// A call was ended on this side, after some of it was sent.
fn ended_here(method: Method) -> Failed {
    let why = "what follows was refused";
    if method.class == Class::Write { unknown(Verdict::Neutral, why) } else { not_sent(why) }
}

/// Whether a call was admitted for what `connector` speaks to. If it was for another address, which a reload has named
/// meanwhile, nothing may carry it on there.
fn is_for(held: &Held, connector: &FirestoreConnector) -> bool {
    held.lock().as_ref().is_some_and(|ticket| ticket.is_for(&connector.target()))
}

/// Why a call has no answer.
enum Unanswered {
    /// Its client left before it could be sent.
    Kept,
    /// It ended so.
    Ended(Status),
}

impl From<Status> for Unanswered {
    fn from(status: Status) -> Self {
        Self::Ended(status)
    }
}

/// How a call has failed that the server has answered with `status`. What does not implement what every Firestore knows
/// is none.
async fn judged(
    status: &Status,
    behalf: Behalf,
    method: Method,
    connector: &FirestoreConnector,
    until: Instant,
) -> Failed {
    let shared = &connector.shared;
    let failed = shared.client.failed(status, behalf).await;
    match method.operation {
        "batch_get" => failed.of_known(),
        "commit" => Box::pin(shared.judged(failed, until)).await,
        _ => failed,
    }
}

/// Sends a call, and settles it.
pub(super) async fn send(
    sending: Sending,
    held: Held,
    pass: Option<fence::Pass>,
) -> Result<Answered, Lost> {
    let (core, method) = (Arc::clone(&sending.core), sending.method);
    let (goes_on, behalf) = (sending.goes_on, sending.behalf);
    let connector = Arc::clone(&sending.upstream.connector);
    let timeout = core.backend.timeout();
    let blame = Blame::of(&sending.upstream, method, sending.asked, timeout);
    // Its server may wait for what its client has still to say, and with its headers until it has an answer to that.
    let is_open = sending.begun.rest.is_some() || sending.by_hand;
    if is_open && let Some(ticket) = &mut *held.lock() {
        ticket.is_kept_waiting();
    }
    // What it has said so far writes nothing: each message that does is admitted by itself.
    let is_counted = method.shape == Shape::Lasting && pass.is_none();
    let under_way = match under_way(&core, method, &blame) {
        Ok(under_way) => under_way,
        Err(told) => {
            core.settle(&held, Some(not_sent(told.what())));
            if let Some(pass) = pass {
                pass.answered();
            }
            return Err(told.into());
        }
    };
    let over = Arc::<Mutex<Option<Told>>>::default();
    let mut took = None;
    let writes = under_way.as_ref().map(|under_way| (under_way, is_counted));
    let trying = tried(sending, &held, &mut took, writes, &over);
    let until = Instant::now() + timeout;
    let ended = timeout_at(until, trying).await;
    let streamed = under_way
        .map(|under_way| Streamed::new(&core, under_way, took.clone(), behalf, is_counted));
    // What ended a call on this side that has no answer.
    let mut told = if let Ok(Ok(_)) = &ended { None } else { over.lock().take() };
    let mut failed = match ended {
        Ok(Ok((mut answered, status))) => {
            let failed = match status.as_ref().filter(|status| status.code() != Code::Ok) {
                Some(it) => Some(blame.judges(judged(it, behalf, method, &connector, until).await)),
                None => None,
            };
            let is_known = failed.as_ref().is_none_or(|failed| failed.error.doubt.is_none());
            match (&mut answered.rest, streamed, pass) {
                (Some(coming), Some(streamed), pass) if status.is_none() => {
                    streamed.keep(pass);
                    coming.streamed = Some(streamed);
                }
                (_, streamed, pass) => {
                    if let Some(streamed) = streamed {
                        streamed.ends(status);
                    }
                    if let Some(pass) = pass.filter(|_| is_known) {
                        pass.answered();
                    }
                }
            }
            if goes_on && failed.as_ref().is_some_and(may_go_on) {
                answered.onward = core.settled(&held, failed);
            } else {
                core.settle(&held, failed);
            }
            return Ok(answered);
        }
        // That says nothing of the server.
        Ok(Err(Unanswered::Kept)) => not_sent("the client closed the stream"),
        Ok(Err(_)) if told.is_some() => ended_here(method),
        Ok(Err(Unanswered::Ended(status))) => blame.judges(blame.failed(&status, behalf)),
        Err(_) => {
            let sent = match took {
                Some(Took { carrier, .. }) if method.class == Class::Write => carrier.reset().await,
                Some(_) => true,
                None => false,
            };
            let mut failed = blame.judges_silence(given_up(sent, timeout));
            if is_open {
                failed.verdict = Verdict::Neutral;
            }
            failed
        }
    };
    if let Some(streamed) = streamed {
        if is_counted && !streamed.stops() && failed.error.doubt.is_some() {
            // No write was sent over it.
            (failed.error.class, failed.error.doubt) = (ErrorClass::NotExecuted, None);
            told.get_or_insert_with(|| Told::late(core.backend.name()));
        }
        streamed.fails(Failed { verdict: Verdict::Neutral, ..failed.clone() });
    }
    if let Some(pass) = pass
        && failed.error.doubt.is_none()
    {
        pass.answered();
    }
    let error = failed.error.clone();
    if goes_on
        && may_go_on(&failed)
        && is_for(&held, &connector)
        && let Some(onward) = core.settled(&held, Some(failed.clone()))
    {
        return Err(Lost::Onward(onward, error));
    }
    core.settle(&held, Some(failed));
    let told = told.filter(|_| error.doubt.is_none());
    Err(told.unwrap_or_else(|| core.failed(method, &error)).into())
}

/// Sends a call, once more if the server has not acted upon it. The status that its answer has so far comes with it.
async fn tried(
    sending: Sending,
    held: &Held,
    took: &mut Option<Took>,
    writes: Option<(&Arc<UnderWay>, bool)>,
    ended: &Arc<Mutex<Option<Told>>>,
) -> Result<(Answered, Option<Status>), Unanswered> {
    let Sending { core, upstream, method, scope, caller, head, mut begun, by_hand, .. } = sending;
    let mut tries = 0;
    loop {
        tries += 1;
        let Lease { place, ready } = upstream.lease(method).await?;
        if !departs(held) {
            return Err(Unanswered::Kept);
        }
        let (place, carrier) = (Arc::new(place), Carrier::default());
        let by = Took { carrier: carrier.clone(), place: Arc::clone(&place) };
        *took = Some(by.clone());
        let opened = ready.open(head.clone(), Some(&carrier))?;
        let mut stream = opened.stream;
        let is_all = begun.rest.is_none() && !by_hand;
        let last = begun.pieces.len().saturating_sub(1);
        let mut sent = Ok(());
        for (at, piece) in begun.pieces.iter().enumerate() {
            sent = sent.and_then(|()| stream.send_data(piece.clone(), is_all && at == last));
        }
        if is_all && begun.pieces.is_empty() {
            sent = sent.and_then(|()| stream.send_data(Bytes::new(), true));
        }
        if sent.is_err() {
            tracing::debug!("a stream ended before all of its request was sent");
        }
        let (ended, taken) = (Arc::clone(ended), Arc::<AtomicBool>::default());
        let (pump, onward) = match &begun.rest {
            Some(rest) => {
                let pump = Pump {
                    core: Arc::clone(&core),
                    upstream: Arc::clone(&upstream),
                    method,
                    scope: scope.clone(),
                    caller: caller.clone(),
                    taken: Arc::clone(&taken),
                    stream,
                    writes: writes.map(|(under_way, is_counted)| Writes {
                        under_way: Arc::clone(under_way),
                        is_counted,
                        took: by,
                    }),
                };
                let (rest, ended) = (Arc::clone(rest), Arc::clone(&ended));
                let pumped = async move { pump.pumps(&rest, &ended).await };
                (Some(AbortOnDropHandle::new(tokio::spawn(pumped))), None)
            }
            None => (None, by_hand.then_some(stream)),
        };
        let answer = match opened.head.answered().await {
            Err(status)
                if matches!(cause::of(&status), Cause::NotSent(_))
                    && tries < TRIES
                    && !taken.load(Ordering::Acquire) =>
            {
                *took = None;
                comes_back(held);
                continue;
            }
            answer => answer?,
        };
        // Whatever comes of it, it is not sent again.
        (begun.pieces, begun.held) = (Vec::new(), Vec::new());
        let (parts, mut answer) = answer.into_parts();
        let coming = |answer, has_status| Coming {
            answer,
            streamed: None,
            onward,
            ended,
            has_status,
            over: (method.shape != Shape::One).then(|| upstream.over()),
            _pump: pump,
            _place: place,
        };
        let status = status_of(&parts.headers);
        let is_all = hyper::body::Body::is_end_stream(&answer);
        if is_all || status.is_some() || parts.status != StatusCode::OK {
            let status = status.unwrap_or_else(|| match parts.status {
                StatusCode::OK => Status::internal("the answer has no status"),
                // No method of gRPC is there.
                StatusCode::NOT_FOUND => Status::unimplemented("HTTP status code 404"),
                other => of_http(other),
            });
            let rest = (!is_all).then(|| coming(answer, true));
            return Ok((Answered { head: parts, first: None, rest, onward: None }, Some(status)));
        }
        let first = match method.shape {
            Shape::Lasting => None,
            Shape::One | Shape::Unknown => answer.frame().await.transpose()?,
        };
        let status = first.as_ref().and_then(Frame::trailers_ref).map(|trailers| {
            status_of(trailers).unwrap_or_else(|| Status::internal("the answer has no status"))
        });
        let rest = status.is_none().then(|| coming(answer, false));
        return Ok((Answered { head: parts, first, rest, onward: None }, status));
    }
}
