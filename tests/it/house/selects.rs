//! If several branches of a `select!` are ready, their order decides which one is taken, not chance.
//!
//! What the actors do is simulated by a seed; tokio's own chance has none.

use super::source::Sources;

/// The places below `folder` with a `select!` that does not begin with `biased`.
pub(super) fn complaints(sources: &Sources, folder: &str) -> Vec<String> {
    let files = sources.iter().filter(|(path, _)| path.starts_with(folder));
    files
        .flat_map(|(path, text)| {
            let places = text
                .match_indices("select! {")
                .filter(|(at, name)| !text[at + name.len()..].trim_start().starts_with("biased;"));
            places.map(move |(at, _)| {
                let line = text[..at].matches('\n').count() + 1;
                format!("{path}:{line}: a `select!` that is not `biased`")
            })
        })
        .collect()
}

#[test]
fn one_that_is_not_biased_is_found() {
    let text = "select! {\n    biased;\n}\nselect! {\n    () = a => {}\n}\n";
    let sources =
        Sources::from([("actors/src/a.rs".into(), text.into()), ("src/b.rs".into(), text.into())]);
    assert_eq!(
        complaints(&sources, "actors/"),
        ["actors/src/a.rs:4: a `select!` that is not `biased`"]
    );
}
