//! The mark: commit number and last sequence in a small file beside the store.
//!
//! sled opens with its tail silently missing, or as empty, when its file was cut short. The mark
//! notices: it is written after every commit (so it is never ahead of what is synced) and synced at
//! most every 100 ms and when idle, and the store must not be behind it. A tail lost within those
//! 100 ms of a power cut goes unnoticed; a killed process loses nothing of it.
//!
//! ```text
//! magic 4 | format u16 | 0 u16 | commit u64 | last sequence u64 | crc32 u32 | 0 u32
//! ```

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use super::record::{FORMAT, Head};

const MAGIC: [u8; 4] = *b"fbxM";
const SIZE: usize = 32;
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
    /// The store must not be behind this.
    At(Head),
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
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(FILE))?;
        Ok(Self { file, dirty: false })
    }

    /// Overwrites the mark, without a sync.
    pub(super) fn write(&mut self, head: Head) -> io::Result<()> {
        self.file.write_all_at(&encode(head), 0)?;
        self.dirty = true;
        Ok(())
    }

    /// Whether something was written since the last sync.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Syncs what was written; does nothing where nothing was.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// Reads the mark of the store in `dir`.
pub(super) fn read(dir: &Path) -> io::Result<Reading> {
    match std::fs::read(dir.join(FILE)) {
        Ok(bytes) => Ok(decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Reading::Absent),
        Err(error) => Err(error),
    }
}

fn encode(head: Head) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    let (fields, tail) = bytes.split_at_mut(24);
    let parts: [&[u8]; 5] = [
        &MAGIC,
        &FORMAT.to_le_bytes(),
        &[0; 2],
        &head.commit.to_le_bytes(),
        &head.last_seq.to_le_bytes(),
    ];
    for (to, from) in fields.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    for (to, from) in tail.iter_mut().zip(crc32fast::hash(fields).to_le_bytes()) {
        *to = from;
    }
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
    let found = u16::from_le_bytes([f0, f1]);
    if [m0, m1, m2, m3] != MAGIC {
        Reading::Damaged
    } else if found > FORMAT {
        Reading::Newer(found)
    } else {
        Reading::At(Head {
            commit: u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            last_seq: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Reading::Absent);
        let head = Head { commit: 41, last_seq: u64::MAX };
        let mut mark = Mark::create(dir.path()).unwrap();
        mark.write(Head { commit: 40, last_seq: 3 }).unwrap();
        mark.write(head).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Reading::At(head));
    }

    #[test]
    fn any_bit_flip_makes_it_damaged() {
        let bytes = encode(Head { commit: 5, last_seq: 9 });
        for bit in 0..28 * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), Reading::Damaged, "bit {bit}");
        }
    }
}
