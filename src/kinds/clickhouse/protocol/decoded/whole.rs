//! Whether what a client packed can be unpacked to its end, with its checksums.
//!
//! Looked at is what is about to be queued, which no server has seen yet. It is unpacked piece by piece: held of it are
//! a window of at most 8 MiB, a block of ClickHouse's own of at most 8 MiB, and the piece on its way. What becomes
//! longer than [`CEILING`], or would need more room, is not looked at any further.

use std::io::{self, ErrorKind, Read};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::bufread::{GzDecoder, ZlibDecoder};

use super::{Coding, Packing, blocks::Blocks, lz4, zstd};

/// How much is unpacked at most, in bytes.
const CEILING: u64 = 64 << 20;
/// What is unpacked at once.
const PIECE: usize = 64 << 10;

/// What is wrong with a packed body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// The encoding in which it is; `None` for ClickHouse's own blocks.
    pub(crate) of: Option<Coding>,
    /// It ends too soon. Else it is damaged, or something is behind its end.
    pub(crate) is_cut: bool,
}

/// Unpacks `packed` and gives `each` piece as it comes. Returns whether that was done to its end: not so if it becomes
/// too long, or is packed in a way that is not read here.
///
/// A server takes several streams behind one another for one, except those of brotli, and no bytes for none. It also
/// takes zstd and lz4 that are cut off, and writes nothing: that is a flaw here.
///
/// # Errors
/// It cannot be unpacked.
pub(crate) fn unpack(
    packing: Packing,
    mut packed: &[u8],
    mut each: impl FnMut(&[u8]),
) -> Result<bool, Flaw> {
    if packed.is_empty() {
        return Ok(true);
    }
    let Some(coding) = packing.coding else {
        return judged(drain(Blocks::of(&mut packed), &mut each), None);
    };
    let mut coded = Coded { coding, decoder: Decoder::of(coding, packed), is_wrong: false };
    let end = if packing.blocks {
        drain(Blocks::of(&mut coded), &mut each)
    } else {
        drain(&mut coded, &mut each)
    };
    // What is wrong with the encoding shows in the blocks as well.
    let is_of_coding = coded.is_wrong || !packing.blocks;
    judged(end, Some(coding).filter(|_| is_of_coding))
}

/// Reads to the end, or beyond [`CEILING`]; returns which.
fn drain(mut from: impl Read, each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    let mut piece = vec![0; PIECE];
    let mut read = 0;
    while read <= CEILING {
        let count = from.read(&mut piece)?;
        if count == 0 {
            return Ok(true);
        }
        each(piece.get(..count).unwrap_or_default());
        read += count as u64;
    }
    Ok(false)
}

fn judged(end: io::Result<bool>, of: Option<Coding>) -> Result<bool, Flaw> {
    end.or_else(|error| match error.kind() {
        ErrorKind::Unsupported => Ok(false),
        ErrorKind::UnexpectedEof => Err(Flaw { of, is_cut: true }),
        _ => Err(Flaw { of, is_cut: false }),
    })
}

/// A body without its encoding.
struct Coded<'a> {
    coding: Coding,
    decoder: io::Result<Decoder<'a>>,
    is_wrong: bool,
}

enum Decoder<'a> {
    Gzip(GzDecoder<&'a [u8]>),
    Deflate(ZlibDecoder<&'a [u8]>),
    Br(Box<Brotli<'a>>),
    Zstd(zstd::Frame<'a>),
    Lz4(lz4::Frame<'a>),
}

impl<'a> Decoder<'a> {
    fn of(coding: Coding, packed: &'a [u8]) -> io::Result<Self> {
        Ok(match coding {
            Coding::Gzip => Self::Gzip(GzDecoder::new(packed)),
            Coding::Deflate => Self::Deflate(ZlibDecoder::new(packed)),
            Coding::Br => Self::Br(Box::new(Brotli::of(packed)?)),
            // Frames of neither kind, which are passed over.
            Coding::Zstd | Coding::Lz4 if matches!(packed, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) => {
                return Err(ErrorKind::Unsupported.into());
            }
            Coding::Zstd => Self::Zstd(zstd::Frame::of(packed)?),
            Coding::Lz4 => Self::Lz4(lz4::Frame::of(packed)?),
        })
    }

    /// The bytes behind what was read.
    fn left(&self) -> &'a [u8] {
        match self {
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Deflate(decoder) => decoder.get_ref(),
            Self::Br(decoder) => decoder.left,
            Self::Zstd(frame) => frame.left,
            Self::Lz4(frame) => frame.left,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Deflate(decoder) => decoder.read(buffer),
            Self::Br(decoder) => decoder.read(buffer),
            Self::Zstd(frame) => frame.read(buffer),
            Self::Lz4(frame) => frame.read(buffer),
        }
    }
}

impl Coded<'_> {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let decoder = self.decoder.as_mut().map_err(|error| error.kind())?;
            let count = decoder.read(buffer)?;
            let left = decoder.left();
            if count > 0 || left.is_empty() {
                return Ok(count);
            }
            if self.coding == Coding::Br {
                return Err(ErrorKind::InvalidData.into());
            }
            self.decoder = Decoder::of(self.coding, left);
        }
    }
}

impl Read for Coded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.try_read(buffer);
        self.is_wrong |= read.is_err();
        read
    }
}

/// A stream of brotli.
struct Brotli<'a> {
    left: &'a [u8],
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    is_over: bool,
}

impl<'a> Brotli<'a> {
    fn of(packed: &'a [u8]) -> io::Result<Self> {
        let first = packed.first().ok_or(ErrorKind::UnexpectedEof)?;
        if super::is_too_wide(*first) {
            return Err(ErrorKind::Unsupported.into());
        }
        let memory = StandardAlloc::default;
        let state = BrotliState::new(memory(), memory(), memory());
        Ok(Self { left: packed, state, is_over: false })
    }
}

impl Read for Brotli<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_over {
            return Ok(0);
        }
        let (mut left, mut at) = (self.left.len(), 0);
        let (mut room, mut len, mut total) = (buffer.len(), 0, 0);
        let end = BrotliDecompressStream(
            &mut left,
            &mut at,
            self.left,
            &mut room,
            &mut len,
            buffer,
            &mut total,
            &mut self.state,
        );
        self.left = self.left.get(at..).unwrap_or_default();
        match end {
            BrotliResult::ResultSuccess => self.is_over = true,
            BrotliResult::NeedsMoreInput if len == 0 => return Err(ErrorKind::UnexpectedEof.into()),
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
            BrotliResult::ResultFailure => return Err(ErrorKind::InvalidData.into()),
        }
        Ok(len)
    }
}
