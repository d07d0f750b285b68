//! The mark: a copy of the head in a small file beside the store.
//!
//! sled opens with its tail silently missing, or as empty, when its file was cut short. The mark notices: it is
//! written after every commit (so it is never ahead of what is synced) and synced at most every 100 ms and when idle,
//! and the store must not be behind it. A tail lost within those 100 ms of a power cut goes unnoticed; a killed
//! process loses nothing of it.
//!
//! ```text
//! magic 4 | format u16 | 0 u16 | commit u64 | last sequence u64 | crc32 u32 | 0 u32 | the head's value
//! ```
//!
//! The first 32 bytes are the whole mark of the first format, so that the release that wrote that one refuses a newer
//! store by its mark, before it opens anything. The file is filled up to one sector, so that it never grows: a power
//! cut could leave a new content with an old length. A mark that is not there yet appears whole, by a rename.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use super::{
    head::{self, AnyHead, FirstHead, Head},
    record::{FIRST, FORMAT, PACKED},
};

const MAGIC: [u8; 4] = *b"fbxM";
const PREFIX: usize = 32;
/// Bytes of the file.
const SECTOR: usize = 512;
/// The mark's name within the store's folder.
pub(super) const FILE: &str = "mark";

/// What a mark file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// There is no mark.
    Absent,
    /// It is there and does not decode.
    Damaged,
    /// A newer version wrote it.
    Newer(u16),
    /// The first format: the store must not be behind this.
    First(FirstHead),
    /// The store must not be behind this.
    At(Head),
}

impl Reading {
    /// The head that it holds.
    pub(super) fn head(self) -> Option<Head> {
        if let Self::At(head) = self { Some(head) } else { None }
    }
}

/// The mark file, open for writing.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    dirty: bool,
}

impl Mark {
    /// Opens or creates the mark in `dir`; what it held is left as it is.
    pub(super) fn create(dir: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(FILE))?;
        Ok(Self { file, dirty: false })
    }

    /// Overwrites the mark, without a sync.
    pub(super) fn write(&mut self, head: &Head) -> io::Result<()> {
        self.file.write_all_at(&encode(head), 0)?;
        self.dirty = true;
        Ok(())
    }

    /// Whether something was written since the last sync.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Syncs what was written; does nothing if nothing was.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// Puts a whole mark in the place of whatever is there: the one or the other is found after a crash.
pub(super) fn replace(dir: &Path, head: &Head) -> io::Result<()> {
    let (fresh, path) = (dir.join("mark.new"), dir.join(FILE));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&encode(head))?;
    file.sync_data()?;
    if path.is_dir() {
        fs::remove_dir_all(&path)?;
    }
    fs::rename(&fresh, &path)?;
    File::open(dir)?.sync_all()
}

/// Reads the mark of the store in `dir`.
pub(super) fn read(dir: &Path) -> io::Result<Reading> {
    match crate::file::read(&dir.join(FILE)) {
        Ok(bytes) => Ok(decode(&bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Reading::Absent),
        // A folder or a pipe is in its place: no mark, and nothing that will pass.
        Err(error) if matches!(error.kind(), ErrorKind::IsADirectory | ErrorKind::InvalidInput) => {
            Ok(Reading::Damaged)
        }
        Err(error) => Err(error),
    }
}

fn encode(head: &Head) -> Vec<u8> {
    let format = if head.packed { PACKED } else { FORMAT };
    let mut bytes = prefix(format, head.commit, head.last_seq);
    bytes.extend(head::encode(head).unwrap_or_default());
    bytes.resize(SECTOR, 0);
    bytes
}

/// The mark of the first format.
pub(super) fn encode_first(head: FirstHead) -> Vec<u8> {
    prefix(FIRST, head.commit, head.last_seq)
}

fn prefix(format: u16, commit: u64, last_seq: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX + 128);
    bytes.extend(MAGIC);
    bytes.extend(format.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(commit.to_le_bytes());
    bytes.extend(last_seq.to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn decode(bytes: &[u8]) -> Reading {
    let Some((fields, rest)) = bytes.split_first_chunk::<24>() else { return Reading::Damaged };
    let Some((crc, _)) = rest.split_first_chunk::<4>() else { return Reading::Damaged };
    if crc32fast::hash(fields) != u32::from_le_bytes(*crc) {
        return Reading::Damaged;
    }
    let [m0, m1, m2, m3, f0, f1, _, _, numbers @ ..] = *fields;
    let [c0, c1, c2, c3, c4, c5, c6, c7, s0, s1, s2, s3, s4, s5, s6, s7] = numbers;
    let commit = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
    let last_seq = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let format = u16::from_le_bytes([f0, f1]);
    match format {
        _ if [m0, m1, m2, m3] != MAGIC => Reading::Damaged,
        FIRST => Reading::First(FirstHead { commit, last_seq }),
        FORMAT | PACKED => match head::decode(bytes.get(PREFIX..).unwrap_or_default()) {
            Ok(AnyHead::Vouching(head))
                if (head.commit, head.last_seq) == (commit, last_seq)
                    && head.packed == (format == PACKED) =>
            {
                Reading::At(head)
            }
            _ => Reading::Damaged,
        },
        newer => Reading::Newer(newer),
    }
}

/// What must hold of any bytes, for the fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn hold(bytes: &[u8]) {
    if let Reading::At(head) = decode(bytes) {
        assert_eq!(decode(&encode(&head)), Reading::At(head));
    }
}

/// The mark of a head, for the fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn sample(head: &Head) -> Vec<u8> {
    encode(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::head::{Class, Digests};

    fn sample() -> Head {
        let mut digests = Digests::default();
        digests.calls.add(Class::Calls.hash(7));
        Head { commit: 41, last_seq: u64::MAX, floor: 7, digests, packed: false }
    }

    #[test]
    fn reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Reading::Absent);
        let mut mark = Mark::create(dir.path()).unwrap();
        mark.write(&Head { commit: 40, ..sample() }).unwrap();
        mark.write(&sample()).unwrap();
        let reading = read(dir.path()).unwrap();
        assert_eq!((reading, reading.head()), (Reading::At(sample()), Some(sample())));
        let first = FirstHead { commit: 3, last_seq: 4 };
        assert_eq!(decode(&encode_first(first)), Reading::First(first));
    }

    #[test]
    fn it_is_dirty_from_a_write_to_the_next_sync() {
        let dir = tempfile::tempdir().unwrap();
        let mut mark = Mark::create(dir.path()).unwrap();
        assert!(!mark.is_dirty());
        mark.write(&sample()).unwrap();
        assert!(mark.is_dirty());
        mark.sync().unwrap();
        assert!(!mark.is_dirty());
    }

    #[test]
    fn a_folder_in_its_place_is_damage_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("within"), "").unwrap();
        assert_eq!(read(dir.path()).unwrap(), Reading::Damaged);
        replace(dir.path(), &sample()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Reading::At(sample()));
        let error = read(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotADirectory, "that says nothing of a mark");
    }

    #[test]
    fn a_foreign_file_and_numbers_that_are_not_the_heads_are_damage() {
        for at in [0, 8, 16] {
            let mut bytes = encode(&sample());
            bytes[at] ^= 1;
            let crc = crc32fast::hash(&bytes[..24]);
            bytes[24..28].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(decode(&bytes), Reading::Damaged, "byte {at}");
        }
    }

    #[test]
    fn any_bit_flip_makes_it_damaged() {
        let mut bytes = encode(&sample());
        bytes.truncate(PREFIX + head::encode(&sample()).unwrap().len());
        for bit in (0..bytes.len() * 8).filter(|bit| !(28 * 8..32 * 8).contains(bit)) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), Reading::Damaged, "bit {bit}");
        }
    }
}
