//! A client of each protocol that asks one thing at a time and waits no longer than its limit.

use std::{
    io::{Error, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::support::recording::Ended;

/// How a server is spoken to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Redis,
    ClickHouse,
    Postgres,
}

/// A connection, or none yet.
pub(crate) struct Client {
    pub(crate) wire: Wire,
    pub(crate) address: SocketAddr,
    stream: Option<TcpStream>,
}

impl Client {
    pub(crate) fn new(wire: Wire, address: SocketAddr) -> Self {
        Self { wire, address, stream: None }
    }

    /// Asks, on the connection there is or a new one; a connection that gave no answer is closed.
    pub(crate) fn ask(&mut self, what: &str, patience: Duration) -> Ended {
        let until = Instant::now() + patience;
        match self.try_ask(what, until) {
            Ok(true) => Ended::Answered,
            Ok(false) => Ended::Failed,
            Err(error) => {
                self.stream = None;
                match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => Ended::TimedOut,
                    _ => Ended::Failed,
                }
            }
        }
    }

    /// Asks what must succeed, with as much time as it needs.
    #[track_caller]
    pub(crate) fn prepare(&mut self, what: &str) {
        let ended = self.ask(what, Duration::from_secs(60));
        assert_eq!(ended, Ended::Answered, "{what:.200}");
    }

    fn try_ask(&mut self, what: &str, until: Instant) -> std::io::Result<bool> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect(until)?,
        };
        let message = match self.wire {
            Wire::Redis => format!("{}\r\n", what.replace('\n', "\r\n")).into_bytes(),
            Wire::ClickHouse => format!(
                "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-ClickHouse-User: default\r\n\
                 X-ClickHouse-Database: default\r\nContent-Length: {}\r\n\r\n{what}",
                what.len()
            )
            .into_bytes(),
            Wire::Postgres => frame(Some(b'Q'), format!("{what}\0").as_bytes()),
        };
        stream.write_all(&message)?;
        let good = match self.wire {
            Wire::Redis => read_until(&mut stream, until, |bytes| {
                what.lines()
                    .try_fold(0, |at, _| reply(bytes, at))
                    .map(|_| bytes.first() != Some(&b'-'))
            }),
            Wire::ClickHouse => read_to_end(&mut stream, until),
            Wire::Postgres => read_until(&mut stream, until, ready),
        }?;
        if self.wire != Wire::ClickHouse {
            self.stream = Some(stream);
        }
        Ok(good)
    }

    fn connect(&self, until: Instant) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, left(until)?)?;
        stream.set_nodelay(true)?;
        if self.wire == Wire::Postgres {
            let hello = frame(None, b"\0\x03\0\0user\0postgres\0database\0postgres\0\0");
            stream.write_all(&hello)?;
            if !read_until(&mut stream, until, ready)? {
                return Err(ErrorKind::ConnectionRefused.into());
            }
        }
        Ok(stream)
    }

    /// Closes the connection.
    pub(crate) fn leave(&mut self) {
        self.stream = None;
    }
}

fn left(until: Instant) -> std::io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Error::from(ErrorKind::TimedOut)) } else { Ok(left) }
}

fn read_until(
    stream: &mut TcpStream,
    until: Instant,
    whole: impl Fn(&[u8]) -> Option<bool>,
) -> std::io::Result<bool> {
    let (mut bytes, mut block) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut block)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => bytes.extend(block.get(..read).unwrap_or_default()),
        }
        if let Some(good) = whole(&bytes) {
            return Ok(good);
        }
    }
}

/// Reads an answer over HTTP that ends with its connection.
fn read_to_end(stream: &mut TcpStream, until: Instant) -> std::io::Result<bool> {
    let (mut head, mut block) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        stream.set_read_timeout(Some(left(until)?))?;
        let read = stream.read(&mut block)?;
        if read == 0 {
            return if head.is_empty() {
                Err(ErrorKind::UnexpectedEof.into())
            } else {
                Ok(head.starts_with(b"HTTP/1.1 200"))
            };
        }
        if head.len() < 64 {
            head.extend(block.get(..read).unwrap_or_default());
        }
    }
}

/// The end of the reply of Redis that begins at `at`; `None` while it is not whole.
fn reply(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    let line = rest.windows(2).position(|two| two == b"\r\n")?;
    let number = || std::str::from_utf8(rest.get(1..line)?).ok()?.parse::<i64>().ok();
    let next = at + line + 2;
    match rest.first()? {
        b'$' => {
            let length = usize::try_from(number()?).ok();
            let end = length.map_or(next, |length| next + length + 2);
            (bytes.len() >= end).then_some(end)
        }
        b'*' => (0..number()?).try_fold(next, |at, _| reply(bytes, at)),
        _ => Some(next),
    }
}

/// Whether the answer of `PostgreSQL` is good; `None` while it is not whole.
fn ready(bytes: &[u8]) -> Option<bool> {
    let (mut at, mut good) = (0, true);
    loop {
        let kind = *bytes.get(at)?;
        let length = bytes.get(at + 1..at + 5)?.try_into().ok().map(u32::from_be_bytes)?;
        at += 1 + length as usize;
        if at > bytes.len() {
            return None;
        }
        match kind {
            b'E' => good = false,
            b'Z' => return Some(good),
            _ => {}
        }
    }
}

fn frame(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a short message").to_be_bytes();
    kind.into_iter().chain(length).chain(body.iter().copied()).collect()
}
