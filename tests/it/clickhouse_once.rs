//! ClickHouse: what may have been applied is not sent again without a proof, and what is queued is gathered.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::clickhouse::{ClickHouse, Engine, User};
use crate::support::daemon::{Builder, Client, Reply};
use crate::support::poll::{eventually, stays};
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(60);
const BOTH: [Engine; 2] = [Engine::Old, Engine::Current];
/// What an insert has in its request, and a question about its table has not.
const INSERTS: &str = "insert_deduplication_token=";
/// May insert and ask what the tables remember, but not read the query log.
const TELLER: User<'_> = User {
    grants: &[
        "GRANT INSERT, SELECT ON default.*",
        "GRANT KILL QUERY ON *.*",
        "GRANT SELECT ON system.processes",
        "GRANT SELECT ON system.parts",
        "GRANT SELECT ON system.tables",
        "GRANT SELECT ON system.replicas",
        "GRANT SELECT ON system.merge_tree_settings",
        "GRANT SELECT ON system.replicated_merge_tree_settings",
    ],
    ..User::named("teller")
};

fn with(url: &str) -> Builder {
    Builder::default()
        .set("backends.clickhouse.url", url)
        .set("backends.clickhouse.timeout", "3s")
        .set("backends.clickhouse.breaker.failure_threshold", 1_000)
        .set("backends.clickhouse.breaker.recovery_timeout", "300ms")
        .set("health.interval", "200ms")
}

fn insert(daemon: &Client, table: &str, rows: &str, settings: Value) -> Reply {
    daemon.call(
        "clickhouse",
        json!({
            "query": format!("INSERT INTO {table} FORMAT TabSeparated"),
            "data": rows,
            "settings": settings,
            "options": { "min_ack": "durable", "deadline": "10s" },
        }),
    )
}

fn count(server: &ClickHouse, what: &str) -> u64 {
    server.query(&format!("SELECT {what}")).parse().unwrap()
}

fn waits(daemon: &Client) -> u64 {
    daemon.queued("clickhouse", "pending")
}

fn table(name: &str, window: u64) -> String {
    format!(
        "CREATE TABLE {name} (n UInt64) ENGINE = MergeTree ORDER BY n \
         SETTINGS non_replicated_deduplication_window = {window}"
    )
}

#[test]
fn an_insert_that_fails_behind_its_first_blocks_is_told_and_not_sent_again() {
    for engine in BOTH {
        let server = ClickHouse::start(engine);
        server.query("CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n");
        server.query("CREATE TABLE u (n UInt64) ENGINE = MergeTree ORDER BY n");
        server.query(
            "CREATE MATERIALIZED VIEW v ENGINE = MergeTree ORDER BY n AS SELECT n + throwIf(n = 13) AS n FROM u",
        );
        let daemon = with(&server.url()).start();
        let line = |n: u32| if n == 800 { "bad\n".to_owned() } else { format!("{n}\n") };
        let rows: String = (0..1_200).map(line).collect();
        let blocks = json!({
            "max_insert_block_size": 100, "min_insert_block_size_rows": 100, "min_insert_block_size_bytes": 1,
        });
        let reply = insert(&daemon, "t", &rows, blocks);
        assert_eq!((reply.status, &reply.body["code"]), (422, &json!("27")), "{}", reply.body);
        assert_eq!(reply.body["outcome_unknown"], json!(true), "{engine:?}: {}", reply.body);
        let there = count(&server, "count() FROM t");
        assert!((100..=800).contains(&there), "{engine:?}: {there}");
        let reply = insert(&daemon, "u", "13\n", json!({}));
        assert_eq!((reply.status, &reply.body["code"]), (422, &json!("395")), "{}", reply.body);
        assert_eq!(reply.body["outcome_unknown"], json!(true), "{engine:?}: {}", reply.body);
        // Of one block that cannot be parsed nothing was written, and that is known.
        let reply = insert(&daemon, "t", "1\nbad\n", json!({}));
        assert_eq!(reply.status, 422, "{}", reply.body);
        assert_ne!(reply.body["outcome_unknown"], json!(true), "{engine:?}: {}", reply.body);
        stays("nothing comes again", Duration::from_millis(800), || {
            waits(&daemon) == 0
                && count(&server, "count() FROM t") == there
                && count(&server, "count() FROM u") == 1
        });
    }
}

#[test]
fn an_insert_whose_answer_is_lost_is_not_repeated_where_a_view_would_not_recognise_it() {
    let server = ClickHouse::with_users(Engine::Current, &[TELLER]);
    server.query(&table("t", 100));
    server.query("CREATE MATERIALIZED VIEW v ENGINE = MergeTree ORDER BY n AS SELECT n FROM t");
    let relay = Relay::start(server.port());
    let daemon = with(&format!("http://127.0.0.1:{}", relay.port()))
        .set("backends.clickhouse.username", "teller")
        .start();
    relay.lose_answers_to(INSERTS);
    let reply = insert(&daemon, "t", "1\n", json!({}));
    assert_eq!(reply.body["outcome_unknown"], json!(true), "{}", reply.body);
    relay.release();
    stays("nothing comes again", Duration::from_millis(800), || {
        waits(&daemon) == 0
            && count(&server, "count() FROM t") == 1
            && count(&server, "count() FROM v") == 1
    });
    let warned = daemon.get("/v1/backends/clickhouse").1["connector"].to_string();
    assert!(warned.contains(".inner_id."), "{warned}");
}

#[test]
fn an_insert_of_which_no_attempt_is_answered_is_queued_and_applied_once() {
    let server = ClickHouse::with_users(Engine::Current, &[TELLER]);
    server.query(&table("t", 100));
    let relay = Relay::start(server.port());
    let daemon = with(&format!("http://127.0.0.1:{}", relay.port()))
        .set("backends.clickhouse.username", "teller")
        .set("backends.clickhouse.timeout", "1s")
        .start();
    relay.lose_answers_to(INSERTS);
    insert(&daemon, "t", "1\n", json!({})).assert_queued();
    relay.release();
    daemon.wait_until("nothing waits", LONG, |daemon| waits(daemon) == 0);
    assert_eq!((count(&server, "count() FROM t"), daemon.queued("clickhouse", "dead")), (1, 0));
}

#[test]
fn after_a_crash_what_came_since_decides_whether_an_insert_is_sent_again() {
    for (others, proven) in [(120, false), (10, true)] {
        let server = ClickHouse::with_users(Engine::Current, &[TELLER]);
        server.query(&table("t", 100));
        let relay = Relay::start(server.port());
        let mut daemon = with(&format!("http://127.0.0.1:{}", relay.port()))
            .set("backends.clickhouse.username", "teller")
            .start();
        daemon.order("/admin/backends/clickhouse/offline");
        insert(&daemon, "t", "7\n", json!({})).assert_queued();
        relay.lose_answers_to(INSERTS);
        daemon.order("/admin/backends/clickhouse/online");
        eventually("it is applied", LONG, || count(&server, "count() FROM t") == 1);
        daemon.kill_9();
        for n in 0..others {
            server.query(&format!("INSERT INTO t SETTINGS async_insert = 0 VALUES ({n} + 1000)"));
        }
        relay.release();
        daemon.restart();
        daemon.wait_until("nothing waits", LONG, |daemon| waits(daemon) == 0);
        assert_eq!(count(&server, "count() FROM t WHERE n = 7"), 1, "{others}");
        assert_eq!(daemon.queued("clickhouse", "dead"), u64::from(!proven), "{others}");
    }
}

#[test]
fn ten_thousand_queued_inserts_become_a_few_parts() {
    const INSERTS: u64 = 10_000;
    let mut server = ClickHouse::start(Engine::Current);
    server.query(&table("t", 100));
    let daemon = with(&server.url()).start();
    daemon.order("/admin/backends/clickhouse/offline");
    server.kill_9();
    thread::scope(|scope| {
        for part in 0..8 {
            let client = daemon.client();
            scope.spawn(move || {
                for n in (part..INSERTS).step_by(8) {
                    insert(&client, "t", &format!("{n}"), json!({})).assert_queued();
                }
            });
        }
    });
    server.restart();
    let begun = Instant::now();
    daemon.order("/admin/backends/clickhouse/online");
    daemon.wait_until("all are replayed", LONG, |daemon| waits(daemon) == 0);
    println!("{INSERTS} in {:?}", begun.elapsed());
    assert_eq!(daemon.queued("clickhouse", "dead"), 0);
    let all = server.query("SELECT count(), uniqExact(n), sum(n) FROM t");
    assert_eq!(all, format!("{INSERTS}\t{INSERTS}\t{}", INSERTS * (INSERTS - 1) / 2));
    let parts = count(&server, "max(max_block_number) FROM system.parts WHERE table = 't'");
    assert!(parts <= 20, "{parts} parts");
}
