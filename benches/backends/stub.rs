//! A blocking client of Firestore's own protocol.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsRequest, CommitRequest, Document, RunQueryRequest, StructuredQuery, Value,
    Write as DocumentWrite, batch_get_documents_response::Result as Got,
    firestore_client::FirestoreClient, run_query_request::QueryType,
    structured_query::CollectionSelector, value::ValueType, write::Operation,
};
use tokio::runtime::Runtime;
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use super::turns::seconds;

pub(crate) const DATABASE: &str = "projects/fusebox/databases/(default)";

pub(crate) fn document(name: String, value: i64) -> Document {
    let value = Value { value_type: Some(ValueType::IntegerValue(value)) };
    Document { name, fields: [("v".to_owned(), value)].into(), ..Document::default() }
}

pub(crate) fn name(collection: &str, number: usize) -> String {
    format!("{DATABASE}/documents/{collection}/d{number}")
}

/// A request by the emulator's owner, as the daemon's are, with the headers that every client of Google's
/// sends.
pub(crate) fn owned<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let headers = request.metadata_mut();
    headers.insert("authorization", MetadataValue::from_static("Bearer owner"));
    headers.insert("google-cloud-resource-prefix", MetadataValue::from_static(DATABASE));
    let params = "database=projects%2Ffusebox%2Fdatabases%2F%28default%29";
    headers.insert("x-goog-request-params", MetadataValue::from_static(params));
    request
}

/// A client of Firestore's own protocol, at some port of the server's.
pub(crate) struct Stub(FirestoreClient<Channel>, Runtime);

impl Stub {
    pub(crate) fn at(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint =
            Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
        let stub = runtime.block_on(endpoint.connect()).expect("a connection");
        Self(FirestoreClient::new(stub), runtime)
    }

    /// Sets these documents of a collection in one commit.
    pub(crate) fn commit(&mut self, collection: &str, numbers: impl Iterator<Item = usize>) {
        let writes = numbers.map(|number| DocumentWrite {
            operation: Some(Operation::Update(document(name(collection, number), 1))),
            ..DocumentWrite::default()
        });
        let request = CommitRequest {
            database: DATABASE.into(),
            writes: writes.collect(),
            ..Default::default()
        };
        self.1.block_on(self.0.commit(owned(request))).expect("a commit");
    }

    /// Sets so many documents in commits of so many. Returns how long a document took.
    pub(crate) fn commits(&mut self, collection: &str, count: usize, size: usize) -> f64 {
        let numbers = 0..count;
        let took = seconds(|| {
            for first in numbers.step_by(size) {
                self.commit(collection, first..count.min(first + size));
            }
        });
        took / count as f64
    }

    /// Counts the documents that a query of a whole collection finds.
    pub(crate) fn query(&mut self, collection: &str) -> usize {
        let from = CollectionSelector { collection_id: collection.into(), ..Default::default() };
        let query = StructuredQuery { from: vec![from], ..Default::default() };
        let request = RunQueryRequest {
            parent: format!("{DATABASE}/documents"),
            query_type: Some(QueryType::StructuredQuery(query)),
            ..Default::default()
        };
        let Self(stub, runtime) = self;
        runtime.block_on(async {
            let found = stub.run_query(owned(request)).await.expect("a query");
            let (mut found, mut count) = (found.into_inner(), 0);
            while let Some(answer) = found.message().await.expect("an answer") {
                count += usize::from(answer.document.is_some());
            }
            count
        })
    }

    /// Gets a document; whether it is there.
    pub(crate) fn get(&mut self, name: String) -> bool {
        let request = BatchGetDocumentsRequest {
            database: DATABASE.into(),
            documents: vec![name],
            ..Default::default()
        };
        let Self(stub, runtime) = self;
        runtime.block_on(async {
            let got = stub.batch_get_documents(owned(request)).await.expect("a get");
            let (mut got, mut is_there) = (got.into_inner(), false);
            while let Some(answer) = got.message().await.expect("an answer") {
                is_there |= matches!(answer.result, Some(Got::Found(_)));
            }
            is_there
        })
    }
}
