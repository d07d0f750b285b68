//! What became of alarms and openings.

use std::time::Duration;

use crate::units::Moment;

/// How long an alarm has to come true.
const AHEAD: Duration = Duration::from_secs(30);
/// The last seconds before an opening, in which a failure that nobody could foresee has begun.
const ONSET: u32 = 3;
/// Alarms by which it is judged whether they are worth anything.
const JUDGED: u32 = 20;
/// So few say nothing.
const JUDGED_MIN: u32 = 5;

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Alarms that came true.
    pub hits: u64,
    /// Alarms that did not.
    pub false_alarms: u64,
    /// Openings that should have been foreseen.
    pub missed: u64,
    /// Openings that nobody could foresee.
    pub unpredictable: u64,
}

/// What a second added to the score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scored {
    /// An alarm did not come true.
    pub false_alarm: bool,
    /// How an opening was foreseen.
    pub opening: Option<Opening>,
}

/// How an opening was foreseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// By an alarm, so long before.
    Hit(Duration),
    /// Not at all.
    Missed,
    /// Not at all, and it could not be.
    Unpredictable,
}

/// Keeps the score.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judge {
    score: Score,
    /// The alarm that is out.
    alarm: Option<Moment>,
    /// Whether there was a risk in each of the last 32 seconds, the newest in the lowest bit.
    risky: u32,
    /// Of the last alarms, whether each came true, the newest in the lowest bit; and of how many that is known.
    last: u32,
    known: u32,
}

impl Judge {
    /// An alarm was raised.
    pub(super) fn alarm(&mut self, now: Moment) {
        self.alarm.get_or_insert(now);
    }

    /// Whether there was a risk in the second that ended.
    pub(super) fn risk(&mut self, is_there: bool) {
        self.risky = self.risky << 1 | u32::from(is_there);
    }

    /// A second ended without an opening.
    pub(super) fn look(&mut self, now: Moment) -> Scored {
        let is_over = self.alarm.is_some_and(|at| now.since(at) > AHEAD);
        if is_over {
            self.alarm = None;
            self.score.false_alarms += 1;
            self.note(false);
        }
        Scored { false_alarm: is_over, opening: None }
    }

    /// The breaker opened by itself.
    pub(super) fn opened(&mut self, now: Moment) -> Scored {
        let false_alarm = self.look(now).false_alarm;
        let alarm = self.alarm.take();
        // The second of the opening is not among them yet.
        let before = (self.risky >> (ONSET - 1)) & ((1 << (30 - ONSET)) - 1);
        let opening = match alarm {
            _ if before == 0 => Opening::Unpredictable,
            Some(at) => Opening::Hit(now.since(at)),
            None => Opening::Missed,
        };
        match opening {
            Opening::Hit(_) => {
                self.score.hits += 1;
                self.note(true);
            }
            Opening::Missed => self.score.missed += 1,
            Opening::Unpredictable => self.score.unpredictable += 1,
        }
        Scored { false_alarm, opening: Some(opening) }
    }

    /// Nothing that was said holds any more, and nothing that comes of it counts.
    pub(super) fn forget(&mut self) {
        (self.alarm, self.risky) = (None, 0);
    }

    pub(super) fn score(&self) -> Score {
        self.score
    }

    /// Whether alarms were wrong more often than right.
    pub(super) fn is_unproven(&self) -> bool {
        let right = (self.last & ((1 << JUDGED) - 1)).count_ones();
        self.known >= JUDGED_MIN && right * 2 < self.known
    }

    fn note(&mut self, was_right: bool) {
        self.last = self.last << 1 | u32::from(was_right);
        self.known = (self.known + 1).min(JUDGED);
    }
}
