//! The Firestore door with stock clients, which know nothing of it but its address.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use toml::{Table, Value};

use crate::support::daemon::{Builder, Daemon};
use crate::support::firestore::{Emulator, Firestore, emulators};
use crate::support::poll::eventually;
use crate::support::port::Port;
use crate::support::proc::venv_python;
use crate::support::tls::{Authority, TlsFront, TokenServer};

const LONG: Duration = Duration::from_secs(60);
/// The project that an emulator is given where none is named.
const PROJECT: &str = "fusebox-local";

/// A program that uses a client, and what tells it how.
#[derive(Clone, Copy, Debug)]
enum Stock {
    Python,
    AsyncPython,
    Node,
}

impl Stock {
    #[track_caller]
    fn run(self, door: &Port, phase: &str) {
        let (program, script, how) = match self {
            Self::Python => (venv_python().into_os_string(), "firestore_door.py", "sync"),
            Self::AsyncPython => (venv_python().into_os_string(), "firestore_door.py", "async"),
            Self::Node => ("node".into(), "firestore_door.mjs", "sync"),
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(script);
        let output = Command::new(program)
            .arg(script)
            .args([PROJECT, phase, how])
            .env("FIRESTORE_EMULATOR_HOST", door.address().to_string())
            .env("GRPC_VERBOSITY", "NONE")
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{self:?} {phase}: {said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{self:?} {phase}: {said}");
    }
}

/// A daemon with a door to the emulator. Its breaker opens at the first failure and stays open until it is told.
fn daemon(firestore: &Firestore, door: &Port) -> Builder {
    let table = Table::from_iter([
        ("backend".to_owned(), Value::from("firestore")),
        ("listen".to_owned(), Value::from(door.address().to_string())),
        ("auth".to_owned(), Value::from("open")),
    ]);
    Builder::default()
        .set("backends.firestore.url", firestore.url())
        .set("backends.firestore.timeout", "2s")
        .set("doors", Value::Array(vec![table.into()]))
        .set("health.interval", "1h")
        .set("backends.firestore.breaker.failure_threshold", 1)
        .set("backends.firestore.breaker.failure_rate", 0.0)
        .set("backends.firestore.breaker.recovery_timeout", "4m")
}

/// Lets the daemon find out that the emulator is there. One that has just begun to listen may still be slow.
fn recover(daemon: &Daemon) {
    let get = serde_json::json!({ "op": "get", "path": "people/nobody" });
    eventually("the emulator answers, and its breaker is closed", LONG, || {
        if daemon.breaker("firestore") == "OPEN" {
            let body = serde_json::json!({ "backend": "firestore" });
            let (status, body) = daemon.post("/admin/resilience/force-recovery", body);
            assert_eq!(status, 200, "{body}");
        }
        let answer = daemon.call("firestore", get.clone());
        let is_live = answer.status == 200 && answer.body["source"] == "live";
        is_live && daemon.breaker("firestore") == "CLOSED"
    });
}

/// Uses a client before, during and after the emulator is killed, and frozen.
fn through_outages(emulator: Emulator, clients: &[Stock]) {
    let mut firestore = Firestore::start(emulator);
    let door = Port::lease();
    let daemon = daemon(&firestore, &door).start();
    let all = |phase: &str| clients.iter().for_each(|client| client.run(&door, phase));
    recover(&daemon);
    all("live");
    firestore.kill_9();
    all("outage");
    daemon.wait_for_breaker("firestore", "OPEN", LONG);
    firestore.restart();
    recover(&daemon);
    daemon.wait_until_drained("firestore", LONG);
    all("after");
    firestore.freeze();
    let began = Instant::now();
    all("outage");
    println!("{clients:?}: told of a frozen server within {:?}", began.elapsed());
    daemon.wait_for_breaker("firestore", "OPEN", LONG);
    firestore.thaw();
    recover(&daemon);
    daemon.wait_until_drained("firestore", LONG);
    all("after");
}

#[test]
fn what_was_acknowledged_in_an_outage_survives_the_daemon() {
    for emulator in emulators() {
        let mut firestore = Firestore::start(emulator);
        let door = Port::lease();
        let mut daemon = daemon(&firestore, &door).start();
        let all = |phase: &str| {
            for client in [Stock::Python, Stock::AsyncPython, Stock::Node] {
                client.run(&door, phase);
            }
        };
        recover(&daemon);
        all("live");
        firestore.kill_9();
        all("outage");
        daemon.kill_9();
        daemon.restart();
        all("still");
        // The emulator holds nothing any more: what is there afterwards comes from the queue.
        firestore.restart();
        recover(&daemon);
        daemon.wait_until_drained("firestore", LONG);
        all("after");
    }
}

#[test]
fn googles_python_client_goes_through_outages() {
    for emulator in emulators() {
        through_outages(emulator, &[Stock::Python]);
    }
}

#[test]
fn googles_asynchronous_python_client_goes_through_outages() {
    through_outages(Emulator::Npm, &[Stock::AsyncPython]);
}

#[test]
fn googles_node_client_goes_through_outages() {
    for emulator in emulators() {
        through_outages(emulator, &[Stock::Node]);
    }
}

#[test]
fn clients_that_know_no_tls_and_no_credentials_reach_a_server_that_wants_both() {
    let firestore = Firestore::start(emulators().remove(0));
    let (authority, tokens) = (Authority::new("own"), TokenServer::start());
    let front = TlsFront::start(firestore.port(), &authority.sign());
    let door = Port::lease();
    let daemon = daemon(&firestore, &door)
        .set("backends.firestore.url", format!("https://{}", front.address()))
        .set("backends.firestore.project", PROJECT)
        .set("backends.firestore.credentials_file", authority.service_account(&tokens))
        .set("backends.firestore.tls.ca_file", authority.file())
        // The first ping of a server that has just begun to listen may be slow.
        .set("health.timeout", "20s")
        .start();
    recover(&daemon);
    // Of a service nobody knows what an earlier run left: its first write waits.
    daemon
        .call("firestore", serde_json::json!({ "op": "set", "path": "a/b", "data": {} }))
        .assert_acknowledged();
    daemon.wait_until_drained("firestore", LONG);
    for client in [Stock::Python, Stock::AsyncPython, Stock::Node] {
        client.run(&door, "live");
    }
    assert!(tokens.given() > 0, "the daemon spoke with a token of the account's");
}

#[test]
fn a_door_is_shown_and_counted() {
    let firestore = Firestore::start(Emulator::Npm);
    let door = Port::lease();
    let daemon = daemon(&firestore, &door).start();
    recover(&daemon);
    Stock::AsyncPython.run(&door, "live");
    let count = |class, source| {
        daemon.metric("door_commands_total", &[("class", class), ("source", source)])
    };
    assert!(count("write", "live") >= 100.0);
    assert!(count("read", "live") >= 2.0);
    eventually("its client is gone", LONG, || {
        let (_, shown) = daemon.get("/health/resilience");
        shown["doors"][0]["kind"] == "firestore" && shown["doors"][0]["connections_open"] == 0
    });
}
