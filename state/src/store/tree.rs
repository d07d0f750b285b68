//! The ordered map of a store: sled's, or one in memory for tests.

use sled::{Db, IVec};

/// An ordered map of small values.
pub(super) trait Tree {
    /// The value under a key.
    fn get(&self, key: &[u8]) -> sled::Result<Option<IVec>>;
    /// Writes a value; returns the one before.
    fn insert(&self, key: &[u8], value: Vec<u8>) -> sled::Result<Option<IVec>>;
    /// Removes a value; returns it.
    fn remove(&self, key: &[u8]) -> sled::Result<Option<IVec>>;
    /// The last entry at or below `key` whose key begins with `prefix`.
    fn at_or_below(&self, key: &[u8], prefix: u8) -> sled::Result<Option<(IVec, IVec)>>;
    /// The keys that begin with `prefix`, ascending.
    fn keys(&self, prefix: &[u8]) -> sled::Result<Vec<IVec>>;
}

impl Tree for Db {
    fn get(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        (**self).get(key)
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> sled::Result<Option<IVec>> {
        (**self).insert(key, value)
    }

    fn remove(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        (**self).remove(key)
    }

    fn at_or_below(&self, key: &[u8], prefix: u8) -> sled::Result<Option<(IVec, IVec)>> {
        self.range([prefix].as_slice()..=key).next_back().transpose()
    }

    fn keys(&self, prefix: &[u8]) -> sled::Result<Vec<IVec>> {
        self.scan_prefix(prefix).keys().collect()
    }
}
