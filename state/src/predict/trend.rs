//! When p90 reaches the timeout if it goes on as it did: Holt's two exponential averages, of its logarithm.

use std::time::Duration;

/// The weight of the newest second in the level, and in the slope.
const LEVEL: f64 = 0.3;
const SLOPE: f64 = 0.15;
/// Seconds that it must have seen.
const ENOUGH: u32 = 5;
/// Nothing is foretold beyond this.
const HORIZON: f64 = 120.0;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trend {
    /// Of the logarithm of p90 over the timeout: 0 is there.
    level: f64,
    /// What it gains a second.
    slope: f64,
    seen: u32,
}

impl Trend {
    /// Takes a second's p90.
    pub(super) fn follow(&mut self, p90: Duration, timeout: Duration) {
        let now = (p90.as_secs_f64().max(1e-6) / timeout.as_secs_f64().max(1e-6)).ln();
        self.seen = self.seen.saturating_add(1);
        if self.seen == 1 {
            self.level = now;
            return;
        }
        let before = self.level;
        self.level = LEVEL * now + (1.0 - LEVEL) * (before + self.slope);
        self.slope = SLOPE * (self.level - before) + (1.0 - SLOPE) * self.slope;
    }

    /// How long until p90 reaches the timeout; `None` if it does not within two minutes.
    pub(super) fn eta(&self) -> Option<Duration> {
        if self.seen < ENOUGH || self.slope <= 0.0 {
            return None;
        }
        let seconds = (-self.level / self.slope).max(0.0);
        (seconds <= HORIZON).then(|| Duration::from_secs_f64(seconds))
    }
}
