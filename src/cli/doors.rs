//! The doors in `fusebox status`: a line each, of what its people look for first.

use serde_json::{Map, Value};

use crate::terminal::table::{number, text};

/// A line for each door of the resilience view.
pub(super) fn lines(view: &Value) -> Vec<String> {
    let doors = view.get("doors").and_then(Value::as_array);
    doors.into_iter().flatten().map(line).collect()
}

fn line(door: &Value) -> String {
    let mut line = format!(
        "door {} to {} ({}): {} of {} connections",
        text(door, "address"),
        text(door, "backend"),
        text(door, "auth"),
        text(door, "connections_open"),
        text(door, "connections_max"),
    );
    for mode in ["pinned", "parked"] {
        if number(door, &format!("connections.{mode}")) > 0.0 {
            line.extend([", ", &text(door, &format!("connections.{mode}")), " ", mode]);
        }
    }
    let failures = number(door, "auth_failures");
    let refused = [counts(door, "refused"), counts(door, "refused_commands")];
    let refused: Vec<String> = refused.into_iter().filter(|it| !it.is_empty()).collect();
    let sources = by_source(door);
    for (what, said) in [
        ("answers", sources),
        ("refused", refused.join(" ")),
        ("closed", counts(door, "closed")),
        ("unknown secrets", if failures > 0.0 { failures.to_string() } else { String::new() }),
    ] {
        if !said.is_empty() {
            line.extend(["; ", what, ": ", &said]);
        }
    }
    line
}

/// What was counted by a word, without what was not.
fn counts(door: &Value, key: &str) -> String {
    let counts = door.get(key).and_then(Value::as_object);
    said(counts.into_iter().flatten().map(|(word, count)| (word.as_str(), count)))
}

/// Requests by the source of their answer.
fn by_source(door: &Value) -> String {
    let mut sums = Map::new();
    for commands in door.get("commands").and_then(Value::as_array).into_iter().flatten() {
        let (source, count) = (text(commands, "source"), commands.get("count"));
        let sum = sums.get(&source).and_then(Value::as_u64).unwrap_or(0);
        sums.insert(source, (sum + count.and_then(Value::as_u64).unwrap_or(0)).into());
    }
    said(sums.iter().map(|(word, count)| (word.as_str(), count)))
}

fn said<'a>(counts: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let counts = counts.filter(|(_, count)| count.as_u64().is_some_and(|count| count > 0));
    let each: Vec<String> = counts.map(|(word, count)| format!("{count} {word}")).collect();
    each.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_door_is_a_line_of_what_there_is_to_say() {
        let door = |more: Value| {
            let mut door = json!({
                "address": "unix:/run/fusebox/redis.sock", "kind": "redis", "backend": "redis",
                "auth": "peer", "connections_open": 6, "connections_max": 10_000, "accepted": 9,
                "refused": { "no_right": 0, "no_room": 0 },
                "connections": { "shared": 6, "pinned": 0, "parked": 0 },
                "closed": {}, "commands": [], "refused_commands": {}, "auth_failures": 0,
                "bytes_in": 0, "bytes_out": 0,
            });
            for (key, value) in more.as_object().unwrap() {
                door[key] = value.clone();
            }
            lines(&json!({ "doors": [door] })).remove(0)
        };
        let quiet = "door unix:/run/fusebox/redis.sock to redis (peer): 6 of 10000 connections";
        assert_eq!(door(json!({})), quiet);
        let busy = door(json!({
            "connections": { "shared": 3, "pinned": 2, "parked": 1 },
            "commands": [
                { "class": "read", "source": "live", "count": 5 },
                { "class": "write", "source": "live", "count": 2 },
                { "class": "write", "source": "queued", "count": 1 },
                { "class": "read", "source": "stale", "count": 0 },
            ],
            "refused": { "no_room": 4, "no_right": 0 }, "refused_commands": { "in_bytes": 1 },
            "closed": { "idle": 3, "client": 7 }, "auth_failures": 2,
        }));
        assert_eq!(
            busy,
            format!(
                "{quiet}, 2 pinned, 1 parked; answers: 7 live 1 queued; refused: 4 no_room 1 in_bytes; \
                 closed: 7 client 3 idle; unknown secrets: 2"
            )
        );
        assert!(lines(&json!({})).is_empty());
    }
}
