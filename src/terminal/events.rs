//! The daemon's events, as whoever follows them needs them: read from a stream, and shown in a line.

use fusebox_state::breaker::Reason;
use serde_json::Value;

use super::views::{EventView, EventWord, Phase};

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

/// How many calls wait.
fn wait(calls: u64) -> String {
    format!("{calls} {}", if calls == 1 { "waits" } else { "wait" })
}

/// What happened, for people.
pub(crate) fn what(event: &EventView) -> String {
    let EventView { from, to, reason, phase, replayed, waiting, .. } = event;
    match event.event {
        EventWord::Transition if event.calls == 0 => format!("{from} -> {to} ({reason})"),
        EventWord::Transition => {
            let of_slow = *reason == Reason::SlowCalls.as_str();
            let (count, what) =
                if of_slow { (event.slow, "slow") } else { (event.failures, "failed") };
            format!("{from} -> {to} ({reason}, {count} of {} {what})", event.calls)
        }
        EventWord::SystemState => {
            let why = match event.reasons.join("; ") {
                why if why.is_empty() => why,
                why => format!(": {why}"),
            };
            format!("the system is {to} (was {from}){why}")
        }
        EventWord::Offline if event.offline => "taken offline".into(),
        EventWord::Offline => "taken online".into(),
        EventWord::Replay => match phase.known() {
            Some(Phase::Started) => format!("replay begins: {}", wait(*waiting)),
            Some(Phase::Paused) => {
                format!("replay pauses, because {reason}: {replayed} replayed, {}", wait(*waiting))
            }
            Some(Phase::Drained) => format!("the queue is empty: {replayed} replayed"),
            Some(Phase::Progress) | None => {
                format!("replay {phase}: {replayed} replayed, {}", wait(*waiting))
            }
        },
        EventWord::Fallback if event.active => "fallbacks answer".into(),
        EventWord::Fallback => "fallbacks no longer answer".into(),
        EventWord::DeadLetter => format!("dead letter {}: {reason}", event.op_id),
        EventWord::Reload => {
            let (by, changed) = (&event.by, event.changed.join(", "));
            match &event.refused {
                Some(why) => format!("a reload by {by} was refused: {why}"),
                None if changed.is_empty() => format!("reloaded by {by}: nothing changed"),
                None => format!("reloaded by {by}: {changed}"),
            }
        }
        EventWord::Settings => {
            let changed: Vec<String> = event.settings.iter().map(ToString::to_string).collect();
            let why = event.why.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
            format!("settings changed by {}{why}: {}", event.by, changed.join(", "))
        }
        EventWord::ChaosSet => {
            let until = event.until.map(|until| format!(" until {until}")).unwrap_or_default();
            let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
            format!("chaos is set by {}{until}: {}{why}", event.by, event.kinds.join(", "))
        }
        EventWord::ChaosCleared => format!("chaos is cleared by {}", event.by),
        EventWord::ChaosEnded => "chaos has ended".into(),
        EventWord::ChaosAborted => {
            format!("chaos was aborted: {}", event.why.as_deref().unwrap_or_default())
        }
        EventWord::ChaosSuspended => match &event.why {
            Some(why) => format!("chaos is suspended: {why}"),
            None => "chaos resumes".into(),
        },
        EventWord::Daemon => format!("the daemon {phase} ({})", event.version),
        EventWord::Missed => format!("{} events were missed", event.events),
        EventWord::Alert | EventWord::Actor | EventWord::Other => event.message.clone(),
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
}
