//! What the server says of a call, and what it says of itself.

use std::net::SocketAddr;

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Value, Write, value::ValueType, write::Operation,
};
use tonic::Code;

use super::{
    clients::{set, stub},
    understood::{committed, existing},
    writing::{Both, hands_over},
    *,
};
use crate::kinds::firestore::stand_in::StandIn;

/// A document that is not there, and whose name says so.
const MISSING: &str = "u/it does not exist";

async fn stand_in() -> (Arc<StandIn>, SocketAddr) {
    let server = StandIn::with_log(100);
    let address = server.start(([127, 0, 0, 1], 0).into()).await.unwrap();
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
