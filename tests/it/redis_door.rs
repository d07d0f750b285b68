//! The Redis door with stock clients, which know nothing of it but its address.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::proc::venv_python;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);

/// A program that uses a client, and what tells it which one.
struct Stock {
    program: Command,
    which: &'static str,
}

impl Stock {
    fn python(protocol: &'static str) -> Self {
        let mut program = Command::new(venv_python());
        program.arg(support("redis_client.py"));
        Self { program, which: protocol }
    }

    fn node(client: &'static str) -> Self {
        let mut program = Command::new("node");
        program.arg(support("redis_clients.mjs"));
        Self { program, which: client }
    }

    #[track_caller]
    fn run(mut self, daemon: &Daemon, phase: &str) {
        let socket = daemon.socket().with_file_name("redis.sock");
        let output = self.program.arg(socket).args([phase, self.which]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{} {phase}: {said}", self.which);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{} {phase}", self.which);
    }
}

fn support(script: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(script)
}

/// Uses a client while the server is up, through an outage in which it starts anew, and afterwards.
fn through_an_outage(client: impl Fn() -> Stock) {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    client().run(&daemon, "live");
    begin_outage(&mut redis, &daemon);
    client().run(&daemon, "outage");
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    client().run(&daemon, "after");
    assert_eq!(daemon.queued("redis", "dead"), 0);
}

#[test]
fn redis_py_speaks_resp3_through_an_outage() {
    through_an_outage(|| Stock::python("3"));
}

#[test]
fn redis_py_speaks_resp2_through_an_outage() {
    through_an_outage(|| Stock::python("2"));
}

#[test]
fn ioredis_works_through_an_outage() {
    through_an_outage(|| Stock::node("ioredis"));
}

#[test]
fn node_redis_works_through_an_outage() {
    through_an_outage(|| Stock::node("node_redis"));
}
