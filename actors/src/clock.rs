//! The clocks. Everything that decides takes its time from here, so that tokio's paused clock drives
//! the actors, their timers and the decisions together.

use std::{
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fusebox_state::{Moment, UnixMillis};
use tokio::time::Instant;

/// The first [`Moment`] of a process: 49 days in, so that what an earlier run left behind can be
/// before its start.
const ORIGIN: u64 = 1 << 32;

/// A reading of the monotonic clock in nanoseconds, finer than the [`Moment`] that decisions are made of.
/// Means nothing outside the process that made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reading(u64);

impl Reading {
    /// The moment of it.
    pub fn moment(self) -> Moment {
        Moment::from_millis(ORIGIN.saturating_add(self.0 / 1_000_000))
    }

    /// How long after `earlier` it was made; zero if it was not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn wall_nanos() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "this is where the wall clock is read")]
    let now = SystemTime::now();
    u64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// A monotonic clock and a wall clock. Copied freely.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// The wall clock when this was made.
    start_unix: u64,
    /// How far the wall clock was set since, in milliseconds, if it runs with the monotonic one.
    simulated: Option<&'static AtomicI64>,
}

impl Clock {
    /// The clocks of the machine.
    pub fn system() -> Self {
        Self { start: Instant::now(), start_unix: wall_nanos(), simulated: None }
    }

    /// A wall clock that was at `unix` when this was made and runs with tokio's clock; `set` says how far it was set
    /// since, in milliseconds.
    pub(crate) fn simulated(unix: UnixMillis, set: &'static AtomicI64) -> Self {
        let start_unix = unix.get().saturating_mul(1_000_000);
        Self { start: Instant::now(), start_unix, simulated: Some(set) }
    }

    /// The moment now.
    pub fn now(&self) -> Moment {
        self.read().moment()
    }

    /// The monotonic clock now, as fine as it is.
    pub fn read(&self) -> Reading {
        // 584 years.
        Reading(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The wall clock now.
    pub fn unix(&self) -> UnixMillis {
        UnixMillis::new(self.unix_nanos() / 1_000_000)
    }

    /// The wall clock now, in nanoseconds since the Unix epoch.
    pub fn unix_nanos(&self) -> u64 {
        let Some(set) = self.simulated else { return wall_nanos() };
        let set = set.load(Relaxed).saturating_mul(1_000_000);
        self.start_unix.saturating_add(self.read().0).saturating_add_signed(set)
    }

    /// The wall clock as it would be if nobody had set it since this was made: for times to live, which a step of
    /// the clock must neither shorten nor prolong. In milliseconds since the Unix epoch, and comparable with the
    /// wall clock of other runs.
    pub fn steady_unix(&self) -> UnixMillis {
        UnixMillis::new(self.start_unix.saturating_add(self.read().0) / 1_000_000)
    }

    /// Time since the clock was made.
    pub fn uptime(&self) -> Duration {
        self.start.elapsed()
    }

    /// `at` on the wall clock.
    pub fn to_unix(&self, at: Moment) -> UnixMillis {
        let (now, unix) = (self.now(), self.unix());
        if at >= now {
            unix.plus(at.since(now))
        } else {
            let ago = u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
            UnixMillis::new(unix.get().saturating_sub(ago))
        }
    }

    /// tokio's instant of `at`, to sleep until it.
    pub fn instant(&self, at: Moment) -> Instant {
        Instant::now() + at.since(self.now())
    }
}
