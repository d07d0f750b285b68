//! What happens, told to whoever listens: a bounded broadcast that nobody can slow down.

use std::sync::Arc;

use fusebox_state::{UnixMillis, breaker::Transition, system::SystemState};
use parking_lot::Mutex;
use tokio::sync::broadcast;

/// One thing that happened.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Event {
    /// Rises by one from event to event of a run.
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

/// What happened.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A breaker changed its state.
    Transition {
        /// From where to where and why.
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
        /// `started`, `progress`, `paused` or `drained`.
        phase: &'static str,
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
        reason: String,
    },
    /// An operator must act, or a condition of that kind is over.
    Alert {
        /// What.
        message: String,
    },
    /// An actor was restarted or given up on.
    Actor {
        /// What happened to it.
        message: String,
    },
}

/// Where events are published and listened to. Cheap to clone.
#[derive(Clone)]
pub struct EventBus {
    inner: Arc<Mutex<u64>>,
    sender: broadcast::Sender<Event>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self { inner: Arc::new(Mutex::new(0)), sender: broadcast::channel(1024).0 }
    }
}

impl EventBus {
    /// Publishes what happened; never waits.
    pub fn publish(&self, at: UnixMillis, backend: Option<&str>, kind: EventKind) {
        let mut last = self.inner.lock();
        *last += 1;
        let event = Event { id: *last, at, backend: backend.map(str::to_owned), kind };
        // Nobody listening is the usual case and no error.
        drop(self.sender.send(event));
    }

    /// Everything published from now on. A listener that falls 1,024 events behind misses some and is
    /// told how many.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}
