//! ClickHouse: what real servers say when they cannot or will not, and what a caller, the breaker and the queue
//! make of it. The 2018 server has users with limits of their own; each is a backend here.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clickhouse::{ClickHouse, Engine, User};
use crate::support::daemon::{Builder, Client, Reply};
use crate::support::raw::{Unfinished, call_raw};

const LONG: Duration = Duration::from_secs(60);
/// Needs far more than the 20 MB that some may have.
const HEAVY: &str = "SELECT length(groupArray(number)) FROM numbers(20000000)";
/// Never ends by itself.
const ENDLESS: &str = "SELECT count() FROM system.numbers";

const USERS: [User<'_>; 6] = [
    User { profile: &[("max_concurrent_queries_for_user", "2")], ..User::named("narrow") },
    // It may change no setting, the time that a query has neither.
    User { profile: &[("readonly", "1"), ("max_execution_time", "1")], ..User::named("hasty") },
    User { profile: &[("max_memory_usage_for_user", "20000000")], ..User::named("crowded") },
    User { profile: &[("max_memory_usage", "20000000")], ..User::named("small") },
    User { profile: &[("readonly", "1")], ..User::named("reader") },
    User { password: "right", ..User::named("secret") },
];

/// A daemon with one backend for each of these users of `server`, which are not tried again.
fn as_users(server: &ClickHouse, users: &[&str]) -> Builder {
    let mut builder = Builder::default().set("health.interval", "1h");
    for user in users {
        let key = |leaf: &str| format!("backends.{user}.{leaf}");
        builder = builder
            .set(&key("kind"), "clickhouse")
            .set(&key("url"), server.url())
            .set(&key("username"), *user)
            .set(&key("timeout"), "4s")
            .set(&key("retry.attempts"), 1)
            .set(&key("breaker.failure_threshold"), 1_000)
            .set(&key("breaker.recovery_timeout"), "4m");
    }
    builder
}

fn with(server: &ClickHouse) -> Builder {
    as_users(server, &["default"])
}

fn query(daemon: &Client, backend: &str, query: &str, settings: &Value) -> Reply {
    daemon.call(backend, json!({ "query": query, "settings": settings }))
}

fn insert(daemon: &Client, backend: &str, table: &str, rows: &str) -> Reply {
    let call = json!({
        "query": format!("INSERT INTO {table} FORMAT JSONEachRow"), "data": rows,
        "options": { "min_ack": "durable" },
    });
    daemon.call(backend, call)
}

/// What the breaker of `backend` has counted: successes, failures and what says nothing.
fn counted(daemon: &Client, backend: &str) -> [u64; 3] {
    let calls = daemon.get(&format!("/v1/backends/{backend}")).1["calls"].take();
    ["successes", "failures", "neutral"].map(|count| calls[count].as_u64().unwrap())
}

fn alerts(daemon: &Client, backend: &str) -> String {
    daemon.get(&format!("/v1/backends/{backend}")).1["alerts"].to_string()
}

/// How often each id is in the table.
fn ids(server: &ClickHouse, table: &str) -> BTreeMap<u64, u64> {
    let rows = server.query(&format!("SELECT id, count() FROM {table} GROUP BY id FORMAT TSV"));
    let pairs = rows.lines().filter_map(|line| line.split_once('\t'));
    pairs.map(|(id, count)| (id.parse().unwrap(), count.parse().unwrap())).collect()
}

/// Waits until no query runs at the server but the one that asks.
#[track_caller]
fn wait_until_idle(daemon: &Client, server: &ClickHouse) {
    daemon.wait_until("no query is left at the server", LONG, |_| {
        server.query("SELECT count() FROM system.processes") == "1"
    });
}

/// The server's own codes: what a call is answered, and whether that counts against the server.
#[test]
fn each_code_of_the_real_server_ends_as_it_should() {
    let server = ClickHouse::with_users(Engine::Old, &USERS);
    server.query("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id");
    let backends = ["default", "hasty", "crowded", "small", "reader", "secret", "nobody"];
    let daemon = as_users(&server, &backends).start();
    let none = json!({});
    for (user, asked, settings, code, (status, counts)) in [
        // The call is to blame: what it names, how it is written, the limits that it set or ran into alone.
        ("default", "SELECT * FROM nothing", &none, "60", REFUSED),
        ("default", "SELECT 1 FROM nowhere.nothing", &none, "81", REFUSED),
        ("default", "SELEC 1", &none, "62", REFUSED),
        ("default", "SELECT missing FROM t", &none, "47", REFUSED),
        ("default", ENDLESS, &json!({ "max_execution_time": 1 }), "159", REFUSED),
        ("default", HEAVY, &json!({ "max_memory_usage": 20_000_000 }), "241", REFUSED),
        ("small", HEAVY, &none, "241", REFUSED),
        ("reader", "INSERT INTO t SELECT 1", &none, "164", REFUSED),
        ("reader", "DROP TABLE t", &none, "164", REFUSED),
        // The server is: limits that others may have used up, and who it does not let in.
        ("hasty", ENDLESS, &none, "159", UNAVAILABLE),
        ("crowded", HEAVY, &none, "241", UNAVAILABLE),
        ("secret", "SELECT 1", &none, "194", UNAVAILABLE),
        ("nobody", "SELECT 1", &none, "192", UNAVAILABLE),
    ] {
        assert_ends(&daemon, user, (asked, settings), code, (status, counts));
    }
    assert_eq!(ids(&server, "t"), BTreeMap::new());
}

/// The same of the current server, which has other words for them.
#[test]
fn each_code_of_the_current_server_ends_as_it_should() {
    let mut users = USERS.to_vec();
    users.push(User { grants: &["GRANT SELECT ON system.*"], ..User::named("blind") });
    let server = ClickHouse::with_users(Engine::Current, &users);
    server.query("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id");
    server.query(
        "CREATE TABLE full (id Int64) ENGINE = MergeTree ORDER BY id \
         SETTINGS parts_to_throw_insert = 1, parts_to_delay_insert = 0",
    );
    server.query("SYSTEM STOP MERGES full");
    server.query("INSERT INTO full SETTINGS async_insert = 0 VALUES (1)");
    let backends = ["default", "hasty", "crowded", "small", "reader", "secret", "nobody", "blind"];
    let daemon = as_users(&server, &backends).start();
    let none = json!({});
    for (user, asked, settings, code, (status, counts)) in [
        ("default", "SELECT * FROM nothing", &none, "60", REFUSED),
        ("default", "SELECT 1 FROM nowhere.nothing", &none, "81", REFUSED),
        ("default", "SELEC 1", &none, "62", REFUSED),
        ("default", "SELECT missing FROM t", &none, "47", REFUSED),
        ("default", ENDLESS, &json!({ "max_execution_time": 1 }), "159", REFUSED),
        ("default", HEAVY, &json!({ "max_memory_usage": 20_000_000 }), "241", REFUSED),
        ("small", HEAVY, &none, "241", REFUSED),
        ("reader", "INSERT INTO t SELECT 1", &none, "164", REFUSED),
        ("blind", "SELECT * FROM t", &none, "497", REFUSED),
        ("hasty", ENDLESS, &none, "159", UNAVAILABLE),
        ("crowded", HEAVY, &none, "241", UNAVAILABLE),
        ("secret", "SELECT 1", &none, "516", UNAVAILABLE),
        ("nobody", "SELECT 1", &none, "516", UNAVAILABLE),
        ("default", "INSERT INTO full VALUES (1)", &none, "252", UNAVAILABLE),
    ] {
        assert_ends(&daemon, user, (asked, settings), code, (status, counts));
    }
    // Killed by an operator: that says nothing of the server.
    let before = counted(&daemon, "default");
    let killed = thread::scope(|scope| {
        let client = daemon.client();
        let asked = scope.spawn(move || query(&client, "default", ENDLESS, &json!({})));
        daemon.wait_until("it runs", LONG, |_| {
            server.query("SELECT count() FROM system.processes WHERE query LIKE '%system.numbers'")
                == "1"
        });
        server.query("KILL QUERY WHERE query LIKE '%system.numbers' SYNC");
        asked.join().unwrap()
    });
    assert_eq!((killed.status, &killed.body["code"]), (503, &json!("394")), "{}", killed.body);
    let after = counted(&daemon, "default");
    assert_eq!([0, 1, 2].map(|at| after[at] - before[at]), [0, 0, 1], "{}", killed.body);
}

/// The status, and by how much successes, failures and what says nothing of the server have grown.
type Ends = (u16, [u64; 3]);
/// The call is to blame.
const REFUSED: Ends = (422, [1, 0, 0]);
/// The server is.
const UNAVAILABLE: Ends = (503, [0, 1, 0]);

#[track_caller]
fn assert_ends(
    daemon: &Client,
    backend: &str,
    (asked, settings): (&str, &Value),
    code: &str,
    (status, counts): Ends,
) {
    let before = counted(daemon, backend);
    let reply = query(daemon, backend, asked, settings);
    let is = (reply.status, &reply.body["code"]);
    assert_eq!(is, (status, &json!(code)), "{backend}: {asked}: {}", reply.body);
    let detail = reply.body["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(&format!("Code: {code}")), "its own words: {detail}");
    let after = counted(daemon, backend);
    let grown = [0, 1, 2].map(|at| after[at] - before[at]);
    assert_eq!(grown, counts, "{backend}: {asked}: {}", reply.body);
}

/// 202 of the server's own limit on queries at once: the breaker opens, and what was queued is applied once
/// there is room.
#[test]
fn too_many_queries_at_once_are_an_overload() {
    let server = ClickHouse::with_users(Engine::Old, &USERS);
    server.query("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id");
    let daemon = as_users(&server, &["narrow"])
        .set("backends.narrow.timeout", "60s")
        .set("backends.narrow.breaker.failure_threshold", 2)
        .start();
    query(&daemon, "narrow", "SELECT 1", &json!({})).assert_live();
    let occupants = [daemon.client(), daemon.client()]
        .map(|client| thread::spawn(move || query(&client, "narrow", ENDLESS, &json!({}))));
    daemon.wait_until("both places are taken", LONG, |_| {
        server.query("SELECT count() FROM system.processes WHERE user = 'narrow'") == "2"
    });
    let refused = query(&daemon, "narrow", "SELECT 2", &json!({}));
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("202")), "{}", refused.body);
    assert_eq!(daemon.breaker("narrow"), "CLOSED");
    insert(&daemon, "narrow", "t", "{\"id\":1}").assert_queued();
    daemon.wait_for_breaker("narrow", "OPEN", LONG);
    let refused = query(&daemon, "narrow", "SELECT 3", &json!({}));
    assert_eq!(refused.body["code"], json!("breaker_open"), "{}", refused.body);

    server.query("KILL QUERY WHERE user = 'narrow' SYNC");
    for occupant in occupants {
        let killed = occupant.join().unwrap();
        assert_ne!(killed.status, 200, "{}", killed.body);
    }
    // What the daemon itself asks the server takes places, too.
    daemon.wait_until("the breaker is closed", LONG, |daemon| {
        daemon.order("/admin/resilience/force-recovery");
        daemon.breaker("narrow") == "CLOSED"
    });
    daemon.wait_until_drained("narrow", LONG);
    assert_eq!(ids(&server, "t"), [(1, 1)].into());
}

/// A read that nobody waits for any more ends at the server, too; whose time was up decides whether that counts.
#[test]
fn a_read_that_is_given_up_is_killed_and_counts_by_whose_time_was_up() {
    let server = ClickHouse::start(Engine::Old);
    let daemon = with(&server).set("backends.default.timeout", "1s").start();
    query(&daemon, "default", "SELECT 1", &json!({})).assert_live();
    let begun = counted(&daemon, "default");
    // By itself it would go on for long.
    let settings = json!({ "max_execution_time": 600 });
    let of_its_own =
        json!({ "query": ENDLESS, "settings": settings, "options": { "deadline": "300ms" } });
    let reply = daemon.call("default", of_its_own);
    assert_eq!(reply.status, 504, "{}", reply.body);
    let [successes, failures, neutral] = begun;
    assert_eq!(counted(&daemon, "default"), [successes, failures, neutral + 1]);
    wait_until_idle(&daemon, &server);
    let reply = query(&daemon, "default", ENDLESS, &settings);
    assert_eq!(reply.status, 504, "{}", reply.body);
    assert_eq!(counted(&daemon, "default"), [successes, failures + 1, neutral + 1]);
    wait_until_idle(&daemon, &server);
}

/// Replay: what a server refuses for good is buried alone, what waits for an operator waits alone.
#[test]
fn a_queued_insert_that_is_refused_holds_up_no_other_table() {
    for engine in [Engine::Old, Engine::Current] {
        let server = ClickHouse::start(engine);
        server.query("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id");
        let daemon = with(&server).start();
        query(&daemon, "default", "SELECT 1", &json!({})).assert_live();
        daemon.order("/admin/backends/default/offline");
        for (table, rows) in [
            ("t", "{\"id\":1}"),
            ("later", "{\"id\":2}"),
            ("t", "{\"id\":\"no number\"}"),
            ("later", "{\"id\":3}"),
            ("t", "{\"id\":4}"),
        ] {
            insert(&daemon, "default", table, rows).assert_queued();
        }
        daemon.order("/admin/backends/default/online");
        daemon.wait_until("all that can be is replayed", LONG, |daemon| {
            daemon.queued("default", "pending") == 2 && daemon.queued("default", "dead") == 1
        });
        assert_eq!(ids(&server, "t"), [(1, 1), (4, 1)].into(), "{engine:?}");
        daemon.wait_until("the operator is told", LONG, |daemon| {
            let alerts = alerts(daemon, "default");
            alerts.contains("later") && alerts.contains("operator must act")
        });
        assert_eq!(daemon.breaker("default"), "CLOSED", "the server itself is well");
        server.query("CREATE TABLE later (id Int64) ENGINE = MergeTree ORDER BY id");
        daemon.order("/admin/backends/default/queue/replay");
        daemon.wait_until("the rest is replayed", LONG, |daemon| {
            daemon.queued("default", "pending") == 0
        });
        assert_eq!(ids(&server, "later"), [(2, 1), (3, 1)].into(), "{engine:?}");
        assert_eq!(daemon.queued("default", "dead"), 1);
        assert!(!alerts(&daemon, "default").contains("later"), "{}", alerts(&daemon, "default"));
    }
}

/// An upload whose caller goes in its middle leaves nothing: no rows, no query, nothing queued.
#[test]
fn an_upload_that_breaks_off_is_not_applied() {
    for engine in [Engine::Old, Engine::Current] {
        let server = ClickHouse::start(engine);
        server.query("CREATE TABLE t (text String, id UInt64) ENGINE = MergeTree ORDER BY id");
        let daemon = with(&server).start();
        query(&daemon, "default", "SELECT 1", &json!({})).assert_live();
        let text = "x".repeat(1_015);
        let row = format!("{text}\t1234567\n");
        let piece = row.repeat(64);
        let insert = ("X-Fusebox-Query", "INSERT INTO t FORMAT TabSeparated");
        for headers in [vec![insert], vec![insert, ("X-Fusebox-Min-Ack", "durable")]] {
            let upload = Unfinished::begin(&daemon, "default", &headers, 200 * piece.len());
            for _ in 0..100 {
                upload.send(piece.as_bytes());
            }
            // In the middle of a number: what came of the row reads as one by itself.
            upload.send(format!("{text}\t123").as_bytes());
            if headers.len() == 1 && engine == Engine::Old {
                daemon.wait_until("the server is at it", LONG, |_| {
                    server.query("SELECT count() FROM system.processes WHERE query LIKE 'INSERT%'")
                        == "1"
                });
            }
            drop(upload);
            daemon.wait_until("it is given up", LONG, |daemon| {
                daemon.get("/v1/backends/default").1["calls"]["in_flight"] == json!(0)
            });
            if engine == Engine::Old {
                wait_until_idle(&daemon, &server);
            }
            let queue = daemon.get("/v1/backends/default").1["queue"].take();
            assert_eq!((&queue["calls"], &queue["bytes"]), (&json!(0), &json!(0)), "{queue}");
            assert_eq!(ids(&server, "t"), BTreeMap::new(), "{engine:?} {headers:?}");
        }
        assert_eq!(daemon.breaker("default"), "CLOSED");
        // The next one is whole, and the only one.
        let whole = call_raw(&daemon, "default", &[insert], piece.as_bytes(), 32);
        assert_eq!((whole.status, whole.source.as_str()), (200, "live"), "{whole:?}");
        assert_eq!(ids(&server, "t"), [(1_234_567, 32 * 64)].into(), "{engine:?}");
    }
}

/// What is larger than a block reaches ClickHouse block by block, and those that are there stay: whole ones.
#[test]
fn an_upload_of_many_blocks_that_breaks_off_leaves_whole_ones() {
    let server = ClickHouse::start(Engine::Old);
    server.query("CREATE TABLE t (text String, id UInt64) ENGINE = MergeTree ORDER BY id");
    let daemon = with(&server).start();
    let headers = [
        ("X-Fusebox-Query", "INSERT INTO t FORMAT TabSeparated"),
        ("X-Fusebox-Setting-max_insert_block_size", "1000"),
        ("X-Fusebox-Setting-min_insert_block_size_rows", "1000"),
        ("X-Fusebox-Setting-min_insert_block_size_bytes", "1"),
    ];
    let text = "x".repeat(1_015);
    let upload = Unfinished::begin(&daemon, "default", &headers, 64 << 20);
    for _ in 0..100 {
        upload.send(format!("{text}\t1234567\n").repeat(64).as_bytes());
    }
    upload.send(format!("{text}\t123").as_bytes());
    daemon.wait_until("blocks have arrived", LONG, |_| !ids(&server, "t").is_empty());
    drop(upload);
    wait_until_idle(&daemon, &server);
    let there = ids(&server, "t");
    assert!(there.get(&1_234_567).is_some_and(|rows| rows % 1_000 == 0), "{there:?}");
    assert_eq!(there.len(), 1, "no torn row: {there:?}");
}

/// A server that freezes in the middle of a drain: callers are answered meanwhile, and then each insert of the
/// backlog is there once.
#[test]
fn a_server_that_freezes_in_the_middle_of_a_drain_gets_each_insert_once() {
    const BACKLOG: u64 = 150;
    let server = ClickHouse::start(Engine::Current);
    server.query(
        "CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id \
         SETTINGS non_replicated_deduplication_window = 10000",
    );
    let daemon = with(&server)
        .set("health.interval", "200ms")
        .set("backends.default.timeout", "3s")
        .set("backends.default.breaker.failure_threshold", 3)
        .set("backends.default.breaker.recovery_timeout", "300ms")
        .set("backends.default.breaker.recovery_timeout_max", "600ms")
        .start();
    let known = "SELECT 42 AS known";
    query(&daemon, "default", known, &json!({})).assert_live();
    daemon.order("/admin/backends/default/offline");
    for id in 0..BACKLOG {
        insert(&daemon, "default", "t", &json!({ "id": id }).to_string()).assert_queued();
    }
    daemon.order("/admin/backends/default/online");
    for freeze in 1..=2_u64 {
        daemon.wait_until("it drains", LONG, |daemon| {
            daemon.queued("default", "pending") < BACKLOG - freeze * 40
        });
        server.freeze();
        daemon.wait_until("it is found out", LONG, |daemon| daemon.breaker("default") != "CLOSED");
        insert(&daemon, "default", "t", &json!({ "id": 1_000 + freeze }).to_string())
            .assert_queued();
        assert_eq!(query(&daemon, "default", known, &json!({})).source(), "cache");
        server.thaw();
    }
    daemon.wait_for_breaker("default", "CLOSED", LONG);
    daemon.wait_until_drained("default", LONG);
    let wanted: BTreeMap<u64, u64> = (0..BACKLOG).chain(1_001..=1_002).map(|id| (id, 1)).collect();
    assert_eq!(ids(&server, "t"), wanted);
}
