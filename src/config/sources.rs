//! The sources of settings, one over another: later wins.
//!
//! ```text
//! defaults < file < settings persisted at run time (a later release) < the seed's and the
//! ecosystem's names < FUSEBOX_* < flags
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    declared::{Declared, each_leaf, put},
    environment::{Environment, Flags},
    keys::Found,
    later::Unknown,
    origin::{Change, Origin},
    section::Section,
    shape::Shape,
};

/// The file that is read if none is named and it is there.
pub(crate) const DEFAULT_FILE: &str = "/etc/fusebox/fusebox.toml";

/// The sources between the defaults and the environment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layers<'a> {
    /// What the file said when it was read; if none, it is read.
    pub(crate) file: Option<&'a Table>,
    /// What was changed at run time.
    pub(crate) changes: &'a [Change],
}

/// The sources merged into one table.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// The settings.
    pub(crate) table: Table,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// What it says.
    pub(crate) file_table: Table,
    /// The origin of a setting, if it is not the default.
    pub(crate) origins: BTreeMap<String, Origin>,
    /// What settings there are.
    pub(crate) declared: Declared,
    /// What is not a setting.
    pub(crate) unknown: Vec<Unknown>,
    /// What else is wrong.
    pub(crate) problems: Vec<String>,
    /// What should be looked at.
    pub(crate) warnings: Vec<String>,
    /// What is worth knowing.
    pub(crate) notes: Vec<String>,
}

impl Merged {
    /// Reads and merges all sources.
    pub(crate) fn read(
        flags: &Flags,
        env: &Environment,
        layers: Layers<'_>,
        sections: &[&dyn Section],
    ) -> Self {
        let mut merged = Self { declared: Declared::new(sections), ..Self::default() };
        for name in sections.iter().map(|section| section.name()) {
            merged.set(&format!("backends.{name}.kind"), Value::String(name.into()), None);
        }
        match layers.file {
            Some(table) => merged.add_table(table.clone(), None),
            None => merged.add_file(flags, env, sections),
        }
        // A change that does not outlast restarts overrides one that does.
        for persisted in [true, false] {
            for change in layers.changes.iter().filter(|change| change.persisted == persisted) {
                let origin = if persisted { Origin::Persisted } else { Origin::Runtime };
                merged.set(&change.path, change.value.clone(), Some(origin));
            }
        }
        merged.add_seed_names(env, sections);
        merged.add_variables(env);
        let text = |path: &Path| Value::String(path.to_string_lossy().into_owned());
        if let Some(path) = &flags.state_dir {
            merged.set("state_dir", text(path), Some(Origin::Flag("--state-dir")));
        }
        if let Some(path) = &flags.socket {
            merged.set("socket", text(path), Some(Origin::Flag("--socket")));
        }
        if let Some(listen) = &flags.http {
            merged.set("http.listen", Value::String(listen.clone()), Some(Origin::Flag("--http")));
        }
        merged
    }

    fn add_file(&mut self, flags: &Flags, env: &Environment, sections: &[&dyn Section]) {
        let named = flags.config.clone().or_else(|| env.path("FUSEBOX_CONFIG"));
        let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                let mut problem = format!("{} cannot be read: {error}", path.display());
                if error.kind() == std::io::ErrorKind::PermissionDenied {
                    problem.push_str(&readable_for_us(&path));
                }
                self.problems.push(problem);
                return;
            }
        };
        match text.parse::<Table>() {
            Ok(mut table) => {
                let Found { unknown, mut problems } = self.declared.remove_unknown(&mut table);
                self.unknown.extend(unknown);
                self.problems.append(&mut problems);
                let backends = table.get("backends").and_then(Value::as_table);
                let backends = backends.filter(|backends| !backends.is_empty());
                for name in sections.iter().map(|section| section.name()) {
                    if backends.is_some_and(|backends| !backends.contains_key(name)) {
                        self.notes.push(format!(
                            "the backend {name} exists by default; backends.{name}.enabled = false leaves it out"
                        ));
                    }
                }
                self.add_table(table, Some(path));
            }
            Err(error) => {
                // Not the error's own text: it shows the line, which may hold a password.
                let before = error.span().and_then(|span| text.get(..span.start));
                let line = before.map_or(1, |before| before.matches('\n').count() + 1);
                let (path, message) = (path.display(), error.message());
                self.problems.push(format!("{path}, line {line}: {message}"));
            }
        }
    }

    /// Lays what the file says over the rest.
    fn add_table(&mut self, table: Table, file: Option<PathBuf>) {
        let origins = &mut self.origins;
        each_leaf(&table, "", &mut |path, _| {
            origins.insert(path.to_owned(), Origin::File);
        });
        self.file_table = table.clone();
        overlay(&mut self.table, table);
        self.file = file;
    }

    fn add_seed_names(&mut self, env: &Environment, sections: &[&dyn Section]) {
        for section in sections {
            for variable in section.variables() {
                let path = format!("backends.{}.{}", section.name(), variable.key);
                self.add_variable(env, variable.name, &path, variable.text);
            }
        }
        // The seed counts seconds without a unit.
        self.add_variable(env, "HEALTH_CHECK_INTERVAL", "health.interval", |text| {
            let is_number = text.bytes().all(|b| b.is_ascii_digit());
            if is_number { format!("{text}s") } else { text.to_owned() }
        });
        self.add_variable(env, "ENABLE_AUTO_RECOVERY", "health.auto_recovery", str::to_owned);
    }

    fn add_variable(
        &mut self,
        env: &Environment,
        name: &str,
        path: &str,
        text: fn(&str) -> String,
    ) {
        let Some(given) = env.get(name) else { return };
        let shape = self.declared.find(path, None).map_or(Shape::Text, |setting| setting.shape);
        self.set(path, shape.value_of(&text(given)), Some(Origin::Variable(name.to_owned())));
    }

    fn add_variables(&mut self, env: &Environment) {
        const OTHERS: &[&str] = &[
            "FUSEBOX_CONFIG",
            "FUSEBOX_TEST_HOOKS",
            "FUSEBOX_TEST_LOG_WINDOW",
            "FUSEBOX_TEST_ALERT_PAUSE",
        ];
        // Of a command that the daemon has run on an alert.
        const OF_ALERTS: &[&str] = &[
            "FUSEBOX_ALERT",
            "FUSEBOX_STATE",
            "FUSEBOX_SEVERITY",
            "FUSEBOX_BACKEND",
            "FUSEBOX_MESSAGE",
        ];
        let on_alert = env.get("FUSEBOX_ALERT").is_some();
        for (name, text) in env.all() {
            let Some(rest) = name.strip_prefix("FUSEBOX_") else { continue };
            let is_other = OTHERS.contains(&name) || on_alert && OF_ALERTS.contains(&name);
            if is_other || text.is_empty() {
                continue;
            }
            if rest.starts_with("DOORS__") {
                self.problems
                    .push(format!("{name}: doors can be set only in the file, not by variables"));
                continue;
            }
            let path = self.path_of(rest);
            if let Some(shape) = self.declared.find(&path, None).map(|setting| setting.shape) {
                self.set(&path, shape.value_of(text), Some(Origin::Variable(name.to_owned())));
            } else if rest.contains("__") {
                let subject = format!("{name} sets {path}, which is");
                let nearest = self.declared.nearest(&path);
                self.unknown.push(Unknown { path, subject, nearest });
            } else {
                // Orchestrators inject names such as FUSEBOX_PORT: no reason not to start.
                self.warnings.push(format!("{name} is set, but names no setting: ignored"));
            }
        }
    }

    /// The setting that `BACKENDS__REDIS__TIMEOUT` means. A backend's `-` may be written `_`.
    fn path_of(&self, rest: &str) -> String {
        let lower = rest.to_ascii_lowercase();
        let mut parts: Vec<String> = lower.split("__").map(str::to_owned).collect();
        if let [first, name, ..] = parts.as_mut_slice()
            && first == "backends"
            && let Some(known) = self.table.get("backends").and_then(Value::as_table)
            && let Some(key) = known.keys().find(|key| key.replace('-', "_") == *name)
        {
            key.clone_into(name);
        }
        parts.join(".")
    }

    /// Sets one value, remembering its origin.
    fn set(&mut self, path: &str, value: Value, origin: Option<Origin>) {
        put(&mut self.table, path, value);
        if let Some(origin) = origin {
            self.origins.insert(path.to_owned(), origin);
        }
    }
}

/// Lays `upper` over `lower`, section by section.
fn overlay(lower: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => drop(lower.insert(key, value)),
        }
    }
}

/// What gives this process's user leave to read `path`, as the end of a sentence that says that it has none.
fn readable_for_us(path: &Path) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten();
    let group = nix::unistd::Group::from_gid(nix::unistd::Gid::effective()).ok().flatten();
    let (Some(user), Some(group)) = (user, group) else { return String::new() };
    let shown = path.display();
    format!(
        ", by the user {}: run `chown root:{group} {shown} && chmod 0640 {shown}`",
        user.name,
        group = group.name
    )
}
