//! A rule of who imports whom, and the exceptions that are known.

use super::graph::{Graph, Import, Target, begins_with, is_in};

/// What no file of some may import.
pub(crate) struct Rule {
    /// The rule in words.
    pub(crate) text: &'static str,
    /// Whether it says something about a file.
    pub(crate) about: fn(&str) -> bool,
    /// Whether it forbids an import of such a file.
    pub(crate) forbids: fn(&Graph, &Import) -> bool,
    /// What it does not hold for yet.
    pub(crate) exceptions: &'static [Exception],
}

/// An import that a rule forbids and that is known.
pub(crate) struct Exception {
    pub(crate) file: &'static str,
    /// A file of ours, or the beginning of a path into a crate.
    pub(crate) import: &'static str,
    pub(crate) reason: &'static str,
}

impl Exception {
    fn covers(&self, import: &Import) -> bool {
        self.file == import.file
            && match &import.to {
                Target::File(to) => to == self.import,
                Target::Foreign(path) => begins_with(path, self.import),
            }
    }
}

impl Rule {
    /// What breaks the rule, an import each; and the exceptions that are none.
    pub(crate) fn complaints(&self, graph: &Graph) -> Vec<String> {
        let Self { text, exceptions, .. } = self;
        if !graph.files.keys().any(|file| (self.about)(file)) {
            return vec![format!("{text}: no file that this is about is left")];
        }
        let forbidden = graph.imports.iter();
        let forbidden: Vec<&Import> = forbidden
            .filter(|import| (self.about)(&import.file) && (self.forbids)(graph, import))
            .collect();
        let known = |import: &Import| exceptions.iter().any(|one| one.covers(import));
        let broken = forbidden.iter().filter(|import| !known(import));
        let broken = broken.map(|import| format!("{import}: {text}"));
        let gone = exceptions.iter().filter(|one| !forbidden.iter().any(|it| one.covers(it)));
        let gone = gone.map(|Exception { file, import, reason }| {
            format!("{file} imports nothing of {import} any more: take the exception off the list ({reason})")
        });
        broken.chain(gone).collect()
    }
}

/// Whether an import leads to one of these areas.
pub(crate) fn leads_to(import: &Import, areas: &[&str]) -> bool {
    matches!(&import.to, Target::File(to) if areas.iter().any(|area| is_in(to, area)))
}

/// Whether an import is of one of these crates, or of what one of these paths leads to.
pub(crate) fn is_of(import: &Import, crates: &[&str]) -> bool {
    matches!(&import.to, Target::Foreign(path) if crates.iter().any(|one| begins_with(path, one)))
}

/// The kind that a file belongs to: a kind is what has a folder in `src/kinds/`.
pub(crate) fn kind_of<'a>(graph: &Graph, file: &'a str) -> Option<&'a str> {
    let first = file.strip_prefix("src/kinds/")?.split('/').next()?;
    let kind = first.strip_suffix(".rs").unwrap_or(first);
    let folder = format!("src/kinds/{kind}/");
    graph.files.keys().any(|file| file.starts_with(&folder)).then_some(kind)
}
