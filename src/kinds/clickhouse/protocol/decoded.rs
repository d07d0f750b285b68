//! The beginning of what a client packed: as much of it as its statement can be, and no more.
//!
//! | packed | how it is read |
//! | --- | --- |
//! | `Content-Encoding: gzip`, `deflate` | flate2 |
//! | `Content-Encoding: br` | brotli-decompressor, windows of at most 8 MiB |
//! | `Content-Encoding: zstd` | ruzstd, block by block ([`zstd`]) |
//! | `Content-Encoding: lz4` | [`lz4`], which stops once enough is read |
//! | `decompress=1` | ClickHouse's own blocks, of lz4, zstd or plain bytes ([`blocks`]) |
//!
//! The server may be sent both; then the blocks are what was encoded.
//!
//! Nothing is allocated because a header announces a size: what is read is at most [`MOST`] bytes, and its history is
//! what was read before. Checksums are the server's affair: a body whose checksum is wrong changes nothing there. What
//! is about to be queued is read [to its end](whole), and its checksums are looked at.

use std::io::Read;

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::bufread::{GzDecoder, ZlibDecoder};
use serde::{Deserialize, Serialize};

mod blocks;
mod lz4;
pub(crate) mod whole;
mod zstd;

/// The most that is read, in bytes.
pub(crate) const MOST: usize = 64 << 10;
/// So much of a packed body is enough to unpack its beginning, in bytes: of a block of zstd, nothing can be read before
/// all of it is here, and it has up to 128 KiB. Anything else is read from its first byte on.
pub(crate) const PACKED_MOST: usize = 192 << 10;

/// How a body is packed.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
pub(crate) struct Packing {
    /// Its `Content-Encoding`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) coding: Option<Coding>,
    /// It is in ClickHouse's own blocks, as `decompress=1` says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) blocks: bool,
}

/// A `Content-Encoding` that is read here.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, bincode::Encode, bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Coding {
    Gzip,
    Deflate,
    Zstd,
    Br,
    Lz4,
}

/// The beginning of what was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) bytes: Vec<u8>,
    /// That is all of it, and nothing is behind it. False also if it is damaged.
    pub(crate) is_all: bool,
}

impl Coding {
    pub(crate) const ALL: [(&str, Self); 5] = [
        ("gzip", Self::Gzip),
        ("deflate", Self::Deflate),
        ("zstd", Self::Zstd),
        ("br", Self::Br),
        ("lz4", Self::Lz4),
    ];

    /// The encoding of this name, as the server spells it.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(it, _)| *it == name).map(|(_, coding)| coding)
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        let named = Self::ALL.into_iter().find(|(_, it)| *it == self);
        named.map_or("identity", |(name, _)| name)
    }
}

/// The beginning of what `packed` is, which may be a beginning itself.
pub(crate) fn beginning(packing: Packing, packed: &[u8]) -> Decoded {
    let Some(coding) = packing.coding else {
        return if packing.blocks {
            of_blocks(packed)
        } else {
            Decoded {
                bytes: packed.get(..MOST).unwrap_or(packed).to_vec(),
                is_all: packed.len() <= MOST,
            }
        };
    };
    let decoded = match coding {
        Coding::Gzip => {
            let mut reader = GzDecoder::new(packed);
            let decoded = read(&mut reader);
            ended(decoded, reader.into_inner())
        }
        Coding::Deflate => {
            let mut reader = ZlibDecoder::new(packed);
            let decoded = read(&mut reader);
            ended(decoded, reader.into_inner())
        }
        Coding::Br => brotli(packed),
        Coding::Zstd => {
            let mut bytes = Vec::new();
            let behind = zstd::frame(packed, &mut bytes, MOST);
            ended(Decoded { bytes, is_all: behind.is_some() }, behind.unwrap_or_default())
        }
        Coding::Lz4 => {
            let mut bytes = Vec::new();
            let is_all = lz4::frame(packed, &mut bytes, MOST) == lz4::End::Whole;
            Decoded { bytes, is_all }
        }
    };
    if !packing.blocks {
        return decoded;
    }
    let blocks = of_blocks(&decoded.bytes);
    Decoded { is_all: blocks.is_all && decoded.is_all, ..blocks }
}

fn of_blocks(packed: &[u8]) -> Decoded {
    let mut bytes = Vec::new();
    let is_all = blocks::beginning(packed, &mut bytes, MOST);
    Decoded { bytes, is_all }
}

/// As much as `decoder` gives, and whether that was all.
fn read(decoder: &mut impl Read) -> Decoded {
    let mut bytes = Vec::new();
    // What came before an error is kept.
    let end = decoder.take(MOST as u64 + 1).read_to_end(&mut bytes);
    let is_all = end.is_ok() && bytes.len() <= MOST;
    bytes.truncate(MOST);
    Decoded { bytes, is_all }
}

/// A server goes on with what is behind the end.
fn ended(decoded: Decoded, behind: &[u8]) -> Decoded {
    Decoded { is_all: decoded.is_all && behind.is_empty(), ..decoded }
}

/// Whether a stream of brotli that begins so has a window of 16 MiB.
fn is_too_wide(first: u8) -> bool {
    first & 0xf == 0xf
}

fn brotli(packed: &[u8]) -> Decoded {
    if packed.first().is_none_or(|first| is_too_wide(*first)) {
        return Decoded::default();
    }
    let memory = StandardAlloc::default;
    let mut state = BrotliState::new(memory(), memory(), memory());
    let (mut left, mut at) = (packed.len(), 0);
    let mut bytes = vec![0; MOST + 1];
    let (mut room, mut len, mut total) = (bytes.len(), 0, 0);
    let end = BrotliDecompressStream(
        &mut left, &mut at, packed, &mut room, &mut len, &mut bytes, &mut total, &mut state,
    );
    let is_all = matches!(end, BrotliResult::ResultSuccess) && left == 0 && len <= MOST;
    bytes.truncate(len.min(MOST));
    Decoded { bytes, is_all }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
