//! One call, from its lanes' fence to its reply.
//!
//! ```text
//!  plan -> store open? -> op_id known? -> fence (occupied lanes) -> shed? -> attempts -> reply
//!              | all: wait                    |                                |
//!              v                              | reads: overlay, or wait        | no answer: fallback
//!                                             | writes: queue behind           v
//!                                             +------------------> cache | stale | empty | bypass | queue | error
//! ```
//!
//! **The one rule that a maintainer might break:** nothing here is a message to an actor. Calls borrow
//! the circuit, the cache and the queue; a permit and a place in the bulkhead are guards that settle
//! themselves when the call is dropped, its caller gone.
//!
//! Why the order of a lane holds: a call that is invoked after an earlier one was acknowledged as
//! durable finds the lane occupied, because the lane is occupied from before the hand-over to the
//! committer until the removal is synced. Calls that overlap in time may take effect in either order;
//! a write that is sent again after an unknown outcome takes effect in its position at *that* time, so it claims
//! its lanes first and is given up if a newer one was acknowledged meanwhile (`state/src/flight.rs`). Whether
//! it may be sent again at all is said by its [`WriteState`].
//!
//! **The cache is emptied by what was done**: a write drops what is cached of its lanes when it is sent, and again
//! when it ends or is queued. What never left drops nothing.

use std::{borrow::Cow, sync::atomic::AtomicU64, time::Duration};

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, Moment, OpId, UnixMillis, Words,
    cache::Withdrawn,
    chaos::Strike,
    flight::Flight,
    system::SystemState,
    write::{Repeat, WriteState},
};

use crate::{
    audit::AUDIT,
    backend_shared::BackendShared,
    call::{AckLevel, Call, CallError, CallErrorKind, Priority, Reply, Source},
    clock::Reading,
    connector::{Access, Plan, SharedConnector, Write},
    queue::Claim,
    refusal::{AttemptError, Refused},
    trace::{CallRecorder, CallRef, CallTrace},
};

mod attempts;
mod copied;
mod filed;
mod fills;
mod passage;
mod read;
mod ticket;
mod wait;
mod write;

pub use copied::AnswerCopy;
pub use fills::Fills;
pub use ticket::{
    Admission, Instead, Onward, OtherWay, Outcome, PlainAccess, PlainPlan, Settled, Ticket,
};
pub(crate) use write::reserve;

/// What the steps of one call share.
pub(crate) struct Context {
    /// The clock as it was last read: at the beginning, and after each wait.
    pub(crate) read_at: Reading,
    pub(crate) deadline: Moment,
    /// Until when it may be tried on the wire.
    pub(crate) live_until: Moment,
    pub(crate) call: Call,
    pub(crate) plan: Plan,
    pub(crate) connector: SharedConnector,
    pub(crate) attempts: u32,
    /// When it was accepted, on the wall clock.
    pub(crate) accepted_at: UnixMillis,
    /// Digest of the call as its caller sent it; 0 for a read.
    pub(crate) digest: u64,
    /// What is known of it; of no meaning for a read.
    pub(crate) state: WriteState,
    /// What a later proof must know of its attempts.
    pub(crate) evidence: Bytes,
    /// A failure was counted already; a call counts at most one.
    pub(crate) counted: bool,
    /// A write's way over the wire, from before it looked whether its lanes are occupied.
    pub(crate) flight: Option<Flight>,
    /// The place that it holds since its outcome is unknown.
    pub(crate) claim: Option<Claim>,
    /// What was withdrawn from the cache for a write on its way.
    pub(crate) withdrawn: Option<Withdrawn>,
    /// How old what is cached is that queued writes were laid over, in milliseconds; 0 if there is none.
    pub(crate) base_age: AtomicU64,
    /// How the attempt of a ticket ended, if that was the first one: it does not pass its fence again.
    pub(crate) failed: Option<AttemptError>,
    /// What strikes its first attempt, if that was decided before.
    pub(crate) struck: Option<Strike>,
    /// What it records of itself.
    pub(crate) recorder: CallRecorder,
}

impl Context {
    /// A call that begins at `began`.
    fn new(
        shared: &BackendShared,
        call: Call,
        plan: Plan,
        connector: SharedConnector,
        began: Reading,
        recorder: CallRecorder,
    ) -> Self {
        let (deadline, struck) = (call.options.deadline, call.options.struck);
        let deadline = deadline.unwrap_or_else(|| shared.circuit.default_deadline());
        let deadline = began.moment().plus(deadline);
        Self {
            read_at: began,
            deadline,
            live_until: deadline,
            call,
            plan,
            connector,
            attempts: 0,
            accepted_at: shared.clock().steady_unix(),
            digest: 0,
            state: WriteState::fresh(Repeat::Absolute),
            evidence: Bytes::new(),
            counted: false,
            flight: None,
            claim: None,
            withdrawn: None,
            base_age: AtomicU64::new(0),
            failed: None,
            struck,
            recorder,
        }
    }

    /// What may still be spent on the wire at `now`.
    pub(crate) fn live_left(&self, now: Moment) -> Duration {
        self.live_until.since(now)
    }

    /// What the deadline leaves at `now`.
    pub(crate) fn left(&self, now: Moment) -> Duration {
        self.deadline.since(now)
    }
}

/// Why the backend gave no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// The breaker, the bulkhead or the system state let nothing through.
    Rejected {
        /// A stable word.
        code: &'static str,
        /// What would be said to the caller.
        detail: String,
    },
    /// The last attempt's error.
    Failed(AttemptError),
    /// The caller's deadline passed first.
    Deadline,
}

impl NoAnswer {
    fn detail(&self) -> Words {
        match self {
            Self::Rejected { detail, .. } => detail.clone().into(),
            Self::Failed(error) => error.words(),
            Self::Deadline => "the deadline passed".into(),
        }
    }

    /// The backend's own answer, if there was one.
    fn answer(&self) -> Option<Box<Bytes>> {
        match self {
            Self::Failed(error) => error.reply.clone().map(Box::new),
            Self::Rejected { .. } | Self::Deadline => None,
        }
    }

    fn code(&self) -> Cow<'static, str> {
        match self {
            Self::Rejected { code, .. } => Cow::Borrowed(code),
            Self::Failed(error) => error.code.clone().into(),
            Self::Deadline => Cow::Borrowed("deadline"),
        }
    }
}

impl BackendShared {
    /// Carries a call from fence to reply.
    ///
    /// # Errors
    /// [`CallError`] says what happened, whether it may have been applied, and when to try again.
    /// Dropping the future abandons the call: what was handed to the committer stays queued.
    pub async fn call(&self, mut call: Call) -> Result<Reply, CallError> {
        let _under_way = self.circuit.call_begins();
        let connector = SharedConnector::clone(&self.connector.load());
        if call.options.made_for.as_ref().is_some_and(|target| *target != connector.target()) {
            return Err(CallError {
                retry_after: Some(Duration::ZERO),
                ..error("address_changed", "its address was changed in the meantime")
            });
        }
        let plan = connector.plan(call.body.clone()).map_err(refused)?;
        if plan.admin && !call.admin {
            return Err(CallError {
                kind: CallErrorKind::Forbidden,
                ..error("admin_only", format!("{} needs admin rights", plan.label))
            });
        }
        if plan.admin && !call.options.is_audited {
            let (backend, operation) = (&*self.circuit.name, &*connector.operation(&plan.body));
            let door = call.trace.route.door();
            let uid = call.uid;
            tracing::info!(target: AUDIT, backend, door, operation, uid, "an administrative call");
        }
        let began = self.clock().read();
        let trace = std::mem::replace(&mut call.trace, CallTrace::NONE);
        let recorder = self.tracer.begin(trace, began);
        self.carry(Context::new(self, call, plan, connector, began, recorder)).await
    }

    /// Carries what was begun to its end, counts it, and hands on what it recorded.
    async fn carry(&self, mut context: Context) -> Result<Reply, CallError> {
        let is_write = matches!(context.plan.access, Access::Write(_));
        if self.circuit.is_opening() {
            Box::pin(self.wait_to_begin(&mut context, is_write)).await;
        }
        let result = match context.plan.access.clone() {
            Access::Read(read) => self.read(&mut context, &read).await,
            Access::Write(write) => Box::pin(self.write(&mut context, &write)).await,
        };
        let source = result.as_ref().ok().map(|reply| reply.source);
        self.circuit.metrics.call(is_write, source);
        if self.tracer.wants(&context.recorder, source) {
            let Context { recorder, connector, plan, .. } = context;
            let of = CallRef {
                backend: &self.circuit.name,
                kind: self.circuit.settings.load().kind,
                target: connector.target(),
                operation: connector.operation(&plan.body),
                write: is_write,
            };
            let told = result.as_ref().map(Into::into).map_err(Into::into);
            self.tracer.end(recorder, of, told);
        }
        result
    }

    /// Whether the system state keeps such a call from the backend.
    fn sheds(&self, priority: Priority, is_write: bool) -> bool {
        let state = self.system.state();
        priority == Priority::Low && state >= SystemState::Critical
            || is_write && state == SystemState::Emergency
    }

    /// Whether this call gets no live attempt because of the system state. A write in an EMERGENCY is seen to before.
    fn is_shed(&self, context: &Context) -> bool {
        self.sheds(context.call.options.priority, false)
    }

    fn shed() -> NoAnswer {
        let detail = "the system is CRITICAL or EMERGENCY: calls of priority low are not sent to backends; try again \
                      later, or with priority normal".to_owned();
        NoAnswer::Rejected { code: "shed", detail }
    }

    fn reply(&self, context: &Context, source: Source, value: Option<Bytes>) -> Reply {
        Reply {
            source,
            ack: None,
            value,
            age: Duration::ZERO,
            warnings: Vec::new(),
            op_id: None,
            attempts: context.attempts,
            pending_writes: self.queue.waiting(),
            rest: None,
            reply_lost: false,
        }
    }

    /// It was applied, and answered with `value`, which is not the reply of its first attempt if that is `lost`.
    fn applied(&self, context: &Context, value: Bytes, lost: bool, op_id: Option<OpId>) -> Reply {
        let mut reply = self.reply(context, Source::Live, Some(value));
        if lost {
            let why = "reply_lost: the write was applied by an attempt whose reply did not arrive; the value \
                       is that of a repetition, or null";
            reply.warnings.push(why.to_owned());
        }
        if let Access::Write(Write { caveat: Some(caveat), .. }) = &context.plan.access {
            reply.warnings.push((*caveat).to_owned());
        }
        Reply { ack: Some(AckLevel::Applied), op_id, reply_lost: lost, ..reply }
    }

    /// When trying again makes sense: when the breaker may half-open, at least a second from now.
    pub(crate) fn retry_after(&self) -> Duration {
        let now = self.clock().now();
        let until = self.circuit.breaker.next_tick().map(|until| until.since(now));
        until.unwrap_or_default().max(Duration::from_secs(1))
    }

    /// The backend refuses the call: its own code and words, a 422.
    fn rejected(context: &Context, refusal: AttemptError, op_id: Option<OpId>) -> CallError {
        let conflict = refusal.class == ErrorClass::Conflict;
        CallError {
            kind: if conflict { CallErrorKind::Conflict } else { CallErrorKind::Refused },
            code: refusal.code.into(),
            detail: refusal.message,
            // An attempt may have written something all the same: an earlier one, or this one before it was
            // refused.
            outcome_unknown: context.state.is_in_doubt(),
            op_id,
            attempts: context.attempts,
            reply: refusal.reply.map(Box::new),
            ..error("", "")
        }
    }

    /// No answer and no fallback: a 503, not executed.
    fn unavailable(&self, context: &Context, why: &NoAnswer, note: &str) -> CallError {
        let note = if note.is_empty() { String::new() } else { format!("; {note}") };
        CallError {
            kind: CallErrorKind::Unavailable,
            retry_after: Some(self.retry_after()),
            attempts: context.attempts,
            last_answer: why.answer(),
            ..error(why.code(), why.detail().within(|why| format!("{why}{note}")))
        }
    }
}

/// An error of unavailability with everything else empty, to be built upon.
pub(crate) fn error(code: impl Into<Cow<'static, str>>, detail: impl Into<Words>) -> CallError {
    CallError {
        kind: CallErrorKind::Unavailable,
        code: code.into(),
        detail: detail.into(),
        outcome_unknown: false,
        op_id: None,
        retry_after: None,
        attempts: 0,
        reply: None,
        last_answer: None,
    }
}

fn refused(refused: Refused) -> CallError {
    let kind = if refused.malformed { CallErrorKind::Malformed } else { CallErrorKind::Refused };
    CallError { kind, ..error(refused.code, refused.message) }
}
