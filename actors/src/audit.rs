//! Which lines of the log say who has given which order.

/// The target of these lines. None of them is left out of the log, however many there are.
pub const AUDIT: &str = "fusebox::audit";
