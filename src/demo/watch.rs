//! Watches the daemon as a dashboard would: its health, its events, and what callers get.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{
    callers::{Caller, Ledger},
    screen::{Screen, Status},
};
use crate::cli::{
    client::Client,
    events::{self, Reader},
    table::{number, text},
};

/// How often health is asked for.
const TICK: Duration = Duration::from_millis(100);
/// Rates are over this time.
const RATE_OVER: Duration = Duration::from_secs(1);

/// What `/health` says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Health {
    /// The system's state.
    pub(super) state: String,
    /// The breaker's.
    pub(super) breaker: String,
    /// Calls that wait in the queue.
    pub(super) queued: u64,
}

/// Asks a daemon for its health; `None` where none answers.
pub(super) async fn health(client: &Client) -> Option<Health> {
    // 503 is an answer too: of a system that is CRITICAL.
    let (_, view) = client.exchange(Method::GET, "/health", None).await.ok()?;
    let backend = view.get("backends")?.get("redis")?;
    Some(Health {
        state: text(&view, "state"),
        breaker: text(backend, "breaker"),
        queued: whole(backend, "queued"),
    })
}

/// Calls that the daemon has replayed since its start, and its dead letters.
pub(super) async fn replayed(client: &Client) -> Option<(u64, u64)> {
    let (_, view) = client.exchange(Method::GET, "/health/resilience", None).await.ok()?;
    let queue = view.get("backends")?.get("redis")?.get("queue")?;
    Some((whole(queue, "replayed"), whole(queue, "dead_letters")))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
fn whole(value: &Value, path: &str) -> u64 {
    number(value, path) as u64
}

/// Shows how things stand and what happens until it is dropped.
pub(super) fn start(screen: &Arc<Screen>, caller: &Caller, socket: PathBuf) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(show_status(Arc::clone(screen), caller.clone(), Client::new(socket.clone())));
    tasks.spawn(show_events(Arc::clone(screen), Client::new(socket)));
    tasks
}

async fn show_status(screen: Arc<Screen>, caller: Caller, client: Client) {
    let mut rates = Rates::default();
    loop {
        let health = health(&client).await;
        let mut status = rates.since_a_second(Counts::of(&caller.ledger.lock()));
        status.health = health.map(|health| (health.state, health.breaker, health.queued));
        screen.status(&status);
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
                let lines = reader.read(&data).into_iter().filter_map(|event| teller.line(&event));
                lines.for_each(|line| screen.note(&line));
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Puts events into words. A breaker that fails to recover does so once a second: that is told once.
#[derive(Default)]
struct Teller {
    told_of_a_failed_probe: bool,
}

impl Teller {
    /// An event's line; `None` for what the status shows better.
    fn line(&mut self, event: &Value) -> Option<String> {
        let what = events::what(event);
        match text(event, "event").as_str() {
            "transition" => match (text(event, "from").as_str(), text(event, "to").as_str()) {
                ("OPEN", "HALF_OPEN") => None,
                ("HALF_OPEN", "OPEN") => {
                    let first = !std::mem::replace(&mut self.told_of_a_failed_probe, true);
                    first.then(|| {
                        "breaker OPEN -> HALF_OPEN -> OPEN (the probe failed; it goes on trying)".into()
                    })
                }
                ("HALF_OPEN", "CLOSED") => {
                    Some("breaker OPEN -> HALF_OPEN -> CLOSED (the probes succeeded)".into())
                }
                _ => Some(format!("breaker {what}")),
            },
            "replay" if text(event, "phase") != "drained" => None,
            "system_state" | "replay" | "dead_letter" | "alert" | "actor" => {
                Some(what.trim_end_matches(": ").trim_end().to_owned())
            }
            _ => None,
        }
    }
}

/// Calls so far, by what became of them.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    live: u64,
    queued: u64,
    cached: u64,
    failed: u64,
}

impl Counts {
    fn of(ledger: &Ledger) -> Self {
        let mut counts = Self::default();
        for (word, (reads, writes)) in &ledger.ended {
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

/// Turns counts into rates.
#[derive(Default)]
struct Rates {
    past: VecDeque<(Instant, Counts)>,
}

impl Rates {
    /// Calls a second over the last second, or over less where there was less.
    fn since_a_second(&mut self, counts: Counts) -> Status {
        let now = Instant::now();
        self.past.push_back((now, counts));
        while self.past.get(1).is_some_and(|(at, _)| now - *at >= RATE_OVER) {
            self.past.pop_front();
        }
        let Some((since, first)) = self.past.front() else { return Status::default() };
        let millis = u64::try_from((now - *since).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = |now: u64, then: u64| (now - then) * 1_000 / millis;
        Status {
            health: None,
            live: rate(counts.live, first.live),
            queued: rate(counts.queued, first.queued),
            cached: rate(counts.cached, first.cached),
            failed: rate(counts.failed, first.failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_breaker_that_keeps_failing_to_recover_is_told_of_once() {
        let mut teller = Teller::default();
        let mut line = |from: &str, to: &str| {
            teller.line(&json!({ "event": "transition", "from": from, "to": to, "reason": "r",
                "failures": 5, "calls": 6 }))
        };
        assert_eq!(
            line("CLOSED", "OPEN").as_deref(),
            Some("breaker CLOSED -> OPEN (r, 5 of 6 failed)")
        );
        assert_eq!(line("OPEN", "HALF_OPEN"), None);
        assert!(line("HALF_OPEN", "OPEN").is_some());
        assert_eq!(line("OPEN", "HALF_OPEN"), None);
        assert_eq!(line("HALF_OPEN", "OPEN"), None);
        assert!(line("HALF_OPEN", "CLOSED").is_some());
    }
}
