//! The stubs of Google's own definitions, against real emulators.

use futures_util::{StreamExt as _, stream};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsRequest, CommitRequest, Document, GetDocumentRequest, ListenRequest,
    ListenResponse, RunQueryRequest, StructuredQuery, Target, Value, Write,
    firestore_client::FirestoreClient,
    listen_request::TargetChange,
    run_query_request::QueryType,
    structured_query::CollectionSelector,
    target::{DocumentsTarget, TargetType},
    value::ValueType,
    write::Operation,
};
use tonic::{Code, transport::Channel};

use super::{passing::plain, *};
use crate::kinds::firestore::testing::{Emulator, Engine};

pub(super) const DATABASE: &str = "projects/fusebox-local/databases/(default)";

pub(super) fn name(path: &str) -> String {
    format!("{DATABASE}/documents/{path}")
}

pub(super) fn set(path: &str, text: String) -> Write {
    let value = Value { value_type: Some(ValueType::StringValue(text)) };
    let fields = [("t".to_owned(), value)].into();
    let document = Document { name: name(path), fields, ..Document::default() };
    Write { operation: Some(Operation::Update(document)), ..Write::default() }
}

pub(super) async fn stub(world: &World) -> FirestoreClient<Channel> {
    let address = format!("http://127.0.0.1:{}", world.port);
    let stub =
        FirestoreClient::new(Channel::from_shared(address).unwrap().connect().await.unwrap());
    stub.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
}

pub(super) async fn commit(stub: &mut FirestoreClient<Channel>, writes: Vec<Write>) {
    let commit = CommitRequest { database: DATABASE.into(), writes, transaction: Bytes::new() };
    stub.commit(commit).await.unwrap();
}

#[tokio::test]
async fn unary_calls_streams_and_errors_pass_with_every_emulator() {
    for emulator in Emulator::all().await {
        let world = World::before(emulator.port).await;
        let mut stub = stub(&world).await;
        commit(&mut stub, (0..20).map(|n| set(&format!("u/{n:02}"), format!("v{n}"))).collect())
            .await;
        let get = BatchGetDocumentsRequest {
            database: DATABASE.into(),
            documents: vec![name("u/03"), name("u/none")],
            ..BatchGetDocumentsRequest::default()
        };
        let found = stub.batch_get_documents(get).await.unwrap().into_inner();
        assert_eq!(found.collect::<Vec<_>>().await.len(), 2);
        let from = vec![CollectionSelector { collection_id: "u".into(), all_descendants: false }];
        let query = StructuredQuery { from, ..StructuredQuery::default() };
        let query = RunQueryRequest {
            parent: format!("{DATABASE}/documents"),
            query_type: Some(QueryType::StructuredQuery(query)),
            ..RunQueryRequest::default()
        };
        let found = stub.run_query(query).await.unwrap().into_inner();
        let found = found.collect::<Vec<_>>().await;
        let documents = found.iter().filter(|found| found.as_ref().unwrap().document.is_some());
        assert_eq!(documents.count(), 20);
        let missing = GetDocumentRequest { name: name("u/none"), ..GetDocumentRequest::default() };
        let refused = stub.get_document(missing).await.unwrap_err();
        let expected =
            if emulator.engine == Engine::Google { Code::NotFound } else { Code::Unknown };
        assert_eq!(refused.code(), expected, "{refused}");
        assert_eq!(world.breaker(), "CLOSED");
    }
}

/// A Listen to one document.
pub(super) struct Heard(tonic::Streaming<ListenResponse>);

impl Heard {
    /// It hears of that word.
    pub(super) async fn until(&mut self, word: &str) {
        let told = async {
            while let Some(heard) = self.0.next().await {
                if format!("{:?}", heard.unwrap()).contains(word) {
                    return;
                }
            }
            panic!("it ended");
        };
        timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("it does not hear of {word}"));
    }
}

pub(super) async fn listened(stub: &mut FirestoreClient<Channel>, path: &str) -> Heard {
    let documents = DocumentsTarget { documents: vec![name(path)] };
    let target = Target {
        target_id: 1,
        target_type: Some(TargetType::Documents(documents)),
        ..Target::default()
    };
    let add = ListenRequest {
        database: DATABASE.into(),
        target_change: Some(TargetChange::AddTarget(target)),
        ..ListenRequest::default()
    };
    let asked = stream::iter([add]).chain(stream::pending());
    let mut asked = tonic::Request::new(asked);
    // Without it Google's emulator does not know the database.
    asked.metadata_mut().insert("google-cloud-resource-prefix", DATABASE.parse().unwrap());
    Heard(stub.listen(asked).await.unwrap().into_inner())
}

#[tokio::test]
async fn a_listen_hears_of_writes_with_every_emulator() {
    for emulator in Emulator::all().await {
        let world = World::before(emulator.port).await;
        let mut stub = stub(&world).await;
        let mut heard = listened(&mut stub, "u/a").await;
        for word in ["first", "second"] {
            commit(&mut stub, vec![set("u/a", word.to_owned())]).await;
            heard.until(word).await;
        }
        assert_eq!(world.in_flight(), 0);
    }
}

#[tokio::test]
async fn rest_and_grpc_see_the_same_documents_over_one_port() {
    let Some(emulator) = Emulator::google("Firestore's REST over the door").await else { return };
    let world = World::before(emulator.port).await;
    let mut stub = stub(&world).await;
    commit(&mut stub, vec![set("u/rest", "told by gRPC".to_owned())]).await;
    let path = format!("/v1/{}", name("u/rest"));
    let request = |verb: &str| {
        let host = format!("127.0.0.1:{}", world.port);
        format!("{verb} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    };
    let told = plain(world.port, &request("GET")).await;
    assert!(told.starts_with("HTTP/1.1 200") && told.contains("told by gRPC"), "{told}");
    let told = plain(world.port, &request("DELETE")).await;
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    let told = plain(world.port, &request("GET")).await;
    assert!(told.starts_with("HTTP/1.1 404"), "{told}");
    assert_eq!(world.breaker(), "CLOSED");
}

#[tokio::test]
async fn large_messages_pass_in_both_directions() {
    let emulator = Emulator::start(Engine::Npm).await;
    let world = World::before(emulator.port).await;
    let mut stub = stub(&world).await;
    let text = "x".repeat(900 << 10);
    for batch in 0..3 {
        let writes = (0..4).map(|n| set(&format!("large/{batch}{n}"), text.clone()));
        commit(&mut stub, writes.collect()).await;
    }
    let documents =
        (0..3).flat_map(|batch| (0..4).map(move |n| name(&format!("large/{batch}{n}"))));
    let get = BatchGetDocumentsRequest {
        database: DATABASE.into(),
        documents: documents.collect(),
        ..BatchGetDocumentsRequest::default()
    };
    let found = stub.batch_get_documents(get).await.unwrap().into_inner();
    assert_eq!(found.collect::<Vec<_>>().await.len(), 12);
}
