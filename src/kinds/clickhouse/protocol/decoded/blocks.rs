//! ClickHouse's own blocks.
//!
//! ```text
//! checksum, 16 bytes │ method, 1 │ size with these 9 bytes, 4 │ size once unpacked, 4 │ packed bytes
//! ```
//! The checksum is a `CityHash128` of an old version, which no crate has that is kept up; the server looks at it.

use super::{lz4, zstd};

pub(super) const CHECKSUM: usize = 16;
/// Method and sizes, which the first size counts.
const HEAD: usize = 9;
const PLAIN: u8 = 0x02;
const LZ4: u8 = 0x82;
const ZSTD: u8 = 0x90;

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
    let (method, sizes) = head.split_first()?;
    let (size, sizes) = sizes.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_le_bytes(*size)).ok()?.checked_sub(HEAD)?;
    let unpacked = usize::try_from(u32::from_le_bytes(*sizes.first_chunk::<4>()?)).ok()?;
    let from = out.len();
    let piece = left.get(..size).unwrap_or(left);
    let is_whole = match *method {
        PLAIN => lz4::raw(piece, out, most) == lz4::End::Whole,
        LZ4 => lz4::block(piece, from, out, most) == lz4::End::Whole,
        ZSTD => {
            let room = most.saturating_sub(from);
            zstd::frame(piece, out, room).is_some_and(<[u8]>::is_empty)
        }
        _ => false,
    };
    (is_whole && out.len() - from == unpacked).then(|| left.get(size..)).flatten()
}
