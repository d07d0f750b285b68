//! LZ4, as far as enough is read, or block by block to its end.
//!
//! `lz4_flex` decodes a block only into room for all of it, whose size the sender announces; this stops wherever enough
//! is read.

use std::io::{self, ErrorKind, Read};

use xxhash_rust::xxh32::{Xxh32, xxh32};

const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// How a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All of it was read.
    Whole,
    /// There is more, or it is damaged.
    Cut,
}

/// What is left of some bytes.
struct Left<'a>(&'a [u8]);

impl<'a> Left<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, left) = self.0.split_first()?;
        self.0 = left;
        Some(*first)
    }

    fn needed(&mut self) -> io::Result<u8> {
        self.byte().ok_or(ErrorKind::UnexpectedEof.into())
    }

    fn number(&mut self) -> Option<u32> {
        let (bytes, left) = self.0.split_first_chunk::<4>()?;
        self.0 = left;
        Some(u32::from_le_bytes(*bytes))
    }

    /// A length that begins in four bits of a token.
    fn length(&mut self, bits: u8) -> Option<usize> {
        let mut length = usize::from(bits);
        let mut more = bits == 15;
        while more {
            let byte = self.byte()?;
            length = length.saturating_add(usize::from(byte));
            more = byte == u8::MAX;
        }
        Some(length)
    }
}

/// How far back a match may reach.
const HISTORY: usize = 64 << 10;

/// A frame that is read to its end, with its checksums. What is behind it is left.
pub(super) struct Frame<'a> {
    /// The bytes behind what was read.
    pub(super) left: &'a [u8],
    flags: u8,
    /// The most that a block may become.
    block_max: usize,
    /// The whole size, if the frame says it.
    size: Option<u64>,
    /// The history, and the block that was read last.
    out: Vec<u8>,
    /// What of that was handed on.
    at: usize,
    read: u64,
    check: Xxh32,
    is_over: bool,
}

impl<'a> Frame<'a> {
    /// The frame with which `packed` begins.
    ///
    /// # Errors
    /// It is none, or of a kind that is not read here.
    pub(super) fn of(packed: &'a [u8]) -> io::Result<Self> {
        let mut left = Left(packed);
        if left.take(4).ok_or(ErrorKind::UnexpectedEof)? != MAGIC {
            return Err(ErrorKind::InvalidData.into());
        }
        let described = left.0;
        let (flags, sizes) = (left.needed()?, left.needed()?);
        if flags >> 6 != 1 || flags & 1 > 0 {
            return Err(ErrorKind::Unsupported.into());
        }
        let size = if flags & 8 > 0 {
            let bytes = left.take(8).ok_or(ErrorKind::UnexpectedEof)?;
            bytes.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes))
        } else {
            None
        };
        let described = described.get(..described.len() - left.0.len()).unwrap_or_default();
        let [_, check, ..] = xxh32(described, 0).to_le_bytes();
        let block_max = match sizes >> 4 & 7 {
            4 => 64 << 10,
            5 => 256 << 10,
            6 => 1 << 20,
            7 => 4 << 20,
            _ => 0,
        };
        if left.needed()? != check || block_max == 0 {
            return Err(ErrorKind::InvalidData.into());
        }
        let check = Xxh32::new(0);
        let (out, at, read, is_over) = (Vec::new(), 0, 0, false);
        Ok(Self { left: left.0, flags, block_max, size, out, at, read, check, is_over })
    }

    fn has(&self, bit: u8) -> bool {
        self.flags & bit > 0
    }

    /// Reads the next block, or what is behind the last one.
    fn next(&mut self) -> io::Result<()> {
        let mut left = Left(self.left);
        let head = left.number().ok_or(ErrorKind::UnexpectedEof)?;
        if head == 0 {
            let is_checked = self.has(4);
            let differs = |check: u32| check != self.check.digest();
            if is_checked && differs(left.number().ok_or(ErrorKind::UnexpectedEof)?)
                || self.size.is_some_and(|size| size != self.read)
            {
                return Err(ErrorKind::InvalidData.into());
            }
            self.is_over = true;
            self.left = left.0;
            return Ok(());
        }
        let size = usize::try_from(head & 0x7fff_ffff).unwrap_or(usize::MAX);
        let piece = left.take(size).ok_or(ErrorKind::UnexpectedEof)?;
        if self.has(0x10) && left.number().ok_or(ErrorKind::UnexpectedEof)? != xxh32(piece, 0) {
            return Err(ErrorKind::InvalidData.into());
        }
        let kept = if self.has(0x20) { 0 } else { self.out.len().min(HISTORY) };
        self.out.drain(..self.out.len() - kept);
        self.at = kept;
        let most = kept + self.block_max;
        let end = if head >> 31 == 1 {
            raw(piece, &mut self.out, most)
        } else {
            block(piece, 0, &mut self.out, most)
        };
        if end == End::Cut {
            return Err(ErrorKind::InvalidData.into());
        }
        let new = self.out.get(kept..).unwrap_or_default();
        self.read += new.len() as u64;
        if self.has(4) {
            self.check.update(new);
        }
        self.left = left.0;
        Ok(())
    }
}

impl Read for Frame<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.out.len() && !self.is_over {
            self.next()?;
        }
        let count = self.out.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

/// Reads a frame, up to `most` bytes.
pub(super) fn frame(packed: &[u8], out: &mut Vec<u8>, most: usize) -> End {
    read_frame(packed, out, most).unwrap_or(End::Cut)
}

/// `None` if it is cut short, or no frame.
fn read_frame(packed: &[u8], out: &mut Vec<u8>, most: usize) -> Option<End> {
    let mut left = Left(packed);
    (left.take(4)? == MAGIC).then_some(())?;
    let (flags, _size_max) = (left.byte()?, left.byte()?);
    let has = |bit: u8| flags & bit > 0;
    // Another version, or a dictionary that is not here.
    if flags >> 6 != 1 || has(1) {
        return None;
    }
    left.take(if has(8) { 8 } else { 0 })?;
    let _header_checksum = left.byte()?;
    loop {
        let head = left.number()?;
        if head == 0 {
            left.take(if has(4) { 4 } else { 0 })?;
            return Some(if left.0.is_empty() { End::Whole } else { End::Cut });
        }
        let size = usize::try_from(head & 0x7fff_ffff).ok()?;
        let (piece, is_cut) = left.0.get(..size).map_or((left.0, true), |piece| (piece, false));
        let ended = if head >> 31 == 1 {
            raw(piece, out, most)
        } else {
            let from = if has(0x20) { out.len() } else { 0 };
            block(piece, from, out, most)
        };
        if ended == End::Cut || is_cut {
            return Some(End::Cut);
        }
        left.take(size)?;
        left.take(if has(0x10) { 4 } else { 0 })?;
    }
}

/// Copies bytes that are not packed.
pub(super) fn raw(piece: &[u8], out: &mut Vec<u8>, most: usize) -> End {
    let room = most.saturating_sub(out.len());
    out.extend_from_slice(piece.get(..room).unwrap_or(piece));
    if piece.len() <= room { End::Whole } else { End::Cut }
}

/// Reads a block, whose history begins at `from`.
pub(super) fn block(packed: &[u8], from: usize, out: &mut Vec<u8>, most: usize) -> End {
    read_block(packed, from, out, most).unwrap_or(End::Cut)
}

/// `None` if it is cut short, or damaged.
fn read_block(packed: &[u8], from: usize, out: &mut Vec<u8>, most: usize) -> Option<End> {
    let mut left = Left(packed);
    loop {
        let token = left.byte()?;
        let literals = left.length(token >> 4)?;
        let there = literals.min(left.0.len());
        if raw(left.take(there)?, out, most) == End::Cut || there < literals {
            return Some(End::Cut);
        }
        if left.0.is_empty() {
            // The last sequence has no match.
            return Some(End::Whole);
        }
        let offset = u16::from_le_bytes([left.byte()?, left.byte()?]);
        let start = out.len().checked_sub(usize::from(offset)).filter(|at| *at >= from)?;
        let length = left.length(token & 0xf)?.saturating_add(4);
        if offset == 0 {
            return None;
        }
        for at in (start..).take(length) {
            if out.len() >= most {
                return Some(End::Cut);
            }
            let byte = *out.get(at)?;
            out.push(byte);
        }
    }
}
