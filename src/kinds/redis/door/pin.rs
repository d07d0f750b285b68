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
//! 4. A pinned connection raises no fence: it waits until the backend's stands.
//! 5. Of other databases than the backend's nothing is cached, queued or repeated.

use std::rc::Rc;

use fusebox_actors::{Admission, OtherWay, PlainAccess, PlainPlan, trace::CallTrace};
use fusebox_state::{LaneId, Lanes};
use tokio::time::Instant;

use super::{
    class::{Class, Local, Pinned},
    client::{Carriage, Client, Inner, Stuck},
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
    /// The database that was selected there.
    database: u32,
}

impl PinnedTo {
    fn new(upstream: Rc<Upstream>, database: u32) -> Self {
        let lanes = Some(Vec::new());
        Self { upstream, state: Pinning::Counted, lanes, spoilt: false, database }
    }

    pub(super) fn state(&self) -> Pinning {
        self.state
    }

    pub(super) fn upstream(&self) -> &Rc<Upstream> {
        &self.upstream
    }

    /// Something since MULTI was refused.
    pub(super) fn spoil(&mut self) {
        self.spoilt = true;
    }

    pub(super) fn close(&self) {
        self.upstream.close();
    }

    fn add(&mut self, lanes: &Lanes) {
        let Some(all) = &mut self.lanes else { return };
        all.extend_from_slice(lanes.as_slice());
        if lanes.is_all() || all.len() > LANES_MAX {
            self.lanes = None;
        }
    }

    fn block(&mut self) -> (Lanes, bool) {
        let lanes = self.lanes.replace(Vec::new()).map_or(Lanes::All, Lanes::new);
        self.state = Pinning::Counted;
        (lanes, std::mem::take(&mut self.spoilt))
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
                pinned.database = database;
            }
        }
        stuck
    }

    /// A command of a client that is pinned, or by which it is pinned.
    pub(super) fn through_pin(
        &mut self,
        client: &Rc<Client>,
        spec: &Spec,
        class: Class,
        args: &[&[u8]],
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        // What is on the shared connection is answered first: the order of the two is not known.
        if self.pinned.is_none() && !self.is_answered() {
            return Some(Stuck::Others);
        }
        let state = self.pinned.as_ref().map_or(Pinning::Counted, PinnedTo::state);
        match (state, class) {
            (Pinning::Raw, _) => {
                if let Some(pinned) = &self.pinned {
                    pinned.upstream.send_raw(request);
                }
                None
            }
            (_, Class::Pinned(Pinned::Exec)) if state == Pinning::Within => {
                self.exec(client, request, now)
            }
            (Pinning::Within, Class::Pinned(Pinned::Discard)) => {
                let stuck = self.pinned_send(client, Note::None, request, now);
                if stuck.is_none()
                    && let Some(pinned) = &mut self.pinned
                {
                    let _dropped = pinned.block();
                }
                stuck
            }
            (Pinning::Within, _) => {
                let lanes = self.lanes_of(client, spec, args);
                let stuck = self.pinned_send(client, Note::None, request, now);
                if stuck.is_none()
                    && let Some(pinned) = &mut self.pinned
                {
                    pinned.add(&lanes);
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
            (_, Class::Pinned(Pinned::Watch)) => self.watch(client, spec, args, request, now),
            (_, Class::Pinned(Pinned::Blocks)) => self.block(client, spec, args, request, now),
            (_, Class::Pinned(Pinned::Subscribes)) => {
                let raw = self.session.protocol == Protocol::Resp2;
                self.go_raw(client, raw, request, now)
            }
            (_, Class::Pinned(Pinned::Monitors)) => self.go_raw(client, true, request, now),
            (_, Class::Local(Local::Quit | Local::Reset) | Class::Refused(_)) => None,
            (_, Class::Carried | Class::Local(_)) => {
                self.pinned_call(client, spec, args, request, now)
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
        let database = self.pinned.as_ref().map_or(client.core.database(), |it| it.database);
        if database == client.core.database() {
            return self.planned(client, &upstream, request, now);
        }
        let lanes = self.lanes_of(client, spec, args);
        let access = if spec.flags.has(Flags::READONLY) {
            PlainAccess::Read { keyed: true, slot: None, max_stale: None }
        } else {
            PlainAccess::Write { absolute: false }
        };
        let carriage = Carriage {
            lanes: &lanes,
            access,
            operation: "command",
            cached: false,
            timed: false,
            elsewhere: true,
        };
        self.carry(client, &upstream, carriage, request, now)
    }

    /// EXEC, with the lanes of all that is within.
    fn exec(&mut self, client: &Rc<Client>, request: &[u8], now: Instant) -> Option<Stuck> {
        let core = &client.core;
        let pinned = self.pinned.as_mut()?;
        let (upstream, spoilt) = (Rc::clone(&pinned.upstream), pinned.spoilt);
        let lanes = pinned.lanes.clone().map_or(Lanes::All, Lanes::new);
        if !upstream.takes() {
            return Some(Stuck::Place);
        }
        let plan = PlainPlan {
            lanes: &lanes,
            access: PlainAccess::Write { absolute: false },
            priority: core.settings.priority,
            operation: "EXEC",
            trace: CallTrace::new("/door/redis"),
        };
        let admitted = if spoilt { None } else { Some(core.backend.admit(&plan)) };
        let late = self.is_late(client, now);
        let why = match admitted {
            Some(Admission::Go(ticket)) => {
                // Nobody else can run it again: what failed is told.
                let sent =
                    self.send(client, &upstream, (Some(ticket), Note::None, true), request, now);
                if sent.is_none()
                    && let Some(pinned) = &mut self.pinned
                {
                    let _sent = pinned.block();
                }
                return sent;
            }
            Some(Admission::OtherWay(OtherWay::Full)) if !late => return Some(Stuck::Place),
            Some(Admission::OtherWay(OtherWay::Lanes)) if !late => return Some(Stuck::Lanes),
            Some(Admission::OtherWay(OtherWay::Lanes)) => {
                "queued writes stand before it".to_owned()
            }
            Some(_) => format!("{} is not to be asked now", core.backend.name()),
            None => "of previous errors.".to_owned(),
        };
        let discard = resp::command(&["DISCARD"]);
        if let Some(stuck) = self.send(client, &upstream, (None, Note::Own, true), &discard, now) {
            return Some(stuck);
        }
        if let Some(pinned) = &mut self.pinned {
            let _discarded = pinned.block();
        }
        let because = if spoilt { why } else { format!("of: fusebox: {why}") };
        self.answer(&telling::error(&format!("EXECABORT Transaction discarded because {because}")));
        None
    }

    /// WATCH, once no queued write stands before the keys: it would go unseen.
    fn watch(
        &mut self,
        client: &Rc<Client>,
        spec: &Spec,
        args: &[&[u8]],
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let upstream = self.pinned_upstream(client)?;
        let lanes = self.lanes_of(client, spec, args);
        match self.leave(client, &lanes, now) {
            Ok(()) => self.send(client, &upstream, (None, Note::None, true), request, now),
            Err(stuck) => stuck,
        }
    }

    /// A command that may wait for others.
    fn block(
        &mut self,
        client: &Rc<Client>,
        spec: &Spec,
        args: &[&[u8]],
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let upstream = self.pinned_upstream(client)?;
        let lanes = self.lanes_of(client, spec, args);
        match self.leave(client, &lanes, now) {
            Ok(()) => {
                client.core.backend.wrote(&lanes);
                self.send(
                    client,
                    &upstream,
                    (None, Note::Wrote(Box::new(lanes)), true),
                    request,
                    now,
                )
            }
            Err(stuck) => stuck,
        }
    }

    /// Whether a command that holds no ticket may go. An error is what it is stuck on, or `None` where it was answered.
    fn leave(
        &mut self,
        client: &Rc<Client>,
        lanes: &Lanes,
        now: Instant,
    ) -> Result<(), Option<Stuck>> {
        let core = &client.core;
        let plan = PlainPlan {
            lanes,
            access: PlainAccess::Read { keyed: true, slot: None, max_stale: None },
            priority: core.settings.priority,
            operation: "command",
            trace: CallTrace::new("/door/redis"),
        };
        let late = self.is_late(client, now);
        let why = match core.backend.admit(&plan) {
            // It holds neither permit nor place: that it got both says that the backend may be asked.
            Admission::Go(ticket) => {
                drop(ticket);
                return Ok(());
            }
            Admission::OtherWay(OtherWay::Full) if !late => return Err(Some(Stuck::Place)),
            Admission::OtherWay(OtherWay::Lanes) if !late => return Err(Some(Stuck::Lanes)),
            Admission::OtherWay(OtherWay::Lanes) => "queued writes stand before it".to_owned(),
            _ => format!("{} is not to be asked now", core.backend.name()),
        };
        let answer = core.unavailable(&why);
        self.answer_with(answer);
        Err(None)
    }

    /// Everything from here on goes as it is, both ways.
    fn go_raw(
        &mut self,
        client: &Rc<Client>,
        raw: bool,
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        if !self.is_answered() {
            return Some(Stuck::Others);
        }
        let _ = now;
        let upstream = self.pinned_upstream(client)?;
        if raw {
            upstream.go_raw();
            if let Some(pinned) = &mut self.pinned {
                pinned.state = Pinning::Raw;
            }
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
                self.answer(&telling::error("ERR max number of clients reached"));
                return None;
            };
            self.pinned = Some(PinnedTo::new(upstream, core.database()));
        }
        self.pinned.as_ref().map(|pinned| Rc::clone(&pinned.upstream))
    }

    /// The lanes of a command's keys in the client's database; all where they cannot be told.
    fn lanes_of(&self, client: &Rc<Client>, spec: &Spec, args: &[&[u8]]) -> Lanes {
        let database = self.pinned.as_ref().map_or(client.core.database(), |it| it.database);
        let namespace = database.to_string();
        let Some(places) = spec.keys(args) else { return Lanes::All };
        let keys = places.iter().filter_map(|place| args.get(*place));
        Lanes::new(keys.map(|key| LaneId::of(namespace.as_bytes(), key)))
    }

    fn is_late(&self, client: &Client, now: Instant) -> bool {
        let patience = client.core.patience();
        self.stuck_since().is_some_and(|since| now.duration_since(since) >= patience)
    }
}
