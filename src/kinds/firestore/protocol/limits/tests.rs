//! Each limit against Google's emulator: what is refused here is refused there, and what is just within is taken.
//! The npm emulator knows none of these limits.

use fusebox_actors::connector::{Connector, Outage, Plan, Write as Effect};
use fusebox_state::{ErrorClass, Lanes};
use serde_json::{Map, Value as Json, json};

use super::*;
use crate::kinds::firestore::{
    protocol::json::body_from_json,
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

/// A document of that size by the formula.
fn sized(bytes: usize) -> Json {
    let empty = json!({ "op": "set", "path": "l/a", "data": { "x": "", "y": "" } });
    let rest = bytes - (16 + 2 + 2) - 32 - (2 + 1) * 2 - 600_000;
    let mut call = empty;
    call["data"] = json!({ "x": "x".repeat(600_000), "y": "y".repeat(rest) });
    call
}

/// What is never taken, and what of its message must be told.
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
        (set(named("x".repeat(1_501), json!(1))), "a field's path takes 1500 bytes, got 1501"),
        (
            set(named("x".repeat(750), named("y".repeat(750), json!(1)))),
            "a field's path takes 1500 bytes, got 1501",
        ),
        (update(json!({ "delete_fields": [(["a"; 21].join("."))] })), "takes 20 names, got 21"),
        (transforms(json!({ "n": increment, "n.n": increment })), "transforms of n and of n.n"),
        (
            transforms(json!({ "n.a": increment, "n": increment, "n.b.c": increment })),
            "transforms of n and of n.a",
        ),
        (set(json!({ "s": "x".repeat(1_048_488) })), "a text takes 1048487 bytes, got 1048488"),
        (sized(1_048_577), "a document takes 1048576 bytes, got at least 1048577"),
        (reference("l"), "a document's path"),
        (reference("projects/l"), "\"projects/l\" is the full name of no document"),
        (reference("l/__x__"), "ids such as __x__ are reserved"),
        (reference("l//a/b"), "a document's path"),
        (time("0000-12-31T23:59:59Z"), "the years 1 to 9999"),
    ]
}

fn taken() -> Vec<Json> {
    let increment = json!({ "increment": 1 });
    vec![
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
        set(json!({ "a": deep(20) })),
        set(json!({ "s": "x".repeat(1_048_487) })),
        sized(1_048_576),
        set(json!({ "r": { "referenceValue": "l/a" } })),
        set(json!({ "r": { "referenceValue": "projects/q/databases/d/documents/l/a" } })),
        set(json!({ "t": { "timestampValue": "9999-12-31T23:59:59Z" } })),
    ]
}

/// The plan of a call as it would be without limits.
fn unchecked(call: &Json) -> Plan {
    let body = body_from_json(call.as_object().unwrap().clone(), "").unwrap();
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
    for (call, why) in refused() {
        let shown = short(&call.to_string());
        let plan = unchecked(&call);
        let told = planner.plan(plan.body.clone()).expect_err(&shown);
        assert_eq!((told.code, told.malformed), ("invalid_argument", false), "{shown}");
        assert!(told.message.contains(why), "{shown}: {}", told.message);
        assert!(told.message.len() < 400, "{shown}: {}", told.message);
        if let Some(fs) = &fs {
            let error = fs.attempt(attempt(&plan, None)).await.result.expect_err(&shown);
            assert_eq!(error.class, ErrorClass::Rejected, "{shown}: {error}");
        }
    }
    for call in taken() {
        let shown = short(&call.to_string());
        let plan = unchecked(&call);
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
    let deep = (0..20).fold(nested, |inner, _| {
        let fields = [("a".to_owned(), inner)].into();
        let map = googleapis_tonic_google_firestore_v1::google::firestore::v1::MapValue { fields };
        value::value(ValueType::MapValue(map))
    });
    let document = googleapis_tonic_google_firestore_v1::google::firestore::v1::Document {
        name: "l/a".into(),
        fields: [("a".to_owned(), deep)].into(),
        ..Default::default()
    };
    let write = Write { operation: Some(Operation::Update(document)), ..Write::default() };
    assert!(check(&write).unwrap_err().contains("20 deep"));
}
