//! Finds requests in what a client has sent.
//!
//! A request is an array of bulk strings, or a line of words (what people type, and health checkers send). The limits
//! and the words of complaint are Redis's own (`networking.c`), so that a client reads what it would have read there.
//! Nothing is allocated because a client *declares* a size, and no byte of a request is looked at twice however it is
//! cut into reads.

use bytes::{BufMut, BytesMut};

/// The longest line: an inline request, or a declared size.
const LINE_MAX: usize = 64 << 10;
/// The most arguments of a request ([`ARGUMENTS_MAX`](crate::kinds::redis::protocol::resp::ARGUMENTS_MAX)).
const ARGS_MAX: i64 = 1 << 20;
/// The longest argument (`proto-max-bulk-len` as a server has it by default).
const ARG_MAX: i64 = 512 << 20;
/// As long as nobody knows who a client is: the most arguments and the longest one.
const UNKNOWN_ARGS_MAX: i64 = 10;
const UNKNOWN_ARG_MAX: i64 = 16 << 10;
/// Between two requests room is kept for so many arguments.
const ARGS_KEPT: usize = 64;

/// The beginning of what was received.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Not a whole request yet.
    Nothing,
    /// A request of so many bytes; its arguments are [`Requests::args`].
    Request(usize),
    /// So many bytes that ask for nothing.
    Empty(usize),
    /// A line of words, so many bytes long; the request that it means is given instead.
    Inline(usize, BytesMut),
    /// What no Redis takes: it says this and closes the connection.
    Wrong(String),
}

/// The state of reading one client's requests.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// How far the request at hand has been read.
    position: usize,
    /// Arguments still to come; zero between requests.
    left: usize,
    /// The beginning and the end of each argument.
    args: Vec<(usize, usize)>,
}

impl Requests {
    /// The arguments of the request that [`Requests::next`] has found last, in `bytes`.
    pub(crate) fn args<'b>(&self, bytes: &'b [u8]) -> impl ExactSizeIterator<Item = &'b [u8]> {
        self.args.iter().map(move |(from, to)| bytes.get(*from..*to).unwrap_or_default())
    }

    /// The name of that request, in a copy of it.
    pub(crate) fn name_of<'b>(&self, bytes: &'b mut [u8]) -> Option<&'b mut [u8]> {
        let (from, to) = *self.args.first()?;
        bytes.get_mut(from..to)
    }

    /// Looks for a request at the beginning of `bytes`, continuing from its last position. `known` says whether it is
    /// known who the client is.
    pub(crate) fn next(&mut self, bytes: &[u8], known: bool) -> Found {
        if self.left == 0 && self.position == 0 {
            match bytes.first() {
                None => return Found::Nothing,
                Some(b'*') => {}
                Some(_) => return inline(bytes),
            }
            let line = match line(bytes, 0, "mbulk count string") {
                Ok(Some(line)) => line,
                Ok(None) => return Found::Nothing,
                Err(wrong) => return wrong,
            };
            let count = number(line.text.get(1..).unwrap_or_default());
            let Some(count) = count.filter(|count| *count <= ARGS_MAX) else {
                return wrong("invalid multibulk length");
            };
            if count > UNKNOWN_ARGS_MAX && !known {
                return wrong("unauthenticated multibulk length");
            }
            if count <= 0 {
                return Found::Empty(line.end);
            }
            self.position = line.end;
            self.left = usize::try_from(count).unwrap_or_default();
            self.args.clear();
        }
        while self.left > 0 {
            let line = match line(bytes, self.position, "bulk count string") {
                Ok(Some(line)) => line,
                Ok(None) => return Found::Nothing,
                Err(wrong) => return wrong,
            };
            let (kind, size) = line.text.split_first().unwrap_or((&b' ', &[]));
            if *kind != b'$' {
                return Found::Wrong(format!(
                    "Protocol error: expected '$', got '{}'",
                    char::from(*kind).escape_default()
                ));
            }
            let size = number(size).filter(|size| (0..=ARG_MAX).contains(size));
            let Some(size) = size else { return wrong("invalid bulk length") };
            if size > UNKNOWN_ARG_MAX && !known {
                return wrong("unauthenticated bulk length");
            }
            let to = line.end + usize::try_from(size).unwrap_or_default();
            match bytes.get(to..to + 2) {
                None => return Found::Nothing,
                Some(b"\r\n") => {}
                Some(_) => return wrong("expected CRLF after a bulk string"),
            }
            self.args.push((line.end, to));
            self.position = to + 2;
            self.left -= 1;
        }
        Found::Request(std::mem::take(&mut self.position))
    }

    /// The request that was found last has been dealt with: what was noted of one with many arguments does not stay.
    pub(crate) fn forget(&mut self) {
        self.args.clear();
        self.args.shrink_to(ARGS_KEPT);
    }

    /// What is noted of a request with many arguments, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.args.capacity().saturating_sub(ARGS_KEPT) * size_of::<(usize, usize)>()
    }

    /// How many bytes the request at hand takes at least, as far as it has announced itself.
    pub(crate) fn needs(&self, bytes: &[u8]) -> usize {
        if self.left == 0 {
            return 0;
        }
        let announced = line(bytes, self.position, "").ok().flatten().and_then(|line| {
            let size = number(line.text.get(1..)?)?;
            usize::try_from(size).ok().map(|size| line.end + size + 2)
        });
        announced.unwrap_or(self.position)
    }
}

struct Line<'b> {
    text: &'b [u8],
    end: usize,
}

/// The line at `from`, without its end.
fn line<'b>(bytes: &'b [u8], from: usize, what: &str) -> Result<Option<Line<'b>>, Found> {
    let rest = bytes.get(from..).unwrap_or_default();
    let seen = rest.get(..LINE_MAX.min(rest.len())).unwrap_or_default();
    match seen.iter().position(|byte| *byte == b'\r') {
        Some(at) if rest.len() > at + 1 => {
            Ok(Some(Line { text: rest.get(..at).unwrap_or_default(), end: from + at + 2 }))
        }
        None if rest.len() >= LINE_MAX => {
            Err(Found::Wrong(format!("Protocol error: too big {what}")))
        }
        _ => Ok(None),
    }
}

/// A number as Redis reads one: no sign but a minus, no zero before others.
fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.len() < 18 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    canonical.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

fn wrong(why: &str) -> Found {
    Found::Wrong(format!("Protocol error: {why}"))
}

/// A line of words.
fn inline(bytes: &[u8]) -> Found {
    let seen = bytes.get(..LINE_MAX.min(bytes.len())).unwrap_or_default();
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() >= LINE_MAX {
            wrong("too big inline request")
        } else {
            Found::Nothing
        };
    };
    let text = seen.get(..end).unwrap_or_default();
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let Some(words) = words(text) else { return wrong("unbalanced quotes in request") };
    if words.is_empty() {
        return Found::Empty(end + 1);
    }
    let mut request = BytesMut::with_capacity(text.len() + 16 * (words.len() + 1));
    crate::kinds::redis::protocol::resp::write_head(&mut request, '*', words.len());
    for word in &words {
        crate::kinds::redis::protocol::resp::write_bulk(&mut request, word);
    }
    Found::Inline(end + 1, request)
}

/// The words of a line: quoted ones may hold spaces, and escapes between double quotes. `None` if a quote is not
/// closed, or something follows a closing one.
fn words(text: &[u8]) -> Option<Vec<BytesMut>> {
    let mut words = Vec::new();
    let mut rest = text.iter().copied().peekable();
    loop {
        while rest.next_if(u8::is_ascii_whitespace).is_some() {}
        let Some(first) = rest.peek().copied() else { return Some(words) };
        let mut word = BytesMut::new();
        let quote = matches!(first, b'"' | b'\'').then_some(first);
        if let Some(quote) = quote {
            rest.next();
            loop {
                match rest.next()? {
                    byte if byte == quote => break,
                    b'\\' if quote == b'"' => word.put_u8(escaped(&mut rest)?),
                    b'\\' if rest.next_if_eq(&b'\'').is_some() => word.put_u8(b'\''),
                    byte => word.put_u8(byte),
                }
            }
            if rest.peek().is_some_and(|next| !next.is_ascii_whitespace()) {
                return None;
            }
        } else {
            while let Some(byte) = rest.next_if(|byte| !byte.is_ascii_whitespace()) {
                word.put_u8(byte);
            }
        }
        words.push(word);
    }
}

/// What is behind a backslash between double quotes.
fn escaped(rest: &mut std::iter::Peekable<impl Iterator<Item = u8> + Clone>) -> Option<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16);
    let first = rest.next()?;
    if first == b'x' {
        let mut ahead = rest.clone();
        if let (Some(high), Some(low)) = (ahead.next().and_then(hex), ahead.next().and_then(hex)) {
            *rest = ahead;
            return u8::try_from(high * 16 + low).ok();
        }
    }
    Some(match first {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::redis::{fuzzing::found, protocol::resp};

    fn all(bytes: &[u8], known: bool) -> Result<Vec<Vec<Vec<u8>>>, String> {
        cut(&[bytes], known)
    }

    /// The requests in `parts` as they come one after the other.
    fn cut(parts: &[&[u8]], known: bool) -> Result<Vec<Vec<Vec<u8>>>, String> {
        let (found, wrong) = found(parts, known);
        wrong.map_or(Ok(found), Err)
    }

    #[test]
    fn requests_are_found_however_they_are_cut() {
        let text = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\nPING\r\n\r\n*0\r\n*-1\r\n*1\r\n$0\r\n\r\nset 'a b' \"\\x41\\n\"\n";
        let expected: [&[&[u8]]; 4] =
            [&[b"GET", b"k"], &[b"PING"], &[b""], &[b"set", b"a b", b"A\n"]];
        for at in 0..text.len() {
            let (one, other) = text.split_at(at);
            assert_eq!(cut(&[one, other], true).unwrap(), expected, "cut at {at}");
        }
        let single: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(cut(&single, true).unwrap(), expected);
    }

    #[test]
    fn what_no_redis_takes_is_refused_in_its_words() {
        for (text, why) in [
            (&b"*1\r\n+PING\r\n"[..], "expected '$', got '+'"),
            (b"*1048577\r\n", "invalid multibulk length"),
            (b"*01\r\n", "invalid multibulk length"),
            (b"*x\r\n", "invalid multibulk length"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$536870913\r\n", "invalid bulk length"),
            (b"*1\r\n$1\r\nabc", "expected CRLF after a bulk string"),
            (b"set 'a\n", "unbalanced quotes in request"),
            (b"set \"a\"b\n", "unbalanced quotes in request"),
        ] {
            assert_eq!(all(text, true), Err(format!("Protocol error: {why}")), "{text:?}");
        }
        let long = [b"x".repeat(LINE_MAX), b"\n".to_vec()].concat();
        assert_eq!(all(&long, true).unwrap_err(), "Protocol error: too big inline request");
        let long = [b"*".to_vec(), b"1".repeat(LINE_MAX)].concat();
        assert_eq!(all(&long, true).unwrap_err(), "Protocol error: too big mbulk count string");
    }

    #[test]
    fn little_is_read_for_a_client_that_nobody_knows() {
        assert!(all(b"*2\r\n$4\r\nAUTH\r\n$1\r\nx\r\n", false).is_ok());
        let why = all(b"*11\r\n", false).unwrap_err();
        assert_eq!(why, "Protocol error: unauthenticated multibulk length");
        let why = all(b"*1\r\n$16385\r\n", false).unwrap_err();
        assert_eq!(why, "Protocol error: unauthenticated bulk length");
    }

    #[test]
    fn a_declared_size_allocates_nothing_and_is_told() {
        let mut requests = Requests::default();
        let text = b"*1000000\r\n$5000\r\nabc";
        assert_eq!(requests.next(text, true), Found::Nothing);
        assert!(requests.args.capacity() < 64);
        assert_eq!(requests.needs(text), b"*1000000\r\n$5000\r\n".len() + 5_002);
    }

    #[test]
    fn what_was_noted_of_many_arguments_does_not_stay() {
        let mut requests = Requests::default();
        let words = vec![&b""[..]; 10_000];
        for text in [resp::command(&words), resp::command(&["GET", "k"])] {
            assert_eq!(requests.next(&text, true), Found::Request(text.len()));
            assert_eq!(requests.args(&text).len(), resp::arguments(&text).unwrap().len());
            let is_long = text.len() > 100;
            assert_eq!(requests.size() > 100_000, is_long, "it is counted while it is there");
            requests.forget();
            assert!(requests.args.capacity() <= ARGS_KEPT, "{}", requests.args.capacity());
            assert_eq!(requests.size(), 0);
        }
    }

    proptest! {
        #[test]
        fn a_command_is_read_as_it_was_written(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..9), at in 0_usize..200) {
            let text = resp::command(&args);
            let (one, other) = text.split_at(at.min(text.len()));
            prop_assert_eq!(cut(&[one, other], true).unwrap(), vec![args]);
        }
    }
}
