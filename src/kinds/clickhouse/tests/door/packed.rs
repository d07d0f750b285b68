//! Statements that a client has packed are known as plain ones are.

use super::*;

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
    for statement in ["KILL QUERY WHERE 1", "SYSTEM FLUSH LOGS", "GRANT SELECT ON *.* TO ada"] {
        let answer = client.ask("POST /", GZIP, gzip(statement)).await;
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
    ] {
        let line = format!("POST /?session_id={id}");
        assert_eq!(client.ask(&line, GZIP, &read).await.status, 200);
        let answer = client.ask(&line, GZIP, gzip(statement)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    world.loses_its_server().await;
    for (id, status) in [("read", 200), ("insert", 200), ("temporary", 503), ("use", 503)] {
        let line = format!("POST /?session_id={id}");
        assert_eq!(client.ask(&line, GZIP, &read).await.status, status, "{id}");
    }
}
