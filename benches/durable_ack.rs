//! What an acknowledged write costs, against the least that it could cost.
//!
//! Three sides run here, in turns, on the same disk: a plain file to which a group-committing thread
//! appends 256-byte records with one `fdatasync` per group; sled alone, with 256-byte values and the
//! same grouping; and the durable store with calls whose body has 256 bytes. Callers wait in the same
//! way on all of them. What counts is the median of the ratios within the rounds, so that a noisy
//! machine slows all sides.
//!
//! With many callers the gate is the share of what sled alone reaches: how much of the plain append
//! sled reaches depends on the machine (0.49 to 0.65 were seen), and the store cannot change it as long
//! as each call is a value of its own. The share of the plain append is shown beside it.
//!
//! `cargo bench --bench durable_ack -- --gate` exits non-zero below the gates; the folder is made in
//! `CARGO_TARGET_TMPDIR` unless `DURABLE_ACK_DIR` names another. With `DURABLE_ACK_PACKED` small calls share
//! values.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and stops at the first error"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fusebox_state::{
    LaneId, Lanes, OpId, Target, UnixMillis,
    store::{CallHeader, CallStore, Faults, NewCall, Store, StoreSettings, TokenKind, Traits},
};

const RECORD_BYTES: usize = 256;
const ROUNDS: usize = 9;
const CALLERS: u64 = 64;
const OPERATIONS_OF_MANY: u64 = 200;
const OPERATIONS_OF_ONE: u64 = 1_500;
/// 64 callers get at least this share of the throughput of sled alone.
const GATE_THROUGHPUT: f64 = 0.75;
/// One caller waits at most this many times as long as for a raw append, at the median.
const GATE_LATENCY: f64 = 1.6;
/// Replayed calls that are removed at once.
const BATCH: u64 = 100;
/// Calls removed one by one, and calls removed in batches, in one round.
const REMOVED: [u64; 2] = [200, 2_000];

type Acknowledge = Box<dyn FnOnce() + Send>;

/// Something that makes a record durable and then says so.
trait Side: Sync {
    fn put(&self, done: Acknowledge);
    /// Between rounds, not measured.
    fn clear(&self) {}
}

/// The least that durability costs: append, `fdatasync`, acknowledge, a group at a time.
struct Raw(Sender<(Vec<u8>, Acknowledge)>);

impl Raw {
    fn start(path: &Path) -> Self {
        let (sender, receiver) = mpsc::channel();
        let file = OpenOptions::new().create(true).append(true).open(path).expect("raw file");
        thread::spawn(move || Self::run(file, &receiver));
        Self(sender)
    }

    fn run(mut file: File, records: &Receiver<(Vec<u8>, Acknowledge)>) {
        let mut buffer = Vec::new();
        let mut waiting = Vec::new();
        while let Ok(first) = records.recv() {
            buffer.clear();
            for (record, done) in std::iter::once(first).chain(records.try_iter()) {
                buffer.extend_from_slice(&record);
                waiting.push(done);
            }
            file.write_all(&buffer).expect("append");
            file.sync_data().expect("fdatasync");
            waiting.drain(..).for_each(|done| done());
        }
    }
}

impl Side for Raw {
    fn put(&self, done: Acknowledge) {
        self.0.send((vec![0xA5; RECORD_BYTES], done)).expect("raw committer");
    }
}

/// sled alone: a loop that groups alike, and writes nothing but the values.
struct Engine {
    db: sled::Db,
    records: Sender<(u64, Acknowledge)>,
    next: AtomicU64,
}

impl Engine {
    fn start(dir: &Path) -> Self {
        let (records, receiver) = mpsc::channel();
        let db = sled::Config::new().path(dir).flush_every_ms(None).open().expect("sled");
        let log = File::open(dir.join("db")).expect("sled's log");
        let engine = Self { db: db.clone(), records, next: AtomicU64::new(1) };
        thread::spawn(move || Self::run(&db, &log, &receiver));
        engine
    }

    fn run(db: &sled::Db, log: &File, records: &Receiver<(u64, Acknowledge)>) {
        let mut waiting = Vec::new();
        while let Ok(first) = records.recv() {
            for (number, done) in std::iter::once(first).chain(records.try_iter()) {
                db.insert(number.to_be_bytes(), vec![0xA5; RECORD_BYTES]).expect("insert");
                waiting.push(done);
            }
            db.flush().expect("flush");
            log.sync_data().expect("fdatasync");
            waiting.drain(..).for_each(|done| done());
        }
    }
}

impl Side for Engine {
    fn put(&self, done: Acknowledge) {
        let number = self.next.fetch_add(1, Relaxed);
        self.records.send((number, done)).expect("sled's committer");
    }

    fn clear(&self) {
        for key in self.db.iter().keys() {
            self.db.remove(key.expect("key")).expect("remove");
        }
        self.db.flush().expect("flush");
    }
}

struct Stored {
    store: Store,
    target: Target,
    next: AtomicU64,
    cleared: AtomicU64,
}

impl Stored {
    fn open(dir: &Path) -> Self {
        let target = Target::from("redis://bench:6379/0");
        let settings = StoreSettings {
            dir: dir.to_owned(),
            target: target.clone(),
            disk_floor: 64 << 20,
            unix_now: Arc::new(|| UnixMillis::new(unix_millis())),
            on_event: Arc::new(|event| println!("{event:?}")),
            packed: env::var_os("DURABLE_ACK_PACKED").is_some(),
            faults: Faults::default(),
        };
        let store = Store::open(settings).expect("store").store;
        Self { store, target, next: AtomicU64::new(1), cleared: AtomicU64::new(1) }
    }
}

impl Stored {
    /// Seconds for each of `calls` calls, of which `at_once` are removed by commands that wait together.
    fn remove_timed(&self, calls: u64, at_once: u64) -> f64 {
        let start = Instant::now();
        for _ in 0..calls / at_once {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..at_once {
                let (seq, sender) = (self.cleared.fetch_add(1, Relaxed), sender.clone());
                let done = move |result: Result<(), _>| {
                    result.expect("remove");
                    sender.send(()).expect("waiter");
                };
                self.store.remove(vec![seq], Box::new(done));
            }
            drop(sender);
            receiver.iter().for_each(drop);
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let calls = calls as f64;
        start.elapsed().as_secs_f64() / calls
    }
}

impl Side for Stored {
    fn put(&self, done: Acknowledge) {
        let seq = self.next.fetch_add(1, Relaxed);
        let call = NewCall {
            seq,
            header: CallHeader {
                op_id: OpId::from_u128(u128::from(seq)),
                digest: seq,
                uid: 1000,
                lanes: Lanes::One(LaneId(seq)),
                token: TokenKind::Absolute,
                traits: Traits::default(),
                accepted_at: UnixMillis::new(1_790_000_000_000),
            },
            target: self.target.clone(),
            label: "SET user".into(),
            traceparent: None,
            note: None,
            body: Bytes::from(vec![0xA5; RECORD_BYTES]),
        };
        self.store.append(
            call,
            Box::new(move |result| {
                result.expect("append");
                done();
            }),
        );
    }

    fn clear(&self) {
        let end = self.next.load(Relaxed);
        let start = self.cleared.swap(end, Relaxed);
        let (sender, receiver) = mpsc::channel();
        let done = move |result: Result<(), _>| {
            result.expect("remove");
            sender.send(()).expect("waiter");
        };
        self.store.remove((start..end).collect(), Box::new(done));
        receiver.recv().expect("removal");
    }
}

fn unix_millis() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// One caller: sends a record, waits until it is durable, and so on. Returns what each took.
fn call(side: &dyn Side, operations: u64) -> Vec<Duration> {
    let (sender, receiver) = mpsc::channel();
    (0..operations)
        .map(|_| {
            let sender = sender.clone();
            let start = Instant::now();
            side.put(Box::new(move || sender.send(()).expect("waiter")));
            receiver.recv().expect("acknowledgement");
            start.elapsed()
        })
        .collect()
}

/// Operations a second with many callers.
fn throughput(side: &dyn Side) -> f64 {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| call(side, OPERATIONS_OF_MANY));
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    side.clear();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let operations = (CALLERS * OPERATIONS_OF_MANY) as f64;
    operations / seconds
}

/// How many times as fast calls are removed in batches as one by one.
fn removal(stored: &Stored) -> f64 {
    let filled: u64 = REMOVED.iter().sum();
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| call(stored, filled.div_ceil(CALLERS)));
        }
    });
    let [alone, batched] = REMOVED;
    let one_by_one = stored.remove_timed(alone, 1);
    let in_batches = stored.remove_timed(batched, BATCH);
    stored.clear();
    one_by_one / in_batches
}

/// Median microseconds of one caller.
fn latency(side: &dyn Side) -> f64 {
    let took = call(side, OPERATIONS_OF_ONE).iter().map(|took| took.as_secs_f64() * 1e6).collect();
    side.clear();
    median(took)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Medians over the rounds: of each side, and of the store's ratio to the other sides within a round.
struct Comparison<const SIDES: usize> {
    sides: [f64; SIDES],
    ratios: [f64; SIDES],
}

/// Measures all sides in turns; the last one is the store.
fn compare<const SIDES: usize>(
    sides: [&dyn Side; SIDES],
    measure: fn(&dyn Side) -> f64,
) -> Comparison<SIDES> {
    // The first round of each warms up and does not count.
    let rounds: Vec<[f64; SIDES]> = (0..=ROUNDS).map(|_| sides.map(measure)).skip(1).collect();
    let ratios = rounds.iter().map(|round| {
        let [.., stored] = *round.as_slice() else { return [f64::NAN; SIDES] };
        round.map(|side| stored / side)
    });
    Comparison { ratios: medians(&ratios.collect::<Vec<_>>()), sides: medians(&rounds) }
}

/// The median of each column.
fn medians<const SIDES: usize>(rounds: &[[f64; SIDES]]) -> [f64; SIDES] {
    let column = |side| rounds.iter().filter_map(|round| round.get(side).copied()).collect();
    std::array::from_fn(|side| median(column(side)))
}

fn main() -> ExitCode {
    let gate = env::args().any(|argument| argument == "--gate");
    let base = env::var_os("DURABLE_ACK_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = base.join(format!("durable_ack-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("folder");
    let raw = Raw::start(&dir.join("raw"));
    let engine = Engine::start(&dir.join("engine"));
    let stored = Stored::open(&dir.join("store"));
    let many = compare([&raw, &engine, &stored], throughput);
    let one = compare([&raw, &stored], latency);
    let removals = median((0..=ROUNDS).map(|_| removal(&stored)).skip(1).collect());
    stored.store.close();
    fs::remove_dir_all(&dir).expect("clean up");

    let ([raw_rate, engine_rate, rate], [of_raw, of_engine, _]) = (many.sides, many.ratios);
    let ([raw_took, took], [times_raw, _]) = (one.sides, one.ratios);
    println!(
        "64 callers, records/s: raw append {raw_rate:.0}, sled alone {engine_rate:.0}, store {rate:.0}"
    );
    println!("  of sled alone    {of_engine:.2}   gate >= {GATE_THROUGHPUT}");
    println!("  of a raw append  {of_raw:.2}");
    println!("1 caller, median in us: raw append {raw_took:.0}, store {took:.0}");
    println!("  of a raw append  {times_raw:.2}   gate <= {GATE_LATENCY}");
    println!("calls removed {BATCH} at once, times as fast as one by one");
    println!("  {removals:.1}   wanted >= 25");
    if gate && (of_engine < GATE_THROUGHPUT || times_raw > GATE_LATENCY) {
        println!("below the gate");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
