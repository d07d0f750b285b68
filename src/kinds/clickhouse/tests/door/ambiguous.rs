//! Requests that the server reads in another way than they look.

use super::*;

const ROWS: &str = "SELECT n, s FROM default.t ORDER BY n FORMAT CSV";

#[tokio::test]
async fn what_is_not_text_is_a_write_that_shares_no_answer() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.query("CREATE TABLE default.t (n Int32, s String) ENGINE = MergeTree ORDER BY n").await;
    client.query("INSERT INTO default.t VALUES (1, 'one')").await;
    // Undecoded, most of this is a comment.
    let hidden =
        "POST /?query=SELECT/*%2A/+424242+UNION+ALL+SELECT%2F*%FF*/count()/**/FROM/**/default.t";
    let answer = client.ask(hidden, "", "").await;
    assert!(answer.text().contains("424242"), "{}", answer.text());
    let insert =
        "POST /?query=/*%2A/INSERT+INTO+default.t+SELECT+2,'x'+UNION+ALL%2F*%FF*/SELECT/**/3,'y'";
    let answer = client.ask(insert, "", "").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, ""));
    assert_eq!(answer.header("x-fusebox-ack"), Some("applied"), "it is a write");
    let rows = "1,\"one\"\n2,\"x\"\n3,\"y\"\n";
    assert_eq!(client.query(ROWS).await.text(), rows);
    let temporary = "CREATE TEMPORARY TABLE t (n Int32, s String)";
    assert_eq!(client.ask("POST /?session_id=%FF", "", temporary).await.status, 200);
    let own = client.ask("POST /?session_id=%ff", "", "SELECT count() FROM t").await;
    assert_eq!(own.text(), "0\n", "it is one session");
    world.loses_its_server().await;
    assert_eq!(world.client().query(ROWS).await.text(), rows);
    assert_eq!(world.client().query("SELECT count() FROM default.t").await.status, 503);
    for spelling in ["%FF", "%ff"] {
        let line = format!("POST /?session_id={spelling}");
        assert_eq!(world.client().ask(&line, "", ROWS).await.status, 503, "{spelling}");
    }
}

#[tokio::test]
async fn a_byte_order_mark_hides_no_parameter() {
    let world = World::open().await;
    for line in ["POST /?\u{feff}session_id=s", "GET /?\u{feff}query=SELECT%201"] {
        let answer = world.client().ask(line, "", "SELECT 1").await;
        let code = answer.header("x-clickhouse-exception-code");
        assert_eq!((answer.status, code), (400, Some("36")), "{line}: {}", answer.text());
    }
    assert_eq!(world.client().ask("GET /?query=SELECT%20'%EF%BB%BF'", "", "").await.status, 200);
    assert_eq!(world.door.view().by_source()["live"], 1);
}

#[tokio::test]
async fn a_parameter_that_is_there_twice_or_in_another_case_hides_no_statement() {
    let world = World::open().await;
    world.server.ask("CREATE TABLE default.t (n UInt8) ENGINE = MergeTree ORDER BY n").await;
    // As a text, this is a DROP and a comment; as a block that is not compressed, it is a SELECT.
    let text = b"DROP TABLE t -- ";
    let query = b"SELECT 1";
    let length = u32::try_from(query.len()).unwrap();
    let sizes = [(length + 9).to_le_bytes(), length.to_le_bytes()].concat();
    let body = [&text[..], &[2], &sizes, query].concat();
    let mut client = world.client();
    let line = "POST /?database=default&decompress=1&decompress=0";
    let answer = client.ask(line, "", &body).await;
    let tables = world.server.ask("SELECT count() FROM system.tables WHERE name = 't'").await;
    assert_eq!(tables.trim(), "0", "the server takes the last one: {}", answer.text());
    assert_eq!(answer.header("x-fusebox-ack"), Some("applied"), "it is a write");
    for line in ["POST /?QUERY=SELECT+1", "POST /?query=SELECT+1&query=SELECT+2"] {
        let answer = client.ask(line, "", "").await;
        assert_eq!(answer.header("x-fusebox-source"), Some("live"), "{line}");
    }
    // Nobody's credentials reach the server, however they are spelt.
    for line in ["GET /?USER=x&PASSWORD=y&query=SELECT+1", "GET /?user=x&Password=y&query=SELECT+1"]
    {
        let answer = client.ask(line, "", "").await;
        assert_eq!(answer.header("x-clickhouse-exception-code"), Some("516"), "{line}");
    }
    let breaker = world.fusebox.backend("clickhouse").unwrap().view().breaker;
    assert_eq!(breaker.window_failures, 0);
    assert_eq!(world.door.view().auth_failures, 2);
}
