//! What one connection has said since the last consistent state.

use std::{collections::BTreeMap, mem};

use bytes::Bytes;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::target_change::TargetChangeType;
use prost_types::Timestamp;
use tonic::Status;

use super::{
    news::{News, TargetNews},
    view::{Difference, Kept, Settled, View},
};

/// The largest result of a stream, as JSON in bytes.
pub(super) const BYTES_MAX: usize = 64 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Round {
    /// Whether what follows is the whole result: what is not in it is gone.
    whole: bool,
    /// Whether the server has said that the target is current.
    current: bool,
    documents: BTreeMap<String, Option<Kept>>,
    bytes: usize,
    /// The last token; it covers `documents`, so that it counts once they are published.
    token: Bytes,
}

/// What is to be done after a response.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing yet.
    Wait,
    /// What came is consistent, as of this time.
    Consistent(Timestamp),
    /// Not as many documents are known as there are: the Listen has to begin again.
    Mismatch,
    /// The server has ended the target.
    Removed(Option<Status>),
    /// The result is too large to hold.
    TooLarge,
}

impl Round {
    /// The round of a new connection; `resumed` if it had a token.
    pub(super) fn new(resumed: bool) -> Self {
        Self {
            whole: !resumed,
            current: false,
            documents: BTreeMap::new(),
            bytes: 0,
            token: Bytes::new(),
        }
    }

    /// Whether the server has said that the target is current.
    pub(super) fn is_current(&self) -> bool {
        self.current
    }

    /// Takes one response; `known` is the last consistent state.
    pub(super) fn take(&mut self, news: News, known: &View) -> Step {
        match news {
            News::Present(name, document) => {
                let document = known.shared(&name, document);
                self.set(name, Some(document));
                let held = if self.whole { 0 } else { known.bytes() };
                if self.bytes + held > BYTES_MAX { Step::TooLarge } else { Step::Wait }
            }
            News::Gone(name) => {
                self.set(name, None);
                Step::Wait
            }
            News::Count(count) if count == self.count(known) => Step::Wait,
            News::Count(_) => Step::Mismatch,
            News::Target(target) => self.target(target),
            News::Nothing => Step::Wait,
        }
    }

    fn target(&mut self, target: TargetNews) -> Step {
        use TargetChangeType::{Add, Current, NoChange, Remove, Reset};
        match target.kind {
            Remove => return Step::Removed(target.cause),
            Reset => *self = Self::new(false),
            Current => self.current = true,
            Add | NoChange => {}
        }
        if !target.token.is_empty() {
            self.token = target.token;
        }
        match (target.kind, target.read_time) {
            (Current | NoChange, Some(read_time)) if self.current => Step::Consistent(read_time),
            _ => Step::Wait,
        }
    }

    fn set(&mut self, name: String, document: Option<Kept>) {
        self.bytes += document.as_ref().map_or(0, Kept::bytes);
        if let Some(Some(before)) = self.documents.insert(name, document) {
            self.bytes -= before.bytes();
        }
    }

    fn count(&self, known: &View) -> usize {
        if self.whole {
            self.documents.values().flatten().count()
        } else {
            known.count_with(&self.documents)
        }
    }

    /// Takes what came over into `known`, which is from then on as of `read_time`, and begins again on the same
    /// connection. `None` if what is known already was read later: then the round goes on.
    pub(super) fn settle(&mut self, known: &mut View, read_time: Timestamp) -> Option<Difference> {
        if known.was_read_after(read_time) {
            return None;
        }
        let next = Self { whole: false, current: self.current, ..Self::new(true) };
        let Self { whole, documents, token, .. } = mem::replace(self, next);
        Some(known.settle(Settled { whole, documents, token }, read_time))
    }
}
