//! What an operator must act on.

/// The subject of an alert. Its word labels a metric and is part of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alert {
    /// The backend's actor was given up on.
    Actor,
    /// The server, or an object in it, refuses everybody.
    Blocked,
    /// The store does not open.
    Closed,
    /// The state directory is a copy.
    Copied,
    /// The store was found damaged.
    Damage,
    /// The dead letters are full.
    DeadFull,
    /// The store was gone at the start.
    Lost,
    /// Calls wait for another target.
    Retarget,
    /// The store refuses writes.
    Store,
}

impl Alert {
    /// Every subject.
    pub(crate) const ALL: [Self; 9] = [
        Self::Actor,
        Self::Blocked,
        Self::Closed,
        Self::Copied,
        Self::Damage,
        Self::DeadFull,
        Self::Lost,
        Self::Retarget,
        Self::Store,
    ];

    /// The word of metrics and events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Actor => "actor",
            Self::Blocked => "blocked",
            Self::Closed => "closed",
            Self::Copied => "copied",
            Self::Damage => "damage",
            Self::DeadFull => "dead_full",
            Self::Lost => "lost",
            Self::Retarget => "retarget",
            Self::Store => "store",
        }
    }
}
