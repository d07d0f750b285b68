//! How attempts of replay end, and what becomes of their calls.

use std::time::Duration;

use fusebox_state::{
    ErrorClass, Moment, OpId, Words,
    backoff::decorrelated_jitter,
    queue::Entry,
    store::{DeadReason, StoreError},
    write::{End, Next},
};

use super::{
    BLOCKED_PAUSE, PAUSE_MAX, REST, Replay, UNCLASSIFIED_MAX,
    job::{Ended, Job, NotSent, Taken},
    residues,
};
use crate::{
    connector::{AttemptError, Attempted, Residue, SharedConnector},
    queue::Applied,
};

/// Why a call is a dead letter that another was sent in the place of.
const OVERTAKEN: &str =
    "a later write to its lane was sent instead of it, was given up, and may have been applied";

/// What is to be taken out of the queue, in this order, and the tokens whose markers may go then. Dropped before that,
/// its calls go back to wait, and are sent again.
#[derive(Default)]
struct Gone {
    jobs: Vec<Job>,
    applied: Vec<(u64, Option<Applied>)>,
    tokens: Vec<OpId>,
}

impl Replay {
    /// Settles what was sent together.
    pub(super) async fn ended(&mut self, ended: Vec<Ended>) {
        let (mut applied, mut failed) = (0, false);
        (self.ended_at, self.draw) = (self.shared.circuit.clock.now(), fastrand::u64(..));
        if ended.iter().any(|ended| ended.job.is_group) {
            (applied, failed) = self.group_ended(ended);
        } else {
            let mut gone = Gone::default();
            for ended in ended {
                if self.one_ended(ended, &mut gone).await {
                    applied += 1;
                } else {
                    failed = true;
                }
            }
            self.take_out(gone);
        }
        let share = (self.shared.circuit.bulkhead.max() / 4).max(1) as usize;
        if failed {
            self.width.failed();
        } else {
            self.width.carried(applied, self.ended_at, share);
        }
    }

    /// Takes out what was applied together.
    fn take_out(&mut self, gone: Gone) {
        let Gone { mut jobs, applied, tokens } = gone;
        jobs.iter_mut().for_each(Job::settled);
        let connector = SharedConnector::clone(&self.shared.connector.load());
        self.shared.queue.applied_together(applied, move || {
            if !tokens.is_empty() {
                connector.forget_tokens(tokens);
            }
        });
        self.progress();
    }

    /// Settles one call; whether it was applied. One that is to be taken out is added to `gone`.
    async fn one_ended(&mut self, ended: Ended, gone: &mut Gone) -> bool {
        let Ended { mut job, result } = ended;
        let was_applied = match result {
            Ok(Attempted { result: Ok(reply), reply_lost, residue, .. }) => {
                let is_gone = residue.is_none();
                let again = job.entry.state.is_in_doubt() && job.entry.is_absolute();
                let applied = Applied { reply, lost: reply_lost || again };
                self.applied(&job, applied, residue, gone).await;
                if is_gone {
                    gone.jobs.push(job);
                    return true;
                }
                true
            }
            Ok(Attempted { result: Err(error), .. }) => {
                self.failed(&job, &error);
                false
            }
            Err(why) => {
                self.not_sent(&job, why);
                false
            }
        };
        // What was overtaken has been taken out with it, or put back with it.
        job.settled();
        was_applied
    }

    /// Settles calls that were sent as one: their ends are the same. If it was not sent, each of them has its own
    /// reason. Returns how many were applied, and whether the attempt failed.
    fn group_ended(&mut self, ended: Vec<Ended>) -> (u64, bool) {
        let mut jobs: Vec<Job> = Vec::with_capacity(ended.len());
        let mut first = None;
        let was_sent = ended.iter().any(|it| it.job.entry.details().group.is_some());
        let is_unread = ended.iter().any(|it| matches!(it.result, Err(NotSent::Store(_))));
        for Ended { mut job, result } in ended {
            match result {
                Ok(attempted) => {
                    first.get_or_insert(attempted);
                    jobs.push(job);
                }
                // It can only be sent again with the one that cannot be read: it backs off, too.
                Err(NotSent::Barred) if was_sent && is_unread => {
                    self.retry(&job, &"another call that was sent with it cannot be read".into());
                    job.settled();
                }
                Err(why) => {
                    self.not_sent(&job, why);
                    job.settled();
                }
            }
        }
        jobs.sort_by_key(|job| job.taken.seq);
        let Some((attempted, leader)) = first.zip(jobs.first()) else { return (0, true) };
        let (applied, failed) = match attempted.result {
            Ok(reply) => {
                let seqs: Vec<u64> = jobs.iter().map(|job| job.taken.seq).collect();
                let unix = self.shared.circuit.clock.unix();
                for job in &jobs {
                    let waited = unix.since(job.entry.header.accepted_at);
                    self.shared.circuit.metrics.call_replayed(waited);
                    self.shared.invalidate_lanes(&job.entry.header.lanes);
                }
                self.reopened(&leader.entry);
                self.shared.queue.group_applied(&seqs, &reply);
                let count = seqs.len() as u64;
                self.replayed += count;
                self.progress();
                (count, false)
            }
            Err(error) => {
                self.group_failed(&jobs, &error);
                (0, true)
            }
        };
        for job in &mut jobs {
            job.taken.settled = true;
        }
        (applied, failed)
    }

    /// A group was not applied. If it wrote nothing it is dissolved; if the backend had something against it, it is
    /// halved, so that the one that is to blame ends up alone.
    fn group_failed(&mut self, jobs: &[Job], error: &AttemptError) {
        let Some(leader) = jobs.first() else { return };
        let states: Vec<Next> =
            jobs.iter().map(|job| self.note_end(job.taken.seq, error)).collect();
        let in_doubt = self
            .shared
            .queue
            .index()
            .get(leader.taken.seq)
            .is_some_and(|entry| entry.state.is_in_doubt());
        if !in_doubt {
            let halved = error.reply.is_some();
            self.shared.queue.take_back_note(leader.taken.seq, halved);
            self.mind_pause(error);
            if matches!(error.class, ErrorClass::BlockedServer | ErrorClass::BlockedObject) {
                return jobs.iter().for_each(|job| self.goes_on(job, error, Next::Send));
            }
            let at = if halved { self.ended_at } else { self.backs_off(leader.taken.seq) };
            let mut index = self.shared.queue.index();
            for job in jobs {
                index.retry(job.taken.seq, at, error.words());
            }
            drop(index);
            for job in jobs {
                self.shared.queue.lanes_stopped(&job.entry.header.lanes);
            }
            return;
        }
        // One that is buried takes the others along, and so does one that finds no room.
        let gives_up = states.first() == Some(&Next::GiveUp)
            || matches!(error.class, ErrorClass::Rejected | ErrorClass::Conflict);
        let jobs = if gives_up { jobs.get(..1).unwrap_or_default() } else { jobs };
        for (job, next) in jobs.iter().zip(states) {
            self.goes_on(job, error, next);
        }
    }

    /// Its object was closed to us, or the server: it is not any more.
    fn reopened(&mut self, entry: &Entry) {
        self.blocked.opened(entry.object);
        self.tell_blocked();
    }

    async fn applied(
        &mut self,
        job: &Job,
        applied: Applied,
        residue: Option<Residue>,
        gone: &mut Gone,
    ) {
        let (seq, entry) = (job.taken.seq, &job.entry);
        self.replayed += 1;
        let circuit = &self.shared.circuit;
        circuit.metrics.call_replayed(circuit.clock.unix().since(entry.header.accepted_at));
        self.reopened(entry);
        let connector = SharedConnector::clone(&self.shared.connector.load());
        self.shared.invalidate_lanes(&entry.header.lanes);
        self.shared.flights.acknowledge(&entry.header.lanes);
        residues::change(&self.shared.queue, &connector, seq, &entry.header.lanes).await;
        // The marker of a caller's own name stays, so that a repetition is recognised; and one that an attempt
        // without an answer could still meet, which must be recognised, too.
        let answered = !entry.state.is_in_doubt();
        let token: Option<OpId> =
            (!entry.is_absolute() && !entry.own_name && answered).then_some(entry.header.op_id);
        // What it was sent in place of goes first, oldest first: found without it after a crash, that would come back
        // over it.
        let overtaken = job.overtaken.iter().map(|taken| (taken.seq, None));
        if let Some(residue) = residue {
            self.shared.queue.applied_together(overtaken.collect(), || ());
            self.shared.queue.replace(seq, residue, Some(applied), move || {
                if let Some(token) = token {
                    connector.forget_tokens(vec![token]);
                }
            });
            return;
        }
        gone.applied.extend(overtaken);
        gone.applied.push((seq, Some(applied)));
        gone.tokens.extend(token);
    }

    /// Nobody heard of the attempt, because there was none.
    fn not_sent(&mut self, job: &Job, why: NotSent) {
        match why {
            NotSent::Barred => {
                self.rest_until = Some(self.shared.circuit.clock.now().plus(REST));
                let mut index = self.shared.queue.index();
                job.seqs().for_each(|seq| index.put_back(seq));
            }
            NotSent::Ambiguous(why) => {
                if let Some(entry) = self.shared.queue.index().get_mut(job.taken.seq) {
                    entry.state.end(End::Unprovable);
                }
                self.bury(job, DeadReason::Ambiguous, &why.into());
            }
            NotSent::Store(error @ StoreError::Damaged { .. }) => {
                self.bury(job, DeadReason::Undecodable, &error.to_string().into());
            }
            NotSent::Store(error) => self.retry(job, &error.to_string().into()),
        }
    }

    /// Notes how an attempt ended; what may be done next. A note of sending is taken back if nothing was
    /// written.
    fn note_end(&self, seq: u64, error: &AttemptError) -> Next {
        let mut index = self.shared.queue.index();
        let Some(entry) = index.get_mut(seq) else { return Next::Done };
        entry.state.end(match (&error.doubt, error.class) {
            (None, _) => End::Nothing,
            (Some(_), ErrorClass::Ambiguous) => End::Unprovable,
            (Some(_), _) => End::Unknown,
        });
        let taken_back = entry.details().noted.is_some() && !entry.state.is_in_doubt();
        let (next, alone) = (entry.state.next(), entry.details().group.is_none());
        let may_land = error.doubt.is_some().then(|| entry.header.lanes.clone());
        drop(index);
        if let Some(lanes) = may_land {
            self.shared.bar_fills(&lanes);
        }
        if taken_back && alone {
            self.shared.queue.take_back_note(seq, false);
        }
        next
    }

    fn failed(&mut self, job: &Job, error: &AttemptError) {
        let next = self.note_end(job.taken.seq, error);
        self.goes_on(job, error, next);
    }

    fn mind_pause(&mut self, error: &AttemptError) {
        if let Some(pause) = error.retry_after {
            let now = self.shared.circuit.clock.now();
            self.rest_until = Some(now.plus(pause.min(PAUSE_MAX)));
        }
    }

    /// What becomes of a call that was not applied and of which `next` may be done.
    fn goes_on(&mut self, job: &Job, error: &AttemptError, next: Next) {
        let entry = &job.entry;
        let (now, words) = (self.shared.circuit.clock.now(), error.words());
        self.mind_pause(error);
        let waits = matches!(
            error.class,
            ErrorClass::NotExecuted | ErrorClass::Unknown | ErrorClass::BlockedObject
        );
        if next == Next::GiveUp && waits {
            let detail = words
                .within(|why| format!("it may have been applied, and cannot be repeated: {why}"));
            return self.bury(job, DeadReason::Ambiguous, &detail);
        }
        if error.unclassified {
            let count = self.count_unclassified(job.taken.seq);
            if count >= UNCLASSIFIED_MAX {
                let detail = words.within(|last| {
                    format!("{count} replies of an unknown kind, the last was {last}")
                });
                return self.bury(job, DeadReason::GaveUp, &detail);
            }
            return self.retry(job, &words);
        }
        match error.class {
            ErrorClass::Rejected | ErrorClass::Conflict => {
                self.bury(job, DeadReason::Rejected, &words);
            }
            ErrorClass::Ambiguous => {
                self.bury(job, DeadReason::Ambiguous, &words);
            }
            ErrorClass::NotExecuted | ErrorClass::Unknown => self.retry(job, &words),
            ErrorClass::BlockedServer => {
                let until = now.plus(BLOCKED_PAUSE);
                let alert =
                    words.within(|why| format!("replay is paused, an operator must act: {why}"));
                self.blocked.close_server(until, alert);
                self.tell_blocked();
                self.retry_at(job, until, &words);
            }
            ErrorClass::BlockedObject => {
                let until = now.plus(BLOCKED_PAUSE);
                let store = self.shared.queue.store();
                // It was read to be sent.
                let call = store.ok().and_then(|store| store.call(job.taken.seq).ok());
                let label = call.map(|call| call.label).unwrap_or_default();
                let alert = words.within(|why| {
                    format!("replay of {label} is paused, an operator must act: {why}")
                });
                self.blocked.close(entry.object, until, alert);
                self.tell_blocked();
                self.retry_at(job, until, &words);
            }
        }
    }

    fn count_unclassified(&self, seq: u64) -> u32 {
        let mut index = self.shared.queue.index();
        index.get_mut(seq).map_or(0, |entry| {
            let details = entry.details_mut();
            details.unclassified += 1;
            details.unclassified
        })
    }

    /// How long `seq`, which has just failed, or whose line has, is left alone, by how long it was the last time.
    fn backoff(&self, seq: u64) -> Duration {
        let index = self.shared.queue.index();
        let previous = index.get(seq).map_or(0, |entry| entry.details().backoff_ms);
        decorrelated_jitter(Duration::from_millis(previous), self.draw)
    }

    /// When that is over. The next time it may be longer.
    fn backs_off(&self, seq: u64) -> Moment {
        let wait = self.backoff(seq);
        if let Some(entry) = self.shared.queue.index().get_mut(seq) {
            entry.details_mut().backoff_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        }
        self.ended_at.plus(wait)
    }

    fn retry(&self, job: &Job, error: &Words) {
        self.retry_at(job, self.backs_off(job.head()), error);
    }

    /// The line waits with its first call, whichever of it was sent.
    fn retry_at(&self, job: &Job, at: Moment, error: &Words) {
        let mut index = self.shared.queue.index();
        for seq in job.seqs().filter(|seq| *seq != job.head()) {
            index.put_back(seq);
        }
        index.retry(job.head(), at, error);
        drop(index);
        self.shared.queue.lanes_stopped(&job.entry.header.lanes);
    }

    /// Makes the call a dead letter; those in whose place it was sent wait again. If it may have been applied, now or by
    /// an earlier run, they would come back over it: then they become dead letters, too, and do so before it.
    pub(super) fn bury(&self, job: &Job, reason: DeadReason, detail: &Words) {
        let queue = &self.shared.queue;
        let seq = job.taken.seq;
        let in_doubt = queue.index().get(seq).is_some_and(Entry::may_be_applied);
        let are_out_of_its_way = !in_doubt || {
            let why = Words::from(OVERTAKEN);
            let bury = |taken: &Taken| queue.bury(taken.seq, DeadReason::Ambiguous, &why);
            job.overtaken.iter().all(bury)
        };
        if are_out_of_its_way && queue.bury(seq, reason, detail) {
            let mut index = queue.index();
            job.overtaken.iter().for_each(|taken| index.put_back(taken.seq));
            return;
        }
        self.retry_at(job, self.ended_at.plus(self.backoff(job.head())), detail);
    }
}
