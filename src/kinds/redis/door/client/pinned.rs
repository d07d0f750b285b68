//! What becomes of a command of a client that has an upstream of its own, or needs one: see [`pin`](super::super::pin).

use std::rc::Rc;

use fusebox_actors::{Admission, OtherWay, PlainAccess, PlainPlan, Ticket, trace::CallTrace};
use fusebox_state::{LaneId, Lanes};
use tokio::time::Instant;

use super::{Carriage, Client, Inner, ROUTE, Stuck};
use crate::kinds::redis::{
    door::{
        class::{Class, Local, Pinned},
        pin::{Barred, Listening, PinnedTo, Pinning, STILL},
        telling::{self, Protocol},
        upstream::{Note, Upstream},
    },
    protocol::{
        commands::{Flags, Spec},
        resp, rules,
    },
};

/// A command that was sent. An error is what it is stuck on, or `None` if it was answered instead.
pub(super) type Sent = Result<(), Option<Stuck>>;

/// A read of no lane: who gets leave for it may ask the backend.
const ASKS: PlainAccess<'static> = PlainAccess::Read { keyed: true, slot: None, max_stale: None };

/// A command that is known.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    pub(super) spec: &'a Spec,
    pub(super) class: Class,
    pub(super) args: &'a [&'a [u8]],
    pub(super) request: &'a [u8],
    pub(super) now: Instant,
}

/// Why a command gets no leave.
enum Denied {
    /// Not yet.
    Stuck(Stuck),
    /// It is *unavailable*, for this reason.
    Told(String),
}

impl Inner {
    /// A command of a client that is pinned, or by which it is pinned.
    pub(super) fn through_pin(&mut self, client: &Rc<Client>, said: Said<'_>) -> Option<Stuck> {
        // What is on the shared connection is answered first: the order of the two is not known.
        if self.pinned.is_none() && !self.is_answered() {
            return Some(Stuck::Others);
        }
        let sent = match self.pinned.as_ref().map_or(Pinning::Counted, PinnedTo::state) {
            Pinning::Raw => return self.of_listener(client, said),
            Pinning::Within => self.within(client, said),
            Pinning::Counted => match said.class {
                Class::Pinned(Pinned::Multi) => self.multi(client, said),
                Class::Pinned(Pinned::Exec | Pinned::Discard | Pinned::Unwatch) => {
                    self.outside(client, said)
                }
                Class::Pinned(Pinned::Watch | Pinned::Blocks) => self.without_place(client, said),
                Class::Pinned(Pinned::Subscribes | Pinned::Monitors) => self.listen(client, said),
                _ => return self.pinned_call(client, said),
            },
        };
        sent.err().flatten()
    }

    /// A command that nobody knows, of a client whose commands are relayed.
    pub(super) fn unknown_through_pin(
        &mut self,
        client: &Rc<Client>,
        args: &[&[u8]],
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        if self.pinned.as_ref().is_some_and(|pinned| pinned.state() == Pinning::Within) {
            return self.queue(client, &Lanes::All, request, now).err().flatten();
        }
        match self.no_listener(args) {
            Ok(()) => self.general(client, args, request, now),
            Err(stuck) => stuck,
        }
    }

    /// Another database is asked for. What follows waits until the server has said whether it is there.
    pub(super) fn select(
        &mut self,
        client: &Rc<Client>,
        database: u32,
        now: Instant,
    ) -> Option<Stuck> {
        if self.pinned.is_none() && database == client.core.database() {
            self.session.database = database;
            self.barred = None;
            self.answer(b"+OK\r\n");
            return None;
        }
        let select = resp::command(&[&b"SELECT"[..], database.to_string().as_bytes()]);
        let sent = self.enter(client, now).and_then(|upstream| {
            self.send(client, &upstream, (None, Note::Selects(database), true), &select, now)
        });
        match sent {
            Ok(()) => self.selecting = true,
            Err(None) => self.barred = Some(Barred::Database),
            Err(Some(_)) => {}
        }
        sent.err().flatten()
    }

    /// The server has answered a SELECT.
    pub(super) fn selected(&mut self, database: u32, frame: &[u8]) {
        if frame.starts_with(b"+")
            && let Some(pinned) = &mut self.pinned
        {
            pinned.selected(Some(database));
            self.session.database = database;
            self.barred = None;
        }
    }

    /// A command while something stands in its way that was not carried out. `false` if it may pass.
    pub(super) fn is_barred(&mut self, client: &Client, class: Class) -> bool {
        let (barred, backend) = (self.barred, client.core.backend.name());
        let why = match (barred, class) {
            (None, _) | (_, Class::Local(Local::Quit | Local::Reset)) => return false,
            (Some(Barred::Transaction), Class::Pinned(Pinned::Exec)) => {
                self.barred = None;
                let why = "EXECABORT Transaction discarded because of previous errors.";
                self.answer(&telling::error(why));
                return true;
            }
            (Some(Barred::Transaction), Class::Pinned(Pinned::Discard)) => {
                self.barred = None;
                self.answer(b"+OK\r\n");
                return true;
            }
            (Some(Barred::Database), Class::Local(_)) => return false,
            (Some(Barred::Transaction), _) => {
                format!("the MULTI before it did not reach {backend}")
            }
            (Some(Barred::Database), _) => {
                format!("the SELECT before it did not reach {backend}")
            }
        };
        let answer = client.core.unavailable(&why);
        self.answer_with(answer);
        true
    }

    fn multi(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let sent = self.enter(client, said.now).and_then(|upstream| {
            let how = (None, Note::None, true);
            self.send(client, &upstream, how, said.request, said.now)
        });
        match (sent, &mut self.pinned) {
            (Ok(()), Some(pinned)) => pinned.begin(),
            (Err(None), _) => self.barred = Some(Barred::Transaction),
            _ => {}
        }
        sent
    }

    /// What ends a transaction, where there is none. The server says what is wrong, or what no longer is watched.
    fn outside(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let sent = match &self.pinned {
            Some(pinned) => {
                let upstream = Rc::clone(pinned.upstream());
                let how = (None, Note::None, true);
                self.send(client, &upstream, how, said.request, said.now)
            }
            None if said.class == Class::Pinned(Pinned::Unwatch) => {
                self.answer(b"+OK\r\n");
                Ok(())
            }
            None => {
                let name = said.spec.name.to_ascii_uppercase();
                self.answer(&telling::error(&format!("ERR {name} without MULTI")));
                Ok(())
            }
        };
        if sent.is_ok()
            && let Some(pinned) = &mut self.pinned
        {
            pinned.unwatch();
        }
        sent
    }

    /// A command between MULTI and EXEC, and these two.
    fn within(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let Some(pinned) = &mut self.pinned else { return Ok(()) };
        let sent = match said.class {
            Class::Pinned(Pinned::Exec) => self.exec(client, said),
            Class::Pinned(Pinned::Discard) => {
                let upstream = Rc::clone(pinned.upstream());
                let how = (None, Note::None, true);
                self.send(client, &upstream, how, said.request, said.now)
            }
            class => {
                let lanes = self.lanes_of(client, said);
                self.queue(client, &lanes, said.request, said.now)?;
                if class == Class::Local(Local::Select)
                    && let Some(pinned) = &mut self.pinned
                {
                    pinned.selected(None);
                }
                return Ok(());
            }
        };
        if sent.is_ok()
            && let Some(pinned) = &mut self.pinned
        {
            pinned.end();
        }
        sent
    }

    /// A command that the server queues until EXEC.
    fn queue(&mut self, client: &Rc<Client>, lanes: &Lanes, request: &[u8], now: Instant) -> Sent {
        let Some(pinned) = &mut self.pinned else { return Ok(()) };
        let upstream = Rc::clone(pinned.upstream());
        let sent = self.send(client, &upstream, (None, Note::None, true), request, now);
        if let Some(pinned) = &mut self.pinned {
            match sent {
                Ok(()) => pinned.add(lanes),
                Err(None) => pinned.spoil(),
                Err(Some(_)) => {}
            }
        }
        sent
    }

    /// EXEC, with the lanes of all that is within.
    fn exec(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let Some(pinned) = &self.pinned else { return Ok(()) };
        let (upstream, lanes) = (Rc::clone(pinned.upstream()), pinned.lanes());
        if !upstream.takes(said.request.len()) {
            return self.not_taken(client, &upstream, said.now);
        }
        let why = if pinned.is_spoilt() {
            "of previous errors.".to_owned()
        } else {
            let access = PlainAccess::Write { absolute: false };
            match self.leave(client, &lanes, access, "EXEC", said.now) {
                // Nobody else can run it again: what failed is told.
                Ok(ticket) => {
                    let how = (Some(ticket), Note::None, true);
                    return self.send(client, &upstream, how, said.request, said.now);
                }
                Err(Denied::Stuck(stuck)) => return Err(Some(stuck)),
                Err(Denied::Told(why)) => format!("of: fusebox: {why}"),
            }
        };
        let discard = resp::command(&["DISCARD"]);
        self.send(client, &upstream, (None, Note::Own, true), &discard, said.now)?;
        self.answer(&telling::error(&format!("EXECABORT Transaction discarded because {why}")));
        Ok(())
    }

    /// A command that holds no place: one that may wait for others, whose keys others may write meanwhile, or WATCH.
    /// It goes once no queued write stands before its keys.
    fn without_place(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let lanes = self.lanes_of(client, said);
        let upstream = self.enter_with(client, &lanes, said.now)?;
        let blocks = said.class == Class::Pinned(Pinned::Blocks);
        let note = if blocks {
            client.core.backend.wrote(&lanes);
            Note::Wrote(Box::new(lanes.clone()))
        } else {
            Note::None
        };
        self.send(client, &upstream, (None, note, true), said.request, said.now)?;
        if let Some(pinned) = &mut self.pinned
            && !blocks
        {
            pinned.watch(&lanes);
        }
        Ok(())
    }

    /// A subscription, or MONITOR.
    fn listen(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        if !self.is_answered() {
            return Err(Some(Stuck::Others));
        }
        let upstream = self.enter(client, said.now)?;
        // What the door itself has asked is answered first, too: the answer would be taken for something told.
        if !upstream.is_idle() {
            return Err(Some(Stuck::Others));
        }
        let monitors = said.class == Class::Pinned(Pinned::Monitors);
        let relayed = monitors || self.session.protocol == Protocol::Resp2;
        // In RESP3 it is answered by what the server tells, or by an error. HELLO is never answered by one.
        let hello = resp::command(&["HELLO"]);
        let mark = if relayed { &[] } else { &hello[..] };
        if !upstream.takes(said.request.len() + mark.len()) || !upstream.send_raw(said.request) {
            return self.not_taken(client, &upstream, said.now);
        }
        if let Some(pinned) = &mut self.pinned {
            pinned.listen(monitors, relayed);
        }
        if relayed {
            return Ok(());
        }
        self.send(client, &upstream, (None, Note::Follows, true), mark, said.now)
    }

    /// A command of a listener: the server answers it among what it tells.
    fn of_listener(&mut self, client: &Rc<Client>, said: Said<'_>) -> Option<Stuck> {
        let subscribes = said.class == Class::Pinned(Pinned::Subscribes);
        if subscribes || &*said.spec.name == "ping" {
            let upstream = Rc::clone(self.pinned.as_ref()?.upstream());
            return (!upstream.send_raw(said.request)).then_some(Stuck::Place);
        }
        match self.no_listener(said.args) {
            Ok(()) => self.general(client, said.args, said.request, said.now),
            Err(stuck) => stuck,
        }
    }

    /// Whether a client has stopped listening, so that its commands are answered one by one again.
    fn no_listener(&mut self, args: &[&[u8]]) -> Sent {
        let Some(pinned) = &mut self.pinned else { return Ok(()) };
        match pinned.listening() {
            Listening::Perhaps if pinned.upstream().send_raw(STILL) => {
                pinned.ask();
                Err(Some(Stuck::Others))
            }
            Listening::Perhaps => Err(Some(Stuck::Place)),
            Listening::Asked => Err(Some(Stuck::Others)),
            Listening::No => {
                pinned.listens_no_more();
                Ok(())
            }
            Listening::Yes | Listening::Monitor => {
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
    fn pinned_call(&mut self, client: &Rc<Client>, said: Said<'_>) -> Option<Stuck> {
        let pinned = self.pinned.as_ref()?;
        let upstream = Rc::clone(pinned.upstream());
        if pinned.database() == Some(client.core.database()) {
            return self.planned(client, &upstream, said.request, said.now);
        }
        let lanes = self.lanes_of(client, said);
        let carriage = Carriage::elsewhere(&lanes, said.spec.flags.has(Flags::READONLY), "command");
        self.carry(client, &upstream, carriage, said.request, said.now)
    }

    /// The client's own upstream, if the backend may be asked.
    fn enter(&mut self, client: &Rc<Client>, now: Instant) -> Result<Rc<Upstream>, Option<Stuck>> {
        self.enter_with(client, &Lanes::new([]), now)
    }

    /// The same, once no queued write stands in these lanes.
    fn enter_with(
        &mut self,
        client: &Rc<Client>,
        lanes: &Lanes,
        now: Instant,
    ) -> Result<Rc<Upstream>, Option<Stuck>> {
        match self.leave(client, lanes, ASKS, "command", now) {
            // That it got permit and place says that the backend may be asked: it keeps neither.
            Ok(ticket) => drop(ticket),
            Err(Denied::Stuck(stuck)) => return Err(Some(stuck)),
            Err(Denied::Told(why)) => {
                let answer = client.core.unavailable(&why);
                self.answer_with(answer);
                return Err(None);
            }
        }
        if self.pinned.is_none() {
            let core = &client.core;
            let Some(upstream) = core.pin(client, self.session.protocol) else {
                self.answer(&telling::error(telling::TOO_MANY));
                return Err(None);
            };
            self.pinned = Some(PinnedTo::new(upstream, core.database()));
        }
        self.pinned.as_ref().map(|pinned| Rc::clone(pinned.upstream())).ok_or(None)
    }

    /// Whether an unknown command may be sent: an error is what is said instead.
    pub(super) fn may_ask_all(&mut self, client: &Rc<Client>, now: Instant) -> Sent {
        match self.leave(client, &Lanes::All, ASKS, "unknown", now) {
            Ok(_) => Ok(()),
            Err(Denied::Stuck(stuck)) => Err(Some(stuck)),
            Err(Denied::Told(why)) => {
                let answer = client.core.unavailable(&why);
                self.answer_with(answer);
                Err(None)
            }
        }
    }

    /// Leave for a command that goes over the client's own connection or not at all.
    fn leave(
        &self,
        client: &Client,
        lanes: &Lanes,
        access: PlainAccess<'_>,
        operation: &'static str,
        now: Instant,
    ) -> Result<Ticket, Denied> {
        let core = &client.core;
        let (priority, trace) = (core.settings.priority, CallTrace::new(ROUTE));
        let plan = PlainPlan { lanes, access, priority, operation, trace };
        let late = self.is_late(client, now);
        Err(match core.backend.admit(&plan) {
            Admission::Go(ticket) => return Ok(ticket),
            Admission::OtherWay(OtherWay::Full) if !late => Denied::Stuck(Stuck::Place),
            Admission::OtherWay(OtherWay::Lanes) if !late => Denied::Stuck(Stuck::Lanes),
            Admission::OtherWay(OtherWay::Lanes) => {
                Denied::Told("queued writes stand before it".to_owned())
            }
            _ => Denied::Told(format!("{} is not to be asked now", core.backend.name())),
        })
    }

    /// The lanes of a command in the client's database; all if they cannot be told, or it is not about keys alone.
    fn lanes_of(&self, client: &Client, said: Said<'_>) -> Lanes {
        let Said { spec, args, .. } = said;
        let database = match &self.pinned {
            Some(pinned) => pinned.database(),
            None => Some(client.core.database()),
        };
        let (Some(database), Some(places)) = (database, spec.keys(args)) else { return Lanes::All };
        let is_wide = match rules::kind(spec) {
            // WAIT and its like wait for others, and change nothing.
            _ if said.class == Class::Pinned(Pinned::Blocks) => false,
            rules::Kind::Barrier(_) => true,
            rules::Kind::Script { reads } => !reads && places.is_empty(),
            _ => false,
        };
        if is_wide {
            return Lanes::All;
        }
        let namespace = database.to_string();
        let keys = places.iter().filter_map(|place| args.get(*place));
        Lanes::new(keys.map(|key| LaneId::of(namespace.as_bytes(), key)))
    }
}
