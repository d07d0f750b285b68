//! Streams against real emulators, with a network between that fails.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use fusebox_actors::connector::{Follow, Streams};
use serde_json::Value as Json;

use super::{
    emulator::{Direct, Relay, within},
    keeping::open_gate,
};
use crate::kinds::firestore::{
    live_queries::{LiveQueries, testing::told},
    testing::{Emulator, Engine},
};

/// What a follower received, applied and checked against the rules.
struct Told {
    follow: Box<dyn Follow>,
    documents: BTreeMap<String, i64>,
    /// The last number that it received of each document. Every write has a higher one.
    last: BTreeMap<String, i64>,
    stale: usize,
    snapshots: usize,
}

impl Told {
    fn new(follow: Box<dyn Follow>) -> Self {
        let (documents, last) = (BTreeMap::new(), BTreeMap::new());
        Self { follow, documents, last, stale: 0, snapshots: 0 }
    }

    async fn next(&mut self) {
        let event = within("an event", self.follow.next()).await.expect("the stream goes on");
        let data: Json = serde_json::from_slice(&event.data).unwrap();
        match event.event {
            "snapshot" => self.snapshots += 1,
            "stale" => self.stale += 1,
            _ => {}
        }
        for list in ["documents", "added", "modified"] {
            for document in data[list].as_array().into_iter().flatten() {
                let path = document["path"].as_str().unwrap().to_owned();
                let n = document["n"].as_i64().unwrap();
                let known = self.documents.insert(path.clone(), n);
                assert_eq!(known.is_some(), list == "modified", "{path}: {data}");
                let last = self.last.insert(path.clone(), n);
                assert!(last < Some(n), "{path} is told twice or backwards: {n} after {last:?}");
            }
        }
        for path in data["removed"].as_array().into_iter().flatten() {
            let path = path.as_str().unwrap();
            assert!(self.documents.remove(path).is_some(), "{path} is removed twice");
        }
    }

    /// Reads until it knows exactly `documents`.
    async fn until(&mut self, documents: &BTreeMap<String, i64>) {
        while self.documents != *documents {
            self.next().await;
        }
    }
}

/// Writes to documents, and what they then are.
struct Writer<'a> {
    emulator: &'a Emulator,
    now: i64,
    documents: BTreeMap<String, i64>,
}

impl<'a> Writer<'a> {
    fn new(emulator: &'a Emulator) -> Self {
        Self { emulator, now: 0, documents: BTreeMap::new() }
    }

    /// Writes these documents of the collection, or deletes them.
    async fn write(&mut self, documents: impl IntoIterator<Item = usize>, put: bool) {
        let mut writes = Vec::new();
        for document in documents {
            self.now += 1;
            writes.push((format!("u/d{document:03}"), put.then_some(self.now)));
        }
        for (path, n) in &writes {
            match n {
                Some(n) => self.documents.insert(path.clone(), *n),
                None => self.documents.remove(path),
            };
        }
        let writes: Vec<_> = writes.iter().map(|(path, n)| (path.as_str(), *n)).collect();
        self.emulator.write(&writes).await;
    }
}

async fn two_outages(emulator: &Emulator) {
    let relay = Relay::to(emulator).await;
    let upstream = Arc::new(Direct::through(&relay));
    let streams = LiveQueries::new(Arc::clone(&upstream));
    let mut writer = Writer::new(emulator);
    writer.write(0..20, true).await;
    let id = streams.open("u".into(), open_gate()).unwrap();
    let mut told = Told::new(streams.follow(&id).unwrap());
    told.until(&writer.documents).await;
    for outage in 1..=2 {
        // While the stream is up …
        for document in 5..15 {
            writer.write([document], true).await;
        }
        writer.write([5], false).await;
        told.until(&writer.documents).await;
        // … and in an outage: written twice, deleted, made again, and deleted and made again.
        relay.cut();
        while told.stale < outage {
            told.next().await;
        }
        writer.write(0..10, true).await;
        writer.write(0..4, true).await;
        writer.write([7, 8, 19], false).await;
        writer.write([8, 100 + outage], true).await;
        relay.mend();
        told.until(&writer.documents).await;
        writer.write([19], true).await;
    }
    told.until(&writer.documents).await;
    assert_eq!((told.snapshots, told.stale), (1, 2));
    let mut newcomer = Told::new(streams.follow(&id).unwrap());
    newcomer.next().await;
    assert_eq!(newcomer.documents, writer.documents);
    let resumed: Vec<bool> =
        upstream.resumed.lock().iter().map(|resume| !resume.token.is_empty()).collect();
    assert!(!resumed[0] && resumed.len() >= 3, "{resumed:?}");
    let with_token = emulator.engine == Engine::Google;
    assert!(resumed[1..].iter().all(|resumed| *resumed == with_token), "{resumed:?}");
}

#[tokio::test]
async fn over_two_outages_every_final_state_arrives_none_twice_none_backwards_from_npm() {
    two_outages(&Emulator::start(Engine::Npm).await).await;
}

#[tokio::test]
async fn over_two_outages_every_final_state_arrives_none_twice_none_backwards_from_google() {
    if let Some(emulator) = Emulator::google("a stream that resumes with its token").await {
        two_outages(&emulator).await;
    }
}

/// A document that is not there, written, rewritten in an outage, deleted in another.
async fn one_document(emulator: &Emulator) {
    let relay = Relay::to(emulator).await;
    let streams = LiveQueries::new(Arc::new(Direct::through(&relay)));
    let id = streams.open("u/a".into(), open_gate()).unwrap();
    let mut follow = streams.follow(&id).unwrap();
    assert_eq!(told(&mut follow).await, "snapshot");
    emulator.write(&[("u/a", Some(1)), ("u/b", Some(1))]).await;
    assert_eq!(told(&mut follow).await, "change +u/a=1");
    for (n, line) in [(Some(2), "change ~u/a=2"), (None, "change -u/a")] {
        relay.cut();
        assert_eq!(told(&mut follow).await, "stale");
        emulator.write(&[("u/a", n)]).await;
        relay.mend();
        assert_eq!(told(&mut follow).await, line);
    }
}

#[tokio::test]
async fn a_document_is_followed_over_outages_from_npm() {
    one_document(&Emulator::start(Engine::Npm).await).await;
}

#[tokio::test]
async fn a_document_is_followed_over_outages_from_google() {
    if let Some(emulator) = Emulator::google("a document that is followed over outages").await {
        one_document(&emulator).await;
    }
}

#[tokio::test]
async fn a_query_that_google_refuses_ends_with_its_words() {
    let Some(emulator) = Emulator::google("a query that the server refuses").await else { return };
    let relay = Relay::to(&emulator).await;
    // The path of a collection, not of a document.
    let query = Bytes::from_static(b"u/a/odd");
    let streams = LiveQueries::new(Arc::new(Direct::through(&relay)));
    let id = streams.open(query.clone(), open_gate()).unwrap();
    let mut follow = streams.follow(&id).unwrap();
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line| line != "end") {
        lines.push(told(&mut follow).await);
    }
    assert_eq!(lines, ["snapshot(stale)", "stale INVALID_ARGUMENT", "end"]);
    let refused = streams.open(query, open_gate()).unwrap_err();
    assert_eq!(refused.code, "INVALID_ARGUMENT");
    assert!(!refused.message.is_empty());
}
