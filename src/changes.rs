//! Settings that are changed at run time.
//!
//! A change is a setting's path and the value that it has until it is taken back. All changes are a layer of the
//! configuration, above the file and below the environment, and what they amount to is checked as the file is: a change is
//! in effect whole, or it is refused and nothing has changed. Only the changes are checked, not what the file says or
//! names ([`Config::with`]).
//!
//! A change takes only what is declared to take a `patch`. It touches the core alone: no connector, no connection. It
//! never closes, opens or empties anything: windows, exponents, forces, queues and caches stay as they are, and a limit
//! that is smaller now refuses what is new.
//!
//! # How long
//! Until it is taken back; until its time is over, if it was made for a time; until the daemon stops, unless it is
//! persisted. A change that is not persisted overrides one of the same setting that is.
//!
//! A change remembers what the file said of its setting. **If the file says something else now, the file wins**:
//! whoever edits the file means what is written there. The change is dropped then, with a warning.
//!
//! # What is written when
//! Persisted changes are in [`file::NAME`] in the state directory, replaced as a whole: a new file, synced, renamed,
//! the directory synced.
//!
//! | step | a crash after it leaves |
//! | --- | --- |
//! | the change is checked | the old settings |
//! | the file is replaced | the new settings, which nobody knows of |
//! | the core has them | the same |
//! | the answer | the same |
//!
//! If the core does not take them, what it has taken is given back, and the file is written as it was: then the answer
//! is that nothing has changed. So it is if the file cannot be replaced, as the new one may be in its place for all
//! that. A crash before that leaves the new settings, which nobody knows of.
//!
//! A change whose time is over is dropped when it is read, so that one that ran out while no daemon ran is not in
//! effect again. One that was made for a time lasts no longer than that, wherever the wall clock is set ([`timed`]). A
//! file that cannot be read, or a change in it, is left out with a warning, and shown for as long as the daemon runs
//! ([`Config::left_out`]). So is a persisted change that is no longer possible. None of that stops a start.

pub(crate) mod edit;
pub(crate) mod file;
#[cfg(test)]
mod tests;
pub(crate) mod timed;

use std::time::SystemTime;

use crate::config::{Change, Config, ConfigErrors, Origin, declared::leaf_of, setting::Takes};

/// What changes at run time amount to.
pub(crate) struct Settled {
    /// The configuration with those that are in effect.
    pub(crate) config: Config,
    /// Warnings about those that are not.
    pub(crate) told: Vec<String>,
    /// Those of the warnings that are about persisted changes that are no longer possible.
    pub(crate) left_out: Vec<String>,
}

/// Why a change is not in effect any more.
enum Outdated {
    /// Its time is over, or the file has another value for its setting.
    Over(&'static str),
    /// It is no longer possible.
    Impossible(String),
}

/// `base`, the configuration without any change, with those of `changes` that are in effect; and warnings about those
/// that are not.
pub(crate) fn settle(
    base: &Config,
    load: impl Fn(&[Change]) -> Result<Config, ConfigErrors>,
    changes: Vec<Change>,
    now: SystemTime,
) -> Settled {
    let (mut told, mut left_out) = (Vec::new(), Vec::new());
    let mut kept = Vec::new();
    for change in changes {
        let named = || format!("{}, changed at run time by {}", change.path, change.by);
        match outdated(base, &change, now) {
            Some(Outdated::Over(why)) => told.push(format!("{}: {why}", named())),
            Some(Outdated::Impossible(why)) => {
                let why = format!("{}: {why}", named());
                left_out.extend(change.persisted.then(|| why.clone()));
                told.push(why);
            }
            None => kept.push(change),
        }
    }
    if let Ok(config) = load(&kept) {
        return Settled { config, told, left_out };
    }
    // One of them no longer fits: each is tried on those that do.
    let (mut config, mut fitting) = (base.clone(), Vec::new());
    for change in kept {
        fitting.push(change);
        match load(&fitting) {
            Ok(next) => config = next,
            Err(errors) => {
                if let Some(change) = fitting.pop() {
                    let (path, by) = (&change.path, &change.by);
                    let why = format!("{path}, changed at run time by {by}, is left out: {errors}");
                    left_out.extend(change.persisted.then(|| why.clone()));
                    told.push(why);
                }
            }
        }
    }
    Settled { config, told, left_out }
}

/// Why a change is not in effect any more; `None` if it is.
fn outdated(base: &Config, change: &Change, now: SystemTime) -> Option<Outdated> {
    if change.until.is_some_and(|until| until <= now) {
        return Some(Outdated::Over("its time is over"));
    }
    let Some(setting) = base.declared.find(&change.path, None) else {
        let why = "there is no such setting, so it is left out";
        return Some(Outdated::Impossible(why.to_owned()));
    };
    if setting.facts.takes != Takes::Patch {
        return Some(Outdated::Impossible(format!(
            "it now takes effect only after a {}, so it is left out",
            setting.facts.takes.as_str()
        )));
    }
    let in_file = leaf_of(&base.file_table, &change.path);
    (in_file != change.replaced.as_ref())
        .then_some(Outdated::Over("the file was changed since then, so it is left out"))
}

/// The origin of a setting's value, in a word; `default` if nothing sets it.
pub(crate) fn source<'a>(config: &'a Config, path: &str) -> &'a str {
    config.origins.get(path).map_or("default", Origin::word)
}
