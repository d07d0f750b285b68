//! What becomes of one command.

use std::rc::Rc;

use bytes::Bytes;
use fusebox_actors::{
    Admission, Fills, Instead, OtherWay, PlainAccess, PlainPlan, Ticket,
    connector::{Access, Connector, Plan, Read, Write},
    trace::CallTrace,
};
use fusebox_state::{Lanes, chaos::Strike};
use tokio::time::Instant;

use super::{
    Client, Ending, Inner, Stuck,
    pinned::{Said, Sent},
};
use crate::ingress::seldom::Seldom;
use crate::kinds::redis::{
    door::{
        class::{self, Class, Local, Pinned},
        counters::Closed,
        pin::PinnedTo,
        quick::{self, Does, Row},
        request::Requests,
        slow::Asker,
        telling::{self, Told},
        upstream::{Entry, Note, Unsettled, Upstream},
    },
    protocol::{
        commands::{Flags, Spec},
        effect,
    },
};

/// The route that calls of this door bear in their records.
pub(in crate::kinds::redis::door) const ROUTE: &str = "/door/redis";

/// Commands of so many words are looked at without an allocation.
const FEW: usize = 16;

/// What Redis says to who must say first who it is.
const NOAUTH: &str = "NOAUTH Authentication required.";

/// A call that may go on the wire: what is asked of the core, and what is noted.
pub(in crate::kinds::redis::door) struct Carriage<'a> {
    pub(in crate::kinds::redis::door) lanes: &'a Lanes,
    pub(in crate::kinds::redis::door) access: PlainAccess<'a>,
    pub(in crate::kinds::redis::door) operation: &'static str,
    /// Its reply may be cached under the request as it is sent.
    pub(in crate::kinds::redis::door) cached: bool,
    /// So may the parts of its reply.
    pub(in crate::kinds::redis::door) fills: Option<Box<(Read, Fills)>>,
    /// It may settle or inherit a deadline of its key.
    pub(in crate::kinds::redis::door) timed: bool,
    /// It is of a database that the core knows nothing of.
    pub(in crate::kinds::redis::door) elsewhere: bool,
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
        Self { lanes, access, operation, cached: false, fills: None, timed: false, elsewhere: true }
    }
}

impl Inner {
    /// Takes the command at hand, behind which these bytes have come, or says on what it is stuck.
    pub(super) fn dispatch(
        &mut self,
        client: &Rc<Client>,
        reader: &Requests,
        (request, behind): (&[u8], &[u8]),
        now: Instant,
    ) -> Option<Stuck> {
        if self.refusals.paces(now).is_some() {
            return Some(Stuck::Paced);
        }
        // Nothing is sent behind a command that may wait as long as it likes: it would hold its place for as long.
        if self.is_blocked() {
            return Some(Stuck::Others);
        }
        if self.selecting {
            // Which database what follows is for is known once that is answered.
            if !self.is_answered() {
                return Some(Stuck::Others);
            }
            self.selecting = false;
        }
        if self.session.who.is_some() && self.pinned.is_none() && self.barred.is_none() {
            let mut args = reader.args(request);
            let count = args.len();
            if let (Some(name), Some(key)) = (args.next(), args.next())
                && let Some(row) = quick::find(name)
                && row.takes(count)
                && (!self.session.reads_only || row.does.is_read())
            {
                return self.quick(client, row, key, reader, request, now);
            }
        }
        let args: Vec<&[u8]> = reader.args(request).collect();
        if let Some(name) = args.first()
            && (name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"Host:"))
        {
            // A page that was lured into speaking to this port.
            static TOLD: Seldom = Seldom::new();
            if let Some(times) = TOLD.again() {
                tracing::warn!(
                    times,
                    "somebody speaks HTTP to a Redis door: the connection is closed"
                );
            }
            (self.ending, self.closed) = (Ending::Reset, Closed::Protocol);
            return None;
        }
        self.general(client, &args, (request, behind), now)
    }

    /// A command of one key: planned without an allocation.
    fn quick(
        &mut self,
        client: &Rc<Client>,
        row: &'static Row,
        key: &[u8],
        reader: &Requests,
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let core = &client.core();
        let lanes = Lanes::One(quick::lane(&core.namespace(), key));
        let mut canonical = core.canonical.take();
        canonical.clear();
        canonical.extend_from_slice(request);
        reader.uppercase_name(&mut canonical);
        let count = reader.args(request).len();
        let (mut cached, mut timed) = (false, false);
        let access = match row.does {
            Does::Reads => {
                cached = true;
                let slot = lanes.as_slice().first().map(|lane| (*lane, canonical.as_slice()));
                PlainAccess::Read { keyed: true, slot, max_stale: core.settings.max_stale }
            }
            Does::Looks => PlainAccess::Read { keyed: true, slot: None, max_stale: None },
            does => {
                timed = true;
                let absolute = match does {
                    Does::Sets => true,
                    Does::May if count <= FEW => {
                        let mut few = [&[][..]; FEW];
                        few.iter_mut().zip(reader.args(request)).for_each(|(at, arg)| *at = arg);
                        effect::is_absolute(row.name, few.get(..count).unwrap_or_default())
                    }
                    Does::May => {
                        let args: Vec<&[u8]> = reader.args(request).collect();
                        effect::is_absolute(row.name, &args)
                    }
                    _ => false,
                };
                PlainAccess::Write { absolute }
            }
        };
        let operation = row.name;
        let carriage = Carriage {
            lanes: &lanes,
            access,
            operation,
            cached,
            fills: None,
            timed,
            elsewhere: false,
        };
        let link = core.link(self.protocol());
        let stuck = self.carry(client, &link, carriage, &canonical, now);
        core.canonical.replace(canonical);
        stuck
    }

    /// Any command.
    pub(in crate::kinds::redis::door) fn general(
        &mut self,
        client: &Rc<Client>,
        args: &[&[u8]],
        (request, behind): (&[u8], &[u8]),
        now: Instant,
    ) -> Option<Stuck> {
        let core = &client.core();
        let name = args.first().copied().unwrap_or_default();
        if name.eq_ignore_ascii_case(b"FUSEBOX") {
            // It tells of what was answered last.
            if !self.is_answered() {
                return Some(Stuck::Others);
            }
            let told = self.fusebox(args);
            self.answer(&told);
            return None;
        }
        if let Err(stuck) = self.while_listening(args) {
            return stuck;
        }
        if !self.is_within()
            && let Some(sent) = self.about_another(client, args, now)
        {
            return sent.err().flatten();
        }
        let connector = core.connector();
        let Some(spec) = connector.links().shared.commands.find(args) else {
            return self.unknown(client, args, request, now);
        };
        let class = class::of_connection(args).unwrap_or_else(|| class::of(&spec, args));
        if let Some(refusal) = self.refusal(&spec, class, args) {
            if let Some(pinned) = &mut self.pinned {
                pinned.spoil();
            }
            self.answer(&telling::error(&refusal));
            return None;
        }
        if self.is_barred(client, class, now) {
            return None;
        }
        let said = Said { spec: &spec, class, args, request, now };
        if class == Class::Pinned(Pinned::Multi)
            && let Some(sent) = self.unit(client, said, behind)
        {
            return sent.err().flatten();
        }
        if matches!(&*spec.name, "script|kill" | "function|kill") && !self.is_within() {
            if !self.slots.is_empty() {
                return Some(Stuck::Others);
            }
            let seq = self.slot();
            self.slow.push_back(core.ask_apart(seq, Bytes::copy_from_slice(request)));
            return None;
        }
        match class {
            Class::Local(local)
                if !self.is_within() || matches!(local, Local::Quit | Local::Reset) =>
            {
                self.local(client, local, args, now)
            }
            Class::Carried if self.pinned.is_none() => {
                let link = core.link(self.protocol());
                self.planned(client, &link, request, now)
            }
            _ => self.through_pin(client, said),
        }
    }

    /// Whether it is between MULTI and EXEC: then the server itself is told everything.
    fn is_within(&self) -> bool {
        self.pinned.as_ref().is_some_and(PinnedTo::is_within)
    }

    /// Why a command is not for this client, or not for a door.
    pub(super) fn refusal(&self, spec: &Spec, class: Class, args: &[&[u8]]) -> Option<String> {
        let name = || spec.name.replace('|', " ");
        // A server in a transaction must see what is wrong itself: then EXEC runs nothing.
        if !self.is_within()
            && class::of_connection(args).is_none()
            && let Some(wrong) = wrong_words(spec, args)
        {
            return Some(wrong);
        }
        let Some(who) = self.session.who else {
            let first = [Local::Hello, Local::Auth, Local::Quit, Local::Reset].map(Class::Local);
            return (!first.contains(&class)).then(|| NOAUTH.to_owned());
        };
        if let Class::Refused(why) = class {
            let name = name().to_ascii_uppercase();
            return Some(format!("ERR fusebox: {name} is not offered here: {why}"));
        }
        if self.is_within() && class.is_of_the_doors_connection() {
            let name = name().to_ascii_uppercase();
            return Some(format!("ERR fusebox: {name} is not offered within MULTI"));
        }
        if class::needs_admin(spec) && !who.admin {
            return Some(format!("NOPERM fusebox: {:?} needs admin rights at this door", name()));
        }
        if self.session.reads_only && class::writes(spec, class) {
            return Some(format!("NOPERM fusebox: this user may not write, and {:?} does", name()));
        }
        None
    }

    /// A command that is planned by the connector.
    pub(in crate::kinds::redis::door) fn planned(
        &mut self,
        client: &Rc<Client>,
        link: &Rc<Upstream>,
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let connector = client.core().connector();
        let plan = match connector.plan(Bytes::copy_from_slice(request)) {
            Ok(plan) => plan,
            Err(refused) => {
                self.answer(&telling::error(&format!("ERR fusebox: {refused}")));
                return None;
            }
        };
        let Plan { lanes, access, .. } = plan;
        let mut fills = None;
        let (access, cached, timed) = match &access {
            Access::Read(read) => {
                // One that is not answered by one entry as it stands: MGET, also of one key.
                let as_it_stands = matches!(read.slots.as_slice(), [slot] if *slot.key == *request);
                if !read.slots.is_empty() && !as_it_stands {
                    let leave = client.core().backend.begin_fills(read);
                    fills = Some(Box::new((read.clone(), leave)));
                }
                let slot = match read.slots.as_slice() {
                    [slot] if *slot.key == *request => Some((slot.lane, &*slot.key)),
                    _ => None,
                };
                let max_stale = client.core().settings.max_stale;
                let access = PlainAccess::Read { keyed: read.keyed, slot, max_stale };
                (access, slot.is_some(), false)
            }
            Access::Write(Write { absolute, .. }) => {
                (PlainAccess::Write { absolute: *absolute }, false, true)
            }
        };
        let operation = "command";
        let lanes = &lanes;
        let carriage =
            Carriage { lanes, access, operation, cached, fills, timed, elsewhere: false };
        self.carry(client, link, carriage, request, now)
    }

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
        let Carriage { lanes, access, operation, cached, fills, timed, elsewhere } = carriage;
        if let Some(strike) = self.struck.take().filter(|_| !elsewhere) {
            return self.meets(client, request, strike);
        }
        if self.is_elsewhere(link) {
            return Some(Stuck::Others);
        }
        if !link.takes(request.len()) {
            if elsewhere {
                return self.not_taken(client, link, now).err().flatten();
            }
            core.asks_for_fence(link);
            return self.or_late(Stuck::Place, client, request, now);
        }
        let trace = CallTrace::new(ROUTE);
        let writes = matches!(access, PlainAccess::Write { .. });
        let priority = core.settings.priority;
        // What only its own connection can carry meets nothing on purpose.
        let struck_for = self.session.who.filter(|_| !elsewhere).map(|who| who.uid);
        let plan = PlainPlan { lanes, access, priority, operation, trace, struck_for };
        match core.backend.admit(&plan) {
            Admission::Go(ticket) => {
                let note = if let Some(fills) = fills {
                    Note::CacheAll(fills)
                } else if cached {
                    Note::Cache
                } else if timed && !elsewhere {
                    core.note(request)
                } else if writes && elsewhere {
                    Note::Writes(Unsettled::new(core.connector(), lanes.clone()))
                } else {
                    Note::None
                };
                let how = (Some(ticket), note, elsewhere);
                self.send(client, link, how, request, now).err().flatten()
            }
            Admission::Instead(Instead { source, value, age, .. }) => {
                match telling::in_protocol(&value, self.protocol(), false) {
                    Some(value) => {
                        self.last = Told::cached(source, age);
                        core.counters.answered(source);
                        self.answer(&value);
                        None
                    }
                    None => self.otherwise(client, request),
                }
            }
            Admission::OtherWay(OtherWay::Full) => self.or_late(Stuck::Place, client, request, now),
            Admission::OtherWay(OtherWay::Struck(strike)) => self.meets(client, request, strike),
            Admission::OtherWay(way) if elsewhere => {
                let why = format!("{}: {}", core.backend.name(), way.why());
                let answer = core.unavailable(&why);
                self.answer_with(answer);
                None
            }
            Admission::OtherWay(_) => self.otherwise(client, request),
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

    /// An upstream takes nothing: the command at hand waits, or is told once it has waited for as long as a call may.
    pub(super) fn not_taken(&mut self, client: &Rc<Client>, link: &Upstream, now: Instant) -> Sent {
        client.core().asks_for_fence(link);
        let is_vain =
            self.stuck_since.is_some_and(|since| client.core().is_not_fenced_since(since));
        if !is_vain && !self.is_late(client, now) {
            return Err(Some(Stuck::Place));
        }
        let why = format!("{} takes nothing now", client.core().backend.name());
        let answer = client.core().unavailable(&why);
        self.answer_with(answer);
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
    fn otherwise(&mut self, client: &Rc<Client>, request: &[u8]) -> Option<Stuck> {
        self.carried_by_core(client, Bytes::copy_from_slice(request), None)
    }

    /// The same, of a call that stands for so many commands.
    pub(super) fn carried_by_core(
        &mut self,
        client: &Rc<Client>,
        request: Bytes,
        commands: Option<usize>,
    ) -> Option<Stuck> {
        // A write may follow writes that stand in the queue; a read waits until they are synced.
        let follows = self.on_wire == 0 && client.core().writes(&request);
        if !self.slots.is_empty() && !follows {
            return Some(Stuck::Others);
        }
        let seq = self.slot();
        let asker = Asker { commands, ..self.asker() };
        self.slow.push_back(client.core().call(seq, request, asker));
        None
    }

    /// Stuck on `stuck`, unless that has lasted for as long as a call may: then the core says what becomes of it.
    fn or_late(
        &mut self,
        stuck: Stuck,
        client: &Rc<Client>,
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        if self.is_late(client, now) {
            return self.otherwise(client, request);
        }
        Some(stuck)
    }

    /// Whether the command at hand has been stuck for as long as a call may.
    pub(in crate::kinds::redis::door) fn is_late(&self, client: &Client, now: Instant) -> bool {
        self.stuck_since.is_some_and(|since| now - since >= client.core().patience())
    }

    /// A command that nobody knows: the server has the word, as long as nothing waits in the queue.
    fn unknown(
        &mut self,
        client: &Rc<Client>,
        args: &[&[u8]],
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        let core = &client.core();
        if self.session.who.is_none() {
            self.answer(&telling::error(NOAUTH));
            return None;
        }
        if self.session.reads_only {
            let why =
                "NOPERM fusebox: this user may not write, and nobody knows what that command does";
            if let Some(pinned) = &mut self.pinned {
                pinned.spoil();
            }
            self.answer(&telling::error(why));
            return None;
        }
        // Whatever it is: within a transaction, the server says.
        if self.is_within() {
            return self.unknown_within(client, request, now);
        }
        let name = args.first().copied().unwrap_or_default();
        if name.get(..8).is_some_and(|head| head.eq_ignore_ascii_case(b"FUSEBOX.")) {
            let name = String::from_utf8_lossy(name);
            self.answer(&telling::error(&format!("ERR unknown command '{name}'")));
            return None;
        }
        let link = match &mut self.pinned {
            Some(pinned) => {
                // Whatever that is, it may leave something behind.
                pinned.keep();
                Rc::clone(pinned.upstream())
            }
            None => core.link(self.protocol()),
        };
        if !core.connector().links().shared.commands.has_learnt() {
            // Whether it writes is known once the server has told its commands, which it is asked whenever it was met.
            return match self.may_ask_all(client, now) {
                Ok(()) if !self.is_late(client, now) => Some(Stuck::Lanes),
                Ok(()) => {
                    let why = format!("{} has not told its commands yet", core.backend.name());
                    let answer = core.unavailable(&why);
                    self.answer_with(answer);
                    None
                }
                Err(stuck) => stuck,
            };
        }
        // It is none of the server's: it answers an error, for which nobody's cache is emptied.
        let carriage = Carriage::elsewhere(&Lanes::All, true, "unknown");
        self.carry(client, &link, carriage, request, now)
    }

    /// The command at hand was not executed: it is told so.
    pub(in crate::kinds::redis::door) fn answer_with(&mut self, answer: telling::Answer) {
        self.refusals.one(Instant::now());
        match answer {
            telling::Answer::Reply(reply) => self.answer(&reply),
            telling::Answer::Close => (self.ending, self.closed) = (Ending::Reset, Closed::Told),
        }
    }
}

/// What Redis says of a command with the wrong words; `None` for one that has the right number of them.
fn wrong_words(spec: &Spec, args: &[&[u8]]) -> Option<String> {
    if spec.flags.has(Flags::CONTAINER) && args.len() > 1 {
        let inner = args.get(1).copied().unwrap_or_default();
        let inner = String::from_utf8_lossy(inner.get(..128).unwrap_or(inner)).into_owned();
        let name = spec.name.to_ascii_uppercase();
        return Some(format!("ERR unknown subcommand '{inner}'. Try {name} HELP."));
    }
    (!spec.takes(args.len()))
        .then(|| format!("ERR wrong number of arguments for '{}' command", spec.name))
}

impl Requests {
    /// Writes the name of the request that was found last in upper case, in a copy of it.
    fn uppercase_name(&self, request: &mut [u8]) {
        if let Some(name) = self.name_of(request) {
            name.make_ascii_uppercase();
        }
    }
}
