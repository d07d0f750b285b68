//! What an operator must act on.

/// The names under which alerts are raised.
pub(crate) const ALERTS: [&str; 9] =
    ["actor", "blocked", "closed", "copied", "damage", "dead_full", "lost", "retarget", "store"];
