//! What one request changes: a merge patch (RFC 7396) in the file's own shape. As in the file, a key may have dots:
//! `{"breaker.window": "30s"}` says the same as `{"breaker": {"window": "30s"}}`.

use std::{fmt, time::SystemTime};

use serde_json::Value as Json;
use toml::Value;

use crate::config::{
    Change, Config, ConfigErrors, Origin,
    declared::leaf_of,
    setting::{Takes, as_toml},
    size,
};

/// What is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Edit {
    /// The backend whose section the patch is of; `None` if it is of the whole file.
    pub(crate) backend: Option<String>,
    /// Values by their keys; `null` takes a change back.
    pub(crate) patch: Json,
    /// Whether it outlasts a restart.
    pub(crate) persist: bool,
    /// When it ends by itself.
    pub(crate) until: Option<SystemTime>,
    /// Whether values that endanger the service are taken.
    pub(crate) force: bool,
    /// Who wants it.
    pub(crate) by: String,
    /// When.
    pub(crate) at: SystemTime,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A key or a value that is none. All that is wrong.
    Invalid(String),
    /// A setting that takes more than a change at run time.
    Locked(String),
    /// A setting that a variable or an option of the command line sets.
    Overridden(String),
    /// A value that endangers the service, without force.
    Unsafe(String),
    /// The settings are others than those that the caller looked at.
    Stale(String),
    /// It could not be written down, or the core did not take it.
    Failed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(why)
            | Self::Locked(why)
            | Self::Overridden(why)
            | Self::Unsafe(why)
            | Self::Stale(why)
            | Self::Failed(why) => f.write_str(why),
        }
    }
}

/// A key that a patch names: its path, and its value; `None` takes back what was changed there.
type Named = (String, Option<Value>);

impl Edit {
    /// The changes that there are after it.
    ///
    /// # Errors
    /// What prevents it; see [`Refusal`].
    pub(crate) fn changes(&self, config: &Config) -> Result<Vec<Change>, Refusal> {
        if !self.patch.is_object() {
            let such = "must be an object such as {\"breaker\": {\"failure_threshold\": 7}}";
            return Err(Refusal::Invalid(format!("the patch {such}, got {}", self.patch)));
        }
        let mut named = Vec::new();
        let base = self.backend.as_ref().map(|name| format!("backends.{name}"));
        flatten(config, base.as_deref().unwrap_or_default(), &self.patch, &mut named)?;
        if named.is_empty() {
            return Err(Refusal::Invalid("the patch names no setting".into()));
        }
        names_each_once(&named)?;
        let mut changes = config.changes.clone();
        for (path, value) in named {
            let Some(value) = value else {
                exists(config, &path)?;
                let below = format!("{path}.");
                changes.retain(|change| change.path != path && !change.path.starts_with(&below));
                continue;
            };
            may_change(config, &path)?;
            if !self.force {
                is_safe(&path, &value)?;
            }
            changes.retain(|change| change.path != path || self.leaves(change));
            changes.push(Change {
                replaced: leaf_of(&config.file_table, &path).cloned(),
                path,
                value,
                by: self.by.clone(),
                at: self.at,
                until: self.until,
                persisted: self.persist,
            });
        }
        Ok(changes)
    }

    /// Whether an earlier change of the same setting stays beneath this one: it is in effect again when this one's time
    /// is over, or the daemon is restarted.
    fn leaves(&self, earlier: &Change) -> bool {
        let lasts = earlier.until.is_none();
        match (self.persist, self.until) {
            // What overrides it would hide it.
            (true, _) if !earlier.persisted => false,
            (true, None) => false,
            (true, Some(_)) => lasts,
            (false, None) => earlier.persisted,
            (false, Some(_)) => lasts || earlier.persisted,
        }
    }
}

/// Refuses a patch of which it depends on the order of its members what it means.
fn names_each_once(named: &[Named]) -> Result<(), Refusal> {
    let mut paths: Vec<&str> = named.iter().map(|(path, _)| path.as_str()).collect();
    paths.sort_unstable();
    let is_within = |path: &str, one: &str| {
        path.strip_prefix(one).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    for (at, path) in paths.iter().enumerate() {
        if let Some(one) = paths.iter().take(at).find(|one| is_within(path, one)) {
            let what = if one == path {
                format!("the patch names {path} twice")
            } else {
                format!("the patch names {path}, and {one} as a whole")
            };
            return Err(Refusal::Invalid(what));
        }
    }
    Ok(())
}

/// What a path is that is not a setting: something that is not changed at run time, or nothing.
fn no_setting(config: &Config, path: &str) -> Refusal {
    if let Some((list, takes)) = config.declared.list_of(path) {
        return Refusal::Locked(format!(
            "{list} cannot be changed at run time: change [[{list}]] in the file; the change takes effect after a {}",
            takes.as_str()
        ));
    }
    let nearest = config.declared.nearest(path);
    let nearest = nearest.map_or_else(String::new, |it| format!("; the nearest is {it}"));
    Refusal::Invalid(format!("{path} is not a setting{nearest}"))
}

/// Whether there is such a setting, or a section.
fn exists(config: &Config, path: &str) -> Result<(), Refusal> {
    let is_there = config.declared.find(path, None).is_some() || config.declared.is_section(path);
    let of_a_backend = path.strip_prefix("backends.").and_then(|rest| rest.split('.').next());
    let is_known = of_a_backend
        .is_none_or(|name| config.backends.iter().any(|backend| backend.settings.name == name));
    if is_there && is_known && config.declared.list_of(path).is_none() {
        return Ok(());
    }
    Err(no_setting(config, path))
}

fn flatten(
    config: &Config,
    path: &str,
    wanted: &Json,
    named: &mut Vec<Named>,
) -> Result<(), Refusal> {
    let setting = config.declared.find(path, None).filter(|_| !path.is_empty());
    match (setting, wanted) {
        (_, Json::Null) if !path.is_empty() => named.push((path.to_owned(), None)),
        (Some(setting), Json::String(text)) => {
            named.push((path.to_owned(), Some(setting.shape.value_of(text))));
        }
        (Some(_), value) => {
            let value = as_toml(value);
            let value =
                value.ok_or_else(|| Refusal::Invalid(format!("{path} has no such value")))?;
            named.push((path.to_owned(), Some(value)));
        }
        (None, Json::Object(fields)) if config.declared.list_of(path).is_none() => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(config, &path, value, named)?;
            }
        }
        (None, _) => return Err(no_setting(config, path)),
    }
    Ok(())
}

/// Whether a change at run time is what the setting takes, and would be in effect.
fn may_change(config: &Config, path: &str) -> Result<(), Refusal> {
    let takes = config.declared.find(path, None).map(|setting| setting.facts.takes);
    if takes.is_some_and(|takes| takes != Takes::Patch) {
        let takes = takes.map_or("", Takes::as_str);
        return Err(Refusal::Locked(format!(
            "{path} cannot be changed at run time: change it in the file; the change takes effect after a {takes}"
        )));
    }
    match config.origins.get(path) {
        Some(origin @ (Origin::Variable(_) | Origin::Flag(_))) => {
            Err(Refusal::Overridden(format!(
                "{path} is set by {}, which takes precedence over a change at run time",
                origin.word()
            )))
        }
        _ => Ok(()),
    }
}

/// Refuses what few mean and many regret.
fn is_safe(path: &str, value: &Value) -> Result<(), Refusal> {
    let leaf = path.splitn(3, '.').nth(2).unwrap_or_default();
    let least = match leaf {
        "timeout" => std::time::Duration::from_millis(10),
        "breaker.recovery_timeout" => std::time::Duration::from_secs(1),
        _ => return Ok(()),
    };
    let time = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
    if time.is_some_and(|time| time < least) {
        let least = humantime::format_duration(least);
        return Err(Refusal::Unsafe(format!(
            "{path} should be at least {least}, got {value}; `force` accepts it anyway"
        )));
    }
    Ok(())
}

/// Refuses a limit of a queue that is smaller than it was, and than what is held there: calls, their bytes, dead
/// letters, their bytes.
///
/// # Errors
/// [`Refusal::Unsafe`].
pub(crate) fn holds_what_waits(
    before: &fusebox_actors::BackendSettings,
    backend: &fusebox_actors::BackendSettings,
    waiting: [u64; 4],
) -> Result<(), Refusal> {
    let (earlier, limits) = (&before.queue, &backend.queue);
    let [items, bytes, dead_items, dead_bytes] = waiting;
    for (key, was, limit, held, is_size) in [
        ("items", earlier.items.into(), u64::from(limits.items), items, false),
        ("bytes", earlier.bytes, limits.bytes, bytes, true),
        ("dead_items", earlier.dead_items.into(), limits.dead_items.into(), dead_items, false),
        ("dead_bytes", earlier.dead_bytes, limits.dead_bytes, dead_bytes, true),
    ] {
        if limit < was && limit < held {
            let shown = |count| if is_size { size(count) } else { count.to_string() };
            return Err(Refusal::Unsafe(format!(
                "backends.{}.queue.{key} should be at least {}, which the queue holds now, got {}; `force` accepts it \
                 anyway",
                backend.name,
                shown(held),
                shown(limit)
            )));
        }
    }
    Ok(())
}

impl From<ConfigErrors> for Refusal {
    fn from(errors: ConfigErrors) -> Self {
        Self::Invalid(errors.problems.join("; "))
    }
}
