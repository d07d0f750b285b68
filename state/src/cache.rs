//! The fallback cache: what a backend last answered, for when it cannot.
//!
//! Entries hang on the lane that they were read from, so that a write to the lane drops them all. The
//! rule that keeps a host from reading behind its own writes:
//!
//! 1. a read takes a [`Fill`] before it is sent; it remembers the lane's version;
//! 2. a write calls [`Cache::invalidate`] or [`Cache::withdraw`] before it is sent and invalidates again when it
//!    ends, which raises the version and then drops the lane's entries; what was withdrawn comes back if the write is
//!    proven not to have been executed and no other was sent meanwhile ([`Cache::put_back`]);
//! 3. [`Cache::fill`] keeps a value only where the version is still the fill's, looks again after it
//!    has put it there, and takes it out where a write came between.
//!
//! Versions are kept in a small table by hash: two lanes that share a place only throw away a fill too
//! many. Values are found by their full canonical read, never by hash alone.
//!
//! What is large lies in a file ([`crate::shelf`]), if the cache has a shelf; the rules are the same.

use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quick_cache::{Weighter, sync::Cache as Entries};

use crate::{
    shelf::{Label, Shelf, Shelved},
    units::{LaneId, Lanes, Moment},
};

/// Places in the table of versions.
const VERSIONS: usize = 4_096;
/// Reads that one lane's entry holds (HGET of many fields); the oldest goes first.
const READS_PER_LANE: usize = 32;
/// What an entry costs beside its bytes.
const OVERHEAD: usize = 64;
static NEXT_ID: AtomicU64 = AtomicU64::new(0);
/// Of so many new lanes a full cache keeps one.
const NEWCOMERS: u64 = 8;
/// How long what a program cannot start without answers.
const OUTLASTS: Duration = Duration::from_secs(24 * 3_600);
/// A larger reply lies in a file, if there is a shelf for it.
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

/// A cached reply.
#[derive(Clone, Debug)]
pub enum Value {
    /// It is at hand.
    Memory(Bytes),
    /// It lies in a file.
    File(Arc<Shelved>),
}

impl Value {
    /// The reply, if it is at hand.
    pub fn in_memory(self) -> Option<Bytes> {
        match self {
            Self::Memory(value) => Some(value),
            Self::File(_) => None,
        }
    }

    /// Bytes of memory that it takes.
    fn weight(&self) -> usize {
        match self {
            Self::Memory(value) => value.len(),
            Self::File(_) => 0,
        }
    }

    fn is_gone(&self) -> bool {
        matches!(self, Self::File(file) if file.is_gone())
    }
}

impl PartialEq for Value {
    /// Replies in files are the same if their file is.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory(one), Self::Memory(other)) => one == other,
            (Self::File(one), Self::File(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Eq for Value {}

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

/// One cached read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedRead {
    /// The read in its canonical form.
    pub key: Bytes,
    /// Its reply.
    pub value: Value,
    /// When it was answered.
    pub stored_at: Moment,
    /// Brought back by a restart: never fresh.
    pub restored: bool,
    /// When the value is known to end at the backend: it answers nothing from then on.
    pub until: Option<Moment>,
    /// It hardly ever changes, and a program cannot start without it: it answers for a day at least.
    pub outlasts: bool,
}

impl CachedRead {
    /// How old it may be, in a cache with this `max_stale`.
    fn limit(&self, max_stale: Duration) -> Duration {
        if self.outlasts { max_stale.max(OUTLASTS) } else { max_stale }
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

#[derive(Clone)]
struct Weigh {
    /// The least that an entry weighs, so that one limit on the weight bounds the items too.
    floor: u64,
}

type Reads = Arc<Held>;

/// What the cache holds at this moment, so that nobody has to walk it to know.
#[derive(Default)]
struct Tally {
    entries: AtomicU64,
    bytes: AtomicU64,
}

/// The reads of one lane. They are counted for as long as they live, however the cache lets go of them.
struct Held {
    reads: Vec<CachedRead>,
    /// When the only read was answered again as before, in milliseconds of a [`Moment`]; 0 where it was not.
    answered_again: AtomicU64,
    tally: Arc<Tally>,
}

impl Held {
    fn new(reads: Vec<CachedRead>, tally: &Arc<Tally>) -> Reads {
        let held = Self { reads, answered_again: AtomicU64::new(0), tally: Arc::clone(tally) };
        let (entries, bytes) = held.size();
        tally.entries.fetch_add(entries, Ordering::Relaxed);
        tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(held)
    }

    /// Whether `read` is all that it holds: then it need only note when that was answered again.
    fn answers_again(&self, key: &[u8], value: &[u8], now: Moment, until: Option<Moment>) -> bool {
        let [only] = self.reads.as_slice() else { return false };
        let same = only.key == key
            && matches!(&only.value, Value::Memory(held) if held == value)
            && only.until == until
            && !only.restored;
        if same {
            self.answered_again.fetch_max(now.as_millis(), Ordering::Relaxed);
        }
        same
    }

    /// When a read of it was last answered.
    fn answered_at(&self, read: &CachedRead) -> Moment {
        let again = Moment::from_millis(self.answered_again.load(Ordering::Relaxed));
        read.stored_at.max(again)
    }

    /// The reads with their times, to be put elsewhere.
    fn taken(&self) -> impl Iterator<Item = CachedRead> {
        self.reads
            .iter()
            .map(|read| CachedRead { stored_at: self.answered_at(read), ..read.clone() })
    }

    fn size(&self) -> (u64, u64) {
        let bytes: usize = self.reads.iter().map(|read| read.key.len() + read.value.weight()).sum();
        (self.reads.len() as u64, bytes as u64)
    }
}

impl Deref for Held {
    type Target = [CachedRead];

    fn deref(&self) -> &[CachedRead] {
        &self.reads
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (entries, bytes) = self.size();
        self.tally.entries.fetch_sub(entries, Ordering::Relaxed);
        self.tally.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Weighter<LaneId, Reads> for Weigh {
    fn weight(&self, _: &LaneId, reads: &Reads) -> u64 {
        reads
            .iter()
            .map(|read| ((read.key.len() + read.value.weight() + OVERHEAD) as u64).max(self.floor))
            .sum()
    }
}

/// The cache. Shared by every call; its locks are held for a look-up.
pub struct Cache {
    /// No other of this process has it.
    id: u64,
    inner: Entries<LaneId, Reads, Weigh>,
    versions: Box<[AtomicU64]>,
    /// Until when fills are barred, in milliseconds of a [`Moment`]; by hash, as the versions are.
    barred: Box<[AtomicU64]>,
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
        self.version(fill.lane).load(Ordering::Acquire) == fill.version
    }

    /// Keeps what a live read answered, unless a write to its lane came between; no longer than `until`, where
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
        let version = self.version(fill.lane);
        if version.load(Ordering::Acquire) != fill.version
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
        self.put_unless_written(fill, fill.read(key, value, now, until));
    }

    fn put_unless_written(&self, fill: Fill, read: CachedRead) {
        let version = self.version(fill.lane);
        if version.load(Ordering::Acquire) != fill.version {
            return;
        }
        self.put(fill.lane, read);
        if version.load(Ordering::Acquire) != fill.version {
            self.inner.remove(&fill.lane);
        }
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
        if is_young || this.version(fill.lane).load(Ordering::Acquire) != fill.version {
            return;
        }
        let (cache, key) = (Arc::clone(this), label.key.clone());
        shelf.put(label, value, move |shelved| {
            cache.put_unless_written(fill, fill.read(key, Value::File(shelved), now, until));
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
        let Withdrawn { cache, lane, version: then, reads } = withdrawn;
        let version = self.version(lane);
        let unchanged = cache == self.id && version.load(Ordering::Acquire) == then;
        if unchanged && self.inner.get(&lane).is_none() {
            self.inner.insert(lane, reads);
            if version.load(Ordering::Acquire) != then {
                self.inner.remove(&lane);
            }
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
        for version in &self.versions {
            version.fetch_add(1, Ordering::AcqRel);
        }
        self.inner.clear();
        // Where there was none, none has gone.
        let more = |count| (count > 0).then_some(count + 1);
        self.outlasting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok();
    }

    /// The cached reply to `key`, where it is no older than `max_stale` (and the cache's own limit).
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

    /// [`Cache::get`] of what lies in memory, that counts a hit alone: for who asks again if there is none.
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
        let reads = self.inner.get(&lane)?;
        let read = reads.iter().find(|read| read.key == *key)?;
        let limit = read.limit(self.settings.max_stale);
        let limit = max_stale.map_or(limit, |asked| asked.min(limit));
        let age = now.since(reads.answered_at(read));
        let fresh = !read.restored && age <= self.settings.ttl;
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
            let Some(reads) = self.inner.get(&lane) else { continue };
            let kept: Vec<_> = reads.iter().filter(|read| !old(&reads, read)).cloned().collect();
            dropped += reads.len() - kept.len();
            if kept.is_empty() {
                self.inner.remove(&lane);
            } else {
                self.inner.insert(lane, Held::new(kept, &self.tally));
            }
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

    /// Takes back what a snapshot held; it will answer as stale only.
    pub fn restore(&self, entries: impl IntoIterator<Item = (LaneId, CachedRead)>) {
        for (lane, read) in entries {
            self.put(lane, CachedRead { restored: true, ..read });
        }
    }

    /// Takes over what another cache holds, with its age, as long as nothing was written here since this one was
    /// made. It must be in use already: then a write that came meanwhile is known here.
    pub fn take_over(&self, entries: impl IntoIterator<Item = (LaneId, CachedRead)>) {
        for (lane, read) in entries {
            let version = self.version(lane);
            if version.load(Ordering::Acquire) == 0 {
                self.put(lane, read);
                if version.load(Ordering::Acquire) != 0 {
                    self.inner.remove(&lane);
                }
            }
        }
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

    fn put(&self, lane: LaneId, read: CachedRead) {
        if read.outlasts {
            self.outlasting.fetch_add(1, Ordering::Relaxed);
        }
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
        self.inner.insert(lane, Held::new(reads, &self.tally));
    }

    fn version(&self, lane: LaneId) -> &AtomicU64 {
        place_of(&self.versions, lane)
    }
}

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a table has VERSIONS places and the index is taken modulo that"
)]
fn place_of(table: &[AtomicU64], lane: LaneId) -> &AtomicU64 {
    &table[lane.0 as usize % VERSIONS]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{shelf::ShelfSettings, units::UnixMillis};

    const LANE: LaneId = LaneId(1);

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(seconds * 1_000)
    }

    fn cache() -> Cache {
        Cache::new(CacheSettings {
            items: 1_000,
            bytes: 1 << 20,
            ttl: Duration::from_secs(300),
            max_stale: Duration::from_secs(3_600),
            entry_max: 16 << 20,
            disk_bytes: 0,
        })
    }

    fn key(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    fn look(cache: &Cache, now: u64) -> Option<(u64, bool)> {
        cache.get(LANE, &key("k"), None, at(now)).map(|hit| (hit.age.as_secs(), hit.fresh))
    }

    #[test]
    fn what_is_answered_again_as_before_is_fresh_again() {
        let cache = cache();
        let fill = |value, at_second| {
            cache.fill(cache.begin(LANE), key("k"), key(value), at(at_second), None);
        };
        fill("v", 0);
        fill("v", 200);
        assert_eq!(look(&cache, 400), Some((200, true)));
        assert_eq!(cache.entries()[0].1.stored_at, at(200));
        assert_eq!(cache.sweep(at(3_700)), 0);
        cache.fill(cache.begin(LANE), key("l"), key("w"), at(210), None);
        assert_eq!(look(&cache, 400), Some((200, true)), "it keeps its time beside another");
        let late = cache.begin(LANE);
        cache.invalidate(LANE);
        cache.fill(late, key("k"), key("v"), at(400), None);
        assert_eq!(look(&cache, 400), None);
        assert_eq!(cache.sweep(at(5_000)), 0);
    }

    #[test]
    fn what_was_withdrawn_for_a_write_that_wrote_nothing_comes_back() {
        let filled = || {
            let cache = cache();
            cache.fill(cache.begin(LANE), key("k"), key("v"), at(0), None);
            cache
        };
        let cache = filled();
        let early = cache.begin(LANE);
        let first = cache.withdraw(LANE, None);
        assert_eq!(look(&cache, 1), None);
        let again = cache.withdraw(LANE, first).unwrap();
        cache.put_back(again);
        assert_eq!(look(&cache, 1), Some((1, true)), "after two attempts");
        cache.fill(early, key("k"), key("old"), at(1), None);
        assert_eq!(look(&cache, 1), Some((1, true)), "a fill from before is void all the same");

        let other_write = filled();
        let withdrawn = other_write.withdraw(LANE, None).unwrap();
        assert!(other_write.withdraw(LANE, None).is_none());
        other_write.put_back(withdrawn);
        assert_eq!(look(&other_write, 1), None, "another write was sent meanwhile");
        let stale = filled().withdraw(LANE, None);
        assert!(other_write.withdraw(LANE, stale).is_none(), "of another cache");

        let read = filled();
        let withdrawn = read.withdraw(LANE, None).unwrap();
        read.fill(read.begin(LANE), key("k"), key("new"), at(2), None);
        read.put_back(withdrawn);
        assert_eq!(look(&read, 2), Some((0, true)), "what was read since is newer");

        let (one, other) = (filled(), self::cache());
        other.invalidate(LANE);
        other.put_back(one.withdraw(LANE, None).unwrap());
        assert_eq!(look(&other, 1), None, "into another cache");
    }

    #[test]
    fn an_entry_is_fresh_then_stale_then_gone() {
        let cache = cache();
        cache.fill(cache.begin(LANE), key("k"), key("v"), at(0), None);
        assert_eq!(look(&cache, 300), Some((300, true)));
        assert_eq!(look(&cache, 301), Some((301, false)));
        assert_eq!(look(&cache, 3_600), Some((3_600, false)));
        assert_eq!(look(&cache, 3_601), None);
        assert_eq!(cache.sweep(at(3_601)), 1);
        assert_eq!(cache.stats().0, 0);
    }

    #[test]
    fn what_a_program_cannot_start_without_answers_for_a_day() {
        let cache = cache();
        let fill = cache.begin(LANE).outlasting(true);
        cache.fill(fill, key("k"), key("v"), at(0), None);
        assert_eq!(look(&cache, 3_601), Some((3_601, false)));
        assert_eq!((cache.sweep(at(86_400)), look(&cache, 86_401)), (0, None));
        assert!(cache.entries()[0].1.outlasts);
        let asked = Some(Duration::from_secs(60));
        assert!(cache.get(LANE, &key("k"), asked, at(61)).is_none(), "a caller asks for less");
        assert_eq!(cache.sweep(at(86_401)), 1);
        let before = cache.outlasting();
        cache.invalidate_all();
        assert_ne!(cache.outlasting(), before, "what keeps it has to hear that it has gone");
    }

    #[test]
    fn a_caller_may_ask_for_less_staleness_but_not_for_more() {
        let cache = cache();
        cache.fill(cache.begin(LANE), key("k"), key("v"), at(0), None);
        let get =
            |max| cache.get(LANE, &key("k"), Some(Duration::from_secs(max)), at(100)).is_some();
        assert!(get(100) && !get(99));
        assert!(cache.get(LANE, &key("k"), Some(Duration::MAX), at(3_601)).is_none());
    }

    #[test]
    fn a_write_drops_the_lane_and_voids_a_fill_that_began_earlier() {
        let cache = cache();
        cache.fill(cache.begin(LANE), key("k"), key("old"), at(0), None);
        let late = cache.begin(LANE);
        cache.invalidate(LANE);
        assert_eq!(look(&cache, 1), None);
        cache.fill(late, key("k"), key("old"), at(1), None);
        assert_eq!(look(&cache, 1), None);
        cache.fill(cache.begin(LANE), key("k"), key("new"), at(2), None);
        assert_eq!(look(&cache, 2), Some((0, true)));
    }

    #[test]
    fn an_entry_ends_when_its_value_does() {
        let cache = cache();
        cache.fill(cache.begin(LANE), key("k"), key("v"), at(0), Some(at(2)));
        assert_eq!(look(&cache, 1), Some((1, true)));
        assert_eq!(look(&cache, 2), None);
        assert_eq!((cache.sweep(at(1)), cache.sweep(at(2))), (0, 1));
    }

    #[test]
    fn fills_are_barred_where_a_write_may_still_land() {
        let cache = cache();
        cache.bar(&Lanes::One(LANE), at(5));
        cache.bar(&Lanes::One(LANE), at(3));
        assert!(cache.is_barred(LANE, at(4)) && !cache.is_barred(LaneId(2), at(4)));
        assert!(!cache.is_barred(LANE, at(5)));
        cache.bar(&Lanes::All, at(9));
        assert!(cache.is_barred(LANE, at(8)) && cache.is_barred(LaneId(7), at(8)));
    }

    #[test]
    fn several_reads_share_a_lane() {
        let cache = cache();
        for name in ["HGET h a", "HGET h b", "HGETALL h"] {
            cache.fill(cache.begin(LANE), key(name), key(name), at(0), None);
        }
        assert_eq!(
            cache.get(LANE, &key("HGET h a"), None, at(0)).unwrap().value,
            Value::Memory(key("HGET h a"))
        );
        assert_eq!(cache.stats().0, 3);
        cache.invalidate(LANE);
        assert_eq!(cache.stats().0, 0);
    }

    #[test]
    fn it_stays_within_its_items_and_bytes() {
        let small = Cache::new(CacheSettings { items: 100, bytes: 64 << 10, ..cache().settings });
        for lane in 0..5_000 {
            let lane = LaneId(lane);
            small.fill(small.begin(lane), key("k"), key("v"), at(0), None);
        }
        assert!(small.stats().0 <= 100, "{} entries", small.stats().0);
        for lane in 0..5_000 {
            let lane = LaneId(lane);
            small.fill(small.begin(lane), key("k"), Bytes::from(vec![b'x'; 4_096]), at(0), None);
        }
        assert!(small.stats().1 <= 64 << 10, "{} bytes", small.stats().1);
        small.fill(small.begin(LANE), key("k"), Bytes::from(vec![b'x'; 32 << 10]), at(0), None);
        assert!(
            small.get(LANE, &key("k"), None, at(0)).is_none_or(|hit| hit.value.weight() == 4_096)
        );
    }

    #[test]
    fn a_full_cache_keeps_one_newcomer_in_eight_and_what_is_read_often() {
        let small = Cache::new(CacheSettings { items: 64, bytes: 1 << 20, ..cache().settings });
        let read = |lane: u64, value: &'static str| {
            small.fill(small.begin(LaneId(lane)), key("k"), value, at(1), None);
        };
        let held = |lane: u64| {
            small.get(LaneId(lane), &key("k"), None, at(1)).and_then(|hit| hit.value.in_memory())
        };
        (0..40).for_each(|lane| read(lane, "v"));
        assert!((0..40).all(|lane| held(lane).is_some()), "it keeps all while there is room");
        (0..1_000).for_each(|lane| read(lane, "v"));
        let newcomers = 2_000..2_800;
        let kept = newcomers.filter(|lane| {
            read(*lane, "v");
            held(*lane).is_some()
        });
        let kept: Vec<u64> = kept.collect();
        assert!((50..=100).contains(&kept.len()), "{} of 800", kept.len());
        // What is held is changed at any time.
        let last = *kept.last().unwrap();
        read(last, "w");
        assert_eq!(held(last).unwrap(), "w");
        let comes_again = (0..16).any(|_| {
            read(5_000, "v");
            held(5_000).is_some()
        });
        assert!(comes_again, "what comes again is kept");
    }

    #[test]
    fn its_counts_are_what_a_walk_would_count() {
        let small = Cache::new(CacheSettings { items: 50, bytes: 8 << 10, ..cache().settings });
        let walked = |cache: &Cache| {
            let held = cache.entries();
            let size = |read: &CachedRead| read.key.len() + read.value.weight();
            let bytes: usize = held.iter().map(|(_, read)| size(read)).sum();
            (held.len() as u64, bytes as u64)
        };
        let counted = |cache: &Cache| (cache.stats().0, cache.stats().1);
        let mut random = fastrand::Rng::with_seed(1);
        for step in 0..4_000_u64 {
            let lane = LaneId(random.u64(..100));
            match step % 16 {
                0 => small.invalidate(lane),
                1 => assert!(small.sweep(at(step / 8)) <= 50),
                _ => {
                    let value = Bytes::from(vec![b'x'; random.usize(..2_000)]);
                    let name = ["k", "l", "m"][random.usize(..3)];
                    small.fill(small.begin(lane), key(name), value, at(step / 8), None);
                }
            }
            if step % 64 == 0 {
                assert_eq!(counted(&small), walked(&small), "at step {step}");
            }
        }
        assert!(counted(&small).0 > 0, "something was left to count");
        small.invalidate_all();
        assert_eq!(counted(&small), (0, 0));
    }

    #[test]
    fn a_cache_that_takes_anothers_place_takes_over_nothing_that_was_written_since() {
        let (old, new) = (cache(), cache());
        let other = LaneId(2);
        old.fill(old.begin(LANE), key("k"), key("v"), at(100), None);
        old.fill(old.begin(other), key("k"), key("v"), at(100), None);
        // `new` is in use; a write comes before the old entries are read.
        new.invalidate(LANE);
        new.take_over(old.entries());
        assert_eq!(look(&new, 101), None);
        assert!(new.get(other, &key("k"), None, at(101)).unwrap().fresh);
    }

    fn label(name: &'static str) -> Label {
        let at = UnixMillis::new(1);
        Label { target: "t".into(), lane: LANE, key: key(name), at, until: None }
    }

    /// Waits until the shelf has done what it was asked.
    fn settle(cache: &Arc<Cache>) {
        let (done, told) = std::sync::mpsc::channel();
        let shelf = cache.shelf().unwrap();
        shelf.put(label("last"), Bytes::from_static(b"x"), move |shelved| {
            drop(shelved);
            done.send(()).unwrap();
        });
        told.recv().unwrap();
    }

    #[test]
    fn what_is_large_lies_in_a_file_and_goes_with_a_write() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::new(CacheSettings { disk_bytes: 8 << 20, ..cache().settings }));
        assert_eq!(cache.entry_max(), 1 << 17, "without a shelf");
        cache.set_shelf(Arc::new(Shelf::new(ShelfSettings {
            dir: dir.path().join("results"),
            lasts: false,
            bytes: 0,
            floor: 0,
        })));
        assert_eq!(cache.entry_max(), 16 << 20);
        let large = Bytes::from(vec![7; 2 << 20]);
        let fill = |fill, at_second| {
            let (room, value) = (Cache::copying(&cache), large.clone());
            Cache::fill_large(&cache, fill, label("k"), value, (at(at_second), None), room);
            settle(&cache);
        };
        let held = |now| match cache.get(LANE, &key("k"), None, at(now)).map(|hit| hit.value) {
            Some(Value::File(shelved)) => Some(shelved),
            Some(Value::Memory(_)) => panic!("it is in memory"),
            None => None,
        };
        fill(cache.begin(LANE), 0);
        let first = held(0).unwrap();
        assert_eq!(first.length(), 2 << 20);
        assert_eq!((cache.stats().0, cache.stats().1), (1, 1), "it takes no memory");
        fill(cache.begin(LANE), 30);
        assert!(Arc::ptr_eq(&first, &held(30).unwrap()), "a young one is not written again");
        fill(cache.begin(LANE), 31);
        assert!(!Arc::ptr_eq(&first, &held(31).unwrap()));
        drop(first);

        let late = cache.begin(LANE);
        cache.invalidate(LANE);
        assert!(held(32).is_none(), "a write drops it");
        fill(late, 32);
        assert!(held(32).is_none(), "it was read before a write");
        settle(&cache);
        settle(&cache);
        assert!(std::fs::read_dir(dir.path().join("results")).unwrap().count() <= 1);

        fill(cache.begin(LANE), 40);
        let withdrawn = cache.withdraw(LANE, None).unwrap();
        assert!(held(41).is_none());
        cache.put_back(withdrawn);
        assert!(held(41).is_some());
        cache.shelf().unwrap().set_bytes(1);
        settle(&cache);
        assert!(held(41).is_none(), "it gave its place to another");
        assert_eq!(cache.sweep(at(41)), 1);
    }

    #[test]
    fn what_a_restart_brought_back_is_stale() {
        let (old, new) = (cache(), cache());
        old.fill(old.begin(LANE), key("k"), key("v"), at(100), None);
        new.restore(old.entries());
        assert_eq!(look(&new, 101), Some((1, false)));
    }
}
