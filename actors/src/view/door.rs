//! What a wire door shows of itself.
//!
//! The keys of every map are words of the code: none comes from a caller, so that each can be a label of a metric.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

/// Counts by a word of the code.
pub type Counts = BTreeMap<Cow<'static, str>, u64>;

/// How often something happens in a second, by a word of the code.
pub type Rates = BTreeMap<Cow<'static, str>, f64>;

/// Counts of these words.
pub fn counts(of: impl IntoIterator<Item = (&'static str, u64)>) -> Counts {
    of.into_iter().map(|(word, count)| (Cow::Borrowed(word), count)).collect()
}

/// A door whole: its listener, and the protocol behind it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct DoorStatus {
    /// The address at which it listens, as in the configuration: no two doors have the same.
    pub address: String,
    /// The protocol's kind.
    pub kind: Cow<'static, str>,
    /// The backend behind it.
    pub backend: String,
    /// How callers are known: `peer`, `token` or `open`.
    pub auth: Cow<'static, str>,
    /// Connections that are open.
    pub connections_open: u64,
    /// The most connections at once.
    pub connections_max: u64,
    /// Connections that were let in since the start.
    pub accepted: u64,
    /// Connections that were not, by reason.
    pub refused: Counts,
    /// Requests in a second by the source of their answer, over the last five to ten seconds.
    pub per_second: Rates,
    /// What the protocol tells.
    #[serde(flatten)]
    pub view: DoorView,
}

/// What the protocol behind a door tells of it. `connections`, `parked`, `oldest_parked_ms`, `buffered_in` and
/// `buffered_out` are as of now; everything else counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct DoorView {
    /// Open connections by what they have of the backend.
    pub connections: DoorConnections,
    /// Requests that wait for the backend.
    pub parked: u64,
    /// How long the oldest of these has waited, in milliseconds.
    pub oldest_parked_ms: Option<u64>,
    /// Bytes of requests that the door holds: what `in_bytes` bounds.
    pub buffered_in: u64,
    /// Bytes of answers that the door holds, or keeps room for: what `out_bytes` bounds.
    pub buffered_out: u64,
    /// Connections that have ended, by reason, such as `client`, `idle`, `protocol`, `slow_reader`, `upstream`, `stop`.
    pub closed: Counts,
    /// Requests that were answered.
    pub commands: Vec<DoorCommands>,
    /// Requests that the door refused itself, by reason.
    pub refused_commands: Counts,
    /// Names and secrets that were shown and are nobody's.
    pub auth_failures: u64,
    /// Bytes that came from clients.
    pub bytes_in: u64,
    /// Bytes that went to clients.
    pub bytes_out: u64,
}

/// Open connections of a door.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(default)]
pub struct DoorConnections {
    /// They use what all share.
    pub shared: u64,
    /// They have a connection to the backend of their own.
    pub pinned: u64,
    /// They wait for the backend with a request that it is to hold.
    pub parked: u64,
}

/// Requests of one class with answers of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct DoorCommands {
    /// The protocol's class.
    pub class: Cow<'static, str>,
    /// One of [`SOURCES`](crate::metrics::SOURCES), or `local`: the door's own answer.
    pub source: Cow<'static, str>,
    /// How many.
    pub count: u64,
}

impl DoorView {
    /// Requests by the source of their answer.
    pub fn by_source(&self) -> Counts {
        let mut sum = Counts::new();
        for commands in &self.commands {
            *sum.entry(commands.source.clone()).or_default() += commands.count;
        }
        sum
    }
}
