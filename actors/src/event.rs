//! What happens, published to whoever listens: a bounded broadcast that nobody can slow down. All but progress is
//! kept in a journal too, in the same order and under the same numbers, which go on over restarts.
//!
//! Events are for every client and have no words of a server: whoever may see these finds them in `explain` and
//! beside the queued call.

use std::{path::Path, sync::Arc};

use fusebox_state::{
    UnixMillis, Words,
    breaker::Transition,
    store::journal::{FILE_BYTES, Journal},
    system::SystemState,
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{Semaphore, broadcast, oneshot};

/// Bytes of an event from which on its texts are cut before it is kept.
const LONG: usize = 16 << 10;
/// Letters of a text that are kept of a long event.
const TEXT_KEPT: usize = 1_000;
/// So many read what happened at once. Each has the whole journal in memory, and what it chooses of it.
const READERS: usize = 2;

/// One thing that happened.
#[derive(Clone, Debug, serde::Serialize, schemars::JsonSchema)]
pub struct Event {
    /// Rises by one from event to event, and continues the numbers of the run before.
    pub id: u64,
    /// When, on the wall clock.
    pub at: UnixMillis,
    /// The backend that it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplayPhase {
    /// It began.
    Started,
    /// It goes on.
    Progress,
    /// Calls wait and none may be sent.
    Paused,
    /// Nothing waits any more.
    Drained,
}

impl ReplayPhase {
    /// The word of events and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Progress => "progress",
            Self::Paused => "paused",
            Self::Drained => "drained",
        }
    }
}

/// A setting whose value changed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct KeyChange {
    /// Its path.
    pub key: String,
    /// The value that it had; null if it had none.
    pub from: Value,
    /// The value that it has; null if it has none.
    pub to: Value,
}

/// What happened.
#[derive(Clone, Debug, serde::Serialize, schemars::JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A breaker changed its state.
    Transition {
        /// The previous state, the new one, and the reason.
        #[serde(flatten)]
        transition: Transition,
    },
    /// The system changed its state.
    SystemState {
        /// Before.
        from: SystemState,
        /// After.
        to: SystemState,
        /// Why.
        reasons: Vec<String>,
    },
    /// A backend went offline or online by an operator's order.
    Offline {
        /// Offline now.
        offline: bool,
    },
    /// Replay began, went on or ended.
    Replay {
        /// Which.
        phase: ReplayPhase,
        /// Calls replayed since it began.
        replayed: u64,
        /// Calls that still wait.
        waiting: u64,
        /// Why it is paused.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Calls began, or ceased, to be answered by a fallback.
    Fallback {
        /// Active now.
        active: bool,
    },
    /// A call became a dead letter.
    DeadLetter {
        /// Its name.
        op_id: String,
        /// Why.
        reason: Words,
    },
    /// An operator must act, or a condition of that kind is over.
    Alert {
        /// What.
        message: Words,
    },
    /// An actor was restarted or given up on.
    Actor {
        /// What happened to it.
        message: String,
    },
    /// The configuration was read again.
    Reload {
        /// Who wanted it.
        by: String,
        /// The keys that changed.
        changed: Vec<String>,
        /// Why it was refused, if it was.
        #[serde(skip_serializing_if = "Option::is_none")]
        refused: Option<String>,
    },
    /// Settings were changed at run time.
    Settings {
        /// Who wanted it.
        by: String,
        /// What changed.
        settings: Vec<KeyChange>,
        /// Why, if nobody wanted it now: the time of a change is over.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Faults on purpose were set.
    ChaosSet {
        /// By whom.
        by: String,
        /// Until when.
        until: UnixMillis,
        /// Which kinds.
        kinds: Vec<&'static str>,
        /// Why.
        reason: String,
    },
    /// An operator has ended them.
    ChaosCleared {
        /// Who.
        by: String,
    },
    /// Their time is over.
    ChaosEnded,
    /// They were ended before their time.
    ChaosAborted {
        /// Why.
        why: String,
    },
    /// They strike nobody for now, or strike again.
    ChaosSuspended {
        /// Why; `None` if they go on.
        why: Option<&'static str>,
    },
    /// The daemon started, or stopped as it was asked to.
    Daemon {
        /// `started` or `stopped`.
        phase: &'static str,
        /// Its version.
        version: &'static str,
    },
}

impl EventKind {
    /// Whether it is worth keeping: progress is news only while it is made.
    fn is_kept(&self) -> bool {
        !matches!(self, Self::Replay { phase: ReplayPhase::Progress, .. })
    }
}

/// Which events of the past are wanted.
#[derive(Clone, Debug, Default)]
pub struct PastQuery {
    /// None that happened before.
    pub since: Option<UnixMillis>,
    /// Only of this backend, and those that concern none alone.
    pub backend: Option<String>,
    /// At most so many, the newest.
    pub limit: usize,
}

/// Events of the past, oldest first, as they were published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// The events: JSON, so that an earlier version's are read as well.
    pub events: Vec<Value>,
    /// Whether there are more than were wanted.
    pub more: bool,
}

/// The bus on which events are published and received. Cheap to clone.
#[derive(Clone)]
pub struct EventBus {
    inner: Arc<Mutex<Bus>>,
    sender: broadcast::Sender<Event>,
    /// Who reads the journal.
    readers: Arc<Semaphore>,
}

#[derive(Default)]
struct Bus {
    last: u64,
    journal: Option<Arc<Journal>>,
}

impl Default for EventBus {
    fn default() -> Self {
        let readers = Arc::new(Semaphore::new(READERS));
        Self { inner: Arc::default(), sender: broadcast::channel(1024).0, readers }
    }
}

impl EventBus {
    /// A bus that keeps what happens in `dir` and continues the numbers of the run before. If the disk does
    /// not let it, nothing is kept: that is no reason not to run. Blocks.
    pub(crate) fn open(dir: &Path) -> Self {
        let bus = Self::default();
        match Journal::open(dir, FILE_BYTES) {
            Ok((journal, past)) => {
                let mut ids = lines(&past).filter_map(|line| {
                    let event: Value = serde_json::from_slice(line).ok()?;
                    event.get("id")?.as_u64()
                });
                let last = ids.next().unwrap_or(0);
                *bus.inner.lock() = Bus { last, journal: Some(Arc::new(journal)) };
            }
            Err(error) => {
                tracing::error!(dir = %dir.display(), %error, "events are not kept");
            }
        }
        bus
    }

    /// Publishes what happened; never waits.
    pub fn publish(&self, at: UnixMillis, backend: Option<&str>, kind: EventKind) {
        let mut inner = self.inner.lock();
        inner.last += 1;
        let event = Event { id: inner.last, at, backend: backend.map(str::to_owned), kind };
        if let Some(journal) = inner.journal.as_ref().filter(|_| event.kind.is_kept())
            && let Some(lost) = journal.add(kept(&event))
        {
            tracing::warn!(lost, "the journal has no room: an event was not kept");
        }
        // Nobody listening is the usual case and no error.
        drop(self.sender.send(event));
    }

    /// Everything published from now on. A listener that falls 1,024 events behind misses some and is
    /// learns how many.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    /// What `answer` makes of what happened, also in earlier runs, up to now: with a subscription taken before, nothing
    /// is missed, and an event in both has the same number. `answer` runs beside the runtime's tasks, and may take long.
    /// `None` if it panics.
    ///
    /// Two read at once; others wait for their turn. The turn stays with what was read until `answer` has ended, also if
    /// nobody waits for the answer any more.
    pub async fn past<T: Send + 'static>(
        &self,
        query: PastQuery,
        answer: impl FnOnce(Past) -> T + Send + 'static,
    ) -> Option<T> {
        let journal = self.inner.lock().journal.clone();
        let Some(journal) = journal else { return Some(answer(Past::default())) };
        let turn = Arc::clone(&self.readers).acquire_owned().await.ok()?;
        let (sender, read) = oneshot::channel();
        // Who asked may have left.
        journal.read(move |bytes| drop(sender.send((bytes, turn))));
        let Ok((bytes, turn)) = read.await else { return Some(answer(Past::default())) };
        let answering = tokio::task::spawn_blocking(move || {
            let past = choose(&bytes, &query);
            drop(bytes);
            let answered = answer(past);
            drop(turn);
            answered
        });
        answering.await.ok()
    }

    /// Writes what is still to be kept; what is published later is not. Blocks.
    pub(crate) fn close(&self) {
        let journal = self.inner.lock().journal.take();
        if let Some(journal) = journal {
            journal.close();
        }
    }
}

/// An event as it is kept. The mark says that it has no words of a server; an earlier release's may have some.
#[derive(serde::Serialize, schemars::JsonSchema)]
struct Kept<'a> {
    own_words: bool,
    #[serde(flatten)]
    event: &'a Event,
}

/// The event as it is kept.
fn kept(event: &Event) -> Vec<u8> {
    let event = Kept { own_words: true, event };
    let line = serde_json::to_vec(&event).unwrap_or_default();
    if line.len() <= LONG {
        return line;
    }
    let mut event = serde_json::to_value(event).unwrap_or_default();
    cut(&mut event);
    serde_json::to_vec(&event).unwrap_or_default()
}

/// A kept event as it is shown: of an earlier release's only what comes before the words of a server.
fn told(mut event: Value) -> Value {
    let Some(fields) = event.as_object_mut() else { return event };
    if fields.remove("own_words").is_some() {
        return event;
    }
    for name in ["reason", "message"] {
        if let Some(Value::String(text)) = fields.get_mut(name)
            && let Some(end) = text.find(": ")
        {
            text.truncate(end);
        }
    }
    for error in fields.get_mut("last_errors").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(error) = error.as_object_mut() {
            error.insert("message".into(), Value::String(String::new()));
        }
    }
    event
}

/// Cuts texts, and lists after a few.
fn cut(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some((at, _)) = text.char_indices().nth(TEXT_KEPT) {
                text.truncate(at);
                text.push('\u{2026}');
            }
        }
        Value::Array(items) => {
            items.truncate(10);
            items.iter_mut().for_each(cut);
        }
        Value::Object(fields) => fields.values_mut().for_each(cut),
        _ => {}
    }
}

/// The lines, newest first.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').rev().filter(|line| !line.is_empty())
}

/// What `query` wants of the journal's lines. What is not an event is passed over.
fn choose(bytes: &[u8], query: &PastQuery) -> Past {
    let wanted = |event: &Value| {
        let backend = event.get("backend").and_then(Value::as_str);
        let at = || event.get("at")?.as_str()?.parse::<UnixMillis>().ok();
        event.get("id").is_some_and(Value::is_u64)
            && (backend.is_none() || query.backend.is_none() || query.backend.as_deref() == backend)
            && query.since.is_none_or(|since| at().is_some_and(|at| at >= since))
    };
    let events = lines(bytes).filter_map(|line| serde_json::from_slice(line).ok()).filter(wanted);
    let events = events.map(told);
    let mut events: Vec<Value> = events.take(query.limit.saturating_add(1)).collect();
    let more = events.len() > query.limit;
    events.truncate(query.limit);
    events.reverse();
    Past { events, more }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(past: &Past) -> Vec<u64> {
        past.events.iter().map(|event| event["id"].as_u64().unwrap()).collect()
    }

    fn last(limit: usize) -> PastQuery {
        PastQuery { limit, ..PastQuery::default() }
    }

    async fn read(bus: &EventBus, query: PastQuery) -> Past {
        bus.past(query, |past| past).await.unwrap()
    }

    #[tokio::test]
    async fn what_happened_outlives_a_run_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let alert = |message: &'static str| EventKind::Alert { message: message.into() };
        let at = UnixMillis::new;
        let bus = EventBus::open(dir.path());
        bus.publish(at(1_000), Some("a"), alert("one"));
        bus.publish(at(2_000), Some("b"), alert("two"));
        let progress = EventKind::Replay {
            phase: ReplayPhase::Progress,
            replayed: 1,
            waiting: 2,
            reason: None,
        };
        bus.publish(at(2_500), Some("b"), progress);
        assert_eq!(ids(&read(&bus, last(9)).await), [1, 2]);
        drop(bus);
        // Something that is not an event, and a tail that was torn.
        let file = dir.path().join(fusebox_state::store::journal::NEWER);
        let mut text = std::fs::read_to_string(&file).unwrap();
        text.push_str("[]\nnull\n{\"id\":\"x\"}\n{\"id\":7,");
        std::fs::write(&file, text).unwrap();

        let bus = EventBus::open(dir.path());
        let mut heard = bus.subscribe();
        bus.publish(at(3_000), None, alert("three"));
        assert_eq!(heard.recv().await.unwrap().id, 3);
        let past = read(&bus, last(9)).await;
        assert_eq!((ids(&past), past.more), (vec![1, 2, 3], false));
        assert_eq!(past.events[0]["message"], "one");
        let past = read(&bus, last(2)).await;
        assert_eq!((ids(&past), past.more), (vec![2, 3], true));
        let of_a = PastQuery { backend: Some("a".into()), ..last(9) };
        assert_eq!(ids(&read(&bus, of_a).await), [1, 3], "with what concerns the whole");
        let since = PastQuery { since: Some(at(2_000)), ..last(9) };
        assert_eq!(ids(&read(&bus, since).await), [2, 3]);
        bus.close();
        bus.publish(at(4_000), None, alert("late"));
        assert_eq!(read(&bus, last(9)).await, Past::default());
    }

    #[tokio::test]
    async fn events_of_an_earlier_release_are_told_without_the_words_of_servers() {
        let dir = tempfile::tempdir().unwrap();
        let earlier = r#"{"id":1,"at":"2026-11-23T16:00:00.000Z","event":"dead_letter","op_id":"01J","reason":"rejected: 27: card=4111"}
{"id":2,"at":"2026-11-23T16:00:00.000Z","event":"alert","message":"replay is paused, an operator must act: NOPERM card=4111"}
{"id":3,"at":"2026-11-23T16:00:00.000Z","event":"transition","reason":"burst","last_errors":[{"code":"27","message":"card=4111"}]}
"#;
        let file = dir.path().join(fusebox_state::store::journal::NEWER);
        std::fs::write(&file, earlier).unwrap();
        let bus = EventBus::open(dir.path());
        let reason = Words::quoting("rejected: the backend: refuses it", "card=4111");
        bus.publish(
            UnixMillis::new(1),
            None,
            EventKind::DeadLetter { op_id: "01K".into(), reason },
        );
        let past = read(&bus, last(9)).await;
        let text = serde_json::to_string(&past.events).unwrap();
        assert!(!text.contains("4111") && !text.contains("own_words"), "{text}");
        assert_eq!(past.events[0]["reason"], "rejected");
        assert_eq!(past.events[1]["message"], "replay is paused, an operator must act");
        assert_eq!(past.events[2]["last_errors"][0]["code"], "27");
        assert_eq!(past.events[3]["reason"], "rejected: the backend: refuses it");
    }

    #[tokio::test]
    async fn an_event_of_any_length_is_kept_and_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let bus = EventBus::open(dir.path());
        let reason = "a\nb\u{1b}".repeat(1 << 20);
        let kind = EventKind::DeadLetter { op_id: "01J".into(), reason: reason.into() };
        bus.publish(UnixMillis::new(1), Some("a"), kind);
        let past = read(&bus, last(9)).await;
        assert_eq!((ids(&past), &past.events[0]["op_id"]), (vec![1], &Value::from("01J")));
        let reason = past.events[0]["reason"].as_str().unwrap();
        assert_eq!((reason.chars().count(), &reason[..4]), (TEXT_KEPT + 1, "a\nb\u{1b}"));
    }

    #[tokio::test]
    async fn two_read_at_once_and_a_turn_lasts_as_long_as_what_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let bus = EventBus::open(dir.path());
        let (began, mut beginning) = tokio::sync::mpsc::unbounded_channel();
        let ask = |held: std::sync::mpsc::Receiver<()>| {
            let (bus, began) = (bus.clone(), began.clone());
            tokio::spawn(async move {
                let make = move |_| {
                    began.send(()).unwrap();
                    assert!(held.recv().is_err(), "it lasts until the other end is dropped");
                };
                bus.past(last(9), make).await
            })
        };
        let (first, held) = std::sync::mpsc::channel();
        let leaving = ask(held);
        let (second, held) = std::sync::mpsc::channel();
        let staying = ask(held);
        for _ in 0..2 {
            beginning.recv().await.unwrap();
        }
        let (third, held) = std::sync::mpsc::channel();
        let waiting = ask(held);
        leaving.abort();
        assert!(leaving.await.unwrap_err().is_cancelled());
        assert_eq!(bus.readers.available_permits(), 0, "what it had read is still there");
        assert!(beginning.try_recv().is_err(), "the third waits");
        drop(first);
        beginning.recv().await.unwrap();
        drop((second, third));
        assert_eq!((staying.await.unwrap(), waiting.await.unwrap()), (Some(()), Some(())));
        assert_eq!(bus.readers.available_permits(), READERS);
    }

    #[tokio::test]
    async fn a_bus_without_a_disk_still_tells() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let bus = EventBus::open(&file);
        let mut heard = bus.subscribe();
        bus.publish(UnixMillis::new(1), None, EventKind::Fallback { active: true });
        assert_eq!(heard.recv().await.unwrap().id, 1);
        assert_eq!(read(&bus, last(9)).await, Past::default());
    }
}
