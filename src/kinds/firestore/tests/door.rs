//! The door against real emulators and against servers that the tests play, with clients that see every frame.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::{
    BackendSettings, BackendSpec, Fusebox, PingSettings, Priority, SystemSettings, trace::TraceSink,
};
use fusebox_state::{Ratio, breaker::BreakerSettings};
use h2::{
    RecvStream, SendStream,
    client::SendRequest,
    server::{Connection as Served, SendResponse},
};
use hyper::{HeaderMap, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    ingress::{
        callers::Callers,
        door::{DoorStream, WireDoor},
        peer::{NOBODY, Who},
    },
    kinds::firestore::{
        connector::FirestoreConnector,
        door::{FirestoreDoor, Settings},
        settings::FirestoreSettings,
        testing::{PATIENCE, settings},
    },
};

mod batches;
mod behind;
mod clients;
mod credentials;
mod floods;
mod large;
mod listening;
mod losses;
mod moving;
mod outage;
mod parked;
mod passing;
mod patience;
mod pipelines;
mod room;
mod scope;
mod threads;
mod unary;
mod understood;
mod unknown;
mod verdicts;
mod writing;

/// A door before a server.
struct World {
    door: Arc<FirestoreDoor>,
    fusebox: Fusebox,
    port: u16,
    state: tempfile::TempDir,
}

fn system(state: &Path) -> SystemSettings {
    SystemSettings {
        state_dir: state.to_owned(),
        pings: PingSettings::every(Duration::from_secs(3_600)),
        instance: "door".into(),
        copied: None,
    }
}

fn backend(timeout: Duration, in_flight_max: u32) -> BackendSettings {
    let usual = crate::kinds::testing::backend("firestore", timeout);
    let breaker = BreakerSettings {
        failure_rate: Ratio::new(0.0).unwrap(),
        recovery_timeout: Duration::from_secs(240),
        recovery_timeout_max: Duration::from_secs(480),
        window: Duration::from_secs(60),
        ..usual.breaker
    };
    BackendSettings { breaker, in_flight_max, ..usual }
}

fn usual() -> Settings {
    Settings {
        address: "127.0.0.1:1",
        deadline: None,
        min_ack: None,
        priority: Priority::Normal,
        in_bytes: 256 << 20,
        out_bytes: 512 << 20,
        idle_timeout: None,
        projects: Vec::new(),
        callers: Arc::new(Callers::default()),
        partial_max: Duration::from_secs(30),
        keep_alive: Duration::from_secs(60),
    }
}

const CLIENT: Who = Who { uid: NOBODY, admin: false, by_token: false };

/// A world, as a test wants it.
struct Wanted {
    timeout: Duration,
    in_flight_max: u32,
    door: Settings,
    who: Option<Who>,
    /// Takes the traces.
    sink: Option<Arc<dyn TraceSink>>,
    /// The door has a thread of its own, as in the daemon.
    threaded: bool,
    /// Other backends.
    others: Vec<BackendSpec>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            in_flight_max: 64,
            door: usual(),
            who: Some(CLIENT),
            sink: None,
            threaded: false,
            others: Vec::new(),
        }
    }
}

impl World {
    /// A door before the server on that port.
    async fn before(port: u16) -> Self {
        Self::with(settings(port), Wanted::default()).await
    }

    async fn with(of: FirestoreSettings, wanted: Wanted) -> Self {
        let Wanted { timeout, in_flight_max, door, who, sink, threaded, others: mut specs } =
            wanted;
        let state = tempfile::tempdir().unwrap();
        let connector = FirestoreConnector::new(FirestoreSettings { timeout, ..of });
        specs.push(BackendSpec { settings: backend(timeout, in_flight_max), connector });
        let fusebox = Fusebox::start(system(state.path()), specs, sink).await.unwrap();
        let backend = fusebox.backend("firestore").unwrap();
        let open = if threaded { FirestoreDoor::open } else { FirestoreDoor::open_here };
        let door = Arc::new(open(door, backend).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = Arc::clone(&door);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                serving.serve(DoorStream::Tcp(stream), who, None);
            }
        });
        Self { door, fusebox, port, state }
    }

    /// A reload gives the backend these settings.
    async fn moves_to(&self, of: FirestoreSettings) {
        let settings = backend(of.timeout, 64);
        let spec = BackendSpec { settings, connector: FirestoreConnector::new(of) };
        self.fusebox.reload(system(self.state.path()), vec![spec], Vec::new()).await.unwrap();
    }

    async fn connect(&self) -> Raw {
        Raw::to(self.port).await
    }

    /// Attempts that hold a place.
    fn in_flight(&self) -> u64 {
        self.fusebox.backend("firestore").unwrap().view().calls.in_flight.into()
    }

    fn breaker(&self) -> String {
        self.fusebox.backend("firestore").unwrap().view().breaker.state.to_string()
    }

    fn counted(&self, class: &str, source: &str) -> u64 {
        let view = self.door.view();
        let found = view.commands.iter().find(|it| it.class == class && it.source == source);
        found.unwrap().count
    }
}

/// Waits until `holds`.
async fn until(what: &str, holds: impl Fn() -> bool) {
    until_within(PATIENCE, what, holds).await;
}

/// Waits until `holds`, which takes a while.
async fn until_within(patience: Duration, what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(patience, waiting).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

/// A client of HTTP/2.
#[derive(Clone)]
struct Raw {
    sender: SendRequest<Bytes>,
}

/// An answer whole.
#[derive(Debug)]
struct Whole {
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
}

impl Whole {
    /// The status, wherever it is.
    fn status(&self) -> &str {
        self.said("grpc-status")
    }

    fn message(&self) -> String {
        crate::net::percent::decoded(self.said("grpc-message")).unwrap()
    }

    fn said(&self, name: &str) -> &str {
        let found = self.trailers.get(name).or_else(|| self.headers.get(name));
        found.map_or("", |value| value.to_str().unwrap())
    }
}

impl Raw {
    async fn to(port: u16) -> Self {
        Self::with_window(port, 65_535).await
    }

    /// A client that takes so many bytes of an answer before it reads them.
    async fn with_window(port: u16, window: u32) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window);
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { sender }
    }

    /// Begins a call.
    async fn begin(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://door{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut sender = timeout(PATIENCE, self.sender.clone().ready()).await.unwrap().unwrap();
        sender.send_request(request.body(()).unwrap(), false).unwrap()
    }

    /// Calls a method with one message.
    async fn call(&self, path: &str, headers: &[(&str, &str)], message: &[u8]) -> Whole {
        let (response, mut stream) = self.begin(path, headers).await;
        stream.send_data(framed(message), true).unwrap();
        whole(response).await
    }
}

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat().into()
}

async fn whole(response: h2::client::ResponseFuture) -> Whole {
    timeout(PATIENCE, async {
        let (head, mut stream) = response.await.expect("an answer").into_parts();
        let body = drained(&mut stream).await.expect("its end");
        let trailers = stream.trailers().await.expect("its end").unwrap_or_default();
        Whole { headers: head.headers, body, trailers }
    })
    .await
    .expect("an answer in time")
}

async fn drained(stream: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(body)
}

/// What the connector behind the door asks when it wants to know whether the server is there.
const PING: &str = "/google.firestore.v1.Firestore/BatchGetDocuments";
const GET: &str = "/google.firestore.v1.Firestore/GetDocument";
const QUERY: &str = "/google.firestore.v1.Firestore/RunQuery";
const LISTEN: &str = "/google.firestore.v1.Firestore/Listen";
/// A commit whose only write deletes the document `d`.
const DELETE: &[u8] = b"\x12\x03\x12\x01d";
const COMMIT: &str = "/google.firestore.v1.Firestore/Commit";
const WRITE: &str = "/google.firestore.v1.Firestore/Write";

/// A server that the test plays.
struct Played {
    listener: TcpListener,
    /// Connections that have ended, of those that [`Played::answer_all`] serves.
    ended: Arc<AtomicUsize>,
}

type Came = (Request<RecvStream>, SendResponse<Bytes>);
type Connection = Served<TcpStream, Bytes>;

impl Played {
    async fn start() -> (Self, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (Self { listener, ended: Arc::default() }, port)
    }

    /// Answers the first ping of the connector behind the door: what comes then is the door's.
    async fn answer_ping(&self) {
        let mut served = self.accept().await;
        let (request, respond) = next(&mut served).await;
        assert_eq!(request.uri().path(), PING);
        answer(respond, b"");
        tokio::spawn(async move { while served.accept().await.is_some() {} });
    }

    /// The next connection.
    async fn accept(&self) -> Connection {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        h2::server::handshake(stream).await.unwrap()
    }

    /// Takes every request and answers none, until the test ends.
    fn answer_nothing(self) {
        self.answer_all(|request, respond| async move {
            std::future::pending::<()>().await;
            drop((request, respond));
        });
    }

    /// Answers queries without an end, as fast as anybody takes it, and everything else with a message. `sent` hears how
    /// many bytes went.
    fn fill_windows(self, sent: impl Fn(usize) + Clone + Send + 'static) {
        self.answer_all(move |request, mut respond| {
            let sent = sent.clone();
            async move {
                if request.uri().path() != QUERY {
                    return answer(respond, b"a");
                }
                let mut body = respond.send_response(head(), false).unwrap();
                loop {
                    body.reserve_capacity(64 << 10);
                    let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
                    let Some(Ok(room)) = room else { return };
                    body.send_data(vec![0; room].into(), false).unwrap();
                    sent(room);
                }
            }
        });
    }

    /// Answers every request by `answer`, until the test ends.
    fn answer_all<A>(
        self,
        answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> A + Clone + Send + 'static,
    ) where
        A: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(async move {
            loop {
                let mut served = self.accept().await;
                let (answer, ended) = (answer.clone(), Arc::clone(&self.ended));
                tokio::spawn(async move {
                    while let Some(Ok((request, respond))) = served.accept().await {
                        if request.uri().path() == PING {
                            self::answer(respond, b"");
                            continue;
                        }
                        tokio::spawn(answer(request, respond));
                    }
                    ended.fetch_add(1, Relaxed);
                });
            }
        });
    }
}

/// The next request of a connection.
async fn next(served: &mut Connection) -> Came {
    timeout(PATIENCE, served.accept()).await.unwrap().unwrap().unwrap()
}

fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).unwrap()
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())])
}

/// Answers with one message and `OK`.
fn answer(mut respond: SendResponse<Bytes>, message: &[u8]) {
    let mut body = respond.send_response(head(), false).unwrap();
    body.send_data(framed(message), false).unwrap();
    body.send_trailers(status("0")).unwrap();
}
