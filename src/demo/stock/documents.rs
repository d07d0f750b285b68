//! A stock client of the Firestore door: Google's own generated one, over gRPC.

use std::path::PathBuf;

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsRequest, CommitRequest, Document, DocumentTransform, Value as Field, Write,
    batch_get_documents_response::Result as Found,
    document_transform::{FieldTransform, field_transform::TransformType},
    firestore_client::FirestoreClient,
    value::ValueType,
    write::Operation,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::UnixStream, sync::Mutex};
use tonic::{
    Status,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::said::{Said, failed};
use crate::demo::{
    call::{Call, Effect},
    ledger::Ended,
    stage::PROJECT,
};

type Stub = FirestoreClient<Channel>;

/// A program's channel to the door, opened when it is first needed and after it broke.
pub(super) struct DocumentsClient {
    socket: PathBuf,
    stub: Mutex<Option<Stub>>,
}

impl DocumentsClient {
    /// A client of the door at `socket`.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, stub: Mutex::default() }
    }

    /// Makes `call`.
    pub(super) async fn make(&self, call: &Call) -> Ended {
        let mut kept = self.stub.lock().await;
        let mut stub = match kept.take() {
            Some(stub) => stub,
            None => match self.connect().await {
                Some(stub) => stub,
                None => return Ended::NoDaemon,
            },
        };
        let asked = match &call.effect {
            Effect::Read => get(&mut stub, call).await,
            _ => commit(&mut stub, call).await,
        };
        let is_answer = match &asked {
            Ok(_) => true,
            // A status of the door's own: the channel is as before.
            Err(status) => status.metadata().contains_key("x-fusebox-source"),
        };
        *kept = is_answer.then_some(stub);
        asked.unwrap_or_else(|status| failed(status.message().to_owned()))
    }

    async fn connect(&self) -> Option<Stub> {
        let socket = self.socket.clone();
        let dial = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(dial).await;
        Some(FirestoreClient::new(channel.ok()?))
    }
}

async fn get(stub: &mut Stub, call: &Call) -> Result<Ended, Status> {
    let request = BatchGetDocumentsRequest {
        database: database(),
        documents: vec![name(call.document())],
        ..BatchGetDocumentsRequest::default()
    };
    let response = stub.batch_get_documents(request).await?;
    let (metadata, mut found, _) = response.into_parts();
    let mut value = Value::Null;
    while let Some(answer) = found.message().await? {
        if let Some(Found::Found(document)) = answer.result {
            value = json!({ "data": data(&document) });
        }
    }
    Ok(said(&metadata).answer(call, value))
}

async fn commit(stub: &mut Stub, call: &Call) -> Result<Ended, Status> {
    let name = name(call.document());
    let field = |number: u64| Field {
        value_type: Some(ValueType::IntegerValue(number.try_into().unwrap_or(i64::MAX))),
    };
    let operation = match &call.effect {
        Effect::Set(_, value) => Operation::Update(Document {
            name,
            fields: [("value".to_owned(), field(*value))].into(),
            ..Document::default()
        }),
        _ => Operation::Transform(DocumentTransform {
            document: name,
            field_transforms: vec![FieldTransform {
                field_path: "value".to_owned(),
                transform_type: Some(TransformType::Increment(field(1))),
            }],
        }),
    };
    let writes = vec![Write { operation: Some(operation), ..Write::default() }];
    let request = CommitRequest { database: database(), writes, ..CommitRequest::default() };
    let response = stub.commit(request).await?;
    Ok(said(response.metadata()).answer(call, Value::Null))
}

fn said(metadata: &MetadataMap) -> Said<'_> {
    Said::of(|name| metadata.get(name)?.to_str().ok())
}

fn database() -> String {
    format!("projects/{PROJECT}/databases/(default)")
}

fn name(path: &str) -> String {
    format!("{}/documents/{path}", database())
}

/// Its numbers as JSON: the demo's documents hold nothing else.
fn data(document: &Document) -> Value {
    let number = |field: &Field| match field.value_type {
        Some(ValueType::IntegerValue(number)) => json!(number),
        _ => Value::Null,
    };
    document.fields.iter().map(|(name, field)| (name.clone(), number(field))).collect()
}
