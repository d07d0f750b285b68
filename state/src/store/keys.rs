//! The keys of everything in the store, and the limits of texts.

use super::error::StoreError;

/// Prefix of the chunks.
pub(super) const CHUNKS: u8 = b'c';
/// Prefix of the headers.
pub(super) const CALLS: u8 = b'q';
/// Prefix of the notes of sending.
pub(super) const SENDING: u8 = b's';
/// Prefix of the marks of dead letters.
pub(super) const DEAD: u8 = b'd';
/// Prefix of the history records.
pub(super) const HISTORY: u8 = b't';
/// Prefix of the removal records.
pub(super) const GONE: u8 = b'g';
/// Prefix of the packs.
pub(super) const PACKS: u8 = b'p';
/// Key of the head.
pub(super) const HEAD_KEY: &[u8] = b"h";
/// Name of the fact that holds the store's identity.
pub(super) const FACT_TARGET: &str = "store/target";

/// A prefix with a number, big-endian, so that keys sort as the numbers do.
pub(super) fn key(prefix: u8, number: u64) -> [u8; 9] {
    joined([prefix].into_iter().chain(number.to_be_bytes()))
}

/// The key of a chunk.
pub(super) fn chunk_key(seq: u64, index: u32) -> [u8; 13] {
    joined(key(CHUNKS, seq).into_iter().chain(index.to_be_bytes()))
}

fn joined<const N: usize>(parts: impl Iterator<Item = u8>) -> [u8; N] {
    let mut key = [0; N];
    key.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    key
}

/// The number in a key that [`key`] made.
pub(super) fn number_of(key: &[u8]) -> Option<u64> {
    let (_, number) = key.split_first()?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

/// Sequence and index in a key that [`chunk_key`] made.
pub(super) fn chunk_of(key: &[u8]) -> Option<(u64, u32)> {
    let (head, index) = key.split_last_chunk::<4>()?;
    Some((number_of(head)?, u32::from_be_bytes(*index)))
}

/// Refuses `bytes` above `limit`.
pub(super) fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), StoreError> {
    if bytes <= limit {
        return Ok(());
    }
    Err(StoreError::TooLarge { what, bytes: bytes as u64, limit: limit as u64 })
}

/// The longest start of `text` that has at most `limit` bytes.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}
