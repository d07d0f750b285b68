//! Clients that mean it badly: each is bounded, and nobody else notices.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    large::{MIB, high_water},
    *,
};
use crate::kinds::clickhouse::protocol::decoded::testing as decoded_testing;

/// The lines `1`, 100 MiB of them, as Node's brotli packs them.
const BROTLI: &str = "y///P/ilFGLisjAA9/4v/v//wS8BEIcFALr3f/z//4NfAiAOCwB07//4//8HvwRAHBYA6N7/8f//D34JgDgsANC9/+P//x/8EgBxWACge//H//8/+CUA4rAAQPf+j///f/BLAMRhAYDu/R/////glwCIwwIA3fs//v//wS8BEIcFALr3f/z//4NfAiAOCwB07//4//8H";

/// What becomes a hundred mebibytes and more, by how it is packed.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let lines = gzip("1\n".repeat(64 * MIB));
    // Blocks that repeat one byte, of 128 KiB each: zstd says so, and lz4 in a length of half a million.
    let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
    for _ in 0..1_000 {
        zstd.extend_from_slice(&[0x02, 0, 0x10, b'1']);
    }
    zstd.extend_from_slice(&[0x03, 0, 0, b'1']);
    let mut lz4 = decoded_testing::lz4_head();
    let block = [&[0x1f, b'1', 1, 0][..], &[0xff; 16_000], &[0, 0x50], b"11111"].concat();
    for _ in 0..50 {
        lz4.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
        lz4.extend_from_slice(&block);
    }
    lz4.extend_from_slice(&[0; 4]);
    let br = STANDARD.decode(BROTLI).unwrap();
    vec![("gzip", lines), ("zstd", zstd), ("lz4", lz4), ("br", br)]
}

#[tokio::test]
async fn what_becomes_huge_is_held_by_nobody() {
    let world = World::queueing().await;
    world.server.ask("CREATE TABLE default.t (n UInt8) ENGINE = Null").await;
    assert_eq!(world.client().query("SELECT 1").await.status, 200);
    let bombs = bombs();
    let before = high_water();
    let insert = "POST /?query=INSERT%20INTO%20default.t%20FORMAT%20CSV";
    for is_offline in [false, true] {
        world.fusebox.backend("clickhouse").unwrap().set_offline(is_offline).await.unwrap();
        for (coding, bomb) in &bombs {
            let headers = format!("Content-Encoding: {coding}\r\n");
            // As a statement, which the server refuses, and eight at once.
            let mut clients: Vec<_> = (0..8).map(|_| world.client()).collect();
            let asked = clients.iter_mut().map(|client| client.ask("POST /", &headers, bomb));
            for answer in futures_util::future::join_all(asked).await {
                assert!(answer.status >= 400, "{coding}: {}", answer.text());
            }
            if is_offline {
                // As rows, which are unpacked to see whether they can be.
                let asked = clients.iter_mut().map(|client| client.ask(insert, &headers, bomb));
                for answer in futures_util::future::join_all(asked).await {
                    assert_eq!(answer.status, 200, "{coding}: {}", answer.text());
                }
            }
        }
    }
    let grown = high_water() - before;
    assert!(grown < 48 * MIB, "{} MiB more", grown / MIB);
}

#[tokio::test]
async fn an_answer_whose_head_is_too_large_says_nothing_of_the_server() {
    let world = World::with(PATIENCE, 64, door()).await;
    let line = "POST /?send_progress_in_http_headers=1&http_headers_progress_interval_ms=0&wait_end_of_query=1";
    let query = "SELECT sleepEachRow(0.0001) AS told_in_headers FROM numbers(9000) SETTINGS max_block_size = 1, \
                 function_sleep_max_microseconds_per_block = 0 FORMAT Null";
    for _ in 0..4 {
        let answer = world.client().ask(line, "", query).await;
        assert_eq!(answer.header("x-clickhouse-exception-code"), Some("36"), "{}", answer.text());
        assert!(answer.text().contains("too many headers"), "{}", answer.text());
    }
    until("nothing is left of it", || async {
        running(&world.server, "told_in_headers").await == "0"
    })
    .await;
    assert_eq!(world.client().query("SELECT 1").await.status, 200);
    assert_eq!(world.door.view().refused_commands["unavailable"], 0);
}

#[tokio::test]
async fn a_head_that_drips_is_cut_off() {
    let world = World::open().await;
    let mut slow = world.client();
    let began = std::time::Instant::now();
    slow.send("POST / HTTP/1.1\r\n").await;
    while slow.0.write_all(b"X").await.is_ok() {
        assert!(began.elapsed() < PATIENCE, "it is still read");
        // The pace is what this is about.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    until("it is closed", || async { world.door.view().connections.shared == 0 }).await;
    assert_eq!(world.client().query("SELECT 1").await.status, 200);
}

#[tokio::test]
async fn clients_that_never_read_are_closed_and_hold_little() {
    let world = World::open().await;
    assert_eq!(world.client().query("SELECT 1").await.status, 200);
    let before = high_water();
    let query =
        "SELECT repeat('y', 100000) FROM numbers(500) SETTINGS max_block_size = 9 FORMAT RawBLOB";
    let length = query.len();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = world.client();
        let head = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
        client.send(format!("{head}{query}")).await;
        clients.push(client);
    }
    let began = std::time::Instant::now();
    // As long as the server lets a client leave its answer unread.
    while world.closed("slow_reader") < 8 {
        assert!(began.elapsed() < 2 * PATIENCE, "{:?}", world.door.view().closed);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let grown = high_water() - before;
    assert!(grown < 48 * MIB, "{} MiB more", grown / MIB);
    until("they are killed", || async { running(&world.server, "RawBLOB").await == "0" }).await;
    assert_eq!(world.client().query("SELECT 2").await.status, 200);
}
