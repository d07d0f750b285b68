//! The second way into the call path: without a task, a boxed future or an allocation.
//!
//! A door that reads many commands at once asks for each whether it may go on the wire, sends it itself, and tells how
//! it ended. Everything else is the first way's ([`BackendShared::call`]), and both go through the same functions:
//! fence, flight, cache, breaker, bulkhead, write state, counters and record.
//!
//! ```text
//!            admit                     settle(answered)
//!  PlainPlan ──┬──▶ Ticket ──────────────────────────────────▶ Settled::Done
//!              │      │  │              settle(failed)
//!              │      │  └───────────────────────────────────▶ Settled::GoOn(Onward) ──go_on──▶ as `call` goes on
//!              │      ├── abandoned: its client has left; settled by its end all the same, and nothing follows
//!              │      ├── parted ──▶ Onward ──go_on──▶ its client's time is over: the call goes on without its attempt
//!              │      └── dropped: it was never sent, or its end cannot be known
//!              ├──▶ Instead      answered from the cache; counted, nothing follows
//!              └──▶ OtherWay     `call` must carry it, or its door refuses it; nothing was changed or counted
//! ```
//!
//! # What must wait takes the other way
//! Occupied lanes, a caller's own `op_id`, a write that is to be queued, a call that is to be shed, a store whose
//! lanes are not known, and a read that the cache cannot answer either: all of that is [`Admission::OtherWay`], which
//! leaves no trace, so that `call` counts the call once. So is a full bulkhead ([`OtherWay::Full`]); a door that
//! can hold its client back then waits instead. So is a call that a fault on purpose strikes ([`OtherWay::Struck`]):
//! `call` is given what strikes it, and nothing is decided twice.
//!
//! # Invariants
//! 1. A ticket has a permit, a place and, for a write, a flight that began *before* its lanes were looked at. A read
//!    has taken its leave to fill the cache before it was let through.
//! 2. A ticket is for one attempt, which is sent at once or never; or, if its door says so ([`Ticket::waits`]), when it
//!    [departs](Ticket::departs).
//! 3. A ticket belongs to what is on the wire, not to the client that waits for it: a door whose client leaves says
//!    so ([`Ticket::abandon`]), keeps the ticket with its request, and settles it by how that ends. A ticket that is
//!    dropped was never sent, or nobody will hear how it ended: permit and place go back, the attempt counts for
//!    nothing. An abandoned or dropped write may still land, so its lanes are barred to fills for a while, and those of
//!    an abandoned one to newer writes until it has ended ([`BackendShared::leave`]); unless nothing of it was sent.
//! 4. A failed attempt is counted when it is settled. What follows (retry, queue, fallback, the call's own end) is
//!    [`BackendShared::go_on`]'s, or nothing does ([`BackendShared::end`]); an [`Onward`] that is dropped abandons the
//!    call between two attempts, and is over for the cache as one that has ended.
//! 5. A ticket that its call has [parted](Ticket::part) from stays with its request, as one that is abandoned does: its
//!    end is recorded by the breaker, and gives its place back. Its write is the call's by then.
//! 6. An answer is a success of the backend also if it is an error of the call: a door that gets one settles
//!    [`Outcome::Failed`] with that error's class and [`Verdict::Success`].

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_state::{
    LaneId, Lanes, Target, UnixMillis, Verdict,
    cache::{Cache, Fill, Hit, Withdrawn},
    chaos::{Class, Seen, Strike},
    flight::Flight,
    write::{Next, Repeat, WriteState},
};

use super::{
    Context,
    attempts::note_barred,
    fills::leave_to_fill,
    passage::{AttemptEnd, note_end},
    refused,
};
use crate::{
    backend_shared::BackendShared,
    call::{AckLevel, Call, CallError, Reply, Source},
    circuit::UnderWay,
    clock::Reading,
    connector::{Access, SharedConnector},
    passage::Passage,
    queue::{Claim, Queue},
    refusal::{AttemptError, Barred},
    trace::{Answered, CallRecorder, CallRef, StepKind},
};

mod leaving;
mod plan;

pub use plan::{Instead, OtherWay, Outcome, PlainAccess, PlainPlan};

/// Whether a plain call may be sent.
#[must_use]
#[expect(
    clippy::large_enum_variant,
    reason = "to box a ticket would be an allocation for each call"
)]
pub enum Admission {
    /// It may: send it now, and settle the ticket.
    Go(Ticket),
    /// The backend is not to be asked: this answers.
    Instead(Instead),
    /// Hand it to `call`. Nothing was changed or counted.
    OtherWay(OtherWay),
}

/// What settling a ticket comes to.
#[must_use]
pub enum Settled {
    /// The call is over; the backend's answer is its answer.
    Done,
    /// Hand it to `go_on`, with the call.
    GoOn(Box<Onward>),
}

/// Leave for one attempt of a plain call. Dropping it abandons the attempt.
#[must_use]
pub struct Ticket {
    shared: Arc<BackendShared>,
    under_way: Option<UnderWay>,
    connector: SharedConnector,
    operation: &'static str,
    /// Dropped before the passage: the cache hears of it before newer writes may pass.
    write: Option<PlainWrite>,
    passage: Passage,
    began: Reading,
    span_id: u64,
    recorder: Option<CallRecorder>,
    fill: Option<(Arc<Cache>, Fill)>,
    /// Its client has left, or was answered otherwise.
    left: bool,
    /// What answered its client meanwhile.
    instead: Option<Source>,
}

/// A write on its way, from its admission until its call [carries it on](Self::go_on). However it is over before that,
/// the cache hears of it: also if whoever has it drops it.
struct PlainWrite {
    shared: Arc<BackendShared>,
    lanes: Lanes,
    flight: Option<Flight>,
    state: WriteState,
    /// What was withdrawn from the cache for it.
    withdrawn: Option<Withdrawn>,
}

impl PlainWrite {
    /// Its call carries it on, and ends it.
    fn go_on(mut self, context: &mut Context) {
        (context.flight, context.withdrawn) = (self.flight.take(), self.withdrawn.take());
        // What is left here was never sent, and tells the cache nothing.
        let unsent = WriteState::fresh(self.state.repeat());
        context.state = mem::replace(&mut self.state, unsent);
    }
}

impl Drop for PlainWrite {
    fn drop(&mut self) {
        self.shared.write_ended(self.state, &self.lanes, self.withdrawn.take());
    }
}

/// A call whose first attempt, by a ticket, has failed.
pub struct Onward {
    under_way: UnderWay,
    connector: SharedConnector,
    operation: &'static str,
    began: Reading,
    recorder: CallRecorder,
    error: AttemptError,
    counted: bool,
    evidence: Bytes,
    write: Option<PlainWrite>,
    /// Its place in its lanes, if its outcome is unknown and it may be sent again.
    claim: Option<Claim>,
    /// Its client's time for the wire is over.
    parted: bool,
}

impl Onward {
    /// Takes its place in its lanes if its outcome is unknown and it may be sent again: nothing newer passes it from
    /// here on, and what its caller began after it and lost with it is queued behind it. Call it for all that was
    /// lost together, oldest first, before any of it goes on.
    pub(crate) fn hold(&mut self, queue: &Arc<Queue>) {
        let Some(write) = &mut self.write else { return };
        if write.state.next() != Next::Repeat {
            return;
        }
        let (claim, behind_calls) = queue.claim(&write.lanes);
        self.claim = Some(claim);
        match &mut write.flight {
            Some(flight) if !behind_calls => flight.doubt(),
            _ => write.state.overtaken(),
        }
    }

    /// The lanes that it writes to.
    pub fn lanes(&self) -> Option<&Lanes> {
        self.write.as_ref().map(|write| &write.lanes)
    }

    /// A write to `lanes` that its caller began before it was acknowledged after it began: that does not overtake it.
    pub fn follows(&mut self, lanes: &Lanes) {
        if let Some(flight) = self.write.as_mut().and_then(|write| write.flight.as_mut()) {
            flight.follows(lanes);
        }
    }
}

impl BackendShared {
    /// Whether a plain call may be sent now, or what answers it instead.
    pub fn admit(self: &Arc<Self>, plan: &PlainPlan<'_>) -> Admission {
        let is_write = matches!(plan.access, PlainAccess::Write { .. });
        if self.sheds(plan.priority, is_write) {
            return Admission::OtherWay(OtherWay::Shed);
        }
        match plan.access {
            PlainAccess::Read { keyed, slot, max_stale } => {
                if keyed && self.queue.is_occupied(plan.lanes) {
                    return Admission::OtherWay(OtherWay::Lanes);
                }
                self.admit_read(plan, slot, max_stale)
            }
            PlainAccess::Write { absolute } => self.admit_write(plan, absolute),
        }
    }

    fn admit_read(
        self: &Arc<Self>,
        plan: &PlainPlan<'_>,
        slot: Option<(LaneId, &[u8])>,
        max_stale: Option<Duration>,
    ) -> Admission {
        let began = self.clock().read();
        let fill = slot.and_then(|(lane, _)| {
            let cache = self.cache.load_full();
            let connector = self.connector.load();
            let fill = leave_to_fill(&cache, &***connector, lane, began.moment())?;
            Some((cache, fill))
        });
        match self.pass(plan.uid, began, false) {
            Ok(passage) => match self.strikes(plan, began, Class::Read) {
                Some(strike) => Admission::OtherWay(OtherWay::Struck(strike)),
                None => Admission::Go(self.ticket(plan, began, passage, fill, None)),
            },
            Err(Barred::Full) => Admission::OtherWay(OtherWay::Full),
            Err(barred) => {
                let cache = self.cache.load();
                // Only a hit is counted here: what misses goes to `call`, which looks again.
                let hit = slot.and_then(|(lane, key)| {
                    cache.get_if_held(lane, key, max_stale, began.moment())
                });
                match hit {
                    Some(hit) => Admission::Instead(self.answer_instead(plan, began, barred, hit)),
                    None => Admission::OtherWay(OtherWay::Barred(barred)),
                }
            }
        }
    }

    fn admit_write(self: &Arc<Self>, plan: &PlainPlan<'_>, absolute: bool) -> Admission {
        let Some(flight) = self.begin_flight(plan.lanes) else {
            return Admission::OtherWay(OtherWay::Lanes);
        };
        let began = self.clock().read();
        let passage = match self.pass(plan.uid, began, false).map(|it| it.writing(true)) {
            Ok(passage) => passage,
            Err(Barred::Full) => return Admission::OtherWay(OtherWay::Full),
            Err(barred) => return Admission::OtherWay(OtherWay::Barred(barred)),
        };
        if let Some(strike) = self.strikes(plan, began, Class::Write) {
            return Admission::OtherWay(OtherWay::Struck(strike));
        }
        let repeat = if absolute { Repeat::Absolute } else { Repeat::Never };
        let mut state = WriteState::fresh(repeat);
        state.sent();
        let (lanes, flight) = (plan.lanes.clone(), Some(flight));
        let write = PlainWrite { shared: Arc::clone(self), lanes, flight, state, withdrawn: None };
        Admission::Go(self.ticket(plan, began, passage, None, Some(write)))
    }

    /// What strikes a plain call that is let through. Its permit and its place go back: it comes again.
    fn strikes(&self, plan: &PlainPlan<'_>, began: Reading, class: Class) -> Option<Strike> {
        let uid = Some(plan.may_be_struck.then_some(plan.uid)?);
        let seen = || Seen { class, uid, baggage: plan.trace.baggage() };
        self.circuit.chaos.strike(began.moment(), None, seen)
    }

    fn ticket(
        self: &Arc<Self>,
        plan: &PlainPlan<'_>,
        began: Reading,
        passage: Passage,
        fill: Option<(Arc<Cache>, Fill)>,
        mut write: Option<PlainWrite>,
    ) -> Ticket {
        let withdrawn = self.attempt_begins(1, write.as_ref().map(|write| &write.lanes), None);
        if let Some(write) = &mut write {
            write.withdrawn = withdrawn;
        }
        let recorder = self.tracer.begin(plan.trace.clone(), began);
        passage.departs();
        Ticket {
            shared: Arc::clone(self),
            under_way: Some(self.circuit.call_begins()),
            connector: SharedConnector::clone(&self.connector.load()),
            operation: plan.operation,
            write,
            passage,
            began,
            span_id: recorder.attempt_span(),
            recorder: Some(recorder),
            fill,
            left: false,
            instead: None,
        }
    }

    /// The cache answers a read that is not let through, as it does for `call`.
    fn answer_instead(
        &self,
        plan: &PlainPlan<'_>,
        began: Reading,
        why: Barred,
        hit: Hit<Bytes>,
    ) -> Instead {
        let metrics = &self.circuit.metrics;
        metrics.rejected.inc();
        metrics.cache_hit.inc();
        let source = if hit.fresh { Source::Cache } else { Source::Stale };
        let mut recorder = self.tracer.begin(plan.trace.clone(), began);
        if recorder.keeps() {
            note_barred(&mut recorder, began, 1, (why.as_str(), self.circuit.why_barred(why)));
            let looked = self.clock().read();
            recorder.step(began, looked, StepKind::CacheLookup { hit: true });
            recorder.step(began, looked, StepKind::Fallback(Some(source)));
        }
        self.end_plain(recorder, plan.operation, false, source);
        Instead { source, value: hit.value, age: hit.age, why }
    }

    /// A plain call is over, and was answered.
    fn end_plain(
        &self,
        recorder: CallRecorder,
        operation: &'static str,
        write: bool,
        source: Source,
    ) {
        self.circuit.metrics.call(write, Some(source));
        if !self.tracer.wants(&recorder, Some(source)) {
            return;
        }
        let of = CallRef {
            backend: &self.circuit.name,
            kind: self.circuit.settings.load().kind,
            target: self.connector.load().target(),
            operation: operation.into(),
            write,
        };
        let ack = write.then_some(AckLevel::Applied);
        self.tracer.end(recorder, of, Ok(Answered { source, ack, op_id: None }));
    }

    /// A plain call that [took the other way](Admission::OtherWay) ends without it: its door can hand nothing to
    /// `call`. Counts it, and keeps `why` in its record.
    pub fn refuse(&self, plan: &PlainPlan<'_>, why: OtherWay) {
        let metrics = &self.circuit.metrics;
        metrics.rejected.inc();
        let began = self.clock().read();
        let mut recorder = self.tracer.begin(plan.trace.clone(), began);
        let (code, detail) = match why {
            OtherWay::Lanes => ("lane_busy", "earlier writes wait in the queue".to_owned()),
            OtherWay::Barred(barred) => (barred.as_str(), self.circuit.why_barred(barred)),
            OtherWay::Full => (Barred::Full.as_str(), self.circuit.why_barred(Barred::Full)),
            OtherWay::Struck(_) => ("chaos", why.why().to_owned()),
            OtherWay::Shed => (
                "shed",
                "the system is CRITICAL or EMERGENCY: this call is not sent to the backend"
                    .to_owned(),
            ),
        };
        if recorder.keeps() {
            note_barred(&mut recorder, began, 1, (code, detail.clone()));
        }
        let is_write = matches!(plan.access, PlainAccess::Write { .. });
        let refused = super::error(code, detail);
        self.end_refused(recorder, plan.operation, is_write, &refused);
    }

    /// A call ends by its first attempt, which has failed: nothing follows it.
    pub fn end(&self, onward: Onward) {
        let Onward { under_way: _under_way, recorder, error, write, operation, .. } = onward;
        let is_write = write.is_some();
        let mut refused = super::error(error.code.clone(), error.words());
        refused.outcome_unknown = write.is_some_and(|write| write.state.is_in_doubt());
        self.end_refused(recorder, operation, is_write, &refused);
    }

    fn end_refused(
        &self,
        recorder: CallRecorder,
        operation: &'static str,
        write: bool,
        refused: &CallError,
    ) {
        self.circuit.metrics.call(write, None);
        if !self.tracer.wants(&recorder, None) {
            return;
        }
        let of = CallRef {
            backend: &self.circuit.name,
            kind: self.circuit.settings.load().kind,
            target: self.connector.load().target(),
            operation: operation.into(),
            write,
        };
        self.tracer.end(recorder, of, Err(refused.into()));
    }

    /// Carries a call on whose first attempt has failed: retry, queue or fallback, as [`BackendShared::call`] would.
    /// `call` is the one that the ticket was for; its deadline counts from the ticket's admission.
    ///
    /// # Errors
    /// As [`BackendShared::call`].
    pub async fn go_on(&self, call: Call, onward: Onward) -> Result<Reply, CallError> {
        let Onward { under_way: _under_way, connector, began, recorder, .. } = onward;
        let plan = connector.plan(call.body.clone()).map_err(refused)?;
        let mut context = Context::new(self, call, plan, connector, began, recorder);
        let now = self.clock().read();
        let ago = u64::try_from(now.since(began).as_millis()).unwrap_or(u64::MAX);
        context.read_at = now;
        context.accepted_at = UnixMillis::new(context.accepted_at.get().saturating_sub(ago));
        context.attempts = 1;
        context.counted = onward.counted;
        context.evidence = onward.evidence;
        if let Some(write) = onward.write {
            write.go_on(&mut context);
        }
        context.claim = onward.claim;
        if onward.parted {
            context.live_until = now.moment();
        }
        let is_write = matches!(context.plan.access, Access::Write(_));
        if is_write && !context.state.is_in_doubt() && self.queue.is_occupied(&context.plan.lanes) {
            // It was not applied, and others are before it by now, its caller's own among them: start again.
            context.flight = None;
        } else {
            context.failed = Some(onward.error);
        }
        self.carry(context).await
    }
}

impl Ticket {
    /// Whether it is leave for what was made for `target`. The backend may have got another one since.
    pub fn is_for(&self, target: &Target) -> bool {
        self.connector.target() == *target
    }

    /// The id of its attempt's span, to be passed on to the backend; zero if it is not recorded.
    pub fn span_id(&self) -> u64 {
        self.span_id
    }

    /// Its request, or its answer, is kept waiting by a client: how long it takes says nothing of the backend.
    pub fn is_kept_waiting(&mut self) {
        self.passage.untimed();
    }

    /// What the cache holds of a read that a suspect backend has not answered yet, its source and its age.
    /// is: its client is answered with that, if it is `usable`. Its
    /// attempt goes on, and is settled by its end, of which nothing follows.
    pub fn instead(
        &mut self,
        (lane, key): (LaneId, &[u8]),
        max_stale: Option<Duration>,
        usable: impl FnOnce(&[u8]) -> bool,
    ) -> Option<(Source, Bytes, Duration)> {
        // What was queued since it was sent is newer than what is cached.
        if self.shared.queue.is_occupied(&Lanes::One(lane)) {
            return None;
        }
        let now = self.shared.clock().now();
        let hit = self.shared.cache.load().get_if_held(lane, key, max_stale, now)?;
        if !usable(&hit.value) {
            return None;
        }
        let source = if hit.fresh { Source::Cache } else { Source::Stale };
        self.shared.circuit.metrics.cache_hit.inc();
        self.passage.give_up();
        (self.left, self.instead) = (true, Some(source));
        Some((source, hit.value, hit.age))
    }

    /// The lanes that it writes to.
    pub fn lanes(&self) -> Option<&Lanes> {
        self.write.as_ref().map(|write| &write.lanes)
    }

    /// Its attempt has ended. Nothing follows the failure of one whose client has left.
    pub fn settle(mut self, outcome: Outcome<'_>) -> Settled {
        let (verdict, error) = match &outcome {
            Outcome::Answered { .. } => (Verdict::Success, None),
            Outcome::Failed { verdict, error } => (*verdict, Some(error)),
        };
        let Some(ended) = self.ended(verdict, error) else {
            self.passage.say(verdict);
            return Settled::Done;
        };
        let shared = Arc::clone(&self.shared);
        match outcome {
            Outcome::Answered { cached, until } => {
                if let (Some((cache, fill)), Some((key, value))) = (self.fill.take(), cached) {
                    cache.fill(fill, key, value, shared.clock().now(), until);
                }
                let is_write = ended.write.is_some();
                if let Some(mut write) = ended.write
                    && let Some(flight) = write.flight.take()
                {
                    flight.acknowledge();
                }
                let source = self.instead.unwrap_or(Source::Live);
                shared.end_plain(ended.recorder, self.operation, is_write, source);
                Settled::Done
            }
            Outcome::Failed { .. } if self.left => {
                drop(ended.write);
                if let Some(source) = self.instead {
                    shared.end_plain(ended.recorder, self.operation, false, source);
                }
                Settled::Done
            }
            Outcome::Failed { error, .. } => Settled::GoOn(Box::new(self.onward(ended, error))),
        }
    }

    /// Notes how its attempt has ended for its call. `None` if its call has parted from it.
    fn ended(&mut self, verdict: Verdict, error: Option<&AttemptError>) -> Option<Ended> {
        let (mut recorder, under_way) = (self.recorder.take()?, self.under_way.take()?);
        let end =
            AttemptEnd { began: self.began, span_id: self.span_id, number: 1, verdict, error };
        let mut counted = false;
        self.shared.attempt_ended(&self.passage, end, &mut counted, &mut recorder);
        let (mut evidence, mut write) = (Bytes::new(), self.write.take());
        if let Some(write) = &mut write {
            let needs_evidence = self.connector.needs_evidence();
            note_end(&mut write.state, &mut evidence, needs_evidence, error);
        }
        Some(Ended { recorder, under_way, counted, evidence, write })
    }

    fn onward(&self, ended: Ended, error: AttemptError) -> Onward {
        let Ended { recorder, under_way, counted, evidence, write } = ended;
        let (connector, began) = (SharedConnector::clone(&self.connector), self.began);
        Onward {
            under_way,
            connector,
            operation: self.operation,
            began,
            recorder,
            error,
            counted,
            evidence,
            write,
            claim: None,
            parted: false,
        }
    }
}

/// What a ticket hands on to its call.
struct Ended {
    recorder: CallRecorder,
    under_way: UnderWay,
    counted: bool,
    evidence: Bytes,
    write: Option<PlainWrite>,
}
