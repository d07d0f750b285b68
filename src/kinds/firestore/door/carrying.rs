//! A call that has come whole: sent, or answered otherwise.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::{OtherWay, Source, connector::Refused};
use fusebox_state::{ErrorClass, chaos::Strike};
use hyper::{Method as Verb, Request, Response, http::request::Parts};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep},
};

use super::{
    answer::{Body, Relayed},
    class::{Class, Method},
    core::Core,
    entry::{CalledBy, Entered, Kept, Otherwise},
    exchange::{self, Answered, Lost, Sending, Waiting},
    following::{Following, Of},
    lanes::Touched,
    metadata::strip,
    pool::Upstream,
    reading::Begun,
    scope::{self, Scope},
    telling::{self, Told},
    understood::{Asker, Ended, Understood, Whole},
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
    pub(super) caller: CalledBy,
    /// What it may name.
    pub(super) scope: Scope,
    pub(super) touched: Touched,
    pub(super) understood: Option<Understood>,
    pub(super) arrived: Instant,
    /// How long its client waits, if it says so.
    pub(super) asked: Option<Duration>,
    /// How long it may take until its answer begins.
    pub(super) time: Option<Duration>,
}

/// An answer, and its source.
type Given = (Response<Body>, Source);

/// A source, an entry of the cache, and its age.
type Cached = (Source, Bytes, Duration);

/// How a call that was sent has ended.
enum Sent {
    /// The server answers.
    Answered(Box<Answered>),
    /// The cache does, instead of a server that does not.
    Cached(Cached),
    Lost(Lost),
}

impl Sent {
    fn of(ended: Result<Answered, Lost>) -> Self {
        match ended {
            Ok(answered) => Self::Answered(Box::new(answered)),
            Err(lost) => Self::Lost(lost),
        }
    }
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
            let told = match self.hint(core).filter(|_| told.executed_nothing()) {
                Some(hint) => told.hinting(&hint),
                None => told,
            };
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
        let needs_marker = understood.as_ref().is_some_and(|it| it.needs_marker);
        if (needs_marker || core.is_barred())
            && let Some(whole) = self.whole()
        {
            return self.instead(core, whole, share, None).await;
        }
        // The server would say so; without it a client that is asked to come back would do so in vain.
        if core.is_barred()
            && let Some(refused) = understood.as_ref().and_then(|it| it.refused(upstream))
        {
            let Refused { code, message, .. } = refused;
            return Err(Told::refused(telling::code_of(code), core.backend.name(), message));
        }
        let headers = core.headers(upstream, *method, &self.by, head.headers).await;
        let headers = match headers {
            Ok(headers) => headers,
            Err(told) => match self.whole() {
                Some(whole) => return self.instead(core, whole, share, None).await,
                None => return Err(told),
            },
        };
        let (mut sent, ()) = Request::new(()).into_parts();
        (sent.method, sent.uri, sent.headers) = (Verb::POST, head.uri, headers);
        // What a client takes to send its request is its own time.
        let until = self.until(Instant::now() + core.backend.timeout());
        let mut otherwise = understood.as_ref().map(|it| Otherwise { absolute: it.absolute });
        let entered = loop {
            match core.admitted(upstream, *method, touched, until, (&self.caller, otherwise)).await
            {
                Ok(entered) => break entered,
                Err(why @ Kept::Way(OtherWay::Full)) => {
                    return Err(core.kept(upstream, *method, touched, (&self.caller, &why)));
                }
                Err(why) => match (self.whole(), otherwise) {
                    (Some(whole), _) => {
                        let struck = match why {
                            Kept::Way(OtherWay::Struck(strike)) => Some(strike),
                            Kept::Way(_) | Kept::Fence | Kept::Moved => None,
                        };
                        return self.instead(core, whole, share, struck).await;
                    }
                    // It is not as it looked: it waits as what is not known does.
                    (None, Some(_)) => otherwise = None,
                    (None, None) => {
                        return Err(core.kept(upstream, *method, touched, (&self.caller, &why)));
                    }
                },
            }
        };
        let sending = Sending {
            core: Arc::clone(core),
            upstream: Arc::clone(upstream),
            method: *method,
            scope: self.scope.clone(),
            caller: self.caller.clone(),
            head: sent,
            begun,
            behalf: Behalf { caller: self.by.own.is_some(), transaction: touched.transaction },
            asked: self.asked,
            goes_on: otherwise.is_some(),
            by_hand: false,
        };
        Box::pin(self.sent(core, entered, sending, share)).await
    }

    /// Why it has no fallback, if it is about another database than the backend's.
    fn hint(&self, core: &Core) -> Option<String> {
        let own = &self.upstream.connector.shared.client.known_root()?.database;
        let named = self.touched.database.as_ref().filter(|named| *named != own)?;
        let (name, named) = (core.backend.name(), scope::shown(named));
        Some(format!(
            "it names {named:?}, but the fallbacks are for {own:?}: see `backends.{name}.project` and \
             `backends.{name}.database`"
        ))
    }

    /// When its client's time is over.
    fn deadline(&self) -> Instant {
        self.arrived + self.time.map_or(FAR, |time| time.min(FAR))
    }

    /// The moment, or its deadline if that is earlier.
    fn until(&self, at: Instant) -> Instant {
        at.min(self.deadline())
    }

    /// Sends it, and goes on with what comes of that.
    async fn sent(
        &self,
        core: &Arc<Core>,
        entered: Entered,
        sending: Sending,
        share: OwnedSemaphorePermit,
    ) -> Result<Given, Told> {
        let (understood, began) = (self.understood.as_ref(), Instant::now());
        // Before anything is sent: what is written meanwhile is not in it.
        let following = match (understood, self.method.operation) {
            (Some(understood), _) => core.follow(&self.upstream, understood),
            (None, "create" | "update") => {
                Some(Following::new(core, &self.upstream, Of::Document, None))
            }
            (None, _) => None,
        };
        let mut waiting =
            Waiting::new(core, entered, |held, pass| Box::pin(exchange::send(sending, held, pass)));
        let sent = self.waited(core, &mut waiting).await;
        // Of a write that may still land it says so from here on.
        drop(waiting);
        match sent {
            Sent::Answered(mut answered) => {
                let Some(onward) = answered.onward.take() else {
                    return Ok(self.relayed(core, *answered, following, share));
                };
                // Of what a batch has done nobody knows.
                let whole = self.whole().filter(|_| !self.is_batch());
                let Some(whole) = whole else {
                    core.backend.end(*onward);
                    return Ok(self.relayed(core, *answered, None, share));
                };
                let asker = self.asker(began, share);
                match core.instead(&self.upstream, whole, Some(onward), asker).await {
                    Ok(given) => Ok(given),
                    Err(Ended { error, .. }) if error.outcome_unknown => {
                        Err(core.told_of(self.method, &error, None))
                    }
                    // The server's own words.
                    Err(Ended { share, .. }) => Ok(self.relayed(core, *answered, None, share)),
                }
            }
            Sent::Cached(cached) => {
                let source = cached.0;
                let whole = self.whole();
                let response = whole.and_then(|it| core.cached(&self.upstream, it, cached, share));
                let response =
                    response.ok_or_else(|| Told::fault("what is cached is not a reply"))?;
                Ok((response, source))
            }
            Sent::Lost(Lost::Onward(onward, attempt)) => {
                let is_known = attempt.class == ErrorClass::NotExecuted;
                let whole = self.whole().filter(|_| is_known || !self.is_batch());
                let Some(whole) = whole else {
                    core.backend.end(*onward);
                    return Err(core.failed(self.method, &attempt));
                };
                let asker = self.asker(began, share);
                let ended = core.instead(&self.upstream, whole, Some(onward), asker).await;
                ended.map_err(|Ended { error, .. }| {
                    core.told_of(self.method, &error, Some(&attempt))
                })
            }
            Sent::Lost(Lost::Told(told)) => Err(told),
        }
    }

    /// The whole of the request, if something else than the server may answer it.
    fn whole(&self) -> Option<&Whole> {
        self.understood.as_ref()?.whole(&self.upstream)
    }

    fn is_batch(&self) -> bool {
        self.understood.as_ref().is_some_and(Understood::is_batch)
    }

    /// Another answer than the server's, which is not asked, or is asked as `struck` lets it be.
    async fn instead(
        &self,
        core: &Arc<Core>,
        whole: &Whole,
        share: OwnedSemaphorePermit,
        struck: Option<Strike>,
    ) -> Result<Given, Told> {
        let asker = Asker { struck, ..self.asker(Instant::now(), share) };
        let ended = core.instead(&self.upstream, whole, None, asker).await;
        ended.map_err(|Ended { error, .. }| core.told_of(self.method, &error, None))
    }

    /// On whose behalf it is carried on, as a call whose time counts from when it `began`.
    fn asker(&self, began: Instant, share: OwnedSemaphorePermit) -> Asker {
        let time = self.time.map(|_| self.deadline().saturating_duration_since(began));
        Asker { method: self.method, caller: self.caller.clone(), time, share, struck: None }
    }

    /// Whether it is queued if its client has no more time for the server.
    fn parts(&self, core: &Core) -> bool {
        let understood = self.understood.as_ref();
        self.method.class == Class::Write
            && understood.is_some_and(|it| it.absolute)
            && core.backend.lets_queue(core.settings.min_ack)
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

    /// Waits for the beginning of the answer. A get does not wait for a suspect server if it is cached; a write that
    /// may be queued does not wait until its client has no time left for that.
    async fn waited(&self, core: &Arc<Core>, waiting: &mut Waiting<Answered, Lost>) -> Sent {
        let now = Instant::now();
        // A little longer than the attempt, so that it is known what became of it.
        let end = now + core.backend.timeout() + GRACE;
        let until = self.until(end);
        if until < end && self.parts(core) {
            let reserve = core.backend.reserve(until.saturating_duration_since(now));
            if let Some(ended) = waiting.answered(until - reserve).await {
                return Sent::of(ended);
            }
            // It is read whole only now: it may be none that can be queued.
            if self.whole().is_some() {
                let lost = waiting.part().map(|(onward, error)| Lost::Onward(onward, error));
                return Sent::Lost(lost.unwrap_or_else(|| waiting.late(self.method).into()));
            }
        }
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
        ended.map_or_else(|| Sent::Lost(waiting.late(self.method).into()), Sent::of)
    }
}
