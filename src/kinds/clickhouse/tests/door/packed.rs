//! Statements that a client has packed are known as plain ones are.

use super::*;
use crate::kinds::clickhouse::protocol::outcome::Exception;

#[tokio::test]
async fn a_packed_query_is_cached_and_a_plain_one_has_its_answer() {
    let mut world = World::open().await;
    let mut client = world.client();
    let query = "SELECT count() FROM numbers(7)";
    let line = "POST /?session_id=mine";
    assert_eq!(client.ask(line, GZIP, gzip(query)).await.text(), "7\n");
    assert_eq!(client.ask("POST /?query=SELECT", GZIP, gzip("8")).await.text(), "8\n");
    world.loses_its_server().await;
    for (headers, body) in [("", query.into()), (GZIP, gzip(query))] {
        let answer = client.ask(line, headers, body).await;
        assert_eq!((answer.text().as_str(), answer.status), ("7\n", 200));
        assert_eq!(answer.header("x-fusebox-source"), Some("cache"));
    }
    assert_eq!(client.query("SELECT 8").await.text(), "8\n");
    // What was broken on its way says nothing.
    let broken = &gzip(query)[..20];
    assert_eq!(client.ask(line, GZIP, broken).await.status, 503);
}

#[tokio::test]
async fn what_needs_an_admin_needs_one_packed_as_well() {
    let world = World::open().await;
    let mut client = world.client();
    let joined = "DROP TABLE IF EXISTS t PARALLEL WITH SYSTEM FLUSH LOGS";
    for statement in
        ["KILL QUERY WHERE 1", "SYSTEM FLUSH LOGS", "GRANT SELECT ON *.* TO ada", joined]
    {
        let answer = client.ask("POST /", GZIP, gzip(statement)).await;
        let by_other_path = client.ask("POST /query?", GZIP, gzip(statement)).await;
        assert_eq!(by_other_path.status, 403, "{}", by_other_path.text());
        assert_eq!(answer.header("x-clickhouse-exception-code"), Some("497"), "{statement}");
        assert_eq!(answer.status, 403, "{}", answer.text());
    }
    let admin = Who { admin: true, ..CLIENT };
    let answer = world.client_of(Some(admin)).ask("POST /", GZIP, gzip("SYSTEM FLUSH LOGS")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn a_session_is_clean_until_something_is_put_into_it_packed_or_not() {
    let mut world = World::open().await;
    let mut client = world.client();
    let read = gzip("SELECT 1");
    for (id, statement) in [
        ("read", "SELECT 2"),
        ("insert", "INSERT INTO FUNCTION null('n Int8') VALUES (1)"),
        ("temporary", "CREATE TEMPORARY TABLE t (n Int8)"),
        ("use", "USE default"),
        ("path", "CREATE TEMPORARY TABLE t (n Int8)"),
    ] {
        let path = if id == "path" { "/query" } else { "/" };
        let line = format!("POST {path}?session_id={id}");
        assert_eq!(client.ask(&line, GZIP, &read).await.status, 200);
        let answer = client.ask(&line, GZIP, gzip(statement)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    world.loses_its_server().await;
    for (id, status) in
        [("read", 200), ("insert", 200), ("temporary", 503), ("use", 503), ("path", 503)]
    {
        let line = format!("POST /?session_id={id}");
        assert_eq!(client.ask(&line, GZIP, &read).await.status, status, "{id}");
    }
}

/// The servers' own errors, packed in each way.
#[tokio::test]
async fn an_error_is_read_however_the_server_packs_it() {
    for engine in [Engine::Old, Engine::Current] {
        let server = Server::of(engine).await;
        let address = ("127.0.0.1", server.port);
        for coding in ["identity", "gzip", "deflate", "br", "zstd", "lz4"] {
            for blocks in ["", "&compress=1"] {
                let line = format!("POST /?enable_http_compression=1{blocks}");
                let accepts = format!("Accept-Encoding: {coding}\r\n");
                let mut wire = Wire(TcpStream::connect(address).await.unwrap());
                let answer = wire.ask(&line, &accepts, "SELECT nosuch").await;
                // A current server says nothing if it is to do both.
                if answer.body.is_empty() && !blocks.is_empty() {
                    continue;
                }
                let packed = answer.header("content-encoding");
                let exception = Exception::of_body(None, packed, &answer.body);
                // It wants more memory than is spent on an error.
                let is_unread = packed == Some("br");
                assert_eq!(exception.is_unread, is_unread, "{engine:?} {answer:?}");
                if is_unread {
                    continue;
                }
                assert_eq!(exception.code, 47, "{engine:?} {answer:?}");
                assert!(exception.message.contains("nosuch"), "{}", exception.message);
            }
        }
    }
}

/// A server of 2018 ends an answer that failed behind its rows as a complete one.
#[tokio::test]
async fn a_packed_answer_of_an_old_server_is_not_cached() {
    let server = Server::of(Engine::Old).await;
    let port = server.port;
    let mut world = World::at(port, server, backend(Duration::from_secs(5), 64), door()).await;
    let line = "POST /?enable_http_compression=1&max_block_size=100";
    let accepts = "Accept-Encoding: gzip\r\n";
    let thrown = "SELECT number, throwIf(number = 900000) FROM numbers(1000000)";
    let blocks = line.replace("enable_http_compression", "compress");
    for (line, headers) in [(line, accepts), (&blocks, "")] {
        let failed = world.client().ask(line, headers, thrown).await;
        assert_eq!((failed.status, failed.whole), (200, true), "it looks complete");
    }
    assert_eq!(world.client().ask(line, "", "SELECT 7").await.text(), "7\n");
    world.loses_its_server().await;
    for (line, headers) in [(line, accepts), (&blocks, "")] {
        assert_eq!(world.client().ask(line, headers, thrown).await.status, 503, "{line}");
    }
    assert_eq!(world.client().ask(line, "", "SELECT 7").await.text(), "7\n");
}
