//! Writes on their way: one call, or many in one commit.
//!
//! A commit is all or nothing, so calls that share one share its fate. That is what makes replay fast, and
//! it must not let one call that fails take the others with it:
//!
//! ```text
//!   calls of different lanes ──▶ a commit ──┬─ done: each has its answer
//!                                   ▲       ├─ outcome unknown: each unknown; the next commits are smaller
//!                                   │       ├─ no connection, quota, credentials, no Firestore: none of them, nor what is left
//!                       halves, or  │       └─ refused, too large, aborted, forbidden
//!                      what is left └──────────┴─ read the markers · there: that call was applied, or it is
//!                                                 another's · none: halve; one alone ends so
//! ```
//! **A commit that failed as a whole is never sent again as it was.** What is proven not applied is halved at
//! once, down to one call. After an unknown outcome the calls come back from the queue, and then go in
//! smaller commits apart from others: see [`Sizes`](crate::kinds::firestore::protocol::size::Sizes), which also learns
//! how many calls and bytes go through.
//!
//! **Tokens.** A call that is not absolute brings its [marker](crate::kinds::firestore::protocol::cargo). A second
//! commit of the call is refused on the marker, and applies nothing. Markers are per call and not per batch, so
//! whatever batches are made after a crash, no call is applied twice: nothing about batches needs to be remembered. A
//! marker is deleted by [`forget`](Shared::forget) alone, which is called only if every attempt was answered.
//!
//! **What a crash leaves:** a commit under way lands or does not. Its calls are still in the queue; the
//! absolute ones are sent again, the others are recognised by their markers. A marker whose call has left
//! the queue before `forget_tokens` was heard stays behind: it is litter, and harmless.

use std::{cmp::Reverse, collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{Aboard, Attempted, ErrorCode, Fate, OwnCode};
use fusebox_state::{ErrorClass, LaneId, Lanes, OpId, Verdict};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    CommitRequest, CommitResponse, Write, write::Operation,
};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Request};

use super::{
    client::{Client, Stub, closed},
    departure::Departure,
    fence,
    gathering::Gathering,
    reading::taken_away,
    shared::Shared,
};
use crate::{
    kinds::firestore::protocol::{
        cargo::{Cargo, Loaded, Mark, marker, number},
        outcome::{Behalf, Failed},
        plan::WRITES_MAX,
    },
    net::grpc::Carrier,
};

/// How much longer than its full time a caller waits, so that the server itself says what became of it.
const GRACE: Duration = Duration::from_millis(25);

/// A call on its way: the receiver of its end, and what is sent of it.
struct Berth<'a> {
    at: usize,
    cargo: &'a Cargo,
    loaded: Loaded,
}

/// Until when calls may be on their way, and until when they wait for the fence.
#[derive(Clone, Copy)]
struct Until {
    deadline: Instant,
    fence: Instant,
}

/// A commit on its way, whoever waits for it.
struct Commit {
    client: Arc<Client>,
    stub: Stub,
    request: Request<CommitRequest>,
    carrier: Carrier,
    lane: u64,
    behalf: Behalf,
    pass: fence::Pass,
    aboard: Aboard,
    departure: Departure,
}

impl Commit {
    /// Sends it once there is a connection, and waits for its answer until the backend's `timeout` has passed.
    async fn sent(self) -> Result<CommitResponse, Failed> {
        let Self { client, mut stub, request, carrier, lane, behalf, pass, aboard, departure } =
            self;
        let limit = client.settings.timeout;
        let expiry = Instant::now() + limit;
        let sending = async {
            client.connect_to_write(lane).await?;
            if !departure.departs() || !aboard.departs() {
                return Err(left());
            }
            match stub.commit(request).await {
                Ok(response) => Ok::<_, Failed>(response),
                Err(status) => Err(client.failed(&status, behalf).await),
            }
        };
        let answered = tokio::select! {
            answered = timeout_at(expiry + GRACE, sending) => answered.ok(),
            () = client.closed.cancelled() => None,
        };
        let failed = match answered {
            Some(Ok(response)) => match aboard.fate() {
                Fate::Told => {
                    pass.answered();
                    aboard.ended(Verdict::Success);
                    return Ok(response.into_inner());
                }
                // As if the answer had never come.
                Fate::Lost => {
                    carrier.reset().await;
                    taken_away(OwnCode::Reset, Fate::LOST)
                }
                Fate::Late => {
                    pass.answered();
                    sleep_until(expiry).await;
                    taken_away(OwnCode::Timeout, Fate::LATE)
                }
            },
            Some(Err(failed)) => {
                if failed.error.doubt.is_none() {
                    pass.answered();
                }
                failed
            }
            None => {
                let sent = carrier.reset().await;
                if !sent {
                    pass.answered();
                }
                given_up(sent, client.closed.is_cancelled(), limit)
            }
        };
        aboard.ended(failed.verdict);
        Err(failed)
    }
}

/// Who waits for a commit. If they leave before it has departed, it is not sent, and no later write waits for it.
struct Awaited {
    wait: Option<fence::Wait>,
    departure: Departure,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(wait) = self.wait.take()
            && self.departure.stays()
        {
            wait.unsent();
        }
    }
}

/// What follows a commit that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Its calls end as it did.
    End,
    /// So do all others: they would fail alike.
    EndAll,
    /// It is proven that nothing was applied by it: each of its calls may still end in its own way.
    Sift,
}

impl After {
    fn of(failed: &Failed) -> Self {
        let error = &failed.error;
        match error.class {
            ErrorClass::Rejected | ErrorClass::BlockedObject => Self::Sift,
            ErrorClass::NotExecuted if failed.status == Some(Code::Aborted) => Self::Sift,
            ErrorClass::NotExecuted if error.is(OwnCode::Fence) || error.is(OwnCode::Batch) => {
                Self::End
            }
            ErrorClass::BlockedServer | ErrorClass::NotExecuted => Self::EndAll,
            ErrorClass::Unknown | ErrorClass::Ambiguous | ErrorClass::Conflict => Self::End,
        }
    }
}

impl Shared {
    /// Makes ready to send these calls: whatever could keep them from being sent is tried now.
    pub(crate) async fn ready(&self, cargos: &[Cargo], time: Duration) -> Result<(), Failed> {
        let connected = async {
            for cargo in cargos {
                self.client.ready_to_write(&cargo.caller, number(&cargo.lanes)).await?;
            }
            Ok(())
        };
        let ended = tokio::time::timeout(time, connected).await;
        ended.unwrap_or_else(|_| {
            let message = format!("no connection within {time:?}");
            Err(Failed::own(Verdict::Failure, ErrorClass::NotExecuted, OwnCode::Connect, message))
        })
    }

    /// Carries calls of different lanes; how each ended, in their order. Each commit of them is `aboard` until it is
    /// answered, or `timeout` has passed.
    pub(crate) async fn carry(
        &self,
        cargos: &[Cargo],
        time: Duration,
        fence_patience: Duration,
        aboard: Aboard,
    ) -> Vec<Attempted> {
        let now = Instant::now();
        let deadline = now + time;
        let until = Until { deadline, fence: deadline.min(now + fence_patience) };
        let mut ends: Vec<Option<Attempted>> = cargos.iter().map(|_| None).collect();
        let root = timeout_at(deadline, self.client.root()).await;
        let root = root.unwrap_or_else(|_| Err(no_credentials(Verdict::Failure)));
        let mut work = match root {
            Ok(root) => {
                let aboard = cargos.iter().enumerate().map(|(at, cargo)| Berth {
                    at,
                    cargo,
                    loaded: cargo.loaded(root),
                });
                self.packs(aboard.collect(), &mut ends)
            }
            Err(failed) => return cargos.iter().map(|_| failed.clone().ended()).collect(),
        };
        let mut end = |at: usize, ended: Attempted| {
            if let Some(slot) = ends.get_mut(at) {
                *slot = Some(ended);
            }
        };
        let (mut longest, mut hopeless) = ((Duration::ZERO, 1), None::<Failed>);
        while let Some(pack) = work.pop_front() {
            let began = Instant::now();
            let count = u32::try_from(pack.len()).unwrap_or(u32::MAX);
            // What might take too long, as one before it did, is not begun: it would end in doubt.
            let (took, of) = longest;
            let late = began + took.saturating_mul(count.min(of)) / of > deadline;
            let sent = match &hopeless {
                Some(failed) => Err(failed.clone()),
                None if late && !took.is_zero() => {
                    self.sizes.unsent(&numbers(&pack));
                    Err(out_of_time())
                }
                None => match self.send(&pack, until, aboard.clone()).await {
                    Err(failed) => Err(self.judged(failed, deadline).await),
                    answered => answered,
                },
            };
            longest = longest.max((began.elapsed(), count));
            let failed = match sent {
                Ok(response) => {
                    distribute(&pack, response, &mut end);
                    continue;
                }
                Err(failed) => failed,
            };
            match After::of(&failed) {
                After::Sift => {}
                after => {
                    for it in &pack {
                        end(it.at, failed.clone().ended());
                    }
                    if after == After::EndAll && hopeless.is_none() {
                        hopeless = Some(failed);
                    }
                    continue;
                }
            }
            let left = self.sifted(pack, &failed, deadline, &mut end).await;
            for half in left.into_iter().rev() {
                work.push_front(half);
            }
        }
        ends.into_iter().map(|end| end.unwrap_or_else(|| closed().ended())).collect()
    }

    /// How a commit has failed that was sent. What does not implement it may be no Firestore: then every other one would
    /// end so, too.
    pub(crate) async fn judged(&self, failed: Failed, deadline: Instant) -> Failed {
        if failed.status != Some(Code::Unimplemented) {
            return failed;
        }
        match timeout_at(deadline + GRACE * 8, self.client.probe()).await {
            Ok(Ok(())) => failed,
            Ok(Err(none)) if none.error.class == ErrorClass::BlockedServer => none,
            Ok(Err(other)) => unread(other.verdict, &other.error.to_string()),
            Err(_) => unread(Verdict::Neutral, "no answer in time"),
        }
    }

    /// What is left to be sent of a commit that was refused, once those have ended that its markers tell of.
    async fn sifted<'a>(
        &self,
        pack: Vec<Berth<'a>>,
        failed: &Failed,
        deadline: Instant,
        end: &mut impl FnMut(usize, Attempted),
    ) -> Vec<Vec<Berth<'a>>> {
        let together = pack.len();
        let marks = match self.markers(&pack, deadline).await {
            Ok(marks) => marks,
            Err(unread) => {
                for it in &pack {
                    // What was refused was not applied now, but perhaps before.
                    let known = it.cargo.token.is_none() && together == 1;
                    end(it.at, if known { failed.clone() } else { unread.clone() }.ended());
                }
                return Vec::new();
            }
        };
        let mut left = Vec::with_capacity(together);
        for (it, mark) in pack.into_iter().zip(marks) {
            match mark {
                Some(mark) => end(it.at, it.cargo.recognised(&mark)),
                None => left.push(it),
            }
        }
        match left.len() {
            0 => Vec::new(),
            1 if together == 1 => {
                for it in &left {
                    end(it.at, failed.clone().ended());
                }
                Vec::new()
            }
            // Those that were applied already were in the way of the others.
            some if some < together => vec![left],
            all => {
                let other = left.split_off(all / 2);
                vec![left, other]
            }
        }
    }

    /// The calls that fit into a commit each. With others, one whose lanes are in doubt is left out: it
    /// must not hold them up. Suspects go apart.
    fn packs<'a>(
        &self,
        mut cargos: Vec<Berth<'a>>,
        ends: &mut [Option<Attempted>],
    ) -> VecDeque<Vec<Berth<'a>>> {
        let together = cargos.len();
        let bounds = self.sizes.bounds();
        let most = |it: &Berth<'_>| self.sizes.suspect(it.cargo.lane());
        cargos.sort_by_key(|it| Reverse(most(it).unwrap_or(usize::MAX)));
        let mut packs: VecDeque<Vec<Berth<'a>>> = VecDeque::new();
        let (mut writes, mut bytes, mut suspects) = (0, 0, None);
        for it in cargos {
            if together > 1 && self.fence.in_doubt_until(&it.cargo.lanes).is_some() {
                if let Some(end) = ends.get_mut(it.at) {
                    *end = Some(fenced().ended());
                }
                continue;
            }
            let (own, own_bytes, most) = (it.loaded.writes.len(), it.loaded.bytes, most(&it));
            writes += own;
            bytes += own_bytes;
            match packs.back_mut() {
                Some(pack)
                    if writes <= WRITES_MAX
                        && bytes <= bounds.bytes
                        && pack.len() < bounds.calls.min(most.unwrap_or(usize::MAX))
                        && most == suspects =>
                {
                    pack.push(it);
                }
                _ => {
                    packs.push_back(vec![it]);
                    (writes, bytes, suspects) = (own, own_bytes, most);
                }
            }
        }
        packs
    }

    /// Sends one commit and waits for its answer until `deadline`. It stays on the wire after that, until
    /// the backend's own timeout.
    async fn send(
        &self,
        pack: &[Berth<'_>],
        Until { deadline, fence }: Until,
        aboard: Aboard,
    ) -> Result<CommitResponse, Failed> {
        let lanes = match pack {
            [only] => only.cargo.lanes.clone(),
            _ if pack.iter().any(|it| it.cargo.lanes.is_all()) => Lanes::All,
            _ => Lanes::new(pack.iter().flat_map(|it| it.cargo.lanes.as_slice()).copied()),
        };
        // A late answer could end the doubt any time, but seldom does.
        let is_late = |end: Instant| fence < deadline && end > fence;
        if self.fence.in_doubt_until(&lanes).is_some_and(is_late)
            || !self.fence.pass(&lanes, fence).await
        {
            return Err(fenced());
        }
        let limit = self.client.settings.timeout;
        let time = deadline.saturating_duration_since(Instant::now());
        let whole = time + GRACE >= limit;
        let verdict = if whole { Verdict::Failure } else { Verdict::Neutral };
        let ready = timeout_at(deadline, self.loaded(pack, &lanes)).await;
        let (stub, mut request, carrier) = ready.map_err(|_| no_credentials(verdict))??;
        request.set_timeout(limit);
        let behalf = pack.first().map(|it| it.cargo.behalf()).unwrap_or_default();
        let (client, lane) = (Arc::clone(&self.client), number(&lanes));
        let (wait, pass) = self.fence.enter(lanes, limit);
        let departure = Departure::default();
        let mut awaited = Awaited { wait: Some(wait), departure: departure.clone() };
        let commit =
            Commit { client, stub, request, carrier, lane, behalf, pass, aboard, departure };
        let under_way = self.client.home.spawn(commit.sent());
        let patience = if whole { deadline + GRACE } else { deadline };
        let ended = timeout_at(patience, under_way).await;
        let stays = ended.is_err() && awaited.departure.stays();
        if !stays {
            awaited.wait = None;
        }
        drop(awaited);
        let ended = match ended {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => {
                let message = "the request ended without an answer";
                Err(Failed::own(Verdict::Neutral, ErrorClass::Unknown, OwnCode::Reset, message))
            }
            Err(_) if stays => {
                let message = format!("no connection within {time:?}");
                Err(Failed::own(verdict, ErrorClass::NotExecuted, OwnCode::Connect, message))
            }
            Err(_) => {
                let message = format!("no answer within {time:?}");
                Err(Failed::own(verdict, ErrorClass::Unknown, OwnCode::Timeout, message))
            }
        };
        self.learn(pack, ended.as_ref().err());
        ended
    }

    /// Learns from how a commit ended.
    fn learn(&self, pack: &[Berth<'_>], failed: Option<&Failed>) {
        let lanes = numbers(pack);
        let bytes = pack.iter().map(|it| it.loaded.bytes).sum();
        let Some(Failed { error, too_large, .. }) = failed else {
            return self.sizes.answered(&lanes, bytes, true);
        };
        if let Some(too_large) = too_large {
            self.sizes.too_large(too_large.limit, lanes.len(), bytes);
        } else if error.retry_after.is_some() {
            self.pace.exhausted(Instant::now());
        }
        match error.class {
            ErrorClass::Unknown => self.sizes.lost(&lanes, bytes),
            ErrorClass::NotExecuted | ErrorClass::BlockedServer => {}
            // Of several, one alone is to blame.
            _ if lanes.len() > 1 => {}
            _ => self.sizes.answered(&lanes, bytes, false),
        }
    }

    async fn loaded(
        &self,
        pack: &[Berth<'_>],
        lanes: &Lanes,
    ) -> Result<(Stub, Request<CommitRequest>, Carrier), Failed> {
        let root = self.client.root().await?;
        let first = pack.first().map(|it| it.cargo);
        let message = CommitRequest {
            database: root.database.clone(),
            writes: pack.iter().flat_map(|it| it.loaded.writes.iter().cloned()).collect(),
            transaction: first.map(|cargo| cargo.transaction.clone()).unwrap_or_default(),
        };
        let caller = first.map_or("", |cargo| &cargo.caller);
        self.client.write_request(message, caller, number(lanes)).await
    }

    /// What the calls' markers say; `None` for one that has none or whose marker is not there.
    async fn markers(
        &self,
        pack: &[Berth<'_>],
        deadline: Instant,
    ) -> Result<Vec<Option<Mark>>, Failed> {
        let tokens: Vec<Option<OpId>> = pack.iter().map(|it| it.cargo.token).collect();
        if tokens.iter().all(Option::is_none) {
            return Ok(vec![None; pack.len()]);
        }
        let read = async {
            let root = self.client.root().await?;
            let name = |token: OpId| root.name(&marker(token));
            let names = tokens.iter().flatten().copied().map(name).collect();
            let gathering = &mut Gathering::default();
            let found = self.client.get(names, &Bytes::new(), "", gathering).await?;
            let mark = |token: OpId| found.get(&name(token)).map(Mark::of);
            Ok::<_, Failed>(tokens.iter().map(|token| token.and_then(mark)).collect())
        };
        // They are asked for after the commit's answer: a little more time does no harm.
        let ended = timeout_at(deadline + GRACE * 8, read).await;
        match ended {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(failed)) => Err(unread(failed.verdict, &failed.error.to_string())),
            Err(_) => Err(unread(Verdict::Neutral, "no answer in time")),
        }
    }

    /// Deletes markers, best effort.
    pub(crate) async fn forget(&self, tokens: &[OpId]) -> Result<(), Failed> {
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
                Err(Failed::own(Verdict::Failure, ErrorClass::Unknown, OwnCode::Timeout, message))
            }
        }
    }
}

/// The numbers of the calls' lanes.
fn numbers(pack: &[Berth<'_>]) -> Vec<u64> {
    pack.iter().map(|it| it.cargo.lane()).collect()
}

/// Ends the calls of a commit that was applied with their own answers out of its.
fn distribute(
    pack: &[Berth<'_>],
    response: CommitResponse,
    end: &mut impl FnMut(usize, Attempted),
) {
    let CommitResponse { write_results, commit_time } = response;
    let mut results = write_results.into_iter();
    for it in pack {
        end(it.at, it.cargo.take(&mut results, commit_time));
    }
}

/// This attempt applied nothing; whether an earlier one did is as it was.
fn unread(verdict: Verdict, why: &str) -> Failed {
    let message = format!("the commit was refused, and no markers could be read: {why}");
    Failed::own(verdict, ErrorClass::NotExecuted, ErrorCode::OfKind("markers"), message)
}

fn no_credentials(verdict: Verdict) -> Failed {
    let message = "no credentials before the call's deadline";
    Failed::own(verdict, ErrorClass::NotExecuted, OwnCode::Credentials, message)
}

/// Whoever waited for it left before there was a connection.
fn left() -> Failed {
    let message = "its caller left before there was a connection";
    Failed::own(Verdict::Neutral, ErrorClass::NotExecuted, OwnCode::Connect, message)
}

fn out_of_time() -> Failed {
    let message = "the time was used up by the calls before it";
    Failed::own(Verdict::Neutral, ErrorClass::NotExecuted, OwnCode::Batch, message)
}

/// No answer came, and the connection that took the commit is closed; `sent` is whether one took it.
fn given_up(sent: bool, closed: bool, limit: Duration) -> Failed {
    let class = if sent { ErrorClass::Unknown } else { ErrorClass::NotExecuted };
    if closed {
        return Failed::own(Verdict::Neutral, class, OwnCode::Reset, "the connection was closed");
    }
    if sent {
        return Failed::own(
            Verdict::Failure,
            class,
            OwnCode::Timeout,
            format!("no answer within {limit:?}"),
        );
    }
    let message = format!("no connection was free within {limit:?}");
    Failed::own(Verdict::Failure, class, OwnCode::Connect, message)
}

fn fenced() -> Failed {
    let message = "an earlier write whose outcome is not known could still be applied";
    Failed::own(Verdict::Neutral, ErrorClass::NotExecuted, OwnCode::Fence, message)
}
