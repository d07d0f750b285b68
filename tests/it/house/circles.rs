//! Circles: files each of which reaches every other by imports.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Graph, Target};

/// A circle that is known.
pub(crate) struct Known {
    /// Its files, in the order of their paths.
    pub(crate) files: &'static [&'static str],
    pub(crate) reason: &'static str,
}

/// The circles of a graph, each as large as it is, its files in the order of their paths.
pub(crate) fn of(graph: &Graph) -> Vec<Vec<&str>> {
    let mut onward: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut back: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in graph.edges() {
        onward.entry(from).or_default().insert(to);
        back.entry(to).or_default().insert(from);
    }
    let mut left: BTreeSet<&str> = onward.keys().copied().collect();
    let mut circles = Vec::new();
    while let Some(file) = left.pop_first() {
        // What a file reaches and what reaches it.
        let (reached, reaching) = (reach(file, &onward), reach(file, &back));
        let circle: Vec<&str> = reached.intersection(&reaching).copied().collect();
        left.retain(|file| !circle.contains(file));
        if circle.len() > 1 {
            circles.push(circle);
        }
    }
    circles
}

fn reach<'a>(from: &'a str, edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(file) = next.pop() {
        for to in edges.get(file).into_iter().flatten() {
            if reached.insert(*to) {
                next.push(to);
            }
        }
    }
    reached
}

/// The circles that are not known, with the imports that make them; and the known ones that are none.
pub(crate) fn complaints(graph: &Graph, known: &[Known]) -> Vec<String> {
    let circles = of(graph);
    let new = circles.iter().filter(|circle| !known.iter().any(|one| *one.files == **circle));
    let new = new.map(|circle| {
        let within = graph.imports.iter().filter(|import| {
            let to = matches!(&import.to, Target::File(to) if circle.contains(&to.as_str()));
            to && circle.contains(&import.file.as_str())
        });
        let within: Vec<String> = within.map(|import| format!("\n    {import}")).collect();
        let within = within.concat();
        format!("files that import one another, so that none can be read alone: {circle:?}{within}")
    });
    let gone = known.iter().filter(|one| !circles.iter().any(|circle| *one.files == **circle));
    let gone = gone.map(|Known { files, reason }| {
        format!("no longer a circle, or not of these files alone: {} ({reason})", files.join(", "))
    });
    new.chain(gone).collect()
}
