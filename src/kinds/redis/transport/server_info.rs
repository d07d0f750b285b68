//! What a server says of itself in its reply to INFO, as far as a connection needs it.

use crate::kinds::redis::protocol::resp::Reply;

/// What the server says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerInfo {
    pub(crate) version: Option<String>,
    pub(crate) run_id: Option<String>,
    pub(crate) replica: bool,
    pub(crate) eviction: Option<String>,
    /// How many connections it takes, if it says so: since Redis 7.0.
    pub(crate) connections_max: Option<usize>,
    /// Whether it is part of a cluster.
    pub(crate) cluster: bool,
    /// All of it, as INFO tells.
    pub(crate) text: String,
}

impl ServerInfo {
    /// Reads a reply to INFO.
    pub(crate) fn read(reply: &[u8]) -> Self {
        let mut info = Self::default();
        let text = Reply::of(reply).and_then(|reply| reply.text()).unwrap_or_default();
        info.text = String::from_utf8_lossy(text).into_owned();
        let text = info.text.clone();
        for line in text.lines() {
            match line.split_once(':') {
                Some(("redis_version", value)) => info.version = Some(value.to_owned()),
                Some(("run_id", value)) => info.run_id = Some(value.to_owned()),
                Some(("role", value)) => info.replica = value == "slave",
                Some(("maxmemory_policy", value)) => info.eviction = Some(value.to_owned()),
                Some(("maxclients", value)) => info.connections_max = value.parse().ok(),
                Some(("cluster_enabled", value)) => info.cluster = value == "1",
                _ => {}
            }
        }
        info
    }
}
