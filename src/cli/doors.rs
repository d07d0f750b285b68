//! The doors in `fusebox status`: a line each, of what its people look for first.

use fusebox_actors::view::{Counts, DoorStatus, Rates};

use super::board::short;
use crate::terminal::table::ago;

/// A line for each door.
pub(super) fn lines(doors: &[DoorStatus]) -> Vec<String> {
    doors.iter().map(line).collect()
}

fn line(door: &DoorStatus) -> String {
    let mut line = format!(
        "door {} to {} ({}): {} of {} connections",
        door.address, door.backend, door.auth, door.connections_open, door.connections_max,
    );
    let open = door.view.connections;
    for (count, mode) in [(open.pinned, "pinned"), (open.parked, "parked")] {
        if count > 0 {
            line.extend([", ", &count.to_string(), " ", mode]);
        }
    }
    if let Some(oldest) = door.view.oldest_parked_ms {
        line.extend([", the oldest for ", &ago(oldest)]);
    }
    let refused = [said(&door.refused), said(&door.view.refused_commands)];
    let refused: Vec<&str> =
        refused.iter().map(String::as_str).filter(|it| !it.is_empty()).collect();
    let failures = door.view.auth_failures;
    for (what, said) in [
        ("answers", said(&door.view.by_source())),
        ("per second", rates(&door.per_second)),
        ("refused", refused.join(" ")),
        ("closed", said(&door.view.closed)),
        ("unknown secrets", if failures > 0 { failures.to_string() } else { String::new() }),
    ] {
        if !said.is_empty() {
            line.extend(["; ", what, ": ", &said]);
        }
    }
    line
}

/// What was counted by a word, without what was not.
fn said(counts: &Counts) -> String {
    let counts = counts.iter().filter(|(_, count)| **count > 0);
    let each: Vec<String> = counts.map(|(word, count)| format!("{count} {word}")).collect();
    each.join(" ")
}

/// What happens in a second, by a word.
fn rates(rates: &Rates) -> String {
    let each: Vec<String> =
        rates.iter().map(|(word, rate)| format!("{} {word}", short(*rate))).collect();
    each.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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
            lines(&[serde_json::from_value(door).unwrap()]).remove(0)
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
            "per_second": { "live": 2.52, "queued": 1000.26 }, "oldest_parked_ms": 12_300,
            "refused": { "no_room": 4, "no_right": 0 }, "refused_commands": { "in_bytes": 1 },
            "closed": { "idle": 3, "client": 7 }, "auth_failures": 2,
        }));
        assert_eq!(
            busy,
            format!(
                "{quiet}, 2 pinned, 1 parked, the oldest for 12s; answers: 7 live 1 queued; per second: 2.5 live 1000 queued; \
                 refused: 4 no_room 1 in_bytes; closed: 7 client 3 idle; unknown secrets: 2"
            )
        );
        assert!(lines(&[]).is_empty());
    }
}
