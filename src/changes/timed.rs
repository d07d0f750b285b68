//! How long a change lasts that was made for a time: no longer than that, wherever the wall clock is set.

use std::time::{Duration, Instant, SystemTime};

use crate::config::Change;

/// `change`, which an earlier run has written down. If the wall clock is before the time of the change, nobody knows how
/// much of its time is over: it gets no more than it was made for.
pub(crate) fn of_earlier_run(change: Change, now: SystemTime) -> Change {
    let until = change
        .until
        .filter(|_| now < change.at)
        .and_then(|until| now.checked_add(until.duration_since(change.at).unwrap_or_default()));
    if until.is_some() { Change { at: now, until, ..change } } else { change }
}

/// The changes of a running daemon that were made for a time, each with the moment at which it is over at the latest.
#[derive(Debug, Default)]
pub(crate) struct Timed(Vec<(Change, Instant)>);

impl Timed {
    /// Looks at `changes`: the rest of the time of those that are new begins now.
    pub(crate) fn look(&mut self, changes: &[Change], now: Instant, wall: SystemTime) {
        self.0.retain(|(known, _)| changes.contains(known));
        for change in changes {
            let Some(until) = change.until else { continue };
            if self.0.iter().all(|(known, _)| known != change) {
                let rest = until.duration_since(wall).unwrap_or_default();
                self.0.extend(now.checked_add(rest).map(|end| (change.clone(), end)));
            }
        }
    }

    /// How long it is until the first is over; `None` if there is none.
    pub(crate) fn first(&self, now: Instant, wall: SystemTime) -> Option<Duration> {
        self.0.iter().map(|timed| rest(timed, now, wall)).min()
    }

    /// Those that are over.
    pub(crate) fn over(&self, now: Instant, wall: SystemTime) -> Vec<Change> {
        let over = self.0.iter().filter(|timed| rest(timed, now, wall).is_zero());
        over.map(|(change, _)| change.clone()).collect()
    }
}

/// By the clock on which it is over first.
fn rest((change, end): &(Change, Instant), now: Instant, wall: SystemTime) -> Duration {
    let by_wall = change.until.and_then(|until| until.duration_since(wall).ok());
    by_wall.unwrap_or_default().min(end.saturating_duration_since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn wall(days: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + MINUTE * 60 * 24 * days
    }

    /// A change of that day for so many minutes.
    fn change(day: u32, minutes: Option<u32>) -> Change {
        let at = wall(day);
        Change {
            path: "health.interval".to_owned(),
            value: "9s".into(),
            replaced: None,
            by: "user 0".to_owned(),
            at,
            until: minutes.map(|minutes| at + MINUTE * minutes),
            persisted: true,
        }
    }

    #[test]
    fn a_change_of_an_earlier_run_gets_no_more_time_than_it_was_made_for() {
        let made = change(10, Some(10));
        let read = of_earlier_run(made.clone(), wall(9));
        assert_eq!((read.at, read.until), (wall(9), Some(wall(9) + MINUTE * 10)));
        assert_eq!(of_earlier_run(read.clone(), wall(9) + MINUTE), read, "its time goes on");
        for now in [wall(10), wall(10) + MINUTE, wall(11)] {
            assert_eq!(of_earlier_run(made.clone(), now), made);
        }
        let lasting = change(10, None);
        assert_eq!(of_earlier_run(lasting.clone(), wall(9)), lasting);
        let odd = Change { until: Some(wall(9) + MINUTE), ..made };
        assert_eq!(of_earlier_run(odd, wall(9)).until, Some(wall(9)), "it was never in effect");
    }

    #[test]
    fn a_change_of_this_run_is_over_by_the_clock_that_is_there_first() {
        let (start, mut timed) = (Instant::now(), Timed::default());
        let (short, long) = (change(10, Some(10)), change(10, Some(20)));
        let all = [long.clone(), change(10, None), short.clone()];
        timed.look(&all, start, wall(10));
        assert_eq!(timed.first(start, wall(10)), Some(MINUTE * 10));
        // The wall clock is set back, and nothing begins again.
        let later = start + MINUTE * 9;
        timed.look(&all, later, wall(9));
        assert_eq!(
            (timed.first(later, wall(9)), timed.over(later, wall(9))),
            (Some(MINUTE), vec![])
        );
        let later = start + MINUTE * 10;
        assert_eq!(timed.over(later, wall(9)), std::slice::from_ref(&short));
        // It is set forward.
        assert_eq!(timed.over(start, wall(11)), [long.clone(), short]);
        timed.look(&all[..2], later, wall(9));
        assert_eq!(timed.first(later, wall(9)), Some(MINUTE * 10));
        timed.look(&all[1..2], later, wall(9));
        assert_eq!(timed.first(later, wall(9)), None);
    }
}
