//! When faults end before an operator ends them.

use std::{collections::VecDeque, fmt, time::Duration};

use super::Faults;
use crate::{Moment, system::SystemState};

/// The fill of a backend's queue above which its faults end, in percent.
const QUEUE_PERCENT: f64 = 70.0;
/// Over how long the share of failed calls is taken.
const SHARE_WINDOW: Duration = Duration::from_secs(10);
/// Of fewer calls there is no share.
const SHARE_CALLS: u64 = 20;

/// What the faults of a backend are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// The state of the system.
    pub state: SystemState,
    /// Fill of the backend's queue in percent.
    pub queue_percent: f64,
    /// The share of its calls that failed lately; `None` if there were too few.
    pub failed: Option<f64>,
}

/// Why faults end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ending {
    /// Their time is over.
    Expired,
    /// The system is in this state.
    State(SystemState),
    /// The queue is filled to so many percent.
    Queue(f64),
    /// This share of the calls failed.
    Failed(f64),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => write!(f, "its time is over"),
            Self::State(state) => write!(f, "the system is {state}"),
            Self::Queue(percent) => write!(f, "the queue is {percent:.0} % full"),
            Self::Failed(share) => write!(f, "{:.0} % of the calls fail", share * 100.0),
        }
    }
}

/// Whether faults that last until `until` end now, or may not even begin.
pub fn judge(faults: &Faults, until: Moment, now: Moment, found: &Conditions) -> Option<Ending> {
    if now >= until {
        return Some(Ending::Expired);
    }
    if faults.abort_on.holds_in(found.state) {
        return Some(Ending::State(found.state));
    }
    if found.queue_percent > QUEUE_PERCENT {
        return Some(Ending::Queue(found.queue_percent));
    }
    let failed = found.failed.filter(|share| faults.abort_above.is_some_and(|most| *share > most));
    failed.map(Ending::Failed)
}

/// The share of calls that failed in the last ten seconds.
#[derive(Debug, Default)]
pub struct FailedShare {
    /// When so many calls, and failed ones, had been counted; oldest first.
    counted: VecDeque<(Moment, u64, u64)>,
}

impl FailedShare {
    /// So many calls have ended by `now`, and so many of them have failed. Returns the share; `None` of fewer than 20
    /// calls.
    pub fn count(&mut self, calls: u64, failed: u64, now: Moment) -> Option<f64> {
        let since = now.minus(SHARE_WINDOW);
        // The last one from before then is what the window is counted from.
        while self.counted.get(1).is_some_and(|(at, ..)| *at <= since) {
            self.counted.pop_front();
        }
        self.counted.push_back((now, calls, failed));
        let (_, calls_then, failed_then) = self.counted.front()?;
        let (calls, failed) =
            (calls.saturating_sub(*calls_then), failed.saturating_sub(*failed_then));
        #[expect(clippy::cast_precision_loss, reason = "a share for people")]
        let share = failed as f64 / calls as f64;
        (calls >= SHARE_CALLS).then_some(share)
    }
}
