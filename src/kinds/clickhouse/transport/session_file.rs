//! The file that names the sessions that something was put into, so that a restart of the daemon does not forget them.
//!
//! ```text
//!  record, 24 bytes     16 bytes                                4 bytes                                    4 bytes
//!  the first            magic, seed of the hashes               1: it names all such sessions, 0: not all  check
//!  any other            hash of a session's id under the seed   seconds of silence that end it; 0: over    check
//! ```
//! Of two records of one session the later counts. A file of which any record is not what its check says, or that ends
//! in the middle of one, is no such file.
//!
//! A record is written before what it tells of is sent, and is not synced: it survives the end of the daemon, also a
//! `kill -9`. After a power cut the last records may be missing.
//!
//! | the daemon ends | the file | the next start |
//! | --- | --- | --- |
//! | before a record is written | as it was | right: nothing was sent |
//! | behind the record, before the statement is sent | names a session that has nothing in it | keeps that session live for its time |
//! | while the file is rewritten, before the renaming | the earlier one; `.next` is written over later | right: the earlier one names all that was sent |
//! | behind the renaming | the new one | right |
//! | after a record that could not be written | empty, so no such file | takes every session that may be older for one that something is in |

use std::{
    collections::HashMap,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// What the first record begins with; its last byte is the version.
const MAGIC: u128 = u64::from_le_bytes(*b"fbxsess\x01") as u128;
const RECORD: usize = 24;

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Under which the ids are hashed.
    pub(super) seed: u64,
    /// It names all sessions that something was put into.
    pub(super) is_whole: bool,
    /// Those that it names, and after which silence each ends.
    pub(super) sessions: HashMap<u128, Duration>,
}

/// The file, as this run of the daemon writes it.
#[derive(Debug)]
pub(super) struct SessionFile {
    path: PathBuf,
    /// `None` if it must be rewritten before anything is added.
    file: Option<File>,
    records: usize,
    written: Instant,
}

impl SessionFile {
    /// The file at `path`, which is to be rewritten first.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, records: 0, written: Instant::now() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what an earlier run left; `None` if there is no file.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) fn read(&self) -> Result<Option<Found>, String> {
        match fusebox_state::file::read(&self.path) {
            Ok(bytes) => parsed(&bytes).map(Some).ok_or_else(|| "it is damaged".to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether it is time to rewrite it: `most` records are in it, or it is older than `age`.
    pub(super) fn is_due(&self, now: Instant, most: usize, age: Duration) -> bool {
        self.file.is_none()
            || self.records >= most
            || now.saturating_duration_since(self.written) > age
    }

    /// Adds what is to be known of sessions: after which silence each ends, zero if it is over.
    ///
    /// # Errors
    /// It may be half written: the file is to be made [void](Self::void).
    pub(super) fn add(&mut self, records: &[(u128, Duration)]) -> io::Result<()> {
        let file = self.file.as_mut().ok_or(ErrorKind::NotFound)?;
        self.records += records.len();
        let records = records.iter().flat_map(|(id, lasts)| record(*id, seconds(*lasts)));
        file.write_all(&records.collect::<Vec<u8>>())
    }

    /// Rewrites it, in one step.
    ///
    /// # Errors
    /// It is as it was, and to be made [void](Self::void).
    pub(super) fn rewrite(&mut self, found: &Found, now: Instant) -> io::Result<()> {
        self.file = None;
        let mut bytes = Vec::with_capacity((found.sessions.len() + 1) * RECORD);
        let first = u128::from(found.seed) << 64 | MAGIC;
        bytes.extend(record(first, found.is_whole.into()));
        for (id, lasts) in &found.sessions {
            bytes.extend(record(*id, seconds(*lasts)));
        }
        let file = replace(&self.path, &bytes)?;
        (self.file, self.records, self.written) = (Some(file), found.sessions.len(), now);
        Ok(())
    }

    /// Empties it, so that nobody takes it for one that names all.
    ///
    /// # Errors
    /// It is as it was.
    pub(super) fn void(&mut self) -> io::Result<()> {
        self.file = None;
        match OpenOptions::new().write(true).truncate(true).open(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Replaces a file in one step, makes its folder if that is missing, and syncs nothing. Returns it, open at its end.
///
/// # Errors
/// It is as it was.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(bytes)?;
    std::fs::rename(&next, path)?;
    Ok(file)
}

/// Whole seconds, and at least one of what is not over.
fn seconds(lasts: Duration) -> u32 {
    let rounded = lasts.as_secs() + u64::from(lasts.subsec_nanos() > 0);
    u32::try_from(rounded).unwrap_or(u32::MAX)
}

fn record(id: u128, seconds: u32) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let told = id.to_le_bytes().into_iter().chain(seconds.to_le_bytes());
    for (to, from) in record.iter_mut().zip(told) {
        *to = from;
    }
    let check = check(record.get(..20).unwrap_or_default());
    for (to, from) in record.iter_mut().skip(20).zip(check) {
        *to = from;
    }
    record
}

fn check(told: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = xxh3_64(told).to_le_bytes();
    [a, b, c, d]
}

/// The two parts of a record that is what its check says.
fn parts(record: &[u8]) -> Option<(u128, u32)> {
    let (told, checked) = record.split_at_checked(20)?;
    if checked != check(told) {
        return None;
    }
    let (id, seconds) = told.split_at_checked(16)?;
    Some((u128::from_le_bytes(id.try_into().ok()?), u32::from_le_bytes(seconds.try_into().ok()?)))
}

fn parsed(bytes: &[u8]) -> Option<Found> {
    let mut records = bytes.chunks(RECORD);
    let (first, is_whole) = parts(records.next()?)?;
    if first & u128::from(u64::MAX) != MAGIC || is_whole > 1 {
        return None;
    }
    let seed = u64::try_from(first >> 64).ok()?;
    let mut sessions = HashMap::new();
    for record in records {
        match parts(record)? {
            (id, 0) => drop(sessions.remove(&id)),
            (id, seconds) => {
                sessions.insert(id, Duration::from_secs(seconds.into()));
            }
        }
    }
    Some(Found { seed, is_whole: is_whole == 1, sessions })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn found(sessions: &[(u128, Duration)]) -> Found {
        Found { seed: 7, is_whole: true, sessions: sessions.iter().copied().collect() }
    }

    #[test]
    fn what_is_added_is_read_and_the_later_record_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = SessionFile::new(dir.path().join("deep/one"));
        assert_eq!(file.read(), Ok(None));
        assert!(file.add(&[(1, MINUTE)]).is_err(), "there is none yet");
        file.rewrite(&found(&[(1, MINUTE)]), Instant::now()).unwrap();
        file.add(&[(2, MINUTE)]).unwrap();
        file.add(&[(2, 2 * MINUTE), (1, Duration::ZERO)]).unwrap();
        assert_eq!(file.read(), Ok(Some(found(&[(2, 2 * MINUTE)]))));
        let part = Found { is_whole: false, ..found(&[]) };
        file.rewrite(&part, Instant::now()).unwrap();
        assert_eq!(file.read(), Ok(Some(part)));
    }

    #[test]
    fn what_is_damaged_anywhere_is_no_such_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = SessionFile::new(dir.path().join("one"));
        file.rewrite(&found(&[(1, MINUTE)]), Instant::now()).unwrap();
        file.add(&[(2, MINUTE)]).unwrap();
        let whole = std::fs::read(file.path()).unwrap();
        assert_eq!(whole.len(), 3 * RECORD);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(parsed(&damaged), None, "byte {at}");
            if at % RECORD != 0 {
                assert_eq!(parsed(&whole[..at]), None, "its first {at} bytes");
            }
        }
        assert_eq!(parsed(&[]), None);
        assert_eq!(parsed(&[0; RECORD]), None);
        file.void().unwrap();
        assert_eq!(file.read(), Err("it is damaged".to_owned()));
        std::fs::remove_file(file.path()).unwrap();
        file.void().unwrap();
        assert_eq!(file.read(), Ok(None));
    }
}
