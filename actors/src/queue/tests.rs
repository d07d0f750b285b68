//! The queue over a store in memory, whose syncs fail when a test says so.

use std::path::PathBuf;

use fusebox_state::{
    LaneId, OpId, UnixMillis,
    store::{
        DeadReason, FoundCall, Marks, OpenError, StoreEvent, StoreSettings, TokenKind, Traits,
        memory::{MemoryCommitter, MemoryDisk},
    },
    write::End,
};

use super::*;
use crate::{
    connector::Residue,
    ground::{OpenedStore, OpensStores},
    metrics::Metrics,
    tests::settings,
};

/// The address of the backend.
const HERE: &str = "here";

/// Opens the store, and keeps what commits for it.
#[derive(Default)]
struct Stores {
    disk: MemoryDisk,
    committer: Mutex<Option<MemoryCommitter>>,
}

impl OpensStores for Stores {
    fn open(&self, _: &str, settings: StoreSettings) -> Result<OpenedStore, OpenError> {
        let opened = self.disk.open(&settings.target).unwrap();
        *self.committer.lock() = Some(opened.committer);
        Ok(OpenedStore {
            store: opened.store,
            calls: opened.calls,
            last_seq: opened.last_seq,
            findings: Vec::new(),
            previous_target: None,
        })
    }
}

struct Bench {
    stores: Arc<Stores>,
    queue: Arc<Queue>,
}

/// The queue of a run that begins, and the other address for which it finds calls.
fn run(stores: &Arc<Stores>) -> (Arc<Queue>, Option<Target>) {
    let clock = Clock::system();
    let opens: Arc<dyn OpensStores> = stores.clone();
    let metrics = Arc::new(Metrics::new(clock).backend("one"));
    let ground = Ground::simulated(clock, opens);
    let queue = Queue::new(&settings("one"), metrics, ground, EventBus::default());
    let mut other = None;
    let before = |_: &dyn CallStore, previous: Option<&Target>| other = previous.cloned();
    queue.open(PathBuf::new(), &HERE.into(), 0, before).unwrap();
    (queue, other)
}

impl Bench {
    fn new() -> Self {
        let stores = Arc::default();
        let (queue, _) = run(&stores);
        Self { stores, queue }
    }

    /// The next run over the same disk. What is sent from now on is sent to its store.
    fn next_run(&self) -> (Arc<Queue>, Option<Target>) {
        run(&self.stores)
    }

    /// Commits whatever was sent.
    fn commits(&self) {
        self.stores.committer.lock().as_mut().unwrap().settle();
    }

    /// The next sync fails, although the disk has what was to be synced. The store refuses everything from then on.
    fn fails(&self) {
        let mut committer = self.stores.committer.lock();
        self.queue.on_store_event(committer.as_mut().unwrap().fail(true, "a sync failed"));
    }

    /// The store takes commands again. Returns the event for the queue.
    fn reopened(&self) -> StoreEvent {
        self.stores.committer.lock().as_mut().unwrap().reopen().unwrap().unwrap()
    }

    fn serves_again(&self) {
        self.queue.on_store_event(self.reopened());
        self.commits();
    }

    fn fails_and_serves_again(&self) {
        self.fails();
        self.serves_again();
    }

    /// What the next run would find.
    fn stored(&self) -> Vec<FoundCall> {
        self.stores.disk.open(&HERE.into()).unwrap().calls
    }

    /// A write to lane 1 that waits.
    fn queued(&self, op: u128, repeat: Repeat) -> u64 {
        let seq = self.queue.append(write(op, repeat), || true).unwrap().seq;
        self.commits();
        seq
    }

    /// Two calls that were sent as one, of which nobody knows whether they were applied: a dead letter.
    fn buried_in_doubt(&self) -> [u64; 2] {
        let both = [1, 2].map(|op| self.queued(op, Repeat::Token));
        let evidence = Bytes::from_static(b"before");
        drop(self.queue.note_sending(&both, OpId::from_u128(9), evidence));
        self.commits();
        for seq in both {
            let mut index = self.queue.index();
            let state = &mut index.get_mut(seq).unwrap().state;
            state.sent();
            state.end(End::Unknown);
        }
        assert!(self.queue.bury(both[0], DeadReason::Ambiguous, &"nobody knows".into()));
        self.commits();
        both
    }
}

/// Whether both are a dead letter in doubt, as they were sent.
fn are_in_doubt(queue: &Queue, both: [u64; 2]) -> bool {
    let index = queue.index();
    let is_in_doubt = |entry: &Entry| {
        let details = entry.details();
        entry.state.is_in_doubt() && details.noted.is_some() && details.group == Some(both[0])
    };
    both.iter().all(|seq| index.get(*seq).is_some_and(is_in_doubt)) && index.dead().0 == 1
}

/// Whether both are in no doubt, each on its own, and no dead letters.
fn are_fresh(queue: &Queue, both: [u64; 2]) -> bool {
    let index = queue.index();
    let is_fresh = |entry: &Entry| !entry.state.is_in_doubt() && entry.details().group.is_none();
    both.iter().all(|seq| index.get(*seq).is_some_and(is_fresh)) && index.dead().0 == 0
}

fn write(op: u128, repeat: Repeat) -> NewWrite {
    NewWrite {
        header: CallHeader {
            op_id: OpId::from_u128(op),
            digest: 1,
            uid: 0,
            lanes: Lanes::One(LaneId(1)),
            token: TokenKind::of(repeat, false),
            traits: Traits::default(),
            accepted_at: UnixMillis::new(5),
        },
        target: HERE.into(),
        label: "k".into(),
        state: WriteState::fresh(repeat),
        own_name: false,
        evidence: Bytes::new(),
        body: Bytes::from_static(b"SET k v"),
        span: SpanRef { trace_id: 1, span_id: 1, sampled: false },
        low_priority: false,
        claim: None,
    }
}

#[test]
fn a_residue_is_in_the_lanes_that_it_has_on_the_disk_though_the_sync_of_these_failed() {
    let bench = Bench::new();
    let queue = &bench.queue;
    let [here, there] = [1, 2].map(|lane| Lanes::One(LaneId(lane)));
    let residue = |lanes: &Lanes| {
        let (body, due) = (Bytes::from_static(b"END k"), UnixMillis::new(800));
        Residue { body, lanes: lanes.clone(), due }
    };
    let seq = bench.queued(1, Repeat::Absolute);
    assert_eq!(queue.index().take(queue.clock.now()), Some(seq));
    queue.replace(seq, residue(&here), None, || ());
    bench.commits();
    assert_eq!(queue.index().residues_in(&here), [seq]);
    // Its key is renamed: it is due when it was.
    queue.replace(seq, residue(&there), None, || ());
    bench.fails_and_serves_again();
    let index = queue.index();
    assert_eq!(index.residues_in(&there), [seq]);
    assert_eq!((index.is_occupied(&here), index.is_occupied(&there)), (false, true));
}

#[test]
fn a_note_that_was_written_though_its_sync_failed_is_taken_back_as_nothing_was_sent() {
    let bench = Bench::new();
    // One alone, and two as one.
    let alone = bench.queued(1, Repeat::Token);
    let both = [2, 3].map(|op| bench.queued(op, Repeat::Token));
    let mut noting = [
        bench.queue.note_sending(&[alone], OpId::from_u128(1), Bytes::new()),
        bench.queue.note_sending(&both, OpId::from_u128(9), Bytes::new()),
    ];
    bench.fails_and_serves_again();
    for noted in &mut noting {
        assert!(matches!(noted.try_recv(), Ok(Err(_))), "so nobody sends them");
    }
    let stored = bench.stored();
    let is_noted = |call: &FoundCall| *call.marks() != Marks::default();
    assert_eq!((stored.len(), stored.iter().any(is_noted)), (3, false), "{stored:?}");
}

#[test]
fn a_write_for_another_address_is_refused_as_long_as_the_order_lock_is_held() {
    let bench = Bench::new();
    let queue = &bench.queue;
    let refused = queue.append(write(1, Repeat::Absolute), || {
        assert!(queue.order.try_lock().is_none(), "no other address can be recorded meanwhile");
        false
    });
    assert!(matches!(refused, Err(AppendError::Moved)) && queue.index().is_empty());
    let seq = queue.append(write(1, Repeat::Absolute), || true).unwrap().seq;
    assert!(!queue.retarget_if_empty(|| panic!("it is for the former one")));
    bench.commits();
    queue.applied(seq, None, || ());
    bench.commits();
    assert!(queue.retarget_if_empty(|| {
        assert!(queue.order.try_lock().is_none(), "an earlier one would be recorded last");
        "there".into()
    }));
}

#[test]
fn a_call_for_another_address_than_the_stores_goes_nowhere_without_being_asked_for() {
    let bench = Bench::new();
    let there = |op| NewWrite { target: "there".into(), ..write(op, Repeat::Absolute) };
    // Accepted there while calls for the former address waited, so that the store's own is still that one.
    bench.queue.append(there(1), || true).unwrap();
    bench.commits();
    let (queue, asked) = bench.next_run();
    assert_eq!(asked, Some("there".into()));
    let accepted = queue.accept_target(|| {
        assert!(queue.order.try_lock().is_none(), "nothing gets a place meanwhile");
        HERE.into()
    });
    bench.commits();
    assert!(matches!(accepted.unwrap().try_recv(), Ok(Ok(()))));
    let (queue, asked) = bench.next_run();
    assert_eq!(asked, None, "an operator has said that it may go here");
    queue.append(there(2), || true).unwrap();
    bench.commits();
    assert_eq!(bench.next_run().1, Some("there".into()), "that was not said of this one");
}

#[test]
fn a_dead_letter_is_requeued_for_the_address_that_it_was_accepted_for() {
    let bench = Bench::new();
    let bury_there = |queue: &Arc<Queue>, op| {
        let there = NewWrite { target: "there".into(), ..write(op, Repeat::Absolute) };
        let (reason, detail) = (DeadReason::Rejected, "no".into());
        let mark = DeadMark { reason, detail, at: UnixMillis::new(6), attempts: 1 };
        drop(queue.append_dead(there, mark, || true).unwrap());
        bench.commits();
    };
    let requeue = |queue: &Arc<Queue>, op| {
        let (seq, is_dead) = queue.index().find(OpId::from_u128(op)).unwrap();
        assert!(is_dead);
        drop(queue.requeue(seq, true, false).unwrap());
        bench.commits();
        bench.next_run()
    };
    bury_there(&bench.queue, 1);
    let (queue, asked) = requeue(&bench.queue, 1);
    assert_eq!(asked, Some("there".into()), "nobody has said that it may go here");
    bury_there(&queue, 2);
    drop(queue.accept_target(|| HERE.into()).unwrap());
    bench.commits();
    let (queue, asked) = requeue(&queue, 2);
    assert_eq!(asked, None, "an operator has said so");
    // That holds in later runs, too.
    let (seq, _) = queue.index().find(OpId::from_u128(1)).unwrap();
    assert!(queue.bury(seq, DeadReason::Rejected, &"no".into()));
    bench.commits();
    assert_eq!(requeue(&queue, 1).1, None);
}

#[test]
fn a_dead_letter_whose_lane_was_written_since_is_requeued_by_force_alone() {
    let bench = Bench::new();
    let both = bench.buried_in_doubt();
    let lanes = bench.queue.index().get(both[1]).unwrap().header.lanes.clone();
    bench.queue.index().note_written(&lanes);
    let refused = bench.queue.requeue(both[1], false, true);
    assert!(matches!(refused, Err(NotRequeued::Written)));
    assert!(are_in_doubt(&bench.queue, both), "nothing has changed");
    drop(bench.queue.requeue(both[0], true, true).unwrap());
    bench.commits();
    assert!(are_fresh(&bench.queue, both));
}

#[test]
fn what_is_left_of_a_call_is_for_the_address_that_the_call_was_for() {
    let bench = Bench::new();
    let queue = &bench.queue;
    let there = NewWrite { target: "there".into(), ..write(1, Repeat::Absolute) };
    let seq = queue.append(there, || true).unwrap().seq;
    bench.commits();
    assert_eq!(queue.index().take(queue.clock.now()), Some(seq));
    let (body, due) = (Bytes::from_static(b"END k"), UnixMillis::new(800));
    queue.replace(seq, Residue { body, lanes: Lanes::One(LaneId(1)), due }, None, || ());
    bench.commits();
    let stored = bench.stored();
    let [left] = stored.as_slice() else { panic!("{stored:?}") };
    assert_eq!((left.header.traits.due(), left.target.as_str()), (Some(due), "there"));
}

#[test]
fn a_call_whose_removal_the_store_refuses_waits_on_and_nothing_has_passed_it() {
    let bench = Bench::new();
    let queue = &bench.queue;
    let [first, second] = [1, 2].map(|op| bench.queued(op, Repeat::Absolute));
    bench.fails();
    let mut discarded = queue.discard(first).unwrap();
    assert_eq!(queue.index().take(queue.clock.now()), None, "it may come back");
    bench.commits();
    let refused = discarded.try_recv().unwrap().unwrap_err();
    assert!(!refused.outcome_unknown(), "{refused}");
    bench.serves_again();
    assert_eq!(bench.stored().len(), 2, "nobody has removed it since");
    assert_eq!(queue.index().take(queue.clock.now()), Some(first));
    // If the outcome is unknown, the store knows it.
    let mut discarded = queue.discard(second).unwrap();
    bench.fails_and_serves_again();
    let unknown = discarded.try_recv().unwrap().unwrap_err();
    assert!(unknown.outcome_unknown() && queue.index().get(second).is_none(), "{unknown}");
}

#[test]
fn calls_that_were_sent_as_one_stay_in_doubt_until_it_is_stored_that_they_were_not_applied() {
    let bench = Bench::new();
    let queue = &bench.queue;
    let both = bench.buried_in_doubt();
    bench.fails();
    let mut refused = queue.requeue(both[1], true, true).unwrap();
    bench.commits();
    assert!(matches!(refused.try_recv(), Ok(Err(_))));
    bench.serves_again();
    assert!(are_in_doubt(queue, both));
    let (queue, _) = bench.next_run();
    assert!(are_in_doubt(&queue, both));
    let mut cleared = queue.requeue(both[1], true, true).unwrap();
    assert!(queue.requeue(both[0], true, true).is_err(), "they are no dead letters any more");
    bench.commits();
    assert!(matches!(cleared.try_recv(), Ok(Ok(()))));
    assert!(are_fresh(&queue, both));
    let stored = bench.stored();
    assert!(stored.iter().all(|call| *call.marks() == Marks::default()), "{stored:?}");
}

#[test]
fn calls_that_are_to_wait_again_are_not_sent_before_that_is_stored() {
    let bench = Bench::new();
    let queue = &bench.queue;
    let both = bench.buried_in_doubt();
    bench.fails();
    // An operator is faster than what tells that the store serves again.
    let reopened = bench.reopened();
    let mut cleared = queue.requeue(both[0], true, true).unwrap();
    queue.on_store_event(reopened);
    assert_eq!(queue.index().take(queue.clock.now()), None);
    bench.commits();
    assert!(matches!(cleared.try_recv(), Ok(Ok(()))));
    assert!(are_fresh(queue, both));
    assert_eq!(queue.index().take(queue.clock.now()), Some(both[0]));
}

#[test]
fn calls_that_were_to_wait_again_are_dead_letters_if_the_store_fails_before_that_is_stored() {
    let bench = Bench::new();
    let queue = &bench.queue;
    let both = bench.buried_in_doubt();
    bench.fails();
    let reopened = bench.reopened();
    // It fills the group that fails.
    let large = Bytes::from(vec![0; 100_000]);
    drop(queue.append(NewWrite { body: large, ..write(3, Repeat::Absolute) }, || true).unwrap());
    let mut refused = queue.requeue(both[0], true, true).unwrap();
    queue.on_store_event(reopened);
    bench.fails();
    bench.commits();
    let refused = refused.try_recv().unwrap().unwrap_err();
    assert!(!refused.outcome_unknown(), "{refused}");
    assert!(are_in_doubt(queue, both));
    bench.serves_again();
    assert!(are_in_doubt(queue, both));
    assert!(are_in_doubt(&bench.next_run().0, both));
}

#[test]
fn calls_wait_again_once_the_store_is_open_if_it_is_unknown_whether_that_was_stored() {
    let bench = Bench::new();
    let queue = &bench.queue;
    let both = bench.buried_in_doubt();
    let mut cleared = queue.requeue(both[0], true, true).unwrap();
    bench.fails();
    let unknown = cleared.try_recv().unwrap().unwrap_err();
    assert!(unknown.outcome_unknown(), "{unknown}");
    assert_eq!(queue.index().take(queue.clock.now()), None);
    bench.serves_again();
    assert!(are_fresh(queue, both));
    assert_eq!(queue.index().take(queue.clock.now()), Some(both[0]));
}
