//! A request as a client of the HTTP interface sent it, and the server's answer to it, in wire form.
//!
//! ```text
//! request  4 │ length of the head, 4 bytes, little endian │ head, by bincode │ the body, or its beginning
//! answer   4 │ length of the head, 4 bytes, little endian │ head, by bincode │ the body, or its beginning
//! ```
//! The bytes of a body are the sender's own. What is known of the request without reading it again is in its head.
//! Such a request is never queued, so its form outlives no release. Answers that are kept on disk do: the keys of the
//! cache have the version in them, so that answers of another version are not found.

use std::borrow::Cow;

use bincode::{BorrowDecode, Decode, Encode, config};
use bytes::{BufMut, Bytes, BytesMut};

use super::{decoded::Packing, wire::WireError};

/// What tells it from a [call](super::wire::Call), whose versions are 1 and 3.
pub(super) const VERSION: u8 = 4;
/// Bytes before the head.
const BEFORE: usize = 5;
/// Room that most heads fit into.
const HEAD_USUAL: usize = 2_048;
/// More than any head that was written, in bytes of memory: 16 MiB of a request, and what is known of it.
const HEAD_MAX: usize = 64 << 20;

/// Headers in their order. A value is a character for each byte, so that it may hold any.
pub(crate) type Fields = Vec<(String, String)>;

/// The head of a request.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one request")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RequestHead {
    /// The method.
    pub(crate) method: String,
    /// Path and query string, without credentials.
    pub(crate) target: String,
    /// The headers that go to the server.
    pub(crate) headers: Fields,
    /// The parameter `query`, decoded; empty if there is none. The server puts it before the body.
    pub(crate) query: String,
    /// The query's id, if the client gave it one.
    pub(crate) query_id: Option<String>,
    /// Whether every server takes it for a query, so that it has an id. Another path may be one of queries as well.
    pub(crate) is_query: bool,
    /// Whether it is known what the server takes the parameters for: all of them are text, and no name is there twice or
    /// in another case. Else nothing is known of the statement.
    pub(crate) is_clear: bool,
    /// The parameters, decoded, without credentials and the text of the query.
    pub(crate) parameters: Vec<(String, String)>,
    /// Whether the body is text without decoding: not compressed, and no form.
    pub(crate) is_plain: bool,
    /// How the body is packed, if it can be unpacked here.
    pub(crate) packing: Option<Packing>,
    /// What was unpacked of it.
    pub(crate) unpacked: Option<Unpacked>,
    /// Whether all of the body is here.
    pub(crate) is_whole: bool,
}

/// What is known of the statement in a packed body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Unpacked {
    /// The text, without the rows of an INSERT; empty if it is not known.
    pub(crate) text: String,
    /// Whether the statement is known by it: nothing follows but the rows of an INSERT.
    pub(crate) is_known: bool,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpRequest {
    pub(crate) head: RequestHead,
    /// The body, or its beginning.
    pub(crate) body: Bytes,
}

/// The head of an answer. Its texts are parts of what it was read from, not copies: every answer goes through here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
pub(crate) struct AnswerHead<'a> {
    /// The status.
    pub(crate) status: u16,
    /// The server's headers, with values as in [`Fields`].
    pub(crate) headers: Vec<(&'a str, Cow<'a, str>)>,
}

impl<'a> AnswerHead<'a> {
    /// The head that has these headers.
    pub(crate) fn new(status: u16, headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        Self { status, headers: headers.map(|(name, value)| (name, text_of(value))).collect() }
    }

    /// The first header of a name, which is in small letters.
    pub(crate) fn header(&self, wanted: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| *name == wanted).map(|(_, value)| &**value)
    }
}

impl HttpRequest {
    /// The request in wire form.
    pub(crate) fn to_bytes(&self) -> Bytes {
        form(&self.head, &self.body)
    }

    /// The request that `bytes` are; its body shares their memory. `None` if they are of another form.
    ///
    /// # Errors
    /// They are of this form, and damaged.
    pub(crate) fn of(bytes: &Bytes) -> Option<Result<Self, WireError>> {
        let read = read(bytes)?;
        Some(read.map(|(head, body)| Self { head, body }))
    }
}

/// The answer in wire form.
pub(crate) fn answer(head: &AnswerHead<'_>, body: &[u8]) -> Bytes {
    form(head, body)
}

/// The answer that `bytes` are, and its body, or the body's beginning.
pub(crate) fn answer_of(bytes: &Bytes) -> Option<(AnswerHead<'_>, Bytes)> {
    read(bytes)?.ok()
}

/// Whether `bytes` are an answer, by their beginning.
pub(crate) fn is_answer(bytes: &[u8]) -> bool {
    bytes.len() >= BEFORE && bytes.first() == Some(&VERSION)
}

/// Trailers in wire form; empty for none.
pub(crate) fn trailers(fields: &Fields) -> Bytes {
    if fields.is_empty() {
        return Bytes::new();
    }
    bincode::encode_to_vec(fields, config::standard()).unwrap_or_default().into()
}

/// The trailers that `bytes` are.
pub(crate) fn trailers_of(bytes: &[u8]) -> Fields {
    let limit = config::standard().with_limit::<HEAD_MAX>();
    match bincode::decode_from_slice(bytes, limit) {
        Ok((fields, read)) if read == bytes.len() => fields,
        _ => Fields::new(),
    }
}

/// A header's value as text, a character for each byte.
pub(crate) fn text_of(value: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(value) {
        Ok(text) if text.is_ascii() => text.into(),
        _ => value.iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// The bytes of a header's value.
pub(crate) fn bytes_of(text: &str) -> Cow<'_, [u8]> {
    if text.is_ascii() {
        return Cow::Borrowed(text.as_bytes());
    }
    text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect::<Vec<u8>>().into()
}

fn form(head: &impl Encode, body: &[u8]) -> Bytes {
    // Structs of texts and numbers always have such a form.
    let mut bytes = BytesMut::with_capacity(BEFORE + HEAD_USUAL + body.len()).writer();
    bytes.get_mut().put_bytes(0, BEFORE);
    let len = bincode::encode_into_std_write(head, &mut bytes, config::standard()).unwrap_or(0);
    let mut bytes = bytes.into_inner();
    let len = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    for (at, byte) in bytes.iter_mut().zip([VERSION].into_iter().chain(len)) {
        *at = byte;
    }
    bytes.put_slice(body);
    bytes.freeze()
}

fn read<'a, H: BorrowDecode<'a, ()>>(bytes: &'a Bytes) -> Option<Result<(H, Bytes), WireError>> {
    let (before, behind) = bytes.split_at_checked(BEFORE)?;
    let [VERSION, a, b, c, d] = *before else { return None };
    let head = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok().and_then(|len| {
        let head = behind.get(..len)?;
        let limit = config::standard().with_limit::<HEAD_MAX>();
        let (head, read) = bincode::borrow_decode_from_slice(head, limit).ok()?;
        (read == len).then(|| (head, bytes.slice(BEFORE + len..)))
    });
    Some(head.ok_or(WireError::Damaged))
}

#[cfg(test)]
mod tests {
    use super::{super::wire, *};

    #[test]
    fn a_request_and_an_answer_survive_their_wire_forms() {
        let head = RequestHead {
            method: "POST".into(),
            target: "/?query=SELECT%201".into(),
            headers: vec![("x-name".into(), text_of(b"caf\xe9").into_owned())],
            query: "SELECT 1".into(),
            ..RequestHead::default()
        };
        let request = HttpRequest { head, body: Bytes::from_static(b"\0\xff") };
        let bytes = request.to_bytes();
        assert_eq!(HttpRequest::of(&bytes), Some(Ok(request)));
        assert_eq!(wire::Call::of(&bytes), Err(WireError::Version(4)));
        let head = AnswerHead { status: 404, headers: vec![("a", "b".into())] };
        assert_eq!(answer_of(&answer(&head, b"x")), Some((head, Bytes::from_static(b"x"))));
        assert_eq!(&*bytes_of(&text_of(b"caf\xe9")), b"caf\xe9");
        let fields = vec![("x-trailer".to_owned(), "1".to_owned())];
        assert_eq!(trailers_of(&trailers(&fields)), fields);
        assert!(trailers(&Fields::new()).is_empty() && trailers_of(b"").is_empty());
    }

    #[test]
    fn what_is_of_another_form_is_no_request_and_what_is_cut_short_is_damaged() {
        let call = wire::Call { header: wire::Header::default(), data: Bytes::new() }.to_bytes();
        assert_eq!(HttpRequest::of(&call), None);
        assert_eq!(HttpRequest::of(&Bytes::from_static(b"\x04")), None);
        for cut in [&b"\x04\x09\0\0\0\0\0"[..], b"\x04\x02\0\0\0\0\xff", b"\x04\xff\xff\xff\xff"] {
            let cut = Bytes::copy_from_slice(cut);
            assert_eq!(HttpRequest::of(&cut), Some(Err(WireError::Damaged)));
        }
    }
}
