//! The configuration, checked: to hold a [`Config`] is to know that it can be run.
//!
//! ```text
//! defaults, file, changes at run time, environment, flags -> one table -> judged -+-> raw (types) --------> Config
//!                                                                                 +-> own settings of kinds --^
//! ```
//! A setting is [declared](setting) once, at its field: its bounds, its default and all that is written about it follow
//! from there. What a kind has of its own it declares as a [`Section`]; nothing here knows a kind.
//!
//! Everything wrong is reported at once, naming key, bound and value.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use bytesize::ByteSize;
use fusebox_actors::{PingSettings, SystemSettings};
use toml::{Table, Value};

mod alerts;
mod backend;
mod callers;
mod checker;
pub(crate) mod declared;
mod depends;
mod doors;
mod endpoint;
mod environment;
mod http;
mod judge;
mod keys;
pub(crate) mod later;
mod mask;
mod memory;
mod origin;
pub(crate) mod places;
mod raw;
pub(crate) mod reference;
pub(crate) mod section;
pub(crate) mod setting;
mod shape;
mod show;
mod sources;
mod split;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use self::alerts::AlertSettings;
pub(crate) use self::backend::BackendConfig;
pub(crate) use self::checker::{chosen, size};
#[cfg(test)]
pub(crate) use self::doors::testing as doors_testing;
pub(crate) use self::doors::{DoorAddress, DoorSettings, Family};
pub(crate) use self::endpoint::Endpoint;
#[cfg(test)]
pub(crate) use self::endpoint::Url;
pub(crate) use self::environment::{Environment, Flags};
pub(crate) use self::http::HttpSettings;
pub(crate) use self::origin::{Change, Origin};
pub(crate) use self::section::{Complaint, Defaults, Section, Variable};
pub(crate) use self::words::{Auth, EffectReply, OnMiss, OnUnknown, Severity, Unavailable};
use checker::Checker;
use declared::{Declared, put};
use judge::Secrets;
use raw::{RawBackend, RawConfig, RawHealth};
use sources::{Layers, Merged};

/// The sections in which a change at run time may be.
const CHANGED: [&str; 2] = ["backends", "health"];

/// A checked configuration.
#[derive(Clone)]
pub(crate) struct Config {
    /// The file that was read, if one was.
    pub(crate) file: Option<PathBuf>,
    /// The folder of stores, caches and the lock.
    pub(crate) state_dir: PathBuf,
    /// The socket at which the daemon listens.
    pub(crate) socket: PathBuf,
    /// Whether a setting says so: then clients look nowhere else.
    pub(crate) socket_asked: bool,
    /// Whose members may call.
    pub(crate) client_group: GroupName,
    /// Whose members may give orders.
    pub(crate) admin_group: GroupName,
    /// The TCP listener, if one is wanted.
    pub(crate) http: Option<HttpSettings>,
    /// What the bodies and replies of calls in flight may take together, in bytes, copies counted.
    pub(crate) calls_bytes: u64,
    /// Time between two pings of an idle backend.
    pub(crate) pings: PingSettings,
    /// Whether faults on purpose may be set: by default over the admin socket and not over TCP.
    pub(crate) chaos_enabled: Option<bool>,
    /// The address of a Jaeger's pages, without a slash at the end: traces are shown as links there.
    pub(crate) jaeger_url: Option<String>,
    /// Whether calls that failed, were retried, queued or answered by a fallback are traced though no
    /// sampler took them.
    pub(crate) keep_unsampled: bool,
    /// The command that is run on an alert.
    pub(crate) alerts: AlertSettings,
    /// The enabled backends, by name.
    pub(crate) backends: Vec<BackendConfig>,
    /// The wire doors: those of the file, else one for each backend whose kind has any.
    pub(crate) doors: Vec<Arc<DoorSettings>>,
    /// What should be looked at.
    pub(crate) warnings: Vec<String>,
    /// What is worth knowing.
    pub(crate) notes: Vec<String>,
    /// All settings in effect, in the shape of the file, secrets included.
    pub(crate) effective: Table,
    /// Their origin, if they are not defaults.
    pub(crate) origins: BTreeMap<String, Origin>,
    /// All settings that there are.
    pub(crate) declared: Arc<Declared>,
    /// What the file says.
    pub(crate) file_table: Table,
    /// What was changed at run time.
    pub(crate) changes: Vec<Change>,
    /// What was changed at run time and meant to last, and cannot be read, or is no longer possible.
    pub(crate) left_out: Vec<String>,
}

/// A group of the system by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupName {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is another than the default: one that the host does not know is then worth a
    /// warning.
    pub(crate) asked: bool,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigErrors {
    /// One sentence each.
    pub(crate) problems: Vec<String>,
    /// What should be looked at besides.
    pub(crate) warnings: Vec<String>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => f.write_str(one),
            many => {
                write!(f, "{} problems in the configuration", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Logs what should be looked at, and `more` of the kind: all of it, however much that is. Each line has a number
    /// of its own, so that the log does not sum them up.
    pub(crate) fn tell_warnings(&self, more: &[String]) {
        let all = self.warnings.len() + more.len();
        for (at, told) in self.warnings.iter().chain(more).enumerate() {
            let warning = format!("{} of {all}", at + 1);
            tracing::warn!(warning, "{told}");
        }
    }

    /// Reads all sources and checks what they amount to.
    ///
    /// # Errors
    /// All problems at once.
    pub(crate) fn load(
        flags: &Flags,
        env: &Environment,
        sections: &[&dyn Section],
    ) -> Result<Self, ConfigErrors> {
        let merged = Merged::read(flags, env, Layers::default(), sections);
        Self::of(merged, None, env, sections)
    }

    /// The same with these changes at run time in the place of its own, for the flags and the environment of which it
    /// was loaded. Nothing outside of the process is looked at: the file, the files that it names and the machine are as
    /// they were then.
    ///
    /// # Errors
    /// All that is wrong with the changes.
    pub(crate) fn with(
        &self,
        flags: &Flags,
        env: &Environment,
        changes: &[Change],
        sections: &[&dyn Section],
    ) -> Result<Self, ConfigErrors> {
        let layers = Layers { file: Some(&self.file_table), changes };
        let merged = Merged::read(flags, env, layers, sections);
        let changes = changes.to_vec();
        Ok(Self { changes, ..Self::of(merged, Some(self), env, sections)? })
    }

    /// What the sources amount to; if only the changes at run time are others, `before` is what they amounted to.
    fn of(
        merged: Merged,
        before: Option<&Self>,
        env: &Environment,
        sections: &[&dyn Section],
    ) -> Result<Self, ConfigErrors> {
        let Merged { mut table, origins, declared, problems, warnings, notes, .. } = merged;
        let Merged { file, file_table, unknown, .. } = merged;
        declared.lay_beneath(&mut table, true);
        let judged = declared.judge(&table);
        let mut checker = Checker { origins, problems, warnings, notes, followed: Vec::new() };
        let mut core = table.clone();
        let own = split::split(&mut core, &declared, sections, &mut checker.problems);
        let raw = deserialize(core, &declared, &judged, &mut checker);
        for (key, why) in judged {
            checker.problem(&key, why);
        }
        let read = Read { raw, of_kinds: OfKinds { sections, own }, table, declared, file };
        let config = if let Some(before) = before {
            check_changes(read, before, env, &mut checker)
        } else {
            let config = check(read, env, &mut checker);
            later::settle(&config.state_dir, unknown, &mut checker);
            config
        };
        let Checker { problems, warnings, notes, origins, .. } = checker;
        if problems.is_empty() {
            Ok(Self { warnings, notes, origins, file_table, ..config })
        } else {
            Err(ConfigErrors { problems, warnings })
        }
    }

    /// What the core needs to know of the whole.
    pub(crate) fn system(&self, instance: String) -> SystemSettings {
        SystemSettings {
            state_dir: self.state_dir.clone(),
            pings: self.pings,
            instance,
            copied: None,
        }
    }
}

/// The table's settings by type. What has the wrong type is reported, unless it was `judged` already, taken out, and the
/// rest tried again, so that every such mistake is found.
fn deserialize(
    mut table: Table,
    declared: &Declared,
    judged: &[(String, String)],
    checker: &mut Checker,
) -> RawConfig {
    loop {
        let error = match serde_path_to_error::deserialize(Value::Table(table.clone())) {
            Ok(raw) => return raw,
            Err(error) => error,
        };
        let path = error.path().to_string();
        let inner: toml::de::Error = error.into_inner();
        if let Some((path, why)) = declared.mistyped(&table, &path) {
            if judged.iter().all(|(key, _)| key != path) {
                checker.problem(path, why);
            }
        } else {
            let origin = checker.origins.get(&path).map(Origin::told);
            let problem = format!("{path}: {}{}", inner.message(), origin.unwrap_or_default());
            checker.problems.push(problem);
        }
        if !remove(&mut table, &path) {
            return RawConfig::default();
        }
        declared.lay_beneath(&mut table, false);
    }
}

/// Takes the value at `path` out; `false` if there is none. An element of a list, `depends_on[1]`, goes with its
/// list; a setting in a section of a list, `doors[1].listen`, goes alone.
fn remove(table: &mut Table, path: &str) -> bool {
    let (first, rest) =
        path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let (name, index) = first.split_once('[').map_or((first, None), |(name, at)| (name, Some(at)));
    let Some(rest) = rest else { return table.remove(name).is_some() };
    let mut inner = table.get_mut(name);
    if let Some(index) = index.and_then(|at| at.trim_end_matches(']').parse::<usize>().ok()) {
        inner = inner.and_then(|list| list.get_mut(index));
    }
    inner.and_then(Value::as_table_mut).is_some_and(|table| remove(table, rest))
}

/// What the kinds have in a configuration.
struct OfKinds<'a> {
    sections: &'a [&'a dyn Section],
    /// Each backend's own settings.
    own: BTreeMap<String, Table>,
}

/// What was read, not yet checked.
struct Read<'a> {
    raw: RawConfig,
    of_kinds: OfKinds<'a>,
    /// Everything as it is written, defaults included.
    table: Table,
    declared: Declared,
    file: Option<PathBuf>,
}

fn check(read: Read<'_>, env: &Environment, checker: &mut Checker) -> Config {
    let Read { raw, of_kinds, mut table, declared, file } = read;
    let asked = raw.state_dir.is_some();
    let state_dir = raw.state_dir.or_else(|| places::state_dir(env));
    if state_dir.is_none() {
        checker.problem(
            "state_dir",
            "must be set: none of --state-dir, STATE_DIRECTORY, XDG_STATE_HOME and HOME is",
        );
    }
    let state_dir = state_dir.unwrap_or_default();
    let written = |path: &PathBuf| Value::String(path.to_string_lossy().into_owned());
    if !asked {
        checker.followed.push(("state_dir".to_owned(), written(&state_dir)));
    }
    checker.folder("state_dir", Some(&state_dir));
    let socket_asked = raw.socket.is_some();
    let socket = raw.socket.unwrap_or_else(|| places::socket_to_listen(env, &state_dir));
    if !socket_asked {
        checker.followed.push(("socket".to_owned(), written(&socket)));
    }
    checker.problems.extend(places::refuse_long(&socket));
    let auto_recovery = raw.health.auto_recovery;
    let sections = of_kinds.sections;
    let (backends, enabled) =
        check_backends(raw.backends, of_kinds, &[], auto_recovery, env, checker);
    let http = http::check(raw.http, checker);
    let backing = doors::Backing {
        backends: &backends,
        enabled: &enabled,
        sections,
        declared: &declared,
        socket: &socket,
        http: http.as_ref().map(|http| http.listen),
    };
    let doors = doors::check(raw.doors, &backing, &mut table, checker);
    let group = |name: String, default: &str| GroupName { asked: name != default, name };
    let calls_bytes = check_calls_bytes(raw.calls.bytes.map(|size| size.0), checker);
    let alerts = alerts::check(raw.alerts, checker);
    let jaeger_url = check_jaeger(raw.tracing.jaeger_url, checker);
    if http.is_none() {
        table.remove("http");
    }
    Config {
        file,
        state_dir,
        socket,
        socket_asked,
        client_group: group(raw.client_group, "fusebox"),
        admin_group: group(raw.admin_group, "root"),
        http,
        calls_bytes,
        pings: pings(&raw.health),
        chaos_enabled: raw.chaos.enabled,
        keep_unsampled: raw.tracing.keep_unsampled,
        jaeger_url,
        alerts,
        backends,
        doors,
        warnings: Vec::new(),
        notes: Vec::new(),
        effective: effective(table, &declared, &enabled, checker),
        origins: BTreeMap::new(),
        declared: Arc::new(declared),
        file_table: Table::new(),
        changes: Vec::new(),
        left_out: Vec::new(),
    }
}

/// `before` with what is read of the sections in which changes at run time may be. All else stays as it was read then.
fn check_changes(
    read: Read<'_>,
    before: &Config,
    env: &Environment,
    checker: &mut Checker,
) -> Config {
    let Read { raw, of_kinds, table, declared, .. } = read;
    let (known, auto_recovery) = (&before.backends, raw.health.auto_recovery);
    let (backends, enabled) =
        check_backends(raw.backends, of_kinds, known, auto_recovery, env, checker);
    let mut all = before.effective.clone();
    let mut changed = effective(table, &declared, &enabled, checker);
    for section in CHANGED {
        all.extend(changed.remove_entry(section));
    }
    checker.warnings.clone_from(&before.warnings);
    checker.notes.clone_from(&before.notes);
    Config { backends, pings: pings(&raw.health), effective: all, ..before.clone() }
}

fn pings(raw: &RawHealth) -> PingSettings {
    PingSettings { interval: raw.interval.0, timeout: raw.timeout.0 }
}

/// All settings in effect: `table` with what follows from others, and without the backends that are not enabled.
fn effective(
    mut table: Table,
    declared: &Declared,
    enabled: &[String],
    checker: &mut Checker,
) -> Table {
    for (path, value) in std::mem::take(&mut checker.followed) {
        put(&mut table, &path, value);
    }
    if let Some(Value::Table(sections)) = table.get_mut("backends") {
        sections.retain(|name, _| enabled.iter().any(|it| it == name));
    }
    declared.shown(&table, Secrets::Kept)
}

/// Checks the section of each backend; of `known` ones no more than what a change at run time can touch. Returns those
/// that were understood, and the names of all that are enabled.
fn check_backends(
    raw: BTreeMap<String, RawBackend>,
    mut of_kinds: OfKinds<'_>,
    known: &[BackendConfig],
    auto_recovery: bool,
    env: &Environment,
    checker: &mut Checker,
) -> (Vec<BackendConfig>, Vec<String>) {
    let mut backends = Vec::new();
    let (mut enabled, mut left_out) = (Vec::new(), Vec::new());
    for (name, raw) in raw {
        if raw.enabled {
            enabled.push(name.clone());
            let own = of_kinds.own.remove(&name).unwrap_or_default();
            let known = known.iter().find(|known| known.settings.name == name);
            let section = backend::Raw { common: raw, own, sections: of_kinds.sections, known };
            backends.extend(backend::check(&name, section, auto_recovery, env, checker));
        } else {
            left_out.push(name);
        }
    }
    if enabled.is_empty() {
        checker.problem("backends", "must have at least one enabled backend, got none");
    }
    check_dependencies(&backends, &enabled, &left_out, checker);
    (backends, enabled)
}

fn check_dependencies(
    backends: &[BackendConfig],
    enabled: &[String],
    left_out: &[String],
    checker: &mut Checker,
) {
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for BackendConfig { settings, .. } in backends {
        let name = settings.name.as_str();
        let lists = [
            ("depends_on", &settings.depends_on),
            ("depends_on_optional", &settings.depends_on_optional),
        ];
        for (list, other) in lists.iter().flat_map(|(list, on)| on.iter().map(|on| (*list, on))) {
            let key = format!("backends.{name}.{list}");
            let on = edges.entry(name).or_default();
            if left_out.contains(other) {
                checker.problem(&key, format_args!("names {other:?}, which is not enabled"));
            } else if !enabled.contains(other) {
                checker.problem(
                    &key,
                    format_args!(
                        "names {other:?}, which is not a backend; there are: {}",
                        enabled.join(", ")
                    ),
                );
            } else if list != "depends_on" && settings.depends_on.contains(other) {
                checker.problem(&key, format_args!("names {other:?}, which depends_on also names"));
            }
            on.push(other);
        }
    }
    if let Some(cycle) = depends::cycle(&edges) {
        checker.problem("depends_on", format_args!("must not form a cycle: {cycle}"));
    }
}

fn check_jaeger(url: Option<String>, checker: &mut Checker) -> Option<String> {
    let url = url?;
    let base = url.trim_end_matches('/');
    let parsed: Option<hyper::Uri> = base.parse().ok();
    let fits = parsed.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
            && !base.contains(['#', '@'])
    });
    if fits {
        checker.followed.push(("tracing.jaeger_url".to_owned(), Value::String(base.to_owned())));
        return Some(base.to_owned());
    }
    let what = format!("must be an http or https URL such as http://127.0.0.1:16686, got {url:?}");
    checker.problem("tracing.jaeger_url", what);
    None
}

/// An eighth of the memory that there is, from 16 MiB to 512 MiB, if no setting says.
fn check_calls_bytes(bytes: Option<ByteSize>, checker: &mut Checker) -> u64 {
    let (least, most) = (ByteSize::mib(16), ByteSize::mib(512));
    let usual = || ByteSize::mib(memory::available() >> 23).clamp(least, most);
    checker.or("calls.bytes", bytes, usual).as_u64()
}
