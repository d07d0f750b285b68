//! What a client sends: when it is read, and how far it is dispatched.
//!
//! A socket is not read while its client waits for something that is not its own doing (a place, a lane, room in the
//! door), but for a look at whether it is still there.
//!
//! # A client that is owed much
//! Nothing is taken of a client that is owed `out_client` bytes until some of them were sent: it may well read as fast
//! as it can. What was taken before is answered all the same. If the server's replies to that are more than the client
//! may be owed, it reads too slowly, and is reset (`client/turn.rs`).
//!
//! # A door without room
//! A door holds `in_bytes` of requests and `out_bytes` of replies. If it holds as much, nobody is read. Who has waited
//! for a second has room made: if it is replies, the client that is owed the most does not read, and is reset; if it is
//! requests, the newest waiting client gets what Redis says when there are too many, and goes.

use std::{
    mem,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf;
use fusebox_state::ByteCount;
use tokio::{
    io::ReadBuf,
    time::{Instant, sleep, sleep_until},
};

use super::{Client, Ending, Inner, Stuck};
use crate::kinds::redis::door::{
    counters::Closed,
    request::{Found, Requests},
    telling,
    whole::Relief,
};

/// Commands of one client that may wait for their replies.
const PIPELINE: usize = 1_024;
/// What is read ahead of what was dispatched, in bytes.
const INBOX_MAX: usize = 1 << 20;
/// How often a client that waits looks whether it still must: who gives back a place or a lane need not tell it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The same of one that gets an answer.
const LOOK_AGAIN_TOLD: Duration = Duration::from_secs(1);
/// How long a client waits for room in the door.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);

impl Inner {
    /// Dispatches what was read, or reads more. False if there is nothing to do now.
    pub(super) fn take_in(&mut self, client: &Rc<Client>, cx: &mut Context<'_>) -> bool {
        if self.stuck.as_ref().is_some_and(|(stuck, _)| self.still(*stuck, client)) {
            return self.look(client, cx);
        }
        self.stuck = None;
        let owed_max = client.owed_max();
        if !self.inbox.is_empty() {
            let mut inbox = mem::take(&mut self.inbox);
            let taken = self.take(client, &inbox, Instant::now());
            inbox.advance(taken);
            if !inbox.is_empty() {
                self.inbox = inbox;
            }
            if taken > 0 {
                return true;
            }
            if self.stuck.is_some() || !self.may_take(owed_max) {
                return self.stuck.is_none() && self.has_begun();
            }
        }
        if self.has_begun() {
            return true;
        }
        let may_take = self.may_take(owed_max);
        self.slots.await_room(!may_take);
        may_take && self.stuck.is_none() && self.read(client, cx)
    }

    /// Whether what a command is stuck on still holds. The alarm looks again at what tells nobody of its end.
    fn still(&self, stuck: Stuck, client: &Client) -> bool {
        match stuck {
            Stuck::Others => !self.is_answered(),
            Stuck::Place => client.awaits_place.get(),
            Stuck::Lanes | Stuck::Paced | Stuck::Rest => true,
            Stuck::Memory => client.core().whole.is_full(),
        }
    }

    /// Whether another command may be taken now. It is not asked for more while the client is owed `owed_max` bytes.
    pub(super) fn may_take(&self, owed_max: usize) -> bool {
        self.end.is_open()
            && !self.has_begun()
            && self.failed.is_empty()
            && self.slots.len() < PIPELINE
            && self.slots.owed() < owed_max
    }

    /// Whether a call was begun elsewhere that nothing may follow yet.
    fn has_begun(&self) -> bool {
        self.slow.back().is_some_and(|last| !last.was_appended())
    }

    /// Whether it has been silent for too long, and is owed nothing: in the middle of a request, or for as long as the
    /// door allows.
    pub(super) fn is_idle(&mut self, client: &Client, cx: &mut Context<'_>) -> bool {
        let core = client.core();
        let settings = &core.settings;
        // Who has asked for something and waits for the door is not silent.
        if self.stuck.is_some() {
            self.idle = None;
            return false;
        }
        let is_partial = !self.inbox.is_empty();
        let limit = if is_partial { Some(settings.partial_max) } else { settings.idle_timeout };
        let Some(limit) = limit else {
            self.idle = None;
            return false;
        };
        let idle = self.idle.get_or_insert_with(|| Box::pin(sleep(limit)));
        if idle.as_mut().poll(cx).is_pending() {
            return false;
        }
        let is_quit = self.is_quit() && !self.hears();
        if !is_quit {
            self.idle = None;
            client.wake();
        }
        is_quit
    }

    /// Reads on while nothing is dispatched, so that it is noticed if the client leaves.
    pub(super) fn look(&mut self, client: &Client, cx: &mut Context<'_>) -> bool {
        if self.read_closed {
            return false;
        }
        if self.inbox.len() >= INBOX_MAX || client.core().whole.is_full() {
            // It is not read, and yet whether it is there matters to what waits for others.
            self.read_closed = self.is_blocked() && self.socket.has_hung_up(cx);
            return false;
        }
        self.inbox.reserve(4 << 10);
        match self.socket.poll_read_more(cx, &mut self.inbox) {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                self.read_closed = true;
                false
            }
            Poll::Ready(Err(_)) => {
                self.end.as_expected(Ending::Reset);
                false
            }
            Poll::Ready(Ok(_)) => true,
        }
    }

    fn read(&mut self, client: &Rc<Client>, cx: &mut Context<'_>) -> bool {
        if self.read_closed || self.is_short_of_room(client) {
            return false;
        }
        let read = if self.inbox.is_empty() {
            let whole = Rc::clone(&client.core().whole);
            let mut scratch = whole.scratch.take();
            let mut into = ReadBuf::new(&mut scratch);
            let read = self.socket.poll_read(cx, &mut into);
            let count = into.filled().len();
            if count > 0 {
                let now = Instant::now();
                self.has_heard(now);
                self.ahead = 0;
                let bytes = scratch.get(..count).unwrap_or_default();
                let taken = self.take(client, bytes, now);
                self.inbox.extend_from_slice(bytes.get(taken..).unwrap_or_default());
            }
            whole.scratch.replace(scratch);
            read.map_ok(|()| count)
        } else {
            let needs = self.requests.needs(&self.inbox);
            if needs > client.core().settings.request_max {
                let most = ByteCount(client.core().settings.request_max as u64);
                let why = format!(
                    "ERR fusebox: a request of {needs} bytes is larger than this door allows ({most})"
                );
                self.answer(&telling::error(&why));
                self.end.with(Ending::Answered, Closed::Protocol);
                return true;
            }
            // No more than has come already: what a client declares costs nothing until it is there.
            let more = needs.saturating_sub(self.inbox.len());
            self.inbox.reserve(more.clamp(16 << 10, self.inbox.len().max(64 << 10)));
            self.ahead = 0;
            self.socket.poll_read_more(cx, &mut self.inbox)
        };
        match read {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                self.read_closed = true;
                false
            }
            Poll::Ready(Ok(count)) => {
                client.core().counters.read(count);
                self.idle = None;
                true
            }
            Poll::Ready(Err(_)) => {
                self.end.as_expected(Ending::Reset);
                false
            }
        }
    }

    /// Whether the door has no room for what this client sends. After a second of that some is made.
    fn is_short_of_room(&mut self, client: &Client) -> bool {
        let core = &client.core();
        if !core.whole.is_full() {
            if self.short_since.take().is_some() {
                core.whole.has_room(client.id);
            }
            return false;
        }
        let now = Instant::now();
        let since = *self.short_since.get_or_insert(now);
        if now.duration_since(since) < ROOM_PATIENCE {
            core.whole.has_no_room(client.id);
        } else {
            match core.whole.make_room(client) {
                Relief::Wait => {}
                Relief::Refused => {
                    self.answer(&telling::error(telling::TOO_MANY));
                    self.end.with(Ending::Answered, Closed::NoRoom);
                    return true;
                }
                Relief::TooSlow => {
                    self.end.with(Ending::Reset, Closed::SlowReader);
                    return true;
                }
            }
        }
        self.stuck = Some((Stuck::Memory, Box::pin(sleep(LOOK_AGAIN))));
        true
    }

    /// Dispatches what `bytes` ask for, as far as that goes now. Returns how much of them was taken.
    fn take(&mut self, client: &Rc<Client>, bytes: &[u8], now: Instant) -> usize {
        let mut taken = 0;
        client.core().refresh();
        if self.session.has_selected && self.generation != client.core().generation() {
            // The configured database is another, and which one it is in is not certain any more.
            self.end.with(Ending::Reset, Closed::Upstream);
            return 0;
        }
        self.generation = client.core().generation();
        let owed_max = client.owed_max();
        while self.may_take(owed_max) && self.stuck.is_none() {
            let rest = bytes.get(taken..).unwrap_or_default();
            let mut reader = mem::take(&mut self.requests);
            let (length, stuck) = match reader.next(rest, self.session.who.is_some()) {
                Found::Nothing => {
                    self.requests = reader;
                    break;
                }
                Found::Empty(length) => (length, None),
                Found::Request(length) => {
                    let (request, behind) = rest.split_at_checked(length).unwrap_or_default();
                    (length, self.dispatch(client, &reader, (request, behind), now))
                }
                Found::Inline(length, request) => {
                    let mut words = Requests::default();
                    let behind = rest.get(length..).unwrap_or_default();
                    let stuck = match words.next(&request, true) {
                        Found::Request(_) => self.dispatch(client, &words, (&request, behind), now),
                        _ => None,
                    };
                    (length, stuck)
                }
                Found::Wrong(why) => {
                    self.answer(&telling::error(&format!("ERR {why}")));
                    self.end.with(Ending::Answered, Closed::Protocol);
                    return bytes.len();
                }
            };
            // It is over, or is looked at anew.
            reader.forget();
            self.requests = reader;
            if let Some(stuck) = stuck {
                // What is before it has its own time.
                if stuck != Stuck::Others {
                    self.stuck_since.get_or_insert(now);
                }
                if stuck == Stuck::Place {
                    client.core().awaits_place(client);
                }
                let look_again = match stuck {
                    // Whoever answers those wakes this client.
                    Stuck::Others => now + LOOK_AGAIN_TOLD,
                    _ => now + LOOK_AGAIN,
                };
                let again = self.refusals.paces(now).unwrap_or(look_again);
                // Whoever polls this client looks at the alarm afterwards.
                self.stuck = Some((stuck, Box::pin(sleep_until(again))));
            } else {
                client.core().counters.command();
                let here = mem::take(&mut self.answered_here);
                if here > 0 {
                    client.core().counters.answered_here(here);
                }
                self.stuck_since = None;
                self.ahead = self.ahead.saturating_add(1);
                taken += length + mem::take(&mut self.swallowed);
            }
        }
        taken
    }
}
