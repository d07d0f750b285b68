//! All settings that there are, read from their declarations: [`super::raw`], and what each kind declares of its own.
//!
//! In a path, `*` is a backend's name, and `[]` the position of a section in a list, `doors[0]` being the first
//! `[[doors]]`.

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde_json::Value as Json;
use toml::{Table, Value};

use super::{
    judge::{self, Secrets},
    raw::RawConfig,
    section::{Defaults, Section},
    setting::{Facts, Setting, Takes, Time, as_toml},
    shape::Shape,
};

/// A section, and its documentation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Described {
    /// Its path: `backends.*.breaker`.
    pub(crate) path: String,
    /// What it is.
    pub(crate) doc: String,
    /// Whether there may be several, each as `[[path]]`.
    pub(crate) is_list: bool,
    /// Its path.
    line: u32,
}

/// Everything that is declared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declared {
    /// The settings, in the order of their declarations; those of the kinds at the end.
    pub(crate) settings: Vec<Setting>,
    /// The sections, in the same order.
    pub(crate) sections: Vec<Described>,
    /// What backends of each kind have by default.
    usual: Vec<(&'static str, Table)>,
}

/// The schema of a structure of settings, with nothing left out of line.
pub(crate) fn schema_of<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}

impl Declared {
    /// The settings of the core, and of these kinds.
    pub(crate) fn new(sections: &[&dyn Section]) -> Self {
        let mut declared = Self::default();
        declared.add("", schema_of::<RawConfig>().as_value(), None);
        declared.settings.sort_by_key(|setting| setting.facts.line());
        declared.sections.sort_by_key(|section| section.line);
        for section in sections {
            let before = declared.settings.len();
            declared.add("backends.*", section.schema().as_value(), Some(section.name()));
            let own = declared.settings.get_mut(before..).unwrap_or_default();
            own.sort_by_key(|setting| setting.facts.line());
            declared.usual.push((section.name(), section.defaults().table()));
        }
        declared
    }

    /// Adds everything below `path`. Returns the line of its first setting.
    fn add(&mut self, path: &str, schema: &Json, kind: Option<&'static str>) -> u32 {
        let join = |name: &str| {
            if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
        };
        let mut first = u32::MAX;
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = join(name);
            let line = if let Some(facts) = field.get("setting") {
                let Ok(facts) = serde_json::from_value::<Facts>(facts.clone()) else { continue };
                let line = facts.line();
                let (shape, doc) = (Shape::of(field), doc(field));
                self.settings.push(Setting { path, kind, shape, facts, doc });
                line
            } else if let Some(each) = field.get("additionalProperties").filter(|it| it.is_object())
            {
                self.add_section(format!("{path}.*"), each, false)
            } else if let Some(each) = field.get("items") {
                self.add_section(format!("{path}[]"), each, true)
            } else {
                self.add_section(path, field, false)
            };
            first = first.min(line);
        }
        first
    }

    fn add_section(&mut self, path: String, schema: &Json, is_list: bool) -> u32 {
        let line = self.add(&path, schema, None);
        self.sections.push(Described { path, doc: doc(schema), is_list, line });
        line
    }

    /// The setting at `path` of a backend of this kind, or of any kind if none is named.
    pub(crate) fn find(&self, path: &str, kind: Option<&str>) -> Option<&Setting> {
        let wanted = pattern(path);
        let is_meant = |setting: &&Setting| {
            setting.path == wanted
                && (kind.is_none() || setting.kind.is_none_or(|its| Some(its) == kind))
        };
        self.settings.iter().find(is_meant)
    }

    /// The list of sections in which `path` is, or that it is, and what a change there takes at most.
    pub(crate) fn list_of<'a>(&self, path: &'a str) -> Option<(&'a str, Takes)> {
        let list = path.split(['.', '[']).next()?;
        let within = |setting: &&Setting| {
            setting.path.strip_prefix(list).is_some_and(|rest| rest.starts_with("[]."))
        };
        let takes = self.settings.iter().filter(within).map(|setting| setting.facts.takes);
        Some((list, takes.max()?))
    }

    /// Lays the defaults beneath what `table` has; of what the kinds have of their own only if `own`.
    pub(crate) fn lay_beneath(&self, table: &mut Table, own: bool) {
        for setting in &self.settings {
            let Some(default) = setting.facts.default.as_ref().and_then(as_toml) else { continue };
            if setting.path.starts_with("backends.*.") {
                continue;
            }
            match setting.path.split_once("[].") {
                Some((list, leaf)) => {
                    let list = table.get_mut(list).and_then(Value::as_array_mut);
                    for one in list.into_iter().flatten().filter_map(Value::as_table_mut) {
                        insert_beneath(one, leaf, &default);
                    }
                }
                None => insert_beneath(table, &setting.path, &default),
            }
        }
        let backends = table.get_mut("backends").and_then(Value::as_table_mut);
        for (name, backend) in backends.into_iter().flatten() {
            let Value::Table(backend) = backend else { continue };
            let kind = backend.get("kind").and_then(Value::as_str).unwrap_or(name).to_owned();
            for setting in self.of_backend(&kind).filter(|it| own || it.kind.is_none()) {
                if let Some((path, default)) = setting.leaf().zip(self.default_of(setting, &kind)) {
                    insert_beneath(backend, path, &default);
                }
            }
        }
    }

    /// The settings of a backend of this kind.
    pub(crate) fn of_backend(&self, kind: &str) -> impl Iterator<Item = &Setting> {
        let is_its =
            move |it: &&Setting| it.leaf().is_some() && it.kind.is_none_or(|its| its == kind);
        self.settings.iter().filter(is_its)
    }

    /// The default of a setting of a backend of this kind.
    pub(crate) fn default_of(&self, setting: &Setting, kind: &str) -> Option<Value> {
        let usual = self.usual.iter().find(|(name, _)| *name == kind);
        let of_kind = usual.and_then(|(_, usual)| usual.get(setting.leaf()?)).cloned();
        of_kind.or_else(|| setting.facts.default.as_ref().and_then(as_toml))
    }

    /// What is wrong with the values of `table`, each looked at alone: keys, and why. In the order of declarations,
    /// section by section.
    pub(crate) fn judge(&self, table: &Table) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        each_leaf(table, "", &mut |path, value| {
            let kind = kind_of(table, path);
            let Some(setting) = self.find(path, kind.as_deref()) else { return };
            if let Err(why) = judge::judge(setting, value) {
                let section = path.strip_suffix(setting.leaf().unwrap_or(path)).unwrap_or_default();
                let place = (section.to_owned(), setting.kind.is_some(), setting.facts.line());
                wrong.push((place, path.to_owned(), why));
            }
        });
        wrong.sort();
        wrong.into_iter().map(|(_, path, why)| (path, why)).collect()
    }

    /// What the value at `path` must be, if it is of another type than its setting's, and the setting's own path: that
    /// of the list for `depends_on[1]`. `None` if there is no such value or setting.
    pub(crate) fn mistyped<'a>(&self, table: &Table, path: &'a str) -> Option<(&'a str, String)> {
        let path = match path.rsplit_once('[') {
            Some((list, place)) if place.ends_with(']') => list,
            _ => path,
        };
        let setting = self.find(path, kind_of(table, path).as_deref())?;
        let mut why = None;
        each_leaf(table, "", &mut |at, value| {
            if at == path {
                why = Some(judge::mistyped(setting, value));
            }
        });
        why.map(|why| (path, why))
    }

    /// The values of `table`, durations and sizes in their usual form.
    pub(crate) fn shown(&self, table: &Table, secrets: Secrets) -> Table {
        let mut shown = table.clone();
        each_leaf(table, "", &mut |path, value| {
            let kind = kind_of(table, path);
            if let Some(setting) = self.find(path, kind.as_deref()) {
                put(&mut shown, path, judge::shown(setting, value, secrets));
            }
        });
        shown
    }
}

/// The kind of the backend whose setting is at `path`.
fn kind_of(table: &Table, path: &str) -> Option<String> {
    let name = path.strip_prefix("backends.")?.split('.').next()?;
    let backend = table.get("backends")?.get(name)?;
    Some(backend.get("kind").and_then(Value::as_str).unwrap_or(name).to_owned())
}

/// Calls `see` with the path and the value of each setting of `table`.
pub(crate) fn each_leaf(table: &Table, prefix: &str, see: &mut dyn FnMut(&str, &Value)) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => each_leaf(inner, &path, see),
            Value::Array(list) if list.iter().any(Value::is_table) => {
                for (at, one) in list.iter().enumerate() {
                    if let Value::Table(one) = one {
                        each_leaf(one, &format!("{path}[{at}]"), see);
                    }
                }
            }
            leaf => see(&path, leaf),
        }
    }
}

/// What `table` has at `path`, if it has anything there.
pub(crate) fn leaf_of<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    let mut parts = path.split('.');
    let first = table.get(parts.next()?)?;
    parts.try_fold(first, |at, part| at.get(part))
}

/// Sets what is at `path`, which may lead through a list: `doors[1].listen`.
pub(crate) fn put(table: &mut Table, path: &str, value: Value) {
    let Some((section, rest)) = path.split_once('.') else {
        table.insert(path.to_owned(), value);
        return;
    };
    let (name, at) = match section.split_once('[') {
        Some((name, at)) => (name, at.trim_end_matches(']').parse::<usize>().ok()),
        None => (section, None),
    };
    let inner = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
    let inner = match at {
        Some(at) => inner.as_array_mut().and_then(|list| list.get_mut(at)),
        None => Some(inner),
    };
    let Some(inner) = inner else { return };
    if !inner.is_table() {
        *inner = Value::Table(Table::new());
    }
    if let Value::Table(inner) = inner {
        put(inner, rest, value);
    }
}

/// Sets what is at `path`, unless something is.
fn insert_beneath(table: &mut Table, path: &str, value: &Value) {
    let Some((section, rest)) = path.split_once('.') else {
        table.entry(path).or_insert_with(|| value.clone());
        return;
    };
    let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        insert_beneath(section, rest, value);
    }
}

/// The pattern of a path: what follows `backends` becomes `*`, and `[0]` becomes `[]`.
pub(crate) fn pattern(path: &str) -> String {
    let mut parts: Vec<&str> = path.split('.').collect();
    let list = parts.first().and_then(|first| first.split_once('['));
    let list = list.map(|(name, _)| format!("{name}[]"));
    if let (Some(first), Some(list)) = (parts.first_mut(), &list) {
        *first = list;
    }
    if let [first, name, ..] = parts.as_mut_slice()
        && *first == "backends"
    {
        *name = "*";
    }
    parts.join(".")
}

fn doc(schema: &Json) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Defaults {
    /// What they say, by paths below the section of a backend.
    fn table(&self) -> Table {
        let time = |time| Value::String(Time(time).to_string());
        let word = Value::try_from(self.write_fallback).ok();
        let values = [
            ("url", Some(self.url.into())),
            ("critical", Some(self.critical.into())),
            ("timeout", Some(time(self.timeout))),
            ("breaker.failure_threshold", Some(self.failure_threshold.into())),
            ("breaker.recovery_timeout", Some(time(self.recovery_timeout))),
            ("breaker.success_threshold", Some(self.success_threshold.into())),
            ("cache.ttl", Some(time(self.cache_ttl))),
            ("queue.write_fallback", word),
        ];
        values.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_declared_whole() {
        let declared = Declared::new(&crate::kinds::sections());
        assert!(declared.settings.len() > 70, "{}", declared.settings.len());
        for setting in &declared.settings {
            let Setting { path, facts, doc, shape, .. } = setting;
            assert!(doc.ends_with('.') && doc.len() > 8, "{path} has no documentation: {doc:?}");
            let (default, rule) = (&facts.default, &facts.rule);
            assert!(default.is_none() || rule.is_none(), "{path}: a default and a rule");
            if *shape == Shape::Flag {
                let is_said = default.is_some() || rule.is_some();
                assert!(is_said || path == "backends.*.critical", "{path}: no default");
            }
            let numeric = [Shape::Integer, Shape::Number, Shape::Size, Shape::Time].contains(shape);
            assert!(!numeric || facts.range.is_some(), "{path} has no bounds");
            // What is declared passes its own judge.
            for value in facts.default.iter().chain(&facts.example) {
                judge::judge(setting, &as_toml(value).unwrap()).unwrap();
            }
        }
        let first: Vec<&str> =
            declared.settings.iter().take(4).map(|setting| setting.path.as_str()).collect();
        assert_eq!(first, ["state_dir", "socket", "client_group", "admin_group"]);
        for section in &declared.sections {
            assert!(section.doc.ends_with('.'), "{} has no documentation", section.path);
        }
    }

    #[test]
    fn a_kinds_own_settings_are_found_by_their_kind() {
        let declared = Declared::new(&crate::kinds::sections());
        let of = |path: &str, kind| declared.find(path, kind).and_then(|setting| setting.kind);
        assert_eq!(of("backends.r.on_miss", Some("redis")), Some("redis"));
        assert_eq!(of("backends.r.on_miss", Some("clickhouse")), None);
        assert_eq!(of("backends.r.database", Some("firestore")), Some("firestore"));
        assert!(Declared::new(&[]).find("backends.r.on_miss", None).is_none());
    }
}
