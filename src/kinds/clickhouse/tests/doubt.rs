//! What real servers throw in the middle of a write, and what of it is a proof that nothing was written.

use super::*;
use crate::kinds::clickhouse::testing::Engine;

const BOTH: [Engine; 2] = [Engine::Old, Engine::Current];
/// 100 rows make a block.
const BLOCKS_OF_100: [(&str, &str); 3] = [
    ("max_insert_block_size", "100"),
    ("min_insert_block_size_rows", "100"),
    ("min_insert_block_size_bytes", "1"),
];

/// How a write ended: its class, whether it is in doubt, the code; `None` if it went well.
type End = Option<(ErrorClass, bool, String)>;

struct World {
    server: Server,
    connector: Arc<ClickHouseConnector>,
}

impl World {
    fn of(server: Server) -> Self {
        let connector = ClickHouseConnector::new(server.settings("i", "r"));
        Self { server, connector }
    }

    /// Sends an insert of `rows` into `table` under `settings`.
    async fn insert(&self, table: &str, settings: &[(&str, &str)], rows: String) -> End {
        let header = Header {
            query: format!("INSERT INTO {table} FORMAT TabSeparated"),
            settings: settings.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
            ..Header::default()
        };
        let body = Call { header, data: rows.into() }.to_bytes();
        let token = Some(OpId::from_u128(fastrand::u128(..)));
        let sent = Sent { token, timeout: Duration::from_secs(20), ..Sent::of(body) };
        let error = sent.to(&self.connector).await.result.err()?;
        // Whether it could be repeated is another matter.
        let class = match error.class {
            ErrorClass::Ambiguous => ErrorClass::Unknown,
            class => class,
        };
        Some((class, error.doubt.is_some(), error.code.to_string()))
    }

    async fn count(&self, table: &str) -> u64 {
        self.server.ask(&format!("SELECT count() FROM default.{table}")).await.parse().unwrap()
    }
}

fn numbers(from: u64, to: u64) -> String {
    (from..to).flat_map(|number| [number.to_string(), "\n".to_owned()]).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with an end that may be none")]
fn end(class: ErrorClass, doubt: bool, code: &str) -> End {
    Some((class, doubt, code.to_owned()))
}

#[tokio::test]
async fn a_disk_that_is_full_after_some_blocks_leaves_them_and_is_in_doubt() {
    for engine in BOTH {
        let world = World::of(Server::on_small_disk(engine, 16).await);
        world
            .server
            .ask("CREATE TABLE default.t (s String) ENGINE = MergeTree ORDER BY tuple()")
            .await;
        // 1,200 rows of 20 KiB that no server can make smaller.
        let mut random = fastrand::Rng::with_seed(7);
        let mut row = || (0..20_480).map(|_| random.alphanumeric()).collect::<String>() + "\n";
        let rows: String = (0..1_200).map(|_| row()).collect();
        let ended = world.insert("t", &BLOCKS_OF_100, rows).await;
        let code = if engine == Engine::Old { "75" } else { "243" };
        assert_eq!(ended, end(ErrorClass::Unknown, true, code), "{engine:?}");
        let there = world.count("t").await;
        assert!((100..1_200).contains(&there), "{engine:?}: {there}");
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_parsed_is_in_doubt_behind_blocks_and_not_within_one() {
    for engine in BOTH {
        let world = World::of(Server::of(engine).await);
        world.server.ask("CREATE TABLE default.t (n UInt64) ENGINE = MergeTree ORDER BY n").await;
        let rows = format!("{}bad\n{}", numbers(0, 800), numbers(800, 1_200));
        let ended = world.insert("t", &[], rows.clone()).await;
        assert_eq!(ended, end(ErrorClass::Rejected, false, "27"), "{engine:?}");
        assert_eq!(world.count("t").await, 0);
        let ended = world.insert("t", &BLOCKS_OF_100, rows.clone()).await;
        assert_eq!(ended, end(ErrorClass::Rejected, true, "27"), "{engine:?}");
        let there = world.count("t").await;
        assert!((100..=800).contains(&there), "{engine:?}: {there}");
        // The status line says 200 by then.
        let progress =
            [("send_progress_in_http_headers", "1"), ("http_headers_progress_interval_ms", "0")];
        let settings = [&BLOCKS_OF_100[..], &progress].concat();
        let ended = world.insert("t", &settings, rows).await;
        assert_eq!(ended, end(ErrorClass::Rejected, true, "27"), "{engine:?}");
    }
}

#[tokio::test]
async fn what_is_thrown_before_the_rows_are_read_is_a_proof() {
    for engine in BOTH {
        let world = World::of(Server::of(engine).await);
        world.server.ask("CREATE TABLE default.t (n UInt64) ENGINE = MergeTree ORDER BY n").await;
        for (table, settings, class, code) in [
            ("nothing", &BLOCKS_OF_100[..], ErrorClass::BlockedObject, "60"),
            ("nowhere.t", &BLOCKS_OF_100, ErrorClass::BlockedObject, "81"),
            ("t (m)", &BLOCKS_OF_100, ErrorClass::Rejected, "16"),
            ("t", &[("no_setting", "1")], ErrorClass::Rejected, "115"),
        ] {
            let ended = world.insert(table, settings, numbers(0, 1_200)).await;
            if code == "16" && engine == Engine::Old {
                // The 2018 server has another code for it, which it also has for what is in rows.
                assert!(ended.is_some_and(|(class, ..)| class == ErrorClass::Rejected));
                continue;
            }
            assert_eq!(ended, end(class, false, code), "{engine:?} {table}");
        }
        let statement = Sent::of(body("CREATE TABLE t (n UInt64) ENGINE = Memory"));
        let error = statement.to(&world.connector).await.result.unwrap_err();
        assert_eq!(
            (error.class, error.doubt, error.code.as_str()),
            (ErrorClass::Rejected, None, "57")
        );
    }
}

#[tokio::test]
async fn a_view_that_throws_leaves_the_row_in_the_table_and_is_in_doubt() {
    for engine in BOTH {
        let world = World::of(Server::of(engine).await);
        world.server.ask("CREATE TABLE default.t (n UInt64) ENGINE = MergeTree ORDER BY n").await;
        let view = "CREATE MATERIALIZED VIEW default.v ENGINE = MergeTree ORDER BY n AS \
                    SELECT n + throwIf(n = 13) AS n FROM default.t";
        world.server.ask(view).await;
        let ended = world.insert("t", &[], "13\n".to_owned()).await;
        assert_eq!(ended, end(ErrorClass::Rejected, true, "395"), "{engine:?}");
        assert_eq!(world.count("t").await, 1, "{engine:?}");
    }
}

#[tokio::test]
async fn too_many_parts_or_partitions_are_a_proof_only_for_one_block() {
    for engine in BOTH {
        let world = World::of(Server::of(engine).await);
        let parted = "CREATE TABLE default.t (d Date, n UInt64) ENGINE = MergeTree PARTITION BY toYYYYMM(d) \
                      ORDER BY n";
        world.server.ask(parted).await;
        let rows = |month: u32, count: u32| {
            let row = |n: u32| [format!("2026-{month:02}-01\t{n}"), "\n".to_owned()];
            (0..count).flat_map(row).collect::<String>()
        };
        // Each block but the last is of one month.
        let narrow = |more: &[(&'static str, &'static str)]| {
            [&[("max_partitions_per_insert_block", "1")], more].concat()
        };
        let both = rows(1, 300) + &rows(2, 50) + &rows(3, 50);
        let ended = world.insert("t", &narrow(&[]), both.clone()).await;
        if engine == Engine::Old {
            // It knows no such limit.
            assert_eq!(ended, end(ErrorClass::Rejected, false, "115"));
        } else {
            assert_eq!(ended, end(ErrorClass::Rejected, false, "252"));
            assert_eq!(world.count("t").await, 0);
            let ended = world.insert("t", &narrow(&BLOCKS_OF_100), both).await;
            assert_eq!(ended, end(ErrorClass::Rejected, true, "252"));
            // A server keeps a block when the next one has been read.
            let there = world.count("t").await;
            assert!((100..=300).contains(&there), "{there}");
        }
        let full = "CREATE TABLE default.full (n UInt64) ENGINE = MergeTree ORDER BY n \
                    SETTINGS parts_to_throw_insert = 1, parts_to_delay_insert = 1";
        world.server.ask(full).await;
        world.server.ask("INSERT INTO default.full VALUES (0)").await;
        for settings in [&[][..], &BLOCKS_OF_100] {
            let ended = world.insert("full", settings, numbers(0, 1_200)).await;
            let proven = engine == Engine::Current || settings.is_empty();
            let class = if proven { ErrorClass::NotExecuted } else { ErrorClass::Unknown };
            assert_eq!(ended, end(class, !proven, "252"), "{engine:?} {settings:?}");
            assert_eq!(world.count("full").await, 1, "{engine:?}");
        }
    }
}

#[tokio::test]
async fn too_many_parts_of_a_table_that_a_view_feeds_are_no_proof_where_the_row_is_there() {
    for engine in BOTH {
        let world = World::of(Server::of(engine).await);
        for statement in [
            "CREATE TABLE default.t (n UInt64) ENGINE = MergeTree ORDER BY n",
            "CREATE TABLE default.full (n UInt64) ENGINE = MergeTree ORDER BY n \
             SETTINGS parts_to_throw_insert = 1, parts_to_delay_insert = 1",
            "CREATE MATERIALIZED VIEW default.v TO default.full AS SELECT n FROM default.t",
        ] {
            world.server.ask(statement).await;
        }
        world.server.ask("INSERT INTO default.full VALUES (0)").await;
        let ended = world.insert("t", &[], numbers(1, 2)).await;
        let Some((_, doubt, code)) = ended else { panic!("{engine:?}: it went well") };
        let there = world.count("t").await;
        assert_eq!(code, "252", "{engine:?}");
        assert!(doubt || there == 0, "{engine:?}: {there} rows");
    }
}
