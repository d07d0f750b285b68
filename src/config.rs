//! The configuration, checked: to hold a [`Config`] is to know that it can be run.
//!
//! ```text
//! sources (file, environment, flags) -> one table -+-> raw (types) ----------> Config (bounds, references)
//!                                                  +-> own settings of kinds ----^
//! ```
//! What a kind has of its own it declares as a [`Section`]; nothing here knows a kind.
//!
//! Everything wrong is reported at once, naming key, bound and value.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use bytesize::ByteSize;
use fusebox_actors::{PingSettings, SystemSettings};
use toml::{Table, Value};

mod backend;
mod callers;
mod checker;
mod depends;
mod doors;
mod endpoint;
mod http;
mod keys;
mod memory;
pub(crate) mod places;
mod raw;
mod secret;
pub(crate) mod section;
mod shape;
mod show;
mod sources;
#[cfg(test)]
mod tests;

pub(crate) use self::backend::BackendConfig;
pub(crate) use self::checker::{choice, size};
#[cfg(test)]
pub(crate) use self::doors::testing as doors_testing;
pub(crate) use self::doors::{
    Auth, DoorAddress, DoorSettings, EffectReply, Family, OnUnknown, Unavailable,
};
pub(crate) use self::endpoint::Endpoint;
#[cfg(test)]
pub(crate) use self::endpoint::Url;
pub(crate) use self::http::HttpSettings;
pub(crate) use self::secret::Secret;
pub(crate) use self::section::{Complaint, Defaults, Section, Variable};
pub(crate) use self::shape::Shape;
pub(crate) use self::sources::{Environment, Flags};
use checker::Checker;
use raw::{RawBackend, RawConfig, RawHealth};
use sources::Merged;

/// A checked configuration.
#[derive(Clone)]
pub(crate) struct Config {
    /// The file that was read, where one was.
    pub(crate) file: Option<PathBuf>,
    /// Where stores, caches and the lock are.
    pub(crate) state_dir: PathBuf,
    /// Where the daemon listens.
    pub(crate) socket: PathBuf,
    /// Whether a setting says so: then clients look nowhere else.
    pub(crate) socket_asked: bool,
    /// Whose members may call.
    pub(crate) client_group: GroupName,
    /// Whose members may give orders.
    pub(crate) admin_group: GroupName,
    /// The TCP listener, where one is wanted.
    pub(crate) http: Option<HttpSettings>,
    /// What the bodies and replies of calls in flight may take together, in bytes, copies counted.
    pub(crate) calls_bytes: u64,
    /// Time between two pings of an idle backend.
    pub(crate) pings: PingSettings,
    /// Whether breakers leave OPEN by themselves.
    pub(crate) auto_recovery: bool,
    /// Whether faults on purpose may be set: where it does not say, over the admin socket and not over TCP.
    pub(crate) chaos_enabled: Option<bool>,
    /// Where the pages of a Jaeger are, without a slash at the end: traces are shown as links there.
    pub(crate) jaeger_url: Option<String>,
    /// Whether calls that failed, were retried, queued or answered by a fallback are traced though no
    /// sampler took them.
    pub(crate) keep_unsampled: bool,
    /// The enabled backends, by name.
    pub(crate) backends: Vec<BackendConfig>,
    /// The wire doors: those of the file, else one for each backend whose kind has any.
    pub(crate) doors: Vec<Arc<DoorSettings>>,
    /// What should be looked at.
    pub(crate) warnings: Vec<String>,
    /// What is worth knowing.
    pub(crate) notes: Vec<String>,
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
    /// Reads all sources and checks what they amount to.
    ///
    /// # Errors
    /// All problems at once.
    pub(crate) fn load(
        flags: &Flags,
        env: &Environment,
        sections: &[&dyn Section],
    ) -> Result<Self, ConfigErrors> {
        let mut merged = Merged::read(flags, env, sections);
        let mut problems = std::mem::take(&mut merged.problems);
        let own = section::split(&mut merged.table, sections, &mut problems);
        let raw = deserialize(merged.table, &merged.origins, &mut problems);
        let mut checker = Checker {
            origins: merged.origins,
            problems,
            warnings: merged.warnings,
            notes: merged.notes,
        };
        let of_kinds = OfKinds { sections, own };
        let config = check(raw, of_kinds, merged.file, env, &mut checker);
        let Checker { problems, warnings, notes, .. } = checker;
        if problems.is_empty() {
            Ok(Self { warnings, notes, ..config })
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

/// The table's settings by type. What has the wrong type is reported, taken out, and the rest tried
/// again, so that every such mistake is found.
fn deserialize(
    mut table: Table,
    origins: &BTreeMap<String, String>,
    problems: &mut Vec<String>,
) -> RawConfig {
    loop {
        let error = match serde_path_to_error::deserialize(Value::Table(table.clone())) {
            Ok(raw) => return raw,
            Err(error) => error,
        };
        let path = error.path().to_string();
        let inner: toml::de::Error = error.into_inner();
        let origin = origins.get(&path).map(|from| format!(" (set by {from})"));
        problems.push(format!("{path}: {}{}", inner.message(), origin.unwrap_or_default()));
        if !remove(&mut table, &path) {
            return RawConfig::default();
        }
    }
}

/// Takes the value at `path` out; `false` where there is none. An element of a list, `depends_on[1]`, goes with its
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

fn check(
    raw: RawConfig,
    of_kinds: OfKinds<'_>,
    file: Option<PathBuf>,
    env: &Environment,
    checker: &mut Checker,
) -> Config {
    let state_dir = raw.state_dir.or_else(|| places::state_dir(env));
    if state_dir.is_none() {
        checker.problem(
            "state_dir",
            "must be set: none of --state-dir, STATE_DIRECTORY, XDG_STATE_HOME and HOME is",
        );
    }
    let state_dir = state_dir.unwrap_or_default();
    checker.folder("state_dir", Some(&state_dir));
    let socket_asked = raw.socket.is_some();
    let socket = raw.socket.unwrap_or_else(|| places::socket_to_listen(env, &state_dir));
    checker.problems.extend(places::refuse_long(&socket));
    let pings = check_pings(&raw.health, checker);
    let auto_recovery = raw.health.auto_recovery.unwrap_or(true);
    let sections = of_kinds.sections;
    let (backends, enabled) = check_backends(raw.backends, of_kinds, auto_recovery, env, checker);
    let http = http::check(raw.http, checker);
    let backing = doors::Backing {
        backends: &backends,
        enabled: &enabled,
        sections,
        socket: &socket,
        http: http.as_ref().map(|http| http.listen),
    };
    let doors = doors::check(raw.doors, &backing, checker);
    let group = |name: Option<String>, default: &str| GroupName {
        asked: name.as_deref().is_some_and(|name| name != default),
        name: name.unwrap_or_else(|| default.to_owned()),
    };
    Config {
        file,
        state_dir,
        socket,
        socket_asked,
        client_group: group(raw.client_group, "fusebox"),
        admin_group: group(raw.admin_group, "root"),
        http,
        calls_bytes: check_calls_bytes(raw.calls.bytes, checker),
        pings,
        auto_recovery,
        chaos_enabled: raw.chaos.enabled,
        keep_unsampled: raw.tracing.keep_unsampled.unwrap_or(true),
        jaeger_url: check_jaeger(raw.tracing.jaeger_url, checker),
        backends,
        doors,
        warnings: Vec::new(),
        notes: Vec::new(),
    }
}

/// Checks the section of each backend. Returns those that were understood, and the names of all that are enabled.
fn check_backends(
    raw: BTreeMap<String, RawBackend>,
    mut of_kinds: OfKinds<'_>,
    auto_recovery: bool,
    env: &Environment,
    checker: &mut Checker,
) -> (Vec<BackendConfig>, Vec<String>) {
    let mut backends = Vec::new();
    let (mut enabled, mut left_out) = (Vec::new(), Vec::new());
    for (name, raw) in raw {
        if raw.enabled == Some(false) {
            left_out.push(name);
        } else {
            enabled.push(name.clone());
            let own = of_kinds.own.remove(&name).unwrap_or_default();
            let section = backend::Raw { common: raw, own, sections: of_kinds.sections };
            backends.extend(backend::check(&name, section, auto_recovery, env, checker));
        }
    }
    if enabled.is_empty() {
        checker.problem("backends", "must have one that is enabled, got none");
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
    let edges: BTreeMap<&str, &[String]> = backends
        .iter()
        .map(|backend| (backend.settings.name.as_str(), backend.settings.depends_on.as_slice()))
        .collect();
    for (name, needed) in &edges {
        for other in *needed {
            let key = format!("backends.{name}.depends_on");
            if left_out.contains(other) {
                checker.problem(&key, format_args!("names {other:?}, which is not enabled"));
            } else if !enabled.contains(other) {
                checker.problem(
                    &key,
                    format_args!(
                        "names {other:?}, which is no backend; there are: {}",
                        enabled.join(", ")
                    ),
                );
            }
        }
    }
    if let Some(cycle) = depends::cycle(&edges) {
        checker
            .problem("depends_on", format_args!("must not lead back to where it began: {cycle}"));
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
        return Some(base.to_owned());
    }
    let what = format!("must be an http or https URL such as http://127.0.0.1:16686, got {url:?}");
    checker.problem("tracing.jaeger_url", what);
    None
}

fn check_pings(raw: &RawHealth, checker: &mut Checker) -> PingSettings {
    let interval = raw.interval.unwrap_or(Duration::from_secs(30));
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(86_400));
    let interval = checker.between("health.interval", interval, least, most);
    let timeout = raw.timeout.unwrap_or(PingSettings::TIMEOUT);
    let (least, most) = (Duration::from_millis(10), Duration::from_secs(60));
    let timeout = checker.between("health.timeout", timeout, least, most);
    PingSettings { interval, timeout }
}

/// An eighth of the memory that there is, from 16 MiB to 512 MiB, where no setting says.
fn check_calls_bytes(bytes: Option<ByteSize>, checker: &mut Checker) -> u64 {
    let (least, most) = (ByteSize::mib(16), ByteSize::mib(512));
    let usual = || ByteSize::mib(memory::available() >> 23).clamp(least, most);
    let bytes = bytes.unwrap_or_else(usual);
    checker.between("calls.bytes", bytes, ByteSize::mib(1), ByteSize::tib(1)).as_u64()
}
