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
//! object that is closed to us wait by their label, even if they have no lane in common.
//!
//! Calls that fail together back off together, so that they can share an attempt again. A breaker that
//! closes ends every backoff: what an outage has put off need not wait for longer than the outage.
//!
//! What an attempt carries: a call alone, calls of different lanes that a connector takes together, calls that are
//! sent as one (a *group*), or the last write of a lane in the place of all before it (`state/src/queue/turn.rs`).
//!
//! **Before the wire**, for what is not absolute: the connector makes ready (connected, what a later proof must know),
//! then the sending is noted and that is synced. So a call with a note may have been sent, and one without
//! never was. The note is taken back if it is proven that no attempt wrote anything.
//!
//! What becomes of an attempt, and what a crash at that point leaves behind. Whether the call may be sent again at
//! all is said by its [`WriteState`](fusebox_state::write::WriteState), whatever the outcome:
//!
//! | outcome | what happens | after a crash before it is synced |
//! |---|---|---|
//! | applied | removed; a token's marker goes once that is synced, if every attempt was answered | sent again: absolute, or recognised |
//! | applied, and something is left to do | replaced by its residue | sent again: absolute |
//! | nothing was written | back to wait, with backoff; the note is taken back; a group is dissolved | waits, or is in doubt |
//! | unknown | back to wait, with backoff, in doubt | waits, in doubt |
//! | unknown, and it may not be sent again; ambiguous | dead letter | as it was |
//! | rejected, gave up | dead letter, with its doubt | sent again, rejected again |
//! | server blocked | the backend's replay pauses, with an alert | waits |
//! | object blocked | the lane waits, with an alert | waits |
//!
//! A dead letter that finds no room keeps its verdict: its lane waits, and it is not sent again.

use std::{sync::Arc, time::Duration};

use fusebox_state::{
    Moment,
    breaker::State,
    queue::{Entry, Turn},
    store::MEMBERS_MAX,
};
use tokio::task::JoinSet;

use crate::{
    alert::Alert,
    backend_shared::BackendShared,
    connector::{Connector, SharedConnector},
    event::{EventBus, EventKind, ReplayPhase},
    system::SystemFlags,
};

mod attempt;
mod blocked;
mod ending;
mod job;
mod residues;
mod width;

use attempt::attempt;
use blocked::Blocked;
use job::{Ended, Job, Taken};
use width::Width;

/// How long the loop sleeps at most.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Replies of no known class after which a call is given up on.
const UNCLASSIFIED_MAX: u32 = 20;
/// How long a blocked backend or lane is left alone before it is tried again.
const BLOCKED_PAUSE: Duration = Duration::from_secs(15);
/// How long replay waits for a permit or place that it did not get.
const REST: Duration = Duration::from_millis(20);
/// Bytes of the calls that go on the wire together.
const BATCH_BYTES: u64 = 8 << 20;
/// The longest that a backend's wish to be left alone is obeyed.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A drain that begins this soon after the last one ended is not published until it has lasted as long: while
/// the system is in EMERGENCY every write is queued and replayed at once, dozens a second.
const QUIET: Duration = Duration::from_secs(5);
/// Progress is published no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Replays one backend's queue until the daemon drains.
pub(crate) async fn run(shared: Arc<BackendShared>, bus: EventBus, flags: SystemFlags) {
    let mut replay = Replay {
        shared,
        bus,
        width: Width::default(),
        was_closed: true,
        ended_at: Moment::default(),
        draw: 0,
        rest_until: None,
        landed_at: None,
        blocked: Blocked::default(),
        objects_at: Moment::default(),
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
    // Nothing new is sent. What is on the wire is heard for as long as the daemon waits for it: a group whose answer
    // nobody hears may be in doubt for ever. What has no answer by then stays in the queue.
    let _under_way = replay.shared.circuit.call_begins();
    while !attempts.is_empty() && !flags.is_cut() {
        tokio::select! {
            biased;
            ended = attempts.join_next() => {
                if let Some(Ok(ended)) = ended {
                    replay.ended(ended).await;
                }
            }
            () = flags.cut_off() => {}
        }
    }
}

/// When to look again although nothing was heard. What is over already wakes nobody: it was seen, and what is held up
/// all the same (the breaker is OPEN, every place is taken) is held up by something whose end is heard.
fn wakes_at(now: Moment, ends: [Option<Moment>; 3]) -> Moment {
    let ahead = ends.into_iter().flatten().filter(|end| *end > now);
    ahead.fold(now.plus(LOOK_EVERY), Moment::min)
}

struct Replay {
    shared: Arc<BackendShared>,
    bus: EventBus,
    width: Width,
    /// Whether the breaker was closed when last looked at.
    was_closed: bool,
    /// When the calls ended that are being settled, and the chance in their backoffs.
    ended_at: Moment,
    draw: u64,
    /// There was no permit or place: nothing is tried until then.
    rest_until: Option<Moment>,
    /// Calls stand behind what callers left on the wire: when to look again whether that has ended.
    landed_at: Option<Moment>,
    /// What is closed to us.
    blocked: Blocked,
    /// When it was looked last for which objects calls wait.
    objects_at: Moment,
    /// When the present drain began.
    since: Option<Moment>,
    /// Whether it was published.
    told: bool,
    /// When the last one ended, nothing left.
    drained_at: Option<Moment>,
    told_at: Moment,
    replayed: u64,
}

impl Replay {
    /// Sends what may be sent now.
    async fn send(&mut self, attempts: &mut JoinSet<Vec<Ended>>) {
        self.shared.take_target_where_empty();
        loop {
            let now = self.shared.circuit.clock.now();
            self.end_backoffs_of_an_outage();
            let barred = self.barred(now);
            self.tell_pause(barred);
            let rests = self.rest_until.is_some_and(|until| until > now);
            if barred.is_some() || rests || attempts.len() >= self.width.get() {
                return;
            }
            let connector = SharedConnector::clone(&self.shared.connector.load());
            let most = connector.batch_max();
            if most == 0 && self.shared.queue.index().has_ready() {
                self.rest_until = Some(now.plus(REST));
                return;
            }
            let (jobs, sentenced) = self.take(now, most, &*connector);
            if jobs.is_empty() && sentenced.is_empty() {
                return;
            }
            for (taken, entry) in sentenced {
                self.carry_out(taken, &entry);
            }
            if jobs.is_empty() {
                continue;
            }
            self.begin(now);
            self.width.begun(now);
            let shared = Arc::clone(&self.shared);
            attempts.spawn(async move { attempt(&shared, &connector, jobs).await });
            // Give attempts that end at once their turn.
            tokio::task::yield_now().await;
        }
    }

    /// A breaker that has closed says that the backend is well: no call waits for its own backoff then,
    /// which would scatter those of an outage over a minute and over as many attempts.
    fn end_backoffs_of_an_outage(&mut self) {
        let closed = self.shared.circuit.breaker.state().0 == State::Closed;
        if closed && !self.was_closed {
            self.shared.queue.index().retry_all();
        }
        self.was_closed = closed;
    }

    /// Takes calls that may go on the wire together: at most `most` of different lanes, or one group. Also returns
    /// those that have a verdict already.
    fn take(
        &mut self,
        now: Moment,
        most: usize,
        connector: &dyn Connector,
    ) -> (Vec<Job>, Vec<(Taken, Entry)>) {
        if self.shared.flights.bars_all() {
            self.landed_at = Some(now.plus(REST));
            return (Vec::new(), Vec::new());
        }
        let (calls, group_bytes) = connector.group_max();
        let calls = calls.min(MEMBERS_MAX);
        let queue = Arc::clone(&self.shared.queue);
        let mut index = queue.index();
        let (mut jobs, mut sentenced, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut behind = Vec::new();
        let taken = |seq| Taken { queue: Arc::clone(&queue), seq, settled: false };
        while jobs.len() < most
            && let Some(first) = index.take(now)
        {
            let Some(entry) = index.get(first).cloned() else { continue };
            if entry.details().verdict.is_some() {
                sentenced.push((taken(first), entry));
                continue;
            }
            if let Some(until) = self.blocked.rests_until(entry.object, now) {
                let error = entry
                    .details()
                    .last_error
                    .clone()
                    .unwrap_or("the backend refuses all calls for this object".into());
                index.put_back(first);
                index.retry(first, until, &error);
                continue;
            }
            if self.shared.flights.is_barred(&entry.header.lanes) {
                behind.push(first);
                continue;
            }
            let Turn { seqs, overtaken, .. } = index.turn(first, calls, group_bytes);
            let size: u64 = seqs.iter().filter_map(|seq| Some(index.get(*seq)?.size())).sum();
            bytes += size;
            let is_group = seqs.len() > 1;
            if !jobs.is_empty() && (bytes > BATCH_BYTES || is_group) {
                seqs.iter().chain(&overtaken).for_each(|seq| index.put_back(*seq));
                break;
            }
            for seq in seqs {
                let Some(entry) = index.get(seq).cloned() else { continue };
                let overtaken = overtaken.iter().map(|seq| taken(*seq)).collect();
                let job = Job { taken: taken(seq), entry, overtaken, is_group };
                jobs.push(job);
            }
            if is_group {
                break;
            }
        }
        self.landed_at = (!behind.is_empty()).then(|| now.plus(REST));
        for seq in behind {
            index.put_back(seq);
        }
        drop(index);
        (jobs, sentenced)
    }

    /// A call that has a verdict becomes a dead letter if there is room now.
    fn carry_out(&mut self, mut taken: Taken, entry: &Entry) {
        taken.settled = true;
        (self.ended_at, self.draw) = (self.shared.circuit.clock.now(), fastrand::u64(..));
        self.shared.queue.index().put_back(taken.seq);
        if let Some((reason, detail)) = &entry.details().verdict {
            let (reason, detail) = (*reason, detail.clone());
            let entry = entry.clone();
            self.bury(
                &Job { taken, entry, overtaken: Vec::new(), is_group: false },
                reason,
                &detail,
            );
        }
    }

    /// Waits for an attempt to end or for anything else to change.
    async fn sleep(&mut self, attempts: &mut JoinSet<Vec<Ended>>) {
        if attempts.is_empty() {
            self.width.idle();
        }
        let clock = self.shared.circuit.clock;
        let due = self.shared.queue.index().next_due();
        let wake = wakes_at(clock.now(), [due, self.rest_until, self.landed_at]);
        tokio::select! {
            biased;
            ended = attempts.join_next(), if !attempts.is_empty() => {
                if let Some(Ok(ended)) = ended {
                    self.ended(ended).await;
                }
                while let Some(Ok(ended)) = attempts.try_join_next() {
                    self.ended(ended).await;
                }
            }
            () = self.shared.queue.work.notified() => {}
            () = self.shared.circuit.changed.notified() => {}
            () = tokio::time::sleep_until(clock.instant(wake)) => {}
        }
        self.drained();
    }

    /// Why nothing may be sent now.
    fn barred(&mut self, now: Moment) -> Option<&'static str> {
        if self.shared.queue.waiting() == 0 {
            self.blocked = Blocked::default();
            self.tell_blocked();
            return None;
        }
        self.forget_objects(now);
        if let Some(reason) = self.shared.circuit.replay_barred() {
            return Some(reason);
        }
        if self.shared.queue.resume.swap(false, std::sync::atomic::Ordering::AcqRel) {
            self.blocked.try_again(now);
        }
        let rests = self.blocked.server_rests(now);
        rests.then_some("the server refuses all calls, see the alerts")
    }

    /// Forgets, once in a while, closed objects whose calls left the queue without being applied.
    fn forget_objects(&mut self, now: Moment) {
        if !self.blocked.has_objects() || now.since(self.objects_at) < BLOCKED_PAUSE {
            return;
        }
        self.objects_at = now;
        let mut gone = self.blocked.objects();
        let index = self.shared.queue.index();
        // What is closed is near the front, so that little of a long queue is looked at.
        for (_, entry) in index.page(false, 0) {
            if gone.remove(&entry.object) && gone.is_empty() {
                break;
            }
        }
        drop(index);
        self.blocked.forget(&gone);
        self.tell_blocked();
    }

    /// The alert says what is closed now.
    fn tell_blocked(&self) {
        self.shared.queue.alert(Alert::Blocked, self.blocked.alert());
    }

    fn begin(&mut self, now: Moment) {
        if self.since.is_some() {
            return;
        }
        self.since = Some(now);
        self.replayed = 0;
        self.told = self.drained_at.is_none_or(|ended| now.since(ended) >= QUIET);
        if self.told {
            self.publish(ReplayPhase::Started, None);
        }
    }

    fn drained(&mut self) {
        if self.since.is_some() && self.shared.queue.waiting() == 0 {
            if self.told {
                self.publish(ReplayPhase::Drained, None);
            }
            self.since = None;
            self.drained_at = Some(self.shared.circuit.clock.now());
        }
    }

    /// Publishes how far the present drain is, if that is news.
    fn progress(&mut self) {
        let now = self.shared.circuit.clock.now();
        if self.told {
            if now.since(self.told_at) >= PROGRESS_EVERY {
                self.publish(ReplayPhase::Progress, None);
            }
        } else if self.since.is_some_and(|since| now.since(since) >= QUIET) {
            self.told = true;
            self.publish(ReplayPhase::Started, None);
        }
    }

    fn tell_pause(&mut self, barred: Option<&'static str>) {
        let changed = self.shared.queue.set_paused(barred);
        let (true, Some(reason)) = (changed, barred) else { return };
        // What follows a pause is always published.
        self.drained_at = None;
        if self.since.take().is_some() {
            self.publish(ReplayPhase::Paused, Some(reason.to_owned()));
        }
    }

    fn publish(&mut self, phase: ReplayPhase, reason: Option<String>) {
        let circuit = &self.shared.circuit;
        self.told_at = circuit.clock.now();
        let waiting = self.shared.queue.waiting();
        if phase != ReplayPhase::Progress {
            let (backend, replayed) = (circuit.name.as_str(), self.replayed);
            let reason = reason.as_deref();
            tracing::info!(backend, phase = phase.as_str(), replayed, waiting, reason, "replay");
        }
        let kind = EventKind::Replay { phase, replayed: self.replayed, waiting, reason };
        self.bus.publish(circuit.clock.unix(), Some(&circuit.name), kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_wakes_nobody() {
        let at = Moment::from_millis;
        let looks = at(1_000).plus(LOOK_EVERY);
        assert_eq!(wakes_at(at(1_000), [None, None, None]), looks);
        assert_eq!(wakes_at(at(1_000), [Some(at(1_200)), Some(at(1_100)), None]), at(1_100));
        // A call whose backoff has ended while the breaker is OPEN.
        assert_eq!(wakes_at(at(1_000), [Some(at(900)), None, None]), looks);
        assert_eq!(wakes_at(at(1_000), [Some(at(1_000)), Some(at(1_300)), None]), at(1_300));
        assert_eq!(wakes_at(at(1_000), [Some(at(9_000)), None, None]), looks);
    }
}
