//! What is known of a method by its name. Only a pipeline is looked into: what it does is said by its stages.

use crate::{
    kinds::firestore::protocol::named::{stages, stages_in_json},
    net::percent,
};

/// What a method does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Changes nothing, or only what a transaction holds.
    Read,
    /// May change something.
    Write,
}

/// How long a method's answer takes to begin, and its request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One request message, which is sent on whole.
    One,
    /// Request and answer live side by side for as long as the client wants: the headers say that it has begun.
    Lasting,
    /// Nobody knows. If it writes, it may do so until its answer has ended.
    Unknown,
}

/// The fields with names of documents in a method's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// In its writes.
    Writes,
    /// In the writes of each message of a stream.
    Streamed,
    /// In a list of names.
    Documents,
    /// In the field that names what it is about.
    Name,
    /// In the document that it brings.
    Document,
    /// In a parent, a collection and an id.
    Parts,
    /// Nowhere: it is about whatever it finds.
    None,
    /// Nobody knows.
    Unknown,
}

/// A method, as far as the door knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method {
    /// Its name in the records of calls.
    pub(super) operation: &'static str,
    pub(super) class: Class,
    pub(super) shape: Shape,
    pub(super) names: Names,
    /// The number of the field with a transaction; 0 if there is none.
    pub(super) transaction: u32,
}

const SERVICE: &str = "/google.firestore.v1.Firestore/";

const fn one(operation: &'static str, class: Class, names: Names, transaction: u32) -> Method {
    Method { operation, class, shape: Shape::One, names, transaction }
}

const fn lasting(operation: &'static str, class: Class, names: Names) -> Method {
    Method { operation, class, shape: Shape::Lasting, names, transaction: 0 }
}

/// What nobody knows may write, anywhere.
pub(super) const UNKNOWN: Method = Method {
    operation: "unknown",
    class: Class::Write,
    shape: Shape::Unknown,
    names: Names::Unknown,
    transaction: 0,
};

/// What says how the server is, or what it offers.
const ABOUT: Method = Method {
    operation: "about",
    class: Class::Read,
    shape: Shape::Unknown,
    names: Names::None,
    transaction: 0,
};

/// The stages of pipelines that change nothing. One that is not known may write, anywhere.
const READING_STAGES: [&str; 24] = [
    "add_fields",
    "aggregate",
    "collection",
    "collection_group",
    "database",
    "define",
    "distinct",
    "documents",
    "find_nearest",
    "let",
    "limit",
    "literals",
    "offset",
    "remove_fields",
    "replace_with",
    "sample",
    "search",
    "select",
    "sort",
    "subcollection",
    "union",
    "unnest",
    "where",
    "with",
];

const METHODS: [(&str, Method); 17] = [
    ("BatchGetDocuments", one("batch_get", Class::Read, Names::Documents, 4)),
    ("BatchWrite", one("batch_write", Class::Write, Names::Writes, 0)),
    ("BeginTransaction", one("begin_transaction", Class::Read, Names::None, 0)),
    ("Commit", one("commit", Class::Write, Names::Writes, 3)),
    ("CreateDocument", one("create", Class::Write, Names::Parts, 0)),
    ("DeleteDocument", one("delete", Class::Write, Names::Name, 0)),
    ("ExecutePipeline", one("execute_pipeline", Class::Write, Names::Unknown, 5)),
    ("GetDocument", one("get", Class::Read, Names::Name, 3)),
    ("ListCollectionIds", one("list_collections", Class::Read, Names::None, 0)),
    ("ListDocuments", one("list", Class::Read, Names::None, 8)),
    ("Listen", lasting("listen", Class::Read, Names::None)),
    ("PartitionQuery", one("partition_query", Class::Read, Names::None, 0)),
    ("Rollback", one("rollback", Class::Read, Names::None, 2)),
    ("RunAggregationQuery", one("aggregate", Class::Read, Names::None, 4)),
    ("RunQuery", one("query", Class::Read, Names::None, 5)),
    ("UpdateDocument", one("update", Class::Write, Names::Document, 0)),
    ("Write", lasting("write", Class::Write, Names::Streamed)),
];

/// The stage of a pipeline that reads documents by their names.
const BY_NAME: &str = "documents";

impl Method {
    /// Whether the server is given the backend's `timeout` for it: it may write, and its answer is one message. Of any
    /// other call that may write only the beginning of the answer must come in that time.
    pub(super) fn is_timed(self) -> bool {
        self.class == Class::Write && self.shape == Shape::One
    }

    /// The same, once its first message is here: a pipeline of stages that only read is a read.
    pub(super) fn looked_into(self, message: Option<&[u8]>) -> Self {
        if self.operation != "execute_pipeline" {
            return self;
        }
        let found = message.and_then(|message| stages(message).ok());
        self.of_stages(found.as_deref())
    }

    /// The same of a request of HTTP that is not gRPC, once its body is here. The beginning of its answer settles it,
    /// whatever its stages are: so its server has a time for it.
    pub(super) fn rest_looked_into(self, verb: &str, path: &RestPath<'_>, body: &[u8]) -> Self {
        if verb != "POST" || path.action() != Some("executePipeline") {
            return self;
        }
        Self { shape: self.shape, ..self.of_stages(stages_in_json(body).ok().as_deref()) }
    }

    /// A pipeline of these stages, if they are known. What writes may do so for as long as its answer comes.
    fn of_stages(self, found: Option<&[impl AsRef<str>]>) -> Self {
        match found {
            Some(found) if read_only(found) => {
                let by_name = found.iter().any(|stage| stage.as_ref() == BY_NAME);
                let names = if by_name { Names::Unknown } else { Names::None };
                Self { class: Class::Read, names, ..self }
            }
            _ => Self { shape: Shape::Unknown, ..self },
        }
    }
}

/// Whether a pipeline of these stages changes nothing. One without stages is none.
fn read_only(stages: &[impl AsRef<str>]) -> bool {
    let reads = |stage: &str| READING_STAGES.contains(&stage);
    !stages.is_empty() && stages.iter().all(|stage| reads(stage.as_ref()))
}

/// The method of a path.
pub(super) fn method(path: &str) -> Method {
    if let Some(name) = path.strip_prefix(SERVICE) {
        let found = METHODS.iter().find(|(known, _)| *known == name);
        return found.map_or(UNKNOWN, |(_, method)| *method);
    }
    if path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection.") {
        return ABOUT;
    }
    UNKNOWN
}

/// The path of a request of HTTP that is not gRPC.
pub(super) struct RestPath<'a> {
    sent: &'a str,
    said: Option<String>,
}

impl<'a> RestPath<'a> {
    /// The path that was sent.
    pub(super) fn of(sent: &'a str) -> Self {
        // A server may take any other one for a path that it is not.
        let is_plain =
            |said: &String| said.split('/').skip(1).all(|name| !matches!(name, "" | "." | ".."));
        Self { sent, said: percent::decoded(sent).filter(is_plain) }
    }

    /// What it says to the server, decoded. `None` if that is not certain.
    pub(super) fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }

    /// What follows its last colon, such as `runQuery`. A colon that is escaped is part of a name.
    fn action(&self) -> Option<&str> {
        self.sent.rsplit_once(':').map(|(_, action)| action)
    }
}

/// What a request of HTTP does that is not gRPC.
pub(super) fn of_rest(verb: &str, path: &RestPath<'_>) -> Method {
    const READS: [&str; 7] = [
        "beginTransaction",
        "listCollectionIds",
        "listen",
        "partitionQuery",
        "rollback",
        "runAggregationQuery",
        "runQuery",
    ];
    let (class, names) = match verb {
        "GET" | "HEAD" => (Class::Read, path.said().map_or(Names::Unknown, of_get)),
        "OPTIONS" => (Class::Read, Names::None),
        "POST" if path.action() == Some("batchGet") => (Class::Read, Names::Documents),
        "POST" if path.action().is_some_and(|action| READS.contains(&action)) => {
            (Class::Read, Names::None)
        }
        _ => (Class::Write, Names::Unknown),
    };
    Method { operation: "rest", class, shape: Shape::One, names, transaction: 0 }
}

/// What a get of a path names. That of a document has an even number of names below `documents`, and that of a collection
/// an odd one.
fn of_get(path: &str) -> Names {
    let below = path.split_once("/documents/").map(|(_, below)| below);
    let is_document = below.is_some_and(|it| it.split('/').count().is_multiple_of(2));
    if is_document { Names::Name } else { Names::None }
}

#[cfg(test)]
mod tests {
    use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
        ExecutePipelineRequest, Pipeline, StructuredPipeline,
        execute_pipeline_request::PipelineType, pipeline,
    };
    use prost::Message as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_may_write_anywhere() {
        for path in [
            "/google.firestore.v1.Firestore/Drop",
            "/google.firestore.v1beta1.Firestore/RunQuery",
            "/google.firestore.admin.v1.FirestoreAdmin/CreateIndex",
            "/",
        ] {
            assert_eq!(method(path), UNKNOWN, "{path}");
        }
        assert_eq!(method("/grpc.health.v1.Health/Check").class, Class::Read);
    }

    #[test]
    fn methods_are_known_by_their_names() {
        let of = |name: &str| method(&format!("{SERVICE}{name}"));
        for name in
            ["Commit", "BatchWrite", "Write", "CreateDocument", "UpdateDocument", "DeleteDocument"]
        {
            assert_eq!(of(name).class, Class::Write, "{name}");
        }
        for name in ["RunQuery", "Listen", "BatchGetDocuments", "BeginTransaction", "Rollback"] {
            assert_eq!(of(name).class, Class::Read, "{name}");
        }
        assert_eq!((of("Listen").shape, of("Write").shape), (Shape::Lasting, Shape::Lasting));
        assert!(METHODS.is_sorted_by_key(|(name, _)| *name));
    }

    #[test]
    fn a_pipeline_reads_by_its_stages() {
        let looked_into = |names: &[&str]| {
            let stage = |name: &&str| pipeline::Stage {
                name: (*name).to_owned(),
                ..pipeline::Stage::default()
            };
            let stages = names.iter().map(stage).collect();
            let pipeline = Some(Pipeline { stages });
            let structured = StructuredPipeline { pipeline, ..StructuredPipeline::default() };
            let pipeline_type = Some(PipelineType::StructuredPipeline(structured));
            let request =
                ExecutePipelineRequest { pipeline_type, ..ExecutePipelineRequest::default() };
            let method = method(&format!("{SERVICE}ExecutePipeline"));
            let grpc = method.looked_into(Some(&request.encode_to_vec()));
            let stages: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
            let body = json!({ "structuredPipeline": { "pipeline": { "stages": stages } } });
            let path = "/v1/projects/p/databases/d/documents:executePipeline";
            let body = body.to_string();
            let rest = |verb: &str, path: &str| {
                let path = RestPath::of(path);
                of_rest(verb, &path).rest_looked_into(verb, &path, body.as_bytes())
            };
            let (operation, shape, transaction) = ("rest", Shape::One, 0);
            let expected = Method { operation, shape, transaction, ..grpc };
            assert_eq!(expected, rest("POST", path), "{names:?}");
            let is_write = grpc.class == Class::Write;
            assert_eq!(rest("POST", path).is_timed(), is_write, "{names:?}");
            assert_eq!(rest("DELETE", path).class, Class::Write);
            assert_eq!(rest("POST", "/v1/c/a%3AexecutePipeline").class, Class::Write);
            grpc
        };
        let of = |names: &[&str]| looked_into(names).class;
        let read = looked_into(&["collection", "where", "select"]);
        assert_eq!((read.class, read.names, read.shape), (Class::Read, Names::None, Shape::One));
        let by_name = looked_into(&["documents", "select"]);
        assert_eq!((by_name.class, by_name.names), (Class::Read, Names::Unknown));
        assert_eq!(looked_into(&["documents", "delete"]).shape, Shape::Unknown);
        for stages in
            [&["collection", "delete"][..], &["collection", "update"], &["collection", "new"], &[]]
        {
            assert_eq!(of(stages), Class::Write, "{stages:?}");
        }
        let method = method(&format!("{SERVICE}ExecutePipeline"));
        assert_eq!(method.looked_into(None).class, Class::Write);
        assert_eq!(method.looked_into(Some(b"\xff")).class, Class::Write);
        assert!(READING_STAGES.is_sorted());
    }

    #[test]
    fn only_a_write_whose_answer_is_one_message_is_timed() {
        let timed = |name: &str| method(&format!("{SERVICE}{name}")).looked_into(None).is_timed();
        assert!(["Commit", "BatchWrite", "UpdateDocument"].into_iter().all(timed));
        assert!(!["Write", "Drop", "ExecutePipeline", "GetDocument"].into_iter().any(timed));
    }

    #[test]
    fn rest_reads_documents_by_their_names_and_others_by_queries() {
        let of = |verb: &str, path: &str| of_rest(verb, &RestPath::of(path)).names;
        let names = |verb: &str, path: &str| {
            of(verb, &format!("/v1/projects/p/databases/d/documents{path}"))
        };
        assert_eq!(names("GET", "/c/d"), Names::Name);
        assert_eq!(names("HEAD", "/c/d/e/f"), Names::Name);
        assert_eq!(names("GET", "/c%2Fd"), Names::Name);
        assert_eq!(of("GET", "/v1/projects/p/databases/d/docu%6Dents/c/d"), Names::Name);
        assert_eq!(of("GET", "/v1/projects/p/databases/d%2Fdocuments%2fc/d"), Names::Name);
        for path in ["/c/%ff", "/c/%zz", "/c/d/", "/c/../c/d", "/c/%2E/d", "//c/d"] {
            assert_eq!(names("GET", path), Names::Unknown, "{path}");
        }
        assert_eq!(names("POST", ":batchGet"), Names::Documents);
        for (verb, path) in [("GET", ""), ("GET", "/c"), ("GET", "/c/d/e"), ("POST", ":runQuery")] {
            assert_eq!(names(verb, path), Names::None, "{verb} {path}");
        }
        assert_eq!(of("GET", "/emulator/v1/projects/p"), Names::None);
    }

    #[test]
    fn rest_reads_by_its_verb() {
        let class = |verb: &str, path: &str| of_rest(verb, &RestPath::of(path)).class;
        let documents = "/v1/projects/p/databases/(default)/documents";
        assert_eq!(class("GET", documents), Class::Read);
        assert_eq!(class("POST", &format!("{documents}:runQuery")), Class::Read);
        assert_eq!(class("POST", &format!("{documents}:commit")), Class::Write);
        assert_eq!(class("POST", &format!("{documents}%3ArunQuery")), Class::Write);
        assert_eq!(class("POST", documents), Class::Write);
        assert_eq!(class("DELETE", "/emulator/v1/projects/p"), Class::Write);
        assert_eq!(class("PATCH", &format!("{documents}/c/d:runQuery")), Class::Write);
    }
}
