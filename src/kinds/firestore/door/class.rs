//! What is known of a method by its name.

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
    /// Nobody knows.
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

const METHODS: [(&str, Method); 17] = [
    ("BatchGetDocuments", one("batch_get", Class::Read, Names::Documents, 4)),
    ("BatchWrite", one("batch_write", Class::Write, Names::Writes, 0)),
    ("BeginTransaction", one("begin_transaction", Class::Read, Names::None, 0)),
    ("Commit", one("commit", Class::Write, Names::Writes, 3)),
    ("CreateDocument", one("create", Class::Write, Names::Parts, 0)),
    ("DeleteDocument", one("delete", Class::Write, Names::Name, 0)),
    ("ExecutePipeline", one("execute_pipeline", Class::Read, Names::None, 5)),
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

/// What a request of HTTP does that is not gRPC.
pub(super) fn of_rest(verb: &str, path: &str) -> Method {
    const READS: [&str; 9] = [
        "batchGet",
        "beginTransaction",
        "executePipeline",
        "listCollectionIds",
        "listen",
        "partitionQuery",
        "rollback",
        "runAggregationQuery",
        "runQuery",
    ];
    let verb_of_path = path.rsplit_once(':').map(|(_, verb)| verb);
    let reads = matches!(verb, "GET" | "HEAD" | "OPTIONS")
        || verb == "POST" && verb_of_path.is_some_and(|verb| READS.contains(&verb));
    let (class, names) =
        if reads { (Class::Read, Names::None) } else { (Class::Write, Names::Unknown) };
    Method { operation: "rest", class, shape: Shape::One, names, transaction: 0 }
}

#[cfg(test)]
mod tests {
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
    fn rest_reads_by_its_verb() {
        let class = |verb: &str, path: &str| of_rest(verb, path).class;
        let documents = "/v1/projects/p/databases/(default)/documents";
        assert_eq!(class("GET", documents), Class::Read);
        assert_eq!(class("POST", &format!("{documents}:runQuery")), Class::Read);
        assert_eq!(class("POST", &format!("{documents}:commit")), Class::Write);
        assert_eq!(class("POST", documents), Class::Write);
        assert_eq!(class("DELETE", "/emulator/v1/projects/p"), Class::Write);
        assert_eq!(class("PATCH", &format!("{documents}/c/d:runQuery")), Class::Write);
    }
}
