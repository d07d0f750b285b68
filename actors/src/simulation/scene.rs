//! What there is in every simulation.

use std::time::Duration;

/// The backends: their names.
pub(super) const BACKENDS: [&str; 3] = ["keys", "documents", "rows"];
/// Keys of a backend.
pub(super) const KEYS: u8 = 6;

/// A time in milliseconds.
pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
