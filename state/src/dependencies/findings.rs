//! What was found of who is down for whose sake.

use super::{Shared, WITHIN, graph::Graph};
use crate::units::Moment;

/// What was found in one round. Backends are named by their places in the graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What others are down for the sake of, those that went first first. Everything that is down is one of these, or
    /// follows one.
    pub heads: Vec<Head>,
    /// What is left over since this round: the last thing that it needs has just come back.
    pub returned: Vec<usize>,
}

impl Findings {
    /// The root causes: all heads but what is only left over.
    pub fn roots(&self) -> impl Iterator<Item = &Head> {
        self.heads.iter().filter(|head| head.is_root())
    }

    /// The root causes, other than `backend` itself, that went within [`WITHIN`] of it and have no declared edge to it;
    /// none if it is not a root.
    pub fn together_with(&self, backend: usize, graph: &Graph) -> Vec<usize> {
        let of = |head: &Head| match head.what {
            What::Backend(at) => Some((at, head.since)),
            What::Here(_) => None,
        };
        let Some((_, since)) = self.roots().filter_map(of).find(|(at, _)| *at == backend) else {
            return Vec::new();
        };
        let near = |other: Moment| other.max(since).since(other.min(since)) <= WITHIN;
        let is_edge = |who: usize, on: usize| graph.optional(who).contains(&on);
        let others = self.roots().filter_map(of).filter(|(at, other)| {
            *at != backend && near(*other) && !is_edge(backend, *at) && !is_edge(*at, backend)
        });
        others.map(|(at, _)| at).collect()
    }

    /// The root causes that impair this backend.
    pub fn roots_of(&self, backend: usize) -> impl Iterator<Item = &Head> {
        self.roots().filter(move |head| head.impairs.contains(&backend))
    }
}

/// What others are down for the sake of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub what: What,
    /// When its outage began.
    pub since: Moment,
    /// The backends that are down for its sake, or, of a disk, that it hinders; in order.
    pub impairs: Vec<usize>,
    /// What it needs and was down when it went, or since, and is up again: then it is left over. Empty for a root.
    pub after: Vec<usize>,
    /// What it can do without and is down as well.
    pub uses: Vec<usize>,
    /// The backends that have seen it fail; empty for a backend.
    pub seen_by: Vec<usize>,
}

impl Head {
    /// Whether it is a root cause, and not only left over.
    pub fn is_root(&self) -> bool {
        self.after.is_empty()
    }
}

/// What heads others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A backend.
    Backend(usize),
    /// A part of this host.
    Here(Shared),
}
