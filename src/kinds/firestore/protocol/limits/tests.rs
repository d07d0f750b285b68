//! Each limit against Google's emulator: what is refused here is refused there, and what is just within is taken.
//! The npm emulator knows none of these limits.

use bytes::Bytes;
use fusebox_actors::connector::{Connector, Outage, Plan, Write as Effect};
use fusebox_state::{ErrorClass, Lanes};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ArrayValue, Document, DocumentMask, Function, Pipeline, document_transform::FieldTransform,
};
use prost_types::Timestamp;
use serde_json::{Map, Value as Json, json};

use super::*;
use crate::kinds::firestore::{
    protocol::{
        json::body_from_json,
        wire::{Call, Commit, Op},
    },
    testing::{Emulator, attempt},
};

fn set(data: Json) -> Json {
    json!({ "op": "set", "path": "l/a", "data": data })
}

fn update(rest: Json) -> Json {
    let mut call = json!({ "op": "set", "path": "l/a", "data": {}, "merge": true });
    call.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    call
}

fn transforms(transforms: Json) -> Json {
    update(json!({ "transforms": transforms }))
}

fn geo(latitude: f64, longitude: f64) -> Json {
    json!({ "geoPointValue": { "latitude": latitude, "longitude": longitude } })
}

fn named(name: String, value: Json) -> Json {
    Json::Object(Map::from_iter([(name, value)]))
}

/// Maps within one another.
fn deep(levels: usize) -> Json {
    (0..levels).fold(json!(1), |inner, _| json!({ "a": inner }))
}

/// The path of a document that deep.
fn deep_path(documents: usize) -> String {
    vec!["l/a"; documents].join("/")
}

fn vector(value: Json) -> Json {
    set(json!({ "v": { "__type__": "__vector__", "value": value } }))
}

/// A document of that size by the formula.
fn sized(bytes: usize) -> Json {
    let empty = json!({ "op": "set", "path": "l/a", "data": { "x": "", "y": "" } });
    let rest = bytes - (16 + 2 + 2) - 32 - (2 + 1) * 2 - 600_000;
    let mut call = empty;
    call["data"] = json!({ "x": "x".repeat(600_000), "y": "y".repeat(rest) });
    call
}

/// Texts of 400,000 bytes.
fn texts(of: [&str; 3]) -> [String; 3] {
    of.map(|letter| letter.repeat(400_000))
}

/// What is never taken, and what its message must say.
fn refused() -> Vec<(Json, &'static str)> {
    let reference = |name: &str| set(json!({ "r": { "referenceValue": name } }));
    let time = |time: &str| set(json!({ "t": { "timestampValue": time } }));
    let increment = json!({ "increment": 1 });
    vec![
        (set(json!({ "a": [[1]] })), "a: an array cannot hold an array"),
        (set(json!({ "a": { "b": [{ "c": [1, [2]] }] } })), "c: an array cannot hold an array"),
        (set(json!({ "g": geo(91.0, 0.0) })), "g: latitude must be -90 to 90, got 91"),
        (set(json!({ "g": geo(0.0, 181.0) })), "g: longitude must be -180 to 180, got 181"),
        (set(json!({ "g": [geo(-90.5, 0.0)] })), "got -90.5"),
        (set(json!({ "__x__": 1 })), "names such as __x__ are reserved"),
        (set(json!({ "m": { "__x__": 1 } })), "got the field m.__x__"),
        (set(json!({ "m": [{ "__x__": 1 }] })), "names such as __x__ are reserved"),
        (set(json!({ "__name__": 1 })), "names such as __name__ are reserved"),
        (set(json!({ "__type__": 1 })), "names such as __type__ are reserved"),
        (update(json!({ "delete_fields": ["a.__x__"] })), "got the field a.__x__"),
        (transforms(json!({ "a.__x__": increment })), "got the field a.__x__"),
        (transforms(json!({ "a": { "array_union": [{ "__x__": 1 }] } })), "are reserved"),
        (set(json!({ "": 1 })), "must not be empty"),
        (set(json!({ "m": { "": 1 } })), "must not be empty, got one in \"m\""),
        (json!({ "op": "set", "path": "l/__x__", "data": {} }), "ids such as __x__ are reserved"),
        (json!({ "op": "delete", "path": "l/__x__" }), "ids such as __x__ are reserved"),
        (json!({ "op": "set", "path": "__x__/a", "data": {} }), "ids such as __x__ are reserved"),
        (json!({ "op": "set", "path": "l/__x__/m/a", "data": {} }), "got l/__x__/m/a"),
        (json!({ "op": "set", "path": "l/a/__id7__/b", "data": {} }), "got l/a/__id7__/b"),
        (
            set(named("x".repeat(1_501), json!(1))),
            "a field's path may have at most 1500 bytes, got 1501",
        ),
        (
            set(named("x".repeat(750), named("y".repeat(750), json!(1)))),
            "a field's path may have at most 1500 bytes, got 1501",
        ),
        (
            update(json!({ "delete_fields": [(["a"; 21].join("."))] })),
            "may have at most 20 names, got 21",
        ),
        (transforms(json!({ "n": increment, "n.n": increment })), "transforms of n and of n.n"),
        (
            transforms(json!({ "n.a": increment, "n": increment, "n.b.c": increment })),
            "transforms of n and of n.a",
        ),
        (
            transforms(json!({ "l": { "array_union": texts(["x", "y", "z"]) } })),
            "a document may have at most 1048576 bytes, got at least 1200",
        ),
        (
            transforms(
                json!({ (["x".repeat(600_000), "y".repeat(600_000)].join(".")): increment }),
            ),
            "a document may have at most 1048576 bytes, got at least 1200",
        ),
        (
            set(json!({ "s": "x".repeat(1_048_488) })),
            "a text may have at most 1048487 bytes, got 1048488",
        ),
        (sized(1_048_577), "a document may have at most 1048576 bytes, got at least 1048577"),
        (reference("l"), "a document's path"),
        (reference("projects/l"), "\"projects/l\" is not the full name of a document"),
        (reference("l/__x__"), "ids such as __x__ are reserved"),
        (reference("l//a/b"), "a document's path"),
        (reference("projects//databases/d/documents/l/a"), "is not the full name of a document"),
        (reference("projects/p/databases//documents/l/a"), "is not the full name of a document"),
        (reference(&deep_path(101)), "documents may be nested at most 100 deep"),
        (
            json!({ "op": "set", "path": deep_path(101), "data": {} }),
            "may be nested at most 100 deep",
        ),
        (json!({ "op": "delete", "path": "l/__id0__" }), "ids such as __id0__ are reserved"),
        (json!({ "op": "delete", "path": "l/__id07__" }), "ids such as __id07__ are reserved"),
        (json!({ "op": "delete", "path": "l/__id9223372036854775808__" }), "are reserved"),
        (vector(json!([1.0, 2])), "doubles that are numbers; got __type__: \"__vector__\", value"),
        (vector(json!([])), "value 1 to 2048 doubles"),
        (vector(json!(vec![1.0; 2_049])), "value 1 to 2048 doubles"),
        (vector(json!([{ "doubleValue": "NaN" }])), "value 1 to 2048 doubles"),
        (vector(json!("x")), "value 1 to 2048 doubles"),
        (set(json!({ "v": { "__type__": "__vector__" } })), "value 1 to 2048 doubles"),
        (set(json!({ "v": { "__type__": "other" } })), "got __type__: \"other\""),
        (
            set(json!({ "v": { "__type__": "__vector__", "value": [1.0], "x": 1 } })),
            "a map with __type__ must be a vector",
        ),
        (
            set(json!({ "v": [{ "__type__": "__vector__", "value": [1.0] }] })),
            "an array cannot hold a vector",
        ),
        (time("0000-12-31T23:59:59Z"), "the years 1 to 9999"),
    ]
}

fn taken() -> Vec<Json> {
    let increment = json!({ "increment": 1 });
    vec![
        json!({ "op": "set", "path": deep_path(100), "data": {} }),
        json!({ "op": "set", "path": "l/__id-7__", "data": {} }),
        vector(json!(vec![1.5; 2_048])),
        vector(json!([{ "doubleValue": "Infinity" }])),
        set(json!({ "v": { "m": [{ "v": { "__type__": "__vector__", "value": [1.0] } }] } })),
        set(json!({ "a": [{ "b": [1] }] })),
        set(json!({ "g": geo(90.0, -180.0) })),
        set(json!({ "__": 1, "____": 2, "_x_": 3 })),
        set(json!({ "v": { "__type__": "__vector__", "value": [1.0, 2.0] } })),
        json!({ "op": "set", "path": "l/__id7__", "data": {} }),
        set(named("x".repeat(1_500), json!(1))),
        set(named("x".repeat(749), named("y".repeat(750), json!(1)))),
        update(json!({ "delete_fields": [(["a"; 20].join("."))] })),
        transforms(json!({ "n.a": increment, "n.b": increment, "nn": increment })),
        transforms(json!({ "a": { "array_union": [[1]] } })),
        transforms(json!({ "l": { "array_union": texts(["x", "x", "x"]) } })),
        transforms(json!({ "l": { "array_remove": texts(["x", "y", "z"]) } })),
        set(json!({ "a": deep(20) })),
        set(json!({ "s": "x".repeat(1_048_487) })),
        sized(1_048_576),
        set(json!({ "r": { "referenceValue": "l/a" } })),
        set(json!({ "r": { "referenceValue": "projects/q/databases/d/documents/l/a" } })),
        set(json!({ "t": { "timestampValue": "9999-12-31T23:59:59Z" } })),
    ]
}

/// A write of the wire, which changes nothing but what it says.
fn masked(paths: &[&str], fields: Vec<(&str, Value)>) -> Write {
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let document = Document { name: "l/a".into(), fields, ..Document::default() };
    let field_paths = paths.iter().map(|&path| path.into()).collect();
    Write {
        update_mask: Some(DocumentMask { field_paths }),
        operation: Some(Operation::Update(document)),
        ..Write::default()
    }
}

fn transformed(field: &str, transform: impl Into<Option<TransformType>>) -> Write {
    let transform = FieldTransform { field_path: field.into(), transform_type: transform.into() };
    Write { update_transforms: vec![transform], ..masked(&[], vec![]) }
}

/// The value within so many maps.
fn within(maps: usize, innermost: Value) -> Value {
    (0..maps).fold(innermost, |inner, _| {
        value::value(ValueType::MapValue(MapValue { fields: [("a".to_owned(), inner)].into() }))
    })
}

fn by_one() -> TransformType {
    TransformType::Increment(value::value(ValueType::IntegerValue(1)))
}

/// What only a client at the door can say and no server takes, and what its message must say.
fn refused_of_the_wire() -> Vec<(Write, String)> {
    let of = |value_type| masked(&["x"], vec![("x", value::value(value_type))]);
    let time = |seconds, nanos| ValueType::TimestampValue(Timestamp { seconds, nanos });
    let nothing = || Value { value_type: None };
    let list = |values| ArrayValue { values };
    let pipelines = "a kind that only pipelines use";
    let array = ValueType::ArrayValue(list(vec![nothing()]));
    let union = Some(TransformType::AppendMissingElements(list(vec![nothing()])));
    let remove = Some(TransformType::RemoveAllFromArray(list(vec![value::value(time(1, -1))])));
    let mut all = vec![
        (of(time(1, -1)), "x: a time must have 0 to 999999999 ns, got -1"),
        (of(time(1, 1_000_000_000)), "got 1000000000"),
        (of(time(i64::MAX, 0)), "the years 1 to 9999"),
        (of(ValueType::FieldReferenceValue("a".into())), pipelines),
        (of(ValueType::VariableReferenceValue("a".into())), pipelines),
        (of(ValueType::FunctionValue(Function::default())), pipelines),
        (of(ValueType::PipelineValue(Pipeline::default())), pipelines),
        (masked(&["x"], vec![("x", nothing())]), "x: a value must have a type"),
        (masked(&["y"], vec![("x", nothing())]), "x: a value must have a type"),
        (of(array), "x: a value must have a type"),
        (transformed("t", union), "t: a value must have a type"),
        (transformed("t", remove), "t: a time must have 0 to 999999999 ns, got -1"),
        (transformed("t", None::<TransformType>), "t: a transform is of an unknown kind"),
    ]
    .into_iter()
    .map(|(write, why)| (write, why.to_owned()))
    .collect::<Vec<_>>();
    for of in [-1, 0, 2] {
        let why = format!("t: the server's value must be the time, 1, got {of}");
        all.push((transformed("t", Some(TransformType::SetToServerValue(of))), why));
    }
    let operands = [
        (nothing(), "null"),
        (value::value(ValueType::NullValue(0)), "null"),
        (value::value(ValueType::BooleanValue(true)), "true"),
        (value::value(ValueType::StringValue("1".into())), "\"1\""),
        (value::value(ValueType::MapValue(value::empty_map())), "{}"),
        (value::value(ValueType::ArrayValue(list(vec![]))), "[]"),
        (value::value(time(1, 0)), "{\"timestampValue\""),
    ];
    for (operand, got) in operands {
        let by = |transform: fn(Value) -> TransformType| {
            transformed("t", Some(transform(operand.clone())))
        };
        for (write, name) in [
            (by(TransformType::Increment), "increment"),
            (by(TransformType::Maximum), "maximum"),
            (by(TransformType::Minimum), "minimum"),
        ] {
            all.push((write, format!("t: {name} must be a number, got {got}")));
        }
    }
    for path in [
        "", ".", "a..b", "a.", ".a", "`a", "`a`b", "``", "a b", " a", "1a", "a.1", "a-b", "a/b",
        "a[0]", "a$", "*", "~x", "é", "é.b", "a`b", "\0", "a\n", r"`a\`", r"`a\x`",
    ] {
        let why = "a field's path must be such as a.b, with backquotes".to_owned();
        all.push((masked(&[path], vec![]), why.clone()));
        all.push((transformed(path, by_one()), why));
    }
    all
}

/// What a client at the door may say, although it looks odd.
fn taken_of_the_wire() -> Vec<Write> {
    let number = || value::value(ValueType::IntegerValue(1));
    let empty = || Some(TransformType::AppendMissingElements(ArrayValue::default()));
    let nan = Some(TransformType::Maximum(value::value(ValueType::DoubleValue(f64::NAN))));
    let time = ValueType::TimestampValue(Timestamp { seconds: 1, nanos: 999_999_999 });
    let also = |paths: &[&str], write: Write| Write {
        update_mask: masked(paths, vec![]).update_mask,
        ..write
    };
    let vector = [
        ("__type__", ValueType::StringValue("__vector__".into())),
        (
            "value",
            ValueType::ArrayValue(ArrayValue {
                values: vec![value::value(ValueType::DoubleValue(1.0))],
            }),
        ),
    ];
    let vector = vector.map(|(name, it)| (name.to_owned(), value::value(it)));
    let vector = value::value(ValueType::MapValue(MapValue { fields: vector.into() }));
    let mut all = vec![
        masked(&["v"], vec![("v", within(20, vector))]),
        transformed("t", empty()),
        transformed("t", nan),
        masked(&["x"], vec![("x", value::value(time))]),
        masked(&["a", "a"], vec![("a", number())]),
        masked(&["a", "`a`"], vec![]),
        masked(&["a", "a.b"], vec![]),
        masked(&["a.b"], vec![("a", number())]),
        also(&["a"], transformed("a", by_one())),
        also(&["a"], transformed("a.b", by_one())),
        also(&["a.b"], transformed("a", by_one())),
    ];
    for path in ["_", "A_9", "`a`.b", "`a.b`", "`é`", "`1`", "`a\0`", r"`a\`b\\`"] {
        all.push(masked(&[path], vec![]));
        all.push(transformed(path, by_one()));
    }
    all
}

/// The body of a JSON call.
fn of_json(call: &Json) -> (Bytes, String) {
    (body_from_json(call.as_object().unwrap().clone(), "").unwrap(), short(&call.to_string()))
}

/// The body of a write of the wire.
fn of_wire(write: Write) -> (Bytes, String) {
    let shown = short(&format!("{:?} {:?}", write.update_mask, write.update_transforms));
    let op = Op::Commit(Commit { writes: vec![write], many: true });
    let call = Call { op: Some(op), transaction: Bytes::new(), token: String::new() };
    (wire::encode(&call), shown)
}

/// The plan of a call as it would be without limits.
fn unchecked(body: Bytes) -> Plan {
    let access = fusebox_actors::connector::Access::Write(Effect::new(Outage::EffectKnown));
    Plan { body, label: String::new(), lanes: Lanes::new([]), admin: false, access }
}

#[tokio::test]
async fn what_is_never_taken_is_refused_before_it_is_acknowledged() {
    let google = Emulator::google("that its limits are Firestore's").await;
    let fs = google.as_ref().map(Emulator::connector);
    let planner = crate::kinds::firestore::connector::FirestoreConnector::new(
        crate::kinds::firestore::testing::settings(1),
    );
    let of_json = refused().into_iter().map(|(call, why)| (of_json(&call), why.to_owned()));
    let of_wire = refused_of_the_wire().into_iter().map(|(write, why)| (of_wire(write), why));
    for ((body, shown), why) in of_json.chain(of_wire) {
        let plan = unchecked(body);
        let told = planner.plan(plan.body.clone()).expect_err(&shown);
        assert_eq!((told.code, told.malformed), ("invalid_argument", false), "{shown}");
        assert!(told.message.contains(&why), "{shown}: {}", told.message);
        assert!(told.message.len() < 400, "{shown}: {}", told.message);
        if let Some(fs) = &fs {
            let error = fs.attempt(attempt(&plan, None)).await.result.expect_err(&shown);
            assert_eq!(error.class, ErrorClass::Rejected, "{shown}: {error}");
        }
    }
}

#[tokio::test]
async fn what_is_just_within_the_limits_is_taken() {
    let google = Emulator::google("that its limits are Firestore's").await;
    let fs = google.as_ref().map(Emulator::connector);
    let planner = crate::kinds::firestore::connector::FirestoreConnector::new(
        crate::kinds::firestore::testing::settings(1),
    );
    let of_json = taken().into_iter().map(|call| of_json(&call));
    for (body, shown) in of_json.chain(taken_of_the_wire().into_iter().map(of_wire)) {
        let plan = unchecked(body);
        planner.plan(plan.body.clone()).unwrap_or_else(|why| panic!("{shown}: {why}"));
        if let Some(fs) = &fs {
            let ended = fs.attempt(attempt(&plan, None)).await;
            ended.result.unwrap_or_else(|error| panic!("{shown}: {error}"));
        }
    }
}

#[tokio::test]
async fn what_json_cannot_say_is_checked_too() {
    let nested = Value { value_type: Some(ValueType::MapValue(value::empty_map())) };
    let deep = masked(&["a"], vec![("a", within(20, nested))]);
    assert!(check(&deep).unwrap_err().contains("20 deep"));
}
