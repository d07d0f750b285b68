//! A connection to the server that a door owns: shared by its clients, or pinned to one of them.
//!
//! ```text
//!          wanted                    ready, behind a fence                 ended, or behind a loss
//!   Down ─────────▶ Opening ───────────────────────────────▶ Up ─────────────────────────────────▶ Down
//!    ▲  (not before its pause)   │ refused, overdue                                                 │
//!    └───────────────────────────┴─── what waits is told that it was not sent ◀─────────────────────┘
//! ```
//! It belongs to the door's thread. Clients append what they send to its *ring*, in the order in which they were
//! let through; replies come back in that order, first in, first out. What was sent stays in the ring until it is
//! answered: without it nothing could be repeated or queued after a loss.
//!
//! # Invariants
//! 1. An entry's bytes are in the ring from [`Upstream::send`] until its reply, or until it is handed back as lost.
//! 2. A connection that left writes unanswered is a [loss](crate::kinds::redis::transport::shared): it is counted after
//!    its socket was closed and before any client hears of it.
//! 3. One broken connection is one failure, that of its oldest entry: the others say nothing of the backend.
//! 4. Nothing here calls a client while it calls us: [`Upstream::send`] tells nobody, replies and losses are handed out
//!    by the connection's own task.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use fusebox_actors::{
    Ticket,
    connector::{AttemptError, OwnCode},
};
use fusebox_state::{ErrorClass, Lanes, Verdict};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::client::Client;
use crate::{
    kinds::redis::{
        connector::RedisConnector,
        protocol::{deadlines::Begun, resp::FrameFinder},
        transport::{
            handshake::{Failed, Protocol, Ready},
            open::{self, Opened},
            shared::Living,
        },
    },
    net::dial::Stream,
};

/// Entries that may wait for the server, and their bytes.
const ENTRIES_MAX: usize = 65_536;
const BYTES_MAX: usize = 64 << 20;
/// How much is read at once at least.
const READ_SIZE: usize = 64 << 10;
/// An empty ring keeps no more room than this.
const KEPT_MAX: usize = 1 << 20;
/// The pause after a failed connect.
const PAUSE: Duration = Duration::from_millis(50);

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// All clients' of its protocol; it raises the fence.
    Shared,
    /// One client's; it waits for the backend's fence.
    Pinned,
}

/// A request that a client has sent.
pub(super) struct Entry {
    pub(super) client: Rc<Client>,
    /// The place of its reply among the client's.
    pub(super) seq: u64,
    /// Its leave to be on the wire; `None` for what is the connection's own affair, such as MULTI.
    pub(super) ticket: Option<Ticket>,
    /// What is to be known once it is answered.
    pub(super) note: Note,
    /// It may wait for others, as long as it likes: its reply is never overdue.
    pub(super) blocks: bool,
    /// It can be carried on no other connection: what fails is told.
    pub(super) elsewhere: bool,
}

/// What is done with a reply besides handing it on.
pub(super) enum Note {
    /// Nothing.
    None,
    /// It may be cached, under the request's canonical form: as it was sent, its name in upper case.
    Cache,
    /// It settles the deadlines of its keys.
    Deadlines(Box<Begun>),
    /// It may have written to these lanes.
    Wrote(Box<Lanes>),
    /// It is the door's own, and nobody waits for it.
    Own,
}

/// What is on its way.
struct Pending {
    /// `None` for what has no reply of its own.
    entry: Option<Entry>,
    length: usize,
    begun: Instant,
}

/// An entry that has no reply.
pub(super) struct Lost {
    pub(super) entry: Entry,
    pub(super) body: Bytes,
    pub(super) verdict: Verdict,
    pub(super) error: AttemptError,
}

enum State {
    /// Not before `until`; `failed` is how the last connect ended.
    Down {
        until: Instant,
        failed: Option<Failed>,
    },
    Opening(Pin<Box<dyn Future<Output = Result<Opened, Failed>>>>),
    Up(Up),
    /// For ever.
    Closed,
}

struct Up {
    stream: Box<dyn Stream>,
    living: Living,
    covers: u64,
    inbox: BytesMut,
    finder: FrameFinder,
    /// Nothing more is taken; it ends once all is answered.
    retiring: bool,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    _counted: tokio_util::task::task_tracker::TaskTrackerToken,
}

/// See the [module](self).
pub(super) struct Upstream {
    inner: RefCell<Inner>,
    protocol: Protocol,
    sharing: Sharing,
    waker: Cell<Option<Waker>>,
    /// It is to end once what was sent is answered.
    retire: Cell<bool>,
}

struct Inner {
    connector: Arc<RedisConnector>,
    state: State,
    ring: Vec<u8>,
    /// Where in the ring the oldest entry begins.
    head: usize,
    /// How much of the ring was written, from its beginning.
    written: usize,
    pending: VecDeque<Pending>,
    due: Option<Pin<Box<Sleep>>>,
    /// Whose it is if it is pinned: who gets what the server tells a connection without being asked.
    owner: Option<Rc<Client>>,
    /// Whatever the server says goes to its owner as it comes: replies are not counted any more.
    raw: bool,
}

/// Why nothing can be sent now.
#[derive(Debug)]
pub(super) enum NotNow {
    /// As much waits for the server as may.
    Full,
    /// The connection is being replaced: what was sent on it is answered first.
    Replaced,
}

/// What a turn of a connection has brought.
#[derive(Default)]
pub(super) struct Turn {
    /// Clients that got replies.
    pub(super) touched: Vec<Rc<Client>>,
    /// What has no reply, oldest first.
    pub(super) lost: Vec<Lost>,
    /// It has ended, after it had been up.
    pub(super) ended: bool,
}

impl Upstream {
    pub(super) fn new(
        connector: Arc<RedisConnector>,
        protocol: Protocol,
        owner: Option<Rc<Client>>,
    ) -> Rc<Self> {
        let sharing = if owner.is_some() { Sharing::Pinned } else { Sharing::Shared };
        let inner = Inner {
            connector,
            state: State::Down { until: Instant::now(), failed: None },
            ring: Vec::new(),
            head: 0,
            written: 0,
            pending: VecDeque::new(),
            due: None,
            owner,
            raw: false,
        };
        let inner = RefCell::new(inner);
        Rc::new(Self { inner, protocol, sharing, waker: Cell::default(), retire: Cell::default() })
    }

    /// Takes a request to be sent, after all that was taken before it.
    ///
    /// # Errors
    /// It gives the entry back, and nothing was taken.
    #[expect(
        clippy::result_large_err,
        reason = "it is given back rarely, and to box it would be an allocation"
    )]
    pub(super) fn send(
        &self,
        entry: Entry,
        request: &[u8],
        now: Instant,
    ) -> Result<(), (Entry, NotNow)> {
        let mut inner = self.inner.borrow_mut();
        if inner.is_behind(self.sharing) {
            self.wake();
            return Err((entry, NotNow::Replaced));
        }
        let bytes = inner.ring.len() - inner.head;
        let fits = bytes + request.len() <= BYTES_MAX || inner.pending.is_empty();
        if inner.pending.len() >= ENTRIES_MAX || !fits {
            return Err((entry, NotNow::Full));
        }
        inner.make_room();
        inner.ring.extend_from_slice(request);
        let entry = Some(entry);
        inner.pending.push_back(Pending { entry, length: request.len(), begun: now });
        drop(inner);
        self.wake();
        Ok(())
    }

    /// Sends what has no reply of its own, or whose reply goes to its owner as it comes.
    pub(super) fn send_raw(&self, request: &[u8]) {
        let mut inner = self.inner.borrow_mut();
        inner.make_room();
        inner.ring.extend_from_slice(request);
        let (length, begun) = (request.len(), Instant::now());
        inner.pending.push_back(Pending { entry: None, length, begun });
        drop(inner);
        self.wake();
    }

    /// From here on whatever the server says goes to its owner as it comes. To be called while nothing waits.
    pub(super) fn go_raw(&self) {
        self.inner.borrow_mut().raw = true;
    }

    /// Whether a request would be taken now.
    pub(super) fn takes(&self) -> bool {
        let inner = self.inner.borrow();
        !inner.is_behind(self.sharing)
            && inner.pending.len() < ENTRIES_MAX
            && inner.ring.len() - inner.head < BYTES_MAX
    }

    /// Calls `with` for each entry of a client that has left.
    pub(super) fn abandon(&self, client: &Rc<Client>) {
        for pending in &mut self.inner.borrow_mut().pending {
            if let Some(entry) = &mut pending.entry
                && Rc::ptr_eq(&entry.client, client)
                && let Some(ticket) = &mut entry.ticket
            {
                ticket.abandon();
            }
        }
    }

    /// The connector in effect. One that is replaced has closed its connections by then.
    pub(super) fn use_connector(&self, connector: &Arc<RedisConnector>) {
        let mut inner = self.inner.borrow_mut();
        if Arc::ptr_eq(&inner.connector, connector) {
            return;
        }
        match &mut inner.state {
            State::Down { .. } => inner.connector = Arc::clone(connector),
            State::Up(up) => up.retiring = true,
            State::Opening(_) | State::Closed => return,
        }
        drop(inner);
        self.wake();
    }

    /// Ends it once what was sent is answered. May be called by a client that it has just told something.
    pub(super) fn retire_later(&self) {
        self.retire.set(true);
        self.wake();
    }

    /// Whether it has ended for ever.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.inner.borrow().state, State::Closed)
    }

    /// Whose it is, if it is pinned.
    pub(super) fn owner(&self) -> Option<Rc<Client>> {
        self.inner.borrow().owner.clone()
    }

    /// Ends it now and for ever. Who waits for replies has left.
    pub(super) fn close(&self) {
        let mut inner = self.inner.borrow_mut();
        let mut turn = Turn::default();
        inner.end(Cause::Shared, self.sharing, &mut turn);
        inner.state = State::Closed;
        inner.owner = None;
        drop((inner, turn));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits until there is something to tell.
    pub(super) async fn turn(&self) -> Turn {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Turn> {
        let mut inner = self.inner.borrow_mut();
        let mut turn = Turn::default();
        if self.retire.take()
            && let State::Up(up) = &mut inner.state
        {
            up.retiring = true;
        }
        inner.poll(context, self.protocol, self.sharing, &mut turn);
        turn.ended |= matches!(inner.state, State::Closed) && self.sharing == Sharing::Pinned;
        drop(inner);
        if !turn.touched.is_empty() || !turn.lost.is_empty() || turn.ended {
            return Poll::Ready(turn);
        }
        self.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Inner {
    /// Whether the connection at hand may take no more writes.
    fn is_behind(&self, sharing: Sharing) -> bool {
        match (&self.state, sharing) {
            (State::Closed, _) => true,
            (State::Up(up), _) if up.retiring => true,
            (State::Up(up), Sharing::Shared) => up.covers < self.connector.links().shared.losses(),
            (_, Sharing::Pinned) => self.connector.links().shared.may_land(),
            _ => false,
        }
    }

    /// Moves what is not answered to the ring's beginning, once that is worth it.
    fn make_room(&mut self) {
        if self.head == self.ring.len() {
            self.ring.clear();
            if self.ring.capacity() > KEPT_MAX {
                self.ring.shrink_to(KEPT_MAX);
            }
        } else if self.head > READ_SIZE && self.head > self.ring.len() / 2 {
            self.ring.drain(..self.head);
        } else {
            return;
        }
        self.written -= self.head;
        self.head = 0;
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        protocol: Protocol,
        sharing: Sharing,
        turn: &mut Turn,
    ) {
        loop {
            match &mut self.state {
                State::Closed => return self.fail(closed(), turn),
                State::Down { until, failed } => {
                    if self.pending.is_empty() {
                        return;
                    }
                    if Instant::now() < *until
                        && let Some(failed) = failed.clone()
                    {
                        return self.fail(failed, turn);
                    }
                    let shared = Arc::clone(&self.connector.links().shared);
                    self.state = State::Opening(Box::pin(async move {
                        let opened = open::open(&shared, protocol).await?;
                        match sharing {
                            Sharing::Shared => open::fenced(&shared, opened).await,
                            Sharing::Pinned => Ok(opened),
                        }
                    }));
                }
                State::Opening(opening) => {
                    let opened = match opening.as_mut().poll(context) {
                        Poll::Pending => return,
                        Poll::Ready(opened) => opened,
                    };
                    match opened {
                        Ok(opened) => self.go_up(opened, sharing),
                        Err(failed) => {
                            let until = Instant::now() + PAUSE;
                            self.state = State::Down { until, failed: Some(failed.clone()) };
                            return self.fail(failed, turn);
                        }
                    }
                }
                State::Up(_) => return self.carry(context, sharing, turn),
            }
        }
    }

    fn go_up(&mut self, opened: Opened, sharing: Sharing) {
        let Opened { ready: Ready { dialogue, info, .. }, living, covers } = opened;
        let shared = &self.connector.links().shared;
        shared.met(info);
        if sharing == Sharing::Shared {
            shared.fence_stands(covers);
        }
        self.state = State::Up(Up {
            stream: dialogue.stream,
            living,
            covers,
            inbox: dialogue.inbox,
            finder: dialogue.finder,
            retiring: false,
            closing: Box::pin(shared.closing.clone().cancelled_owned()),
            _counted: shared.others.token(),
        });
    }

    /// Writes, reads, and looks whether the oldest reply is overdue.
    fn carry(&mut self, context: &mut Context<'_>, sharing: Sharing, turn: &mut Turn) {
        if let State::Up(up) = &mut self.state
            && up.closing.as_mut().poll(context).is_ready()
        {
            return self.end(Cause::Shared, sharing, turn);
        }
        let ended = self.read(context, turn).or_else(|| self.write(context));
        let ended = ended.or_else(|| self.overdue(context));
        if let Some(cause) = ended {
            return self.end(cause, sharing, turn);
        }
        let behind = self.is_behind(Sharing::Shared) && sharing == Sharing::Shared;
        if self.pending.is_empty() && behind {
            self.end(Cause::Shared, sharing, turn);
        }
    }

    fn write(&mut self, context: &mut Context<'_>) -> Option<Cause> {
        let Self { state: State::Up(up), ring, written, pending, head, .. } = self else {
            return None;
        };
        let mut any = false;
        while *written < ring.len() {
            let left = ring.get(*written..).unwrap_or_default();
            match Pin::new(&mut up.stream).poll_write(context, left) {
                Poll::Pending => return None,
                Poll::Ready(Ok(0)) => return Some(Cause::broken("nothing can be written")),
                Poll::Ready(Ok(count)) => *written += count,
                Poll::Ready(Err(error)) => return Some(Cause::Broken(error.to_string())),
            }
            any = true;
        }
        *head += silent(pending);
        // Under TLS what was written may still lie in a buffer.
        if any && let Poll::Ready(Err(error)) = Pin::new(&mut up.stream).poll_flush(context) {
            return Some(Cause::Broken(error.to_string()));
        }
        None
    }

    fn read(&mut self, context: &mut Context<'_>, turn: &mut Turn) -> Option<Cause> {
        loop {
            let State::Up(up) = &mut self.state else { return None };
            up.inbox.reserve(READ_SIZE);
            let Up { stream, inbox, .. } = up;
            let read = match pin!(stream.read_buf(inbox)).poll(context) {
                Poll::Pending => return None,
                Poll::Ready(read) => read,
            };
            match read {
                Ok(0) => return Some(Cause::broken("the server closed the connection")),
                Err(error) => return Some(Cause::Broken(error.to_string())),
                Ok(_) => {
                    if let Err(why) = self.give_out(turn) {
                        return Some(Cause::Broken(why));
                    }
                }
            }
        }
    }

    /// Gives the replies that have come to those who wait for them.
    fn give_out(&mut self, turn: &mut Turn) -> Result<(), String> {
        let State::Up(up) = &mut self.state else { return Ok(()) };
        let mut taken = 0;
        loop {
            let rest = up.inbox.get(taken..).unwrap_or_default();
            let length = match up.finder.length(rest) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(error) => return Err(error.to_string()),
            };
            let frame = rest.get(..length).unwrap_or_default();
            taken += length;
            if self.raw || frame.starts_with(b">") {
                // Told to the connection. Nobody listens to a shared one.
                if let Some(owner) = &self.owner {
                    owner.told(frame);
                    if owner.touch() {
                        turn.touched.push(Rc::clone(owner));
                    }
                }
                continue;
            }
            self.head += silent(&mut self.pending);
            let Some(Pending { entry: Some(entry), length, .. }) = self.pending.pop_front() else {
                return Err("a reply to no request".to_owned());
            };
            let request = self.ring.get(self.head..self.head + length).unwrap_or_default();
            self.head += length;
            let client = Rc::clone(&entry.client);
            client.answered(entry, request, frame, &self.connector);
            if client.touch() {
                turn.touched.push(client);
            }
        }
        bytes::Buf::advance(&mut up.inbox, taken);
        self.make_room();
        Ok(())
    }

    /// Whether the oldest reply is overdue; sets the alarm for when it would be.
    fn overdue(&mut self, context: &mut Context<'_>) -> Option<Cause> {
        let waits = |pending: &&Pending| pending.entry.as_ref().is_some_and(|entry| !entry.blocks);
        let oldest = self.pending.front().filter(waits)?;
        let at = oldest.begun + self.connector.links().shared.settings.timeout;
        let due = self.due.get_or_insert_with(|| Box::pin(sleep_until(at)));
        // The alarm is set for an older one, usually: to set it anew for each would cost more than to be woken once.
        while due.as_mut().poll(context).is_ready() {
            if at <= Instant::now() {
                return Some(Cause::Overdue);
            }
            due.as_mut().reset(at);
        }
        None
    }

    /// The connection has ended.
    fn end(&mut self, cause: Cause, sharing: Sharing, turn: &mut Turn) {
        let down = State::Down { until: Instant::now(), failed: None };
        let State::Up(up) = mem::replace(&mut self.state, down) else { return };
        let shared = Arc::clone(&self.connector.links().shared);
        tracing::debug!(
            backend = shared.settings.name,
            name = up.living.name,
            ?cause,
            "connection ended"
        );
        // The socket is closed, and from here on the fence may kill what is left of it.
        drop(up);
        let mut end = self.head;
        let in_doubt = self.pending.iter().any(|pending| {
            end += pending.length;
            end <= self.written
        });
        if in_doubt {
            shared.lost();
        }
        turn.ended = sharing == Sharing::Pinned;
        self.fail_with(
            |sent, first, overdue| cause.error(sent, first, overdue, shared.settings.timeout),
            turn,
        );
    }

    /// Nothing that waits was sent.
    fn fail(&mut self, failed: Failed, turn: &mut Turn) {
        self.fail_with(
            |_, first, _| {
                let verdict = if first { failed.verdict } else { Verdict::Neutral };
                (verdict, failed.error.clone())
            },
            turn,
        );
    }

    fn fail_with(
        &mut self,
        error: impl Fn(bool, bool, bool) -> (Verdict, AttemptError),
        turn: &mut Turn,
    ) {
        let limit = self.connector.links().shared.settings.timeout;
        let now = Instant::now();
        let mut first = true;
        for Pending { entry, length, begun } in self.pending.drain(..) {
            let end = self.head + length;
            let body = self.ring.get(self.head..end).unwrap_or_default();
            if let Some(entry) = entry {
                let (verdict, error) = error(end <= self.written, first, begun + limit <= now);
                turn.lost.push(Lost { entry, body: Bytes::copy_from_slice(body), verdict, error });
                first = false;
            }
            self.head = end;
        }
        self.ring = Vec::new();
        (self.head, self.written, self.due) = (0, 0, None);
    }
}

/// Takes off the front what has no reply, all of which has been written. Returns its length in the ring.
fn silent(pending: &mut VecDeque<Pending>) -> usize {
    let mut length = 0;
    while pending.front().is_some_and(|pending| pending.entry.is_none())
        && let Some(silent) = pending.pop_front()
    {
        length += silent.length;
    }
    length
}

/// Why a connection ended.
#[derive(Debug)]
enum Cause {
    /// Its oldest request was not answered within the backend's `timeout`.
    Overdue,
    /// It was closed by the daemon.
    Shared,
    /// The other end closed it, or it broke.
    Broken(String),
}

impl Cause {
    fn broken(why: &str) -> Self {
        Self::Broken(why.to_owned())
    }

    /// What it means to an entry that was `sent` whole or not, the `first` that waits or not, itself `overdue` or not.
    fn error(
        &self,
        sent: bool,
        first: bool,
        overdue: bool,
        limit: Duration,
    ) -> (Verdict, AttemptError) {
        let class = if sent { ErrorClass::Unknown } else { ErrorClass::NotExecuted };
        let blamed = if first { Verdict::Failure } else { Verdict::Neutral };
        match self {
            Self::Overdue if overdue => {
                let message = format!("no reply within {limit:?}");
                (blamed, AttemptError::own(class, OwnCode::Timeout, message))
            }
            Self::Overdue | Self::Shared => {
                let message = "the connection was reset for another call's sake";
                (Verdict::Neutral, AttemptError::own(class, OwnCode::Reset, message))
            }
            Self::Broken(why) => {
                let verdict = if sent { blamed } else { Verdict::Neutral };
                (verdict, AttemptError::own(class, OwnCode::Reset, why.clone()))
            }
        }
    }
}

fn closed() -> Failed {
    let error =
        AttemptError::own(ErrorClass::NotExecuted, OwnCode::Closed, "the connector is closed");
    Failed { error, verdict: Verdict::Neutral }
}
