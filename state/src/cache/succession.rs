//! What comes into a cache from elsewhere: from the cache whose place it took, and from a snapshot of an earlier run.
//!
//! Both are older than all that the cache itself holds, so nothing of it replaces a read, or takes the place of one.
//! A lane that was written since has none of it. All caches that take one another's place count writes in one table, so
//! that this holds whichever of them a write finds in use:
//!
//! - what an earlier cache holds comes in if the lane has the version that it had when the place was taken;
//! - what a snapshot holds comes in if the lane has version 0: it was not written in this run.
//!
//! Until all of an earlier cache was looked at, a look-up that finds nothing here asks there, by the same rule.

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use quick_cache::sync::{EntryAction, EntryResult};

use super::{
    Before, Cache, CacheSettings, READS_PER_LANE,
    held::{CachedRead, Held},
    place_of,
};
use crate::units::LaneId;

impl Before {
    /// The version of `lane` when its place was taken.
    fn version(&self, lane: LaneId) -> u64 {
        *place_of(&self.versions, lane)
    }
}

impl Cache {
    /// An empty cache with other limits, to take the place of `before`. A write, or what bars fills, counts in both,
    /// whichever of the two hears of it; counters go on. What `before` holds answers here too, until this one has
    /// [taken it over](Self::take_over): that is to be asked for once it is in use.
    pub fn in_place_of(before: &Arc<Self>, settings: CacheSettings) -> Self {
        let count = |counter: &AtomicU64| AtomicU64::new(counter.load(Ordering::Relaxed));
        let versions = before.versions.iter().map(|version| version.load(Ordering::Acquire));
        let earlier = Before { cache: Arc::clone(before), versions: versions.collect() };
        Self {
            versions: Arc::clone(&before.versions),
            barred: Arc::clone(&before.barred),
            hits: count(&before.hits),
            misses: count(&before.misses),
            outlasting: count(&before.outlasting),
            before: RwLock::new(Some(earlier)),
            has_before: AtomicBool::new(true),
            ..Self::new(settings)
        }
    }

    /// What `look` finds in the cache whose place it took, if not all of that is taken over. Nothing if `lane` was
    /// written since. Does not wait for whoever takes it over.
    pub(super) fn look_before<T>(
        &self,
        lane: LaneId,
        look: impl FnOnce(&Self) -> Option<T>,
    ) -> Option<T> {
        if !self.has_before.load(Ordering::Relaxed) {
            return None;
        }
        let before = self.before.read();
        let before = before.as_ref()?;
        if !self.has_version(lane, before.version(lane)) {
            return None;
        }
        look(&before.cache)
    }

    /// Whether there is anything that it could answer.
    pub fn holds_something(&self) -> bool {
        let before = self.before.read();
        self.stats().0 > 0 || before.as_ref().is_some_and(|before| before.cache.holds_something())
    }

    /// Takes back what a snapshot held; it will answer as stale only. What was read or written in this run is newer,
    /// and stays.
    pub fn restore(
        &self,
        entries: impl IntoIterator<Item = (LaneId, CachedRead), IntoIter: DoubleEndedIterator>,
    ) {
        // What that holds was read in this run.
        self.take_over();
        // The last of a lane is the newest.
        for (lane, read) in entries.into_iter().rev() {
            self.put_older(lane, CachedRead { restored: true, ..read }, 0);
        }
    }

    /// Takes over what the cache holds whose place this one took, with its age; if it has done so, nothing. What was read
    /// or written since this cache was made is newer, and stays. It must be in use already: then a write that came
    /// meanwhile is known here. Walks the whole cache, and waits for whoever is doing so.
    pub fn take_over(&self) {
        let _taking_over = self.taking_over.lock();
        // Whoever looks something up reads this meanwhile, too.
        if let Some(before) = &*self.before.read() {
            // It may not have all of its own yet.
            before.cache.take_over();
            for (lane, reads) in before.cache.inner.iter() {
                let version = before.version(lane);
                reads.taken().rev().for_each(|read| self.put_older(lane, read, version));
            }
        }
        let taken = self.before.write().take();
        self.has_before.store(false, Ordering::Relaxed);
        // To free a large one takes time: nobody waits for it.
        drop(taken);
    }

    /// Puts what is older than all that this cache holds of `lane`, before that, unless it was read, or its lane
    /// written since it had this version.
    fn put_older(&self, lane: LaneId, read: CachedRead, version: u64) {
        if !self.has_room_for(&read) || !self.has_version(lane, version) {
            return;
        }
        let outlasts = read.outlasts;
        // In one step: what is read meanwhile is newer, and is not there to be replaced.
        let held = self.inner.entry(&lane, None, |_, reads| {
            let goes_in =
                reads.len() < READS_PER_LANE && reads.iter().all(|newer| newer.key != read.key);
            if goes_in {
                let all = iter::once(read.clone()).chain(reads.taken()).collect();
                *reads = Held::new(all, &self.tally);
            }
            EntryAction::Retain(goes_in)
        });
        let is_kept = match held {
            EntryResult::Retained(goes_in) => goes_in,
            // What has come to this place meanwhile stays.
            EntryResult::Vacant(place) => place.insert(Held::new(vec![read], &self.tally)).is_ok(),
            EntryResult::Removed(..) | EntryResult::Replaced(..) | EntryResult::Timeout => false,
        };
        if !self.has_version(lane, version) {
            self.inner.remove(&lane);
            return;
        }
        if is_kept && outlasts {
            self.outlasting.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether what is older comes in: not into a full cache, which might drop something newer for it. What a program
    /// cannot start without does, of which there is little.
    fn has_room_for(&self, read: &CachedRead) -> bool {
        let size = (read.key.len() + read.value.weight()) as u64;
        size <= self.settings.bytes / 8 && (read.outlasts || !self.is_full())
    }
}
