//! The settings of a later release that has run on this host.
//!
//! A daemon notes in its state directory which settings it knows. If an older release is installed over it, that one
//! finds settings in the file that it does not have. Those that the note names are left out with a warning, so that the
//! older release starts. Whatever else is not a setting stays an error: it is misspelt.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    checker::Checker,
    declared::{Declared, pattern},
};

/// The name of the note in the state directory.
pub(crate) const NAME: &str = "settings-known.json";

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Something that is not a setting of this release.
#[derive(Debug, PartialEq)]
pub(crate) struct Unknown {
    /// Its path.
    pub(crate) path: String,
    /// The beginning of a sentence about it, up to its verb: `a.b is`.
    pub(crate) subject: String,
    /// The setting that may be meant.
    pub(crate) nearest: Option<String>,
}

impl Unknown {
    fn said(&self) -> String {
        match &self.nearest {
            Some(right) => format!("{} not a setting; the nearest is {right}", self.subject),
            None => format!("{} not a setting", self.subject),
        }
    }
}

/// A release, and the settings that it knows.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    version: String,
    settings: Vec<String>,
}

impl Known {
    /// Whether this is a later release that an older one may take over from.
    fn is_later(&self) -> bool {
        match (numbers(&self.version), numbers(VERSION)) {
            (Some(theirs), Some(ours)) => theirs.0 == ours.0 && theirs > ours,
            _ => false,
        }
    }

    /// Whether there is a setting at `path`, or a section.
    fn has(&self, path: &str) -> bool {
        let wanted = pattern(path);
        self.settings.iter().any(|known| {
            let rest = known.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }
}

/// Major, minor and patch version.
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let release = version.split(['-', '+']).next()?;
    let mut numbers = release.split('.').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next()?))
}

fn read(state_dir: &Path) -> Option<Known> {
    let bytes = fusebox_state::file::read(&state_dir.join(NAME)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The note to write into `state_dir`; `None` if the one that is there stays, because it says the same or is a later
/// release's.
///
/// # Errors
/// It cannot be serialized.
pub(crate) fn note(state_dir: &Path, declared: &Declared) -> serde_json::Result<Option<Vec<u8>>> {
    let mut settings: Vec<String> = declared.settings.iter().map(|it| it.path.clone()).collect();
    settings.sort();
    settings.dedup();
    let ours = Known { version: VERSION.to_owned(), settings };
    if read(state_dir).is_some_and(|found| found == ours || found.is_later()) {
        return Ok(None);
    }
    serde_json::to_vec_pretty(&ours).map(Some)
}

/// Reports what is `unknown`: as a warning if a later release has noted it in `state_dir`, else as a problem.
pub(super) fn settle(state_dir: &Path, unknown: Vec<Unknown>, checker: &mut Checker) {
    if unknown.is_empty() {
        return;
    }
    let later = read(state_dir).filter(Known::is_later);
    let mut problems = Vec::new();
    for it in unknown {
        match &later {
            Some(known) if known.has(&it.path) => checker.warnings.push(format!(
                "{} a setting of release {}, which has run here before, but not of this release, {VERSION}: it is \
                 ignored",
                it.subject, known.version
            )),
            _ => problems.push(it.said()),
        }
    }
    problems.append(&mut checker.problems);
    checker.problems = problems;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The version that differs from this one by so much.
    fn version(major: u32, minor: u32, patch: u32) -> String {
        let (ours, its_minor, its_patch) = numbers(VERSION).unwrap();
        format!("{}.{}.{}", ours + major, its_minor + minor, its_patch + patch)
    }

    /// Problems and warnings about these paths beside the note of that version.
    fn settled(version: &str, paths: &[&str]) -> (Vec<String>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let settings = ["alerts.command", "backends.*.retry.budget", "mirrors[].url"];
        let known = serde_json::json!({ "version": version, "settings": settings });
        std::fs::write(dir.path().join(NAME), known.to_string()).unwrap();
        let unknown = paths.iter().map(|path| Unknown {
            path: (*path).to_owned(),
            subject: format!("{path} is"),
            nearest: None,
        });
        let mut checker = Checker { problems: vec!["another".into()], ..Checker::default() };
        settle(dir.path(), unknown.collect(), &mut checker);
        (checker.problems, checker.warnings)
    }

    #[test]
    fn what_a_later_release_knows_is_left_out_and_what_none_knows_is_a_problem() {
        let later = version(0, 1, 0);
        let paths = ["alerts", "backends.r.retry.budget", "mirrors", "alert", "retry.budget"];
        let (problems, warnings) = settled(&later, &paths);
        assert_eq!(
            problems,
            ["alert is not a setting", "retry.budget is not a setting", "another"]
        );
        let said = |path: &str| {
            format!(
                "{path} is a setting of release {later}, which has run here before, but not of this release, \
                 {VERSION}: it is ignored"
            )
        };
        assert_eq!(warnings, paths[..3].iter().map(|path| said(path)).collect::<Vec<_>>());
    }

    #[test]
    fn only_a_later_release_of_the_same_major_version_counts() {
        let is_left_out = |version: &str| settled(version, &["alerts"]).0 == ["another"];
        assert!(is_left_out(&version(0, 0, 1)) && is_left_out(&(version(0, 1, 0) + "-rc.1")));
        for other in [VERSION, &version(1, 0, 0), "", "1.2", "later"] {
            assert!(!is_left_out(other), "{other:?}");
        }
    }

    #[test]
    fn the_note_is_written_once_and_never_over_that_of_a_later_release() {
        let dir = tempfile::tempdir().unwrap();
        let declared = Declared::new(&crate::kinds::sections());
        let write = |text: &[u8]| std::fs::write(dir.path().join(NAME), text).unwrap();
        let note = || note(dir.path(), &declared).unwrap();
        let ours = note().unwrap();
        for settings in ["state_dir", "backends.*.on_miss", "doors[].listen"] {
            assert!(String::from_utf8_lossy(&ours).contains(&format!("\"{settings}\"")));
        }
        write(&ours);
        assert_eq!(note(), None);
        write(&ours[..20]);
        assert_eq!(note().as_ref(), Some(&ours), "a damaged one");
        for (version, stays) in [(version(0, 1, 0), true), ("0.0.1".to_owned(), false)] {
            write(format!("{{\"version\":\"{version}\",\"settings\":[]}}").as_bytes());
            assert_eq!(note().is_none(), stays, "{version}");
        }
    }
}
