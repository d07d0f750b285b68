//! The lines that `fusebox queue export` and `repair` write, read again: a JSON object each, a call to one backend.

use std::path::Path;

use fusebox_state::{LaneId, Lanes};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::{ingress::gate::COPIES, terminal::failure::Failure};

/// The longest line that a daemon with so many `calls.bytes` has room for, in bytes.
pub(super) fn line_max(calls_bytes: u64) -> u64 {
    calls_bytes / COPIES
}

/// The `calls.bytes` that a daemon needs for a line of so many bytes.
pub(super) fn room_for(line: u64) -> String {
    format!("{} MiB", line.saturating_mul(COPIES).div_ceil(1 << 20))
}

/// The text of a file, or of standard input for `-`.
pub(super) fn read_lines(file: &Path) -> Result<String, Failure> {
    let read = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|error| Failure::failed(format!("cannot read {}: {error}", file.display())))
}

/// What a line says of its backend.
#[derive(Deserialize)]
struct Name {
    #[serde(default)]
    backend: String,
}

/// The backend that a line names; nothing if it names none.
pub(super) fn name_of(line: &str) -> String {
    // A line that is not JSON goes to the daemon, which says what is wrong with it.
    serde_json::from_str(line).map_or_else(|_| String::new(), |name: Name| name.backend)
}

/// Whether a line names no backend.
pub(super) fn unnamed(text: &str) -> bool {
    text.lines().any(|line| !line.trim().is_empty() && name_of(line).is_empty())
}

/// What a line says of its place in the order of calls.
#[derive(Debug, PartialEq)]
pub(super) struct Order {
    /// The call's name.
    pub(super) op_id: String,
    /// The lanes that it touches; all of them if that is not known.
    pub(super) lanes: Lanes,
    /// Whether it is a dead letter. It overtakes nothing, as it is not sent of itself, but it may block its lanes.
    pub(super) is_dead: bool,
}

impl Order {
    /// Of a line.
    pub(super) fn of(line: &str) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Known {
            op_id: String,
            lanes: Option<Value>,
            dead: Option<IgnoredAny>,
        }
        let Known { op_id, lanes, dead } = serde_json::from_str(line).unwrap_or_default();
        let parsed = |text: &Value| u64::from_str_radix(text.as_str()?, 16).ok().map(LaneId);
        let lanes = lanes.as_ref().and_then(Value::as_array);
        let lanes: Option<Vec<LaneId>> = lanes.and_then(|lanes| lanes.iter().map(parsed).collect());
        let lanes = lanes.map_or(Lanes::All, Lanes::new);
        Self { op_id, lanes, is_dead: dead.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_it_must_not_overtake() {
        let order = |lanes, is_dead| Order { op_id: "x".to_owned(), lanes, is_dead };
        let one = Lanes::One(LaneId(10));
        for (fields, expected) in [
            (r#""lanes":["000000000000000a"],"dead":null"#, order(one, false)),
            (r#""lanes":[]"#, order(Lanes::None, false)),
            (r#""lanes":"all","dead":{"why":"no"}"#, order(Lanes::All, true)),
            (r#""lanes":["?"]"#, order(Lanes::All, false)),
            (r#""uid":1"#, order(Lanes::All, false)),
        ] {
            let line = format!("{{\"op_id\":\"x\",{fields}}}");
            assert_eq!(Order::of(&line), expected, "{line}");
        }
        assert_eq!(Order::of("nonsense").lanes, Lanes::All);
    }

    #[test]
    fn a_line_fits_a_daemon_with_the_room_for_it() {
        assert_eq!(room_for(line_max(3 << 20)), "3 MiB");
        assert_eq!(room_for(line_max(3 << 20) + 1), "4 MiB");
    }
}
