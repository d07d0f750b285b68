//! RESP2 and RESP3 as bytes: finding frames, reading them in place, writing commands.
//!
//! A reply is carried as the bytes that the server sent and is looked into only if something must
//! be known of it. Nothing here recurses, and nothing is allocated because a peer *declared* a size:
//! the finder only ever waits for bytes that have really come. What is beyond the caps below is a
//! [`ProtocolError`], after which a connection is of no further use.

use std::fmt::Write as _;

use bytes::{Buf, Bytes, BytesMut};

/// The deepest nesting that is read.
pub const DEPTH_MAX: usize = 16_384;
/// The longest string that is read, one byte below 512 MiB.
pub const BULK_MAX: usize = 536_870_911;
/// The most elements that an aggregate may declare.
pub const COUNT_MAX: usize = 1 << 27;
/// The most arguments that a command may have, its name included.
pub const ARGUMENTS_MAX: usize = 1 << 20;
/// The longest line: a simple string, an error or a number.
pub const LINE_MAX: usize = 64 * 1024;
/// The longest frame as a whole.
pub const FRAME_MAX: usize = 1 << 30;
/// Frames up to this length are copied out of the receive buffer, so that a small cached reply does
/// not keep the whole buffer alive.
const COPY_MAX: usize = 4096;

/// The peer does not speak RESP, or declares what no Redis sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid RESP frame: {0}")]
pub struct ProtocolError(pub &'static str);

/// What the first line of a frame announces.
enum Head {
    /// A frame that ends with its line.
    Scalar,
    /// A string of so many bytes and a line end.
    Bulk(usize),
    /// So many frames.
    Aggregate(usize),
    /// So many frames, and then the frame that they are about.
    Attribute(usize),
}

/// Finds frames in what has been received so far, without looking at a byte of a finished element
/// twice.
#[derive(Debug, Default)]
pub struct FrameFinder {
    scanned: usize,
    /// Elements still to come of each open aggregate, and whether it is an attribute.
    open: Vec<(usize, bool)>,
    /// What is still to come of a string whose beginning was handed on, its line end included.
    inside: usize,
    /// The beginning of the frame at hand was handed on.
    begun: bool,
}

impl FrameFinder {
    /// Takes the next whole frame out of `buffer`, or `None` if more bytes must come first.
    ///
    /// # Errors
    /// The bytes are not RESP: the connection must be dropped.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, ProtocolError> {
        let Some(length) = self.length(buffer)? else { return Ok(None) };
        if length > COPY_MAX {
            return Ok(Some(buffer.split_to(length).freeze()));
        }
        let frame = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
        buffer.advance(length);
        Ok(Some(frame))
    }

    /// The length of the frame that `bytes` begins with, or `None` if more bytes must come first. Goes on from its last
    /// position: until it has found one, `bytes` may only grow.
    ///
    /// # Errors
    /// The bytes are not RESP: the connection must be dropped.
    pub fn length(&mut self, bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let length = self.find(bytes)?;
        if length.is_some() {
            (self.scanned, self.begun) = (0, false);
        }
        Ok(length)
    }

    /// Whether the beginning of the frame at hand was handed on: what is found next is its rest, whose first byte is
    /// any byte of its content, and says nothing of its kind.
    pub fn has_passed(&self) -> bool {
        self.begun
    }

    /// How much at the beginning of `bytes`, which hold no whole frame, can be handed on already. The rest is what
    /// [`FrameFinder::length`] is given from then on, and the length that it finds is the rest's.
    pub fn pass(&mut self, bytes: &[u8]) -> usize {
        let passed = self.passes(bytes);
        self.begun |= passed > 0;
        passed
    }

    fn passes(&mut self, bytes: &[u8]) -> usize {
        if self.inside > 0 {
            let passed = bytes.len().min(self.inside.saturating_sub(2));
            self.inside -= passed;
            return passed;
        }
        let mut passed = std::mem::take(&mut self.scanned);
        let rest = bytes.get(passed..).unwrap_or_default();
        if let Ok(Some((Head::Bulk(length), line))) = head(rest) {
            let there = length.min(rest.len() - line);
            passed += line + there;
            self.inside = length - there + 2;
        }
        passed
    }

    fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if self.inside > 0 {
            let Some(tail) = bytes.get(self.inside - 2..self.inside) else { return Ok(None) };
            if tail != b"\r\n" {
                return Err(ProtocolError("string without line end"));
            }
            self.scanned = std::mem::take(&mut self.inside);
            if self.element_ended() {
                return Ok(Some(self.scanned));
            }
        }
        loop {
            if self.scanned > FRAME_MAX {
                return Err(ProtocolError("frame too long"));
            }
            let rest = bytes.get(self.scanned..).unwrap_or_default();
            let Some((head, line)) = head(rest)? else { return Ok(None) };
            let ended = match head {
                Head::Scalar => {
                    self.scanned += line;
                    true
                }
                Head::Bulk(length) => {
                    let Some(tail) = rest.get(line + length..line + length + 2) else {
                        return Ok(None);
                    };
                    if tail != b"\r\n" {
                        return Err(ProtocolError("string without line end"));
                    }
                    self.scanned += line + length + 2;
                    true
                }
                Head::Aggregate(count) => {
                    self.scanned += line;
                    self.descend(count, false)?;
                    count == 0
                }
                Head::Attribute(count) => {
                    self.scanned += line;
                    self.descend(count, true)?;
                    false
                }
            };
            if ended && self.element_ended() {
                return Ok(Some(self.scanned));
            }
        }
    }

    fn descend(&mut self, count: usize, attribute: bool) -> Result<(), ProtocolError> {
        if count > 0 {
            if self.open.len() >= DEPTH_MAX {
                return Err(ProtocolError("nested too deep"));
            }
            self.open.push((count, attribute));
        }
        Ok(())
    }

    /// Counts a finished element in the aggregates around it; true when the outermost is finished.
    fn element_ended(&mut self) -> bool {
        while let Some((left, attribute)) = self.open.last_mut() {
            *left = left.saturating_sub(1);
            if *left > 0 {
                return false;
            }
            let attribute = *attribute;
            self.open.pop();
            if attribute {
                return false;
            }
        }
        true
    }
}

/// The length of the frame that `bytes` begins with; `None` if it is not whole or not valid.
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    FrameFinder::default().find(bytes).ok().flatten()
}

/// Reads a frame's first line: what it announces, and the line's length with its end.
fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, ProtocolError> {
    let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
    let long = matches!(kind, b'+' | b'-' | b'(');
    if !long && !b":$*_#,!=%~>|".contains(&kind) {
        return Err(ProtocolError("unknown kind of frame"));
    }
    let line_max = if long { LINE_MAX } else { 64 };
    let Some(end) = rest.iter().take(line_max).position(|byte| *byte == b'\r') else {
        if rest.len() >= line_max {
            return Err(ProtocolError("line too long"));
        }
        return Ok(None);
    };
    match rest.get(end + 1) {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) => return Err(ProtocolError("line without line feed")),
    }
    let line = rest.get(..end).unwrap_or_default();
    let head = match kind {
        b'$' | b'*' if line == b"-1" => Head::Scalar,
        b'$' | b'=' | b'!' => Head::Bulk(size(line, BULK_MAX)?),
        b'*' | b'~' | b'>' => Head::Aggregate(size(line, COUNT_MAX)?),
        b'%' => Head::Aggregate(size(line, COUNT_MAX / 2)? * 2),
        b'|' => Head::Attribute(size(line, COUNT_MAX / 2)? * 2),
        _ => Head::Scalar,
    };
    Ok(Some((head, end + 3)))
}

fn size(line: &[u8], max: usize) -> Result<usize, ProtocolError> {
    if line.is_empty() || line.len() > 10 || !line.iter().all(u8::is_ascii_digit) {
        return Err(ProtocolError("size is not a number"));
    }
    let size = line.iter().fold(0_usize, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    if size > max { Err(ProtocolError("declared size too large")) } else { Ok(size) }
}

/// A frame, read in place. Attributes before it are passed over.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<'a> {
    /// `+OK`
    Simple(&'a [u8]),
    /// `-ERR …` or a RESP3 bulk error, without its marker.
    Error(&'a [u8]),
    /// `:1`
    Int(i64),
    /// `$…`
    Bulk(&'a [u8]),
    /// `$-1`, `*-1` or `_`
    Nil,
    /// `*…`
    Array(Items<'a>),
    /// `%…`, keys and values in turn.
    Map(Items<'a>),
    /// `~…`
    Set(Items<'a>),
    /// `>…`, out of band.
    Push(Items<'a>),
    /// `,1.5`, as it was written.
    Double(&'a [u8]),
    /// `#t`
    Bool(bool),
    /// `(…`, as it was written.
    Big(&'a [u8]),
    /// `=…`, without the word for its format.
    Verbatim(&'a [u8]),
}

impl<'a> Reply<'a> {
    /// Reads the frame that `bytes` begins with; `None` if it is not whole or not valid.
    pub fn of(mut bytes: &'a [u8]) -> Option<Self> {
        loop {
            let (head, line) = head(bytes).ok().flatten()?;
            let kind = *bytes.first()?;
            let text = bytes.get(1..line - 2)?;
            let rest = bytes.get(line..)?;
            return Some(match (head, kind) {
                (Head::Attribute(count), _) => {
                    let mut items = Items { rest, left: count };
                    items.by_ref().for_each(drop);
                    bytes = items.rest;
                    continue;
                }
                (Head::Bulk(length), _) => {
                    let string = rest.get(..length)?;
                    match kind {
                        b'=' => Self::Verbatim(string.get(4..)?),
                        b'!' => Self::Error(string),
                        _ => Self::Bulk(string),
                    }
                }
                (Head::Aggregate(left), _) => {
                    let items = Items { rest, left };
                    match kind {
                        b'%' => Self::Map(items),
                        b'~' => Self::Set(items),
                        b'>' => Self::Push(items),
                        _ => Self::Array(items),
                    }
                }
                (Head::Scalar, b'+') => Self::Simple(text),
                (Head::Scalar, b'-') => Self::Error(text),
                (Head::Scalar, b':') => Self::Int(std::str::from_utf8(text).ok()?.parse().ok()?),
                (Head::Scalar, b',') => Self::Double(text),
                (Head::Scalar, b'#') => Self::Bool(text == b"t"),
                (Head::Scalar, b'(') => Self::Big(text),
                (Head::Scalar, _) => Self::Nil,
            });
        }
    }

    /// The bytes of a string of any kind.
    pub fn text(&self) -> Option<&'a [u8]> {
        match self {
            Self::Simple(text) | Self::Bulk(text) | Self::Verbatim(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of an aggregate of any kind.
    pub fn items(&self) -> Option<Items<'a>> {
        match self {
            Self::Array(items) | Self::Map(items) | Self::Set(items) => Some(items.clone()),
            _ => None,
        }
    }
}

/// The elements of an aggregate, each as its own frame's bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Items<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (frame, rest) = self.rest.split_at_checked(frame_length(self.rest)?)?;
        self.rest = rest;
        Some(frame)
    }
}

/// An error's code and the whole of its words, if the frame is an error.
pub fn error_of(frame: &[u8]) -> Option<(&str, &str)> {
    let Some(Reply::Error(text)) = Reply::of(frame) else { return None };
    let text = std::str::from_utf8(text).unwrap_or("an error that is not UTF-8");
    let first = text.split(' ').next().unwrap_or_default();
    let is_code = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    Some((if !first.is_empty() && first.chars().all(is_code) { first } else { "ERR" }, text))
}

/// A command in wire form: an array of bulk strings.
pub fn command<A: AsRef<[u8]>>(args: &[A]) -> Bytes {
    let length = args.iter().map(|arg| arg.as_ref().len() + 16).sum::<usize>() + 16;
    let mut out = BytesMut::with_capacity(length);
    write_head(&mut out, '*', args.len());
    for arg in args {
        write_bulk(&mut out, arg.as_ref());
    }
    out.freeze()
}

/// Appends a bulk string.
pub fn write_bulk(out: &mut BytesMut, string: &[u8]) {
    write_head(out, '$', string.len());
    out.extend_from_slice(string);
    out.extend_from_slice(b"\r\n");
}

/// Appends a reply of one line, such as `+OK` or `:1`.
pub(crate) fn write_line(out: &mut BytesMut, line: &str) {
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends a first line that announces `size`, such as `*3`.
pub fn write_head(out: &mut BytesMut, kind: char, size: usize) {
    // Writing to a buffer that grows does not fail.
    write!(out, "{kind}{size}\r\n").unwrap_or_default();
}

const NOT_A_COMMAND: ProtocolError = ProtocolError("a command is one array of bulk strings");

/// The arguments of a command in wire form, in place.
///
/// # Errors
/// `body` is not exactly one array of at least one bulk string, or of more than [`ARGUMENTS_MAX`].
pub fn arguments(body: &[u8]) -> Result<Vec<&[u8]>, ProtocolError> {
    let Some((Head::Aggregate(count), line)) = head(body)? else { return Err(NOT_A_COMMAND) };
    // A bulk string takes at least five bytes, so the bytes that are there bound the allocation.
    if !body.starts_with(b"*") || count == 0 || count > body.len() / 5 {
        return Err(NOT_A_COMMAND);
    }
    if count > ARGUMENTS_MAX {
        return Err(ProtocolError("a command has at most 1,048,576 arguments"));
    }
    let mut args = Vec::with_capacity(count);
    let mut rest = body.get(line..).unwrap_or_default();
    for _ in 0..count {
        let arg;
        (arg, rest) = argument(rest)?;
        args.push(arg);
    }
    if rest.is_empty() { Ok(args) } else { Err(NOT_A_COMMAND) }
}

/// The arguments of a command of exactly `N`, without an allocation; `None` if it is none.
pub(crate) fn arguments_of<const N: usize>(body: &[u8]) -> Option<[&[u8]; N]> {
    let Some((Head::Aggregate(count), line)) = head(body).ok()? else { return None };
    if count != N || !body.starts_with(b"*") {
        return None;
    }
    let mut args = [&b""[..]; N];
    let mut rest = body.get(line..)?;
    for place in &mut args {
        (*place, rest) = argument(rest).ok()?;
    }
    rest.is_empty().then_some(args)
}

/// The first of a command's arguments, and what follows it.
fn argument(rest: &[u8]) -> Result<(&[u8], &[u8]), ProtocolError> {
    let Some((Head::Bulk(length), line)) = head(rest)? else { return Err(NOT_A_COMMAND) };
    let (Some(arg), Some(b"\r\n"), true) = (
        rest.get(line..line + length),
        rest.get(line + length..line + length + 2),
        rest.starts_with(b"$"),
    ) else {
        return Err(NOT_A_COMMAND);
    };
    Ok((arg, rest.get(line + length + 2..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(parts: &[&[u8]]) -> Result<Vec<Bytes>, ProtocolError> {
        let (mut finder, mut buffer, mut frames) =
            (FrameFinder::default(), BytesMut::new(), Vec::new());
        for part in parts {
            buffer.extend_from_slice(part);
            while let Some(frame) = finder.next(&mut buffer)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    const EVERY_KIND: &[u8] = b"*14\r\n+OK\r\n-ERR no\r\n:-5\r\n$3\r\na\r\n\r\n$-1\r\n*-1\r\n_\r\n#t\r\n,1.5\r\n(123456789012345678901\r\n!5\r\nERR x\r\n=7\r\ntxt:abc\r\n~1\r\n:1\r\n%1\r\n+k\r\n*0\r\n";

    #[test]
    fn finds_every_kind_of_frame_however_it_is_cut() {
        for cut in 0..EVERY_KIND.len() {
            let (a, b) = EVERY_KIND.split_at(cut);
            assert_eq!(feed(&[a, b]).unwrap(), [EVERY_KIND], "cut at {cut}");
        }
        let single: Vec<&[u8]> = EVERY_KIND.chunks(1).collect();
        assert_eq!(feed(&single).unwrap(), [EVERY_KIND]);
    }

    #[test]
    fn refuses_what_no_redis_sends() {
        for bad in [
            &b"$536870912\r\n"[..],
            b"$-2\r\n",
            b"*2000000000\r\n",
            b"*-2\r\n",
            b"$3\r\nabcde\r\n",
            b"HTTP/1.1 400\r\n",
            b"$\r\n",
            b"$+5\r\nhello\r\n",
            b"$99999999999999999999999\r\n",
            b":1\rx",
            b"$?\r\n",
        ] {
            assert!(feed(&[bad]).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        assert!(feed(&["*1\r\n".repeat(40_000).as_bytes()]).is_err(), "forty thousand deep");
        assert!(feed(&["+".repeat(LINE_MAX + 2).as_bytes()]).is_err(), "a line without end");
        assert!(feed(&[&[b':'; 80]]).is_err(), "a number without end");
    }

    #[test]
    fn a_declared_size_allocates_nothing() {
        let mut buffer = BytesMut::from(&b"*134217728\r\n$500000000\r\nabc"[..]);
        let mut finder = FrameFinder::default();
        assert_eq!(finder.next(&mut buffer), Ok(None));
        assert!(buffer.capacity() < 1024 && finder.open.capacity() < 64);
    }

    #[test]
    fn an_attribute_belongs_to_the_frame_after_it() {
        let frame = b"|1\r\n+ttl\r\n:5\r\n*1\r\n:1\r\n";
        assert_eq!(feed(&[frame]).unwrap(), [&frame[..]]);
        assert!(matches!(Reply::of(frame), Some(Reply::Array(_))));
    }

    #[test]
    fn a_command_is_read_back_as_it_was_written() {
        let args: [&[u8]; 3] = [b"SET", b"k\r\n", b"\x00\xff"];
        assert_eq!(arguments(&command(&args)).unwrap(), args);
        for bad in [
            &b"*1\r\n:1\r\n"[..],
            b"*0\r\n",
            b"PING\r\n",
            b"*1\r\n$4\r\nPING\r\n+x\r\n",
            b"*9999\r\n$4\r\nPING\r\n",
            b"*1\r\n=4\r\nPING\r\n",
            b"",
        ] {
            assert!(arguments(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_command_has_no_more_arguments_than_a_server_takes() {
        let mut body = command(&vec!["1"; ARGUMENTS_MAX]);
        assert_eq!(arguments(&body).unwrap().len(), ARGUMENTS_MAX);
        body = command(&vec!["1"; ARGUMENTS_MAX + 1]);
        assert!(arguments(&body).unwrap_err().to_string().contains("at most 1,048,576 arguments"));
    }

    #[test]
    fn an_error_without_a_code_counts_as_err() {
        assert_eq!(error_of(b"-WRONGTYPE no\r\n"), Some(("WRONGTYPE", "WRONGTYPE no")));
        assert_eq!(error_of(b"-Unknown index\r\n"), Some(("ERR", "Unknown index")));
        assert_eq!(error_of(b"+OK\r\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(feed(&[&bytes]));
            drop(arguments(&bytes));
            prop_assert!(Reply::of(&bytes).is_none_or(|reply| reply.items().is_none_or(|items| items.count() <= 200)));
        }

        #[test]
        fn near_frames_are_read_without_a_panic(text in "[$*+:_%~|0-9a\r\n-]{0,60}") {
            drop(feed(&[text.as_bytes()]));
            drop(arguments(text.as_bytes()));
            if let Some(items) = Reply::of(text.as_bytes()).and_then(|r| r.items()) {
                prop_assert!(items.count() <= text.len());
            }
        }

        /// Whatever of a frame is handed on before the rest has come, together it is the frame.
        #[test]
        fn a_frame_that_is_handed_on_in_pieces_is_the_same_frame(
            strings in prop::collection::vec(0_usize..60, 1..6),
            nested in any::<bool>(),
            cuts in prop::collection::vec(1_usize..25, 1..60),
        ) {
            let mut frame = format!("*{}\r\n", strings.len() + 1);
            for length in strings {
                frame.extend(["$", &length.to_string(), "\r\n", &"$".repeat(length), "\r\n"]);
            }
            frame += if nested { "%1\r\n:1\r\n*2\r\n,1.5\r\n$3\r\nend\r\n" } else { "_\r\n" };
            let bytes = [frame.as_bytes(), b"+next\r\n"].concat();
            let (mut finder, mut inbox, mut passed) = (FrameFinder::default(), Vec::new(), Vec::new());
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.into_iter().cycle());
            let mut lengths = Vec::new();
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                inbox.extend_from_slice(piece);
                rest = later;
                prop_assert_eq!(finder.has_passed(), lengths.is_empty() && !passed.is_empty());
                while let Some(length) = finder.length(&inbox).unwrap() {
                    prop_assert!(!finder.has_passed(), "the next one begins with its own head");
                    passed.extend(inbox.drain(..length));
                    lengths.push(passed.len());
                }
                if lengths.is_empty() {
                    let count = finder.pass(&inbox);
                    passed.extend(inbox.drain(..count));
                }
            }
            prop_assert_eq!(passed, bytes);
            prop_assert_eq!(lengths, vec![frame.len(), frame.len() + 7]);
        }

        #[test]
        fn a_command_is_one_frame(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..9)) {
            let body = command(&args);
            prop_assert_eq!(frame_length(&body), Some(body.len()));
            prop_assert_eq!(arguments(&body).unwrap(), args);
        }
    }
}
