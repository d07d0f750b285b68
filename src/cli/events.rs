//! `fusebox events`: the past from the daemon's journal, what happens from its stream.

use std::process::ExitCode;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::args::{EventsArgs, Output};
use crate::terminal::{
    client::{Client, segment},
    events::{Reader, what},
    failure::{Done, Failure},
    print::{complain, say_while_read},
    views::{EventView, PastView},
};

/// Events of the past that are listed by default.
const USUAL: u32 = 20;
/// The most that the daemon lists.
const MOST: u32 = 10_000;

/// `fusebox events`: what happened, and with `--follow` what happens. Without `--since` or `--limit`,
/// `--follow` begins with now.
pub(crate) async fn run(client: &Client, wanted: EventsArgs) -> Done {
    let EventsArgs { follow, since, backend, limit, output } = wanted;
    let mut filter = Vec::new();
    if let Some(name) = &backend {
        filter.push(format!("backend={}", segment(name)?));
    }
    let now = fusebox_actors::Clock::system().unix();
    let since = since.map(|since| crate::since::parse(&since, now)).transpose();
    let since = since.map_err(|why| Failure::usage(format!("--since {why}")))?;
    // Opened first: what happens meanwhile is in both, and is known by its number.
    let stream =
        if follow { Some(client.stream(&query("/v1/events", &filter)).await?) } else { None };
    let mut last = 0;
    if stream.is_none() || since.is_some() || limit.is_some() {
        filter.extend(since.map(|since| format!("since={since}")));
        let usual = if since.is_some() { MOST } else { USUAL };
        filter.push(format!("limit={}", limit.unwrap_or(usual)));
        let answer = client.get(&query("/v1/history", &filter)).await?;
        let past = PastView::of(answer)?;
        for event in &past.events {
            if !print(event, output)? {
                return Ok(ExitCode::SUCCESS);
            }
            last = EventView::of(event).id.unwrap_or(last);
        }
        if past.more && limit.is_none() && since.is_some() {
            complain(&format!("fusebox: only the newest {MOST} are shown"));
        }
    }
    match stream {
        Some(body) => follow_on(body, last, output).await,
        None => Ok(ExitCode::SUCCESS),
    }
}

fn query(path: &str, filter: &[String]) -> String {
    match filter {
        [] => path.to_owned(),
        filter => format!("{path}?{}", filter.join("&")),
    }
}

/// Prints an event; returns whether somebody still reads.
fn print(event: &Value, output: Output) -> Result<bool, Failure> {
    say_while_read(&if output.json { format!("{event}\n") } else { line(&EventView::of(event)) })
}

/// Prints what comes after the event of number `last`.
async fn follow_on(mut body: Incoming, last: u64, output: Output) -> Done {
    let mut reader = Reader::default();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Failure::failed(format!("the stream was interrupted: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let events = reader.read(&data).into_iter();
        for event in events.filter(|event| EventView::of(event).id.is_none_or(|id| id > last)) {
            if !print(&event, output)? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    Err(Failure::failed("the daemon ended the stream"))
}

/// An event as a line for people.
fn line(event: &EventView) -> String {
    let when = event.at.map(|at| at.to_string()).unwrap_or_default();
    let line = format!("{when}  {:<12}  {}", event.backend, what(event));
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_told_in_a_line() {
        let at = "2026-09-21T14:13:20.000Z";
        for (event, expected) in [
            (
                json!({ "at": at, "backend": "redis", "event": "transition", "from": "CLOSED",
                    "to": "OPEN", "reason": "burst", "failures": 9, "calls": 10 }),
                "2026-09-21T14:13:20.000Z  redis         CLOSED -> OPEN (burst, 9 of 10 failed)\n",
            ),
            (
                json!({ "at": at, "backend": "redis", "event": "transition", "from": "CLOSED",
                    "to": "OPEN", "reason": "pings_failed", "failures": 0, "calls": 0 }),
                "2026-09-21T14:13:20.000Z  redis         CLOSED -> OPEN (pings_failed)\n",
            ),
            (
                json!({ "at": at, "event": "system_state", "from": "HEALTHY", "to": "CRITICAL",
                    "reasons": ["a", "b"] }),
                "2026-09-21T14:13:20.000Z                the system is CRITICAL (was HEALTHY): a; b\n",
            ),
            (
                json!({ "at": at, "event": "system_state", "from": "CRITICAL", "to": "HEALTHY",
                    "reasons": [] }),
                "2026-09-21T14:13:20.000Z                the system is HEALTHY (was CRITICAL)\n",
            ),
            (
                json!({ "at": at, "backend": "redis", "event": "replay", "phase": "started",
                    "replayed": 0, "waiting": 1 }),
                "2026-09-21T14:13:20.000Z  redis         replay begins: 1 waits\n",
            ),
            (
                json!({ "at": at, "backend": "redis", "event": "replay", "phase": "drained",
                    "replayed": 7, "waiting": 0 }),
                "2026-09-21T14:13:20.000Z  redis         the queue is empty: 7 replayed\n",
            ),
            (
                json!({ "at": at, "backend": "redis", "event": "replay", "phase": "paused",
                    "replayed": 7, "waiting": 3, "reason": "the breaker is open" }),
                "2026-09-21T14:13:20.000Z  redis         replay pauses, because the breaker is open: 7 replayed, 3 \
                 wait\n",
            ),
            (
                json!({ "at": at, "event": "reload", "by": "user 7", "changed": ["a", "b.c"] }),
                "2026-09-21T14:13:20.000Z                reloaded by user 7: a, b.c\n",
            ),
            (
                json!({ "at": at, "event": "reload", "by": "SIGHUP", "changed": [],
                    "refused": "a is odd" }),
                "2026-09-21T14:13:20.000Z                a reload by SIGHUP was refused: a is odd\n",
            ),
            (
                json!({ "at": at, "backend": "redis", "event": "fallback", "active": true }),
                "2026-09-21T14:13:20.000Z  redis         fallbacks answer\n",
            ),
        ] {
            assert_eq!(line(&EventView::of(&event)), expected);
        }
    }
}
