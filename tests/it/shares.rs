//! Floods of one caller, and what others have left meanwhile: connections and bytes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::outage::operated;
use crate::support::poll::{stays, wait_for};
use crate::support::port::Port;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);

/// A daemon that listens on TCP as well, for a token.
struct World {
    redis: RedisServer,
    daemon: Daemon,
    port: Port,
    _secrets: TempDir,
}

impl World {
    fn start(adjust: impl FnOnce(Builder) -> Builder) -> Self {
        let redis = RedisServer::start();
        let port = Port::lease();
        let secrets = tempfile::tempdir().unwrap();
        let token = secrets.path().join("token");
        fs::write(&token, "t0ken\n").unwrap();
        let builder = operated(&redis.url())
            .set("http.listen", port.address().to_string())
            .set("http.token_file", token.to_str().unwrap());
        let daemon = adjust(builder).start();
        Self { redis, daemon, port, _secrets: secrets }
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.port.address()).expect("the daemon listens");
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }
}

fn unix(client: &Client) -> UnixStream {
    let stream = UnixStream::connect(client.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// The head of a call whose body has so many bytes.
fn head(address: SocketAddr, length: usize) -> String {
    format!(
        "POST /v1/backends/redis/call HTTP/1.1\r\nhost: {address}\r\n\
         authorization: Bearer t0ken\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// Sends `bytes` over a new connection and reads one answer: its status and its body.
fn ask(stream: impl Read + Write, bytes: &[u8]) -> (u16, Value) {
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(bytes).expect("it is taken");
    let mut line = String::new();
    stream.read_line(&mut line).expect("an answer");
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).expect("a header");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

fn set(key: &str) -> Vec<u8> {
    let body = json!({ "command": ["SET", key, "v"] }).to_string();
    let head = "POST /v1/backends/redis/call HTTP/1.1\r\nhost: localhost\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// How long calls take, each on a connection of its own: the median and the 99th percentile, in the best of three
/// rounds, as other work on the machine only ever makes them slower.
fn measure(daemon: &Client, calls: usize) -> (Duration, Duration) {
    (0..3).map(|_| measure_once(daemon, calls)).min_by_key(|times| times.1).expect("three rounds")
}

fn measure_once(daemon: &Client, calls: usize) -> (Duration, Duration) {
    let mut times: Vec<Duration> = (0..calls)
        .map(|number| {
            let begun = Instant::now();
            let (status, body) = ask(unix(daemon), &set(&format!("k{number}")));
            assert_eq!(status, 200, "{body}");
            begun.elapsed()
        })
        .collect();
    times.sort();
    (times[calls / 2], times[calls * 99 / 100])
}

/// Others may be twice as slow while a flood lasts. What is below a few milliseconds is the machine's noise.
#[track_caller]
fn assert_not_slower(what: &str, before: (Duration, Duration), during: (Duration, Duration)) {
    println!("{what}: median and p99 {before:?} before, {during:?} meanwhile");
    let bound = (before.1 * 2).max(Duration::from_millis(10));
    assert!(during.1 <= bound, "{what}: {before:?} before, {during:?} meanwhile");
}

#[test]
fn connections_on_tcp_without_any_right_leave_room_on_the_socket() {
    let world = World::start(|builder| builder);
    let before = measure(&world.daemon, 300);
    let mut idle: Vec<TcpStream> = (0..1_400).map(|_| world.tcp()).collect();
    for stream in idle.iter_mut().step_by(10) {
        // Those beyond the share are closed.
        drop(stream.write_all(b"POST /v1/ba"));
    }
    let during = measure(&world.daemon, 300);
    assert_not_slower("1,400 connections", before, during);
    // Those who ask how it is are answered on TCP, too: a spare place is free again after a second.
    wait_for("health is told on TCP", LONG, || {
        let mut stream = world.tcp();
        stream.write_all(&get("/health/live")).ok()?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).ok()?;
        (answer == *b"HTTP/1.1 200").then_some(())
    });
    drop(idle);
}

#[test]
fn health_and_orders_are_answered_when_a_caller_has_all_its_connections() {
    let world = World::start(|builder| builder);
    let daemon = &world.daemon;
    let mut idle: Vec<UnixStream> = (0..1_120).map(|_| unix(daemon)).collect();
    let (status, problem) = ask(unix(daemon), &set("k"));
    assert_eq!((status, &problem["code"]), (429, &json!("door_full")), "{problem}");
    for path in ["/health", "/health/live", "/health/ready", "/admin/log"] {
        assert_eq!(ask(unix(daemon), &get(path)).0, 200, "{path}");
    }
    let order = "POST /admin/circuit-breaker/redis/reset HTTP/1.1\r\nhost: localhost\r\n\r\n";
    assert_eq!(ask(unix(daemon), order.as_bytes()).0, 200);
    // Somebody else has nothing yet, and finds room.
    let call = format!("{}{{\"command\":[\"GET\",\"k\"]}}", head(world.port.address(), 23));
    assert_eq!(ask(world.tcp(), call.as_bytes()).0, 200);
    idle.truncate(500);
    wait_for("there is room again", LONG, || (ask(unix(daemon), &set("k")).0 == 200).then_some(()));
}

#[test]
fn calls_that_wait_for_their_bodies_keep_no_other_out() {
    let world = World::start(|builder| builder);
    let before = measure(&world.daemon, 300);
    let begin = |stream: &mut dyn Write| {
        let head = head(world.port.address(), 1_000);
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"{")).unwrap();
    };
    let mut network: Vec<TcpStream> = (0..520).map(|_| world.tcp()).collect();
    for stream in &mut network {
        begin(stream);
    }
    let mut local: Vec<UnixStream> = (0..520).map(|_| unix(&world.daemon)).collect();
    for stream in &mut local {
        begin(stream);
    }
    let during = measure(&world.daemon, 300);
    assert_not_slower("1,040 bodies that trickle in", before, during);
    for stream in &mut network {
        stream.write_all(b" ").unwrap();
    }
    drop((network, local));
}

#[test]
fn large_bodies_of_one_caller_leave_bytes_to_others_and_weigh_until_they_are_off_the_wire() {
    const MIB: usize = 1 << 20;
    let world = World::start(|builder| builder.set("calls.bytes", "16MiB"));
    let daemon = &world.daemon;
    // Each weighs twice its length, and a caller alone has 14 MiB: the eighth is refused, or one before it that
    // comes in the same instant as another.
    let mut held: Vec<UnixStream> = Vec::new();
    wait_for("the caller has its share", LONG, || {
        let mut stream = unix(daemon);
        stream.write_all(head(world.port.address(), MIB).as_bytes()).unwrap();
        held.push(stream);
        let (status, problem) = ask(
            unix(daemon),
            &[head(world.port.address(), MIB).as_bytes(), &vec![b' '; MIB]].concat(),
        );
        assert!(status == 400 || status == 429, "{problem}");
        (status == 429).then_some(())
    });
    daemon.redis(&["SET", "small", "v"]).assert_live();
    let value = "x".repeat(MIB / 2);
    let call = json!({ "command": ["SET", "others", value] }).to_string();
    let call = format!("{}{call}", head(world.port.address(), call.len()));
    assert_eq!(ask(world.tcp(), call.as_bytes()).0, 200);
    drop(held);
    wait_for("its bytes are given back", LONG, || {
        let large = json!({ "command": ["SET", "k", "x".repeat(6 * MIB)] }).to_string();
        let call = format!("{}{large}", head(world.port.address(), large.len()));
        (ask(unix(daemon), call.as_bytes()).0 == 200).then_some(())
    });

    // A request that can never fit is not asked to come again.
    let (status, problem) = ask(unix(daemon), head(world.port.address(), 9 * MIB).as_bytes());
    assert_eq!(status, 413, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("8 MiB"), "{problem}");

    // A caller that leaves does not take the weight of what is still being sent with it.
    world.redis.freeze();
    let large = json!({ "command": ["SET", "k", "x".repeat(6 * MIB)] }).to_string();
    let call = format!("{}{large}", head(world.port.address(), large.len()));
    let mut leaves = unix(daemon);
    leaves.write_all(call.as_bytes()).unwrap();
    let in_flight = || daemon.get("/v1/backends/redis").1["calls"]["in_flight"] == json!(1);
    wait_for("it is on the wire", LONG, || in_flight().then_some(()));
    drop(leaves);
    stays("its bytes are still counted", Duration::from_millis(500), || {
        ask(unix(daemon), call.as_bytes()).0 == 429
    });
    world.redis.thaw();
    wait_for("it is off the wire", LONG, || {
        (ask(unix(daemon), call.as_bytes()).0 == 200).then_some(())
    });
}

#[test]
fn writes_that_wait_in_the_queue_weigh_nothing_at_the_gate() {
    let world = World::start(|builder| builder.set("calls.bytes", "16MiB"));
    let daemon = &world.daemon;
    daemon.order("/admin/backends/redis/offline");
    let value = "x".repeat(1 << 20);
    for key in 0..40 {
        daemon.redis(&["SET", &format!("k{key}"), &value]).assert_queued();
    }
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    daemon.redis(&["SET", "k", &value]).assert_live();
    for key in 0..40 {
        assert_eq!(world.redis.get(&format!("k{key}")).map(|it| it.len()), Some(value.len()));
        daemon.redis(&["GET", &format!("k{key}")]).assert_value(value.as_str());
    }
}
