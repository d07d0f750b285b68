//! What the clients of a door share that are in one database: the backend, the connections to the server, the settings.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    mem,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::{
    Backend, Fills, Outcome,
    connector::{Access, Connector, Read, Slot},
};
use fusebox_state::{LaneId, Moment};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    client::Client,
    counters::Counters,
    local::Server,
    settings::Settings,
    slow::Asker,
    telling::{self, Answer, Protocol},
    upstream::{Entry, Note, Turn, Upstream},
    whole::Whole,
};
use crate::{
    ingress::peer::NOBODY,
    kinds::redis::{
        connector::RedisConnector,
        protocol::{outcome, resp},
        transport::{handshake::Protocol as Spoken, live::Noting},
    },
};

mod large;
mod own;

/// How often late reads are looked for while the backend is suspect.
const LOOK_FOR_LATE: Duration = Duration::from_millis(50);
/// How often it is looked whether what is parked may go on, and how much of it then does.
const UNPARK_EVERY: Duration = Duration::from_millis(50);
const UNPARK_AT_ONCE: usize = 64;
/// So often that pause is doubled at most while no connection can be opened: to 1.6 s.
const FAILED_PINS_MAX: u32 = 5;

/// What the clients of a door share that are in one database. It belongs to the door's thread.
pub(super) struct Core {
    /// What is shared with the clients that are in others.
    pub(super) whole: Rc<Whole>,
    pub(super) settings: Rc<Settings>,
    pub(super) backend: Arc<Backend>,
    pub(super) counters: Arc<Counters>,
    /// The daemon's own runtime.
    pub(super) main: Handle,
    /// The request at hand in its canonical form.
    pub(super) canonical: RefCell<Vec<u8>>,
    connector: RefCell<Arc<RedisConnector>>,
    links: RefCell<[Rc<Upstream>; 2]>,
    /// Shared connections that take nothing more, and still have something to hand on.
    leaving: RefCell<Vec<Rc<Upstream>>>,
    namespace: RefCell<Rc<str>>,
    /// Clients that wait for a place.
    awaiting: RefCell<Vec<Rc<Client>>>,
    /// Clients whose replies are to be sent at the end of this turn of the thread.
    outgoing: RefCell<Vec<Rc<Client>>>,
    sender: Cell<Option<Waker>>,
    /// How many connections of a client's own could not be opened since the last that could.
    failed_pins: Cell<u32>,
    /// Clients with a parked command, by when they parked it.
    parked: RefCell<BTreeMap<u64, Rc<Client>>>,
    unparker: Cell<Option<Waker>>,
    /// Connections that belong to no client yet, and since when; the latest is the last.
    pool: RefCell<Vec<(Instant, Rc<Upstream>)>>,
    thinner: Cell<Option<Waker>>,
    /// A fence was asked for, and has not been raised or refused yet.
    fencing: Arc<std::sync::atomic::AtomicBool>,
    /// When the last fence that was asked for could not be raised.
    not_fenced: Arc<parking_lot::Mutex<Option<Instant>>>,
}

impl Core {
    /// Opens the database that is `backend`'s to the door's clients. `None` if its kind is another.
    pub(super) fn open(whole: &Rc<Whole>, backend: Arc<Backend>) -> Option<Rc<Self>> {
        let connector = redis_of(backend.connector())?;
        let link = |spoken| Upstream::new(Arc::clone(&connector), spoken, None, &whole.apart);
        let links = RefCell::new([link(Spoken::Two), link(Spoken::Newest)]);
        let namespace = RefCell::new(connector.links().namespace.as_str().into());
        let core = Rc::new(Self {
            whole: Rc::clone(whole),
            settings: Rc::clone(&whole.settings),
            backend,
            counters: Arc::clone(&whole.counters),
            main: whole.main.clone(),
            canonical: RefCell::default(),
            connector: RefCell::new(connector),
            links,
            leaving: RefCell::default(),
            namespace,
            awaiting: RefCell::default(),
            outgoing: RefCell::default(),
            sender: Cell::default(),
            failed_pins: Cell::new(0),
            parked: RefCell::default(),
            unparker: Cell::default(),
            pool: RefCell::default(),
            thinner: Cell::default(),
            fencing: Arc::default(),
            not_fenced: Arc::default(),
        });
        core.links().into_iter().for_each(|link| core.begin(link));
        tokio::task::spawn_local(Rc::clone(&core).watch());
        tokio::task::spawn_local(Rc::clone(&core).send_out());
        tokio::task::spawn_local(Rc::clone(&core).unpark());
        tokio::task::spawn_local(Rc::clone(&core).thin_pool());
        tokio::task::spawn_local(Rc::clone(&core).end_the_deaf());
        whole.cores.borrow_mut().push(Rc::clone(&core));
        Some(core)
    }

    /// The door's own database.
    pub(super) fn home(&self) -> Option<Rc<Self>> {
        self.whole.cores.borrow().first().map(Rc::clone)
    }

    /// That database of the same server, if it is this backend's or another's: then nothing of it needs a connection of
    /// the client's own.
    pub(super) fn beside(&self, database: u32) -> Option<Rc<Self>> {
        // The door's own says which server it is.
        let home = self.home()?.connector();
        let is_it = |other: &RedisConnector| {
            let own = &home;
            let (own, other) = (&own.links().shared.settings, &other.links().shared.settings);
            other.database == database && other.is_of_one_account_with(own)
        };
        let open = self.whole.cores.borrow().iter().map(Rc::clone).collect::<Vec<_>>();
        for core in &open {
            core.refresh();
        }
        if let Some(core) = open.iter().find(|core| is_it(&core.connector())) {
            return Some(Rc::clone(core));
        }
        let mut kin = self.whole.kin.iter();
        let found = kin.find(|backend| {
            redis_of(backend.connector()).is_some_and(|connector| is_it(&connector))
                && !open.iter().any(|core| Arc::ptr_eq(&core.backend, backend))
        });
        Self::open(&self.whole, Arc::clone(found?))
    }

    /// How many connections are kept that belong to no client.
    pub(super) fn spare(&self) -> usize {
        self.pool.borrow().len()
    }

    /// The connections that all clients share, also those that are being replaced.
    fn links(&self) -> Vec<Rc<Upstream>> {
        let (links, leaving) = (self.links.borrow(), self.leaving.borrow());
        links.iter().chain(leaving.iter()).map(Rc::clone).collect()
    }

    /// Closes the connections that all clients share.
    pub(super) fn close(&self) {
        self.links().iter().for_each(|link| link.close());
    }

    fn begin(self: &Rc<Self>, link: Rc<Upstream>) {
        tokio::task::spawn_local(Rc::clone(self).drive(link));
    }

    /// A client has taken something of a reply that it gets piece by piece.
    pub(super) fn wake_links(&self) {
        self.links().iter().for_each(|link| link.wake());
    }

    /// Drives a shared connection until the door is closed, or another one has replaced it.
    async fn drive(self: Rc<Self>, upstream: Rc<Upstream>) {
        let mut turn = Turn::default();
        // There is no place for what is to take its place: when to ask again.
        let mut again = None;
        while !self.has_left(&upstream) {
            if let Some(at) = again {
                let _in_time = timeout_at(at, upstream.turn(&mut turn)).await;
            } else {
                upstream.turn(&mut turn).await;
            }
            self.refresh();
            if again.map_or(turn.leaves, |at| at <= Instant::now()) {
                again = (!self.replace(&upstream)).then(|| self.make_place(&upstream));
            }
            for client in turn.touched.drain(..) {
                client.flush();
            }
            if let Some((took, came)) = turn.measured.take() {
                self.whole.overhead.observe(took + came.elapsed());
            }
            for lost in mem::take(&mut turn.lost) {
                let client = Rc::clone(&lost.entry.client);
                client.lost(lost);
                client.wake();
            }
            self.places_are_free();
        }
        let cores = self.whole.cores.borrow().clone();
        cores.iter().for_each(Self::place_has_come);
    }

    /// Answers reads from the cache that have waited for `cache.answer_after`, while the backend is suspect.
    async fn watch(self: Rc<Self>) {
        loop {
            self.backend.suspect().await;
            if let Some(before) = Instant::now().checked_sub(self.backend.answer_after()) {
                // What was answered may leave room for more.
                while self.answers_late_reads(before) {}
            }
            sleep(LOOK_FOR_LATE).await;
        }
    }

    /// Answers reads from the cache that have waited since `before`, of each client the one that it waits for: what is
    /// cached may be older than an unanswered write before a later one. Whether there were any.
    fn answers_late_reads(&self, before: Instant) -> bool {
        let max_stale = self.settings.max_stale;
        let mut touched: Vec<Rc<Client>> = Vec::new();
        let mut look = |entry: &mut Entry, request: &[u8]| {
            if entry.client.takes_instead(entry.seq)
                && let Some((lane, key)) = self.slot_of(request)
                && let Some(ticket) = &mut entry.ticket
                && let Some(instead) = ticket.instead((lane, &key), max_stale, |value| {
                    telling::in_protocol(value, entry.client.protocol(), false).is_some()
                })
            {
                // What comes later is its ticket's alone.
                entry.note = Note::None;
                // The next of the same client may be the one that it waits for now.
                entry.client.answered_instead(entry.seq, instead);
                if entry.client.touch() {
                    touched.push(Rc::clone(&entry.client));
                }
            }
        };
        self.links().iter().for_each(|link| link.late_reads(before, &mut look));
        for client in &touched {
            client.flush();
        }
        !touched.is_empty()
    }

    /// The cache's entry of a read that has exactly one.
    fn slot_of(&self, request: &[u8]) -> Option<(LaneId, Bytes)> {
        let plan = self.connector().plan(Bytes::copy_from_slice(request)).ok()?;
        let Access::Read(mut read) = plan.access else { return None };
        match (read.slots.pop(), read.slots.is_empty()) {
            (Some(slot), true) => Some((slot.lane, slot.key)),
            _ => None,
        }
    }

    /// The connection that clients of `protocol` share.
    pub(super) fn link(&self, protocol: Protocol) -> Rc<Upstream> {
        let [second, third] = &*self.links.borrow();
        Rc::clone(if protocol == Protocol::Resp2 { second } else { third })
    }

    /// The connector in effect.
    pub(super) fn connector(&self) -> Arc<RedisConnector> {
        Arc::clone(&self.connector.borrow())
    }

    /// Takes note of a connector that has replaced the one in effect. To be called before commands are dispatched.
    pub(super) fn refresh(&self) {
        let current = self.backend.connector();
        if !std::ptr::addr_eq(Arc::as_ptr(&current), Arc::as_ptr(&self.connector.borrow()))
            && let Some(next) = redis_of(current)
        {
            self.links().iter().for_each(|link| link.use_connector(&next));
            let namespace: Rc<str> = next.links().namespace.as_str().into();
            let address = |it: &RedisConnector| it.links().shared.settings.endpoint.to_string();
            let moved = address(&self.connector.borrow()) != address(&next);
            if self.namespace.replace(Rc::clone(&namespace)) != namespace || moved {
                self.whole.generation.set(self.whole.generation.get() + 1);
            }
            self.connector.replace(next);
        }
    }

    /// The database of the backend, as it is part of lanes.
    pub(super) fn namespace(&self) -> Rc<str> {
        Rc::clone(&self.namespace.borrow())
    }

    /// How often the database of a backend has become another, or its server.
    pub(super) fn generation(&self) -> u64 {
        self.whole.generation.get()
    }

    /// The database of the backend.
    pub(super) fn database(&self) -> u32 {
        self.connector.borrow().links().shared.settings.database
    }

    /// How long a call may take.
    pub(super) fn deadline(&self) -> Duration {
        self.settings.deadline.unwrap_or_else(|| self.backend.deadline())
    }

    /// What is known of the server.
    pub(super) fn server(&self) -> Server {
        let connector = self.connector();
        let shared = &connector.links().shared;
        let version = shared.server.lock().as_ref().and_then(|server| server.version.clone());
        let version = version.unwrap_or_else(|| "7.0.0".to_owned());
        Server { version, resp3: shared.resp3.load(Ordering::Relaxed) }
    }

    /// A client has left: what it has on the shared connections goes on without it.
    pub(super) fn abandon(&self, client: &Rc<Client>) {
        self.links().iter().for_each(|link| {
            link.abandon(client);
            link.wake();
        });
    }

    /// The server refuses what it should not: its name may lead to another one by now.
    pub(super) fn retire(&self) {
        self.links().iter().for_each(|link| link.retire_later());
        for (_, spare) in &*self.pool.borrow() {
            spare.retire_later();
        }
    }

    /// A client waits for a place on an upstream, or in the bulkhead.
    pub(super) fn awaits_place(&self, client: &Rc<Client>) {
        if client.begins_to_await_place() {
            self.awaiting.borrow_mut().push(Rc::clone(client));
        }
    }

    /// What a client is owed is sent once all that can be done now was done for the others too: whoever gets it at once
    /// wakes up at once, and asks again before the next one has been read.
    pub(super) fn sends_later(&self, client: &Rc<Client>) {
        self.outgoing.borrow_mut().push(Rc::clone(client));
        if let Some(waker) = self.sender.take() {
            waker.wake();
        }
    }

    /// Sends what clients are owed. Runs for as long as the door lives.
    pub(super) async fn send_out(self: Rc<Self>) {
        loop {
            until(&self.sender, || !self.outgoing.borrow().is_empty()).await;
            let mut outgoing = self.outgoing.take();
            outgoing.drain(..).for_each(|client| client.flush());
            // No client is polled meanwhile; the room of the list is kept.
            self.outgoing.replace(outgoing);
        }
    }

    /// An upstream has had a turn, and may have given back places, and what was held.
    fn places_are_free(&self) {
        // What has ended may be of a client that has left, who shows nothing any more.
        self.whole.shows_held();
        if self.awaiting.borrow().is_empty() {
            return;
        }
        let mut awaiting = self.awaiting.take();
        awaiting.drain(..).for_each(|client| client.place_is_free());
        // Nobody waits again before it is polled; the room of the list is kept.
        self.awaiting.replace(awaiting);
    }

    /// A client's command waits for the server, behind those of the others.
    pub(super) fn parks(&self, client: &Rc<Client>) {
        let number = self.whole.next_id();
        client.parked_as().set(number);
        self.parked.borrow_mut().insert(number, Rc::clone(client));
        if let Some(waker) = self.unparker.take() {
            waker.wake();
        }
    }

    /// It does no more.
    pub(super) fn is_not_parked(&self, client: &Client) {
        self.parked.borrow_mut().remove(&client.parked_as().take());
    }

    /// Lets clients go on whose command is parked, a few at a time, once the breaker is closed. Runs for as long as the
    /// door lives.
    pub(super) async fn unpark(self: Rc<Self>) {
        loop {
            until(&self.unparker, || !self.parked.borrow().is_empty()).await;
            sleep(UNPARK_EVERY).await;
            let failed = self.failed_pins.get().min(FAILED_PINS_MAX);
            let more = UNPARK_EVERY * ((1_u32 << failed) - 1);
            let _opened = timeout(more, until(&self.unparker, || !self.are_pins_failing())).await;
            if self.backend.is_suspect() {
                continue;
            }
            // One finds out whether the server takes connections again.
            let at_once = if self.are_pins_failing() { 1 } else { UNPARK_AT_ONCE };
            for _ in 0..at_once {
                let Some((_, client)) = self.parked.borrow_mut().pop_first() else { break };
                client.may_go();
            }
        }
    }

    /// A connection of a client's own could not be opened.
    pub(super) fn pin_failed(&self) {
        self.failed_pins.set(self.failed_pins.get().saturating_add(1));
    }

    /// One could: those who are parked need not wait any longer to find that out.
    fn pin_opened(&self) {
        self.failed_pins.set(0);
        if let Some(waker) = self.unparker.take() {
            waker.wake();
        }
    }

    /// Whether the last one could not be opened.
    fn are_pins_failing(&self) -> bool {
        self.failed_pins.get() > 0
    }

    /// Whether a connection that is one client's may write.
    pub(super) fn is_fenced(&self) -> bool {
        self.connector.borrow().links().shared.is_fenced()
    }

    /// Whether a fence could not be raised since then: whoever waits for it need not go on.
    pub(super) fn is_not_fenced_since(&self, since: Instant) -> bool {
        !self.is_fenced() && self.not_fenced.lock().is_some_and(|at| at >= since)
    }

    /// An upstream takes nothing now. If that is because writes may still land, a fence is asked for.
    pub(super) fn asks_for_fence(&self, link: &Upstream) {
        // One that is behind ends once it looks.
        link.wake();
        let connector = self.connector();
        if !self.is_fenced() && !self.fencing.swap(true, Ordering::AcqRel) {
            let (fencing, not_fenced) = (Arc::clone(&self.fencing), Arc::clone(&self.not_fenced));
            let _job = self.main.spawn(async move {
                let links = connector.links();
                let ready = links.writes.ready(links.shared.settings.timeout).await;
                *not_fenced.lock() = ready.is_err().then(Instant::now);
                fencing.store(false, Ordering::Release);
            });
        }
    }

    /// When what a read answers is known to end.
    pub(super) fn ends(&self, connector: &RedisConnector, request: &[u8]) -> Option<Moment> {
        let links = connector.links();
        if links.deadlines().is_empty() {
            return None;
        }
        // Of a command and one word, that is the key.
        let left = if let Some([_, key]) = resp::arguments_of(request) {
            let lately = links.shared.settings.timeout + Duration::from_secs(1);
            links.deadlines().left(key, lately)?
        } else {
            let slot = Slot { lane: LaneId(0), key: Bytes::copy_from_slice(request) };
            connector.expires(&slot)?
        };
        Some(self.backend.now().plus(left))
    }

    /// What is to be noted of a write that is about to be sent over that connection.
    pub(super) fn begins(&self, request: &[u8], link: &Upstream) -> Noting {
        let now = self.backend.steady_unix();
        self.connector.borrow().links().begins(request, (now, now), Some(link.way()))
    }

    /// The same, as it is kept until the write has ended.
    pub(super) fn note(&self, request: &[u8], link: &Upstream) -> Note {
        match self.begins(request, link) {
            Noting::Nothing(on_wire) => Note::Counted(on_wire),
            Noting::Keys(begun, on_wire) => Note::Deadlines(Box::new((begun, on_wire))),
        }
    }

    /// What the answer to a read will be cached as.
    pub(super) fn begins_fills(&self, body: Bytes) -> Option<(Bytes, Read, Fills)> {
        match self.connector().plan(body.clone()).ok()?.access {
            Access::Read(read) => {
                let fills = self.backend.begin_fills(&read);
                Some((body, read, fills))
            }
            Access::Write(_) => None,
        }
    }

    /// How an attempt has ended that the server answered with an error. `None` if that is an answer like any other.
    pub(super) fn failed(
        &self,
        connector: &RedisConnector,
        request: &[u8],
        frame: &[u8],
    ) -> Option<Outcome<'static>> {
        let ended = connector.links().ended(request, Bytes::copy_from_slice(frame));
        let error = ended.result.err()?;
        if outcome::wants_another_connection(&error) {
            self.retire();
        }
        Some(Outcome::Failed { verdict: ended.verdict, error })
    }

    /// What is said of a command that was not executed.
    pub(super) fn unavailable(&self, why: &str) -> Answer {
        telling::unavailable(self.settings.unavailable, why, None)
    }
}

/// Waits until something holds, of which the waker is notified.
async fn until(waker: &Cell<Option<Waker>>, holds: impl Fn() -> bool) {
    poll_fn(|context| {
        if holds() {
            return Poll::Ready(());
        }
        waker.set(Some(context.waker().clone()));
        Poll::Pending
    })
    .await;
}

/// The connector of a Redis.
fn redis_of(connector: Arc<dyn Connector>) -> Option<Arc<RedisConnector>> {
    let any: Arc<dyn std::any::Any + Send + Sync> = connector;
    any.downcast().ok()
}

impl super::client::Inner {
    /// The user id of who calls, or that of nobody.
    pub(super) fn uid(&self) -> u32 {
        self.session.who.map_or(NOBODY, |who| who.uid)
    }

    /// Who asks, and in which protocol.
    pub(super) fn asker(&self) -> Asker {
        Asker {
            who: self.session.who,
            protocol: self.session.protocol,
            commands: None,
            struck: None,
            barred: None,
            ahead: self.ahead,
        }
    }
}
