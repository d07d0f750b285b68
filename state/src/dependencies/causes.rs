//! Which of what is down is to blame, followed over time.

use super::{
    Shared, WITHIN,
    findings::{Findings, Head, What},
    graph::Graph,
    set::Set,
};
use crate::units::Moment;

/// What is known of a backend in one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// `None` while it is operational.
    pub down: Option<Down>,
    /// A part of this host that its failures blame, and since when they do without an answer in between.
    pub fault: Option<(Shared, Moment)>,
    /// Its store takes no writes.
    pub store_refuses: bool,
}

/// A backend that is not operational.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Down {
    /// When its breaker opened, or was forced open, last; `None` if it is not open: half-open or offline.
    pub opened: Option<Moment>,
    /// When it first failed without having answered since; `None` if nobody has seen it fail.
    pub failing: Option<Moment>,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    began: Moment,
    /// When it went: when that began, or a probe failed since.
    went: Moment,
    opened: Option<Moment>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    outage: Option<Outage>,
    /// When its last outage was over.
    ended: Option<Moment>,
    refuses_since: Option<Moment>,
    /// Something that it needs was down in the last round, and so was it.
    follows: bool,
}

impl Known {
    fn see(&mut self, sight: &Sight, now: Moment) {
        match (sight.down, &mut self.outage) {
            (None, None) => {}
            (None, Some(_)) => (self.outage, self.ended) = (None, Some(now)),
            (Some(down), None) => {
                let opened = down.opened.unwrap_or(now);
                let began = down.failing.map_or(opened, |failing| failing.min(opened));
                self.outage = Some(Outage { began, went: began, opened: down.opened });
            }
            (Some(down), Some(outage)) => {
                if let Some(opened) = down.opened
                    && outage.opened.is_none_or(|before| before < opened)
                {
                    (outage.went, outage.opened) = (opened, Some(opened));
                }
            }
        }
        self.refuses_since = sight.store_refuses.then(|| self.refuses_since.unwrap_or(now));
    }

    /// Whether it was down at any time from `then` on.
    fn was_down_since(&self, then: Moment) -> bool {
        self.outage.is_some() || self.ended.is_some_and(|ended| ended >= then)
    }
}

/// Follows outages over time. See the [module](super).
#[derive(Clone, Debug, Default)]
pub struct Causes {
    known: Vec<Known>,
    /// Since when each of [`Shared::ALL`] holds.
    raised: [Option<Moment>; Shared::ALL.len()],
}

impl Causes {
    /// Takes a look at the backends of `graph`, one sight each.
    pub fn observe(&mut self, graph: &Graph, sights: &[Sight], now: Moment) -> Findings {
        let all = graph.len();
        self.known.resize_with(all, Known::default);
        for (known, sight) in self.known.iter_mut().zip(sights) {
            known.see(sight, now);
        }
        let down = Set::of(all, |at| self.outage(at).is_some());
        // What has come back, too, may be why something went.
        let ever = Set::of(all, |at| self.was_down_since(at, Moment::default()));
        let mut seen = Set::below(all);
        let mut heads = self.shared_heads(graph, sights, &down, &mut seen);
        let mut returned = Vec::new();
        for (at, needs) in graph.needs().iter().enumerate() {
            let Some(outage) = self.outage(at) else {
                self.follow(at, false);
                continue;
            };
            let follows = needs.meets(&down);
            let followed = self.follow(at, follows);
            if follows || seen.contains(at) {
                continue;
            }
            let then = outage.went.minus(WITHIN);
            let after: Vec<usize> =
                needs.common(&ever).filter(|on| self.was_down_since(*on, then)).collect();
            if followed && !after.is_empty() {
                returned.push(at);
            }
            heads.push(Head {
                what: What::Backend(at),
                since: outage.began,
                impairs: graph.needing(at, &down).collect(),
                after,
                uses: graph.optional(at).iter().copied().filter(|on| down.contains(*on)).collect(),
                seen_by: Vec::new(),
            });
        }
        heads.sort_by_key(|head| (head.since, head.what));
        Findings { heads, returned }
    }

    fn outage(&self, at: usize) -> Option<Outage> {
        self.known.get(at)?.outage
    }

    fn was_down_since(&self, at: usize, then: Moment) -> bool {
        self.known.get(at).is_some_and(|known| known.was_down_since(then))
    }

    /// Notes whether it follows something; returns whether it did.
    fn follow(&mut self, at: usize, follows: bool) -> bool {
        self.known.get_mut(at).is_some_and(|it| std::mem::replace(&mut it.follows, follows))
    }

    /// The parts of this host that hold. Backends that they take down are put among the `blamed`.
    fn shared_heads(
        &mut self,
        graph: &Graph,
        sights: &[Sight],
        down: &Set,
        blamed: &mut Set,
    ) -> Vec<Head> {
        let mut heads = Vec::new();
        for (shared, raised) in Shared::ALL.into_iter().zip(&mut self.raised) {
            let since = |at: usize, sight: &Sight| match shared {
                Shared::Disk => self.known.get(at).and_then(|known| known.refuses_since),
                _ => sight.fault.filter(|(fault, _)| *fault == shared).map(|(_, since)| since),
            };
            let seen: Vec<(usize, Moment)> = sights
                .iter()
                .enumerate()
                .filter_map(|(at, sight)| Some((at, since(at, sight)?)))
                .collect();
            *raised = match *raised {
                _ if seen.len() < 2 => None,
                Some(since) => Some(since),
                None => first_two(&seen),
            };
            let Some(since) = *raised else { continue };
            // A disk hinders, and takes nothing down.
            let is_disk = shared == Shared::Disk;
            let mut impairs = Set::below(graph.len());
            let mut seen_by = Set::below(graph.len());
            for at in seen.iter().map(|it| it.0).filter(|at| is_disk || down.contains(*at)) {
                impairs.insert(at);
                seen_by.insert(at);
                if !is_disk {
                    blamed.insert(at);
                    graph.needing(at, down).for_each(|needy| impairs.insert(needy));
                }
            }
            let impairs: Vec<usize> = impairs.common(&impairs).collect();
            if !impairs.is_empty() {
                let seen_by = seen_by.common(&seen_by).collect();
                let (after, uses) = (Vec::new(), Vec::new());
                let what = What::Here(shared);
                heads.push(Head { what, since, impairs, after, uses, seen_by });
            }
        }
        heads
    }
}

/// When the first two saw it that did so within [`WITHIN`] of each other.
fn first_two(seen: &[(usize, Moment)]) -> Option<Moment> {
    let mut times: Vec<Moment> = seen.iter().map(|(_, since)| *since).collect();
    times.sort();
    let pairs = times.iter().zip(times.iter().skip(1));
    pairs.filter(|(first, second)| second.since(**first) <= WITHIN).map(|(first, _)| *first).next()
}
