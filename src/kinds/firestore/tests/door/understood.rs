//! Requests that are understood, with the stubs of Google's own definitions, before, in and after an outage.

use fusebox_actors::AckLevel;
use futures_util::StreamExt as _;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsRequest, BatchGetDocumentsResponse, BeginTransactionRequest, CommitRequest,
    CommitResponse, Document, DocumentMask, Precondition, RollbackRequest,
    RunAggregationQueryRequest, RunQueryRequest, StructuredAggregationQuery, StructuredQuery,
    Value, Write,
    batch_get_documents_request::ConsistencySelector,
    batch_get_documents_response::Result as Got,
    document_transform::{
        FieldTransform,
        field_transform::{ServerValue, TransformType},
    },
    firestore_client::FirestoreClient,
    precondition::ConditionType,
    run_aggregation_query_request, run_query_request,
    structured_aggregation_query::{self, Aggregation, aggregation},
    structured_query::CollectionSelector,
    value::ValueType,
    write::Operation,
};
use prost_types::Timestamp;
use tonic::{Code, Response, Status, metadata::MetadataMap, transport::Channel};

use super::{
    clients::{DATABASE, commit, name, set, stub},
    *,
};
use crate::kinds::firestore::testing::{Emulator, Engine};

pub(super) type Stub = FirestoreClient<Channel>;

pub(super) fn said<'a>(metadata: &'a MetadataMap, name: &str) -> &'a str {
    metadata.get(name).map_or("", |value| value.to_str().unwrap())
}

fn get_of(paths: &[&str]) -> BatchGetDocumentsRequest {
    BatchGetDocumentsRequest {
        database: DATABASE.into(),
        documents: paths.iter().map(|path| name(path)).collect(),
        ..BatchGetDocumentsRequest::default()
    }
}

/// What a get found: each document, or `None`, and what is said of it.
pub(super) struct Seen {
    documents: Vec<Option<Document>>,
    headers: MetadataMap,
}

impl Seen {
    pub(super) fn texts(&self) -> Vec<Option<String>> {
        let text = |it: &Document| match &it.fields.get("t")?.value_type {
            Some(ValueType::StringValue(text)) => Some(text.clone()),
            other => Some(format!("{other:?}")),
        };
        self.documents.iter().map(|it| it.as_ref().and_then(text)).collect()
    }

    pub(super) fn source(&self) -> &str {
        said(&self.headers, "x-fusebox-source")
    }
}

async fn seen(stub: &mut Stub, get: BatchGetDocumentsRequest) -> Result<Seen, Status> {
    let names = get.documents.clone();
    let answer = stub.batch_get_documents(get).await?;
    let headers = answer.metadata().clone();
    let mut answers = answer.into_inner();
    let mut found = std::collections::HashMap::new();
    while let Some(answer) = answers.message().await? {
        assert!(answer.read_time.is_some());
        match answer.result.unwrap() {
            Got::Found(document) => {
                assert!(document.update_time.is_some() && document.create_time.is_some());
                found.insert(document.name.clone(), Some(document));
            }
            Got::Missing(name) => drop(found.insert(name, None)),
        }
    }
    let documents = names.iter().map(|name| found[name].clone()).collect();
    Ok(Seen { documents, headers })
}

pub(super) async fn got(stub: &mut Stub, paths: &[&str]) -> Result<Seen, Status> {
    seen(stub, get_of(paths)).await
}

pub(super) async fn committed(
    stub: &mut Stub,
    writes: Vec<Write>,
) -> Result<Response<CommitResponse>, Status> {
    let database = DATABASE.into();
    stub.commit(CommitRequest { database, writes, transaction: Bytes::new() }).await
}

pub(super) fn delete(path: &str) -> Write {
    Write { operation: Some(Operation::Delete(name(path))), ..Write::default() }
}

pub(super) fn transformed(write: Write, transforms: Vec<(&str, TransformType)>) -> Write {
    let transform = |(path, it): (&str, TransformType)| FieldTransform {
        field_path: path.into(),
        transform_type: Some(it),
    };
    Write { update_transforms: transforms.into_iter().map(transform).collect(), ..write }
}

pub(super) fn increment(by: i64) -> TransformType {
    TransformType::Increment(Value { value_type: Some(ValueType::IntegerValue(by)) })
}

const SERVER_TIME: TransformType = TransformType::SetToServerValue(ServerValue::RequestTime as i32);

pub(super) fn existing(exists: bool, write: Write) -> Write {
    let condition_type = Some(ConditionType::Exists(exists));
    Write { current_document: Some(Precondition { condition_type }), ..write }
}

fn at(time: Option<&Timestamp>) -> (i64, i32) {
    time.map(|time| (time.seconds, time.nanos)).unwrap()
}

fn structured() -> StructuredQuery {
    let from = vec![CollectionSelector { collection_id: "u".into(), all_descendants: false }];
    StructuredQuery { from, ..StructuredQuery::default() }
}

/// Everything that a query answers, and its source.
async fn queried(stub: &mut Stub, limit: i32) -> Result<(usize, String), Status> {
    let query = StructuredQuery { limit: (limit > 0).then_some(limit), ..structured() };
    let query = RunQueryRequest {
        parent: format!("{DATABASE}/documents"),
        query_type: Some(run_query_request::QueryType::StructuredQuery(query)),
        ..RunQueryRequest::default()
    };
    let answer = stub.run_query(query).await?;
    let source = said(answer.metadata(), "x-fusebox-source").to_owned();
    let found = answer.into_inner().collect::<Vec<_>>().await;
    let found = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    assert!(found.iter().all(|it| it.read_time.is_some()));
    Ok((found.iter().filter(|it| it.document.is_some()).count(), source))
}

async fn counted(stub: &mut Stub) -> Result<(Option<Value>, String), Status> {
    let count = Aggregation {
        alias: "n".into(),
        operator: Some(aggregation::Operator::Count(aggregation::Count::default())),
    };
    let query = StructuredAggregationQuery {
        aggregations: vec![count],
        query_type: Some(structured_aggregation_query::QueryType::StructuredQuery(structured())),
    };
    let query = RunAggregationQueryRequest {
        parent: format!("{DATABASE}/documents"),
        query_type: Some(run_aggregation_query_request::QueryType::StructuredAggregationQuery(
            query,
        )),
        ..RunAggregationQueryRequest::default()
    };
    let answer = stub.run_aggregation_query(query).await?;
    let source = said(answer.metadata(), "x-fusebox-source").to_owned();
    let mut answers = answer.into_inner();
    let result = answers.message().await?.and_then(|it| it.result);
    while answers.message().await?.is_some() {}
    Ok((result.and_then(|it| it.aggregate_fields.get("n").cloned()), source))
}

impl World {
    /// The backend is found to be there again, and what was queued has gone.
    pub(super) async fn recovers(&self) {
        let backend = self.fusebox.backend("firestore").unwrap();
        backend.reset().await.unwrap();
        until("the queue is empty", || backend.view().queue.calls == 0).await;
    }

    pub(super) async fn opens(&self, stub: &mut Stub) {
        while self.breaker() != "OPEN" {
            drop(got(stub, &["never/seen"]).await);
        }
    }
}

pub(super) async fn world(emulator: &Emulator, min_ack: Option<AckLevel>) -> World {
    let door = Settings { min_ack, ..usual() };
    World::with(settings(emulator.port), Wanted { door, ..Wanted::default() }).await
}

#[tokio::test]
async fn a_get_in_an_outage_is_what_was_last_seen() {
    for mut emulator in Emulator::all().await {
        let world = world(&emulator, None).await;
        let mut stub = stub(&world).await;
        commit(&mut stub, vec![set("u/a", "one".into()), set("u/b", "two".into())]).await;
        let live = got(&mut stub, &["u/a", "u/none", "u/b"]).await.unwrap();
        assert_eq!(live.source(), "", "the server's own answer");
        let masked = BatchGetDocumentsRequest {
            mask: Some(DocumentMask { field_paths: vec!["other".into()] }),
            ..get_of(&["u/a"])
        };
        let live_masked = seen(&mut stub, masked.clone()).await.unwrap();
        // The npm emulator knows no masks.
        assert!(emulator.engine == Engine::Npm || live_masked.texts() == [None]);
        emulator.kill();
        for _ in 0..5 {
            let cached = got(&mut stub, &["u/b", "u/a", "u/none"]).await.unwrap();
            assert_eq!(cached.source(), "cache");
            assert!(said(&cached.headers, "x-fusebox-age-ms").parse::<u64>().is_ok());
            assert_eq!(cached.texts(), [Some("two".into()), Some("one".into()), None]);
            let [live_a, _, live_b] = live.documents.as_slice() else { panic!("three") };
            let [b, a, _] = cached.documents.as_slice() else { panic!("three") };
            assert_eq!((a, b), (live_a, live_b), "times and all");
            let alone = got(&mut stub, &["u/a"]).await.unwrap();
            assert_eq!((alone.source(), alone.texts()), ("cache", vec![Some("one".into())]));
        }
        assert_eq!(
            seen(&mut stub, masked).await.unwrap().documents[0].as_ref().unwrap().fields,
            [].into()
        );
        world.opens(&mut stub).await;
        let refused = got(&mut stub, &["u/a", "never/seen"]).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unknown, "{refused}");
        assert!(refused.message().contains("firestore is open; not executed"), "{refused}");
        let moment = Some(ConsistencySelector::ReadTime(Timestamp::default()));
        let past = BatchGetDocumentsRequest { consistency_selector: moment, ..get_of(&["u/a"]) };
        assert_eq!(seen(&mut stub, past).await.err().unwrap().code(), Code::Unknown);
        assert_eq!(world.in_flight(), 0);
        assert!(world.counted("read", "cache") >= 10);
    }
}

#[tokio::test]
async fn commits_in_an_outage_are_kept_seen_by_gets_and_applied_afterwards() {
    for mut emulator in Emulator::all().await {
        let world = world(&emulator, None).await;
        let mut stub = stub(&world).await;
        commit(&mut stub, vec![set("u/a", "old".into()), set("u/gone", "old".into())]).await;
        let before = got(&mut stub, &["u/a", "u/gone"]).await.unwrap();
        emulator.kill();
        let timed = transformed(set("u/t", "timed".into()), vec![("at", SERVER_TIME)]);
        let writes = vec![set("u/a", "new".into()), delete("u/gone"), timed];
        let answer = committed(&mut stub, writes).await.unwrap();
        assert_eq!(said(answer.metadata(), "x-fusebox-source"), "queued");
        assert_eq!(said(answer.metadata(), "x-fusebox-ack"), "durable");
        assert_eq!(said(answer.metadata(), "x-fusebox-estimated"), "");
        let op_id = said(answer.metadata(), "x-fusebox-op-id").to_owned();
        assert_eq!(op_id.len(), 26, "in the trailers, which tonic adds");
        let first = answer.into_inner();
        let [one, two, three] = first.write_results.as_slice() else { panic!("{first:?}") };
        let commit_time = at(first.commit_time.as_ref());
        let known = before.documents[0].as_ref().unwrap().update_time.as_ref();
        assert!(commit_time > at(known), "later than what is known");
        assert_eq!(at(one.update_time.as_ref()), commit_time);
        assert_eq!((two.update_time, one.transform_results.len()), (None, 0));
        let Some(ValueType::TimestampValue(told)) = &three.transform_results[0].value_type else {
            panic!("{three:?}")
        };
        assert_eq!(at(Some(told)), commit_time);
        let queued = got(&mut stub, &["u/a", "u/gone"]).await.unwrap();
        assert_eq!(queued.source(), "queued");
        assert_eq!(queued.texts(), [Some("new".into()), None]);
        let shown = queued.documents[0].as_ref().unwrap().update_time;
        assert_eq!(at(shown.as_ref()), commit_time, "as it was told");
        assert_eq!(said(&queued.headers, "x-fusebox-estimated"), "");
        let timed = got(&mut stub, &["u/t"]).await.unwrap();
        assert_eq!(said(&timed.headers, "x-fusebox-estimated"), "1", "the server sets the time");
        // An update of what must exist, as clients send it, and an increment, whose result nobody knows.
        let updated = existing(true, set("u/a", "newer".into()));
        let answer = committed(&mut stub, vec![updated]).await.unwrap().into_inner();
        assert!(at(answer.commit_time.as_ref()) > commit_time);
        let counted = transformed(set("u/n", "n".into()), vec![("n", increment(2))]);
        let answer = committed(&mut stub, vec![counted]).await.unwrap();
        assert_eq!(said(answer.metadata(), "x-fusebox-estimated"), "1");
        let results = &answer.into_inner().write_results[0].transform_results;
        assert!(matches!(results[0].value_type, Some(ValueType::NullValue(_))));
        assert_eq!(got(&mut stub, &["u/a"]).await.unwrap().texts(), [Some("newer".into())]);
        world.opens(&mut stub).await;
        let created = existing(false, set("u/new", "made".into()));
        let refused = committed(&mut stub, vec![created]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unknown, "whether it is there nobody knows: {refused}");
        emulator.restart().await;
        world.recovers().await;
        let after = got(&mut stub, &["u/a", "u/gone", "u/t", "u/n", "u/new"]).await.unwrap();
        assert_eq!(after.source(), "");
        let texts = [Some("newer"), None, Some("timed"), Some("n"), None];
        assert_eq!(after.texts(), texts.map(|it| it.map(str::to_owned)));
        let n = &after.documents[3].as_ref().unwrap().fields["n"];
        assert_eq!(n.value_type, Some(ValueType::IntegerValue(2)));
        assert_eq!(world.in_flight(), 0);
    }
}

#[tokio::test]
async fn a_queued_change_is_seen_over_what_was_last_seen() {
    for mut emulator in Emulator::all().await {
        let world = world(&emulator, None).await;
        let mut stub = stub(&world).await;
        commit(&mut stub, vec![set("u/a", "one".into()), set("u/unseen", "one".into())]).await;
        let before = got(&mut stub, &["u/a", "u/none"]).await.unwrap();
        let created = before.documents[0].as_ref().unwrap().create_time;
        emulator.kill();
        world.opens(&mut stub).await;
        let merge = |path: &str, field: &str| {
            let mut write = set(path, String::new());
            let Some(Operation::Update(document)) = &mut write.operation else { panic!("a set") };
            let value = Value { value_type: Some(ValueType::StringValue("merged".into())) };
            document.fields = [(field.to_owned(), value)].into();
            write.update_mask = Some(DocumentMask { field_paths: vec![field.into()] });
            write
        };
        let counted = transformed(merge("u/a", "new"), vec![("n", increment(2))]);
        committed(&mut stub, vec![existing(true, counted)]).await.unwrap();
        committed(&mut stub, vec![merge("u/none", "t"), merge("u/unseen", "new")]).await.unwrap();
        for _ in 0..3 {
            let seen = got(&mut stub, &["u/a", "u/none"]).await.unwrap();
            assert_eq!(seen.source(), "queued");
            assert_eq!(seen.texts(), [Some("one".into()), Some("merged".into())]);
            let [Some(known), Some(made)] = seen.documents.as_slice() else { panic!("two") };
            assert_eq!((known.create_time, made.create_time), (created, made.update_time));
            assert_ne!(known.update_time, created);
            assert_eq!(said(&seen.headers, "x-fusebox-estimated"), "", "no field is a guess");
            let fields = &known.fields;
            assert_eq!(fields.len(), 3, "{fields:?}");
            assert_eq!(fields["n"].value_type, Some(ValueType::IntegerValue(2)));
            let age = said(&seen.headers, "x-fusebox-age-ms").parse::<u64>().unwrap();
            assert!(age > 0, "it is as old as what no write sets");
        }
        let refused = got(&mut stub, &["u/unseen"]).await.err().unwrap();
        assert!(refused.message().contains("earlier writes waiting"), "{refused}");
        // What is written next counts on the same.
        let again = transformed(merge("u/a", "t"), vec![("n", increment(3))]);
        committed(&mut stub, vec![again]).await.unwrap();
        let seen = got(&mut stub, &["u/a"]).await.unwrap();
        assert_eq!(seen.texts(), [Some("merged".into())]);
        let n = &seen.documents[0].as_ref().unwrap().fields["n"];
        assert_eq!(n.value_type, Some(ValueType::IntegerValue(5)));
    }
}

#[tokio::test]
async fn a_document_is_remembered_though_its_client_leaves_before_the_answers_end() {
    let (server, port) = Played::start().await;
    let world = World::before(port).await;
    server.answer_ping().await;
    let client = world.connect().await;
    let asked = prost::Message::encode_to_vec(&get_of(&["u/a"]));
    let (response, mut stream) = client.begin(PING, &[]).await;
    stream.send_data(framed(&asked), true).unwrap();
    let mut connection = server.accept().await;
    let (_, mut respond) = next(&mut connection).await;
    let mut body = respond.send_response(head(), false).unwrap();
    let found = BatchGetDocumentsResponse {
        result: Some(Got::Missing(name("u/a"))),
        read_time: Some(Timestamp::default()),
        ..BatchGetDocumentsResponse::default()
    };
    body.send_data(framed(&prost::Message::encode_to_vec(&found)), false).unwrap();
    let driving = tokio::spawn(async move { while connection.accept().await.is_some() {} });
    let mut got = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    timeout(PATIENCE, got.data()).await.unwrap().unwrap().unwrap();
    drop((got, stream));
    until("it is cached", || world.fusebox.backend("firestore").unwrap().caches_something()).await;
    driving.abort();
}

#[tokio::test]
async fn what_a_door_promises_decides_what_is_queued() {
    let (server, port) = Played::start().await;
    drop(server);
    let emulator_is_gone = settings(port);
    for (min_ack, set_is_kept, create_is_kept) in [
        (None, true, false),
        (Some(AckLevel::Applied), false, false),
        (Some(AckLevel::Durable), true, true),
    ] {
        let door = Settings { min_ack, ..usual() };
        let wanted = Wanted { door, ..Wanted::default() };
        let world = World::with(emulator_is_gone.clone(), wanted).await;
        let mut stub = stub(&world).await;
        let kept = committed(&mut stub, vec![set("u/a", "set".into())]).await.is_ok();
        assert_eq!(kept, set_is_kept, "{min_ack:?}");
        let created = existing(false, set("u/b", "made".into()));
        let kept = committed(&mut stub, vec![created]).await.is_ok();
        assert_eq!(kept, create_is_kept, "{min_ack:?}");
        let condition_type = Some(ConditionType::UpdateTime(Timestamp::default()));
        let asked = Some(Precondition { condition_type });
        let asked = Write { current_document: asked, ..set("u/c", "if".into()) };
        assert!(committed(&mut stub, vec![asked]).await.is_err());
        let elsewhere = "projects/other/databases/(default)";
        let other = Operation::Delete(format!("{elsewhere}/documents/u/a"));
        let commit = CommitRequest {
            database: elsewhere.into(),
            writes: vec![Write { operation: Some(other), ..Write::default() }],
            transaction: Bytes::new(),
        };
        assert!(stub.commit(commit).await.is_err(), "another database's are not kept");
    }
}

#[tokio::test]
async fn a_message_that_is_not_understood_whole_is_not_kept() {
    let (server, port) = Played::start().await;
    drop(server);
    let world = World::before(port).await;
    let client = world.connect().await;
    let commit = CommitRequest {
        database: DATABASE.into(),
        writes: vec![set("u/a", "set".into())],
        transaction: Bytes::new(),
    };
    let known = prost::Message::encode_to_vec(&commit);
    assert_eq!(client.call(COMMIT, &[], &known).await.status(), "0");
    // A field of a later version.
    let unknown = [&known[..], b"\xa2\x06\x01x"].concat();
    let got = client.call(COMMIT, &[], &unknown).await;
    assert_eq!(got.status(), "2", "{got:?}");
}

#[tokio::test]
async fn queries_in_an_outage_are_answered_as_they_were() {
    let Some(mut emulator) = Emulator::google("aggregations over the door").await else { return };
    let world = world(&emulator, None).await;
    let mut stub = stub(&world).await;
    commit(&mut stub, (0..20).map(|n| set(&format!("u/{n:02}"), format!("v{n}"))).collect()).await;
    assert_eq!(queried(&mut stub, 0).await.unwrap(), (20, String::new()));
    assert_eq!(queried(&mut stub, 7).await.unwrap(), (7, String::new()));
    let (count, source) = counted(&mut stub).await.unwrap();
    assert_eq!(source, "");
    emulator.kill();
    for _ in 0..4 {
        assert_eq!(queried(&mut stub, 0).await.unwrap(), (20, "cache".to_owned()));
        assert_eq!(queried(&mut stub, 7).await.unwrap(), (7, "cache".to_owned()));
        assert_eq!(counted(&mut stub).await.unwrap(), (count.clone(), "cache".to_owned()));
    }
    world.opens(&mut stub).await;
    assert_eq!(queried(&mut stub, 8).await.unwrap_err().code(), Code::Unknown);
}

#[tokio::test]
async fn a_transaction_that_an_outage_cuts_is_to_be_begun_anew() {
    let mut emulator = Emulator::start(Engine::Npm).await;
    let world = world(&emulator, None).await;
    let mut stub = stub(&world).await;
    let begin = BeginTransactionRequest { database: DATABASE.into(), options: None };
    let transaction = stub.begin_transaction(begin.clone()).await.unwrap().into_inner().transaction;
    commit(&mut stub, vec![set("u/a", "one".into())]).await;
    got(&mut stub, &["u/a"]).await.unwrap();
    emulator.kill();
    for is_open in [false, true] {
        if is_open {
            world.opens(&mut stub).await;
        }
        let inside = Some(ConsistencySelector::Transaction(transaction.clone()));
        let get = BatchGetDocumentsRequest { consistency_selector: inside, ..get_of(&["u/a"]) };
        let refused = seen(&mut stub, get).await.err().unwrap();
        assert_eq!(refused.code(), Code::Aborted, "{refused}");
        let writes = vec![set("u/a", "two".into())];
        let transaction = transaction.clone();
        let inside = CommitRequest { database: DATABASE.into(), writes, transaction };
        let refused = stub.commit(inside.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Aborted, "{refused}");
        let transaction = inside.transaction;
        stub.rollback(RollbackRequest { database: DATABASE.into(), transaction }).await.unwrap();
    }
    let refused = stub.begin_transaction(begin).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unknown, "{refused}");
}

#[tokio::test]
async fn what_is_queued_is_shown_to_nobody_whom_the_server_does_not_know() {
    for mut emulator in Emulator::all().await {
        let world = world(&emulator, None).await;
        let mut stub = stub(&world).await;
        commit(&mut stub, vec![set("u/a", "old".into())]).await;
        emulator.kill();
        world.opens(&mut stub).await;
        commit(&mut stub, vec![set("u/a", "secret".into())]).await;
        let own = got(&mut stub, &["u/a"]).await.unwrap();
        assert_eq!((own.source(), own.texts()), ("queued", vec![Some("secret".into())]));
        let client = world.connect().await;
        let get = prost::Message::encode_to_vec(&get_of(&["u/a"]));
        let stranger = [("authorization", "Bearer anything")];
        let told = client.call(PING, &stranger, &get).await;
        assert_ne!(told.status(), "0", "{told:?}");
        assert!(!told.body.windows(6).any(|bytes| bytes == b"secret"), "{told:?}");
    }
}
