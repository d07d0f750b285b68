//! A call that has come whole: sent, or answered otherwise.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::{OtherWay, Source};
use fusebox_state::ErrorClass;
use hyper::{Method as Verb, Request, Response, http::request::Parts};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep},
};

use super::{
    answer::{Body, Relayed},
    class::{Class, Method},
    core::Core,
    entry::{Entered, Kept},
    exchange::{self, Answered, Lost, Sending, Waiting},
    following::Following,
    lanes::Touched,
    metadata::strip,
    pool::Upstream,
    reading::Begun,
    telling::Told,
    understood::{Asker, Ended, Understood},
    who::Principal,
};
use crate::kinds::firestore::protocol::outcome::Behalf;

/// How much longer than its time an attempt is waited for.
const GRACE: Duration = Duration::from_millis(100);
/// No deadline is further away.
const FAR: Duration = Duration::from_secs(30 * 86_400);

/// A call on its way.
pub(super) struct Carrying {
    pub(super) upstream: Arc<Upstream>,
    pub(super) method: Method,
    pub(super) by: Principal,
    pub(super) uid: u32,
    pub(super) touched: Touched,
    pub(super) understood: Option<Understood>,
    pub(super) arrived: Instant,
    /// How long its client waits, if it says so.
    pub(super) asked: Option<Duration>,
    /// How long it may take until its answer begins.
    pub(super) time: Option<Duration>,
}

/// An answer, and where it comes from.
type Given = (Response<Body>, Source);

/// Where something comes from, an entry of the cache, and how old it is.
type Cached = (Source, Bytes, Duration);

/// How a call that was sent has ended.
enum Sent {
    /// The server answers.
    Answered(Box<Answered>),
    /// The cache does, in the stead of a server that does not.
    Cached(Cached),
    Lost(Lost),
    /// Nobody knows yet.
    Late,
}

impl Carrying {
    /// The server's answer, or another one.
    pub(super) async fn answered(
        &self,
        core: &Arc<Core>,
        head: Parts,
        begun: Begun,
        share: OwnedSemaphorePermit,
    ) -> Result<Given, Told> {
        let ended = Box::pin(self.carried(core, head, begun, share)).await;
        ended.or_else(|told| {
            if !told.executed_nothing() || !self.touched.transaction {
                Err(told)
            } else if self.method.operation == "rollback" {
                // An outage has ended the transaction, without its writes.
                Ok((Told::nothing_to_do(), Source::Live))
            } else {
                Err(told.in_transaction())
            }
        })
    }

    async fn carried(
        &self,
        core: &Arc<Core>,
        head: Parts,
        begun: Begun,
        share: OwnedSemaphorePermit,
    ) -> Result<Given, Told> {
        let Self { upstream, method, touched, understood, .. } = self;
        let understood = understood.as_ref();
        if let Some(understood) = understood
            && (understood.needs_marker || core.is_barred())
        {
            return self.instead(core, understood, share).await;
        }
        let headers = core.headers(upstream, *method, &self.by, head.headers, self.time).await;
        let headers = match (headers, understood) {
            (Ok(headers), _) => headers,
            (Err(_), Some(understood)) => return self.instead(core, understood, share).await,
            (Err(told), None) => return Err(told),
        };
        let (mut sent, ()) = Request::new(()).into_parts();
        (sent.method, sent.uri, sent.headers) = (Verb::POST, head.uri, headers);
        // What a client takes to send its request is its own time.
        let until = self.until(Instant::now() + core.backend.timeout());
        let otherwise = understood.map(|it| it.absolute);
        let entered = match core.admitted(upstream, *method, touched, until, otherwise).await {
            Ok(entered) => entered,
            Err(why) => match understood.filter(|_| !matches!(why, Kept::Way(OtherWay::Full))) {
                Some(understood) => return self.instead(core, understood, share).await,
                None => return Err(core.kept(upstream, *method, touched, &why)),
            },
        };
        let sending = Sending {
            core: Arc::clone(core),
            upstream: Arc::clone(upstream),
            method: *method,
            head: sent,
            begun,
            behalf: Behalf { caller: self.by.own.is_some(), transaction: touched.transaction },
            goes_on: understood.is_some(),
            by_hand: false,
        };
        Box::pin(self.sent(core, entered, sending, share)).await
    }

    /// The moment, or its deadline if that is earlier.
    fn until(&self, at: Instant) -> Instant {
        let deadline = self.time.and_then(|time| self.arrived.checked_add(time));
        at.min(deadline.unwrap_or(self.arrived + FAR))
    }

    /// Sends it, and goes on with what comes of that.
    async fn sent(
        &self,
        core: &Arc<Core>,
        entered: Entered,
        sending: Sending,
        share: OwnedSemaphorePermit,
    ) -> Result<Given, Told> {
        let understood = self.understood.as_ref();
        // Before anything is sent: what is written meanwhile is not in it.
        let following = understood.map(|it| core.follow(&self.upstream, it));
        let mut waiting = Waiting::new(core, entered, |held, left, pass| {
            Box::pin(exchange::send(sending, held, left, pass))
        });
        let sent = self.waited(core, &mut waiting).await;
        // Of a write that may still land it says so from here on.
        drop(waiting);
        let is_write = self.method.class == Class::Write;
        match (sent, understood) {
            (Sent::Answered(mut answered), Some(understood)) => {
                let Some(onward) = answered.onward.take() else {
                    return Ok(self.relayed(core, *answered, following, share));
                };
                if understood.is_batch() {
                    core.backend.end(*onward);
                    return Ok(self.relayed(core, *answered, following, share));
                }
                let asker = self.asker(share);
                match core.instead(&self.upstream, understood, Some(onward), asker).await {
                    Ok(given) => Ok(given),
                    Err(Ended { error, .. }) if error.outcome_unknown => {
                        Err(core.told_of(self.method, &error, None))
                    }
                    // The server's own words.
                    Err(Ended { share, .. }) => Ok(self.relayed(core, *answered, None, share)),
                }
            }
            (Sent::Answered(answered), None) => Ok(self.relayed(core, *answered, None, share)),
            (Sent::Cached(cached), Some(understood)) => {
                let source = cached.0;
                let response = core.cached(&self.upstream, understood, cached, share);
                let response = response.ok_or_else(|| Told::fault("what is cached is no reply"))?;
                Ok((response, source))
            }
            (Sent::Lost(Lost::Onward(onward, attempt)), Some(understood))
                if !understood.is_batch() || attempt.class == ErrorClass::NotExecuted =>
            {
                let asker = self.asker(share);
                let ended = core.instead(&self.upstream, understood, Some(onward), asker).await;
                ended.map_err(|Ended { error, .. }| {
                    core.told_of(self.method, &error, Some(&attempt))
                })
            }
            (Sent::Lost(Lost::Onward(onward, attempt)), _) => {
                core.backend.end(*onward);
                Err(core.failed(self.method, &attempt))
            }
            (Sent::Lost(Lost::Told(told)), _) => Err(told),
            (Sent::Late, _) if is_write => {
                Err(core.unknown_outcome("no answer in the caller's time"))
            }
            (Sent::Late | Sent::Cached(_), _) => Err(Told::late(core.backend.name())),
        }
    }

    /// Another answer than the server's, which is not asked.
    async fn instead(
        &self,
        core: &Arc<Core>,
        understood: &Understood,
        share: OwnedSemaphorePermit,
    ) -> Result<Given, Told> {
        let ended = core.instead(&self.upstream, understood, None, self.asker(share)).await;
        ended.map_err(|Ended { error, .. }| core.told_of(self.method, &error, None))
    }

    fn asker(&self, share: OwnedSemaphorePermit) -> Asker {
        Asker { method: self.method, uid: self.uid, time: self.time, share }
    }

    /// The server's answer, as it comes.
    fn relayed(
        &self,
        core: &Arc<Core>,
        answered: Answered,
        following: Option<Following>,
        share: OwnedSemaphorePermit,
    ) -> Given {
        let Answered { head, first, rest, .. } = answered;
        let until = self.asked.and_then(|time| self.arrived.checked_add(time));
        let relayed = Relayed::new(core, self.method, (first, rest), following, until, share);
        let mut response = Response::new(Body::relayed(relayed));
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        strip(response.headers_mut());
        (response, Source::Live)
    }

    /// Waits for the beginning of the answer. A get does not wait for a suspect server if it is cached.
    async fn waited(&self, core: &Arc<Core>, waiting: &mut Waiting<Answered, Lost>) -> Sent {
        // A little longer than the attempt, so that it is known what became of it.
        let until = self.until(Instant::now() + core.backend.timeout() + GRACE);
        let document = self.understood.as_ref().and_then(Understood::one_document);
        let suspects = async {
            if document.is_none() {
                std::future::pending::<()>().await;
            }
            sleep(core.backend.answer_after()).await;
            core.backend.suspect().await;
        };
        let ended = tokio::select! {
            biased;
            ended = waiting.answered(until) => Some(ended),
            () = suspects => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => match document.and_then(|document| waiting.instead(&document)) {
                Some(cached) => return Sent::Cached(cached),
                None => waiting.answered(until).await,
            },
        };
        match ended {
            Some(Ok(answered)) => Sent::Answered(Box::new(answered)),
            Some(Err(lost)) => Sent::Lost(lost),
            None => Sent::Late,
        }
    }
}
