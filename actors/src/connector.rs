//! The port behind which a backend's protocol lives.
//!
//! Everything above it deals in opaque bytes: a *body* is a call in its wire form, a *reply* the
//! backend's answer in its wire form. A connector knows what a body means (lanes, effects, how it may
//! be answered in an outage), carries attempts, and classifies how they ended. It decides neither
//! when to admit nor when to retry nor what to fall back on.
//!
//! **The one rule that an implementation might break:** after an attempt that may have been executed
//! without an answer, nothing more is sent to its lanes until it can no longer land
//! ([`Connector::attempt`] waits for that fence itself), also when an earlier run of the daemon made it.

use std::{any::Any, borrow::Cow, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_state::{ErrorClass, LaneId, Lanes, OpId, Target, UnixMillis, Verdict, limit::Rule};

use crate::trace::context::PassedOn;
pub use crate::{
    error_code::{ErrorCode, OwnCode},
    passage::{Aboard, Fate, Passage},
    pieces::{Answer, Tail, Upload},
    refusal::{AttemptError, Refused},
    view::ConnectorStatus,
};

mod streams;

pub use streams::{Follow, Gate, StreamEvent, Streams};

/// What a connector holds of an answer before it hands out the rest piece by piece, in bytes.
pub const HEAD_MAX: usize = 1 << 20;

/// What a call is, as its connector reads it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The call in wire form: what attempts carry and what the queue stores.
    pub body: Bytes,
    /// The lanes for people, such as the key; at most 256 bytes of it are stored.
    pub label: String,
    /// The lanes that it touches. `All` is a barrier over the backend.
    pub lanes: Lanes,
    /// Whether it needs admin rights (CONFIG, SHUTDOWN …).
    pub admin: bool,
    /// Read or write, and what follows from it.
    pub access: Access,
}

/// Whether a call reads or writes.
#[derive(Clone, Debug)]
pub enum Access {
    /// Changes nothing.
    Read(Read),
    /// May change something.
    Write(Write),
}

/// What a read allows.
#[derive(Clone, Debug)]
pub struct Read {
    /// Whether the read is of keys: then it sees its host's own queued writes.
    pub keyed: bool,
    /// The cache entries that together answer it, in the order of [`Connector::join`]; empty if it
    /// is not cached.
    pub slots: Vec<Slot>,
    /// What replaces one slot that misses in an outage (a nil), or the whole reply if there are
    /// no slots; `None` if a miss is an error.
    pub miss: Option<Bytes>,
}

/// One cache entry: a lane, and within it the canonical read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The lane whose writes invalidate the entry.
    pub lane: LaneId,
    /// The canonical form of the read, such as `GET k` as a RESP array.
    pub key: Bytes,
}

/// What a write allows.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one write")]
#[derive(Clone, Debug)]
pub struct Write {
    /// Leaves the same state however often it is applied.
    pub absolute: bool,
    /// Sets the whole value of its only lane, whatever the lane held: after it, earlier writes of the lane
    /// make no difference. Only of meaning for an absolute write of one lane.
    pub whole: bool,
    /// Its reply is the same however often it is applied (`OK`). If it is not, a reply to a repetition
    /// is not the reply that the first attempt would have had, and the caller learns that.
    pub settled_reply: bool,
    /// Whether a token costs the backend nothing: then every live attempt has one too.
    pub free_token: bool,
    /// Every live attempt has a token if the write may be queued.
    pub queue_token: bool,
    /// Queued writes of the same number may be sent as one ([`Connector::attempt_group`]); `None` for one
    /// that is always sent alone.
    pub gather: Option<u64>,
    /// What is queued depends on what else waits in its lanes (a deadline that it carries): its attempts
    /// see what is behind it ([`Attempt::following`]).
    pub timed: bool,
    /// What the backend's own answer leaves open, if it is less than usual: its caller is warned of it.
    pub caveat: Option<&'static str>,
    /// How it may be answered while the backend is down.
    pub outage: Outage,
}

impl Write {
    /// A write that needs a token to be repeated, with nothing else said of it.
    pub fn new(outage: Outage) -> Self {
        Self {
            absolute: false,
            whole: false,
            settled_reply: false,
            free_token: false,
            queue_token: false,
            gather: None,
            timed: false,
            caveat: None,
            outage,
        }
    }
}

/// What is known of a write that the backend has not seen yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Its reply is known: queued and answered with these bytes.
    ReplyKnown(Bytes),
    /// Its effect is known but not its reply: queued, answered with null.
    EffectKnown,
    /// Its effect is not known: refused unless the caller consents with `min_ack = durable`.
    EffectUnknown,
    /// Never queued, for this reason.
    Never(&'static str),
}

/// Who sends an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A caller waits for it.
    Live,
    /// From the queue: time to live is counted from acceptance.
    Replay,
}

/// Earlier attempts of a write may have been carried out: what a proof must know of them.
#[derive(Clone, Copy, Debug)]
pub struct Doubt<'a> {
    /// When the first of them was sent, on the wall clock.
    pub since: UnixMillis,
    /// What the connector had noted beside that sending ([`Connector::prepare`], or
    /// [`AttemptError::doubt`]); empty if it noted nothing.
    pub evidence: &'a Bytes,
}

/// One try of a call on the wire.
#[derive(Clone, Debug)]
pub struct Attempt<'a> {
    /// The call in wire form.
    pub body: &'a Bytes,
    /// The lanes that it touches.
    pub lanes: &'a Lanes,
    /// Whether it may change something. Reads pass no fence.
    pub write: bool,
    /// Who sends it.
    pub origin: Origin,
    /// The token by which the backend recognises a write that it applied already; `None` for reads
    /// and absolute writes.
    pub token: Option<OpId>,
    /// Digest of the call as its caller sent it. A marker carries it: another call under the same token ends
    /// as [`ErrorClass::Conflict`].
    pub digest: u64,
    /// Earlier attempts that may have been carried out; `None` if none may. One with a token is sent
    /// only if it is proven that the backend would recognise it; if that cannot be proven, it ends as
    /// [`ErrorClass::Ambiguous`] unsent.
    pub doubt: Option<Doubt<'a>>,
    /// Replay of a timed write ([`Write::timed`]): the queued writes that are behind it in its lanes,
    /// oldest first. Empty otherwise.
    pub following: &'a [QueuedWrite],
    /// Whether an answer above [`HEAD_MAX`] may be given as [`Attempted::rest`]; else it is an error.
    pub streams: bool,
    /// What follows `body` if the call is too large to hold.
    pub upload: Option<&'a Upload>,
    /// In which form of its protocol the backend is to reply, by the connector's own number; 0 is the usual one.
    pub dialect: u8,
    /// When the call was accepted, on the wall clock.
    pub accepted_at: UnixMillis,
    /// The wall clock now.
    pub now: UnixMillis,
    /// The time that this attempt may take: the backend's `timeout` or what the caller's deadline
    /// leaves, whichever is less. The connector keeps the backend's own `timeout` itself: an attempt
    /// whose caller left keeps its place on the wire until then.
    pub timeout: Duration,
    /// What the caller's deadline leaves, which is no less than `timeout`. A read whose answer has begun within `timeout`
    /// may take so long until that has come whole.
    pub left: Duration,
    /// How long of `timeout` it waits at most until nothing old can land in its lanes. If that is not so by then, or
    /// it is known that it will not be, the attempt ends as [`OwnCode::Fence`].
    pub fence_patience: Duration,
    /// The trace context to pass on; `None` for what nobody follows.
    pub trace: Option<PassedOn<'a>>,
    /// What it holds; see [`Attempt::board`].
    pub passage: Option<&'a Arc<Passage>>,
}

impl Attempt<'_> {
    /// Puts it aboard: what is returned goes with whatever of it is on the wire, and ends when that does. Until
    /// then it keeps its place, whoever waits for it. To be called before the first byte leaves.
    pub fn board(&self) -> Aboard {
        let aboard = self.board_unsent();
        aboard.departs();
        aboard
    }

    /// The same for what cannot be sent yet, because it has no connection, say. Nothing of it is sent before it
    /// [departs](Aboard::departs): if its caller leaves before that, it is known not to have been executed.
    pub fn board_unsent(&self) -> Aboard {
        self.passage.map(|passage| Aboard::of(passage, self.body)).unwrap_or_default()
    }
}

/// How an attempt ended.
pub struct Attempted {
    /// What it says about the backend.
    pub verdict: Verdict,
    /// The reply in wire form, or why there is none.
    pub result: Result<Bytes, AttemptError>,
    /// What follows the reply if it is too large to hold: then `result` is its beginning.
    pub rest: Option<Box<dyn Tail>>,
    /// It was applied by an earlier attempt whose reply is gone: `result` is not that reply.
    pub reply_lost: bool,
    /// What must still be done once the writes accepted before a certain time have been replayed; replaces
    /// the queued call. Only of replay, and only of a timed write.
    pub residue: Option<Residue>,
}

/// What is left to do of a queued call that was applied: to end a key's life, say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residue {
    /// The call that remains, in wire form. It must be absolute.
    pub body: Bytes,
    /// The lanes that it touches.
    pub lanes: Lanes,
    /// Writes accepted before this are replayed before it, also those that are behind it; writes accepted
    /// later wait for it.
    pub due: UnixMillis,
}

/// The form in which a queue stores a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The call in wire form, as attempts of replay carry it.
    pub body: Bytes,
    /// Its attempts see what is behind it, as those of a timed write do ([`Write::timed`]).
    pub timed: bool,
}

/// What becomes of a residue by a write to one of its lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResidueAfter {
    /// It remains.
    Kept,
    /// It has no meaning any more.
    Void,
    /// It is another one now: the key that it is about was renamed.
    Changed(Residue),
}

impl fmt::Debug for Attempted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempted")
            .field("verdict", &self.verdict)
            .field("result", &self.result)
            .field("rest", &self.rest.is_some())
            .field("reply_lost", &self.reply_lost)
            .field("residue", &self.residue)
            .finish()
    }
}

impl Attempted {
    /// The backend answered.
    pub fn answered(reply: Bytes) -> Self {
        Self {
            verdict: Verdict::Success,
            result: Ok(reply),
            rest: None,
            reply_lost: false,
            residue: None,
        }
    }

    /// The backend recognised the write: an earlier attempt applied it, and `reply` is not that attempt's.
    pub fn recognised(reply: Bytes) -> Self {
        Self { reply_lost: true, ..Self::answered(reply) }
    }

    /// It ended with `error`, which says `verdict` about the backend.
    pub fn failed(verdict: Verdict, error: AttemptError) -> Self {
        Self { verdict, result: Err(error), rest: None, reply_lost: false, residue: None }
    }
}

/// A queued write as the overlay reads it.
#[derive(Clone, Debug)]
pub struct QueuedWrite {
    /// The call in wire form.
    pub body: Bytes,
    /// When it was accepted: its time to live counts from here.
    pub accepted_at: UnixMillis,
    /// It is a [`Residue`], which is due then.
    pub due: Option<UnixMillis>,
}

/// What queued writes say of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// They determine its reply.
    Reply(Bytes),
    /// They leave what it reads as it was before the first of them (they moved a time to live, which is not over).
    AsBefore,
    /// They do not determine it.
    Nothing,
}

/// What is known of the value that a slot reads, by the queued writes of its lane, oldest first.
///
/// It is kept while the lane is occupied, so that a reader pays for the writes since the last one only. What is known
/// after fewer writes never says more than what is known after more of them before.
pub trait Overlay: Send + Sync {
    /// Goes on with the next write. Returns whether what is known now would be the same if nothing had
    /// been known before it.
    fn write(&mut self, write: &QueuedWrite) -> bool;

    /// Whether it tells of `slot`, and would be what it is if its writes were read again now.
    fn serves(&self, slot: &Slot) -> bool;

    /// What the writes say of `slot`'s read at `now`.
    fn says(&self, slot: &Slot, now: UnixMillis) -> Said;

    /// A copy, to go on with.
    fn fork(&self) -> Box<dyn Overlay>;

    /// Bytes that it holds, roughly.
    fn bytes(&self) -> u64;
}

/// Codes of a kind's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsualErrors {
    /// It is overloaded, and has executed nothing.
    pub overloaded: &'static str,
    /// It refuses the call for good.
    pub refuses: &'static str,
}

/// Carries calls to one backend. Implementations are shared by every caller and never panic.
pub trait Connector: Any + Send + Sync {
    /// Reads what `body` is. Called once per call, before anything else; must be fast.
    ///
    /// # Errors
    /// The call cannot be spec, whatever the backend's state.
    fn plan(&self, body: Bytes) -> Result<Plan, Refused>;

    /// The lanes of a call as it is stored, at this connector's target. `None` if that cannot be told.
    fn stored_lanes(&self, body: &Bytes) -> Option<Lanes> {
        self.plan(body.clone()).ok().map(|plan| plan.lanes)
    }

    /// The operation's name in the backend's own word (`GET`, `SELECT`, `commit`), without anything that
    /// a caller chose: for spans, so asked of few calls.
    fn operation(&self, body: &Bytes) -> Cow<'static, str> {
        let _ = body;
        Cow::Borrowed("call")
    }

    /// The form in which a queue stores a call, if it is not `body` itself: with what is known now and must
    /// be known at its replay (the deadline that a key has already). Attempts of replay carry that form.
    fn stored(&self, body: &Bytes) -> Option<Stored> {
        let _ = body;
        None
    }

    /// Looks whether a backend could take a call that is about to be queued, in the form in which it is stored, as far
    /// as that shows without the backend. `None` if nothing speaks against it.
    ///
    /// # Errors
    /// None could: the error that its caller gets instead. Of class [`ErrorClass::NotExecuted`] if one could now, and
    /// nobody knows whether one can later: it is not queued for that reason.
    fn storable<'a>(&'a self, body: &'a Bytes) -> Option<Answer<'a, Result<(), AttemptError>>> {
        let _ = body;
        None
    }

    /// Makes ready to send queued writes: a connection, what must be known of the server, whatever must be
    /// over first. Returns what is to be noted beside the sending of each, synced before it is sent; empty for
    /// nothing. An error says that nothing was sent, and nothing is noted then.
    ///
    /// Called for writes that are not absolute and about to be sent for the first time, so that what never
    /// left is not in doubt.
    fn prepare<'a>(
        &'a self,
        attempts: &'a [Attempt<'a>],
    ) -> Answer<'a, Result<Vec<Bytes>, (Verdict, AttemptError)>> {
        Box::pin(async move { Ok(vec![Bytes::new(); attempts.len()]) })
    }

    /// Whether a proof that a repetition is recognised rests on what was noted of the first sending. Then an attempt
    /// that may have been carried out and of which nothing was noted can never be repeated.
    fn needs_evidence(&self) -> bool {
        false
    }

    /// How many queued writes of one [`Write::gather`] number may be sent as one, and how many bytes of them.
    fn group_max(&self) -> (usize, u64) {
        (1, 0)
    }

    /// Carries queued writes of one [`Write::gather`] number as one, in this order; all have the same token and
    /// the same doubt. They are applied together or not at all. The end counts for each.
    fn attempt_group<'a>(&'a self, attempts: Vec<Attempt<'a>>) -> Answer<'a, Attempted> {
        let count = attempts.len();
        Box::pin(async move {
            let message =
                format!("this kind of backend does not support groups, got one of {count}");
            let error = AttemptError::own(ErrorClass::NotExecuted, OwnCode::Group, message);
            Attempted::failed(Verdict::Neutral, error)
        })
    }

    /// What `residue` becomes by `applied`, a write that was replayed after it in one of its lanes.
    fn residue_after(&self, residue: &QueuedWrite, applied: &Bytes) -> ResidueAfter {
        let (_, _) = (residue, applied);
        ResidueAfter::Kept
    }

    /// Carries one attempt. Never resolves later than `attempt.timeout` by much, or than `attempt.left` if it is a read
    /// whose answer is on its way by then; dropping the future abandons only the wait for the answer, not the call's
    /// place on the wire ([`Attempt::board`]).
    ///
    /// Verdicts: a deadline shorter than the backend's own `timeout` and a reset for another call's
    /// sake are neutral: then the wire says later what the attempt says of the backend ([`Aboard::ended`]).
    fn attempt<'a>(&'a self, attempt: Attempt<'a>) -> Answer<'a, Attempted>;

    /// Asks the backend whether it lives, within `timeout`. Also gets past an idle connection.
    fn ping(&self, timeout: Duration) -> Answer<'_, Attempted>;

    /// What is known of the value that `slot` reads before its queued writes: nothing. `None` if queued writes
    /// never determine such a read.
    fn overlay(&self, slot: &Slot) -> Option<Box<dyn Overlay>> {
        let _ = slot;
        None
    }

    /// What is known of the value that `slot` reads before its queued writes if that is `cached`, an entry of the
    /// cache. `None` if queued writes are not laid over what is cached.
    fn overlay_over(&self, slot: &Slot, cached: &Bytes) -> Option<Box<dyn Overlay>> {
        let (_, _) = (slot, cached);
        None
    }

    /// The parts of `reply`, one for each slot of the read. `None` if it is not cacheable.
    fn split(&self, body: &Bytes, slots: &[Slot], reply: &Bytes) -> Option<Vec<Bytes>>;

    /// How long what `slot` holds may be cached, if its lane's value is known to end: a deadline that was
    /// carried to the backend. `None` if none is known; zero for one that has just passed.
    fn expires(&self, slot: &Slot) -> Option<Duration> {
        let _ = slot;
        None
    }

    /// Whether what `slot` holds hardly ever changes, and is what programs cannot start without: then it may be a day
    /// old, whatever `max_stale` is.
    fn outlasts(&self, slot: &Slot) -> bool {
        let _ = slot;
        false
    }

    /// The reply that `parts` make, one for each slot of the read.
    fn join(&self, body: &Bytes, parts: Vec<Bytes>) -> Bytes;

    /// The right empty structure in place of the answer to a non-critical read that nothing can answer.
    /// `None` if that would have to be invented.
    fn empty(&self, body: &Bytes) -> Option<Bytes> {
        let _ = body;
        None
    }

    /// How much of a queued call that begins with `beginning` an attempt needs in [`Attempt::body`], in
    /// bytes; what follows may come as [`Attempt::upload`]. `None` if it needs the whole.
    fn held(&self, beginning: &[u8]) -> Option<usize> {
        let _ = beginning;
        None
    }

    /// How many queued calls of different lanes [`Connector::attempt_batch`] may carry together now; 0
    /// if the backend wants a pause, after which replay asks again.
    fn batch_max(&self) -> usize {
        1
    }

    /// Carries queued calls of different lanes together; the ends in the order of the attempts. One that
    /// the backend refuses must not end the others.
    fn attempt_batch<'a>(&'a self, attempts: Vec<Attempt<'a>>) -> Answer<'a, Vec<Attempted>> {
        Box::pin(async move {
            let mut ends = Vec::with_capacity(attempts.len());
            for attempt in attempts {
                ends.push(self.attempt(attempt).await);
            }
            ends
        })
    }

    /// Whether what is cached depends on lanes that writes touch. If it does not (results of queries), no write
    /// drops any of it.
    fn caches_by_lane(&self) -> bool {
        true
    }

    /// Whether an abandoned write may still land in `lane`: then what a read answers now is not cached.
    fn may_land(&self, lane: LaneId) -> bool {
        let _ = lane;
        false
    }

    /// Whether a write that its caller gave up must bar its lanes until it is answered or its connection is gone. A
    /// connector whose own fence keeps a newer write from passing it needs no such help.
    fn bars_what_is_left(&self) -> bool {
        false
    }

    /// Its live queries, if it has any.
    fn streams(&self) -> Option<&dyn Streams> {
        None
    }

    /// The outcome of these tokens is known and every attempt that had one was answered: their markers may
    /// go. Best effort, in the background.
    fn forget_tokens(&self, tokens: Vec<OpId>);

    /// By what an adaptive limit on its attempts goes: by response times, unless these depend on what is asked more
    /// than on how much there is to do.
    fn limit_rule(&self) -> Rule {
        Rule::Gradient
    }

    /// What it shows of itself.
    fn status(&self) -> ConnectorStatus;

    /// What it speaks to, and so what a store belongs to.
    fn target(&self) -> Target;

    /// What its answers are of: its target, and as whom it asks there, since another user may see something else. What
    /// was cached of anything else answers nothing.
    fn view(&self) -> Target {
        self.target()
    }

    /// How an attempt of `body` ends that the server answers with the error `code`, by its own table. `None` if its
    /// servers have no such error.
    fn answered_with(&self, code: &str, body: &Bytes) -> Option<Attempted> {
        let (_, _) = (code, body);
        None
    }

    /// The errors by which its servers say what every kind of server says.
    fn usual_errors(&self) -> UsualErrors {
        UsualErrors { overloaded: "", refuses: "" }
    }

    /// Gives up the connections that there are: what is on them is answered first, what comes next makes new ones.
    fn give_up_connections(&self) {}

    /// It takes the place of `before`, whose [view](Connector::view) is the same: what that one has learnt of values stays
    /// known. Called before it is asked anything else.
    fn succeed(&self, before: &dyn Connector) {
        let _ = before;
    }

    /// Closes its connections. Attempts in flight end as if the backend had reset them. A call that is let in after
    /// it has returned is sent over none of them, nor over a door's own connections of this connector.
    fn close(&self) -> Answer<'_, ()>;
}

/// A connector as the rest of the crate holds it.
pub type SharedConnector = Arc<dyn Connector>;
