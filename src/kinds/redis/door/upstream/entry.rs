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
    protocol::{
        deadlines::{Begun, OnWire, Way, Written},
        resp::Reply,
    },
    transport::{handshake::Protocol, live::Noting, scripts},
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
    Deadlines(Box<(Begun, OnWire)>),
    /// It writes, and its reply tells nothing of the deadlines of its keys.
    Counted(OnWire),
    /// The server knows a script by it, or forgets all. If it writes, that is noted.
    Script(scripts::Does, Option<Box<Noting>>),
    /// It waits for others.
    Waited(Box<Waited>),
    /// It is a MULTI, which comes by itself.
    Begins,
    /// It is queued by the server until EXEC.
    Within,
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

/// What the writes on their way do to the deadlines of their keys, until they have ended. The commands of a transaction
/// are followed if all of them are known. Of other writes nothing is, and nothing is known of their keys.
pub(in crate::kinds::redis::door) struct Unsettled(Box<Touched>);

struct Touched {
    connector: Arc<RedisConnector>,
    lanes: Lanes,
    /// How many commands a transaction has that is followed, and those that may settle a deadline.
    followed: Option<(usize, Vec<Step>)>,
    _on_wire: Option<OnWire>,
}

/// A command of a transaction.
struct Step {
    /// Its place among all.
    place: usize,
    command: Bytes,
    begun: Begun,
}

impl Unsettled {
    /// Of writes to `lanes` that go that way.
    pub(in crate::kinds::redis::door) fn new(
        connector: Arc<RedisConnector>,
        lanes: Lanes,
        way: Way,
    ) -> Self {
        let exact = (!lanes.is_all()).then(|| lanes.as_slice().to_vec());
        Self::of(connector, (lanes, exact), way)
    }

    /// The same, with the lanes one by one, which may be more than are distinguished elsewhere; `None` for all.
    pub(in crate::kinds::redis::door) fn of(
        connector: Arc<RedisConnector>,
        (lanes, exact): (Lanes, Option<Vec<LaneId>>),
        way: Way,
    ) -> Self {
        let on_wire = connector.links().deadlines().begin_unread(exact.as_deref(), way);
        Self(Box::new(Touched { connector, lanes, followed: None, _on_wire: Some(on_wire) }))
    }

    /// Of a command that waits for others, and then may write to `lanes`; `None` if that is to no key of the door's
    /// database.
    pub(in crate::kinds::redis::door) fn waiting(
        connector: Arc<RedisConnector>,
        lanes: Lanes,
        command: Option<Written<'_, '_>>,
        way: Way,
    ) -> Self {
        let on_wire =
            command.map(|command| connector.links().deadlines().hold_waiting(command, way));
        Self(Box::new(Touched { connector, lanes, followed: None, _on_wire: on_wire }))
    }

    /// Of a transaction of `count` commands, which is accepted `now`. Those of them that may change a deadline are
    /// `timed`, each with its place among all.
    pub(in crate::kinds::redis::door) fn following(
        connector: Arc<RedisConnector>,
        lanes: Lanes,
        (count, timed): (usize, Vec<(usize, Bytes)>),
        (now, way): (UnixMillis, Way),
    ) -> Self {
        let commands = timed.iter().map(|(_, command)| command);
        let Some((on_wire, begun)) = connector.links().begin_together(commands, now, way) else {
            // It is read as another command than before: the server has just said what it is.
            return Self::of(connector, (lanes, None), way);
        };
        let step = |((place, command), begun)| Step { place, command, begun };
        let followed = Some((count, timed.into_iter().zip(begun).map(step).collect()));
        Self(Box::new(Touched { connector, lanes, followed, _on_wire: Some(on_wire) }))
    }

    /// What the writes touch.
    pub(in crate::kinds::redis::door) fn lanes(&self) -> &Lanes {
        &self.0.lanes
    }

    /// EXEC was answered so: what it has run has settled the deadlines of its keys. If it has run nothing, it has
    /// settled none.
    fn answered(&mut self, exec: &[u8]) {
        let Touched { connector, followed, .. } = &mut *self.0;
        let Some((count, steps)) = followed.take() else { return };
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
    /// The server has refused its MULTI, so that it runs the commands behind that one by one.
    is_apart: bool,
    /// One of those has been run.
    has_run: bool,
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
            is_apart: false,
            has_run: false,
        }
    }

    /// A reply has come. True for the last one. If they are more than `max` bytes together, none is kept.
    pub(super) fn add(&mut self, frame: &[u8], max: usize) -> bool {
        self.left = self.left.saturating_sub(1);
        // Of one that is too large, what comes may be the rest of a reply: its first byte says nothing, and no error is
        // so long.
        let is_refused = !self.is_too_large && matches!(frame.first(), Some(b'-' | b'!'));
        if self.left > 0 && self.left + 1 == self.commands {
            self.is_apart = matches!(frame.first(), Some(b'-' | b'!'));
        } else if self.left > 0 {
            self.has_run |= self.is_apart && !is_refused;
            if is_refused && self.inner.is_none() {
                self.inner = Some(Bytes::copy_from_slice(frame));
            }
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

    /// What it was refused with: the error of its MULTI, else that of its EXEC, or the one that made it so. `None` if
    /// some of it has been run, though it may not have been run as a transaction.
    pub(in crate::kinds::redis::door) fn refusal(&self) -> Option<&[u8]> {
        if self.has_run {
            return None;
        }
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
        // Without its MULTI, its commands are run one by one.
        let (noperm, without) = (&b"-NOPERM no\r\n"[..], &b"-ERR EXEC without MULTI\r\n"[..]);
        assert_eq!(refused(&[noperm, noperm, without]).unwrap(), noperm);
        assert_eq!(refused(&[noperm, b"+OK\r\n", without]), None);
        assert_eq!(refused(&[noperm, noperm, b"$-1\r\n", without]), None);
    }
}
