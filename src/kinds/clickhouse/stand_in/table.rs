//! The stand-in's only table, as if it had been made by
//! `CREATE TABLE visits (id UInt64, amount UInt64) ENGINE = MergeTree ORDER BY id SETTINGS
//! non_replicated_deduplication_window = 100000`.

use std::collections::{HashSet, VecDeque};

use serde::Deserialize;

/// The database that it is in.
pub(super) const DATABASE: &str = "default";
/// Its name.
pub(super) const NAME: &str = "visits";
/// So many inserts are recognised when they come again.
pub(super) const WINDOW: usize = 100_000;

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    #[serde(default)]
    pub(super) id: u64,
    #[serde(default)]
    pub(super) amount: u64,
}

/// Its rows, and the tokens of the inserts that brought the last of them.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Row>,
    tokens: HashSet<String>,
    /// The same in their order.
    window: VecDeque<String>,
    recognised: u64,
    blocks: u64,
}

impl Table {
    /// Takes the rows of one insert, all of them or, if its token is known, none.
    pub(super) fn insert(&mut self, token: Option<&str>, rows: &[Row]) {
        // As a real server: an insert of nothing makes no block to be remembered.
        if rows.is_empty() {
            return;
        }
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            if !self.tokens.insert(token.to_owned()) {
                self.recognised += 1;
                return;
            }
            self.window.push_back(token.to_owned());
            if self.window.len() > WINDOW
                && let Some(oldest) = self.window.pop_front()
            {
                self.tokens.remove(&oldest);
            }
        }
        self.rows.extend_from_slice(rows);
        self.blocks += 1;
    }

    /// How many blocks it has got.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Its rows, in the order in which they came.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// How many inserts came again and changed nothing.
    pub(super) fn recognised(&self) -> u64 {
        self.recognised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_recognised_within_the_window() {
        let mut table = Table::default();
        let row = |id| [Row { id, amount: 1 }];
        table.insert(Some("first"), &row(1));
        table.insert(Some("first"), &row(1));
        table.insert(None, &row(2));
        table.insert(None, &row(2));
        assert_eq!((table.rows().len(), table.recognised()), (3, 1));
        for n in 0..WINDOW {
            table.insert(Some(&n.to_string()), &row(3));
        }
        table.insert(Some("first"), &row(1));
        assert_eq!((table.rows().len(), table.recognised()), (3 + WINDOW + 1, 1));
    }
}
