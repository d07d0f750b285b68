//! What the watcher knows: the last view, how it came about, and what happened.

use std::collections::{BTreeMap, VecDeque};

use fusebox_actors::view::{ExplainView, ResilienceView};
use fusebox_state::UnixMillis;

use crate::terminal::views::{EventView, Phase};

/// Points of a trend: more than a wide terminal has columns.
const POINTS: usize = 300;
/// Events that are kept.
const EVENTS: usize = 200;

/// A move of the selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// To the next backend.
    Next,
    /// To the one before.
    Previous,
}

/// How figures of a backend went, a point a second; `None` if the daemon said nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Trend {
    /// Calls per second.
    pub(super) calls: VecDeque<Option<u64>>,
    /// Failures among the calls of the breaker's window, in percent.
    pub(super) failed: VecDeque<Option<u64>>,
    /// Calls that wait in the queue.
    pub(super) queued: VecDeque<Option<u64>>,
    /// 99th percentile of the response times of the last minute, in microseconds.
    pub(super) p99: VecDeque<Option<u64>>,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The last view.
    pub(super) view: Option<ResilienceView>,
    /// Why there is none now.
    pub(super) lost: Option<String>,
    /// How things went.
    pub(super) trends: BTreeMap<String, Trend>,
    /// What happened, newest last.
    pub(super) events: VecDeque<EventView>,
    explained: Option<(String, ExplainView)>,
    selected: Option<String>,
}

impl Seen {
    /// The daemon says how things are.
    pub(super) fn view(&mut self, view: ResilienceView) {
        let before = self.view.as_ref();
        let passed = before.map_or(0.0, |before| view.at.since(before.at).as_secs_f64());
        for backend in view.backends.values() {
            let before = before.and_then(|before| before.backends.get(&backend.name));
            let calls = before.and_then(|before| {
                // Fewer than before is another run of the daemon.
                let gained = backend.calls.total.checked_sub(before.calls.total)?;
                #[expect(clippy::cast_precision_loss, reason = "a figure on a chart")]
                (passed > 0.0).then(|| whole(gained as f64 / passed))
            });
            let trend = self.trends.entry(backend.name.clone()).or_default();
            push(&mut trend.calls, calls, POINTS);
            let failed = backend.breaker.failure_rate * 100.0;
            push(&mut trend.failed, Some(whole(failed)), POINTS);
            push(&mut trend.queued, Some(backend.queue.calls), POINTS);
            let p99 = backend.recent.response_ms.p99 * 1_000.0;
            push(&mut trend.p99, Some(whole(p99)), POINTS);
        }
        self.view = Some(view);
        self.lost = None;
        if self.selected().is_none() {
            self.selected = self.worst();
        }
    }

    /// The daemon does not answer.
    pub(super) fn lost(&mut self, why: String) {
        for trend in self.trends.values_mut() {
            for points in [&mut trend.calls, &mut trend.failed, &mut trend.queued, &mut trend.p99] {
                push(points, None, POINTS);
            }
        }
        self.lost = Some(why);
    }

    /// Something happened, or happened before and arrives again.
    pub(super) fn event(&mut self, event: EventView) {
        // Progress is in the figures.
        if event.phase.known() == Some(Phase::Progress) {
            return;
        }
        if event.id.is_none() || !self.events.iter().any(|other| other.id == event.id) {
            push(&mut self.events, event, EVENTS);
        }
    }

    /// A backend is explained.
    pub(super) fn explained(&mut self, backend: String, story: ExplainView) {
        self.explained = Some((backend, story));
    }

    /// The explanation of the selected backend, if it has come.
    pub(super) fn story(&self) -> Option<&ExplainView> {
        let (backend, story) = self.explained.as_ref()?;
        (self.selected.as_ref() == Some(backend)).then_some(story)
    }

    /// The place and name of the selected backend.
    pub(super) fn selected(&self) -> Option<(usize, String)> {
        let names = self.names();
        let at = names.iter().position(|name| Some(name) == self.selected.as_ref())?;
        Some((at, names.get(at)?.clone()))
    }

    /// Selects another backend; after the last comes the first.
    pub(super) fn select(&mut self, step: Outlook) {
        let names = self.names();
        let at = self.selected().map_or(0, |(at, _)| match step {
            Outlook::Next => (at + 1) % names.len().max(1),
            Outlook::Previous => at.checked_sub(1).unwrap_or(names.len().saturating_sub(1)),
        });
        self.selected = names.get(at).cloned();
    }

    /// When the daemon was last heard of, on its clock.
    pub(super) fn last_seen(&self) -> Option<UnixMillis> {
        self.view.as_ref().map(|view| view.at)
    }

    /// How many backends there are.
    pub(super) fn count(&self) -> usize {
        self.view.as_ref().map_or(0, |view| view.backends.len())
    }

    fn names(&self) -> Vec<String> {
        let all = self.view.iter().flat_map(|view| view.backends.values());
        all.map(|backend| backend.name.clone()).collect()
    }

    /// The first backend that is down, else the first.
    fn worst(&self) -> Option<String> {
        let all = &self.view.as_ref()?.backends;
        let down = all.values().find(|backend| !backend.operational);
        down.or(all.values().next()).map(|backend| backend.name.clone())
    }
}

fn push<T>(points: &mut VecDeque<T>, point: T, most: usize) {
    if points.len() >= most {
        points.pop_front();
    }
    points.push_back(point);
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a figure on a chart")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use crate::terminal::views::read;
    use serde_json::json;

    use super::*;

    fn view(second: u64, calls: u64, down: Option<&str>) -> ResilienceView {
        let backend = |name: &str| {
            json!({ "name": name, "operational": down != Some(name), "calls": { "total": calls },
                "breaker": { "failure_rate": 0.25 }, "queue": { "calls": 7 },
                "recent": { "response_ms": { "p99": 1.5 } } })
        };
        let backends = json!({ "a": backend("a"), "b": backend("b"), "c": backend("c") });
        let at = format!("2026-09-21T14:13:{second:02}Z");
        read(&json!({ "at": at, "backends": backends })).unwrap()
    }

    #[test]
    fn calls_per_second_are_the_difference_of_two_views() {
        let mut seen = Seen::default();
        for (second, calls) in [(0, 100), (1, 150), (3, 250)] {
            seen.view(view(second, calls, None));
        }
        seen.lost("gone".into());
        // Another run counts from zero.
        seen.view(view(9, 10, None));
        assert_eq!(seen.trends["a"].calls, [None, Some(50), Some(50), None, None]);
        assert_eq!(seen.trends["a"].failed[0], Some(25));
        assert_eq!(seen.trends["a"].queued, [Some(7), Some(7), Some(7), None, Some(7)]);
        assert_eq!(seen.trends["a"].p99[0], Some(1_500));
    }

    #[test]
    fn the_selection_goes_round_and_begins_where_something_is_down() {
        let mut seen = Seen::default();
        assert_eq!(seen.selected(), None);
        seen.select(Outlook::Next);
        seen.view(view(0, 0, Some("b")));
        assert_eq!(seen.selected(), Some((1, "b".into())));
        seen.select(Outlook::Next);
        assert_eq!(seen.selected(), Some((2, "c".into())));
        seen.select(Outlook::Next);
        assert_eq!(seen.selected(), Some((0, "a".into())));
        seen.select(Outlook::Previous);
        assert_eq!(seen.selected(), Some((2, "c".into())));
        seen.view(view(1, 0, Some("b")));
        assert_eq!(seen.selected(), Some((2, "c".into())), "it stays where it is");
        seen.explained("b".into(), ExplainView::default());
        assert!(seen.story().is_none(), "another backend's");
    }

    #[test]
    fn an_event_that_is_told_twice_is_there_once() {
        let mut seen = Seen::default();
        for id in [1, 2, 2, 1, 3] {
            seen.event(EventView::of(&json!({ "id": id, "event": "alert" })));
        }
        let progress = json!({ "id": 4, "event": "replay", "phase": "progress" });
        seen.event(EventView::of(&progress));
        assert_eq!(seen.events.len(), 3);
    }
}
