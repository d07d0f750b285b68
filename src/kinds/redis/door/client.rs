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
    io, mem,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use fusebox_actors::{Onward, Outcome, Settled};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::{Instant, Sleep, sleep},
};

use super::{
    core::Core,
    counters::Closed,
    local::Session,
    pin::PinnedTo,
    request::{Found, Requests},
    slow::Slow,
    telling::{self, Answer, Protocol},
    upstream::{Entry, Lost, Note},
};
use crate::{
    ingress::peer::Who,
    kinds::redis::{connector::RedisConnector, protocol::outcome},
};

mod dispatch;

pub(super) use dispatch::Carriage;

/// Commands of one client that may wait for their replies.
const PIPELINE: usize = 1_024;
/// What is read ahead of what was dispatched.
const INBOX_MAX: usize = 1 << 20;
/// How long a request may take from its first byte to its last without one in between.
const PARTIAL_MAX: Duration = Duration::from_secs(30);
/// How often a client that waits for a place looks whether there is one.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A client's socket.
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }

    fn poll_read_more(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Unix(stream) => pin!(stream.read_buf(into)).poll(cx),
            Self::Tcp(stream) => pin!(stream.read_buf(into)).poll(cx),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Tcp(stream) => stream.try_write(bytes),
        }
    }

    /// What is not sent yet is dropped, and the other end is told so.
    fn reset(&self) {
        if let Self::Tcp(stream) = self
            && let Err(error) = stream.set_zero_linger()
        {
            tracing::debug!(%error, "a connection cannot be reset");
        }
    }
}

/// A client; see the [module](self).
pub(super) struct Client {
    pub(super) core: Rc<Core>,
    id: u64,
    inner: RefCell<Inner>,
    waker: Cell<Option<Waker>>,
    /// It got replies in this turn of an upstream.
    touched: Cell<bool>,
    gone: Cell<bool>,
}

/// The place of a command's reply.
struct Slot {
    reply: Option<Bytes>,
    /// The client does not want it.
    silent: bool,
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
    /// The door holds as much as it may.
    Memory,
}

/// A command whose attempt failed. Those that were lost together go on one by one, each once the one before has ended:
/// only then is it known whether that one was acknowledged.
struct Failed {
    seq: u64,
    onward: Box<Onward>,
    body: Bytes,
}

pub(super) struct Inner {
    socket: Socket,
    inbox: BytesMut,
    requests: Requests,
    pub(super) session: Session,
    slots: VecDeque<Slot>,
    /// The number of the oldest slot.
    base: u64,
    out: BytesMut,
    failed: VecDeque<Failed>,
    /// Calls that run elsewhere, oldest first. All but the last are in the queue, and wait for the disk alone.
    slow: VecDeque<Slow>,
    /// Slots whose replies come from an upstream.
    on_wire: usize,
    stuck: Option<(Stuck, Pin<Box<Sleep>>)>,
    /// Since when the command at hand has been stuck.
    stuck_since: Option<Instant>,
    pub(super) pinned: Option<PinnedTo>,
    last: telling::Told,
    ending: Ending,
    /// Why it ends.
    closed: Closed,
    /// The client will send nothing more.
    read_closed: bool,
    /// Since when nothing has come of it.
    idle: Option<Pin<Box<Sleep>>>,
    /// What the door knows that is held of its requests, and of its replies.
    held: usize,
    owed: usize,
}

impl Client {
    pub(super) fn new(core: &Rc<Core>, socket: Socket, who: Option<Who>) -> Rc<Self> {
        let id = core.next_id();
        let session = Session::new(id, who, core.database());
        let inner = Inner {
            socket,
            inbox: BytesMut::new(),
            requests: Requests::default(),
            session,
            slots: VecDeque::new(),
            base: 0,
            out: BytesMut::new(),
            failed: VecDeque::new(),
            slow: VecDeque::new(),
            on_wire: 0,
            stuck: None,
            stuck_since: None,
            pinned: None,
            last: telling::Told::default(),
            ending: Ending::Open,
            closed: Closed::Client,
            read_closed: false,
            idle: None,
            held: 0,
            owed: 0,
        };
        Rc::new(Self {
            core: Rc::clone(core),
            id,
            inner: RefCell::new(inner),
            waker: Cell::default(),
            touched: Cell::default(),
            gone: Cell::default(),
        })
    }

    /// Serves the client until its connection has ended.
    pub(super) async fn serve(self: Rc<Self>) -> Closed {
        std::future::poll_fn(|cx| {
            self.waker.set(Some(cx.waker().clone()));
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
        self.core.holds((inner.held, 0), (inner.owed, 0));
        inner.slow.clear();
        inner.failed.clear();
        drop(inner);
        if owes {
            self.core.abandon(&self);
        }
        if let Some(pinned) = pinned {
            pinned.close();
        }
        why
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
        if self.gone.get() {
            return;
        }
        let mut inner = self.inner.borrow_mut();
        inner.try_write(&self.core);
        let waits = !inner.out.is_empty()
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
            inner.ending = Ending::Answered;
            inner.closed = Closed::Stop;
        }
        drop(inner);
        self.wake();
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
        if !matches!(note, Note::Own) {
            inner.on_wire -= 1;
        }
        let protocol = inner.session.protocol;
        if let Some(ticket) = ticket {
            if let Some(b'-' | b'!') = frame.first() {
                let ended = connector.links().ended(request, Bytes::copy_from_slice(frame));
                if let Err(error) = ended.result {
                    if outcome::wants_another_connection(&error) {
                        self.core.retire();
                    }
                    let outcome = Outcome::Failed { verdict: ended.verdict, error };
                    if let Settled::GoOn(onward) = ticket.settle(outcome)
                        && !elsewhere
                    {
                        let body = Bytes::copy_from_slice(request);
                        inner.failed.push_back(Failed { seq, onward, body });
                        return;
                    }
                    return inner.reply(seq, frame);
                }
            }
            let cached = match note {
                Note::Cache => telling::cacheable(frame, protocol),
                _ => None,
            };
            let until = cached.and_then(|_| self.core.ends(connector, request));
            let cached = cached.map(|value| (request, value));
            drop(ticket.settle(Outcome::Answered { cached, until }));
        }
        match note {
            Note::Deadlines(begun) => connector.links().answered(request, &begun, frame),
            Note::Wrote(lanes) if !matches!(frame.first(), Some(b'-' | b'!')) => {
                self.core.backend.wrote(&lanes);
            }
            Note::Own => return,
            Note::None | Note::Cache | Note::Wrote(_) => {}
        }
        inner.reply(seq, frame);
    }

    /// The server has said something to this client that answers no command.
    pub(super) fn told(&self, frame: &[u8]) {
        self.inner.borrow_mut().out.extend_from_slice(frame);
    }

    /// An attempt ended without a reply.
    pub(super) fn lost(&self, lost: Lost) {
        let Lost { entry: Entry { seq, ticket, .. }, body, verdict, error } = lost;
        self.inner.borrow_mut().on_wire -= 1;
        let Some(ticket) = ticket else { return };
        if let Settled::GoOn(mut onward) = ticket.settle(Outcome::Failed { verdict, error })
            && !self.gone.get()
        {
            self.core.backend.hold(&mut onward);
            self.inner.borrow_mut().failed.push_back(Failed { seq, onward, body });
        }
    }

    /// Its own upstream has ended. Whether it was ever up says what becomes of the client: what was not sent is told
    /// as such, and what may have been ends the connection, so that the client knows.
    pub(super) fn lost_its_upstream(&self, lost: Vec<Lost>, was_up: bool) {
        let mut inner = self.inner.borrow_mut();
        inner.pinned = None;
        if was_up {
            inner.ending = Ending::Reset;
            inner.closed = Closed::Upstream;
        } else {
            for Lost { entry, error, .. } in lost {
                if !matches!(entry.note, Note::Own) {
                    let why = format!("{}: {}", self.core.backend.name(), error.words().whole());
                    inner.ended(entry.seq, self.core.unavailable(&why));
                }
            }
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
        while !self.out.is_empty() && self.ending != Ending::Reset {
            match self.socket.poll_write(cx, &self.out) {
                Poll::Pending => break,
                Poll::Ready(Ok(count)) if count > 0 => {
                    client.core.counters.written(count);
                    self.out.advance(count);
                }
                Poll::Ready(_) => self.ending = Ending::Reset,
            }
        }
        if self.out.is_empty() && self.out.capacity() > 0 {
            self.out = BytesMut::new();
        }
        if self.out.len() > client.core.settings.out_client {
            self.closed = Closed::SlowReader;
            self.ending = Ending::Reset;
        }
        self.tell_held(client);
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

    /// Tells the door what is held of this client.
    fn tell_held(&mut self, client: &Client) {
        let (held, owed) = (self.inbox.len(), self.out.len());
        if (held, owed) != (self.held, self.owed) {
            client.core.holds((self.held, held), (self.owed, owed));
            (self.held, self.owed) = (held, owed);
        }
    }

    /// Whether it has been silent for too long, and is owed nothing: in the middle of a request, or for as long as the
    /// door allows.
    fn is_idle(&mut self, client: &Client, cx: &mut Context<'_>) -> bool {
        let is_partial = !self.inbox.is_empty() && self.stuck.is_none();
        let limit = if is_partial { Some(PARTIAL_MAX) } else { client.core.settings.idle_timeout };
        let Some(limit) = limit else {
            self.idle = None;
            return false;
        };
        let idle = self.idle.get_or_insert_with(|| Box::pin(sleep(limit)));
        if idle.as_mut().poll(cx).is_pending() {
            return false;
        }
        let is_quit = self.is_quit() && self.pinned.is_none();
        if !is_quit {
            self.idle = None;
            client.wake();
        }
        is_quit
    }

    /// Whether it is owed nothing.
    fn is_quit(&self) -> bool {
        self.slots.is_empty()
            && self.out.is_empty()
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
        let waits = !self.failed.is_empty() && !self.slow.is_empty();
        if waits || self.slow.back_mut().is_some_and(|last| !last.is_appended(cx)) {
            // Whether it has left meanwhile.
            return self.look(cx);
        }
        if let Some(Failed { seq, onward, body }) = self.failed.pop_front() {
            self.slow.push_back(client.core.go_on(seq, onward, body, self.asker()));
            return true;
        }
        if self.stuck.as_ref().is_some_and(|(stuck, _)| self.still(*stuck, client)) {
            return self.look(cx);
        }
        self.stuck = None;
        if !self.inbox.is_empty() {
            let mut inbox = mem::take(&mut self.inbox);
            let taken = self.take(client, &inbox);
            inbox.advance(taken);
            if !inbox.is_empty() {
                self.inbox = inbox;
            }
            if taken > 0 {
                return true;
            }
            if self.stuck.is_some() || !self.may_take() {
                return self.stuck.is_none() && self.has_begun();
            }
        }
        if self.has_begun() {
            return true;
        }
        self.may_take() && self.stuck.is_none() && self.read(client, cx)
    }

    /// Whether what a command is stuck on still holds. The alarm looks again at what tells nobody of its end.
    fn still(&self, stuck: Stuck, client: &Client) -> bool {
        match stuck {
            Stuck::Others => !self.slots.is_empty(),
            Stuck::Place => !client.core.may_have_place(),
            Stuck::Lanes => true,
            Stuck::Memory => client.core.is_full(),
        }
    }

    fn may_take(&self) -> bool {
        self.ending == Ending::Open
            && !self.has_begun()
            && self.failed.is_empty()
            && self.slots.len() < PIPELINE
    }

    /// Whether a call was begun elsewhere that nothing may follow yet.
    fn has_begun(&self) -> bool {
        self.slow.back().is_some_and(|last| !last.was_appended())
    }

    /// Reads on while nothing is dispatched, so that it is noticed if the client leaves.
    fn look(&mut self, cx: &mut Context<'_>) -> bool {
        if self.read_closed || self.inbox.len() >= INBOX_MAX {
            return false;
        }
        self.inbox.reserve(4 << 10);
        match self.socket.poll_read_more(cx, &mut self.inbox) {
            Poll::Pending => false,
            Poll::Ready(Ok(0) | Err(_)) => {
                // Nobody waits for what is under way.
                self.ending = Ending::Reset;
                false
            }
            Poll::Ready(Ok(_)) => true,
        }
    }

    fn read(&mut self, client: &Rc<Client>, cx: &mut Context<'_>) -> bool {
        if self.read_closed || client.core.is_full() {
            if !self.read_closed {
                // Others must be served first.
                self.stuck = Some((Stuck::Memory, Box::pin(sleep(LOOK_AGAIN))));
                client.wake();
            }
            return false;
        }
        let read = if self.inbox.is_empty() {
            let mut scratch = client.core.scratch.take();
            let mut into = ReadBuf::new(&mut scratch);
            let read = self.socket.poll_read(cx, &mut into);
            let count = into.filled().len();
            if count > 0 {
                let bytes = scratch.get(..count).unwrap_or_default();
                let taken = self.take(client, bytes);
                self.inbox.extend_from_slice(bytes.get(taken..).unwrap_or_default());
            }
            client.core.scratch.replace(scratch);
            read.map_ok(|()| count)
        } else {
            let needs = self.requests.needs(&self.inbox);
            if needs > client.core.settings.request_max {
                let why = format!(
                    "ERR fusebox: a request of {needs} bytes is more than this door takes ({} bytes)",
                    client.core.settings.request_max
                );
                self.answer(&telling::error(&why));
                self.ending = Ending::Answered;
                self.closed = Closed::Protocol;
                return true;
            }
            self.inbox.reserve(needs.saturating_sub(self.inbox.len()).max(16 << 10));
            self.socket.poll_read_more(cx, &mut self.inbox)
        };
        match read {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                self.read_closed = true;
                false
            }
            Poll::Ready(Ok(count)) => {
                client.core.counters.read(count);
                self.idle = None;
                true
            }
            Poll::Ready(Err(_)) => {
                self.ending = Ending::Reset;
                false
            }
        }
    }

    /// Dispatches what `bytes` ask for, as far as that goes now. Returns how much of them was taken.
    fn take(&mut self, client: &Rc<Client>, bytes: &[u8]) -> usize {
        let mut taken = 0;
        let now = Instant::now();
        while self.may_take() && self.stuck.is_none() {
            let rest = bytes.get(taken..).unwrap_or_default();
            let mut reader = mem::take(&mut self.requests);
            let (length, stuck) = match reader.next(rest, self.session.who.is_some()) {
                Found::Nothing => {
                    self.requests = reader;
                    break;
                }
                Found::Empty(length) => (length, None),
                Found::Request(length) => {
                    let request = rest.get(..length).unwrap_or_default();
                    (length, self.dispatch(client, &reader, request, now))
                }
                Found::Inline(length, request) => {
                    let mut words = Requests::default();
                    let stuck = match words.next(&request, true) {
                        Found::Request(_) => self.dispatch(client, &words, &request, now),
                        _ => None,
                    };
                    (length, stuck)
                }
                Found::Wrong(why) => {
                    self.answer(&telling::error(&format!("ERR {why}")));
                    self.ending = Ending::Answered;
                    self.closed = Closed::Protocol;
                    return bytes.len();
                }
            };
            self.requests = reader;
            if let Some(stuck) = stuck {
                self.stuck_since.get_or_insert(now);
                self.stuck = Some((stuck, Box::pin(sleep(LOOK_AGAIN))));
                // The alarm is set when it is first looked at.
                client.wake();
            } else {
                self.stuck_since = None;
                taken += length;
            }
        }
        taken
    }

    /// A slot for the command at hand.
    fn slot(&mut self) -> u64 {
        let silent = self.session.takes_no_reply();
        self.slots.push_back(Slot { reply: None, silent });
        self.base + self.slots.len() as u64 - 1
    }

    /// The command at hand is answered so.
    pub(super) fn answer(&mut self, answer: &[u8]) {
        if self.slots.is_empty() {
            if !self.session.takes_no_reply() {
                self.out.extend_from_slice(answer);
            }
        } else {
            let seq = self.slot();
            self.reply(seq, answer);
        }
    }

    /// The command of a slot is answered so.
    pub(super) fn reply(&mut self, seq: u64, frame: &[u8]) {
        if seq == self.base {
            if let Some(slot) = self.slots.pop_front() {
                self.base += 1;
                if !slot.silent {
                    self.out.extend_from_slice(frame);
                }
            }
            while let Some(Slot { reply: Some(_), .. }) = self.slots.front()
                && let Some(Slot { reply: Some(reply), silent }) = self.slots.pop_front()
            {
                self.base += 1;
                if !silent {
                    self.out.extend_from_slice(&reply);
                }
            }
        } else if let Some(slot) =
            usize::try_from(seq.wrapping_sub(self.base)).ok().and_then(|at| self.slots.get_mut(at))
        {
            slot.reply = Some(Bytes::copy_from_slice(frame));
        }
    }

    /// The command of a slot has ended so.
    fn ended(&mut self, seq: u64, answer: Answer) {
        match answer {
            Answer::Reply(reply) => self.reply(seq, &reply),
            Answer::Close => {
                self.ending = Ending::Reset;
                self.closed = Closed::Told;
            }
        }
    }

    fn try_write(&mut self, core: &Core) {
        while !self.out.is_empty() {
            match self.socket.try_write(&self.out) {
                Ok(count) if count > 0 => {
                    core.counters.written(count);
                    self.out.advance(count);
                }
                // Its own task sees to the rest, and to what is wrong.
                _ => return,
            }
        }
        self.out = BytesMut::new();
    }

    /// Whether everything so far has been answered.
    pub(super) fn is_answered(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn stuck_since(&self) -> Option<Instant> {
        self.stuck_since
    }

    fn protocol(&self) -> Protocol {
        self.session.protocol
    }
}
