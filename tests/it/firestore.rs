//! Firestore: what a caller sees of an outage, and what becomes of its writes. Against Google's emulator if
//! it is installed, and the npm package's: see `support/firestore.rs`. Both keep everything in memory, so an
//! outage is a relay that refuses connections.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Builder, Client, Daemon, Reply};
use crate::support::firestore::{Firestore, emulators};
use crate::support::poll::eventually;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(60);

/// An emulator behind a relay, and a daemon whose breaker opens at the first failure and stays open.
struct World {
    emulator: Firestore,
    relay: Relay,
    daemon: Daemon,
}

impl World {
    fn start(emulator: Firestore) -> Self {
        let relay = Relay::start(emulator.port());
        let daemon = operated(&relay).start();
        Self { emulator, relay, daemon }
    }

    fn begin_outage(&self) {
        self.relay.refuse();
        self.relay.drop_connections();
        self.daemon.wait_until("the breaker opens", LONG, |daemon| {
            call(daemon, json!({ "op": "get", "path": "outage/begins" }));
            daemon.breaker("firestore") == "OPEN"
        });
    }

    fn end_outage(&self) {
        self.relay.accept_again();
        self.daemon.order("/admin/resilience/force-recovery");
        self.daemon.wait_for_breaker("firestore", "CLOSED", LONG);
    }
}

fn operated(relay: &Relay) -> Builder {
    Builder::default()
        .set("backends.firestore.url", format!("http://127.0.0.1:{}", relay.port()))
        .set("backends.firestore.timeout", "5s")
        .set("backends.firestore.breaker.failure_threshold", 1)
        .set("backends.firestore.breaker.failure_rate", 0.0)
        .set("backends.firestore.breaker.recovery_timeout", "4m")
        .set("backends.firestore.retry.attempts", 1)
        .set("health.interval", "1h")
}

fn call(daemon: &Client, call: Value) -> Reply {
    daemon.call("firestore", call)
}

fn set(daemon: &Client, path: &str, data: &Value) -> Reply {
    call(daemon, json!({ "op": "set", "path": path, "data": data }))
}

fn get(daemon: &Client, path: &str) -> Reply {
    call(daemon, json!({ "op": "get", "path": path }))
}

fn increment(daemon: &Client, path: &str) -> Reply {
    let transforms = json!({ "n": { "increment": 1 } });
    call(
        daemon,
        json!({ "op": "set", "path": path, "merge": true, "data": {}, "transforms": transforms }),
    )
}

#[test]
fn an_outage_is_answered_from_the_cache_and_from_queued_writes() {
    for emulator in emulators() {
        let world = World::start(Firestore::start(emulator));
        let daemon = &world.daemon;
        let ada = json!({ "born": 1815, "tags": ["a"], "nested": { "x": 1.5, "none": null } });
        let written = set(daemon, "users/ada", &ada);
        assert_eq!((written.status, written.source()), (200, "live"), "{}", written.body);
        let live = get(daemon, "users/ada");
        live.assert_live();
        assert_eq!(live.value()["data"], ada);
        get(daemon, "users/nobody").assert_value(Value::Null);
        let query = json!({ "op": "query", "collection": "users", "where": [["born", "<", 1900]] });
        let found = call(daemon, query.clone());
        found.assert_live();
        assert_eq!(found.value()[0]["data"], ada, "{}", found.body);

        world.begin_outage();
        let cached = get(daemon, "users/ada");
        assert_eq!((cached.source(), &cached.value()["data"]), ("cache", &ada), "{}", cached.body);
        assert_eq!(call(daemon, query).source(), "cache");
        assert_eq!(get(daemon, "users/unread").status, 503);
        set(daemon, "users/grace", &json!({ "born": 1906 })).assert_queued();
        let queued = get(daemon, "users/grace");
        assert_eq!(
            (queued.source(), &queued.value()["data"]["born"]),
            ("queued", &json!(1906)),
            "{}",
            queued.body
        );
        let update =
            json!({ "op": "update", "path": "users/grace", "data": { "rank": "admiral" } });
        call(daemon, update).assert_queued();
        let queued = get(daemon, "users/grace");
        assert_eq!(queued.value()["data"], json!({ "born": 1906, "rank": "admiral" }));
        call(daemon, json!({ "op": "delete", "path": "users/ada" })).assert_queued();
        get(daemon, "users/ada").assert_value(Value::Null);
        let create = json!({ "op": "create", "path": "users/new", "data": {} });
        let refused = call(daemon, create.clone());
        assert_eq!(refused.status, 503, "its reply cannot be known: {}", refused.body);
        let mut consents = create;
        consents["options"] = json!({ "min_ack": "durable" });
        call(daemon, consents).assert_queued();

        world.end_outage();
        daemon.wait_until_drained("firestore", LONG);
        let grace = get(daemon, "users/grace");
        grace.assert_live();
        assert_eq!(grace.value()["data"], json!({ "born": 1906, "rank": "admiral" }));
        get(daemon, "users/ada").assert_value(Value::Null);
        get(daemon, "users/new").assert_live();
    }
}

/// Ten thousand writes are queued while the daemon is killed twice; then each document is as its last
/// acknowledged write left it, and each counter was incremented as often as was acknowledged.
#[test]
fn ten_thousand_queued_writes_are_replayed_once_and_in_order() {
    for emulator in emulators() {
        let mut world = World::start(Firestore::start(emulator));
        world.begin_outage();
        let mut last = BTreeMap::new();
        let (mut counted, mut acknowledged) = ([0_u64; 8], 0);
        for part in 0..3_u64 {
            let client = world.daemon.client();
            let writers: Vec<_> = (0..8_u64)
                .map(|writer| {
                    let client = client.clone();
                    thread::spawn(move || {
                        let (mut last, mut increments) = (BTreeMap::new(), 0);
                        for step in 0..417_u64 {
                            if step % 25 == 0 {
                                increment(&client, &format!("counters/{writer}")).assert_queued();
                                increments += 1;
                                continue;
                            }
                            let path = format!("docs/{writer}-{}", step % 200);
                            let value = part * 1_000 + step;
                            set(&client, &path, &json!({ "v": value })).assert_queued();
                            last.insert(path, value);
                        }
                        (last, increments)
                    })
                })
                .collect();
            for (writer, thread) in writers.into_iter().enumerate() {
                let (wrote, increments) = thread.join().unwrap();
                last.extend(wrote);
                counted[writer] += increments;
                acknowledged += 417;
            }
            if part < 2 {
                world.daemon.kill_9();
                world.daemon.restart();
            }
        }
        assert!(acknowledged >= 10_000, "{acknowledged}");
        assert_eq!(world.daemon.queued("firestore", "pending"), acknowledged);
        world.end_outage();
        let daemon = &world.daemon;
        daemon.wait_until_drained("firestore", LONG);
        for (path, value) in &last {
            let found = get(daemon, path);
            assert_eq!(found.value()["data"], json!({ "v": value }), "{path}: {}", found.body);
        }
        for (writer, count) in counted.iter().enumerate() {
            let found = get(daemon, &format!("counters/{writer}"));
            assert_eq!(found.value()["data"]["n"], json!(count), "{}", found.body);
        }
        eventually("no marker is left", LONG, || {
            let query = json!({ "op": "query", "collection": "fusebox_markers", "limit": 5 });
            call(daemon, query).value() == &json!([])
        });
    }
}

#[test]
fn a_write_whose_connection_died_is_queued_at_once_and_applied_before_the_next() {
    for emulator in emulators() {
        let emulator = Firestore::start(emulator);
        let relay = Relay::start(emulator.port());
        let daemon = operated(&relay)
            .set("backends.firestore.breaker.failure_threshold", 8)
            .set("backends.firestore.retry.attempts", 3)
            .start();
        // The first commits of an emulator take their time.
        let mut tried = 0;
        daemon.wait_until("writes are answered", LONG, |daemon| {
            tried += 1;
            set(daemon, &format!("warm/{tried}"), &json!({ "n": 0 })).source() == "live"
        });
        daemon.wait_until_drained("firestore", LONG);
        relay.hold_client_bytes();
        let (caller, began) = (daemon.client(), Instant::now());
        let write = thread::spawn(move || {
            let reply = set(&caller, "k/a", &json!({ "n": 1 }));
            (reply, began.elapsed())
        });
        eventually("it lies in the network", LONG, || relay.holds("documents/k/a"));
        relay.let_new_through();
        relay.drop_connections();
        let (reply, took) = write.join().unwrap();
        println!("answered after {took:?}");
        reply.assert_queued();
        assert!(took < Duration::from_secs(3), "{took:?}");
        // The lane is in doubt for as long as what was in the network could still land.
        set(&daemon, "k/a", &json!({ "n": 2 })).assert_queued();
        let read = get(&daemon, "k/a");
        assert_eq!((read.source(), &read.value()["data"]["n"]), ("queued", &json!(2)));
        assert_eq!(daemon.breaker("firestore"), "CLOSED");
        daemon.wait_until_drained("firestore", LONG);
        let read = get(&daemon, "k/a");
        read.assert_live();
        assert_eq!(read.value()["data"]["n"], json!(2));
        assert_eq!(daemon.queued("firestore", "dead"), 0);
    }
}

#[test]
fn a_poisoned_write_is_buried_alone() {
    for emulator in emulators() {
        let world = World::start(Firestore::start(emulator));
        let daemon = &world.daemon;
        world.begin_outage();
        for number in 0..60 {
            set(daemon, &format!("good/{number}"), &json!({ "n": number })).assert_queued();
            if number == 30 {
                // There is no such document to update.
                let update = json!({ "op": "update", "path": "absent/one", "data": { "n": 1 } });
                call(daemon, update).assert_queued();
            }
        }
        world.end_outage();
        daemon.wait_until("all that can be is replayed", LONG, |daemon| {
            daemon.queued("firestore", "pending") == 0
        });
        assert_eq!(daemon.queued("firestore", "dead"), 1);
        for number in 0..60 {
            let found = get(daemon, &format!("good/{number}"));
            assert_eq!(found.value()["data"], json!({ "n": number }), "{}", found.body);
        }
    }
}

/// The npm emulator takes messages of 4 MiB, as many a proxy does: what fits singly must drain, and what does not
/// is refused.
#[test]
fn what_is_too_large_together_is_replayed_singly_and_what_is_too_large_is_refused() {
    let world = World::start(Firestore::start(crate::support::firestore::Emulator::Npm));
    let daemon = &world.daemon;
    let large = json!({ "text": "x".repeat(900_000) });
    world.begin_outage();
    for number in 0..5 {
        set(daemon, &format!("large/{number}"), &large).assert_queued();
    }
    world.end_outage();
    daemon.wait_until_drained("firestore", LONG);
    for number in 0..5 {
        let found = get(daemon, &format!("large/{number}"));
        assert_eq!(found.value()["data"], large);
    }
    let writes: Vec<Value> = (0..5)
        .map(|n| json!({ "op": "set", "path": format!("large/{n}"), "data": large }))
        .collect();
    let commit = json!({ "op": "commit", "writes": writes });
    let refused = call(daemon, commit.clone());
    assert_eq!((refused.status, &refused.body["code"]), (422, &json!("too_large")));
    world.begin_outage();
    let refused = call(daemon, commit);
    assert_eq!((refused.status, &refused.body["code"]), (422, &json!("too_large")));
}

#[test]
fn what_the_server_refuses_is_told_and_opens_nothing() {
    for emulator in emulators() {
        let world = World::start(Firestore::start(emulator));
        let daemon = &world.daemon;
        set(daemon, "a/b", &json!({ "n": 1 })).assert_live();
        let create = json!({ "op": "create", "path": "a/b", "data": {} });
        let refused = call(daemon, create);
        assert_eq!((refused.status, &refused.body["code"]), (422, &json!("ALREADY_EXISTS")));
        let update = json!({ "op": "update", "path": "a/none", "data": { "n": 1 } });
        assert_eq!(call(daemon, update).status, 422);
        for (malformed, why) in [
            (json!({ "op": "get", "path": "a" }), "path"),
            (json!({ "op": "fetch", "path": "a/b" }), "op must be one of"),
            (json!({ "op": "set", "path": "a/b" }), "data"),
        ] {
            let refused = call(daemon, malformed);
            let detail = refused.body["detail"].to_string();
            assert!(refused.status == 400 && detail.contains(why), "{}", refused.body);
        }
        assert_eq!(daemon.breaker("firestore"), "CLOSED");
        let output = daemon.fusebox(&["call", "firestore", "--", "get", "a/b"]);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && printed.contains("a/b"), "{printed}");
    }
}

/// What a follower of a stream knows, and compares with what it gets next.
#[derive(Default)]
struct Follower {
    documents: BTreeMap<String, (String, Value)>,
}

impl Follower {
    fn snapshot(&mut self, data: &Value) {
        self.documents = data["documents"].as_array().unwrap().iter().map(entry).collect();
    }

    /// Takes a change: nothing that it knows already, and nothing older.
    fn change(&mut self, data: &Value) {
        for document in data["added"].as_array().unwrap() {
            let (path, new) = entry(document);
            assert!(self.documents.insert(path.clone(), new).is_none(), "{path} was added twice");
        }
        for document in data["modified"].as_array().unwrap() {
            let (path, new) = entry(document);
            let old = self.documents.insert(path.clone(), new.clone()).unwrap();
            assert!(new.0 > old.0, "{path} went from {old:?} to {new:?}");
        }
        for path in data["removed"].as_array().unwrap() {
            let path = path.as_str().unwrap();
            assert!(self.documents.remove(path).is_some(), "{path} was removed twice");
        }
    }

    fn values(&self) -> BTreeMap<String, Value> {
        let value =
            |(path, (_, data)): (&String, &(String, Value))| (path.clone(), data["n"].clone());
        self.documents.iter().map(value).collect()
    }
}

/// A document's path, its update time and its data.
fn entry(document: &Value) -> (String, (String, Value)) {
    let text = |key: &str| document[key].as_str().unwrap();
    // Without its zone a whole second sorts before its fractions.
    let time = text("update_time").trim_end_matches('Z').to_owned();
    (text("path").to_owned(), (time, document["data"].clone()))
}

/// A stream over two outages in which others write: every document's final state arrives, none twice and none
/// backwards; a restart of the daemon begins with a snapshot.
#[test]
fn a_stream_survives_outages_and_tells_every_final_state_once() {
    for emulator in emulators() {
        let mut world = World::start(Firestore::start(emulator));
        // Another host's daemon, past the relay.
        let other = Builder::default().set("backends.firestore.url", world.emulator.url()).start();
        for number in 0..5 {
            set(&other, &format!("live/{number}"), &json!({ "n": number })).assert_live();
        }
        let open = |daemon: &Client| {
            let query = json!({ "collection": "live" });
            let (status, opened) = daemon.post("/v1/backends/firestore/streams", query);
            assert_eq!(status, 200, "{opened}");
            opened["path"].as_str().unwrap().to_owned()
        };
        let path = open(&world.daemon);
        assert_eq!(open(&world.daemon), path, "the same query is one stream");
        let events = world.daemon.events_of(&path);
        let mut follower = Follower::default();
        let first = events.next("a snapshot that is live", LONG, |event| {
            event.kind == "snapshot" && event.data["stale"] == json!(false)
        });
        follower.snapshot(&first.data);
        assert_eq!(follower.values().len(), 5);
        let mut wanted = follower.values();
        for outage in 1..=2_u64 {
            world.relay.refuse();
            world.relay.drop_connections();
            events.next("it is stale", LONG, |event| event.kind == "stale");
            let changed = json!({ "n": outage * 10 });
            set(&other, "live/0", &json!({ "n": outage * 10 - 1 })).assert_live();
            set(&other, "live/0", &changed).assert_live();
            set(&other, &format!("live/new-{outage}"), &changed).assert_live();
            call(&other, json!({ "op": "delete", "path": format!("live/{outage}") })).assert_live();
            wanted.insert("live/0".into(), changed["n"].clone());
            wanted.insert(format!("live/new-{outage}"), changed["n"].clone());
            wanted.remove(&format!("live/{outage}"));
            world.relay.accept_again();
            world.daemon.order("/admin/resilience/force-recovery");
            while follower.values() != wanted {
                let event = events.next("a change", LONG, |event| event.kind != "stale");
                assert_eq!(event.kind, "change", "{event:?}");
                follower.change(&event.data);
            }
        }
        // A write through the daemon itself arrives, too.
        set(&world.daemon, "live/0", &json!({ "n": 99 })).assert_acknowledged();
        wanted.insert("live/0".into(), json!(99));
        while follower.values() != wanted {
            let event = events.next("the last change", LONG, |event| event.kind == "change");
            follower.change(&event.data);
        }
        drop(events);
        world.daemon.kill_9();
        world.daemon.restart();
        assert_eq!(world.daemon.get(&path).0, 404, "the stream was the earlier run's");
        let events = world.daemon.events_of(&open(&world.daemon));
        let first = events.next("a snapshot", LONG, |event| {
            event.kind == "snapshot" && event.data["stale"] == json!(false)
        });
        let mut anew = Follower::default();
        anew.snapshot(&first.data);
        assert_eq!(anew.values(), wanted);
    }
}

#[test]
fn what_is_no_query_cannot_be_followed() {
    let world = World::start(Firestore::start(crate::support::firestore::Emulator::Npm));
    let (status, refused) = world.daemon.post("/v1/backends/firestore/streams", json!({ "x": 1 }));
    assert_eq!(status, 400, "{refused}");
    assert_eq!(world.daemon.get("/v1/backends/firestore/streams/none").0, 404);
}
