//! One backend as doors and operators use it: calls, views, orders.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, Lanes, Moment, UnixMillis, Verdict, Words,
    chaos::{Faults, Kind, Order, Permitted},
};
use ractor::{ActorRef, rpc::CallResult};

use crate::{
    alert::Alert,
    backend::BackendMessage,
    backend_entry::BackendEntry,
    call::{AckLevel, Call, CallError, Priority, Reply},
    call_path::{self, Admission, AnswerCopy, Fills, Onward, OtherWay, PlainPlan},
    connector::{Gate, Read, SharedConnector, Slot},
    health::HealthMessage,
    metrics::DoorOverhead,
    queue::Overlaid,
    refusal::Barred,
    roster::Roster,
    view,
};

mod changes;
mod queued;

/// How long an order may take: a sync of the disk included.
pub(crate) const ADMIN_PATIENCE: Duration = Duration::from_secs(10);

/// An order of an operator that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No such backend or queued call.
    #[error("{0}")]
    NotFound(String),
    /// What is ordered makes no sense: the key is named, and what would be right.
    #[error("{0}")]
    Invalid(String),
    /// It does not fit the state: what is needed is said.
    #[error("{0}")]
    Conflict(String),
    /// The store, or the actor, could not carry it out.
    #[error("{0}")]
    Failed(String),
}

/// One backend as doors and operators use it.
pub struct Backend {
    pub(crate) entry: BackendEntry,
    pub(crate) entries: Arc<Roster>,
    pub(crate) health: ActorRef<HealthMessage>,
}

impl Backend {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.entry.shared.circuit.name
    }

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        self.entry.shared.circuit.settings.load().kind
    }

    /// Its connector, for what only it can read.
    pub fn connector(&self) -> SharedConnector {
        SharedConnector::clone(&self.entry.shared.connector.load())
    }

    /// Carries a call from fence to reply.
    ///
    /// # Errors
    /// [`CallError`] says what happened, whether it may have been applied, and when to try again.
    pub async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.entry.shared.call(call).await
    }

    /// Whether a plain call may be sent now, or what answers it instead: the way in without a task or an allocation.
    pub fn admit(&self, plan: &PlainPlan<'_>) -> Admission {
        self.entry.shared.admit(plan)
    }

    /// Why no call is let through for now; `None` while a probe may be, and while the store is being opened. A door says
    /// so of a write that it would rather have queued at once ([`CallOptions::barred`](crate::CallOptions)).
    pub fn bars(&self) -> Option<Barred> {
        self.entry.shared.circuit.bars()
    }

    /// Why no more is sent now of a call that was let in before, and may write to `lanes`. It gets no permit of its own.
    pub fn keeps_back(&self, lanes: &Lanes, priority: Priority) -> Option<OtherWay> {
        self.entry.shared.keeps_back(lanes, priority)
    }

    /// Where the door at `address` puts its own times.
    pub fn door_overhead(&self, address: &str) -> DoorOverhead {
        self.entry.shared.circuit.metrics.door_overhead(address)
    }

    /// Whether there is anything that the cache could answer.
    pub fn caches_something(&self) -> bool {
        self.entry.shared.cache.load().holds_something()
    }

    /// Whether plain writes with this wish are queued in an outage.
    pub fn lets_queue(&self, min_ack: Option<AckLevel>) -> bool {
        self.entry.shared.lets_queue(min_ack)
    }

    /// Whether these lanes move, so that it makes sense to wait for them.
    pub fn lanes_move(&self, lanes: &Lanes) -> bool {
        self.entry.shared.lanes_move(lanes)
    }

    /// Whether a write that its caller left on the wire may still be applied to one of `lanes`.
    pub fn is_barred(&self, lanes: &Lanes) -> bool {
        self.entry.shared.flights.is_barred(lanes)
    }

    /// Carries a call on whose ticket ended without an answer.
    ///
    /// # Errors
    /// As [`Backend::call`].
    pub async fn go_on(&self, call: Call, onward: Onward) -> Result<Reply, CallError> {
        self.entry.shared.go_on(call, onward).await
    }

    /// Ends a plain call that may not be sent, and that its door can hand to nobody.
    pub fn refuse(&self, plan: &PlainPlan<'_>, why: OtherWay) {
        self.entry.shared.refuse(plan, why);
    }

    /// Ends a call on whose ticket ended without an answer: nothing follows.
    pub fn end(&self, onward: Onward) {
        self.entry.shared.end(onward);
    }

    /// Waits for `who`, a user id, until `lanes` are free, for at most `patience`, and no longer than they move; returns
    /// whether they are.
    pub async fn wait_for(&self, who: u32, lanes: &Lanes, patience: Duration) -> bool {
        self.entry.shared.wait_free(who, lanes, patience).await
    }

    /// Waits for `who`, a user id, until its store, which is being opened, is open, for at most `patience`. False if it is not by then, or if
    /// it was not being opened.
    pub async fn wait_opened(&self, who: u32, patience: Duration) -> bool {
        self.entry.shared.wait_opened(who, patience).await
    }

    /// When trying again makes sense, if it is not to be asked now: at least a second from now.
    pub fn retry_after(&self) -> Duration {
        self.entry.shared.retry_after()
    }

    /// How long an attempt may take.
    pub fn timeout(&self) -> Duration {
        self.entry.shared.circuit.settings.load().timeout
    }

    /// How long a call may take that names no deadline.
    pub fn deadline(&self) -> Duration {
        self.entry.shared.circuit.default_deadline()
    }

    /// What a write that may be queued leaves of the time that its caller has `left`, for being queued.
    pub fn reserve(&self, left: Duration) -> Duration {
        call_path::reserve(left)
    }

    /// Takes the place of a call in its lanes if its outcome is unknown and it may be sent again: nothing newer passes
    /// it from here on, and what its caller began after it and lost with it is queued behind it. Call it for all that
    /// was lost together, oldest first, before any of it goes on.
    pub fn hold(&self, onward: &mut Onward) {
        onward.hold(&self.entry.shared.queue);
    }

    /// Resolves once the backend is suspect: a ping was not answered. From then on it may be, and not be, at any time.
    pub async fn suspect(&self) {
        self.entry.shared.circuit.suspect().await;
    }

    /// Whether there is reason to doubt that it answers: its breaker is not CLOSED, or a ping was not answered.
    pub fn is_suspect(&self) -> bool {
        self.entry.shared.circuit.is_suspect()
    }

    /// For how long a read that is cached waits for a backend that is suspect.
    pub fn answer_after(&self) -> Duration {
        self.entry.shared.circuit.settings.load().answer_after
    }

    /// Leave to fill the cache with what a read of several slots will answer, to be taken before it is sent.
    pub fn begin_fills(&self, read: &Read) -> Fills {
        self.entry.shared.begin_fills(read)
    }

    /// A copy for the cache of what `read`, which is `body`, will answer in pieces; to be taken before it is sent.
    pub fn copying(&self, read: &Read, body: &Bytes) -> AnswerCopy {
        self.entry.shared.copying(read, body)
    }

    /// Fills the cache with what the read of `body` has answered.
    pub fn end_fills(&self, fills: &Fills, read: &Read, body: &Bytes, reply: &Bytes) {
        self.entry.shared.end_fills(fills, read, body, reply);
    }

    /// The moment now.
    pub fn now(&self) -> Moment {
        self.entry.shared.clock().now()
    }

    /// The wall clock as times to live are counted by it.
    pub fn steady_unix(&self) -> UnixMillis {
        self.entry.shared.clock().steady_unix()
    }

    /// Something without a ticket is about to write to these lanes, or has: what is cached of them is dropped.
    pub fn wrote(&self, lanes: &Lanes) {
        self.entry.shared.queue.note_written(lanes);
        self.entry.shared.invalidate_lanes(lanes);
    }

    /// What the queued writes say of each of these reads, if they determine it.
    pub async fn determined(&self, slots: &[Slot]) -> Vec<Option<Bytes>> {
        let shared = &self.entry.shared;
        let connector = SharedConnector::clone(&shared.connector.load());
        let now = shared.clock().steady_unix();
        let mut parts = Vec::with_capacity(slots.len());
        for slot in slots {
            parts.push(match shared.queue.overlaid(&connector, slot, now).await {
                Overlaid::Value(part) => Some(part),
                Overlaid::Nothing | Overlaid::AsBefore | Overlaid::Undetermined => None,
            });
        }
        parts
    }

    /// What a live query asks before it connects.
    pub fn gate(&self) -> Gate {
        let circuit = Arc::clone(&self.entry.shared.circuit);
        Arc::new(move || circuit.is_asked())
    }

    /// Whether calls go to the backend: its breaker is not OPEN, and it is not offline.
    pub fn is_asked(&self) -> bool {
        self.entry.shared.circuit.is_asked()
    }

    /// Resolves once they do not.
    pub async fn not_asked(&self) {
        self.entry.shared.circuit.not_asked().await;
    }

    /// Resolves once they do. Costs nothing meanwhile.
    pub async fn until_asked(&self) {
        let circuit = &self.entry.shared.circuit;
        loop {
            let mut changed = pin!(circuit.changed.notified());
            changed.as_mut().enable();
            if circuit.is_asked() {
                return;
            }
            changed.await;
        }
    }

    /// The backend in full.
    pub fn view(&self) -> view::BackendView {
        self.entry.shared.view(&self.entries)
    }

    /// Why its breaker is in its state.
    pub fn explain(&self) -> view::ExplainView {
        self.entry.shared.explain(&self.entries)
    }

    /// The newest `limit` transitions, newest last, also of earlier runs.
    pub fn transitions(&self, limit: usize) -> Vec<fusebox_state::breaker::TransitionRecord> {
        self.entry.shared.transitions(limit)
    }

    /// Forces the breaker open or closed, until released or for as long as said.
    ///
    /// # Errors
    /// [`AdminError::Failed`] if its actor does not answer or the store cannot remember it.
    pub async fn force(
        &self,
        open: bool,
        reason: String,
        lasting: Option<Duration>,
    ) -> Result<(), AdminError> {
        let order = |reply| BackendMessage::Force { open, reason, lasting, reply };
        self.ask(order).await?.map_err(not_remembered)
    }

    /// Lifts a force.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] if none is in effect.
    pub async fn release(&self) -> Result<(), AdminError> {
        if self.ask(BackendMessage::Release).await?.map_err(not_remembered)? {
            return Ok(());
        }
        Err(AdminError::Conflict(format!("the breaker of {} is not forced", self.name())))
    }

    /// Closes the breaker and forgets its window, force and exponent.
    ///
    /// # Errors
    /// [`AdminError::Failed`] if its actor does not answer or the store cannot remember it.
    pub async fn reset(&self) -> Result<(), AdminError> {
        self.ask(BackendMessage::Reset).await?.map_err(not_remembered)
    }

    /// Takes it offline, or back.
    ///
    /// # Errors
    /// [`AdminError::Failed`] if its actor does not answer or the store cannot remember it.
    pub async fn set_offline(&self, offline: bool) -> Result<(), AdminError> {
        if !offline && self.entry.actor.load().is_none() {
            drop(self.health.send_message(HealthMessage::Revive(self.entry.clone())));
            let came_back = async {
                while self.entry.actor.load().is_none() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            // If it does not come back, the question below says so.
            drop(tokio::time::timeout(ADMIN_PATIENCE, came_back).await);
        }
        let said = self.ask(|reply| BackendMessage::SetOffline { offline, reply }).await?;
        said.map_err(not_remembered)
    }

    /// Sets faults on purpose, in place of those that are set here.
    ///
    /// # Errors
    /// [`AdminError::Invalid`] names the key that is wrong; [`AdminError::Conflict`] says what prevents it: what
    /// would end them at once, or the faults of another backend.
    pub async fn set_chaos(&self, order: Order, by: String) -> Result<view::ChaosView, AdminError> {
        let circuit = &self.entry.shared.circuit;
        let (is_critical, timeout) = {
            let settings = circuit.settings.load();
            (settings.critical, settings.timeout)
        };
        // What JavaScript can read of a number.
        let permitted = Permitted { is_critical, timeout, random: fastrand::u32(..).into() };
        let faults =
            order.check(permitted).map_err(|wrong| AdminError::Invalid(wrong.to_string()))?;
        self.check_codes(&faults)?;
        let (backend, faults) = (self.entry.clone(), Box::new(faults));
        let make = |reply| HealthMessage::SetChaos { backend, faults, by, reply };
        self.ask_health(make).await?.map_err(AdminError::Conflict)?;
        circuit.chaos.view().ok_or_else(|| failed("the faults have ended already"))
    }

    /// Ends faults on purpose; whether there were any.
    ///
    /// # Errors
    /// [`AdminError::Failed`] if health does not answer.
    pub async fn clear_chaos(&self, by: String) -> Result<bool, AdminError> {
        let backend = self.entry.clone();
        self.ask_health(|reply| HealthMessage::ClearChaos { backend, by, reply }).await
    }

    /// The faults on purpose that are set.
    pub fn chaos(&self) -> Option<view::ChaosView> {
        self.entry.shared.circuit.chaos.view()
    }

    /// Whether each fault's code is one of the backend's own, and says what the fault says.
    fn check_codes(&self, faults: &Faults) -> Result<(), AdminError> {
        let connector = self.connector();
        for (at, fault) in faults.as_slice().iter().enumerate() {
            let Some(code) = &fault.code else { continue };
            let ended = connector.answered_with(code, &Bytes::new());
            let is_refusal = fault.kind == Kind::Reject;
            let fits = ended.is_some_and(|ended| match ended.result {
                Err(error) if is_refusal => error.class == ErrorClass::Rejected,
                Err(error) => {
                    ended.verdict == Verdict::Failure && error.class != ErrorClass::BlockedServer
                }
                Ok(_) => false,
            });
            if !fits {
                let usual = connector.usual_errors();
                let (what, such) = if is_refusal {
                    ("refuses a call", usual.refuses)
                } else {
                    ("says that it is overloaded", usual.overloaded)
                };
                return Err(AdminError::Invalid(format!(
                    "faults[{at}].code: {code:?} is not a code with which a {} {what}, such as {such}",
                    self.kind()
                )));
            }
        }
        Ok(())
    }

    async fn ask_health<T: Send + 'static>(
        &self,
        make: impl FnOnce(ractor::RpcReplyPort<T>) -> HealthMessage,
    ) -> Result<T, AdminError> {
        match self.health.call(make, Some(ADMIN_PATIENCE)).await {
            Ok(CallResult::Success(value)) => Ok(value),
            Ok(_) | Err(_) => Err(failed("the health actor does not answer")),
        }
    }

    /// Tells operators that its store was gone at the start, until `None`; a critical condition.
    pub fn tell_lost(&self, told: Option<String>) {
        self.entry.shared.queue.alert(Alert::Lost, told.map(Words::from));
    }

    /// Whether its store is open.
    pub fn is_stored(&self) -> bool {
        self.entry.shared.queue.store().is_ok()
    }

    /// Makes its actor panic: a test hook, reachable only if the environment allows it.
    pub fn panic_for_test(&self) {
        self.entry.tell(BackendMessage::Panic);
    }

    /// How many calls its queue holds, and their bytes; how many dead letters, and theirs.
    pub fn held(&self) -> [u64; 4] {
        self.entry.shared.queue.held()
    }

    async fn ask<T: Send + 'static>(
        &self,
        make: impl FnOnce(ractor::RpcReplyPort<T>) -> BackendMessage,
    ) -> Result<T, AdminError> {
        let actor = self.entry.actor.load_full();
        let actor = actor.ok_or_else(|| {
            failed("its actor failed too often and was stopped: take the backend online first")
        })?;
        match actor.call(make, Some(ADMIN_PATIENCE)).await {
            Ok(CallResult::Success(value)) => Ok(value),
            Ok(CallResult::Timeout) => Err(failed("its actor did not answer in time")),
            Ok(CallResult::SenderError) | Err(_) => {
                Err(failed("its actor is being restarted: try again"))
            }
        }
    }
}

/// An order that was not carried out, and why.
pub(crate) fn failed(why: &str) -> AdminError {
    AdminError::Failed(why.to_owned())
}

/// An order that a restart would forget.
fn not_remembered(why: String) -> AdminError {
    AdminError::Failed(format!("it is in effect, but a restart will undo it: {why}"))
}
