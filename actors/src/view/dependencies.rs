//! The dependencies of backends, and the root causes of what is down.

use std::borrow::Cow;

use fusebox_state::UnixMillis;

/// GET /v1/dependencies.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct DependenciesView {
    /// Every backend, and each part of this host that fails now.
    pub nodes: Vec<NodeView>,
    /// What the configuration declares, and what was seen.
    pub edges: Vec<EdgeView>,
    /// What others are down for the sake of, those that went first first.
    pub root_causes: Vec<RootCauseView>,
}

/// A backend, or a part of this host.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct NodeView {
    /// The backend's name; `host:network`, `host:dns`, `host:sockets`, `host:certificates` or `host:disk`.
    pub name: String,
    /// `backend` or `host`.
    pub kind: Cow<'static, str>,
    /// `CLOSED`, `OPEN`, `HALF_OPEN` or `OFFLINE`; `DOWN` for a part of this host.
    pub state: Cow<'static, str>,
    /// Since when.
    pub since: UnixMillis,
}

/// Who depends on whom.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default)]
pub struct EdgeView {
    /// Who depends.
    pub from: String,
    /// On whom.
    pub to: String,
    /// `declared` or `seen`.
    pub kind: Cow<'static, str>,
    /// Whether an outage of `to` is one of `from`; of what was seen it is not known, and false.
    pub required: bool,
    /// Why it is there.
    pub because: Cow<'static, str>,
}

/// What others are down for the sake of.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default)]
pub struct RootCauseView {
    /// The name of its node.
    pub backend: String,
    /// When its outage began: with its first failure.
    pub since: UnixMillis,
    /// The backends that are down for its sake; of a disk, those that cannot queue.
    pub impairs: Vec<String>,
    /// Root causes that went within 5 s of it and have no declared edge to it.
    pub together_with: Vec<String>,
    /// `declared`, or `likely` if it was only seen.
    pub confidence: Cow<'static, str>,
    /// Why it is one, in a sentence.
    pub because: String,
}
