//! The live attempts of a call: deadline, retry with budget, breaker, bulkhead, timeout, wire.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, Lanes, Moment, OpId, Outcome, Verdict,
    backoff::full_jitter,
    chaos::{Class, Seen},
    flight::Standing,
    system::SystemState,
    write::{End, Next, WriteState},
};

use super::{
    Context, NoAnswer,
    passage::{AttemptEnd, note_end},
};
use crate::{
    backend_shared::BackendShared,
    chaos::Acting,
    circuit::Circuit,
    clock::Reading,
    connector::{
        Answer, Attempt, AttemptError, Attempted, Doubt, Origin, OwnCode, SharedConnector, Tail,
    },
    passage::{Passage, Progressing, Waiting},
    refusal::Barred,
    trace::{CallRecorder, StepKind},
};

/// How often a write in doubt looks whether the others of its lanes have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long a write that may be queued waits until nothing old can land in its lanes; its lane does
/// not move.
const FENCE_PATIENCE: Duration = Duration::from_secs(1);

/// How often a call whose connector is closed looks for the next one.
const EXCHANGE_LOOK: Duration = Duration::from_millis(5);

/// How the attempts ended.
pub(crate) enum Live {
    /// The backend answered.
    Answered(Answered),
    /// The backend, or one object in it, refuses this call.
    Refused(AttemptError),
    /// There is no answer.
    None(NoAnswer),
}

/// The backend's answer.
pub(crate) struct Answered {
    /// The reply, perhaps with more to follow.
    pub(crate) reply: Bytes,
    pub(crate) rest: Option<Box<dyn Tail>>,
    /// An earlier attempt may have been applied: this one was a repetition.
    pub(crate) repeated: bool,
    /// It is not the reply of the attempt that was applied.
    pub(crate) lost: bool,
}

/// What an attempt carries beside the call.
#[derive(Clone, Copy)]
pub(crate) struct AttemptSpec {
    /// May change something.
    pub(crate) write: bool,
    /// What lets the backend recognise it.
    pub(crate) token: Option<OpId>,
    /// May be queued instead, which is as good as to wait at a fence.
    pub(crate) queues: bool,
}

impl AttemptSpec {
    /// A read.
    pub(crate) const READ: Self = Self { write: false, token: None, queues: false };
}

/// Why a write is not sent in an EMERGENCY.
pub(super) fn read_only() -> NoAnswer {
    NoAnswer::Rejected {
        code: "read_only",
        detail: "the system state is EMERGENCY: writes are not sent to backends".to_owned(),
    }
}

impl BackendShared {
    /// Tries the call on the wire, at most as often as the settings say and never past its deadline.
    pub(crate) async fn attempts(&self, context: &mut Context, spec: AttemptSpec) -> Live {
        let retry = self.circuit.settings.load().retry;
        let mut read = context.read_at;
        loop {
            let error = match context.failed.take() {
                Some(error) => error,
                None => match self.attempt(context, spec, read).await {
                    Ok(answered) => return Live::Answered(answered),
                    Err(NoAnswer::Failed(error)) => error,
                    Err(rejected) => return Live::None(rejected),
                },
            };
            if error.is(OwnCode::Closed)
                && let Some(next) = self.next_connector(context).await
            {
                // That may have taken a while.
                if !self.may_send_again(context, spec).await {
                    return Live::None(NoAnswer::Failed(error));
                }
                // It did not reach the wire: that its connector was exchanged is not the caller's affair.
                context.connector = next;
                context.attempts -= 1;
                read = self.clock().read();
                continue;
            }
            if spec.queues && error.is(OwnCode::Fence) {
                return Live::None(NoAnswer::Failed(error));
            }
            let again = match error.class {
                ErrorClass::Rejected | ErrorClass::Conflict | ErrorClass::BlockedObject => {
                    return Live::Refused(error);
                }
                ErrorClass::BlockedServer | ErrorClass::Ambiguous => false,
                ErrorClass::NotExecuted | ErrorClass::Unknown => {
                    context.call.upload.is_none() && self.may_send_again(context, spec).await
                }
            };
            if self.system.is_cut() {
                // There is no time for another attempt; what may be queued must be queued now.
                return Live::None(NoAnswer::Failed(error));
            }
            let failed = self.clock().read();
            let now = failed.moment();
            // The deadline ended the attempt only if no answer came in time, whatever it waited for: a connection, a
            // fence or the answer. Otherwise it is only a reason not to try again, and the attempt ended by its answer.
            if context.live_left(now).is_zero() && error.is_unanswered() {
                return Live::None(NoAnswer::Deadline);
            }
            let wait = full_jitter(&retry, context.attempts.saturating_sub(1), fastrand::u64(..));
            if !again || context.attempts >= retry.attempts || wait >= context.live_left(now) {
                return Live::None(NoAnswer::Failed(error));
            }
            if !self.circuit.budget.withdraw(now) {
                self.circuit.metrics.retry_suppressed.inc();
                return Live::None(NoAnswer::Failed(error));
            }
            self.circuit.metrics.retried.inc();
            tokio::time::sleep(wait).await;
            read = self.clock().read();
            context.recorder.step(failed, read, StepKind::Backoff);
            if !self.may_send_again(context, spec).await {
                return Live::None(NoAnswer::Failed(error));
            }
        }
    }

    /// The connector that replaces the call's own, which is closed, if there will be one: a
    /// reload closes the old one before it puts the new one in its place. `None` if it is of another
    /// target, for which the call was not planned, and if the daemon stops.
    async fn next_connector(&self, context: &Context) -> Option<SharedConnector> {
        loop {
            let next = SharedConnector::clone(&self.connector.load());
            if !Arc::ptr_eq(&next, &context.connector) {
                return (next.target() == context.connector.target()).then_some(next);
            }
            let left = context.live_left(self.clock().now());
            if left.is_zero() || self.system.is_draining() {
                return None;
            }
            tokio::time::sleep(left.min(EXCHANGE_LOOK)).await;
        }
    }

    /// Whether the call may be sent again, or queued. A read may; of a write its state says so. An absolute one in
    /// doubt first claims its lanes, then waits for what is in flight there, and may not if something newer was
    /// acknowledged, or queued, since it began. Asked again before each repetition: of two that are in doubt
    /// together, the one that is acknowledged overtakes the other.
    pub(super) async fn may_send_again(&self, context: &mut Context, spec: AttemptSpec) -> bool {
        if !spec.write {
            return true;
        }
        match context.state.next() {
            Next::Send | Next::Prove => return true,
            Next::Repeat => {}
            Next::Wait | Next::GiveUp | Next::Done => return false,
        }
        if context.claim.is_none() {
            let (claim, behind_calls) = self.queue.claim(&context.plan.lanes);
            context.claim = Some(claim);
            if behind_calls {
                context.state.overtaken();
                return false;
            }
        }
        let Some(flight) = context.flight.as_mut() else { return false };
        flight.doubt();
        loop {
            let left = context.deadline.since(self.clock().now());
            match flight.standing() {
                Standing::Alone => return true,
                Standing::Others if !left.is_zero() && !self.system.is_cut() => {
                    tokio::time::sleep(LOOK_AGAIN.min(left)).await;
                }
                Standing::Others | Standing::Overtaken => {
                    context.state.overtaken();
                    return false;
                }
            }
        }
    }

    /// Permit and place for an attempt, and when it begins.
    async fn pass_in_time(
        &self,
        context: &Context,
        mut began: Reading,
    ) -> (Result<Passage, Barred>, Reading) {
        loop {
            let passed = self.pass(context.call.uid, began, context.counted);
            let left = context.live_left(began.moment());
            let waits = context.call.options.awaits_place && !left.is_zero();
            if !waits || !matches!(passed, Err(Barred::Full)) || self.system.is_cut() {
                return (passed, began);
            }
            tokio::time::sleep(LOOK_AGAIN.min(left)).await;
            began = self.clock().read();
        }
    }

    /// One attempt, with permit and place. [`NoAnswer::Rejected`] if it gets none.
    async fn attempt(
        &self,
        context: &mut Context,
        spec: AttemptSpec,
        began: Reading,
    ) -> Result<Answered, NoAnswer> {
        let circuit = &*self.circuit;
        // What takes its time because of its caller says nothing of how fast the backend is.
        let timed = context.call.upload.is_none();
        let (passed, began) = match context.call.options.barred {
            Some(barred) => (Err(barred), began),
            None => self.pass_in_time(context, began).await,
        };
        // It may have waited, or have been sent before, since the state was looked at first.
        if spec.write && self.system.state() == SystemState::Emergency {
            return Err(read_only());
        }
        if self.is_shed(context) {
            return Err(Self::shed());
        }
        let waiting = match passed.map(|it| it.timed(timed).writing(spec.write)) {
            Ok(passage) => Waiting::for_it(passage),
            Err(barred) => {
                circuit.metrics.rejected.inc();
                let (code, detail) = (barred.as_str(), circuit.why_barred(barred));
                if context.recorder.keeps() {
                    let number = context.attempts + 1;
                    note_barred(&mut context.recorder, began, number, (code, detail.clone()));
                }
                return Err(NoAnswer::Rejected { code, detail });
            }
        };
        let (passage, now) = (waiting.passage(), began.moment());
        if let Some(upload) = &context.call.upload {
            upload.wrap(|rest| Box::new(Progressing::of(rest, passage)));
        }
        context.attempts += 1;
        let span_id = context.recorder.attempt_span();
        let repeated = context.state.is_in_doubt();
        let written = spec.write.then_some(&context.plan.lanes);
        context.withdrawn =
            self.attempt_begins(context.attempts, written, context.withdrawn.take());
        if spec.write {
            context.state.sent();
        }
        let ended = self.waited(context, spec, (passage, now, span_id)).await;
        let rest = ended.rest.map(|rest| self.guarded(rest, Arc::clone(passage)));
        let error = ended.result.as_ref().err();
        let (number, verdict) = (context.attempts, ended.verdict);
        let end = AttemptEnd { began, span_id, number, verdict, error };
        self.attempt_ended(passage, end, &mut context.counted, &mut context.recorder);
        if spec.write {
            let needs_evidence = context.connector.needs_evidence();
            note_end(&mut context.state, &mut context.evidence, needs_evidence, error);
        }
        let lost = ended.reply_lost;
        let answered = |reply| Answered { reply, rest, repeated, lost };
        ended.result.map(answered).map_err(NoAnswer::Failed)
    }

    /// Hands an attempt to the connector, and waits for its end.
    async fn waited(
        &self,
        context: &mut Context,
        spec: AttemptSpec,
        (passage, now, span_id): (&Arc<Passage>, Moment, u64),
    ) -> Attempted {
        let circuit = &*self.circuit;
        let (repeated, left) = (context.state.is_in_doubt(), context.live_left(now));
        let departure = spec.write.then(|| Departure {
            shared: self,
            connector: &context.connector,
            passage,
            lanes: &context.plan.lanes,
            state: &mut context.state,
            has_ended: false,
        });
        let timeout = left.min(circuit.settings.load().timeout);
        let attempt = Attempt {
            body: &context.plan.body,
            lanes: &context.plan.lanes,
            write: spec.write,
            origin: Origin::Live,
            token: spec.token,
            digest: context.digest,
            doubt: repeated
                .then_some(Doubt { since: context.accepted_at, evidence: &context.evidence }),
            following: &[],
            streams: context.call.streams,
            upload: context.call.upload.as_ref(),
            dialect: context.call.options.dialect,
            accepted_at: context.accepted_at,
            now: self.clock().steady_unix(),
            timeout,
            left,
            fence_patience: if spec.queues { timeout.min(FENCE_PATIENCE) } else { timeout },
            trace: context.recorder.passed_on(span_id),
            passage: Some(passage),
        };
        let strike = context.struck.take().or_else(|| {
            let class = if spec.write { Class::Write } else { Class::Read };
            let (uid, baggage) = (Some(context.call.uid), context.recorder.baggage());
            circuit.chaos.strike(now, context.call.options.op_id, || Seen { class, uid, baggage })
        });
        let acting = strike.and_then(|strike| circuit.chaos.act(strike, now));
        let chaos = acting.as_ref().map(Acting::word);
        let ended = tokio::select! {
            biased;
            ended = carried(&context.connector, attempt, acting) => ended,
            () = self.system.cut_off() => Attempted::failed(Verdict::Neutral, stopping(passage)),
        };
        if let Some(word) = chaos {
            context.recorder.struck(word);
        }
        if let Some(departure) = departure {
            departure.stayed(ended.result.as_ref().err());
        }
        ended
    }

    /// The rest of an answer, which holds its place for as long as it comes. Its beginning was a success;
    /// if it breaks off, the breaker counts that as an attempt of its own.
    fn guarded(&self, rest: Box<dyn Tail>, passage: Arc<Passage>) -> Box<dyn Tail> {
        Box::new(GuardedRest { rest, circuit: Arc::clone(&self.circuit), _passage: passage })
    }
}

/// Carries an attempt, and lets it meet what strikes it.
async fn carried(
    connector: &SharedConnector,
    attempt: Attempt<'_>,
    acting: Option<Acting>,
) -> Attempted {
    match acting {
        None => connector.attempt(attempt).await,
        Some(acting) => Box::pin(acting.carry(connector, attempt)).await,
    }
}

/// A write that is being sent, for whose end its caller waits. If the caller leaves, the state says what is known: it
/// was given up unsent, or it goes on and nobody hears when it lands.
struct Departure<'a> {
    shared: &'a BackendShared,
    connector: &'a SharedConnector,
    passage: &'a Passage,
    lanes: &'a Lanes,
    state: &'a mut WriteState,
    has_ended: bool,
}

impl Departure<'_> {
    /// Its caller has waited, until it was answered or its outcome was unknown.
    fn stayed(mut self, error: Option<&AttemptError>) {
        self.has_ended = true;
        if error.is_some_and(|error| error.doubt.is_some()) {
            self.shared.leave(&**self.connector, self.passage, self.lanes);
        }
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        if self.passage.stays() {
            self.state.end(End::Nothing);
        } else {
            self.shared.leave(&**self.connector, self.passage, self.lanes);
            self.state.end(End::Unknown);
        }
    }
}

/// There was no permit or no place: it never reached the wire.
pub(super) fn note_barred(
    recorder: &mut CallRecorder,
    began: Reading,
    number: u32,
    (code, detail): (&'static str, String),
) {
    let error = Some(Box::new((code.into(), detail)));
    let step = StepKind::Attempt { span_id: 0, number, verdict: None, error, transition: None };
    recorder.step(began, began, step);
}

/// See [`BackendShared::guarded`].
struct GuardedRest {
    rest: Box<dyn Tail>,
    circuit: Arc<Circuit>,
    _passage: Arc<Passage>,
}

impl Tail for GuardedRest {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            let piece = self.rest.next().await;
            if let Some(Err(error)) = &piece
                && matches!(error.class, ErrorClass::Unknown | ErrorClass::NotExecuted)
            {
                let now = self.circuit.clock.now();
                if let Ok(permit) = self.circuit.breaker.try_acquire(now) {
                    self.circuit.settle(permit, Outcome::FAILURE, Some(error), None, now);
                }
            }
            piece
        })
    }

    fn end(&self) -> Option<Bytes> {
        self.rest.end()
    }
}

/// The daemon stops: the attempt is abandoned, and its outcome unknown if anything of it may have been sent.
fn stopping(passage: &Passage) -> AttemptError {
    let class = if passage.stays() { ErrorClass::NotExecuted } else { ErrorClass::Unknown };
    AttemptError::own(class, OwnCode::Stopping, "fusebox is stopping")
}
