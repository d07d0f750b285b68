//! One client of a door: what it has sent, what it is owed, and what it receives.
//!
//! ```text
//!  socket ─▶ requests ─▶ dispatch ─┬─▶ the upstream's ring ······ reply ─▶ its slot ─┐
//!                                  ├─▶ answered at once ─────────────────▶ its slot ─┼─▶ out ─▶ socket
//!                                  └─▶ a slow call, one at a time ───────▶ its slot ─┘
//! ```
//! # Invariants
//! 1. Replies leave in the order of the commands: each command has a slot, and only the oldest slot is emptied.
//! 2. Commands are dispatched in order. What cannot be sent at once (an occupied lane, a full bulkhead) holds up this
//!    client and nobody else; a call that is carried otherwise than over the upstream is begun once everything before
//!    it has been answered, and nothing behind it is dispatched before it has ended.
//! 3. What failed on the wire goes on one by one, oldest first, before anything new is dispatched.
//! 4. A client that has left is owed nothing; what it has on the wire goes on and is settled by how that ends.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::Waker,
};

use bytes::{Bytes, BytesMut};
use fusebox_actors::{
    Onward,
    trace::{AtDoor, CallTrace},
};
use fusebox_state::{Lanes, chaos::Strike};
use tokio::time::{Instant, Sleep};

use super::{
    core::Core,
    counters::Closed,
    held::Held,
    local::Session,
    pin::{Barred, PinnedTo},
    request::Requests,
    slow::Slow,
    socket::Socket,
    telling::{self, Answer, Protocol},
    upstream::Upstream,
};
use crate::ingress::peer::Who;

mod answers;
mod barred;
mod carried;
mod dispatch;
mod ending;
mod intake;
mod others;
mod own;
mod pace;
mod parked;
mod pinned;
mod slots;
mod transaction;
mod turn;
mod unit;

pub(super) use self::{carried::Carriage, slots::Buffers};
use self::{
    ending::{End, Ending},
    pace::Refusals,
    parked::Parked,
    slots::Slots,
};

/// What a client may always be owed, in bytes: a few reads of a large reply.
const OWED_MIN: usize = 256 << 10;

/// A client; see the [module](self).
pub(super) struct Client {
    /// Of the database that it is in.
    core: RefCell<Rc<Core>>,
    id: u64,
    inner: RefCell<Inner>,
    waker: Cell<Option<Waker>>,
    /// It got replies in this turn of an upstream.
    touched: Cell<bool>,
    gone: Cell<bool>,
    /// Its replies are sent at the end of this turn of the thread.
    sends_later: Cell<bool>,
    /// It waits for a place, and is woken when an upstream has given some back.
    awaits_place: Cell<bool>,
    /// What it has parked may be sent.
    may_go: Cell<bool>,
    parked_as: Cell<u64>,
    /// It gets a reply piece by piece.
    piecewise: Cell<bool>,
    /// When it last took something that the rest of such a reply had waited for.
    took: Cell<Option<Instant>>,
    /// What the door knows that is held of its requests, and of its replies, in bytes.
    held: Cell<usize>,
    owed: Cell<usize>,
}

/// Why a command is not dispatched yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// The bulkhead, or the upstream, has no place.
    Place,
    /// Queued writes are in its lanes, and it cannot go by another way.
    Lanes,
    /// What is before it has not been answered.
    Others,
    /// The rest of it has not come.
    Rest,
    /// The door holds as much as it may.
    Memory,
    /// It was refused too often of late.
    Paced,
}

/// A command whose attempt failed. Those that were lost together go on one by one, each once the one before has ended:
/// only then is it known whether that one was acknowledged.
struct Failed {
    seq: u64,
    onward: Box<Onward>,
    held: Held,
    /// It is a transaction of so many commands, MULTI and EXEC included.
    commands: Option<usize>,
    /// The server itself said that it was not executed, in these words.
    refusal: Option<Refusal>,
}

/// The server's own words about a command that it did not execute, and whether it has executed a later write of the
/// same client to the same lanes since: then the first one is not carried out any more, as it would undo the later one.
struct Refusal {
    words: Bytes,
    is_passed: bool,
}

pub(super) struct Inner {
    socket: Socket,
    inbox: BytesMut,
    requests: Requests,
    pub(super) session: Session,
    slots: Slots,
    failed: VecDeque<Failed>,
    /// Calls that run elsewhere, oldest first. All but the last are in the queue, and wait for the disk alone.
    slow: VecDeque<Slow>,
    /// A command that waits for others, and for the server.
    parked: Option<Parked>,
    /// Slots whose replies come from an upstream.
    on_wire: usize,
    /// Which upstream that is.
    wire: *const Upstream,
    stuck: Option<(Stuck, Pin<Box<Sleep>>)>,
    refusals: Refusals,
    /// Since when the command at hand has been stuck.
    stuck_since: Option<Instant>,
    /// What strikes the command at hand on purpose, if that waits until it can be carried.
    struck: Option<Strike>,
    /// What was not carried out, so that what follows is refused; and since when all before that was answered.
    barred: Option<(Barred, Option<Instant>)>,
    /// A SELECT or a MULTI is under way.
    deciding: bool,
    /// The generation of the configured database that it knows.
    generation: u64,
    pub(super) pinned: Option<PinnedTo>,
    last: telling::Told,
    end: End,
    /// Its socket took no more: this client's own task waits until it does.
    is_full: bool,
    /// Commands that the door itself has answered, and that are not counted yet.
    answered_here: usize,
    /// How many commands came before the one at hand in the same piece.
    pub(super) ahead: u32,
    /// What of the input was sent together with the command at hand, in bytes.
    swallowed: usize,
    /// The client will send nothing more, or nothing more of it is read: the daemon stops.
    read_closed: bool,
    /// Since when nothing has come of it.
    idle: Option<Pin<Box<Sleep>>>,
    /// Since when it has waited for the door to have room.
    short_since: Option<Instant>,
}

impl Client {
    pub(super) fn new(core: &Rc<Core>, socket: Socket, who: Option<Who>) -> Rc<Self> {
        let id = core.whole.next_id();
        let mut session = Session::new(id, who, core.database());
        session.came_from(socket.peer());
        let inner = Inner {
            socket,
            inbox: BytesMut::new(),
            requests: Requests::default(),
            session,
            slots: Slots::new(core.whole.buffers()),
            failed: VecDeque::new(),
            slow: VecDeque::new(),
            parked: None,
            on_wire: 0,
            wire: std::ptr::null(),
            stuck: None,
            refusals: Refusals::default(),
            stuck_since: None,
            struck: None,
            barred: None,
            deciding: false,
            generation: core.generation(),
            pinned: None,
            last: telling::Told::default(),
            end: End::open(),
            is_full: false,
            answered_here: 0,
            ahead: 0,
            swallowed: 0,
            read_closed: false,
            idle: None,
            short_since: None,
        };
        Rc::new(Self {
            core: RefCell::new(Rc::clone(core)),
            id,
            inner: RefCell::new(inner),
            waker: Cell::default(),
            touched: Cell::default(),
            gone: Cell::default(),
            sends_later: Cell::default(),
            awaits_place: Cell::default(),
            may_go: Cell::default(),
            parked_as: Cell::default(),
            piecewise: Cell::default(),
            took: Cell::default(),
            held: Cell::default(),
            owed: Cell::default(),
        })
    }

    /// Serves the client until its connection has ended.
    pub(super) async fn serve(self: Rc<Self>) -> Closed {
        std::future::poll_fn(|cx| {
            let kept = self.waker.take().filter(|it| it.will_wake(cx.waker()));
            self.waker.set(Some(kept.unwrap_or_else(|| cx.waker().clone())));
            self.inner.borrow_mut().poll(&self, cx)
        })
        .await;
        self.gone.set(true);
        let mut inner = self.inner.borrow_mut();
        if inner.end.is_reset() {
            inner.socket.reset();
        }
        inner.socket.close();
        let (owes, pinned) = (!inner.slots.is_empty(), inner.pinned.take());
        // What it has on the wire may be answered much later.
        inner.slots.close();
        (inner.inbox, inner.requests) = (BytesMut::new(), Requests::default());
        let why = inner.end.why();
        self.core().whole.holds((self.held.take(), 0), (self.owed.take(), 0));
        self.core().whole.has_room(self.id);
        self.core().is_not_parked(&self);
        inner.parked = None;
        inner.slow.clear();
        inner.failed.clear();
        drop(inner);
        if owes {
            self.core().abandon(&self);
        }
        if let Some(pinned) = pinned {
            pinned.close();
        }
        // What was held of its requests is given back by now.
        self.core().whole.shows_held();
        why
    }

    /// What it shares with the others that are in its database.
    pub(super) fn core(&self) -> Rc<Core> {
        Rc::clone(&self.core.borrow())
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// True if this is its first reply in this turn.
    pub(super) fn touch(&self) -> bool {
        !self.touched.replace(true)
    }

    /// Sends on what came in a turn of its upstream.
    pub(super) fn flush(&self) {
        self.touched.set(false);
        self.sends_later.set(false);
        if self.gone.get() {
            return;
        }
        let mut inner = self.inner.borrow_mut();
        inner.try_write(self);
        inner.tell_held(self);
        inner.unpin(&self.core());
        let waits = !inner.slots.out().is_empty()
            // Whether that is too much is seen in its turn.
            || inner.slots.early() > 0
            || !inner.failed.is_empty()
            || !inner.inbox.is_empty()
            || inner.stuck.is_some()
            || inner.slots.awaits_room()
            || !inner.end.is_open()
            || inner.read_closed;
        drop(inner);
        if waits {
            self.wake();
        }
    }

    /// The connection to it is to end once what has come of it was answered: the daemon stops. What waits for others is
    /// given up, as nobody knows when it would be answered.
    pub(super) fn say_goodbye(&self) {
        let mut inner = self.inner.borrow_mut();
        if inner.end.is_open() {
            inner.read_closed = true;
            inner.end.stops();
        }
        drop(inner);
        self.wake();
    }

    /// It does not read what it was sent, and the door needs the room.
    pub(super) fn reads_too_slowly(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.end.with(Ending::Reset, Closed::SlowReader);
        drop(inner);
        self.wake();
    }

    /// How CLIENT LIST shows it, and whether it listens.
    pub(super) fn shown(&self) -> (String, bool) {
        let inner = self.inner.borrow();
        (inner.session.info(), inner.hears())
    }

    /// The protocol that it speaks.
    pub(super) fn protocol(&self) -> Protocol {
        self.inner.borrow().session.protocol
    }

    /// What is held for it, in bytes.
    pub(super) fn owed(&self) -> usize {
        self.owed.get()
    }

    /// When it last took something that the rest of a large reply had waited for.
    pub(super) fn took(&self) -> Option<Instant> {
        self.took.get()
    }

    /// Its place among those that have parked something.
    pub(super) fn parked_as(&self) -> &Cell<u64> {
        &self.parked_as
    }

    /// What it has parked may be sent.
    pub(super) fn may_go(&self) {
        self.may_go.set(true);
        self.wake();
    }

    /// False if it awaits one already.
    pub(super) fn begins_to_await_place(&self) -> bool {
        !self.awaits_place.replace(true)
    }

    /// Wakes it if it waits for a place.
    pub(super) fn place_is_free(&self) {
        if self.awaits_place.take() {
            self.wake();
        }
    }
}

impl Inner {
    /// Whether something waits that the server has refused.
    fn has_refusals(&self) -> bool {
        self.failed.iter().any(|failed| failed.refusal.is_some())
    }

    /// What is of `lanes` was executed behind it.
    fn passes(&mut self, lanes: &Lanes) {
        for failed in &mut self.failed {
            let meets = failed.onward.lanes().is_some_and(|its| its.meets(lanes));
            if let (true, Some(refusal)) = (meets, &mut failed.refusal) {
                refusal.is_passed = true;
            }
        }
    }

    /// The command at hand is answered so, by the door itself.
    pub(super) fn answer(&mut self, answer: &[u8]) {
        self.answered_here += 1;
        self.pass_on(answer);
    }

    /// The command at hand is answered so, of which the source is counted.
    fn pass_on(&mut self, answer: &[u8]) {
        let silent = self.session.takes_no_reply();
        self.slots.answer(silent, answer);
    }

    /// A trace for the command at hand.
    fn trace(&self, core: &Core) -> CallTrace {
        CallTrace::new(AtDoor { address: core.settings.address, ahead: self.ahead })
    }

    /// A slot for the command at hand.
    fn slot(&mut self) -> u64 {
        let silent = self.session.takes_no_reply();
        self.slots.open(silent)
    }

    /// The command of a slot is answered so.
    pub(super) fn reply(&mut self, seq: u64, frame: &[u8]) {
        self.slots.reply(seq, frame);
    }

    /// The command of a slot has ended so.
    fn ended(&mut self, client: &Client, seq: u64, answer: Answer) {
        if let Some(reply) = self.reply_of(client, answer) {
            self.reply(seq, &reply);
        }
    }

    /// What of an answer is sent; `None` if the connection ends instead. If the command was not executed, that is
    /// counted, and a client that asks again at once is slowed down.
    fn reply_of(&mut self, client: &Client, answer: Answer) -> Option<Bytes> {
        if matches!(answer, Answer::Unavailable(_)) {
            client.core().counters.refused();
            self.refusals.one(Instant::now());
        }
        let (Answer::Reply(reply) | Answer::Unavailable(Some(reply))) = answer else {
            self.end.with(Ending::Reset, Closed::Told);
            return None;
        };
        Some(reply)
    }

    fn try_write(&mut self, client: &Client) {
        while !self.slots.out().is_empty() {
            match self.socket.try_write(self.slots.out()) {
                Ok(count) if count > 0 => self.has_sent(client, count),
                // Its own task sees to the rest, and to what is wrong.
                _ => {
                    self.is_full = true;
                    return;
                }
            }
        }
    }

    /// Whether it waits for a reply that may take as long as it likes.
    fn is_blocked(&self) -> bool {
        self.parked.is_some()
            || self.pinned.as_ref().is_some_and(|pinned| pinned.upstream().is_blocked())
    }

    /// Whether everything so far has been answered.
    pub(super) fn is_answered(&self) -> bool {
        self.slots.is_empty()
    }

    fn protocol(&self) -> Protocol {
        self.session.protocol
    }
}
