//! The kinds of backend: one folder and one line of a table for each.

pub mod clickhouse;
pub mod firestore;
pub mod former;
pub(crate) mod options;
pub(crate) mod port;
pub mod redis;
#[cfg(test)]
mod testing;
pub mod twins;

use crate::config::Section;
use port::Kind;

/// Every kind of this release.
const KINDS: &[&dyn Kind] =
    &[&clickhouse::kind::ClickHouse, &firestore::kind::Firestore, &redis::kind::Redis];

/// The kind of that name.
pub(crate) fn find(name: &str) -> Option<&'static dyn Kind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static dyn Kind> {
    KINDS.iter().copied()
}

/// What each kind declares of the configuration: of each there is one backend by default, under the kind's name.
pub(crate) fn sections() -> Vec<&'static dyn Section> {
    KINDS.iter().map(|kind| *kind as &dyn Section).collect()
}
