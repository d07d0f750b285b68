//! Who needs whom.

use std::collections::HashMap;

use super::set::Set;

/// A backend as its settings declare it.
#[derive(Clone, Copy, Debug)]
pub struct Declared<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it cannot do without.
    pub required: &'a [String],
    /// What it can do without.
    pub optional: &'a [String],
}

/// The declared dependencies. Backends are named by their places in the list that it was made of.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    required: Vec<Vec<usize>>,
    optional: Vec<Vec<usize>>,
    /// All that each one needs, however indirectly.
    needs: Vec<Set>,
    /// All that need it, however indirectly.
    needed_by: Vec<Set>,
    order: Vec<usize>,
}

impl Graph {
    /// The graph of these backends. Names of no backend are passed over, and so is what would lead back: the
    /// configuration refuses both.
    pub fn new(backends: &[Declared<'_>]) -> Self {
        let places: HashMap<&str, usize> =
            backends.iter().enumerate().map(|(at, backend)| (backend.name, at)).collect();
        let found = |names: &[String]| -> Vec<usize> {
            names.iter().filter_map(|name| places.get(name.as_str()).copied()).collect()
        };
        let required: Vec<_> = backends.iter().map(|it| found(it.required)).collect();
        let optional = backends.iter().map(|it| found(it.optional)).collect();
        let order = in_order(&required);
        let mut needs = vec![Set::below(backends.len()); backends.len()];
        for at in &order {
            let mut all = Set::below(backends.len());
            for on in required.get(*at).into_iter().flatten() {
                all.insert(*on);
                needs.get(*on).into_iter().for_each(|deeper| all.join(deeper));
            }
            needs.get_mut(*at).into_iter().for_each(|needs| *needs = all.clone());
        }
        let mut needed_by = vec![Set::below(backends.len()); backends.len()];
        for (at, needs) in needs.iter().enumerate() {
            for on in needs.common(needs) {
                needed_by.get_mut(on).into_iter().for_each(|by| by.insert(at));
            }
        }
        Self { required, optional, needs, needed_by, order }
    }

    /// How many backends there are.
    pub fn len(&self) -> usize {
        self.required.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.required.is_empty()
    }

    /// Whether anything is declared of a backend: what it depends on, or who needs it.
    pub fn is_bound(&self, backend: usize) -> bool {
        let sets = [&self.needs, &self.needed_by];
        let is_some = |sets: &&Vec<Set>| sets.get(backend).is_some_and(|set| set.meets(set));
        sets.iter().any(is_some) || !self.optional(backend).is_empty()
    }

    /// All backends, each after those that it needs.
    pub fn dependencies_first(&self) -> &[usize] {
        &self.order
    }

    /// The declared edges as (who, on whom, whether it is required).
    pub fn edges(&self) -> impl Iterator<Item = (usize, usize, bool)> {
        let of = |edges: &[Vec<usize>], required| {
            let pairs = edges.iter().enumerate();
            let pairs = pairs.flat_map(|(who, on)| on.iter().map(move |on| (who, *on)));
            pairs.map(|(who, on)| (who, on, required)).collect::<Vec<_>>()
        };
        of(&self.required, true).into_iter().chain(of(&self.optional, false))
    }

    /// The nearest that are to blame for this backend now: what it needs, is down, and needs nothing itself that is.
    pub fn impaired_by(&self, backend: usize, is_down: impl Fn(usize) -> bool) -> Vec<usize> {
        let Some(needs) = self.needs.get(backend) else { return Vec::new() };
        let down = Set::of(self.len(), is_down);
        let is_last = |at: &usize| self.needs.get(*at).is_some_and(|deeper| !deeper.meets(&down));
        needs.common(&down).filter(is_last).collect()
    }

    /// All that a backend needs, however indirectly.
    pub(super) fn needs(&self) -> &[Set] {
        &self.needs
    }

    /// Those of `some` that need a backend, in order.
    pub(super) fn needing<'a>(
        &'a self,
        backend: usize,
        some: &'a Set,
    ) -> impl Iterator<Item = usize> + 'a {
        self.needed_by.get(backend).into_iter().flat_map(|by| by.common(some))
    }

    /// What a backend can do without, and is declared to use.
    pub(super) fn optional(&self, backend: usize) -> &[usize] {
        self.optional.get(backend).map_or(&[], Vec::as_slice)
    }
}

/// The places, each after those on its list; what leads back comes last.
fn in_order(required: &[Vec<usize>]) -> Vec<usize> {
    let mut placed = Set::below(required.len());
    let mut order = Vec::with_capacity(required.len());
    loop {
        let before = order.len();
        for (at, on) in required.iter().enumerate() {
            if !placed.contains(at) && on.iter().all(|on| placed.contains(*on)) {
                placed.insert(at);
                order.push(at);
            }
        }
        if order.len() == before {
            order.extend((0..required.len()).filter(|at| !placed.contains(*at)));
            return order;
        }
    }
}
