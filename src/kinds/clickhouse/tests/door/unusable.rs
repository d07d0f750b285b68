//! Inserts that no server takes are refused when they would be queued, as the server does.

use fusebox_actors::view::BackendView;

use super::*;
use crate::kinds::clickhouse::protocol::decoded::{self, Coding, Packing};

const INSERT: &str = "POST /?query=INSERT%20INTO%20default.u%20FORMAT%20CSV";
const FILE: &str = "POST /?query=INSERT%20INTO%20default.u%20FORMAT%20";
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

/// Whether nothing of a body can be unpacked: then another statement may be in it.
fn is_unread(more: &str, headers: &str, body: &[u8]) -> bool {
    let coding = headers.trim_end().strip_prefix("Content-Encoding: ");
    let packing =
        Packing { coding: coding.and_then(Coding::of), blocks: more.contains("decompress=1") };
    let is_packed = packing != Packing::default() && !body.is_empty();
    is_packed && decoded::beginning(packing, body).bytes.is_empty()
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
    for format in ["Arrow", "ArrowStream", "avro", "ORC", "Parquet"] {
        refused.push((format!("{FILE}{format}"), "", Vec::new()));
        refused.push((format!("{FILE}{format}"), GZIP, Vec::new()));
    }
    let target = |more: &str| match more {
        "a=" => INSERT.into(),
        file if file.starts_with(FILE) => file.to_owned(),
        more => format!("{INSERT}&{more}"),
    };
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
        let expected = if is_unread(more, headers, body) {
            (503, Some("210".to_owned()))
        } else {
            live.clone()
        };
        assert_eq!(told(&answer), expected, "{more} {headers}: {text}");
        assert!(text.contains("fusebox: clickhouse: ") && text.contains("not executed"), "{text}");
    }
    // Of some of these the server would take what came, and of others nothing, without a word.
    for (coding, sample) in decoded::testing::samples() {
        let headers = format!("Content-Encoding: {coding}\r\n");
        let cut = &sample[..sample.len() - 5];
        let answer = world.client().ask(INSERT, &headers, cut).await;
        let status = if is_unread("", &headers, cut) { 503 } else { 500 };
        assert_eq!(answer.status, status, "{coding}: {}", answer.text());
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
async fn values_that_ask_for_what_is_not_in_them_are_not_queued() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let insert = "INSERT INTO default.u VALUES";
    let elsewhere = "((SELECT n FROM remote('127.0.0.1:1', default.u)))";
    let many = "(7),".repeat(20_000) + "((SELECT 7))";
    let backend = world.fusebox.backend("clickhouse").unwrap();
    assert_eq!(world.client().query(&format!("{insert} ((SELECT 9))")).await.status, 200);
    backend.set_offline(true).await.unwrap();
    for (headers, body) in [
        ("", format!("{insert} {elsewhere}").into_bytes()),
        ("", format!("INSERT INTO default.u FORMAT values {elsewhere}").into()),
        ("", format!("{insert} {many}").into()),
        ("", format!("{insert} (8), (joinGet('default.missing', 'n', 1))").into()),
        (GZIP, gzip(format!("{insert} {elsewhere}"))),
        (GZIP, gzip(format!("{insert} {many}"))),
    ] {
        let answer = world.client().ask("POST /", headers, &body).await;
        let told = (answer.status, answer.header("x-clickhouse-exception-code"));
        assert_eq!(told, (503, Some("210")), "{}", answer.text());
        let text = answer.text();
        assert!(text.contains("its values read data") && text.contains("not executed"), "{text}");
    }
    assert_eq!(view(&world).queue.calls, 0);
    for (headers, body) in [
        ("", format!("{insert} (length('SELECT'))").into_bytes()),
        (GZIP, gzip(format!("{insert} (5 + length('(SELECT 1)'))"))),
    ] {
        assert_eq!(world.client().ask("POST /", headers, &body).await.status, 200);
    }
    backend.set_offline(false).await.unwrap();
    until("nothing waits", || async { view(&world).queue.calls == 0 }).await;
    let rows = world.server.ask("SELECT n FROM default.u ORDER BY n").await;
    assert_eq!((rows.as_str(), view(&world).queue.dead_letters), ("6\n9\n15", 0));
}

/// Values of settings that the server refuses to the user, and that would be refused for ever.
const REFUSED_SETTINGS: [(&str, &str); 6] = [
    ("max_insert_threads=3", "452"),
    ("max_sessions_for_user=1", "164"),
    ("no_such_setting=1", "115"),
    ("min_free_disk_bytes_to_perform_insert=18446744073709551615", "243"),
    ("load_balancing=nope", "212"),
    ("local_filesystem_read_method=nope", "616"),
];

#[tokio::test]
async fn a_setting_that_the_server_refuses_is_a_dead_letter_and_holds_nothing_up() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let backend = world.fusebox.backend("clickhouse").unwrap();
    // Live, none of them counts against the backend, however often it comes.
    for (setting, code) in REFUSED_SETTINGS {
        for _ in 0..6 {
            let line = format!("{INSERT}&{setting}");
            let answer = world.client().ask(&line, "", "1\n").await;
            let told = answer.header("x-clickhouse-exception-code");
            assert_eq!(told, Some(code), "{setting}: {}", answer.text());
        }
    }
    backend.set_offline(true).await.unwrap();
    for (setting, _) in REFUSED_SETTINGS {
        let line = format!("{INSERT}&{setting}");
        assert_eq!(world.client().ask(&line, "", "1\n").await.status, 200, "{setting}");
        let (name, value) = setting.split_once('=').unwrap();
        let body = format!("INSERT INTO default.u SETTINGS {name} = '{value}' VALUES (1)");
        assert_eq!(world.client().query(&body).await.status, 200, "{setting}");
    }
    assert_eq!(world.client().ask(INSERT, "", "2\n").await.status, 200);
    backend.set_offline(false).await.unwrap();
    until("nothing waits", || async { view(&world).queue.calls == 0 }).await;
    let dead = view(&world).queue.dead_letters;
    assert_eq!(dead, 2 * REFUSED_SETTINGS.len() as u64);
    assert_eq!(world.server.ask("SELECT n FROM default.u").await, "2");
}

#[tokio::test]
async fn files_without_rows_are_queued_and_applied_as_the_server_takes_them() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let backend = world.fusebox.backend("clickhouse").unwrap();
    for format in [
        "Parquet",
        "Arrow",
        "ArrowStream",
        "ORC",
        "Avro",
        "Native",
        "RowBinaryWithNamesAndTypes",
        "JSON",
        "JSONColumns",
        "JSONCompactEachRowWithNamesAndTypes",
        "CSVWithNames",
    ] {
        let query = format!("SELECT n FROM default.u WHERE 0 FORMAT {format}");
        let file = world.client().query(&query).await;
        assert_eq!(file.status, 200, "{format}");
        let line = format!("POST /?query=INSERT%20INTO%20default.u%20FORMAT%20{format}");
        for (headers, body) in [("", file.body.clone()), (GZIP, gzip(&file.body))] {
            let answer = world.client().ask(&line, headers, &body).await;
            assert_eq!(answer.status, 200, "{format}: {}", answer.text());
            backend.set_offline(true).await.unwrap();
            let answer = world.client().ask(&line, headers, &body).await;
            assert_eq!(answer.status, 200, "{format}: {}", answer.text());
            assert_eq!(answer.header("x-fusebox-source"), Some("queued"), "{format}");
            backend.set_offline(false).await.unwrap();
            until(format, || async { view(&world).queue.calls == 0 }).await;
            assert_eq!(view(&world).queue.dead_letters, 0, "{format}");
        }
    }
    assert_eq!(world.server.ask("SELECT count() FROM default.u").await, "0");
}

#[tokio::test]
async fn what_is_not_looked_at_and_cannot_be_unpacked_is_a_dead_letter_at_once() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    // A window of 16 MiB, a block with a row, and what is no block.
    let wide = [0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 0x10, 0, 0, b'1', b'\n', 0xff, 0xff, 0xff];
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

#[tokio::test]
async fn an_insert_is_not_queued_if_a_statement_may_be_in_the_place_of_its_rows() {
    let world = World::queueing().await;
    world.server.ask(TABLE).await;
    let joined = "PARALLEL WITH CREATE TABLE default.joined (n Int8) ENGINE = Memory";
    let admin = "PARALLEL WITH SYSTEM FLUSH LOGS";
    // Of such a window nothing is unpacked.
    let wide = [0xff, 1, 2, 3];
    let brotli = "Content-Encoding: br\r\n";
    world.fusebox.backend("clickhouse").unwrap().set_offline(true).await.unwrap();
    for (headers, body, status) in [
        ("", joined.as_bytes().to_vec(), 503),
        (GZIP, gzip(joined), 503),
        ("", format!("-- rows\n{}{joined}", " ".repeat(70 << 10)).into_bytes(), 503),
        (brotli, wide.to_vec(), 503),
        ("", admin.as_bytes().to_vec(), 403),
        (GZIP, gzip(admin), 403),
    ] {
        let answer = world.client().ask(INSERT, headers, &body).await;
        assert_eq!(answer.status, status, "{headers} {}: {}", body.len(), answer.text());
    }
    assert_eq!(view(&world).queue.calls, 0);
}
