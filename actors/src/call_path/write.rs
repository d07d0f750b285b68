//! Writes: fence, live, queue.

use std::time::Duration;

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, Lanes, OpId, SpanRef, Words, digest,
    flight::Flight,
    queue::Refusal,
    store::{CallHeader, StoreError, TokenKind, Traits},
    system::SystemState,
    write::{Repeat, WriteState},
};

use super::{
    Context, NoAnswer,
    attempts::{Answered, AttemptSpec, Live, read_only},
    error,
};
use crate::{
    backend_shared::BackendShared,
    call::{AckLevel, CallError, CallErrorKind, Priority, Reply, Source},
    connector::{Outage, Stored, Write},
    queue::{AppendError, Appending, Applied, Claim, Fate, Fated, NewWrite},
    settings::WriteFallback,
    trace::StepKind,
};

/// How long a write to an occupied lane waits to be applied before it is answered as durable.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// The most that a live write leaves of its deadline for being queued.
const COMMIT_RESERVE: Duration = Duration::from_millis(500);

/// What a write that may be queued leaves of the time that its caller has `left`: what the backend cannot take must be
/// synced, and its caller answered, before the caller's deadline.
pub(crate) fn reserve(left: Duration) -> Duration {
    (left / 5).min(COMMIT_RESERVE)
}

/// Whether a write may be queued, and what it is answered with if so.
enum Queueable {
    /// Yes; `None` answers null.
    Yes(Option<Bytes>),
    /// No, for this reason.
    No(&'static str),
}

impl BackendShared {
    pub(super) async fn write(
        &self,
        context: &mut Context,
        write: &Write,
    ) -> Result<Reply, CallError> {
        let mut way = self.way(context);
        let context = way.context();
        let op_id = self.op_id(context);
        let digest = digest(&context.call.body);
        context.digest = digest;
        if context.call.options.op_id.is_some()
            && let Some(answer) = self.known(context, op_id, digest).await
        {
            return answer;
        }
        if let (Some(op_id), Outage::Never(reason), false) =
            (context.call.options.op_id, &write.outage, write.absolute)
        {
            // Neither the queue nor the backend would know it again: a repetition would be applied again.
            return Err(CallError {
                kind: CallErrorKind::Refused,
                op_id: Some(op_id),
                ..error(
                    "op_id_unsupported",
                    format!(
                        "an op_id cannot prevent that {} is applied twice: {reason}",
                        context.plan.label
                    ),
                )
            });
        }
        let queueable = self.queueable(context, write);
        if context.failed.is_some() {
            return self.write_live(context, write, queueable, op_id, digest).await;
        }
        if context.call.upload.is_some() && matches!(queueable, Queueable::Yes(_)) {
            let why = NoAnswer::Rejected {
                code: "stored_first",
                detail: "the call is too large to hold in memory, so it is stored in the queue first and sent from \
                         there".into(),
            };
            return self.queue_write(context, write, queueable, &why, op_id, digest, true).await;
        }
        if self.system.state() == SystemState::Emergency {
            let why = &read_only();
            return self.queue_write(context, write, queueable, why, op_id, digest, false).await;
        }
        context.flight = self.begin_flight(&context.plan.lanes);
        if context.flight.is_none() && self.flights.is_barred(&context.plan.lanes) {
            // Usually for moments. To be queued would have all that follows in the lane queued, too.
            let began = self.clock().read();
            let left = context.left(began.moment());
            let reserve =
                if matches!(queueable, Queueable::Yes(_)) { reserve(left) } else { Duration::ZERO };
            let (who, patience) = (context.call.uid, left.saturating_sub(reserve));
            Box::pin(self.wait_landed(who, &context.plan.lanes, patience)).await;
            context.read_at = self.clock().read();
            context.recorder.step(began, context.read_at, StepKind::Fence);
            context.flight = self.begin_flight(&context.plan.lanes);
        }
        if context.flight.is_none() {
            let why = NoAnswer::Rejected { code: "lane_busy", detail: self.why_busy(context) };
            let Queueable::No(note) = queueable else {
                return self
                    .queue_write(context, write, queueable, &why, op_id, digest, true)
                    .await;
            };
            let began = self.clock().read();
            let waited = Box::pin(self.wait_for_lanes(context, &why, note)).await;
            context.read_at = self.clock().read();
            context.recorder.step(began, context.read_at, StepKind::Fence);
            waited?;
        }
        self.write_live(context, write, queueable, op_id, digest).await
    }

    /// Sends the write to the backend; what it could not take is queued if that is allowed.
    async fn write_live(
        &self,
        context: &mut Context,
        write: &Write,
        queueable: Queueable,
        op_id: OpId,
        digest: u64,
    ) -> Result<Reply, CallError> {
        if matches!(queueable, Queueable::Yes(_)) {
            let reserve = reserve(context.left(self.clock().now()));
            context.live_until = context.live_until.minus(reserve);
        }
        // A ticket's attempt had none.
        let queues = matches!(queueable, Queueable::Yes(_));
        let bears = context.failed.is_none() && Self::token(context, write, queues);
        let token = bears.then_some(op_id);
        if context.failed.is_none() {
            context.state = WriteState::fresh(match token {
                _ if write.absolute => Repeat::Absolute,
                Some(_) => Repeat::Token,
                None => Repeat::Never,
            });
        }
        let spec =
            AttemptSpec { write: true, token, queues: matches!(queueable, Queueable::Yes(_)) };
        let behind_calls = context
            .claim
            .as_ref()
            .is_some_and(|claim| self.queue.stands_behind_calls(claim, &context.plan.lanes));
        let live = if context.failed.is_none() && self.is_shed(context) {
            Live::None(Self::shed())
        } else if behind_calls {
            // Of the same caller: they were lost with it, and are queued by now.
            let detail = self.why_busy(context);
            Live::None(NoAnswer::Rejected { code: "lane_busy", detail })
        } else {
            self.attempts(context, spec).await
        };
        let named = token.or(context.call.options.op_id);
        match live {
            Live::Answered(Answered { reply, rest, repeated, lost }) => {
                if let Some(flight) = context.flight.take() {
                    flight.acknowledge();
                }
                // A caller's own op_id is recognised for as long as its marker lives; and so is one that an
                // attempt without an answer could still meet.
                let forget = token.filter(|_| context.call.options.op_id.is_none() && !repeated);
                if let Some(token) = forget {
                    context.connector.forget_tokens(vec![token]);
                }
                let lost = lost || repeated && write.absolute && !write.settled_reply;
                Ok(Reply { rest, ..self.applied(context, reply, lost, named) })
            }
            Live::Refused(refusal) => Err(Self::rejected(context, refusal, named)),
            Live::None(why) if self.may_send_again(context, spec).await => {
                self.queue_write(context, write, queueable, &why, op_id, digest, false).await
            }
            Live::None(why) => Err(timed_out(context, &why, op_id)),
        }
    }

    /// Makes the write durable. With `behind` it is behind others in its lanes, and while replay
    /// can run it is answered when it has been applied, so that callers cannot outrun the drain.
    #[expect(
        clippy::too_many_arguments,
        reason = "the steps of one call; a struct would only rename them"
    )]
    async fn queue_write(
        &self,
        context: &mut Context,
        write: &Write,
        queueable: Queueable,
        why: &NoAnswer,
        op_id: OpId,
        digest: u64,
        behind: bool,
    ) -> Result<Reply, CallError> {
        let answer = match queueable {
            Queueable::Yes(answer) => answer,
            Queueable::No(note) if context.state.is_in_doubt() => {
                let mut error = timed_out(context, why, op_id);
                error.detail = error.detail.within(|why| format!("{why}; {note}"));
                return Err(error);
            }
            Queueable::No(note) => return Err(self.unavailable(context, why, note)),
        };
        let stored = context.connector.stored(&context.plan.body);
        let body = stored.as_ref().map_or(&context.plan.body, |stored| &stored.body);
        if let Some(looking) = context.connector.storable(body)
            && let Err(refusal) = looking.await
        {
            // What became of an attempt is not known all the same.
            return Err(if context.state.is_in_doubt() {
                timed_out(context, why, op_id)
            } else if refusal.class == ErrorClass::NotExecuted {
                self.unavailable(context, why, refusal.message.whole())
            } else {
                Self::rejected(context, refusal, None)
            });
        }
        if self.has_moved(&context.connector) {
            if context.state.is_in_doubt() {
                return Err(timed_out(context, why, op_id));
            }
            return Err(self.unavailable(context, why, "its address was changed in the meantime"));
        }
        let began = self.clock().read();
        let span = self.tracer.queued(&mut context.recorder);
        let appended = self.append(context, write, stored, op_id, digest, span).await;
        let step = StepKind::Append {
            span_id: span.span_id,
            op_id,
            error: appended.as_ref().err().map(ToString::to_string),
        };
        context.recorder.step(began, self.clock().read(), step);
        let fate = match appended {
            Ok(fate) => fate,
            Err(refused) => return self.twin(context, refused, op_id, digest).await,
        };
        if let Some(flight) = context.flight.take() {
            flight.acknowledge();
        }
        // What is cached is what the backend holds, and stays so until the write is sent: see the overlay of reads.
        let queued = Reply {
            ack: Some(AckLevel::Durable),
            op_id: Some(op_id),
            warnings: vec![format!("queued: {}", why.detail().whole())],
            ..self.reply(context, Source::Queued, answer)
        };
        let fate = if behind { Box::pin(self.fate(context, fate)).await } else { None };
        match fate {
            Some(Ok(Applied { reply, lost })) => {
                // The reply to what was applied before says nothing, and is known beforehand if it is always the same.
                let known = queued.value.filter(|_| lost && write.settled_reply);
                let reply = known.unwrap_or(reply);
                Ok(self.applied(context, reply, lost && !write.settled_reply, Some(op_id)))
            }
            Some(Err(reason)) => Err(CallError {
                attempts: context.attempts,
                ..dead_letter(
                    op_id,
                    reason.within(|why| {
                        format!("the call was queued, and is now a dead letter: {why}")
                    }),
                )
            }),
            None => Ok(queued),
        }
    }

    /// The answer to a write that was refused. Another call with its name and body may have been queued since it began:
    /// then both are that one.
    async fn twin(
        &self,
        context: &Context,
        refused: CallError,
        op_id: OpId,
        digest: u64,
    ) -> Result<Reply, CallError> {
        if refused.kind != CallErrorKind::Conflict {
            return Err(refused);
        }
        match self.known(context, op_id, digest).await {
            Some(Err(error)) if error.kind == CallErrorKind::Conflict => Err(refused),
            Some(answer) => answer,
            // It has left the queue meanwhile: it may have been applied.
            None => Err(CallError { outcome_unknown: true, ..refused }),
        }
    }

    /// What becomes of a queued write, if that is known soon; it is waited for while its lanes move.
    async fn fate(&self, context: &mut Context, mut fate: Fated) -> Option<Fate> {
        let lanes = context.plan.lanes.clone();
        if !self.lanes_move(&lanes) {
            return None;
        }
        let waiting = self.queue.may_wait(context.call.uid)?;
        let began = self.clock().read();
        let left = context.left(began.moment());
        let patience = left.saturating_sub(reserve(left)).min(DRAIN_PATIENCE);
        let told = tokio::time::timeout(patience, async {
            loop {
                tokio::select! {
                    biased;
                    told = fate.told() => return told,
                    // It moves no longer, or the lane is free: then its fate is known.
                    free = self.wait_a_while(&lanes, patience) => {
                        if !free && !self.lanes_move(&lanes) {
                            return None;
                        }
                        if free {
                            return fate.told().await;
                        }
                    }
                }
            }
        });
        let told = told.await.ok().flatten();
        drop(waiting);
        context.recorder.step(began, self.clock().read(), StepKind::AwaitReplay);
        told
    }

    /// Appends the write to the queue and waits until it is synced. Returns what will tell its fate.
    async fn append(
        &self,
        context: &mut Context,
        write: &Write,
        stored: Option<Stored>,
        op_id: OpId,
        digest: u64,
        span: SpanRef,
    ) -> Result<Fated, CallError> {
        let rest = context.call.upload.take().and_then(|upload| upload.take());
        let timed = write.timed || stored.as_ref().is_some_and(|stored| stored.timed);
        let gather = write.gather.filter(|_| rest.is_none());
        let traits = gather.map_or_else(|| Traits::of(write.whole, timed), Traits::gathered);
        let repeat = if write.absolute { Repeat::Absolute } else { Repeat::Token };
        // If nothing was written, it may have a token from now on, whatever a live attempt would have had.
        let in_doubt = context.state.is_in_doubt();
        let state = if in_doubt { context.state } else { WriteState::fresh(repeat) };
        let own_name = context.call.options.op_id.is_some();
        let new = NewWrite {
            header: CallHeader {
                op_id,
                digest,
                uid: context.call.uid,
                lanes: context.plan.lanes.clone(),
                token: TokenKind::of(state.repeat(), own_name),
                traits,
                accepted_at: context.accepted_at,
            },
            target: context.connector.target(),
            label: context.plan.label.as_str().into(),
            state,
            own_name,
            evidence: context.evidence.clone(),
            body: stored.map_or_else(|| context.plan.body.clone(), |stored| stored.body),
            span,
            low_priority: context.call.options.priority == Priority::Low,
            claim: context.claim.as_ref().map(Claim::seq),
        };
        let is_for_us = || !self.has_moved(&context.connector);
        let appended = match rest {
            None => self.queue.append(new, is_for_us),
            Some(rest) => {
                let left = context.left(self.clock().now());
                let upload = self.queue.append_upload(new, rest, is_for_us);
                tokio::time::timeout(left, upload).await.map_err(|_| CallError {
                    kind: CallErrorKind::TimedOut,
                    op_id: Some(op_id),
                    ..error("deadline", "the deadline passed before the call had arrived")
                })?
            }
        };
        let Appending { synced, fate, .. } =
            appended.map_err(|refusal| self.not_queued(context, refusal, op_id))?;
        if let Some(appended) = &context.call.options.appended {
            appended.notify_one();
        }
        let left = context.left(self.clock().now()).max(Duration::from_millis(1));
        match tokio::time::timeout(left, synced).await {
            Ok(Ok(Ok(()))) => Ok(fate),
            Ok(Ok(Err(refusal))) => Err(self.not_stored(context, &refusal, op_id)),
            // The deadline passed during the commit, or the store went away in the middle of it.
            Ok(Err(_)) | Err(_) => Err(timed_out(context, &NoAnswer::Deadline, op_id)),
        }
    }

    /// A write that cannot queue waits for its lanes, or fails because they are not available.
    async fn wait_for_lanes(
        &self,
        context: &mut Context,
        why: &NoAnswer,
        note: &str,
    ) -> Result<(), CallError> {
        let lanes = context.plan.lanes.clone();
        let who = context.call.uid;
        let may_wait = self.lanes_move(&lanes).then(|| self.queue.may_wait(who)).flatten();
        let Some(_waiting) = may_wait else { return Err(self.unavailable(context, why, note)) };
        loop {
            let left = context.left(self.clock().now());
            if left.is_zero() || self.queue.shut().is_some() || !self.lanes_move(&lanes) {
                break;
            }
            if self.wait_to_write(&lanes, left).await {
                context.flight = self.begin_flight(&lanes);
            }
            if context.flight.is_some() {
                break;
            }
        }
        context.flight.is_some().then_some(()).ok_or_else(|| self.unavailable(context, why, note))
    }

    /// Begins a live write, unless its lanes are occupied or barred. It is in flight before it looks, so that one
    /// of unknown outcome either sees it or is seen by it.
    pub(super) fn begin_flight(&self, lanes: &Lanes) -> Option<Flight> {
        let flight = self.flights.begin(lanes);
        (!self.queue.is_occupied(lanes) && !self.flights.is_barred(lanes)).then_some(flight)
    }

    /// What keeps a write from being sent at once.
    fn why_busy(&self, context: &Context) -> String {
        let label = &context.plan.label;
        if self.queue.is_occupied(&context.plan.lanes) {
            format!("earlier writes to {label} wait in the queue")
        } else {
            format!(
                "an earlier write to {label} is still on the wire, although its caller no longer waits for it"
            )
        }
    }

    fn op_id(&self, context: &Context) -> OpId {
        let new = || OpId::new(self.clock().unix(), fastrand::u128(..));
        context.call.options.op_id.unwrap_or_else(new)
    }

    /// Whether a write that is not absolute has a token: only if the caller's wish makes one worth its price.
    fn token(context: &Context, write: &Write, queues: bool) -> bool {
        let options = &context.call.options;
        let wanted = write.free_token
            || write.queue_token && queues
            || options.min_ack == Some(AckLevel::Durable)
            || options.op_id.is_some();
        let can = !matches!(write.outage, Outage::Never(_));
        !write.absolute && wanted && can
    }

    /// Whether plain writes with this wish are queued in an outage.
    pub(crate) fn lets_queue(&self, min_ack: Option<AckLevel>) -> bool {
        match min_ack {
            Some(AckLevel::Durable) => true,
            Some(AckLevel::Applied) => false,
            None => self.circuit.settings.load().write_fallback == WriteFallback::Queue,
        }
    }

    fn queueable(&self, context: &Context, write: &Write) -> Queueable {
        let options = &context.call.options;
        let consents = options.min_ack == Some(AckLevel::Durable);
        match &write.outage {
            Outage::Never(reason) => Queueable::No(reason),
            _ if context.call.upload.is_some() && !consents => Queueable::No(
                "a call that is too large to hold in memory is queued only with min_ack = durable",
            ),
            _ if options.min_ack == Some(AckLevel::Applied) => {
                Queueable::No("a call with min_ack = applied is not queued")
            }
            Outage::EffectUnknown if !consents => Queueable::No(
                "its reply is not known until it is applied, so it is queued only with min_ack = durable",
            ),
            _ if !self.lets_queue(options.min_ack) => Queueable::No(
                "the backend is read-only in an outage (queue.write_fallback = refuse), but for calls with \
                 min_ack = durable",
            ),
            Outage::ReplyKnown(reply) => Queueable::Yes(Some(reply.clone())),
            Outage::EffectKnown | Outage::EffectUnknown => Queueable::Yes(None),
        }
    }

    /// The answer to an op id that is still in the store; `None` if it is not. One that is being
    /// stored is waited for: nobody may take it for durable yet.
    async fn known(
        &self,
        context: &Context,
        op_id: OpId,
        digest: u64,
    ) -> Option<Result<Reply, CallError>> {
        let refusal = self.queue.index().known(op_id, digest)?;
        if let Refusal::Known { seq, .. } = &refusal
            && !self.queue.wait_stored(*seq, context.left(self.clock().now())).await
        {
            return Some(Err(timed_out(context, &NoAnswer::Deadline, op_id)));
        }
        Some(self.answer_known(context, &refusal, op_id))
    }

    fn answer_known(
        &self,
        context: &Context,
        refusal: &Refusal,
        op_id: OpId,
    ) -> Result<Reply, CallError> {
        match refusal {
            Refusal::Known { dead: false, .. } => Ok(Reply {
                ack: Some(AckLevel::Durable),
                op_id: Some(op_id),
                warnings: vec!["a call with this op_id is already queued".to_owned()],
                ..self.reply(context, Source::Queued, None)
            }),
            Refusal::Known { seq, .. } => {
                let reason = self
                    .queue
                    .index()
                    .get(*seq)
                    .and_then(|entry| entry.details().last_error.clone());
                let reason = reason.map(|reason| reason.said().to_owned()).unwrap_or_default();
                let detail = format!("the call with this op_id is a dead letter: {reason}");
                Err(dead_letter(op_id, detail))
            }
            other => Err(CallError {
                kind: CallErrorKind::Conflict,
                op_id: Some(op_id),
                ..error("op_id_conflict", other.to_string())
            }),
        }
    }

    fn not_queued(&self, context: &Context, refusal: AppendError, op_id: OpId) -> CallError {
        // A name that is taken and a body that broke off are the caller's.
        if !matches!(
            refusal,
            AppendError::Refused(Refusal::Known { .. } | Refusal::Conflict)
                | AppendError::BrokenOff(_)
        ) {
            self.circuit.metrics.refused.inc();
        }
        let (kind, code) = match &refusal {
            AppendError::Refused(Refusal::Full { .. }) => (CallErrorKind::Full, "queue_full"),
            AppendError::Refused(Refusal::Shed) => (CallErrorKind::Unavailable, "shed"),
            AppendError::Refused(_) => (CallErrorKind::Conflict, "op_id_conflict"),
            AppendError::NoStore(_) | AppendError::Store(_) | AppendError::DeadFull => {
                (CallErrorKind::Full, "store_refuses")
            }
            AppendError::Moved => (CallErrorKind::Unavailable, "address_changed"),
            AppendError::BrokenOff(_) => (CallErrorKind::Malformed, "body_broken_off"),
        };
        CallError {
            kind,
            outcome_unknown: context.state.is_in_doubt(),
            op_id: Some(op_id),
            retry_after: Some(self.retry_after()),
            attempts: context.attempts,
            ..error(code, refusal.to_string())
        }
    }

    fn not_stored(&self, context: &Context, refusal: &StoreError, op_id: OpId) -> CallError {
        self.circuit.metrics.refused.inc();
        CallError {
            kind: CallErrorKind::Full,
            outcome_unknown: context.state.is_in_doubt() || refusal.outcome_unknown(),
            op_id: Some(op_id),
            retry_after: Some(self.retry_after()),
            attempts: context.attempts,
            ..error("store_refuses", format!("the queue's store refuses writes: {refusal}"))
        }
    }
}

/// The call is a dead letter, which may have been applied, and may be: what was sent by an earlier run of the daemon is
/// not known of all calls, until its mark is synced a crash brings it back, and an operator may requeue it.
fn dead_letter(op_id: OpId, detail: impl Into<Words>) -> CallError {
    CallError {
        kind: CallErrorKind::Refused,
        outcome_unknown: true,
        op_id: Some(op_id),
        ..error("dead_letter", detail)
    }
}

/// The outcome is unknown: a 504 that names the call.
fn timed_out(context: &Context, why: &NoAnswer, op_id: OpId) -> CallError {
    CallError {
        kind: CallErrorKind::TimedOut,
        outcome_unknown: true,
        op_id: Some(op_id),
        attempts: context.attempts,
        last_answer: why.answer(),
        ..error(why.code(), why.detail())
    }
}
