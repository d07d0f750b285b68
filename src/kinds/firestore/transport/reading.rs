//! Reads, and whatever else is not a commit, on their way.
//!
//! A read whose caller leaves goes on without it. The server could be asked to end it, but not asked whether it did;
//! so it keeps its place until it is answered, or the backend's `timeout` has passed, and says of the server what that
//! says.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use fusebox_actors::connector::{Aboard, Fate, OwnCode};
use fusebox_state::{ErrorClass, Verdict};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BeginTransactionRequest, RollbackRequest, TransactionOptions,
    transaction_options::{Mode, ReadOnly, ReadWrite},
};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::client::{Client, closed};
use crate::kinds::firestore::protocol::{
    outcome::{Behalf, Failed},
    wire::{Answer, Call, Found, FoundList, Messages, Op, Reply},
};

type Asked = Pin<Box<dyn Future<Output = Result<Bytes, Failed>> + Send>>;

/// See the [module](self). Dropped before its answer, it goes on by itself.
pub(crate) struct Reading {
    client: Arc<Client>,
    asked: Option<Asked>,
    aboard: Aboard,
    /// When the backend's `timeout` has passed.
    due: Instant,
}

impl Reading {
    pub(crate) fn new(
        client: &Arc<Client>,
        asked: impl Future<Output = Result<Bytes, Failed>> + Send + 'static,
        aboard: Aboard,
    ) -> Self {
        let due = Instant::now() + client.settings.timeout;
        Self { client: Arc::clone(client), asked: Some(Box::pin(asked)), aboard, due }
    }

    /// Its answer.
    pub(crate) async fn answered(&mut self) -> Result<Bytes, Failed> {
        let Some(asked) = &mut self.asked else { return Err(closed()) };
        let answered = asked.await;
        self.asked = None;
        match self.aboard.fate() {
            Fate::Told => answered,
            Fate::Lost => Err(taken_away(OwnCode::Reset, Fate::LOST)),
            // Whoever waits for it gives up.
            Fate::Late => std::future::pending().await,
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let aboard = std::mem::take(&mut self.aboard);
        let (Some(asked), Ok(runtime)) = (self.asked.take(), Handle::try_current()) else { return };
        let (client, due) = (Arc::clone(&self.client), self.due);
        runtime.spawn(async move {
            let verdict = tokio::select! {
                ended = timeout_at(due, asked) => match ended {
                    Ok(Ok(_)) => Verdict::Success,
                    Ok(Err(failed)) => failed.verdict,
                    Err(_) => Verdict::Failure,
                },
                () = client.closed.cancelled() => Verdict::Neutral,
            };
            aboard.ended(verdict);
        });
    }
}

/// The answer has come, and a fault on purpose takes it away.
pub(super) fn taken_away(code: OwnCode, why: &'static str) -> Failed {
    Failed::own(Verdict::Failure, ErrorClass::Unknown, code, why)
}

/// Asks what is not a commit.
pub(crate) async fn ask(client: Arc<Client>, call: Call) -> Result<Bytes, Failed> {
    let client = &*client;
    let Call { op, transaction, token } = call;
    let behalf = Behalf { caller: !token.is_empty(), transaction: !transaction.is_empty() };
    let root = client.root().await?;
    let answer = match op {
        Some(Op::Get(get)) => {
            let names = get.paths.iter().map(|path| root.name(path)).collect();
            let mut documents = client.get(names, &transaction, &token).await?;
            let last = get.paths.len();
            let found = get.paths.into_iter().enumerate().map(|(at, path)| {
                let name = root.name(&path);
                // A path that is asked for twice is answered twice.
                let document = if at + 1 == last {
                    documents.remove(&name)
                } else {
                    documents.get(&name).cloned()
                };
                match document {
                    Some(document) => root.found(document),
                    None => Found { path, ..Found::default() },
                }
            });
            let mut found: Vec<Found> = found.collect();
            if get.many {
                Answer::Many(FoundList { found })
            } else {
                Answer::One(found.pop().unwrap_or_default())
            }
        }
        Some(Op::Query(query)) => {
            let structured = query.query.unwrap_or_default();
            let documents = client.query(&query.parent, structured, &transaction, &token).await?;
            let found = documents.into_iter().map(|document| root.found(document)).collect();
            Answer::Many(FoundList { found })
        }
        Some(Op::Asked(asked)) => {
            let messages = client.asked(asked, &token).await?;
            Answer::Messages(Messages { messages })
        }
        Some(Op::Begin(begin)) => {
            let mode = if begin.read_only {
                Mode::ReadOnly(ReadOnly::default())
            } else {
                Mode::ReadWrite(ReadWrite::default())
            };
            let message = BeginTransactionRequest {
                database: root.database.clone(),
                options: Some(TransactionOptions { mode: Some(mode) }),
            };
            let (mut stub, request) = client.request(message, &token).await?;
            match stub.begin_transaction(request).await {
                Ok(answer) => Answer::Transaction(answer.into_inner().transaction),
                Err(status) => return Err(client.failed(&status, behalf).await),
            }
        }
        Some(Op::Rollback(_)) => {
            let message = RollbackRequest { database: root.database.clone(), transaction };
            let (mut stub, request) = client.request(message, &token).await?;
            match stub.rollback(request).await {
                Ok(_) => Answer::Done(true),
                Err(status) => return Err(client.failed(&status, behalf).await),
            }
        }
        Some(Op::Commit(_)) | None => {
            let message = "the call has an operation that this release does not know";
            let (verdict, class) = (Verdict::Neutral, ErrorClass::Rejected);
            return Err(Failed::own(verdict, class, OwnCode::MalformedCall, message));
        }
    };
    Ok(Reply::encoded(answer))
}
