//! What is one for a whole door, whichever databases its clients are in: who is connected, and what is held of them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    rc::{Rc, Weak},
    sync::Arc,
};

use bytes::Bytes;
use fusebox_actors::{Backend, metrics::DoorOverhead};
use tokio::runtime::Handle;

use super::{
    client::{Buffers, Client},
    core::Core,
    counters::Counters,
    held::{Held, Weight},
    local::FIRST_ID,
    settings::Settings,
};

/// How much is read of a client at once.
const SCRATCH: usize = 64 << 10;

/// What is done for a client that has waited for room for long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relief {
    /// Another one goes, or this one's turn to go has not come.
    Wait,
    /// It is the last of those who came: it goes.
    Refused,
    /// It is the one that does not read: it goes.
    TooSlow,
}

/// What is one for the whole door, whichever databases its clients are in.
pub(super) struct Whole {
    pub(super) settings: Rc<Settings>,
    pub(super) counters: Arc<Counters>,
    /// The door's own time of some requests.
    pub(super) overhead: DoorOverhead,
    /// The daemon's own runtime.
    pub(super) main: Handle,
    /// The backends of this kind, of which some may be other databases of the same server.
    pub(super) kin: Vec<Arc<Backend>>,
    /// The databases that clients have been in; the first is the door's own.
    pub(super) cores: RefCell<Vec<Rc<Core>>>,
    /// How often the database of a backend has become another, or its server.
    pub(super) generation: Cell<u64>,
    /// What is read of a client, until it is dispatched.
    pub(super) scratch: RefCell<Vec<u8>>,
    buffers: Rc<Buffers>,
    next_id: Cell<u64>,
    clients: RefCell<HashMap<u64, Weak<Client>>>,
    /// Clients that wait for room in the door.
    short: RefCell<BTreeSet<u64>>,
    /// What is held of the input of all clients, and of all replies, in bytes.
    held: Cell<usize>,
    owed: Cell<usize>,
    /// What is held of requests apart from that, in bytes: on connections, by calls that the core carries, and until
    /// either may begin.
    pub(super) apart: Rc<Cell<usize>>,
    /// Connections that belong to one client each, or to none yet.
    pub(super) pinned: Cell<usize>,
}

impl Whole {
    pub(super) fn new(
        settings: Settings,
        kin: Vec<Arc<Backend>>,
        (counters, overhead): (Arc<Counters>, DoorOverhead),
        main: Handle,
    ) -> Rc<Self> {
        Rc::new(Self {
            settings: Rc::new(settings),
            counters,
            overhead,
            main,
            kin,
            cores: RefCell::default(),
            generation: Cell::new(0),
            scratch: RefCell::new(vec![0; SCRATCH]),
            buffers: Rc::default(),
            next_id: Cell::new(FIRST_ID),
            clients: RefCell::default(),
            short: RefCell::default(),
            held: Cell::new(0),
            owed: Cell::new(0),
            apart: Rc::default(),
            pinned: Cell::new(0),
        })
    }

    /// Counts the connections that belong to one client each.
    pub(super) fn count_pinned(&self) {
        let spare: usize = self.cores.borrow().iter().map(|core| core.spare()).sum();
        self.counters.pinned(self.pinned.get().saturating_sub(spare));
    }

    /// What clients write their replies into.
    pub(super) fn buffers(&self) -> Rc<Buffers> {
        Rc::clone(&self.buffers)
    }

    pub(super) fn next_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    pub(super) fn came(&self, client: &Rc<Client>) {
        self.clients.borrow_mut().insert(client.id(), Rc::downgrade(client));
    }

    pub(super) fn went(&self, client: &Rc<Client>) {
        self.clients.borrow_mut().remove(&client.id());
    }

    /// The client of that number.
    pub(super) fn client(&self, id: u64) -> Option<Rc<Client>> {
        self.clients.borrow().get(&id).and_then(Weak::upgrade)
    }

    /// All that are connected.
    pub(super) fn clients(&self) -> Vec<Rc<Client>> {
        self.clients.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// Holds a request apart from its client's input.
    pub(super) fn keeps(&self, body: Bytes) -> Held {
        Held { weight: self.weighs(body.len()), body }
    }

    /// The same, of so many bytes that the caller keeps.
    pub(super) fn weighs(&self, bytes: usize) -> Weight {
        Weight::new(bytes, &self.apart)
    }

    /// What is held of a client was the first of each pair, and is the second now: of its requests, and of its replies.
    pub(super) fn holds(&self, held: (usize, usize), owed: (usize, usize)) {
        self.held.set((self.held.get() + held.1).saturating_sub(held.0));
        self.owed.set((self.owed.get() + owed.1).saturating_sub(owed.0));
        self.shows_held();
    }

    /// Shows what is held now.
    pub(super) fn shows_held(&self) {
        self.counters.holds(self.held.get() + self.apart.get(), self.owed.get());
    }

    /// Whether so much is held that no more is read for now.
    pub(super) fn is_full(&self) -> bool {
        self.held.get() + self.apart.get() >= self.settings.in_bytes
            || self.owed.get() >= self.settings.out_bytes
    }

    /// A client waits for room.
    pub(super) fn has_no_room(&self, id: u64) {
        self.short.borrow_mut().insert(id);
    }

    /// A client does not wait for room any more.
    pub(super) fn has_room(&self, id: u64) {
        self.short.borrow_mut().remove(&id);
    }

    /// Makes room, as `client` has waited for long enough: see `client/intake.rs`.
    pub(super) fn make_room(&self, client: &Client) -> Relief {
        if self.owed.get() >= self.settings.out_bytes {
            let most = self.clients().into_iter().max_by_key(|client| client.owed());
            return match most {
                Some(most) if most.id() != client.id() => {
                    most.reads_too_slowly();
                    Relief::Wait
                }
                _ => Relief::TooSlow,
            };
        }
        let is_last = self.short.borrow().last().is_none_or(|last| *last <= client.id());
        if is_last { Relief::Refused } else { Relief::Wait }
    }

    /// Closes the connections to all databases.
    pub(super) fn close(&self) {
        self.cores.take().iter().for_each(|core| core.close());
    }
}
