//! How often something happens, from counts that only grow.

use std::{collections::BTreeMap, mem, time::Duration};

use fusebox_actors::view::{Counts, Rates};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How often the counts are to be [noted](Earlier::note). A rate is over one to two times as long.
pub(crate) const NOTED_EVERY: Duration = Duration::from_secs(5);

/// Counts as they were a little earlier.
pub(crate) struct Earlier(Mutex<[(Instant, Counts); 2]>);

impl Earlier {
    /// Nothing was counted before now.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new([(now, Counts::new()), (now, Counts::new())]))
    }

    /// Notes what was counted so far.
    pub(crate) fn note(&self, counts: Counts) {
        let mut noted = self.0.lock();
        let [before, last] = &mut *noted;
        *before = mem::replace(last, (Instant::now(), counts));
    }

    /// How often each word was counted in a second since the last but one note, without those that were not.
    pub(crate) fn rates(&self, now: &Counts) -> Rates {
        let noted = self.0.lock();
        let [(since, before), _] = &*noted;
        let seconds = since.elapsed().as_secs_f64().max(0.001);
        let rate = |(word, count): (&_, &u64)| {
            let more = count.saturating_sub(before.get(word).copied().unwrap_or_default());
            // Two digits: nobody looks for more, and no view differs by what is noise.
            #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
            let rate = (more as f64 / seconds * 100.0).round() / 100.0;
            (more > 0).then(|| (Clone::clone(word), rate))
        };
        now.iter().filter_map(rate).collect::<BTreeMap<_, _>>()
    }
}

#[cfg(test)]
mod tests {
    use fusebox_actors::view::counts;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_over_what_was_counted_since_the_last_but_one_note() {
        let earlier = Earlier::new();
        tokio::time::advance(NOTED_EVERY).await;
        let rates = earlier.rates(&counts([("live", 10), ("stale", 0)]));
        assert_eq!(rates, [("live".into(), 2.0)].into());
        earlier.note(counts([("live", 10)]));
        tokio::time::advance(NOTED_EVERY).await;
        earlier.note(counts([("live", 10)]));
        tokio::time::advance(NOTED_EVERY).await;
        let rates = earlier.rates(&counts([("live", 12), ("stale", 5)]));
        assert_eq!(rates, [("live".into(), 0.2), ("stale".into(), 0.5)].into());
    }
}
