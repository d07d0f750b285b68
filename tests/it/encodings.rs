//! Bodies in a content coding: decoded at the door, for every kind and route alike, or refused.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client};
use crate::support::firestore::{Emulator, Firestore};
use crate::support::outage::operated;
use crate::support::redis::RedisServer;

/// More than any test here takes.
const TIMEOUT: Duration = Duration::from_secs(60);

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The status, the head in small letters and the body of an answer.
fn send(
    daemon: &Client,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (u16, String, String) {
    let mut stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"\r\n")).expect("the head");
    // What is refused may be answered before its body is taken.
    drop(stream.write_all(body));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn with_clickhouse(server: &ClickHouse) -> Builder {
    Builder::default().set("backends.clickhouse.url", server.url())
}

#[test]
fn an_encoded_insert_is_inserted_as_rows() {
    const PATH: &str = "/v1/backends/clickhouse/call/raw";
    for engine in [Engine::Old, Engine::Current] {
        let server = ClickHouse::start(engine);
        server.query("CREATE TABLE t (id UInt64, s String) ENGINE = MergeTree ORDER BY id");
        let daemon = with_clickhouse(&server).start();
        let insert = ("x-fusebox-query", "INSERT INTO t FORMAT CSV");
        for (coding, body) in [
            ("gzip", gzip(b"1,one\n2,two\n")),
            ("deflate", deflate(b"3,three\n")),
            ("identity", b"4,four\n".to_vec()),
            ("GZIP", [gzip(b"5,five\n"), gzip(b"6,six\n")].concat()),
        ] {
            let headers = [insert, ("content-encoding", coding)];
            let (status, _, answer) = send(&daemon, "POST", PATH, &headers, &body);
            assert_eq!(status, 200, "{engine:?} {coding}: {answer}");
        }
        let rows = server.query("SELECT id, s FROM t ORDER BY id FORMAT CSV");
        assert_eq!(
            rows, "1,\"one\"\n2,\"two\"\n3,\"three\"\n4,\"four\"\n5,\"five\"\n6,\"six\"",
            "{engine:?}"
        );
        // More than is held: it is decoded while it is sent on.
        let rows: Vec<String> = (0..300_000).map(|id| format!("{id},many\n")).collect();
        let many = rows.concat();
        assert!(many.len() > 3 << 20, "{}", many.len());
        let headers = [insert, ("content-encoding", "gzip")];
        let (status, _, answer) = send(&daemon, "POST", PATH, &headers, &gzip(many.as_bytes()));
        assert_eq!(status, 200, "{engine:?}: {answer}");
        assert_eq!(server.query("SELECT count(), sum(id) FROM t WHERE s = 'many'"), {
            format!("300000\t{}", 300_000_u64 * 299_999 / 2)
        });
        // One that is cut short, below and above what is held, is not an insert of its beginning alone that
        // claims to be whole.
        for rows in [1_000, 300_000] {
            let whole =
                many.lines().take(rows).fold(String::new(), |text, line| text + line + "\n");
            let encoded = gzip(whole.as_bytes());
            let cut = &encoded[..encoded.len() - 9];
            let (status, _, answer) = send(&daemon, "POST", PATH, &headers, cut);
            assert_eq!(status, 400, "{engine:?} {rows}: {answer}");
            assert!(answer.contains("not complete and valid gzip"), "{answer}");
        }
    }
}

#[test]
fn every_kind_and_route_takes_an_encoded_body() {
    let redis = RedisServer::start();
    let firestore = Firestore::start(Emulator::Npm);
    let daemon = operated(&redis.url()).set("backends.firestore.url", firestore.url()).start();
    let gzipped = [("content-encoding", "gzip")];
    let post = |path: &str, body: &[u8]| {
        let (status, _, answer) = send(&daemon, "POST", path, &gzipped, &gzip(body));
        (status, answer)
    };
    let (status, answer) = post("/v1/backends/redis/call", br#"{"command":["SET","k",1e3]}"#);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(redis.get("k").as_deref(), Some("1e3"));
    let resp = b"*3\r\n$3\r\nSET\r\n$1\r\nr\r\n$3\r\na\r\n\r\n";
    let (status, answer) = post("/v1/backends/redis/call/raw", resp);
    assert_eq!((status, answer.as_str()), (200, "+OK\r\n"));
    assert_eq!(redis.get("r").as_deref(), Some("a\r\n"));
    let set = br#"{"op":"set","path":"u/a","data":{"n":1}}"#;
    for path in ["/v1/backends/firestore/call", "/v1/backends/firestore/call/raw"] {
        let (status, answer) = post(path, set);
        assert_eq!(status, 200, "{path}: {answer}");
    }
    let read = daemon.call("firestore", json!({ "op": "get", "path": "u/a" }));
    assert_eq!(read.value()["data"], json!({ "n": 1 }));
    let order = br#"{"reason":"packed"}"#;
    let (status, answer) = post("/admin/circuit-breaker/redis/force-open", order);
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("\"packed\""), "{answer}");
}

#[test]
fn what_is_not_decoded_is_refused_everywhere() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let call = br#"{"command":["SET","k","v"]}"#;
    for (method, path) in [
        ("POST", "/v1/backends/redis/call"),
        ("POST", "/v1/backends/redis/call/raw"),
        ("POST", "/v1/backends/redis/streams"),
        ("POST", "/admin/circuit-breaker/redis/force-open"),
        ("PUT", "/admin/log"),
        ("GET", "/v1/backends"),
    ] {
        for coding in ["br", "zstd", "lz4", "gzip, br", "gzip, gzip", "compress"] {
            let headers = [("content-encoding", coding)];
            let (status, head, answer) = send(&daemon, method, path, &headers, call);
            assert_eq!(status, 415, "{method} {path} {coding}: {answer}");
            assert!(head.contains("accept-encoding: gzip, deflate"), "{head}");
            let problem: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(problem["code"], "unsupported_encoding");
            assert!(problem["detail"].as_str().unwrap().contains("gzip, deflate"), "{problem}");
        }
    }
    let gzipped = [("content-encoding", "gzip")];
    let path = "/v1/backends/redis/call";
    for broken in [&call[..], b"", &gzip(call)[..20], b"\x1f\x8b"] {
        let (status, _, answer) = send(&daemon, "POST", path, &gzipped, broken);
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains("not complete and valid gzip"), "{answer}");
    }
    let order = "/admin/circuit-breaker/redis/force-open";
    let (status, _, answer) = send(&daemon, "POST", order, &gzipped, b"{}");
    assert_eq!(status, 400, "{answer}");
    assert_eq!(daemon.breaker("redis"), "CLOSED");
    assert_eq!(redis.get("k"), None);

    // 64 KiB that would be 64 MiB: ended at the limit of what is read, not held.
    let bomb = gzip(&vec![b' '; 64 << 20]);
    assert!(bomb.len() < 100 << 10, "{}", bomb.len());
    let (status, _, answer) = send(&daemon, "POST", path, &gzipped, &bomb);
    assert_eq!(status, 413, "{answer}");
    assert!(
        answer.contains("at most 32 MiB") && answer.contains("\"backend\":\"redis\""),
        "{answer}"
    );
    let (status, _, answer) = send(&daemon, "PUT", "/admin/log", &gzipped, &bomb);
    assert_eq!(status, 413, "{answer}");
    daemon.redis(&["SET", "well", "v"]).assert_live();
}
