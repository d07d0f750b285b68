//! Finds the beginning and the end of requests, strictly.
//!
//! A proxy before this door and the door itself must agree on the end of a request, or a client can hide one request in
//! another's body. So what two parsers could read in two ways is not read at all: both a length and chunks, lengths
//! that differ, a line that ends without CR, a header that goes on in the next line. Hyper takes some of these; here
//! they become bytes that it answers with 400, and the connection is closed.
//!
//! ```text
//!            length n                      last byte
//!   Head ───────────────▶ Fixed(n) ──────────────────────▶ Head
//!    │ chunked                                              ▲
//!    └──▶ Size ──▶ Data ──▶ Size … ──▶ 0 ──▶ Trailers ──────┘
//! ```
//! A head is handed on once it is here whole and in order. Data go straight into the reader's own buffer.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::flushes::Flushes;

/// The largest head of a request, in bytes.
pub(super) const HEAD_MAX: usize = 256 << 10;
/// What is read at once while it is not data.
const READ: usize = 8 << 10;
/// What is read at once of data: it is set to zero before.
const STRAIGHT: usize = 64 << 10;
/// The longest line before a chunk, in bytes.
const SIZE_MAX: u64 = 256;
/// No request and no chunk begins with this.
const NONSENSE: &[u8] = b"\0";

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Fixed(u64),
    /// The line before a chunk: its size so far, how many bytes of the line came, and whether digits may follow.
    Size {
        size: u64,
        read: u64,
        digits: bool,
    },
    /// The end of that line.
    SizeEnd(u64),
    Data(u64),
    /// The end of a chunk: CR, then LF.
    DataEnd,
    DataEndLf,
    Trailers,
    /// The head is longer than any may be: that is for the reader to say.
    TooLong,
    /// It is not known what comes next.
    Broken,
}

/// A stream of requests that can be read in one way only.
pub(super) struct Strict<S> {
    inner: S,
    state: State,
    /// A head, or trailers, until they are whole.
    held: BytesMut,
    /// What the reader may have.
    ready: BytesMut,
    /// Notified when all that was to be written has left.
    flushes: Flushes,
}

impl<S> Strict<S> {
    pub(super) fn new(inner: S, flushes: Flushes) -> Self {
        let (held, ready) = (BytesMut::new(), BytesMut::new());
        Self { inner, state: State::Head, held, ready, flushes }
    }

    /// So many bytes of data come next, whatever they are.
    fn data(&self) -> u64 {
        match self.state {
            State::Fixed(left) | State::Data(left) => left,
            State::TooLong => u64::MAX,
            _ => 0,
        }
    }

    /// So many bytes of data have come.
    fn took(&mut self, count: u64) {
        self.state = match self.state {
            State::Fixed(left) if left == count => State::Head,
            State::Fixed(left) => State::Fixed(left - count),
            State::Data(left) if left == count => State::DataEnd,
            State::Data(left) => State::Data(left - count),
            other => other,
        };
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            let data = usize::try_from(self.data()).unwrap_or(usize::MAX).min(bytes.len());
            if let Some((data, rest)) =
                bytes.split_at_checked(data).filter(|(it, _)| !it.is_empty())
            {
                self.ready.extend_from_slice(data);
                self.took(data.len() as u64);
                bytes = rest;
                continue;
            }
            bytes = rest;
            self.state = match self.state {
                State::Head | State::Trailers => self.line(*first),
                State::Broken => return,
                state => {
                    let next = chunked(state, *first);
                    if next != State::Broken {
                        self.ready.extend_from_slice(&[*first]);
                    }
                    next
                }
            };
            if self.state == State::Broken {
                self.ready.extend_from_slice(NONSENSE);
            }
        }
    }

    /// One byte of a head or of trailers.
    fn line(&mut self, byte: u8) -> State {
        let last = self.held.last().copied();
        // An empty line before a request is not a line of it.
        let begins = self.held.is_empty() || self.held.ends_with(b"\n");
        let folded = begins && !self.held.is_empty() && matches!(byte, b' ' | b'\t');
        if (byte == b'\n') != (last == Some(b'\r')) || folded {
            return State::Broken;
        }
        self.held.extend_from_slice(&[byte]);
        if self.held.len() >= HEAD_MAX {
            self.ready.unsplit(self.held.split());
            return State::TooLong;
        }
        let is_head = self.state == State::Head;
        if is_head && &*self.held == b"\r\n" {
            self.held.clear();
            return State::Head;
        }
        if !(self.held.ends_with(b"\r\n\r\n") || !is_head && &*self.held == b"\r\n") {
            return self.state;
        }
        let head = self.held.split();
        let next = if is_head { body_of(&head) } else { Some(State::Head) };
        if next.is_some() {
            self.ready.extend_from_slice(&head);
        }
        next.unwrap_or(State::Broken)
    }
}

/// What comes after a byte of the line before a chunk, or of its end.
fn chunked(state: State, byte: u8) -> State {
    match (state, byte) {
        (State::Size { size, read, .. }, b'\r') if read > 0 => State::SizeEnd(size),
        (State::Size { .. }, b'\n') | (State::Size { read: SIZE_MAX, .. }, _) => State::Broken,
        (State::Size { size, read, digits: false }, _) => {
            State::Size { size, read: read + 1, digits: false }
        }
        (State::Size { size, read, digits: true }, byte) => {
            match (char::from(byte).to_digit(16), byte) {
                (Some(digit), _) => match size.checked_mul(16) {
                    Some(size) => {
                        State::Size { size: size | u64::from(digit), read: read + 1, digits: true }
                    }
                    None => State::Broken,
                },
                (None, b';' | b' ' | b'\t') if read > 0 => {
                    State::Size { size, read: read + 1, digits: false }
                }
                (None, _) => State::Broken,
            }
        }
        (State::SizeEnd(0), b'\n') => State::Trailers,
        (State::SizeEnd(size), b'\n') => State::Data(size),
        (State::DataEnd, b'\r') => State::DataEndLf,
        (State::DataEndLf, b'\n') => SIZE,
        _ => State::Broken,
    }
}

/// Before a chunk.
const SIZE: State = State::Size { size: 0, read: 0, digits: true };

/// What comes after a head; `None` if that is not known.
fn body_of(head: &[u8]) -> Option<State> {
    let (mut length, mut is_chunked) = (None::<u64>, false);
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let line = line.trim_ascii_end();
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at_checked(colon)?;
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let value = std::str::from_utf8(value).ok().filter(|_| is_number)?.parse().ok()?;
            if length.replace(value).is_some_and(|other| other != value) {
                return None;
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return None;
            }
            is_chunked = true;
        } else if name.trim_ascii() != name {
            return None;
        }
    }
    match (length, is_chunked) {
        (Some(_), true) => None,
        (None, true) => Some(SIZE),
        (None | Some(0), false) => Some(State::Head),
        (Some(length), false) => Some(State::Fixed(length)),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                let count = this.ready.len().min(buf.remaining());
                buf.put_slice(this.ready.get(..count).unwrap_or_default());
                this.ready.advance(count);
                return Poll::Ready(Ok(()));
            }
            if this.state == State::Broken {
                // The end, behind what cannot be read.
                return Poll::Ready(Ok(()));
            }
            let data = usize::try_from(this.data()).unwrap_or(usize::MAX);
            let data = data.min(buf.remaining()).min(STRAIGHT);
            if data > 0 {
                let mut straight = ReadBuf::new(buf.initialize_unfilled_to(data));
                ready!(Pin::new(&mut this.inner).poll_read(cx, &mut straight))?;
                let count = straight.filled().len();
                buf.advance(count);
                this.took(count as u64);
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [MaybeUninit::uninit(); READ];
            let mut read = ReadBuf::uninit(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.take(read.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.flushes.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// What the reader gets of `sent`, which comes in pieces of so many bytes.
    async fn read(sent: &[u8], at_once: usize) -> Vec<u8> {
        let pieces = pieces_of(sent, at_once);
        let mut got = Vec::new();
        Strict::new(pieces, Flushes::default()).read_to_end(&mut got).await.unwrap();
        got
    }

    /// A stream of pieces.
    struct Pieces(Vec<Vec<u8>>);

    fn pieces_of(sent: &[u8], at_once: usize) -> Pieces {
        Pieces(sent.chunks(at_once).rev().map(<[u8]>::to_vec).collect())
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(mut piece) = self.0.pop() {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.0.push(rest);
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn requests_in_order_go_through_as_they_are_however_they_are_cut() {
        let requests = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nPOST /?a HTTP/1.1\r\nContent-Length: 5\r\n\r\n\n\r\n\r\n\
            POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\n\n\n\n\n\n\r\n00a\r\n0123456789\r\n0\r\nT: 1\r\n\r\n\
            POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\n\r\n0\r\n\r\nPUT / HTTP/1.1\r\nContent-Length: 2\r\n\
            Content-Length: 2\r\n\r\nokGET /2 HTTP/1.0\r\nContent-Length: 0\r\n\r\n";
        for at_once in [1, 2, 3, 7, 64, 10_000] {
            let got = read(requests, at_once).await;
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(requests));
        }
        assert_eq!(read(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", 1).await, b"GET / HTTP/1.1\r\n\r\n");
    }

    #[tokio::test]
    async fn what_can_be_read_in_two_ways_is_not_handed_on() {
        let heads = [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: \r\n",
            "Content-Length : 3\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "A: b\n",
            "A: b\n\r\n",
            "A: b\r c\r\n",
            "A: b\r\n c: d\r\n",
            "A: b\r\n\tc\r\n",
        ];
        for head in heads {
            let request = format!("POST / HTTP/1.1\r\n{head}\r\nxxx");
            for at_once in [1, 5, 10_000] {
                assert_eq!(read(request.as_bytes(), at_once).await, NONSENSE, "{head:?}");
            }
        }
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "3\nabc\r\n",
            "3\r\nabcX",
            "3\r\nabc\n0\r\n",
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "0x3\r\n",
            "1 1\nx",
            "ffffffffffffffff0\r\n",
            "0\r\nT: 1\n\r\n",
        ] {
            let request = format!("{head}{body}");
            let got = read(request.as_bytes(), 1).await;
            assert!(got.ends_with(NONSENSE) && got.starts_with(head.as_bytes()), "{body:?}");
        }
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_left_to_the_reader() {
        let head = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(HEAD_MAX));
        assert_eq!(read(head.as_bytes(), 1_000).await, head.as_bytes());
    }
}
