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
//!    EXECABORT. An EXEC or DISCARD that the connection does not take ends the transaction all the same: by the end of
//!    the connection.
//! 3. A command that blocks holds neither permit nor place. Its keys are free of queued writes when it is sent, and
//!    what is cached of them is dropped when it is sent and when it is answered. If it may change something, it has its
//!    leave as a write has. If its client hangs up, its connection is closed at once: nobody would get what it pops.
//! 4. A subscription is answered by confirmations, among the messages that a listener gets: it stays in the ring until
//!    the last one, so that it is known whether the connection listens. A RESP2 client that does is refused, in the
//!    server's words, what a server takes of no listener.
//! 5. A pinned connection raises no fence: it waits until the backend's is up.
//! 6. Of other databases than the backend's nothing is cached, queued or repeated. A connection is in another database
//!    once the server has said so.
//! 7. A connection is given back once everything was answered that was sent on it, and nothing is left: no transaction,
//!    nothing watched, the backend's database, no subscription, and nothing said that nobody knows. Protocol and name
//!    of a client are not the connection's. One that others have aimed at, by its number at the server, is closed
//!    instead: what comes late must not meet the next client.
//! 8. If a MULTI, a WATCH or a SELECT was not carried out, what follows would mean something else: it is refused until
//!    the transaction ends, or a database is selected ([`Barred`]). A client is in a transaction once the server has
//!    said so: nothing is sent behind a MULTI before, and one that the server refuses was not carried out.
//! 9. While something is watched, what is read is the server's own answer or an error: a client that decides by an
//!    older value would have its transaction run all the same.

use std::rc::Rc;

use bytes::Bytes;
use fusebox_state::Lanes;

use super::{lane_set::LaneSet, upstream::Upstream};
use crate::kinds::redis::protocol::{
    commands::Spec,
    resp, rules,
    ttl::{self, Fate},
};

/// How much is kept of the commands of a transaction, in bytes.
const TIMED_MAX: usize = 256 << 10;
/// No option of a command is longer than this, in bytes.
const OPTION_MAX: usize = 64;

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

/// What becomes of a connection that its client needs no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Afterwards {
    /// It is kept for the next client.
    Pooled,
    /// It is closed: others have aimed at it.
    Closed,
    /// It is that client's until the client leaves: something may be left there that nobody knows of.
    Kept,
}

/// The commands of a transaction, as far as they decide what becomes of the deadlines of its keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    /// How many there are.
    count: usize,
    /// Those that may change a deadline, each with its place among all.
    timed: Vec<(usize, Bytes)>,
    /// The bytes of these.
    size: usize,
    /// One of them may touch any key, or more would have to be kept than may be.
    is_any: bool,
}

impl Steps {
    /// Of a transaction that may touch any key.
    fn of_any() -> Self {
        Self { is_any: true, ..Self::default() }
    }

    /// What of a write says what it does to the deadlines of its keys: its name, its keys and its options. `None` if it
    /// leaves them as they are.
    pub(super) fn timed<'a>(spec: &Spec, args: &[&'a [u8]]) -> Option<Bytes> {
        let places = spec.keys(args)?;
        let keeps = |place: &usize| {
            matches!(ttl::touch(&spec.name, args, *place).fate, Fate::Keeps | Fate::Inherits)
        };
        if places.iter().all(keeps) {
            return None;
        }
        let option = |word: &&'a [u8]| if word.len() > OPTION_MAX { &b""[..] } else { *word };
        let mut words: Vec<&[u8]> = args.iter().map(option).collect();
        for place in places {
            if let (Some(word), Some(key)) = (words.get_mut(place), args.get(place)) {
                *word = *key;
            }
        }
        Some(resp::command(&words))
    }

    /// Whether a command of these lanes may touch any key. Of more keys than lanes are distinguished, all are known.
    pub(super) fn touches_any(spec: &Spec, args: &[&[u8]], lanes: &Lanes) -> bool {
        let names_its_keys = matches!(rules::kind(spec), rules::Kind::Read | rules::Kind::Write)
            && spec.keys(args).is_some_and(|keys| !keys.is_empty());
        lanes.is_all() && !names_its_keys
    }

    /// Adds a command, of which that is kept; `is_any` if it may touch any key.
    pub(super) fn add(&mut self, is_any: bool, timed: Option<Bytes>) {
        if let Some(timed) = timed {
            self.size += timed.len();
            self.timed.push((self.count, timed));
        }
        self.count += 1;
        self.is_any |= is_any || self.size > TIMED_MAX;
        if self.is_any {
            (self.timed, self.size) = (Vec::new(), 0);
        }
    }

    /// How many commands there are, and those that may change a deadline, each with its place. `None` if they are not
    /// to be followed.
    pub(super) fn followed(self) -> Option<(usize, Vec<(usize, Bytes)>)> {
        (!self.is_any).then_some((self.count, self.timed))
    }
}

/// A client's own upstream.
pub(super) struct PinnedTo {
    upstream: Rc<Upstream>,
    state: Pinning,
    /// The lanes of what was said since MULTI.
    lanes: LaneSet,
    /// What of that decides what becomes of deadlines.
    steps: Steps,
    /// Those of what is watched.
    watched: LaneSet,
    /// Something since MULTI was refused here: EXEC must not run the rest.
    spoilt: bool,
    /// The database that it is in; `None` if one was selected in a transaction, which may not have run.
    database: Option<u32>,
    /// It has subscribed, and whether it still listens was not looked at since.
    subscribed: bool,
    /// What becomes of its connection afterwards.
    afterwards: Afterwards,
}

impl PinnedTo {
    pub(super) fn new(upstream: Rc<Upstream>, database: u32) -> Self {
        Self {
            upstream,
            state: Pinning::Counted,
            lanes: LaneSet::default(),
            steps: Steps::default(),
            watched: LaneSet::default(),
            spoilt: false,
            database: Some(database),
            subscribed: false,
            afterwards: Afterwards::Pooled,
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
        self.afterwards = Afterwards::Kept;
    }

    /// Others aim at its connection, by its number at the server.
    pub(super) fn aim(&mut self) {
        self.afterwards = self.afterwards.max(Afterwards::Closed);
    }

    /// Whether others have aimed at its connection: it is given to nobody else.
    pub(super) fn is_aimed_at(&self) -> bool {
        self.afterwards == Afterwards::Closed
    }

    /// Whether nothing is left on its connection that is this client's: no transaction, nothing watched, no other
    /// database, no subscription.
    pub(super) fn is_clean(&self, configured: u32) -> bool {
        self.state == Pinning::Counted
            && self.watched.is_empty()
            && self.database == Some(configured)
            && !self.subscribed
            && self.afterwards != Afterwards::Kept
    }

    pub(super) fn database(&self) -> Option<u32> {
        self.database
    }

    /// It is in that database now; `None` if that is not known.
    pub(super) fn selected(&mut self, database: Option<u32>) {
        self.database = database;
    }

    /// The server has taken MULTI.
    pub(super) fn begin(&mut self) {
        self.state = Pinning::Within;
    }

    /// A command of these lanes was sent between MULTI and EXEC, of which that is kept; `is_any` if it may touch any key.
    pub(super) fn add(&mut self, lanes: &Lanes, (is_any, timed): (bool, Option<Bytes>)) {
        self.lanes.add(lanes);
        self.steps.add(is_any, timed);
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

    /// What EXEC runs. Of another database than the backend's, which is `configured`, nothing is followed.
    pub(super) fn steps(&self, configured: u32) -> Steps {
        if self.database == Some(configured) { self.steps.clone() } else { Steps::of_any() }
    }

    /// The transaction has ended, or will once the server has read what was sent.
    pub(super) fn end(&mut self) {
        (self.state, self.lanes, self.spoilt) = (Pinning::Counted, LaneSet::default(), false);
        self.steps = Steps::default();
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
    use crate::kinds::redis::{
        connector::RedisConnector, protocol::commands::Commands, testing,
        transport::handshake::Protocol,
    };

    #[tokio::test]
    async fn a_transaction_takes_the_lanes_of_what_is_within_and_of_what_is_watched() {
        let lane = |key: &[u8]| LaneId::of(b"0", key);
        let connector = RedisConnector::new(testing::settings(1, "i", "r"));
        let mut pinned =
            PinnedTo::new(Upstream::new(connector, Protocol::Two, None, &Rc::default()), 0);
        pinned.watch(&Lanes::One(lane(b"watched")));
        pinned.begin();
        pinned.add(&Lanes::One(lane(b"written")), (false, None));
        assert_eq!(pinned.lanes(), Lanes::new([lane(b"watched"), lane(b"written")]));
        pinned.end();
        pinned.begin();
        pinned.add(&Lanes::One(lane(b"written")), (false, None));
        assert_eq!(pinned.lanes(), Lanes::One(lane(b"written")), "it is watched once");
        pinned.add(&Lanes::All, (true, None));
        pinned.add(&Lanes::One(lane(b"more")), (false, None));
        assert_eq!(pinned.lanes(), Lanes::All);
    }

    #[test]
    fn what_is_kept_of_a_transaction_says_what_becomes_of_deadlines() {
        let commands = Commands::default();
        let long = "v".repeat(OPTION_MAX + 1);
        let timed = |command: &str| {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            Steps::timed(&commands.find(&args).unwrap(), &args)
        };
        for (command, kept) in [
            (format!("SET k {long} EX 5"), Some("SET k  EX 5".to_owned())),
            (format!("DEL {long} k"), Some(format!("DEL {long} k"))),
            (format!("HSET k f {long}"), None),
        ] {
            let kept = kept.map(|words| resp::command(&words.split(' ').collect::<Vec<_>>()));
            assert_eq!(timed(&command), kept, "{command}");
        }
        let many: Vec<String> = (0..100).map(|number| format!("k{number}")).collect();
        let touches_any = |command: &str| {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            Steps::touches_any(&commands.find(&args).unwrap(), &args, &Lanes::All)
        };
        assert!(!touches_any(&format!("DEL {}", many.join(" "))), "its keys are known");
        assert!(touches_any("FLUSHDB") && touches_any("EVAL x 0"));
        let mut steps = Steps::default();
        steps.add(false, None);
        steps.add(false, timed("SET k v EX 5"));
        let (count, followed) = steps.clone().followed().unwrap();
        assert_eq!((count, followed.len(), followed[0].0), (2, 1, 1));
        steps.add(true, None);
        steps.add(false, timed("SET k v EX 5"));
        assert_eq!(steps.followed(), None, "one of them may touch any key");
        let mut steps = Steps::default();
        let large = timed(&format!("DEL {}", "k".repeat(TIMED_MAX / 2)));
        steps.add(false, large.clone());
        assert!(steps.clone().followed().is_some());
        steps.add(false, large);
        assert_eq!(steps.followed(), None, "that is too much to be kept");
    }
}
