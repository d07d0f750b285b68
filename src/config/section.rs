//! What a kind declares of its backends' sections: this folder knows no kind.
//!
//! A section of a backend, `[backends.NAME]`, holds what every backend has and what its kind has besides. Before either
//! half is read by its types, the two are split by the names that the kinds declare. So each half refuses what
//! it does not know, and a key of another kind is a mistake that is named.

use std::{borrow::Cow, time::Duration};

use fusebox_actors::WriteFallback;
use schemars::Schema;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::endpoint::Endpoint;

/// What a backend of a kind gets if the configuration is silent.
pub(crate) struct Defaults {
    /// Its usual address.
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
pub(crate) type Complaint = (Cow<'static, str>, String);

/// What a kind declares.
pub(crate) trait Section: Send + Sync {
    /// The kind's word in the configuration.
    fn name(&self) -> &'static str;

    /// What a backend of it gets if the configuration is silent.
    fn defaults(&self) -> &Defaults;

    /// The settings that it has besides those of every backend, [declared](super::setting): names at the top of the
    /// section.
    fn schema(&self) -> Schema;

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

    /// Checks an address, what belongs to it, and the kind's own settings, without touching the network.
    ///
    /// # Errors
    /// What is wrong, each as the end of a sentence that begins with the key.
    fn check(&self, endpoint: &Endpoint, own: &Table) -> Result<(), Vec<Complaint>>;
}

/// Reads a kind's own settings by their types.
///
/// # Errors
/// All that have the wrong type.
pub(crate) fn own<T: DeserializeOwned>(own: &Table) -> Result<T, Vec<Complaint>> {
    let (mut table, mut complaints) = (own.clone(), Vec::new());
    loop {
        let error = match serde_path_to_error::deserialize(Value::Table(table.clone())) {
            Ok(read) if complaints.is_empty() => return Ok(read),
            Ok(_) => return Err(complaints),
            Err(error) => error,
        };
        let key = error.path().to_string();
        let is_there = table.remove(&key).is_some();
        complaints.push((key.into(), format!("is not usable: {}", error.inner().message())));
        // The rest is tried again, so that every such mistake is found.
        if !is_there {
            return Err(complaints);
        }
    }
}

/// Complaints as one sentence.
pub(crate) fn told(complaints: Vec<Complaint>) -> String {
    let each = complaints.into_iter().map(|(key, why)| format!("{key} {why}"));
    each.collect::<Vec<_>>().join("; ")
}
