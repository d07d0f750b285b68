//! Requests that are understood: what else may answer them if the server does not.
//!
//! ```text
//!  request ─▶ may be sent? ─ yes ─▶ live, byte for byte; a copy for the cache ─ failed ─┐
//!                 │ no: OPEN, offline, shed, queued writes to its documents              │ `go_on`
//!                 └────────────────────────────── `call` ──▶ overlay, cache, queue ◀────┘
//! ```
//! Behind the first attempt a request is the call that [`stock`] makes of it, and goes the way of every other: what is
//! retried, cached and queued is decided there. What comes back is put into the server's words again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::{
    AckLevel, Call, CallError, CallErrorKind, CallOptions, Onward, Reply, Source,
    connector::{Access, AttemptError, Connector, Outage, Read},
    trace::CallTrace,
};
use fusebox_state::{LaneId, OpId, UnixMillis};
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use googleapis_tonic_google_firestore_v1::google::rpc;
use hyper::{HeaderMap, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    answer::Body,
    class::{Class, Method},
    core::Core,
    entry::ROUTE,
    following::Following,
    framing,
    pool::Upstream,
    telling::{self, Said, Told},
    times::{self, At},
    who::Principal,
};
use crate::kinds::firestore::protocol::{
    stock::{self, Committed, Form, Part},
    wire::Question,
};

/// How one write of a batch has ended.
type OneEnd = Result<(Committed, Source), rpc::Status>;

/// So many writes of a batch are on their way at once.
const AT_ONCE: usize = 64;

/// A request that is understood, and what follows from it.
pub(super) struct Understood {
    body: Bytes,
    pub(super) form: Arc<Form>,
    /// Of a read, where it is cached.
    pub(super) read: Option<Read>,
    /// Of a write, that it leaves the same state however often it is applied.
    pub(super) absolute: bool,
    /// It bears a marker from its first attempt on, which the door cannot add to a client's own bytes.
    pub(super) needs_marker: bool,
}

/// On whose behalf a call is carried on, and for how long.
pub(super) struct Asker {
    pub(super) method: Method,
    pub(super) uid: u32,
    pub(super) time: Option<Duration>,
    pub(super) share: OwnedSemaphorePermit,
}

impl Understood {
    /// Whether it is several calls, of which nobody knows what became of any if it was sent.
    pub(super) fn is_batch(&self) -> bool {
        matches!(&*self.form, Form::Batch(_))
    }

    /// Its one entry of the cache, if it is a get of one document.
    pub(super) fn one_document(&self) -> Option<(LaneId, Bytes)> {
        let read = self.read.as_ref().filter(|read| read.keyed)?;
        let [slot] = read.slots.as_slice() else { return None };
        Some((slot.lane, slot.key.clone()))
    }
}

impl Core {
    /// What a request is, if it is understood and something else than the server may answer it.
    pub(super) fn understood(
        &self,
        upstream: &Upstream,
        method: Method,
        message: Option<&Bytes>,
        by: &Principal,
    ) -> Option<Understood> {
        let connector = &upstream.connector;
        let (message, root) = (message?, connector.shared.client.known_root()?);
        let token = by.token()?;
        let stock::Understood { body, form } = match method.operation {
            "batch_get" => stock::get(message, root, token),
            "query" => stock::query(Question::Query, message, root, token),
            "aggregate" => stock::query(Question::Aggregation, message, root, token),
            "commit" => stock::commit(message, root, token),
            "batch_write" => stock::batch(message, root, token),
            _ => None,
        }?;
        let form = Arc::new(form);
        let is_durable = self.settings.min_ack == Some(AckLevel::Durable);
        match connector.plan(body.clone()).ok()?.access {
            Access::Read(read) => {
                let read = Some(read);
                Some(Understood { body, form, read, absolute: true, needs_marker: false })
            }
            Access::Write(write) => {
                let may_queue = match write.outage {
                    Outage::Never(_) => false,
                    Outage::EffectUnknown => is_durable,
                    Outage::ReplyKnown(_) | Outage::EffectKnown => {
                        self.settings.min_ack != Some(AckLevel::Applied)
                    }
                };
                // Of a batch each write is told by itself.
                let is_batch = matches!(&*form, Form::Batch(_));
                let may_queue = if is_batch {
                    self.settings.min_ack != Some(AckLevel::Applied)
                } else {
                    may_queue
                };
                let absolute = write.absolute && !is_batch;
                let needs_marker = is_durable && !absolute && !is_batch;
                may_queue.then_some(Understood { body, form, read: None, absolute, needs_marker })
            }
        }
    }

    /// Carries a call on that may not be sent now, or whose first attempt has failed.
    pub(super) async fn instead(
        &self,
        upstream: &Upstream,
        understood: &Understood,
        onward: Option<Box<Onward>>,
        asker: Asker,
    ) -> Result<(Response<Body>, Source), Ended> {
        if let Form::Batch(parts) = &*understood.form {
            if let Some(onward) = onward {
                self.backend.end(*onward);
            }
            return Ok(self.batch(parts, asker).await);
        }
        let call = self.call_of(understood.body.clone(), &asker);
        let share = asker.share;
        let ended = match onward {
            Some(mut onward) => {
                self.backend.hold(&mut onward);
                self.backend.go_on(call, *onward).await
            }
            None => self.backend.call(call).await,
        };
        let reply = match ended {
            Ok(reply) => reply,
            Err(error) => return Err(Ended { error, share }),
        };
        let source = reply.source;
        // A large one lies in a file.
        let Ok(reply) = reply.gathered().await else {
            return Ok((Told::fault("what is cached cannot be read").grpc(), source));
        };
        let told = self.replied(upstream, &understood.form, &reply);
        let response = told.map(|(messages, said)| said.response(messages, share));
        let response = response.unwrap_or_else(|| Told::fault("a reply cannot be told").grpc());
        Ok((response, source))
    }

    fn call_of(&self, body: Bytes, asker: &Asker) -> Call {
        let options = CallOptions {
            deadline: asker.time,
            priority: self.settings.priority,
            min_ack: self.settings.min_ack,
            ..CallOptions::default()
        };
        let trace = CallTrace::new(ROUTE);
        Call { body, options, uid: asker.uid, admin: false, trace, streams: false, upload: None }
    }

    async fn one_of_batch(&self, part: &Part, method: Method, call: Call) -> OneEnd {
        let reply = self.backend.call(call).await;
        let reply = reply.map_err(|error| self.told_of(method, &error, None).of_one())?;
        let mut at = At { estimates: &self.estimates, now: self.backend.steady_unix() };
        let committed = stock::committed(&part.made, reply.value.as_ref(), &mut at);
        let fault = || Told::fault("a reply cannot be told").of_one();
        Ok((committed.ok_or_else(fault)?, reply.source))
    }

    /// Each write of a batch that was not executed, as a call of its own.
    async fn batch(&self, parts: &[Part], asker: Asker) -> (Response<Body>, Source) {
        let mut each: Vec<BoxFuture<'_, OneEnd>> = Vec::with_capacity(parts.len());
        for part in parts {
            let call = self.call_of(part.body.clone(), &asker);
            each.push(Box::pin(self.one_of_batch(part, asker.method, call)));
        }
        let ended: Vec<OneEnd> = stream::iter(each).buffered(AT_ONCE).collect().await;
        let is_queued = |end: &OneEnd| matches!(end, Ok((_, Source::Queued)));
        let source = if ended.iter().any(is_queued) { Source::Queued } else { Source::Live };
        let ended = ended.into_iter().map(|end| end.map(|(committed, _)| committed));
        let answer = stock::batched(ended.collect());
        let said = Said::of_batch(source, answer.estimated);
        (said.response(framing::framed(&[answer.message]), asker.share), source)
    }

    /// A reply in the server's words.
    fn replied(&self, upstream: &Upstream, form: &Form, reply: &Reply) -> Option<(Bytes, Said)> {
        let root = upstream.connector.shared.client.known_root()?;
        let now = self.backend.steady_unix();
        let mut at = At { estimates: &self.estimates, now };
        let mut said = Said::of(reply);
        let messages = match form {
            Form::Commit(made) => {
                let committed = stock::committed(made, reply.value.as_ref(), &mut at)?;
                said.estimated = committed.estimated;
                vec![committed.message]
            }
            Form::Batch(_) => return None,
            Form::Get { .. } | Form::Query => {
                let age = u64::try_from(reply.age.as_millis()).unwrap_or(u64::MAX);
                let read_at = times::of_unix(UnixMillis::new(now.get().saturating_sub(age)));
                stock::read(form, reply.value.as_ref()?, root, read_at, &mut at)?
            }
        };
        Some((framing::framed(&messages), said))
    }

    /// What the cache answers to a get in a suspect server's stead.
    pub(super) fn cached(
        &self,
        upstream: &Upstream,
        understood: &Understood,
        (source, part, age): (Source, Bytes, Duration),
        share: OwnedSemaphorePermit,
    ) -> Option<Response<Body>> {
        let value = Some(upstream.connector.join(&understood.body, vec![part]));
        let reply = Reply {
            source,
            ack: None,
            value,
            age,
            warnings: Vec::new(),
            op_id: None,
            attempts: 1,
            pending_writes: 0,
            rest: None,
            reply_lost: false,
        };
        let (messages, said) = self.replied(upstream, &understood.form, &reply)?;
        Some(said.response(messages, share))
    }

    /// A copy for the cache of what the server will answer.
    pub(super) fn follow(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        understood: &Understood,
    ) -> Following {
        let is_masked = matches!(&*understood.form, Form::Get { mask: Some(_), .. });
        let read = understood.read.as_ref().filter(|_| !is_masked);
        let copy = read.map(|read| self.backend.copying(read, &understood.body));
        Following::new(self, upstream, &understood.form, copy)
    }

    /// What a client is told whose call has ended without an answer; `attempt` is how its first one ended, if it was
    /// sent.
    pub(super) fn told_of(
        &self,
        method: Method,
        error: &CallError,
        attempt: Option<&AttemptError>,
    ) -> Told {
        let name = self.backend.name();
        let detail = error.detail.whole();
        if error.outcome_unknown {
            let new = || OpId::new(self.backend.steady_unix(), fastrand::u128(..));
            let op_id = error.op_id.unwrap_or_else(new);
            let why = error.detail.said();
            tracing::warn!(backend = name, %op_id, why, "a write at a door may have been executed");
            return Told::unknown_outcome(name, detail, op_id);
        }
        let retry = error.retry_after.unwrap_or_else(|| self.backend.retry_after());
        match (error.kind, attempt) {
            (CallErrorKind::Full, _) => Told::queue_full(name, detail, retry),
            (CallErrorKind::Malformed | CallErrorKind::Refused | CallErrorKind::Conflict, _) => {
                Told::refused(telling::code_of(&error.code), name, detail)
            }
            (CallErrorKind::Forbidden, _) => Told::denied(detail),
            (CallErrorKind::Unavailable, _) if error.code == "bulkhead_full" => {
                Told::full("as many calls as may are under way")
            }
            (CallErrorKind::Unavailable, _) if error.code == "lane_busy" => {
                Told::not_executed(name, "has earlier writes waiting in the queue", retry)
            }
            (_, Some(attempt)) => self.failed(method, attempt),
            (_, None) if self.is_barred() => {
                let why = if error.code == "offline" { "is offline" } else { "is open" };
                Told::not_executed(name, why, retry)
            }
            (CallErrorKind::TimedOut, None) if method.class == Class::Read => Told::late(name),
            (CallErrorKind::TimedOut | CallErrorKind::Unavailable, None) => {
                Told::not_executed(name, detail, retry)
            }
        }
    }
}

/// A call has ended without an answer.
pub(super) struct Ended {
    pub(super) error: CallError,
    /// The room that its answer would have taken.
    pub(super) share: OwnedSemaphorePermit,
}

impl Said {
    /// An answer of the door's own.
    fn response(&self, messages: Bytes, share: OwnedSemaphorePermit) -> Response<Body> {
        let mut response = Response::new(Body::made(messages, self.trailers(), Some(share)));
        let headers: HeaderMap = self.headers();
        *response.headers_mut() = headers;
        response
    }
}
