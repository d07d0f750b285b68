//! A transaction that comes piece by piece, over the client's own upstream: MULTI, what the server queues, and EXEC.
//!
//! EXEC and DISCARD end it whatever becomes of them. If the upstream takes neither for as long as a command waits, the
//! door answers that nothing was run, and the upstream is closed: what the server has queued goes with it.

use std::rc::Rc;

use bytes::Bytes;
use fusebox_actors::PlainAccess;
use fusebox_state::Lanes;
use tokio::time::Instant;

use super::{
    Client, Ending, Inner, Stuck,
    pinned::{Denied, Said, Sent, has_backend, number},
};
use crate::kinds::redis::{
    door::{
        class::{self, Class, Local, Pinned},
        counters::Closed,
        pin::{Barred, Steps},
        telling,
        upstream::{Note, Unit, Upstream},
    },
    protocol::resp,
};

impl Inner {
    /// A command that nobody knows, between MULTI and EXEC: the server says what it is.
    pub(super) fn unknown_within(
        &mut self,
        client: &Rc<Client>,
        request: &[u8],
        now: Instant,
    ) -> Option<Stuck> {
        self.queue(client, (&Lanes::All, (true, None)), request, now).err().flatten()
    }

    /// MULTI by itself. What follows waits until the server has taken it.
    pub(super) fn multi(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let sent = self.enter(client, said.now).and_then(|upstream| {
            self.send(client, &upstream, (None, Note::Begins, true), said.request, said.now)
        });
        match sent {
            Ok(()) => self.deciding = true,
            Err(None) => self.bar(Barred::Transaction),
            Err(Some(_)) => {}
        }
        sent
    }

    /// The server has answered a MULTI. If it was refused, nothing is queued there: what follows would be run at once.
    pub(super) fn begun(&mut self, frame: &[u8]) {
        match &mut self.pinned {
            Some(pinned) if frame == b"+OK\r\n" => pinned.begin(),
            _ => self.bar(Barred::Transaction),
        }
    }

    /// What ends a transaction, if there is none. The server says what is wrong, or what no longer is watched.
    pub(super) fn outside(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let sent = match &self.pinned {
            Some(pinned) => {
                let upstream = Rc::clone(pinned.upstream());
                let is_unwatch = said.class == Class::Pinned(Pinned::Unwatch);
                let note = if is_unwatch { Note::Ends } else { Note::None };
                self.send(client, &upstream, (None, note, true), said.request, said.now)
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
        // EXEC and DISCARD are refused here: what is watched stays watched.
        if sent.is_ok()
            && said.class == Class::Pinned(Pinned::Unwatch)
            && let Some(pinned) = &mut self.pinned
        {
            pinned.unwatch();
        }
        sent
    }

    /// A command between MULTI and EXEC, and these two.
    pub(super) fn within(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let Some(pinned) = &mut self.pinned else { return Ok(()) };
        let sent = match said.class {
            Class::Pinned(Pinned::Exec) => self.exec(client, said),
            // With words too many the server refuses it, and the transaction goes on.
            Class::Pinned(Pinned::Discard) if said.args.len() == 1 => self.discard(client, said),
            Class::Local(Local::Select)
                if let Some(database) = number(said.args)
                    && let Some(core) = client.core().beside(database)
                    && !Rc::ptr_eq(&core, &client.core()) =>
            {
                pinned.spoil();
                self.answer(&has_backend(database));
                return Ok(());
            }
            class => {
                let lanes = self.lanes_of(client, said);
                let writes = class::writes(said.spec, class);
                let timed = writes.then(|| Steps::timed(said.spec, said.args)).flatten();
                let is_any = Steps::touches_any(said.spec, said.args, &lanes);
                self.queue(client, (&lanes, (is_any, timed)), said.request, said.now)?;
                if class == Class::Local(Local::Select)
                    && let Some(pinned) = &mut self.pinned
                {
                    pinned.selected(None);
                }
                return Ok(());
            }
        };
        match (sent, &mut self.pinned) {
            (Ok(()), Some(pinned)) => pinned.end(),
            // It was answered here, and the server knows nothing of that.
            (Err(None), _) => self.end_own(client),
            _ => {}
        }
        sent
    }

    /// A command that the server queues until EXEC, of these lanes, and what is kept of it.
    pub(super) fn queue(
        &mut self,
        client: &Rc<Client>,
        (lanes, step): (&Lanes, (bool, Option<Bytes>)),
        request: &[u8],
        now: Instant,
    ) -> Sent {
        let Some(pinned) = &mut self.pinned else { return Ok(()) };
        let upstream = Rc::clone(pinned.upstream());
        let sent = self.send(client, &upstream, (None, Note::Within, true), request, now);
        if let Some(pinned) = &mut self.pinned {
            match sent {
                Ok(()) => pinned.add(lanes, step),
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
        let discard = resp::command(&["DISCARD"]);
        let longest = said.request.len().max(discard.len());
        let core = client.core();
        if !self.takes_end(client, &upstream, longest, said.now)? {
            self.aborted(&format!("of: fusebox: {} accepts no commands now", core.backend.name()));
            return Err(None);
        }
        let why = if pinned.is_spoilt() {
            "of previous errors.".to_owned()
        } else {
            let access = PlainAccess::Write { absolute: false };
            match self.leave(client, &lanes, access, "EXEC", said.now) {
                // Nobody else can run it again: what failed is answered.
                Ok(ticket) => {
                    let steps = pinned.steps(core.database());
                    let exact = (!lanes.is_all()).then(|| lanes.as_slice().to_vec());
                    let unsettled = core.unsettled((lanes, exact), steps, &upstream);
                    let unit = Unit::that_writes(1, unsettled);
                    let how = (Some(ticket), Note::Unit(Box::new(unit)), true);
                    return self.send(client, &upstream, how, said.request, said.now);
                }
                Err(Denied::Stuck(stuck)) => return Err(Some(stuck)),
                Err(Denied::Told(why)) => format!("of: fusebox: {why}"),
            }
        };
        self.send(client, &upstream, (None, Note::Own, true), &discard, said.now)?;
        self.aborted(&why);
        Ok(())
    }

    fn discard(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let Some(pinned) = &self.pinned else { return Ok(()) };
        let upstream = Rc::clone(pinned.upstream());
        if !self.takes_end(client, &upstream, said.request.len(), said.now)? {
            // So it is, with its connection.
            self.answer(b"+OK\r\n");
            return Err(None);
        }
        let how = (None, Note::Ends, true);
        self.send(client, &upstream, how, said.request, said.now)
    }

    /// Whether a transaction's upstream takes so many bytes that end it. False if it does not, and the command at hand
    /// has waited for that as long as it may; an error while it waits.
    fn takes_end(
        &self,
        client: &Rc<Client>,
        upstream: &Upstream,
        bytes: usize,
        now: Instant,
    ) -> Result<bool, Option<Stuck>> {
        if upstream.takes(bytes) {
            return Ok(true);
        }
        let core = client.core();
        core.asks_for_fence(upstream);
        let is_vain = self.stuck_since.is_some_and(|since| core.is_not_fenced_since(since));
        if is_vain || self.is_late(client, now) { Ok(false) } else { Err(Some(Stuck::Place)) }
    }

    fn aborted(&mut self, why: &str) {
        self.answer(&telling::error(&format!("EXECABORT Transaction discarded because {why}")));
    }

    /// Ends its own connection, and with that the transaction that is open there. The client goes with it if more is
    /// left on it, or if it owes the client replies.
    fn end_own(&mut self, client: &Client) {
        let owes = !self.is_answered();
        let Some(pinned) = &mut self.pinned else { return };
        if owes {
            return self.leaves_with_its_own();
        }
        pinned.end();
        // Whether it still listens is known now.
        pinned.listens();
        if !pinned.is_clean(client.core().database()) {
            return self.leaves_with_its_own();
        }
        if let Some(pinned) = self.pinned.take() {
            pinned.close();
        }
    }

    /// It is disconnected once it has got its replies: on its own connection something is left that it does not expect
    /// there.
    pub(super) fn leaves_with_its_own(&mut self) {
        self.end.with(Ending::Answered, Closed::Upstream);
        if let Some(pinned) = &mut self.pinned {
            pinned.keep();
        }
    }
}
