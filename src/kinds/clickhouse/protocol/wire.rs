//! The wire forms of a call and of a reply.
//!
//! ```text
//! call   1 │ length of the header, 4 bytes, little endian │ header as JSON │ data
//! raw    3 │ the same; the data is the body of a request, as a client of the door sent it ([`Raw`])
//! reply  1 │ length of the name │ the format's name │ the bytes that the server sent
//! ```
//! Queued calls outlive a release: members may be added to the header, and what a release does not know it
//! passes over. What it must not pass over wants another version byte, which earlier ones refuse.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::decoded::Packing;

const VERSION: u8 = 1;
/// A call with [`Raw`], which earlier releases would send as what it is not. 2 is taken by
/// [`http_form`](super::http_form).
const RAW: u8 = 3;
/// Bytes before a call's header.
const HEAD: usize = 5;
/// The name under which the summary of a write is its reply.
pub(crate) const SUMMARY: &str = "summary";

/// What a call asks, beside its data.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Header {
    /// The statement.
    pub query: String,
    /// The values of `{name:Type}`, as the server reads them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, String>,
    /// Settings for this call alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// The format of the answer, or of the data, if the statement names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The database, if not the backend's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The data is a whole body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) raw: Option<Raw>,
}

/// A body that is sent as it is. The rows begin somewhere in it, and the statement may, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Raw {
    /// The parameter `query`, which the server puts before the body.
    pub(crate) query: String,
    /// How the body is packed.
    pub(crate) packing: Packing,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it asks.
    pub header: Header,
    /// The rows of an INSERT that are not in the statement.
    pub data: Bytes,
}

/// Bytes that are no call of this release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Made by a later release.
    #[error("the call has version {0}, which this release does not know")]
    Version(u8),
    /// Cut short, or no header.
    #[error("the call is damaged")]
    Damaged,
}

impl Call {
    /// The call in wire form.
    pub fn to_bytes(&self) -> Bytes {
        // A struct of texts always has a JSON form.
        let header = serde_json::to_vec(&self.header).unwrap_or_default();
        let mut bytes = BytesMut::with_capacity(HEAD + header.len() + self.data.len());
        bytes.put_u8(if self.header.raw.is_some() { RAW } else { VERSION });
        bytes.put_u32_le(u32::try_from(header.len()).unwrap_or(u32::MAX));
        bytes.put_slice(&header);
        bytes.put_slice(&self.data);
        bytes.freeze()
    }

    /// The call that `bytes` are; its data shares their memory.
    ///
    /// # Errors
    /// They are none, or a later release's.
    pub fn of(bytes: &Bytes) -> Result<Self, WireError> {
        let (head, behind) = bytes.split_at_checked(HEAD).ok_or(WireError::Damaged)?;
        let [version, a, b, c, d] = *head else { return Err(WireError::Damaged) };
        if version != VERSION && version != RAW {
            return Err(WireError::Version(version));
        }
        let len =
            usize::try_from(u32::from_le_bytes([a, b, c, d])).map_err(|_| WireError::Damaged)?;
        let header = behind.get(..len).ok_or(WireError::Damaged)?;
        let header: Header = serde_json::from_slice(header).map_err(|_| WireError::Damaged)?;
        if header.raw.is_some() != (version == RAW) {
            return Err(WireError::Damaged);
        }
        Ok(Self { header, data: bytes.slice(HEAD + len..) })
    }
}

/// The beginning of a call's data, by its first bytes.
pub(crate) fn header_end(beginning: &[u8]) -> Option<usize> {
    let [_, a, b, c, d] = *beginning.first_chunk::<HEAD>()?;
    usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?.checked_add(HEAD)
}

/// The beginning of a reply in `format`, to which the server's bytes are added.
pub(crate) fn begin_reply(format: &str, capacity: usize) -> BytesMut {
    let name = format.as_bytes().get(..255).unwrap_or(format.as_bytes());
    let mut reply = BytesMut::with_capacity(2 + name.len() + capacity);
    reply.put_u8(VERSION);
    reply.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    reply.put_slice(name);
    reply
}

/// A whole reply.
pub(crate) fn reply(format: &str, body: &[u8]) -> Bytes {
    let mut reply = begin_reply(format, body.len());
    reply.put_slice(body);
    reply.freeze()
}

/// The format's name and the server's bytes. What is not a reply is taken as bytes of no format.
pub fn parts_of(reply: &Bytes) -> (String, Bytes) {
    let (name, body) = parts(reply);
    (name.to_owned(), reply.slice_ref(body))
}

/// The same in place.
pub(crate) fn parts(reply: &[u8]) -> (&str, &[u8]) {
    let parts = || {
        let [VERSION, len, ..] = *reply else { return None };
        let (name, body) = reply.get(2..)?.split_at_checked(usize::from(len))?;
        Some((std::str::from_utf8(name).ok()?, body))
    };
    parts().unwrap_or(("", reply))
}

#[cfg(test)]
mod tests {
    use super::{super::decoded::Coding, *};

    #[test]
    fn a_call_survives_its_wire_form() {
        let header = Header {
            query: "INSERT INTO t FORMAT RowBinary".into(),
            params: [("a".to_owned(), "1".to_owned())].into(),
            format: Some("RowBinary".into()),
            ..Header::default()
        };
        let call = Call { header, data: Bytes::from_static(b"\0\xff") };
        assert_eq!(Call::of(&call.to_bytes()), Ok(call));
    }

    #[test]
    fn a_body_as_it_was_sent_has_a_version_that_earlier_releases_refuse() {
        let raw = Raw {
            query: String::new(),
            packing: Packing { coding: Some(Coding::Lz4), blocks: true },
        };
        let header =
            Header { query: "INSERT INTO t VALUES".into(), raw: Some(raw), ..Header::default() };
        let call = Call { header, data: Bytes::from_static(b"\x04\x22") };
        let bytes = call.to_bytes();
        let header = br#"{"query":"INSERT INTO t VALUES","raw":{"query":"","packing":{"coding":"lz4","blocks":true}}}"#;
        assert_eq!((bytes[0], &bytes[5..5 + header.len()]), (RAW, &header[..]));
        assert_eq!(Call::of(&bytes), Ok(call));
        let mut other = bytes.to_vec();
        other[0] = VERSION;
        assert_eq!(Call::of(&other.into()), Err(WireError::Damaged));
    }

    #[test]
    fn members_of_a_later_release_are_passed_over_and_its_version_is_not() {
        let header = br#"{"query":"SELECT 1","later":true}"#;
        let mut bytes = vec![1, u8::try_from(header.len()).unwrap(), 0, 0, 0];
        bytes.extend_from_slice(header);
        assert_eq!(Call::of(&bytes.clone().into()).unwrap().header.query, "SELECT 1");
        bytes[0] = 2;
        assert_eq!(Call::of(&bytes.into()), Err(WireError::Version(2)));
    }

    #[test]
    fn what_is_no_call_is_damaged() {
        for bytes in [&b""[..], b"\x01\x09\0\0\0{}", b"\x01\x02\0\0\0[]", b"\x01\xff\xff\xff\xff"] {
            assert_eq!(Call::of(&Bytes::copy_from_slice(bytes)), Err(WireError::Damaged));
        }
    }

    #[test]
    fn a_reply_names_its_format() {
        let (format, body) = parts_of(&reply("JSON", b"{}"));
        assert_eq!((format.as_str(), &*body), ("JSON", &b"{}"[..]));
        let (format, body) = parts_of(&Bytes::from_static(b"\x01\x09JSON"));
        assert_eq!((format.as_str(), body.len()), ("", 6));
        assert_eq!(parts_of(&reply(&"x".repeat(300), b"y")).0.len(), 255);
    }
}
