//! What the server says of a call, and what it says of itself.

use std::net::SocketAddr;

use fusebox_actors::{AckLevel, connector::Connector as _};
use fusebox_state::{ErrorClass, Verdict};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    DocumentMask, Value, Write, value::ValueType, write::Operation,
};
use serde_json::json;
use tokio::task::{JoinHandle, JoinSet};
use tonic::Code;

use super::{
    clients::{set, stub},
    pipelines::{PIPELINE, executes},
    understood::{committed, delete, existing, said},
    writing::{Both, hands_over},
    *,
};
use crate::kinds::firestore::{
    stand_in::StandIn,
    testing::{attempt, planned},
};

/// A document that is not there, and whose name says so.
const MISSING: &str = "u/it does not exist";

async fn stand_in() -> (Arc<StandIn>, SocketAddr) {
    let server = StandIn::with_log(100);
    let address = server.start(crate::net::test_port::own_address()).await.unwrap();
    (server, address)
}

/// Gives a document that number.
fn numbered(path: &str, number: i64) -> Write {
    let mut write = set(path, String::new());
    let Some(Operation::Update(document)) = &mut write.operation else { panic!("a set") };
    let number = Value { value_type: Some(ValueType::IntegerValue(number)) };
    document.fields = [("value".to_owned(), number)].into();
    write
}

#[tokio::test]
async fn a_document_that_is_not_there_is_no_missing_database_whatever_its_name_is() {
    let (_server, address) = stand_in().await;
    let world = World::before(address.port()).await;
    let mut stub = stub(&world).await;
    for _ in 0..8 {
        let update = existing(true, set(MISSING, "new".into()));
        let refused = committed(&mut stub, vec![update]).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
    }
    let view = world.fusebox.backend("firestore").unwrap().view();
    assert_eq!((view.queue.calls, view.breaker.window_failures), (0, 0));
    assert_eq!(world.breaker(), "CLOSED");
}

#[tokio::test]
async fn a_database_that_is_missing_is_a_failure_at_the_end_of_a_stream_too() {
    let (server, port) = Played::start().await;
    let mut handed = hands_over(server, Bytes::new());
    let world = World::before(port).await;
    let client = world.connect().await;
    let mut stream = Both::begin(&client, &mut handed).await;
    stream.deletes("d").await;
    let message =
        "The database (default) does not exist for project fusebox-local".parse().unwrap();
    let mut trailers = status("5");
    trailers.insert("grpc-message", message);
    stream.fails(trailers);
    assert_eq!(stream.ends().await.status(), "5");
    until("it is settled", || world.in_flight() == 0).await;
    let view = world.fusebox.backend("firestore").unwrap().view();
    assert_eq!(view.breaker.window_failures, 1);
}

#[tokio::test]
async fn a_queued_call_that_is_refused_holds_up_none_that_is_sent_with_it() {
    let (server, address) = stand_in().await;
    let world = World::before(address.port()).await;
    let mut stub = stub(&world).await;
    server.stop();
    world.opens(&mut stub).await;
    for number in 0..10 {
        committed(&mut stub, vec![numbered(&format!("u/{number}"), number)]).await.unwrap();
    }
    committed(&mut stub, vec![existing(true, numbered(MISSING, 10))]).await.unwrap();
    server.start(address).await.unwrap();
    world.recovers().await;
    let applied: Vec<String> = server.values().into_values().collect();
    assert_eq!(applied, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    let view = world.fusebox.backend("firestore").unwrap().view();
    assert_eq!(view.queue.dead_letters, 1);
}

/// What a gateway was asked.
#[derive(Default)]
struct Passed {
    pings: AtomicUsize,
    commits: AtomicUsize,
}

/// What a gateway answers that speaks gRPC.
fn unimplemented() -> Response<()> {
    let mut answer = head();
    answer.headers_mut().extend(status("12"));
    answer
}

/// What another one answers.
fn not_found() -> Response<()> {
    Response::builder().status(404).body(()).unwrap()
}

/// A gateway behind which there is no Firestore: it answers every request so. It is there until its task ends.
fn gateway(listener: TcpListener, answer: fn() -> Response<()>) -> (Arc<Passed>, JoinHandle<()>) {
    let passed = Arc::<Passed>::default();
    let counted = Arc::clone(&passed);
    let serving = tokio::spawn(async move {
        // Dropped with this task, and every connection with it.
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            connections.spawn(async move {
                let Ok(mut served) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = served.accept().await {
                    match request.uri().path() {
                        PING => counted.pings.fetch_add(1, Relaxed),
                        COMMIT => counted.commits.fetch_add(1, Relaxed),
                        _ => 0,
                    };
                    drop(respond.send_response(answer(), true));
                }
            });
        }
    });
    (passed, serving)
}

/// A new one, and its port.
async fn new_gateway(answer: fn() -> Response<()>) -> (Arc<Passed>, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (passed, _serving) = gateway(listener, answer);
    (passed, port)
}

/// Waits until nobody listens there any more.
async fn closed(address: SocketAddr) {
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(PATIENCE, closed).await.expect("nobody listens");
}

#[tokio::test]
async fn what_is_no_firestore_is_down_and_buries_no_queued_write() {
    let (server, address) = stand_in().await;
    let world = World::before(address.port()).await;
    let mut stub = stub(&world).await;
    server.stop();
    world.opens(&mut stub).await;
    for number in 1..4 {
        // None of them makes the one before it needless.
        let update_mask = Some(DocumentMask { field_paths: vec!["value".into()] });
        let write = Write { update_mask, ..numbered("u/a", number) };
        committed(&mut stub, vec![write]).await.unwrap();
    }
    closed(address).await;
    let (passed, serving) = gateway(TcpListener::bind(address).await.unwrap(), unimplemented);
    let backend = world.fusebox.backend("firestore").unwrap();
    world.fusebox.recover(Some("firestore")).await.unwrap();
    let asked = || passed.pings.load(Relaxed) + passed.commits.load(Relaxed);
    until("it is asked, and has failed", || asked() > 0 && world.breaker() == "OPEN").await;
    // Whoever closes the breaker by hand has the same answers.
    let before = passed.commits.load(Relaxed);
    backend.reset().await.unwrap();
    drop(backend.replay());
    until("a commit has failed", || {
        passed.commits.load(Relaxed) > before && backend.view().breaker.window_failures > 0
    })
    .await;
    until("its place is given back", || world.in_flight() == 0).await;
    let queue = backend.view().queue;
    assert_eq!((queue.calls, queue.dead_letters), (3, 0));
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    server.start(address).await.unwrap();
    // It need not wait for the next time that it would be tried.
    drop(backend.replay());
    world.recovers().await;
    let applied = ["1", "2", "3"].map(|value| ("u/a".to_owned(), value.to_owned()));
    assert_eq!(server.log().unwrap(), applied);
    assert_eq!(backend.view().queue.dead_letters, 0);
}

#[tokio::test]
async fn a_commit_that_meets_no_firestore_is_not_halved() {
    let (passed, port) = new_gateway(unimplemented).await;
    let fs = FirestoreConnector::new(settings(port));
    let plans = ["u/a", "u/b", "u/c"]
        .map(|path| planned(&fs, &json!({ "op": "set", "path": path, "data": { "value": 1 } })));
    let ends = fs.attempt_batch(plans.iter().map(|plan| attempt(plan, None)).collect()).await;
    for end in ends.into_iter().chain([fs.ping(PATIENCE).await]) {
        let (verdict, error) = (end.verdict, end.result.unwrap_err());
        assert_eq!((error.class, verdict), (ErrorClass::BlockedServer, Verdict::Failure));
        assert_eq!(error.doubt, None);
    }
    assert_eq!((passed.commits.load(Relaxed), passed.pings.load(Relaxed)), (1, 2));
}

#[tokio::test]
async fn what_is_no_firestore_is_asked_once_of_however_many_commits() {
    let (passed, port) = new_gateway(unimplemented).await;
    let fs = FirestoreConnector::new(settings(port));
    // No two of them fit into one commit.
    let plans = ["u/a", "u/b", "u/c"].map(|path| {
        let set = json!({ "op": "set", "path": path, "data": {} });
        planned(&fs, &json!({ "op": "commit", "writes": vec![set; 300] }))
    });
    let ends = fs.attempt_batch(plans.iter().map(|plan| attempt(plan, None)).collect()).await;
    assert_eq!(ends.len(), 3);
    for end in ends {
        assert_eq!(end.result.unwrap_err().class, ErrorClass::BlockedServer);
    }
    assert_eq!((passed.commits.load(Relaxed), passed.pings.load(Relaxed)), (1, 1));
}

#[tokio::test]
async fn before_what_is_no_firestore_the_door_answers_as_in_an_outage() {
    for gateway in [unimplemented, not_found] {
        let (passed, port) = new_gateway(gateway).await;
        let world = World::before(port).await;
        let mut stub = stub(&world).await;
        for number in 0..20 {
            let write = numbered(&format!("u/{number}"), number);
            match committed(&mut stub, vec![write]).await {
                Ok(answer) => assert_eq!(said(answer.metadata(), "x-fusebox-source"), "queued"),
                Err(told) => assert_eq!(told.code(), Code::Unknown, "{told}"),
            }
        }
        assert!(passed.commits.load(Relaxed) > 0, "it was asked");
        until("it is down", || world.breaker() == "OPEN").await;
        let queue = world.fusebox.backend("firestore").unwrap().view().queue;
        assert!(queue.calls > 0 && queue.dead_letters == 0, "{queue:?}");
    }
}

#[tokio::test]
async fn reads_that_every_firestore_knows_tell_that_there_is_none() {
    for gateway in [unimplemented, not_found] {
        let (_passed, port) = new_gateway(gateway).await;
        let world = World::before(port).await;
        let mut stub = stub(&world).await;
        timeout(PATIENCE, world.opens(&mut stub)).await.expect("it is down");
    }
}

#[tokio::test]
async fn what_not_every_firestore_knows_says_nothing_of_the_server() {
    let (_passed, port) = new_gateway(unimplemented).await;
    let world = World::before(port).await;
    let client = world.connect().await;
    let failures = || world.fusebox.backend("firestore").unwrap().view().breaker.window_failures;
    for _ in 0..8 {
        let got = client.call(PIPELINE, &[], &executes(&["collection"])).await;
        assert_eq!((got.status(), got.said("x-fusebox-source")), ("12", ""), "{got:?}");
    }
    assert!(failures() <= 1, "only its first ping has failed");
    assert_eq!(world.breaker(), "CLOSED");
}

#[tokio::test]
async fn a_write_that_only_this_server_does_not_know_is_refused_by_itself() {
    let (_server, address) = stand_in().await;
    let fs = FirestoreConnector::new(settings(address.port()));
    let transforms = json!({ "n": { "array_union": [1] } });
    let odd = json!({ "op": "set", "path": "u/a", "data": {}, "transforms": transforms });
    let odd = planned(&fs, &odd);
    let set = planned(&fs, &json!({ "op": "set", "path": "u/b", "data": { "value": 1 } }));
    let ends = fs.attempt_batch(vec![attempt(&odd, None), attempt(&set, None)]).await;
    let error = ends[0].result.as_ref().unwrap_err();
    assert_eq!((error.class, ends[0].verdict), (ErrorClass::Rejected, Verdict::Success), "{error}");
    assert!(ends[1].result.is_ok(), "{:?}", ends[1]);
}

#[tokio::test]
async fn a_commit_that_refuses_its_repetition_is_recognised_when_its_answer_was_lost() {
    let (server, address) = stand_in().await;
    let door = Settings { min_ack: Some(AckLevel::Durable), ..usual() };
    let wanted = Wanted { timeout: Duration::from_secs(1), door, ..Wanted::default() };
    let world = World::with(settings(address.port()), wanted).await;
    let mut stub = stub(&world).await;
    committed(&mut stub, vec![numbered("u/a", 1)]).await.unwrap();
    server.lose_answers();
    let writes = vec![existing(true, numbered("u/a", 2)), delete("u/a")];
    let answer = committed(&mut stub, writes).await.unwrap();
    assert_eq!(said(answer.metadata(), "x-fusebox-ack"), "durable");
    assert!(server.values().is_empty(), "it was applied");
    server.stop();
    closed(address).await;
    server.start(address).await.unwrap();
    world.recovers().await;
    let queue = world.fusebox.backend("firestore").unwrap().view().queue;
    assert_eq!(queue.dead_letters, 0);
    assert!(server.recognised() > 0);
}
