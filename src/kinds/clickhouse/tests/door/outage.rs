//! The server goes, or the client does.

use super::*;

/// Rows that come one after the other, for about a hundred seconds.
const SLOW: &str = "SELECT sleepEachRow(0.05), 'slowly', repeat('x', 5000) FROM numbers(2000) SETTINGS max_block_size = 1, \
     function_sleep_max_microseconds_per_block = 0";

fn told(answer: &Answer) -> (u16, Option<&str>) {
    (answer.status, answer.header("x-clickhouse-exception-code"))
}

#[tokio::test]
async fn a_server_that_goes_is_told_as_what_it_is() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.query("CREATE TABLE default.t (n Int8) ENGINE = Memory").await.status, 200);
    assert_eq!(client.query("SELECT 1").await.status, 200);
    // In the middle of an answer: it breaks off, and nobody takes it for whole.
    let mut reader = world.client();
    reader
        .send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{SLOW}", SLOW.len()))
        .await;
    let (head, mut behind) = reader.head().await;
    assert_eq!(head.status, 200);
    while behind.is_empty() {
        assert!(reader.more(&mut behind).await);
    }
    // Before the first byte, a write: nobody knows.
    let mut writer = world.client();
    let insert = "INSERT INTO default.t SELECT sleepEachRow(0.1) FROM numbers(30) SETTINGS max_block_size = 1";
    writer
        .send(format!(
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{insert}",
            insert.len()
        ))
        .await;
    until("it runs", || async { running(&world.server, "INSERT INTO default.t").await == "1" })
        .await;
    world.server.kill();
    while reader.more(&mut behind).await {}
    assert!(!behind.ends_with(b"0\r\n\r\n"), "it is broken off");
    let unknown = writer.answer("POST").await;
    assert_eq!(told(&unknown), (500, Some("209")), "{}", unknown.text());
    assert!(unknown.text().contains("it may have been executed (op_id 0"), "{}", unknown.text());
    assert!(unknown.text().ends_with("(version 26.7.2.1)\n"), "{}", unknown.text());
    assert!(unknown.header("x-fusebox-op-id").is_some());
    // From here on nothing is sent, and after some of that the breaker is open.
    let answer = client.query("INSERT INTO default.t VALUES (1)").await;
    assert_eq!(told(&answer), (503, Some("210")), "{}", answer.text());
    let mut last = answer;
    until("the breaker opens", || async {
        world.client().query("SELECT 2").await.text().contains("breaker is open")
    })
    .await;
    for query in ["SELECT 2", "INSERT INTO default.t VALUES (1)"] {
        last = client.query(query).await;
        assert_eq!(told(&last), (503, Some("210")));
        assert!(last.text().contains("the breaker is open"), "{}", last.text());
        assert!(last.text().contains("not executed. (NETWORK_ERROR)"), "{}", last.text());
    }
    assert!(last.header("retry-after").is_some());
    // What can still be answered, is.
    assert_eq!(client.query("SELECT 1").await.text(), "1\n");
    assert_eq!(client.ask("GET /ping", "", "").await.text(), "Ok.\n");
    assert_eq!(world.closed("upstream"), 1);
    assert!(world.door.view().refused_commands["unavailable"] >= 3);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_read_at_the_server() {
    let world = World::open().await;
    let own = "POST / HTTP/1.1\r\nX-ClickHouse-Query-Id: own";
    for line in ["POST /", "POST /?query_id=it's", "POST /?query_id=", "POST /query?query_id=", own]
    {
        let mut client = world.client();
        let line = if line == own { own.to_owned() } else { format!("{line} HTTP/1.1") };
        let head = format!("{line}\r\nHost: h\r\nContent-Length: {}\r\n\r\n", SLOW.len());
        client.send(format!("{head}{SLOW}")).await;
        assert_eq!(client.head().await.0.status, 200);
        assert_eq!(running(&world.server, "slowly").await, "1");
        drop(client);
        until("it is killed", || async { running(&world.server, "slowly").await == "0" }).await;
    }
    // Before any answer.
    let mut client = world.client();
    let wait = "POST /?wait_end_of_query=1";
    let head = format!("{wait} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", SLOW.len());
    client.send(format!("{head}{SLOW}")).await;
    until("it runs", || async { running(&world.server, "slowly").await == "1" }).await;
    drop(client);
    until("it is killed", || async { running(&world.server, "slowly").await == "0" }).await;
    until("it is gone", || async { world.door.view().connections.shared == 0 }).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_taken_for_whole() {
    let world = World::open().await;
    world.server.ask("CREATE TABLE default.t (n UInt8) ENGINE = MergeTree ORDER BY n").await;
    let mut client = world.client();
    let query = "POST /?query=INSERT%20INTO%20default.t%20FORMAT%20RowBinary";
    client.send(format!("{query} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    for _ in 0..4 {
        client.send("10000\r\n").await;
        client.send(vec![7; 0x1_0000]).await;
        client.send("\r\n").await;
    }
    until("it has begun", || async {
        running(&world.server, "INSERT INTO default.t").await == "1"
    })
    .await;
    drop(client);
    until("it has ended", || async {
        running(&world.server, "INSERT INTO default.t").await == "0"
    })
    .await;
    assert_eq!(world.server.ask("SELECT count() FROM default.t").await, "0");
    assert_eq!(world.client().query("SELECT 1").await.status, 200, "it says nothing of the server");
}

#[tokio::test]
async fn a_long_body_that_the_server_does_not_read_says_nothing_of_the_server() {
    let world = World::open().await;
    let piece = vec![b'x'; 1 << 16];
    for _ in 0..5 {
        let mut client = world.client();
        let head =
            format!("POST /unknown HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 64 << 20);
        client.send(head).await;
        while client.0.write_all(&piece).await.is_ok() {
            if client.0.try_read(&mut [0; 1]).is_ok() {
                break;
            }
        }
    }
    assert_eq!(world.client().query("SELECT 1").await.status, 200);
}

#[tokio::test]
async fn an_error_of_the_servers_own_is_passed_on_whatever_it_says_of_the_server() {
    let world = World::open().await;
    let limited = "SELECT sleep(3) SETTINGS max_execution_time = 1";
    let by_itself = world.client().query(limited).await;
    assert_eq!(told(&by_itself), (408, Some("159")), "{}", by_itself.text());
    assert_eq!(by_itself.header("x-fusebox-source"), Some("live"));
    let unwell = world.client().query("SELECT * FROM remote('127.0.0.1:1', system.one)").await;
    assert_eq!(told(&unwell), (500, Some("519")), "{}", unwell.text());
    assert!(unwell.text().starts_with("Code: 519. DB::"), "{}", unwell.text());
    let view = world.door.view();
    assert_eq!((view.by_source()["live"], view.refused_commands["unavailable"]), (2, 0));
}

#[tokio::test]
async fn a_client_that_pauses_for_longer_than_the_timeout_says_nothing_of_the_server() {
    let world = World::with(Duration::from_secs(1), 64, door()).await;
    world.server.ask("CREATE TABLE default.t (n UInt8) ENGINE = MergeTree ORDER BY n").await;
    let mut client = world.client();
    let query = "POST /?query=INSERT%20INTO%20default.t%20FORMAT%20RowBinary";
    let length = 3 << 16;
    client.send(format!("{query} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n")).await;
    for _ in 0..3 {
        // The pause is what this is about.
        tokio::time::sleep(Duration::from_millis(1_300)).await;
        client.send(vec![7; 1 << 16]).await;
    }
    let answer = client.answer("POST").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(world.server.ask("SELECT count() FROM default.t").await, length.to_string());
}

#[tokio::test]
async fn a_full_bulkhead_refuses_and_does_not_wait() {
    let world = World::with(Duration::from_secs(5), 1, door()).await;
    let mut client = world.client();
    assert_eq!(client.query("SELECT 1").await.status, 200);
    let mut slow = world.client();
    slow.send(format!(
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{SLOW}",
        SLOW.len()
    ))
    .await;
    assert_eq!(slow.head().await.0.status, 200);
    let full = client.query("SELECT 2").await;
    assert_eq!(told(&full), (503, Some("202")), "{}", full.text());
    drop(slow);
    until("its place is free", || async { world.client().query("SELECT 2").await.status == 200 })
        .await;
}

#[tokio::test]
async fn a_door_that_stops_finishes_what_runs_and_closes() {
    let world = World::open().await;
    let mut client = world.client();
    let query = "SELECT sleep(1) FORMAT Null";
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{query}",
            query.len()
        ))
        .await;
    until("it runs", || async { running(&world.server, "sleep(1)").await == "1" }).await;
    let mut idle = world.client();
    assert_eq!(idle.query("SELECT 1").await.header("connection"), None);
    let stopped = tokio::spawn(world.door.stop());
    let answer = client.answer("POST").await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(client.is_closed().await && idle.is_closed().await);
    timeout(PATIENCE, stopped).await.unwrap().unwrap();
    assert_eq!(world.closed("stop"), 2);
}

#[tokio::test]
async fn servers_that_a_client_makes_up_open_no_breaker() {
    let world = World::with(Duration::from_secs(2), 64, door()).await;
    world.server.ask("CREATE TABLE default.t (n UInt64) ENGINE = MergeTree ORDER BY n").await;
    let mut client = world.client();
    let remote = "(SELECT count() FROM remote('127.0.0.1:1', system.one))";
    let made_up = [
        (format!("SELECT * FROM {remote}"), "519"),
        (format!("INSERT INTO default.t VALUES ({remote})"), "519"),
        (format!("INSERT INTO default.t SELECT * FROM {remote}"), "519"),
        ("SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')".into(), "279"),
        (
            "INSERT INTO FUNCTION url('http://127.0.0.1:1/', CSV, 'a Int8') VALUES (1)".into(),
            "1000",
        ),
        (
            "CREATE TABLE default.r (n Int8) ENGINE = ReplicatedMergeTree('/r', 'r') ORDER BY n"
                .into(),
            "225",
        ),
    ];
    for (statement, code) in &made_up {
        for headers in ["", GZIP] {
            let body = if headers == GZIP { gzip(statement) } else { statement.clone().into() };
            let answer = client.ask("POST /", headers, body).await;
            let told = answer.header("x-clickhouse-exception-code");
            assert_eq!(told, Some(*code), "{statement} {headers}: {}", answer.text());
        }
    }
    // In a form, which is not read.
    let form = "Content-Type: multipart/form-data; boundary=B\r\n";
    for _ in 0..4 {
        let body = format!(
            "--B\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT * FROM {remote}\r\n--B--\r\n"
        );
        let answer = client.ask("POST /", form, body).await;
        assert_eq!(answer.header("x-clickhouse-exception-code"), Some("519"), "{}", answer.text());
    }
    // This one is still being asked when the backend's time is up.
    let slow = client.query("SELECT * FROM url('http://127.0.0.1:1/', CSV, 'a Int8')").await;
    assert_eq!(told(&slow), (500, Some("209")), "{}", slow.text());
    assert_eq!(client.query("SELECT 2").await.text(), "2\n", "the breaker is closed");
}

/// The beginning of an answer comes at once, and the rest a row at a time.
fn slowly(seconds: f64, rows: u32) -> String {
    format!(
        "SELECT number, 'slowly', sleepEachRow({seconds}), repeat('x', 70000) FROM numbers({rows}) \
         SETTINGS max_block_size = 1"
    )
}

#[tokio::test]
async fn an_answer_that_ends_early_counts_only_if_the_server_is_to_blame() {
    let world = World::open().await;
    let failures = || {
        let breaker = world.fusebox.backend("clickhouse").unwrap().view().breaker;
        (breaker.window_calls, breaker.window_failures)
    };
    let before = failures().0;
    for _ in 0..4 {
        let mut client = world.client();
        let query = slowly(0.05, 600);
        let head = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", query.len());
        client.send(format!("{head}{query}")).await;
        assert_eq!(client.head().await.0.status, 200);
        world
            .server
            .ask("KILL QUERY WHERE query LIKE '%slowly%' AND query NOT LIKE 'KILL%' SYNC")
            .await;
        let mut rest = Vec::new();
        while client.more(&mut rest).await {}
        assert!(String::from_utf8_lossy(&rest).contains("394"), "an admin has killed it");
    }
    assert_eq!(failures(), (before + 4, 0), "four answers, and no failure");
}

#[tokio::test]
async fn a_caller_in_a_hurry_gets_an_answer_that_pauses_whole() {
    let world = World::open().await;
    let hurry = "X-Fusebox-Deadline: 1s\r\n";
    let line = "POST /?buffer_size=1";
    // The head comes with the first row, and the second row after a pause that is longer than the deadline.
    let query = "SELECT sleep(0.1) UNION ALL SELECT sleep(1.6)";
    let answer = world.client().ask(line, hurry, query).await;
    assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.text());
    assert_eq!(answer.text().lines().count(), 2);
    let breaker = world.fusebox.backend("clickhouse").unwrap().view().breaker;
    assert_eq!(breaker.window_failures, 0);
}
