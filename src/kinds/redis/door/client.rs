//! One client of a door: what it has sent, what it is owed, and what it is told.
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
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use fusebox_actors::{Onward, Outcome, Settled, Source, Ticket};
use fusebox_state::{ErrorClass, Lanes, chaos::Strike};
use tokio::time::{Instant, Sleep};

use super::{
    core::Core,
    counters::Closed,
    local::Session,
    pin::{Barred, PinnedTo},
    request::Requests,
    slow::{Asker, Slow},
    socket::Socket,
    telling::{self, Answer, Protocol},
    upstream::{Entry, Lost, Note, Upstream},
    waiting::Waiting,
};
use crate::{
    ingress::peer::Who,
    kinds::redis::{connector::RedisConnector, protocol::resp},
};

mod dispatch;
mod intake;
mod others;
mod own;
mod pace;
mod parked;
mod pinned;
mod slots;
mod unit;

pub(super) use self::{
    dispatch::{Carriage, ROUTE},
    slots::Buffers,
};
use self::{pace::Refusals, parked::Parked, slots::Slots};

/// A client is owed no more than this of a large reply, in bytes, before more of it is read.
const AHEAD: usize = 1 << 20;

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
    /// What the door knows that is held of its requests, and of its replies, in bytes.
    held: Cell<usize>,
    owed: Cell<usize>,
}

/// How a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Open,
    /// Once everything was answered.
    Answered,
    /// At once.
    Reset,
}

/// Why a command is not dispatched yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// The bulkhead, or the upstream, has no place.
    Place,
    /// Queued writes stand in its lanes, and it cannot go by another way.
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
    body: Bytes,
    /// It is a transaction of so many commands, MULTI and EXEC included.
    commands: Option<usize>,
    /// The server itself said that it was not executed, in these words.
    refusal: Option<Refusal>,
}

/// The server's own words about a command that it did not execute, and whether it has executed a later write of the same
/// client to the same lanes since: then the first one is not carried out any more, as it would undo the later one.
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
    /// A SELECT is under way.
    selecting: bool,
    /// The generation of the configured database that it knows.
    generation: u64,
    pub(super) pinned: Option<PinnedTo>,
    last: telling::Told,
    ending: Ending,
    /// Why it ends.
    closed: Closed,
    /// Its socket took no more: this client's own task waits until it does.
    is_full: bool,
    /// What of the input was sent together with the command at hand, in bytes.
    swallowed: usize,
    /// The client will send nothing more.
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
            selecting: false,
            generation: core.generation(),
            pinned: None,
            last: telling::Told::default(),
            ending: Ending::Open,
            closed: Closed::Client,
            is_full: false,
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
        if inner.ending == Ending::Reset {
            inner.socket.reset();
        }
        let (owes, pinned) = (!inner.slots.is_empty(), inner.pinned.take());
        let why = inner.closed;
        self.core().whole.holds((self.held.take(), 0), (self.owed.take(), 0));
        self.core().whole.has_room(self.id);
        self.core().is_not_parked(&self);
        inner.slow.clear();
        inner.failed.clear();
        drop(inner);
        if owes {
            self.core().abandon(&self);
        }
        if let Some(pinned) = pinned {
            pinned.close();
        }
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

    /// True where this is its first reply in this turn.
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
        inner.try_write(&self.core());
        inner.has_sent(self);
        inner.tell_held(self);
        inner.unpin(&self.core());
        let waits = !inner.slots.out().is_empty()
            || !inner.failed.is_empty()
            || !inner.inbox.is_empty()
            || inner.stuck.is_some()
            || inner.ending != Ending::Open
            || inner.read_closed;
        drop(inner);
        if waits {
            self.wake();
        }
    }

    /// The connection to it is to end once it has its answers: the daemon stops.
    pub(super) fn say_goodbye(&self) {
        let mut inner = self.inner.borrow_mut();
        if inner.ending == Ending::Open {
            // Nobody knows when what waits for others would be answered.
            let ending = if inner.is_blocked() { Ending::Reset } else { Ending::Answered };
            (inner.ending, inner.closed) = (ending, Closed::Stop);
        }
        drop(inner);
        self.wake();
    }

    /// It does not read what it was sent, and the door needs the room.
    pub(super) fn reads_too_slowly(&self) {
        let mut inner = self.inner.borrow_mut();
        (inner.ending, inner.closed) = (Ending::Reset, Closed::SlowReader);
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

    /// Its place among those that have parked something.
    pub(super) fn parked_as(&self) -> &Cell<u64> {
        &self.parked_as
    }

    /// What it has parked may be sent.
    pub(super) fn may_go(&self) {
        self.may_go.set(true);
        self.wake();
    }

    /// False where it awaits one already.
    pub(super) fn begins_to_await_place(&self) -> bool {
        !self.awaits_place.replace(true)
    }

    /// Wakes it if it waits for a place.
    pub(super) fn place_is_free(&self) {
        if self.awaits_place.take() {
            self.wake();
        }
    }

    /// The server has answered.
    pub(super) fn answered(
        &self,
        entry: Entry,
        request: &[u8],
        frame: &[u8],
        connector: &Arc<RedisConnector>,
    ) {
        let Entry { seq, ticket, note, elsewhere, .. } = entry;
        let mut inner = self.inner.borrow_mut();
        if !note.is_the_doors() {
            inner.on_wire -= 1;
        }
        inner.last = telling::Told::default();
        if let Some(lanes) = ticket.as_ref().and_then(Ticket::lanes)
            && !matches!(frame.first(), Some(b'-' | b'!'))
        {
            inner.passes(lanes);
        }
        if let Note::Unit(unit) = &note {
            return inner.unit_answered(&self.core(), connector, (seq, ticket), unit);
        }
        if matches!(note, Note::Ends(_))
            && frame.starts_with(b"-")
            && !frame.starts_with(b"-EXECABORT")
        {
            // What it was to end may not have ended.
            (inner.ending, inner.closed) = (Ending::Answered, Closed::Upstream);
            if let Some(pinned) = &mut inner.pinned {
                pinned.keep();
            }
        }
        let protocol = inner.session.protocol;
        if let Some(ticket) = ticket {
            if let Some(b'-' | b'!') = frame.first()
                && let Some(outcome) = self.core().failed(connector, request, frame)
            {
                if let Settled::GoOn(onward) = ticket.settle(outcome)
                    && !elsewhere
                {
                    let body = Bytes::copy_from_slice(request);
                    let words = Bytes::copy_from_slice(frame);
                    let refusal =
                        onward.lanes().is_some().then_some(Refusal { words, is_passed: false });
                    inner.failed.push_back(Failed { seq, onward, body, commands: None, refusal });
                    return;
                }
                return inner.reply(seq, frame);
            }
            let cached = match note {
                Note::Cache => telling::cacheable(frame, protocol, request),
                _ => None,
            };
            let until = cached.and_then(|_| self.core().ends(connector, request));
            let cached = cached.map(|value| (request, value));
            drop(ticket.settle(Outcome::Answered { cached, until }));
        }
        match note {
            Note::Deadlines(begun) => connector.links().answered(request, &begun, frame),
            Note::Waited(waited) if !matches!(frame.first(), Some(b'-' | b'!')) => {
                self.core().backend.wrote(waited.unsettled.lanes());
            }
            Note::Own | Note::Speaks(_) => {
                if matches!(frame.first(), Some(b'-'))
                    && let Some(pinned) = &mut inner.pinned
                {
                    pinned.keep();
                }
                return;
            }
            Note::Selects(database) => inner.selected(database, frame),
            Note::Ends(unsettled) => drop(unsettled),
            Note::Writes(unsettled) => drop(unsettled),
            Note::CacheAll(all) => {
                let (read, fills) = *all;
                if let Some(value) = telling::cacheable_list(frame, protocol) {
                    let body = Bytes::copy_from_slice(request);
                    self.core().backend.end_fills(&fills, &read, &body, &value);
                }
            }
            Note::None
            | Note::Cache
            | Note::Waited(_)
            | Note::Unit(_)
            | Note::Subscription(_)
            | Note::Monitors => {}
        }
        inner.reply(seq, frame);
    }

    /// Whether the reply of a slot may be handed to it piece by piece: it is the next that it gets.
    pub(super) fn takes_pieces(&self, seq: u64) -> bool {
        self.gone.get() || self.inner.borrow().slots.is_oldest(seq)
    }

    /// A piece of the reply that is next.
    pub(super) fn has_piece(&self, piece: &[u8]) {
        self.piecewise.set(true);
        if !self.gone.get() {
            self.inner.borrow_mut().slots.piece(piece);
        }
    }

    /// The last piece of a reply.
    pub(super) fn has_all(&self, entry: Entry, rest: &[u8]) {
        self.piecewise.set(false);
        let mut inner = self.inner.borrow_mut();
        inner.on_wire -= 1;
        inner.last = telling::Told::default();
        if let Some(ticket) = entry.ticket {
            drop(ticket.settle(Outcome::Answered { cached: None, until: None }));
        }
        inner.reply(entry.seq, rest);
    }

    /// Whether it is owed so much that the rest of a reply has to wait.
    pub(super) fn is_behind(&self) -> bool {
        !self.gone.get() && self.inner.borrow().slots.out().len() > self.ahead()
    }

    /// How large the replies of a transaction may be together, in bytes.
    pub(super) fn unit_max(&self) -> usize {
        if self.gone.get() { 0 } else { self.core().settings.out_client }
    }

    /// How much it may be owed of a large reply, in bytes. One that is larger comes piece by piece.
    pub(super) fn ahead(&self) -> usize {
        AHEAD.min(self.core().settings.out_client / 2)
    }

    /// The cache has answered in the server's stead.
    pub(super) fn answered_instead(
        &self,
        seq: u64,
        (source, value, age): (Source, Bytes, Duration),
    ) {
        let mut inner = self.inner.borrow_mut();
        let Some(value) = telling::in_protocol(&value, inner.session.protocol, false) else {
            return;
        };
        inner.last = telling::Told::cached(source, age);
        self.core().counters.answered(source);
        inner.reply(seq, &value);
        drop(inner);
        self.flush();
    }

    /// The server has said something to this client that answers no command.
    pub(super) fn told(&self, frame: &[u8]) {
        self.inner.borrow_mut().slots.told(frame);
    }

    /// An attempt ended without a reply.
    pub(super) fn lost(&self, lost: Lost) {
        let Lost { entry: Entry { seq, ticket, note, .. }, body, verdict, error } = lost;
        let mut inner = self.inner.borrow_mut();
        inner.on_wire -= 1;
        if self.piecewise.get() && inner.slots.is_oldest(seq) {
            // The rest of it is not to be had.
            (inner.ending, inner.closed) = (Ending::Reset, Closed::Upstream);
            drop(ticket.map(|ticket| ticket.settle(Outcome::Failed { verdict, error })));
            return;
        }
        if let Note::Unit(unit) = note {
            return inner.unit_lost(self, (seq, ticket), &unit, &body, (verdict, error));
        }
        drop(inner);
        let Some(ticket) = ticket else { return };
        if let Settled::GoOn(mut onward) = ticket.settle(Outcome::Failed { verdict, error })
            && !self.gone.get()
        {
            self.core().backend.hold(&mut onward);
            let failed = Failed { seq, onward, body, commands: None, refusal: None };
            self.inner.borrow_mut().failed.push_back(failed);
        }
    }

    /// Its own upstream has ended: what was not sent is told as such, and what may have been executed, too. If it was
    /// ever up, the client is disconnected then, as whatever it believed of the connection's state is gone; at once if it
    /// waits for others, or listens.
    pub(super) fn lost_its_upstream(self: &Rc<Self>, lost: Vec<Lost>, was_up: bool) {
        let mut inner = self.inner.borrow_mut();
        let pinned = inner.pinned.take();
        if self.piecewise.get() {
            // The rest of a reply is not to be had.
            for Lost { entry, verdict, error, .. } in lost {
                drop(entry.ticket.map(|it| it.settle(Outcome::Failed { verdict, error })));
            }
            (inner.ending, inner.closed) = (Ending::Reset, Closed::Upstream);
            drop(inner);
            return self.wake();
        }
        let (mut selects, mut watches) = (false, false);
        let lost_nothing = lost.is_empty();
        if !was_up && !lost_nothing {
            self.core().pin_failed();
        }
        let is_clean = pinned.as_ref().is_some_and(|it| it.is_clean(self.core().database()));
        for Lost { entry, body, verdict, error } in lost {
            // It waits on, if nothing but that was the connection's own.
            if let Note::Waited(waited) = &entry.note
                && is_clean
                && inner.ending == Ending::Open
                && resp::arguments(&body)
                    .is_ok_and(|args| Waiting::of(&args).is_some_and(Waiting::may_be_sent_again))
            {
                inner.on_wire -= 1;
                inner.park_in(self, entry.seq, body, waited.until);
                continue;
            }
            let why = format!("{}: {}", self.core().backend.name(), error.words().whole());
            let may_have_run = error.class == ErrorClass::Unknown;
            selects |= matches!(entry.note, Note::Selects(_));
            watches |=
                entry.waits() || matches!(entry.note, Note::Subscription(_) | Note::Monitors);
            let settled = entry.ticket.map(|it| it.settle(Outcome::Failed { verdict, error }));
            // Nobody else can carry it: its connection's state is gone.
            let writes = matches!(settled, Some(Settled::GoOn(onward)) if onward.lanes().is_some());
            if !entry.note.is_the_doors() {
                inner.on_wire -= 1;
                let answer = if writes && may_have_run {
                    telling::unknown(&why, self.core().settings.close_on_unknown)
                } else {
                    self.core().unavailable(&why)
                };
                inner.ended(entry.seq, answer);
            }
        }
        let listens = pinned.as_ref().is_some_and(PinnedTo::may_listen);
        if inner.parked.is_some() || is_clean && lost_nothing {
            // No state is gone with it.
        } else if was_up {
            let ending = if watches || listens { Ending::Reset } else { Ending::Answered };
            (inner.ending, inner.closed) = (ending, Closed::Upstream);
        } else if pinned.as_ref().is_some_and(PinnedTo::is_within) {
            inner.bar(Barred::Transaction);
        } else if selects || pinned.is_some_and(|it| it.database() != Some(self.core().database()))
        {
            inner.bar(Barred::Database);
        }
        drop(inner);
        self.wake();
    }
}

impl Inner {
    fn poll(&mut self, client: &Rc<Client>, cx: &mut Context<'_>) -> Poll<()> {
        while self.ending != Ending::Reset && self.step(client, cx) {}
        if let Some((_, alarm)) = &mut self.stuck
            && alarm.as_mut().poll(cx).is_ready()
        {
            self.stuck = None;
            client.wake();
        }
        if !self.slots.out().is_empty() && !self.is_full && !client.sends_later.replace(true) {
            client.core().sends_later(client);
        }
        while self.is_full && !self.slots.out().is_empty() && self.ending != Ending::Reset {
            match self.socket.poll_write(cx, self.slots.out()) {
                Poll::Pending => break,
                Poll::Ready(Ok(count)) if count > 0 => {
                    client.core().counters.written(count);
                    self.slots.sent(count);
                    self.has_sent(client);
                }
                Poll::Ready(_) => self.ending = Ending::Reset,
            }
        }
        self.is_full &= !self.slots.out().is_empty();
        // Of a reply that comes piece by piece, it is owed no more than was read ahead.
        let owed = if client.piecewise.get() { self.slots.early() } else { self.slots.owed() };
        if owed > client.core().settings.out_client.max(OWED_MIN) {
            (self.ending, self.closed) = (Ending::Reset, Closed::SlowReader);
        }
        self.tell_held(client);
        // Nobody would get what a command that waits for others brings.
        if self.read_closed && self.is_blocked() {
            self.ending = Ending::Reset;
        }
        if self.ending == Ending::Open && self.is_idle(client, cx) {
            (self.ending, self.closed) = (Ending::Answered, Closed::Idle);
        }
        match self.ending {
            Ending::Reset => Poll::Ready(()),
            Ending::Answered if self.is_quit() => Poll::Ready(()),
            // What is left of its input is no whole request.
            Ending::Open if self.read_closed && self.is_quit() && self.stuck.is_none() => {
                Poll::Ready(())
            }
            _ => Poll::Pending,
        }
    }

    /// The rest of a reply may have waited for that.
    fn has_sent(&self, client: &Client) {
        if client.piecewise.get() {
            client.core().wake_links();
            if let Some(pinned) = &self.pinned {
                pinned.upstream().wake();
            }
        }
    }

    /// Tells the door what is held of this client.
    fn tell_held(&self, client: &Client) {
        let parked = self.parked.as_ref().map_or(0, Parked::size);
        let (held, owed) = (self.inbox.len() + parked, self.slots.owed());
        client
            .core()
            .whole
            .holds((client.held.replace(held), held), (client.owed.replace(owed), owed));
    }

    /// Whether it is owed nothing.
    fn is_quit(&self) -> bool {
        self.is_answered()
            && self.slots.out().is_empty()
            && self.failed.is_empty()
            && self.slow.is_empty()
    }

    /// Does one thing. False where there is nothing to do now.
    fn step(&mut self, client: &Rc<Client>, cx: &mut Context<'_>) -> bool {
        let mut ended = false;
        for _ in 0..self.slow.len() {
            let Some(mut slow) = self.slow.pop_front() else { break };
            match slow.poll(cx) {
                Poll::Ready(done) => {
                    self.slow_ended(client, done);
                    ended = true;
                }
                Poll::Pending => self.slow.push_back(slow),
            }
        }
        if ended {
            return true;
        }
        if self.parked.is_some() {
            return self.tend_parked(client, cx);
        }
        let waits = !self.failed.is_empty() && !self.slow.is_empty();
        if waits || self.slow.back_mut().is_some_and(|last| !last.is_appended(cx)) {
            // Whether it has left meanwhile.
            return self.look(client, cx);
        }
        if self.on_wire > 0 && self.failed.front().is_some_and(|first| first.refusal.is_some()) {
            // What it sent behind that says whether it may still be carried out.
            return self.look(client, cx);
        }
        if let Some(Failed { seq, onward, body, commands, refusal }) = self.failed.pop_front() {
            if let Some(Refusal { words, is_passed: true }) = refusal {
                self.reply(seq, &words);
                return true;
            }
            let asker = Asker { commands, ..self.asker() };
            self.slow.push_back(client.core().go_on(seq, onward, body, asker));
            return true;
        }
        self.take_in(client, cx)
    }

    /// A write to `lanes` was executed.
    fn passes(&mut self, lanes: &Lanes) {
        for failed in &mut self.failed {
            let meets = failed.onward.lanes().is_some_and(|its| its.meets(lanes));
            if let (true, Some(refusal)) = (meets, &mut failed.refusal) {
                refusal.is_passed = true;
            }
        }
    }

    /// The command at hand is answered so.
    pub(super) fn answer(&mut self, answer: &[u8]) {
        let silent = self.session.takes_no_reply();
        self.slots.answer(silent, answer);
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
    fn ended(&mut self, seq: u64, answer: Answer) {
        match answer {
            Answer::Reply(reply) => self.reply(seq, &reply),
            Answer::Close => (self.ending, self.closed) = (Ending::Reset, Closed::Told),
        }
    }

    fn try_write(&mut self, core: &Core) {
        while !self.slots.out().is_empty() {
            match self.socket.try_write(self.slots.out()) {
                Ok(count) if count > 0 => {
                    core.counters.written(count);
                    self.slots.sent(count);
                }
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
