//! What goes over a connection that is up: requests are written as they are in the ring, and replies go to whoever
//! waits for the oldest one, large ones piece by piece.

use std::{
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    time::Instant,
};

use super::{
    Inner, Sharing, State, Turn, Up,
    cause::Cause,
    entry::{Entry, Note},
    listening::Listener,
    ring::Ring,
};
use crate::kinds::redis::transport::handshake::Protocol;

/// How much is read at once at least.
const READ_SIZE: usize = 64 << 10;
/// An inbox that has held more than this, in bytes, is made again.
const KEPT_MAX: usize = 1 << 20;

impl Inner {
    /// Writes, reads, and looks whether the oldest reply is overdue.
    pub(super) fn carry(&mut self, context: &mut Context<'_>, sharing: Sharing, turn: &mut Turn) {
        if let State::Up(up) = &mut self.state
            && (up.is_deaf || up.closing.as_mut().poll(context).is_ready())
        {
            // Its connector is replaced, or nothing comes over it. What was sent is answered first, within the time
            // that any reply may take.
            up.retiring = true;
            let limit = self.connector.links().shared.settings.timeout;
            up.cut_at.get_or_insert_with(|| Instant::now() + limit);
            if self.ring.is_blocked() && self.ring.unwritten().is_empty() {
                // The server gives up what waits there when it sees our end of the connection go, and has sent what was
                // popped before that.
                let _closed = Pin::new(&mut up.stream).poll_shutdown(context);
            }
        }
        let ended = self.read(context, sharing, turn).or_else(|| self.write(context));
        let ended = ended.or_else(|| self.overdue(context));
        if let Some(cause) = ended {
            return self.end(cause, sharing, turn);
        }
        let retiring = matches!(&self.state, State::Up(up) if up.retiring);
        let behind = sharing == Sharing::Shared && self.is_behind(sharing);
        if self.ring.is_empty() && (retiring || behind) {
            self.end(Cause::Shared, sharing, turn);
        }
    }

    fn write(&mut self, context: &mut Context<'_>) -> Option<Cause> {
        let Self { state: State::Up(up), ring, .. } = self else { return None };
        let mut any = false;
        while !ring.unwritten().is_empty() {
            match Pin::new(&mut up.stream).poll_write(context, ring.unwritten()) {
                Poll::Pending => {
                    ring.is_blocked_by_server();
                    return None;
                }
                Poll::Ready(Ok(0)) => return Some(Cause::broken("nothing can be written")),
                Poll::Ready(Ok(count)) => ring.wrote(count),
                Poll::Ready(Err(error)) => return Some(Cause::Broken(error.to_string())),
            }
            any = true;
        }
        // Under TLS what was written may still be in a buffer.
        if any && let Poll::Ready(Err(error)) = Pin::new(&mut up.stream).poll_flush(context) {
            return Some(Cause::Broken(error.to_string()));
        }
        None
    }

    fn read(
        &mut self,
        context: &mut Context<'_>,
        sharing: Sharing,
        turn: &mut Turn,
    ) -> Option<Cause> {
        loop {
            // Whoever gets it piece by piece is waited for.
            if self.held_up_by().is_some() {
                self.ring.is_held_up();
                return None;
            }
            let State::Up(up) = &mut self.state else { return None };
            up.inbox.reserve(READ_SIZE);
            let Up { stream, inbox, piecewise, is_doubted, .. } = up;
            let most = if piecewise.is_some() { READ_SIZE } else { usize::MAX };
            let read = match pin!(stream.read_buf(&mut inbox.limit(most))).poll(context) {
                Poll::Pending => return None,
                Poll::Ready(read) => read,
            };
            match read {
                Ok(0) => return Some(Cause::broken("the server closed the connection")),
                Err(error) => return Some(Cause::Broken(error.to_string())),
                Ok(_) => {
                    *is_doubted = false;
                    let came = self.ring.samples().then(Instant::now);
                    if let Err(cause) = self.give_out(sharing, turn) {
                        return Some(cause);
                    }
                    if let (Some(came), Some(took)) = (came, self.ring.measured()) {
                        turn.measured = Some((took, came));
                    }
                }
            }
        }
    }

    /// Gives the replies that have come to those who wait for them. An error is why the connection ends.
    fn give_out(&mut self, sharing: Sharing, turn: &mut Turn) -> Result<(), Cause> {
        let State::Up(up) = &mut self.state else { return Ok(()) };
        let mut taken = 0;
        loop {
            let rest = up.inbox.get(taken..).unwrap_or_default();
            // What a rest begins with is content: only what still has its head is judged by its first byte.
            let is_rest = up.finder.has_passed();
            let is_push = !is_rest && rest.starts_with(b">");
            // A push of RESP3 says that it is one. In RESP2, and while it gets everything, what a listener hears looks
            // like an answer.
            let looks_alike = self.protocol == Protocol::Two && !self.subscriptions.is_empty();
            let may_be_heard = is_push || !is_rest && (looks_alike || self.monitors);
            let length = match up.finder.length(rest) {
                Ok(Some(length)) => length,
                Ok(None) => {
                    if may_be_heard {
                        // That is heard whole.
                        if let Some(owner) = self.owner.as_ref()
                            && rest.len() > owner.owed_max()
                        {
                            // That is not the server's doing.
                            owner.reads_too_slowly();
                            return Err(Cause::Shared);
                        }
                    } else if let Some(Entry { client, note: Note::Unit(unit), .. }) =
                        self.ring.oldest_mut()
                    {
                        // More than may be kept of it is dropped as it comes.
                        unit.is_too_large |= rest.len() > client.unit_max();
                        if unit.is_too_large {
                            taken += up.finder.pass(rest);
                        }
                    } else {
                        taken += hand_on(up, &self.ring, taken, turn, sharing);
                    }
                    break;
                }
                Err(error) => return Err(Cause::Broken(error.to_string())),
            };
            let frame = rest.get(..length).unwrap_or_default();
            taken += length;
            if up.piecewise.take().is_some() {
                self.ring.can_be_answered();
                let Some((entry, _)) = self.ring.pop() else {
                    return Err(Cause::broken("a reply to no request"));
                };
                let client = Rc::clone(&entry.client);
                client.has_all(entry, frame);
                if client.touch() {
                    turn.touched.push(client);
                }
                continue;
            }
            let listener = Listener {
                ring: &mut self.ring,
                subscriptions: &mut self.subscriptions,
                monitors: self.monitors,
                protocol: self.protocol,
            };
            if !is_rest
                && let Some(owner) = &self.owner
                && let Some(over) = listener.hears(frame)
            {
                owner.told(frame);
                if owner.touch() {
                    turn.touched.push(Rc::clone(owner));
                }
                if over && let Some((entry, request)) = self.ring.pop() {
                    owner.answered(entry, request, b"", &self.connector);
                }
                continue;
            }
            if is_push {
                // Nobody listens to a shared connection.
                continue;
            }
            if let Some(Entry { client, note: Note::Unit(unit), .. }) = self.ring.oldest_mut()
                && !unit.add(frame, client.unit_max())
            {
                continue;
            }
            let Some((entry, request)) = self.ring.pop() else {
                return Err(Cause::broken("a reply to no request"));
            };
            match &entry.note {
                Note::Speaks(protocol) => self.protocol = *protocol,
                Note::Monitors => self.monitors = frame.starts_with(b"+"),
                _ => {}
            }
            let client = Rc::clone(&entry.client);
            client.answered(entry, request, frame, &self.connector);
            if client.touch() {
                turn.touched.push(client);
            }
        }
        bytes::Buf::advance(&mut up.inbox, taken);
        if taken > KEPT_MAX && up.inbox.is_empty() {
            up.inbox = BytesMut::new();
        }
        self.ring.make_room();
        Ok(())
    }
}

/// Hands on what has come of a reply that is large, from `taken` on in the inbox. Returns how much that is.
fn hand_on(up: &mut Up, ring: &Ring, taken: usize, turn: &mut Turn, sharing: Sharing) -> usize {
    let rest = up.inbox.get(taken..).unwrap_or_default();
    let Some(oldest) = ring.oldest() else { return 0 };
    let begins = up.piecewise.is_none();
    if begins {
        // What a listener hears is not a reply; and what needs the whole of it has that first.
        let is_plain = match oldest.note {
            // A script whose reply is large is not kept.
            Note::None
            | Note::Cache
            | Note::CacheAll(_)
            | Note::Counted(_)
            | Note::Script(..)
            | Note::Writes(_)
            | Note::MayWrite => true,
            _ => false,
        };
        let may = is_plain && oldest.client.takes_pieces(oldest.seq);
        if may && rest.len() < oldest.client.ahead() {
            return 0;
        }
        if !may {
            if rest.len() <= oldest.client.owed_max() {
                return 0;
            }
            // It would be held whole, because that is needed, or until its turn comes, and is more than its client may
            // be owed.
            oldest.client.reads_too_slowly();
        }
    }
    let passed = up.finder.pass(rest);
    oldest.client.has_piece(oldest.seq, rest.get(..passed).unwrap_or_default());
    if oldest.client.touch() {
        turn.touched.push(Rc::clone(&oldest.client));
    }
    if passed > 0 || begins {
        up.piecewise = Some(Instant::now());
    }
    if begins && sharing == Sharing::Shared {
        (up.retiring, turn.leaves) = (true, true);
    }
    passed
}
