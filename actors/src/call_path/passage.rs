//! One attempt between its permit and its end: what both ways in share. What it holds meanwhile is a
//! [`Passage`](crate::passage).

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, Lanes, Verdict,
    cache::Withdrawn,
    write::{End, Known, WriteState},
};

use super::Context;
use crate::{
    backend_shared::BackendShared,
    clock::Reading,
    metrics::Exemplar,
    passage::Passage,
    refusal::AttemptError,
    refusal::Barred,
    trace::{CallRecorder, Tried},
};

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
    /// Asks for a permit and a place. Changes nothing if it gets none.
    pub(super) fn pass(
        &self,
        uid: u32,
        began: Reading,
        failed_before: bool,
    ) -> Result<Passage, Barred> {
        Passage::begin(&self.circuit, uid, began, failed_before)
    }

    /// An attempt is about to be sent. `number` counts from 1; `written` are the lanes of a write, of which `withdrawn`
    /// is what an earlier attempt withdrew from the cache. Returns what is withdrawn now, for [`Self::write_ended`].
    pub(super) fn attempt_begins(
        &self,
        number: u32,
        written: Option<&Lanes>,
        withdrawn: Option<Withdrawn>,
    ) -> Option<Withdrawn> {
        if number == 1 {
            self.circuit.budget.deposit();
        }
        let lanes = written?;
        self.queue.note_written(lanes);
        if let Lanes::One(lane) = lanes {
            return self.cache.load().withdraw(*lane, withdrawn);
        }
        self.invalidate_lanes(lanes);
        None
    }

    /// An attempt has ended: counts it, tells the breaker, and notes it in its call's record. `counted` says whether a
    /// failure of the call was counted before; a call counts at most one.
    pub(super) fn attempt_ended(
        &self,
        passage: &Passage,
        end: AttemptEnd<'_>,
        counted: &mut bool,
        recorder: &mut CallRecorder,
    ) {
        let AttemptEnd { began, span_id, number, verdict, error } = end;
        let clock = self.clock();
        let ended_at = clock.read();
        let exemplar = Exemplar::of(recorder.followed(), clock);
        let fault = error.map(|error| error.fault);
        passage.count(verdict, fault, ended_at.since(began), exemplar);
        *counted |= verdict == Verdict::Failure;
        let transition = passage.settle(verdict, error, Some(recorder.origin()), ended_at.moment());
        recorder.attempt(began, ended_at, span_id, Tried { number, verdict, error, transition });
    }

    /// The way of a write, from before anything is looked at: a ticket may have sent it already.
    pub(super) fn way<'a>(&'a self, context: &'a mut Context) -> Way<'a> {
        Way { shared: self, context }
    }

    /// A write's way over the wire is over: what reads answered meanwhile is not what the lanes hold now. What was
    /// `withdrawn` for it is, if it wrote nothing.
    pub(super) fn write_ended(
        &self,
        state: WriteState,
        lanes: &Lanes,
        withdrawn: Option<Withdrawn>,
    ) {
        match state.known() {
            Known::Fresh | Known::NotExecuted => {
                if let Some(withdrawn) = withdrawn {
                    self.cache.load().put_back(withdrawn);
                }
            }
            _ if state.is_in_doubt() => self.bar_fills(lanes),
            _ => self.invalidate_lanes(lanes),
        }
    }
}

/// A write's way over the wire. However it is over, the cache hears of it: also if its caller leaves, and also if
/// nothing more is sent of it.
pub(super) struct Way<'a> {
    shared: &'a BackendShared,
    context: &'a mut Context,
}

impl Way<'_> {
    /// The call that it belongs to.
    pub(super) fn context(&mut self) -> &mut Context {
        self.context
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        let Context { state, plan, withdrawn, .. } = &mut *self.context;
        self.shared.write_ended(*state, &plan.lanes, withdrawn.take());
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
        Some(AttemptError { doubt: Some(found), .. }) => {
            // What the first sending knew is what counts; a repetition notes nothing.
            if !state.is_in_doubt() {
                *evidence = found.clone();
            }
            if evidence.is_empty() && needs_evidence { End::Unprovable } else { End::Unknown }
        }
    };
    state.end(end);
}

#[cfg(test)]
mod tests {
    use fusebox_state::write::{Next, Repeat};

    use super::*;
    use crate::connector::OwnCode;

    /// What may be done after attempts that ended without an answer, having noted these.
    fn after(noted: &[&'static [u8]], needs_evidence: bool) -> (Next, Bytes) {
        let (mut state, mut evidence) = (WriteState::fresh(Repeat::Token), Bytes::new());
        for found in noted {
            state.sent();
            let error = AttemptError {
                doubt: Some(Bytes::from_static(found)),
                ..AttemptError::own(ErrorClass::Unknown, OwnCode::Timeout, "no answer")
            };
            note_end(&mut state, &mut evidence, needs_evidence, Some(&error));
        }
        (state.next(), evidence)
    }

    #[test]
    fn what_the_first_sending_noted_outlives_repetitions_without_an_answer() {
        let first = Bytes::from_static(b"first");
        assert_eq!(after(&[b"first"], true), (Next::Prove, first.clone()));
        assert_eq!(after(&[b"first", b""], true), (Next::Prove, first.clone()));
        assert_eq!(after(&[b"first", b"later", b""], true), (Next::Prove, first));
        assert_eq!(after(&[b""], true), (Next::GiveUp, Bytes::new()));
        assert_eq!(after(&[b"", b""], false), (Next::Prove, Bytes::new()));
    }
}
