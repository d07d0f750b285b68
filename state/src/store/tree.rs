//! The ordered map of a store: sled's, or one in memory for tests.

use std::ops::Deref;

use sled::{Db, IVec};

use super::places::Places;

/// An ordered map of small values.
pub(super) trait Tree {
    /// The value under a key.
    fn get(&self, key: &[u8]) -> sled::Result<Option<IVec>>;
    /// Writes a value; returns the one before.
    fn insert(&self, key: &[u8], value: Vec<u8>) -> sled::Result<Option<IVec>>;
    /// Removes a value; returns it.
    fn remove(&self, key: &[u8]) -> sled::Result<Option<IVec>>;
    /// The number of the only pack that may hold a call.
    fn pack_of(&self, seq: u64) -> Option<u64>;
    /// The keys that begin with `prefix`, ascending.
    fn keys(&self, prefix: &[u8]) -> sled::Result<Vec<IVec>>;
}

/// A handle of sled, and where the calls of its packs are.
#[derive(Clone)]
pub(super) struct Sled {
    db: Db,
    places: Places,
}

impl Sled {
    pub(super) fn new(db: Db, places: Places) -> Self {
        Self { db, places }
    }
}

impl Deref for Sled {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

impl Tree for Sled {
    fn get(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        self.db.get(key)
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> sled::Result<Option<IVec>> {
        self.db.insert(key, value)
    }

    fn remove(&self, key: &[u8]) -> sled::Result<Option<IVec>> {
        self.db.remove(key)
    }

    fn pack_of(&self, seq: u64) -> Option<u64> {
        self.places.of(seq)
    }

    fn keys(&self, prefix: &[u8]) -> sled::Result<Vec<IVec>> {
        self.db.scan_prefix(prefix).keys().collect()
    }
}
