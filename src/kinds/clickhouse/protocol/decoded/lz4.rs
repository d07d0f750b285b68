//! LZ4, as far as enough is read.
//!
//! `lz4_flex` decodes a block only into room for all of it, whose size the sender announces; this stops wherever enough
//! is read.

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
