//! What a client asks to be done to another one, by the number that CLIENT ID and CLIENT LIST show at the door.
//!
//! A command that names the server's numbers goes to the server as any other, and needs an admin's rights.
//!
//! Who waits at the server is unblocked there, by the number of its connection. That may take a while, and the one that
//! waits may have its answer by then: so nobody else gets that connection after it.

use std::rc::Rc;

use bytes::Bytes;
use fusebox_state::Lanes;
use tokio::time::Instant;

use super::{Carriage, Client, Ending, Inner, Stuck, carried::Noted, pinned::Sent};
use crate::kinds::redis::{
    door::{
        class::{Class, Local},
        counters::Closed,
        local::FIRST_ID,
        pin::PinnedTo,
        telling, waiting,
    },
    protocol::resp,
};

/// These commands are about the door's clients, as CLIENT LIST is.
const OF_THE_DOOR: Class = Class::Local(Local::List);

/// The point at which a client waits for others.
enum Waits {
    Nowhere,
    /// Here: the server is away.
    Parked,
    /// On its connection, which is not open yet.
    Opening,
    /// At the server, on its connection of this number.
    At(i64),
}

impl Inner {
    /// CLIENT UNBLOCK and CLIENT KILL ID of one of the door's clients. `None` if the command at hand is something else.
    pub(super) fn about_another(
        &mut self,
        client: &Rc<Client>,
        args: &[&[u8]],
        now: Instant,
    ) -> Option<Sent> {
        let [name, what, rest @ ..] = args else { return None };
        // Who may only read has no say about others.
        let may = self.session.who.is_some() && !self.session.reads_only;
        if !may || !name.eq_ignore_ascii_case(b"CLIENT") {
            return None;
        }
        match (what.to_ascii_lowercase().as_slice(), rest) {
            (b"unblock", [id, how @ ..]) => {
                let target = client.core().whole.client(number(id)?);
                let with_error = match how {
                    [] => false,
                    [word] if word.eq_ignore_ascii_case(b"TIMEOUT") => false,
                    [word] if word.eq_ignore_ascii_case(b"ERROR") => true,
                    _ => return None,
                };
                if self.is_barred(client, OF_THE_DOOR, now) {
                    return Some(Ok(()));
                }
                let waits = match &target {
                    Some(target) if !Rc::ptr_eq(target, client) => target.waits(),
                    _ => Waits::Nowhere,
                };
                match (waits, target) {
                    (Waits::At(id), Some(target)) => {
                        let stuck = self.unblock_at(client, id, how, now);
                        if stuck.is_none() {
                            target.aim();
                        }
                        return Some(stuck.map_or(Ok(()), |stuck| Err(Some(stuck))));
                    }
                    (Waits::Opening, _) => return Some(self.until_open(client, now)),
                    (Waits::Parked, Some(target)) => {
                        target.unblock(with_error);
                        self.answer(b":1\r\n");
                    }
                    _ => self.answer(b":0\r\n"),
                }
            }
            (b"kill", [word, id]) if word.eq_ignore_ascii_case(b"ID") => {
                let target = client.core().whole.client(number(id)?);
                if self.is_barred(client, OF_THE_DOOR, now) {
                    return Some(Ok(()));
                }
                match target {
                    Some(target) if Rc::ptr_eq(&target, client) => {
                        self.answer(b":1\r\n");
                        self.end.with(Ending::Answered, Closed::Client);
                    }
                    Some(target) => {
                        target.kill();
                        self.answer(b":1\r\n");
                    }
                    None => self.answer(b":0\r\n"),
                }
            }
            _ => return None,
        }
        Some(Ok(()))
    }

    /// The server has the connection on which another one waits.
    fn unblock_at(
        &mut self,
        client: &Rc<Client>,
        id: i64,
        how: &[&[u8]],
        now: Instant,
    ) -> Option<Stuck> {
        let id = id.to_string();
        let words = [&b"CLIENT"[..], b"UNBLOCK", id.as_bytes()];
        let request = resp::command(&words.iter().chain(how).copied().collect::<Vec<_>>());
        let link = match &self.pinned {
            Some(pinned) => Rc::clone(pinned.upstream()),
            None => client.core().link(self.session.protocol),
        };
        let lanes = Lanes::new([]);
        let carriage =
            Carriage { noted: Noted::MayWrite, ..Carriage::elsewhere(&lanes, true, "command") };
        self.carry(client, &link, carriage, &request, now)
    }

    /// The connection on which another one waits is not open yet. It is soon, or is given up: then its command is
    /// parked, or was answered.
    fn until_open(&mut self, client: &Rc<Client>, now: Instant) -> Sent {
        if !self.is_late(client, now) {
            return Err(Some(Stuck::Place));
        }
        let core = client.core();
        let why = format!("{}: that client's connection is not open yet", core.backend.name());
        self.answer_with(client, core.unavailable(&why));
        Err(None)
    }

    /// What it has parked ends now, as if its time were over, or with an error.
    fn unblock(&mut self, client: &Client, with_error: bool) {
        client.core().is_not_parked(client);
        let Some(parked) = self.parked.take() else { return };
        let error = telling::error("UNBLOCKED client unblocked via CLIENT UNBLOCK");
        let answer = if with_error {
            error
        } else {
            Bytes::from_static(waiting::nothing_came(self.session.protocol))
        };
        self.reply(parked.seq(), &answer);
    }
}

impl Client {
    fn waits(&self) -> Waits {
        let inner = self.inner.borrow();
        if inner.parked.is_some() {
            return Waits::Parked;
        }
        let upstream = inner.pinned.as_ref().map(PinnedTo::upstream);
        let Some(upstream) = upstream.filter(|it| it.is_blocked()) else { return Waits::Nowhere };
        match upstream.server_id() {
            Some(id) => Waits::At(id),
            // A server that numbers no connections unblocks none.
            None if upstream.is_up() => Waits::Nowhere,
            None => Waits::Opening,
        }
    }

    /// Somebody has the server unblock its connection.
    fn aim(&self) {
        if let Some(pinned) = &mut self.inner.borrow_mut().pinned {
            pinned.aim();
        }
    }

    fn unblock(&self, with_error: bool) {
        self.inner.borrow_mut().unblock(self, with_error);
        self.wake();
    }

    fn kill(&self) {
        self.inner.borrow_mut().end.with(Ending::Reset, Closed::Client);
        self.wake();
    }
}

/// A number that the door has given.
fn number(word: &[u8]) -> Option<u64> {
    str::from_utf8(word).ok()?.parse().ok().filter(|number| *number >= FIRST_ID)
}
