//! Traces at a real collector: what arrives there, and what a collector that is not there costs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use crate::support::collector::{Collector, Span};
use crate::support::daemon::{Builder, Daemon};
use crate::support::poll::eventually;
use crate::support::port::Port;
use crate::support::raw::call_raw;
use crate::support::redis::RedisServer;
use crate::support::tls::{Authority, TlsFront};

const LONG: Duration = Duration::from_secs(30);
const CALLER: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLERS_SPAN: &str = "00f067aa0ba902b7";

/// The second failure opens the breaker.
fn traced(builder: Builder, endpoint: &str, protocol: &str) -> Builder {
    builder
        .set("backends.redis.breaker.recovery_timeout", "300ms")
        .set("backends.redis.breaker.failure_threshold", 2)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
}

fn resp(words: &[&str]) -> Vec<u8> {
    let arguments = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), arguments.collect::<String>()).into_bytes()
}

/// Follows a live call, a retried call, and a queued write to its replay.
fn all_kinds_of_calls_arrive(protocol: &str) {
    let collector = Collector::start();
    let url = if protocol == "grpc" { collector.grpc_url() } else { collector.http_url() };
    let mut redis = RedisServer::start();
    let builder = traced(Daemon::with_redis(&redis.url()), &url, protocol)
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .env("OTEL_SERVICE_NAME", "shop");
    let daemon = builder.start();

    let traceparent = format!("00-{CALLER}-{CALLERS_SPAN}-01");
    let headers = [("traceparent", &*traceparent), ("baggage", "user=hush")];
    let answer = call_raw(&daemon, "redis", &headers, &resp(&["SET", "k", "hush"]), 1);
    assert_eq!((answer.status, answer.source.as_str()), (200, "live"));
    let call = collector.wait_for("the caller's trace goes on", |span| span.trace_id == CALLER);
    assert_eq!((call.parent.as_str(), call.kind.as_str()), (CALLERS_SPAN, "SERVER"));
    let attempt = collector.wait_for("its attempt", |span| span.parent == call.id);
    assert_eq!((attempt.name.as_str(), attempt.kind.as_str()), ("SET redis", "CLIENT"));
    assert_eq!(attempt.attribute("db.system.name"), "redis");
    assert_eq!(attempt.attribute("db.operation.name"), "SET");
    assert_eq!(attempt.attribute("server.address"), "127.0.0.1");
    assert!(collector.text().contains("service.name: Str(shop)"));
    assert!(collector.text().contains("deployment.environment.name: Str(test)"));

    redis.kill_9();
    let failed = daemon.redis(&["GET", "other"]);
    let trace_id = failed.body["trace_id"].as_str().expect("a trace").to_owned();
    let of_trace = |span: &Span| span.trace_id == trace_id;
    let root =
        collector.wait_for("the retried call", |span| of_trace(span) && span.kind == "SERVER");
    let children = || {
        let spans = collector.spans().into_iter();
        spans.filter(|span| span.parent == root.id).map(|span| span.name).collect::<Vec<_>>()
    };
    let shape =
        ["GET redis", "backoff", "GET redis", "backoff", "GET redis", "cache look-up", "fallback"];
    eventually("all of its steps", LONG, || children() == shape);

    let queued = daemon.redis(&["SET", "k", "queued"]);
    queued.assert_queued();
    let op_id = queued.body["op_id"].as_str().expect("an op id").to_owned();
    let is_append =
        |span: &Span| span.kind == "PRODUCER" && span.attribute("messaging.message.id") == op_id;
    let append = collector.wait_for("the append", is_append);
    assert_eq!(append.trace_id, queued.body["trace_id"]);
    let (_, shown) = daemon.get(&format!("/v1/backends/redis/queue/{op_id}"));
    let stored = format!("00-{}-{}-01", append.trace_id, append.id);
    assert_eq!(shown["traceparent"], json!(stored), "it is stored with the call");
    let replay_trace = shown["replay_trace_id"].as_str().expect("its replay's trace").to_owned();
    let printed = daemon.fusebox(&["queue", "show", &op_id]);
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains(&append.trace_id) && printed.contains(&replay_trace), "{printed}");

    redis.restart();
    daemon.wait_until_drained("redis", LONG);
    let is_replay = |span: &Span| {
        span.kind == "CONSUMER"
            && span.attribute("messaging.message.id") == op_id
            && span.status == "UNSET"
    };
    let replay = collector.wait_for("the replay", is_replay);
    assert_eq!((replay.trace_id.as_str(), replay.parent.as_str()), (&*replay_trace, ""));
    assert_eq!(replay.links, [(append.trace_id, append.id)]);

    let opened = |span: &Span| span.events.iter().any(|event| event == "breaker transition");
    collector.wait_for("the transition that an attempt brought about", opened);
    assert!(!collector.text().contains("hush"), "neither values nor baggage are recorded");
}

#[test]
fn a_collector_receives_every_kind_of_call_over_grpc() {
    all_kinds_of_calls_arrive("grpc");
}

#[test]
fn a_collector_receives_every_kind_of_call_over_http() {
    all_kinds_of_calls_arrive("http/protobuf");
}

/// A command at a Redis door is a span that names the door; of a pipeline only the first are recorded.
#[test]
fn a_doors_commands_arrive_with_the_doors_name_and_not_all_of_a_pipeline() {
    let collector = Collector::start();
    let redis = RedisServer::start();
    let daemon =
        traced(Daemon::with_redis(&redis.url()), &collector.http_url(), "http/protobuf").start();
    let socket = daemon.socket().with_file_name("redis.sock");
    let mut client = std::os::unix::net::UnixStream::connect(&socket).expect("the door");
    let mut ask = |commands: &[Vec<u8>], replies: &str| {
        client.write_all(&commands.concat()).expect("it is sent");
        let mut answer = vec![0; replies.len()];
        client.read_exact(&mut answer).expect("it answers");
        assert_eq!(String::from_utf8_lossy(&answer), replies);
    };
    ask(&[resp(&["SET", "k", "hush"])], "+OK\r\n");
    let is_set = |span: &Span| span.kind == "SERVER" && span.name == "redis SET";
    let set = collector.wait_for("the command", is_set);
    let door = format!("unix:{}", socket.display());
    assert_eq!(set.attribute("fusebox.door"), door);
    assert_eq!(set.attribute("db.system.name"), "redis");
    assert_eq!(set.attribute("db.operation.name"), "SET");
    assert_eq!(set.attribute("fusebox.pipelined"), "0");
    collector.wait_for("its attempt", |span| span.parent == set.id && span.kind == "CLIENT");

    let pipeline = vec![resp(&["INCR", "n"]); 100];
    let replies = (1..=100).map(|n| format!(":{n}\r\n")).collect::<Vec<_>>().concat();
    ask(&pipeline, &replies);
    ask(&[resp(&["GET", "k"])], "$4\r\nhush\r\n");
    collector.wait_for("what came behind it", |span| span.name == "redis GET");
    let spans = collector.spans();
    let of_pipeline =
        spans.iter().filter(|span| span.kind == "SERVER" && span.name == "redis INCR");
    let mut ahead: Vec<u32> = of_pipeline
        .map(|span| span.attribute("fusebox.pipelined").parse().expect("a number"))
        .collect();
    ahead.sort_unstable();
    assert_eq!(ahead, (0..16).collect::<Vec<_>>(), "of 100 commands the first 16");
    assert!(!collector.text().contains("hush"), "values are not recorded");
}

/// What the slowest of ten and the middle of 200 calls take.
fn call_times(daemon: &Daemon) -> Duration {
    let mut times: Vec<Duration> = (0..200)
        .map(|number: u32| {
            let begun = Instant::now();
            daemon.redis(&["SET", "k", &number.to_string()]).assert_live();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[100]
}

#[test]
fn a_collector_that_is_frozen_gone_or_back_costs_callers_nothing() {
    let mut collector = Collector::start();
    let redis = RedisServer::start();
    let mut daemon = traced(Daemon::with_redis(&redis.url()), &collector.grpc_url(), "grpc")
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "64")
        .start();
    let with = call_times(&daemon);
    collector.freeze();
    let frozen = call_times(&daemon);
    let dropped = || daemon.metric("spans_total", &[("result", "dropped")]);
    eventually("what there is no room for is counted", LONG, || {
        call_times(&daemon);
        dropped() > 0.0
    });
    collector.thaw();
    collector.kill_9();
    let without = call_times(&daemon);
    // Far below what waiting for the collector once would take, far above what a busy machine adds.
    let bound = with * 4 + Duration::from_millis(5);
    assert!(frozen < bound && without < bound, "{with:?}, frozen {frozen:?}, gone {without:?}");
    collector.restart();
    eventually("the collector that is back is used again", LONG, || {
        daemon.fusebox(&["trace-test"]).status.success()
    });

    collector.freeze();
    call_times(&daemon);
    let begun = Instant::now();
    assert!(daemon.terminate().success());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "a frozen collector held up the end for {took:?}");
}

#[test]
fn trace_test_says_whether_the_collector_took_it() {
    let mut collector = Collector::start();
    let redis = RedisServer::start();
    let off = Daemon::with_redis(&redis.url()).start();
    let told = off.fusebox(&["trace-test"]);
    assert_eq!(told.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&told.stderr).contains("OTEL_EXPORTER_OTLP_ENDPOINT"),
        "{told:?}"
    );

    let daemon =
        traced(Daemon::with_redis(&redis.url()), &collector.http_url(), "http/protobuf").start();
    let told = daemon.fusebox(&["trace-test"]);
    assert!(told.status.success(), "{told:?}");
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(text.contains("accepted trace f05eb0c5000000000000000000007e57"), "{text}");
    collector.wait_for("the test's span", |span| span.name == "fusebox trace-test");
    collector.kill_9();
    let told = daemon.fusebox(&["trace-test"]);
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&told.stdout).contains("did not accept the trace"), "{told:?}");
}

/// Answers every request as ClickHouse would `SELECT 1`, and keeps the requests' heads. A stand-in: a real
/// server does not tell what headers it was sent.
fn recording_server(port: &Port) -> Arc<Mutex<Vec<String>>> {
    fn serve(mut stream: TcpStream, heads: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            request.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() < length.map_or(0, |length| length.parse().unwrap()) {
                continue;
            }
            heads.lock().push(head);
            request.clear();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1\n")?;
        }
    }
    let listener = TcpListener::bind(port.address()).expect("the port is ours");
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let kept = Arc::clone(&heads);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let heads = Arc::clone(&kept);
            thread::spawn(move || serve(stream, &heads));
        }
    });
    heads
}

#[test]
fn a_backend_gets_the_attempts_span_and_the_callers_baggage() {
    let (collector, port) = (Collector::start(), Port::lease());
    let heads = recording_server(&port);
    let url = format!("http://{}", port.address());
    let daemon = Builder::default()
        .set("backends.clickhouse.url", url)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.http_url())
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start();
    let traceparent = format!("00-{CALLER}-{CALLERS_SPAN}-01");
    let headers =
        [("traceparent", &*traceparent), ("tracestate", "shop=1"), ("baggage", "user=hush")];
    let answer = call_raw(&daemon, "clickhouse", &headers, b"SELECT 1 FORMAT TSV", 1);
    assert_eq!(answer.status, 200, "{answer:?}");
    let attempt = collector.wait_for("the attempt", |span| span.name == "SELECT clickhouse");
    let passed = format!("traceparent: 00-{CALLER}-{}-01", attempt.id);
    let heads = heads.lock();
    let head = heads.iter().find(|head| head.contains(&passed)).expect("it was passed on");
    assert!(head.contains("tracestate: shop=1") && head.contains("baggage: user=hush"), "{head}");
    assert!(!collector.text().contains("hush"), "baggage is not recorded");
}

#[test]
fn without_a_sampled_caller_only_what_is_worth_it_is_kept() {
    let collector = Collector::start();
    let mut redis = RedisServer::start();
    let daemon = traced(Daemon::with_redis(&redis.url()), &collector.http_url(), "http/protobuf")
        .env("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        .start();
    let quiet = daemon.redis(&["SET", "k", "1"]);
    quiet.assert_live();
    redis.kill_9();
    let loud = daemon.redis(&["GET", "other"]);
    let of = |trace_id: &serde_json::Value, span: &Span| *trace_id == span.trace_id;
    collector.wait_for("the call that failed", |span| of(&loud.body["trace_id"], span));
    assert!(!collector.spans().iter().any(|span| of(&quiet.body["trace_id"], span)));
}

#[test]
fn a_collector_behind_tls_is_trusted_by_its_authority_alone() {
    let (collector, redis) = (Collector::start(), RedisServer::start());
    let (ours, stranger) = (Authority::new("ours"), Authority::new("stranger"));
    for (protocol, port) in
        [("grpc", collector.grpc_port()), ("http/protobuf", collector.http_port())]
    {
        let front = TlsFront::start(port, &ours.sign());
        let taken = |authority: &Authority| {
            let url = format!("https://{}", front.address());
            let daemon = traced(Daemon::with_redis(&redis.url()), &url, protocol)
                .env("OTEL_EXPORTER_OTLP_CERTIFICATE", &authority.file())
                .start();
            let told = daemon.fusebox(&["trace-test", "--json"]);
            String::from_utf8_lossy(&told.stdout).into_owned()
        };
        let told = taken(&ours);
        assert!(told.contains("\"taken\":true"), "{protocol}: {told}");
        let told = taken(&stranger);
        assert!(told.contains("\"taken\":false"), "{protocol}: {told}");
    }
    collector.wait_for("the test's span", |span| span.name == "fusebox trace-test");
}

#[test]
fn a_collector_gets_the_headers_that_the_environment_says() {
    let (redis, port) = (RedisServer::start(), Port::lease());
    let heads = recording_server(&port);
    let url = format!("http://{}", port.address());
    let daemon = traced(Daemon::with_redis(&redis.url()), &url, "http/protobuf")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush,x-scope=shop")
        .start();
    daemon.fusebox(&["trace-test"]);
    let is_whole = |head: &String| {
        head.starts_with("post /v1/traces ")
            && head.contains("authorization: bearer hush")
            && head.contains("x-scope: shop")
    };
    assert!(heads.lock().iter().any(is_whole), "{:?}", heads.lock());
    assert!(!daemon.log_text().contains("hush"), "secrets are not logged");
}

#[test]
fn an_export_that_nobody_answers_is_given_up_in_the_exporters_own_time() {
    let redis = RedisServer::start();
    for protocol in ["http/protobuf", "grpc"] {
        // It takes connections and never says a word.
        let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", deaf.local_addr().unwrap());
        let daemon = traced(Daemon::with_redis(&redis.url()), &endpoint, protocol)
            .env("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
            .start();
        let begun = Instant::now();
        call_times(&daemon);
        eventually("the export failed", LONG, || {
            daemon.metric("spans_total", &[("result", "failed")]) > 0.0
        });
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{protocol}: it stopped all others for {took:?}");
    }
}
