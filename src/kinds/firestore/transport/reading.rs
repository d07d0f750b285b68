//! Reads, and whatever else is not a commit, on their way.
//!
//! A read whose caller leaves goes on without it. The server could be asked to end it, but not asked whether it did;
//! so it keeps its place until it is answered, or the backend's `timeout` has passed, and says of the server what that
//! says. If its answer is on its way by then, it goes on for as long as no `timeout` passes between two messages, and
//! for one more `timeout` at most: a server whose answer stops has failed, and one whose answer goes on has answered.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{Aboard, Fate, OwnCode};
use fusebox_state::{ErrorClass, Verdict};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BeginTransactionRequest, Document, RollbackRequest, TransactionOptions,
    transaction_options::{Mode, ReadOnly, ReadWrite},
};
use prost::Message;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until},
};

use super::{
    client::{Client, closed},
    gathering::{Gathering, NotWhole, Progress},
};
use crate::kinds::firestore::protocol::{
    names::Root,
    outcome::{Behalf, Failed},
    wire::{Answer, Call, Found, FoundList, Messages, Op, Reply},
};

type Asked = Pin<Box<dyn Future<Output = Result<Bytes, Failed>> + Send>>;

/// See the [module](self). Dropped before its answer, it goes on by itself.
pub(crate) struct Reading {
    client: Arc<Client>,
    asked: Option<Asked>,
    aboard: Aboard,
    progress: Progress,
    /// When the backend's `timeout` has passed.
    due: Instant,
}

impl Reading {
    pub(crate) fn new(
        client: &Arc<Client>,
        asked: impl Future<Output = Result<Bytes, Failed>> + Send + 'static,
        aboard: Aboard,
        progress: Progress,
    ) -> Self {
        let due = Instant::now() + client.settings.timeout;
        Self { client: Arc::clone(client), asked: Some(Box::pin(asked)), aboard, progress, due }
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
        let (client, due, progress) = (Arc::clone(&self.client), self.due, self.progress.clone());
        runtime.spawn(async move {
            let verdict = tokio::select! {
                biased;
                ended = asked => ended.map_or_else(|failed| failed.verdict, |_| Verdict::Success),
                verdict = unanswered(&progress, due, client.settings.timeout) => verdict,
                () = client.closed.cancelled() => Verdict::Neutral,
            };
            aboard.ended(verdict);
        });
    }
}

/// What it says of the server that a read has no whole answer. Resolves at `due`, or later while messages come: once
/// none has come for as long as `limit`, and at last when so much time has passed since `due`.
async fn unanswered(progress: &Progress, due: Instant, limit: Duration) -> Verdict {
    let (mut next, last) = (due, due + limit);
    loop {
        sleep_until(next).await;
        let Some(at) = progress.at() else { return Verdict::Failure };
        let late = at + limit;
        if late <= next {
            return Verdict::Failure;
        }
        if next >= last {
            return Verdict::Success;
        }
        next = late.min(last);
    }
}

/// The answer has come, and a fault on purpose takes it away.
pub(super) fn taken_away(code: OwnCode, why: &'static str) -> Failed {
    Failed::own(Verdict::Failure, ErrorClass::Unknown, code, why)
}

/// Asks what is not a commit. How far the answer has come is shown by `progress`.
pub(crate) async fn ask(
    client: Arc<Client>,
    call: Call,
    progress: Progress,
) -> Result<Bytes, Failed> {
    let (client, mut gathering) = (&*client, Gathering::new(progress));
    let Call { op, transaction, token } = call;
    let behalf = Behalf { caller: !token.is_empty(), transaction: !transaction.is_empty() };
    let root = client.root().await?;
    let answer = match op {
        Some(Op::Get(get)) => {
            let names = get.paths.iter().map(|path| root.name(path)).collect();
            let documents = client.get(names, &transaction, &token, &mut gathering).await?;
            let found = in_order(get.paths, documents, root, &mut gathering);
            let mut found = match found {
                Ok(found) => found,
                Err(why) => return Err(client.not_whole(why, behalf).await),
            };
            if get.many {
                Answer::Many(FoundList { found })
            } else {
                Answer::One(found.pop().unwrap_or_default())
            }
        }
        Some(Op::Query(query)) => {
            let structured = query.query.unwrap_or_default();
            let (parent, gathering) = (&query.parent, &mut gathering);
            let documents =
                client.query(parent, structured, &transaction, &token, gathering).await?;
            let found = documents.into_iter().map(|document| root.found(document)).collect();
            Answer::Many(FoundList { found })
        }
        Some(Op::Asked(asked)) => {
            let messages = client.asked(asked, &token, &mut gathering).await?;
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

/// What was found at each path. A path that is asked for twice is answered twice, and counts twice.
fn in_order(
    paths: Vec<String>,
    mut documents: HashMap<String, Document>,
    root: &Root,
    gathering: &mut Gathering,
) -> Result<Vec<Found>, NotWhole> {
    let mut found_at = |path: String| match documents.remove(&root.name(&path)) {
        Some(document) => root.found(document),
        None => Found { path, ..Found::default() },
    };
    if paths.len() == 1 {
        return Ok(paths.into_iter().map(found_at).collect());
    }
    let mut all: Vec<Found> = Vec::with_capacity(paths.len());
    let mut answered: HashMap<String, usize> = HashMap::with_capacity(paths.len());
    for path in paths {
        let before = answered.insert(path.clone(), all.len()).and_then(|at| all.get(at)).cloned();
        let found = match before {
            Some(before) => {
                gathering.takes(before.encoded_len())?;
                before
            }
            None => found_at(path),
        };
        all.push(found);
    }
    Ok(all)
}
