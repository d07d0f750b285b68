//! What of a commit decides how it is sent, read without the rest of it.
//!
//! While the server answers, a commit passes as it is, and what it writes is nobody's business here. Only if something
//! else is to answer it, it is read whole; see [`stock`](super::stock). What is read of it before that is what each of
//! its writes asks and whether it has transforms: documents are skipped in place.

use bytes::Bytes;
use fusebox_actors::connector::Outage;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Document, Precondition, Write, document_transform::FieldTransform, precondition::ConditionType,
    write::Operation,
};
use prost::Message;

use super::plan;

/// See the [module](self).
pub(crate) struct Outline {
    /// It leaves the same state however often it is applied.
    pub(crate) absolute: bool,
    pub(crate) outage: Outage,
}

/// A `CommitRequest`, or a `BatchWriteRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    writes: Vec<Bytes>,
}

/// A `Write`, of the two kinds that are understood.
#[derive(Clone, PartialEq, Message)]
struct Part {
    #[prost(bytes = "bytes", optional, tag = "1")]
    update: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    delete: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    update_mask: Option<Bytes>,
    #[prost(message, optional, tag = "4")]
    current_document: Option<Precondition>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    update_transforms: Vec<Bytes>,
}

/// A `Document`, of which the fields are skipped.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

impl Part {
    /// A write with nothing else in it. What it does is not known of any other: a transform of the old form, say.
    fn read(write: Bytes) -> Option<Self> {
        let length = write.len();
        let part = Self::decode(write).ok()?;
        let is_known = part.update.is_some() != part.delete.is_some();
        (is_known && part.encoded_len() == length).then_some(part)
    }

    /// Whether it wants its document to be there.
    fn wants(&self) -> bool {
        let condition = self.current_document.and_then(|it| it.condition_type);
        condition == Some(ConditionType::Exists(true))
    }

    /// A write for which the same holds; with its document's name, if what happens to each document matters. `None` if
    /// nothing of it decides anything.
    fn like(self, is_named: bool) -> Option<Write> {
        if !is_named && self.current_document.is_none() && self.update_transforms.is_empty() {
            return None;
        }
        let operation = match self.delete {
            Some(name) if is_named => Operation::Delete(String::from_utf8_lossy(&name).into()),
            Some(_) => Operation::Delete(String::new()),
            None => {
                let document = self.update.filter(|_| is_named).unwrap_or_default();
                let Named { name } = Named::decode(document).unwrap_or_default();
                Operation::Update(Document { name, ..Document::default() })
            }
        };
        let transforms = self.update_transforms.first().map(|_| FieldTransform::default());
        Some(Write {
            operation: Some(operation),
            current_document: self.current_document,
            update_transforms: transforms.into_iter().collect(),
            ..Write::default()
        })
    }
}

/// What is to be known of the `CommitRequest` or `BatchWriteRequest` that `message` is. `None` if it is none, writes
/// nothing, or has a write that is not understood.
pub(crate) fn outline(message: &Bytes) -> Option<Outline> {
    let Request { writes } = Request::decode(message.clone()).ok()?;
    if writes.is_empty() {
        return None;
    }
    let parts = writes.into_iter().map(Part::read).collect::<Option<Vec<_>>>()?;
    // Only such a commit can want what it has deleted itself.
    let is_named = parts.iter().any(Part::wants) && parts.iter().any(|part| part.delete.is_some());
    let decisive: Vec<Write> = parts.into_iter().filter_map(|part| part.like(is_named)).collect();
    let effect = plan::effect(&decisive, None);
    Some(Outline { absolute: effect.absolute, outage: effect.outage })
}

#[cfg(test)]
mod tests {
    use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
        BatchWriteRequest, CommitRequest, DocumentTransform,
    };
    use prost_types::Timestamp;

    use super::*;

    fn bytes(message: &impl Message) -> Bytes {
        message.encode_to_vec().into()
    }

    #[test]
    fn an_outline_says_of_writes_what_their_plan_says() {
        let name = |id: &str| format!("projects/p/databases/d/documents/u/{id}");
        let document = |id: &str| Document { name: name(id), ..Document::default() };
        let conditions = [
            None,
            Some(ConditionType::Exists(true)),
            Some(ConditionType::Exists(false)),
            Some(ConditionType::UpdateTime(Timestamp::default())),
        ];
        let mut all = Vec::new();
        for operation in [
            Operation::Update(document("a")),
            Operation::Update(document("b")),
            Operation::Delete(name("a")),
        ] {
            for condition_type in conditions {
                for transforms in 0..3 {
                    all.push(Write {
                        operation: Some(operation.clone()),
                        current_document: condition_type
                            .map(|it| Precondition { condition_type: Some(it) }),
                        update_transforms: vec![FieldTransform::default(); transforms],
                        ..Write::default()
                    });
                }
            }
        }
        let two =
            all.iter().flat_map(|one| all.iter().map(|other| vec![one.clone(), other.clone()]));
        for writes in all.iter().map(|write| vec![write.clone()]).chain(two) {
            let planned = plan::effect(&writes, None);
            let commit = CommitRequest { writes: writes.clone(), ..CommitRequest::default() };
            let batch = BatchWriteRequest { writes, ..BatchWriteRequest::default() };
            for message in [bytes(&commit), bytes(&batch)] {
                let Outline { absolute, outage } = outline(&message).unwrap();
                assert_eq!(
                    (absolute, outage),
                    (planned.absolute, planned.outage.clone()),
                    "{commit:?}"
                );
            }
        }
        assert!(outline(&bytes(&CommitRequest::default())).is_none());
        assert!(outline(&Bytes::from_static(b"\xff")).is_none());
    }

    #[test]
    fn a_commit_with_a_write_that_is_not_understood_has_no_outline() {
        let set = bytes(&Write {
            operation: Some(Operation::Update(Document::default())),
            ..Write::default()
        });
        let transform = bytes(&Write {
            operation: Some(Operation::Transform(DocumentTransform::default())),
            ..Write::default()
        });
        let with_more = |more: &'static [u8]| Bytes::from([&set[..], more].concat());
        for (what, other) in [
            ("a transform of the old form", transform),
            ("a document that is verified", Bytes::from_static(b"\x2a\x01d")),
            ("nothing", Bytes::new()),
            ("a field that is not known", with_more(b"\x7a\x01x")),
            ("a number that is not known", with_more(b"\x78\x01")),
            ("two operations", with_more(b"\x12\x01d")),
        ] {
            let writes = vec![set.clone(), other];
            assert!(outline(&bytes(&Request { writes })).is_none(), "{what}");
        }
        assert!(outline(&bytes(&Request { writes: vec![set] })).is_some());
    }
}
