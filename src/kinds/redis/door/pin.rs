//! A client that needs an upstream of its own.
//!
//! From the first command that belongs to a connection (MULTI, WATCH, BLPOP, SUBSCRIBE, MONITOR, another database) until
//! the client leaves, everything that it says goes over one connection that nobody else uses. If that is lost, the
//! client's own is reset: whatever it believed of the connection's state is gone.
//!
//! # Invariants
//! 1. A command outside a transaction has its leave like one on the shared connection: breaker, bulkhead, lanes.
//! 2. What is said between MULTI and EXEC changes nothing yet and needs no leave. EXEC takes the lanes of all of it; if
//!    it gets no leave, the transaction is discarded at the server, and the client is told EXECABORT.
//! 3. A command that blocks holds neither permit nor place. Its keys are free of queued writes when it is sent, and what
//!    is cached of them is dropped when it is sent and when it is answered.
//! 4. A listener's connection is relayed: what the server says goes on as it comes, and only what a server takes of a
//!    listener is sent. Before anything else is, the server must have said that it listens no more.
//! 5. A pinned connection raises no fence: it waits until the backend's stands.
//! 6. Of other databases than the backend's nothing is cached, queued or repeated.

use std::rc::Rc;

use fusebox_actors::{Admission, OtherWay, PlainAccess, PlainPlan, Ticket, trace::CallTrace};
use fusebox_state::{LaneId, Lanes};
use tokio::time::Instant;

use super::{
    class::{Class, Local, Pinned},
    client::{Carriage, Client, Inner, ROUTE, Stuck},
    telling::{self, Protocol},
    upstream::{Note, Upstream},
};
use crate::kinds::redis::protocol::{
    commands::{Flags, Spec},
    resp,
};

/// More lanes than these are all lanes.
const LANES_MAX: usize = 64;

/// How far a pinned client is from an ordinary one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pinning {
    /// Its commands are answered one by one.
    Counted,
    /// It is between MULTI and EXEC.
    Within,
    /// Whatever the server says goes to it as it comes.
    Raw,
}

/// A client's own upstream.
pub(super) struct PinnedTo {
    upstream: Rc<Upstream>,
    state: Pinning,
    /// The lanes of what was said since MULTI; `None` for all.
    lanes: Option<Vec<LaneId>>,
    /// Something since MULTI was refused here: EXEC must not run the rest.
    spoilt: bool,
    /// The database that was selected there; `None` if that was done in a transaction, which may not have run.
    database: Option<u32>,
    /// What was last heard of whether it still listens.
    listening: Listening,
}

/// Whether a RESP2 client that has subscribed still listens. Only the server knows when its last subscription has ended:
/// it is asked by a PING, which it answers otherwise to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    /// It was not asked.
    Perhaps,
    /// It was asked, and has not answered yet.
    Asked,
    Yes,
    No,
    /// It is a monitor, for ever.
    Monitor,
}

/// What the server is asked, and how it answers to a listener and to others.
const STILL: &[u8] = b"*2\r\n$4\r\nPING\r\n$17\r\nfusebox:listening\r\n";
const STILL_LISTENS: &[u8] = b"*2\r\n$4\r\npong\r\n$17\r\nfusebox:listening\r\n";
const LISTENS_NO_MORE: &[u8] = b"$17\r\nfusebox:listening\r\n";

/// Why a command does not go.
pub(super) enum Kept {
    /// Not yet.
    Stuck(Stuck),
    /// The client is told this.
    Told(String),
}

impl PinnedTo {
    fn new(upstream: Rc<Upstream>, database: u32) -> Self {
        Self {
            upstream,
            state: Pinning::Counted,
            lanes: Some(Vec::new()),
            spoilt: false,
            database: Some(database),
            listening: Listening::Perhaps,
        }
    }

    pub(super) fn state(&self) -> Pinning {
        self.state
    }

    pub(super) fn upstream(&self) -> &Rc<Upstream> {
        &self.upstream
    }

    /// Something was refused: a transaction that it is part of must not run.
    pub(super) fn spoil(&mut self) {
        self.spoilt |= self.state == Pinning::Within;
    }

    pub(super) fn close(&self) {
        self.upstream.close();
    }

    /// The server has said something to a client whose connection is relayed. True for what the door itself had asked.
    pub(super) fn heard(&mut self, frame: &[u8]) -> bool {
        if self.listening != Listening::Asked {
            return false;
        }
        self.listening = match frame {
            STILL_LISTENS => Listening::Yes,
            LISTENS_NO_MORE => Listening::No,
            _ => return false,
        };
        true
    }

    fn add(&mut self, lanes: &Lanes) {
        let Some(all) = &mut self.lanes else { return };
        all.extend_from_slice(lanes.as_slice());
        if lanes.is_all() || all.len() > LANES_MAX {
            self.lanes = None;
        }
    }

    /// The transaction has ended, or will once the server has read what was sent.
    fn forget(&mut self) {
        (self.state, self.lanes, self.spoilt) = (Pinning::Counted, Some(Vec::new()), false);
    }
}

impl Inner {
    /// A database was selected.
    pub(super) fn select(&mut self, client: &Rc<Client>, database: u32) -> Option<Stuck> {
        let core = &client.core;
        if self.pinned.is_none() && database == core.database() {
            self.answer(b"+OK\r\n");
            return None;
        }
        let select = resp::command(&[&b"SELECT"[..], database.to_string().as_bytes()]);
        let stuck = self.pinned_send(client, Note::None, &select, Instant::now());
        if stuck.is_none() {
            self.session.database = database;
            if let Some(pinned) = &mut self.pinned {
                pinned.database = Some(database);
            }
        }
        stuck
    }

    /// A command of a client that is pinned, or by which it is pinned.
    pub(super) fn through_pin(
        &mut self,
        client: &Rc<Client>,
        (spec, class, args): (&Spec, Class, &[&[u8]]),
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        // What is on the shared connection is answered first: the order of the two is not known.
        if self.pinned.is_none() && !self.is_answered() {
            return Some(Stuck::Others);
        }
        let state = self.pinned.as_ref().map_or(Pinning::Counted, PinnedTo::state);
        match (state, class) {
            (Pinning::Raw, Class::Pinned(Pinned::Subscribes)) => self.relay(request),
            (Pinning::Raw, _) if &*spec.name == "ping" => self.relay(request),
            (Pinning::Raw, _) => match self.no_listener(args) {
                Ok(()) => self.general(client, args, request, now),
                Err(stuck) => stuck,
            },
            (_, Class::Pinned(Pinned::Exec)) if state == Pinning::Within => {
                self.exec(client, request, now)
            }
            (Pinning::Within, Class::Pinned(Pinned::Discard)) => {
                let stuck = self.pinned_send(client, Note::None, request, now);
                self.out_of_block(stuck)
            }
            (Pinning::Within, _) => {
                let lanes = self.lanes_of(client, spec, args);
                let stuck = self.queue(client, &lanes, request, now);
                if stuck.is_none()
                    && class == Class::Local(Local::Select)
                    && let Some(pinned) = &mut self.pinned
                {
                    pinned.database = None;
                }
                stuck
            }
            (_, Class::Pinned(Pinned::Multi)) => {
                let stuck = self.pinned_send(client, Note::None, request, now);
                if stuck.is_none()
                    && let Some(pinned) = &mut self.pinned
                {
                    pinned.state = Pinning::Within;
                }
                stuck
            }
            // The server says what is wrong with them.
            (_, Class::Pinned(Pinned::Exec | Pinned::Discard | Pinned::Unwatch)) => {
                self.pinned_send(client, Note::None, request, now)
            }
            (_, Class::Pinned(kind @ (Pinned::Watch | Pinned::Blocks))) => {
                let blocks = kind == Pinned::Blocks;
                self.without_place(client, blocks, (spec, args), request, now)
            }
            (_, Class::Pinned(Pinned::Subscribes)) => {
                let raw = self.session.protocol == Protocol::Resp2;
                self.go_raw(client, (raw, false), request)
            }
            (_, Class::Pinned(Pinned::Monitors)) => self.go_raw(client, (true, true), request),
            (_, Class::Local(Local::Quit | Local::Reset) | Class::Refused(_)) => None,
            (_, Class::Carried | Class::Local(_)) => {
                self.pinned_call(client, spec, args, request, now)
            }
        }
    }

    /// A command that nobody knows, of a client whose commands are relayed.
    pub(super) fn unknown_through_pin(
        &mut self,
        client: &Rc<Client>,
        args: &[&[u8]],
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        if self.pinned.as_ref().is_some_and(|pinned| pinned.state == Pinning::Within) {
            return self.queue(client, &Lanes::All, request, now);
        }
        match self.no_listener(args) {
            Ok(()) => self.general(client, args, request, now),
            Err(stuck) => stuck,
        }
    }

    /// A command between MULTI and EXEC.
    fn queue(
        &mut self,
        client: &Rc<Client>,
        lanes: &Lanes,
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let stuck = self.pinned_send(client, Note::None, request, now);
        if stuck.is_none()
            && let Some(pinned) = &mut self.pinned
        {
            pinned.add(lanes);
        }
        stuck
    }

    /// A command of a listener, which the server answers among what it tells it.
    fn relay(&mut self, request: &[u8]) -> Option<Stuck> {
        if let Some(pinned) = &mut self.pinned {
            pinned.upstream.send_raw(request);
        }
        None
    }

    /// Whether a client has stopped listening, so that its commands are answered one by one again. An error is what the
    /// command at hand is stuck on, or `None` where it was answered.
    fn no_listener(&mut self, args: &[&[u8]]) -> Result<(), Option<Stuck>> {
        let Some(pinned) = &mut self.pinned else { return Ok(()) };
        match pinned.listening {
            Listening::Perhaps => {
                pinned.listening = Listening::Asked;
                pinned.upstream.send_raw(STILL);
                Err(Some(Stuck::Others))
            }
            Listening::Asked => Err(Some(Stuck::Others)),
            Listening::No => {
                (pinned.listening, pinned.state) = (Listening::Perhaps, Pinning::Counted);
                pinned.upstream.set_raw(false);
                Ok(())
            }
            Listening::Yes | Listening::Monitor => {
                if pinned.listening == Listening::Yes {
                    pinned.listening = Listening::Perhaps;
                }
                let name = args.first().copied().unwrap_or_default();
                let name = String::from_utf8_lossy(name.get(..64).unwrap_or(name)).to_lowercase();
                self.answer(&telling::error(&format!(
                    "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are \
                     allowed in this context"
                )));
                Err(None)
            }
        }
    }

    /// An ordinary command of a pinned client.
    fn pinned_call(
        &mut self,
        client: &Rc<Client>,
        spec: &Spec,
        args: &[&[u8]],
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let upstream = self.pinned_upstream(client)?;
        let database = self.pinned.as_ref().and_then(|pinned| pinned.database);
        if database == Some(client.core.database()) {
            return self.planned(client, &upstream, request, now);
        }
        let lanes = self.lanes_of(client, spec, args);
        let reads = spec.flags.has(Flags::READONLY);
        let carriage = Carriage::elsewhere(&lanes, reads, "command");
        self.carry(client, &upstream, carriage, request, now)
    }

    /// EXEC, with the lanes of all that is within.
    fn exec(&mut self, client: &Rc<Client>, request: &[u8], now: Instant) -> Option<Stuck> {
        let pinned = self.pinned.as_mut()?;
        let (upstream, spoilt) = (Rc::clone(&pinned.upstream), pinned.spoilt);
        let lanes = pinned.lanes.clone().map_or(Lanes::All, Lanes::new);
        if !upstream.takes() {
            return Some(Stuck::Place);
        }
        let why = if spoilt {
            "of previous errors.".to_owned()
        } else {
            let access = PlainAccess::Write { absolute: false };
            match self.admitted(client, &lanes, access, "EXEC", now) {
                Ok(ticket) => {
                    // Nobody else can run it again: what failed is told.
                    let how = (Some(ticket), Note::None, true);
                    let stuck = self.send(client, &upstream, how, request, now);
                    return self.out_of_block(stuck);
                }
                Err(Kept::Stuck(stuck)) => return Some(stuck),
                Err(Kept::Told(why)) => format!("of: fusebox: {why}"),
            }
        };
        let discard = resp::command(&["DISCARD"]);
        let stuck = self.send(client, &upstream, (None, Note::Own, true), &discard, now);
        if stuck.is_none() {
            self.answer(&telling::error(&format!("EXECABORT Transaction discarded because {why}")));
        }
        self.out_of_block(stuck)
    }

    /// What ends a transaction was sent, unless it is stuck.
    fn out_of_block(&mut self, stuck: Option<Stuck>) -> Option<Stuck> {
        if stuck.is_none()
            && let Some(pinned) = &mut self.pinned
        {
            pinned.forget();
        }
        stuck
    }

    /// A command that holds no place: one that may wait for others, whose keys others may write meanwhile, or WATCH.
    /// It goes once no queued write stands before its keys.
    fn without_place(
        &mut self,
        client: &Rc<Client>,
        blocks: bool,
        (spec, args): (&Spec, &[&[u8]]),
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let upstream = self.pinned_upstream(client)?;
        let lanes = self.lanes_of(client, spec, args);
        let access = PlainAccess::Read { keyed: true, slot: None, max_stale: None };
        match self.admitted(client, &lanes, access, "command", now) {
            // That it got permit and place says that the backend may be asked: it keeps neither.
            Ok(ticket) => drop(ticket),
            Err(Kept::Stuck(stuck)) => return Some(stuck),
            Err(Kept::Told(why)) => {
                let answer = client.core.unavailable(&why);
                self.answer_with(answer);
                return None;
            }
        }
        let note = if blocks {
            client.core.backend.wrote(&lanes);
            Note::Wrote(Box::new(lanes))
        } else {
            Note::None
        };
        self.send(client, &upstream, (None, note, true), request, now)
    }

    /// Leave for a command that goes over the client's own connection or not at all.
    pub(super) fn admitted(
        &self,
        client: &Client,
        lanes: &Lanes,
        access: PlainAccess<'_>,
        operation: &'static str,
        now: Instant,
    ) -> Result<Ticket, Kept> {
        let core = &client.core;
        let (priority, trace) = (core.settings.priority, CallTrace::new(ROUTE));
        let plan = PlainPlan { lanes, access, priority, operation, trace };
        let late = self.is_late(client, now);
        Err(match core.backend.admit(&plan) {
            Admission::Go(ticket) => return Ok(ticket),
            Admission::OtherWay(OtherWay::Full) if !late => Kept::Stuck(Stuck::Place),
            Admission::OtherWay(OtherWay::Lanes) if !late => Kept::Stuck(Stuck::Lanes),
            Admission::OtherWay(OtherWay::Lanes) => {
                Kept::Told("queued writes stand before it".to_owned())
            }
            _ => Kept::Told(format!("{} is not to be asked now", core.backend.name())),
        })
    }

    /// Everything from here on goes as it is, both ways.
    fn go_raw(
        &mut self,
        client: &Rc<Client>,
        (raw, monitors): (bool, bool),
        request: &[u8],
    ) -> Option<Stuck> {
        if !self.is_answered() {
            return Some(Stuck::Others);
        }
        let upstream = self.pinned_upstream(client)?;
        if let Some(pinned) = &mut self.pinned
            && raw
        {
            upstream.set_raw(true);
            pinned.state = Pinning::Raw;
            pinned.listening = if monitors { Listening::Monitor } else { Listening::Perhaps };
        }
        upstream.send_raw(request);
        None
    }

    fn pinned_send(
        &mut self,
        client: &Rc<Client>,
        note: Note,
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let upstream = self.pinned_upstream(client)?;
        self.send(client, &upstream, (None, note, true), request, now)
    }

    /// The client's own upstream; it is made if there is none. `None` where the command was answered instead: there may
    /// be no more of them.
    fn pinned_upstream(&mut self, client: &Rc<Client>) -> Option<Rc<Upstream>> {
        if self.pinned.is_none() {
            let core = &client.core;
            let Some(upstream) = core.pin(client, self.session.protocol) else {
                self.answer(&telling::error(telling::TOO_MANY));
                return None;
            };
            self.pinned = Some(PinnedTo::new(upstream, core.database()));
        }
        self.pinned.as_ref().map(|pinned| Rc::clone(&pinned.upstream))
    }

    /// The lanes of a command's keys in the client's database; all where they cannot be told.
    fn lanes_of(&self, client: &Rc<Client>, spec: &Spec, args: &[&[u8]]) -> Lanes {
        let database = match &self.pinned {
            Some(pinned) => pinned.database,
            None => Some(client.core.database()),
        };
        let Some(database) = database else { return Lanes::All };
        let namespace = database.to_string();
        let Some(places) = spec.keys(args) else { return Lanes::All };
        let keys = places.iter().filter_map(|place| args.get(*place));
        Lanes::new(keys.map(|key| LaneId::of(namespace.as_bytes(), key)))
    }
}
