//! ClickHouse's own blocks.
//!
//! ```text
//! checksum, 16 bytes │ method, 1 │ size with these 9 bytes, 4 │ size once unpacked, 4 │ packed bytes
//! ```
//! The checksum is the `CityHash128` of version 1.0.2 over everything behind it; later versions give other values.

use std::io::{self, ErrorKind, Read};

use cityhash_rs::cityhash_102_128;

use super::{lz4, zstd};

pub(super) const CHECKSUM: usize = 16;
/// Method and sizes, which the first size counts.
const HEAD: usize = 9;
const PLAIN: u8 = 0x02;
const LZ4: u8 = 0x82;
const ZSTD: u8 = 0x90;
/// Methods that servers know and that are not read here.
const OTHERS: std::ops::RangeInclusive<u8> = 0x91..=0x9f;
/// The largest block that is looked at to its end, packed or not, in bytes. Clients and servers make some of 1 MiB.
const BLOCK_MAX: usize = 8 << 20;

/// The checksum of a block's other bytes, its lower half first.
pub(super) fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    cityhash_102_128(bytes).rotate_right(64).to_le_bytes()
}

/// Reads blocks, up to `most` bytes, and returns whether these are all. Those of another method are not read.
pub(super) fn beginning(packed: &[u8], out: &mut Vec<u8>, most: usize) -> bool {
    let mut left = packed;
    while let Some(after) = block(left, out, most) {
        if after.is_empty() {
            return true;
        }
        left = after;
    }
    false
}

/// Reads a block, and returns what follows. `None` if it does not come to its end.
fn block<'a>(packed: &'a [u8], out: &mut Vec<u8>, most: usize) -> Option<&'a [u8]> {
    let (head, left) = packed.get(CHECKSUM..)?.split_first_chunk::<HEAD>()?;
    let (method, size, unpacked) = told(head)?;
    let from = out.len();
    let piece = left.get(..size).unwrap_or(left);
    // Of plain bytes and of lz4, a server takes no more than is announced, and goes on with the next block.
    let most = most.min(from.saturating_add(unpacked));
    let is_whole = unpack(method, piece, out, most)?;
    (is_whole && out.len() - from == unpacked).then(|| left.get(size..)).flatten()
}

/// Method and sizes of a block, packed and not.
fn told(head: &[u8; HEAD]) -> Option<(u8, usize, usize)> {
    let (method, sizes) = head.split_first()?;
    let (size, sizes) = sizes.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_le_bytes(*size)).ok()?.checked_sub(HEAD)?;
    let unpacked = usize::try_from(u32::from_le_bytes(*sizes.first_chunk::<4>()?)).ok()?;
    Some((*method, size, unpacked))
}

/// Unpacks what is in a block, until `out` has `most` bytes; returns whether that was all. `None` if the method is not
/// known here.
fn unpack(method: u8, piece: &[u8], out: &mut Vec<u8>, most: usize) -> Option<bool> {
    Some(match method {
        PLAIN => lz4::raw(piece, out, most) == lz4::End::Whole,
        LZ4 => lz4::block(piece, out.len(), out, most) == lz4::End::Whole,
        ZSTD => {
            let room = most.saturating_sub(out.len());
            zstd::frame(piece, out, room).is_some_and(<[u8]>::is_empty)
        }
        _ => return None,
    })
}

/// Blocks that are read to their end, with their checksums.
pub(super) struct Blocks<R> {
    from: R,
    packed: Vec<u8>,
    out: Vec<u8>,
    /// What of `out` was handed on.
    at: usize,
}

impl<R: Read> Blocks<R> {
    pub(super) fn of(from: R) -> Self {
        Self { from, packed: Vec::new(), out: Vec::new(), at: 0 }
    }

    /// Reads the next block; returns false if there is none.
    fn next(&mut self) -> io::Result<bool> {
        self.at = 0;
        self.out.clear();
        self.fill(CHECKSUM + HEAD)?;
        if self.packed.is_empty() {
            return Ok(false);
        }
        let head = self.packed.get(CHECKSUM..).and_then(<[u8]>::first_chunk::<HEAD>);
        let head = head.ok_or(ErrorKind::UnexpectedEof)?;
        let (method, size, unpacked) = told(head).ok_or(ErrorKind::InvalidData)?;
        if !matches!(method, PLAIN | LZ4 | ZSTD) && !OTHERS.contains(&method) {
            return Err(ErrorKind::InvalidData.into());
        }
        let whole = CHECKSUM + HEAD + size;
        self.fill(whole.min(BLOCK_MAX))?;
        if self.packed.len() < whole.min(BLOCK_MAX) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if whole > BLOCK_MAX {
            return Err(ErrorKind::Unsupported.into());
        }
        let (checksum, checked) = self.packed.split_at_checked(CHECKSUM).unwrap_or_default();
        if self::checksum(checked) != checksum {
            return Err(ErrorKind::InvalidData.into());
        }
        let piece = checked.get(HEAD..).unwrap_or_default();
        if unpacked == 0 {
            return Err(ErrorKind::InvalidData.into());
        }
        if unpacked > BLOCK_MAX {
            return Err(ErrorKind::Unsupported.into());
        }
        let is_whole = unpack(method, piece, &mut self.out, unpacked);
        if !is_whole.ok_or(ErrorKind::Unsupported)? || self.out.len() != unpacked {
            return Err(ErrorKind::InvalidData.into());
        }
        self.packed.clear();
        Ok(true)
    }

    /// Reads until so many bytes of a block are here, or no more come.
    fn fill(&mut self, len: usize) -> io::Result<()> {
        let wanted = len.saturating_sub(self.packed.len()) as u64;
        self.from.by_ref().take(wanted).read_to_end(&mut self.packed).map(drop)
    }
}

impl<R: Read> Read for Blocks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.out.len() {
            if !self.next()? {
                return Ok(0);
            }
        }
        let count = self.out.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at += count;
        Ok(count)
    }
}
