//! Inserts that are queued.

use fusebox_actors::view::BackendView;

use super::*;

const TABLE: &str = "CREATE TABLE default.q (n Int32, s String) ENGINE = MergeTree ORDER BY n \
     SETTINGS non_replicated_deduplication_window = 100";

impl World {
    fn view(&self) -> BackendView {
        self.fusebox.backend("clickhouse").unwrap().view()
    }

    async fn set_offline(&self, offline: bool) {
        self.fusebox.backend("clickhouse").unwrap().set_offline(offline).await.unwrap();
    }

    /// Comes back, and replays what waits.
    async fn replays(&self) {
        self.set_offline(false).await;
        until("nothing waits", || async { self.view().queue.calls == 0 }).await;
        assert_eq!(self.view().queue.dead_letters, 0);
    }
}

/// A row in `RowBinary`.
fn binary(n: i32, s: &str) -> Vec<u8> {
    let len = u8::try_from(s.len()).unwrap();
    [&n.to_le_bytes()[..], &[len], s.as_bytes()].concat()
}

#[tokio::test]
async fn an_insert_is_queued_and_replayed_as_it_was_sent() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let mut client = world.client();
    let blocks =
        "POST /?compress=1&query=SELECT%206::Int32%20AS%20n,%20'f'%20AS%20s%20FORMAT%20Native";
    let blocks = client.ask(blocks, "", "").await.body;
    let long: Vec<String> = (100..80_000).map(|n| format!("{n},x\n")).collect();
    let long = long.concat();
    assert!(long.len() > 600_000);
    let insert = "POST /?query=INSERT%20INTO%20default.q";
    let sent: [(&str, &str, Vec<u8>); 9] = [
        (&format!("{insert}%20FORMAT%20CSV"), "", b"1,a\n".into()),
        ("POST /", "", b"INSERT INTO default.q VALUES (2, 'b')".into()),
        (
            "POST /",
            "",
            [&b"INSERT INTO default.q FORMAT RowBinary\n"[..], &binary(3, "c")].concat(),
        ),
        ("POST /", GZIP, gzip("INSERT INTO default.q FORMAT JSONEachRow {\"n\":4,\"s\":\"d\"}")),
        (insert, GZIP, gzip("(s, n) FORMAT CSV\ne,5\n")),
        (&format!("{insert}%20FORMAT%20Native&decompress=1"), "", blocks),
        ("POST /?param_n=7&database=default", "", b"INSERT INTO q VALUES ({n:Int32}, 'g')".into()),
        (&format!("{insert}%20FORMAT%20CSV&session_id=s&query_id=mine"), "", long.into()),
        (
            "POST /?input_format_csv_skip_first_lines=1",
            "X-ClickHouse-Database: default\r\n",
            b"INSERT INTO q FORMAT CSV\nno,no\n8,h\n".into(),
        ),
    ];
    world.set_offline(true).await;
    for (line, headers, body) in &sent {
        let answer = client.ask(line, headers, body).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, ""), "{line}");
        assert_eq!(answer.header("x-fusebox-source"), Some("queued"), "{line}");
        assert_eq!(answer.header("x-fusebox-ack"), Some("durable"), "{line}");
        let summary = answer.header("x-clickhouse-summary").unwrap();
        let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
        assert_eq!(summary["written_rows"], "0");
        let id = line.contains("query_id").then_some("mine");
        assert_eq!(answer.header("x-clickhouse-query-id"), id, "{line}");
    }
    assert_eq!(world.view().queue.calls, 9);
    world.replays().await;
    let rows = "SELECT n, s FROM default.q WHERE n < 100 ORDER BY n";
    let rows = world.server.ask(rows).await.replace('\t', "").replace('\n', " ");
    assert_eq!(rows.trim(), "1a 2b 3c 4d 5e 6f 7g 8h");
    let long = "SELECT count(), uniqExact(n) FROM default.q WHERE n >= 100";
    assert_eq!(world.server.ask(long).await, "79900\t79900");
}

/// A frame of zstd whose blocks do not become smaller.
fn zstd(blocks: &[&[u8]]) -> Vec<u8> {
    let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
    for (at, block) in blocks.iter().enumerate() {
        let size = u32::try_from(block.len() << 3).unwrap();
        let is_last = u32::from(at + 1 == blocks.len());
        let [low, middle, high, _] = (size | is_last).to_le_bytes();
        packed.extend_from_slice(&[low, middle, high]);
        packed.extend_from_slice(block);
    }
    packed
}

#[tokio::test]
async fn an_insert_whose_first_block_is_long_goes_through_and_is_queued() {
    const ZSTD: &str = "Content-Encoding: zstd\r\n";
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let rows: Vec<String> = (100..14_000).map(|n| format!("{n},x\n")).collect();
    let rows = rows.concat();
    let text = format!("INSERT INTO default.q FORMAT CSV\n{rows}");
    let short = zstd(&[text.as_bytes()]);
    let long = zstd(&[rows.as_bytes(); 12]);
    assert!(text.len() > 64 << 10 && short.len() < 128 << 10 && long.len() > 1 << 20);
    world.set_offline(true).await;
    let answer = world.client().ask("POST /", ZSTD, &short).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("x-fusebox-source"), Some("queued"));
    world.replays().await;
    let insert = "POST /?query=INSERT%20INTO%20default.q%20FORMAT%20CSV";
    let answer = world.client().ask(insert, ZSTD, &long).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let counted = world.server.ask("SELECT count(), uniqExact(n) FROM default.q").await;
    assert_eq!(counted, format!("{}\t13900", 13_900 * 13));
}

#[tokio::test]
async fn what_replay_could_not_do_alike_is_refused() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let mut client = world.client();
    let temporary = "CREATE TEMPORARY TABLE mine (n Int8)";
    assert_eq!(client.ask("POST /?session_id=s", "", temporary).await.status, 200);
    world.set_offline(true).await;
    let insert = "INSERT INTO default.q VALUES (1, 'x')";
    for (line, headers, body) in [
        ("POST /", "", "INSERT INTO default.q SELECT 1, 'x'"),
        ("POST /", "", "INSERT INTO default.q SETTINGS async_insert = 1 VALUES (1, 'x')"),
        ("POST /", "", "INSERT INTO default.q (n, s)"),
        ("POST /", "", "ALTER TABLE default.q DELETE WHERE n = 1"),
        ("POST /?session_id=s", "", insert),
        ("POST /?role=r", "", insert),
        ("POST /?readonly=2", "", insert),
        ("POST /?max_threads=1&max_threads=2", "", insert),
        ("POST /?insert_deduplication_token=t", "", insert),
        ("POST /", "Content-Encoding: snappy\r\n", insert),
        ("POST /", "X-Fusebox-Min-Ack: applied\r\n", insert),
        ("POST /?query=INSERT%20INTO%20default.q%20FORMAT%20TSV", "", &"1\tx\n".repeat(300_000)),
    ] {
        let answer = client.ask(line, headers, body).await;
        let told = (answer.status, answer.header("x-clickhouse-exception-code"));
        assert_eq!(told, (503, Some("210")), "{line} {}: {}", &body[..30], answer.text());
        assert!(answer.text().contains("not executed"), "{}", answer.text());
        client = world.client();
    }
    assert_eq!(world.view().queue.calls, 0);
    world.set_offline(false).await;
}

#[tokio::test]
async fn where_nothing_is_queued_an_insert_waits_for_consent() {
    let world = World::open().await;
    world.server.ask(TABLE).await;
    let mut client = world.client();
    let long = format!("INSERT INTO default.q FORMAT CSV\n{}", "7,x\n".repeat(100_000));
    world.set_offline(true).await;
    for body in ["INSERT INTO default.q VALUES (1, 'x')", &long] {
        let refused = world.client().query(body).await;
        assert_eq!(refused.status, 503);
        let why =
            if body.len() < 100 { "write_fallback = refuse" } else { "writes are not queued here" };
        assert!(refused.text().contains(why), "{}", refused.text());
        let consents = "X-Fusebox-Min-Ack: durable\r\n";
        assert_eq!(client.ask("POST /", consents, body).await.status, 200);
    }
    world.replays().await;
    assert_eq!(world.server.ask("SELECT count() FROM default.q").await, "100001");
}

#[tokio::test]
async fn a_live_insert_bears_a_token_only_if_it_may_be_queued() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let mut client = world.client();
    let insert = |s: &str| gzip(format!("INSERT INTO default.q VALUES (1, '{s}')"));
    let applied = "Content-Encoding: gzip\r\nX-Fusebox-Min-Ack: applied\r\n";
    for (headers, id) in [(GZIP, "queues"), (applied, "does-not")] {
        let line = format!("POST /?query_id={id}&insert_deduplicate=1");
        let answer = client.ask(&line, headers, insert(id)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-fusebox-ack"), Some("applied"));
        assert_eq!(answer.header("x-clickhouse-query-id"), Some(id));
        let summary = answer.header("x-clickhouse-summary").unwrap();
        assert!(summary.contains("\"written_rows\":\"1\""), "{summary}");
    }
    let sent = "SELECT query_id, length(Settings['insert_deduplication_token']) \
                FROM system.query_log WHERE type = 'QueryFinish' AND query_id IN ('queues', 'does-not') ORDER BY query_id";
    // The server answers before it logs that it has finished.
    let logged = || async {
        world.server.ask("SYSTEM FLUSH LOGS").await;
        world.server.ask(sent).await
    };
    until("both are logged", || async { logged().await.lines().count() == 2 }).await;
    assert_eq!(logged().await, "does-not\t0\nqueues\t26");
}
