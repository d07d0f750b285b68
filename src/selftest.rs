//! `fusebox selftest`: does an acknowledged write survive here, on this disk and this file system?
//!
//! A process of its own writes calls into a store, as a daemon's queue does, and says on its standard output which are
//! durable. It is killed (`SIGKILL`) in the middle of that, again and again; each time the store is opened, and what is
//! there is held against what was said:
//!
//! - each call that was acknowledged is there, with the body that it had;
//! - the store had no damage to mend.
//!
//! Beside that, the bare disk is measured: how long it takes to append 4 KiB and sync them, which bounds what one
//! caller can be promised in a second.
//!
//! A kill takes nothing from the operating system's cache. So this proves the program and the file system under it, and
//! that the disk answers to a sync; **not** that the disk keeps what it said it has when the power goes. No program can
//! prove that of the machine on which it runs.
//!
//! It writes into a folder of its own in the state directory, next to the stores and on their disk, and takes it away
//! at the end; a failed test leaves it for the looking at, and the next test takes away what one that was killed left.
//! A daemon that runs is not touched, and costs the test some of its speed.

mod disk;
mod error;
mod leftover;
mod rounds;
pub(crate) mod writer;

use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

pub(crate) use disk::Syncs;
pub(crate) use error::SelftestError;
pub(crate) use leftover::FOLDER;
pub(crate) use rounds::Rounds;

/// The free space without which nothing is begun: it takes up to a quarter, and a daemon beside it has a floor of its
/// own.
const ROOM: u64 = 512 << 20;
/// The share of the time that the bare disk is measured.
const MEASURING: u32 = 10;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    /// Whether every acknowledged call was there after every kill.
    pub(crate) passed: bool,
    /// The same in one sentence, with the reason if it did not pass.
    pub(crate) sentence: String,
    /// What the bare disk does.
    pub(crate) disk: Syncs,
    /// What the kills showed.
    pub(crate) kills: Rounds,
    /// What should be known of this place.
    pub(crate) notes: Vec<String>,
}

/// Tests the disk of `state_dir` for `time`.
///
/// # Errors
/// [`SelftestError`]: nothing can be said.
pub(crate) fn run(state_dir: &Path, time: Duration) -> Result<Verdict, SelftestError> {
    let place = |error| SelftestError::Place { place: state_dir.display().to_string(), error };
    let free = disk::free(state_dir).map_err(place)?;
    if free < ROOM {
        return Err(SelftestError::Room {
            place: state_dir.display().to_string(),
            free: crate::config::size(free),
            wanted: crate::config::size(ROOM),
        });
    }
    leftover::clear(state_dir);
    let folder = tempfile::Builder::new().prefix(FOLDER).tempdir_in(state_dir).map_err(place)?;
    // Held until the end: a folder whose lock nobody holds was left by a test that was killed.
    let _held = leftover::hold(folder.path()).map_err(place)?;
    let end = Instant::now() + time;
    let disk = disk::measure(&folder.path().join("syncs"), time / MEASURING).map_err(place)?;
    let kills = rounds::run(&folder.path().join("store"), end)?;
    let mut notes = disk::notes(folder.path(), &disk);
    let passed = kills.faults.is_empty();
    if !passed {
        let kept = folder.keep();
        leftover::keep(&kept);
        notes.push(format!("the files are left in {}", kept.display()));
    }
    Ok(Verdict { passed, sentence: sentence(&disk, &kills), disk, kills, notes })
}

fn sentence(disk: &Syncs, kills: &Rounds) -> String {
    let Rounds { kills: count, acknowledged, faults, .. } = kills;
    match faults.first() {
        None => format!(
            "Acknowledged writes survive here: {count} kills, {acknowledged} acknowledged calls, none lost; half of the \
             syncs took at most {}, and 99 of 100 at most {}.",
            Millis(disk.median),
            Millis(disk.worst_of_hundred),
        ),
        Some(first) => format!(
            "Acknowledged writes do NOT survive here: {} of {count} kills showed a fault; the first fault: {first}",
            faults.len()
        ),
    }
}

/// A short time, for people.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ms", self.0.as_secs_f64() * 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_which_it_is() {
        let time = Duration::from_micros;
        let disk = Syncs { count: 9, median: time(812), worst_of_hundred: time(3_100) };
        let good = Rounds { kills: 24, acknowledged: 18_234, ..Rounds::default() };
        assert_eq!(
            sentence(&disk, &good),
            "Acknowledged writes survive here: 24 kills, 18234 acknowledged calls, none lost; half of the syncs took at \
             most 0.81 ms, and 99 of 100 at most 3.10 ms."
        );
        let bad = Rounds { faults: vec!["call 7 was acknowledged and is lost".into()], ..good };
        let said = sentence(&disk, &bad);
        assert!(
            said.contains("do NOT survive")
                && said.ends_with("call 7 was acknowledged and is lost"),
            "{said}"
        );
    }
}
