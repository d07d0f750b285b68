//! The live attempts of a call: deadline, retry with budget, breaker, bulkhead, timeout, wire.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, OpId, Verdict, backoff::full_jitter, bulkhead::Kept, flight::Standing,
};

use super::{Context, Lent, NoAnswer};
use crate::{
    circuit::Circuit,
    clock::Reading,
    connector::{Answer, Attempt, AttemptError, Attempted, Doubt, Origin, SharedConnector, Tail},
    metrics::Exemplar,
    trace::{StepKind, Tried},
};

/// How often a write in doubt looks whether the others of its lanes have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The code of an attempt that found its connector closed; it was not executed.
const CLOSED: &str = "closed";
/// How often a call whose connector is closed looks for the next one.
const EXCHANGE_LOOK: Duration = Duration::from_millis(5);

/// How the attempts ended.
pub(crate) enum Live {
    /// The backend answered, perhaps with more to follow.
    Answered(Bytes, Option<Box<dyn Tail>>),
    /// The backend, or one object in it, refuses this call.
    Refused(AttemptError),
    /// There is no answer.
    None(NoAnswer),
}

/// What an attempt carries beside the call.
#[derive(Clone, Copy)]
pub(crate) struct Carried {
    /// May change something.
    pub(crate) write: bool,
    /// May be sent again after an unknown outcome.
    pub(crate) repeatable: bool,
    /// What lets the backend recognise it.
    pub(crate) token: Option<OpId>,
}

impl Lent {
    /// Tries the call on the wire, at most as often as the settings say and never past its deadline.
    pub(crate) async fn attempts(&self, context: &mut Context, carried: Carried) -> Live {
        let retry = self.circuit.settings.load().retry;
        let mut read = context.read_at;
        loop {
            let error = match self.attempt(context, carried, read).await {
                Ok((reply, rest)) => return Live::Answered(reply, rest),
                Err(NoAnswer::Failed(error)) => error,
                Err(rejected) => return Live::None(rejected),
            };
            if error.code == CLOSED
                && let Some(next) = self.next_connector(context).await
            {
                // It did not reach the wire: that its connector was exchanged is not the caller's affair.
                context.connector = next;
                context.attempts -= 1;
                read = self.clock().read();
                continue;
            }
            let again = match error.class {
                ErrorClass::Rejected | ErrorClass::Conflict | ErrorClass::BlockedObject => {
                    return Live::Refused(error);
                }
                ErrorClass::BlockedServer => false,
                ErrorClass::NotExecuted => context.call.upload.is_none(),
                ErrorClass::Unknown => {
                    context.unknown = true;
                    if let Some(evidence) =
                        error.doubt.clone().filter(|_| context.evidence.is_empty())
                    {
                        context.evidence = evidence;
                    }
                    carried.repeatable
                        && context.call.upload.is_none()
                        && self.may_repeat(context, carried).await
                }
                ErrorClass::Ambiguous => {
                    (context.unknown, context.spent) = (true, true);
                    false
                }
            };
            if self.system.is_cut() {
                // There is no time for another attempt; what may be queued must be queued now.
                return Live::None(NoAnswer::Failed(error));
            }
            let failed = self.clock().read();
            let now = failed.moment();
            if context.live_left(now).is_zero() {
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
            context.trail.step(failed, read, StepKind::Backoff);
            if context.claim.is_some() && !self.may_repeat(context, carried).await {
                return Live::None(NoAnswer::Failed(error));
            }
        }
    }

    /// The connector that takes the place of the call's own, which is closed, where there will be one: a
    /// reload closes the old one before it puts the new one in its place. `None` where it is of another
    /// target, for which the call was not planned, and where the daemon stops.
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

    /// Whether a call of unknown outcome may be sent again. A read may, and a write whose token lets the
    /// backend recognise it. Any other first claims its lanes, then waits for what is in flight there, and
    /// may not where something newer was acknowledged, or queued, since it began. Asked again before each
    /// repetition: of two that are in doubt together, the one that is acknowledged overtakes the other.
    pub(super) async fn may_repeat(&self, context: &mut Context, carried: Carried) -> bool {
        if !carried.write || carried.token.is_some() {
            return true;
        }
        if context.claim.is_none() {
            let (claim, behind_calls) = self.queue.claim(&context.plan.lanes);
            context.claim = Some(claim);
            context.spent = behind_calls;
        }
        let spent = context.spent;
        let Some(flight) = context.flight.as_mut().filter(|_| !spent) else { return false };
        flight.doubt();
        loop {
            let left = context.deadline.since(self.clock().now());
            match flight.standing() {
                Standing::Alone => return true,
                Standing::Others if !left.is_zero() && !self.system.is_cut() => {
                    tokio::time::sleep(LOOK_AGAIN.min(left)).await;
                }
                Standing::Others | Standing::Overtaken => {
                    context.spent = true;
                    return false;
                }
            }
        }
    }

    /// One attempt, with permit and place. [`NoAnswer::Rejected`] where it gets none.
    async fn attempt(
        &self,
        context: &mut Context,
        carried: Carried,
        began: Reading,
    ) -> Result<(Bytes, Option<Box<dyn Tail>>), NoAnswer> {
        let circuit = &*self.circuit;
        let now = began.moment();
        let permit = match circuit.breaker.try_acquire(now) {
            Ok(permit) => permit,
            Err(rejected) => {
                circuit.metrics.rejected.inc();
                let code = match rejected {
                    fusebox_state::breaker::Rejected::Open => "breaker_open",
                    fusebox_state::breaker::Rejected::Offline => "offline",
                };
                return Err(Self::not_let_through(context, began, code, rejected.to_string()));
            }
        };
        let Some(place) = circuit.bulkhead.try_enter() else {
            circuit.metrics.rejected.inc();
            let max = circuit.bulkhead.max();
            let detail = format!("{max} attempts are in flight, which is the limit");
            return Err(Self::not_let_through(context, began, "bulkhead_full", detail));
        };
        if context.attempts == 0 {
            circuit.budget.deposit();
        }
        context.attempts += 1;
        let span_id = context.trail.attempt_span();
        let attempt = Attempt {
            body: &context.plan.body,
            lanes: &context.plan.lanes,
            write: carried.write,
            origin: Origin::Live,
            token: carried.token,
            digest: context.digest,
            doubt: context
                .unknown
                .then_some(Doubt { since: context.accepted_at, evidence: &context.evidence }),
            following: &[],
            streams: context.call.streams,
            upload: context.call.upload.as_ref(),
            accepted_at: context.accepted_at,
            now: self.clock().unix(),
            timeout: context.live_left(now).min(circuit.settings.load().timeout),
            trace: context.trail.passed_on(span_id),
        };
        let ended = tokio::select! {
            ended = context.connector.attempt(attempt) => ended,
            () = self.system.cut_off() => Attempted::failed(Verdict::Neutral, stopping()),
        };
        let rest = ended.rest.map(|rest| self.guarded(rest, place.keep()));
        let ended_at = self.clock().read();
        let exemplar = Exemplar::of(context.trail.followed(), self.clock());
        circuit.metrics.attempt(ended.verdict, ended_at.since(began), exemplar);
        let verdict = match ended.verdict {
            Verdict::Failure if context.counted && !permit.is_probe() => Verdict::Neutral,
            verdict => verdict,
        };
        context.counted |= verdict == Verdict::Failure;
        let (error, trace) = (ended.result.as_ref().err(), Some(context.trail.trace_id()));
        let transition = circuit.settle(permit, verdict, error, trace, ended_at.moment());
        let tried = Tried { number: context.attempts, verdict: ended.verdict, error, transition };
        context.trail.attempt(began, ended_at, span_id, tried);
        ended.result.map(|reply| (reply, rest)).map_err(NoAnswer::Failed)
    }

    /// There was no permit or no place: it never reached the wire.
    fn not_let_through(
        context: &mut Context,
        began: Reading,
        code: &'static str,
        detail: String,
    ) -> NoAnswer {
        if context.trail.keeps() {
            let step = StepKind::Attempt {
                span_id: 0,
                number: context.attempts + 1,
                verdict: None,
                error: Some(Box::new((code.into(), detail.clone()))),
                transition: None,
            };
            context.trail.step(began, began, step);
        }
        NoAnswer::Rejected { code, detail }
    }

    /// The rest of an answer, which holds its place for as long as it comes. Its beginning was a success;
    /// that it breaks off is told the breaker as an attempt of its own.
    fn guarded(&self, rest: Box<dyn Tail>, place: Kept) -> Box<dyn Tail> {
        Box::new(GuardedRest { rest, circuit: Arc::clone(&self.circuit), place: Some(place) })
    }
}

/// See [`Lent::guarded`].
struct GuardedRest {
    rest: Box<dyn Tail>,
    circuit: Arc<Circuit>,
    place: Option<Kept>,
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
                    self.circuit.settle(permit, Verdict::Failure, Some(error), None, now);
                }
            }
            piece
        })
    }
}

impl Drop for GuardedRest {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.circuit.bulkhead.leave(place);
        }
    }
}

/// The daemon stops: the attempt is abandoned, its outcome unknown.
fn stopping() -> AttemptError {
    AttemptError::own(ErrorClass::Unknown, "stopping", "fusebox is stopping")
}
