//! Who is let in, and who sees what servers say: their words may quote anybody's data.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::unistd::Uid;
use serde_json::json;

use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Daemon, FUSEBOX};
use crate::support::outage::operated;
use crate::support::port::Port;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);
/// A group that no user database knows.
const CLIENTS: u32 = 2_000;
/// A user that none knows either.
const SIDECAR: u32 = 23_456;
/// What nobody else may see.
const SECRET: &str = "4111111111111111";

/// The command line of another user, with groups of its own.
struct Stranger {
    program: PathBuf,
}

impl Stranger {
    /// Puts binary and socket within a stranger's reach.
    fn of(daemon: &Daemon) -> Self {
        assert!(Uid::effective().is_root(), "this test needs root: it becomes another user");
        fs::set_permissions(daemon.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        // Whatever the file lets pass, the daemon looks for itself.
        fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o666)).unwrap();
        let program = daemon.folder().join("fusebox");
        // By another process: a child of another test could hold it open for writing meanwhile.
        let copied = Command::new("cp").arg(FUSEBOX).arg(&program).status().expect("cp runs");
        assert!(copied.success());
        Self { program }
    }

    /// Runs `arguments` as a process of the first group `gid` and of `groups`: the exit code and all it said.
    fn runs(&self, daemon: &Daemon, gid: u32, groups: &[u32], arguments: &[&str]) -> (i32, String) {
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={SIDECAR}")).arg(format!("--regid={gid}"));
        match groups.as_slice() {
            [] => command.arg("--clear-groups"),
            groups => command.arg(format!("--groups={}", groups.join(","))),
        };
        command.arg(&self.program).args(arguments).env("FUSEBOX_SOCKET", daemon.socket());
        let output = command.output().expect("setpriv runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }
}

#[test]
fn a_process_is_let_in_by_the_groups_that_it_was_given() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("client_group", CLIENTS.to_string()).start();
    let stranger = Stranger::of(&daemon);
    let calls = |gid: u32, groups: &[u32]| {
        let (code, said) = stranger.runs(&daemon, gid, groups, &["call", "redis", "--", "PING"]);
        assert_eq!(code == 0, !said.contains("may not call"), "{said}");
        code == 0
    };
    assert!(calls(CLIENTS, &[]), "its first group");
    assert!(calls(SIDECAR, &[7, CLIENTS, 9]), "one of its others");
    let many: Vec<u32> = (10_000..10_500).chain([CLIENTS]).collect();
    assert!(calls(SIDECAR, &many), "one of very many");
    assert!(!calls(SIDECAR, &[7, 9]), "no group of ours");
    // The same user and the same first group as the one that was let in: nothing is remembered of that.
    assert!(!calls(SIDECAR, &[]), "a right that was given up");
}

#[test]
fn the_overflow_group_lets_nobody_in() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("client_group", "65534").start();
    let stranger = Stranger::of(&daemon);
    let (code, said) = stranger.runs(&daemon, 65_534, &[], &["call", "redis", "--", "PING"]);
    assert!(code != 0 && said.contains("may not call"), "{said}");
    assert!(daemon.log_text().contains("every group that is not known here"));
}

/// A ClickHouse with a queued insert that it refuses in words which quote the row.
fn refused_insert(builder: Builder, server: &mut ClickHouse) -> Daemon {
    let daemon = builder
        .set("backends.clickhouse.url", server.url())
        .set("backends.clickhouse.timeout", "3s")
        .set("backends.clickhouse.breaker.recovery_timeout", "300ms")
        .set("client_group", CLIENTS.to_string())
        .start();
    server.query("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id");
    server.kill_9();
    let insert = json!({
        "query": "INSERT INTO t FORMAT JSONEachRow",
        "data": format!("{{\"id\":\"card={SECRET}\"}}\n"),
        "options": { "min_ack": "durable" },
    });
    let queued = daemon.call("clickhouse", insert);
    assert_eq!(queued.status, 202, "{}", queued.body);
    server.restart();
    daemon.wait_until("it is refused", LONG, |daemon| daemon.queued("clickhouse", "dead") == 1);
    daemon
}

#[test]
fn what_a_server_says_of_a_callers_data_is_for_admins_alone() {
    let mut server = ClickHouse::start(Engine::Old);
    let port = Port::lease();
    let listen = port.address().to_string();
    let daemon =
        refused_insert(Builder::default().set("http.listen", listen.as_str()), &mut server);
    let stranger = Stranger::of(&daemon);
    let op_id =
        daemon.get("/v1/backends/clickhouse/queue?state=dead").1["calls"][0]["op_id"].clone();
    let op_id = op_id.as_str().unwrap();
    for command in [
        "queue ls --dead",
        "queue ls --dead --json",
        &format!("queue show {op_id}"),
        "explain clickhouse",
        "explain clickhouse --json",
        "status",
        "status --json",
        "events",
        "events --json --limit 1000",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        let (code, said) = stranger.runs(&daemon, CLIENTS, &[], &words);
        assert_eq!(code, 0, "{command}: {said}");
        assert!(!said.contains("card="), "{command}: {said}");
    }
    let (_, said) = stranger.runs(&daemon, CLIENTS, &[], &["queue", "ls", "--dead"]);
    assert!(said.contains("rejected: ") && said.contains("the backend refuses it"), "{said}");
    // Over TCP without a token.
    let mut stream = TcpStream::connect(port.address()).unwrap();
    let head =
        format!("GET /health/resilience HTTP/1.1\r\nhost: {listen}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut view = String::new();
    stream.read_to_string(&mut view).unwrap();
    assert!(view.contains("\"dead_letters\":1") && !view.contains("card="), "{view}");
    // Nor does the log have it, nor the journal on the disk.
    assert!(!daemon.log_text().contains("card="), "{}", daemon.log_text());
    let journal = fs::read_to_string(daemon.state_dir().join("events.jsonl")).unwrap();
    assert!(journal.contains("dead_letter") && !journal.contains("card="), "{journal}");
    // An admin sees it, also after a restart.
    let mut daemon = daemon;
    for _ in 0..2 {
        let said = daemon.fusebox(&["queue", "show", op_id]);
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.contains(&format!("card={SECRET}")), "{said}");
        daemon.restart();
        fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o666)).unwrap();
        daemon.wait_until("it is open", LONG, |daemon| daemon.queued("clickhouse", "dead") == 1);
        let (_, said) = stranger.runs(&daemon, CLIENTS, &[], &["queue", "ls", "--dead"]);
        assert!(!said.contains("card=") && said.contains(op_id), "{said}");
    }
}
