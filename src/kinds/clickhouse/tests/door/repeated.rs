//! What is sent again, or might be, and what a client learns of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    http::request::Parts,
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::{reads::forwarded, *};

const TABLE: &str = "CREATE TABLE default.q (n Int32, s String) ENGINE = MergeTree ORDER BY n \
     SETTINGS non_replicated_deduplication_window = 100";
const DURABLE: &str = "X-Fusebox-Min-Ack: durable\r\n";
/// An error that a query ran into by itself, which says nothing of the server.
const OF_QUERY: &str = "Code: 241. DB::Exception: Memory limit (for query) exceeded: would use 9.00 GiB. \
     (MEMORY_LIMIT_EXCEEDED) (version 26.7.2.1)\n";

/// What becomes of a request on its way to the server.
#[derive(Clone, Copy)]
enum Way {
    Through,
    /// It never arrives.
    Reset,
    /// It arrives, and its answer does not come back.
    Lost,
    /// It does not arrive, and is answered with this status, these bytes, and as a number of an exception if so.
    Answered(u16, &'static str, bool),
}

type Script = dyn Fn(&Parts, &Bytes) -> Way + Send + Sync;

/// A network before the server at `port` that does with each request what a script says. Returns its own port.
async fn network(port: u16, script: impl Fn(&Parts, &Bytes) -> Way + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let script: Arc<Script> = Arc::new(script);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let script = Arc::clone(&script);
            let answer = service_fn(move |request| carried(port, request, Arc::clone(&script)));
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    own
}

async fn carried(
    port: u16,
    request: Request<Incoming>,
    script: Arc<Script>,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    match script(&head, &body) {
        Way::Through => forwarded(port, head, body).await,
        Way::Reset => Err("it never arrives".into()),
        Way::Lost => {
            forwarded(port, head, body).await?;
            Err("its answer is lost".into())
        }
        Way::Answered(status, text, has_number) => {
            let mut response = Response::builder().status(status);
            if has_number {
                let number = text.trim_start_matches("Code: ").split('.').next().unwrap();
                response = response.header("X-ClickHouse-Exception-Code", number);
            }
            Ok(response.body(Full::new(Bytes::from_static(text.as_bytes())))?)
        }
    }
}

/// What becomes of the inserts with a token, one after the other; all else goes through.
fn of_inserts(ways: &'static [Way]) -> impl Fn(&Parts, &Bytes) -> Way + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |head, _| {
        if !head.uri.query().unwrap_or_default().contains("insert_deduplication_token=") {
            return Way::Through;
        }
        ways.get(count.fetch_add(1, SeqCst)).copied().unwrap_or(Way::Through)
    }
}

impl World {
    /// One whose server is behind a network.
    async fn behind(
        script: impl Fn(&Parts, &Bytes) -> Way + Send + Sync + 'static,
        timeout: Duration,
    ) -> Self {
        let server = Server::of(Engine::Current).await;
        server.ask(TABLE).await;
        let port = network(server.port, script).await;
        Self::at(port, server, backend(timeout, 64), door()).await
    }
}

#[tokio::test]
async fn an_error_of_a_repetition_leaves_an_insert_in_doubt() {
    let script = of_inserts(&[Way::Lost, Way::Answered(500, OF_QUERY, true)]);
    let world = World::behind(script, Duration::from_secs(5)).await;
    let insert = "INSERT INTO default.q VALUES (1, 'x')";
    let answer = world.client().ask("POST /", DURABLE, insert).await;
    let code = answer.header("x-clickhouse-exception-code");
    assert_eq!((answer.status, code), (500, Some("209")), "{}", answer.text());
    assert!(answer.text().contains("it may have been executed (op_id 0"), "{}", answer.text());
    assert_eq!(answer.header("x-fusebox-ack"), None);
    assert_eq!(world.server.ask("SELECT count() FROM default.q").await, "1");
}

#[tokio::test]
async fn an_insert_that_fails_behind_the_head_of_its_answer_is_not_applied() {
    let world = World::open().await;
    world.server.ask(TABLE).await;
    let rows: Vec<String> = (0..20_000).map(|n| format!("{n},x\n")).collect();
    let body = rows.concat() + "bad,row\n";
    let line = "POST /?query=INSERT%20INTO%20default.q%20FORMAT%20CSV&send_progress_in_http_headers=1\
         &http_headers_progress_interval_ms=0&max_insert_block_size=1000&min_insert_block_size_rows=1000\
         &min_insert_block_size_bytes=1";
    for headers in ["", DURABLE] {
        let answer = world.client().ask(line, headers, &body).await;
        assert_eq!(answer.header("x-clickhouse-exception-code"), Some("27"), "{answer:?}");
        assert!(answer.text().contains("Code: 27. DB::Exception"), "{}", answer.text());
        assert_eq!(answer.header("x-fusebox-ack"), None, "{headers}");
    }
}

#[tokio::test]
async fn an_insert_is_applied_once_its_answer_has_ended_without_an_exception() {
    for has_number in [false, true] {
        let ways: &'static [Way] = vec![Way::Answered(200, OF_QUERY, has_number); 2].leak();
        let world = World::behind(of_inserts(ways), Duration::from_secs(5)).await;
        let mut client = world.client();
        let insert = "INSERT INTO default.q VALUES (1, 'x')";
        let answer = client.ask("POST /", DURABLE, insert).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, OF_QUERY));
        assert_eq!(answer.header("x-fusebox-ack"), None, "{has_number}");
        // Nothing of it is left that keeps another write waiting.
        assert_eq!(client.query("TRUNCATE TABLE default.q").await.status, 200);
    }
}

#[tokio::test]
async fn an_insert_whose_body_broke_off_keeps_its_place_until_it_has_ended() {
    let world = World::open().await;
    for statement in [
        "CREATE TABLE default.t (n UInt8) ENGINE = MergeTree ORDER BY n",
        "CREATE TABLE default.other (n UInt8) ENGINE = MergeTree ORDER BY n",
        "CREATE MATERIALIZED VIEW default.slow ENGINE = Null AS SELECT n, sleep(1) FROM default.t",
    ] {
        world.server.ask(statement).await;
    }
    let mut client = world.client();
    let line = "POST /?query=INSERT%20INTO%20default.t%20FORMAT%20RowBinary&max_insert_block_size=1000\
         &min_insert_block_size_rows=1000&min_insert_block_size_bytes=1";
    client.send(format!("{line} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    for _ in 0..4 {
        client.send("10000\r\n").await;
        client.send(vec![7; 0x1_0000]).await;
        client.send("\r\n").await;
    }
    until("a block is there", || async {
        world.server.ask("SELECT count() > 0 FROM default.t").await == "1"
    })
    .await;
    drop(client);
    until("the door knows", || async { world.door.view().connections.shared == 0 }).await;
    let after = world.client().query("TRUNCATE TABLE default.other").await;
    assert_eq!(after.status, 200, "{}", after.text());
    let left = running(&world.server, "INSERT INTO default.t").await;
    assert_eq!(left, "0", "what comes after it waits until it has ended");
}

#[tokio::test]
async fn a_read_under_its_clients_own_id_is_sent_again_once_the_last_sending_is_over() {
    let count = AtomicUsize::new(0);
    let script = move |_: &Parts, body: &Bytes| {
        let is_first = body.starts_with(b"SELECT sleep(1)") && count.fetch_add(1, SeqCst) == 0;
        if is_first { Way::Reset } else { Way::Through }
    };
    let world = World::behind(script, Duration::from_secs(5)).await;
    let answer = world.client().ask("POST /?query_id=mine", "", "SELECT sleep(1)").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "0\n"));
    assert_eq!(answer.header("x-fusebox-attempts"), Some("2"));
}

#[tokio::test]
async fn a_read_that_takes_too_long_does_not_meet_itself() {
    let world = World::with(Duration::from_secs(1), 64, door()).await;
    let slow = "SELECT sleepEachRow(0.1), 'itself' FROM numbers(100) SETTINGS max_block_size = 1 FORMAT Null";
    // No two share an id or a session: the query before may not have ended yet.
    for line in ["POST /?query_id=a", "POST /?session_id=b", "POST /?session_id=c&query_id=c"] {
        let answer = world.client().ask(line, "", slow).await;
        let code = answer.header("x-clickhouse-exception-code");
        assert!(matches!(code, Some("209" | "210")), "{line}: {}", answer.text());
    }
    until("nothing is left of it", || async { running(&world.server, "itself").await == "0" })
        .await;
}

/// A query of somebody else's under the id `victim`, which has run for a while.
async fn victim(world: &World) -> Wire<TcpStream> {
    let mut victim = world.direct().await;
    let slow = "SELECT sleepEachRow(0.1), 'victim' FROM numbers(300) SETTINGS max_block_size = 1 FORMAT Null";
    victim.begin("POST /?query_id=victim", slow).await;
    let age = "SELECT count() FROM system.processes WHERE query_id = 'victim' AND elapsed > 2.5";
    until("it has run for a while", || async { world.server.ask(age).await.trim() == "1" }).await;
    victim
}

#[tokio::test]
async fn a_read_that_is_given_up_takes_no_other_query_of_its_id_with_it() {
    let world = World::open().await;
    let _victim = victim(&world).await;
    let mut client = world.client();
    for deadline in ["1us", "1ms", "5ms"] {
        let headers = format!("X-Fusebox-Deadline: {deadline}\r\n");
        client.ask("POST /?query_id=victim", &headers, "SELECT 1").await;
    }
    // It is sent once what is left of those is over, and the server knows the other one by that name.
    let answer = client.ask("POST /?query_id=victim", "", "SELECT 1").await;
    assert_eq!(answer.header("x-clickhouse-exception-code"), Some("216"), "{}", answer.text());
    assert_eq!(running(&world.server, "victim").await, "1");
    let (reserved, long) = ("fusebox:door:run:1".to_owned(), "x".repeat(4_097));
    for id in [reserved, long] {
        let refused = client.ask(&format!("POST /?query_id={id}"), "", "SELECT 1").await;
        assert_eq!(refused.status, 400, "{}", refused.text());
    }
    world.server.ask("KILL QUERY WHERE query_id = 'victim' SYNC").await;
}

#[tokio::test]
async fn a_write_in_doubt_takes_no_other_query_of_its_id_with_it() {
    let script = |head: &Parts, _: &Bytes| {
        let is_ours = head.uri.query().is_some_and(|query| query.contains("query_id=victim"));
        if is_ours { Way::Reset } else { Way::Through }
    };
    let world = World::behind(script, Duration::from_secs(5)).await;
    let _victim = victim(&world).await;
    let truncate = "TRUNCATE TABLE default.q";
    let lost = world.client().ask("POST /?query_id=victim", "", truncate).await;
    assert_eq!(lost.header("x-clickhouse-exception-code"), Some("209"), "{}", lost.text());
    // It is sent once nothing is left of the one before.
    let after = world.client().query(truncate).await;
    assert_eq!(after.status, 200, "{}", after.text());
    assert_eq!(running(&world.server, "victim").await, "1");
    world.server.ask("KILL QUERY WHERE query_id = 'victim' SYNC").await;
}

#[tokio::test]
async fn a_reload_sends_reads_again_under_their_clients_own_names() {
    let world = World::open().await;
    let lines = ["POST /?query_id=mine", "POST /?session_id=mine"];
    let mut clients = [world.client(), world.client()];
    for (number, client) in clients.iter_mut().enumerate() {
        client.begin(lines[number], &format!("SELECT sleep(1.5), {number}")).await;
    }
    until("they run", || async { running(&world.server, "sleep(1.5)").await == "2" }).await;
    world.reload(world.server.port, Duration::from_secs(6)).await;
    for (number, client) in clients.iter_mut().enumerate() {
        let answer = client.answer("POST").await;
        let expected = (200, format!("0\t{number}\n"));
        assert_eq!((answer.status, answer.text()), expected, "{}", lines[number]);
    }
}

/// A world after a reload, in which an insert still runs under the id `mine`: nobody could look for it yet, and the
/// connector that sent it does not any more.
async fn left_in_doubt() -> World {
    let is_deaf = Arc::new(AtomicBool::new(false));
    let deaf = Arc::clone(&is_deaf);
    let script = move |_: &Parts, body: &Bytes| {
        let looks = body.starts_with(b"SELECT query_id, elapsed FROM system.processes");
        if looks && deaf.load(SeqCst) { Way::Reset } else { Way::Through }
    };
    let server = Server::of(Engine::Current).await;
    server.ask(TABLE).await;
    let port = network(server.port, script).await;
    let world = World::at(port, server, backend(Duration::from_secs(5), 64), door()).await;
    let mut writer = world.client();
    let slow = "INSERT INTO default.q SELECT number + sleepEachRow(0.1), 'x' FROM numbers(100) \
                SETTINGS max_block_size = 1";
    writer.begin("POST /?query_id=mine", slow).await;
    until("it runs", || async { running(&world.server, "INSERT INTO default.q").await == "1" })
        .await;
    is_deaf.store(true, SeqCst);
    world.reload(port, Duration::from_secs(6)).await;
    let unknown = writer.answer("POST").await;
    assert_eq!(unknown.header("x-clickhouse-exception-code"), Some("209"), "{}", unknown.text());
    assert_eq!(running(&world.server, "INSERT INTO default.q").await, "1");
    is_deaf.store(false, SeqCst);
    world
}

#[tokio::test]
async fn a_write_under_its_clients_own_id_is_ended_before_nobody_knows_it_any_more() {
    let world = World::open().await;
    world.server.ask(TABLE).await;
    let mut writer = world.client();
    // It takes longer than it is waited for below.
    let slow = "INSERT INTO default.q SELECT number + sleepEachRow(0.1), 'x' FROM numbers(600) \
                SETTINGS max_block_size = 1";
    writer.begin("POST /?query_id=mine", slow).await;
    until("it runs", || async { running(&world.server, "INSERT INTO default.q").await == "1" })
        .await;
    // The connector to another address knows nothing of it.
    let other = network(world.server.port, |_, _| Way::Through).await;
    world.reload(other, Duration::from_secs(6)).await;
    let unknown = writer.answer("POST").await;
    assert_eq!(unknown.header("x-clickhouse-exception-code"), Some("209"), "{}", unknown.text());
    until("it has ended", || async {
        running(&world.server, "INSERT INTO default.q").await == "0"
    })
    .await;
}

#[tokio::test]
async fn a_write_under_its_clients_own_id_that_a_reload_leaves_ends_before_what_comes_after_it() {
    let world = left_in_doubt().await;
    let after = world.client().query("TRUNCATE TABLE default.q").await;
    assert_eq!(after.status, 200, "{}", after.text());
    assert_eq!(running(&world.server, "INSERT INTO default.q").await, "0");
}

#[tokio::test]
async fn a_write_under_its_clients_own_id_that_a_reload_leaves_ends_before_its_id_is_used_again() {
    let world = left_in_doubt().await;
    let after = world.client().ask("POST /?query_id=mine", "", "SELECT 7").await;
    assert_eq!((after.status, after.text().as_str()), (200, "7\n"));
    assert_eq!(running(&world.server, "INSERT INTO default.q").await, "0");
}
