//! Writes and answers that are larger, deeper or slower than usual.

use fusebox_actors::{
    Call, CallOptions,
    connector::{Attempt, Attempted, Connector as _},
    trace::CallTrace,
};
use fusebox_state::{ErrorClass, Verdict};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ArrayValue, BatchGetDocumentsResponse, Document, RunQueryRequest, RunQueryResponse, Value,
    batch_get_documents_response::Result as Found,
    document_transform::field_transform::TransformType, value::ValueType,
};
use h2::Reason;
use prost::Message;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::{
    clients::{DATABASE, name, set, stub},
    outage::nobody,
    understood::{Stub, committed, got, increment, said, transformed},
    *,
};
use crate::kinds::firestore::{
    protocol::json::body_from_json,
    testing::{attempt, planned},
};

/// A breaker that is open before a server that is not there.
async fn in_an_outage() -> (World, Stub) {
    let world = World::before(nobody()).await;
    let mut stub = stub(&world).await;
    world.opens(&mut stub).await;
    (world, stub)
}

fn union(numbers: std::ops::Range<i64>) -> TransformType {
    let integer = |number| Value { value_type: Some(ValueType::IntegerValue(number)) };
    TransformType::AppendMissingElements(ArrayValue { values: numbers.map(integer).collect() })
}

#[tokio::test]
async fn a_read_behind_a_queued_write_without_measure_is_answered_or_refused_at_once() {
    let deep = |names: usize| vec!["a"; names].join(".");
    for (transform, is_taken) in [
        ((deep(150_000), increment(1)), true),
        ((deep(1_000_000), increment(1)), false),
        (("l".to_owned(), union(0..30_000)), true),
        (("l".to_owned(), union(0..200_000)), false),
    ] {
        let (world, mut stub) = in_an_outage().await;
        let (field, transform) = transform;
        let began = Instant::now();
        let write = transformed(set("u/a", "set".into()), vec![(field.as_str(), transform)]);
        match committed(&mut stub, vec![write]).await {
            Ok(answer) => {
                assert!(is_taken, "{} bytes", field.len());
                assert_eq!(said(answer.metadata(), "x-fusebox-source"), "queued");
            }
            Err(refused) => {
                assert!(!is_taken, "{refused}");
                assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            }
        }
        // An answer or an error.
        drop(got(&mut stub, &["u/a"]).await);
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert_eq!(world.in_flight(), 0);
    }
}

/// Answers every request with these messages, and waits before each.
fn streams(played: Played, messages: Vec<Bytes>, before_each: Duration, is_over: bool) {
    tokio::spawn(async move {
        loop {
            let mut served = played.accept().await;
            let messages = messages.clone();
            tokio::spawn(async move {
                while let Some(Ok((_, respond))) = served.accept().await {
                    tokio::spawn(send(respond, messages.clone(), before_each, is_over));
                }
            });
        }
    });
}

async fn send(
    mut respond: SendResponse<Bytes>,
    messages: Vec<Bytes>,
    before_each: Duration,
    is_over: bool,
) {
    let mut body = respond.send_response(head(), false).unwrap();
    for message in messages {
        sleep(before_each).await;
        // Whoever has had enough resets the stream.
        if body.send_data(message, false).is_err() {
            return;
        }
    }
    if is_over {
        body.send_trailers(status("0")).unwrap_or_default();
    } else {
        std::future::poll_fn(|cx| body.poll_reset(cx)).await.ok();
    }
}

fn document(path: &str, bytes: usize) -> Document {
    let value_type = Some(ValueType::BytesValue(vec![7; bytes].into()));
    let fields = [("b".to_owned(), Value { value_type })].into();
    Document { name: name(path), fields, ..Document::default() }
}

/// A message of an answer to a get.
fn found(path: &str, bytes: usize) -> Bytes {
    let result = Some(Found::Found(document(path, bytes)));
    framed(&BatchGetDocumentsResponse { result, ..Default::default() }.encode_to_vec())
}

/// Gets two documents from the server on that port, whose `timeout` is `timeout`, for a caller that waits for `left`.
async fn gets(port: u16, timeout: Duration, left: Duration) -> (Attempted, Duration) {
    let fs = FirestoreConnector::new(FirestoreSettings { timeout, ..settings(port) });
    let plan = planned(&fs, &json!({ "op": "batch_get", "paths": ["u/a", "u/b", "u/a"] }));
    let began = Instant::now();
    let ended = fs.attempt(Attempt { timeout, left, ..attempt(&plan, None) }).await;
    (ended, began.elapsed())
}

const SHORT: Duration = Duration::from_millis(600);

#[tokio::test]
async fn an_answer_that_goes_on_coming_may_take_longer_than_the_timeout() {
    let (server, port) = Played::start().await;
    let messages = ["u/a", "u/b", "u/c", "u/d", "u/e"].map(|path| found(path, 1)).to_vec();
    streams(server, messages, SHORT / 3, true);
    let (ended, took) = gets(port, SHORT, PATIENCE).await;
    assert_eq!(ended.verdict, Verdict::Success);
    ended.result.unwrap();
    assert!(took > SHORT, "{took:?}");
}

#[tokio::test]
async fn an_answer_that_stops_coming_is_a_failure_and_one_whose_caller_has_had_enough_is_not() {
    for (messages, left, verdict) in
        [(1, PATIENCE, Verdict::Failure), (100, SHORT * 2, Verdict::Neutral)]
    {
        let (server, port) = Played::start().await;
        streams(server, vec![found("u/a", 1); messages], SHORT / 6, false);
        let (ended, took) = gets(port, SHORT, left).await;
        let error = ended.result.unwrap_err();
        assert_eq!((ended.verdict, error.class), (verdict, ErrorClass::Unknown), "{error}");
        assert!(took < SHORT * 5, "{took:?}");
    }
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_any_more_is_a_failure_only_if_its_answer_stops_coming() {
    let message = RunQueryResponse { document: Some(document("u/a", 1)), ..Default::default() };
    let message = framed(&message.encode_to_vec());
    for (count, failures) in [(1, 1), (100, 0)] {
        let (server, port) = Played::start().await;
        let messages = vec![message.clone(); count];
        server.answer_all(move |_, respond| send(respond, messages.clone(), SHORT / 6, false));
        let world =
            World::with(settings(port), Wanted { timeout: SHORT, ..Wanted::default() }).await;
        let backend = world.fusebox.backend("firestore").unwrap();
        let query = json!({ "op": "query", "collection": "u" });
        let body = body_from_json(query.as_object().unwrap().clone(), "").unwrap();
        let call = Call {
            body,
            options: CallOptions { deadline: Some(SHORT / 2), ..CallOptions::default() },
            uid: NOBODY,
            admin: false,
            trace: CallTrace::new("test"),
            streams: false,
            upload: None,
        };
        let left = backend.call(call).await;
        assert!(left.is_err(), "{left:?}");
        assert_eq!(world.in_flight(), 1, "it is on the wire, whoever waits for it");
        until("it has ended", || world.in_flight() == 0).await;
        let breaker = backend.view().breaker;
        assert_eq!((breaker.window_calls, breaker.window_failures), (1, failures), "{count}");
    }
}

/// A mebibyte for each of more documents than are collected.
fn too_many() -> Vec<Bytes> {
    vec![found("u/a", 1 << 20); 40]
}

#[tokio::test]
async fn no_more_of_an_answer_is_collected_than_may_be() {
    let (server, port) = Played::start().await;
    streams(server, too_many(), Duration::ZERO, true);
    let (ended, _) = gets(port, PATIENCE, PATIENCE).await;
    assert_eq!(ended.verdict, Verdict::Success, "it is a success of the server's");
    let error = ended.result.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Rejected, "result_too_large"));
    // A document that is asked for twice counts twice.
    let (server, port) = Played::start().await;
    streams(server, vec![found("u/a", 20 << 20)], Duration::ZERO, true);
    let (ended, _) = gets(port, PATIENCE, PATIENCE).await;
    assert_eq!(ended.result.unwrap_err().code.as_str(), "result_too_large");
}

#[tokio::test]
async fn a_repetition_that_finds_too_much_ends_as_the_first_attempt_did() {
    let (server, port) = Played::start().await;
    let asked = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&asked);
    let message =
        RunQueryResponse { document: Some(document("u/a", 1 << 20)), ..Default::default() };
    let message = framed(&message.encode_to_vec());
    server.answer_all(move |request, mut respond| {
        let (counted, message) = (Arc::clone(&counted), message.clone());
        async move {
            assert_eq!(request.uri().path(), QUERY);
            if counted.fetch_add(1, Relaxed) == 0 {
                return respond.send_reset(Reason::INTERNAL_ERROR);
            }
            send(respond, vec![message; 40], Duration::ZERO, true).await;
        }
    });
    let world = World::before(port).await;
    let mut stub = stub(&world).await;
    let query = RunQueryRequest { parent: format!("{DATABASE}/documents"), ..Default::default() };
    let ended = match stub.run_query(query).await {
        Ok(answer) => answer.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    assert_eq!(asked.load(Relaxed), 2, "it was repeated");
}
