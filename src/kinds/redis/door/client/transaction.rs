//! A transaction that comes piece by piece, over the client's own upstream: MULTI, what the server queues, and EXEC.

use std::rc::Rc;

use fusebox_actors::PlainAccess;
use fusebox_state::Lanes;
use tokio::time::Instant;

use super::{
    Client, Inner, Stuck,
    pinned::{Denied, Said, Sent, has_backend, number},
};
use crate::kinds::redis::{
    door::{
        class::{Class, Local, Pinned},
        pin::Barred,
        telling,
        upstream::{Note, Unsettled},
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
        self.queue(client, &Lanes::All, request, now).err().flatten()
    }

    pub(super) fn multi(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let sent = self.enter(client, said.now).and_then(|upstream| {
            let how = (None, Note::None, true);
            self.send(client, &upstream, how, said.request, said.now)
        });
        match (sent, &mut self.pinned) {
            (Ok(()), Some(pinned)) => pinned.begin(),
            (Err(None), _) => self.bar(Barred::Transaction),
            _ => {}
        }
        sent
    }

    /// What ends a transaction, if there is none. The server says what is wrong, or what no longer is watched.
    pub(super) fn outside(&mut self, client: &Rc<Client>, said: Said<'_>) -> Sent {
        let sent = match &self.pinned {
            Some(pinned) => {
                let upstream = Rc::clone(pinned.upstream());
                let is_unwatch = said.class == Class::Pinned(Pinned::Unwatch);
                let note = if is_unwatch { Note::Ends(None) } else { Note::None };
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
            Class::Pinned(Pinned::Discard) if said.args.len() == 1 => {
                let upstream = Rc::clone(pinned.upstream());
                let how = (None, Note::Ends(None), true);
                self.send(client, &upstream, how, said.request, said.now)
            }
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
    pub(super) fn queue(
        &mut self,
        client: &Rc<Client>,
        lanes: &Lanes,
        request: &[u8],
        now: Instant,
    ) -> Sent {
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
                // Nobody else can run it again: what failed is answered.
                Ok(ticket) => {
                    let unsettled = Unsettled::new(client.core().connector(), lanes);
                    let how = (Some(ticket), Note::Ends(Some(unsettled)), true);
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
}
