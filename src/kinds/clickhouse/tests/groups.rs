//! Queued inserts that are sent as one, on real servers.

use std::time::Instant;

use super::*;
use crate::kinds::clickhouse::testing::Engine;

const BOTH: [Engine; 2] = [Engine::Old, Engine::Current];

fn call(query: &str, data: &str) -> Bytes {
    let header = Header { query: query.to_owned(), ..Header::default() };
    Call { header, data: Bytes::copy_from_slice(data.as_bytes()) }.to_bytes()
}

/// Sends `bodies` as replay does: what is of one number together, in groups as large as they may be. `doubt` is what
/// was noted at an earlier sending. Returns how each group ended, and what was noted.
async fn send(
    connector: &ClickHouseConnector,
    bodies: &[Bytes],
    doubt: Option<(OpId, Bytes)>,
) -> (Vec<Attempted>, Option<(OpId, Bytes)>) {
    let plans: Vec<Plan> =
        bodies.iter().map(|body| connector.plan(body.clone()).unwrap()).collect();
    let (calls, bytes) = connector.group_max();
    let (mut ends, mut noted) = (Vec::new(), None);
    let mut from = 0;
    while from < plans.len() {
        let number = gather(&plans[from]).expect("it may be sent with others");
        let mut size = 0;
        let same = plans[from..].iter().take(calls).take_while(|plan| {
            size += plan.body.len() as u64;
            gather(plan) == Some(number) && size <= bytes
        });
        let to = from + same.count();
        let token = doubt.as_ref().map_or_else(|| OpId::from_u128(fastrand::u128(..)), |d| d.0);
        let sent = Sent {
            token: Some(token),
            origin: Origin::Replay,
            timeout: Duration::from_secs(20),
            doubt: doubt.as_ref().map(|(_, noted)| (UnixMillis::new(1_000_000_000), noted.clone())),
            ..Sent::of(Bytes::new())
        };
        let attempts: Vec<Attempt<'_>> =
            plans[from..to].iter().map(|plan| sent.attempt(plan)).collect();
        if doubt.is_none() {
            let evidence = connector.prepare(&attempts).await.unwrap();
            noted = evidence.into_iter().next().map(|evidence| (token, evidence));
        }
        ends.push(connector.attempt_group(attempts).await);
        from = to;
    }
    (ends, noted)
}

fn gather(plan: &Plan) -> Option<u64> {
    match &plan.access {
        Access::Write(write) => write.gather,
        Access::Read(_) => None,
    }
}

async fn world(engine: Engine, tables: &[&str]) -> (Server, Arc<ClickHouseConnector>) {
    let server = Server::of(engine).await;
    for table in tables {
        server.ask(table).await;
    }
    let connector = ClickHouseConnector::new(server.settings("i", "r"));
    (server, connector)
}

const TABLE: &str = "CREATE TABLE default.t (n UInt64, s String) ENGINE = MergeTree ORDER BY n \
                     SETTINGS non_replicated_deduplication_window = 100";

#[tokio::test]
async fn ten_thousand_inserts_make_at_most_twenty_parts_and_take_a_twentieth_of_the_time() {
    let (server, connector) = world(Engine::Current, &[TABLE]).await;
    let body =
        |n: u64| call("INSERT INTO t FORMAT JSONEachRow", &format!("{{\"n\":{n},\"s\":\"x\"}}"));
    let singles = Instant::now();
    for n in 0..200 {
        let sent = Sent { token: Some(OpId::from_u128(fastrand::u128(..))), ..Sent::of(body(n)) };
        assert!(sent.to(&connector).await.result.is_ok());
    }
    let single = singles.elapsed() / 200;
    server.ask("TRUNCATE TABLE default.t").await;
    let blocks = "SELECT max(max_block_number) FROM system.parts WHERE table = 't'";
    server.ask("INSERT INTO default.t SETTINGS async_insert = 0 VALUES (0, 'first')").await;
    let before: u64 = server.ask(blocks).await.parse().unwrap();
    let bodies: Vec<Bytes> = (0..10_000).map(body).collect();
    let together = Instant::now();
    let (ends, _) = send(&connector, &bodies, None).await;
    let each = together.elapsed() / 10_000;
    assert!(ends.iter().all(|end| end.result.is_ok()), "{ends:?}");
    let made = server.ask(blocks).await.parse::<u64>().unwrap() - before;
    let ratio = single.as_secs_f64() / each.as_secs_f64();
    println!("alone {single:?} each, together {each:?} each: {ratio:.0} times; {made} parts");
    assert!(made <= 20, "{made} parts");
    assert!(ratio >= 20.0, "alone {single:?} each, together {each:?} each");
    let counted = server.ask("SELECT count(), uniqExact(n), sum(n) FROM default.t").await;
    assert_eq!(counted, "10001\t10000\t49995000");
}

#[tokio::test]
async fn what_is_sent_together_means_what_it_means_alone() {
    for engine in BOTH {
        let columns = "(n UInt64, s String, a Array(String)) ENGINE = MergeTree ORDER BY n";
        let tables =
            ["alone", "together"].map(|name| format!("CREATE TABLE default.{name} {columns}"));
        let (server, connector) = world(engine, &[&tables[0], &tables[1]]).await;
        let calls = |table: &str| -> Vec<Bytes> {
            let query = |rest: &str| format!("INSERT INTO {table} {rest}");
            [
                ("FORMAT JSONEachRow", "{\"n\":1,\"s\":\"}\\n{\\\"\",\"a\":[\"]\"]}"),
                ("FORMAT JSONEachRow", "{\"n\":2,\"s\":\"ä\"}\n{\"n\":3}\n\n"),
                ("FORMAT JSONEachRow\n{\"n\":4}", ""),
                ("FORMAT TabSeparated", "5\ta\\nb\\\\\t['x\\ty']"),
                ("FORMAT TabSeparated", "6\t\t[]\n7\t \t[]\n"),
                ("FORMAT CSV", "8,\"a,\n\"\"b\"\"\",\"['1','2']\""),
                ("FORMAT CSV", "9, plain ,[]\r\n10,\"\",[]\n"),
                ("VALUES (11, 'a''b\\'(', ['),('])", ""),
                ("VALUES (12, upper('x'), []) , (13, 'y', [lower('Z')]);", ""),
                ("VALUES", "(14, '; --', [])(15, '', [])"),
            ]
            .map(|(rest, data)| call(&query(rest), data))
            .to_vec()
        };
        for body in calls("alone") {
            let sent = Sent { token: Some(OpId::from_u128(fastrand::u128(..))), ..Sent::of(body) };
            let ended = sent.to(&connector).await;
            assert!(ended.result.is_ok(), "{engine:?}: {ended:?}");
        }
        let (ends, _) = send(&connector, &calls("together"), None).await;
        assert_eq!(ends.len(), 4, "one for each format");
        assert!(ends.iter().all(|end| end.result.is_ok()), "{engine:?}: {ends:?}");
        let rows = async |table: &str| {
            server
                .ask(&format!("SELECT * FROM default.{table} ORDER BY n FORMAT JSONCompactEachRow"))
                .await
        };
        let text = async |table: &str| {
            server.ask(&format!("SELECT n, s, toString(a) FROM default.{table} ORDER BY n")).await
        };
        assert_eq!(text("together").await, text("alone").await, "{engine:?}");
        if engine == Engine::Current {
            assert_eq!(rows("together").await.lines().count(), 15);
        }
    }
}

#[tokio::test]
async fn a_group_whose_answer_was_lost_is_recognised_as_it_was() {
    let (server, connector) = world(Engine::Current, &[TABLE]).await;
    let bodies: Vec<Bytes> =
        (0..500).map(|n| call("INSERT INTO t FORMAT TSV", &format!("{n}\tx"))).collect();
    let (ends, noted) = send(&connector, &bodies, None).await;
    assert!(ends[0].result.is_ok());
    let later = ClickHouseConnector::new(server.settings("i", "later"));
    let (ends, _) = send(&later, &bodies, noted.clone()).await;
    assert!(ends[0].result.is_ok(), "{ends:?}");
    assert_eq!(server.ask("SELECT count() FROM default.t").await, "500");
    // Without what was noted there is no proof, and nothing is sent.
    let unnoted = noted.map(|(token, _)| (token, Bytes::new()));
    let (ends, _) = send(&later, &bodies, unnoted).await;
    assert_eq!(ends[0].result.as_ref().unwrap_err().class, ErrorClass::Ambiguous);
}

#[tokio::test]
async fn a_group_with_one_bad_call_writes_nothing_and_that_is_proven() {
    for engine in BOTH {
        let parted = "CREATE TABLE default.t (n UInt64, s String) ENGINE = MergeTree PARTITION BY n ORDER BY n";
        let plain = "CREATE TABLE default.u (n UInt64, s String) ENGINE = MergeTree ORDER BY n";
        let (server, connector) = world(engine, &[parted, plain]).await;
        let mut bodies: Vec<Bytes> =
            (0..300).map(|n| call("INSERT INTO u FORMAT TSV", &format!("{n}\tx"))).collect();
        bodies[200] = call("INSERT INTO u FORMAT TSV", "0\tx\n9x\tx");
        let (ends, _) = send(&connector, &bodies, None).await;
        let error = ends[0].result.as_ref().unwrap_err();
        assert_eq!(
            (error.class, &error.doubt),
            (ErrorClass::Rejected, &None),
            "{engine:?}: {error}"
        );
        assert_eq!(server.ask("SELECT count() FROM default.u").await, "0", "{engine:?}");
        if engine == Engine::Current {
            // More partitions than the server lets one block have.
            let bodies: Vec<Bytes> =
                (0..300).map(|n| call("INSERT INTO t FORMAT TSV", &format!("{n}\tx"))).collect();
            let (ends, _) = send(&connector, &bodies, None).await;
            let error = ends[0].result.as_ref().unwrap_err();
            assert_eq!((error.class, &error.doubt), (ErrorClass::Rejected, &None), "{error}");
            assert_eq!(server.ask("SELECT count() FROM default.t").await, "0");
        }
    }
}

#[tokio::test]
async fn what_is_not_of_one_number_is_not_sent_as_one() {
    let (_server, connector) = world(Engine::Current, &[TABLE]).await;
    let bodies =
        [call("INSERT INTO t FORMAT TSV", "1\tx"), call("INSERT INTO t FORMAT CSV", "1,x")];
    let plans = bodies.map(|body| connector.plan(body).unwrap());
    let sent = Sent { token: Some(OpId::from_u128(7)), ..Sent::of(Bytes::new()) };
    let attempts = plans.iter().map(|plan| sent.attempt(plan)).collect();
    let error = connector.attempt_group(attempts).await.result.unwrap_err();
    assert_eq!((error.class, error.doubt), (ErrorClass::NotExecuted, None));
}
