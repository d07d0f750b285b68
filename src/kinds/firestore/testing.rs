//! Real emulators for tests: each on its own port, gone with the value.
//!
//! Google's is a jar of its SDK (`FUSEBOX_TEST_FIRESTORE_JAR` names it elsewhere); the other one is from
//! npm. Both keep everything in memory. The npm one applies the writes of a commit one by one and gives no
//! resume tokens: what needs more is tested against Google's alone, and says so.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::connector::{Access, Attempt, Attempted, Connector, Origin, Plan};
use fusebox_state::{OpId, UnixMillis};
use serde_json::Value as Json;
use tokio::{net::TcpStream, sync::watch, time::Instant};

use super::{
    connector::FirestoreConnector,
    protocol::json::{body_from_json, reply_to_json},
    settings::FirestoreSettings,
};
use crate::net::test_port::Port;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The folder of the SDK, as its packages have it.
const SDKS: [&str; 3] =
    ["/usr/lib/google-cloud-sdk", "/usr/share/google-cloud-sdk", "/opt/google-cloud-sdk"];

/// Which emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Google,
    Npm,
}

/// An emulator that runs until it is dropped.
pub(crate) struct Emulator {
    pub(crate) engine: Engine,
    child: Child,
    pub(crate) port: u16,
    _lease: Port,
}

/// Google's jar, if there is one.
fn jar() -> Option<PathBuf> {
    let named = std::env::var_os("FUSEBOX_TEST_FIRESTORE_JAR").map(PathBuf::from);
    let installed = SDKS.iter().map(|sdk| {
        PathBuf::from(sdk).join("platform/cloud-firestore-emulator/cloud-firestore-emulator.jar")
    });
    named.into_iter().chain(installed).find(|path| path.is_file())
}

impl Emulator {
    /// Every emulator that is installed; at least the npm one must be.
    pub(crate) async fn all() -> Vec<Self> {
        let mut all = vec![Self::start(Engine::Npm).await];
        all.extend(Self::google("this test's second half").await);
        all
    }

    /// Google's, or a line that says what was not run.
    pub(crate) async fn google(what: &str) -> Option<Self> {
        if jar().is_none() {
            eprintln!("NOT RUN without Google's Firestore emulator: {what}");
            return None;
        }
        Some(Self::start(Engine::Google).await)
    }

    /// Starts one, empty.
    pub(crate) async fn start(engine: Engine) -> Self {
        let lease = Port::lease();
        let port = lease.number();
        let mut child = spawn(engine, port);
        ready(&mut child, port).await;
        eprintln!("Firestore emulator: {engine:?} on port {port}");
        Self { engine, child, port, _lease: lease }
    }

    /// Settings for it, with a short timeout.
    pub(crate) fn settings(&self) -> FirestoreSettings {
        settings(self.port)
    }

    /// A connector to it.
    pub(crate) fn connector(&self) -> Arc<FirestoreConnector> {
        FirestoreConnector::new(self.settings())
    }

    /// Sends it a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(status.success());
    }

    /// Kills it; what it held is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port, empty.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.engine, self.port);
        ready(&mut self.child, self.port).await;
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(engine: Engine, port: u16) -> Child {
    let port = port.to_string();
    let mut command = match engine {
        Engine::Google => {
            let jar = jar().expect("Google's Firestore emulator is part of the Google Cloud SDK");
            let mut command = Command::new("java");
            command.args(["-Xmx512m", "-cp"]).arg(jar);
            command.arg("com.google.cloud.datastore.emulator.firestore.CloudFirestore");
            command.args(["start", "--host=127.0.0.1", &format!("--port={port}")]);
            command
        }
        Engine::Npm => {
            let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
            let installed = root.join("node_modules/@firestore-emulator/server");
            assert!(installed.is_dir(), "the npm Firestore emulator is not installed: tests/setup");
            let mut command = Command::new("node");
            command.arg(root.join("tests/support/firestore_emulator.mjs")).arg(port);
            command
        }
    };
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{engine:?} cannot be started ({error})"))
}

/// Waits until it accepts connections.
async fn ready(child: &mut Child, port: u16) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if FirestoreConnector::new(settings(port)).ping(Duration::from_secs(2)).await.result.is_ok()
        {
            return;
        }
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "the emulator ended at once: {ended:?}");
        assert!(Instant::now() < deadline, "the emulator is not ready within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Settings for an emulator on `port`.
pub(crate) fn settings(port: u16) -> FirestoreSettings {
    let url = format!("http://127.0.0.1:{port}").parse().unwrap();
    FirestoreSettings { timeout: Duration::from_secs(5), ..FirestoreSettings::new(url) }
}

/// A call's plan.
pub(crate) fn planned(connector: &FirestoreConnector, call: &Json) -> Plan {
    let body = body_from_json(call.as_object().unwrap().clone(), "").unwrap();
    connector.plan(body).unwrap()
}

/// An attempt of a planned call.
pub(crate) fn attempt(plan: &Plan, token: Option<OpId>) -> Attempt<'_> {
    let now = UnixMillis::new(0);
    Attempt {
        body: &plan.body,
        lanes: &plan.lanes,
        write: matches!(plan.access, Access::Write(_)),
        origin: Origin::Live,
        token,
        digest: 0,
        doubt: None,
        following: &[],
        streams: false,
        upload: None,
        dialect: 0,
        passage: None,
        accepted_at: now,
        now,
        timeout: Duration::from_secs(5),
        left: Duration::from_secs(5),
        fence_patience: Duration::from_secs(5),
        trace: None,
    }
}

/// Carries one call.
pub(crate) async fn call(connector: &FirestoreConnector, call: Json) -> Attempted {
    let plan = planned(connector, &call);
    connector.attempt(attempt(&plan, None)).await
}

/// The reply to a call that must be answered.
#[track_caller]
pub(crate) fn answered(ended: Attempted) -> Json {
    let reply: Bytes = ended.result.unwrap_or_else(|error| panic!("{error}"));
    reply_to_json(&reply)
}

/// The data of a document; null for none.
pub(crate) async fn data(connector: &FirestoreConnector, path: &str) -> Json {
    let get = serde_json::json!({ "op": "get", "path": path });
    answered(call(connector, get).await)["data"].clone()
}

/// A network in front of a server, which can stall. What it holds is like packets that their sender still has:
/// a reset of the connection discards them, an orderly close does not.
pub(crate) struct Network {
    pub(crate) port: u16,
    state: watch::Sender<NetworkState>,
}

#[derive(Clone, Copy, Default)]
struct NetworkState {
    /// Connections below this number are held.
    held_below: usize,
    /// The number of the next one.
    next: usize,
    /// How many bytes a second pass each way over each connection; 0 for any number.
    rate: usize,
    /// What breaks the connection over which it is sent.
    poison: Option<&'static str>,
}

impl Network {
    /// A network in front of the server on `server_port`.
    pub(crate) async fn start(server_port: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = watch::Sender::new(NetworkState::default());
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = shared.borrow().next;
                shared.send_modify(|state| state.next += 1);
                let shared = shared.clone();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)).await else {
                        return;
                    };
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    let (up, down) = (shared.subscribe(), shared.subscribe());
                    tokio::select! {
                        () = pass(&client, &server, number, up) => {}
                        () = pass(&server, &client, number, down) => {}
                    }
                });
            }
        });
        Self { port, state }
    }

    /// Holds everything on the connections that are there; new ones pass.
    pub(crate) fn hold(&self) {
        self.state.send_modify(|state| state.held_below = state.next);
    }

    /// Holds nothing any more.
    pub(crate) fn release(&self) {
        self.state.send_modify(|state| state.held_below = 0);
    }

    /// Passes so many bytes a second each way over each connection.
    pub(crate) fn slow_down(&self, rate: usize) {
        self.state.send_modify(|state| state.rate = rate);
    }

    /// Breaks each connection over which `poison` is sent.
    pub(crate) fn break_on(&self, poison: &'static str) {
        self.state.send_modify(|state| state.poison = Some(poison));
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.state.borrow().next
    }
}

/// Carries bytes one way until either side is gone, unless the connection is held.
async fn pass(
    from: &TcpStream,
    to: &TcpStream,
    number: usize,
    mut state: watch::Receiver<NetworkState>,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut seen = Vec::new();
    loop {
        from.readable().await.unwrap();
        state.wait_for(|state| number >= state.held_below).await.unwrap();
        let reset = |socket: &TcpStream| socket.take_error().unwrap().is_some();
        if reset(from) || reset(to) {
            return;
        }
        let mut left: &[u8] = match from.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        let NetworkState { rate, poison, .. } = *state.borrow();
        if let Some(poison) = poison {
            // It may be split over two reads.
            seen.drain(..usize::saturating_sub(seen.len(), poison.len()));
            seen.extend_from_slice(left);
            if seen.windows(poison.len()).any(|part| part == poison.as_bytes()) {
                return;
            }
        }
        if let Some(micros) = (left.len() * 1_000_000).checked_div(rate) {
            tokio::time::sleep(Duration::from_micros(micros as u64)).await;
        }
        while !left.is_empty() {
            to.writable().await.unwrap();
            match to.try_write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}
