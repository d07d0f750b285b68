//! What a backend did in the last minute, and how its queue moves: counters, read once a second.
//!
//! ```text
//!   health, every second --> sample --> ring of a minute          view --> now minus then
//! ```
//!
//! Nothing is smoothed: a rate is the difference of two readings over the time between them.
//!
//! **Drain.** Over the last ten seconds, or since replay began if that is less, the queue fell from
//! `then` to `now` calls in `t` seconds. What was appended and buried meanwhile is in these figures, so
//! `(then - now) / t` is what replay gains per second, and the queue is drained in
//! `now / ((then - now) / t)` seconds. There is no estimate if replay is paused, has run for less than a
//! second, or does not gain.
//!
//! **Full.** In the same way `(limit - now) / ((now - then) / t)` over the last ten seconds, for calls and
//! for bytes, whichever is sooner.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use fusebox_state::Moment;
use parking_lot::Mutex;

use crate::{
    metrics::{BackendMetrics, SOURCES},
    times::{Counts, percentiles, real, thousandths},
    view::RecentView,
};

/// How far back a view looks.
const SPAN: Duration = Duration::from_secs(60);
/// Over how much of it rates are taken.
const RATE_SPAN: Duration = Duration::from_secs(10);
/// The least time that a rate is worth anything over.
const RATE_MIN: Duration = Duration::from_millis(900);
/// One reading.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Moment,
    pub(crate) by_source: [u64; SOURCES.len()],
    pub(crate) successes: u64,
    pub(crate) failures: u64,
    pub(crate) enqueued: u64,
    pub(crate) replayed: u64,
    /// In the queue.
    pub(crate) calls: u64,
    /// In the queue.
    pub(crate) bytes: u64,
    /// Calls wait and replay is not paused.
    pub(crate) replaying: bool,
    times: Box<Counts>,
}

/// How a queue moves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pace {
    pub(crate) enqueued_per_second: f64,
    pub(crate) replayed_per_second: f64,
    pub(crate) drain_seconds: Option<f64>,
    pub(crate) full_seconds: Option<f64>,
}

/// The readings of the last minute.
#[derive(Default)]
pub(crate) struct Recent {
    samples: Mutex<VecDeque<Sample>>,
}

impl Recent {
    /// Keeps a reading, and forgets those that are too old.
    pub(crate) fn keep(&self, sample: Sample) {
        let mut samples = self.samples.lock();
        let from = sample.at.minus(SPAN);
        samples.push_back(sample);
        // The span begins with the newest of those before it.
        while samples.get(1).is_some_and(|second| second.at <= from) {
            samples.pop_front();
        }
    }

    /// The 99th percentile of the response times between the oldest and the newest reading; `None` if there were
    /// none.
    pub(crate) fn p99(&self) -> Option<Duration> {
        let samples = self.samples.lock();
        let (then, now) = (samples.front()?, samples.back()?);
        let p99 = percentiles(&then.times, &now.times).p99;
        (p99 > 0.0).then(|| Duration::from_secs_f64(p99 / 1_000.0))
    }

    /// What happened between the span's begin and `now`.
    pub(crate) fn view(&self, now: &Sample) -> RecentView {
        let samples = self.samples.lock();
        let Some(then) = samples.front() else { return RecentView::default() };
        let seconds = now.at.since(then.at).as_secs_f64();
        let by_source: BTreeMap<_, _> = SOURCES
            .into_iter()
            .zip(now.by_source.iter().zip(&then.by_source))
            .map(|(source, (now, then))| (source.into(), now.saturating_sub(*then)))
            .collect();
        let lately = since(&samples, now.at.minus(RATE_SPAN)).unwrap_or(then);
        let all = |sample: &Sample| sample.by_source.iter().sum::<u64>();
        RecentView {
            seconds: tenths(seconds),
            calls: by_source.values().sum(),
            by_source,
            successes: now.successes.saturating_sub(then.successes),
            failures: now.failures.saturating_sub(then.failures),
            calls_per_second: per_second(all(lately), all(now), lately, now),
            response_ms: percentiles(&then.times, &now.times),
        }
    }

    /// How the queue moves, given the most calls and bytes that it holds.
    pub(crate) fn pace(&self, now: &Sample, limit_calls: u64, limit_bytes: u64) -> Pace {
        let samples = self.samples.lock();
        let Some(lately) = since(&samples, now.at.minus(RATE_SPAN)) else {
            return Pace::default();
        };
        let fills =
            [(lately.calls, now.calls, limit_calls), (lately.bytes, now.bytes, limit_bytes)];
        let full = fills.into_iter().filter_map(|(then, is, limit)| {
            let gain = per_second(then, is, lately, now);
            (gain > 0.0).then(|| real(limit.saturating_sub(is)) / gain)
        });
        Pace {
            enqueued_per_second: per_second(lately.enqueued, now.enqueued, lately, now),
            replayed_per_second: per_second(lately.replayed, now.replayed, lately, now),
            drain_seconds: drain(&samples, now).map(tenths),
            full_seconds: full.reduce(f64::min).map(tenths),
        }
    }
}

/// See the module's page.
fn drain(samples: &VecDeque<Sample>, now: &Sample) -> Option<f64> {
    if !now.replaying {
        return None;
    }
    let from = now.at.minus(RATE_SPAN);
    let began = samples.iter().rev().take_while(|it| it.replaying && it.at >= from).last()?;
    let gain = per_second(now.calls, began.calls, began, now);
    (gain > 0.0).then(|| real(now.calls) / gain)
}

/// The oldest reading that is not older than `from`.
fn since(samples: &VecDeque<Sample>, from: Moment) -> Option<&Sample> {
    samples.iter().find(|sample| sample.at >= from)
}

/// What `before` gained on the way to `after`, per second; 0 if it lost or the time is too short.
fn per_second(before: u64, after: u64, then: &Sample, now: &Sample) -> f64 {
    let took = now.at.since(then.at);
    if took < RATE_MIN {
        return 0.0;
    }
    thousandths(real(after.saturating_sub(before)) / took.as_secs_f64())
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Sample {
    /// A reading of everything but what is in the queue.
    pub(crate) fn of(metrics: &BackendMetrics, at: Moment) -> Self {
        let mut by_source = [0; SOURCES.len()];
        for (count, (_, calls)) in by_source.iter_mut().zip(metrics.by_source()) {
            *count = calls;
        }
        Self {
            at,
            by_source,
            successes: metrics.success.get(),
            failures: metrics.failure.get(),
            enqueued: metrics.enqueued.get(),
            replayed: metrics.replayed.get(),
            calls: 0,
            bytes: 0,
            replaying: false,
            times: metrics.times.read(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fusebox_state::times::BUCKETS;

    fn sample(second: u64, calls: u64, replaying: bool) -> Sample {
        Sample {
            at: Moment::from_millis(1_000_000 + second * 1_000),
            by_source: [0; SOURCES.len()],
            successes: 0,
            failures: 0,
            enqueued: 0,
            replayed: 0,
            calls,
            bytes: calls * 10,
            replaying,
            times: Box::new([0; BUCKETS]),
        }
    }

    /// The pace of a queue whose length is read every second.
    #[track_caller]
    fn pace(lengths: &[(u64, bool)]) -> Pace {
        let recent = Recent::default();
        let mut last = None;
        for (second, (calls, replaying)) in lengths.iter().enumerate() {
            let sample = sample(second as u64, *calls, *replaying);
            recent.keep(sample.clone());
            last = Some(sample);
        }
        recent.pace(&last.unwrap(), 1_000, 5_000)
    }

    #[test]
    fn a_queue_that_falls_by_ten_a_second_is_drained_in_its_length_over_ten() {
        let lengths: Vec<_> = (0..6).map(|second| (300 - second * 10, true)).collect();
        assert_eq!(pace(&lengths).drain_seconds, Some(25.0));
        assert_eq!(pace(&lengths).full_seconds, None);
    }

    #[test]
    fn what_came_before_replay_began_says_nothing_of_its_pace() {
        let mut lengths: Vec<_> = (0..8).map(|second| (100 + second * 20, false)).collect();
        lengths.extend([(240, true), (220, true), (200, true)]);
        assert_eq!(pace(&lengths).drain_seconds, Some(10.0));
    }

    #[test]
    fn only_the_last_ten_seconds_count() {
        let mut lengths: Vec<_> = (0..20).map(|second| (1_000 - second, true)).collect();
        lengths.extend((0..11).map(|second| (900 - second * 50, true)));
        assert_eq!(pace(&lengths).drain_seconds, Some(8.0));
    }

    #[test]
    fn there_is_no_estimate_where_nothing_is_gained() {
        for lengths in [
            &[(10, true)][..],
            &[(20, true), (10, false)],
            &[(10, true), (10, true), (10, true)],
            &[(10, true), (20, true), (30, true)],
        ] {
            assert_eq!(pace(lengths).drain_seconds, None, "{lengths:?}");
        }
        assert_eq!(Recent::default().pace(&sample(1, 1, true), 10, 10), Pace::default());
    }

    #[test]
    fn a_queue_is_full_by_calls_or_by_bytes_whichever_is_sooner() {
        // 1,000 calls would take 90 s, 5,000 bytes (at 10 each) 40 s.
        let lengths: Vec<_> = (0..11).map(|second| (second * 10, false)).collect();
        assert_eq!(pace(&lengths).full_seconds, Some(40.0));
    }

    #[test]
    fn a_minute_is_kept_and_what_came_before_is_not_counted() {
        let recent = Recent::default();
        for second in 0..200 {
            let mut sample = sample(second, 0, false);
            sample.by_source[0] = second * 2;
            sample.failures = second;
            recent.keep(sample);
        }
        let mut now = sample(199, 0, false);
        now.by_source[0] = 400;
        now.failures = 200;
        let view = recent.view(&now);
        assert_eq!((view.seconds, view.calls, view.failures), (60.0, 122, 61));
        assert_eq!((view.by_source["live"], view.by_source["cache"]), (122, 0));
        assert!((view.calls_per_second - 2.2).abs() < 1e-9, "{view:?}");
        assert!(recent.samples.lock().len() <= 62);
    }
}
