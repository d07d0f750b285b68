//! What fusebox costs between a program and a real backend, and what its replay gains.
//!
//! Each figure is a ratio of two things measured in turns, in one run: the same question put to the server
//! itself and to the daemon (a release build, as it is installed), or the same writes sent one by one and
//! replayed from the queue. Both sides use the same small blocking client, on a connection that is kept.
//!
//! `ClickHouse` is Debian's server 18.16, which is real from its HTTP down; Firestore an emulator, Google's
//! where it is found. Both are installed by `tests/setup`.
//!
//! The smallest read that there is has no gate: it is printed with the time that fusebox adds to it, 0.15 to
//! 0.2 ms on two cores that others use as well. The server answers it in 0.24 ms, of which 15 % are less than the
//! 0.04 ms that a call takes which is refused at the door. The gated read is an aggregate over a million rows
//! with ten rows as its answer, which takes the server several milliseconds: its gate finds a delay of about
//! a millisecond, no smaller one. For those, look at the line above it.
//!
//! `cargo bench -p fusebox --bench backends -- --gate` exits non-zero outside the gates.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a benchmark reports on stdout and stops at the first error"
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsRequest, CommitRequest, Document, Value, Write as DocumentWrite,
    firestore_client::FirestoreClient, value::ValueType, write::Operation,
};
use serde_json::json;
use tonic::transport::Endpoint;

/// The tests' own servers and daemon.
#[expect(dead_code, unused_imports, reason = "the tests need more of it")]
#[path = "../tests/it/support"]
mod support {
    pub(crate) mod clickhouse;
    pub(crate) mod daemon;
    pub(crate) mod firestore;
    pub(crate) mod http;
    pub(crate) mod poll;
    pub(crate) mod port;
    pub(crate) mod proc;
    pub(crate) mod redis;
    pub(crate) mod relay;
}

use support::{
    clickhouse::{ClickHouse, Engine},
    daemon::{Builder, Client, Daemon},
    firestore::{Emulator, Firestore, emulators},
    redis::RedisServer,
    relay::Relay,
};

const LONG: Duration = Duration::from_secs(300);
const ROUNDS: usize = 15;
const READS: usize = 40;
const LARGE: usize = 100 << 20;
const WRITES: usize = 10_000;
/// One commit each would take long: so many are timed.
const SINGLE_COMMITS: usize = 2_000;
const QUEUED: usize = 50_000;
const PROJECT: &str = "fusebox";
const DATABASE: &str = "projects/fusebox/databases/(default)";

/// A figure and its gate.
struct Figure {
    what: &'static str,
    direct: String,
    ours: String,
    value: f64,
    gate: Gate,
}

enum Gate {
    AtMost(f64),
    AtLeast(f64),
    /// It is only told.
    None,
}

impl Figure {
    fn holds(&self) -> bool {
        match self.gate {
            Gate::AtMost(most) => self.value <= most,
            Gate::AtLeast(least) => self.value >= least,
            Gate::None => true,
        }
    }

    fn print(&self) {
        let gate = match self.gate {
            Gate::AtMost(most) => format!("<= {most}"),
            Gate::AtLeast(least) => format!(">= {least}"),
            Gate::None => "none".to_owned(),
        };
        let Self { what, direct, ours, value, .. } = self;
        println!("{what:<44} {direct:>14} {ours:>14} {value:>8.2} {gate:>8}");
    }
}

/// A kept connection that speaks HTTP/1.1.
struct Http<S: Read + Write>(BufReader<S>);

impl<S: Read + Write> Http<S> {
    fn new(stream: S) -> Self {
        Self(BufReader::with_capacity(1 << 18, stream))
    }

    /// POSTs and reads the answer to its end. Returns how long it was.
    fn post(&mut self, path: &str, body: &str) -> usize {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(head.as_bytes()).expect("the request");
        let status = self.line();
        let mut length = None;
        loop {
            let line = self.line().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            length = line.strip_prefix("content-length: ").map_or(length, |it| it.parse().ok());
        }
        let read = match length {
            Some(length) => self.skip(length),
            None => self.skip_chunks(),
        };
        assert!(status.contains(" 200 ") || status.contains(" 202 "), "{path}: {status}");
        read
    }

    fn skip_chunks(&mut self) -> usize {
        let mut whole = 0;
        loop {
            let size = usize::from_str_radix(&self.line(), 16).expect("a chunk's size");
            whole += self.skip(size);
            self.line();
            if size == 0 {
                return whole;
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn skip(&mut self, length: usize) -> usize {
        let mut left = length;
        while left > 0 {
            let there = self.0.fill_buf().expect("the body").len().min(left);
            assert!(there > 0, "the body broke off");
            self.0.consume(there);
            left -= there;
        }
        length
    }
}

fn ours(daemon: &Client) -> Http<UnixStream> {
    Http::new(UnixStream::connect(daemon.socket()).expect("the daemon listens"))
}

fn direct(url: &str) -> Http<TcpStream> {
    let stream = TcpStream::connect(url.trim_start_matches("http://")).expect("the server listens");
    stream.set_nodelay(true).expect("no delay");
    Http::new(stream)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn seconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// Measures both sides in turns. Returns the medians of each, and of the second to the first within a round.
fn in_turns(mut first: impl FnMut() -> f64, mut second: impl FnMut() -> f64) -> (f64, f64, f64) {
    // The first round of each warms up.
    first();
    second();
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (first(), second())).collect();
    let over = |of: fn(&(f64, f64)) -> f64| median(rounds.iter().map(of).collect());
    (over(|it| it.0), over(|it| it.1), over(|it| it.1 / it.0))
}

fn median_of(mut read: impl FnMut()) -> f64 {
    median((0..READS).map(|_| seconds(&mut read)).collect())
}

fn millis(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}

fn clickhouse() -> Vec<Figure> {
    let server = ClickHouse::start(Engine::Old);
    let daemon = Builder::default().set("backends.clickhouse.url", server.url()).start();
    let (mut there, mut here) = (direct(&server.url()), ours(&daemon));
    server.query("CREATE TABLE bench (k UInt32, v UInt64) ENGINE = MergeTree ORDER BY k");
    server.query("INSERT INTO bench SELECT number % 1000, number FROM numbers(1000000)");
    let mut read = |sql: &str| {
        let call = json!({ "query": sql }).to_string();
        in_turns(
            || median_of(|| assert!(there.post("/", sql) > 0)),
            || median_of(|| assert!(here.post("/v1/backends/clickhouse/call", &call) > 0)),
        )
    };
    let sql = "SELECT number, toString(number) FROM system.numbers LIMIT 10 FORMAT JSON";
    let (first, second, _) = read(sql);
    let smallest = Figure {
        what: "ClickHouse, the smallest read, added us",
        direct: millis(first),
        ours: millis(second),
        value: (second - first) * 1e6,
        gate: Gate::None,
    };
    let sql = "SELECT k % 10 AS g, count() AS n, sum(v) AS s FROM bench GROUP BY g ORDER BY g \
               FORMAT JSON";
    let (first, second, ratio) = read(sql);
    let small = Figure {
        what: "ClickHouse, a small read",
        direct: millis(first),
        ours: millis(second),
        value: ratio,
        gate: Gate::AtMost(1.15),
    };
    let large = format!("SELECT number FROM system.numbers LIMIT {} FORMAT RowBinary", LARGE / 8);
    let rate = |seconds: f64| LARGE as f64 / seconds / f64::from(1 << 20);
    let (first, second, ratio) = in_turns(
        || rate(seconds(|| assert_eq!(there.post("/", &large), LARGE))),
        || {
            rate(seconds(|| {
                assert_eq!(here.post("/v1/backends/clickhouse/call/raw", &large), LARGE);
            }))
        },
    );
    let large = Figure {
        what: "ClickHouse, throughput of a 100 MiB result",
        direct: format!("{first:.0} MiB/s"),
        ours: format!("{second:.0} MiB/s"),
        value: ratio,
        gate: Gate::AtLeast(0.9),
    };
    vec![smallest, small, large]
}

fn document(name: String, value: i64) -> Document {
    let value = Value { value_type: Some(ValueType::IntegerValue(value)) };
    Document { name, fields: [("v".to_owned(), value)].into(), ..Document::default() }
}

fn name(number: usize) -> String {
    format!("{DATABASE}/documents/bench/d{number}")
}

fn firestore_backend(url: &str) -> Builder {
    Builder::default()
        .set("backends.firestore.url", url)
        .set("backends.firestore.project", PROJECT)
        .set("backends.firestore.breaker.recovery_timeout", "200ms")
        .set("backends.firestore.breaker.recovery_timeout_max", "200ms")
        .set("health.interval", "200ms")
}

fn firestore(emulator: Emulator) -> Vec<Figure> {
    let server = Firestore::start(emulator);
    let relay = Relay::start(server.port());
    let daemon = firestore_backend(&server.url()).start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let endpoint = Endpoint::from_shared(server.url()).expect("an address");
    let mut stub =
        FirestoreClient::new(runtime.block_on(endpoint.connect()).expect("a connection"));
    let mut commit = |number: usize| {
        let write = DocumentWrite {
            operation: Some(Operation::Update(document(name(number), 1))),
            ..DocumentWrite::default()
        };
        let request =
            CommitRequest { database: DATABASE.into(), writes: vec![write], ..Default::default() };
        runtime.block_on(stub.commit(request)).expect("a commit");
    };
    commit(0);
    let each = seconds(|| (0..SINGLE_COMMITS).for_each(&mut commit)) / SINGLE_COMMITS as f64;

    let mut reader = stub.clone();
    let mut read = || {
        let request = BatchGetDocumentsRequest {
            database: DATABASE.into(),
            documents: vec![name(0)],
            ..Default::default()
        };
        runtime.block_on(async {
            let mut found = reader.batch_get_documents(request).await.expect("a get").into_inner();
            while found.message().await.expect("an answer").is_some() {}
        });
    };
    let mut here = ours(&daemon);
    let call = json!({ "op": "get", "path": "bench/d0" }).to_string();
    let (first, second, ratio) = in_turns(
        || median_of(&mut read),
        || median_of(|| assert!(here.post("/v1/backends/firestore/call", &call) > 0)),
    );
    let get = Figure {
        what: "Firestore, a get",
        direct: millis(first),
        ours: millis(second),
        value: ratio,
        gate: Gate::AtMost(1.2),
    };
    drop(daemon);

    let daemon = firestore_backend(&format!("http://127.0.0.1:{}", relay.port())).start();
    relay.refuse();
    relay.drop_connections();
    queue(
        &daemon,
        "firestore",
        WRITES,
        |number| json!({ "op": "set", "path": format!("bench/d{number}"), "data": { "v": number } }),
    );
    relay.accept_again();
    let replayed = seconds(|| {
        daemon.wait_until("replayed", LONG, |daemon| daemon.queued("firestore", "pending") == 0);
    });
    let single = each * WRITES as f64;
    let drained = Figure {
        what: "Firestore, 10,000 queued writes",
        direct: format!("{single:.1} s"),
        ours: format!("{replayed:.2} s"),
        value: single / replayed,
        gate: Gate::AtLeast(20.0),
    };
    vec![get, drained]
}

/// Queues so many calls, over a few connections.
fn queue(
    daemon: &Daemon,
    backend: &str,
    count: usize,
    call: impl Fn(usize) -> serde_json::Value + Sync,
) {
    const CALLERS: usize = 16;
    let path = format!("/v1/backends/{backend}/call");
    // Each a lane of its own: behind a call that waits nothing is tried.
    let mut tries = count..;
    daemon.wait_until("the breaker is open", LONG, |daemon| {
        ours(daemon).post(&path, &call(tries.next().unwrap_or_default()).to_string());
        daemon.breaker(backend) == "OPEN"
    });
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (path, call) = (&path, &call);
            scope.spawn(move || {
                let mut here = ours(daemon);
                for number in (caller..count).step_by(CALLERS) {
                    here.post(path, &call(number).to_string());
                }
            });
        }
    });
}

/// The memory of a process that is its own, in MiB.
fn memory(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024.0
}

fn memory_of_queue() -> Figure {
    let mut redis = RedisServer::start();
    let daemon = Daemon::with_redis(&redis.url()).start();
    daemon.redis(&["SET", "k", "1"]).assert_live();
    redis.kill_9();
    let before = memory(daemon.id());
    let value = "x".repeat(1_024);
    queue(
        &daemon,
        "redis",
        QUEUED - 10,
        |number| json!({ "command": ["SET", format!("key:{number}"), value] }),
    );
    let after = memory(daemon.id());
    Figure {
        what: "memory for 50,000 queued calls of 1 KiB, MiB",
        direct: format!("{before:.0} MiB"),
        ours: format!("{after:.0} MiB"),
        value: after - before,
        gate: Gate::AtMost(100.0),
    }
}

fn main() -> ExitCode {
    let gate = std::env::args().any(|argument| argument == "--gate");
    let emulator = emulators()[0];
    println!("ClickHouse 18.16; Firestore emulator: {emulator:?}");
    println!("{:<44} {:>14} {:>14} {:>8} {:>8}", "", "direct", "fusebox", "ratio", "gate");
    let mut figures = clickhouse();
    figures.iter().for_each(Figure::print);
    let more = firestore(emulator);
    more.iter().for_each(Figure::print);
    figures.extend(more);
    let queue = memory_of_queue();
    queue.print();
    figures.push(queue);
    if gate && !figures.iter().all(Figure::holds) {
        println!("outside the gate");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
