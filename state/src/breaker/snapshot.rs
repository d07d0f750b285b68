//! What a breaker looks like from outside.

use super::{ErrorRecord, State};
use crate::{units::Moment, window::Counts};

/// Why a call got no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The breaker is open, or half-open with all its probes out.
    #[error("the breaker is open")]
    Open,
    /// The backend is offline by an operator's order.
    #[error("the backend is offline by an operator's order")]
    Offline,
}

/// A force in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Force {
    /// Forced open, or else closed.
    pub open: bool,
    /// Who said why.
    pub reason: String,
    /// Since when.
    pub since: Moment,
    /// Until when, or until it is released.
    pub until: Option<Moment>,
}

/// What a breaker looks like from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The effective state.
    pub state: State,
    /// The one underneath a force.
    pub underlying: State,
    /// The force in effect.
    pub forced: Option<Force>,
    /// By an operator's order.
    pub offline: bool,
    /// Since when the effective state holds.
    pub since: Moment,
    /// Until when it is open, if it leaves by itself.
    pub open_until: Option<Moment>,
    /// Failed recoveries in a row.
    pub exponent: u32,
    /// The whole window.
    pub counts: Counts,
    /// Pings failed in a row.
    pub pings_failed: u32,
    /// The last errors, oldest first.
    pub last_errors: Vec<ErrorRecord>,
}
