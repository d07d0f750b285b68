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
