//! What an acknowledged write costs, against the least that it could cost.
//!
//! Both sides of the comparison run here, in turns, on the same disk: a plain file to which a
//! group-committing thread appends 256-byte records with one `fdatasync` per group, and the durable
//! store with calls whose body has 256 bytes. Callers wait in the same way on both. What counts is
//! the median of the ratios within the rounds, so that a noisy machine slows both sides.
//!
//! `cargo bench --bench durable_ack -- --gate` exits non-zero below the gates; the folder is made in
//! `CARGO_TARGET_TMPDIR` unless `DURABLE_ACK_DIR` names another.
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
    LaneId, Lanes, OpId, UnixMillis,
    store::{CallStore, Faults, NewCall, Store, StoreSettings, TokenKind, Traits},
};

const RECORD_BYTES: usize = 256;
const ROUNDS: usize = 9;
const CALLERS: u64 = 64;
const OPERATIONS_OF_MANY: u64 = 200;
const OPERATIONS_OF_ONE: u64 = 1_500;
/// 64 callers get at least this share of the raw throughput.
const GATE_THROUGHPUT: f64 = 0.55;
/// One caller waits at most this many times as long as for a raw append, at the median.
const GATE_LATENCY: f64 = 1.6;

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

struct Stored {
    store: Store,
    next: AtomicU64,
    cleared: AtomicU64,
}

impl Stored {
    fn open(dir: &Path) -> Self {
        let settings = StoreSettings {
            dir: dir.to_owned(),
            target: "redis://bench:6379/0".into(),
            disk_floor: 64 << 20,
            unix_now: Arc::new(|| UnixMillis::new(unix_millis())),
            on_event: Arc::new(|event| println!("{event:?}")),
            faults: Faults::default(),
        };
        let store = Store::open(settings).expect("store").store;
        Self { store, next: AtomicU64::new(1), cleared: AtomicU64::new(1) }
    }
}

impl Side for Stored {
    fn put(&self, done: Acknowledge) {
        let seq = self.next.fetch_add(1, Relaxed);
        let call = NewCall {
            seq,
            op_id: OpId::from_u128(u128::from(seq)),
            digest: seq,
            uid: 1000,
            namespace: String::new(),
            lanes: Lanes::One(LaneId(seq)),
            label: "SET user".into(),
            token: TokenKind::Absolute,
            traits: Traits::default(),
            accepted_at: UnixMillis::new(1_790_000_000_000),
            expires_at: None,
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

/// Medians over the rounds: of the raw side, of the store, and of the ratio within a round.
struct Comparison {
    raw: f64,
    stored: f64,
    ratio: f64,
}

/// Measures both sides in turns.
fn compare(raw: &dyn Side, stored: &dyn Side, measure: fn(&dyn Side) -> f64) -> Comparison {
    // The first round of each warms up and does not count.
    measure(raw);
    measure(stored);
    let rounds: Vec<_> = (0..ROUNDS).map(|_| (measure(raw), measure(stored))).collect();
    Comparison {
        raw: median(rounds.iter().map(|(raw, _)| *raw).collect()),
        stored: median(rounds.iter().map(|(_, stored)| *stored).collect()),
        ratio: median(rounds.iter().map(|(raw, stored)| stored / raw).collect()),
    }
}

fn main() -> ExitCode {
    let gate = env::args().any(|argument| argument == "--gate");
    let base = env::var_os("DURABLE_ACK_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = base.join(format!("durable_ack-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("folder");
    let (raw, stored) = (Raw::start(&dir.join("raw")), Stored::open(&dir.join("store")));
    let many = compare(&raw, &stored, throughput);
    let one = compare(&raw, &stored, latency);
    stored.store.close();
    fs::remove_dir_all(&dir).expect("clean up");

    println!("{:<24} {:>11} {:>11} {:>7} {:>8}", "", "raw append", "store", "ratio", "gate");
    for (name, Comparison { raw, stored, ratio }, gate) in [
        ("64 callers, records/s", &many, format!(">= {GATE_THROUGHPUT}")),
        ("1 caller, median in us", &one, format!("<= {GATE_LATENCY}")),
    ] {
        println!("{name:<24} {raw:>11.0} {stored:>11.0} {ratio:>7.2} {gate:>8}");
    }
    if gate && (many.ratio < GATE_THROUGHPUT || one.ratio > GATE_LATENCY) {
        println!("below the gate");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
