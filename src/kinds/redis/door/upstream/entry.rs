//! A request that is on a connection, and what is done with its reply.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use fusebox_actors::{Fills, Ticket, connector::Read};
use fusebox_state::{LaneId, Lanes, UnixMillis};

use tokio::time::Instant;

use super::listening::Awaited;
use crate::kinds::redis::{
    connector::RedisConnector,
    door::client::Client,
    protocol::{deadlines::Begun, resp::Reply},
    transport::{carry::Noting, handshake::Protocol, scripts},
};

/// A request that a client has sent.
pub(in crate::kinds::redis::door) struct Entry {
    pub(in crate::kinds::redis::door) client: Rc<Client>,
    /// The place of its reply among the client's.
    pub(in crate::kinds::redis::door) seq: u64,
    /// Its leave to be on the wire; `None` for what is the connection's own affair, such as MULTI.
    pub(in crate::kinds::redis::door) ticket: Option<Ticket>,
    /// What is to be known once it is answered.
    pub(in crate::kinds::redis::door) note: Note,
    /// It can be carried on no other connection: what fails is reported.
    pub(in crate::kinds::redis::door) elsewhere: bool,
}

/// What is done with a reply besides handing it on.
pub(in crate::kinds::redis::door) enum Note {
    /// Nothing.
    None,
    /// It may be cached, under the request's canonical form: as it was sent, its name in upper case.
    Cache,
    /// So may its parts, one for each of its keys.
    CacheAll(Box<(Read, Fills)>),
    /// It settles the deadlines of its keys.
    Deadlines(Box<Begun>),
    /// The server knows a script by it, or forgets all.
    Script(scripts::Does),
    /// It waits for others.
    Waited(Box<Waited>),
    /// It is a MULTI, or is queued by the server until EXEC. This is the reply if the server takes it.
    Within(&'static [u8]),
    /// It is a transaction, each command of which has a reply; or the EXEC of one that came in pieces.
    Unit(Box<Unit>),
    /// It is the door's own, and nobody waits for it.
    Own,
    /// The same: from its reply on the connection speaks that protocol.
    Speaks(Protocol),
    /// It is answered by confirmations, or by an error.
    Subscription(Awaited),
    /// From its reply on the connection gets everything.
    Monitors,
    /// It selects this database.
    Selects(u32),
    /// It ends a transaction, or what is watched, unless it is refused.
    Ends,
    /// It writes, and nothing else is known of it.
    Writes(Unsettled),
    /// It may change something, though it was let through as a read.
    MayWrite,
}

/// What the writes on their way do to the deadlines of their keys. The commands of a transaction are followed if all of
/// them are known. Of other writes nothing is: what is known of their keys is forgotten when this is made and when it
/// goes, however they end. If a transaction is lost, what is known of its keys is forgotten when this goes.
pub(in crate::kinds::redis::door) struct Unsettled(Box<Touched>);

struct Touched {
    connector: Arc<RedisConnector>,
    lanes: Lanes,
    /// The same one by one, if they are more than are distinguished elsewhere.
    exact: Option<Vec<LaneId>>,
    /// How many commands a transaction has that is followed, and those that may settle a deadline.
    followed: Option<(usize, Vec<Step>)>,
    /// How it has ended is known of each of its commands: there is nothing to forget.
    is_settled: bool,
}

/// A command of a transaction.
struct Step {
    /// Its place among all.
    place: usize,
    command: Bytes,
    begun: Begun,
}

impl Unsettled {
    pub(in crate::kinds::redis::door) fn new(connector: Arc<RedisConnector>, lanes: Lanes) -> Self {
        let exact = (!lanes.is_all()).then(|| lanes.as_slice().to_vec());
        Self::of(connector, lanes, exact)
    }

    pub(in crate::kinds::redis::door) fn of(
        connector: Arc<RedisConnector>,
        lanes: Lanes,
        exact: Option<Vec<LaneId>>,
    ) -> Self {
        let touched = Touched { connector, lanes, exact, followed: None, is_settled: false };
        let unsettled = Self(Box::new(touched));
        unsettled.forget();
        unsettled
    }

    /// Of a transaction of `count` commands, which is accepted `now`. Those of them that may change a deadline are
    /// `timed`, each with its place among all.
    pub(in crate::kinds::redis::door) fn following(
        connector: Arc<RedisConnector>,
        (lanes, exact): (Lanes, Option<Vec<LaneId>>),
        (count, timed): (usize, Vec<(usize, Bytes)>),
        now: UnixMillis,
    ) -> Self {
        let mut steps = Vec::new();
        for (place, command) in timed {
            match connector.links().begins(&command, now, now) {
                Noting::Keys(begun) => steps.push(Step { place, command, begun }),
                Noting::Nothing => {}
                // It is read as another command than before: the server has just said what it is.
                Noting::Anything => return Self::of(connector, lanes, None),
            }
        }
        let followed = Some((count, steps));
        Self(Box::new(Touched { connector, lanes, exact, followed, is_settled: false }))
    }

    /// What the writes touch.
    pub(in crate::kinds::redis::door) fn lanes(&self) -> &Lanes {
        &self.0.lanes
    }

    /// EXEC was answered so: what it has run has settled the deadlines of its keys. If it has run nothing, it has
    /// settled none.
    fn answered(&mut self, exec: &[u8]) {
        let Touched { connector, followed, is_settled, .. } = &mut *self.0;
        let Some((count, steps)) = followed.take() else { return };
        *is_settled = true;
        let items = Reply::of(exec).and_then(|reply| reply.items());
        let items: Vec<&[u8]> = items.into_iter().flatten().collect();
        // If the server has left one of them out, nobody says which.
        if items.len() != count {
            return;
        }
        for Step { place, command, begun } in steps {
            if let Some(reply) = items.get(place) {
                connector.links().answered(&command, &begun, reply);
            }
        }
    }

    fn forget(&self) {
        let Touched { connector, exact, .. } = &*self.0;
        connector.links().deadlines().forget(exact.as_deref());
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if !self.0.is_settled {
            self.forget();
        }
    }
}

/// A command that waits for others.
pub(in crate::kinds::redis::door) struct Waited {
    /// What it may write to.
    pub(in crate::kinds::redis::door) unsettled: Unsettled,
    /// Until when it waits; `None` for ever.
    pub(in crate::kinds::redis::door) until: Option<Instant>,
}

/// A transaction that was sent as one, or the EXEC of one that came in pieces.
pub(in crate::kinds::redis::door) struct Unit {
    /// How many commands it has, MULTI and EXEC included; 1 if it is an EXEC alone.
    pub(in crate::kinds::redis::door) commands: usize,
    /// The replies that have come.
    pub(in crate::kinds::redis::door) replies: Vec<u8>,
    /// How many are still to come.
    left: usize,
    /// The beginning of the latest, and the end of the first.
    latest: usize,
    first: usize,
    /// They are more than their client may be owed.
    pub(in crate::kinds::redis::door) is_too_large: bool,
    /// Why the server has refused the first of its commands that it has.
    inner: Option<Bytes>,
    /// The MGET as whose answer its own may be cached.
    pub(in crate::kinds::redis::door) fills: Option<(Bytes, Read, Fills)>,
    /// What it touches.
    pub(in crate::kinds::redis::door) lanes: Lanes,
    /// What it may write to.
    unsettled: Option<Unsettled>,
}

impl Unit {
    /// A transaction of nothing but reads.
    pub(in crate::kinds::redis::door) fn that_reads(
        commands: usize,
        lanes: Lanes,
        fills: Option<(Bytes, Read, Fills)>,
    ) -> Self {
        Self { fills, ..Self::of(commands, lanes, None) }
    }

    /// A transaction that may write.
    pub(in crate::kinds::redis::door) fn that_writes(
        commands: usize,
        unsettled: Unsettled,
    ) -> Self {
        Self::of(commands, unsettled.lanes().clone(), Some(unsettled))
    }

    fn of(commands: usize, lanes: Lanes, unsettled: Option<Unsettled>) -> Self {
        Self {
            lanes,
            fills: None,
            unsettled,
            commands,
            replies: Vec::new(),
            left: commands,
            latest: 0,
            first: 0,
            is_too_large: false,
            inner: None,
        }
    }

    /// A reply has come. True for the last one. If they are more than `max` bytes together, none is kept.
    pub(super) fn add(&mut self, frame: &[u8], max: usize) -> bool {
        self.left = self.left.saturating_sub(1);
        // Of one that is too large, what comes may be the rest of a reply: its first byte says nothing.
        let is_within = !self.is_too_large && self.left > 0 && self.left + 1 < self.commands;
        if is_within && self.inner.is_none() && matches!(frame.first(), Some(b'-' | b'!')) {
            self.inner = Some(Bytes::copy_from_slice(frame));
        }
        self.is_too_large |= self.replies.len().saturating_add(frame.len()) > max;
        if self.is_too_large {
            (self.replies, self.first, self.latest) = (Vec::new(), 0, 0);
            return self.left == 0;
        }
        self.latest = self.replies.len();
        self.replies.extend_from_slice(frame);
        if self.latest == 0 {
            self.first = frame.len();
        }
        if self.left == 0
            && let Some(unsettled) = &mut self.unsettled
        {
            unsettled.answered(frame);
        }
        self.left == 0
    }

    /// What its EXEC is answered, once all is.
    pub(in crate::kinds::redis::door) fn exec(&self) -> Option<&[u8]> {
        self.replies.get(self.latest..).filter(|_| self.left == 0)
    }

    /// What it was refused with: the error of its MULTI, else that of its EXEC, or the one that made it so.
    pub(in crate::kinds::redis::door) fn refusal(&self) -> Option<&[u8]> {
        let [multi, exec] = [self.replies.get(..self.first), self.replies.get(self.latest..)];
        let refused = [multi, exec].into_iter().flatten();
        let refused =
            refused.into_iter().find(|reply| matches!(reply.first(), Some(b'-' | b'!')))?;
        // Nothing was run because of that one: it says what the server is.
        let inner = self.inner.as_deref().filter(|_| refused.starts_with(b"-EXECABORT"));
        Some(inner.unwrap_or(refused))
    }
}

impl Entry {
    /// Whether it waits for others.
    pub(in crate::kinds::redis::door) fn waits(&self) -> bool {
        matches!(self.note, Note::Waited(_))
    }
}

impl Note {
    /// Whether no client waits for the reply.
    pub(in crate::kinds::redis::door) fn is_the_doors(&self) -> bool {
        matches!(self, Self::Own | Self::Speaks(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_was_not_run_is_judged_by_what_was_refused_in_it() {
        let refused = |replies: &[&'static [u8]]| {
            let mut unit = Unit::that_reads(replies.len(), Lanes::None, None);
            for reply in replies {
                unit.add(reply, 1_000);
            }
            unit.refusal().map(<[u8]>::to_vec)
        };
        let (readonly, abort) = (&b"-READONLY You can't write\r\n"[..], &b"-EXECABORT no\r\n"[..]);
        assert_eq!(refused(&[b"+OK\r\n", readonly, b"+QUEUED\r\n", abort]).unwrap(), readonly);
        assert_eq!(refused(&[b"+OK\r\n", b"+QUEUED\r\n", abort]).unwrap(), abort);
        assert_eq!(refused(&[b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n+OK\r\n"]), None);
    }
}
