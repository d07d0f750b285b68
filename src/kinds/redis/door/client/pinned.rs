//! What becomes of a command of a client that has an upstream of its own, or needs one: see [`pin`](super::super::pin).

use std::rc::Rc;

use bytes::Bytes;
use fusebox_actors::{Admission, OtherWay, PlainAccess, PlainPlan, Ticket, connector::Connector};
use fusebox_state::{LaneId, Lanes};
use tokio::time::Instant;

use super::{Carriage, Client, Inner, Stuck};
use crate::kinds::redis::{
    door::{
        class::{Class, Pinned},
        core::Core,
        pin::{Barred, PinnedTo, Pinning},
        telling::{self, Protocol},
        upstream::{Awaited, Note, Upstream},
        waiting::Waiting,
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
/// A write to no lane: who gets leave for it may change something.
const CHANGES: PlainAccess<'static> = PlainAccess::Write { absolute: false };

/// A command that is known.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    pub(super) spec: &'a Spec,
    pub(super) class: Class,
    pub(super) args: &'a [&'a [u8]],
    pub(super) request: &'a [u8],
    pub(super) now: Instant,
}

impl Said<'_> {
    /// Whether it may change data. WAIT and its like do not.
    pub(super) fn may_change(self) -> bool {
        self.spec.flags.has(Flags::WRITE)
    }
}

/// Why a command gets no leave.
pub(super) enum Denied {
    /// Not yet.
    Stuck(Stuck),
    /// It is *unavailable*, for this reason.
    Told(String),
}

/// What a SELECT is answered over a connection of a client's own: what it wrote there would pass by that database's
/// cache and queue.
pub(super) fn has_backend(database: u32) -> Bytes {
    telling::error(&format!(
        "ERR fusebox: database {database} has a backend of its own: SELECT it while nothing is watched or subscribed to, \
         and outside of transactions"
    ))
}

/// The database that a SELECT names.
pub(super) fn number(args: &[&[u8]]) -> Option<u32> {
    str::from_utf8(args.get(1)?).ok()?.parse().ok()
}

impl Inner {
    /// A command of a client that is pinned, or by which it is pinned.
    pub(super) fn through_pin(&mut self, client: &Rc<Client>, said: Said<'_>) -> Option<Stuck> {
        // What is on the shared connection is answered first: the order of the two is not known.
        if self.pinned.is_none() && !self.is_answered() {
            return Some(Stuck::Others);
        }
        let sent = match self.pinned.as_ref().map_or(Pinning::Counted, PinnedTo::state) {
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

    /// What becomes of a command of a client that listens, if that is not what becomes of others'.
    pub(super) fn while_listening(&mut self, args: &[&[u8]]) -> Result<(), Option<Stuck>> {
        let Some(pinned) = &mut self.pinned else { return Ok(()) };
        let name = args.first().copied().unwrap_or_default();
        let is = |words: &[&str]| words.iter().any(|it| name.eq_ignore_ascii_case(it.as_bytes()));
        let monitors = pinned.upstream().monitors();
        if !pinned.may_listen() || !monitors && Awaited::of(args).is_some() {
            return Ok(());
        }
        // Whether it still listens is known once all that it has asked is answered.
        if !self.slots.is_empty() {
            return Err(Some(Stuck::Others));
        }
        let takes_all = self.session.protocol == Protocol::Resp3 && !monitors;
        if !pinned.listens() || takes_all || is(&["QUIT", "RESET"]) || !monitors && is(&["PING"]) {
            return Ok(());
        }
        let name = String::from_utf8_lossy(name.get(..64).unwrap_or(name)).to_lowercase();
        self.answer(&telling::error(&format!(
            "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in \
             this context"
        )));
        Err(None)
    }

    /// Another database is asked for. What follows waits until the server has said whether it is there.
    pub(super) fn select(
        &mut self,
        client: &Rc<Client>,
        database: u32,
        now: Instant,
    ) -> Option<Stuck> {
        if let Some(core) = client.core().beside(database) {
            // Nothing but its database may be left on a connection of its own.
            let is_free = self.pinned.as_ref().is_none_or(|pinned| {
                pinned.database().is_some_and(|current| pinned.is_clean(current))
            });
            if is_free {
                if let Some(pinned) = self.pinned.take() {
                    pinned.close();
                }
                self.moves(client, core);
                self.session.select(database);
                self.unbar(Barred::Database);
                self.answer(b"+OK\r\n");
                return None;
            }
            if !Rc::ptr_eq(&core, &client.core()) {
                self.answer(&has_backend(database));
                return None;
            }
        }
        let select = resp::command(&[&b"SELECT"[..], database.to_string().as_bytes()]);
        let sent = self.enter(client, now).and_then(|upstream| {
            self.send(client, &upstream, (None, Note::Selects(database), true), &select, now)
        });
        match sent {
            Ok(()) => self.deciding = true,
            Err(None) => self.bar(Barred::Database),
            Err(Some(_)) => {}
        }
        sent.err().flatten()
    }

    /// It is in that database from now on. Everything that it said before was answered.
    pub(super) fn moves(&mut self, client: &Client, core: Rc<Core>) {
        self.generation = core.generation();
        client.core.replace(core);
    }

    /// The server has answered a SELECT.
    pub(super) fn selected(&mut self, database: u32, frame: &[u8]) {
        if frame == b"+OK\r\n"
            && let Some(pinned) = &mut self.pinned
        {
            pinned.selected(Some(database));
            self.session.select(database);
            self.unbar(Barred::Database);
        }
    }

    /// A command that holds no place: one that may wait for others, whose keys others may write meanwhile, or WATCH.
    /// It goes once no queued write is before its keys.
    fn without_place(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let lanes = self.lanes_of(client, said);
        if said.class == Class::Pinned(Pinned::Blocks) {
            return self.wait(client, lanes, said);
        }
        let sent = self.enter_with(client, &lanes, false, said.now).and_then(|upstream| {
            self.send(client, &upstream, (None, Note::None, true), said.request, said.now)
        });
        match (sent, &mut self.pinned) {
            (Ok(()), Some(pinned)) => pinned.watch(&lanes),
            (Err(None), _) => self.bar(Barred::Watch),
            _ => {}
        }
        sent
    }

    /// A command that waits for others: also for the server, if nothing else belongs to the client's connection.
    fn wait(&mut self, client: &Rc<Client>, lanes: Lanes, said: Said<'_>) -> Sent {
        let database = client.core().database();
        let counts = self.pinned.as_ref().is_some_and(|it| it.database() != Some(database));
        if matches!(&*said.spec.name, "wait" | "waitaof") && !counts {
            let name = said.spec.name.to_ascii_uppercase();
            self.answer(&telling::error(&format!(
                "ERR fusebox: {name} is not offered here: it counts the writes of one connection, but clients share \
                 connections"
            )));
            return Ok(());
        }
        let waiting = Waiting::of(said.args);
        // Its time runs while it is held up here, and it is sent with what is left of that.
        let since = self.stuck_since.unwrap_or(said.now);
        let until = waiting.and_then(|waiting| waiting.until(since));
        let left = until.map(|until| until.saturating_duration_since(said.now));
        // If that is nothing, and nothing holds it up any more, it asks all the same: what it waits for may be there.
        if left.is_some_and(|left| left.is_zero())
            && self.ask(client, &lanes, said.may_change(), said.now).is_err()
        {
            let seq = self.slot();
            self.nothing_came(client, seq);
            return Ok(());
        }
        let held_up = waiting.filter(|_| self.stuck_since.is_some());
        let rest = held_up.map(|waiting| waiting.with_time(said.args, left));
        let said = Said { request: rest.as_deref().unwrap_or(said.request), ..said };
        let may_park = self.pinned.as_ref().is_none_or(|pinned| pinned.is_clean(database));
        if waiting.is_some_and(Waiting::may_be_sent_again) && may_park {
            match self.leave_to_wait(client, &lanes, said) {
                Ok(()) => {}
                Err(Denied::Stuck(stuck)) => return Err(Some(stuck)),
                Err(Denied::Told(_)) => {
                    self.park(client, said.request, until);
                    return Ok(());
                }
            }
        }
        let upstream = self.enter_with(client, &lanes, said.may_change(), said.now)?;
        self.send_waiting(client, &upstream, (lanes, until), said, None)
    }

    /// Leave for a command that waits for others, which keeps none.
    pub(super) fn leave_to_wait(
        &self,
        client: &Client,
        lanes: &Lanes,
        said: Said<'_>,
    ) -> Result<(), Denied> {
        drop(self.ask(client, lanes, said.may_change(), said.now)?);
        let core = &client.core();
        if !core.is_fenced() {
            core.asks_for_fence(&core.link(self.session.protocol));
            return Err(Denied::Told("earlier writes may still be applied".to_owned()));
        }
        Ok(())
    }

    /// Leave for a command that gets no ticket of its own. It may write to `lanes` all the same: what a caller left on
    /// the wire must not land after it. If it `may_change` something, it needs leave for that, too.
    fn ask(
        &self,
        client: &Client,
        lanes: &Lanes,
        may_change: bool,
        now: Instant,
    ) -> Result<Ticket, Denied> {
        let backend = &client.core().backend;
        let names_some = lanes.is_all() || !lanes.as_slice().is_empty();
        if names_some && backend.is_barred(lanes) {
            return Err(if self.is_late(client, now) {
                Denied::Told("an earlier write may still be applied".to_owned())
            } else {
                Denied::Stuck(Stuck::Lanes)
            });
        }
        if may_change {
            // A ticket that is dropped keeps what is read of its lanes out of the cache: this one has none.
            drop(self.leave(client, &Lanes::new([]), CHANGES, "command", now)?);
        }
        self.leave(client, lanes, ASKS, "command", now)
    }

    /// A subscription, or MONITOR.
    fn listen(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        // Its confirmations are no replies: what comes before is answered before them.
        if !self.is_answered() {
            return Err(Some(Stuck::Others));
        }
        let upstream = self.enter(client, said.now)?;
        let note = Awaited::of(said.args).map_or(Note::Monitors, Note::Subscription);
        self.send(client, &upstream, (None, note, true), said.request, said.now)?;
        if let Some(pinned) = &mut self.pinned {
            pinned.subscribes();
        }
        Ok(())
    }

    /// An ordinary command of a pinned client.
    fn pinned_call(&mut self, client: &Rc<Client>, said: Said<'_>) -> Option<Stuck> {
        let pinned = self.pinned.as_ref()?;
        let upstream = Rc::clone(pinned.upstream());
        if pinned.may_listen() && &*said.spec.name == "ping" {
            let how = (None, Note::None, true);
            return self.send(client, &upstream, how, said.request, said.now).err().flatten();
        }
        let is_seen = pinned.watches() && said.spec.flags.has(Flags::READONLY);
        if pinned.database() == Some(client.core().database()) && !is_seen {
            return self.planned(client, &upstream, (said.spec, said.request), said.now);
        }
        let lanes = self.lanes_of(client, said);
        let carriage = Carriage::elsewhere(&lanes, said.spec.flags.has(Flags::READONLY), "command");
        self.carry(client, &upstream, carriage, said.request, said.now)
    }

    /// The client's own upstream, if the backend may be asked.
    pub(super) fn enter(
        &mut self,
        client: &Rc<Client>,
        now: Instant,
    ) -> Result<Rc<Upstream>, Option<Stuck>> {
        self.enter_with(client, &Lanes::new([]), false, now)
    }

    /// The same, once no queued write is in these lanes, for a command that `may_change` something or not.
    fn enter_with(
        &mut self,
        client: &Rc<Client>,
        lanes: &Lanes,
        may_change: bool,
        now: Instant,
    ) -> Result<Rc<Upstream>, Option<Stuck>> {
        match self.ask(client, lanes, may_change, now) {
            // That it got permit and place says that the backend may be asked: it keeps neither.
            Ok(ticket) => drop(ticket),
            Err(Denied::Stuck(stuck)) => return Err(Some(stuck)),
            Err(Denied::Told(why)) => {
                let answer = client.core().unavailable(&why);
                self.answer_with(client, answer);
                return Err(None);
            }
        }
        let Some(upstream) = self.own_upstream(client) else {
            self.answer(&telling::error(telling::TOO_MANY));
            return Err(None);
        };
        Ok(upstream)
    }

    /// The client's own upstream; `None` if there are as many as may be.
    pub(super) fn own_upstream(&mut self, client: &Rc<Client>) -> Option<Rc<Upstream>> {
        if self.pinned.is_none() {
            let core = &client.core();
            let upstream = core.pin(client, self.session.protocol)?;
            self.pinned = Some(PinnedTo::new(upstream, core.database()));
        }
        self.pinned.as_ref().map(|pinned| Rc::clone(pinned.upstream()))
    }

    /// Gives the client's own upstream back once nothing of it is the client's any more. One that others have aimed at
    /// is closed.
    pub(super) fn unpin(&mut self, core: &Core) {
        let is_over = self.is_answered()
            && self.pinned.as_mut().is_some_and(|pinned| {
                // Whether it still listens is known now.
                pinned.listens();
                pinned.is_clean(core.database()) && pinned.upstream().is_idle()
            });
        if is_over && let Some(pinned) = self.pinned.take() {
            if pinned.is_aimed_at() {
                pinned.close();
            } else {
                core.unpin(pinned.into_upstream());
            }
        }
    }

    /// Whether an unknown command may be sent: an error is what is said instead.
    pub(super) fn may_ask_all(&mut self, client: &Rc<Client>, now: Instant) -> Sent {
        match self.leave(client, &Lanes::All, ASKS, "unknown", now) {
            Ok(_) => Ok(()),
            Err(Denied::Stuck(stuck)) => Err(Some(stuck)),
            Err(Denied::Told(why)) => {
                let answer = client.core().unavailable(&why);
                self.answer_with(client, answer);
                Err(None)
            }
        }
    }

    /// Leave for a command that goes over the client's own connection or not at all.
    pub(super) fn leave(
        &self,
        client: &Client,
        lanes: &Lanes,
        access: PlainAccess<'_>,
        operation: &'static str,
        now: Instant,
    ) -> Result<Ticket, Denied> {
        let core = &client.core();
        let (priority, trace) = (core.settings.priority, self.trace(core));
        let (uid, may_be_struck) = (self.uid(), false);
        let plan = PlainPlan { lanes, access, priority, operation, trace, uid, may_be_struck };
        let way = match core.backend.admit(&plan) {
            Admission::Go(ticket) => return Ok(ticket),
            Admission::OtherWay(way) => way,
            // Not of a read that the cache may answer.
            Admission::Instead(it) => OtherWay::Barred(it.why),
        };
        Err(self.denied(client, way, lanes, now))
    }

    /// The client's database, if it is known.
    pub(super) fn database(&self, client: &Client) -> Option<u32> {
        match &self.pinned {
            Some(pinned) => pinned.database(),
            None => Some(client.core().database()),
        }
    }

    /// The lanes of a command in the client's database; all if they are not known, or it is not about keys alone. Of one
    /// that a shared connection could carry, they are what is planned for it there.
    pub(super) fn lanes_of(&self, client: &Client, said: Said<'_>) -> Lanes {
        let Said { spec, class, args, request, .. } = said;
        let (Some(database), Some(places)) = (self.database(client), spec.keys(args)) else {
            return Lanes::All;
        };
        let is_wide = match (class, rules::kind(spec)) {
            // WAIT and its like wait for others, and change nothing. Nor does WATCH.
            (Class::Pinned(Pinned::Blocks | Pinned::Watch), _) => false,
            // Whatever is planned for it, that is its keys.
            (_, rules::Kind::Read | rules::Kind::Write) if !places.is_empty() => false,
            (Class::Carried, _) => {
                let plan = client.core().connector().plan(Bytes::copy_from_slice(request));
                plan.is_ok_and(|plan| plan.lanes.is_all())
            }
            (_, kind) => matches!(kind, rules::Kind::Barrier(_)),
        };
        if is_wide {
            return Lanes::All;
        }
        let namespace = database.to_string();
        let lane = |namespace: &[u8], key: &&[u8]| LaneId::of(namespace, key);
        let keys = places.iter().filter_map(|place| args.get(*place));
        // COPY and MOVE write to another database.
        let copied = match args {
            [_, _, to, rest @ ..] if &*spec.name == "copy" => rest
                .windows(2)
                .find(|pair| pair.first().is_some_and(|word| word.eq_ignore_ascii_case(b"DB")))
                .and_then(|pair| Some(lane(pair.get(1)?, to))),
            [_, key, database] if &*spec.name == "move" => Some(lane(database, key)),
            _ => None,
        };
        Lanes::new(keys.map(|key| lane(namespace.as_bytes(), key)).chain(copied))
    }
}
