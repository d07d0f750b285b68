//! How long what listens waits, and how long it keeps what nobody follows.

use std::time::Duration;

/// The times that streams keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// A stream that nobody follows for so long is closed.
    pub(super) idle: Duration,
    /// So long the documents of an outage are kept.
    pub(super) kept: Duration,
    /// So long a query that was refused for good is refused without asking.
    pub(super) refused_for: Duration,
    /// The first wait before connecting again; it doubles.
    pub(super) backoff_base: Duration,
    /// The longest; a connection that was current for so long forgets the earlier ones.
    pub(crate) backoff_max: Duration,
    /// How often a shut gate is looked at.
    pub(crate) gate_shut: Duration,
    /// How often an open gate is looked at while connected.
    pub(super) gate_open: Duration,
    /// A server that says nothing for so long before its first result is taken for dead. Later silence is
    /// normal; a dead connection is then found by the client's HTTP/2 pings.
    pub(super) silence: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(5 * 60),
            kept: Duration::from_secs(30 * 60),
            refused_for: Duration::from_secs(60),
            backoff_base: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            gate_shut: Duration::from_millis(250),
            gate_open: Duration::from_secs(1),
            silence: Duration::from_secs(10),
        }
    }
}

impl Pace {
    /// The wait after so many failures in a row: between half of it and all of it.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let whole = self.backoff_base.saturating_mul(1 << failures.min(16)).min(self.backoff_max);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}
