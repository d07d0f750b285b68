//! Firestore behind the connector port.
//!
//! A body and a reply are messages of Protocol Buffers behind a version byte (`protocol/wire.rs`); JSON is made of
//! them at the doors (`protocol/{json,value,write,query}.rs`). A document is a lane. A few HTTP/2
//! connections carry everything: as many as they need reads and Listens, four writes.
//!
//! ```text
//!  plan ── cache, overlay            attempt, attempt_batch ── carry ── fence, pace
//!                                                                │
//!  live_queries ── listening ──────────────────────────────────── client ── auth, names
//! ```
//! How calls share a commit and are still distinguished, and how a call is recognised that was
//! applied already, is in `transport/carry.rs`; what keeps an abandoned write from landing late in
//! `transport/fence.rs`; how a write may be answered in an outage in `protocol/plan.rs`; what a status means
//! in `protocol/outcome.rs`; how a live query survives an outage in `live_queries.rs`.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{
    Access, Answer as Promise, Attempt, AttemptError, Attempted, Connector, ConnectorStatus,
    Overlay, OwnCode, Plan, QueuedWrite, Refused, Said, Slot, Streams, UsualErrors,
};
use fusebox_state::{ErrorClass, LaneId, Lanes, OpId, Target, UnixMillis, Verdict};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    live_queries::LiveQueries,
    protocol::{
        cache,
        cargo::{self, Cargo},
        names::Root,
        outcome::{self, Failed},
        overlay::Followed,
        plan,
        size::Sizes,
        wire::{self, Answer, Call, Op, Reply},
    },
    settings::FirestoreSettings,
    transport::{
        client::{self, Client, closed},
        fence::{Fence, MARGIN},
        gathering::Progress,
        listening::Listening,
        pace::Pace,
        reading::{Reading, ask},
        shared::Shared,
    },
};

/// So many markers are deleted by one commit.
const FORGET_AT_ONCE: usize = plan::WRITES_MAX;
/// No caller waits longer.
const LEFT_MAX: Duration = Duration::from_secs(30 * 86_400);
/// So many wait to be deleted; more than that stay, which is harmless.
const FORGOTTEN_MAX: usize = 64 << 10;

/// What is known of a document by its queued writes.
#[derive(Clone)]
struct DocumentOverlay {
    document: Followed,
    shared: Arc<Shared>,
    /// Whether the database's name was known when it was begun.
    rooted: bool,
}

impl Overlay for DocumentOverlay {
    fn write(&mut self, write: &QueuedWrite) -> bool {
        let root = self.shared.client.known_root().filter(|_| self.rooted);
        self.document.write(write, root)
    }

    fn serves(&self, slot: &Slot) -> bool {
        self.rooted == self.shared.client.known_root().is_some() && self.document.is_of(slot)
    }

    fn says(&self, _: &Slot, _: UnixMillis) -> Said {
        self.document.reply().map_or(Said::Nothing, Said::Reply)
    }

    fn fork(&self) -> Box<dyn Overlay> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> u64 {
        self.document.bytes() as u64
    }
}

/// A Firestore backend's connector. Made without a server; it connects when it is first needed.
pub struct FirestoreConnector {
    target: Target,
    pub(super) shared: Arc<Shared>,
    /// Receives the names of markers whose time is over.
    forgotten: mpsc::Sender<OpId>,
    streams: LiveQueries<Listening>,
    /// Configured project and database, which are part of every lane.
    namespace: String,
    /// The longest that the root can be, which counts while it is not known.
    longest_root: Root,
}

impl FirestoreConnector {
    /// A connector for `settings`. Nothing is sent yet.
    pub fn new(settings: FirestoreSettings) -> Arc<Self> {
        let quiet = settings.quiet_after_start().map(|longest| longest.saturating_add(MARGIN));
        let target = settings.target();
        let fence = Fence::of(&target, quiet);
        let pace = Pace::new(settings.url.tls, Instant::now());
        let project = settings.project.as_deref().unwrap_or_default();
        let namespace = format!("{project}/{}", settings.database);
        let longest_root = Root::longest(&settings.database);
        let client = Arc::new(Client::new(settings));
        let streams = LiveQueries::new(Arc::new(Listening(Arc::clone(&client))));
        let shared = Arc::new(Shared { client, fence, pace, sizes: Sizes::new() });
        let (forgotten, tokens) = mpsc::channel(FORGOTTEN_MAX);
        // Without a runtime nothing can be sent, and so no marker be written.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(forget(Arc::clone(&shared), tokens));
        }
        Arc::new(Self { target, shared, forgotten, streams, namespace, longest_root })
    }

    /// Configured project and database, which are part of every lane.
    pub(super) fn namespace(&self) -> &[u8] {
        self.namespace.as_bytes()
    }

    /// Checks a commit, as it is sent, against the largest message that the server takes.
    fn check_message(&self, plan: &Plan) -> Result<(), Refused> {
        let Access::Write(_) = &plan.access else { return Ok(()) };
        let limit = self.shared.sizes.limit().unwrap_or(plan::SENT_MAX);
        let root = self.shared.client.known_root().unwrap_or(&self.longest_root);
        if plan.body.len().saturating_mul(root.growth()) < limit {
            return Ok(());
        }
        let call = wire::decode::<Call>(&plan.body).ok();
        let Some(Op::Commit(commit)) = call.and_then(|call| call.op) else { return Ok(()) };
        let bytes = cargo::message_size(commit.writes, root);
        if bytes <= limit {
            return Ok(());
        }
        let message =
            format!("the server takes messages of {limit} bytes, this commit has {bytes}");
        Err(Refused { code: "too_large", message, malformed: false })
    }

    async fn carry(&self, attempt: Attempt<'_>) -> Attempted {
        if self.shared.client.closed.is_cancelled() {
            return closed().ended();
        }
        let call = match wire::decode::<Call>(attempt.body) {
            Ok(Call { op: Some(Op::Commit(_)), .. }) => {
                return match Cargo::of(&attempt) {
                    Ok(cargo) => {
                        let (time, patience) = (attempt.timeout, attempt.fence_patience);
                        let aboard = attempt.board_unsent();
                        one(self.shared.carry(&[cargo], time, patience, aboard).await)
                    }
                    Err(failed) => failed.ended(),
                };
            }
            Ok(call) => call,
            Err(why) => {
                let message = format!("the call {why}");
                let code = OwnCode::MalformedCall;
                return Failed::own(Verdict::Neutral, ErrorClass::Rejected, code, message).ended();
            }
        };
        let progress = Progress::default();
        let asked = ask(Arc::clone(&self.shared.client), call, progress.clone());
        let board = attempt.board();
        let mut reading = Reading::new(&self.shared.client, asked, board, progress.clone());
        let (time, left) = (attempt.timeout, attempt.left);
        self.timed((time, left), false, &progress, reading.answered()).await
    }

    /// Waits for what changes nothing: for as long as `time` until its answer begins, and then for as long as its
    /// messages come within the backend's `timeout` of one another, until nothing is `left` of its caller's time.
    async fn timed(
        &self,
        (time, left): (Duration, Duration),
        urgent: bool,
        progress: &Progress,
        asked: impl Future<Output = Result<Bytes, Failed>>,
    ) -> Attempted {
        let limit = self.shared.client.settings.timeout;
        let whole = urgent || time + Duration::from_millis(25) >= limit;
        let began = Instant::now();
        let end = began + left.clamp(time, LEFT_MAX.max(time));
        let late = async {
            let mut due = began + time;
            loop {
                sleep_until(due).await;
                let came = progress.at();
                match came.map(|at| (at + limit).min(end)) {
                    Some(next) if whole && next > due => due = next,
                    _ => return (came.is_some(), due),
                }
            }
        };
        tokio::select! {
            biased;
            answered = asked => answered.map_or_else(Failed::ended, Attempted::answered),
            () = self.shared.client.closed.cancelled() => {
                let message = "the connection was closed";
                Failed::own(Verdict::Neutral, ErrorClass::Unknown, OwnCode::Reset, message).ended()
            }
            (has_begun, due) = late => {
                let message = if has_begun {
                    format!("the answer was not complete within {:?}", due - began)
                } else {
                    format!("no answer within {time:?}")
                };
                // Of one that goes on coming its caller has had enough.
                let is_failure = whole && !(has_begun && due >= end);
                let verdict = if is_failure { Verdict::Failure } else { Verdict::Neutral };
                Failed::own(verdict, ErrorClass::Unknown, OwnCode::Timeout, message).ended()
            }
        }
    }

    async fn carry_all(&self, attempts: Vec<Attempt<'_>>) -> Vec<Attempted> {
        if self.shared.client.closed.is_cancelled() {
            return attempts.iter().map(|_| closed().ended()).collect();
        }
        let time = attempts.first().map_or(Duration::ZERO, |attempt| attempt.timeout);
        let patience = attempts.first().map_or(Duration::ZERO, |attempt| attempt.fence_patience);
        let aboard = attempts.first().map(Attempt::board_unsent).unwrap_or_default();
        let mut ends: Vec<Option<Attempted>> = Vec::with_capacity(attempts.len());
        let mut cargos = Vec::with_capacity(attempts.len());
        for attempt in &attempts {
            match Cargo::of(attempt) {
                Ok(cargo) => {
                    cargos.push(cargo);
                    ends.push(None);
                }
                Err(failed) => ends.push(Some(failed.ended())),
            }
        }
        self.shared.pace.used(cargos.iter().map(Cargo::writes).sum(), Instant::now());
        let mut carried = self.shared.carry(&cargos, time, patience, aboard).await.into_iter();
        let ends = ends.into_iter().map(|end| end.or_else(|| carried.next()));
        ends.map(|end| end.unwrap_or_else(|| closed().ended())).collect()
    }
}

/// Evidence of nothing: a marker says by itself what it is of.
fn no_evidence(attempts: &[Attempt<'_>]) -> Vec<Bytes> {
    vec![Bytes::new(); attempts.len()]
}

/// Deletes markers, as many at once as have gathered, until their connector is dropped.
async fn forget(shared: Arc<Shared>, mut tokens: mpsc::Receiver<OpId>) {
    let mut gathered = Vec::new();
    while tokens.recv_many(&mut gathered, FORGET_AT_ONCE).await > 0 {
        if let Err(failed) = shared.forget(&gathered).await {
            let error = failed.error.to_string();
            tracing::debug!(error, count = gathered.len(), "markers were left behind");
        }
        gathered.clear();
    }
}

/// The only end of one call.
fn one(mut ends: Vec<Attempted>) -> Attempted {
    ends.pop().unwrap_or_else(|| closed().ended())
}

impl std::fmt::Debug for FirestoreConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FirestoreConnector").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Connector for FirestoreConnector {
    fn plan(&self, body: Bytes) -> Result<Plan, Refused> {
        let plan = plan::plan(body, self.namespace.as_bytes())?;
        self.check_message(&plan)?;
        Ok(plan)
    }

    fn stored_lanes(&self, body: &Bytes) -> Option<Lanes> {
        // Whether it would be taken now does not matter: an earlier release may have taken what this one refuses.
        let Op::Commit(commit) = wire::decode::<Call>(body).ok()?.op? else { return None };
        Some(plan::lanes(&commit.writes, self.namespace()))
    }

    fn operation(&self, body: &Bytes) -> Cow<'static, str> {
        Cow::Borrowed(match wire::decode::<Call>(body).ok().and_then(|call| call.op) {
            Some(Op::Get(get)) if get.many => "batch_get",
            Some(Op::Get(_)) => "get",
            Some(Op::Query(_)) => "query",
            Some(Op::Commit(_)) => "commit",
            Some(Op::Begin(_)) => "begin_transaction",
            Some(Op::Rollback(_)) => "rollback",
            Some(Op::Asked(asked)) => asked.question().operation(),
            None => "unknown",
        })
    }

    fn prepare<'a>(
        &'a self,
        attempts: &'a [Attempt<'a>],
    ) -> Promise<'a, Result<Vec<Bytes>, (Verdict, AttemptError)>> {
        Box::pin(async move {
            let time = attempts.first().map_or(Duration::ZERO, |attempt| attempt.timeout);
            // What cannot be read is not sent either; its attempt says so.
            let cargos: Vec<Cargo> =
                attempts.iter().filter_map(|attempt| Cargo::of(attempt).ok()).collect();
            match self.shared.ready(&cargos, time).await {
                Ok(()) => Ok(no_evidence(attempts)),
                Err(Failed { verdict, error, .. }) => Err((verdict, error)),
            }
        })
    }

    fn attempt<'a>(&'a self, attempt: Attempt<'a>) -> Promise<'a, Attempted> {
        Box::pin(client::traced(attempt.trace, self.carry(attempt)))
    }

    fn ping(&self, timeout: Duration) -> Promise<'_, Attempted> {
        let asked = async {
            self.shared.client.probe().await?;
            Ok(Reply::encoded(Answer::Done(true)))
        };
        Box::pin(
            async move { self.timed((timeout, timeout), true, &Progress::default(), asked).await },
        )
    }

    fn may_land(&self, lane: LaneId) -> bool {
        self.shared.fence.in_doubt_until(&Lanes::One(lane)).is_some()
    }

    fn overlay(&self, slot: &Slot) -> Option<Box<dyn Overlay>> {
        let shared = Arc::clone(&self.shared);
        let rooted = shared.client.known_root().is_some();
        Some(Box::new(DocumentOverlay { document: Followed::of(slot)?, shared, rooted }))
    }

    fn overlay_over(&self, slot: &Slot, cached: &Bytes) -> Option<Box<dyn Overlay>> {
        let shared = Arc::clone(&self.shared);
        let rooted = shared.client.known_root().is_some();
        let document = Followed::over(slot, cached)?;
        Some(Box::new(DocumentOverlay { document, shared, rooted }))
    }

    fn split(&self, _: &Bytes, slots: &[Slot], reply: &Bytes) -> Option<Vec<Bytes>> {
        cache::split(slots, reply)
    }

    fn join(&self, body: &Bytes, parts: Vec<Bytes>) -> Bytes {
        cache::join(body, parts)
    }

    fn batch_max(&self) -> usize {
        self.shared.pace.allowance(Instant::now()).min(self.shared.sizes.batch())
    }

    fn attempt_batch<'a>(&'a self, attempts: Vec<Attempt<'a>>) -> Promise<'a, Vec<Attempted>> {
        // One commit is of one trace: the first that is followed.
        let trace = attempts.iter().find_map(|attempt| attempt.trace);
        Box::pin(client::traced(trace, self.carry_all(attempts)))
    }

    fn streams(&self) -> Option<&dyn Streams> {
        Some(&self.streams)
    }

    fn forget_tokens(&self, tokens: Vec<OpId>) {
        // Called on the committing thread, too: nothing may wait or be spawned here.
        for token in tokens {
            if self.forgotten.try_send(token).is_err() {
                return;
            }
        }
    }

    fn status(&self) -> ConnectorStatus {
        ConnectorStatus {
            connections: self.shared.client.open(),
            warnings: Vec::new(),
            server_version: None,
        }
    }

    fn target(&self) -> Target {
        self.target.clone()
    }

    fn view(&self) -> Target {
        let account = self.shared.client.settings.credentials_file.as_ref();
        let account = account.map(|file| file.to_string_lossy());
        self.target.seen_by(account.as_deref())
    }

    fn answered_with(&self, code: &str, _: &Bytes) -> Option<Attempted> {
        Some(outcome::injected(code)?.ended())
    }

    fn usual_errors(&self) -> UsualErrors {
        UsualErrors { overloaded: "RESOURCE_EXHAUSTED", refuses: "INVALID_ARGUMENT" }
    }

    fn give_up_connections(&self) {
        self.shared.client.give_up_connections();
    }

    fn close(&self) -> Promise<'_, ()> {
        Box::pin(async {
            self.streams.close();
            self.shared.client.close();
        })
    }
}
