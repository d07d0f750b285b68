//! Inserts that no server takes are told so when they would be queued, as the server does.

use fusebox_actors::view::BackendView;

use super::*;
use crate::kinds::clickhouse::protocol::decoded;

const INSERT: &str = "POST /?query=INSERT%20INTO%20default.u%20FORMAT%20CSV";
const TABLE: &str = "CREATE TABLE default.u (n Int32) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 9";

fn view(world: &World) -> BackendView {
    world.fusebox.backend("clickhouse").unwrap().view()
}

/// A block of ClickHouse's own that is not packed.
fn block(data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap();
    let sizes = [(size + 9).to_le_bytes(), size.to_le_bytes()].concat();
    let checked = [&[2][..], &sizes, data].concat();
    [&decoded::testing::checksum(&checked)[..], &checked].concat()
}

fn flipped(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    bytes[at] ^= 0x10;
    bytes
}

#[tokio::test]
async fn what_no_server_takes_is_refused_in_an_outage_as_the_server_refuses_it() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let rows: Vec<String> = (0..2_000).map(|n| format!("{n}\n")).collect();
    let rows = rows.concat();
    let blocks = "decompress=1";
    let mut refused: Vec<(String, &str, Vec<u8>)> = vec![
        ("max%20threads=1".into(), "", b"1\n".into()),
        ("max-threads=1".into(), "", b"1\n".into()),
        (blocks.into(), "", rows.clone().into()),
        (blocks.into(), "", flipped(block(rows.as_bytes()), 3)),
        (blocks.into(), "", flipped(block(rows.as_bytes()), 99)),
        (blocks.into(), "", block(rows.as_bytes())[..999].to_vec()),
        (blocks.into(), "", block(rows.as_bytes())[..20].to_vec()),
        (blocks.into(), "", [block(rows.as_bytes()), b"xx".into()].concat()),
        (blocks.into(), "", [block(b"1\n"), block(b"")].concat()),
        (blocks.into(), GZIP, gzip(flipped(block(rows.as_bytes()), 99))),
    ];
    let packed = gzip(&rows);
    let end = packed.len() - 1;
    for body in [
        packed[..end].to_vec(),
        packed[..end / 2].to_vec(),
        flipped(packed.clone(), end),
        flipped(packed.clone(), end - 5),
        [packed.clone(), b"xx".into()].concat(),
        rows.clone().into(),
    ] {
        refused.push(("a=".into(), GZIP, body));
    }
    for (coding, sample) in decoded::testing::samples() {
        let headers: &'static str = format!("Content-Encoding: {coding}\r\n").leak();
        let end = sample.len() - 1;
        for body in [flipped(sample.clone(), end), [sample.clone(), vec![b'x'; 9]].concat()] {
            refused.push(("a=".into(), headers, body));
        }
        if !matches!(coding, "zstd" | "lz4") {
            refused.push(("a=".into(), headers, sample[..end].to_vec()));
        }
    }
    let target = |more: &str| if more == "a=" { INSERT.into() } else { format!("{INSERT}&{more}") };
    let told = |answer: &Answer| {
        let code = answer.header("x-clickhouse-exception-code").map(str::to_owned);
        (answer.status, code)
    };
    let mut answers = Vec::new();
    for (more, headers, body) in &refused {
        let answer = world.client().ask(&target(more), headers, body).await;
        assert_ne!(answer.status, 200, "{more} {headers}");
        answers.push(told(&answer));
    }
    world.fusebox.backend("clickhouse").unwrap().set_offline(true).await.unwrap();
    for ((more, headers, body), live) in refused.iter().zip(&answers) {
        let answer = world.client().ask(&target(more), headers, body).await;
        let text = answer.text();
        // The server tells bytes that are no block at all by another number.
        let is_no_block = more == blocks && body.starts_with(b"0\n1\n");
        assert!(told(&answer) == *live || is_no_block, "{more} {headers} {live:?}: {text}");
        assert!(text.contains("fusebox: clickhouse: ") && text.contains("not executed"), "{text}");
    }
    // Of some of these the server would take what came, and of others nothing, without a word.
    for (coding, sample) in decoded::testing::samples() {
        let headers = format!("Content-Encoding: {coding}\r\n");
        let answer = world.client().ask(INSERT, &headers, &sample[..sample.len() - 5]).await;
        assert_eq!(answer.status, 500, "{coding}: {}", answer.text());
    }
    assert_eq!(view(&world).queue.calls, 0);
}

#[tokio::test]
async fn what_a_server_takes_is_queued_and_applied() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let rows = "7\n".repeat(300);
    // Checksums of blocks of all lengths.
    let short: Vec<Vec<u8>> = (1..300).map(|n| block(&rows.as_bytes()[..n])).collect();
    let long = block("8\n".repeat(70_000).as_bytes());
    let blocks = format!("{INSERT}&decompress=1");
    let taken = [
        ("POST /", "", b"INSERT INTO default.u VALUES".to_vec()),
        ("POST /", "", b"INSERT INTO default.u VALUES ;".to_vec()),
        (INSERT, "", Vec::new()),
        (INSERT, GZIP, Vec::new()),
        (&blocks, "", Vec::new()),
        ("POST /", GZIP, gzip("INSERT INTO default.u VALUES;")),
        (INSERT, GZIP, [gzip("1\n"), gzip("1\n")].concat()),
        (INSERT, GZIP, gzip("2\n")),
        (&format!("{INSERT}&=nameless"), "", b"3\n".to_vec()),
        (&blocks, GZIP, gzip(block(b"4\n"))),
        (&blocks, "", short.concat()),
        (&blocks, "", long),
    ];
    let backend = world.fusebox.backend("clickhouse").unwrap();
    for (line, headers, body) in &taken {
        let what = format!("{line} {headers} {}", body.len());
        backend.set_offline(true).await.unwrap();
        let answer = world.client().ask(line, headers, body).await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        assert_eq!(answer.header("x-fusebox-source"), Some("queued"), "{what}");
        backend.set_offline(false).await.unwrap();
        until(&what, || async { view(&world).queue.calls == 0 }).await;
        assert_eq!(view(&world).queue.dead_letters, 0, "{what}");
    }
    let counts = "SELECT n, count() FROM default.u WHERE n < 7 OR n = 8 GROUP BY n ORDER BY n";
    let counts = world.server.ask(counts).await.replace('\t', ":").replace('\n', " ");
    assert_eq!(counts, "1:2 2:1 3:1 4:1 8:70000");
}

#[tokio::test]
async fn what_is_not_looked_at_and_cannot_be_unpacked_is_a_dead_letter_at_once() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    // A window of 16 MiB, and no block.
    let wide = [0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 0xff, 0xff, 0xff];
    // A block of lz4 that says that it becomes 9 MiB.
    let mut long = [&[0x82, 12, 0, 0, 0][..], &(9_u32 << 20).to_le_bytes(), b"abc"].concat();
    long.splice(0..0, decoded::testing::checksum(&long));
    let blocks = format!("{INSERT}&decompress=1");
    let mut client = world.client();
    world.fusebox.backend("clickhouse").unwrap().set_offline(true).await.unwrap();
    for (line, headers, body) in [
        (INSERT, "Content-Encoding: zstd\r\n", &wide[..]),
        (&blocks, "", &long),
        (INSERT, "", b"2\n"),
    ] {
        assert_eq!(client.ask(line, headers, body).await.status, 200);
    }
    world.fusebox.backend("clickhouse").unwrap().set_offline(false).await.unwrap();
    until("nothing waits", || async { view(&world).queue.calls == 0 }).await;
    assert_eq!(view(&world).queue.dead_letters, 2);
    assert_eq!(world.server.ask("SELECT n FROM default.u").await, "2");
}
