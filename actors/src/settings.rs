//! The settings of the actors, already validated: to hold one is to know that it was checked.

use std::time::Duration;

use fusebox_state::{
    backoff::RetrySettings, breaker::BreakerSettings, cache::CacheSettings, queue::QueueLimits,
};

/// The settings of the whole system.
#[derive(Clone, Debug)]
pub struct SystemSettings {
    /// The folder of the stores and caches.
    pub state_dir: std::path::PathBuf,
    /// How backends are pinged.
    pub pings: PingSettings,
    /// The daemon's name on its connections, kept over restarts.
    pub instance: String,
    /// The alert if the state directory is a copy: then nothing is replayed until
    /// [`crate::Fusebox::accept_clone`]. Of meaning at the start alone.
    pub copied: Option<String>,
}

/// How backends are pinged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingSettings {
    /// Time between two pings of a backend that answers.
    pub interval: Duration,
    /// How long a ping waits for its answer; no longer than the backend's `timeout`.
    pub timeout: Duration,
}

impl PingSettings {
    /// The default timeout of a ping.
    pub const TIMEOUT: Duration = Duration::from_secs(1);

    /// Pings with this interval and the default timeout.
    pub const fn every(interval: Duration) -> Self {
        Self { interval, timeout: Self::TIMEOUT }
    }
}

/// What a plain write may do in an outage.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum WriteFallback {
    /// It is made durable and replayed.
    Queue,
    /// It is refused, unless the call asks for `min_ack = durable`.
    Refuse,
}

/// What a dead letter does to its lane.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterPolicy {
    /// Later calls of the lane go on.
    Continue,
    /// The lane waits until an operator requeues or discards the dead letter.
    Block,
}

/// The settings of one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendSettings {
    /// Its name in the configuration and in routes.
    pub name: String,
    /// Its kind, such as `redis`.
    pub kind: &'static str,
    /// Whether the system is CRITICAL without it.
    pub critical: bool,
    /// The names of the backends that it needs.
    pub depends_on: Vec<String>,
    /// The names of the backends that it uses and can do without.
    pub depends_on_optional: Vec<String>,
    /// The longest that one attempt may take.
    pub timeout: Duration,
    /// The breaker.
    pub breaker: BreakerSettings,
    /// Retries of live calls.
    pub retry: RetrySettings,
    /// Attempts on the wire at once; at least 1.
    pub in_flight_max: u32,
    /// The fallback cache.
    pub cache: CacheSettings,
    /// After how long a cached value answers a keyed read while the backend is suspect.
    pub answer_after: Duration,
    /// The folder of the cache's snapshot; `None` keeps it in memory only.
    pub cache_dir: Option<std::path::PathBuf>,
    /// The queue's limits.
    pub queue: QueueLimits,
    /// Free bytes on the state disk below which nothing is appended.
    pub disk_floor: u64,
    /// The folder of the store; the state directory's `backends/<name>` if it is `None`.
    pub queue_dir: Option<std::path::PathBuf>,
    /// Whether small calls that are stored together share values.
    pub queue_packed: bool,
    /// What a plain write may do in an outage.
    pub write_fallback: WriteFallback,
    /// What a dead letter does to its lane.
    pub dead_letter_policy: DeadLetterPolicy,
}
