//! What is shown of faults on purpose.

use std::borrow::Cow;

use fusebox_state::{UnixMillis, chaos::Only};

/// The faults that are set for a backend.
#[derive(
    Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default)]
pub struct ChaosView {
    /// When they end.
    pub until: UnixMillis,
    /// When they were set.
    pub since: UnixMillis,
    /// By whom.
    pub by: String,
    /// Why; empty if nobody said.
    pub reason: String,
    /// What decides which attempts are struck.
    pub seed: u64,
    /// Whether what they do counts for the breaker.
    pub count: bool,
    /// Whether they were set by force.
    pub force: bool,
    /// How many attempts are held up at once, at most.
    pub max_active: u32,
    /// Which state of the system ends them: `critical`, `emergency` or `never`.
    pub abort_on: Cow<'static, str>,
    /// The share of failed calls that ends them.
    pub abort_above: Option<f64>,
    /// Why they strike nobody for now.
    pub suspended: Option<String>,
    /// Attempts that have been shown to them.
    pub attempts: u64,
    /// For how long they were set, in milliseconds.
    pub lasting_ms: u64,
    /// Each of them.
    pub faults: Vec<ChaosFaultView>,
}

/// One fault.
#[derive(
    Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default)]
pub struct ChaosFaultView {
    /// What it does.
    pub kind: String,
    /// The share of attempts that it strikes.
    pub rate: f64,
    /// For how long it holds them up.
    pub latency: Option<String>,
    /// By how much that is more or less.
    pub jitter: Option<String>,
    /// With which code of the server's it answers.
    pub code: Option<String>,
    /// What it strikes; `None` is reads and writes.
    pub class: Option<String>,
    /// Whose attempts it strikes.
    pub only: Only,
    /// Attempts that it has struck.
    pub hits: u64,
    /// Those that it would have struck, if that had not been too much at once.
    pub suppressed: u64,
}
