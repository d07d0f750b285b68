//! The fallback cache's snapshot: one file, replaced whole.
//!
//! ```text
//! magic "FBXC" | version u16 | crc32 of the rest u32 | bincode of target and entries
//! ```
//!
//! A crash while it is written leaves the earlier file: the new one is written beside it, synced, and
//! renamed over it. A file that is not what was written is reported and not read; nothing depends on
//! it, a cache may always be empty.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use bytes::Bytes;

use crate::{
    target::Target,
    units::{LaneId, UnixMillis},
};

const MAGIC: &[u8; 4] = b"FBXC";
const VERSION: u16 = 4;
/// A larger file than any cache's limit is not one of ours.
const MAX: usize = 1 << 30;

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// Its lane.
    pub lane: LaneId,
    /// The canonical read.
    pub key: Bytes,
    /// The reply.
    pub value: Bytes,
    /// When it was answered.
    pub at: UnixMillis,
    /// When the value ends at the backend, if that is known.
    pub until: Option<UnixMillis>,
    /// [`crate::cache::CachedRead::outlasts`].
    pub outlasts: bool,
}

#[derive(bincode::Encode, bincode::Decode)]
struct Stored {
    lane: u64,
    key: Vec<u8>,
    value: Vec<u8>,
    at: u64,
    until: Option<u64>,
    outlasts: bool,
}

/// Writes the `entries` of `target` to `file`, making its folder (mode 0700) if it is missing.
///
/// # Errors
/// What the file system says; the earlier file is untouched.
pub fn save(file: &Path, target: &Target, entries: Vec<CacheEntry>) -> io::Result<()> {
    let stored: Vec<Stored> = entries
        .into_iter()
        .map(|it| Stored {
            lane: it.lane.0,
            key: it.key.into(),
            value: it.value.into(),
            at: it.at.get(),
            until: it.until.map(UnixMillis::get),
            outlasts: it.outlasts,
        })
        .collect();
    let body = bincode::encode_to_vec((target.as_str(), &stored), bincode::config::standard())
        .map_err(|error| io::Error::other(error.to_string()))?;
    if let Some(dir) = file.parent() {
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(dir)?;
    }
    let fresh = file.with_extension("tmp");
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.write(true).create(true).truncate(true).open(&fresh)?;
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&crc32fast::hash(&body).to_le_bytes())?;
    out.write_all(&body)?;
    out.sync_data()?;
    fs::rename(&fresh, file)
}

/// Reads what [`save`] wrote; empty if there is no file, or one of another target: what one server
/// answered says nothing of another.
///
/// # Errors
/// What the file system says, or [`io::ErrorKind::InvalidData`] for a file that is damaged.
pub fn load(file: &Path, target: &Target) -> io::Result<Vec<CacheEntry>> {
    let bytes = match crate::file::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let (head, body) =
        bytes.split_at_checked(10).ok_or_else(|| damaged("the file is too short"))?;
    let checksum = crc32fast::hash(body).to_le_bytes();
    if !head.starts_with(MAGIC) || head.get(4..6) != Some(&VERSION.to_le_bytes()) {
        return Err(damaged("the file is no cache snapshot of this version"));
    }
    if head.get(6..) != Some(&checksum) {
        return Err(damaged("the checksum is wrong"));
    }
    let config = bincode::config::standard().with_limit::<MAX>();
    let ((of, stored), _): ((String, Vec<Stored>), usize) =
        bincode::decode_from_slice(body, config)
            .map_err(|error| damaged(&format!("the entries do not decode: {error}")))?;
    if of != target.as_str() {
        return Ok(Vec::new());
    }
    Ok(stored
        .into_iter()
        .map(|it| CacheEntry {
            lane: LaneId(it.lane),
            key: it.key.into(),
            value: it.value.into(),
            at: UnixMillis::new(it.at),
            until: it.until.map(UnixMillis::new),
            outlasts: it.outlasts,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new").join("redis.cache");
        assert!(load(&file, &"t".into()).unwrap().is_empty());
        let entry = CacheEntry {
            lane: LaneId(7),
            key: Bytes::from("GET k"),
            value: Bytes::from("$1\r\nv\r\n"),
            at: UnixMillis::new(9),
            until: None,
            outlasts: true,
        };
        let entries = vec![CacheEntry { until: Some(UnixMillis::new(12)), ..entry.clone() }, entry];
        save(&file, &"t".into(), entries.clone()).unwrap();
        assert_eq!(load(&file, &"t".into()).unwrap(), entries);
        assert!(load(&file, &"another".into()).unwrap().is_empty());
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert_eq!(load(&file, &"t".into()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::write(&file, b"FB").unwrap();
        assert_eq!(load(&file, &"t".into()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
