//! The command that is run on an alert.

use std::{path::Path, time::Duration};

use super::{
    checker::{Checker, chosen},
    raw::RawAlerts,
    words::{SEVERITIES, Severity},
};

/// The command that is run on an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AlertSettings {
    /// The program and its arguments; none is run if this is empty.
    pub(crate) command: Vec<String>,
    /// It is not run for alerts below this.
    pub(crate) severity: Severity,
    /// How long a condition must hold; if `None`, as long as its kind says.
    pub(crate) after: Option<Duration>,
}

pub(super) fn check(raw: RawAlerts, checker: &mut Checker) -> AlertSettings {
    const KEY: &str = "alerts.command";
    if let Some(program) = raw.command.first() {
        let path = Path::new(program);
        if !path.is_absolute() {
            let what = format!("must begin with the absolute path of a program, got {program:?}");
            checker.problem(KEY, what);
        } else if !path.is_file() {
            // What cannot be run on an alert is no reason not to start.
            checker.warnings.push(format!("{KEY}: there is no program {program}"));
        }
    }
    if raw.command.iter().any(|word| word.contains('\0')) {
        checker.problem(KEY, "must not contain a NUL character");
    }
    AlertSettings {
        command: raw.command,
        severity: chosen(&raw.severity, Severity::Warning, SEVERITIES),
        after: raw.after.map(|after| after.0),
    }
}
