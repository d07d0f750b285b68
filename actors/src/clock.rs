//! The clocks. Everything that decides takes its time from here, so that tokio's paused clock drives
//! the actors, their timers and the decisions together.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fusebox_state::{Moment, UnixMillis};
use tokio::time::Instant;

/// Where a process's [`Moment`]s begin: 49 days in, so that what an earlier run left behind can lie
/// before its start.
const ORIGIN: u64 = 1 << 32;

/// A monotonic clock and a wall clock. Copied freely.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// The wall clock at the start, where it runs with the monotonic one.
    simulated: Option<UnixMillis>,
}

impl Clock {
    /// The clocks of the machine.
    pub fn system() -> Self {
        Self { start: Instant::now(), simulated: None }
    }

    /// A wall clock that stood at `unix` when this was made and runs with tokio's clock: for tests.
    pub fn simulated(unix: UnixMillis) -> Self {
        Self { start: Instant::now(), simulated: Some(unix) }
    }

    /// The moment now.
    pub fn now(&self) -> Moment {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Moment::from_millis(ORIGIN.saturating_add(elapsed))
    }

    /// The wall clock now.
    pub fn unix(&self) -> UnixMillis {
        if let Some(start) = self.simulated {
            return start.plus(self.start.elapsed());
        }
        #[expect(clippy::disallowed_methods, reason = "this is where the wall clock is read")]
        let now = SystemTime::now();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
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
