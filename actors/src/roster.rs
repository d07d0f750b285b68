//! All backends, in the order of the configuration, and how they depend on one another.

use std::{ops::Deref, sync::Arc};

use arc_swap::ArcSwap;
use fusebox_state::dependencies::{Declared, Findings, Graph};

use crate::{backend_entry::BackendEntry, backend_shared::BackendShared};

/// See the [module](self). The backends themselves are those that there were at the start.
pub struct Roster {
    entries: Box<[BackendEntry]>,
    graph: ArcSwap<Graph>,
    /// What health last found of who is down for whose sake.
    pub(crate) findings: ArcSwap<Findings>,
}

impl Deref for Roster {
    type Target = [BackendEntry];

    fn deref(&self) -> &[BackendEntry] {
        &self.entries
    }
}

impl Roster {
    /// The roster of these backends.
    pub(crate) fn new(entries: Vec<BackendEntry>) -> Self {
        let graph = ArcSwap::from_pointee(graph(&entries));
        Self { entries: entries.into(), graph, findings: ArcSwap::default() }
    }

    /// Takes the dependencies as the settings have them now.
    pub(crate) fn redraw(&self) {
        self.graph.store(Arc::new(graph(&self.entries)));
    }

    /// Who depends on whom; backends are named by their places here.
    pub(crate) fn graph(&self) -> Arc<Graph> {
        self.graph.load_full()
    }

    /// The backends, each after those that it needs.
    pub(crate) fn dependencies_first(&self) -> Vec<BackendEntry> {
        let graph = self.graph();
        let entries = graph.dependencies_first().iter().filter_map(|at| self.entries.get(*at));
        entries.cloned().collect()
    }

    /// The place of a backend.
    pub(crate) fn place(&self, shared: &BackendShared) -> Option<usize> {
        self.entries.iter().position(|entry| std::ptr::eq(Arc::as_ptr(&entry.shared), shared))
    }

    /// The names of backends by their places.
    pub(crate) fn names(&self, places: &[usize]) -> Vec<String> {
        let entries = places.iter().filter_map(|at| self.entries.get(*at));
        entries.map(|entry| entry.name().to_owned()).collect()
    }

    /// The root causes among what a backend needs: those that are down and need nothing themselves that is.
    pub(crate) fn impaired_by(&self, shared: &BackendShared) -> Vec<String> {
        let Some(place) = self.place(shared) else { return Vec::new() };
        let is_down = |at: usize| {
            self.entries.get(at).is_some_and(|it| !it.shared.circuit.breaker.is_operational())
        };
        let mut names = self.names(&self.graph().impaired_by(place, is_down));
        names.sort();
        names
    }
}

fn graph(entries: &[BackendEntry]) -> Graph {
    let settings: Vec<_> =
        entries.iter().map(|entry| entry.shared.circuit.settings.load_full()).collect();
    let declared: Vec<Declared<'_>> = settings
        .iter()
        .map(|it| Declared {
            name: &it.name,
            required: &it.depends_on,
            optional: &it.depends_on_optional,
        })
        .collect();
    Graph::new(&declared)
}
