//! The queue that calls borrow: the index and the store, kept in step.
//!
//! ```text
//!  append:  index.admit + store.append (one lock)  --synced-->  committed: may be replayed, acknowledged
//!  replay:  index.take --noted, synced--> wire --applied--> store.remove --synced--> removed: the lane moves on
//! ```
//!
//! **The one rule that a maintainer might break:** what changes the index and what goes to the committer
//! for it happen in one step under the *order* lock, so that the order of commits is the order of
//! sequences. The index has a lock of its own, which is never held while a command is sent: a completion
//! takes it, and may run at once.
//!
//! After the store lost its footing (disk full, failed sync) it reports what it holds, and
//! `Queue::reconcile` puts the index in step again: what was being appended is there or not, and
//! what was being removed is removed again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use fusebox_state::{
    Lanes, SpanRef, Target, Words,
    bulkhead::Bulkhead,
    object_of,
    queue::{Entry, Noted, QueueIndex, Refusal},
    store::{CallHeader, CallStore, DeadMark, Done, EVIDENCE_MAX, NewCall, Note, StoreError},
    write::{Repeat, WriteState},
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use crate::{
    alert::Alert,
    clock::Clock,
    event::{EventBus, EventKind},
    ground::Ground,
    history::History,
    metrics::{BackendMetrics, Exemplar},
    refusal::AttemptError,
    settings::{BackendSettings, DeadLetterPolicy},
};

mod dead_letters;
mod folding;
mod freed;
mod notes;
mod opening;
mod removal;
mod target;
#[cfg(test)]
mod tests;
mod turns;
mod upload;
mod waiting;

pub(crate) use dead_letters::NotRequeued;
pub(crate) use folding::Overlaid;

/// The alert while [`QueueIndex::dead_letters_block`] holds.
const DEAD_FULL: &str = "the dead letters are full: lanes with rejected calls are blocked until some are \
                         requeued or discarded";

/// A write to be made durable.
pub struct NewWrite {
    /// What the store is to hold of it.
    pub header: CallHeader,
    /// The address of the connector that planned it.
    pub target: Target,
    /// Its lanes for people.
    pub label: Box<str>,
    /// What may be done next: live attempts may have been made.
    pub state: WriteState,
    /// Whether its name is the caller's own.
    pub own_name: bool,
    /// What a later proof must know of live attempts.
    pub evidence: Bytes,
    /// What is sent.
    pub body: Bytes,
    /// The span that queues it.
    pub span: SpanRef,
    /// Shed first.
    pub low_priority: bool,
    /// The place that was claimed for it; see [`Queue::claim`].
    pub claim: Option<u64>,
}

/// Evidence as it is kept. What is too large proves nothing later, which is safe.
fn within_limit(evidence: Bytes) -> Bytes {
    if evidence.len() <= EVIDENCE_MAX { evidence } else { Bytes::new() }
}

/// What became of a queued call that somebody waits for: its reply, or why it is a dead letter, as its caller may
/// know it.
pub type Fate = Result<Applied, Words>;

/// A queued call was applied.
pub struct Applied {
    /// The backend's reply, or what replaces it.
    pub reply: Bytes,
    /// It is not the reply that the first attempt would have had.
    pub lost: bool,
}

/// An append under way.
pub struct Appending {
    /// Its place.
    pub seq: u64,
    /// Resolves when it is synced, or is not going to be.
    pub synced: oneshot::Receiver<Result<(), StoreError>>,
    /// Resolves when it has been applied or buried.
    pub fate: Fated,
}

/// What becomes of a queued call. Most callers do not wait for it: once it is dropped, nobody is told.
pub struct Fated {
    queue: Arc<Queue>,
    seq: u64,
    told: oneshot::Receiver<Fate>,
}

impl Fated {
    /// Waits until it has been applied or buried. `None` if that will not be known.
    pub async fn told(&mut self) -> Option<Fate> {
        (&mut self.told).await.ok()
    }
}

impl Drop for Fated {
    fn drop(&mut self) {
        self.queue.fates.lock().remove(&self.seq);
    }
}

/// Why a write was not queued.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The index refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no store to write to.
    #[error("the store is not open: {0}")]
    NoStore(String),
    /// The store did not take a piece of it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is a dead letter, and there is no room for one more.
    #[error("the dead letters are full")]
    DeadFull,
    /// The backend got another address while it arrived.
    #[error("the address of the backend was changed while the call arrived")]
    Moved,
    /// It did not arrive whole.
    #[error("the call did not arrive completely: {0}")]
    BrokenOff(AttemptError),
}

/// A place that is held in a queue's lanes.
pub struct Claim {
    queue: Arc<Queue>,
    seq: u64,
}

impl Claim {
    /// The sequence of the place.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.queue.unclaim(self.seq);
    }
}

/// The queue of one backend.
pub struct Queue {
    name: String,
    ground: Ground,
    clock: Clock,
    /// Whether small calls share values in the store.
    packed: bool,
    bus: EventBus,
    metrics: Arc<BackendMetrics>,
    store: OnceLock<Arc<dyn CallStore>>,
    /// Why the store is not open yet.
    closed: Mutex<Option<String>>,
    /// Held from a change of the index until its command is sent.
    order: Mutex<()>,
    index: Mutex<QueueIndex>,
    /// Calls that wait.
    waiting: AtomicU64,
    /// What somebody may have to wait for: zero lets a call pass without the lock.
    standing: AtomicU64,
    dead: AtomicU64,
    dead_blocks: AtomicBool,
    fates: Mutex<HashMap<u64, oneshot::Sender<Fate>>>,
    /// Appends, requeues and revivals whose outcome only the store can tell, once it is open again.
    in_doubt: Mutex<BTreeSet<u64>>,
    /// Up to which sequence calls of other targets may go to the store's own.
    accepted: AtomicU64,
    /// Dead letters whose marks the store did not take.
    unmarked: Mutex<BTreeMap<u64, DeadMark>>,
    /// Dead letters whose marks are not synced yet.
    marking: Mutex<BTreeSet<u64>>,
    /// Requeues whose end is not known, by their new sequence: the dead letter's, and what it was.
    requeuing: Mutex<BTreeMap<u64, (u64, Entry)>>,
    /// The store's folder holds nothing, so no lane is occupied though the store is not open.
    holds_nothing: AtomicBool,
    /// Whether it was reported that the dead letters are full.
    dead_full: AtomicBool,
    alerts: Mutex<BTreeMap<Alert, Words>>,
    /// Who waits for lanes.
    freed: freed::Freed,
    /// Calls that wait for lanes, at most [`freed::WAITING_MAX`], of which each user has a share.
    waiters: Bulkhead,
    /// Something was stored, or is not going to be.
    stored: Notify,
    /// Who reads queued writes for readers, by lane.
    folding: turns::Folding,
    /// The breaker's transitions, which the store keeps.
    pub(crate) history: History,
    /// Something may be replayed.
    pub work: Notify,
    /// An operator asked for a replay: a pause for a blocked server is over.
    pub resume: AtomicBool,
    paused: Mutex<Option<&'static str>>,
}

impl Queue {
    /// A queue whose store is not open yet.
    pub(crate) fn new(
        settings: &BackendSettings,
        metrics: Arc<BackendMetrics>,
        ground: Ground,
        bus: EventBus,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: settings.name.clone(),
            clock: ground.clock,
            packed: settings.queue_packed,
            ground,
            bus,
            metrics,
            store: OnceLock::new(),
            closed: Mutex::new(Some("it is being opened".into())),
            order: Mutex::new(()),
            index: Mutex::new(QueueIndex::new(settings.queue, 0)),
            waiting: AtomicU64::new(0),
            standing: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            dead_blocks: AtomicBool::new(settings.dead_letter_policy == DeadLetterPolicy::Block),
            fates: Mutex::default(),
            in_doubt: Mutex::default(),
            accepted: AtomicU64::new(0),
            unmarked: Mutex::default(),
            marking: Mutex::default(),
            requeuing: Mutex::default(),
            holds_nothing: AtomicBool::new(false),
            dead_full: AtomicBool::new(false),
            alerts: Mutex::default(),
            freed: freed::Freed::new(),
            waiters: Bulkhead::new(freed::WAITING_MAX),
            stored: Notify::new(),
            folding: turns::Folding::default(),
            history: History::default(),
            work: Notify::new(),
            resume: AtomicBool::new(false),
            paused: Mutex::new(None),
        })
    }

    /// Makes a write durable. `is_for_us` says whether the backend still has the address that the write is for.
    ///
    /// # Errors
    /// [`AppendError`] says why it was not even tried; nothing changed.
    pub fn append(
        self: &Arc<Self>,
        write: NewWrite,
        is_for_us: impl Fn() -> bool,
    ) -> Result<Appending, AppendError> {
        let bytes = write.body.len() as u64;
        self.enter(write, bytes, is_for_us, |store, call, done| store.append(call, done))
    }

    /// Gives a write of `bytes` its place and has `send` hand it to the committer, in this order of all.
    ///
    /// Whether it `is_for_us` is asked under the order lock, under which the store [gets](Self::retarget_if_empty) the
    /// address: a write for another one is refused, or is in the queue before that is found empty.
    fn enter(
        self: &Arc<Self>,
        write: NewWrite,
        bytes: u64,
        is_for_us: impl Fn() -> bool,
        send: impl FnOnce(&dyn CallStore, NewCall, Done),
    ) -> Result<Appending, AppendError> {
        let store = self.store()?;
        let in_doubt = write.state.is_in_doubt() && write.state.repeat() != Repeat::Absolute;
        let note = in_doubt.then(|| Note {
            first_sent_at: write.header.accepted_at,
            evidence: within_limit(write.evidence.clone()),
            group: None,
        });
        let mut entry = Entry::new(
            write.header.clone(),
            object_of(&write.label),
            write.state,
            write.own_name,
            bytes,
        );
        if let Some(note) = &note {
            let (at, evidence) = (note.first_sent_at, note.evidence.clone());
            entry.details_mut().noted = Some(Noted { at, evidence });
        }
        if write.span.sampled {
            entry.details_mut().origin = Some(write.span);
        }
        let (synced_sender, synced) = oneshot::channel();
        let (fate_sender, told) = oneshot::channel();
        let started = self.clock.read();
        let followed = write.span.sampled.then_some(write.span.trace_id);
        let exemplar = Exemplar::of(followed, self.clock);
        let ordered = self.order.lock();
        if !is_for_us() {
            return Err(AppendError::Moved);
        }
        let seq = {
            let mut index = self.index.lock();
            let seq = index.admit(entry, write.low_priority, write.claim)?;
            self.count(&index);
            seq
        };
        self.fates.lock().insert(seq, fate_sender);
        let this = Arc::clone(self);
        let call = NewCall {
            seq,
            header: write.header,
            target: write.target,
            label: write.label,
            traceparent: Some(write.span.to_string()),
            note,
            body: write.body,
        };
        let done = Box::new(move |result: Result<(), StoreError>| {
            this.appended(seq, &result);
            if result.is_ok() {
                this.metrics.acknowledged(this.clock.read().since(started), exemplar);
            }
            // The caller may have left.
            drop(synced_sender.send(result));
        });
        send(store, call, done);
        drop(ordered);
        let fate = Fated { queue: Arc::clone(self), seq, told };
        Ok(Appending { seq, synced, fate })
    }

    /// Takes a place in `lanes` for a live write whose outcome is unknown; given up when dropped, unless
    /// the write was appended to it. Also says whether calls are before it in its lanes.
    pub fn claim(self: &Arc<Self>, lanes: &Lanes) -> (Claim, bool) {
        let mut index = self.index.lock();
        let (seq, behind_calls) = index.claim(lanes);
        self.count(&index);
        (Claim { queue: Arc::clone(self), seq }, behind_calls)
    }

    /// Whether calls are in `lanes` before a claimed place.
    pub fn stands_behind_calls(&self, claim: &Claim, lanes: &Lanes) -> bool {
        self.index.lock().stands_behind_calls(claim.seq(), lanes)
    }

    fn unclaim(&self, seq: u64) {
        let mut index = self.index.lock();
        let lanes = index.unclaim(seq);
        self.count(&index);
        if let Some(lanes) = lanes {
            self.freed.left(&lanes, &index);
        }
        drop(index);
        self.work.notify_one();
    }

    fn appended(&self, seq: u64, result: &Result<(), StoreError>) {
        let mut index = self.index.lock();
        match result {
            Ok(()) => {
                index.committed(seq);
                self.metrics.enqueued.inc();
            }
            // It may be on the disk: it keeps its place until the store tells what it holds.
            Err(error) if error.outcome_unknown() => {
                self.in_doubt.lock().insert(seq);
                return;
            }
            Err(_) => {
                if let Some(lanes) = index.removed(seq) {
                    self.freed.left(&lanes, &index);
                }
                self.fates.lock().remove(&seq);
            }
        }
        self.count(&index);
        drop(index);
        self.work.notify_one();
        self.stored.notify_waiters();
    }

    /// What the core runs on.
    pub(crate) fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The index, for a short step. If the queue itself has a method for it, call
    /// that: it also keeps the counters.
    pub fn index(&self) -> MutexGuard<'_, QueueIndex> {
        self.index.lock()
    }

    /// Whether a call to `lanes` must wait or queue: they are occupied, or not known yet.
    pub fn is_occupied(&self, lanes: &Lanes) -> bool {
        let known = self.store.get().is_some() || self.holds_nothing.load(Ordering::Acquire);
        if known && self.standing.load(Ordering::Acquire) == 0 {
            return false;
        }
        !known || self.index.lock().is_occupied(lanes)
    }

    /// Tells dead letters that their lanes are written.
    pub fn note_written(&self, lanes: &Lanes) {
        if self.dead.load(Ordering::Relaxed) > 0 {
            self.index.lock().note_written(lanes);
        }
    }

    /// Calls that wait; dead letters excluded.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Acquire)
    }

    /// The store.
    ///
    /// # Errors
    /// [`AppendError::NoStore`] while it is not open, and why.
    pub fn store(&self) -> Result<&dyn CallStore, AppendError> {
        self.store.get().map(|store| &**store).ok_or_else(|| {
            AppendError::NoStore(self.closed.lock().clone().unwrap_or_else(|| "closed".into()))
        })
    }

    /// Why the store did not open, if it was tried in vain and may hold calls: nobody knows which lanes are
    /// occupied.
    pub(crate) fn shut(&self) -> Option<String> {
        let shut = self.store.get().is_none() && self.alerts.lock().contains_key(&Alert::Closed);
        (shut && !self.holds_nothing.load(Ordering::Acquire))
            .then(|| self.closed.lock().clone().unwrap_or_default())
    }

    /// The store's folder holds nothing: until the store is opened no lane is occupied.
    pub(crate) fn holds_nothing(&self) {
        self.holds_nothing.store(true, Ordering::Release);
    }

    /// Why the store refuses writes, if it does.
    pub fn refuses(&self) -> Option<String> {
        match self.store() {
            Ok(store) => store.status().refusing,
            Err(error) => Some(error.to_string()),
        }
    }

    /// Raises, or with `None` lifts, an alert.
    pub fn alert(&self, alert: Alert, message: Option<Words>) {
        let mut alerts = self.alerts.lock();
        let changed = match &message {
            Some(message) => alerts.insert(alert, message.clone()).as_ref() != Some(message),
            None => alerts.remove(&alert).is_some(),
        };
        drop(alerts);
        if changed {
            let (backend, alert) = (self.name.as_str(), alert.as_str());
            let message = if let Some(message) = message {
                tracing::warn!(backend, alert, "{message}");
                message
            } else {
                tracing::info!(backend, alert, "the alert has ended");
                format!("alert ended: {alert}").into()
            };
            self.publish(EventKind::Alert { message });
        }
    }

    /// What was found damaged since the daemon's start, or that the store is gone, as what follows "the store".
    pub fn damage(&self) -> Option<String> {
        let alerts = self.alerts.lock();
        alerts
            .get(&Alert::Damage)
            .or_else(|| alerts.get(&Alert::Lost))
            .map(|alert| alert.said().trim_start_matches("the store ").to_owned())
    }

    /// The alerts in effect.
    pub fn alerts(&self) -> Vec<Words> {
        self.alerts.lock().values().cloned().collect()
    }

    /// The same with their subjects.
    pub(crate) fn alerts_by_subject(&self) -> Vec<(Alert, Words)> {
        self.alerts.lock().iter().map(|(alert, words)| (*alert, words.clone())).collect()
    }

    /// The subjects of the alerts in effect.
    pub(crate) fn alert_subjects(&self) -> Vec<Alert> {
        self.alerts.lock().keys().copied().collect()
    }

    /// Notes why replay does nothing; returns whether that is news.
    pub(crate) fn set_paused(&self, reason: Option<&'static str>) -> bool {
        let changed = std::mem::replace(&mut *self.paused.lock(), reason) != reason;
        if changed && reason.is_some() {
            self.freed.everybody();
        }
        changed
    }

    /// Why replay does nothing, if calls wait.
    pub fn paused(&self) -> Option<&'static str> {
        (self.waiting() > 0).then(|| *self.paused.lock()).flatten()
    }

    /// Whether calls wait and nothing keeps replay from them.
    pub(crate) fn is_replaying(&self) -> bool {
        self.waiting() > 0 && self.paused.lock().is_none()
    }

    /// Takes changed settings.
    pub fn configure(&self, settings: &BackendSettings) {
        let blocks = settings.dead_letter_policy == DeadLetterPolicy::Block;
        let blocked = self.dead_blocks.swap(blocks, Ordering::Relaxed);
        let mut index = self.index.lock();
        index.set_limits(settings.queue);
        if blocked && !blocks {
            // Those whose marks are being synced let go of their lanes once that is done.
            index.release_dead(&self.marking.lock());
        }
        self.count(&index);
        drop(index);
        if blocked && !blocks {
            self.lanes_moved();
        }
    }

    /// Something has left its lanes, or may: wakes whoever waits for that.
    fn lanes_moved(&self) {
        self.freed.everybody();
        self.stored.notify_waiters();
        self.work.notify_one();
    }

    /// How many calls it holds, and their bytes; how many dead letters, and theirs.
    pub fn held(&self) -> [u64; 4] {
        let index = self.index.lock();
        let (dead, dead_bytes) = index.dead();
        [index.len() as u64, index.bytes(), dead as u64, dead_bytes]
    }

    fn publish(&self, kind: EventKind) {
        self.bus.publish(self.clock.unix(), Some(&self.name), kind);
    }

    /// Keeps the counters and the alert of full dead letters in step; call it with the index's lock held.
    fn count(&self, index: &QueueIndex) {
        self.waiting.store(index.len() as u64, Ordering::Release);
        self.standing.store(index.standing() as u64, Ordering::Release);
        self.dead.store(index.dead().0 as u64, Ordering::Release);
        // By what is, not by what happened: whichever way there is room again, the alert is lifted.
        let full = index.dead_letters_block();
        if self.dead_full.swap(full, Ordering::AcqRel) != full {
            self.alert(Alert::DeadFull, full.then(|| DEAD_FULL.into()));
        }
    }
}
