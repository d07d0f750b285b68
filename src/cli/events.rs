//! `fusebox events`: the past from the daemon's journal, what happens from its stream.

use std::process::ExitCode;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::{
    Done,
    args::{EventsArgs, Output},
};
use crate::terminal::{
    client::{Client, segment},
    failure::Failure,
    print::{complain, say_while_read},
    table::{list, text},
};

/// Events of the past that are listed where nothing says how many.
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
        let past = client.get(&query("/v1/history", &filter)).await?;
        let events = past.get("events").and_then(Value::as_array);
        for event in events.into_iter().flatten() {
            if !print(event, output)? {
                return Ok(ExitCode::SUCCESS);
            }
            last = number_of(event).unwrap_or(last);
        }
        if past.get("more") == Some(&Value::Bool(true)) && limit.is_none() && since.is_some() {
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

fn number_of(event: &Value) -> Option<u64> {
    event.get("id").and_then(Value::as_u64)
}

/// Prints an event; returns whether somebody still reads.
fn print(event: &Value, output: Output) -> Result<bool, Failure> {
    say_while_read(&if output.json { format!("{event}\n") } else { line(event) })
}

/// Prints what comes after the event of number `last`.
async fn follow_on(mut body: Incoming, last: u64, output: Output) -> Done {
    let mut reader = Reader::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::failed(format!("the stream broke: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let events = reader.read(&data).into_iter();
        for event in events.filter(|event| number_of(event).is_none_or(|id| id > last)) {
            if !print(&event, output)? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    Err(Failure::failed("the daemon ended the stream"))
}

/// Puts server-sent events together again.
#[derive(Default)]
pub(crate) struct Reader {
    pending: Vec<u8>,
}

impl Reader {
    /// The events that `data` completes.
    pub(crate) fn read(&mut self, data: &[u8]) -> Vec<Value> {
        let mut events = Vec::new();
        for byte in data {
            if *byte != b'\n' {
                self.pending.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.pending);
            // An event of ours is one line of data; id, name and comments are repeated in it.
            if let Some(json) = line.strip_prefix(b"data:") {
                events.extend(serde_json::from_slice(json).ok());
            }
        }
        events
    }
}

/// An event as a line for people.
fn line(event: &Value) -> String {
    let when = text(event, "at");
    let backend = text(event, "backend");
    let line = format!("{when}  {backend:<12}  {}", what(event));
    format!("{}\n", line.trim_end())
}

/// What happened, for people.
pub(crate) fn what(event: &Value) -> String {
    match text(event, "event").as_str() {
        "transition" => {
            let (from, to, why) = (text(event, "from"), text(event, "to"), text(event, "reason"));
            match (text(event, "failures"), text(event, "calls")) {
                (_, calls) if calls == "0" => format!("{from} -> {to} ({why})"),
                (failures, calls) => {
                    format!("{from} -> {to} ({why}, {failures} of {calls} failed)")
                }
            }
        }
        "system_state" => format!(
            "the system is {} (was {}): {}",
            text(event, "to"),
            text(event, "from"),
            list(event, "reasons").join("; ")
        ),
        "offline" => match text(event, "offline").as_str() {
            "true" => "taken offline".into(),
            _ => "taken online".into(),
        },
        "replay" => {
            let (replayed, waiting) = (text(event, "replayed"), text(event, "waiting"));
            match text(event, "phase").as_str() {
                "started" => format!("replay begins: {waiting} wait"),
                "paused" => format!(
                    "replay pauses, since {}: {replayed} replayed, {waiting} wait",
                    text(event, "reason")
                ),
                "drained" => format!("nothing waits any more: {replayed} replayed"),
                phase => format!("replay {phase}: {replayed} replayed, {waiting} wait"),
            }
        }
        "fallback" => match text(event, "active").as_str() {
            "true" => "fallbacks answer".into(),
            _ => "fallbacks no longer answer".into(),
        },
        "dead_letter" => {
            format!("dead letter {}: {}", text(event, "op_id"), text(event, "reason"))
        }
        "reload" => {
            let (by, changed) = (text(event, "by"), list(event, "changed").join(", "));
            match event.get("refused").and_then(Value::as_str) {
                Some(why) => format!("the configuration was not reloaded, by {by}: {why}"),
                None if changed.is_empty() => format!("reloaded by {by}: nothing changed"),
                None => format!("reloaded by {by}: {changed}"),
            }
        }
        "daemon" => format!("the daemon {} ({})", text(event, "phase"), text(event, "version")),
        "missed" => format!("{} events were missed", text(event, "events")),
        _ => text(event, "message"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_put_together_across_frames() {
        let mut reader = Reader::default();
        assert!(reader.read(b": keep-alive\n\nid: 1\nevent: alert\ndata: {\"a\"").is_empty());
        assert_eq!(reader.read(b":1}\n\ndata: {\"b\":2}\n\n"), [json!({"a": 1}), json!({"b": 2})]);
    }

    #[test]
    fn events_are_told_in_a_line() {
        let at = "2026-09-21T14:13:20Z";
        for (event, expected) in [
            (
                json!({ "at": at, "backend": "redis", "event": "transition", "from": "CLOSED",
                    "to": "OPEN", "reason": "burst", "failures": 9, "calls": 10 }),
                "2026-09-21T14:13:20Z  redis         CLOSED -> OPEN (burst, 9 of 10 failed)\n",
            ),
            (
                json!({ "at": at, "backend": "redis", "event": "transition", "from": "CLOSED",
                    "to": "OPEN", "reason": "pings_failed", "failures": 0, "calls": 0 }),
                "2026-09-21T14:13:20Z  redis         CLOSED -> OPEN (pings_failed)\n",
            ),
            (
                json!({ "at": at, "event": "system_state", "from": "HEALTHY", "to": "CRITICAL",
                    "reasons": ["a", "b"] }),
                "2026-09-21T14:13:20Z                the system is CRITICAL (was HEALTHY): a; b\n",
            ),
            (
                json!({ "at": at, "backend": "redis", "event": "replay", "phase": "drained",
                    "replayed": 7, "waiting": 0 }),
                "2026-09-21T14:13:20Z  redis         nothing waits any more: 7 replayed\n",
            ),
            (
                json!({ "at": at, "backend": "redis", "event": "replay", "phase": "paused",
                    "replayed": 7, "waiting": 3, "reason": "the breaker is open" }),
                "2026-09-21T14:13:20Z  redis         replay pauses, since the breaker is open: 7 replayed, 3 wait\n",
            ),
            (
                json!({ "at": at, "event": "reload", "by": "user 7", "changed": ["a", "b.c"] }),
                "2026-09-21T14:13:20Z                reloaded by user 7: a, b.c\n",
            ),
            (
                json!({ "at": at, "event": "reload", "by": "SIGHUP", "changed": [],
                    "refused": "a is odd" }),
                "2026-09-21T14:13:20Z                the configuration was not reloaded, by SIGHUP: a is odd\n",
            ),
            (
                json!({ "at": at, "backend": "redis", "event": "fallback", "active": true }),
                "2026-09-21T14:13:20Z  redis         fallbacks answer\n",
            ),
        ] {
            assert_eq!(line(&event), expected);
        }
    }
}
