//! Bodies that come in a content coding (`Content-Encoding`), decoded at the door.
//!
//! Every route gets a request's body as it was before it was encoded, or the request is refused with 415.
//! Nothing behind the door knows of codings, so compressed bytes are never taken for a call or for rows.
//!
//! A body is decoded while it is read, in pieces of [`PIECE`] bytes, which deflate makes at most about a
//! thousand times as many: neither the body nor what it becomes is ever held as a whole here. Whoever reads it
//! counts the decoded bytes against its limit, so that a bomb ends there with 413. A body that is cut short, has
//! a wrong checksum, or goes on after its end breaks off with [`NotDecoded`], which is a 400.

use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody},
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use flate2::{Decompress, FlushDecompress, Status, write::MultiGzDecoder};
use futures_util::StreamExt;
use hyper::body::Frame;

use super::problem::Problem;

/// The codings that are decoded.
const TAKEN: &str = "gzip, deflate";
/// How much is decoded at once, in encoded bytes.
const PIECE: usize = 1 << 10;
/// After so many decoded bytes the task lets others get on.
const TURN: usize = 1 << 20;

/// Passes a request on with its body decoded.
pub(crate) async fn pass(mut request: Request, next: Next) -> Response {
    match coding_of(request.headers()) {
        Ok(None) => next.run(request).await,
        Ok(Some(coding)) => {
            let headers = request.headers_mut();
            headers.remove(header::CONTENT_ENCODING);
            headers.remove(header::CONTENT_LENGTH);
            next.run(request.map(|body| Body::new(Decoding::new(body, coding)))).await
        }
        Err(problem) => {
            let mut response = problem.into_response();
            let taken = HeaderValue::from_static(TAKEN);
            response.headers_mut().insert(header::ACCEPT_ENCODING, taken);
            response
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
}

/// The one coding of a body; `None` if it has none.
fn coding_of(headers: &HeaderMap) -> Result<Option<Coding>, Problem> {
    let mut found = None;
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let text = String::from_utf8_lossy(value.as_bytes());
        for word in text.split(',').map(str::trim) {
            let coding = match word.to_ascii_lowercase().as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => Coding::Gzip,
                "deflate" => Coding::Deflate,
                _ => return Err(not_taken(&format!("Content-Encoding {word:?}"))),
            };
            if found.replace(coding).is_some() {
                return Err(not_taken("more than one Content-Encoding"));
            }
        }
    }
    Ok(found)
}

fn not_taken(what: &str) -> Problem {
    let what: String = what.chars().take(100).collect();
    let detail =
        format!("{what} is not supported: send one of {TAKEN}, or the body without an encoding");
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", detail)
}

/// A body that is not what its `Content-Encoding` says.
#[derive(Debug)]
pub(crate) struct NotDecoded(String);

impl NotDecoded {
    /// The answer to a body's error, if this is its cause.
    pub(crate) fn in_error(error: &(dyn Error + 'static)) -> Option<String> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found.to_string());
            }
            cause = error.source();
        }
        None
    }
}

impl fmt::Display for NotDecoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NotDecoded {}

/// Takes encoded bytes and gives decoded ones.
enum Decoder {
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    /// Whether the stream has come to its end.
    Deflate(Box<Decompress>, bool),
}

impl Decoder {
    fn new(coding: Coding) -> Self {
        match coding {
            Coding::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            // The coding `deflate` is a zlib stream.
            Coding::Deflate => Self::Deflate(Box::new(Decompress::new(true)), false),
        }
    }

    /// What `bytes` add.
    fn push(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(decoder) => {
                io::Write::write_all(decoder, bytes)?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(decoder, ended) => {
                let mut out = Vec::new();
                inflate(decoder, bytes, ended, &mut out)?;
                Ok(out)
            }
        }
    }

    /// What was still held back, once the body has ended.
    fn finish(mut self) -> io::Result<Vec<u8>> {
        match &mut self {
            Self::Gzip(decoder) => {
                decoder.try_finish()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(_, true) => Ok(Vec::new()),
            Self::Deflate(_, false) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Gzip(_) => "gzip",
            Self::Deflate(..) => "deflate",
        }
    }
}

fn inflate(
    decoder: &mut Decompress,
    mut bytes: &[u8],
    ended: &mut bool,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    loop {
        if *ended {
            let behind = || io::Error::other("there is data after its end");
            return if bytes.is_empty() { Ok(()) } else { Err(behind()) };
        }
        out.reserve(PIECE * 16);
        let (read, written) = (decoder.total_in(), out.len());
        let status = decoder.decompress_vec(bytes, out, FlushDecompress::None)?;
        *ended = status == Status::StreamEnd;
        let read = usize::try_from(decoder.total_in() - read).unwrap_or(usize::MAX);
        bytes = bytes.get(read..).unwrap_or_default();
        // If the room was not filled, nothing is held back.
        if !*ended && bytes.is_empty() && out.len() < out.capacity() {
            return Ok(());
        }
        if !*ended && read == 0 && out.len() == written {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// A body, decoded while it is read.
struct Decoding {
    body: BodyDataStream,
    /// `None` once it has ended, well or not.
    decoder: Option<Decoder>,
    encoded: Bytes,
    /// Decoded bytes since the task last rested.
    decoded: usize,
}

impl Decoding {
    fn new(body: Body, coding: Coding) -> Self {
        let decoder = Some(Decoder::new(coding));
        Self { body: body.into_data_stream(), decoder, encoded: Bytes::new(), decoded: 0 }
    }

    /// The next step's bytes, which may be none; `None` at the end.
    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>, axum::BoxError>>> {
        let Some(decoder) = &mut self.decoder else { return Poll::Ready(None) };
        let name = decoder.name();
        let bytes = if self.encoded.is_empty() {
            match ready!(self.body.poll_next_unpin(cx)) {
                Some(Ok(data)) => {
                    self.encoded = data;
                    return Poll::Ready(Some(Ok(Vec::new())));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.decoder.take().map_or_else(|| Ok(Vec::new()), Decoder::finish),
            }
        } else {
            decoder.push(&self.encoded.split_to(PIECE.min(self.encoded.len())))
        };
        Poll::Ready(Some(bytes.map_err(|error| {
            self.decoder = None;
            NotDecoded(format!("the body is not complete and valid {name}: {error}")).into()
        })))
    }
}

impl HttpBody for Decoding {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        loop {
            if self.decoded >= TURN {
                self.decoded = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let decoded = match ready!(self.step(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(decoded)) => decoded,
            };
            // A piece that adds nothing took its time all the same.
            self.decoded += decoded.len().max(PIECE);
            if !decoded.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(decoded.into()))));
            }
        }
    }
}

/// The body that `body` is in gzip.
#[cfg(test)]
pub(crate) fn gunzipped(body: Body) -> Body {
    Body::new(Decoding::new(body, Coding::Gzip))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{
        Compression,
        write::{GzEncoder, ZlibEncoder},
    };
    use futures_util::stream;
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn encode(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        if coding == Coding::Gzip { gzip(bytes) } else { deflate(bytes) }
    }

    /// What becomes of a body that comes in pieces of `size`, and the largest piece of it.
    async fn decoded(
        coding: Coding,
        encoded: &[u8],
        size: usize,
    ) -> Result<(Vec<u8>, usize), String> {
        let pieces: Vec<Result<Bytes, io::Error>> =
            encoded.chunks(size.max(1)).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let mut body = Body::new(Decoding::new(Body::from_stream(stream::iter(pieces)), coding));
        let (mut all, mut largest) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let data = frame
                .map_err(|error| NotDecoded::in_error(&error).expect("it is the body's own fault"))?
                .into_data()
                .unwrap();
            largest = largest.max(data.len());
            all.extend_from_slice(&data);
        }
        Ok((all, largest))
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| (header::CONTENT_ENCODING, value.parse().unwrap()));
        values.collect()
    }

    #[test]
    fn one_known_coding_is_taken_and_every_other_named() {
        for (values, coding) in [
            (&[][..], None),
            (&["identity"], None),
            (&[""], None),
            (&["gzip"], Some(Coding::Gzip)),
            (&["X-GZip"], Some(Coding::Gzip)),
            (&["identity, deflate"], Some(Coding::Deflate)),
        ] {
            assert_eq!(coding_of(&headers(values)).unwrap(), coding, "{values:?}");
        }
        for (values, part) in [
            (&["br"][..], "Content-Encoding \"br\" is not supported: send one of gzip, deflate"),
            (&["zstd"], "\"zstd\""),
            (&["gzip, gzip"], "more than one"),
            (&["gzip", "deflate"], "more than one"),
            (&["gzip;q=1"], "\"gzip;q=1\""),
        ] {
            let problem = coding_of(&headers(values)).unwrap_err();
            assert_eq!(problem.status(), 415);
            let told = serde_json::to_string(&problem).unwrap().replace("\\\"", "\"");
            assert!(told.contains(part), "{told}");
        }
    }

    #[tokio::test]
    async fn several_members_of_gzip_are_one_body() {
        let both = [gzip(b"one "), gzip(b"two")].concat();
        for size in [1, 7, 1 << 20] {
            assert_eq!(decoded(Coding::Gzip, &both, size).await.unwrap().0, b"one two");
        }
    }

    #[tokio::test]
    async fn what_is_not_whole_or_not_valid_is_told() {
        let text = vec![b'x'; 100_000];
        for coding in [Coding::Gzip, Coding::Deflate] {
            let whole = encode(coding, &text);
            let mut broken = vec![
                Vec::new(),
                text.clone(),
                whole[..whole.len() - 1].to_vec(),
                whole[..whole.len() / 2].to_vec(),
                [whole.as_slice(), b"x"].concat(),
            ];
            let mut flipped = whole.clone();
            let last = flipped.len() - 6;
            flipped[last] ^= 1;
            broken.push(flipped);
            for (case, bytes) in broken.iter().enumerate() {
                let why = decoded(coding, bytes, 10).await.expect_err(&format!("{case}"));
                assert!(why.starts_with("the body is not complete and valid "), "{case}: {why}");
            }
        }
    }

    #[tokio::test]
    async fn a_bomb_comes_in_small_pieces() {
        let zeros = vec![0; 64 << 20];
        for coding in [Coding::Gzip, Coding::Deflate] {
            let bomb = encode(coding, &zeros);
            assert!(bomb.len() < 100_000);
            let (all, largest) = decoded(coding, &bomb, 1 << 20).await.unwrap();
            assert_eq!(all.len(), zeros.len());
            assert!(largest <= 2 << 20, "{largest} at once");
        }
    }

    proptest! {
        #[test]
        fn a_body_is_what_it_was_before(
            bytes in prop::collection::vec(0_u8..4, 0..40_000),
            size in 1_usize..5_000,
            gzipped: bool,
        ) {
            let coding = if gzipped { Coding::Gzip } else { Coding::Deflate };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let encoded = encode(coding, &bytes);
            let got = runtime.block_on(decoded(coding, &encoded, size)).unwrap().0;
            prop_assert_eq!(got, bytes);
        }
    }
}
