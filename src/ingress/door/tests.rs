use std::path::PathBuf;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

use super::{
    testing::{Echo, until},
    *,
};
use crate::{config::doors_testing, ingress::peer::Rights, telemetry::testing::Written};

struct Served {
    _dir: tempfile::TempDir,
    path: PathBuf,
    door: Arc<ServedDoor>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

fn served(connections: u32) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
    let settings = Arc::new(doors_testing::door(Auth::Token, connections));
    let echo = Arc::new(Echo::default());
    let door = ServedDoor::new(settings, Policy::default(), echo, Sharing::Nobody);
    let (door, stop) = (Arc::new(door), watch::channel(false).0);
    let serving = tokio::spawn(Arc::clone(&door).serve(listener, stop.subscribe()));
    Served { _dir: dir, path, door, stop, serving }
}

impl Served {
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// A connection that the door serves.
    async fn connected(&self) -> UnixStream {
        let mut stream = self.connect().await;
        assert_eq!(said(&mut stream, b"hello").await, b"hello");
        stream
    }
}

/// What comes back for `bytes`; nothing if the connection is closed.
async fn said(stream: &mut UnixStream, bytes: &[u8]) -> Vec<u8> {
    drop(stream.write_all(bytes).await);
    let mut answer = vec![0; 64];
    let read = stream.read(&mut answer).await.unwrap_or(0);
    answer.truncate(read);
    answer
}

#[tokio::test]
async fn a_connection_above_the_limit_is_told_so_and_a_free_place_is_taken_again() {
    let served = served(2);
    let (first, _second) = (served.connected().await, served.connected().await);
    let mut third = served.connect().await;
    assert_eq!(said(&mut third, b"").await, b"full");
    assert_eq!(said(&mut third, b"").await, b"", "it is closed");
    drop(first);
    until(|| served.door.gate.connections() == 1).await;
    served.connected().await;
    let status = served.door.status();
    assert_eq!((status.accepted, status.refused["no_room"]), (3, 1));
    assert_eq!((status.address.as_str(), status.connections_max), ("unix:/nowhere", 2));
}

#[tokio::test]
async fn a_door_that_stops_takes_nobody_and_waits_for_its_connections() {
    let served = served(2);
    let mut stream = served.connected().await;
    served.stop.send_replace(true);
    assert_eq!(said(&mut stream, b"").await, b"", "the protocol was told to stop");
    served.serving.await.unwrap();
    assert!(UnixStream::connect(&served.path).await.is_err(), "nobody listens");
    assert_eq!(served.door.gate.connections(), 0);
}

#[test]
fn who_may_connect_follows_how_callers_are_known() {
    let caller = |client, admin| Caller::Local { uid: 7, rights: Rights { client, admin } };
    let admits = |auth, caller| {
        let settings = Arc::new(doors_testing::door(auth, 1));
        let echo = Arc::new(Echo::default());
        let door = ServedDoor::new(settings, Policy::default(), echo, Sharing::Users);
        door.admit(caller).map(|who| who.map(|who| (who.uid, who.admin)))
    };
    assert_eq!(admits(Auth::Peer, caller(true, false)), Ok(Some((7, false))));
    assert_eq!(admits(Auth::Peer, caller(true, true)), Ok(Some((7, true))));
    assert_eq!(admits(Auth::Peer, caller(false, false)), Err(()));
    assert_eq!(admits(Auth::Peer, Caller::Network), Err(()));
    assert_eq!(admits(Auth::Token, caller(false, false)), Ok(None));
    assert_eq!(admits(Auth::Token, Caller::Network), Ok(None));
    assert_eq!(admits(Auth::Open, Caller::Network), Ok(Some((NOBODY, false))));
}

/// A door whose clients break rules as often as it says.
struct Flooded(AtomicU64);

impl WireDoor for Flooded {
    fn take(&self, _connection: Connection) {}

    fn no_room(&self) -> &'static [u8] {
        b""
    }

    fn stop(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(()))
    }

    fn view(&self) -> DoorView {
        let closed = counts([("client", 9), (PROTOCOL, self.0.load(Ordering::Relaxed))]);
        DoorView { closed, ..DoorView::default() }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_told_once_a_minute_with_what_was_counted() {
    let lines = Written::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(lines.clone())
        .finish();
    let _log = tracing::subscriber::set_default(subscriber);
    let settings = Arc::new(doors_testing::door(Auth::Token, 1));
    let flooded = Arc::new(Flooded(AtomicU64::new(0)));
    let door: Arc<dyn WireDoor> = Arc::<Flooded>::clone(&flooded);
    let door = Arc::new(ServedDoor::new(settings, Policy::default(), door, Sharing::Nobody));
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::Unix(UnixListener::bind(dir.path().join("s")).unwrap());
    let stop = watch::channel(false).0;
    let serving = tokio::spawn(door.serve(listener, stop.subscribe()));
    // It looks a moment before the test does.
    tokio::time::sleep(Duration::from_millis(1)).await;
    for (more, told) in [(0, None), (7, Some("connections=7")), (0, None), (2, Some("=2"))] {
        flooded.0.fetch_add(more, Ordering::Relaxed);
        tokio::time::sleep(TOLD_EVERY).await;
        let lines = lines.take();
        assert_eq!(lines.len(), usize::from(told.is_some()), "{lines:?}");
        for (line, told) in lines.iter().zip(told) {
            assert!(line.contains("WARN") && line.contains("door=unix:/nowhere"), "{line}");
            assert!(line.contains(told), "{line}");
        }
    }
    // The rest when it stops.
    stop.send_replace(true);
    serving.await.unwrap();
    assert_eq!(lines.take().len(), 1);
}

struct Faulty;

impl WireDoor for Faulty {
    fn take(&self, _connection: Connection) {
        panic!("a fault");
    }

    fn no_room(&self) -> &'static [u8] {
        panic!("a fault");
    }

    fn stop(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }

    fn view(&self) -> DoorView {
        DoorView::default()
    }
}

#[tokio::test]
async fn a_fault_of_the_protocol_costs_a_connection_and_not_the_listener() {
    let mut served = served(1);
    let settings = Arc::clone(&served.door.settings);
    let faulty = ServedDoor::new(settings, Policy::default(), Arc::new(Faulty), Sharing::Nobody);
    let path = served.path.with_extension("faulty");
    let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
    served.door = Arc::new(faulty);
    let door = Arc::clone(&served.door);
    let serving = tokio::spawn(door.serve(listener, served.stop.subscribe()));
    for _ in 0..3 {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        assert_eq!(said(&mut stream, b"x").await, b"");
    }
    assert_eq!(served.door.gate.connections(), 0);
    assert_eq!(served.door.status().accepted, 3);
    served.stop.send_replace(true);
    serving.await.unwrap();
}
