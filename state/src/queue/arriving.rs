//! Calls that arrive in pieces, which are stored as they come.

use std::collections::BTreeMap;

/// The bytes that have come of each, by the claim that it holds.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    pub(super) all: BTreeMap<u64, u64>,
    pub(super) bytes: u64,
}

impl Arriving {
    pub(super) fn insert(&mut self, claim: u64, bytes: u64) {
        self.remove(claim);
        self.all.insert(claim, bytes);
        self.bytes += bytes;
    }

    pub(super) fn remove(&mut self, claim: u64) {
        self.bytes -= self.all.remove(&claim).unwrap_or_default();
    }
}
