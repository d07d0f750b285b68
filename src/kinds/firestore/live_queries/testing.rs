//! A scripted server of Listens, and how what followers receive reads in a test.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{Follow, Refused, StreamEvent};
use futures_util::stream;
use googleapis_tonic_google_firestore_v1::google::{
    firestore::v1::{
        Document, DocumentChange, DocumentDelete, DocumentRemove, ExistenceFilter, ListenResponse,
        TargetChange, Value, listen_response::ResponseType, target_change::TargetChangeType,
        value::ValueType,
    },
    rpc,
};
use parking_lot::Mutex;
use prost_types::Timestamp;
use serde_json::{Value as Json, json};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Status};

use super::upstream::{Responses, Resume, TARGET, Upstream};

/// How long a test waits for what must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// What documents' full names begin with.
pub(super) const ROOT: &str = "projects/p/databases/(default)/documents/";

type Answers = mpsc::UnboundedSender<Result<ListenResponse, Status>>;

/// A server whose answers the test gives.
pub(super) struct Scripted {
    connections: mpsc::UnboundedSender<(Resume, Answers)>,
    /// The connections that were made.
    pub(super) made: Mutex<mpsc::UnboundedReceiver<(Resume, Answers)>>,
}

impl Scripted {
    pub(super) fn new() -> Self {
        let (connections, made) = mpsc::unbounded_channel();
        Self { connections, made: Mutex::new(made) }
    }

    /// The next connection, if one is made: what it resumes from, and the receiver of its answers.
    pub(super) async fn connection(&self) -> (Resume, Answers) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let made = self.made.lock().try_recv();
            if let Ok(made) = made {
                return made;
            }
            assert!(tokio::time::Instant::now() < deadline, "no connection within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whether another connection was made.
    pub(super) fn has_connection(&self) -> bool {
        self.made.lock().try_recv().is_ok()
    }
}

impl Upstream for Scripted {
    type Query = String;

    fn read(&self, query: &Bytes) -> Result<String, Refused> {
        String::from_utf8(query.to_vec()).map_err(|_| Refused {
            code: "malformed_query",
            message: "not text".into(),
            malformed: true,
        })
    }

    fn forwarded(query: &String) -> bool {
        query.starts_with("forwarded")
    }

    async fn listen(&self, _: &String, resume: Resume) -> Result<Responses, Status> {
        let (answers, given) = mpsc::unbounded_channel();
        self.connections.send((resume, answers)).unwrap();
        let answers =
            stream::unfold(given, |mut given| async { Some((given.recv().await?, given)) });
        Ok(Box::pin(answers))
    }

    fn to_json(&self, document: Document) -> Json {
        to_json(document)
    }

    fn path(&self, name: &str) -> String {
        path(name)
    }
}

/// A document of one integer, as `{"path","n"}`.
pub(super) fn to_json(document: Document) -> Json {
    let n = match document.fields.get("n").and_then(|value| value.value_type.as_ref()) {
        Some(ValueType::IntegerValue(n)) => *n,
        other => panic!("{other:?}"),
    };
    json!({ "path": path(&document.name), "n": n })
}

pub(super) fn path(name: &str) -> String {
    name.strip_prefix(ROOT).unwrap().to_owned()
}

/// The fields of such a document.
pub(super) fn fields(n: i64) -> BTreeMap<String, Value> {
    let value = Value { value_type: Some(ValueType::IntegerValue(n)) };
    BTreeMap::from([("n".to_owned(), value)])
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

fn response(response: ResponseType) -> ListenResponse {
    ListenResponse { response_type: Some(response) }
}

fn document(path: &str, time: i64, n: i64) -> Document {
    let name = format!("{ROOT}{path}");
    Document { name, fields: fields(n), create_time: None, update_time: Some(at(time)) }
}

/// A document matches; it was written at `time`.
pub(super) fn put(path: &str, time: i64, n: i64) -> ListenResponse {
    response(ResponseType::DocumentChange(DocumentChange {
        document: Some(document(path, time, n)),
        target_ids: vec![TARGET],
        removed_target_ids: vec![],
    }))
}

/// A document was changed so that it does not match any more.
pub(super) fn changed_away(path: &str, time: i64) -> ListenResponse {
    response(ResponseType::DocumentChange(DocumentChange {
        document: Some(document(path, time, 0)),
        target_ids: vec![],
        removed_target_ids: vec![TARGET],
    }))
}

pub(super) fn deleted(path: &str) -> ListenResponse {
    response(ResponseType::DocumentDelete(DocumentDelete {
        document: format!("{ROOT}{path}"),
        removed_target_ids: vec![TARGET],
        read_time: None,
    }))
}

pub(super) fn removed(path: &str) -> ListenResponse {
    response(ResponseType::DocumentRemove(DocumentRemove {
        document: format!("{ROOT}{path}"),
        removed_target_ids: vec![TARGET],
        read_time: None,
    }))
}

pub(super) fn count(count: i32) -> ListenResponse {
    let filter = ExistenceFilter { target_id: TARGET, count, unchanged_names: None };
    response(ResponseType::Filter(filter))
}

fn target(kind: TargetChangeType, change: TargetChange) -> ListenResponse {
    let target_change_type = kind as i32;
    response(ResponseType::TargetChange(TargetChange { target_change_type, ..change }))
}

pub(super) fn current() -> ListenResponse {
    let change = TargetChange { target_ids: vec![TARGET], ..TargetChange::default() };
    target(TargetChangeType::Current, change)
}

/// Everything is consistent as of `time`; `token` may be empty.
pub(super) fn consistent(time: i64, token: &'static str) -> ListenResponse {
    let resume_token = Bytes::from_static(token.as_bytes());
    let change =
        TargetChange { read_time: Some(at(time)), resume_token, ..TargetChange::default() };
    target(TargetChangeType::NoChange, change)
}

/// A token before its state is consistent.
pub(super) fn token(token: &'static str) -> ListenResponse {
    let resume_token = Bytes::from_static(token.as_bytes());
    target(TargetChangeType::NoChange, TargetChange { resume_token, ..TargetChange::default() })
}

pub(super) fn reset() -> ListenResponse {
    target(TargetChangeType::Reset, TargetChange::default())
}

pub(super) fn ended(code: Code, message: &str) -> ListenResponse {
    let cause = rpc::Status { code: code as i32, message: message.into(), details: vec![] };
    target(TargetChangeType::Remove, TargetChange { cause: Some(cause), ..TargetChange::default() })
}

/// An event in one line: `snapshot a=1 b=2`, `change +a=1 ~b=2 -c`, `stale`.
pub(super) fn line(event: &StreamEvent) -> String {
    let data: Json = serde_json::from_slice(&event.data).unwrap();
    let mut words = vec![event.event.to_owned()];
    if event.event == "snapshot" && data["stale"] == json!(true) {
        words[0].push_str("(stale)");
        assert!(data["since"].is_string() && data["reason"].is_string(), "{data}");
    }
    for (list, sign) in [("documents", ""), ("added", "+"), ("modified", "~")] {
        for document in data[list].as_array().into_iter().flatten() {
            let path = document["path"].as_str().unwrap();
            words.push(format!("{sign}{path}={}", document["n"]));
        }
    }
    for path in data["removed"].as_array().into_iter().flatten() {
        words.push(format!("-{}", path.as_str().unwrap()));
    }
    if data["ended"] == json!(true) {
        words.push(data["code"].as_str().unwrap().to_owned());
    }
    words.join(" ")
}

/// The next thing that a follower receives; `end` for its end.
pub(super) async fn told(follow: &mut Box<dyn Follow>) -> String {
    let event = timeout(PATIENCE, follow.next()).await.expect("an event within the patience");
    event.map_or_else(|| "end".to_owned(), |event| line(&event))
}
