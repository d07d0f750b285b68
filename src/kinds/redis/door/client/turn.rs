//! A client's turn: one thing after the other, as long as there is something to do.

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use tokio::time::Instant;

use super::{Client, Failed, Inner, Refusal, ending::Ending};
use crate::kinds::redis::door::{counters::Closed, slow::Asker, telling};

impl Inner {
    pub(super) fn poll(&mut self, client: &Rc<Client>, cx: &mut Context<'_>) -> Poll<()> {
        while !self.end.is_reset() && self.step(client, cx) {}
        if self.end.why() == Closed::Stop && self.has_ended() && self.is_within() {
            // Its EXEC will not come any more.
            let why = "EXECABORT Transaction discarded because of: fusebox: the daemon stops";
            self.answer(&telling::error(why));
            self.end.as_expected(Ending::Answered);
        }
        if let Some((_, alarm)) = &mut self.stuck
            && alarm.as_mut().poll(cx).is_ready()
        {
            self.stuck = None;
            client.wake();
            // The command at hand is looked at again before anything is said of its end.
            return Poll::Pending;
        }
        if !self.slots.out().is_empty() && !self.is_full && !client.sends_later.replace(true) {
            client.core().sends_later(client);
        }
        let owed_max = client.owed_max();
        if self.is_full {
            let had_room = self.slots.owed() < owed_max;
            self.flush(client, cx);
            if !had_room && self.slots.owed() < owed_max {
                // What was not taken for want of room comes before anything is said of its end.
                client.wake();
                return Poll::Pending;
            }
        }
        // Of a reply that comes piece by piece, it is owed no more than was read ahead. What the door has answered by
        // itself is no reason, as it takes nothing while there is no room; but for one reply that is too large alone.
        let owed = if client.piecewise.get() { self.slots.early() } else { self.slots.owed() };
        if owed > owed_max.saturating_add(self.slots.given().min(owed_max)) {
            self.end.with(Ending::Reset, Closed::SlowReader);
        }
        self.tell_held(client);
        // Nobody would get what a command that waits for others brings.
        if self.read_closed && self.is_blocked() && self.flush(client, cx) {
            self.end.as_expected(Ending::Reset);
        }
        if self.end.is_open() && self.is_idle(client, cx) {
            self.end.with(Ending::Answered, Closed::Idle);
        }
        match self.end.how() {
            Ending::Reset => Poll::Ready(()),
            Ending::Answered if self.is_quit() => Poll::Ready(()),
            Ending::Open if self.has_ended() => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// Writes what was answered, as far as the socket takes it; whether that is all.
    fn flush(&mut self, client: &Client, cx: &mut Context<'_>) -> bool {
        while !self.slots.out().is_empty() && !self.end.is_reset() {
            match self.socket.poll_write(cx, self.slots.out()) {
                Poll::Pending => break,
                Poll::Ready(Ok(count)) if count > 0 => self.has_sent(client, count),
                Poll::Ready(_) => self.end.as_expected(Ending::Reset),
            }
        }
        self.is_full = !self.slots.out().is_empty();
        !self.is_full
    }

    /// So many bytes of what it is owed were sent. If the rest of a large reply waits for that, it may go on.
    pub(super) fn has_sent(&mut self, client: &Client, count: usize) {
        let core = client.core();
        core.counters.written(count);
        let was_behind = client.piecewise.get() && self.slots.out().len() > client.ahead();
        self.slots.sent(count);
        if was_behind {
            client.took.set(Some(Instant::now()));
            core.wake_links();
            if let Some(pinned) = &self.pinned {
                pinned.upstream().wake();
            }
        }
    }

    /// Tells the door what is held of this client's input, and what it is owed.
    pub(super) fn tell_held(&self, client: &Client) {
        let held = self.inbox.len() + self.requests.size();
        let owed = self.slots.owed();
        client
            .core()
            .whole
            .holds((client.held.replace(held), held), (client.owed.replace(owed), owed));
    }

    /// Whether all that will ever come of it was answered: what is left of its input is no whole request.
    fn has_ended(&self) -> bool {
        self.end.is_open() && self.read_closed && self.is_quit() && self.stuck.is_none()
    }

    /// Whether it is owed nothing.
    pub(super) fn is_quit(&self) -> bool {
        self.is_answered()
            && self.slots.out().is_empty()
            && self.failed.is_empty()
            && self.slow.is_empty()
    }

    /// Does one thing. False if there is nothing to do now.
    fn step(&mut self, client: &Rc<Client>, cx: &mut Context<'_>) -> bool {
        let mut ended = false;
        for _ in 0..self.slow.len() {
            let Some(mut slow) = self.slow.pop_front() else { break };
            match slow.poll(cx) {
                Poll::Ready(done) => {
                    let owed = self.slots.owed();
                    self.slow_ended(client, done);
                    self.slots.gave(self.slots.owed().saturating_sub(owed));
                    ended = true;
                }
                Poll::Pending => self.slow.push_back(slow),
            }
        }
        if ended {
            return true;
        }
        if self.parked.is_some() {
            return self.tend_parked(client, cx);
        }
        let waits = !self.failed.is_empty() && !self.slow.is_empty();
        if waits || self.slow.back_mut().is_some_and(|last| !last.is_appended(cx)) {
            // Whether it has left meanwhile.
            return self.look(client, cx);
        }
        if self.on_wire > 0 && self.failed.front().is_some_and(|first| first.refusal.is_some()) {
            // What it sent behind that says whether it may still be carried out.
            return self.look(client, cx);
        }
        if !self.failed.is_empty() && self.slots.owed() >= client.owed_max() {
            // What the cache answers instead waits until there is room for it.
            return self.look(client, cx);
        }
        if let Some(Failed { seq, onward, held, commands, refusal }) = self.failed.pop_front() {
            if let Some(Refusal { words, is_passed: true }) = refusal {
                self.reply(seq, &words);
                return true;
            }
            let asker = Asker { commands, ..self.asker() };
            self.slow.push_back(client.core().go_on(seq, onward, held, asker));
            return true;
        }
        self.take_in(client, cx)
    }
}
