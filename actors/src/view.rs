//! What the actors show of themselves: one set of types for the admin pages, the command line, the demo and the
//! tests. These are promises of compatibility; add freely, rename nothing. What a server said is seen by admins
//! alone: see `audience.rs`.
//!
//! The command line reads with these types what a daemon of another release wrote: it passes over fields that it does
//! not know, takes what is missing for nothing, and shows [words](Lenient) that it does not know as they are. Texts
//! of [`Words`] that were read are all the server's: [`Words::whole`] has them.

use std::{borrow::Cow, collections::BTreeMap};

use fusebox_state::{
    OpId, Target, UnixMillis, Words,
    breaker::{State, TransitionRecord},
    system::SystemState,
};
use serde::{Deserialize, Deserializer};

pub use crate::lenient::Lenient;
use crate::settings::{DeadLetterPolicy, WriteFallback};

mod chaos;
mod dependencies;
mod door;
mod place;
mod prediction;

pub use chaos::{ChaosFaultView, ChaosView};
pub use dependencies::{DependenciesView, EdgeView, NodeView, RootCauseView};
pub use door::{Counts, DoorCommands, DoorConnections, DoorStatus, DoorView, Rates, counts};
pub use place::Place;
pub use prediction::PredictionView;

/// GET /health.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct HealthView {
    /// The system state.
    pub state: Lenient<SystemState>,
    /// Operational backends among the enabled ones, in percent.
    pub operational_percent: f64,
    /// Why the state is not HEALTHY.
    pub reasons: Vec<String>,
    /// Each backend in short.
    pub backends: BTreeMap<String, BackendHealthView>,
}

/// A backend in GET /health.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one backend")]
pub struct BackendHealthView {
    /// The effective breaker state.
    pub breaker: Lenient<State>,
    /// Effectively CLOSED, and neither offline nor opening.
    pub operational: bool,
    /// Whether the system is CRITICAL without it.
    pub critical: bool,
    /// By an operator's order, or until an operator decides.
    pub offline: bool,
    /// Its store is large and is being opened after a start: it takes no calls until then.
    pub opening: bool,
    /// Calls that wait in its queue.
    pub queued: u64,
    /// The nearest root causes among its dependencies.
    pub impaired_by: Vec<String>,
    /// Faults on purpose are set.
    pub chaos: bool,
}

/// GET /health/resilience.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct ResilienceView {
    /// The daemon's version.
    pub version: Cow<'static, str>,
    /// When this was read, on the daemon's wall clock.
    pub at: UnixMillis,
    /// Seconds since its start.
    pub uptime_seconds: u64,
    /// The system state.
    pub state: Lenient<SystemState>,
    /// Since when.
    pub since: UnixMillis,
    /// Why it is not HEALTHY.
    pub reasons: Vec<String>,
    /// Operational backends among the enabled ones, in percent.
    pub operational_percent: f64,
    /// Fallbacks that answer at this moment: backends whose breaker is not closed.
    pub active_fallbacks: Vec<String>,
    /// Stores in the state directory whose backend is not configured: what waits in them waits on.
    pub stray_stores: Vec<String>,
    /// Changes of settings that were made at run time and cannot be read, or are no longer possible, so that they are
    /// not in effect. The core has none: who reads them adds them.
    pub settings_left_out: Vec<Words>,
    /// Why the alert command fails, if it does. The core has none: who runs it adds it.
    pub alert_command_fails: Option<Words>,
    /// What others are down for the sake of, those that went first first.
    pub root_causes: Vec<RootCauseView>,
    /// Recoveries by force, by timer and their results.
    pub recovery: RecoveryView,
    /// What became of spans, if traces are exported.
    pub traces: Option<TracesView>,
    /// Each wire door. The core has none: who serves them adds them.
    pub doors: Vec<DoorStatus>,
    /// Each backend in full.
    pub backends: BTreeMap<String, BackendView>,
}

/// What became of spans since the start.
#[derive(
    Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default)]
pub struct TracesView {
    /// Taken by the collector.
    pub exported: u64,
    /// There was no room for them.
    pub dropped: u64,
    /// The collector did not take them.
    pub failed: u64,
}

/// Statistics of recoveries.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct RecoveryView {
    /// Recovery attempts (entries into `HALF_OPEN`).
    pub attempts: u64,
    /// Those that closed the breaker.
    pub succeeded: u64,
    /// Those that reopened it.
    pub failed: u64,
    /// Calls replayed since the start.
    pub replayed: u64,
}

/// A backend in full.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one backend")]
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Cow<'static, str>,
    /// What it represents.
    pub target: Target,
    /// Whether the system is CRITICAL without it.
    pub critical: bool,
    /// Effectively CLOSED, and neither offline nor opening.
    pub operational: bool,
    /// By an operator's order, or because its store belongs to another target.
    pub offline: bool,
    /// Its store is large and is being opened after a start: it takes no calls until then.
    pub opening: bool,
    /// What an operator must act on, in words; empty in peace.
    pub alerts: Vec<Words>,
    /// The subjects of these, in the same order, as the metric `alert_active` has them. The last of `alerts` may be
    /// about waiting dead letters, and has none.
    pub alert_subjects: Vec<Cow<'static, str>>,
    /// The breaker.
    pub breaker: BreakerView,
    /// Calls, attempts and response times.
    pub calls: CallsView,
    /// The fallback cache.
    pub cache: CacheView,
    /// The queue.
    pub queue: QueueView,
    /// The connector.
    pub connector: ConnectorStatus,
    /// What it depends on.
    pub depends_on: Vec<String>,
    /// The nearest root causes among its dependencies.
    pub impaired_by: Vec<String>,
    /// Restarts of its actor since the daemon's start.
    pub restarts: u32,
    /// The last minute.
    pub recent: RecentView,
    /// When it is pinged next, if no ping is on its way.
    pub next_ping_at: Option<UnixMillis>,
    /// Faults on purpose, if some are set.
    pub chaos: Option<ChaosView>,
    /// Whether it is about to fail.
    pub prediction: PredictionView,
}

/// What a backend did lately: within the last minute, or since the daemon's start if that is less.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct RecentView {
    /// How many seconds these figures are of; 60 but for the first minute.
    pub seconds: f64,
    /// Calls.
    pub calls: u64,
    /// Calls by the source of their answer; `error` for those without one.
    pub by_source: BTreeMap<Cow<'static, str>, u64>,
    /// Attempts that succeeded.
    pub successes: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Calls per second over the last ten seconds.
    pub calls_per_second: f64,
    /// Response times in milliseconds, right to about a tenth.
    pub response_ms: PercentilesView,
}

/// A breaker.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct BreakerView {
    /// The effective state.
    pub state: Lenient<State>,
    /// The state underneath a forced one.
    pub underlying: Lenient<State>,
    /// A force in effect.
    pub forced: Option<ForcedView>,
    /// Since when the effective state holds.
    pub since: UnixMillis,
    /// Until when it is open, if it is open and leaves by itself.
    pub open_until: Option<UnixMillis>,
    /// Failed recoveries in a row.
    pub exponent: u32,
    /// Calls in the window.
    pub window_calls: u64,
    /// Failures in the window.
    pub window_failures: u64,
    /// Failures among the calls of the window, 0 if there were none.
    pub failure_rate: f64,
    /// The threshold of failures.
    pub failure_threshold: u32,
    /// The threshold of the rate.
    pub failure_rate_threshold: f64,
    /// Calls of the window that took longer than `slow_call_ms`.
    pub window_slow: u64,
    /// Slow calls among the calls of the window, 0 if there were none.
    pub slow_rate: f64,
    /// From how long on a call is slow, in milliseconds.
    pub slow_call_ms: u64,
    /// The threshold of the slow calls' rate; 0 if they trip nothing.
    pub slow_rate_threshold: f64,
    /// Length of the window in seconds.
    pub window_seconds: f64,
    /// Successful probes in a row that close it, and the most probes at once.
    pub success_threshold: u32,
    /// Pings failed in a row.
    pub pings_failed: u32,
    /// The newest transition.
    #[serde(deserialize_with = "if_readable")]
    pub last_transition: Option<TransitionRecord>,
    /// Transitions since the start.
    pub transitions: u64,
}

/// A forced state.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct ForcedView {
    /// `open` or `closed`.
    pub state: Cow<'static, str>,
    /// Who said why.
    pub reason: String,
    /// Since when.
    pub since: UnixMillis,
    /// Until when; `None` is until released.
    pub until: Option<UnixMillis>,
}

/// Counters and response times of a backend since the daemon's start.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct CallsView {
    /// Calls.
    pub total: u64,
    /// Calls by the source of their answer; `error` for those without one.
    pub by_source: BTreeMap<Cow<'static, str>, u64>,
    /// Attempts that succeeded.
    pub successes: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts that say nothing of the backend.
    pub neutral: u64,
    /// Calls rejected before the wire.
    pub rejected: u64,
    /// Retries.
    pub retries: u64,
    /// Successes among successes and failures.
    pub success_rate: f64,
    /// Attempts on the wire now.
    pub in_flight: u32,
    /// The most attempts on the wire at once.
    pub in_flight_limit: u32,
    /// What an adaptive limit in its place would be. It limits nothing.
    pub in_flight_limit_would_be: WouldBeView,
    /// Response times in milliseconds, over all attempts since the start.
    pub response_ms: PercentilesView,
}

/// What adaptive limits would be, a class each; `None` while there was too little traffic to tell.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(default)]
pub struct WouldBeView {
    /// Of reads.
    pub read: Option<u32>,
    /// Of writes.
    pub write: Option<u32>,
}

/// Percentiles.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct PercentilesView {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

/// A fallback cache.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct CacheView {
    /// Entries.
    pub entries: u64,
    /// Their bytes in memory.
    pub bytes: u64,
    /// Their bytes in files.
    pub file_bytes: u64,
    /// Answers given from it.
    pub hits: u64,
    /// Look-ups that found nothing.
    pub misses: u64,
}

/// A queue.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct QueueView {
    /// Calls that wait: pending, sending and waiting for a retry.
    pub calls: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The most calls that it holds.
    pub limit_calls: u64,
    /// The most bytes that it holds.
    pub limit_bytes: u64,
    /// Share of the limit in use, in percent.
    pub fill_percent: f64,
    /// Milliseconds since the oldest was accepted.
    pub oldest_age_ms: u64,
    /// Occupied lanes.
    pub lanes: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Calls that became dead letters since the start.
    pub became_dead: u64,
    /// Writes that were refused since the start, because the queue is full, sheds, or its store takes no writes.
    pub refused: u64,
    /// Bytes of the store on disk.
    pub disk_bytes: u64,
    /// Why nothing is replayed at this moment, if calls wait and nothing is.
    pub replay_paused: Option<String>,
    /// Calls replayed since the start.
    pub replayed: u64,
    /// Calls queued per second, over the last ten seconds.
    pub enqueued_per_second: f64,
    /// Calls replayed per second, over the last ten seconds.
    pub replayed_per_second: f64,
    /// Seconds until nothing waits at the present pace of replay; `None` if it does not get shorter.
    pub drain_seconds: Option<f64>,
    /// Seconds until it is full at the pace of the last ten seconds; `None` if it does not get longer.
    pub full_seconds: Option<f64>,
    /// Whether the store takes writes, and if not, why.
    pub store_refuses: Option<String>,
    /// What opening the store found amiss.
    pub findings: Vec<String>,
    /// What a plain write may do in an outage.
    pub write_fallback: Lenient<WriteFallback>,
    /// What a dead letter does to its lane.
    pub dead_letter_policy: Lenient<DeadLetterPolicy>,
}

/// A queued call in a listing.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct QueuedCallView {
    /// Its name.
    pub op_id: OpId,
    /// Its place in the queue.
    pub sequence: u64,
    /// Its lane for people.
    pub lane: String,
    /// `pending`, `sending`, `retry` or `dead`.
    pub state: Cow<'static, str>,
    /// Attempts since it was queued or since the daemon's start.
    pub attempts: u32,
    /// When it was accepted.
    pub enqueued_at: UnixMillis,
    /// Milliseconds since then.
    pub age_ms: u64,
    /// Bytes of its body.
    pub bytes: u64,
    /// How the last attempt ended, or why it is dead.
    pub last_error: Option<Words>,
    /// The user who sent it.
    pub uid: u32,
    /// The span that queued it, as a W3C `traceparent`.
    pub traceparent: Option<String>,
    /// The trace of its replay, if that will be recorded.
    pub replay_trace_id: Option<String>,
    /// Always null: no call expires.
    pub expires_at: (),
    /// Whether it may have been applied.
    pub in_doubt: bool,
    /// The calls that were sent as one with it, itself included. Dead letters are listed, requeued and discarded
    /// as one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub calls: usize,
}

/// A transition of a reason that only a later release knows is left out.
fn if_readable<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<TransitionRecord>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

fn what_is_readable<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<TransitionRecord>, D::Error> {
    let values = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect())
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(number: &usize) -> bool {
    *number == 1
}

/// A page of a listing.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct QueuePage {
    /// All calls of the wanted state.
    pub total: u64,
    /// This page.
    pub calls: Vec<QueuedCallView>,
    /// The place at which this page ends, to be passed as `after` for the next one; `None` at the end.
    pub next: Option<Place>,
}

/// GET explain: why the breaker is in its state.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct ExplainView {
    /// The backend's name.
    pub backend: String,
    /// What happened and what will happen next, in sentences.
    pub story: Vec<Words>,
    /// What an operator can do about it, in sentences; empty in peace.
    pub advice: Vec<String>,
    /// The breaker.
    pub breaker: BreakerView,
    /// The last errors, newest last.
    pub last_errors: Vec<fusebox_state::breaker::ErrorRecord>,
    /// The newest transitions, newest last.
    #[serde(deserialize_with = "what_is_readable")]
    pub transitions: Vec<TransitionRecord>,
    /// The newest transition that took it out of CLOSED, if it has not come back since.
    #[serde(deserialize_with = "if_readable")]
    pub outage: Option<TransitionRecord>,
    /// The traces of the calls whose errors led to it and of the last errors, oldest first.
    pub traces: Vec<TraceView>,
    /// The queue.
    pub queue: QueueView,
    /// The last minute.
    pub recent: RecentView,
    /// When it is pinged next, if no ping is on its way.
    pub next_ping_at: Option<UnixMillis>,
}

/// What a connector shows of itself.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct ConnectorStatus {
    /// Connections that are up and usable.
    pub connections: usize,
    /// What an operator should know: a refused kill, an eviction policy that can drop markers.
    pub warnings: Vec<Words>,
    /// The server's version if it has said so.
    pub server_version: Option<String>,
}

/// The trace of a call.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default)]
pub struct TraceView {
    /// Its id.
    pub trace_id: String,
    /// A link to look at it, if that is known.
    pub url: Option<String>,
}
