//! A client that needs an upstream of its own.
//!
//! From the first command that belongs to a connection (WATCH, BLPOP, SUBSCRIBE, MONITOR, another database, a MULTI
//! whose EXEC has not come with it) until
//! nothing of that is left, everything that the client says goes over one connection that nobody else uses. If that is
//! lost, the client's own is reset: whatever it believed of the connection's state is gone. A command that waits for
//! others leaves no state, and waits on (`client/parked.rs`).
//!
//! A connection that is given back is kept for the next client for ten seconds, so that workers that ask for one job
//! after another need no new one each time. None is opened in advance.
//!
//! # Invariants
//! 1. A command outside a transaction has its leave like one on the shared connection: breaker, bulkhead, lanes. What
//!    holds no place (MULTI, SELECT, SUBSCRIBE) asks whether the backend may be asked.
//! 2. What is said between MULTI and EXEC changes nothing yet and needs no leave. EXEC takes the lanes of all of it,
//!    and of what is watched; if it gets no leave, the transaction is discarded at the server, and the client gets
//!    EXECABORT.
//! 3. A command that blocks holds neither permit nor place. Its keys are free of queued writes when it is sent, and
//!    what is cached of them is dropped when it is sent and when it is answered. If its client hangs up, its connection
//!    is closed at once: nobody would get what it pops.
//! 4. A subscription is answered by confirmations, among the messages that a listener gets: it stays in the ring until
//!    the last one, so that it is known whether the connection listens. A RESP2 client that does is refused, in the
//!    server's words, what a server takes of no listener.
//! 5. A pinned connection raises no fence: it waits until the backend's is up.
//! 6. Of other databases than the backend's nothing is cached, queued or repeated. A connection is in another database
//!    once the server has said so.
//! 7. A connection is given back once everything was answered that was sent on it, and nothing is left: no transaction,
//!    nothing watched, the backend's database, no subscription, and nothing said that nobody knows. Protocol and name
//!    of a client are not the connection's.
//! 8. If a MULTI or a SELECT was not carried out, what follows would mean something else: it is refused until the
//!    transaction ends, or a database is selected ([`Barred`]).
//! 9. While something is watched, what is read is the server's own answer or an error: a client that decides by an
//!    older value would have its transaction run all the same.

use std::rc::Rc;

use fusebox_state::Lanes;

use super::{lane_set::LaneSet, upstream::Upstream};

/// How far a pinned client is from an ordinary one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pinning {
    /// Its commands are answered one by one.
    Counted,
    /// It is between MULTI and EXEC.
    Within,
}

/// What was not carried out, so that what follows would mean something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Barred {
    /// A MULTI: until EXEC or DISCARD, until another MULTI, or until the client must have heard of it.
    Transaction,
    /// A WATCH: the next transaction must not run.
    Watch,
    /// A SELECT: until another one.
    Database,
}

/// A client's own upstream.
pub(super) struct PinnedTo {
    upstream: Rc<Upstream>,
    state: Pinning,
    /// The lanes of what was said since MULTI.
    lanes: LaneSet,
    /// Those of what is watched.
    watched: LaneSet,
    /// Something since MULTI was refused here: EXEC must not run the rest.
    spoilt: bool,
    /// The database that it is in; `None` if one was selected in a transaction, which may not have run.
    database: Option<u32>,
    /// It has subscribed, and whether it still listens was not looked at since.
    subscribed: bool,
    /// Something may be left of it on its connection that nobody knows of.
    kept: bool,
}

impl PinnedTo {
    pub(super) fn new(upstream: Rc<Upstream>, database: u32) -> Self {
        Self {
            upstream,
            state: Pinning::Counted,
            lanes: LaneSet::default(),
            watched: LaneSet::default(),
            spoilt: false,
            database: Some(database),
            subscribed: false,
            kept: false,
        }
    }

    pub(super) fn state(&self) -> Pinning {
        self.state
    }

    /// Whether it is between MULTI and EXEC.
    pub(super) fn is_within(&self) -> bool {
        self.state == Pinning::Within
    }

    pub(super) fn upstream(&self) -> &Rc<Upstream> {
        &self.upstream
    }

    pub(super) fn into_upstream(self) -> Rc<Upstream> {
        self.upstream
    }

    pub(super) fn close(&self) {
        self.upstream.close();
    }

    /// It keeps its connection until it leaves.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// Whether nothing is left on its connection that is this client's: no transaction, nothing watched, no other
    /// database, no subscription.
    pub(super) fn is_clean(&self, configured: u32) -> bool {
        self.state == Pinning::Counted
            && self.watched.is_empty()
            && self.database == Some(configured)
            && !self.subscribed
            && !self.kept
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
        self.lanes.add(lanes);
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
        self.watched.add(lanes);
    }

    /// Whether anything is watched.
    pub(super) fn watches(&self) -> bool {
        !self.watched.is_empty()
    }

    /// Nothing is watched any more.
    pub(super) fn unwatch(&mut self) {
        self.watched = LaneSet::default();
    }

    /// The lanes that EXEC takes.
    pub(super) fn lanes(&self) -> Lanes {
        self.lanes.with(&self.watched)
    }

    /// The transaction has ended, or will once the server has read what was sent.
    pub(super) fn end(&mut self) {
        (self.state, self.lanes, self.spoilt) = (Pinning::Counted, LaneSet::default(), false);
        self.unwatch();
    }

    /// It begins to listen, as a monitor or to channels.
    pub(super) fn subscribes(&mut self) {
        self.subscribed = true;
    }

    /// Whether it may listen. To be asked while nothing is unanswered.
    pub(super) fn listens(&mut self) -> bool {
        self.subscribed &= self.upstream.listens();
        self.subscribed
    }

    /// Whether it has listened since it was last asked whether it does.
    pub(super) fn may_listen(&self) -> bool {
        self.subscribed
    }
}

#[cfg(test)]
mod tests {
    use fusebox_state::LaneId;

    use super::*;
    use crate::kinds::redis::{connector::RedisConnector, testing, transport::handshake::Protocol};

    #[tokio::test]
    async fn a_transaction_takes_the_lanes_of_what_is_within_and_of_what_is_watched() {
        let lane = |key: &[u8]| LaneId::of(b"0", key);
        let connector = RedisConnector::new(testing::settings(1, "i", "r"));
        let mut pinned =
            PinnedTo::new(Upstream::new(connector, Protocol::Two, None, &Rc::default()), 0);
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
