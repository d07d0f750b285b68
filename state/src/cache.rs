//! The fallback cache: what a backend last answered, for when it cannot.
//!
//! Entries hang on the lane that they were read from, so that a write to the lane drops them all. The
//! rule that keeps a host from reading behind its own writes:
//!
//! 1. a read takes a [`Fill`] before it is sent; it remembers the lane's version;
//! 2. a write calls [`Cache::invalidate`] or [`Cache::withdraw`] before it is sent and invalidates again when it
//!    ends, which raises the version and then drops the lane's entries; what was withdrawn comes back if the write is
//!    proven not to have been executed and no other was sent meanwhile ([`Cache::put_back`]);
//! 3. [`Cache::fill`] keeps a value only if the version is still the fill's, looks again after it
//!    has put it there, and takes it out if a write came between. Whatever comes into the cache, or back, does so by
//!    this way (`Cache::put_if`, and `Cache::put_older` for what an earlier cache held).
//!
//! Versions are kept in a small table by hash: two lanes that share a place only throw away a fill too
//! many. Values are found by their full canonical read, never by hash alone. A cache that takes another's place has
//! the same table, so that neither misses a write (`cache/succession.rs`).
//!
//! A large value is in a file ([`crate::shelf`]), if the cache has a shelf; the rules are the same.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use quick_cache::sync::{Cache as Entries, EntryAction};

use crate::{
    shelf::{Label, Shelf},
    units::{LaneId, Lanes, Moment},
};

mod held;
mod succession;

pub use self::held::{CachedRead, Value};
use self::held::{Held, OVERHEAD, Reads, Tally, Weigh};

/// Places in the table of versions.
const VERSIONS: usize = 4_096;
/// Reads that one lane's entry holds (HGET of many fields); the oldest goes first.
const READS_PER_LANE: usize = 32;
static NEXT_ID: AtomicU64 = AtomicU64::new(0);
/// Of so many new lanes a full cache keeps one.
const NEWCOMERS: u64 = 8;
/// A larger reply is in a file, if there is a shelf for it.
const FILED_ABOVE: u64 = 1 << 20;
/// A reply in a file is replaced once it is older than so many parts of `ttl`: the same report asked for each second
/// does not write the disk each second.
const REFILED_AFTER: u32 = 10;

/// A fallback cache's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Entries; at least 1.
    pub items: u32,
    /// Their bytes; at least as many as items.
    pub bytes: u64,
    /// How long an entry answers as `cache`.
    pub ttl: Duration,
    /// How long it answers at all, then as `stale`; at least `ttl`.
    pub max_stale: Duration,
    /// Bytes of the largest reply that is kept in a file.
    pub entry_max: u64,
    /// Bytes of all replies in files; 0 keeps them in memory, up to an eighth of `bytes` each.
    pub disk_bytes: u64,
}

/// Room for a copy of an answer on its way to its caller, which may become an entry. Given back when it is dropped.
pub struct Copying {
    cache: Arc<Cache>,
    bytes: u64,
}

impl Copying {
    /// Whether so many bytes more may be copied: a copy takes what an entry may ([`Cache::entry_max`]), and all copies
    /// together as many bytes as the cache.
    pub fn takes(&mut self, more: u64) -> bool {
        let most = self.cache.settings.bytes;
        if self.bytes + more > self.cache.entry_max() {
            return false;
        }
        let all = self.cache.copying.fetch_add(more, Ordering::Relaxed) + more;
        self.bytes += more;
        all <= most
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.cache.copying.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit<V = Value> {
    /// The reply.
    pub value: V,
    /// How long ago it was answered.
    pub age: Duration,
    /// No older than `ttl`, and of this run.
    pub fresh: bool,
}

/// Leave to fill a lane with what a read will answer; see the module's page.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    lane: LaneId,
    version: u64,
    outlasts: bool,
}

impl Fill {
    /// What is filled answers for a day at least, whatever `max_stale` is: see [`CachedRead::outlasts`].
    #[must_use]
    pub fn outlasting(self, outlasts: bool) -> Self {
        Self { outlasts, ..self }
    }

    /// What is read with this leave.
    fn read(self, key: Bytes, value: Value, now: Moment, until: Option<Moment>) -> CachedRead {
        let outlasts = self.outlasts;
        CachedRead { key, value, stored_at: now, restored: false, until, outlasts }
    }
}

/// What a write has withdrawn from a lane while it is on its way; see [`Cache::withdraw`].
#[must_use = "a write that was not executed puts it back"]
pub struct Withdrawn {
    /// Of which cache: another may have taken its place since.
    cache: u64,
    lane: LaneId,
    version: u64,
    reads: Reads,
}

/// A cache whose place another has taken.
struct Before {
    cache: Arc<Cache>,
    /// The versions when its place was taken.
    versions: Box<[u64]>,
}

/// The cache. Shared by every call; its locks are held for a look-up.
pub struct Cache {
    /// No other of this process has it.
    id: u64,
    inner: Entries<LaneId, Reads, Weigh>,
    /// How often each lane was written in this run, by hash.
    versions: Arc<[AtomicU64]>,
    /// Until when fills are barred, in milliseconds of a [`Moment`]; by hash, as the versions are.
    barred: Arc<[AtomicU64]>,
    settings: CacheSettings,
    tally: Arc<Tally>,
    hits: AtomicU64,
    misses: AtomicU64,
    /// New lanes that came while it was full.
    newcomers: AtomicU64,
    /// The bytes of copies on their way ([`Copying`]).
    copying: AtomicU64,
    /// Entries put that outlast the daemon.
    outlasting: AtomicU64,
    shelf: OnceLock<Arc<Shelf>>,
    /// The one whose place it took, until it has [taken over](Cache::take_over) what that holds.
    before: RwLock<Option<Before>>,
    /// Whether there is one.
    has_before: AtomicBool,
    /// Held while it takes over.
    taking_over: Mutex<()>,
}

impl Cache {
    /// An empty cache.
    pub fn new(settings: CacheSettings) -> Self {
        let items = u64::from(settings.items.max(1));
        let floor = (settings.bytes / items).max(1);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            inner: Entries::with_weighter(
                settings.items as usize,
                floor.saturating_mul(items),
                Weigh { floor },
            ),
            versions: (0..VERSIONS).map(|_| AtomicU64::new(0)).collect(),
            barred: (0..VERSIONS).map(|_| AtomicU64::new(0)).collect(),
            settings,
            tally: Arc::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            newcomers: AtomicU64::new(0),
            copying: AtomicU64::new(0),
            outlasting: AtomicU64::new(0),
            shelf: OnceLock::new(),
            before: RwLock::default(),
            has_before: AtomicBool::new(false),
            taking_over: Mutex::default(),
        }
    }

    /// Gives it a place for large replies, for good; one that has one already keeps that.
    pub fn set_shelf(&self, place: Arc<Shelf>) {
        place.set_bytes(self.settings.disk_bytes);
        self.shelf.set(place).ok();
    }

    /// Its place for large replies.
    pub fn shelf(&self) -> Option<&Arc<Shelf>> {
        self.shelf.get()
    }

    /// Bytes of the largest reply that it keeps: with a shelf as many as the settings say, else an eighth of its own.
    pub fn entry_max(&self) -> u64 {
        let in_memory = self.settings.bytes / 8;
        match self.shelf.get().filter(|shelf| shelf.takes(1)) {
            Some(_) => self.settings.entry_max.max(in_memory.min(FILED_ABOVE)),
            None => in_memory,
        }
    }

    /// Room for a copy, of which nothing is taken yet.
    pub fn copying(this: &Arc<Self>) -> Copying {
        Copying { cache: Arc::clone(this), bytes: 0 }
    }

    /// Leave to fill `lane`; take it before the read is sent.
    pub fn begin(&self, lane: LaneId) -> Fill {
        Fill { lane, version: self.version(lane).load(Ordering::Acquire), outlasts: false }
    }

    /// Whether no write to its lane, or to one that counts as it, was sent or has ended since `fill` was taken.
    pub fn is_unchanged(&self, fill: Fill) -> bool {
        self.has_version(fill.lane, fill.version)
    }

    /// Keeps what a live read answered, unless a write to its lane came between; no longer than `until`, if
    /// that is known. What is larger than the cache's share for one entry in eight is not kept. A lane's only entry
    /// that is answered again as before is refreshed in place, without an allocation. In a full cache one new lane in
    /// eight is kept: each takes the place of another, and what is read often comes again.
    pub fn fill(
        &self,
        fill: Fill,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        now: Moment,
        until: Option<Moment>,
    ) {
        let (key, value) = (key.as_ref(), value.as_ref());
        if !self.has_version(fill.lane, fill.version)
            || (key.len() + value.len()) as u64 > self.settings.bytes / 8
        {
            return;
        }
        // A write that comes between drops what is refreshed here, as it does what is put.
        match self.inner.get(&fill.lane) {
            Some(held) if held.answers_again(key, value, now, until) => return,
            None if self.is_full() && !self.is_newcomers_turn() => return,
            _ => {}
        }
        // A reply is often a slice of a larger read buffer; the cache must not keep that alive.
        let value = Value::Memory(Bytes::copy_from_slice(value));
        let key = Bytes::copy_from_slice(key);
        self.put(fill.lane, fill.version, fill.read(key, value, now, until));
    }

    /// [`Cache::fill`] for a reply that may be large: then it is written to a file first, on the shelf's thread. `room`
    /// is held until then. A younger one in a file stays, as long as that is younger than a tenth of `ttl`.
    pub fn fill_large(
        this: &Arc<Self>,
        fill: Fill,
        label: Label,
        value: Bytes,
        (now, until): (Moment, Option<Moment>),
        room: Copying,
    ) {
        let shelf = this.shelf.get().filter(|shelf| shelf.takes(value.len() as u64));
        let Some(shelf) = shelf.filter(|_| value.len() as u64 > FILED_ABOVE) else {
            return this.fill(fill, &label.key, value, now, until);
        };
        let held = this.find(fill.lane, &label.key, Some(this.settings.ttl / REFILED_AFTER), now);
        let is_young = held.is_some_and(|hit| hit.fresh && matches!(hit.value, Value::File(_)));
        if is_young || !this.has_version(fill.lane, fill.version) {
            return;
        }
        let (cache, key) = (Arc::clone(this), label.key.clone());
        shelf.put(label, value, move |shelved| {
            let read = fill.read(key, Value::File(shelved), now, until);
            cache.put(fill.lane, fill.version, read);
            drop(room);
        });
    }

    /// Whether what is new takes the place of something else.
    fn is_full(&self) -> bool {
        let (entries, bytes, ..) = self.stats();
        let most = |limit: u64| limit - limit / 8;
        entries >= most(self.settings.items.into())
            || bytes + entries * OVERHEAD as u64 >= most(self.settings.bytes)
    }

    /// Whether it is a new lane's turn.
    fn is_newcomers_turn(&self) -> bool {
        self.newcomers.fetch_add(1, Ordering::Relaxed).is_multiple_of(NEWCOMERS)
    }

    /// Drops what is cached of `lane` and voids the fills under way.
    pub fn invalidate(&self, lane: LaneId) {
        self.version(lane).fetch_add(1, Ordering::AcqRel);
        self.inner.remove(&lane);
    }

    /// [`Cache::invalidate`], for a write that may turn out never to have been executed: keeps what is dropped for
    /// [`Cache::put_back`]. `before` is what an earlier attempt of the same write withdrew.
    pub fn withdraw(&self, lane: LaneId, before: Option<Withdrawn>) -> Option<Withdrawn> {
        let version = self.version(lane).fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        match self.inner.remove(&lane) {
            Some((_, reads)) => Some(Withdrawn { cache: self.id, lane, version, reads }),
            None => before
                .filter(|before| {
                    before.cache == self.id && before.version.wrapping_add(1) == version
                })
                .map(|before| Withdrawn { version, ..before }),
        }
    }

    /// The write for which this was withdrawn was not executed. Comes back if no other write was sent meanwhile and
    /// nothing was read.
    pub fn put_back(&self, withdrawn: Withdrawn) {
        let Withdrawn { cache, lane, version, reads } = withdrawn;
        if cache == self.id && self.inner.get(&lane).is_none() {
            self.put_if(lane, version, reads);
        }
    }

    /// A write to `lanes` may still land until then, and nobody will say when: what reads answer meanwhile is not
    /// kept. Ask [`Cache::is_barred`] when a read begins.
    pub fn bar(&self, lanes: &Lanes, until: Moment) {
        let bar = |place: &AtomicU64| place.fetch_max(until.as_millis(), Ordering::AcqRel);
        if lanes.is_all() {
            self.barred.iter().for_each(|place| {
                bar(place);
            });
        }
        for lane in lanes.as_slice() {
            bar(place_of(&self.barred, *lane));
        }
    }

    /// Whether what a read of `lane` answers that begins now must not be kept.
    pub fn is_barred(&self, lane: LaneId, now: Moment) -> bool {
        place_of(&self.barred, lane).load(Ordering::Acquire) > now.as_millis()
    }

    /// Drops everything and voids every fill: what a barrier over all lanes does.
    pub fn invalidate_all(&self) {
        for version in &*self.versions {
            version.fetch_add(1, Ordering::AcqRel);
        }
        self.inner.clear();
        // If there was none, none has gone.
        let more = |count| (count > 0).then_some(count + 1);
        self.outlasting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok();
    }

    /// The cached reply to `key`, if it is no older than `max_stale` (and the cache's own limit).
    pub fn get(
        &self,
        lane: LaneId,
        key: &Bytes,
        max_stale: Option<Duration>,
        now: Moment,
    ) -> Option<Hit> {
        let hit = self.find(lane, key, max_stale, now);
        let counter = if hit.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        hit
    }

    /// [`Cache::get`] of a value in memory, which counts only a hit: for callers that ask again if there is none.
    pub fn get_if_held(
        &self,
        lane: LaneId,
        key: &[u8],
        max_stale: Option<Duration>,
        now: Moment,
    ) -> Option<Hit<Bytes>> {
        let Hit { value, age, fresh } = self.find(lane, key, max_stale, now)?;
        let value = value.in_memory()?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(Hit { value, age, fresh })
    }

    /// Whether [`Cache::get`] would find a reply. Counts nothing.
    pub fn holds(
        &self,
        lane: LaneId,
        key: &[u8],
        max_stale: Option<Duration>,
        now: Moment,
    ) -> bool {
        self.find(lane, key, max_stale, now).is_some()
    }

    fn find(
        &self,
        lane: LaneId,
        key: &[u8],
        max_stale: Option<Duration>,
        now: Moment,
    ) -> Option<Hit> {
        self.find_within(&self.settings, lane, key, max_stale, now)
    }

    /// [`Cache::find`] by the limits of a cache that took its place.
    fn find_within(
        &self,
        limits: &CacheSettings,
        lane: LaneId,
        key: &[u8],
        max_stale: Option<Duration>,
        now: Moment,
    ) -> Option<Hit> {
        let held = self.inner.get(&lane);
        let held = held.as_ref().and_then(|reads| {
            let read = reads.iter().find(|read| read.key == *key)?;
            Some((reads, read))
        });
        let Some((reads, read)) = held else {
            let look = |before: &Self| before.find_within(limits, lane, key, max_stale, now);
            return self.look_before(lane, look);
        };
        let limit = read.limit(limits.max_stale);
        let limit = max_stale.map_or(limit, |asked| asked.min(limit));
        let age = now.since(reads.answered_at(read));
        let fresh = !read.restored && age <= limits.ttl;
        let ended = read.until.is_some_and(|until| until <= now) || read.value.is_gone();
        (age <= limit && !ended).then(|| Hit { value: read.value.clone(), age, fresh })
    }

    /// Drops what is older than `max_stale`, or has ended; returns how many entries went.
    pub fn sweep(&self, now: Moment) -> usize {
        let old = |reads: &Held, read: &CachedRead| {
            now.since(reads.answered_at(read)) > read.limit(self.settings.max_stale)
                || read.until.is_some_and(|until| until <= now)
                || read.value.is_gone()
        };
        let lanes: Vec<LaneId> = self
            .inner
            .iter()
            .filter(|(_, reads)| reads.iter().any(|read| old(reads, read)))
            .map(|(lane, _)| lane)
            .collect();
        let mut dropped = 0;
        for lane in lanes {
            // In one step: what a write has dropped by now is not there to be kept.
            let swept = self.inner.entry(&lane, Some(Duration::ZERO), |_, reads| {
                let held = Arc::clone(reads);
                let kept: Vec<_> = held.iter().filter(|read| !old(&held, read)).cloned().collect();
                dropped += held.len() - kept.len();
                if kept.is_empty() {
                    return EntryAction::Remove;
                }
                *reads = Held::new(kept, &self.tally);
                EntryAction::Retain(())
            });
            drop(swept);
        }
        dropped
    }

    /// Everything in it, for a snapshot on disk.
    pub fn entries(&self) -> Vec<(LaneId, CachedRead)> {
        self.inner
            .iter()
            .flat_map(|(lane, reads)| reads.taken().map(|read| (lane, read)).collect::<Vec<_>>())
            .collect()
    }

    /// Entries, bytes, hits and misses. Walks nothing, locks nothing.
    pub fn stats(&self) -> (u64, u64, u64, u64) {
        let counts = [&self.tally.entries, &self.tally.bytes, &self.hits, &self.misses];
        let [entries, bytes, hits, misses] = counts.map(|count| count.load(Ordering::Relaxed));
        (entries, bytes, hits, misses)
    }

    /// How often an entry that [outlasts](CachedRead::outlasts) came or changed, or all of them went.
    pub fn outlasting(&self) -> u64 {
        self.outlasting.load(Ordering::Relaxed)
    }

    /// Adds `read` to what is held of `lane`, unless that was written since it had this version.
    fn put(&self, lane: LaneId, version: u64, read: CachedRead) {
        if !self.has_version(lane, version) {
            return;
        }
        let outlasts = read.outlasts;
        let mut reads = match self.inner.get(&lane) {
            Some(reads) if !(reads.len() == 1 && reads.iter().all(|old| old.key == read.key)) => {
                reads.taken().filter(|old| old.key != read.key).collect()
            }
            _ => Vec::with_capacity(1),
        };
        if reads.len() >= READS_PER_LANE {
            reads.remove(0);
        }
        reads.push(read);
        if self.put_if(lane, version, Held::new(reads, &self.tally)) && outlasts {
            self.outlasting.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts `reads` in the place of what is held of `lane`, unless that was written since it had this version. Whether
    /// they are there.
    fn put_if(&self, lane: LaneId, version: u64, reads: Reads) -> bool {
        if !self.has_version(lane, version) {
            return false;
        }
        self.inner.insert(lane, reads);
        if self.has_version(lane, version) {
            return true;
        }
        self.inner.remove(&lane);
        false
    }

    fn version(&self, lane: LaneId) -> &AtomicU64 {
        place_of(&self.versions, lane)
    }

    /// Whether `lane` was not written since it had this version.
    fn has_version(&self, lane: LaneId, version: u64) -> bool {
        self.version(lane).load(Ordering::Acquire) == version
    }
}

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a table has VERSIONS places and the index is taken modulo that"
)]
fn place_of<T>(table: &[T], lane: LaneId) -> &T {
    &table[lane.0 as usize % VERSIONS]
}

#[cfg(test)]
mod tests;
