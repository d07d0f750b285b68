//! ClickHouse: what a caller sees of an outage, and what becomes of its inserts. Against the 2018 server and
//! against a current one: see `support/clickhouse.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::clickhouse::{ClickHouse, Engine, User, remembered_without_rows};
use crate::support::daemon::{Builder, Client, Daemon, Reply};
use crate::support::given;
use crate::support::poll::stays;
use crate::support::raw::call_raw;

const LONG: Duration = Duration::from_secs(30);
/// So many inserts of a storm wait at most, and may be sent as one.
const GROUP: usize = 12;
const BOTH: [Engine; 2] = [Engine::Old, Engine::Current];
/// A table whose inserts are recognised by their token, for the current server.
const TABLE: &str = "CREATE TABLE t (id Int64, round Int64) ENGINE = MergeTree ORDER BY id \
                     SETTINGS non_replicated_deduplication_window = 10000";
/// The same for the old one, which knows no tokens.
const OLD_TABLE: &str = "CREATE TABLE t (id Int64, round Int64) ENGINE = MergeTree ORDER BY id";

/// A daemon whose breaker opens at the first failure and stays open for the whole test.
fn operated(url: &str) -> Builder {
    with(url)
        .set("health.interval", "1h")
        .set("backends.clickhouse.breaker.failure_threshold", 1)
        .set("backends.clickhouse.breaker.failure_rate", 0.0)
        .set("backends.clickhouse.breaker.recovery_timeout", "4m")
        .set("backends.clickhouse.retry.attempts", 1)
}

fn with(url: &str) -> Builder {
    Builder::default()
        .set("backends.clickhouse.url", url)
        .set("backends.clickhouse.timeout", "3s")
        .set("backends.clickhouse.breaker.recovery_timeout", "300ms")
}

fn query(daemon: &Client, query: &str, options: Value) -> Reply {
    daemon
        .call("clickhouse", json!({ "query": query, "format": "JSONCompact", "options": options }))
}

fn insert(daemon: &Client, ids: impl IntoIterator<Item = u64>, options: Value) -> Reply {
    insert_into(daemon, "t", ids, options)
}

fn insert_into(
    daemon: &Client,
    table: &str,
    ids: impl IntoIterator<Item = u64>,
    options: Value,
) -> Reply {
    let rows: Vec<String> =
        ids.into_iter().map(|id| json!({ "id": id, "round": 0 }).to_string()).collect();
    let rows = rows.join("\n");
    daemon.call(
        "clickhouse",
        json!({
            "query": format!("INSERT INTO {table} FORMAT JSONEachRow"), "data": rows, "options": options,
        }),
    )
}

fn durable() -> Value {
    json!({ "min_ack": "durable" })
}

/// Lets the daemon find out that the server is back.
#[track_caller]
fn recover(daemon: &Client) {
    daemon.order("/admin/resilience/force-recovery");
    daemon.wait_for_breaker("clickhouse", "CLOSED", LONG);
}

/// How often each id is in the table.
fn ids(server: &ClickHouse) -> BTreeMap<u64, u64> {
    let rows = server.query("SELECT id, count() FROM t GROUP BY id FORMAT TabSeparated");
    let pairs = rows.lines().filter_map(|line| line.split_once('\t'));
    pairs.map(|(id, count)| (id.parse().unwrap(), count.parse().unwrap())).collect()
}

#[test]
fn a_read_falls_back_in_order_by_the_clock() {
    for engine in BOTH {
        let mut server = ClickHouse::start(engine);
        let daemon = operated(&server.url())
            .set("backends.clickhouse.cache.ttl", "4s")
            .set("backends.clickhouse.cache.max_stale", "7s")
            .start();
        let sql = "SELECT number FROM numbers(3)";
        let read = || query(&daemon, sql, json!({}));
        // From before the value was cached, so that what follows is no earlier than it says.
        let read_at = Instant::now();
        let live = read();
        live.assert_live();
        let rows = live.value()["data"].clone();
        assert_eq!(rows.as_array().map(Vec::len), Some(3), "{engine:?}: {rows}");
        server.kill_9();
        let cached = read();
        assert_eq!((cached.status, cached.source()), (200, "cache"), "{}", cached.body);
        assert_eq!(cached.value()["data"], rows);
        daemon.wait_for_breaker("clickhouse", "OPEN", LONG);
        // White space makes no other query.
        for other in ["select number FROM numbers(3)", "SELECT number /* all */ FROM numbers(3)"] {
            let answer = query(&daemon, other, json!({}));
            assert_eq!(answer.status, 503, "it is another query: {}", answer.body);
        }
        let same = query(&daemon, "SELECT number\n\tFROM  numbers(3)", json!({}));
        assert_eq!(same.source(), "cache", "{}", same.body);
        daemon.wait_until("it is stale", LONG, |_| read().source() == "stale");
        assert!(read_at.elapsed() >= Duration::from_secs(4));
        let stale = read();
        let warnings = stale.body["warnings"].to_string();
        assert!(
            warnings.contains("s old") && stale.body["age_ms"].as_u64() > Some(3_999),
            "{warnings}"
        );
        daemon.wait_until("it is too old", LONG, |_| read().status == 503);
        assert!(read_at.elapsed() >= Duration::from_secs(7));
        let empty = query(&daemon, sql, json!({ "priority": "low" }));
        assert_eq!((empty.status, empty.source()), (200, "empty"), "{}", empty.body);
        assert_eq!((&empty.value()["rows"], &empty.value()["data"]), (&json!(0), &json!([])));
        assert_eq!(empty.value()["meta"], live.value()["meta"], "the columns were learnt");
        let invented = daemon.call(
            "clickhouse",
            json!({ "query": sql, "format": "Parquet", "options": { "priority": "low" } }),
        );
        assert_eq!(invented.status, 503, "nothing is invented: {}", invented.body);
        server.restart();
        recover(&daemon);
        read().assert_live();
    }
}

#[test]
fn a_write_is_refused_in_an_outage_unless_it_may_queue() {
    let mut server = ClickHouse::start(Engine::Current);
    server.query(TABLE);
    let daemon = operated(&server.url()).start();
    server.kill_9();
    daemon.call("clickhouse", json!({ "query": "SELECT 1" }));
    daemon.wait_for_breaker("clickhouse", "OPEN", LONG);
    let refused = insert(&daemon, [1], json!({}));
    let detail = refused.body["detail"].as_str().unwrap_or_default();
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(detail.contains("read-only in an outage"), "{detail}");
    insert(&daemon, [2], durable()).assert_queued();
    for never in
        ["INSERT INTO t SELECT 1, 2", "CREATE TABLE u (a Int8) ENGINE = Memory", "TRUNCATE TABLE t"]
    {
        let refused = query(&daemon, never, durable());
        assert_eq!(refused.status, 503, "{never}: {}", refused.body);
    }
    let read = query(&daemon, "SELECT count() FROM t", json!({ "priority": "low" }));
    assert_eq!(read.body["pending_writes"], 1, "a read says that writes wait: {}", read.body);
    server.restart();
    recover(&daemon);
    daemon.wait_until_drained("clickhouse", LONG);
    assert_eq!(ids(&server), [(2, 1)].into());
    // A backend that is to queue asks for no consent.
    let mut daemon = daemon;
    daemon.set("backends.clickhouse.queue.write_fallback", "queue");
    daemon.restart();
    server.kill_9();
    insert(&daemon, [3], json!({})).assert_queued();
}

#[test]
fn a_statement_that_waits_for_queued_inserts_comes_after_them() {
    let mut server = ClickHouse::start(Engine::Current);
    server.query(TABLE);
    let daemon = operated(&server.url()).start();
    server.kill_9();
    for id in 0..5 {
        insert(&daemon, [id], durable()).assert_queued();
    }
    server.restart();
    daemon.order("/admin/resilience/force-recovery");
    let truncated = query(&daemon, "TRUNCATE TABLE t", json!({}));
    assert_eq!(truncated.status, 200, "{}", truncated.body);
    daemon.wait_until_drained("clickhouse", LONG);
    assert_eq!(ids(&server), BTreeMap::new());
}

/// How often each id is in `table`.
fn ids_in(server: &ClickHouse, table: &str) -> BTreeMap<u64, u64> {
    let rows = server.query(&format!("SELECT id, count() FROM {table} GROUP BY id FORMAT TSV"));
    let pairs = rows.lines().filter_map(|line| line.split_once('\t'));
    pairs.map(|(id, count)| (id.parse().unwrap(), count.parse().unwrap())).collect()
}

/// How many calls these dead letters are: what was sent as one is shown as one.
fn calls_of(dead: &[Value]) -> usize {
    let calls = dead.iter().map(|call| call["calls"].as_u64().unwrap_or(1));
    usize::try_from(calls.sum::<u64>()).unwrap()
}

/// What a storm's writers know of the inserts into one table.
#[derive(Debug, Default)]
struct Told {
    acknowledged: Vec<u64>,
    unknown: Vec<u64>,
}

impl Told {
    fn note(&mut self, id: u64, reply: &Reply) {
        match reply.status {
            200 | 202 => self.acknowledged.push(id),
            _ if reply.body["outcome_unknown"] == json!(true) => self.unknown.push(id),
            _ => panic!("{}: {}", reply.status, reply.body),
        }
    }
}

/// Rounds of killing the server and the daemon while inserts are sent: into a table with a window whose view
/// feeds another with one, and into a table without. Of the first each that was acknowledged is there once, and in
/// the view's table; of the last none is there twice, and what is missing is a dead letter.
///
/// ClickHouse itself loses rows, if rarely: killed at the wrong moment, it remembers an insert that it does not have.
/// How many those were, its files tell after each kill; the daemon sends them again if nothing else came into
/// the table meanwhile.
#[test]
fn queued_inserts_are_applied_exactly_once() {
    let mut server = ClickHouse::start(Engine::Current);
    server.query(TABLE);
    server.query(&TABLE.replace("TABLE t", "TABLE copies"));
    server.query("CREATE MATERIALIZED VIEW copier TO copies AS SELECT id, round FROM t");
    server.query(&OLD_TABLE.replace("TABLE t", "TABLE plain"));
    let mut daemon = with(&server.url()).set("health.interval", "200ms").start();
    let (mut protected, mut plain, mut next) = (Told::default(), Told::default(), 0);
    let tables = [server.data_of("t"), server.data_of("copies")];
    let mut lost = [BTreeSet::new(), BTreeSet::new()];
    for round in 0..given::rounds(20) {
        for step in 0..6 {
            if step == 2 {
                server.kill_9();
                for (lost, table) in lost.iter_mut().zip(&tables) {
                    lost.extend(remembered_without_rows(table));
                }
            }
            if step == 4 && round % 3 == 0 {
                daemon.kill_9();
                daemon.restart();
            }
            next += 1;
            protected.note(next, &insert(&daemon, [next], durable()));
            plain.note(next, &insert_into(&daemon, "plain", [next], durable()));
        }
        server.restart();
        if round % 2 == 0 {
            // In the middle of the drain.
            daemon.order("/admin/resilience/force-recovery");
            daemon.kill_9();
            daemon.restart();
        }
    }
    daemon.order("/admin/resilience/force-recovery");
    daemon.wait_until("nothing waits", LONG, |daemon| daemon.queued("clickhouse", "pending") == 0);
    let dead = daemon.get("/v1/backends/clickhouse/queue?state=dead").1;
    let dead = dead["calls"].as_array().unwrap();
    let of_plain = |call: &Value| call.to_string().contains("default.plain");
    let [lost, of_view] = lost.map(|lost| lost.len());
    println!("lost by the server itself: {lost} inserts, {of_view} of the view's table");
    let others: Vec<&Value> = dead.iter().filter(|call| !of_plain(call)).collect();
    assert!(others.len() <= lost, "only what nothing protects is ambiguous: {others:?}");
    let there = ids(&server);
    let missing = protected.acknowledged.iter().filter(|id| !there.contains_key(id));
    let missing: Vec<&u64> = missing.collect();
    assert!(missing.len() <= lost * GROUP, "{missing:?} are missing, the server lost {lost}");
    assert!(there.values().all(|count| *count == 1), "none twice: {there:?}");
    let known = |id: &u64| protected.acknowledged.contains(id) || protected.unknown.contains(id);
    assert!(there.keys().all(known), "{there:?}");
    let copies = ids_in(&server, "copies");
    assert!(copies.values().all(|count| *count == 1), "none twice: {copies:?}");
    let differ = copies.keys().filter(|id| !there.contains_key(id)).count()
        + there.keys().filter(|id| !copies.contains_key(id)).count();
    assert!(
        differ <= (lost + of_view) * GROUP,
        "the view has what the table has: {copies:?}, {there:?}"
    );
    let there = ids_in(&server, "plain");
    assert!(there.values().all(|count| *count == 1), "none twice: {there:?}");
    let missing = plain.acknowledged.iter().filter(|id| !there.contains_key(id)).count();
    let told = calls_of(dead);
    assert!(missing <= told, "{missing} are missing, {told} are told: {dead:?}");
    let unknown = (protected.unknown.len(), plain.unknown.len());
    println!("{next} each, of unknown outcome {unknown:?}, dead letters {told}");
}

#[test]
fn where_there_are_no_tokens_nothing_is_lost_and_what_is_ambiguous_is_told() {
    let server = ClickHouse::start(Engine::Old);
    server.query(OLD_TABLE);
    let daemon = with(&server.url())
        .set("backends.clickhouse.timeout", "1s")
        .set("backends.clickhouse.retry.attempts", 1)
        .set("health.interval", "200ms")
        .start();
    // The connector knows the server from here on, and that nothing of an earlier run is left there.
    let live = insert(&daemon, [100], json!({}));
    assert_eq!(live.status, 200, "{}", live.body);
    daemon.order("/admin/backends/clickhouse/offline");
    for id in 0..20 {
        insert(&daemon, [id], durable()).assert_queued();
    }
    server.freeze();
    daemon.order("/admin/backends/clickhouse/online");
    daemon.wait_until("one is ambiguous", LONG, |daemon| daemon.queued("clickhouse", "dead") > 0);
    server.thaw();
    daemon.order("/admin/resilience/force-recovery");
    daemon.wait_until("nothing waits", LONG, |daemon| daemon.queued("clickhouse", "pending") == 0);
    let there = ids(&server);
    assert!(there.values().all(|count| *count == 1), "none twice: {there:?}");
    let dead = daemon.get("/v1/backends/clickhouse/queue?state=dead").1;
    let dead = dead["calls"].as_array().unwrap();
    let told: Vec<&str> =
        dead.iter().map(|call| call["last_error"].as_str().unwrap_or_default()).collect();
    let queued = there.keys().filter(|id| **id < 20).count();
    assert!(queued + calls_of(dead) >= 20, "none lost: {queued} there, {told:?}");
    assert!(told.iter().all(|why| why.starts_with("ambiguous")), "{told:?}");
    let (_, view) = daemon.get("/v1/backends/clickhouse");
    assert!(view.to_string().contains("insert_deduplication_token"), "status warns: {view}");
}

#[test]
fn overload_opens_the_breaker_and_a_wrong_statement_never_does() {
    let narrow =
        User { profile: &[("max_concurrent_queries_for_user", "1")], ..User::named("narrow") };
    let server = ClickHouse::with_users(Engine::Current, &[narrow]);
    let daemon = with(&server.url())
        .set("health.interval", "1h")
        .set("backends.clickhouse.username", "narrow")
        .set("backends.clickhouse.breaker.recovery_timeout", "4m")
        .set("backends.clickhouse.retry.attempts", 1)
        .start();
    // The server counts a query for a moment longer than it takes to answer it.
    let running = |what: &str| {
        let those = format!("user = 'narrow' AND query LIKE '%{what}%'");
        server.query(&format!("SELECT count() FROM system.processes WHERE {those}"))
    };
    let is_free = || daemon.wait_until("the place is free", LONG, |_| running("") == "0");
    for (statement, code) in [("SELEC 1 FROM", "62"), ("SELECT * FROM nothing", "60")].repeat(10) {
        is_free();
        let refused = query(&daemon, statement, json!({}));
        let told = (refused.status, &refused.body["code"]);
        assert_eq!(told, (422, &json!(code)), "{}", refused.body);
    }
    assert_eq!(daemon.breaker("clickhouse"), "CLOSED");
    is_free();
    query(&daemon, "SELECT 1", json!({})).assert_live();
    is_free();
    // Another program of the same user has the only place.
    let occupant = server.begin("narrow", "SELECT count() FROM system.numbers FORMAT Null");
    daemon.wait_until("the place is taken", LONG, |_| running("system.numbers") == "1");
    for _ in 0..30 {
        if daemon.breaker("clickhouse") == "OPEN" {
            break;
        }
        assert_ne!(query(&daemon, "SELECT 2", json!({})).status, 200);
    }
    assert_eq!(daemon.breaker("clickhouse"), "OPEN");
    drop(occupant);
}

#[test]
fn a_server_that_accepts_and_does_not_answer_is_found_out_by_pings() {
    let server = ClickHouse::start(Engine::Old);
    let daemon = with(&server.url())
        .set("backends.clickhouse.timeout", "500ms")
        .set("backends.clickhouse.breaker.recovery_timeout", "4m")
        .set("health.interval", "200ms")
        .start();
    server.freeze();
    daemon.wait_for_breaker("clickhouse", "OPEN", LONG);
    server.thaw();
    recover(&daemon);
}

#[test]
fn an_exception_behind_rows_is_an_error_and_not_a_result() {
    for engine in BOTH {
        let server = ClickHouse::start(engine);
        let daemon = with(&server.url()).start();
        // Rows for a while, then the exception: behind an HTTP 200 on the old server.
        let sql = "SELECT throwIf(number = 9000000), toString(number) FROM numbers(10000000) \
                   SETTINGS max_block_size = 10000, max_threads = 1 FORMAT TabSeparated";
        let small = sql.replace("9000000", "900").replace("10000000", "1000");
        let refused = query(&daemon, &small, json!({}));
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (422, &json!("395")),
            "{}",
            refused.body
        );
        let refused = call_raw(&daemon, "clickhouse", &[], small.as_bytes(), 1);
        assert_eq!(refused.status, 422, "{refused:?}");
        assert_eq!(daemon.breaker("clickhouse"), "CLOSED");
        if engine == Engine::Old {
            let broken = call_raw(&daemon, "clickhouse", &[], sql.as_bytes(), 1);
            assert_eq!((broken.status, broken.whole), (200, false), "{broken:?}");
            assert!(broken.bytes > 1 << 20, "{}", broken.bytes);
        }
    }
}

/// The most memory that the daemon has had, in KiB.
fn memory_peak(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_result_of_a_gigabyte_passes_through_in_pieces() {
    let server = ClickHouse::start(Engine::Old);
    let daemon = with(&server.url()).set("backends.clickhouse.timeout", "20s").start();
    query(&daemon, "SELECT 1", json!({})).assert_live();
    let before = memory_peak(&daemon);
    let row = "x".repeat(1_023);
    let sql = format!("SELECT '{row}' FROM numbers(1048576) FORMAT TabSeparated");
    let answer = call_raw(&daemon, "clickhouse", &[], sql.as_bytes(), 1);
    assert_eq!((answer.status, answer.source.as_str(), answer.whole), (200, "live", true));
    assert_eq!(answer.bytes, 1 << 30, "{}", answer.beginning.get(..80).unwrap_or_default());
    let grown = memory_peak(&daemon) - before;
    assert!(grown < 32 << 10, "{grown} KiB more");
    // As JSON it is too large, and that is said.
    let refused = query(&daemon, &sql, json!({}));
    assert_eq!((refused.status, &refused.body["code"]), (422, &json!("result_too_large")));
}

#[test]
fn a_large_insert_is_sent_as_it_comes_or_stored_first() {
    let mut server = ClickHouse::start(Engine::Old);
    server.query("CREATE TABLE big (a String) ENGINE = MergeTree ORDER BY tuple()");
    let daemon = operated(&server.url()).set("backends.clickhouse.timeout", "20s").start();
    query(&daemon, "SELECT 1", json!({})).assert_live();
    let before = memory_peak(&daemon);
    let row = [b"y".repeat(1_023), b"\n".to_vec()].concat();
    let rows = row.repeat(64);
    let count = |server: &ClickHouse| server.query("SELECT count() FROM big");
    let headers = [("X-Fusebox-Query", "INSERT INTO big FORMAT TabSeparated")];
    let live = call_raw(&daemon, "clickhouse", &headers, &rows, 1600);
    assert_eq!((live.status, live.source.as_str()), (200, "live"), "{live:?}");
    assert_eq!(count(&server), (1600 * 64).to_string());
    let grown = memory_peak(&daemon) - before;
    assert!(grown < 64 << 10, "{grown} KiB more for 100 MiB that passed through");
    server.kill_9();
    let refused = call_raw(&daemon, "clickhouse", &headers, &rows, 1600);
    assert_eq!(refused.status, 503, "{refused:?}");
    // On a busy machine 25,000 synced chunks take their time.
    let headers = [headers[0], ("X-Fusebox-Min-Ack", "durable"), ("X-Fusebox-Deadline", "100s")];
    let stored = call_raw(&daemon, "clickhouse", &headers, &rows, 1600);
    assert_eq!((stored.status, stored.source.as_str()), (202, "queued"), "{stored:?}");
    server.restart();
    recover(&daemon);
    daemon.wait_until_drained("clickhouse", LONG);
    assert_eq!(count(&server), (2 * 1600 * 64).to_string());
    // What sled keeps in memory of a store, some 60 to 90 MiB however large the call; the call itself
    // would be 100 MiB more.
    let grown = memory_peak(&daemon) - before;
    assert!(grown < 160 << 10, "{grown} KiB more for 100 MiB that were stored");
}

#[test]
fn a_wrong_password_pauses_replay_and_buries_nothing() {
    let secret = User { password: "right", ..User::named("secret") };
    let server = ClickHouse::with_users(Engine::Current, &[secret]);
    server.query(TABLE);
    let secrets = tempfile::tempdir().unwrap();
    let file = secrets.path().join("password");
    fs::write(&file, "wrong\n").unwrap();
    let daemon = with(&server.url())
        .set("backends.clickhouse.username", "secret")
        .set("backends.clickhouse.password_file", file.to_str().unwrap())
        .set("backends.clickhouse.breaker.failure_threshold", 1_000)
        .set("health.interval", "1h")
        .start();
    insert(&daemon, [1], durable()).assert_queued();
    daemon.wait_until("it is told", LONG, |daemon| {
        daemon.get("/v1/backends/clickhouse").1["alerts"].to_string().contains("operator must act")
    });
    stays("nothing is buried", Duration::from_millis(300), || {
        daemon.queued("clickhouse", "dead") == 0
    });
    fs::write(&file, "right\n").unwrap();
    daemon.wait_until("it is drained", LONG, |daemon| {
        daemon.order("/admin/backends/clickhouse/queue/replay");
        daemon.queued("clickhouse", "pending") == 0
    });
    assert_eq!(ids(&server), [(1, 1)].into());
}

#[test]
fn the_command_line_takes_queries_and_rows_from_a_pipe() {
    let server = ClickHouse::start(Engine::Current);
    server.query(TABLE);
    let daemon = with(&server.url()).start();
    let output = daemon.fusebox_with_stdin(
        &["call", "clickhouse", "--", "INSERT INTO t FORMAT JSONEachRow"],
        "{\"id\":7,\"round\":1}\n",
    );
    assert!(output.status.success(), "{output:?}");
    let output =
        daemon.fusebox(&["call", "clickhouse", "--", "SELECT id, round FROM t FORMAT CSV"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "7,1\n", "{output:?}");
    let output = daemon.fusebox(&["call", "clickhouse", "--", "SELEC"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
