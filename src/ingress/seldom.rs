//! A line of the log for what anybody can make happen as often as they like: one a minute, with the number of the
//! others.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The least time between two lines.
const PAUSE: Duration = Duration::from_secs(60);

/// Lets one in a minute through.
#[derive(Debug)]
pub(crate) struct Seldom(Mutex<Told>);

#[derive(Debug)]
struct Told {
    last: Option<Instant>,
    /// Those that came since.
    kept: u64,
}

impl Seldom {
    /// Nothing has happened.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Told { last: None, kept: 0 }))
    }

    /// It has happened again: how often since it was logged last, if it is to be logged now.
    pub(crate) fn again(&self) -> Option<u64> {
        let (mut told, now) = (self.0.lock(), Instant::now());
        told.kept += 1;
        let is_due = told.last.is_none_or(|last| now.saturating_duration_since(last) >= PAUSE);
        is_due.then(|| {
            told.last = Some(now);
            std::mem::take(&mut told.kept)
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_in_a_minute_is_told_and_the_others_are_counted() {
        let seldom = Seldom::new();
        assert_eq!([seldom.again(), seldom.again(), seldom.again()], [Some(1), None, None]);
        advance(PAUSE / 2).await;
        assert_eq!(seldom.again(), None);
        advance(PAUSE / 2).await;
        assert_eq!([seldom.again(), seldom.again()], [Some(4), None]);
    }
}
