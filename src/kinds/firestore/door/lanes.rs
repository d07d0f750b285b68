//! Which documents a message of a call names: the first one, or each one of a stream of writes.
//!
//! Only that is read of a message, field by field and in place: what is sent on are the client's own bytes. What
//! cannot be read touches everything.

use std::borrow::Cow;

use fusebox_state::{LaneId, Lanes};

use super::class::{Method, Names};
use crate::kinds::firestore::protocol::{
    fields::{Fields, last, text},
    named::database_of,
    names::Root,
};

/// What a call touches, as far as it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Touched {
    /// The documents. Of a read, those that it names: it waits for the queued writes to them.
    pub(super) lanes: Lanes,
    /// Whether it is part of a transaction.
    pub(super) transaction: bool,
    /// The project and the database: `projects/p/databases/d`. `None` if that cannot be read.
    pub(super) database: Option<String>,
}

/// The document that a write is about. `None` for a write of a kind that is not known, and for one whose operation comes
/// in parts: the server puts these together.
fn of_write(write: &[u8]) -> Option<&str> {
    let mut name = None;
    for field in Fields(write) {
        match field? {
            (1 | 6, document) if name.is_none() => name = Some(text(last(document, 1)?)?),
            (2, deleted) if name.is_none() => name = Some(text(deleted)?),
            (1 | 2 | 6, _) => return None,
            _ => {}
        }
    }
    name.filter(|name| !name.is_empty())
}

/// The names of the documents. `None` for whatever there may be.
fn names(method: Method, message: &[u8]) -> Option<Vec<Cow<'_, str>>> {
    let all = |number, of: fn(&[u8]) -> Option<&str>| {
        let fields = Fields(message).filter_map(|field| match field {
            Some((at, bytes)) if at == number => Some(of(bytes).map(Into::into)),
            Some(_) => None,
            None => Some(None),
        });
        fields.collect()
    };
    match method.names {
        Names::Writes => all(2, of_write),
        Names::Streamed => all(3, of_write),
        Names::Documents => all(2, text),
        Names::Name => all(1, text),
        Names::Document => {
            let names = all(1, |document| text(last(document, 1)?));
            names.filter(|names| matches!(names.as_slice(), [name] if !name.is_empty()))
        }
        Names::Parts => {
            let part = |number| text(last(message, number)?);
            let (parent, collection, id) = (part(1)?, part(2)?, part(3)?);
            // What gets a name from the server is new.
            Some(if id.is_empty() {
                Vec::new()
            } else {
                vec![format!("{parent}/{collection}/{id}").into()]
            })
        }
        Names::None => Some(Vec::new()),
        Names::Unknown => None,
    }
}

/// What `message` of a call of `method` touches; `None` if that cannot be read. What names documents that cannot be read
/// touches everything, also if it only reads: it must not pass queued writes.
pub(super) fn touched(
    method: Method,
    message: Option<&[u8]>,
    root: Option<&Root>,
    namespace: &[u8],
) -> Touched {
    let names = match (message, method.names) {
        (Some(message), _) => names(method, message),
        (None, Names::None) => Some(Vec::new()),
        (None, _) => None,
    };
    let lane = |name: &str| {
        let path = root.map_or(name, |root| root.path(name));
        LaneId::of(namespace, path.as_bytes())
    };
    let lanes = names.map_or(Lanes::All, |names| Lanes::new(names.iter().map(|name| lane(name))));
    let has =
        |number| message.and_then(|message| last(message, number)).is_some_and(|it| !it.is_empty());
    let database = message.and_then(|message| {
        let about = last(message, 1)?;
        // Only one of the methods brings a document there.
        let about = if method.names == Names::Document { last(about, 1)? } else { about };
        database_of(text(about)?).map(str::to_owned)
    });
    Touched { lanes, transaction: method.transaction > 0 && has(method.transaction), database }
}

#[cfg(test)]
mod tests {
    use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
        BatchGetDocumentsRequest, CommitRequest, CreateDocumentRequest, Document,
        UpdateDocumentRequest, Write, batch_get_documents_request::ConsistencySelector,
        write::Operation,
    };
    use prost::Message;

    use super::{super::class::method, *};

    const DATABASE: &str = "projects/p/databases/d";

    fn of(name: &str, message: &impl Message) -> Touched {
        let root = Root::new("p", "d");
        let method = method(&format!("/google.firestore.v1.Firestore/{name}"));
        touched(method, Some(&message.encode_to_vec()), Some(&root), b"p/d")
    }

    fn lane(path: &str) -> LaneId {
        LaneId::of(b"p/d", path.as_bytes())
    }

    fn name(path: &str) -> String {
        format!("{DATABASE}/documents/{path}")
    }

    fn document(path: &str) -> Document {
        Document { name: name(path), ..Document::default() }
    }

    #[test]
    fn a_commit_touches_what_its_writes_name() {
        let write = |operation| Write { operation: Some(operation), ..Write::default() };
        let writes =
            vec![write(Operation::Update(document("u/a"))), write(Operation::Delete(name("u/b")))];
        let mut commit =
            CommitRequest { database: DATABASE.into(), writes, transaction: "t".into() };
        let found = of("Commit", &commit);
        assert_eq!(found.lanes, Lanes::new([lane("u/a"), lane("u/b")]));
        assert!(found.transaction);
        assert_eq!(found.database.as_deref(), Some(DATABASE));
        commit.writes.push(Write::default());
        commit.transaction.clear();
        let found = of("Commit", &commit);
        assert_eq!((found.lanes, found.transaction), (Lanes::All, false), "of which kind is it?");
        // The server puts the parts of an operation together.
        let part = |document: &Document| {
            let document = document.encode_to_vec();
            [&[10, u8::try_from(document.len()).unwrap()][..], &document].concat()
        };
        let rest = Document {
            create_time: Some(prost_types::Timestamp::default()),
            ..Document::default()
        };
        let in_parts = [part(&document("u/a")), part(&rest)].concat();
        let commit = [&[18, u8::try_from(in_parts.len()).unwrap()][..], &in_parts].concat();
        let method = method("/google.firestore.v1.Firestore/Commit");
        assert_eq!(touched(method, Some(&commit), None, b"").lanes, Lanes::All);
        let unnamed =
            CommitRequest { writes: vec![write(Operation::Update(rest))], ..Default::default() };
        assert_eq!(of("Commit", &unnamed).lanes, Lanes::All);
    }

    #[test]
    fn what_names_its_document_touches_that() {
        let one = Lanes::One(lane("u/a"));
        let update =
            UpdateDocumentRequest { document: Some(document("u/a")), ..Default::default() };
        let found = of("UpdateDocument", &update);
        assert_eq!((found.lanes, found.database.as_deref()), (one.clone(), Some(DATABASE)));
        let create = CreateDocumentRequest {
            parent: format!("{DATABASE}/documents"),
            collection_id: "u".into(),
            document_id: "a".into(),
            ..Default::default()
        };
        assert_eq!(of("CreateDocument", &create).lanes, one);
        let unnamed = CreateDocumentRequest { document_id: String::new(), ..create };
        assert_eq!(of("CreateDocument", &unnamed).lanes, Lanes::new([]));
        let get = BatchGetDocumentsRequest {
            database: DATABASE.into(),
            documents: vec![name("u/a")],
            consistency_selector: Some(ConsistencySelector::Transaction("t".into())),
            ..Default::default()
        };
        let found = of("BatchGetDocuments", &get);
        assert_eq!((found.lanes, found.transaction), (one, true));
    }

    #[test]
    fn what_cannot_be_read_touches_everything() {
        let commit = method("/google.firestore.v1.Firestore/Commit");
        for message in [None, Some(&b"\xff\xff"[..]), Some(&[0x12, 200][..])] {
            assert_eq!(touched(commit, message, None, b"").lanes, Lanes::All, "{message:?}");
        }
        for name in ["GetDocument", "BatchGetDocuments"] {
            let get = method(&format!("/google.firestore.v1.Firestore/{name}"));
            assert_eq!(touched(get, None, None, b"").lanes, Lanes::All, "{name}");
        }
        let query = method("/google.firestore.v1.Firestore/RunQuery");
        assert_eq!(touched(query, None, None, b"").lanes, Lanes::None, "it names no document");
    }
}
