//! What a test that was killed has left.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// What the name of a test's folder begins with.
pub(crate) const FOLDER: &str = "selftest-";
/// The file in a test's folder that is locked for as long as the test runs.
const LOCK: &str = "lock";

/// Locks the folder of a test until the file is dropped.
///
/// # Errors
/// What the file system says.
pub(super) fn hold(folder: &Path) -> io::Result<File> {
    let file = File::create(folder.join(LOCK))?;
    file.lock()?;
    Ok(file)
}

/// Lets a folder stay.
pub(super) fn keep(folder: &Path) {
    fs::remove_file(folder.join(LOCK)).ok();
}

/// Takes away the folders in `state_dir` of tests that no longer run. What failed stays: it has no lock.
pub(super) fn clear(state_dir: &Path) {
    let folders = fs::read_dir(state_dir).into_iter().flatten().flatten();
    for folder in folders.filter(|it| it.file_name().to_string_lossy().starts_with(FOLDER)) {
        let Ok(lock) = File::open(folder.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            // What cannot be taken away is looked at by the next test.
            fs::remove_dir_all(folder.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_test_left_is_taken_away_and_what_runs_or_failed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let folder = dir.path().join(format!("{FOLDER}{name}"));
            fs::create_dir(&folder).unwrap();
            folder
        };
        let (killed, runs, failed) = (made("killed"), made("runs"), made("failed"));
        drop(hold(&killed).unwrap());
        let _held = hold(&runs).unwrap();
        clear(dir.path());
        let is_there = [killed, runs, failed].map(|folder| folder.try_exists().unwrap());
        assert_eq!(is_there, [false, true, true]);
    }
}
