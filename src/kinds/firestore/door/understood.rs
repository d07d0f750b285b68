//! Requests that are understood: what else may answer them if the server does not.
//!
//! ```text
//!  request ─▶ may be sent? ─ yes ─▶ live, byte for byte; a copy for the cache ─ failed ─┐
//!                 │ no: OPEN, offline, shed, queued writes to its documents              │ `go_on`
//!                 └────────────────────────────── `call` ──▶ overlay, cache, queue ◀────┘
//! ```
//! Before the first attempt only so much is read of what writes as decides how it is sent; what cannot be read whole
//! afterwards ends as if nothing were known of it.
//!
//! Behind the first attempt a request is the call that [`stock`] makes of it, and goes the way of every other: what is
//! retried, cached and queued is decided there. What comes back is put into the server's words again.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::{
    AckLevel, Call, CallError, CallErrorKind, CallOptions, Onward, Reply, Source,
    connector::{Access, AttemptError, Connector, Outage, OwnCode, Read, Refused, Write},
};
use fusebox_state::{LaneId, OpId, UnixMillis, chaos::Strike};
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use googleapis_tonic_google_firestore_v1::google::rpc;
use hyper::{HeaderMap, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    answer::Body,
    class::{Class, Method},
    core::Core,
    entry::CalledBy,
    following::{Following, Of},
    framing,
    lanes::Touched,
    pool::Upstream,
    telling::{self, Said, Told},
    times::{self, At},
    who::Principal,
};
use crate::kinds::firestore::protocol::{
    outline::{Outline, outline},
    plan,
    stock::{self, Committed, Form, Part, Shown},
    wire::Question,
};

/// How one write of a batch has ended.
type OneEnd = Result<(Committed, Source), rpc::Status>;

/// So many writes of a batch are on their way at once.
const AT_ONCE: usize = 64;

/// A request that something else than the server may answer. Of one that writes this is only as good as its
/// [`outline`]: it is read whole when the server has not answered.
pub(super) struct Understood {
    /// As the client sent it.
    message: Bytes,
    is_batch: bool,
    /// Of a read, if it is cached.
    pub(super) read: Option<Read>,
    /// Of a write, that it leaves the same state however often it is applied.
    pub(super) absolute: bool,
    /// It has a marker from its first attempt on, which the door cannot add to a client's own bytes.
    pub(super) needs_marker: bool,
    whole: OnceLock<Result<Whole, NotWhole>>,
}

/// A request that cannot be read whole, or is none that the server takes: then why.
type NotWhole = Option<Refused>;

/// A request that has been read whole.
pub(super) struct Whole {
    /// The call that it is. A batch is none: its parts are.
    body: Bytes,
    form: Arc<Form>,
}

/// On whose behalf a call is carried on, and for how long.
pub(super) struct Asker {
    pub(super) method: Method,
    pub(super) caller: CalledBy,
    pub(super) time: Option<Duration>,
    pub(super) share: OwnedSemaphorePermit,
    /// What strikes it on purpose.
    pub(super) struck: Option<Strike>,
}

impl Understood {
    /// Whether it is several calls, of which nobody knows what became of any if it was sent.
    pub(super) fn is_batch(&self) -> bool {
        self.is_batch
    }

    /// Its one entry of the cache, if it is a get of one document.
    pub(super) fn one_document(&self) -> Option<(LaneId, Bytes)> {
        let read = self.read.as_ref().filter(|read| read.keyed)?;
        let [slot] = read.slots.as_slice() else { return None };
        Some((slot.lane, slot.key.clone()))
    }

    /// The whole of it. `None` if it cannot be read whole, or is none that the server takes.
    pub(super) fn whole(&self, upstream: &Upstream) -> Option<&Whole> {
        self.read_whole(upstream).as_ref().ok()
    }

    /// Why no server takes it.
    pub(super) fn refused(&self, upstream: &Upstream) -> Option<&Refused> {
        self.read_whole(upstream).as_ref().err()?.as_ref()
    }

    fn read_whole(&self, upstream: &Upstream) -> &Result<Whole, NotWhole> {
        let read = || {
            let connector = &upstream.connector;
            let root = connector.shared.client.known_root().ok_or(None)?;
            let of = if self.is_batch { stock::batch } else { stock::commit };
            let stock::Understood { body, form } = of(&self.message, root, "").ok_or(None)?;
            let takes = |body: &Bytes| connector.plan(body.clone()).map(drop).map_err(Some);
            if let Form::Batch(parts) = &form {
                plan::check_batch(parts.len()).map_err(Some)?;
                parts.iter().try_for_each(|part| takes(&part.body))?;
            } else {
                takes(&body)?;
            }
            Ok(Whole { body, form: Arc::new(form) })
        };
        self.whole.get_or_init(read)
    }
}

impl Core {
    /// What a request is, if something else than the server may answer it.
    pub(super) fn understood(
        &self,
        upstream: &Upstream,
        method: Method,
        message: Option<&Bytes>,
        touched: &Touched,
        by: &Principal,
    ) -> Option<Understood> {
        let (message, token) = (message?, by.token()?);
        let root = upstream.connector.shared.client.known_root()?;
        if touched.transaction || touched.database.as_ref() != Some(&root.database) {
            return None;
        }
        let understood = match method.operation {
            "batch_get" => stock::get(message, root, token),
            "get" => stock::get_one(message, root, token),
            "query" => stock::query(Question::Query, message, root, token),
            "aggregate" => stock::query(Question::Aggregation, message, root, token),
            "commit" | "batch_write" => {
                let is_batch = method.operation == "batch_write";
                // A caller's own credentials are never stored.
                let outline = outline(message).filter(|_| token.is_empty())?;
                return self.of_outline(outline, message, is_batch, OnceLock::new());
            }
            "delete" => stock::delete(message, root, token),
            _ => None,
        };
        let stock::Understood { body, form } = understood?;
        let access = upstream.connector.plan(body.clone()).ok()?.access;
        let whole = OnceLock::from(Ok(Whole { body, form: Arc::new(form) }));
        match access {
            Access::Read(read) => Some(Understood {
                message: Bytes::new(),
                is_batch: false,
                read: Some(read),
                absolute: true,
                needs_marker: false,
                whole,
            }),
            Access::Write(Write { absolute, outage, .. }) => {
                self.of_outline(Outline { absolute, outage }, message, false, whole)
            }
        }
    }

    /// The same of what writes.
    fn of_outline(
        &self,
        Outline { absolute, outage }: Outline,
        message: &Bytes,
        is_batch: bool,
        whole: OnceLock<Result<Whole, NotWhole>>,
    ) -> Option<Understood> {
        let is_durable = self.settings.min_ack == Some(AckLevel::Durable);
        let may_queue = match outage {
            // Each write of a batch is answered by itself.
            _ if self.settings.min_ack == Some(AckLevel::Applied) => false,
            _ if is_batch => true,
            Outage::Never(_) => false,
            Outage::EffectUnknown => is_durable,
            Outage::ReplyKnown(_) | Outage::EffectKnown => true,
        };
        may_queue.then(|| Understood {
            message: message.clone(),
            is_batch,
            read: None,
            absolute: absolute && !is_batch,
            needs_marker: is_durable && !absolute && !is_batch,
            whole,
        })
    }

    /// Carries a call on that may not be sent now, or whose first attempt has failed.
    pub(super) async fn instead(
        &self,
        upstream: &Upstream,
        whole: &Whole,
        onward: Option<Box<Onward>>,
        asker: Asker,
    ) -> Result<(Response<Body>, Source), Ended> {
        if let Form::Batch(parts) = &*whole.form {
            if let Some(onward) = onward {
                self.backend.end(*onward);
            }
            return Ok(self.batch(upstream, parts, asker).await);
        }
        let mut call = self.call_of(whole.body.clone(), &asker);
        call.options.made_for = Some(upstream.connector.target());
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
        // A large one is in a file.
        let Ok(reply) = reply.gathered().await else {
            return Ok((Told::fault("what is cached cannot be read").grpc(), source));
        };
        // A share is room for what most answers are; a larger one needs more of them.
        let size = reply.value.as_ref().map_or(0, Bytes::len);
        let share = match self.larger(share, size).await {
            Ok(share) => share,
            Err(told) => return Ok((told.grpc(), source)),
        };
        let told = self.replied(upstream, &whole.form, &reply);
        let response = told.map(|(messages, said)| said.response(messages, share));
        let response =
            response.unwrap_or_else(|| Told::fault("a reply cannot be expressed").grpc());
        Ok((response, source))
    }

    fn call_of(&self, body: Bytes, asker: &Asker) -> Call {
        let options = CallOptions {
            deadline: asker.time,
            priority: self.settings.priority,
            min_ack: self.settings.min_ack,
            awaits_place: false,
            struck: asker.struck,
            ..CallOptions::default()
        };
        let CalledBy { uid, trace } = asker.caller.clone();
        Call { body, options, uid, admin: false, trace, streams: false, upload: None }
    }

    async fn one_of_batch(&self, part: &Part, method: Method, call: Call) -> OneEnd {
        let reply = self.backend.call(call).await;
        let reply = reply.map_err(|error| self.told_of(method, &error, None).of_one())?;
        let mut at = At { estimates: &self.estimates, now: self.backend.steady_unix() };
        let committed = stock::committed(&part.made, reply.value.as_ref(), &mut at);
        let fault = || Told::fault("a reply cannot be expressed").of_one();
        Ok((committed.ok_or_else(fault)?, reply.source))
    }

    /// Each write of a batch that was not executed, as a call of its own.
    async fn batch(
        &self,
        upstream: &Upstream,
        parts: &[Part],
        asker: Asker,
    ) -> (Response<Body>, Source) {
        let mut each: Vec<BoxFuture<'_, OneEnd>> = Vec::with_capacity(parts.len());
        for part in parts {
            let mut call = self.call_of(part.body.clone(), &asker);
            call.options.made_for = Some(upstream.connector.target());
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
            Form::Delete(made) => {
                stock::committed(made, reply.value.as_ref(), &mut at)?;
                vec![Bytes::new()]
            }
            Form::Batch(_) => return None,
            Form::Get { .. } | Form::Query => {
                let age = u64::try_from(reply.age.as_millis()).unwrap_or(u64::MAX);
                let read_at = times::of_unix(UnixMillis::new(now.get().saturating_sub(age)));
                let Shown { messages, estimated } =
                    stock::read(form, reply.value.as_ref()?, root, read_at, &mut at)?;
                said.estimated = estimated;
                if let Form::Get { alone: true, paths, .. } = form
                    && messages.is_empty()
                {
                    said.missing = paths.first().map(|path| root.name(path));
                }
                messages
            }
        };
        Some((framing::framed(&messages), said))
    }

    /// What the cache answers to a get instead of a suspect server.
    pub(super) fn cached(
        &self,
        upstream: &Upstream,
        whole: &Whole,
        (source, part, age): (Source, Bytes, Duration),
        share: OwnedSemaphorePermit,
    ) -> Option<Response<Body>> {
        let value = Some(upstream.connector.join(&whole.body, vec![part]));
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
        let (messages, said) = self.replied(upstream, &whole.form, &reply)?;
        Some(said.response(messages, share))
    }

    /// What is to be learnt of the server's answer: a copy for the cache, the time of a commit.
    pub(super) fn follow(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        understood: &Understood,
    ) -> Option<Following> {
        let (of, copy) = match (&understood.read, understood.whole.get()) {
            (Some(read), Some(Ok(Whole { body, form }))) => {
                let is_whole = !matches!(**form, Form::Get { mask: Some(_), .. });
                let copy = is_whole.then(|| self.backend.copying(read, body));
                // Leave is taken first: what changes the address after that takes it back.
                let is_its = self.backend.connector().target() == upstream.connector.target();
                let copy = copy.filter(|_| is_its);
                (Of::Read(Arc::clone(form)), copy)
            }
            _ if understood.is_batch => return None,
            _ => (Of::Commit, None),
        };
        Some(Following::new(self, upstream, of, copy))
    }

    /// The answer to a call that has ended without an answer of the server; `attempt` is how its first one ended, if it
    /// was sent.
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
            // The first attempt could have brought an answer of any size: how it ended is what its client can act upon.
            (CallErrorKind::Refused, Some(attempt))
                if error.code == OwnCode::ResultTooLarge.as_str() =>
            {
                self.failed(method, attempt)
            }
            (CallErrorKind::Malformed | CallErrorKind::Refused | CallErrorKind::Conflict, _) => {
                Told::refused(telling::code_of(&error.code), name, detail)
            }
            (CallErrorKind::Forbidden, _) => Told::denied(detail),
            (CallErrorKind::Unavailable, _) if error.code == "bulkhead_full" => {
                Told::full("the limit of calls in flight is reached")
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
