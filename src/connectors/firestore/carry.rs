//! Writes on their way: one call, or many in one commit.
//!
//! A commit is all or nothing, so calls that share one share its fate. That is what makes replay fast, and
//! it must not let one call that is refused take the others with it:
//!
//! ```text
//!   calls of different lanes ──▶ a commit of up to 500 writes ──┬─ done: each has its answer
//!                                      ▲                        ├─ outcome unknown: each unknown
//!                                      │ halves, or what is     ├─ not executed: none of them
//!                                      │ left of them           └─ refused: read the markers
//!                                      └──────────────────────────────┘ there: that call was applied
//!                                                                       none: halve; one alone is refused
//! ```
//! **Tokens.** A call that is not absolute brings its marker, the document `fusebox_markers/<op_id>`, made
//! (not merely written) right before its own writes in the same commit. A second commit of the call is
//! refused on the marker, and applies nothing. Markers are per call and not per batch, so whatever batches
//! are made after a crash, no call is applied twice: nothing about batches needs to be remembered.
//!
//! **What a crash leaves:** a commit under way lands or does not. Its calls are still in the queue; the
//! absolute ones are sent again, the others are recognised by their markers. A marker whose call has left
//! the queue before `forget_tokens` was heard stays behind: it is litter, and harmless.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{Attempt, Attempted};
use fusebox_state::{ErrorClass, LaneId, Lanes, OpId, Verdict};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    CommitRequest, CommitResponse, Document, Precondition, Write, WriteResult,
    precondition::ConditionType, write::Operation,
};
use prost::Message;
use prost_types::Timestamp;
use tokio::time::{Instant, timeout_at};
use tonic::Request;

use super::{
    Shared,
    channel::Carrier,
    client::{Stub, closed},
    names::Root,
    outcome::{Behalf, Failed},
    plan::{BYTES_MAX, WRITES_MAX},
    wire::{self, Answer, Call, Commit, Committed, Op, Reply},
};

/// The collection of the markers.
const MARKERS: &str = "fusebox_markers";
/// How much longer than its full time a caller waits, so that the server itself says what became of it.
const GRACE: Duration = Duration::from_millis(25);

/// The path of a token's marker.
pub(super) fn marker(token: OpId) -> String {
    format!("{MARKERS}/{token}")
}

/// A call's writes.
pub(super) struct Cargo {
    lanes: Lanes,
    token: Option<OpId>,
    commit: Commit,
    transaction: Bytes,
    caller: String,

    bytes: usize,
}

impl Cargo {
    /// The writes of an attempt.
    ///
    /// # Errors
    /// Its body is none of this kind's.
    pub(super) fn of(attempt: &Attempt<'_>) -> Result<Self, Failed> {
        let wrong = |why: String| {
            Failed::own(Verdict::Neutral, ErrorClass::Rejected, "malformed_call", why)
        };
        let call: Call =
            wire::decode(attempt.body).map_err(|why| wrong(format!("the call {why}")))?;
        let Some(Op::Commit(commit)) = call.op else {
            return Err(wrong("the call is no write".to_owned()));
        };
        Ok(Self {
            lanes: attempt.lanes.clone(),
            token: attempt.token,
            commit,
            transaction: call.transaction,
            caller: call.token,

            bytes: attempt.body.len(),
        })
    }

    /// Its writes in a commit, with its marker.
    pub(super) fn writes(&self) -> usize {
        self.commit.writes.len() + usize::from(self.token.is_some())
    }

    fn load(&self, root: &Root, into: &mut Vec<Write>) {
        if let Some(token) = self.token {
            let document = Document { name: root.name(&marker(token)), ..Document::default() };
            into.push(Write {
                operation: Some(Operation::Update(document)),
                current_document: Some(Precondition {
                    condition_type: Some(ConditionType::Exists(false)),
                }),
                ..Write::default()
            });
        }
        into.extend(self.commit.writes.iter().cloned().map(|mut write| {
            root.complete_write(&mut write);
            write
        }));
    }

    /// The reply that its results make.
    fn answer(&self, results: Vec<WriteResult>, time: Option<Timestamp>) -> Attempted {
        let answer = if self.commit.many {
            Answer::Committed(Committed { results, time })
        } else {
            let mut result = results.into_iter().next().unwrap_or_default();
            result.update_time = result.update_time.or(time);
            Answer::Written(result)
        };
        Attempted::answered(Reply::encoded(answer))
    }

    /// It was applied at that time, by an attempt whose answer nobody heard.
    fn applied_before(&self, time: Option<Timestamp>) -> Attempted {
        let result = WriteResult { update_time: time, ..WriteResult::default() };
        self.answer(vec![result; self.commit.writes.len()], time)
    }

    fn behalf(&self) -> Behalf {
        Behalf { caller: !self.caller.is_empty(), transaction: !self.transaction.is_empty() }
    }
}

impl Shared {
    /// Makes ready to send these calls: whatever could keep them from being sent is tried now.
    pub(super) async fn ready(&self, cargos: &[Cargo], time: Duration) -> Result<(), Failed> {
        let connected = async {
            for cargo in cargos {
                self.client.ready_to_write(&cargo.caller, number(&cargo.lanes)).await?;
            }
            Ok(())
        };
        let ended = tokio::time::timeout(time, connected).await;
        ended.unwrap_or_else(|_| {
            let message = format!("no connection within {time:?}");
            Err(Failed::own(Verdict::Failure, ErrorClass::NotExecuted, "connect", message))
        })
    }

    /// Carries calls of different lanes; how each ended, in their order.
    pub(super) async fn carry(&self, cargos: &[Cargo], time: Duration) -> Vec<Attempted> {
        let deadline = Instant::now() + time;
        let mut ends: Vec<Option<Attempted>> = cargos.iter().map(|_| None).collect();
        let mut work = self.packs(cargos, &mut ends);
        let mut first = true;
        while let Some(pack) = work.pop_front() {
            let aboard: Vec<&Cargo> = pack.iter().filter_map(|at| cargos.get(*at)).collect();
            let sent = if first || Instant::now() < deadline {
                self.send(&aboard, deadline, time).await
            } else {
                let message = "the time was used up by the calls before it";
                Err(Failed::own(Verdict::Neutral, ErrorClass::NotExecuted, "batch", message))
            };
            first = false;
            let mut end = |at: usize, ended: Attempted| {
                if let Some(slot) = ends.get_mut(at) {
                    *slot = Some(ended);
                }
            };
            let failed = match sent {
                Ok(response) => {
                    for (at, ended) in pack.iter().zip(distribute(&aboard, response)) {
                        end(*at, ended);
                    }
                    continue;
                }
                Err(failed) => failed,
            };
            if failed.error.class != ErrorClass::Rejected {
                for at in &pack {
                    end(*at, failed.clone().ended());
                }
                continue;
            }
            let applied = match self.markers(&aboard, deadline).await {
                Ok(applied) => applied,
                Err(unread) => {
                    // What was refused was not applied now, but perhaps before.
                    for (at, cargo) in pack.iter().zip(&aboard) {
                        let known = cargo.token.is_none() && pack.len() == 1;
                        end(*at, if known { failed.clone() } else { unread.clone() }.ended());
                    }
                    continue;
                }
            };
            let mut left = Vec::new();
            for ((at, cargo), time) in pack.iter().zip(&aboard).zip(&applied) {
                match time {
                    Some(time) => end(*at, cargo.applied_before(Some(*time))),
                    None => left.push(*at),
                }
            }
            match left.as_slice() {
                [] => {}
                [only] if pack.len() == 1 => end(*only, failed.ended()),
                // Those that were applied already were in the way of the others.
                rest if rest.len() < pack.len() => work.push_front(rest.to_vec()),
                rest => {
                    let (one, other) = rest.split_at(rest.len() / 2);
                    work.push_front(other.to_vec());
                    work.push_front(one.to_vec());
                }
            }
        }
        ends.into_iter().map(|end| end.unwrap_or_else(|| closed().ended())).collect()
    }

    /// The calls that fit into a commit each. With others, one whose lanes are in doubt is left out: it
    /// must not hold them up.
    fn packs(&self, cargos: &[Cargo], ends: &mut [Option<Attempted>]) -> VecDeque<Vec<usize>> {
        let mut packs: VecDeque<Vec<usize>> = VecDeque::new();
        let (mut writes, mut bytes) = (0, 0);
        for (at, (cargo, end)) in cargos.iter().zip(ends).enumerate() {
            if cargos.len() > 1 && self.fence.in_doubt_until(&cargo.lanes).is_some() {
                *end = Some(fenced().ended());
                continue;
            }
            writes += cargo.writes();
            bytes += cargo.bytes;
            match packs.back_mut() {
                Some(pack) if writes <= WRITES_MAX && bytes <= BYTES_MAX => pack.push(at),
                _ => {
                    packs.push_back(vec![at]);
                    (writes, bytes) = (cargo.writes(), cargo.bytes);
                }
            }
        }
        packs
    }

    /// Sends one commit and waits for its answer until `deadline`. It stays on the wire after that, until
    /// the backend's own timeout.
    async fn send(
        &self,
        aboard: &[&Cargo],
        deadline: Instant,
        time: Duration,
    ) -> Result<CommitResponse, Failed> {
        let lanes = match aboard {
            [only] => only.lanes.clone(),
            _ if aboard.iter().any(|cargo| cargo.lanes.is_all()) => Lanes::All,
            _ => Lanes::new(aboard.iter().flat_map(|cargo| cargo.lanes.as_slice()).copied()),
        };
        if !self.fence.pass(&lanes, deadline).await {
            return Err(fenced());
        }
        let limit = self.client.settings.timeout;
        let whole = time + GRACE >= limit;
        let verdict = if whole { Verdict::Failure } else { Verdict::Neutral };
        let ready = timeout_at(deadline, self.loaded(aboard, &lanes)).await;
        let (mut stub, mut request, carrier) = ready.map_err(|_| {
            let message = "no credentials within the call's time";
            Failed::own(verdict, ErrorClass::NotExecuted, "credentials", message)
        })??;
        request.set_timeout(limit);
        let behalf = aboard.first().map(|cargo| cargo.behalf()).unwrap_or_default();
        let expiry = Instant::now() + limit;
        let (wait, pass) = self.fence.enter(lanes, limit);
        let client = Arc::clone(&self.client);
        let under_way = tokio::spawn(async move {
            let mut closes = client.closed.subscribe();
            let answered = tokio::select! {
                answered = timeout_at(expiry + GRACE, stub.commit(request)) => answered.ok(),
                _ = closes.wait_for(|closed| *closed) => None,
            };
            let status = match answered {
                Some(Ok(response)) => {
                    pass.answered();
                    return Ok(response.into_inner());
                }
                Some(Err(status)) => status,
                None => {
                    let sent = carrier.reset().await;
                    if !sent {
                        pass.answered();
                    }
                    return Err(given_up(sent, *client.closed.borrow(), limit));
                }
            };
            let failed = client.failed(&status, behalf).await;
            if failed.error.doubt.is_none() {
                pass.answered();
            }
            Err(failed)
        });
        let patience = if whole { deadline + GRACE } else { deadline };
        let ended = timeout_at(patience, under_way).await;
        drop(wait);
        match ended {
            Ok(Ok(Err(failed))) => {
                if failed.error.retry_after.is_some() {
                    self.pace.exhausted(Instant::now());
                }
                Err(failed)
            }
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Err(_)) => {
                let message = "the request ended unheard";
                Err(Failed::own(Verdict::Neutral, ErrorClass::Unknown, "reset", message))
            }
            Err(_) => {
                let message = format!("no answer within {time:?}");
                Err(Failed::own(verdict, ErrorClass::Unknown, "timeout", message))
            }
        }
    }

    async fn loaded(
        &self,
        aboard: &[&Cargo],
        lanes: &Lanes,
    ) -> Result<(Stub, Request<CommitRequest>, Carrier), Failed> {
        let root = self.client.root().await?;
        let mut writes = Vec::with_capacity(aboard.iter().map(|cargo| cargo.writes()).sum());
        for cargo in aboard {
            cargo.load(root, &mut writes);
        }
        let first = aboard.first();
        let message = CommitRequest {
            database: root.database.clone(),
            writes,
            transaction: first.map(|cargo| cargo.transaction.clone()).unwrap_or_default(),
        };
        debug_assert!(message.encoded_len() <= 11 << 20, "packs are bounded");
        let caller = first.map_or("", |cargo| &cargo.caller);
        self.client.write_request(message, caller, number(lanes)).await
    }

    /// When the calls' markers were made; `None` for one that bears none or whose marker is not there.
    async fn markers(
        &self,
        aboard: &[&Cargo],
        deadline: Instant,
    ) -> Result<Vec<Option<Timestamp>>, Failed> {
        let tokens: Vec<Option<OpId>> = aboard.iter().map(|cargo| cargo.token).collect();
        if tokens.iter().all(Option::is_none) {
            return Ok(vec![None; aboard.len()]);
        }
        let read = async {
            let root = self.client.root().await?;
            let name = |token: OpId| root.name(&marker(token));
            let names = tokens.iter().flatten().copied().map(name).collect();
            let found = self.client.get(names, &Bytes::new(), "").await?;
            let made = |token: OpId| {
                found.get(&name(token)).map(|marker| marker.update_time.unwrap_or_default())
            };
            Ok::<_, Failed>(tokens.iter().map(|token| token.and_then(made)).collect())
        };
        // They are asked for after the commit's answer: a little more time does no harm.
        let ended = timeout_at(deadline + GRACE * 8, read).await;
        let unread = |verdict, why: &str| {
            let message =
                format!("the commit was refused, and its markers could not be read: {why}");
            Failed::own(verdict, ErrorClass::Unknown, "markers", message)
        };
        match ended {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(failed)) => Err(unread(failed.verdict, &failed.error.to_string())),
            Err(_) => Err(unread(Verdict::Neutral, "no answer in time")),
        }
    }

    /// Deletes markers, best effort.
    pub(super) async fn forget(&self, tokens: &[OpId]) -> Result<(), Failed> {
        let root = self.client.root().await?;
        let writes = tokens.iter().map(|token| Write {
            operation: Some(Operation::Delete(root.name(&marker(*token)))),
            ..Write::default()
        });
        let message = CommitRequest {
            database: root.database.clone(),
            writes: writes.collect(),
            transaction: Bytes::new(),
        };
        // It may land when it will: nobody asks for such a marker again.
        let lane =
            tokens.first().map_or(0, |token| LaneId::of(b"", token.to_string().as_bytes()).0);
        let (mut stub, mut request, _) = self.client.write_request(message, "", lane).await?;
        let limit = self.client.settings.timeout;
        request.set_timeout(limit);
        match timeout_at(Instant::now() + limit, stub.commit(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(self.client.failed(&status, Behalf::default()).await),
            Err(_) => {
                let message = format!("no answer within {limit:?}");
                Err(Failed::own(Verdict::Failure, ErrorClass::Unknown, "timeout", message))
            }
        }
    }
}

/// The calls' own answers out of their commit's.
fn distribute(aboard: &[&Cargo], response: CommitResponse) -> Vec<Attempted> {
    let CommitResponse { write_results, commit_time } = response;
    let mut results = write_results.into_iter();
    aboard
        .iter()
        .map(|cargo| {
            if cargo.token.is_some() {
                results.next();
            }
            let own = results.by_ref().take(cargo.commit.writes.len()).collect();
            cargo.answer(own, commit_time)
        })
        .collect()
}

/// Which of the connections for writes carries what is in these lanes.
fn number(lanes: &Lanes) -> u64 {
    if lanes.is_all() { 0 } else { lanes.as_slice().first().map_or(0, |lane| lane.0) }
}

/// No answer came, and the connection that took the commit is closed; `sent` is whether one took it.
fn given_up(sent: bool, closed: bool, limit: Duration) -> Failed {
    let class = if sent { ErrorClass::Unknown } else { ErrorClass::NotExecuted };
    if closed {
        return Failed::own(Verdict::Neutral, class, "reset", "the connection was closed");
    }
    if sent {
        return Failed::own(
            Verdict::Failure,
            class,
            "timeout",
            format!("no answer within {limit:?}"),
        );
    }
    let message = format!("no connection took it within {limit:?}");
    Failed::own(Verdict::Failure, class, "connect", message)
}

fn fenced() -> Failed {
    let message = "an earlier write whose outcome is not known could still land";
    Failed::own(Verdict::Neutral, ErrorClass::NotExecuted, "fence", message)
}
