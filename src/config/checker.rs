//! Checks values against their bounds and gathers all that is wrong, so that one look shows it all.

use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

use bytesize::ByteSize;
use toml::Value;

use super::origin::Origin;

/// Gathers problems, warnings and notes. A problem stops the daemon; a warning is worth fixing.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// The origin of settings, for messages.
    pub(crate) origins: BTreeMap<String, Origin>,
    /// What is wrong.
    pub(crate) problems: Vec<String>,
    /// What should be looked at.
    pub(crate) warnings: Vec<String>,
    /// What is worth knowing.
    pub(crate) notes: Vec<String>,
    /// Values that follow from others, by their keys.
    pub(crate) followed: Vec<(String, Value)>,
}

/// A value as people write it.
pub(crate) trait Shown: PartialOrd + Copy {
    /// The text of a message.
    fn shown(&self) -> String;

    /// The value in the configuration.
    fn written(&self) -> Value {
        Value::String(self.shown())
    }
}

impl Shown for Duration {
    fn shown(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

impl Shown for ByteSize {
    fn shown(&self) -> String {
        size(self.as_u64())
    }
}

impl Shown for u32 {
    fn shown(&self) -> String {
        self.to_string()
    }

    fn written(&self) -> Value {
        (*self).into()
    }
}

impl Shown for i64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

/// A number of bytes as people write it: `1 MiB`, `9.8 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).to_string().replacen(".0 ", " ", 1)
}

impl Checker {
    /// `key` is wrong in the way that `what` says.
    pub(crate) fn problem(&mut self, key: &str, what: impl fmt::Display) {
        let origin = self.origins.get(key).map(Origin::told);
        self.problems.push(format!("{key} {what}{}", origin.unwrap_or_default()));
    }

    /// Complains if there is a file in place of the folder `path`.
    pub(crate) fn folder(&mut self, key: &str, path: Option<&Path>) {
        if let Some(path) = path.filter(|path| path.is_file()) {
            let shown = path.display();
            self.problem(
                key,
                format_args!("must be a folder, but {shown} is a file: name another folder"),
            );
        }
    }

    /// `value`, after a complaint if it is outside `[min, max]`.
    pub(crate) fn between<T: Shown>(&mut self, key: &str, value: T, min: T, max: T) -> T {
        if value < min {
            let what = format!("must be at least {}, got {}", min.shown(), value.shown());
            self.problem(key, what);
        } else if value > max {
            let what = format!("must be at most {}, got {}", max.shown(), value.shown());
            self.problem(key, what);
        }
        value
    }

    /// `value`, after a complaint if it is less than the setting named `other`.
    pub(crate) fn not_below<T: Shown>(&mut self, key: &str, value: T, other: &str, min: T) -> T {
        if value < min {
            let what = format!("must be at least {other} ({}), got {}", min.shown(), value.shown());
            self.problem(key, what);
        }
        value
    }

    /// The value of `key`: as it was set, or as it follows from others, which is remembered.
    pub(crate) fn or<T: Shown>(
        &mut self,
        key: &str,
        given: Option<T>,
        rule: impl FnOnce() -> T,
    ) -> T {
        given.unwrap_or_else(|| {
            let value = rule();
            self.followed.push((key.to_owned(), value.written()));
            value
        })
    }
}

/// The one of `choices` that `text` names; `other` if it names none, which has been complained of then.
pub(crate) fn chosen<T: Copy>(text: &str, other: T, choices: &[(&str, T)]) -> T {
    choices.iter().find(|(word, _)| *word == text).map_or(other, |(_, value)| *value)
}

/// The one of `choices` that `text` names; the default if there is no text.
///
/// # Errors
/// What it must be, as the end of a sentence that begins with the key.
pub(crate) fn choice<T: Copy>(
    text: Option<&str>,
    default: T,
    choices: &[(&str, T)],
) -> Result<T, String> {
    let Some(text) = text else { return Ok(default) };
    let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        format!("must be {}, got {text:?}", words.join(" or "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_place_of_a_folder_is_told_by_the_variable_that_named_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut checker = Checker::default();
        checker.origins.insert("queue.dir".into(), Origin::Variable("FIRESTORE_QUEUE_FILE".into()));
        checker.folder("queue.dir", Some(file.path()));
        checker.folder("cache.dir", file.path().parent());
        checker.folder("cache.dir", Some(Path::new("/nowhere/yet")));
        checker.folder("cache.dir", None);
        let [only] = checker.problems.as_slice() else { panic!("{:?}", checker.problems) };
        assert!(only.starts_with("queue.dir must be a folder, but /"), "{only}");
        assert!(only.ends_with("(set by FIRESTORE_QUEUE_FILE)"), "{only}");
    }

    #[test]
    fn a_message_names_key_bound_value_and_origin() {
        let mut checker = Checker::default();
        checker.origins.insert("a.b".into(), Origin::Variable("FUSEBOX_A__B".into()));
        checker.between("q.bytes", ByteSize::b(10_000), ByteSize::mib(1), ByteSize::gib(1));
        checker.between(
            "a.b",
            Duration::from_secs(90_000),
            Duration::ZERO,
            Duration::from_secs(60),
        );
        assert_eq!(
            checker.problems,
            [
                "q.bytes must be at least 1 MiB, got 9.8 KiB",
                "a.b must be at most 1m, got 1day 1h (set by FUSEBOX_A__B)",
            ]
        );
    }
}
