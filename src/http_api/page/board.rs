//! The state as the page's listeners get it: made once for all of them, without what may quote a caller.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use fusebox_actors::Clock;
use fusebox_state::UnixMillis;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::daemon::Daemon;

/// A view serves all who look within this time. A little less than the second between two looks of a listener, or
/// every second look would find the one before.
const FRESH: Duration = Duration::from_millis(900);
/// Members that change by the passing of time alone.
const CLOCKWORK: [&str; 14] = [
    "at",
    "uptime_seconds",
    "oldest_age_ms",
    "since",
    "open_until",
    "until",
    "next_ping_at",
    "recent",
    "drain_seconds",
    "full_seconds",
    "enqueued_per_second",
    "replayed_per_second",
    "per_second",
    "oldest_parked_ms",
];

/// What all listeners share.
pub(crate) struct Board {
    /// When the API was opened: tells one run of the daemon from another.
    started: UnixMillis,
    newest: Mutex<Option<Arc<Shown>>>,
}

/// The state as it is sent.
pub(super) struct Shown {
    made: Instant,
    pub(super) json: String,
    /// Tells whether anything but the time has changed.
    pub(super) essence: u64,
}

impl Default for Board {
    fn default() -> Self {
        Self { started: Clock::system().unix(), newest: Mutex::default() }
    }
}

impl Board {
    /// The state, made again if the last one is not fresh.
    pub(super) fn look(&self, daemon: &Daemon) -> Arc<Shown> {
        let mut newest = self.newest.lock();
        if let Some(shown) = newest.as_ref()
            && shown.made.elapsed() < FRESH
        {
            return Arc::clone(shown);
        }
        let shown = Arc::new(Shown::of(daemon, self.started));
        *newest = Some(Arc::clone(&shown));
        shown
    }
}

impl Shown {
    fn of(daemon: &Daemon, started: UnixMillis) -> Self {
        let mut value = serde_json::to_value(daemon.resilience()).unwrap_or_default();
        without_words(&mut value);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("at".into(), json!(Clock::system().unix()));
            fields.insert("started".into(), json!(started));
        }
        let mut hash = DefaultHasher::new();
        essence(&value, &mut hash);
        Self { made: Instant::now(), json: value.to_string(), essence: hash.finish() }
    }
}

/// Leaves of each remembered error its time and its code: what it says may quote a caller.
pub(super) fn without_words(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_array_mut().filter(|_| name == "last_errors") {
                    Some(errors) => errors.iter_mut().for_each(only_time_and_code),
                    None => without_words(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(without_words),
        _ => {}
    }
}

fn only_time_and_code(error: &mut Value) {
    if let Some(fields) = error.as_object_mut() {
        fields.retain(|name, _| matches!(name.as_str(), "at" | "code"));
    }
}

fn essence(value: &Value, hash: &mut impl Hasher) {
    match value {
        Value::Object(fields) => {
            let lasting = fields.iter().filter(|(name, _)| !CLOCKWORK.contains(&name.as_str()));
            for (name, value) in lasting {
                name.hash(hash);
                essence(value, hash);
            }
        }
        Value::Array(values) => {
            values.len().hash(hash);
            for value in values {
                essence(value, hash);
            }
        }
        plain => plain.to_string().hash(hash),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(value: &Value) -> u64 {
        let mut hash = DefaultHasher::new();
        essence(value, &mut hash);
        hash.finish()
    }

    #[test]
    fn the_passing_of_time_is_no_news() {
        let state = |calls: u64, up: u64| {
            json!({ "at": up, "uptime_seconds": up,
                "backends": { "a": { "queue": { "calls": calls, "oldest_age_ms": up } } } })
        };
        assert_eq!(sum(&state(1, 1)), sum(&state(1, 2)));
        assert_ne!(sum(&state(1, 1)), sum(&state(2, 1)));
        assert_ne!(sum(&json!([["a"], []])), sum(&json!([[], ["a"]])));
        assert_ne!(sum(&json!({ "alerts": [] })), sum(&json!({ "alerts": ["x"] })));
    }

    #[test]
    fn what_errors_say_is_left_out_at_any_depth() {
        let error = json!({ "at": "t", "code": "c", "message": "key user:1", "trace_id": "x" });
        let mut value = json!({ "backends": { "a": { "breaker": { "last_transition": {
            "reason": "burst", "last_errors": [error.clone()] } } } }, "transitions": [
            { "last_errors": [error] }] });
        without_words(&mut value);
        let text = value.to_string();
        assert!(!text.contains("user:1") && !text.contains("trace_id"), "{text}");
        assert!(text.contains("\"code\":\"c\"") && text.contains("burst"), "{text}");
    }
}
