//! Clients with less time than the backend may take.

use std::sync::atomic::{AtomicUsize, Ordering};

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    CommitRequest, CommitResponse, Write, WriteResult,
};
use prost::Message;
use prost_types::Timestamp;
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Response, Status};

use super::{
    clients::{DATABASE, name, set, stub},
    understood::{Stub, increment, said, transformed},
    *,
};

/// How long the clients here wait.
const PATIENCE_OF_CLIENTS: Duration = Duration::from_secs(1);
/// How long the backend may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A server that answers no commit before the test lets it.
struct Slow {
    commits: AtomicUsize,
    /// The deadlines that they had.
    times: parking_lot::Mutex<Vec<String>>,
    answers: watch::Sender<bool>,
}

async fn world(wanted: Wanted) -> (World, Arc<Slow>) {
    let (server, port) = Played::start().await;
    let slow = Arc::new(Slow {
        commits: AtomicUsize::new(0),
        times: parking_lot::Mutex::default(),
        answers: watch::Sender::new(false),
    });
    let shared = Arc::clone(&slow);
    server.answer_all(move |request, respond| {
        let slow = Arc::clone(&shared);
        async move {
            let time = request.headers()["grpc-timeout"].to_str().unwrap().to_owned();
            let body = drained(&mut request.into_body()).await.unwrap();
            slow.times.lock().push(time);
            slow.commits.fetch_add(1, Ordering::Relaxed);
            slow.answers.subscribe().wait_for(|it| *it).await.unwrap();
            let commit = CommitRequest::decode(&body[5..]).unwrap();
            let update_time = Some(Timestamp { seconds: 7, nanos: 0 });
            let result = WriteResult { update_time, ..WriteResult::default() };
            let write_results = vec![result; commit.writes.len()];
            let answer = CommitResponse { write_results, commit_time: update_time };
            self::answer(respond, &answer.encode_to_vec());
        }
    });
    let world = World::with(settings(port), Wanted { timeout: TIMEOUT, ..wanted }).await;
    (world, slow)
}

async fn hasty(stub: &mut Stub, writes: Vec<Write>) -> Result<Response<CommitResponse>, Status> {
    let database = DATABASE.into();
    let mut commit =
        tonic::Request::new(CommitRequest { database, writes, transaction: Bytes::new() });
    commit.set_timeout(PATIENCE_OF_CLIENTS);
    stub.commit(commit).await
}

impl World {
    fn kept(&self) -> u64 {
        self.fusebox.backend("firestore").unwrap().view().queue.calls
    }
}

#[tokio::test]
async fn an_absolute_write_is_kept_in_its_clients_time_and_what_was_sent_goes_on() {
    let (world, slow) = world(Wanted::default()).await;
    let mut stub = stub(&world).await;
    let began = Instant::now();
    let answer = hasty(&mut stub, vec![set("u/a", "one".into())]).await.unwrap();
    assert!(began.elapsed() < PATIENCE_OF_CLIENTS, "{:?}", began.elapsed());
    assert_eq!(said(answer.metadata(), "x-fusebox-ack"), "durable");
    // The queue's own attempt, which waits for the fence, may have a place besides.
    assert!(world.in_flight() >= 1, "it is still on the wire");
    assert_eq!((slow.commits.load(Ordering::Relaxed), world.kept()), (1, 1));
    assert_eq!(slow.times.lock().as_slice(), ["60000000u"], "the backend's time, not the client's");
    // Another one to the same document is behind it.
    let answer = hasty(&mut stub, vec![set("u/a", "two".into())]).await.unwrap();
    assert_eq!(said(answer.metadata(), "x-fusebox-ack"), "durable");
    assert_eq!((slow.commits.load(Ordering::Relaxed), world.kept()), (1, 2));
    // The first one's answer comes after all: nothing old can land any more.
    slow.answers.send_replace(true);
    until("both are applied", || world.kept() == 0).await;
    assert!(slow.commits.load(Ordering::Relaxed) >= 2);
    assert_eq!((world.in_flight(), world.breaker().as_str()), (0, "CLOSED"));
}

#[tokio::test]
async fn what_may_not_be_kept_is_told_as_unknown_and_goes_on_as_well() {
    let refuses = Settings { min_ack: Some(fusebox_actors::AckLevel::Applied), ..usual() };
    let write = || set("u/a", "one".into());
    for (door, write) in
        [(usual(), transformed(write(), vec![("n", increment(1))])), (refuses, write())]
    {
        let (world, slow) = world(Wanted { door, ..Wanted::default() }).await;
        let mut stub = stub(&world).await;
        let told = hasty(&mut stub, vec![write]).await.unwrap_err();
        // The client's own clock may be the first to say so.
        assert!(matches!(told.code(), Code::DeadlineExceeded | Code::Cancelled), "{told}");
        let counts = || (slow.commits.load(Ordering::Relaxed), world.kept(), world.in_flight());
        assert_eq!(counts(), (1, 0, 1), "it is still on the wire");
        slow.answers.send_replace(true);
        until("its late answer gives its place back", || world.in_flight() == 0).await;
        assert_eq!((counts(), world.breaker().as_str()), ((1, 0, 0), "CLOSED"));
    }
}

#[tokio::test]
async fn a_write_that_turns_out_to_be_none_that_can_be_kept_has_all_of_its_clients_time() {
    let field = |number: u8, bytes: &[u8]| {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
    };
    let (world, slow) = world(Wanted::default()).await;
    // In its document is something that is not known.
    let document = [field(1, name("u/a").as_bytes()), field(15, b"x")].concat();
    let write = field(2, &field(1, &document));
    let commit = [field(1, DATABASE.as_bytes()), write].concat();
    let began = Instant::now();
    let client = world.connect().await;
    let got = client.call(COMMIT, &[("grpc-timeout", "1S")], &commit).await;
    assert_eq!(got.status(), "4", "{got:?}");
    assert!(began.elapsed() >= PATIENCE_OF_CLIENTS, "{:?}", began.elapsed());
    assert_eq!((slow.commits.load(Ordering::Relaxed), world.kept(), world.in_flight()), (1, 0, 1));
}

#[tokio::test]
async fn reads_that_the_server_resets_when_their_clients_give_up_are_no_failures() {
    let (server, port) = Played::start().await;
    server.answer_all(|request, mut respond| async move {
        let time = request.headers()["grpc-timeout"].to_str().unwrap();
        let millis = time.strip_suffix('m').unwrap().parse().unwrap();
        // What is asked is what it does when that time is over, as grpc-java does, so it has to pass.
        tokio::time::sleep(Duration::from_millis(millis)).await;
        respond.send_reset(h2::Reason::CANCEL);
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    for _ in 0..20 {
        let got = client.call(GET, &[("grpc-timeout", "30m")], b"").await;
        // The door's own clock and the server's end it together.
        assert!(["4", "14"].contains(&got.status()), "{got:?}");
    }
    until("the server has ended them all", || world.in_flight() == 0).await;
    let failures = world.fusebox.backend("firestore").unwrap().view().breaker.window_failures;
    assert_eq!((failures, world.breaker().as_str()), (0, "CLOSED"));
}

#[tokio::test]
async fn writes_that_their_clients_gave_up_open_the_breaker() {
    let (server, port) = Played::start().await;
    server.answer_nothing();
    let wanted = Wanted { timeout: Duration::from_millis(900), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    for n in 0..3 {
        let writes = vec![set(&format!("u/{n}"), "one".into())];
        let commit = CommitRequest { database: DATABASE.into(), writes, transaction: Bytes::new() };
        let got = client.call(COMMIT, &[("grpc-timeout", "100m")], &commit.encode_to_vec()).await;
        assert_eq!((got.status(), got.said("x-fusebox-ack")), ("0", "durable"), "{got:?}");
    }
    assert!(world.in_flight() >= 3, "they are still on the wire");
    assert_eq!(world.kept(), 3);
    // Each goes over a connection of its own, and is a failure when `timeout` and the grace are over.
    let what = "three writes without an answer open it";
    until_within(PATIENCE * 3, what, || world.breaker() == "OPEN").await;
}
