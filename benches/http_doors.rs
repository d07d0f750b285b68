//! What the doors of ClickHouse and Firestore cost between a client and a real server, beside the proxies that people
//! use.
//!
//! The server itself, the door (a release build, as it is installed), nginx and Envoy are measured in turns; a figure is
//! the median of the ratios within a round. Each proxy has one worker, and none buffers. nginx (`nginx`) and Envoy
//! (`envoy`) are measured if they are on the `PATH`; Firestore beside Envoy alone, which carries whole HTTP/2.
//!
//! A call on loopback is dominated by what one more process costs at all, so that it is compared with the proxies; with
//! the server itself it is through a network that takes [`ONE_WAY`] each way. So is the throughput of what the server
//! makes up faster than two processors carry it through one more process (2.7 GiB/s): the goal of 0.9 of that is in the
//! row's name, the gate is beside a bare relay, which copies bytes and does nothing else.
//!
//! `cargo bench -p fusebox --bench http_doors -- --gate` exits non-zero outside the gates; `clickhouse` and
//! `firestore` run those alone.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a benchmark reports on stdout, stops at the first error and sleeps in threads of its own"
)]

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

#[path = "backends/figure.rs"]
mod figure;
#[path = "backends/http.rs"]
mod http;
#[path = "backends/network.rs"]
mod network;
#[path = "backends/peer.rs"]
mod peer;
#[path = "backends/stub.rs"]
mod stub;
#[path = "backends/turns.rs"]
mod turns;

/// The tests' own servers and daemon.
#[expect(dead_code, unused_imports, reason = "the tests need more of it")]
#[path = "../tests/it/support"]
mod support {
    pub(crate) mod clickhouse;
    pub(crate) mod daemon;
    pub(crate) mod firestore;
    pub(crate) mod http;
    pub(crate) mod poll;
    pub(crate) mod port;
    pub(crate) mod proc;
}

use figure::{Figure, Gate};
use http::Http;
use network::network;
use peer::Peer;
use stub::{Stub, name};
use support::{
    clickhouse::{ClickHouse, Engine},
    daemon::{Builder, Daemon},
    firestore::{Firestore, emulators},
    port::Port,
};
use turns::{in_turns, median_of, millis, seconds};

/// How long the network takes each way: a server that is not far.
const ONE_WAY: Duration = Duration::from_millis(5);
const LARGE: usize = 100 << 20;
/// Writes of a commit, as many as Firestore takes.
const COMMIT: usize = 500;
const DOCUMENTS: usize = 10_000;

/// A daemon with a door before the server on `port`.
fn door(kind: &str, port: u16) -> (Daemon, Port) {
    let listen = Port::lease();
    let mut door = toml::Table::new();
    for (key, value) in [("backend", kind), ("auth", "open")] {
        door.insert(key.into(), value.into());
    }
    door.insert("listen".into(), listen.address().to_string().into());
    let url = format!("http://127.0.0.1:{port}");
    let mut builder = Builder::default()
        .set(&format!("backends.{kind}.url"), url)
        .set("doors", vec![toml::Value::Table(door)]);
    if kind == "firestore" {
        builder = builder.set("backends.firestore.project", "fusebox");
    }
    (builder.start(), listen)
}

fn is_open(port: &Port) -> bool {
    TcpStream::connect(port.address()).is_ok()
}

fn nginx(folder: &Path, server: u16) -> Option<Peer<Port>> {
    let (listen, file) = (Port::lease(), folder.join("nginx.conf"));
    let text = format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
         events {{ }}
         http {{
           access_log off; client_max_body_size 0; proxy_buffering off; proxy_request_buffering off;
           client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
           fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
           upstream server {{ server 127.0.0.1:{server}; keepalive 16; }}
           server {{
             listen {listen};
             location / {{
               proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection \"\";
             }}
           }}
         }}",
        folder = folder.display(),
        listen = listen.address(),
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("nginx");
    command.args(["-c", file.to_str().unwrap(), "-p", folder.to_str().unwrap()]);
    Peer::start("nginx", &mut command, listen, is_open)
}

fn envoy(folder: &Path, server: u16, http2: bool) -> Option<Peer<Port>> {
    let (listen, file) = (Port::lease(), folder.join("envoy.yaml"));
    let protocol = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
    let text = format!(
        r#"
static_resources:
  listeners:
  - name: in
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: c, timeout: 0s }} }}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: c
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {protocol}: {{ }} }}
    load_assignment:
      cluster_name: c
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {server} }} }} }} }}] }}]
"#,
        listen.number(),
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("envoy");
    command.args(["-c", file.to_str().unwrap(), "--concurrency", "1", "--use-dynamic-base-id"]);
    Peer::start("Envoy", &mut command, listen, is_open)
}

fn connect(port: u16) -> Http<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_nodelay(true).expect("no delay");
    Http::new(stream)
}

/// Measures once, over one connection.
type Load<'a> = &'a dyn Fn(&mut Http<TcpStream>) -> f64;

fn rate(seconds: f64) -> f64 {
    LARGE as f64 / seconds / f64::from(1 << 20)
}

fn shown_rate(rate: f64) -> String {
    format!("{rate:.0} MiB/s")
}

/// The memory of a process that is its own, in MiB; the most that it ever had.
fn most_memory(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024.0
}

/// A figure of two ports, measured in turns: the door to another side.
fn compare(
    what: String,
    (other, door): (u16, u16),
    measure: impl Fn(&mut Http<TcpStream>) -> f64,
    shown: fn(f64) -> String,
    gate: Gate,
) -> Figure {
    // A round has a connection of its own: after 10,000 requests, ClickHouse closes one.
    let (first, second, ratio) =
        in_turns(|| measure(&mut connect(other)), || measure(&mut connect(door)));
    Figure { what: what.leak(), direct: shown(first), ours: shown(second), value: ratio, gate }
}

fn clickhouse() -> Vec<Figure> {
    let server = ClickHouse::start(Engine::Current);
    server.query("CREATE TABLE default.sink (s String) ENGINE = Null");
    let folder = tempfile::tempdir().unwrap();
    let peers: Vec<_> =
        [nginx(folder.path(), server.port()), envoy(folder.path(), server.port(), false)]
            .into_iter()
            .flatten()
            .collect();
    let (near, near_door) = door("clickhouse", server.port());
    let far = network(server.port(), ONE_WAY);
    let (_far, far_door) = door("clickhouse", far);
    let relay = network(server.port(), Duration::ZERO);
    let ours = near_door.number();

    let small = |http: &mut Http<TcpStream>| {
        let sql = "SELECT number, toString(number) FROM system.numbers LIMIT 10 FORMAT JSON";
        median_of(|| assert!(http.post("/", sql) > 0))
    };
    let select = |http: &mut Http<TcpStream>| {
        let sql = format!("SELECT number FROM system.numbers LIMIT {} FORMAT Native", LARGE / 8);
        rate(seconds(|| assert!(http.post("/", &sql) >= LARGE)))
    };
    let rows = "x".repeat(1023) + "\n";
    let rows = rows.repeat(LARGE / 1024).into_bytes();
    let insert = |http: &mut Http<TcpStream>| {
        let path = "/?query=INSERT%20INTO%20default.sink%20FORMAT%20LineAsString";
        rate(seconds(|| assert_eq!(http.send(path, &rows), 0)))
    };
    let mut figures = vec![
        compare(
            "ClickHouse, a small query 5 ms away".into(),
            (far, far_door.number()),
            small,
            millis,
            Gate::AtMost(1.15),
        ),
        compare(
            "  on loopback, beside a bare relay".into(),
            (relay, ours),
            small,
            millis,
            Gate::AtMost(1.5),
        ),
    ];
    for peer in &peers {
        let ports = (peer.at.number(), ours);
        // At least 0.95 of nginx's rate, which is the inverse of the time.
        let gate = if peer.name == "nginx" { Gate::AtMost(1.053) } else { Gate::None };
        figures.push(compare(
            format!("  on loopback, beside {}", peer.name),
            ports,
            small,
            millis,
            gate,
        ));
    }
    let before = most_memory(near.id());
    let loads: [(&str, Load<'_>); 2] = [("SELECT", &select), ("INSERT", &insert)];
    for (word, load) in loads {
        let what = format!("ClickHouse, {word} of 100 MiB (0.9)");
        let ports = (server.port(), ours);
        figures.push(compare(what, ports, load, shown_rate, Gate::None));
        let ports = (relay, ours);
        let what = "  beside a bare relay".to_owned();
        figures.push(compare(what, ports, load, shown_rate, Gate::AtLeast(0.67)));
        for peer in &peers {
            let ports = (peer.at.number(), ours);
            let gate = if peer.name == "nginx" { Gate::AtLeast(0.95) } else { Gate::None };
            figures.push(compare(format!("  beside {}", peer.name), ports, load, shown_rate, gate));
        }
    }
    let after = most_memory(near.id());
    figures.push(Figure {
        what: "memory of the daemon meanwhile, MiB more",
        direct: format!("{before:.0} MiB"),
        ours: format!("{after:.0} MiB"),
        value: after - before,
        gate: Gate::AtMost(32.0),
    });
    figures
}

/// A figure of two ports, as [`compare`].
fn compare_stubs(
    what: String,
    (other, door): (u16, u16),
    mut measure: impl FnMut(&mut Stub) -> f64,
    gate: Gate,
) -> Figure {
    let (mut there, mut here) = (Stub::at(other), Stub::at(door));
    // One measure is borrowed by both sides, in turns.
    let measure = std::cell::RefCell::new(&mut measure);
    let (first, second, ratio) =
        in_turns(|| measure.borrow_mut()(&mut there), || measure.borrow_mut()(&mut here));
    Figure { what: what.leak(), direct: millis(first), ours: millis(second), value: ratio, gate }
}

fn firestore() -> Vec<Figure> {
    let server = Firestore::start(emulators()[0]);
    let folder = tempfile::tempdir().unwrap();
    let peer = envoy(folder.path(), server.port(), true);
    let (_near, near_door) = door("firestore", server.port());
    let far = network(server.port(), ONE_WAY);
    let (_far, far_door) = door("firestore", far);
    Stub::at(server.port()).commits("many", DOCUMENTS, COMMIT);
    let get = |stub: &mut Stub| median_of(|| assert!(stub.get(name("many", 7))));
    let commit = |stub: &mut Stub| seconds(|| stub.commit("written", 0..COMMIT));
    let query = |stub: &mut Stub| seconds(|| assert_eq!(stub.query("many"), DOCUMENTS));
    let (direct, ours) = ((far, far_door.number()), near_door.number());
    let mut figures = vec![
        compare_stubs("Firestore, a get 5 ms away".into(), direct, get, Gate::AtMost(1.2)),
        compare_stubs("Firestore, 500 writes 5 ms away".into(), direct, commit, Gate::AtMost(1.1)),
        compare_stubs(
            "Firestore, a query of 10,000".into(),
            (server.port(), ours),
            query,
            Gate::AtMost(1.11),
        ),
    ];
    if let Some(peer) = peer {
        let ports = (peer.at.number(), ours);
        let most = || Gate::AtMost(1.05);
        figures.push(compare_stubs("Firestore, a get, beside Envoy".into(), ports, get, most()));
        figures.push(compare_stubs("  500 writes, beside Envoy".into(), ports, commit, most()));
        figures.push(compare_stubs("  a query, beside Envoy".into(), ports, query, most()));
    }
    figures
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runs = |part: &str| {
        let is_named = |name: &str| arguments.iter().any(|argument| argument == name);
        is_named(part) || !(is_named("clickhouse") || is_named("firestore"))
    };
    println!("{:<44} {:>14} {:>14} {:>8} {:>8}", "", "other", "door", "ratio", "gate");
    let mut figures = Vec::new();
    let mut report = |part: Vec<Figure>| {
        part.iter().for_each(Figure::print);
        figures.extend(part);
    };
    if runs("clickhouse") {
        report(clickhouse());
    }
    if runs("firestore") {
        report(firestore());
    }
    let outside = figures.iter().filter(|figure| !figure.holds()).count();
    println!("{} figures, {outside} outside their gates", figures.len());
    let gate = arguments.iter().any(|argument| argument == "--gate");
    if gate && outside > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
