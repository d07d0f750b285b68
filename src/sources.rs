//! The sources of the configuration, and how all of it is read.

use std::time::SystemTime;

use crate::{
    changes::{self, edit::Refusal, file::Found, timed::of_earlier_run},
    config::{Change, Config, ConfigErrors, Environment, Flags},
    kinds,
};

/// The sources of the configuration, to read it again.
pub(crate) struct Sources {
    /// The command line.
    pub(crate) flags: Flags,
    /// The environment.
    pub(crate) env: Environment,
}

impl Sources {
    /// The configuration as the sources are now, with the changes at run time that outlast a restart, and these.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub(crate) fn load(&self, changes: &[Change]) -> Result<Config, ConfigErrors> {
        load(&self.flags, &self.env, changes, false)
    }

    /// The same for a daemon in which these changes are in effect. If the file with the persisted changes `is_stale`,
    /// because it could not be written, those of `changes` count in its place.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub(crate) fn load_again(
        &self,
        changes: &[Change],
        is_stale: bool,
    ) -> Result<Config, ConfigErrors> {
        load(&self.flags, &self.env, changes, is_stale)
    }

    /// `config` with these changes at run time in the place of its own. The file, and those that it names, are not
    /// read again.
    ///
    /// # Errors
    /// All that is wrong with them, at once.
    pub(crate) fn with(&self, config: &Config, changes: Vec<Change>) -> Result<Config, Refusal> {
        Ok(config.with(&self.flags, &self.env, &changes, &kinds::sections())?)
    }
}

/// The configuration of these sources: of the core, and of every kind of this release; with the changes at run time
/// that outlast a restart.
///
/// # Errors
/// All that is wrong, at once.
pub(crate) fn load_config(flags: &Flags, env: &Environment) -> Result<Config, ConfigErrors> {
    load(flags, env, &[], false)
}

fn load(
    flags: &Flags,
    env: &Environment,
    changes: &[Change],
    is_stale: bool,
) -> Result<Config, ConfigErrors> {
    let sections = kinds::sections();
    let base = Config::load(flags, env, &sections)?;
    let mut found = changes::file::read(&base.state_dir)
        .unwrap_or_else(|why| Found { odd: vec![why], ..Found::default() });
    if is_stale {
        found.changes = changes.iter().filter(|change| change.persisted).cloned().collect();
    }
    let mut left_out = found.odd;
    let told = |why: &String| format!("changes at run time are left out: {why}");
    let mut told: Vec<String> = left_out.iter().map(told).collect();
    let lasting = changes.iter().filter(|change| !change.persisted).cloned();
    let now = SystemTime::now();
    // Those that this run knows have their times already.
    let timed = |change: Change| {
        if changes.contains(&change) { change } else { of_earlier_run(change, now) }
    };
    let all: Vec<Change> = found.changes.into_iter().map(timed).chain(lasting).collect();
    if all.is_empty() {
        let warnings = [base.warnings, told].concat();
        return Ok(Config { warnings, left_out, ..base });
    }
    let with = |changes: &[Change]| base.with(flags, env, changes, &sections);
    let settled = changes::settle(&base, with, all, now);
    told.extend(settled.told);
    left_out.extend(settled.left_out);
    let warnings = [base.warnings, told].concat();
    Ok(Config { warnings, left_out, ..settled.config })
}
