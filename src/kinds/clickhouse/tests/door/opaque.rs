//! The server's own bytes, through the door and past it.

use super::*;

const ADA: &str = "X-ClickHouse-User: ada\r\nX-ClickHouse-Key: hush\r\n";

/// The same request at the door and at the server. Returns what the door answered.
async fn alike(world: &World, line: &str, headers: &str, body: &[u8]) -> Answer {
    let direct = world.direct().await.ask(line, &format!("{ADA}{headers}"), body).await;
    let through = world.client().ask(line, headers, body).await;
    let (direct, through) = (direct.alike(), through.alike());
    assert_eq!(through.text(), direct.text(), "{line}");
    assert_eq!(through, direct, "{line}");
    through
}

#[tokio::test]
async fn pages_methods_and_paths_are_the_servers() {
    let world = World::open().await;
    for line in [
        "GET /",
        "GET /replicas_status",
        "GET /play",
        "GET /dashboard",
        "GET /unknown?a=b",
        "GET /?query=SELECT%201",
        "GET /?query=SELECT+1+FORMAT+JSONEachRow",
        "GET /?query=SELECT%20nosuch",
        "GET /?query=",
        "HEAD /?query=SELECT%201",
        "HEAD /",
        "HEAD /unknown",
        "OPTIONS /",
        "PUT /",
        "DELETE /?query=SELECT%201",
        "POST /unknown",
        "POST /?query=SELECT%202",
        "GET /query",
        "GET /query?query=SELECT%201",
        "HEAD /query?query=SELECT%201",
        "POST /query",
        "POST /query?query=SELECT%202",
        "POST /Query?query=SELECT%202",
        "POST /query/?query=SELECT%202",
        "OPTIONS /query?query=SELECT%202",
        "PUT /query?query=SELECT%202",
    ] {
        alike(&world, line, "", b"").await;
    }
    let refused = alike(&world, "GET /?query=CREATE%20TABLE%20x(a%20Int8)", "", b"").await;
    assert_eq!((refused.status, refused.header("x-clickhouse-exception-code")), (500, Some("164")));
    let ping = world.client().ask("GET /ping", "", "").await;
    assert_eq!((ping.status, ping.text().as_str()), (200, "Ok.\n"));
    let ping = world.client().ask("HEAD /ping", "", "").await;
    assert_eq!((ping.status, ping.header("content-length")), (200, Some("4")));
}

#[tokio::test]
async fn bodies_go_both_ways_as_they_are() {
    let world = World::open().await;
    let post = "POST /";
    let packed = gzip("SELECT 'packed', currentUser()");
    let answer = alike(&world, post, GZIP, &packed).await;
    assert_eq!(answer.text(), "packed\tada\n");
    let numbers = b"SELECT number FROM numbers(1000)";
    for accepts in ["gzip", "zstd", "lz4", "br", "deflate"] {
        let headers = format!("Accept-Encoding: {accepts}\r\n");
        let line = "POST /?enable_http_compression=1";
        let answer = alike(&world, line, &headers, numbers).await;
        assert_eq!(answer.header("content-encoding"), Some(accepts));
    }
    let framed = alike(&world, "POST /?compress=1", "", numbers).await;
    assert_eq!((framed.header("content-encoding"), framed.status), (None, 200));
    assert_eq!(framed.body.get(16), Some(&0x82), "it is a frame of LZ4");
    let late = "POST /?http_write_exception_in_output_format=0";
    let multipart = "--B\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT sum(n) FROM ext\r\n\
        --B\r\nContent-Disposition: form-data; name=\"ext_structure\"\r\n\r\nn Int8\r\n\
        --B\r\nContent-Disposition: form-data; name=\"ext\"; filename=\"x\"\r\n\r\n1\n2\n\r\n--B--\r\n";
    let form = "Content-Type: multipart/form-data; boundary=B\r\n";
    assert_eq!(alike(&world, post, form, multipart.as_bytes()).await.text(), "3\n");
    let thrown =
        b"SELECT number, throwIf(number = 900000) FROM numbers(1000000) SETTINGS max_block_size = 1000";
    let through = world.client().ask(late, "", thrown).await;
    let direct = world.direct().await.ask(late, ADA, thrown).await;
    let tag = through.header("x-clickhouse-exception-tag").unwrap().to_owned();
    assert_eq!((through.status, through.whole), (direct.status, direct.whole));
    assert!(through.text().contains(&format!("__exception__\r\n{tag}\r\nCode: 395")));
    // The last rows, what went wrong, and the end come at once.
    let slowly = b"SELECT sleepEachRow(0.01), throwIf(number = 30) FROM numbers(60) SETTINGS max_block_size = 1";
    for _ in 0..5 {
        let answer =
            world.client().ask("POST /?wait_end_of_query=0&buffer_size=1", "", slowly).await;
        assert!(answer.text().contains("Code: 395") && !answer.whole, "{answer:?}");
    }
    let wait = "POST /?wait_end_of_query=1";
    let early = alike(&world, wait, "", thrown).await;
    assert_eq!(early.header("x-clickhouse-exception-code"), Some("395"));
}

#[tokio::test]
async fn a_querys_own_error_in_what_is_packed_says_nothing_of_the_server() {
    let world = World::open().await;
    let thrown =
        b"SELECT cityHash64(number), throwIf(number = 900000) FROM numbers(1000000) SETTINGS max_block_size = 1000";
    for (line, accepts) in [
        ("POST /?enable_http_compression=1", "Accept-Encoding: gzip\r\n"),
        ("POST /?enable_http_compression=1", "Accept-Encoding: zstd\r\n"),
        ("POST /?compress=1", ""),
    ] {
        for _ in 0..5 {
            let answer = world.client().ask(line, accepts, thrown).await;
            assert!(answer.status == 200 && !answer.whole, "{line} {accepts}: {}", answer.status);
        }
    }
    assert_eq!(world.client().query("SELECT 2").await.text(), "2\n", "the breaker is closed");
}

#[tokio::test]
async fn a_connection_carries_one_request_after_the_other_and_a_session_stays_one() {
    let world = World::open().await;
    let mut client = world.client();
    let session = "POST /?session_id=s1";
    let made = client.ask(session, "", "CREATE TEMPORARY TABLE mine (n Int8)").await;
    assert_eq!((made.status, made.header("x-fusebox-ack")), (200, Some("applied")));
    assert_eq!(client.ask(session, "", "INSERT INTO mine VALUES (7)").await.status, 200);
    let read = client.ask(session, "", "SELECT n FROM mine").await;
    assert_eq!((read.text().as_str(), read.header("x-fusebox-source")), ("7\n", Some("live")));
    assert_eq!(read.header("x-fusebox-ack"), None, "a read promises nothing");
    assert_eq!(read.header("keep-alive"), Some("timeout=30"));
    let expose = read.header("access-control-expose-headers").unwrap();
    assert!(expose.contains("X-ClickHouse-Summary") && expose.contains("X-Fusebox-Source"));
    let id = read.header("x-clickhouse-query-id").unwrap();
    assert_eq!((id.len(), id.as_bytes()[14], id.matches('-').count()), (36, b'4', 4), "{id}");
    let own = "X-ClickHouse-Query-Id: own\r\n";
    for (line, header, expected) in [
        ("POST /?query_id=it's%20mine", own, Some("it's mine")),
        ("POST /", own, Some("own")),
        ("POST /query?query_id=", own, None),
        ("POST /?query_id=", "", None),
    ] {
        let asked = client.ask(line, header, "SELECT queryID() FORMAT TSVRaw").await;
        let id = asked.header("x-clickhouse-query-id").unwrap();
        assert_eq!(asked.text(), format!("{id}\n"));
        assert!(expected.map_or(id.len() == 36, |expected| expected == id), "{line}: {id}");
    }
    let expected =
        "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 8\r\n\r\n";
    client.send(expected).await;
    assert_eq!(client.answer("POST").await.status, 100);
    client.send("SELECT 3").await;
    assert_eq!(client.answer("POST").await.text(), "3\n");
    let chunked = "POST /?query=SELECT HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{chunked}1\r\n4\r\n1\r\n2\r\n0\r\n\r\n")).await;
    assert_eq!(client.answer("POST").await.text(), "42\n");
    // One behind the other, before either is answered, and then nonsense.
    let get = |n: u8| format!("GET /?query=SELECT%20{n} HTTP/1.1\r\nHost: h\r\n\r\n");
    client.send(format!("{}{}nonsense\r\n\r\n", get(1), get(2))).await;
    assert_eq!(client.answer("GET").await.text(), "1\n");
    assert_eq!(client.answer("GET").await.text(), "2\n");
    // It gets that answer unless it was read before the last answer had gone.
    assert!(matches!(client.answer("GET").await.status, 0 | 400));
    assert!(client.is_closed().await);
    let view = world.door.view();
    assert!(view.by_source()["live"] == 11 && view.bytes_in > 0 && view.bytes_out > 0, "{view:?}");
}

#[tokio::test]
async fn progress_in_headers_may_be_long() {
    let world = World::with(PATIENCE, 64, door()).await;
    let line = "POST /?send_progress_in_http_headers=1&http_headers_progress_interval_ms=0&wait_end_of_query=1";
    let query = "SELECT sleepEachRow(0.0001) FROM numbers(4000) SETTINGS max_block_size = 1, \
                 function_sleep_max_microseconds_per_block = 0 FORMAT Null";
    let mut client = world.client();
    let answer = client.ask(line, "", query).await;
    let progress = answer.headers.iter().filter(|(name, _)| name == "x-clickhouse-progress");
    let (count, bytes) = progress.fold((0, 0), |(n, sum), (_, it)| (n + 1, sum + it.len()));
    assert!(count > 3_000 && bytes > 400_000, "{count} headers of {bytes} bytes");
    assert_eq!((answer.status, client.query("SELECT 1").await.status), (200, 200));
}

#[tokio::test]
async fn a_head_has_room_for_many_headers_where_progress_may_be_among_them() {
    let world = World::open().await;
    let headers: Vec<String> = (0..600).map(|at| format!("'x-{at}':'1'")).collect();
    let line = format!("POST /?http_response_headers=%7B{}%7D", headers.join(","));
    let mut client = world.client();
    let answer = client.ask(&line, "", "SELECT 1").await;
    assert_eq!(answer.header("x-clickhouse-exception-code"), Some("36"), "{}", answer.text());
    for setting in ["send_progress_in_http_headers=0", "http_headers_progress_interval_ms=9"] {
        let answer = world.client().ask(&format!("{line}&{setting}"), "", "SELECT 1").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "1\n"), "{setting}");
        assert!(answer.headers.len() > 600, "{setting}: {} headers", answer.headers.len());
    }
    // The body of this one is passed on piece by piece.
    let insert =
        format!("{line}&query=INSERT%20INTO%20FUNCTION%20null('s%20String')%20FORMAT%20CSV");
    let rows = "x\n".repeat(1 << 20);
    assert_eq!(world.client().ask(&insert, "", &rows).await.status, 200);
    let asked = "SET send_progress_in_http_headers = 1";
    assert_eq!(world.client().ask("POST /?session_id=s", "", asked).await.status, 200);
    let in_session = format!("{line}&session_id=s");
    assert_eq!(world.client().ask(&in_session, "", "SELECT 1").await.status, 200);
    assert_eq!(world.client().ask(&line, "", "SELECT /* /* */ */ 1").await.status, 200);
    assert_eq!(world.client().query("SELECT 1").await.status, 200);
}

#[tokio::test]
async fn a_request_that_can_be_read_in_two_ways_is_refused() {
    let world = World::open().await;
    for head in [
        "Content-Length: 8\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 8\r\n",
        "Content-Length: 8\r\nContent-Length: 9\r\n",
        "Content-Length: 8\n",
        "X: a\r\n b\r\nContent-Length: 8\r\n",
        "Content-Length: +8\r\n",
        "Content-Length: 0x8\r\n",
        "Content-Length: -8\r\n",
        "Content-Length: 8, 9\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length : 8\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity\r\nContent-Length: 8\r\n",
    ] {
        let mut client = world.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{head}\r\nSELECT 1")).await;
        assert_eq!(client.answer("POST").await.status, 400, "{head:?}");
        assert!(client.is_closed().await, "{head:?}");
    }
    until("they are counted", || async { world.closed("protocol") == 15 }).await;
    assert_eq!(world.door.view().by_source()["live"], 0, "the server saw none of them");
    for (target, status) in [("x".repeat(70_000), 414), (String::new(), 431)] {
        let mut client = world.client();
        let header = if target.is_empty() { "x".repeat(300_000) } else { String::new() };
        client.send(format!("GET /?{target} HTTP/1.1\r\nHost: h\r\nX: {header}\r\n\r\n")).await;
        assert_eq!(client.answer("GET").await.status, status);
    }
    for (headers, status) in [(99, 200), (100, 431)] {
        let mut client = world.client();
        let more = "X: 1\r\n".repeat(headers);
        client.send(format!("GET /ping HTTP/1.1\r\nHost: h\r\n{more}\r\n")).await;
        assert_eq!(client.answer("GET").await.status, status, "{headers} headers and the host");
    }
}

#[tokio::test]
async fn chunks_that_can_be_read_in_two_ways_end_their_request() {
    let world = World::open().await;
    for chunks in [
        "11111111111111111\r\nSELECT 1",
        "8 \nSELECT 1\r\n0\r\n\r\n",
        "0x8\r\nSELECT 1\r\n0\r\n\r\n",
        "-8\r\nSELECT 1\r\n0\r\n\r\n",
        "8\r\nSELECT 1xx0\r\n\r\n",
        "\r\nSELECT 1\r\n0\r\n\r\n",
    ] {
        let mut client = world.client();
        let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(format!("{head}{chunks}GET /ping HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        assert_eq!(client.answer("POST").await.status, 400, "{chunks:?}");
        assert!(client.is_closed().await, "{chunks:?}");
    }
    assert_eq!(world.door.view().by_source()["live"], 0, "the server saw none of them");
    let mut client = world.client();
    let extended = "8;name=\"value\"\r\nSELECT 7\r\n0\r\nTrailer: x\r\n\r\n";
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}{extended}")).await;
    assert_eq!(client.answer("POST").await.text(), "7\n", "an extension means nothing");
}

#[tokio::test]
async fn a_profile_that_a_client_makes_up_opens_no_breaker() {
    let world = World::open().await;
    let mut client = world.client();
    for _ in 0..10 {
        let made_up = client.ask("POST /?profile=nosuch", "", "SELECT 1").await;
        assert_eq!(made_up.header("x-clickhouse-exception-code"), Some("180"), "{made_up:?}");
        assert_eq!(made_up.header("x-fusebox-source"), Some("live"), "{made_up:?}");
    }
    assert_eq!(client.query("SELECT 2").await.text(), "2\n", "the breaker is closed");
}
