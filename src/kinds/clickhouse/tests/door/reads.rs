//! What a client reads while the server is away.

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1 as client,
    http::request::Parts,
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::*;

const ROWS: &str = "SELECT n, s FROM default.t ORDER BY n FORMAT CSV";

impl World {
    /// Takes the server away, and waits until the door knows.
    pub(super) async fn loses_its_server(&mut self) {
        self.server.kill();
        until("the breaker is open", || async {
            let told = self.client().query("INSERT INTO default.t VALUES (9, 'x')").await;
            told.text().contains("breaker is open")
        })
        .await;
    }
}

#[tokio::test]
async fn what_was_read_is_answered_from_the_cache_as_it_was() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.query("CREATE TABLE default.t (n Int32, s String) ENGINE = MergeTree ORDER BY n").await;
    client.query("INSERT INTO default.t VALUES (1, 'one'), (2, 'two')").await;
    let gzip = "Accept-Encoding: gzip\r\n";
    let packed = "POST /?enable_http_compression=1&query_id=first";
    let get = "GET /?query=SELECT%20{a:Int8}&param_a=7";
    let reads = [
        ("POST /", "", ROWS),
        (packed, gzip, ROWS),
        (get, "", ""),
        ("POST /?default_format=JSONEachRow", "", "SELECT n FROM default.t ORDER BY n"),
        ("POST /", "", "SELECT number FROM numbers(20000)"),
        ("POST /", "", "SELECT version(), timezone()"),
        ("POST /", "", "SELECT name, value, readonly AS readonly FROM system.settings LIMIT 10"),
    ];
    let mut answers = Vec::new();
    for (line, headers, body) in reads {
        let answer = client.ask(line, headers, body).await;
        assert_eq!(
            (answer.status, answer.header("x-fusebox-source")),
            (200, Some("live")),
            "{body}"
        );
        answers.push(answer);
    }
    // What is larger than an entry, what fails behind its rows, and what is the server's own.
    let never = [
        "SELECT number FROM numbers(100000)",
        "SELECT throwIf(number = 900) FROM numbers(1000) SETTINGS max_block_size = 100",
        "SELECT name FROM system.tables LIMIT 1",
        "SELECT rand()",
    ];
    for query in never {
        world.client().query(query).await;
    }
    world.loses_its_server().await;
    for ((line, headers, body), before) in reads.into_iter().zip(answers) {
        let other_id = line.replace("query_id=first", "query_id=second");
        let again = world.client().ask(&other_id, headers, body).await;
        assert_eq!(again.status, 200, "{}", again.text());
        assert_eq!(again.header("x-fusebox-source"), Some("cache"), "{body}");
        assert!(again.header("age").is_some() && again.header("warning").is_none(), "{body}");
        assert_eq!(again.body, before.body, "{body}");
        assert!(again.whole);
        for name in
            ["content-type", "content-encoding", "x-clickhouse-format", "x-clickhouse-timezone"]
        {
            assert_eq!(again.header(name), before.header(name), "{name} of {body}");
        }
        // The caller's own id, if it gave one.
        let own = line.contains("query_id").then_some("second");
        assert_eq!(again.header("x-clickhouse-query-id"), own);
    }
    for query in never {
        assert_eq!(world.client().query(query).await.status, 503, "{query}");
    }
    // Another encoding, other parameters, and nobody's own copy.
    let mut client = world.client();
    assert_eq!(client.ask("POST /", gzip, ROWS).await.status, 503);
    assert_eq!(client.ask(&get.replace("=7", "=8"), "", "").await.status, 503);
    assert_eq!(client.ask("POST /?session_id=s&session_check=1", "", ROWS).await.status, 503);
    assert_eq!(client.ask("POST /?priority=2", "", ROWS).await.status, 200);
}

#[tokio::test]
async fn a_clean_session_reads_for_all_and_nobody_has_what_was_put_into_one() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.query("CREATE TABLE default.t (n Int32, s String) ENGINE = MergeTree ORDER BY n").await;
    client.query("INSERT INTO default.t VALUES (1, 'one')").await;
    for id in ["mine", "changed"] {
        let line = format!("POST /?session_id={id}");
        assert_eq!(client.ask(&line, "", ROWS).await.text(), "1,\"one\"\n");
    }
    let changed = "POST /?session_id=changed";
    let temporary = "CREATE TEMPORARY TABLE t (n Int32, s String)";
    assert_eq!(client.ask(changed, "", temporary).await.status, 200);
    world.loses_its_server().await;
    for clean in ["POST /", "POST /?session_id=mine", "POST /?session_id=new"] {
        assert_eq!(client.ask(clean, "", ROWS).await.text(), "1,\"one\"\n", "{clean}");
    }
    assert_eq!(client.ask(changed, "", ROWS).await.status, 503);
}

/// A proxy before `port` that gathers each answer and says how long it is, as proxies do. Returns its own port, and the
/// bodies of what it was asked.
async fn gathering_proxy(port: u16) -> (u16, Asked) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let asked = Asked::default();
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            let answer = service_fn(move |request| gathered(port, request, Arc::clone(&noted)));
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    (own, asked)
}

type Asked = Arc<parking_lot::Mutex<Vec<Bytes>>>;

async fn gathered(
    port: u16,
    request: Request<Incoming>,
    asked: Asked,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    asked.lock().push(body.clone());
    forwarded(port, head, body).await
}

/// The answer of the server at `port`, gathered.
pub(super) async fn forwarded(
    port: u16,
    head: Parts,
    body: Bytes,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::from_parts(head, Full::new(body));
    let (mut head, body) = sender.send_request(request).await?.into_parts();
    head.headers.remove("transfer-encoding");
    Ok(Response::from_parts(head, Full::new(body.collect().await?.to_bytes())))
}

#[tokio::test]
async fn an_answer_that_says_how_long_it_is_is_read_to_its_end() {
    let server = Server::of(Engine::Current).await;
    let (port, asked) = gathering_proxy(server.port).await;
    let mut world = World::at(port, server, backend(Duration::from_secs(5), 64), door()).await;
    let mut client = world.client();
    let numbers = "SELECT number FROM numbers(20000)";
    for query in
        ["SELECT 7", numbers, "CREATE TABLE default.t (n Int8) ENGINE = Memory", "SELECT 8"]
    {
        let answer = client.query(query).await;
        let length = answer.header("content-length").and_then(|it| it.parse().ok());
        assert_eq!((answer.status, length), (200, Some(answer.body.len())), "{query}");
    }
    let is_kill = |body: &Bytes| body.starts_with(b"KILL");
    assert!(!asked.lock().iter().any(is_kill), "nothing of it still runs");
    world.loses_its_server().await;
    for query in ["SELECT 7", numbers] {
        let again = world.client().query(query).await;
        assert_eq!(again.header("x-fusebox-source"), Some("cache"), "{query}");
    }
}

#[tokio::test]
async fn what_fails_behind_its_rows_in_their_own_format_is_not_cached() {
    let mut world = World::open().await;
    let formats = [
        "JSON",
        "JSONCompact",
        "JSONEachRow",
        "PrettyJSONEachRow",
        "JSONCompactEachRow",
        "JSONObjectEachRow",
        "JSONEachRowWithProgress",
        "NDJSON",
        "XML",
    ];
    let query = |limit: u32, format: &str| {
        format!(
            "SELECT number, throwIf(number = {limit}) FROM numbers(900) FORMAT {format} \
             SETTINGS max_block_size = 100"
        )
    };
    let line = "POST /?http_write_exception_in_output_format=1&buffer_size=1000";
    for format in formats {
        let failed = world.client().ask(line, "", query(800, format)).await;
        assert_eq!((failed.status, failed.whole), (200, true), "{format}");
        assert!(failed.text().contains("Code: 395. DB::Exception"), "{format}");
        let whole = world.client().ask(line, "", query(900, format)).await;
        assert!(whole.status == 200 && !whole.text().contains("Code: 395"), "{format}");
    }
    let packed = "Accept-Encoding: gzip\r\n";
    let of_packed = format!("{line}&enable_http_compression=1");
    world.client().ask(&of_packed, packed, query(900, "JSON")).await;
    world.loses_its_server().await;
    for format in formats {
        assert_eq!(world.client().ask(line, "", query(800, format)).await.status, 503, "{format}");
        assert_eq!(world.client().ask(line, "", query(900, format)).await.status, 200, "{format}");
    }
    // Nobody looks into it.
    assert_eq!(world.client().ask(&of_packed, packed, query(900, "JSON")).await.status, 503);
}
