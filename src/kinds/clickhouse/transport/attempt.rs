//! One attempt: what goes before the wire, and what its end means.
//!
//! ```text
//!  closed? ─▶ what does the server know ─▶ (writes) fence ─▶ first: what is noted; again: the proof ─▶ wire
//! ```
//! A write in doubt is sent again only after a proof ([`tokens::prove`]); without one it ends ambiguous, unsent.
//!
//! A read is carried by its caller's own task: who leaves ends it, and it is killed at the server; it keeps its place
//! until that is done, or `timeout` has passed. A write is carried by a task of its own and keeps its place on the
//! wire until the backend's `timeout`, whoever waits for it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{Aboard, Attempt, AttemptError, Attempted, Origin, OwnCode};
use fusebox_state::{ErrorClass, OpId, Verdict};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    asking,
    bounds::{GRACE, ambiguous, check_open, commutes, is_whole, neutral_unless, waits},
    doubt::{by_proof, in_views_alone, note, unanswered},
    exchange::{self, Exchanged, Sending},
    fence::{Place, Waits},
    http::Failed,
    opaque,
    reading::{ReadId, Reading},
    request::{self, Asking},
    server::Server,
    shared::Shared,
    tokens::{self, Arrived, Doubted, Noted, TOKENS_MAX},
    writing::{Departure, raise_soon},
};
use crate::kinds::clickhouse::protocol::{
    gather,
    http_form::HttpRequest,
    outcome::{self, SUMMARY_SINCE, written_rows},
    sql::{Insert, Statement, Verb},
    stated,
    target::{self, Target},
    wire::{self, Call, WireError},
};

/// Carries one attempt.
pub(crate) async fn carry(shared: &Arc<Shared>, attempt: Attempt<'_>) -> Attempted {
    let origin = attempt.origin;
    let carried = carried(shared, attempt).await;
    let mut ended =
        carried.unwrap_or_else(|failed| Attempted::failed(failed.verdict, failed.error));
    if origin == Origin::Replay {
        outcome::wait_for_replicas(&mut ended);
    }
    ended
}

/// Carries queued inserts as one, under their common token and their common doubt.
pub(crate) async fn carry_group(shared: &Arc<Shared>, attempts: Vec<Attempt<'_>>) -> Attempted {
    let calls: Option<Vec<Call>> =
        attempts.iter().map(|attempt| Call::of(attempt.body).ok()).collect();
    let joined = calls.and_then(|calls| gather::joined(&calls, &shared.settings));
    let (Some(joined), Some(first)) = (joined, attempts.first()) else {
        let message = format!("{} queued calls cannot be sent as one", attempts.len());
        let error = AttemptError::own(ErrorClass::NotExecuted, OwnCode::Group, message);
        return Attempted::failed(Verdict::Neutral, error);
    };
    let body = joined.to_bytes();
    carry(shared, Attempt { body: &body, upload: None, ..first.clone() }).await
}

/// An attempt that was read and may be sent.
#[derive(Clone)]
struct Ready<'a> {
    attempt: Attempt<'a>,
    call: Call,
    statement: Statement,
    server: Arc<Server>,
    /// The table of an insert with a token, and the token.
    target: Option<(Target, OpId)>,
    /// Under which of its tokens it is sent.
    turn: u8,
    whole: bool,
}

async fn carried(shared: &Arc<Shared>, attempt: Attempt<'_>) -> Result<Attempted, Failed> {
    let until = Instant::now() + attempt.timeout;
    let whole = is_whole(shared, attempt.timeout);
    check_open(shared)?;
    if let Some(request) = HttpRequest::of(attempt.body) {
        return opaque::carried(shared, attempt, request.map_err(undecodable)?, until).await;
    }
    let call = call_of(&attempt)?;
    let statement = stated::of_call(&call);
    let server = asking::server(shared, || attempt.board(), attempt.timeout).await;
    let server = server.map_err(|failed| neutral_unless(whole, failed))?;
    let target = target_of(shared, &attempt, &call, &statement);
    let ready = Ready { attempt, call, statement, server, target, turn: 0, whole };
    if ready.attempt.write {
        write(shared, ready, until).await
    } else {
        Ok(read(shared, ready).await)
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn call_of(attempt: &Attempt<'_>) -> Result<Call, Failed> {
    Call::of(attempt.body).map_err(undecodable)
}

fn undecodable(error: WireError) -> Failed {
    Failed {
        error: AttemptError::own(ErrorClass::Rejected, OwnCode::Undecodable, error.to_string()),
        verdict: Verdict::Neutral,
    }
}

/// The table of an insert with a token, and the token.
fn target_of(
    shared: &Shared,
    attempt: &Attempt<'_>,
    call: &Call,
    statement: &Statement,
) -> Option<(Target, OpId)> {
    let Verb::Insert(Insert { table: Some(table), .. }) = &statement.verb else { return None };
    Some((target::of(table, &call.header, &shared.settings), attempt.token?))
}

async fn read(shared: &Arc<Shared>, ready: Ready<'_>) -> Attempted {
    let reading = Reading::new(shared, ReadId::Own(shared.fence.id()), ready.attempt.board());
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
    let commutes = commutes(attempt);
    let neutral = |failed| neutral_unless(ready.whole, failed);
    let patience = until.min(Instant::now() + attempt.fence_patience);
    asking::pass(shared, || attempt.board(), waits(attempt), patience).await.map_err(neutral)?;
    let noted = match (attempt.doubt, &ready.target) {
        (Some(doubt), Some((target, token))) => {
            let (token, now, prefix) = (*token, attempt.now, shared.fence.prefix());
            let write = Doubted { target, token, doubt, now, prefix };
            let proof = tokens::prove(shared, &ready.server, &write, until).await;
            if let Some(ended) = by_proof(proof.map_err(neutral)?, target)? {
                return Ok(ended);
            }
            return repeated(shared, &ready, &write, commutes, until).await;
        }
        (Some(_), None) => return Err(ambiguous("it has no token")),
        (None, Some((target, _))) => {
            let noted = tokens::baseline(
                shared,
                || attempt.board(),
                &ready.server,
                target,
                (false, true),
                until,
            );
            let noted = noted.await;
            Some(noted.map_err(neutral)?)
        }
        (None, None) => None,
    };
    Ok(sent(shared, ready, noted, commutes, until).await)
}

/// Sends a write that may have been applied, which the server recognises then, until its rows are there; see
/// [`tokens`].
async fn repeated(
    shared: &Arc<Shared>,
    ready: &Ready<'_>,
    write: &Doubted<'_>,
    commutes: bool,
    until: Instant,
) -> Result<Attempted, Failed> {
    let mut turn = 0;
    loop {
        let again = Ready { turn, ..ready.clone() };
        let ended = sent(shared, again, None, commutes, until).await;
        turn += 1;
        if ended.result.is_err() || turn == TOKENS_MAX || had_no_rows(&ready.server, &ended) {
            return Ok(ended);
        }
        match tokens::arrived(shared, &ready.server, write, until).await {
            Ok(Arrived::Yes) => return Ok(ended),
            Ok(Arrived::No) => {
                let (database, table) = write.target;
                tracing::warn!(
                    backend = shared.settings.name,
                    table = format!("{database}.{table}"),
                    op_id = %write.token,
                    "the server remembers an insert without having its rows: it is sent under another token"
                );
            }
            Ok(Arrived::InViewsAlone) => return Err(in_views_alone(write.target)),
            Err(failed) => return Err(unanswered(&failed)),
        }
    }
}

/// Whether the server says that the insert which it took has no rows, so that none can be missing.
fn had_no_rows(server: &Server, ended: &Attempted) -> bool {
    let Ok(reply) = &ended.result else { return false };
    let (format, summary) = wire::parts(reply);
    let rows = (format == wire::SUMMARY).then(|| std::str::from_utf8(summary).ok());
    server.since(SUMMARY_SINCE) && rows.flatten().and_then(written_rows) == Some(0)
}

/// Sends a write and waits for its end. `noted` is what must be known to send it again; `None` for one that is
/// sent again, or has no token.
async fn sent(
    shared: &Arc<Shared>,
    ready: Ready<'_>,
    noted: Option<Noted>,
    commutes: bool,
    until: Instant,
) -> Attempted {
    let whole = ready.whole;
    let (streamed, time) = (ready.attempt.upload.is_some(), ready.attempt.timeout);
    let token = ready.target.as_ref().map(|(_, token)| *token);
    let place = shared.fence.enter(shared.fence.id_of(token), commutes);
    let departure = Departure::of(shared, &place);
    shared.tables.sending(token, place.id());
    let aboard = ready.attempt.board();
    let sending = request::sending(shared, ready.asking(), place.id(), shared.settings.timeout);
    let elsewhere = sending.asked.elsewhere.clone();
    let (sender, receiver) = oneshot::channel();
    let own = Arc::clone(shared);
    tokio::spawn(async move {
        // Who waits for it may have left.
        let ended = on_the_wire(&own, sending, (token, place), aboard).await;
        drop(sender.send(ended));
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
        Attempted::failed(
            elsewhere.silence(whole),
            AttemptError::own(ErrorClass::Unknown, OwnCode::Timeout, message),
        )
    });
    if let (Err(error), Some(noted)) = (&mut ended.result, noted) {
        note(error, noted);
    }
    ended
}

/// Makes ready to send queued writes; see [`Connector::prepare`].
///
/// [`Connector::prepare`]: fusebox_actors::connector::Connector::prepare
pub(crate) async fn prepare(
    shared: &Arc<Shared>,
    attempts: &[Attempt<'_>],
) -> Result<Vec<Bytes>, Failed> {
    let Some(time) = attempts.iter().map(|attempt| attempt.timeout).min() else {
        return Ok(Vec::new());
    };
    let until = Instant::now() + time;
    let whole = is_whole(shared, time);
    let neutral = |failed| neutral_unless(whole, failed);
    check_open(shared)?;
    shared.http.connect(time).await.map_err(neutral)?;
    let board = || attempts.first().map(Attempt::board).unwrap_or_default();
    let server = asking::server(shared, board, left(until)).await.map_err(neutral)?;
    let waits = if attempts.iter().all(commutes) { Waits::First } else { Waits::Any };
    asking::pass(shared, board, waits, until).await.map_err(neutral)?;
    let mut evidence = Vec::with_capacity(attempts.len());
    // One answer for all that go to one table: it is from before each of them.
    let mut of_table: HashMap<Target, Bytes> = HashMap::new();
    for attempt in attempts {
        let call = call_of(attempt)?;
        let statement = stated::of_call(&call);
        let Some((target, _)) = target_of(shared, attempt, &call, &statement) else {
            evidence.push(Bytes::new());
            continue;
        };
        if let Some(known) = of_table.get(&target) {
            evidence.push(known.clone());
            continue;
        }
        let noted =
            tokens::baseline(shared, || attempt.board(), &server, &target, (true, true), until)
                .await;
        let noted = noted.map_err(neutral)?.evidence;
        evidence.push(noted.clone());
        of_table.insert(target, noted);
    }
    Ok(evidence)
}

/// A write's way over the wire. If its end is not known, the fence is raised at once, in the hope that
/// nobody has to wait for it.
async fn on_the_wire(
    shared: &Arc<Shared>,
    sending: Sending,
    (token, mut place): (Option<OpId>, Place),
    aboard: Aboard,
) -> Attempted {
    let Exchanged { attempted, known } = exchange::exchange(shared, sending, None).await;
    aboard.ended(attempted.verdict);
    if attempted.result.as_ref().err().is_none_or(|error| error.doubt.is_none()) {
        shared.tables.settled(token, place.id());
    }
    if known {
        place.ended();
        return attempted;
    }
    drop(place);
    raise_soon(shared);
    attempted
}

impl<'a> Ready<'a> {
    fn asking(self) -> Asking<'a> {
        let Self { attempt, call, statement, server, turn, whole, .. } = self;
        Asking { attempt, call, statement, server, turn, whole }
    }
}
