//! How an attempt ended, and what may be done after it.

use std::fmt;

/// What an attempt says about the backend's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The backend answered, be it with an error that blames the caller.
    Success,
    /// The backend did not answer, answered too late, or said that it is overloaded.
    Failure,
    /// Says nothing of the backend: a caller that left before anything was sent, a local rejection, a shared reset.
    Neutral,
}

/// An attempt's verdict, with the flag that the slow-call rate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it says about the backend.
    pub verdict: Verdict,
    /// Whether the attempt took longer than the backend's slow-call threshold.
    pub slow: bool,
}

impl Outcome {
    /// A success that was not slow.
    pub const SUCCESS: Self = Self { verdict: Verdict::Success, slow: false };
    /// A failure that was not slow.
    pub const FAILURE: Self = Self { verdict: Verdict::Failure, slow: false };
    /// An attempt that says nothing of the backend.
    pub const NEUTRAL: Self = Self { verdict: Verdict::Neutral, slow: false };
}

/// What an error leaves allowed. Whether the attempt may have written something is a field beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// Certainly not executed (connect refused, LOADING): anything may be tried again.
    NotExecuted,
    /// Perhaps executed (a timeout or reset after bytes were sent): only what is absolute, or had a
    /// token on every attempt, may be tried again.
    Unknown,
    /// Perhaps executed, and nothing could distinguish a repetition from the first: it had no token although it
    /// needed one. Never tried again; a queued call becomes a dead letter.
    Ambiguous,
    /// The backend refuses this call for good (WRONGTYPE, a syntax error): never tried again; a
    /// queued call becomes a dead letter.
    Rejected,
    /// Its name belongs to another call: a marker of that name has another digest. Never tried again; a
    /// queued call becomes a dead letter.
    Conflict,
    /// The whole server is closed to us (authentication, READONLY, MISCONF): an operator must act;
    /// replay of the backend pauses.
    BlockedServer,
    /// One object is closed to us (permission, unknown table, OOM): an operator must act; replay of
    /// the lane pauses.
    BlockedObject,
}

impl ErrorClass {
    /// What is said to everybody of an error that a server has put into words of its own.
    pub const fn said(self) -> &'static str {
        match self {
            Self::NotExecuted => "the backend did not execute it",
            Self::Unknown => "the backend may have executed it",
            Self::Ambiguous => "it is unknown whether the backend executed it",
            Self::Rejected => "the backend refuses it",
            Self::Conflict => "its op_id belongs to another call",
            Self::BlockedServer => "the backend refuses all calls",
            Self::BlockedObject => "the backend refuses all calls for this object",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotExecuted => "not_executed",
            Self::Unknown => "unknown",
            Self::Ambiguous => "ambiguous",
            Self::Rejected => "rejected",
            Self::Conflict => "conflict",
            Self::BlockedServer => "blocked_server",
            Self::BlockedObject => "blocked_object",
        })
    }
}
