//! A zstd frame, as far as enough is read, or to its end.
//!
//! A decoder reserves room for the frame's window, and holds back as much, which may be all there is. So it is given
//! a head that announces the smallest window into which any block fits, and then block by block. Once enough is read,
//! an empty last block makes it hand out what it holds. All that was read is kept, so references may reach back to the
//! beginning whatever window they were made for.

use std::io::{self, ErrorKind, Read};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder, errors::FrameDecoderError};
use xxhash_rust::xxh64::Xxh64;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// A head that announces nothing but a window of 128 KiB, which is the most that a block may have.
const HEAD: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
/// A block of nothing, the last one.
const LAST: [u8; 3] = [1, 0, 0];

/// The largest window of a frame that is read to its end: so much is held of it.
const WINDOW_MAX: u64 = 8 << 20;

/// A frame that is read to its end, with its checksum. What is behind it is left.
pub(super) struct Frame<'a> {
    /// The bytes behind what was read.
    pub(super) left: &'a [u8],
    decoder: Box<FrameDecoder>,
    read: u64,
    check: Xxh64,
    is_over: bool,
}

impl<'a> Frame<'a> {
    /// The frame with which `packed` begins.
    ///
    /// # Errors
    /// It is none, or of a kind that is not read here.
    pub(super) fn of(packed: &'a [u8]) -> io::Result<Self> {
        let mut left = packed;
        let mut decoder = Box::new(FrameDecoder::new());
        decoder.set_max_window_size(WINDOW_MAX);
        decoder.init(&mut left).map_err(|error| match error {
            FrameDecoderError::WindowSizeTooBig { .. }
            | FrameDecoderError::DictNotProvided { .. } => ErrorKind::Unsupported,
            _ if left.is_empty() => ErrorKind::UnexpectedEof,
            _ => ErrorKind::InvalidData,
        })?;
        Ok(Self { left, decoder, read: 0, check: Xxh64::new(0), is_over: false })
    }

    /// Reads the next block, or looks at the end.
    fn next(&mut self) -> io::Result<()> {
        if !self.decoder.is_finished() {
            let read =
                self.decoder.decode_blocks(&mut self.left, BlockDecodingStrategy::UptoBlocks(1));
            let why = if self.left.is_empty() {
                ErrorKind::UnexpectedEof
            } else {
                ErrorKind::InvalidData
            };
            return read.map(drop).map_err(|_| why.into());
        }
        let size = Some(self.decoder.content_size()).filter(|size| *size > 0);
        let check = self.check.digest() & u64::from(u32::MAX);
        let differs = |stored: u32| u64::from(stored) != check;
        if self.decoder.get_checksum_from_data().is_some_and(differs)
            || size.is_some_and(|size| size != self.read)
        {
            return Err(ErrorKind::InvalidData.into());
        }
        self.is_over = true;
        Ok(())
    }
}

impl Read for Frame<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.decoder.can_collect() == 0 && !self.is_over {
            self.next()?;
        }
        let count = if self.is_over { 0 } else { self.decoder.read(buffer)? };
        self.read += count as u64;
        self.check.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Reads a frame, up to `most` bytes. Returns what is behind it; `None` if it does not come to its end here.
pub(super) fn frame<'a>(packed: &'a [u8], out: &mut Vec<u8>, most: usize) -> Option<&'a [u8]> {
    let (mut left, checksum) = blocks_of(packed)?;
    let mut decoder = FrameDecoder::new();
    decoder.init(&HEAD[..]).ok()?;
    let mut behind = None;
    // It says so only of what is before the window.
    while decoder.can_collect() <= most {
        let Some((head, body, after)) = next(left) else { break };
        let is_last = head & 1 == 1;
        // The last one is read as any other.
        let [low, middle, high, _] = (head & !1).to_le_bytes();
        let head = [low, middle, high];
        if read(&mut decoder, (&head[..]).chain(body)).is_none() {
            break;
        }
        left = after;
        if is_last {
            behind = left.get(checksum..);
            break;
        }
    }
    read(&mut decoder, &LAST[..])?;
    let mut bytes = decoder.collect().unwrap_or_default();
    let is_all = bytes.len() <= most;
    bytes.truncate(most);
    out.extend_from_slice(&bytes);
    behind.filter(|_| is_all)
}

fn read(decoder: &mut FrameDecoder, block: impl Read) -> Option<bool> {
    decoder.decode_blocks(block, BlockDecodingStrategy::UptoBlocks(1)).ok()
}

/// The blocks of a frame, and how long its checksum is. `None` for one with a dictionary, and what is not a frame.
fn blocks_of(packed: &[u8]) -> Option<(&[u8], usize)> {
    let (flags, left) = packed.strip_prefix(&MAGIC)?.split_first()?;
    let is_single = flags & 0x20 > 0;
    let window = usize::from(!is_single);
    let size = match flags >> 6 {
        0 => usize::from(is_single),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let has_dictionary = flags & 3 > 0;
    let left = left.get(window + size..).filter(|_| !has_dictionary)?;
    Some((left, if flags & 4 > 0 { 4 } else { 0 }))
}

/// The next block: its head, its bytes, and what follows. `None` if it is not here whole.
fn next(left: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let ([low, middle, high], left) = left.split_first_chunk::<3>()?;
    let head = u32::from_le_bytes([*low, *middle, *high, 0]);
    // One byte that is repeated has a size as well.
    let size = if head >> 1 & 3 == 1 { 1 } else { usize::try_from(head >> 3).ok()? };
    let (body, left) = left.split_at_checked(size)?;
    Some((head, body, left))
}
