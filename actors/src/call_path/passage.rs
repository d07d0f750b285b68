//! One attempt between its permit and its end: what both ways in share.
//!
//! A [`Passage`] holds a permit of the breaker and a place in the bulkhead. It owns what it holds, so that a door
//! can keep it in a queue of its own; dropped without an end it gives both back, and says nothing of the backend.

use std::sync::Arc;

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, Lanes, Moment, Verdict,
    breaker::{KeptPermit, Rejected},
    bulkhead::Kept,
    write::{End, Known, WriteState},
};

use crate::{
    backend_shared::BackendShared,
    circuit::Circuit,
    clock::Reading,
    metrics::Exemplar,
    refusal::AttemptError,
    trace::{CallRecorder, Tried},
};

/// Why an attempt is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barred {
    /// The breaker is open.
    Open,
    /// The backend is offline.
    Offline,
    /// The bulkhead is full.
    Full,
}

impl Barred {
    /// The word that callers see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "breaker_open",
            Self::Offline => "offline",
            Self::Full => "bulkhead_full",
        }
    }

    pub(super) fn detail(self, circuit: &Circuit) -> String {
        match self {
            Self::Open => Rejected::Open.to_string(),
            Self::Offline => Rejected::Offline.to_string(),
            Self::Full => {
                let max = circuit.bulkhead.max();
                format!("{max} attempts are in flight, which is the limit")
            }
        }
    }
}

/// See the [module](self).
pub(super) struct Passage {
    circuit: Arc<Circuit>,
    permit: Option<KeptPermit>,
    place: Option<Kept>,
    is_probe: bool,
}

impl Passage {
    /// Its place, for the rest of an answer that holds it for as long as it comes.
    pub(super) fn take_place(&mut self) -> Option<Kept> {
        self.place.take()
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            drop(self.circuit.breaker.regain(permit));
        }
        if let Some(place) = self.place.take() {
            self.circuit.bulkhead.leave(place);
        }
    }
}

/// How an attempt ended, for the counters, the breaker and the record of its call.
pub(super) struct AttemptEnd<'a> {
    pub(super) began: Reading,
    pub(super) span_id: u64,
    /// From 1.
    pub(super) number: u32,
    pub(super) verdict: Verdict,
    pub(super) error: Option<&'a AttemptError>,
}

impl BackendShared {
    /// Asks for a permit and a place. Changes nothing where it gets none.
    pub(super) fn pass(&self, now: Moment) -> Result<Passage, Barred> {
        let circuit = &self.circuit;
        let permit = circuit.breaker.try_acquire(now).map_err(|rejected| match rejected {
            Rejected::Open => Barred::Open,
            Rejected::Offline => Barred::Offline,
        })?;
        let place = circuit.bulkhead.try_enter().ok_or(Barred::Full)?;
        Ok(Passage {
            circuit: Arc::clone(circuit),
            is_probe: permit.is_probe(),
            permit: Some(permit.keep()),
            place: Some(place.keep()),
        })
    }

    /// An attempt is about to be sent. `number` counts from 1; `written` are the lanes of a write.
    pub(super) fn attempt_begins(&self, number: u32, written: Option<&Lanes>) {
        if number == 1 {
            self.circuit.budget.deposit();
        }
        if let Some(lanes) = written {
            self.queue.note_written(lanes);
            self.invalidate_lanes(lanes);
        }
    }

    /// An attempt has ended: counts it, tells the breaker, and notes it in its call's record. `counted` says whether a
    /// failure of the call was counted before; a call counts at most one.
    pub(super) fn attempt_ended(
        &self,
        passage: &mut Passage,
        end: AttemptEnd<'_>,
        counted: &mut bool,
        recorder: &mut CallRecorder,
    ) {
        let AttemptEnd { began, span_id, number, verdict, error } = end;
        let circuit = &*self.circuit;
        let ended_at = circuit.clock.read();
        let exemplar = Exemplar::of(recorder.followed(), circuit.clock);
        circuit.metrics.attempt(verdict, ended_at.since(began), exemplar);
        let told = match verdict {
            Verdict::Failure if *counted && !passage.is_probe => Verdict::Neutral,
            verdict => verdict,
        };
        *counted |= told == Verdict::Failure;
        let transition = passage.permit.take().and_then(|permit| {
            let permit = circuit.breaker.regain(permit);
            circuit.settle(permit, told, error, Some(recorder.trace_id()), ended_at.moment())
        });
        recorder.attempt(began, ended_at, span_id, Tried { number, verdict, error, transition });
    }

    /// A write's way over the wire is over: what reads answered meanwhile is not what the lanes hold now.
    pub(super) fn write_ended(&self, state: WriteState, lanes: &Lanes) {
        match state.known() {
            Known::Fresh | Known::NotExecuted => {}
            _ if state.is_in_doubt() => self.bar_fills(lanes),
            _ => self.invalidate_lanes(lanes),
        }
    }
}

/// Notes what the end of an attempt says of a write, and what the first sending in doubt knew.
pub(super) fn note_end(
    state: &mut WriteState,
    evidence: &mut Bytes,
    needs_evidence: bool,
    error: Option<&AttemptError>,
) {
    let end = match error {
        None => End::Applied,
        Some(AttemptError { doubt: None, .. }) => End::Nothing,
        Some(AttemptError { class: ErrorClass::Ambiguous, .. }) => End::Unprovable,
        Some(AttemptError { doubt: Some(found), .. }) if found.is_empty() && needs_evidence => {
            End::Unprovable
        }
        Some(AttemptError { doubt: Some(found), .. }) => {
            // What the first sending knew is what counts.
            if !state.is_in_doubt() {
                *evidence = found.clone();
            }
            End::Unknown
        }
    };
    state.end(end);
}
