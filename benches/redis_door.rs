//! What the Redis door costs between a stock client and a real server, beside the proxies that people use.
//!
//! The load is `redis-benchmark`'s, which comes with the server: `SET` and `GET` of 100 bytes over 100,000 keys, over
//! Unix sockets. The server itself, the door (a release build, as it is installed), twemproxy (`nutcracker`) and
//! Envoy's Redis proxy are measured in turns, [`ROUNDS`] times; a figure is the median of the ratios within a round.
//! Each proxy has one worker. twemproxy and Envoy (`envoy`) are measured if they are on the `PATH`.
//!
//! Some figures are only shown: one key and a million keys, and a cache of one value, which the answers of a `GET` do
//! not fill. Queued `SET`s are measured beside the queue's store alone, with as many callers.
//!
//! `cargo bench -p fusebox --bench redis_door -- --gate` exits non-zero outside the gates. If a gate is not the goal,
//! the goal is in the row's name.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark reports on stdout, stops at the first error and sleeps in threads of its own"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Arc, mpsc},
    time::Instant,
};

use fusebox_state::{
    LaneId, Lanes, OpId, UnixMillis,
    store::{CallHeader, CallStore, Faults, NewCall, Store, StoreSettings, TokenKind, Traits},
};

#[path = "backends/figure.rs"]
mod figure;
#[path = "backends/peer.rs"]
mod peer;

/// The tests' own server and daemon.
#[expect(dead_code, unused_imports, reason = "the tests need more of it")]
#[path = "../tests/it/support"]
mod support {
    pub(crate) mod daemon;
    pub(crate) mod http;
    pub(crate) mod poll;
    pub(crate) mod port;
    pub(crate) mod proc;
}

use figure::{Figure, Gate};
use peer::Peer;
use support::{daemon::Daemon, port::Port};

const ROUNDS: usize = 7;

/// How many connections, how many commands in flight on each, how many in all.
#[derive(Clone, Copy)]
struct Load {
    clients: u32,
    pipeline: u32,
    commands: u32,
    keys: u32,
}

const BUSY: Load = Load { clients: 50, pipeline: 1, commands: 100_000, keys: 100_000 };
const DEEP: Load = Load { pipeline: 16, commands: 400_000, ..BUSY };
const ALONE: Load = Load { clients: 1, commands: 20_000, ..BUSY };
const QUEUED: Load = Load { clients: 64, commands: 30_000, ..BUSY };

/// What `redis-benchmark` has found of one command.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// Commands in a second.
    rate: f64,
    /// The median, in milliseconds.
    median: f64,
}

/// Runs `SET` and `GET` against what listens at `socket`.
fn run(socket: &Path, load: Load, tests: &str) -> BTreeMap<String, Found> {
    let output = Command::new("redis-benchmark")
        .args(["-s", socket.to_str().unwrap(), "-t", tests, "-d", "100", "--csv"])
        .args(["-c", &load.clients.to_string(), "-P", &load.pipeline.to_string()])
        .args(["-n", &load.commands.to_string(), "-r", &load.keys.to_string()])
        .output()
        .expect("redis-benchmark, which tests/setup installs with the server");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows = text.lines().filter(|line| line.starts_with('"')).skip(1);
    let found: BTreeMap<_, _> = rows
        .map(|line| {
            let columns: Vec<&str> =
                line.split(',').map(|column| column.trim_matches('"')).collect();
            let number = |at: usize| columns[at].parse::<f64>().expect("a number");
            (columns[0].to_owned(), Found { rate: number(1), median: number(4) })
        })
        .collect();
    assert_eq!(found.len(), tests.split(',').count(), "{text}");
    found
}

fn listens(socket: &PathBuf) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

impl Peer<PathBuf> {
    /// A server that keeps nothing on the disk.
    fn server(folder: &Path) -> Self {
        let socket = folder.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--unixsocket", socket.to_str().unwrap()]);
        command.args(["--save", "", "--appendonly", "no", "--dir", folder.to_str().unwrap()]);
        Self::start("redis-server", &mut command, socket, listens).expect("tests/setup installs it")
    }

    fn twemproxy(folder: &Path, server: &Path) -> Option<Self> {
        let (file, socket) = (folder.join("twemproxy.yml"), folder.join("twemproxy.sock"));
        let text = format!(
            "alpha:\n  listen: {} 0600\n  redis: true\n  server_connections: 1\n  servers:\n    - {}:1\n",
            socket.display(),
            server.display()
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new("nutcracker");
        // It insists on a port for its statistics.
        let port = Port::lease();
        let statistics = port.number().to_string();
        command.args(["-c", file.to_str().unwrap(), "-a", "127.0.0.1", "-s", &statistics]);
        Self::start("twemproxy", &mut command, socket, listens)
    }

    fn envoy(folder: &Path, server: &Path) -> Option<Self> {
        let (file, socket) = (folder.join("envoy.yaml"), folder.join("envoy.sock"));
        let text = format!(
            r#"
static_resources:
  listeners:
  - name: redis
    address: {{ pipe: {{ path: "{}" }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.redis_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
          stat_prefix: r
          settings: {{ op_timeout: 5s }}
          prefix_routes: {{ catch_all_route: {{ cluster: c }} }}
  clusters:
  - name: c
    type: STATIC
    load_assignment:
      cluster_name: c
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ pipe: {{ path: "{}" }} }} }} }}] }}]
"#,
            socket.display(),
            server.display()
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new("envoy");
        command.args(["-c", file.to_str().unwrap(), "--concurrency", "1", "--use-dynamic-base-id"]);
        Self::start("Envoy", &mut command, socket, listens)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The sides of a comparison: the server itself, the door, and the peers.
struct Sides<'a> {
    direct: &'a Path,
    door: &'a Path,
    peers: &'a [Peer<PathBuf>],
}

type Rounds = Vec<Vec<BTreeMap<String, Found>>>;

impl Sides<'_> {
    /// Measures all in turns: direct, door, peers.
    fn measure(&self, load: Load, tests: &str) -> Rounds {
        let peers = self.peers.iter().map(|peer| peer.at.as_path());
        let sides: Vec<&Path> = [self.direct, self.door].into_iter().chain(peers).collect();
        let round = || sides.iter().map(|socket| run(socket, load, tests)).collect::<Vec<_>>();
        (0..ROUNDS).map(|_| round()).collect()
    }
}

/// The median ratio of side `ours` to side `of`, of one command.
fn ratio(
    rounds: &Rounds,
    command: &str,
    (ours, of): (usize, usize),
    what: fn(&Found) -> f64,
) -> f64 {
    median(
        rounds
            .iter()
            .map(|sides| what(&sides[ours][command]) / what(&sides[of][command]))
            .collect(),
    )
}

fn figure(
    what: String,
    rounds: &Rounds,
    command: &str,
    (ours, of): (usize, usize),
    by: fn(&Found) -> f64,
    gate: Gate,
) -> Figure {
    let side = |at: usize| median(rounds.iter().map(|sides| by(&sides[at][command])).collect());
    let shown = |value: f64| {
        if value > 1_000.0 { format!("{value:.0}/s") } else { format!("{:.0} us", value * 1_000.0) }
    };
    Figure {
        what: what.leak(),
        direct: shown(side(of)),
        ours: shown(side(ours)),
        value: ratio(rounds, command, (ours, of), by),
        gate,
    }
}

fn rate(found: &Found) -> f64 {
    found.rate
}

fn latency(found: &Found) -> f64 {
    found.median
}

/// What the door answers by itself while the breaker is open, against what the server answers.
fn cached(daemon: &Daemon, direct: &Path, door: &Path) -> Figure {
    let load = Load { commands: 50_000, ..BUSY };
    let one = |socket: &Path| {
        let output = Command::new("redis-benchmark")
            .args(["-s", socket.to_str().unwrap(), "-c", "50", "-n", &load.commands.to_string()])
            .args(["--csv", "GET", "cached"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let row = text.lines().filter(|line| line.starts_with('"')).nth(1).expect("a row");
        row.split(',').nth(1).unwrap().trim_matches('"').parse::<f64>().unwrap()
    };
    let set = ["-s", direct.to_str().unwrap(), "SET", "cached", &"x".repeat(100)];
    assert!(Command::new("redis-cli").args(set).status().unwrap().success());
    one(door);
    let direct: Vec<f64> = (0..ROUNDS).map(|_| one(direct)).collect();
    daemon.order("/admin/backends/redis/offline");
    let ours: Vec<f64> = (0..ROUNDS).map(|_| one(door)).collect();
    daemon.order("/admin/backends/redis/online");
    let ratios = ours.iter().zip(&direct).map(|(ours, direct)| ours / direct).collect();
    Figure {
        what: "GET from the cache, offline, 50 clients (1.5)",
        direct: format!("{:.0}/s", median(direct)),
        ours: format!("{:.0}/s", median(ours)),
        value: median(ratios),
        gate: Gate::AtLeast(1.5),
    }
}

/// How many calls a second the store of a queue takes from as many callers, without a daemon.
fn store_alone(folder: &Path) -> f64 {
    let dir = tempfile::tempdir_in(folder).unwrap();
    let opened = Store::open(StoreSettings {
        dir: dir.path().to_owned(),
        target: "redis://bench:6379/0".into(),
        disk_floor: 1,
        unix_now: Arc::new(|| UnixMillis::new(1_790_000_000_000)),
        on_event: Arc::new(|_| ()),
        packed: false,
        faults: Faults::default(),
    });
    let store = opened.expect("a store").store;
    let (done, ended) = mpsc::channel();
    let began = Instant::now();
    for seq in 1..=u64::from(QUEUED.commands) {
        if seq > u64::from(QUEUED.clients) {
            ended.recv().unwrap();
        }
        let call = NewCall {
            seq,
            header: CallHeader {
                op_id: OpId::from_u128(seq.into()),
                digest: seq,
                uid: 0,
                lanes: Lanes::One(LaneId(seq.wrapping_mul(0x9E37_79B9_7F4A_7C15))),
                token: TokenKind::Absolute,
                traits: Traits::of(true, false),
                accepted_at: UnixMillis::new(1_790_000_000_000),
            },
            target: "redis://bench:6379/0".into(),
            label: format!("SET key:{seq:012}").into(),
            traceparent: None,
            note: None,
            body: vec![b'x'; 150].into(),
        };
        let done = done.clone();
        store.append(
            call,
            Box::new(move |stored| {
                stored.expect("it is stored");
                done.send(()).unwrap();
            }),
        );
    }
    (0..QUEUED.clients).for_each(|_| ended.recv().unwrap());
    f64::from(QUEUED.commands) / began.elapsed().as_secs_f64()
}

/// What the door queues while the backend is offline, against what the store takes.
fn queued(daemon: &Daemon, folder: &Path, door: &Path) -> Figure {
    daemon.order("/admin/backends/redis/offline");
    let (mut alone, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(store_alone(folder));
        ours.push(run(door, QUEUED, "set")["SET"].rate);
    }
    let calls = ROUNDS as u64 * u64::from(QUEUED.commands);
    let waiting = daemon.queued("redis", "pending");
    assert!(waiting >= calls, "{waiting} of {calls} are queued");
    let ratios = ours.iter().zip(&alone).map(|(ours, alone)| ours / alone).collect();
    Figure {
        what: "SET that is queued, 64 clients (0.8)",
        direct: format!("{:.0}/s", median(alone)),
        ours: format!("{:.0}/s", median(ours)),
        value: median(ratios),
        gate: Gate::AtLeast(0.8),
    }
}

/// Figures that have no gate, against the server.
fn shown(direct: &Path, door: &Path, loads: &[(&str, Load)]) -> Vec<Figure> {
    let sides = Sides { direct, door, peers: &[] };
    let mut figures = Vec::new();
    for (name, load) in loads {
        let rounds = sides.measure(*load, "set,get");
        for command in ["SET", "GET"] {
            let what = format!("{command}, 50 clients, {name}");
            figures.push(figure(what, &rounds, command, (1, 0), rate, Gate::None));
        }
    }
    figures
}

fn main() -> ExitCode {
    let gate = std::env::args().any(|argument| argument == "--gate");
    let folder = tempfile::tempdir().unwrap();
    let redis = Peer::server(folder.path());
    let direct = redis.at.clone();
    let url = format!("unix://{}", direct.display());
    let daemon = Daemon::with_redis(&url).set("backends.redis.queue.items", 1_000_000).start();
    let door = daemon.socket().with_file_name("redis.sock");
    let peers: Vec<Peer<PathBuf>> =
        [Peer::twemproxy(folder.path(), &direct), Peer::envoy(folder.path(), &direct)]
            .into_iter()
            .flatten()
            .collect();
    let sides = Sides { direct: &direct, door: &door, peers: &peers };
    let mut figures = Vec::new();
    // Name, load, its gates beside the server, twemproxy and Envoy.
    let loads = [
        ("50 clients (1.15)", BUSY, 1.0, 0.95, 1.25),
        ("50 clients, 16 in flight (0.45)", DEEP, 0.35, 1.2, 1.9),
    ];
    for (name, load, alone, twemproxy, envoy) in loads {
        let rounds = sides.measure(load, "set,get");
        for command in ["SET", "GET"] {
            let what = format!("{command}, {name}");
            figures.push(figure(what, &rounds, command, (1, 0), rate, Gate::AtLeast(alone)));
            for (at, peer) in peers.iter().enumerate() {
                let least = if peer.name == "Envoy" { envoy } else { twemproxy };
                let what = format!("  beside {}", peer.name);
                figures.push(figure(
                    what,
                    &rounds,
                    command,
                    (1, at + 2),
                    rate,
                    Gate::AtLeast(least),
                ));
            }
        }
    }
    let rounds = sides.measure(ALONE, "set,get");
    for command in ["SET", "GET"] {
        let what = format!("{command}, 1 client, median (1.7)");
        figures.push(figure(what, &rounds, command, (1, 0), latency, Gate::AtMost(1.9)));
        for (at, peer) in peers.iter().enumerate() {
            let what = format!("  beside {}", peer.name);
            figures.push(figure(what, &rounds, command, (1, at + 2), latency, Gate::None));
        }
    }
    figures.push(cached(&daemon, &direct, &door));
    let keys = |keys| Load { keys, ..BUSY };
    let loads = [("one key", keys(1)), ("a million keys", keys(1_000_000))];
    figures.extend(shown(&direct, &door, &loads));
    {
        let unfilled = Daemon::with_redis(&url).set("backends.redis.cache.items", 1).start();
        let door = unfilled.socket().with_file_name("redis.sock");
        figures.extend(shown(&direct, &door, &[("a cache of one value", BUSY)]));
    }
    figures.push(queued(&daemon, folder.path(), &door));
    println!("{:<44} {:>14} {:>14} {:>8} {:>8}", "", "other", "door", "ratio", "gate");
    figures.iter().for_each(Figure::print);
    let outside = figures.iter().filter(|figure| !figure.holds()).count();
    println!("{} figures, {outside} outside their gates", figures.len());
    if gate && outside > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
