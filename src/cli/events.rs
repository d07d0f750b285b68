//! `fusebox events`: the past from the history, what happens from the stream.

use std::process::ExitCode;

use http_body_util::BodyExt;
use serde_json::Value;

use super::{
    Client, Done, Failure,
    args::Output,
    client::segment,
    explain::transitions,
    on_terminal, say, say_json,
    table::{list, text},
};

/// `fusebox events`
pub(crate) async fn run(
    client: &Client,
    follow: bool,
    backend: Option<&str>,
    limit: u32,
    output: Output,
) -> Done {
    if follow {
        return follow_on(client, backend, output).await;
    }
    let path = match backend {
        Some(name) => format!("/v1/backends/{}/transitions?limit={limit}", segment(name)?),
        None => format!("/v1/history?limit={limit}"),
    };
    let answer = client.get(&path).await?;
    let records: Vec<&Value> =
        answer.get("transitions").and_then(Value::as_array).into_iter().flatten().collect();
    if output.json {
        for record in records {
            say_json(record)?;
        }
    } else {
        say(&transitions(&records, on_terminal()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn follow_on(client: &Client, backend: Option<&str>, output: Output) -> Done {
    let path = match backend {
        Some(name) => format!("/v1/events?backend={}", segment(name)?),
        None => "/v1/events".to_owned(),
    };
    let mut body = client.stream(&path).await?;
    let mut reader = Reader::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::failed(format!("the stream broke: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        for event in reader.read(&data) {
            if output.json { say_json(&event)? } else { say(&line(&event))? }
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
        "transition" => format!(
            "{} -> {} ({}, {} of {} failed)",
            text(event, "from"),
            text(event, "to"),
            text(event, "reason"),
            text(event, "failures"),
            text(event, "calls")
        ),
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
                json!({ "at": at, "backend": "redis", "event": "fallback", "active": true }),
                "2026-09-21T14:13:20Z  redis         fallbacks answer\n",
            ),
        ] {
            assert_eq!(line(&event), expected);
        }
    }
}
