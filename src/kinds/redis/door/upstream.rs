//! A connection to the server that a door owns: shared by its clients, or pinned to one of them.
//!
//! ```text
//!          wanted                    ready, behind a fence                 ended, or behind a loss
//!   Down ─────────▶ Opening ───────────────────────────────▶ Up ─────────────────────────────────▶ Down
//!    ▲  (not before its pause)   │ refused, overdue                                                 │
//!    └───────────────────────────┴─── what waits learns that it was not sent  ◀─────────────────────┘
//! ```
//! It belongs to the door's thread. Clients append what they send to its *ring*, in the order in which they were
//! let through; replies come back in that order, first in, first out.
//!
//! # Invariants
//! 1. An entry's bytes are in the ring from [`Upstream::send`] until its reply, or until it is handed back as lost.
//! 2. A connection that left writes unanswered is a [loss](crate::kinds::redis::transport::shared): it is counted after
//!    its socket was closed and before any client hears of it.
//! 3. One broken connection is one failure, that of its oldest entry: the others say nothing of the backend.
//! 4. What a client that does not read keeps waiting says nothing of how fast the backend is.
//! 5. Nothing here calls a client while it calls us: [`Upstream::send`] tells nobody, replies and losses are handed out
//!    by the connection's own task.
//! 6. What waits for the connection to be up waits no longer than an attempt may take, and was not sent then. The time
//!    of a reply begins when the connection is up.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::AttemptError;
use fusebox_state::Verdict;
use tokio::time::{Instant, Sleep};
use tokio_util::{sync::WaitForCancellationFutureOwned, task::task_tracker::TaskTrackerToken};

mod carrying;
mod cause;
mod ending;
mod entry;
mod listening;
mod ring;

use self::{
    cause::{Cause, closed, not_fenced},
    listening::Subscriptions,
    ring::Ring,
};
pub(super) use self::{
    entry::{Entry, Note, Unit, Unsettled, Waited},
    listening::Awaited,
};
use super::client::Client;
use crate::{
    kinds::redis::{
        connector::RedisConnector,
        protocol::resp::FrameFinder,
        transport::{
            handshake::{Failed, Protocol, Ready},
            open::{self, Opened},
            shared::Living,
        },
    },
    net::dial::Stream,
};

/// The pause after a failed connect, and between two looks for the connector that replaces a closed one.
const PAUSE: Duration = Duration::from_millis(50);

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// All clients' of its protocol; it raises the fence.
    Shared,
    /// One client's; it waits for the backend's fence.
    Pinned,
}

/// An entry that has no reply.
pub(super) struct Lost {
    pub(super) entry: Entry,
    pub(super) body: Bytes,
    pub(super) verdict: Verdict,
    pub(super) error: AttemptError,
}

enum State {
    /// Nothing is tried before `until`; `failed` is how the last connect ended.
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
    /// Its number at the server.
    id: Option<i64>,
    covers: u64,
    inbox: BytesMut,
    finder: FrameFinder,
    /// Nothing more is taken; it ends once all is answered.
    retiring: bool,
    /// The oldest reply is handed on piece by piece: when the last one was.
    piecewise: Option<Instant>,
    /// When it ends whatever is unanswered.
    cut_at: Option<Instant>,
    /// Nothing has come over it since there was reason to ask whether anything does.
    is_doubted: bool,
    /// Nothing has come for too long after that: it ends.
    is_deaf: bool,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    _counted: TaskTrackerToken,
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
    /// What has replaced it: the next connection is opened by that.
    next: Option<Arc<RedisConnector>>,
    state: State,
    ring: Ring,
    due: Option<Pin<Box<Sleep>>>,
    /// Whose it is if it is pinned: who gets what the server tells a connection without being asked.
    owner: Option<Rc<Client>>,
    /// The protocol that it speaks.
    protocol: Protocol,
    /// What its owner listens to.
    subscriptions: Subscriptions,
    /// Its owner gets everything.
    monitors: bool,
}

/// What a turn of a connection has brought.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one turn")]
pub(super) struct Turn {
    /// Clients that got replies.
    pub(super) touched: Vec<Rc<Client>>,
    /// What has no reply, oldest first.
    pub(super) lost: Vec<Lost>,
    /// It is up now, and was not before.
    pub(super) went_up: bool,
    /// It has ended, after it had been up.
    pub(super) ended: bool,
    /// Its connector has been replaced: it must learn by which one.
    pub(super) replaced: bool,
    /// It has begun to hand on a large reply, and takes nothing more: another one is to take its place.
    pub(super) leaves: bool,
    /// How long a request took to be written, and when its reply came.
    pub(super) measured: Option<(Duration, Instant)>,
}

impl Upstream {
    pub(super) fn new(
        connector: Arc<RedisConnector>,
        protocol: Protocol,
        owner: Option<Rc<Client>>,
        held: &Rc<Cell<usize>>,
    ) -> Rc<Self> {
        let sharing = if owner.is_some() { Sharing::Pinned } else { Sharing::Shared };
        let inner = Inner {
            connector,
            next: None,
            state: State::Down { until: Instant::now(), failed: None },
            ring: Ring::new(sharing, Rc::clone(held)),
            due: None,
            owner,
            protocol,
            subscriptions: Subscriptions::default(),
            monitors: false,
        };
        let inner = RefCell::new(inner);
        Rc::new(Self { inner, protocol, sharing, waker: Cell::default(), retire: Cell::default() })
    }

    /// Takes a request to be sent, after all that was taken before it. False if it takes none now, because as much
    /// waits for the server as may, or because what was sent on this connection is answered before it is replaced: then
    /// the entry is dropped.
    pub(super) fn send(&self, entry: Entry, request: &[u8], now: Instant) -> bool {
        let mut inner = self.inner.borrow_mut();
        let takes = !inner.is_behind(self.sharing) && inner.ring.fits(request.len());
        if takes {
            let is_up = matches!(inner.state, State::Up(_));
            inner.ring.push(entry, request, (now, is_up));
        }
        drop(inner);
        self.wake();
        takes
    }

    /// What tells it from other connections: what it takes, the server applies in that order.
    pub(super) fn way(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether it is connected.
    pub(super) fn is_up(&self) -> bool {
        matches!(&self.inner.borrow().state, State::Up(_))
    }

    /// Whether a request of so many bytes would be taken now.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        let inner = self.inner.borrow();
        !inner.is_behind(self.sharing) && inner.ring.fits(bytes)
    }

    /// The cached reads that have waited since `before`, each with its request.
    pub(super) fn late_reads(&self, before: Instant, mut with: impl FnMut(&mut Entry, &[u8])) {
        let inner = &mut *self.inner.borrow_mut();
        // The oldest has begun to be answered if it comes piece by piece.
        let begun = matches!(&inner.state, State::Up(Up { piecewise: Some(_), .. }));
        for (entry, request) in inner.ring.older_than(before).skip(usize::from(begun)) {
            if matches!(entry.note, Note::Cache) {
                with(entry, request);
            }
        }
    }

    /// Calls `with` for each entry of a client that has left.
    pub(super) fn abandon(&self, client: &Rc<Client>) {
        for entry in self.inner.borrow_mut().ring.entries() {
            if Rc::ptr_eq(&entry.client, client)
                && let Some(ticket) = &mut entry.ticket
            {
                ticket.abandon();
            }
        }
    }

    /// The connector in effect. One that is replaced has closed its connections by then.
    pub(super) fn use_connector(&self, connector: &Arc<RedisConnector>) {
        let mut inner = self.inner.borrow_mut();
        inner.next = Some(Arc::clone(connector));
        if let State::Up(up) = &mut inner.state {
            up.retiring = true;
        }
        drop(inner);
        self.wake();
    }

    /// Ends it once what was sent is answered. May be called by a client that it has just sent something.
    pub(super) fn retire_later(&self) {
        self.retire.set(true);
        self.wake();
    }

    /// Whether its owner may receive something without having asked.
    pub(super) fn listens(&self) -> bool {
        let inner = self.inner.borrow();
        inner.monitors || !inner.subscriptions.is_empty()
    }

    /// Whether its owner gets everything.
    pub(super) fn monitors(&self) -> bool {
        self.inner.borrow().monitors
    }

    /// Whether something waits for a reply that may take as long as it likes.
    pub(super) fn is_blocked(&self) -> bool {
        self.inner.borrow().ring.is_blocked()
    }

    /// Whether nobody would notice that nothing comes over it any more: its owner listens, or waits for something that
    /// may never come.
    pub(super) fn may_be_deaf(&self) -> bool {
        self.listens() || self.inner.borrow().ring.waits_for_ever()
    }

    /// There is reason to ask whether anything comes over it.
    pub(super) fn doubt(&self) {
        if let State::Up(up) = &mut self.inner.borrow_mut().state {
            up.is_doubted = true;
        }
    }

    /// Ends it if nothing has come over it since it was [doubted](Self::doubt). What waits there may still be answered,
    /// within the time that any reply may take.
    pub(super) fn give_up_if_deaf(&self) {
        if let State::Up(up) = &mut self.inner.borrow_mut().state {
            up.is_deaf |= up.is_doubted;
        }
        self.wake();
    }

    /// Whether it has ended for ever.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.inner.borrow().state, State::Closed)
    }

    /// Whether it is down, and nothing waits for it.
    pub(super) fn is_spent(&self) -> bool {
        let inner = self.inner.borrow();
        inner.ring.is_empty() && !matches!(inner.state, State::Up(_) | State::Opening(_))
    }

    /// Whether it is up, and nothing is under way on it.
    pub(super) fn is_idle(&self) -> bool {
        let inner = self.inner.borrow();
        inner.ring.is_empty() && matches!(&inner.state, State::Up(up) if !up.retiring)
    }

    /// Whether it takes nothing more, and ends once what was sent is answered.
    pub(super) fn is_retiring(&self) -> bool {
        matches!(&self.inner.borrow().state, State::Up(Up { retiring: true, .. }))
    }

    /// Since when the client of a large reply has taken nothing of it, while the rest waits for that. `None` if nothing
    /// does.
    pub(super) fn held_up_since(&self) -> Option<Instant> {
        let inner = self.inner.borrow();
        inner.held_up_by().and(inner.went_on())
    }

    /// Disconnects the client for which the rest of a large reply waits, if there is one.
    pub(super) fn give_up_client(&self) {
        self.inner.borrow_mut().give_up_client();
    }

    /// Its number at the server while it is up.
    pub(super) fn server_id(&self) -> Option<i64> {
        match &self.inner.borrow().state {
            State::Up(up) => up.id,
            _ => None,
        }
    }

    /// The protocol that it was opened for.
    pub(super) fn asked(&self) -> Protocol {
        self.protocol
    }

    /// The protocol that it speaks now.
    pub(super) fn spoken(&self) -> Protocol {
        self.inner.borrow().protocol
    }

    /// Gives it to another client, or to none.
    pub(super) fn give_to(&self, owner: Option<Rc<Client>>) {
        self.inner.borrow_mut().owner = owner;
    }

    /// Whether it was opened by that connector.
    pub(super) fn is_of(&self, connector: &Arc<RedisConnector>) -> bool {
        Arc::ptr_eq(&self.inner.borrow().connector, connector)
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

    /// Has it look what there is to do.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits until there is something to tell, and adds it to `turn`, which keeps its room from turn to turn.
    pub(super) async fn turn(&self, turn: &mut Turn) {
        (turn.went_up, turn.ended, turn.replaced, turn.leaves) = (false, false, false, false);
        poll_fn(|context| self.poll(context, turn)).await;
    }

    fn poll(&self, context: &mut Context<'_>, turn: &mut Turn) -> Poll<()> {
        let mut inner = self.inner.borrow_mut();
        if self.retire.take()
            && let State::Up(up) = &mut inner.state
        {
            up.retiring = true;
        }
        inner.poll(context, self.protocol, self.sharing, turn);
        turn.ended |= matches!(inner.state, State::Closed) && self.sharing == Sharing::Pinned;
        drop(inner);
        let has_news = !turn.touched.is_empty() || !turn.lost.is_empty();
        if has_news || turn.went_up || turn.ended || turn.replaced || turn.leaves {
            return Poll::Ready(());
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
            (_, Sharing::Pinned) => !self.connector.links().shared.is_fenced(),
            _ => false,
        }
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
                    if let Some(next) = self.next.take() {
                        self.connector = next;
                    }
                    if self.ring.is_empty() {
                        return;
                    }
                    if sharing == Sharing::Shared
                        && self.connector.links().shared.closing.is_cancelled()
                    {
                        // Its successor is not there yet: it is asked for now and again.
                        let again = Some(*until);
                        if self.waits(context, again, turn) {
                            let until = Instant::now() + PAUSE;
                            self.state = State::Down { until, failed: None };
                            turn.replaced = true;
                        }
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
                        Poll::Pending => {
                            self.waits(context, None, turn);
                            return;
                        }
                        Poll::Ready(opened) => opened,
                    };
                    // The alarm was for what waited.
                    self.due = None;
                    // Before it is asked whether the connector is closing: if it is not, its close waits for this.
                    let counted = self.connector.links().shared.others.token();
                    match opened {
                        // Opened for nothing: it is another server's, perhaps, or of another database.
                        Ok(_) if self.next.is_some() => {
                            self.state = State::Down { until: Instant::now(), failed: None };
                        }
                        Ok(_) if self.connector.links().shared.closing.is_cancelled() => {
                            let down = State::Down { until: Instant::now(), failed: None };
                            let is_shared = sharing == Sharing::Shared;
                            self.state = if is_shared { down } else { State::Closed };
                            turn.replaced = is_shared;
                            if is_shared {
                                return;
                            }
                        }
                        // Something was lost since its fence was begun: it needs another one.
                        Ok(opened)
                            if sharing == Sharing::Shared
                                && opened.covers < self.connector.links().shared.losses() =>
                        {
                            self.state = State::Down { until: Instant::now(), failed: None };
                        }
                        Ok(_)
                            if sharing == Sharing::Pinned
                                && !self.connector.links().shared.is_fenced() =>
                        {
                            self.state = State::Down { until: Instant::now(), failed: None };
                            return self.fail(not_fenced(), turn);
                        }
                        Ok(opened) => {
                            self.go_up(opened, sharing, counted);
                            turn.went_up = true;
                        }
                        Err(failed) => {
                            let until = Instant::now() + PAUSE;
                            // What is sent meanwhile fails of the same: it is no second failure.
                            let again = Failed { verdict: Verdict::Neutral, ..failed.clone() };
                            self.state = State::Down { until, failed: Some(again) };
                            return self.fail(failed, turn);
                        }
                    }
                }
                State::Up(_) => return self.carry(context, sharing, turn),
            }
        }
    }

    fn go_up(&mut self, opened: Opened, sharing: Sharing, counted: TaskTrackerToken) {
        let Opened { ready: Ready { dialogue, id, info, .. }, living, covers } = opened;
        let shared = &self.connector.links().shared;
        shared.met(info);
        if sharing == Sharing::Shared {
            shared.fence_stands(covers);
        }
        self.state = State::Up(Up {
            stream: dialogue.stream,
            living,
            id,
            covers,
            inbox: dialogue.inbox,
            finder: dialogue.finder,
            retiring: false,
            piecewise: None,
            cut_at: None,
            is_doubted: false,
            is_deaf: false,
            closing: Box::pin(shared.closing.clone().cancelled_owned()),
            _counted: counted,
        });
        self.ring.can_be_answered();
    }
}
