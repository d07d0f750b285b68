//! One attempt of queued calls: permit and place, the note that they are sent, their bodies, the wire.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fusebox_state::{
    ErrorClass, OpId, SpanRef, UnixMillis, Verdict,
    breaker::State,
    chaos::{Class, Seen},
    queue::Entry,
    store::{CallStore, StoreError},
};
use tokio::sync::oneshot;

use super::job::{Ended, Job, NotSent};
use crate::{
    backend_shared::BackendShared,
    chaos::Acting,
    clock::Reading,
    connector::{
        Answer, Attempt, AttemptError, Attempted, Doubt, HEAD_MAX, Origin, OwnCode, QueuedWrite,
        SharedConnector, Tail, Upload,
    },
    metrics::Exemplar,
    passage::{Passage, Progressing, REPLAY, Waiting},
    queue::Queue,
    trace::{self, CallOrigin, PassedOn, Step, StepKind, TraceSubject, Traced},
};

/// How long a marker lives: a call that was first sent longer ago may have been applied unrecognised.
const MARKER_LIFE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// What of a call goes on the wire.
struct Cargo {
    body: Bytes,
    upload: Option<Upload>,
    /// What is behind it, if it must know.
    following: Vec<QueuedWrite>,
    spans: Option<Spans>,
}

/// One attempt of queued calls. They are noted as sent once it is certain that they will be.
pub(super) async fn attempt(
    shared: &Arc<BackendShared>,
    connector: &SharedConnector,
    jobs: Vec<Job>,
) -> Vec<Ended> {
    let circuit = &*shared.circuit;
    let began = circuit.clock.read();
    // A batch takes longer than a call.
    let passage = Passage::begin(&shared.circuit, REPLAY, began, false)
        .map(|it| it.timed(false).writing(true));
    let Ok(passage) = passage else {
        return jobs.into_iter().map(|job| job.ends(Err(NotSent::Barred))).collect();
    };
    let waiting = Waiting::for_it(passage);
    let passage = waiting.passage();
    let loading = (Arc::clone(shared), SharedConnector::clone(connector));
    let ground = shared.queue.ground();
    let loading = ground.run(move || load(&loading.0, &loading.1, jobs)).await;
    // What was taken goes back to wait if reading it panicked.
    let Ok((mut ended, ready)) = loading else { return Vec::new() };
    let timeout = circuit.settings.load().timeout;
    let unix = circuit.clock.steady_unix();
    let token = group_token(shared, &ready);
    let common = Common { group: token, now: unix, timeout, passage };
    for upload in ready.iter().filter_map(|(_, cargo)| cargo.upload.as_ref()) {
        upload.wrap(|rest| Box::new(Progressing::of(rest, passage)));
    }
    if ready.is_empty() {
        return ended;
    }
    let prepared_at = circuit.clock.read();
    let notes = match prepare(connector, &ready, common).await {
        Ok(evidence) => note_sending(shared, &ready, token, evidence),
        Err((verdict, error)) => {
            let ended_at = circuit.clock.read();
            passage.count(verdict, Some(error.fault), ended_at.since(prepared_at), None);
            passage.settle(verdict, Some(&error), None, ended_at.moment());
            let failed =
                |(job, _): (Job, Cargo)| job.ends(Ok(Attempted::failed(verdict, error.clone())));
            ended.extend(ready.into_iter().map(failed));
            return ended;
        }
    };
    let (unnoted, sent) = noted(notes, ready).await;
    ended.extend(unnoted);
    if sent.is_empty() {
        return ended;
    }
    {
        let mut index = shared.queue.index();
        for (job, _) in &sent {
            if let Some(entry) = index.get_mut(job.taken.seq) {
                entry.state.sent();
            }
        }
    }
    let sent_at = circuit.clock.read();
    let seen = || Seen { class: Class::Replay, uid: None, baggage: None };
    let strike = circuit.chaos.strike(sent_at.moment(), None, seen);
    let acting = strike.and_then(|strike| circuit.chaos.act(strike, sent_at.moment()));
    let chaos = acting.as_ref().map(Acting::word);
    let attempts = sent.iter().map(|it| common.attempt(it)).collect();
    let ends = match acting {
        None => carry(connector, attempts).await,
        Some(acting) => Box::pin(carry_struck(connector, attempts, acting)).await,
    };
    for ((job, _), end) in sent.iter().zip(&ends) {
        if end.result.as_ref().is_err_and(|error| error.doubt.is_some()) {
            shared.leave(&**connector, passage, &job.entry.header.lanes);
        }
    }
    let ended_at = circuit.clock.read();
    let worst = ends.iter().find(|end| end.verdict == Verdict::Failure);
    let worst = worst.or_else(|| ends.iter().find(|end| end.verdict == Verdict::Success));
    let verdict = worst.map_or(Verdict::Neutral, |end| end.verdict);
    let spans = sent.iter().find_map(|(_, cargo)| cargo.spans.as_ref());
    let trace_id = spans.map(|spans| spans.replay.trace_id);
    let exemplar = Exemplar::of(trace_id, circuit.clock);
    let origin = trace_id.map(|trace_id| CallOrigin { trace_id, door: None });
    let error = worst.and_then(|end| end.result.as_ref().err());
    passage.count(verdict, error.map(|error| error.fault), ended_at.since(sent_at), exemplar);
    circuit.metrics.batch_replayed(ended_at.since(began));
    let transition = passage.settle(verdict, error, origin, ended_at.moment());
    drop(waiting);
    let took = Took { began, sent_at, ended_at, transition, chaos };
    for ((job, cargo), end) in sent.iter().zip(&ends) {
        if let Some(spans) = &cargo.spans {
            record(shared, connector, &took, spans, (&job.entry, &cargo.body), end, sent.len());
        }
    }
    ended.extend(sent.into_iter().zip(ends).map(|((job, _), end)| job.ends(Ok(end))));
    ended
}

/// Reads what goes on the wire; blocks on the disk. What must not go, or cannot be read, has ended.
fn load(
    shared: &BackendShared,
    connector: &SharedConnector,
    jobs: Vec<Job>,
) -> (Vec<Ended>, Vec<(Job, Cargo)>) {
    let unix = shared.circuit.clock.unix();
    let recorded = shared.tracer.is_on();
    let (mut ended, mut ready) = (Vec::new(), Vec::with_capacity(jobs.len()));
    let why = jobs.iter().find_map(|job| unprovable(shared, &job.entry, unix));
    let mut to_read = Vec::with_capacity(jobs.len());
    for job in jobs {
        let own = if job.is_group { why } else { unprovable(shared, &job.entry, unix) };
        match own {
            Some(why) => ended.push(job.ends(Err(NotSent::Ambiguous(why)))),
            None => to_read.push(job),
        }
    }
    let bodies = read(shared, connector, &to_read);
    for (job, cargo) in to_read.into_iter().zip(bodies) {
        match cargo.and_then(|cargo| Ok((cargo, following(shared, &job)?))) {
            Ok(((body, upload), following)) => {
                let spans = recorded.then(|| Spans::of(&job.entry)).flatten();
                ready.push((job, Cargo { body, upload, following, spans }));
            }
            Err(why) => ended.push(job.ends(Err(why))),
        }
    }
    if ready.iter().any(|(job, _)| job.is_group) && !ended.is_empty() {
        // All or none: the others are sent without the one that cannot be read.
        ended.extend(ready.drain(..).map(|(job, _)| job.ends(Err(NotSent::Barred))));
    }
    (ended, ready)
}

/// Why nobody can tell whether the call was applied, without asking the backend.
fn unprovable(shared: &BackendShared, entry: &Entry, now: UnixMillis) -> Option<&'static str> {
    if !entry.state.is_in_doubt() || entry.is_absolute() {
        return None;
    }
    let broken = entry
        .details()
        .group
        .is_some_and(|id| shared.queue.index().group(id).is_none_or(|group| group.broken));
    if broken {
        return Some(
            "it was sent together with other calls, and some of these are no longer queued",
        );
    }
    let sent_at = entry.details().noted.as_ref().map_or(entry.header.accepted_at, |noted| noted.at);
    (now.since(sent_at) >= MARKER_LIFE)
        .then_some("it was first sent more than 7 days ago: it is unknown whether it was applied")
}

/// The writes behind a timed one in its lanes.
///
/// # Errors
/// One of them cannot be read: what is judged without it would be wrong.
fn following(shared: &BackendShared, job: &Job) -> Result<Vec<QueuedWrite>, NotSent> {
    if !job.entry.header.traits.is_timed() {
        return Ok(Vec::new());
    }
    let behind: Vec<(u64, UnixMillis, Option<UnixMillis>)> = {
        let index = shared.queue.index();
        let seqs = index.following(job.taken.seq).into_iter();
        seqs.filter_map(|seq| {
            let entry = index.get(seq)?;
            Some((seq, entry.header.accepted_at, entry.header.traits.due()))
        })
        .collect()
    };
    let Ok(store) = shared.queue.store() else { return Err(NotSent::Barred) };
    let read = |(seq, accepted_at, due)| match store.body(seq) {
        Ok(body) => Some(Ok(QueuedWrite { body, accepted_at, due })),
        // It has left the queue meanwhile.
        Err(StoreError::NotFound { .. }) => None,
        Err(error) => {
            let detail = error.to_string().into();
            Some(Err(NotSent::Store(StoreError::Failed { unknown: false, detail })))
        }
    };
    behind.into_iter().filter_map(read).collect()
}

/// The token of a group: of the one that was sent, or one that no other group has.
fn group_token(shared: &BackendShared, ready: &[(Job, Cargo)]) -> Option<OpId> {
    let (first, _) = ready.first().filter(|(job, _)| job.is_group)?;
    let index = shared.queue.index();
    if let Some(group) = first.entry.details().group.and_then(|id| index.group(id)) {
        return Some(group.token);
    }
    Some(OpId::new(shared.circuit.clock.unix(), fastrand::u128(..)))
}

/// What the attempts of one sending have in common.
#[derive(Clone, Copy)]
struct Common<'p> {
    /// The token of all calls of a group.
    group: Option<OpId>,
    now: UnixMillis,
    timeout: Duration,
    passage: &'p Arc<Passage>,
}

impl<'p> Common<'p> {
    fn attempt<'a>(&self, (job, cargo): &'a (Job, Cargo)) -> Attempt<'a>
    where
        'p: 'a,
    {
        let entry = &job.entry;
        let in_doubt = entry.state.is_in_doubt();
        let noted = entry.details().noted.as_ref();
        Attempt {
            body: &cargo.body,
            lanes: &entry.header.lanes,
            write: true,
            origin: Origin::Replay,
            token: (!entry.is_absolute()).then(|| self.group.unwrap_or(entry.header.op_id)),
            digest: entry.header.digest,
            doubt: in_doubt.then(|| Doubt {
                since: noted.map_or(entry.header.accepted_at, |noted| noted.at),
                evidence: noted.map_or(&NOTHING, |noted| &noted.evidence),
            }),
            following: &cargo.following,
            streams: false,
            upload: cargo.upload.as_ref(),
            dialect: 0,
            accepted_at: entry.header.accepted_at,
            now: self.now,
            timeout: self.timeout,
            left: self.timeout,
            fence_patience: self.timeout,
            trace: cargo.spans.as_ref().map(Spans::passed_on),
            passage: Some(self.passage),
        }
    }
}

static NOTHING: Bytes = Bytes::new();

/// Whether the sending of the call must be noted, and is not yet.
fn wants_note(job: &Job) -> bool {
    !job.entry.is_absolute() && job.entry.details().noted.is_none()
}

/// Makes ready to send what is not noted yet. Returns what is to be noted of each.
async fn prepare(
    connector: &SharedConnector,
    ready: &[(Job, Cargo)],
    common: Common<'_>,
) -> Result<Vec<Bytes>, (Verdict, AttemptError)> {
    let fresh: Vec<Attempt<'_>> =
        ready.iter().filter(|(job, _)| wants_note(job)).map(|it| common.attempt(it)).collect();
    if fresh.is_empty() {
        return Ok(Vec::new());
    }
    connector.prepare(&fresh).await
}

type Noting = Option<oneshot::Receiver<Result<(), StoreError>>>;

/// Notes that calls are sent, a group by one note. One place for each call; `None` if there is nothing to wait
/// for.
fn note_sending(
    shared: &BackendShared,
    ready: &[(Job, Cargo)],
    group: Option<OpId>,
    evidence: Vec<Bytes>,
) -> Vec<Noting> {
    let mut evidence = evidence.into_iter();
    if let Some(token) = group {
        let seqs: Vec<u64> = ready.iter().map(|(job, _)| job.taken.seq).collect();
        let wanted = ready.first().is_some_and(|(job, _)| wants_note(job));
        let note = wanted
            .then(|| shared.queue.note_sending(&seqs, token, evidence.next().unwrap_or_default()));
        return std::iter::once(note)
            .chain(std::iter::repeat_with(|| None))
            .take(ready.len())
            .collect();
    }
    let note = |(job, _): &(Job, Cargo)| {
        wants_note(job).then(|| {
            let evidence = evidence.next().unwrap_or_default();
            shared.queue.note_sending(&[job.taken.seq], job.entry.header.op_id, evidence)
        })
    };
    ready.iter().map(note).collect()
}

/// Waits until the notes are synced. What could not be noted has ended.
async fn noted(notes: Vec<Noting>, ready: Vec<(Job, Cargo)>) -> (Vec<Ended>, Vec<(Job, Cargo)>) {
    let (mut ended, mut sent) = (Vec::new(), Vec::with_capacity(ready.len()));
    let mut of_group = None;
    for (note, (job, cargo)) in notes.into_iter().zip(ready) {
        let why = match note {
            None => of_group.clone(),
            Some(synced) => match synced.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(NotSent::Store(error)),
                Err(_) => Some(NotSent::Barred),
            },
        };
        if job.is_group {
            of_group.clone_from(&why);
        }
        match why {
            None => sent.push((job, cargo)),
            Some(why) => ended.push(job.ends(Err(why))),
        }
    }
    (ended, sent)
}

/// Sends them: one alone, several as one, or a batch. One end for each.
async fn carry(connector: &SharedConnector, mut attempts: Vec<Attempt<'_>>) -> Vec<Attempted> {
    let count = attempts.len();
    let Some(last) = attempts.pop() else { return Vec::new() };
    if attempts.is_empty() {
        return vec![connector.attempt(last).await];
    }
    let is_group = attempts.iter().all(|other| other.token.is_some() && other.token == last.token);
    attempts.push(last);
    if !is_group {
        return connector.attempt_batch(attempts).await;
    }
    let end = connector.attempt_group(attempts).await;
    let copies = (1..count).map(|_| copy(&end)).collect::<Vec<_>>();
    copies.into_iter().chain([end]).collect()
}

/// The same of what is struck.
async fn carry_struck(
    connector: &SharedConnector,
    mut attempts: Vec<Attempt<'_>>,
    acting: Acting,
) -> Vec<Attempted> {
    let count = attempts.len();
    let Some(first) = attempts.first_mut() else { return Vec::new() };
    let begun = acting.begin(connector, first).await;
    let left = first.timeout;
    match begun {
        Ok(sent) => {
            for attempt in &mut attempts {
                attempt.timeout = left;
            }
            let ends = carry(connector, attempts).await;
            acting.thrown_away(sent, ends.iter().any(|end| end.result.is_ok())).await;
            ends.into_iter().map(|end| acting.end(sent, end)).collect()
        }
        Err((verdict, error)) => {
            std::iter::repeat_with(|| Attempted::failed(verdict, error.clone()))
                .take(count)
                .collect()
        }
    }
}

/// The end of a group counts for each of its calls.
fn copy(end: &Attempted) -> Attempted {
    Attempted {
        verdict: end.verdict,
        result: end.result.clone(),
        rest: None,
        reply_lost: end.reply_lost,
        residue: None,
    }
}

/// The spans of one call's replay, if its being queued was recorded.
struct Spans {
    origin: SpanRef,
    replay: SpanRef,
    attempt: u64,
}

impl Spans {
    /// The trace of the replay has the call's own name.
    fn of(entry: &Entry) -> Option<Self> {
        let origin = entry.details().origin?;
        let trace_id = trace::replay_trace_id(entry.header.op_id);
        let replay = SpanRef { trace_id, span_id: trace::new_span_id(), sampled: true };
        Some(Self { origin, replay, attempt: trace::new_span_id() })
    }

    fn passed_on(&self) -> PassedOn<'static> {
        let span = SpanRef { span_id: self.attempt, ..self.replay };
        PassedOn { span, tracestate: None, baggage: None }
    }
}

/// When the steps of an attempt were.
struct Took {
    began: Reading,
    sent_at: Reading,
    ended_at: Reading,
    transition: Option<(State, State)>,
    /// What struck it on purpose.
    chaos: Option<&'static str>,
}

fn record(
    shared: &BackendShared,
    connector: &SharedConnector,
    took: &Took,
    spans: &Spans,
    (entry, body): (&Entry, &Bytes),
    end: &Attempted,
    together: usize,
) {
    let Took { began, sent_at, ended_at, transition, chaos } = *took;
    let attempt = StepKind::Attempt {
        span_id: spans.attempt,
        number: entry.attempts().max(1),
        verdict: Some(end.verdict),
        error: end.result.as_ref().err().map(trace::told),
        transition,
    };
    let mut steps = Vec::with_capacity(2);
    if !entry.is_absolute() && entry.details().noted.is_none() {
        steps.push(Step { began, ended: sent_at, kind: StepKind::NoteSending });
    }
    steps.push(Step { began: sent_at, ended: ended_at, kind: attempt });
    let circuit = &*shared.circuit;
    shared.tracer.replayed(|unix_nanos| Traced {
        backend: circuit.name.clone(),
        kind: circuit.settings.load().kind,
        target: connector.target(),
        operation: connector.operation(body),
        span: spans.replay,
        parent: None,
        began_unix: unix_nanos.saturating_sub(trace::nanos(ended_at.since(began))),
        began,
        ended: ended_at,
        steps,
        chaos,
        what: TraceSubject::Replay {
            op_id: entry.header.op_id,
            origin: spans.origin,
            waited: circuit.clock.unix().since(entry.header.accepted_at),
            together,
        },
    });
}

/// The bodies of calls, in their order; of a large one the beginning, and the rest as it is wanted.
fn read(
    shared: &BackendShared,
    connector: &SharedConnector,
    jobs: &[Job],
) -> Vec<Result<(Bytes, Option<Upload>), NotSent>> {
    let Ok(store) = shared.queue.store() else {
        return jobs.iter().map(|_| Err(NotSent::Barred)).collect();
    };
    let is_small = |job: &&Job| job.entry.size() <= HEAD_MAX as u64;
    let small: Vec<u64> = jobs.iter().filter(is_small).map(|job| job.taken.seq).collect();
    let mut bodies = store.bodies(&small).into_iter();
    let read = |job| match is_small(&job).then(|| bodies.next()).flatten() {
        Some(body) => Ok((body.map_err(NotSent::Store)?, None)),
        None => read_large(shared, connector, store, job.taken.seq),
    };
    jobs.iter().map(read).collect()
}

fn read_large(
    shared: &BackendShared,
    connector: &SharedConnector,
    store: &dyn CallStore,
    seq: u64,
) -> Result<(Bytes, Option<Upload>), NotSent> {
    let first = store.piece(seq, 0).map_err(NotSent::Store)?;
    let Some(held) = connector.held(&first) else {
        return Ok((store.body(seq).map_err(NotSent::Store)?, None));
    };
    let (mut body, mut next) = (BytesMut::from(&*first), 1);
    while body.len() < held {
        let piece = store.piece(seq, next).map_err(NotSent::Store)?;
        if piece.is_empty() {
            break;
        }
        body.extend_from_slice(&piece);
        next += 1;
    }
    let rest = StoredRest { queue: Arc::clone(&shared.queue), seq, next };
    Ok((body.freeze(), Some(Upload::new(Box::new(rest)))))
}

/// The rest of a large call, read from the store piece by piece.
struct StoredRest {
    queue: Arc<Queue>,
    seq: u64,
    next: u32,
}

impl Tail for StoredRest {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            let (queue, seq, next) = (Arc::clone(&self.queue), self.seq, self.next);
            let ground = queue.ground().clone();
            let reading = ground.run(move || match queue.store() {
                Ok(store) => store.piece(seq, next).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            });
            let piece = reading.await.unwrap_or_else(|error| Err(error.to_string()));
            self.next += 1;
            match piece {
                Ok(piece) => (!piece.is_empty()).then_some(Ok(piece)),
                Err(message) => {
                    Some(Err(AttemptError::own(ErrorClass::NotExecuted, OwnCode::Store, message)))
                }
            }
        })
    }
}
