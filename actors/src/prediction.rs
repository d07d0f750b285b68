//! Whether a backend is about to fail: what its attempts hand to [`fusebox_state::predict`], and what is shown of that.
//!
//! An attempt that ends adds one to the bucket of its time, and one more if it failed. It waits for nobody and
//! allocates nothing. Once a second health takes what these came to, and judges it by the settings of that moment.
//!
//! Only what callers sent counts, and only if how long it takes says something of the backend: replay, and calls that
//! upload or are read in pieces, do not.
//!
//! **What is not scored.** Openings by somebody's order, and those within a window of faults on purpose: what these
//! did is in the window that trips the breaker.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use fusebox_state::{
    Moment,
    breaker::{self, Reason, Transition},
    predict::{Because, Bounds, Prediction, Predictor, Scored, Seen, State},
    times::percentile,
};
use parking_lot::Mutex;

use crate::{clock::Clock, times::Times, view::PredictionView};

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Forecast {
    times: Times,
    failures: AtomicU64,
    /// The breaker left CLOSED by itself since the last look.
    opened: AtomicBool,
    followed: Mutex<Followed>,
}

/// What is not of attempts.
pub(crate) struct Conditions {
    pub(crate) now: Moment,
    pub(crate) in_flight: u32,
    /// When the queue is full if it goes on growing like this.
    pub(crate) full_in: Option<Duration>,
    /// Faults on purpose are set.
    pub(crate) is_struck: bool,
    /// The breaker's.
    pub(crate) window: Duration,
    /// The breaker is not CLOSED, it is forced, or the backend is offline.
    pub(crate) is_held_up: bool,
}

#[derive(Default)]
struct Followed {
    predictor: Predictor,
    /// What faults on purpose did is out of the breaker's window then.
    undisturbed_from: Moment,
}

impl Forecast {
    /// An attempt ended.
    #[inline]
    pub(crate) fn ended(&self, took: Duration, has_failed: bool) {
        self.times.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        if has_failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The breaker changed its state, while faults on purpose were set or not.
    pub(crate) fn changed(&self, transition: &Transition, is_struck: bool) {
        let by_itself = matches!(
            transition.reason,
            Reason::FailureRate | Reason::Burst | Reason::SlowCalls | Reason::PingsFailed
        );
        if by_itself
            && !is_struck
            && (transition.from, transition.to) == (breaker::State::Closed, breaker::State::Open)
        {
            self.opened.store(true, Ordering::Relaxed);
        }
    }

    /// Judges what happened since the last look; to be called about every second.
    pub(crate) fn look(&self, conditions: &Conditions, bounds: &Bounds) -> Scored {
        let now = conditions.now;
        let counts = self.times.take();
        let mut followed = self.followed.lock();
        if conditions.is_struck {
            followed.undisturbed_from = now.plus(conditions.window);
        }
        let is_disturbed = now < followed.undisturbed_from;
        let seen = Seen {
            calls: counts.iter().sum(),
            failures: self.failures.swap(0, Ordering::Relaxed),
            p90: percentile(&counts, 0.9).map(|p90| Duration::from_secs_f64(p90 / 1_000.0)),
            in_flight: conditions.in_flight,
            full_in: conditions.full_in,
            opened: self.opened.swap(false, Ordering::Relaxed) && !is_disturbed,
            is_off: is_disturbed || conditions.is_held_up,
        };
        followed.predictor.look(&seen, bounds, now)
    }

    /// The state now.
    pub(crate) fn state(&self, now: Moment) -> State {
        self.told(now).state
    }

    fn told(&self, now: Moment) -> Prediction {
        self.followed.lock().predictor.prediction(now)
    }

    /// What there is to show.
    pub(crate) fn view(&self, clock: Clock) -> PredictionView {
        let told = self.told(clock.now());
        PredictionView {
            state: told.state.into(),
            because: told.because.map(|(because, lasts)| words(because, lasts)),
            eta_s: told.eta.map(|eta| eta.as_secs()),
            since: clock.to_unix(told.since),
            risk: (told.risk * 1_000.0).round() / 1_000.0,
            hits: told.score.hits,
            false_alarms: told.score.false_alarms,
            missed: told.score.missed,
            unpredictable: told.score.unpredictable,
        }
    }
}

/// The reason in words: `p90 118 ms of a timeout of 200 ms for 4 s`; `recovering from: ` before one that is over.
fn words(because: Because, lasts: Duration) -> String {
    let (before, lasts) = match lasts.as_secs() {
        0 => ("recovering from: ", String::new()),
        seconds => ("", format!(" for {seconds} s")),
    };
    let figures = match because {
        Because::Slow(p90, timeout) => {
            format!("p90 {} of a timeout of {}{lasts}", short(p90), short(timeout))
        }
        Because::Failing(rate, trips) => {
            let trips = match trips {
                trips if trips > 0.0 => format!("; the breaker opens at {:.0} %", trips * 100.0),
                _ => String::new(),
            };
            format!("{:.0} % of calls failed{lasts}{trips}", rate * 100.0)
        }
        Because::Crowded(in_flight, most) => {
            format!("{in_flight} attempts in flight of at most {most}{lasts}")
        }
        Because::Filling(full_in) => {
            format!("the queue grows{lasts}, and is full in {} s", full_in.as_secs())
        }
    };
    format!("{before}{figures}")
}

/// Milliseconds below ten seconds, seconds above.
fn short(time: Duration) -> String {
    match time.as_millis() {
        millis if millis < 10_000 => format!("{millis} ms"),
        millis => format!("{} s", millis / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use fusebox_state::{Ratio, predict::Opening, window::Horizon};

    use super::*;

    #[test]
    fn a_reason_has_its_figures() {
        let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
        for (because, lasts, said) in [
            (
                Because::Slow(millis(118), millis(200)),
                4,
                "p90 118 ms of a timeout of 200 ms for 4 s",
            ),
            (
                Because::Slow(seconds(9), seconds(30)),
                0,
                "recovering from: p90 9000 ms of a timeout of 30 s",
            ),
            (
                Because::Failing(0.07, 0.5),
                2,
                "7 % of calls failed for 2 s; the breaker opens at 50 %",
            ),
            (Because::Failing(0.07, 0.0), 2, "7 % of calls failed for 2 s"),
            (Because::Crowded(200, 256), 5, "200 attempts in flight of at most 256 for 5 s"),
            (Because::Filling(seconds(90)), 9, "the queue grows for 9 s, and is full in 90 s"),
        ] {
            assert_eq!(words(because, seconds(lasts)), said);
        }
    }

    fn opens(reason: Reason) -> Transition {
        Transition {
            from: breaker::State::Closed,
            to: breaker::State::Open,
            reason,
            horizon: Horizon::Whole,
            calls: 10,
            failures: 10,
            failure_rate: 1.0,
            failure_threshold: 5,
            failure_rate_threshold: 0.5,
            slow: 0,
            slow_rate_threshold: 0.0,
            open_for_ms: None,
            exponent: 0,
            note: None,
            last_errors: Vec::new(),
        }
    }

    #[test]
    fn openings_by_order_and_of_faults_on_purpose_are_not_scored() {
        let bounds = Bounds {
            timeout: Duration::from_secs(1),
            failure_rate: Ratio::new(0.5).unwrap(),
            in_flight_max: 10,
        };
        let forecast = Forecast::default();
        let look = |second: u64, is_struck: bool| {
            let conditions = Conditions {
                now: Moment::from_millis(second * 1_000),
                in_flight: 0,
                full_in: None,
                is_struck,
                window: Duration::from_secs(60),
                is_held_up: false,
            };
            forecast.look(&conditions, &bounds).opening
        };
        forecast.changed(&opens(Reason::ForcedOpen), false);
        assert_eq!(look(1, false), None, "an order");
        forecast.changed(&opens(Reason::Burst), true);
        assert_eq!(look(2, false), None, "faults that its opening has ended");
        assert_eq!(look(3, true), None);
        forecast.changed(&opens(Reason::FailureRate), false);
        assert_eq!(look(62, false), None, "what they did is in the window");
        forecast.changed(&opens(Reason::FailureRate), false);
        assert_eq!(look(63, false), Some(Opening::Unpredictable));
        assert_eq!(look(64, false), None, "once");
    }

    #[test]
    fn what_a_backend_has_of_it_is_small() {
        assert!(size_of::<Forecast>() <= 4_096, "{}", size_of::<Forecast>());
    }
}
