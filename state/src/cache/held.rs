//! What a cache holds of one lane, and how much that is. It is counted for as long as it lives.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quick_cache::Weighter;

use crate::{
    shelf::Shelved,
    units::{LaneId, Moment},
};

/// What an entry costs beside its bytes.
pub(super) const OVERHEAD: usize = 64;
/// How long what a program cannot start without answers.
const OUTLASTS: Duration = Duration::from_secs(24 * 3_600);

/// A cached reply.
#[derive(Clone, Debug)]
pub enum Value {
    /// It is at hand.
    Memory(Bytes),
    /// It is in a file.
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
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Memory(value) => value.len(),
            Self::File(_) => 0,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
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
    pub(super) fn limit(&self, max_stale: Duration) -> Duration {
        if self.outlasts { max_stale.max(OUTLASTS) } else { max_stale }
    }
}

#[derive(Clone)]
pub(super) struct Weigh {
    /// The least that an entry weighs, so that one limit on the weight bounds the items too.
    pub(super) floor: u64,
}

pub(super) type Reads = Arc<Held>;

/// What the cache holds at this moment, so that nobody has to walk it to know.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) entries: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// The reads of one lane. They are counted for as long as they live, however the cache lets go of them.
pub(super) struct Held {
    reads: Vec<CachedRead>,
    /// When the only read was answered again as before, in milliseconds of a [`Moment`]; 0 if it was not.
    answered_again: AtomicU64,
    tally: Arc<Tally>,
}

impl Held {
    pub(super) fn new(reads: Vec<CachedRead>, tally: &Arc<Tally>) -> Reads {
        let held = Self { reads, answered_again: AtomicU64::new(0), tally: Arc::clone(tally) };
        let (entries, bytes) = held.size();
        tally.entries.fetch_add(entries, Ordering::Relaxed);
        tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(held)
    }

    /// Whether `read` is all that it holds: then it need only note when that was answered again.
    pub(super) fn answers_again(
        &self,
        key: &[u8],
        value: &[u8],
        now: Moment,
        until: Option<Moment>,
    ) -> bool {
        let [only] = self.reads.as_slice() else { return false };
        let same = only.key == key
            && matches!(&only.value, Value::Memory(held) if held == value)
            && ends_alike(only.until, until)
            && !only.restored;
        if same {
            self.answered_again.fetch_max(now.as_millis(), Ordering::Relaxed);
        }
        same
    }

    /// When a read of it was last answered.
    pub(super) fn answered_at(&self, read: &CachedRead) -> Moment {
        let again = Moment::from_millis(self.answered_again.load(Ordering::Relaxed));
        read.stored_at.max(again)
    }

    /// The reads with their times, to be put elsewhere.
    pub(super) fn taken(&self) -> impl DoubleEndedIterator<Item = CachedRead> {
        self.reads
            .iter()
            .map(|read| CachedRead { stored_at: self.answered_at(read), ..read.clone() })
    }

    fn size(&self) -> (u64, u64) {
        let bytes: usize = self.reads.iter().map(|read| read.key.len() + read.value.weight()).sum();
        (self.reads.len() as u64, bytes as u64)
    }
}

/// Whether a value that ends at `held` may stay in the place of the same value that ends at `until`: if it ends at the
/// same time, or a few milliseconds earlier. Both moments were computed from clocks that are read one after the other, so
/// they differ by that much.
fn ends_alike(held: Option<Moment>, until: Option<Moment>) -> bool {
    const HARDLY: Duration = Duration::from_millis(10);
    match (held, until) {
        (Some(held), Some(until)) => held <= until && until.since(held) <= HARDLY,
        (held, until) => held == until,
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
