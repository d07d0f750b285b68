//! What a breaker remembers over a restart: a crash-looping daemon must not hammer a sick backend.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Breaker, Force, OFFLINE, Reason, State, Transition, Underlying, epoch};
use crate::{
    units::{Moment, UnixMillis},
    window::Horizon,
};

/// A breaker's memory, in wall-clock time. Written to disk at every transition.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct BreakerMemory {
    /// Until when it is open, in Unix milliseconds; `None` if it is closed. A half-open breaker is
    /// remembered as one whose open time is over.
    pub open_until: Option<u64>,
    /// Failed recoveries in a row.
    pub exponent: u32,
    /// A force in effect.
    pub force: Option<ForceMemory>,
    /// Offline by an operator's order.
    pub offline: bool,
}

/// A force, in wall-clock time.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ForceMemory {
    /// Forced open, or else closed.
    pub open: bool,
    /// Who said why.
    pub reason: String,
    /// Since when, in Unix milliseconds.
    pub since: u64,
    /// Until when, in Unix milliseconds.
    pub until: Option<u64>,
}

impl BreakerMemory {
    /// The bytes that are stored.
    pub fn encode(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, bincode::config::standard()).unwrap_or_default()
    }

    /// What [`BreakerMemory::encode`] made; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let config = bincode::config::standard().with_limit::<65_536>();
        match bincode::decode_from_slice(bytes, config) {
            Ok((memory, read)) if read == bytes.len() => Some(memory),
            _ => None,
        }
    }
}

/// `at` on the wall clock, given both clocks' `now`.
fn to_unix(at: Moment, now: Moment, unix_now: UnixMillis) -> u64 {
    if at >= now {
        unix_now.plus(at.since(now)).get()
    } else {
        unix_now.get().saturating_sub(crate::units::millis(now.since(at)))
    }
}

/// A wall-clock time on this process's clock; what is past is `now`. No farther than `most` ahead, so
/// that a clock set back cannot keep a breaker open for ever.
fn to_moment(at: u64, now: Moment, unix_now: UnixMillis, most: Duration) -> Moment {
    now.plus(UnixMillis::new(at).since(unix_now).min(most))
}

/// A force for a time gets no more than it had when it was remembered, so that a clock set back cannot make it last.
fn taken_up(force: &ForceMemory, now: Moment, unix_now: UnixMillis) -> Force {
    let most = |until: u64| Duration::from_millis(until.saturating_sub(force.since));
    Force {
        open: force.open,
        reason: force.reason.clone(),
        since: now,
        until: force.until.map(|until| to_moment(until, now, unix_now, most(until))),
    }
}

impl Breaker {
    /// What to remember.
    pub fn memory(&self, now: Moment, unix_now: UnixMillis) -> BreakerMemory {
        let cold = self.cold.lock();
        BreakerMemory {
            open_until: match &cold.underlying {
                Underlying::Closed { .. } => None,
                Underlying::Open { until, .. } => Some(to_unix(*until, now, unix_now)),
                Underlying::HalfOpen { .. } => Some(unix_now.get()),
            },
            exponent: cold.exponent,
            force: cold.force.as_ref().map(|force| ForceMemory {
                open: force.open,
                reason: force.reason.clone(),
                since: to_unix(force.since, now, unix_now),
                until: force.until.map(|until| to_unix(until, now, unix_now)),
            }),
            offline: cold.offline,
        }
    }

    /// Restores what an earlier run remembered, as far as this one knows no better: it may have gone on for a while
    /// before that was available. If nothing has happened, it is in the earlier one's state
    /// ([`Breaker::restore`]). Else its state is what has been seen since; a force of the earlier run takes effect
    /// unless an operator has given an order, and returns the transition that this brings about.
    pub fn take_up(
        &self,
        memory: &BreakerMemory,
        now: Moment,
        unix_now: UnixMillis,
    ) -> Option<Transition> {
        if epoch(self.word.load(Ordering::Relaxed)) == 0 {
            self.restore(memory, now, unix_now);
            return None;
        }
        let mut cold = self.cold.lock();
        cold.exponent = cold.exponent.max(memory.exponent);
        let force = memory.force.as_ref().filter(|_| !cold.is_ordered)?;
        cold.force = Some(taken_up(force, now, unix_now));
        let why = if force.open { Reason::ForcedOpen } else { Reason::ForcedClosed };
        Some(self.enter(&mut cold, why, Horizon::Whole, Some(force.reason.clone()), now))
    }

    /// Continues an earlier run. There is no transition: nothing changed but the process.
    pub fn restore(&self, memory: &BreakerMemory, now: Moment, unix_now: UnixMillis) {
        let mut cold = self.cold.lock();
        let longest = cold.settings.recovery_timeout_max.max(cold.settings.recovery_timeout);
        cold.exponent = memory.exponent;
        cold.offline = memory.offline;
        cold.underlying = match memory.open_until {
            Some(until) => {
                // When it opened is not remembered: what counts from then counts from now.
                let until = to_moment(until, now, unix_now, longest);
                let until = if cold.is_capped { cold.early(now, until) } else { until };
                let draw = cold.random.u64(..);
                Underlying::Open { since: now, until, draw, is_restored: true }
            }
            None => Underlying::Closed { since: now },
        };
        cold.force = memory.force.as_ref().map(|force| taken_up(force, now, unix_now));
        cold.since = now;
        let state: State = cold.effective();
        let raised = u64::from(epoch(self.word.load(Ordering::Relaxed)).wrapping_add(1)) << 32;
        let offline = if cold.offline { OFFLINE } else { 0 };
        self.word.store(raised | offline | state.bits(), Ordering::Release);
    }
}
