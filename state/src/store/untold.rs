//! Losses that were found and that nobody has heard of yet.
//!
//! What an open finds wrong is reported when it has succeeded. A process that dies before, or a disk that fails once
//! more, must not make a loss silent, since the next open finds a store that is whole. So what is lost is noted in a
//! file before anything is moved, and the file is removed by the first commit in service, when whoever opened the store
//! has what was found. After a crash in between it is reported twice.
//!
//! A note of something that then did not happen counts for nothing: it names the folder that the old store was moved
//! to, which is not there.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use bincode::{Decode, Encode};

use super::{error::Finding, space};

const FILE: &str = "untold";
/// What decoding may allocate.
const LIMIT: usize = 1 << 28;

/// See the [module](self).
#[derive(Debug, Encode, Decode)]
struct Untold {
    findings: Vec<Finding>,
    /// The folder beside, in which the old store is if it happened.
    moved: Option<String>,
}

/// Notes what will have been found once the old store is in `moved`; without one, it has happened already.
pub(super) fn note(dir: &Path, findings: &[Finding], moved: Option<&Path>) -> io::Result<()> {
    let moved = moved.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let untold = Untold { findings: findings.to_vec(), moved };
    let body = bincode::encode_to_vec(&untold, bincode::config::standard())
        .map_err(|error| io::Error::other(error.to_string()))?;
    let fresh = dir.join("untold.new");
    let mut file = File::create(&fresh)?;
    file.write_all(&crc32fast::hash(&body).to_le_bytes())?;
    file.write_all(&body)?;
    file.sync_data()?;
    space::rename(&fresh, &dir.join(FILE))
}

/// What was found and not reported, and the place to which the old store was to go, if it is not there yet.
pub(super) fn read(dir: &Path) -> io::Result<(Vec<Finding>, Option<PathBuf>)> {
    let bytes = match fs::read(dir.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), None)),
        Err(error) => return Err(error),
    };
    let Some(Untold { findings, moved }) = decode(&bytes) else {
        let detail = "the findings of an earlier start".into();
        return Ok((vec![Finding::Unreadable { detail }], None));
    };
    match moved.map(|name| dir.join(name)) {
        Some(moved) if !moved.try_exists()? => Ok((findings, Some(moved))),
        _ => Ok((findings, None)),
    }
}

fn decode(bytes: &[u8]) -> Option<Untold> {
    let (crc, body) = bytes.split_first_chunk::<4>()?;
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let is_whole = crc32fast::hash(body) == u32::from_le_bytes(*crc);
    is_whole.then(|| bincode::decode_from_slice(body, config).ok()).flatten().map(|it| it.0)
}

/// They were reported. If the file stays, they are reported once more.
pub(super) fn told(dir: &Path) {
    match fs::remove_file(dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "these findings will be reported again");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_happen_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), (vec![], None));
        let aside = dir.path().join("db.damaged-1");
        let found = vec![Finding::Unreadable { detail: "a part".into() }];
        note(dir.path(), &found, Some(&aside)).unwrap();
        assert_eq!(read(dir.path()).unwrap(), (found.clone(), Some(aside.clone())));
        fs::create_dir(&aside).unwrap();
        assert_eq!(read(dir.path()).unwrap(), (found, None));
        told(dir.path());
        assert_eq!(read(dir.path()).unwrap(), (vec![], None));
    }
}
