//! What doors say beside an answer, and of what was not executed.

use fusebox_actors::{AckLevel, Source};
use serde_json::{Value, json};

use crate::demo::{
    call::Call,
    ledger::{Answer, Ended},
};

/// What a door says of one of its answers. The server's own answers may say nothing: then it is `live`.
#[derive(Default)]
pub(super) struct Said<'a> {
    /// Its source.
    pub(super) source: Option<&'a str>,
    /// What it promises.
    pub(super) ack: Option<&'a str>,
    /// How old it is, in milliseconds.
    pub(super) age_ms: u64,
}

impl Said<'_> {
    /// What it says in its headers, or metadata.
    pub(super) fn of<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Said<'a> {
        Said {
            source: header("x-fusebox-source"),
            ack: header("x-fusebox-ack"),
            age_ms: header("x-fusebox-age-ms").and_then(|age| age.parse().ok()).unwrap_or(0),
        }
    }

    /// The answer to `call` with this value.
    pub(super) fn answer(&self, call: &Call, value: Value) -> Ended {
        let source = self.source.unwrap_or(Source::Live.as_str());
        // The server's own answers promise what the server does.
        let is_durable = self.ack == Some("durable");
        let promise = if is_durable { AckLevel::Durable } else { AckLevel::Applied };
        Ended::Answered(Answer {
            status: None,
            source: serde_json::from_value(json!(source)).unwrap_or_default(),
            ack: call.is_write().then_some(promise),
            value,
            age_ms: self.age_ms,
        })
    }
}

/// How a call ended that got an error: doors say of what was not executed that it was not.
pub(super) fn failed(why: String) -> Ended {
    if why.contains("not executed") { Ended::Refused(why) } else { Ended::Unknown(why) }
}
