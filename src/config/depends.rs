//! Dependencies between backends: every name must be known, and no path may lead back.

use std::collections::{BTreeMap, BTreeSet};

/// The first cycle among the dependencies, as `a -> b -> a`.
pub(crate) fn cycle(edges: &BTreeMap<&str, Vec<&str>>) -> Option<String> {
    let mut done = BTreeSet::new();
    edges.keys().find_map(|start| visit(start, edges, &mut Vec::new(), &mut done))
}

fn visit<'a>(
    name: &'a str,
    edges: &BTreeMap<&'a str, Vec<&'a str>>,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<String> {
    if let Some(at) = path.iter().position(|seen| *seen == name) {
        let mut round: Vec<&str> = path.iter().skip(at).copied().collect();
        round.push(name);
        return Some(round.join(" -> "));
    }
    if !done.insert(name) {
        return None;
    }
    path.push(name);
    let found = edges
        .get(name)
        .into_iter()
        .flat_map(|next| next.iter())
        .find_map(|next| visit(next, edges, path, done));
    path.pop();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(edges: &[(&str, &[&str])], expected: Option<&str>) {
        let edges = edges.iter().map(|(name, next)| (*name, next.to_vec())).collect();
        assert_eq!(cycle(&edges).as_deref(), expected);
    }

    #[test]
    fn cycles_are_printed_and_diamonds_are_none() {
        check(&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[])], None);
        check(&[("a", &["a"])], Some("a -> a"));
        check(
            &[("x", &["a"]), ("a", &["b"]), ("b", &["c"]), ("c", &["a"])],
            Some("a -> b -> c -> a"),
        );
    }
}
