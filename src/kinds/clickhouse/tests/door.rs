//! The door against a real server, with a client that sees every byte.

use std::{path::Path, sync::Arc, time::Duration};

use fusebox_actors::{
    BackendSettings, BackendSpec, Fusebox, PingSettings, SystemSettings, WriteFallback,
};
use fusebox_state::queue::QueueLimits;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    runtime::Handle,
    time::timeout,
};

use super::super::{
    connector::ClickHouseConnector,
    door::ClickHouseDoor,
    testing::{self, Engine, PATIENCE, Server, until},
};
use crate::{
    config::{Auth, DoorSettings, doors_testing},
    ingress::{
        door::{Connection, DoorStream, WireDoor},
        gate::{Gate, Pooled, Sharing, testing::user},
        peer::Who,
    },
    kinds::port::DoorSpec,
};

mod ambiguous;
mod callers;
mod hostile;
mod large;
mod opaque;
mod outage;
mod packed;
mod queue;
mod reads;
mod repeated;
mod unusable;

/// What says that a body is packed.
const GZIP: &str = "Content-Encoding: gzip\r\n";
const CLIENT: Who = Who { uid: 7, admin: false, by_token: false };

/// A door before a server.
struct World {
    server: Server,
    door: ClickHouseDoor,
    gate: Gate,
    fusebox: Fusebox,
    state: tempfile::TempDir,
}

fn backend(timeout: Duration, in_flight_max: u32) -> BackendSettings {
    let usual = crate::kinds::testing::backend("clickhouse", timeout);
    BackendSettings { in_flight_max, write_fallback: WriteFallback::Refuse, ..usual }
}

fn system(state: &Path) -> SystemSettings {
    SystemSettings {
        state_dir: state.to_owned(),
        pings: PingSettings::every(Duration::from_secs(3_600)),
        instance: "door".into(),
        copied: None,
    }
}

/// A backend with a connector to the server at this port.
fn spec(port: u16, settings: BackendSettings) -> BackendSpec {
    let mut own = testing::settings(port, "door", "run");
    (own.timeout, own.username) = (settings.timeout, Some("ada".into()));
    own.password = Some(crate::net::secret::Secret::new("hush"));
    BackendSpec { settings, connector: ClickHouseConnector::new(own) }
}

fn door() -> DoorSettings {
    let mut door = doors_testing::door(Auth::Peer, 100);
    door.kind = "clickhouse";
    "clickhouse".clone_into(&mut door.backend);
    door
}

impl World {
    async fn open() -> Self {
        Self::with(Duration::from_secs(5), 64, door()).await
    }

    async fn with(timeout: Duration, in_flight_max: u32, settings: DoorSettings) -> Self {
        Self::of(backend(timeout, in_flight_max), settings).await
    }

    /// One that queues what an outage does not let it send.
    async fn queueing() -> Self {
        let backend = backend(Duration::from_secs(5), 64);
        let limits = QueueLimits { bytes: 16 << 20, dead_items: 100, ..backend.queue };
        let write_fallback = WriteFallback::Queue;
        Self::of(BackendSettings { write_fallback, queue: limits, ..backend }, door()).await
    }

    async fn of(backend: BackendSettings, settings: DoorSettings) -> Self {
        let server = Server::of(Engine::Current).await;
        let port = server.port;
        Self::at(port, server, backend, settings).await
    }

    /// One whose server is reached at another port.
    async fn at(
        port: u16,
        server: Server,
        backend: BackendSettings,
        settings: DoorSettings,
    ) -> Self {
        let state = tempfile::tempdir().unwrap();
        let specs = vec![spec(port, backend)];
        let fusebox = Fusebox::start(system(state.path()), specs, None).await.unwrap();
        let backend = fusebox.backend("clickhouse").unwrap();
        let gate = Gate::of_door(100, settings.in_bytes, Sharing::Users);
        let settings = Arc::new(settings);
        let spec = DoorSpec { settings, backend, kin: Vec::new(), runtime: Handle::current() };
        Self { server, door: ClickHouseDoor::open(spec).unwrap(), gate, fusebox, state }
    }

    /// A client of the door.
    fn client(&self) -> Wire<UnixStream> {
        self.client_of(Some(CLIENT))
    }

    fn client_of(&self, who: Option<Who>) -> Wire<UnixStream> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.takes(DoorStream::Unix(theirs), who);
        Wire(ours)
    }

    /// A client over TCP.
    async fn client_over_tcp(&self, who: Option<Who>) -> Wire<TcpStream> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        self.takes(DoorStream::Tcp(listener.accept().await.unwrap().0), who);
        Wire(ours)
    }

    fn takes(&self, stream: DoorStream, who: Option<Who>) {
        let account = self.gate.account(user(7));
        let part = account.take(Pooled::Connections, 1).unwrap();
        self.door.take(Connection { stream, who, account, part });
    }

    /// A reload gives the backend this timeout, and so another connector to the server at this port.
    async fn reload(&self, port: u16, timeout: Duration) {
        let specs = vec![spec(port, backend(timeout, 64))];
        self.fusebox.reload(system(self.state.path()), specs, Vec::new()).await.unwrap();
    }

    /// A client of the server itself.
    async fn direct(&self) -> Wire<TcpStream> {
        Wire(TcpStream::connect(("127.0.0.1", self.server.port)).await.unwrap())
    }

    fn closed(&self, why: &str) -> u64 {
        self.door.view().closed[why]
    }
}

/// A connection, as a client sees it.
struct Wire<S>(S);

/// An answer, as it came.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// In lower case, sorted.
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// It came to its end.
    whole: bool,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Without what differs from one answer to the next, and what a door says beside it.
    fn alike(mut self) -> Self {
        let differs = [
            "connection",
            "content-length",
            "date",
            "keep-alive",
            "transfer-encoding",
            "x-clickhouse-exception-tag",
            "x-clickhouse-query-id",
            "x-clickhouse-summary",
            "x-clickhouse-progress",
        ];
        if let Some(tag) = self.header("x-clickhouse-exception-tag")
            && let Ok(text) = std::str::from_utf8(&self.body)
        {
            self.body = text.replace(tag, "TAG").into_bytes();
        }
        self.headers.retain(|(name, _)| {
            !differs.contains(&name.as_str()) && !name.starts_with("x-fusebox-")
        });
        for (_, value) in &mut self.headers {
            let end = value.find(",X-Fusebox-").unwrap_or(value.len());
            value.truncate(end);
        }
        self
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        timeout(PATIENCE, self.0.write_all(bytes.as_ref())).await.unwrap().unwrap();
    }

    /// More bytes; false at the end of the connection.
    async fn more(&mut self, bytes: &mut Vec<u8>) -> bool {
        timeout(PATIENCE, self.0.read_buf(bytes)).await.expect("it comes").unwrap_or(0) > 0
    }

    /// The next answer's head, and what came behind it.
    async fn head(&mut self) -> (Answer, Vec<u8>) {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|it| it == b"\r\n\r\n") {
                break at;
            }
            if !self.more(&mut bytes).await {
                return (Answer::default(), bytes);
            }
        };
        let behind = bytes.split_off(end + 4);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let pair = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let mut headers: Vec<_> = lines.map(pair).collect();
        headers.sort();
        (Answer { status, headers, ..Answer::default() }, behind)
    }

    /// The next answer; that to a HEAD has no body.
    async fn answer(&mut self, method: &str) -> Answer {
        let (mut answer, mut bytes) = self.head().await;
        if matches!(answer.status, 100 | 204) || method == "HEAD" {
            answer.whole = true;
            return answer;
        }
        if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().unwrap();
            while bytes.len() < length && self.more(&mut bytes).await {}
            answer.whole = bytes.len() == length;
            answer.body = bytes;
            return answer;
        }
        if answer.header("transfer-encoding").is_none() {
            while self.more(&mut bytes).await {}
            (answer.whole, answer.body) = (true, bytes);
            return answer;
        }
        loop {
            while let Some(at) = bytes.windows(2).position(|it| it == b"\r\n") {
                let size = std::str::from_utf8(&bytes[..at]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                if bytes.len() < at + 2 + size + 2 {
                    break;
                }
                answer.body.extend_from_slice(&bytes[at + 2..at + 2 + size]);
                bytes.drain(..at + 2 + size + 2);
                if size == 0 {
                    answer.whole = true;
                    return answer;
                }
            }
            if !self.more(&mut bytes).await {
                return answer;
            }
        }
    }

    /// Sends a request with a body and returns its answer.
    async fn ask(&mut self, line: &str, headers: &str, body: impl AsRef<[u8]>) -> Answer {
        let body = body.as_ref();
        let length = match line.split(' ').next() {
            Some("GET" | "HEAD" | "OPTIONS") => String::new(),
            _ => format!("Content-Length: {}\r\n", body.len()),
        };
        self.send(format!("{line} HTTP/1.1\r\nHost: localhost\r\n{length}{headers}\r\n")).await;
        self.send(body).await;
        self.answer(line.split(' ').next().unwrap()).await
    }

    /// Sends a request with a body, and does not wait for its answer.
    async fn begin(&mut self, line: &str, body: &str) {
        let length = body.len();
        self.send(format!("{line} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}"))
            .await;
    }

    async fn query(&mut self, query: &str) -> Answer {
        self.ask("POST /", "", query).await
    }

    /// Whether the other side has closed it.
    async fn is_closed(&mut self) -> bool {
        !self.more(&mut Vec::new()).await
    }
}

fn gzip(text: impl AsRef<[u8]>) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_ref()).unwrap();
    encoder.finish().unwrap()
}

/// Queries like `part` that the server runs, the question itself excluded.
async fn running(server: &Server, part: &str) -> String {
    super::running(server, part).await
}
