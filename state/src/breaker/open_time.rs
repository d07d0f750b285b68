//! How long a breaker stays open, also if that changes meanwhile.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Breaker, BreakerSettings, Cold, Underlying};
use crate::{
    backoff::uniform,
    units::{Moment, millis},
};

impl Breaker {
    /// While the system is CRITICAL, a critical backend stays open for at most `recovery_timeout`, counted from when it
    /// opened; an open time under way is shortened to that. Returns whether this is a change.
    pub fn cap_open_time(&self, is_capped: bool) -> bool {
        let mut cold = self.cold.lock();
        if cold.is_capped == is_capped {
            return false;
        }
        cold.is_capped = is_capped;
        if let (true, Underlying::Open { since, until, .. }) = (is_capped, &cold.underlying) {
            let early = cold.early(*since, *until);
            if let Underlying::Open { until, .. } = &mut cold.underlying {
                *until = early;
            }
            cold.is_unremembered = true;
        }
        true
    }

    /// Takes other settings. The state stays, and so do the outcomes that are within the new window; an open time under
    /// way is what it would be if it had begun with these settings.
    pub fn configure(&self, settings: BreakerSettings, now: Moment) {
        let mut cold = self.cold.lock();
        if cold.settings.window != settings.window {
            self.window.resize(settings.window, now);
        }
        self.slow_after.store(millis(settings.slow.after), Ordering::Relaxed);
        let times = |it: &BreakerSettings| {
            (it.recovery_timeout, it.recovery_timeout_max, it.jitter.get().to_bits())
        };
        let is_retimed = times(&cold.settings) != times(&settings);
        cold.settings = settings;
        if let (true, Underlying::Open { since, until, draw, is_restored }) =
            (is_retimed, &cold.underlying)
        {
            let now_until = since.plus(cold.open_time(*draw));
            let now_until = if *is_restored { now_until.min(*until) } else { now_until };
            if let Underlying::Open { until, .. } = &mut cold.underlying {
                *until = now_until;
            }
            cold.is_unremembered = true;
        }
    }

    /// Whether what is to be remembered ([`Breaker::memory`]) has changed without a transition since this was asked last.
    pub fn take_unremembered(&self) -> bool {
        std::mem::take(&mut self.cold.lock().is_unremembered)
    }
}

impl Cold {
    /// `recovery_timeout` times 2^exponent, capped; with jitter, which `draw` decides, from the second time on.
    pub(super) fn open_time(&self, draw: u64) -> Duration {
        let base = millis(self.settings.recovery_timeout);
        let longest = millis(self.settings.recovery_timeout_max).max(base);
        let longest = if self.is_capped { base } else { longest };
        let mut time = base.saturating_mul(1_u64 << self.exponent.min(32)).min(longest);
        if self.exponent > 0 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share of a span of milliseconds; the ratio is between 0 and 1"
            )]
            let low = (time as f64 * (1.0 - self.settings.jitter.get())) as u64;
            time = uniform(low.min(time), time, draw);
        }
        Duration::from_millis(time)
    }

    /// When an open time from `since` until `until` ends if its backend has returned.
    pub(super) fn early(&self, since: Moment, until: Moment) -> Moment {
        until.min(since.plus(self.settings.recovery_timeout))
    }
}
