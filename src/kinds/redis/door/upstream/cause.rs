//! How a connection ends, and what that means to what it left unanswered.

use std::time::Duration;

use fusebox_actors::connector::{AttemptError, OwnCode};
use fusebox_state::{ErrorClass, Verdict};

use crate::kinds::redis::transport::handshake::Failed;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum Cause {
    /// Its oldest request was not answered within the backend's `timeout`.
    Overdue,
    /// It was closed by the daemon.
    Shared,
    /// The other end closed it, or it broke.
    Broken(String),
}

impl Cause {
    pub(super) fn broken(why: &str) -> Self {
        Self::Broken(why.to_owned())
    }

    /// What it means to an entry that was `sent` whole or not, the `first` that waits or not, itself `overdue` or not.
    pub(super) fn error(
        &self,
        sent: bool,
        first: bool,
        overdue: bool,
        limit: Duration,
    ) -> (Verdict, AttemptError) {
        let class = if sent { ErrorClass::Unknown } else { ErrorClass::NotExecuted };
        let blamed = if first { Verdict::Failure } else { Verdict::Neutral };
        match self {
            Self::Overdue if overdue => {
                let message = format!("no reply within {limit:?}");
                (blamed, AttemptError::own(class, OwnCode::Timeout, message))
            }
            Self::Overdue | Self::Shared => {
                let message =
                    "the connection was reset because another call on it was not answered in time";
                (Verdict::Neutral, AttemptError::own(class, OwnCode::Reset, message))
            }
            Self::Broken(why) => {
                let verdict = if sent { blamed } else { Verdict::Neutral };
                (verdict, AttemptError::own(class, OwnCode::Reset, why.clone()))
            }
        }
    }
}

/// A write may still land that was left unanswered while the connection was opened.
pub(super) fn not_fenced() -> Failed {
    let why = "an earlier write of another connection may still be applied";
    let error = AttemptError::own(ErrorClass::NotExecuted, OwnCode::Reset, why);
    Failed { error, verdict: Verdict::Neutral }
}

/// There was no connection for as long as an attempt may take.
pub(super) fn not_up(limit: Duration) -> Failed {
    let why = format!("no connection was ready within {limit:?}");
    let error = AttemptError::own(ErrorClass::NotExecuted, OwnCode::Connect, why);
    Failed { error, verdict: Verdict::Neutral }
}

/// What is sent after the connector was closed.
pub(super) fn closed() -> Failed {
    let error =
        AttemptError::own(ErrorClass::NotExecuted, OwnCode::Closed, "the connector is closed");
    Failed { error, verdict: Verdict::Neutral }
}
