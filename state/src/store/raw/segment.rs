//! How sled 0.34 divides its log: segments, and the messages in them. The picture is in the [module above](super).

/// Bytes of a segment.
pub(in crate::store) const SEGMENT: usize = 512 * 1024;
/// Bytes of a segment's header.
const SEGMENT_HEADER: usize = 20;
/// The longest header of a message; nothing begins closer to a segment's end.
const MESSAGE_HEADER_MAX: usize = 32;

/// A segment's header and the extent of its messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) lsn: i64,
    pub(super) stable: i64,
    /// The end of its messages, and whether that is the right one.
    pub(super) end: usize,
    pub(super) whole: bool,
}

impl Segment {
    /// Follows the messages of the segment in `data`, which was read at `offset`. `Ok(None)` if it was never written;
    /// the error says what is wrong with it.
    pub(super) fn follow(data: &[u8], offset: u64) -> Result<Option<Self>, String> {
        let damaged = |what: String| {
            let is_written = data.iter().any(|byte| *byte != 0);
            if is_written { Err(what) } else { Ok(None) }
        };
        let Some(header) = data.first_chunk::<SEGMENT_HEADER>() else {
            return damaged(format!("the log ends within a segment's header at {offset}"));
        };
        let Some((lsn, stable)) = segment_header(header) else {
            return damaged(format!("the header of the segment at {offset} is damaged"));
        };
        let (end, whole) = messages(data, lsn);
        Ok(Some(Self { offset, lsn, stable, end, whole }))
    }
}

/// The numbers in a segment's header, if its checksum is right.
fn segment_header(header: &[u8; SEGMENT_HEADER]) -> Option<(i64, i64)> {
    let [c0, c1, c2, c3, l0, l1, l2, l3, l4, l5, l6, l7, s0, s1, s2, s3, s4, s5, s6, s7] = *header;
    let crc = !u32::from_le_bytes([c0, c1, c2, c3]);
    let number = |bytes| i64::from_le_bytes(bytes) ^ i64::MAX;
    (crc32fast::hash(header.get(4..)?) == crc).then(|| {
        (number([l0, l1, l2, l3, l4, l5, l6, l7]), number([s0, s1, s2, s3, s4, s5, s6, s7]))
    })
}

/// The end of a segment's messages, and whether that is its end.
fn messages(data: &[u8], lsn: i64) -> (usize, bool) {
    let number = u64::try_from(lsn).unwrap_or_default() / SEGMENT as u64;
    let mut at = SEGMENT_HEADER;
    loop {
        if at + MESSAGE_HEADER_MAX > SEGMENT {
            return (at, true);
        }
        match message(data.get(at..).unwrap_or_default(), number) {
            Some((_, true)) => return (at, true),
            Some((length, false)) => at += length,
            None => return (at, false),
        }
    }
}

/// Length of the message at the start of `bytes`, and whether it is a segment's last. `None` if there is none.
fn message(bytes: &[u8], number: u64) -> Option<(usize, bool)> {
    const CORRUPTED: u8 = 0;
    const CAP: u8 = 2;
    const LAST_KIND: u8 = 11;
    let (crc, rest) = bytes.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first()?;
    if *kind == CORRUPTED || *kind > LAST_KIND {
        return None;
    }
    let (length, rest) = varint(rest)?;
    let (segment, rest) = varint(rest)?;
    let (_page, rest) = varint(rest)?;
    let body = rest.get(..usize::try_from(length).ok()?)?;
    let header = bytes.get(4..bytes.len() - rest.len())?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(body);
    hasher.update(header);
    let is_whole = hasher.finalize() == !u32::from_le_bytes(*crc) && segment == number;
    is_whole.then_some((4 + header.len() + body.len(), *kind == CAP))
}

/// A number as sled packs it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    match *first {
        0..=240 => Some((u64::from(*first), rest)),
        241..=248 => {
            let (second, rest) = rest.split_first()?;
            Some((240 + 256 * (u64::from(*first) - 241) + u64::from(*second), rest))
        }
        249 => {
            let ([high, low], rest) = rest.split_first_chunk()?;
            Some((2288 + 256 * u64::from(*high) + u64::from(*low), rest))
        }
        size => {
            let (digits, rest) = rest.split_at_checked(usize::from(size) - 247)?;
            let number =
                digits.iter().rev().fold(0, |number, digit| number << 8 | u64::from(*digit));
            Some((number, rest))
        }
    }
}
