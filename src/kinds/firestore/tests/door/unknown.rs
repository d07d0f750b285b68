//! Commits that the server takes and does not answer.

use std::sync::atomic::{AtomicUsize, Ordering};

use fusebox_actors::AckLevel;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    CommitRequest, CommitResponse, WriteResult, write::Operation,
};
use prost::Message;
use prost_types::Timestamp;
use tonic::Code;

use super::{
    clients::{set, stub},
    understood::{committed, increment, said, transformed},
    *,
};

const TIME: Timestamp = Timestamp { seconds: 7, nanos: 0 };

/// What came of a server that answers the first commit by the end of its stream.
#[derive(Default)]
struct Taken {
    commits: AtomicUsize,
    /// How many of them had a marker.
    marked: AtomicUsize,
}

/// Serves so, until the test ends.
fn serve(server: Played) -> Arc<Taken> {
    let taken = Arc::<Taken>::default();
    let shared = Arc::clone(&taken);
    server.answer_all(move |request, respond| {
        let taken = Arc::clone(&shared);
        async move {
            assert_eq!(request.uri().path(), COMMIT);
            let body = drained(&mut request.into_body()).await.unwrap();
            let commit = CommitRequest::decode(&body[5..]).unwrap();
            let is_marked = commit.writes.iter().any(|write| match &write.operation {
                Some(Operation::Update(document)) => document.name.contains("fusebox_markers"),
                _ => false,
            });
            taken.marked.fetch_add(usize::from(is_marked), Ordering::Relaxed);
            if taken.commits.fetch_add(1, Ordering::Relaxed) == 0 {
                return drop(respond);
            }
            let result = WriteResult { update_time: Some(TIME), ..WriteResult::default() };
            let write_results = vec![result; commit.writes.len()];
            let answer = CommitResponse { write_results, commit_time: Some(TIME) };
            self::answer(respond, &answer.encode_to_vec());
        }
    });
    taken
}

async fn world(min_ack: Option<AckLevel>) -> (World, Arc<Taken>) {
    let (server, port) = Played::start().await;
    let taken = serve(server);
    let door = Settings { min_ack, ..usual() };
    let timeout = Duration::from_millis(300);
    let wanted = Wanted { timeout, door, ..Wanted::default() };
    (World::with(settings(port), wanted).await, taken)
}

impl World {
    fn waiting(&self) -> u64 {
        self.fusebox.backend("firestore").unwrap().view().queue.calls
    }
}

#[tokio::test]
async fn an_absolute_write_is_kept_and_sent_again_once_the_first_cannot_land() {
    let (world, taken) = world(None).await;
    let mut stub = stub(&world).await;
    let answer = committed(&mut stub, vec![set("u/a", "one".into())]).await.unwrap();
    assert_eq!(said(answer.metadata(), "x-fusebox-ack"), "durable");
    assert_eq!((taken.commits.load(Ordering::Relaxed), world.waiting()), (1, 1));
    until("it is applied", || world.waiting() == 0).await;
    assert_eq!(taken.commits.load(Ordering::Relaxed), 2);
    assert_eq!(taken.marked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_increment_is_not_sent_again_and_its_client_is_told_its_number() {
    let (world, taken) = world(None).await;
    let mut stub = stub(&world).await;
    let write = transformed(set("u/a", "one".into()), vec![("n", increment(1))]);
    let told = committed(&mut stub, vec![write]).await.unwrap_err();
    // The server has ended the stream itself: its own word passes, and it is none that clients try again.
    assert!(matches!(told.code(), Code::DeadlineExceeded | Code::Cancelled), "{told}");
    assert_eq!(said(told.metadata(), "x-fusebox-op-id").len(), 26, "{told:?}");
    assert_eq!((taken.commits.load(Ordering::Relaxed), world.waiting()), (1, 0));
}

#[tokio::test]
async fn an_increment_that_may_be_kept_bears_a_marker_from_the_first_time_on() {
    let (world, taken) = world(Some(AckLevel::Durable)).await;
    let mut stub = stub(&world).await;
    let write = transformed(set("u/a", "one".into()), vec![("n", increment(1))]);
    let answer = committed(&mut stub, vec![write]).await.unwrap();
    assert_eq!(said(answer.metadata(), "x-fusebox-ack"), "durable");
    until("it is applied", || world.waiting() == 0).await;
    let sent = (taken.commits.load(Ordering::Relaxed), taken.marked.load(Ordering::Relaxed));
    assert!(sent.0 >= 2 && sent.1 >= 2, "{sent:?}");
}
