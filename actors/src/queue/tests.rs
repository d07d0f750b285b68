//! The queue over a store in memory, whose syncs fail when a test says so.

use fusebox_state::{
    LaneId, OpId, UnixMillis,
    store::{
        FoundCall, Marks, OpenError, StoreSettings, TokenKind, Traits,
        memory::{MemoryCommitter, MemoryDisk},
    },
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

impl Bench {
    fn new() -> Self {
        let (stores, clock) = (Arc::new(Stores::default()), Clock::system());
        let opens: Arc<dyn OpensStores> = stores.clone();
        let metrics = Arc::new(Metrics::new(clock).backend("one"));
        let ground = Ground::simulated(clock, opens);
        let queue = Queue::new(&settings("one"), metrics, ground, EventBus::default());
        queue.open(std::path::PathBuf::new(), &HERE.into(), 0, |_, _| ()).unwrap();
        Self { stores, queue }
    }

    /// Commits whatever was sent.
    fn commits(&self) {
        self.stores.committer.lock().as_mut().unwrap().settle();
    }

    /// The next sync fails, although the disk has what was to be synced. The store serves again at once.
    fn fails_and_serves_again(&self) {
        let mut committer = self.stores.committer.lock();
        let committer = committer.as_mut().unwrap();
        self.queue.on_store_event(committer.fail(true, "a sync failed"));
        self.queue.on_store_event(committer.reopen().unwrap().unwrap());
        committer.settle();
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
