//! The figures at the end: what became of the calls, and how many promises were kept.

use std::{collections::BTreeSet, iter};

use super::{
    backend::{Backend, Each},
    ledger::{Ledger, Page},
    proof::Verdict,
    watch::Replayed,
};
use crate::terminal::table::{table, thousands};

/// What the ledger does not have of a backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures {
    /// Writes acknowledged as durable when the daemon was killed.
    pub(super) durable_at_kill: u64,
    /// What both daemons replayed, and the dead letters of the second.
    pub(super) replayed: Replayed,
    /// Writes that the stand-in was sent again and recognised by their token.
    pub(super) recognised: u64,
    /// What came out.
    pub(super) verdict: Verdict,
}

/// Both tables.
pub(super) fn tables(ledger: &Ledger, figures: &Each<Figures>, terminal: bool) -> String {
    format!("{}\n{}", calls(ledger, terminal), writes(ledger, figures, terminal))
}

fn calls(ledger: &Ledger, terminal: bool) -> String {
    let order = ["live", "queued", "cache", "stale", "empty", "bypass"];
    let rank = |word: &str| order.iter().position(|is| *is == word).unwrap_or(order.len());
    let words: BTreeSet<(usize, &str)> = ledger
        .iter()
        .flat_map(|(_, page)| page.ended.keys())
        .map(|word| (rank(word), word.as_str()))
        .collect();
    let row = |(_, word): (usize, &str)| {
        let cells = Backend::ALL.map(|backend| match ledger.get(backend).ended.get(word) {
            Some((reads, writes)) => format!("{} + {}", thousands(*reads), thousands(*writes)),
            None => "-".to_owned(),
        });
        iter::once(word.to_owned()).chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = words.into_iter().map(row).collect();
    of_each("CALLS BY SOURCE (READS + WRITES)", &rows, terminal)
}

fn writes(ledger: &Ledger, figures: &Each<Figures>, terminal: bool) -> String {
    type Figure = fn(&Page, &Figures) -> u64;
    let all: [(&str, Figure); 13] = [
        ("acknowledged as applied", |page, _| page.applied),
        ("acknowledged as durable", |page, _| page.durable),
        ("  of these before the daemon was killed", |_, figures| figures.durable_at_kill),
        ("replayed", |_, figures| figures.replayed.calls),
        ("outcome unknown to the caller", |page, _| page.unknown()),
        ("sent again, without effect", |_, figures| figures.recognised + figures.verdict.repeated),
        ("replaced by a newer one in the queue", |_, figures| figures.verdict.overtaken),
        ("lost", |_, figures| figures.verdict.lost),
        ("applied twice", |_, figures| figures.verdict.applied_twice),
        ("out of order", |_, figures| figures.verdict.out_of_order),
        ("refused but applied", |_, figures| figures.verdict.refused_but_applied),
        ("with a wrong value in the end", |_, figures| figures.verdict.wrong_values),
        ("dead letters", |_, figures| figures.replayed.dead_letters),
    ];
    let row = |(what, figure): (&str, Figure)| {
        let cells = Backend::ALL
            .map(|backend| thousands(figure(ledger.get(backend), figures.get(backend))));
        iter::once(what.to_owned()).chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = all.into_iter().map(row).collect();
    of_each("WRITES", &rows, terminal)
}

/// A table with a column for each backend, under what its first one has.
fn of_each(first: &str, rows: &[Vec<String>], terminal: bool) -> String {
    let titles = Backend::ALL.map(|backend| backend.title().to_uppercase());
    let heads: Vec<&str> = iter::once(first).chain(titles.iter().map(String::as_str)).collect();
    table(&heads, rows, terminal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_have_a_column_for_each_backend() {
        let mut ledger = Ledger::default();
        ledger.get_mut(Backend::Keys).ended = [("live".to_owned(), (1_234, 5))].into();
        ledger.get_mut(Backend::Documents).ended =
            [("refused".to_owned(), (0, 1)), ("queued".to_owned(), (2, 3))].into();
        let mut figures = Each::<Figures>::default();
        figures.get_mut(Backend::Rows).verdict.lost = 7;
        let text = tables(&ledger, &figures, false);
        let cells = |first: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(first)).unwrap();
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(cells("live"), ["1,234 + 5", "-", "-"]);
        assert_eq!(cells("queued"), ["-", "-", "2 + 3"]);
        assert_eq!(cells("lost"), ["0", "7", "0"]);
    }
}
