//! How often a client is refused before it is slowed down.
//!
//! Some clients ask again at once whenever they are refused. Each has so many refusals for free, and then waits a little
//! after each: a program that is refused now and then notices nothing.

use std::time::Duration;

use tokio::time::Instant;

/// Refusals within a second that cost nothing.
const FREE: u32 = 50;
/// How long a client that has had them waits after each further one.
const PAUSE: Duration = Duration::from_millis(50);

/// What one client was refused of late.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// When the second began that is counted.
    since: Option<Instant>,
    count: u32,
    until: Option<Instant>,
}

impl Refusals {
    /// One more.
    pub(super) fn one(&mut self, now: Instant) {
        let is_old = |since: Instant| now.saturating_duration_since(since) > Duration::from_secs(1);
        if self.since.is_none_or(is_old) {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count += 1;
        if self.count > FREE {
            self.until = Some(now + PAUSE);
            // The next second begins with the last one of this: it has none for free.
            (self.since, self.count) = (Some(now), FREE);
        }
    }

    /// Until when nothing more is taken of it, if that is later than `now`.
    pub(super) fn paces(&mut self, now: Instant) -> Option<Instant> {
        self.until = self.until.filter(|until| *until > now);
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_asks_again_at_once_waits_and_who_does_not_is_never_held_up() {
        let mut refusals = Refusals::default();
        for _ in 0..FREE {
            refusals.one(Instant::now());
            assert_eq!(refusals.paces(Instant::now()), None);
        }
        let (begun, mut count) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(10) {
            refusals.one(Instant::now());
            count += 1;
            let until = refusals.paces(Instant::now()).expect("it waits");
            tokio::time::sleep_until(until).await;
            assert_eq!(refusals.paces(Instant::now()), None);
        }
        assert_eq!(count, 200);
        tokio::time::sleep(Duration::from_secs(2)).await;
        for _ in 0..1_000 {
            refusals.one(Instant::now());
            assert_eq!(refusals.paces(Instant::now()), None);
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}
