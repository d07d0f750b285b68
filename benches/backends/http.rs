//! The small blocking client that both sides use.

use std::io::{BufRead, BufReader, Read, Write};

/// A kept connection that speaks HTTP/1.1.
pub(crate) struct Http<S: Read + Write>(BufReader<S>);

impl<S: Read + Write> Http<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(BufReader::with_capacity(1 << 18, stream))
    }

    /// POSTs and reads the answer to its end. Returns how long it was.
    pub(crate) fn post(&mut self, path: &str, body: &str) -> usize {
        self.send(path, body.as_bytes())
    }

    /// [`Http::post`] of any bytes.
    pub(crate) fn send(&mut self, path: &str, body: &[u8]) -> usize {
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        // A small request is one packet.
        let (first, rest) = body.split_at(length.min(1 << 14));
        let first = [head.as_bytes(), first].concat();
        self.0.get_mut().write_all(&first).expect("the request");
        self.0.get_mut().write_all(rest).expect("the request");
        let status = self.line();
        let mut length = None;
        loop {
            let line = self.line().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            length = line.strip_prefix("content-length: ").map_or(length, |it| it.parse().ok());
        }
        let read = match length {
            Some(length) => self.skip(length),
            None => self.skip_chunks(),
        };
        assert!(status.contains(" 200 ") || status.contains(" 202 "), "{path}: {status}");
        read
    }

    fn skip_chunks(&mut self) -> usize {
        let mut whole = 0;
        loop {
            let size = usize::from_str_radix(&self.line(), 16).expect("a chunk's size");
            whole += self.skip(size);
            self.line();
            if size == 0 {
                return whole;
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn skip(&mut self, length: usize) -> usize {
        let mut left = length;
        while left > 0 {
            let there = self.0.fill_buf().expect("the body").len().min(left);
            assert!(there > 0, "the body broke off");
            self.0.consume(there);
            left -= there;
        }
        length
    }
}
