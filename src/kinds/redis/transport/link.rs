//! One of a backend's links: for writes, or for reads and pings.
//!
//! ```text
//!            a call, a ping                        ready
//!   Down ───────────────────▶ Connecting ─────────────────────▶ Up
//!    ▲  (not before its pause)     │ refused, overdue            │ ended
//!    └─────────────────────────────┴─────────────────────────────┘
//! ```
//! A link connects when somebody needs it. Who comes while it connects waits, up to its own deadline;
//! who comes in the pause after a failed connect learns at once how that ended (a ping is not: it
//! always tries). The pause is short, at most half a second, so that this is never old news.
//! A link for writes is `Up` only behind its [fence](super::fence), and behind a [loss](super::shared) of whichever
//! connection it takes nothing more: what was sent is answered, then it reconnects.
//!
//! **Its room is bounded.** A command takes [`ROOM`] from before it is handed over until it is answered or lost: a
//! unit, and one more for each KiB. Who finds none waits for it within its deadline, and holds nothing but the body
//! that its door has counted. Pings take none: there is one at a time. What nobody waits for is dropped instead.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::connector::{Aboard, AttemptError, Attempted, ErrorCode, OwnCode};
use fusebox_state::{ErrorClass, Verdict};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use super::{
    driver::{Cause, Ended, Order, Request},
    handshake::{Failed, Protocol},
    shared::Shared,
};
use crate::kinds::redis::protocol::outcome;

mod connect;

/// How much longer than its full time a caller waits, so that the connection itself says what became
/// of the call.
const GRACE: Duration = Duration::from_millis(25);

/// What is on the wire of a link or waits for it, in [units](cost): 65,536 commands or 64 MiB.
const ROOM: u32 = 64 << 10;

/// What a link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Reads,
    Writes,
}

enum State {
    /// Not before `until`, unless a ping asks; `failed` is how the last connect ended.
    Down {
        until: Instant,
        failures: u32,
        failed: Option<Failed>,
    },
    Connecting {
        failures: u32,
        /// Whether the connection is up and waits for its fence.
        fencing: bool,
    },
    Up {
        name: String,
        orders: mpsc::UnboundedSender<Order>,
        close: Arc<Notify>,
        /// So many losses its fence covers.
        covers: u64,
    },
    Closed,
}

/// A link; see the [module](self).
pub(crate) struct Link {
    shared: Arc<Shared>,
    purpose: Purpose,
    protocol: Protocol,
    state: watch::Sender<State>,
    room: Arc<Semaphore>,
    myself: Weak<Link>,
}

impl Link {
    pub(crate) fn new(shared: Arc<Shared>, purpose: Purpose, protocol: Protocol) -> Arc<Self> {
        let state = State::Down { until: Instant::now(), failures: 0, failed: None };
        Arc::new_cyclic(|myself| Self {
            shared,
            purpose,
            protocol,
            state: watch::Sender::new(state),
            room: Arc::new(Semaphore::new(ROOM as usize)),
            myself: myself.clone(),
        })
    }

    /// Carries `command` and says how that ended, within `time` or a little more. It is `aboard` until it is answered
    /// or lost, also if nobody waits for it any more.
    pub(crate) async fn call(&self, command: Bytes, time: Duration, aboard: Aboard) -> Attempted {
        self.carry(command, time, aboard, false).await
    }

    /// Carries a ping. It makes the link connect also in its pause.
    pub(crate) async fn ping(&self, command: Bytes, time: Duration) -> Attempted {
        self.carry(command, time, Aboard::NOBODY, true).await
    }

    /// Carries commands of one caller, all within `time`; in their order, as far as they go out. How each ended.
    pub(crate) async fn call_together(
        &self,
        commands: Vec<(Bytes, Aboard)>,
        time: Duration,
    ) -> Vec<Attempted> {
        let wait = self.wait(time, false);
        let mut replies = Vec::with_capacity(commands.len());
        for (command, aboard) in commands {
            replies.push(self.hand_over(command, &wait, aboard).await);
        }
        let mut ended = Vec::with_capacity(replies.len());
        for reply in replies {
            // Most have come with the first: only who has to wait sets a timer.
            ended.push(self.answer(reply, &wait).await);
        }
        ended
    }

    async fn carry(
        &self,
        command: Bytes,
        time: Duration,
        aboard: Aboard,
        urgent: bool,
    ) -> Attempted {
        let wait = self.wait(time, urgent);
        let reply = self.hand_over(command, &wait, aboard).await;
        self.answer(reply, &wait).await
    }

    fn wait(&self, time: Duration, urgent: bool) -> Wait {
        let deadline = Instant::now() + time;
        // What was spent before the call came here does not make it a shorter one.
        let whole = time + GRACE >= self.shared.settings.timeout;
        // A time shorter than the backend's own says nothing of the backend, unless it is a ping's.
        let verdict = if whole || urgent { Verdict::Failure } else { Verdict::Neutral };
        let patience = if whole { deadline + GRACE } else { deadline };
        Wait { time, deadline, patience, verdict, urgent }
    }

    /// How a command that was handed over ends.
    async fn answer(
        &self,
        reply: Result<oneshot::Receiver<Ended>, Failed>,
        wait: &Wait,
    ) -> Attempted {
        let reply = match reply {
            Ok(reply) => reply,
            Err(failed) => return Attempted::failed(failed.verdict, failed.error),
        };
        match timeout_at(wait.patience, reply).await {
            Ok(Ok(Ended::Reply(frame))) => {
                let ended = outcome::of(frame);
                if let Err(error) = &ended.result
                    && outcome::wants_another_connection(error)
                {
                    self.retire();
                }
                ended
            }
            Ok(Ok(Ended::Lost { sent, cause })) => lost(sent, &cause, self.shared.settings.timeout),
            Ok(Err(_)) => {
                let error = AttemptError::own(
                    ErrorClass::Unknown,
                    OwnCode::Reset,
                    "the connection is gone",
                );
                Attempted::failed(Verdict::Neutral, error)
            }
            Err(_) => {
                let message = format!("no reply within {:?}", wait.time);
                Attempted::failed(
                    wait.verdict,
                    AttemptError::own(ErrorClass::Unknown, OwnCode::Timeout, message),
                )
            }
        }
    }

    /// Ends the connection once what was sent is answered: the name may lead to another server by now, the
    /// file hold another password.
    pub(crate) fn retire(&self) {
        self.order(Order::Retire);
    }

    /// Sends `command` if the link is up and has room, and waits for nothing.
    pub(crate) fn send_and_forget(&self, command: Bytes) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(cost(&command)) else {
            return;
        };
        let (reply, _) = oneshot::channel();
        let (begun, aboard) = (Instant::now(), Aboard::NOBODY);
        self.order(Order::Call(Request { command, reply, begun, aboard, room: Some(room) }));
    }

    /// Room for `command`, within `deadline`.
    async fn room_for(
        &self,
        command: &Bytes,
        deadline: Instant,
        verdict: Verdict,
    ) -> Result<OwnedSemaphorePermit, Failed> {
        let cost = cost(command);
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(cost) {
            return Ok(room);
        }
        let waited = timeout_at(deadline, Arc::clone(&self.room).acquire_many_owned(cost)).await;
        waited.ok().and_then(Result::ok).ok_or_else(|| {
            let message =
                "too many requests already wait for the server, and none of them was answered in time";
            let error =
                AttemptError::own(ErrorClass::NotExecuted, ErrorCode::OfKind("link_full"), message);
            Failed { error, verdict }
        })
    }

    /// The server was heard of by other ways: the pause after a failed connect is over.
    pub(crate) fn end_pause(&self) {
        self.state.send_if_modified(|state| {
            if let State::Down { until, .. } = state {
                *until = Instant::now();
            }
            false
        });
    }

    /// Whether it is up.
    pub(crate) fn is_up(&self) -> bool {
        matches!(&*self.state.borrow(), State::Up { .. })
    }

    /// Ends it for ever, and returns once its socket is closed.
    pub(crate) async fn close(&self) {
        let last = self.state.send_replace(State::Closed);
        if let State::Up { orders, close, .. } = last {
            close.notify_one();
            orders.closed().await;
        }
    }

    fn order(&self, order: Order) {
        if let State::Up { orders, .. } = &*self.state.borrow() {
            // A connection that ends in this moment has no use for it.
            drop(orders.send(order));
        }
    }

    async fn hand_over(
        &self,
        command: Bytes,
        &Wait { deadline, verdict, urgent, .. }: &Wait,
        aboard: Aboard,
    ) -> Result<oneshot::Receiver<Ended>, Failed> {
        let room =
            if urgent { None } else { Some(self.room_for(&command, deadline, verdict).await?) };
        let (reply, receiver) = oneshot::channel();
        let mut request = Some(Request { command, reply, begun: Instant::now(), aboard, room });
        self.once_up(deadline, verdict, urgent, |orders| {
            let begun = Instant::now();
            let order = Order::Call(Request { begun, ..request.take()? });
            match orders.send(order) {
                Ok(()) => Some(()),
                Err(mpsc::error::SendError(Order::Call(unsent))) => {
                    request = Some(unsent);
                    None
                }
                Err(_) => None,
            }
        })
        .await?;
        Ok(receiver)
    }

    /// Waits until the link is up, for `time` at most. An error says so, and that nothing was sent.
    pub(crate) async fn ready(&self, time: Duration) -> Result<(), Attempted> {
        let deadline = Instant::now() + time;
        let whole = time + GRACE >= self.shared.settings.timeout;
        let verdict = if whole { Verdict::Failure } else { Verdict::Neutral };
        let is_open = |orders: &mpsc::UnboundedSender<Order>| (!orders.is_closed()).then_some(());
        let ready = self.once_up(deadline, verdict, false, is_open).await;
        ready.map_err(|failed| Attempted::failed(failed.verdict, failed.error))
    }

    /// Does `step` once the link is up; `None` says that the connection ends in this moment.
    async fn once_up<T>(
        &self,
        deadline: Instant,
        verdict: Verdict,
        mut urgent: bool,
        mut step: impl FnMut(&mpsc::UnboundedSender<Order>) -> Option<T>,
    ) -> Result<T, Failed> {
        // Subscribed to only if the link is not up, and before the state is looked at again: so no
        // change is missed, and the usual call takes no part in it.
        let mut changes: Option<watch::Receiver<State>> = None;
        let mut waited = false;
        loop {
            let losses = match self.purpose {
                Purpose::Writes => self.shared.losses(),
                Purpose::Reads => 0,
            };
            let taken = match &mut changes {
                Some(changes) => {
                    attempt_step(&changes.borrow_and_update(), &mut step, losses, urgent, waited)
                }
                None => attempt_step(&self.state.borrow(), &mut step, losses, urgent, false),
            };
            let fencing = match taken {
                Step::Done(done) => return Ok(done),
                Step::Refused(failed) => return Err(failed),
                Step::Wait { fencing } => fencing,
                Step::Behind => {
                    self.retire();
                    true
                }
            };
            let Some(changes) = &mut changes else {
                changes = Some(self.state.subscribe());
                continue;
            };
            self.begin();
            (urgent, waited) = (false, true);
            if timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(not_in_time(fencing, verdict));
            }
        }
    }

    /// Begins to connect, unless it does so already or is up.
    fn begin(&self) {
        let Some(link) = self.myself.upgrade() else { return };
        self.state.send_if_modified(|state| {
            let failures = match state {
                State::Down { failures, .. } => *failures,
                State::Up { orders, .. } if orders.is_closed() => 0,
                _ => return false,
            };
            *state = State::Connecting { failures, fencing: false };
            tokio::spawn(link.connect(failures));
            false
        });
    }

    /// Enters what `next` makes of the state; true if it made something of it.
    fn enter(&self, next: impl FnOnce(&State) -> Option<State>) -> bool {
        self.state.send_if_modified(|state| match next(state) {
            Some(next) => {
                *state = next;
                true
            }
            None => false,
        })
    }
}

/// How long a call waits, and what it says of the backend if that was in vain.
struct Wait {
    time: Duration,
    /// Until when it may be handed over.
    deadline: Instant,
    /// Until when it may be answered.
    patience: Instant,
    verdict: Verdict,
    /// It makes the link connect also in its pause, and takes no room.
    urgent: bool,
}

/// What the link's state makes of a call.
enum Step<T> {
    Done(T),
    Refused(Failed),
    Wait {
        fencing: bool,
    },
    /// Writes were lost on another connection since its fence was raised.
    Behind,
}

/// Does `step` if the link is up. Who has `waited` for a connect learns how it failed, and
/// so is who comes in the pause after it and is not `urgent`.
fn attempt_step<T>(
    state: &State,
    step: impl FnOnce(&mpsc::UnboundedSender<Order>) -> Option<T>,
    losses: u64,
    urgent: bool,
    waited: bool,
) -> Step<T> {
    match state {
        State::Up { covers, .. } if *covers < losses => Step::Behind,
        State::Up { orders, .. } => step(orders).map_or(Step::Wait { fencing: false }, Step::Done),
        State::Down { until, failed: Some(failed), .. }
            if waited || (!urgent && Instant::now() < *until) =>
        {
            Step::Refused(failed.clone())
        }
        State::Down { .. } => Step::Wait { fencing: false },
        State::Connecting { fencing, .. } => Step::Wait { fencing: *fencing },
        State::Closed => Step::Refused(closed()),
    }
}

/// What a command takes of the room: a unit, and one for each KiB. One that is larger than the room takes all of it.
fn cost(command: &Bytes) -> u32 {
    u32::try_from(1 + command.len() / 1_024).unwrap_or(ROOM).min(ROOM)
}

fn lost(sent: bool, cause: &Cause, limit: Duration) -> Attempted {
    let class = if sent { ErrorClass::Unknown } else { ErrorClass::NotExecuted };
    let (verdict, code, message) = match cause {
        Cause::Overdue => {
            (Verdict::Failure, OwnCode::Timeout, format!("no reply within {limit:?}"))
        }
        Cause::Shared => (
            Verdict::Neutral,
            OwnCode::Reset,
            "the connection was reset because another call on it was not answered in time"
                .to_owned(),
        ),
        Cause::Broken(why) if sent => (Verdict::Failure, OwnCode::Reset, why.clone()),
        Cause::Broken(why) => (Verdict::Neutral, OwnCode::Reset, why.clone()),
    };
    Attempted::failed(verdict, AttemptError::own(class, code, message))
}

fn not_in_time(fencing: bool, verdict: Verdict) -> Failed {
    if fencing {
        let message = "the server has not yet finished the writes of an earlier connection";
        let error = AttemptError::own(ErrorClass::NotExecuted, OwnCode::Fence, message);
        return Failed { error, verdict: Verdict::Neutral };
    }
    let message = "no connection before the call's deadline";
    Failed { error: AttemptError::own(ErrorClass::NotExecuted, OwnCode::Connect, message), verdict }
}

fn closed() -> Failed {
    let error =
        AttemptError::own(ErrorClass::NotExecuted, OwnCode::Closed, "the connector is closed");
    Failed { error, verdict: Verdict::Neutral }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_bounded_by_their_number_and_by_their_bytes() {
        let of = |length: usize| cost(&Bytes::from(vec![0; length]));
        assert_eq!((of(1), of(1_023), of(1_024), of(8 << 20)), (1, 1, 2, 8_193));
        assert_eq!(of(65 << 20), ROOM, "alone, but it goes");
    }
}
