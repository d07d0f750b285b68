//! What fusebox costs between a program and a real backend, and what its replay gains.
//!
//! Each figure is a ratio of two things measured in turns, in one run: the same question put to the server
//! itself and to the daemon (a release build, as it is installed), or the same writes sent one by one and
//! replayed from the queue. Both sides use the same small blocking client, on a connection that is kept.
//!
//! `ClickHouse` is Debian's server 18.16, which is real from its HTTP down; Firestore an emulator, Google's
//! if it is found. Both are installed by `tests/setup`.
//!
//! **A call on loopback** is dominated by what it costs to go through one more process at all: a bare relay,
//! which copies bytes and does nothing else, makes the smallest `ClickHouse` read (0.25 ms) 1.3 to 1.4 times as
//! long and a Firestore get (0.45 ms) 1.15 times. So for both there are two figures: against the server itself,
//! without a gate, and against the relay, with one. The gated read directly at `ClickHouse` is an aggregate
//! over a million rows with ten rows as its answer, which takes the server several milliseconds; the gated get
//! is one through a network that takes [`ONE_WAY`] each way.
//!
//! **Queued Firestore writes.** A commit each costs one round trip each, and replay's commits of 500 save
//! those: what is gained depends on how far away the server is. An emulator on loopback is not away at all,
//! and works for every write. Google's takes about 0.5 ms of processor time for a commit of one and 12 ms
//! for a commit of 500 (both sides are its owner: for anybody else it evaluates rules, which takes 0.4 ms a
//! write), so that no client whatever gains more than about twenty times there. The npm package's takes
//! longer the more documents there are, and longer for 500 at once than for 500 alone; replay is not
//! measured against it. So there are two gates:
//! - on loopback, replay against the same writes sent by hand in commits of 500, one after the other, which
//!   is the least that such commits can take: what replay itself adds (1.1 to 1.5 times on two cores, on which the
//!   server and fusebox compete);
//! - through a network that takes [`ONE_WAY`] each way, replay against one commit each.
//!
//! The writes are queued while an operator has the backend offline; replay is timed from the order that ends
//! that until the queue is empty and that is synced. Every side writes new documents.
//!
//! **Draining into Redis.** Small SETs are queued, each of another key, and replayed into a server that syncs its log
//! before each reply (`appendfsync always`). The peer writes as many there on one connection, 64 in flight
//! (`redis-benchmark -c 1 -P 64`), in turns.
//!
//! `cargo bench -p fusebox --bench backends -- --gate` exits non-zero outside the gates; the names of parts
//! (`clickhouse`, `firestore`, `memory`, `drain`) run those alone. `BACKENDS_DRAIN` says how many calls are drained in
//! each of the rounds.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a benchmark reports on stdout, stops at the first error and sleeps in threads of its own"
)]

use std::{
    net::TcpStream,
    ops::Range,
    os::unix::net::UnixStream,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use serde_json::json;

#[path = "backends/figure.rs"]
mod figure;
#[path = "backends/http.rs"]
mod http;
#[path = "backends/network.rs"]
mod network;
#[expect(dead_code, reason = "another benchmark needs more of it")]
#[path = "backends/stub.rs"]
mod stub;
#[path = "backends/turns.rs"]
mod turns;

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
}

use figure::{Figure, Gate};
use http::Http;
use network::network;
use stub::{Stub, name};
use support::{
    clickhouse::{ClickHouse, Engine},
    daemon::{Builder, Client, Daemon},
    firestore::{Emulator, Firestore, emulators},
    redis::RedisServer,
};
use turns::{in_turns, median, median_of, millis, seconds};

const LONG: Duration = Duration::from_secs(300);
const LARGE: usize = 100 << 20;
const WRITES: usize = 10_000;
/// One commit each would take long: so many are timed.
const SINGLE_COMMITS: usize = 2_000;
/// Gets before those that are timed.
const WARM_UP: usize = 5_000;
/// Writes of a commit, as many as Firestore takes.
const COMMIT: usize = 500;
/// How long the network takes each way: a server that is not far.
const ONE_WAY: Duration = Duration::from_millis(5);
const QUEUED: usize = 50_000;
/// Rounds of draining into Redis.
const DRAINS: usize = 5;
const PROJECT: &str = "fusebox";

fn ours(daemon: &Client) -> Http<UnixStream> {
    Http::new(UnixStream::connect(daemon.socket()).expect("the daemon listens"))
}

fn direct(url: &str) -> Http<TcpStream> {
    let stream = TcpStream::connect(url.trim_start_matches("http://")).expect("the server listens");
    stream.set_nodelay(true).expect("no delay");
    Http::new(stream)
}

fn clickhouse() -> Vec<Figure> {
    let server = ClickHouse::start(Engine::Old);
    let daemon = Builder::default().set("backends.clickhouse.url", server.url()).start();
    let (mut there, mut here) = (direct(&server.url()), ours(&daemon));
    server.query("CREATE TABLE bench (k UInt32, v UInt64) ENGINE = MergeTree ORDER BY k");
    server.query("INSERT INTO bench SELECT number % 1000, number FROM numbers(1000000)");
    let read = |there: &mut Http<TcpStream>, here: &mut Http<UnixStream>, sql: &str| {
        let call = json!({ "query": sql }).to_string();
        in_turns(
            || median_of(|| assert!(there.post("/", sql) > 0)),
            || median_of(|| assert!(here.post("/v1/backends/clickhouse/call", &call) > 0)),
        )
    };
    let sql = "SELECT number, toString(number) FROM system.numbers LIMIT 10 FORMAT JSON";
    let (first, second, ratio) = read(&mut there, &mut here, sql);
    let smallest = Figure {
        what: "ClickHouse, the smallest read",
        direct: millis(first),
        ours: millis(second),
        value: ratio,
        gate: Gate::None,
    };
    let relay = network(server.port(), Duration::ZERO);
    let mut relayed = direct(&format!("http://127.0.0.1:{relay}"));
    let (first, second, ratio) = read(&mut relayed, &mut here, sql);
    let relayed = Figure {
        what: "ClickHouse, the smallest, to a bare relay",
        direct: millis(first),
        ours: millis(second),
        value: ratio,
        gate: Gate::AtMost(1.5),
    };
    let sql = "SELECT k % 10 AS g, count() AS n, sum(v) AS s FROM bench GROUP BY g ORDER BY g \
               FORMAT JSON";
    let (first, second, ratio) = read(&mut there, &mut here, sql);
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
    vec![smallest, relayed, small, large]
}

/// The processor time that a process has used, in seconds: unlike what passes, it does not tell of what
/// else the machine does.
fn processor(process: u32) -> f64 {
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("its figures");
    let (_, figures) = stat.rsplit_once(')').expect("its name");
    let used = figures.split_whitespace().skip(11).take(2);
    used.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() / TICKS
}

fn firestore_backend(url: &str) -> Builder {
    Builder::default().set("backends.firestore.url", url).set("backends.firestore.project", PROJECT)
}

fn firestore(emulator: Emulator) -> Vec<Figure> {
    let server = Firestore::start(emulator);
    let daemon = firestore_backend(&server.url()).start();
    let mut stub = Stub::at(server.port());
    stub.commits("bench", SINGLE_COMMITS, 1);
    // The emulator, a JVM, takes twice as long for its first thousands of gets.
    (0..WARM_UP).for_each(|_| assert!(stub.get(name("bench", 0))));
    let (first, second, ratio) = get(&mut stub, &daemon);
    let near = Figure {
        what: "Firestore, a get on loopback",
        direct: millis(first),
        ours: millis(second),
        value: ratio,
        gate: Gate::None,
    };
    let mut relayed = Stub::at(network(server.port(), Duration::ZERO));
    let (first, second, ratio) = get(&mut relayed, &daemon);
    let relayed = Figure {
        what: "Firestore, a get on loopback, to a bare relay",
        direct: millis(first),
        ours: millis(second),
        value: ratio,
        gate: Gate::AtMost(1.2),
    };
    let port = network(server.port(), ONE_WAY);
    let daemon = firestore_backend(&format!("http://127.0.0.1:{port}")).start();
    let (first, second, ratio) = get(&mut Stub::at(port), &daemon);
    let get = Figure {
        what: "Firestore, a get 5 ms away",
        direct: millis(first),
        ours: millis(second),
        value: ratio,
        gate: Gate::AtMost(1.2),
    };
    drop(daemon);
    if emulator == Emulator::Npm {
        println!("replay was not measured: that needs Google's emulator");
        return vec![near, relayed, get];
    }
    // The first of a size warms up.
    stub.commits("warm", WRITES, COMMIT);
    let [at_once, far] = [Duration::ZERO, ONE_WAY].map(|one_way| replay(&server, one_way));
    let added = Figure {
        what: "Firestore, 10,000 queued, to commits of 500",
        direct: format!("{:.2} s", at_once.together),
        ours: format!("{:.2} s", at_once.replayed),
        value: at_once.replayed / at_once.together,
        gate: Gate::AtMost(3.0),
    };
    let gained = Figure {
        what: "Firestore, 10,000 queued, to one commit each",
        direct: format!("{:.1} s", far.single),
        ours: format!("{:.2} s", far.replayed),
        value: far.single / far.replayed,
        gate: Gate::AtLeast(20.0),
    };
    vec![near, relayed, get, added, gained]
}

/// How long a get takes, directly and through the daemon, and the ratio.
fn get(stub: &mut Stub, daemon: &Daemon) -> (f64, f64, f64) {
    let mut here = ours(daemon);
    let call = json!({ "op": "get", "path": "bench/d0" }).to_string();
    in_turns(
        || median_of(|| assert!(stub.get(name("bench", 0)))),
        || median_of(|| assert!(here.post("/v1/backends/firestore/call", &call) > 0)),
    )
}

/// How long all the writes take, in seconds.
struct Replay {
    /// One commit each.
    single: f64,
    /// In commits of 500, by hand.
    together: f64,
    /// From the queue.
    replayed: f64,
}

fn replay(server: &Firestore, one_way: Duration) -> Replay {
    let all = WRITES as f64;
    let way = one_way.as_millis();
    let port = if one_way.is_zero() { server.port() } else { network(server.port(), one_way) };
    let mut stub = Stub::at(port);
    // A network's length does not vary: fewer tell it.
    let singles = if one_way.is_zero() { SINGLE_COMMITS } else { SINGLE_COMMITS / 4 };
    let emulator = server.id();
    let work = |begun: f64, writes: usize| (processor(emulator) - begun) / writes as f64;
    let begun = processor(emulator);
    let single = stub.commits(&format!("single{way}"), singles, 1) * all;
    let single_work = work(begun, singles);
    let begun = processor(emulator);
    let together = stub.commits(&format!("together{way}"), WRITES, COMMIT) * all;
    let together_work = work(begun, WRITES);

    let daemon = firestore_backend(&format!("http://127.0.0.1:{port}")).start();
    daemon.order("/admin/backends/firestore/offline");
    queue(&daemon, "firestore", 0..WRITES, |number| {
        json!({
            "op": "set", "path": format!("queued{way}/d{number}"), "data": { "v": number },
        })
    });
    let (begun, ours) = (processor(emulator), processor(daemon.id()));
    let replayed = seconds(|| {
        daemon.order("/admin/backends/firestore/online");
        daemon.wait_until("replayed", LONG, |daemon| daemon.queued("firestore", "pending") == 0);
    });
    assert_eq!(daemon.queued("firestore", "dead"), 0, "all were applied");
    for number in [0, WRITES / 2, WRITES - 1] {
        assert!(stub.get(name(&format!("queued{way}"), number)), "{number} is there");
    }
    let replayed_work = work(begun, WRITES);
    let ours = (processor(daemon.id()) - ours) / all;
    println!(
        "10,000 Firestore writes, {way} ms each way: {single:.1} s one by one, {together:.2} s in commits of \
         500, {replayed:.2} s replayed; {:.1} times faster, at most {:.1} times with such commits",
        single / replayed,
        single / together
    );
    println!(
        "processor time of a write: the server {}, {} and {}; fusebox {}",
        millis(single_work),
        millis(together_work),
        millis(replayed_work),
        millis(ours)
    );
    Replay { single, together, replayed }
}

/// Queues calls, over a few connections.
fn queue(
    daemon: &Daemon,
    backend: &str,
    numbers: Range<usize>,
    call: impl Fn(usize) -> serde_json::Value + Sync,
) {
    const CALLERS: usize = 16;
    let path = format!("/v1/backends/{backend}/call");
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (path, call, numbers) = (&path, &call, numbers.clone());
            scope.spawn(move || {
                let mut here = ours(daemon);
                for number in numbers.skip(caller).step_by(CALLERS) {
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
    let call = |number| json!({ "command": ["SET", format!("key:{number}"), value] });
    // Each a lane of its own: behind a call that waits nothing is tried.
    let mut tries = 0;
    daemon.wait_until("the breaker is open", LONG, |daemon| {
        ours(daemon).post("/v1/backends/redis/call", &call(tries).to_string());
        tries += 1;
        daemon.breaker("redis") == "OPEN"
    });
    queue(&daemon, "redis", tries..QUEUED, call);
    let after = memory(daemon.id());
    Figure {
        what: "memory for 50,000 queued calls of 1 KiB, MiB",
        direct: format!("{before:.0} MiB"),
        ours: format!("{after:.0} MiB"),
        value: after - before,
        gate: Gate::AtMost(100.0),
    }
}

/// Seconds that a client takes for as many writes on one connection.
fn pipelined(redis: &RedisServer, writes: usize) -> f64 {
    let writes = writes.to_string();
    let port = redis.port().to_string();
    seconds(|| {
        let done = Command::new("redis-benchmark")
            .args(["-p", &port, "-c", "1", "-P", "64", "-d", "256", "-t", "set", "-q"])
            .args(["-n", &writes, "-r", &writes])
            .output()
            .expect("redis-benchmark runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    })
}

fn drain() -> Figure {
    let writes = std::env::var("BACKENDS_DRAIN").map_or(QUEUED, |text| text.parse().unwrap());
    let redis = RedisServer::start();
    let _done: String =
        redis.query(&["CONFIG", "SET", "appendonly", "yes", "appendfsync", "always"]);
    let daemon = Daemon::with_redis(&redis.url())
        .set("backends.redis.queue.items", i64::try_from(writes).unwrap() + 1_000)
        .start();
    let value = "x".repeat(256);
    let call = |number| json!({ "command": ["SET", format!("key:{number}"), value] });
    let replayed = || {
        daemon.order("/admin/backends/redis/offline");
        queue(&daemon, "redis", 0..writes, call);
        seconds(|| {
            daemon.order("/admin/backends/redis/online");
            daemon.wait_until("drained", LONG, |daemon| daemon.queued("redis", "pending") == 0);
        })
    };
    let rounds: Vec<(f64, f64)> =
        (0..DRAINS).map(|_| (pipelined(&redis, writes), replayed())).collect();
    assert_eq!(daemon.queued("redis", "dead"), 0, "all were applied");
    let a_second = |of: fn(&(f64, f64)) -> f64| {
        format!("{:.0}/s", writes as f64 / median(rounds.iter().map(of).collect()))
    };
    Figure {
        what: "queued SETs into a Redis that syncs each, of 64 in flight",
        direct: a_second(|it| it.0),
        ours: a_second(|it| it.1),
        value: median(rounds.iter().map(|it| it.0 / it.1).collect()),
        gate: Gate::AtLeast(0.6),
    }
}

fn main() -> ExitCode {
    let (mut gate, mut wanted) = (false, Vec::new());
    // Cargo itself says `--bench`.
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.as_str() {
            "--gate" => gate = true,
            "clickhouse" | "firestore" | "memory" | "drain" => wanted.push(argument),
            _ => panic!("{argument} is neither --gate nor clickhouse, firestore, memory or drain"),
        }
    }
    let runs = |part: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == part);
    let mut figures = Vec::new();
    let mut report = |part: Vec<Figure>| {
        part.iter().for_each(Figure::print);
        figures.extend(part);
    };
    let emulator = emulators()[0];
    println!("ClickHouse 18.16; Firestore emulator: {emulator:?}");
    println!("{:<44} {:>14} {:>14} {:>8} {:>8}", "", "direct", "fusebox", "ratio", "gate");
    if runs("clickhouse") {
        report(clickhouse());
    }
    if runs("firestore") {
        report(firestore(emulator));
    }
    if runs("memory") {
        report(vec![memory_of_queue()]);
    }
    if runs("drain") {
        report(vec![drain()]);
    }
    if gate && !figures.iter().all(Figure::holds) {
        println!("outside the gate");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
