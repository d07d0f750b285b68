//! Real emulators, a relay in front of them whose connections can be cut, and Listens over both.
//!
//! Both keep everything in memory. The npm one gives no resume tokens and sends its whole result again
//! after every change.

use bytes::Bytes;
use fusebox_actors::connector::Refused;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    CommitRequest, Document, StructuredQuery, Write,
    firestore_client::FirestoreClient,
    structured_query::CollectionSelector,
    target::{DocumentsTarget, QueryTarget, TargetType, query_target::QueryType},
    write::Operation,
};
use parking_lot::Mutex;
use serde_json::Value as Json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use crate::kinds::firestore::{
    live_queries::{
        testing::{self, PATIENCE, ROOT},
        upstream::{Responses, Resume, Upstream, requests, target},
    },
    testing::Emulator,
};

const DATABASE: &str = "projects/p/databases/(default)";
impl Emulator {
    /// Commits writes past every relay: a number for a document, `None` for its deletion.
    pub(super) async fn write(&self, writes: &[(&str, Option<i64>)]) {
        let mut client = connect(self.port).await.unwrap();
        let writes = writes.iter().map(|(path, n)| {
            let name = format!("{ROOT}{path}");
            let operation = match n {
                Some(n) => Operation::Update(Document {
                    name,
                    fields: testing::fields(*n),
                    create_time: None,
                    update_time: None,
                }),
                None => Operation::Delete(name),
            };
            Write { operation: Some(operation), ..Write::default() }
        });
        let commit = CommitRequest {
            database: DATABASE.to_owned(),
            writes: writes.collect(),
            ..CommitRequest::default()
        };
        client.commit(as_owner(Request::new(commit))).await.unwrap();
    }
}

async fn connect(port: u16) -> Result<FirestoreClient<Channel>, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    Ok(FirestoreClient::new(endpoint.connect().await?))
}

/// The emulators' rules let everything pass for this token. Without the other header Google's answers a
/// Listen with UNKNOWN and no word.
fn as_owner<T>(mut request: Request<T>) -> Request<T> {
    let headers = request.metadata_mut();
    headers.insert("authorization", "Bearer owner".parse().unwrap());
    headers.insert("google-cloud-resource-prefix", DATABASE.parse().unwrap());
    request
}

/// A relay to an emulator.
pub(super) struct Relay {
    port: u16,
    cut: watch::Sender<bool>,
}

impl Relay {
    pub(super) async fn to(emulator: &Emulator) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, server) = (watch::Sender::new(false), emulator.port);
        let is_cut = cut.subscribe();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut is_cut = is_cut.clone();
                tokio::spawn(async move {
                    let passed = async {
                        let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
                        copy_bidirectional(&mut client, &mut server).await
                    };
                    tokio::select! {
                        biased;
                        _ = is_cut.wait_for(|cut| *cut) => {}
                        passed = passed => drop(passed),
                    }
                });
            }
        });
        Self { port, cut }
    }

    /// Ends all connections, and every new one at once.
    pub(super) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Lets new connections pass.
    pub(super) fn mend(&self) {
        self.cut.send_replace(false);
    }
}

/// Listens through a relay. A query is a collection's id, or a document's path.
pub(super) struct Direct {
    relay: u16,
    /// What the Listens resumed from.
    pub(super) resumed: Mutex<Vec<Resume>>,
}

impl Direct {
    pub(super) fn through(relay: &Relay) -> Self {
        Self { relay: relay.port, resumed: Mutex::default() }
    }
}

impl Upstream for Direct {
    type Query = TargetType;

    fn read(&self, query: &Bytes) -> Result<TargetType, Refused> {
        let query = String::from_utf8(query.to_vec()).unwrap();
        if query.contains('/') {
            let documents = vec![format!("{ROOT}{query}")];
            return Ok(TargetType::Documents(DocumentsTarget { documents }));
        }
        let from = vec![CollectionSelector { collection_id: query, all_descendants: false }];
        let query = StructuredQuery { from, ..StructuredQuery::default() };
        Ok(TargetType::Query(QueryTarget {
            parent: ROOT.trim_end_matches('/').to_owned(),
            query_type: Some(QueryType::StructuredQuery(query)),
        }))
    }

    fn forwarded(_: &TargetType) -> bool {
        false
    }

    async fn listen(&self, query: &TargetType, resume: Resume) -> Result<Responses, Status> {
        let connected = connect(self.relay).await;
        let mut client = connected.map_err(|error| Status::unavailable(error.to_string()))?;
        let asked = requests(DATABASE.to_owned(), target(query.clone(), resume.clone()));
        let answered = client.listen(as_owner(Request::new(asked))).await?;
        self.resumed.lock().push(resume);
        Ok(Box::pin(answered.into_inner()))
    }

    fn to_json(&self, document: Document) -> Json {
        testing::to_json(document)
    }

    fn path(&self, name: &str) -> String {
        testing::path(name)
    }
}

/// Waits at most [`PATIENCE`].
pub(super) async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}
