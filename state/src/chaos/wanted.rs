//! The words of an order, and the order as it is written.

use serde::{Deserialize, Serialize};

use crate::system::SystemState;

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The server says that it is overloaded. Not executed.
    Error,
    /// The server refuses the call for good. Not executed.
    Reject,
    /// No answer within the timeout. Outcome unknown.
    Timeout,
    /// The connection breaks before anything is sent. Not executed.
    ResetBefore,
    /// The answer is thrown away and the connection reset. Outcome unknown.
    ResetAfter,
    /// It begins later.
    Latency,
    /// Its answer comes later.
    SlowDrip,
    /// The connection was dead already. Not executed.
    StaleConnection,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Error,
        Self::Reject,
        Self::Timeout,
        Self::ResetBefore,
        Self::ResetAfter,
        Self::Latency,
        Self::SlowDrip,
        Self::StaleConnection,
    ];

    /// The word of orders and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Reject => "reject",
            Self::Timeout => "timeout",
            Self::ResetBefore => "reset_before",
            Self::ResetAfter => "reset_after",
            Self::Latency => "latency",
            Self::SlowDrip => "slow_drip",
            Self::StaleConnection => "stale_connection",
        }
    }

    /// Its place in [`Kind::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether it holds an attempt up.
    pub const fn delays(self) -> bool {
        matches!(self, Self::Latency | Self::SlowDrip | Self::Timeout)
    }

    /// Whether it says how long.
    pub(super) const fn takes_latency(self) -> bool {
        matches!(self, Self::Latency | Self::SlowDrip)
    }

    /// Whether it answers with a code of the server's.
    pub(super) const fn takes_code(self) -> bool {
        matches!(self, Self::Error | Self::Reject)
    }
}

/// What an attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A caller's read.
    Read,
    /// A caller's write.
    Write,
    /// A ping.
    Ping,
    /// Queued calls.
    Replay,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Ping, Self::Replay];

    /// Its place in [`Class::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word of orders.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Ping => "ping",
            Self::Replay => "replay",
        }
    }
}

/// When faults end before their time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AbortOn {
    /// The system is CRITICAL, or worse.
    #[default]
    Critical,
    /// The system is in EMERGENCY. Only by force.
    Emergency,
    /// Never for the system's state. Only by force.
    Never,
}

impl AbortOn {
    /// The word of orders.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Emergency => "emergency",
            Self::Never => "never",
        }
    }

    /// Whether that state ends faults.
    pub fn holds_in(self, state: SystemState) -> bool {
        match self {
            Self::Critical => state >= SystemState::Critical,
            Self::Emergency => state >= SystemState::Emergency,
            Self::Never => false,
        }
    }
}

/// An attempt, as faults see it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// What it is for.
    pub class: Class,
    /// The caller's user id; `None` if nobody calls.
    pub uid: Option<u32>,
    /// The baggage that the caller sent.
    pub baggage: Option<&'a str>,
}

/// What an operator asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(rename = "ChaosOrder")]
#[serde(deny_unknown_fields, default)]
pub struct Order {
    /// The faults, 1 to 16 of them.
    pub faults: Vec<FaultOrder>,
    /// For how long, `1s` to `1h`; `5m` if it is not said.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasting: Option<String>,
    /// What decides which attempts are struck; random if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Whether what the faults do counts for the breaker; `true` if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<bool>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many attempts are held up at once, 1 to 10 (1,000 by force); 10 if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_active: Option<u32>,
    /// Which state of the system ends them: `critical`, or by force `emergency` or `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort_on: Option<String>,
    /// The share of failed calls that ends them, above 0 and at most 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort_above: Option<f64>,
    /// Whether the bounds of what is harmless are passed on purpose.
    #[serde(skip_serializing_if = "is_false")]
    pub force: bool,
}

/// A fault as it is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(rename = "ChaosFaultOrder", extend("required" = ["kind", "rate"]))]
#[serde(deny_unknown_fields, default)]
pub struct FaultOrder {
    /// What it does: `error`, `reject`, `timeout`, `reset_before`, `reset_after`, `latency`, `slow_drip` or
    /// `stale_connection`.
    pub kind: String,
    /// The share of attempts that it strikes, above 0 and at most 0.5 (1 by force).
    pub rate: Option<f64>,
    /// `latency` and `slow_drip`: for how long, `1ms` to `1m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<String>,
    /// The same: by how much that is more or less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
    /// `error` and `reject`: the server's own code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// `read`, `write`, `ping` or `replay`; reads and writes if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Whose attempts it strikes; all if it is empty.
    #[serde(skip_serializing_if = "Only::is_empty")]
    pub only: Only,
}

/// Whose attempts a fault strikes. It narrows what an operator has ordered, and orders nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Only {
    /// Of this user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// With this member in their baggage, such as `chaos=1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baggage: Option<String>,
}

impl Only {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an attempt is one of those.
    pub fn holds_for(&self, seen: &Seen<'_>) -> bool {
        let is_theirs = self.uid.is_none() || self.uid == seen.uid;
        is_theirs
            && self.baggage.as_deref().is_none_or(|member| {
                let members = seen.baggage.unwrap_or_default().split(',');
                // What follows a semicolon are properties of the member.
                members
                    .map(|it| it.split(';').next().unwrap_or_default().trim())
                    .any(|it| it == member)
            })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_false(flag: &bool) -> bool {
    !flag
}
