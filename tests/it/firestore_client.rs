//! Firestore by another's eyes: Google's own Python client reads what was written through the daemon, live and
//! replayed, and the daemon reads what that client wrote; exact values and types. Against Google's emulator
//! if it is installed, and the npm package's, which lacks some: they are named.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::support::daemon::{Builder, Client, Reply};
use crate::support::firestore::{Emulator, Firestore, emulators};
use crate::support::proc::venv_python;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(60);
/// The project that an emulator is given if none is named.
const PROJECT: &str = "fusebox-local";

/// A fraction of a second before 1970, which the client reads as it is and writes a second too late.
const MISWRITTEN: &str = "fraction_before_1970";

/// Every type of value, as the daemon's JSON has it and as `firestore_client.py` tells it. The two were
/// written down by hand: neither is made of the other.
fn values() -> BTreeMap<&'static str, (Value, Value)> {
    let time = |text: &str| (json!({ "timestampValue": text }), json!({ "time": text }));
    let name = |path: &str| format!("projects/{PROJECT}/databases/(default)/documents/{path}");
    BTreeMap::from([
        ("nothing", (json!(null), json!(null))),
        ("yes", (json!(true), json!(true))),
        ("no", (json!(false), json!(false))),
        ("zero", (json!(0), json!({ "int": "0" }))),
        ("negative", (json!(-7), json!({ "int": "-7" }))),
        ("exact", (json!(9_007_199_254_740_992_u64), json!({ "int": "9007199254740992" }))),
        (
            "odd",
            (json!({ "integerValue": "9007199254740993" }), json!({ "int": "9007199254740993" })),
        ),
        (
            "most",
            (
                json!({ "integerValue": "9223372036854775807" }),
                json!({ "int": "9223372036854775807" }),
            ),
        ),
        (
            "least",
            (
                json!({ "integerValue": "-9223372036854775808" }),
                json!({ "int": "-9223372036854775808" }),
            ),
        ),
        ("half", (json!(1.5), json!({ "double": "1.5" }))),
        ("whole", (json!(2.0), json!({ "double": "2.0" }))),
        ("third", (json!(0.1), json!({ "double": "0.1" }))),
        ("minus_zero", (json!(-0.0), json!({ "double": "-0.0" }))),
        ("huge", (json!(1e300), json!({ "double": "1e+300" }))),
        ("tiny", (json!(5e-324), json!({ "double": "5e-324" }))),
        ("not_a_number", (json!({ "doubleValue": "NaN" }), json!({ "double": "nan" }))),
        ("endless", (json!({ "doubleValue": "Infinity" }), json!({ "double": "inf" }))),
        ("endless_down", (json!({ "doubleValue": "-Infinity" }), json!({ "double": "-inf" }))),
        (
            "words",
            (
                json!("grüße, 世界 \u{1F600} \"\\\n"),
                json!({ "text": "grüße, 世界 \u{1F600} \"\\\n" }),
            ),
        ),
        ("no_words", (json!(""), json!({ "text": "" }))),
        ("octets", (json!({ "bytesValue": "AAH/fw==" }), json!({ "bytes": "0001ff7f" }))),
        ("no_octets", (json!({ "bytesValue": "" }), json!({ "bytes": "" }))),
        ("moment", time("2026-11-23T10:00:00.123456Z")),
        ("before_1970", time("1815-12-10T00:00:00Z")),
        (MISWRITTEN, time("1815-12-10T00:00:00.000001Z")),
        (
            "place",
            (
                json!({ "geoPointValue": { "latitude": 51.5, "longitude": -0.125 } }),
                json!({ "place": ["51.5", "-0.125"] }),
            ),
        ),
        (
            "friend",
            (
                json!({ "referenceValue": name("users/grace") }),
                json!({ "reference": "users/grace" }),
            ),
        ),
        ("no_items", (json!([]), json!({ "array": [] }))),
        ("no_fields", (json!({}), json!({ "map": {} }))),
        (
            "nested",
            (
                json!({ "a.b": { "c`d": [1, 1.0, "1", null, { "e": [] }] }, "deep": { "er": { "still": -1 } } }),
                json!({ "map": {
                "a.b": { "map": { "c`d": { "array": [
                    { "int": "1" }, { "double": "1.0" }, { "text": "1" }, null, { "map": { "e": { "array": [] } } },
                ] } } },
                "deep": { "map": { "er": { "map": { "still": { "int": "-1" } } } } },
            } }),
            ),
        ),
        // A map that reads as a typed value.
        (
            "pretender",
            (
                json!({ "mapValue": { "fields": { "integerValue": "no number" } } }),
                json!({ "map": { "integerValue": { "text": "no number" } } }),
            ),
        ),
    ])
}

/// What the npm emulator does not take: integers from 2^53 on.
const BEYOND_NPM: [&str; 4] = ["exact", "odd", "most", "least"];
/// What a query asks for by a question of its own, which the npm emulator takes for none.
const UNASKED_OF_NPM: [&str; 2] = ["nothing", "not_a_number"];

/// The fields that `emulator` keeps, as the daemon's JSON and as the client tells them.
fn kept_by(emulator: Emulator) -> (Map<String, Value>, Map<String, Value>) {
    let kept = values()
        .into_iter()
        .filter(|(name, _)| emulator == Emulator::Google || !BEYOND_NPM.contains(name));
    let (mut ours, mut theirs) = (Map::new(), Map::new());
    for (name, (json, told)) in kept {
        ours.insert(name.to_owned(), json);
        theirs.insert(name.to_owned(), told);
    }
    (ours, theirs)
}

/// Google's client at the emulator, past the daemon.
struct Official(String);

impl Official {
    fn at(emulator: &Firestore) -> Self {
        Self(format!("127.0.0.1:{}", emulator.port()))
    }

    #[track_caller]
    fn run(&self, arguments: &[&str], input: &Value) -> Value {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/firestore_client.py");
        let mut process = Command::new(venv_python())
            .arg(script)
            .arg(PROJECT)
            .args(arguments)
            .env("FIRESTORE_EMULATOR_HOST", &self.0)
            .env("GRPC_VERBOSITY", "NONE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let mut stdin = process.stdin.take().expect("its input is a pipe");
        stdin.write_all(input.to_string().as_bytes()).expect("it reads its input");
        drop(stdin);
        let output = process.wait_with_output().expect("it can be waited for");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {words}");
        serde_json::from_slice(&output.stdout).expect("it tells JSON")
    }

    /// What the documents hold; null for one that is not there.
    #[track_caller]
    fn read(&self, paths: &[String]) -> Value {
        let arguments: Vec<&str> =
            ["read"].into_iter().chain(paths.iter().map(String::as_str)).collect();
        self.run(&arguments, &Value::Null)
    }
}

fn call(daemon: &Client, call: Value) -> Reply {
    daemon.call("firestore", call)
}

/// What is there before the writes of [`write_all`].
fn prepare(daemon: &Client, to: &str) {
    for (id, data) in [
        ("merged", json!({ "kept": 1, "map": { "kept": "a", "changed": "b" }, "list": [1] })),
        ("updated", json!({ "kept": 1, "map": { "kept": true, "changed": 0 }, "gone": 1 })),
        ("deleted", json!({ "n": 1 })),
        (
            "transformed",
            json!({ "n": 40, "f": 0.5, "list": [1, "a"], "fewer": [1, 2, 1], "up": 3, "down": 3 }),
        ),
    ] {
        let set = json!({ "op": "set", "path": format!("{to}/{id}"), "data": data });
        call(daemon, set).assert_live();
    }
}

/// One write of every kind to the collection `to`; each ends as `check` wants.
fn write_all(
    daemon: &Client,
    to: &str,
    data: &Map<String, Value>,
    emulator: Emulator,
    check: impl Fn(&Reply),
) {
    let at = |id: &str| format!("{to}/{id}");
    let durable = json!({ "min_ack": "durable" });
    let mut writes = vec![
        json!({ "op": "set", "path": at("all"), "data": data }),
        json!({
            "op": "set", "path": at("merged"), "merge": true,
            "data": { "map": { "changed": { "bytesValue": "AQ==" } }, "list": [], "new": null },
        }),
        json!({
            "op": "update", "path": at("updated"),
            "data": { "map.changed": 7, "`a.b`": 1.0 }, "delete_fields": ["gone"],
        }),
        json!({ "op": "delete", "path": at("deleted") }),
        json!({
            "op": "create", "path": at("created"),
            // By its path: who reads it back gets its full name.
            "data": { "friend": { "referenceValue": "users/grace" } }, "options": durable,
        }),
        json!({ "op": "commit", "writes": [
            { "op": "set", "path": at("one"), "data": { "friends": [{ "referenceValue": "users/ada" }] } },
            { "op": "set", "path": at("two"), "data": { "n": -2 } },
        ] }),
    ];
    let mut transforms = vec![
        json!({ "n": { "increment": 2 } }),
        json!({ "f": { "increment": 0.25 } }),
        json!({ "list": { "array_union": ["a", "b"] } }),
        json!({ "fewer": { "array_remove": [1] } }),
        json!({ "when": "server_timestamp" }),
    ];
    if emulator == Emulator::Google {
        transforms.push(json!({
            "up": { "maximum": 5 }, "down": { "minimum": 1 }, "n": { "increment": 9_007_199_254_740_993_i64 },
            "list": { "array_union": [1.5, { "x": null }] },
        }));
    }
    writes.extend(transforms.into_iter().map(
        |transforms| json!({ "op": "update", "path": at("transformed"), "transforms": transforms }),
    ));
    for write in writes {
        check(&call(daemon, write));
    }
}

/// What [`write_all`] leaves, as the client tells it, but for the time in `transformed`.
fn left(told: &Map<String, Value>, emulator: Emulator) -> BTreeMap<&'static str, Value> {
    let mut transformed = json!({
        "n": { "int": "42" }, "f": { "double": "0.75" },
        "list": { "array": [{ "int": "1" }, { "text": "a" }, { "text": "b" }] },
        "fewer": { "array": [{ "int": "2" }] }, "up": { "int": "3" }, "down": { "int": "3" },
    });
    let mut updated = json!({
        "kept": { "int": "1" }, "a.b": { "double": "1.0" },
        "map": { "map": { "kept": true, "changed": { "int": "7" } } },
    });
    if emulator == Emulator::Npm {
        // It keeps a deleted field.
        updated["gone"] = json!({ "int": "1" });
    } else {
        transformed["n"] = json!({ "int": "9007199254741035" });
        transformed["up"] = json!({ "int": "5" });
        transformed["down"] = json!({ "int": "1" });
        let list = transformed["list"]["array"].as_array_mut().unwrap();
        list.extend([json!({ "double": "1.5" }), json!({ "map": { "x": null } })]);
    }
    BTreeMap::from([
        ("all", json!(told)),
        (
            "merged",
            json!({
                "kept": { "int": "1" }, "list": { "array": [] }, "new": null,
                "map": { "map": { "kept": { "text": "a" }, "changed": { "bytes": "01" } } },
            }),
        ),
        ("updated", updated),
        ("deleted", json!(null)),
        ("transformed", transformed),
        ("created", json!({ "friend": { "reference": "users/grace" } })),
        ("one", json!({ "friends": { "array": [{ "reference": "users/ada" }] } })),
        ("two", json!({ "n": { "int": "-2" } })),
    ])
}

/// Reads the collection by the official client and compares it with what is to be there.
#[track_caller]
fn assert_left(
    official: &Official,
    to: &str,
    wanted: BTreeMap<&'static str, Value>,
    since: SystemTime,
) {
    let paths: Vec<String> = wanted.keys().map(|id| format!("{to}/{id}")).collect();
    let mut found = official.read(&paths);
    let when = found[format!("{to}/transformed")].as_object_mut().and_then(|it| it.remove("when"));
    let when = when.and_then(|when| humantime::parse_rfc3339(when["time"].as_str()?).ok());
    assert!(when.is_some_and(|when| when >= since && when <= SystemTime::now()), "{to}: {when:?}");
    for (id, wanted) in wanted {
        let found = &found[format!("{to}/{id}")];
        let (Some(fields), Some(of)) = (wanted.as_object(), found.as_object()) else {
            assert_eq!(found, &wanted, "{to}/{id}");
            continue;
        };
        for (name, value) in fields {
            assert_eq!(of.get(name), Some(value), "{to}/{id}: {name}");
        }
        assert_eq!(of.len(), fields.len(), "{to}/{id}: {found}");
    }
}

/// The documents' own data, field by field: a failure names the field.
#[track_caller]
fn assert_data(found: &Value, wanted: &Map<String, Value>) {
    for (name, value) in wanted {
        assert_eq!(&found[name], value, "{name}");
    }
    assert_eq!(found.as_object().map(Map::len), Some(wanted.len()), "{found}");
}

#[test]
fn googles_own_client_reads_what_was_written_live_and_what_was_replayed() {
    for emulator in emulators() {
        println!("{emulator:?}");
        let server = Firestore::start(emulator);
        let relay = Relay::start(server.port());
        let daemon = Builder::default()
            .set("backends.firestore.url", format!("http://127.0.0.1:{}", relay.port()))
            .set("backends.firestore.breaker.failure_threshold", 1)
            .set("backends.firestore.breaker.failure_rate", 0.0)
            .set("backends.firestore.breaker.recovery_timeout", "4m")
            .set("health.interval", "1h")
            .start();
        let official = Official::at(&server);
        let (ours, theirs) = kept_by(emulator);
        let begun = SystemTime::now();
        prepare(&daemon, "live");
        prepare(&daemon, "replayed");
        write_all(&daemon, "live", &ours, emulator, |reply| {
            assert_eq!(reply.status, 200, "{}", reply.body);
        });
        assert_left(&official, "live", left(&theirs, emulator), begun);

        relay.refuse();
        relay.drop_connections();
        daemon.wait_until("the breaker opens", LONG, |daemon| {
            call(daemon, json!({ "op": "get", "path": "outage/begins" }));
            daemon.breaker("firestore") == "OPEN"
        });
        write_all(&daemon, "replayed", &ours, emulator, Reply::assert_queued);
        let queued = call(&daemon, json!({ "op": "get", "path": "replayed/all" }));
        assert_eq!(queued.source(), "queued", "{}", queued.body);
        assert_data(&queued.value()["data"], &ours);
        let queued = call(&daemon, json!({ "op": "get", "path": "replayed/one" }));
        let name = format!("projects/{PROJECT}/databases/(default)/documents/users/ada");
        assert_eq!(
            queued.value()["data"],
            json!({ "friends": [{ "referenceValue": name }] }),
            "what is queued is read as it will be"
        );
        let nothing_yet = official.read(&["replayed/all".into(), "replayed/created".into()]);
        assert_eq!(nothing_yet, json!({ "replayed/all": null, "replayed/created": null }));
        // The server's time is that of replay.
        let ended = SystemTime::now();
        relay.accept_again();
        daemon.order("/admin/resilience/force-recovery");
        daemon.wait_until_drained("firestore", LONG);
        assert_left(&official, "replayed", left(&theirs, emulator), ended);
        // None but the documents that were written: the markers of what is not absolute are gone.
        let markers = json!({ "op": "query", "collection": "fusebox_markers", "limit": 1 });
        daemon.wait_until("no marker is left", LONG, |daemon| {
            call(daemon, markers.clone()).value() == &json!([])
        });
    }
}

#[test]
fn what_googles_own_client_wrote_is_read_with_its_types() {
    for emulator in emulators() {
        println!("{emulator:?}");
        let server = Firestore::start(emulator);
        let daemon = Builder::default().set("backends.firestore.url", server.url()).start();
        let official = Official::at(&server);
        let (mut ours, mut theirs) = kept_by(emulator);
        ours.remove(MISWRITTEN);
        theirs.remove(MISWRITTEN);
        official.run(&["write"], &json!({ "theirs/all": &theirs, "theirs/other": {} }));
        let got = call(&daemon, json!({ "op": "get", "path": "theirs/all" }));
        got.assert_live();
        assert_data(&got.value()["data"], &ours);
        let many =
            json!({ "op": "batch_get", "paths": ["theirs/all", "theirs/none", "theirs/other"] });
        let many = call(&daemon, many);
        assert_data(&many.value()[0]["data"], &ours);
        assert_eq!((&many.value()[1], &many.value()[2]["data"]), (&json!(null), &json!({})));
        // Both find it by each of its values, and nothing else by any.
        let asked = |name: &str| emulator == Emulator::Google || !UNASKED_OF_NPM.contains(&name);
        for (name, value) in ours.iter().filter(|(name, _)| asked(name)) {
            let query =
                json!({ "op": "query", "collection": "theirs", "where": [[name, "==", value]] });
            let found = call(&daemon, query);
            assert_eq!(found.status, 200, "{name}: {}", found.body);
            assert_eq!(found.value().as_array().map(Vec::len), Some(1), "{name}: {}", found.body);
            assert_data(&found.value()[0]["data"], &ours);
        }
        let found = official.run(&["find", "theirs"], &json!(theirs));
        for name in theirs.keys().filter(|name| asked(name)) {
            assert_eq!(found[name], json!(["all"]), "{name}");
        }
    }
}
