//! Replay: brings what waits in a queue to its backend, lane by lane in order.
//!
//! Level-triggered: the loop looks whether something may be sent and whether it may be sent *now*, does
//! what it can, and sleeps until something changed: an append, a removal, a transition, the end of a
//! backoff, or half a second. Nothing is remembered that could be missed.
//!
//! Attempts take the same permits as live calls and at most a quarter of the bulkhead, and begin with
//! one at a time: they become more while that pays ([`width`]), and a failure takes them back to one.
//!
//! An attempt carries as many calls of different lanes as the connector takes together. The calls of an
//! object that is closed to us wait by their label, also where they have no lane in common.
//!
//! Calls that fail together back off together, so that they can share an attempt again. A breaker that
//! closes ends every backoff: what an outage has put off need not wait for longer than the outage.
//!
//! What becomes of an attempt, and what a crash at that point leaves behind:
//!
//! | outcome | what happens | after a crash before it is synced |
//! |---|---|---|
//! | applied | removed; a token's marker goes once that is synced | sent again: absolute, or recognised |
//! | not executed, unknown | back to wait, with backoff | waits |
//! | rejected, ambiguous, gave up | dead letter | sent again, rejected again |
//! | server blocked | the backend's replay pauses, with an alert | waits |
//! | object blocked | the lane waits, with an alert | waits |

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, Moment, OpId,
    backoff::decorrelated_jitter,
    breaker::State,
    queue::Entry,
    store::{DeadReason, StoreError},
};
use tokio::task::JoinSet;

use crate::{
    connector::{AttemptError, Attempted, SharedConnector},
    event::{EventBus, EventKind},
    handle::Lent,
    queue::Queue,
    system::SystemFlags,
};

mod attempt;
mod width;

use attempt::attempt;
use width::Width;

/// How long the loop sleeps at most.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Replies of no known class after which a call is given up on.
const UNCLASSIFIED_MAX: u32 = 20;
/// How long a marker lives: a call that was first sent longer ago may have been applied unrecognised.
const MARKER_LIFE: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How long a blocked backend or lane is left alone before it is tried again.
const BLOCKED_PAUSE: Duration = Duration::from_secs(15);
/// How long replay waits for a permit or place that it did not get.
const REST: Duration = Duration::from_millis(20);
/// Bytes of the calls that go on the wire together.
const BATCH_BYTES: u64 = 8 << 20;
/// The longest that a backend's wish to be left alone is obeyed.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A drain that begins this soon after the last one ended is not told of until it has lasted as long: while
/// the system is in EMERGENCY every write is queued and replayed at once, dozens a second.
const QUIET: Duration = Duration::from_secs(5);
/// Progress is told no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Replays one backend's queue until the daemon drains.
pub(crate) async fn run(lent: Arc<Lent>, bus: EventBus, flags: SystemFlags) {
    let mut replay = Replay {
        lent,
        bus,
        width: Width::default(),
        was_closed: true,
        ended_at: Moment::default(),
        draw: 0,
        rest_until: None,
        blocked_until: None,
        closed: HashMap::new(),
        since: None,
        told: false,
        drained_at: None,
        told_at: Moment::default(),
        replayed: 0,
    };
    let mut attempts = JoinSet::new();
    while !flags.is_draining() {
        replay.send(&mut attempts).await;
        replay.sleep(&mut attempts).await;
    }
    // What is on the wire keeps its place there; its calls stay in the queue.
}

struct Replay {
    lent: Arc<Lent>,
    bus: EventBus,
    width: Width,
    /// Whether the breaker was closed when last looked at.
    was_closed: bool,
    /// When the calls ended that are being settled, and the chance in their backoffs.
    ended_at: Moment,
    draw: u64,
    /// There was no permit or place: nothing is tried until then.
    rest_until: Option<Moment>,
    /// The server is closed to us until then.
    blocked_until: Option<Moment>,
    /// Objects, by the label of their calls, that are closed to us, and until when.
    closed: HashMap<Box<str>, Moment>,
    /// When the present drain began.
    since: Option<Moment>,
    /// Whether anybody was told of it.
    told: bool,
    /// When the last one ended, nothing left.
    drained_at: Option<Moment>,
    told_at: Moment,
    replayed: u64,
}

/// A call that was taken to be sent. It goes back to wait where nobody hears how its attempt ended:
/// the attempt or its task panicked, or recovery was stopped.
struct Taken {
    queue: Arc<Queue>,
    seq: u64,
    settled: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.settled {
            self.queue.index().put_back(self.seq);
            self.queue.work.notify_one();
        }
    }
}

/// A queued call that was sent, alone or with others, and how that ended.
struct Ended {
    taken: Taken,
    entry: Entry,
    result: Result<Attempted, NotSent>,
}

/// Why a call did not go on the wire.
enum NotSent {
    /// No permit or place: it is as if it had not been taken.
    Barred,
    /// The store could not read it or note that it is sent.
    Store(StoreError),
    /// It was first sent so long ago that its marker may be gone.
    Ambiguous,
}

impl Replay {
    /// Sends what may be sent now.
    async fn send(&mut self, attempts: &mut JoinSet<Vec<Ended>>) {
        self.lent.take_target_where_empty();
        loop {
            let now = self.lent.circuit.clock.now();
            self.end_backoffs_of_an_outage();
            let barred = self.barred(now);
            self.tell_pause(barred);
            let rests = self.rest_until.is_some_and(|until| until > now);
            if barred.is_some() || rests || attempts.len() >= self.width.get() {
                return;
            }
            let connector = SharedConnector::clone(&self.lent.connector.load());
            let most = connector.batch_max();
            if most == 0 && self.lent.queue.index().has_ready() {
                self.rest_until = Some(now.plus(REST));
                return;
            }
            let batch = self.take(now, most);
            if batch.is_empty() {
                return;
            }
            self.begin(now);
            self.width.begun(now);
            let lent = Arc::clone(&self.lent);
            attempts.spawn(async move { attempt(&lent, &connector, batch).await });
            // Give attempts that end at once their turn.
            tokio::task::yield_now().await;
        }
    }

    /// A breaker that has closed says that the backend is well: no call waits for its own backoff then,
    /// which would scatter those of an outage over a minute and over as many attempts.
    fn end_backoffs_of_an_outage(&mut self) {
        let closed = self.lent.circuit.breaker.state().0 == State::Closed;
        if closed && !self.was_closed {
            self.lent.queue.index().retry_all();
        }
        self.was_closed = closed;
    }

    /// Takes at most `most` calls, of different lanes, that may go on the wire together.
    fn take(&mut self, now: Moment, most: usize) -> Vec<(Taken, Entry)> {
        let mut index = self.lent.queue.index();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < most
            && let Some(seq) = index.take(now)
        {
            let Some(entry) = index.get(seq).cloned() else { continue };
            if let Some(until) = self.closed.get(&entry.label).filter(|until| **until > now) {
                let error =
                    entry.last_error.clone().unwrap_or_else(|| "its object is closed".into());
                index.put_back(seq);
                index.retry(seq, *until, &error);
                continue;
            }
            bytes += entry.bytes;
            if bytes > BATCH_BYTES && !batch.is_empty() {
                index.put_back(seq);
                break;
            }
            let taken = Taken { queue: Arc::clone(&self.lent.queue), seq, settled: false };
            batch.push((taken, entry));
        }
        batch
    }

    /// Waits for an attempt to end or for anything else to change.
    async fn sleep(&mut self, attempts: &mut JoinSet<Vec<Ended>>) {
        if attempts.is_empty() {
            self.width.idle();
        }
        let clock = self.lent.circuit.clock;
        let due = self.lent.queue.index().next_due();
        let until = clock.now().plus(LOOK_EVERY);
        let rested = self.rest_until.filter(|rested| *rested > clock.now());
        let wake = due.into_iter().chain(rested).fold(until, Moment::min);
        tokio::select! {
            ended = attempts.join_next(), if !attempts.is_empty() => {
                if let Some(Ok(ended)) = ended {
                    self.ended(ended);
                }
                while let Some(Ok(ended)) = attempts.try_join_next() {
                    self.ended(ended);
                }
            }
            () = self.lent.queue.work.notified() => {}
            () = self.lent.circuit.changed.notified() => {}
            () = tokio::time::sleep_until(clock.instant(wake)) => {}
        }
        self.drained();
    }

    /// Why nothing may be sent now.
    fn barred(&mut self, now: Moment) -> Option<&'static str> {
        if self.lent.queue.waiting() == 0 {
            self.blocked_until = None;
            self.closed.clear();
            self.lent.queue.alert("blocked", None);
            return None;
        }
        if let Some(reason) = self.lent.circuit.replay_barred() {
            return Some(reason);
        }
        if self.lent.queue.resume.swap(false, std::sync::atomic::Ordering::AcqRel) {
            self.blocked_until = None;
            self.closed.clear();
        }
        let blocked = self.blocked_until.is_some_and(|until| until > now);
        blocked.then_some("the server is closed to us, see the alerts")
    }

    fn begin(&mut self, now: Moment) {
        if self.since.is_some() {
            return;
        }
        self.since = Some(now);
        self.replayed = 0;
        self.told = self.drained_at.is_none_or(|ended| now.since(ended) >= QUIET);
        if self.told {
            self.tell("started", None);
        }
    }

    fn drained(&mut self) {
        if self.since.is_some() && self.lent.queue.waiting() == 0 {
            if self.told {
                self.tell("drained", None);
            }
            self.since = None;
            self.drained_at = Some(self.lent.circuit.clock.now());
        }
    }

    /// Tells how far the present drain is, where that is news.
    fn progress(&mut self) {
        let now = self.lent.circuit.clock.now();
        if self.told {
            if now.since(self.told_at) >= PROGRESS_EVERY {
                self.tell("progress", None);
            }
        } else if self.since.is_some_and(|since| now.since(since) >= QUIET) {
            self.told = true;
            self.tell("started", None);
        }
    }

    fn tell_pause(&mut self, barred: Option<&'static str>) {
        let changed = self.lent.queue.set_paused(barred);
        let (true, Some(reason)) = (changed, barred) else { return };
        // What follows a pause is always told.
        self.drained_at = None;
        if self.since.take().is_some() {
            self.tell("paused", Some(reason.to_owned()));
        }
    }

    fn tell(&mut self, phase: &'static str, reason: Option<String>) {
        let circuit = &self.lent.circuit;
        self.told_at = circuit.clock.now();
        let waiting = self.lent.queue.waiting();
        if phase != "progress" {
            let (backend, replayed) = (circuit.name.as_str(), self.replayed);
            let reason = reason.as_deref();
            tracing::info!(backend, phase, replayed, waiting, reason, "replay");
        }
        let kind = EventKind::Replay { phase, replayed: self.replayed, waiting, reason };
        self.bus.publish(circuit.clock.unix(), Some(&circuit.name), kind);
    }

    /// Settles what was sent together.
    fn ended(&mut self, ended: Vec<Ended>) {
        let (mut applied, mut failed) = (0, false);
        (self.ended_at, self.draw) = (self.lent.circuit.clock.now(), fastrand::u64(..));
        for Ended { mut taken, entry, result } in ended {
            let seq = taken.seq;
            match result {
                Ok(Attempted { result: Ok(reply), .. }) => {
                    applied += 1;
                    self.applied(seq, &entry, reply);
                }
                Ok(Attempted { result: Err(error), .. }) => {
                    failed = true;
                    self.failed(seq, &entry, &error);
                }
                Err(NotSent::Barred) => {
                    failed = true;
                    self.rest_until = Some(self.lent.circuit.clock.now().plus(REST));
                    self.lent.queue.index().put_back(seq);
                }
                Err(NotSent::Ambiguous) => self.bury(
                    seq,
                    &entry,
                    DeadReason::Ambiguous,
                    "it was first sent more than 7 days ago: whether it was applied cannot be told",
                ),
                Err(NotSent::Store(error @ StoreError::Damaged { .. })) => {
                    self.bury(seq, &entry, DeadReason::Undecodable, &error.to_string());
                }
                Err(NotSent::Store(error)) => self.retry(seq, &entry, &error.to_string()),
            }
            taken.settled = true;
        }
        let share = (self.lent.circuit.bulkhead.max() / 4).max(1) as usize;
        if failed {
            self.width.failed();
        } else {
            self.width.carried(applied, self.ended_at, share);
        }
    }

    fn applied(&mut self, seq: u64, entry: &Entry, reply: Bytes) {
        self.replayed += 1;
        let circuit = &self.lent.circuit;
        circuit.metrics.call_replayed(circuit.clock.unix().since(entry.accepted_at));
        self.blocked_until = None;
        if self.closed.is_empty() || self.closed.remove(&entry.label).is_some() {
            self.lent.queue.alert("blocked", None);
        }
        // The marker of a caller's own name stays, so that a repetition is recognised.
        let token: Option<OpId> = (!entry.absolute && !entry.own_name).then_some(entry.op_id);
        let connector = SharedConnector::clone(&self.lent.connector.load());
        self.lent.invalidate_lanes(&entry.lanes);
        self.lent.flights.begin(&entry.lanes).acknowledge();
        self.lent.queue.applied(seq, reply, move || {
            if let Some(token) = token {
                connector.forget_tokens(vec![token]);
            }
        });
        self.progress();
    }

    fn failed(&mut self, seq: u64, entry: &Entry, error: &AttemptError) {
        let now = self.lent.circuit.clock.now();
        if let Some(pause) = error.retry_after {
            self.rest_until = Some(now.plus(pause.min(PAUSE_MAX)));
        }
        if error.unclassified {
            let count = self.count_unclassified(seq);
            if count >= UNCLASSIFIED_MAX {
                let detail = format!("{count} replies of no known class, the last was {error}");
                return self.bury(seq, entry, DeadReason::GaveUp, &detail);
            }
            return self.retry(seq, entry, &error.to_string());
        }
        match error.class {
            ErrorClass::Rejected | ErrorClass::Conflict => {
                self.bury(seq, entry, DeadReason::Rejected, &error.to_string());
            }
            ErrorClass::Ambiguous => {
                self.bury(seq, entry, DeadReason::Ambiguous, &error.to_string());
            }
            ErrorClass::NotExecuted => self.retry(seq, entry, &error.to_string()),
            ErrorClass::Unknown => {
                if let Some(entry) = self.lent.queue.index().get_mut(seq) {
                    entry.in_doubt = true;
                }
                self.retry(seq, entry, &error.to_string());
            }
            ErrorClass::BlockedServer => {
                self.blocked_until = Some(now.plus(BLOCKED_PAUSE));
                let alert = format!("replay is paused, an operator must act: {error}");
                self.lent.queue.alert("blocked", Some(alert));
                self.lent.queue.index().retry(seq, now.plus(BLOCKED_PAUSE), &error.to_string());
            }
            ErrorClass::BlockedObject => {
                let until = now.plus(BLOCKED_PAUSE);
                self.closed.insert(entry.label.clone(), until);
                let alert =
                    format!("replay of {} is paused, an operator must act: {error}", entry.label);
                self.lent.queue.alert("blocked", Some(alert));
                self.lent.queue.index().retry(seq, until, &error.to_string());
            }
        }
    }

    fn count_unclassified(&self, seq: u64) -> u32 {
        let mut index = self.lent.queue.index();
        index.get_mut(seq).map_or(0, |entry| {
            entry.unclassified += 1;
            entry.unclassified
        })
    }

    fn retry(&self, seq: u64, entry: &Entry, error: &str) {
        let previous = Duration::from_millis(entry.backoff_ms);
        let wait = decorrelated_jitter(previous, self.draw);
        let mut index = self.lent.queue.index();
        if let Some(entry) = index.get_mut(seq) {
            entry.backoff_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        }
        index.retry(seq, self.ended_at.plus(wait), error);
    }

    fn bury(&self, seq: u64, entry: &Entry, reason: DeadReason, detail: &str) {
        if !self.lent.queue.bury(seq, reason, detail) {
            let alert = "the dead letters are full: lanes with rejected calls are blocked until some \
                         are requeued or discarded";
            self.lent.queue.alert("dead_full", Some(alert.to_owned()));
            self.retry(seq, entry, detail);
        }
    }
}
