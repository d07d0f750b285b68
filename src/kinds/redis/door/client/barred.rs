//! What was not carried out, so that what follows would mean something else: that is refused until the client has heard
//! of it.

use std::{rc::Rc, time::Duration};

use tokio::time::Instant;

use super::{Client, Ending, Inner};
use crate::kinds::redis::{
    door::{
        class::{Class, Local, Pinned},
        counters::Closed,
        pin::Barred,
        telling,
        upstream::Note,
    },
    protocol::resp,
};

/// After this time a client has heard that its MULTI was refused: what it says then is no part of that transaction.
const HEARD: Duration = Duration::from_secs(1);

impl Inner {
    /// Something was not carried out without which what follows would mean something else.
    pub(super) fn bar(&mut self, barred: Barred) {
        self.barred = Some((barred, self.is_answered().then(Instant::now)));
    }

    pub(super) fn unbar(&mut self, barred: Barred) {
        if self.barred.is_some_and(|(it, _)| it == barred) {
            self.barred = None;
        }
    }

    /// A command while one that was not carried out bars it. `false` if it may pass.
    pub(super) fn is_barred(&mut self, client: &Rc<Client>, class: Class, now: Instant) -> bool {
        let Some((barred, since)) = self.barred else { return false };
        if matches!(class, Class::Local(Local::Quit | Local::Reset)) {
            return false;
        }
        let core = client.core();
        let backend = core.backend.name();
        let why = match (barred, class) {
            (Barred::Database, Class::Local(_)) => return false,
            (Barred::Database, _) => format!("the preceding SELECT did not reach {backend}"),
            (Barred::Watch, Class::Pinned(Pinned::Multi)) => {
                self.bar(Barred::Transaction);
                format!("the preceding WATCH did not reach {backend}")
            }
            (Barred::Watch, Class::Pinned(Pinned::Unwatch)) => {
                self.barred = None;
                return false;
            }
            (Barred::Watch, _) => return false,
            (Barred::Transaction, Class::Pinned(end @ (Pinned::Exec | Pinned::Discard))) => {
                self.forget_watched(client, now);
                self.barred = None;
                let aborted = "EXECABORT Transaction discarded because of previous errors.";
                if end == Pinned::Exec {
                    self.answer(&telling::error(aborted));
                } else {
                    self.answer(b"+OK\r\n");
                }
                return true;
            }
            (Barred::Transaction, Class::Pinned(Pinned::Multi)) if self.is_answered() => {
                self.barred = None;
                return false;
            }
            (Barred::Transaction, _) => format!("{backend} has not taken the preceding MULTI"),
        };
        if self.is_answered() && since.is_none() {
            self.barred = self.barred.map(|(barred, _)| (barred, Some(now)));
        }
        let answer = client.core().unavailable(&why);
        self.answer_with(client, answer);
        true
    }

    /// Something comes of a client all of whose commands were taken: if that is a while after the answer that its
    /// transaction will not run, it has heard of it.
    pub(super) fn has_heard(&mut self, now: Instant) {
        if let Some((Barred::Transaction, Some(since))) = self.barred
            && now - since >= HEARD
        {
            self.barred = None;
        }
    }

    /// The transaction that was to see whether something changes will not run.
    fn forget_watched(&mut self, client: &Rc<Client>, now: Instant) {
        if let Some(pinned) = &mut self.pinned {
            pinned.unwatch();
            let upstream = Rc::clone(pinned.upstream());
            let unwatch = resp::command(&["UNWATCH"]);
            if self.send(client, &upstream, (None, Note::Own, true), &unwatch, now).is_err() {
                self.end.with(Ending::Reset, Closed::Upstream);
            }
        }
    }
}
