//! A client that needs an upstream of its own.
//!
//! From the first command that belongs to a connection (MULTI, WATCH, BLPOP, SUBSCRIBE, MONITOR, another database) until
//! the client leaves, everything that it says goes over one connection that nobody else uses. If that is lost, the
//! client's own is reset: whatever it believed of the connection's state is gone.
//!
//! ```text
//!            MULTI                      SUBSCRIBE (RESP2), MONITOR
//!   Within ◀─────── Counted ────────────────────────────────────────▶ Raw
//!          ───────▶         ◀────────────────────────────────────────
//!       EXEC, DISCARD        the server says that it listens no more
//! ```
//! # Invariants
//! 1. A command outside a transaction has its leave like one on the shared connection: breaker, bulkhead, lanes. What
//!    holds no place (MULTI, SELECT, SUBSCRIBE) asks whether the backend may be asked.
//! 2. What is said between MULTI and EXEC changes nothing yet and needs no leave. EXEC takes the lanes of all of it, and
//!    of what is watched; if it gets no leave, the transaction is discarded at the server, and the client is told
//!    EXECABORT.
//! 3. A command that blocks holds neither permit nor place. Its keys are free of queued writes when it is sent, and what
//!    is cached of them is dropped when it is sent and when it is answered. If its client hangs up, its connection is
//!    closed at once: nobody would get what it pops.
//! 4. A listener's connection is relayed: what the server says goes on as it comes, and only what a server takes of a
//!    listener is sent. Before anything else is, the server must have said that it listens no more.
//! 5. A pinned connection raises no fence: it waits until the backend's stands.
//! 6. Of other databases than the backend's nothing is cached, queued or repeated. A connection is in another database
//!    once the server has said so.
//! 7. If a MULTI or a SELECT was not carried out, what follows would mean something else: it is refused until the
//!    transaction ends, or a database is selected ([`Barred`]).

use std::{mem, rc::Rc};

use fusebox_state::{LaneId, Lanes};

use super::upstream::Upstream;

/// More lanes than these are all lanes.
const LANES_MAX: usize = 64;

/// What the server is asked, and how it answers to a listener and to others.
pub(super) const STILL: &[u8] = b"*2\r\n$4\r\nPING\r\n$17\r\nfusebox:listening\r\n";
const STILL_LISTENS: &[u8] = b"*2\r\n$4\r\npong\r\n$17\r\nfusebox:listening\r\n";
const LISTENS_NO_MORE: &[u8] = b"$17\r\nfusebox:listening\r\n";

/// How far a pinned client is from an ordinary one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pinning {
    /// Its commands are answered one by one.
    Counted,
    /// It is between MULTI and EXEC.
    Within,
    /// Whatever the server says goes to it as it comes.
    Raw,
}

/// Whether a RESP2 client that has subscribed still listens. Only the server knows when its last subscription has ended:
/// it is asked by a PING, which it answers otherwise to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listening {
    /// It was not asked.
    Perhaps,
    /// It was asked, and has not answered yet.
    Asked,
    Yes,
    No,
    /// It is a monitor, for ever.
    Monitor,
}

/// What was not carried out, so that what follows would mean something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Barred {
    /// A MULTI: until EXEC or DISCARD.
    Transaction,
    /// A SELECT: until another one.
    Database,
}

/// A client's own upstream.
pub(super) struct PinnedTo {
    upstream: Rc<Upstream>,
    state: Pinning,
    /// The lanes of what was said since MULTI; `None` for all.
    lanes: Option<Vec<LaneId>>,
    /// Those of what is watched.
    watched: Option<Vec<LaneId>>,
    /// Something since MULTI was refused here: EXEC must not run the rest.
    spoilt: bool,
    /// The database that it is in; `None` if one was selected in a transaction, which may not have run.
    database: Option<u32>,
    listening: Listening,
    /// It has subscribed in RESP3.
    subscribed: bool,
}

impl PinnedTo {
    pub(super) fn new(upstream: Rc<Upstream>, database: u32) -> Self {
        Self {
            upstream,
            state: Pinning::Counted,
            lanes: Some(Vec::new()),
            watched: Some(Vec::new()),
            spoilt: false,
            database: Some(database),
            listening: Listening::Perhaps,
            subscribed: false,
        }
    }

    pub(super) fn state(&self) -> Pinning {
        self.state
    }

    /// Whether the server itself is told everything.
    pub(super) fn is_relayed(&self) -> bool {
        self.state != Pinning::Counted
    }

    pub(super) fn upstream(&self) -> &Rc<Upstream> {
        &self.upstream
    }

    pub(super) fn close(&self) {
        self.upstream.close();
    }

    pub(super) fn database(&self) -> Option<u32> {
        self.database
    }

    /// It is in that database now; `None` if that is not known.
    pub(super) fn selected(&mut self, database: Option<u32>) {
        self.database = database;
    }

    /// MULTI was sent.
    pub(super) fn begin(&mut self) {
        self.state = Pinning::Within;
    }

    /// A command of these lanes was sent between MULTI and EXEC.
    pub(super) fn add(&mut self, lanes: &Lanes) {
        add(&mut self.lanes, lanes);
    }

    /// Something was refused: a transaction that it is part of must not run.
    pub(super) fn spoil(&mut self) {
        self.spoilt |= self.state == Pinning::Within;
    }

    pub(super) fn is_spoilt(&self) -> bool {
        self.spoilt
    }

    /// The keys of these lanes are watched.
    pub(super) fn watch(&mut self, lanes: &Lanes) {
        add(&mut self.watched, lanes);
    }

    /// Nothing is watched any more.
    pub(super) fn unwatch(&mut self) {
        self.watched = Some(Vec::new());
    }

    /// The lanes that EXEC takes.
    pub(super) fn lanes(&self) -> Lanes {
        match (&self.lanes, &self.watched) {
            (Some(lanes), Some(watched)) => Lanes::new(lanes.iter().chain(watched).copied()),
            _ => Lanes::All,
        }
    }

    /// The transaction has ended, or will once the server has read what was sent.
    pub(super) fn end(&mut self) {
        (self.state, self.lanes, self.spoilt) = (Pinning::Counted, Some(Vec::new()), false);
        self.unwatch();
    }

    /// It begins to listen, as a monitor or to channels.
    pub(super) fn listen(&mut self, monitors: bool, relayed: bool) {
        self.subscribed = true;
        if relayed {
            self.upstream.set_raw(true);
            self.state = Pinning::Raw;
            self.listening = if monitors { Listening::Monitor } else { Listening::Perhaps };
        }
    }

    /// Whether it may hear something without having asked.
    pub(super) fn listens(&self) -> bool {
        self.subscribed
    }

    /// Its commands are answered one by one again.
    pub(super) fn listens_no_more(&mut self) {
        self.upstream.set_raw(false);
        (self.state, self.listening, self.subscribed) =
            (Pinning::Counted, Listening::Perhaps, false);
    }

    /// What was last heard of whether it listens. `Yes` is forgotten: it may have changed by the next time.
    pub(super) fn listening(&mut self) -> Listening {
        match self.listening {
            Listening::Yes => mem::replace(&mut self.listening, Listening::Perhaps),
            other => other,
        }
    }

    /// The server is being asked whether it still listens.
    pub(super) fn ask(&mut self) {
        self.listening = Listening::Asked;
    }

    /// The server has said something without being asked by its client. True for what the door itself had asked.
    pub(super) fn heard(&mut self, frame: &[u8]) -> bool {
        if self.state != Pinning::Raw || self.listening == Listening::Monitor {
            return false;
        }
        match frame {
            STILL_LISTENS => self.listening = Listening::Yes,
            LISTENS_NO_MORE => self.listening = Listening::No,
            // A server that is busy says so instead: it is asked again.
            [b'-', ..] if self.listening == Listening::Asked => {
                self.listening = Listening::Perhaps;
                return false;
            }
            _ => return false,
        }
        true
    }
}

fn add(all: &mut Option<Vec<LaneId>>, lanes: &Lanes) {
    let Some(known) = all else { return };
    known.extend_from_slice(lanes.as_slice());
    if lanes.is_all() || known.len() > LANES_MAX {
        *all = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::redis::{connector::RedisConnector, testing, transport::handshake::Protocol};

    #[tokio::test]
    async fn a_transaction_takes_the_lanes_of_what_is_within_and_of_what_is_watched() {
        let lane = |key: &[u8]| LaneId::of(b"0", key);
        let connector = RedisConnector::new(testing::settings(1, "i", "r"));
        let mut pinned = PinnedTo::new(Upstream::new(connector, Protocol::Two, None), 0);
        pinned.watch(&Lanes::One(lane(b"watched")));
        pinned.begin();
        pinned.add(&Lanes::One(lane(b"written")));
        assert_eq!(pinned.lanes(), Lanes::new([lane(b"watched"), lane(b"written")]));
        pinned.end();
        pinned.begin();
        pinned.add(&Lanes::One(lane(b"written")));
        assert_eq!(pinned.lanes(), Lanes::One(lane(b"written")), "it is watched once");
        pinned.add(&Lanes::All);
        pinned.add(&Lanes::One(lane(b"more")));
        assert_eq!(pinned.lanes(), Lanes::All);
    }
}
