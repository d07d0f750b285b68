//! A call and a reply in wire form: a version byte, then a message of Protocol Buffers.
//!
//! The queue stores bodies, so they are read for years: fields are added, never changed. Documents have
//! their paths below the database's root, not their full names, so that a body says the same wherever it
//! is sent. A version that is not known here is refused, not guessed at.

use bytes::{BufMut, Bytes, BytesMut};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Document, StructuredQuery, Write, WriteResult,
};
use prost::{Message, Oneof};
use prost_types::Timestamp;

/// The version of both forms.
const VERSION: u8 = 1;

/// A call.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Call {
    #[prost(oneof = "Op", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) op: Option<Op>,
    /// The transaction in which it is carried; empty for none.
    #[prost(bytes = "bytes", tag = "14")]
    pub(crate) transaction: Bytes,
    /// The caller's own credentials. Such a call is never queued, so they are never stored.
    #[prost(string, tag = "15")]
    pub(crate) token: String,
}

/// What a call does.
#[expect(clippy::large_enum_variant, reason = "prost wants the message itself; one call has one")]
#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Op {
    #[prost(message, tag = "1")]
    Get(Get),
    #[prost(message, tag = "2")]
    Query(Query),
    #[prost(message, tag = "3")]
    Commit(Commit),
    #[prost(message, tag = "4")]
    Begin(Begin),
    #[prost(message, tag = "5")]
    Rollback(Rollback),
    #[prost(message, tag = "6")]
    Asked(Asked),
}

/// Reads documents.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Get {
    #[prost(string, repeated, tag = "1")]
    pub(crate) paths: Vec<String>,
    /// Answered with an array, also for one.
    #[prost(bool, tag = "2")]
    pub(crate) many: bool,
}

/// Reads what a query finds.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Query {
    /// The document below which it looks; empty for the root.
    #[prost(string, tag = "1")]
    pub(crate) parent: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) query: Option<StructuredQuery>,
}

/// Writes, all or none of them.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Commit {
    #[prost(message, repeated, tag = "1")]
    pub(crate) writes: Vec<Write>,
    /// Answered with an array of results, also for one.
    #[prost(bool, tag = "2")]
    pub(crate) many: bool,
}

/// Begins a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Begin {
    #[prost(bool, tag = "1")]
    pub(crate) read_only: bool,
}

/// Ends the call's transaction without its writes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Rollback {}

/// Asks in the words of a client of the door. It reads, and is never queued.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Asked {
    /// The number of a [`Question`].
    #[prost(enumeration = "Question", tag = "1")]
    pub(crate) question: i32,
    /// The client's own message.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) message: Bytes,
}

/// The methods by which a client of the door asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Question {
    /// None that is known.
    Unknown = 0,
    /// `RunQuery`
    Query = 1,
    /// `RunAggregationQuery`
    Aggregation = 2,
}

impl Question {
    /// What it is called in records and traces.
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Aggregation => "aggregate",
            Self::Unknown => "unknown",
        }
    }
}

/// A reply.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reply {
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub(crate) answer: Option<Answer>,
}

/// What a reply says.
#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Answer {
    #[prost(message, tag = "1")]
    One(Found),
    #[prost(message, tag = "2")]
    Many(FoundList),
    #[prost(message, tag = "3")]
    Written(WriteResult),
    #[prost(message, tag = "4")]
    Committed(Committed),
    #[prost(bytes, tag = "5")]
    Transaction(Bytes),
    #[prost(bool, tag = "6")]
    Done(bool),
    #[prost(message, tag = "7")]
    Messages(Messages),
}

/// What the server answered to what a client of the door asked, message by message.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Messages {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(crate) messages: Vec<Bytes>,
}

/// What a path held.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Found {
    #[prost(string, tag = "1")]
    pub(crate) path: String,
    /// Without its name, which the path is. `None` if there is no such document.
    #[prost(message, optional, tag = "2")]
    pub(crate) document: Option<Document>,
    /// Whether a time in it is a guess at what the server will write.
    #[prost(bool, tag = "3")]
    pub(crate) estimated: bool,
    /// When the last of the queued writes that make the document was accepted. `None` for what the server said.
    #[prost(message, optional, tag = "4")]
    pub(crate) accepted_at: Option<Timestamp>,
}

/// What several paths held, or what a query found.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FoundList {
    #[prost(message, repeated, tag = "1")]
    pub(crate) found: Vec<Found>,
}

/// What a commit did.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Committed {
    #[prost(message, repeated, tag = "1")]
    pub(crate) results: Vec<WriteResult>,
    #[prost(message, optional, tag = "2")]
    pub(crate) time: Option<Timestamp>,
}

/// A message behind its version byte.
pub(crate) fn encode(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + message.encoded_len());
    out.put_u8(VERSION);
    out.extend_from_slice(&message.encode_to_vec());
    out.freeze()
}

/// The message behind the version byte.
///
/// # Errors
/// Another version, or bytes that are no such message.
pub(crate) fn decode<M: Message + Default>(bytes: &Bytes) -> Result<M, String> {
    match bytes.first() {
        Some(&VERSION) => {
            M::decode(bytes.slice(1..)).map_err(|error| format!("cannot be read: {error}"))
        }
        Some(version) => Err(format!("has version {version}; this release reads {VERSION}")),
        None => Err("is empty".to_owned()),
    }
}

impl Reply {
    /// A reply in wire form.
    pub(crate) fn encoded(answer: Answer) -> Bytes {
        encode(&Self { answer: Some(answer) })
    }
}

/// The document that a write is about; a path or a full name, as the write has it.
pub(crate) fn document_of(write: &Write) -> &str {
    use googleapis_tonic_google_firestore_v1::google::firestore::v1::write::Operation;
    match &write.operation {
        Some(Operation::Update(document)) => &document.name,
        Some(Operation::Delete(name)) => name,
        Some(Operation::Transform(transform)) => &transform.document,
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_and_other_bytes_are_refused() {
        let get = Op::Get(Get { paths: vec!["a/b".into()], many: false });
        let body = encode(&Call { op: Some(get), ..Call::default() });
        assert_eq!(body[0], 1);
        assert!(decode::<Call>(&body).is_ok());
        let mut newer = body.to_vec();
        newer[0] = 2;
        assert_eq!(
            decode::<Call>(&newer.into()).unwrap_err(),
            "has version 2; this release reads 1"
        );
        assert!(decode::<Call>(&Bytes::new()).is_err());
        assert!(decode::<Call>(&Bytes::from_static(b"\x01\xff\xff")).is_err());
    }
}
