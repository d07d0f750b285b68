//! The daemon's answers as the command line and the demo read them.
//!
//! Views are read with the types that the daemon writes them with ([`fusebox_actors::view`]); what it writes without
//! such a type has one here, and nobody looks for a key by its text. A daemon of another release is understood as far
//! as it goes: fields that are not known are passed over, those that are missing are empty.
//!
//! Every text is made fit to be shown before it is read ([`tame`]), so that nothing that is read here gives a terminal
//! orders.

use fusebox_actors::{
    AckLevel, Source,
    view::{Lenient, QueuedCallView},
};
use fusebox_state::{UnixMillis, breaker::State};
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use super::{failure::Failure, table::tame};

/// Reads an answer.
///
/// # Errors
/// It is not what was asked for: another release's, beyond what one may be unlike another.
pub(crate) fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, Failure> {
    serde_json::from_value(tamed(answer)).map_err(|error| not_understood(&error))
}

/// The same with every text fit to be shown.
fn tamed(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(tame(text)),
        Value::Array(items) => items.iter().map(tamed).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (tame(key), tamed(value))).collect()
        }
        other => other.clone(),
    }
}

/// A page of queued calls, of one backend or of several.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Listing {
    /// All calls of the wanted state.
    pub(crate) total: u64,
    /// This page.
    pub(crate) calls: Vec<ListedCall>,
}

/// A queued call in a listing.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ListedCall {
    /// The backend, if the listing is of several.
    #[serde(default)]
    pub(crate) backend: String,
    /// The call.
    #[serde(flatten)]
    pub(crate) call: QueuedCallView,
}

/// The names among the backends.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Backends {
    /// Each backend.
    pub(crate) backends: Vec<Named>,
}

/// A backend's name and kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Named {
    /// Its name.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: String,
}

/// What was said of a call besides its value.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReplyView {
    /// Its source.
    pub(crate) source: Lenient<Source>,
    /// What a write's reply promises.
    pub(crate) ack: Option<Lenient<AckLevel>>,
    /// The value, for whom its exact text does not matter.
    pub(crate) value: Value,
    /// How old it is, in milliseconds.
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) age_ms: u64,
    /// A queued call's name.
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) op_id: String,
    /// Whether the value is not the write's own reply.
    pub(crate) reply_lost: bool,
    /// What a caller should know.
    pub(crate) warnings: Vec<String>,
}

impl ReplyView {
    /// Whether it promises no more than that the write is on this host's disk.
    pub(crate) fn is_durable(&self) -> bool {
        self.ack.as_ref().and_then(Lenient::known) == Some(AckLevel::Durable)
    }
}

/// What is null is nothing.
fn or_nothing<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What went wrong, as far as it is shown to people.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ProblemView {
    /// What happened.
    pub(crate) detail: String,
    /// Whether the call may have been applied.
    pub(crate) outcome_unknown: bool,
}

/// Something that happened. Which fields are set depends on what it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EventView {
    /// Rises by one from event to event.
    pub(crate) id: Option<u64>,
    /// When.
    pub(crate) at: Option<UnixMillis>,
    /// What it is.
    pub(crate) event: EventWord,
    /// The backend that it concerns.
    pub(crate) backend: String,
    /// Of a transition, or of the system's state: before.
    pub(crate) from: Lenient<State>,
    /// After.
    pub(crate) to: Lenient<State>,
    /// Of a transition, a pause or a dead letter: why.
    pub(crate) reason: String,
    /// Of the system's state: why.
    pub(crate) reasons: Vec<String>,
    /// Of a transition: calls of the window.
    pub(crate) calls: u64,
    /// Of a transition: failures among them.
    pub(crate) failures: u64,
    /// Of a transition: slow ones among them.
    pub(crate) slow: u64,
    /// Whether it is offline now.
    pub(crate) offline: bool,
    /// Of a replay, or of the daemon: which.
    pub(crate) phase: Lenient<Phase>,
    /// Of a replay: calls replayed since it began.
    pub(crate) replayed: u64,
    /// Of a replay: calls that still wait.
    pub(crate) waiting: u64,
    /// Whether fallbacks answer now.
    pub(crate) active: bool,
    /// A dead letter's name.
    pub(crate) op_id: String,
    /// Of a reload, and of faults on purpose: who wanted it.
    pub(crate) by: String,
    /// Of faults on purpose: their kinds.
    pub(crate) kinds: Vec<String>,
    /// Until when.
    pub(crate) until: Option<UnixMillis>,
    /// Why faults were ended or suspended, or a change at run time taken back.
    pub(crate) why: Option<String>,
    /// Of a reload: the keys that changed.
    pub(crate) changed: Vec<String>,
    /// Of a change at run time: what changed.
    pub(crate) settings: Vec<KeyView>,
    /// Of a reload: why it was refused.
    pub(crate) refused: Option<String>,
    /// The daemon's version.
    pub(crate) version: String,
    /// Of missed events: how many.
    pub(crate) events: u64,
    /// An alert, or what happened to an actor.
    pub(crate) message: String,
}

impl EventView {
    /// Reads an event; what is not understood of one is left out.
    pub(crate) fn of(event: &Value) -> Self {
        read(event).unwrap_or_default()
    }
}

/// What an event is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventWord {
    /// A breaker changed its state.
    Transition,
    /// The system changed its state.
    SystemState,
    /// A backend went offline or came back.
    Offline,
    /// Replay began, went on or ended.
    Replay,
    /// Fallbacks began, or ceased, to answer.
    Fallback,
    /// A call became a dead letter.
    DeadLetter,
    /// An operator must act.
    Alert,
    /// An actor was restarted or given up on.
    Actor,
    /// The configuration was read again.
    Reload,
    /// Settings were changed at run time.
    Settings,
    /// Faults on purpose were set.
    ChaosSet,
    /// An operator has ended them.
    ChaosCleared,
    /// Their time is over.
    ChaosEnded,
    /// They were ended before their time.
    ChaosAborted,
    /// They strike nobody for now, or strike again.
    ChaosSuspended,
    /// The daemon started or stopped.
    Daemon,
    /// The reader was too slow for some.
    Missed,
    /// What only a later release tells.
    #[default]
    #[serde(other)]
    Other,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// It begins, as a daemon may.
    Started,
    /// It goes on.
    Progress,
    /// It does not go on for now.
    Paused,
    /// Nothing waits any more.
    Drained,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Started => "started",
            Self::Progress => "progress",
            Self::Paused => "paused",
            Self::Drained => "drained",
        })
    }
}

/// What became of forced recoveries.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Recovered {
    /// The backends that went half-open.
    pub(crate) half_open: Vec<String>,
    /// Those that something else keeps from it.
    pub(crate) held: Vec<Held>,
}

/// A backend that no recovery helps.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Held {
    /// Its name.
    pub(crate) backend: String,
    /// By what.
    pub(crate) by: String,
    /// The command that ends that.
    pub(crate) release: String,
}

/// What became of a trace that was sent to see whether one arrives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Tested {
    /// Whether the collector took it.
    pub(crate) taken: bool,
    /// The collector.
    pub(crate) endpoint: String,
    /// How it was sent.
    pub(crate) protocol: String,
    /// How long that took, in milliseconds.
    pub(crate) took_ms: u64,
    /// The trace.
    pub(crate) trace_id: Option<String>,
    /// Why it was not taken.
    pub(crate) error: Option<String>,
}

/// What a reload changed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Reloaded {
    /// The keys.
    pub(crate) changed: Vec<String>,
}

/// The settings in effect, or what a change of them did.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SettingsView {
    /// In the shape of the file.
    pub(crate) effective: Value,
    /// The source of each value, by its key.
    pub(crate) sources: BTreeMap<String, String>,
    /// What was changed at run time.
    pub(crate) overrides: BTreeMap<String, OverrideView>,
    /// What a change did, or would do.
    pub(crate) changed: Vec<KeyView>,
    /// Whether it only would.
    pub(crate) dry_run: bool,
}

/// A setting that is changed at run time.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct OverrideView {
    /// Whether it outlasts a restart.
    pub(crate) persisted: bool,
    /// Who wanted it.
    pub(crate) by: String,
    /// When it ends by itself.
    pub(crate) until: Option<String>,
}

/// A setting whose value changed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct KeyView {
    /// Its key.
    pub(crate) key: String,
    /// The value that it had; null if it had none.
    pub(crate) from: Value,
    /// The value that it has; null if it has none.
    pub(crate) to: Value,
}

impl std::fmt::Display for KeyView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Value| match value {
            Value::Null => "nothing".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        write!(f, "{}: {} -> {}", self.key, shown(&self.from), shown(&self.to))
    }
}

/// What is logged.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Logged {
    /// The filter that holds.
    pub(crate) filter: String,
}

/// A line of an import that was not taken.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ImportLine {
    /// Its number.
    pub(crate) line: u64,
    /// The call's name.
    pub(crate) op_id: String,
    /// Why.
    pub(crate) why: String,
}

/// Events of the past.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PastView {
    /// Each as it was received, not fit to be shown: see [`EventView::of`].
    pub(crate) events: Vec<Value>,
    /// Whether there are older ones.
    pub(crate) more: bool,
}

impl PastView {
    /// Reads them.
    ///
    /// # Errors
    /// As [`read`].
    pub(crate) fn of(answer: Value) -> Result<Self, Failure> {
        serde_json::from_value(answer).map_err(|error| not_understood(&error))
    }
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::failed(format!("the daemon's answer cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use fusebox_actors::view::ResilienceView;
    use fusebox_state::system::SystemState;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_view_of_another_release_is_read_as_far_as_it_goes() {
        let view: ResilienceView = read(&json!({
            "state": "CALAMITY", "mood": "gloomy",
            "backends": { "redis": {
                "name": "redis", "kind": "redis", "weather": [1],
                "breaker": { "state": "AJAR", "last_transition": { "reason": "whim" } },
                "queue": { "write_fallback": "shred", "calls": 3 },
            } },
        }))
        .unwrap();
        assert_eq!((view.state.known(), view.state.to_string()), (None, "CALAMITY".into()));
        let redis = &view.backends["redis"];
        assert_eq!((redis.breaker.state.to_string(), redis.queue.calls), ("AJAR".into(), 3));
        assert!(redis.breaker.last_transition.is_none() && redis.alerts.is_empty());
        let known: ResilienceView = read(&json!({ "state": "CRITICAL" })).unwrap();
        assert_eq!(known.state.known(), Some(SystemState::Critical));
        assert!(read::<ResilienceView>(&json!("nothing")).is_err());
        assert_eq!(EventView::of(&json!({ "event": "eclipse", "id": 7 })).id, Some(7));
    }

    #[test]
    fn what_is_read_gives_a_terminal_no_orders() {
        let page: Listing = read(&json!({ "total": 1, "calls": [{ "lane": "x\n\u{1b}[2Jy",
            "last_error": "\u{9b}" }] }))
        .unwrap();
        let call = &page.calls[0].call;
        assert_eq!(call.lane, "x\\n\\u{1b}[2Jy");
        assert_eq!(call.last_error.as_ref().unwrap().whole(), "\\u{9b}");
    }
}
