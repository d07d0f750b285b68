//! What bounds callers: their connections, and the bytes of their calls. It is shared by who calls.
//!
//! Each caller has an [`Account`]: a user on the Unix socket, everybody together on the TCP listener. What an account
//! has of each pool is a [`Part`], given back when dropped. [`fusebox_state::shares`] decides how much an account may
//! have: one alone gets seven eighths of anything, and who has nothing finds something.
//!
//! | pool | units | taken by | for as long as |
//! |---|---|---|---|
//! | connections | 1,280 | a connection | it is open |
//! | spare | 64 | a connection above those | one request: health and orders are answered, others get 429 |
//! | bytes | `calls.bytes` | bodies, [`COPIES`] times, replies and long listings | they are held, an answer until it is written |
//! | listeners | 64 | a listener to events or a live query; a request for earlier events | it listens, or is being answered |
//! | pages | 64 | an open status page | it is open |
//!
//! Nothing waits at a gate: who finds it full is refused at once and may come again. Health and orders take nothing
//! but a connection, so no call keeps them out.
//!
//! A wire door has a gate of its own ([`Gate::of_door`]): its connections and the bytes of its requests, nothing else.
//!
//! A call has no place but its connection, which carries one at a time. So a call that waits (for its body, which
//! trickles in, or for a lane) holds nothing that another connection needs, and the bound of connections is the bound
//! of what waits. How many calls go on the wire is for the bulkhead to say.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use fusebox_state::shares::{Holding, Pool};
use parking_lot::Mutex;

use super::{peer::Caller, refusal::Full};

/// Connections at once. A caller alone gets 1,120 of them.
const CONNECTIONS: u64 = 1_280;
/// Connections above those, for one request each.
const SPARE: u64 = 64;
/// Listeners to events, and open pages.
const LISTENERS: u64 = 64;
/// How often a call's body is held at once: as it came, and as it is sent or stored.
pub(crate) const COPIES: u64 = 2;
/// A body of less weighs nothing: the number of connections bounds those.
const LIGHT: u64 = 1_024;
/// Above so many accounts those that nobody has any more are forgotten.
const ACCOUNTS: usize = 64;

/// A value for each pool.
#[derive(Debug, Default)]
struct Each<T> {
    connections: T,
    spare: T,
    bytes: T,
    listeners: T,
    pages: T,
}

/// What a part is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooled {
    /// Connections.
    Connections,
    /// Connections for one request.
    Spare,
    /// Bytes of calls in flight.
    Bytes,
    /// Listeners to events.
    Listeners,
    /// Open status pages.
    Pages,
}

impl Pooled {
    /// What is said to who finds none left.
    pub(crate) fn full(self) -> Full {
        Full(match self {
            Self::Connections | Self::Spare => "too many connections are open",
            Self::Bytes => "too many bytes are in flight",
            Self::Listeners => "too many clients are following the events",
            Self::Pages => "too many clients are following the status page",
        })
    }
}

impl<T> Each<T> {
    fn of(&self, what: Pooled) -> &T {
        match what {
            Pooled::Connections => &self.connections,
            Pooled::Spare => &self.spare,
            Pooled::Bytes => &self.bytes,
            Pooled::Listeners => &self.listeners,
            Pooled::Pages => &self.pages,
        }
    }
}

impl Each<Pool> {
    /// Nothing for anybody.
    fn none() -> Self {
        let none = || Pool::new(0);
        Self { connections: none(), spare: none(), bytes: none(), listeners: none(), pages: none() }
    }
}

/// Among whom a gate shares what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Each user of this host.
    Users,
    /// Nobody: whoever comes is [`Holder::Network`].
    Nobody,
}

/// Whose share something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// A user of this host.
    User(u32),
    /// Everybody on TCP.
    Network,
}

/// The gate.
pub(crate) struct Gate {
    pools: Arc<Each<Pool>>,
    /// Looked up once a connection.
    accounts: Mutex<HashMap<Holder, Weak<Account>>>,
}

/// What a caller has of everything. It is there while the caller is connected or has a part of something.
pub(crate) struct Account {
    pools: Arc<Each<Pool>>,
    held: Each<Holding>,
}

/// A part of a pool, given back when dropped.
pub(crate) struct Part {
    account: Arc<Account>,
    what: Pooled,
    units: u64,
}

impl Gate {
    /// A gate for so many bytes of calls in flight.
    pub(crate) fn new(bytes: u64) -> Self {
        let pools = Each {
            connections: Pool::new(CONNECTIONS),
            spare: Pool::new(SPARE),
            bytes: Pool::new(bytes),
            listeners: Pool::new(LISTENERS),
            pages: Pool::new(LISTENERS),
        };
        Self { pools: Arc::new(pools), accounts: Mutex::default() }
    }

    /// A gate of one wire door, for so many connections and bytes of requests. What
    /// nobody shares, the single holder gets whole.
    pub(crate) fn of_door(connections: u64, bytes: u64, sharing: Sharing) -> Self {
        let pool = |units: u64| match sharing {
            Sharing::Users => Pool::new(units),
            // Its share of this is what it is to have.
            Sharing::Nobody => Pool::new(units.saturating_add(units.div_ceil(7))),
        };
        let pools =
            Each { connections: pool(connections), bytes: pool(bytes), ..Each::<Pool>::none() };
        Self { pools: Arc::new(pools), accounts: Mutex::default() }
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> u64 {
        self.pools.connections.used()
    }

    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> u64 {
        self.pools.bytes.used()
    }

    /// Changes how many bytes of calls may be in flight.
    pub(crate) fn set_bytes(&self, bytes: u64) {
        self.pools.bytes.set_units(bytes);
    }

    /// The account of a holder.
    pub(crate) fn account(&self, holder: Holder) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.get(&holder).and_then(Weak::upgrade) {
            return account;
        }
        if accounts.len() >= ACCOUNTS {
            accounts.retain(|_, account| account.strong_count() > 0);
        }
        let pools = Arc::clone(&self.pools);
        let account = Arc::new(Account { pools, held: Each::default() });
        accounts.insert(holder, Arc::downgrade(&account));
        account
    }
}

impl Account {
    /// Takes `units` of a pool.
    ///
    /// # Errors
    /// So many are not left, or are not left to this caller.
    pub(crate) fn take(self: &Arc<Self>, what: Pooled, units: u64) -> Result<Part, Full> {
        let mut part = self.nothing(what);
        part.grow(units)?;
        Ok(part)
    }

    /// A part of nothing yet.
    pub(crate) fn nothing(self: &Arc<Self>, what: Pooled) -> Part {
        Part { account: Arc::clone(self), what, units: 0 }
    }

    /// The largest body that can ever be held, in bytes.
    pub(crate) fn body_max(&self) -> u64 {
        self.pools.bytes.units() / COPIES
    }
}

impl Part {
    fn grow(&mut self, units: u64) -> Result<(), Full> {
        if units == 0 {
            return Ok(());
        }
        let Self { account, what, .. } = self;
        if !account.pools.of(*what).try_take(account.held.of(*what), units) {
            return Err(what.full());
        }
        self.units += units;
        Ok(())
    }

    /// Grows until this is as much as a body of so many bytes weighs, with its copies.
    ///
    /// # Errors
    /// So many are not left, or are not left to this caller.
    pub(crate) fn hold_body(&mut self, bytes: u64) -> Result<(), Full> {
        let weight = if bytes < LIGHT { 0 } else { bytes * COPIES };
        self.grow(weight.saturating_sub(self.units))
    }

    /// Whether this is nothing.
    pub(crate) fn is_nothing(&self) -> bool {
        self.units == 0
    }

    /// Counts `units` more that are there already, whether or not so many are left.
    pub(crate) fn add(&mut self, units: u64) {
        let Self { account, what, .. } = self;
        account.pools.of(*what).take(account.held.of(*what), units);
        self.units += units;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let Self { account, what, units } = self;
        account.pools.of(*what).give_back(account.held.of(*what), *units);
    }
}

/// Whose share a connection of `caller` is.
pub(crate) fn holder_of(caller: Caller) -> Holder {
    match caller {
        Caller::Local { uid, .. } => Holder::User(uid),
        Caller::Network => Holder::Network,
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Bytes that are taken.
    pub(crate) fn bytes_used(gate: &Gate) -> u64 {
        gate.pools.bytes.used()
    }

    /// A user of this host.
    pub(crate) fn user(uid: u32) -> Holder {
        Holder::User(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::user, *};

    #[test]
    fn parts_are_bounded_and_come_back() {
        let gate = Gate::new(4 << 10);
        let account = gate.account(user(1));
        let all: Vec<Part> = std::iter::from_fn(|| account.take(Pooled::Pages, 1).ok()).collect();
        let again = account.take(Pooled::Pages, 1).err();
        assert_eq!(
            (all.len(), again),
            (56, Some(Full("too many clients are following the status page")))
        );
        let mut bytes = account.nothing(Pooled::Bytes);
        assert_eq!((bytes.hold_body(LIGHT - 1), bytes.units), (Ok(()), 0));
        assert_eq!((bytes.hold_body(2 << 10), bytes.units), (Ok(()), 4 << 10));
        assert_eq!(bytes.grow(1), Err(Full("too many bytes are in flight")));
        drop((all, bytes));
        assert_eq!((gate.pools.bytes.used(), gate.pools.pages.used()), (0, 0));
    }

    #[test]
    fn whoever_has_nothing_finds_something_whatever_one_caller_takes() {
        let gate = Gate::new(1 << 10);
        for what in [Pooled::Connections, Pooled::Spare, Pooled::Bytes, Pooled::Listeners] {
            for flooder in [Holder::Network, user(1), user(2)] {
                let flooding = gate.account(flooder);
                let flood: Vec<Part> = std::iter::from_fn(|| flooding.take(what, 1).ok()).collect();
                let units = gate.pools.of(what).units();
                assert_eq!(flood.len() as u64, units / 8 * 7, "{what:?}");
                assert!(gate.account(user(3)).take(what, 1).is_ok());
            }
        }
    }

    #[test]
    fn a_door_has_as_many_connections_as_it_is_to_have() {
        let taken = |connections: u64, sharing| {
            let gate = Gate::of_door(connections, 0, sharing);
            let account = gate.account(Holder::Network);
            let all: Vec<Part> =
                std::iter::from_fn(|| account.take(Pooled::Connections, 1).ok()).collect();
            assert_eq!(gate.connections(), all.len() as u64);
            all.len() as u64
        };
        for connections in [1, 2, 6, 7, 8, 9, 63, 64, 1_000, 10_000] {
            assert_eq!(taken(connections, Sharing::Nobody), connections);
        }
        assert_eq!(taken(10_000, Sharing::Users), 8_750);
        assert_eq!(taken(1, Sharing::Users), 1);
    }

    #[test]
    fn an_account_lasts_as_long_as_anything_is_held() {
        let gate = Gate::new(1);
        let part = gate.account(user(1)).take(Pooled::Pages, 1).expect("it is free");
        assert_eq!(gate.account(user(1)).held.pages.units(), 1);
        for uid in 10..10 + 2 * ACCOUNTS {
            let _gone = gate.account(user(u32::try_from(uid).unwrap()));
        }
        assert!(gate.accounts.lock().len() <= ACCOUNTS, "who left is forgotten");
        assert_eq!(gate.account(user(1)).held.pages.units(), 1);
        drop(part);
        assert_eq!(gate.account(user(1)).held.pages.units(), 0);
    }
}
