//! What a call notes of itself on its way, from clock readings that are made anyway.

use std::borrow::Cow;

use fusebox_state::{SpanRef, Verdict, breaker::State};

use super::{
    context::{CallOrigin, CallTrace, PassedOn, new_span_id},
    record::{FirstAttempt, Step, StepKind},
};
use crate::{clock::Reading, refusal::AttemptError};

/// What one call has recorded so far.
#[derive(Debug)]
pub struct CallRecorder {
    pub(super) trace: CallTrace,
    pub(super) began: Reading,
    /// Its own span's id; zero as long as nobody needed one.
    pub(super) span_id: u64,
    pub(super) sampled: bool,
    /// Whether anything is noted.
    pub(super) keeps: bool,
    /// The first step if it was an attempt that succeeded, which is all that most calls do.
    pub(super) first: Option<FirstAttempt>,
    pub(super) more: Vec<Step>,
    /// What struck one of its attempts on purpose.
    pub(super) chaos: Option<&'static str>,
}

impl CallRecorder {
    /// Whether steps are noted at all.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// Notes a step.
    pub fn step(&mut self, began: Reading, ended: Reading, kind: StepKind) {
        if self.keeps {
            self.more.push(Step { began, ended, kind });
        }
    }

    /// Notes an attempt that was let through.
    #[inline]
    pub fn attempt(&mut self, began: Reading, ended: Reading, span_id: u64, attempt: Tried<'_>) {
        let Tried { number, verdict, error, transition } = attempt;
        if !self.keeps {
            return;
        }
        let plain = verdict == Verdict::Success && error.is_none() && transition.is_none();
        if plain && number == 1 && self.more.is_empty() {
            self.first = Some(FirstAttempt { began, ended, span_id });
            return;
        }
        let error = error.map(told);
        let kind = StepKind::Attempt { span_id, number, verdict: Some(verdict), error, transition };
        self.more.push(Step { began, ended, kind });
    }

    /// A fault on purpose has struck one of its attempts.
    pub fn struck(&mut self, kind: &'static str) {
        self.chaos = Some(kind);
    }

    /// The baggage that its caller sent.
    pub fn baggage(&self) -> Option<&str> {
        self.trace.baggage()
    }

    /// The call that is recorded, as errors remember it.
    pub fn origin(&self) -> CallOrigin {
        CallOrigin { trace_id: self.trace.parent.trace_id, door: self.trace.route.door() }
    }

    /// The trace's id if it is known now that it is recorded, here or by the caller.
    pub fn followed(&self) -> Option<u128> {
        let CallTrace { parent, is_remote, .. } = &self.trace;
        (self.sampled || (*is_remote && parent.sampled)).then_some(parent.trace_id)
    }

    /// The id of the next attempt's span; zero if it is not recorded.
    pub fn attempt_span(&self) -> u64 {
        if self.sampled { new_span_id() } else { 0 }
    }

    /// What an attempt passes on whose span is `span_id`. Nothing of a trace that began here and that nobody
    /// follows: no part of it would ever be seen.
    pub fn passed_on(&self, span_id: u64) -> Option<PassedOn<'_>> {
        let CallTrace { parent, propagated, is_remote, .. } = &self.trace;
        if span_id == 0 && !is_remote && propagated.is_none() {
            return None;
        }
        let span =
            if span_id == 0 { *parent } else { SpanRef { span_id, sampled: true, ..*parent } };
        let propagated = propagated.as_deref();
        Some(PassedOn {
            span,
            tracestate: propagated.and_then(|it| it.tracestate.as_deref()),
            baggage: propagated.and_then(|it| it.baggage.as_deref()),
        })
    }
}

/// An attempt and how it ended.
#[derive(Clone, Copy, Debug)]
pub struct Tried<'a> {
    /// From 1.
    pub number: u32,
    /// What it said about the backend.
    pub verdict: Verdict,
    /// Why it has no result.
    pub error: Option<&'a AttemptError>,
    /// The transition of the breaker that it brought about.
    pub transition: Option<(State, State)>,
}

/// Code and words of an attempt's error that everybody may see, for a step.
pub fn told(error: &AttemptError) -> Box<(Cow<'static, str>, String)> {
    Box::new((error.known_code(), error.message.said().to_owned()))
}
