//! The settings whose values are words, and what these mean.

use fusebox_actors::{AckLevel, DeadLetterPolicy, Priority, WriteFallback};

/// How callers are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    /// By the user and the groups of their process. On Unix sockets.
    Peer,
    /// By a name and a secret that they show.
    Token,
    /// Not at all. On loopback.
    Open,
}

pub(super) const AUTHS: &[(&str, Auth)] =
    &[("peer", Auth::Peer), ("token", Auth::Token), ("open", Auth::Open)];

impl Auth {
    /// Its word in the configuration.
    pub(crate) fn as_str(self) -> &'static str {
        word(self, AUTHS)
    }
}

/// The answer to a request that was not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// The error of a server that is loading: clients take it for a broken connection, and try again later.
    Loading,
    /// An error of fusebox's own, which nobody tries again.
    Fusebox,
    /// Nothing: its connection is closed.
    Close,
}

pub(super) const UNAVAILABLE: &[(&str, Unavailable)] = &[
    ("LOADING", Unavailable::Loading),
    ("FUSEBOX", Unavailable::Fusebox),
    ("close", Unavailable::Close),
];

/// The answer to a request that may have been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnUnknown {
    /// An error of fusebox's own, which nobody tries again.
    Error,
    /// Nothing: its connection is closed.
    Close,
}

/// Which replies are assumed of queued writes whose effect is known and whose reply is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EffectReply {
    /// Those that programs seldom decide by.
    Assume,
    /// All of them.
    All,
    /// None: such a write is not queued.
    Error,
}

pub(super) const EFFECT_REPLY: &[(&str, EffectReply)] =
    &[("assume", EffectReply::Assume), ("all", EffectReply::All), ("error", EffectReply::Error)];

/// Which reads are answered with nil in an outage if nothing is known of their key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnMiss {
    /// `GET` and `MGET`.
    #[default]
    Get,
    /// These, and `HGET`, `HMGET` and `HGETALL`.
    Nil,
    /// None.
    Error,
}

pub(super) const ON_MISS: &[(&str, OnMiss)] =
    &[("get", OnMiss::Get), ("nil", OnMiss::Nil), ("error", OnMiss::Error)];

pub(super) const ON_UNKNOWN: &[(&str, OnUnknown)] =
    &[("error", OnUnknown::Error), ("close", OnUnknown::Close)];

/// `applied-or-durable` is whichever comes first.
pub(super) const MIN_ACKS: &[(&str, Option<AckLevel>)] = &[
    ("applied", Some(AckLevel::Applied)),
    ("applied-or-durable", None),
    ("durable", Some(AckLevel::Durable)),
];

pub(super) const PRIORITIES: &[(&str, Priority)] =
    &[("low", Priority::Low), ("normal", Priority::Normal), ("critical", Priority::Critical)];

/// What a write may do in an outage.
pub(super) const WRITE_FALLBACKS: &[(&str, WriteFallback)] =
    &[("queue", WriteFallback::Queue), ("refuse", WriteFallback::Refuse)];

/// What becomes of the writes behind a dead letter.
pub(super) const DEAD_LETTER_POLICIES: &[(&str, DeadLetterPolicy)] =
    &[("continue", DeadLetterPolicy::Continue), ("block", DeadLetterPolicy::Block)];

/// How soon somebody must look, the least urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// It is good to know.
    Info,
    /// Somebody should look today.
    Warning,
    /// Somebody loses something now, or soon.
    Critical,
}

pub(super) const SEVERITIES: &[(&str, Severity)] =
    &[("info", Severity::Info), ("warning", Severity::Warning), ("critical", Severity::Critical)];

impl Severity {
    /// Its word.
    pub(crate) fn as_str(self) -> &'static str {
        word(self, SEVERITIES)
    }
}

/// The word of a value.
fn word<T: Copy + PartialEq>(value: T, words: &[(&'static str, T)]) -> &'static str {
    words.iter().find(|(_, it)| *it == value).map_or("", |(word, _)| *word)
}
