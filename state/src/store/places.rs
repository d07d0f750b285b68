//! Where the calls of packs are; see `pack.rs`.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;

/// Where the calls of packs are, by the first of each pack; shared with those who read them.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<RwLock<BTreeMap<u64, Place>>>);

/// A pack, under the first of its calls that was there when it was written or found.
#[derive(Clone, Copy, Debug)]
struct Place {
    number: u64,
    /// How many of its calls are left in it.
    left: u64,
}

impl Places {
    /// The number of the only pack that may hold a call.
    pub(super) fn of(&self, seq: u64) -> Option<u64> {
        self.0.read().range(..=seq).next_back().map(|(_, place)| place.number)
    }

    /// The pack of that number holds `count` calls, of which `first` is the first.
    pub(super) fn put(&self, first: u64, number: u64, count: u64) {
        self.0.write().insert(first, Place { number, left: count });
    }

    /// A call is not its pack's any more. Returns the number of that pack if it was the last.
    pub(super) fn take(&self, seq: u64) -> Option<u64> {
        let mut places = self.0.write();
        let (first, place) = places.range_mut(..=seq).next_back()?;
        let (first, number) = (*first, place.number);
        place.left -= 1;
        if place.left > 0 {
            return None;
        }
        places.remove(&first);
        Some(number)
    }
}
