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
        settings::Guest,
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
        let core = &client.core;
        // What follows is of another protocol, or another user: what is before it is answered first.
        if matches!(local, Local::Hello | Local::Auth | Local::Select | Local::Reset)
            && !self.slots.is_empty()
        {
            return Some(Stuck::Others);
        }
        let before = self.protocol();
        match self.session.local(local, args, &core.server()) {
            Then::Answered(answer) => {
                self.answer(&answer);
                self.follow_protocol(client, before, now);
            }
            Then::Silent => {}
            Then::Close(answer) => {
                self.answer(&answer);
                self.ending = Ending::Answered;
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
                self.session.reset(core.database());
                self.answer(b"+RESET\r\n");
            }
        }
        None
    }

    /// What `FUSEBOX …` is answered.
    pub(super) fn fusebox(&mut self, args: &[&[u8]]) -> Bytes {
        match args {
            [_, what] if what.eq_ignore_ascii_case(b"LAST") => self.last.reply(self.protocol()),
            _ => {
                telling::error("ERR fusebox: FUSEBOX LAST tells where the previous reply came from")
            }
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
                self.ended(seq, answer);
            }
            Done::Authenticated(seq, guest, hello) => {
                let refused = "WRONGPASS invalid username-password pair or user is disabled.";
                let Some(Guest { who, reads_only, is_backends_own }) = guest else {
                    client.core.counters.wrong_secret();
                    return self.reply(seq, &telling::error(refused));
                };
                self.session.greet(who, reads_only, is_backends_own);
                let before = self.protocol();
                let answer = match hello {
                    Some(hello) => self.session.greeted(hello, &client.core.server()),
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
            (self.ending, self.closed) = (Ending::Reset, Closed::Upstream);
        }
    }
}
