//! A small blocking HTTP/1.1 client over a Unix socket: `Content-Length` and chunked bodies, one
//! connection kept per thread and socket.
//!
//! It never sends a request twice. A test that counts what was acknowledged must know which requests
//! may have been executed, so a failure says whether any byte had left.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// Longer than any deadline that the daemon keeps by itself.
const TIMEOUT: Duration = Duration::from_secs(60);

type Connection = BufReader<UnixStream>;

thread_local! {
    static KEPT: RefCell<HashMap<PathBuf, Connection>> = RefCell::default();
}

/// Why a request has no response.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody listens: nothing was executed.
    NotSent(io::Error),
    /// The connection broke after bytes may have left: it may have been executed.
    Lost(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(error) => write!(f, "nobody listens: {error}"),
            Self::Lost(error) => write!(f, "the answer was lost: {error}"),
        }
    }
}

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

/// A response's headers, their names in small letters.
#[derive(Debug, Default)]
pub(crate) struct Headers(HashMap<String, String>);

impl Headers {
    /// The value of the header `name`, given in small letters.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// Sends one request and reads its response.
pub(crate) fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Response, Failure> {
    request_with(socket, method, path, "", body)
}

/// The same with more headers, each with the end of its line.
pub(crate) fn request_with(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &str,
    body: Option<&Value>,
) -> Result<Response, Failure> {
    let kept = KEPT.with_borrow_mut(|kept| kept.remove(socket)).filter(is_idle);
    let mut connection = match kept {
        Some(connection) => connection,
        None => connect(socket).map_err(Failure::NotSent)?,
    };
    let response = exchange(&mut connection, method, path, headers, body).map_err(Failure::Lost)?;
    if response.headers.get("connection") != Some("close") {
        KEPT.with_borrow_mut(|kept| kept.insert(socket.to_owned(), connection));
    }
    Ok(response)
}

/// Asks for `path` and leaves its body to be read as it arrives; the stream shuts it down.
pub(crate) fn open_stream(socket: &Path, path: &str) -> io::Result<(UnixStream, Body<Connection>)> {
    let mut connection = connect(socket)?;
    connection.get_ref().set_read_timeout(None)?;
    send(connection.get_mut(), "GET", path, "", None)?;
    let (status, headers) = read_head(&mut connection)?;
    if status != 200 {
        return Err(io::Error::other(format!("GET {path}: {status}")));
    }
    let stream = connection.get_ref().try_clone()?;
    Ok((stream, Body::new(connection, status, &headers)?))
}

fn connect(socket: &Path) -> io::Result<Connection> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(BufReader::new(stream))
}

/// Whether a kept connection is open and has nothing to say.
fn is_idle(connection: &Connection) -> bool {
    let mut stream = connection.get_ref();
    let mut is_silent = || {
        stream.set_nonblocking(true)?;
        let read = stream.read(&mut [0]);
        stream.set_nonblocking(false)?;
        Ok::<_, io::Error>(read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock))
    };
    connection.buffer().is_empty() && is_silent().unwrap_or(false)
}

fn exchange(
    connection: &mut Connection,
    method: &str,
    path: &str,
    headers: &str,
    body: Option<&Value>,
) -> io::Result<Response> {
    send(connection.get_mut(), method, path, headers, body)?;
    let (status, headers) = read_head(connection)?;
    let mut bytes = Vec::new();
    Body::new(connection, status, &headers)?.read_to_end(&mut bytes)?;
    Ok(Response { status, headers, body: bytes })
}

fn send(
    stream: &mut UnixStream,
    method: &str,
    path: &str,
    headers: &str,
    body: Option<&Value>,
) -> io::Result<()> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json");
    stream.write_all(
        format!("{head}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes(),
    )
}

fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, Headers)> {
    let first = read_line(reader)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| malformed(&first))?;
    let mut headers = Headers::default();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
        headers.0.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let Some(whole) = line.strip_suffix('\n') else {
        return Err(ErrorKind::UnexpectedEof.into());
    };
    Ok(whole.trim_end_matches('\r').to_owned())
}

fn malformed(line: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("not HTTP: {line:?}"))
}

/// What is left of a body.
enum Left {
    /// This many bytes of a body whose length is known.
    Length(u64),
    /// This many bytes of the present chunk.
    Chunk(u64),
    Nothing,
}

/// A body as it arrives. A connection that breaks inside it is an error, not its end.
pub(crate) struct Body<R> {
    reader: R,
    left: Left,
}

impl<R: BufRead> Body<R> {
    fn new(reader: R, status: u16, headers: &Headers) -> io::Result<Self> {
        let length = headers.get("content-length");
        let left = if headers.get("transfer-encoding") == Some("chunked") {
            Left::Chunk(0)
        } else if let Some(length) = length {
            Left::Length(length.parse().map_err(|_| malformed(length))?)
        } else if matches!(status, 204 | 304) {
            Left::Nothing
        } else {
            return Err(malformed("a body without a length"));
        };
        Ok(Self { reader, left })
    }

    fn next_chunk(&mut self) -> io::Result<Left> {
        let size = read_line(&mut self.reader)?;
        let size = u64::from_str_radix(size.trim(), 16).map_err(|_| malformed(&size))?;
        if size > 0 {
            return Ok(Left::Chunk(size));
        }
        while !read_line(&mut self.reader)?.is_empty() {}
        Ok(Left::Nothing)
    }
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Left::Chunk(0) = self.left {
            self.left = self.next_chunk()?;
        }
        let (Left::Length(left) | Left::Chunk(left)) = &mut self.left else { return Ok(0) };
        let read = (&mut self.reader).take(*left).read(buffer)?;
        if read == 0 && *left > 0 && !buffer.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        *left -= u64::try_from(read).expect("a length fits");
        if let Left::Chunk(0) = self.left {
            read_line(&mut self.reader)?;
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use serde_json::json;

    use super::{Failure, open_stream, read_head, request};

    /// Answers each request of the one connection it accepts with the next of `answers`, then closes.
    fn serve(
        listener: UnixListener,
        answers: &'static [&'static str],
    ) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut connection = BufReader::new(listener.accept().unwrap().0);
            let mut bodies = String::new();
            for answer in answers {
                let mut first = String::new();
                connection.read_line(&mut first).unwrap();
                let mut head = b"HTTP/1.1 200 OK\r\n".chain(&mut connection);
                let (_, headers) = read_head(&mut head).unwrap();
                let length = headers.get("content-length").unwrap().parse().unwrap();
                let mut body = vec![0; length];
                connection.read_exact(&mut body).unwrap();
                bodies.push_str(&String::from_utf8(body).unwrap());
                connection.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            bodies
        })
    }

    #[test]
    fn reads_both_framings_over_one_kept_connection() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let server = serve(
            UnixListener::bind(&socket).unwrap(),
            &[
                "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
                "HTTP/1.1 204 No Content\r\n\r\n",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
            ],
        );
        let first = request(&socket, "POST", "/", Some(&json!([1]))).unwrap();
        assert_eq!((first.status, first.body.as_slice()), (202, b"{}".as_slice()));
        assert_eq!(request(&socket, "GET", "/", None).unwrap().body, b"abcde");
        assert_eq!(request(&socket, "DELETE", "/", None).unwrap().status, 204);
        assert!(matches!(request(&socket, "GET", "/", None), Err(Failure::Lost(_))));
        assert_eq!(server.join().unwrap(), "[1]");
    }

    #[test]
    fn nobody_listening_is_not_a_lost_request() {
        let folder = tempfile::tempdir().unwrap();
        let answer = request(&folder.path().join("none"), "GET", "/", None);
        assert!(matches!(answer, Err(Failure::NotSent(_))));
    }

    #[test]
    fn a_stream_is_read_as_it_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let server = serve(
            UnixListener::bind(&socket).unwrap(),
            &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\na\nb\n\r\n0\r\n\r\n"],
        );
        let (_stream, body) = open_stream(&socket, "/").unwrap();
        let lines: Vec<String> = BufReader::new(body).lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["a", "b"]);
        server.join().unwrap();
    }
}
