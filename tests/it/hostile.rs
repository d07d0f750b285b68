//! Callers who make mistakes, mean it badly, or are slow: each learns what is wrong, and nobody else
//! notices.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon, FUSEBOX};
use crate::support::outage::operated;
use crate::support::poll::{stays, wait_for};
use crate::support::port::Port;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);

fn connect(client: &Client) -> UnixStream {
    let stream = UnixStream::connect(client.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

/// Sends `bytes` and reads until the daemon closes the connection.
fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> String {
    // It may be refused before all of it is taken; what is said then is the answer.
    drop(stream.write_all(bytes));
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The status and the problem of an answer that is one.
#[track_caller]
fn problem(answer: &str) -> (u16, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    assert!(head.contains("application/problem+json"), "{answer}");
    let problem: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"));
    assert_eq!(problem["status"], status, "{answer}");
    (status, problem)
}

fn assert_well(daemon: &Daemon) {
    daemon.redis(&["SET", "well", "v"]).assert_live();
}

#[test]
fn a_malformed_call_is_told_what_is_wrong() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let deep = format!("{{\"command\":{}", "[".repeat(200_000));
    let closed = format!("{deep}{}}}", "]".repeat(200_000));
    let cases: Vec<(&[u8], &str)> = vec![
        (b"", "EOF"),
        (b"{", "EOF"),
        (b"[]", "an object such as {\"command\": [\"GET\", \"key\"]}"),
        (b"\"GET k\"", "expected an object such as"),
        (b"{\"command\":[]}", "command"),
        (b"{\"command\":\"GET k\"}", "command"),
        (b"{\"command\":[\"GET\",null]}", "command"),
        (b"{\"command\":[\"GET\",{\"base64\":\"%\"}]}", "base64"),
        (b"{\"command\":[\"GET\",\"k\"],\"comand\":1}", "unknown field `comand`"),
        (b"{\"command\":[\"GET\",\"k\"]} x", "trailing"),
        (
            b"{\"command\":[\"GET\",\"k\"],\"options\":{\"dedline\":\"1s\"}}",
            "unknown field `dedline`",
        ),
        (b"{\"command\":[\"GET\",\"k\"],\"options\":{\"deadline\":\"0s\"}}", "more than 0s"),
        (b"{\"command\":[\"GET\",\"k\"],\"options\":{\"deadline\":\"-1s\"}}", "duration"),
        (b"{\"command\":[\"GET\",\"k\"],\"options\":{\"priority\":\"urgent\"}}", "urgent"),
        (b"{\"command\":[\"GET\",\"k\"],\"options\":{\"op_id\":\"x\"}}", "ULID"),
        (b"{\"command\":[\"GET\",\"k\xff\"]}", "unicode"),
        (b"{\"command\":[\"GET\",\"\\ud800\"]}", "\"\\ud800\" is not Unicode text: "),
        (b"{\"command\":[\"GET\",\"k\\udc00x\"]}", "\"k\\udc00x\" is not Unicode text: "),
        (b"{\"command\":[\"GET\"],\"command\":[\"GET\",\"k\"]}", "duplicate field `command`"),
        (b"{\"command\":[\"SET\",\"k\",01]}", "invalid number"),
        (b"{\"command\":[\"SET\",\"k\",+1]}", "expected value"),
        (b"{\"command\":[\"SET\",\"k\",NaN]}", "expected value"),
        (b"{\"command\":[\"GET\"]}", "GET takes 1 argument, got 0"),
        (deep.as_bytes(), "EOF while parsing a list"),
        (closed.as_bytes(), "command[0] must be a string, a number or "),
    ];
    for (body, part) in cases {
        let answer = exchange(connect(&daemon), &request("POST", "/v1/backends/redis/call", body));
        let (status, problem) = problem(&answer);
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]);
        assert_eq!(status, 400, "{shown}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(part), "{shown}: {problem}");
    }
    assert_well(&daemon);
}

#[test]
fn text_that_is_not_unicode_is_named_by_every_kind() {
    let redis = RedisServer::start();
    // Nobody listens at either: a malformed call is refused before anything is asked of a backend.
    let daemon = operated(&redis.url())
        .set("backends.clickhouse.url", "http://127.0.0.1:1")
        .set("backends.firestore.url", "http://127.0.0.1:1")
        .start();
    for (backend, call) in [
        ("redis", r#"{"command":["SET","k",TEXT]}"#),
        ("redis", r#"{"command":["SET","k",{"base64":TEXT}]}"#),
        ("clickhouse", r#"{"query":TEXT}"#),
        ("clickhouse", r#"{"query":"SELECT 1","params":{"p":[TEXT]}}"#),
        ("clickhouse", r#"{"query":"SELECT 1","settings":{TEXT:1}}"#),
        ("clickhouse", r#"{"query":"INSERT INTO t FORMAT CSV","data":TEXT}"#),
        ("firestore", r#"{"op":"set","path":"u/a","data":{"n":TEXT}}"#),
        ("firestore", r#"{"op":"set","path":"u/a","data":{TEXT:1}}"#),
    ] {
        for (text, part) in
            [(&br#""a\ud800""#[..], "hex escape"), (br#""\udfff""#, ""), (b"\"\xff\"", "unicode")]
        {
            let (before, after) = call.split_once("TEXT").unwrap();
            let body = [before.as_bytes(), text, after.as_bytes()].concat();
            let path = format!("/v1/backends/{backend}/call");
            let answer = exchange(connect(&daemon), &request("POST", &path, &body));
            let (status, problem) = problem(&answer);
            let shown = String::from_utf8_lossy(&body).into_owned();
            assert_eq!(status, 400, "{shown}: {problem}");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(part) || call.contains("base64"), "{shown}: {detail}");
        }
    }
}

/// Every member of every kind's call, 200,000 levels deep: refused, by whatever walks it.
#[test]
fn no_depth_of_json_ends_the_daemon() {
    let redis = RedisServer::start();
    // Nobody listens at either: a malformed call is refused before anything is asked of a backend.
    let daemon = operated(&redis.url())
        .set("backends.clickhouse.url", "http://127.0.0.1:1")
        .set("backends.firestore.url", "http://127.0.0.1:1")
        .start();
    for (backend, call) in [
        ("redis", "{\"command\":DEEP}"),
        ("redis", "{\"command\":[\"GET\",{\"base64\":DEEP}]}"),
        ("redis", "{\"command\":[\"GET\",\"k\"],\"options\":DEEP}"),
        ("redis", "{\"command\":[\"GET\",\"k\"],\"other\":DEEP}"),
        ("clickhouse", "{\"query\":DEEP}"),
        ("clickhouse", "{\"query\":\"SELECT 1\",\"params\":{\"p\":DEEP}}"),
        ("clickhouse", "{\"query\":\"SELECT 1\",\"settings\":{\"s\":DEEP}}"),
        ("clickhouse", "{\"query\":\"INSERT INTO t FORMAT CSV\",\"data\":DEEP}"),
        ("firestore", "DEEP"),
        ("firestore", "{\"op\":\"set\",\"path\":\"u/a\",\"data\":{\"d\":DEEP}}"),
        ("firestore", "{\"op\":\"commit\",\"writes\":DEEP}"),
        ("firestore", "{\"op\":\"query\",\"collection\":\"u\",\"where\":[[\"n\",\"==\",DEEP]]}"),
    ] {
        for (open, close) in [("[", "]"), ("{\"m\":", "}")] {
            let deep = format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
            let body = call.replace("DEEP", &deep);
            let path = format!("/v1/backends/{backend}/call");
            let answer = exchange(connect(&daemon), &request("POST", &path, body.as_bytes()));
            let (status, problem) = problem(&answer);
            assert_eq!(status, 400, "{call}: {problem}");
            let length = problem["detail"].as_str().unwrap().len();
            assert!(length < 2_000, "{call}: {length} bytes of detail");
        }
    }
    assert_well(&daemon);
}

#[test]
fn what_is_not_there_is_named() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let long = format!("/{}", "x".repeat(4_000));
    for (method, path, status, code, part) in [
        ("POST", "/v1/backends/nosuch/call", 404, "no_such_backend", "there are: redis"),
        ("POST", "/v1/backends/../call", 404, "no_such_backend", ".."),
        ("POST", "/v1/backends/%2e%2e/call", 404, "no_such_backend", ".."),
        ("POST", "/v1/backends/redis%00/call", 404, "no_such_backend", ""),
        ("POST", "/v1/backends/%ff/call", 400, "malformed", ""),
        ("GET", "/nowhere", 404, "no_such_route", "/nowhere"),
        ("GET", long.as_str(), 404, "no_such_route", "xxx"),
        ("GET", "/v1/backends/redis/call", 405, "wrong_method", "does not support GET"),
        ("DELETE", "/health", 405, "wrong_method", "does not support DELETE"),
        ("BREW", "/health", 405, "wrong_method", "BREW"),
        ("GET", "/v1/backends/redis/queue?state=all", 400, "malformed", "pending or dead"),
        ("GET", "/v1/backends/redis/queue?limit=many", 400, "malformed", "got \"many\""),
        ("GET", "/v1/backends/redis/queue?nosuch=1", 400, "malformed", "nosuch"),
        ("GET", "/v1/backends/redis/queue?after=nonsense", 400, "malformed", "or an op_id"),
        (
            "GET",
            "/v1/backends/redis/queue?after=01ARZ3NDEKTSV4RRFFQ69G5FAV",
            404,
            "no_such_call",
            "among the waiting calls of redis",
        ),
        ("GET", "/v1/backends/redis/queue/nonsense", 400, "malformed", "ULID"),
        ("GET", "/v1/backends/redis/queue/01ARZ3NDEKTSV4RRFFQ69G5FAV", 404, "no_such_call", ""),
        ("POST", "/admin/backends/nosuch/offline", 404, "no_such_backend", ""),
    ] {
        let answer = exchange(connect(&daemon), &request(method, path, b""));
        let (found, problem) = problem(&answer);
        assert_eq!(
            (found, problem["code"].as_str()),
            (status, Some(code)),
            "{method} {path}: {problem}"
        );
        assert!(problem["detail"].as_str().unwrap().contains(part), "{method} {path}: {problem}");
    }
    for body in [&b"{"[..], b"{\"resaon\":\"x\"}", b"{\"for\":\"soon\"}", b"[1,2,3]"] {
        let path = "/admin/circuit-breaker/redis/force-open";
        let (status, problem) = problem(&exchange(connect(&daemon), &request("POST", path, body)));
        assert_eq!(status, 400, "{problem}");
    }
    assert_eq!(daemon.breaker("redis"), "CLOSED", "a malformed order is no order");
}

#[test]
fn a_body_over_32_mib_is_refused_announced_or_in_chunks() {
    const LIMIT: usize = 32 << 20;
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let head = "POST /v1/backends/redis/call HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let announced = format!("{head}content-length: {}\r\n\r\n", LIMIT + 1);
    let begun = Instant::now();
    let (status, told) = problem(&exchange(connect(&daemon), announced.as_bytes()));
    assert_eq!(status, 413, "{told}");
    assert!(told["detail"].as_str().unwrap().contains("32 MiB"), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(2), "before the body is waited for");

    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..33 {
        chunked.extend_from_slice(&chunk);
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(problem(&exchange(connect(&daemon), &chunked)).0, 413);

    // Just below it is carried.
    let value = "x".repeat(LIMIT - 1_000);
    daemon.redis(&["SET", "large", &value]).assert_live();
    assert_eq!(redis.query::<usize>(&["STRLEN", "large"]), value.len());
}

#[test]
fn a_chunked_call_is_read_whole() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let answer = exchange(
        connect(&daemon),
        b"POST /v1/backends/redis/call HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
          transfer-encoding: chunked\r\n\r\n\
          b\r\n{\"command\":\r\nf\r\n[\"SET\",\"k\",\"v\"]\r\n1\r\n}\r\n0\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(redis.get("k").as_deref(), Some("v"));
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_to_go_on() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut stream = connect(&daemon);
    let body = b"{\"command\":[\"SET\",\"k\",\"v\"]}";
    let head = "POST /v1/backends/redis/call HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                expect: 100-continue\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n", body.len()).unwrap();
    let mut told = [0; 25];
    stream.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert!(exchange(stream, body).starts_with("HTTP/1.1 200"));
}

#[test]
fn requests_sent_together_are_answered_in_order() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut requests = Vec::new();
    for number in 0..100 {
        let body = format!("{{\"command\":[\"RPUSH\",\"list\",\"{number}\"]}}");
        let request = request("POST", "/v1/backends/redis/call", body.as_bytes());
        let text = String::from_utf8(request).unwrap();
        requests.extend(text.replace("connection: close\r\n", "").bytes());
    }
    requests.extend(request("GET", "/nowhere", b""));
    let answers = exchange(connect(&daemon), &requests);
    let values: Vec<i64> = answers
        .split("\"value\":")
        .skip(1)
        .map(|rest| rest.split([',', '}']).next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(values, (1..=100).collect::<Vec<_>>());
    assert!(answers.contains("HTTP/1.1 404"), "the last is answered too");
    let pushed: Vec<i64> = redis.query(&["LRANGE", "list", "0", "-1"]);
    assert_eq!(pushed, (0..100).collect::<Vec<_>>());
}

#[test]
fn rubbish_is_refused_and_bothers_nobody() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut bytes: Vec<u8> = (0..random.usize(1..2_000)).map(|_| random.u8(..)).collect();
        if random.bool() {
            bytes.splice(0..0, *b"POST /v1/backends/redis/call HTTP/1.1\r\n");
        }
        bytes.extend_from_slice(b"\r\n\r\n");
        let stream = connect(&daemon);
        let mut half = stream.try_clone().unwrap();
        drop(half.write_all(&bytes));
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = exchange(stream, b"");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    for (head, status) in [
        (
            "GET /health HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
            "400",
        ),
        ("GET /health HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", "400"),
        ("GET /health HTTP/9.9\r\nhost: a\r\n\r\n", "400"),
        (&format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(20_000)), "431"),
        (&format!("GET /health HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200)), "431"),
    ] {
        let answer = exchange(connect(&daemon), head.as_bytes());
        let found = answer.split(' ').nth(1);
        assert_eq!(found, Some(status), "{}: {answer}", &head[..head.len().min(120)]);
    }
    assert_well(&daemon);
    assert!(!daemon.log_text().contains("panicked"));
}

#[test]
fn a_head_that_drips_is_cut_off_and_an_idle_connection_is_not() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut idle = connect(&daemon);
    let health = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let ask = |idle: &mut UnixStream| {
        idle.write_all(health).expect("it is still open");
        let mut answer = [0; 1024];
        let read = idle.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    };
    ask(&mut idle);

    let mut slow = connect(&daemon);
    slow.set_nonblocking(true).unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nx: ").unwrap();
    let begun = Instant::now();
    wait_for("it is cut off", LONG, || {
        let sent = slow.write(b"x");
        let read = slow.read(&mut [0; 1024]);
        let closed =
            matches!(read, Ok(0)) || sent.is_err_and(|e| e.kind() != ErrorKind::WouldBlock);
        closed.then_some(())
    });
    let took = begun.elapsed();
    assert!((4..10).contains(&took.as_secs()), "it took {took:?}");
    // Longer than a head may take since its last request, which is no reason to close it.
    stays("it is idle", Duration::from_secs(6).saturating_sub(begun.elapsed()), || true);
    ask(&mut idle);
}

#[test]
fn a_thousand_idle_connections_stop_nobody_and_more_are_told_so() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut idle: Vec<UnixStream> = (0..1_000).map(|_| connect(&daemon)).collect();
    // Some of them in the middle of a head.
    for stream in idle.iter_mut().step_by(10) {
        stream.write_all(b"POST /v1/ba").unwrap();
    }
    let begun = Instant::now();
    for _ in 0..20 {
        assert_well(&daemon);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());

    idle.extend((0..140).map(|_| connect(&daemon)));
    let one_more = connect(&daemon);
    let answer = exchange(one_more, &request("GET", "/v1/backends", b""));
    let (status, told) = problem(&answer);
    assert_eq!((status, &told["code"]), (429, &json!("door_full")), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("retry-after: 1"), "{answer}");
    drop(idle);
    daemon.wait_until("there is room again", LONG, |daemon| {
        let answer = exchange(connect(daemon), &request("GET", "/v1/backends", b""));
        answer.starts_with("HTTP/1.1 200")
    });
}

/// Sends a request as many clients do, its head before its body, and the body only once an answer is there: what it
/// is answered, and whether the connection may be used again.
fn head_then_body(mut stream: UnixStream, head: &str, length: usize) -> (u16, bool) {
    write!(stream, "{head}host: localhost\r\ncontent-length: {length}\r\n\r\n").unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).expect("it is answered before its body is there");
    let status = std::str::from_utf8(&first[9..]).unwrap().parse().expect("a status");
    let piece = vec![b' '; 1 << 16];
    let mut left = length;
    while left > 0 {
        let sent = left.min(piece.len());
        stream.write_all(&piece[..sent]).unwrap_or_else(|error| panic!("{head}: {error}"));
        left -= sent;
    }
    stream.write_all(&request("GET", "/health/live", b"")).expect("it is taken");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("all that is said");
    (status, rest.contains("{\"live\":true}"))
}

#[test]
fn an_answer_before_the_body_reaches_a_client_that_is_still_sending() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let (call, release) = ("/v1/backends/redis/call", "/admin/circuit-breaker/redis/release");
    for length in [1, 100, 60_000, 3 << 20] {
        for (line, status) in [
            (format!("POST {release}"), 409),
            ("POST /v1/backends/nosuch/call".into(), 404),
            ("POST /nowhere".into(), 404),
            ("POST /health".into(), 405),
        ] {
            let head = format!("{line} HTTP/1.1\r\n");
            assert_eq!(head_then_body(connect(&daemon), &head, length), (status, true), "{line}");
        }
        let head = format!("POST {call} HTTP/1.1\r\ncontent-encoding: br\r\n");
        assert_eq!(head_then_body(connect(&daemon), &head, length), (415, true));
    }
    let head = format!("POST {call} HTTP/1.1\r\n");
    assert_eq!(head_then_body(connect(&daemon), &head, 33 << 20), (413, true));
    // One that never sends the rest keeps its connection for a second, and one that sends no end is cut off.
    let mut silent = connect(&daemon);
    write!(silent, "POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n").unwrap();
    let begun = Instant::now();
    let answer = exchange(silent, b"");
    assert!(answer.starts_with("HTTP/1.1 404") && begun.elapsed().as_secs() < 5, "{answer}");
    let mut endless = connect(&daemon);
    write!(endless, "POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40)
        .unwrap();
    let piece = vec![0; 1 << 20];
    let sent = (0..500).take_while(|_| endless.write_all(&piece).is_ok()).count();
    assert!((60..80).contains(&sent), "{sent} MiB were taken");
    assert_well(&daemon);
}

#[test]
fn what_callers_leave_on_the_wire_keeps_its_place_until_it_is_over() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url())
        .set("backends.redis.bulkhead.in_flight_max", 8)
        .set("backends.redis.breaker.failure_threshold", 1_000)
        .set("backends.redis.timeout", "2s")
        .start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    redis.freeze();
    let body = b"{\"command\":[\"GET\",\"k\"]}";
    let in_flight = |daemon: &Client| {
        let (_, view) = daemon.get("/v1/backends/redis");
        view["calls"]["in_flight"].as_u64().unwrap()
    };
    for round in 0..3 {
        let mut callers: Vec<UnixStream> = (0..8).map(|_| connect(&daemon)).collect();
        for caller in &mut callers {
            caller.write_all(&request("POST", "/v1/backends/redis/call", body)).unwrap();
        }
        daemon.wait_until("they are on the wire", LONG, |daemon| in_flight(daemon) == 8);
        drop(callers);
        if round == 0 {
            let read = daemon.redis_with(&["GET", "k"], json!({ "deadline": "100ms" }));
            assert!(read.body.to_string().contains("8 attempts are in flight"), "{}", read.body);
        }
        daemon.wait_until("they are over", LONG, |daemon| in_flight(daemon) == 0);
    }
    let failures = daemon.get("/v1/backends/redis").1["breaker"]["window_failures"].as_u64();
    assert!(failures.is_some_and(|failures| failures >= 8), "none was answered: {failures:?}");
    redis.thaw();
    daemon.wait_until("it is live again", LONG, |daemon| {
        daemon.redis(&["GET", "k"]).source() == "live"
    });
}

/// Runs `fusebox` on a configuration with `text`, which must not get far.
fn run(folder: &Path, text: &str, arguments: &[&str]) -> Output {
    let file = folder.join("fusebox.toml");
    fs::write(&file, text).unwrap();
    Command::new(FUSEBOX)
        .args(arguments)
        .arg("--config")
        .arg(&file)
        .env_clear()
        .env("HOME", folder)
        .output()
        .unwrap()
}

#[test]
fn everything_that_is_wrong_with_the_settings_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let text = "sate_dir = '/x'\n\
                [http]\nlisten = 'here'\n\
                [backends.redis]\nurl = 'redis://127.0.0.1:port'\ntimeout = 5\nfailure_threshold = 3\n\
                [backends.redis.breaker]\nfailure_rate = 1.5\n\
                [backends.redis.queue]\nbytes = '9.8KiB'\n\
                [backends.db]\nkind = 'postgres'\n";
    let expected = "\
fusebox: 8 problems in the configuration
  backends.redis.failure_threshold is not a setting; the nearest is backends.redis.breaker.failure_threshold
  sate_dir is not a setting; the nearest is state_dir
  backends.redis.timeout must be a duration such as \"30s\" between 1ms and 1day, got 5
  backends.redis.breaker.failure_rate must be between 0 and 1, got 1.5
  backends.redis.queue.bytes must be at least 1 MiB, got 9.8 KiB
  backends.db.kind \"postgres\" is not supported by this release, which supports: clickhouse, firestore, redis
  backends.redis.url is not usable: port must be a number from 1 to 65535
  http.listen must be an address such as 127.0.0.1:9180, got \"here\"
";
    let output = run(folder.path(), text, &["run"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
    let output = run(folder.path(), "[backends.redis]\nurl = 'http://h'", &["run"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("backends.redis") && said.contains("redis://"), "{said}");
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_and_the_first_goes_on() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let state = daemon.state_dir();
    let second = daemon
        .cli(&["run", "--state-dir", state.to_str().unwrap()])
        .arg("--config")
        .arg(daemon.configuration())
        .arg("--socket")
        .arg(daemon.folder().join("second.sock"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let said = [second.stdout, second.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("another fusebox daemon (process "), "{said}");
    assert!(said.contains(state.to_str().unwrap()), "{said}");
    assert_well(&daemon);

    // Nor does one with a state of its own take the socket away.
    let third = daemon
        .cli(&["run", "--state-dir", daemon.folder().join("other").to_str().unwrap()])
        .arg("--config")
        .arg(daemon.configuration())
        .arg("--socket")
        .arg(daemon.socket())
        .output()
        .unwrap();
    assert_eq!(third.status.code(), Some(1), "{third:?}");
    let said = String::from_utf8_lossy(&third.stderr).into_owned();
    assert!(said.contains("another process listens at"), "{said}");
    assert_well(&daemon);
}

#[test]
fn a_socket_that_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let state = state.to_str().unwrap();
    let long = folder.path().join("x".repeat(100));
    let output =
        run(folder.path(), "", &["run", "--state-dir", state, "--socket", long.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let length = long.as_os_str().len();
    assert!(
        said.contains(&format!("socket must be shorter than 108 bytes, got {length}")),
        "{said}"
    );

    let taken = folder.path().join("taken");
    fs::write(&taken, "somebody's").unwrap();
    let output =
        run(folder.path(), "", &["run", "--state-dir", state, "--socket", taken.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("exists and is not a socket, so it is not removed"), "{said}");
    assert_eq!(fs::read_to_string(&taken).unwrap(), "somebody's");
}

#[test]
fn the_network_gets_health_and_metrics_and_the_rest_for_a_token_and_the_right_host() {
    let redis = RedisServer::start();
    let port = Port::lease();
    let secrets = tempfile::tempdir().unwrap();
    let token = secrets.path().join("token");
    fs::write(&token, "t0ken\n").unwrap();
    let address = port.address().to_string();
    let daemon = operated(&redis.url())
        .set("http.listen", address.as_str())
        .set("http.token_file", token.to_str().unwrap())
        .start();
    let ask = |method: &str, path: &str, headers: &str| {
        let stream = TcpStream::connect(&address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n"
        );
        let answer = exchange(stream, head.as_bytes());
        answer.split(' ').nth(1).and_then(|word| word.parse::<u16>().ok()).expect("a status")
    };
    let host = format!("host: {address}\r\n");
    for path in ["/", "/health", "/health/live", "/health/ready", "/health/resilience", "/metrics"]
    {
        assert_eq!(ask("GET", path, &host), 200, "{path}");
    }
    let rest = [
        ("GET", "/v1/backends"),
        ("GET", "/v1/backends/redis/queue"),
        ("GET", "/v1/events"),
        ("POST", "/v1/backends/redis/call"),
        ("POST", "/admin/backends/redis/offline"),
        ("GET", "/admin/config"),
        ("GET", "/openapi.json"),
    ];
    for (method, path) in rest {
        assert_eq!(ask(method, path, &host), 401, "{path} without a token");
        let wrong = format!("{host}authorization: Bearer t0ke\r\n");
        assert_eq!(ask(method, path, &wrong), 401, "{path} with a wrong token");
        let rebound = "host: evil.example\r\nauthorization: Bearer t0ken\r\n";
        assert_eq!(ask(method, path, rebound), 403, "{path} for another host");
        assert_eq!(
            ask(method, path, "authorization: Bearer t0ken\r\n"),
            403,
            "{path} without host"
        );
    }
    let right = format!("{host}authorization: Bearer t0ken\r\n");
    assert_eq!(ask("GET", "/v1/backends", &right), 200);
    assert_eq!(ask("GET", "/admin/config", &right), 200);
    assert_eq!(daemon.status("redis")["offline"], json!(false));
    let shown = daemon.fusebox(&["config", "show"]);
    assert!(!String::from_utf8_lossy(&shown.stdout).contains("t0ken"), "{shown:?}");

    // The place is taken now.
    let state = secrets.path().join("state");
    let socket = secrets.path().join("s");
    let output = run(
        secrets.path(),
        "",
        &[
            "run",
            "--http",
            &address,
            "--state-dir",
            state.to_str().unwrap(),
            "--socket",
            socket.to_str().unwrap(),
        ],
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen at {address}")), "{said}");
}

#[test]
fn beyond_loopback_tls_or_a_written_plaintext_is_required_and_in_plaintext_there_are_no_orders() {
    let redis = RedisServer::start();
    let port = Port::lease();
    let secrets = tempfile::tempdir().unwrap();
    let token = secrets.path().join("token");
    fs::write(&token, "t0ken\n").unwrap();
    for listen in ["0.0.0.0:9180", "[::]:9180", "192.0.2.1:9180"] {
        let output = run(secrets.path(), &format!("[http]\nlisten = '{listen}'"), &["check"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        let expected = format!(
            "http.listen must be a loopback address, got {listen}: for any other address, set http.tls.cert_file and \
             http.tls.key_file, or set http.plaintext = true, which disables the admin routes there"
        );
        assert!(said.contains(&expected), "{said}");
    }
    let daemon = operated(&redis.url())
        .set("http.listen", format!("0.0.0.0:{}", port.number()))
        .set("http.token_file", token.to_str().unwrap())
        .set("http.plaintext", true)
        .start();
    let ask = |method: &str, path: &str| {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: 0\r\n\
             host: {}\r\nauthorization: Bearer t0ken\r\n\r\n",
            port.address()
        );
        exchange(TcpStream::connect(port.address()).unwrap(), head.as_bytes())
    };
    for path in ["/health", "/metrics", "/v1/backends", "/v1/backends/redis/queue"] {
        assert!(ask("GET", path).starts_with("HTTP/1.1 200"), "{path}");
    }
    for (method, path) in [
        ("POST", "/admin/backends/redis/offline"),
        ("POST", "/admin/config/reload"),
        ("GET", "/admin/config"),
        ("POST", "/admin/backends/redis/queue/import"),
    ] {
        let (status, problem) = problem(&ask(method, path));
        assert_eq!((status, &problem["code"]), (403, &json!("plaintext")), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains("http.tls"), "{problem}");
    }
    assert_eq!(daemon.status("redis")["offline"], json!(false));
}
