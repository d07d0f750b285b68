//! What the scenarios use: real servers, the real daemon, a network that can be broken, and waiting.

pub(crate) mod callers;
pub(crate) mod clickhouse;
pub(crate) mod collector;
pub(crate) mod daemon;
pub(crate) mod firestore;
pub(crate) mod given;
pub(crate) mod h2_sink;
pub(crate) mod http;
pub(crate) mod outage;
pub(crate) mod poll;
pub(crate) mod port;
pub(crate) mod proc;
pub(crate) mod prometheus;
pub(crate) mod raw;
pub(crate) mod recording;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod tls;
pub(crate) mod tmux;
