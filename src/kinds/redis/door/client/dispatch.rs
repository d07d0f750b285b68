//! What becomes of one command.

use std::rc::Rc;

use bytes::Bytes;
use fusebox_actors::{
    AUDIT, PlainAccess,
    connector::{Access, Connector, Plan, Write},
};
use fusebox_state::Lanes;
use tokio::time::Instant;

use super::{Carriage, Client, Ending, Inner, Stuck, carried::Noted, pinned::Said};
use crate::ingress::seldom::Seldom;
use crate::kinds::redis::{
    door::{
        class::{self, Class, Local, Pinned},
        counters::Closed,
        pin::PinnedTo,
        quick::{self, Does, Row},
        request::{Found, Requests},
        telling,
        upstream::Upstream,
    },
    protocol::{
        commands::{Flags, Spec},
        effect,
    },
    transport::scripts,
};

/// Commands of so many words are looked at without an allocation.
const FEW: usize = 16;

/// What Redis says to who must say first who it is.
const NOAUTH: &str = "NOAUTH Authentication required.";

impl Inner {
    /// Takes the command at hand, behind which these bytes have come, or says on what it is stuck.
    pub(super) fn dispatch(
        &mut self,
        client: &Rc<Client>,
        reader: &Requests,
        (request, behind): (&[u8], &[u8]),
        now: Instant,
    ) -> Option<Stuck> {
        // Who is not read any more does not ask again.
        if self.end.why() != Closed::Stop && self.refusals.paces(now).is_some() {
            return Some(Stuck::Paced);
        }
        // Nothing is sent behind a command that may wait as long as it likes: it would hold its place for as long.
        if self.is_blocked() {
            return Some(Stuck::Others);
        }
        if self.deciding {
            // What follows means depends on the answer.
            if !self.is_answered() {
                return Some(Stuck::Others);
            }
            self.deciding = false;
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
                    "a client speaks HTTP to a Redis door: the connection is closed"
                );
            }
            self.end.with(Ending::Reset, Closed::Protocol);
            return None;
        }
        let stuck = self.general(client, &args, (request, behind), now);
        if stuck.is_none() && self.session.who.is_some_and(|who| who.admin) {
            self.audit(client, &args);
        }
        stuck
    }

    /// Logs a command that only an admin may send.
    fn audit(&self, client: &Client, args: &[&[u8]]) {
        let core = client.core();
        let connector = core.connector();
        if let Some(spec) = connector.links().shared.commands.find(args)
            && class::needs_admin(&spec)
        {
            let command = spec.name.replace('|', " ").to_ascii_uppercase();
            let (backend, door) = (core.backend.name(), core.settings.address);
            let by = self.session.caller();
            tracing::info!(target: AUDIT, backend, door, command, by, "an administrative command");
        }
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
        let mut noted = Noted::Nothing;
        let access = match row.does {
            Does::Reads => {
                noted = Noted::Cached;
                let slot = lanes.as_slice().first().map(|lane| (*lane, canonical.as_slice()));
                PlainAccess::Read { keyed: true, slot, max_stale: core.settings.max_stale }
            }
            Does::Looks => PlainAccess::Read { keyed: true, slot: None, max_stale: None },
            does => {
                noted = Noted::Timed;
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
        let carriage = Carriage { lanes: &lanes, access, operation, noted, elsewhere: false };
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
        if spec.name.as_ref() == "script|flush" {
            // By whichever way it goes: a script too few costs a NOSCRIPT, one too many brings back what was removed.
            connector.links().shared.scripts.done(scripts::Does::Flushes, request);
        }
        if class::releases(&spec) && !self.is_within() {
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
                self.planned(client, &link, (&spec, request), now)
            }
            _ => self.through_pin(client, said),
        }
    }

    /// Whether it is between MULTI and EXEC: then everything goes to the server itself.
    pub(super) fn is_within(&self) -> bool {
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
        (spec, request): (&Spec, &[u8]),
        now: Instant,
    ) -> Option<Stuck> {
        let connector = client.core().connector();
        // What is cached is found by the name in upper case.
        let mut canonical = request.to_vec();
        let mut reader = Requests::default();
        if matches!(reader.next(request, true), Found::Request(_)) {
            reader.uppercase_name(&mut canonical);
        }
        let canonical = Bytes::from(canonical);
        let request = &*canonical;
        let plan = match connector.plan(canonical.clone()) {
            Ok(plan) => plan,
            Err(refused) => {
                self.answer(&telling::error(&format!("ERR fusebox: {refused}")));
                return None;
            }
        };
        let Plan { lanes, access, .. } = plan;
        let scripts = scripts::Does::of(spec);
        let (access, noted) = match &access {
            Access::Read(read) => {
                // One that is not answered by one entry alone: MGET, also of one key.
                let slot = match read.slots.as_slice() {
                    [slot] if *slot.key == *request => Some((slot.lane, &*slot.key)),
                    _ => None,
                };
                let noted = if slot.is_some() {
                    Noted::Cached
                } else if read.slots.is_empty() {
                    scripts.map_or(Noted::Nothing, Noted::Script)
                } else {
                    let leave = client.core().backend.begin_fills(read);
                    Noted::Parts(Box::new((read.clone(), leave)))
                };
                let max_stale = client.core().settings.max_stale;
                (PlainAccess::Read { keyed: read.keyed, slot, max_stale }, noted)
            }
            Access::Write(Write { absolute, .. }) => {
                let noted = scripts.map_or(Noted::Timed, Noted::Script);
                (PlainAccess::Write { absolute: *absolute }, noted)
            }
        };
        let (lanes, operation) = (&lanes, "command");
        let carriage = Carriage { lanes, access, operation, noted, elsewhere: false };
        self.carry(client, link, carriage, request, now)
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
            let why = "NOPERM fusebox: this user may not write, and fusebox does not know whether that command writes";
            if let Some(pinned) = &mut self.pinned {
                pinned.spoil();
            }
            self.answer(&telling::error(why));
            return None;
        }
        if self.is_barred(client, Class::Carried, now) {
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
            // Whether it writes is known once the server has listed its commands, which it is asked whenever it was
            // met.
            return match self.may_ask_all(client, now) {
                Ok(()) if !self.is_late(client, now) => Some(Stuck::Lanes),
                Ok(()) => {
                    let why = format!(
                        "{} has not yet sent the list of its commands",
                        core.backend.name()
                    );
                    let answer = core.unavailable(&why);
                    self.answer_with(client, answer);
                    None
                }
                Err(stuck) => stuck,
            };
        }
        self.carry(client, &link, Carriage::unlisted(), request, now)
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
