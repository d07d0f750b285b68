//! The last consistent state of a stream, and how the next one differs from it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost_types::Timestamp;
use xxhash_rust::xxh3::xxh3_64;

/// What is known of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    updated: Option<Timestamp>,
    /// Of its JSON: a server whose clock is coarse gives two states the same time.
    digest: u64,
    /// `None` if it was dropped in a long outage.
    json: Option<Bytes>,
}

impl Kept {
    /// A document's state.
    pub(super) fn new(updated: Option<Timestamp>, json: Bytes) -> Self {
        Self { updated, digest: xxh3_64(&json), json: Some(json) }
    }

    fn is_older_than(&self, other: &Self) -> bool {
        order(self.updated) < order(other.updated)
    }

    fn same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.updated == other.updated
    }

    pub(super) fn bytes(&self) -> usize {
        self.json.as_ref().map_or(0, Bytes::len)
    }
}

fn order(time: Option<Timestamp>) -> (i64, i32) {
    time.map_or((i64::MIN, 0), |time| (time.seconds, time.nanos))
}

/// A consistent state.
#[derive(Debug, Default)]
pub(super) struct View {
    documents: BTreeMap<String, Kept>,
    read_time: Option<Timestamp>,
    /// From here a Listen goes on; empty for none.
    token: Bytes,
    bytes: usize,
}

/// What came since the last consistent state.
#[derive(Debug)]
pub(super) struct Settled {
    /// Whether it is the whole result: what is not in it is gone.
    pub(super) whole: bool,
    /// Documents by name; `None` for one that is gone.
    pub(super) documents: BTreeMap<String, Option<Kept>>,
    /// The token that covers them; empty for none.
    pub(super) token: Bytes,
}

/// How two consistent states differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) added: Vec<Bytes>,
    pub(super) modified: Vec<Bytes>,
    /// Full names.
    pub(super) removed: Vec<String>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

impl View {
    /// Whether what is known was read after `read_time`.
    pub(super) fn was_read_after(&self, read_time: Timestamp) -> bool {
        order(Some(read_time)) < order(self.read_time)
    }

    /// Takes over what came since the last consistent state.
    pub(super) fn settle(&mut self, settled: Settled, read_time: Timestamp) -> Difference {
        let mut difference = Difference::default();
        if settled.whole {
            let present = |name: &str| matches!(settled.documents.get(name), Some(Some(_)));
            self.documents.retain(|name, _| {
                let stays = present(name);
                if !stays {
                    difference.removed.push(name.clone());
                }
                stays
            });
        }
        for (name, document) in settled.documents {
            self.change(name, document, &mut difference);
        }
        self.read_time = Some(read_time);
        self.bytes = self.documents.values().map(Kept::bytes).sum();
        if settled.whole || !settled.token.is_empty() {
            self.token = settled.token;
        }
        difference
    }

    fn change(&mut self, name: String, document: Option<Kept>, difference: &mut Difference) {
        let Some(document) = document else {
            if self.documents.remove(&name).is_some() {
                difference.removed.push(name);
            }
            return;
        };
        let json = document.json.clone();
        match self.documents.get_mut(&name) {
            Some(known) if document.is_older_than(known) => {
                // A server that sends what it sent before.
                known.json = known.json.take().or(json);
            }
            Some(known) => {
                if !known.same(&document) {
                    difference.modified.extend(json);
                }
                *known = document;
            }
            None => {
                difference.added.extend(json);
                self.documents.insert(name, document);
            }
        }
    }

    /// The documents, by name.
    pub(super) fn documents(&self) -> Vec<Bytes> {
        self.documents.values().filter_map(|kept| kept.json.clone()).collect()
    }

    /// How many documents there are once `changed` of them have become what it says.
    pub(super) fn count_with(&self, changed: &BTreeMap<String, Option<Kept>>) -> usize {
        let untouched = self.documents.keys().filter(|name| !changed.contains_key(*name)).count();
        untouched + changed.values().flatten().count()
    }

    /// The state that is known of a document, if it is the same, so that it is held once.
    pub(super) fn shared(&self, name: &str, document: Kept) -> Kept {
        match self.documents.get(name) {
            Some(known) if known.same(&document) && known.json.is_some() => known.clone(),
            _ => document,
        }
    }

    /// As of when it is.
    pub(super) fn read_time(&self) -> Option<Timestamp> {
        self.read_time
    }

    /// The documents' size in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The token, and how many documents are known at it.
    pub(super) fn resume(&self) -> (Bytes, usize) {
        (self.token.clone(), self.documents.len())
    }

    /// The next Listen begins from the beginning.
    pub(super) fn forget_token(&mut self) {
        self.token = Bytes::new();
    }

    /// Drops the documents, but not what a difference needs.
    pub(super) fn shed(&mut self) {
        self.forget_token();
        self.bytes = 0;
        self.documents.values_mut().for_each(|kept| kept.json = None);
    }
}
