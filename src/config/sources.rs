//! Where settings come from, laid over one another: later wins.
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

use super::{keys::Keys, section::Section, shape::Shape};

/// The file that is read where none is named and it is there.
pub(crate) const DEFAULT_FILE: &str = "/etc/fusebox/fusebox.toml";

/// The process's environment, taken once: tests bring their own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process; what is not UTF-8 is left out.
    pub(crate) fn of_process() -> Self {
        Self(
            std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
        )
    }

    /// An environment of exactly these variables.
    #[cfg(test)]
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    /// The variable, where it is set and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The variable as a path.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }
}

/// What the command line says of the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    /// `--config`
    pub(crate) config: Option<PathBuf>,
    /// `--state-dir`
    pub(crate) state_dir: Option<PathBuf>,
    /// `--socket`
    pub(crate) socket: Option<PathBuf>,
    /// `--http`
    pub(crate) http: Option<String>,
}

/// The sources merged into one table.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// The settings.
    pub(crate) table: Table,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// Where a setting came from, where not from the file or by default.
    pub(crate) origins: BTreeMap<String, String>,
    /// What settings there are.
    keys: Keys,
    /// What is wrong.
    pub(crate) problems: Vec<String>,
    /// What should be looked at.
    pub(crate) warnings: Vec<String>,
    /// What is worth knowing.
    pub(crate) notes: Vec<String>,
}

impl Merged {
    /// Reads and merges all sources.
    pub(crate) fn read(flags: &Flags, env: &Environment, sections: &[&dyn Section]) -> Self {
        let mut merged = Self { keys: Keys::new(sections), ..Self::default() };
        for name in sections.iter().map(|section| section.name()) {
            merged.set(&format!("backends.{name}.kind"), Value::String(name.into()), None);
        }
        merged.add_file(flags, env, sections);
        merged.add_seed_names(env, sections);
        merged.add_variables(env);
        let text = |path: &Path| Value::String(path.to_string_lossy().into_owned());
        if let Some(path) = &flags.state_dir {
            merged.set("state_dir", text(path), Some("--state-dir"));
        }
        if let Some(path) = &flags.socket {
            merged.set("socket", text(path), Some("--socket"));
        }
        if let Some(listen) = &flags.http {
            merged.set("http.listen", Value::String(listen.clone()), Some("--http"));
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
                self.keys.remove_unknown(&mut table, &mut self.problems);
                let backends = table.get("backends").and_then(Value::as_table);
                let backends = backends.filter(|backends| !backends.is_empty());
                for name in sections.iter().map(|section| section.name()) {
                    if backends.is_some_and(|backends| !backends.contains_key(name)) {
                        self.notes.push(format!(
                            "the backend {name} is there by default; backends.{name}.enabled = \
                             false leaves it out"
                        ));
                    }
                }
                overlay(&mut self.table, table);
                self.file = Some(path);
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
        let shape = self.keys.shape(path).unwrap_or(Shape::Text);
        self.set(path, shape.value_of(&text(given)), Some(name));
    }

    fn add_variables(&mut self, env: &Environment) {
        const OTHERS: &[&str] =
            &["FUSEBOX_CONFIG", "FUSEBOX_TEST_HOOKS", "FUSEBOX_TEST_LOG_WINDOW"];
        for (name, text) in &env.0 {
            let Some(rest) = name.strip_prefix("FUSEBOX_") else { continue };
            if OTHERS.contains(&name.as_str()) || text.is_empty() {
                continue;
            }
            if rest.starts_with("DOORS__") {
                self.problems
                    .push(format!("{name}: doors are set in the file, and not by variables"));
                continue;
            }
            let path = self.path_of(rest);
            if let Some(shape) = self.keys.shape(&path) {
                self.set(&path, shape.value_of(text), Some(name));
            } else if rest.contains("__") {
                self.problems.push(match self.keys.nearest(&path) {
                    Some(right) => {
                        format!("{name} sets {path}, which is no setting; the nearest is {right}")
                    }
                    None => format!("{name} sets {path}, which is no setting"),
                });
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

    /// Sets one value, remembering where it came from.
    fn set(&mut self, path: &str, value: Value, origin: Option<&str>) {
        let mut table = &mut self.table;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                table.insert(part.to_owned(), value);
                break;
            }
            let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            let Value::Table(inner) = entry else { return };
            table = inner;
        }
        if let Some(origin) = origin {
            self.origins.insert(path.to_owned(), origin.to_owned());
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
        ", by the user {}: `chown root:{group} {shown} && chmod 0640 {shown}` lets it",
        user.name,
        group = group.name
    )
}
