//! One attempt of queued calls: permit and place, the note that they are sent, their bodies, the wire.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fusebox_state::{
    ErrorClass, SpanRef, Verdict, breaker::State, queue::Entry, store::StoreError,
};
use tokio::sync::oneshot;

use super::{Ended, MARKER_LIFE, NotSent, Taken};
use crate::{
    clock::Reading,
    connector::{
        Answer, Attempt, AttemptError, Attempted, Doubt, HEAD_MAX, Origin, SharedConnector, Tail,
        Upload,
    },
    handle::Lent,
    metrics::Exemplar,
    queue::Queue,
    trace::{self, PassedOn, Step, StepKind, Traced, What},
};

static EMPTY: Bytes = Bytes::new();

/// One attempt of queued calls. They are noted as sent once it is certain that they will be.
pub(super) async fn attempt(
    lent: &Lent,
    connector: &SharedConnector,
    batch: Vec<(Taken, Entry)>,
) -> Vec<Ended> {
    let circuit = &*lent.circuit;
    let began = circuit.clock.read();
    let now = began.moment();
    let (Ok(permit), Some(place)) =
        (circuit.breaker.try_acquire(now), circuit.bulkhead.try_enter())
    else {
        return batch
            .into_iter()
            .map(|(taken, entry)| Ended { taken, entry, result: Err(NotSent::Barred) })
            .collect();
    };
    let (mut ended, mut sent, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    for ((taken, entry), noted) in note_sending(lent, batch).await {
        match noted.and_then(|()| read(lent, connector, taken.seq, &entry)) {
            Ok(body) => {
                bodies.push(body);
                sent.push((taken, entry));
            }
            Err(why) => ended.push(Ended { taken, entry, result: Err(why) }),
        }
    }
    let timeout = circuit.settings.load().timeout;
    let spans: Vec<Option<Spans>> = {
        let recorded = lent.tracer.is_on();
        sent.iter().map(|(_, entry)| recorded.then(|| Spans::of(entry)).flatten()).collect()
    };
    let unix = circuit.clock.unix();
    let calls = sent.iter().zip(&bodies).zip(&spans);
    let attempts = calls.map(|(((_, entry), (body, upload)), spans)| Attempt {
        body,
        lanes: &entry.lanes,
        write: true,
        origin: Origin::Replay,
        token: (!entry.absolute).then_some(entry.op_id),
        digest: entry.digest,
        doubt: entry.in_doubt.then_some(Doubt {
            since: entry.first_sent_at.unwrap_or(entry.accepted_at),
            evidence: &EMPTY,
        }),
        following: &[],
        streams: false,
        upload: upload.as_ref(),
        accepted_at: entry.accepted_at,
        now: unix,
        timeout,
        trace: spans.as_ref().map(Spans::passed_on),
    });
    let mut attempts: Vec<Attempt<'_>> = attempts.collect();
    let sent_at = circuit.clock.read();
    let ends = match (attempts.pop(), attempts.is_empty()) {
        (None, _) => return ended,
        (Some(only), true) => vec![connector.attempt(only).await],
        (Some(last), false) => {
            attempts.push(last);
            connector.attempt_batch(attempts).await
        }
    };
    drop(place);
    let ended_at = circuit.clock.read();
    let worst = ends.iter().find(|end| end.verdict == Verdict::Failure);
    let worst = worst.or_else(|| ends.iter().find(|end| end.verdict == Verdict::Success));
    let verdict = worst.map_or(Verdict::Neutral, |end| end.verdict);
    let trace_id = spans.iter().flatten().next().map(|spans| spans.replay.trace_id);
    let exemplar = Exemplar::of(trace_id, circuit.clock);
    circuit.metrics.attempt(verdict, ended_at.since(sent_at), exemplar);
    circuit.metrics.batch_replayed(ended_at.since(began));
    let error = worst.and_then(|end| end.result.as_ref().err());
    let transition = circuit.settle(permit, verdict, error, trace_id, ended_at.moment());
    let took = Took { began, sent_at, ended_at, transition };
    for (index, spans) in spans.iter().enumerate() {
        if let (Some(spans), Some((_, entry)), Some((body, _)), Some(end)) =
            (spans, sent.get(index), bodies.get(index), ends.get(index))
        {
            record(lent, connector, &took, spans, (entry, body), end, sent.len());
        }
    }
    let ends = sent.into_iter().zip(ends);
    ended.extend(ends.map(|((taken, entry), end)| Ended { taken, entry, result: Ok(end) }));
    ended
}

/// The spans of one call's replay, where its being queued was recorded.
struct Spans {
    origin: SpanRef,
    replay: SpanRef,
    attempt: u64,
}

impl Spans {
    /// The replay's trace bears the call's own name.
    fn of(entry: &Entry) -> Option<Self> {
        let origin = *entry.origin.as_deref()?;
        let trace_id = trace::replay_trace_id(entry.op_id);
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
}

fn record(
    lent: &Lent,
    connector: &SharedConnector,
    took: &Took,
    spans: &Spans,
    (entry, body): (&Entry, &Bytes),
    end: &Attempted,
    together: usize,
) {
    let Took { began, sent_at, ended_at, transition } = *took;
    let attempt = StepKind::Attempt {
        span_id: spans.attempt,
        number: entry.attempts.max(1),
        verdict: Some(end.verdict),
        error: end.result.as_ref().err().map(trace::told),
        transition,
    };
    let mut steps = Vec::with_capacity(2);
    if !entry.absolute && entry.first_sent_at.is_none() {
        steps.push(Step { began, ended: sent_at, kind: StepKind::NoteSending });
    }
    steps.push(Step { began: sent_at, ended: ended_at, kind: attempt });
    let circuit = &*lent.circuit;
    lent.tracer.replayed(|unix_nanos| Traced {
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
        what: What::Replay {
            op_id: entry.op_id,
            origin: spans.origin,
            waited: circuit.clock.unix().since(entry.accepted_at),
            together,
        },
    });
}

/// A call's body; of a large one the beginning, and the rest as it is wanted.
fn read(
    lent: &Lent,
    connector: &SharedConnector,
    seq: u64,
    entry: &Entry,
) -> Result<(Bytes, Option<Upload>), NotSent> {
    let store = lent.queue.store().map_err(|_| NotSent::Barred)?;
    if entry.bytes <= HEAD_MAX as u64 {
        return Ok((store.body(seq).map_err(NotSent::Store)?, None));
    }
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
    let rest = StoredRest { queue: Arc::clone(&lent.queue), seq, next };
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
            let piece = match self.queue.store() {
                Ok(store) => store.piece(self.seq, self.next).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            self.next += 1;
            match piece {
                Ok(piece) => (!piece.is_empty()).then_some(Ok(piece)),
                Err(message) => {
                    Some(Err(AttemptError::own(ErrorClass::NotExecuted, "store", message)))
                }
            }
        })
    }
}

/// A call without an absolute effect is noted as sent, and that is synced, before it is sent the first
/// time. One that was noted longer ago than its marker lives is ambiguous.
async fn note_sending(
    lent: &Lent,
    batch: Vec<(Taken, Entry)>,
) -> Vec<((Taken, Entry), Result<(), NotSent>)> {
    enum Note {
        Done(Result<(), NotSent>),
        UnderWay(oneshot::Receiver<Result<(), StoreError>>),
    }
    let now = lent.circuit.clock.unix();
    let notes: Vec<Note> = batch
        .iter()
        .map(|(taken, entry)| match entry.first_sent_at {
            _ if entry.absolute => Note::Done(Ok(())),
            Some(first) if now.since(first) >= MARKER_LIFE => Note::Done(Err(NotSent::Ambiguous)),
            Some(_) => Note::Done(Ok(())),
            None => Note::UnderWay(lent.queue.mark_sending(taken.seq)),
        })
        .collect();
    let mut calls = Vec::with_capacity(batch.len());
    for (call, note) in batch.into_iter().zip(notes) {
        let result = match note {
            Note::Done(result) => result,
            Note::UnderWay(synced) => match synced.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(NotSent::Store(error)),
                Err(_) => Err(NotSent::Barred),
            },
        };
        calls.push((call, result));
    }
    calls
}
