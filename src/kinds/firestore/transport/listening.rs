//! Listens on the connector's own connections, for its [live queries](crate::kinds::firestore::live_queries).

use std::sync::Arc;

use bytes::Bytes;
use fusebox_actors::connector::Refused;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Document,
    target::{DocumentsTarget, QueryTarget, TargetType, query_target::QueryType},
};
use serde_json::Value as Json;
use tonic::Status;

use super::client::Client;
use crate::kinds::firestore::{
    live_queries::{Responses, Resume, Upstream, requests, target},
    protocol::{
        json::found_to_json,
        outcome::{Behalf, Failed},
        wire::{self, Call, Found, Op},
    },
};

/// See the [module](self).
pub(crate) struct Listening(pub(crate) Arc<Client>);

/// What is listened to.
pub(crate) struct Asked {
    op: Op,
    /// The caller's own credentials; empty for the daemon's.
    token: String,
}

impl Listening {
    /// Before anything was asked there is no path that would have to be closed.
    fn path_of(&self, name: &str) -> String {
        self.0.known_root().map_or_else(|| name.to_owned(), |root| root.path(name).to_owned())
    }
}

impl Upstream for Listening {
    type Query = Asked;

    fn read(&self, query: &Bytes) -> Result<Asked, Refused> {
        let refused = |message: String| Refused { code: "not_a_query", message, malformed: true };
        let Call { op, transaction, token } =
            wire::decode::<Call>(query).map_err(|why| refused(format!("the query {why}")))?;
        match op {
            Some(op @ (Op::Get(_) | Op::Query(_))) if transaction.is_empty() => {
                Ok(Asked { op, token })
            }
            _ => Err(refused("a document's path or a query is required".to_owned())),
        }
    }

    fn forwarded(query: &Asked) -> bool {
        !query.token.is_empty()
    }

    async fn listen(&self, query: &Asked, resume: Resume) -> Result<Responses, Status> {
        let unavailable = |failed: Failed| Status::unavailable(failed.error.to_string());
        let root = self.0.root().await.map_err(unavailable)?;
        let target_type = match query.op.clone() {
            Op::Get(get) => {
                let documents = get.paths.iter().map(|path| root.name(path)).collect();
                TargetType::Documents(DocumentsTarget { documents })
            }
            Op::Query(query) => {
                let mut structured = query.query.unwrap_or_default();
                root.complete_query(&mut structured);
                TargetType::Query(QueryTarget {
                    parent: root.name(&query.parent),
                    query_type: Some(QueryType::StructuredQuery(structured)),
                })
            }
            Op::Commit(_) | Op::Begin(_) | Op::Rollback(_) | Op::Asked(_) => {
                return Err(Status::invalid_argument("no query"));
            }
        };
        let messages = requests(root.database.clone(), target(target_type, resume));
        let (mut stub, request) =
            self.0.request(messages, &query.token).await.map_err(unavailable)?;
        match stub.listen(request).await {
            Ok(responses) => Ok(Box::pin(responses.into_inner())),
            Err(status) => {
                let behalf = Behalf { caller: Self::forwarded(query), transaction: false };
                // Credentials that were refused are read again; the answer is the status itself.
                drop(self.0.failed(&status, behalf).await);
                Err(status)
            }
        }
    }

    fn to_json(&self, document: Document) -> Json {
        let path = self.path_of(&document.name);
        found_to_json(&Found { path, document: Some(document), ..Found::default() })
    }

    fn path(&self, name: &str) -> String {
        self.path_of(name)
    }
}
