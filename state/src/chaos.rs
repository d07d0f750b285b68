//! Faults on purpose: which attempts they strike, for how long, and what ends them early.
//!
//! An operator names *faults* for one backend and for a while. Each attempt on the wire (live, of replay, a ping) is
//! shown to them after it has its permit, its place and its timeout, so that the breaker and the metrics see what a
//! fault does as they would see the real thing.
//!
//! ```text
//!             check                    strike (each attempt)
//!   Order ────────────▶ Faults ─────────────────────────────▶ Struck { before, end, after }
//!              │           │  judge (each look)                │ a hit of each at most
//!              ▼           ▼                                   ▼
//!            Wrong      Ending: expired, a queue too full,   applied, or suppressed: too many are delayed already,
//!                       the system CRITICAL, too many fail    or a connection was reset less than a second ago
//! ```
//! # What a fault is
//! | kind | what happens | executed |
//! | --- | --- | --- |
//! | `latency` | the attempt begins later, within its timeout | yes; no, if the timeout is over first |
//! | `error` | the server is overloaded, in its own words | no |
//! | `reject` | the server refuses the call, in its own words | no |
//! | `reset_before` | the connection breaks before anything is sent | no |
//! | `stale_connection` | the same, and the connections that there are are given up | no |
//! | `reset_after` | it is sent and answered, the answer is thrown away and the connection reset | **unknown** |
//! | `timeout` | it is sent, and no answer comes within the timeout | **unknown** |
//! | `slow_drip` | the answer comes later, and what follows it piece by piece as slowly | yes |
//!
//! # Invariants
//! 1. Whether a fault strikes is a function of the seed, the number of the attempt and the place of the fault: the same
//!    seed strikes the same attempts. The number is the caller's `op_id` if it brought one, else the order of arrival
//!    within its class: pings and replay, which come by the clock, do not shift what strikes calls.
//! 2. A fault says that something was not executed only if nothing was sent. What it calls unknown goes the way of a
//!    real unknown outcome.
//! 3. Pings and replay are struck only by faults that name them. `reject` never strikes replay: it would make dead
//!    letters of what was acknowledged as durable.
//! 4. Nothing here is stored. A restart ends it.

use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{OpId, UnixMillis};

mod guard;
mod order;
mod wanted;

pub use guard::{Conditions, Ending, FailedShare, judge};
pub use order::{Permitted, Wrong};
pub use wanted::{AbortOn, Class, FaultOrder, Kind, Only, Order, Seen};

/// A fault that was checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What it does.
    pub kind: Kind,
    /// The share of attempts that it strikes, above 0 and at most 1.
    pub rate: f64,
    /// For how long it holds them up; zero for kinds that do not say.
    pub latency: Duration,
    /// By how much that is more or less; at most `latency`.
    pub jitter: Duration,
    /// With which code of the server's it answers; `None` is the usual one of the kind of backend.
    pub code: Option<String>,
    /// What it strikes; `None` is callers' reads and writes.
    pub class: Option<Class>,
    /// Whose attempts it strikes.
    pub only: Only,
}

/// The number of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// So many of its class were seen before it.
    Arrival(u64),
    /// Its caller named it.
    Named(OpId),
}

/// A fault that strikes an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The fault's place.
    pub index: usize,
    /// What it does.
    pub kind: Kind,
    /// For how long it holds the attempt up.
    pub time: Duration,
}

/// The faults that strike one attempt: of each sort the first that does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Struck {
    /// It begins later.
    pub before: Option<Hit>,
    /// It ends otherwise than it would.
    pub end: Option<Hit>,
    /// Its answer comes later.
    pub after: Option<Hit>,
}

impl Struck {
    /// The hits, in the order in which they are felt.
    pub fn hits(&self) -> impl Iterator<Item = Hit> {
        [self.before, self.end, self.after].into_iter().flatten()
    }
}

/// What strikes an attempt that was chosen before it meets that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// Of which of the sets of faults that a backend has had, one after the other.
    pub generation: u64,
    /// The faults.
    pub struck: Struck,
}

/// What an operator has ordered, checked: to hold it is to know that it may be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    each: Vec<Fault>,
    /// For how long.
    pub lasting: Duration,
    /// What decides which attempts are struck.
    pub seed: u64,
    /// Whether what they do counts for the breaker.
    pub counts: bool,
    /// Why, in the operator's words; may be empty.
    pub reason: String,
    /// How many attempts are held up at once, at most.
    pub delayed_max: u32,
    /// Which state of the system ends them.
    pub abort_on: AbortOn,
    /// The share of failed calls that ends them.
    pub abort_above: Option<f64>,
    /// Whether they were ordered by force.
    pub forced: bool,
    order: Order,
}

impl Faults {
    /// The faults, in the order in which they were named.
    pub fn as_slice(&self) -> &[Fault] {
        &self.each
    }

    /// What was ordered.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// The faults that strike an attempt.
    pub fn strike(&self, seen: &Seen<'_>, number: Number) -> Struck {
        let mut struck = Struck::default();
        for (index, fault) in self.each.iter().enumerate() {
            let place = match fault.kind {
                Kind::Latency => &mut struck.before,
                Kind::SlowDrip => &mut struck.after,
                _ => &mut struck.end,
            };
            if place.is_none() && fault.concerns(seen) {
                let [first, second] = draws(self.seed, (seen.class, number), index);
                if is_below(first, fault.rate) {
                    let time = spread(fault.latency, fault.jitter, second);
                    *place = Some(Hit { index, kind: fault.kind, time });
                }
            }
        }
        struck
    }
}

impl Fault {
    fn concerns(&self, seen: &Seen<'_>) -> bool {
        let of_class = match self.class {
            Some(class) => class == seen.class,
            None => matches!(seen.class, Class::Read | Class::Write),
        };
        of_class && self.only.holds_for(seen)
    }
}

/// Two random numbers that nothing but these arguments decides.
fn draws(seed: u64, (class, number): (Class, Number), index: usize) -> [u64; 2] {
    let (sort, number) = match number {
        Number::Arrival(number) => (class as u8, u128::from(number)),
        Number::Named(op_id) => (u8::MAX, op_id.to_u128()),
    };
    let mut bytes = [0; 25];
    let [first, rest @ ..] = &mut bytes;
    *first = sort;
    let number = number.to_le_bytes().into_iter().chain((index as u64).to_le_bytes());
    rest.iter_mut().zip(number).for_each(|(at, byte)| *at = byte);
    [xxh3_64_with_seed(&bytes, seed), xxh3_64_with_seed(&bytes, seed ^ u64::MAX)]
}

/// Whether a random number is among the first so many of all.
fn is_below(draw: u64, rate: f64) -> bool {
    // 53 bits are what a float holds exactly.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are held exactly")]
    let share = (draw >> 11) as f64 / (1_u64 << 53) as f64;
    share < rate
}

/// `latency`, more or less by `jitter` at most.
fn spread(latency: Duration, jitter: Duration, draw: u64) -> Duration {
    if jitter.is_zero() {
        return latency;
    }
    let width = jitter.as_micros().saturating_mul(2).saturating_add(1);
    let more = Duration::from_micros(
        u64::try_from(u128::from(draw).checked_rem(width).unwrap_or_default()).unwrap_or_default(),
    );
    (latency + more).saturating_sub(jitter)
}

/// How operators and logs see faults: `chaos until 2026-11-28T10:00:00.000Z (game day)`.
pub fn told(until: UnixMillis, reason: &str) -> String {
    if reason.is_empty() {
        return format!("chaos until {until}");
    }
    format!("chaos until {until} ({reason})")
}

#[cfg(test)]
mod tests;
