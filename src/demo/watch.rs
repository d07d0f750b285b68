//! Watches the daemon as a dashboard would: its health, its events, and what callers get.

use std::{
    collections::{BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use fusebox_actors::view::{HealthView, ResilienceView};
use fusebox_state::breaker::State;
use http_body_util::BodyExt;
use hyper::Method;
use tokio::task::JoinSet;

use super::{
    backend::Each,
    callers::Caller,
    ledger::Page,
    screen::Screen,
    status::{Condition, Health, Rates, Status},
};
use crate::terminal::{
    client::Client,
    events::{self, Reader},
    views::{EventView, EventWord, Phase, read},
};

/// How often health is asked for.
const TICK: Duration = Duration::from_millis(100);
/// Rates are over this time.
const RATE_OVER: Duration = Duration::from_secs(1);

/// Asks a daemon for its health; `None` if none answers.
pub(super) async fn health(client: &Client) -> Option<Health> {
    // 503 is an answer too: of a system that is CRITICAL.
    let (_, answer) = client.exchange(Method::GET, "/health", None).await.ok()?;
    let view: HealthView = read(&answer).ok()?;
    let backends = Each::of(|backend| {
        let seen = view.backends.get(backend.name()).cloned().unwrap_or_default();
        Condition { breaker: seen.breaker, queued: seen.queued }
    });
    Some(Health { state: view.state, backends })
}

/// What a daemon has replayed of a backend's queue since its start, and what it gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Replayed {
    /// Calls that were replayed.
    pub(super) calls: u64,
    /// Dead letters.
    pub(super) dead_letters: u64,
    /// How long the oldest call that still waits has waited; nothing if none waits.
    pub(super) oldest: Duration,
}

/// Asks a daemon what it has replayed; `None` if none answers.
pub(super) async fn replayed(client: &Client) -> Option<Each<Replayed>> {
    let (_, answer) = client.exchange(Method::GET, "/health/resilience", None).await.ok()?;
    let view: ResilienceView = read(&answer).ok()?;
    Some(Each::of(|backend| {
        let seen = view.backends.get(backend.name()).map(|seen| &seen.queue);
        seen.map_or_else(Replayed::default, |queue| Replayed {
            calls: queue.replayed,
            dead_letters: queue.dead_letters,
            oldest: Duration::from_millis(queue.oldest_age_ms),
        })
    }))
}

/// Shows the state and what happens until it is dropped.
pub(super) fn start(screen: &Arc<Screen>, caller: &Caller, socket: PathBuf) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(show_status(Arc::clone(screen), caller.another(), Client::new(socket.clone())));
    tasks.spawn(show_events(Arc::clone(screen), Client::new(socket)));
    tasks
}

async fn show_status(screen: Arc<Screen>, caller: Caller, client: Client) {
    let mut past = Past::default();
    loop {
        let health = health(&client).await;
        let counts = Each::of(|backend| Counts::of(caller.ledger.lock().get(backend)));
        screen.status(&Status { health, rates: past.since_a_second(counts) });
        tokio::time::sleep(TICK).await;
    }
}

/// Tells of transitions, of the system's state and of replay.
async fn show_events(screen: Arc<Screen>, client: Client) {
    let mut teller = Teller::default();
    loop {
        if let Ok(mut body) = client.stream("/v1/events").await {
            let mut reader = Reader::default();
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(data) = frame.into_data() else { continue };
                let events = reader.read(&data).into_iter();
                let lines = events.filter_map(|event| teller.line(&EventView::of(&event)));
                lines.for_each(|line| screen.note(&line));
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Puts events into words. A breaker that fails to recover does so once a second, and a queue into which
/// writes still go runs empty again and again: that is shown once an outage.
#[derive(Default)]
struct Teller {
    told_of_a_failed_probe: BTreeSet<String>,
    told_of_an_empty_queue: BTreeSet<String>,
}

impl Teller {
    /// An event's line; `None` for what the status shows better.
    fn line(&mut self, event: &EventView) -> Option<String> {
        use State::{Closed, HalfOpen, Open};
        let (what, backend) = (events::what(event), &event.backend);
        let what = what.trim_end_matches(": ").trim_end();
        let told = match event.event {
            EventWord::Transition => match (event.from.known(), event.to.known()) {
                (Some(Open), Some(HalfOpen)) => return None,
                (Some(HalfOpen), Some(Open)) => {
                    if !self.told_of_a_failed_probe.insert(backend.clone()) {
                        return None;
                    }
                    "breaker OPEN -> HALF_OPEN -> OPEN (the probe failed; it will try again)".into()
                }
                (Some(HalfOpen), Some(Closed)) => {
                    "breaker OPEN -> HALF_OPEN -> CLOSED (the probes succeeded)".into()
                }
                (Some(Closed), _) => {
                    self.told_of_a_failed_probe.remove(backend);
                    self.told_of_an_empty_queue.remove(backend);
                    format!("breaker {what}")
                }
                _ => format!("breaker {what}"),
            },
            EventWord::Replay if event.phase.known() != Some(Phase::Drained) => return None,
            EventWord::Replay if !self.told_of_an_empty_queue.insert(backend.clone()) => {
                return None;
            }
            EventWord::Replay => format!("its queue is empty, {} replayed", event.replayed),
            EventWord::SystemState => state(event),
            EventWord::DeadLetter | EventWord::Alert | EventWord::Actor => what.to_owned(),
            _ => return None,
        };
        Some(if backend.is_empty() { told } else { format!("{backend:<10} {told}") })
    }
}

/// The system's state, and what made it so; that a backend is down is said by its breaker.
fn state(event: &EventView) -> String {
    let mut reasons = event.reasons.clone();
    if reasons.len() > 1 {
        reasons.retain(|reason| !reason.starts_with("backend "));
    }
    let EventView { from, to, .. } = event;
    let line = format!("the system is {to} (was {from}): {}", reasons.join("; "));
    line.trim_end_matches(": ").to_owned()
}

/// Calls so far to one backend, by what became of them.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    live: u64,
    queued: u64,
    cached: u64,
    failed: u64,
}

impl Counts {
    fn of(page: &Page) -> Self {
        let mut counts = Self::default();
        for (word, (reads, writes)) in &page.ended {
            let count = match word.as_str() {
                "live" => &mut counts.live,
                "queued" => &mut counts.queued,
                "cache" | "stale" | "empty" | "bypass" => &mut counts.cached,
                _ => &mut counts.failed,
            };
            *count += reads + writes;
        }
        counts
    }
}

/// What was counted lately, to turn counts into rates.
#[derive(Default)]
struct Past {
    counts: VecDeque<(Instant, Each<Counts>)>,
}

impl Past {
    /// Calls a second over the last second, or over less if there was less.
    fn since_a_second(&mut self, counts: Each<Counts>) -> Each<Rates> {
        let now = Instant::now();
        self.counts.push_back((now, counts));
        while self.counts.get(1).is_some_and(|(at, _)| now - *at >= RATE_OVER) {
            self.counts.pop_front();
        }
        let (Some((since, first)), Some((_, last))) = (self.counts.front(), self.counts.back())
        else {
            return Each::default();
        };
        let millis = u64::try_from((now - *since).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = |now: u64, then: u64| (now - then) * 1_000 / millis;
        Each::of(|backend| {
            let (first, last) = (first.get(backend), last.get(backend));
            Rates {
                live: rate(last.live, first.live),
                queued: rate(last.queued, first.queued),
                cached: rate(last.cached, first.cached),
                failed: rate(last.failed, first.failed),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::backend::Backend, *};

    #[test]
    fn a_breaker_that_keeps_failing_to_recover_is_told_of_once() {
        let mut teller = Teller::default();
        let mut line = |backend: &str, from: &str, to: &str| {
            let event = json!({ "event": "transition", "backend": backend, "from": from, "to": to,
                "reason": "r", "failures": 5, "calls": 6 });
            teller.line(&EventView::of(&event))
        };
        assert_eq!(
            line("redis", "CLOSED", "OPEN").as_deref(),
            Some("redis      breaker CLOSED -> OPEN (r, 5 of 6 failed)")
        );
        assert_eq!(line("redis", "OPEN", "HALF_OPEN"), None);
        assert!(line("redis", "HALF_OPEN", "OPEN").is_some());
        assert_eq!(line("redis", "OPEN", "HALF_OPEN"), None);
        assert_eq!(line("redis", "HALF_OPEN", "OPEN"), None);
        assert!(line("clickhouse", "HALF_OPEN", "OPEN").is_some(), "each backend's is told");
        assert!(line("redis", "HALF_OPEN", "CLOSED").is_some());
    }

    #[test]
    fn a_queue_that_keeps_running_empty_is_told_of_once() {
        let mut teller = Teller::default();
        let drained = json!({ "event": "replay", "backend": "redis", "phase": "drained",
            "replayed": 7, "waiting": 0 });
        let drained = EventView::of(&drained);
        let told = Some("redis      its queue is empty, 7 replayed".to_owned());
        assert_eq!([teller.line(&drained), teller.line(&drained)], [told, None]);
    }

    #[test]
    fn a_state_is_told_with_what_made_it_so() {
        let line = |reasons: &[&str]| {
            let event =
                json!({ "event": "system_state", "to": "B", "from": "A", "reasons": reasons });
            Teller::default().line(&EventView::of(&event)).unwrap()
        };
        assert_eq!(line(&[]), "the system is B (was A)");
        assert_eq!(line(&["backend x is down"]), "the system is B (was A): backend x is down");
        assert_eq!(line(&["only 33 %", "backend x is down"]), "the system is B (was A): only 33 %");
    }

    #[test]
    fn rates_are_those_of_the_last_second() {
        let mut past = Past::default();
        let counts = |live| {
            Each::of(|backend| Counts {
                live: if backend == Backend::Rows { live } else { 0 },
                ..Counts::default()
            })
        };
        past.since_a_second(counts(10));
        let rates = past.since_a_second(counts(30));
        assert!(rates.get(Backend::Rows).live > 0);
        assert_eq!(rates.get(Backend::Keys).live, 0);
    }
}
