//! The Firestore door with stock clients, which know nothing of it but its address.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use toml::{Table, Value};

use crate::support::daemon::{Builder, Daemon};
use crate::support::firestore::{Emulator, Firestore, emulators};
use crate::support::poll::eventually;
use crate::support::port::Port;
use crate::support::proc::venv_python;
use crate::support::relay::Relay;
use crate::support::tls::{Authority, TlsFront, TokenServer};

const LONG: Duration = Duration::from_secs(60);
/// The project that an emulator is given if none is named.
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

/// A daemon with a door to the emulator. Its breaker opens at the first failure and stays open until an operator closes
/// it.
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

type View = BTreeMap<String, u64>;

/// A program that listens to the documents of a collection, and to one of them.
struct Listener {
    stock: Stock,
    process: Child,
    heard: Arc<Mutex<Vec<serde_json::Value>>>,
    reader: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(stock: Stock, door: &Port) -> Self {
        let support = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
        let (program, script) = match stock {
            Stock::Node => ("node".into(), "firestore_listener.mjs"),
            Stock::Python | Stock::AsyncPython => {
                (venv_python().into_os_string(), "firestore_listener.py")
            }
        };
        let mut process = Command::new(program)
            .arg(support.join(script))
            .arg(PROJECT)
            .env("FIRESTORE_EMULATOR_HOST", door.address().to_string())
            .env("GRPC_VERBOSITY", "NONE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        let heard = Arc::<Mutex<Vec<serde_json::Value>>>::default();
        let told = Arc::clone(&heard);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                told.lock().push(serde_json::from_str(&line).expect("a line of JSON"));
            }
        });
        Self { stock, process, heard, reader: Some(reader) }
    }

    /// The views that it received, in order.
    fn views(&self, who: &str) -> Vec<View> {
        let heard = self.heard.lock();
        let views = heard.iter().filter(|said| said["who"] == who);
        views.map(|said| serde_json::from_value(said["view"].clone()).unwrap()).collect()
    }

    fn sees(&self, view: &View) {
        let mut document = view.clone();
        document.retain(|name, _| name == "a");
        for (who, view) in [("query", view), ("document", &document)] {
            eventually(&format!("{:?} sees {view:?} by its {who}", self.stock), LONG, || {
                self.views(who).last() == Some(view)
            });
        }
    }

    /// Ends it. Whatever it received went forwards, and none of it was an error.
    fn ends(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().expect("its end").success());
        self.reader.take().map(JoinHandle::join).transpose().expect("its output");
        let heard = self.heard.lock().clone();
        assert!(heard.iter().all(|said| said.get("error").is_none()), "{heard:?}");
        for who in ["query", "document"] {
            let mut latest = View::new();
            let mut before = None;
            for view in self.views(who) {
                for (name, n) in &view {
                    let known = latest.entry(name.clone()).or_default();
                    assert!(n >= known, "{:?}: {who} goes backwards: {heard:?}", self.stock);
                    *known = *n;
                }
                assert_ne!(before.as_ref(), Some(&view), "{:?}: twice: {heard:?}", self.stock);
                before = Some(view);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Writes at the server itself: `None` deletes.
#[track_caller]
fn write_directly(firestore: &Firestore, view: &mut View, writes: &[(&str, Option<u64>)]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/firestore_listener.py");
    let all: BTreeMap<_, _> = writes.iter().copied().collect();
    let status = Command::new(venv_python())
        .arg(script)
        .args([PROJECT, &json!(all).to_string()])
        .env("FIRESTORE_EMULATOR_HOST", format!("127.0.0.1:{}", firestore.port()))
        .status()
        .expect("it runs");
    assert!(status.success());
    for (name, n) in all {
        match n {
            Some(n) => view.insert(name.to_owned(), n),
            None => view.remove(name),
        };
    }
}

/// Stock clients that listen to a server behind a relay.
struct Listening {
    firestore: Firestore,
    relay: Relay,
    door: Port,
    daemon: Daemon,
    view: View,
    listeners: Vec<Listener>,
}

impl Listening {
    fn start(emulator: Emulator) -> Self {
        let firestore = Firestore::start(emulator);
        let relay = Relay::start(firestore.port());
        let door = Port::lease();
        let url = format!("http://127.0.0.1:{}", relay.port());
        let daemon = daemon(&firestore, &door).set("backends.firestore.url", url).start();
        recover(&daemon);
        let (view, listeners) = (View::new(), Vec::new());
        let mut started = Self { firestore, relay, door, daemon, view, listeners };
        started.writes(&[("a", Some(1)), ("b", Some(1)), ("c", Some(1))]);
        started.begins();
        started.all_see();
        started
    }

    fn begins(&mut self) {
        let new = [Stock::Python, Stock::Node].map(|stock| Listener::start(stock, &self.door));
        self.listeners.extend(new);
    }

    fn writes(&mut self, writes: &[(&str, Option<u64>)]) {
        write_directly(&self.firestore, &mut self.view, writes);
    }

    fn all_see(&self) {
        self.listeners.iter().for_each(|listener| listener.sees(&self.view));
    }

    fn cut(&self) {
        self.relay.refuse();
        self.relay.drop_connections();
    }

    fn are_parked(&self, how_many: u8) {
        eventually(&format!("{how_many} are parked"), LONG, || {
            self.daemon.metric("door_connections", &[("mode", "parked")]) >= how_many.into()
        });
    }
}

/// Cuts the server off while clients listen, while others begin to, and while the daemon is killed. The emulators keep
/// everything in memory, so no data of theirs survives a kill: a cut takes its place.
fn listens_through_cuts(emulator: Emulator) {
    let mut world = Listening::start(emulator);
    world.cut();
    world.are_parked(2);
    world.writes(&[("a", Some(2)), ("b", None), ("d", Some(2))]);
    world.begins();
    world.are_parked(4);
    assert!(world.listeners[2..].iter().all(|it| it.heard.lock().is_empty()));
    world.relay.accept_again();
    recover(&world.daemon);
    world.all_see();
    world.daemon.kill_9();
    world.cut();
    world.writes(&[("a", Some(4)), ("e", Some(4))]);
    if emulator != Emulator::Npm {
        // The client starts again by itself, and without tokens nothing says what is gone.
        world.writes(&[("d", None)]);
    }
    world.daemon.restart();
    world.are_parked(1);
    world.relay.accept_again();
    recover(&world.daemon);
    world.all_see();
    world.listeners.into_iter().for_each(Listener::ends);
}

#[test]
fn googles_clients_listen_through_cuts() {
    listens_through_cuts(Emulator::Npm);
}

#[test]
fn googles_clients_listen_through_cuts_and_go_on_from_their_tokens() {
    let with_tokens = emulators().into_iter().filter(|emulator| *emulator != Emulator::Npm);
    with_tokens.for_each(listens_through_cuts);
}

#[test]
fn googles_clients_listen_to_a_server_that_freezes() {
    let mut world = Listening::start(emulators()[0]);
    world.firestore.freeze();
    let began = Instant::now();
    world.are_parked(2);
    println!("a frozen server was noticed within {:?}", began.elapsed());
    world.firestore.thaw();
    recover(&world.daemon);
    world.writes(&[("a", Some(3)), ("b", Some(3)), ("c", None)]);
    world.all_see();
    world.listeners.into_iter().for_each(Listener::ends);
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
