//! Checks values against their bounds and gathers all that is wrong, so that one look shows it all.

use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

use bytesize::ByteSize;
use fusebox_state::Ratio;

/// Gathers problems, warnings and notes. A problem stops the daemon; a warning is worth fixing.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// Where settings came from, for messages.
    pub(crate) origins: BTreeMap<String, String>,
    /// What is wrong.
    pub(crate) problems: Vec<String>,
    /// What should be looked at.
    pub(crate) warnings: Vec<String>,
    /// What is worth knowing.
    pub(crate) notes: Vec<String>,
}

/// A value as people write it.
pub(crate) trait Shown: PartialOrd + Copy {
    /// The text of a message.
    fn shown(&self) -> String;
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
}

/// A number of bytes as people write it: `1 MiB`, `9.8 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).to_string().replacen(".0 ", " ", 1)
}

impl Checker {
    /// `key` is wrong in the way that `what` says.
    pub(crate) fn problem(&mut self, key: &str, what: impl fmt::Display) {
        let origin = self.origins.get(key).map(|from| format!(" (set by {from})"));
        self.problems.push(format!("{key} {what}{}", origin.unwrap_or_default()));
    }

    /// Complains where a file lies at the place of the folder `path`.
    pub(crate) fn folder(&mut self, key: &str, path: Option<&Path>) {
        if let Some(path) = path.filter(|path| path.is_file()) {
            let shown = path.display();
            self.problem(
                key,
                format_args!("must be a folder, and {shown} is a file: name another place"),
            );
        }
    }

    /// `value`, after a complaint where it lies outside `[min, max]`.
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

    /// `value`, after a complaint where it is less than the setting named `other`.
    pub(crate) fn not_below<T: Shown>(&mut self, key: &str, value: T, other: &str, min: T) -> T {
        if value < min {
            let what = format!("must be at least {other} ({}), got {}", min.shown(), value.shown());
            self.problem(key, what);
        }
        value
    }

    /// The ratio `value`, or a complaint where it lies outside 0 to 1.
    pub(crate) fn ratio(&mut self, key: &str, value: f64) -> Option<Ratio> {
        let ratio = Ratio::new(value);
        if ratio.is_none() {
            self.problem(key, format_args!("must be between 0 and 1, got {value}"));
        }
        ratio
    }

    /// The one of `choices` that `text` names, or a complaint and the default.
    pub(crate) fn one_of<T: Copy>(
        &mut self,
        key: &str,
        text: Option<&str>,
        default: T,
        choices: &[(&str, T)],
    ) -> T {
        choice(text, default, choices).unwrap_or_else(|what| {
            self.problem(key, what);
            default
        })
    }
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
        checker.origins.insert("queue.dir".into(), "FIRESTORE_QUEUE_FILE".into());
        checker.folder("queue.dir", Some(file.path()));
        checker.folder("cache.dir", file.path().parent());
        checker.folder("cache.dir", Some(Path::new("/nowhere/yet")));
        checker.folder("cache.dir", None);
        let [only] = checker.problems.as_slice() else { panic!("{:?}", checker.problems) };
        assert!(only.starts_with("queue.dir must be a folder, and /"), "{only}");
        assert!(only.ends_with("(set by FIRESTORE_QUEUE_FILE)"), "{only}");
    }

    #[test]
    fn a_message_names_key_bound_value_and_origin() {
        let mut checker = Checker::default();
        checker.origins.insert("a.b".into(), "FUSEBOX_A__B".into());
        checker.between("q.bytes", ByteSize::b(10_000), ByteSize::mib(1), ByteSize::gib(1));
        checker.between(
            "a.b",
            Duration::from_secs(90_000),
            Duration::ZERO,
            Duration::from_secs(60),
        );
        assert!(checker.ratio("r", f64::NAN).is_none());
        checker.one_of("w", Some("x"), 1, &[("queue", 1), ("refuse", 2)]);
        assert_eq!(
            checker.problems,
            [
                "q.bytes must be at least 1 MiB, got 9.8 KiB",
                "a.b must be at most 1m, got 1day 1h (set by FUSEBOX_A__B)",
                "r must be between 0 and 1, got NaN",
                "w must be \"queue\" or \"refuse\", got \"x\"",
            ]
        );
    }
}
