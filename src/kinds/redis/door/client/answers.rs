//! What the server makes of what a client sent: its replies, whole or piece by piece, and that there is none.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::{
    Outcome, Settled, Source, Ticket,
    connector::{AttemptError, Connector},
};
use fusebox_state::{ErrorClass, Verdict};

use super::{Client, Ending, Failed, OWED_MIN, Refusal};
use crate::kinds::redis::{
    connector::RedisConnector,
    door::{
        core::Core,
        counters::Closed,
        pin::{Barred, PinnedTo},
        telling,
        upstream::{Entry, Lost, Note, Upstream},
        waiting::Waiting,
    },
    protocol::resp,
};

/// A client is owed no more than this of a large reply, in bytes, before more of it is read.
const AHEAD: usize = 1 << 20;

impl Client {
    /// The server has answered.
    pub(in crate::kinds::redis::door) fn answered(
        &self,
        entry: Entry,
        request: &[u8],
        frame: &[u8],
        connector: &Arc<RedisConnector>,
    ) {
        let Entry { seq, ticket, note, elsewhere, .. } = entry;
        let mut inner = self.inner.borrow_mut();
        if !note.is_the_doors() {
            inner.on_wire -= 1;
        }
        inner.last = telling::Told::default();
        if let Some(lanes) = ticket.as_ref().and_then(Ticket::lanes)
            && !matches!(frame.first(), Some(b'-' | b'!'))
        {
            inner.passes(lanes);
        } else if inner.has_refusals() && !matches!(frame.first(), Some(b'-' | b'!')) {
            // It was read behind a write that the server has refused: that write was not executed, then.
            if let Ok(plan) = connector.plan(Bytes::copy_from_slice(request)) {
                inner.passes(&plan.lanes);
            }
        }
        if let Note::Unit(unit) = &note {
            return inner.unit_answered(&self.core(), connector, (seq, ticket), unit);
        }
        if matches!(note, Note::Ends)
            && frame.starts_with(b"-")
            && !frame.starts_with(b"-EXECABORT")
        {
            // What it was to end may not have ended.
            inner.leaves_with_its_own();
        }
        let protocol = inner.session.protocol;
        if let Some(ticket) = ticket {
            if let Some(b'-' | b'!') = frame.first()
                && let Some(outcome) = self.core().failed(connector, request, frame)
            {
                let settled = ticket.settle(outcome);
                if elsewhere {
                    self.core().over(settled);
                } else if let Settled::GoOn(onward) = settled {
                    let held = self.core().whole.keeps(Bytes::copy_from_slice(request));
                    let words = Bytes::copy_from_slice(frame);
                    let refusal =
                        onward.lanes().is_some().then_some(Refusal { words, is_passed: false });
                    inner.failed.push_back(Failed { seq, onward, held, commands: None, refusal });
                    return;
                }
                return inner.reply(seq, frame);
            }
            let cached = match note {
                Note::Cache => telling::cacheable(frame, protocol, request),
                _ => None,
            };
            let until = cached.and_then(|_| self.core().ends(connector, request));
            let cached = cached.map(|value| (request, value));
            self.core().over(ticket.settle(Outcome::Answered { cached, until }));
        }
        match note {
            Note::Script(does, _) if !matches!(frame.first(), Some(b'-' | b'!')) => {
                connector.links().shared.scripts.done(does, request);
            }
            Note::Script(_, noting) => drop(noting),
            Note::Deadlines(noted) => connector.links().answered(request, &noted.0, frame),
            Note::Counted(on_wire) => drop(on_wire),
            Note::Waited(waited) if !matches!(frame.first(), Some(b'-' | b'!')) => {
                self.core().backend.wrote(waited.unsettled.lanes());
            }
            Note::Own | Note::Speaks(_) => {
                if matches!(frame.first(), Some(b'-'))
                    && let Some(pinned) = &mut inner.pinned
                {
                    pinned.keep();
                }
                return;
            }
            Note::Begins => {
                inner.reply(seq, frame);
                return inner.begun(frame);
            }
            Note::Selects(database) => inner.selected(database, frame),
            Note::Writes(unsettled) => drop(unsettled),
            Note::CacheAll(all) => {
                let (read, fills) = *all;
                if let Some(value) = telling::cacheable_list(frame, protocol) {
                    let body = Bytes::copy_from_slice(request);
                    self.core().backend.end_fills(&fills, &read, &body, &value);
                }
            }
            Note::None
            | Note::Within
            | Note::Ends
            | Note::Cache
            | Note::Waited(_)
            | Note::Unit(_)
            | Note::MayWrite
            | Note::Subscription(_)
            | Note::Monitors => {}
        }
        inner.reply(seq, frame);
    }

    /// Whether the reply of a slot may be handed to it piece by piece: it is the next that it gets, or nobody waits for
    /// it any more.
    pub(in crate::kinds::redis::door) fn takes_pieces(&self, seq: u64) -> bool {
        self.is_nobodys(seq) || self.inner.borrow().slots.is_oldest(seq)
    }

    /// Whether nobody waits for the reply of a slot: the client is gone, or the cache has answered instead.
    fn is_nobodys(&self, seq: u64) -> bool {
        self.gone.get() || self.inner.borrow().slots.is_over(seq)
    }

    /// A piece of the reply of a slot that is next.
    pub(in crate::kinds::redis::door) fn has_piece(&self, seq: u64, piece: &[u8]) {
        if self.is_nobodys(seq) {
            return;
        }
        self.piecewise.set(true);
        let mut inner = self.inner.borrow_mut();
        // Of one that is disconnected for its size, nothing is sent: it may not be the next that the client gets.
        if !inner.end.is_reset() {
            inner.slots.piece(piece);
        }
    }

    /// The last piece of a reply.
    pub(in crate::kinds::redis::door) fn has_all(&self, entry: Entry, rest: &[u8]) {
        self.piecewise.set(false);
        let mut inner = self.inner.borrow_mut();
        inner.on_wire -= 1;
        inner.last = telling::Told::default();
        if let Some(ticket) = entry.ticket {
            self.core().over(ticket.settle(Outcome::Answered { cached: None, until: None }));
        }
        if !inner.end.is_reset() {
            inner.reply(entry.seq, rest);
        }
    }

    /// Whether it is owed so much that the rest of the reply of a slot has to wait.
    pub(in crate::kinds::redis::door) fn is_behind(&self, seq: u64) -> bool {
        !self.is_nobodys(seq) && self.inner.borrow().slots.out().len() > self.ahead()
    }

    /// How large the replies of a transaction may be together, in bytes.
    pub(in crate::kinds::redis::door) fn unit_max(&self) -> usize {
        if self.gone.get() { 0 } else { self.owed_max() }
    }

    /// How much it may be owed, and how large a reply may be that is held whole, in bytes.
    pub(in crate::kinds::redis::door) fn owed_max(&self) -> usize {
        self.core().settings.out_client.max(OWED_MIN)
    }

    /// How much it may be owed of a large reply, in bytes. One that is larger comes piece by piece.
    pub(in crate::kinds::redis::door) fn ahead(&self) -> usize {
        AHEAD.min(self.core().settings.out_client / 2)
    }

    /// Whether the cache may answer the command of a slot instead of the server: everything before it is answered, and
    /// there is room for one more reply.
    pub(in crate::kinds::redis::door) fn takes_instead(&self, seq: u64) -> bool {
        if self.gone.get() {
            return false;
        }
        let inner = self.inner.borrow();
        inner.slots.is_oldest(seq) && inner.slots.owed() < self.owed_max()
    }

    /// The cache has answered instead of the server. What it says is to be sent on.
    pub(in crate::kinds::redis::door) fn answered_instead(
        &self,
        seq: u64,
        (source, value, age): (Source, Bytes, Duration),
    ) {
        let mut inner = self.inner.borrow_mut();
        let Some(value) = telling::in_protocol(&value, inner.session.protocol, false) else {
            return;
        };
        inner.last = telling::Told::cached(source, age);
        self.core().counters.answered(source);
        inner.reply(seq, &value);
        inner.slots.gave(value.len());
    }

    /// Its own upstream, if it is in that database.
    pub(in crate::kinds::redis::door) fn upstream_in(
        &self,
        core: &Rc<Core>,
    ) -> Option<Rc<Upstream>> {
        let is_there = Rc::ptr_eq(&self.core.borrow(), core);
        let inner = self.inner.borrow();
        inner.pinned.as_ref().filter(|_| is_there).map(|pinned| Rc::clone(pinned.upstream()))
    }

    /// The server has said something to this client that answers no command.
    pub(in crate::kinds::redis::door) fn told(&self, frame: &[u8]) {
        self.inner.borrow_mut().slots.told(frame);
    }

    /// An attempt ended without a reply.
    pub(in crate::kinds::redis::door) fn lost(&self, lost: Lost) {
        let Lost { entry: Entry { seq, ticket, note, elsewhere, .. }, body, verdict, error } = lost;
        let mut inner = self.inner.borrow_mut();
        inner.on_wire -= 1;
        if self.piecewise.get() && inner.slots.is_oldest(seq) {
            // The rest of it is not available.
            inner.end.with(Ending::Reset, Closed::Upstream);
            if let Some(ticket) = ticket {
                self.core().over(ticket.settle(Outcome::Failed { verdict, error }));
            }
            return;
        }
        if let Note::Unit(unit) = note {
            return inner.unit_lost(self, (seq, ticket), &unit, &body, (verdict, error));
        }
        if elsewhere {
            let answer = self.core().lost_for_good(ticket, &note, (verdict, error));
            return inner.ended(self, seq, answer);
        }
        drop(inner);
        let Some(ticket) = ticket else { return };
        let may_be = error.class == ErrorClass::Unknown;
        if let Settled::GoOn(mut onward) = ticket.settle(Outcome::Failed { verdict, error })
            && !self.gone.get()
        {
            self.core().backend.hold(&mut onward);
            let lanes = onward.lanes().filter(|_| may_be).cloned();
            let held = self.core().whole.keeps(body);
            let failed = Failed { seq, onward, held, commands: None, refusal: None };
            let mut inner = self.inner.borrow_mut();
            // It has its place in its lanes by now: what the server refused before it must not go on behind it.
            if let Some(lanes) = lanes {
                inner.passes(&lanes);
            }
            inner.failed.push_back(failed);
        }
    }

    /// Its own upstream has ended: what was not sent is answered as such, and what may have been executed, too. The
    /// commands of a transaction share the fate of their EXEC. If it was ever up, the client is disconnected then, as
    /// whatever it believed of the connection's state is gone; at once if it waits for others, or listens.
    pub(in crate::kinds::redis::door) fn lost_its_upstream(
        self: &Rc<Self>,
        lost: Vec<Lost>,
        was_up: bool,
    ) {
        let mut inner = self.inner.borrow_mut();
        let pinned = inner.pinned.take();
        if self.piecewise.get() {
            // The rest of a reply is not available.
            for Lost { entry, verdict, error, .. } in lost {
                if let Some(ticket) = entry.ticket {
                    self.core().over(ticket.settle(Outcome::Failed { verdict, error }));
                }
            }
            inner.end.with(Ending::Reset, Closed::Upstream);
            drop(inner);
            return self.wake();
        }
        let (mut begins, mut selects, mut watches) = (false, false, false);
        let lost_nothing = lost.is_empty();
        if !was_up && !lost_nothing {
            self.core().pin_failed();
        }
        let is_clean = pinned.as_ref().is_some_and(|it| it.is_clean(self.core().database()));
        let ran = may_have_run_with_exec(&lost);
        for (Lost { entry, body, verdict, error }, ran) in lost.into_iter().zip(ran) {
            if let (Note::Within, true) = (&entry.note, ran) {
                inner.on_wire -= 1;
                inner.reply(entry.seq, b"+QUEUED\r\n");
                continue;
            }
            // It waits on, if nothing but that was the connection's own.
            if let Note::Waited(waited) = &entry.note
                && is_clean
                && inner.end.is_open()
                && resp::arguments(&body)
                    .is_ok_and(|args| Waiting::of(&args).is_some_and(Waiting::may_be_sent_again))
            {
                inner.on_wire -= 1;
                inner.park_in(self, entry.seq, body, waited.until);
                continue;
            }
            begins |= matches!(entry.note, Note::Begins);
            selects |= matches!(entry.note, Note::Selects(_));
            watches |=
                entry.waits() || matches!(entry.note, Note::Subscription(_) | Note::Monitors);
            if !entry.note.is_the_doors() {
                inner.on_wire -= 1;
                let answer = self.core().lost_for_good(entry.ticket, &entry.note, (verdict, error));
                inner.ended(self, entry.seq, answer);
            }
        }
        let listens = pinned.as_ref().is_some_and(PinnedTo::may_listen);
        if inner.parked.is_some() || is_clean && lost_nothing {
            // No state is gone with it.
        } else if was_up {
            let ending = if watches || listens { Ending::Reset } else { Ending::Answered };
            inner.end.with(ending, Closed::Upstream);
        } else if begins {
            inner.bar(Barred::Transaction);
        } else if selects
            || pinned.as_ref().is_some_and(|it| it.database() != Some(self.core().database()))
        {
            inner.bar(Barred::Database);
        } else if pinned.is_some_and(|it| it.watches()) {
            inner.bar(Barred::Watch);
        }
        drop(inner);
        self.wake();
    }
}

/// Of each that was lost on a client's own upstream, oldest first: whether the EXEC with which it would have been
/// executed may have been.
fn may_have_run_with_exec(lost: &[Lost]) -> Vec<bool> {
    let mut ran = false;
    let newest_first = lost.iter().rev().map(|Lost { entry, error, .. }| {
        // Behind what is within a transaction comes what ends it.
        if !matches!(entry.note, Note::Within) {
            let is_exec = matches!(entry.note, Note::Unit(_));
            ran = is_exec && error.class == ErrorClass::Unknown;
        }
        ran
    });
    let mut all: Vec<bool> = newest_first.collect();
    all.reverse();
    all
}

impl Core {
    /// A call is over, as nobody else can carry it on.
    pub(super) fn over(&self, settled: Settled) {
        if let Settled::GoOn(onward) = settled {
            self.backend.end(*onward);
        }
    }

    /// What is answered to a command that was lost together with the only connection that could carry it.
    fn lost_for_good(
        &self,
        ticket: Option<Ticket>,
        note: &Note,
        (verdict, error): (Verdict, AttemptError),
    ) -> telling::Answer {
        let why = format!("{}: {}", self.backend.name(), error.words().whole());
        let was_sent = error.class == ErrorClass::Unknown;
        let mut may_write = matches!(note, Note::MayWrite);
        if let Some(Settled::GoOn(onward)) =
            ticket.map(|ticket| ticket.settle(Outcome::Failed { verdict, error }))
        {
            may_write |= onward.lanes().is_some();
            self.backend.end(*onward);
        }
        if may_write && was_sent {
            telling::unknown(&why, self.settings.close_on_unknown)
        } else {
            self.unavailable(&why)
        }
    }
}
