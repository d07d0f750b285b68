//! Kill, open, compare, again and again.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fusebox_state::store::{CallStore, Finding, Store};
use serde::Serialize;

use super::{error::SelftestError, writer};

/// The command that writes, which no help shows.
const WRITER: &str = "selftest-writer";
/// A store that has more is replaced by a new one: what takes long to open is not what is tested.
const CALLS_MAX: usize = 5_000;

/// What the kills showed.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Rounds {
    /// How often the process was killed.
    pub(crate) kills: u64,
    /// Calls that it had said were durable.
    pub(crate) acknowledged: u64,
    /// Commits of the store, each of which is synced once.
    pub(crate) commits: u64,
    /// What was not as it must be, at most one of each kill.
    pub(crate) faults: Vec<String>,
}

/// Kills until `end`, at least once; ends at the first fault.
pub(super) fn run(dir: &Path, end: Instant) -> Result<Rounds, SelftestError> {
    let mut rounds = Rounds::default();
    let mut kept = BTreeSet::new();
    loop {
        write_until_killed(dir, &mut kept, &mut rounds)?;
        let (found, commits) = look(dir, &kept);
        rounds.commits += commits;
        match found {
            Ok(count) if count > CALLS_MAX => {
                std::fs::remove_dir_all(dir).map_err(|error| SelftestError::Place {
                    place: dir.display().to_string(),
                    error,
                })?;
                kept.clear();
            }
            Ok(_) => {}
            Err(fault) => rounds.faults.push(fault),
        }
        if !rounds.faults.is_empty() || Instant::now() >= end {
            return Ok(rounds);
        }
    }
}

/// Starts the process, reads what it says for a while, kills it, and reads the rest.
fn write_until_killed(
    dir: &Path,
    kept: &mut BTreeSet<u64>,
    rounds: &mut Rounds,
) -> Result<(), SelftestError> {
    let broken = |why: String| SelftestError::Writer(why);
    let mut child = start(dir).map_err(|error| broken(error.to_string()))?;
    let out = child.stdout.take().ok_or_else(|| broken("it has no output".to_owned()))?;
    let lines = BufReader::new(out).lines();
    // From the first call on: a disk that is slow to open a store is tested, too.
    let mut kill_at = None;
    let mut killed = false;
    let mut ended = None;
    for line in lines {
        // The last line may be cut short: it is not one then, and was not said.
        let line = line.map_err(|error| broken(error.to_string()))?;
        if let Some(Ok(seq)) = line.strip_prefix("kept ").map(str::parse) {
            kept.insert(seq);
            rounds.acknowledged += 1;
            let later = || Instant::now() + Duration::from_millis(fastrand::u64(1..400));
            kill_at = kill_at.or_else(|| Some(later()));
        } else if !line.starts_with("open ") && !killed {
            ended = Some(line);
        }
        if !killed && kill_at.is_some_and(|at| Instant::now() >= at) {
            child.kill().map_err(|error| broken(error.to_string()))?;
            killed = true;
        }
    }
    let status = child.wait().map_err(|error| broken(error.to_string()))?;
    if !killed {
        return Err(broken(format!("it ended by itself ({status}) {}", ended.unwrap_or_default())));
    }
    rounds.kills += 1;
    Ok(())
}

fn start(dir: &Path) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .arg(WRITER)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
}

/// Opens the store and holds it against what was acknowledged. Returns how many calls it has, or the first fault; and
/// its commits.
fn look(dir: &Path, kept: &BTreeSet<u64>) -> (Result<usize, String>, u64) {
    let opened = match Store::open(writer::settings(dir)) {
        Ok(opened) => opened,
        Err(error) => return (Err(format!("the store does not open: {error}")), 0),
    };
    let commits = opened.store.status().commits;
    let found: Vec<u64> = opened.calls.iter().map(|call| call.seq).collect();
    let fault = opened
        .findings
        .iter()
        .find(|finding| Finding::is_damage(finding))
        .map(|finding| format!("the store was damaged: {finding}"))
        .or_else(|| {
            let there: BTreeSet<u64> = found.iter().copied().collect();
            let lost = kept.difference(&there).next()?;
            Some(format!("call {lost} was acknowledged and is lost"))
        })
        .or_else(|| {
            found.iter().find_map(|seq| match opened.store.body(*seq) {
                Ok(body) if *body == *writer::body(*seq) => None,
                Ok(_) => Some(format!("call {seq} has another body than it was given")),
                Err(error) => Some(format!("call {seq} cannot be read: {error}")),
            })
        });
    opened.store.close();
    (fault.map_or(Ok(found.len()), Err), commits)
}
