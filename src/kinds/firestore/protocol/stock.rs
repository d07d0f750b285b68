//! What stock clients ask at the door, as calls of this kind, and replies as what they are answered.
//!
//! | request | call | not understood, so carried live or not at all |
//! | --- | --- | --- |
//! | `BatchGetDocuments`, `GetDocument` | a get of its documents; a mask is laid over the reply | in a transaction, or of a moment (`read_time`) |
//! | `RunQuery`, `RunAggregationQuery` | asks with its own bytes | the same, and what is to be explained |
//! | `Commit` | a commit of its writes | in a transaction |
//! | `BatchWrite` | a commit for each of its writes | |
//! | `DeleteDocument` | a commit of one write | |
//!
//! `UpdateDocument` and `CreateDocument` answer with the document as it is then, which nobody else can know.
//!
//! Nor is understood what is about another database than the backend's, and what this version of Firestore's
//! definitions cannot read whole: a message is understood if it is as long when it is written again. So nothing of a
//! write is lost in the queue, and nothing of a document in the cache.
//!
//! **Times of the door's own** are estimates. A queued commit is answered with a time that is later than every one
//! that was given or seen before.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use googleapis_tonic_google_firestore_v1::google::{
    firestore::v1::{
        BatchGetDocumentsRequest, BatchGetDocumentsResponse, BatchWriteRequest, BatchWriteResponse,
        CommitRequest, CommitResponse, DeleteDocumentRequest, Document, DocumentMask,
        GetDocumentRequest, MapValue, RunAggregationQueryRequest, RunQueryRequest, Value, Write,
        WriteResult, batch_get_documents_response::Result as Got,
        document_transform::field_transform::TransformType, value::ValueType, write::Operation,
    },
    rpc::Status,
};
use prost::Message;
use prost_types::Timestamp;

use super::{
    fields::last,
    names::Root,
    path,
    value::{self, Fields},
    wire::{
        self, Answer, Asked, Call, Commit, Found, FoundList, Get, Messages, Op, Question, Reply,
    },
};

/// A request that is understood.
pub(crate) struct Understood {
    /// The call that it is. Empty for a batch, each part of which is one.
    pub(crate) body: Bytes,
    pub(crate) form: Form,
}

/// What of a request is needed to answer it.
pub(crate) enum Form {
    /// Documents.
    Get {
        /// Each of them once.
        paths: Vec<String>,
        /// The fields that are wanted, if not all.
        mask: Option<DocumentMask>,
        /// It is one document, which is the answer itself. That there is none is a status.
        alone: bool,
    },
    /// What a query finds.
    Query,
    /// One result for each write.
    Commit(Vec<Made>),
    /// Nothing but that it is done.
    Delete([Made; 1]),
    /// A result and a status for each write, which is a commit of its own.
    Batch(Vec<Part>),
}

/// One write of a batch: the call that it is, and what is known of its result.
pub(crate) struct Part {
    pub(crate) body: Bytes,
    pub(crate) made: [Made; 1],
}

/// What is known beforehand of a write's result.
pub(crate) struct Made {
    path: String,
    deletes: bool,
    /// Of each of its transforms, whether it is the time of the commit.
    transforms: Vec<bool>,
}

/// A message whose every field is known.
fn whole<M: Message + Default>(message: &Bytes) -> Option<M> {
    let read = M::decode(message.clone()).ok()?;
    (read.encoded_len() == message.len()).then_some(read)
}

fn call(op: Op, token: &str) -> Bytes {
    wire::encode(&Call { op: Some(op), transaction: Bytes::new(), token: token.to_owned() })
}

/// The path of a name of the backend's database.
fn path_in(root: &Root, name: &str) -> Option<String> {
    let path = root.path(name);
    (path.len() < name.len()).then(|| path.to_owned())
}

/// What a `BatchGetDocuments` is.
pub(crate) fn get(message: &Bytes, root: &Root, token: &str) -> Option<Understood> {
    let asked: BatchGetDocumentsRequest = whole(message)?;
    if asked.consistency_selector.is_some() || asked.database != root.database {
        return None;
    }
    // As the server does it: a document that is named twice is answered once.
    let mut named = HashSet::with_capacity(asked.documents.len());
    let each = asked.documents.iter().filter(|name| named.insert(name.as_str()));
    let paths: Vec<String> = each.map(|name| path_in(root, name)).collect::<Option<_>>()?;
    if paths.is_empty() {
        return None;
    }
    let body = call(Op::Get(Get { paths: paths.clone(), many: true }), token);
    Some(Understood { body, form: Form::Get { paths, mask: asked.mask, alone: false } })
}

/// What a `GetDocument` is.
pub(crate) fn get_one(message: &Bytes, root: &Root, token: &str) -> Option<Understood> {
    let asked: GetDocumentRequest = whole(message)?;
    if asked.consistency_selector.is_some() {
        return None;
    }
    let paths = vec![path_in(root, &asked.name)?];
    let body = call(Op::Get(Get { paths: paths.clone(), many: true }), token);
    Some(Understood { body, form: Form::Get { paths, mask: asked.mask, alone: true } })
}

/// What a `DeleteDocument` is.
pub(crate) fn delete(message: &Bytes, root: &Root, token: &str) -> Option<Understood> {
    let asked: DeleteDocumentRequest = whole(message)?;
    let (operation, current_document) =
        (Some(Operation::Delete(asked.name)), asked.current_document);
    let mut write = Write { operation, current_document, ..Write::default() };
    let made = below(root, &mut write)?;
    let body = call(Op::Commit(Commit { writes: vec![write], many: true }), token);
    Some(Understood { body, form: Form::Delete([made]) })
}

/// What a `RunQuery` or a `RunAggregationQuery` is.
pub(crate) fn query(
    question: Question,
    message: &Bytes,
    root: &Root,
    token: &str,
) -> Option<Understood> {
    let (parent, is_plain) = match question {
        Question::Query => {
            let asked: RunQueryRequest = whole(message)?;
            let is_plain = asked.consistency_selector.is_none() && asked.explain_options.is_none();
            (asked.parent, is_plain)
        }
        Question::Aggregation => {
            let asked: RunAggregationQueryRequest = whole(message)?;
            let is_plain = asked.consistency_selector.is_none() && asked.explain_options.is_none();
            (asked.parent, is_plain)
        }
        Question::Unknown => return None,
    };
    let is_own = parent == root.name("") || path_in(root, &parent).is_some();
    (is_plain && is_own).then(|| {
        let asked = Asked { question: question.into(), message: message.clone() };
        Understood { body: call(Op::Asked(asked), token), form: Form::Query }
    })
}

/// What a `Commit` is.
pub(crate) fn commit(message: &Bytes, root: &Root, token: &str) -> Option<Understood> {
    let asked: CommitRequest = whole(message)?;
    let is_own = asked.database == root.database;
    if !asked.transaction.is_empty() || asked.writes.is_empty() || !is_own {
        return None;
    }
    let mut writes = asked.writes;
    let made = writes.iter_mut().map(|write| below(root, write)).collect::<Option<_>>()?;
    let body = call(Op::Commit(Commit { writes, many: true }), token);
    Some(Understood { body, form: Form::Commit(made) })
}

/// What a `BatchWrite` is: a call for each of its writes.
pub(crate) fn batch(message: &Bytes, root: &Root, token: &str) -> Option<Understood> {
    let asked: BatchWriteRequest = whole(message)?;
    if asked.database != root.database || asked.writes.is_empty() {
        return None;
    }
    let (mut writes, mut parts) = (asked.writes, Vec::new());
    for write in &mut writes {
        let made = [below(root, write)?];
        let commit = Commit { writes: vec![write.clone()], many: true };
        parts.push(Part { body: call(Op::Commit(commit), token), made });
    }
    // The server refuses one that names a document twice, as its writes have no order.
    let mut names: Vec<&str> = writes.iter().map(wire::document_of).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
        return None;
    }
    Some(Understood { body: Bytes::new(), form: Form::Batch(parts) })
}

/// What a batch is answered: for each of its writes what it is answered as a commit, or a status.
pub(crate) fn batched(ended: Vec<Result<Committed, Status>>) -> Committed {
    let (mut write_results, mut status) = (Vec::new(), Vec::new());
    let mut estimated = false;
    for end in ended {
        let (result, of) = match end {
            Ok(committed) => {
                estimated |= committed.estimated;
                let answer = CommitResponse::decode(committed.message).unwrap_or_default();
                let result = answer.write_results.into_iter().next().unwrap_or_default();
                // Of a batch also what is deleted has a time.
                let update_time = result.update_time.or(answer.commit_time);
                (WriteResult { update_time, ..result }, Status::default())
            }
            Err(status) => (WriteResult::default(), status),
        };
        write_results.push(result);
        status.push(of);
    }
    let message = BatchWriteResponse { write_results, status };
    Committed { message: message.encode_to_vec().into(), estimated }
}

/// Names a write's document by its path.
fn below(root: &Root, write: &mut Write) -> Option<Made> {
    let path = match &mut write.operation {
        Some(Operation::Update(document)) => {
            document.name = path_in(root, &document.name)?;
            document.name.clone()
        }
        Some(Operation::Delete(name)) => {
            *name = path_in(root, name)?;
            name.clone()
        }
        // Nobody sends these any more.
        Some(Operation::Transform(_)) | None => return None,
    };
    let is_time = |it: &TransformType| matches!(it, TransformType::SetToServerValue(_));
    let transforms = write.update_transforms.iter();
    Some(Made {
        path,
        deletes: matches!(write.operation, Some(Operation::Delete(_))),
        transforms: transforms.map(|it| it.transform_type.as_ref().is_some_and(is_time)).collect(),
    })
}

impl Form {
    /// The reply that the server's messages are, to be cached. `None` if they are not the whole of it.
    pub(crate) fn reply(&self, messages: Vec<Bytes>, root: &Root) -> Option<Bytes> {
        match self {
            Self::Get { mask: None, alone: true, .. } => {
                let document: Document = whole(messages.first()?)?;
                let found = vec![root.found(document)];
                Some(Reply::encoded(Answer::Many(FoundList { found })))
            }
            Self::Get { paths, mask: None, alone: false } => {
                let mut all = HashMap::with_capacity(messages.len());
                for message in &messages {
                    let found = match whole::<BatchGetDocumentsResponse>(message)?.result? {
                        Got::Found(document) => root.found(document),
                        Got::Missing(name) => {
                            let path = root.path(&name).to_owned();
                            Found { path, ..Found::default() }
                        }
                    };
                    all.entry(found.path.clone()).or_insert(found);
                }
                let found = paths.iter().map(|path| all.remove(path));
                let found = found.collect::<Option<_>>()?;
                Some(Reply::encoded(Answer::Many(FoundList { found })))
            }
            Self::Query => Some(Reply::encoded(Answer::Messages(Messages { messages }))),
            Self::Get { mask: Some(_), .. }
            | Self::Commit(_)
            | Self::Delete(_)
            | Self::Batch(_) => None,
        }
    }
}

/// The source of the times in an answer.
pub(crate) trait Times {
    /// When what is read now is read; when what is written now is written.
    fn now(&mut self) -> Timestamp;
    /// When the document at `path` was written last, as far as that was given; else the time that its queued write was
    /// `accepted_at`.
    fn written(&mut self, path: &str, accepted_at: Option<Timestamp>) -> Timestamp;
    /// The server has given this time.
    fn saw(&mut self, at: Timestamp);
    /// Tells that the document at `path` was written `at` this time.
    fn tell(&mut self, path: &str, at: Timestamp);
}

/// What a read is answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// None for the one document that there is not.
    pub(crate) messages: Vec<Bytes>,
    /// Whether a field in it holds a time that is a guess at what the server will write.
    pub(crate) estimated: bool,
}

/// What a reply to a read becomes. `None` if it is no reply.
pub(crate) fn read(
    form: &Form,
    reply: &Bytes,
    root: &Root,
    read_at: Timestamp,
    times: &mut impl Times,
) -> Option<Shown> {
    let list = match wire::decode::<Reply>(reply).ok()?.answer? {
        Answer::Messages(Messages { messages }) => {
            return Some(Shown { messages, estimated: false });
        }
        Answer::Many(list) => list,
        _ => return None,
    };
    let Form::Get { mask, alone, .. } = form else { return None };
    let mask = mask.as_ref().map(|mask| {
        let paths = mask.field_paths.iter().filter_map(|field| path::fields(field).ok());
        path::outermost(paths.collect())
    });
    let estimated = list.found.iter().any(|found| found.estimated);
    let documents: Vec<(String, Option<Document>)> = list
        .found
        .into_iter()
        .map(|found| {
            let Found { path, document, accepted_at, .. } = found;
            let document = document.map(|mut document| {
                document.name = root.name(&path);
                match document.update_time {
                    Some(told) => times.saw(told),
                    None => document.update_time = Some(times.written(&path, accepted_at)),
                }
                // The host's clock may be behind the server's, which has given the one of them.
                let created = document.create_time;
                document.update_time =
                    document.update_time.into_iter().chain(created).reduce(later);
                document.create_time = created.or(document.update_time);
                if let Some(paths) = &mask {
                    document.fields = masked(&document.fields, paths, 0);
                }
                document
            });
            (path, document)
        })
        .collect();
    if *alone {
        let found = documents.into_iter().filter_map(|(_, document)| document);
        let messages = found.map(|document| document.encode_to_vec().into()).collect();
        return Some(Shown { messages, estimated });
    }
    let written = documents.iter().filter_map(|(_, it)| it.as_ref()?.update_time);
    let read_time = written.fold(read_at, later);
    let messages = documents.into_iter().map(|(path, document)| {
        let result = document.map_or_else(|| Got::Missing(root.name(&path)), Got::Found);
        let message = BatchGetDocumentsResponse {
            result: Some(result),
            read_time: Some(read_time),
            ..BatchGetDocumentsResponse::default()
        };
        message.encode_to_vec().into()
    });
    Some(Shown { messages: messages.collect(), estimated })
}

/// The later of two times.
fn later(one: Timestamp, other: Timestamp) -> Timestamp {
    let at = |time: &Timestamp| (time.seconds, time.nanos);
    if at(&one) < at(&other) { other } else { one }
}

/// The fields at these paths, which are the [outermost](path::outermost) ones. They are those of a map that is so `deep`
/// that the paths have only their later names in it.
fn masked(fields: &Fields, paths: &[Vec<String>], deep: usize) -> Fields {
    let mut kept = Fields::new();
    for (name, value) in fields {
        let from = paths.partition_point(|parts| parts.get(deep).is_some_and(|own| own < name));
        let rest = paths.get(from..).unwrap_or_default();
        let count = rest.partition_point(|parts| parts.get(deep) == Some(name));
        let within = rest.get(..count).unwrap_or_default();
        let is_whole = within.first().is_some_and(|parts| parts.len() == deep + 1);
        match &value.value_type {
            _ if within.is_empty() => {}
            _ if is_whole => drop(kept.insert(name.clone(), value.clone())),
            Some(ValueType::MapValue(map)) => {
                let fields = masked(&map.fields, within, deep + 1);
                if !fields.is_empty() {
                    let map = ValueType::MapValue(MapValue { fields });
                    kept.insert(name.clone(), value::value(map));
                }
            }
            _ => {}
        }
    }
    kept
}

/// What a commit is answered.
pub(crate) struct Committed {
    pub(crate) message: Bytes,
    /// Whether a result in it is not known.
    pub(crate) estimated: bool,
}

/// The answer to a commit of `made`: what the server replied, or, if it is queued, what is known beforehand.
pub(crate) fn committed(
    made: &[Made],
    reply: Option<&Bytes>,
    times: &mut impl Times,
) -> Option<Committed> {
    let answer = reply.and_then(|reply| wire::decode::<Reply>(reply).ok()?.answer);
    let told = match answer {
        Some(Answer::Committed(told)) => Some(told),
        Some(_) => return None,
        None => None,
    };
    let commit_time = told.as_ref().and_then(|told| told.time).unwrap_or_else(|| times.now());
    let (mut estimated, mut write_results) = (false, Vec::with_capacity(made.len()));
    let mut known = told.into_iter().flat_map(|told| told.results);
    for Made { path, deletes, transforms } in made {
        let known = known.next();
        let update_time = (!deletes).then_some(commit_time);
        let WriteResult { update_time, mut transform_results } =
            known.unwrap_or(WriteResult { update_time, transform_results: Vec::new() });
        if transform_results.len() != transforms.len() {
            estimated |= transforms.iter().any(|is_time| !is_time);
            let result = |is_time: &bool| Value {
                value_type: Some(if *is_time {
                    ValueType::TimestampValue(commit_time)
                } else {
                    ValueType::NullValue(0)
                }),
            };
            transform_results = transforms.iter().map(result).collect();
        }
        if reply.is_none() {
            times.tell(path, commit_time);
        }
        write_results.push(WriteResult { update_time, transform_results });
    }
    let message = CommitResponse { write_results, commit_time: Some(commit_time) };
    Some(Committed { message: message.encode_to_vec().into(), estimated })
}

/// The time of a commit that the server has answered so.
pub(crate) fn committed_at(message: &Bytes) -> Option<Timestamp> {
    CommitResponse::decode(message.clone()).ok()?.commit_time
}

/// The latest time in the last message of the server's answer to a read.
pub(crate) fn read_at(form: &Form, message: &[u8]) -> Option<Timestamp> {
    match form {
        Form::Get { alone: false, .. } => {
            BatchGetDocumentsResponse::decode(message).ok()?.read_time
        }
        Form::Get { alone: true, .. } => written_at(message),
        // Under the same number in the answers to queries and to aggregations.
        Form::Query => time_in(last(message, 3)?),
        Form::Commit(_) | Form::Delete(_) | Form::Batch(_) => None,
    }
}

/// When a document was written that the server has answered with.
pub(crate) fn written_at(document: &[u8]) -> Option<Timestamp> {
    time_in(last(document, 4)?)
}

/// The time of the writes that a message of a stream of writes answers.
pub(crate) fn streamed_at(answer: &[u8]) -> Option<Timestamp> {
    time_in(last(answer, 4)?)
}

/// The latest time in a message of a Listen: when a document was written, or what it says was the state.
pub(crate) fn heard_at(message: &[u8]) -> Option<Timestamp> {
    let changed = last(last(message, 3)?, 1)?;
    let read = last(message, 2)?;
    if changed.is_empty() { time_in(last(read, 6)?) } else { written_at(changed) }
}

fn time_in(bytes: &[u8]) -> Option<Timestamp> {
    if bytes.is_empty() { None } else { Timestamp::decode(bytes).ok() }
}

#[cfg(test)]
mod tests;
