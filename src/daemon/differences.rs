//! In what two configurations differ.

use std::collections::{BTreeMap, BTreeSet};

use fusebox_actors::{BackendSettings, KeyChange};
use serde_json::Value;
use toml::Table;

use crate::config::{
    Config,
    declared::{each_leaf, leaf_of},
};

/// The paths of the settings whose values differ.
pub(super) fn between(old: &Table, new: &Table) -> Vec<String> {
    let leaves = |table: &Table| {
        let mut leaves = BTreeMap::new();
        each_leaf(table, "", &mut |path, value| {
            leaves.insert(path.to_owned(), value.clone());
        });
        leaves
    };
    let (before, after) = (leaves(old), leaves(new));
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differ = paths.into_iter().filter(|path| before.get(*path) != after.get(*path));
    differ.cloned().collect()
}

/// The settings of the backends whose core settings differ.
pub(super) fn retuned(old: &Config, next: &Config) -> Vec<BackendSettings> {
    let before = |name: &str| old.backends.iter().find(|it| it.settings.name == name);
    let differ = next.backends.iter().filter(|backend| {
        before(&backend.settings.name).is_none_or(|before| before.settings != backend.settings)
    });
    differ.map(|backend| backend.settings.clone()).collect()
}

/// The keys whose values differ, and the values, secrets masked.
pub(super) fn key_changes(old: &Config, next: &Config) -> Vec<KeyChange> {
    let (before, after) = (old.masked(), next.masked());
    let value = |table: &Table, path: &str| {
        let value = leaf_of(table, path).map(serde_json::to_value);
        value.and_then(Result::ok).unwrap_or(Value::Null)
    };
    let keys = between(&old.effective, &next.effective).into_iter();
    keys.map(|key| KeyChange { from: value(&before, &key), to: value(&after, &key), key }).collect()
}
