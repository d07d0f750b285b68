//! The failures of a backend since its last answer: when the first of them was, and what they blame.
//!
//! An answer ends them. Nothing is done for that when it comes: who asks, or adds a failure, looks whether one came
//! since the first. So a success costs nothing here.

use fusebox_state::{
    Moment,
    dependencies::{Fault, Shared},
};
use parking_lot::Mutex;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Failures(Mutex<Option<Run>>);

/// Failures without an answer in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// When the first of them was.
    pub(crate) began: Moment,
    /// The part of this host that the last of them that said anything blames, and since when they do.
    pub(crate) blames: Option<(Shared, Moment)>,
}

impl Failures {
    /// One more, at `now`. `is_over` says whether there was an answer since then.
    pub(crate) fn add(&self, fault: Fault, now: Moment, is_over: impl Fn(Moment) -> bool) {
        let mut run = self.0.lock();
        let before = run.filter(|run| !is_over(run.began));
        let earlier = before.and_then(|run| run.blames);
        let blames = match fault {
            Fault::Unclear => earlier,
            Fault::Backend | Fault::Overload => None,
            Fault::Here(shared) => {
                earlier.filter(|(before, _)| *before == shared).or(Some((shared, now)))
            }
        };
        *run = Some(Run { began: before.map_or(now, |run| run.began), blames });
    }

    /// Those that no answer has ended.
    pub(crate) fn now(&self, is_over: impl Fn(Moment) -> bool) -> Option<Run> {
        (*self.0.lock()).filter(|run| !is_over(run.began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_since_an_answer_is_known_and_what_they_blame() {
        let (failures, at) = (Failures::default(), Moment::from_millis);
        let add = |fault, now, answered: u64| {
            let is_over = |began: Moment| began < at(answered);
            failures.add(fault, at(now), is_over);
            failures.now(is_over).map(|run| (run.began.as_millis(), run.blames))
        };
        let network = |since| Some((Shared::Network, at(since)));
        assert_eq!(add(Fault::Unclear, 5, 0), Some((5, None)));
        assert_eq!(add(Fault::Here(Shared::Network), 6, 0), Some((5, network(6))));
        assert_eq!(add(Fault::Here(Shared::Network), 7, 0), Some((5, network(6))));
        assert_eq!(add(Fault::Unclear, 8, 0), Some((5, network(6))), "no answer says nothing");
        assert_eq!(add(Fault::Here(Shared::Dns), 9, 0), Some((5, Some((Shared::Dns, at(9))))));
        assert_eq!(add(Fault::Backend, 10, 0), Some((5, None)), "its host answers");
        assert_eq!(add(Fault::Here(Shared::Network), 12, 11), Some((12, network(12))));
        assert_eq!(failures.now(|began| began < at(13)), None);
    }
}
