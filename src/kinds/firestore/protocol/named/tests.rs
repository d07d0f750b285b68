use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ArrayValue, BatchGetDocumentsRequest, BatchWriteRequest, CommitRequest, CreateDocumentRequest,
    Document, DocumentTransform, ExecutePipelineRequest, Function, ListenRequest, MapValue,
    Pipeline, RunQueryRequest, StructuredPipeline, Target, UpdateDocumentRequest, Value, Write,
    WriteRequest,
    execute_pipeline_request::PipelineType,
    listen_request::TargetChange,
    pipeline::Stage,
    target::{DocumentsTarget, QueryTarget, TargetType},
    value::ValueType,
    write::Operation,
};
use prost::Message;

use super::*;

fn found(operation: &str, message: &impl Message) -> Vec<String> {
    let message = message.encode_to_vec();
    names(operation, &message).unwrap().into_iter().map(str::to_owned).collect()
}

fn write(operation: Operation) -> Write {
    Write { operation: Some(operation), ..Write::default() }
}

/// A document of that name, in which something else looks like one.
fn document(name: &str) -> Document {
    let value = Value { value_type: Some(ValueType::ReferenceValue("projects/no".into())) };
    let fields = [("projects/no".to_owned(), value)].into();
    Document { name: name.into(), fields, ..Document::default() }
}

fn value(of: ValueType) -> Value {
    Value { value_type: Some(of) }
}

#[test]
fn every_name_is_found_in_every_method() {
    let transform = DocumentTransform { document: "t".into(), ..DocumentTransform::default() };
    let writes = vec![
        write(Operation::Update(document("u"))),
        write(Operation::Delete("d".into())),
        write(Operation::Transform(transform)),
    ];
    let commit =
        CommitRequest { database: "db".into(), writes: writes.clone(), ..Default::default() };
    assert_eq!(found("commit", &commit), ["db", "u", "d", "t"]);
    let batch =
        BatchWriteRequest { database: "db".into(), writes: writes.clone(), ..Default::default() };
    assert_eq!(found("batch_write", &batch), ["db", "u", "d", "t"]);
    let stream = WriteRequest { database: "db".into(), writes, ..Default::default() };
    assert_eq!(found("write", &stream), ["db", "u", "d", "t"]);
    let get = BatchGetDocumentsRequest {
        database: "db".into(),
        documents: vec!["a".into(), "b".into()],
        ..Default::default()
    };
    assert_eq!(found("batch_get", &get), ["db", "a", "b"]);
    let create = CreateDocumentRequest {
        parent: "p".into(),
        collection_id: "c".into(),
        document: Some(document("n")),
        ..Default::default()
    };
    assert_eq!(found("create", &create), ["p", "n"]);
    let update = UpdateDocumentRequest { document: Some(document("n")), ..Default::default() };
    assert_eq!(found("update", &update), ["n"]);
    let query = RunQueryRequest { parent: "p".into(), ..Default::default() };
    assert_eq!(found("query", &query), ["p"]);
}

#[test]
fn a_targets_names_are_found() {
    let listens = |target_type| {
        let target = Target { target_type: Some(target_type), ..Target::default() };
        let target_change = Some(TargetChange::AddTarget(target));
        found("listen", &ListenRequest { target_change, ..ListenRequest::default() })
    };
    let documents = DocumentsTarget { documents: vec!["a".into(), "b".into()] };
    assert_eq!(listens(TargetType::Documents(documents)), ["a", "b"]);
    let query = QueryTarget { parent: "p".into(), ..QueryTarget::default() };
    assert_eq!(listens(TargetType::Query(query)), ["p"]);
    let greeting = ListenRequest { database: "db".into(), ..ListenRequest::default() };
    assert_eq!(found("listen", &greeting), ["db"]);
    let target_change = Some(TargetChange::RemoveTarget(1));
    let removes = ListenRequest { target_change, ..ListenRequest::default() };
    assert_eq!(found("listen", &removes), [""; 0]);
}

#[test]
fn references_are_found_however_deep_a_pipeline_has_them() {
    let reference = |name: &str| value(ValueType::ReferenceValue(name.into()));
    let array = ArrayValue { values: vec![reference("projects/a")] };
    let map = MapValue { fields: [("k".to_owned(), value(ValueType::ArrayValue(array)))].into() };
    let function = Function {
        args: vec![value(ValueType::MapValue(map))],
        options: [("o".to_owned(), reference("projects/b"))].into(),
        ..Function::default()
    };
    let stage = Stage {
        args: vec![reference("/users"), value(ValueType::FunctionValue(function))],
        ..Stage::default()
    };
    let nested = Pipeline { stages: vec![stage] };
    let outer = Stage {
        args: vec![value(ValueType::PipelineValue(nested)), reference("projects/c")],
        ..Stage::default()
    };
    let pipeline = Some(Pipeline { stages: vec![outer] });
    let structured = StructuredPipeline { pipeline, ..StructuredPipeline::default() };
    let asked = ExecutePipelineRequest {
        database: "db".into(),
        pipeline_type: Some(PipelineType::StructuredPipeline(structured)),
        ..ExecutePipelineRequest::default()
    };
    assert_eq!(found("execute_pipeline", &asked), ["db", "projects/a", "projects/b", "projects/c"]);
}

#[test]
fn a_field_that_comes_twice_is_read_twice() {
    let one = RunQueryRequest { parent: "a".into(), ..Default::default() }.encode_to_vec();
    let other = RunQueryRequest { parent: "b".into(), ..Default::default() }.encode_to_vec();
    assert_eq!(names("query", &[one, other].concat()), Ok(vec!["a", "b"]));
}

#[test]
fn what_cannot_be_read_is_told() {
    assert_eq!(names("query", b"\x0a\x09short"), Err(Unreadable));
    assert_eq!(names("query", b"\x0a\x01\xff"), Err(Unreadable), "no text");
    assert_eq!(names("unknown", b""), Err(Unreadable));
    let mut deep = value(ValueType::NullValue(0));
    for _ in 0..60 {
        deep = value(ValueType::ArrayValue(ArrayValue { values: vec![deep] }));
    }
    let stage = Stage { args: vec![deep], ..Stage::default() };
    let pipeline = Some(Pipeline { stages: vec![stage] });
    let structured = StructuredPipeline { pipeline, ..StructuredPipeline::default() };
    let asked = ExecutePipelineRequest {
        pipeline_type: Some(PipelineType::StructuredPipeline(structured)),
        ..ExecutePipelineRequest::default()
    };
    assert_eq!(names("execute_pipeline", &asked.encode_to_vec()), Err(Unreadable));
}

#[test]
fn a_database_is_read_from_whatever_begins_with_one() {
    let database = "projects/p/databases/(default)";
    for name in [database, "projects/p/databases/(default)/documents/a/b"] {
        assert_eq!(database_of(name), Some(database));
    }
    for name in ["", "projects/p", "projects//databases/d", "/projects/p/databases/d", "d"] {
        assert_eq!(database_of(name), None, "{name}");
    }
    assert_eq!(project_of(database), "p");
}

#[test]
fn names_are_found_in_json_also_under_a_key_that_comes_twice() {
    let body = br#"{
        "database": "projects/a", "database": "projects/b",
        "writes": [
            { "update": { "name": "projects/c", "fields": {
                "name": { "referenceValue": "projects/no" },
                "parent": { "stringValue": "projects/no" }
            } } },
            { "delete": "projects/d" },
            { "transform": { "document": "projects/e" } }
        ],
        "documents": ["projects/f", 1, null, true, -2, 0.5],
        "structuredQuery": { "where": { "value": { "referenceValue": "projects/no" } } }
    }"#;
    let expected = ["a", "b", "c", "d", "e", "f"].map(|it| format!("projects/{it}"));
    assert_eq!(names_in_json(body, false).unwrap(), expected);
    assert_eq!(names_in_json(body, true).unwrap().len(), 8);
    assert_eq!(names_in_json(b"", false), Ok(Vec::new()));
    for no_json in [&b"\x1f\x8b"[..], b"{", b"{} {}"] {
        assert_eq!(names_in_json(no_json, false), Err(Unreadable));
    }
}
