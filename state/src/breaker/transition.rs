//! States, and changes of state with all that led to them.

use std::fmt;

use crate::{units::UnixMillis, window::Horizon, words::Words};

/// A state of the breaker.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schemars(rename = "BreakerState")]
pub enum State {
    /// Calls flow.
    Closed,
    /// Calls are rejected.
    Open,
    /// A few probes are let through.
    HalfOpen,
}

impl State {
    /// The word of the API: `CLOSED`, `OPEN` or `HALF_OPEN`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "CLOSED",
            Self::Open => "OPEN",
            Self::HalfOpen => "HALF_OPEN",
        }
    }

    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open => 1,
            Self::HalfOpen => 2,
        }
    }

    pub(super) const fn of(word: u64) -> Self {
        match word & 3 {
            0 => Self::Closed,
            1 => Self::Open,
            _ => Self::HalfOpen,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a breaker changed its state.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Enough failures in the window, at a high enough rate.
    FailureRate,
    /// Enough failures at a rate of 0.8 in a shorter horizon.
    Burst,
    /// Enough failed pings in a row; from the second on together with attempts that callers gave up meanwhile.
    PingsFailed,
    /// A probe failed.
    ProbeFailed,
    /// A probe never reported.
    ProbeTimeout,
    /// Its open time is over.
    RecoveryTimeout,
    /// An operator asked for a recovery attempt.
    ForcedRecovery,
    /// Enough probes succeeded in a row.
    ProbesSucceeded,
    /// An operator forced it open.
    ForcedOpen,
    /// An operator forced it closed.
    ForcedClosed,
    /// An operator released a force.
    Released,
    /// A force expired.
    ForceExpired,
    /// An operator reset it.
    Reset,
    /// Enough pings were answered in a row after one had failed.
    PingsAnswered,
    /// Enough slow calls in the window, at a high enough rate.
    SlowCalls,
    /// A probe succeeded, and was slow.
    ProbeSlow,
    /// What its backend depends on is back.
    DependencyReturned,
}

impl Reason {
    /// The word of the API and the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FailureRate => "failure_rate",
            Self::Burst => "burst",
            Self::PingsFailed => "pings_failed",
            Self::ProbeFailed => "probe_failed",
            Self::ProbeTimeout => "probe_timeout",
            Self::RecoveryTimeout => "recovery_timeout",
            Self::ForcedRecovery => "forced_recovery",
            Self::ProbesSucceeded => "probes_succeeded",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
            Self::Released => "released",
            Self::ForceExpired => "force_expired",
            Self::Reset => "reset",
            Self::PingsAnswered => "pings_answered",
            Self::SlowCalls => "slow_calls",
            Self::ProbeSlow => "probe_slow",
            Self::DependencyReturned => "dependency_returned",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of the backend, as a transition remembers it.
#[derive(
    Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct ErrorRecord {
    /// When, on the wall clock.
    pub at: UnixMillis,
    /// The backend's code if it is known, or one of fusebox's. It quotes nobody.
    pub code: String,
    /// What happened. Read back, it is all the server's: see [`Words`].
    pub message: Words,
    /// The trace of the call, if it had one.
    pub trace_id: Option<String>,
    /// The address of the door by which the call came, if it came by one.
    #[serde(default)]
    pub door: Option<String>,
}

/// A change of the effective state, with all that led to it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why.
    pub reason: Reason,
    /// The horizon that the figures below were read over.
    pub horizon: Horizon,
    /// Calls in it.
    pub calls: u64,
    /// Failures in it.
    pub failures: u64,
    /// Failures among the calls.
    pub failure_rate: f64,
    /// The threshold of failures.
    pub failure_threshold: u32,
    /// The threshold of the rate.
    pub failure_rate_threshold: f64,
    /// Slow calls in it.
    #[serde(default)]
    pub slow: u64,
    /// The threshold of their rate; 0 if they trip nothing.
    #[serde(default)]
    pub slow_rate_threshold: f64,
    /// How long it will stay open, in milliseconds, if it opened and leaves by itself.
    pub open_for_ms: Option<u64>,
    /// Failed recoveries in a row.
    pub exponent: u32,
    /// An operator's words.
    pub note: Option<String>,
    /// The last errors before it, oldest first.
    pub last_errors: Vec<ErrorRecord>,
}

/// A transition and when it happened.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct TransitionRecord {
    /// When, on the wall clock.
    pub at: UnixMillis,
    /// What.
    #[serde(flatten)]
    pub transition: Transition,
}
