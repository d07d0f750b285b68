//! Every setting's path, and how its text is read where it comes from the environment.
//!
//! `*` stands for a backend's name, and `[]` for the place of a section in a list, `doors[0]` being the first
//! `[[doors]]`. The table serves three ends: an unknown key is reported with the
//! nearest right one, an environment variable knows the type of what it sets, and the deserializer is
//! tested against it.

use toml::{Table, Value};

use super::{
    section::Section,
    shape::Shape::{self, Flag, Integer, List, Number, Text},
};

/// All settings but those that a kind has of its own.
pub(crate) const KEYS: &[(&str, Shape)] = &[
    ("state_dir", Text),
    ("socket", Text),
    ("client_group", Text),
    ("admin_group", Text),
    ("http.listen", Text),
    ("http.token_file", Text),
    ("http.plaintext", Flag),
    ("http.tls.cert_file", Text),
    ("http.tls.key_file", Text),
    ("calls.bytes", Text),
    ("health.interval", Text),
    ("health.timeout", Text),
    ("health.auto_recovery", Flag),
    ("chaos.enabled", Flag),
    ("tracing.jaeger_url", Text),
    ("tracing.keep_unsampled", Flag),
    ("doors[].kind", Text),
    ("doors[].backend", Text),
    ("doors[].listen", Text),
    ("doors[].auth", Text),
    ("doors[].callers_file", Text),
    ("doors[].plaintext", Flag),
    ("doors[].connections", Integer),
    ("doors[].in_bytes", Text),
    ("doors[].out_bytes", Text),
    ("doors[].out_client", Text),
    ("doors[].pinned", Integer),
    ("doors[].idle_timeout", Text),
    ("doors[].min_ack", Text),
    ("doors[].deadline", Text),
    ("doors[].priority", Text),
    ("doors[].unavailable", Text),
    ("doors[].on_unknown", Text),
    ("doors[].effect_reply", Text),
    ("doors[].projects", List),
    ("backends.*.kind", Text),
    ("backends.*.enabled", Flag),
    ("backends.*.url", Text),
    ("backends.*.username", Text),
    ("backends.*.password_file", Text),
    ("backends.*.critical", Flag),
    ("backends.*.depends_on", List),
    ("backends.*.timeout", Text),
    ("backends.*.tls.ca_file", Text),
    ("backends.*.breaker.failure_threshold", Integer),
    ("backends.*.breaker.failure_rate", Number),
    ("backends.*.breaker.recovery_timeout", Text),
    ("backends.*.breaker.recovery_timeout_max", Text),
    ("backends.*.breaker.success_threshold", Integer),
    ("backends.*.breaker.window", Text),
    ("backends.*.breaker.jitter", Number),
    ("backends.*.breaker.slow_call_duration", Text),
    ("backends.*.breaker.slow_call_rate", Number),
    ("backends.*.retry.attempts", Integer),
    ("backends.*.retry.base", Text),
    ("backends.*.retry.cap", Text),
    ("backends.*.bulkhead.in_flight_max", Integer),
    ("backends.*.cache.items", Integer),
    ("backends.*.cache.bytes", Text),
    ("backends.*.cache.entry_max", Text),
    ("backends.*.cache.disk_bytes", Text),
    ("backends.*.cache.ttl", Text),
    ("backends.*.cache.max_stale", Text),
    ("backends.*.cache.answer_after", Text),
    ("backends.*.cache.dir", Text),
    ("backends.*.queue.items", Integer),
    ("backends.*.queue.bytes", Text),
    ("backends.*.queue.dead_items", Integer),
    ("backends.*.queue.dead_bytes", Text),
    ("backends.*.queue.dir", Text),
    ("backends.*.queue.disk_floor", Text),
    ("backends.*.queue.write_fallback", Text),
    ("backends.*.queue.dead_letter_policy", Text),
];

/// The pattern of a path: what follows `backends` becomes `*`, and `[0]` becomes `[]`.
fn pattern(path: &str) -> String {
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

/// Every setting's path and shape, those of the kinds included.
#[derive(Debug, Default)]
pub(crate) struct Keys(Vec<(String, Shape)>);

impl Keys {
    /// The core's settings, and those of these kinds.
    pub(crate) fn new(sections: &[&dyn Section]) -> Self {
        let core = KEYS.iter().map(|(key, shape)| ((*key).to_owned(), *shape));
        let of_kinds = sections.iter().flat_map(|section| section.keys());
        let of_kinds = of_kinds.map(|(key, shape)| (format!("backends.*.{key}"), *shape));
        Self(core.chain(of_kinds).collect())
    }

    /// The shape of the setting at `path`, where there is such a setting.
    pub(crate) fn shape(&self, path: &str) -> Option<Shape> {
        let wanted = pattern(path);
        self.0.iter().find(|(key, _)| *key == wanted).map(|(_, shape)| *shape)
    }

    /// Whether settings lie below `path`.
    fn is_section(&self, path: &str) -> bool {
        let wanted = pattern(path);
        wanted == "backends"
            || wanted == "backends.*"
            || self.0.iter().any(|(key, _)| {
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
        let keys = self.0.iter().map(|(key, _)| key.as_str());
        let lists = self.0.iter().filter_map(|(key, _)| Some(key.split_once("[].")?.0));
        let (key, score) = keys
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

    /// Takes what is no setting out of `table` and says so, one sentence each.
    pub(crate) fn remove_unknown(&self, table: &mut Table, problems: &mut Vec<String>) {
        self.remove_below(table, "", problems);
    }

    fn remove_below(&self, table: &mut Table, prefix: &str, problems: &mut Vec<String>) {
        table.retain(|key, value| {
            let path = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
            if self.is_list(&path) {
                return self.remove_from_each(value, &path, problems);
            }
            if self.is_section(&path) {
                let Value::Table(inner) = value else {
                    problems.push(format!("{path} must be a section, got {}", value.type_str()));
                    return false;
                };
                self.remove_below(inner, &path, problems);
                return true;
            }
            if self.shape(&path).is_some() {
                return true;
            }
            problems.push(match self.nearest(&path) {
                Some(right) => format!("{path} is no setting; the nearest is {right}"),
                None => format!("{path} is no setting"),
            });
            false
        });
    }

    /// Whether there is a list of sections at `path`.
    fn is_list(&self, path: &str) -> bool {
        let is_below = |(key, _): &(String, Shape)| {
            key.strip_prefix(path).is_some_and(|rest| rest.starts_with("[]."))
        };
        self.0.iter().any(is_below)
    }

    /// The same in a list of sections; `false` if it is none.
    fn remove_from_each(&self, list: &mut Value, path: &str, problems: &mut Vec<String>) -> bool {
        let wrong = match list {
            Value::Array(each) => {
                for (at, one) in each.iter_mut().enumerate() {
                    if let Value::Table(section) = one {
                        self.remove_below(section, &format!("{path}[{at}]"), problems);
                    }
                }
                each.iter().find(|one| !one.is_table()).map(Value::type_str)
            }
            other => Some(other.type_str()),
        };
        if let Some(wrong) = wrong {
            problems.push(format!("{path} must be a list of sections, [[{path}]], got {wrong}"));
        }
        wrong.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found_by_its_last_word_first() {
        let keys = Keys::new(&[]);
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
        let keys = Keys::new(&sections);
        let near = keys.nearest("backends.r.on_mis");
        assert_eq!(near.as_deref(), Some("backends.r.on_miss"));
        assert_eq!(keys.shape("backends.r.ordered"), Some(Flag));
        assert_eq!(Keys::new(&[]).shape("backends.r.ordered"), None);
    }

    #[test]
    fn a_list_of_sections_is_nothing_else() {
        for (text, wrong) in
            [("doors = 3", "integer"), ("doors = ['a']", "string"), ("[doors]", "table")]
        {
            let mut table: Table = toml::from_str(text).unwrap();
            let mut problems = Vec::new();
            Keys::new(&[]).remove_unknown(&mut table, &mut problems);
            let said = format!("doors must be a list of sections, [[doors]], got {wrong}");
            assert_eq!((problems, table.is_empty()), (vec![said], true), "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_taken_out_and_named() {
        let mut table: Table =
            toml::from_str("socket = 'a'\nhttp = 3\n[backends.r]\nurll = 'x'\nurl = 'y'\n[[doors]]\nkind = 'r'\n[[doors]]\nlisten_at = 'x'").unwrap();
        let mut problems = Vec::new();
        Keys::new(&[]).remove_unknown(&mut table, &mut problems);
        problems.sort();
        assert_eq!(
            problems,
            [
                "backends.r.urll is no setting; the nearest is backends.r.url",
                "doors[1].listen_at is no setting; the nearest is doors[1].listen",
                "http must be a section, got integer",
            ]
        );
        assert_eq!(
            toml::to_string(&table).unwrap(),
            "socket = \"a\"\n\n[backends.r]\nurl = \"y\"\n\n[[doors]]\nkind = \"r\"\n\n[[doors]]\n"
        );
    }
}
