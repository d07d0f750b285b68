//! What a kind declares of its backends' sections: this folder knows no kind.
//!
//! A section of a backend, `[backends.NAME]`, holds what every backend has and what its kind has besides. Before either
//! half is read by its types, the two are [split](split) by the names that the kinds declare. So each half refuses what
//! it does not know, and a key of another kind is a mistake that is named.

use std::{collections::BTreeMap, time::Duration};

use fusebox_actors::WriteFallback;
use serde::de::DeserializeOwned;
use serde_json::Map;
use toml::{Table, Value};

use super::{endpoint::Endpoint, shape::Shape};

/// What a backend of a kind gets if the configuration is silent.
pub(crate) struct Defaults {
    /// Where it usually is.
    pub(crate) url: &'static str,
    /// Whether the system is CRITICAL without it.
    pub(crate) critical: bool,
    /// The longest that one attempt takes.
    pub(crate) timeout: Duration,
    /// Failures that trip the breaker.
    pub(crate) failure_threshold: u32,
    /// How long it stays open the first time.
    pub(crate) recovery_timeout: Duration,
    /// Probes that close it.
    pub(crate) success_threshold: u32,
    /// How long a cached value answers as `cache`.
    pub(crate) cache_ttl: Duration,
    /// How long it answers at all.
    pub(crate) cache_max_stale: Duration,
    /// What a plain write may do in an outage.
    pub(crate) write_fallback: WriteFallback,
}

/// A variable of the environment that is not fusebox's own, and the setting that it gives to the backend that is
/// named as its kind.
pub(crate) struct Variable {
    /// Its name.
    pub(crate) name: &'static str,
    /// The setting, below the backend's section: `breaker.failure_threshold`.
    pub(crate) key: &'static str,
    /// The setting's text, of the variable's.
    pub(crate) text: fn(&str) -> String,
}

impl Variable {
    /// A variable whose text is the setting's.
    pub(crate) const fn new(name: &'static str, key: &'static str) -> Self {
        Self { name, key, text: str::to_owned }
    }
}

/// A key of a backend's section, and what is wrong with it.
pub(crate) type Complaint = (&'static str, String);

/// What a kind declares.
pub(crate) trait Section: Send + Sync {
    /// The kind's word in the configuration.
    fn name(&self) -> &'static str;

    /// What a backend of it gets if the configuration is silent.
    fn defaults(&self) -> &Defaults;

    /// The settings that it has besides those of every backend: names at the top of the section.
    fn keys(&self) -> &'static [(&'static str, Shape)];

    /// The ecosystem's variables.
    fn variables(&self) -> &'static [Variable];

    /// Whether it has a wire door: clients that speak its protocol may be served.
    fn has_door(&self) -> bool {
        false
    }

    /// Whether a backend of it has a door if the file names none.
    fn has_door_by_default(&self) -> bool {
        self.has_door()
    }

    /// Checks an address, what belongs to it, and the kind's own settings, without touching the network. Returns the
    /// own settings in effect, as they are shown.
    ///
    /// # Errors
    /// What is wrong, each as the end of a sentence that begins with the key.
    fn check(
        &self,
        endpoint: &Endpoint,
        own: &Table,
    ) -> Result<Map<String, serde_json::Value>, Vec<Complaint>>;
}

/// Reads a kind's own settings by their types.
///
/// # Errors
/// All that have the wrong type.
pub(crate) fn own<T: DeserializeOwned>(
    own: &Table,
    keys: &[(&'static str, Shape)],
) -> Result<T, Vec<Complaint>> {
    let (mut table, mut complaints) = (own.clone(), Vec::new());
    loop {
        let error = match serde_path_to_error::deserialize(Value::Table(table.clone())) {
            Ok(read) if complaints.is_empty() => return Ok(read),
            Ok(_) => return Err(complaints),
            Err(error) => error,
        };
        let path = error.path().to_string();
        let key = keys.iter().find(|(key, _)| *key == path).map_or("", |(key, _)| *key);
        complaints.push((key, format!("is not usable: {}", error.inner().message())));
        // The rest is tried again, so that every such mistake is found.
        if table.remove(key).is_none() {
            return Err(complaints);
        }
    }
}

/// Complaints as one sentence.
pub(crate) fn told(complaints: Vec<Complaint>) -> String {
    let each = complaints.into_iter().map(|(key, why)| format!("{key} {why}"));
    each.collect::<Vec<_>>().join("; ")
}

/// Each backend's own settings of its kind, taken out of the merged table. What belongs to another kind is taken out,
/// too, and named.
pub(super) fn split(
    table: &mut Table,
    sections: &[&dyn Section],
    problems: &mut Vec<String>,
) -> BTreeMap<String, Table> {
    let backends = table.get_mut("backends").and_then(Value::as_table_mut);
    let mut split = BTreeMap::new();
    for (name, section) in backends.into_iter().flatten() {
        let Value::Table(section) = section else { continue };
        let kind = section.get("kind").and_then(Value::as_str).unwrap_or(name).to_owned();
        let mut own = Table::new();
        for (key, holder) in declared(sections) {
            let Some(value) = section.remove(key) else { continue };
            let is_known = sections.iter().any(|section| section.name() == kind);
            let is_its = declared(sections).any(|(its, of)| its == key && of == kind);
            if is_its {
                own.insert(key.to_owned(), value);
            } else if is_known {
                problems.push(format!(
                    "backends.{name}.{key} is a setting of the kind {holder}, and this backend's kind is {kind}"
                ));
            }
        }
        split.insert(name.clone(), own);
    }
    split
}

/// All own keys of all kinds, with the kind.
fn declared<'a>(sections: &'a [&dyn Section]) -> impl Iterator<Item = (&'static str, &'a str)> {
    sections.iter().flat_map(|it| it.keys().iter().map(|(key, _)| (*key, it.name())))
}

/// Fails unless `keys` are what `T` takes, each in its shape.
#[cfg(test)]
pub(crate) fn agree<T: DeserializeOwned>(keys: &[(&'static str, Shape)]) {
    for (key, shape) in keys {
        let of_shape = |text: &str| Table::from_iter([((*key).to_owned(), shape.value_of(text))]);
        // Whatever is wrong with these texts, the name is known.
        let is_known = |text| match own::<T>(&of_shape(text), keys) {
            Ok(_) => true,
            Err(complaints) => complaints.iter().all(|(_, why)| !why.contains("unknown field")),
        };
        let taken = ["5", "true", "words"].into_iter().all(is_known);
        assert!(taken, "{key} is declared and not read");
    }
    let unknown = Table::from_iter([("zzz".to_owned(), Value::Boolean(true))]);
    let complaints = own::<T>(&unknown, keys).err().expect("zzz is no setting");
    let why = &complaints[0].1;
    for field in why.split('`').skip(3).step_by(2) {
        assert!(keys.iter().any(|(key, _)| *key == field), "{field} is read and not declared");
    }
}
