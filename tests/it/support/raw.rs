//! `call/raw`: bytes to a backend and back, of any size, without holding them.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::daemon::Client;

/// Nothing that a test waits for stops for longer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An answer of `call/raw`.
#[derive(Debug)]
pub(crate) struct RawAnswer {
    pub(crate) status: u16,
    /// `X-Fusebox-Source`.
    pub(crate) source: String,
    /// How long its body was.
    pub(crate) bytes: u64,
    /// The body's beginning.
    pub(crate) beginning: String,
    /// Whether the body came to its end, rather than breaking off.
    pub(crate) whole: bool,
}

/// Sends a call with these headers and a body of `times` times `piece`.
pub(crate) fn call_raw(
    daemon: &Client,
    backend: &str,
    headers: &[(&str, &str)],
    piece: &[u8],
    times: usize,
) -> RawAnswer {
    let stream = begin(daemon, backend, headers, piece.len() * times);
    let mut sink = &stream;
    for _ in 0..times {
        // A call that is refused before its end is answered all the same.
        if sink.write_all(piece).is_err() {
            break;
        }
    }
    answer(BufReader::with_capacity(1 << 16, stream))
}

/// A call whose body is under way. Dropped, its caller has gone.
pub(crate) struct Unfinished(UnixStream);

impl Unfinished {
    /// Sends the head of a call with a body of so many bytes.
    pub(crate) fn begin(
        daemon: &Client,
        backend: &str,
        headers: &[(&str, &str)],
        length: usize,
    ) -> Self {
        Self(begin(daemon, backend, headers, length))
    }

    /// Sends more of the body.
    pub(crate) fn send(&self, piece: &[u8]) {
        (&self.0).write_all(piece).expect("the daemon takes it");
    }
}

fn begin(daemon: &Client, backend: &str, headers: &[(&str, &str)], length: usize) -> UnixStream {
    let stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
    let mut head = format!(
        "POST /v1/backends/{backend}/call/raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
    );
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    let mut sink = &stream;
    sink.write_all(head.as_bytes()).and_then(|()| sink.write_all(b"\r\n")).expect("the head");
    stream
}

fn answer(mut stream: BufReader<UnixStream>) -> RawAnswer {
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).expect("a line of the head");
        line.trim_end().to_owned()
    };
    let status = line().split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let (mut source, mut length) = (String::new(), None);
    loop {
        let line = line();
        match line.split_once(": ") {
            Some(("x-fusebox-source", value)) => source = value.to_owned(),
            Some(("content-length", value)) => length = value.parse().ok(),
            Some(_) => {}
            None => break,
        }
    }
    let (mut bytes, mut beginning) = (0, Vec::new());
    let whole = read_body(&mut stream, length, |piece| {
        bytes += piece.len() as u64;
        let room = 4_096_usize.saturating_sub(beginning.len());
        beginning.extend_from_slice(&piece[..piece.len().min(room)]);
    });
    let beginning = String::from_utf8_lossy(&beginning).into_owned();
    RawAnswer { status, source, bytes, beginning, whole }
}

/// Reads a body of `length`, or in chunks; whether it came to its end.
fn read_body(
    stream: &mut BufReader<UnixStream>,
    length: Option<usize>,
    mut take: impl FnMut(&[u8]),
) -> bool {
    let mut buffer = vec![0; 1 << 16];
    let mut read = |stream: &mut BufReader<UnixStream>, mut left: usize| {
        while left > 0 {
            let most = left.min(buffer.len());
            match stream.read(&mut buffer[..most]) {
                Ok(0) | Err(_) => return false,
                Ok(count) => {
                    take(&buffer[..count]);
                    left -= count;
                }
            }
        }
        true
    };
    if let Some(length) = length {
        return read(stream, length);
    }
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).is_err() {
            return false;
        }
        match usize::from_str_radix(line.trim_end(), 16) {
            Ok(0) => return true,
            Ok(size) => {
                let mut end = [0; 2];
                if !read(stream, size) || stream.read_exact(&mut end).is_err() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
}
