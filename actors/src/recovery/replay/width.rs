//! How many attempts of replay are on the wire at once.
//!
//! ```text
//!             success            a round pays, or is the first
//!   ┌─────┐            ┌─────┐ ──────────────────────────────▶ ┌───────┐  pays: go on
//!   │ one │ ─────────▶ │ two │                                 │ twice │ ──────────────▶ …
//!   └─────┘            └─────┘ ◀────────────────────────────── └───────┘
//!      ▲                  does not: half, held for HOLD rounds      │
//!      └────────────────────────── any failure ─────────────────────┘
//! ```
//! Two is what keeps a backend at work while the answers of one attempt are settled and the next is made. More
//! are tried, a round at a time. A **round** is as many attempts as the width, and no less than
//! [`ROUND_MIN`]; the first attempts at a new width fill the way and are not measured. It **pays** if replay
//! carries [`WORTH`] times as many calls a second as at half the width. A backend far away is paid by a width that
//! fills the way there; one that works on one thing at a time, or is as fast as it can be, is not sent more
//! than it can use: that would only have it juggle. This is hill climbing, as in Netflix's concurrency-limits,
//! on throughput in place of latency: the calls of a batch vary, so latencies do not compare.

use std::time::Duration;

use fusebox_state::Moment;

/// The shortest round: what moments of whole milliseconds can measure.
const ROUND_MIN: Duration = Duration::from_millis(20);
/// By how much twice the width must be faster.
const WORTH: f64 = 1.15;
/// Rounds before a width that did not pay is tried again: the backend may have changed.
const HOLD: u32 = 16;
/// The width after a success.
const PAIR: usize = 2;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Width {
    now: usize,
    /// Attempts that are not measured yet.
    fill: usize,
    /// Calls a second at half the width, if this one is being tried.
    to_beat: Option<f64>,
    /// Rounds until the next try.
    hold: u32,
    round: Option<Round>,
}

#[derive(Debug)]
struct Round {
    began: Moment,
    attempts: usize,
    calls: u64,
}

impl Round {
    fn at(began: Moment) -> Self {
        Self { began, attempts: 0, calls: 0 }
    }
}

impl Default for Width {
    fn default() -> Self {
        Self { now: 1, fill: 0, to_beat: None, hold: 0, round: None }
    }
}

impl Width {
    /// Attempts at once.
    pub(super) fn get(&self) -> usize {
        self.now
    }

    /// An attempt begins. It begins a round if none is under way.
    pub(super) fn begun(&mut self, at: Moment) {
        self.round.get_or_insert(Round::at(at));
    }

    /// An attempt has carried so many calls. The width is at most `most`.
    pub(super) fn carried(&mut self, calls: u64, at: Moment, most: usize) {
        if self.now > most {
            self.set(most.max(1));
        }
        if self.now < PAIR {
            self.set(PAIR.min(most));
        }
        if self.fill > 0 {
            self.fill -= 1;
            self.round = Some(Round::at(at));
            return;
        }
        let Some(round) = &mut self.round else { return };
        round.attempts += 1;
        round.calls += calls;
        let took = at.since(round.began);
        if round.attempts < self.now || took < ROUND_MIN {
            return;
        }
        let rate = count(round.calls) / took.as_secs_f64();
        self.round = Some(Round::at(at));
        match self.to_beat.take() {
            Some(to_beat) if rate < to_beat * WORTH => {
                self.set((self.now / 2).max(PAIR.min(most)));
                self.hold = HOLD;
            }
            _ if self.hold > 0 => self.hold -= 1,
            _ if self.now < most => {
                self.set((self.now * 2).min(most));
                self.to_beat = Some(rate);
            }
            _ => {}
        }
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self) {
        *self = Self::default();
    }

    /// Nothing is under way: what passes until the next attempt says nothing.
    pub(super) fn idle(&mut self) {
        self.round = None;
    }

    fn set(&mut self, width: usize) {
        self.now = width;
        self.fill = width;
        self.to_beat = None;
    }
}

#[expect(clippy::cast_precision_loss, reason = "calls of one round")]
fn count(calls: u64) -> f64 {
    calls as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds against a backend whose attempts of 100 calls take `millis` at a width. Returns the widths.
    fn widths(rounds: usize, millis: impl Fn(u64) -> u64) -> Vec<usize> {
        let mut width = Width::default();
        let mut now = Moment::default();
        let mut seen = Vec::new();
        for _ in 0..rounds {
            width.begun(now);
            let at = width.get();
            seen.push(at);
            now = now.plus(Duration::from_millis(millis(at as u64)));
            for _ in 0..at {
                width.carried(100, now, 16);
            }
        }
        seen
    }

    #[test]
    fn a_backend_that_is_far_away_is_paid_by_width() {
        // A round takes as long as the way, whatever is on it.
        assert_eq!(widths(9, |_| 20), [1, 2, 2, 4, 4, 8, 8, 16, 16]);
    }

    #[test]
    fn a_backend_that_does_one_thing_at_a_time_is_not_sent_more() {
        let seen = widths(40, |width| 20 * width);
        assert_eq!(seen[..6], [1, 2, 2, 4, 4, 2]);
        assert_eq!(seen.iter().filter(|width| **width > 2).count(), 4, "it is tried now and then");
        assert_eq!(seen.iter().max(), Some(&4));
    }

    #[test]
    fn width_stops_where_it_no_longer_pays() {
        // The way takes 60 ms, the work 20 ms, and one after the other: four keep it busy.
        let seen = widths(20, |width| (20 * width).max(80));
        assert_eq!(seen[..8], [1, 2, 2, 4, 4, 8, 8, 4]);
        assert_eq!(seen[19], 4);
    }

    #[test]
    fn a_failure_begins_anew_and_a_share_bounds_it() {
        let mut width = Width::default();
        let mut now = Moment::default();
        for _ in 0..9 {
            width.begun(now);
            now = now.plus(ROUND_MIN);
            for _ in 0..width.get() {
                width.carried(1, now, 5);
            }
        }
        assert_eq!(width.get(), 5);
        width.carried(1, now, 3);
        assert_eq!(width.get(), 3, "the share was made smaller");
        width.failed();
        assert_eq!(width.get(), 1);
        width.carried(1, now, 1);
        assert_eq!(width.get(), 1, "a share of one is kept");
    }

    #[test]
    fn what_passes_between_attempts_is_not_counted() {
        let mut width = Width::default();
        let mut now = Moment::default();
        for expected in [2, 2, 4] {
            width.begun(now);
            now = now.plus(ROUND_MIN);
            for _ in 0..width.get() {
                width.carried(1, now, 16);
            }
            assert_eq!(width.get(), expected);
        }
        width.begun(now);
        now = now.plus(ROUND_MIN);
        (0..4).for_each(|_| width.carried(1, now, 16));
        width.idle();
        now = now.plus(Duration::from_secs(60));
        width.begun(now);
        now = now.plus(ROUND_MIN);
        (0..4).for_each(|_| width.carried(1, now, 16));
        assert_eq!(width.get(), 8, "the minute is not part of the round");
    }

    #[test]
    fn a_round_lasts_long_enough_to_be_measured() {
        let mut width = Width::default();
        let now = Moment::default();
        for _ in 0..100 {
            width.begun(now);
            width.carried(1, now.plus(Duration::from_millis(19)), 16);
        }
        assert_eq!(width.get(), 2);
        width.carried(1, now.plus(Duration::from_millis(19) + ROUND_MIN), 16);
        assert_eq!(width.get(), 4);
    }
}
