//! What an attempt holds: a permit of the breaker and a place in the bulkhead. Its body, which weighs at the gate, goes
//! with it.
//!
//! They belong to what is on the wire, not to who waits for it. A caller that hangs up, or whose deadline passes,
//! leaves its request behind, and that goes on costing the backend and this host what it costs.
//!
//! ```text
//!            boards                 answered, or failed: recorded by its caller
//!  Begun ─────────────▶ On the wire ──────────────────────────────────────────────────────▶ Ended
//!    │ its caller leaves     │ its caller leaves                                               ▲
//!    │                       ▼          a reply: a slow success · none within `timeout`: a     │
//!    │                   Given up ───── failure · ended at the server, or reset for another's ─┤
//!    │                                  sake: says nothing; each recorded by the wire          │
//!    └─────────────────────── nothing was sent: says nothing ──────────────────────────────────┘
//! ```
//! # Invariants
//! 1. A [`Passage`] is shared by the one who waits and by whatever of the attempt is on the wire ([`Aboard`]). What
//!    it holds goes back when the last of them lets go, and not before.
//!    The body of the call is kept by the wire as well: what it weighs at the gate is given back with it.
//! 2. The breaker hears of an attempt once: from its caller (`Passage::settle`), or else from the wire, when the
//!    last one lets go. A neutral end says nothing, and leaves it to the wire to say something.
//! 3. An attempt that was counted as given up ([`Circuit::count_given_up`]) is not
//!    counted as a failure again when it ends.
//! 4. A connector puts an attempt aboard before the first byte leaves. One that never does has nothing on the wire
//!    once its future is dropped.
//! 5. A write that is given up bars its lanes ([`Leftover`]) until the last one lets go, if the connector
//!    [asks for that](crate::connector::Connector::bars_what_is_left).
//! 6. An attempt either may have left this host or is given up unsent, and never both: whoever says so first decides
//!    ([`Aboard::departs`], [`Aboard::stays`]). So what is given up unsent is known not to have been executed.

use std::{
    fmt, mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, Moment, Outcome, Verdict,
    breaker::{KeptPermit, Rejected, State},
    bulkhead::Kept,
    dependencies::Fault,
    flight::Leftover,
};
use parking_lot::Mutex;

use crate::{
    circuit::Circuit,
    clock::Reading,
    error_code::OwnCode,
    metrics::Exemplar,
    pieces::{Answer, Tail},
    refusal::{AttemptError, Barred},
    trace::CallOrigin,
};

pub(crate) mod outstanding;

use outstanding::Slot;

/// See the [module](self).
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one attempt")]
pub struct Passage {
    circuit: Arc<Circuit>,
    open: Mutex<Option<Open>>,
    place: Option<Kept>,
    is_probe: bool,
    /// A failure of its call was recorded before, and a call records at most one; a probe always records its own.
    is_quiet: bool,
    /// Whether how long it takes says something of the backend.
    is_timed: bool,
    is_write: bool,
    /// Attempts in flight when it began, itself included.
    in_flight: u32,
    began: Reading,
    /// What the wire said last; see [`code`].
    said: AtomicU8,
    /// Whether the counters know of it.
    counted: AtomicBool,
    /// What becomes of its answer; see [`Fate`].
    fate: AtomicU8,
    /// It says nothing of the backend, however it ends.
    is_mute: AtomicBool,
    /// The writes of it that nobody waits for any more.
    left: Mutex<Vec<Leftover>>,
    /// Whether it may have left this host.
    whereabouts: AtomicU8,
}

/// Nothing of it was sent yet.
const HERE: u8 = 0;
/// It may have left this host.
const AWAY: u8 = 1;
/// It was given up unsent, and is never sent.
const KEPT: u8 = 2;

/// What becomes of the answer to an attempt: a fault on purpose may take it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is recorded.
    Told,
    /// It is lost: the connection breaks at this moment, as if it had never come.
    Lost,
    /// It does not come within the backend's `timeout`.
    Late,
}

impl Fate {
    /// What is said of an attempt whose answer is lost.
    pub const LOST: &'static str = "chaos: the connection was reset before its answer was read";
    /// What is said of an attempt whose answer is late.
    pub const LATE: &'static str = "chaos: no answer came in time";
}

/// What an attempt has whose outcome the breaker has not heard.
struct Open {
    permit: KeptPermit,
    slot: Option<Slot>,
}

/// Who holds the places of replay: no user has this id, which `chown` takes for "unchanged".
pub(crate) const REPLAY: u32 = u32::MAX;

impl Passage {
    /// Asks for a permit and a place. Changes nothing if it gets none. `failed_before` says whether a failure of
    /// its call was recorded before; `who` holds the place, a user id or [`REPLAY`].
    pub(crate) fn begin(
        circuit: &Arc<Circuit>,
        who: u32,
        began: Reading,
        failed_before: bool,
    ) -> Result<Self, Barred> {
        let now = began.moment();
        let permit = circuit.breaker.try_acquire(now).map_err(|rejected| match rejected {
            Rejected::Open => Barred::Open,
            Rejected::Offline => Barred::Offline,
        })?;
        let place = circuit.bulkhead.try_enter(who).ok_or(Barred::Full)?;
        let is_probe = permit.is_probe();
        let open = Open { permit: permit.keep(), slot: circuit.outstanding.begin(now) };
        Ok(Self {
            circuit: Arc::clone(circuit),
            open: Mutex::new(Some(open)),
            place: Some(place.keep()),
            is_probe,
            is_quiet: failed_before && !is_probe,
            is_timed: true,
            is_write: false,
            in_flight: circuit.bulkhead.in_flight(),
            began,
            said: AtomicU8::new(code(Verdict::Neutral)),
            counted: AtomicBool::new(false),
            fate: AtomicU8::new(0),
            is_mute: AtomicBool::new(false),
            left: Mutex::default(),
            whereabouts: AtomicU8::new(HERE),
        })
    }

    /// The same, of which `timed` says whether how long it takes says something of the backend.
    #[must_use]
    pub(crate) fn timed(mut self, timed: bool) -> Self {
        self.is_timed = timed;
        self
    }

    /// The same as a write.
    #[must_use]
    pub(crate) fn writing(mut self, is_write: bool) -> Self {
        self.is_write = is_write;
        self
    }

    /// How long it takes says nothing of the backend any more.
    pub(crate) fn untimed(&mut self) {
        self.is_timed = false;
    }

    /// A fault on purpose strikes it: that becomes of its answer, and it says nothing of the backend if it `is_mute`.
    pub(crate) fn struck(&self, fate: Fate, is_mute: bool) {
        let code = match fate {
            Fate::Told => 0,
            Fate::Lost => 1,
            Fate::Late => 2,
        };
        self.is_mute.store(is_mute, Ordering::Relaxed);
        self.fate.store(code, Ordering::Release);
    }

    /// What becomes of its answer. Whoever asks takes care of it: the next one learns that it is recorded.
    pub(crate) fn take_fate(&self) -> Fate {
        if self.fate.load(Ordering::Relaxed) == 0 {
            return Fate::Told;
        }
        fate(self.fate.swap(0, Ordering::AcqRel))
    }

    /// What becomes of its answer, if nobody has seen to that.
    pub(crate) fn fate(&self) -> Fate {
        fate(self.fate.load(Ordering::Acquire))
    }

    /// Counts it, which happens once.
    pub(crate) fn count(
        &self,
        verdict: Verdict,
        fault: Option<Fault>,
        took: Duration,
        exemplar: Option<Exemplar>,
    ) {
        if self.counted.swap(true, Ordering::Relaxed) {
            return;
        }
        self.circuit.metrics.attempt(verdict, took, exemplar);
        if self.is_timed && verdict != Verdict::Neutral {
            self.circuit.forecast.ended(took, verdict == Verdict::Failure);
        }
        let (limits, in_flight) = (&self.circuit.limits, self.in_flight);
        match verdict {
            Verdict::Success if self.is_timed => limits.answered(self.is_write, took, in_flight),
            Verdict::Failure if fault == Some(Fault::Overload) => {
                limits.overloaded(self.is_write, in_flight);
            }
            _ => {}
        }
    }

    /// Tells the breaker how it ended, and returns the transition that this brought about. A neutral end tells
    /// nothing: if some of it is on the wire yet, that has the word.
    pub(crate) fn settle(
        &self,
        verdict: Verdict,
        error: Option<&AttemptError>,
        origin: Option<CallOrigin>,
        now: Moment,
    ) -> Option<(State, State)> {
        if verdict == Verdict::Neutral {
            return None;
        }
        let Open { permit, slot } = self.open.lock().take()?;
        let verdict = self.told(slot, verdict, now);
        let outcome = Outcome { verdict, slow: self.is_slow(now) };
        self.circuit.settle(self.circuit.breaker.regain(permit), outcome, error, origin, now)
    }

    fn is_slow(&self, now: Moment) -> bool {
        self.is_timed && self.circuit.breaker.is_slow(now.since(self.began.moment()))
    }

    /// What the breaker records of `verdict`.
    fn told(&self, slot: Option<Slot>, verdict: Verdict, now: Moment) -> Verdict {
        match self.circuit.outstanding.end(slot, verdict, now) {
            Verdict::Failure if self.is_quiet => Verdict::Neutral,
            told => told,
        }
    }

    /// How it ended on the wire, for the case that nobody waits for that.
    pub(crate) fn say(&self, verdict: Verdict) {
        self.said.store(code(verdict), Ordering::Release);
    }

    /// Nobody waits for it any more.
    pub(crate) fn give_up(&self) {
        if let Some(Open { slot: Some(slot), .. }) = &*self.open.lock() {
            self.circuit.outstanding.give_up(slot);
        }
    }

    /// It is about to be sent. False if it was given up: then it must not be.
    pub(crate) fn departs(&self) -> bool {
        self.moves(AWAY) != KEPT
    }

    /// It is given up. Whether nothing of it was sent: then nothing will be.
    pub(crate) fn stays(&self) -> bool {
        self.moves(KEPT) != AWAY
    }

    /// The server has acted upon nothing of what was sent: it is as if that had not been. It is not sent again if nobody
    /// waits for it.
    pub(crate) fn comes_back(&mut self, is_awaited: bool) {
        *self.whereabouts.get_mut() = if is_awaited { HERE } else { KEPT };
    }

    /// Goes from [`HERE`] to `next`, if it is there. Returns its whereabouts then.
    fn moves(&self, next: u8) -> u8 {
        let moved =
            self.whereabouts.compare_exchange(HERE, next, Ordering::AcqRel, Ordering::Acquire);
        moved.map_or_else(|now| now, |_| next)
    }

    /// Nobody waits any more for a write of it, which is `left` until the last one lets go.
    pub(crate) fn leaves(&self, left: Leftover) {
        self.left.lock().push(left);
    }

    /// A piece of it went on its way: neither is it overdue, nor is a trial of the breaker lost.
    fn progressed(&self) {
        let now = self.circuit.clock.now();
        if let Some(Open { permit, slot }) = &*self.open.lock() {
            if let Some(slot) = slot {
                self.circuit.outstanding.moved(slot, now);
            }
            if self.is_probe {
                self.circuit.breaker.prolong(permit, now);
            }
        }
    }

    /// Nobody waited for its end: tells what the wire said.
    fn tell_late(&mut self) {
        let Some(Open { permit, slot }) = self.open.get_mut().take() else { return };
        let (circuit, ended) = (&*self.circuit, self.circuit.clock.read());
        let is_mute = self.is_mute.load(Ordering::Relaxed);
        let said =
            if is_mute { Verdict::Neutral } else { verdict(self.said.load(Ordering::Acquire)) };
        let told = self.told(slot, said, ended.moment());
        let permit = circuit.breaker.regain(permit);
        if said == Verdict::Neutral {
            return;
        }
        self.count(said, None, ended.since(self.began), None);
        let error = (told == Verdict::Failure).then(|| {
            let message = "its caller no longer waited, and no answer came";
            AttemptError::own(ErrorClass::Unknown, OwnCode::Unanswered, message)
        });
        let outcome = Outcome { verdict: told, slow: self.is_slow(ended.moment()) };
        circuit.settle_late(permit, outcome, error.as_ref(), ended.moment());
    }
}

impl fmt::Debug for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passage").field("is_probe", &self.is_probe).finish_non_exhaustive()
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.tell_late();
        if let Some(place) = self.place.take() {
            self.circuit.bulkhead.leave(place);
        }
        let left = mem::take(self.left.get_mut());
        if !left.is_empty() {
            drop(left);
            self.circuit.landed.notify_waiters();
        }
    }
}

/// What of an attempt is on the wire. Dropped without an [end](Aboard::ended) it says nothing of the backend.
#[derive(Clone, Default)]
pub struct Aboard(Option<Held>);

#[derive(Clone)]
struct Held {
    passage: Arc<Passage>,
    /// What is on the wire may be a copy of it, in another form: for as long as that lives, the body weighs.
    _body: Bytes,
}

impl Aboard {
    /// For what no call waits for, such as a ping.
    pub const NOBODY: Self = Self(None);

    pub(crate) fn of(passage: &Arc<Passage>, body: &Bytes) -> Self {
        Self(Some(Held { passage: Arc::clone(passage), _body: body.clone() }))
    }

    /// It is about to be sent. False if it was [given up](Self::stays): then it must not be.
    pub fn departs(&self) -> bool {
        self.0.as_ref().is_none_or(|held| held.passage.departs())
    }

    /// Who waited for it gives it up. Whether nothing of it was sent: then nothing will be. Of what no call waits for,
    /// that is not known.
    pub fn stays(&self) -> bool {
        self.0.as_ref().is_some_and(|held| held.passage.stays())
    }

    /// It is not on the wire any more, which says `verdict` of the backend if nobody waited for it: a reply is a
    /// success, none within the backend's `timeout` a failure. Call it before the reply is handed on, so that the
    /// place is free once a caller has its answer.
    pub fn ended(self, verdict: Verdict) {
        if let Some(Held { passage, .. }) = &self.0 {
            passage.say(verdict);
        }
    }

    /// What becomes of the answer that has just come. Ask once, as soon as it has come, and obey.
    pub fn fate(&self) -> Fate {
        self.0.as_ref().map_or(Fate::Told, |held| held.passage.take_fate())
    }
}

impl fmt::Debug for Aboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Aboard").field(&self.0.is_some()).finish()
    }
}

/// Who waits for an attempt. Dropped before it has settled it, it has given it up.
pub(crate) struct Waiting(Arc<Passage>);

impl Waiting {
    pub(crate) fn for_it(passage: Passage) -> Self {
        Self(Arc::new(passage))
    }

    pub(crate) fn passage(&self) -> &Arc<Passage> {
        &self.0
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// The rest of a call that is on its way as one of its attempts.
pub(crate) struct Progressing {
    rest: Box<dyn Tail>,
    /// What is put aside and sent by another attempt must not hold this one's place.
    of: Weak<Passage>,
}

impl Progressing {
    /// `rest`, each piece of which is progress of `passage`.
    pub(crate) fn of(rest: Box<dyn Tail>, passage: &Arc<Passage>) -> Self {
        Self { rest, of: Arc::downgrade(passage) }
    }
}

impl Tail for Progressing {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            let piece = self.rest.next().await;
            if let Some(passage) = self.of.upgrade() {
                passage.progressed();
            }
            piece
        })
    }

    fn end(&self) -> Option<Bytes> {
        self.rest.end()
    }
}

fn fate(code: u8) -> Fate {
    match code {
        1 => Fate::Lost,
        2 => Fate::Late,
        _ => Fate::Told,
    }
}

/// A verdict as one byte.
fn code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Neutral => 0,
        Verdict::Success => 1,
        Verdict::Failure => 2,
    }
}

fn verdict(code: u8) -> Verdict {
    match code {
        1 => Verdict::Success,
        2 => Verdict::Failure,
        _ => Verdict::Neutral,
    }
}
