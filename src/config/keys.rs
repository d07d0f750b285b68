//! What is not a setting is reported with the nearest right one.

use toml::{Table, Value};

use super::{
    declared::{Declared, pattern},
    later::Unknown,
};

/// What is wrong with the keys of a file.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What is no setting.
    pub(crate) unknown: Vec<Unknown>,
    /// What has the wrong form.
    pub(crate) problems: Vec<String>,
}

impl Declared {
    fn paths(&self) -> impl Iterator<Item = &str> {
        self.settings.iter().map(|setting| setting.path.as_str())
    }

    /// Whether there are settings below `path`.
    pub(crate) fn is_section(&self, path: &str) -> bool {
        let wanted = pattern(path);
        wanted == "backends"
            || wanted == "backends.*"
            || self.paths().any(|key| {
                key.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.starts_with('.'))
            })
    }

    /// The setting whose path is nearest to the unknown `path`, with the backend's name put back. Within a section of
    /// a list only its own settings are meant.
    pub(crate) fn nearest(&self, path: &str) -> Option<String> {
        let wanted = pattern(path);
        let leaf = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        let list = wanted.split_once("[].").map(|(list, _)| format!("{list}[]."));
        let is_meant = |key: &&str| match &list {
            Some(list) => key.starts_with(list),
            None => !key.contains("[]."),
        };
        let lists = self.paths().filter_map(|key| Some(key.split_once("[].")?.0));
        let (key, score) = self
            .paths()
            .chain(lists)
            .filter(is_meant)
            .map(|key| {
                let whole = strsim::jaro_winkler(&wanted, key);
                let of_leaves = strsim::jaro_winkler(&leaf(&wanted), &leaf(key));
                (key, of_leaves.mul_add(2.0, whole))
            })
            .max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        // Below this the best match is a coincidence.
        if score < 2.4 {
            return None;
        }
        if let Some(list) = &list {
            let (section, _) = path.split_once('.')?;
            return Some(format!("{section}.{}", key.strip_prefix(list.as_str())?));
        }
        let name = path.strip_prefix("backends.").and_then(|rest| rest.split('.').next());
        Some(match name {
            Some(name) => key.replacen('*', name, 1),
            None => key.replacen('*', "NAME", 1),
        })
    }

    /// Takes what is not a setting out of `table`.
    pub(crate) fn remove_unknown(&self, table: &mut Table) -> Found {
        let mut found = Found::default();
        self.remove_below(table, "", &mut found);
        found
    }

    fn remove_below(&self, table: &mut Table, prefix: &str, found: &mut Found) {
        table.retain(|key, value| {
            let path = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
            if self.is_list(&path) {
                return self.remove_from_each(value, &path, found);
            }
            if self.is_section(&path) {
                let Value::Table(inner) = value else {
                    let what = format!("{path} must be a section, got {}", value.type_str());
                    found.problems.push(what);
                    return false;
                };
                self.remove_below(inner, &path, found);
                return true;
            }
            if self.find(&path, None).is_some() {
                return true;
            }
            let nearest = self.nearest(&path);
            found.unknown.push(Unknown { subject: format!("{path} is"), nearest, path });
            false
        });
    }

    /// Whether there is a list of sections at `path`.
    fn is_list(&self, path: &str) -> bool {
        self.paths().any(|key| key.strip_prefix(path).is_some_and(|rest| rest.starts_with("[].")))
    }

    /// The same in a list of sections; `false` if it is none.
    fn remove_from_each(&self, list: &mut Value, path: &str, found: &mut Found) -> bool {
        let wrong = match list {
            Value::Array(each) => {
                for (at, one) in each.iter_mut().enumerate() {
                    if let Value::Table(section) = one {
                        self.remove_below(section, &format!("{path}[{at}]"), found);
                    }
                }
                each.iter().find(|one| !one.is_table()).map(Value::type_str)
            }
            other => Some(other.type_str()),
        };
        if let Some(wrong) = wrong {
            let what = format!("{path} must be a list of sections, [[{path}]], got {wrong}");
            found.problems.push(what);
        }
        wrong.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found_by_its_last_word_first() {
        let keys = Declared::new(&[]);
        let near = |path: &str| keys.nearest(path).unwrap_or_default();
        assert_eq!(near("stat_dir"), "state_dir");
        assert_eq!(
            near("backends.redis.breaker.failure_treshold"),
            "backends.redis.breaker.failure_threshold"
        );
        assert_eq!(
            near("backends.redis.failure_threshold"),
            "backends.redis.breaker.failure_threshold"
        );
        assert_eq!(near("backends.b.queue.disk_flor"), "backends.b.queue.disk_floor");
        assert_eq!(near("door"), "doors");
        assert_eq!(near("doors[3].listn"), "doors[3].listen");
        assert_eq!(near("doors[0].connection"), "doors[0].connections");
        assert_eq!(keys.nearest("zzzz"), None);
        assert_eq!(keys.nearest("doors[0].url"), None);
    }

    #[test]
    fn the_keys_of_kinds_are_settings() {
        let sections = crate::kinds::sections();
        let keys = Declared::new(&sections);
        let near = keys.nearest("backends.r.on_mis");
        assert_eq!(near.as_deref(), Some("backends.r.on_miss"));
        assert!(keys.find("backends.r.ordered", None).is_some());
    }

    #[test]
    fn a_list_of_sections_is_nothing_else() {
        for (text, wrong) in
            [("doors = 3", "integer"), ("doors = ['a']", "string"), ("[doors]", "table")]
        {
            let mut table: Table = toml::from_str(text).unwrap();
            let Found { problems, unknown } = Declared::new(&[]).remove_unknown(&mut table);
            assert_eq!(unknown, []);
            let said = format!("doors must be a list of sections, [[doors]], got {wrong}");
            assert_eq!((problems, table.is_empty()), (vec![said], true), "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_taken_out_and_named() {
        let mut table: Table =
            toml::from_str("socket = 'a'\nhttp = 3\n[backends.r]\nurll = 'x'\nurl = 'y'\n[[doors]]\nkind = 'r'\n[[doors]]\nlisten_at = 'x'").unwrap();
        let Found { problems, unknown } = Declared::new(&[]).remove_unknown(&mut table);
        assert_eq!(problems, ["http must be a section, got integer"]);
        let found = |path: &str, right: &str| Unknown {
            path: path.to_owned(),
            subject: format!("{path} is"),
            nearest: Some(right.to_owned()),
        };
        assert_eq!(
            unknown,
            [
                found("backends.r.urll", "backends.r.url"),
                found("doors[1].listen_at", "doors[1].listen"),
            ]
        );
        assert_eq!(
            toml::to_string(&table).unwrap(),
            "socket = \"a\"\n\n[backends.r]\nurl = \"y\"\n\n[[doors]]\nkind = \"r\"\n\n[[doors]]\n"
        );
    }
}
