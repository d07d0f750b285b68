//! Whether a backend is about to fail, and how often that was right. It is shown, and acts on nothing.
//!
//! **What it looks at.** Once a second it is handed what the calls of that second came to ([`Seen`]) and the settings
//! as they are then ([`Bounds`]). What predicts failure is nearness to a limit, not change: a server that takes ten
//! times as long as yesterday, and a tenth of what callers wait for, does not fail. So the *risk*, between 0 and 1, is
//! the nearest of
//!
//! ```text
//!   p90 / timeout        failures / the breaker's rate        in flight / the most        the queue is full in 10 min or less
//! ```
//!
//! **States.**
//!
//! ```text
//!            risk >= 0.4 for 5 s            p90 >= timeout / 2 for 3 s, or failures >= 5 % for 2 s, with 5 calls
//!    +----+ --------------------> +-------+ ------------------------------> +---------+
//!    | OK |                       | WATCH |                                 | AT_RISK |
//!    +----+ <-------------------- +-------+ <------------------------------ +---------+
//!            15 s below 0.28                 15 s below 0.7 of both bounds
//!
//!    from any state: fewer than ten calls in ten seconds, or nothing to predict ([`Seen::is_off`])  -->  no state
//! ```
//!
//! **The score.** Entering `AT_RISK` is an *alarm*. An *opening* is the breaker leaving CLOSED by itself.
//!
//! ```text
//!    alarm, and an opening within 30 s                                               hit
//!    alarm, and none                                                                 false alarm
//!    opening without an alarm in the 30 s before                                     missed
//!    opening, and the risk was below 0.4 from 30 s to 3 s before it                  unpredictable
//! ```
//! The last one goes first: a server that is killed fails before it is dead, and an alarm of these three seconds is
//! notice of the failure and no prediction of it. It counts as nothing. Nor is anything counted that ended because of
//! somebody's order: while a backend is forced, offline, or struck by faults on purpose, an alarm that is out is
//! forgotten, and what opens is not scored.
//!
//! If fewer than half of the last twenty alarms were hits, of five at least, `AT_RISK` is shown as *unproven*.
//!
//! **When.** A trend (Holt's, of the logarithm of p90) says when p90 reaches the timeout if it goes on like this. It
//! raises no alarm: in recordings of real servers it was wrong in four cases of ten.

use std::{fmt, time::Duration};

use crate::units::{Moment, Ratio};

mod score;
#[cfg(test)]
mod tests;
mod trend;

use score::Judge;
pub use score::{Opening, Score, Scored};
use trend::Trend;

/// The risk from which on it is worth watching.
pub const WATCH: f64 = 0.4;
/// The share of the timeout that p90 reaches at an alarm.
pub const NEAR: f64 = 0.5;
/// The share of failures at an alarm.
pub const FAILING: f64 = 0.05;
/// A state is left below this share of the bound at which it was entered.
const LEAVE: f64 = 0.7;
/// How long a bound must hold, and how long it must not until its state is left; in seconds, which are looks.
const WATCH_AFTER: u32 = 5;
const NEAR_AFTER: u32 = 3;
const FAILING_AFTER: u32 = 2;
const LEAVE_AFTER: u32 = 15;
/// The least calls of the seconds that raise an alarm.
const ENOUGH: u64 = 5;
/// A queue that is full sooner than this is a risk.
const FULL_SOON: Duration = Duration::from_secs(600);
/// Over how many seconds traffic is judged, and the least calls in them.
const TRAFFIC: usize = 10;

/// What a second came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Calls that ended.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// The time that nine in ten did not exceed; `None` without calls.
    pub p90: Option<Duration>,
    /// Calls that are in flight.
    pub in_flight: u32,
    /// When the queue is full if it goes on growing like this.
    pub full_in: Option<Duration>,
    /// The breaker left CLOSED by itself within this second.
    pub opened: bool,
    /// There is nothing to predict: the breaker is not closed, it is forced, offline, or struck by faults on purpose.
    pub is_off: bool,
}

/// The settings that a second is judged by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The longest that an attempt takes.
    pub timeout: Duration,
    /// The share of failures that trips the breaker; 0 if it does not go by that.
    pub failure_rate: Ratio,
    /// The most calls in flight.
    pub in_flight_max: u32,
}

/// See the [module](self).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "PredictionState")]
pub enum State {
    /// There is nothing to predict now.
    #[default]
    Off,
    /// Less than a call a second.
    TooLittleTraffic,
    /// No limit is near.
    Ok,
    /// A limit is nearer than usual.
    Watch,
    /// It is likely to fail soon.
    AtRisk,
    /// As `AtRisk`, from one whose last alarms were wrong more often than right.
    Unproven,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Off, Self::TooLittleTraffic, Self::Ok, Self::Watch, Self::AtRisk, Self::Unproven];

    /// The word that users see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::TooLittleTraffic => "too_little_traffic",
            Self::Ok => "ok",
            Self::Watch => "watch",
            Self::AtRisk => "at_risk",
            Self::Unproven => "unproven",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which limit is near, and the figures of the newest second in which it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Because {
    /// p90 and the timeout.
    Slow(Duration, Duration),
    /// The share of failures, and the one that trips the breaker.
    Failing(f64, f64),
    /// Calls in flight, and the most of them.
    Crowded(u32, u32),
    /// The queue is full so soon.
    Filling(Duration),
}

/// What there is to show.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The state.
    pub state: State,
    /// Since when.
    pub since: Moment,
    /// The newest risk.
    pub risk: f64,
    /// Why, unless no limit is near; and for how long without a break, 0 if that is over.
    pub because: Option<(Because, Duration)>,
    /// When p90 reaches the timeout if it goes on like this; at most two minutes.
    pub eta: Option<Duration>,
    /// What became of alarms and openings so far.
    pub score: Score,
}

/// Follows one backend. See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Predictor {
    state: State,
    since: Moment,
    /// Seconds in a row; those without calls neither break nor lengthen a row of calls.
    watchful: Row,
    near: Row,
    failing: Row,
    /// Seconds in a row below what keeps the present state.
    calm: u32,
    /// Calls of the last seconds.
    traffic: [u64; TRAFFIC],
    looks: usize,
    risk: f64,
    /// Why the present state was entered or kept, as of the last second in which that was so.
    because: Option<(Because, Duration)>,
    trend: Trend,
    judge: Judge,
}

/// Seconds in a row in which something held, and the calls in them.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    seconds: u32,
    calls: u64,
    /// What held, with the figures of the newest of them.
    because: Option<Because>,
}

impl Row {
    /// Takes a second with `calls`. One without, in which nothing held, neither breaks the row nor lengthens it.
    fn next(&mut self, because: Option<Because>, calls: u64) {
        if because.is_some() {
            self.seconds = self.seconds.saturating_add(1);
            self.calls = self.calls.saturating_add(calls);
            self.because = because;
        } else if calls > 0 {
            *self = Self::default();
        }
    }

    /// What holds, and for how long.
    fn told(self) -> Option<(Because, Duration)> {
        self.because.map(|because| (because, Duration::from_secs(self.seconds.into())))
    }

    fn alarms(self, after: u32) -> bool {
        self.seconds >= after && self.calls >= ENOUGH
    }
}

impl Predictor {
    /// Takes what a second came to, and returns what was scored by it; to be called about every second.
    pub fn look(&mut self, seen: &Seen, bounds: &Bounds, now: Moment) -> Scored {
        let scored = if seen.opened { self.judge.opened(now) } else { self.judge.look(now) };
        if seen.is_off || seen.opened {
            self.rest(now);
            return scored;
        }
        if let Some(slot) = self.traffic.get_mut(self.looks % TRAFFIC) {
            *slot = seen.calls;
        }
        self.looks = self.looks.wrapping_add(1);
        let nearest = nearest(seen, bounds);
        self.judge.risk(nearest.is_some_and(|(risk, _)| risk >= WATCH));
        self.follow(seen, bounds, nearest);
        let state = if self.traffic.iter().sum::<u64>() < TRAFFIC as u64 {
            (self.near, self.failing, self.watchful) = Default::default();
            State::TooLittleTraffic
        } else {
            self.next_state()
        };
        if state == State::AtRisk && self.state != State::AtRisk {
            self.judge.alarm(now);
        }
        self.enter(state, now);
        self.because = match state {
            State::Watch | State::AtRisk => self.because(),
            _ => None,
        };
        scored
    }

    /// What there is to show.
    pub fn prediction(&self, now: Moment) -> Prediction {
        let is_told = matches!(self.state, State::Watch | State::AtRisk);
        let state = match self.state {
            State::AtRisk if self.judge.is_unproven() => State::Unproven,
            state => state,
        };
        Prediction {
            state,
            since: self.since.min(now),
            risk: self.risk,
            because: self.because.filter(|_| is_told),
            eta: self.trend.eta().filter(|_| is_told),
            score: self.judge.score(),
        }
    }

    /// Which bound raised the alarm that holds, or else which limit is nearest; and for how long. If nothing holds any
    /// more, what it was.
    fn because(&self) -> Option<(Because, Duration)> {
        let alarms = |row: Row, after| Some(row).filter(|row| row.alarms(after));
        let raised = alarms(self.near, NEAR_AFTER).or_else(|| alarms(self.failing, FAILING_AFTER));
        let over = || self.because.map(|(because, _)| (because, Duration::ZERO));
        raised.unwrap_or(self.watchful).told().or_else(over)
    }

    /// There is nothing to predict.
    fn rest(&mut self, now: Moment) {
        self.judge.forget();
        let judge = std::mem::take(&mut self.judge);
        *self = Self { judge, state: self.state, since: self.since, ..Self::default() };
        self.enter(State::Off, now);
    }

    fn follow(&mut self, seen: &Seen, bounds: &Bounds, nearest: Option<(f64, Because)>) {
        let risk = nearest.map_or(0.0, |(risk, _)| risk);
        let near = seen.p90.map_or(0.0, |p90| share(p90, bounds.timeout));
        let failing = rate(seen);
        let watchful = nearest.filter(|(risk, _)| *risk >= WATCH).map(|(_, because)| because);
        self.watchful.next(watchful, seen.calls);
        let slow = seen.p90.filter(|_| near >= NEAR);
        self.near.next(slow.map(|p90| Because::Slow(p90, bounds.timeout)), seen.calls);
        let failures = Because::Failing(failing, bounds.failure_rate.get());
        self.failing.next((failing >= FAILING).then_some(failures), seen.calls);
        let calm = match self.state {
            State::AtRisk => near < NEAR * LEAVE && failing < FAILING * LEAVE,
            _ => risk < WATCH * LEAVE,
        };
        // Calls that hang are no sign of calm.
        if !calm {
            self.calm = 0;
        } else if seen.calls > 0 || seen.in_flight == 0 {
            self.calm = self.calm.saturating_add(1);
        }
        if seen.calls > 0 || risk > 0.0 {
            self.risk = risk;
        }
        if let Some(p90) = seen.p90 {
            self.trend.follow(p90, bounds.timeout);
        }
    }

    fn next_state(&self) -> State {
        if self.near.alarms(NEAR_AFTER) || self.failing.alarms(FAILING_AFTER) {
            return State::AtRisk;
        }
        let is_over = self.calm >= LEAVE_AFTER;
        match self.state {
            State::AtRisk if !is_over => State::AtRisk,
            State::Watch if !is_over => State::Watch,
            _ if self.watchful.seconds >= WATCH_AFTER => State::Watch,
            _ => State::Ok,
        }
    }

    fn enter(&mut self, state: State, now: Moment) {
        if self.state != state {
            (self.state, self.since, self.calm) = (state, now, 0);
        }
    }
}

/// How near the nearest limit is, and which one it is.
fn nearest(seen: &Seen, bounds: &Bounds) -> Option<(f64, Because)> {
    let slow = seen.p90.map(|p90| (share(p90, bounds.timeout), Because::Slow(p90, bounds.timeout)));
    let trips = bounds.failure_rate.get();
    let failing = (seen.failures > 0).then(|| {
        let near = if trips > 0.0 { rate(seen) / trips } else { rate(seen) };
        (near, Because::Failing(rate(seen), trips))
    });
    let most = bounds.in_flight_max.max(1);
    let crowded = (seen.in_flight > 0).then(|| {
        (f64::from(seen.in_flight) / f64::from(most), Because::Crowded(seen.in_flight, most))
    });
    let filling = seen
        .full_in
        .filter(|full_in| *full_in < FULL_SOON)
        .map(|full_in| (1.0 - share(full_in, FULL_SOON), Because::Filling(full_in)));
    let all = [slow, failing, crowded, filling];
    let nearest = all.into_iter().flatten().max_by(|(a, _), (b, _)| a.total_cmp(b));
    nearest.map(|(risk, because)| (risk.clamp(0.0, 1.0), because))
}

#[expect(clippy::cast_precision_loss, reason = "calls of a second")]
fn rate(seen: &Seen) -> f64 {
    seen.failures as f64 / seen.calls.max(seen.failures).max(1) as f64
}

fn share(part: Duration, whole: Duration) -> f64 {
    part.as_secs_f64() / whole.as_secs_f64().max(1e-9)
}
