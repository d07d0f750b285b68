//! How fast replay may write: Firestore asks for 500 writes a second at first and half as many again every
//! five minutes, so that it can spread the load.
//!
//! ```text
//! rate = 500/s × 1.5 ^ (minutes of this drain / 5), halved with every RESOURCE_EXHAUSTED
//! ```
//! A drain that paused for five minutes begins from the start. Replay asks before each batch and is given what has
//! gathered, at least a tenth of a second's worth, so that batches stay worth their round trip. Live writes
//! are not held back: their callers are their pace. Against an emulator it is off.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::kinds::firestore::protocol::plan::WRITES_MAX;

const FIRST_RATE: f64 = 500.0;
const LEAST_RATE: f64 = 10.0;
const STEP: Duration = Duration::from_secs(300);
const GROWTH: f64 = 1.5;

/// See the [module](self).
pub(crate) struct Pace(Option<Mutex<State>>);

struct State {
    rate: f64,
    /// Writes that may be sent at once.
    allowance: f64,
    counted_at: Instant,
    stepped_at: Instant,
    used_at: Instant,
}

impl Pace {
    /// A pace at its beginning, or none.
    pub(crate) fn new(on: bool, now: Instant) -> Self {
        Self(on.then(|| Mutex::new(State::new(now))))
    }

    /// How many writes replay may send now; 0 for a pause.
    pub(crate) fn allowance(&self, now: Instant) -> usize {
        let Some(state) = &self.0 else { return WRITES_MAX };
        let mut state = state.lock();
        if now.duration_since(state.used_at) >= STEP {
            *state = State::new(now);
        }
        state.gather(now);
        if state.allowance < (state.rate / 10.0).min(count(WRITES_MAX)) {
            return 0;
        }
        whole(state.allowance).min(WRITES_MAX)
    }

    /// Replay sends so many writes.
    pub(crate) fn used(&self, writes: usize, now: Instant) {
        let Some(state) = &self.0 else { return };
        let mut state = state.lock();
        state.used_at = now;
        state.allowance -= count(writes);
    }

    /// The server says that it is too much.
    pub(crate) fn exhausted(&self, now: Instant) {
        let Some(state) = &self.0 else { return };
        let mut state = state.lock();
        state.rate = (state.rate / 2.0).max(LEAST_RATE);
        state.stepped_at = now;
        state.allowance = state.allowance.min(0.0);
    }
}

impl State {
    fn new(now: Instant) -> Self {
        let allowance = FIRST_RATE;
        Self { rate: FIRST_RATE, allowance, counted_at: now, stepped_at: now, used_at: now }
    }

    fn gather(&mut self, now: Instant) {
        while now.duration_since(self.stepped_at) >= STEP {
            self.rate *= GROWTH;
            self.stepped_at += STEP;
        }
        let passed = now.duration_since(self.counted_at).as_secs_f64();
        self.allowance = passed.mul_add(self.rate, self.allowance).min(self.rate);
        self.counted_at = now;
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most some thousands")]
fn count(writes: usize) -> f64 {
    writes as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded to what a commit takes, and the fraction may go"
)]
fn whole(allowance: f64) -> usize {
    allowance.clamp(0.0, count(WRITES_MAX)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes that pass within so many seconds.
    fn passed(pace: &Pace, now: &mut Instant, seconds: u64) -> usize {
        let end = *now + Duration::from_secs(seconds);
        let mut sent = 0;
        while *now < end {
            let allowed = pace.allowance(*now);
            pace.used(allowed, *now);
            sent += allowed;
            *now += Duration::from_millis(20);
        }
        sent
    }

    #[test]
    fn it_begins_at_500_and_grows_by_half_every_five_minutes() {
        let mut now = Instant::now();
        let pace = Pace::new(true, now);
        let first = passed(&pace, &mut now, 60);
        assert!((29_000..=31_000).contains(&first), "{first}");
        passed(&pace, &mut now, 240);
        let second = passed(&pace, &mut now, 60);
        assert!((44_000..=46_000).contains(&second), "{second}");
    }

    #[test]
    fn exhaustion_halves_it_and_a_long_pause_begins_anew() {
        let mut now = Instant::now();
        let pace = Pace::new(true, now);
        passed(&pace, &mut now, 1);
        pace.exhausted(now);
        assert_eq!(pace.allowance(now), 0, "it pauses");
        let halved = passed(&pace, &mut now, 60);
        assert!((14_000..=15_500).contains(&halved), "{halved}");
        now += STEP;
        assert_eq!(pace.allowance(now), WRITES_MAX);
        let again = passed(&pace, &mut now, 60);
        assert!((29_000..=31_000).contains(&again), "{again}");
    }

    #[test]
    fn against_an_emulator_it_is_off() {
        let now = Instant::now();
        let pace = Pace::new(false, now);
        pace.used(100_000, now);
        pace.exhausted(now);
        assert_eq!(pace.allowance(now), WRITES_MAX);
    }
}
