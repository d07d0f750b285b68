//! What the door answers by itself, and what the end of a slow call comes to.

use std::rc::Rc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Client, Ending, Inner, Stuck};
use crate::kinds::redis::{
    door::{
        class::Local,
        counters::Closed,
        local::Then,
        slow::Done,
        telling::{self, Protocol},
        upstream::Note,
    },
    protocol::resp,
    transport::handshake::Protocol as Spoken,
};

impl Inner {
    pub(super) fn local(
        &mut self,
        client: &Rc<Client>,
        local: Local,
        args: &[&[u8]],
        now: Instant,
    ) -> Option<Stuck> {
        let core = &client.core();
        // What follows is of another protocol, or another user: what is before it is answered first.
        if matches!(local, Local::Hello | Local::Auth | Local::Select | Local::Reset)
            && !self.slots.is_empty()
        {
            return Some(Stuck::Others);
        }
        if local == Local::List {
            let answer = self.list(client, args);
            self.answer(&answer);
            return None;
        }
        let before = self.protocol();
        match self.session.local(local, args, &core.server()) {
            Then::Answered(answer) => {
                self.answer(&answer);
                self.follow_protocol(client, before, now);
            }
            Then::Silent => self.answered_here += 1,
            Then::Close(answer) => {
                self.answer(&answer);
                self.end.as_expected(Ending::Answered);
            }
            Then::Authenticate { user, secret, hello } => {
                let seq = self.slot();
                self.slow.push_back(core.authenticate(seq, user, secret, hello));
            }
            Then::Select(database) => return self.select(client, database, now),
            Then::Reset => {
                if let Some(pinned) = self.pinned.take() {
                    pinned.close();
                }
                self.barred = None;
                if let Some(home) = core.home() {
                    self.moves(client, home);
                }
                self.session.reset(client.core().database());
                self.answer(b"+RESET\r\n");
            }
        }
        None
    }

    /// The door's clients, as CLIENT LIST shows them: those of these numbers, or of this type.
    fn list(&self, client: &Rc<Client>, args: &[&[u8]]) -> Bytes {
        let rest = args.get(2..).unwrap_or_default();
        let is = |word: &[u8], name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        let numbers = |words: &[&[u8]]| {
            let number = |word: &&[u8]| str::from_utf8(word).ok()?.parse::<u64>().ok();
            words.iter().map(number).collect::<Option<Vec<_>>>()
        };
        let (only, listens) = match rest {
            [] => (None, None),
            [word, ids @ ..] if is(word, "id") && !ids.is_empty() => match numbers(ids) {
                Some(ids) => (Some(ids), None),
                None => return telling::error("ERR Invalid client ID"),
            },
            [word, kind] if is(word, "type") && is(kind, "normal") => (None, Some(false)),
            [word, kind] if is(word, "type") && is(kind, "pubsub") => (None, Some(true)),
            [word, kind]
                if is(word, "type")
                    && ["master", "replica", "slave"].iter().any(|it| is(kind, it)) =>
            {
                (Some(Vec::new()), None)
            }
            [word, kind] if is(word, "type") => {
                let kind = String::from_utf8_lossy(kind);
                return telling::error(&format!("ERR Unknown client type '{kind}'"));
            }
            _ => return telling::error("ERR syntax error"),
        };
        let mut lines = String::new();
        for other in client.core().whole.clients() {
            if only.as_ref().is_some_and(|only| !only.contains(&other.id())) {
                continue;
            }
            let (line, hears) = if Rc::ptr_eq(&other, client) {
                (self.session.info(), self.hears())
            } else {
                other.shown()
            };
            if listens.is_none_or(|listens| listens == hears) {
                lines.push_str(&line);
            }
        }
        let mut out = bytes::BytesMut::new();
        resp::write_bulk(&mut out, lines.as_bytes());
        out.freeze()
    }

    /// Whether it may hear something without asking.
    pub(super) fn hears(&self) -> bool {
        self.pinned.as_ref().is_some_and(|pinned| pinned.upstream().listens())
    }

    /// What `FUSEBOX …` is answered.
    pub(super) fn fusebox(&mut self, args: &[&[u8]]) -> Bytes {
        match args {
            [_, what] if what.eq_ignore_ascii_case(b"LAST") => self.last.reply(self.protocol()),
            _ => telling::error("ERR fusebox: FUSEBOX LAST describes the previous reply"),
        }
    }

    /// A slow call has ended.
    pub(super) fn slow_ended(&mut self, client: &Rc<Client>, done: Done) {
        match done {
            Done::Answered(seq, answer, told, acknowledged) => {
                self.last = told;
                if let Some(lanes) = acknowledged {
                    self.failed.iter_mut().for_each(|failed| failed.onward.follows(&lanes));
                }
                self.ended(client, seq, answer);
            }
            Done::Authenticated(seq, guest, hello) => {
                client.core().counters.answered_here(1);
                let refused = "WRONGPASS invalid username-password pair or user is disabled.";
                let Some(guest) = guest else {
                    client.core().counters.wrong_secret();
                    return self.reply(seq, &telling::error(refused));
                };
                self.session.greet(guest);
                let before = self.protocol();
                let answer = match hello {
                    Some(hello) => self.session.greeted(hello, &client.core().server()),
                    None => Bytes::from_static(b"+OK\r\n"),
                };
                self.reply(seq, &answer);
                self.follow_protocol(client, before, Instant::now());
            }
        }
    }

    /// A pinned client has changed its protocol: its own connection does so, too.
    fn follow_protocol(&mut self, client: &Rc<Client>, before: Protocol, now: Instant) {
        let protocol = self.protocol();
        let Some(pinned) = self.pinned.as_ref().filter(|_| protocol != before) else { return };
        let version = if protocol == Protocol::Resp3 { "3" } else { "2" };
        let upstream = Rc::clone(pinned.upstream());
        let hello = resp::command(&["HELLO", version]);
        let spoken = if protocol == Protocol::Resp3 { Spoken::Newest } else { Spoken::Two };
        let how = (None, Note::Speaks(spoken), true);
        if self.send(client, &upstream, how, &hello, now).is_err() {
            self.end.with(Ending::Reset, Closed::Upstream);
        }
    }
}
