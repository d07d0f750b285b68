//! What our own HTTP/1 pool and gRPC channel gain over the libraries' clients.
//!
//! The sides of a comparison are measured in turns, in one process, over the same sockets. A ratio is the median of the
//! ratios to the first side within a round; half of the rounds had one in the *middle half*. The last side of most is a
//! whole call through the daemon (a release build), on a kept connection to its API, always to a real server: a *share*
//! is what a side takes more than the first, in parts of a whole call. *A call* of many callers is the time that passed
//! divided by the calls. *Processor* is the time that the callers' threads used for a call, or that the daemon did.
//!
//! HTTP/1, a request of a few bytes (and a large answer):
//! - *the pool*: `src/net/http1.rs`;
//! - *connections in tasks*: a minimal pool whose connections have tasks of their own;
//! - *hyper-util*: its `legacy::Client`.
//!
//! The servers are one that costs next to nothing, and Debian's `ClickHouse` 18.16. gRPC: `src/net/grpc.rs` beside
//! `tonic::transport::Channel`, at a server of h2's and at an emulator.
//!
//! `cargo bench -p fusebox --bench transports`; `http1` and `grpc` run those alone.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a benchmark reports on stdout, and stops at the first error"
)]
#![expect(clippy::duplicate_mod, reason = "the daemon's tests have the ports of `tests/it`, too")]

use std::os::unix::net::UnixStream;

use serde_json::json;

#[path = "backends/http.rs"]
mod client;
#[path = "transports/grpc.rs"]
mod grpc;
#[path = "transports/http1.rs"]
mod http1;
#[path = "transports/rounds.rs"]
mod rounds;
#[path = "transports/servers.rs"]
mod servers;
#[expect(dead_code, reason = "another benchmark needs more of it")]
#[path = "backends/stub.rs"]
mod stub;
#[expect(dead_code, reason = "another benchmark needs more of it")]
#[path = "backends/turns.rs"]
mod turns;

/// What is measured, as the daemon has it: it is no part of the library's interface.
#[expect(
    dead_code,
    unused_imports,
    reason = "the daemon needs more of it, and its tests are not run here"
)]
#[path = "../src/net"]
mod net {
    pub(crate) mod dial;
    pub(crate) mod endpoint;
    pub(crate) mod grpc;
    pub(crate) mod http1;
    pub(crate) mod http1_dial;
    pub(crate) mod test_port;
    pub(crate) mod testing;
    pub(crate) mod tls;
}

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
}

use client::Http;
use http1::{Question, Spawning};
use rounds::{Side, compare, of_tasks, of_threads, runtime};
use servers::LARGE;
use stub::Stub;
use support::{
    clickhouse::{ClickHouse, Engine},
    daemon::{Builder, Daemon},
    firestore::{Firestore, emulators},
};
use tokio::runtime::Runtime;

/// How many ask at once.
const CALLERS: [usize; 2] = [1, 50];
const INSERT: &str = "/?query=INSERT%20INTO%20bench%20FORMAT%20TabSeparated";

/// The ways over HTTP/1 to put a question to the server on `port`.
fn ways<'a>(runtime: &'a Runtime, port: u16, path: &str, body: &'static str) -> Vec<Side<'a>> {
    let question = Question::new(port, path, body);
    let (pool, legacy) = (http1::pool(port), http1::legacy(port));
    let spawning = Spawning::new(port);
    let asked = [(); 3].map(|()| question.clone());
    let [first, second, third] = asked;
    vec![
        of_tasks("the pool", runtime, move || http1::by_pool(pool.clone(), first.clone())),
        of_tasks("connections in tasks", runtime, move || spawning.clone().ask(second.clone())),
        of_tasks("hyper-util", runtime, move || http1::by_legacy(legacy.clone(), third.clone())),
    ]
}

/// A whole call through the daemon.
fn whole<'a>(daemon: &'a Daemon, path: &'a str, body: String) -> Side<'a> {
    let connect = || Http::new(UnixStream::connect(daemon.socket()).expect("the daemon listens"));
    let process = daemon.id().to_string();
    of_threads("a whole call", process, connect, move |http| assert!(http.post(path, &body) > 0))
}

fn http1() {
    let runtime = runtime();
    let stub = servers::http();
    let server = ClickHouse::start(Engine::Old);
    server.query("CREATE TABLE bench (k UInt32, v UInt64) ENGINE = Null");
    let daemon = Builder::default().set("backends.clickhouse.url", server.url()).start();
    let read = json!({ "query": "SELECT 1 FORMAT TabSeparated" }).to_string();
    let call = "/v1/backends/clickhouse/call";
    for callers in CALLERS {
        let mut sides = ways(&runtime, stub, "/?database=default", "SELECT 1");
        sides.push(whole(&daemon, call, read.clone()));
        compare("HTTP/1, SELECT 1, a server that costs nothing", callers, sides);
        let mut sides = ways(&runtime, stub, "/pieces?database=default", "SELECT 1");
        sides.push(whole(&daemon, call, read.clone()));
        compare("HTTP/1, SELECT 1, the same, its answer in three pieces", callers, sides);
        let mut sides = ways(&runtime, server.port(), "/?database=default", "SELECT 1");
        sides.push(whole(&daemon, call, read.clone()));
        compare("HTTP/1, SELECT 1, ClickHouse", callers, sides);
        let mut sides = ways(&runtime, server.port(), INSERT, "1\t2\n");
        sides.push(whole(&daemon, call, read.clone()));
        compare("HTTP/1, INSERT into Null, ClickHouse; whole: SELECT 1", callers, sides);
    }
    let large = format!("SELECT number FROM system.numbers LIMIT {} FORMAT RowBinary", LARGE / 8);
    let mut sides = ways(&runtime, stub, "/large", "SELECT 1");
    sides.push(whole(&daemon, "/v1/backends/clickhouse/call/raw", large));
    compare("HTTP/1, an answer of 16 MiB, a server that costs nothing", 1, sides);
}

fn grpc() {
    let runtime = runtime();
    let stub = servers::grpc();
    let emulator = emulators()[0];
    println!("Firestore emulator: {emulator:?}");
    let server = Firestore::start(emulator);
    // It also warms the server up.
    Stub::at(server.port()).commits("bench", 2_000, 1);
    let daemon = Builder::default()
        .set("backends.firestore.url", server.url())
        .set("backends.firestore.project", "fusebox")
        .start();
    let call = json!({ "op": "get", "path": "bench/d0" }).to_string();
    // So many that the emulator's machine has compiled what they need.
    let mut http = Http::new(UnixStream::connect(daemon.socket()).expect("the daemon listens"));
    (0..5_000).for_each(|_| assert!(http.post("/v1/backends/firestore/call", &call) > 0));
    for callers in CALLERS {
        for (what, port) in [
            ("gRPC, a get, a server that costs little", stub),
            ("gRPC, a get, the emulator", server.port()),
        ] {
            // A channel's connection belongs to the runtime.
            let (ours, tonics) = runtime.block_on(async { (grpc::ours(port), grpc::tonics(port)) });
            let sides = vec![
                of_tasks("our channel", &runtime, move || grpc::get(ours.clone())),
                of_tasks("tonic's", &runtime, move || grpc::get(tonics.clone())),
                whole(&daemon, "/v1/backends/firestore/call", call.clone()),
            ];
            compare(what, callers, sides);
        }
    }
}

fn main() {
    let parts: [(&str, fn()); 2] = [("http1", http1), ("grpc", grpc)];
    // Cargo itself says `--bench`; there is no gate.
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|it| it != "--bench" && it != "--gate").collect();
    for wanted in &wanted {
        assert!(parts.iter().any(|(name, _)| name == wanted), "{wanted} is no part");
    }
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run();
        }
    }
}
