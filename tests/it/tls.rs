//! TLS between the daemon and each kind of backend: OpenSSL in front of the real servers, with authorities of
//! the test's own. Firestore over TLS wants credentials: a service account whose tokens come from the test.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client, Daemon, Reply};
use crate::support::firestore::{Firestore, emulators};
use crate::support::outage::operated;
use crate::support::port::Port;
use crate::support::proc::require;
use crate::support::raw::call_raw;
use crate::support::redis::RedisServer;
use crate::support::tls::{Authority, TlsFront, TokenServer};

const LONG: Duration = Duration::from_secs(60);
const ALL: [&str; 3] = ["clickhouse", "firestore", "redis"];
/// The emulators' own user.
const PROJECT: &str = "fusebox-local";

/// One server of each kind, each behind TLS, and `plain`, the same Redis without it.
struct World {
    clickhouse: ClickHouse,
    _firestore: Firestore,
    redis: RedisServer,
    fronts: [TlsFront; 3],
    authority: Authority,
    tokens: TokenServer,
}

impl World {
    fn start() -> Self {
        let clickhouse = ClickHouse::start(Engine::Old);
        clickhouse.query("CREATE TABLE t (id Int64, text String) ENGINE = MergeTree ORDER BY id");
        let firestore = Firestore::start(emulators().remove(0));
        let redis = RedisServer::start();
        let authority = Authority::new("own");
        let certificate = authority.sign();
        let fronts = [clickhouse.port(), firestore.port(), redis.port()]
            .map(|port| TlsFront::start(port, &certificate));
        let tokens = TokenServer::start();
        Self { clickhouse, _firestore: firestore, redis, fronts, authority, tokens }
    }

    fn builder(&self) -> Builder {
        let account = self.authority.service_account(&self.tokens);
        let mut builder = Builder::default()
            .set("health.interval", "200ms")
            .set("backends.plain.kind", "redis")
            .set("backends.plain.url", self.redis.url())
            // Its outage alone is then no reason for the whole to be read-only.
            .set("backends.clickhouse.critical", false)
            .set("backends.firestore.project", PROJECT)
            .set("backends.firestore.credentials_file", account)
            // Each certificate is another fact to this test, though not to the log.
            .env("FUSEBOX_TEST_HOOKS", "1")
            .env("FUSEBOX_TEST_LOG_WINDOW", "10ms");
        for ((name, scheme), front) in
            ALL.iter().zip(["https", "https", "rediss"]).zip(&self.fronts)
        {
            builder = builder
                .set(&format!("backends.{name}.url"), format!("{scheme}://{}", front.address()))
                .set(&format!("backends.{name}.timeout"), "2s")
                .set(&format!("backends.{name}.breaker.failure_threshold"), 2)
                .set(&format!("backends.{name}.breaker.recovery_timeout"), "300ms")
                .set(&format!("backends.{name}.breaker.recovery_timeout_max"), "600ms");
        }
        builder
    }

    /// Trusts this authority for all three.
    fn trusting(&self, authority: &Authority) -> Builder {
        ALL.iter().fold(self.builder(), |builder, name| {
            builder.set(&format!("backends.{name}.tls.ca_file"), authority.file())
        })
    }

    /// What the servers themselves have: the ids, and the value of the key.
    fn has(&self) -> (String, Option<String>) {
        let ids = "SELECT groupArray(id) FROM (SELECT id FROM t ORDER BY id)";
        (self.clickhouse.query(ids), self.redis.get("k"))
    }
}

fn read(daemon: &Client, backend: &str) -> Reply {
    let call = match backend {
        "clickhouse" => json!({ "query": "SELECT count() FROM t" }),
        "firestore" => json!({ "op": "get", "path": "a/b" }),
        _ => json!({ "command": ["GET", "k"] }),
    };
    daemon.call(backend, call)
}

fn write(daemon: &Client, backend: &str, n: u64) -> Reply {
    let call = match backend {
        "clickhouse" => json!({
            "query": "INSERT INTO t (id) FORMAT JSONEachRow", "data": format!("{{\"id\":{n}}}"),
            "options": { "min_ack": "durable" },
        }),
        "firestore" => json!({ "op": "set", "path": "a/b", "data": { "n": n } }),
        _ => json!({ "command": ["SET", "k", n.to_string()] }),
    };
    daemon.call(backend, call)
}

#[track_caller]
fn wait_until_all_are_back(daemon: &Daemon) {
    for backend in ALL {
        daemon.wait_for_breaker(backend, "CLOSED", LONG);
        daemon.wait_until_drained(backend, LONG);
    }
}

#[test]
fn every_kind_is_spoken_to_over_tls_in_peace_and_after_an_outage() {
    let mut world = World::start();
    let daemon = world.trusting(&world.authority).start();
    for backend in ALL {
        read(&daemon, backend).assert_live();
        // Of Firestore's nobody knows what an earlier run left: its first write waits.
        write(&daemon, backend, 1).assert_acknowledged();
        daemon.wait_until_drained(backend, LONG);
    }
    assert_eq!(world.has(), ("[1]".into(), Some("1".into())));
    assert!(world.tokens.given() > 0, "Firestore was spoken to with a token of the account's");
    // More than a record of TLS, both ways.
    let large = "x".repeat(1 << 20);
    daemon.redis(&["SET", "large", &large]).assert_live();
    daemon.redis(&["GET", "large"]).assert_value(large.as_str());
    let document = json!({ "t": "y".repeat(900_000) });
    daemon
        .call("firestore", json!({ "op": "set", "path": "a/large", "data": document }))
        .assert_live();
    let found = daemon.call("firestore", json!({ "op": "get", "path": "a/large" }));
    assert_eq!(found.value()["data"], document);
    let headers = [("X-Fusebox-Query", "INSERT INTO t (text) FORMAT TabSeparated")];
    let row = [b"z".repeat(1_023), b"\n".to_vec()].concat();
    let uploaded = call_raw(&daemon, "clickhouse", &headers, &row.repeat(64), 64);
    assert_eq!((uploaded.status, uploaded.source.as_str()), (200, "live"), "{uploaded:?}");
    let answer =
        call_raw(&daemon, "clickhouse", &[], b"SELECT text FROM t WHERE id = 0 FORMAT TSV", 1);
    assert_eq!((answer.whole, answer.bytes), (true, 4 << 20), "{}", answer.status);
    world.clickhouse.query("ALTER TABLE t DELETE WHERE id = 0");
    let (_, opened) = daemon.post("/v1/backends/firestore/streams", json!({ "path": "a/b" }));
    let events = daemon.events_of(opened["path"].as_str().unwrap());
    let first = events.next("a live snapshot", LONG, |event| event.data["stale"] == json!(false));
    assert_eq!(first.data["documents"][0]["data"], json!({ "n": 1 }));

    for front in &mut world.fronts {
        front.kill_9();
    }
    for backend in ALL {
        daemon.wait_until("its outage is seen", LONG, |daemon| daemon.breaker(backend) != "CLOSED");
        write(&daemon, backend, 2).assert_queued();
    }
    // They come back with new certificates of the same authority.
    let renewed = world.authority.sign_for("IP:127.0.0.1", 3);
    for front in &mut world.fronts {
        front.restart(&renewed);
    }
    wait_until_all_are_back(&daemon);
    assert_eq!(world.has().1, Some("2".into()));
    daemon.wait_until("the row is there", LONG, |_| world.has().0 == "[1,2]");
    assert_eq!(read(&daemon, "firestore").value()["data"], json!({ "n": 2 }));
    events.next("the stream goes on", LONG, |event| event.data.to_string().contains("\"n\":2"));
}

/// A server that cannot prove who it is gets nothing, an operator learns what is wrong with it, and the others
/// go on. Once it is put right, what was queued arrives.
#[test]
fn what_is_wrong_with_a_certificate_is_told_and_holds_up_nobody_else() {
    let mut world = World::start();
    let daemon = world.trusting(&world.authority).start();
    let untrusted =
        "its certificate is from an authority that fusebox does not trust (see tls.ca_file)";
    let good = world.authority.sign();
    for (n, (bad, words)) in (1..).zip([
        (Authority::new("stranger").sign(), untrusted),
        // It was made again under its old name.
        (Authority::new("own").sign(), untrusted),
        (world.authority.sign_for("IP:127.0.0.1", -1), "its certificate has expired"),
        (
            world.authority.sign_for("DNS:other.test", 2),
            "its certificate is not for 127.0.0.1 but for DnsName(\"other.test\")",
        ),
    ]) {
        wait_until_all_are_back(&daemon);
        for front in &mut world.fronts {
            front.restart(&bad);
        }
        for (backend, front) in ALL.iter().zip(&world.fronts) {
            let told = format!(
                "{backend}: the last error was tls: TLS with {} failed: {words}\n",
                front.address()
            );
            daemon.wait_until(&told, LONG, |_| {
                let status = daemon.fusebox(&["status"]);
                String::from_utf8_lossy(&status.stdout).contains(&told)
            });
            write(&daemon, backend, n).assert_queued();
            let logged = format!("tls: TLS with {} failed: ", front.address());
            let log = daemon.log_text();
            let line = log.lines().find(|line| {
                line.contains(&logged) && line.contains(words.split('"').next().unwrap())
            });
            assert!(
                line.is_some_and(|line| line.contains("the breaker changed its state")),
                "{backend}"
            );
        }
        let plain = json!({ "command": ["SET", "plain", n.to_string()] });
        daemon.call("plain", plain).assert_live();
        assert_eq!(world.redis.get("plain"), Some(n.to_string()));
        for front in &mut world.fronts {
            front.restart(&good);
        }
        wait_until_all_are_back(&daemon);
        assert_eq!(world.has().1, Some(n.to_string()), "{words}");
        assert_eq!(read(&daemon, "firestore").value()["data"], json!({ "n": n }), "{words}");
    }
    assert_eq!(world.has().0, "[1,2,3,4]");
}

#[test]
fn the_systems_authorities_are_trusted_where_no_others_are_named_in_their_place() {
    let world = World::start();
    let system = |builder: Builder| builder.env("SSL_CERT_FILE", &world.authority.file()).start();
    let daemon = system(world.builder());
    for backend in ALL {
        read(&daemon, backend).assert_live();
    }
    drop(daemon);
    let other = Authority::new("other");
    let daemon = system(world.trusting(&other));
    for backend in ALL {
        daemon.wait_until("nobody is let through", LONG, |daemon| {
            daemon.breaker(backend) != "CLOSED"
        });
        let explained = daemon.fusebox(&["explain", backend]);
        let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
        assert!(explained.contains("from an authority that fusebox does not trust"), "{explained}");
    }
}

/// Asks the daemon over TCP, with the authorities of a file, as a browser does that knows it by a name: the status, or
/// why there is no answer.
fn curl(authority: &Authority, url: &str) -> Result<u16, String> {
    let output = Command::new(require("curl", "curl"))
        .args(["--silent", "--show-error", "--http1.1", "--output", "/dev/null"])
        .args(["--write-out", "%{http_code}", "--header", "Authorization: Bearer t0ken"])
        .args(["--header", "Host: fusebox.example", "--header", "Accept-Language: en"])
        .args(["--cacert", &authority.file(), url])
        .output()
        .expect("curl runs");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(said(&output.stdout).parse().expect("a status"));
    }
    Err(said(&output.stderr))
}

#[test]
fn the_tcp_listener_speaks_tls_and_a_reload_exchanges_its_certificate() {
    let redis = RedisServer::start();
    let port = Port::lease();
    let secrets = tempfile::tempdir().unwrap();
    let token = secrets.path().join("token");
    std::fs::write(&token, "t0ken\n").unwrap();
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let certificate = first.sign();
    let mut daemon = operated(&redis.url())
        .set("http.listen", format!("0.0.0.0:{}", port.number()))
        .set("http.token_file", path(&token))
        .set("http.tls.cert_file", path(&certificate.chain))
        .set("http.tls.key_file", path(&certificate.key))
        .start();
    let url = |path: &str| format!("https://{}{path}", port.address());
    for route in ["/health", "/v1/backends", "/admin/config"] {
        assert_eq!(curl(&first, &url(route)), Ok(200), "{route}");
    }
    let refused = curl(&second, &url("/health")).unwrap_err();
    assert!(refused.contains("certificate"), "{refused}");
    assert!(curl(&first, &url("/health").replace("https", "http")).is_err(), "TLS alone is spoken");

    let other = second.sign();
    daemon.set("http.tls.cert_file", path(&other.chain));
    let mismatch = daemon.fusebox(&["config", "reload"]);
    let said = String::from_utf8_lossy(&mismatch.stderr).into_owned();
    assert!(!mismatch.status.success() && said.contains("http.tls is not usable"), "{said}");
    assert_eq!(curl(&first, &url("/health")), Ok(200), "the old certificate stays");
    daemon.set("http.tls.key_file", path(&other.key));
    assert!(daemon.fusebox(&["config", "reload"]).status.success());
    assert_eq!(curl(&second, &url("/health")), Ok(200));
    assert!(curl(&first, &url("/health")).is_err());
}
