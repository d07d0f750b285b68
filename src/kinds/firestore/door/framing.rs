//! Finds the messages of a stream, whatever pieces they come in.
//!
//! gRPC puts five bytes before each message: whether it is compressed, and how long it is.

use bytes::{BufMut, Bytes, BytesMut};

/// The largest message of a request, in bytes, as Firestore has it.
pub(in crate::kinds::firestore) const MESSAGE_MAX: u32 = 10 << 20;

/// What is before each message.
pub(in crate::kinds::firestore) const PREFIX: usize = 5;

/// A message is longer than [`MESSAGE_MAX`]; how long it says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kinds::firestore) struct TooLong(pub(in crate::kinds::firestore) u32);

/// Follows a stream.
#[derive(Debug, Default)]
pub(in crate::kinds::firestore) struct Framing {
    prefix: [u8; PREFIX],
    /// How much of the prefix is here.
    here: usize,
    /// How long the message is.
    length: usize,
    /// How much of it is still to come.
    left: usize,
    /// Messages that came whole.
    whole: u64,
}

impl Framing {
    /// Follows the next piece. Nothing is kept of it.
    pub(in crate::kinds::firestore) fn feed(&mut self, mut piece: &[u8]) -> Result<(), TooLong> {
        while !piece.is_empty() {
            if self.left > 0 {
                let (_, rest) = piece.split_at(self.left.min(piece.len()));
                self.left -= piece.len() - rest.len();
                piece = rest;
                self.whole += u64::from(self.left == 0);
                continue;
            }
            let [byte, rest @ ..] = piece else { break };
            if let Some(slot) = self.prefix.get_mut(self.here) {
                *slot = *byte;
            }
            (self.here, piece) = (self.here + 1, rest);
            if self.here == PREFIX {
                let [_, length @ ..] = self.prefix;
                let length = u32::from_be_bytes(length);
                if length > MESSAGE_MAX {
                    return Err(TooLong(length));
                }
                self.length = usize::try_from(length).unwrap_or(usize::MAX);
                (self.here, self.left) = (0, self.length);
                self.whole += u64::from(length == 0);
            }
        }
        Ok(())
    }

    /// Messages that came whole.
    pub(in crate::kinds::firestore) fn whole(&self) -> u64 {
        self.whole
    }

    /// Whether nothing of a message is missing.
    pub(in crate::kinds::firestore) fn is_between(&self) -> bool {
        self.begun() == 0
    }

    /// How many bytes are here of a message that is not whole.
    pub(in crate::kinds::firestore) fn begun(&self) -> usize {
        if self.left > 0 { PREFIX + self.length - self.left } else { self.here }
    }
}

/// Puts the messages of a stream together, whatever pieces they come in.
#[derive(Debug, Default)]
pub(in crate::kinds::firestore) struct Gathered {
    /// The beginning of a message.
    begun: BytesMut,
}

impl Gathered {
    /// The beginning of a message, which came in these pieces.
    pub(in crate::kinds::firestore) fn of(pieces: impl Iterator<Item = Bytes>) -> Self {
        let mut begun = BytesMut::new();
        pieces.for_each(|piece| begun.extend_from_slice(&piece));
        Self { begun }
    }

    /// The messages that are whole with the next piece, framed as they came.
    pub(in crate::kinds::firestore) fn feed(&mut self, piece: Bytes) -> Result<Bytes, TooLong> {
        let mut all = piece;
        if !self.begun.is_empty() {
            self.begun.extend_from_slice(&all);
            if whole(&self.begun)? == 0 {
                return Ok(Bytes::new());
            }
            all = self.begun.split().freeze();
        }
        let messages = all.split_to(whole(&all)?);
        self.begun.extend_from_slice(&all);
        Ok(messages)
    }

    /// How long the message is that has begun, as far as that is known.
    pub(in crate::kinds::firestore) fn wanted(&self) -> usize {
        framed_length(&self.begun).unwrap_or(self.begun.len())
    }

    /// Whether nothing of a message is missing.
    pub(in crate::kinds::firestore) fn is_between(&self) -> bool {
        self.begun.is_empty()
    }
}

/// How long the first message is, with what frames it.
pub(in crate::kinds::firestore) fn framed_length(bytes: &[u8]) -> Option<usize> {
    let [_, length @ ..] = *bytes.first_chunk::<PREFIX>()?;
    Some(PREFIX + usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX - PREFIX))
}

/// How much of that is whole messages.
fn whole(bytes: &[u8]) -> Result<usize, TooLong> {
    let mut rest = bytes;
    while let Some(length) = framed_length(rest) {
        let message = u32::try_from(length - PREFIX).unwrap_or(u32::MAX);
        if message > MESSAGE_MAX {
            return Err(TooLong(message));
        }
        let Some(next) = rest.get(length..) else { break };
        rest = next;
    }
    Ok(bytes.len() - rest.len())
}

/// Takes the first of whole messages, framed as it came, and what is in it; `None` in place of that if it is
/// compressed.
pub(in crate::kinds::firestore) fn take_first(
    messages: &mut Bytes,
) -> Option<(Bytes, Option<Bytes>)> {
    let length = framed_length(messages)?.min(messages.len());
    let framed = messages.split_to(length);
    let is_plain = framed.first() == Some(&0);
    let message = is_plain.then(|| framed.slice(PREFIX..));
    Some((framed, message))
}

/// The first message of what begins with `bytes`, if it is there whole and not compressed.
pub(in crate::kinds::firestore) fn first_message(bytes: &[u8]) -> Option<&[u8]> {
    let (prefix, rest) = bytes.split_at_checked(PREFIX)?;
    let [0, length @ ..] = <[u8; PREFIX]>::try_from(prefix).ok()? else { return None };
    rest.get(..usize::try_from(u32::from_be_bytes(length)).ok()?)
}

/// The messages of what is one after another, whole and not compressed. `None` if it is not.
pub(in crate::kinds::firestore) fn messages(bytes: &Bytes) -> Option<Vec<Bytes>> {
    let (mut messages, mut rest) = (Vec::new(), bytes.clone());
    while !rest.is_empty() {
        let message = first_message(&rest)?;
        let length = message.len();
        messages.push(rest.slice_ref(message));
        rest = rest.slice(PREFIX + length..);
    }
    Some(messages)
}

/// The last of the messages that are one after another, whole and not compressed. `None` if they are not, or there is
/// none.
pub(in crate::kinds::firestore) fn last_message(mut bytes: &[u8]) -> Option<&[u8]> {
    let mut last = None;
    while !bytes.is_empty() {
        let message = first_message(bytes)?;
        bytes = bytes.get(PREFIX + message.len()..)?;
        last = Some(message);
    }
    last
}

/// Messages as they go over the wire.
pub(in crate::kinds::firestore) fn framed(messages: &[Bytes]) -> Bytes {
    let size = messages.iter().map(|message| PREFIX + message.len()).sum();
    let mut bytes = BytesMut::with_capacity(size);
    for message in messages {
        bytes.put_u8(0);
        bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        bytes.extend_from_slice(message);
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(PREFIX + usize::try_from(length).unwrap(), 7);
        bytes
    }

    #[test]
    fn messages_are_found_in_whatever_pieces_they_come() {
        let bytes = [message(3), message(0), message(300), message(1)].concat();
        for size in [1, 2, 3, 5, 7, 64, bytes.len()] {
            let mut framing = Framing::default();
            for piece in bytes.chunks(size) {
                framing.feed(piece).unwrap();
            }
            assert_eq!((framing.whole(), framing.is_between()), (4, true), "{size}");
        }
        let mut framing = Framing::default();
        framing.feed(&bytes[..7]).unwrap();
        assert_eq!((framing.whole(), framing.is_between(), framing.begun()), (0, false, 7));
        framing.feed(&bytes[7..15]).unwrap();
        assert_eq!((framing.whole(), framing.begun()), (2, 2));
    }

    #[test]
    fn a_length_is_believed_before_its_message_comes() {
        let mut framing = Framing::default();
        framing.feed(&[0, 0]).unwrap();
        assert_eq!(framing.feed(&(1_u32 << 30).to_be_bytes()[1..]), Ok(()), "a byte is missing");
        let mut framing = Framing::default();
        let giant = [&[0][..], &(1_u32 << 30).to_be_bytes()].concat();
        assert_eq!(framing.feed(&giant), Err(TooLong(1 << 30)));
        let mut framing = Framing::default();
        framing.feed(&[&[0][..], &MESSAGE_MAX.to_be_bytes()].concat()).unwrap();
    }

    #[test]
    fn messages_are_put_together_from_whatever_pieces_they_come_in() {
        let bytes = [message(3), message(0), message(300), message(1)].concat();
        for size in [1, 2, 3, 5, 7, 64, bytes.len()] {
            let (mut gathered, mut whole) = (Gathered::default(), Vec::new());
            for piece in bytes.chunks(size) {
                let mut messages = gathered.feed(Bytes::copy_from_slice(piece)).unwrap();
                while let Some((framed, inner)) = take_first(&mut messages) {
                    assert_eq!(inner.unwrap(), framed.slice(PREFIX..));
                    whole.push(framed.len() - PREFIX);
                }
            }
            assert_eq!((whole, gathered.is_between()), (vec![3, 0, 300, 1], true), "{size}");
        }
        let mut gathered = Gathered::default();
        assert_eq!(gathered.feed(message(300).into_iter().take(9).collect()), Ok(Bytes::new()));
        assert_eq!((gathered.wanted(), gathered.is_between()), (305, false));
        let giant = [&[0][..], &(1_u32 << 30).to_be_bytes()].concat();
        assert_eq!(Gathered::default().feed(giant.into()), Err(TooLong(1 << 30)));
    }

    #[test]
    fn messages_are_framed_and_found_again() {
        let messages = [Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![7; 300])];
        let framed = framed(&messages);
        assert_eq!(super::messages(&framed).unwrap(), messages);
        assert_eq!(last_message(&framed), Some(&[7; 300][..]));
        assert_eq!(last_message(&framed[..framed.len() - 1]), None);
        assert_eq!(last_message(b""), None);
        assert_eq!(super::messages(&framed.slice(..framed.len() - 1)), None);
        assert_eq!(super::messages(&Bytes::from_static(b"\x01\0\0\0\0")), None, "compressed");
    }

    #[test]
    fn a_first_message_is_read_only_whole_and_plain() {
        let mut bytes = message(3);
        assert_eq!(first_message(&bytes), Some(&[7, 7, 7][..]));
        assert_eq!(first_message(&bytes[..7]), None);
        bytes[0] = 1;
        assert_eq!(first_message(&bytes), None);
    }
}
