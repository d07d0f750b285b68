//! What streams need of the connector that owns them.

use std::pin::Pin;

use bytes::Bytes;
use fusebox_actors::connector::Refused;
use futures_util::{Stream, StreamExt, stream};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Document, ListenRequest, ListenResponse, Target,
    listen_request::TargetChange,
    target::{ResumeType, TargetType},
};
use serde_json::Value as Json;
use tonic::Status;

/// The only target of a Listen here.
pub(super) const TARGET: i32 = 1;

/// What a Listen answers, until it ends.
pub(crate) type Responses = Pin<Box<dyn Stream<Item = Result<ListenResponse, Status>> + Send>>;

/// The point from which a Listen goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resume {
    /// The server's token; empty for a Listen from the beginning.
    pub(crate) token: Bytes,
    /// How many documents are known at that token.
    pub(crate) documents: usize,
}

/// Listens, and reads what is Firestore's own.
pub(crate) trait Upstream: Send + Sync + 'static {
    /// A query with the credentials that it is asked with.
    type Query: Send + Sync + 'static;

    /// Reads a query in wire form. Streams of equal bytes are shared, so these must be canonical and have
    /// the caller's credentials if they are not the daemon's own.
    ///
    /// # Errors
    /// What is malformed.
    fn read(&self, query: &Bytes) -> Result<Self::Query, Refused>;

    /// Whether the query is asked with a caller's credentials: those do not come back once refused.
    fn forwarded(query: &Self::Query) -> bool;

    /// Begins a Listen of one [`target()`], by sending [`requests`]. Dropping the future or the responses ends
    /// it.
    fn listen(
        &self,
        query: &Self::Query,
        resume: Resume,
    ) -> impl Future<Output = Result<Responses, Status>> + Send;

    /// A document as a reply shows it.
    fn to_json(&self, document: Document) -> Json;

    /// The path in a document's full name.
    fn path(&self, name: &str) -> String;
}

/// A Listen's target.
pub(crate) fn target(target_type: TargetType, resume: Resume) -> Target {
    let resumes = !resume.token.is_empty();
    Target {
        target_id: TARGET,
        once: false,
        expected_count: i32::try_from(resume.documents).ok().filter(|_| resumes),
        target_type: Some(target_type),
        resume_type: resumes.then_some(ResumeType::ResumeToken(resume.token)),
    }
}

/// What is sent to begin a Listen. It never ends, because some servers take its end for the Listen's.
pub(crate) fn requests(
    database: String,
    target: Target,
) -> impl Stream<Item = ListenRequest> + Send + use<> {
    let add = ListenRequest {
        database,
        target_change: Some(TargetChange::AddTarget(target)),
        ..ListenRequest::default()
    };
    stream::iter([add]).chain(stream::pending())
}
