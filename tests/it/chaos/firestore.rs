//! What faults do to Firestore, through the JSON API and through the door with a stock client.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use toml::{Table, Value};

use super::{LONG, always, clear, hits};
use crate::support::daemon::{Builder, Daemon};
use crate::support::firestore::{Emulator, Firestore};
use crate::support::poll::eventually;
use crate::support::port::Port;
use crate::support::proc::venv_python;

/// Sets, then reads a document, through a stock client; prints what it read, or the class of its error.
const CLIENT: &str = r#"
import sys
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore
db = firestore.Client(project="fusebox-local", credentials=AnonymousCredentials())
at = db.document("chaos/door")
try:
    if sys.argv[1] == "set":
        at.set({"v": int(sys.argv[2])}, timeout=5, retry=None)
    print(at.get(timeout=5, retry=None).to_dict()["v"])
except (GoogleAPICallError, RetryError) as error:
    print(type(error).__name__)
"#;

struct World {
    _server: Firestore,
    daemon: Daemon,
    port: Port,
}

impl World {
    fn start() -> Self {
        let (server, port) = (Firestore::start(Emulator::Npm), Port::lease());
        let door = Table::from_iter([
            ("backend".to_owned(), Value::from("firestore")),
            ("listen".to_owned(), Value::from(port.address().to_string())),
            ("auth".to_owned(), Value::from("open")),
        ]);
        let daemon = Builder::default()
            .set("backends.firestore.url", server.url())
            .set("backends.firestore.timeout", "2s")
            .set("backends.firestore.breaker.failure_threshold", 100_000)
            .set("doors", Value::Array(vec![door.into()]))
            .set("health.interval", "1h")
            .start();
        let world = Self { _server: server, daemon, port };
        eventually("the emulator answers", LONG, || world.read("chaos/none").0 == 200);
        world
    }

    fn write(&self, path: &str, value: u64) -> (u16, serde_json::Value) {
        let call = json!({ "op": "set", "path": path, "data": { "v": value } });
        let reply = self.daemon.call("firestore", call);
        (reply.status, reply.body)
    }

    fn read(&self, path: &str) -> (u16, serde_json::Value) {
        let reply = self.daemon.call("firestore", json!({ "op": "get", "path": path }));
        (reply.status, reply.body)
    }

    fn client(&self, arguments: &[&str]) -> String {
        let output = Command::new(venv_python())
            .args(["-c", CLIENT])
            .args(arguments)
            .env("FIRESTORE_EMULATOR_HOST", self.port.address().to_string())
            .env("GRPC_VERBOSITY", "NONE")
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

#[test]
fn each_kind_strikes_json_calls_and_the_last_write_is_what_is_read() {
    let world = World::start();
    let kinds = ["error", "reset_before", "stale_connection", "timeout", "reset_after"];
    for (value, kind) in (1..).zip(kinds) {
        always(&world.daemon, "firestore", json!({ "kind": kind, "class": "write" }));
        let (status, body) = world.write("chaos/json", value);
        assert!(matches!(status, 200 | 202), "{kind}: {status} {body}");
        assert!(hits(&world.daemon, "firestore") > 0, "{kind}");
        clear(&world.daemon, "firestore");
        world.daemon.wait_until_drained("firestore", LONG);
        eventually("it is what is read", LONG, || {
            let (status, body) = world.read("chaos/json");
            status == 200 && body["source"] == "live" && body["value"]["data"]["v"] == value
        });
        assert_eq!(world.daemon.queued("firestore", "dead"), 0, "{kind}");
    }
    always(&world.daemon, "firestore", json!({ "kind": "reject" }));
    let (status, body) = world.write("chaos/json", 99);
    assert_eq!((status, &body["code"]), (422, &json!("INVALID_ARGUMENT")), "{body}");
}

#[test]
fn each_kind_strikes_what_comes_through_the_door() {
    let world = World::start();
    assert_eq!(world.client(&["set", "1"]), "1");
    always(&world.daemon, "firestore", json!({ "kind": "reject", "class": "read" }));
    assert_eq!(world.client(&["get"]), "InvalidArgument");
    clear(&world.daemon, "firestore");
    for (value, kind) in
        [("2", "error"), ("3", "reset_before"), ("4", "timeout"), ("5", "reset_after")]
    {
        always(&world.daemon, "firestore", json!({ "kind": kind, "class": "write" }));
        world.client(&["set", value]);
        assert!(hits(&world.daemon, "firestore") > 0, "{kind}");
        clear(&world.daemon, "firestore");
        world.daemon.wait_until_drained("firestore", LONG);
        eventually("it was queued or applied", LONG, || world.client(&["get"]) == value);
    }
    always(&world.daemon, "firestore", json!({ "kind": "latency", "latency": "500ms" }));
    let began = Instant::now();
    assert_eq!(world.client(&["get"]), "5");
    assert!(began.elapsed() >= Duration::from_millis(500) && hits(&world.daemon, "firestore") > 0);
}
