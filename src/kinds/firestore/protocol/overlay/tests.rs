use std::time::{Duration, Instant};

use fusebox_actors::connector::Connector;
use fusebox_state::{ErrorClass, LaneId};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::DocumentMask;
use serde_json::{Value as Json, json};

use super::*;
use crate::kinds::firestore::{
    protocol::{
        json::{body_from_json, reply_to_json},
        wire::{Answer, Get, Reply},
    },
    testing::{Emulator, answered, attempt, call, planned},
};

/// The document `u/a` after these writes; the word `unknown` if they do not determine it.
fn after(writes: &[Json]) -> Json {
    let get = Get { paths: vec!["u/a".into()], many: false };
    let slot = cache::document_slots(&get, "", |_| LaneId(1)).remove(0);
    let writes: Vec<QueuedWrite> = writes
        .iter()
        .map(|call| {
            let mut call = call.as_object().unwrap().clone();
            if !call.contains_key("writes") {
                call.insert("path".into(), json!("u/a"));
            }
            let body = body_from_json(call, "").unwrap();
            QueuedWrite { body, accepted_at: UnixMillis::new(1_500), due: None }
        })
        .collect();
    let mut followed = Followed::of(&slot).unwrap();
    for write in &writes {
        followed.write(write, None);
    }
    let Some(part) = followed.reply() else { return json!("unknown") };
    let shown = reply_to_json(&Reply::encoded(Answer::One(wire::decode(&part).unwrap())));
    if shown["estimated"] == true {
        return json!({ "estimated": shown["data"] });
    }
    if shown.is_null() { shown } else { shown["data"].clone() }
}

fn set(data: Json) -> Json {
    json!({ "op": "set", "data": data })
}

fn update(data: Json) -> Json {
    json!({ "op": "update", "data": data })
}

fn transform(transforms: Json) -> Json {
    json!({ "op": "update", "transforms": transforms })
}

#[test]
fn writes_make_the_value_that_they_determine() {
    let delete = || json!({ "op": "delete" });
    let create = || json!({ "op": "create", "data": { "c": 1 } });
    let merge = |data: Json| json!({ "op": "set", "data": data, "merge": true });
    for (writes, value) in [
        (vec![set(json!({ "a": 1 }))], json!({ "a": 1 })),
        (vec![set(json!({ "a": 1 })), set(json!({ "b": 2 }))], json!({ "b": 2 })),
        (vec![delete()], json!(null)),
        (vec![update(json!({ "a": 1 }))], json!("unknown")),
        (vec![merge(json!({ "a": 1 }))], json!("unknown")),
        (vec![create()], json!("unknown")),
        (vec![create(), set(json!({}))], json!({})),
        (vec![delete(), create()], json!({ "c": 1 })),
        (vec![set(json!({ "a": 1 })), create()], json!({ "a": 1 })),
        (vec![delete(), update(json!({ "a": 1 }))], json!(null)),
        (vec![delete(), merge(json!({ "a": { "b": 1 } }))], json!({ "a": { "b": 1 } })),
        (
            vec![
                set(json!({ "a": { "x": 1, "y": 2 }, "z": 3 })),
                merge(json!({ "a": { "x": 9 } })),
            ],
            json!({ "a": { "x": 9, "y": 2 }, "z": 3 }),
        ),
        (
            vec![set(json!({ "a": { "x": 1 }, "b": 2 })), update(json!({ "a.y": 5, "b": {} }))],
            json!({ "a": { "x": 1, "y": 5 }, "b": {} }),
        ),
        (
            vec![
                set(json!({ "a": { "x": 1, "y": 1 } })),
                json!({ "op": "update", "delete_fields": ["a.x", "b.c"] }),
            ],
            json!({ "a": { "y": 1 } }),
        ),
    ] {
        assert_eq!(after(&writes), value, "{writes:?}");
    }
}

#[test]
fn transforms_apply_as_the_server_will() {
    let base = || set(json!({ "i": 5, "d": 1.5, "l": [1, 2], "s": "x" }));
    for (transforms, field, value) in [
        (json!({ "i": { "increment": 2 } }), "i", json!(7)),
        (json!({ "i": { "increment": 0.5 } }), "i", json!(5.5)),
        (json!({ "s": { "increment": 2 } }), "s", json!(2)),
        (json!({ "n.m": { "increment": 1 } }), "n", json!({ "m": 1 })),
        (json!({ "i": { "maximum": 9 } }), "i", json!(9)),
        (json!({ "i": { "maximum": 4.5 } }), "i", json!(5)),
        (json!({ "d": { "minimum": 1 } }), "d", json!(1)),
        (json!({ "l": { "array_union": [2, 3, 3] } }), "l", json!([1, 2, 3])),
        (json!({ "l": { "array_remove": [1] } }), "l", json!([2])),
        (json!({ "s": { "array_union": [1] } }), "s", json!([1])),
    ] {
        assert_eq!(after(&[base(), transform(transforms.clone())])[field], value, "{transforms}");
    }
}

#[test]
fn a_server_time_is_an_estimate_until_it_is_replaced() {
    let time = json!({ "timestampValue": "1970-01-01T00:00:01.500Z" });
    let stamp = transform(json!({ "t": "server_timestamp" }));
    let stamped = after(&[set(json!({})), stamp.clone()]);
    assert_eq!(stamped, json!({ "estimated": { "t": time } }));
    assert_eq!(after(&[set(json!({})), stamp.clone(), set(json!({}))]), json!({}));
    assert_eq!(after(&[set(json!({})), stamp, json!({ "op": "delete" })]), json!(null));
}

#[test]
fn a_commit_counts_with_its_writes_to_this_document() {
    let commit = json!({ "op": "commit", "writes": [
        { "op": "set", "path": "u/a", "data": { "n": 1 } },
        { "op": "set", "path": "u/b", "data": { "n": 7 } },
        { "op": "update", "path": "u/a", "transforms": { "n": { "increment": 1 } } },
    ] });
    assert_eq!(after(&[commit]), json!({ "n": 2 }));
}

#[test]
fn transforms_compare_as_firestore_does() {
    let double = |text: &str| json!({ "doubleValue": text });
    let nan = || double("NaN");
    let large = |text: &str| json!({ "integerValue": text });
    let union = |items: Json| json!({ "array_union": items });
    let remove = |items: Json| json!({ "array_remove": items });
    let time = |text: &str| json!({ "timestampValue": text });
    for (old, transform, new) in [
        (json!([3]), union(json!([3.0])), json!([3])),
        (json!([3, 1]), remove(json!([3.0])), json!([1])),
        (json!([nan()]), union(json!([nan(), nan()])), json!([nan()])),
        (json!([]), union(json!([nan(), nan()])), json!([nan()])),
        (json!([nan(), 1]), remove(json!([nan()])), json!([1])),
        (json!([0]), union(json!([-0.0, 0.0])), json!([0])),
        (json!([{ "a": [1] }]), union(json!([{ "a": [1.0] }])), json!([{ "a": [1] }])),
        (json!([null]), union(json!([null, false])), json!([null, false])),
        (
            json!([large("9007199254740993")]),
            union(json!([9_007_199_254_740_992.0])),
            json!([large("9007199254740993"), 9_007_199_254_740_992.0]),
        ),
        (
            json!([time("2026-01-01T00:00:00.000001Z")]),
            union(json!([time("2026-01-01T00:00:00.000001999Z")])),
            json!([time("2026-01-01T00:00:00.000001Z")]),
        ),
        (json!(3), json!({ "minimum": nan() }), nan()),
        (json!(3), json!({ "maximum": nan() }), nan()),
        (nan(), json!({ "minimum": 3 }), nan()),
        (nan(), json!({ "maximum": 3 }), nan()),
        (json!(0), json!({ "maximum": 0.0 }), json!(0)),
        (json!(-0.0), json!({ "maximum": 0 }), json!(-0.0)),
        (json!(0.0), json!({ "minimum": -0.0 }), json!(0.0)),
        (json!(3), json!({ "maximum": 3.0 }), json!(3)),
        (
            large("9007199254740993"),
            json!({ "maximum": 9_007_199_254_740_992.0 }),
            large("9007199254740993"),
        ),
        (
            json!(9_007_199_254_740_992.0),
            json!({ "maximum": large("9007199254740993") }),
            large("9007199254740993"),
        ),
        (
            large("9223372036854775807"),
            json!({ "maximum": 9_223_372_036_854_775_808.0 }),
            json!(9_223_372_036_854_775_808.0),
        ),
        (large("9223372036854775807"), json!({ "increment": 1 }), large("9223372036854775807")),
        (large("-9223372036854775808"), json!({ "increment": -1 }), large("-9223372036854775808")),
        (json!(1), json!({ "increment": nan() }), nan()),
    ] {
        let writes = [set(json!({ "n": old })), transform_of_n(&transform)];
        assert_eq!(after(&writes)["n"].to_string(), new.to_string(), "{old} {transform}");
    }
}

fn transform_of_n(how: &Json) -> Json {
    transform(json!({ "n": how }))
}

#[test]
fn times_are_cut_to_microseconds() {
    let time = |text: &str| json!({ "t": [{ "m": { "timestampValue": text } }] });
    assert_eq!(
        after(&[set(time("2026-01-01T00:00:00.123456789Z"))]),
        time("2026-01-01T00:00:00.123456Z")
    );
}

#[test]
fn a_commit_is_all_or_nothing() {
    let commit = |writes: &[Json]| json!({ "op": "commit", "writes": writes });
    let set = |path: &str, n: i64| json!({ "op": "set", "path": path, "data": { "n": n } });
    let create = |path: &str| json!({ "op": "create", "path": path, "data": { "c": 1 } });
    let update = |path: &str| json!({ "op": "update", "path": path, "data": { "u": 1 } });
    let delete = |path: &str| json!({ "op": "delete", "path": path });
    let gone =
        |path: &str| json!({ "op": "delete", "path": path, "precondition": { "exists": true } });
    let base = || commit(&[set("u/a", 1)]);
    for (writes, value) in [
        // A create that is known to fail shows none of its siblings.
        (vec![base(), commit(&[set("u/a", 2), create("u/a")])], json!({ "n": 1 })),
        (vec![base(), commit(&[set("u/b", 2), create("u/b"), set("u/a", 2)])], json!({ "n": 1 })),
        (vec![base(), commit(&[delete("u/b"), update("u/b"), set("u/a", 2)])], json!({ "n": 1 })),
        // One that cannot fail shows them.
        (vec![base(), commit(&[delete("u/b"), create("u/b"), set("u/a", 2)])], json!({ "n": 2 })),
        (vec![base(), commit(&[delete("u/a"), create("u/a")])], json!({ "c": 1 })),
        (vec![base(), commit(&[set("u/b", 2), update("u/b"), set("u/a", 2)])], json!({ "n": 2 })),
        // Of another document nothing is known from here, though an earlier commit wrote it.
        (vec![base(), commit(&[create("u/b"), set("u/a", 2)])], json!("unknown")),
        (
            vec![commit(&[set("u/a", 1), set("u/b", 1)]), commit(&[create("u/b"), set("u/a", 2)])],
            json!("unknown"),
        ),
        (vec![base(), commit(&[create("u/b"), set("u/a", 2)]), base()], json!({ "n": 1 })),
        (vec![commit(&[gone("u/a")])], json!(null)),
        (vec![commit(&[delete("u/a"), update("u/b")])], json!("unknown")),
    ] {
        assert_eq!(after(&writes), value, "{writes:?}");
    }
}

#[test]
fn what_grows_too_large_is_refused() {
    let text = "x".repeat(600_000);
    let more = json!({ "op": "update", "data": { "b": text } });
    let writes = [set(json!({ "a": text })), more];
    assert!(after(&writes).get("b").is_none());
}

#[test]
fn what_a_transform_puts_deeper_than_a_document_may_be_is_not_known() {
    let path = |names: usize| vec!["a"; names].join(".");
    let counts = |path: &str| transform(json!({ path: { "increment": 1 } }));
    let deepest = after(&[set(json!({})), counts(&path(21))]);
    assert_eq!(deepest, (0..21).fold(json!(1), |inner, _| json!({ "a": inner })));
    for names in [22, 200_000] {
        let writes = [set(json!({})), counts(&path(names))];
        assert_eq!(after(&writes), json!("unknown"), "{names}");
    }
    let union = |names| transform(json!({ path(names): { "array_union": [[1]] } }));
    assert_ne!(after(&[set(json!({})), union(19)]), json!("unknown"));
    assert_eq!(after(&[set(json!({})), union(20)]), json!("unknown"));
}

#[test]
fn transforms_of_large_arrays_take_a_time_that_grows_with_their_size_alone() {
    let start = Instant::now();
    let numbers = |from: i32| (from..from + 20_000).collect::<Vec<_>>();
    let union = |from| transform(json!({ "l": { "array_union": numbers(from) } }));
    let grown = after(&[set(json!({ "l": numbers(0) })), union(10_000), union(0)]);
    assert_eq!(grown["l"], json!((0..30_000).collect::<Vec<_>>()));
    let remove = transform(json!({ "l": { "array_remove": numbers(0) } }));
    let shrunk = after(&[set(json!({ "l": numbers(10_000) })), remove]);
    assert_eq!(shrunk["l"], json!((20_000..30_000).collect::<Vec<_>>()));
    // So many of them at once are not carried out.
    let one = json!({ "op": "update", "path": "u/a", "transforms": {
        "l": { "array_union": [-1] }, "m": { "array_remove": [1] },
    } });
    let many = json!({ "op": "commit", "writes": vec![one; 400] });
    assert_eq!(after(&[set(json!({ "l": numbers(0) })), many]), json!("unknown"));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_mask_may_name_a_field_as_often_as_it_likes() {
    let start = Instant::now();
    let list: Vec<i32> = (0..20_000).collect();
    let document = Document {
        name: "u/a".into(),
        fields: value::fields_from_json(json!({ "l": list }).as_object().unwrap()).unwrap(),
        ..Document::default()
    };
    let write = Write {
        update_mask: Some(DocumentMask { field_paths: vec!["l".into(); 50_000] }),
        operation: Some(Operation::Update(document)),
        ..Write::default()
    };
    limits::check(&write).unwrap();
    let made = written(World::Absent, &write, UnixMillis::new(1), &mut 0).unwrap();
    assert!(made.exists());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Random writes: what the overlay says of a document is what Google's emulator holds once they are applied. The
/// npm one is no measure here: its plain set already keeps fields that it should replace.
#[tokio::test]
async fn what_queued_writes_determine_is_what_the_emulator_makes_of_them() {
    let what = "that queued reads are what Firestore makes of the writes";
    let Some(emulator) = Emulator::google(what).await else { return };
    let fs = emulator.connector();
    let root = fs.shared.client.root().await.unwrap();
    let (mut compared, mut unknown) = (0, 0);
    for seed in 0..60 {
        let mut dice = Dice(fastrand::Rng::with_seed(seed));
        let paths = ["a", "b", "c"].map(|id| format!("r{seed}/{id}"));
        for path in &paths {
            if dice.0.bool() {
                call(&fs, json!({ "op": "set", "path": path, "data": dice.fields() })).await;
            }
        }
        let mut queued: [Vec<QueuedWrite>; 3] = Default::default();
        let mut told = Vec::new();
        for step in 0..10 {
            // At first most documents are set, so that more is known of them.
            let (asked, touched) = match paths.get(step).filter(|_| dice.0.u8(..4) > 0) {
                Some(path) => {
                    (json!({ "op": "set", "path": path, "data": dice.fields() }), vec![step])
                }
                None => dice.call(&paths),
            };
            let plan = planned(&fs, &asked);
            told.push(asked);
            let accepted_at = UnixMillis::new(1_500);
            let write = QueuedWrite { body: plan.body.clone(), accepted_at, due: None };
            for at in touched {
                queued[at].push(write.clone());
            }
            // What is refused becomes a dead letter, and changes nothing.
            let ended = fs.attempt(attempt(&plan, None)).await;
            if let Err(error) = ended.result {
                assert_eq!(error.class, ErrorClass::Rejected, "{error}: {told:#?}");
            }
            let read = json!({ "op": "batch_get", "paths": paths });
            let read = answered(call(&fs, read).await);
            for (at, path) in paths.iter().enumerate() {
                let get = Get { paths: vec![path.clone()], many: false };
                let slot = cache::document_slots(&get, "", |_| LaneId(1)).remove(0);
                let mut followed = Followed::of(&slot).unwrap();
                for write in &queued[at] {
                    followed.write(write, Some(root));
                }
                let Some(part) = followed.reply() else {
                    unknown += 1;
                    continue;
                };
                let shown = Reply::encoded(Answer::One(wire::decode(&part).unwrap()));
                let shown = reply_to_json(&shown);
                let (mut ours, mut theirs) = (shown["data"].clone(), read[at]["data"].clone());
                if shown["estimated"] == true {
                    for data in [&mut ours, &mut theirs] {
                        let time = data.as_object_mut().unwrap().remove("time");
                        assert!(time.unwrap().get("timestampValue").is_some());
                    }
                }
                // As text: -0.0 is no other number than 0.0.
                assert_eq!(ours.to_string(), theirs.to_string(), "seed {seed}, {path}: {told:#?}");
                compared += 1;
            }
        }
    }
    eprintln!("{compared} reads agreed, {unknown} were not determined");
    assert!(compared > 800, "{compared}");
}

/// What random writes are made of.
struct Dice(fastrand::Rng);

impl Dice {
    fn pick(&mut self, of: &[Json]) -> Json {
        of[self.0.usize(..of.len())].clone()
    }

    fn number(&mut self) -> Json {
        let numbers = [
            json!(0),
            json!(0.0),
            json!(-0.0),
            json!(3),
            json!(3.0),
            json!(-2),
            json!(2.5),
            json!({ "doubleValue": "NaN" }),
            json!({ "doubleValue": "Infinity" }),
            json!({ "integerValue": "9007199254740993" }),
            json!(9_007_199_254_740_992.0),
            json!({ "integerValue": "9223372036854775807" }),
            json!({ "integerValue": "-9223372036854775808" }),
            json!(9_223_372_036_854_775_808.0),
        ];
        self.pick(&numbers)
    }

    fn scalar(&mut self) -> Json {
        let others = [
            json!(null),
            json!(true),
            json!("text"),
            json!({ "bytesValue": "AAEC" }),
            json!({ "timestampValue": "2026-01-01T00:00:00.123456789Z" }),
            json!({ "timestampValue": "2026-01-01T00:00:00.123456Z" }),
            json!({ "timestampValue": "1969-12-31T23:59:59.999999999Z" }),
            json!({ "referenceValue": "u/a" }),
            json!({ "geoPointValue": { "latitude": 1.5, "longitude": -0.0 } }),
            json!({ "k": 1 }),
            json!({ "k": 1.0 }),
            json!({ "k": [0, { "doubleValue": "NaN" }] }),
        ];
        if self.0.bool() { self.number() } else { self.pick(&others) }
    }

    fn array(&mut self) -> Json {
        (0..self.0.usize(..4)).map(|_| self.scalar()).collect()
    }

    fn value(&mut self) -> Json {
        match self.0.usize(..4) {
            0 => self.array(),
            1 => json!({ "x": self.scalar(), "y": { "z": self.scalar() } }),
            _ => self.scalar(),
        }
    }

    fn fields(&mut self) -> Json {
        let names = ["n", "l", "m", "o"];
        let fields = (0..self.0.usize(..4)).map(|_| {
            let name = names[self.0.usize(..names.len())].to_owned();
            let value = self.value();
            (name, value)
        });
        Json::Object(fields.collect())
    }

    fn transform(&mut self) -> Json {
        match self.0.usize(..5) {
            0 => json!({ "increment": self.number() }),
            1 => json!({ "maximum": self.number() }),
            2 => json!({ "minimum": self.number() }),
            3 => json!({ "array_union": self.array() }),
            _ => json!({ "array_remove": self.array() }),
        }
    }

    fn transforms(&mut self) -> Json {
        let mut all = serde_json::Map::new();
        for field in ["n", "l", "m.x", "m.y.w"] {
            if self.0.u8(..3) == 0 {
                all.insert(field.into(), self.transform());
            }
        }
        if self.0.u8(..6) == 0 {
            all.insert("time".into(), json!("server_timestamp"));
        }
        Json::Object(all)
    }

    fn write(&mut self, path: &str) -> Json {
        let mut write = json!({ "path": path });
        match self.0.usize(..8) {
            0 => write["op"] = json!("delete"),
            1 => {
                write["op"] = json!("create");
                write["data"] = self.fields();
            }
            2 => {
                write["op"] = json!("set");
                write["data"] = self.fields();
            }
            3 => {
                write["op"] = json!("set");
                write["merge"] = json!(true);
                write["data"] = self.fields();
                write["transforms"] = self.transforms();
            }
            4 => {
                write["op"] = json!("delete");
                write["precondition"] = json!({ "exists": self.0.bool() });
            }
            5 => {
                write["op"] = json!("set");
                write["data"] = self.fields();
                write["transforms"] = self.transforms();
            }
            _ => {
                write["op"] = json!("update");
                write["data"] = json!({ "m.y.z": self.scalar(), "n": self.value() });
                write["delete_fields"] = json!(["l", "m.x", "o.k"]);
                write["transforms"] = self.transforms();
                if self.0.bool() {
                    write["delete_fields"] = json!([]);
                }
                if self.0.bool() {
                    write["data"] = json!({});
                }
            }
        }
        write
    }

    /// A call, and which of the documents it touches.
    fn call(&mut self, paths: &[String; 3]) -> (Json, Vec<usize>) {
        if self.0.u8(..3) > 0 {
            let at = self.0.usize(..3);
            return (self.write(&paths[at]), vec![at]);
        }
        let of: Vec<usize> = (0..2 + self.0.usize(..2)).map(|_| self.0.usize(..3)).collect();
        let writes: Vec<Json> = of.iter().map(|at| self.write(&paths[*at])).collect();
        let mut touched = of;
        touched.sort_unstable();
        touched.dedup();
        (json!({ "op": "commit", "writes": writes }), touched)
    }
}
