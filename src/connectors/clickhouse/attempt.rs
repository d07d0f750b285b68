//! One attempt: what goes before the wire, and what its end means.
//!
//! ```text
//!  closed? ─▶ what does the server know ─▶ (writes) fence ─▶ (repetitions) does a token protect ─▶ wire
//! ```
//! A read is carried by its caller's own task: who leaves ends it, and it is killed at the server. A write is
//! carried by a task of its own and keeps its place on the wire until the backend's `timeout`, whoever waits
//! for it.

use std::{sync::Arc, time::Duration};

use fusebox_actors::connector::{Attempt, AttemptError, Attempted};
use fusebox_state::{ErrorClass, Verdict};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    Shared,
    exchange::{self, Exchanged, Reading, Sending},
    fence::Place,
    http::Failed,
    plan,
    request::{self, Asking},
    server::Server,
    sql::{self, Insert, Statement, Verb},
    tokens::{self, Target, Window},
    wire::Call,
};

/// How much longer than its full time a caller waits, so that the exchange itself says what became of it.
const GRACE: Duration = Duration::from_millis(25);

/// Carries one attempt.
pub(super) async fn carry(shared: &Arc<Shared>, attempt: Attempt<'_>) -> Attempted {
    match carried(shared, attempt).await {
        Ok(attempted) => attempted,
        Err(failed) => Attempted::failed(failed.verdict, failed.error),
    }
}

/// An attempt that was read and may be sent.
struct Ready<'a> {
    attempt: Attempt<'a>,
    call: Call,
    statement: Statement,
    server: Arc<Server>,
    /// The table of an insert that bears a token.
    target: Option<Target>,
    whole: bool,
}

async fn carried(shared: &Arc<Shared>, attempt: Attempt<'_>) -> Result<Attempted, Failed> {
    let until = Instant::now() + attempt.timeout;
    let whole = attempt.timeout + GRACE >= shared.settings.timeout;
    if shared.http.is_closed() {
        return Err(Failed::not_executed("closed", "the connector is closed", Verdict::Neutral));
    }
    let call = Call::of(attempt.body).map_err(|error| Failed {
        error: AttemptError::own(ErrorClass::Rejected, "undecodable", error.to_string()),
        verdict: Verdict::Neutral,
    })?;
    let statement = sql::read(&call.header.query);
    let server = shared.servers.get(&shared.http, attempt.timeout).await;
    let server = server.map_err(|failed| neutral_unless(whole, failed))?;
    let target = match (&statement.verb, attempt.token) {
        (Verb::Insert(Insert { table: Some(table), .. }), Some(_)) => {
            Some(plan::target(table, &call.header, &shared.settings))
        }
        _ => None,
    };
    let ready = Ready { attempt, call, statement, server, target, whole };
    if ready.attempt.write {
        write(shared, ready, until).await
    } else {
        Ok(read(shared, ready).await)
    }
}

async fn read(shared: &Arc<Shared>, ready: Ready<'_>) -> Attempted {
    let reading = Reading::new(shared, shared.fence.id());
    let limit = ready.attempt.timeout;
    let sending = request::sending(shared, ready.asking(), reading.id(), limit);
    exchange::exchange(shared, sending, Some(reading)).await.attempted
}

async fn write(
    shared: &Arc<Shared>,
    ready: Ready<'_>,
    until: Instant,
) -> Result<Attempted, Failed> {
    let attempt = &ready.attempt;
    let commutes = !attempt.lanes.is_all() && attempt.lanes.as_slice().is_empty();
    let first = commutes && !attempt.doubt.is_some();
    shared
        .fence
        .pass(&shared.http, first, until)
        .await
        .map_err(|failed| neutral_unless(ready.whole, failed))?;
    let waiting = 0;
    if let Some(target) = &ready.target {
        let known = shared.tables.known(target, &ready.server);
        if attempt.doubt.is_some() {
            protected(shared, &ready, target, until).await?;
        } else if known.is_none() {
            tokens::learn_soon(shared, target.clone(), waiting);
        }
    }
    let target = ready.target.clone();
    let (verdict, whole) =
        (if ready.whole { Verdict::Failure } else { Verdict::Neutral }, ready.whole);
    let streamed = attempt.upload.is_some();
    let time = attempt.timeout;
    let server = Arc::clone(&ready.server);
    let place = shared.fence.enter(shared.fence.id(), commutes);
    let departure = Departure { shared: Arc::clone(shared), id: place.id().to_owned() };
    let sending = request::sending(shared, ready.asking(), place.id(), shared.settings.timeout);
    let (sender, receiver) = oneshot::channel();
    let own = Arc::clone(shared);
    tokio::spawn(async move {
        // Who waits for it may have left.
        drop(sender.send(on_the_wire(&own, sending, place).await));
    });
    let ended = if streamed {
        // Its time is counted from piece to piece, by the exchange.
        receiver.await.ok()
    } else {
        let patience = if whole { until + GRACE } else { until };
        timeout_at(patience, receiver).await.ok().and_then(Result::ok)
    };
    drop(departure);
    let mut ended = ended.unwrap_or_else(|| {
        let message = format!("no answer within {time:?}");
        Attempted::failed(verdict, AttemptError::own(ErrorClass::Unknown, "timeout", message))
    });
    if let Some(target) = &target {
        ambiguous_unless_protected(shared, &server, target, waiting, &mut ended);
    }
    Ok(ended)
}

/// A write's way over the wire. Where its end is not known, the fence is raised at once, in the hope that
/// nobody has to wait for it.
async fn on_the_wire(shared: &Arc<Shared>, sending: Sending, mut place: Place) -> Attempted {
    let Exchanged { attempted, known } = exchange::exchange(shared, sending, None).await;
    if known {
        place.ended();
        return attempted;
    }
    drop(place);
    raise_soon(shared);
    attempted
}

/// Raises the fence in the background, once.
pub(super) fn raise_soon(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let until = Instant::now() + shared.settings.timeout;
        if let Err(failed) = shared.fence.round(&shared.http, until).await {
            let backend = shared.settings.name.as_str();
            tracing::debug!(backend, error = %failed.error, "an abandoned write is in doubt");
        }
    });
}

/// Notes that nobody waits for a write any more.
struct Departure {
    shared: Arc<Shared>,
    id: String,
}

impl Drop for Departure {
    fn drop(&mut self) {
        self.shared.fence.depart(&self.id);
    }
}

/// Lets a repetition pass where the server would recognise it.
async fn protected(
    shared: &Arc<Shared>,
    ready: &Ready<'_>,
    target: &Target,
    until: Instant,
) -> Result<(), Failed> {
    let time = until.saturating_duration_since(Instant::now());
    let window = shared.tables.get(target, &ready.server, &shared.http, time).await;
    let window = window.map_err(|failed| neutral_unless(ready.whole, failed.unsent()))?;
    if window == Window::NoTable {
        let (database, table) = target;
        let message = format!("there is no table {database}.{table} (UNKNOWN_TABLE)");
        let error = AttemptError::own(ErrorClass::BlockedObject, "60", message);
        return Err(Failed { error, verdict: Verdict::Success });
    }
    let lacks = window.lacks(target, 0);
    shared.tables.warn(&shared.settings.name, target, lacks.clone());
    match lacks {
        None => Ok(()),
        Some(lacks) => {
            let message =
                format!("it may have been applied already, and cannot be repeated: {lacks}");
            let error = AttemptError::own(ErrorClass::Ambiguous, "ambiguous", message);
            Err(Failed { error, verdict: Verdict::Neutral })
        }
    }
}

/// Where it is known that a repetition would not be recognised, there will be none. Where that is not known
/// it is looked up before the repetition.
fn ambiguous_unless_protected(
    shared: &Arc<Shared>,
    server: &Server,
    target: &Target,
    waiting: u64,
    ended: &mut Attempted,
) {
    let Err(error) = &mut ended.result else { return };
    if error.class != ErrorClass::Unknown {
        return;
    }
    let Some(window) = shared.tables.known(target, server) else { return };
    if let Some(lacks) = window.lacks(target, waiting) {
        shared.tables.warn(&shared.settings.name, target, Some(lacks.clone()));
        error.class = ErrorClass::Ambiguous;
        error.unclassified = false;
        error.message = format!("{}; it cannot be repeated: {lacks}", error.message);
    }
}

/// A deadline shorter than the backend's own says nothing of the backend.
fn neutral_unless(whole: bool, mut failed: Failed) -> Failed {
    if !whole && failed.error.code == "timeout" {
        failed.verdict = Verdict::Neutral;
    }
    failed
}

impl<'a> Ready<'a> {
    fn asking(self) -> Asking<'a> {
        let Self { attempt, call, statement, server, whole, .. } = self;
        Asking { attempt, call, statement, server, whole }
    }
}
