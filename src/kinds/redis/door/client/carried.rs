//! A command on its way: over an upstream if the core lets it through, out of the cache, or as a call that the core
//! carries.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use fusebox_actors::{
    Admission, Fills, Instead, OtherWay, PlainAccess, PlainPlan, Ticket, connector::Read,
};
use fusebox_state::{Lanes, chaos::Strike};
use tokio::time::Instant;

use super::{
    Client, Inner, Stuck,
    pinned::{Denied, Sent},
};
use crate::kinds::redis::{
    door::{
        slow::Asker,
        telling::{self, Told},
        upstream::{Entry, Note, Unsettled, Upstream},
    },
    transport::scripts,
};

/// A call that may go on the wire: what is asked of the core, and what is noted.
pub(in crate::kinds::redis::door) struct Carriage<'a> {
    pub(in crate::kinds::redis::door) lanes: &'a Lanes,
    pub(in crate::kinds::redis::door) access: PlainAccess<'a>,
    pub(in crate::kinds::redis::door) operation: &'static str,
    pub(in crate::kinds::redis::door) noted: Noted,
    /// Nobody but this connection can carry it: it is of a database that the core knows nothing of, or is itself
    /// unknown.
    pub(in crate::kinds::redis::door) elsewhere: bool,
}

/// What is noted of a call.
pub(in crate::kinds::redis::door) enum Noted {
    Nothing,
    /// Its reply may be cached under the request as it is sent.
    Cached,
    /// So may the parts of its reply.
    Parts(Box<(Read, Fills)>),
    /// It may settle or inherit a deadline of its key.
    Timed,
    /// The server knows a script by it, or forgets all.
    Script(scripts::Does),
    /// It may change something, though it is to be let through as a read.
    MayWrite,
}

impl<'a> Carriage<'a> {
    /// Of a command on a connection whose state the core does not know.
    pub(in crate::kinds::redis::door) fn elsewhere(
        lanes: &'a Lanes,
        reads: bool,
        operation: &'static str,
    ) -> Self {
        let access = if reads {
            PlainAccess::Read { keyed: true, slot: None, max_stale: None }
        } else {
            PlainAccess::Write { absolute: false }
        };
        Self { lanes, access, operation, noted: Noted::Nothing, elsewhere: true }
    }

    /// Of a command that is in no list. Nobody's cache is emptied for it: most likely it is a mistake, to which the
    /// server answers an error.
    pub(in crate::kinds::redis::door) fn unlisted() -> Carriage<'static> {
        Carriage { noted: Noted::MayWrite, ..Carriage::elsewhere(&Lanes::All, true, "unknown") }
    }
}

impl Inner {
    /// Sends a command, answers it from the cache, or begins to carry it otherwise.
    pub(in crate::kinds::redis::door) fn carry(
        &mut self,
        client: &Rc<Client>,
        link: &Rc<Upstream>,
        carriage: Carriage<'_>,
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let core = &client.core();
        let Carriage { lanes, access, operation, noted, elsewhere } = carriage;
        if let Some(strike) = self.struck.take().filter(|_| !elsewhere) {
            return self.meets(client, request, strike);
        }
        if self.is_elsewhere(link) {
            return Some(Stuck::Others);
        }
        let writes = matches!(access, PlainAccess::Write { .. });
        if !link.takes(request.len()) {
            if elsewhere {
                return self.not_taken(client, link, now).err().flatten();
            }
            core.asks_for_fence(link);
            // The core may have another way by then, or says what becomes of it.
            return if self.has_tried(client, now) {
                self.otherwise(client, request, writes)
            } else {
                Some(Stuck::Place)
            };
        }
        // What is cached may be older than a write before this that is not answered: then it answers nothing, whatever
        // its age.
        let access = match access {
            PlainAccess::Read { keyed, slot, .. } if !self.slots.is_empty() => {
                PlainAccess::Read { keyed, slot, max_stale: Some(Duration::ZERO) }
            }
            access => access,
        };
        let trace = self.trace(core);
        let priority = core.settings.priority;
        // What only its own connection can carry meets nothing on purpose.
        let (uid, may_be_struck) = (self.uid(), !elsewhere && self.session.who.is_some());
        let plan = PlainPlan { lanes, access, priority, operation, trace, uid, may_be_struck };
        match core.backend.admit(&plan) {
            Admission::Go(ticket) => {
                let note = match noted {
                    Noted::Parts(parts) => Note::CacheAll(parts),
                    Noted::Cached => Note::Cache,
                    Noted::Timed => core.note(request, link),
                    Noted::Script(does) => {
                        let noting = writes.then(|| Box::new(core.begins(request, link)));
                        Note::Script(does, noting)
                    }
                    Noted::MayWrite => Note::MayWrite,
                    Noted::Nothing if writes && elsewhere => Note::Writes(Unsettled::new(
                        core.connector(),
                        lanes.clone(),
                        Some(link.way()),
                    )),
                    Noted::Nothing => Note::None,
                };
                let how = (Some(ticket), note, elsewhere);
                self.send(client, link, how, request, now).err().flatten()
            }
            // It was cached in this very millisecond.
            Admission::Instead(_) if !self.slots.is_empty() => Some(Stuck::Others),
            Admission::Instead(Instead { source, value, age, .. }) => {
                match telling::in_protocol(&value, self.protocol(), false) {
                    Some(value) => {
                        self.last = Told::cached(source, age);
                        core.counters.answered(source);
                        self.pass_on(&value);
                        None
                    }
                    None => self.otherwise(client, request, writes),
                }
            }
            Admission::OtherWay(OtherWay::Struck(strike)) => self.meets(client, request, strike),
            // A full bulkhead holds a client back, and is no outage: nothing is queued or made up because of it.
            Admission::OtherWay(way) if elsewhere || way == OtherWay::Full => {
                match self.denied(client, way, lanes, now) {
                    Denied::Stuck(stuck) => Some(stuck),
                    Denied::Told(why) => {
                        core.backend.refuse(&plan, way);
                        let answer = core.unavailable(&why);
                        self.answer_with(client, answer);
                        None
                    }
                }
            }
            Admission::OtherWay(_) => self.otherwise(client, request, writes),
        }
    }

    /// What becomes of a command that is not let through, and goes no other way: it waits for what becomes free, for
    /// as long as it may take.
    pub(super) fn denied(
        &self,
        client: &Client,
        way: OtherWay,
        lanes: &Lanes,
        now: Instant,
    ) -> Denied {
        let core = client.core();
        let stuck = match way {
            OtherWay::Full => Some(Stuck::Place),
            OtherWay::Lanes if core.backend.lanes_move(lanes) => Some(Stuck::Lanes),
            _ => None,
        };
        match stuck.filter(|_| !self.is_late(client, now)) {
            Some(stuck) => Denied::Stuck(stuck),
            None => Denied::Told(format!("{}: {}", core.backend.name(), way.why())),
        }
    }

    /// Whether it waits for replies on another connection, which is being replaced: those come first.
    pub(super) fn is_elsewhere(&self, link: &Rc<Upstream>) -> bool {
        self.on_wire > 0 && !std::ptr::eq(self.wire, Rc::as_ptr(link))
    }

    /// Hands a command over to an upstream.
    pub(in crate::kinds::redis::door) fn send(
        &mut self,
        client: &Rc<Client>,
        link: &Rc<Upstream>,
        how: (Option<Ticket>, Note, bool),
        request: &[u8],
        now: Instant,
    ) -> Sent {
        self.send_in(client, link, how, (request, None), now)
    }

    /// The same, of a command that may have its slot already.
    pub(super) fn send_in(
        &mut self,
        client: &Rc<Client>,
        link: &Rc<Upstream>,
        (ticket, note, elsewhere): (Option<Ticket>, Note, bool),
        (request, slot): (&[u8], Option<u64>),
        now: Instant,
    ) -> Sent {
        let own = note.is_the_doors();
        self.wire = Rc::as_ptr(link);
        let seq = if own { 0 } else { slot.unwrap_or_else(|| self.slots.next()) };
        let entry = Entry { client: Rc::clone(client), seq, ticket, note, elsewhere };
        if !link.send(entry, request, now) {
            if slot.is_some() {
                return Err(Some(Stuck::Place));
            }
            return self.not_taken(client, link, now);
        }
        if !own {
            if slot.is_none() {
                self.slot();
            }
            self.on_wire += 1;
        }
        Ok(())
    }

    /// An upstream takes nothing: the command at hand waits, or is answered once it has waited for as long as a call
    /// may.
    pub(super) fn not_taken(&mut self, client: &Rc<Client>, link: &Upstream, now: Instant) -> Sent {
        client.core().asks_for_fence(link);
        let is_vain =
            self.stuck_since.is_some_and(|since| client.core().is_not_fenced_since(since));
        if !is_vain && !self.is_late(client, now) {
            return Err(Some(Stuck::Place));
        }
        let why = format!("{} accepts no commands now", client.core().backend.name());
        let answer = client.core().unavailable(&why);
        self.answer_with(client, answer);
        Err(None)
    }

    /// A fault on purpose strikes the command at hand, which meets it as a call that the core carries.
    fn meets(&mut self, client: &Rc<Client>, request: &[u8], strike: Strike) -> Option<Stuck> {
        // Only once everything before it was answered: it is one of this client's own, and would pass nothing.
        if !self.slots.is_empty() {
            self.struck = Some(strike);
            return Some(Stuck::Others);
        }
        let seq = self.slot();
        let asker = Asker { struck: Some(strike), ..self.asker() };
        self.slow.push_back(client.core().call(seq, Bytes::copy_from_slice(request), asker));
        None
    }

    /// A command that the upstream does not carry: the core does, once everything before it was answered.
    pub(super) fn otherwise(
        &mut self,
        client: &Rc<Client>,
        request: &[u8],
        writes: bool,
    ) -> Option<Stuck> {
        self.carried_by_core(client, Bytes::copy_from_slice(request), writes, None)
    }

    /// The same, of a call that replaces so many commands.
    pub(super) fn carried_by_core(
        &mut self,
        client: &Rc<Client>,
        request: Bytes,
        writes: bool,
        commands: Option<usize>,
    ) -> Option<Stuck> {
        // A write may follow writes that are in the queue; a read waits until they are synced.
        let follows = self.on_wire == 0 && writes;
        if !self.slots.is_empty() && !follows {
            return Some(Stuck::Others);
        }
        let seq = self.slot();
        let barred = client.core().backend.bars();
        let asker = Asker { commands, barred, ..self.asker() };
        self.slow.push_back(client.core().call(seq, request, asker));
        None
    }

    /// Whether the command at hand has been stuck for as long as a call may take.
    pub(in crate::kinds::redis::door) fn is_late(&self, client: &Client, now: Instant) -> bool {
        self.stuck_since.is_some_and(|since| now - since >= client.core().deadline())
    }

    /// Whether the command at hand has been stuck for as long as an attempt may take. Who carries it then has all its
    /// time for that.
    pub(super) fn has_tried(&self, client: &Client, now: Instant) -> bool {
        let core = client.core();
        let patience = core.backend.timeout().min(core.deadline());
        self.stuck_since.is_some_and(|since| now - since >= patience)
    }

    /// The command at hand was not executed, and is answered so.
    pub(super) fn answer_with(&mut self, client: &Client, answer: telling::Answer) {
        if let Some(reply) = self.reply_of(client, answer) {
            self.pass_on(&reply);
        }
    }
}
